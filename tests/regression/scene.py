"""What these tests share: a clock that stands still, measurements by day, faulty parts, and hands on the stored bytes."""

from __future__ import annotations

import contextlib
import time
import uuid
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import lmdb

from statemachine import BodyWeight, Measurement, Operation, Processor, ResetManager, ResetParameters, Store
from statemachine.clock import to_us
from statemachine.state import EstimatorState, Reading

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

START: Final = datetime(2026, 1, 5, 7, tzinfo=UTC)
DAY_US: Final = 86_400_000_000
PRESENT_US: Final = to_us(START) + 400 * DAY_US
BY: Final[dict[str, Any]] = {"reason": "a test", "actor": "tester@example.org"}


class StillClock:
    """A clock that moves only when told; it does sleep, because other processes need that time."""

    def __init__(self, now_us: int = PRESENT_US) -> None:
        self.wall_us = now_us
        self.ticks = 0

    def now_us(self) -> int:
        return self.wall_us

    def monotonic_us(self) -> int:
        self.ticks += 1
        return self.ticks

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


class CountedIds:
    """Identifiers that count up; `salt_error` is raised once, inside the write transaction that asks for a salt."""

    def __init__(self) -> None:
        self.count = 0
        self.salt_error: BaseException | None = None

    def attempt_id(self) -> str:
        self.count += 1
        return self.text(self.count)

    @staticmethod
    def text(count: int) -> str:
        """The identifier of that number."""
        return str(uuid.UUID(int=(7 << 76) | (1 << 63) | count))

    def salt(self) -> bytes:
        error, self.salt_error = self.salt_error, None
        if error is not None:
            raise error
        return bytes(16)


class Faulty(BodyWeight):
    """Body weight whose resets fail while a reading's weight is in `failing_kg`, or always with `failing` set."""

    def __init__(self) -> None:
        super().__init__()
        self.failing_kg: set[float] = set()
        self.failing = False

    def operations(self, how: ResetParameters, reading: Reading | None, at_us: int) -> tuple[Operation, ...]:
        usual = super().operations(how, reading, at_us)
        if self.failing or (reading is not None and reading.values[0] in self.failing_kg):
            return (*usual[:1], Operation("clear buffer", broken))
        return usual


def broken(_: Any) -> Any:
    """An operation with a bug."""
    message = "the buffer is gone"
    raise KeyError(message)


def weighed(user: str, day: float, kg: float, source: str = "scale") -> Measurement:
    """A reading of `kg`, `day` days after the start."""
    return Measurement(user, START + timedelta(days=day), kg, source)


def opened(path: Path, **settings: Any) -> Store:
    """The store at `path`, by a clock that stands 400 days after the start unless another is given."""
    return Store.open(path, **{"clock": StillClock(), **settings})


@contextlib.contextmanager
def working(path: Path, **settings: Any) -> Iterator[tuple[Store, ResetManager, Processor]]:
    """The store at `path` with a manager and a processor, closed at the end."""
    with opened(path, **settings) as store:
        manager = ResetManager(store)
        yield store, manager, Processor(manager)


def fill(path: Path, user: str, weights: list[float], first_day: float = 0.0) -> list[bytes]:
    """Process daily readings in an opening of its own; the stored states, version by version."""
    with working(path) as (store, _, processor):
        for day, kg in enumerate(weights):
            assert processor.process(weighed(user, first_day + day, kg)).status == "accepted"
        return states(store, user)


def states(store: Store, user: str) -> list[bytes]:
    """Every version of the user in the log, as bytes, each folded from disk."""
    found = []
    for info in store.history(user):
        loaded = store.load(user, info.version)
        assert loaded is not None
        found.append(store.estimator.encode(loaded.state))
    return found


def head(store: Store, user: str) -> EstimatorState:
    """The state at the user's head."""
    loaded = store.load(user)
    assert loaded is not None, f"{user} has vanished"
    assert type(loaded.state) is EstimatorState
    return loaded.state


def records(store: Store, user: str) -> dict[bytes, bytes]:
    """The user's stored records except audit and breaker: the state, its log, and where each measurement went."""
    prefix = user.encode() + b"\0"
    return {key: value for key, value in store.engine.scan(prefix, user.encode() + b"\1")
            if key[len(prefix):len(prefix) + 1] not in {b"a", b"b"}}


def events(store: Store, user: str | None = None) -> list[tuple[str, str, str]]:
    """(event, kind, outcome) of each audit row."""
    return [(row.public.event, row.public.kind, row.public.outcome) for row in store.audit(user)]


@contextlib.contextmanager
def raw(path: Path) -> Iterator[lmdb.Transaction]:
    """A write transaction behind the library's back; the store must be closed."""
    env = lmdb.open(str(path), map_size=1 << 28, subdir=True, create=False, max_dbs=0, lib_version=0)
    try:
        with env.begin(write=True) as txn:
            yield txn
    finally:
        env.close()


def tear(path: Path, *keys: bytes) -> None:
    """Flip the bits of the last byte of each record, as a torn write leaves it."""
    with raw(path) as txn:
        for key in keys:
            value = bytes(txn.get(key) or b"")
            assert value, f"nothing is stored under {key!r}"
            txn.put(key, value[:-1] + bytes((value[-1] ^ 0xFF,)))


def refused(
    kinds: type[BaseException] | tuple[type[BaseException], ...], call: Callable[..., object], *args: Any, **named: Any,
) -> Any:
    """The exception of `kinds` that the call raises; unlike pytest's, a missing one is an AssertionError."""
    try:
        answer = call(*args, **named)
    except kinds as error:
        return error
    message = f"{call} gave {answer!r} where it must refuse"
    raise AssertionError(message)
