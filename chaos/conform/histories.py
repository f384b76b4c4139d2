"""Random real runs of several processes on one store, and the audit logs they leave.

Resets fail, breakers open, an operator forces and fences, states are restored, and processes die.  A seed decides
everything, so that a history that is refused can be made again.

Each process is a store of its own over one LMDB environment, as in `chaos/model/process.py`: what it runs is real, its clock is
set by hand, and its death lets go of its file of marks as the end of a process does.  Attempts of several processes lie in each
other's way, for each stops between its operations and goes on later.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypedDict
from unittest import mock

from chaos.model.environment import Reader, Tenant, renew
from statemachine import (
    BodyWeight,
    BreakerPolicy,
    CommitInDoubt,
    Measurement,
    Processor,
    ResetError,
    ResetManager,
    ResetTransaction,
    Store,
    StoreFull,
    StoreLimits,
    audit,
    marks,
)
from statemachine.attempt import Attempt
from statemachine.breaker import Forced, GlobalBreakerPolicy
from statemachine.clock import from_us
from statemachine.erasure import forget, prune_audit
from statemachine.requarantine import replay
from statemachine.rollout import Rollout
from statemachine.store import engine as door
from statemachine.store import fencing, keys
from statemachine.testing import CountingIds, ManualClock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator



class _By(TypedDict):
    actor: str
    reason: str


BY: Final[_By] = {"actor": "chaos@example.org", "reason": "a random history"}
KG: Final = 80.0
SLOTS_OF_HISTORIES: Final = 64
_WORDS: Final[tuple[Forced, ...]] = ("forced-open", "forced-closed", "forced-closed", "metrics-only")
_LIMITS: Final = StoreLimits(map_bytes=1 << 24, map_bytes_max=1 << 28)


class Shape(NamedTuple):
    """What may happen in a history."""

    steps: int = 60
    users: int = 2
    processes: int = 3
    users_max: int | None = None
    """How many failing users open the global breaker; None: nothing does."""
    erasing: bool = False
    global_words: bool = False


class _Boom(Exception):
    """What user code raises."""


class Process:
    """A store of its own, and the attempts it has begun and not ended."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.store = world.opened()
        self.manager = world.manager(self.store)
        self.open: list[ResetTransaction] = []

    def begin(self, user: str, text: str = "one") -> ResetTransaction:
        """An attempt of this process, begun and left open."""
        tx = ResetTransaction(self.manager.context, Attempt(user, "admin", "random", "chaos@example.org", "by chance", text))
        tx.begin()
        return tx

    def dies(self) -> None:
        """The process ends at once: its marks are left as they are."""
        self.store.marks.abandon()
        self.open.clear()


class World:
    """One store, its processes and the clock; `run` makes a history on it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.clock = ManualClock()
        self.ids = CountingIds()
        self.estimator = BodyWeight()
        Store.open(path, durability="process", clock=self.clock, ids=self.ids, estimator=self.estimator).close()
        self.engine = door.Engine(path, sync=False, map_bytes=1 << 24, map_bytes_max=1 << 28, writer_wait_s_max=5.0,
                                  clock=self.clock)
        self._records = list(self.engine.scan(b"\0", b"\xff" * 8))
        self._meta = Store.meta(Reader(self.engine))  # type: ignore[arg-type]
        self.processes: list[Process] = []

    def close(self) -> None:
        """Let go of the environment."""
        self._end()
        self.engine.close()

    def _end(self) -> None:
        for process in self.processes:
            process.dies()
        self.processes = []

    def opened(self) -> Store:
        """A store of a new process."""
        return Store(Tenant(self.engine), self._meta, estimator=self.estimator, rules=(), durability="process",  # type: ignore[arg-type]
                     limits=_LIMITS, clock=self.clock, ids=self.ids)

    def manager(self, store: Store) -> ResetManager:
        """A manager with the policies of this history."""
        return ResetManager(store, breaker=self._policy, global_breaker=self._global, rollout=self._rollout)

    def run(self, seed: int, shape: Shape = Shape()) -> list[dict[str, Any]]:  # noqa: B008 - frozen
        """The audit log, row by row as `audit list --json` has it, of the history that this seed makes on an empty store."""
        self.rng = rng = random.Random(seed)
        policy = BreakerPolicy(failures_max=rng.randint(1, 3), cooldown_s=60.0, jitter=0.0, cooldown_factor=1.0, attempts_min=50,
                               successes_to_close=rng.choice((1, 1, 2)), suspects_max=rng.choice((1, 2)))
        self.fresh(policy, rng.choice((None, None, None, Rollout(mode="shadow"))), shape)
        for user in self.users:
            self.measure(self.processes[0], user, KG)
        for _ in range(shape.steps):
            self._step()
        return self.log()

    def fresh(self, policy: BreakerPolicy, rollout: Rollout | None = None, shape: Shape = Shape()) -> None:  # noqa: B008 - frozen
        """An empty store with new processes, in which attempts are judged by `policy`."""
        self._end()
        self.clock, self.ids = ManualClock(), CountingIds()
        shutil.rmtree(self.path / door.OWNERS, ignore_errors=True)
        renew(self.engine, self._records)
        self._policy, self._rollout, self._shape = policy, rollout, shape
        self._global = GlobalBreakerPolicy(users_max=shape.users_max, cooldown_s=90.0, jitter=0.0, attempts_min=500)
        self.users = [f"u{number}" for number in range(1, shape.users + 1)]
        self.processes = [Process(self) for _ in range(shape.processes)]

    def log(self) -> list[dict[str, Any]]:
        """The audit log by now, after every process has ended but a new one, which settles what they left."""
        self._settle()
        return [row.as_dict() for row in self.processes[0].store.audit()]

    def _settle(self) -> None:
        """Every process ends but a new one, which settles what they left."""
        for process in self.processes:
            process.dies()
        self.processes = [Process(self)]

    def _step(self) -> None:
        self.clock.advance(self.rng.uniform(1.0, 15.0))
        number = self.rng.randrange(len(self.processes))
        process = self.processes[number]
        steps: list[tuple[int, Callable[[Process], None]]] = [
            (22, self._begin), (40, self._go_on), (12, self._measure_some), (3, self._failing_series), (3, self._leave),
            (6, self._cool), (3, self._force), (2, self._restore), (2, self._surprise), (1, self._replay),
        ]
        if self._shape.erasing:
            steps.append((2, self._erase))
        pick = self.rng.choices([step for _, step in steps], [weight for weight, _ in steps])[0]
        if self.rng.random() < 0.06:
            process.dies()
            self.processes[number] = Process(self)
            return
        if self.rng.random() < 0.02:
            self._fence(process)
            return
        with contextlib.suppress(ResetError, _Boom):
            pick(process)
        if self.engine.get(keys.owner(process.store.committer.owner)) is None and self.rng.random() < 0.5:
            process.dies()  # it was fenced, found it out, and is started anew
            self.processes[number] = Process(self)

    # --- what a process does ---

    def _begin(self, process: Process) -> None:
        user, kind = self.rng.choice(self.users), self.rng.choice(("admin", "admin", "gap"))
        expect = self.rng.choice((None,) * 8 + (1,))
        tx = ResetTransaction(process.manager.context, Attempt(user, kind, "random", "chaos@example.org", "by chance",
                                                               self.rng.choice(("one", "two")), expect_version=expect))
        tx.begin()
        process.open.append(tx)

    def _go_on(self, process: Process) -> None:
        if not process.open:
            return self._begin(process)
        tx = self.rng.choice(process.open)
        what = self.rng.random()
        if what < (0.8 if tx.phase.value == "snapshotted" else 0.25):
            tx.apply("another level", self._moved)
            return None
        process.open.remove(tx)
        if what < 0.82 and tx.phase.value == "validated":
            self._commit(process, tx)
        elif what < 0.95:
            try:
                tx.apply("boom", self._boom)
            except ResetError as error:
                tx.roll_back(error)
        else:
            tx.roll_back(None)
        return None

    def _commit(self, process: Process, tx: ResetTransaction) -> None:
        fault = self.rng.random()
        commit = process.store.committer.commit
        if fault < 0.08:
            def fails(draft: Any) -> Any:
                process.store.committer.commit = commit  # type: ignore[method-assign]
                if fault < 0.03:
                    message = "the disk is full"
                    raise StoreFull(message)
                if fault < 0.05:
                    commit(draft)
                message = "cut off"
                raise CommitInDoubt(message)
            process.store.committer.commit = fails  # type: ignore[method-assign]
        try:
            tx.commit()
        finally:
            process.store.committer.commit = commit  # type: ignore[method-assign]

    def _moved(self, state: Any) -> Any:
        return state.replace(x=(KG + self.rng.uniform(-0.2, 0.2), 0.0))

    def _boom(self, _state: Any) -> Any:
        raise _Boom

    def _leave(self, process: Process) -> None:
        if process.open:
            process.open.pop(self.rng.randrange(len(process.open))).roll_back(KeyboardInterrupt())

    def _failing_series(self, process: Process) -> None:
        user = self.rng.choice(self.users)
        for _ in range(self._policy.failures_max):
            with contextlib.suppress(ResetError), process.manager.transaction(user, **BY) as tx:
                tx.apply("boom", self._boom)

    def measure(self, process: Process, user: str, weight_kg: float) -> None:
        """A measurement of now, decided alone."""
        at = from_us(self.clock.now_us())
        Processor(process.manager).process(Measurement(user=user, at=at, weight_kg=weight_kg, source="scale"))

    def _measure_some(self, process: Process) -> None:
        for _ in range(self.rng.randint(1, 3)):
            self.measure(process, self.rng.choice(self.users), KG + self.rng.gauss(0.0, 0.1))

    def _surprise(self, process: Process) -> None:
        """A batch that ends in resets as decided: a gap, or a level that has shifted."""
        self.clock.advance(self.rng.choice((3_600.0, 40 * 86_400.0)))
        user, level = self.rng.choice(self.users), self.rng.choice((KG, KG + 9.0))
        rows = []
        for _ in range(self.rng.randint(1, 6)):
            self.clock.advance(3_600.0)
            at, weight_kg = from_us(self.clock.now_us()), level + self.rng.gauss(0.0, 0.1)
            rows.append(Measurement(user=user, at=at, weight_kg=weight_kg, source="scale"))
        Processor(process.manager).process_batch(rows)

    def _replay(self, process: Process) -> None:
        replay(process.manager, self.rng.choice(self.users), **BY)

    def _restore(self, process: Process) -> None:
        user = self.rng.choice(self.users)
        head = process.store.head(user)
        if head is not None:
            process.manager.restore(user, to_version=self.rng.randint(head.first, head.version), **BY)

    # --- what an operator, and time, do ---

    def _cool(self, _process: Process) -> None:
        self.clock.advance(100.0)

    def _force(self, process: Process) -> None:
        whose = None if self._shape.global_words and self.rng.random() < 0.3 else self.rng.choice(self.users)
        if process.manager.breaker(whose).mode != "closed":
            process.manager.release_breaker(whose, **BY)
            return
        mode: Forced = self.rng.choice(_WORDS)
        process.manager.force_breaker(whose, mode, **BY)

    def _fence(self, process: Process) -> None:
        others = [p for p in self.processes if p is not process]
        if others:
            with contextlib.suppress(ResetError):
                fencing.fence(process.store, self.rng.choice(others).store.committer.owner, **BY)

    def _erase(self, process: Process) -> None:
        if self.rng.random() < 0.5:
            prune_audit(process.store, self.clock.now_us() - 300_000_000, BY["actor"], BY["reason"])
            return
        forget(process.store, self.rng.choice(self.users), BY["actor"], BY["reason"])


def _dropped(*_row: object) -> None:
    """Copy the row nowhere."""


@contextlib.contextmanager
def world() -> Iterator[World]:
    """A place for histories, in memory where there is room for it.

    While it is open, stores of this program copy no rows to structlog, which would keep a thread for each, and have small
    files of marks.
    """
    memory = Path("/dev/shm")  # noqa: S108 - a directory of our own is made in it
    with (
        tempfile.TemporaryDirectory(prefix="resetguard-histories-", dir=memory if memory.is_dir() else None) as name,
        mock.patch.object(audit.Emitter, "emit", _dropped), mock.patch.object(marks, "SLOTS", SLOTS_OF_HISTORIES),
    ):
        found = World(Path(name) / "store")
        try:
            yield found
        finally:
            found.close()


def shape_of(seed: int) -> Shape:
    """What may happen in the history of a seed: one in four has a global breaker, and one in eight erases."""
    return Shape(users_max=2 if seed % 4 == 3 else None, erasing=seed % 8 == 5, global_words=seed % 4 == 3)
