"""The suite of resources in a short form: whoever asks is told, and the store goes on once the thing is back."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from chaos.planted import PLANTED
from chaos.suite import CANNOT
from chaos.suites import resources
from chaos.suites.resources import NOT_MET, Resources
from tests.chaos.suites import TARGETS, broken, session, some

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from chaos.target import Target

pytestmark = pytest.mark.usefixtures("no_events")


def thinned(each: int) -> Any:
    """Every so many-th point of the plan."""
    points = resources.points

    def chosen(dice: Any) -> Iterator[tuple[str, list[Any]]]:
        yield from list(points(dice))[::each]

    return chosen


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_what_was_lacking_and_is_back_leaves_no_trace(
    tmp_path: Path, target: Target, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resources, "points", thinned(4))
    verdicts = some(Resources(), session(tmp_path, target), 1_000)
    assert broken(verdicts) == []
    met = Counter(verdict.point.fault for verdict in verdicts if verdict.fired)
    assert set(met) >= {"small map", "file size", "descriptors", "readers", "clock"}
    if not any(verdict.outcome.startswith(CANNOT) for verdict in verdicts):
        assert met["full disk"] > 0
    assert {verdict.outcome for verdict in verdicts} >= Resources.witnesses


def test_the_sizes_are_tried_until_nothing_is_lacking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the largest of each the fault is not met, and the point says so: nothing between was left out."""
    points = resources.points
    monkeypatch.setattr(resources, "points", lambda dice: (p for p in points(dice) if p[0] in ("small map", "descriptors")))
    verdicts = some(Resources(), session(tmp_path), 100)
    for fault in ("small map", "descriptors"):
        tried = [verdict for verdict in verdicts if verdict.point.fault == fault]
        assert (tried[0].fired, tried[-1].fired, tried[-1].outcome) == (True, False, NOT_MET)


def test_a_lost_quarantine_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "points", thinned(30))
    planted = PLANTED["lost quarantine"]
    with planted.plant():
        found = broken(some(Resources(), session(tmp_path), 20))
    assert any(what.startswith(f"{planted.promise}: ") for _, violations in found for what in violations), found
