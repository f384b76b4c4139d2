"""Doubles for tests of code that embeds resetguard: a clock that is set by hand, ids that count, a store as plain values."""

from __future__ import annotations

import threading
from typing import Any

from statemachine.breaker import Breaker
from statemachine.clock import to_us
from statemachine.rollout import Rollout
from statemachine.state import user_key
from statemachine.store import Store, keys, log
from statemachine.store.draft import record
from statemachine.store.records import Cursor, Head, Identity, Pin


class ManualClock:
    """A `Clock` that stands still until it is moved; `sleep` moves it."""

    def __init__(self, now: Any = 1_767_225_600_000_000) -> None:
        self._now_us = now if isinstance(now, int) else to_us(now)
        self._lock = threading.Lock()

    def now_us(self) -> int:
        """The instant it was set to, in microseconds since 1970 UTC."""
        return self._now_us

    def monotonic_us(self) -> int:
        """The same instant."""
        return self._now_us

    def sleep(self, seconds: float) -> None:
        """Move on by `seconds`, at once."""
        self.advance(seconds)

    def advance(self, seconds: float) -> None:
        """Move on by `seconds`."""
        with self._lock:
            self._now_us += int(seconds * 1_000_000)


class CountingIds:
    """`Ids` that count up, from the one after `after`, so that two runs give the same ones."""

    def __init__(self, after: int = 0) -> None:
        self._count = after
        self._lock = threading.Lock()

    def attempt_id(self) -> str:
        """The next number as a UUID."""
        with self._lock:
            self._count += 1
            digits = f"{self._count:032x}"
        return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))

    def salt(self) -> bytes:
        """Always the same sixteen bytes: nothing is hidden in a test."""
        return bytes(16)


def snapshot(store: Store) -> dict[str, Any]:
    """All that a store holds, decoded, without what depends on the run: ids, owners and wall-clock fields.

    Two runs of the same input give equal snapshots (INV-09, INV-13); the counts of outcomes leave `interrupted` out.
    """
    cursors = [record(Cursor, key, value) for key, value in store.engine.scan(keys.CURSOR, keys.after(keys.CURSOR))]
    outcomes: dict[tuple[str, ...], int] = {}
    for row in store.audit():
        if row.public.outcome != "interrupted":
            kind = (row.personal.user, row.public.event, row.public.kind, row.public.outcome)
            outcomes[kind] = outcomes.get(kind, 0) + 1
    return {
        "users": {user: _user(store, user) for user in store.users()},
        "cursors": sorted((c.name, c.consumed, tuple(sorted(c.totals.items()))) for c in cursors if c is not None),
        "outcomes": dict(sorted(outcomes.items())),
        "rollout": record(Rollout, keys.ROLLOUT, store.engine.get(keys.ROLLOUT)),
        "kept": [kept._replace(source_id=0) for kept in store.quarantine()],
    }


def _user(store: Store, user: str) -> dict[str, Any]:
    key, get, estimator = user_key(user), store.engine.get, store.estimator
    prefix = keys.identities(key)
    identities = [record(Identity, k, v) for k, v in store.engine.scan(prefix, keys.after(prefix))]
    head = record(Head, keys.head(key), get(keys.head(key)))
    found: dict[str, Any] = {
        "identities": [(i.disposition, i.values, i.r, i.value, i.unit, i.source, i.row, i.reason) for i in identities if i],
        "pin": record(Pin, keys.pin(key), get(keys.pin(key))),
        "breaker": _breaker(record(Breaker, keys.breaker(key), get(keys.breaker(key)))),
        "log": [info._replace(author="") for info in store.history(user)],
    }
    if head is not None:
        found["head"] = (head.version, head.state, head.images, head.first, head.run_since_us, head.reset_us, head.probation)
        found["folded"] = estimator.encode(log.fold(get, estimator, key, head.version))
    return found


def _breaker(value: Breaker | None) -> tuple[Any, ...]:
    breaker = value or Breaker()
    return breaker.mode, breaker.failures, breaker.openings, breaker.opened_us, breaker.successes, breaker.ended_event
