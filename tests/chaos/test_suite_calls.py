"""The single-fault sweep in short: two targets survive it, the same seed gives the same, and planted bugs are found."""

from __future__ import annotations

import os
import platform
import signal
import sys
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from chaos.faults import libc
from chaos.faults.strikes import FAULTS
from chaos.planted import PLANTED
from chaos.suite import Point, Session, Verdict
from chaos.suites import SUITES
from chaos.suites.calls import NOT_MET, SCENES, Calls
from chaos.target import Target
from statemachine import Store

ABLE = sys.platform.startswith("linux") and platform.machine() in {"x86_64", "aarch64"}
pytestmark = [pytest.mark.skipif(not ABLE, reason="Linux on x86_64 or aarch64 only"), pytest.mark.usefixtures("no_events")]
SEED = 1_000
"""That of the plan's first points where the campaign's is 1."""
DOUBTFUL = range(8, 12)
"""Calls about a meta page by which "working, each" makes a version."""


def session(scratch: Path, target: Target | None = None, share: int = 0, shares: int = 1) -> Session:
    return Session(target or Target(), 1, "short", scratch, share, shares)


def survived(verdicts: list[Verdict]) -> Counter[str]:
    assert [(str(v.point), v.violations) for v in verdicts if v.violations] == []
    assert [str(v.point) for v in verdicts if not v.fired] == []
    return Counter(v.outcome for v in verdicts)


def test_body_weight_survives_and_every_outcome_is_seen(scratch: Path) -> None:
    """Nothing is left in the directory, and neither calls nor slots stay redirected."""
    seen = survived(list(islice(Calls().run(session(scratch)), 144)))
    assert Calls.witnesses - {"in doubt, settled"} <= set(seen)
    assert list(scratch.iterdir()) == []
    with libc.redirected(lambda call: call.make()):
        pass


def test_another_estimator_survives(scratch: Path, boats: Target) -> None:
    seen = survived(list(islice(Calls().run(session(scratch, boats)), 48)))
    assert {"went on", "rolled back, typed", "killed, settled at open"} <= set(seen)


def test_a_commit_that_nobody_can_tell_of_is_in_doubt_and_settled(scratch: Path) -> None:
    """The disk takes the meta page, and is gone before it says so."""
    suite = Calls()
    found = set()
    for n in DOUBTFUL:
        verdict = suite.replay(session(scratch), Point("calls", "EIO, lasting", ["working, each", SEED, n]))
        survived([verdict])
        found.add(verdict.outcome)
    assert "in doubt, settled" in found


def test_the_same_seed_gives_the_same_whatever_the_number_of_workers(scratch: Path) -> None:
    alone = list(islice(Calls().run(session(scratch)), 24))
    shares = [list(islice(Calls().run(session(scratch, share=n, shares=2)), 12)) for n in range(2)]
    assert [v for pair in zip(*shares, strict=True) for v in pair] == alone
    assert Calls().replay(session(scratch), alone[5].point) == alone[5]


def test_every_scene_meets_calls_and_past_its_last_one_nothing_fires(scratch: Path) -> None:
    suite = Calls()
    for scene in SCENES:
        assert suite.replay(session(scratch), Point("calls", "delay", [scene, SEED, 1])).fired, scene
        past = suite.replay(session(scratch), Point("calls", "delay", [scene, SEED, 500]))
        assert (past.fired, past.outcome, past.violations) == (False, NOT_MET, ()), scene


HUNTED: dict[str, tuple[str, str, str]] = {
    "error swallowed": ("EIO", "working, group", "durable"),
    "split transaction": ("SIGKILL after", "working, each", "effects"),
    "landed, told as failed": ("EIO though done, lasting", "working, each", "explained"),
    "environment left hurt": ("EIO", "working, each", "progress"),
    "creation in place": ("SIGKILL before", "creating", "progress"),
}


@pytest.mark.parametrize("bug", HUNTED)
def test_a_planted_bug_is_found_by_the_promise_that_it_breaks(bug: str, scratch: Path) -> None:
    """Without it the same point survives."""
    fault, scene, promise = HUNTED[bug]
    assert PLANTED[bug].promise == promise
    suite = Calls()
    for n in range(1, 30):
        point = Point("calls", fault, [scene, SEED, n])
        with PLANTED[bug].plant():
            verdict = suite.replay(session(scratch), point)
        assert verdict.fired, "no call was left, and nothing was found"
        if any(what.startswith(f"{promise}:") for what in verdict.violations):
            survived([suite.replay(session(scratch), point)])
            return
    pytest.fail("nothing was found")


def hurt(monkeypatch: pytest.MonkeyPatch, scratch: Path, scene: str, act: Any) -> Verdict:
    monkeypatch.setitem(SCENES, scene, SCENES[scene]._replace(act=act))
    return Calls().replay(session(scratch), Point("calls", "delay", [scene, SEED, 1]))


def test_what_the_library_does_wrong_beside_the_store_is_seen(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of another kind, a copy that was promised, and files that a living process leaves."""
    act = SCENES["backing up"].act

    def untyped(stage: Any, dice: Any) -> None:
        act(stage, dice)
        with stage.struck():
            raise OSError(5, "untyped")

    def gone(stage: Any, dice: Any) -> None:
        act(stage, dice)
        (stage.copy / "data.mdb").unlink()
        (stage.copy / "backup.json").unlink()
        stage.copy.rmdir()

    def litters(stage: Any, dice: Any) -> None:
        act(stage, dice)
        (stage.home / ".copy.new-1-1").mkdir()

    def spoils(stage: Any, dice: Any) -> None:
        act(stage, dice)
        (stage.copy / "data.mdb").write_bytes(b"")

    told = [hurt(monkeypatch, scratch, "backing up", bad).violations for bad in (untyped, gone, litters, spoils)]
    assert [what[0].split(":")[0] for what in told] == ["typed", "litter", "litter", "whole"]


def test_what_must_be_got_over_and_what_must_not_be_outlived(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = ["working, group", SEED, 1]
    monkeypatch.setitem(FAULTS, "EIO", FAULTS["EIO"]._replace(harmless=True))
    monkeypatch.setitem(FAULTS, "delay", FAULTS["delay"]._replace(deadly=True))
    for fault, word in (("EIO", "unharmed: "), ("delay", "fault: ")):
        assert Calls().replay(session(scratch), Point("calls", fault, where)).violations[0].startswith(word)


def test_a_doubt_that_nothing_settles_is_seen(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Store, "inspect", lambda *_: None)
    verdicts = [Calls().replay(session(scratch), Point("calls", "EIO, lasting", ["working, each", SEED, n])) for n in DOUBTFUL]
    assert any(what.startswith("settled: ") for verdict in verdicts for what in verdict.violations)


def test_a_process_that_dies_unasked_or_hangs_is_seen(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(stage: Any, dice: Any) -> None:
        if stage.striker.fault is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        SCENES["creating"].act(stage, dice)

    def hangs(stage: Any, dice: Any) -> None:
        if stage.striker.fault is not None and signal.getitimer(signal.ITIMER_REAL)[0] > 0:
            os.kill(os.getpid(), signal.SIGALRM)  # as the timer will
        SCENES["creating"].act(stage, dice)

    assert hurt(monkeypatch, scratch, "opening", dies).violations[0] == "survives: the process was killed by SIGKILL"
    assert hurt(monkeypatch, scratch, "opening", hangs).violations[0] == "survives: the process hung for 20 s"
    with pytest.raises(RuntimeError, match="creating cannot be played without a fault: the process was killed by SIGKILL"):
        hurt(monkeypatch, scratch, "creating", lambda *_: os.kill(os.getpid(), signal.SIGKILL))


def test_where_calls_cannot_be_redirected_it_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    assert SUITES["calls"]().unavailable() == ""
    monkeypatch.setattr(sys, "platform", "darwin")
    assert "this is darwin" in SUITES["calls"]().unavailable()
