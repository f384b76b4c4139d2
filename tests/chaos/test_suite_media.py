"""The suite of media in a short form: no third outcome on two kinds of state, every fault fires, and planted bugs are found."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from chaos.planted import PLANTED
from chaos.suites import media
from chaos.suites.media import Media
from tests.chaos.suites import TARGETS, broken, session, some

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from chaos.target import Target

pytestmark = pytest.mark.usefixtures("no_events")


def only(*faults: str, flips: int = 0, each: int = 1) -> Any:
    """The points of these faults, every `each`-th, and some flipped bits."""
    points = media.points

    def chosen(bed: Any, times: int) -> Iterator[tuple[str, list[Any]]]:
        few = [point for point in points(bed, times) if point[0] in faults]
        bits = [point for point in points(bed, times) if point[0] == "bit flip"]
        yield from few[::each]
        yield from bits[:flips]

    return chosen


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_damage_is_told_or_does_no_harm(tmp_path: Path, target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each fault some, and a hundred bits: the truth, an error that tells, or a death that the documents name."""
    monkeypatch.setattr(media, "points", only("page of zeros", "misplaced page", "stale page", "cut short", each=6, flips=100))
    verdicts = some(Media(), session(tmp_path, target), 1_000)
    assert broken(verdicts) == []
    fired = Counter(verdict.point.fault for verdict in verdicts if verdict.fired)
    assert set(fired) == {"page of zeros", "misplaced page", "stale page", "cut short", "bit flip"}
    assert {verdict.outcome for verdict in verdicts} >= Media.witnesses


def test_foreign_and_missing_files_stop_nobody_without_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media, "points", only("foreign or missing file"))
    verdicts = some(Media(), session(tmp_path), 1_000)
    assert broken(verdicts) == []
    assert all(verdict.fired for verdict in verdicts)
    assert len(verdicts) > 30


def test_every_point_is_replayed_alike_and_shares_divide_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media, "points", only("page of zeros", flips=12, each=9))
    whole = some(Media(), session(tmp_path), 100)
    assert [Media().replay(session(tmp_path), verdict.point) for verdict in whole[:3]] == whole[:3]
    halves = [some(Media(), session(tmp_path, share=share, shares=2), 100) for share in (0, 1)]
    assert sorted(map(str, whole)) == sorted(str(verdict) for half in halves for verdict in half)


@pytest.mark.parametrize(("bug", "faults", "flips"), [
    ("checksum not checked", (), 300), ("chain not checked", ("foreign or missing file",), 0),
])
def test_a_planted_bug_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bug: str, faults: tuple[str, ...], flips: int,
) -> None:
    monkeypatch.setattr(media, "points", only(*faults, flips=flips))
    planted = PLANTED[bug]
    with planted.plant():
        found = broken(some(Media(), session(tmp_path), 1_000))
    assert any(what.startswith(f"{planted.promise}: ") for _, violations in found for what in violations), found
