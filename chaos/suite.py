"""What a suite of the harness is: points to try, each with its verdict, and what must have been seen at the end.

A suite finds its points from the target, the seed and the size of the plan alone, so that the same seed gives the same
points and the same verdicts, whatever the number of workers.  A worker takes the points of its share, in their order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, Protocol

import msgspec

from chaos.target import Target

Plan = Literal["short", "full"]
PLANS: dict[Plan, int] = {"short": 1, "full": 10}
"""Each plan with how many times the points of the short one it tries."""
CANNOT: Final = "cannot "
"""So begins the outcome of a point that this machine does not allow to be tried, and the reason follows: it is said loudly."""


class Point(msgspec.Struct, frozen=True):
    """One fault at one place.  `where` is all that `Suite.replay` needs beside the target and the seed; it is plain JSON."""

    suite: str
    fault: str
    where: list[Any]

    def __str__(self) -> str:
        """As reports show it."""
        return f"{self.suite}: {self.fault} at {'/'.join(map(str, self.where))}"


class Verdict(msgspec.Struct, frozen=True):
    """What came of one point.

    `outcome` is a column of the survival matrix, a few words: "rolled back", "told in doubt, had landed", "refused to open".
    `violations` name each broken promise; none means that the library survived.  `fired` is false where the fault was
    never met: such a point counts for nothing, and a suite whose points do not fire fails by its floor.  Where the machine
    does not allow it, the outcome begins with `CANNOT`.
    """

    point: Point
    outcome: str
    violations: tuple[str, ...] = ()
    fired: bool = True


class Session(NamedTuple):
    """What a suite is run with: the target, the seed, the plan, this worker's share, and a directory for its stores.

    `scratch` lies on a tmpfs where there is one; it is emptied by the caller, also after a death.
    """

    target: Target
    seed: int
    plan: Plan
    scratch: Path
    share: int = 0
    shares: int = 1

    @property
    def times(self) -> int:
        """How many times the points of the short plan."""
        return PLANS[self.plan]

    def mine(self, points: Iterable[Any]) -> Iterator[Any]:
        """Of an enumeration that every worker makes alike, what this one takes: every `shares`-th."""
        return (point for number, point in enumerate(points) if number % self.shares == self.share)


class Suite(Protocol):
    """A family of faults.

    `floor`: how many fired points the short plan must reach, all workers together; the full plan ten times that, where
    `grows`.  `witnesses`: outcomes that must have been seen, or the campaign fails: what never happens was not tested.
    `weight`: its share of a budget of time.
    """

    name: str
    summary: str
    floor: int
    grows: bool
    weight: float
    witnesses: frozenset[str]

    def unavailable(self) -> str:
        """Why it cannot run on this machine, said loudly; "" where it can."""

    def run(self, session: Session) -> Iterator[Verdict]:
        """The verdict of each point of this worker's share, in order, each as soon as it is known.

        A generator: whoever stops asking has a prefix.  It leaves nothing behind when it is closed.
        """

    def replay(self, session: Session, point: Point) -> Verdict:
        """The verdict of one point anew; `session` has the target and the seed it was found with."""


Making = Callable[[], Suite]
Suites = Mapping[str, Making]
