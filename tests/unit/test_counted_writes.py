"""The gate that no timing can give: what a reset asks of the disk is what a raw LMDB commit of the same changes asks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from benchmarks import counted, scene
from chaos.faults import libc

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from statemachine import Store

pytestmark = [
    pytest.mark.usefixtures("no_events"),
    pytest.mark.skipif(bool(libc.unavailable()), reason=f"SKIPPED COUNTED WRITES: {libc.unavailable()}"),
]

RATIO_MAX = 1.1
RESETS = 12
CALLS_A_RESET_MAX = 1_000
CALLS_A_MEASUREMENT_MAX = 112
SMALL = 60


def compared(path: Path, users: int = SMALL, versions: int = scene.VERSIONS, **options: Any) -> counted.Compared:
    scene.fill(path / "store", users, versions)
    return counted.compare(path / "store", path / "raw", users, RESETS, **options)


@pytest.mark.parametrize(("users", "versions"), [(SMALL, scene.VERSIONS), (2_000, 2)])
def test_reset_costs_the_disk_what_a_raw_commit_of_the_same_changes_costs(tmp_path: Path, users: int, versions: int) -> None:
    found = compared(tmp_path, users, versions)
    pwrites, fsyncs, written = found.ratios
    assert found.same_records, "the raw commits were not of the same records, so that nothing was compared"
    assert found.guarded.pwrites >= RESETS
    assert found.guarded.fsyncs >= RESETS
    assert (found.transactions, found.past_lmdb) == (RESETS, 0)
    assert pwrites <= RATIO_MAX
    assert written <= RATIO_MAX
    assert fsyncs == 1.0


def test_reset_in_two_transactions_is_over_the_limit(tmp_path: Path) -> None:
    """The gate is no formality: a mark that is a commit of its own doubles the syncs, and writes more."""
    found = compared(tmp_path, intents="durable")
    pwrites, fsyncs, written = found.ratios
    assert found.same_records
    assert (found.transactions, fsyncs) == (2 * RESETS, 2.0)
    assert pwrites > RATIO_MAX
    assert written > RATIO_MAX


def test_write_past_lmdb_is_seen(tmp_path: Path) -> None:
    """A journal of one's own beside the store would be counted, too."""
    def journaled(store: Store, users: int) -> Callable[[], object]:
        once = scene.resetter(store, users)
        return lambda: (once(), (tmp_path / "journal").write_bytes(b"a reset"))

    assert compared(tmp_path, reset=journaled).past_lmdb == RESETS


def test_calls_of_a_reset_and_of_a_measurement_stay_few(tmp_path: Path) -> None:
    """What the interpreter does is counted as well: it grows with the code, and not with the machine's load."""
    scene.fill(tmp_path / "store", SMALL)
    calls = counted.python_calls(tmp_path / "store", SMALL)
    assert 0 < calls["calls_a_reset"] <= CALLS_A_RESET_MAX
    assert 0 < calls["calls_a_measurement_in_a_group"] <= CALLS_A_MEASUREMENT_MAX
