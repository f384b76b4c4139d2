"""`process`: measurements a second of a durable run beside the plain loop, and `memory`: that of a stream ten times as long."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import command, data, rounds

if TYPE_CHECKING:
    from benchmarks.settings import Settings

ROWS, USERS = 1_000_000, 10_000
ROUNDS = 3
MEMORY_ROWS, MEMORY_USERS = 100_000, 2_000
TIMES = 10

LOOP = """
import json, sys, time
from statemachine import BodyWeight, kalman
from statemachine.ingest.layout import Options
from statemachine.ingest.source import open_source
from statemachine.policy import ResetPolicy
from statemachine.state import Kalman
began = time.perf_counter()
estimator, initial, filters, read = BodyWeight(), ResetPolicy().kinds["initial"], {}, 0
predict, update = kalman.predict, kalman.update
for row in open_source(sys.argv[1], Options()):
    reading, user = estimator.reading(row.measurement), row.measurement.user
    read += 1
    found = filters.get(user)
    if found is None:
        state = None
        for operation in estimator.operations(initial, reading, reading.at_us):
            state = operation.run(state)
        filters[user] = state.kalman, state.adaptation
        continue
    k, a = found
    x0, x1, p00, p01, p11 = update(predict(k, a, reading.at_us, reading.r), reading.values[0])
    filters[user] = Kalman(x0, x1, p00, p01, p01, p11, k.q0, k.q1, k.r, reading.at_us, k.dt_days_max), a
print(json.dumps({"read": read, "users": len(filters), "seconds": time.perf_counter() - began}))
"""
"""The same reader and the same filter, with a dictionary for a store and nothing asked: what one would write first."""


def process(settings: Settings) -> list[dict[str, Any]]:
    """Durable runs of the command over a sorted file, in group mode, and the plain loop over the same file, by turns.

    Each is a process of its own that may use one core; the seconds are from its start to its end.  A commit has thousands of
    measurements, so that the disk has little say, and the ratio stands over a slow floor too.
    """
    rows, users = settings.rows or (5_000 if settings.quick else ROWS), settings.users or (200 if settings.quick else USERS)
    loops, runs = [], []
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=settings.directory) as folder:
        place = Path(folder)
        data.write_readings(place / "readings.csv", rows, users)
        for _ in range(1 if settings.quick else ROUNDS):
            loops.append(command.python(LOOP, str(place / "readings.csv"), one_core=True))
            runs.append(command.process(place / "readings.csv", place / "store", one_core=True))
            size = (place / "store" / "data.mdb").stat().st_size
            shutil.rmtree(place / "store")
    measurements = runs[0].report["measurements"]
    if measurements["read"] != rows or loops[0].report["read"] != rows:
        message = f"of {rows} rows the command read {measurements['read']} and the loop {loops[0].report['read']}"
        raise RuntimeError(message)
    seconds, plain = rounds.p50([ran.seconds for ran in runs]), rounds.p50([ran.seconds for ran in loops])
    return [{
        "rows": rows, "users": users, "durable": False, "accepted": measurements["accepted"],
        "quarantined": measurements["quarantined"], "seconds": round(seconds, 2), "measurements_per_s": round(rows / seconds),
        "cpu_seconds": round(rounds.p50([ran.cpu_s for ran in runs]), 2), "plain_loop_seconds": round(plain, 2),
        "plain_loop_per_s": round(rows / plain), "to_loop_ratio": round(plain / seconds, 3),
        "store_bytes_a_measurement": round(size / rows), "rss_mib": round(runs[0].rss_mib, 1),
        "anonymous_mib": round(runs[0].anonymous_mib, 1),
    }]


def memory(settings: Settings) -> list[dict[str, Any]]:
    """The largest memory at N and at ten times N rows, in the order of the file: it must not grow with the rows.

    Up to some hundred thousand rows it does grow, as a commit in a larger store touches more of its pages; then it stays.
    """
    rows = settings.rows or (2_000 if settings.quick else MEMORY_ROWS)
    users = settings.users or (200 if settings.quick else MEMORY_USERS)
    results = []
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=settings.directory) as folder:
        place = Path(folder)
        for many in (rows, rows * TIMES):
            data.write_readings(place / "readings.csv", many, users)
            ran = command.process(place / "readings.csv", place / "store", stream=True)
            shutil.rmtree(place / "store")
            results.append({
                "rows": many, "users": users, "durable": True, "seconds": round(ran.seconds, 2),
                "measurements_per_s": round(ran.report["measurements"]["read"] / ran.seconds),
                "rss_mib": round(ran.rss_mib, 1), "anonymous_mib": round(ran.anonymous_mib, 1),
            })
    return results
