"""The model tied to the code: the table of phases that SPIN explored, and every edge of the graph driven in the library."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from typing import Final, NamedTuple

from chaos.model.drive import Driven, drive, moves
from chaos.model.graph import explored
from chaos.model.obligations import Verdict, witnesses
from chaos.model.world import Difference
from statemachine import audit
from statemachine.machine import NEXT, TABLE, Phase

EDGES_MIN: Final = 40_000
_NOT_DRIVEN: Final = frozenset({
    "cut kept marks", "cut lost marks",  # the power of this machine is not ours to cut
    "settle fenced", "probe counts",     # searched at other bounds
})


class Drive(NamedTuple):
    """What is driven, at which bounds; `thresholds` are the failures that open the breaker and the deaths that are too many."""

    name: str
    settings: tuple[str, ...]
    thresholds: tuple[int, int] = (1, 1)


_CALM: Final = ("CUTS=0", "THRESH=1", "CRASHES=0", "FENCES=0", "FORCES=0", "FAULTS=0", "MEAS=0", "INVALID=0")


def bounds(**changed: int) -> tuple[str, ...]:
    """Settings of reset.pml in which nothing goes wrong, but for what is changed."""
    named = dict(setting.split("=") for setting in _CALM) | {name: str(value) for name, value in changed.items()}
    return tuple(f"{name}={value}" for name, value in named.items())


DRIVES: Final = (
    Drive("an operator's word", bounds(NA=1, FORCES=1)),
    Drive("commits that fail, and measurements", bounds(NA=1, FAULTS=1, MEAS=1)),
    Drive("a fence", bounds(NA=1, FENCES=1)),
    Drive("three attempts and a probe", bounds(NA=2, NB=1)),
    Drive("a death, a fence and a failing commit", bounds(NR=1, NA=2, CRASHES=1, FENCES=1, FAULTS=1, INVALID=1)),
    Drive("a death beside another", bounds(NA=1, CRASHES=1)),
)

def table_differs(explored_moves: set[tuple[str, str, str]]) -> str:
    """How the phases that SPIN explored differ from `machine.py`; "" where both are the same."""
    table = {(source.value, trigger, target.value) for (source, trigger), target in NEXT.items()}
    told = [f"only {where}: {', '.join(map(' -> '.join, sorted(few)))}"
            for where, few in (("in the model", explored_moves - table), ("in machine.py", table - explored_moves)) if few]
    return "; ".join(told)


def diagram() -> str:
    """The phases and their triggers as a Mermaid state diagram, made of the table in `machine.py`."""
    names = {phase: phase.value.replace("-", "_") for phase in Phase}
    lines = ["stateDiagram-v2"]
    lines += [f'    state "{phase.value}" as {name}' for phase, name in names.items() if name != phase.value]
    lines += [f"    [*] --> {names[Phase.IDLE]}"]
    lines += [f"    {names[source]} --> {names[target]}: {trigger}" for trigger, sources, target in TABLE for source in sources]
    return "\n".join(lines) + "\n"


class Tied(NamedTuple):
    """What one drive gave: how it went, the moves of the machine in its graph, and the branches taken."""

    verdict: Verdict
    driven: Driven | None
    moves: set[tuple[str, str, str]]
    seen: dict[int, int]


def tie(what: Drive) -> Tied:
    """Explore the model at these bounds and take each edge of it in the library."""
    audit.configure_for_command(verbose=False)
    began = time.monotonic()
    graph = explored("reset", what.settings)
    driven, why = None, ""
    try:
        driven = drive(graph, thresholds=what.thresholds)
    except Difference as error:
        why = str(error)
    edges = sum(map(len, graph.edges))
    if driven is not None and driven.edges != edges:
        why = f"{edges - driven.edges} edges were not driven"
    detail = "" if driven is None else f"{driven.steps} steps, {driven.refusals} refusals"
    return Tied(Verdict("driven", what.name, len(graph.states), edges, time.monotonic() - began, why, detail), driven,
                set(moves(graph)), graph.seen)


def drives(pool: Executor) -> Iterator[Verdict]:
    """Have every drive made in `pool`: each one's verdict, then those on the table of phases, the edges and the branches."""
    return _tied([pool.submit(tie, what) for what in DRIVES])


def _tied(waiting: list[Future[Tied]]) -> Iterator[Verdict]:
    found: set[tuple[str, str, str]] = set()
    seen: dict[int, int] = {}
    edges = 0
    for future in waiting:
        tied = future.result()
        found |= tied.moves
        edges += tied.driven.edges if tied.driven is not None else 0
        for number, count in tied.seen.items():
            seen[number] = seen.get(number, 0) + count
        yield tied.verdict
    yield Verdict("table", f"{len(found)} moves of the machine", 0, 0, 0.0, table_differs(found))
    missing = [name for name, number in witnesses("reset").items() if name not in _NOT_DRIVEN and not seen.get(number)]
    why = f"never driven: {', '.join(missing)}" if missing else ""
    if edges < EDGES_MIN:
        why = f"{edges} edges were driven, fewer than {EDGES_MIN}; {why}"
    yield Verdict("driven", f"{edges} edges in all", 0, edges, 0.0, why)
