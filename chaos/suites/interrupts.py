"""An exception at every line, and a KeyboardInterrupt at every opcode, of a reset: told truly, nothing half done, no lock left.

Three ways through a reset are gone: one by hand that commits, one by hand that is rolled back, and one by a measurement.
Each place of each way (see `chaos.faults.tracing`) is a point, tried on a user of its own in a store that others of its
block were tried in before.  A small share of points are real signals, whose place is as it falls: a timer of the system
sends SIGALRM at seeded instants, whose handler is the one that Ctrl-C has.

What is checked after each: what the caller was told against what is stored.  An interrupt that comes out as it is means that
nothing was committed; one after the commit must be CommitInDoubt, and `inspect` must settle it.  Then the work goes on with
the same store, in another thread: a lock that was left taken hangs there, and a watchdog ends the block.  At the end of a
block the judge looks, the store is opened anew, goes on, and is judged again.
"""

from __future__ import annotations

import faulthandler
import gc
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby, islice
from pathlib import Path
from types import FrameType
from typing import Any, Final, Literal, NamedTuple, cast

from chaos.checker import judge
from chaos.faults.tracing import LIBRARY, Course, Place, Strike, Unit
from chaos.history import Event, Told, lines, parsed
from chaos.suite import Point, Session, Verdict
from chaos.watched import Died, each
from chaos.workload import BY, PRESENT_US, Client, Op, ids_of
from statemachine import Outcome, ResetResult, StoreLimits
from statemachine.audit import configure_for_command
from statemachine.breaker import CLOSED
from statemachine.testing import ManualClock

Mode = Literal["each", "process"]
Way = Literal["committed", "rolled back", "measured"]
MODES: Final[tuple[Mode, ...]] = ("each", "process")
WAYS: Final[dict[Way, str]] = {"committed": "reset", "rolled back": "raise", "measured": "measure"}
"""The ways through a reset, with the operation that goes each."""
KINDS: Final[dict[str, type[BaseException]]] = {
    kind.__name__: kind for kind in (KeyboardInterrupt, MemoryError, SystemExit, GeneratorExit)}
REAL: Final[Unit] = "real signal"
REAL_POINTS: Final = 200
TRIES: Final = 8
"""How often a real signal is sent again that came too late; each time to another user, and sooner."""
SOON_S: Final = 5e-5
BLOCK: Final = 64
OTHER: Final = BLOCK + 1
"""The user on whom nothing is tried; user 0 goes the ways without an interrupt, to find their places."""
JUDGED_TWICE: Final = 4
"""Of so many blocks one is judged before it goes on, too; all are judged after it."""
HANG_S: Final = 10.0
LIMITS: Final = StoreLimits(writer_wait_s_max=1.0)
FAULTS: Final = {("line", kind): f"{kind} at a line" for kind in KINDS} | {
    ("opcode", "KeyboardInterrupt"): "KeyboardInterrupt at an opcode", (REAL, "KeyboardInterrupt"): "a real signal"}


class Try(NamedTuple):
    """One point: a way in a mode, and what is raised where; for a real signal `place` has its number alone."""

    way: Way
    mode: Mode
    kind: str
    place: Place

    def point(self) -> Point:
        """As the campaign knows it."""
        return Point("interrupts", FAULTS[self.place.unit, self.kind], [self.way, self.mode, self.kind, *self.place])


Found = tuple[str, tuple[str, ...], bool]
"""The outcome of a try, what it violates, whether it fired."""


class _Struck(Client):
    """A client whose calls into the library are interrupted by `strike`."""

    strike: Callable[[Callable[[], Any]], Any] | None = None

    def _act(self, op: Op, measured: list[Any]) -> list[Outcome | ResetResult]:
        strike, self.strike = self.strike, None
        if strike is None:
            return super()._act(op, measured)
        return cast("list[Outcome | ResetResult]", strike(lambda: super(_Struck, self)._act(op, measured)))


class _Trial:
    """A store in which the tries of a block are made one after the other, each on a user of its own."""

    def __init__(self, session: Session, path: Path, mode: Mode, life: int) -> None:
        self._session = session
        self._path = path
        self._mode: Mode = mode
        self._events: list[Event] = []
        self._clock, self._ids = ManualClock(PRESENT_US), ids_of(life)
        self._other = ThreadPoolExecutor(max_workers=1)
        self._armed = False
        self._open()

    def _open(self) -> None:
        self.store = self._session.target.open(
            self._path, clock=self._clock, ids=self._ids, durability=self._mode, limits=LIMITS)
        self.client = _Struck(self._session.target, self.store, self._events.append, len(self._events))

    def prepare(self, users: int) -> list[Event]:
        """Give every user its past; the history of it."""
        for number in range(users):
            self.client.do(Op("measure", _op("committed", number).user))
        self.client.do(_op("rolled back", OTHER))  # what the first failure makes is there from now on
        self._calm()
        self.store.close()
        return self._events

    def resume(self, events: list[Event]) -> None:
        """Go on from the history of a template."""
        self._events += events
        self.client = _Struck(self._session.target, self.store, self._events.append, len(self._events))
        self._other.submit(int).result()
        self.client.do(_op("measured", OTHER))  # what is done once only is done
        self.client.do(_op("committed", OTHER))

    def course(self, way: Way) -> Course:
        """Every place of a way."""
        course = Course()
        self.store.version_range(_op(way, 0).user)  # as before each try: what is remembered of a user is
        self.client.strike = course.run
        self._done(_op(way, 0))
        return course

    def _done(self, op: Op) -> Told | BaseException:
        """What an operation was told, or the exception that is none of the library's."""
        try:
            return self.client.do(op)
        except BaseException as error:  # noqa: BLE001 - it is what is looked at
            return error

    def struck(self, number: int, tried: Try) -> Found:
        """Make one try on the user of that number, and go on."""
        op = _op(tried.way, number)
        before = self.store.version_range(op.user)[1]
        error = KINDS[tried.kind]("struck")

        def raised() -> None:
            raise error

        strike = Strike(tried.place, raised)
        self.client.strike = strike.run
        told = self._done(op)
        if not strike.fired:
            return "not met", (), False
        outcome, broken = self._judged(told, error, self.store.version_range(op.user)[1] - before)
        broken += self._gone_on(op, told)
        return outcome, tuple(broken), True

    def real(self, users: Iterator[int], number: int) -> Found:
        """A real signal while a user is reset; one that came too late is sent again."""
        dice = random.Random(f"{self._session.seed}/{number}")
        began = time.perf_counter()
        self._done(_op("committed", next(users)))
        lasts_s = time.perf_counter() - began
        for again, user in enumerate(islice(users, TRIES - 1), 1):
            found = self._signalled(user, max(SOON_S, dice.random() * lasts_s / again))
            if found[2]:
                return found
        return found

    def _signalled(self, number: int, delay_s: float) -> Found:
        op = _op("committed", number)
        before, caught = self.store.version_range(op.user)[1], list[BaseException]()

        def handle(_signal: int, frame: FrameType | None) -> None:
            while frame is not None and not frame.f_code.co_filename.startswith(LIBRARY):
                frame = frame.f_back
            if frame is not None:  # else the call has ended
                caught.append(KeyboardInterrupt("real"))
                raise caught[0]

        def sent(work: Callable[[], Any]) -> Any:
            signal.setitimer(signal.ITIMER_REAL, delay_s)
            try:
                return work()
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)

        previous = signal.signal(signal.SIGALRM, handle)
        self.client.strike = sent
        told = self._done(op)
        signal.signal(signal.SIGALRM, previous)
        if not caught:
            return "not met", (), False
        _, broken = self._judged(told, caught[0], self.store.version_range(op.user)[1] - before)
        broken += self._gone_on(op, told)
        return "told the truth", tuple(broken), True

    def _judged(self, told: Told | BaseException, error: BaseException, landed: int) -> tuple[str, list[str]]:
        """What an interrupted caller was told, held against what is stored; `landed`: how many versions there are more."""
        name = type(error).__name__
        if isinstance(told, BaseException):
            if told is not error:
                return "another error", [f"typed: {name} became {told!r}"]
            wrong = [f"told: version {landed} more is stored, and the caller was told {name} alone"] if landed else []
            return "raised, nothing written", wrong
        if told.error == "in-doubt":
            wrong = []
            for attempt in told.attempts:  # none where a measurement was taken in: that is settled by sending it again
                row = self.client.manager.inspect(attempt)
                if (row is not None and row.public.outcome == "committed") != bool(landed):
                    wrong = [f"settled: inspect says {row and row.public.outcome} and {landed} versions are stored"]
            return ("in doubt, had landed" if landed else "in doubt, had not landed"), wrong
        if not isinstance(error, Exception):
            return "swallowed", [f"swallowed: {name} was raised and the caller was told {told.answer} {told.error}"]
        return ("went on all the same" if told.answer == "acknowledged" else "an error of the library"), []

    def _gone_on(self, op: Op, told: Told | BaseException) -> list[str]:
        """The same process goes on with the same store and user, in another thread."""
        user = op.user
        self._calm()
        if op.kind == "measure":
            again = self._other.submit(self._done, op).result()
            last = self.store.version_range(user)[1]
            kept = isinstance(told, Told) and told.statuses == ("quarantined",)  # its reset failed, and that was told
            if not isinstance(again, Told) or again.answer != "acknowledged" or last != (0 if kept else 1):
                return [f"goes on: sent again after {told!r} it is told {again!r}, and its user is at version {last}"]
            op = op_after = Op("measure", user, 1)
        else:
            op_after = Op("reset", user)
        before = self.store.version_range(user)[1]
        after = self._other.submit(self._done, op_after).result()
        broken = []
        if not isinstance(after, Told) or after.answer != "acknowledged":
            broken.append(f"goes on: after {told!r} the next {op_after.kind} is told {after!r}")
        elif op_after.kind == "reset" and self.store.version_range(user)[1] != before + 1:
            broken.append(f"goes on: the next reset made version {self.store.version_range(user)[1]} after {before}")
        return broken

    def _calm(self) -> None:
        """Forget failures, which all users share, so that each try begins alike."""
        manager = self.client.manager
        known = manager.breaker(None)
        if known.failing or known.failing_event or known.mode != CLOSED.mode or manager.context.resets_per_minute is not None:
            manager.release_breaker(None, **BY)

    def end(self, *, twice: bool) -> list[str]:
        """What the judge says of the store, opened anew (where `twice`), and after more was done."""
        self.store.close()
        self._open()
        broken = self._looked("opened anew") if twice else []
        for op in (Op("measure", "last", 0), Op("measure", "last", 1), Op("reset", "last")):
            told = self._done(op)
            if not isinstance(told, Told) or told.answer != "acknowledged":
                broken.append(f"goes on: opened anew, {op.kind} is told {told!r}")
        broken += self._looked("gone on with")
        self.store.close()
        return broken

    def _looked(self, when: str) -> list[str]:
        return [f"{what} (store {when})" for what in judge(self._session.target, self._events, self.store)]


def _op(way: Way, number: int) -> Op:
    """The operation that goes a way, of the user of that number; a first measurement is a reset of its own kind."""
    return Op(WAYS[way], f"new{number:04}" if way == "measured" else f"user{number:04}")


class Interrupts:
    """The suite."""

    name = "interrupts"
    summary = "an exception at every line, KeyboardInterrupt at every opcode, and real signals, during resets"
    floor = 10_000
    grows = False
    weight = 40.0
    witnesses = frozenset({"raised, nothing written", "in doubt, had landed", "told the truth"})

    def unavailable(self) -> str:
        """It knows of CPython 3.11 where an exception can be raised; 3.12 has other instructions at the end of a `with`."""
        if sys.version_info[:2] == (3, 11):
            return ""
        return f"the places where Python can raise are known for CPython 3.11, and this is {sys.version.partition(' ')[0]}"

    def run(self, session: Session) -> Iterator[Verdict]:
        """The verdict of each point of this worker's share."""
        with Templates(session) as templates:
            for block in _blocks(session.mine(_tries(session, templates))):
                yield from templates.verdicts(block)

    def replay(self, session: Session, point: Point) -> Verdict:
        """The verdict of one point anew, in a store of its own."""
        way, mode, kind, *place = point.where
        with Templates(session) as templates:
            return next(templates.verdicts([Try(way, mode, kind, Place(*place))]))


class Templates:
    """A store of each mode with users that have a past, built once; blocks are tried in copies of them."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._directory = session.scratch / f"interrupts {session.share}"
        self._events: dict[Mode, bytes] = {}
        self._copies = 0

    def __enter__(self) -> Templates:
        self._directory.mkdir(parents=True)
        for mode in MODES:
            made = next(each([mode], lambda mode: lines(self._trial("template", mode, 1).prepare(OTHER + 1)).decode()))[1]
            self._events[mode] = str(made).encode()
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._directory, ignore_errors=True)

    def _trial(self, name: str, mode: Mode, life: int) -> _Trial:
        configure_for_command(verbose=False)
        gc.disable()  # it would run what is left of generators, at other calls than before; the process is short
        return _Trial(self._session, self._directory / f"{name} {mode}", mode, life)

    def _copy(self, mode: Mode) -> _Trial:
        """In a child: a store of its own, with the past of the template."""
        faulthandler.dump_traceback_later(HANG_S, exit=True, file=Path(os.devnull).open("w"))  # noqa: SIM115 - it ends with the child
        name = f"copy {os.getpid()}"
        shutil.copytree(self._directory / f"template {mode}", self._directory / f"{name} {mode}")
        trial = self._trial(name, mode, 2)
        trial.resume(parsed(self._events[mode]))
        return trial

    def _remove(self, child: int) -> None:
        for mode in MODES:
            shutil.rmtree(self._directory / f"copy {child} {mode}", ignore_errors=True)

    def places(self, way: Way, mode: Mode) -> tuple[list[Place], list[Place]]:
        """The lines of a way, and the opcodes before which signals are looked for."""
        def found(_: Any) -> list[list[Place]]:
            course = self._copy(mode).course(way)
            return [course.lines, course.looks]

        lists = next(each([way], found, after=self._remove))[1]
        return tuple([Place(*place) for place in places] for places in lists)  # type: ignore[return-value]

    def verdicts(self, block: list[Try]) -> Iterator[Verdict]:
        """The verdicts of tries in one store; where something is wrong that is none's alone, each is made anew by itself."""
        found = next(each([block], self._block, after=self._remove))[1]
        if len(block) > 1 and (isinstance(found, Died) or found[1]):
            for tried in block:
                yield from self.verdicts([tried])
            return
        if isinstance(found, Died):
            why = f"hangs: the process went on no more for {HANG_S:g} s" if not found.signal else f"lives: {found}"
            yield Verdict(block[0].point(), "hung or died", (why,))
            return
        for tried, (outcome, broken, fired) in zip(block, found[0], strict=True):
            if not fired and len(block) > 1:  # what others left led it another way
                yield from self.verdicts([tried])
                continue
            yield Verdict(tried.point(), outcome, (*broken, *found[1]), fired)

    def _block(self, block: list[Try]) -> tuple[list[Found], list[str]]:
        trial, found, users = self._copy(block[0].mode), list[Found](), iter(range(1, BLOCK + 1))
        for tried in block:
            if tried.place.unit == REAL:
                found.append(trial.real(users, tried.place.call))
            else:
                found.append(trial.struck(next(users), tried))
        return found, trial.end(twice=len(block) == 1 or block[0].place.call % JUDGED_TWICE == 0)


def _blocks(tries: Iterable[Try]) -> Iterator[list[Try]]:
    """In their order, so many at once as a store has users; all of a block are of one mode."""
    for (_, unit), group in groupby(tries, lambda tried: (tried.mode, tried.place.unit == REAL)):
        size = BLOCK // TRIES if unit else BLOCK
        while block := list(islice(group, size)):
            yield block


def _tries(session: Session, templates: Templates) -> Iterator[Try]:
    """Every point, in an order that all workers make alike.

    The short plan goes every place of the way that commits, with each kind, in modes taken in turns; of the other ways it
    takes every line, with the kinds in turns, and every opcode of a measurement, a quarter of those that are rolled back.  The
    full plan goes everything in each mode.  Those of a way and a mode are shuffled, so that a prefix has of all: a bug in the
    commit, which comes late, is met soon.
    """
    for way in WAYS:
        for number, mode in enumerate(MODES):
            lines_, looks = templates.places(way, mode)
            tries = [Try(way, mode, kind, place) for place in lines_ for kind in KINDS]
            tries += [Try(way, mode, "KeyboardInterrupt", place) for place in looks]
            if session.times == 1 and way == "committed":
                tries = tries[number::len(MODES)]
            elif session.times == 1:
                kinds = list(KINDS)
                tries = [Try(way, mode, kinds[at % len(kinds)], place) for at, place in enumerate(lines_)][number::len(MODES)]
                few = 1 if way == "measured" else 4
                tries += [Try(way, mode, "KeyboardInterrupt", place) for place in looks[few * number::few * len(MODES)]]
            random.Random(f"{session.seed}/{way}/{mode}").shuffle(tries)
            yield from tries
    for number in range(REAL_POINTS * session.times):
        yield Try("committed", "each", "KeyboardInterrupt", Place(REAL, number, 0, 0, ""))
