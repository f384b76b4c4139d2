"""The pages of the data file as they lie in it, read past LMDB: those that would end the process that reads them through it.

LMDB asserts what kind of page its cursor comes to, and believes what a page says of itself.  A page of zeros, as a file system
may leave it, is none of its kinds: the next step of a cursor is SIGABRT.  So is a write to a page that gives another number as
its own.  A value said to be longer than its pages is copied from beyond the file: SIGBUS.  Keys out of their order, which hide
others from a search, kill nobody.  Here the pages are looked at, from the root down; what records say is LMDB's part.
"""

from __future__ import annotations

import contextlib
import os
import struct
from itertools import pairwise
from typing import TYPE_CHECKING, Final, NamedTuple

from statemachine.errors import StoreBusy, StoreCorrupt, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from statemachine.store.engine import Engine

_HEAD: Final = struct.Struct("=QHHHH")
"""A page's head: its number, 2 bytes for another kind of page, flags, end of the nodes' list, start of the nodes."""
_LONG: Final = 0x01
"""A node of a leaf whose value lies in pages of its own; 8 bytes with their number stand for it."""
_LONG_BYTES: Final = 8
_BRANCH: Final = 0x01
_LEAF: Final = 0x02
_CHILDREN_MIN: Final = 2
_DIRTY: Final = 0x10
"""A page that says it is being written; py-lmdb's LMDB answers it with an error."""
_NODE: Final = struct.Struct("=HHHH")
"""A node of a branch: the number of its page in three parts of 16 bits, and the length of its key.  Of a leaf: the length of its
value in two parts, what kind of node it is, and the length of its key."""
_NUMBER: Final = struct.Struct("=Q")
_NUMBER_BYTES: Final = 8
_FREE: Final = struct.Struct("=40x6xH32xQ")
"""In a meta page: the depth of the tree of free pages, and its root."""
_MAIN: Final = struct.Struct("=88x6xH32xQQQ")
"""In a meta page: the depth of the tree of records, its root, the last page, and the commit."""
NAMED_MAX: Final = 20
_META_TRIES: Final = 100


class Page(NamedTuple):
    """A page of the tree, how many levels it is above the leaves (these are 1), the least key it may hold, and the end of those.

    `deadly`: it may end the process that comes to it.  `misleading`: its keys are not in order, so that a search goes astray.
    `unruly`: it has flags that no page at rest has; one of them makes LMDB leave out what a commit has changed there.
    An empty `end` stands for the end of the store.
    """

    number: int
    level: int
    first: bytes
    end: bytes = b""
    deadly: bool = False
    misleading: bool = False
    unruly: bool = False

    def is_for(self, key: bytes) -> bool:
        """Whether a search for `key` comes by this page."""
        return self.first <= key and (not self.end or key < self.end)


class _Tree(NamedTuple):
    root: int
    depth: int
    last: int


def check(engine: Engine, start: bytes = b"", stop: bytes = b"") -> list[str]:
    """Raise StoreCorrupt, naming them, where pages would end the process that reads start <= key < stop; else as `deadly`.

    Without `stop` to the end of the store.  Some 20 us a page; call it before a reading that goes through many of them.
    Returns in words what else is wrong with them: keys out of order, flags that no page has, and, where all of the store is
    looked at, a list of free pages that names some in use.
    """
    found: list[int] = []
    astray: list[int] = []
    unruly: list[int] = []
    used: set[int] = set()
    try:
        for page in walk(engine, start, stop):
            used.add(page.number)
            if page.deadly:
                found.append(page.number)
            else:
                astray += [page.number] if page.misleading else []
                unruly += [page.number] if page.unruly else []
            if len(found) > NAMED_MAX:
                break
        free = "" if found or start or stop else _free_list(engine, used)
    except OSError as error:
        message = f"reading the data file of the store {engine.path}: {error}"
        raise StoreUnavailable(message) from error
    if found:
        message = (f"in the data file of the store {engine.path} these pages were overwritten, and LMDB ends a process that "
                   f"comes to one: {_named(found)}; restore the store from a backup")
        raise StoreCorrupt(message)
    hides = f"the keys of pages {_named(astray)} are not in order, so that records cannot be found that are there"
    loses = f"pages {_named(unruly)} carry flags of no page at rest: whoever writes may lose what lies on them"
    return [*([hides] if astray else []), *([loses] if unruly else []), *([free] if free else [])]


def check_way(engine: Engine, key: bytes) -> None:
    """Raise StoreCorrupt where a page on the way to `key` would end the process that looks for it; a handful of reads."""
    try:
        with _at_one_commit(engine) as (descriptor, page_bytes, tree, _):
            way = [page for page in _below(descriptor, page_bytes, tree, key, only=True) if page.deadly]
    except OSError as error:
        message = f"reading the data file of the store {engine.path}: {error}"
        raise StoreUnavailable(message) from error
    if way:
        message = (f"in the data file of the store {engine.path} page {way[0].number} was overwritten, and LMDB ends a process "
                   "that comes to it; restore the store from a backup")
        raise StoreCorrupt(message)


def _named(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:NAMED_MAX])) + (" and more" if len(numbers) > NAMED_MAX else "")


def deadly(engine: Engine, start: bytes = b"", stop: bytes = b"") -> Iterator[int]:
    """The numbers of the pages that LMDB does not survive, of those with start <= key < stop; each is told once it is found.

    Reads the branches and the leaves, at one moment; it keeps a read transaction open for as long.  Raises StoreCorrupt where
    the pages lead in a circle, and what `Engine.reading` does.
    """
    return (page.number for page in walk(engine, start, stop) if page.deadly)


def next_leaf(engine: Engine, key: bytes) -> bytes:
    """The least key after `key` from which on a search leads to another leaf, b"" where there is none; raises as `deadly`."""
    return min((page.first for page in walk(engine) if page.level == 1 and page.first > key), default=b"")


def walk(engine: Engine, start: bytes = b"", stop: bytes = b"") -> Iterator[Page]:
    """The leaves of the tree of records in the order of their keys, and what stands in the place of a branch and is none.

    Of a range those alone that a cursor may come to which goes through it: also the leaf on either side.
    """
    with _at_one_commit(engine) as (descriptor, page_bytes, tree, _):
        for page in _below(descriptor, page_bytes, tree, start):
            yield page
            if stop and page.first >= stop:
                return


@contextlib.contextmanager
def _at_one_commit(engine: Engine) -> Iterator[tuple[int, int, _Tree, _Tree]]:
    """The data file, the size of its pages, and its trees of records and of free pages, all as one commit left them."""
    page_bytes: int = engine.info()["psize"]
    descriptor = engine.data_file()
    try:
        for _ in range(_META_TRIES):
            with engine.reading() as txn:
                meta = os.pread(descriptor, page_bytes, txn.id() % 2 * page_bytes)
                depth, root, last, written = _MAIN.unpack_from(meta)
                free_depth, free_root = _FREE.unpack_from(meta)
                if written == txn.id():  # else two commits have overwritten the meta page meanwhile
                    yield descriptor, page_bytes, _Tree(root, depth, last), _Tree(free_root, free_depth, last)
                    return
        message = f"the store {engine.path} was written too fast for a look at its pages; try again while fewer write it"
        raise StoreBusy(message)
    finally:
        os.close(descriptor)


def _free_list(engine: Engine, used: set[int]) -> str:
    """What is wrong with the list of free pages, which writers use again, "" where nothing is.

    `used` are pages of the tree of records.  They may be of an older commit: then a page that was freed since is none in use.
    """
    with _at_one_commit(engine) as (descriptor, page_bytes, records, tree):
        free: set[int] = set()
        for at in _below(descriptor, page_bytes, tree):
            page = os.pread(descriptor, page_bytes, at.number * page_bytes)
            listed = None if at.deadly or at.misleading or at.unruly else _listed(descriptor, page)
            if listed is None or not all(1 < number <= tree.last for number in listed):
                return f"page {at.number} of the list of free pages was overwritten, and whoever writes may overwrite records"
            free.update(listed)
        both = sorted(free & used) and sorted(free & {page.number for page in _below(descriptor, page_bytes, records)})
    return f"pages {_named(both)} are in use and in the list of free pages: whoever writes overwrites them" if both else ""


def _listed(descriptor: int, page: bytes) -> list[int] | None:
    """The numbers in a leaf of the list of free pages; None where they are no such numbers."""
    found: list[int] = []
    _, _, flags, lower, _ = _HEAD.unpack_from(page)
    for place in struct.unpack_from(f"={(lower - _HEAD.size) // 2}H", page, _HEAD.size):
        low, high, kind, length = _NODE.unpack_from(page, place)
        start, size = place + _NODE.size + length, low | high << 16
        content = page[start:start + size]
        if kind & _LONG:
            number, = struct.unpack_from("=Q", page, start)
            content = os.pread(descriptor, size, number * len(page) + _HEAD.size)
        if flags & _BRANCH or length != _NUMBER_BYTES or len(content) != size or size % _NUMBER_BYTES or not size:
            return None
        count, *numbers = struct.unpack(f"={size // _NUMBER_BYTES}Q", content)
        if count != len(numbers) or any(one <= other for one, other in pairwise(numbers)):
            return None
        found += numbers
    return found


def _below(descriptor: int, page_bytes: int, tree: _Tree, start: bytes = b"", *, only: bool = False) -> Iterator[Page]:
    """The pages from the leaf beside that for `start` on; with `only` those on the way to `start`."""
    waiting, seen = [Page(tree.root, tree.depth, b"")] if tree.depth else [], 0
    while waiting:
        at = waiting.pop()
        if at.number > tree.last or (only and not at.is_for(start)):
            continue  # LMDB says that it is not there; not so of a meta page, which is no leaf and no branch
        seen += 1
        if seen > tree.last:
            message = "the pages of the data file lead in a circle; restore the store from a backup"
            raise StoreCorrupt(message)
        page = os.pread(descriptor, page_bytes, at.number * page_bytes)
        number, _, flags, lower, upper = _HEAD.unpack_from(page) if len(page) == page_bytes else (0, 0, 0, 0, 0)
        if flags & _DIRTY:
            yield at  # LMDB answers with an error
            continue
        kind, count = flags & (_BRANCH | _LEAF), (lower - _HEAD.size) // 2
        unruly = flags != kind
        inside = _HEAD.size <= lower <= upper <= page_bytes
        nodes = _nodes(page, count, upper, tree.last if at.level == 1 else 0) if inside else None
        if number != at.number or kind != (_LEAF if at.level == 1 else _BRANCH) or nodes is None:
            yield at._replace(deadly=True)
        elif at.level == 1:
            yield at._replace(misleading=not _in_order([key for key, _ in nodes], at), unruly=unruly)
        elif count < _CHILDREN_MIN:
            yield at._replace(deadly=True)
        else:
            keys = [key for key, _ in nodes[1:]]  # the first has none of its own
            if unruly or not _in_order(keys, at):
                yield at._replace(misleading=not _in_order(keys, at), unruly=unruly)
            bounds = [at.first, *keys, at.end]
            children = [Page(child, at.level - 1, bounds[n], bounds[n + 1]) for n, (_, child) in enumerate(nodes)]
            before = sum(child.first <= start for child in children) - 2  # the last of these has `start`, one is beside it
            waiting += reversed(children[max(before, 0):])


def _nodes(page: bytes, count: int, upper: int, leaf: int) -> list[tuple[bytes, int]] | None:
    """The keys of a page, each with the number of the page below it; None where a node is not inside the page.

    `leaf` is the last page of the file where the page is a leaf, else 0: a value in pages of its own ends within the file.
    """
    found, size = [], len(page)
    for place in struct.unpack_from(f"={count}H", page, _HEAD.size):
        if not upper <= place <= size - _NODE.size:
            return None
        low, middle, high, length = _NODE.unpack_from(page, place)
        start = place + _NODE.size
        end = start + length + ((_LONG_BYTES if high & _LONG else low | middle << 16) if leaf else 0)
        if end > size or (leaf and high > _LONG):
            return None
        if leaf and high & _LONG:
            first, = _NUMBER.unpack_from(page, start + length)
            if first <= leaf and first * size + _HEAD.size + (low | middle << 16) > (leaf + 1) * size:
                return None
        found.append((page[start:start + length], low | middle << 16 | high << 32))
    return found


def _in_order(keys: list[bytes], at: Page) -> bool:
    """Whether the keys of a page ascend, and lie where the branches above say."""
    return all(one < other for one, other in pairwise(keys)) and (
        not keys or (at.first <= keys[0] and (not at.end or keys[-1] < at.end)))
