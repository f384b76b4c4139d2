"""`counted`: what one guarded reset asks of the disk, counted below Python, against a raw LMDB commit of the same changes.

Nothing is timed, so that a busy machine changes no figure.  The store's environment is opened through a door that writes down
what each transaction puts and deletes.  A copy of its data file, opened by bare LMDB, is given the net changes of each reset
in one transaction: so both meet the same tree and the same list of free pages, and at the end hold the same records.
Calls of the C library that both make are counted (`chaos.faults.libc`), and the kernel's own count of this process's writes
says that none went past them.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

import lmdb

from benchmarks import events, scene
from benchmarks.twins import Door
from chaos.faults import libc
from statemachine import Processor, ResetManager, Store
from statemachine.store.engine import DATA, LMDB_MAJOR

if TYPE_CHECKING:
    from benchmarks.settings import Settings

USERS = 2_000
RESETS = 40
WARM = 8
RAW = "raw"


class Counts(NamedTuple):
    """What was asked of the disk: calls that write, calls that sync (a write through O_DSYNC is one), bytes written."""

    pwrites: int
    fsyncs: int
    bytes: int


class Compared(NamedTuple):
    """Totals of so many resets and of the raw commits of the same changes; `past_lmdb` is writes by any other way."""

    resets: int
    guarded: Counts
    raw: Counts
    transactions: int
    past_lmdb: int
    same_records: bool

    @property
    def ratios(self) -> tuple[float, float, float]:
        """Guarded to raw: pwrites, fsyncs, bytes."""
        pwrites, fsyncs, written = (ours / theirs for ours, theirs in zip(self.guarded, self.raw, strict=True))
        return pwrites, fsyncs, written


def counted(settings: Settings) -> list[dict[str, Any]]:
    """Pwrites, syncs and bytes of a guarded reset to those of a raw LMDB commit of the same changes; Python calls."""
    users, resets = settings.users or (200 if settings.quick else USERS), settings.rows or RESETS
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=settings.directory) as folder:
        place = Path(folder)
        scene.fill(place / "store", users, scene.VERSIONS if users <= USERS else 3)
        size = (place / "store" / DATA).stat().st_size
        with events.dropped():
            found = compare(place / "store", place / "raw", users, resets)
            calls = python_calls(place / "store", users)
    pwrites, fsyncs, written = found.ratios
    return [{
        "users": users, "store_mib": round(size / 2**20, 1), "resets": resets,
        "pwrites_a_reset": round(found.guarded.pwrites / resets, 2), "pwrites_a_raw_commit": round(found.raw.pwrites / resets, 2),
        "pwrites_ratio": round(pwrites, 3),
        "bytes_a_reset": round(found.guarded.bytes / resets), "bytes_a_raw_commit": round(found.raw.bytes / resets),
        "bytes_ratio": round(written, 3),
        "fsyncs_a_reset": round(found.guarded.fsyncs / resets, 2), "fsyncs_a_raw_commit": round(found.raw.fsyncs / resets, 2),
        "fsyncs_ratio": round(fsyncs, 3),
        "transactions_a_reset": round(found.transactions / resets, 2), "writes_past_lmdb": found.past_lmdb,
        "same_records_at_the_end": found.same_records, **calls,
    }]


def compare(
    path: Path, raw: Path, users: int, resets: int,
    reset: Callable[[Store, int], Callable[[], object]] = scene.resetter, **options: Any,
) -> Compared:
    """Reset users of the store at `path`, and commit the same changes to a raw copy of it, made at `raw`.

    Raises libc.Unavailable where calls cannot be counted: another system than Linux, or a statically linked LMDB.
    """
    path, raw = path.resolve(), raw.resolve()
    door = Door()
    counts: dict[str, Counter[str]] = {RAW: Counter(), str(path): Counter()}
    with Store.open(path, opener=door.open, **options) as store:
        once = reset(store, users)
        for _ in range(WARM):
            once()
        raw.mkdir()
        shutil.copyfile(path / DATA, raw / DATA)
        door.taken()
        with _bare(raw) as env, _counting(path, raw, counts):
            past = transactions = 0
            for _ in range(resets):
                before, counted_before = _kernel_writes(), counts[str(path)]["writes"]
                once()
                past += _kernel_writes() - before - (counts[str(path)]["writes"] - counted_before)
                many, changes = door.taken()
                transactions += many
                with env.begin(write=True) as txn:
                    for key in sorted(changes):
                        value = changes[key]
                        if value is None:
                            txn.delete(key)
                        elif txn.get(key) != value:
                            txn.put(key, value)
            same = _records(env) == dict(store.engine.scan(b"", b"\xff" * 8))
    ours, theirs = (Counts(c["writes"], c["syncs"], c["bytes"]) for c in (counts[str(path)], counts[RAW]))
    return Compared(resets, ours, theirs, transactions, past, same)


def python_calls(path: Path, users: int, times: int = 20) -> dict[str, Any]:
    """How many calls, of Python and of C, a reset and a measurement in a group take: the same at each run of one version."""
    with Store.open(path, durability="process") as store:
        once = scene.resetter(store, users, first_day=scene.VERSIONS + 200)
        once()
        resets = [_calls(once) for _ in range(times)]
        processor = Processor(ResetManager(store))
        many = min(users, 1_000)
        for day in range(400, 403):
            batch = list(scene.days(many, day, 1))
            calls = _calls(lambda batch=batch: processor.process_batch(batch))  # type: ignore[misc]
    return {"calls_a_reset": round(median(resets)), "calls_a_measurement_in_a_group": round(calls / many, 1)}


def _calls(run: Callable[[], object]) -> int:
    count = 0

    def seen(_: Any, event: str, __: Any) -> None:
        nonlocal count
        if event in {"call", "c_call"}:
            count += 1

    sys.setprofile(seen)
    try:
        run()
    finally:
        sys.setprofile(None)
    return count


def _kernel_writes() -> int:
    """How many writing calls the kernel has counted of this process; 0 where it does not tell."""
    try:
        with Path("/proc/self/io").open("rb") as file:
            return next(int(line.split()[1]) for line in file if line.startswith(b"syscw:"))
    except (OSError, StopIteration):
        return 0


@contextlib.contextmanager
def _counting(path: Path, raw: Path, counts: dict[str, Counter[str]]) -> Iterator[None]:
    """Count the calls of LMDB on either file, and the library's own syncs, which are the guarded side's."""
    files = {str(path / DATA): counts[str(path)], str(raw / DATA): counts[RAW]}

    def met(call: libc.Call) -> int:
        into = files[call.path]
        if call.name in libc.WRITES:
            into["writes"] += 1
            into["bytes"] += call.length
            into["syncs"] += call.dsync
        elif call.name in libc.SYNCS:
            into["syncs"] += 1
        return call.make()

    def counting(real: Callable[[int], None]) -> Callable[[int], None]:
        def sync(descriptor: int) -> None:
            counts[str(path)]["syncs"] += 1
            real(descriptor)
        return sync

    reals = {name: getattr(os, name) for name in ("fsync", "fdatasync")}
    with libc.redirected(met, watched=files.__contains__):
        for name, real in reals.items():
            setattr(os, name, counting(real))
        try:
            yield
        finally:
            for name, real in reals.items():
                setattr(os, name, real)


@contextlib.contextmanager
def _bare(path: Path) -> Iterator[Any]:
    env = lmdb.open(str(path), map_size=1 << 34, max_spare_txns=16, lib_version=LMDB_MAJOR)
    try:
        yield env
    finally:
        env.close()


def _records(env: Any) -> dict[bytes, bytes]:
    with env.begin() as txn, txn.cursor() as cursor:
        return dict(cursor)
