"""`growth`: the same acts at 10 thousand, 100 thousand and a million users, by turns, and the bytes that a user takes.

How a cost grows is the slope of its logarithm over that of the users: 0 where it does not grow, 1 where it grows as they do.
"""

from __future__ import annotations

import itertools
import random
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lmdb

from benchmarks import floor, recovery, rounds, scene
from statemachine import Measurement, Processor, ResetManager, Store, codec
from statemachine.clock import from_us
from statemachine.store import keys
from statemachine.store.engine import DATA, LMDB_MAJOR
from statemachine.store.log import version_content
from statemachine.store.records import Image

if TYPE_CHECKING:
    from benchmarks.settings import Settings

LARGEST = 1_000_000
ROUNDS = 300
OPENS = 40
FOOTPRINT_USERS = 20_000
MIXED = (0, 1, 2, 3, 43, 44, 45, 85, 86, 87)
"""Days of ten versions, of which the first and those after a gap are resets: three."""
RESETS_ONLY = tuple(range(0, 400, 40))
"""Days of ten resets, so that all ten versions are images."""
FLOOR = "4 KiB kept"
APART = ("steps", "measurements")


def growth(settings: Settings) -> list[dict[str, Any]]:
    """Reset, read and open at N/100, N/10 and N users, each after a kill -9 with its recovery and `doctor`; bytes a user."""
    largest = settings.users or (4_000 if settings.quick else LARGEST)
    sizes = [max(100, largest // 100), max(200, largest // 10), largest]
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=settings.directory) as folder, ExitStack() as stack:
        place = settings.keep or Path(folder)
        stores = {users: recovery.built(place, users) for users in sizes}
        rows = [{"what": f"{users} users", "durable": True, **_recovered(path, users)} for users, path in stores.items()]
        many = settings.rows or (30 if settings.quick else ROUNDS)
        opens = rounds.interleaved({str(users): _opening(path) for users, path in stores.items()},
                                   5 if settings.quick else OPENS, warm=1)
        resets: dict[str, rounds.Once] = {}
        reads: dict[str, rounds.Once] = {}
        for users, path in stores.items():
            store = stack.enter_context(Store.open(path))
            resets[str(users)], reads[str(users)] = _resetting(store, users), _reading(store, users)
        probe = floor.Probe(place)
        stack.callback(probe.close)
        reset, read = rounds.interleaved(resets | {FLOOR: probe.once}, many, warm=10), rounds.interleaved(reads, many, warm=10)
        slopes: dict[str, float] = {}
        for name, taken, clock in (("reset", reset, "wall_ms"), ("reset_cpu", reset, "cpu_ms"), ("read", read, "wall_ms"),
                                   ("open", opens, "wall_ms"), ("open_cpu", opens, "cpu_ms")):
            costs = [rounds.p50(getattr(taken[str(users)], clock)) for users in sizes]
            for row, cost in zip(rows, costs, strict=True):
                row[f"{name}_p50_ms"] = round(cost, 4)
            slopes[f"{name}_exponent"] = round(rounds.exponent(sizes, costs), 3)
        for row, users in zip(rows, sizes, strict=True):
            row.update(floor.told(reset[FLOOR].wall_ms))
            row["reset_p99_ms"] = round(rounds.percentile(reset[str(users)].wall_ms, 99), 3)
    rows.append({"what": "exponents", "durable": True, **slopes})
    users = 500 if settings.quick else min(FOOTPRINT_USERS, largest)
    return rows + [footprint(settings.directory, users, name, days)
                   for name, days in (("10 versions, 3 resets", MIXED), ("10 images", RESETS_ONLY))]


def _recovered(path: Path, users: int) -> dict[str, Any]:
    """What `recovery` says of a store whose writer is killed now."""
    found = recovery.killed(path, users)
    wanted = ("store_mib", "records", "open_for_reading_ms", "first_verified_read_ms", "open_and_settle_ms",
              "first_durable_commit_ms", "new_process_serving_ms", "doctor_seconds", "doctor_findings", "rss_mib")
    return {name: found[name] for name in wanted}


def _opening(path: Path) -> rounds.Once:
    return lambda _: Store.open(path).close()


def _resetting(store: Store, users: int) -> rounds.Once:
    """Manual entries of users who are far from each other, each a day after that user's last state."""
    manager, count = ResetManager(store), itertools.count(1)

    def once(_: int) -> None:
        user = f"user-{next(count) * scene.USERS_SPREAD % users:06d}"
        loaded = store.load(user)
        if loaded is None:
            message = f"{user} is not in the store"
            raise RuntimeError(message)
        kalman = loaded.state.kalman
        at = from_us(kalman.at_us) + timedelta(days=1)
        manager.perform_reset(user, "manual-entry", measurement=Measurement(user, at, kalman.x0 + 0.2, "scale"), at=at,
                              reason="a benchmark of one reset", actor="benchmark@example.org")
    return once


def _reading(store: Store, users: int) -> rounds.Once:
    dice = random.Random(3)  # noqa: S311 - an order
    return lambda _: store.load(f"user-{dice.randrange(users):06d}")


def footprint(directory: Path, users: int, what: str, days: tuple[int, ...]) -> dict[str, Any]:
    """Bytes of the data file a user, after each day's readings have come in an order of their own; by kind of record.

    `apart` is without steps and identities (`measurements`), the file's own share for pages and free space taken in
    proportion, and with the audit of three resets where there were more.
    """
    dice = random.Random(2)  # noqa: S311 - an order
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=directory) as folder:
        with Store.open(Path(folder) / "store", durability="process") as store:
            processor = Processor(ResetManager(store))
            for day in days:
                order = list(range(users))
                dice.shuffle(order)
                at = scene.START + timedelta(days=day)
                processor.process_batch(Measurement(scene.name(user), at, scene.weight_kg(user, day), "scale") for user in order)
            held, resets = _by_kind(store.engine.scan), sum(row.public.new_version > 0 for row in store.audit())
        in_use = _bytes_in_use(Path(folder) / "store")
        size = (Path(folder) / "store" / DATA).stat().st_size
    total = sum(held.values())
    audit = held["audit row"] + held["audit index"]
    apart = total - sum(held[kind] for kind in APART) - audit * max(0, resets - 3 * users) // max(1, resets)
    return {
        "what": what, "durable": False, "users": users, "resets_a_user": round(resets / users, 2),
        "file_bytes_a_user": round(size / users), "in_use_bytes_a_user": round(in_use / users),
        "apart_bytes_a_user": round(size / users * apart / total),
        **{f"{kind.replace(' ', '_')}_bytes": round(held[kind] / users) for kind in sorted(held) if held[kind] >= users},
    }


def _bytes_in_use(path: Path) -> int:
    """What compaction would leave of the data file, more or less: its pages in use."""
    env = lmdb.open(str(path), readonly=True, lock=False, lib_version=LMDB_MAJOR)
    try:
        found = env.stat()
        return int(found["psize"] * (found["branch_pages"] + found["leaf_pages"] + found["overflow_pages"]))
    finally:
        env.close()


def _by_kind(scan: Callable[[bytes, bytes], Any]) -> Counter[str]:
    held: Counter[str] = Counter()
    for key, value in scan(b"", b"\xff" * 8):
        kind = keys.kind_of(key)
        if kind == "version":
            kind = "images" if isinstance(version_content(codec.unseal(key, value)), Image) else "steps"
        held[kind] += len(key) + len(value)
    return held
