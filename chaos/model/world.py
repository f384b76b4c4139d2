"""A world of processes that the model's steps can be taken in, on the real library and a real store.

One process plays several: each has a store of its own over one LMDB environment, with its own owner's key and its own
file of marks, and each runs in a greenlet that stops where the model has a step: once the mark is filled, wherever
user code runs, and before each write transaction.  A death drops the greenlet and lets go of the file's lock, as the
end of a process does; nothing it had in hand is written.
"""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from greenlet import getcurrent, greenlet

from chaos.model.environment import Reader, Tenant, renew
from chaos.model.graph import Graph
from statemachine import (
    BodyWeight,
    BreakerOpen,
    BreakerPolicy,
    CommitInDoubt,
    GlobalBreakerPolicy,
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
from statemachine.attempt import Attempt
from statemachine.audit import Emitter
from statemachine.breaker import Now, admit
from statemachine.clock import from_us
from statemachine.marks import ENDED, RUNNING, WAITING, DeadMarks, Marks
from statemachine.store import engine as door
from statemachine.store import fencing, keys, log
from statemachine.store.committer import Committer
from statemachine.store.draft import Draft
from statemachine.store.records import Image
from statemachine.testing import CountingIds, ManualClock

USER: Final = "u1"
BY: Final = {"actor": "model@example.org", "reason": "driven"}
COOLDOWN_S: Final = 100_000.0
SLOTS_OF_DRIVER: Final = 16
IDS_OF_FIRST_RECORDS: Final = 10
BY_MEASUREMENT: Final = 255
MODES: Final = ("closed", "open", "half-open", "forced-open", "forced-closed")
OUTCOMES: Final = ("", "committed", "rolled_back", "conflicted", "refused", "interrupted")
_NEVER: Final = GlobalBreakerPolicy(users_max=None, failure_rate_max=None)
_LIMITS: Final = StoreLimits(map_bytes=1 << 26, map_bytes_max=1 << 30, writer_wait_s_max=5.0)


class Difference(Exception):
    """The library did something else than the model."""


class _Died(BaseException):
    """Raised in a process's greenlet when it dies; what it still tries is not done."""


class Process:
    """One process of the model: a store, and a greenlet in which it works on one attempt after the other.

    `at` says where that greenlet stopped: "opening", "asking", "settling", "leasing", "user", "mutating", "offered", or how
    its attempt ended: "over", "refused", "doubt"; "" between attempts.
    """

    def __init__(self, world: World, number: int) -> None:
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
        number = self.world.next_attempt(self.number)
        attempt = Attempt(USER, "admin", BY["reason"], BY["actor"], "driven", "input")
        tx = self.tx = ResetTransaction(self.world.manager(store).context, attempt)
        self.world.attempts[tx.attempt_id] = number
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
                tx.commit()
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
            raise _Died
        return told

    def commits(self, real: Callable[[Draft], Any], draft: Draft) -> Any:
        """Before a write transaction of an attempt: wait for the word, and do as it says."""
        if self.dying:
            raise _Died
        if self._ending:
            return real(draft)
        if self.at == "settling":
            if self.found:
                self.pause("settling")
            return real(draft)
        word = self.pause("offered" if draft.events else "leasing")
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

    def dies(self) -> None:
        """The process ends at once: its file of marks is left as it is, unlocked; nothing more is written."""
        self.dying = True
        if self.worker is not None and not self.worker.dead:
            with contextlib.suppress(_Died, ResetError):
                self.worker.switch("die")
        if self.owner is not None:
            self.owner[1].abandon()
        self.store = self.owner = self.tx = self.worker = None
        self.at, self.dying = "down", False


_AT_WORK: weakref.WeakKeyDictionary[greenlet, Process] = weakref.WeakKeyDictionary()


class _Failure(Exception):
    """What user code raises when the model says that it fails."""


class Told(NamedTuple):
    """How the store's words are the model's.

    `attempts` has the number of each attempt by its id; `made` tells of which version a component is by its value: ("x" or
    "P", value, version).
    """

    first_version: int
    attempts_max: int
    attempts: dict[str, int]
    made: tuple[tuple[str, float, int], ...]


def durable(store: Store, told: Told, since_seq: int = 0) -> dict[str, tuple[int, ...]]:
    """What the store holds, in the model's variables.  Raises Difference for a version of nobody's."""
    head = store.head(USER)
    if head is None:
        message = f"nothing is stored for {USER}"
        raise Difference(message)
    kalman = store.estimator.decode(head.state).kalman
    made = {(part, value): version for part, value, version in told.made}
    author = [0]
    with store.engine.reading() as txn:
        entries = {version: log.entry(txn.get, USER.encode(), version)
                   for version in range(told.first_version + 1, head.version + 1)}
    for version, entry in entries.items():
        by = entry.author if isinstance(entry, Image) else ""
        if by and by not in told.attempts:
            message = f"version {version} is of {by}, which is no attempt of the model's"
            raise Difference(message)
        author.append(told.attempts[by] + 1 if by else BY_MEASUREMENT)
    rows, out = [0] * told.attempts_max, [0] * told.attempts_max
    for row in store.audit(since_seq=since_seq + 1):
        number = told.attempts.get(row.public.attempt_id)
        if number is not None:
            rows[number] += 1
            out[number] = OUTCOMES.index(row.public.outcome)
    record = store.draft().stored_breaker(USER.encode())
    died = sum(count << (2 * (base - told.first_version)) for _, base, count in record.suspects)
    return {
        "head": (head.version - told.first_version,), "cx": (made["x", kalman.x0],), "cP": (made["P", kalman.p00],),
        "bad_head": (0,), "author": tuple(author), "out": tuple(out), "rows": tuple(rows),
        "b.mode": (MODES.index(record.mode),), "b.fails": (record.failures,), "b.wins": (record.successes,),
        "b.gen": (record.generation,), "b.probe": (told.attempts[record.probe] + 1 if record.probe else 0,), "died": (died,),
    }


class World:
    """The store, its processes, an operator and the clock; `fresh` makes it what it was at first."""

    def __init__(self, path: Path, graph: Graph, thresholds: tuple[int, int]) -> None:
        self.clock = ManualClock()
        self.estimator = BodyWeight()
        self.processes_count = len(graph.of(0, "phase"))
        self.attempts_each: int = len(graph.of(0, "out")) // self.processes_count
        self.policy = BreakerPolicy(failures_max=thresholds[0], failure_rate_max=None, suspects_max=thresholds[1],
                                    cooldown_s=COOLDOWN_S, cooldown_factor=1.0, jitter=0.0)
        self.path = path
        self.hub = getcurrent()
        made = Store.open(path, durability="process", clock=self.clock, ids=CountingIds(), estimator=self.estimator)
        Processor(ResetManager(made)).process(self._measurement(80.0))
        made.close()
        self._engine = door.Engine(path, sync=False, map_bytes=1 << 26, map_bytes_max=1 << 30, writer_wait_s_max=5.0,
                                   clock=self.clock)
        self.meta = Store.meta(Reader(self._engine))  # type: ignore[arg-type]
        self._fresh_us = self.clock.now_us()
        self.ids = CountingIds()
        for _ in range(IDS_OF_FIRST_RECORDS):
            self.ids.attempt_id()
        self.operator = self.opened()
        self._records = list(self._engine.scan(b"\0", b"\xff" * 8))
        self._seq = self.operator.audit_tail()[0]
        self.first_version: int = self._head().version
        self.processes: list[Process] = []
        self.fresh()

    def close(self) -> None:
        """Let go of the environment."""
        for process in self.processes:
            process.dies()
        self.operator.marks.abandon()
        self._engine.close()

    def fresh(self) -> None:
        """Everything as it was at first, with new processes; the operator stays."""
        for process in self.processes:
            process.dies()
        for path in self._files():
            if path.name != str(self.operator.committer.owner):
                Path(path).unlink()
        renew(self._engine, self._records)
        self.clock.advance((self._fresh_us - self.clock.now_us()) / 1_000_000)  # else the cooldowns of many paths add up to a gap
        self.attempts: dict[str, int] = {}
        self.begun = [0] * self.processes_count
        self.made: dict[tuple[str, float], int] = {}
        self._count = 0
        self.fault = ""
        self.note(0)
        self.processes = [Process(self, number) for number in range(self.processes_count)]
        for process in self.processes:
            process.start(process.opens)
            process.go_on("")
            process.at = ""

    def opened(self) -> Store:
        """A store of a process of its own, over the one environment."""
        tenant: Any = Tenant(self._engine)
        return Store(tenant, self.meta, estimator=self.estimator, rules=(), durability="process", limits=_LIMITS,
                     clock=self.clock, ids=self.ids)

    def manager(self, store: Store) -> ResetManager:
        """A manager with the model's figures."""
        return ResetManager(store, breaker=self.policy, global_breaker=_NEVER)

    def next_attempt(self, process: int) -> int:
        """The model's number of the attempt that a process now begins."""
        self.begun[process] += 1
        return process * self.attempts_each + self.begun[process] - 1

    def model_version(self, version: int) -> int:
        """The model counts from the version that stood at first."""
        return int(version - self.first_version)

    def mutated(self, state: Any, before: Any, *, bad: bool) -> Any:
        """The next component made anew: the level first, the covariance after it; a bad one breaks a rule."""
        self._count += 1
        version = self.model_version(self._head().version) + 1
        if bad:
            return state.replace(P=((-1.0, 0.0), (0.0, 1e-4)))
        if state.kalman.x0 == before.kalman.x0:
            level = 80.0 + self._count * 1e-3
            self.made["x", level] = version
            return state.replace(x=(level, 0.0))
        spread = 1.0 + self._count * 1e-3
        self.made["P", spread] = version
        return state.replace(P=((spread, 0.0), (0.0, 1e-4)))

    def note(self, version: int) -> None:
        """The stored state was made by another than an attempt: both its components are of `version`."""
        kalman = self.estimator.decode(self._head().state).kalman
        self.made["x", kalman.x0] = self.made["P", kalman.p00] = version

    def _head(self) -> Any:
        return self.operator.head(USER)

    def _measurement(self, weight_kg: float) -> Measurement:
        return Measurement(user=USER, at=from_us(self.clock.now_us()), weight_kg=weight_kg, source="scale")

    # --- what the environment does ---

    def measure(self) -> None:
        """Another process accepts an ordinary measurement."""
        self.clock.advance(1.0)
        level = self.estimator.decode(self._head().state).kalman.x0
        outcome = Processor(self.manager(self.operator)).process(self._measurement(level + 1e-4))
        if outcome.status != "accepted":
            message = f"an ordinary measurement was {outcome.status}: {outcome.reason}"
            raise Difference(message)
        self.note(self.model_version(outcome.version))

    def environment(self, action: str) -> None:
        """What happens around the processes: time, a measurement, an operator."""
        operator = self.manager(self.operator)
        if action == "cool":
            self.clock.advance(COOLDOWN_S + 1.0)
        elif action == "measure":
            self.measure()
        elif action == "force open":
            operator.force_breaker(USER, "forced-open", **BY)
        elif action == "force closed":
            operator.force_breaker(USER, "forced-closed", **BY)
        elif action == "release":
            operator.release_breaker(USER, **BY)
        else:
            message = f"the driver knows no action {action!r}"
            raise Difference(message)

    def transactions(self) -> int:
        """The number of the newest transaction that LMDB has committed."""
        with self._engine.reading() as txn:
            return int(txn.id())

    def fence(self, process: Process) -> None:
        """An operator fences a process that lives."""
        if process.owner is None:
            message = "a process without an owner's key was to be fenced"
            raise Difference(message)
        fencing.fence(self.operator, process.owner[0], **BY)

    # --- the abstraction: what is stored, in the model's variables ---

    def told(self) -> Told:
        """What one must know to read the store in the model's words."""
        return Told(self.first_version, self.processes_count * self.attempts_each, dict(self.attempts),
                    tuple((part, value, version) for (part, value), version in self.made.items()))

    def seen(self) -> dict[str, tuple[int, ...]]:
        """Every durable variable, every mark, and each process's phase, as they really are."""
        record, now_us = self.operator.draft().stored_breaker(USER.encode()), self.clock.now_us()
        admission = admit(record, self.policy, Now(now_us, now_us), USER)
        mark, mbase, orphan = self._marks(self.processes_count * self.attempts_each)
        return {
            **durable(self.operator, self.told(), self._seq),
            "key": tuple(int(self._is_registered(process)) for process in self.processes),
            "b.cooled": (int(record.mode == "open" and admission.verdict == "probe"),),
            "mark": mark, "mbase": mbase, "orphan": orphan,
        }

    def _files(self) -> list[os.DirEntry[str]]:
        """The owners' files of marks."""
        with os.scandir(self.path / door.OWNERS) as found:
            return list(found)

    def _is_registered(self, process: Process) -> bool:
        return process.owner is not None and self._engine.get(keys.owner(process.owner[0])) is not None

    def _marks(self, total: int) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        mark, mbase, orphan = [0] * total, [0] * total, [0] * total
        live = {str(p.owner[0]) for p in self.processes if p.owner is not None}
        for path in self._files():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                found = DeadMarks(Path(path), descriptor).marks()
            finally:
                os.close(descriptor)
            for one in found:
                number = self.attempts.get(one.attempt_id)
                if number is None:
                    continue
                mark[number] = {WAITING: 1, RUNNING: 2, ENDED: 3 + OUTCOMES.index(one.outcome)}[one.state]
                mbase[number] = self.model_version(one.base_version)
                orphan[number] = int(path.name not in live)
        return tuple(mark), tuple(mbase), tuple(orphan)


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
