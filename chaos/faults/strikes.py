"""What may become of a call of the C library: the faults of a disk and of a process, and a handler that strikes the N-th call."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from typing import Final, NamedTuple, NoReturn

from chaos.faults.libc import NAMES, SYNCS, WRITES, Call

ALWAYS: Final = 1 << 62
INTERRUPTED_TIMES: Final = 3
"""So often in succession is a call interrupted by the lasting fault: for ever, LMDB would try for ever."""


class Fault(NamedTuple):
    """What becomes of a call of one of the names `on`, and of those that follow, up to `times`, until it is lifted.

    `strike` is for the first of them, `then` for the others, where that is different.  `deadly`: the process does not outlive
    it.  `harmless`: LMDB must get over it, so that nobody is told of anything.
    """

    name: str
    on: frozenset[str]
    strike: Callable[[Call], int]
    times: int = 1
    deadly: bool = False
    harmless: bool = False
    then: Callable[[Call], int] | None = None


def _failing(code: int) -> Callable[[Call], int]:
    return lambda call: call.fail(code)


def _made_and_failed(call: Call) -> int:
    """The bytes arrive, the answer does not; where it lasts, LMDB cannot take back what arrived."""
    call.make()
    return call.fail(errno.EIO)


def _half(call: Call) -> int:
    return call.make(call.length // 2)


def _nothing(_: Call) -> int:
    return 0


def _on(call: Call) -> int:
    return call.make()


def _die() -> NoReturn:
    while True:
        os.kill(os.getpid(), signal.SIGKILL)


def _dead_before(_: Call) -> int:
    _die()


def _dead_within(call: Call) -> int:
    call.make(call.length // 2)
    _die()


def _dead_after(call: Call) -> int:
    call.make()
    _die()


_STORING: Final = WRITES | SYNCS
_TRIED_AGAIN: Final = WRITES - {"write"}
"""What LMDB calls once more where a signal has interrupted it: neither a sync nor the write of a copy."""
_SPACE: Final = _STORING | {"ftruncate"}
FAULTS: Final[dict[str, Fault]] = {fault.name: fault for fault in (
    Fault("EIO", NAMES, _failing(errno.EIO)),
    Fault("EIO, lasting", NAMES, _failing(errno.EIO), ALWAYS),
    Fault("EIO though done", _STORING, _made_and_failed),
    Fault("EIO though done, lasting", _STORING, _made_and_failed, ALWAYS, then=_failing(errno.EIO)),
    Fault("ENOSPC", _SPACE, _failing(errno.ENOSPC)),
    Fault("ENOSPC, lasting", _SPACE, _failing(errno.ENOSPC), ALWAYS),
    Fault("ENOMEM", frozenset({"mmap"}), _failing(errno.ENOMEM)),
    Fault("EINTR", _TRIED_AGAIN, _failing(errno.EINTR), harmless=True),
    Fault("EINTR, lasting", _TRIED_AGAIN, _failing(errno.EINTR), INTERRUPTED_TIMES, harmless=True),
    Fault("EINTR, not tried again", _STORING - _TRIED_AGAIN, _failing(errno.EINTR)),
    Fault("short write", WRITES, _half),
    Fault("short write, lasting", WRITES, _half, ALWAYS),
    Fault("lying sync", SYNCS, _nothing, harmless=True),
    Fault("lying sync, lasting", SYNCS, _nothing, ALWAYS, harmless=True),
    Fault("delay", NAMES, _on, harmless=True),
    Fault("SIGKILL before", NAMES, _dead_before, deadly=True),
    Fault("SIGKILL within", WRITES, _dead_within, deadly=True),
    Fault("SIGKILL after", NAMES, _dead_after, deadly=True),
)}


class Striker:
    """The handler of `libc.redirected`: it counts the calls while it is `armed`, and strikes the N-th that the fault is on.

    `stall` is what a delay does beside: the clocks go on.  `seen` are the names of the calls that were counted, `struck` how
    many of them were hit.
    """

    def __init__(self) -> None:
        self.armed = False
        self.seen: list[str] = []
        self.struck = 0
        self.fault: Fault | None = None
        self.stall: Callable[[], None] = _no_stall
        self._first = 0
        self._met = 0

    def aim(self, fault: Fault | None, first: int = 0, stall: Callable[[], None] | None = None) -> None:
        """From the `first`-th call on, the first being 1; None strikes nothing.  It is not armed by this."""
        self.fault, self._first, self.stall = fault, first, stall or _no_stall
        self.armed, self.seen, self.struck, self._met = False, [], 0, 0

    @property
    def spent(self) -> bool:
        """Whether nothing more will be struck: the fault is over, or was lifted."""
        return self.fault is None or not self.armed or self.struck >= self.fault.times

    def __call__(self, call: Call) -> int:
        """As a handler."""
        if not self.armed:
            return call.make()
        self.seen.append(call.name)
        fault = self.fault
        if fault is None or call.name not in fault.on:
            return call.make()
        self._met += 1
        if self._met < self._first or self.struck >= fault.times:
            return call.make()
        self.struck += 1
        self.stall()
        strike = fault.strike if self.struck == 1 else fault.then or fault.strike
        return strike(call)


def _no_stall() -> None:
    """Nothing waits."""
