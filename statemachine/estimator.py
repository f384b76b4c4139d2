"""What a kind of state supplies to the guard (`Estimator`), and the built-in one: body weight.

The guard, the log and the replay are generic: they only ever call what is declared here.  `step` reads its arguments
and nothing else, and uses + - * / on doubles alone, so that a replay gives the same bits on every machine.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final, NamedTuple, Protocol, runtime_checkable

import msgspec

from statemachine import kalman
from statemachine.clock import US_PER_DAY, from_us, to_us
from statemachine.errors import InvalidInput, StoreCorrupt
from statemachine.policy import ResetParameters
from statemachine.state import PAIR, Adaptation, Counters, EstimatorState, Kalman, Measurement, Reading
from statemachine.validation import Limits, Rule, body_weight_rules
from statemachine.vectorised import FIGURES, Folded, Lanes, body_weight_figures, fold_body_weight


class Operation(NamedTuple):
    """One named mutation of a reset: from the state before it (None: nothing stored yet) to the state after it."""

    name: str
    run: Callable[[Any], Any]


class Estimator(Protocol):
    """A kind of state: its codec, its rules and its arithmetic.  All methods are pure.

    `schema` numbers the encoding, `kernel` the arithmetic of `step`; both are stored and must be raised with any change.
    """

    name: str
    schema: int
    kernel: int
    rules: tuple[Rule, ...]

    def encode(self, state: Any) -> bytes:
        """The state as bytes; equal states give equal bytes."""

    def decode(self, data: bytes) -> Any:
        """The state from its bytes, bit for bit; raises StoreCorrupt for anything else."""

    def is_state(self, value: Any) -> bool:
        """Whether `value` is one of this estimator's states, and not merely something like it."""

    def at_us(self, state: Any) -> int:
        """The instant of the state, in microseconds since 1970 UTC."""

    def reading(self, measurement: Any) -> Reading:
        """What the log keeps of a measurement, in the estimator's own units; raises InvalidInput for what is none."""

    def step(self, state: Any, reading: Reading) -> Any:
        """The state after an accepted measurement."""

    def nis(self, state: Any, reading: Reading) -> float:
        """Normalised innovation squared of the reading, divided by its degrees of freedom where there are several."""

    def change(self, state: Any, reading: Reading) -> float:
        """How far the reading lies from the estimate, in the estimator's own unit."""

    def spread(self, state: Any, earlier: Reading, later: Reading) -> float:
        """d^2 / (2R + q dt) of two readings: whether they can belong to one course."""

    def adapting(self, state: Any, at_us: int) -> bool:
        """Whether the noise is still widened at an instant, so that a NIS then says little about consistency."""

    def operations(self, how: ResetParameters, reading: Reading | None, at_us: int) -> tuple[Operation, ...]:
        """The mutations of a reset at `at_us` that rests on `reading`, or on the state itself where it is None."""

    def deltas(self, before: Any, after: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """delta_x and delta_P (row by row) that a reset made, for those who follow the state; before None counts as zeros."""


@runtime_checkable
class Tells(Protocol):
    """What an estimator may have beside: figures of each step for deferred rules; one without is judged by its NIS alone."""

    figure_units: Mapping[str, str]

    def figures(self, state: Any, reading: Reading) -> Mapping[str, float]:
        """Each figure of the step from `state` with `reading`, by the names of `figure_units`."""


@runtime_checkable
class FoldsMany(Protocol):
    """What an estimator may have beside: `step` of many logs at once, with the same bits; one without is folded in a loop."""

    def fold_many(self, lanes: Lanes) -> Folded:
        """Every lane folded, as `step` would; raises OverflowError or ValueError for what its columns cannot hold."""


SOURCE_MULTIPLIERS: Final[Mapping[str, float]] = {
    "care team": 0.5, "care team upload": 0.5, "care team entry": 0.5,
    "patient upload": 0.7, "user upload": 0.7, "manual": 0.7, "manual entry": 0.7,
    "questionnaire": 0.8, "initial questionnaire": 0.8, "internal questionnaire": 0.8,
    "device": 1.0, "patient device": 1.0, "scale": 1.0,
    "connected health": 1.5, "glucose meter": 3.0,
}
"""Observation-noise multipliers by source; a source not listed has 1.0, is not manual, and is reported."""

_TREND_SD_KG_PER_DAY: Final = 0.05
_EARLIEST_US: Final = to_us(datetime.min.replace(tzinfo=UTC))
_LATEST_US: Final = to_us(datetime.max.replace(tzinfo=UTC))


@lru_cache(maxsize=10_000)
def source_name(source: str) -> str:
    """A source as it is looked up: lower case, words separated by one space."""
    return " ".join(source.lower().replace("-", " ").replace("_", " ").split())


class BodyWeight:
    """Body weight in kg and its trend in kg/day, by the filter of `statemachine.kalman`.

    `r_kg2`: variance of a reading from a source of multiplier 1.  `q_level` in kg^2/day, `q_trend` in (kg/day)^2/day.
    How these were chosen is in docs/decisions/0003.
    """

    name = "body-weight"
    schema = 1
    kernel = kalman.KERNEL
    figure_units: Mapping[str, str] = FIGURES

    def __init__(
        self, *, r_kg2: float = 0.15, q_level: float = 0.05, q_trend: float = 1e-4, limits: Limits | None = None,
        sources: Mapping[str, float] = SOURCE_MULTIPLIERS,
    ) -> None:
        self.limits = limits or Limits()
        self.r_kg2 = float(r_kg2)
        self.q_level = float(q_level)
        self.q_trend = float(q_trend)
        self.sources = dict(sources)
        self.rules = self._own_rules = body_weight_rules(self.limits)
        self._multiplier: dict[str, float] = {}
        self._last: tuple[EstimatorState, Reading, kalman.Prediction] | None = None

    def encode(self, state: EstimatorState) -> bytes:
        """msgpack of the four parts, the buffer packed as little-endian (int64 us, float64 kg) pairs."""
        a = state.adaptation
        reset_us = None if a.reset_at is None else to_us(a.reset_at)
        rest = (reset_us, a.count, a.g, a.decay, a.rate, a.level, a.trend, a.observation, a.measurements, a.until_us)
        return _encode((state.kalman, state.packed, rest, state.counters, state.readings_max))

    def decode(self, data: bytes) -> EstimatorState:
        """The state, bit for bit; raises StoreCorrupt for bytes that are none."""
        try:
            k, packed, (reset_us, *rest), counters, readings_max = _decode(data)
            reset_at = None if reset_us is None else from_us(reset_us)
            PAIR.iter_unpack(packed)  # refuses what is no whole number of readings
            return EstimatorState(Kalman(*k), packed, Adaptation(reset_at, *rest), Counters(*counters), readings_max)
        except (msgspec.MsgspecError, struct.error, TypeError, ValueError, OverflowError) as error:
            message = f"a body-weight state does not decode: {error}"
            raise StoreCorrupt(message) from error

    def check(self, data: bytes) -> None:
        """Raise what `decode` would, and build nothing."""
        try:
            _, packed, (reset_us, *_), _, _ = _decode(data)
        except (msgspec.MsgspecError, ValueError) as error:
            message = f"a body-weight state does not decode: {error}"
            raise StoreCorrupt(message) from error
        if len(packed) % PAIR.size or not (reset_us is None or _EARLIEST_US <= reset_us <= _LATEST_US):
            message = "a body-weight state does not decode: its buffer is torn, or its last reset is in no year from 1 to 9999"
            raise StoreCorrupt(message)

    def is_state(self, value: Any) -> bool:
        """Whether `value` is an `EstimatorState`."""
        return type(value) is EstimatorState

    def at_us(self, state: EstimatorState) -> int:
        """The instant of the estimate."""
        return state.kalman.at_us

    def reading(self, measurement: Measurement) -> Reading:
        """The measurement in kg with the variance of its source; raises InvalidInput unless it is finite and above 0."""
        weight_kg = measurement.weight_kg
        if not 0.0 < weight_kg < math.inf:
            message = f"{measurement.value} {measurement.unit} is no weight; it must be a finite number above 0"
            raise InvalidInput(message, user=measurement.user)
        return Reading(measurement.at_us, (weight_kg,), self.r_kg2 * self.multiplier(measurement.source))

    def multiplier(self, source: str) -> float:
        """The noise multiplier of a source, 1.0 where it is not known."""
        found = self._multiplier.get(source)
        if found is None:
            found = self.sources.get(source_name(source), 1.0)
            if len(self._multiplier) < 10_000:  # noqa: PLR2004 - a memo; sources come from files
                self._multiplier[source] = found
        return found

    def step(self, state: EstimatorState, reading: Reading) -> EstimatorState:
        """Predict to the reading's instant and update with it; the buffer and the adaptation move on by one."""
        k, a = state.kalman, state.adaptation
        z, kept = reading.values[0], PAIR.size * (state.readings_max - 1)
        newest = PAIR.pack(reading.at_us, z)
        x0, x1, p00, p01, p11 = kalman.update(self._prediction(state, reading), z)
        return EstimatorState(
            Kalman(x0, x1, p00, p01, p01, p11, k.q0, k.q1, k.r, reading.at_us, k.dt_days_max),
            state.packed[-kept:] + newest if kept else newest,
            Adaptation(a.reset_at, a.count + 1, a.g * a.decay, a.decay, a.rate, a.level, a.trend, a.observation,
                       a.measurements, a.until_us),
            state.counters, state.readings_max,
        )

    def nis(self, state: EstimatorState, reading: Reading) -> float:
        """(z - H x)^2 / S at the reading's instant; chi-square of one degree of freedom when consistent."""
        prediction = kalman.predict(state.kalman, state.adaptation, reading.at_us, reading.r)
        self._last = (state, reading, prediction)
        return kalman.nis(prediction, reading.values[0])

    def figures(self, state: EstimatorState, reading: Reading) -> Mapping[str, float]:
        """Innovation (kg), its variance S (kg^2), the gain of the level, and the level after the step (kg)."""
        return body_weight_figures(reading, self._prediction(state, reading))

    def fold_many(self, lanes: Lanes) -> Folded:
        """Every lane folded side by side in numpy, bit for bit as `step` does it."""
        return fold_body_weight(lanes, self.limits, self._own_rules)

    def _prediction(self, state: EstimatorState, reading: Reading) -> kalman.Prediction:
        """The prediction for a reading; the one of the last `nis` is kept, since a reading is judged and then taken in."""
        last = self._last
        if last is not None and last[0] is state and last[1] is reading:
            return last[2]
        return kalman.predict(state.kalman, state.adaptation, reading.at_us, reading.r)

    def adapting(self, state: EstimatorState, at_us: int) -> bool:
        """Whether fewer than N measurements or D days have passed since the reset."""
        return kalman.is_adapting(state.adaptation, at_us)

    def change(self, state: EstimatorState, reading: Reading) -> float:
        """The distance of the reading from the estimate, in kg."""
        return abs(reading.values[0] - state.kalman.x0)

    def spread(self, state: EstimatorState | None, earlier: Reading, later: Reading) -> float:
        """d^2 / (2R + q dt), R the larger variance of the two, q the base level noise."""
        d = later.values[0] - earlier.values[0]
        q = self.q_level if state is None else state.kalman.q0
        return d * d / (2.0 * max(earlier.r, later.r) + q * (later.at_us - earlier.at_us) / US_PER_DAY)

    def operations(self, how: ResetParameters, reading: Reading | None, at_us: int) -> tuple[Operation, ...]:
        """Replace the filter, clear the buffer, restart the adaptation, take in the reading.

        P becomes diag(variance * R, 0.05^2); with no reading `x` and the buffer stay.
        """
        def restart(s: EstimatorState) -> EstimatorState:
            return s.replace(adaptation=self._adaptation(how, at_us),
                             counters=msgspec.structs.replace(s.counters, adaptation=s.counters.adaptation + 1))

        if reading is None:
            return (Operation("replace covariance", lambda s: self._widened(how, s)), Operation("restart adaptation", restart))
        z = reading.values[0]

        def clear(s: EstimatorState) -> EstimatorState:
            return s.replace(packed=b"", counters=msgspec.structs.replace(s.counters, buffer=s.counters.buffer + 1))

        return (
            Operation("replace filter", lambda s: self._replaced(how, s, reading)),
            Operation("clear buffer", clear),
            Operation("restart adaptation", restart),
            Operation("admit first measurement", lambda s: s.replace(buffer=(*s.buffer, (reading.at_us, z)))),
        )

    def _adaptation(self, how: ResetParameters, at_us: int) -> Adaptation:
        rate = float(how.rate)  # figures may be written as ints; a state holds floats
        return Adaptation(from_us(at_us), 0, 1.0, math.exp(-1.0 / rate), rate, float(how.level), float(how.trend),
                          float(how.observation), how.measurements, at_us + int(how.days * US_PER_DAY))

    def _widened(self, how: ResetParameters, s: EstimatorState) -> EstimatorState:
        p00, p11 = how.variance * s.kalman.r, _TREND_SD_KG_PER_DAY * _TREND_SD_KG_PER_DAY
        return s.replace(p00=p00, p01=0.0, p10=0.0, p11=p11, counters=msgspec.structs.replace(s.counters, P=s.counters.P + 1))

    def _replaced(self, how: ResetParameters, s: EstimatorState | None, reading: Reading) -> EstimatorState:
        if s is None:
            noise = (self.q_level, self.q_trend, self.r_kg2)
            bare = Kalman(0.0, 0.0, 1.0, 0.0, 0.0, 1.0, *noise, reading.at_us, self.limits.dt_days_max)
            s = EstimatorState(bare, b"", self._adaptation(how, reading.at_us), Counters())
        elif s.packed and s.buffer[-1][0] >= reading.at_us:
            # A reset that goes back to the start of a run takes the later readings with it.
            s = s.replace(buffer=tuple(pair for pair in s.buffer if pair[0] < reading.at_us))
        widened = self._widened(how, s).replace(readings_max=self.limits.buffer_readings_max)
        return widened.replace(x0=reading.values[0], x1=0.0, at_us=reading.at_us,
                               counters=msgspec.structs.replace(widened.counters, x=widened.counters.x + 1))

    def deltas(self, before: EstimatorState | None, after: EstimatorState) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """delta_x (2) in kg and kg/day, delta_P (4) row by row in their squares."""
        a = after.kalman
        if before is None:
            return (a.x0, a.x1), (a.p00, a.p01, a.p10, a.p11)
        b = before.kalman
        return (a.x0 - b.x0, a.x1 - b.x1), (a.p00 - b.p00, a.p01 - b.p01, a.p10 - b.p10, a.p11 - b.p11)


_encode = msgspec.msgpack.Encoder().encode
_decode: Callable[[bytes], Any] = msgspec.msgpack.Decoder(tuple[
    tuple[float, float, float, float, float, float, float, float, float, int, float], bytes,
    tuple[int | None, int, float, float, float, float, float, float, int, int], tuple[int, int, int, int], int,
]).decode

BODY_WEIGHT: Final = BodyWeight()
"""The built-in estimator with its default figures."""
