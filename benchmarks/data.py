"""Invented daily readings of many users, written as a sorted CSV; the same seed gives the same file."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

SEED = 1
FIRST = datetime(2020, 1, 1, tzinfo=UTC)
NOISE_KG = 0.35
DRIFT_KG_PER_DAY = 0.2
GAP_SHARE = 0.02
GAP_DAYS = (31, 60)


def write_readings(path: Path, rows: int, users: int, seed: int = SEED) -> None:
    """Write exactly `rows` readings of `users` people in the order of time; one in fifty has a gap above 30 days.

    A day's rows are written as they are made, so that the file may be larger than memory.
    """
    dice = random.Random(seed)  # noqa: S311 - repeatable data
    names = [f"user-{number:06d}" for number in range(users)]
    levels = [dice.uniform(50.0, 120.0) for _ in names]
    gaps = {number: dice.randint(10, 40) for number in range(users) if dice.random() < GAP_SHARE}
    lengths = {number: dice.randint(*GAP_DAYS) for number in gaps}
    seconds_apart = 86_000 / users
    written, day = 0, 0
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write("user_id,timestamp,weight,unit,source\n")
        while written < rows:
            midnight = FIRST + timedelta(days=day)
            for number, name in enumerate(names):
                levels[number] += DRIFT_KG_PER_DAY * dice.gauss(0.0, 1.0) - 0.01 * (levels[number] - 80.0)
                if number in gaps and gaps[number] <= day < gaps[number] + lengths[number]:
                    continue
                at = midnight + timedelta(seconds=int(number * seconds_apart))
                weight_kg = levels[number] + NOISE_KG * dice.gauss(0.0, 1.0)
                file.write(f"{name},{at:%Y-%m-%dT%H:%M:%SZ},{weight_kg:.2f},kg,scale\n")
                written += 1
                if written == rows:
                    break
            day += 1
