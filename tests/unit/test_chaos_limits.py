"""What is taken from a process is really lacking, and is there again afterwards."""

from __future__ import annotations

import errno
import os
import pathlib
import resource
from typing import TYPE_CHECKING

import lmdb
import pytest

from chaos import watched
from chaos.faults import limits

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("left", [0, 1, 5])
def test_so_many_descriptors_are_left(left: int) -> None:
    with limits.few_descriptors(left):
        opened = [os.open("/dev/null", os.O_RDONLY) for _ in range(left)]
        with pytest.raises(OSError, match="Too many open files"):
            os.open("/dev/null", os.O_RDONLY)
        for descriptor in opened:
            os.close(descriptor)
    os.close(os.open("/dev/null", os.O_RDONLY))


def test_a_file_grows_to_its_limit_and_no_further(tmp_path: Path) -> None:
    with limits.limited(resource.RLIMIT_FSIZE, 10), (tmp_path / "f").open("wb", buffering=0) as file:
        assert file.write(bytes(20)) == 10
        with pytest.raises(OSError, match="File too large"):
            file.write(b"x")
    assert (tmp_path / "f").write_bytes(bytes(20)) == 20


@pytest.mark.parametrize("left", [0, 2])
def test_all_reader_slots_but_some_are_taken(tmp_path: Path, left: int) -> None:
    readers = limits.Readers()
    env = readers(str(tmp_path), max_readers=8, lib_version=0)
    assert readers.take(left) == 8 - left
    free = [env.begin() for _ in range(left)]
    with pytest.raises(lmdb.ReadersFullError):
        env.begin()
    for txn in free:
        txn.abort()
    readers.give_back()
    env.begin().abort()
    env.close()


def test_a_small_disk_fills_and_is_relieved(tmp_path: Path) -> None:
    """In a child with mounts of its own, as root or in a name space of users; what cannot be mounted is said."""
    def work(_: None) -> str:
        try:
            limits.own_mounts()
        except limits.CannotMount as error:
            return f"cannot mount: {error}"
        disk = limits.SmallDisk(tmp_path / "disk", 1 << 20)
        disk.fill(8_192)
        try:
            (disk.path / "f").write_bytes(bytes(20_000))
        except OSError as error:
            full = error.errno == errno.ENOSPC
        disk.relieve()
        return "full, then free" if full and (disk.path / "f").write_bytes(bytes(20_000)) else "never full"

    answers = [answer for _, answer in watched.each([None], work)]
    if str(answers[0]).startswith("cannot mount"):
        pytest.skip(str(answers[0]))
    assert answers == ["full, then free"]
    assert not list((tmp_path / "disk").glob("*")), "nobody else sees it"


@pytest.mark.parametrize(("lasting", "expected"), [(False, [100, 100, 107, 100]), (True, [100, 100, 107, 107])])
def test_a_clock_jumps_when_it_is_asked_so_often(lasting: bool, expected: list[int]) -> None:
    clock = limits.JumpingClock(100, 3, 7, lasting=lasting)
    assert [clock.now_us() for _ in range(4)] == expected
    assert clock.jumped
    clock.settle()
    assert clock.now_us() == 100
    before = clock.monotonic_us()
    assert clock.monotonic_us() > before


@pytest.mark.parametrize("denied", ["unshare", "uid_map", "mount"])
def test_where_no_disk_can_be_mounted_it_says_so(monkeypatch: pytest.MonkeyPatch, denied: str) -> None:
    """Ubuntu since 24.04 lets a process that is not root make a name space, and not write its map of users."""
    class Libc:
        def unshare(self, what: int) -> int:
            return -1 if denied == "unshare" or what == limits.CLONE_NEWNS else 0

        def mount(self, *_: object) -> int:
            return -1 if denied == "mount" else 0

    def write(path: Path, *_: object, **__: object) -> None:
        if path.name == denied:
            raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(limits, "_LIBC", Libc())
    monkeypatch.setattr(pathlib.Path, "write_text", write)
    with pytest.raises(limits.CannotMount):
        limits.own_mounts()


def test_a_hushed_process_writes_no_errors(capfd: pytest.CaptureFixture[str]) -> None:
    def work(_: None) -> None:
        limits.hushed()
        os.write(2, b"an assertion of LMDB")

    assert [found for _, found in watched.each([None], work)] == [None]
    assert capfd.readouterr().err == ""
