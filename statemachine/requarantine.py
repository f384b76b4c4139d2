"""What a person does about measurements kept aside: drop them for good.

A dropped measurement is gone on a person's word alone, and the audit row of it says how many went (INV-08).
"""

from __future__ import annotations

from typing import NamedTuple

from statemachine import audit, codec
from statemachine.state import user_key
from statemachine.store import Store, identities, keys
from statemachine.store.records import ACCEPTED, Unreadable


class Dropped(NamedTuple):
    """How much was dropped: measurements kept aside, and rows that could not be read."""

    attempt_id: str
    measurements: int
    unreadable: int


def drop(store: Store, user: str, *, actor: str, reason: str, before_us: int | None = None) -> Dropped:
    """Delete what is kept aside of a user, or of it what is of before an instant; durable on return, and audited.

    Rows that could not be read have no instant: they go only where no `before_us` is given.  Raises InvalidInput for a
    missing actor or reason, ConflictError when the user was changed meanwhile, having deleted nothing.
    """
    key, draft = user_key(user), store.draft()
    attempt_id = store.ids.attempt_id()
    measurements = unreadable = 0
    draft.expect(keys.head(key))
    draft.aside(key)
    for at, kept in draft.identities(key, -(2**62)):
        if kept.disposition != ACCEPTED and (before_us is None or keys.instant_of(at, key) < before_us):
            identities.withdraw(draft, key, at)
            measurements += 1
    if before_us is None:
        for at, value in store.engine.scan(keys.UNREADABLE, keys.after(keys.UNREADABLE)):
            if codec.unpack(Unreadable, codec.unseal(at, value)).user == user:
                draft.expect(at)
                draft.delete(at)
                unreadable += 1
    details = {"measurements": measurements, "unreadable": unreadable, "before_us": before_us}
    draft.entries.append(audit.act("quarantine.dropped", attempt_id, actor=actor, reason=reason, user=user,
                                   at_us=store.clock.now_us(), details=details))
    store.commit(draft)
    return Dropped(attempt_id, measurements, unreadable)
