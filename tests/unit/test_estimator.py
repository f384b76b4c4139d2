"""The body-weight estimator: what each reset does to a state, how the noise returns, and bytes that give the same bits."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from statemachine import BODY_WEIGHT, BodyWeight, EstimatorState, InvalidInput, Limits, Measurement, Reading, StoreCorrupt
from statemachine.clock import US_PER_DAY, from_us, to_us
from statemachine.estimator import SOURCE_MULTIPLIERS, source_name
from statemachine.kalman import predict
from statemachine.policy import KINDS
from statemachine.state import PAIR, Adaptation, Counters, Kalman
from statemachine.validation import StateValidator

T: Final = to_us(datetime(2026, 1, 5, 7, tzinfo=UTC))
R: Final = 0.15
# The figures of the kinds, written down once more: variance, level, trend, observation, measurements, days, rate.
FIGURES: Final = {
    "initial": (10.0, 50.0, 500.0, 0.3, 20, 21.0, 1.5),
    "gap": (5.0, 20.0, 200.0, 0.5, 10, 7.0, 2.5),
    "manual-entry": (2.0, 5.0, 20.0, 0.7, 15, 10.0, 4.0),
    "level-shift": (5.0, 20.0, 200.0, 0.5, 10, 7.0, 2.5),
    "admin": (5.0, 20.0, 200.0, 0.5, 10, 7.0, 2.5),
}


def reading(day: float, kg: float, r: float = R) -> Reading:
    return Reading(T + round(day * US_PER_DAY), (kg,), r)


def reset(kind: str, state: EstimatorState | None, given_: Reading | None, at_us: int = T) -> EstimatorState:
    made: Any = state
    for operation in BODY_WEIGHT.operations(KINDS[kind], given_, at_us):
        made = operation.run(made)
    assert isinstance(made, EstimatorState)
    return made


def settled(days: int = 12) -> EstimatorState:
    """A state after daily readings that rise a little, the last on day `days`."""
    state = reset("initial", None, reading(0, 80.0))
    for day in range(1, days + 1):
        state = BODY_WEIGHT.step(state, reading(day, 80.0 + day / 20))
    return state


# Operations.


def test_the_figures_are_those_that_were_chosen() -> None:
    assert {kind: msgspec.structs.astuple(how) for kind, how in KINDS.items()} == FIGURES


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("before", ["nothing", "a state"])
def test_a_reset_on_a_reading_replaces_everything(kind: str, before: str) -> None:
    """x is the reading with no trend, P = diag(m R, 0.05^2), the buffer holds the reading alone, the noise is wide again."""
    state = settled() if before == "a state" else None
    after = reset(kind, state, reading(50, 91.5, r=7.0), at_us=T + 50 * US_PER_DAY)
    variance, level, trend, observation, measurements, days, rate = FIGURES[kind]
    assert after.x.tolist() == [91.5, 0.0]
    assert after.P.tolist() == [[variance * R, 0.0], [0.0, 0.05 * 0.05]]
    assert after.at == from_us(T + 50 * US_PER_DAY)
    assert after.buffer == ((T + 50 * US_PER_DAY, 91.5),)
    until_us = T + round((50 + days) * US_PER_DAY)
    assert after.adaptation == Adaptation(
        from_us(T + 50 * US_PER_DAY), 0, 1.0, math.exp(-1 / rate), rate, level, trend, observation, measurements, until_us)
    one = state.counters if state is not None else Counters()
    assert after.counters == Counters(one.x + 1, one.P + 1, one.buffer + 1, one.adaptation + 1)
    assert (after.R, after.Q.tolist()) == (R, [[0.05, 0.0], [0.0, 1e-4]]), "the base noise is no part of a reset"


def test_operations_have_names_and_each_leaves_a_whole_state() -> None:
    """Every intermediate state passes the rules, so that each may be a checkpoint."""
    validator = StateValidator(BODY_WEIGHT.rules)
    for state, given_, names in (
        (None, reading(50, 91.5), ["replace filter", "clear buffer", "restart adaptation", "admit first measurement"]),
        (settled(), reading(50, 91.5), ["replace filter", "clear buffer", "restart adaptation", "admit first measurement"]),
        (settled(), None, ["replace covariance", "restart adaptation"]),
    ):
        operations = BODY_WEIGHT.operations(KINDS["gap"], given_, T + 50 * US_PER_DAY)
        assert [operation.name for operation in operations] == names
        made: Any = state
        for operation in operations:
            made = operation.run(made)
            assert validator.validate(made, T + 50 * US_PER_DAY) == (), operation.name


@pytest.mark.parametrize("kind", KINDS)
def test_a_reset_without_a_reading_keeps_estimate_and_buffer(kind: str) -> None:
    before = settled()
    after = reset(kind, before, None, at_us=T + 20 * US_PER_DAY)
    assert (after.x.tolist(), after.buffer, after.at) == (before.x.tolist(), before.buffer, before.at)
    assert after.P.tolist() == [[FIGURES[kind][0] * R, 0.0], [0.0, 0.0025000000000000005]]
    assert (after.adaptation.reset_at, after.adaptation.count, after.adaptation.f) == (from_us(T + 20 * US_PER_DAY), 0, 0.0)
    assert after.counters == Counters(1, 2, 1, 2)


def test_a_reset_that_goes_back_takes_later_readings_out_first() -> None:
    """Else the state would hold readings from after its own time before the buffer is cleared."""
    first, *_ = BODY_WEIGHT.operations(KINDS["level-shift"], reading(5.5, 95.0), T)
    state = first.run(settled())
    assert [at_us for at_us, _ in state.buffer] == [T + day * US_PER_DAY for day in range(6)]
    assert state.kalman.at_us == T + round(5.5 * US_PER_DAY)


def test_a_reset_takes_r_from_the_state() -> None:
    """Replay must not depend on how the program is configured today."""
    state = settled().replace(R=0.5)
    assert reset("gap", state, reading(50, 91.5)).kalman.p00 == 2.5
    assert BodyWeight(r_kg2=1).operations(KINDS["gap"], reading(50, 91.5), T)[0].run(state).kalman.p00 == 2.5


# Adaptation.


@pytest.mark.parametrize("kind", KINDS)
def test_the_factor_is_0_at_count_0_and_tends_to_1(kind: str) -> None:
    """f = 1 - exp(-n / rate) after n accepted measurements, exactly 0 at none, never beyond 1."""
    rate = FIGURES[kind][-1]
    state, before = reset(kind, None, reading(0, 80.0)), -1.0
    assert state.adaptation.f == 0.0
    for count in range(60):
        f = state.adaptation.f
        assert state.adaptation.count == count
        assert f == pytest.approx(1 - math.exp(-count / rate), abs=1e-12)
        assert before < f <= 1.0 or f == pytest.approx(1.0, abs=1e-12)
        before = f
        state = BODY_WEIGHT.step(state, reading(count + 1, 80.0))
    assert state.adaptation.f > 0.999999


@pytest.mark.parametrize("kind", KINDS)
def test_adaptation_ends_after_its_measurements_and_its_days(kind: str) -> None:
    """Whichever takes longer: neither many readings in a day nor a long silence ends it alone."""
    measurements, days = FIGURES[kind][4:6]
    until_us = T + round(days * US_PER_DAY)
    quick = reset(kind, None, reading(0, 80.0))
    for number in range(measurements + 5):
        quick = BODY_WEIGHT.step(quick, reading((number + 1) / 1_000, 80.0))
    assert BODY_WEIGHT.adapting(quick, until_us - 1)
    assert not BODY_WEIGHT.adapting(quick, until_us)
    slow = reset(kind, None, reading(0, 80.0))
    for number in range(measurements):
        assert BODY_WEIGHT.adapting(slow, until_us + 365 * US_PER_DAY)
        slow = BODY_WEIGHT.step(slow, reading(days + number + 1, 80.0))
    assert not BODY_WEIGHT.adapting(slow, slow.kalman.at_us)


@pytest.mark.parametrize("kind", KINDS)
def test_noise_goes_from_its_multiple_back_to_its_base(kind: str) -> None:
    """Effective parameter = reset * (1 - f) + base * f while adapting, the base afterwards."""
    _, level, trend, observation, measurements, days, _ = FIGURES[kind]
    state = reset(kind, None, reading(0, 80.0))
    for count in range(measurements + 1):
        f, at_us = state.adaptation.f, state.kalman.at_us + US_PER_DAY
        here = predict(state.kalman, state.adaptation, at_us, R)
        still = predict(msgspec.structs.replace(state.kalman, q0=0.0, q1=0.0), state.adaptation, at_us, R)
        if BODY_WEIGHT.adapting(state, at_us):
            assert here.r == pytest.approx(R * (observation * (1 - f) + f))
            assert here.p11 - still.p11 == pytest.approx(1e-4 * (trend * (1 - f) + f))
            expected = 0.05 * (level * (1 - f) + f) + 1e-4 * (trend * (1 - f) + f) / 3
            assert here.p00 - still.p00 == pytest.approx(expected)
        else:
            assert here.r == R
            assert here.p11 - still.p11 == pytest.approx(1e-4)
        state = BODY_WEIGHT.step(state, reading(max(days, measurements) / measurements * (count + 1), 80.0))
    assert not BODY_WEIGHT.adapting(state, state.kalman.at_us + US_PER_DAY)


# Readings and their sources.


@pytest.mark.parametrize(("source", "multiplier"), [
    *SOURCE_MULTIPLIERS.items(), ("Care-Team_Upload", 0.5), ("  patient   UPLOAD ", 0.7), ("SCALE", 1.0), ("glucose-meter", 3.0),
    ("Health Mate", 1.0), ("", 1.0), ("unknown", 1.0),
])
def test_a_source_has_its_multiplier_and_an_unknown_one_has_none(source: str, multiplier: float) -> None:
    assert BODY_WEIGHT.multiplier(source) == multiplier
    assert BODY_WEIGHT.reading(Measurement("u", from_us(T), 80.0, source)) == Reading(T, (80.0,), 0.15 * multiplier)


def test_the_multipliers_are_those_that_were_chosen() -> None:
    groups = {0.5: "care team", 0.7: "patient upload", 0.8: "questionnaire", 1.0: "device", 1.5: "connected health",
              3.0: "glucose meter"}
    assert {SOURCE_MULTIPLIERS[name]: name for name in groups.values()} == groups
    assert {source_name(name) for name in SOURCE_MULTIPLIERS} == set(SOURCE_MULTIPLIERS), "else one could never be found"


def test_sources_and_figures_may_be_the_caller_s() -> None:
    """Figures written as ints are floats in the state."""
    own = BodyWeight(r_kg2=1, q_level=2, sources={"scale": 4.0})
    assert own.reading(Measurement("u", from_us(T), 80.0, "scale")).r == 4.0
    assert own.reading(Measurement("u", from_us(T), 80.0, "care team")).r == 1.0
    state = own.operations(KINDS["gap"], reading(0, 80.0), T)[0].run(None)
    assert [type(value) for value in (state.kalman.r, state.kalman.q0, state.kalman.q1)] == [float] * 3


@pytest.mark.parametrize("kg", [math.nan, math.inf, -math.inf, 0.0, -0.0, -80.0, -5e-324])
def test_what_is_no_weight_is_no_reading(kg: float) -> None:
    """The message says what was written, and whose it is."""
    with pytest.raises(InvalidInput, match=r"^about 80 lb is no weight; it must be a finite number above 0$") as refused:
        BODY_WEIGHT.reading(Measurement("u", from_us(T), kg, "scale", "about 80", "lb"))
    assert refused.value.user == "u"


@pytest.mark.parametrize("kg", [5e-324, 1.0, 45.0, 1e308])
def test_any_finite_weight_is_a_reading(kg: float) -> None:
    """What is plausible is the policy's affair; no unit is guessed from a number."""
    assert BODY_WEIGHT.reading(Measurement("u", from_us(T), kg)).values == (kg,)


# Steps and distances.


def test_a_step_moves_buffer_and_adaptation_on_by_one() -> None:
    before = settled(5)
    after = BODY_WEIGHT.step(before, reading(6, 80.5, r=0.45))
    assert after.buffer == (*before.buffer, (T + 6 * US_PER_DAY, 80.5))
    assert (after.adaptation.count, after.adaptation.g) == (6, before.adaptation.g * before.adaptation.decay)
    assert after.counters is before.counters
    assert after.at == from_us(T + 6 * US_PER_DAY)
    assert before == settled(5), "the state before is as it was"


def test_a_buffer_keeps_the_newest() -> None:
    own = BodyWeight(limits=Limits(buffer_readings_max=3))
    state = settled(2).replace(readings_max=3)
    for day in range(3, 9):
        state = own.step(state, reading(day, 80.0 + day))
    assert [kg for _, kg in state.buffer] == [86.0, 87.0, 88.0]
    assert len(settled(80).buffer) == 30


def test_distances_are_their_formulas() -> None:
    """NIS = (z - H x)^2 / S, change = |z - x0|, spread = d^2 / (2R + q dt) with the larger R of the two."""
    state = settled()
    z = reading(15, 84.0, r=0.45)
    p = predict(state.kalman, state.adaptation, z.at_us, z.r)
    assert BODY_WEIGHT.nis(state, z) == pytest.approx((84.0 - state.kalman.x0 - 3 * state.kalman.x1) ** 2 / (p.p00 + p.r))
    assert BODY_WEIGHT.change(state, z) == 84.0 - state.kalman.x0
    assert BODY_WEIGHT.change(state, reading(15, 70.0)) == state.kalman.x0 - 70.0
    early, late = reading(0, 80.0, r=0.1), reading(4, 82.0, r=0.3)
    assert BODY_WEIGHT.spread(None, early, late) == pytest.approx(4.0 / (2 * 0.3 + 0.05 * 4))
    wide = state.replace(Q=[[0.5, 0.0], [0.0, 1e-4]])
    assert BODY_WEIGHT.spread(wide, early, late) == pytest.approx(4.0 / (2 * 0.3 + 0.5 * 4))
    assert BODY_WEIGHT.spread(None, reading(0, 80.0, r=0.3), reading(4, 82.0, r=0.1)) == BODY_WEIGHT.spread(None, early, late)


def test_deltas_are_after_minus_before() -> None:
    before, after = settled(), reset("gap", settled(), reading(50, 91.5))
    x, p = BODY_WEIGHT.deltas(before, after)
    assert x == tuple(after.x - before.x)
    assert p == tuple((after.P - before.P).reshape(-1))
    assert BODY_WEIGHT.deltas(None, after) == ((91.5, 0.0), tuple(after.P.reshape(-1)))
    assert BODY_WEIGHT.deltas(after, after) == ((0.0, 0.0), (0.0, 0.0, 0.0, 0.0))


def test_only_a_state_is_one() -> None:
    state = settled()
    assert BODY_WEIGHT.is_state(state)
    others: list[Any] = [None, {}, 80.0, state.kalman, msgspec.structs.astuple(state), EstimatorState]
    for other in others:
        assert not BODY_WEIGHT.is_state(other)
    assert BODY_WEIGHT.at_us(state) == state.kalman.at_us == T + 12 * US_PER_DAY


# Bytes.

FLOATS = st.floats(allow_nan=False)
INSTANTS = st.integers(to_us(datetime(1, 1, 1, tzinfo=UTC)), to_us(datetime(9999, 12, 31, tzinfo=UTC)))
COUNTS = st.integers(0, 2**53)
STATES = st.builds(
    EstimatorState,
    st.builds(Kalman, *[FLOATS] * 9, INSTANTS, FLOATS),
    st.lists(st.builds(PAIR.pack, INSTANTS, FLOATS), max_size=31).map(b"".join),
    st.builds(Adaptation, st.none() | INSTANTS.map(from_us), COUNTS, *[FLOATS] * 6, COUNTS, INSTANTS),
    st.builds(Counters, *[COUNTS] * 4),
)


def bits(state: EstimatorState) -> list[Any]:
    """Every value with its type and, of a float, its bits: -0.0 is not 0.0."""
    k, a, c = (msgspec.structs.astuple(part) for part in (state.kalman, state.adaptation, state.counters))
    flat = [*k, *a, *c, *(value for pair in state.buffer for value in pair)]
    return [(type(value), value.hex() if type(value) is float else value) for value in flat]


@given(STATES)
def test_bytes_give_the_state_back_bit_for_bit(state: EstimatorState) -> None:
    """Subnormals, infinities, minus zero, any microsecond: equal bits, equal types, equal bytes again."""
    data = BODY_WEIGHT.encode(state)
    back = BODY_WEIGHT.decode(data)
    assert bits(back) == bits(state)
    assert back == state
    assert BODY_WEIGHT.encode(back) == data
    assert all(type(pair) is tuple for pair in back.buffer)


def test_bytes_are_those_that_stores_hold() -> None:
    """The encoding is a format on the disk: another one needs another schema number."""
    data = BODY_WEIGHT.encode(settled(2))
    assert (BODY_WEIGHT.name, BODY_WEIGHT.schema) == ("body-weight", 1)
    kalman, packed, adaptation, counters, readings_max = msgspec.msgpack.decode(data)
    assert kalman == list(msgspec.structs.astuple(settled(2).kalman))
    assert packed == b"".join(
        at_us.to_bytes(8, "little") + value for at_us, value in (
            (T, bytes.fromhex("0000000000005440")), (T + US_PER_DAY, bytes.fromhex("3333333333035440")),
            (T + 2 * US_PER_DAY, bytes.fromhex("6666666666065440"))))
    assert adaptation == [T, *msgspec.structs.astuple(settled(2).adaptation)[1:]]
    assert counters == [1, 1, 1, 1]
    assert readings_max == 30


K: Final = [80.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.05, 1e-4, 0.15, T, 30.0]
A: Final = [T, 0, 1.0, 0.5, 1.5, 1.0, 1.0, 1.0, 20, T]
C: Final = [1, 1, 1, 1]


def test_the_parts_used_below_are_a_state() -> None:
    assert BODY_WEIGHT.is_state(BODY_WEIGHT.decode(msgspec.msgpack.encode([K, b"", A, C, 30])))


@pytest.mark.parametrize("parts", [
    None, 7, "state", {}, [], [K], [K, b"", A], [K, b"", A, C, 30, 0], [K[:-1], b"", A, C, 30], [[*K, 0.0], b"", A, C, 30],
    [K, b"\0" * 15, A, C, 30], [K, b"", A[:-1], C, 30], [K, b"", [*A, 0], C, 30], [K, b"", [], C, 30],
    [K, b"", [2**62, *A[1:]], C, 30], [K, b"", A, [*C, 0], 30], [K, b"", A, C[:-1], 30], [K, b"", None, C, 30],
    [[True, *K[1:]], b"", A, C, 30], [K, b"", A, [True, 1, 1, 1], 30], [K, "text", A, C, 30], [K, None, A, C, 30],
    [K, b"", ["2026-01-05", *A[1:]], C, 30], [None, b"", A, C, 30], [["80", *K[1:]], b"", A, C, 30], [K, b"", A, C, "30"],
    [[None, *K[1:]], b"", A, C, 30], [[*K[:9], 1.5, 30.0], b"", A, C, 30], [K, b"", [T, "0", *A[2:]], C, 30],
    [K, b"", A, [1, 1, 1, "1"], 30],
    [K, b"", A, [1, 1, 1, None], 30], [{"x0": 80.0}, b"", A, C, 30],
], ids=repr)
def test_what_is_no_state_is_store_corrupt(parts: Any) -> None:
    """Wrong shapes, wrong types, instants no calendar holds: never another error, and never something like a state."""
    with pytest.raises(StoreCorrupt, match="a body-weight state does not decode"):
        BODY_WEIGHT.decode(msgspec.msgpack.encode(parts))


@given(st.binary(max_size=300))
def test_garbage_is_store_corrupt(data: bytes) -> None:
    with pytest.raises(StoreCorrupt):
        BODY_WEIGHT.decode(data)


@given(st.integers(0, 10_000))
def test_cut_bytes_are_store_corrupt(cut: int) -> None:
    data = BODY_WEIGHT.encode(settled(4))
    with pytest.raises(StoreCorrupt):
        BODY_WEIGHT.decode(data[: cut % len(data)])
