"""What a bad disk, a bad copy or a bad hand leaves of the files of a store, and where in the data file that may be done.

The data file is read as LMDB 0.9 lays it out, past LMDB: two meta pages, then pages of the tree of records and of the list of
free pages; the newest commit says which of them live.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

_HEAD: Final = struct.Struct("=8xHHHH")
_TREE: Final = struct.Struct("=6xHQQQQQ")
"""A tree in a meta page: depth, pages of three kinds, entries, root."""
_META: Final = struct.Struct("=16xII16x")
_NODE: Final = struct.Struct("=HHHH")
_BRANCH, _LEAF, _OVERFLOW = 1, 2, 4
_BIG: Final = 1
_FREE_AT, _MAIN_AT, _LAST_AT, _TXN_AT = 40, 88, 136, 144
_MAGIC_AT: Final = 16
MAGIC: Final = 0xBEEFC0DE
NO_ROOT: Final = 2**64 - 1
METAS: Final = 2


class Live(NamedTuple):
    """A page that the newest commit reads: what kind it is, and the first and last key of what a search needs it for.

    "meta" and "free" pages, and the root, are needed for all keys: from b"" to b"" on.
    """

    number: int
    kind: str
    first: bytes
    last: bytes

    def needed_by(self, prefix: bytes) -> bool:
        """Whether a key that begins with `prefix` may lie on the page or below it."""
        return not self.last or self.first[:len(prefix)] <= prefix <= self.last


class NotReadable(Exception):
    """These bytes are no data file of LMDB 0.9."""


def page_bytes(data: bytes) -> int:
    """The size of a page, as the first meta page says it."""
    if len(data) < _TXN_AT or struct.unpack_from("=I", data, _MAGIC_AT)[0] != MAGIC:
        message = "the file does not begin with a meta page of LMDB"
        raise NotReadable(message)
    size: int = struct.unpack_from("=I", data, _FREE_AT)[0]
    return size


def live(data: bytes) -> list[Live]:
    """The pages that the newest commit reads, in the order of their numbers; the two meta pages are the first."""
    size = page_bytes(data)
    newest = max(range(METAS), key=lambda n: struct.unpack_from("=Q", data, n * size + _TXN_AT)[0]) * size
    found = [Live(n, "meta", b"", b"") for n in range(METAS)]
    for at, name in ((_FREE_AT, "free"), (_MAIN_AT, "")):
        depth, *_, root = _TREE.unpack_from(data, newest + at)
        if depth and root != NO_ROOT:
            found += _below(data, size, root, name)
    return sorted(found)


def _below(data: bytes, size: int, root: int, name: str) -> Iterator[Live]:
    """All pages of a tree; a branch is needed for the keys of all pages below it."""
    start = root * size
    _, flags, lower, _ = _HEAD.unpack_from(data, start)
    below: list[Live] = []
    keys: list[bytes] = []
    for place in struct.unpack_from(f"={(lower - _HEAD.size) // 2}H", data, start + _HEAD.size):
        low, high, kind, length = _NODE.unpack_from(data, start + place)
        content = start + place + _NODE.size
        key = data[content:content + length]
        if flags & _BRANCH:
            below += _below(data, size, low | high << 16 | kind << 32, name)
        else:
            keys.append(key)
            if kind & _BIG:
                below += _long(size, struct.unpack_from("=Q", data, content + length)[0], low | high << 16, key)
    if flags & _BRANCH:
        keys = [key for page in below for key in (page.first, page.last)]
    if name or not keys:
        yield from (page._replace(kind=name, first=b"", last=b"") for page in [Live(root, "", b"", b""), *below])
        return
    yield Live(root, "branch" if flags & _BRANCH else "leaf", min(keys), max(keys))
    yield from below


def _long(size: int, number: int, length: int, key: bytes) -> Iterator[Live]:
    """The pages of one long value."""
    for nth in range((length + _HEAD.size + size - 1) // size):
        yield Live(number + nth, "long value", key, key)


def flipped(data: bytes, place: int, bit: int) -> bytes:
    """One bit turned over."""
    return data[:place] + bytes((data[place] ^ 1 << bit,)) + data[place + 1:]


def replaced(data: bytes, page: int, content: bytes) -> bytes:
    """Another page's worth of bytes in the place of a page."""
    size = page_bytes(data)
    return data[:page * size] + content[:size].ljust(size, b"\0") + data[(page + 1) * size:]


def zeroed(data: bytes, page: int) -> bytes:
    """A page of zeros, as a file system may leave one that was never written."""
    return replaced(data, page, b"")


def misplaced(data: bytes, page: int, other: int) -> bytes:
    """What was meant for one page written over another, as a disk does that seeks wrongly."""
    size = page_bytes(data)
    return replaced(data, page, data[other * size:(other + 1) * size])


def stale(data: bytes, earlier: bytes, page: int) -> bytes:
    """A page as an earlier commit had it: a write that the disk told and lost.  Equal to `data` where nothing was written."""
    size = page_bytes(data)
    before = earlier[page * size:(page + 1) * size]
    return replaced(data, page, before) if len(before) == size else data


def places(data: bytes, pages: list[Live], count: int, dice: random.Random) -> list[tuple[int, int]]:
    """`count` bits of live pages to turn over, each a place and a bit; the heads of pages are met as often as 1 in 8."""
    size = page_bytes(data)
    found = []
    for _ in range(count):
        page = dice.choice(pages)
        within = dice.randrange(size)
        if dice.random() < 0.125:
            within = dice.randrange(64)
        found.append((page.number * size + within, dice.randrange(8)))
    return found
