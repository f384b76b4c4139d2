"""Bugs that can be planted in the library, to show that the harness finds what it is there to find.

Each names the promise whose checker must catch it, and the suite that meets it soonest.  `python -m chaos canaries` plants one
after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple
from unittest import mock

from statemachine import codec
from statemachine.marks import DeadMarks, Mark
from statemachine.store import committer, keys, making
from statemachine.store.committer import Committer
from statemachine.store.draft import Draft
from statemachine.store.engine import Engine


class Planted(NamedTuple):
    """One bug: what it does, the promise it breaks as the checker names it, the suite that finds it, and how it is planted."""

    what: str
    promise: str
    suite: str
    plant: Callable[[], AbstractContextManager[object]]


def _swallowing(self: Any, batch: list[Any], _: BaseException, *, committing: bool) -> None:  # noqa: ARG001 - as it is called
    self._finish(batch, {})


def _split() -> AbstractContextManager[object]:
    write = Committer._write  # noqa: SLF001 - the bug is in there

    def write_twice(self: Any, batch: list[Any]) -> None:
        kept = [(ticket, ticket.draft.entries.copy()) for ticket in batch]
        for ticket in batch:
            ticket.draft.entries.clear()
        write(self, batch)
        for ticket, entries in kept:
            ticket.draft.entries.extend(entries)
            if entries and ticket.error is None and ticket.missed is None:
                rows = Draft(self.engine)
                rows.entries.extend(entries)
                rows.seal()
                second = committer._Ticket(rows)  # noqa: SLF001
                write(self, [second])
                ticket.rows, ticket.error = second.rows, second.error

    return mock.patch.object(Committer, "_write", write_twice)


def _never_landed(self: Any, number: int) -> bool:
    _COMMITTED(self, number)
    return False


_COMMITTED: Final = Committer._committed  # noqa: SLF001


@contextmanager
def _in_place(path: Path) -> Iterator[Path]:
    path.mkdir(parents=True, exist_ok=True)
    yield path


def _acknowledged_early() -> AbstractContextManager[object]:
    commit, waiting = Committer.commit, list[Draft]()

    def early(self: Committer, draft: Draft) -> list[Any]:
        waiting.append(draft)
        return commit(self, waiting.pop(0)) if len(waiting) > 1 else []

    return mock.patch.object(Committer, "commit", early)


def _deaf() -> AbstractContextManager[object]:
    commit = Committer.commit

    def swallowing(self: Committer, draft: Draft) -> list[Any]:
        try:
            return commit(self, draft)
        except (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError):
            return []

    return mock.patch.object(Committer, "commit", swallowing)


def _forgetful() -> AbstractContextManager[object]:
    marks = DeadMarks.marks

    def but_one(self: DeadMarks) -> list[Mark]:
        return marks(self)[1:]

    return mock.patch.object(DeadMarks, "marks", but_one)


def _unfenced() -> AbstractContextManager[object]:
    fill = Committer._fill  # noqa: SLF001 - the bug is in there

    def unchecked(self: Committer, txn: Any, batch: list[Any]) -> Any:
        key = keys.owner(self.owner)
        if txn.get(key) is None:
            txn.put(key, codec.seal(key, bytes(8)))
        return fill(self, txn, batch)

    return mock.patch.object(Committer, "_fill", unchecked)


PLANTED: Final[dict[str, Planted]] = {
    "error swallowed": Planted("a commit that failed is told as made", "durable", "calls",
                               lambda: mock.patch.object(Committer, "_settle_failed", _swallowing)),
    "split transaction": Planted("the rows of an attempt are a commit of their own", "effects", "calls", _split),
    "landed, told as failed": Planted("a commit that failed is told as not made, though it was", "explained", "calls",
                                      lambda: mock.patch.object(Committer, "_committed", _never_landed)),
    "environment left hurt": Planted("nothing is opened anew after a failed commit", "progress", "calls",
                                     lambda: mock.patch.object(Engine, "reopen", return_value=None)),
    "creation in place": Planted("a store is made where it will be, not aside", "progress", "calls",
                                 lambda: mock.patch.object(making, "placed", _in_place)),
    "interrupt swallowed": Planted("an interrupt during a commit is taken for its success", "swallowed", "interrupts", _deaf),
    "told before the commit": Planted("a commit is told as made, and made with the next one", "durable", "deaths",
                                      _acknowledged_early),
    "forgotten mark": Planted("recovery leaves out an attempt that a dead process had begun", "settled", "deaths", _forgetful),
    "fence not checked": Planted("an owner that was fenced commits all the same", "stale", "deaths", _unfenced),
}
