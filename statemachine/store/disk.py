"""How long this disk takes to keep something, measured where a store lies, and what that advises.

The files that are written have lost their names before anything is timed: the disk gives them back whatever happens to the
process, and nobody takes them for a part of the store.  A process that is killed in the moment before leaves a hidden directory,
which the next one removes.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import lmdb

from statemachine.clock import Clock
from statemachine.errors import StoreFull, StoreUnavailable
from statemachine.store.engine import FULL, LMDB_MAJOR, OPENER, Opener, translated
from statemachine.store.surroundings import file_system

PAGE_BYTES: Final = 4096
FILE_PAGES: Final = 1024
WRITES: Final = 200
RECORDS: Final = 8
RECORD_BYTES: Final = 300
SCRATCH: Final = ".measuring-"
LATENCY_MS_MAX: Final = 5.0
"""What a measurement may be delayed by, at its 99th percentile, before people turn the guard off."""
DELAY_MS_MIN: Final = 2
DELAYS_MS: Final = (5, 10, 20, 50, 100, 200, 500, 1_000, 2_000)
SYNC_US_MIN: Final = 20.0
"""No disk keeps a page for good in less: below it, a cache without a battery, or memory, has answered for the disk."""
SLOW_FLOOR_MS: Final = 1.0
IN_MEMORY: Final = frozenset({"tmpfs", "ramfs"})


class Taken(NamedTuple):
    """Microseconds: the median and the 99th percentile."""

    p50_us: float
    p99_us: float


class Advice(NamedTuple):
    """A durability and a `StoreLimits.group_delay_ms` for this disk, and why."""

    durability: str
    group_delay_ms: int
    reasons: tuple[str, ...]


def floor(directory: Path, clock: Clock, writes: int = WRITES) -> Taken:
    """A pwrite of 4 KiB and its fdatasync, each of bytes of its own in a file that is on the disk already.

    Raises StoreFull or StoreUnavailable where nothing can be written in `directory`.
    """
    sync = getattr(os, "fdatasync", os.fsync)
    try:
        descriptor, name = tempfile.mkstemp(prefix=SCRATCH, dir=directory)
        try:
            Path(name).unlink()
            os.pwrite(descriptor, b"\x5a" * (PAGE_BYTES * FILE_PAGES), 0)
            os.fsync(descriptor)

            def once(number: int) -> None:
                os.pwrite(descriptor, _varied(number, PAGE_BYTES), number * 7919 % FILE_PAGES * PAGE_BYTES)
                sync(descriptor)

            return _timed(once, clock, writes)
        finally:
            os.close(descriptor)
    except OSError as error:
        message = f"the disk under {directory} cannot be measured: {error}"
        raise (StoreFull if error.errno in FULL else StoreUnavailable)(message) from error


def lmdb_commit(directory: Path, clock: Clock, commits: int = WRITES, opener: Opener = OPENER) -> Taken:
    """A durable LMDB commit of as many records and bytes as a reset has, by one writer; raises as `floor`."""
    try:
        for left in directory.glob(f"{SCRATCH}*"):  # of a process that was killed while it opened one
            shutil.rmtree(left, ignore_errors=True)
        scratch = tempfile.mkdtemp(prefix=SCRATCH, dir=directory)
        try:
            env = opener(scratch, map_size=1 << 26, lock=False, lib_version=LMDB_MAJOR)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        try:
            def once(number: int) -> None:
                with env.begin(write=True) as txn:
                    for record in range(RECORDS):
                        txn.put(b"%d/%d" % (number % FILE_PAGES, record), _varied(number, RECORD_BYTES))

            return _timed(once, clock, commits)
        finally:
            env.close()
    except lmdb.Error as error:
        raise translated(error, "measuring", directory) from error
    except OSError as error:
        message = f"the disk under {directory} cannot be measured: {error}"
        raise (StoreFull if error.errno in FULL else StoreUnavailable)(message) from error


def advise(directory: Path, page: Taken, commit: Taken) -> Advice:
    """What to open a store with on a disk that takes so long; the figures themselves are not repeated in the reasons."""
    commit_ms = commit.p99_us / 1_000
    reasons = []
    if commit_ms + DELAY_MS_MIN <= LATENCY_MS_MAX:
        durability, delay_ms = "each", DELAY_MS_MIN
        reasons += [
            f"A commit of its own keeps the wait for one measurement under {LATENCY_MS_MAX:g} ms, so `each` needs no trade.",
            f"Use `group` where files or many threads feed the store; with group_delay_ms={delay_ms} it keeps to that limit too.",
        ]
    else:
        durability, delay_ms = "group", next((ms for ms in DELAYS_MS if ms >= commit_ms), DELAYS_MS[-1])
        reasons += [
            f"A commit alone comes near {LATENCY_MS_MAX:g} ms or over it: sharing commits, as `group` does, makes up for it.",
            f"With group_delay_ms={delay_ms} a measurement of a stream waits about as long for its group as for the disk.",
        ]
    if page.p50_us > SLOW_FLOOR_MS * 1_000:
        reasons.append(f"One page alone takes over {SLOW_FLOOR_MS:g} ms: the disk, or a machine with no idle processor, decides, "
                       "and no setting of the store changes that. Measure again when the machine is idle.")
    kind = file_system(directory)
    if kind in IN_MEMORY:
        reasons.append(f"This is {kind}: it is memory, and no mode outlives a power cut. Put the store on a disk.")
    elif page.p50_us < SYNC_US_MIN:
        reasons.append("The disk answers faster than any can write: its cache may be lost in a power cut, unless it has a "
                       "battery. Ask whoever runs the machine.")
    reasons.append("`process` is faster on any disk, and a power cut may take its last commits or damage the store: "
                   "use it only for what can be made again.")
    return Advice(durability, delay_ms, tuple(reasons))


def _varied(number: int, length: int) -> bytes:
    """Bytes that the round before had not: some systems skip a write of what is there already."""
    return (number + 1).to_bytes(4, "big") * math.ceil(length / 4)


def _timed(once: Callable[[int], None], clock: Clock, times: int) -> Taken:
    taken_us = []
    for number in range(times):
        began_us = clock.monotonic_us()
        once(number)
        taken_us.append(clock.monotonic_us() - began_us)
    taken_us.sort()
    return Taken(taken_us[len(taken_us) // 2], taken_us[min(len(taken_us) - 1, len(taken_us) * 99 // 100)])
