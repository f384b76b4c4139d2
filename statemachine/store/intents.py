"""Intents: the marks of begun attempts as records, for those who need an attempt's row after a power cut too.

The file of marks lives in the page cache and survives the death of a process, not that of the machine.  An intent is a
record of its own, committed before the mutation runs and removed by the commit that writes the attempt's outcome.  The lease
of a probe always comes with one, in the same commit: it must be given back however its holder ends (INV-12).

A file of marks that is there settles its attempts itself, and knows more.  Where it is gone, opening writes the row
`interrupted`; nobody is blamed then, because nobody can tell whether user code ran when the machine went down (INV-07).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

import msgspec

from statemachine import codec
from statemachine.errors import StoreCorrupt, StoreForeign
from statemachine.marks import WAITING, Mark
from statemachine.store import keys
from statemachine.store.draft import Draft

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from statemachine.store.engine import Engine

Intents = Literal["process", "durable"]
INTENTS: Final[tuple[Intents, ...]] = ("process", "durable")


class Intent(msgspec.Struct, frozen=True, array_like=True):
    """Who began the attempt, and the mark that stands for it."""

    owner: int
    mark: Mark


def put(draft: Draft, owner: int, mark: Mark) -> None:
    """Note in a draft that an attempt begins."""
    draft.put(keys.intent(mark.attempt_id), codec.pack(Intent(owner, mark)))


def left(engine: Engine, owners: Path) -> Iterator[tuple[bytes, bytes, Mark]]:
    """The intents of owners whose file of marks is gone: key, stored bytes, and the mark, that of an attempt that waited.

    An owner makes its file before it is one, and removes it once every attempt of its has its outcome.
    """
    for key, value in engine.scan(keys.INTENT, keys.after(keys.INTENT)):
        intent = _readable(key, value)
        if intent is not None and not (owners / str(intent.owner)).exists():
            yield key, value, msgspec.structs.replace(intent.mark, state=WAITING)


def of(rows: Iterable[tuple[bytes, bytes]], owner: int) -> Iterator[Mark]:
    """The marks of one owner among stored intents."""
    for key, value in rows:
        intent = _readable(key, value)
        if intent is not None and intent.owner == owner:
            yield intent.mark


def _readable(key: bytes, value: bytes) -> Intent | None:
    """The intent; None for one that cannot be read: doctor names it, and it is no reason to stop anybody (INV-11)."""
    try:
        return codec.unpack(Intent, codec.unseal(key, value))
    except (StoreCorrupt, StoreForeign):
        return None
