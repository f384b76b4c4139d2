"""What threads share with the system, modelled for the scheduler: locks and conditions, LMDB's writer mutex, the writer's flock.

`modelled()` puts the models in the place of `threading` in the library's modules, for stores that are opened in it.  They keep
to what the real ones promise, and no more: who waits for a lock is not served in any order.  What the real ones only
answer with a wait in C, or with silent damage, is told in `faults`: a lock freed by another thread than holds it, a write
transaction committed while nobody holds the writer's turn.
"""

from __future__ import annotations

import contextlib
import fcntl
import sys
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any, Final, NoReturn

import lmdb

from chaos.faults.scheduler import Abandoned, point, running
from statemachine import audit, transaction
from statemachine.audit import Row
from statemachine.store import committer, engine, turns
from statemachine.testing import ManualClock

MODULES: Final = (audit, committer, engine, transaction)
"""The modules of the library that make locks which threads may wait for."""
OUTSIDE: Final = "outside"
faults: list[str] = []
"""What was done with locks that must not be done; emptied by whoever begins a trial."""


class Quiet:
    """The makers at whose locks the scheduler is not asked while they are free."""

    makers: tuple[str, ...] = ()


def _me() -> Any:
    run = running()
    return OUTSIDE if run is None or run.current is None else run.current


def _wait(ready: Callable[[], bool], what: str, *, limited: bool) -> bool:
    run = running()
    if run is None or run.current is None:
        message = f"{what} is held by a thread that was ended"
        raise Abandoned(message)
    return run.block(ready, what, limited=limited)


def _fail(what: str) -> NoReturn:
    faults.append(what)
    raise RuntimeError(what)


def _woken() -> None:
    run = running()
    if run is not None:
        run.woken()


class Lock:
    """`threading.Lock`."""

    def __init__(self, name: str = "") -> None:
        self._maker, made = ("", name) if name else _maker()
        self.name = made
        self._holder: Any = None

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:  # noqa: FBT001, FBT002 - as the real one
        """Take it, waiting if need be."""
        if self._maker not in Quiet.makers:
            point()
        while self._holder is not None:
            if not blocking or not _wait(lambda: self._holder is None, self.name, limited=timeout >= 0):
                return False
        self._holder = _me()
        return True

    def release(self) -> None:
        """Let it go."""
        if self._holder is None:
            _fail(f"{self.name} was let go of by {_shown(_me())}, and nobody held it")
        if self._holder is not _me() and running() is not None:
            faults.append(f"{self.name}, held by {_shown(self._holder)}, was let go of by {_shown(_me())}")
        self._holder = None
        _woken()

    def locked(self) -> bool:
        """Whether somebody holds it."""
        return self._holder is not None

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


class RLock(Lock):
    """`threading.RLock`."""

    def __init__(self, name: str = "") -> None:
        super().__init__(name)
        self.count = 0

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:  # noqa: FBT001, FBT002 - as the real one
        """Take it, once more where it is held by the same thread."""
        if self._holder is not _me() and not super().acquire(blocking, timeout):
            return False
        self.count += 1
        return True

    def release(self) -> None:
        """Let it go, once."""
        if self._holder is not _me():
            _fail(f"{self.name} was let go of by {_shown(_me())}, and {_shown(self._holder)} held it")
        self.count -= 1
        if not self.count:
            super().release()


class Condition:
    """`threading.Condition`, over the lock that is given or an RLock of its own."""

    def __init__(self, lock: Lock | None = None) -> None:
        self._lock = RLock() if lock is None else lock
        self._waiting: list[list[bool]] = []

    def __enter__(self) -> bool:
        return self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def acquire(self) -> bool:
        """Take its lock."""
        return self._lock.acquire()

    def release(self) -> None:
        """Let go of its lock."""
        self._lock.release()

    def wait(self, timeout: float | None = None) -> bool:
        """Let go of the lock until notified."""
        told = [False]
        self._waiting.append(told)
        lock, count = self._lock, 1
        if isinstance(lock, RLock):
            count, lock.count = lock.count, 1
        lock.release()
        try:
            return _wait(lambda: told[0], f"{self._lock.name} to be notified", limited=timeout is not None)
        finally:
            if told in self._waiting:
                self._waiting.remove(told)
            lock.acquire()
            if isinstance(lock, RLock):
                lock.count = count

    def wait_for(self, predicate: Callable[[], bool], timeout: float | None = None) -> bool:
        """Wait until `predicate()`."""
        while not predicate():
            if not self.wait(timeout):
                return predicate()
        return True

    def notify_all(self) -> None:
        """Wake whoever waits."""
        for told in self._waiting:
            told[0] = True
        self._waiting.clear()
        _woken()


def _shown(holder: Any) -> str:
    return f"thread {holder.index}" if hasattr(holder, "index") else "nobody" if holder is None else OUTSIDE


def _maker() -> tuple[str, str]:
    """Which class of the library makes the lock, and where."""
    frame = sys._getframe(1)  # noqa: SLF001 - the caller's name, and nothing else
    while frame.f_back is not None and frame.f_code.co_filename == __file__:
        frame = frame.f_back
    maker = frame.f_code.co_qualname.removesuffix(".__init__")
    return maker, f"the lock of {maker}, line {frame.f_lineno}"


class Writing:
    """A write transaction; it ends in the thread that began it, and lets go of the writer mutex then."""

    def __init__(self, txn: lmdb.Transaction[bytes], mutex: Lock, turn: Turn) -> None:
        self._thread = _me()
        self._txn, self._mutex, self._turn = txn, mutex, turn
        self.get, self.put, self.delete, self.cursor, self.id = txn.get, txn.put, txn.delete, txn.cursor, txn.id
        self._over = False

    def commit(self) -> None:
        """Make it durable."""
        point()
        if _me() not in self._turn.held.values() and running() is not None:
            faults.append(f"{_shown(_me())} committed a write transaction and did not have the writer's turn")
        try:
            self._txn.commit()
        finally:
            self._end()
        point()

    def abort(self) -> None:
        """Drop it."""
        self._txn.abort()
        self._end()

    def _end(self) -> None:
        if not self._over:
            self._over = True
            if self._thread is not _me():
                faults.append(f"the write transaction of {_shown(self._thread)} was ended by {_shown(_me())}")
            self._mutex.release()

    def __enter__(self) -> Writing:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.commit()
        else:
            self.abort()


class Environment:
    """An LMDB environment whose writer mutex is modelled, and at which threads may be switched; all else is the real one's."""

    def __init__(self, env: lmdb.Environment, turn: Turn) -> None:
        self.real = env
        self.mutex = Lock("LMDB's writer mutex")
        self._turn = turn

    def begin(self, *, write: bool = False) -> Any:
        """A transaction; a write one once no other thread has one."""
        if not write:
            point()
            return self.real.begin()
        self.mutex.acquire()
        try:
            return Writing(self.real.begin(write=True), self.mutex, self._turn)
        except BaseException:
            self.mutex.release()
            raise

    def is_closed(self) -> bool:
        """Whether it was closed."""
        try:
            self.real.info()
        except lmdb.Error:
            return True
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


class Turn:
    """The flock of the writer's turn, which the system gives to an open file; `held` says which thread took it for which."""

    def __init__(self) -> None:
        self.held: dict[int, Any] = {}
        self.LOCK_EX, self.LOCK_NB, self.LOCK_UN, self.LOCK_SH = fcntl.LOCK_EX, fcntl.LOCK_NB, fcntl.LOCK_UN, fcntl.LOCK_SH

    def flock(self, descriptor: int, how: int) -> None:
        """Take it, where no other open file has it, or leave it."""
        point()
        fcntl.flock(descriptor, how)
        if how == fcntl.LOCK_UN:
            self.held.pop(descriptor, None)
        else:
            self.held[descriptor] = _me()


class Clock(ManualClock):
    """A clock that is moved by who sleeps; the other threads go on meanwhile."""

    def sleep(self, seconds: float) -> None:
        """Move on by `seconds`."""
        super().sleep(seconds)
        run = running()
        if run is not None:
            run.rest()


class Collected(audit.Emitter):
    """An emitter that keeps the numbers of the rows it was given, and hands them to nobody."""

    def __init__(self) -> None:
        super().__init__()
        self.seqs: list[int] = []

    def _put(self, item: tuple[Row, dict[str, Any] | None] | audit.Note) -> None:
        if not isinstance(item, audit.Note):
            self.seqs.append(item[0].public.seq)


class Modelled:
    """The patch, which can be put on and taken off again and again; stores opened under it are used under it alone."""

    def __init__(self) -> None:
        self.turn = Turn()
        self.opened: list[Environment] = []
        shim = types.SimpleNamespace(**{**vars(threading), "Lock": Lock, "RLock": RLock, "Condition": Condition})
        self._names: list[tuple[Any, str, Any]] = [(module, "threading", shim) for module in MODULES]
        self._names += [(turns, "fcntl", self.turn), (engine, "_OPEN_GUARD", Lock("the guard of open stores")),
                        (audit, "Emitter", Collected)]

    def opener(self, path: str, **settings: Any) -> Any:
        """For `Store.open`: an environment of which the writer mutex is modelled."""
        self.opened.append(Environment(lmdb.open(path, **settings), self.turn))
        return self.opened[-1]

    def left_open(self) -> int:
        """How many of the environments opened so far are open still; they are forgotten by this."""
        opened, self.opened = self.opened, []
        return sum(not environment.is_closed() for environment in opened)

    @contextlib.contextmanager
    def on(self) -> Iterator[None]:
        """While this lasts, the library makes modelled locks."""
        before = [(owner, name, getattr(owner, name)) for owner, name, _ in self._names]
        for owner, name, value in self._names:
            setattr(owner, name, value)
        try:
            yield
        finally:
            for owner, name, value in before:
                setattr(owner, name, value)
