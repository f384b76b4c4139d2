"""The checkup: one pass over all records of a store, each finding with its remedy; damage is told, never raised.

The sieve goes through the store in pieces, in several processes where that pays, and what it holds back is looked at
carefully.  Only what the careful look finds, in one read transaction, is told: a commit meanwhile is no finding.
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from statemachine import audit
from statemachine.errors import ResetError
from statemachine.store import keys, pages
from statemachine.store.careful import Finding, StoreWide
from statemachine.store.committer import audit_tail
from statemachine.store.engine import rows_of
from statemachine.store.pieces import DATA_FILE, PIECE_ROWS, PIECES_MAX, Crew, Piece, astray, cut, unread
from statemachine.store.sieve import STRETCHES, Log, Segment, Tally
from statemachine.store.verification import without

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from statemachine.store import Store
    from statemachine.store.records import Meta

CHECKS: Final = (
    "records", "heads", "versions", "kept aside", "probation", "orphans", "damaged heads", "cursors", "owners",
    "audit chain", "audit index",
)
CHUNK_ROWS: Final = 1_000
_SIFTED: Final = (keys.AUDIT, keys.PIN, keys.ATTEMPT)
"""What the sieve goes through of what lies under the leading NUL; all else there is looked at carefully."""


class Checkup:
    """One examination of an open store.  `looked` counts what was looked at, by check; `kept` what lies in quarantine.

    `oldest_kept_us` is the instant of the oldest measurement kept aside, None where there is none.  `processes`: how many
    may work on a large store (`Crew` says what they ask of the program).
    """

    def __init__(self, store: Store, *, processes: int = 1) -> None:
        self._store = store
        self._engine = store.engine
        self._processes = processes
        self._told: set[Finding] = set()
        self._segments: list[Segment | None] = []
        self._total = Tally()
        self.looked: Counter[str] = Counter()
        self.kept = 0
        self.oldest_kept_us: int | None = None

    def run(self) -> Iterator[Finding]:
        """Every finding, as it is found.  Raises nothing for damage; memory does not grow with the store.

        Where a page would end the process that reads it, this is the one finding, and no record is looked at.
        """
        try:
            for problem in pages.check(self._engine):
                yield astray(problem)
        except ResetError as error:
            yield unread(f"no record was looked at: {error}")
            return
        meta, log, tail_hash = None, Log(0), audit.GENESIS
        try:
            meta = self._store.meta()
        except ResetError as error:
            yield Finding("records", "error", "the store's own record", str(error), "take it from a backup")
        try:
            tail, tail_hash = audit_tail(self._engine)
            log = Log(tail)
        except ResetError:
            self._segments.append(None)  # the chain cannot be sound; the record itself is told of below
        yield from self._guarded(self._store_wide(meta))
        with Crew(self._store, self._processes) as crew:
            for look in (self._log, self._users):
                if not crew.broken:
                    yield from self._guarded(look(crew, log))
            if not crew.broken:
                yield from self._guarded(self._chain(log, tail_hash))

    def _guarded(self, found: Iterator[Finding]) -> Iterator[Finding]:
        """The findings, and one more where a page of the data file cannot be read at all: what follows it was not seen."""
        try:
            yield from found
        except ResetError as error:
            yield unread(f"reading stopped: {error}")

    def _store_wide(self, meta: Meta | None) -> Iterator[Finding]:
        rest = StoreWide(meta, self._meta_now)
        start = b"\0"
        for sifted in (*_SIFTED, keys.FIRST_USER):
            yield from self._carefully(rest, start, sifted)
            start = keys.after(sifted)
        self.looked += rest.looked
        self.kept += rest.kept

    def _meta_now(self) -> Meta | None:
        try:
            return self._store.meta()
        except ResetError:
            return None

    def _carefully(self, rest: StoreWide, start: bytes, stop: bytes, *, counted: bool = True) -> Iterator[Finding]:
        """Look at each record with start <= key < stop."""
        while start:
            with self._engine.reading() as txn:
                rows = rows_of(txn, start, stop, CHUNK_ROWS)
                found = [finding for key, value in rows for finding in rest.judged(txn.get, key, value)]
            self.looked["records"] += len(rows) if counted else 0
            yield from found
            start = rows[-1][0] + b"\0" if len(rows) == CHUNK_ROWS else b""

    def _log(self, crew: Crew, log: Log) -> Iterator[Finding]:
        """The rows of the audit log, and the keys of attempts that lead to them."""
        bounds = [keys.AUDIT, *map(keys.audit, range(PIECE_ROWS + 1, log.tail + 1, PIECE_ROWS)), keys.audit(log.tail + 1)]
        rows = [Piece("audit", low, high, log) for low, high in pairwise(bounds)]
        for result in crew.look(rows):
            self._segments.append(result.segment)
            yield from self._took(result.findings, result.tally, "audit index", "audit chain")
        yield from self._carefully(StoreWide(), keys.audit(log.tail + 1), keys.after(keys.AUDIT))
        attempts = [Piece("attempts", low, high, log) for low, high in self._cut(keys.ATTEMPT, keys.after(keys.ATTEMPT))]
        rows_sums, self._total.attempt_sums = self._total.attempt_sums, [0] * STRETCHES
        for result in crew.look(attempts):
            yield from self._took(result.findings, result.tally, "audit index")
        doubted = self._doubt(rows_sums, self._total.attempt_sums)
        if doubted and not crew.broken:
            yield from self._stretches(log, doubted)
            for result in crew.look(piece._replace(doubted=doubted, again=True) for piece in attempts):
                yield from self._once(result.findings)

    def _users(self, crew: Crew, log: Log) -> Iterator[Finding]:
        """The users, with their pins and the keys under which they find their rows of the log."""
        erased = tuple(pair for segment in self._segments if segment is not None for pair in segment.erased)
        before, doubted = frozenset(self._total.doubted), frozenset(self._total.doubted)
        kept_max = self._store.limits.quarantined_measurements_max
        pieces = [Piece("users", low, high, log._replace(erased=erased), before, kept_max=kept_max)
                  for low, high in self._cut(keys.FIRST_USER, b"")]
        rows_sums, self._total.user_sums = self._total.user_sums, [0] * STRETCHES
        for result in crew.look(pieces):
            users = result.tally.users
            for check, many in (("heads", users), ("orphans", users), ("probation", users),
                                ("versions", result.tally.versions), ("kept aside", result.tally.kept)):
                self.looked[check] += many
            yield from self._took(result.findings, result.tally)
        doubted = self._doubt(rows_sums, self._total.user_sums) - before
        if doubted and not crew.broken:
            yield from self._stretches(log, doubted)
            for result in crew.look(piece._replace(doubted=doubted, again=True) for piece in pieces):
                yield from self._once(result.findings)

    def _cut(self, start: bytes, stop: bytes) -> list[tuple[bytes, bytes]]:
        pieces = min(self._engine.info()["entries"] // PIECE_ROWS + 1, PIECES_MAX)
        return cut(self._engine, start, stop, pieces, users=start == keys.FIRST_USER)

    def _took(self, findings: Iterable[Finding], tally: Tally, *checks: str) -> Iterator[Finding]:
        """Add up what was counted in a piece, and tell what was found."""
        total = self._total
        self.looked["records"] += tally.rows
        for check in checks:
            self.looked[check] += tally.rows
        total.attempt_sums = [one + other for one, other in zip(total.attempt_sums, tally.attempt_sums, strict=True)]
        total.user_sums = [one + other for one, other in zip(total.user_sums, tally.user_sums, strict=True)]
        total.doubted |= tally.doubted
        self.kept += tally.kept
        if tally.oldest_kept_us is not None and (self.oldest_kept_us is None or tally.oldest_kept_us < self.oldest_kept_us):
            self.oldest_kept_us = tally.oldest_kept_us
        yield from self._once(findings)

    def _once(self, findings: Iterable[Finding]) -> Iterator[Finding]:
        """The findings, but those that a second look may find again only once."""
        for finding in findings:
            if finding.check != "audit index" and finding.subject != DATA_FILE:
                yield finding
            elif finding not in self._told:
                self._told.add(finding)
                yield finding

    def _doubt(self, one: list[int], other: list[int]) -> frozenset[int]:
        """The stretches of the log that are doubted now: also those whose two sums differ."""
        self._total.doubted.update(n for n in range(STRETCHES) if one[n] != other[n])
        return frozenset(self._total.doubted)

    def _stretches(self, log: Log, doubted: Iterable[int]) -> Iterator[Finding]:
        """Look carefully at the rows of the log in these stretches."""
        for stretch in sorted(doubted):
            start = keys.audit(stretch * log.width) if stretch else keys.AUDIT
            stop = keys.audit(min((stretch + 1) * log.width, log.tail + 1))
            yield from self._once(self._carefully(StoreWide(), start, stop, counted=False))

    def _chain(self, log: Log, tail_hash: bytes) -> Iterator[Finding]:
        if self._is_chain(log, tail_hash):
            return
        check = self._store.verify_audit()
        if check.bad_seq is not None:
            yield Finding("audit chain", "error", f"audit row {check.bad_seq}", check.problem,
                          "keep the store as evidence; `resetguard audit verify` tells the hash before it")

    def _is_chain(self, log: Log, tail_hash: bytes) -> bool:
        """Whether the segments follow one another from the first row to the last, and each erasure is accounted for."""
        hash_before, rows = audit.GENESIS, 0
        erased: list[tuple[int, int]] = []
        for segment in self._segments:
            if segment is None or not segment.sound or (segment.rows and segment.before != hash_before):
                return False
            hash_before, rows = segment.after or hash_before, rows + segment.rows
            erased += segment.erased
        for low, high in (pair for segment in self._segments if segment is not None for pair in segment.covered):
            erased = list(without(erased, low, high))
        return (hash_before, rows) == (tail_hash, log.tail) and not erased and self._is_end()

    def _is_end(self) -> bool:
        """Whether no row stands after the end of the log as it is now."""
        newest = self._engine.ends(keys.AUDIT, keys.after(keys.AUDIT))[1]
        return newest is None or newest <= keys.audit(audit_tail(self._engine)[0])
