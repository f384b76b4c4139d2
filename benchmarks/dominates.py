"""`dominates`: where the time of a guarded reset and of `process` goes, by function, and which pages a reset has written.

The profile is cProfile's, which makes calls dearer than they are: it says where to look, not how long it takes.
"""

from __future__ import annotations

import cProfile
import gc
import pstats
import struct
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import data, events, scene
from chaos.faults import libc
from statemachine import Store
from statemachine.cli.process import Job, run
from statemachine.ingest.layout import Options
from statemachine.store import keys

if TYPE_CHECKING:
    from benchmarks.settings import Settings

USERS, RESETS, ROWS = 2_000, 1_000, 40_000
FUNCTIONS = 16
WATCHED_RESETS = 20
PAGE_BYTES = 4096
BRANCH, OVERFLOW, META = 1, 4, 8
"""Flags in the head of a page of LMDB 0.9."""
_HEAD, _NODE = struct.Struct("<QHHHH"), struct.Struct("<HHHH")
FREE_KEY_BYTES = 8
"""A key of the list of free pages is the number of a transaction; no key of ours ends in four zeros like it."""


def dominates(settings: Settings) -> list[dict[str, Any]]:
    """The functions in which a reset and `process` spend their time, by their own share, and the pages that a reset writes."""
    users, times = settings.users or (200 if settings.quick else USERS), 100 if settings.quick else RESETS
    rows = settings.rows or (4_000 if settings.quick else ROWS)
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=settings.directory) as folder:
        place = Path(folder)
        scene.fill(place / "store", users, scene.VERSIONS if users <= USERS else 3)
        found = _pages(place / "store", users)
        with Store.open(place / "store", durability="process") as store:
            once = scene.resetter(store, users, first_day=scene.VERSIONS + 100)
            for _ in range(20):
                once()
            found += _profiled("reset", lambda: [once() for _ in range(times)], times)
        data.write_readings(place / "readings.csv", rows, users)
        job = Job((str(place / "readings.csv"),), place / "fed", Options(), "group", stream=False)
        return found + _profiled("process", lambda: run(job, quiet=True), rows)


def _profiled(what: str, work: Callable[[], object], times: int) -> list[dict[str, Any]]:
    thresholds = gc.get_threshold()  # the command sets its own
    profile = cProfile.Profile(time.thread_time_ns, 1e-9)
    try:
        profile.runcall(work)
    finally:
        gc.set_threshold(*thresholds)
    table: dict[tuple[str, int, str], Any] = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    total = sum(own for _, _, own, _, _ in table.values())
    largest = sorted(table.items(), key=lambda one: -one[1][2])[:FUNCTIONS]
    return [{"what": f"{what}: {_named(*where)}", "own_percent": round(100 * own / total, 1),
             "within_percent": round(100 * within / total, 1), "calls_each": round(calls / times, 2)}
            for where, (_, calls, own, within, _) in largest]


def _named(file: str, _: int, function: str) -> str:
    return function.strip("<>") if file == "~" else f"{Path(file).stem}.{function}"


def _pages(path: Path, users: int) -> list[dict[str, Any]]:
    """How many pages of each kind a reset has written: leaves by the records on them."""
    kinds: Counter[str] = Counter()

    def met(call: libc.Call) -> int:
        if call.name in libc.WRITES:
            kinds.update(_kinds(call.data()))
        return call.make()

    with events.dropped(), Store.open(path) as store:
        once = scene.resetter(store, users)
        once()
        with libc.redirected(met):
            for _ in range(WATCHED_RESETS):
                once()
    return [{"page": kind, "a_reset": round(many / WATCHED_RESETS, 2)} for kind, many in kinds.most_common()]


def _kinds(written: bytes) -> list[str]:
    """The pages in what was written at once."""
    found, at = [], 0
    while at + PAGE_BYTES <= len(written):
        _, _, flags, lower, upper = _HEAD.unpack_from(written, at)
        pages = 1
        if flags & META:
            found.append("meta")
        elif flags & OVERFLOW:
            found.append("overflow")
            pages = lower | upper << 16
        elif flags & BRANCH:
            found.append("branch")
        else:
            found.append(f"leaf: {_records(written[at:at + PAGE_BYTES], lower)}")
        at += PAGE_BYTES * pages
    return found or ["meta"]  # its page is not written whole


def _records(page: bytes, lower: int) -> str:
    """What kinds of records lie on a leaf."""
    held = []
    for node in struct.unpack_from(f"<{(lower - _HEAD.size) // 2}H", page, _HEAD.size):
        *_, length = _NODE.unpack_from(page, node)
        held.append(page[node + _NODE.size:node + _NODE.size + length])
    if all(len(key) == FREE_KEY_BYTES and key.endswith(bytes(4)) for key in held):
        return "free pages"
    return ", ".join(sorted({keys.kind_of(key) if key.startswith(b"\0") else "of a user" for key in held}))
