"""The floor under every durable commit: how long this disk takes to keep 4 KiB."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

WRITES = 200
PAGE_BYTES = 4096
FILE_PAGES = 1024
MEANINGFUL_MS_MAX = 1.0


class Floor(NamedTuple):
    """Milliseconds that a pwrite of 4 KiB and its fdatasync take."""

    p50_ms: float
    p99_ms: float

    @property
    def meaningful(self) -> bool:
        """Whether a ratio to this floor says anything about the program."""
        return self.p50_ms <= MEANINGFUL_MS_MAX


def measure(directory: Path, writes: int = WRITES) -> Floor:
    """Overwrite pages of a file that is on the disk already, each with bytes of its own, and sync after each."""
    path = directory / "floor.bin"
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        os.pwrite(descriptor, os.urandom(PAGE_BYTES * FILE_PAGES), 0)
        os.fsync(descriptor)
        sync = getattr(os, "fdatasync", os.fsync)
        taken_ms = []
        for number in range(writes):
            page = os.urandom(PAGE_BYTES)
            began_ns = time.perf_counter_ns()
            os.pwrite(descriptor, page, number * 7919 % FILE_PAGES * PAGE_BYTES)
            sync(descriptor)
            taken_ms.append((time.perf_counter_ns() - began_ns) / 1e6)
    finally:
        os.close(descriptor)
        path.unlink()
    taken_ms.sort()
    return Floor(taken_ms[len(taken_ms) // 2], taken_ms[min(len(taken_ms) - 1, len(taken_ms) * 99 // 100)])
