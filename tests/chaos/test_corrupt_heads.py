"""Bytes flipped in data.mdb itself: first a user's head, then the two newest versions too, then all; by library and command.

The user is served from the newest good version, or the answer says that none is good, which is another answer than that
nothing is stored.  Nothing is overwritten in silence, doctor names it, recover and restore mend it, others go on.
"""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from statemachine import StoreCorrupt
from statemachine.store import keys
from tests.regression.scene import START, head, opened, records, states, weighed, working

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.usefixtures("no_events")

VERSIONS: Final = 8
BY: Final = ("--actor", "ops@example.org", "--reason", "the disk had a bad block")
DAMAGE: Final = {"head": 0, "two newest": 2, "all": VERSIONS}
"""How many of the newest versions are hit beside the head."""


def resetguard(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    command = [sys.executable, "-m", "statemachine.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def document(*arguments: object, code: int = 0) -> Any:
    """What the command prints with --json; it must end with `code`."""
    run = resetguard(*arguments, "--json")
    assert run.returncode == code, run.stderr
    assert "Traceback" not in run.stderr
    return json.loads(run.stdout)


def flip(path: Path, *wanted: bytes) -> dict[bytes, bytes]:
    """Change one byte of each record where it lies in data.mdb, by its sealed bytes; what is stored under the keys then."""
    with opened(path, readonly=True) as store:
        sealed = [store.engine.get(key) for key in wanted]
    data = (path / "data.mdb").read_bytes()
    for record in sealed:
        assert record is not None
        assert record in data
        at = len(record) // 2
        data = data.replace(record, record[:at] + bytes((record[at] ^ 0x10,)) + record[at + 1:])  # in older pages as well
    (path / "data.mdb").write_bytes(data)
    with opened(path, readonly=True) as store:
        damaged = {key: store.engine.get(key) or b"" for key in wanted}
    assert all(len(now) == len(was or b"") and now != was for now, was in zip(damaged.values(), sealed, strict=True))
    return damaged


class Scene:
    """A store of three users, the middle one of whom is damaged: the true states, and the bytes that are wrong now."""

    def __init__(self, whole: Path, path: Path, versions: int) -> None:
        self.path = path
        shutil.copytree(whole, path)
        with opened(path, readonly=True) as store:
            self.true = {user: states(store, user) for user in ("amy", "ann", "bob")}
            self.others = {user: records(store, user) for user in ("amy", "bob")}
        lost = [keys.version(b"ann", VERSIONS - number) for number in range(versions)]
        self.damaged = flip(path, keys.head(b"ann"), *lost)
        self.newest_good = VERSIONS - versions

    def assert_others_untouched(self) -> None:
        """What is stored of the other users is what it was, to the byte."""
        with opened(self.path, readonly=True) as store:
            assert {user: records(store, user) for user in self.others} == self.others
            assert store.verify_audit().problem == ""

    def assert_damage_kept(self, head_at: bytes) -> None:
        """Every wrong byte is still there to be looked at: the versions in their places, the head where it was put."""
        with opened(self.path, readonly=True) as store:
            for key, value in self.damaged.items():
                assert store.engine.get(head_at if key == keys.head(b"ann") else key) == value


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store before its damage."""
    path = tmp_path_factory.mktemp("whole") / "store"
    with working(path) as (_, _, processor):
        processor.process_batch(weighed(user, day, 80 + day / 10) for day in range(VERSIONS) for user in ("amy", "ann", "bob"))
    return path


@pytest.fixture(params=list(DAMAGE))
def scene(request: pytest.FixtureRequest, whole: Path, tmp_path: Path) -> Iterator[Scene]:
    """A damaged store, damaged as far as each of the three ways goes."""
    made = Scene(whole, tmp_path / "store", DAMAGE[request.param])
    yield made
    with opened(made.path, readonly=True) as store:
        assert store.verify_audit().problem == ""


def test_looking_tells_and_changes_nothing(scene: Scene) -> None:
    """The newest good version, or that none is good; never nothing stored; and each look leaves every byte as it was."""
    before = (scene.path / "data.mdb").read_bytes()
    with opened(scene.path, readonly=True) as store:
        if scene.newest_good == VERSIONS:
            loaded = store.load("ann")
            assert loaded is not None
            assert (loaded.version, loaded.head_damaged) == (VERSIONS, True)
            assert store.estimator.encode(loaded.state) == scene.true["ann"][-1]
        else:
            with pytest.raises(StoreCorrupt) as caught:
                store.load("ann")
            assert caught.value.newest_good == (scene.newest_good or None)
            assert caught.value.user == "ann"
        if scene.newest_good:
            good = store.load("ann", scene.newest_good)
            assert good is not None
            assert store.estimator.encode(good.state) == scene.true["ann"][scene.newest_good - 1]
        assert store.load("nobody") is None
    shown, nobody = resetguard("show", "ann", "--store", scene.path), resetguard("show", "nobody", "--store", scene.path)
    assert (nobody.returncode, "nothing is stored" in nobody.stderr) == (2, True)
    says = {VERSIONS: "is folded from its log", 0: "no version can be read"}
    assert says.get(scene.newest_good, f"version {scene.newest_good} is the newest that can be read") in shown.stderr
    assert "nothing is stored" not in shown.stderr
    assert shown.returncode == (0 if scene.newest_good == VERSIONS else 3)
    assert resetguard("show", "bob", "--store", scene.path).returncode == 0
    assert (scene.path / "data.mdb").read_bytes() == before


def test_doctor_names_the_user_and_each_record(scene: Scene) -> None:
    """One finding a damaged record, all of that user, and none of another."""
    report = document("doctor", "--store", scene.path, code=1)
    found = [finding for finding in report["findings"] if finding["level"] == "error"]
    assert len(found) == len(scene.damaged)
    assert {finding["subject"] for finding in found} == {"user 'ann'"}
    told = " ".join(finding["problem"] for finding in found)
    assert "the head cannot be read" in told
    for version in range(scene.newest_good + 1, VERSIONS + 1):
        assert f"version {version} cannot be read" in told
    scene.assert_others_untouched()


def test_recover_serves_the_newest_good_version(scene: Scene) -> None:
    """Walked back to the newest good one, what was left out set aside; where none is good it says so and changes nothing."""
    if not scene.newest_good:
        row = document("recover", "--store", scene.path, *BY, code=1)
        assert (row["user"], row["outcome"]) == ("ann", "failed")
        assert "no version of 'ann' can be read" in row["error"]
        scene.assert_damage_kept(keys.head(b"ann"))
        scene.assert_others_untouched()
        return
    row = document("recover", "--store", scene.path, *BY)
    left_out = VERSIONS - scene.newest_good
    version = VERSIONS + (left_out > 0)
    assert (row["user"], row["outcome"], row["from_version"], row["version"], row["left_out"]) == (
        "ann", "recovered", scene.newest_good, version, left_out)
    scene.assert_damage_kept(keys.damaged(b"ann", VERSIONS + 1))
    scene.assert_others_untouched()
    with working(scene.path) as (store, _, processor):
        assert store.estimator.encode(head(store, "ann")) == scene.true["ann"][scene.newest_good - 1]
        assert store.kept_count("ann") == left_out, "no measurement is lost: what was left out is kept aside"
        [done] = [row for row in store.audit("ann") if row.public.event == "state.recovered"]
        assert (done.personal.actor, done.personal.details["left_out"]) == (BY[1], left_out)
        assert processor.process(weighed("ann", 9, 80.9)).version == version + 1
    named = document("doctor", "--store", scene.path, code=1)["findings"]
    assert any(finding["check"] == "damaged heads" and "'ann'" in finding["subject"] for finding in named)


def test_restore_mends_it(scene: Scene, whole: Path) -> None:
    """`restore --last-known-good`: a dry run changes nothing, then the newest good version is the head; or none is good."""
    before = (scene.path / "data.mdb").read_bytes()
    command = ("restore", "ann", "--last-known-good", "--store", scene.path, *BY)
    if not scene.newest_good:
        refused = resetguard(*command)
        assert (refused.returncode, "no version of 'ann' can be read" in refused.stderr) == (3, True)
        scene.assert_damage_kept(keys.head(b"ann"))
        backup, back = scene.path.with_name("backup"), scene.path.with_name("back")
        assert resetguard("backup", backup, "--store", whole).returncode == 0
        assert resetguard("restore-store", backup, back, *BY).returncode == 0
        with opened(back) as store:
            assert store.estimator.encode(head(store, "ann")) == scene.true["ann"][-1]
        return
    assert document(*command, "--dry-run")["outcome"] == "dry_run"
    scene.assert_damage_kept(keys.head(b"ann"))
    scene.assert_others_untouched()
    assert len((scene.path / "data.mdb").read_bytes()) >= len(before)
    done = document(*command)
    assert done["outcome"] in {"recovered", "committed"}
    with opened(scene.path) as store:
        loaded = store.load("ann")
        assert loaded is not None
        assert (loaded.version, loaded.head_damaged) == (done["version"], False)
        assert store.estimator.encode(loaded.state) == scene.true["ann"][scene.newest_good - 1]
    scene.assert_damage_kept(keys.damaged(b"ann", VERSIONS + 1))
    scene.assert_others_untouched()


def write_rows(path: Path) -> None:
    """Two days more of each user."""
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("user_id", "timestamp", "weight", "unit", "source"))
        for day in (9, 10):
            at = (START + timedelta(days=day)).isoformat()
            rows.writerows((user, at, "80.9", "kg", "scale") for user in ("amy", "ann", "bob"))


def test_the_processor_goes_on(scene: Scene) -> None:
    """Others' rows are accepted; the damaged user is walked back first, or, where nothing can be read, kept aside unread."""
    source = scene.path.with_name("rows.csv")
    write_rows(source)
    report = document("process", source, "--store", scene.path, code=0 if scene.newest_good else 1)
    accepted = 6 if scene.newest_good else 4
    counts = report["measurements"]
    assert (counts["accepted"], counts["quarantined"]) == (accepted, 6 - accepted)
    scene.assert_damage_kept(keys.damaged(b"ann", VERSIONS + 1) if scene.newest_good else keys.head(b"ann"))
    with opened(scene.path) as store:
        assert [store.version_range(user)[1] for user in ("amy", "bob")] == [VERSIONS + 2] * 2
        assert [row.public.kind for row in store.audit("ann") if row.public.outcome == "committed"] == ["initial"]
        if scene.newest_good:
            assert head(store, "ann").kalman.at_us
        else:
            kept = [one for one in store.quarantine() if one.user == "ann"]
            assert len(kept) == 2
            assert all("cannot be read" in one.reason for one in kept)
            with pytest.raises(StoreCorrupt, match="no version can be read"):
                store.load("ann")


def test_a_reset_of_a_damaged_user_begins_nothing_anew(scene: Scene) -> None:
    """A reset by hand from a weight would be a first one, were nothing stored: it is refused, and changes nothing."""
    run = resetguard("reset", "ann", "--kind", "initial", "--weight", "50", "--at", "2026-02-01", "--store", scene.path, *BY)
    assert (run.returncode, "Traceback" in run.stderr) == (3, False), run.stderr
    scene.assert_damage_kept(keys.head(b"ann"))
    scene.assert_others_untouched()


def test_a_head_that_was_mended_twice_keeps_both(whole: Path, tmp_path: Path) -> None:
    """Each damaged head is kept under the number of the version after it: the second does not overwrite the first."""
    scene = Scene(whole, tmp_path / "store", DAMAGE["head"])
    first = scene.damaged[keys.head(b"ann")]
    with working(scene.path) as (store, manager, processor):
        assert manager.recover("ann") is not None
        assert processor.process(weighed("ann", 9, 80.9)).version == VERSIONS + 1
    second = flip(scene.path, keys.head(b"ann"))[keys.head(b"ann")]
    with working(scene.path) as (store, manager, _):
        assert manager.recover("ann") is not None
        kept = [value for _, value in store.engine.scan(keys.DAMAGED, keys.after(keys.DAMAGED))]
        assert kept == [first, second]
