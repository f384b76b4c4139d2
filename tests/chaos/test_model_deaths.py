"""A process that really dies, once in each phase of the model, leaves what the model says, and the next opening settles it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from chaos.model import graph, tied
from chaos.model.process import hooked
from chaos.model.worlds.reset import Told, World, durable
from statemachine import BodyWeight, Store
from statemachine.testing import CountingIds, ManualClock

if TYPE_CHECKING:
    from chaos.model.graph import Edge, Graph

pytestmark = pytest.mark.skipif(
    not (shutil.which("spin") and shutil.which("gcc")) and not os.environ.get("CI"), reason="SPIN is missing; CI installs it",
)
PHASES = ("idle", "asking", "leasing", "snapshotted", "mutating", "validated", "offered", "committed", "rolledback", "refused",
          "doubt", "down", "opening")
ROOT = Path(__file__).parents[2]
CHILD = """
import msgspec, sys
from tests.chaos.test_model_deaths import dies
dies(sys.argv[1], msgspec.json.decode(sys.stdin.buffer.read(), type=list[tuple[str, int]]), int(sys.argv[2]), int(sys.argv[3]))
"""


def dies(path: str, way: list[tuple[str, int]], processes: int, attempts: int) -> None:
    """In a process of its own: go the way, tell how to read what is stored, and be killed."""
    fields = {"phase": slice(0, processes), "out": slice(processes, processes + processes * attempts)}
    known = graph.Graph(fields, [(0,) * (processes + processes * attempts)], [[]], {})
    with hooked():
        world = World(Path(path), known, (1, 1))
        for action, who in way:
            world.step(action, who)
        sys.stdout.buffer.write(msgspec.json.encode(world.told()))
        sys.stdout.flush()
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(scope="module")
def explored() -> Graph:
    """One process, two attempts, one commit that fails or stays in doubt, and one death."""
    return graph.explored("reset", tied.bounds(NR=1, NA=2, CRASHES=1, FAULTS=1))


@pytest.fixture(scope="module")
def twice() -> Graph:
    """One process, two attempts, one commit that fails, and two deaths."""
    return graph.explored("reset", tied.bounds(NR=1, NA=2, CRASHES=2, FAULTS=1))


@pytest.fixture(scope="module")
def deaths(explored: Graph) -> dict[int, list[tuple[int, Edge]]]:
    """The first way to a death in each phase."""
    found: dict[int, list[tuple[int, Edge]]] = {}
    for path in graph.paths(explored):
        for at, (state, edge) in enumerate(path):
            if edge.action == "crash":
                found.setdefault(explored.of(state, "phase")[0], path[: at + 1])
    return found


@pytest.mark.parametrize("phase", [name for name in PHASES if name not in ("down", "opening")])
def test_a_real_death_leaves_what_the_model_says(
    tmp_path: Path, explored: Graph, deaths: dict[int, list[tuple[int, Edge]]], phase: str,
) -> None:
    state = killed(tmp_path / "store", explored, deaths[PHASES.index(phase)])
    assert explored.of(state, "crashes") == (1,)


@pytest.mark.parametrize("mark", [0, 1, 2, 5, 7, 8], ids=["none", "waiting", "running", "rolled back", "refused", "in doubt"])
def test_a_real_death_in_the_recovery_from_another_leaves_what_the_model_says(tmp_path: Path, twice: Graph, mark: int) -> None:
    """In the phase "opening": the new owner has its key and its file, and what the dead one left is not settled yet."""
    opening = PHASES.index("opening")
    path = next(path[: at + 1] for path in graph.paths(twice) for at, (state, edge) in enumerate(path)
                if edge.action == "crash" and twice.of(state, "phase")[0] == opening and max(twice.of(state, "mark")) == mark)
    state = killed(tmp_path / "store", twice, path)
    assert twice.of(state, "crashes") == (2,)
    assert twice.of(state, "rows") == twice.of(state, "begun")


def killed(store_path: Path, explored: Graph, path: list[tuple[int, Edge]]) -> int:
    """Go a way that ends with a death in a process that is killed there, and hold what the next opening makes of it to the model.

    Returns the number of the model's state by then.
    """
    way = msgspec.json.encode([(edge.action, edge.who) for _, edge in path[:-1]])
    attempts = str(len(explored.of(0, "out")))
    child = subprocess.run([sys.executable, "-c", CHILD, str(store_path), "1", attempts], input=way, capture_output=True,
                           cwd=ROOT, check=False)
    assert child.returncode == -signal.SIGKILL, child.stderr.decode()
    told = msgspec.json.decode(child.stdout, type=Told)
    with Store.open(store_path, estimator=BodyWeight(), clock=ManualClock(), ids=CountingIds()) as store:
        real = durable(store, told, since_seq=1)
        assert not store.marks.ended()
    state = settled(explored, path[-1][1].to)
    for name, values in real.items():
        wanted = explored.of(state, name)
        assert (*values, *(0,) * (len(wanted) - len(values))) == wanted, name
    return state


def settled(explored: Graph, state: int) -> int:
    """The model's state after the next opening has settled what the death left."""
    for _ in range(4):
        leaving = {edge.action: edge.to for edge in explored.edges[state]}
        for action in ("reopen", "settle 0", "opened"):
            if action in leaving:
                state = leaving[action]
                break
    return state
