"""Processes that die, or stop: killed at lines of the library, in a storm of writers, stopped and fenced, left by a mutation.

A process writes its history to a file of its own, opened for appending, each event in one write: a death loses none of it.
Victims are forked from a warm process that has no store open, and what they leave is judged by another child.

- `step`: one writer is killed (SIGKILL) at a line of the library by its own hand, so that the place is fixed by the point.
- `storm`: three writers work on the same users; one after the other is killed at an instant drawn from the seed, and another
  takes its place.  Where a kill lands is as it falls, so the outcome does not say; what must hold does not depend on it.
- `stop`: a writer is stopped (SIGSTOP) at a line, another fences it and goes on, on its user or on another's; then it is
  resumed, and must commit nothing any more.
- `exit`: a mutation ends its process.  Its user becomes suspect and is refused after so many deaths; others go on.
"""

from __future__ import annotations

import contextlib
import gc
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Final, NamedTuple, NoReturn
from unittest import mock

from chaos.checker import judge
from chaos.faults.tracing import Course, Place, Strike
from chaos.history import Event, Told, lines, parsed
from chaos.suite import Point, Session, Verdict
from chaos.watched import Died, each
from chaos.workload import BATCH, BY, PRESENT_US, USERS, Client, Op, generate, ids_of
from statemachine import BreakerOpen, Outcome, ResetError, ResetResult, Store, StoreBusy, StoreLimits, marks
from statemachine.audit import configure_for_command
from statemachine.marks import files, under_way
from statemachine.store.engine import OWNERS
from statemachine.store.fencing import fence
from statemachine.testing import ManualClock

STEPS: Final = 420
ROUNDS: Final = 28
KILLS: Final = 18
"""Of one round of the storm; the writers that are left at its end are killed as well."""
WRITERS: Final = 3
STOPS: Final = 16
EXITS: Final = 4
OPS: Final = 6
SENT: Final = 3
"""So many measurements has each user before the first death."""
OPENED: Final = 8
"""Of so many writers one is killed while it opens the store."""
BLOCK: Final = 16
PAUSE_S: Final = (0.0005, 0.01)
JUDGED_TWICE: Final = 4
"""Of so many stores one is judged again after it went on."""
HANG_S: Final = 20.0
LAST: Final = 1 << 20
"""The life of whoever judges; a writer's is lower."""
OP: Final = 1_000_000
"""So far are the numbers of the operations of two lives apart."""
LEFT: Final = 7
SLOTS: Final = 64
"""Slots in the files of marks: each of so many writers makes one, and 1 MiB takes its time."""
LIMITS: Final = StoreLimits(writer_wait_s_max=10.0)
IMPATIENT: Final = StoreLimits(writer_wait_s_max=0.05)
STORE: Final = "store"
RESETS: Final = (Op("reset", USERS[0]), Op("measure", USERS[0], SENT), Op("reset", USERS[0]))
"""What a writer does that is stopped."""
FAULTS: Final = {"step": "killed at a line", "storm": "killed in a storm of writers", "stop": "stopped, fenced and resumed",
                 "exit": "a mutation that ends its process"}


class StillClock(ManualClock):
    """A clock that stands still but whose `sleep` takes its time: others are waited for."""

    def sleep(self, seconds: float) -> None:
        """Wait as long as that."""
        time.sleep(seconds)


class _Mortal(Client):
    """A client that can do one thing more: a reset whose mutation ends the process."""

    def _act(self, op: Op, measured: list[Any]) -> list[Outcome | ResetResult]:
        if op.kind == "exit":
            return [self.manager.perform_reset(op.user, operations=[("leave", lambda _: os._exit(LEFT))], **BY)]
        return super()._act(op, measured)


_Result = tuple[list[Any], str, tuple[str, ...], bool]
"""Where a point is, its outcome, what it violates, whether it fired."""


class Life:
    """One process's time with a store: its client, and the file of its history."""

    def __init__(self, session: Session, directory: Path, number: int, limits: StoreLimits = LIMITS) -> None:
        configure_for_command(verbose=False)
        gc.disable()  # it would run what is left of generators, at other calls than before; the process is short
        self._file = os.open(directory / f"{number}.ndjson", os.O_APPEND | os.O_CREAT | os.O_WRONLY, 0o600)
        self.store: Store = session.target.open(
            directory / STORE, clock=StillClock(PRESENT_US), ids=ids_of(number), limits=limits)
        self.client = _Mortal(session.target, self.store, self._record, number * OP)

    def _record(self, event: Event) -> None:
        os.write(self._file, lines([event]))


class Look(NamedTuple):
    """What is found in a directory once its writers are dead: how many attempts were settled, what is broken."""

    interrupted: int
    landed: int
    broken: tuple[str, ...]


def look(session: Session, directory: Path, stale: int = 0, *, twice: bool = True) -> Look:
    """Open what was left, judge it, go on with it, judge it again where `twice`; `stale` is an owner that was fenced."""
    events = [event for path in sorted(directory.glob("*.ndjson")) for event in parsed(path.read_bytes())]
    marked = {mark.attempt_id for _, path in files(directory / STORE / OWNERS) for mark in under_way(path)}
    try:
        life = Life(session, directory, LAST)
    except ResetError as error:
        return Look(0, 0, (f"opens again: {error.kind}: {error}",))
    store, broken = life.store, list[str]()
    broken += judge(session.target, events, store)
    there = {row.public.attempt_id for row in store.audit()}
    broken += [f"settled: attempt {attempt} was under way when its process died, and has no row" for attempt in marked - there]
    if stale:
        rows = list(store.audit())
        fenced = next((row.public.seq for row in rows if row.public.event == "owner.fenced"), None)
        broken += [f"stale: row {row.public.seq}, {row.public.event}, is by owner {stale}, fenced at row {fenced}"
                   for row in rows if fenced is not None and row.public.owner == stale and row.public.seq > fenced]
    known = {version for event in events if isinstance(event, Told) for version in event.versions}
    landed = sum(store.version_range(user)[1] not in known for user in store.users())
    for op in (Op("measure", "a new one", 0), Op("measure", "a new one", 1), Op("reset", "a new one")):
        told = life.client.do(op)
        if told.answer != "acknowledged":
            broken.append(f"goes on: {op.kind} of another user is told {told.answer} {told.error}")
    if twice:
        events = [event for path in sorted(directory.glob("*.ndjson")) for event in parsed(path.read_bytes())]
        broken += [what for what in judge(session.target, events, store) if what not in broken]
    interrupted = store.interrupted
    store.close()
    return Look(interrupted, landed, tuple(broken))


class Deaths:
    """The suite."""

    name = "deaths"
    summary = "processes killed at lines and in a storm, stopped and fenced, or ended by a mutation"
    floor = 1_020
    grows = True
    weight = 20.0
    witnesses = frozenset({"settled as interrupted", "landed and not told", "nothing was under way", "others went on",
                           "fenced: committed nothing", "refused as suspect"})

    def unavailable(self) -> str:
        """It needs fork and signals."""
        return "" if hasattr(os, "fork") and hasattr(signal, "SIGSTOP") else "there is no fork here"

    def run(self, session: Session) -> Iterator[Verdict]:
        """The verdict of each point of this worker's share."""
        with Ground(session) as ground:
            for fault, block in _blocks(list(session.mine(_points(session)))):
                yield from ground.verdicts(fault, block)

    def replay(self, session: Session, point: Point) -> Verdict:
        """The verdict of one point anew; of a storm, its whole round."""
        fault, *where = point.where
        with Ground(session) as ground:
            return next(ground.verdicts(fault, [where]))


def _points(session: Session) -> Iterator[tuple[str, list[Any]]]:
    """Every point, as its fault and where; a round of the storm is one here, and one for each of its kills afterwards."""
    for fault, times in (("step", STEPS), ("storm", ROUNDS), ("stop", STOPS), ("exit", EXITS)):
        for number in range(times * session.times):
            yield fault, [number, times * session.times]


def _blocks(points: list[tuple[str, list[Any]]]) -> Iterator[tuple[str, list[list[Any]]]]:
    """Those that are few come first, so that a budget cuts none of them off."""
    for fault in ("stop", "exit", "step", "storm"):
        of_it = [where for found, where in points if found == fault]
        size = BLOCK if fault == "step" else 1
        for first in range(0, len(of_it), size):
            yield fault, of_it[first:first + size]


class Ground:
    """A template store, and what is done in copies of it."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._directory = session.scratch / f"deaths {session.share}"
        self._children = set[int]()
        self._light = mock.patch.object(marks, "SLOTS", SLOTS)
        self._opening: list[Place] = []
        self._lines: list[Place] = []
        self._resets: list[Place] = []

    def __enter__(self) -> Ground:
        self._light.start()
        template = self._directory / "template"
        template.mkdir(parents=True)
        next(each([0], self._made))
        # Each in a child of its own, as the victims are: what a process remembers of users leads it another way.
        for places, work in ((self._opening, self._open), (self._lines, self._work), (self._resets, self._reset)):
            places += [Place(*place) for place in next(each([work], self._walked))[1]]
        return self

    def __exit__(self, *_: object) -> None:
        self._light.stop()
        for child in self._children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        shutil.rmtree(self._directory, ignore_errors=True)

    def _made(self, _: int) -> int:
        life = Life(self._session, self._directory / "template", 0)
        for user in USERS:
            for n in range(SENT):
                life.client.do(Op("measure", user, n))
        life.store.close()
        return 0

    def _ops(self, number: int) -> list[Op]:
        """What a writer does; no two lives send the same measurement."""
        return generate(self._session.seed * 1_000 + number, OPS, first=SENT + number * BATCH)

    def _walked(self, work: Callable[[Path, int, Callable[..., Any]], object]) -> list[Place]:
        """Every line of some work."""
        course, directory = Course(), self._copy("walked")
        work(directory, 1, course.run)
        shutil.rmtree(directory)
        return course.lines

    def _open(self, directory: Path, number: int, run: Callable[[Callable[[], None]], object]) -> None:
        """An opening, traced by `run`; the process has opened the store before, so that it remembers what it will."""
        Life(self._session, directory, number).store.close()

        def work() -> None:
            Life(self._session, directory, number + 1)

        run(work)

    def _work(self, directory: Path, number: int, run: Callable[[Callable[[], None]], object]) -> None:
        """What a writer does after the opening, and its closing, traced by `run`."""
        life = self._warm(directory, number)

        def work() -> None:
            for op in self._ops(number):
                life.client.do(op)
            life.store.close()

        run(work)

    def _reset(self, directory: Path, number: int, run: Callable[[Callable[[], None]], object]) -> None:
        """Two resets, traced by `run`, in a store that was opened before; its owner's number is left in a file."""
        life = self._warm(directory, number)
        (directory / "owner").write_text(str(life.store.committer.owner), encoding="ascii")

        def work() -> None:
            for op in RESETS:
                life.client.do(op)

        run(work)
        life.store.close()

    def _warm(self, directory: Path, number: int) -> Life:
        """A life whose events have their thread: how many calls it takes to start one depends on the instant."""
        life = Life(self._session, directory, number)
        life.store.emitter.note("begun")
        life.store.emitter.flush()
        return life

    def _copy(self, name: str) -> Path:
        target = self._directory / name
        shutil.copytree(self._directory / "template", target)
        return target

    def _forked(self, work: Callable[[], object]) -> int:
        """A child that does the work and ends."""
        child = os.fork()
        if child == 0:
            _alone(work)
        self._children.add(child)
        return child

    def _ended(self, child: int) -> int:
        """The status of a child that has ended; one that does not is killed, and has the signal of an alarm for its status."""
        until = time.monotonic() + HANG_S
        while True:
            found, status = os.waitpid(child, os.WNOHANG)
            if found:
                self._children.discard(child)
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() > until:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                self._children.discard(child)
                return -signal.SIGALRM
            time.sleep(0.0005)

    def verdicts(self, fault: str, block: list[list[Any]]) -> Iterator[Verdict]:
        """The verdicts of a block of points of one fault."""
        alone = {"storm": self._storm, "stop": self._stop, "exit": self._exit}
        done = self._steps(block) if fault == "step" else (one for where in block for one in alone[fault](*where))
        for where, outcome, broken, fired in done:
            yield Verdict(Point("deaths", FAULTS[fault], [fault, *where]), outcome, tuple(broken), fired)

    def _looked(self, directories: list[Path], stale: int = 0) -> list[Look]:
        found = []
        def looked(at: int) -> Look:
            return look(self._session, directories[at], stale, twice=at % JUDGED_TWICE == 0)

        for _, seen in each(range(len(directories)), looked):
            found.append(Look(0, 0, (f"opens again: the process that opened the store was {seen}",))
                         if isinstance(seen, Died) else Look(*seen))
        for directory in directories:
            shutil.rmtree(directory, ignore_errors=True)
        return found

    def _steps(self, block: list[list[Any]]) -> Iterator[_Result]:
        directories, statuses = [], []
        for number, of in block:
            places, work = (self._opening, self._open) if number % OPENED == 0 else (self._lines, self._work)
            place = places[number * len(places) // of]
            directory = self._copy(f"step {number}")
            strike = Strike(place, lambda: os.kill(os.getpid(), signal.SIGKILL))
            child = self._forked(partial(work, directory, 1, strike.run))
            statuses.append(self._ended(child))
            directories.append(directory)
        for where, status, found in zip(block, statuses, self._looked(directories), strict=True):
            outcome = "settled as interrupted" if found.interrupted else (
                "landed and not told" if found.landed else "nothing was under way")
            yield where, outcome, found.broken, status == -signal.SIGKILL

    def _storm(self, number: int, of: int) -> Iterator[_Result]:
        dice = random.Random(f"{self._session.seed}/{number}")
        directory = self._copy(f"storm {number}")
        lives, statuses, writers = iter(range(1, LAST)), list[int](), dict[int, int]()
        for _ in range(WRITERS):
            self._writer(directory, next(lives), writers)
        for _ in range(KILLS):
            time.sleep(dice.uniform(*PAUSE_S))
            child = dice.choice(sorted(writers))
            del writers[child]
            os.kill(child, signal.SIGKILL)
            statuses.append(self._ended(child))
            self._writer(directory, next(lives), writers)
        broken = self._alive(directory, writers)
        for child in sorted(writers):
            os.kill(child, signal.SIGKILL)
            statuses.append(self._ended(child))
        found = self._looked([directory])[0]
        for at, status in enumerate(statuses):
            told = (*broken, *found.broken) if at == 0 else ()
            if status != -signal.SIGKILL:
                told = (*told, f"lives: a writer ended by itself, with {status}")
            yield [number, of, at], "others went on", told, True

    def _writer(self, directory: Path, number: int, writers: dict[int, int]) -> None:
        def work() -> None:
            life = Life(self._session, directory, number)
            for more in count():  # writers meet in some measurements: each is to be taken in once
                for op in generate(self._session.seed * 1_000 + number + OP * more, OPS, first=SENT + (number + more) * BATCH):
                    life.client.do(op)

        writers[self._forked(work)] = number

    def _alive(self, directory: Path, writers: dict[int, int]) -> list[str]:
        """What hinders a writer that is left: each must write to its history once more."""
        paths = [directory / f"{number}.ndjson" for number in writers.values()]

        def sizes() -> list[int]:
            return [path.stat().st_size if path.exists() else 0 for path in paths]

        before, until = sizes(), time.monotonic() + HANG_S
        while any(now <= then for now, then in zip(sizes(), before, strict=True)):
            if time.monotonic() > until:
                return [f"goes on: after the kills a writer did nothing for {HANG_S:g} s"]
            time.sleep(0.001)
        return []

    def _stop(self, number: int, of: int) -> Iterator[_Result]:
        directory = self._copy(f"stop {number}")
        strike = Strike(self._resets[number * len(self._resets) // of], lambda: os.kill(os.getpid(), signal.SIGSTOP))
        child = self._forked(lambda: self._reset(directory, 1, strike.run))
        _, status = os.waitpid(child, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            self._children.discard(child)
            self._looked([directory])
            yield [number, of], "not met", (), False
            return
        owner = int((directory / "owner").read_text(encoding="ascii"))
        user = USERS[number % 2]  # the stopped one's own, and another's
        took_over = next(each([0], lambda _: self._taken_over(directory, owner, user)))[1]
        os.kill(child, signal.SIGCONT)
        status = self._ended(child)
        broken = [] if status == 0 else [f"goes on: the resumed process ended with {status}"]
        found = self._looked([directory], owner)[0]
        outcome = "fenced: committed nothing" if took_over else "stopped in its turn: nobody could fence it"
        yield [number, of], outcome, (*broken, *found.broken), True

    def _taken_over(self, directory: Path, owner: int, user: str) -> bool:
        """Fence the owner and go on; False where it was stopped while it wrote, so that nobody can."""
        try:
            life = Life(self._session, directory, 2, IMPATIENT)
            fence(life.store, owner, **BY)
        except StoreBusy:
            return False
        for op in (Op("reset", user), Op("measure", user, SENT + BATCH)):
            life.client.do(op)
        life.store.close()
        return True

    def _exit(self, number: int, of: int) -> Iterator[_Result]:
        directory, user = self._copy(f"exit {number}"), USERS[number % len(USERS)]
        deaths, broken, allowed = 0, list[str](), 0
        while True:
            child = self._forked(lambda life=deaths + 1: self._leaves(directory, life, user))  # type: ignore[misc]
            status = self._ended(child)
            if status != LEFT:
                break
            deaths += 1
            if deaths > 100:
                break
        allowed = int((directory / "allowed").read_text(encoding="ascii"))
        if status != 0 or deaths != allowed:
            broken.append(f"suspect: {deaths} processes died of one mutation, {allowed} may; then one ended with {status}")
        found = self._looked([directory])[0]
        yield [number, of], "refused as suspect", (*broken, *found.broken), deaths > 0

    def _leaves(self, directory: Path, number: int, user: str) -> None:
        """Try the mutation that ends its process; comes back only where it is refused as suspect, and others go on."""
        life = Life(self._session, directory, number)
        (directory / "allowed").write_text(str(life.client.manager.context.breaker.suspects_max), encoding="ascii")
        told = life.client.do(Op("exit", user))
        if told.error != BreakerOpen.kind:
            os._exit(8)
        if life.client.do(Op("reset", USERS[USERS.index(user) - 1])).answer != "acknowledged":
            os._exit(9)
        life.store.close()


def _alone(work: Callable[[], object]) -> NoReturn:
    """Do the work of a child that was just forked, and end."""
    try:
        work()
    except BaseException as error:  # noqa: BLE001 - there is nobody above to take it
        sys.stderr.write(f"a writer raised {type(error).__name__}: {error}\n")
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)
