"""The generator of what clients do, and the client that does it and writes down what it was told."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any, Final, TypedDict

import msgspec
import xxhash

from chaos.history import Answer, Asked, Event, Told
from chaos.target import START, Target
from statemachine import CommitInDoubt, Outcome, ResetError, ResetResult, Store
from statemachine.clock import to_us
from statemachine.testing import CountingIds

USERS: Final = ("ann", "bob", "ünï/çødé")
DAY_US: Final = 86_400_000_000
PRESENT_US: Final = to_us(START) + 4_000 * DAY_US


class _By(TypedDict):
    actor: str
    reason: str


BY: Final[_By] = {"actor": "chaos@example.org", "reason": "a trial"}
KINDS: Final = ("measure",) * 6 + ("batch", "reset", "reset", "raise", "restore", "mutate")
BATCH: Final = 5
LIFE: Final = 1 << 40


class Op(msgspec.Struct, frozen=True):
    """One thing that a client does.  `n` is the number of the user's next measurement."""

    kind: str
    user: str
    n: int = 0

    @property
    def sends(self) -> int:
        """How many measurements it sends."""
        return {"measure": 1, "batch": BATCH}.get(self.kind, 0)


def ids_of(life: int) -> CountingIds:
    """Ids that one life of a store gives out: no two processes and no two openings give the same."""
    return CountingIds(life * LIFE)


class Boom(Exception):
    """What an operation with a bug raises."""


def boom(_state: Any) -> Any:
    """A mutation with a bug."""
    raise Boom


def generate(seed: int, count: int, users: tuple[str, ...] = USERS, first: int = 0) -> list[Op]:
    """`count` operations; users whose first `first` measurements were sent already go on from there."""
    dice = random.Random(seed)
    sent = dict.fromkeys(users, first)
    ops = []
    for _ in range(count):
        user = dice.choice(users)
        kind = dice.choice(KINDS) if sent[user] else "measure"
        ops.append(Op(kind, user, sent[user]))
        sent[user] += ops[-1].sends
    return ops


class Client:
    """One client of an open store.  `record` is called with each event at once, so that a death loses none of it."""

    def __init__(self, target: Target, store: Store, record: Callable[[Event], None], first_op: int = 0) -> None:
        self.target = target
        self.store = store
        self.manager = target.manager(store)
        self.processor = target.processor(self.manager)
        self._record = record
        self._next = first_op

    def run(self, ops: list[Op]) -> Iterator[Told]:
        """Do each; a generator, so that the caller may stop in between."""
        for op in ops:
            yield self.do(op)

    def do(self, op: Op) -> Told:
        """Do one operation.  Errors of the library are answers; anything else leaves the operation in doubt and goes on up."""
        number, self._next = self._next, self._next + 1
        measured = [self.target.measured(op.user, op.n + i) for i in range(op.sends)]
        sent = tuple((m.at_us, str(m.value), m.source) for m in measured)
        self._record(Asked(number, op.kind, op.user, sent, max(1, len(sent))))
        try:
            told = self._answered(number, op, self._act(op, measured))
        except CommitInDoubt as error:
            told = self._failed(number, "doubt", error)
        except ResetError as error:
            told = self._failed(number, "doubt" if op.kind == "batch" else "failed", error)  # groups before it may stand
        except BaseException as error:
            self._record(Told(number, "doubt", error=type(error).__name__))
            raise
        self._record(told)
        return told

    def _act(self, op: Op, measured: list[Any]) -> list[Outcome | ResetResult]:
        manager, user = self.manager, op.user
        if op.kind == "measure":
            return [self.processor.process(measured[0])]
        if op.kind == "batch":
            return list(self.processor.process_batch(measured))
        if op.kind == "raise":
            return [manager.perform_reset(user, operations=[("boom", boom)], **BY)]
        if op.kind == "restore":
            return [manager.restore(user, to_version=max(1, self.store.version_range(user)[1] - 1), **BY)]
        if op.kind == "mutate" and self.target.mutations:
            names = sorted(self.target.mutations)
            return [manager.perform_reset(user, operations=self.target.mutations[names[op.n % len(names)]], **BY)]
        return [manager.perform_reset(user, **BY)]

    def _answered(self, number: int, op: Op, results: list[Outcome | ResetResult]) -> Told:
        versions, attempts, statuses = dict[int, str](), dict[str, str](), list[str]()
        for result in results:
            reset = result.reset if isinstance(result, Outcome) else result
            if isinstance(result, Outcome):
                statuses.append(result.status)
            if reset is not None:
                attempts[reset.attempt_id] = reset.outcome
            if result.version and (isinstance(result, Outcome) or result.outcome == "committed"):
                versions[result.version] = self._digest(op.user, result.version)
        return Told(number, "acknowledged", versions, attempts, tuple(statuses))

    def _digest(self, user: str, version: int) -> str:
        """The state as it is read back; "" where the store cannot be read any more, which changes nothing of what was told."""
        try:
            loaded = self.store.load(user)
            if loaded is None or loaded.version != version:
                loaded = self.store.load(user, version)
        except ResetError:
            return ""
        return "" if loaded is None else digest(self.target, loaded.state)

    @staticmethod
    def _failed(number: int, answer: Answer, error: ResetError) -> Told:
        attempts = {error.attempt_id: ""} if error.attempt_id else {}
        return Told(number, answer, attempts=attempts, error=error.kind)


def digest(target: Target, state: Any) -> str:
    """A state in few characters."""
    return xxhash.xxh3_64_hexdigest(target.estimator.encode(state))
