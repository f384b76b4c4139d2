"""The real library, driven down every edge of the model's graph: what is stored after each step must be the model's state.

One process plays several: each has a store of its own over one LMDB environment, with its own owner's key and its own
file of marks, and each runs in a greenlet that stops where the model has a step: once the mark is filled, wherever
user code runs, and before each write transaction.  A death drops the greenlet and lets go of the file's lock, as the
end of a process does; nothing it had in hand is written.  `chaos/deaths.py` does the same with processes that really die.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from greenlet import getcurrent, greenlet

from chaos.graph import Edge, Graph, paths
from statemachine import (
    BodyWeight,
    BreakerOpen,
    BreakerPolicy,
    CommitInDoubt,
    ConflictError,
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
)
from statemachine import marks as marks_module
from statemachine.breaker import admit
from statemachine.clock import from_us
from statemachine.machine import NEXT, TABLE, Phase
from statemachine.marks import ENDED, RUNNING, WAITING, DeadMarks, Marks
from statemachine.store import engine as door
from statemachine.store import fencing, keys, log
from statemachine.store.committer import Committer
from statemachine.store.records import Image
from statemachine.testing import CountingIds, ManualClock
from statemachine.transaction import Attempt

USER: Final = "u1"
BY: Final = {"actor": "model@example.org", "reason": "driven"}
COOLDOWN_S: Final = 1_000_000.0
SLOTS_OF_DRIVER: Final = 16
BY_MEASUREMENT: Final = 255
MODES: Final = ("closed", "open", "half-open", "forced-open", "forced-closed")
OUTCOMES: Final = ("", "committed", "rolled_back", "conflicted", "refused", "interrupted")
PHASES: Final = ("idle", "idle", "idle", "snapshotted", "mutating", "validated", "validated", "committed", "rolledback",
                 "breaker-open", "validated", "", "")
"""What each phase of the model is in `machine.py`; a dead process and one that opens have none."""
TRIGGERS: Final = tuple(trigger for trigger, _, _ in TABLE)


class Difference(Exception):
    """The library did something else than the model."""


class Driven(NamedTuple):
    """What a drive covered: edges and states, steps with all prefixes, and triggers that were refused, as they must be."""

    edges: int
    states: int
    steps: int
    paths: int
    refusals: int


class _Died(BaseException):
    """Raised in a process's greenlet when it dies; what it still tries is not done."""


class _Process:
    """One process of the model: a store, and a greenlet in which it works on one attempt after the other."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.number = number
        self.store: Store | None = None
        self.owner: tuple[int, Marks] | None = None
        self.tx: ResetTransaction | None = None
        self.at = ""
        self.worker: greenlet | None = None
        self.acked = 0

    # Whatever follows runs in the process's own greenlet, up to the next `pause`.

    def opens(self) -> None:
        """Open the store: register as an owner, then settle what the dead left."""
        self.store = self.world.opened()
        self.at = "opened"

    def attempts(self) -> None:
        """One attempt, from its begin to its end, told what to do at each pause."""
        store = self.store
        if store is None:
            raise Difference("an attempt in a process without a store")
        manager = self.world.manager(store)
        number = self.world.next_attempt(self.number)
        tx = self.tx = ResetTransaction(manager.context, Attempt(USER, "admin", "driven", "model@example.org", "by the model", "input"))
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
        except (ConflictError, BreakerOpen, StoreFull):
            self.at = "over"
        except (MutationFailed, KeyboardInterrupt, _Failure) as error:
            tx.roll_back(error)
            self.at = "over"
        except ResetError as error:
            self.at = "over"
            if tx.phase is Phase.VALIDATED:  # the commit was refused to a fenced owner
                raise Difference(f"left in {tx.phase}") from error
        else:
            self.at = "over"

    def _works(self, tx: ResetTransaction) -> None:
        while True:
            self.at = "user"
            command = self.pause()
            if command == "offer":
                result = tx.commit()
                if result.outcome == "committed":
                    self.acked = self.world.model_version(result.version or 0)
                return
            if command == "fail":
                raise _Failure
            if command == "leave":
                raise KeyboardInterrupt
            try:
                tx.apply(command, self._mutation(tx, bad=command == "mutate badly"))
            except ResetValidationError:
                continue

    def _mutation(self, tx: ResetTransaction, *, bad: bool) -> Callable[[Any], Any]:
        def mutation(state: Any) -> Any:
            self.at = "mutating"
            command = self.pause()
            if command == "fail":
                raise _Failure
            if command == "leave":
                raise KeyboardInterrupt
            return self.world.mutated(state, tx.before, self.number, bad=bad)

        return mutation

    def pause(self) -> str:
        """Stop here until the driver says what comes next."""
        told: str = self.world.hub.switch()
        if told == "die":
            raise _Died
        return told

    # Whatever follows is called by the driver.

    def start(self, work: Callable[[], None]) -> None:
        """Run a piece of work up to its first pause."""
        self.worker = greenlet(work)
        self.worker.process = self  # type: ignore[attr-defined]
        self.go_on("")

    def go_on(self, command: str) -> None:
        """Let the work go on to its next pause, or its end."""
        worker = self.worker
        if worker is None or worker.dead:
            raise Difference(f"process {self.number} has nothing to go on with for {command!r}")
        worker.switch(command) if worker else worker.switch()

    def dies(self) -> None:
        """The process ends at once: its file of marks is left as it is, unlocked; nothing more is written."""
        if self.owner is not None:
            self.owner[1].abandon()
        worker, self.worker = self.worker, None
        if worker is not None and not worker.dead:
            with contextlib.suppress(_Died, ValueError, ResetError):
                worker.switch("die")
        self.store = self.owner = self.tx = None
        self.at = "down"


class _Failure(Exception):
    """What user code raises when the model says that it fails."""


class _Tenant:
    """The one environment, as each process has it: it cannot be closed by one of them."""

    def __init__(self, engine: door.Engine) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def close(self) -> None:
        """Leave it open for the others."""


class World:
    """The store, its processes, an operator and the clock; `fresh` makes it what it was at first."""

    def __init__(self, path: Path, graph: Graph) -> None:
        self.clock = ManualClock()
        self.estimator = BodyWeight()
        self.processes_count = len(graph.of(0, "phase"))
        self.attempts_each = len(graph.of(0, "out")) // self.processes_count
        self.failures_max, self.suspects_max = 1, 1
        self.path = path
        self.hub = getcurrent()
        made = Store.open(path, durability="process", clock=self.clock, ids=CountingIds(), estimator=self.estimator)
        Processor(ResetManager(made)).process(self._measurement(80.0))
        made.close()
        self._engine = door.Engine(path, sync=False, map_bytes=1 << 26, map_bytes_max=1 << 30, writer_wait_s_max=5.0,
                                   clock=self.clock)
        self._records = list(self._engine.scan(b"\0", b"\xff" * 8))
        self.meta = Store.meta(_Reader(self._engine))  # type: ignore[arg-type]
        self._fresh_us = self.clock.now_us()
        self.fresh()

    def close(self) -> None:
        """Let go of the environment."""
        for process in self.processes:
            process.dies()
        self.operator.marks.abandon()
        self._engine.close()

    def fresh(self) -> None:
        """Everything as it was at first, with new processes."""
        for process in getattr(self, "processes", ()):
            process.dies()
        if hasattr(self, "operator"):
            self.operator.marks.abandon()
        shutil.rmtree(self.path / door.OWNERS, ignore_errors=True)
        with self._engine.turn(), self._engine.write() as txn:
            with txn.cursor() as cursor:
                there = cursor.first()
                while there:
                    there = cursor.delete()
            for key, value in self._records:
                txn.put(key, value)
        self.attempts: dict[str, int] = {}
        self.begun = [0] * self.processes_count
        self.made: dict[tuple[str, float], int] = {}
        self._count = 0
        self.fault = ""
        self.ids = CountingIds()
        self.operator = self.opened()
        self._rows: dict[str, int] = {}
        self._seq = self.operator.audit_tail()[0]
        self.first_version = self._head().version
        self.note(0)
        self.processes = [_Process(self, number) for number in range(self.processes_count)]
        for process in self.processes:
            process.start(process.opens)
            process.at = ""

    def opened(self) -> Store:
        """A store of a process of its own, over the one environment."""
        store = Store(_Tenant(self._engine), self.meta, estimator=self.estimator, rules=(), durability="process",  # type: ignore[arg-type]
                      limits=_LIMITS, clock=self.clock, ids=self.ids)
        return store

    def manager(self, store: Store) -> ResetManager:
        """A manager with the model's figures."""
        policy = BreakerPolicy(failures_max=self.failures_max, suspects_max=self.suspects_max, cooldown_s=COOLDOWN_S,
                               cooldown_factor=1.0, jitter=0.0)
        return ResetManager(store, breaker=policy)

    def next_attempt(self, process: int) -> int:
        """The model's number of the attempt that a process now begins."""
        self.begun[process] += 1
        return process * self.attempts_each + self.begun[process] - 1

    def model_version(self, version: int) -> int:
        """The model counts from the version that stood at first."""
        return version - self.first_version

    def mutated(self, state: Any, before: Any, _process: int, *, bad: bool) -> Any:
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
        level = self.estimator.decode(self._head().state).kalman.x0
        outcome = Processor(self.manager(self.operator)).process(self._measurement(level + 1e-4))
        if outcome.status != "accepted":
            raise Difference(f"an ordinary measurement was {outcome.status}: {outcome.reason}")
        self.note(self.model_version(outcome.version))

    def cool(self) -> None:
        """The cooldown passes."""
        self.clock.advance(COOLDOWN_S + 1.0)

    def fence(self, process: _Process) -> None:
        """An operator fences a process that lives."""
        if process.owner is None:
            raise Difference("a process without an owner's key was to be fenced")
        fencing.fence(self.operator, process.owner[0], **BY)

    # --- the abstraction: what is stored, in the model's variables ---

    def seen(self) -> dict[str, tuple[int, ...]]:
        """Every durable variable, every mark, and each process's phase, as they really are."""
        total = self.processes_count * self.attempts_each
        head = self._head()
        kalman = self.estimator.decode(head.state).kalman
        author = [0] * (self.model_version(head.version) + 1)
        for version in range(1, len(author)):
            with self._engine.reading() as txn:
                entry = log.entry(txn.get, USER.encode(), version + self.first_version)
            author[version] = self.attempts[entry.author] + 1 if isinstance(entry, Image) and entry.author else BY_MEASUREMENT
        rows, out = [0] * total, [0] * total
        for row in self.operator.audit(since_seq=self._seq + 1):
            number = self.attempts.get(row.public.attempt_id)
            if number is not None:
                rows[number] += 1
                out[number] = OUTCOMES.index(row.public.outcome)
        record = self.manager(self.operator).breaker(USER)
        admission = admit(record, self.manager(self.operator).context.breaker, self.now(), USER)
        died = 0
        for _, base, count in record.suspects:
            died += count << (2 * self.model_version(base))
        mark, mbase, orphan = self._marks(total)
        return {
            "head": (self.model_version(head.version),),
            "cx": (self.made["x", kalman.x0],), "cP": (self.made["P", kalman.p00],), "bad_head": (0,),
            "author": tuple(author), "out": tuple(out), "rows": tuple(rows),
            "key": tuple(int(p.owner is not None and self._engine.get(keys.owner(p.owner[0])) is not None) for p in self.processes),
            "b.mode": (MODES.index(record.mode),), "b.fails": (record.failures,), "b.wins": (record.successes,),
            "b.gen": (record.generation,), "b.probe": (self.attempts[record.probe] + 1 if record.probe else 0,),
            "b.cooled": (int(record.mode == "open" and admission.verdict == "probe"),),
            "died": (died,), "mark": mark, "mbase": mbase, "orphan": orphan,
        }

    def now(self) -> Any:
        """The instant by which a live caller is judged."""
        return ResetTransaction(self.manager(self.operator).context, Attempt(USER, "admin")).now

    def _marks(self, total: int) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        mark, mbase, orphan = [0] * total, [0] * total, [0] * total
        live = {str(p.owner[0]) for p in self.processes if p.owner is not None}
        for path in (self.path / door.OWNERS).iterdir():
            with path.open("rb") as file:
                found = DeadMarks(path, file.fileno()).marks()
            for one in found:
                number = self.attempts.get(one.attempt_id)
                if number is None:
                    continue
                mark[number] = {WAITING: 1, RUNNING: 2, ENDED: 3 + OUTCOMES.index(one.outcome)}[one.state]
                mbase[number] = self.model_version(one.base_version)
                orphan[number] = int(path.name not in live)
        return tuple(mark), tuple(mbase), tuple(orphan)


class _Reader:
    """Enough of a store to read its own record from."""

    def __init__(self, engine: door.Engine) -> None:
        self.engine = engine
