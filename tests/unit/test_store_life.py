"""Backups made while others write, and stores made of them: whole or not at all, verified, and never over anything."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from typer.testing import CliRunner

from statemachine import InvalidInput, ResetManager, StoreCorrupt, StoreForeign, StoreFull, StoreUnavailable, codec
from statemachine.breaker import Breaker, lease
from statemachine.cli import app
from statemachine.store import keys, presence, surroundings
from statemachine.store.engine import Engine
from statemachine.store.life import backup, restore_store
from tests.regression.scene import BY, Faulty, fill, opened, raw, refused, states, tear, weighed, working
from tests.unit.processes import line, ran, started

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("no_events")

MODES = {"data.mdb": 0o600, "backup.json": 0o600}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store of one user with four versions."""
    fill(tmp_path / "state", "u", [80.0, 80.1, 80.2, 80.3])
    return tmp_path / "state"


@pytest.fixture
def made(path: Path) -> Path:
    """A backup of that store."""
    with opened(path, readonly=True) as store:
        return backup(store, path.with_name("backup")).path


def names(directory: Path) -> list[str]:
    return sorted(child.name for child in directory.iterdir())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# Backup


def test_a_backup_holds_what_was_committed_and_changes_nothing_in_the_store(path: Path) -> None:
    before = (path / "data.mdb").read_bytes()
    with opened(path, readonly=True) as store:
        tail, expected = store.audit_tail(), states(store, "u")
        found = backup(store, path.with_name("b"))
    assert (path / "data.mdb").read_bytes() == before
    assert (found.path, (found.seq, found.hash)) == (path.with_name("b"), tail)
    assert found.bytes == (found.path / "data.mdb").stat().st_size
    assert {name: mode(found.path / name) for name in names(found.path)} == MODES
    assert mode(found.path) == 0o700
    assert names(path.parent) == ["b", "state"]
    with opened(found.path, readonly=True) as copy:
        assert states(copy, "u") == expected


def test_backups_made_while_another_process_commits_each_hold_one_moment(path: Path) -> None:
    """In the writer each commit moves two users together; no backup may hold one of them without the other."""
    writer = started("""
        with working(path) as (store, manager, processor):
            say("open")
            for number in range(100_000):
                draft = store.draft()
                for user in (b"one", b"two"):
                    draft.put(keys.damaged(user, 1), number.to_bytes(8, "big") * 400)
                draft.put(keys.damaged(b"filler", number), bytes(3_000))
                store.commit(draft)
    """, path)
    try:
        assert line(writer) == "open"
        seen = []
        with opened(path, readonly=True) as store:
            for number in range(8):
                directory = backup(store, path.with_name(f"b{number}")).path
                with opened(directory, readonly=True) as copy:
                    pair = [copy.engine.get(keys.damaged(user, 1)) for user in (b"one", b"two")]
                    assert (pair[0] is None) == (pair[1] is None)
                    contents = [codec.unseal(keys.damaged(user, 1), value or b"")
                                for user, value in zip((b"one", b"two"), pair, strict=True) if value]
                    assert len(set(contents)) <= 1
                    seen.append(contents[:1])
        assert writer.poll() is None, "the writer must have been writing all the while"
        assert len({str(one) for one in seen}) > 1, "no commit came between the backups"
    finally:
        writer.kill()
        writer.communicate()


def test_a_backup_killed_at_any_step_leaves_none_or_a_whole_one(path: Path) -> None:
    """The process is killed before each of its syncs and its rename in turn; the next backup clears what it left."""
    there = set()
    for step in range(1, 20):
        target = path.with_name(f"b{step}")
        child = started("""
            from statemachine.store.life import backup
            left = [int(sys.argv[2])]
            def dying(call):
                def step(*args, **named):
                    left[0] -= 1
                    if left[0] == 0:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return call(*args, **named)
                return step
            store = opened(path, readonly=True)
            os.fsync, os.rename = dying(os.fsync), dying(os.rename)
            backup(store, sys.argv[3])
            say("done")
        """, path, step, target)
        said, _ = child.communicate(timeout=60)
        there.add(target.exists())
        if target.exists():
            restore_store(target, path.with_name(f"r{step}"), **BY)
        if said:
            break
        if not target.exists():
            assert [n for n in names(path.parent) if n.startswith(f".b{step}.new-")], "it died while it built aside"
            with opened(path, readonly=True) as store:
                backup(store, target)
        assert not [n for n in names(path.parent) if n.startswith(f".b{step}.new-")]
    else:
        pytest.fail("no backup came to its end")
    assert step > 4
    assert there == {True, False}


def leftover(parent: Path, name: str) -> Path:
    """A directory that a process was filling when it died."""
    ended = int(ran("say(os.getpid())", parent))
    left = parent / f".{name}.new-{ended}-1234"
    left.mkdir(mode=0o700)
    (left / "data.mdb").write_bytes(b"everybody's data")
    return left


def test_what_a_killed_backup_left_is_cleared_by_the_next_one_of_any_name(path: Path) -> None:
    """But not what a living process is filling, what holds other things, and what has another name."""
    dead, foreign, named = (leftover(path.parent, name) for name in ("monday", "foreign", "x"))
    (foreign / "letters.txt").write_text("mine")
    other = named.rename(path.parent / ".x.new-year")
    alive = path.parent / f".y.new-{os.getpid()}-1"
    alive.mkdir()
    elsewhere = leftover(path.parent, "elsewhere")  # of a process that cannot be seen from here
    held = presence.building(elsewhere)
    with opened(path, readonly=True) as store:
        backup(store, path.with_name("tuesday"))
        assert [left.exists() for left in (dead, foreign, other, alive, elsewhere)] == [False, True, True, True, True]
        presence.let_go(held)
        backup(store, path.with_name("wednesday"))
    assert not elsewhere.exists()


def test_doctor_names_what_a_killed_backup_left_beside_the_store(path: Path) -> None:
    left = leftover(path.parent, "monday")
    with opened(path) as store:
        found = [finding for finding in surroundings.examine(store) if finding.check == "leftovers"]
    assert [(finding.subject, finding.level) for finding in found] == [(str(left), "warning")]


def test_a_mount_point_is_refused_by_name(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It cannot be replaced by a rename: neither a store, nor a backup, nor a restored store is made there."""
    with opened(path, readonly=True) as store:
        made = backup(store, path.with_name("b")).path
        point = path.with_name("mnt")
        point.mkdir()
        monkeypatch.setattr("pathlib.Path.is_mount", lambda at: at == point)
        for call in (lambda: backup(store, point), lambda: restore_store(made, point, **BY), lambda: opened(point)):
            assert "is a mount point" in str(refused(StoreUnavailable, call))
    assert names(point) == []


@pytest.mark.parametrize(("code", "kind"), [(errno.ENOSPC, StoreFull), (errno.EIO, StoreUnavailable)])
def test_a_backup_that_fails_leaves_nothing(path: Path, monkeypatch: pytest.MonkeyPatch, code: int, kind: Any) -> None:
    def failing(*_: object) -> None:
        raise OSError(code, "ill")

    with opened(path, readonly=True) as store:
        monkeypatch.setattr(os, "fsync", failing)
        refused(kind, backup, store, path.with_name("b"))
    assert names(path.parent) == ["state"]


def test_a_target_that_holds_anything_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full, file, empty = (path.with_name(name) for name in ("full", "file", "empty"))
    full.mkdir()
    (full / "mine").write_text("x")
    file.write_text("x")
    empty.mkdir()
    with opened(path, readonly=True) as store:
        for target, why in ((full, "there already"), (file, "there already"), (path / "b", "lies in"), (path, "lies in")):
            assert why in str(refused(InvalidInput, backup, store, target))
        with monkeypatch.context() as elsewhere:
            elsewhere.chdir(empty)
            assert "current directory" in str(refused(InvalidInput, backup, store, "."))
        assert backup(store, empty).seq
    assert (names(full), file.read_text()) == (["mine"], "x")


def test_a_store_whose_audit_chain_is_broken_is_not_taken_for_a_sound_backup(path: Path) -> None:
    with raw(path) as txn:
        txn.delete(keys.audit(1))
    with opened(path, readonly=True) as store, pytest.raises(StoreCorrupt, match="not sound at row 1"):
        backup(store, path.with_name("b"))
    assert names(path.parent) == ["state"]


def test_a_user_whose_state_is_damaged_is_backed_up_as_it_is(path: Path) -> None:
    """What is in the store can still be mended from the log; a backup of it must not be refused, nor its restoring."""
    tear(path, keys.head(b"u"))
    with opened(path, readonly=True) as store:
        found = backup(store, path.with_name("b"))
    restore_store(found.path, path.with_name("r"), **BY)
    with opened(path.with_name("r")) as store:
        loaded = store.load("u")
        assert loaded is not None
        assert (loaded.version, loaded.head_damaged) == (4, True)


def test_a_backup_is_no_store_to_write_to(made: Path) -> None:
    before = (made / "data.mdb").read_bytes()
    with pytest.raises(StoreUnavailable, match="is a backup"):
        opened(made)
    assert (made / "data.mdb").read_bytes() == before


# Restore


def test_a_restored_store_has_its_own_id_and_the_chain_goes_on(path: Path, made: Path) -> None:
    with opened(path) as store:
        old_id, tail, expected = store.store_id, store.audit_tail(), states(store, "u")
    found = restore_store(made, path.with_name("r"), **BY)
    assert {name: mode(found.path / name) for name in names(found.path)} == {
        "data.mdb": 0o600, "owners": 0o700, "writer.lock": 0o600}
    with opened(found.path) as store:
        assert (store.store_id, found.from_store_id) == (found.store_id, old_id)
        assert found.store_id != old_id
        assert states(store, "u") == expected
        assert (found.seq, found.hash) == store.audit_tail() == (tail[0] + 1, found.hash)
        assert store.verify_audit(against=tail[1]).bad_seq is None
        row = list(store.audit())[-1]
    assert (row.public.event, row.public.outcome, row.public.store_id) == ("store.restored", "done", found.store_id)
    assert (row.personal.actor, row.personal.reason) == (BY["actor"], BY["reason"])
    assert row.personal.details["backup"]["store_id"] == old_id
    assert (row.personal.details["backup"]["seq"], row.personal.details["backup"]["hash"]) == tail
    with working(found.path) as (_, _, processor):
        assert processor.process(weighed("u", 9, 80.4)).status == "accepted"


def test_owners_and_leased_probes_of_the_old_store_are_let_go(path: Path) -> None:
    """The backup is made while an owner lives and holds two probes, which nobody can end in the restored store."""
    with opened(path) as store:
        held = lease(Breaker(mode="open", generation=3, openings=1), "0" * 32, store.committer.owner)
        draft = store.draft()
        for key in (keys.breaker(b"u"), keys.GLOBAL_BREAKER):
            draft.put(key, codec.pack(held))
        store.commit(draft)
        owner = store.committer.owner
        found = backup(store, path.with_name("b"))
    restored = restore_store(found.path, path.with_name("r"), **BY)
    assert (restored.owners_removed, restored.probes_released) == (1, 2)
    with opened(restored.path, readonly=True) as store:
        assert list(store.engine.scan(keys.OWNER, keys.after(keys.OWNER))) == []
        assert store.meta().owners > owner
        draft_of = [store.engine.get(key) for key in (keys.breaker(b"u"), keys.GLOBAL_BREAKER)]
        breakers = [codec.unpack(Breaker, codec.unseal(key, value or b""))
                    for key, value in zip((keys.breaker(b"u"), keys.GLOBAL_BREAKER), draft_of, strict=True)]
        assert [(b.mode, b.probe, b.probe_owner) for b in breakers] == [("half-open", "", 0)] * 2
    with opened(restored.path) as store:  # the next attempt may probe at once
        assert ResetManager(store).perform_reset("u", **BY).outcome == "committed"


def _flip(made: Path) -> None:
    data = bytearray((made / "data.mdb").read_bytes())
    data[len(data) // 2] ^= 1
    (made / "data.mdb").write_bytes(data)


def _cut(made: Path) -> None:
    os.truncate(made / "data.mdb", (made / "data.mdb").stat().st_size // 2)


def _without_data(made: Path) -> None:
    (made / "data.mdb").unlink()


def _torn_manifest(made: Path) -> None:
    (made / "backup.json").write_text((made / "backup.json").read_text()[:-9])


def _another_manifest(made: Path) -> None:
    document = json.loads((made / "backup.json").read_text())
    (made / "backup.json").write_text(json.dumps(document | {"seq": document["seq"] + 1}))


@pytest.mark.parametrize(("damage", "why"), [
    (_flip, "is damaged"), (_cut, "is damaged"), (_without_data, "lost its data"), (_torn_manifest, "is damaged"),
    (_another_manifest, "its manifest says"),
])
def test_a_damaged_backup_is_refused_and_nothing_is_made(made: Path, damage: Callable[[Path], None], why: str) -> None:
    damage(made)
    with pytest.raises(StoreCorrupt, match=why):
        restore_store(made, made.with_name("r"), **BY)
    assert names(made.parent) == ["backup", "state"]


def test_a_store_is_never_restored_over_anything(path: Path, made: Path) -> None:
    before = (path / "data.mdb").read_bytes()
    for target, why in ((path, "there already"), (made, "lies in"), (made / "r", "lies in")):
        assert why in str(refused(InvalidInput, restore_store, made, target, **BY))
    assert "no backup" in str(refused(InvalidInput, restore_store, path, path.with_name("r"), **BY))
    assert "the reason" in str(refused(InvalidInput, restore_store, made, path.with_name("r"), actor="a", reason=" "))
    assert ((path / "data.mdb").read_bytes(), names(path.parent)) == (before, ["backup", "state"])


def test_a_backup_of_another_estimator_is_refused(made: Path) -> None:
    other = Faulty()
    other.name = "other"
    with pytest.raises(StoreForeign, match="was opened for 'other'"):
        restore_store(made, made.with_name("r"), estimator=other, **BY)
    assert names(made.parent) == ["backup", "state"]


def test_a_restoring_that_fails_or_is_interrupted_half_way_leaves_nothing(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as here:
        here.setattr(Engine, "update", interrupted)
        refused(KeyboardInterrupt, restore_store, made, made.with_name("r"), **BY)
    assert names(made.parent) == ["backup", "state"]
    assert restore_store(made, made.with_name("r"), **BY).seq


# The commands


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout


def test_the_commands_make_a_backup_and_a_store_of_it(path: Path) -> None:
    target, new = path.with_name("b"), path.with_name("r")
    code, out = run("backup", target, "--store", path, "--json")
    document = msgspec.json.decode(out)
    assert (code, document["path"], document["seq"]) == (0, str(target), 1)
    assert set(document) == {"path", "store_id", "bytes", "seq", "hash", "damaged"}
    code, out = run("restore-store", target, new, "--actor", "ops", "--reason", "the disk died", "--json")
    restored = msgspec.json.decode(out)
    assert (code, restored["from"]["store_id"], restored["seq"]) == (0, document["store_id"], 2)
    code, out = run("audit", "verify", "--store", new, "--against", document["hash"], "--json")
    assert (code, msgspec.json.decode(out)["sound"]) == (0, True)
    assert "head hash" in run("backup", path.with_name("b2"), "--store", path)[1]
    assert restored["store_id"] != document["store_id"]
    assert "its id" in run("restore-store", target, path.with_name("r2"), "--actor", "ops", "--reason", "again")[1]


def test_a_copy_of_damaged_records_is_made_and_the_commands_say_how_many_they_are(path: Path) -> None:
    """Silence would let the last good backup be thrown away for one that is not."""
    tear(path, keys.head(b"u"), keys.version(b"u", 2))
    target, by = path.with_name("b"), ("--actor", "ops", "--reason", "r")
    for number, form in enumerate(((), ("--json",))):
        made, new = path.with_name(f"b{number}"), path.with_name(f"r{number}")
        for arguments in (("backup", made, "--store", path, *form), ("restore-store", made, new, *by, *form)):
            result = CliRunner().invoke(app, [str(argument) for argument in arguments])
            assert result.exit_code == 1, result.output
            assert "2 records are damaged" in result.stderr
            assert "resetguard doctor" in result.stderr
            assert not form or msgspec.json.decode(result.stdout)["damaged"] == 2
        with opened(new, readonly=True) as store:
            assert store.audit_tail()[0] == 2
    with raw(path) as txn:
        txn.put(keys.damaged(b"u", 5), b"the bytes of a head, kept aside")
        txn.delete(keys.head(b"u"))
        txn.delete(keys.version(b"u", 2))
    assert run("backup", target, "--store", path)[0] == 0


def test_the_commands_tell_wrong_use_from_trouble(path: Path, made: Path) -> None:
    said = ("--actor", "ops", "--reason", "r")
    assert run("backup", made, "--store", path)[0] == 2
    assert run("backup", path.with_name("b"), "--store", path.with_name("absent"))[0] == 2
    assert run("restore-store", path, path.with_name("r"), *said)[0] == 2
    for missing in (said[:2], said[2:]):
        assert run("restore-store", made, path.with_name("r"), *missing)[0] == 2
    _flip(made)
    assert run("restore-store", made, path.with_name("r"), *said)[0] == 3
    shutil.rmtree(made)
    assert names(path.parent) == ["state"]
