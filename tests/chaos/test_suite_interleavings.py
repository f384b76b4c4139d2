"""The suite of interleavings in a short form, on two targets, and the bugs that it is there to find."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import chaos.suites.interleavings as suite_module
from chaos.planted import PLANTED
from chaos.suite import Session
from chaos.suites import SUITES, scenarios
from chaos.suites.interleavings import Interleavings
from chaos.target import Target

if TYPE_CHECKING:

    from chaos.suite import Verdict


def short(monkeypatch: pytest.MonkeyPatch, drawn: int, preemptions: int = 1, only: str = "") -> None:
    monkeypatch.setattr(suite_module, "DRAWN", drawn)
    monkeypatch.setattr(suite_module, "CLOSING_PART", 1)
    monkeypatch.setattr(suite_module, "PREEMPTIONS_MAX", preemptions)
    monkeypatch.setattr(suite_module, "SCENARIOS", tuple(s for s in scenarios.SCENARIOS if only in s.name))


def test_every_promise_holds_whatever_the_threads_do(target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One preemption everywhere in what is searched, and some draws of all else: nothing breaks, every outcome occurs."""
    short(monkeypatch, drawn=12)
    verdicts = list(Interleavings().run(Session(target, 1, "short", tmp_path)))
    assert [(str(v.point), v.violations) for v in verdicts if v.violations] == []
    assert Interleavings.witnesses - {v.outcome for v in verdicts} == set()
    assert {v.outcome for v in verdicts} - Interleavings.witnesses == set()
    assert sum(v.fired for v in verdicts) > 0.8 * len(verdicts)
    assert len({str(v.point) for v in verdicts}) == len(verdicts)
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


def test_the_points_and_verdicts_are_the_same_however_many_workers_share_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The shares of three workers are together the points of one, each once, with the same verdicts."""
    short(monkeypatch, drawn=4, only="two commits of one attempt")

    def found(share: int, shares: int) -> Counter[str]:
        session = Session(Target(), 1, "short", tmp_path, share, shares)
        return Counter(map(repr, Interleavings().run(session)))

    assert found(0, 3) + found(1, 3) + found(2, 3) == found(0, 1)


def test_the_suite_is_registered() -> None:
    assert isinstance(SUITES["interleavings"](), Interleavings)


def first_broken(session: Session, promise: str) -> Verdict:
    return next(v for v in Interleavings().run(session) if any(text.startswith(f"{promise}:") for text in v.violations))


@pytest.mark.parametrize(("bug", "only", "switches_max"), [
    ("nothing compared", "two commits from one version", 0), ("stale head", "two resets", 3),
    ("any generation", "late commit", 3), ("ended by all", "of one attempt", 2),
])
def test_a_planted_bug_is_found_replayed_and_made_short(
    bug: str, only: str, switches_max: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The promise that the bug breaks is named, by the point alone the same is broken again, and few switches are left of it."""
    planted = PLANTED[bug]
    assert planted.suite == "interleavings"
    short(monkeypatch, drawn=400, only=only)
    session, suite = Session(Target(), 1, "short", tmp_path), Interleavings()
    with planted.plant():
        found = first_broken(session, planted.promise)
        again = suite.replay(session, found.point)
        assert {text.partition(":")[0] for text in again.violations} == {text.partition(":")[0] for text in found.violations}
        shrunk = suite.shrink(session, found)
        assert len(shrunk.point.where[3]) <= switches_max
        assert suite.replay(session, shrunk.point) == shrunk
    assert suite.replay(session, shrunk.point).violations == ()


def test_a_prefix_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever stops asking has a prefix, and the library is as it was."""
    short(monkeypatch, drawn=4)
    running = Interleavings().run(Session(Target(), 1, "short", tmp_path))
    assert len(list(islice(running, 30))) == 30
    running.close()  # type: ignore[attr-defined]
    assert list(tmp_path.iterdir()) == []
