"""The pages of the data file as they lie in it, read past LMDB: those that would end the process that reads them through it.

LMDB asserts what kind of page its cursor comes to.  A page of zeros, as a file system may leave it, is none of its kinds: the
next step of a cursor is SIGABRT.  Here only the kinds of the pages are looked at, from the root down; records are LMDB's part.
"""

from __future__ import annotations

import os
import struct
from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple

from statemachine.errors import StoreCorrupt, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from statemachine.store.engine import Engine

_HEAD: Final = struct.Struct("=8xHHHH")
"""A page's head: its number, 2 bytes for another kind of page, flags, end of the nodes' list, start of the nodes."""
_BRANCH: Final = 0x01
_LEAF: Final = 0x02
_CHILDREN_MIN: Final = 2
_DIRTY: Final = 0x10
"""A page that says it is being written; py-lmdb's LMDB answers it with an error."""
_NODE: Final = struct.Struct("=HHHH")
"""A node of a branch: the number of its page in three parts of 16 bits, and the length of its key."""
_MAIN: Final = struct.Struct("=88x6xH32xQQQ")
"""In a meta page: the depth of the tree of records, its root, the last page, and the commit."""
NAMED_MAX: Final = 20
_META_TRIES: Final = 100


class Page(NamedTuple):
    """A page of the tree, how many levels it is above the leaves (these are 1), and the least key it may hold."""

    number: int
    level: int
    first: bytes
    deadly: bool = False


class _Tree(NamedTuple):
    root: int
    depth: int
    last: int


def check(engine: Engine, start: bytes = b"", stop: bytes = b"") -> None:
    """Raise StoreCorrupt, naming them, where pages would end the process that reads start <= key < stop; else as `deadly`.

    Without `stop` to the end of the store.  Some 5 us a page; call it before a reading that goes through many of them.
    """
    try:
        found = list(islice(deadly(engine, start, stop), NAMED_MAX + 1))
    except OSError as error:
        message = f"reading the data file of the store {engine.path}: {error}"
        raise StoreUnavailable(message) from error
    if found:
        more = " and more" if len(found) > NAMED_MAX else ""
        message = (f"in the data file of the store {engine.path} these pages were overwritten, and LMDB ends a process that "
                   f"comes to one: {', '.join(map(str, found[:NAMED_MAX]))}{more}; restore the store from a backup")
        raise StoreCorrupt(message)


def deadly(engine: Engine, start: bytes = b"", stop: bytes = b"") -> Iterator[int]:
    """The numbers of the pages that LMDB does not survive, of those with start <= key < stop; each is told once it is found.

    Reads the branches, and of each leaf its head, at one moment; it keeps a read transaction open for as long.  Raises
    StoreCorrupt where the pages lead in a circle, and what `Engine.reading` does.
    """
    return (page.number for page in walk(engine, start, stop) if page.deadly)


def next_leaf(engine: Engine, key: bytes) -> bytes:
    """The least key after `key` from which on a search leads to another leaf, b"" where there is none; raises as `deadly`."""
    return min((page.first for page in walk(engine) if page.level == 1 and page.first > key), default=b"")


def walk(engine: Engine, start: bytes = b"", stop: bytes = b"") -> Iterator[Page]:
    """The leaves of the tree of records in the order of their keys, and what stands in the place of a branch and is none.

    Of a range those alone that a cursor may come to which goes through it: also the leaf on either side.
    """
    page_bytes: int = engine.info()["psize"]
    descriptor = engine.data_file()
    try:
        for _ in range(_META_TRIES):
            with engine.reading() as txn:
                tree = _tree(descriptor, page_bytes, txn.id())
                if tree is not None:  # else two commits have overwritten the meta page meanwhile
                    for page in _below(descriptor, page_bytes, tree, start):
                        yield page
                        if stop and page.first >= stop:
                            return
                    return
    finally:
        os.close(descriptor)


def _tree(descriptor: int, page_bytes: int, commit: int) -> _Tree | None:
    """The tree of records as a commit left it; None where its meta page is not there any more."""
    depth, root, last, written = _MAIN.unpack_from(os.pread(descriptor, page_bytes, commit % 2 * page_bytes))
    return _Tree(root, depth, last) if written == commit else None


def _below(descriptor: int, page_bytes: int, tree: _Tree, start: bytes) -> Iterator[Page]:
    waiting, seen = [Page(tree.root, tree.depth, b"")] if tree.depth else [], 0
    while waiting:
        at = waiting.pop()
        if not 1 < at.number <= tree.last:
            continue  # LMDB says that it is not there
        seen += 1
        if seen > tree.last:
            message = "the pages of the data file lead in a circle; restore the store from a backup"
            raise StoreCorrupt(message)
        page = os.pread(descriptor, page_bytes if at.level > 1 else _HEAD.size, at.number * page_bytes)
        _, flags, lower, _ = _HEAD.unpack_from(page)
        kind, count = flags & (_BRANCH | _LEAF), (lower - _HEAD.size) // 2
        if flags & _DIRTY:
            yield at  # LMDB answers with an error
        elif at.level == 1:
            yield at._replace(deadly=kind != _LEAF)
        elif kind != _BRANCH or not _CHILDREN_MIN <= count < page_bytes // 2:
            yield at._replace(deadly=True)
        else:
            children = _children(page, count, at)
            before = sum(child.first <= start for child in children) - 2  # the last of these has `start`, one is beside it
            waiting += reversed(children[max(before, 0):])


def _children(page: bytes, count: int, above: Page) -> list[Page]:
    """The pages below a branch; a node that is not inside it is passed over.  The first has no key of its own."""
    found = []
    places = struct.unpack_from(f"={count}H", page, _HEAD.size) if _HEAD.size + 2 * count <= len(page) else ()
    for place in places:
        if place + _NODE.size <= len(page):
            low, middle, high, length = _NODE.unpack_from(page, place)
            key = page[place + _NODE.size:place + _NODE.size + length]
            found.append(Page(low | middle << 16 | high << 32, above.level - 1, key or above.first))
    return found
