"""One attempt from snapshot to outcome: all of a reset or none of it, and one row that says which."""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import lmdb
import pytest

from statemachine import (
    BreakerOpen,
    BreakerPolicy,
    ConflictError,
    EstimatorState,
    GlobalBreakerPolicy,
    InvalidInput,
    InvalidTransition,
    Limits,
    MutationFailed,
    Phase,
    Processor,
    ResetManager,
    ResetTransaction,
    ResetValidationError,
    Rule,
    Store,
    StoreFull,
    StoreLimits,
    UserUnknown,
    VersionPruned,
    Violation,
)
from statemachine.audit import Row
from statemachine.marks import WAITING, DeadMarks
from statemachine.store import keys
from statemachine.store.draft import Draft
from statemachine.testing import CountingIds, ManualClock
from tests.regression.scene import BY, START, weighed

BREAKER = BreakerPolicy(failures_max=3, cooldown_s=3_600.0, jitter=0.0)
GLOBAL = GlobalBreakerPolicy(users_max=3, cooldown_s=3_600.0, jitter=0.0)
COOLED_S = 3_601.0
RESTRICTED = Limits(weight_kg_max=80.5)


class Bench(NamedTuple):
    store: Store
    manager: ResetManager
    clock: ManualClock

    @property
    def head(self) -> EstimatorState:
        loaded = self.store.load("u")
        assert loaded is not None
        assert isinstance(loaded.state, EstimatorState)
        return loaded.state

    @property
    def version(self) -> int:
        return self.store.version_range("u")[1]

    def rows(self, user: str = "u") -> list[Row]:
        return list(self.store.audit(user))

    def fail(self, times: int = 1, user: str = "u") -> None:
        for _ in range(times):
            with pytest.raises(MutationFailed):
                self.manager.perform_reset(user, operations=[("fail", broken)], **BY)

    def breaker(self, user: str = "u") -> Any:
        return self.store.draft().stored_breaker(user.encode())


def broken(_: Any) -> Any:
    message = "broken"
    raise KeyError(message)


def widen(s: EstimatorState) -> EstimatorState:
    return s.replace(P=[[2.0, 0.0], [0.0, 0.01]])


def content(store: Store) -> dict[bytes, bytes]:
    """Every record of the store, as it lies on the disk."""
    return dict(store.engine.scan(b"", b"\xff" * 8))


def filled(path: Path, **settings: Any) -> Bench:
    clock = ManualClock(START + timedelta(days=10))
    store = Store.open(path, clock=clock, ids=CountingIds(), durability="process", **settings)
    manager = ResetManager(store, breaker=BREAKER, global_breaker=GLOBAL)
    processor = Processor(manager)
    for user in ("u", "v", "w"):
        for day in range(3):
            assert processor.process(weighed(user, day, 80.0 + day / 10)).status == "accepted"
    return Bench(store, manager, clock)


pytestmark = pytest.mark.usefixtures("no_events")


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = filled(tmp_path / "store")
    yield made
    made.store.close()


# Leaving the block.


def test_leaving_the_block_without_commit_rolls_back(bench: Bench) -> None:
    """Rollback is the default exit: the before-image stands and the log says so."""
    before = bench.head
    with bench.manager.transaction("u", **BY) as tx:
        tx.apply("widen", widen)
        assert tx.phase is Phase.VALIDATED
    assert (bench.head, bench.version, tx.phase) == (before, 3, Phase.ROLLEDBACK)
    row = bench.rows()[-1]
    assert (row.public.event, row.public.outcome, row.public.phase) == ("reset.rolled_back", "rolled_back", "rolledback")
    assert (row.public.attempt_id, row.public.base_version, row.public.new_version) == (tx.attempt_id, 3, None)
    assert tx.result is not None
    assert (tx.result.outcome, tx.result.version) == ("rolled_back", None)
    assert bench.breaker().failures == 0, "leaving on purpose is no failure"


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt(), SystemExit(3), GeneratorExit()])
@pytest.mark.parametrize("inside", [False, True], ids=["in the block", "in a mutation"])
def test_whatever_is_raised_rolls_back_and_propagates(bench: Bench, error: BaseException, inside: bool) -> None:
    """Nothing is swallowed, nothing is durable but the row, and only an Exception counts as a failure."""
    before, identities = bench.head, content(bench.store)

    def raising(_: Any) -> Any:
        raise error

    with pytest.raises(BaseException) as caught, bench.manager.transaction("u", **BY) as tx:  # noqa: PT012 - the raise is the point
        tx.apply("widen", widen)
        if inside:
            tx.apply("raise", raising)
        raise error
    if inside and isinstance(error, Exception):
        assert isinstance(caught.value, MutationFailed)
        assert caught.value.__cause__ is error
    else:
        assert caught.value is error
    assert (bench.head, bench.version) == (before, 3)
    changed = {key for key, value in content(bench.store).items() if identities.get(key) != value}
    assert {key[:2] for key in changed} <= {keys.AUDIT, keys.CHAIN, keys.OWNER, keys.ATTEMPT, keys.GLOBAL_BREAKER, b"u\0"}
    assert {key[2:3] for key in changed if key.startswith(b"u\0")} <= {b"a", b"b"}
    row = bench.rows()[-1]
    assert row.public.outcome == "rolled_back"
    assert row.personal.error.startswith(type(caught.value).__name__)
    assert bench.breaker().failures == isinstance(error, Exception)


@pytest.mark.parametrize("how", ["rolled back", "committed", "raised"])
def test_exit_returns_none(bench: Bench, how: str) -> None:
    """A true answer would swallow the exception."""
    tx = bench.manager.transaction("u", **BY)
    leave = type(tx).__dict__["__exit__"]
    tx.begin()
    tx.apply("widen", widen)
    if how == "committed":
        tx.commit()
    error = ValueError("x") if how == "raised" else None
    assert leave(tx, type(error), error, None) is None
    assert tx.phase is (Phase.COMMITTED if how == "committed" else Phase.ROLLEDBACK)


def test_an_exception_after_the_commit_undoes_nothing(bench: Bench) -> None:
    """What is committed stands, and has one row."""
    count = len(bench.rows())
    with pytest.raises(RuntimeError), bench.manager.transaction("u", **BY) as tx:  # noqa: PT012 - the commit comes first
        tx.apply("widen", widen)
        tx.commit()
        raise RuntimeError
    assert bench.version == 4
    assert [row.public.outcome for row in bench.rows()[count:]] == ["committed"]


@pytest.mark.parametrize(("act", "phase"), [
    (lambda tx: tx.commit(), "snapshotted"),
    (lambda tx: tx.begin(), "snapshotted"),
    (lambda tx: (tx.apply("widen", widen), tx.commit(), tx.commit()), "committed"),
    (lambda tx: (tx.apply("widen", widen), tx.commit(), tx.apply("again", widen)), "committed"),
    (lambda tx: (tx.apply("widen", widen), tx.roll_back(), tx.commit()), "rolledback"),
    (lambda tx: (tx.apply("widen", widen), tx.roll_back(), tx.roll_back()), "rolledback"),
])
def test_steps_out_of_order_are_refused(bench: Bench, act: Callable[[ResetTransaction], Any], phase: str) -> None:
    """An attempt has one outcome: a second commit, or one of nothing, is a bug of the caller."""
    count = len(bench.rows())
    tx = bench.manager.transaction("u", **BY)
    tx.begin()
    with pytest.raises(InvalidTransition) as refused:
        act(tx)
    assert refused.value.phase == phase
    if tx.phase is Phase.SNAPSHOTTED:
        tx.roll_back()
    assert len(bench.rows()) == count + 1


# Checkpoints.


def test_roll_back_to_drops_what_came_after(bench: Bench) -> None:
    """The commit holds what stood at the checkpoint, bit for bit, and the log names every operation."""
    with bench.manager.transaction("u", **BY) as tx:
        here = tx.checkpoint(tx.apply("widen", widen), "before the risky part")
        tx.apply("risky", lambda s: s.replace(x=[120.0, 1.0], buffer=()))
        tx.roll_back_to(here)
        result = tx.commit()
    assert bench.head == here.state
    assert [operation.name for operation in result.operations] == ["widen", "risky", "roll back to 'before the risky part'"]
    assert bench.rows()[-1].personal.operations == result.operations


def test_a_caught_failure_may_go_on_from_a_checkpoint(bench: Bench) -> None:
    """A failed operation leaves `state` where it was; without going back the attempt cannot be committed."""
    with bench.manager.transaction("u", **BY) as tx:
        here = tx.checkpoint(tx.apply("widen", widen), "wide")
        with pytest.raises(ResetValidationError):
            tx.apply("spoil", lambda s: s.replace(x=[10.0, 0.0]))
        assert tx.state is here.state
        with pytest.raises(InvalidTransition):
            tx.commit()
        tx.roll_back_to(here)
        result = tx.commit()
    assert (result.violations, [operation.ok for operation in result.operations]) == ((), [True, False, True])
    assert bench.head == here.state


def test_a_foreign_state_is_validated_before_it_is_a_checkpoint(bench: Bench) -> None:
    with bench.manager.transaction("u", **BY) as tx:
        with pytest.raises(ResetValidationError):
            tx.checkpoint(tx.state.replace(x=[10.0, 0.0]), "bad")
        good = tx.checkpoint(tx.state.replace(x=[81.0, 0.0]), "good")
        assert tx.state is good.state


def test_where_nothing_stood_there_is_nothing_to_go_back_to(bench: Bench) -> None:
    """A reset of a new user that goes back to before its start ends by leaving the block."""
    with bench.manager.transaction("new", **BY) as tx:
        here = tx.checkpoint(tx.state, "nothing")
        with pytest.raises(InvalidInput, match="no state at that checkpoint"):
            tx.roll_back_to(here)
    assert bench.store.load("new") is None


# What an operation may do.


def test_a_failing_operation_is_named_with_its_cause(bench: Bench) -> None:
    with pytest.raises(MutationFailed, match="operation 'fail' on 'u' raised KeyError") as failed:
        bench.manager.perform_reset("u", operations=[("widen", widen), ("fail", broken)], **BY)
    assert (failed.value.operation, failed.value.user, failed.value.kind) == ("fail", "u", "mutation-failed")
    assert isinstance(failed.value.__cause__, KeyError)
    row = bench.manager.inspect(failed.value.attempt_id or "")
    assert row is not None
    assert [(o.name, o.ok) for o in row.personal.operations] == [("widen", True), ("fail", False)]


@pytest.mark.parametrize("answer", [None, {"x": 80.0}, 80.0, (), "state"])
def test_what_is_no_state_is_refused(bench: Bench, answer: Any) -> None:
    before = bench.head
    with pytest.raises(MutationFailed, match=f"returned a {type(answer).__name__}, not a state") as failed:
        bench.manager.perform_reset("u", operations=[("convert", lambda _: answer)], **BY)
    assert (failed.value.operation, failed.value.__cause__, bench.head) == ("convert", None, before)


def test_an_invalid_candidate_lists_every_broken_rule(bench: Bench) -> None:
    """All violations, with rule, path, value, limit and unit, in the error, the result and the row."""
    tx = bench.manager.transaction("u", **BY)
    with pytest.raises(ResetValidationError) as refused, tx:
        tx.apply("spoil", lambda s: s.replace(x=[10.0, 9.0], P=[[1.0, 5.0], [5.0, 1.0]]))
    found = [(v.rule, v.path, v.value, v.unit) for v in refused.value.violations]
    assert found == [("estimate", "x[0]", "10.0", "kg"), ("estimate", "x[1]", "9.0", "kg/day"),
                     ("covariance", "P", "[[1.0, 5.0], [5.0, 1.0]]", "")]
    assert refused.value.operation == "spoil"
    assert tx.result is not None
    assert tx.result.violations == bench.rows()[-1].personal.violations == refused.value.violations


@pytest.mark.parametrize("part", ["reason", "actor"])
@pytest.mark.parametrize("text", ["", "  ", "x" * 501, "é" * 251, "a\0b"], ids=["none", "blank", "long", "long in bytes", "NUL"])
def test_a_reason_and_an_actor_are_needed(bench: Bench, part: str, text: str) -> None:
    """Every door by hand asks for both, before it touches the store."""
    told, before = {**BY, part: text}, content(bench.store)
    for call in (
        lambda: bench.manager.perform_reset("u", **told), lambda: bench.manager.transaction("u", **told),
        lambda: bench.manager.restore("u", to_version=1, **told),
    ):
        with pytest.raises(InvalidInput, match=f"the {part} must have 1 to 500 bytes"):
            call()
    assert content(bench.store) == before
    assert bench.manager.perform_reset("u", **{**BY, part: "x" * 500}).version == 4


def test_what_cannot_be_reset_is_told(bench: Bench) -> None:
    with pytest.raises(UserUnknown):
        bench.manager.perform_reset("nobody", **BY)
    with pytest.raises(InvalidInput, match="no kind of reset is called 'great'"):
        bench.manager.perform_reset("u", kind="great", **BY)
    with pytest.raises(InvalidInput, match="of 'v', not of 'u'"):
        bench.manager.perform_reset("u", measurement=weighed("v", 4, 80.0), **BY)
    assert bench.store.load("nobody") is None


# Dry runs and expected versions.


def test_a_dry_run_changes_nothing_and_tells_the_deltas(bench: Bench) -> None:
    """Not one byte of the store differs, and the deltas are those of the reset when it is then done."""
    before = content(bench.store)
    dry = bench.manager.perform_reset("u", dry_run=True, **BY)
    assert content(bench.store) == before
    assert (dry.outcome, dry.version, dry.base_version) == ("dry_run", None, 3)
    done = bench.manager.perform_reset("u", **BY)
    assert (done.delta_x, done.delta_P) == (dry.delta_x, dry.delta_P)
    assert dry.delta_x == (0.0, 0.0)
    assert len([o.name for o in dry.operations]) == 2


@pytest.mark.parametrize("mutation", [broken, lambda s: s.replace(x=[1.0, 0.0]), lambda _: None])
def test_a_failing_dry_run_changes_nothing(bench: Bench, mutation: Callable[[Any], Any]) -> None:
    before = content(bench.store)
    for _ in range(5):
        with pytest.raises((MutationFailed, ResetValidationError)):
            bench.manager.perform_reset("u", operations=[("try", mutation)], dry_run=True, **BY)
    assert content(bench.store) == before


def test_an_expected_version_guards_against_a_race(bench: Bench) -> None:
    """Another version than expected conflicts before any mutation runs, is audited, and counts against nobody."""
    ran: list[Any] = []
    with pytest.raises(ConflictError, match="at version 3, not 2") as conflict:
        bench.manager.perform_reset("u", operations=[("note", lambda s: ran.append(s) or s)], expect_version=2, **BY)  # type: ignore[func-returns-value]
    assert (ran, bench.version, bench.breaker().failures) == ([], 3, 0)
    row = bench.manager.inspect(conflict.value.attempt_id or "")
    assert row is not None
    assert (row.public.outcome, row.public.base_version) == ("conflicted", 3)
    assert bench.manager.perform_reset("u", expect_version=3, **BY).version == 4


def test_of_two_attempts_from_one_base_one_commits(bench: Bench) -> None:
    with bench.manager.transaction("u", **BY) as first, bench.manager.transaction("u", **BY) as second:
        for tx in (first, second):
            tx.apply("widen", widen)
        second.commit()
        with pytest.raises(ConflictError) as conflict:
            first.commit()
    assert (conflict.value.user, conflict.value.attempt_id) == ("u", first.attempt_id)
    assert [row.public.outcome for row in bench.rows()[-2:]] == ["committed", "conflicted"]
    assert (bench.version, bench.breaker().failures) == (4, 0)
    assert first.result is not None
    assert first.result.outcome == "conflicted"


# The breaker.


def test_the_breaker_opens_and_refuses_before_any_mutation(bench: Bench) -> None:
    """After three failures in a row no operation runs; the refusal is in the log with the next commit."""
    bench.fail(3)
    ran: list[Any] = []
    with pytest.raises(BreakerOpen) as refused:
        bench.manager.perform_reset("u", operations=[("note", ran.append)], **BY)
    assert (ran, refused.value.scope, refused.value.reason, refused.value.user) == ([], "user", "open", "u")
    assert refused.value.retry_at_us == bench.clock.now_us() + 3_600_000_000
    attempt = refused.value.attempt_id or ""
    assert bench.manager.inspect(attempt) is None, "a refusal costs no commit of its own"
    assert bench.manager.perform_reset("v", **BY).outcome == "committed", "another user's reset goes on"
    row = bench.manager.inspect(attempt)
    assert row is not None
    assert (row.public.event, row.public.outcome, row.personal.user) == ("reset.refused", "refused", "u")
    assert bench.version == 3


def test_a_success_between_failures_keeps_it_closed(bench: Bench) -> None:
    for _ in range(3):
        bench.fail(2)
        assert bench.manager.perform_reset("u", **BY).outcome == "committed"


def test_refusals_survive_close_and_reopen(tmp_path: Path) -> None:
    """The breaker is in the store: another process meets it as it was left, and the refusal's row was written at close."""
    bench = filled(tmp_path / "store")
    bench.fail(3)
    with pytest.raises(BreakerOpen) as refused:
        bench.manager.perform_reset("u", **BY)
    bench.store.close()
    with Store.open(tmp_path / "store", clock=bench.clock, durability="process") as store:
        row = store.inspect(refused.value.attempt_id or "")
        assert row is not None
        assert row.public.outcome == "refused"
        with pytest.raises(BreakerOpen):
            ResetManager(store, breaker=BREAKER, global_breaker=GLOBAL).perform_reset("u", **BY)


def test_after_the_cooldown_one_of_two_threads_probes(bench: Bench) -> None:
    """Both come at once after the cooldown: one runs its mutation, the other is refused as probing."""
    bench.fail(3)
    bench.clock.advance(COOLED_S)
    barrier, told = threading.Barrier(2), threading.Event()
    ran: list[str] = []
    refusals: list[str] = []

    def waiting(s: EstimatorState) -> EstimatorState:
        ran.append(threading.current_thread().name)
        told.wait(20)
        return widen(s)

    def contend() -> None:
        barrier.wait(20)
        try:
            bench.manager.perform_reset("u", operations=[("probe", waiting)], **BY)
        except BreakerOpen as error:
            refusals.append(error.reason)
            told.set()

    threads = [threading.Thread(target=contend) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert (len(ran), refusals) == (1, ["probing"])
    assert bench.breaker().mode == "closed", "the probe's success closes it"
    assert bench.manager.perform_reset("u", **BY).version == 5


def test_of_two_that_may_probe_the_faster_one_does(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have read the breaker before either has taken the slot: the second finds it taken, and runs nothing."""
    bench.fail(3)
    bench.clock.advance(COOLED_S)
    slow, fast = (bench.manager.transaction("u", **BY) for _ in range(2))
    commit, faster = bench.store.commit, iter([fast.begin])

    def after_the_other(draft: Draft) -> list[Row]:
        for begin in faster:
            begin()
        return commit(draft)

    monkeypatch.setattr(bench.store, "commit", after_the_other)
    with pytest.raises(BreakerOpen) as refused:
        slow.begin()
    assert (refused.value.reason, slow.phase, bench.breaker().probe) == ("probing", Phase.BREAKER_OPEN, fast.attempt_id)
    fast.apply("widen", widen)
    assert fast.commit().version == 4
    assert bench.breaker().mode == "closed"


def test_a_failed_probe_opens_for_longer(bench: Bench) -> None:
    bench.fail(3)
    bench.clock.advance(COOLED_S)
    bench.fail()
    with pytest.raises(BreakerOpen) as refused:
        bench.manager.perform_reset("u", **BY)
    assert refused.value.retry_at_us == bench.clock.now_us() + 2 * 3_600_000_000


def test_the_global_breaker_counts_users(bench: Bench) -> None:
    """Three users failing within the window stop everyone's resets; one user failing three times does not."""
    bench.fail(3)
    assert bench.manager.perform_reset("v", **BY).outcome == "committed"
    bench.fail(user="v")
    bench.fail(user="w")
    with pytest.raises(BreakerOpen) as refused:
        bench.manager.perform_reset("v", **BY)
    assert (refused.value.scope, refused.value.reason) == ("global", "open")
    bench.clock.advance(COOLED_S)
    assert bench.manager.perform_reset("v", **BY).outcome == "committed"
    assert bench.breaker("").mode == "closed"


def test_a_breaker_that_opened_meanwhile_stops_the_commit(bench: Bench) -> None:
    """The commit asks again: the attempt ends as rolled back, with BreakerOpen, and nothing of it is stored."""
    before = bench.head
    with bench.manager.transaction("u", **BY) as tx:
        tx.apply("widen", widen)
        bench.fail(3)
        opened = bench.breaker()
        with pytest.raises(BreakerOpen) as refused:
            tx.commit()
    assert (refused.value.reason, refused.value.attempt_id) == ("changed", tx.attempt_id)
    assert (bench.head, bench.breaker()) == (before, opened)
    row = bench.manager.inspect(tx.attempt_id)
    assert row is not None
    assert (row.public.outcome, row.public.phase) == ("rolled_back", "rolledback")
    assert (tx.result is not None, tx.phase) == (True, Phase.ROLLEDBACK)


# A disk that is full.


class FullDisk:
    """An opener whose commits raise ENOSPC while `full` is set."""

    def __init__(self) -> None:
        self.full = False

    def __call__(self, *args: Any, **named: Any) -> Any:
        return _Wrapped(lmdb.open(*args, **named), self)


class _Wrapped:
    def __init__(self, inner: Any, disk: FullDisk) -> None:
        self._inner = inner
        self._disk = disk

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def __enter__(self) -> Any:
        return self._inner.__enter__()

    def __exit__(self, *error: object) -> Any:
        return self._inner.__exit__(*error)

    def begin(self, *, write: bool = False) -> Any:
        return _Wrapped(self._inner.begin(write=write), self._disk) if write else self._inner.begin()

    def commit(self) -> None:
        if self._disk.full:
            self._inner.abort()
            error = lmdb.Error("mdb_txn_commit: No space left on device")
            vars(error)["code"] = errno.ENOSPC  # as the C extension sets it
            raise error
        self._inner.commit()


@pytest.fixture
def full(tmp_path: Path) -> Iterator[tuple[Bench, FullDisk]]:
    disk = FullDisk()
    made = filled(tmp_path / "store", opener=disk)
    yield made, disk
    disk.full = False
    made.store.close()


def test_a_full_disk_at_the_commit_leaves_the_before_image_and_one_outcome(full: tuple[Bench, FullDisk]) -> None:
    """The attempt raises StoreFull; when there is room again its one row is written, and the store works on."""
    bench, disk = full
    before, count = bench.head, len(bench.rows())
    with bench.manager.transaction("u", **BY) as tx:
        tx.apply("widen", widen)
        disk.full = True
        with pytest.raises(StoreFull):
            tx.commit()
    assert (bench.head, bench.version, len(bench.rows())) == (before, 3, count)
    assert tx.phase is Phase.ROLLEDBACK
    disk.full = False
    assert bench.manager.perform_reset("v", **BY).outcome == "committed"
    row = bench.manager.inspect(tx.attempt_id)
    assert row is not None
    assert (row.public.outcome, row.personal.error[:9]) == ("rolled_back", "StoreFull")
    assert len(bench.rows()) == count + 1
    assert bench.manager.perform_reset("u", **BY).version == 4
    assert bench.store.verify_audit().problem == ""


@pytest.mark.parametrize("end", ["commit", "roll back"])
def test_a_probe_that_meets_a_full_disk_gives_its_slot_back(full: tuple[Bench, FullDisk], end: str) -> None:
    """Once there is room the user may be reset again: a probe that could not be settled must not hold its slot for ever."""
    bench, disk = full
    bench.fail(3)
    bench.clock.advance(COOLED_S)
    tx = bench.manager.transaction("u", **BY)
    tx.begin()
    tx.apply("widen", widen)
    disk.full = True
    if end == "commit":
        with pytest.raises(StoreFull):
            tx.commit()
    else:
        tx.roll_back(RuntimeError("no"))
    disk.full = False
    assert bench.manager.perform_reset("v", **BY).outcome == "committed"
    assert (bench.breaker().mode, bench.breaker().probe) == ("half-open", "")
    assert bench.manager.perform_reset("u", **BY).outcome == "committed"


def test_the_map_s_own_limit_is_a_typed_error(tmp_path: Path) -> None:
    """A store that has reached `map_bytes_max` refuses with StoreFull and still reads; a larger limit lets it go on."""
    small = StoreLimits(map_bytes=1 << 17, map_bytes_max=1 << 17)
    with filled(tmp_path / "store", limits=small).store as store:
        manager = ResetManager(store)
        with pytest.raises(StoreFull):  # noqa: PT012 - which of them is the first is LMDB's affair
            for _ in range(500):
                manager.perform_reset("u", reason="r" * 400, actor="a")
        version = store.version_range("u")[1]
        assert store.load("u") is not None
        assert store.verify_audit().problem == ""
    with Store.open(tmp_path / "store", durability="process") as store:
        assert ResetManager(store).perform_reset("u", **BY).version == version + 1
        assert {row.public.outcome for row in store.audit("u")} == {"committed", "rolled_back"}
        assert store.verify_audit().problem == ""


# Attempts that are not ended.


def test_an_attempt_left_open_at_close_has_its_row(tmp_path: Path) -> None:
    """An attempt that began and was marked is accounted for even where nobody ended it, and blames no user."""
    bench = filled(tmp_path / "store")
    tx = bench.manager.transaction("u", **BY)
    tx.begin()
    tx.apply("widen", widen)
    bench.store.close()
    with Store.open(tmp_path / "store", clock=bench.clock, durability="process") as store:
        assert store.interrupted == 1
        row = store.inspect(tx.attempt_id)
        assert row is not None
        assert row.public.outcome == "interrupted"
        assert store.draft().stored_breaker(b"u").suspects == ()
        assert ResetManager(store).perform_reset("u", **BY).version == 4


# Restore and inspect.


def test_restore_makes_an_older_version_the_head(bench: Bench) -> None:
    """The state is that version's bit for bit, under a new number, and the log says which."""
    old = bench.store.load("u", version=1)
    assert old is not None
    result = bench.manager.restore("u", to_version=1, expect_version=3, **BY)
    assert (result.outcome, result.kind, result.version) == ("committed", "restore", 4)
    assert bench.head == old.state
    row = bench.rows()[-1]
    assert (row.public.event, row.personal.details["restored_version"]) == ("state.restored", 1)
    head = bench.store.head("u")
    assert head is not None
    assert head.probation is None


@pytest.mark.parametrize("version", [0, -1, 4, 2**70])
def test_a_version_that_never_was_is_not_restored(bench: Bench, version: int) -> None:
    before = content(bench.store)
    with pytest.raises(VersionPruned) as refused:
        bench.manager.restore("u", to_version=version, **BY)
    assert (refused.value.first, refused.value.last) == (1, 3)
    with pytest.raises(VersionPruned):
        bench.manager.restore("nobody", to_version=1, **BY)
    assert content(bench.store) == before


def test_a_pruned_version_names_the_first_readable_one(tmp_path: Path) -> None:
    with filled(tmp_path / "store", limits=StoreLimits(versions_max=5)).store as store:
        manager = ResetManager(store)
        for _ in range(20):
            manager.perform_reset("u", **BY)
        with pytest.raises(VersionPruned, match="versions 19 to 23 are readable") as refused:
            manager.restore("u", to_version=1, **BY)
        assert (refused.value.first, refused.value.last) == (19, 23)
        assert manager.restore("u", to_version=19, **BY).version == 24


def test_a_dry_restore_changes_nothing(bench: Bench) -> None:
    before = content(bench.store)
    result = bench.manager.restore("u", to_version=1, dry_run=True, **BY)
    assert (result.outcome, result.version) == ("dry_run", None)
    assert result.delta_x is not None
    assert result.delta_x[0] < 0
    assert content(bench.store) == before


def test_a_restore_obeys_the_rules_in_force(tmp_path: Path) -> None:
    """A version from before a stricter rule is not made the head again."""
    filled(tmp_path / "store").store.close()

    def light(s: EstimatorState, _now_us: int | None, _known: Any) -> list[Violation]:
        return [Violation("light", "x[0]", str(s.kalman.x0), "above 80.05", "kg")] if s.kalman.x0 < 80.05 else []

    with Store.open(tmp_path / "store", rules=[Rule("light", light, "80.05")], durability="process") as store:
        with pytest.raises(ResetValidationError, match="restore version 1"):
            ResetManager(store).restore("u", to_version=1, **BY)
        assert store.version_range("u") == (1, 3)
        assert ResetManager(store).restore("u", to_version=3, **BY).version == 4


def test_inspect_tells_how_an_attempt_ended(bench: Bench) -> None:
    done = bench.manager.perform_reset("u", **BY)
    with pytest.raises(MutationFailed) as failed:
        bench.manager.perform_reset("u", operations=[("fail", broken)], **BY)
    outcomes = [bench.manager.inspect(attempt) for attempt in (done.attempt_id, failed.value.attempt_id or "")]
    assert [row.public.outcome if row else "" for row in outcomes] == ["committed", "rolled_back"]
    assert bench.manager.inspect("0" * 32) is None
    with pytest.raises(InvalidInput, match="is no attempt id"):
        bench.manager.inspect("nothing")


def test_a_commit_row_says_what_was_done(bench: Bench) -> None:
    """Kind, actor, reason, versions, phase, deltas and the author of the version it was made from."""
    first = bench.manager.perform_reset("u", measurement=weighed("u", 5, 84.0), **BY)
    second = bench.manager.perform_reset("u", kind="gap", **BY)
    row = bench.rows()[-1]
    assert (row.public.event, row.public.kind, row.public.phase) == ("reset.committed", "gap", "committed")
    assert (row.public.base_version, row.public.new_version, row.public.head_author) == (4, 5, first.attempt_id)
    assert (row.personal.reason, row.personal.actor, row.personal.trigger) == (BY["reason"], BY["actor"], "by hand")
    assert (row.personal.delta_x, row.personal.delta_P) == (second.delta_x, second.delta_P)
    assert first.delta_x is not None
    assert bench.head.kalman.x0 == 84.0


def test_the_draft_of_a_refused_commit_stays_unwritten(bench: Bench) -> None:
    """A conflict writes only the row: no identity, no pin, no version of the attempt that missed."""
    tx = bench.manager.transaction("u", **BY)
    tx.begin()
    tx.apply("widen", widen)
    bench.manager.perform_reset("u", **BY)
    before = content(bench.store)
    with pytest.raises(ConflictError):
        tx.commit()
    after = content(bench.store)
    changed = {key for key in after if before.get(key) != after[key]}
    assert {key[:2] for key in changed} == {keys.AUDIT, keys.CHAIN, keys.OWNER, keys.ATTEMPT, b"u\0"}
    assert {key[2:3] for key in changed if key.startswith(b"u\0")} == {b"a"}
    assert isinstance(tx._draft, Draft)


@pytest.mark.parametrize("mutation", [broken, lambda state: state], ids=["failed", "left"])
def test_a_death_while_the_rollback_is_written_is_not_the_mutations(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, mutation: Callable[[Any], Any],
) -> None:
    """No user code runs any more then, so that whoever settles the mark blames nobody (INV-07)."""
    states: list[int] = []
    real = Store.commit

    def watched(self: Store, draft: Any) -> Any:
        with self.marks.path.open("rb") as file:
            states.extend(mark.state for mark in DeadMarks(self.marks.path, file.fileno()).marks())
        return real(self, draft)

    monkeypatch.setattr(Store, "commit", watched)
    with contextlib.suppress(MutationFailed), bench.manager.transaction("u", **BY) as tx:
        tx.apply("mutate", mutation)
    assert states == [WAITING]


# Who ends an attempt.


class MetAtTheCommit:
    """A rule that lets a second thread at the same attempt while the whole is judged, and waits for it a little."""

    def __init__(self) -> None:
        self.second: Callable[[], object] | None = None
        self.thread = threading.Thread()

    def rule(self) -> Rule:
        def judge(_: object, __: int | None, known: object) -> tuple[Violation, ...]:
            second = self.second
            if second is not None and known is None:
                self.second = None
                self.thread = threading.Thread(target=second)
                self.thread.start()
                self.thread.join(0.2)
            return ()

        return Rule("met", judge)


@pytest.mark.parametrize("end", ["commit", "roll_back"])
def test_a_second_thread_finds_the_attempt_ended(tmp_path: Path, end: str) -> None:
    """It comes between the first one's check of the phase and its commit: one outcome, and the second is told."""
    met, told = MetAtTheCommit(), list[BaseException]()
    made = filled(tmp_path / "store", rules=(met.rule(),))
    with made.store:
        tx = made.manager.transaction("u", **BY)
        tx.begin()
        tx.apply("widen", widen)

        def second() -> None:
            with pytest.raises(InvalidTransition) as caught:
                getattr(tx, end)()
            told.append(caught.value)

        met.second = second
        assert tx.commit().outcome == "committed"
        met.thread.join()
        assert len(told) == 1
        assert [row.public.attempt_id for row in made.rows()].count(tx.attempt_id) == 1
        assert (made.version, made.store.verify_audit().problem) == (4, "")
