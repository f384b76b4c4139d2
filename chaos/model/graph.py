"""The graph of states that SPIN explored, as it printed it, and paths that together take every edge of it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from chaos.model import spin

EDGES: Final = "edges"


class Edge(NamedTuple):
    """One step: what was done, by which process, and the number of the state it leads to."""

    action: str
    who: int
    to: int


class Graph(NamedTuple):
    """States as tuples of numbers, the edges that leave each, and where each variable lies in a state.

    The first state is the initial one.  `seen` counts the branches that were taken while it was explored.
    """

    fields: dict[str, slice]
    states: list[tuple[int, ...]]
    edges: list[list[Edge]]
    seen: dict[int, int]

    def of(self, state: int, name: str) -> tuple[int, ...]:
        """The values of a variable in a state, one for each of its places."""
        return self.states[state][self.fields[name]]


def explored(model: str, settings: tuple[str, ...]) -> Graph:
    """Explore `model` at some bounds and keep the whole graph."""
    with tempfile.TemporaryDirectory(prefix="resetguard-graph-") as name:
        directory = Path(name)
        found = spin.run(model, (*settings, "EMIT"), directory, effort=spin.SOON)
        if found.refuted or not found.complete:
            message = f"{model} at {settings} is not sound itself: {found.refuted or 'the search was not complete'}"
            raise RuntimeError(message)
        with (directory / EDGES).open(encoding="ascii") as lines:
            fields, states, edges = _read(lines)
    return Graph(fields, states, edges, found.seen)


def _read(lines: Iterator[str]) -> tuple[dict[str, slice], list[tuple[int, ...]], list[list[Edge]]]:
    fields, at = {}, 0
    for name, count in (part.split() for part in next(lines).strip("\t\n").split("\t")):
        fields[name] = slice(at, at + int(count))
        at += int(count)
    numbers: dict[str, int] = {}
    states: list[tuple[int, ...]] = []
    edges: list[list[Edge]] = []

    def number(text: str) -> int:
        known = numbers.get(text)
        if known is None:
            known = numbers[text] = len(states)
            states.append(tuple(map(int, text.split(","))))
            edges.append([])
        return known

    for line in lines:
        before, action, who, after = line.rstrip("\n").split("\t")
        edges[number(before)].append(Edge(action, int(who), number(after)))
    return fields, states, edges


def paths(graph: Graph) -> Iterator[list[tuple[int, Edge]]]:
    """Paths from the initial state that together take every edge: each goes the shortest way to one that is left, and on.

    A path is a list of (state, edge that leaves it).
    """
    parent: dict[int, tuple[int, Edge] | None] = {0: None}
    order = [0]
    for state in order:
        for edge in graph.edges[state]:
            if edge.to not in parent:
                parent[edge.to] = (state, edge)
                order.append(edge.to)
    taken = [0] * len(graph.states)
    for start in order:
        while taken[start] < len(graph.edges[start]):
            path: list[tuple[int, Edge]] = []
            back = parent[start]
            while back is not None:
                path.append(back)
                back = parent[back[0]]
            path.reverse()
            state = start
            while taken[state] < len(graph.edges[state]):
                edge = graph.edges[state][taken[state]]
                taken[state] += 1
                path.append((state, edge))
                state = edge.to
            yield path
