"""The suite of estimators in a short form: nothing invalid is durable, whatever user code does, on two kinds of state."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from chaos.planted import PLANTED
from chaos.suites import estimator
from chaos.suites.estimator import Estimators
from tests.chaos.suites import TARGETS, broken, session, some

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from chaos.target import Target

pytestmark = pytest.mark.usefixtures("no_events")


def thinned(each: int, *faults: str) -> Any:
    """Every so many-th point of the plan, of all faults or of these."""
    points = estimator.points

    def chosen(*given: Any) -> Iterator[tuple[str, list[Any]]]:
        found = [point for point in points(*given) if not faults or point[0] in faults]
        whole = ("raises", "measurement", "hangs")
        yield from (point for number, point in enumerate(found) if number % each == 0 or point[0] in whole)

    return chosen


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_nothing_that_user_code_does_is_durable_and_invalid(
    tmp_path: Path, target: Target, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(estimator, "points", thinned(5))
    verdicts = some(Estimators(), session(tmp_path, target), 1_000)
    assert broken(verdicts) == []
    met = Counter(verdict.point.fault for verdict in verdicts if verdict.fired)
    assert set(met) == {"spoilt state", "alias", "raises", "returns", "misbehaves", "measurement", "hangs"}
    assert {verdict.outcome for verdict in verdicts} >= Estimators.witnesses - {estimator.TAKEN}


@pytest.mark.parametrize(("bug", "faults"), [("forgotten audit", ("returns",)), ("validation skipped", ("spoilt state",))])
def test_a_planted_bug_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bug: str, faults: tuple[str, ...]) -> None:
    monkeypatch.setattr(estimator, "points", thinned(3, *faults))
    planted = PLANTED[bug]
    with planted.plant():
        found = broken(some(Estimators(), session(tmp_path), 20))
    assert any(what.startswith(f"{planted.promise}: ") for _, violations in found for what in violations), found
