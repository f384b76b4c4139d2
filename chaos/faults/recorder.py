"""What a workload does to a directory, written down: each write, sync and name, in their order, and what callers were told.

LMDB's calls are met below Python (`libc.redirected`), the library's own in `os`.  Before and after each of them the directory
is looked at; what differs is what was done in between, whichever way it was done.  Two kinds of files are no part of the
entries, because nobody syncs them and nobody relies on them after a power cut: LMDB's table of readers (`lock.mdb`), and the
files of marks in `owners`, of which `Recording.marks` keeps what they said at each entry.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from chaos.faults import libc
from chaos.faults.images import ROOT, SECTOR_BYTES, Disk, Entry, Named, Noted, Synced, Through, Wrote
from statemachine.store.engine import LMDB_LOCK, OWNERS

MARKS_BYTES: Final = 1 << 16
"""So much of a file of marks is looked at: the slots that a workload fills come first."""
GONE_PROCESS: Final = (1 << 22) + 1
"""No Linux gives a process this number: the one that made the files is gone after a power cut."""
_SYNCS: Final = ("fsync", "fdatasync")
_NAMES: Final = ("mkdir", "rename", "replace", "unlink", "remove", "rmdir")
Marks = dict[str, bytes]


class Recording(NamedTuple):
    """What was there at first, all of it durable, what was done since, and what the files of marks said after each entry."""

    files: dict[int, bytes]
    names: dict[int, dict[str, int]]
    entries: list[Entry]
    marks: list[Marks]

    def disk(self) -> Disk:
        """The disk as it was at first."""
        return Disk(self.files, self.names)

    def marks_at(self, at: int) -> Marks:
        """What the files of marks said when so many entries had been made."""
        return self.marks[at - 1] if at else {}


class _Seen(NamedTuple):
    """A directory at one moment."""

    files: dict[int, bytes]
    names: dict[int, dict[str, int]]


class Recorder:
    """Records one directory; `with recorder.recording(): ...`, then `recorder.recorded()`."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._nodes: dict[int, int] = {root.stat().st_ino: ROOT}
        self._next = ROOT + 1
        self._entries: list[Entry] = []
        self._marks: list[Marks] = []
        self._own_pid = re.compile(rf"(?<=new-){os.getpid()}-\d+$")
        self._seen = self._first = self._look()

    def recorded(self) -> Recording:
        """All of it so far."""
        return Recording(self._first.files, self._first.names, list(self._entries), list(self._marks))

    def note(self, what: Any, *, answers: bool) -> None:
        """Put between the entries what happened beside the disk; `answers` where a caller was told of it."""
        self.observe()
        self._add(Noted(what, answers))

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Within, every call is seen.  Raises libc.Unavailable where LMDB's cannot be."""
        prefix = f"{self._root}/"
        with libc.redirected(self._met, watched=lambda path: path.startswith(prefix)), contextlib.ExitStack() as stack:
            for name in _SYNCS:
                stack.enter_context(_replaced(name, self._syncing(getattr(os, name))))
            for name in _NAMES:
                stack.enter_context(_replaced(name, self._naming(getattr(os, name))))
            yield
            self.observe()

    def _met(self, call: libc.Call) -> int:
        self.observe()
        node = self._node(os.fstat(call.fd).st_ino if call.fd >= 0 else Path(call.path).stat().st_ino)
        through = call.name in libc.WRITES and call.dsync
        done = call.make()
        self.observe()
        if call.name in libc.SYNCS and done == 0:
            self._add(Synced(node))
        elif through and done > 0:
            self._add(Through(node, call.offset, call.offset + done))
        return done

    def _syncing(self, real: Callable[[int], None]) -> Callable[[int], None]:
        def sync(descriptor: int) -> None:
            self.observe()
            real(descriptor)
            node = self._nodes.get(os.fstat(descriptor).st_ino)
            if node is not None:
                self._add(Synced(node))

        return sync

    def _naming(self, real: Callable[..., None]) -> Callable[..., None]:
        def name(*arguments: Any, **options: Any) -> None:
            self.observe()
            real(*arguments, **options)
            self.observe()

        return name

    def _add(self, entry: Entry) -> None:
        self._entries.append(entry)
        self._marks.append(self._read_marks())

    def observe(self) -> None:
        """Write down what has changed since the last look."""
        seen, before = self._look(), self._seen
        self._seen = seen
        places = {(d, name): node for d, inside in seen.names.items() for name, node in inside.items()}
        were = {(d, name): node for d, inside in before.names.items() for name, node in inside.items()}
        gone = {node: place for place, node in were.items() if places.get(place) != node}
        for place, node in places.items():
            if were.get(place) != node:
                self._add(Named(node, place, gone.pop(node, None), folder=node in seen.names))
        for node, place in gone.items():
            if place not in places:  # else another node took its name: a rename over it
                self._add(Named(node, None, place, folder=node in before.names))
        for node, data in seen.files.items():
            old = before.files.get(node, b"")
            if data != old:
                self._add(Wrote(node, tuple(_changed(old, data)), len(data)))
        self._nodes = {inode: node for inode, node in self._nodes.items() if node in seen.files or node in seen.names}

    def _node(self, inode: int) -> int:
        """The number of a file or directory; one that is gone gives its inode back, and its number never."""
        if inode not in self._nodes:
            self._nodes[inode] = self._next
            self._next += 1
        return self._nodes[inode]

    def _look(self) -> _Seen:
        seen = _Seen({}, {})
        waiting = [(self._root, ROOT)]
        while waiting:
            directory, number = waiting.pop()
            inside = seen.names[number] = {}
            for child in sorted(os.scandir(directory), key=lambda c: c.name):
                if child.name == LMDB_LOCK or directory.name == OWNERS:
                    continue
                node = self._node(child.inode())
                inside[self._own_pid.sub(f"{GONE_PROCESS}-1", child.name)] = node
                if child.is_dir(follow_symlinks=False):
                    waiting.append((Path(child.path), node))
                else:
                    seen.files[node] = Path(child.path).read_bytes()
        return seen

    def _read_marks(self) -> Marks:
        """What the files of marks say, without the zeros at the end."""
        found = {}
        for path in sorted(self._root.glob(f"*/{OWNERS}/*")):
            with path.open("rb") as file:
                found[str(path.relative_to(self._root))] = file.read(MARKS_BYTES).rstrip(b"\0")
        if self._marks and found == self._marks[-1]:
            return self._marks[-1]
        return found


def _changed(old: bytes, new: bytes) -> Iterator[tuple[int, bytes]]:
    for at in range(0, len(new), SECTOR_BYTES):
        data = new[at:at + SECTOR_BYTES]
        if data != old[at:at + SECTOR_BYTES]:
            yield at // SECTOR_BYTES, data.ljust(SECTOR_BYTES, b"\0")


@contextlib.contextmanager
def _replaced(name: str, stand_in: Callable[..., Any]) -> Iterator[None]:
    real = getattr(os, name)
    setattr(os, name, stand_in)
    try:
        yield
    finally:
        setattr(os, name, real)
