"""reset.pml's steps on the library: the resets of one user by several processes, with an operator and the clock."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from chaos.model.graph import Graph
from chaos.model.process import BY, MODES, OUTCOMES, WEIGHT_KG, Difference, Ground, Process, refuse_triggers
from statemachine import BreakerPolicy, GlobalBreakerPolicy, Processor, ResetManager, ResetTransaction, Store
from statemachine.attempt import Attempt
from statemachine.breaker import Now, admit
from statemachine.marks import ENDED, RUNNING, WAITING
from statemachine.store import fencing, log
from statemachine.store.records import Image

USER: Final = "u1"
COOLDOWN_S: Final = 100_000.0
BY_MEASUREMENT: Final = 255
_NEVER: Final = GlobalBreakerPolicy(users_max=None, failure_rate_max=None)

PHASES: Final = ("idle", "idle", "idle", "snapshotted", "mutating", "validated", "validated", "committed", "rolledback",
                 "breaker-open", "validated", "", "")
"""What each phase of the model is in `machine.py`; a dead process and one that opens have none."""


_GO_ON: Final = frozenset({
    "ask", "lease", "mutate", "mutate badly", "validate", "offer", "commit", "commit fails", "doubt, durable",
    "doubt, not durable", "fail", "leave",
})
"""Steps that are the next word to the process's own work."""



# What moves the machine: the model's steps that are one trigger, by the phase they lead to.
_TRIGGERS: Final = {
    ("ask", "snapshotted"): "snapshot", ("lease", "snapshotted"): "snapshot", ("ask", "breaker-open"): "refuse",
    ("lease", "breaker-open"): "refuse", ("mutate", "mutating"): "mutate", ("mutate badly", "mutating"): "mutate",
    ("validate", "validated"): "validate", ("commit", "committed"): "commit", ("commit", "rolledback"): "roll_back",
    ("commit fails", "rolledback"): "roll_back", ("fail", "rolledback"): "roll_back", ("leave", "rolledback"): "roll_back",
    ("finish", "idle"): "finish",
}
_ASIDE: Final = frozenset({
    "begin", "offer", "doubt, durable", "doubt, not durable", "give up", "flush", "close", "crash", "reopen", "settle 0",
    "settle 1", "opened", "fence", "cool", "measure", "force open", "force closed", "release",
})
"""Steps that fire no trigger: within a phase, the end and the beginning of processes, and what happens around them."""


def moves(graph: Graph) -> Iterator[tuple[str, str, str]]:
    """Every (phase, trigger, phase) that SPIN explored; a step that nobody knows is a trigger of its own name."""
    for state, leaving in enumerate(graph.edges):
        before = graph.of(state, "phase")
        for edge in leaving:
            after = graph.of(edge.to, "phase")
            if edge.action in _ASIDE:
                continue
            source, target = PHASES[before[edge.who]], PHASES[after[edge.who]]
            trigger = _TRIGGERS.get((edge.action, target))
            if trigger is not None or source != target:
                yield source, trigger or edge.action, target


_ELSEWHERE: Final = {("idle", "refuse"), ("mutating", "mutate")}
"""Moves that a graph lacks where no breaker opens at its bounds, and no candidate breaks a rule."""


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


class World(Ground):
    """The store of one user, whom the processes reset."""

    def __init__(self, path: Path, graph: Graph, thresholds: tuple[int, int]) -> None:
        super().__init__(path, (USER,))
        self.graph = graph
        self.processes_count = len(graph.of(0, "phase"))
        self.attempts_each: int = len(graph.of(0, "out")) // self.processes_count
        self.policy = BreakerPolicy(failures_max=thresholds[0], failure_rate_max=None, suspects_max=thresholds[1],
                                    cooldown_s=COOLDOWN_S, cooldown_factor=1.0, jitter=0.0)
        self.allowed = frozenset((source, trigger) for source, trigger, _ in moves(graph)) | _ELSEWHERE
        self.first_version: int = self._head().version
        self.fresh()

    def fresh(self) -> None:
        """Everything as it was at first, with new processes; the operator stays."""
        super().fresh()
        self.begun = [0] * self.processes_count
        self.made: dict[tuple[str, float], int] = {}
        self._count = 0
        self.note(0)
        self.opens(self.processes_count)

    def step(self, action: str, who: int) -> None:
        """Do in the library what the model calls `action`."""
        process = self.processes[who]
        if action in _GO_ON:
            process.go_on(action)
        elif action in _OF_PROCESSES:
            _OF_PROCESSES[action](process)
        elif action == "fence":
            self.fence(process)
        else:
            self.environment(action)

    def transactions_max(self, action: str) -> int:
        """A fence settles empty files, too."""
        return 2 if action == "fence" else 1

    def phase_of(self, state: int, process: Process) -> tuple[str, ...]:
        """One phase; none while the process is dead, or opens."""
        name = PHASES[self.graph.of(state, "phase")[process.number]]
        return (name,) if name else ()

    def refuse_all(self, state: int) -> int:  # noqa: ARG002 - what is refused depends on the phases alone
        """Every trigger of the machine that SPIN never saw in an attempt's phase."""
        return refuse_triggers(self, self.allowed)

    def manager(self, store: Store) -> ResetManager:
        """A manager with the model's figures."""
        return ResetManager(store, breaker=self.policy, global_breaker=_NEVER)

    def begins(self, number: int, store: Store) -> ResetTransaction:
        """The next attempt of a process, under the model's number of it."""
        self.begun[number] += 1
        attempt = Attempt(USER, "admin", BY["reason"], BY["actor"], "driven", "input")
        tx = ResetTransaction(self.manager(store).context, attempt)
        self.attempts[tx.attempt_id] = number * self.attempts_each + self.begun[number] - 1
        return tx

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
            level = WEIGHT_KG + self._count * 1e-3
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

    # --- what the environment does ---

    def measure(self) -> None:
        """Another process accepts an ordinary measurement."""
        self.clock.advance(1.0)
        level = self.estimator.decode(self._head().state).kalman.x0
        outcome = Processor(self.manager(self.operator)).process(self.measurement(USER, level + 1e-4))
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
        record, now_us = self.breaker(USER), self.clock.now_us()
        admission = admit(record, self.policy, Now(now_us, now_us), USER)
        mark, mbase, orphan = self._marks(self.processes_count * self.attempts_each)
        return {
            **durable(self.operator, self.told(), self.seq),
            "key": tuple(int(self.is_registered(process)) for process in self.processes),
            "b.cooled": (int(record.mode == "open" and admission.verdict == "probe"),),
            "mark": mark, "mbase": mbase, "orphan": orphan,
        }

    def _marks(self, total: int) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        mark, mbase, orphan = [0] * total, [0] * total, [0] * total
        for number, one, dead in self.marks():
            mark[number] = {WAITING: 1, RUNNING: 2, ENDED: 3 + OUTCOMES.index(one.outcome)}[one.state]
            mbase[number] = self.model_version(one.base_version)
            orphan[number] = int(dead)
        return tuple(mark), tuple(mbase), tuple(orphan)


def _flush(process: Process) -> None:
    if process.store is not None:
        process.store.commit(process.store.draft())


def _close(process: Process) -> None:
    if process.store is not None:
        process.store.close()
    process.dies()


def _settle(process: Process) -> None:
    if process.at != "settling":
        process.go_on("")
    if process.at == "settling":
        process.go_on("settle")


def _opened(process: Process) -> None:
    if process.at == "opening":
        process.go_on("")
    process.at = ""


_OF_PROCESSES: Final[dict[str, Callable[[Process], None]]] = {
    "begin": lambda process: process.start(process.attempts), "finish": Process.finishes, "give up": Process.finishes,
    "flush": _flush, "close": _close, "crash": Process.dies, "reopen": lambda process: process.start(process.opens),
    "settle 0": _settle, "settle 1": _settle, "opened": _opened,
}
