"""`process`: measurements a second of a durable run, and `memory`: what a stream ten times as long takes."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import command, data, floor

if TYPE_CHECKING:
    from benchmarks.settings import Settings

USERS = 2_000


ROWS = 200_000
MEMORY_ROWS = 100_000
TIMES = 10


def process(settings: Settings) -> list[dict[str, Any]]:
    """One durable run of the command over a sorted file, in group mode, with the floor before and after it."""
    rows, users = settings.rows or ROWS, settings.users or USERS
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=settings.directory) as folder:
        place = Path(folder)
        data.write_readings(place / "readings.csv", rows, users)
        before = floor.measure(place)
        ran = command.process(place / "readings.csv", place / "store")
        after = floor.measure(place)
    worst = floor.Floor(max(before.p50_ms, after.p50_ms), max(before.p99_ms, after.p99_ms))
    measurements = ran.report["measurements"]
    result = {
        "rows": rows, "users": users, "accepted": measurements["accepted"], "quarantined": measurements["quarantined"],
        "seconds": round(ran.seconds, 2), "measurements_per_s": round(measurements["read"] / ran.seconds),
        "rss_mib": round(ran.rss_mib, 1), "anonymous_mib": round(ran.anonymous_mib, 1),
        "floor_p50_ms": round(worst.p50_ms, 3), "floor_p99_ms": round(worst.p99_ms, 3), "ratios_mean_something": worst.meaningful,
    }
    return [result]


def memory(settings: Settings) -> list[dict[str, Any]]:
    """The largest memory at N and at ten times N rows, in the order of the file: it must not grow with the rows.

    Up to some hundred thousand rows it does grow, as a commit in a larger store touches more of its pages; then it stays.
    """
    rows, users = settings.rows or MEMORY_ROWS, settings.users or USERS
    results = []
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=settings.directory) as folder:
        place = Path(folder)
        for many in (rows, rows * TIMES):
            data.write_readings(place / "readings.csv", many, users)
            ran = command.process(place / "readings.csv", place / "store", stream=True)
            shutil.rmtree(place / "store")
            results.append({
                "rows": many, "users": users, "seconds": round(ran.seconds, 2),
                "measurements_per_s": round(ran.report["measurements"]["read"] / ran.seconds),
                "rss_mib": round(ran.rss_mib, 1), "anonymous_mib": round(ran.anonymous_mib, 1),
            })
    return results
