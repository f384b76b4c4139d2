"""Bugs that can be planted in the library, to show that the harness finds what it is there to find.

Each names the promise whose checker must catch it, and the suite that meets it soonest.  `python -m chaos canaries` plants one
after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Final, NamedTuple
from unittest import mock

from statemachine import Store, codec
from statemachine.marks import DeadMarks, Mark
from statemachine.store import committer, identities, keys, making
from statemachine.store.breakers import Breakers
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


def _unchecked(_txn: Any, draft: Draft, breakers: Breakers) -> Any:
    return next(filter(None, map(breakers.judge, draft.events)), None)


def _stale_head() -> AbstractContextManager[object]:
    read = Draft.head

    def read_twice(self: Draft, user: bytes, **more: Any) -> Any:
        head = read(self, user, **more)
        self.expected[keys.head(user)] = self._engine.get(keys.head(user))
        return head

    return mock.patch.object(Draft, "head", read_twice)


def _any_generation() -> AbstractContextManager[object]:
    judge = Breakers.judge

    def judge_as_now(self: Breakers, event: Any) -> Any:
        return judge(self, event._replace(generation=self.of(event.user).generation, global_generation=self.of(b"").generation))

    return mock.patch.object(Breakers, "judge", judge_as_now)


def _ended_by_all() -> AbstractContextManager[object]:
    begin = ResetTransaction.__init__

    def begin_without(self: Any, *args: Any, **more: Any) -> None:
        begin(self, *args, **more)
        self._turn = nullcontext()

    return mock.patch.object(ResetTransaction, "__init__", begin_without)


def _unsynced(self: Any, map_bytes: int) -> Any:
    self._settings["sync"] = False
    return _OPEN(self, map_bytes)


_OPEN: Final = Engine._open  # noqa: SLF001 - the bug is in there


@contextmanager
def _late(kind: str, early: Callable[[bytes], bytes | None]) -> Iterator[None]:
    """Records of a kind are what `early` makes of them at first, and whole by a second transaction."""
    put_all, write = committer._put_all, Committer._write  # noqa: SLF001
    late = dict[bytes, bytes]()

    def put_early(txn: Any, puts: dict[bytes, bytes | None]) -> None:
        there = {key: value for key, value in puts.items() if value is not None and keys.kind_of(key) == kind}
        late.update(there)
        put_all(txn, {**{k: v for k, v in puts.items() if k not in there}, **{k: early(v) for k, v in there.items()}})

    def write_twice(self: Any, batch: list[Any]) -> None:
        late.clear()
        write(self, batch)
        with self.engine.turn():
            self.engine.update(lambda put: [put(key, value) for key, value in late.items()])

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(committer, "_put_all", put_early))
        stack.enter_context(mock.patch.object(Committer, "_write", write_twice))
        yield


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

    def unchecked(self: Committer, txn: Any, batch: list[Any], *lost: Any) -> Any:
        key = keys.owner(self.owner)
        if txn.get(key) is None:
            txn.put(key, codec.seal(key, bytes(8)))
        return fill(self, txn, batch, *lost)

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
    "nothing compared": Planted("a commit does not look whether its user was changed since its snapshot", "effects",
                                "interleavings", lambda: mock.patch.object(committer, "_judged", _unchecked)),
    "stale head": Planted("the head is expected as it is a moment after it was read", "effects", "interleavings", _stale_head),
    "any generation": Planted("the end of an attempt counts for whichever breaker it finds", "conforming", "interleavings",
                              _any_generation),
    "ended by all": Planted("threads that end one attempt do not wait for each other", "one_outcome", "interleavings",
                            _ended_by_all),
    "no fsync": Planted("commits are told as durable and never synced", "durable", "power",
                        lambda: mock.patch.object(Engine, "_open", _unsynced)),
    "torn version": Planted("a version is written in two halves, each by a commit of its own", "readable", "power",
                            lambda: _late("version", lambda value: value[:len(value) // 2])),
    "head written later": Planted("the head is written by a commit of its own, after its version", "progress", "power",
                                  lambda: _late("head", lambda _: None)),
    "directory not synced": Planted("the names of a new store, backup or file are never synced", "durable", "power",
                                    lambda: mock.patch.object(making, "fsync")),
    "forgotten audit": Planted("an attempt that is rolled back leaves no row", "one outcome", "estimator", _forgetting),
    "validation skipped": Planted("no rule is asked about what a mutation returns", "valid", "estimator",
                                  lambda: mock.patch.object(ResetTransaction, "_validate")),
    "checksum not checked": Planted("the bytes of a record are believed", "true", "media", _trusting),
    "chain not checked": Planted("the rows of the audit log are not held against each other", "named", "media", _unchained),
    "lost quarantine": Planted("a measurement that is kept aside is not kept", "conserved", "resources",
                               lambda: mock.patch.object(identities, "keep_aside")),
    "interrupt swallowed": Planted("an interrupt during a commit is taken for its success", "swallowed", "interrupts", _deaf),
    "told before the commit": Planted("a commit is told as made, and made with the next one", "durable", "deaths",
                                      _acknowledged_early),
    "forgotten mark": Planted("recovery leaves out an attempt that a dead process had begun", "settled", "deaths", _forgetful),
    "fence not checked": Planted("an owner that was fenced commits all the same", "stale", "deaths", _unfenced),
}
