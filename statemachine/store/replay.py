"""Replay of a user's log: from the oldest image through every step, each later image held to what the steps before it give.

A keyframe is a step stored whole, so it must equal the fold bit for bit.  The image of a reset, restore, revocation, recovery
or rebuild stands for itself: what made it is not in the log.  Nothing here decides anything or changes the store.
"""

from __future__ import annotations

from itertools import takewhile
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from statemachine import codec, naming
from statemachine.errors import StoreCorrupt, StoreForeign
from statemachine.state import user_key
from statemachine.store import keys
from statemachine.store.draft import record
from statemachine.store.records import Head, Identity, Image, Pin, Probation

if TYPE_CHECKING:
    from collections.abc import Iterator

    import lmdb

    from statemachine.estimator import Estimator
    from statemachine.store import Store

HeadFound = Literal["equal", "different", "unproven", "damaged", "missing"]
DAMAGE_TOLD_MAX: Final = 20


class Standing(NamedTuple):
    """What a head says beside the state: since when held measurements are evidence, the last reset, probation and its pin."""

    run_since_us: int
    reset_us: int
    probation: Probation | None = None
    pin: Pin | None = None


class Stood(NamedTuple):
    """A version of the log as it was passed: its state as bytes, and the kind and event time of what made it."""

    state: bytes
    kind: str
    at_us: int


class Replay(NamedTuple):
    """What a user's log gives, and whether the head agrees; `stored` holds the records it was read from, at one moment.

    `found`: the head is bit for bit what the log gives ("equal"), reads and differs, reads where the log gives nothing to
    hold it to ("unproven"), cannot be read, or is not there.  `keyframes` were held to the fold, `resets` are images that
    stand for themselves, `unfolded` are versions after a damaged one that no image makes readable again.  `state` is that
    of the newest version, None where the log does not give it.  `standing` is the head's own where it reads, else what the
    log tells.  `passed` has the versions asked for.
    """

    user: str
    first: int
    last: int
    steps: int
    keyframes: int
    resets: int
    damage: tuple[tuple[int, str], ...]
    unfolded: int
    state: Any
    found: HeadFound
    head: Head | None
    standing: Standing | None
    stored: dict[bytes, bytes | None]
    identities: dict[bytes, Identity | None]
    passed: dict[int, Stood]

    @property
    def whole(self) -> bool:
        """Whether every version reads and agrees with what comes before it."""
        return bool(self.last) and not self.damage

    def told(self) -> dict[str, Any]:
        """The findings, fit for JSON."""
        damage = [{"version": version, "problem": problem} for version, problem in self.damage[:DAMAGE_TOLD_MAX]]
        return {"first": self.first, "last": self.last, "steps": self.steps, "keyframes": self.keyframes, "resets": self.resets,
                "damaged": len(self.damage), "damage": damage, "unfolded": self.unfolded, "head": self.found}


def replay(store: Store, user: str, *, ask: frozenset[int] = frozenset(), identities: bool = False) -> Replay:
    """Read a user's log, head and pin at one moment, and fold the log; raises StoreForeign for arithmetic unknown here.

    With `identities` every measurement's record comes too, None for one that cannot be read.  Nothing is raised for damage.
    """
    key, estimator = user_key(user), store.estimator
    with store.engine.reading() as txn:
        stored = {at: txn.get(at) for at in (keys.head(key), keys.pin(key), keys.aside(key))}
        versions = list(_records(txn, keys.versions(key)))[::-1]
        kept = {at: _identity(at, value) for at, value in _records(txn, keys.identities(key))} if identities else {}
    fold = _Fold(user, estimator, ask)
    for at, value in versions:
        fold.take(keys.number_of(at), at, value)
    last = keys.number_of(versions[-1][0]) if versions else 0
    head, found = _head(estimator, key, stored[keys.head(key)])
    if head is not None:
        found = _compared(head, last, None if fold.state is None else estimator.encode(fold.state))
    if head is not None and head.version > last:
        fold.damage.append((last + 1, f"missing from the log, as all up to version {head.version}, where the head is"))
    elif not versions and stored[keys.head(key)] is not None:
        fold.damage.append((1, "missing from the log, which is empty"))
    pin = _pin(key, stored[keys.pin(key)])
    standing = fold.standing(pin)
    if head is not None and head.version == last:
        standing = Standing(head.run_since_us, head.reset_us, head.probation, pin if head.probation is not None else None)
    return Replay(user, keys.number_of(versions[0][0]) if versions else 0, last, fold.steps, fold.keyframes, fold.resets,
                  tuple(fold.damage), fold.unfolded, fold.state, found, head, standing, stored, kept, fold.passed)


def _records(txn: lmdb.Transaction[bytes], prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
    with txn.cursor() as cursor:
        if cursor.set_range(prefix):
            yield from takewhile(lambda pair: pair[0].startswith(prefix), cursor.iternext())


def _identity(key: bytes, value: bytes) -> Identity | None:
    try:
        return record(Identity, key, value)
    except StoreCorrupt:
        return None


def _head(estimator: Estimator, user: bytes, stored: bytes | None) -> tuple[Head | None, HeadFound]:
    try:
        head = record(Head, keys.head(user), stored)
        if head is None:
            return None, "missing"
        estimator.decode(head.state)
    except StoreCorrupt:
        return None, "damaged"
    return head, "unproven"


def _compared(head: Head, last: int, state: bytes | None) -> HeadFound:
    if head.version != last:
        return "different"
    if state is None:
        return "unproven"
    return "equal" if state == head.state else "different"


def _pin(user: bytes, stored: bytes | None) -> Pin | None:
    try:
        return record(Pin, keys.pin(user), stored)
    except StoreCorrupt:
        return None


class _Fold:
    """The fold so far: `state` is that of the newest version taken, None where what came before it cannot be read."""

    def __init__(self, user: str, estimator: Estimator, ask: frozenset[int]) -> None:
        self.state: Any = None
        self.steps = self.keyframes = self.resets = self.unfolded = 0
        self.damage: list[tuple[int, str]] = []
        self.passed: dict[int, Stood] = {}
        self._user = user
        self._estimator = estimator
        self._ask = ask
        self._number = 0
        self._reset: tuple[int, str, int, int] | None = None
        self._accepted = 0

    def take(self, version: int, key: bytes, value: bytes) -> None:
        """The next version, as it is stored under `key`."""
        if self._number and version != self._number + 1:
            self.damage.append((self._number + 1, f"missing from the log, as all up to version {version - 1}"))
            self.state = None
        begins, self._number = not self._number, version
        try:
            content = codec.unseal(key, value)
            if content[:1] == bytes((codec.IMAGE,)):
                self._image(version, codec.unpack(Image, content[1:]))
            else:
                self._step(version, content, begins=begins)
        except StoreCorrupt as error:
            self.damage.append((version, error.problem.removeprefix(f"{naming.record(key)} ")))
            self.state = None

    def _step(self, version: int, content: bytes, *, begins: bool) -> None:
        after = self._stepped(version, content)
        if begins:
            self.damage.append((version, "a step with no image before it"))
        elif after is None:
            self.unfolded += 1
        self.steps += 1
        self._accepted += 1
        self.state = after
        if after is not None:
            self._pass(version, "measurement", self._estimator.at_us(after))

    def _stepped(self, version: int, content: bytes) -> Any:
        reading, kernel = codec.decode_step(content)
        if kernel != self._estimator.kernel:
            message = (f"version {version} of {self._user!r} was made by arithmetic {kernel}; this program has "
                       f"{self._estimator.kernel}: use the program that made it")
            raise StoreForeign(message, user=self._user)
        return None if self.state is None else self._estimator.step(self.state, reading)

    def _image(self, version: int, image: Image) -> None:
        state = self._estimator.decode(image.state)
        expected = None
        if image.step:
            expected = self._stepped(version, image.step) if image.kernel == self._estimator.kernel else None
            self.keyframes += expected is not None
            self._accepted += 1
        else:
            self.resets += 1
            self._reset, self._accepted = (version, image.kind, image.at_us, self._estimator.at_us(state)), 0
        if expected is not None and self._estimator.encode(expected) != image.state:
            self.damage.append((version, "the state stored is not what the steps before it give"))
        self.state = state
        self._pass(version, image.kind, image.at_us)

    def _pass(self, version: int, kind: str, at_us: int) -> None:
        if version in self._ask:
            self.passed[version] = Stood(self._estimator.encode(self.state), kind, at_us)

    def standing(self, pin: Pin | None) -> Standing | None:
        """What the log tells of reset and probation where the head does not; a pin is there only during probation."""
        if self.state is None:
            return None
        state_us = self._estimator.at_us(self.state)
        if self._reset is None:
            return Standing(state_us, state_us)
        version, kind, at_us, began_us = self._reset
        if pin is None:
            return Standing(state_us, at_us)
        return Standing(began_us, at_us, Probation(at_us, self._accepted, kind, version), pin)


def versions_of(damage: tuple[tuple[int, str], ...]) -> str:
    """The damaged versions with their problems, as a sentence says them, cut where there are many."""
    shown = "; ".join(f"version {version}: {problem}" for version, problem in damage[:3])
    return shown if len(damage) <= 3 else f"{shown}; and {len(damage) - 3} more"  # noqa: PLR2004 - as many as shown
