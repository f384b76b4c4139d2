"""Each rule and each limit of a state: inside, at the bound, beyond it, and everything that is no number."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from decimal import Decimal
from typing import Any, Final

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from statemachine import BODY_WEIGHT, BodyWeight, EstimatorState, InvalidInput, Limits, Reading, Rule, StateValidator, Violation
from statemachine.clock import US_PER_DAY, from_us, to_us
from statemachine.policy import KINDS
from statemachine.state import PAIR
from statemachine.validation import (
    COUNT_MAX,
    DEPTH_MAX,
    INSTANT_US_MAX,
    INSTANT_US_MIN,
    TEXT_CHARS_MAX,
    VIOLATIONS_MAX,
    _sound_step,
    body_weight_rules,
    finite_everywhere,
    in_one,
)

LIMITS: Final = Limits()
T: Final = to_us(datetime(2026, 1, 5, tzinfo=UTC))
NEVER: Final[list[Any]] = [
    math.nan, math.inf, -math.inf, None, "80", True, np.float64(80.0), np.float32(80.0), 80, Decimal(80), [1.0],
]
NO_COUNTS: Final[list[Any]] = [-1, True, False, 1.0, math.nan, None, "1", np.int64(1), COUNT_MAX + 1]


def validator() -> StateValidator:
    """The rules, made anew for each test."""
    return StateValidator(body_weight_rules(LIMITS))


def started(kind: str = "initial", kg: float = 80.0) -> EstimatorState:
    state: Any = None
    for operation in BODY_WEIGHT.operations(KINDS[kind], Reading(T, (kg,), 0.15), T):
        state = operation.run(state)
    assert isinstance(state, EstimatorState)
    return state


def sound() -> EstimatorState:
    """A state in the middle of every limit, its multipliers 1."""
    s = started()
    adaptation = msgspec.structs.replace(s.adaptation, level=1.0, trend=1.0, observation=1.0)
    return s.replace(P=[[1.0, 0.1], [0.1, 0.5]], x=[80.0, 0.1], adaptation=adaptation)


def changed(part: str, **values: Any) -> EstimatorState:
    s = sound()
    return msgspec.structs.replace(s, **{part: msgspec.structs.replace(getattr(s, part), **values)})


def broken(state: Any, now_us: int | None = None) -> set[tuple[str, str]]:
    """The rules and paths that a state violates."""
    return {(v.rule, v.path) for v in validator().validate(state, now_us)}


def test_states_of_the_library_s_own_making_are_sound() -> None:
    assert validator().validate(sound(), T) == ()
    for kind in KINDS:
        assert validator().validate(started(kind), T) == ()


# Numbers with bounds.

BOUNDED: Final = {
    "x0": ("estimate", "x[0]", 20.0, 500.0, {}),
    "x1": ("estimate", "x[1]", -1.5, 1.5, {}),
    "p00": ("covariance", "P[0,0]", 1e-9, 1e4, {"p01": 0.0, "p10": 0.0, "p11": 1e-3}),
    "p11": ("covariance", "P[1,1]", 1e-12, 10.0, {"p01": 0.0, "p10": 0.0, "p00": 1e-3}),
    "r": ("noise", "R", 1e-3, 25.0, {}),
    "q0": ("noise", "Q[0,0]", 1e-6, 4.0, {}),
    "q1": ("noise", "Q[1,1]", 1e-10, 0.25, {}),
    "dt_days_max": ("noise", "dt_days_max", 1e-6, 30.0, {}),
}


@pytest.mark.parametrize("field", BOUNDED)
def test_each_bound_is_inclusive(field: str) -> None:
    """The bound itself and what lies inside are fine; the next representable value beyond it is refused, and told."""
    rule, path, low, high, others = BOUNDED[field]
    for value in (low, math.nextafter(low, math.inf), (low + high) / 2, math.nextafter(high, -math.inf), high):
        assert broken(changed("kalman", **{**others, field: value})) == set(), value
    for value in (math.nextafter(low, -math.inf), math.nextafter(high, math.inf)):
        state = changed("kalman", **{**others, field: value})
        assert (rule, path) in broken(state), value
        found = next(v for v in validator().validate(state) if v.path == path)
        assert found.value == repr(value)
        assert found.limit == f"a float from {low:g} to {high:g}"


@pytest.mark.parametrize("field", [*BOUNDED, "p01", "p10"])
@pytest.mark.parametrize("value", NEVER, ids=lambda value: f"{type(value).__name__} {value}")
def test_what_is_no_finite_float_is_refused(field: str, value: Any) -> None:
    """NaN, infinities, other types, and numpy's own scalars, which the codec cannot hold."""
    rule, path = BOUNDED[field][:2] if field in BOUNDED else ("covariance", "P")
    found = broken(changed("kalman", **{field: value}))
    assert found & {(rule, path), (rule, "state")}, "named, or the rule could not even compute with it"


@pytest.mark.parametrize("name", ["observation", "level", "trend"])
@pytest.mark.parametrize("value", [*NEVER, -0.1])
def test_multipliers_are_finite_and_not_negative(name: str, value: Any) -> None:
    found = broken(changed("adaptation", **{name: value}))
    assert found
    assert {rule for rule, _ in found} == {"noise"}


@pytest.mark.parametrize(("name", "field", "path", "high"), [
    ("observation", "r", "R adapting", 25.0), ("level", "q0", "Q[0,0] adapting", 4.0), ("trend", "q1", "Q[1,1] adapting", 0.25),
])
def test_noise_times_its_multiplier_is_bounded_too(name: str, field: str, path: str, high: float) -> None:
    """While adapting the product is what is in force."""
    base = getattr(sound().kalman, field)
    assert broken(changed("adaptation", **{name: high / base * 0.999})) == set()
    assert broken(changed("adaptation", **{name: high / base * 1.001})) == {("noise", path)}
    assert broken(changed("adaptation", **{name: 0.0})) == {("noise", path)}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_s_product_with_its_multipliers_lies_inside(kind: str) -> None:
    """The defaults leave room for every kind of reset: variances, noises, and P after it."""
    how, own = KINDS[kind], BodyWeight()
    assert LIMITS.r_kg2_min <= own.r_kg2 * how.observation <= LIMITS.r_kg2_max
    assert LIMITS.q_level_kg2_per_day_min <= own.q_level * how.level <= LIMITS.q_level_kg2_per_day_max
    assert LIMITS.q_trend_min <= own.q_trend * how.trend <= LIMITS.q_trend_max
    assert LIMITS.p_level_kg2_min <= own.r_kg2 * how.variance <= LIMITS.p_level_kg2_max
    assert how.measurements <= LIMITS.adaptation_measurements_max


# The covariance as a whole.


@pytest.mark.parametrize(("p", "refused"), [
    ([[1.0, 0.999], [0.999, 1.0]], set()),
    ([[1.0, 1.0], [1.0, 1.0]], {("covariance", "P")}),
    ([[1.0, 5.0], [5.0, 1.0]], {("covariance", "P")}),
    ([[1.0, -5.0], [-5.0, 1.0]], {("covariance", "P")}),
    ([[1.0, 0.1], [0.1 + 1.9e-12, 1.0]], set()),
    ([[1.0, 0.1], [0.1 + 2.1e-12, 1.0]], {("covariance", "P")}),
    ([[1.0, 0.1], [-0.1, 1.0]], {("covariance", "P")}),
    ([[-1.0, 0.0], [0.0, 1.0]], {("covariance", "P[0,0]"), ("covariance", "P")}),
    ([[-1.0, 0.0], [0.0, -1.0]], {("covariance", "P[0,0]"), ("covariance", "P[1,1]"), ("covariance", "P")}),
    ([[0.0, 0.0], [0.0, 0.0]], {("covariance", "P[0,0]"), ("covariance", "P[1,1]"), ("covariance", "P")}),
    ([[1e4, 0.0], [0.0, 1.0001e-6]], set()),
    ([[1e4, 0.0], [0.0, 0.9999e-6]], {("covariance", "condition of P")}),
    ([[math.nan, math.nan], [math.nan, math.nan]], {("covariance", "P[0,0]"), ("covariance", "P[1,1]"), ("covariance", "P")}),
])
def test_only_a_covariance_is_one(p: list[list[float]], refused: set[tuple[str, str]]) -> None:
    """Symmetric, positive definite, and not so stretched that nothing can be computed with it."""
    assert broken(sound().replace(P=p)) == refused


@pytest.mark.parametrize(("p", "condition"), [
    ([[4.0, 0.0], [0.0, 1.0]], 4.0), ([[2.0, 1.0], [1.0, 2.0]], 3.0), ([[1.0, 0.0], [0.0, 1.0]], 1.0),
])
def test_the_condition_is_the_ratio_of_the_eigenvalues(p: list[list[float]], condition: float) -> None:
    """Up to the limit and that included; what is told is the ratio."""
    s = sound().replace(P=p)
    assert StateValidator(body_weight_rules(Limits(condition_max=condition))).validate(s) == ()
    (found,) = StateValidator(body_weight_rules(Limits(condition_max=math.nextafter(condition, 0.0)))).validate(s)
    assert (found.path, found.value) == ("condition of P", repr(condition))


def test_a_covariance_may_be_asymmetric_by_so_much_of_its_trace() -> None:
    """What rounding leaves is taken, to the limit and that included."""
    lax = StateValidator(body_weight_rules(Limits(asymmetry_max=0.25)))
    for off, refused in ((1.0, False), (math.nextafter(1.0, 2.0), True)):
        for p01, p10 in ((off, 0.0), (0.0, off)):
            s = changed("kalman", p00=2.0, p11=2.0, p01=p01, p10=p10)
            assert bool(lax.validate(s)) is refused
            if not refused:
                assert lax.validate(s, None, s) == ()


def test_limits_are_the_caller_s() -> None:
    """A rule obeys the limits that it was made with."""
    limits = Limits(weight_kg_max=79.9, p_level_kg2_max=0.5, buffer_readings_max=0, r_kg2_min=0.2)
    strict = StateValidator(body_weight_rules(limits))
    assert {v.path for v in strict.validate(sound())} == {"x[0]", "P[0,0]", "R", "R adapting", "readings_max", "buffer[0]"}


# The buffer.


def buffered(*pairs: Any) -> set[tuple[str, str]]:
    return broken(sound().replace(buffer=pairs))


def test_a_buffer_is_in_order_bounded_and_not_ahead() -> None:
    day = US_PER_DAY
    assert buffered() == set()
    assert buffered((T - day, 20.0), (T - day + 1, 500.0), (T, 80.0)) == set()
    assert buffered((T - day, 80.0), (T - day, 80.0)) == {("buffer", "buffer[1]")}, "a duplicate"
    assert buffered((T, 80.0), (T - day, 80.0)) == {("buffer", "buffer[1]")}, "out of order"
    assert buffered((T - day, 80.0), (T + 1, 80.0)) == {("buffer", "buffer[1]")}, "after the state's own time"


@pytest.mark.parametrize("kg", [
    math.nan, math.inf, -math.inf, math.nextafter(20.0, 0.0), math.nextafter(500.0, 501.0), 0.0, -80.0, 5, True,
])
def test_a_buffered_value_obeys_the_limits(kg: Any) -> None:
    assert buffered((T - 2, 80.0), (T - 1, kg), (T, 80.0)) == {("buffer", "buffer[1]")}


@pytest.mark.parametrize("at_us", [INSTANT_US_MIN - 1, INSTANT_US_MAX + 1, -(2**63), 2**63 - 1])
def test_a_buffered_instant_is_one(at_us: int) -> None:
    assert {rule for rule, _ in buffered((at_us, 80.0))} == {"buffer"}


def test_a_buffer_has_a_size() -> None:
    one = msgspec.structs.replace(sound(), readings_max=1, packed=PAIR.pack(T, 80.0))
    assert validator().validate(one) == ()
    full = [(T - 40 + n, 80.0) for n in range(31)]
    assert buffered(*full[1:]) == set()
    assert buffered(*full) == {("buffer", "buffer")}


@pytest.mark.parametrize("pair", [
    (T,), (T, 80.0, 1), 80.0, None, (float(T), 80.0), ("now", 80.0), (2**63, 80.0), (None, 80.0), (T, "80"), (T, None),
])
def test_a_buffer_is_made_of_pairs(pair: Any) -> None:
    """What is no instant and no number cannot be put into one."""
    with pytest.raises(InvalidInput, match="pairs of"):
        sound().replace(buffer=(pair,))


@pytest.mark.parametrize("packed", [b"1", bytes(15), bytes(17), sound().packed + b"\0"])
def test_a_packed_buffer_has_whole_readings(packed: bytes) -> None:
    assert broken(sound().replace(packed=packed)) == {("buffer", "packed")}
    assert validator().validate(sound().replace(packed=packed), None, sound())


# Counts, instants, adaptation, shape.


@pytest.mark.parametrize("name", ["x", "P", "buffer", "adaptation"])
@pytest.mark.parametrize("value", NO_COUNTS, ids=lambda value: f"{type(value).__name__} {value}")
def test_a_counter_counts(name: str, value: Any) -> None:
    assert broken(changed("counters", **{name: value})) == {("counters", name)}
    for good in (0, 1, COUNT_MAX):
        assert broken(changed("counters", **{name: good})) == set()


@pytest.mark.parametrize("value", NO_COUNTS, ids=lambda value: f"{type(value).__name__} {value}")
def test_an_adaptation_counts(value: Any) -> None:
    found = broken(changed("adaptation", count=value))
    assert ("adaptation", "count") in found
    assert broken(changed("adaptation", measurements=value)) == {("adaptation", "measurements")}


def test_the_number_of_adapting_measurements_has_a_limit() -> None:
    assert broken(changed("adaptation", measurements=10_000)) == set()
    assert broken(changed("adaptation", measurements=10_001)) == {("adaptation", "measurements")}


@pytest.mark.parametrize(("count", "g", "refused"), [
    (0, 1.0, False), (0, 0.999, True), (0, 0.0, True), (1, 1.0, False), (1, 0.5, False), (9, 0.0, False),
    (1, 1.0000001, True), (1, -1e-9, True), *((1, value, True) for value in NEVER),
])
def test_the_factor_lies_between_0_and_1_and_is_0_at_count_0(count: int, g: Any, refused: bool) -> None:
    assert broken(changed("adaptation", count=count, g=g)) == ({("adaptation", "f")} if refused else set())


@pytest.mark.parametrize("rate", [*NEVER, 0.0, -1.5])
def test_a_decay_rate_is_above_0(rate: Any) -> None:
    assert broken(changed("adaptation", rate=rate)) == {("adaptation", "rate")}


def test_a_rate_may_exceed_1_and_its_decay_belongs_to_it() -> None:
    for rate in (1e-3, 1.0, 4.0, 1e6):
        assert broken(changed("adaptation", rate=rate, decay=math.exp(-1.0 / rate))) == set()
        assert broken(changed("adaptation", rate=rate, decay=math.exp(-1.0 / rate) + 1e-9)) == {("adaptation", "decay")}
    for decay in NEVER:
        assert broken(changed("adaptation", decay=decay)) == {("adaptation", "decay")}


@pytest.mark.parametrize(("at", "refused"), [
    (from_us(T), False), (from_us(T + 1), True), (datetime(2026, 1, 5), True), (None, True), ("2026-01-05", True), (T, True),  # noqa: DTZ001
    (datetime(1, 1, 1, tzinfo=UTC), False), (datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=14))), True),
    (datetime(2026, 1, 5, 3, tzinfo=timezone(timedelta(hours=3))), False),
])
def test_a_reset_happened_at_an_aware_instant_that_is_past(at: Any, refused: bool) -> None:
    state = changed("adaptation", reset_at=at)
    assert broken(state, T) == ({("adaptation", "reset_at")} if refused else set())


class Nowhere(tzinfo):
    """A zone that knows no offset, so that what is in it is no instant."""

    def utcoffset(self, _: datetime | None) -> None:
        return None

    def dst(self, _: datetime | None) -> None:
        return None

    def tzname(self, _: datetime | None) -> str:
        return "nowhere"


def test_a_reset_in_a_zone_without_an_offset_is_at_no_instant() -> None:
    state = changed("adaptation", reset_at=datetime(2026, 1, 5, tzinfo=Nowhere()))
    assert [(v.path, v.limit) for v in validator().validate(state)] == [("reset_at", "an aware datetime")]


def test_the_future_is_judged_only_where_there_is_a_present() -> None:
    """What is read is checked without one."""
    state = changed("kalman", at_us=T + 1)
    assert broken(state) == set()
    assert broken(state, T) == {("estimate", "at")}
    assert broken(changed("adaptation", reset_at=from_us(T + 1))) == set()


@pytest.mark.parametrize("at_us", [None, True, float(T), "now", np.int64(T), INSTANT_US_MIN - 1, INSTANT_US_MAX + 1, 2**80])
def test_an_instant_is_an_int_that_a_calendar_holds(at_us: Any) -> None:
    assert ("estimate", "at") in broken(changed("kalman", at_us=at_us))
    assert broken(changed("adaptation", until_us=at_us)) == {("adaptation", "until")}
    for bound in (INSTANT_US_MIN, INSTANT_US_MAX):
        assert broken(changed("adaptation", until_us=bound)) == set()


@pytest.mark.parametrize(("part", "value"), [
    ("kalman", None), ("kalman", (80.0,)), ("packed", bytearray()), ("packed", None), ("packed", ()), ("adaptation", {}),
    ("counters", 3),
])
def test_a_state_has_its_parts(part: str, value: Any) -> None:
    assert ("shape", part) in broken(msgspec.structs.replace(sound(), **{part: value}))


@pytest.mark.parametrize("state", [None, 80.0, {}, (), "state", object()])
def test_what_is_no_state_is_refused_without_raising(state: Any) -> None:
    assert validator().validate(state, T)


# `known`: what passed already.


@given(
    st.lists(st.tuples(st.integers(1, 40 * US_PER_DAY), st.floats(1.0, 700.0), st.floats(1e-4, 100.0)), min_size=1, max_size=35),
    st.sampled_from(sorted(KINDS)), st.booleans(),
)
def test_a_step_is_judged_as_by_itself(taken: list[tuple[int, float, float]], kind: str, has_present: bool) -> None:
    """Knowing that the state before passed saves work and changes no verdict, good or bad."""
    state, at_us = started(kind), T
    now_us = T + 400 * US_PER_DAY if has_present else None
    for after_us, kg, r in taken:
        at_us += after_us
        after = BODY_WEIGHT.step(state, Reading(at_us, (kg,), r))
        alone = validator().validate(after, now_us)
        assert validator().validate(after, now_us, state) == alone
        if alone:
            break
        state = after


def test_a_step_that_is_surely_sound_asks_no_rule() -> None:
    """The shortcut is taken for an ordinary step, and for nothing that it cannot judge."""
    asked: list[Any] = []
    rule = Rule("asked", lambda state, _now_us, _known: asked.append(state) or ())  # type: ignore[func-returns-value]
    whole = StateValidator([in_one("whole", [rule], _sound_step(Limits()))])
    before = BODY_WEIGHT.step(started("initial"), Reading(T + US_PER_DAY, (80.0,), 0.15))
    after = BODY_WEIGHT.step(before, Reading(T + 2 * US_PER_DAY, (80.1,), 0.15))
    assert whole.validate(after, None, before) == ()
    assert asked == []
    for state, now_us, known in ((after, None, None), (after, T, before), (None, None, before), (after, None, object())):
        whole.validate(state, now_us, known)
    assert asked == [after, after, None, after]


def stepped() -> tuple[EstimatorState, EstimatorState]:
    """A state of three readings, and the one a step later."""
    state = started()
    for day in (1, 2):
        state = BODY_WEIGHT.step(state, Reading(T + day * US_PER_DAY, (80.0,), 0.15))
    return state, BODY_WEIGHT.step(state, Reading(T + 3 * US_PER_DAY, (80.1,), 0.15))


ALMOST_ONE: Final = 1.0 - 1e-11
BAD_PARTS: Final[list[tuple[str, dict[str, Any]]]] = [
    *(("kalman", {name: value}) for name, values in {
        "x0": (10.0, 600.0, np.float64(80.0)), "x1": (2.0, -2.0, 0), "p00": (1e5, -1.0, 1), "p11": (20.0, -1.0, 1), "p01": (5.0,),
        "p10": (5.0,), "q0": (5.0, math.nan), "q1": (1.0,), "r": (30.0,), "dt_days_max": (31.0,),
        "at_us": (INSTANT_US_MAX + 1, None, T, float(T + 4 * US_PER_DAY)),
    }.items() for value in values),
    ("kalman", {"p00": 1.0, "p01": ALMOST_ONE, "p10": ALMOST_ONE, "p11": 1.0}),
    ("kalman", {"p01": 5.0, "p10": 5.0}), ("kalman", {"p01": 0, "p10": 0}),
    ("kalman", {"p00": 1e4, "p01": 0.0, "p10": 0.0, "p11": 1e-9}),
    *(("adaptation", {name: value}) for name, values in {
        "reset_at": (None,), "count": (0, -1, True, COUNT_MAX + 1), "g": (1.5, -0.1, 0), "decay": (0.9,), "rate": (-1.0,),
        "level": (-1.0,), "trend": (-1.0,), "observation": (-1.0,), "measurements": (-1,), "until_us": (None,),
    }.items() for value in values),
    *(("counters", {name: -1}) for name in ("x", "P", "buffer", "adaptation")),
]


@pytest.mark.parametrize(("part", "values"), BAD_PARTS, ids=str)
def test_knowing_the_state_before_hides_nothing_wrong_in_a_part(part: str, values: dict[str, Any]) -> None:
    """Each figure that a step may not have, or may not have changed, alone and with all else in order."""
    before, after = stepped()
    assert validator().validate(after, None, before) == ()
    bad = msgspec.structs.replace(after, **{part: msgspec.structs.replace(getattr(after, part), **values)})
    alone = validator().validate(bad)
    assert alone
    assert validator().validate(bad, None, before) == alone


def repacked(state: EstimatorState, *pairs: tuple[int, float]) -> EstimatorState:
    return msgspec.structs.replace(state, packed=b"".join(PAIR.pack(*pair) for pair in pairs))


DAY: Final = US_PER_DAY
BAD_BUFFERS: Final[dict[str, tuple[tuple[int, float], ...]]] = {
    "newest too light": ((T, 80.0), (T + DAY, 80.0), (T + 2 * DAY, 80.0), (T + 3 * DAY, 19.0)),
    "newest too heavy": ((T, 80.0), (T + DAY, 80.0), (T + 2 * DAY, 80.0), (T + 3 * DAY, 501.0)),
    "newest at the one before": ((T, 80.0), (T + DAY, 80.0), (T + 2 * DAY, 80.0), (T + 2 * DAY, 80.0)),
    "newest after the state": ((T, 80.0), (T + DAY, 80.0), (T + 2 * DAY, 80.0), (T + 3 * DAY + 1, 80.0)),
    "an older one changed": ((T, 80.0), (T + DAY, 700.0), (T + 2 * DAY, 80.0), (T + 3 * DAY, 80.0)),
    "more than before": ((T, 800.0), (T, 80.0), (T + DAY, 80.0), (T + 2 * DAY, 80.0), (T + 3 * DAY, 80.0)),
}


@pytest.mark.parametrize("name", BAD_BUFFERS)
def test_knowing_the_state_before_hides_nothing_wrong_in_the_buffer(name: str) -> None:
    before, after = stepped()
    bad = repacked(after, *BAD_BUFFERS[name])
    alone = validator().validate(bad)
    assert alone
    assert validator().validate(bad, None, before) == alone


def test_knowing_the_state_before_hides_no_wrong_size_or_type() -> None:
    before, after = stepped()

    class Other(EstimatorState, frozen=True, array_like=True, gc=False):
        pass

    many = [(T - 40 + n, 80.0) for n in range(30)]
    long_before = repacked(before, *many)
    long_after = repacked(after, *many, (T + 3 * DAY, 80.0))
    assert validator().validate(long_before) == ()
    others = (
        (msgspec.structs.replace(after, readings_max=0), before), (msgspec.structs.replace(after, readings_max=31), before),
        (msgspec.structs.replace(after, packed=after.packed[:-1]), before),
        (msgspec.structs.replace(after, packed=bytearray(after.packed)), before), (long_after, long_before),
        (Other(*[getattr(after, name) for name in after.__struct_fields__]), before),
    )
    for bad, known in others:
        alone = validator().validate(bad)
        assert alone
        assert validator().validate(bad, None, known) == alone


@pytest.mark.parametrize(("part", "bad"), [
    ("kalman", {"p00": -1.0}), ("kalman", {"q0": 9.0}), ("kalman", {"at_us": T - 9 * DAY}), ("adaptation", {"g": 2.0}),
    ("adaptation", {"observation": -1.0}), ("counters", {"x": -1}),
])
def test_what_an_operation_keeps_is_not_judged_again(part: str, bad: dict[str, Any]) -> None:
    """A part that is the very object which passed is passed by; one that was replaced is judged, whatever is known."""
    before, _ = stepped()
    now_us = T + 400 * US_PER_DAY  # an operation, and no step
    broken = msgspec.structs.replace(before, **{part: msgspec.structs.replace(getattr(before, part), **bad)})
    alone = validator().validate(broken, now_us)
    assert alone
    assert validator().validate(broken, now_us, before) == alone
    assert validator().validate(msgspec.structs.replace(broken), now_us, broken) == ()


def test_a_shortcut_that_raises_is_no_answer() -> None:
    """Then the rules are asked, as they are where it says no, and where there is a present to judge by."""
    for answer in (ZeroDivisionError, False, True):
        def step(_state: Any, _known: Any, answer: Any = answer) -> bool:
            if answer is ZeroDivisionError:
                raise ZeroDivisionError
            return bool(answer)

        whole = StateValidator([in_one("whole", [Rule("no", lambda *_: [Violation("no", "p", "v", "l")])], step)])
        assert bool(whole.validate("s", None, "k")) is (answer is not True)
        assert whole.validate("s", 7, "k")
        assert whole.validate("s", None, None)


def test_rules_in_one_are_told_what_each_alone_is_told() -> None:
    asked: list[Any] = []

    def curious(state: Any, now_us: int | None, known: Any) -> list[Violation]:
        asked.append((state, now_us, known))
        return []

    whole = StateValidator([in_one("whole", [Rule("one", curious), Rule("two", curious)], lambda *_: False)])
    assert whole.validate("s", 7, "k") == whole.validate("s", None, "k") == ()
    assert asked == [("s", 7, "k")] * 2 + [("s", None, "k")] * 2


# What a violation says.

SAYINGS: Final[list[tuple[EstimatorState, int | None, list[Violation]]]] = [
    (changed("kalman", x0=10.0), None, [Violation("estimate", "x[0]", "10.0", "a float from 20 to 500", "kg")]),
    (changed("kalman", x1=2.0), None, [Violation("estimate", "x[1]", "2.0", "a float from -1.5 to 1.5", "kg/day")]),
    (changed("kalman", at_us=INSTANT_US_MAX + 1), None, [
        Violation("estimate", "at", str(INSTANT_US_MAX + 1), "an int of the years 1 to 9999", "us")]),
    (changed("kalman", at_us=T + 1), T, [Violation("estimate", "at", str(T + 1), f"not after the present, {T}", "us")]),
    (changed("kalman", p00=2e4), None, [Violation("covariance", "P[0,0]", "20000.0", "a float from 1e-09 to 10000", "kg^2")]),
    (changed("kalman", p11=11.0), None, [
        Violation("covariance", "P[1,1]", "11.0", "a float from 1e-12 to 10", "kg^2/day^2")]),
    (changed("kalman", p01=0.2), None, [Violation("covariance", "P", "[[1.0, 0.2], [0.1, 0.5]]", "symmetric")]),
    (changed("kalman", p01=2.0, p10=2.0), None, [
        Violation("covariance", "P", "[[1.0, 2.0], [2.0, 0.5]]", "positive definite")]),
    (changed("kalman", p00=-1.0, p01=0.2), None, [
        Violation("covariance", "P[0,0]", "-1.0", "a float from 1e-09 to 10000", "kg^2"),
        Violation("covariance", "P", "[[-1.0, 0.2], [0.1, 0.5]]", "symmetric"),
        Violation("covariance", "P", "[[-1.0, 0.2], [0.1, 0.5]]", "positive definite")]),
    (changed("kalman", p00=1e4, p01=0.0, p10=0.0, p11=5e-7), None, [
        Violation("covariance", "condition of P", "20000000000.0", "a float from 1 to 1e+10")]),
    (changed("kalman", r=30.0), None, [
        Violation("noise", "R", "30.0", "a float from 0.001 to 25", "kg^2"),
        Violation("noise", "R adapting", "30.0", "a float from 0.001 to 25", "kg^2")]),
    (changed("kalman", q0=8.0), None, [
        Violation("noise", "Q[0,0]", "8.0", "a float from 1e-06 to 4", "kg^2/day"),
        Violation("noise", "Q[0,0] adapting", "8.0", "a float from 1e-06 to 4", "kg^2/day")]),
    (changed("kalman", q1=1.0), None, [
        Violation("noise", "Q[1,1]", "1.0", "a float from 1e-10 to 0.25", "(kg/day)^2/day"),
        Violation("noise", "Q[1,1] adapting", "1.0", "a float from 1e-10 to 0.25", "(kg/day)^2/day")]),
    (changed("kalman", dt_days_max=31.0), None, [Violation("noise", "dt_days_max", "31.0", "a float from 1e-06 to 30", "days")]),
    *((changed("adaptation", **{name: -1.0}), None, [
        Violation("noise", f"{name} multiplier", "-1.0", "a float from 0 to inf"),
        Violation("noise", f"{path} adapting", value, limit, unit)])
      for name, path, value, limit, unit in (
          ("observation", "R", repr(-sound().kalman.r), "a float from 0.001 to 25", "kg^2"),
          ("level", "Q[0,0]", repr(-sound().kalman.q0), "a float from 1e-06 to 4", "kg^2/day"),
          ("trend", "Q[1,1]", repr(-sound().kalman.q1), "a float from 1e-10 to 0.25", "(kg/day)^2/day"))),
    (changed("adaptation", count=-1), None, [
        Violation("adaptation", "count", "-1", f"an int from 0 to {COUNT_MAX}")]),
    (changed("adaptation", count=1, g=1.5), None, [Violation("adaptation", "f", "1.5", "a float from 0 to 1")]),
    (changed("adaptation", count=0, g=0.75), None, [Violation("adaptation", "f", "0.25", "0 at count 0")]),
    (changed("adaptation", rate=-1.0), None, [Violation("adaptation", "rate", "-1.0", "a float above 0", "measurements")]),
    (changed("adaptation", decay=0.5), None, [Violation("adaptation", "decay", "0.5", "exp(-1/rate)")]),
    (changed("adaptation", measurements=-1), None, [Violation("adaptation", "measurements", "-1", "an int from 0 to 10000")]),
    (changed("adaptation", until_us="x"), None, [
        Violation("adaptation", "until", "'x'", "an int of the years 1 to 9999", "us")]),
    (changed("adaptation", reset_at=7), None, [Violation("adaptation", "reset_at", "7", "an aware datetime")]),
    (changed("adaptation", reset_at=datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=14)))), None, [
        Violation("adaptation", "reset_at", "0001-01-01T00:00:00+14:00", "in the years 1 to 9999 in UTC")]),
    (changed("adaptation", reset_at=datetime(2026, 1, 6, tzinfo=UTC)), T, [
        Violation("adaptation", "reset_at", "2026-01-06T00:00:00+00:00", "not in the future")]),
    (changed("counters", P=-2), None, [Violation("counters", "P", "-2", f"an int from 0 to {COUNT_MAX}")]),
    (msgspec.structs.replace(sound(), packed=bytes(15)), None, [
        Violation("buffer", "packed", "15 bytes", "a multiple of 16 bytes")]),
    (msgspec.structs.replace(sound(), readings_max="30"), None, [
        Violation("buffer", "readings_max", "'30'", "an int from 1 to 30")]),
    (msgspec.structs.replace(sound(), readings_max=1, packed=PAIR.pack(T - 1, 80.0) + PAIR.pack(T, 80.0)), None, [
        Violation("buffer", "buffer", "2", "at most 1", "readings")]),
    (repacked(sound(), (T - 1, 10.0)), None, [Violation("buffer", "buffer[0]", "10.0", "a float from 20 to 500", "kg")]),
    (repacked(sound(), (T - 1, 80.0), (T - 1, 80.0)), None, [
        Violation("buffer", "buffer[1]", str(T - 1), "later than the one before it", "us")]),
    (repacked(sound(), (T - 1, 80.0), (T + 1, 80.0)), None, [
        Violation("buffer", "buffer[1]", str(T + 1), f"not after the state's own {T}", "us")]),
]


@pytest.mark.parametrize(("state", "now_us", "violations"), SAYINGS, ids=[each[-1][0].path for each in SAYINGS])
def test_a_violation_names_rule_path_value_limit_and_unit(
    state: EstimatorState, now_us: int | None, violations: list[Violation],
) -> None:
    """They go to the error, to the audit log and before the eyes of whoever must mend it."""
    assert validator().validate(state, now_us) == tuple(violations)


def test_a_part_of_another_type_is_named_with_what_it_should_be() -> None:
    """Parts in order are not named; whole states of another kind are."""
    for name, value, wanted in (("kalman", None, "a Kalman"), ("packed", (), "a bytes"), ("adaptation", {}, "an Adaptation"),
                                ("counters", 3, "a Counters")):
        found = validator().validate(msgspec.structs.replace(sound(), **{name: value}))
        shapes = [violation for violation in found if violation.rule == "shape"]
        assert shapes == [Violation("shape", name, type(value).__name__, wanted.replace("an ", "a "))]

    class Other(EstimatorState, frozen=True, array_like=True, gc=False):
        pass

    s = sound()
    assert validator().validate(Other(*[getattr(s, name) for name in s.__struct_fields__])) == (
        Violation("shape", "state", "Other", "a EstimatorState"),)


def test_a_number_that_is_not_finite_is_named_by_its_path() -> None:
    inside = {"a": [1.0, Deep(Plain((2.0, math.inf)))], 7: np.array([math.nan])}
    assert list(finite_everywhere(inside)) == [
        Violation("finite", "state['a'][1].inside.inside[1]", "inf", "finite"),
        Violation("finite", "state[7]", "array([nan])", "an array of finite numbers")]
    deep: Any = 1.0
    for _ in range(DEPTH_MAX + 1):
        deep = [deep]
    (found,) = finite_everywhere(deep)
    assert (found.rule, found.value, found.limit) == ("finite", "nested deeper", f"nested at most {DEPTH_MAX} deep")
    assert found.path == "state" + "[0]" * (DEPTH_MAX + 1)


def test_a_violation_without_a_unit_says_none() -> None:
    assert str(Violation("covariance", "P", "m", "symmetric")) == "covariance: P is m, must be symmetric"


def test_a_long_value_is_cut_at_its_limit_and_not_before() -> None:
    """To the character: what fits is whole."""
    for length, text in ((TEXT_CHARS_MAX - 2, "'" + "x" * (TEXT_CHARS_MAX - 2) + "'"),
                         (TEXT_CHARS_MAX - 1, "'" + "x" * (TEXT_CHARS_MAX - 4) + "...")):
        found = validator().validate(changed("kalman", x0="x" * length))
        assert found[0].value == text


# User rules, and what any rule may do.


def test_a_rule_that_raises_has_refused() -> None:
    """It is a violation under its own name, and the other rules are still asked."""
    def clumsy(_state: Any, _now_us: int | None, _known: Any) -> list[Violation]:
        raise ZeroDivisionError("x" * 500)

    found = validator().with_rules(Rule("clumsy", clumsy)).validate(changed("kalman", x0=1.0))
    assert [(v.rule, v.path) for v in found] == [("estimate", "x[0]"), ("clumsy", "state")]
    assert found[1].value.startswith("ZeroDivisionError: xxx")
    assert found[1].limit == "checkable without an error"
    assert len(found[1].value) == TEXT_CHARS_MAX


def test_a_rule_may_be_a_generator_and_answers_are_capped() -> None:
    def chatty(_state: Any, _now_us: int | None, _known: Any) -> Any:
        return (Violation("chatty", str(n), "", "") for n in range(1_000))

    assert len(StateValidator([Rule("chatty", chatty)]).validate(None)) == VIOLATIONS_MAX


def test_a_rule_is_given_the_state_the_present_and_what_is_known() -> None:
    asked: list[Any] = []

    def curious(state: Any, now_us: int | None, known: Any) -> list[Violation]:
        asked.append((state, now_us, known))
        return []

    StateValidator([Rule("curious", curious)]).validate("s", 7, "k")
    assert asked == [("s", 7, "k")]


def test_the_fingerprint_is_that_of_rules_and_limits() -> None:
    """Equal for equal rules in every process, another for any limit, name or rule that differs."""
    fingerprints = [validator().fingerprint, validator().with_rules(Rule("mine", finite_everywhere)).fingerprint,
                    validator().with_rules(Rule("mine", finite_everywhere, "2")).fingerprint,
                    validator().with_rules(Rule("yours", finite_everywhere)).fingerprint]
    for name in Limits.__struct_fields__:
        other = msgspec.structs.replace(LIMITS, **{name: getattr(LIMITS, name) * 2})
        fingerprints.append(StateValidator(body_weight_rules(other)).fingerprint)
    assert len(set(fingerprints)) == len(fingerprints)
    for same in (body_weight_rules(Limits()), BODY_WEIGHT.rules):
        assert StateValidator(same).fingerprint == validator().fingerprint


def test_a_violation_is_one_readable_line() -> None:
    assert str(Violation("estimate", "x[0]", "10.0", "a float from 20 to 500", "kg")) == (
        "estimate: x[0] is 10.0 kg, must be a float from 20 to 500")


# finite_everywhere.


class Deep(msgspec.Struct):
    inside: Any


@dataclass
class Plain:
    inside: Any


WRAPPERS: Final[list[Callable[[Any], Any]]] = [
    lambda v: v, Deep, Plain, lambda v: [v], lambda v: (1.0, v), lambda v: {"a": {"b": v}}, lambda v: {1: [v]},
    lambda v: Deep([{"x": (Deep(v),)}]),
]


@pytest.mark.parametrize("wrap", WRAPPERS)
@pytest.mark.parametrize("value", [
    math.nan, math.inf, -math.inf, np.float64("nan"), np.float32("inf"), np.float16("nan"), Decimal("NaN"),
    complex(1.0, math.nan),
    np.complex64(complex(math.inf, 0.0)), np.array([1.0, math.nan]), np.array([[math.inf]]), np.array([None]),
])
def test_no_number_hides_however_deep(wrap: Callable[[Any], Any], value: Any) -> None:
    found = list(finite_everywhere(wrap(value)))
    assert [v.rule for v in found] == ["finite"]
    assert found[0].path.startswith("state")


@pytest.mark.parametrize("wrap", WRAPPERS)
@pytest.mark.parametrize("value", [
    1.0, 0, -5e-324, True, None, "nan", b"", np.float32(1.0), np.int64(3), 1j, Decimal("1e400"), np.zeros((2, 2)), np.arange(3),
    datetime(2026, 1, 5, tzinfo=UTC),
])
def test_what_is_finite_passes(wrap: Callable[[Any], Any], value: Any) -> None:
    assert list(finite_everywhere(wrap(value))) == []


def test_a_path_says_where() -> None:
    found = list(finite_everywhere(Deep({"k": [1.0, math.nan]})))
    assert [v.path for v in found] == ["state.inside['k'][1]"]
    assert {v.path for v in finite_everywhere({frozenset({math.nan}): math.inf, "s": frozenset({math.inf})})} >= {"state['s'][0]"}


def test_depth_has_a_limit() -> None:
    nested: Any = math.nan
    for _ in range(DEPTH_MAX):
        nested = [nested]
    assert [v.value for v in finite_everywhere(nested)] == ["nan"]
    assert [v.value for v in finite_everywhere([nested])] == ["nested deeper"]
