"""What the tests of suites share: a session on a small scratch, and a slice of a suite."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from importlib import import_module
from itertools import islice
from typing import TYPE_CHECKING, Any

from chaos.suite import Session, Suite, Verdict
from chaos.target import Target
from statemachine import ResetManager

if TYPE_CHECKING:
    from pathlib import Path

TRACKING: Any = import_module("examples.tracker")
BEGIN = datetime(2026, 5, 1, 6, tzinfo=UTC)


def fix(user: str, n: int, dice: random.Random) -> Any:
    """A boat's n-th fix: under way, unheard of now and then, and now and then swapped with another."""
    at = BEGIN + timedelta(seconds=10 * n + 300 * (n // 11))
    swapped = 900.0 if n % 7 == 5 else 0.0
    return TRACKING.Fix(user, at, 60.0 * n + dice.gauss(0.0, 4.0) + swapped, 15.0 * n + dice.gauss(0.0, 4.0))


TRACKER = Target(name="tracker", estimator=TRACKING.Tracker(), measurement=fix,
                 manager=lambda store: ResetManager(store, policy=TRACKING.POLICY))
TARGETS = (Target(), TRACKER)


def session(scratch: Path, target: Target | None = None, seed: int = 1, **settings: Any) -> Session:
    return Session(target or Target(), seed, "short", scratch, **settings)


def some(suite: Suite, at: Session, count: int) -> list[Verdict]:
    """The first verdicts of a suite."""
    return list(islice(suite.run(at), count))


def broken(verdicts: list[Verdict]) -> list[tuple[str, tuple[str, ...]]]:
    return [(str(verdict.point), verdict.violations) for verdict in verdicts if verdict.violations]
