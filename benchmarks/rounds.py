"""Contestants taken in turn, so that all of them meet the same moments of the machine, and what is said of their times."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

Once = Callable[[int], object]


class Taken(NamedTuple):
    """Milliseconds of each round: by the clock, and of the processor in the calling thread."""

    wall_ms: list[float]
    cpu_ms: list[float]


def interleaved(
    entries: Mapping[str, Once], rounds: int, warm: int = 0, before: Callable[[int], object] | None = None,
) -> dict[str, Taken]:
    """Every contestant once a round, in an order that changes; `before` is called untimed ahead of each round."""
    dice = random.Random(1)  # noqa: S311 - an order
    taken = {name: Taken([], []) for name in entries}
    order = list(entries)
    for number in range(warm + rounds):
        if before is not None:
            before(number)
        dice.shuffle(order)
        for name in order:
            wall_ns, cpu_ns = time.perf_counter_ns(), time.thread_time_ns()
            entries[name](number)
            cpu_ns, wall_ns = time.thread_time_ns() - cpu_ns, time.perf_counter_ns() - wall_ns
            if number >= warm:
                taken[name].wall_ms.append(wall_ns / 1e6)
                taken[name].cpu_ms.append(cpu_ns / 1e6)
    return taken


def percentile(values: Sequence[float], percent: int) -> float:
    """That of the values than which so many percent are smaller."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]


def p50(values: Sequence[float]) -> float:
    """The median."""
    return percentile(values, 50)


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """The slope by least squares of log(cost) over log(size): 0 where the cost does not grow, 1 where it grows as the size."""
    x, y = [math.log(size) for size in sizes], [math.log(cost) for cost in costs]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)
