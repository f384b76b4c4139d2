"""The suite of deaths in a short form: no promise broken, on two kinds of state, and planted bugs are found."""

from __future__ import annotations

from pathlib import Path

import pytest

from chaos.planted import PLANTED
from chaos.suite import Session, Suite
from chaos.suites import SUITES
from chaos.suites.deaths import EXITS, KILLS, ROUNDS, STEPS, STOPS, WRITERS, Ground
from chaos.target import Target


def session(tmp_path: Path, target: Target | None = None) -> Session:
    return Session(target or Target(), 1, "short", tmp_path)


def suite() -> Suite:
    return SUITES["deaths"]()


def test_a_few_deaths_of_each_fault_break_nothing(tmp_path: Path, target: Target) -> None:
    with Ground(session(tmp_path, target)) as ground:
        verdicts = [verdict for fault, block in (
            ("step", [[number, STEPS] for number in range(0, STEPS, 35)]),
            ("storm", [[0, ROUNDS]]),
            ("stop", [[number, STOPS] for number in (3, 5, 6)]),
            ("exit", [[0, 4]]),
        ) for verdict in ground.verdicts(fault, block)]
    assert [f"{verdict.point}: {verdict.violations}" for verdict in verdicts if verdict.violations] == []
    assert [str(verdict.point) for verdict in verdicts if not verdict.fired] == []
    assert {verdict.outcome for verdict in verdicts} >= suite().witnesses
    assert list(tmp_path.iterdir()) == []


def test_the_short_plan_kills_a_thousand() -> None:
    assert 1_000 <= suite().floor - STOPS - EXITS <= STEPS + ROUNDS * (KILLS + WRITERS)


def test_a_kill_at_a_line_has_the_same_verdict_again(tmp_path: Path) -> None:
    with Ground(session(tmp_path)) as ground:
        first, again = (list(ground.verdicts("step", [[40, STEPS], [41, STEPS]])) for _ in range(2))
    assert first == again
    assert [suite().replay(session(tmp_path), verdict.point) for verdict in first] == first


@pytest.mark.parametrize(("name", "fault", "numbers"), [
    ("told before the commit", "step", range(3, STEPS, 70)),
    ("forgotten mark", "step", range(3, STEPS, 40)),
    ("fence not checked", "stop", [0, 1]),
])
def test_a_planted_bug_is_found(tmp_path: Path, name: str, fault: str, numbers: range | list[int]) -> None:
    """Each names the promise that it breaks."""
    of = {"step": STEPS, "stop": STOPS}[fault]
    with PLANTED[name].plant(), Ground(session(tmp_path)) as ground:
        found = [what for verdict in ground.verdicts(fault, [[number, of] for number in numbers]) for what in verdict.violations]
    assert any(what.startswith(f"{PLANTED[name].promise}: ") for what in found), found[:5]
