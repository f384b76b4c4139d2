"""Interleavings: threads of one process on one store, switched at chosen lines of the library by a deterministic scheduler.

Two ways of choosing.  *Searched*: every schedule of up to two preemptions, for what two threads do in a commit and at the end
of one attempt, where threads are switched before each statement that touches what they share, each lock and each transaction
(between two of those a thread does nothing that the other could notice).  *Drawn*: at any line of the library's stateful
modules, by random switches and by random priorities (PCT, depth 3), for everything else.  See `scheduler.py` for what a
schedule is; its switches are what a shrunk finding holds.

Threads are greenlets on modelled locks: a switch within a line, or inside of LMDB, is not tried, and neither is a weak memory.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
from collections.abc import Iterator
from typing import Any, Final

from chaos.faults import scheduler
from chaos.faults.locks import Modelled, Quiet
from chaos.faults.points import Points
from chaos.faults.scheduler import Chooser, Prioritised, Ran, Randomly, Replay, Switches
from chaos.suite import Point, Session, Verdict
from chaos.suites.scenarios import FINE, GRAINS, SCENARIOS, Scenario
from chaos.suites.trial import Trial, told_by

NAME: Final = "interleavings"
PREEMPTIONS_MAX: Final = 2
DEPTH: Final = 3
BLOCK: Final = 20
"""So many schedules are run before their verdicts are given away, while the library is patched."""
DRAWN: Final = 1_000
"""Drawn schedules a scenario in the short plan."""
CLOSING_PART: Final = 4
"""A schedule that closes the store costs an opening: there are so many times fewer of them."""


_benches: Final = itertools.count()


class Bench:
    """The trials of one worker, each made when it is first needed, and again when a schedule has spoilt it."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._modelled = Modelled()
        self._points: dict[str, Points] = {}
        self._trials: dict[str, Trial] = {}
        self._steps: dict[str, int] = {}
        self._made = 0
        self._scratch = session.scratch / f"bench-{next(_benches)}"
        self._scratch.mkdir()

    @contextlib.contextmanager
    def patched(self, grain: str) -> Iterator[None]:
        """The library with points of one grain and modelled locks."""
        points = self.points(grain)
        Quiet.makers = points.grain.quiet
        try:
            with self._modelled.on(), points.placed():
                yield
        finally:
            Quiet.makers = ()

    def points(self, grain: str) -> Points:
        """The points of a grain."""
        if grain not in self._points:
            self._points[grain] = Points(GRAINS[grain])
        return self._points[grain]

    def trial(self, scenario: Scenario) -> Trial:
        """The scenario's trial; call within `patched`."""
        found = self._trials.get(scenario.name)
        if found is None or not found.usable:
            if found is not None:
                found.close()
            self._made += 1
            directory = self._scratch / str(self._made)
            found = self._trials[scenario.name] = Trial(
                self._session.target, directory, self._modelled, scenario.users, scenario.threads, scenario.prepare,
                durability=scenario.durability, closes=scenario.closes)
        return found

    def run(self, scenario: Scenario, chooser: Chooser) -> tuple[Ran, str, tuple[str, ...]]:
        """One schedule, what its threads were told, and what it broke."""
        trial = self.trial(scenario)
        ran = trial.run(scenario.works, chooser)
        outcome = "stuck" if ran.stuck else _outcome(scenario, told_by(trial))
        return ran, outcome, trial.judge(ran, scenario.expected(trial))

    def steps(self, scenario: Scenario) -> int:
        """How many steps the scenario has where no thread is interrupted, at every line."""
        if scenario.name not in self._steps:
            self._steps[scenario.name] = self.run(scenario, Replay())[0].steps
        return self._steps[scenario.name]

    def close(self) -> None:
        """Let go of every trial."""
        with self._modelled.on():
            for trial in self._trials.values():
                trial.close()
        shutil.rmtree(self._scratch, ignore_errors=True)


def _outcome(scenario: Scenario, words: list[str]) -> str:
    """A column of the matrix."""
    if scenario.closes:
        return "the store was closed first" if words[0] == "store-unavailable" else "closed after the commit"
    if "invalid-transition" in words or "contract-broken" in words:
        return "one thread ended it"
    if "breaker-open" in words:
        return "the breaker refused one"
    if "conflict" in words:
        return "one conflicted"
    return "all went through" if set(words) <= {"acknowledged", "failed"} else "other"


class Interleavings:
    """The suite."""

    name = NAME
    summary = "threads of one process, switched at every line: searched, random and by priorities"
    floor = 20_000
    grows = False
    weight = 1.0
    witnesses = frozenset({
        "all went through", "one conflicted", "the breaker refused one", "one thread ended it", "the store was closed first",
        "closed after the commit"})

    def unavailable(self) -> str:
        """It runs everywhere."""
        return ""

    def run(self, session: Session) -> Iterator[Verdict]:
        """A first block of each scenario drawn, for what is found soon; then those that are searched, whole; then more draws."""
        bench = Bench(session)
        try:
            yield from self._drawn(session, bench, 0, BLOCK)
            for scenario in SCENARIOS:
                if scenario.searched is not None and (session.plan == "full" or not scenario.closes):
                    yield from _blocks(bench, scenario.searched.name, self._searched(session, bench, scenario))
            yield from self._drawn(session, bench, BLOCK, DRAWN * session.times)
        finally:
            bench.close()

    def replay(self, session: Session, point: Point) -> Verdict:
        """The schedule of a point, anew."""
        bench = Bench(session)
        try:
            name, how, *rest = point.where
            scenario = next(scenario for scenario in SCENARIOS if scenario.name == name)
            with bench.patched(rest[0] if how == "switches" else FINE.name):
                if how == "switches":
                    return self._switched(bench, scenario, rest[0], tuple(map(tuple, rest[1])))
                return self._one_drawn(session, bench, scenario, how, rest[0])[0]
        finally:
            bench.close()

    def shrink(self, session: Session, verdict: Verdict) -> Verdict:
        """A schedule of few switches that breaks the same promise."""
        bench = Bench(session)
        promise = verdict.violations[0].partition(":")[0]
        name, how, *rest = verdict.point.where
        scenario = next(scenario for scenario in SCENARIOS if scenario.name == name)
        grain = rest[0] if how == "switches" else FINE.name

        def fails(switches: Switches) -> bool:
            return any(v.partition(":")[0] == promise for v in bench.run(scenario, Replay(switches))[2])

        try:
            with bench.patched(grain):
                found = (tuple(map(tuple, rest[1])) if how == "switches"
                         else self._one_drawn(session, bench, scenario, how, rest[0])[1].switches)
                return self._switched(bench, scenario, grain, scheduler.shrunk(found, fails))
        finally:
            bench.close()

    def _searched(self, session: Session, bench: Bench, scenario: Scenario) -> Iterator[Verdict]:
        """Every schedule of up to two preemptions, each once; the workers share the branches of the first switch."""
        grain = scenario.searched.name if scenario.searched is not None else ""

        def run(chooser: Chooser) -> tuple[Ran, str, tuple[str, ...]]:
            return bench.run(scenario, chooser)

        alone, roots = scheduler.branches(run)
        if session.share == 0:
            yield self._verdict(scenario, grain, alone.switches, *alone.result)
        for root, cost in session.mine(roots):
            for found in scheduler.below(run, root, cost, PREEMPTIONS_MAX):
                yield self._verdict(scenario, grain, found.switches, *found.result)

    def _drawn(self, session: Session, bench: Bench, first: int, stop: int) -> Iterator[Verdict]:
        """Blocks of every scenario in turn, so that a budget cuts none of them off."""
        counts = {s.name: DRAWN * session.times // (CLOSING_PART if s.closes else 1) for s in SCENARIOS}
        for begin in range(first, stop, BLOCK):
            for scenario in SCENARIOS:
                numbers = session.mine(range(begin, min(begin + BLOCK, counts[scenario.name])))
                drawn = (self._one_drawn(session, bench, scenario, _how(number), number)[0]
                         for number in numbers)
                yield from _blocks(bench, FINE.name, drawn)

    def _one_drawn(self, session: Session, bench: Bench, scenario: Scenario, how: str, number: int) -> tuple[Verdict, Ran]:
        steps, seed = bench.steps(scenario), f"{session.seed}/{scenario.name}/{number}"
        chooser = Prioritised(seed, steps, scenario.threads, DEPTH) if how == "priorities" else Randomly(seed, steps)
        ran, outcome, violations = bench.run(scenario, chooser)
        point = Point(NAME, f"{scenario.name}, drawn", [scenario.name, how, number])
        return Verdict(point, outcome, violations, ran.overlapped), ran

    def _switched(self, bench: Bench, scenario: Scenario, grain: str, switches: Switches) -> Verdict:
        """The verdict of a schedule given by its switches; what it breaks is told with where the threads were switched."""
        ran, outcome, violations = bench.run(scenario, Replay(switches))
        places = bench.points(grain).places
        told = [f"to thread {task} " + (f"before {places[place]}" if place else "where one waited or ended")
                for (_, task), place in zip(ran.switches, ran.places, strict=True)]
        where = f" [switched {', then '.join(told)}]" if told else ""
        return self._verdict(scenario, grain, switches, ran, outcome, tuple(v + where for v in violations))

    @staticmethod
    def _verdict(  # noqa: PLR0913 - the parts of one
        scenario: Scenario, grain: str, switches: Switches, ran: Ran, outcome: str, violations: tuple[str, ...],
    ) -> Verdict:
        where: list[Any] = [scenario.name, "switches", grain, [list(switch) for switch in switches]]
        how = "drawn" if grain == FINE.name else "searched"
        return Verdict(Point(NAME, f"{scenario.name}, {how}", where), outcome, violations, ran.overlapped)


def _how(number: int) -> str:
    """By priorities one in four, spread over any number of workers: many of those never interrupt a thread."""
    return "priorities" if number // 12 % 4 == 0 else "random"


def _blocks(bench: Bench, grain: str, verdicts: Iterator[Verdict]) -> Iterator[Verdict]:
    """Have verdicts made with the library patched, and give them away with the library as it is."""
    while True:
        with bench.patched(grain):
            block = list(itertools.islice(verdicts, BLOCK))
        yield from block
        if len(block) < BLOCK:
            return
