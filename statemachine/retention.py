"""How long the quarantine keeps what people sent, and how much of it: pruning by age, and word of a limit that was passed.

A pruned measurement keeps its identity: it still counts as kept aside, and sent again it is still known (INV-08, INV-09).
What goes is its content: value, unit, source, reading and reason.  A held one is quarantined by it, since it can be evidence
no more.  The key of an identity has the instant and a digest of value, unit and source; that stays until the user is
forgotten.

Nothing is ever dropped because there is too much: a limit that was passed is told, and a person decides.
"""

from __future__ import annotations

from collections import Counter
from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from statemachine import audit, codec
from statemachine.audit import Entry, Personal, Public, context_now
from statemachine.clock import iso
from statemachine.errors import ConflictError, StoreBusy, StoreCorrupt
from statemachine.state import user_key
from statemachine.store import identities, keys
from statemachine.store.draft import record
from statemachine.store.records import ACCEPTED, HELD, PRUNED, Aside, Cursor, Identity, Unreadable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from statemachine.store import Store
    from statemachine.store.draft import Draft

ROWS_A_COMMIT_MAX: Final = 1_000
RETRIES_MAX: Final = 100


class PrunedAside(NamedTuple):
    """What lost its content: measurements of `users` (of them `held` ones, which were evidence until then) and unreadable rows.

    `undated` unreadable rows were left because nobody knows when they came; `damaged` records could not be read and were left.
    """

    measurements: int
    held: int
    unreadable: int
    users: int
    undated: int
    damaged: int
    commits: int


class _Target(NamedTuple):
    """One record to prune: whose, where, and what it was when it was found."""

    user: str
    key: bytes
    stored: bytes
    kept: Identity | Unreadable


def prune_quarantine(  # noqa: PLR0913 - two are recorded, the others say what
    store: Store, before_us: int, actor: str, reason: str, *, user: str | None = None, undated: bool = False,
    rows_max: int = ROWS_A_COMMIT_MAX,
) -> PrunedAside:
    """Drop the content of what is kept aside and older than an instant (us since 1970 UTC), of one user or of all.

    A measurement is as old as its own instant.  A row that could not be read is as old as the first run over its file; one
    of a stream has no age and goes only with `undated`.  In commits of at most `rows_max`, each durable with a row
    "quarantine.pruned" for each user in it, so that one that was cut off may be called again: what was pruned is passed over.
    Raises InvalidInput for a missing actor or reason, StoreBusy where others kept changing the same users.
    """
    audit.require_said(user or "", actor=actor, reason=reason)
    run = _Run(store, before_us, actor, reason)
    targets = run.targets(user, undated=undated)
    while chunk := list(islice(targets, rows_max)):
        run.prune(chunk)
    return run.done()


class _Run:
    """One pruning, and its counts."""

    def __init__(self, store: Store, before_us: int, actor: str, reason: str) -> None:
        self._store = store
        self._before_us = before_us
        self._actor, self._reason = actor, reason
        self._counts: Counter[str] = Counter()
        self._last = ""

    def targets(self, user: str | None, *, undated: bool) -> Iterator[_Target]:
        """What is to be pruned, read as it goes."""
        yield from self._unreadable(user, undated=undated)
        for name in self._store.users() if user is None else (user,):
            yield from self._measurements(name)

    def _measurements(self, name: str) -> Iterator[_Target]:
        key, engine = user_key(name), self._store.engine
        try:
            aside = record(Aside, keys.aside(key), engine.get(keys.aside(key)))
        except StoreCorrupt:
            self._counts["damaged"] += 1
            return
        if aside is None or aside.count == aside.pruned:
            return
        for at, stored in engine.scan(keys.identities(key), keys.identity(key, self._before_us, b"")):
            try:
                kept = codec.unpack(Identity, codec.unseal(at, stored))
            except StoreCorrupt:
                self._counts["damaged"] += 1
                continue
            if kept.disposition != ACCEPTED and not identities.is_pruned(kept):
                yield _Target(name, at, stored, kept)

    def _unreadable(self, user: str | None, *, undated: bool) -> Iterator[_Target]:
        read_us = self._first_runs()
        for at, stored in self._store.engine.scan(keys.UNREADABLE, keys.after(keys.UNREADABLE)):
            try:
                row = codec.unpack(Unreadable, codec.unseal(at, stored))
            except StoreCorrupt:
                self._counts["damaged"] += 1
                continue
            if row.reason == PRUNED or (user is not None and row.user != user):
                continue
            at_us = read_us.get(int.from_bytes(at[2:10], "big"))
            if at_us is None and not undated:
                self._counts["undated"] += 1
            elif at_us is None or at_us < self._before_us:
                yield _Target(row.user, at, stored, row)

    def _first_runs(self) -> dict[int, int]:
        """When each source with a cursor was first processed."""
        found = {}
        for at, stored in self._store.engine.scan(keys.CURSOR, keys.after(keys.CURSOR)):
            cursor = record(Cursor, at, stored)
            if cursor is not None:
                found[cursor.source_id] = cursor.now_us
        return found

    def prune(self, chunk: list[_Target]) -> None:
        """One commit; again, from what is stored by then, where another was faster."""
        for _ in range(RETRIES_MAX):
            draft = self._store.draft()
            counts = {name: Counter[str]() for name in sorted({target.user for target in chunk})}
            for target in chunk:
                counts[target.user].update(_drop(draft, target))
            for name, counted in counts.items():
                details = {"before": iso(self._before_us), **dict(sorted(counted.items()))}
                draft.entries.append(audit.act(
                    "quarantine.pruned", self._store.ids.attempt_id(), actor=self._actor, reason=self._reason, user=name,
                    at_us=self._store.clock.now_us(), details=details))
            try:
                self._store.commit(draft)
            except ConflictError:
                chunk = list(self._as_now(chunk))
                if not chunk:
                    return
                continue
            self._counts["commits"] += 1
            for name, counted in counts.items():  # in order, and so are the chunks: one user may go on in the next
                self._counts.update(counted)
                self._counts["users"] += int(bool(counted["measurements"]) and name > self._last)
                self._last = max(self._last, name) if counted["measurements"] else self._last
            return
        message = f"other writers changed the same users {RETRIES_MAX} times in a row; what was pruned stays so: try again"
        raise StoreBusy(message)

    def _as_now(self, chunk: list[_Target]) -> Iterator[_Target]:
        """Those of the chunk that are still to be pruned, as they are stored now."""
        for target in chunk:
            stored = self._store.engine.get(target.key)
            if stored is None:
                continue
            kept = codec.unpack(type(target.kept), codec.unseal(target.key, stored))
            gone = kept.reason == PRUNED if isinstance(kept, Unreadable) else (
                kept.disposition == ACCEPTED or identities.is_pruned(kept))
            if not gone:
                yield target._replace(stored=stored, kept=kept)

    def done(self) -> PrunedAside:
        """The counts."""
        c = self._counts
        return PrunedAside(c["measurements"], c["held"], c["unreadable"], c["users"], c["undated"], c["damaged"], c["commits"])


def _drop(draft: Draft, target: _Target) -> Counter[str]:
    draft.expect_as(target.key, target.stored)
    if isinstance(target.kept, Unreadable):
        draft.put(target.key, codec.pack(msgspec.structs.replace(target.kept, raw="", reason=PRUNED)))
        return Counter(unreadable=1)
    identities.prune(draft, user_key(target.user), target.key, target.kept)
    return Counter(measurements=1, held=int(target.kept.disposition == HELD))


def note_limit(draft: Draft, user: bytes, limit: int, at_us: int) -> bool:
    """After a measurement was kept aside: the row that says so where it is the first beyond the limit of its user; whether it is.

    Once each time the limit is passed, not again while what is committed is beyond it already.
    """
    aside = draft.aside(user)
    if aside is None or aside.count - aside.pruned != limit + 1:
        return False
    key = keys.aside(user)
    committed = record(Aside, key, draft.expected.get(key))
    if committed is not None and committed.count - committed.pruned > limit:
        return False
    public = Public(event="quarantine.limit_reached", outcome="over")
    personal = Personal(user=user.decode(), at_us=at_us, trigger="more is kept aside of the user than the limit; it is all kept",
                        details={"kept_aside": limit + 1, "limit": limit})
    draft.entries.append(Entry(public, personal, context_now()))
    return True
