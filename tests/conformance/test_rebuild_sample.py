"""Rebuilding what nobody tampered with: the sample's users, and a real export, come out as they stand, to the last bit."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from statemachine import Processor, ResetManager, Store
from statemachine.clock import SystemClock
from statemachine.ingest import Options, OrderedRows, open_source
from statemachine.processor import SourceRow
from statemachine.rebuild import Source, rebuild, rebuild_from
from statemachine.store import keys
from statemachine.store.records import Head, Unreadable
from tests.regression.scene import BY, raw, records

SAMPLE = Path(__file__).parents[2] / "statemachine" / "cli" / "sample.csv"
EXPORT = Path(__file__).parents[3] / "shared" / "data" / "healthkit_weight.csv"
PRESENT_US = 1_788_220_800_000_000  # 2026-09-01, after the last true reading of either file
USERS = ("ada", "ben", "cleo", "dev", "eli", "fay", "gus", "hana")
FILES = {"sample": (SAMPLE, Options(), USERS), "real": (EXPORT, Options(user="me"), ("me",))}

Given = tuple[list[Source], list[tuple[int, SourceRow]]]


class FixedClock(SystemClock):
    """A wall clock that stands still, until it is told otherwise."""

    def __init__(self, now_us: int = PRESENT_US) -> None:
        self.wall_us = now_us

    def now_us(self) -> int:
        return self.wall_us


def given(name: str) -> Given:
    """A file as a source with its rows in the order of `process`."""
    path, options, _ = FILES[name]
    if not path.exists():
        pytest.skip("the public data set is not beside this checkout")
    with OrderedRows() as spool:
        spool.add(0, open_source(path, options))
        rows = [(number, SourceRow(row.row, row.measurement, None if row.measurement is not None else Unreadable(
            row.line, row.raw, row.reason, row.user))) for number, row in spool]
    content = path.read_bytes()
    return [Source(hashlib.blake2b(content, digest_size=16).digest(), path.name, hashlib.sha256(content).hexdigest())], rows


def opened(path: Path, clock: FixedClock | None = None) -> Store:
    return Store.open(path, durability="process", clock=clock or FixedClock())


def processed(path: Path, read: Given) -> None:
    sources, rows = read
    with opened(path) as store:
        intake = Processor(ResetManager(store)).intake([(source.key, source.name) for source in sources], lambda _, o: None)
        for number, row in rows:
            intake.add(number, row)
        intake.flush()


def standing(store: Store, user: str) -> tuple[Any, ...]:
    """The head without its number, its author and its images, and every other record of the user but the log."""
    head = store.head(user)
    assert head is not None
    key = user.encode()
    others = {at: value for at, value in records(store, user).items() if not at.startswith((keys.versions(key), keys.head(key)))}
    return told(head), others, store.engine.get(keys.pin(key)), list(store.quarantine(user))


def told(head: Head) -> tuple[Any, ...]:
    return head.state, head.run_since_us, head.reset_us, head.probation, head.rules


def wrecked(path: Path, user: str) -> None:
    """Break the user's head and every version, and lose every record of where its measurements went."""
    key = user.encode()
    with raw(path) as txn, txn.cursor() as cursor:
        cursor.set_range(key + b"\0")
        found = [(bytes(at), bytes(value)) for at, value in cursor]
        for at, value in found[: [at.startswith(key + b"\0") for at, _ in [*found, (b"", b"")]].index(False)]:
            if at.startswith((keys.versions(key), keys.head(key))):
                txn.put(at, value[:-1] + bytes((value[-1] ^ 0xFF,)))
            elif at.startswith((keys.identities(key), keys.aside(key))):
                txn.delete(at)
        txn.delete(keys.pin(key))


@pytest.mark.parametrize("name", FILES)
def test_replay_gives_the_live_state_of_every_user(name: str, tmp_path: Path) -> None:
    """Every version is passed, the head is what they give, and nothing at all is written."""
    processed(tmp_path / "store", given(name))
    with opened(tmp_path / "store") as store:
        manager, before = ResetManager(store), dict(store.engine.scan(b"\0", b"\xff" * 8))
        for user in FILES[name][2]:
            done, loaded = rebuild(manager, user, **BY), store.load(user)
            assert (done.outcome, done.log.found, done.log.damage, done.log.unfolded) == ("unchanged", "equal", (), 0)
            assert loaded is not None
            assert store.estimator.encode(done.log.state) == store.estimator.encode(loaded.state)
            assert done.log.steps + done.log.keyframes + done.log.resets == loaded.version == done.log.last
        assert dict(store.engine.scan(b"\0", b"\xff" * 8)) == before


@pytest.mark.parametrize("name", FILES)
def test_the_file_that_made_it_gives_what_stands(name: str, tmp_path: Path) -> None:
    """State, probation and each disposition come out alike, so that nothing is written; years later too."""
    sources, rows = given(name)
    processed(tmp_path / "store", (sources, rows))
    with opened(tmp_path / "store", FixedClock(PRESENT_US + 10**15)) as store:
        manager, before = ResetManager(store), dict(store.engine.scan(b"\0", b"\xff" * 8))
        for user in FILES[name][2]:
            done, loaded = rebuild_from(manager, user, sources, rows, **BY), store.load(user)
            assert loaded is not None
            assert store.estimator.encode(done.after) == store.estimator.encode(loaded.state)
            assert (done.outcome, done.moved, done.restated, done.not_in_files) == ("unchanged", {}, 0, 0)
        assert dict(store.engine.scan(b"\0", b"\xff" * 8)) == before


@pytest.mark.parametrize("name", FILES)
def test_a_wrecked_user_comes_back_from_the_file(name: str, tmp_path: Path) -> None:
    """With head, log, pin and identities gone, the file gives all of them back as they were, as one version more."""
    sources, rows = given(name)
    processed(tmp_path / "store", (sources, rows))
    for user in FILES[name][2]:
        with opened(tmp_path / "store") as store:
            before, base = standing(store, user), store.version_range(user)[1]
            probation = store.head(user).probation  # type: ignore[union-attr]
        wrecked(tmp_path / "store", user)
        with opened(tmp_path / "store") as store:
            done = rebuild_from(ResetManager(store), user, sources, rows, **BY)
            assert (done.outcome, done.base_version, done.version) == ("committed", base, base + 1)
            after = standing(store, user)
            # Of a log that does not read nobody can say which version a number means.
            assert after[0][:3] == before[0][:3]
            assert (after[0][3] is None) == (probation is None)
            assert after[1] == before[1]
            assert (after[2] is None) == (before[2] is None)
            assert after[3] == before[3]
            assert sum(done.moved.values()) == sum(done.rows[name] for name in ("accepted", "quarantined", "late"))
            assert store.verify_audit().problem == ""


def test_wrecked_users_of_the_sample_exercise_probation_and_quarantine(tmp_path: Path) -> None:
    """The comparison above would prove little on users with nothing kept aside and no pin."""
    processed(tmp_path / "store", given("sample"))
    with opened(tmp_path / "store") as store:
        assert sum(store.kept_count(user) > 0 for user in USERS) >= 3
        assert sum(len({info.kind for info in store.history(user)}) > 2 for user in USERS) >= 3


@pytest.mark.parametrize("change", [lambda rows: rows[:-1], lambda rows: rows[5:]])
def test_a_file_that_lost_rows_is_refused(change: Callable[[list[Any]], list[Any]], tmp_path: Path) -> None:
    """One row less, and the rebuild would lose a measurement: nothing is written, and the row is named."""
    sources, rows = given("sample")
    processed(tmp_path / "store", (sources, rows))
    own = [pair for pair in rows if pair[1].measurement is not None and pair[1].measurement.user == "hana"]
    with opened(tmp_path / "store") as store:
        before = dict(store.engine.scan(b"\0", b"\xff" * 8))
        gone = {row.row for _, row in own} - {row.row for _, row in change(own)}
        value = next(row.measurement.value for _, row in own if row.row in gone and row.measurement is not None)
        with pytest.raises(ValueError, match=rf"do not hold {len(gone)} accepted.* {value} .*--leave-out"):
            rebuild_from(ResetManager(store), "hana", sources, change(own), **BY)
        assert dict(store.engine.scan(b"\0", b"\xff" * 8)) == before
