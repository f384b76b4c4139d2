"""Verification of the audit log: the chain from its first row to its end, and that each erased row was erased by an act.

The hash of a row covers a digest of its personal part, so that part may be dropped (INV-10).  Who dropped it must have
said so: a later row, of an event in `audit.ANCHORS`, names the rows it erased.  Anchors themselves are never erased.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from statemachine import audit, codec
from statemachine.errors import StoreCorrupt, StoreForeign
from statemachine.store import keys, pages
from statemachine.store.committer import audit_tail

if TYPE_CHECKING:
    from collections.abc import Iterator

    from statemachine.store.engine import Engine


class AuditCheck(NamedTuple):
    """What `verify_audit` found: rows read, the hash at the end, the first bad row and why, None where all is well."""

    rows: int
    head_hash: str
    bad_seq: int | None = None
    problem: str = ""


def verify(engine: Engine, against: str | None) -> AuditCheck:
    """Recompute the whole chain; `against` is a head hash noted elsewhere, which must occur in it.

    Raises StoreCorrupt where a page of the log would end the process that reads it.
    """
    pages.check(engine, keys.AUDIT, keys.after(keys.AUDIT))
    chain = _Chain(engine, against)
    try:
        while True:
            before = chain.rows
            problem = chain.advance()
            if problem is not None:
                return problem
            if not chain.unanchored or chain.rows == before:
                break  # else a row may have been erased while we read, by an act whose row is newer than our end
    except (StoreCorrupt, StoreForeign) as error:
        return chain.bad(chain.rows + 1, str(error))
    if chain.unanchored:
        seq = chain.unanchored[0][0]
        return chain.bad(seq, f"the personal part of row {seq} is gone, and no later row says who erased it")
    if not chain.seen:
        return chain.bad(chain.rows + 1, f"the noted hash {against} does not occur: the tail was cut")
    return AuditCheck(chain.rows, chain.prev.hex())


class _Chain:
    """How far the log was read, and what is still to be explained by later rows."""

    def __init__(self, engine: Engine, against: str | None) -> None:
        self._engine = engine
        self._against = against
        self.prev = audit.GENESIS
        self.rows = 0
        self.seen = against is None or against == audit.GENESIS.hex()
        self.unanchored: list[tuple[int, int]] = []

    def bad(self, seq: int, problem: str) -> AuditCheck:
        return AuditCheck(self.rows, self.prev.hex(), seq, problem)

    def advance(self) -> AuditCheck | None:
        """Read on to the end as it is now; what is wrong, None where nothing is."""
        tail_seq, tail_hash = audit_tail(self._engine)
        for seq, data in self._records():
            if seq > tail_seq:
                if seq > audit_tail(self._engine)[0]:
                    return self.bad(seq, f"row {seq} stands after the end of the log, row {tail_seq}")
                break  # appended while we read
            row = audit.parse(data)
            self.rows += 1
            if seq != self.rows:
                return self.bad(self.rows, f"row {self.rows} is missing: the next one is {seq}")
            if row.public.seq != seq:
                return self.bad(seq, f"row {seq} was written as row {row.public.seq}")
            if row.prev_hash != self.prev:
                return self.bad(seq, f"row {seq} does not follow from the one before it")
            problem = self._erasure(seq, row)
            if problem:
                return self.bad(seq, problem)
            self.prev = row.hash
            self.seen = self.seen or self.prev.hex() == self._against
        if self.rows != tail_seq or self.prev != tail_hash:
            return self.bad(self.rows + 1, f"the log ends at row {self.rows}, but row {tail_seq} was written")
        return None

    def _records(self) -> Iterator[tuple[int, bytes]]:
        start = keys.audit(self.rows + 1) if self.rows else keys.AUDIT
        for key, value in self._engine.scan(start, keys.after(keys.AUDIT)):
            yield int.from_bytes(key[2:], "big"), codec.unseal(key, value)

    def _erasure(self, seq: int, row: audit.Row) -> str:
        """Note a row without its personal part, or what an anchor explains; why the row cannot stand, "" where it can."""
        if row.erased and row.public.event in audit.ANCHORS:
            return f"the personal part of row {seq} is gone: it says which rows were erased, and is never erased itself"
        if row.erased:
            if self.unanchored and self.unanchored[-1][1] == seq - 1:
                self.unanchored[-1] = (self.unanchored[-1][0], seq)
            else:
                self.unanchored.append((seq, seq))
            return ""
        for first, last in audit.covered(row):
            self.unanchored = list(without(self.unanchored, first, last))
        return ""


def without(ranges: list[tuple[int, int]], first: int, last: int) -> Iterator[tuple[int, int]]:
    """The ranges (first, last), in order, without what lies between `first` and `last`."""
    for low, high in ranges:
        if high < first or low > last:
            yield low, high
            continue
        if low < first:
            yield low, first - 1
        if high > last:
            yield last + 1, high
