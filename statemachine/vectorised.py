"""Many logs folded side by side: step k of every lane at once, in numpy, with the bits of the loop of `statemachine.kalman`.

Only + - * / on doubles, in the order in which `kalman.predict` and `kalman.update` have them, and one operation a numpy
call, so that nothing is fused: IEEE 754 then leaves no room for another result.  A property test compares them bit for bit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import msgspec
import numpy as np

from statemachine import kalman
from statemachine.clock import US_PER_DAY
from statemachine.state import PAIR, Adaptation, EstimatorState, Kalman, Reading
from statemachine.validation import COUNT_MAX, INSTANT_US_MAX, INSTANT_US_MIN, Limits, Rule

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]
    Flags = NDArray[np.bool_]

LANES_MIN: Final = 12
"""Below so many lanes still running, numpy's cost a call exceeds that of the loop, which then takes over: same bits."""

EXACT_US_MAX: Final = 2**53
"""Differences up to it are doubles exactly; beyond, Python's division of ints rounds once where numpy's would twice."""

FIGURES: Final[Mapping[str, str]] = {"innovation": "kg", "innovation_variance": "kg^2", "gain": "", "level": "kg"}
"""What is told of each step of body weight, with its unit: z - H x, S, the gain of the level, the level after the step."""

_PAIR_TYPE: Final = np.dtype([("at_us", "<i8"), ("kg", "<f8")])
_STARTS: Final = (
    ("x0", np.float64), ("x1", np.float64), ("p00", np.float64), ("p01", np.float64), ("p11", np.float64),
    ("q0", np.float64), ("q1", np.float64), ("dt_days_max", np.float64), ("at_us", np.int64),
)
_ADAPTATION: Final = (
    ("count", np.int64), ("g", np.float64), ("decay", np.float64), ("level", np.float64), ("trend", np.float64),
    ("observation", np.float64), ("measurements", np.int64), ("until_us", np.int64),
)


class Lanes(NamedTuple):
    """Readings in one long table, and lanes over it: lane i begins at `states[i]` and takes `lengths[i]` rows from `starts[i]`.

    The lanes follow each other and take every row once, so that `starts` are the sums of the lengths before.
    `at_us` in microseconds since 1970 UTC, `values` one column a measured quantity, `r` the variance of each reading.
    """

    states: Sequence[Any]
    starts: Ints
    lengths: Ints
    at_us: Ints
    values: Floats
    r: Floats

    def reading(self, row: int) -> Reading:
        """One row as the log's reading."""
        return Reading(int(self.at_us[row]), tuple(self.values[row].tolist()), float(self.r[row]))


class Folded(Protocol):
    """Lanes folded: what each step was and gave, aligned with the rows of the table, and any state on the way.

    `nis`, `adapting` and `figures` are as `Estimator.nis`, `Estimator.adapting` and `Estimator.figures` give them at each
    step.  `trouble`: for a lane that could not be folded to its end, the row where it stopped and why; what is told of that
    row and those after it in the lane means nothing.  `vouched`: the rules that `sound` speaks for.
    """

    nis: Floats
    adapting: Flags
    vouched: tuple[Rule, ...]

    @property
    def figures(self) -> Mapping[str, Floats]:
        """Each figure, a number a row."""

    @property
    def trouble(self) -> Mapping[int, tuple[int, str]]:
        """Where and why a lane stopped."""

    def state(self, lane: int, row: int) -> Any:
        """The state after a row of a lane, bit for bit that of `Estimator.step`."""

    def sound(self) -> Flags:
        """For each row whether the state after it certainly passes `vouched`, if the state at the lane's beginning does."""


class FoldedBodyWeight:
    """Body weight folded; see `Folded`.  Made by `fold_body_weight`."""

    def __init__(self, lanes: Lanes, limits: Limits, vouched: tuple[Rule, ...]) -> None:
        rows = len(lanes.at_us)
        self.lanes = lanes
        self.vouched = vouched
        self._limits = limits
        self.x0, self.x1, self.p00, self.p01, self.p11, self.g = (np.full(rows, np.nan) for _ in range(6))
        self.count: Ints = np.zeros(rows, np.int64)
        self.nis: Floats = np.full(rows, np.nan)
        self.adapting: Flags = np.zeros(rows, np.bool_)
        self._figures: dict[str, Floats] = {name: np.full(rows, np.nan) for name in FIGURES}
        self._trouble: dict[int, tuple[int, str]] = {}

    @property
    def figures(self) -> dict[str, Floats]:
        """Innovation, its variance, the gain and the level at each row."""
        return self._figures

    @property
    def trouble(self) -> dict[int, tuple[int, str]]:
        """The lanes in which an innovation had no variance."""
        return self._trouble

    def state(self, lane: int, row: int) -> EstimatorState:
        """The state after a row of a lane, put together from the columns."""
        begun = self.lanes.states[lane]
        k, a = begun.kalman, begun.adaptation
        first = max(int(self.lanes.starts[lane]), row + 1 - begun.readings_max)
        p01 = float(self.p01[row])
        pairs = np.empty(row + 1 - first, _PAIR_TYPE)
        pairs["at_us"], pairs["kg"] = self.lanes.at_us[first:row + 1], self.lanes.values[first:row + 1, 0]
        return EstimatorState(
            Kalman(float(self.x0[row]), float(self.x1[row]), float(self.p00[row]), p01, p01, float(self.p11[row]), k.q0, k.q1,
                   k.r, int(self.lanes.at_us[row]), k.dt_days_max),
            (begun.packed + pairs.tobytes())[-PAIR.size * begun.readings_max:],
            Adaptation(a.reset_at, int(self.count[row]), float(self.g[row]), a.decay, a.rate, a.level, a.trend, a.observation,
                       a.measurements, a.until_us),
            begun.counters, begun.readings_max,
        )

    def sound(self) -> Flags:
        """As the inline rules have it, for what a step changes; narrower than they are (the trace bounds an eigenvalue)."""
        most, lanes = self._limits, self.lanes
        before: Ints = np.empty_like(lanes.at_us)
        before[1:] = lanes.at_us[:-1]
        for start, length, state in zip(lanes.starts, lanes.lengths, lanes.states, strict=True):
            if length:
                newest = PAIR.unpack_from(state.packed, len(state.packed) - PAIR.size)[0] if state.packed else INSTANT_US_MIN
                before[start] = max(state.kalman.at_us, newest)
        kg = lanes.values[:, 0]
        taken = ((kg >= most.weight_kg_min) & (kg <= most.weight_kg_max)
                 & (lanes.at_us > before) & (lanes.at_us >= INSTANT_US_MIN) & (lanes.at_us <= INSTANT_US_MAX))
        # A reading that breaks a rule stays in the buffer for a while: nothing after it in its lane is vouched for.
        refused = np.concatenate((np.zeros(1, np.int64), np.cumsum(~taken)))
        refused_before = np.repeat(refused[lanes.starts], lanes.lengths)
        with np.errstate(all="ignore"):
            trace, determinant = self.p00 + self.p11, self.p00 * self.p11 - self.p01 * self.p01
            return np.asarray(
                (self.x0 >= most.weight_kg_min) & (self.x0 <= most.weight_kg_max)
                & (np.abs(self.x1) <= most.trend_kg_per_day_max)
                & (self.p00 >= most.p_level_kg2_min) & (self.p00 <= most.p_level_kg2_max)
                & (self.p11 >= most.p_trend_min) & (self.p11 <= most.p_trend_max)
                & (determinant > 0.0) & (trace * trace <= most.condition_max * determinant)
                & (self.g >= 0.0) & (self.g <= 1.0) & (self.count > 0) & (self.count <= COUNT_MAX)
                & (refused[1:] == refused_before))


class _Running(msgspec.Struct):
    """The filters that are still running, one element a lane; the longest lanes come first."""

    x0: Floats
    x1: Floats
    p00: Floats
    p01: Floats
    p11: Floats
    q0: Floats
    q1: Floats
    dt_days_max: Floats
    at_us: Ints
    count: Ints
    g: Floats
    decay: Floats
    level: Floats
    trend: Floats
    observation: Floats
    measurements: Ints
    until_us: Ints

    def first(self, lanes: int) -> _Running:
        """The first so many lanes; the others have come to their end."""
        return _Running(*(getattr(self, name)[:lanes] for name in self.__struct_fields__))


def fold_body_weight(lanes: Lanes, limits: Limits, vouched: tuple[Rule, ...], lanes_min: int = LANES_MIN) -> FoldedBodyWeight:
    """Fold lanes of body weight side by side.  Raises OverflowError or ValueError for a state that no column can hold."""
    done = FoldedBodyWeight(lanes, limits, vouched)
    order = np.argsort(-lanes.lengths, kind="stable")
    lengths = lanes.lengths[order]
    if any(state.readings_max < 1 for state in lanes.states):
        message = "a buffer of no readings"
        raise ValueError(message)
    states = [lanes.states[lane] for lane in order]
    running = _Running(*_columns(Kalman, _STARTS, [state.kalman for state in states]),
                       *_columns(Adaptation, _ADAPTATION, [state.adaptation for state in states]))
    starts, ranks = lanes.starts[order], -lengths
    rank = 0
    with np.errstate(all="ignore"):
        while True:
            many = int(np.searchsorted(ranks, -rank, side="left"))  # those longer than `rank`
            if many < max(lanes_min, 1):
                break
            if many < len(running.x0):
                running = running.first(many)
            _step(done, running, starts[:many] + rank)
            rank += 1
    for place in range(many):
        _finish(done, running, place, int(order[place]), range(int(starts[place]) + rank, int(starts[place] + lengths[place])))
    _note_trouble(done)
    return done


def _columns(kind: type[msgspec.Struct], wanted: Sequence[tuple[str, type]], parts: Sequence[Any]) -> list[Any]:
    """The named fields of many structs, a column each."""
    columns = zip(*map(msgspec.structs.astuple, parts), strict=True)
    fields = dict(zip(kind.__struct_fields__, columns, strict=bool(parts)))
    return [np.array(fields.get(name, ()), dtype) for name, dtype in wanted]


def _step(done: FoldedBodyWeight, f: _Running, rows: Ints) -> None:
    """One reading of each lane: `kalman.predict`, `kalman.nis` and `kalman.update`, an element a lane."""
    at_us, z, r = done.lanes.at_us[rows], done.lanes.values[rows, 0], done.lanes.r[rows]
    dt = _days(at_us - f.at_us)
    noise_dt = np.where(dt < f.dt_days_max, dt, f.dt_days_max)
    adapting = (f.count < f.measurements) | (at_us < f.until_us)
    fitted = 1.0 - f.g
    q0 = np.where(adapting, f.q0 * (f.level * f.g + fitted), f.q0)
    q1 = np.where(adapting, f.q1 * (f.trend * f.g + fitted), f.q1)
    r = np.where(adapting, r * (f.observation * f.g + fitted), r)
    cross = f.p01 + dt * f.p11
    p00 = f.p00 + dt * (f.p01 + cross) + noise_dt * (q0 + noise_dt * noise_dt * q1 / 3.0)
    p01 = cross + noise_dt * noise_dt * q1 / 2.0
    p11 = f.p11 + noise_dt * q1
    x0, s = f.x0 + dt * f.x1, p00 + r
    residual = z - x0
    k0, k1 = p00 / s, p01 / s
    keep = 1.0 - k0
    f.x0, f.x1 = x0 + k0 * residual, f.x1 + k1 * residual
    f.p00, f.p01, f.p11 = (
        keep * keep * p00 + k0 * k0 * r,
        keep * (p01 - k1 * p00) + k0 * k1 * r,
        p11 - 2.0 * k1 * p01 + k1 * k1 * s)
    f.at_us, f.count, f.g = at_us, f.count + 1, f.g * f.decay
    done.nis[rows], done.adapting[rows] = residual * residual / s, adapting
    for name, column in zip(FIGURES, (residual, s, k0, f.x0), strict=True):
        done.figures[name][rows] = column
    done.x0[rows], done.x1[rows], done.p00[rows], done.p01[rows], done.p11[rows] = f.x0, f.x1, f.p00, f.p01, f.p11
    done.g[rows], done.count[rows] = f.g, f.count


def _days(delta_us: Ints) -> Floats:
    days: Floats = delta_us / US_PER_DAY
    large = np.abs(delta_us) > EXACT_US_MAX
    if large.any():
        days[large] = [int(delta) / US_PER_DAY for delta in delta_us[large]]
    return days


def _finish(done: FoldedBodyWeight, f: _Running, place: int, lane: int, rows: range) -> None:
    """The rest of one lane by the loop itself."""
    begun = done.lanes.states[lane]
    b, c = begun.kalman, begun.adaptation
    x0, x1, p00, p01, p11, g = (float(getattr(f, name)[place]) for name in ("x0", "x1", "p00", "p01", "p11", "g"))
    at_us, count = int(f.at_us[place]), int(f.count[place])
    for row in rows:
        k = Kalman(x0, x1, p00, p01, p01, p11, b.q0, b.q1, b.r, at_us, b.dt_days_max)
        a = Adaptation(c.reset_at, count, g, c.decay, c.rate, c.level, c.trend, c.observation, c.measurements, c.until_us)
        at_us, z = int(done.lanes.at_us[row]), float(done.lanes.values[row, 0])
        p = kalman.predict(k, a, at_us, float(done.lanes.r[row]))
        done.figures["innovation_variance"][row] = p.s
        if p.s == 0.0:
            return
        x0, x1, p00, p01, p11 = kalman.update(p, z)
        done.nis[row], done.adapting[row] = kalman.nis(p, z), kalman.is_adapting(a, at_us)
        count, g = count + 1, g * c.decay
        for name, value in zip(FIGURES, (z - p.x0, p.s, p.p00 / p.s, x0), strict=True):
            done.figures[name][row] = value
        done.x0[row], done.x1[row], done.p00[row], done.p01[row], done.p11[row] = x0, x1, p00, p01, p11
        done.g[row], done.count[row] = g, count


def _note_trouble(done: FoldedBodyWeight) -> None:
    """Where S is 0 the loop raises ZeroDivisionError; a column goes on with what is no number."""
    for row in np.flatnonzero(done.figures["innovation_variance"] == 0.0).tolist():
        lane = next(n for n, (start, length) in enumerate(zip(done.lanes.starts, done.lanes.lengths, strict=True))
                    if start <= row < start + length)
        done.trouble.setdefault(lane, (row, "ZeroDivisionError: the variance of the innovation is 0"))


def body_weight_figures(reading: Reading, p: kalman.Prediction) -> dict[str, float]:
    """The `FIGURES` of one step, for the loop."""
    residual = reading.values[0] - p.x0
    gain = p.p00 / p.s
    return dict(zip(FIGURES, (residual, p.s, gain, p.x0 + gain * residual), strict=True))
