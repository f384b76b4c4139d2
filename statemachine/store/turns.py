"""The right to write a store, among all processes and threads: an flock on a file of our own.

LMDB's mutex cannot be waited for with a limit, and ignores signals while it is waited for; whoever has the turn finds it free.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from statemachine.clock import Clock
from statemachine.errors import StoreBusy, StoreUnavailable

POLL_S: Final = (0.0002, 0.005)
"""The first pause of whoever waits for others, and the longest."""
_MAKING: Final = os.O_CREAT | os.O_RDWR | os.O_CLOEXEC


class Turns:
    """The turns of one open environment; `look` is called in each that was taken, and may refuse it."""

    def __init__(self, lock: Path, clock: Clock, wait_s_max: float, look: Callable[[], None]) -> None:
        self._store = lock.parent
        self._lock = lock
        self._clock = clock
        self._wait_s_max = wait_s_max
        self._look = look
        # A descriptor of its own for each: through one that threads share, each would have the lock of the other, and end it.
        self._taken: dict[int, int] = {}
        self._idle: list[int] = []
        self._files: dict[int, os.stat_result] = {}
        self._hidden: int | None = None
        self._closed = False

    def take(self, *, make: bool = True) -> Turn:
        """A turn, for a `with` block; StoreBusy after the longest wait.  Without `make` the lock's file must be there."""
        return Turn(self, make=make)

    def any(self) -> bool:
        """Whether there is a file to lock."""
        return self._hidden is not None or self._lock.exists()

    def hide(self) -> None:
        """The store's directory is about to go: keep the lock's file open, for the one thread that uses the store."""
        self._hidden = os.open(self._lock, _MAKING, 0o600)

    def end_mine(self) -> None:
        """Let go of a turn that an interrupt has left taken in this thread, on the way into its `with` or out of it."""
        for writer in [writer for writer, thread in self._taken.items() if thread == threading.get_ident()]:
            self.end(writer)

    def close(self) -> None:
        """Let go of every file that no thread has a turn by; whoever has one closes it at its end."""
        self._closed = True
        for writer in (*self._idle, *(() if self._hidden is None else (self._hidden,))):
            self._close(writer)
        self._idle, self._hidden = [], None

    def forget(self) -> None:
        """In a forked child, whose parent keeps its turns: let go of every file."""
        taken, self._taken = self._taken, {}
        for writer in taken:
            self._close(writer)
        self.close()

    def open(self, *, make: bool) -> int:
        """A descriptor for this thread's turn."""
        writer = self._again()
        if writer is None:
            try:
                writer = (os.open(self._lock, _MAKING if make else os.O_RDONLY | os.O_CLOEXEC, 0o600) if self._hidden is None
                          else os.dup(self._hidden))
            except OSError as error:
                message = f"opening the store {self._store}: {error}"
                raise StoreUnavailable(message) from error
            self._files[writer] = os.fstat(writer)
        self._taken[writer] = threading.get_ident()
        return writer

    def _again(self) -> int | None:
        """A descriptor of an earlier turn, if it is still that of the file by its name."""
        try:
            writer = self._idle.pop()
        except IndexError:
            return None
        with contextlib.suppress(OSError):
            if os.path.samestat(self._lock.stat(), self._files[writer]):
                return writer
        self._close(writer)
        return None

    def wait(self, writer: int) -> None:
        """Wait for the turn, then look whether it may be used."""
        waited, pause = 0.0, POLL_S[0]
        while True:
            try:
                fcntl.flock(writer, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if waited >= self._wait_s_max:
                    message = (f"another process, or a thread of this one, holds the writer's turn of {self._store} for more "
                               f"than {self._wait_s_max:g} s; see which with fuser, or wait")
                    raise StoreBusy(message) from None
                self._clock.sleep(pause)
                waited, pause = waited + pause, min(pause * 1.5, POLL_S[1])
            else:
                self._look()
                return

    def end(self, writer: int) -> None:
        """Let go of a turn; its descriptor serves a later one."""
        if writer not in self._taken:  # a child forked meanwhile has closed its own
            return
        fcntl.flock(writer, fcntl.LOCK_UN)  # first: an interrupt may come after each of these
        self._taken.pop(writer, None)
        if self._hidden is None and not self._closed:
            self._idle.append(writer)
        else:
            self._close(writer)

    def _close(self, writer: int) -> None:
        self._files.pop(writer, None)
        os.close(writer)


class Turn:
    """One turn of a thread; not to be taken again within."""

    __slots__ = ("_make", "_turns", "_writer")

    def __init__(self, turns: Turns, *, make: bool) -> None:
        self._turns = turns
        self._make = make

    def __enter__(self) -> None:
        """Wait for it."""
        self._writer = self._turns.open(make=self._make)
        try:
            self._turns.wait(self._writer)
        except BaseException:
            self._turns.end(self._writer)
            raise

    def __exit__(self, *_: object) -> None:
        """Let go of it."""
        self._turns.end(self._writer)
