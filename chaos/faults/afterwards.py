"""After the power cut: an image is laid into a directory, read, judged, and gone on with, as the next process would.

One `Afterwards` judges the images of one scene, in a child process that may die of one.  A store is read by itself first:
what was told before the cut must be there, whatever the opening for writing mends.  What two images hold alike, record by
record, is judged once.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import xxhash

from chaos import checker, history
from chaos.faults import scenes
from chaos.faults.images import SECTOR_BYTES, Cut, Image, Tree, built
from chaos.faults.recorder import Marks
from chaos.faults.scenes import BACKUP, LATER, STORE, Answer, Done, Scene
from chaos.history import Asked, Event, Told
from chaos.oracle import Oracle
from chaos.target import Target
from chaos.workload import USERS, Client, Op
from statemachine import ResetError, Store, marks
from statemachine.marks import SLOT_BYTES
from statemachine.store import keys
from statemachine.store.engine import ANEW, DATA, LMDB_LOCK, OWNERS, rows_of

ROWS_MAX: Final = 1 << 20
DAYS_LATER: Final = 1
WENT_ON_WITH: Final = 8
"""Beside the first image of each content, one in so many is gone on with."""
AS_TOLD: Final = "as it was told"
LANDED: Final = "the commit under way had landed"
ABSENT: Final = "not there yet"
WHOLE: Final = "there whole"
OLD: Final = "the old file"
NEW: Final = "the new file"
REFUSED: Final = "refused to open"
WENT_BACK: Final = "went back"
_LOCKS: Final = (None, b"", bytes(8192), b"\xff" * 8192)
"""What the table of readers may be after a power cut, beside what it was: gone, or of any bytes."""
MARKS: Final = ("lost", "as at the cut", "stale", "torn")


class Came(msgspec.Struct, frozen=True):
    """What came of an image; `went_on` where more was written on it."""

    outcome: str
    violations: tuple[str, ...] = ()
    went_on: bool = False


class Afterwards:
    """Judges the images of a scene in a directory of its own, `root`; with `every` it goes on with each of them."""

    def __init__(self, target: Target, scene: Scene, root: Path, *, every: bool = False) -> None:
        self._target = target
        self._scene = scene
        self._root = root
        self._every = every
        self._laid: list[str] | None = None
        self._used = True
        self._found: dict[str, checker.Found] = {}
        self._known: dict[tuple[Any, ...], tuple[str, ...]] = {}
        self._contents = set[tuple[int, str]]()

    def judge(self, image: Image) -> Came:
        """What came of one image, if anything: the library may end the process, or hang."""
        cut = self._scene.cuts[image.cut]
        try:
            if self._scene.kind in scenes.COMMITS:
                return self._commits(cut, image)
            return {"creation": self._creation, "compaction": self._compaction, "backup": self._backup,
                    "restore-store": self._restoring}[self._scene.kind](cut, image)
        except Exception as error:  # noqa: BLE001 - whatever comes out of the library here is a finding
            return Came(REFUSED, (f"typed: {type(error).__name__}: {error}",))

    def _commits(self, cut: Cut, image: Image) -> Came:
        store, tree = self._root / STORE, built(cut, image)
        self._lay(tree, image)
        told = [note for note in self._scene.told(cut) if isinstance(note, Answer)]
        read = _Read()
        broken = self._read_only(store, cut, read)
        if broken and not read.content:
            return Came(REFUSED, broken)
        promised = max((note.commit for note in told if isinstance(note.event, Told)), default=0)
        if read.commit < promised:
            broken += (f"durable: the store is at commit {read.commit}; what was told was in commit {promised}",)
        outcome = WENT_BACK if read.commit < promised else LANDED if read.commit > promised else AS_TOLD
        new = (cut.notes, read.content) not in self._contents
        self._contents.add((cut.notes, read.content))
        if broken or not (self._every or new or image.key % WENT_ON_WITH == 0):
            return Came(outcome, broken)
        which = MARKS[image.key // WENT_ON_WITH % len(MARKS)]
        if new and any(self._scene.recording.marks_at(cut.at).values()):
            which = "as at the cut"
        for left in MARKS if self._every else (which,):
            self._lay(tree, image)
            self._lay_marks(cut, image, left)
            broken += self._go_on(store, cut, image, marks_lost=left != "as at the cut")
        return Came(outcome, broken, went_on=True)

    def _creation(self, cut: Cut, image: Image) -> Came:
        store = self._root / STORE
        self._lay_anew(built(cut, image))
        told = _told(self._scene, cut)
        if not (store / DATA).exists():
            return Came(ABSENT, _lost("store", told) + self._go_on(store, cut, image) + self._left_over(), went_on=True)
        read = _Read()
        broken = self._read_only(store, cut, read)
        if told and not broken and read.store_id != told:
            broken += (f"durable: the store {told} was made, and {read.store_id} is there",)
        return Came(WHOLE if read.content else REFUSED, broken or self._go_on(store, cut, image), went_on=not broken)

    def _compaction(self, cut: Cut, image: Image) -> Came:
        store = self._root / STORE
        self._lay_anew(built(cut, image))
        read = _Read()
        broken = self._read_only(store, cut, read)
        if broken and not read.content:
            return Came(REFUSED, broken)
        new, told = read.last_event == "store.compacted", _told(self._scene, cut)
        if told and not new:
            broken += (f"durable: the compaction {told} was told, and is not there",)
        if not broken:
            broken = self._go_on(store, cut, image)
            if (store / ANEW).exists():
                broken += (f"left over: {ANEW} holds a copy of the data, and the opening has left it",)
        return Came(NEW if new else OLD, broken, went_on=True)

    def _backup(self, cut: Cut, image: Image) -> Came:
        self._lay_anew(built(cut, image))
        told = _told(self._scene, cut)
        broken = self._read_only(self._root / STORE, cut, _Read())
        there = any((self._root / BACKUP).iterdir()) if (self._root / BACKUP).exists() else False
        if there:
            broken += self._restore(cut, image, "again")
        else:
            broken += _lost("backup", told)
        return Came(WHOLE if there else ABSENT, broken or self._go_on(self._root / STORE, cut, image), went_on=True)

    def _restoring(self, cut: Cut, image: Image) -> Came:
        store = self._root / STORE
        self._lay_anew(built(cut, image))
        told, read = _told(self._scene, cut), _Read()
        if not (store / DATA).exists():
            return Came(ABSENT, _lost("store", told) + self._restore(cut, image, STORE) + self._left_over(), went_on=True)
        broken = self._read_only(store, cut, read)
        if told and not broken and read.store_id != told:
            broken += (f"durable: the store {told} was made, and {read.store_id} is there",)
        return Came(WHOLE if read.content else REFUSED, broken or self._go_on(store, cut, image), went_on=not broken)

    def _restore(self, cut: Cut, image: Image, name: str) -> tuple[str, ...]:
        """Make a store of the backup that is there, and go on with it."""
        try:
            scenes.restored(self._target, self._root, 3 * LATER, name)
        except ResetError as error:
            return (f"whole: no store can be made of the backup: {error.kind}: {error}",)
        return self._go_on(self._root / name, cut, image)

    def _left_over(self) -> tuple[str, ...]:
        left = [path.name for path in self._root.glob(".*.new-*")]
        return (f"left over: {left} may hold a copy of the data",) if left else ()

    def _read_only(self, path: Path, cut: Cut, read: _Read) -> tuple[str, ...]:
        """Open for reading, and judge; fills `read`."""
        try:
            with scenes.opened(self._target, path, readonly=True) as store:
                read.take(store, tail=self._scene.kind == "compaction")
                return self._judged(store, read.content, self._scene.events(cut), (cut.notes,), marks_lost=True)
        except ResetError as error:
            return (f"readable: {error.kind}: {error}",)

    def _judged(
        self, store: Store, content: str, events: list[Event], told: tuple[Any, ...], *, marks_lost: bool,
    ) -> tuple[str, ...]:
        key = (content, told, marks_lost)
        if key not in self._known:
            if content not in self._found:
                self._found[content] = checker.look(self._target, store)
            found = self._found[content]
            broken = checker.weigh(events, found, marks_lost=marks_lost)
            if marks_lost:
                rest = Oracle(_without_refusals(event) for event in events)
                broken += tuple(f"audited: {what}" for what in checker.audited(rest, found))
            self._known[key] = broken
        return self._known[key]

    def _go_on(self, path: Path, cut: Cut, image: Image, *, marks_lost: bool = True) -> tuple[str, ...]:
        """Open for writing, as the next process does, send more, and judge again."""
        self._used = True
        before, more = self._scene.events(cut), list[Event]()
        read = _Read()
        try:
            with scenes.opened(self._target, path, 4 * LATER, DAYS_LATER, **self._scene.settings) as store:
                client = Client(self._target, store, more.append, first_op=len(before))
                user = USERS[image.key >> 32 & (scenes.FEW - 1)]
                for op in (Op("reset", user), Op("measure", user, self._scene.sent)):  # its commit takes a refusal along
                    client.do(op)
                read.take(store)
                told = (cut.notes, history.lines(more))
                broken = self._judged(store, read.content, before + more, told, marks_lost=marks_lost)
                if any(store.engine.scan(keys.INTENT, keys.after(keys.INTENT))):
                    broken += ("settled: intents of attempts that are over are left",)
        except ResetError as error:
            return (f"progress: the store cannot be gone on with: {error.kind}: {error}",)
        return broken + tuple(_stuck(more))

    def _lay(self, tree: Tree, image: Image) -> None:
        """Put an image into the directory, over the one before where that has the same names."""
        if self._laid != list(tree):
            self._lay_anew(tree)
            self._laid = list(tree)
        else:
            for name, data in tree.items():
                if data:
                    _overwrite(f"{self._root}/{name}", data)
        if self._used:
            self._used = False
            for left in (self._root / STORE / OWNERS).iterdir():
                left.unlink()
        lock = self._root / STORE / LMDB_LOCK
        kind = image.key // 64 % (8 * len(_LOCKS))
        if kind < len(_LOCKS):
            content = _LOCKS[kind]
            lock.unlink(missing_ok=True)
            if content is not None:
                lock.write_bytes(content)

    def _lay_anew(self, tree: Tree) -> None:
        self._laid, self._used = None, True
        shutil.rmtree(self._root, ignore_errors=True)
        self._root.mkdir(parents=True)
        for name, data in tree.items():
            path = self._root / name
            if data is None:
                path.mkdir(mode=0o700)
            else:
                path.write_bytes(data)

    def _lay_marks(self, cut: Cut, image: Image, which: str) -> None:
        """Nobody syncs the files of marks: they may be gone, cut short, or say what they said at any time before, by sectors."""
        for name, data in marks_left(self._scene, cut, which, image.key // 4096).items():
            with (self._root / name).open("wb") as file:
                file.write(data)
                file.truncate(SLOT_BYTES * marks.SLOTS if image.key >> 16 & 3 == 0 else -(-len(data) // SLOT_BYTES) * SLOT_BYTES)


def _overwrite(path: str, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, data)
        os.ftruncate(descriptor, len(data))
    finally:
        os.close(descriptor)


class _Read:
    """What was read of a store: the last commit, a digest of all its records, its id, and the last row of its audit."""

    def __init__(self) -> None:
        self.commit = 0
        self.content = ""
        self.store_id = ""
        self.last_event = ""

    def take(self, store: Store, *, tail: bool = False) -> None:
        """Read it, with the last row where `tail` says so."""
        with store.engine.reading() as txn:
            self.commit = txn.id()
            rows = rows_of(txn, b"\0", b"", ROWS_MAX)
        self.content = xxhash.xxh3_128_hexdigest(msgspec.msgpack.encode(rows))
        self.store_id = store.store_id
        if tail:
            self.last_event = "".join(row.public.event for row in store.audit(since_seq=store.audit_tail()[0]))


def _lost(what: str, told: str) -> tuple[str, ...]:
    return (f"durable: the {what} {told} was made, and is not there",) if told else ()


def _told(scene: Scene, cut: Cut) -> str:
    """What a caller was told to find, "" where nobody was told yet."""
    return next((note.named for note in scene.told(cut) if isinstance(note, Done)), "")


def _without_refusals(event: Event) -> Event:
    """A refusal has no row of its own until a commit takes it along: the only row that may go with the marks."""
    if not isinstance(event, Told):
        return event
    kept = {} if event.error == "breaker-open" else {a: o for a, o in event.attempts.items() if o != "refused"}
    return msgspec.structs.replace(event, attempts=kept)


def _stuck(more: list[Event]) -> Iterator[str]:
    """What did not go on after a power cut (INV-12): measurements are taken in, and no reset meets trouble of the store."""
    kinds = {event.op: event.kind for event in more if isinstance(event, Asked)}
    for event in more:
        if isinstance(event, Told) and event.answer != "acknowledged" and (
                kinds[event.op] == "measure" or event.answer == "doubt" or event.error.startswith("store-")):
            yield f"progress: a {kinds[event.op]} after the cut ended as {event.answer}: {event.error}"


def marks_left(scene: Scene, cut: Cut, which: str, dice: int) -> Marks:
    """The files of marks as `which` of `MARKS` has them; `dice` chooses among those."""
    if which == "lost":
        return {}
    now = scene.recording.marks_at(cut.at)
    before = scene.recording.marks_at(dice % (cut.at + 1))
    if which == "stale":
        return before
    if which == "as at the cut":
        return now
    torn = {}
    for name, data in now.items():
        old = before.get(name, b"").ljust(len(data), b"\0")
        parts = (range(at, at + SECTOR_BYTES) for at in range(0, len(data), SECTOR_BYTES))
        torn[name] = b"".join((old if dice >> number % 64 & 1 else data)[part.start:part.stop]
                              for number, part in enumerate(parts))
    return torn
