"""The models tied to the code: the table of phases that SPIN explored, and every edge of each graph driven in the library."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from chaos.model.drive import Driven, drive
from chaos.model.graph import Graph, explored
from chaos.model.obligations import Verdict, witnesses
from chaos.model.process import Difference, Ground
from chaos.model.worlds import containment, history, reset
from statemachine import audit
from statemachine.machine import NEXT, TABLE, Phase

EDGES_MIN: Final = {"reset": 40_000, "containment": 30_000, "history": 20_000}
NOT_DRIVEN: Final = {
    "reset": frozenset({
        "cut kept marks", "cut lost marks",  # the power of this machine is not ours to cut
        "settle fenced", "probe counts",     # searched at other bounds
    }),
    "containment": frozenset[str](),
    "history": frozenset({"revoked"}),       # it takes measurements that are held first, each a commit of its own
}
"""Branches that no drive takes, by model; `specs/README.md` has the reasons."""


class Drive(NamedTuple):
    """What is driven, at which bounds, in which world; and how many edges that are, so that none is lost unseen."""

    name: str
    model: str
    settings: tuple[str, ...]
    world: Callable[[Path, Graph], Ground]
    edges: int


_CALM: Final = ("CUTS=0", "THRESH=1", "CRASHES=0", "FENCES=0", "FORCES=0", "FAULTS=0", "MEAS=0", "INVALID=0")


def bounds(**changed: int) -> tuple[str, ...]:
    """Settings of reset.pml in which nothing goes wrong, but for what is changed."""
    named = dict(setting.split("=") for setting in _CALM) | {name: str(value) for name, value in changed.items()}
    return tuple(f"{name}={value}" for name, value in named.items())


def _of_containment(name: str, settings: str, users_max: int, edges: int) -> Drive:
    world = partial(containment.World, thresholds=containment.Thresholds(users=users_max))
    return Drive(name, "containment", (*settings.split(), f"USERS={users_max}"), world, edges)


def _of_history(name: str, settings: str, edges: int) -> Drive:
    return Drive(name, "history", tuple(settings.split()), history.World, edges)


_RESETS: Final = partial(reset.World, thresholds=(1, 1))
DRIVES: Final = (
    Drive("an operator's word", "reset", bounds(NA=1, FORCES=1), _RESETS, 17_931),
    _of_containment("two users, and a death", "NU=2 NA=2 NB=1 CRASHES=1 FORCES=0", 1, 15_002),
    Drive("commits that fail, and measurements", "reset", bounds(NA=1, FAULTS=1, MEAS=1), _RESETS, 14_974),
    Drive("a fence", "reset", bounds(NA=1, FENCES=1), _RESETS, 11_286),
    Drive("three attempts and a probe", "reset", bounds(NA=2, NB=1), _RESETS, 9_739),
    Drive("a death, a fence and a failing commit", "reset",
          bounds(NR=1, NA=2, CRASHES=1, FENCES=1, FAULTS=1, INVALID=1), _RESETS, 9_571),
    Drive("a death beside another", "reset", bounds(NA=1, CRASHES=1), _RESETS, 8_102),
    _of_containment("two users that fail", "NU=2 NA=2 CRASHES=0 FORCES=0", 2, 6_100),
    _of_containment("a word on the global breaker", "NU=2 NA=1 CRASHES=0 FORCES=1", 1, 4_854),
    _of_containment("three users", "NU=3 NA=1 CRASHES=0 FORCES=0", 2, 4_824),
    _of_history("two flips, and newer rules", "NV=4 NR=1 FLIPS=2 RULES=1 CRASHES=0", 7_141),
    _of_history("two processes, and a flip", "NV=4 NR=2 FLIPS=1 RULES=0 CRASHES=0", 6_897),
    _of_history("two processes, newer rules, and a death", "NV=3 NR=2 FLIPS=1 RULES=1 CRASHES=1", 6_668),
    _of_history("five versions, two flips", "NV=5 NR=1 FLIPS=2 RULES=0 CRASHES=0", 5_377),
)
"""The longest first: they are begun in this order."""


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

    model: str
    verdict: Verdict
    driven: Driven | None
    moves: set[tuple[str, str, str]]
    seen: dict[int, int]


def tie(name: str) -> Tied:
    """Explore the drive's model at its bounds and take each edge of it in the library."""
    audit.configure_for_command(verbose=False)
    began = time.monotonic()
    what = next(one for one in DRIVES if one.name == name)
    graph = explored(what.model, what.settings)
    driven, why = None, ""
    try:
        driven = drive(graph, what.world)
    except Difference as error:
        why = str(error)
    edges = sum(map(len, graph.edges))
    if driven is not None and not driven.edges == edges == what.edges:
        why = f"{driven.edges} edges were driven of {edges}, and there are to be {what.edges}"
    detail = "" if driven is None else f"{driven.steps} steps, {driven.refusals} refusals"
    verdict = Verdict("driven", f"{what.model}: {name}", len(graph.states), edges, time.monotonic() - began, why, detail)
    return Tied(what.model, verdict, driven, set(reset.moves(graph)) if what.model == "reset" else set(), graph.seen)


def drives(pool: Executor) -> Iterator[Verdict]:
    """Have every drive made in `pool`: each one's verdict, then those on the table of phases, the edges and the branches."""
    return _tied([pool.submit(tie, what.name) for what in DRIVES])


def _tied(waiting: list[Future[Tied]]) -> Iterator[Verdict]:
    found: set[tuple[str, str, str]] = set()
    seen: dict[str, dict[int, int]] = {model: {} for model in EDGES_MIN}
    edges = dict.fromkeys(EDGES_MIN, 0)
    for future in waiting:
        tied = future.result()
        found |= tied.moves
        edges[tied.model] += tied.driven.edges if tied.driven is not None else 0
        counts = seen[tied.model]
        for number, count in tied.seen.items():
            counts[number] = counts.get(number, 0) + count
        yield tied.verdict
    yield Verdict("table", f"{len(found)} moves of the machine", 0, 0, 0.0, table_differs(found))
    for model, least in EDGES_MIN.items():
        yield Verdict("driven", f"{model}: all", 0, edges[model], 0.0, _lacking(model, seen[model], edges[model], least))


def _lacking(model: str, seen: dict[int, int], edges: int, least: int) -> str:
    """What a model's drives leave out; "" where that is nothing."""
    taken = {name for name, number in witnesses(model).items() if seen.get(number)}
    why = [f"{edges} edges were driven, fewer than {least}"] if edges < least else []
    missing = [name for name in witnesses(model) if name not in NOT_DRIVEN[model] | taken]
    if missing:
        why.append(f"never driven: {', '.join(missing)}")
    if taken & NOT_DRIVEN[model]:
        why.append(f"driven, and said not to be: {', '.join(sorted(taken & NOT_DRIVEN[model]))}")
    return "; ".join(why)
