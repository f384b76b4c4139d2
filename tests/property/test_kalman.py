"""The filter: its covariance stays one, its arithmetic is the textbook's, its replay is bit-identical, its NIS is consistent."""

from __future__ import annotations

import math
import random
import struct
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from statemachine import BODY_WEIGHT, EstimatorState, Processor, ResetManager, ResetPolicy
from statemachine.clock import to_us
from statemachine.kalman import Prediction, is_adapting, nis, predict, update
from statemachine.policy import KINDS
from statemachine.state import Adaptation, Kalman, Reading
from statemachine.store import keys
from tests.regression.scene import DAY_US, START, opened, states, weighed, working

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    Matrix = NDArray[np.float64]

START_US = to_us(START)
SCALES = st.floats(0.02, 500.0)
DAYS = st.floats(1e-6, 3_000.0)


@st.composite
def readings(draw: st.DrawFn, most: int = 40) -> list[Reading]:
    """Readings in time order, of sources of any noise, as ordinary or as wild as a stream may be."""
    steps = draw(st.lists(st.tuples(DAYS, SCALES, st.sampled_from((0.5, 0.7, 1.0, 1.5, 3.0))), min_size=1, max_size=most))
    at_us, found = START_US, []
    for days, kg, multiplier in steps:
        at_us += max(int(days * DAY_US), 1)
        found.append(Reading(at_us, (kg,), BODY_WEIGHT.r_kg2 * multiplier))
    return found


def started(kind: str, kg: float = 80.0) -> EstimatorState:
    """The state that a reset of this kind starts from a reading."""
    state: Any = None
    for operation in BODY_WEIGHT.operations(KINDS[kind], Reading(START_US, (kg,), BODY_WEIGHT.r_kg2), START_US):
        state = operation.run(state)
    assert type(state) is EstimatorState
    return state


@st.composite
def filters(draw: st.DrawFn) -> Kalman:
    """A filter with any valid covariance: two standard deviations and a correlation."""
    level, trend, rho = draw(st.floats(0.01, 50.0)), draw(st.floats(1e-4, 3.0)), draw(st.floats(-0.99, 0.99))
    cross = rho * level * trend
    return Kalman(draw(SCALES), draw(st.floats(-1.5, 1.5)), level * level, cross, cross, trend * trend,
                  draw(st.floats(1e-6, 4.0)), draw(st.floats(1e-10, 0.25)), 0.15, START_US, 30.0)


@given(kind=st.sampled_from(sorted(KINDS)), taken=readings())
def test_covariance_stays_symmetric_and_positive_definite(kind: str, taken: list[Reading]) -> None:
    """Whatever readings come after a reset of any kind, P is symmetric, positive definite, and its variances are finite."""
    state = started(kind)
    for reading in taken:
        state = BODY_WEIGHT.step(state, reading)
        k = state.kalman
        assert k.p01 == k.p10
        assert 0.0 < k.p00 < math.inf
        assert 0.0 < k.p11 < math.inf
        assert k.p00 * k.p11 - k.p01 * k.p01 > 0.0
        assert np.all(np.linalg.eigvalsh(state.P) > 0.0)
        assert k.p00 <= BODY_WEIGHT.r_kg2 * 3.0 * (1.0 + 1e-9), "an update leaves at most the variance of its reading"


def textbook(k: Kalman, a: Adaptation, at_us: int, r: float, z: float) -> tuple[Matrix, Matrix, float]:
    """x, P and NIS after one reading, by matrices: Bar-Shalom, Li and Kirubarajan (2001), sections 5.2 and 6.2."""
    dt = (at_us - k.at_us) / DAY_US
    s = min(dt, k.dt_days_max)
    f = 1.0 - a.g
    adapting = a.count < a.measurements or at_us < a.until_us
    level, trend, observation = (m * a.g + f if adapting else 1.0 for m in (a.level, a.trend, a.observation))
    F, H = np.array([[1.0, dt], [0.0, 1.0]]), np.array([[1.0, 0.0]])  # noqa: N806 - the literature's letters
    Q = (k.q0 * level * np.array([[s, 0.0], [0.0, 0.0]])  # noqa: N806
         + k.q1 * trend * np.array([[s**3 / 3.0, s**2 / 2.0], [s**2 / 2.0, s]]))
    x, P = F @ np.array([k.x0, k.x1]), F @ np.array([[k.p00, k.p01], [k.p10, k.p11]]) @ F.T + Q  # noqa: N806
    R = np.array([[r * observation]])  # noqa: N806
    S = H @ P @ H.T + R  # noqa: N806
    K = P @ H.T @ np.linalg.inv(S)  # noqa: N806
    residual = z - H @ x
    keep = np.eye(2) - K @ H
    return x + K @ residual, keep @ P @ keep.T + K @ R @ K.T, float(residual @ np.linalg.inv(S) @ residual)


@given(k=filters(), kind=st.sampled_from(sorted(KINDS)), count=st.integers(0, 30), days=DAYS, z=SCALES, r=st.floats(0.05, 0.5))
def test_closed_form_is_the_textbook_in_joseph_form(k: Kalman, kind: str, count: int, days: float, z: float, r: float) -> None:
    """Prediction, update and NIS in closed form equal the matrix computation within 1e-9, relative to each matrix's size."""
    how = KINDS[kind]
    decay = math.exp(-1.0 / how.rate)
    a = Adaptation(START, count, decay**count, decay, how.rate, how.level, how.trend, how.observation, how.measurements,
                   START_US + int(how.days * DAY_US))
    at_us = START_US + max(int(days * DAY_US), 1)
    prediction = predict(k, a, at_us, r)
    x0, x1, p00, p01, p11 = update(prediction, z)
    x, P, expected_nis = textbook(k, a, at_us, r, z)  # noqa: N806
    # What cancels in the update is of the size of the prediction.
    size = max(prediction.p00, abs(prediction.p01), prediction.p11, 1.0)
    assert [x0, x1] == pytest.approx(x.tolist(), rel=1e-9, abs=1e-9 * max(abs(prediction.x0), z))
    assert [p00, p01, p01, p11] == pytest.approx(P.reshape(-1).tolist(), rel=1e-9, abs=1e-9 * size)
    assert nis(prediction, z) == pytest.approx(expected_nis, rel=1e-9, abs=1e-9)


@given(k=filters(), z=SCALES)
def test_a_reading_without_noise_is_believed_and_an_endless_one_is_not(k: Kalman, z: float) -> None:
    """As R goes to 0 the estimate goes to the reading; as R grows without bound it stays where it was."""
    a = Adaptation(None, 1, 0.0, 0.5, 1.0, 1.0, 1.0, 1.0, 0, START_US)
    p = predict(k, a, START_US + DAY_US, 1.0)
    believed = update(Prediction(p.x0, p.x1, p.p00, p.p01, p.p11, 1e-14, p.p00 + 1e-14), z)
    ignored = update(Prediction(p.x0, p.x1, p.p00, p.p01, p.p11, 1e14, p.p00 + 1e14), z)
    assert believed[0] == pytest.approx(z, abs=1e-6)
    assert ignored[0] == pytest.approx(p.x0, abs=1e-6)


def bits(state: EstimatorState) -> bytes:
    """Every float of the filter and the adaptation, bit by bit."""
    k, a = state.kalman, state.adaptation
    return struct.pack("<8d", k.x0, k.x1, k.p00, k.p01, k.p10, k.p11, a.g, a.decay) + BODY_WEIGHT.encode(state)


@given(kind=st.sampled_from(sorted(KINDS)), taken=readings(70))
def test_a_fold_gives_the_bits_of_the_live_run(kind: str, taken: list[Reading]) -> None:
    """Folding any stretch of readings from the state stored at its start gives, bit for bit, the state that stood live."""
    live = [started(kind)]
    for reading in taken:
        live.append(BODY_WEIGHT.step(live[-1], reading))
    for start in {0, len(taken) // 3, len(taken) // 2}:
        state = BODY_WEIGHT.decode(BODY_WEIGHT.encode(live[start]))
        for reading, expected in zip(taken[start:], live[start + 1:], strict=True):
            state = BODY_WEIGHT.step(state, reading)
            assert bits(state) == bits(expected)


def test_the_store_replays_what_stood_live(tmp_path: Path) -> None:
    """Each of 80 versions, folded from disk over keyframes, is bit for bit the head that stood after its measurement."""
    draw, live = random.Random(7), []
    with working(tmp_path / "store") as (store, _, processor):
        kg = 80.0
        for day in range(80):
            kg += draw.gauss(0.0, 0.2)
            assert processor.process(weighed("u", day + draw.random() / 2, kg + draw.gauss(0.0, 0.3))).status == "accepted"
            live.append(store.engine.get(keys.head(b"u")))
            assert live[-1] is not None
            assert states(store, "u")[-1] in live[-1], "the head holds the state that its log folds to"
        before = states(store, "u")
    with opened(tmp_path / "store") as store:
        assert states(store, "u") == before
        assert len(set(before)) == 80


def simulated(seed: int, days: int) -> tuple[list[float], list[float]]:
    """NIS of a filter run over data drawn from its own model, and those counted while it was not adapting."""
    draw, state, every, settled = random.Random(seed), started("initial"), [], []
    k = state.kalman
    level, trend = 80.0, 0.0
    for day in range(1, days):
        trend += draw.gauss(0.0, math.sqrt(k.q1))
        level += trend + draw.gauss(0.0, math.sqrt(k.q0))
        reading = Reading(START_US + day * DAY_US, (level + draw.gauss(0.0, math.sqrt(k.r)),), k.r)
        found = BODY_WEIGHT.nis(state, reading)
        every.append(found)
        if not is_adapting(state.adaptation, reading.at_us):
            settled.append(found)
        state = BODY_WEIGHT.step(state, reading)
    return every, settled


def test_nis_of_simulated_data_is_that_of_a_consistent_filter() -> None:
    """On data of its own model NIS averages 1 within 5 %, 95 % of it lies below 3.84, and the gate keeps nearly all."""
    found = [value for seed in range(20) for value in simulated(seed, 500)[1]]
    assert sum(found) / len(found) == pytest.approx(1.0, abs=0.05)
    assert sum(value < 3.84 for value in found) / len(found) == pytest.approx(0.95, abs=0.01)
    assert sum(value > ResetPolicy().gate for value in found) <= len(found) * 1e-3


def test_nis_tells_a_filter_that_trusts_too_much() -> None:
    """The same measure is far from 1 where the data are noisier than the filter believes: the test above can fail."""
    draw, state, found = random.Random(1), started("admin"), []
    for day in range(1, 400):
        reading = Reading(START_US + day * DAY_US, (80.0 + draw.gauss(0.0, 1.5),), BODY_WEIGHT.r_kg2)
        found.append(BODY_WEIGHT.nis(state, reading))
        state = BODY_WEIGHT.step(state, reading)
    assert sum(found) / len(found) > 3.0


def test_live_nis_is_reported(tmp_path: Path) -> None:
    """The processor's outcome tells the NIS by which it decided, from the state before the measurement."""
    with opened(tmp_path / "store") as store:
        processor = Processor(ResetManager(store))
        processor.process(weighed("u", 0, 80.0))
        before = store.load("u")
        assert before is not None
        measurement = weighed("u", 1, 80.4)
        outcome = processor.process(measurement)
        assert outcome.nis == BODY_WEIGHT.nis(before.state, BODY_WEIGHT.reading(measurement))
        assert outcome.adapting
