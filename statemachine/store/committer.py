"""The one commit path: version, outcome, breakers, cursor and audit rows of a draft become durable in one transaction.

Callers queue their drafts; whoever gets the turn writes all that is queued, up to the group's size, in one LMDB
transaction, and the others find theirs done.  Each draft is checked, then applied whole, or left out whole.

Steps of the write path, numbered as in ARCHITECTURE.md: 4 check what the drafts were made from, 5 put their records,
6 settle the breakers, 7 append and chain the audit rows, 8 raise the owner's commit number, 9 commit.
"""

from __future__ import annotations

import contextlib
import threading
from itertools import takewhile, zip_longest
from typing import Any, Final

import lmdb
import msgspec

from statemachine import audit, codec
from statemachine.audit import Entry, Row
from statemachine.clock import Clock, Ids
from statemachine.errors import (
    CommitInDoubt,
    ConflictError,
    InvariantViolation,
    ResetError,
    StoreBusy,
    StoreCorrupt,
    StoreForeign,
    StoreFull,
    StoreUnavailable,
)
from statemachine.marks import Mark, Marks
from statemachine.state import user_key
from statemachine.store import intents, keys
from statemachine.store.breakers import Breakers
from statemachine.store.draft import Draft, MissReason
from statemachine.store.engine import FULL, Engine, translated

CHAIN_BYTES: Final = 40
PAGE_LOST: Final = (lmdb.CorruptedError, lmdb.PageNotFoundError)
"""What LMDB says of a page that is not what it should be."""
_MISSED: Final[dict[MissReason, str]] = {
    "conflict": "another attempt changed this user in the meantime; read the head again",
    "breaker": "the circuit breaker changed while the attempt ran",
    "global breaker": "the global circuit breaker opened while the attempt ran",
    "budget": "the budget of resets a minute was used up while the attempt ran",
}


class _Ticket:
    """One draft in the queue, and how it went."""

    __slots__ = ("draft", "error", "missed", "moves", "rows", "settled", "taken")

    def __init__(self, draft: Draft) -> None:
        self.draft = draft
        self.rows: list[Row] = []
        self.moves: list[Row] = []
        self.missed: MissReason | None = None
        self.error: BaseException | None = None
        self.settled = False
        self.taken = False

    def outcome(self) -> list[Row]:
        if self.error is not None:
            raise self.error
        if self.missed is not None:
            raise ConflictError(_MISSED[self.missed], reason=self.missed)
        return self.rows


class Committer:
    """Serialises the drafts of one process, in its own name as an owner."""

    def __init__(  # noqa: PLR0913 - the parts of an open store
        self, engine: Engine, marks: Marks, *, owner: int, store_id: str, group_size: int, clock: Clock, ids: Ids,
        emitter: audit.Emitter,
    ) -> None:
        self.engine = engine
        self.marks = marks
        self.owner = owner
        self.store_id = store_id
        self.group_size = group_size
        self.clock = clock
        self.ids = ids
        self.emitter = emitter
        self._number = 0
        self._queue: list[_Ticket] = []
        self._queue_guard = threading.Lock()
        self._turn = threading.Lock()

    def commit(self, draft: Draft) -> list[Row]:
        """Make the draft durable (as the mode says) and return its audit rows; on return its readers see it.

        Raises ConflictError when what it was made from has changed, in which case only what `draft.on_miss` gives was
        written; StoreFull, StoreBusy and StoreUnavailable when nothing was; CommitInDoubt when that cannot be told.
        """
        draft.seal()
        ticket = _Ticket(draft)
        try:
            self._wait_for(ticket)
            if ticket.error is None and ticket.missed is None:
                draft.committed()
            return ticket.outcome()
        except BaseException as error:
            if self._withdrawn(ticket) or error is ticket.error or isinstance(error, ConflictError):
                raise
            # An interrupt came while the draft was being written, by this thread or another: nobody here knows.
            raise self._in_doubt(ticket, error) from error

    def _wait_for(self, ticket: _Ticket) -> None:
        with self._queue_guard:
            self._queue.append(ticket)
        while not ticket.settled:
            held: list[bool] = []
            try:
                # One call of C's, so that no interrupt comes between taking the turn and knowing that it is taken.
                held.extend(map(self._turn.acquire, (True,), (self.engine.writer_wait_s_max,)))
                if held[0] and not ticket.settled:
                    self._write(self._take(ticket))
            finally:
                if held and held[0]:
                    self._turn.release()
            if not held[0] and self._withdrawn(ticket):  # else it is being written with another thread's draft
                message = f"another thread has been writing {self.engine.path} for too long"
                raise StoreBusy(message)

    def _take(self, own: _Ticket) -> list[_Ticket]:
        with self._queue_guard:
            batch = [own, *(t for t in self._queue if t is not own)][: self.group_size]
            self._queue = [t for t in self._queue if t not in batch]
            for ticket in batch:
                ticket.taken = True
        return batch

    def _withdrawn(self, ticket: _Ticket) -> bool:
        """Take a ticket back that nobody has begun to write; whether that was so, and nothing of it was written."""
        with self._queue_guard:
            if not ticket.taken:
                self._queue = [t for t in self._queue if t is not ticket]
            return not ticket.taken

    def _write(self, batch: list[_Ticket]) -> None:
        committing = False
        try:
            with self.engine.turn():
                late = self.marks.ended()
                lost = self._unreadable(late)
                while True:
                    txn = self.engine.write()
                    try:
                        ended = self._fill(txn, batch, late, lost)
                        committing = True
                        txn.commit()
                        break
                    except lmdb.MapFullError:
                        committing = False
                        txn.abort()
                        self.engine.grow()
                    except BaseException:
                        txn.abort()
                        raise
            self._finish(batch, ended)
        except BaseException as error:  # noqa: BLE001 - whatever it is, every draft in the batch needs its answer
            if len(batch) > 1 and not committing and isinstance(error, PAGE_LOST):
                self._give_up_turn(batch[1:])  # a page that cannot be read is the trouble of whose it is alone (INV-11)
                self._write(batch[:1])
            else:
                self._settle_failed(batch, error, committing=committing)

    def _unreadable(self, late: dict[int, Mark]) -> frozenset[str]:
        """The users of marks that are to be written now whose pages cannot be read: they are no reason to stop all commits.

        Asked before the transaction: LMDB refuses the whole of one that has come to such a page.
        """
        lost = set()
        for user in {mark.user for mark in late.values()}:
            key = user_key(user)
            try:
                for at in (keys.audit_of(key, keys.VERSION_MAX), keys.breaker(key)):
                    self.engine.get(at)
            except StoreCorrupt:
                lost.add(user)
        return frozenset(lost)

    def _give_up_turn(self, tickets: list[_Ticket]) -> None:
        with self._queue_guard:
            self._queue = tickets + self._queue
            for ticket in tickets:
                ticket.taken = False

    def _fill(
        self, txn: lmdb.Transaction[bytes], batch: list[_Ticket], late: dict[int, Mark], lost: frozenset[str],
    ) -> dict[int, Row | None]:
        own = txn.get(keys.owner(self.owner))
        if own is None:
            message = f"owner {self.owner} of {self.engine.path} was fenced by another process; open the store again"
            raise StoreUnavailable(message)
        chain = _Chain(txn, self, next((t.draft.audit_end for t in batch if t.draft.audit_end is not None), None))
        wall_us = self.clock.now_us()
        for ticket in batch:
            ticket.rows, ticket.moves, ticket.error, entries = [], [], None, ticket.draft.entries
            try:
                breakers = Breakers(txn.get, wall_us)
                ticket.missed = _judged(txn, ticket.draft, breakers)
                if ticket.missed is not None:
                    breakers = Breakers(txn.get, wall_us)
                    miss = ticket.draft.on_miss(ticket.missed) if ticket.draft.on_miss is not None else None
                    entries = [] if miss is None else [miss.entry]
                    if miss is not None:
                        breakers.settle(miss.event)
            except StoreCorrupt as error:  # a breaker that cannot be read is no trouble of the others in the batch (INV-11)
                ticket.error = error
                continue
            ticket.error = _second_outcome(txn, entries)
            if ticket.error is None:
                if ticket.missed is None:
                    _put_all(txn, ticket.draft.puts)
                _put_changed(txn, breakers)
                if ticket.missed is None and ticket.draft.fenced is not None:
                    _give_back_all(txn, ticket.draft.fenced)
                ticket.rows = [chain.append(entry) for entry in entries]
                ticket.moves = [chain.append(entry) for entry in breakers.moves]
        ended: dict[int, Row | None] = {}
        for slot, mark in late.items():
            ended[slot] = None
            if txn.get(keys.attempt(mark.attempt_id)) is None:
                ended[slot] = chain.append(mark.entry(), under_user=mark.user not in lost)
                if mark.user not in lost:
                    _give_back(txn, mark)
        chain.close()
        key = keys.owner(self.owner)
        if txn.get(key) is not None:  # a draft that closes the store has removed it
            self._number = int.from_bytes(codec.unseal(key, own), "big") + 1
            txn.put(key, codec.seal(key, self._number.to_bytes(8, "big")))
        return ended

    def _finish(self, batch: list[_Ticket], ended: dict[int, Row | None]) -> None:
        for slot in ended:
            self.marks.release(slot)
        for ticket in batch:
            contexts = [entry.context for entry in ticket.draft.entries] if ticket.missed is None else [None]
            for row, context in zip(ticket.rows, contexts, strict=False):  # none where the draft was refused
                self.emitter.emit(row, context)
            for row in ticket.moves:
                self.emitter.emit(row, _context_of(row, ticket.draft.entries))
            ticket.settled = True
        for late in ended.values():
            if late is not None:
                self.emitter.emit(late, None)

    def _settle_failed(self, batch: list[_Ticket], error: BaseException, *, committing: bool) -> None:
        """Tell every draft of a failed write how it ended; where it got as far as the commit, the commit number tells."""
        durable, known = False, True
        self.engine.end_turn()
        if committing:
            try:
                durable = self._committed(self._number)
            except (ResetError, lmdb.Error):
                known = False
        own, others = batch[0], batch[1:]
        if durable:
            self._finish(batch, {})
            if not isinstance(error, Exception):
                own.error = self._in_doubt(own, error)
            return
        if known and not isinstance(error, Exception):  # the interrupt was meant for this thread alone
            self._give_up_turn(others)
            batch = [own]
        for ticket in batch:
            ticket.error = self._answer(error) if known else self._in_doubt(ticket, error)
            ticket.settled = True

    def _in_doubt(self, ticket: _Ticket, error: BaseException) -> CommitInDoubt:
        attempts = [entry.public.attempt_id for entry in ticket.draft.entries if entry.public.attempt_id]
        doubt = CommitInDoubt("the commit was cut off after it was handed to the disk; manager.inspect() tells how it ended",
                              attempt_id=attempts[0] if len(attempts) == 1 else None)
        doubt.__cause__ = error
        return doubt

    def _answer(self, error: BaseException) -> BaseException:
        if isinstance(error, lmdb.Error):
            found: BaseException = translated(error, "writing", self.engine.path)
        elif isinstance(error, OSError):
            kind = StoreFull if error.errno in FULL else StoreUnavailable
            found = kind(f"writing the store {self.engine.path}: {error}")
        else:
            return error
        found.__cause__ = error
        return found

    def _committed(self, number: int) -> bool:
        """Whether this owner's commit `number` is in the store; opens the environment anew where LMDB refuses all else."""
        key = keys.owner(self.owner)
        try:
            stored = self.engine.get(key)
        except ResetError:
            self.engine.reopen()
            stored = self.engine.get(key)
        if stored is None:
            message = f"owner {self.owner} of {self.engine.path} was fenced, or has closed the store, at its last commit"
            raise StoreUnavailable(message)
        return int.from_bytes(codec.unseal(key, stored), "big") >= number


def _judged(txn: lmdb.Transaction[bytes], draft: Draft, breakers: Breakers) -> MissReason | None:
    """Why the draft may not be applied to what is stored now, None where it may; then `breakers` are as they are after it."""
    for key, value in draft.expected.items():
        if txn.get(key) != value:
            return "conflict"
    for (start, stop), wanted in draft.expected_keys.items():
        if not _are_keys(txn, start, stop, wanted):
            return "conflict"
    for event in draft.events:
        missed = breakers.judge(event)
        if missed is not None:
            return missed
    return None


def _are_keys(txn: lmdb.Transaction[bytes], start: bytes, stop: bytes, wanted: list[bytes]) -> bool:
    with txn.cursor() as cursor:
        cursor.set_range(start)
        found = takewhile(lambda key: key < stop, cursor.iternext(keys=True, values=False)) if cursor.key() else ()
        return all(key == other for key, other in zip_longest(found, wanted))


def _second_outcome(txn: lmdb.Transaction[bytes], entries: list[Entry]) -> InvariantViolation | None:
    own: set[str] = set()
    for entry in entries:
        attempt_id = entry.public.attempt_id
        if attempt_id and (attempt_id in own or txn.get(keys.attempt(attempt_id)) is not None):
            message = f"INV-03: attempt {attempt_id} has its outcome already; a second one was not written"
            return InvariantViolation(message, attempt_id=attempt_id)
        own.add(attempt_id)
    return None


def _put_all(txn: lmdb.Transaction[bytes], puts: dict[bytes, bytes | None]) -> None:
    ordered = sorted(puts)  # neighbours in the tree one after the other
    with txn.cursor() as cursor:
        put = cursor.put
        for key in ordered:
            value = puts[key]
            if value is not None:
                put(key, value)
            else:
                txn.delete(key)  # a cursor's would read the next record too, whose page may be another user's and damaged


def _put_changed(txn: lmdb.Transaction[bytes], breakers: Breakers) -> None:
    for key, value in breakers.records().items():
        if value is None:
            txn.delete(key)
        elif txn.get(key) != value:
            txn.put(key, value)


def _give_back(txn: lmdb.Transaction[bytes], mark: Mark) -> None:
    """The probe of an attempt whose end could not be settled with it must not hold its slot for ever (INV-12)."""
    for user in (user_key(mark.user), b""):
        with contextlib.suppress(StoreCorrupt, StoreForeign):  # whoever needs it is told; this commit may be another user's
            breakers = Breakers(txn.get, 0)
            breakers.give_back(user, mark.attempt_id)
            _put_changed(txn, breakers)


def _give_back_all(txn: lmdb.Transaction[bytes], owner: int) -> None:
    """The probes of an owner that may commit nothing more: each was leased with an intent, by which it is found here.

    The intents stay: the rows of their attempts are written when the owner's marks are settled.
    """
    stop = keys.after(keys.INTENT)
    with txn.cursor() as cursor:
        found = takewhile(lambda row: row[0] < stop, cursor.iternext()) if cursor.set_range(keys.INTENT) else ()
        marks = list(intents.of(found, owner))
    for mark in marks:
        _give_back(txn, mark)


def _context_of(row: Row, entries: list[Entry]) -> dict[str, Any] | None:
    """The contextvars of the attempt that moved a breaker."""
    attempt_id = row.personal.details["attempt_id"]
    return next((entry.context for entry in entries if entry.public.attempt_id == attempt_id), None)


class _Chain:
    """The end of the audit log inside one write transaction."""

    def __init__(self, txn: lmdb.Transaction[bytes], committer: Committer, found: bytes | None = None) -> None:
        self._txn = txn
        self._committer = committer
        try:
            tail = _tail(txn)
        except StoreCorrupt:
            if found is None:
                raise
            tail = found
        self._seq = int.from_bytes(tail[:8], "big")
        self._hash = tail[8:CHAIN_BYTES]
        self._appended = False

    def append(self, entry: Entry, *, under_user: bool = True) -> Row:
        """Write one row and what finds it again, also by its user."""
        committer, txn = self._committer, self._txn
        self._seq += 1
        public = msgspec.structs.replace(
            entry.public, seq=self._seq, owner=committer.owner, store_id=committer.store_id,
            written_us=committer.clock.now_us(),
        )
        if not entry.personal.salt:
            personal = msgspec.structs.replace(entry.personal, salt=committer.ids.salt())
            entry = Entry(entry.public, personal, entry.context)
        data, digest = audit.row_bytes(entry, public, self._hash)
        key = keys.audit(self._seq)
        txn.put(key, codec.seal(key, data))
        seq = self._seq.to_bytes(8, "big")
        if public.attempt_id:
            txn.put(keys.attempt(public.attempt_id), seq)
            txn.delete(keys.intent(public.attempt_id))
        if entry.personal.user and under_user:
            txn.put(keys.audit_of(user_key(entry.personal.user), self._seq), b"")
        row = Row(public, entry.personal, self._hash, digest)
        self._hash = digest
        self._appended = True
        return row

    def close(self) -> None:
        """Note the new end of the chain."""
        if self._appended:
            self._txn.put(keys.CHAIN, codec.seal(keys.CHAIN, self._seq.to_bytes(8, "big") + self._hash))


def _tail(txn: lmdb.Transaction[bytes]) -> bytes:
    """Number and hash of the newest audit row; StoreCorrupt, with the remedy, where the record of it is damaged or gone."""
    stored = txn.get(keys.CHAIN)
    if stored is None:
        with txn.cursor() as cursor:
            if not (cursor.set_range(keys.AUDIT) and cursor.key() < keys.after(keys.AUDIT)):
                return bytes(8) + audit.GENESIS
    try:
        tail = codec.unseal(keys.CHAIN, stored or b"")
        if len(tail) == CHAIN_BYTES:
            return tail
        why = f"it has {len(tail)} bytes"
    except (StoreCorrupt, StoreForeign) as error:
        why = "it is gone" if stored is None else error.problem
    message = (f"the record of the end of the audit log cannot be read ({why}), and nothing can be committed without it: "
               "`resetguard recover --actor A --reason R` finds it again from the newest row")
    raise StoreCorrupt(message)


def audit_tail(engine: Engine) -> tuple[int, bytes]:
    """The number of the newest audit row and its hash; (0, zeros) for an empty log."""
    with engine.reading() as txn:
        tail = _tail(txn)
    return int.from_bytes(tail[:8], "big"), tail[8:CHAIN_BYTES]


