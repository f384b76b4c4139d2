"""A store's file made anew: the old one or the new one at every instant, with nobody else at work, and nothing lost."""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
from collections import namedtuple
from typing import TYPE_CHECKING, Any

import lmdb
import msgspec
import pytest
import zstandard
from typer.testing import CliRunner

from statemachine import (
    BreakerOpen,
    InvalidInput,
    Processor,
    ResetManager,
    StoreBusy,
    StoreCorrupt,
    StoreForeign,
    StoreFull,
    StoreLimits,
    StoreUnavailable,
    breaker,
    codec,
)
from statemachine.breaker import Breaker
from statemachine.cli import app
from statemachine.processor import SourceRow
from statemachine.store import engine as door
from statemachine.store import keys, making
from statemachine.store.compaction import compact, migrate, schemas
from statemachine.store.life import backup
from statemachine.store.records import Aside, Meta, Unreadable
from statemachine.testing import snapshot
from tests.golden.make_store import file_of
from tests.regression.scene import BY, Faulty, fill, opened, raw, refused, states, tear, weighed, working
from tests.unit.processes import answer, line, ran, started

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("no_events")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store of two users and many more records that were deleted again."""
    where = tmp_path / "state"
    fill(where, "u", [80.0, 80.1, 80.2, 80.3])
    with working(where) as (store, manager, processor):
        processor.process_batch(weighed("v", day, 60.0 + day % 2 / 10) for day in range(80))
        processor.process(weighed("v", 90, 99.0))
        manager.perform_reset("v", **BY)
        for put in (True, False):
            draft = store.draft()
            for number in range(300):
                key = keys.damaged(b"w", number)
                if put:
                    draft.put(key, bytes(3_000))
                else:
                    draft.delete(key)
            store.commit(draft)
    return where


def everything(path: Path) -> dict[bytes, bytes]:
    with raw(path) as txn, txn.cursor() as cursor:
        return {bytes(key): bytes(stored) for key, stored in cursor.iternext()}


def lasting(path: Path) -> dict[bytes, bytes]:
    """What no opening changes: all but the owners, the store's own record and the end of the chain."""
    return {key: stored for key, stored in everything(path).items()
            if not key.startswith((keys.OWNER, keys.META, keys.CHAIN))}


def left(path: Path) -> list[str]:
    return sorted(child.name for child in path.iterdir())


# compact


def test_free_pages_are_given_back_and_every_record_stays(path: Path) -> None:
    before, size = lasting(path), (path / "data.mdb").stat().st_size
    with opened(path, readonly=True) as store:
        tail, whole, meta = store.audit_tail(), snapshot(store), store.meta()
    done = compact(path, **BY)
    assert (done.bytes_before, done.damaged, done.seq) == (size, 0, tail[0] + 1)
    assert done.bytes_after == (path / "data.mdb").stat().st_size < size / 3
    assert stat.S_IMODE((path / "data.mdb").stat().st_mode) == 0o600
    after = lasting(path)
    assert {key: after[key] for key in before} == before
    assert set(after) - set(before) == {keys.audit(done.seq), keys.attempt(done.attempt_id)}
    assert len(everything(path)) == done.records
    with opened(path) as store:
        row = store.inspect(done.attempt_id)
        assert row is not None
        assert (row.public.event, row.personal.actor, row.personal.reason) == ("store.compacted", BY["actor"], BY["reason"])
        assert (row.personal.details["bytes_before"], row.public.store_id) == (size, meta.store_id)
        assert store.verify_audit(against=tail[1]).bad_seq is None
        assert store.audit_tail() == (done.seq, done.hash)
        found = snapshot(store)
        assert {part: found[part] for part in ("users", "cursors", "kept")} == {
            part: whole[part] for part in ("users", "cursors", "kept")}
        assert (store.store_id, done.store_id) == (meta.store_id, meta.store_id)
        assert store.committer.owner > meta.owners + 1, "numbers of owners are never used again"
        assert Processor(ResetManager(store)).process(weighed("u", 9, 80.4)).status == "accepted"
    assert left(path) == ["data.mdb", "lock.mdb", "owners", "writer.lock"]


def test_it_may_be_done_again_and_on_a_store_without_a_row(tmp_path: Path) -> None:
    opened(tmp_path / "s").close()
    for number in range(1, 4):
        assert compact(tmp_path / "s", **BY).seq == number
    with opened(tmp_path / "s") as store:
        assert store.verify_audit()[:3] == (3, store.audit_tail()[1], None)


def test_while_another_process_has_the_store_open_it_is_refused_and_says_who(path: Path) -> None:
    """A writer, a reader and this very process: each is named, nothing is changed, and it works once they are gone."""
    for readonly in (False, True):
        program = "store = opened(path, readonly=sys.argv[2] == 'True'); say('open'); heard(); store.close()"
        other = started(program, path, readonly)
        assert line(other) == "open"
        inode = (path / "data.mdb").stat().st_ino
        told = str(refused(StoreBusy, compact, path, **BY))
        assert re.search(rf"process {other.pid} \(python", told), told
        assert (path / "data.mdb").stat().st_ino == inode
        answer(other, "go\n")
    with opened(path, readonly=True):
        assert "this process" in str(refused(StoreBusy, compact, path, **BY))
    assert compact(path, **BY).seq


def test_a_stopped_owner_that_was_fenced_still_has_the_old_file(path: Path) -> None:
    """It may commit nothing, but it maps the file: the store is made anew only when it is gone."""
    other = started("store = opened(path); say(store.committer.owner); heard()", path)
    owner = int(line(other))
    with opened(path) as store:
        draft = store.draft()
        draft.delete(keys.owner(owner))
        store.commit(draft)
    refused(StoreBusy, compact, path, **BY)
    other.kill()
    other.communicate()
    assert compact(path, **BY).seq


def test_an_opening_waits_until_the_file_is_made_anew_and_sees_the_new_one(path: Path) -> None:
    other = started("""
        from statemachine.store import compaction
        from statemachine.store import engine as door
        real = door.fsync
        def held(target):
            if target.name == "data.mdb":
                say("building")
                heard()
            real(target)
        compaction.door.fsync = held
        print(compaction.compact(path, **BY).seq)
    """, path)
    assert line(other) == "building"
    limits = StoreLimits(writer_wait_s_max=0.05)
    for readonly in (False, True):
        told = str(refused(StoreBusy, opened, path, limits=limits, readonly=readonly))
        assert "being made anew" in told
        assert f"process {other.pid}" in told
    assert "anew" in left(path)
    waiting = started("""
        store = opened(path)
        say(os.stat(path / "data.mdb").st_ino, len(list(store.audit())))
        store.close()
    """, path)
    seq = int(answer(other, "go\n"))
    assert answer(waiting).split() == [str((path / "data.mdb").stat().st_ino), str(seq)]


KILLED = """
    import shutil
    from statemachine.store import compaction, engine
    left = [0]
    def dying(call):
        def step(*args, **named):
            for again in range(2):
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                if not again:
                    done = call(*args, **named)
            return done
        return step
    real = {name: getattr(os, name) for name in ("fsync", "rename", "mkdir", "rmdir", "unlink", "open", "chmod")}
    for fatal in range(1, 200):
        trial = path.with_name(f"trial{fatal}")
        shutil.copytree(path, trial)
        child = os.fork()
        if child == 0:
            left[0] = fatal
            for name, call in real.items():
                setattr(os, name, dying(call))
            engine.lmdb.open = dying(engine.lmdb.open)
            compaction.compact(trial, **BY)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code not in (0, -signal.SIGKILL):
            sys.exit(f"step {fatal} ended with {code}")
        if code == 0:
            break
    say(fatal)
"""


def test_killed_before_and_after_each_step_it_leaves_the_old_store_or_the_new_one(path: Path) -> None:
    """Whatever was left is gone with the next opening for writing, and every record is there each time."""
    before, seen, old = lasting(path), set(), (path / "data.mdb").read_bytes()
    steps = int(ran(KILLED, path))
    for step in range(1, steps + 1):
        trial = path.with_name(f"trial{step}")
        anew = (trial / "data.mdb").read_bytes() != old
        seen.add((anew, (trial / "anew").exists()))
        with opened(trial) as store:
            assert left(trial) == ["data.mdb", "lock.mdb", "owners", "writer.lock"]
            events = [row.public.event for row in store.audit()]
            assert (events.count("store.compacted"), store.verify_audit().bad_seq) == (int(anew), None)
        after = lasting(trial)
        assert {key: after.get(key) for key in before} == before
        assert len(after) == len(before) + 2 * anew
    assert seen == {(False, False), (False, True), (True, True), (True, False)}
    assert 20 < steps < 199


def test_killed_at_random_instants_it_may_be_called_again(path: Path) -> None:
    """Thirty processes die wherever they are; after each the store reads whole, and at the end it can still be compacted."""
    before = lasting(path)
    said = ran("""
        import random
        from statemachine.store.compaction import compact
        rng, began, kills, made = random.Random(1), time.monotonic(), 0, 0
        compact(path, **BY)
        seconds, half_way = time.monotonic() - began, 0
        while kills < 30:
            child = os.fork()
            if child == 0:
                while True:
                    compact(path, **BY)
            time.sleep(rng.uniform(0, 2 * seconds))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            kills += 1
            half_way += (path / "anew").exists()
            with opened(path, readonly=True) as store:
                rows = [row.public.event for row in store.audit()]
                assert store.verify_audit().bad_seq is None
                made = rows.count("store.compacted")
        say(half_way, made)
    """, path)
    half_way, made = map(int, said.split())
    assert half_way > 3, "some must die while the new file is being made"
    assert made > 1, "and some after it was in its place"
    compact(path, **BY)
    after = lasting(path)
    assert {key: after.get(key) for key in before} == before
    assert left(path) == ["data.mdb", "lock.mdb", "owners", "writer.lock"]


def test_a_disk_without_room_is_refused_before_anything_is_made(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")  # noqa: PYI024 - as shutil has it
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1 << 40, 0, 100_000))
    before = (path / "data.mdb").stat().st_ino
    assert "100000 bytes free" in str(refused(StoreFull, compact, path, **BY))
    assert ((path / "data.mdb").stat().st_ino, "anew" in left(path)) == (before, False)


def test_a_disk_that_fills_up_half_way_leaves_the_store_as_it_was(path: Path) -> None:
    """A limit on the size of files stands for the disk: the error is typed, and nothing is left."""
    before = lasting(path)
    said = ran("""
        import resource
        from statemachine import StoreFull
        from statemachine.store.compaction import compact
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
        try:
            compact(path, **BY)
        except StoreFull as error:
            say(type(error).__name__, sorted(os.listdir(path)))
    """, path)
    assert said == "StoreFull ['data.mdb', 'lock.mdb', 'owners', 'writer.lock']"
    assert lasting(path) == before


@pytest.mark.parametrize(("code", "kind"), [(errno.ENOSPC, StoreFull), (errno.EIO, StoreUnavailable)])
def test_a_failing_system_leaves_the_store_as_it_was(path: Path, monkeypatch: pytest.MonkeyPatch, code: int, kind: Any) -> None:
    def failing(*_: object) -> None:
        raise OSError(code, "ill")

    before = (path / "data.mdb").stat().st_ino
    with monkeypatch.context() as ill:
        ill.setattr(os, "rename", failing)
        refused(kind, compact, path, **BY)
    assert ((path / "data.mdb").stat().st_ino, "anew" in left(path)) == (before, False)
    assert compact(path, **BY).seq


def test_damaged_records_are_kept_as_they_are_and_counted(path: Path) -> None:
    tear(path, keys.head(b"u"), keys.version(b"v", 3))
    before = lasting(path)
    assert compact(path, **BY).damaged == 2
    after = lasting(path)
    assert {key: after[key] for key in before} == before
    with opened(path) as store:
        loaded = store.load("u")
        assert loaded is not None
        assert loaded.head_damaged


def test_a_store_whose_audit_log_is_not_sound_is_left_as_evidence(path: Path) -> None:
    with raw(path) as txn:
        txn.delete(keys.audit(1))
    before = (path / "data.mdb").stat().st_ino
    assert "not sound at row 1" in str(refused(StoreCorrupt, compact, path, **BY))
    assert ((path / "data.mdb").stat().st_ino, "anew" in left(path)) == (before, False)


def test_a_new_file_that_does_not_hold_the_same_never_takes_the_place_of_the_old(
    path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A record lost, changed or added on the way, each planted between the writing and the reading back."""
    real = making.fresh
    before = (path / "data.mdb").stat().st_ino

    def lost(records: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        return [pair for pair in records if pair[0] != keys.version(b"v", 3)]

    def changed(records: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        return [(key, value[:-1] + b"?" if key == keys.head(b"u") else value) for key, value in records]

    def other_store(records: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        meta = codec.unpack(Meta, codec.unseal(keys.META, dict(records)[keys.META]))
        record = codec.seal(keys.META, codec.pack(msgspec.structs.replace(meta, created_us=1)))
        return [(key, record if key == keys.META else value) for key, value in records]

    for fault in (lost, changed, other_store):
        def faulty(directory: Path, size: int, fault: Callable[..., Any] = fault) -> Any:
            return _passing(real(directory, size), fault)

        with monkeypatch.context() as ill:
            ill.setattr(making, "fresh", faulty)
            assert "does not hold" in str(refused(StoreCorrupt, compact, path, **BY))
        assert (path / "data.mdb").stat().st_ino == before


class _passing:  # noqa: N801 - a context manager used like a function
    def __init__(self, real: Any, fault: Callable[..., Any]) -> None:
        self._real, self._fault = real, fault

    def __enter__(self) -> Callable[[list[tuple[bytes, bytes]]], None]:
        put_all = self._real.__enter__()
        return lambda records: put_all(self._fault(records))

    def __exit__(self, *how: object) -> None:
        self._real.__exit__(*how)


def test_records_that_cannot_be_reached_are_no_reason_to_drop_them(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LMDB counts its records; where fewer can be read than it counts, its pages are damaged."""
    real = door.Engine.scan

    def short(self: Any, start: bytes, stop: bytes, **how: Any) -> Any:
        return (pair for pair in real(self, start, stop, **how) if pair[0] != keys.version(b"v", 3))

    with monkeypatch.context() as ill:
        ill.setattr(door.Engine, "scan", short)
        assert "can be reached" in str(refused(StoreCorrupt, compact, path, **BY))


def test_keys_out_of_order_are_damage(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that was put in another's place gives records in a wrong order, which LMDB would not store as they come."""
    real = door.Engine.scan

    def mixed(self: Any, start: bytes, stop: bytes, **how: Any) -> Any:
        return reversed(list(real(self, start, stop, **how)))

    with monkeypatch.context() as ill:
        ill.setattr(door.Engine, "scan", mixed)
        assert "out of order" in str(refused(StoreCorrupt, compact, path, **BY))


def test_who_may_use_the_file_stays(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mode that an operator set, and the owner of the file, whoever makes it anew."""
    (path / "data.mdb").chmod(0o640)
    given: list[tuple[int, int]] = []
    here = (path / "data.mdb").stat()
    monkeypatch.setattr(os, "chown", lambda _, user, group: given.append((user, group)))
    compact(path, **BY)
    assert (stat.S_IMODE((path / "data.mdb").stat().st_mode), given) == (0o640, [])
    real = type(path).stat

    def of_another(self: Path, **how: bool) -> os.stat_result:
        found = real(self, **how)
        return os.stat_result((*found[:4], 4711, 4712, *found[6:])) if self == path / "data.mdb" else found

    monkeypatch.setattr(type(path), "stat", of_another)
    compact(path, **BY)
    assert given == [(4711, 4712)]
    assert here.st_uid != 4711


def test_what_is_no_store_of_ours_is_refused(path: Path, tmp_path: Path) -> None:
    with opened(path, readonly=True) as store:
        made = backup(store, tmp_path / "b").path
    assert "is a backup" in str(refused(InvalidInput, compact, made, **BY))
    assert "no store" in str(refused(InvalidInput, compact, tmp_path / "none", **BY))
    other = Faulty()
    other.name = "other"
    refused(StoreForeign, compact, path, estimator=other, **BY)
    for said in ({"actor": "a", "reason": " "}, {"actor": "", "reason": "r"}):
        refused(InvalidInput, compact, path, **said)
    assert "anew" not in left(path)


def test_many_writers_and_one_that_makes_the_file_anew_lose_nothing(tmp_path: Path) -> None:
    """Each writer opens, commits and closes over and over; a commit into a file that was replaced would be missing."""
    where = tmp_path / "store"
    opened(where).close()
    writers = [started("""
        from statemachine import StoreBusy
        done = 0
        while done < 40:
            with working(path) as (store, _, processor):
                assert processor.process(weighed(sys.argv[2], done, 80.0)).status == "accepted"
                done += 1
        say(done)
    """, where, f"user{number}") for number in range(3)]
    made = 0
    while any(writer.poll() is None for writer in writers):
        try:
            compact(where, **BY)
        except StoreBusy:
            continue
        made += 1
    assert [answer(writer) for writer in writers] == ["40"] * 3
    assert made > 3
    with opened(where) as store:
        assert [len(states(store, f"user{number}")) for number in range(3)] == [40] * 3
        assert [row.public.event for row in store.audit()].count("store.compacted") == made
        assert store.verify_audit().bad_seq is None


# migrate


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    """A store as the program of schema 1 left it."""
    where = tmp_path / "golden"
    where.mkdir()
    pairs = msgspec.msgpack.decode(zstandard.ZstdDecompressor().decompress(file_of(1).read_bytes()))
    env = lmdb.open(str(where), map_size=1 << 24, max_dbs=0, lib_version=0)
    with env.begin(write=True) as txn:
        for key, value in pairs:
            txn.put(key, value)
    env.close()
    return where


def test_a_store_of_schema_1_is_read_and_written_as_it_is(golden: Path) -> None:
    """Every version folds, the chain verifies, counts go on, and what is written beside it is of the present schema."""
    with working(golden) as (store, _, processor):
        assert store.verify_audit().bad_seq is None
        assert {user: len(states(store, user)) for user in ("amy", "ben", "cid")} == {"amy": 85, "ben": 84, "cid": 1}
        assert store.kept_count("amy") == 4
        assert processor.process(weighed("amy", 74, 61.25)).status == "accepted"
        assert processor.process(weighed("amy", 75, 161.25)).status == "quarantined"
        assert store.kept_count("amy") == 5
        assert store.kept_count("amy") == len([kept for kept in store.quarantine("amy") if kept.disposition != "unreadable"])
        intake = processor.intake([(bytes(range(16)), "export.csv")], lambda *_: None)
        cursor = store.cursor(bytes(range(16)))
        assert cursor is not None
        assert cursor.consumed == 2
        assert intake.streams[0].cursor == cursor
        found = schemas(store.engine)
        assert found["kept aside"] == {1: 1, 2: 1}
        assert found["head"] == {1: 2, 2: 1}


def test_a_source_begun_under_schema_1_is_gone_on_with(golden: Path) -> None:
    """Its cursor is compared by what it says, not by its bytes."""
    with working(golden) as (_, _, processor):
        outcomes: list[str] = []
        intake = processor.intake([(bytes(range(16)), "export.csv")], lambda _, outcome: outcomes.append(outcome.status))
        for number in range(3):
            intake.add(0, SourceRow(number, weighed("cid", 1 + number, 70.0)))
        intake.flush()
        assert (intake.known, outcomes) == ([2], ["accepted"])


def test_a_breaker_of_schema_1_leases_its_probe(golden: Path) -> None:
    """It is compared by what it says as well: else its user would be refused for ever."""
    key = keys.breaker(b"amy")
    with pytest.MonkeyPatch.context() as earlier, raw(golden) as txn:
        earlier.setattr(codec, "SCHEMA", 1)
        txn.put(key, codec.seal(key, codec.pack(Breaker(mode="open", generation=3, openings=1, cooled=True))))
    with opened(golden) as store:
        assert ResetManager(store).perform_reset("amy", **BY).outcome == "committed"


def test_two_runs_over_one_source_consume_each_row_once(path: Path) -> None:
    """The second finds that the cursor was moved, though no user of its rows was changed."""
    with working(path) as (store, _, processor):
        rows = [SourceRow(number, None, Unreadable(line=number, raw="?", reason="no number")) for number in range(3)]
        one, other = (processor.intake([(bytes(16), "f")], lambda *_: None) for _ in range(2))
        one.add(0, rows[0])
        for row in rows:
            other.add(0, row)
        other.flush()
        one.add(0, rows[1])
        one.flush()
        cursor = store.cursor(bytes(16))
        assert cursor is not None
        assert (cursor.consumed, cursor.totals, one.known) == (3, {"quarantined": 3, "read": 3}, [2])


def test_a_probe_that_another_attempt_leased_meanwhile_is_not_leased_again(
    path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    with opened(path) as store:
        key, real = keys.breaker(b"u"), breaker.lease

        def put(record: Breaker) -> None:
            draft = store.draft()
            draft.put(key, codec.pack(record))
            store.commit(draft)

        def late(record: Breaker, attempt_id: str, owner: int) -> Breaker:
            put(real(record, "0" * 32, owner))
            return real(record, attempt_id, owner)

        put(Breaker(mode="open", generation=3, openings=1, cooled=True))
        monkeypatch.setattr(breaker, "lease", late)
        assert refused(BreakerOpen, ResetManager(store).perform_reset, "u", **BY).reason == "probing"


def test_migrate_raises_every_record_and_counts_them(golden: Path) -> None:
    with opened(golden, readonly=True) as store:
        whole, tail, before = snapshot(store), store.audit_tail(), schemas(store.engine)
        contents = dict(store.engine.scan(b"\0", b"\xff"))
    assert {schema for counts in before.values() for schema in counts} == {1}
    done = migrate(golden, **BY)
    assert done.before == before
    assert done.after == {kind: {2: counts[1]} for kind, counts in before.items()}
    assert done.done is not None
    with opened(golden, readonly=True) as store:
        now = schemas(store.engine)
        assert {schema for counts in now.values() for schema in counts} == {codec.SCHEMA}
        found = snapshot(store)
        assert {part: found[part] for part in ("users", "cursors", "kept")} == {
            part: whole[part] for part in ("users", "cursors", "kept")}
        assert store.verify_audit(against=tail[1]).bad_seq is None
        row = store.inspect(done.done.attempt_id)
        assert row is not None
        assert row.public.event == "store.migrated"
        assert row.personal.details["before"]["head"] == {"1": 3}
        for key, value in store.engine.scan(b"\0", b"\xff"):
            if key in contents and keys.kind_of(key) not in keys.UNFRAMED | {"store", "audit chain", "kept aside", "breaker"}:
                assert codec.unseal(key, value) == codec.unseal(key, contents[key])
                assert value[2:3] == contents[key][2:3], "what was compressed stays so"
        aside = codec.unseal(keys.aside(b"amy"), store.engine.get(keys.aside(b"amy")) or b"")
        assert msgspec.msgpack.decode(aside) == [4, codec.unpack(Aside, aside).last_us, 0]


def test_a_migration_has_nothing_to_do_twice(golden: Path) -> None:
    migrate(golden, **BY)
    before = (golden / "data.mdb").read_bytes()
    again = migrate(golden, **BY)
    assert (again.done, again.before) == (None, again.after)
    assert (golden / "data.mdb").read_bytes() == before


def test_records_that_are_damaged_stay_as_they_are_in_a_migration(golden: Path) -> None:
    tear(golden, keys.aside(b"ben"), keys.version(b"amy", 9))
    torn = everything(golden)
    done = migrate(golden, **BY)
    assert done.done is not None
    assert done.done.damaged == 2
    for key in (keys.aside(b"ben"), keys.version(b"amy", 9)):
        assert everything(golden)[key] == torn[key]


def test_a_store_of_a_newer_schema_is_refused_by_name(path: Path) -> None:
    with pytest.MonkeyPatch.context() as later:
        later.setattr(codec, "SCHEMA", 9)
        with raw(path) as txn:
            txn.put(keys.META, codec.seal(keys.META, codec.unseal(keys.META, bytes(txn.get(keys.META) or b""))))
    before = (path / "data.mdb").read_bytes()
    for call in (lambda: opened(path), lambda: opened(path, readonly=True), lambda: compact(path, **BY),
                 lambda: migrate(path, **BY)):
        told = str(refused(StoreForeign, call))
        assert "is of schema 9, and this program reads 1 to 2: use a newer resetguard" in told
    assert (path / "data.mdb").read_bytes() == before


def test_a_damaged_number_of_the_schema_is_damage_and_no_newer_release(path: Path) -> None:
    with raw(path) as txn:
        stored = bytes(txn.get(keys.META) or b"")
        txn.put(keys.META, stored[:1] + bytes((stored[1] ^ 0x40,)) + stored[2:])
    assert "fails its checksum" in str(refused(StoreCorrupt, opened, path))


# The commands


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "80"})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


SAID = ("--actor", "ops", "--reason", "yearly")


def test_the_command_compacts(path: Path) -> None:
    code, out, _ = run("compact", path, *SAID, "--json")
    document = msgspec.json.decode(out)
    assert (code, document["damaged"]) == (0, 0)
    assert set(document) == {"path", "store_id", "bytes_before", "bytes_after", "records", "damaged", "seq", "hash", "attempt_id"}
    code, out, _ = run("compact", "--store", path, *SAID)
    assert (code, "size now" in out) == (0, True)
    tear(path, keys.head(b"u"))
    code, _, err = run("compact", path, *SAID)
    assert (code, "1 records are damaged" in err) == (1, True)


def test_the_command_tells_wrong_use_from_trouble(path: Path) -> None:
    for words in (SAID, (path,), (path, *SAID[:2]), (path, *SAID[2:]), (path.with_name("none"), *SAID)):
        assert run("compact", *words)[0] == 2
    with opened(path):
        code, _, err = run("compact", path, *SAID)
    assert (code, "this process" in err) == (3, True)


def test_the_command_migrates(golden: Path) -> None:
    assert run("migrate", golden)[0] == 2
    code, out, err = run("migrate", golden, "--dry-run")
    assert (code, "3 of schema 1" in out, "nothing was changed" in err) == (0, True, True)
    code, out, _ = run("migrate", golden, *SAID, "--json")
    document = msgspec.json.decode(out)
    assert (code, document["schema"], document["before"]["head"], document["after"]["head"]) == (0, 2, {"1": 3}, {"2": 3})
    assert document["done"]["damaged"] == 0
    code, out, err = run("migrate", golden, *SAID)
    assert (code, "3 of schema 2" in out, "already" in err) == (0, True, True)
    assert msgspec.json.decode(run("migrate", golden, "--dry-run", "--json")[1])["done"] is None
