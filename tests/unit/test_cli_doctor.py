"""`doctor`: a line a check, the damaged user and the remedy, one JSON document, and its exit codes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from statemachine.cli import doctor as command
from statemachine.store import checkup, keys, surroundings
from tests.regression.scene import BY, fill, raw, tear, working
from tests.unit.test_cli_inspect import run

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("no_events")


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(surroundings, "DISK_SHARE_MIN", 0.0)
    fill(tmp_path / "store", "ann", [80.0, 80.1])
    return tmp_path / "store"


def test_sound_store_shows_a_line_a_check_and_ends_with_0(path: Path) -> None:
    ran = run(path, "doctor")
    assert ran.code == 0
    lines = [line for line in ran.out.splitlines() if line.rstrip().endswith(" ok")]
    assert len(lines) == len(checkup.CHECKS) + len(surroundings.CHECKS) - 1
    assert "0 findings" in ran.err


def test_damaged_head_is_named_with_its_remedy_and_ends_with_1(path: Path) -> None:
    tear(path, keys.head(b"ann"))
    ran = run(path, "doctor")
    assert ran.code == 1
    assert "error: user 'ann' (records)" in ran.out
    assert "the head cannot be read: fails its checksum" in ran.out
    assert "`resetguard recover --user ann` walks back to the newest good version" in " ".join(ran.out.split())


def test_damaged_version_under_a_good_head_is_told_as_lost_and_not_as_mendable(path: Path) -> None:
    """What doctor advises must be true: recover and rebuild leave such a version where it is."""
    tear(path, keys.version(b"ann", 2))
    ran = run(path, "doctor")
    told = " ".join(ran.out.split())
    assert ran.code == 1
    assert "error: user 'ann' (records)" in told
    assert "the head is good and goes on" in told
    assert "nor can `resetguard rebuild ann --from FILE` take it out: it goes with retention" in told
    assert "recover --user" not in told
    with raw(path) as txn:
        txn.delete(keys.head(b"ann"))
    assert "the head is good" not in " ".join(run(path, "doctor").out.split())


def test_damaged_version_below_a_newer_image_is_a_warning(path: Path) -> None:
    with working(path) as (_, manager, _processor):
        manager.perform_reset("ann", **BY)
    tear(path, keys.version(b"ann", 2))
    for gone, level in ((None, "warning"), (keys.head(b"ann"), "error")):
        if gone is not None:
            tear(path, gone)
        ran = run(path, "doctor", "--json")
        found = {finding["problem"][:9]: finding for finding in json.loads(ran.out)["findings"]}
        assert (ran.code, found["version 2"]["level"]) == (1, level)
        assert ("goes with retention" in found["version 2"]["remedy"]) == (level == "warning")


def test_json_is_one_document(path: Path) -> None:
    tear(path, keys.head(b"ann"))
    ran = run(path, "doctor", "--json", "--quarantine-days", "0")
    document = json.loads(ran.out)
    assert (ran.code, set(document)) == (1, {"checks", "findings", "seconds"})
    assert [check["check"] for check in document["checks"]] == [*checkup.CHECKS, *surroundings.CHECKS]
    assert [(f["check"], f["level"], f["subject"]) for f in document["findings"]] == [("records", "error", "user 'ann'")]
    assert document["checks"][0]["findings"] == 1


def test_store_that_cannot_be_opened_ends_with_3_and_none_at_all_with_2(path: Path) -> None:
    tear(path, keys.META)
    assert run(path, "doctor").code == 3
    assert run(path.parent / "none", "doctor").code == 2


def test_so_many_findings_of_a_check_are_shown_and_all_are_counted(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "FINDINGS_SHOWN_MAX", 2)
    with raw(path) as txn:
        for number in range(5):
            txn.put(keys.damaged(b"ann", number), b"old")
    ran = run(path, "doctor")
    assert ran.code == 1
    assert ran.out.count("warning: ") == 2
    assert "5 findings" in ran.err
    assert "3 more are not shown" in ran.err


def test_bench_measures_the_disk_and_advises(path: Path) -> None:
    before = sorted(child.name for child in path.iterdir())
    ran = run(path, "doctor", "--bench")
    told = " ".join(ran.out.split())
    assert ran.code == 0
    assert "page written and synced 50 " in told
    assert "LMDB commit 99 " in told
    assert "advice for this disk durability " in told
    assert sorted(child.name for child in path.iterdir()) == before
    assert "advice" not in run(path, "doctor").out


def test_bench_is_part_of_the_one_document(path: Path) -> None:
    bench = json.loads(run(path, "doctor", "--bench", "--json").out)["bench"]
    assert set(bench) == {"measured", "advice"}
    assert [(row["what"], row["percentile"]) for row in bench["measured"]] == [
        ("page written and synced", 50), ("page written and synced", 99), ("LMDB commit", 50), ("LMDB commit", 99)]
    assert all(row["duration_us"] > 0 for row in bench["measured"])
    assert bench["advice"]["durability"] in {"each", "group"}
    assert set(bench["advice"]) == {"durability", "group_delay_ms", "reasons"}
