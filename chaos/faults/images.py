"""The images that a power cut can leave of a directory: what was synced, and any part of what was not.

A `Disk` is fed with what a `Recorder` saw, entry by entry, and gives a `Cut` at each: what is durable, and what is pending.
What a disk may keep of it follows no order: of each file any 512-byte sectors of the pending writes (a sector itself is
whole, old or new), its length grown with them or without them, and of the names made, moved and removed any that do not
depend on one that was lost.  A synced file keeps its bytes, not its name; a synced directory keeps its names.

An `Image` is a few numbers, from which the bytes are made when they are wanted: millions can be told apart by `key`, which is
a hash of the bytes, and none is kept.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import xxhash

SECTOR_BYTES: Final = 512
ROUNDS_WITHOUT_NEW_MAX: Final = 8
EXHAUSTED_MAX: Final = 6
"""Where so few sectors and names are pending, every part of them is an image; where more are, dice choose."""
ROOT: Final = 0
"""The node of the directory that is watched; every other file and directory has a number of its own."""
_ZEROS: Final = bytes(SECTOR_BYTES)


class Wrote(NamedTuple):
    """Sectors of a file have changed, by one call: their numbers and whole contents; and how long the file is now."""

    file: int
    sectors: tuple[tuple[int, bytes], ...]
    size: int


class Through(NamedTuple):
    """What was just written into these bytes of a file went through to the disk (O_DSYNC)."""

    file: int
    first: int
    stop: int


class Synced(NamedTuple):
    """A file or a directory has been synced."""

    node: int


class Named(NamedTuple):
    """A name was made, moved or removed: `came` and `went` are each a directory and a name in it, or None."""

    node: int
    came: tuple[int, str] | None
    went: tuple[int, str] | None
    folder: bool = False


class Noted(NamedTuple):
    """Something happened beside the disk; `answers` where a caller was told of something that must hold from now on."""

    what: Any
    answers: bool


Entry = Wrote | Through | Synced | Named | Noted
Tree = dict[str, bytes | None]
"""Paths in the watched directory, each with the bytes of a file, or None for a directory; a parent before its children."""


class File(NamedTuple):
    """A file as it is durable."""

    data: bytes = b""
    key: int = 0


class Pending(NamedTuple):
    """A sector that was written and not synced: by which entry, and what the hash of the image gains where it is kept."""

    entry: int
    file: int
    sector: int
    data: bytes
    gain: int


class Cut(NamedTuple):
    """The power goes: what is durable, what is pending, and how much had been noted and answered before.

    `files` and `names` are of every node, also of one without a name; `sizes` are those that the files would have.
    """

    at: int
    notes: int
    answers: int
    files: dict[int, File]
    names: dict[int, dict[str, int]]
    pending: tuple[Pending, ...]
    sizes: dict[int, int]
    moves: tuple[Named, ...]


class Image(NamedTuple):
    """What is kept of what was pending at a cut: of the sectors and of the names, each a bit; `grown` files have their length."""

    fault: str
    cut: int
    sectors: int
    names: int
    grown: bool
    key: int = 0


def _sector_key(file: int, sector: int, data: bytes) -> int:
    """Zeros are as good as nothing: a sector that was never written reads as zeros."""
    return 0 if data == _ZEROS else xxhash.xxh3_128_intdigest(b"%d %d " % (file, sector) + data)


def _cut_up(data: bytes) -> Iterator[bytes]:
    for at in range(0, len(data), SECTOR_BYTES):
        yield data[at:at + SECTOR_BYTES].ljust(SECTOR_BYTES, b"\0")


def file_of(node: int, data: bytes) -> File:
    """A durable file."""
    key = 0
    for sector, content in enumerate(_cut_up(data)):
        key ^= _sector_key(node, sector, content)
    return File(data, key)


class Disk:
    """What is durable, and what is pending, after the entries it was fed with."""

    def __init__(self, files: dict[int, bytes], names: dict[int, dict[str, int]]) -> None:
        """Everything that is there at first is durable."""
        self._files = {node: file_of(node, data) for node, data in files.items()}
        self._names = {node: dict(inside) for node, inside in names.items()}
        self._sizes = {node: len(data) for node, data in files.items()}
        self._pending: list[Pending] = []
        self._moves: list[Named] = []
        self._fed = self._notes = self._answers = 0

    def cuts(self, entries: Iterable[Entry]) -> Iterator[Cut]:
        """Where a cut can leave something that it could not leave before: after a change, and after an answer."""
        yield self.cut()
        for entry in entries:
            self.feed(entry)
            if isinstance(entry, Wrote | Named) or (isinstance(entry, Noted) and entry.answers):
                yield self.cut()

    def cut(self) -> Cut:
        """The power goes now."""
        return Cut(self._fed, self._notes, self._answers, dict(self._files), {n: dict(d) for n, d in self._names.items()},
                   tuple(self._pending), dict(self._sizes), tuple(self._moves))

    def feed(self, entry: Entry) -> None:
        """Take in the next entry."""
        self._fed += 1
        if isinstance(entry, Wrote):
            self._wrote(entry)
        elif isinstance(entry, Through):
            self._keep(entry.file, range(entry.first // SECTOR_BYTES, -(-entry.stop // SECTOR_BYTES)))
        elif isinstance(entry, Synced):
            self._synced(entry.node)
        elif isinstance(entry, Named):
            self._moves.append(entry)
            if entry.folder:
                self._names.setdefault(entry.node, {})
            elif entry.node not in self._files:
                self._files[entry.node], self._sizes[entry.node] = File(), 0
        else:
            self._notes += 1
            self._answers += entry.answers

    def _wrote(self, entry: Wrote) -> None:
        durable = self._files[entry.file].data
        for sector, data in entry.sectors:
            at = sector * SECTOR_BYTES
            before = durable[at:at + SECTOR_BYTES].ljust(SECTOR_BYTES, b"\0")
            gain = _sector_key(entry.file, sector, data) ^ _sector_key(entry.file, sector, before)
            self._pending.append(Pending(self._fed, entry.file, sector, data, gain))
        self._sizes[entry.file] = entry.size

    def _keep(self, file: int, sectors: range | None) -> None:
        """Make the pending writes to a file durable: those into `sectors`, or all of them, and its length."""
        size, left = self._sizes[file], list[Pending]()
        data = bytearray(self._files[file].data)
        for pending in self._pending:
            if pending.file == file and (sectors is None or pending.sector in sectors):
                _put(data, pending, size)
            else:
                left.append(pending)
        if sectors is None:
            _resize(data, size)
        self._files[file], self._pending = file_of(file, bytes(data)), left
        self._pending = [p if p.file != file else p._replace(gain=self._gain(p)) for p in left]

    def _gain(self, pending: Pending) -> int:
        at = pending.sector * SECTOR_BYTES
        before = self._files[pending.file].data[at:at + SECTOR_BYTES].ljust(SECTOR_BYTES, b"\0")
        return _sector_key(pending.file, pending.sector, pending.data) ^ _sector_key(pending.file, pending.sector, before)

    def _synced(self, node: int) -> None:
        if node in self._files:
            self._keep(node, None)
            return
        left = list[Named]()
        for move in self._moves:
            if node == (move.came or move.went or (None,))[0]:  # of a move, the directory that it came to
                _move(self._names, move, forced=True)
                left = [m for m in left if m.node != move.node or m.came != move.went]
            else:
                left.append(move)
        self._moves = left


def _put(data: bytearray, pending: Pending, size: int) -> None:
    at = pending.sector * SECTOR_BYTES
    stop = max(len(data), min(size, at + SECTOR_BYTES))
    if len(data) < stop:
        data.extend(bytes(stop - len(data)))
    data[at:min(at + SECTOR_BYTES, stop)] = pending.data[:max(0, stop - at)]


def _resize(data: bytearray, size: int) -> None:
    if len(data) > size:
        del data[size:]
    data.extend(bytes(size - len(data)))


def _move(names: dict[int, dict[str, int]], move: Named, *, forced: bool = False) -> None:
    """Make a move, unless what it rests on was lost; `forced` where it was synced, and what it rests on with it."""
    if move.went is not None:
        directory, name = move.went
        if names.get(directory, {}).get(name) == move.node:
            del names[directory][name]
        elif not forced:
            return
    if move.came is not None:
        directory, name = move.came
        names.setdefault(directory, {})[name] = move.node


def built(cut: Cut, image: Image) -> Tree:
    """The files and directories of an image."""
    names = cut.names
    if cut.moves:
        names = {node: dict(inside) for node, inside in names.items()}
        for move in _chosen(cut.moves, image.names):
            _move(names, move)
    tree: Tree = {}
    waiting = [(ROOT, "")]
    while waiting:
        directory, path = waiting.pop()
        for name, node in sorted(names.get(directory, {}).items()):
            below = f"{path}{name}"
            if node in cut.files:
                tree[below] = _bytes(cut, image, node)
            else:
                tree[below] = None
                waiting.append((node, f"{below}/"))
    return tree


def _bytes(cut: Cut, image: Image, node: int) -> bytes:
    size = cut.sizes[node]
    durable = cut.files[node].data
    changed = [p for p in _chosen(cut.pending, image.sectors) if p.file == node]
    if not changed and (not image.grown or size == len(durable)):
        return durable
    data = bytearray(durable)
    for pending in changed:
        _put(data, pending, size)
    if image.grown:
        _resize(data, size)
    return bytes(data)


def _chosen(parts: Sequence[Any], bits: int) -> Iterator[Any]:
    while bits:
        low = bits & -bits
        yield parts[low.bit_length() - 1]
        bits ^= low


def _size_of(cut: Cut, image: Image, node: int) -> int:
    size, durable = cut.sizes[node], len(cut.files[node].data)
    if image.grown:
        return size
    last = max(((p.sector + 1) * SECTOR_BYTES for p in _chosen(cut.pending, image.sectors) if p.file == node), default=0)
    return max(durable, min(last, size))


def key_of(cut: Cut, image: Image) -> int:
    """A hash of the names and bytes of the image, and of what had been answered: two images of one key are the same case."""
    key = xxhash.xxh3_128_intdigest(b"answers %d" % cut.answers)
    if cut.moves:  # which files have a name depends on the image
        for path, data in built(cut, image).items():
            key ^= xxhash.xxh3_128_intdigest(path.encode() + (b"/" if data is None else b"\0" + data))
        return key
    for node, file in cut.files.items():
        key ^= file.key ^ xxhash.xxh3_128_intdigest(b"size %d %d" % (node, _size_of(cut, image, node)))
    last = {(p.file, p.sector): p.gain for p in _chosen(cut.pending, image.sectors)}
    for gain in last.values():
        key ^= gain
    return key


def ordered(cut: Cut, number: int) -> Iterator[Image]:
    """The images of a cut that are worth trying whatever the dice say."""
    sectors, names = len(cut.pending), len(cut.moves)
    every, named = (1 << sectors) - 1, (1 << names) - 1
    yield Image("every write so far", number, every, named, grown=True)
    yield Image("none since the sync", number, 0, 0, grown=False)
    writes = _writes(cut.pending)
    if writes:
        before, last = (1 << writes[-1][0]) - 1, writes[-1]
        for torn in range(last[0] + 1, last[1]):
            part = (1 << torn) - (1 << last[0])
            yield Image("the last write torn", number, before | part, named, grown=False)
            yield Image("the last write torn", number, part, named, grown=False)
        yield Image("the file grown, not written", number, 0, named, grown=True)
        yield Image("the file grown, not written", number, before, named, grown=True)
    for first, stop in writes:
        own = (1 << stop) - (1 << first)
        yield Image("a write dropped", number, every & ~own, named, grown=True)
        yield Image("a write before the others", number, own, named, grown=False)
    for sector in range(sectors):
        yield Image("a sector dropped", number, every & ~(1 << sector), named, grown=False)
    for name in range(names):
        for kept in (every, 0):
            yield Image("names cut off", number, kept, (1 << name) - 1, grown=bool(kept))
            yield Image("a name dropped", number, kept, named & ~(1 << name), grown=bool(kept))
            yield Image("a name before the others", number, kept, 1 << name, grown=bool(kept))


def _writes(pending: Sequence[Pending]) -> list[tuple[int, int]]:
    """From where to where in `pending` each write goes."""
    found: list[tuple[int, int]] = []
    for number, part in enumerate(pending):
        if found and pending[found[-1][0]].entry == part.entry:
            found[-1] = (found[-1][0], number + 1)
        else:
            found.append((number, number + 1))
    return found


def _every(cut: Cut, number: int) -> Iterator[Image]:
    for names in range(1 << len(cut.moves)):
        for sectors in range(1 << len(cut.pending)):
            yield Image("sectors scattered", number, sectors, names, grown=False)
            yield Image("sectors scattered", number, sectors, names, grown=True)


def scattered(cut: Cut, number: int, dice: random.Random) -> Image:
    """Any sectors and any names, of one density or another."""
    bits, names = len(cut.pending), len(cut.moves)
    one, two, three = dice.getrandbits(bits), dice.getrandbits(bits), dice.getrandbits(bits)
    sectors = dice.choice((one, one & two, one | two, one & two & three, one | two | three))
    return Image("sectors scattered", number, sectors, dice.getrandbits(names), grown=dice.random() < 1 / 2)


def images(cuts: Sequence[Cut], wanted: int, seed: str) -> Iterator[Image]:
    """At most `wanted` images, no two of them the same: the `ordered` of every cut, all of narrow cuts, then as the dice fall.

    The same cuts and seed give the same images.  There are fewer where there are no more.
    """
    seen = set[int]()
    for image in _proposed(cuts, random.Random(seed), seen):
        key = key_of(cuts[image.cut], image)
        if key not in seen:
            seen.add(key)
            yield image._replace(key=key)
            if len(seen) == wanted:
                return


def _proposed(cuts: Sequence[Cut], dice: random.Random, seen: set[int]) -> Iterator[Image]:
    waiting = [list(ordered(cut, number)) for number, cut in enumerate(cuts)]
    for found in waiting:  # few may be wanted: some of every cut, and of every kind, come first
        found[1:] = dice.sample(found[1:], len(found) - 1)
    for turn in itertools.zip_longest(*waiting):
        yield from (image for image in turn if image is not None)
    for number, cut in enumerate(cuts):
        if len(cut.pending) + len(cut.moves) <= EXHAUSTED_MAX:
            yield from _every(cut, number)
    wide = [(number, cut) for number, cut in enumerate(cuts) if len(cut.pending) + len(cut.moves) > EXHAUSTED_MAX]
    without = 0
    while wide and without < ROUNDS_WITHOUT_NEW_MAX:
        before = len(seen)
        for number, cut in wide:
            yield scattered(cut, number, dice)
        without = 0 if len(seen) > before else without + 1
