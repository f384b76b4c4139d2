"""Many logs folded side by side: the same bits as the loop, whatever the lanes, and nothing vouched for that the rules refuse."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statemachine import BODY_WEIGHT, BodyWeight, EstimatorState, StateValidator
from statemachine.policy import KINDS
from statemachine.state import Adaptation, Reading
from statemachine.sweep.folding import FoldedInLoop, fold
from statemachine.validation import Limits, body_weight_rules
from statemachine.vectorised import EXACT_US_MAX, LANES_MIN, FoldedBodyWeight, Lanes, fold_body_weight
from tests.property.test_kalman import DAYS, START_US, filters, readings, started

if TYPE_CHECKING:
    from collections.abc import Sequence

EARLIEST_US = -62_135_596_800_000_000 + 10**15


@st.composite
def states(draw: st.DrawFn) -> EstimatorState:
    """A state right after a reset of any kind, or one with any valid filter, any adaptation and any bound of its buffer."""
    state = started(draw(st.sampled_from(sorted(KINDS))), draw(st.floats(30.0, 200.0)))
    if draw(st.booleans()):
        return state
    kalman = msgspec.structs.replace(draw(filters()), at_us=draw(st.sampled_from((START_US, EARLIEST_US))),
                                     dt_days_max=draw(st.floats(0.5, 30.0)))
    multiplier = st.floats(0.1, 100.0)
    a = state.adaptation
    adaptation = Adaptation(a.reset_at, draw(st.integers(0, 40)), draw(st.floats(0.0, 1.0)), draw(st.floats(0.0, 1.0)), a.rate,
                            draw(multiplier), draw(multiplier), draw(multiplier), draw(st.integers(0, 60)),
                            START_US + int(draw(DAYS)) * 86_400_000_000)
    return state.replace(kalman=kalman, adaptation=adaptation, readings_max=draw(st.integers(1, 30)))


def lanes_of(begun: Sequence[EstimatorState], taken: Sequence[Sequence[Reading]]) -> Lanes:
    """Lanes that begin at these states and take in these readings."""
    lengths = np.array([len(one) for one in taken], np.int64)
    rows = [reading for one in taken for reading in one]
    return Lanes(tuple(begun), np.cumsum(lengths) - lengths, lengths, np.array([r.at_us for r in rows], np.int64),
                 np.array([r.values for r in rows], np.float64).reshape(len(rows), 1), np.array([r.r for r in rows], np.float64))


def bits(values: Any) -> bytes:
    return np.ascontiguousarray(values).tobytes()


def assert_equal(many: Any, loop: FoldedInLoop, lanes: Lanes) -> None:
    """Every column and every state on the way, bit for bit."""
    assert bits(many.nis) == bits(loop.nis)
    assert many.adapting.tolist() == loop.adapting.tolist()
    assert {name: bits(column) for name, column in many.figures.items()} == {
        name: bits(column) for name, column in loop.figures.items()}
    assert many.trouble == loop.trouble == {}
    for lane, (start, length) in enumerate(zip(lanes.starts.tolist(), lanes.lengths.tolist(), strict=True)):
        for row in range(start, start + length):
            assert BODY_WEIGHT.encode(many.state(lane, row)) == BODY_WEIGHT.encode(loop.state(lane, row))


@settings(max_examples=50)
@given(data=st.data(), begun=st.lists(states(), max_size=6), lanes_min=st.sampled_from((0, 1, 3, LANES_MIN, 1_000)))
def test_side_by_side_gives_the_bits_of_the_loop(data: st.DataObject, begun: list[EstimatorState], lanes_min: int) -> None:
    """NIS, figures, and each state with its buffer and adaptation, for any filters and gaps, wherever the loop takes over."""
    taken = [data.draw(st.one_of(st.just([]), readings(most=12))) for _ in begun]
    lanes = lanes_of(begun, taken)
    many = fold_body_weight(lanes, BODY_WEIGHT.limits, BODY_WEIGHT.rules, lanes_min)
    assert_equal(many, FoldedInLoop(BODY_WEIGHT, lanes), lanes)


def test_many_long_lanes_give_the_bits_of_the_loop() -> None:
    """Two hundred logs of unlike lengths, long enough to leave every adaptation and to roll every buffer over."""
    dice = np.random.default_rng(3)
    kinds = sorted(KINDS)
    begun = [started(kinds[n % len(kinds)], float(dice.uniform(40, 150))) for n in range(200)]
    taken = []
    for state in begun:
        at_us, one = START_US, []
        for _ in range(int(dice.integers(0, 120))):
            at_us += int(dice.exponential(1.5) * 86_400_000_000) + 1
            one.append(Reading(at_us, (float(state.kalman.x0 + dice.normal(0, 1.5)),), float(dice.choice([0.075, 0.15, 0.45]))))
        taken.append(one)
    lanes = lanes_of(begun, taken)
    many = fold(BODY_WEIGHT, lanes)
    assert type(many) is FoldedBodyWeight
    assert_equal(many, FoldedInLoop(BODY_WEIGHT, lanes), lanes)
    assert many.adapting.any()
    assert not many.adapting.all()


def test_gaps_that_no_double_holds_are_rounded_once() -> None:
    """Of differences above 2**53 us numpy would round twice: each is divided as Python does it."""
    delta_us = next(n for n in range(EXACT_US_MAX + 1, EXACT_US_MAX + 10**6)
                    if n / 86_400_000_000 != float(n) / 86_400_000_000.0)
    lanes = lanes_of([started("initial")] * 20, [[Reading(START_US + delta_us, (81.0,), 0.15)]] * 20)
    assert_equal(fold(BODY_WEIGHT, lanes), FoldedInLoop(BODY_WEIGHT, lanes), lanes)


@settings(max_examples=50)
@given(data=st.data(), begun=st.lists(states(), min_size=1, max_size=4))
def test_what_is_vouched_for_passes_the_rules(data: st.DataObject, begun: list[EstimatorState]) -> None:
    """Where `sound` says yes and the lane began at a state that passes, the rules find nothing, under narrow limits too."""
    limits = Limits(weight_kg_min=data.draw(st.floats(20.0, 60.0)), weight_kg_max=data.draw(st.floats(90.0, 500.0)),
                    trend_kg_per_day_max=data.draw(st.floats(0.05, 1.5)), p_level_kg2_max=data.draw(st.floats(0.1, 1e4)),
                    condition_max=data.draw(st.floats(10.0, 1e10)))
    validator = StateValidator(body_weight_rules(limits))
    lanes = lanes_of(begun, [data.draw(readings(most=8)) for _ in begun])
    many = fold_body_weight(lanes, limits, validator.rules)
    sound = many.sound()
    for lane, state in enumerate(begun):
        if validator.validate(state):
            continue
        start = int(lanes.starts[lane])
        for row in range(start, start + int(lanes.lengths[lane])):
            assert not sound[row] or not validator.validate(many.state(lane, row))


def test_ordinary_courses_are_vouched_for_to_the_last_state() -> None:
    """What follows an ordinary reset is judged in columns alone: else nothing would be gained by them."""
    taken = [[Reading(START_US + day * 86_400_000_000, (80.0 + day / 50,), 0.15) for day in range(1, 60)]] * 20
    assert fold(BODY_WEIGHT, lanes_of([started("initial")] * 20, taken)).sound().all()


@pytest.mark.parametrize("narrow", [
    Limits(weight_kg_min=80.5), Limits(weight_kg_max=80.5), Limits(trend_kg_per_day_max=1e-3), Limits(p_level_kg2_min=0.2),
    Limits(p_level_kg2_max=0.05), Limits(p_trend_min=1.0), Limits(p_trend_max=1e-4), Limits(condition_max=5.0),
], ids=lambda limits: next(name for name in limits.__struct_fields__ if getattr(limits, name) != getattr(Limits(), name)))
def test_every_limit_that_a_step_can_break_is_looked_at(narrow: Limits) -> None:
    """Nobody is vouched for in a state that breaks it, and there is such a state."""
    taken = [[Reading(START_US + day * 86_400_000_000, (80.0 + day / 20,), 0.15) for day in range(1, 30)]] * 20
    lanes, validator = lanes_of([started("initial")] * 20, taken), StateValidator(body_weight_rules(narrow))
    folded = fold_body_weight(lanes, narrow, validator.rules)
    broken = np.array([bool(validator.validate(folded.state(0, row))) for row in range(29)])
    assert broken.any()
    assert not (folded.sound()[:29] & broken).any()


@pytest.mark.parametrize("changed", [
    {"P": [[1.0, 2.0], [2.0, 1.0]]}, {"adaptation": {"g": 1.5, "decay": 1.0}}, {"adaptation": {"g": -0.5}},
    {"adaptation": {"count": -5}},
], ids=str)
def test_what_only_a_strange_beginning_leads_to_is_looked_at(changed: dict[str, Any]) -> None:
    """A covariance that is none, a factor outside its range, a count below 0: no step after it is vouched for at once."""
    state = started("initial")
    if "adaptation" in changed:
        changed = {"adaptation": msgspec.structs.replace(state.adaptation, **changed["adaptation"])}
    lanes = lanes_of([state.replace(**changed)] * 20, [[Reading(START_US + 60_000_000, (80.0,), 0.15)]] * 20)
    folded = fold(BODY_WEIGHT, lanes)
    assert StateValidator(BODY_WEIGHT.rules).validate(folded.state(0, 0))
    assert not folded.sound().any()


def test_time_that_does_not_go_on_is_vouched_for_by_nobody() -> None:
    """A reading at the instant of the state before it, and all that follow while it is in the buffer."""
    at_us = [START_US, START_US + 10, START_US + 20]
    lanes = lanes_of([started("initial")] * 20, [[Reading(us, (80.0,), 0.15) for us in at_us]] * 20)
    assert not fold(BODY_WEIGHT, lanes).sound().any()


class Doubled(BodyWeight):
    """Other arithmetic beneath a vectorised form that knows nothing of it."""

    def step(self, state: EstimatorState, reading: Reading) -> EstimatorState:
        return super().step(super().step(state, reading), Reading(reading.at_us + 1, reading.values, reading.r))


def test_a_subclass_with_other_arithmetic_is_folded_by_its_own() -> None:
    """It inherits the vectorised form, and is not folded by it."""
    lanes = lanes_of([started("initial")] * 20, [[Reading(START_US + 86_400_000_000, (81.0,), 0.15)]] * 20)
    doubled = Doubled()
    folded = fold(doubled, lanes)
    assert folded.state(0, 0) == doubled.step(started("initial"), lanes.reading(0)) != fold(BODY_WEIGHT, lanes).state(0, 0)


@pytest.mark.parametrize("lanes_min", [1, 1_000])
def test_a_variance_of_nothing_stops_its_lane_alone(lanes_min: int) -> None:
    """Where the loop divides by zero the lane is told with the row, and its neighbour goes on."""
    broken = started("initial").replace(P=[[0.0, 0.0], [0.0, 0.0]], q0=0.0, q1=0.0)
    taken = [[Reading(START_US + 86_400_000_000 * day, (81.0,), 0.0 if lane == 0 and day == 2 else 0.15) for day in (1, 2, 3)]
             for lane in (0, 1)]
    lanes = lanes_of([broken, started("initial")], taken)
    many, loop = fold_body_weight(lanes, BODY_WEIGHT.limits, (), lanes_min), FoldedInLoop(BODY_WEIGHT, lanes)
    for folded in (many, loop):
        assert {lane: row for lane, (row, _) in folded.trouble.items()} == {0: 1}
    assert struct.pack("<d", many.nis[5]) == struct.pack("<d", loop.nis[5])
