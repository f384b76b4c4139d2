"""What a sweep leaves behind: an audit row for each finding that is new, and a note of how far each user was judged.

Both are one commit for a chunk.  The note is a record of its own under a store-wide prefix, away from its user's pages, so
that noting many users touches few.  A finding is new when none of the versions told of its rule, under the same settings,
lies in its evidence: a window that still holds what was told says nothing new.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
import xxhash

from statemachine import audit, codec
from statemachine.errors import ConflictError, StoreCorrupt
from statemachine.state import user_key
from statemachine.store import keys
from statemachine.store.draft import record
from statemachine.store.records import Swept
from statemachine.validation import Violation

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from statemachine.store import Store
    from statemachine.store.draft import Draft
    from statemachine.store.reading import StoredLog
    from statemachine.sweep.findings import Finding

FOUND: Final = "sweep.found"
TOLD_VERSIONS_MAX: Final = 64
COMMITS_MAX: Final = 5
"""How often a commit is tried, each time without those who changed: then whoever is left waits for the next sweep."""


class Notes(NamedTuple):
    """How findings are written down: by whom and why, whether as alerts, in which sweep, and each rule's settings."""

    sweep_id: str
    actor: str
    reason: str
    alert: bool
    fingerprint: str
    settings: Mapping[str, str]

    def rule_key(self, rule: str) -> str:
        """The rule under its settings, as the notes know it."""
        return f"{rule}:{xxhash.xxh3_64_hexdigest(self.settings.get(rule, '').encode())[:8]}"


def known(log: StoredLog) -> Swept:
    """What earlier sweeps noted of a user; nothing where the note cannot be read."""
    try:
        return record(Swept, keys.swept(log.user), log.swept) or Swept(0, "")
    except StoreCorrupt:
        return Swept(0, "")


def is_new(finding: Finding, noted: Swept, notes: Notes) -> bool:
    """Whether nothing was told yet that the finding's evidence holds."""
    told = noted.told.get(notes.rule_key(finding.rule), ())
    return not any(finding.since_version <= version <= finding.version for version in told)


class Note(NamedTuple):
    """One user's part of a chunk: its log as read, its newest and its first readable version, and the findings that are new.

    A user that is not `settled` is judged again by the next sweep, even if nothing is new: a restore is still to be made.
    """

    log: StoredLog
    version: int
    first: int
    findings: tuple[Finding, ...]
    settled: bool = True


def write_down(store: Store, noted: Sequence[Note], notes: Notes) -> list[Note]:
    """Make rows and notes durable, all in one commit; those of users who changed in between are left out, and returned.

    Raises as `Store.commit`, but not ConflictError.
    """
    left: list[Note] = []
    for _ in range(COMMITS_MAX):
        if _committed(store, noted, notes):
            return left
        changed = _changed(store, noted)
        left.extend(note for note in noted if note.log.user in changed)
        noted = [note for note in noted if note.log.user not in changed]
    return [*left, *noted]


def _changed(store: Store, noted: Sequence[Note]) -> set[bytes]:
    """The users whose records are not what their part of the commit was made from."""
    with store.engine.reading() as txn:
        return {note.log.user for note in noted if any(txn.get(key) != value for key, value in _made_from(note.log))}


def _made_from(log: StoredLog) -> tuple[tuple[bytes, bytes | None], ...]:
    """What must still stand: the note before, and a record that is gone where the user was forgotten meanwhile."""
    stands = log.versions[0] if log.versions else (keys.head(log.user), log.head)
    return (keys.swept(log.user), log.swept), stands


def _committed(store: Store, noted: Sequence[Note], notes: Notes) -> bool:
    draft = store.draft()
    for note in noted:
        _put(store, draft, note, notes)
    if not draft:
        return True
    try:
        store.commit(draft)
    except ConflictError:
        return False
    return True


def _put(store: Store, draft: Draft, note: Note, notes: Notes) -> None:
    before = known(note.log)
    told = dict(before.told)
    for finding in note.findings:
        rule = notes.rule_key(finding.rule)
        kept = tuple(version for version in told.get(rule, ()) if version >= note.first)
        told[rule] = (*kept, finding.version)[-TOLD_VERSIONS_MAX:]
    after = Swept(note.version if note.settled else 0, notes.fingerprint, told)
    if after == before:
        return
    for key, value in _made_from(note.log):
        draft.expect_as(key, value)
    draft.put(keys.swept(note.log.user), codec.pack(after))
    draft.entries.extend(_row(store, finding, notes) for finding in note.findings)


def _row(store: Store, finding: Finding, notes: Notes) -> audit.Entry:
    details: dict[str, Any] = {
        "severity": finding.severity, "alert": notes.alert, "rule": finding.rule, "version": finding.version,
        "since_version": finding.since_version, "value": finding.value, "limit": finding.limit, "unit": finding.unit,
        "sweep": {"attempt_id": notes.sweep_id},
    }
    entry = audit.act(FOUND, store.ids.attempt_id(), actor=notes.actor, reason=notes.reason, at_us=store.clock.now_us(),
                      user=finding.user, kind=finding.rule, outcome="found", trigger="sweep", details=details)
    shown = f"{finding.value:.6g}" if isinstance(finding.value, float) else finding.value
    broken = Violation(finding.rule, f"version {finding.version}", shown, finding.limit, finding.unit)
    return entry._replace(public=msgspec.structs.replace(entry.public, base_version=finding.version),
                          personal=msgspec.structs.replace(entry.personal, violations=(broken,)))


def swept_since(store: Store, since_seq: int) -> list[bytes]:
    """The users whom an audit row from `since_seq` on is about, in the order of their bytes."""
    return sorted({user_key(row.personal.user) for row in store.audit(since_seq=since_seq)
                   if row.personal.user and row.public.event != FOUND})
