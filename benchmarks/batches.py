"""`batches`: guarded resets a second in groups of 1 to 1000 beside raw SQLite, and with 1 to 128 callers at once."""

from __future__ import annotations

import itertools
import tempfile
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import contestants, floor, rounds, scene
from benchmarks.twins import Twins
from statemachine import Measurement, Processor, ResetManager, Store

if TYPE_CHECKING:
    from benchmarks.settings import Settings

GROUPS = (1, 10, 100, 1_000)
CALLERS = (1, 2, 8, 32, 128)
USERS = 1_000
RESETS = 5_000
GAP_DAYS = 40
EACH_MAX = 100


def batches(settings: Settings) -> list[dict[str, Any]]:
    """Resets a second in groups, and the seconds of raw SQLite with the same records to ours; then with many callers."""
    users = max(settings.users or (200 if settings.quick else USERS), *CALLERS)
    total = settings.rows or (200 if settings.quick else RESETS)
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=settings.directory) as folder:
        place = Path(folder)
        scene.fill(place / "store", users)
        rows = [in_groups(place, users, group, max(3, total // group if group > 1 else total // 10)) for group in GROUPS]
        rows += [at_once(place / "store", users, callers, total, first_day=scene.VERSIONS + 1_000 * at)
                 for at, callers in enumerate(CALLERS)]
    return rows


def in_groups(place: Path, users: int, group: int, times: int) -> dict[str, Any]:
    """Readings after a gap of 40 days, each of which resets its user, in groups that are one durable commit each.

    raw SQLite: `INSERT OR REPLACE` of the same records in one transaction a group, WAL, synchronous=FULL; and `each`, what
    the group would take with a transaction for each reset, by those of the first hundred resets.
    """
    twins = Twins(place / f"group-{group}", place / "store", durability="group")
    sqlite, apart = (_sqlite(place / f"{name}-{group}") for name in ("sqlite", "sqlite-each"))
    ours, twin = Processor(ResetManager(twins.ours)), Processor(ResetManager(twins.twin))
    gaps = _after_gaps(users)
    batch: list[Measurement] = []
    changes: list[tuple[bytes, bytes | None]] = []
    records: contestants.Records = []

    def prepare(_: int) -> None:
        batch[:] = itertools.islice(gaps, group)
        twin.process_batch(batch)
        changes[:] = twins.changes()
        records[:] = [(key, value) for key, value in changes if value is not None]

    def guarded(_: int) -> None:
        for outcome in ours.process_batch(batch):
            if outcome.reset is None or outcome.reset.outcome != "committed":
                message = f"a reading after a gap was to reset its user, and ended as {outcome}"
                raise RuntimeError(message)

    some = min(group, EACH_MAX)
    probe = floor.Probe(place)

    def each(number: int) -> None:
        share = max(1, len(records) // group)
        for at in range(some):
            apart(number, records[at * share:(at + 1) * share])

    entries: dict[str, rounds.Once] = {"guarded": guarded, "raw": lambda _: twins.commit(changes),
                                       "sqlite": lambda number: sqlite(number, records), "each": each,
                                       "floor": probe.once}
    taken = rounds.interleaved(entries, times, warm=2, before=prepare)
    probe.close()
    twins.close()
    ms = {name: rounds.p50(of.wall_ms) for name, of in taken.items()}
    return {
        "what": f"groups of {group}", "durable": True, "resets_per_s": round(group * 1e3 / ms["guarded"]),
        "p50_ms": round(ms["guarded"], 3), "p99_ms": round(rounds.percentile(taken["guarded"].wall_ms, 99), 3),
        "raw_lmdb_ms": round(ms["raw"], 3), "sqlite_ms": round(ms["sqlite"], 3),
        "cpu_us_a_reset": round(rounds.p50(taken["guarded"].cpu_ms) * 1e3 / group, 1),
        "sqlite_ratio": round(ms["sqlite"] / ms["guarded"], 3),
        "sqlite_each_ratio": round(ms["each"] * group / some / ms["guarded"], 3),
        **floor.told(taken["floor"].wall_ms),
        "raw_lmdb_ratio": round(ms["guarded"] / ms["raw"], 3),
    }


def _sqlite(directory: Path) -> contestants.Once:
    directory.mkdir()
    return contestants.sqlite(directory, True)  # noqa: FBT003 - synced


def _after_gaps(users: int) -> Iterator[Measurement]:
    """Readings of one user after the other, each 40 days after that user's last."""
    for turn in itertools.count(1):
        for number in range(users):
            user = number * scene.USERS_SPREAD % users
            at = scene.START + timedelta(days=scene.VERSIONS + turn * GAP_DAYS, seconds=number * 80_000 / users)
            yield Measurement(scene.name(user), at, scene.weight_kg(user, scene.VERSIONS) + turn % 3 / 10, "scale")


def at_once(path: Path, users: int, callers: int, total: int, first_day: int) -> dict[str, Any]:
    """So many threads that call `perform_reset` on users of their own, the store in group mode: a call's time, and all."""
    each = max(2, total // callers)
    taken_ms: list[float] = []
    start = threading.Barrier(callers + 1)
    failures: list[BaseException] = []

    def call(manager: ResetManager, caller: int) -> None:
        own = range(caller, users, callers)
        start.wait()
        try:
            for number in range(each):
                user, day = own[number % len(own)], first_day + number // len(own)
                at = scene.START + timedelta(days=day, seconds=user * 80_000 / users)
                reading = Measurement(scene.name(user), at, scene.weight_kg(user, day), "scale")
                began_ns = time.perf_counter_ns()
                manager.perform_reset(reading.user, "manual-entry", measurement=reading, reason="a benchmark of many callers",
                                      actor="benchmark@example.org", at=at)
                taken_ms.append((time.perf_counter_ns() - began_ns) / 1e6)
        except BaseException as error:  # noqa: BLE001 - told below
            failures.append(error)

    with Store.open(path, durability="group") as store:
        manager = ResetManager(store)
        threads = [threading.Thread(target=call, args=(manager, caller)) for caller in range(callers)]
        for thread in threads:
            thread.start()
        start.wait()
        began = time.perf_counter()
        for thread in threads:
            thread.join()
        seconds = time.perf_counter() - began
    if failures:
        raise failures[0]
    return {"what": f"{callers} callers", "durable": True, "resets_per_s": round(len(taken_ms) / seconds),
            "p50_ms": round(rounds.p50(taken_ms), 3), "p99_ms": round(rounds.percentile(taken_ms, 99), 3)}
