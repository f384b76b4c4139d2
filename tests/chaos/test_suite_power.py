"""The power is cut in short scenes of each kind, on two kinds of state; and bugs that only a power cut shows are found."""

from __future__ import annotations

import faulthandler
import os
import time
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from chaos.faults import libc, scenes
from chaos.faults.afterwards import Afterwards
from chaos.planted import PLANTED
from chaos.suite import Session, Verdict
from chaos.suites import power
from chaos.suites.power import SCENES, Power
from chaos.target import Target
from statemachine.marks import DeadMarks
from statemachine.store import engine as door
from statemachine.store import life, making, settle

if TYPE_CHECKING:
    from collections.abc import Callable

    from chaos.faults.images import Image

pytestmark = [
    pytest.mark.usefixtures("no_events"),
    pytest.mark.skipif(bool(libc.unavailable()), reason=f"SKIPPED POWER CUTS: {libc.unavailable()}"),
]
IMAGES = 24


def test_what_was_told_outlives_the_power(scratch: Path, target: Target) -> None:
    """Every kind of scene, every outcome that must occur, and nothing broken."""
    verdicts = list(Power(IMAGES).run(Session(target, 1, "short", scratch)))
    assert [verdict for verdict in verdicts if verdict.violations] == []
    assert all(verdict.fired for verdict in verdicts)
    assert {verdict.outcome for verdict in verdicts} == Power.witnesses
    of_kind = Counter(verdict.point.where[0] for verdict in verdicts)
    assert {kind: IMAGES * count for kind, count in Counter(SCENES).items()} == dict(of_kind)
    assert not any(scratch.iterdir())


def test_the_workers_try_together_what_one_tries_alone(scratch: Path) -> None:
    """The same points with the same verdicts, none of them twice."""
    alone, one, two = (list(Power(2).run(Session(Target(), 3, "short", scratch, share, shares)))
                       for share, shares in ((0, 1), (0, 2), (1, 2)))
    assert {str(v.point): v for v in alone} == {str(v.point): v for v in one + two}
    assert len({str(v.point) for v in alone}) == len(alone)
    assert abs(len(one) - len(two)) <= 4


def found(scratch: Path, promise: str) -> Verdict:
    """The first point at which the promise breaks."""
    for verdict in Power(150).run(Session(Target(), 1, "short", scratch)):
        if any(violation.startswith(f"{promise}:") for violation in verdict.violations):
            return verdict
    message = f"{promise} never broke"
    raise AssertionError(message)


def unsynced(path: Path, content: bytes) -> None:
    """A file as a backup writes it, but for the sync."""
    path.write_bytes(content)


@pytest.mark.parametrize(("kind", "promise", "where", "name", "instead"), [
    ("backup", "whole", life, "_write", unsynced),
    ("backup", "durable", making, "fsync", lambda _: None),
    ("restore-store", "left over", making, "leftovers", lambda _: []),
    ("creation", "left over", making, "leftovers", lambda _: []),
    ("creation", "durable", making, "fsync", lambda _: None),
    ("compaction", "left over", making, "clear_anew", lambda _: None),
    ("compaction", "durable", door, "fsync", lambda _: None),
    ("durable intents", "settled", settle, "_settle_intents", lambda *_: 0),
    ("each", "audited", DeadMarks, "marks", lambda _: []),
])
def test_what_only_one_scene_can_show(
    scratch: Path, monkeypatch: pytest.MonkeyPatch, kind: str, promise: str, where: Any, name: str, instead: Any,
) -> None:
    monkeypatch.setattr(power, "SCENES", (kind,) * 3)
    monkeypatch.setattr(where, name, instead)
    assert found(scratch, promise).point.where[0] == kind


@pytest.mark.parametrize("name", [name for name, planted in PLANTED.items() if planted.suite == "power"])
def test_a_planted_bug_is_found_and_found_again_by_its_point(scratch: Path, name: str) -> None:
    planted = PLANTED[name]
    with planted.plant():
        verdict = found(scratch, planted.promise)
        again = Power().replay(Session(Target(), 1, "short", scratch), verdict.point)
    assert again.point == verdict.point
    assert any(violation.startswith(f"{planted.promise}:") for violation in again.violations)


def test_an_effect_without_its_row_is_found(scratch: Path) -> None:
    with PLANTED["split transaction"].plant():
        verdict = found(scratch, "effects")
    assert any("has no committed row" in violation for violation in verdict.violations)


@pytest.mark.parametrize(("does", "outcome", "violation"), [
    (os.abort, "died", "alive: killed by SIGABRT"), (lambda: time.sleep(30), "hung", "progress: it hung for 1 s")])
def test_a_death_or_a_hang_is_what_came_of_its_image_and_the_next_is_judged(
    scratch: Path, monkeypatch: pytest.MonkeyPatch, does: Callable[[], None], outcome: str, violation: str,
) -> None:
    """LMDB ends a process that comes to a page of another kind; the child ends, and the suite goes on."""
    judge, cuts = Afterwards.judge, []

    def judged(self: Afterwards, image: Image) -> Any:
        cuts.append(image)
        if image.cut == 3:
            does()
        return judge(self, image)

    faulthandler.disable()  # nothing of it is worth a trace
    monkeypatch.setattr(Afterwards, "judge", judged)
    monkeypatch.setattr(power, "HANG_S", 1)
    verdicts = list(islice(Power(8).run(Session(Target(), 1, "short", scratch)), 8))
    hurt = [verdict for verdict in verdicts if verdict.point.where[2] == 3]
    assert [(verdict.outcome, verdict.violations) for verdict in hurt] == [(outcome, (violation,))] * len(hurt)
    assert 0 < len(hurt) < len(verdicts) == 8
    assert {verdict.outcome for verdict in verdicts if verdict not in hurt} <= Power.witnesses


def test_replay_of_a_sound_point_finds_nothing(scratch: Path) -> None:
    verdict = next(Power(1).run(Session(Target(), 1, "short", scratch)))
    assert Power().replay(Session(Target(), 1, "short", scratch), verdict.point) == verdict


def test_every_recorded_write_of_a_scene_of_commits_is_cut(scratch: Path) -> None:
    """The images of a few hundred come from all over the scene, not from its beginning."""
    cuts = {verdict.point.where[2] for verdict in islice(Power(200).run(Session(Target(), 1, "short", scratch)), 200)}
    scene = scenes.record(Target(), 1, "each", 0, scratch / "r")
    assert len(cuts) > 0.9 * len(scene.cuts)
