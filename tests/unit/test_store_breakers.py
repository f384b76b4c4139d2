"""Breakers and budget in the commit: rows of what moved, several processes, kills, and what a refused commit tells."""

from __future__ import annotations

import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import lmdb
import msgspec
import pytest
import structlog
import xxhash

from statemachine import (
    BreakerOpen,
    BreakerPolicy,
    ConflictError,
    GlobalBreakerPolicy,
    InvalidInput,
    MutationFailed,
    Processor,
    ResetManager,
    Store,
    StoreCorrupt,
    StoreUnavailable,
    codec,
)
from statemachine.audit import Row
from statemachine.breaker import Breaker, Now
from statemachine.erasure import forget
from statemachine.processor import SourceRow
from statemachine.store import keys
from statemachine.store.checkup import Checkup
from statemachine.store.draft import BreakerEvent
from statemachine.testing import snapshot
from tests.regression.scene import BY, PRESENT_US, Faulty, StillClock, broken, opened, tear, weighed, working
from tests.unit.doubles import Commit, Disk
from tests.unit.processes import answer, line, ran, started

pytestmark = pytest.mark.usefixtures("no_events")

HOUR_US: Final = 3_600_000_000
USERS: Final = ("ann", "bob", "cid", "dan", "eve")
FAST: Final = BreakerPolicy(failures_max=1, cooldown_s=3_600.0, jitter=0.0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store in which five users have a state."""
    with working(tmp_path / "store") as (_, _, processor):
        processor.process_batch(weighed(user, 0, 80.0) for user in USERS)
    return tmp_path / "store"


@pytest.fixture
def clock() -> StillClock:
    return StillClock()


def fail(manager: ResetManager, user: str = "ann", times: int = 1) -> None:
    for _ in range(times):
        with pytest.raises(MutationFailed):
            manager.perform_reset(user, operations=[("break", broken)], **BY)


def refusal(manager: ResetManager, user: str = "ann", **named: Any) -> BreakerOpen:
    with pytest.raises(BreakerOpen) as caught:
        manager.perform_reset(user, **{**BY, **named})
    return caught.value


def moves(store: Store) -> list[tuple[str, str, Any, Any]]:
    """(event, scope, user, reason) of each row about a breaker that moved."""
    return [(row.public.event, row.personal.details["scope"], row.personal.user, row.personal.details["reason"])
            for row in store.audit() if row.public.event.startswith("breaker.")]


def row_of(store: Store, event: str) -> Row:
    (found,) = [row for row in store.audit() if row.public.event == event]
    return found


# Rows.


def test_an_opening_and_a_closing_are_rows_of_the_commits_that_caused_them(path: Path, clock: StillClock) -> None:
    """Beside the outcome, with generation, openings, why, and when it may be tried again; a lease and a refusal move nothing."""
    with opened(path, clock=clock) as store:
        manager = ResetManager(store, breaker=FAST)
        fail(manager)
        retry = refusal(manager).retry_at_us
        assert retry == clock.wall_us + HOUR_US
        row = row_of(store, "breaker.opened")
        caused = next(store.audit(since_seq=row.public.seq - 1))
        assert (caused.public.event, row.personal.details["attempt_id"]) == ("reset.rolled_back", caused.public.attempt_id)
        assert (row.public.outcome, row.public.kind, row.public.breaker_mode, row.public.breaker_generation) == (
            "opened", "breaker", "open", 1)
        assert (row.personal.user, row.personal.at_us) == ("ann", clock.wall_us)
        assert row.personal.details == {
            "scope": "user", "from": "closed", "to": "open", "generation": 1, "openings": 1, "reason": "failures",
            "retry_at": "2027-02-09T08:00:00Z", "time_base": "wall", "attempt_id": caused.public.attempt_id}
        assert row.personal.trigger == "the reset failed; a probe may run from 2027-02-09T08:00:00Z"
        assert list(store.audit("ann"))[-1] == row
        clock.wall_us = retry
        manager.perform_reset("ann", **BY)
        closed = row_of(store, "breaker.closed")
        assert (closed.public.outcome, closed.public.breaker_mode, closed.public.breaker_generation) == ("closed", "closed", 3)
        assert next(store.audit(since_seq=closed.public.seq - 1)).public.event == "reset.committed"
        assert (closed.personal.details["from"], closed.personal.details["openings"]) == ("half-open", 1)
        assert store.verify_audit().problem == ""


def test_a_commit_that_fails_leaves_neither_outcome_nor_opening(path: Path) -> None:
    """Row and record are one transaction with the outcome: when it is written later, so are they, once."""
    disk = Disk()
    with opened(path, opener=disk) as store:
        manager = ResetManager(store, breaker=FAST)

        def ill(_: Commit) -> None:
            raise lmdb.Error("ill")

        disk.once(ill)
        fail(manager)
        assert (moves(store), manager.breaker("ann").mode) == ([], "closed")
        fail(manager)
        assert moves(store) == [("breaker.opened", "user", "ann", "failures")]
        assert manager.breaker("ann").mode == "open"


@pytest.mark.parametrize("scope", ["user", "global"])
def test_why_it_opened_is_told(path: Path, clock: StillClock, scope: str) -> None:
    """By the share that failed, although never two in a row; then by its probe."""
    policy = BreakerPolicy(failures_max=10**6, attempts_min=6, cooldown_s=0.0)
    common = GlobalBreakerPolicy(users_max=None, attempts_min=6, cooldown_s=0.0)
    never: dict[str, Any] = {"failure_rate_max": None}
    clock.wall_us += 40 * 24 * HOUR_US  # the users' first resets are out of the windows
    with opened(path, clock=clock) as store:
        manager = ResetManager(
            store, breaker=policy if scope == "user" else BreakerPolicy(failures_max=10**6, **never),
            global_breaker=common if scope == "global" else GlobalBreakerPolicy(users_max=None, **never))
        whose = {"user": "ann", "global": None}[scope]
        number = 0
        while manager.breaker(whose).mode == "closed":
            user = "ann" if scope == "user" else USERS[number % len(USERS)]
            fail(manager, user)
            if manager.breaker(whose).mode == "closed":
                manager.perform_reset(user, **BY)
            number += 1
            assert number < 20
        fail(manager, "ann")
        assert [(event, reason) for event, _, _, reason in moves(store)] == [
            ("breaker.opened", "rate"), ("breaker.opened", "probe")]
        assert {name for _, name, _, _ in moves(store)} == {scope}


def test_one_user_s_failures_are_one_user_to_the_global_breaker(path: Path) -> None:
    """Neither the count nor the share is moved by who fails for ever (INV-11)."""
    with opened(path) as store:
        manager = ResetManager(store, breaker=BreakerPolicy(failures_max=10**6, failure_rate_max=None),
                               global_breaker=GlobalBreakerPolicy(users_max=2, attempts_min=3, failure_rate_max=0.5))
        fail(manager, "ann", 30)
        assert (manager.breaker(None).mode, moves(store)) == ("closed", [])
        assert manager.perform_reset("bob", **BY).outcome == "committed"
        fail(manager, "cid")
        assert moves(store) == [("breaker.opened", "global", "", "users")]


def test_the_two_policies_are_apart(path: Path, clock: StillClock) -> None:
    """Each has its own cooldown and its own number of successes."""
    with opened(path, clock=clock) as store:
        manager = ResetManager(
            store, breaker=BreakerPolicy(failures_max=1, cooldown_s=60.0, jitter=0.0, successes_to_close=3),
            global_breaker=GlobalBreakerPolicy(users_max=1, cooldown_s=7_200.0, jitter=0.0, successes_to_close=2))
        fail(manager)
        assert refusal(manager).scope == "user"
        assert refusal(manager, "bob").retry_at_us == clock.wall_us + 2 * HOUR_US
        clock.wall_us += 2 * HOUR_US
        for user, own, common in (("ann", "half-open", "half-open"), ("bob", "closed", "closed")):
            manager.perform_reset(user, **BY)
            assert (manager.breaker(user).mode, manager.breaker(None).mode) == (own, common)
        for mode in ("half-open", "closed"):
            manager.perform_reset("ann", **BY)
            assert manager.breaker("ann").mode == mode


def test_nothing_is_doubled_in_a_batch(tmp_path: Path) -> None:
    """Many users fail several times in one commit: each opens once, and the global one once."""
    estimator = Faulty()
    with opened(tmp_path / "store", estimator=estimator) as store:
        manager = ResetManager(store, breaker=BreakerPolicy(failures_max=3), global_breaker=GlobalBreakerPolicy(users_max=4))
        processor = Processor(manager)
        processor.process_batch(weighed(f"u{n}", 0, 80.0) for n in range(6))
        estimator.failing = True
        outcomes = processor.process_batch(weighed(f"u{n}", 60 + day, 80.0) for day in range(5) for n in range(6))
        assert {outcome.reset.outcome for outcome in outcomes if outcome.reset} == {"rolled_back", "refused"}
        found = Counter(moves(store))
        assert set(found.values()) == {1}
        assert found["breaker.opened", "global", "", "users"] == 1
        assert [manager.breaker(None).mode, store.verify_audit().problem] == ["open", ""]
        opened_rows = sum(row.public.event == "breaker.opened" for row in store.audit())
        modes = [manager.breaker(None), *(manager.breaker(f"u{n}") for n in range(6))]
        assert opened_rows == sum(found.values()) == sum(record.mode == "open" for record in modes)


def test_a_draft_that_misses_leaves_nothing_of_its_earlier_events(path: Path, clock: StillClock) -> None:
    """A group whose first attempt would open a breaker and whose second may not commit writes neither record nor row."""
    with opened(path, clock=clock) as store:
        draft, before = store.draft(), [store.engine.get(keys.breaker(b"ann")), store.engine.get(keys.GLOBAL_BREAKER)]
        now = Now(clock.wall_us, clock.wall_us)
        draft.add_event(BreakerEvent(b"ann", FAST, "failure", "0" * 32, 0, 0, now))
        draft.add_event(BreakerEvent(b"bob", FAST, "success", "1" * 32, 7, 0, now))
        with pytest.raises(ConflictError) as missed:
            store.commit(draft)
        assert missed.value.reason == "breaker"
        assert [store.engine.get(keys.breaker(b"ann")), store.engine.get(keys.GLOBAL_BREAKER)] == before
        assert moves(store) == []


def test_nothing_is_doubled_by_threads_that_share_a_commit(path: Path) -> None:
    """Five users fail at once in a group: two of them open the global breaker, in one row."""
    with opened(path, durability="group") as store:
        manager = ResetManager(store, global_breaker=GlobalBreakerPolicy(users_max=2))
        inside, ended = threading.Barrier(len(USERS)), []

        def failing(_: Any) -> Any:
            inside.wait(20)
            raise KeyError("gone")

        def work(user: str) -> None:
            with pytest.raises(MutationFailed):
                manager.perform_reset(user, operations=[("break", failing)], **BY)
            ended.append(user)

        threads = [threading.Thread(target=work, args=(user,)) for user in USERS]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert sorted(ended) == list(USERS)
        assert moves(store) == [("breaker.opened", "global", "", "users")]


def test_the_event_carries_the_attempt_s_contextvars(path: Path) -> None:
    seen: list[Any] = []

    def sink(_logger: Any, _method: str, event: Any) -> str:
        seen.append(event)
        raise structlog.DropEvent

    with opened(path) as store:
        structlog.configure(processors=[sink])
        manager = ResetManager(store, breaker=FAST)
        with structlog.contextvars.bound_contextvars(request="r-1"):
            fail(manager)
        assert store.emitter.flush()
    assert [(event["event"], event.get("request")) for event in seen] == [
        ("reset.rolled_back", "r-1"), ("breaker.opened", "r-1")]


def test_an_operator_s_word_has_its_own_rows_only(path: Path) -> None:
    with opened(path) as store:
        manager = ResetManager(store, breaker=FAST)
        fail(manager)
        manager.force_breaker("ann", "forced-open", **BY)
        manager.release_breaker("ann", **BY)
        events = [row.public.event for row in store.audit("ann")]
        assert events[-4:] == ["reset.rolled_back", "breaker.opened", "breaker.forced", "breaker.released"]


@pytest.mark.parametrize("failed", [False, True])
def test_a_busy_store_does_not_keep_a_user_from_being_forgotten(
    path: Path, monkeypatch: pytest.MonkeyPatch, failed: bool,
) -> None:
    """Others' resets change the global breaker all the time: that is a conflict only where the user's mark is in it."""
    with opened(path) as store:
        manager = ResetManager(store)
        if failed:
            fail(manager, "ann")
        fail(manager, "bob")
        commit, tries = store.commit, []

        def after_another(draft: Any) -> Any:
            tries.append(draft)
            if len(tries) == 1:
                with monkeypatch.context() as undone:
                    undone.setattr(store, "commit", commit)
                    fail(manager, "bob")
                    manager.perform_reset("cid", **BY)
            return commit(draft)

        monkeypatch.setattr(store, "commit", after_another)
        forget(store, "ann", "dpo", "asked")
        assert len(tries) == (2 if failed else 1)
        assert [who for who, _ in manager.breaker(None).failing] == [xxhash.xxh3_64_intdigest(b"bob")]
        assert sum(ended for _, ended, _ in manager.breaker(None).ended) >= 2, "what others did in between still counts"


@pytest.mark.parametrize("mode", ["forced_open", "open", "closed", "", None, 3, ["forced-open"]])
@pytest.mark.parametrize("whose", ["ann", None])
def test_a_mode_that_there_is_not_is_never_stored(path: Path, mode: Any, whose: str | None) -> None:
    """It would read as damage ever after; the refusal names the value and the choices."""
    with opened(path) as store:
        manager = ResetManager(store)
        before = snapshot(store)
        with pytest.raises(InvalidInput, match="choose one of forced-open, forced-closed, metrics-only") as refused:
            manager.force_breaker(whose, mode, **BY)
        assert repr(mode) in str(refused.value)
        assert snapshot(store) == before


# The commit that is refused.


@pytest.mark.parametrize(("scope", "whose"), [("user", "ann"), ("global", "bob")])
def test_a_commit_refused_by_a_breaker_tells_which(path: Path, scope: str, whose: str) -> None:
    """The attempt of one ran while that user's, or another's failure opened the global, breaker."""
    with opened(path) as store:
        manager = ResetManager(
            store, breaker=BreakerPolicy(failures_max=1 if scope == "user" else 9),
            global_breaker=GlobalBreakerPolicy(users_max=1 if scope == "global" else 9))
        with manager.transaction("ann", **BY) as tx:
            tx.apply("same", lambda s: s)
            fail(manager, whose)
            with pytest.raises(BreakerOpen) as refused:
                tx.commit()
        assert (refused.value.scope, refused.value.reason) == (scope, "changed")
        row = manager.inspect(tx.attempt_id)
        assert row is not None
        assert (row.public.outcome, store.version_range("ann")) == ("rolled_back", (1, 1))
        assert ("global" in row.personal.error) == (scope == "global")
        assert len(moves(store)) == 1, "a void end moves nothing"


# Probes.


def test_a_refusal_by_the_global_breaker_leases_no_probe_of_the_user(path: Path, clock: StillClock) -> None:
    """A user whose cooldown is over, while everybody is refused: no commit is made, and the user's slot stays free."""
    disk = Disk()
    with opened(path, clock=clock, opener=disk) as store:
        manager = ResetManager(store, breaker=FAST, global_breaker=GlobalBreakerPolicy(users_max=1, cooldown_s=86_400.0))
        fail(manager)
        clock.wall_us += 2 * HOUR_US
        before, commits = manager.breaker("ann"), disk.commits
        assert refusal(manager).scope == "global"
        assert (manager.breaker("ann"), disk.commits) == (before, commits)


def test_no_dead_owner_is_looked_for_where_nobody_holds_a_probe(
    path: Path, clock: StillClock, monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Looking through the files of marks takes a turn a file: not for every reset, nor while a slot is free."""
    with opened(path, clock=clock) as store:
        manager = ResetManager(store, breaker=BreakerPolicy(failures_max=1, cooldown_s=0.0, successes_to_close=2))
        monkeypatch.setattr(store, "settle_dead", lambda: pytest.fail("looked for dead owners"))
        fail(manager)
        for mode in ("half-open", "closed", "closed"):
            manager.perform_reset("ann", **BY)
            assert manager.breaker("ann").mode == mode


def test_several_successes_close_it_and_a_failure_begins_anew(path: Path, clock: StillClock) -> None:
    """Counted in the store: by other managers, and by the next opening too."""
    policy = BreakerPolicy(failures_max=1, cooldown_s=3_600.0, jitter=0.0, successes_to_close=3)
    with opened(path, clock=clock) as store:
        fail(ResetManager(store, breaker=policy))
    clock.wall_us += 2 * HOUR_US
    for successes in (1, 2):
        with opened(path, clock=clock) as store:
            manager = ResetManager(store, breaker=policy)
            manager.perform_reset("ann", **BY)
            assert (manager.breaker("ann").mode, manager.breaker("ann").successes) == ("half-open", successes)
    with opened(path, clock=clock) as store:
        manager = ResetManager(store, breaker=policy)
        fail(manager)
        assert (manager.breaker("ann").mode, manager.breaker("ann").openings) == ("open", 2)
        clock.wall_us += 4 * HOUR_US
        for _ in range(3):
            assert [event for event, *_ in moves(store)] == ["breaker.opened"] * 2
            manager.perform_reset("ann", **BY)
        assert [event for event, *_ in moves(store)] == ["breaker.opened"] * 2 + ["breaker.closed"]
        assert manager.breaker("ann").mode == "closed"


class EarlierBreaker(msgspec.Struct, frozen=True, array_like=True):
    """A breaker's record as versions before failure rates wrote it."""

    mode: str
    generation: int
    failures: int
    openings: int
    opened_us: int
    opened_wall_us: int
    base: str
    cooled: bool
    probe: str
    probe_owner: int
    failing: tuple[tuple[int, int], ...]
    suspects: tuple[tuple[str, int, int], ...]


@pytest.mark.parametrize("cooled", [False, True])
@pytest.mark.parametrize("key", [keys.breaker(b"ann"), keys.GLOBAL_BREAKER])
def test_a_record_of_the_earlier_shape_refuses_and_then_probes(path: Path, clock: StillClock, cooled: bool, key: bytes) -> None:
    """Its bytes are others than ours would be, and the lease must not take that for somebody faster."""
    earlier = EarlierBreaker("open", 3, 0, 2, clock.wall_us, clock.wall_us, "wall", cooled, "", 0, ((5, 6),), (("x", 1, 2),))
    with opened(path, clock=clock) as store:
        draft = store.draft()
        draft.put(key, codec.pack(earlier))
        store.commit(draft)
        manager = ResetManager(store)
        if not cooled:
            assert refusal(manager).reason == "open"
            clock.wall_us += 3 * HOUR_US
        assert manager.perform_reset("ann", **BY).outcome == "committed"
        assert manager.breaker(None if key == keys.GLOBAL_BREAKER else "ann").mode == "closed"


@pytest.mark.parametrize(("stored", "expected"), [
    ("9ca6636c6f7365640001000000a477616c6cc2a0009090", Breaker(failures=1)),
    ("9ca46f70656e030002cf0006474846204000cf0006474846204001a56576656e74c3a000919205069193a1780102",
     Breaker("open", 3, 0, 2, 1_767_225_600_000_000, 1_767_225_600_000_001, "event", True, "", 0, ((5, 6),), (("x", 1, 2),))),
    ("9ca968616c662d6f70656e0400010708a477616c6cc2a161029090",
     Breaker("half-open", 4, 0, 1, 7, 8, "wall", False, "a", 2)),
])
def test_the_bytes_of_earlier_records_read_for_ever(stored: str, expected: Breaker) -> None:
    """As they were written before there were shares, successes and two windows."""
    assert codec.unpack(Breaker, bytes.fromhex(stored)) == expected


# Other processes, and their deaths.

PROGRAM: Final = """
clock = StillClock(int(sys.argv[2]))
store = opened(path, clock=clock)
manager = ResetManager(store, breaker=BreakerPolicy(failures_max=2, cooldown_s=3600.0, jitter=0.0, successes_to_close=2),
                       global_breaker=GlobalBreakerPolicy(users_max=3), resets_per_minute=3)
def attempt(user, operation=lambda s: s):
    try:
        say(manager.perform_reset(user, operations=[("x", operation)], **BY).outcome)
    except MutationFailed:
        say("failed")
    except BreakerOpen as error:
        say(error.scope, error.reason)
def waits(s):
    say("inside")
    heard()
    return s
"""
IMPORTS: Final = "from tests.regression.scene import StillClock, broken\n"


def program(text: str) -> str:
    return IMPORTS + PROGRAM + text


def manager_of(store: Store) -> ResetManager:
    """A manager as in the programs."""
    return ResetManager(store, breaker=BreakerPolicy(failures_max=2, cooldown_s=3_600.0, jitter=0.0, successes_to_close=2),
                        global_breaker=GlobalBreakerPolicy(users_max=3), resets_per_minute=3)


def test_two_processes_count_together_and_each_meets_what_the_other_opened(path: Path, clock: StillClock) -> None:
    """One failure here, one there: open, in one row, by whoever was second; and so for the global one."""
    with opened(path, clock=clock) as store:
        manager = manager_of(store)
        other = started(program("for user in iter(lambda: heard().strip(), ''):\n    attempt(user, broken)"), path, PRESENT_US)
        assert other.stdin is not None

        def there(user: str) -> str:
            assert other.stdin is not None
            other.stdin.write(user + "\n")
            other.stdin.flush()
            return line(other)

        fail(manager, "ann")
        assert there("ann") == "failed"
        assert refusal(manager, "ann").scope == "user"
        assert there("ann") == "user open"
        assert there("bob") == "failed"
        assert moves(store) == [("breaker.opened", "user", "ann", "failures")]
        fail(manager, "cid")
        assert there("dan") == "global open"
        assert answer(other, "\n") == ""
        assert moves(store) == [("breaker.opened", "user", "ann", "failures"), ("breaker.opened", "global", "", "users")]
        assert store.verify_audit().problem == ""


@pytest.mark.parametrize("base", ["open", "half-open", "leased"])
def test_a_kill_leaves_the_breaker_as_it_was(path: Path, clock: StillClock, base: str) -> None:
    """kill -9 in the middle of another user's reset while it is open or half-open, and in the probe itself."""
    with opened(path, clock=clock) as store:
        fail(manager_of(store), "ann", 2)
        if base != "open":
            clock.wall_us += 2 * HOUR_US
            manager_of(store).perform_reset("ann", **BY)
        before = manager_of(store).breaker("ann")
        rows = moves(store)
    assert (before.mode, before.successes) == (("open", 0) if base == "open" else ("half-open", 1))
    with started(program(f"attempt({'ann' if base == 'leased' else 'bob'!r}, waits)"), path, clock.wall_us) as killed:
        assert line(killed) == "inside"
        killed.send_signal(signal.SIGKILL)
    with opened(path, clock=clock) as store:
        after = manager_of(store).breaker("ann")
        kept = {name: getattr(after, name) for name in ("mode", "failures", "openings", "opened_us", "retry_us", "successes",
                                                       "probe", "probe_owner", "ended")}
        assert kept == {name: getattr(before, name) for name in kept}
        assert (manager_of(store).breaker("bob").mode, manager_of(store).breaker(None).mode) == ("closed", "closed")
        assert moves(store) == rows, "a death opens nothing, and its settlement is no move"
        if base == "leased":
            assert after.suspects == (("admin", 2, 1),)
            assert manager_of(store).perform_reset("ann", **BY).outcome == "committed"
            assert manager_of(store).breaker("ann").mode == "closed"


# The budget.


def budgeted(store: Store, resets_per_minute: int | None = 3, **named: Any) -> ResetManager:
    return ResetManager(store, resets_per_minute=resets_per_minute, **named)


def test_so_many_resets_a_minute_across_users(path: Path, clock: StillClock) -> None:
    """The fourth is refused before anything of it runs, told when, and its row is in the next commit; a minute later it goes."""
    disk = Disk()
    runs: list[Any] = []
    with opened(path, clock=clock, opener=disk) as store:
        manager = budgeted(store)
        for user in USERS[:3]:
            assert manager.perform_reset(user, **BY).outcome == "committed"
            clock.wall_us += 1_000_000
        commits = disk.commits
        error = refusal(manager, "dan", operations=[("note", runs.append)])
        assert (error.scope, error.reason, error.user, runs) == ("budget", "budget", "dan", [])
        assert error.retry_at_us == clock.wall_us - 3_000_000 + 61_000_000
        assert disk.commits == commits, "a refusal costs no commit"
        assert manager.inspect(error.attempt_id or "") is None
        clock.wall_us = error.retry_at_us - 1
        assert refusal(manager, "dan").retry_at_us == error.retry_at_us
        clock.wall_us = error.retry_at_us
        assert manager.perform_reset("dan", **BY).outcome == "committed"
        row = manager.inspect(error.attempt_id or "")
        assert row is not None
        assert (row.public.event, row.public.outcome, row.personal.user) == ("reset.refused", "refused", "dan")
        assert "(budget); try again after 2027-02-09T07:01:01Z" in row.personal.error
        assert manager.breaker("dan").failures == 0


def test_only_committed_resets_are_taken_from_it(path: Path) -> None:
    """Failures, conflicts, dry runs, leaving the block: nothing. First resets and restores: neither refused nor counted."""
    with opened(path) as store:
        manager = budgeted(store, 1, breaker=BreakerPolicy(failures_max=9))
        fail(manager, "ann", 3)
        manager.perform_reset("ann", dry_run=True, **BY)
        with manager.transaction("ann", **BY) as tx:
            tx.apply("same", lambda s: s)
        manager.perform_reset("new", "initial", measurement=weighed("new", 0, 70.0), **BY)
        assert store.engine.get(keys.BUDGET) is None
        assert manager.perform_reset("ann", **BY).version == 2
        assert refusal(manager, "bob").scope == "budget"
        assert manager.restore("ann", to_version=1, **BY).version == 3
        assert manager.perform_reset("newer", "initial", measurement=weighed("newer", 0, 70.0), **BY).version == 1
        assert refusal(manager, "bob").scope == "budget"
        assert budgeted(store, None).perform_reset("bob", **BY).outcome == "committed", "who has none is not asked"


def test_the_commit_asks_the_budget_again(path: Path, clock: StillClock) -> None:
    """Two attempts begin while there is room for one: the second to commit is rolled back, and is no failure of its user."""
    with opened(path, clock=clock) as store:
        manager = budgeted(store, 1)
        with manager.transaction("ann", **BY) as first, manager.transaction("bob", **BY) as second:
            for tx in (first, second):
                tx.apply("same", lambda s: s)
            second.commit()
            with pytest.raises(BreakerOpen) as refused:
                first.commit()
        assert (refused.value.scope, refused.value.reason) == ("budget", "budget")
        assert refused.value.retry_at_us == clock.wall_us + 61_000_000
        row = manager.inspect(first.attempt_id)
        assert row is not None
        assert (row.public.outcome, store.version_range("ann"), store.version_range("bob")) == ("rolled_back", (1, 1), (1, 2))
        assert "budget" in row.personal.error
        assert manager.breaker("ann").failures == 0


def test_a_long_attempt_counts_when_it_commits(path: Path, clock: StillClock) -> None:
    """Begun an hour apart, committed together: they are of one minute."""
    with opened(path, clock=clock) as store:
        manager = budgeted(store, 1)
        with manager.transaction("ann", **BY) as tx:
            clock.wall_us += HOUR_US
            tx.apply("same", lambda s: s)
            manager.perform_reset("bob", **BY)
            with pytest.raises(BreakerOpen):
                tx.commit()


def test_processes_share_the_budget(path: Path, clock: StillClock) -> None:
    """Two here, one there: the next is refused on both sides, and after a restart of both."""
    with opened(path, clock=clock) as store:
        manager = budgeted(store)
        manager.perform_reset("ann", **BY)
        manager.perform_reset("bob", **BY)
        text = "attempt('cid')\nattempt('dan')"
        assert ran(program(text), path, clock.wall_us).split("\n") == ["committed", "budget budget"]
        assert refusal(manager, "eve").scope == "budget"
    with opened(path, clock=clock) as store:
        assert refusal(budgeted(store), "eve").scope == "budget"
        assert budgeted(store, 4).perform_reset("eve", **BY).outcome == "committed"


def test_a_reset_that_was_not_committed_is_not_spent(path: Path) -> None:
    """The budget is taken in the transaction of the reset: when the disk fails, nothing is."""
    disk = Disk()
    with opened(path, opener=disk) as store:
        manager = budgeted(store, 1)

        def ill(_: Commit) -> None:
            raise lmdb.Error("ill")

        disk.once(ill)
        with pytest.raises(StoreUnavailable):
            manager.perform_reset("ann", **BY)
        assert store.engine.get(keys.BUDGET) is None
        assert manager.perform_reset("ann", **BY).outcome == "committed"


@pytest.mark.parametrize("figure", [0, -1, 1.5, True, "3", float("nan")])
def test_a_budget_that_is_none_is_refused(path: Path, figure: Any) -> None:
    with opened(path) as store, pytest.raises(InvalidInput, match=r"resets_per_minute is .* at least 1"):
        ResetManager(store, resets_per_minute=figure)


def test_a_damaged_budget_is_named_and_forgotten_on_an_operator_s_word(path: Path) -> None:
    """Resets that it limits are not made without it; doctor names it, and releasing the global breaker mends it."""
    with opened(path) as store:
        budgeted(store, 1).perform_reset("ann", **BY)
    tear(path, keys.BUDGET)
    with opened(path, readonly=True) as store:
        (finding,) = Checkup(store).run()
        assert (finding.check, finding.level) == ("records", "error")
        assert "the budget of resets a minute" in f"{finding.subject} {finding.problem}"
    with opened(path) as store:
        manager = budgeted(store, 1)
        with pytest.raises(StoreCorrupt):
            manager.perform_reset("bob", **BY)
        assert manager.restore("ann", to_version=1, **BY).outcome == "committed"
        manager.release_breaker("ann", **BY)
        with pytest.raises(StoreCorrupt):
            manager.perform_reset("bob", **BY)
        manager.release_breaker(None, **BY)
        assert manager.perform_reset("bob", **BY).outcome == "committed"
        assert refusal(manager, "cid").scope == "budget"


def gaps(users: int = 6) -> Iterator[Any]:
    """Everybody weighed for three days, and again after two months, all within one minute."""
    for day in range(3):
        for n in range(users):
            yield weighed(f"u{n}", day + n / 86_400, 80.0)
    for n in range(users):
        yield weighed(f"u{n}", 60 + n / 86_400, 80.5 + n)
    for n in range(users):
        yield weighed(f"u{n}", 61 + n / 86_400, 80.6 + n)


def consume(store: Store, rows_at_once: int, stop_after: int | None = None) -> list[tuple[int, str, str]]:
    """Feed the rows as a file with a cursor, so many a commit; (row, status, outcome of the reset) of those reported."""
    manager = budgeted(store, 2)
    told: list[tuple[int, str, str]] = []
    intake = Processor(manager).intake([(b"s" * 16, "rows.csv")], lambda _, o: told.append(
        (len(told), o.status, "" if o.reset is None else o.reset.outcome)))
    for number, measurement in enumerate(gaps()):
        intake.add(0, SourceRow(number, measurement))
        if (number + 1) % rows_at_once == 0:
            intake.flush()
        if number == stop_after:
            return told
    intake.flush()
    return told


def test_in_a_stream_a_refused_reset_falls_back_and_comes_later(tmp_path: Path) -> None:
    """Two a minute of event time: the others keep their state and measurement, and are reset the next day."""
    with opened(tmp_path / "store") as store:
        told = consume(store, 1_000)
        resets = Counter(outcome for _, _, outcome in told if outcome)
        assert resets["refused"] >= 4, "four of six wait"
        refused = [row for row in store.audit() if row.public.event == "reset.refused"]
        assert {row.personal.error.split(" reset of ")[0] for row in refused} == {
            "the budget of resets a minute refused the gap"}
        assert len(told) == 30
        assert store.cursor(b"s" * 16).totals["read"] == 30  # type: ignore[union-attr]
        lately = sorted(row.personal.at_us or 0 for row in store.audit() if row.public.kind == "gap"
                        and row.public.outcome == "committed")
        assert all(third - first >= 60_000_000 for first, third in zip(lately, lately[2:], strict=False))


def test_in_one_commit_failures_take_nothing_from_the_budget(tmp_path: Path) -> None:
    """Two resets fail and a third is committed by a budget of one, all in one batch; the fourth is refused."""
    estimator = Faulty()
    with opened(tmp_path / "store", estimator=estimator) as store:
        processor = Processor(budgeted(store, 1))
        users = ("a", "b", "c", "d")
        processor.process_batch(weighed(user, 0, 80.0) for user in users)
        estimator.failing_kg = {81.0, 81.1}
        outcomes = processor.process_batch(weighed(user, 60, 81.0 + number / 10) for number, user in enumerate(users))
        assert [outcome.reset.outcome for outcome in outcomes if outcome.reset] == [
            "rolled_back", "rolled_back", "committed", "refused"]


def test_what_is_refused_depends_neither_on_the_batches_nor_on_the_wall(tmp_path: Path) -> None:
    """One row a commit, all rows in one, another clock, or cut off and run again: equal stores (INV-09, INV-13)."""
    def cut_off(store: Store) -> None:
        consume(store, 4, stop_after=21)  # two rows are pending and are lost, as in a kill

    ways: dict[str, Callable[[Store], Any]] = {
        "together": lambda store: consume(store, 1_000), "singly": lambda store: consume(store, 1), "cut off": cut_off}
    found = {}
    for days, (name, way) in enumerate(ways.items()):
        clock = StillClock(PRESENT_US + days * 86_400_000_000)
        with opened(tmp_path / name, clock=clock) as store:
            way(store)
        with opened(tmp_path / name, clock=clock) as store:
            if name == "cut off":
                consume(store, 1_000)
            found[name] = (snapshot(store), store.draft().budget())
    assert found["together"] == found["singly"] == found["cut off"]
