"""What a machine can run out of, taken from this process and given back: disk, file size, descriptors, reader slots, time.

Limits stick to a process, so all of it belongs in a forked child.
"""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import lmdb

from statemachine.store.engine import Opener

CLONE_NEWNS: Final = 0x00020000
CLONE_NEWUSER: Final = 0x10000000
MS_REC_PRIVATE: Final = 0x44000
MS_REMOUNT: Final = 0x20
BALLAST: Final = "ballast"
_LIBC: Final = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


class CannotMount(Exception):
    """No file system of its own can be mounted by this process."""


def _mount(path: Path, flags: int, options: str) -> None:
    if _LIBC is None:
        message = "only Linux mounts a tmpfs"
        raise CannotMount(message)
    if _LIBC.mount(b"tmpfs", os.fsencode(path), b"tmpfs", ctypes.c_ulong(flags), options.encode()) != 0:
        raise CannotMount(os.strerror(ctypes.get_errno()))


def own_mounts() -> None:
    """From now on what this process mounts is seen by itself and its children alone; raises CannotMount."""
    if _LIBC is None:
        message = "only Linux has name spaces for mounts"
        raise CannotMount(message)
    user, group = os.getuid(), os.getgid()
    if _LIBC.unshare(CLONE_NEWNS) != 0:  # not root: be root in a name space of users of one's own
        if _LIBC.unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0:
            raise CannotMount(os.strerror(ctypes.get_errno()))
        for name, content in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
            try:
                Path(f"/proc/self/{name}").write_text(content, encoding="ascii")
            except OSError as error:  # Ubuntu lets anybody make such a name space, and nobody be root in it
                raise CannotMount(error.strerror) from error
    if _LIBC.mount(b"none", b"/", None, ctypes.c_ulong(MS_REC_PRIVATE), None) != 0:
        raise CannotMount(os.strerror(ctypes.get_errno()))


class SmallDisk:
    """A tmpfs of `size` bytes at `path`, in a process that has called `own_mounts`."""

    def __init__(self, path: Path, size: int) -> None:
        path.mkdir(exist_ok=True)
        self.path = path
        _mount(path, 0, f"size={size},mode=700")

    @property
    def free(self) -> int:
        """The bytes that are left."""
        stat = os.statvfs(self.path)
        return stat.f_bavail * stat.f_bsize

    def fill(self, left: int) -> None:
        """Fill it up with a file, but for `left` bytes."""
        size = self.free - left
        if size > 0:
            with (self.path / BALLAST).open("wb") as file:
                file.write(bytes(size))

    def relieve(self) -> None:
        """Somebody has deleted that file."""
        (self.path / BALLAST).unlink(missing_ok=True)


@contextlib.contextmanager
def limited(what: int, most: int) -> Iterator[None]:
    """Within the block a limit of this process is `most`; a file that would pass one gets an error instead of a signal."""
    soft, hard = resource.getrlimit(what)
    resource.setrlimit(what, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(what, (soft, hard))


def hushed() -> None:
    """From now on this process writes no errors: LMDB tells there, amid a progress bar, of which assertion it dies."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)


def descriptors_used() -> int:
    """One more than the highest descriptor in use, below which all others are taken by `few_descriptors`."""
    return max(int(path.name) for path in Path("/proc/self/fd").iterdir()) + 1


@contextlib.contextmanager
def few_descriptors(left: int) -> Iterator[None]:
    """Within the block this process may open `left` descriptors more."""
    limit = descriptors_used() + left
    taken: list[int] = []
    try:
        with limited(resource.RLIMIT_NOFILE, limit):
            with contextlib.suppress(OSError):
                while True:  # the holes between those in use
                    taken.append(os.dup(0))
            for descriptor in taken[len(taken) - left:] if left else []:
                os.close(descriptor)
            del taken[len(taken) - left:]
            yield
    finally:
        for descriptor in taken:
            os.close(descriptor)


class Readers:
    """An opener of environments whose slots for readers can all be taken."""

    def __init__(self) -> None:
        self._environment: lmdb.Environment | None = None
        self._taken: list[Any] = []

    def __call__(self, *args: Any, **settings: Any) -> lmdb.Environment:
        """Open one, and remember it."""
        self._environment = lmdb.open(*args, **settings)
        return self._environment

    @property
    def opener(self) -> Opener:
        """As `Store.open` takes it."""
        return self

    def take(self, left: int) -> int:
        """Read in every slot that is free, but for the last `left`, and go on reading; how many that are."""
        if self._environment is not None:
            with contextlib.suppress(lmdb.ReadersFullError):
                while True:
                    self._taken.append(self._environment.begin())
        for _ in range(min(left, len(self._taken))):
            self._taken.pop().abort()
        return len(self._taken)

    def give_back(self) -> None:
        """End all of these readings."""
        for txn in self._taken:
            txn.abort()
        self._taken.clear()


class JumpingClock:
    """A clock that stands at `now_us`, and jumps by `by_us` at the `at`-th time it is asked, and back at once or at `settle`."""

    def __init__(self, now_us: int, at: int, by_us: int, *, lasting: bool) -> None:
        self._now_us = now_us
        self._at = at
        self._by_us = by_us
        self._lasting = lasting
        self._ticks = 0
        self.asked = 0

    @property
    def jumped(self) -> bool:
        """Whether it has come to that."""
        return self.asked >= self._at

    def now_us(self) -> int:
        """The wall time, which jumps."""
        self.asked += 1
        gone = self.asked >= self._at if self._lasting else self.asked == self._at
        return self._now_us + (self._by_us if gone else 0)

    def monotonic_us(self) -> int:
        """A microsecond more each time: it never jumps."""
        self._ticks += 1
        return self._ticks

    def sleep(self, seconds: float) -> None:
        """Nobody else writes."""
        self._ticks += int(seconds * 1_000_000)

    def settle(self) -> None:
        """Somebody has set it right."""
        self._by_us = 0
