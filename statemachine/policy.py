"""When to reset and with which figures: one pure `decide` over the state, the held run, the pin and a reading.

The one rule for surprises: an ordinary reading is accepted when its NIS is at most `gate`, else it is *held*.  A reset
that rests on one reading (gap, manual entry) must be plausible, else the reading is held too.  Three held readings that
agree with each other are evidence of their own, and start one reset: from the pin where they fit it (the reset under
probation was wrong and is revoked), else from the earliest of them (the level really has shifted).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, Protocol

import msgspec

from statemachine.clock import US_PER_DAY
from statemachine.state import Reading

DAYS_PER_MONTH: Final = 30.4375
MANUAL_SOURCES: Final = frozenset({
    "questionnaire", "initial questionnaire", "internal questionnaire", "patient upload", "user upload",
    "care team", "care team upload", "care team entry", "manual", "manual entry",
})


class ResetParameters(msgspec.Struct, frozen=True):
    """The figures of one kind of reset; multipliers have no unit.

    `variance` times R is the new level variance; `level`, `trend` and `observation` multiply Q[0,0], Q[1,1] and R while
    adapting, which lasts `measurements` accepted ones or `days`, whichever is longer; `rate` is the time constant of
    the return to base values, in measurements.
    """

    variance: float
    level: float
    trend: float
    observation: float
    measurements: int
    days: float
    rate: float


_GAP: Final = ResetParameters(5.0, 20.0, 200.0, 0.5, 10, 7.0, 2.5)
KINDS: Final[Mapping[str, ResetParameters]] = {
    "initial": ResetParameters(10.0, 50.0, 500.0, 0.3, 20, 21.0, 1.5),
    "gap": _GAP,
    "manual-entry": ResetParameters(2.0, 5.0, 20.0, 0.7, 15, 10.0, 4.0),
    "level-shift": _GAP,
    "admin": _GAP,
}


class Filter(Protocol):
    """What `decide` needs of an estimator and its rules."""

    def step(self, state: Any, reading: Reading) -> Any:
        """The state after the reading."""

    def nis(self, state: Any, reading: Reading) -> float:
        """Normalised innovation squared."""

    def change(self, state: Any, reading: Reading) -> float:
        """The distance of the reading from the estimate, in the estimator's unit."""

    def spread(self, state: Any, earlier: Reading, later: Reading) -> float:
        """d^2 / (2R + q dt)."""

    def at_us(self, state: Any) -> int:
        """The instant of the state."""

    def sound(self, state: Any) -> bool:
        """Whether the state passes the rules in force."""


class Situation(msgspec.Struct, frozen=True, gc=False):
    """What is known of a user when a reading comes.

    `run`: the held readings that are still evidence, in time order.  `pin`: the state before the reset under probation,
    None where there is no probation or nothing stood before.  `reset_us`: the instant of the last reset.
    """

    state: Any
    run: tuple[Reading, ...] = ()
    pin: Any = None
    reset_us: int = 0


class Decision(msgspec.Struct, frozen=True, gc=False):
    """What to do with a reading.

    `action`: "accept" it as a step, "hold" it, or "reset" by `kind`.  A reset starts from the reading itself, from the
    run's member number `run_from`, or from the pin ("pin").  `explain` is the sentence for the audit or the quarantine;
    `nis` is None where there is no state to measure against.  `refused_kind` names a reset that was not plausible.
    """

    action: Literal["accept", "hold", "reset"]
    explain: str
    nis: float | None = None
    kind: str = ""
    start: Literal["reading", "run", "pin"] = "reading"
    run_from: int = 0
    refused_kind: str = ""


class ResetPolicy(msgspec.Struct, frozen=True):
    """The figures by which resets are decided; every limit is inclusive.

    `plausible_base` + `plausible_per_log_month` * ln(1 + months) bounds the change that one reading may stand for
    (growthcleanr's figures for adult weights, in kg).  Evidence is looked for among the newest `run_looked_at_max` recorded
    measurements.
    """

    gate: float = 16.0
    gap_days: float = 30.0
    manual_change: float = 5.0
    manual_rest_days: float = 3.0
    run_readings: int = 3
    run_looked_at_max: int = 1_000
    probation_measurements: int = 5
    probation_days: float = 14.0
    plausible_base: float = 4.0
    plausible_per_log_month: float = 18.0
    kinds: Mapping[str, ResetParameters] = msgspec.field(default_factory=lambda: dict(KINDS))
    manual_sources: frozenset[str] = MANUAL_SOURCES

    def ordinary(self, filter_: Filter, state: Any, reset_us: int, reading: Reading, source: str) -> float | None:
        """The NIS of a reading that asks for no reset and passes the gate, which most do; None for any other."""
        nis = filter_.nis(state, reading)
        days = (reading.at_us - filter_.at_us(state)) / US_PER_DAY
        if not nis <= self.gate or days >= self.gap_days:
            return None
        if source in self.manual_sources and self._trigger(source, days, filter_.change(state, reading),
                                                           (reading.at_us - reset_us) / US_PER_DAY)[0]:
            return None
        return nis

    def decide(
        self, filter_: Filter, situation: Situation, reading: Reading, source: str, unfit: str = "",
    ) -> Decision:
        """What to do with `reading`, which is later than the state; `source` is the normalised name of its source.

        `unfit` says why the reading cannot be accepted although it passes the gate (its step would break a rule): it is
        then a surprise like any other.
        """
        state = situation.state
        if state is None:
            return Decision("reset", "no state yet", kind="initial")
        ordinary = self.ordinary(filter_, state, situation.reset_us, reading, source)
        if ordinary is not None and not unfit:
            return Decision("accept", "", ordinary)
        nis = filter_.nis(state, reading)
        days = (reading.at_us - filter_.at_us(state)) / US_PER_DAY
        change = filter_.change(state, reading)
        kind, trigger = self._trigger(source, days, change, (reading.at_us - situation.reset_us) / US_PER_DAY)
        limit = self.plausible_change(days)
        if kind and change <= limit:
            return Decision("reset", trigger, nis, kind)
        by_run = self._by_run(filter_, situation, reading, nis)
        if by_run is not None:
            return by_run
        if kind:
            explain = f"{trigger}; a change of {change:.3g} in {days:.3g} days is not plausible (limit {limit:.3g})"
            return Decision("hold", explain, nis, refused_kind=kind)
        return Decision("hold", unfit or f"surprising: NIS {nis:.1f} is above the gate {self.gate:g}", nis)

    def _trigger(self, source: str, days: float, change: float, since_reset_days: float) -> tuple[str, str]:
        if days >= self.gap_days:
            return "gap", f"gap of {days:.3g} days since the last accepted measurement (limit {self.gap_days:g})"
        if source in self.manual_sources and change >= self.manual_change and since_reset_days > self.manual_rest_days:
            return "manual-entry", f"manual entry ({source}) differs by {change:.3g} (limit {self.manual_change:g})"
        return "", ""

    def plausible_change(self, days: float) -> float:
        """The greatest change that one reading may stand for after `days` without one."""
        return self.plausible_base + self.plausible_per_log_month * math.log1p(max(days, 0.0) / DAYS_PER_MONTH)

    def _by_run(self, filter_: Filter, situation: Situation, reading: Reading, nis: float) -> Decision | None:
        """The reset that the newest held readings are evidence for; a stray one among older ones does not spoil them."""
        run = (*situation.run, reading)
        start = len(run) - 1
        while start > 0 and filter_.spread(situation.state, run[start - 1], run[start]) <= self.gate:
            start -= 1
        agreeing = run[start:]
        if len(agreeing) < self.run_readings:
            return None
        if situation.pin is not None and self.fits(filter_, situation.pin, agreeing):
            explain = f"{len(agreeing)} held measurements agree with the state before the reset under probation"
            return Decision("reset", explain, nis, "revocation", "pin", start)
        explain = f"{len(agreeing)} held measurements agree with each other"
        return Decision("reset", explain, nis, "level-shift", "run", start)

    def fits(self, filter_: Filter, state: Any, readings: Sequence[Reading]) -> bool:
        """Whether the readings pass the gate one after the other, starting from `state`, and leave sound states."""
        for reading in readings:
            if not (reading.at_us > filter_.at_us(state) and filter_.nis(state, reading) <= self.gate):
                return False
            state = filter_.step(state, reading)
            if not filter_.sound(state):
                return False
        return True

    def probation_over(self, since_us: int, accepted: int, at_us: int) -> bool:
        """Whether a reset at `since_us` has proven itself by `at_us`, with `accepted` measurements that fitted since."""
        return accepted >= self.probation_measurements or at_us - since_us >= self.probation_days * US_PER_DAY
