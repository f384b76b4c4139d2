"""Draft: what one commit would change, collected over the committed store, and read through by whoever collects it.

Nothing in a draft is durable, and dropping one undoes all of it.  It remembers the bytes it was made from (`expected`);
the commit compares them with what is stored then, and applies all of the draft or none of it (INV-06).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable
from itertools import islice
from typing import Any, Final, Literal, NamedTuple, TypeVar

import msgspec

from statemachine import audit, codec
from statemachine.audit import Entry
from statemachine.breaker import (
    CLOSED,
    UNSPENT,
    Breaker,
    BreakerPolicy,
    Budget,
    GlobalBreakerPolicy,
    Now,
    Result,
    settle,
    settle_global,
    spent,
)
from statemachine.errors import ContractBroken, StoreCorrupt, StoreForeign
from statemachine.store import keys
from statemachine.store.engine import Engine, rows_of
from statemachine.store.records import ACCEPTED, Aside, Head, Identity, Pin

T = TypeVar("T")

DROPPED: Final = "its batch was dropped before it was committed"
"""Why the attempts of a draft that was given up are conflicted."""
IDENTITIES_LOOKED_AT: Final = 32
"""Of a user without a head: enough, since a user's first accepted measurement is among its first."""

MissReason = Literal["conflict", "breaker", "global breaker", "budget"]


class BreakerEvent(NamedTuple):
    """How an attempt ended, for its user's breaker and for the global one; computed anew inside the commit.

    `resets_per_minute`: the budget that a success is taken from, None where none is in force or the attempt is exempt.
    """

    user: bytes
    policy: BreakerPolicy
    result: Result
    attempt_id: str
    generation: int
    global_generation: int
    now: Now
    suspect: tuple[str, int] | None = None
    global_policy: GlobalBreakerPolicy = GlobalBreakerPolicy()
    resets_per_minute: int | None = None

    def on_user(self, record: Breaker) -> Breaker:
        """The user's breaker after this event."""
        return settle(record, self.policy, self.result, attempt_id=self.attempt_id, generation=self.generation,
                      now=self.now, suspect=self.suspect, name=self.user.decode())

    def on_global(self, record: Breaker) -> Breaker:
        """The global breaker after this event."""
        return settle_global(record, self.global_policy, self.result, user=self.user, attempt_id=self.attempt_id,
                             generation=self.global_generation, now=self.now)

    def moves(self, of: Callable[[bytes], Breaker]) -> dict[bytes, tuple[Breaker, Breaker]]:
        """The user's breaker and, under b"", the global one: each as `of` gives it, and after this event.

        One that cannot be read raises StoreCorrupt or StoreForeign.  At an end that says nothing about the reset it is left
        out instead: the other's probe has its slot back, and the death is counted, all the same (INV-07, INV-11, INV-12).
        """
        moved: dict[bytes, tuple[Breaker, Breaker]] = {}
        for whose, after in ((self.user, self.on_user), (b"", self.on_global)):
            try:
                before = of(whose)
            except (StoreCorrupt, StoreForeign):
                if self.result in ("success", "failure"):
                    raise
                continue
            moved[whose] = before, after(before)
        return moved

    @property
    def spends(self) -> bool:
        """Whether this end is taken from a budget."""
        return self.resets_per_minute is not None and self.result == "success"


class Miss(NamedTuple):
    """What to write when the draft may not be applied: the attempt's row, and its event for the breakers."""

    entry: Entry
    event: BreakerEvent


class Draft:
    """Changes waiting for one commit.  Not for several threads at once."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.expected: dict[bytes, bytes | None] = {}
        self.expected_keys: dict[tuple[bytes, bytes], list[bytes]] = {}
        self.puts: dict[bytes, bytes | None] = {}
        self.entries: list[Entry] = []
        self.audit_end: bytes | None = None  # where the chain goes on, should the store have lost it
        self.fenced: int | None = None  # the owner that this fences: its probes are given back by the same commit
        self.events: list[BreakerEvent] = []
        self._heads: dict[bytes, tuple[Head, Callable[[Any], bytes], Any]] = {}
        self.on_miss: Callable[[MissReason], Miss] | None = None
        self.after: list[Callable[[], None]] = []
        self.dropped: list[Callable[[], None]] = []
        self._identities: dict[bytes, dict[bytes, bytes]] = {}
        self._in_order: dict[bytes, list[bytes]] = {}
        self._breakers: dict[bytes, Breaker] = {}
        self._budget: Budget | None = None
        self.durable = False

    def committed(self) -> None:
        """The draft is durable: the attempts in it are told, so that their marks are released."""
        self.durable = True
        self._tell(self.after)

    def drop(self) -> None:
        """Give the draft up: the attempts in it are told, so that their marks become their outcomes."""
        self._tell(self.dropped)

    def _tell(self, attempts: list[Callable[[], None]]) -> None:
        for tell in attempts:
            tell()
        # They know the draft, and it them: without this, only the garbage collector would free a batch.
        self.after.clear()
        self.dropped.clear()

    def __bool__(self) -> bool:
        """Whether there is anything to commit."""
        return bool(self.puts or self.entries or self.events)

    def put_head(self, user: bytes, head: Head, encode: Callable[[Any], bytes], state: Any) -> None:
        """Set the user's head; its state is encoded once, when the draft is sealed, however often it changes before."""
        key = keys.head(user)
        self._heads[key] = (head, encode, state)
        self.puts[key] = b""

    def seal(self) -> None:
        """Encode what was left for the end; the draft may be committed after it."""
        for key, (head, encode, state) in self._heads.items():
            self.put(key, codec.pack(msgspec.structs.replace(head, state=encoded(encode, state))))
        self._heads.clear()

    def get(self, key: bytes) -> bytes | None:
        """The value as it would be after the commit."""
        if key in self.puts:
            return self.puts[key]
        return self._engine.get(key)

    def expect(self, key: bytes) -> bytes | None:
        """As `get`, and the commit applies only if the stored value is still the same."""
        if key in self.puts:
            return self.puts[key]
        if key in self.expected:
            return self.expected[key]
        value = self._engine.get(key)
        self.expected[key] = value
        return value

    def expect_as(self, key: bytes, value: bytes | None) -> None:
        """The commit applies only if the stored value is `value`, which the caller knows from an earlier read."""
        if key not in self.puts:
            self.expected.setdefault(key, value)

    def expect_keys(self, start: bytes, stop: bytes) -> list[tuple[bytes, bytes]]:
        """The stored records with start <= key < stop; the commit applies only if these keys, and no others, are there then."""
        found = list(self._engine.scan(start, stop))
        self.expected_keys[start, stop] = [key for key, _ in found]
        return found

    def put(self, key: bytes, content: bytes, *, compress: bool = False) -> bytes:
        """Set the record under `key`; the bytes that will be stored."""
        record = codec.seal(key, content, compress=compress)
        self.puts[key] = record
        return record

    def delete(self, key: bytes) -> None:
        """Remove the record under `key`, if there is one."""
        self.puts[key] = None

    def head(self, user: bytes) -> Head | None:
        """The user's head, expected to stand until the commit; raises StoreCorrupt when it cannot be read or is not the log's."""
        key = keys.head(user)
        if key in self._heads:
            pending, encode, state = self._heads[key]
            return msgspec.structs.replace(pending, state=encode(state))
        prefix = keys.versions(user)
        stored, first = self._engine.get_with_first(key, prefix, keys.after(prefix))
        self.expected.setdefault(key, stored)
        head = record(Head, key, stored)
        newest = keys.number_of(first) if first else 0
        if newest != (0 if head is None else head.version):
            message = f"the head of {user.decode()!r} does not match its log (newest version there: {newest})"
            raise StoreCorrupt(message, user=user.decode())
        if head is None:
            self._check_nothing_stored(user, key)
        return head

    def _check_nothing_stored(self, user: bytes, key: bytes) -> None:
        """"Nothing stored" may start a reset, "not found" may not: no key is out of order, and nothing was ever accepted."""
        before = self._engine.check_absent(key)
        if not before.startswith(user + b"\0"):
            return
        prefix = keys.identities(user)
        with self._engine.reading() as txn:
            oldest = rows_of(txn, prefix, keys.after(prefix), IDENTITIES_LOOKED_AT)
        for at, value in oldest:
            if _decoded(Identity, at, value).disposition == ACCEPTED:
                message = f"measurements of {user.decode()!r} were accepted, and no state of it is found"
                raise StoreCorrupt(message, user=user.decode())

    def pin(self, user: bytes) -> Pin | None:
        """The before-image of the reset under probation."""
        return record(Pin, keys.pin(user), self.get(keys.pin(user)))

    def aside(self, user: bytes) -> Aside | None:
        """What is kept aside of this user, expected to stand until the commit."""
        return record(Aside, keys.aside(user), self.expect(keys.aside(user)))

    def identity(self, key: bytes) -> Identity | None:
        """The measurement under an identity's key, if it was seen before."""
        return record(Identity, key, self.get(key))

    def put_identity(self, user: bytes, key: bytes, identity: Identity) -> None:
        """Record where a measurement went."""
        own = self._identities.get(user)
        if own is None:
            own, self._in_order[user] = self._identities.setdefault(user, {}), []
        if key not in own:
            in_order = self._in_order[user]
            if not in_order or key > in_order[-1]:
                in_order.append(key)
            else:
                insort(in_order, key)
        own[key] = self.puts[key] = codec.seal(key, codec.pack(identity))

    def identities(self, user: bytes, after_us: int) -> list[tuple[bytes, Identity]]:
        """The user's measurements after an instant, in the order of (instant, digest), pending ones included."""
        prefix = keys.identities(user)
        start = keys.identity(user, after_us + 1, b"")
        found = dict(self._engine.scan(start, keys.after(prefix)))
        found.update((key, value) for key, value in self._identities.get(user, {}).items() if key >= start)
        puts = self.puts  # one that the draft deletes is not there any more
        return [(key, _decoded(Identity, key, found[key])) for key in sorted(found) if puts.get(key, b"") is not None]

    def newest_identities(self, user: bytes, after_us: int, until_us: int, rows_max: int) -> list[tuple[bytes, Identity]]:
        """The newest of the user's measurements after one instant and until another, pending ones included, in order.

        At most `rows_max`; the work does not grow with how many more there are.
        """
        start, stop = keys.identity(user, after_us + 1, b""), keys.identity(user, until_us + 1, b"")
        found = dict(islice(self._engine.scan(start, stop, reverse=True), rows_max))
        pending, own = self._in_order.get(user, []), self._identities.get(user, {})
        end = bisect_left(pending, stop)
        found.update((key, own[key]) for key in pending[max(bisect_left(pending, start), end - rows_max):end])
        puts = self.puts  # one that the draft deletes is not there any more
        return [(key, _decoded(Identity, key, found[key])) for key in sorted(found)[-rows_max:] if puts.get(key, b"") is not None]

    def breaker(self, user: bytes) -> Breaker:
        """The user's breaker, or with b"" the global one, with this draft's own events applied."""
        pending = self._breakers.get(user)
        return pending if pending is not None else self.stored_breaker(user)

    def breakers(self, user: bytes) -> tuple[Breaker, Breaker]:
        """The user's breaker and the global one, both of one moment."""
        if self._breakers:
            return self.breaker(user), self.breaker(b"")
        own, common = breaker_key(user), keys.GLOBAL_BREAKER
        with self._engine.reading() as txn:
            stored, shared = txn.get(own), txn.get(common)
        return record(Breaker, own, stored) or CLOSED, record(Breaker, common, shared) or CLOSED

    def stored_breaker(self, user: bytes) -> Breaker:
        """The breaker as it is committed."""
        key = breaker_key(user)
        return record(Breaker, key, self._engine.get(key)) or CLOSED

    def add_event(self, event: BreakerEvent, *, shared: bool = True) -> None:
        """Count an attempt's end: in the store at the commit, and where others share this draft in its own view at once.

        Raises as `BreakerEvent.moves`.
        """
        if not shared:
            self.events.append(event)
            return
        moved = event.moves(self.breaker)
        self.events.append(event)
        self._breakers.update((whose, after) for whose, (_, after) in moved.items())
        if event.spends:
            self._budget = spent(self.budget(), event.now)

    def budget(self) -> Budget:
        """What was taken from the budget of resets, with this draft's own events applied."""
        if self._budget is not None:
            return self._budget
        return record(Budget, keys.BUDGET, self._engine.get(keys.BUDGET)) or UNSPENT


def newest_version(engine: Engine, user: bytes) -> int:
    """The highest version in the user's log, 0 where there is none; the head's word is not taken for it."""
    prefix = keys.versions(user)
    found = engine.first(prefix, keys.after(prefix))
    return keys.number_of(found[0]) if found else 0


def breaker_key(user: bytes) -> bytes:
    """Where the user's breaker is stored; b"" stands for the global one."""
    return keys.breaker(user) if user else keys.GLOBAL_BREAKER


def _decoded(kind: type[T], key: bytes, value: bytes) -> T:
    return codec.unpack(kind, codec.unseal(key, value))


def record(kind: type[T], key: bytes, value: bytes | None) -> T | None:
    """The record of `kind` in a stored value, None where nothing is stored; raises StoreCorrupt."""
    return None if value is None else _decoded(kind, key, value)


def encoded(encode: Callable[[Any], bytes], state: Any) -> bytes:
    """The state as bytes; raises ContractBroken where the estimator gives none, or what nobody could read back."""
    try:
        data = encode(state)
    except Exception as error:
        message = f"a state that the estimator cannot encode ({audit.said(error)})"
        raise ContractBroken(message) from error
    if type(data) is not bytes:
        message = f"a state that the estimator encodes as {type(data).__name__}, not as bytes"
        raise ContractBroken(message)
    return data
