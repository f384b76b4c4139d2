"""`resets`: one durable guarded reset beside what a user would write instead, round by round in one run, as ratios."""

from __future__ import annotations

import itertools
import logging
import random
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import structlog

from benchmarks import floor
from benchmarks.contestants import CONTESTANTS, Once, Sizes
from statemachine import Measurement, Processor, ResetManager, Store

if TYPE_CHECKING:
    from benchmarks.process import Settings

ROUNDS = 300
WARM_ROUNDS = 20
USERS = 100
VERSIONS = 12
START = datetime(2020, 1, 1, 7, tzinfo=UTC)
GUARDED = "resetguard"


def reset(settings: Settings) -> list[dict[str, Any]]:
    """A guarded durable reset against the floor, raw LMDB, sqlite3, RocksDB, pickles, ZODB, DBOS and a first sketch."""
    return [_run(settings, sync=True), _run(settings, sync=False)]


def _run(settings: Settings, *, sync: bool) -> dict[str, Any]:
    """All contestants in interleaved rounds; milliseconds a reset, and how many times the guarded one each takes."""
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=settings.directory) as folder, _events(Path(folder) / "events"):
        place = Path(folder)
        before = floor.measure(place)
        guarded, sizes = _guarded(place, sync=sync)
        entries: dict[str, Once] = {GUARDED: guarded}
        missing = []
        for contestant in CONTESTANTS:
            own = place / contestant.name.replace(" ", "-")
            own.mkdir()
            try:
                entries[contestant.name] = contestant.open(own, sizes, sync)
            except ImportError as error:
                missing.append(f"{contestant.name} ({error})")
        taken = _rounds(entries, settings.rows or ROUNDS)
        after = floor.measure(place)
    worst = floor.Floor(max(before.p50_ms, after.p50_ms), max(before.p99_ms, after.p99_ms))
    result: dict[str, Any] = {
        "durable": sync, "rounds": settings.rows or ROUNDS, "bytes": sum(k + v for k, v in sizes), "records": len(sizes),
        "floor_p50_ms": round(worst.p50_ms, 3), "floor_p99_ms": round(worst.p99_ms, 3), "not_run": ", ".join(missing) or "-",
        "ratios_mean_something": worst.meaningful or not sync,
    }
    ours = _percentile(taken[GUARDED], 50)
    for name in (GUARDED, *(contestant.name for contestant in CONTESTANTS)):
        found = taken.get(name)
        result[f"{name} p50 ms"] = _percentile(found, 50) if found else "-"
        result[f"{name} p99 ms"] = _percentile(found, 99) if found else "-"
        if name != GUARDED:
            result[f"{name} / {GUARDED}"] = round(_percentile(found, 50) / ours, 2) if found else "-"
    return result


def _rounds(entries: dict[str, Once], rounds: int) -> dict[str, list[float]]:
    """Every contestant once a round, in an order that changes; the time of each in ms."""
    dice = random.Random(1)  # noqa: S311 - an order
    taken: dict[str, list[float]] = {name: [] for name in entries}
    for number in range(WARM_ROUNDS + rounds):
        order = list(entries)
        dice.shuffle(order)
        for name in order:
            began_ns = time.perf_counter_ns()
            entries[name](number)
            if number >= WARM_ROUNDS:
                taken[name].append((time.perf_counter_ns() - began_ns) / 1e6)
    return taken


def _percentile(values: list[float], percent: int) -> float:
    ordered = sorted(values)
    return round(ordered[min(len(ordered) - 1, len(ordered) * percent // 100)], 4)


def _guarded(place: Path, *, sync: bool) -> tuple[Once, Sizes]:
    """A store with users that have a history; what resets one of them, and the sizes of the records that one reset writes."""
    store = Store.open(place / "store", durability="each" if sync else "process")
    manager = ResetManager(store)
    Processor(manager).process_batch(
        Measurement(f"user-{user:04d}", START + timedelta(days=day), 80.0 + day % 5 / 10, "scale")
        for day in range(VERSIONS) for user in range(USERS))
    count = itertools.count()

    def once(_: int) -> None:
        number = next(count)
        user, day = f"user-{number % USERS:04d}", VERSIONS + number // USERS
        measurement = Measurement(user, START + timedelta(days=day, seconds=number % USERS), 80.0 + number % 7 / 10, "scale")
        manager.perform_reset(user, "manual-entry", measurement=measurement, reason="a benchmark of one reset",
                              actor="benchmark@example.org", at=measurement.at)

    for _ in range(USERS):
        once(0)
    before = dict(store.engine.scan(b"", b"\xff" * 8))
    once(0)
    after = dict(store.engine.scan(b"", b"\xff" * 8))
    return once, tuple((len(key), len(value)) for key, value in after.items() if before.get(key) != value)


class _events:  # noqa: N801 - used as a function
    """structlog as a service has it: every event as a line of JSON in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        self._file = self._path.open("wb")
        structlog.configure(
            processors=[structlog.processors.add_log_level, structlog.processors.TimeStamper(fmt="iso"),
                        structlog.processors.JSONRenderer(serializer=_json)],
            wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
            logger_factory=structlog.BytesLoggerFactory(self._file), cache_logger_on_first_use=False)

    def __exit__(self, *_: object) -> None:
        structlog.reset_defaults()
        self._file.close()


def _json(event: Any, **_: Any) -> bytes:
    return msgspec.json.encode(event)


