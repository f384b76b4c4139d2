"""What owners leave that die: every attempt that began gets one outcome at the next opening, blame only where it is due."""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import lmdb
import pytest

from statemachine import (
    BodyWeight,
    BreakerOpen,
    BreakerPolicy,
    GlobalBreakerPolicy,
    MutationFailed,
    Operation,
    Processor,
    Reading,
    ResetManager,
    ResetParameters,
    Store,
    StoreCorrupt,
    StoreUnavailable,
)
from statemachine.breaker import Breaker
from statemachine.marks import RUNNING, DeadMarks, Mark, Marks, under_way
from statemachine.store import keys
from statemachine.store.draft import record
from tests.regression.scene import BY, StillClock, broken, events, fill, head, opened, raw, records, tear, weighed, working
from tests.unit.doubles import Commit, Disk
from tests.unit.processes import answer, line, ran, started

if TYPE_CHECKING:
    from collections.abc import Callable

# Dies in a forked child, so that one program can die several times: `dies(call)` returns when it has.
DIES: Final = """
def dies(call):
    child = os.fork()
    if child == 0:
        call()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
def die(*_):
    os._exit(7)
def reset(user, kind="admin", operations=(("die", die),), **settings):
    store = opened(path, **settings)
    ResetManager(store).perform_reset(user, kind, operations=operations, **BY)
"""

IN_A_MUTATION: Final = DIES + "dies(lambda: reset('ann'))"


def breaker(store: Store, user: str) -> Breaker:
    """The stored breaker of a user, or with "" the global one."""
    key = keys.breaker(user.encode()) if user else keys.GLOBAL_BREAKER
    return record(Breaker, key, store.engine.get(key)) or Breaker()


def healthy(store: Store, user: str) -> bool:
    """Whether nothing but successes is noted in a breaker, and nobody is suspect."""
    found = breaker(store, user)
    return found == Breaker(ended=found.ended, ended_event=found.ended_event) and all(
        failed == 0 for _, _, failed in (*found.ended, *found.ended_event))


def owners(path: Path) -> list[str]:
    """The files of marks in a store."""
    return sorted(child.name for child in (path / "owners").iterdir())


def assert_sound(store: Store) -> None:
    """The chain verifies, no attempt has two outcomes, and no dead owner is left."""
    assert store.verify_audit().problem == ""
    attempts = Counter(row.public.attempt_id for row in store.audit() if row.public.attempt_id)
    assert set(attempts.values()) <= {1}
    assert owners(store.path) == [str(store.committer.owner)]
    assert [key for key, _ in store.engine.scan(keys.OWNER, keys.after(keys.OWNER))] == [keys.owner(store.committer.owner)]


def outcomes(store: Store, user: str) -> list[str]:
    """How the user's attempts ended, in the order of the log."""
    return [row.public.outcome for row in store.audit(user)]


# A death while user code runs

def test_a_death_inside_a_mutation_is_settled_as_interrupted(tmp_path: Path) -> None:
    """The next opening writes whose attempt it was, of what kind, by whom and why; the state stays the before-image."""
    path = tmp_path / "store"
    before = {user: fill(path, user, [80.0, 80.1]) for user in ("ann", "bob")}
    with opened(path) as store:
        stored = {user: records(store, user) for user in before}
    ran(IN_A_MUTATION, path)
    assert len(owners(path)) == 1, "the dead owner's file is there before the opening"
    with working(path) as (store, manager, processor):
        assert store.interrupted == 1
        row = list(store.audit("ann"))[-1]
        assert (row.public.event, row.public.outcome, row.public.kind) == ("reset.interrupted", "interrupted", "admin")
        assert (row.public.base_version, row.public.new_version) == (2, None)
        assert (row.personal.user, row.personal.actor, row.personal.reason) == ("ann", BY["actor"], BY["reason"])
        assert manager.inspect(row.public.attempt_id) == row
        assert {user: records(store, user) for user in before} == stored
        assert breaker(store, "ann").suspects == (("admin", 2, 1),)
        assert breaker(store, "ann").mode == "closed"
        assert healthy(store, "bob")
        assert healthy(store, "")
        assert outcomes(store, "bob") == ["committed"]
        assert processor.process(weighed("ann", 2, 80.2)).version == 3
        assert_sound(store)
    with opened(path) as store:
        assert store.interrupted == 0
        assert outcomes(store, "ann") == ["committed", "interrupted"]
        assert_sound(store)


def test_a_reset_that_kills_its_process_is_refused_in_the_end(tmp_path: Path) -> None:
    """After `suspects_max` deaths that reset of that version is refused, and nothing else is: INV-07 and INV-11."""
    path = tmp_path / "store"
    fill(path, "ann", [80.0, 80.1])
    fill(path, "bob", [70.0])
    limit = BreakerPolicy().suspects_max
    ran(DIES + f"for _ in range({limit}):\n    dies(lambda: reset('ann'))", path)
    with working(path) as (store, manager, processor):
        assert breaker(store, "ann").suspects == (("admin", 2, limit),)
        with pytest.raises(BreakerOpen) as caught:
            manager.perform_reset("ann", operations=[("die", lambda _: pytest.fail("user code ran"))], **BY)
        assert (caught.value.scope, caught.value.reason, caught.value.user) == ("user", "suspect", "ann")
        assert manager.perform_reset("bob", **BY).outcome == "committed"
        assert healthy(store, "")
        assert processor.process(weighed("ann", 2, 80.2)).version == 3
        assert manager.perform_reset("ann", **BY).outcome == "committed", "the version is another one now"
        assert_sound(store)
    with opened(path) as store:
        assert outcomes(store, "ann") == ["committed", *["interrupted"] * limit, "refused", "committed"]


def test_a_reset_that_completes_is_no_longer_suspect(tmp_path: Path) -> None:
    """Deaths below the limit are forgotten when the same reset of the same version ends, even in a failure."""
    path = tmp_path / "store"
    fill(path, "ann", [80.0])
    limit = BreakerPolicy().suspects_max
    ran(DIES + f"for _ in range({limit - 1}):\n    dies(lambda: reset('ann'))", path)
    with working(path) as (store, manager, _):
        assert breaker(store, "ann").suspects == (("admin", 1, limit - 1),)
        with pytest.raises(MutationFailed):
            manager.perform_reset("ann", operations=[("break", broken)], **BY)
        assert breaker(store, "ann").suspects == ()
        assert manager.perform_reset("ann", **BY).outcome == "committed"
        assert_sound(store)


def test_a_measurement_whose_reset_kills_is_kept_aside_and_the_stream_goes_on(tmp_path: Path) -> None:
    """The processor meets the refusal like any other: the measurement is quarantined, later ones are taken."""
    path = tmp_path / "store"
    fill(path, "ann", [80.0, 80.1])
    limit = BreakerPolicy().suspects_max
    ran(DIES + f"""
class Deadly(Faulty):
    def operations(self, how, reading, at_us):
        return (Operation("die", die),)
def feed():
    with working(path, estimator=Deadly()) as (_, _, processor):
        processor.process(weighed("ann", 60, 80.0))
for _ in range({limit}):
    dies(feed)
""", path)

    class Deadly(BodyWeight):
        def operations(self, how: ResetParameters, reading: Reading | None, at_us: int) -> tuple[Operation, ...]:
            return (Operation("die", lambda _: pytest.fail("user code ran")),)

    with working(path, estimator=Deadly()) as (store, _, processor):
        outcome = processor.process(weighed("ann", 60, 80.0))
        assert outcome.reset is not None
        assert (outcome.reset.outcome, "suspect" in outcome.reset.error) == ("refused", True)
        assert outcome.status in {"accepted", "quarantined"}
        assert_sound(store)
    with working(path) as (store, _, processor):
        assert processor.process(weighed("ann", 61, 80.1)).status == "accepted"
        assert outcomes(store, "ann")[1:4] == ["interrupted"] * limit


# Deaths without blame

@pytest.mark.parametrize("where", ["before its first operation", "waiting for the commit", "after the commit"])
def test_a_death_outside_user_code_blames_nobody(tmp_path: Path, where: str) -> None:
    """Only who dies while user code runs is suspect; an attempt that is durable already has its outcome, and no other."""
    path = tmp_path / "store"
    fill(path, "ann", [80.0])
    program = {
        "before its first operation": "ResetTransaction._admit = die",
        "waiting for the commit": "store.committer.commit = die",
        "after the commit": "store.marks.release = die",
    }[where]
    ran(DIES + f"""
def work():
    store = opened(path)
    manager = ResetManager(store)
    {program}
    manager.perform_reset("ann", **BY)
dies(work)
""", path)
    with working(path) as (store, manager, _):
        durable = where == "after the commit"
        assert store.interrupted == (0 if durable else 1)
        assert outcomes(store, "ann") == ["committed", "committed" if durable else "interrupted"]
        assert healthy(store, "ann")
        assert store.version_range("ann") == (1, 2 if durable else 1)
        assert manager.perform_reset("ann", **BY).outcome == "committed"
        assert_sound(store)


def test_attempts_still_under_way_when_the_store_is_closed_are_settled_without_blame(tmp_path: Path) -> None:
    """Closing in the middle of an attempt loses no row, and later use of that attempt says that the store is closed."""
    path = tmp_path / "store"
    fill(path, "ann", [80.0])
    with working(path) as (_, manager, _):
        transaction = manager.transaction("ann", **BY)
        transaction.begin()
        transaction.apply("move", lambda s: s.replace(x0=81.0))
    with pytest.raises(StoreUnavailable, match="closed"):
        transaction.commit()
    with opened(path) as store:
        assert store.interrupted == 1
        assert outcomes(store, "ann") == ["committed", "interrupted"]
        assert healthy(store, "ann")
        assert head(store, "ann").kalman.x0 == 80.0
        assert_sound(store)


def test_a_probe_whose_process_dies_gives_its_slot_back(tmp_path: Path) -> None:
    """The one trial of a half-open breaker dies with its process: the next attempt may probe at once, and closes it."""
    path, policy = tmp_path / "store", BreakerPolicy(failures_max=1)
    fill(path, "ann", [80.0])
    with working(path) as (store, _, _):
        manager = ResetManager(store, breaker=policy)
        with pytest.raises(MutationFailed):
            manager.perform_reset("ann", "gap", operations=[("break", broken)], **BY)
        assert breaker(store, "ann").mode == "open"
    ran(DIES + """
from tests.regression.scene import StillClock, PRESENT_US
dies(lambda: reset("ann", clock=StillClock(PRESENT_US + 30 * DAY_US)))
""", path)
    with working(path) as (store, _, _):  # a clock by which the cooldown has not passed
        found = breaker(store, "ann")
        assert (found.mode, found.probe, found.openings) == ("half-open", "", 1)
        assert ResetManager(store, breaker=policy).perform_reset("ann", "gap", operations=[("same", lambda s: s)], **BY)
        assert breaker(store, "ann").mode == "closed"
        assert outcomes(store, "ann") == ["committed", "rolled_back", "opened", "interrupted", "committed", "closed"]
        assert_sound(store)


# Rows that only marks hold

def refused_once(path: Path, then: Callable[[Store, ResetManager, Processor], None]) -> Store:
    """A store with one refusal that is marked and nowhere else, after what `then` does with it."""
    with opened(path) as store:
        manager = ResetManager(store, breaker=BreakerPolicy(failures_max=1))
        with pytest.raises(MutationFailed):
            manager.perform_reset("ann", operations=[("break", broken)], **BY)
        with pytest.raises(BreakerOpen):
            manager.perform_reset("ann", **BY)
        assert outcomes(store, "ann") == REFUSED[:-1], "a refusal is marked, at no commit of its own"
        then(store, manager, Processor(manager))
    return store


REFUSED: Final = ["committed", "rolled_back", "opened", "refused"]


def test_a_refusal_is_written_by_the_next_commit(tmp_path: Path) -> None:
    """Whoever commits next writes the rows that wait, once, and their slots are free again."""
    path = tmp_path / "store"
    fill(path, "ann", [80.0])

    def commit_twice(store: Store, _: ResetManager, processor: Processor) -> None:
        for day in (1, 2):
            processor.process(weighed("bob", day, 70.0))
            assert outcomes(store, "ann") == REFUSED
            assert store.marks.ended() == {}
        row = list(store.audit("ann"))[-1]
        assert (row.public.event, row.personal.reason) == ("reset.refused", BY["reason"])
        assert "circuit breaker" in row.personal.error

    refused_once(path, commit_twice)
    with opened(path) as store:
        assert outcomes(store, "ann") == REFUSED
        assert_sound(store)


def test_a_refusal_is_written_by_closing(tmp_path: Path) -> None:
    """A store closed right after a refusal has its row, and leaves nothing to settle."""
    path = tmp_path / "store"
    fill(path, "ann", [80.0])
    refused_once(path, lambda *_: None)
    assert owners(path) == []
    with opened(path) as store:
        assert store.interrupted == 0
        assert outcomes(store, "ann") == REFUSED
        assert_sound(store)


def test_a_refusal_is_written_by_the_next_opening(tmp_path: Path) -> None:
    """A process that dies after a refusal leaves it in its marks; it is no interruption."""
    path = tmp_path / "store"
    fill(path, "ann", [80.0])
    ran(DIES + """
def work():
    manager = ResetManager(opened(path), breaker=BreakerPolicy(failures_max=1))
    for operation in (lambda s: 1 / 0, lambda s: s):
        try:
            manager.perform_reset("ann", operations=[("x", operation)], **BY)
        except (MutationFailed, BreakerOpen):
            pass
    os._exit(7)
dies(work)
""", path)
    for _ in range(2):
        with opened(path) as store:
            assert store.interrupted == 0
            assert outcomes(store, "ann") == REFUSED
            assert_sound(store)


def test_an_outcome_that_could_not_be_written_is_written_later(tmp_path: Path) -> None:
    """A rollback on an ill disk keeps its row in the marks; the next commit that succeeds writes it."""
    path, disk = tmp_path / "store", Disk()
    fill(path, "ann", [80.0])

    def ill(_: Commit) -> None:
        raise lmdb.Error("ill")

    with working(path, opener=disk) as (store, manager, processor):
        disk.commit = ill
        with pytest.raises(MutationFailed):
            manager.perform_reset("ann", operations=[("break", broken)], **BY)
        with pytest.raises(StoreUnavailable):
            manager.perform_reset("ann", **BY)
        disk.commit = None
        assert outcomes(store, "ann") == ["committed"]
        assert processor.process(weighed("bob", 0, 70.0)).status == "accepted"
        assert outcomes(store, "ann") == ["committed", "rolled_back", "rolled_back"]
        assert store.version_range("ann") == (1, 1)
        assert_sound(store)


# Settling itself

class StopsAfter:
    """`DeadMarks.remove` as it is in a process that dies just before it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def cut_off(dead: DeadMarks) -> None:
            dead.leave()
            raise KeyboardInterrupt

        monkeypatch.setattr(DeadMarks, "remove", cut_off)


def test_settling_twice_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A settlement cut off after its commit is done again by the next opening, and finds what it had written."""
    path = tmp_path / "store"
    fill(path, "ann", [80.0])
    ran(IN_A_MUTATION, path)
    for _ in range(2):
        with monkeypatch.context() as patched:
            StopsAfter(patched)
            with pytest.raises(KeyboardInterrupt):
                opened(path)
    with opened(path) as store:
        assert store.interrupted == 0
        assert outcomes(store, "ann") == ["committed", "interrupted"]
        assert breaker(store, "ann").suspects == (("admin", 1, 1),)
        assert_sound(store)


def test_a_settlement_that_fails_leaves_everything_to_the_next_opening(tmp_path: Path) -> None:
    """Openings on an ill disk fail typed, lock nothing in this process, and lose no mark."""
    path, disk = tmp_path / "store", Disk()
    fill(path, "ann", [80.0])
    ran(IN_A_MUTATION, path)
    calls = 0

    def second_commit_fails(real: Commit) -> None:
        nonlocal calls
        calls += 1
        if calls % 2 == 0:  # the first of an opening registers its owner, the second settles
            raise lmdb.Error("ill")
        real()

    disk.commit = second_commit_fails
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            opened(path, opener=disk)
    disk.commit = None
    with opened(path, opener=disk) as store:
        assert store.interrupted == 1
        assert outcomes(store, "ann") == ["committed", "interrupted"]
        assert_sound(store)


def test_a_stopped_owner_lives_and_its_attempt_goes_on(tmp_path: Path) -> None:
    """A process that was stopped in an attempt still holds its lock: nothing is settled, and it commits when it goes on."""
    path = tmp_path / "store"
    fill(path, "ann", [80.0])
    other = started("""
        with working(path) as (store, manager, _):
            def slow(s):
                say("in the mutation")
                heard()
                return s.replace(x0=81.0)
            manager.perform_reset("ann", operations=[("slow", slow)], **BY)
    """, path)
    assert line(other) == "in the mutation"
    other.send_signal(signal.SIGSTOP)
    try:
        with opened(path) as store:
            assert store.interrupted == 0
            assert outcomes(store, "ann") == ["committed"]
            assert len(owners(path)) == 2
    finally:
        other.send_signal(signal.SIGCONT)
    answer(other, "go on\n")
    with opened(path) as store:
        assert outcomes(store, "ann") == ["committed", "committed"]
        assert head(store, "ann").kalman.x0 == 81.0
        assert_sound(store)


def test_openers_at_once_settle_each_attempt_once(tmp_path: Path) -> None:
    """Two processes find the same dead owner's fifty attempts: together they settle each of them one time."""
    path = tmp_path / "store"
    with working(path) as (_, _, processor):
        processor.process_batch(weighed(f"u{number:02d}", 0, 80.0) for number in range(50))
    ran(DIES + """
def work():
    manager = ResetManager(opened(path))
    for number in range(50):
        manager.transaction(f"u{number:02d}", **BY).begin()
    os._exit(7)
dies(work)
""", path)
    openers = [started("say('ready'); heard()\nwith opened(path) as store: say(store.interrupted)", path) for _ in range(2)]
    assert [line(child) for child in openers] == ["ready", "ready"]
    for child in openers:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    assert sum(int(answer(child)) for child in openers) == 50
    with opened(path) as store:
        assert Counter(outcome for _, _, outcome in events(store)) == {"committed": 50, "interrupted": 50}
        assert_sound(store)


def test_a_torn_mark_is_no_attempt_and_stops_nobody(tmp_path: Path) -> None:
    """A slot half-written at the death is nothing; what stands beside it is settled."""
    path = tmp_path / "store"
    fill(path, "ann", [80.0])
    marks = Marks(path / "owners" / "900")
    for number, user in enumerate(("ann", "bob", "cid"), start=1):
        marks.fill(Mark(RUNNING, "reset.interrupted", "interrupted", f"{number:032x}", user, "admin", "admin", 1, 0, 0))
    marks._map[1024 + 20] ^= 1
    marks.abandon()
    with opened(path) as store:
        assert store.interrupted == 2
        assert [row.personal.user for row in store.audit()] == ["ann", "ann", "cid"]
        assert healthy(store, "bob")
        assert_sound(store)


@pytest.mark.parametrize("size", [0, 1, 19, 1023, 1024, 1025, 1030, 2048, 2500, 3 * 1024 + 500])
def test_a_file_of_marks_that_was_cut_short_is_settled_as_far_as_it_goes(tmp_path: Path, size: int) -> None:
    """It is never mapped by who opens the store, so that no length is a SIGBUS; what is cut off is no attempt."""
    path = tmp_path / "store"
    fill(path, "ann", [80.0])
    marks = Marks(path / "owners" / "900")
    users = ("bob", "cid", "dan")
    for number, user in enumerate(users, start=1):
        marks.fill(Mark(RUNNING, "reset.interrupted", "interrupted", f"{number:032x}", user, "admin", "admin", 1, 0, 0))
    marks.abandon()
    os.truncate(path / "owners" / "900", size)
    said = ran("""
with opened(path, readonly=True) as store: pass
with opened(path) as store: say(store.interrupted)
""", path)
    assert int(said) == min(size // 1024, len(users))
    with opened(path) as store:
        settled = sorted(row.personal.user for row in store.audit() if row.public.outcome == "interrupted")
        assert settled == list(users[:int(said)])
        assert_sound(store)


def test_a_living_owner_whose_file_is_cut_short_stops_nobody_else(tmp_path: Path) -> None:
    """Its lock is held: another opening leaves the file as it is, and lists it."""
    path = tmp_path / "store"
    fill(path, "ann", [80.0])
    other = started("""
        with opened(path) as store:
            say(store.committer.owner)
            heard()
            os._exit(0)
    """, path)
    number = line(other)
    os.truncate(path / "owners" / number, 100)
    with opened(path) as store:
        assert owners(path) == sorted([number, str(store.committer.owner)])
        assert under_way(path / "owners" / number) == []
    answer(other, "go\n")
    with opened(path) as store:
        assert_sound(store)


def test_an_owner_that_died_before_it_registered_stops_nobody(tmp_path: Path) -> None:
    """A file of marks under the number that comes next is taken over: no number is used twice in the store."""
    path = tmp_path / "store"
    fill(path, "ann", [80.0])
    with opened(path) as store:
        following = store.committer.owner + 1
    Marks(path / "owners" / str(following)).abandon()
    (path / "owners" / "notes.txt").write_text("not an owner")
    with opened(path) as store:
        assert store.committer.owner == following
        (path / "owners" / "notes.txt").unlink()
        assert_sound(store)


@pytest.mark.parametrize("whose", ["ann", ""])
def test_a_damaged_breaker_does_not_stop_the_opening(tmp_path: Path, whose: str) -> None:
    """One record that cannot be read costs that settlement its count, not the store: the row is written, others go on."""
    path = tmp_path / "store"
    fill(path, "ann", [80.0])
    fill(path, "bob", [70.0])
    with working(path) as (_, manager, _), pytest.raises(MutationFailed):
        manager.perform_reset("ann", operations=[("break", broken)], **BY)
    ran(IN_A_MUTATION, path)
    tear(path, keys.breaker(whose.encode()) if whose else keys.GLOBAL_BREAKER)
    with working(path) as (store, manager, processor):
        assert store.interrupted == 1
        assert outcomes(store, "ann") == ["committed", "rolled_back", "interrupted"]
        with pytest.raises(StoreCorrupt):
            manager.perform_reset("ann", **BY)
        assert processor.process(weighed("bob", 1, 70.1)).status == "accepted"
        assert processor.process(weighed("ann", 1, 80.1)).status == "accepted"
        if whose:
            assert manager.perform_reset("bob", **BY).outcome == "committed"
        assert_sound(store)


@pytest.mark.parametrize("damaged", ["ann", ""])
def test_each_breaker_has_its_probe_back_whatever_the_other_is(tmp_path: Path, damaged: str) -> None:
    """One attempt holds the probe of both breakers and dies; one of them cannot be read: the other is not stuck (INV-12)."""
    path = tmp_path / "store"
    fill(path, "ann", [80.0])
    policies: Any = {"breaker": BreakerPolicy(failures_max=1), "global_breaker": GlobalBreakerPolicy(users_max=1)}
    with working(path) as (store, _, _), pytest.raises(MutationFailed):
        ResetManager(store, **policies).perform_reset("ann", operations=[("break", broken)], **BY)
    ran(DIES + """
from tests.regression.scene import StillClock, PRESENT_US
dies(lambda: reset("ann", clock=StillClock(PRESENT_US + 300 * DAY_US)))
""", path)
    own, common = keys.breaker(b"ann"), keys.GLOBAL_BREAKER
    with raw(path) as txn:
        before = {key: record(Breaker, key, bytes(txn.get(key) or b"")) for key in (own, common)}
    assert [(found.mode, found.probe != "") for found in before.values() if found] == [("half-open", True)] * 2
    torn = own if damaged else common
    tear(path, torn)
    with opened(path) as store:
        assert store.interrupted == 1
        found = breaker(store, "" if damaged else "ann")
        assert (found.mode, found.probe) == ("half-open", "")
        assert found.suspects == (() if damaged else (("admin", 1, 1),)), "the death is counted, too"
        assert store.engine.get(torn) is not None
        manager = ResetManager(store, **policies)
        manager.release_breaker(damaged or None, **BY)
        assert manager.perform_reset("ann", **BY).outcome == "committed"
        assert manager.breaker(None if damaged else "ann").mode == "closed"
        assert_sound(store)


def test_many_owners_are_settled_in_one_opening(tmp_path: Path) -> None:
    """Each dead owner's attempts are settled, whatever the order of their numbers, and every file goes."""
    path = tmp_path / "store"
    fill(path, "ann", [80.0])
    for number in (900, 11, 100):
        marks = Marks(path / "owners" / str(number))
        marks.fill(Mark(RUNNING, "reset.interrupted", "interrupted", f"{number:032x}", f"u{number}", "admin", "x", 1, 0, 0))
        marks.abandon()
    with raw(path) as txn:
        assert txn.get(keys.owner(900)) is None
    with opened(path) as store:
        assert store.interrupted == 3
        assert sorted(row.personal.user for row in store.audit()) == ["ann", "u100", "u11", "u900"]
        assert_sound(store)


def test_the_row_of_a_settled_attempt_is_written_by_the_clock_of_the_opener(tmp_path: Path) -> None:
    """Event time is the attempt's, as its mark says; the time of writing is the present."""
    path: Any = tmp_path / "store"
    fill(path, "ann", [80.0])
    ran(IN_A_MUTATION, path)
    clock = StillClock()
    clock.wall_us += 5_000_000
    with opened(path, clock=clock) as store:
        row = list(store.audit("ann"))[-1]
        assert (row.personal.at_us, row.public.written_us) == (clock.wall_us - 5_000_000, clock.wall_us)
