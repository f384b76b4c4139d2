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

from statemachine import Store, codec
from statemachine.store import committer, identities, making
from statemachine.store.committer import Committer
from statemachine.store.draft import Draft
from statemachine.store.engine import Engine
from statemachine.transaction import ResetTransaction


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


def _forgetting() -> AbstractContextManager[object]:
    commit = Committer.commit

    def forget(self: Any, draft: Any) -> Any:
        draft.entries[:] = [entry for entry in draft.entries if entry.public.outcome != "rolled_back"]
        return commit(self, draft)

    return mock.patch.object(Committer, "commit", forget)


def _trusting() -> AbstractContextManager[object]:
    unseal = codec.unseal

    def trust(key: bytes, record: bytes) -> bytes:
        head, content = record[:8], record[16:]
        right = codec._checksum(key + head + content)  # noqa: SLF001 - the bug is in there
        return unseal(key, head + right.to_bytes(8, "little") + content if len(record) >= 16 else record)

    return mock.patch.object(codec, "unseal", trust)


def _unchained() -> AbstractContextManager[object]:
    verify = Store.verify_audit

    def wave_through(self: Any, against: str | None = None) -> Any:
        return verify(self, against)._replace(bad_seq=None, problem="")

    return mock.patch.object(Store, "verify_audit", wave_through)


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
    "forgotten audit": Planted("an attempt that is rolled back leaves no row", "one outcome", "estimator", _forgetting),
    "validation skipped": Planted("no rule is asked about what a mutation returns", "valid", "estimator",
                                  lambda: mock.patch.object(ResetTransaction, "_validate")),
    "checksum not checked": Planted("the bytes of a record are believed", "true", "media", _trusting),
    "chain not checked": Planted("the rows of the audit log are not held against each other", "named", "media", _unchained),
    "lost quarantine": Planted("a measurement that is kept aside is not kept", "conserved", "resources",
                               lambda: mock.patch.object(identities, "keep_aside")),
}
