"""The one door to LMDB: opening, transactions, the writer's turn, map growth, and foreign errors translated.

Read transactions are short: `get` and `scan` open one each and end it, so that no reader keeps old pages alive and the
map may grow at any time.  Writers take an flock of our own first, because LMDB's mutex cannot be waited for with a
limit and ignores signals while waiting.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Final

import lmdb

from statemachine.clock import Clock
from statemachine.errors import ResetError, StoreCorrupt, StoreForeign, StoreFull, StoreUnavailable
from statemachine.store import presence
from statemachine.store.footing import Footing, check_lock, fill
from statemachine.store.turns import POLL_S, Turn, Turns

DATA: Final = "data.mdb"
WRITER_LOCK: Final = "writer.lock"
LMDB_LOCK: Final = "lock.mdb"
OWNERS: Final = "owners"
ANEW: Final = "anew"
"""Where the data file is made anew, in the store's own directory; there only while that is under way."""
MANIFEST: Final = "backup.json"
"""Beside the data of a backup: what it was made of, and the digest of its bytes."""
PARTS: Final = frozenset({DATA, LMDB_LOCK, WRITER_LOCK, OWNERS, MANIFEST})
"""The names in a store or a backup; anything else in a directory is somebody else's."""
SCAN_ROWS: Final = 1_000
LMDB_MAJOR: Final = 0
"""py-lmdb 3 bundles two engines whose files differ; the stores of this schema are written by LMDB 0.9."""
ROOM_BYTES_MIN: Final = 1 << 22
"""With less than this left on the disk, what LMDB calls an I/O error is taken for a full disk; it writes 1 MiB at a time."""
AGREE_TRIES: Final = 20
WRITES_A_CHECK: Final = 256
"""So often is the table of readers cleared of killed ones: until then each keeps old pages, and the file grows."""
HALF_PAGE_KEYS_MAX: Final = 100
"""More keys than half a page of the data file holds, of those that resetguard writes; a search by halves errs no further."""
WAKE_S: Final = 0.05
"""So often does a thread that waits for others look by itself: an interrupt may have kept it from being told."""
_OPEN: dict[tuple[int, int], int] = {}
"""The stores that are open, by the device and inode of their data, with the process that opened them."""
_OPEN_GUARD: Final = threading.Lock()
FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system answers where no more can be written: the disk, the quota or the largest file is reached."""

Opener = Callable[..., lmdb.Environment]
OPENER: Final[Opener] = lmdb.open


_PROCESS: Final = [os.getpid()]
"""The number of this process; asked of the system once, not at each read."""


def _in_child() -> None:
    _PROCESS[0] = os.getpid()
    _OPEN_GUARD.release()


os.register_at_fork(before=_OPEN_GUARD.acquire, after_in_parent=_OPEN_GUARD.release, after_in_child=_in_child)


def translated(error: lmdb.Error, doing: str, path: Path) -> ResetError:
    """The error of our own tree that stands for one of LMDB's about the store at `path`."""
    text, code = f"{doing} the store {path}: {error}", getattr(error, "code", 0)
    if isinstance(error, lmdb.MapFullError) or code in FULL or (code == errno.EIO and _is_full(path)):
        return StoreFull(f"{text}; free some space, then try again: nothing was lost")
    if isinstance(error, lmdb.InvalidError | lmdb.VersionMismatchError | lmdb.IncompatibleError):
        return StoreForeign(f"{text}; this is not a resetguard store, or of another format")
    if isinstance(error, lmdb.CorruptedError | lmdb.PageNotFoundError):
        return StoreCorrupt(f"{text}; restore the store from a backup")
    return StoreUnavailable(text)


def _is_full(path: Path) -> bool:
    """Whether an I/O error may be a full disk: LMDB calls a write that the last free blocks cut short an I/O error."""
    try:
        return shutil.disk_usage(path.parent).free < ROOM_BYTES_MIN
    except OSError:
        return False


def fsync(path: Path) -> None:
    """Make a file or the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _Reading:
    """One read transaction of an engine, among those that a growing map waits for."""

    __slots__ = ("_engine", "_txn")

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __enter__(self) -> lmdb.Transaction[bytes]:
        engine = self._engine
        engine.check()
        try:
            engine._enter(self)  # noqa: SLF001 - a part of the engine
            engine._footing.check()  # noqa: SLF001
            self._txn = engine._begin_reading(self)  # noqa: SLF001
        except BaseException as error:
            engine._left(self)  # noqa: SLF001
            if isinstance(error, lmdb.Error):
                raise translated(error, "reading", engine.path) from error
            raise
        return self._txn

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            self._txn.abort()
        finally:
            self._engine._left(self)  # noqa: SLF001
        if isinstance(error, lmdb.Error):
            raise translated(error, "reading", self._engine.path) from error


class Engine:
    """An open environment.  Threads may share it; a forked child may not use it."""

    def __init__(  # noqa: PLR0913 - each is a setting of its own
        self, path: Path, *, sync: bool, map_bytes: int, map_bytes_max: int, writer_wait_s_max: float, clock: Clock,
        opener: Opener = OPENER, readonly: bool = False, alone: bool = False,
    ) -> None:
        self.path = path
        self.clock = clock
        self.map_bytes_max = map_bytes_max
        self.writer_wait_s_max = writer_wait_s_max
        self.readonly = readonly
        self._settings = {"sync": sync, "opener": opener}
        self._pid = _PROCESS[0]
        # The lock is taken by itself: an interrupt on the way into a `with` of a `Condition` can leave it taken for ever.
        self._gate_lock = threading.Lock()
        self._gate = threading.Condition(self._gate_lock)
        self._reads: set[object] = set()  # one token each: an interrupt cannot count one that is not removed again
        self._growing = False
        self._closed = False
        self._writes = 0
        self._turns = Turns(path / WRITER_LOCK, clock, writer_wait_s_max, self._check_names)
        # Before the data file is looked at, so that nobody can put another one in its place from here on.
        self._presence: int | None = presence.alone(path) if alone else presence.shared(path, clock, writer_wait_s_max)
        try:
            self._key = self._claim()
        except BaseException:
            self._leave_directory()
            raise
        try:
            check_lock(path)
            self._env = self._open_whole(max(map_bytes, (path / DATA).stat().st_size))
            try:
                self._footing = Footing(path / DATA)
            except BaseException:
                self._env.close()
                raise
        except lmdb.Error as error:
            self._release()
            raise translated(error, "opening", path) from error
        except OSError as error:
            self._release()
            message = f"opening the store {path}: {error}"
            raise (StoreFull if error.errno in FULL else StoreUnavailable)(message) from error
        except BaseException:
            self._release()
            raise

    def lengthen(self) -> None:
        """Give a data file that was cut short the length that its meta page tells; call before any other read.

        LMDB reads through a map, where a page that is not there kills the process.  What was cut off becomes pages that LMDB
        refuses with an error; a file whose last pages were never written, as LMDB may leave it, loses nothing.
        """
        data = self.path / DATA
        wanted = (self._env.info()["last_pgno"] + 1) * self._env.stat()["psize"]
        size = data.stat().st_size  # asked after `wanted`: a file that another process writes only grows
        if size >= wanted:
            return
        if self.readonly:
            message = (f"{data} was cut short: it has {size} bytes of {wanted}; open the store for writing to mend what can be, "
                       "or restore it from a backup")
            raise StoreCorrupt(message)
        with self.turn():  # nobody is writing now
            wanted = (self._env.info()["last_pgno"] + 1) * self._env.stat()["psize"]
            try:
                fill(data, self._env.stat()["psize"], wanted)
            except OSError as error:
                message = f"mending the data file {data}, which was cut short: {error}; nothing was lost by it: try again"
                raise (StoreFull if error.errno in FULL else StoreUnavailable)(message) from error

    def _claim(self) -> tuple[int, int]:
        stat = (self.path / DATA).stat()
        key = (stat.st_dev, stat.st_ino)
        with _OPEN_GUARD:
            if _OPEN.get(key, self._pid) != self._pid:  # LMDB cannot let go of it here without harm to the parent
                message = (f"the store {self.path} was open when this process was forked from {_OPEN[key]}; "
                           "fork before opening it, or start the process anew (multiprocessing: spawn)")
                raise StoreUnavailable(message)
            if key in _OPEN:
                message = f"the store {self.path} is already open in this process; share that Store object between threads"
                raise StoreUnavailable(message)
            _OPEN[key] = self._pid
        return key

    def _release(self) -> None:
        with _OPEN_GUARD:
            _OPEN.pop(self._key, None)
        self._leave_directory()

    def _leave_directory(self) -> None:
        descriptor, self._presence = self._presence, None
        if descriptor is None:
            return
        if _PROCESS[0] == self._pid:
            presence.let_go(descriptor)
        else:
            os.close(descriptor)  # the lock is the parent's

    def _open(self, map_bytes: int) -> lmdb.Environment:
        env: lmdb.Environment = self._settings["opener"](  # type: ignore[operator]
            str(self.path), map_size=min(map_bytes, self.map_bytes_max), subdir=True, create=False, mode=0o600, max_dbs=0,
            sync=self._settings["sync"], readonly=self.readonly, max_spare_txns=16, max_readers=1024, lib_version=LMDB_MAJOR,
        )
        env.reader_check()
        return env

    def _open_whole(self, map_bytes: int) -> lmdb.Environment:
        """The environment, with a lock file that says what the data file says.

        Whoever is killed while making the lock file leaves it half made to those who waited for it meanwhile, and LMDB takes it
        as it is.  It is made anew once all of them have let go.
        """
        waited, pause = 0.0, POLL_S[0]
        while True:
            env = self._open(map_bytes)
            if self._agrees(env):
                return env
            env.close()
            if waited >= self.writer_wait_s_max:
                message = (f"the lock file of the store {self.path} says something else than its data file; stop every process "
                           "that has the store open, then start them again")
                raise StoreUnavailable(message)
            pause = min(pause * 1.5, POLL_S[1])
            self.clock.sleep(pause * (1 + os.getpid() % 16))  # they must not all have it open at once again
            waited += pause

    def _agrees(self, env: lmdb.Environment) -> bool:
        for _ in range(AGREE_TRIES):  # between two steps of another's commit they differ
            try:
                with env.begin() as txn:
                    if txn.id() == env.info()["last_txnid"]:
                        return True
            except (lmdb.MapResizedError, lmdb.ReadersFullError):
                return True  # others have it open and write
            self.clock.sleep(POLL_S[0])
        return False

    def close(self) -> None:
        """Make everything durable and let go; a second call does nothing.  In a forked child it only forgets."""
        if self._closed:
            return
        self._closed = True
        if _PROCESS[0] == self._pid:
            with self._gate_lock:
                self._gate.wait_for(lambda: not self._reads, timeout=1.0)
            with contextlib.suppress(lmdb.Error):
                self._env.sync(True)  # noqa: FBT003
            self._let_go()
        self._turns.close()
        self._release()

    def hide(self) -> None:
        """Take the store's directory off the disk: nobody else can open it, and nothing of it outlives this process.

        A scratch store is used like this; it cannot be opened anew after an error of LMDB's.
        """
        self._footing.lose_names()
        self._turns.hide()
        shutil.rmtree(self.path, ignore_errors=True)

    def _let_go(self) -> None:
        self._footing.mend_for_closing()
        self._env.close()
        self._footing.close()  # not before: it would drop LMDB's own lock on the table of readers

    def forget_in_child(self) -> None:
        """In a forked child: close the locks, so that the child keeps neither a turn nor the store from others."""
        self._turns.forget()
        self._leave_directory()

    def check(self) -> None:
        """Raise StoreUnavailable when the store was closed, or this is a child forked while it was open."""
        if self._closed:
            message = f"the store {self.path} is closed"
            raise StoreUnavailable(message)
        if _PROCESS[0] != self._pid:
            message = f"the store {self.path} was opened by process {self._pid}; a forked child cannot use it"
            raise StoreUnavailable(message)

    def check_writable(self) -> None:
        """As `check`, and raise StoreUnavailable when the store was opened for reading."""
        self.check()
        if self.readonly:
            message = f"the store {self.path} was opened for reading and cannot be changed; open it without readonly=True"
            raise StoreUnavailable(message)

    def reading(self) -> _Reading:
        """A short read transaction, for a `with` block; never keep it across a commit."""
        return _Reading(self)

    def _left(self, read: object) -> None:
        self._reads.discard(read)  # a call of C's: no signal is looked for before it is done
        if self._growing or self._closed:
            self._tell_waiting()

    def _enter(self, read: object) -> None:
        with self._gate_lock:
            while self._growing:
                self._gate.wait(WAKE_S)
            self._reads.add(read)

    def _tell_waiting(self) -> None:
        with self._gate_lock:
            self._gate.notify_all()

    def _begin_reading(self, read: object) -> lmdb.Transaction[bytes]:
        try:
            return self._env.begin()
        except lmdb.MapResizedError:  # another process has grown the map
            self._reads.discard(read)
            self._resize(0)
            self._enter(read)
            return self._env.begin()
        except lmdb.ReadersFullError:
            self._env.reader_check()
            return self._env.begin()

    def get(self, key: bytes) -> bytes | None:
        """The newest committed value of `key`."""
        with self.reading() as txn:
            return txn.get(key)

    def scan(self, start: bytes, stop: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        """Keys and values with start <= key < stop, in order, read in chunks of one short transaction each."""
        while True:
            with self.reading() as txn:
                rows = list(_chunk(txn, start, stop, reverse=reverse))
            yield from rows
            if len(rows) < SCAN_ROWS:
                return
            if reverse:
                stop = rows[-1][0]
            else:
                start = rows[-1][0] + b"\0"

    def get_with_first(self, key: bytes, start: bytes, stop: bytes) -> tuple[bytes | None, bytes | None]:
        """As `get`, with the first key of a range, both of one moment."""
        with self.reading() as txn, txn.cursor() as cursor:
            found = cursor.set_range(start) and cursor.key() < stop
            return txn.get(key), cursor.key() if found else None

    def check_absent(self, key: bytes) -> bytes:
        """Raise StoreCorrupt unless the keys around the place of `key` are in order: else a search may pass by what is there.

        Returns the last key before it, b"" where there is none.

        No checksum tells that a key has changed; LMDB searches by halves, and one key out of order hides all on its one side.
        """
        with self.reading() as txn, txn.cursor() as cursor:
            found = cursor.set_range(key)
            after = list(islice(cursor.iternext(values=False), HALF_PAGE_KEYS_MAX)) if found else []
            before = list(islice(cursor.iterprev(values=False), HALF_PAGE_KEYS_MAX)) if _before(cursor, key) else []
        around = [*before[::-1], key, *after]
        if around != sorted(around):
            message = (f"a key of the store {self.path} was changed: around {key!r} they are out of order, and a record may be "
                       "there that cannot be found; restore the store from a backup")
            raise StoreCorrupt(message)
        return before[0] if before else b""

    def first(self, start: bytes, stop: bytes) -> tuple[bytes, bytes] | None:
        """The first key and value with start <= key < stop."""
        with self.reading() as txn, txn.cursor() as cursor:
            if cursor.set_range(start) and cursor.key() < stop:
                return cursor.key(), cursor.value()
        return None

    def ends(self, start: bytes, stop: bytes) -> tuple[bytes | None, bytes | None]:
        """The first and the last key with start <= key < stop, None where there is none."""
        with self.reading() as txn, txn.cursor() as cursor:
            if not (cursor.set_range(start) and cursor.key() < stop):
                return None, None
            first = cursor.key()
            found = cursor.prev() if cursor.set_range(stop) else cursor.last()
            return first, cursor.key() if found else None

    def turn(self) -> Turn:
        """The right to write, for a `with` block, among all processes and threads; StoreBusy after `writer_wait_s_max`.

        Not to be taken again within.
        """
        self.check_writable()
        return self._turns.take()

    def stillness(self) -> contextlib.AbstractContextManager[None]:
        """As `turn`, for a look at what writers change in theirs: the store may be open for reading, and nothing is made."""
        self.check()
        if not self._turns.any():
            return contextlib.nullcontext()  # a backup, or a store that nobody has written yet
        return self._turns.take(make=False)

    def _check_names(self) -> None:
        self._footing.check_names()  # of the present one: opening anew puts another in its place

    def end_turn(self) -> None:
        """Let go of a turn that an interrupt has left taken in this thread, on the way into its `with` or out of it."""
        self._turns.end_mine()

    def write(self) -> lmdb.Transaction[bytes]:
        """A write transaction; call only within `turn`, and end it in the thread that began it.

        Raises StoreUnavailable where it would not follow the newest commit: then another process commits by another table
        of readers, because the lock file was deleted, and one of the two would undo what the other has written.
        """
        if self._writes % WRITES_A_CHECK == 0:
            self._env.reader_check()
        self._writes += 1
        try:
            txn = self._env.begin(write=True)
        except lmdb.MapResizedError:
            self._resize(0)
            txn = self._env.begin(write=True)
        try:
            self._check_newest(txn)
        except BaseException:
            txn.abort()  # whoever keeps the error would keep its frames, and with them LMDB's one lock for writers
            raise
        return txn

    def _check_newest(self, txn: lmdb.Transaction[bytes]) -> None:
        if txn.id() != self._env.info()["last_txnid"] + 1:
            message = (f"the store {self.path} was written by a process with another lock file, and nothing was written here; "
                       "stop every process that has the store open, then start them again, and never delete lock.mdb")
            raise StoreUnavailable(message)

    def update(self, change: Callable[[Callable[[bytes, bytes], object]], object]) -> None:
        """A few puts in a transaction of their own, the map grown where it must be; durable on return.  Call within `turn`."""
        while True:
            try:
                with self.write() as txn:
                    change(txn.put)
            except lmdb.MapFullError:
                self.grow()
            except lmdb.Error as error:
                raise translated(error, "writing", self.path) from error
            else:
                return

    def grow(self) -> None:
        """Double the map; raises StoreFull at the limit.  Call within `turn`, with no transaction of this thread open."""
        now = self._env.info()["map_size"]
        if now >= self.map_bytes_max:
            if self._env.reader_check():
                return  # what killed readers kept is free now
            message = (f"the store {self.path} has reached its limit of {self.map_bytes_max} bytes; "
                       f"{self._behind()}raise map_bytes_max")
            raise StoreFull(message)
        self._resize(min(now * 2, self.map_bytes_max))

    def _behind(self) -> str:
        """Who reads what was replaced long ago, so that its pages are not used again; "" where nobody does."""
        newest = self._env.info()["last_txnid"]
        behind = [(newest - txn, process) for process, txn in self.readers() if txn is not None and newest - txn > 1]
        if not behind:
            return ""
        commits, process = max(behind)
        return f"process {process} has been reading since {commits} commits ago and keeps their pages: end it, or "

    def _resize(self, map_bytes: int) -> None:
        with self._gate_lock:
            self._growing = True
            try:
                while self._reads:
                    self._gate.wait(WAKE_S)
                self._env.set_mapsize(map_bytes)
            except lmdb.Error:
                if map_bytes:  # else a writer of this process has taken the new size over already, and is writing
                    raise
            finally:
                self._growing = False
                self._gate.notify_all()

    def reopen(self) -> None:
        """Close and open the environment again: after a failed write of the meta page LMDB refuses all else."""
        with self._gate_lock:
            self._growing = True
            try:
                self._gate.wait_for(lambda: not self._reads, timeout=self.writer_wait_s_max)
                map_bytes = self._env.info()["map_size"]
                self._let_go()
                self._env = self._open(map_bytes)
                self._footing = Footing(self.path / DATA)
            finally:
                self._growing = False
                self._gate.notify_all()

    def copy_to(self, target: Path) -> None:
        """Write what is committed at one moment to a new file (0600), without free pages; durable on return.

        Other processes may write meanwhile.  In this one, a writer that must grow the map waits until the copy is made.
        Raises StoreFull where the disk of `target` is.
        """
        descriptor = os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        try:
            with self.reading():  # LMDB's copy reads in a transaction of its own, which this one keeps the map for
                try:
                    self._env.copyfd(descriptor, compact=True)
                except lmdb.Error as error:
                    raise translated(error, f"copying to {target}", self.path) from error
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def readers(self) -> list[tuple[int, int | None]]:
        """The reader slots in use: the process, and the commit it reads, None for one between two transactions."""
        with self.reading():
            lines = [line.split() for line in self._env.readers().splitlines()[1:]]
        return [(int(pid), None if txn == "-" else int(txn)) for pid, _, txn in lines]

    def data_file(self) -> int:
        """A descriptor of the data file that is open here, whatever its name is by now; whoever asks closes it."""
        self.check()
        return self._footing.data_file()

    def info(self) -> dict[str, Any]:
        """Map size, pages used and readers, as LMDB counts them."""
        with self.reading():
            return {**self._env.info(), **self._env.stat()}


def rows_of(txn: lmdb.Transaction[bytes], start: bytes, stop: bytes, rows_max: int) -> list[tuple[bytes, bytes]]:
    """The first rows with start <= key < stop, at most `rows_max`; an empty `stop` stands for the end of the store."""
    with txn.cursor() as cursor:
        if not cursor.set_range(start):
            return []
        rows = list(islice(cursor.iternext(), rows_max))
    while stop and rows and rows[-1][0] >= stop:
        rows.pop()
    return rows


def _before(cursor: lmdb.Cursor[bytes], key: bytes) -> bool:
    """Put the cursor on the last key before `key`; whether there is one."""
    return cursor.prev() if cursor.set_range(key) else cursor.last()


def _chunk(txn: lmdb.Transaction[bytes], start: bytes, stop: bytes, *, reverse: bool) -> Iterator[tuple[bytes, bytes]]:
    with txn.cursor() as cursor:
        found = cursor.set_range(stop if reverse else start)
        if reverse:
            found = cursor.prev() if found else cursor.last()
        taken = 0
        while found and taken < SCAN_ROWS:
            key = cursor.key()
            if not start <= key < stop:
                return
            yield key, cursor.value()
            taken += 1
            found = cursor.prev() if reverse else cursor.next()
