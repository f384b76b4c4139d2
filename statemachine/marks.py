"""Marks: one memory-mapped, locked file an owner, holding the audit row to write for each attempt if nothing else is.

A slot is filled before user code runs, at no fsync of its own: the page cache keeps it when the process dies.  Whoever
finds the file unlocked afterwards settles it.  Slot: state (1) | zero (1) | length (2) | CRC-32 of the content (4) | content;
the state byte is written last, so that a slot half-written by a dying process is empty.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import zlib
from pathlib import Path
from typing import Final

import msgspec

from statemachine.audit import Entry, Personal, Public
from statemachine.errors import StoreUnavailable
from statemachine.state import user_key

SLOT_BYTES: Final = 1024
SLOTS: Final = 2048
TEXT_BYTES_MAX: Final = 90
ATTEMPT_BYTES: Final = 16
ASIDE: Final = ".unread"
OWNER_MAX: Final = 2**64 - 1
OWNER_DIGITS_MAX: Final = len(str(OWNER_MAX))
CUT: Final = ("kind", "suspect", "trigger", "reason", "actor", "error")
_SLOT: Final = struct.Struct("<BxHI")

FREE: Final = 0
RUNNING: Final = 1
WAITING: Final = 2
ENDED: Final = 3


class Mark(msgspec.Struct, frozen=True, array_like=True):
    """What a slot holds: the attempt, and the row that will stand for it if nothing else does."""

    state: int
    event: str
    outcome: str
    attempt_id: str
    user: str
    kind: str
    suspect: str
    base_version: int
    generation: int
    at_us: int
    trigger: str = ""
    reason: str = ""
    actor: str = ""
    error: str = ""

    def entry(self) -> Entry:
        """The row that this mark stands for."""
        public = Public(event=self.event, outcome=self.outcome, attempt_id=self.attempt_id, kind=self.kind,
                        base_version=self.base_version, breaker_generation=self.generation)
        return Entry(public, Personal(user=self.user, at_us=self.at_us, trigger=self.trigger, reason=self.reason,
                                      actor=self.actor, error=self.error))


def cut(text: str) -> str:
    """The beginning of a text, of so few bytes that a slot holds every text of a mark together."""
    return text.encode("utf-8", "replace")[:TEXT_BYTES_MAX].decode("utf-8", "ignore")


class Marks:
    """The file of marks of this process; its lock lives as long as the process, or until `close`.

    Threads share it without a lock of their own: each step on the list and the dict is one that Python makes whole, and
    so an interrupt can leave none of them taken.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _allocate(self._descriptor, SLOT_BYTES * SLOTS)
            self._map = mmap.mmap(self._descriptor, SLOT_BYTES * SLOTS)
        except BaseException:
            path.unlink(missing_ok=True)
            os.close(self._descriptor)
            raise
        self._free = list(range(SLOTS - 1, -1, -1))
        self._ended: dict[int, Mark] = {}
        self._let_go = False  # then the file is the next owner's, and the map stays for threads that hold attempts still

    @property
    def full(self) -> bool:
        """Whether few slots are left, so that a commit should come first."""
        return len(self._free) < SLOTS // 8

    def fill(self, mark: Mark) -> int:
        """Put the mark into a free slot; its number.  Survives the death of the process on return, not a power cut."""
        try:
            slot = self._free.pop()
        except IndexError:
            message = f"{SLOTS} attempts are under way in this process; end some before beginning more"
            raise StoreUnavailable(message) from None
        if self._let_go:  # asked after the slot was taken: `close` either finds it taken, or is found here
            self._free.append(slot)
            message = f"the store of {self.path} is closed"
            raise StoreUnavailable(message)
        self._put(slot, mark)
        return slot

    def write(self, slot: int, mark: Mark) -> None:
        """Change what a slot says; one of state ENDED is written to the audit log by the next commit.

        After `close`, this and what follows change nothing: the next opening writes what the file says then.
        """
        if not self._let_go:
            self._put(slot, mark)

    def _put(self, slot: int, mark: Mark) -> None:
        content = msgspec.msgpack.encode(mark)
        start = slot * SLOT_BYTES
        if len(content) > SLOT_BYTES - _SLOT.size:
            content = msgspec.msgpack.encode(msgspec.structs.replace(mark, **{n: cut(getattr(mark, n)) for n in CUT}))
        self._map[start] = FREE
        self._map[start:start + _SLOT.size + len(content)] = _SLOT.pack(FREE, len(content), zlib.crc32(content)) + content
        self._map[start] = mark.state
        if mark.state == ENDED:
            self._ended[slot] = mark

    def state(self, slot: int, state: int) -> None:
        """Change only whether user code is running."""
        if not self._let_go:
            self._map[slot * SLOT_BYTES] = state

    def release(self, slot: int) -> None:
        """Empty a slot whose attempt has its outcome in the log; nothing of what it said stays in the file."""
        if self._let_go:
            return
        start = slot * SLOT_BYTES
        self._map[start] = FREE
        self._map[start:start + SLOT_BYTES] = bytes(SLOT_BYTES)
        self._ended.pop(slot, None)
        self._free.append(slot)

    def ended(self) -> dict[int, Mark]:
        """The rows that wait for the next commit, by slot, oldest first."""
        return self._ended.copy()

    def close(self) -> None:
        """Let go of the lock and remove the file; an attempt that nobody has ended stays in it, for the next opening."""
        if self._let_go or self._map.closed:
            return
        self._let_go = True  # before it is asked what is left: other threads may be beginning attempts at this moment
        left = set(range(SLOTS)).difference(self._free)
        running = left.difference(self._ended)
        for slot in running:
            if self._map[slot * SLOT_BYTES] == RUNNING:
                self._map[slot * SLOT_BYTES] = WAITING  # its process did not die of it
        if not left:
            self.path.unlink(missing_ok=True)
        self._unlock()

    def abandon(self) -> None:
        """Let go of the lock and leave the file for the next owner to settle; a second call does nothing."""
        if not self._let_go and not self._map.closed:
            self._let_go = True
            self._unlock()

    def _unlock(self) -> None:
        # The map stays until the last thread that has this object is done with it, and has a descriptor of its own.
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        os.close(self._descriptor)

    def forget_in_child(self) -> None:
        """In a forked child: close the file, so that the child does not keep the parent's lock."""
        self._map.close()  # it has a descriptor of its own
        os.close(self._descriptor)


def _allocate(descriptor: int, size: int) -> None:
    """Give the file its blocks, not a hole: on a full disk a first write into a hole would kill the process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
        return
    left = size  # macOS has no such call
    while left:
        left -= os.write(descriptor, bytes(left))
    os.fsync(descriptor)  # a file system that gives blocks late says here that it has none


class DeadMarks:
    """Another owner's file, taken over: None of its slots can change any more."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.unread: list[int] = []
        self._descriptor = descriptor

    @classmethod
    def take(cls, path: Path) -> DeadMarks | None:
        """Lock the file of an owner that is gone; None while it lives (a stopped process lives)."""
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        return cls(path, descriptor)

    def marks(self) -> list[Mark]:
        """Every whole mark in the file, in the order of its slots, with the state it was left in.

        `unread` then names the slots whose checksum is right and which hold no mark as this program knows it.
        """
        found, self.unread = _whole(self._descriptor)
        return found

    def remove(self) -> None:
        """Delete the file; its rows are in the log."""
        self.path.unlink(missing_ok=True)
        os.close(self._descriptor)

    def set_aside(self) -> None:
        """Keep the file, under a name that nobody settles: its rows are in the log but for those of `unread`."""
        self.path.rename(self.path.with_name(self.path.name + ASIDE))
        os.close(self._descriptor)

    def leave(self) -> None:
        """Let go of it unsettled."""
        os.close(self._descriptor)


def files(owners: Path) -> list[tuple[int, Path]]:
    """The files of marks in the directory of a store's owners, each with its owner's number, in the order of their names.

    What else lies there is somebody else's and is passed over: it stops nobody.  Raises StoreUnavailable where the directory
    cannot be read.
    """
    try:
        return [(number, path) for path in sorted(owners.iterdir(), key=lambda p: p.name)
                if (number := _owner(path.name)) is not None and path.is_file()]
    except OSError as error:
        message = f"the files of marks in {owners} cannot be read: {error}; it must be a directory of this store alone"
        raise StoreUnavailable(message) from error


def _owner(name: str) -> int | None:
    """The owner of a file of that name, written as a store writes it; None for any other name."""
    if not (name.isascii() and name.isdigit() and len(name) <= OWNER_DIGITS_MAX and name[0] != "0"):
        return None
    number = int(name)
    return number if number <= OWNER_MAX else None


def under_way(path: Path) -> list[Mark]:
    """The attempts that an owner has begun and not ended, as its file says at this moment; it may live and write meanwhile."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return []
    try:
        return [mark for mark in _whole(descriptor)[0] if mark.state != ENDED]
    finally:
        os.close(descriptor)


def _whole(descriptor: int) -> tuple[list[Mark], list[int]]:
    """The whole marks of a file by slot, and the slots of a right checksum that hold no mark as this program knows it."""
    found, unread = [], []
    data = os.pread(descriptor, SLOT_BYTES * SLOTS, 0)
    for slot, state in enumerate(data[:len(data) // SLOT_BYTES * SLOT_BYTES:SLOT_BYTES]):
        if state == FREE:  # nearly all of them: nothing else of them is looked at
            continue
        start = slot * SLOT_BYTES
        _, length, checksum = _SLOT.unpack_from(data, start)
        content = data[start + _SLOT.size:start + _SLOT.size + length]
        if zlib.crc32(content) != checksum:
            continue
        mark = _decoded(content)
        if mark is None:
            unread.append(slot)
            continue
        found.append(msgspec.structs.replace(mark, state=state))
    return found, unread


def _decoded(content: bytes) -> Mark | None:
    try:
        mark = msgspec.msgpack.decode(content, type=Mark)
        user_key(mark.user)
        whole = len(bytes.fromhex(mark.attempt_id.replace("-", ""))) == ATTEMPT_BYTES
    except (msgspec.MsgspecError, ValueError):  # msgspec answers text that is no UTF-8 with a ValueError
        return None
    return mark if whole else None
