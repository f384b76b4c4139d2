"""`resets`: one durable guarded reset beside what a user would write instead, round by round in one run, as ratios."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import floor, rounds, scene
from benchmarks.contestants import CONTESTANTS, Records
from benchmarks.twins import Twins

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks import contestants
    from benchmarks.settings import Settings

ROUNDS = 300
WARM_ROUNDS = 20
USERS = 100
GUARDED = "resetguard"
RAW = "raw LMDB"
FLOOR = "4 KiB kept"


def reset(settings: Settings) -> list[dict[str, Any]]:
    """A guarded durable reset against the floor, raw LMDB, sqlite3, RocksDB, pickles, ZODB, DBOS and a first sketch."""
    return _run(settings, sync=True) + _run(settings, sync=False)


def _run(settings: Settings, *, sync: bool) -> list[dict[str, Any]]:
    """All contestants in interleaved rounds; `ratio` is each one's median to that of the guarded reset.

    A twin store has done each round's reset before, untimed: what it wrote is what all the others write.
    """
    many, users = settings.rows or (30 if settings.quick else ROUNDS), settings.users or USERS
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=settings.directory) as folder:
        place = Path(folder)
        scene.fill(place / "store", users)
        twins = Twins(place / "twins", place / "store", durability="each" if sync else "process")
        ours, twin = scene.resetter(twins.ours, users), scene.resetter(twins.twin, users)
        changes: list[tuple[bytes, bytes | None]] = []
        records: Records = []

        def prepare(_: int) -> None:
            twin()
            changes[:] = twins.changes()
            records[:] = [(key, value) for key, value in changes if value is not None]

        entries: dict[str, rounds.Once] = {GUARDED: lambda _: ours(), RAW: lambda _: twins.commit(changes)}
        missing = {}
        for contestant in CONTESTANTS:
            own = place / contestant.name.replace(" ", "-")
            own.mkdir()
            try:
                entries[contestant.name] = _entry(contestant.open(own, sync), records)
            except ImportError as error:
                missing[contestant.name] = str(error)
        for _ in range(users):
            prepare(0)
            ours()
            twins.commit(changes)
        probe = floor.Probe(place)
        taken = rounds.interleaved(entries | {FLOOR: probe.once}, many, WARM_ROUNDS, prepare)
        probe.close()
        written = sum(len(key) + len(value) for key, value in records)
        twins.close()
    median = rounds.p50(taken[GUARDED].wall_ms)
    kept = floor.told(taken[FLOOR].wall_ms)
    said = {GUARDED: f"{len(records)} records, {written} bytes", RAW: "the same changes, no guard"}
    said |= {contestant.name: contestant.what for contestant in CONTESTANTS}
    return [{
        "contestant": name, "durable": sync, "p50_ms": round(rounds.p50(of.wall_ms), 4),
        "p99_ms": round(rounds.percentile(of.wall_ms, 99), 4), "ratio": round(rounds.p50(of.wall_ms) / median, 3),
        **kept, "what": said[name],
    } for name in said if (of := taken.get(name)) is not None] + [
        {"contestant": name, "durable": sync, "what": f"not run: {why}"} for name, why in missing.items()]


def _entry(once: contestants.Once, records: Records) -> Callable[[int], object]:
    return lambda number: once(number, records)
