"""What an alert says.  By default nothing of a person: no id, no measurement, no text that somebody wrote."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import msgspec

from statemachine.clock import iso

if TYPE_CHECKING:
    from statemachine.audit import Row

BROKEN: Final = "audit.broken"
REASONS: Final = {
    "breaker.opened": "a circuit breaker opened: resets are refused until it has cooled down",
    "state.unrecoverable": "no version of a user's state can be read: restore it from a backup, or rebuild it",
    BROKEN: "the hash chain of the audit log does not verify: keep a copy, and compare with a backup",
}
TOLD: Final = ("from", "to", "mode", "generation", "failures", "openings", "reason", "retry_at", "rule", "severity", "version")
"""The names among a row's details that are told: words and numbers of the library's own."""
_WORD: Final = re.compile(r"[\w.:+-]{1,60}")
"""What is told of a text: one word or instant, never a sentence, which could name somebody."""


class Alert(msgspec.Struct, frozen=True):
    """One thing that somebody must know.

    `seq` is the audit row that says it (for "audit.broken" the first row that does not verify), `attempt_id` the attempt that
    it is of, or that caused it.  `reason` is a sentence of
    the library's own.  `user`, `said` (an operator's reason) and `error` are for hooks in this process; `document` leaves
    them out unless it is asked for them.  Instants are microseconds since 1970 UTC.
    """

    event: str
    reason: str
    seq: int
    store_id: str
    written_us: int
    scope: str = ""
    kind: str = ""
    attempt_id: str = ""
    details: dict[str, Any] = {}
    user: str = ""
    said: str = ""
    error: str = ""

    @classmethod
    def of(cls, row: Row) -> Alert:
        """The alert that an audit row is."""
        public, personal = row.public, row.personal
        event, given = public.event, personal.details
        told = {name: value for name in TOLD if isinstance(value := given.get(name), int | float)
                or (isinstance(value, str) and _WORD.fullmatch(value))}
        scope, attempt_id = given.get("scope"), public.attempt_id or given.get("attempt_id")
        return cls(
            event, REASONS.get(event, event.replace(".", " ").replace("_", " ")), public.seq, public.store_id, public.written_us,
            scope=scope if scope in ("user", "global") else "user" if personal.user else "store", kind=public.kind,
            attempt_id=attempt_id if isinstance(attempt_id, str) else "", details=told,
            user=personal.user, said=personal.reason, error=personal.error,
        )

    def document(self, *, include_user: bool = False) -> dict[str, Any]:
        """What leaves the process as JSON; with `include_user` who it is about, and texts that may name them."""
        told: dict[str, Any] = {
            "event": self.event, "reason": self.reason, "seq": self.seq, "store_id": self.store_id,
            "written_at": iso(self.written_us), "scope": self.scope, "kind": self.kind or None,
            "attempt_id": self.attempt_id or None, "details": self.details,
        }
        if include_user:
            told |= {"user": self.user or None, "said": self.said or None, "error": self.error or None}
        return told
