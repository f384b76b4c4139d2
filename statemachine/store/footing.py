"""The two files that LMDB maps, watched while a store is open: a page that is gone kills the process that touches it.

LMDB finds none of this itself.  A data or lock file that is cut short is a SIGBUS.  A lock file that is deleted and made
anew by the next opener admits two writers, each with a table of its own, and the commits of one are lost.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from typing import TYPE_CHECKING, Final

from statemachine.errors import StoreCorrupt, StoreUnavailable

if TYPE_CHECKING:
    from pathlib import Path

LOCK: Final = "lock.mdb"
LOCK_BYTES_MIN: Final = 8192
"""The smallest table of readers that any LMDB makes; into a shorter one that others have mapped, it writes out of bounds."""
LOCK_BYTES: Final = 65_664
"""The table for as many readers as an opening asks for."""
CANNOT_ALLOCATE: Final = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
"""What a file system answers that gives no blocks before they are written."""
NO_PAGE: Final = b"\xff"
"""A page of these bytes says that it is being written, which LMDB as py-lmdb has it refuses with an error, wherever it finds
it.  A page of zeros fails an assertion of LMDB's instead, which kills the process (SIGABRT)."""
FILL_BYTES: Final = 1 << 20
_REMEDY: Final = "stop every process that has the store open, then start them again"


def check_lock(path: Path) -> None:
    """Raise StoreUnavailable where the lock file was cut short while others have it open; call before LMDB opens it.

    Where nobody has it open, LMDB makes it anew.  It maps the file and writes into it, and a disk that has no block for that
    would kill the process (SIGBUS): so the blocks are taken here, with OSError where there are none.  Never call it in a process
    that has the store open: closing any descriptor of the file would drop LMDB's own locks on it.
    """
    try:
        descriptor = os.open(path / LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError:  # there is none that can be written: LMDB says so itself
        return
    try:
        size = os.fstat(descriptor).st_size
        try:
            if size < LOCK_BYTES_MIN:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1)
        except OSError as error:
            message = f"{path / LOCK} was cut short to {size} bytes while another process has the store open; {_REMEDY}"
            raise StoreUnavailable(message) from error
        _take_blocks(descriptor, size if size >= LOCK_BYTES_MIN else LOCK_BYTES)
    finally:
        os.close(descriptor)


def _take_blocks(descriptor: int, size: int) -> None:
    if os.fstat(descriptor).st_blocks * 512 >= size or not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno not in CANNOT_ALLOCATE:
            raise


def fill(data: Path, page_bytes: int, wanted: int) -> None:
    """Fill what was cut off a data file with pages that LMDB refuses, from the front, so that the length tells how far it came.

    A page cut in two goes with them: its keys would lead to nodes that are gone.  Whoever is killed here leaves a file that is
    still cut short, and the next opening does the same.
    """
    descriptor = os.open(data, os.O_WRONLY | os.O_CLOEXEC)
    try:
        at = os.fstat(descriptor).st_size // page_bytes * page_bytes
        while at < wanted:
            at += os.pwrite(descriptor, NO_PAGE * min(FILL_BYTES, wanted - at), at)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Footing:
    """Descriptors of the files that an open environment has mapped.  Close it after the environment, never before."""

    def __init__(self, data: Path) -> None:
        self._data_path = data
        self._lock_path = data.with_name(LOCK)
        self._data = os.open(data, os.O_RDONLY | os.O_CLOEXEC)
        self._lock = -1
        self._lock_bytes = 0
        with contextlib.suppress(OSError):  # LMDB has none where it reads from a file system that cannot be written
            self._lock = os.open(self._lock_path, os.O_RDWR | os.O_CLOEXEC)
            self._lock_bytes = os.fstat(self._lock).st_size
        self._data_bytes = os.fstat(self._data).st_size
        self._files = [(path, os.fstat(descriptor)) for path, descriptor in
                       ((self._lock_path, self._lock), (self._data_path, self._data)) if descriptor >= 0]
        self._named = True

    def lose_names(self) -> None:
        """The files are about to lose their names, on purpose: nobody else will ever open them."""
        self._named = False

    def check(self) -> None:
        """Raise before a page is touched that is not there any more; for each read, and so by the cheapest calls there are.

        StoreCorrupt where the data file has shrunk, StoreUnavailable where the lock file has, or was removed.
        """
        if self._data < 0:
            return  # closed with its environment, which refuses all use itself
        if self._lock >= 0:
            stat = os.fstat(self._lock)
            if (self._named and stat.st_nlink == 0) or stat.st_size < self._lock_bytes:
                self._refuse_lock()
        known = self._data_bytes  # before the size is asked for: another thread may see the file grow meanwhile
        size = os.lseek(self._data, 0, os.SEEK_END)
        if size < known:
            message = (f"{self._data_path} was cut short while it is open: it has {size} bytes of {known}; "
                       f"{_REMEDY}, and restore from a backup what cannot be read then")
            raise StoreCorrupt(message)
        self._data_bytes = size

    def check_names(self) -> None:
        """As `check`, and raise StoreUnavailable where another file has come in the place of one of the two; for each write."""
        self.check()
        for path, own in self._files if self._named else ():
            try:
                there = path.stat()
            except OSError:
                there = None
            if there is None or not os.path.samestat(there, own):
                message = f"{path} was removed or replaced while the store is open, and nothing was written; {_REMEDY}"
                raise StoreUnavailable(message)

    def _refuse_lock(self) -> None:
        message = (f"{self._lock_path} was removed or cut short while the store is open: it keeps writers from "
                   f"overwriting one another; {_REMEDY}")
        raise StoreUnavailable(message)

    def mend_for_closing(self) -> None:
        """Make closing safe where the lock file was cut short: LMDB clears its readers' slots in it, there or not.

        It loses its name first, so that whoever else has it mapped is refused by `check`, and the next opener makes one.
        """
        if self._lock < 0:
            return
        stat = os.fstat(self._lock)
        if stat.st_size < self._lock_bytes:
            with contextlib.suppress(OSError):
                if os.path.samestat(self._lock_path.stat(), stat):
                    self._lock_path.unlink()
            os.ftruncate(self._lock, self._lock_bytes)

    def data_file(self) -> int:
        """Another descriptor of the data file."""
        return os.dup(self._data)

    def close(self) -> None:
        """Let go of the files; a second call does nothing."""
        for descriptor in (self._data, self._lock):
            if descriptor >= 0:
                os.close(descriptor)
        self._data = self._lock = -1
