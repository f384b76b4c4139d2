"""One process that plays several, so that the model's steps can be taken one by one on the real library and a real store.

Each process of the model has a store of its own over one LMDB environment, with its own owner's key and its own file of
marks, and works in a greenlet that stops where the model has a step: once the mark is filled, wherever user code runs, and
before each write transaction.  A death drops the greenlet and lets go of the file's lock, as the end of a process does;
nothing it had in hand is written.  What a model's steps are is in `chaos/model/worlds/`.
"""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

from greenlet import getcurrent, greenlet

from chaos.model.environment import Reader, Tenant, renew
from chaos.model.graph import Graph
from statemachine import (
    BodyWeight,
    BreakerOpen,
    CommitInDoubt,
    InvalidTransition,
    Measurement,
    MutationFailed,
    Processor,
    ResetError,
    ResetManager,
    ResetTransaction,
    ResetValidationError,
    Store,
    StoreFull,
    StoreLimits,
)
from statemachine import marks as marks_module
from statemachine import store as store_module
from statemachine.audit import Emitter
from statemachine.breaker import Breaker
from statemachine.clock import from_us
from statemachine.machine import TABLE
from statemachine.marks import DeadMarks, Mark, Marks
from statemachine.store import engine as door
from statemachine.store import keys
from statemachine.store.committer import Committer
from statemachine.store.draft import Draft
from statemachine.testing import CountingIds, ManualClock
from statemachine.validation import Rule

BY: Final = {"actor": "model@example.org", "reason": "driven"}
MODES: Final = ("closed", "open", "half-open", "forced-open", "forced-closed")
OUTCOMES: Final = ("", "committed", "rolled_back", "conflicted", "refused", "interrupted")
TRIGGERS: Final = tuple(trigger for trigger, _, _ in TABLE)
WEIGHT_KG: Final = 80.0
SLOTS_OF_DRIVER: Final = 16
IDS_OF_FIRST_RECORDS: Final = 1_000
LIMITS: Final = StoreLimits(map_bytes=1 << 26, map_bytes_max=1 << 30, writer_wait_s_max=5.0)


class Difference(Exception):
    """The library did something else than the model."""


class Died(BaseException):
    """Raised in a process's greenlet when it dies; what it still tries is not done."""


class Process:
    """One process of the model: a store, and a greenlet in which it works on one attempt after the other.

    `at` says where that greenlet stopped: "opening", "asking", "settling", "leasing", "voiding", "user", "mutating", "offered",
    or how its attempt ended: "over", "refused", "doubt"; "" between attempts.
    """

    def __init__(self, world: Ground, number: int) -> None:
        self.world = world
        self.number = number
        self.store: Store | None = None
        self.owner: tuple[int, Marks] | None = None
        self.tx: ResetTransaction | None = None
        self.at = ""
        self.worker: greenlet | None = None
        self.dying = False
        self.found = self.settled = False
        self.error = ""
        self._ending = False

    # Whatever follows runs in the process's own greenlet, up to the next `pause`.

    def opens(self) -> None:
        """Open the store: register as an owner, then settle what the dead left."""
        self._ending = False
        self.store = self.world.opened()
        self.at = "opened"

    def attempts(self) -> None:
        """One attempt, from its begin to its end, told what to do at each pause."""
        store = self.store
        if store is None:
            message = "an attempt in a process without a store"
            raise Difference(message)
        self._ending = False
        tx = self.tx = self.world.begins(self.number, store)
        try:
            tx.begin()
        except BreakerOpen:
            self.at = "refused"
            return
        except ResetError:
            self.at, self.tx = "", None
            return
        try:
            self._works(tx)
        except CommitInDoubt:
            self.at = "doubt"
            return
        except (MutationFailed, KeyboardInterrupt, _Failure) as error:
            self._ending = True
            tx.roll_back(error)
        except ResetError as error:
            self.error = str(error)  # the commit was refused, or failed: the attempt has ended by itself
        self.at = "over"

    def _works(self, tx: ResetTransaction) -> None:
        while True:
            command = self.pause("user")
            if command == "offer":
                self.world.offers(tx)
                return
            self._may_end(command)
            with contextlib.suppress(ResetValidationError):
                tx.apply(command, self._mutation(tx, bad=command == "mutate badly"))

    def _mutation(self, tx: ResetTransaction, *, bad: bool) -> Callable[[Any], Any]:
        def mutation(state: Any) -> Any:
            self._may_end(self.pause("mutating"))
            return self.world.mutated(state, tx.before, bad=bad)

        return mutation

    @staticmethod
    def _may_end(command: str) -> None:
        if command == "fail":
            raise _Failure
        if command == "leave":
            raise KeyboardInterrupt

    def pause(self, at: str) -> str:
        """Stop here until the driver says what comes next."""
        self.at = at
        told: str = self.world.hub.switch()
        if told == "die":
            raise Died
        return told

    def commits(self, real: Callable[[Draft], Any], draft: Draft) -> Any:
        """Before a write transaction of an attempt: wait for the word, and do as it says."""
        if self.dying:
            raise Died
        if self._ending:
            return real(draft)
        if self.at == "settling":
            if self.found:
                self.pause("settling")
            return real(draft)
        word = self.pause("leasing" if not draft.events else "offered" if draft.entries else "voiding")
        if word == "commit fails":
            message = "planted by the driver"
            raise StoreFull(message)
        done = real(draft) if word != "doubt, not durable" else None
        if word.startswith("doubt"):
            message = "planted by the driver"
            raise CommitInDoubt(message)
        return done

    def settles(self, real: Callable[[], int]) -> int:
        """Around the settling of the dead: stop before it where the store is opening, and after it where it wrote anything."""
        before = self.at
        if self.store is None:
            before = "opening"
            self.pause(before)
        self.at, self.settled = "settling", False
        done = real()
        self.at = before
        if self.settled:
            self.pause(before)
        return done

    def finds(self, marks: list[Any]) -> None:
        """What a dead owner's file holds: where that is nothing, the model has no step for it."""
        self.found = bool(marks)
        self.settled = self.settled or self.found

    # Whatever follows is called by the driver.

    def start(self, work: Callable[[], None]) -> None:
        """Run a piece of work up to its first pause."""
        self.worker = greenlet(work)
        _AT_WORK[self.worker] = self
        self.worker.switch()

    def go_on(self, word: str) -> None:
        """Let the work go on to its next pause, or its end."""
        if self.worker is None or self.worker.dead:
            message = f"process {self.number} has nothing to go on with for {word!r}; it is at {self.at!r}"
            raise Difference(message)
        self.worker.switch(word)

    @property
    def phase(self) -> str:
        """The phase of its attempt, "idle" where it has none."""
        return "idle" if self.tx is None else self.tx.phase.value

    def finishes(self) -> None:
        """The attempt is over, and what became of it is known."""
        self.at, self.tx = "", None

    def dies(self) -> None:
        """The process ends at once: its file of marks is left as it is, unlocked; nothing more is written."""
        self.dying = True
        if self.worker is not None and not self.worker.dead:
            with contextlib.suppress(Died, ResetError):
                self.worker.switch("die")
        if self.owner is not None:
            self.owner[1].abandon()
        self.store = self.owner = self.tx = self.worker = None
        self.at, self.dying = "down", False


_AT_WORK: weakref.WeakKeyDictionary[greenlet, Process] = weakref.WeakKeyDictionary()


class _Failure(Exception):
    """What user code raises when the model says that it fails."""


class Ground:
    """One environment with a store in it, several processes, an operator and the clock; `fresh` makes it what it was at first.

    What the steps of a model are, and how what is stored reads in its variables, is each world's own.
    """

    graph: Graph
    processes: list[Process]
    limits = LIMITS
    rules: tuple[Rule, ...] = ()

    def __init__(self, path: Path, users: tuple[str, ...], process: type[Process] = Process) -> None:
        self.clock = ManualClock()
        self.estimator = BodyWeight()
        self.path = path
        self.users = users
        self.hub = getcurrent()
        self.processes = []
        self.attempts: dict[str, int] = {}
        self._process = process
        made = Store.open(path, durability="process", clock=self.clock, ids=CountingIds(), estimator=self.estimator)
        for user in users:
            Processor(ResetManager(made)).process(self.measurement(user, WEIGHT_KG))
        made.close()
        self.engine = door.Engine(path, sync=False, map_bytes=1 << 26, map_bytes_max=1 << 30, writer_wait_s_max=5.0,
                                  clock=self.clock)
        self.meta = Store.meta(Reader(self.engine))  # type: ignore[arg-type]
        self._fresh_us = self.clock.now_us()
        self.ids = CountingIds(IDS_OF_FIRST_RECORDS)
        self.operator = self.opened()
        self._records = list(self.engine.scan(b"\0", b"\xff" * 8))
        self.seq: int = self.operator.audit_tail()[0]

    def close(self) -> None:
        """Let go of the environment."""
        for process in self.processes:
            process.dies()
        self.operator.marks.abandon()
        self.engine.close()

    def fresh(self) -> None:
        """Everything as it was at first, with no process; the operator stays."""
        for process in self.processes:
            process.dies()
        for path in self.files():
            if path.name != str(self.operator.committer.owner):
                Path(path).unlink()
        renew(self.engine, self._records)
        self.clock.advance((self._fresh_us - self.clock.now_us()) / 1_000_000)  # else the cooldowns of many paths add up to a gap
        self.attempts = {}
        self.processes = []

    def opens(self, count: int) -> None:
        """So many processes, each with the store open and nothing under way."""
        self.processes = [self._process(self, number) for number in range(count)]
        for process in self.processes:
            process.start(process.opens)
            while process.at == "opening":
                process.go_on("")
            process.at = ""

    def opened(self) -> Store:
        """A store of a process of its own, over the one environment."""
        tenant: Any = Tenant(self.engine)
        return Store(tenant, self.meta, estimator=self.estimator, rules=self.rules, durability="process",
                     limits=self.limits, clock=self.clock, ids=self.ids)

    def measurement(self, user: str, weight_kg: float) -> Measurement:
        """A weighing at this instant."""
        return Measurement(user=user, at=from_us(self.clock.now_us()), weight_kg=weight_kg, source="scale")

    def transactions(self) -> int:
        """The number of the newest transaction that LMDB has committed."""
        with self.engine.reading() as txn:
            return int(txn.id())

    def files(self) -> list[os.DirEntry[str]]:
        """The owners' files of marks."""
        with os.scandir(self.path / door.OWNERS) as found:
            return list(found)

    def marks(self) -> Iterator[tuple[int, Mark, bool]]:
        """Every mark of an attempt of the model: the attempt's number, the mark, and whether its owner is dead."""
        live = {str(p.owner[0]) for p in self.processes if p.owner is not None}
        for path in self.files():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                found = DeadMarks(Path(path), descriptor).marks()
            finally:
                os.close(descriptor)
            for one in found:
                number = self.attempts.get(one.attempt_id)
                if number is not None:
                    yield number, one, path.name not in live

    def breaker(self, user: str) -> Breaker:
        """A user's breaker, or with "" the global one, as it is stored."""
        return self.operator.draft().stored_breaker(user.encode())

    def is_registered(self, process: Process) -> bool:
        """Whether the process's owner has its key."""
        return process.owner is not None and self.engine.get(keys.owner(process.owner[0])) is not None

    # --- what each world has of its own ---

    def begins(self, number: int, store: Store) -> ResetTransaction:
        """The attempt that process `number` now begins."""
        raise NotImplementedError

    def offers(self, tx: ResetTransaction) -> None:
        """What an attempt does from the model's offer on."""
        tx.commit()

    def mutated(self, state: Any, before: Any, *, bad: bool) -> Any:
        """The next component of a state made anew; a bad one breaks a rule."""
        raise NotImplementedError

    def step(self, action: str, who: int) -> None:
        """Do in the library what the model calls `action`."""
        raise NotImplementedError

    def transactions_max(self, action: str) -> int:
        """How many LMDB transactions the step may take: one, but where the model says why it is more."""
        return 1 if action else 0

    def seen(self) -> Mapping[str, tuple[int, ...]]:
        """What is stored and marked, in the model's variables."""
        raise NotImplementedError

    def phase_of(self, state: int, process: Process) -> tuple[str, ...]:
        """The phases that the process's attempt may be in where the model is in `state`; none where it has no attempt."""
        raise NotImplementedError

    def differences(self, state: int) -> str:
        """Where what is stored, marked and under way is not the model's state; "" where it is."""
        for name, values in self.seen().items():
            wanted = self.graph.of(state, name)
            missing = (0,) * (len(wanted) - len(values))  # the model keeps room for versions that are not there yet
            if (*values, *missing) != wanted:
                return f"{name} is {values}, and {wanted} in the model"
        for process in self.processes:
            phases = self.phase_of(state, process)
            if phases and process.phase not in phases:
                return f"process {process.number} is {process.phase}, and {' or '.join(phases)} in the model"
        return ""

    def refuse_all(self, state: int) -> int:
        """Try all that the model refuses in `state`; how much was tried.  Raises Difference where anything acts."""
        raise NotImplementedError


def refuse_triggers(world: Ground, allowed: frozenset[tuple[str, str]]) -> int:
    """Try each trigger of the machine that may not be where each attempt is; how many were tried.  Raises Difference."""
    tried, txn = 0, world.transactions()
    for process in world.processes:
        if process.tx is not None:
            for trigger in TRIGGERS:
                if (process.tx.phase.value, trigger) not in allowed:
                    tried += _refused(process.tx, trigger)
    if world.transactions() != txn:
        phases = " and ".join(process.phase for process in world.processes if process.tx is not None)
        message = f"a trigger was refused in {phases}, and something was written all the same"
        raise Difference(message)
    return tried


def _refused(tx: ResetTransaction, trigger: str) -> int:
    """Try one trigger by the attempt's own call, where it has one, and by its guard alone."""
    before = (tx.phase, tx.state, tx.result)
    calls: dict[str, Callable[[], object]] = {
        "snapshot": tx.begin, "commit": tx.commit, "roll_back": tx.roll_back,
        "mutate": lambda: tx.apply("refused", lambda state: state),
    }
    acts: list[Callable[[], object]] = [lambda: tx._guard.fire(trigger)]  # noqa: SLF001 - the guard alone, too
    if trigger in calls:
        acts.append(calls[trigger])
    for act in acts:
        try:
            act()
        except InvalidTransition:
            continue
        message = f"{trigger} was not refused in {tx.phase}"
        raise Difference(message)
    if (tx.phase, tx.state, tx.result) != before:
        message = f"{trigger} was refused in {tx.phase}, and changed something all the same"
        raise Difference(message)
    return len(acts)


@contextlib.contextmanager
def hooked() -> Iterator[None]:
    """While the library is driven: a process stops once its mark is filled, and before what it writes; the dead write nothing."""
    real = {(owner, name): getattr(owner, name) for owner, name in (
        (Committer, "commit"), (DeadMarks, "marks"), (Marks, "fill"), (Marks, "write"), (Marks, "state"), (Marks, "release"),
        (Store, "_register"), (store_module, "settle_dead"), (marks_module, "SLOTS"), (Emitter, "emit"),
    )}

    def commit(self: Committer, draft: Draft) -> Any:
        process = _AT_WORK.get(getcurrent())
        write = partial(real[Committer, "commit"], self)
        return write(draft) if process is None else process.commits(write, draft)

    def fill(self: Marks, mark: Any) -> int:
        slot: int = real[Marks, "fill"](self, mark)
        process = _AT_WORK.get(getcurrent())
        if process is not None:
            process.pause("asking")
        return slot

    def unless_dying(name: str) -> Callable[..., None]:
        def change(self: Marks, *arguments: Any) -> None:
            process = _AT_WORK.get(getcurrent())
            if process is None or not process.dying:
                real[Marks, name](self, *arguments)

        return change

    def register(self: Store) -> tuple[int, Marks]:
        owner: tuple[int, Marks] = real[Store, "_register"](self)
        process = _AT_WORK.get(getcurrent())
        if process is not None:
            process.owner = owner
        return owner

    def marks(self: DeadMarks) -> list[Any]:
        found: list[Any] = real[DeadMarks, "marks"](self)
        process = _AT_WORK.get(getcurrent())
        if process is not None:
            process.finds(found)
        return found

    def settle(*arguments: Any) -> int:
        process = _AT_WORK.get(getcurrent())
        write = partial(real[store_module, "settle_dead"], *arguments)
        return write() if process is None else process.settles(write)

    planted: dict[tuple[Any, str], Any] = {
        (Committer, "commit"): commit, (DeadMarks, "marks"): marks, (Marks, "fill"): fill, (Store, "_register"): register,
        (store_module, "settle_dead"): settle, (marks_module, "SLOTS"): SLOTS_OF_DRIVER, (Emitter, "emit"): lambda *_: None,
    }
    planted |= {(Marks, name): unless_dying(name) for name in ("write", "state", "release")}
    try:
        for (owner, name), value in planted.items():
            setattr(owner, name, value)
        yield
    finally:
        for (owner, name), value in real.items():
            setattr(owner, name, value)
