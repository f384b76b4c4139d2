"""The disk under a store is measured without a trace, and its figures become advice with reasons."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

import lmdb
import pytest

from statemachine.clock import SystemClock
from statemachine.errors import StoreFull, StoreUnavailable
from statemachine.store import disk
from statemachine.store.disk import Taken

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FAST = Taken(110.0, 300.0)
MEASURED: list[Callable[[Path, SystemClock, int], Taken]] = [disk.floor, disk.lmdb_commit]


@pytest.mark.parametrize("measure", MEASURED)
def test_measuring_takes_time_and_leaves_nothing(tmp_path: Path, measure: Callable[[Path, SystemClock, int], Taken]) -> None:
    (tmp_path / "mine").write_bytes(b"kept")
    taken = measure(tmp_path, SystemClock(), 30)
    assert 0 < taken.p50_us <= taken.p99_us
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_every_page_is_written_and_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A floor without its sync would be that of the page cache; one of the same bytes again could be skipped."""
    calls: list[Any] = []
    pwrite, sync = os.pwrite, os.fdatasync

    def writing(descriptor: int, data: bytes, at: int) -> int:
        calls.append(data)
        return pwrite(descriptor, data, at)

    def syncing(descriptor: int) -> None:
        calls.append("sync")
        sync(descriptor)

    monkeypatch.setattr(os, "pwrite", writing)
    monkeypatch.setattr(os, "fdatasync", syncing)
    disk.floor(tmp_path, SystemClock(), 5)
    pages = calls[1::2]
    assert [len(page) for page in pages] == [disk.PAGE_BYTES] * 5
    assert len(set(pages)) == 5
    assert calls[2::2] == ["sync"] * 5


def test_names_are_gone_before_anything_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    timed = disk._timed

    def looking(*arguments: Any) -> Taken:
        seen.append([path.name for path in tmp_path.iterdir()])
        return timed(*arguments)

    monkeypatch.setattr(disk, "_timed", looking)
    disk.floor(tmp_path, SystemClock(), 3)
    disk.lmdb_commit(tmp_path, SystemClock(), 3)
    assert seen == [[], []]


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / f"{disk.SCRATCH}left").mkdir()
    disk.lmdb_commit(tmp_path, SystemClock(), 3)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("measure", MEASURED)
def test_directory_that_is_not_there_is_told(tmp_path: Path, measure: Callable[[Path, SystemClock, int], Taken]) -> None:
    with pytest.raises(StoreUnavailable, match="cannot be measured"):
        measure(tmp_path / "gone", SystemClock(), 3)


def test_full_disk_is_told_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(StoreFull, match="No space left"):
        disk.floor(tmp_path, SystemClock(), 3)
    assert list(tmp_path.iterdir()) == []


def test_error_of_lmdb_is_translated(tmp_path: Path) -> None:
    def failing(*_: Any, **__: Any) -> Any:
        raise lmdb.DiskError("a disk that fails")

    with pytest.raises(StoreUnavailable, match=r"measuring the store .* a disk that fails"):
        disk.lmdb_commit(tmp_path, SystemClock(), 3, failing)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("commit_p99_ms", "durability", "delay_ms"), [
    (0.4, "each", 2), (3.0, "each", 2), (3.1, "group", 5), (8.0, "group", 10), (70.0, "group", 100), (9_000.0, "group", 2_000),
])
def test_advice_goes_by_the_slow_commits(tmp_path: Path, commit_p99_ms: float, durability: str, delay_ms: int) -> None:
    """One in a hundred may not wait over 5 ms: where a commit and the delay fit into that, each commit may be synced alone."""
    advice = disk.advise(tmp_path, FAST, Taken(300.0, commit_p99_ms * 1_000))
    assert (advice.durability, advice.group_delay_ms) == (durability, delay_ms)
    assert f"group_delay_ms={delay_ms}" in " ".join(advice.reasons)


def told(path: Path, page: Taken) -> str:
    return " ".join(disk.advise(path, page, FAST).reasons)


def test_advice_warns_of_a_slow_floor_and_of_one_that_is_too_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "file_system", lambda _: "ext4")
    slow, lying, memory = "takes over 1 ms", "faster than any can write", "it is memory"
    plain = told(tmp_path, FAST)
    assert "`process` is faster on any disk, and a power cut" in plain
    assert not any(word in plain for word in (slow, lying, memory))
    assert slow in told(tmp_path, Taken(1_001.0, 4_000.0))
    assert lying in told(tmp_path, Taken(3.0, 5.0))
    monkeypatch.setattr(disk, "file_system", lambda _: "tmpfs")
    assert "This is tmpfs: it is memory" in told(tmp_path, Taken(3.0, 5.0))
