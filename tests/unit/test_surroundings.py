"""What a store lies in: each thing planted is told, and a network file system is refused before anything is made."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from statemachine import StoreLimits, StoreUnavailable
from statemachine.clock import US_PER_DAY
from statemachine.marks import RUNNING, DeadMarks, Mark, Marks
from statemachine.store import surroundings
from statemachine.store.life import backup
from tests.regression.scene import fill, opened

if TYPE_CHECKING:
    from pathlib import Path

    from statemachine.store import Store
    from statemachine.store.careful import Finding

pytestmark = pytest.mark.usefixtures("no_events")
READER = """
import lmdb, os, signal, sys
env = lmdb.open(sys.argv[1], map_size=1 << 28, create=False, max_dbs=0, lib_version=0)
txn = env.begin()
print("reading", flush=True)
sys.stdin.read()
"""


def told(store: Store, check: str) -> list[Finding]:
    """What is found, once what the machine itself may add (its disk) is left out."""
    return [finding for finding in surroundings.examine(store) if finding.check == check]


def mounted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *mounts: tuple[str, str]) -> None:
    table = tmp_path / "mountinfo"
    table.write_text("".join(f"36 35 98:0 / {point} rw,noatime shared:1 - {kind} source rw\n" for point, kind in mounts))
    monkeypatch.setattr(surroundings, "mount_table", table)


def test_sound_surroundings_have_no_finding(tmp_path: Path) -> None:
    fill(tmp_path / "store", "ann", [80.0])
    with opened(tmp_path / "store") as store:
        assert [finding for finding in surroundings.examine(store) if finding.check != "disk"] == []


def test_unsettled_marks_of_a_dead_owner_are_counted_and_left(tmp_path: Path) -> None:
    with opened(tmp_path / "store") as store:
        marks = Marks(store.path / "owners" / "77")
        marks.fill(Mark(RUNNING, "reset.interrupted", "interrupted", str(store.ids.attempt_id()), "ann", "admin", "", 0, 0, 0))
        assert told(store, "marks") == []  # it lives
        marks.abandon()
        found = told(store, "marks")
        assert [(f.subject, f.level) for f in found] == [("owner 77", "warning")]
        assert "1 attempts" in found[0].problem
        assert told(store, "marks") == found


def left_by_a_dead_owner(path: Path) -> None:
    with opened(path) as store:
        marks = Marks(store.path / "owners" / "77")
        marks.fill(Mark(RUNNING, "reset.interrupted", "interrupted", str(store.ids.attempt_id()), "ann", "admin", "", 0, 0, 0))
        marks.abandon()


def is_turn_taken(path: Path) -> bool:
    """Whether somebody has the writer's turn, asked as a writer would."""
    with (path / "writer.lock").open("rb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def test_look_at_anothers_marks_takes_the_turn_in_a_store_open_for_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without it, an owner that begins at that moment could not lock its file; and the turn is given back."""
    left_by_a_dead_owner(tmp_path / "store")
    taken: list[bool] = []
    take = DeadMarks.take

    def watched(path: Path) -> DeadMarks | None:
        taken.append(is_turn_taken(tmp_path / "store"))
        return take(path)

    monkeypatch.setattr(DeadMarks, "take", watched)
    with opened(tmp_path / "store", readonly=True) as store:
        assert [(f.subject, f.level) for f in told(store, "marks")] == [("owner 77", "warning")]
        assert taken == [True]
        assert not is_turn_taken(store.path)
        with pytest.raises(StoreUnavailable), store.engine.turn():
            pass
    assert (tmp_path / "store" / "owners" / "77").exists()


def test_marks_that_cannot_be_looked_at_for_a_writer_are_an_error(tmp_path: Path) -> None:
    """A stopped writer keeps its turn; doctor waits its time and says so."""
    left_by_a_dead_owner(tmp_path / "store")
    with (
        (tmp_path / "store" / "writer.lock").open("rb") as lock,
        opened(tmp_path / "store", readonly=True, limits=StoreLimits(writer_wait_s_max=0.01)) as store,
    ):
        fcntl.flock(lock, fcntl.LOCK_EX)
        [found] = told(store, "marks")
        assert (found.level, "holds the writer's turn" in found.problem) == ("error", True)


def test_backup_has_no_marks_and_is_sound(tmp_path: Path) -> None:
    with opened(tmp_path / "store") as store:
        backup(store, tmp_path / "backup")
    with opened(tmp_path / "backup", readonly=True) as store:
        assert [finding for finding in surroundings.examine(store) if finding.check != "disk"] == []


def test_owner_that_died_with_nothing_unsettled_is_no_finding(tmp_path: Path) -> None:
    with opened(tmp_path / "store") as store:
        Marks(store.path / "owners" / "77").abandon()
        assert told(store, "marks") == []


@pytest.mark.parametrize("killed", [True, False])
def test_reader_that_died_or_fell_behind_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, killed: bool) -> None:
    with opened(tmp_path / "store") as store:
        reader = subprocess.Popen([sys.executable, "-c", READER, str(store.path)], stdin=subprocess.PIPE,
                                  stdout=subprocess.PIPE)
        try:
            assert reader.stdout is not None
            assert reader.stdout.readline() == b"reading\n"
            assert told(store, "readers") == []
            if killed:
                reader.kill()
                reader.wait()
            else:
                monkeypatch.setattr(surroundings, "READER_COMMITS_MAX", 0)
                with store.engine.turn():
                    store.engine.update(lambda put: put(b"\0z", b"a commit"))
            found = told(store, "readers")
            assert [f.subject for f in found] == [f"process {reader.pid}"]
            assert ("died" if killed else "1 commits ago") in found[0].problem
        finally:
            reader.kill()
            reader.communicate()


def test_map_that_is_nearly_used_up_is_told(tmp_path: Path) -> None:
    fill(tmp_path / "store", "ann", [80.0])
    limits = StoreLimits(map_bytes=1 << 17, map_bytes_max=(tmp_path / "store" / "data.mdb").stat().st_size * 11 // 10)
    with opened(tmp_path / "store", limits=limits) as store:
        assert len(told(store, "map")) == 1


@pytest.mark.parametrize(("total", "free", "count"), [(1 << 50, 1 << 46, 1), (1 << 10, 1 << 9, 1), (1 << 50, 1 << 49, 0)])
def test_disk_nearly_full_or_without_room_for_a_copy_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, total: int, free: int, count: int,
) -> None:
    usage = type(shutil.disk_usage(tmp_path))
    with opened(tmp_path / "store") as store:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(total, total - free, free))
        assert len(told(store, "disk")) == count


def test_missing_lock_file_is_an_error(tmp_path: Path) -> None:
    with opened(tmp_path / "store") as store:
        (store.path / "lock.mdb").unlink()
        assert [f.level for f in told(store, "lock file")] == ["error"]


@pytest.mark.parametrize(("name", "mode", "remedy"), [
    (".", 0o750, "chmod 0700"), ("data.mdb", 0o640, "chmod 0600"), ("owners", 0o701, "chmod 0700"),
    ("owners/1", 0o604, "chmod 0600"),
])
def test_mode_that_lets_others_in_is_told(tmp_path: Path, name: str, mode: int, remedy: str) -> None:
    with opened(tmp_path / "store") as store:
        (store.path / name).chmod(mode)
        assert [(f.subject, f.remedy) for f in told(store, "modes")] == [(str(store.path / name), remedy)]


def test_what_cannot_be_looked_at_is_an_error_and_the_rest_is_seen(tmp_path: Path) -> None:
    with opened(tmp_path / "store") as store:
        moved = store.path / "owners"
        moved.rename(tmp_path / "elsewhere")
        assert [f.level for f in told(store, "marks")] == ["error"]
        (tmp_path / "elsewhere").rename(moved)


def test_two_distributions_of_one_import_name_are_told() -> None:
    assert list(surroundings.import_name(["resetguard", "resetguard"])) == []
    [found] = surroundings.import_name(["resetguard", "python-statemachine"])
    assert "python-statemachine, resetguard" in found.problem


def test_quarantine_is_judged_by_its_oldest() -> None:
    now_us = 100 * US_PER_DAY
    assert list(surroundings.quarantine_age(None, now_us, 0)) == []
    assert list(surroundings.quarantine_age(10 * US_PER_DAY, now_us, 90)) == []
    [found] = surroundings.quarantine_age(10 * US_PER_DAY, now_us, 89)
    assert (found.level, "90 days" in found.problem) == ("warning", True)


@pytest.mark.parametrize("kind", sorted(surroundings.NETWORK))
def test_store_on_a_network_file_system_is_refused_and_nothing_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str,
) -> None:
    mounted(monkeypatch, tmp_path, ("/", "ext4"), (str(tmp_path), kind))
    with pytest.raises(StoreUnavailable, match=kind):
        opened(tmp_path / "deep" / "store")
    assert not (tmp_path / "deep").exists()


def test_store_that_came_to_lie_on_one_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(tmp_path / "store") as store:
        mounted(monkeypatch, tmp_path, (str(tmp_path), "nfs4"))
        assert [f.level for f in told(store, "file system")] == ["error"]


def test_the_longest_mount_point_counts_the_last_of_two_and_escapes_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    spaced = tmp_path / "a b"
    spaced.mkdir()
    mounted(monkeypatch, tmp_path, (str(spaced).replace(" ", "\\040"), "nfs"), ("/", "ext4"), (str(tmp_path), "nfs"),
            (str(tmp_path), "xfs"))
    assert surroundings.file_system(spaced / "store") == "nfs"
    assert surroundings.file_system(tmp_path / "a") == "xfs"
    assert surroundings.file_system(tmp_path.parent) == "ext4"


def test_a_system_without_a_mount_table_is_let_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surroundings, "mount_table", tmp_path / "none")
    with opened(tmp_path / "store") as store:
        assert told(store, "file system") == []
