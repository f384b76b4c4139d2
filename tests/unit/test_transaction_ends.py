"""How attempts begin and end: what the mark says meanwhile, the row and the error in full, alone, refused and in a batch."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator, MutableMapping
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import pytest
import structlog

from statemachine import (
    BodyWeight,
    BreakerOpen,
    BreakerPolicy,
    CommitInDoubt,
    ConflictError,
    ContractBroken,
    GlobalBreakerPolicy,
    InvalidInput,
    MutationFailed,
    Phase,
    ResetError,
    ResetManager,
    ResetTransaction,
    ResetValidationError,
    Rule,
    Store,
    StoreBusy,
    StoreCorrupt,
    StoreFull,
    Violation,
)
from statemachine.attempt import Attempt, Context
from statemachine.audit import Row
from statemachine.breaker import Breaker, Now
from statemachine.clock import iso, to_us
from statemachine.codec import pack, unpack, unseal
from statemachine.machine import MACHINE
from statemachine.marks import ENDED, RUNNING, SLOTS, WAITING, DeadMarks, Mark
from statemachine.state import require_version
from statemachine.store import keys
from statemachine.store.draft import Draft
from statemachine.store.identities import Origin, identity
from statemachine.store.intents import Intent
from statemachine.store.records import ACCEPTED, HELD, QUARANTINED, Aside, Identity, Pin, Probation
from statemachine.transaction import REASON_CHARS_MAX, TRACE_CHARS_MAX
from tests.regression.scene import BY, DAY_US, PRESENT_US, START, StillClock, broken, fill, opened, tear, weighed
from tests.unit.doubles import Commit, Disk

START_US: Final = to_us(START)
BREAKER: Final = BreakerPolicy(failures_max=2, cooldown_s=600.0, jitter=0.0)
GLOBAL: Final = GlobalBreakerPolicy(users_max=2, cooldown_s=600.0, jitter=0.0)
USERS: Final = ("u", "v w", "x")
COOLED_US: Final = 601_000_000
FULL: Final = Attempt("u", "gap", "the why", "the who", "the trigger", "the input", Now(PRESENT_US, PRESENT_US),
                      event_us=START_US + 3 * DAY_US)

pytestmark = pytest.mark.usefixtures("no_events")


class Bench(NamedTuple):
    """A store of three users with three versions each, over a disk that obeys."""

    store: Store
    manager: ResetManager
    clock: StillClock
    disk: Disk

    @property
    def context(self) -> Context:
        return self.manager.context

    def row(self, user: str = "u") -> Row:
        return list(self.store.audit(user))[-1]

    def breaker(self, user: str = "u") -> Any:
        return self.store.draft().stored_breaker(user.encode())

    def fail(self, *users: str) -> None:
        for user in users:
            with pytest.raises(MutationFailed):
                self.manager.perform_reset(user, operations=[("fail", broken)], **BY)

    def slots(self) -> list[Mark]:
        """Every mark in the file of this process, those that have ended included."""
        with self.store.marks.path.open("rb") as file:
            return DeadMarks(self.store.marks.path, file.fileno()).marks()

    def begun(self, attempt: Attempt = FULL, draft: Draft | None = None) -> ResetTransaction:
        tx = ResetTransaction(self.context, attempt, draft)
        tx.begin()
        return tx


def bench_at(path: Path, **settings: Any) -> Bench:
    clock, disk = StillClock(), Disk()
    store = opened(path, clock=clock, opener=disk, **settings)
    return Bench(store, ResetManager(store, breaker=BREAKER, global_breaker=GLOBAL), clock, disk)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("whole") / "store"
    for user in USERS:
        fill(made, user, [80.0, 80.1, 80.2])
    return made


@pytest.fixture
def path(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "store")
    return tmp_path / "store"


@pytest.fixture
def bench(path: Path) -> Iterator[Bench]:
    made = bench_at(path)
    yield made
    made.disk.commit = None
    made.store.close()


def move(kg: float, s: Any) -> Any:
    return s.replace(x=[kg, 0.0])


def full_disk(_: Commit) -> None:
    raise OSError(errno.ENOSPC, "no space left")


def interrupted_after(real: Commit) -> None:
    real()
    raise KeyboardInterrupt


def interrupted_before(_: Commit) -> None:
    raise KeyboardInterrupt


# The mark


def test_the_mark_is_the_row_that_would_stand_if_the_process_died(bench: Bench) -> None:
    """While user code runs it says so, and no word of it stays once the outcome is durable."""
    tx = bench.begun()
    mark = Mark(RUNNING, "reset.interrupted", "interrupted", tx.attempt_id, "u", "gap", "the input", 3,
                bench.breaker().generation, FULL.event_us or 0, "the trigger", "the why", "the who", "")
    assert bench.slots() == [mark]
    tx.roll_back()
    assert bench.slots() == []


def test_an_attempt_without_an_input_is_suspected_by_its_kind(bench: Bench) -> None:
    tx = bench.begun(FULL._replace(input="", event_us=None))
    assert [(mark.suspect, mark.at_us) for mark in bench.slots()] == [("gap", PRESENT_US)]
    tx.roll_back()


def test_a_dry_run_leaves_no_mark(bench: Bench) -> None:
    tx = bench.begun(FULL._replace(dry_run=True))
    assert bench.slots() == []
    tx.roll_back()


def test_a_durable_intent_says_what_the_mark_says_of_one_that_waits(path: Path) -> None:
    bench = bench_at(path, intents="durable")
    with bench.store:
        tx = bench.begun()
        ((key, value),) = bench.store.engine.scan(keys.INTENT, keys.after(keys.INTENT))
        (mark,) = bench.slots()
        waiting = msgspec.structs.replace(mark, state=WAITING)
        assert unpack(Intent, unseal(key, value)) == Intent(bench.store.committer.owner, waiting)
        tx.roll_back()
        assert list(bench.store.engine.scan(keys.INTENT, keys.after(keys.INTENT))) == []


def test_when_few_marks_are_left_the_next_attempt_writes_those_of_refused_ones(bench: Bench) -> None:
    """So that a caller whom the breaker refuses for hours never runs out of them."""
    bench.manager.force_breaker("u", "forced-open", **BY)
    rows = len(list(bench.store.audit("u")))
    for _ in range(SLOTS - SLOTS // 8 + 2):
        with pytest.raises(BreakerOpen):
            bench.manager.perform_reset("u", **BY)
    assert len(list(bench.store.audit("u"))) - rows > SLOTS // 2
    assert not bench.store.marks.full


# Refused


def test_a_refusal_tells_who_what_and_until_when(bench: Bench) -> None:
    """In its message, in its parts, in the result, and in the row that the next commit writes."""
    bench.fail("u", "u")
    retry_us = PRESENT_US + 600_000_000
    tx = ResetTransaction(bench.context, FULL)
    with pytest.raises(BreakerOpen) as refused:
        tx.begin()
    error = refused.value
    assert (error.scope, error.reason, error.retry_at_us, error.user, error.attempt_id) == (
        "user", "open", retry_us, "u", tx.attempt_id)
    assert str(error) == f"the user circuit breaker refused the gap reset of 'u' (open); try again after {iso(retry_us)}"
    assert tx.result is not None
    assert (tx.result.outcome, tx.result.version, tx.result.error, tx.phase) == ("refused", None, str(error), Phase.BREAKER_OPEN)
    assert (tx.result.delta_x, tx.result.delta_P) == (None, None)
    (mark,) = bench.slots()
    assert (mark.state, mark.event, mark.outcome, mark.error) == (ENDED, "reset.refused", "refused", str(error))
    bench.manager.perform_reset("x", **BY)
    assert bench.slots() == []
    row = bench.row()
    assert (row.public.event, row.public.outcome, row.public.attempt_id) == ("reset.refused", "refused", tx.attempt_id)
    assert row.personal.error[:60] == str(error)[:60]
    tx.__exit__(None, None, None)
    assert bench.row() == row, "leaving the block adds nothing"


@pytest.mark.parametrize(("scope", "user", "remedy"), [
    ("user", "u", "resetguard breaker release u`"), ("user", "v w", "resetguard breaker release 'v w'`"),
    ("global", "u", "resetguard breaker release --global`"),
])
def test_a_breaker_under_an_operators_word_names_the_command_that_ends_it(
    bench: Bench, scope: str, user: str, remedy: str,
) -> None:
    """No time does; the command can be copied as it stands."""
    bench.manager.force_breaker(None if scope == "global" else user, "forced-open", **BY)
    with pytest.raises(BreakerOpen) as refused:
        bench.manager.perform_reset(user, **BY)
    assert (refused.value.scope, refused.value.reason, refused.value.retry_at_us) == (scope, "forced-open", None)
    text = str(refused.value)
    assert text.startswith(f"the {scope} circuit breaker refused the admin reset of {user!r} (forced-open); `")
    assert remedy in text
    assert "try again" not in text


def test_a_budget_that_is_spent_refuses_and_says_until_when(bench: Bench) -> None:
    manager = ResetManager(bench.store, resets_per_minute=1)
    manager.perform_reset("u", **BY)
    with pytest.raises(BreakerOpen, match=r"^the budget of resets a minute refused the admin reset of 'x' \(budget\)") as refused:
        manager.perform_reset("x", **BY)
    assert (refused.value.scope, refused.value.reason) == ("budget", "budget")
    assert refused.value.retry_at_us == PRESENT_US + 61_000_000
    assert manager.restore("x", to_version=1, **BY).outcome == "committed", "undoing harm is not limited"


def test_a_budget_used_up_meanwhile_refuses_the_commit(bench: Bench) -> None:
    """With the instant at which there is room again, and a row that says what was missing."""
    manager = ResetManager(bench.store, resets_per_minute=1)
    with manager.transaction("u", **BY) as tx:
        tx.apply("move", partial(move, 81.0))
        manager.perform_reset("x", **BY)
        with pytest.raises(BreakerOpen) as refused:
            tx.commit()
    error = refused.value
    assert (error.scope, error.reason, error.user, error.attempt_id) == ("budget", "budget", "u", tx.attempt_id)
    assert error.retry_at_us == PRESENT_US + 61_000_000
    assert "'u' was not changed" in str(error)
    assert tx.result is not None
    assert tx.result.outcome == "rolled_back"
    assert isinstance(error.__cause__, ConflictError)
    assert tx.result.error == str(error.__cause__)
    row = bench.row()
    assert (row.public.outcome, row.public.phase) == ("rolled_back", "rolledback")
    assert row.personal.error == "the commit found the budget of resets a minute used up"
    assert bench.slots() == []


def test_a_breaker_that_changed_meanwhile_has_no_instant_though_the_budget_has(bench: Bench) -> None:
    manager = ResetManager(bench.store, resets_per_minute=1)
    with manager.transaction("u", **BY) as tx:
        tx.apply("move", partial(move, 81.0))
        manager.perform_reset("x", **BY)
        manager.force_breaker("u", "forced-open", **BY)
        with pytest.raises(BreakerOpen) as refused:
            tx.commit()
    assert (refused.value.scope, refused.value.reason, refused.value.retry_at_us) == ("user", "changed", None)


@pytest.mark.parametrize("scope", ["user", "global"])
def test_a_breaker_that_changed_meanwhile_refuses_the_commit(bench: Bench, scope: str) -> None:
    with bench.manager.transaction("u", **BY) as tx:
        tx.apply("move", partial(move, 81.0))
        bench.manager.force_breaker("u" if scope == "user" else None, "forced-open", **BY)
        with pytest.raises(BreakerOpen) as refused:
            tx.commit()
    error = refused.value
    assert (error.scope, error.reason, error.retry_at_us) == (scope, "changed", None)
    assert (error.user, error.attempt_id) == ("u", tx.attempt_id)
    rows = [row for row in bench.store.audit("u") if row.public.attempt_id == tx.attempt_id]
    assert [(row.public.event, row.public.outcome) for row in rows] == [("reset.rolled_back", "rolled_back")]
    assert rows[0].personal.error == f"the commit found the {'breaker' if scope == 'user' else 'global breaker'} changed"


def test_a_probe_whose_other_probe_was_taken_gives_its_own_back(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's slot was leased and the global one lost to another: nobody is left to use the user's."""
    bench.fail("u", "u", "x")
    bench.clock.wall_us += COOLED_US
    slow, fast = ResetTransaction(bench.context, Attempt("u", "admin")), ResetTransaction(bench.context, Attempt("v w", "admin"))
    commit, left = bench.store.commit, iter([False, True])

    def second_is_late(draft: Draft) -> list[Row]:
        if next(left, False):
            fast.begin()
        return commit(draft)

    monkeypatch.setattr(bench.store, "commit", second_is_late)
    with pytest.raises(BreakerOpen) as refused:
        slow.begin()
    assert (refused.value.scope, refused.value.reason, refused.value.attempt_id) == ("global", "probing", slow.attempt_id)
    assert (bench.breaker("u").mode, bench.breaker("u").probe, bench.breaker("u").failures) == ("half-open", "", 0)
    assert bench.breaker("").probe == fast.attempt_id
    fast.apply("move", partial(move, 81.0))
    fast.commit()
    assert bench.manager.perform_reset("u", **BY).outcome == "committed"


def test_a_probe_is_leased_with_an_intent_of_its_own(bench: Bench) -> None:
    """Durable before any mutation runs: the slot and who holds it."""
    bench.fail("u", "u")
    bench.clock.wall_us += COOLED_US
    tx = bench.begun(Attempt("u", "admin"))
    ((_, value),) = list(bench.store.engine.scan(keys.INTENT, keys.after(keys.INTENT)))
    intent = unpack(Intent, unseal(keys.intent(tx.attempt_id), value))
    assert (intent.owner, intent.mark.state, intent.mark.attempt_id) == (bench.store.committer.owner, WAITING, tx.attempt_id)
    assert (intent.mark.event, intent.mark.outcome) == ("reset.interrupted", "interrupted")
    assert (bench.breaker().probe, bench.breaker().probe_owner) == (tx.attempt_id, bench.store.committer.owner)
    tx.roll_back()
    assert bench.breaker().probe == ""


def test_the_mark_of_a_probe_stands_before_its_lease(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever finds it knows that no user code ran, and gives the slot back."""
    bench.fail("u", "u")
    bench.clock.wall_us += COOLED_US
    commit, seen = bench.store.commit, []

    def watched(draft: Draft) -> list[Row]:
        seen.extend(bench.slots())
        return commit(draft)

    monkeypatch.setattr(bench.store, "commit", watched)
    tx = bench.begun(FULL._replace(now=None))
    (mark,) = seen
    assert (mark.state, mark.event, mark.outcome, mark.attempt_id) == (
        WAITING, "reset.interrupted", "interrupted", tx.attempt_id)
    tx.roll_back()


@pytest.mark.parametrize(("intents", "commits"), [("process", 0), ("durable", 1)])
def test_an_ordinary_beginning_costs_no_commit_unless_it_is_to_be_durable(path: Path, intents: Any, commits: int) -> None:
    bench = bench_at(path, intents=intents)
    with bench.store:
        before = bench.disk.commits
        tx = bench.begun()
        assert bench.disk.commits - before == commits
        tx.roll_back()
        bench.fail("x", "x")
        bench.clock.wall_us += COOLED_US
        before = bench.disk.commits
        probe = bench.begun(Attempt("x", "admin"))
        assert bench.disk.commits - before == 1, "a probe's lease comes with its intent"
        probe.roll_back()


def test_an_expected_version_that_is_not_there_is_a_conflict_and_nobody_s_failure(bench: Bench) -> None:
    """It moves nothing of the breaker: neither what failed before nor who is suspect."""
    before = Breaker(failures=1, suspects=(("the input", 3, 1),))
    draft = bench.store.draft()
    draft.put(keys.breaker(b"u"), pack(before))
    bench.store.commit(draft)
    tx = ResetTransaction(bench.context, FULL._replace(expect_version=2))
    with pytest.raises(ConflictError) as conflict:
        tx.begin()
    assert tx.result is not None
    assert (tx.result.outcome, tx.phase) == ("conflicted", Phase.ROLLEDBACK)
    row = bench.row()
    assert (row.public.event, row.public.outcome) == ("reset.conflicted", "conflicted")
    assert row.personal.error == tx.result.error == f"ConflictError: {conflict.value}"
    assert (bench.breaker(), bench.slots()) == (before, [])


@pytest.mark.parametrize("scope", ["user", "global"])
@pytest.mark.parametrize("whose", ["another's", "its own"])
def test_a_probe_of_another_process_is_asked_after(
    bench: Bench, scope: str, whose: str, monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where its holder turns out to be dead the slot is free again; a holder in this process is alive."""
    owner = bench.store.committer.owner + (whose == "another's")
    key = keys.breaker(b"u") if scope == "user" else keys.GLOBAL_BREAKER
    held = Breaker(mode="half-open", generation=5, openings=1, probe="0" * 32, probe_owner=owner)

    def put(record: Breaker) -> None:
        draft = bench.store.draft()
        draft.put(key, pack(record))
        bench.store.commit(draft)

    put(held)
    asked: list[bool] = []

    def settled() -> int:
        asked.append(True)
        put(msgspec.structs.replace(held, generation=6, probe="", probe_owner=0))
        return 1

    monkeypatch.setattr(bench.store, "settle_dead", settled)
    if whose == "its own":
        with pytest.raises(BreakerOpen) as refused:
            bench.begun()
        assert (refused.value.scope, refused.value.reason, asked) == (scope, "probing", [])
        return
    tx = bench.begun()
    assert asked == [True]
    assert bench.breaker("u" if scope == "user" else "").probe == tx.attempt_id
    tx.apply("move", partial(move, 81.0))
    assert tx.commit().outcome == "committed"
    assert bench.breaker("u" if scope == "user" else "").mode == "closed"


@pytest.mark.parametrize("scope", ["user", "global"])
def test_a_refused_caller_is_told_the_breaker_s_own_instant(path: Path, scope: str) -> None:
    """With the jitter that was drawn for it."""
    bench = bench_at(path)
    with bench.store:
        never: dict[str, Any] = {"failure_rate_max": None, "cooldown_s": 600.0, "jitter": 1.0}
        manager = ResetManager(
            bench.store, breaker=BreakerPolicy(failures_max=1 if scope == "user" else 9, **never),
            global_breaker=GlobalBreakerPolicy(users_max=1 if scope == "global" else 9, **never))
        bench._replace(manager=manager).fail("u")
        record = bench.breaker("u" if scope == "user" else "")
        with pytest.raises(BreakerOpen) as refused:
            manager.perform_reset("u", **BY)
        assert (refused.value.scope, refused.value.retry_at_us) == (scope, record.retry_us)


def test_of_two_that_may_probe_a_user_the_slower_is_told_so(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.fail("u", "u")
    bench.clock.wall_us += COOLED_US
    slow, fast = (ResetTransaction(bench.context, Attempt("u", "admin")) for _ in range(2))
    commit, first = bench.store.commit, iter([True])

    def late(draft: Draft) -> list[Row]:
        if next(first, False):
            fast.begin()
        return commit(draft)

    monkeypatch.setattr(bench.store, "commit", late)
    with pytest.raises(BreakerOpen) as refused:
        slow.begin()
    assert (refused.value.scope, refused.value.reason) == ("user", "probing")
    fast.roll_back()


# The errors


def test_every_error_of_an_attempt_names_its_user_and_the_attempt(bench: Bench) -> None:
    def sick(s: Any) -> Any:
        return s.replace(x=[5.0, 9.0], P=[[-1.0, 0.0], [0.0, -1.0]])

    tx = bench.begun()
    here = tx.checkpoint(tx.state, "here")
    errors: tuple[tuple[type[ResetError], Any], ...] = ((MutationFailed, broken), (ResetValidationError, sick))
    for error, mutation in errors:
        with pytest.raises(error) as raised:
            tx.apply("spoil", mutation)
        assert (raised.value.user, raised.value.attempt_id) == ("u", tx.attempt_id)
    with pytest.raises(MutationFailed) as returned:
        tx.apply("convert", lambda _: 7)
    assert (returned.value.user, returned.value.attempt_id, returned.value.operation) == ("u", tx.attempt_id, "convert")
    with pytest.raises(ResetValidationError, match="operation 'spoil' on 'u' made an invalid state: ") as spoilt:
        tx.apply("spoil", sick)
    assert len(spoilt.value.violations) > 3
    text = str(spoilt.value).partition("state: ")[2]
    assert text == "; ".join(map(str, spoilt.value.violations[:3])), "the first three, the rest is in the parts"
    tx.roll_back_to(here)
    tx.roll_back()
    new = bench.begun(Attempt("new", "admin"))
    with pytest.raises(InvalidInput) as nothing:
        new.roll_back_to(new.checkpoint(None, "nothing"))
    assert (nothing.value.user, nothing.value.attempt_id) == ("new", new.attempt_id)
    new.roll_back()
    with pytest.raises(ConflictError) as conflict:
        bench.begun(FULL._replace(expect_version=2))
    assert (conflict.value.user, conflict.value.attempt_id) == ("u", bench.row().public.attempt_id)
    assert "'u' is at version 3, not 2" in str(conflict.value)


@pytest.mark.parametrize("version", [True, 1.0, "1", None])
def test_a_version_is_a_whole_number(version: Any) -> None:
    with pytest.raises(InvalidInput) as refused:
        require_version("to_version", version, "u")
    assert refused.value.user == "u"
    assert f"to_version is {version!r}; it must be a whole number" in str(refused.value)
    require_version("to_version", 3, "u")


def test_the_error_of_a_conflict_says_that_nothing_was_changed(bench: Bench) -> None:
    tx = bench.begun()
    tx.apply("move", partial(move, 81.0))
    bench.manager.perform_reset("u", **BY)
    with pytest.raises(ConflictError) as conflict:
        tx.commit()
    assert "'u' was not changed" in str(conflict.value)
    assert (conflict.value.user, conflict.value.attempt_id) == ("u", tx.attempt_id)
    cause = conflict.value.__cause__
    assert isinstance(cause, ConflictError)
    assert tx.result is not None
    assert (tx.result.outcome, tx.result.error, tx.result.version, tx.phase) == (
        "conflicted", str(cause), None, Phase.ROLLEDBACK)
    row = bench.row()
    assert (row.public.event, row.public.outcome, row.public.phase) == ("reset.conflicted", "conflicted", "rolledback")
    assert row.personal.error == "the commit found a conflict"
    assert bench.slots() == []


def test_a_commit_that_failed_is_rolled_back_and_its_row_is_written_later(bench: Bench) -> None:
    tx = bench.begun()
    tx.apply("move", partial(move, 81.0))
    bench.disk.commit = full_disk
    with pytest.raises(StoreFull) as full:
        tx.commit()
    assert (full.value.user, full.value.attempt_id) == ("u", tx.attempt_id)
    assert tx.result is not None
    assert (tx.result.outcome, tx.result.error, tx.result.version, tx.phase) == (
        "rolled_back", str(full.value), None, Phase.ROLLEDBACK)
    (mark,) = bench.slots()
    assert (mark.state, mark.event, mark.outcome) == (ENDED, "reset.rolled_back", "rolled_back")
    assert mark.error == f"StoreFull: {full.value}"[:len(mark.error)]
    assert mark.error
    bench.disk.commit = None
    bench.manager.perform_reset("x", **BY)
    assert (bench.row().public.event, bench.row().public.attempt_id) == ("reset.rolled_back", tx.attempt_id)
    assert bench.slots() == []


def test_a_rollback_that_cannot_be_written_is_marked_with_its_own_error(bench: Bench) -> None:
    """The mutation's, not the disk's; where there was none, the disk's."""
    for error, text in ((ValueError("bad luck"), "ValueError: bad luck"), (None, "StoreFull: ")):
        tx = bench.begun()
        bench.disk.commit = full_disk
        result = tx.roll_back(error)
        bench.disk.commit = None
        assert (result.outcome, result.error) == ("rolled_back", text if error else "")
        (mark,) = bench.slots()
        assert (mark.state, mark.event, mark.outcome, mark.error[:len(text)]) == (
            ENDED, "reset.rolled_back", "rolled_back", text)
        bench.manager.perform_reset("x", **BY)
        assert bench.row().personal.error[:len(text)] == text


def test_an_interrupt_after_the_commit_is_doubt_and_ends_the_attempt(bench: Bench) -> None:
    tx = bench.begun()
    tx.apply("move", partial(move, 81.0))
    bench.disk.once(interrupted_after)
    with pytest.raises(CommitInDoubt) as doubt:
        tx.commit()
    assert (doubt.value.user, doubt.value.attempt_id) == ("u", tx.attempt_id)
    for end in (tx.commit, tx.roll_back):
        with pytest.raises(ContractBroken) as broke:
            end()
        assert (broke.value.user, broke.value.attempt_id) == ("u", tx.attempt_id)
        assert tx.attempt_id in str(broke.value)
    tx.__exit__(CommitInDoubt, doubt.value, None)
    found = bench.manager.inspect(tx.attempt_id)
    assert found is not None
    assert found.public.outcome == "committed"
    assert bench.store.version_range("u") == (1, 4)


def test_an_interrupt_that_only_the_log_can_place_is_doubt_too(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """It came between the committer's return and the attempt's: the outcome is durable, so it is not called undone."""
    commit = bench.store.commit

    def late(draft: Draft) -> list[Row]:
        commit(draft)
        raise KeyboardInterrupt

    tx = bench.begun()
    tx.apply("move", partial(move, 81.0))
    monkeypatch.setattr(bench.store, "commit", late)
    with pytest.raises(CommitInDoubt, match=f"attempt {tx.attempt_id} on 'u' was interrupted after its commit") as doubt:
        tx.commit()
    assert (doubt.value.user, doubt.value.attempt_id) == ("u", tx.attempt_id)
    assert isinstance(doubt.value.__cause__, KeyboardInterrupt)
    with pytest.raises(ContractBroken):
        tx.roll_back()


def test_an_interrupt_before_the_commit_is_a_rollback(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def early(_: Draft) -> list[Row]:
        raise KeyboardInterrupt

    tx = bench.begun()
    tx.apply("move", partial(move, 81.0))
    with monkeypatch.context() as patch:
        patch.setattr(bench.store, "commit", early)
        with pytest.raises(KeyboardInterrupt):
            tx.commit()
    assert tx.phase is Phase.ROLLEDBACK
    bench.manager.perform_reset("x", **BY)
    row = bench.manager.inspect(tx.attempt_id)
    assert row is not None
    assert (row.public.event, row.public.outcome) == ("reset.rolled_back", "rolled_back")
    assert row.personal.error.startswith("KeyboardInterrupt")


def test_doubt_that_nothing_settles_is_marked_as_interrupted(path: Path) -> None:
    """The next opening finds the commit undone, and writes that row."""
    bench = bench_at(path)
    tx = bench.begun()
    tx.apply("move", partial(move, 81.0))

    def gone(_: Commit) -> None:
        bench.disk.fail()
        bench.disk.gone = True
        raise OSError(errno.EIO, "gone")

    bench.disk.once(gone)
    with pytest.raises(CommitInDoubt) as doubt:
        tx.commit()
    assert (doubt.value.user, doubt.value.attempt_id) == ("u", tx.attempt_id)
    with pytest.raises(ContractBroken):
        tx.commit()
    (mark,) = bench.slots()
    assert (mark.state, mark.event, mark.outcome) == (ENDED, "reset.interrupted", "interrupted")
    assert mark.error.startswith("CommitInDoubt: ")
    bench.store.close()
    with opened(path) as store:
        row = store.inspect(tx.attempt_id)
        assert row is not None
        assert (row.public.event, row.public.outcome) == ("reset.interrupted", "interrupted")


def test_an_attempt_that_could_not_begin_leaves_its_row(bench: Bench) -> None:
    """An error of the store between the mark and the first operation."""
    bench.fail("u", "u")
    bench.clock.wall_us += COOLED_US
    tx = ResetTransaction(bench.context, FULL._replace(now=None))
    bench.disk.commit = full_disk
    with pytest.raises(StoreFull) as full:
        tx.begin()
    assert (full.value.user, full.value.attempt_id) == ("u", tx.attempt_id)
    bench.disk.commit = None
    (mark,) = bench.slots()
    assert (mark.state, mark.event, mark.outcome) == (ENDED, "reset.rolled_back", "rolled_back")
    assert mark.error[:40] == f"StoreFull: {full.value}"[:40]
    bench.manager.perform_reset("x", **BY)
    row = bench.manager.inspect(tx.attempt_id)
    assert row is not None
    assert row.public.outcome == "rolled_back"


# An error or an interrupt at an awkward moment


def test_an_error_of_ours_in_the_block_names_the_attempt_whose_row_it_has(bench: Bench) -> None:
    """Unless it names another already, or the attempt has no row; errors of others are left as they are."""
    def raised(error: BaseException, **settings: Any) -> str:
        tx = bench.manager.transaction("u", **BY, **settings)
        with pytest.raises(type(error)), tx:
            raise error
        return tx.attempt_id

    bare, dry, named = StoreFull("full"), StoreFull("full"), StoreFull("full")
    named.user, named.attempt_id = "x", "another"
    attempt_id = raised(bare)
    assert (bare.user, bare.attempt_id) == ("u", attempt_id)
    raised(dry, dry_run=True)
    assert (dry.user, dry.attempt_id) == (None, None)
    raised(named)
    assert (named.user, named.attempt_id) == ("x", "another")
    foreign = ValueError("x")
    raised(foreign)
    assert not hasattr(foreign, "attempt_id")


@pytest.mark.parametrize("how", ["alone", "in a batch", "dry"])
def test_an_interrupt_between_the_commit_and_its_return(bench: Bench, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is doubt where something is durable, and an interrupt where nothing is."""
    tx = bench.begun(FULL._replace(dry_run=how == "dry"), bench.store.draft() if how == "in a batch" else None)
    tx.apply("move", partial(move, 81.0))

    def late(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(tx, "_finished", late)
    if how != "alone":
        with pytest.raises(KeyboardInterrupt):
            tx.commit()
        return
    with pytest.raises(CommitInDoubt, match=f"attempt {tx.attempt_id} on 'u' was interrupted after its commit") as doubt:
        tx.commit()
    assert (doubt.value.user, doubt.value.attempt_id) == ("u", tx.attempt_id)
    assert isinstance(doubt.value.__cause__, KeyboardInterrupt)
    with pytest.raises(ContractBroken):
        tx.roll_back()


def test_there_is_doubt_only_about_a_commit(bench: Bench) -> None:
    """Not about a rollback that is durable, nor where an error of ours has said how it ended."""
    tx = bench.begun()
    tx.apply("move", partial(move, 81.0))
    tx.roll_back()
    tx.tell_doubt(KeyboardInterrupt())
    done = bench.begun()
    done.tell_doubt(KeyboardInterrupt())
    done.apply("move", partial(move, 81.0))
    done.commit()
    done.tell_doubt(StoreFull("full"))
    with pytest.raises(CommitInDoubt):
        done.tell_doubt(KeyboardInterrupt())
    draft = bench.store.draft()
    one_of_many = bench.begun(draft=draft)
    one_of_many.apply("move", partial(move, 82.0))
    one_of_many.commit()
    bench.store.commit(draft)
    one_of_many.tell_doubt(KeyboardInterrupt())  # whoever commits the batch is told


@pytest.mark.parametrize("translated", [False, True])
def test_an_interrupt_while_a_rollback_is_written_reaches_the_caller(
    bench: Bench, translated: bool, monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where the store has made an error of its own of it; the row is written by the next commit."""
    def cut_off(_: Draft) -> list[Row]:
        if translated:
            message = "cut off"
            raise StoreBusy(message) from KeyboardInterrupt()
        raise KeyboardInterrupt

    tx, luck = bench.begun(), ValueError("bad luck")
    with monkeypatch.context() as patch:
        patch.setattr(bench.store, "commit", cut_off)
        with pytest.raises(KeyboardInterrupt) as caught:
            tx.roll_back(luck)
    if translated:
        assert caught.value.__cause__ is luck
    (mark,) = bench.slots()
    assert (mark.state, mark.event, mark.error) == (ENDED, "reset.rolled_back", "ValueError: bad luck")
    bench.manager.perform_reset("x", **BY)
    assert bench.row().public.outcome == "rolled_back"


def test_a_candidate_that_cannot_be_stored_is_the_mutation_s_fault(path: Path) -> None:
    """Before anything rests on it."""
    class Mute(BodyWeight):
        def encode(self, state: Any) -> bytes:
            return "text" if state.kalman.x0 == 77.0 else super().encode(state)  # type: ignore[return-value]

    with opened(path, estimator=Mute()) as store:
        tx = ResetManager(store).transaction("u", **BY)
        with tx:
            with pytest.raises(MutationFailed, match=r"^operation 'mute' on 'u' returned a state that .* as str") as failed:
                tx.apply("mute", partial(move, 77.0))
            assert (failed.value.operation, failed.value.user, failed.value.attempt_id) == ("mute", "u", tx.attempt_id)


# Dry runs


def test_a_dry_run_ends_as_one(bench: Bench) -> None:
    """With the deltas that the reset would have; nothing more can be done with it."""
    tx = bench.begun(FULL._replace(dry_run=True))
    tx.apply("move", partial(move, 85.0))
    result = tx.commit()
    assert (result.outcome, result.version, result.base_version, result.error) == ("dry_run", None, 3, "")
    assert result.delta_x is not None
    assert result.delta_x[0] == pytest.approx(85.0 - 80.2, abs=0.2)
    assert result.delta_P == (0.0, 0.0, 0.0, 0.0)
    assert (tx.result, tx.phase) == (result, Phase.ROLLEDBACK)


def test_a_dry_run_that_fails_says_why(bench: Bench) -> None:
    tx = bench.begun(FULL._replace(dry_run=True))
    result = tx.roll_back(ValueError("no"))
    assert (result.outcome, result.version, result.error) == ("rolled_back", None, "ValueError: no")


def test_an_attempt_on_a_user_that_cannot_be_read_leaves_nothing(path: Path) -> None:
    """It has not begun: no mark, no row, and the state's own error."""
    tear(path, keys.head(b"u"))
    bench = bench_at(path)
    with bench.store:
        rows = len(list(bench.store.audit()))
        with pytest.raises(StoreCorrupt):
            bench.begun()
        assert (bench.slots(), len(list(bench.store.audit()))) == ([], rows)


@pytest.mark.parametrize("live", [True, False])
def test_attempts_of_a_live_manager_fire_the_machine_itself(bench: Bench, live: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    (transition,) = MACHINE.events["commit"].transitions["VALIDATED"]
    monkeypatch.setattr(transition, "before", [lambda: called.append("commit")])
    ResetManager(bench.store, live=live).perform_reset("u", **BY)
    assert called == ["commit"] * live


# What is recorded


def test_the_row_of_a_commit_is_whole(path: Path) -> None:
    """Every part of it, each from where it belongs; texts are cut at their limits."""
    bench = bench_at(path)
    bench.clock.ticks = 1_000_000
    with bench.store, structlog.contextvars.bound_contextvars(trace_id="t" * 100):
        first = bench.manager.perform_reset("u", **BY)
        bench.fail("u")
        attempt = FULL._replace(reason="r" * 600)
        with ResetTransaction(bench.context, attempt) as tx:
            tx.apply("move", partial(move, 81.0))
            result = tx.commit()
        row = bench.row()
        public, personal = row.public, row.personal
        assert (public.event, public.outcome, public.phase, public.kind) == ("reset.committed", "committed", "committed", "gap")
        assert (public.attempt_id, public.base_version, public.new_version) == (tx.attempt_id, 4, 5)
        assert (public.head_author, public.breaker_mode, public.breaker_generation) == (first.attempt_id, "closed", 0)
        assert public.trace_id == "t" * TRACE_CHARS_MAX
        assert public.duration_us is not None
        assert 0 < public.duration_us < 50
        assert (personal.user, personal.actor, personal.trigger, personal.error) == ("u", "the who", "the trigger", "")
        assert personal.reason == "r" * REASON_CHARS_MAX
        assert (personal.at_us, personal.details, personal.violations) == (FULL.event_us, {}, ())
        assert (personal.delta_x, personal.delta_P) == (result.delta_x, result.delta_P)
        assert result.delta_x is not None
        assert result.delta_x[0] == pytest.approx(81.0 - 80.2, abs=0.2)
        (operation,) = personal.operations
        assert (operation.name, operation.ok) == ("move", True)
        assert 0 < operation.duration_us < 50
        assert (result.outcome, result.user, result.kind, result.base_version, result.version) == ("committed", "u", "gap", 4, 5)
        assert (result.error, result.operations, result.withheld) == ("", (operation,), False)


def test_the_event_of_an_attempt_carries_the_caller_s_contextvars(path: Path) -> None:
    seen: list[dict[str, Any]] = []

    def keep(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        seen.append(dict(event))
        raise structlog.DropEvent

    structlog.configure(processors=[keep])
    bench = bench_at(path)
    with bench.store, structlog.contextvars.bound_contextvars(request="r-1"):
        bench.begun().roll_back()
    assert [event.get("request") for event in seen if event["event"] == "reset.rolled_back"] == ["r-1"]


def test_an_operation_that_fails_is_recorded_as_failed(bench: Bench) -> None:
    """With the violations of the candidate, where that is why."""
    tx = bench.begun()
    with pytest.raises(MutationFailed, match=r"^operation 'fail' on 'u' raised KeyError: ") as failed:
        tx.apply("fail", broken)
    assert failed.value.operation == "fail"
    with pytest.raises(ResetValidationError) as refused:
        tx.apply("spoil", partial(move, 5.0))
    assert tx.violations == refused.value.violations
    assert refused.value.operation == "spoil"
    assert tx.roll_back(refused.value).violations == refused.value.violations
    row = bench.row()
    assert [(each.name, each.ok) for each in row.personal.operations] == [("fail", False), ("spoil", False)]
    assert row.personal.violations == refused.value.violations
    with pytest.raises(MutationFailed, match=r"^operation 'convert' on 'u' returned a int, not a state$"):
        bench.begun().apply("convert", lambda _: 7)


def test_what_was_just_read_need_not_be_read_again(bench: Bench) -> None:
    """A head and a state that are given are what the attempt starts from."""
    loaded, head = bench.store.load("u", 2), bench.store.head("u")
    assert loaded is not None
    assert head is not None
    tx = ResetTransaction(bench.context, FULL)
    tx.begin(msgspec.structs.replace(head, version=2), loaded.state)
    assert tx.base_version == 2
    assert tx.before is tx.state is loaded.state
    tx.roll_back()
    tx = ResetTransaction(bench.context, FULL)
    tx.begin(head)
    assert tx.before == bench.store.estimator.decode(head.state)
    tx.roll_back()


def test_a_row_without_a_trace_or_a_head_says_so(bench: Bench) -> None:
    tx = bench.begun(Attempt("new", "admin"))
    tx.roll_back(ValueError("no"))
    public = bench.row("new").public
    assert (public.trace_id, public.head_author, public.base_version, public.new_version) == ("", "", 0, None)
    assert bench.row("new").personal.error == "ValueError: no"


@pytest.mark.parametrize(("kind", "event"), [
    ("revocation", "reset.revoked"), ("restore", "state.restored"), ("rebuild", "state.rebuilt"), ("gap", "reset.committed"),
])
def test_the_event_of_a_commit_is_its_kinds(bench: Bench, kind: str, event: str) -> None:
    with ResetTransaction(bench.context, FULL._replace(kind=kind)) as tx:
        tx.apply("move", partial(move, 81.0))
        tx.commit()
    assert (bench.row().public.event, bench.row().public.outcome) == (event, "committed")


@pytest.mark.parametrize(("error", "failures"), [
    (ValueError("x"), 1), (None, 0), (KeyboardInterrupt(), 0), (StoreFull("full"), 0), (MutationFailed("m", operation="o"), 1),
    (ResetValidationError("v", operation="o", violations=()), 1),
])
def test_what_counts_as_a_failure_of_the_reset(bench: Bench, error: BaseException | None, failures: int) -> None:
    """An error of the caller's code or of its result; not one of the store, of a conflict, or of leaving."""
    bench.begun().roll_back(error)
    assert bench.breaker().failures == failures


@pytest.mark.parametrize("fails", [False, True])
def test_an_attempt_that_ends_clears_the_suspicion_of_its_input(bench: Bench, fails: bool) -> None:
    """Of that input at that base version, and of no other."""
    draft = bench.store.draft()
    draft.put(keys.breaker(b"u"), pack(Breaker(suspects=(("the input", 3, 1), ("the input", 2, 1), ("another", 3, 1)))))
    bench.store.commit(draft)
    tx = bench.begun()
    tx.apply("move", partial(move, 81.0))
    if fails:
        tx.roll_back(ValueError("no"))
    else:
        tx.commit()
    assert bench.breaker().suspects == (("the input", 2, 1), ("another", 3, 1))


def test_an_input_that_killed_the_process_too_often_is_refused(bench: Bench) -> None:
    draft = bench.store.draft()
    draft.put(keys.breaker(b"u"), pack(Breaker(suspects=(("the input", 3, 3), ("another", 3, 2)))))
    bench.store.commit(draft)
    with pytest.raises(BreakerOpen) as refused:
        bench.begun()
    assert (refused.value.scope, refused.value.reason) == ("user", "suspect")
    bench.begun(FULL._replace(input="another")).roll_back()


def test_a_success_counts_for_the_breaker(bench: Bench) -> None:
    bench.fail("u")
    assert bench.breaker().failures == 1
    bench.manager.perform_reset("u", **BY)
    assert bench.breaker().failures == 0


# Checkpoints, and what the rules are told


def test_a_checkpoint_of_another_state_is_an_operation_of_its_name(bench: Bench) -> None:
    with bench.manager.transaction("u", **BY) as tx:
        good = tx.checkpoint(move(81.0, tx.state), "good")
        assert (good.name, good.state) == ("good", tx.state)
        assert tx.checkpoint(tx.state, "same").name == "same"
        tx.apply("move", partial(move, 82.0))
        tx.roll_back_to(good)
        assert tx.state == good.state
        result = tx.commit()
    assert [operation.name for operation in result.operations] == ["good", "move", "roll back to 'good'"]
    assert result.delta_x is not None


def test_a_candidate_is_judged_by_the_later_of_two_presents(bench: Bench) -> None:
    """That of its begin, and that of the clock, which has gone on since."""
    for now_us, wall_us in ((PRESENT_US, PRESENT_US + 60 * DAY_US), (PRESENT_US + 60 * DAY_US, PRESENT_US)):
        bench.clock.wall_us = wall_us
        tx = bench.begun(FULL._replace(now=Now(now_us, now_us)))
        later = tx.apply("wait", lambda s: s.replace(at_us=PRESENT_US + 59 * DAY_US))
        assert bench.store.estimator.at_us(later) == PRESENT_US + 59 * DAY_US
        with pytest.raises(ResetValidationError):
            tx.apply("wait", lambda s: s.replace(at_us=PRESENT_US + 61 * DAY_US))
        tx.roll_back()


def test_rules_are_told_what_has_passed_them_already_and_the_whole_is_judged_by_itself(path: Path) -> None:
    """The before-image only where it passed these very rules; after it each candidate; nothing at the commit."""
    told: list[Any] = []

    def curious(_: Any, __: int | None, known: Any) -> list[Violation]:
        told.append(known)
        return []

    for known_before in (False, True):
        with opened(path, rules=[Rule("curious", curious)]) as store:
            with ResetManager(store).transaction("u", **BY) as tx:
                told.clear()
                before = tx.state
                first = tx.apply("one", partial(move, 81.0))
                tx.apply("two", partial(move, 82.0))
                tx.commit()
            assert told == [before if known_before else None, first, None]


def test_a_whole_that_breaks_a_rule_is_named_so(path: Path) -> None:
    """Each operation had passed; the commit judges the state once more, by itself."""
    strict: list[bool] = []

    def changing(_: Any, __: int | None, ___: Any) -> list[Violation]:
        return [Violation("changing", "state", "v", "l")] if strict else []

    with opened(path, rules=[Rule("changing", changing)]) as store:
        tx = ResetManager(store).transaction("u", **BY)
        tx.begin()
        tx.apply("move", partial(move, 81.0))
        strict.append(True)
        with pytest.raises(ResetValidationError) as refused:
            tx.commit()
        assert refused.value.operation == "the whole"
        tx.roll_back(refused.value)
        assert store.version_range("u") == (1, 3)


# The version


def head_of(bench: Bench, user: str = "u") -> Any:
    found = bench.store.head(user)
    assert found is not None
    return found


def pin_of(bench: Bench, user: bytes = b"u") -> Pin | None:
    return bench.store.draft().pin(user)


def commit(bench: Bench, attempt: Attempt, kg: float, **settings: Any) -> ResetTransaction:
    tx = bench.begun(attempt)
    for name, value in settings.items():
        setattr(tx, name, value)
    tx.apply("move", partial(move, kg))
    tx.commit()
    return tx


def test_a_reset_begins_probation_and_pins_what_stood_before(bench: Bench) -> None:
    """A second one under probation keeps the pin; one after it pins anew; one without probation drops it."""
    before = head_of(bench)
    assert before.probation is not None, "its first state is on probation still"
    first = commit(bench, FULL._replace(event_us=START_US + 30 * DAY_US), 81.0)
    head = head_of(bench)
    assert head.probation == Probation(START_US + 30 * DAY_US, 0, "gap", 4)
    assert pin_of(bench) == Pin(3, before.state, before.kernel)
    assert (head.author, head.reset_us, head.run_since_us) == (first.attempt_id, START_US + 30 * DAY_US, before.run_since_us)
    commit(bench, FULL._replace(kind="admin", event_us=START_US + 40 * DAY_US), 82.0)
    assert head_of(bench).probation == Probation(START_US + 40 * DAY_US, 0, "admin", 5)
    assert pin_of(bench) == Pin(3, before.state, before.kernel)
    stood = head_of(bench)
    commit(bench, FULL._replace(event_us=START_US + 54 * DAY_US), 83.0, run_since_us=START_US + 7)
    assert pin_of(bench) == Pin(5, stood.state, stood.kernel), "fourteen days have passed"
    assert head_of(bench).run_since_us == START_US + 7
    commit(bench, FULL._replace(event_us=START_US + 55 * DAY_US), 84.0, probation=False)
    assert (head_of(bench).probation, pin_of(bench)) == (None, None)
    commit(bench, FULL._replace(event_us=START_US + 56 * DAY_US), 84.0, probation=False)
    assert (head_of(bench).probation, pin_of(bench)) == (None, None)
    commit(bench, FULL._replace(event_us=START_US + 57 * DAY_US), 85.0)
    pin = pin_of(bench)
    assert pin is not None
    assert pin.version == 8


def test_a_first_state_has_nothing_before_it_to_be_pinned(bench: Bench) -> None:
    state = bench.store.load("u")
    assert state is not None
    tx = bench.begun(Attempt("new", "initial", event_us=START_US))
    tx.apply("start", lambda _: state.state)
    tx.commit()
    assert pin_of(bench, b"new") == Pin(0, b"", bench.store.estimator.kernel)
    head = head_of(bench, "new")
    assert head.probation == Probation(START_US, 0, "initial", 1)
    assert (head.run_since_us, head.reset_us, head.version) == (START_US, START_US, 1)


def test_a_first_state_may_stand_without_probation(bench: Bench) -> None:
    state = bench.store.load("u")
    assert state is not None
    tx = bench.begun(Attempt("new", "rebuild"))
    assert (tx.result, tx.head) == (None, None)
    tx.probation = False
    tx.apply("start", lambda _: state.state)
    tx.commit()
    assert (head_of(bench, "new").probation, pin_of(bench, b"new")) == (None, None)


def test_a_state_that_goes_back_in_time_keeps_later_measurements_late(bench: Bench) -> None:
    """The greatest instant ever seen stays known, whatever was known before."""
    loaded = bench.store.load("u")
    assert loaded is not None
    seen_us = bench.store.estimator.at_us(loaded.state)
    bench.manager.restore("u", to_version=1, **BY)
    assert bench.store.draft().aside(b"u") == Aside(0, seen_us)
    draft = bench.store.draft()
    draft.put(keys.aside(b"x"), pack(Aside(4, seen_us + 9)))
    bench.store.commit(draft)
    bench.manager.restore("x", to_version=1, **BY)
    assert bench.store.draft().aside(b"x") == Aside(4, seen_us + 9)
    bench.manager.perform_reset("x", **BY)
    assert bench.store.draft().aside(b"x") == Aside(4, seen_us + 9)
    bench.manager.perform_reset("v w", **BY)
    assert bench.store.draft().aside(b"v w") is None


# The measurements that a reset takes in, or leaves out


def measured(bench: Bench, day: float, kg: float, disposition: int = HELD, reason: str = "") -> tuple[bytes, Identity]:
    incoming = bench.manager.incoming(weighed("u", day, kg), Origin())
    made = identity(incoming.measurement, incoming.reading, Origin(), disposition)
    return incoming.key, msgspec.structs.replace(made, reason=reason)


def test_measurements_move_with_the_commit_and_the_row_counts_them(bench: Bench) -> None:
    """In and out of quarantine; what was never seen is recorded; what stays where it was does not count."""
    old = [key for key, _ in bench.store.draft().identities(b"u", -1)]
    draft, held, other = bench.store.draft(), measured(bench, 5, 90.0), measured(bench, 5.5, 90.0)
    for each in (held, other):
        draft.put_identity(b"u", *each)
    draft.put(keys.aside(b"u"), pack(Aside(2, START_US + 5 * DAY_US)))
    bench.store.commit(draft)
    known = dict(bench.store.draft().identities(b"u", -1))
    unseen, stray = measured(bench, 6, 81.0, HELD, "why"), measured(bench, 7, 99.0)
    tx = bench.begun()
    tx.details = {"mine": 1}
    tx.apply("move", partial(move, 81.0))
    tx.leave_out(*stray, "a stray one")
    for key in (unseen[0], old[0], held[0], other[0]):
        tx.admit(key, dict([unseen]).get(key) or known[key])
    for key in old[1:]:
        tx.leave_out(key, known[key], "does not fit")
    tx.commit()
    after = dict(bench.store.draft().identities(b"u", -1))
    found = {key: (kept.disposition, kept.reason) for key, kept in after.items()}
    assert found == {
        old[0]: (ACCEPTED, ""), old[1]: (QUARANTINED, "does not fit"), old[2]: (QUARANTINED, "does not fit"),
        held[0]: (ACCEPTED, ""), other[0]: (ACCEPTED, ""), unseen[0]: (ACCEPTED, ""), stray[0]: (QUARANTINED, "a stray one"),
    }
    assert all(after[key].values == known[key].values for key in known)
    assert bench.store.draft().aside(b"u") == Aside(3, START_US + 7 * DAY_US)
    details = bench.row().personal.details
    assert details == {"mine": 1, "released_from_quarantine": 2, "withdrawn_to_quarantine": 2}
    assert tx.admitted == (unseen[0], old[0], held[0], other[0])
    assert list(bench.store.history("u"))[-1].admitted == 4


@pytest.mark.parametrize("released", [True, False])
def test_a_transfer_one_way_is_counted_as_well(bench: Bench, released: bool) -> None:
    draft, held = bench.store.draft(), measured(bench, 5, 90.0)
    draft.put_identity(b"u", *held)
    draft.put(keys.aside(b"u"), pack(Aside(1, START_US + 5 * DAY_US)))
    bench.store.commit(draft)
    tx = bench.begun()
    tx.apply("move", partial(move, 81.0))
    if released:
        tx.admit(*held)
    else:
        key, kept = bench.store.draft().identities(b"u", -1)[0]
        tx.leave_out(key, kept, "no")
    tx.commit()
    details = bench.row().personal.details
    assert details == {"released_from_quarantine": int(released), "withdrawn_to_quarantine": int(not released)}


def test_what_a_batch_has_taken_in_is_seen_by_what_follows_in_it(bench: Bench) -> None:
    draft, new = bench.store.draft(), measured(bench, 6, 81.0)
    tx = bench.begun(draft=draft)
    tx.apply("move", partial(move, 81.0))
    tx.admit(*new)
    tx.commit()
    assert [kept.disposition for key, kept in draft.identities(b"u", -1) if key == new[0]] == [ACCEPTED]
    draft.drop()


def test_a_new_reason_is_no_transfer(bench: Bench) -> None:
    """Held becomes quarantined: it is kept aside before and after."""
    draft, held = bench.store.draft(), measured(bench, 5, 90.0)
    draft.put_identity(b"u", *held)
    draft.put(keys.aside(b"u"), pack(Aside(1, START_US + 5 * DAY_US)))
    bench.store.commit(draft)
    tx = bench.begun()
    tx.apply("move", partial(move, 81.0))
    tx.leave_out(*held, "too far")
    tx.commit()
    kept = bench.store.draft().identity(held[0])
    assert kept is not None
    assert (kept.disposition, kept.reason) == (QUARANTINED, "too far")
    assert bench.row().personal.details == {}
    assert bench.store.draft().aside(b"u") == Aside(1, START_US + 5 * DAY_US)


# In a batch


def test_an_outcome_in_a_batch_is_durable_with_the_batch(bench: Bench) -> None:
    """Until then the mark stands, as of one that waits; nothing is stored of it."""
    draft = bench.store.draft()
    tx = bench.begun(draft=draft)
    tx.apply("move", partial(move, 81.0))
    result = tx.commit()
    assert (result.outcome, result.version, tx.phase) == ("committed", 4, Phase.COMMITTED)
    assert bench.store.version_range("u") == (1, 3)
    assert [(mark.state, mark.event) for mark in bench.slots()] == [(WAITING, "reset.interrupted")]
    assert tx.head is not None
    assert tx.head.version == 4
    bench.store.commit(draft)
    assert bench.store.version_range("u") == (1, 4)
    assert bench.row().public.attempt_id == tx.attempt_id
    assert bench.slots() == []


@pytest.mark.parametrize("end", ["commit", "roll back"])
def test_the_attempts_of_a_batch_that_was_given_up_have_a_row_each(bench: Bench, end: str) -> None:
    draft = bench.store.draft()
    tx = bench.begun(draft=draft)
    tx.apply("move", partial(move, 81.0))
    if end == "commit":
        tx.commit()
    else:
        assert tx.roll_back(ValueError("bad")).outcome == "rolled_back"
    assert [mark.state for mark in bench.slots()] == [WAITING]
    draft.drop()
    (mark,) = bench.slots()
    assert (mark.state, mark.event, mark.outcome) == (ENDED, "reset.conflicted", "conflicted")
    assert mark.error == "its batch was dropped before it was committed"
    bench.manager.perform_reset("x", **BY)
    row = bench.row()
    assert (row.public.event, row.public.outcome, row.public.attempt_id) == ("reset.conflicted", "conflicted", tx.attempt_id)
    assert (bench.store.version_range("u"), bench.breaker().failures, bench.slots()) == ((1, 3), 0, [])


def test_a_rollback_in_a_batch_is_written_with_it(bench: Bench) -> None:
    draft = bench.store.draft()
    tx = bench.begun(draft=draft)
    tx.roll_back(ValueError("bad"))
    assert bench.breaker().failures == 0
    bench.store.commit(draft)
    row = bench.row()
    assert (row.public.event, row.public.outcome, row.public.phase) == ("reset.rolled_back", "rolled_back", "rolledback")
    assert (row.personal.error, row.public.attempt_id) == ("ValueError: bad", tx.attempt_id)
    assert (bench.breaker().failures, bench.slots()) == (1, [])


@pytest.mark.parametrize("end", ["committed", "dropped"])
def test_a_refusal_in_a_batch_is_written_with_it_and_lost_with_it(bench: Bench, end: str) -> None:
    """Its input is taken anew where the batch is given up, and is then refused again."""
    bench.manager.force_breaker("u", "forced-open", **BY)
    draft = bench.store.draft()
    tx = ResetTransaction(bench.context, FULL, draft)
    with pytest.raises(BreakerOpen) as refused:
        tx.begin()
    assert len(bench.slots()) == 1
    if end == "committed":
        bench.store.commit(draft)
        row = bench.row()
        assert (row.public.event, row.public.outcome, row.public.attempt_id) == ("reset.refused", "refused", tx.attempt_id)
        assert row.personal.error == str(refused.value)
    else:
        draft.drop()
        assert bench.row().public.event != "reset.refused"
    assert bench.slots() == []
    assert len(bench.store.marks._free) == SLOTS


def test_a_probe_in_a_batch_that_was_given_up_gives_its_slot_back(bench: Bench) -> None:
    bench.fail("u", "u")
    bench.clock.wall_us += COOLED_US
    draft = bench.store.draft()
    tx = bench.begun(Attempt("u", "admin"), draft)
    assert bench.breaker().probe == tx.attempt_id
    tx.apply("move", partial(move, 81.0))
    tx.commit()
    draft.drop()
    assert (bench.breaker().mode, bench.breaker().probe) == ("half-open", "")
    assert bench.manager.inspect(tx.attempt_id) is not None


def test_a_probe_that_cannot_be_given_back_at_once_is_by_the_next_commit(bench: Bench) -> None:
    """The disk is full when the batch is given up; nobody hears of it twice."""
    bench.fail("u", "u")
    bench.clock.wall_us += COOLED_US
    draft = bench.store.draft()
    tx = bench.begun(Attempt("u", "admin"), draft)
    tx.apply("move", partial(move, 81.0))
    tx.commit()
    bench.disk.commit = full_disk
    draft.drop()
    bench.disk.commit = None
    assert bench.breaker().probe == tx.attempt_id
    bench.manager.perform_reset("x", **BY)
    assert bench.breaker().probe == ""


def test_a_batch_that_drops_an_ordinary_attempt_costs_no_commit(bench: Bench) -> None:
    draft = bench.store.draft()
    bench.begun(draft=draft).roll_back()
    before = bench.disk.commits
    draft.drop()
    assert bench.disk.commits == before
