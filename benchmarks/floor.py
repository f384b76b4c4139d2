"""The floor under every durable commit: how long this disk takes to keep 4 KiB, as `resetguard doctor --bench` measures it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from statemachine.clock import SystemClock
from statemachine.store import disk

WRITES = disk.WRITES
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
    """The floor in this directory."""
    taken = disk.floor(directory, SystemClock(), writes)
    return Floor(taken.p50_us / 1e3, taken.p99_us / 1e3)


def worst(*floors: Floor) -> Floor:
    """The slowest of those measured in one run."""
    return Floor(max(one.p50_ms for one in floors), max(one.p99_ms for one in floors))
