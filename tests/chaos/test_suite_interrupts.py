"""The suite of interrupts in a short form: no promise broken, on two kinds of state, and planted bugs are found."""

from __future__ import annotations

import sys
import threading
from itertools import islice
from pathlib import Path
from typing import Any, cast

import pytest

from chaos.faults.tracing import Place
from chaos.planted import PLANTED
from chaos.suite import Session, Suite
from chaos.suites import SUITES
from chaos.suites.interrupts import KINDS, Templates, Try, _tries
from chaos.target import Target
from statemachine.store.engine import Engine

SHARES = 91


def session(tmp_path: Path, target: Target | None = None) -> Session:
    return Session(target or Target(), 1, "short", tmp_path, 0, SHARES)


def suite() -> Suite:
    return SUITES["interrupts"]()


def test_a_share_of_the_points_breaks_nothing(tmp_path: Path, target: Target) -> None:
    """Every ninety-first point, of every kind of fault; each is met, and every outcome that must be seen is."""
    verdicts = list(suite().run(session(tmp_path, target)))
    assert [f"{verdict.point}: {verdict.violations}" for verdict in verdicts if verdict.violations] == []
    assert [str(verdict.point) for verdict in verdicts if not verdict.fired] == []
    assert {verdict.point.fault for verdict in verdicts} >= {
        "KeyboardInterrupt at a line", "MemoryError at a line", "SystemExit at a line", "GeneratorExit at a line",
        "KeyboardInterrupt at an opcode", "a real signal"}
    assert {verdict.outcome for verdict in verdicts} >= suite().witnesses
    assert len(verdicts) * SHARES >= suite().floor
    assert list(tmp_path.iterdir()) == []


def test_a_point_alone_has_the_verdict_it_had_among_others(tmp_path: Path) -> None:
    """What a campaign found is found again by its `where`."""
    (tmp_path / "run").mkdir()
    (tmp_path / "replay").mkdir()
    here = session(tmp_path / "run")
    for verdict in islice(suite().run(here), 0, 40, 13):
        assert suite().replay(session(tmp_path / "replay"), verdict.point) == verdict


def test_an_interrupt_that_is_swallowed_is_found(tmp_path: Path) -> None:
    with PLANTED["interrupt swallowed"].plant():
        found = [what for verdict in suite().run(session(tmp_path)._replace(shares=1_500)) for what in verdict.violations]
    assert any(what.startswith("swallowed: ") for what in found)


def test_a_lock_left_taken_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A `Condition` in the way of every read: an interrupt on the way in leaves it taken, and the next thread hangs."""
    monkeypatch.setattr("chaos.suites.interrupts.HANG_S", 2.0)
    gate, enter = threading.Condition(threading.Lock()), Engine._enter

    def gated(self: Engine, read: object) -> None:
        with gate:
            enter(self, read)

    monkeypatch.setattr(Engine, "_enter", gated)
    with Templates(session(tmp_path)) as templates:
        looks = templates.places("committed", "each")[1]
        place = next(look for look in looks if look.name.startswith("threading") and look.name.endswith(" __enter__"))
        found = [v for p in looks if p.call == place.call
                 for v in templates.verdicts([Try("committed", "each", "KeyboardInterrupt", p)])]
    assert any(what.startswith("hangs: ") for verdict in found for what in verdict.violations)


def test_the_short_plan_leaves_out_no_opcode_after_which_something_is_stored(tmp_path: Path) -> None:
    """Nor a kind of exception at a line of the way that commits; whatever the mode."""
    lines = [Place("line", 0, number, 0, "") for number in range(7)]
    looks = [Place("opcode", 0, number, 0, "") for number in range(9)]

    class Listed:
        def places(self, *_: object) -> tuple[list[Place], list[Place]]:
            return lines, looks

    tries = list(_tries(Session(Target(), 1, "short", tmp_path), cast("Any", Listed())))
    for way in ("committed", "measured"):
        assert {one.place for one in tries if (one.way, one.place.unit) == (way, "opcode")} == {*looks}
    at_lines = {(one.place, one.kind) for one in tries if (one.way, one.place.unit) == ("committed", "line")}
    assert at_lines == {(line, kind) for line in lines for kind in KINDS}


def test_it_says_that_it_cannot_run_on_a_python_it_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 12, 1))
    assert "known for CPython 3.11" in suite().unavailable()
