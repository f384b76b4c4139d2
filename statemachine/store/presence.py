"""Who has a store open: a lock on its directory, shared by all that have it open, exclusive for who makes its file anew.

Whoever replaces the data file must be alone: LMDB's lock file says nothing of which data file a process has mapped, so a
process that went on with the old one would commit into a file that nobody reads.  The lock is taken before the data file
is looked at, and ends with the process, however that ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from statemachine.errors import StoreBusy, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from statemachine.clock import Clock

POLL_S: Final = (0.001, 0.05)
NAMED_MAX: Final = 5
lock_table: Path = Path("/proc/locks")
processes: Path = Path("/proc")
_FLOCK: Final = "FLOCK"
_FIELDS: Final = 6
_BEGAN: Final = 19
"""Which field after the name says when a process began, in ticks since the start of the system (proc(5), starttime)."""
US_A_SECOND: Final = 1_000_000


def shared(directory: Path, clock: Clock, wait_s_max: float) -> int:
    """Be one of those that have the store open; the descriptor of the lock, for `let_go`.

    Waits while somebody makes the store's file anew, and raises StoreBusy after `wait_s_max`.
    """
    waited, pause = 0.0, POLL_S[0]
    with _kept(directory) as descriptor:
        while not _locked(descriptor, fcntl.LOCK_SH):
            if waited >= wait_s_max:
                message = (f"the store {directory} is being made anew (compacted or migrated) by {_told(directory)} for more "
                           f"than {wait_s_max:g} s; try again when that has ended")
                raise StoreBusy(message)
            clock.sleep(pause)
            waited, pause = waited + pause, min(pause * 1.5, POLL_S[1])
    return descriptor


def alone(directory: Path) -> int:
    """Be the only one that has the store open, until `let_go` of the descriptor; raises StoreBusy, saying who else has it."""
    with _kept(directory) as descriptor:
        if not _locked(descriptor, fcntl.LOCK_EX):
            message = (f"the store {directory} is open in {_told(directory)}; its file can be made anew only while no other "
                       "process reads or writes it: end them, then try again")
            raise StoreBusy(message)
    return descriptor


def building(directory: Path) -> int:
    """As `shared`, for a directory that is not in its place yet: it tells whoever cannot see this process that it lives."""
    with _kept(directory) as descriptor:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    return descriptor


def let_go(descriptor: int) -> None:
    """End what `shared` or `alone` began, also where a forked child still has the descriptor."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


def is_free(directory: Path) -> bool:
    """Whether nobody has what lies in the directory open, nor is building it."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return _locked(descriptor, fcntl.LOCK_EX)
    finally:
        os.close(descriptor)


def holders(path: Path) -> list[int]:
    """The processes that hold the lock of a store's directory, or of a file of marks.

    As far as the system tells: on Linux, those of this process's own namespace.
    """
    try:
        here, lines = path.stat(), lock_table.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return []
    exact: set[int] = set()
    others: set[int] = set()
    device = f"{os.major(here.st_dev):02x}:{os.minor(here.st_dev):02x}"
    for line in lines:
        fields = line.split()
        if len(fields) < _FIELDS or fields[1] != _FLOCK or not fields[4].isdigit():
            continue
        on, _, inode = fields[5].rpartition(":")
        if inode == str(here.st_ino) and int(fields[4]):
            (exact if on == device else others).add(int(fields[4]))
    return sorted(exact or others)  # some file systems tell another device to stat than to the table of locks


def since_us(pid: int) -> int | None:
    """When a process began, in microseconds since 1970 UTC; None where the system does not tell."""
    try:
        fields = (processes / str(pid) / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        lines = (processes / "stat").read_text(encoding="ascii", errors="replace").splitlines()
        booted_s = next(int(line.split()[1]) for line in lines if line.startswith("btime "))
        return booted_s * US_A_SECOND + int(fields[_BEGAN]) * US_A_SECOND // os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, StopIteration):
        return None


@contextlib.contextmanager
def _kept(directory: Path) -> Iterator[int]:
    """A descriptor of the directory, closed only where the block raises."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        message = f"the store {directory} cannot be opened: {error}"
        raise StoreUnavailable(message) from error
    try:
        yield descriptor
    except BaseException:
        os.close(descriptor)
        raise


def _locked(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        message = f"the file system of the store has no locks on directories: {error}; put the store on a local disk"
        raise StoreUnavailable(message) from error
    return True


def _told(directory: Path) -> str:
    found = holders(directory)
    if not found:
        return "another process"
    named = [("this process" if pid == os.getpid() else f"process {pid}") + _name(pid) for pid in found[:NAMED_MAX]]
    more = f" and {len(found) - NAMED_MAX} more" if len(found) > NAMED_MAX else ""
    return ", ".join(named) + more


def _name(pid: int) -> str:
    try:
        return f" ({Path('/proc', str(pid), 'comm').read_text(encoding='utf-8', errors='replace').strip()})"
    except OSError:
        return ""


def lives(process: int) -> bool:
    """Whether a process of that number runs on this machine."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
