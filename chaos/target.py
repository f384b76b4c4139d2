"""What the suites are run on: a store of somebody's own kind of state, and measurements to feed it."""

from __future__ import annotations

import importlib
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from statemachine import BODY_WEIGHT, Estimator, Measurement, Processor, ResetManager, Rule, Store

START: Final = datetime(2026, 1, 5, 7, tzinfo=UTC)
Mutation = tuple[str, Callable[[Any], Any]]


class BadTarget(Exception):
    """The target cannot be used; the message says why and what to do."""


def weighed(user: str, n: int, dice: random.Random) -> Measurement:
    """Body weight: a slow course and its noise; now and then a month without a reading, and now and then one that is wrong."""
    gap = timedelta(days=45 * (n // 11))
    kg = 80.0 + 3.0 * math.sin(n / 9.0) + dice.gauss(0.0, 0.3) + 4.0 * (n // 11 % 2)
    if n % 7 == 5:
        kg += 15.0
    return Measurement(user, START + gap + timedelta(days=n), round(kg, 2), "scale")


@dataclass(frozen=True)
class Target:
    """A kind of state as its owner runs it.

    `measurement(user, n, dice)`: the user's n-th measurement, each later than the one before, most of them ordinary.  `dice`
    is seeded by the harness with user and n, so the same call gives the same measurement.
    `manager(store)`: the guard with its policy and breakers.  `processor(manager)`: what takes measurements in.
    `mutations`: resets of your own, each a name and the operations of one; the estimator's `admin` reset is tried as well.
    """

    name: str = "body weight"
    estimator: Estimator = BODY_WEIGHT
    rules: tuple[Rule, ...] = ()
    measurement: Callable[[str, int, random.Random], Any] = weighed
    manager: Callable[[Store], ResetManager] = ResetManager
    processor: Callable[[ResetManager], Processor] = Processor
    mutations: dict[str, tuple[Mutation, ...]] = field(default_factory=dict)

    def open(self, path: Path, **settings: Any) -> Store:
        """The store at `path` as the target's owner opens it; `settings` are those of `Store.open` that the harness needs."""
        return Store.open(path, estimator=self.estimator, rules=self.rules, **settings)

    def measured(self, user: str, n: int) -> Any:
        """The user's n-th measurement."""
        return self.measurement(user, n, random.Random(f"{user}/{n}"))


def load(name: str | None) -> Target:
    """The target that `module:factory` names, or body weight; raises BadTarget with what is wrong and what to do."""
    if name is None:
        return Target()
    module, _, factory = name.partition(":")
    if not module or not factory:
        message = f"target {name!r} is not module:factory; name a function without arguments that returns a chaos.Target"
        raise BadTarget(message)
    try:
        making = getattr(importlib.import_module(module), factory)
    except (ImportError, AttributeError) as error:
        message = f"target {name!r} cannot be loaded: {error}; is its module on the path (PYTHONPATH=. for a file here)?"
        raise BadTarget(message) from error
    try:
        made = making()
    except Exception as error:
        message = f"target {name!r} raised {type(error).__name__}: {error}; it must be a function without arguments"
        raise BadTarget(message) from error
    if not isinstance(made, Target):
        message = f"target {name!r} returned a {type(made).__name__}, not a chaos.Target"
        raise BadTarget(message)
    return made
