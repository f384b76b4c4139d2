"""What a person does about measurements kept aside: offer them once more, or drop them for good.

Offered once more, each is taken out of what is kept and decided as any other, in one commit: it is never in two places.

A dropped measurement is gone on a person's word alone, and the audit row of it says how many went (INV-08).
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from statemachine import audit, codec
from statemachine.breaker import Now
from statemachine.clock import from_us
from statemachine.errors import InvalidInput
from statemachine.processor import Outcome, Processor
from statemachine.state import Reading, user_key
from statemachine.store import Store, identities, keys
from statemachine.store.identities import Origin
from statemachine.store.records import ACCEPTED, Identity, Unreadable

if TYPE_CHECKING:
    from datetime import datetime

    from statemachine.manager import ResetManager
    from statemachine.store.draft import Draft


class Again(NamedTuple):
    """A recorded measurement, as the processor takes one, with the reading that was made of it at first."""

    user: str
    at: datetime
    at_us: int
    value: str
    unit: str
    source: str
    recorded: Reading


class Replayed(NamedTuple):
    """What became of the measurements offered once more; `admitted` ones were taken in by a reset of another."""

    attempt_id: str
    offered: int
    accepted: int
    admitted: int
    kept: int


class _Replay(Processor):
    """Decides measurements that are kept aside as if they had just come."""

    def __init__(self, manager: ResetManager) -> None:
        super().__init__(manager)
        self.reading = _recorded

    def one(self, batch: Any, measurement: Any, origin: Origin) -> Outcome:
        """Decide one that is still kept and later than the head; any other is known."""
        user = user_key(measurement.user)
        key = identities.key_of(user, measurement)
        head = batch.draft.head(user)
        at_us = None if head is None else self.store.estimator.at_us(self.store.estimator.decode(head.state))
        kept = batch.draft.identity(key)
        if kept is None or kept.disposition == ACCEPTED or (at_us is not None and measurement.at_us <= at_us):
            return Outcome("known", measurement.user)
        identities.withdraw(batch.draft, user, key)
        return super().one(batch, measurement, origin)


def _recorded(measurement: Any) -> Reading:
    found: Reading = measurement.recorded
    return found


def replay(manager: ResetManager, user: str, *, actor: str, reason: str) -> Replayed:
    """Offer what is kept aside of a user and later than the head once more, in time order, each in a commit of its own.

    Each that is taken in has an audit row "quarantine.released" in its commit; the last row, "quarantine.replayed", has
    the counts.  Raises InvalidInput for a missing actor or reason, and what `Processor.process` raises.
    """
    store, key = manager.store, user_key(user)
    audit.require_said(user, actor=actor, reason=reason)
    processor, counts = _Replay(manager), Counter[str]()
    found = [(at, kept) for at, kept in store.draft().identities(key, _head_us(store, user)) if _offered(kept)]
    for at, kept in found:
        reading = identities.reading_of(at, key, kept)
        again = Again(user, from_us(reading.at_us), reading.at_us, kept.value, kept.unit, kept.source, reading)
        wall_us = store.clock.now_us()

        def released(draft: Draft, outcome: Outcome, at_us: int = reading.at_us) -> None:
            if outcome.status == "accepted":
                draft.entries.append(audit.act("quarantine.released", store.ids.attempt_id(), actor=actor, reason=reason,
                                               user=user, at_us=at_us))

        outcome = processor.alone(again, Origin(kept.source_id, kept.row), Now(wall_us, wall_us), wall_us, released)
        counts[outcome.status] += 1
    stand = [store.draft().identity(at) for at, _ in found]
    taken = sum(kept is not None and kept.disposition == ACCEPTED for kept in stand)
    done = Replayed(store.ids.attempt_id(), len(found), counts["accepted"], taken - counts["accepted"], len(found) - taken)
    details = {"offered": done.offered, "accepted": done.accepted, "admitted": done.admitted, "kept": done.kept}
    draft = store.draft()
    draft.entries.append(audit.act("quarantine.replayed", done.attempt_id, actor=actor, reason=reason, user=user,
                                   at_us=store.clock.now_us(), details=details))
    store.commit(draft)
    return done


def _offered(kept: Identity) -> bool:
    return kept.disposition != ACCEPTED and bool(kept.values)


def _head_us(store: Store, user: str) -> int:
    loaded = store.load(user)
    if loaded is None:
        message = f"{user!r} has no state that measurements could be offered to; reset the user with a weight first"
        raise InvalidInput(message, user=user)
    return store.estimator.at_us(loaded.state)


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
