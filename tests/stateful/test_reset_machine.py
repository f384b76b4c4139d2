"""A random life of a store against a small oracle: every rule of the library's use, and every invariant after each step.

Time is live: the clock follows the measurements.  A crash drops every handle without closing, as a kill would, so that
the marks it leaves are settled by the next opening.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

import statemachine.store
from statemachine import (
    BreakerOpen,
    BreakerPolicy,
    ConflictError,
    GlobalBreakerPolicy,
    Measurement,
    MutationFailed,
    Outcome,
    Processor,
    ResetError,
    ResetManager,
    ResetTransaction,
    ResetValidationError,
    Store,
)
from statemachine.clock import from_us, to_us
from statemachine.marks import WAITING
from statemachine.store import identities, keys
from statemachine.store.draft import record
from statemachine.store.records import ACCEPTED, Aside
from tests.regression import guards
from tests.regression.scene import BY, DAY_US, START, CountedIds, StillClock, broken, refused
from tests.stateful.oracle import COOLDOWN_US, FAILURES_MAX, SUSPECTS_MAX, Oracle, UserOracle

if TYPE_CHECKING:
    from collections.abc import Callable

NAMES = ("ann", "bob", "ünï/çødé")
HOUR_US = DAY_US // 24
USERS = st.sampled_from(NAMES)
OFFSETS = st.floats(-1.0, 1.0).map(lambda kg: round(kg, 1))
BREAKER = BreakerPolicy(
    failures_max=FAILURES_MAX, failure_rate_max=None, suspects_max=SUSPECTS_MAX, cooldown_s=COOLDOWN_US / 1e6,
    cooldown_s_max=1e9, jitter=0.0,
)
NEVER = GlobalBreakerPolicy(users_max=None, failure_rate_max=None)
WITNESSES: Counter[str] = Counter()


def _interrupted(_: Any) -> Any:
    raise KeyboardInterrupt


FAILING: dict[str, tuple[Callable[[Any], Any], type[BaseException]]] = {
    "raises": (broken, MutationFailed),
    "is no state": (lambda _: {"x": 80.0}, MutationFailed),
    "is invalid": (lambda s: s.replace(P=[[1.0, 5.0], [5.0, 1.0]]), ResetValidationError),
    "is not finite": (lambda s: s.replace(x0=math.nan), ResetValidationError),
    "is interrupted": (_interrupted, KeyboardInterrupt),
}


class ResetMachine(RuleBasedStateMachine):
    """The rules, and what must hold after each."""

    store: Store

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.clock = StillClock(to_us(START))
        self.ids = CountedIds()
        self.oracle = Oracle()
        self.durability = "process"
        self.folded: dict[str, dict[bytes, bytes]] = {}

    @initialize(durability=st.sampled_from(("process", "group", "each")))
    def start(self, durability: str) -> None:
        self.durability = durability
        self.open()

    def open(self) -> None:
        self.store = Store.open(
            self.directory / "store", clock=self.clock, ids=self.ids, durability=self.durability,  # type: ignore[arg-type]
        )
        self.manager = ResetManager(self.store, breaker=BREAKER, global_breaker=NEVER)
        self.processor = Processor(self.manager)

    def teardown(self) -> None:
        WITNESSES.update(self.oracle.witnessed)
        if hasattr(self, "store"):
            self.store.close()
        shutil.rmtree(self.directory)

    # What the rules share.

    @property
    def now_us(self) -> int:
        return self.clock.wall_us

    def known(self, name: str) -> UserOracle | None:
        """The user where it has a state."""
        user = self.oracle.user(name)
        return user if user.versions else None

    def level(self, name: str) -> float:
        loaded = self.store.load(name)
        return 80.0 if loaded is None else float(loaded.state.kalman.x0)

    def grow(self, name: str, by: int) -> None:
        """Read what stands now of the versions that a rule has made; from here on they must stay."""
        user = self.oracle.user(name)
        for version in range(len(user.versions) + 1, len(user.versions) + by + 1):
            user.versions.append(self.bytes_of(name, version))
        loaded = self.store.load(name)
        if loaded is not None:
            assert loaded.version == len(user.versions)
            user.at_us = loaded.state.kalman.at_us

    def bytes_of(self, name: str, version: int) -> bytes:
        loaded = self.store.load(name, version)
        assert loaded is not None
        assert loaded.violations == ()
        return self.store.estimator.encode(loaded.state)

    def measurement(self, name: str, at_us: int, kg: float, source: str = "scale") -> Measurement:
        return Measurement(name, from_us(at_us), kg, source)

    def process(self, measurement: Measurement) -> Outcome:
        outcome = self.processor.process(measurement)
        self.grow(measurement.user, self.oracle.measured(measurement, outcome, self.now_us))
        assert outcome.version == len(self.oracle.user(measurement.user).versions)
        return outcome

    def reset(self, name: str, call: Callable[[], Any], kind: str, error: type[BaseException] | None) -> None:
        """One attempt by hand that ends by `error`, or commits; the breaker's word comes first."""
        user = self.oracle.user(name)
        base, before = len(user.versions), self.ids.count
        if user.admission(self.now_us, kind) == "refuse":
            self.oracle.attempt(refused(BreakerOpen, call).attempt_id, "refused")
            return
        if error is None:
            result = call()
            self.oracle.attempt(result.attempt_id, "committed")
            user.ended("committed", self.now_us, kind, base)
            self.grow(name, 1)
            return
        refused(error, call)
        outcome = "conflicted" if error is ConflictError else "rolled_back"
        self.oracle.attempt(self.ids.text(before + 1), outcome)
        user.ended(outcome, self.now_us, kind, base, failed=issubclass(error, Exception) and error is not ConflictError)

    # The rules.

    @rule(name=USERS, hours=st.integers(1, 72), offset=OFFSETS)
    def ordinary(self, name: str, hours: int, offset: float) -> None:
        self.clock.wall_us += hours * HOUR_US
        self.process(self.measurement(name, self.now_us, self.level(name) + offset))

    @rule(name=USERS, hours=st.integers(1, 72), change=st.sampled_from((-25.0, 9.0, 25.0)), times=st.integers(1, 4),
          manual=st.booleans())
    def surprising(self, name: str, hours: int, change: float, times: int, manual: bool) -> None:
        target = min(max(self.level(name) + change, 40.0), 200.0)
        for _ in range(times):
            self.clock.wall_us += hours * HOUR_US
            self.process(self.measurement(name, self.now_us, target, "care team" if manual else "scale"))

    @rule(name=USERS, kg=st.sampled_from((60.0, 80.0, 95.0)))
    def moves_to(self, name: str, kg: float) -> None:
        """Six equal readings, a day apart, end in belief (INV-12), unless resets are refused or fail."""
        refusing = self.oracle.user(name).admission(self.now_us, "") == "refuse"
        before = self.oracle.witnessed["rolled_back"]
        for _ in range(6):
            self.clock.wall_us += DAY_US
            outcome = self.process(self.measurement(name, self.now_us, kg))
        assert outcome.status in {"accepted", "duplicate"} or refusing or self.oracle.witnessed["rolled_back"] > before, outcome

    @rule(name=USERS, days=st.integers(30, 400), change=st.sampled_from((-12.0, -60.0, 0.0, 12.0)))
    def after_a_gap(self, name: str, days: int, change: float) -> None:
        self.clock.wall_us += days * DAY_US
        self.process(self.measurement(name, self.now_us, min(max(self.level(name) + change, 25.0), 200.0)))

    @rule(name=USERS, pick=st.integers(0, 1_000))
    def duplicate(self, name: str, pick: int) -> None:
        sent = list(self.oracle.user(name).sent.values())
        if sent:
            self.process(sent[pick % len(sent)])

    @rule(name=USERS, hours=st.integers(0, 100), offset=OFFSETS)
    def late(self, name: str, hours: int, offset: float) -> None:
        at_us = min(max(self.oracle.user(name).at_us, to_us(START)), self.now_us) - hours * HOUR_US
        self.process(self.measurement(name, at_us, self.level(name) + offset, "late"))

    @rule(name=USERS, kg=st.sampled_from((math.nan, math.inf, -math.inf, 0.0, -80.0)))
    def no_weight(self, name: str, kg: float) -> None:
        self.process(self.measurement(name, self.now_us, kg))

    @rule(name=USERS, days=st.integers(1, 40_000))
    def from_the_future(self, name: str, days: int) -> None:
        self.process(self.measurement(name, self.now_us + days * DAY_US, self.level(name)))

    @rule(picks=st.lists(st.tuples(USERS, st.integers(0, 48), st.sampled_from((0.0, 0.3, 25.0, math.nan))), max_size=12),
          gap_days=st.sampled_from((0, 40)))
    def batch(self, picks: list[tuple[str, int, float]], gap_days: int) -> None:
        levels = {name: self.level(name) for name in NAMES}
        measurements = []
        at_us = self.now_us + gap_days * DAY_US
        for name, hours, change in picks:
            at_us += hours * HOUR_US
            measurements.append(self.measurement(name, at_us, min(levels[name] + change, 200.0)))
        self.clock.wall_us = at_us
        moved: Counter[str] = Counter()
        outcomes = self.processor.process_batch(measurements)
        assert len(outcomes) == len(measurements)
        # The oracle's instants must be those between the rows: which row was late is judged by the rows before it.
        for measurement, outcome in zip(measurements, outcomes, strict=True):
            by = self.oracle.measured(measurement, outcome, self.now_us)
            moved[measurement.user] += by
            user = self.oracle.user(measurement.user)
            assert outcome.version == len(user.versions) + by
            if by:
                user.versions.append(self.bytes_of(measurement.user, outcome.version))
                loaded = self.store.load(measurement.user, outcome.version)
                assert loaded is not None
                user.at_us = loaded.state.kalman.at_us

    @precondition(lambda self: any(u.versions for u in self.oracle.users.values()))
    @rule(name=USERS, how=st.sampled_from(("commits", "is dry", "expects another version")))
    def admin_reset(self, name: str, how: str) -> None:
        user = self.known(name)
        if user is None:
            return
        if how == "is dry":
            result = self.manager.perform_reset(name, dry_run=True, **BY)
            assert (result.outcome, result.version) == ("dry_run", None)
        elif how == "commits":
            self.reset(name, lambda: self.manager.perform_reset(name, **BY), "admin", None)
        else:
            expected = len(user.versions) + 1
            self.reset(name, lambda: self.manager.perform_reset(name, expect_version=expected, **BY), "admin", ConflictError)

    @precondition(lambda self: any(u.versions for u in self.oracle.users.values()))
    @rule(name=USERS, how=st.sampled_from(sorted(FAILING)), after=st.booleans(), times=st.integers(1, 4))
    def failing_reset(self, name: str, how: str, after: bool, times: int) -> None:
        if self.known(name) is None:
            return
        mutation, error = FAILING[how]
        operations = [("widen", lambda s: s.replace(p00=s.kalman.p00 + 1.0)), (how, mutation)][0 if after else 1:]
        for _ in range(times):
            self.reset(name, lambda: self.manager.perform_reset(name, operations=operations, **BY), "admin", error)

    @precondition(lambda self: any(u.versions for u in self.oracle.users.values()))
    @rule(name=USERS, other=st.sampled_from(("reset", "measurement")))
    def concurrent_reset(self, name: str, other: str) -> None:
        user = self.known(name)
        if user is None or user.admission(self.now_us, "admin") != "admit":
            return
        base, tx = len(user.versions), self.manager.transaction(name, **BY)
        tx.begin()
        tx.apply("move", lambda s: s.replace(x1=0.01))
        if other == "reset":
            self.reset(name, lambda: self.manager.perform_reset(name, **BY), "admin", None)
        else:
            self.ordinary(name, 1, 0.0)
        if len(user.versions) > base:
            refused(ConflictError, tx.commit)
            self.oracle.attempt(tx.attempt_id, "conflicted")
            user.ended("conflicted", self.now_us, "admin", base)
        else:
            self.oracle.attempt(tx.commit().attempt_id, "committed")
            user.ended("committed", self.now_us, "admin", base)
            self.grow(name, 1)

    @precondition(lambda self: any(u.versions for u in self.oracle.users.values()))
    @rule(name=USERS, pick=st.integers(0, 1_000))
    def restore(self, name: str, pick: int) -> None:
        user = self.known(name)
        if user is None:
            return
        version, before = 1 + pick % len(user.versions), len(user.versions)
        self.reset(name, lambda: self.manager.restore(name, to_version=version, expect_version=before, **BY), "restore", None)
        if len(user.versions) > before:
            assert user.versions[-1] == user.versions[version - 1]
            self.oracle.witnessed["restored"] += 1

    @rule(hours=st.integers(1, 96))
    def wait(self, hours: int) -> None:
        self.clock.wall_us += hours * HOUR_US

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.open()
        assert self.store.interrupted == 0

    @rule(name=USERS, moment=st.sampled_from(("idle", "running", "waiting")))
    def crash(self, name: str, moment: str) -> None:
        user = self.known(name)
        begun: ResetTransaction | None = None
        if user is not None and moment != "idle":
            begun = self.manager.transaction(name, **BY)
            if user.admission(self.now_us, "admin") == "refuse":
                self.oracle.attempt(refused(BreakerOpen, begun.begin).attempt_id, "refused")
                begun = None
            else:
                begun.begin()
                begun.apply("move", lambda s: s.replace(x0=99.0))
                if moment == "waiting" and begun._slot is not None:
                    self.store.marks.state(begun._slot, WAITING)
        self.store.marks.abandon()
        self.store.engine.close()
        statemachine.store._OPEN_STORES.discard(self.store)
        self.open()
        assert self.store.interrupted == (begun is not None)
        if begun is not None and user is not None:
            self.oracle.attempt(begun.attempt_id, "interrupted")
            user.ended("interrupted" if moment == "running" else "", self.now_us, "admin", len(user.versions))

    # What must hold after each.

    @invariant()
    def versions_are_gapless_and_stay(self) -> None:
        for name, user in self.oracle.users.items():
            assert [info.version for info in self.store.history(name)] == list(range(1, len(user.versions) + 1))
            prefix = keys.versions(name.encode())
            log = dict(self.store.engine.scan(prefix, keys.after(prefix)))
            if log != self.folded.get(name):  # where no record has changed, no fold can have
                for version, data in enumerate(user.versions, 1):
                    assert self.bytes_of(name, version) == data
                self.folded[name] = log
            loaded = self.store.load(name)
            assert (loaded is not None) == bool(user.versions)
            assert loaded is None or self.store.estimator.encode(loaded.state) == user.versions[-1]

    @invariant()
    def measurements_are_conserved(self) -> None:
        for name, user in self.oracle.users.items():
            key = name.encode()
            kept = self.store.draft().identities(key, -(2**62))
            assert {at for at, _ in kept} == {identities.key_of(key, m) for m in user.sent.values()}
            accepted = sum(identity.disposition == ACCEPTED for _, identity in kept)
            details = [row.personal.details for row in self.store.audit(name) if row.public.outcome == "committed"]
            moved = sum(d.get("released_from_quarantine", 0) - d.get("withdrawn_to_quarantine", 0) for d in details)
            assert accepted == user.accepted + moved
            aside = record(Aside, keys.aside(key), self.store.engine.get(keys.aside(key)))
            assert (aside.count if aside else 0) == len(kept) - accepted == len(list(self.store.quarantine(name)))

    @invariant()
    def each_attempt_has_one_outcome(self) -> None:
        if not hasattr(self, "store"):
            return
        assert self.store.verify_audit().problem == ""
        rows = [row for row in self.store.audit() if row.public.attempt_id]
        outcomes = {row.public.attempt_id: row.public.outcome for row in rows}
        assert len(outcomes) == len(rows), "an attempt has two outcomes"
        outcomes.update((mark.attempt_id, mark.outcome) for mark in self.store.marks.ended().values())
        # Attempts of a batch that was taken anew are told by nobody but the log.
        unheard = {key: outcome for key, outcome in outcomes.items() if key not in self.oracle.attempts}
        assert set(unheard.values()) <= {"conflicted"}
        assert {key: outcome for key, outcome in outcomes.items() if key not in unheard} == self.oracle.attempts


def lives(count: int | None = None, **more: Any) -> settings:
    """As many examples as the profile says, each a whole life of 30 steps."""
    return settings(max_examples=count or settings().max_examples, stateful_step_count=30, report_multiple_bugs=False, **more)


def test_reset_machine() -> None:
    """Whatever is done to a store in whatever order, every invariant holds after each step, and every outcome occurs."""
    WITNESSES.clear()
    run_state_machine_as_test(ResetMachine, settings=lives())
    expected = {
        "accepted", "quarantined", "late", "duplicate", "committed", "rolled_back", "conflicted", "interrupted", "refused",
        "initial", "gap", "level-shift", "revocation", "restored",
    }
    assert expected - set(WITNESSES) == set()


@pytest.mark.parametrize("number", [10, 17, 18, 23])
def test_reset_machine_finds_a_planted_bug(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a guard taken out of the library, the machine fails."""
    removal = next(removal for removal in guards.REMOVALS if removal.number == number)
    removal.patch(monkeypatch)
    quick = lives(200, derandomize=True, database=None, phases=[Phase.generate])
    refused((AssertionError, ResetError), run_state_machine_as_test, ResetMachine, settings=quick)
