"""Every edge of the model's graph, taken in the real library: what is stored after each step must be the model's state."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from chaos.model.graph import Edge, Graph, paths
from chaos.model.process import Difference, Ground, hooked


class Driven(NamedTuple):
    """What a drive covered: edges and states, steps with all prefixes, and triggers that were refused, as they must be."""

    edges: int
    states: int
    steps: int
    paths: int
    refusals: int


def drive(graph: Graph, world_of: Callable[[Path, Graph], Ground], *, steps_max: int | None = None) -> Driven:
    """Take every edge of the graph in the real library.  Raises Difference, with the way there, at the first that differs."""
    gc.freeze()  # else each collection goes over the whole graph
    taken: set[tuple[int, Edge]] = set()
    looked: set[int] = set()
    steps = count = refusals = 0
    with tempfile.TemporaryDirectory(prefix="resetguard-drive-", dir=_memory()) as name, hooked():
        world = world_of(Path(name) / "store", graph)
        try:
            for path in paths(graph):
                count += 1
                world.fresh()
                before = world.transactions()
                for at, (state, edge) in enumerate(path):
                    steps += 1
                    try:
                        world.step(edge.action, edge.who)
                        new = (state, edge) not in taken
                        wrong = world.differences(edge.to) if new else ""
                        done = world.transactions() - before
                        if done > world.transactions_max(edge.action):
                            wrong = f"{edge.action} took {done} transactions, and is one step"
                        if new and not wrong and edge.to not in looked:
                            looked.add(edge.to)
                            refusals += world.refuse_all(edge.to)
                        before = world.transactions()
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
