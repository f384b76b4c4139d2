"""`resetguard doctor`: what it finds where something was planted, and that it finds nothing where nothing was."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from statemachine import Store, StoreUnavailable
from statemachine.cli import app
from statemachine.store import keys, surroundings
from tests.regression.scene import fill, raw, tear, weighed, working

pytestmark = pytest.mark.usefixtures("no_events")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Two users: one with a hundred versions, one with a held measurement."""
    fill(tmp_path / "state", "ana", [80.0 + number % 3 * 0.1 for number in range(100)])
    fill(tmp_path / "state", "bob", [70.0, 70.1, 70.0])
    with working(tmp_path / "state") as (_, _, processor):
        assert processor.process(weighed("bob", 4, 140.0)).status == "quarantined"
    return tmp_path / "state"


def examined(path: Path, code: int) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["doctor", "--store", str(path), "--json"])
    assert result.exit_code == code, result.output
    document: dict[str, Any] = json.loads(result.stdout)
    return document


def test_a_sound_store_has_no_findings(path: Path) -> None:
    document = examined(path, 0)
    assert document["findings"] == []
    looked = {check["check"]: check["looked_at"] for check in document["checks"]}
    assert looked["records"] > 200
    shown = CliRunner().invoke(app, ["doctor", "--store", str(path)])
    assert shown.exit_code == 0
    assert max(map(len, shown.stdout.splitlines())) <= 80


def deleted(key: bytes) -> Callable[[Path], None]:
    def plant(path: Path) -> None:
        with raw(path) as txn:
            assert txn.delete(key)
    return plant


def torn(key: bytes) -> Callable[[Path], None]:
    return lambda path: tear(path, key)


@pytest.mark.parametrize(("plant", "check", "subject"), [
    (torn(keys.version(b"ana", 50)), "records", "ana"),
    (torn(keys.head(b"ana")), "records", "ana"),
    (torn(keys.aside(b"bob")), "records", "bob"),
    (deleted(keys.head(b"ana")), "heads", "ana"),
    (deleted(keys.version(b"ana", 100)), "heads", "ana"),
    (deleted(keys.version(b"ana", 70)), "versions", "ana"),
    (deleted(keys.aside(b"bob")), "kept aside", "bob"),
    (deleted(keys.pin(b"bob")), "probation", "bob"),
    (deleted(keys.audit(1)), "audit chain", ""),
], ids=["step", "head", "aside", "no head", "newest gone", "gap", "uncounted", "no pin", "row gone"])
def test_planted_damage_is_named(path: Path, plant: Callable[[Path], None], check: str, subject: str) -> None:
    plant(path)
    found = examined(path, 1)["findings"]
    assert any(finding["check"] == check and subject in finding["subject"] and finding["remedy"] for finding in found), found
    others = {"ana", "bob"} - {subject}
    if subject:
        assert not any(f"{other!r}" in finding["subject"] for finding in found for other in others), "only the user that is hurt"


def test_open_modes_are_found(path: Path) -> None:
    (path / "data.mdb").chmod(0o644)
    (finding,) = examined(path, 1)["findings"]
    assert (finding["check"], finding["remedy"]) == ("modes", "chmod 0600")


def test_a_network_file_system_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = tmp_path / "mountinfo"
    table.write_text(f"1 1 0:1 / / rw - ext4 /dev/vda rw\n2 1 0:2 / {tmp_path}/share rw - nfs4 server:/ rw\n")
    monkeypatch.setattr(surroundings, "mount_table", table)
    (tmp_path / "share").mkdir()
    with pytest.raises(StoreUnavailable, match="network file system"):
        Store.open(tmp_path / "share" / "state")
    assert list((tmp_path / "share").iterdir()) == []
    Store.open(tmp_path / "state").close()
    assert surroundings.file_system(tmp_path / "state") == "ext4"


def test_two_owners_of_the_import_name_are_found() -> None:
    (finding,) = surroundings.import_name(["resetguard", "python-statemachine"])
    assert "python-statemachine" in finding.problem
    assert list(surroundings.import_name(["resetguard", "resetguard"])) == []


def test_a_store_that_cannot_be_opened_is_trouble(path: Path) -> None:
    tear(path, keys.META)
    assert CliRunner().invoke(app, ["doctor", "--store", str(path)]).exit_code == 3
