"""The shipped deferred rules: each speaks of the history that breaks it, and hardly ever of a consistent filter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np
import pytest

from statemachine import BODY_WEIGHT, EstimatorState
from statemachine.policy import KINDS
from statemachine.state import Reading
from statemachine.sweep import Courses, Drift, NisHigh, NisLow, NisShare, Stuck, Whiteness
from statemachine.sweep.consistency import STATISTICAL, chi_square, chi_square_quantile, most_above
from statemachine.sweep.findings import NOWHERE
from statemachine.vectorised import Lanes
from tests.regression.scene import DAY_US, PRESENT_US

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from statemachine.sweep import Finding

R: Final = BODY_WEIGHT.r_kg2
DICE: Final = 20_260_105


def settled(kg: float = 80.0, multiplier: float = 1.0) -> EstimatorState:
    """A state that has long adapted, with the covariance to which daily readings lead."""
    how = KINDS["initial"]
    state = None
    for operation in BODY_WEIGHT.operations(how, Reading(PRESENT_US, (kg,), R), PRESENT_US):
        state = operation.run(state)
    assert type(state) is EstimatorState
    over = msgspec.structs.replace(state.adaptation, count=10_000, g=0.0, measurements=0, until_us=PRESENT_US)
    state = state.replace(adaptation=over, q0=state.kalman.q0 * multiplier)
    for day in range(1, 40):
        state = BODY_WEIGHT.step(state, Reading(PRESENT_US - (40 - day) * DAY_US + 1, (kg,), R))
    return state


def courses(begun: Sequence[EstimatorState], weights: Sequence[Sequence[float]], days: float = 1.0) -> Courses:
    """What the rules would be given of these users, each with readings `days` apart and the first version an image."""
    lengths = np.array([len(one) for one in weights], np.int64)
    starts = np.cumsum(lengths) - lengths
    number = np.concatenate([np.arange(1, length + 1) for length in lengths]) if len(weights) else np.zeros(0, np.int64)
    at_us = PRESENT_US + (number * days * DAY_US).astype(np.int64)
    values = np.concatenate([np.asarray(one, np.float64) for one in weights])[:, None]
    folded = BODY_WEIGHT.fold_many(Lanes(tuple(begun), starts, lengths, at_us, values, np.full(len(number), R)))
    ones = np.ones(len(number), np.int64)
    return Courses(tuple(f"u{n}" for n in range(len(weights))), np.append(starts, len(number)),
                   np.repeat(np.arange(len(weights)), lengths), number + 1, at_us, ones, np.ones(len(weights), np.int64),
                   folded.nis, folded.adapting, folded.figures)


def consistent(users: int, readings: int, seed: int = DICE) -> Courses:
    """Users who are as the filter believes: level and trend walk with Q, readings have R, the start is drawn from P."""
    dice = np.random.default_rng(seed)
    state = settled()
    k = state.kalman
    level, trend = dice.multivariate_normal([k.x0, k.x1], state.P, users).T
    q = np.array([[k.q0 + k.q1 / 3.0, k.q1 / 2.0], [k.q1 / 2.0, k.q1]])
    weights = np.empty((users, readings))
    for n in range(readings):
        noise = dice.multivariate_normal([0.0, 0.0], q, users)
        level, trend = level + trend + noise[:, 0], trend + noise[:, 1]
        weights[:, n] = level + dice.normal(0.0, R ** 0.5, users)
    return courses([state] * users, weights.tolist())


def found(rule: object, given: Courses) -> list[Finding]:
    return list(rule.judge(given))  # type: ignore[attr-defined]


def wave(period: float, kg: float) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    return lambda n: 80.0 + kg * np.sin(2.0 * np.pi * n / period)


DAY: Final = np.arange(40.0)
PLANTED: Final = [
    (NisHigh(), 80.0 + 1.6 * (-1.0) ** DAY, "above"),
    (NisLow(), np.full(40, 80.0), "below"),
    (NisShare(), np.where(DAY % 3 == 0, 82.0, 80.0), "above"),
    (Whiteness(), wave(9.0, 1.2)(DAY), "above"),
    (Whiteness(), 80.0 + 0.5 * (-1.0) ** DAY, "below"),
    (Drift(), 80.0 + 0.9 * DAY, "above"),
    (Drift(), 80.0 - 0.9 * DAY, "below"),
]


@pytest.mark.parametrize(("rule", "weights", "side"), PLANTED, ids=lambda value: getattr(value, "name", ""))
def test_a_rule_names_the_one_user_whose_history_breaks_it(rule: object, weights: NDArray[np.float64], side: str) -> None:
    """Among consistent users; with the version at the end of the evidence and the one at its beginning."""
    rest = consistent(20, 40)
    ordinary = [(80.0 + rest.figures["innovation"][rest.user == n] * 0.0 + weights_of(rest, n)).tolist() for n in range(20)]
    given = courses([settled()] * 21, [*ordinary[:10], weights.tolist(), *ordinary[10:]])
    (finding,) = found(rule, given)
    assert (finding.user, finding.rule, finding.severity) == ("u10", rule.name, "warning")  # type: ignore[attr-defined]
    assert 2 <= finding.since_version < finding.version <= 41
    assert isinstance(finding.value, float)
    if rule.name != "drift":  # type: ignore[attr-defined]
        assert (finding.since_version, finding.version) == (12, 41)
        assert (finding.value > 0.05) == (side == "above")
    else:
        assert (finding.value > 0) == (side == "above")
        assert abs(finding.value) > 16.5
        assert finding.version - finding.since_version == 30


def weights_of(given: Courses, user: int) -> NDArray[np.float64]:
    """The readings of a user, from level and innovation: z = x + nu * (1 - K) with x the level after the step."""
    rows = given.user == user
    gain = given.figures["gain"][rows]
    return np.asarray(given.figures["level"][rows] + (1.0 - gain) * given.figures["innovation"][rows] - 80.0)


def test_a_filter_that_never_converges_is_stuck_and_others_are_not() -> None:
    """A level noise left fifty times as large keeps the gain near 1; daily and weekly readings lead well below the limit."""
    given = courses([settled(multiplier=60.0), settled()], [[80.0] * 60] * 2)
    (finding,) = found(Stuck(), given)
    assert (finding.user, finding.version, finding.since_version) == ("u0", 61, 32)
    assert isinstance(finding.value, float)
    assert 0.95 < finding.value < 1.0
    assert not found(Stuck(), courses([settled()], [[80.0] * 60], days=7.0))
    few = courses([settled(multiplier=60.0)] * 2, [[80.0] * 34] * 2)
    assert not found(Stuck(), few), "too few of either since it should have settled"
    assert not found(Stuck(), courses([settled(multiplier=60.0)], [[80.0] * 60], days=8.0)), "rare readings say nothing"


@pytest.mark.parametrize("rule", [NisHigh, NisLow, NisShare, Whiteness])
def test_false_alarms_come_as_often_as_the_rule_was_told(rule: type[NisHigh]) -> None:
    """Of four thousand consistent users about one in fifty at a risk of one in fifty, and hardly more for counts, which step."""
    share = len(found(rule(false_alarms=0.02), consistent(4_000, 45))) / 4_000
    assert share < 0.03
    assert share > (0.001 if rule.name in ("nis-share", "whiteness") else 0.012)


def test_a_clean_population_has_few_findings_by_default() -> None:
    """Of four thousand consistent users at most four by any of the shipped rules together: the risk adds up to two."""
    given = consistent(4_000, 45, seed=DICE + 1)
    assert sum(len(found(rule, given)) for rule in STATISTICAL) <= 4


@pytest.mark.parametrize("rule", STATISTICAL, ids=lambda rule: rule.name)
def test_too_few_measurements_say_nothing_and_nobody_is_no_trouble(rule: object) -> None:
    """Fourteen readings are no window, however strange; nor are no users at all."""
    strange = courses([settled(multiplier=60.0)], [(80.0 + 1.6 * (-1.0) ** DAY[:14]).tolist()])
    assert not found(rule, strange)
    none = np.zeros(0, np.int64)
    empty = Courses(("u",), np.zeros(2, np.int64), none, none, none, none, np.zeros(1, np.int64), np.zeros(0), none != 0,
                    {name: np.zeros(0) for name in strange.figures})
    assert not found(rule, empty)


def test_what_was_before_the_newest_reset_is_not_in_the_window() -> None:
    """Thirty strange readings before a reset and ten ordinary ones after it are no finding."""
    given = courses([settled()], [(80.0 + 1.6 * (-1.0) ** DAY).tolist()])
    assert found(NisHigh(), given)
    reset = np.where(given.version > 31, 31, 1)
    assert not found(NisHigh(), given._replace(reset=reset, newest_reset=np.array([31])))


def test_what_was_measured_while_adapting_is_not_in_the_window() -> None:
    """Its NIS says little about consistency."""
    given = courses([settled()], [(80.0 + 1.6 * (-1.0) ** DAY).tolist()])
    assert not found(NisHigh(), given._replace(adapting=given.version < 30))


def test_a_month_is_not_measured_across_a_reset() -> None:
    """A level that a reset has moved did not drift."""
    given = courses([settled()], [(80.0 + 0.9 * DAY).tolist()])
    assert found(Drift(), given)
    assert not found(Drift(), given._replace(reset=given.version // 14 * 14, newest_reset=np.array([28])))


def test_window_holds_the_newest_wanted_rows_of_each_user() -> None:
    given = courses([settled()] * 3, [[80.0] * 2, [80.0] * 5, [80.0] * 3])
    wanted = given.version != 4
    assert given.newest(3, wanted).tolist() == [[NOWHERE, 0, 1], [3, 5, 6], [NOWHERE, 7, 8]]


@pytest.mark.parametrize(("p", "degrees", "x"), [
    (0.975, 10, 20.483), (0.025, 10, 3.247), (0.95, 1, 3.841), (0.99, 30, 50.892), (0.01, 30, 14.953), (0.5, 2, 1.386),
])
def test_chi_square_agrees_with_the_tables(p: float, degrees: int, x: float) -> None:
    assert chi_square_quantile(p, degrees) == pytest.approx(x, abs=6e-4)
    assert chi_square(x, degrees) == pytest.approx(p, abs=2e-4)
    assert chi_square(0.0, degrees) == 0.0


def test_the_bound_of_a_share_is_the_binomials() -> None:
    """Of 30 at one in twenty, more than 5 with probability 0.0033 and more than 4 with 0.0156."""
    assert (most_above(30, 0.05, 0.01), most_above(30, 0.05, 0.02), most_above(30, 0.05, 0.0)) == (5, 4, 30)
