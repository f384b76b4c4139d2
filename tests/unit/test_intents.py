"""Intents: with `intents="durable"` an attempt that a power cut ends has its row; a probe's lease never outlives its holder.

A power cut is the copy of the data file at one instant, opened elsewhere: what lay in the page cache alone is not in it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from statemachine import (
    BodyWeight,
    BreakerOpen,
    BreakerPolicy,
    ConflictError,
    InvalidInput,
    MutationFailed,
    Operation,
    Processor,
    Reading,
    ResetManager,
    ResetParameters,
    ResetValidationError,
    Store,
)
from statemachine.store import intents, keys
from tests.regression.scene import BY, StillClock, broken, fill, head, opened, records, tear, weighed
from tests.unit.doubles import Disk
from tests.unit.processes import answer, line, started

DURABLE: Final[dict[str, Any]] = {"intents": "durable"}
OWNERS: Final = "owners"

pytestmark = pytest.mark.usefixtures("no_events")


def power_cut(path: Path, to: Path) -> Path:
    """The store as the disk has it now, and its files of marks not at all."""
    to.mkdir()
    shutil.copy(path / "data.mdb", to / "data.mdb")
    return to


def pending(store: Store) -> list[bytes]:
    return [key for key, _ in store.engine.scan(keys.INTENT, keys.after(keys.INTENT))]


def outcomes(store: Store, user: str) -> list[str]:
    return [row.public.outcome for row in store.audit(user)]


class Cut(BodyWeight):
    """Body weight whose resets call `now` in their first operation."""

    def __init__(self, now: Callable[[], object]) -> None:
        super().__init__()
        self.now = now

    def operations(self, how: ResetParameters, reading: Reading | None, at_us: int) -> tuple[Operation, ...]:
        def same(state: Any) -> Any:
            self.now()
            return state

        usual = super().operations(how, reading, at_us)
        return (*usual, Operation("the power may fail here", same))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    fill(tmp_path / "store", "ann", [80.0, 80.1])
    fill(tmp_path / "store", "bob", [70.0])
    return tmp_path / "store"


@pytest.mark.parametrize("durability", ["each", "group"])
def test_an_attempt_cut_off_by_a_power_cut_has_its_row(path: Path, tmp_path: Path, durability: str) -> None:
    """The copy opens with the attempt settled as interrupted, whose it was and why; the original goes on and commits."""
    copy = tmp_path / "copy"
    with opened(path, durability=durability, **DURABLE) as store:
        before = records(store, "ann")
        result = ResetManager(store).perform_reset(
            "ann", operations=[("cut", lambda state: (power_cut(path, copy), state)[1])], **BY)
        assert result.outcome == "committed"
        assert pending(store) == []
    with opened(copy) as store:
        assert store.interrupted == 1
        assert records(store, "ann") == before
        row = store.inspect(result.attempt_id)
        assert row is not None
        assert (row.public.event, row.public.outcome, row.public.base_version) == ("reset.interrupted", "interrupted", 2)
        assert (row.personal.user, row.personal.actor, row.personal.reason) == ("ann", BY["actor"], BY["reason"])
        found = store.draft().breaker(b"ann")
        assert (found.mode, found.failures, found.suspects) == ("closed", 0, ()), "who was to blame cannot be told"
        assert pending(store) == []
        assert store.verify_audit().bad_seq is None
        assert ResetManager(store).perform_reset("ann", **BY).version == 3
    with opened(copy) as store:
        assert store.interrupted == 0
        assert outcomes(store, "ann") == ["committed", "interrupted", "committed"]


def test_without_durable_intents_it_leaves_no_row(path: Path, tmp_path: Path) -> None:
    """As the default says: the mark was in the page cache, and the attempt had no effect."""
    copy = tmp_path / "copy"
    with opened(path) as store:
        ResetManager(store).perform_reset("ann", operations=[("cut", lambda s: (power_cut(path, copy), s)[1])], **BY)
    with opened(copy) as store:
        assert store.interrupted == 0
        assert outcomes(store, "ann") == ["committed"]


def test_attempts_of_a_batch_have_their_rows_too(path: Path, tmp_path: Path) -> None:
    """Two automatic resets of one commit, cut off before it: both are settled, and the measurements are taken again."""
    copies = iter((tmp_path / "first", tmp_path / "second", tmp_path / "other"))
    cut = Cut(lambda: power_cut(path, next(copies)))
    rows = [weighed("ann", 60, 81.0), weighed("bob", 60, 71.0)]
    with opened(path, estimator=cut, durability="group", **DURABLE) as store:
        done = Processor(ResetManager(store)).process_batch(rows)
        assert [outcome.reset.outcome for outcome in done if outcome.reset] == ["committed", "committed"]
        assert pending(store) == []
    for name, users in (("first", ["ann"]), ("second", ["ann", "bob"])):
        with opened(tmp_path / name) as store:
            assert store.interrupted == len(users)
            assert [user for user in ("ann", "bob") if outcomes(store, user)[-1] == "interrupted"] == users
            done = Processor(ResetManager(store)).process_batch(rows)
            assert [outcome.status for outcome in done] == ["accepted", "accepted"]


@pytest.mark.parametrize("lost", ["file", "content"])
def test_what_the_file_of_marks_lost_the_intent_tells(path: Path, tmp_path: Path, lost: str) -> None:
    """A file whose pages never reached the disk is as good as none, and its owner is settled whole."""
    copy = tmp_path / "copy"

    def cut(state: Any) -> Any:
        power_cut(path, copy)
        if lost == "content":
            (copy / OWNERS).mkdir()
            for file in (path / OWNERS).iterdir():
                (copy / OWNERS / file.name).write_bytes(bytes(file.stat().st_size))
        return state

    with opened(path, **DURABLE) as store:
        ResetManager(store).perform_reset("ann", operations=[("cut", cut)], **BY)
    with opened(copy) as store:
        assert store.interrupted == 1
        assert outcomes(store, "ann") == ["committed", "interrupted"]
        assert [child.name for child in (copy / OWNERS).iterdir()] == [str(store.committer.owner)]


def test_a_killed_process_is_settled_by_its_file_which_knows_more(path: Path) -> None:
    """The file says that user code ran: the input becomes suspect, and there is one row, not two."""
    child = started("""
        store = opened(path, intents="durable")
        def hang(state):
            say("inside")
            heard()
        ResetManager(store).perform_reset("ann", operations=[("hang", hang)], **BY)
    """, path)
    assert line(child) == "inside"
    with opened(path) as store:
        assert store.interrupted == 0, "it lives: another opening leaves its attempts alone"
        assert len(pending(store)) == 1
        child.kill()
        child.wait()
        assert store.settle_dead() == 1
        assert outcomes(store, "ann") == ["committed", "interrupted"]
        assert store.draft().breaker(b"ann").suspects == (("admin", 2, 1),)
        assert pending(store) == []
    answer(child, code=-9)


def invalid(state: Any) -> Any:
    return state.replace(P=[[1.0, 5.0], [5.0, 1.0]])


@pytest.fixture
def durable(path: Path) -> Iterator[tuple[Store, ResetManager]]:
    with opened(path, **DURABLE) as store:
        yield store, ResetManager(store, breaker=BreakerPolicy(failures_max=2))
        assert store.verify_audit().bad_seq is None


def test_every_outcome_removes_its_intent(durable: tuple[Store, ResetManager]) -> None:
    """Committed, rolled back, invalid, conflicted and refused: the intent goes with the commit that writes the row."""
    store, manager = durable
    during: list[int] = []

    def count(state: Any) -> Any:
        during.append(len(pending(store)))
        return state

    manager.perform_reset("ann", operations=[("count", count)], **BY)
    assert (during, pending(store)) == ([1], [])
    with pytest.raises(ConflictError):
        manager.perform_reset("ann", expect_version=1, **BY)
    with manager.transaction("ann", **BY) as tx:
        tx.apply("same", lambda state: state)
        manager.perform_reset("ann", **BY)
        with pytest.raises(ConflictError):
            tx.commit()
    assert pending(store) == []
    for operation in (broken, invalid):
        with pytest.raises((MutationFailed, ResetValidationError)):
            manager.perform_reset("ann", operations=[("fail", operation)], **BY)
        assert pending(store) == []
    with pytest.raises(BreakerOpen):
        manager.perform_reset("ann", **BY)
    assert pending(store) == []
    with pytest.raises(KeyboardInterrupt), manager.transaction("bob", **BY):
        raise KeyboardInterrupt
    assert pending(store) == []


def test_a_mark_is_one_commit_more_and_only_where_it_is_asked_for(path: Path) -> None:
    """By default an attempt is one commit; a durable mark is another; a refusal costs none in either."""
    for settings, commits in (({}, 1), (DURABLE, 2)):
        disk = Disk()
        with opened(path, opener=disk, **settings) as store:
            manager = ResetManager(store)
            before = disk.commits
            manager.perform_reset("ann", **BY)
            assert disk.commits - before == commits
            manager.force_breaker("bob", "forced-open", **BY)
            before = disk.commits
            with pytest.raises(BreakerOpen):
                manager.perform_reset("bob", **BY)
            assert disk.commits == before


@pytest.mark.parametrize("settings", [{}, DURABLE])
def test_a_probe_cut_off_by_a_power_cut_is_given_back(path: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    """Its lease is durable, and so is the word of who held it: the next attempt probes, instead of none for ever."""
    copy = tmp_path / "copy"
    policy = BreakerPolicy(failures_max=1, cooldown_s=10.0, jitter=0.0)
    clock = StillClock()
    with opened(path, clock=clock, **settings) as store:
        manager = ResetManager(store, breaker=policy)
        with pytest.raises(MutationFailed):
            manager.perform_reset("ann", operations=[("fail", broken)], **BY)
        clock.wall_us += 60_000_000
        manager.perform_reset("ann", operations=[("cut", lambda s: (power_cut(path, copy), s)[1])], **BY)
        assert pending(store) == []
    with opened(copy, clock=clock) as store:
        assert store.interrupted == 1
        assert store.draft().breaker(b"ann").probe == ""
        result = ResetManager(store, breaker=policy).perform_reset("ann", **BY)
        assert result.outcome == "committed"
        assert store.draft().breaker(b"ann").mode == "closed"


def test_an_intent_that_cannot_be_read_stops_nothing(path: Path, tmp_path: Path) -> None:
    """It costs the row of that one attempt: the store opens, the others are settled."""
    copy = tmp_path / "copy"
    ids: list[str] = []

    def cut(state: Any) -> Any:
        power_cut(path, copy)
        return state

    with opened(path, **DURABLE) as store:
        manager = ResetManager(store)
        with manager.transaction("bob", **BY) as outer:
            ids.append(manager.perform_reset("ann", operations=[("cut", cut)], **BY).attempt_id)
            ids.append(outer.attempt_id)
    tear(copy, keys.intent(ids[0]))
    with opened(copy) as store:
        assert store.interrupted == 1
        assert (outcomes(store, "ann"), outcomes(store, "bob")) == (["committed"], ["committed", "interrupted"])
        assert head(store, "ann") is not None


def test_two_openings_settle_an_intent_once(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who comes second finds the record changed, looks again, and opens."""
    copy = tmp_path / "copy"
    with opened(path, **DURABLE) as store:
        ResetManager(store).perform_reset("ann", operations=[("cut", lambda s: (power_cut(path, copy), s)[1])], **BY)
    looks: list[int] = []
    real = intents.left

    def left(*given: Any) -> Iterator[tuple[bytes, bytes, Any]]:
        looks.append(1)
        for key, value, mark in real(*given):
            yield key, b"as it was before" if len(looks) == 1 else value, mark

    monkeypatch.setattr(intents, "left", left)
    with opened(copy) as store:
        assert store.interrupted == 1
        assert outcomes(store, "ann") == ["committed", "interrupted"]
    assert len(looks) >= 2


@pytest.mark.parametrize("settings", [{"intents": "always"}, {"intents": "durable", "durability": "process"}])
def test_settings_that_cannot_be_kept_are_refused(tmp_path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="intents"):
        Store.open(tmp_path / "store", **settings)
    assert not (tmp_path / "store").exists()
