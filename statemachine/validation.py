"""StateValidator: rules that a state must obey before it may become durable, and again when it is read (INV-04).

A rule looks at one state and yields a `Violation` for each thing wrong.  Validation never raises for bad data: a rule
that does is itself reported as violated.  NaN is caught by writing each check as `if not (low <= value <= high)`.
"""

from __future__ import annotations

import cmath
import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from decimal import Decimal
from operator import attrgetter
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import xxhash

from statemachine.clock import to_us
from statemachine.state import PAIR, Adaptation, Counters, EstimatorState, Kalman

DEPTH_MAX: Final = 32
VIOLATIONS_MAX: Final = 20
TEXT_CHARS_MAX: Final = 120
DECAY_ERROR_MAX: Final = 1e-12
COUNT_MAX: Final = 2**53
INSTANT_US_MIN: Final = -62_135_596_800_000_000
INSTANT_US_MAX: Final = 253_402_300_799_999_999
"""The years 1 to 9999 in UTC: the instants that a datetime, and so the codec, can hold."""


class Violation(NamedTuple):
    """One broken rule: which, where in the state, the value found (as text), the limit, and its unit."""

    rule: str
    path: str
    value: str
    limit: str
    unit: str = ""

    def __str__(self) -> str:
        """One readable line, with the unit."""
        unit = f" {self.unit}" if self.unit else ""
        return f"{self.rule}: {self.path} is {self.value}{unit}, must be {self.limit}"


Check = Callable[[Any, int | None, Any], Iterable[Violation]]


class Rule(NamedTuple):
    """A named check; `limits` enters the fingerprint of the rules.

    It is called with the state, the present in us (None: no present to compare with), and either None or a state that
    has passed this rule already: what is the very same object there need not be looked at again.
    """

    name: str
    check: Check
    limits: str = ""


class Limits(msgspec.Struct, frozen=True):
    """What a body-weight state may hold; every bound is inclusive."""

    weight_kg_min: float = 20.0
    weight_kg_max: float = 500.0
    trend_kg_per_day_max: float = 1.5
    r_kg2_min: float = 1e-3
    r_kg2_max: float = 25.0
    q_level_kg2_per_day_min: float = 1e-6
    q_level_kg2_per_day_max: float = 4.0
    q_trend_min: float = 1e-10
    q_trend_max: float = 0.25
    p_level_kg2_min: float = 1e-9
    p_level_kg2_max: float = 1e4
    p_trend_min: float = 1e-12
    p_trend_max: float = 10.0
    condition_max: float = 1e10
    asymmetry_max: float = 1e-12
    buffer_readings_max: int = 30
    dt_days_max: float = 30.0
    adaptation_measurements_max: int = 10_000


class StateValidator:
    """A fixed list of rules for one kind of state; users add their own with `with_rules`."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        self.rules = tuple(rules)
        text = "\n".join(f"{rule.name}\0{rule.limits}" for rule in self.rules)
        self.fingerprint = xxhash.xxh3_64_hexdigest(text.encode())

    def with_rules(self, *rules: Rule) -> StateValidator:
        """A validator that checks these rules too."""
        return StateValidator((*self.rules, *rules))

    def validate(self, state: Any, now_us: int | None = None, known: Any = None) -> tuple[Violation, ...]:
        """Every violation found, at most 20; empty when the state may become durable.  Never raises for bad data.

        `now_us` is the present, in microseconds since 1970 UTC, for rules about the future; None skips those.
        `known` is a state that has passed these very rules, from which this one was made.
        """
        broken = _broken(self.rules, state, now_us, known)
        return tuple(broken[:VIOLATIONS_MAX]) if broken else ()


def _broken(rules: Iterable[Rule], state: Any, now_us: int | None, known: Any) -> list[Violation]:
    found: list[Violation] = []
    for rule in rules:
        try:
            if broken := rule.check(state, now_us, known):
                found.extend(broken)
        except Exception as error:  # noqa: BLE001 - a rule that cannot judge the state has refused it
            found.append(Violation(rule.name, "state", _text(error), "checkable without an error"))
    return found


def in_one(name: str, rules: Iterable[Rule], sound_step: Callable[[Any, Any], bool]) -> Rule:
    """Several rules as one, for states that are mostly a step away from one that has passed them.

    `sound_step(state, known)` may say True only where none of the rules is broken; where it says no, they are asked.
    """
    parts = tuple(rules)

    def check(state: Any, now_us: int | None, known: Any) -> Iterable[Violation]:
        if known is not None and now_us is None:
            try:
                sound = sound_step(state, known)
            except Exception:  # noqa: BLE001 - what it cannot judge is for the rules to name
                sound = False
            if sound:
                return ()
        return _broken(parts, state, now_us, known)

    return Rule(name, check, "\n".join(f"{rule.name}\0{rule.limits}" for rule in parts))


def _text(value: object) -> str:
    text = f"{type(value).__name__}: {value}" if isinstance(value, BaseException) else repr(value)
    return text if len(text) <= TEXT_CHARS_MAX else text[: TEXT_CHARS_MAX - 3] + "..."


def finite_everywhere(value: object, _now_us: int | None = None, _known: object = None) -> Iterable[Violation]:
    """A rule body for any state: every number in it, however deep, is finite.

    Structs, dataclasses, containers and arrays are walked.
    """
    yield from _walk(value, "state", 0)


def _walk(value: object, path: str, depth: int) -> Iterable[Violation]:
    if depth > DEPTH_MAX:
        yield Violation("finite", path, "nested deeper", f"nested at most {DEPTH_MAX} deep")
    elif not _is_finite(value):
        yield Violation("finite", path, _text(value), "an array of finite numbers" if isinstance(value, np.ndarray) else "finite")
    else:
        for name, part in _parts(value):
            yield from _walk(part, path + name, depth + 1)


def _is_finite(value: object) -> bool:
    if isinstance(value, float | complex | np.inexact):
        return cmath.isfinite(value)
    if isinstance(value, Decimal):
        return value.is_finite()
    if isinstance(value, np.ndarray):
        return value.dtype != object and bool(np.all(np.isfinite(value)))
    return True


def _parts(value: object) -> Iterable[tuple[str, object]]:
    if isinstance(value, msgspec.Struct):
        return ((f".{name}", getattr(value, name)) for name in value.__struct_fields__)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return ((f".{field.name}", getattr(value, field.name)) for field in dataclasses.fields(value))
    if isinstance(value, Mapping):
        return ((f"[{key!r}]", part) for key, part in value.items())
    if isinstance(value, tuple | list | set | frozenset):
        return ((f"[{index}]", part) for index, part in enumerate(value))
    return ()


def _outside(  # noqa: PLR0913 - the parts of a violation
    rule: str, path: str, value: object, low: float, high: float, unit: str = "",
) -> Violation:
    return Violation(rule, path, _text(value), f"a float from {low:g} to {high:g}", unit)


def body_weight_rules(limits: Limits) -> tuple[Rule, ...]:
    """The inline rules of `EstimatorState`: shape, estimate, covariance, noise, buffer, adaptation, counters, as one rule."""
    text = repr(limits)
    kalman, adaptation, counters = attrgetter("kalman"), attrgetter("adaptation"), attrgetter("counters")
    buffer = (attrgetter("packed"), attrgetter("readings_max"), lambda s: s.kalman.at_us)
    checks = {
        "shape": _shape, "estimate": _estimate_check(limits), "covariance": _unless_kept(_covariance_check(limits), kalman),
        "noise": _unless_kept(_noise_check(limits), kalman, adaptation), "buffer": _unless_kept(_buffer_check(limits), *buffer),
        "adaptation": _unless_kept(_adaptation_check(limits), adaptation), "counters": _unless_kept(_counters, counters),
    }
    rules = tuple(Rule(name, check, text) for name, check in checks.items())
    return (in_one("body-weight", rules, _sound_step(limits)),)


def _unless_kept(check: Check, *parts: Callable[[Any], object]) -> Check:
    """A check of certain parts of a state, made only where one of them is not the very object that has passed it."""
    def unless_kept(s: Any, now_us: int | None, known: Any) -> Iterable[Violation]:
        if known is None:
            return check(s, now_us, None)
        for part in parts:
            if part(s) is not part(known):
                return check(s, now_us, known)
        return ()

    return unless_kept


def _sound_step(limits: Limits) -> Callable[[EstimatorState, EstimatorState], bool]:
    """A certain yes for the state after an accepted measurement, in a fifth of the time that the rules take.

    It is narrower than they are: what a measurement does not change must be the very same object, and the square of
    the trace bounds that of the larger eigenvalue.
    """
    low, high, trend = limits.weight_kg_min, limits.weight_kg_max, limits.trend_kg_per_day_max
    level_min, level_max, trend_min, trend_max = (limits.p_level_kg2_min, limits.p_level_kg2_max, limits.p_trend_min,
                                                  limits.p_trend_max)
    condition_max = limits.condition_max

    def sound_step(s: EstimatorState, known: EstimatorState) -> bool:
        k, a, packed = s.kalman, s.adaptation, s.packed
        j, b, before = known.kalman, known.adaptation, known.packed
        x0, x1, p00, p01, p11, at_us = k.x0, k.x1, k.p00, k.p01, k.p11, k.at_us
        kept = len(packed) - PAIR.size
        newest_us, weight_kg = PAIR.unpack_from(packed, kept)
        trace, determinant = p00 + p11, p00 * p11 - p01 * p01
        return (
            type(s) is EstimatorState and type(k) is Kalman and type(a) is Adaptation and type(packed) is bytes
            and s.counters is known.counters and s.readings_max is known.readings_max
            and k.q0 is j.q0 and k.q1 is j.q1 and k.r is j.r and k.dt_days_max is j.dt_days_max
            and a.reset_at is b.reset_at and a.decay is b.decay and a.rate is b.rate and a.level is b.level
            and a.trend is b.trend and a.observation is b.observation and a.measurements is b.measurements
            and a.until_us is b.until_us
            and type(x0) is float and low <= x0 <= high and type(x1) is float and -trend <= x1 <= trend
            and type(p00) is float and level_min <= p00 <= level_max
            and type(p11) is float and trend_min <= p11 <= trend_max
            and type(p01) is float and p01 is k.p10
            and determinant > 0.0 and trace * trace <= condition_max * determinant
            and type(a.count) is int and 0 < a.count <= COUNT_MAX and type(a.g) is float and 0.0 <= a.g <= 1.0
            and not kept % PAIR.size and 0 < kept <= len(before) and kept < PAIR.size * s.readings_max
            and packed[:kept] == before[-kept:]
            and PAIR.unpack_from(before, len(before) - PAIR.size)[0] < newest_us <= at_us <= INSTANT_US_MAX
            and type(at_us) is int and low <= weight_kg <= high
        )

    return sound_step


def _shape(s: EstimatorState, _now_us: int | None, _known: EstimatorState | None) -> list[Violation]:
    if (type(s) is EstimatorState and type(s.kalman) is Kalman and type(s.packed) is bytes
            and type(s.adaptation) is Adaptation and type(s.counters) is Counters):
        return []
    parts = (("state", s, EstimatorState), ("kalman", s.kalman, Kalman), ("packed", s.packed, bytes),
             ("adaptation", s.adaptation, Adaptation), ("counters", s.counters, Counters))
    return [Violation("shape", path, type(value).__name__, f"a {wanted.__name__}")
            for path, value, wanted in parts if type(value) is not wanted]


def _estimate_check(limits: Limits) -> Check:
    low, high, trend = limits.weight_kg_min, limits.weight_kg_max, limits.trend_kg_per_day_max

    def estimate(s: EstimatorState, now_us: int | None, _known: EstimatorState | None) -> list[Violation]:
        found = []
        k = s.kalman
        if not (type(k.x0) is float and low <= k.x0 <= high):
            found.append(_outside("estimate", "x[0]", k.x0, low, high, "kg"))
        if not (type(k.x1) is float and -trend <= k.x1 <= trend):
            found.append(_outside("estimate", "x[1]", k.x1, -trend, trend, "kg/day"))
        if not _is_instant(k.at_us):
            found.append(Violation("estimate", "at", _text(k.at_us), "an int of the years 1 to 9999", "us"))
        elif now_us is not None and k.at_us > now_us:
            found.append(Violation("estimate", "at", str(k.at_us), f"not after the present, {now_us}", "us"))
        return found

    return estimate


def _covariance_check(limits: Limits) -> Check:
    def covariance(s: EstimatorState, _now_us: int | None, _known: EstimatorState | None) -> list[Violation]:
        found = []
        k = s.kalman
        p00, p01, p10, p11 = k.p00, k.p01, k.p10, k.p11
        if not (type(p00) is float and limits.p_level_kg2_min <= p00 <= limits.p_level_kg2_max):
            found.append(_outside("covariance", "P[0,0]", p00, limits.p_level_kg2_min, limits.p_level_kg2_max, "kg^2"))
        if not (type(p11) is float and limits.p_trend_min <= p11 <= limits.p_trend_max):
            found.append(_outside("covariance", "P[1,1]", p11, limits.p_trend_min, limits.p_trend_max, "kg^2/day^2"))
        matrix = f"[[{p00}, {p01}], [{p10}, {p11}]]" if found else ""
        if not (type(p01) is float and type(p10) is float and abs(p01 - p10) <= limits.asymmetry_max * (p00 + p11)):
            found.append(Violation("covariance", "P", matrix or f"[[{p00}, {p01}], [{p10}, {p11}]]", "symmetric"))
        determinant = p00 * p11 - p01 * p10
        if not determinant > 0.0:
            found.append(Violation("covariance", "P", matrix or f"[[{p00}, {p01}], [{p10}, {p11}]]", "positive definite"))
            return found
        trace = p00 + p11
        # The larger eigenvalue squared over the determinant is the ratio of the two.
        larger = 0.5 * (trace + math.sqrt(max(trace * trace - 4.0 * determinant, 0.0)))
        if not larger * larger / determinant <= limits.condition_max:
            found.append(_outside("covariance", "condition of P", larger * larger / determinant, 1.0, limits.condition_max))
        return found

    return covariance


def _noise_check(limits: Limits) -> Check:
    r_bounds = (limits.r_kg2_min, limits.r_kg2_max, "kg^2")
    q_level = (limits.q_level_kg2_per_day_min, limits.q_level_kg2_per_day_max, "kg^2/day")
    q_trend = (limits.q_trend_min, limits.q_trend_max, "(kg/day)^2/day")

    def noise(s: EstimatorState, _now_us: int | None, _known: EstimatorState | None) -> list[Violation]:
        k, a = s.kalman, s.adaptation
        # While adapting, the multiplied parameters are the ones in force.
        bounded = (
            ("observation multiplier", a.observation, 0.0, math.inf, ""), ("level multiplier", a.level, 0.0, math.inf, ""),
            ("trend multiplier", a.trend, 0.0, math.inf, ""),
            ("R", k.r, *r_bounds), ("Q[0,0]", k.q0, *q_level), ("Q[1,1]", k.q1, *q_trend),
            ("dt_days_max", k.dt_days_max, 1e-6, limits.dt_days_max, "days"), ("R adapting", k.r * a.observation, *r_bounds),
            ("Q[0,0] adapting", k.q0 * a.level, *q_level), ("Q[1,1] adapting", k.q1 * a.trend, *q_trend),
        )
        return [_outside("noise", path, value, low, high, unit) for path, value, low, high, unit in bounded
                if not (type(value) is float and low <= value <= high)]

    return noise


def _buffer_check(limits: Limits) -> Check:
    low, high, most = limits.weight_kg_min, limits.weight_kg_max, limits.buffer_readings_max

    def buffer(s: EstimatorState, _now_us: int | None, _known: EstimatorState | None) -> list[Violation]:
        found = []
        if len(s.packed) % PAIR.size:
            return [Violation("buffer", "packed", f"{len(s.packed)} bytes", f"a multiple of {PAIR.size} bytes")]
        readings = s.buffer
        if not (type(s.readings_max) is int and 1 <= s.readings_max <= most):
            found.append(Violation("buffer", "readings_max", _text(s.readings_max), f"an int from 1 to {most}"))
        elif len(readings) > s.readings_max:
            found.append(Violation("buffer", "buffer", str(len(readings)), f"at most {s.readings_max}", "readings"))
        before = None
        for index, (at_us, weight_kg) in enumerate(readings):
            if not low <= weight_kg <= high:
                found.append(_outside("buffer", f"buffer[{index}]", weight_kg, low, high, "kg"))
            if not _is_instant(at_us) or (before is not None and at_us <= before):
                found.append(Violation("buffer", f"buffer[{index}]", _text(at_us), "later than the one before it", "us"))
            before = at_us
        if before is not None and before > s.kalman.at_us:
            limit = f"not after the state's own {s.kalman.at_us}"
            found.append(Violation("buffer", f"buffer[{len(readings) - 1}]", _text(before), limit, "us"))
        return found

    return buffer


def _is_instant(value: object) -> bool:
    return type(value) is int and INSTANT_US_MIN <= value <= INSTANT_US_MAX


def _is_count(value: object, high: int) -> bool:
    return type(value) is int and 0 <= value <= high  # a bool is an int in Python, and no count


def _miscount(rule: str, path: str, value: object, high: int) -> Violation:
    return Violation(rule, path, _text(value), f"an int from 0 to {high}")


def _adaptation_check(limits: Limits) -> Check:
    most = limits.adaptation_measurements_max

    def adaptation(s: EstimatorState, now_us: int | None, _known: EstimatorState | None) -> list[Violation]:
        found = []
        a = s.adaptation
        if not _is_count(a.count, COUNT_MAX):
            found.append(_miscount("adaptation", "count", a.count, COUNT_MAX))
        if not (type(a.g) is float and 0.0 <= a.g <= 1.0):
            found.append(_outside("adaptation", "f", a.g, 0.0, 1.0))
        elif a.count == 0 and a.g != 1.0:
            found.append(Violation("adaptation", "f", _text(a.f), "0 at count 0"))
        if not (type(a.rate) is float and 0.0 < a.rate < math.inf):
            found.append(Violation("adaptation", "rate", _text(a.rate), "a float above 0", "measurements"))
        elif not (type(a.decay) is float and abs(a.decay - math.exp(-1.0 / a.rate)) <= DECAY_ERROR_MAX):
            found.append(Violation("adaptation", "decay", _text(a.decay), "exp(-1/rate)"))
        if not _is_count(a.measurements, most):
            found.append(_miscount("adaptation", "measurements", a.measurements, most))
        if not _is_instant(a.until_us):
            found.append(Violation("adaptation", "until", _text(a.until_us), "an int of the years 1 to 9999", "us"))
        at = a.reset_at
        if not isinstance(at, datetime) or at.tzinfo is None or at.utcoffset() is None:
            found.append(Violation("adaptation", "reset_at", _text(at), "an aware datetime"))
        elif to_us(at) < INSTANT_US_MIN:  # it is one only in its own zone
            found.append(Violation("adaptation", "reset_at", at.isoformat(), "in the years 1 to 9999 in UTC"))
        elif now_us is not None and to_us(at) > now_us:
            found.append(Violation("adaptation", "reset_at", at.isoformat(), "not in the future"))
        return found

    return adaptation


def _counters(s: EstimatorState, _now_us: int | None, _known: EstimatorState | None) -> list[Violation]:
    return [_miscount("counters", name, getattr(s.counters, name), COUNT_MAX) for name in Counters.__struct_fields__
            if not _is_count(getattr(s.counters, name), COUNT_MAX)]
