"""Stores to measure on: users with a history, taken in as any are, and one more reset or measurement of each."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from statemachine import Measurement, Processor, ResetManager, Store

START = datetime(2005, 1, 1, 7, tzinfo=UTC)
VERSIONS = 12
BATCH = 16_384
USERS_SPREAD = 7_919
"""A prime: one user after the other, each far from the last."""


def name(number: int) -> str:
    """The user of that number."""
    return f"user-{number:07d}"


def weight_kg(user: int, day: int) -> float:
    """What that user weighs on that day: near enough to the day before, and never quite the same."""
    return 60.0 + user % 50 + (user * 31 + day * 17) % 23 / 40.0


def days(users: int, first: int, many: int) -> Iterator[Measurement]:
    """A reading of every user on each of so many days, in the order of time."""
    apart = timedelta(seconds=80_000 / users)
    for day in range(first, first + many):
        for user in range(users):
            yield Measurement(name(user), START + timedelta(days=day) + user * apart, weight_kg(user, day), "scale")


def fill(path: Path, users: int, versions: int = VERSIONS, first: int = 0) -> None:
    """A store with so many versions of each user, or so many more; on the disk on return."""
    with Store.open(path, durability="process") as store:
        processor = Processor(ResetManager(store))
        readings = days(users, first, versions)
        while batch := list(itertools.islice(readings, BATCH)):
            processor.process_batch(batch)


def resetter(store: Store, users: int, first_day: int = VERSIONS, **options: Any) -> Callable[[], object]:
    """What does one guarded reset at each call: a manual entry of another user each time, all operations validated."""
    manager = ResetManager(store, **options)
    count = itertools.count()

    def once() -> None:
        number = next(count)
        user, day = number * USERS_SPREAD % users, first_day + number // users
        at = START + timedelta(days=day, seconds=number % users * 80_000 / users)
        measurement = Measurement(name(user), at, weight_kg(user, day) + 0.3, "scale")
        manager.perform_reset(name(user), "manual-entry", measurement=measurement, reason="a benchmark of one reset",
                              actor="benchmark@example.org", at=at)
    return once
