"""The breakers and the budget inside one write transaction: what a draft's events make of them, and the rows that say so.

A row "breaker.opened" or "breaker.closed" is written with the outcome that caused it, exactly when the stored mode moves to
open, or from open or half-open to closed; an operator's word has rows of its own.  A probe's lease, and its return, are no
move of either kind.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from statemachine import codec
from statemachine.audit import Entry, Personal, Public
from statemachine.breaker import CLOSED, UNSPENT, Breaker, Budget, Now, affordable, released, spent
from statemachine.clock import iso
from statemachine.store import keys
from statemachine.store.draft import BreakerEvent, MissReason, breaker_key, record

if TYPE_CHECKING:
    from collections.abc import Callable

SHUT: Final = {"open", "forced-open"}


class Breakers:
    """Reads through `get` what is stored, moves it on event by event, and gives the records and rows to write.

    `wall_us` is the instant of the commit, by which live resets are taken from the budget.
    """

    def __init__(self, get: Callable[[bytes], bytes | None], wall_us: int) -> None:
        self._get = get
        self._wall_us = wall_us
        self._found: dict[bytes, Breaker] = {}
        self._budget: Budget | None = None
        self.moves: list[Entry] = []

    def of(self, user: bytes) -> Breaker:
        """The user's breaker, or with b"" the global one, as it is by now; raises StoreCorrupt."""
        found = self._found.get(user)
        if found is None:
            key = breaker_key(user)
            found = record(Breaker, key, self._get(key)) or CLOSED
        return found

    def settle(self, event: BreakerEvent) -> dict[bytes, tuple[Breaker, Breaker]]:
        """Count the end of an attempt; each breaker before and after it.  Raises as `BreakerEvent.moves`."""
        moved = event.moves(self.of)
        for whose, (before, after) in moved.items():
            self._found[whose] = after
            self._note(event, "user" if whose else "global", before, after)
        return moved

    def judge(self, event: BreakerEvent) -> MissReason | None:
        """Count the end of an attempt; why a success may not be committed, None where it may."""
        moved = self.settle(event)
        if event.result != "success":
            return None
        (own, _), (common, _) = moved[event.user], moved[b""]
        if own.generation != event.generation or own.mode in SHUT:
            return "breaker"
        if common.mode in SHUT:
            return "global breaker"
        return self._take(event)

    def _take(self, event: BreakerEvent) -> MissReason | None:
        """Take one reset from the budget; a live one by the present instant, since it may have run for long."""
        if event.resets_per_minute is None or not event.spends:
            return None
        if self._budget is None:
            self._budget = record(Budget, keys.BUDGET, self._get(keys.BUDGET)) or UNSPENT
        now = event.now if event.now.base == "event" else Now(self._wall_us, self._wall_us)
        if affordable(self._budget, event.resets_per_minute, now).verdict == "refuse":
            return "budget"
        self._budget = spent(self._budget, now)
        return None

    def give_back(self, user: bytes, attempt_id: str) -> None:
        """Free the probe's slot where this attempt holds it."""
        found = self.of(user)
        free = released(found, attempt_id)
        if free is not found:
            self._found[user] = free

    def records(self) -> dict[bytes, bytes | None]:
        """What to store: a breaker that is simply closed has no record."""
        puts: dict[bytes, bytes | None] = {}
        for user, value in self._found.items():
            key = breaker_key(user)
            puts[key] = None if value == CLOSED else codec.seal(key, codec.pack(value))
        if self._budget is not None:
            puts[keys.BUDGET] = codec.seal(keys.BUDGET, codec.pack(self._budget))
        return puts

    def _note(self, event: BreakerEvent, scope: str, before: Breaker, after: Breaker) -> None:
        if after.mode != before.mode:
            self.moves.append(_row(event, scope, before, after))


def _row(event: BreakerEvent, scope: str, before: Breaker, after: Breaker) -> Entry:
    """The row of a breaker's opening or closing, about the user where it is the user's."""
    opens = after.mode == "open"
    details: dict[str, Any] = {
        "scope": scope, "from": before.mode, "to": after.mode, "generation": after.generation,
        "openings": after.openings if opens else before.openings, "attempt_id": event.attempt_id,
    }
    if opens:
        policy = event.policy if scope == "user" else event.global_policy
        said = {
            "failures": "the reset failed" if before.failures == 0 else f"{before.failures + 1} resets in a row failed",
            "users": f"the resets of {event.global_policy.users_max} users failed within {policy.window_s:g} s",
            "rate": f"of the resets within {policy.window_s:g} s, {policy.failure_rate_max or 0:.0%} or more failed",
            "probe": "the probe failed",
        }.get(after.opened_by, after.opened_by)
        details |= {"reason": after.opened_by, "retry_at": iso(after.retry_us), "time_base": after.base}
        why = f"{said}; a probe may run from {iso(after.retry_us)}"
    else:
        details["reason"] = "probe"
        why = f"{before.successes + 1} {'probe' if before.successes == 0 else 'probes in succession'} succeeded"
    name = "opened" if opens else "closed"
    public = Public(event=f"breaker.{name}", outcome=name, kind="breaker", breaker_mode=after.mode,
                    breaker_generation=after.generation)
    user = event.user.decode() if scope == "user" else ""
    return Entry(public, Personal(user=user, at_us=event.now.at_us, trigger=why, details=details))
