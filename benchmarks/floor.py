"""The floor under every durable commit: how long this disk takes to keep 4 KiB, as `resetguard doctor --bench` measures it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import rounds
from statemachine.clock import SystemClock
from statemachine.store import disk

WRITES = disk.WRITES
MEANINGFUL_MS_MAX = 1.0
FIGURES = ("floor_p50_ms", "floor_p99_ms")
PAGES = 64


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


class Probe:
    """The same, once a round among the contestants: what the disk took in their very moments."""

    def __init__(self, directory: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115 - closed by `close`
        os.pwrite(self._file.fileno(), bytes(PAGES * disk.PAGE_BYTES), 0)
        os.fsync(self._file.fileno())

    def once(self, number: int) -> None:
        """Keep one page."""
        os.pwrite(self._file.fileno(), os.urandom(disk.PAGE_BYTES), number % PAGES * disk.PAGE_BYTES)
        getattr(os, "fdatasync", os.fsync)(self._file.fileno())

    def close(self) -> None:
        """The file is gone."""
        self._file.close()


def told(taken_ms: Sequence[float]) -> dict[str, float]:
    """What a `Probe` took in the rounds of a contest, for its row."""
    return dict(zip(FIGURES, (round(rounds.percentile(taken_ms, percent), 4) for percent in (50, 99)), strict=True))


def of_run(rows: list[dict[str, Any]], *around: Floor) -> Floor:
    """The slowest of the floors among the rounds of a run; of those measured around it where it has none of its own."""
    within = [Floor(*(row[figure] for figure in FIGURES)) for row in rows if FIGURES[0] in row]
    return worst(*(within or around))


def worst(*floors: Floor) -> Floor:
    """The slowest of those measured in one run."""
    return Floor(max(one.p50_ms for one in floors), max(one.p99_ms for one in floors))
