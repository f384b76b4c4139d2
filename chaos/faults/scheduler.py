"""A deterministic scheduler: the threads of a trial are greenlets, of which exactly one runs, and a chooser says who goes on.

A trial's code calls `point` wherever another thread might be given the processor (`points.py` puts these calls before the
statements of the library), and its locks are the models of `locks.py`, so that no thread ever waits in C while another
holds what it waits for.  Each call, and each time that a thread must wait or ends, is a *step*, numbered from 1.  Left
alone, a thread goes on until it must wait or ends, then the first that can go on does.  A schedule is the list of its
*switches*, (step, thread): where it does something else.  That list is all that replays it.

Time-outs are the last resort: a wait with a limit ends by it only where no thread can go on otherwise.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple, Protocol

from greenlet import GreenletExit, getcurrent, greenlet

Switch = tuple[int, int]
Switches = tuple[Switch, ...]
NEVER: Final = 1 << 60
STEPS_MAX: Final = 200_000


class Abandoned(GreenletExit):
    """Raised in a thread whose trial is over before it has ended; what it still tries is not done."""


class Chooser(Protocol):
    """Who goes on.  `choose` is asked at the steps that `after` names, and wherever a thread waits or ends (`me` is -1)."""

    def after(self, step: int) -> int:
        """The next step at which to be asked; the first where `step` is 0."""

    def choose(self, step: int, me: int, runnable: list[int]) -> int:
        """One of `runnable`, which is never empty; `me` is in it, or -1."""

    def woken(self) -> bool:
        """Whether to be asked at the next step, since a thread that waited may go on."""


class Task:
    """One thread of a trial.  `waits` says whether what it waits for has come; None while it waits for nothing."""

    __slots__ = ("began", "error", "greenlet", "index", "limited", "over", "timed_out", "waits", "what")

    def __init__(self, index: int, work: Callable[[], object]) -> None:
        self.index = index
        self.waits: Callable[[], bool] | None = None
        self.limited = False
        self.timed_out = False
        self.what = ""
        self.began = 0
        self.over = False
        self.error: BaseException | None = None

        def body() -> None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001 - the trial judges it
                self.error = error
            self.over = True

        self.greenlet = greenlet(body)


class Ran(NamedTuple):
    """What a trial's run was: its switches with the places they were made at, its steps, and each thread's error.

    `stuck` says why it did not end: who waits for what, or that it went on for ever; "" where it ended.  `overlapped` tells
    whether a thread that had begun was interrupted for another.  `timeouts` counts waits that only their limit ended.
    """

    switches: Switches
    places: tuple[int, ...]
    steps: int
    errors: tuple[BaseException | None, ...]
    stuck: str
    overlapped: bool
    timeouts: int


class Scheduler:
    """One run of some threads under a chooser."""

    def __init__(self, works: Sequence[Callable[[], object]], chooser: Chooser, steps_max: int = STEPS_MAX) -> None:
        self.tasks = [Task(index, work) for index, work in enumerate(works)]
        self.current: Task | None = None
        self.step = 0
        self.at = 0
        self._chooser = chooser
        self._steps_max = steps_max
        self._switches: list[Switch] = []
        self._places: list[int] = []
        self._stuck = ""
        self._timeouts = 0
        self._overlapped = False
        self._hub: greenlet = getcurrent()

    def run(self) -> Ran:
        """Run to the end, or until no thread can go on; a thread that has not ended is then ended by `Abandoned`."""
        self._hub = getcurrent()
        self.at = min(self._chooser.after(0), self._steps_max)
        _State.running = self
        try:
            while not self._stuck:
                if all(task.over for task in self.tasks):
                    break
                following = self._next()
                if following is not None:
                    self._go(following)
        finally:
            _State.running = None
            self.current = None
            for task in self.tasks:
                if task.greenlet and not task.over:
                    task.greenlet.throw(Abandoned)
        return Ran(tuple(self._switches), tuple(self._places), self.step, tuple(t.error for t in self.tasks), self._stuck,
                   self._overlapped, self._timeouts)

    def decide(self, place: int) -> None:
        """A step at which the chooser wanted to be asked."""
        me = self.current
        if me is None or self._too_long():
            return
        chosen = self._chooser.choose(self.step, me.index, self._runnable())
        self.at = min(self._chooser.after(self.step), self._steps_max)
        if chosen != me.index:
            self._note(chosen, place)
            self._overlapped = self._overlapped or self.step > me.began + 1
            self._go(self.tasks[chosen])

    def block(self, waits: Callable[[], bool], what: str, *, limited: bool) -> bool:
        """The running thread waits until `waits()`; False where only its limit ended that."""
        me = self.current
        if me is None:
            message = f"waiting for {what} outside of a trial"
            raise RuntimeError(message)
        me.waits, me.limited, me.what, me.timed_out = waits, limited, what, False
        following = self._next()
        if following is None:
            self._hub.switch()
        elif following is not me:
            self._go(following)
        me.waits = None
        return not me.timed_out

    def rest(self) -> None:
        """The running thread sleeps a while: another that can go on does, if there is one."""
        me = self.current
        if me is None:
            return
        self.step += 1
        others = [task for task in self._runnable() if task != me.index]
        if others and not self._too_long():
            chosen = self._chooser.choose(self.step, -1, others)
            self.at = min(self._chooser.after(self.step), self._steps_max)
            if chosen != others[0]:
                self._note(chosen, 0)
            self._go(self.tasks[chosen])

    def woken(self) -> None:
        """Something that a thread may wait for has come."""
        if self._chooser.woken():
            self.at = min(self.step + 1, self._steps_max)

    def _go(self, task: Task) -> None:
        self.current = task
        task.began = task.began or self.step
        task.greenlet.switch()

    def _next(self) -> Task | None:
        """Who goes on where the running thread cannot; None where nobody can, or the run went on for too long."""
        self.step += 1
        if self._too_long():
            return None
        runnable = self._runnable()
        if not runnable:
            late = next((task for task in self.tasks if not task.over and task.limited), None)
            if late is None:
                waiting = ", ".join(f"thread {t.index} waits for {t.what}" for t in self.tasks if not t.over)
                self._stuck = f"deadlock: {waiting}"
                return None
            late.timed_out, late.waits = True, None
            self._timeouts += 1
            return late
        chosen = self._chooser.choose(self.step, -1, runnable)
        self.at = min(self._chooser.after(self.step), self._steps_max)
        if chosen != runnable[0]:
            self._note(chosen, 0)
        return self.tasks[chosen]

    def _note(self, chosen: int, place: int) -> None:
        self._switches.append((self.step, chosen))
        self._places.append(place)

    def _too_long(self) -> bool:
        if self.step < self._steps_max:
            return False
        if not self._stuck:
            self._stuck = f"livelock: it has not ended after {self._steps_max} steps"
        if getcurrent() is not self._hub:
            self._hub.switch()
        return True

    def _runnable(self) -> list[int]:
        return [t.index for t in self.tasks if not t.over and (t.waits is None or t.waits())]


class _State:
    """The one run of this process that is under way."""

    running: Scheduler | None = None


def running() -> Scheduler | None:
    """The run that is under way, None outside of one."""
    return _State.running


def point(place: int = 0) -> None:
    """Here another thread might go on."""
    run = _State.running
    if run is None:
        return
    run.step += 1
    if run.step == run.at:
        run.decide(place)


class Replay:
    """A schedule given by its switches; one that is not possible is left out.  Without any: each thread to its end."""

    def __init__(self, switches: Sequence[Switch] = ()) -> None:
        self._switches = dict(switches)
        self._steps = sorted(self._switches)
        self._index = 0

    def after(self, step: int) -> int:
        """The step of the next switch."""
        while self._index < len(self._steps) and self._steps[self._index] <= step:
            self._index += 1
        return self._steps[self._index] if self._index < len(self._steps) else NEVER

    def choose(self, step: int, me: int, runnable: list[int]) -> int:
        """The switch of this step, or as if left alone."""
        chosen = self._switches.get(step, -1)
        return chosen if chosen in runnable else me if me >= 0 else runnable[0]

    def woken(self) -> bool:
        """The steps are fixed."""
        return False


class Randomly:
    """Some preemptions at random steps, to a random thread; `steps` is about how many a run has."""

    def __init__(self, seed: str, steps: int, preemptions_max: int = 6) -> None:
        self._dice = random.Random(seed)
        self._at = sorted(self._dice.sample(range(1, max(steps, 2 * preemptions_max)), self._dice.randint(1, preemptions_max)))

    def after(self, step: int) -> int:
        """The next of the steps that were drawn."""
        return next((at for at in self._at if at > step), NEVER)

    def choose(self, step: int, me: int, runnable: list[int]) -> int:  # noqa: ARG002 - as drawn
        """Any other that can go on."""
        others = [task for task in runnable if task != me]
        return self._dice.choice(others) if others else me

    def woken(self) -> bool:
        """The steps are fixed."""
        return False


class Prioritised:
    """Probabilistic concurrency testing, PCT (doi 10.1145/1736020.1736040).

    Random priorities, the highest that can go on does, and at `depth` - 1 random steps the running thread's falls below all: it
    meets each bug of that depth with a known chance.
    """

    def __init__(self, seed: str, steps: int, threads: int, depth: int = 3) -> None:
        dice = random.Random(seed)
        self._priority = dice.sample(range(depth, depth + threads), threads)
        falls = dice.sample(range(1, max(steps, depth + 1)), depth - 1)
        self._falls = {step: depth - 2 - number for number, step in enumerate(falls)}
        self._steps = sorted(self._falls)

    def after(self, step: int) -> int:
        """The next step at which a priority falls; the very first, so that the highest begins."""
        return 1 if step == 0 else next((at for at in self._steps if at > step), NEVER)

    def choose(self, step: int, me: int, runnable: list[int]) -> int:
        """The highest that can go on."""
        if step in self._falls and me >= 0:
            self._priority[me] = self._falls[step]
        return max(runnable, key=self._priority.__getitem__)

    def woken(self) -> bool:
        """Who may go on again may be of a higher priority."""
        return True


class _Recorder(Replay):
    """As `Replay`, noting after its last switch who else could have gone on at each step."""

    def __init__(self, switches: Switches) -> None:
        super().__init__(switches)
        self._last = switches[-1][0] if switches else 0
        self.open: list[tuple[int, int, int]] = []  # step, thread, and what taking it costs

    def after(self, step: int) -> int:
        """Every step after the last switch."""
        return super().after(step) if step < self._last else step + 1

    def choose(self, step: int, me: int, runnable: list[int]) -> int:
        """As `Replay`."""
        chosen = super().choose(step, me, runnable)
        if step > self._last:
            cost = int(me >= 0)
            self.open += [(step, other, cost) for other in runnable if other != chosen]
        return chosen


class Schedule(NamedTuple):
    """One of all the schedules of a trial, with what running it gave."""

    switches: Switches
    result: Any


def branches(run: Callable[[Chooser], Any]) -> tuple[Schedule, list[tuple[Switches, int]]]:
    """The schedule of a trial without any switch, and the first switch of every other with the preemptions it is."""
    recorder = _Recorder(())
    alone = Schedule((), run(recorder))
    return alone, [(((step, task),), cost) for step, task, cost in recorder.open]


def below(run: Callable[[Chooser], Any], root: Switches, used: int, preemptions_max: int) -> Iterator[Schedule]:
    """Every schedule that begins with the switches `root`, has at most so many preemptions, and each exactly once.

    A switch where a thread must wait or has ended is no preemption.
    """
    stack = [(root, used)]
    while stack:
        switches, spent = stack.pop()
        recorder = _Recorder(switches)
        yield Schedule(switches, run(recorder))
        stack += [((*switches, (step, task)), spent + cost) for step, task, cost in reversed(recorder.open)
                  if spent + cost <= preemptions_max]


def shrunk(switches: Switches, fails: Callable[[Switches], bool], tries_max: int = 300) -> Switches:
    """Fewer switches with which a trial still fails (delta debugging); those given, where none can be left out.

    One switch less moves no later step's number to another place, as long as the threads do the same until there.
    """
    tries, parts = 0, 2
    while switches and parts <= 2 * len(switches):
        size = max(1, len(switches) // parts)
        for begin in range(0, len(switches), size):
            fewer = switches[:begin] + switches[begin + size:]
            tries += 1
            if tries > tries_max:
                return switches
            if fails(fewer):
                switches, parts = fewer, max(2, parts - 1)
                break
        else:
            if size == 1:
                return switches
            parts *= 2
    return switches
