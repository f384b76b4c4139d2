"""Every edge of the model's graph, taken in the real library: what is stored after each step must be the model's state."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Final, NamedTuple

from chaos.model.graph import Edge, Graph, paths
from chaos.model.world import Difference, Process, World, hooked
from statemachine import InvalidTransition, ResetTransaction
from statemachine.machine import TABLE

PHASES: Final = ("idle", "idle", "idle", "snapshotted", "mutating", "validated", "validated", "committed", "rolledback",
                 "breaker-open", "validated", "", "")
"""What each phase of the model is in `machine.py`; a dead process and one that opens have none."""
TRIGGERS: Final = tuple(trigger for trigger, _, _ in TABLE)


class Driven(NamedTuple):
    """What a drive covered: edges and states, steps with all prefixes, and triggers that were refused, as they must be."""

    edges: int
    states: int
    steps: int
    paths: int
    refusals: int


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


def step(world: World, action: str, who: int) -> None:
    """Do in the library what the model calls `action`."""
    process = world.processes[who]
    if action in _GO_ON:
        process.go_on(action)
    elif action in _OF_PROCESSES:
        _OF_PROCESSES[action](process)
    elif action == "fence":
        world.fence(process)
    else:
        world.environment(action)


def _finish(process: Process) -> None:
    process.at, process.tx = "", None


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
    "begin": lambda process: process.start(process.attempts), "finish": _finish, "give up": _finish, "flush": _flush,
    "close": _close, "crash": Process.dies, "reopen": lambda process: process.start(process.opens), "settle 0": _settle,
    "settle 1": _settle, "opened": _opened,
}


def differences(graph: Graph, state: int, world: World) -> str:
    """Where what is stored, marked and under way is not the model's state; "" where it is."""
    real = world.seen()
    for name, values in real.items():
        wanted = graph.of(state, name)
        missing = (0,) * (len(wanted) - len(values))  # the model keeps room for versions that are not there yet
        if (*values, *missing) != wanted:
            return f"{name} is {values}, and {wanted} in the model"
    phases = tuple(PHASES[number] for number in graph.of(state, "phase"))
    for process, wanted_phase in zip(world.processes, phases, strict=True):
        if wanted_phase and process.phase != wanted_phase:
            return f"process {process.number} is {process.phase}, and {wanted_phase} in the model"
    return ""


def refuse_all(world: World, allowed: AbstractSet[tuple[str, str]]) -> int:
    """Try each trigger that the model has not where each attempt is; how many were tried.  Raises Difference where one acts."""
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


def drive(graph: Graph, *, thresholds: tuple[int, int] = (1, 1), steps_max: int | None = None) -> Driven:
    """Take every edge of the graph in the real library.  Raises Difference, with the way there, at the first that differs."""
    gc.freeze()  # else each collection goes over the whole graph
    allowed = {(source, trigger) for source, trigger, _ in moves(graph)} | _ELSEWHERE
    taken: set[tuple[int, Edge]] = set()
    looked: set[int] = set()
    steps = count = refusals = 0
    with tempfile.TemporaryDirectory(prefix="resetguard-drive-", dir=_memory()) as name, hooked():
        world = World(Path(name) / "store", graph, thresholds)
        try:
            for path in paths(graph):
                count += 1
                world.fresh()
                before = world.transactions()
                for at, (state, edge) in enumerate(path):
                    steps += 1
                    try:
                        step(world, edge.action, edge.who)
                        new = (state, edge) not in taken
                        wrong = differences(graph, edge.to, world) if new else ""
                        done = world.transactions() - before
                        if done > (2 if edge.action == "fence" else 1):  # it settles empty files, too
                            wrong = f"{edge.action} took {done} transactions, and is one step"
                        before += done
                        if new and edge.to not in looked:
                            looked.add(edge.to)
                            refusals += refuse_all(world, allowed)
                    except Difference as error:
                        wrong = str(error)
                    taken.add((state, edge))
                    if wrong:
                        way = ", ".join(f"{taken_edge.action} {taken_edge.who}" for _, taken_edge in path[: at + 1])
                        errors = "; ".join(process.error for process in world.processes if process.error)
                        message = f"{wrong}; after: {way}; said: {errors}"
                        raise Difference(message)
                if steps_max is not None and steps >= steps_max:
                    break
        finally:
            world.close()
    return Driven(len(taken), len(looked), steps, count, refusals)


def _memory() -> str | None:
    """A directory in memory, where the system has one."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108 - a directory of its own is made in it
