"""Another estimator behind the same guard: boats seen by a receiver, tracked with a constant-velocity Kalman filter.

    python examples/tracker.py [DIRECTORY]     # the store is made there, by default in ./tracks

Nothing of the library knows about body weight but its built-in estimator.  A kind of state of your own needs

    a frozen state          `Track`: position and velocity on two axes, with a covariance each
    a measurement           `Fix`: `user`, `at`, `at_us`, `value`, `unit` and `source`, and whatever `reading` takes from it
    rules                   what a state must obey before it may become durable
    an estimator            codec, arithmetic and the mutations of a reset: `Tracker`
    figures of a policy     when a gap is a gap, how far a boat can go meanwhile, how wide a reset opens the filter

`step` uses + - * / on doubles only, in one order, so that replaying the log gives the same bits on every machine.
"""

from __future__ import annotations

import logging
import math
import random
import struct
import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import structlog

from statemachine import (
    InvalidInput,
    Operation,
    Processor,
    Reading,
    ResetManager,
    ResetParameters,
    ResetPolicy,
    ResetValidationError,
    Rule,
    Store,
    StoreCorrupt,
    Violation,
)
from statemachine.clock import from_us, to_us
from statemachine.validation import finite_everywhere

if TYPE_CHECKING:
    from collections.abc import Iterable

US_PER_S = 1_000_000
S_PER_DAY = 86_400.0
POSITION_M_MAX = 1e7
SPEED_M_PER_S_MAX = 40.0
START_SPEED_SD_M_PER_S = 8.0


@dataclass(frozen=True)
class Fix:
    """One position of one boat, in metres east and north of the receiver."""

    user: str
    at: datetime
    east_m: float
    north_m: float
    source: str = "receiver"
    unit: str = "m"

    @property
    def at_us(self) -> int:
        """The instant in microseconds since 1970 UTC; a naive `at` raises ValueError."""
        return to_us(self.at)

    @property
    def value(self) -> str:
        """The position as text; with user, instant, unit and source it is the identity of the fix."""
        return f"{self.east_m!r},{self.north_m!r}"


class Axis(msgspec.Struct, frozen=True, array_like=True):
    """One axis: position (m), velocity (m/s), and their covariance [[p00, p01], [p01, p11]]."""

    position: float
    velocity: float
    p00: float
    p01: float
    p11: float


class Track(msgspec.Struct, frozen=True, array_like=True):
    """A boat's state.  `q` (m^2/s^3): noise of its acceleration; `r` (m^2): variance of a fix.

    After a reset both are widened: by 1 + (multiplier - 1) g, where g starts at 1 and is multiplied by `decay` at each
    accepted fix, for `measurements` of them.
    """

    east: Axis
    north: Axis
    q: float
    r: float
    at_us: int
    count: int
    g: float
    decay: float
    widen_q: float
    widen_r: float
    measurements: int

    @property
    def speed_m_per_s(self) -> float:
        """The speed over ground."""
        return math.hypot(self.east.velocity, self.north.velocity)


class Predicted(NamedTuple):
    """An axis carried to an instant, with the variance `s` of what is observed there."""

    axis: Axis
    s: float


def predict(axis: Axis, dt: float, q: float, r: float) -> Predicted:
    """Constant velocity over `dt` seconds, its acceleration white noise of intensity `q`."""
    cross = axis.p01 + dt * axis.p11
    p00 = axis.p00 + dt * (axis.p01 + cross) + q * dt * dt * dt / 3.0
    moved = Axis(axis.position + dt * axis.velocity, axis.velocity, p00, cross + q * dt * dt / 2.0, axis.p11 + q * dt)
    return Predicted(moved, p00 + r)


def update(predicted: Predicted, z: float, r: float) -> Axis:
    """The axis after observing the position `z` with variance `r`, in Joseph's form."""
    a, s = predicted
    k0, k1 = a.p00 / s, a.p01 / s
    residual, keep = z - a.position, 1.0 - k0
    return Axis(a.position + k0 * residual, a.velocity + k1 * residual, keep * keep * a.p00 + k0 * k0 * r,
                keep * (a.p01 - k1 * a.p00) + k0 * k1 * r, a.p11 - 2.0 * k1 * a.p01 + k1 * k1 * s)


def on_the_chart(track: Track, now_us: int | None, _known: Track | None) -> Iterable[Violation]:
    """Position, speed and instant are those of a boat."""
    for name, axis in (("east", track.east), ("north", track.north)):
        if not -POSITION_M_MAX <= axis.position <= POSITION_M_MAX:
            yield Violation("chart", f"{name}.position", repr(axis.position), f"within {POSITION_M_MAX:g} of the receiver", "m")
    if not track.speed_m_per_s <= SPEED_M_PER_S_MAX:
        yield Violation("chart", "speed", repr(track.speed_m_per_s), f"at most {SPEED_M_PER_S_MAX:g}", "m/s")
    if now_us is not None and track.at_us > now_us:
        yield Violation("chart", "at", str(track.at_us), f"not after the present, {now_us}", "us")


def is_covariance(track: Track, _now_us: int | None, _known: Track | None) -> Iterable[Violation]:
    """Each axis has a positive definite covariance, and the noise is positive."""
    for name, axis in (("east", track.east), ("north", track.north)):
        if not (axis.p00 > 0.0 and axis.p11 > 0.0 and axis.p00 * axis.p11 - axis.p01 * axis.p01 > 0.0):
            shown = f"[[{axis.p00}, {axis.p01}], [{axis.p01}, {axis.p11}]]"
            yield Violation("covariance", f"{name}.P", shown, "positive definite")
    for name, value in (("q", track.q), ("r", track.r)):
        if not value > 0.0:
            yield Violation("covariance", name, repr(value), "above 0")


class Tracker:
    """The estimator: `statemachine.Estimator` for `Track`."""

    name = "boat-track"
    schema = 1
    kernel = 1
    rules: tuple[Rule, ...] = (
        Rule("finite", finite_everywhere),
        Rule("chart", on_the_chart, f"{POSITION_M_MAX} {SPEED_M_PER_S_MAX}"),
        Rule("covariance", is_covariance),
    )

    def __init__(self, *, r_m2: float = 25.0, q_m2_per_s3: float = 0.05) -> None:
        self.r_m2 = r_m2
        self.q_m2_per_s3 = q_m2_per_s3

    def encode(self, state: Track) -> bytes:
        """Two axes of five doubles, then the rest, little-endian: 156 bytes."""
        return _TRACK.pack(*msgspec.structs.astuple(state.east), *msgspec.structs.astuple(state.north), state.q, state.r,
                           state.at_us, state.count, state.g, state.decay, state.widen_q, state.widen_r, state.measurements)

    def decode(self, data: bytes) -> Track:
        """The track, bit for bit; raises StoreCorrupt for bytes that are none."""
        try:
            values = _TRACK.unpack(data)
        except struct.error as error:
            message = f"a track does not decode: {error}"
            raise StoreCorrupt(message) from error
        return Track(Axis(*values[:5]), Axis(*values[5:10]), *values[10:])

    def is_state(self, value: Any) -> bool:
        """Whether `value` is a `Track`."""
        return type(value) is Track

    def at_us(self, state: Track) -> int:
        """The instant of the track."""
        return state.at_us

    def reading(self, measurement: Fix) -> Reading:
        """East and north in metres; raises InvalidInput unless both are finite."""
        values = (float(measurement.east_m), float(measurement.north_m))
        if not all(-math.inf < value < math.inf for value in values):
            message = f"({measurement.value}) is no position; both numbers must be finite"
            raise InvalidInput(message, user=measurement.user)
        return Reading(measurement.at_us, values, self.r_m2)

    def _predicted(self, state: Track, reading: Reading) -> tuple[Predicted, Predicted, float]:
        dt = (reading.at_us - state.at_us) / US_PER_S
        q, r = state.q, reading.r
        if state.count < state.measurements:
            q = q * (1.0 + (state.widen_q - 1.0) * state.g)
            r = r * (1.0 + (state.widen_r - 1.0) * state.g)
        return predict(state.east, dt, q, r), predict(state.north, dt, q, r), r

    def step(self, state: Track, reading: Reading) -> Track:
        """Predict both axes to the fix and update them with it."""
        east, north, r = self._predicted(state, reading)
        return Track(update(east, reading.values[0], r), update(north, reading.values[1], r), state.q, state.r, reading.at_us,
                     state.count + 1, state.g * state.decay, state.decay, state.widen_q, state.widen_r, state.measurements)

    def nis(self, state: Track, reading: Reading) -> float:
        """The mean of both axes' normalised innovation squared."""
        east, north, _ = self._predicted(state, reading)
        dx, dy = reading.values[0] - east.axis.position, reading.values[1] - north.axis.position
        return (dx * dx / east.s + dy * dy / north.s) / 2.0

    def change(self, state: Track, reading: Reading) -> float:
        """The distance from the last known position, in metres."""
        dx, dy = reading.values[0] - state.east.position, reading.values[1] - state.north.position
        return math.sqrt(dx * dx + dy * dy)

    def spread(self, state: Track | None, earlier: Reading, later: Reading) -> float:  # noqa: ARG002 - a boat of any course
        """How far apart two fixes are, against their noise and a boat's usual speed."""
        dt = (later.at_us - earlier.at_us) / US_PER_S
        dx, dy = later.values[0] - earlier.values[0], later.values[1] - earlier.values[1]
        moved = START_SPEED_SD_M_PER_S * dt
        return (dx * dx + dy * dy) / 2.0 / (earlier.r + later.r + moved * moved)

    def adapting(self, state: Track, at_us: int) -> bool:  # noqa: ARG002 - it ends by fixes, not by time
        """Whether the noise is still widened."""
        return state.count < state.measurements

    def operations(self, how: ResetParameters, reading: Reading | None, at_us: int) -> tuple[Operation, ...]:  # noqa: ARG002
        """Begin the track anew at a fix; without one, keep position and velocity and widen the covariance."""
        def restart(track: Track) -> Track:
            return msgspec.structs.replace(track, count=0, g=1.0, decay=math.exp(-1.0 / how.rate), widen_q=how.level,
                                           widen_r=how.observation, measurements=how.measurements)

        if reading is None:
            return (Operation("widen covariance", lambda track: self._widened(how, track)),
                    Operation("restart adaptation", restart))
        return (Operation("place at the fix", lambda track: self._placed(how, track, reading)),
                Operation("restart adaptation", restart))

    def _placed(self, how: ResetParameters, track: Track | None, reading: Reading) -> Track:
        east, north = (Axis(z, 0.0, *self._variances(how, reading.r)) for z in reading.values)
        q, r = (track.q, track.r) if track is not None else (self.q_m2_per_s3, self.r_m2)
        return Track(east, north, q, r, reading.at_us, 0, 1.0, 1.0, 1.0, 1.0, 0)

    def _widened(self, how: ResetParameters, track: Track) -> Track:
        east, north = (Axis(a.position, a.velocity, *self._variances(how, track.r)) for a in (track.east, track.north))
        return msgspec.structs.replace(track, east=east, north=north)

    def _variances(self, how: ResetParameters, r: float) -> tuple[float, float, float]:
        return how.variance * r, 0.0, START_SPEED_SD_M_PER_S * START_SPEED_SD_M_PER_S

    def deltas(self, before: Track | None, after: Track) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """What a reset added to (east, north, v east, v north) and to the six numbers of the two covariances."""
        new = (after.east, after.north)
        old = (before.east, before.north) if before is not None else (Axis(0.0, 0.0, 0.0, 0.0, 0.0),) * 2
        pairs = list(zip(new, old, strict=True))
        return ((*(n.position - o.position for n, o in pairs), *(n.velocity - o.velocity for n, o in pairs)),
                tuple(d for n, o in pairs for d in (n.p00 - o.p00, n.p01 - o.p01, n.p11 - o.p11)))


_TRACK = struct.Struct("<10d2dqq4dq")

REFOUND = ResetParameters(variance=2.0, level=10.0, trend=1.0, observation=1.0, measurements=10, days=0.0, rate=2.5)
POLICY = ResetPolicy(
    gate=9.0,                                     # of two degrees of freedom, divided by two
    gap_days=120.0 / S_PER_DAY,                   # two minutes unheard of
    manual_sources=frozenset(),                   # nobody types positions
    probation_days=600.0 / S_PER_DAY,
    plausible_base=200.0,                         # metres, and 25 more a second: ln(1 + t) is t for such short times
    plausible_per_log_month=25.0 * 30.4375 * S_PER_DAY,
    kinds=dict.fromkeys(("initial", "gap", "level-shift", "admin"), REFOUND),
)
"""The rule for surprises is the library's; these are a boat's figures for it.  `trend` and `days` are not used here."""


class StreamClock:
    """A clock that stands where the stream stands: what is replayed is decided as it would have been live."""

    def __init__(self, at: datetime) -> None:
        self.at_us = to_us(at)

    def now_us(self) -> int:
        """The instant of the newest fix."""
        return self.at_us

    def monotonic_us(self) -> int:
        """The same: nothing here takes time."""
        return self.at_us

    def sleep(self, seconds: float) -> None:
        """Nobody else writes this store, so nobody waits."""


START = datetime(2026, 5, 1, 6, tzinfo=UTC)
SILENT_S = range(600, 900)
SWAPPED_S = 1500


def voyage(boat: str = "tern", seed: int = 1) -> list[Fix]:
    """Ten minutes under way, five unheard of, ten more; then the transponder goes to another boat 900 m off."""
    dice = random.Random(seed)  # noqa: S311 - a voyage that was never made
    fixes = []
    for second in range(0, 2100, 10):
        if second in SILENT_S:
            continue
        east, north = 6.0 * second, 1.5 * second
        since = second - SWAPPED_S
        if since >= 0:
            east, north = 6.0 * SWAPPED_S + 900.0 - 3.0 * since, 1.5 * SWAPPED_S + 4.0 * since
        fixes.append(Fix(boat, START + timedelta(seconds=second), east + 4.0 * _normal(dice), north + 4.0 * _normal(dice)))
    return fixes


def _normal(dice: random.Random) -> float:
    return sum(dice.random() for _ in range(12)) - 6.0


def process(store: Store, manager: ResetManager, clock: StreamClock, fixes: list[Fix]) -> None:
    """Feed the fixes and tell what was out of the ordinary."""
    processor = Processor(manager)
    counts: dict[str, int] = {}
    for fix in fixes:
        clock.at_us = fix.at_us
        outcome = processor.process(fix)  # type: ignore[arg-type]
        counts[outcome.status] = counts.get(outcome.status, 0) + 1
        if outcome.reset is not None:
            track = store.load(fix.user).state  # type: ignore[union-attr]
            print(f"{fix.at:%H:%M:%S} {outcome.reset.kind} reset {outcome.reset.outcome}, version {outcome.version}: "
                  f"{_position(track)}")
    print(f"{len(fixes)} fixes:", ", ".join(f"{count} {status}" for status, count in sorted(counts.items())))


def fail(manager: ResetManager, boat: str) -> None:
    """A reset whose second operation breaks a rule: the first is undone with it, and the log tells."""
    operations = [
        ("move the boat", lambda t: msgspec.structs.replace(t, east=msgspec.structs.replace(t.east, position=0.0))),
        ("sharpen", lambda t: msgspec.structs.replace(t, east=msgspec.structs.replace(t.east, p00=1.0, p01=99.0))),
    ]
    try:
        manager.perform_reset(boat, reason="hand-made covariance", actor="mate@example.org", operations=operations)
    except ResetValidationError as error:
        print(f"a reset by hand was rolled back at {error.operation!r}: {error.violations[0]}")


def main(directory: str) -> None:
    """Track one boat through a gap, a jump and a failing reset, then look back."""
    # A service would keep these events; here they would drown what is printed.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    fixes = voyage()
    clock = StreamClock(fixes[0].at)
    with Store.open(directory, estimator=Tracker(), clock=clock) as store:
        manager = ResetManager(store, policy=POLICY)
        process(store, manager, clock, fixes)
        before = store.load("tern")
        fail(manager, "tern")
        after = store.load("tern")
        same = before is not None and after is not None and (before.version, before.state) == (after.version, after.state)
        print(f"the boat is where it was: {'yes' if same else 'NO'}")
        for minute in (5, 20, 34):
            at = START + timedelta(minutes=minute)
            version = store.version_at("tern", to_us(at))
            then = store.load("tern", version=version)
            print(f"as of {at:%H:%M}, version {version}: {_position(then.state)}, fix of {from_us(then.state.at_us):%H:%M:%S}"
                  if then is not None else f"as of {at:%H:%M}: nothing")
        for row in store.audit(user="tern"):
            print(f"audit {row.public.seq}: {row.public.event} ({row.public.kind}) {row.personal.trigger or row.personal.reason}")


def _position(track: Track) -> str:
    return f"{track.east.position:.0f} m east, {track.north.position:.0f} m north, {track.speed_m_per_s:.1f} m/s"


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "tracks")
