"""Each limit of the policy, from both sides, over a filter of one number whose figures can be said by hand."""

from __future__ import annotations

from typing import Any, Final

import msgspec
import pytest

from statemachine import Reading, ResetPolicy
from statemachine.clock import US_PER_DAY
from statemachine.policy import DAYS_PER_MONTH, Decision, Situation

POLICY: Final = ResetPolicy()
LEVEL: Final = 100.0


class Level(msgspec.Struct, frozen=True):
    """A state: one number at an instant.  `sound` is what the rules say of it."""

    value: float
    at_us: int = 0
    sound: bool = True


class Ruler:
    """A filter whose NIS is the distance squared, and which moves to each reading; states above `bound` are not sound."""

    def __init__(self, bound: float = 1_000.0) -> None:
        self.bound = bound
        self.compared: list[Any] = []

    def step(self, state: Level, reading: Reading) -> Level:
        return Level(reading.values[0], reading.at_us, state.sound and reading.values[0] <= self.bound)

    def nis(self, state: Level, reading: Reading) -> float:
        return (reading.values[0] - state.value) ** 2

    def change(self, state: Level, reading: Reading) -> float:
        return abs(reading.values[0] - state.value)

    def spread(self, state: Level, earlier: Reading, later: Reading) -> float:
        self.compared.append(state)
        return (later.values[0] - earlier.values[0]) ** 2

    def at_us(self, state: Level) -> int:
        return state.at_us

    def sound(self, state: Level) -> bool:
        return state.sound


RULER: Final = Ruler()


def at(day: float, value: float) -> Reading:
    return Reading(round(day * US_PER_DAY), (value,), 1.0)


def decide(
    day: float, value: float, source: str = "scale", *, run: tuple[Reading, ...] = (), pin: Level | None = None,
    reset_day: float = -100.0, unfit: str = "", policy: ResetPolicy = POLICY, state: Level | None = None,
) -> Decision:
    situation = Situation(state or Level(LEVEL), run, pin, round(reset_day * US_PER_DAY))
    return policy.decide(RULER, situation, at(day, value), source, unfit)


def test_what_fits_is_accepted_with_its_nis_and_needs_no_words() -> None:
    assert decide(1, LEVEL + 4) == Decision("accept", "", 16.0)
    assert POLICY.decide(RULER, Situation(Level(LEVEL)), at(1, LEVEL + 4), "scale").action == "accept"
    assert POLICY.ordinary(RULER, Level(LEVEL), 0, at(1, LEVEL + 4), "scale") == 16.0
    assert POLICY.ordinary(RULER, Level(LEVEL), 0, at(1, LEVEL + 4.01), "scale") is None


def test_what_fits_but_would_break_a_rule_is_a_surprise() -> None:
    """The reason given is the rule's."""
    assert decide(1, LEVEL + 1, unfit="the trend would be too steep") == Decision("hold", "the trend would be too steep", 1.0)


def test_a_surprise_is_held_and_says_by_how_much() -> None:
    found = decide(1, LEVEL + 5)
    assert found == Decision("hold", found.explain, 25.0)
    assert "25.0" in found.explain
    assert "16" in found.explain


def test_no_state_means_the_first_reset_and_nothing_to_measure_against() -> None:
    found = POLICY.decide(RULER, Situation(None), at(0, LEVEL), "scale")
    assert found == Decision("reset", found.explain, None, "initial", "reading", 0)
    assert found.explain


@pytest.mark.parametrize(("day", "kind"), [(29.99, ""), (30.0, "gap"), (31.0, "gap")])
def test_a_gap_begins_at_its_limit(day: float, kind: str) -> None:
    found = decide(day, LEVEL + 1)
    assert (found.action, found.kind, found.nis) == ("reset" if kind else "accept", kind, 1.0)
    assert bool(found.explain) == bool(kind)


def test_the_time_since_the_last_reading_counts_from_the_state() -> None:
    """Not from the beginning of time."""
    state = Level(LEVEL, 1_000 * US_PER_DAY)
    assert decide(1_029.9, LEVEL, state=state).action == "accept"
    assert decide(1_030.0, LEVEL, state=state).kind == "gap"
    assert decide(1_001.0, LEVEL + 5, state=state).action == "hold"


@pytest.mark.parametrize(("source", "change", "rested_days", "kind"), [
    ("questionnaire", 5.0, 3.01, "manual-entry"), ("questionnaire", 4.99, 3.01, ""), ("questionnaire", 5.0, 3.0, ""),
    ("scale", 5.0, 3.01, ""), ("care team", 5.0, 99.0, "manual-entry"),
])
def test_a_manual_entry_needs_its_source_its_size_and_rest(source: str, change: float, rested_days: float, kind: str) -> None:
    """Of what fits the gate as well, which is made wide here; a policy without manual sources knows none."""
    for policy in (POLICY, msgspec.structs.replace(POLICY, gate=100.0)):
        found = decide(10, LEVEL + change, source, reset_day=10 - rested_days, policy=policy)
        assert found.kind == kind
        if kind:
            assert (found.action, found.nis) == ("reset", change**2)
            assert source in found.explain
        else:
            fits = change**2 <= policy.gate
            assert found.action == ("accept" if fits else "hold")
    nobody = msgspec.structs.replace(POLICY, manual_sources=frozenset())
    assert decide(10, LEVEL + change, source, reset_day=0, policy=nobody).kind == ""


def test_a_reset_on_one_reading_is_plausible_up_to_its_limit_and_that_included() -> None:
    limit = POLICY.plausible_change(30)
    state = Level(0.0)
    assert decide(30, limit, state=state).kind == "gap"
    found = decide(30, limit * (1 + 1e-15), state=state)
    assert (found.action, found.kind, found.refused_kind, found.nis) == ("hold", "", "gap", (limit * (1 + 1e-15)) ** 2)
    assert "not plausible" in found.explain
    assert "gap of 30 days" in found.explain
    assert found.explain.count(f"{limit:.3g}") == 2, "the change, and the limit"


def test_an_implausible_manual_entry_is_held_and_named() -> None:
    found = decide(5, LEVEL + 60, "questionnaire")
    assert (found.action, found.kind, found.refused_kind) == ("hold", "", "manual-entry")


def test_the_plausible_change_grows_from_its_base_with_the_time() -> None:
    """4 + 18 ln(1 + months); a time that runs backwards allows no less than none."""
    assert POLICY.plausible_change(0) == POLICY.plausible_change(-5) == 4.0
    assert POLICY.plausible_change(DAYS_PER_MONTH) == pytest.approx(4 + 18 * 0.693147180559945)
    assert POLICY.plausible_change(0.1) > 4.0
    other = msgspec.structs.replace(POLICY, plausible_base=2.0, plausible_per_log_month=10.0)
    assert other.plausible_change(DAYS_PER_MONTH) == pytest.approx(2 + 10 * 0.693147180559945)


AGREEING: Final = (at(1, 110.0), at(2, 114.0))


def test_three_that_agree_are_a_shift_from_the_first_of_them() -> None:
    """Each differs from the one before by the gate exactly, and still agrees."""
    found = decide(3, 118.0, run=AGREEING)
    assert found == Decision("reset", found.explain, 18.0**2, "level-shift", "run", 0)
    assert "3 held" in found.explain
    assert decide(3, 118.1, run=AGREEING).action == "hold"
    assert decide(3, 118.0, run=AGREEING[1:]).action == "hold"


def test_the_run_begins_where_its_newest_members_begin_to_agree() -> None:
    run = (at(1, 110.0), at(2, 150.0), at(3, 151.0), at(4, 152.0))
    found = decide(5, 150.0, run=run)
    assert (found.kind, found.start, found.run_from) == ("level-shift", "run", 1)
    assert "4 held" in found.explain
    assert decide(5, 110.0, run=run).action == "hold"


def test_members_of_a_run_are_compared_in_the_light_of_the_state() -> None:
    """What the estimator believes of its noise is in the state."""
    ruler, state = Ruler(), Level(LEVEL)
    POLICY.decide(ruler, Situation(state, AGREEING), at(3, 118.0), "scale")
    assert ruler.compared == [state, state]


def test_more_evidence_may_be_asked_for() -> None:
    strict = msgspec.structs.replace(POLICY, run_readings=4)
    assert decide(3, 118.0, run=AGREEING, policy=strict).action == "hold"
    assert decide(4, 119.0, run=(*AGREEING, at(3, 118.0)), policy=strict).kind == "level-shift"


def test_a_run_is_asked_before_a_kind_is_refused() -> None:
    """Held readings that agree explain what one alone could not."""
    run = (at(1, 400.0), at(2, 400.0))
    assert decide(40, 400.0, run=run).kind == "level-shift"
    assert decide(40, 400.0, run=run[1:]).refused_kind == "gap"


def test_a_run_that_fits_the_pin_revokes_the_reset_since() -> None:
    found = decide(3, 118.0, run=AGREEING, pin=Level(110.0))
    assert found == Decision("reset", found.explain, 18.0**2, "revocation", "pin", 0)
    assert "3 held" in found.explain
    shifted = decide(3, 118.0, run=AGREEING, pin=Level(105.9))
    assert (shifted.kind, shifted.start) == ("level-shift", "run")


def test_only_the_agreeing_members_must_fit_the_pin() -> None:
    run = (at(1, 150.0), *(msgspec.structs.replace(each, at_us=each.at_us + US_PER_DAY) for each in AGREEING))
    found = decide(4, 118.0, run=run, pin=Level(110.0))
    assert (found.kind, found.start, found.run_from) == ("revocation", "pin", 1)


def test_fitting_is_one_after_the_other_each_later_and_sound() -> None:
    """NIS at the gate is in; an equal instant is not; what follows is measured from where the one before led."""
    readings = (at(1, 4.0), at(2, 8.0))
    assert POLICY.fits(RULER, Level(0.0), readings)
    assert POLICY.fits(RULER, Level(0.0), ())
    assert not POLICY.fits(RULER, Level(-0.1), readings)
    assert not POLICY.fits(RULER, Level(0.0), (at(1, 4.0), at(2, 8.1)))
    assert not POLICY.fits(RULER, Level(0.0, US_PER_DAY), readings), "not later than the state"
    assert not POLICY.fits(RULER, Level(0.0), (at(1, 4.0), at(1, 4.0)))
    assert not POLICY.fits(Ruler(bound=7.0), Level(0.0), readings), "the second leads where no state may be"
    assert not POLICY.fits(Ruler(bound=3.0), Level(0.0), readings)


@pytest.mark.parametrize(("accepted", "days", "over"), [
    (0, 0.0, False), (4, 13.99, False), (5, 0.0, True), (4, 14.0, True), (0, 14.0, True), (6, 20.0, True),
])
def test_probation_ends_by_its_measurements_or_its_days(accepted: int, days: float, over: bool) -> None:
    since_us = 1_000 * US_PER_DAY
    assert POLICY.probation_over(since_us, accepted, since_us + round(days * US_PER_DAY)) is over


def test_each_policy_has_kinds_of_its_own() -> None:
    """Changing one's does not change another's."""
    one, other = ResetPolicy(), ResetPolicy()
    assert one.kinds == other.kinds
    assert one.kinds is not other.kinds
