"""Resources: what a machine runs out of, and gets back.  Whoever asks is told, nothing is lost, and the store goes on."""

from __future__ import annotations

import contextlib
import random
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from chaos import grown, watched
from chaos.checker import judge
from chaos.faults import limits
from chaos.grown import Grown
from chaos.history import Event, Told
from chaos.suite import CANNOT, Point, Session, Verdict
from chaos.target import Target
from chaos.workload import PRESENT_US, Client, Op
from statemachine import ResetError, Store, StoreLimits
from statemachine.testing import ManualClock

PAGE: Final = 4_096
MAP_PAGES: Final = 8
DISK_PAGES: Final = 18
FILE_STEPS: Final = 24
DESCRIPTORS: Final = 14
SLOTS_LEFT: Final = 5
ASKED: Final = (1, 2, 3, 5, 8, 13, 21, 34, 55, 89)
HOUR_US: Final = 3_600_000_000
DAY_US: Final = 24 * HOUR_US
JUMPS_US: Final = {
    "an hour back": -HOUR_US, "a year back": -365 * DAY_US, "to 1970": -PRESENT_US, "to year 1": -63_000_000_000 * 10**6,
    "an hour on": HOUR_US, "a year on": 365 * DAY_US, "to year 9990": 250_000_000_000 * 10**6 - PRESENT_US,
}
SECONDS_MAX: Final = 30

UNTIL_LATER: Final = frozenset({"invalid-state", "breaker-open"})
"""What a clock that was wrong leaves until the time has come that it told: a reset made in the future, a breaker that waits."""

UNHARMED: Final = "went on unharmed"
TOLD: Final = "told, then went on"
REFUSED: Final = "refused to open, then opened"
NOT_MET: Final = "not met"


class Judged(msgspec.Struct):
    """What a child found."""

    outcome: str = NOT_MET
    violations: list[str] = []


class Scene(NamedTuple):
    """A copy of a grown store, and what is lacking: when it is taken and given back, and with what the store is opened then."""

    target: Target
    grown: Grown
    path: Path
    lacking: Callable[[], contextlib.AbstractContextManager[dict[str, Any]]]
    before_open: bool
    lasts: bool = False
    fired: Callable[[], bool] | None = None
    later_us: int = 0


class Resources:
    """One thing taken from one process, and given back, a point."""

    name = "resources"
    summary = "small map, full disk, file-size limit, reader slots, descriptors, clock jumps: told, and usable again"
    floor = 130
    grows = False
    weight = 8.0
    witnesses = frozenset({UNHARMED, TOLD, REFUSED})

    def unavailable(self) -> str:
        """Its limits are those of Linux and other Unix systems."""
        return "" if hasattr(resource, "RLIMIT_FSIZE") else "this system has no limits on a process's files"

    def run(self, session: Session) -> Iterator[Verdict]:
        """Take each thing away, in a child of its own, and give it back."""
        with grown.quiet():
            found = grown.grow(session.target, session.scratch / f"resources-{session.share}", session.seed)
            for point in session.mine(self._points(session)):
                yield self._verdict(session, found, point)

    def replay(self, session: Session, point: Point) -> Verdict:
        """Take that one thing away."""
        with grown.quiet():
            found = grown.grow(session.target, session.scratch / f"resources-{session.share}", session.seed)
            return self._verdict(session, found, point)

    def _points(self, session: Session) -> Iterator[Point]:
        for fault, where in points(random.Random(f"{session.seed}/resources")):
            yield Point(self.name, fault, where)

    def _verdict(self, session: Session, found: Grown, point: Point) -> Verdict:
        path = session.scratch / f"resources-{session.share}-lacking"

        def work(_: None) -> Judged:
            signal.alarm(SECONDS_MAX)
            try:
                return examine(SCENES[point.fault](session.target, found, path, point.where))
            except limits.CannotMount as error:
                return Judged(f"{CANNOT}mount a disk of its own: {error}")

        for _, judged in watched.each([None], work):
            if isinstance(judged, watched.Died):
                return Verdict(point, "died", (f"alive: {judged}",))
            done = msgspec.convert(judged, Judged)
            return Verdict(point, done.outcome, tuple(done.violations),
                           fired=done.outcome != NOT_MET and not done.outcome.startswith(CANNOT))
        return Verdict(point, NOT_MET, fired=False)


def points(dice: random.Random) -> Iterator[tuple[str, list[Any]]]:
    """Every point, the same in each plan: the sizes go up page by page until nothing is lacking any more."""
    yield from (("small map", [pages]) for pages in range(MAP_PAGES))
    for before in (True, False):
        for pages in range(DISK_PAGES):
            yield "full disk", [pages * PAGE + dice.choice((0, 0, 1, PAGE // 2)), before]
        for step in range(FILE_STEPS):
            yield "file size", [step, before]
    yield from (("descriptors", [left]) for left in range(DESCRIPTORS))
    yield from (("readers", [left]) for left in range(SLOTS_LEFT))
    for asked in ASKED:
        for name in JUMPS_US:
            yield "clock", [name, asked, dice.random() < 0.5]


def examine(scene: Scene) -> Judged:
    """Do what clients do while something is lacking, then again with it, then in an opening anew; judge what is left."""
    found = Judged(violations=[])
    events = list(scene.grown.events)
    told: list[str] = []
    try:
        _lack(scene, events, told, found)
        again = grown.settings(3 * grown.IDS_LATER, clock=ManualClock(PRESENT_US + scene.later_us))
        with scene.target.open(scene.path, **again) as store:
            _go_on(scene, store, events, 2, found)
            found.violations += judge(scene.target, events, store)
    except ResetError as error:
        found.violations.append(f"goes on: with everything back: {error.kind}: {error}")
    except Exception as error:  # noqa: BLE001 - whatever comes out of the library untyped is what is looked for
        found.violations.append(f"typed: {type(error).__name__} came out of the library: {error}")
    fired = bool(told) if scene.fired is None else scene.fired()
    if found.outcome != REFUSED and fired:
        found.outcome = TOLD if told else UNHARMED
    return found


def _lack(scene: Scene, events: list[Event], told: list[str], found: Judged) -> None:
    """The store is opened and used, before or while the thing is lacking, and used again once it is back."""
    with contextlib.ExitStack() as stack:
        lacking = contextlib.ExitStack()
        stack.enter_context(lacking)
        settings = lacking.enter_context(scene.lacking()) if scene.before_open else {}
        try:
            store = scene.target.open(scene.path, **{**grown.settings(), **settings})
        except ResetError as error:
            found.outcome = REFUSED
            told.append(error.kind)
            found.violations += _named(error)
            return
        stack.callback(store.close)
        if not scene.before_open:
            lacking.enter_context(scene.lacking())
        client = Client(scene.target, store, events.append, first_op=grown.IDS_LATER)
        for op in _ops(scene, 0):
            answer = client.do(op)
            if answer.answer != "acknowledged":
                told.append(answer.error)
        for user in dict.fromkeys(op.user for op in _ops(scene, 0)):
            with contextlib.suppress(ResetError):
                store.load(user)
        if scene.lasts:  # it comes back with an opening alone
            return
        lacking.close()  # and the store stays open
        _go_on(scene, store, events, 1, found)


def _named(error: ResetError) -> list[str]:
    return [] if len(str(error)) > 20 else [f"told: {error.kind} does not say what is lacking: {error}"]


def _ops(scene: Scene, stage: int) -> list[Op]:
    found = []
    for user in list(scene.grown.sent)[:2]:
        n = scene.grown.next(user) + 6 * stage  # a measurement and a batch of five each time
        found += [Op("measure", user, n), Op("reset", user), Op("batch", user, n + 1), Op("restore", user)]
    return found


def _go_on(scene: Scene, store: Store, events: list[Event], stage: int, found: Judged) -> None:
    """With the thing back, everything that a client asks for is done (INV-12)."""
    client = Client(scene.target, store, events.append, first_op=(stage + 1) * grown.IDS_LATER)
    for op in _ops(scene, stage):
        answer: Told = client.do(op)
        if answer.answer != "acknowledged" and not (stage == 1 and scene.later_us and answer.error in UNTIL_LATER):
            found.violations.append(f"goes on: with everything back, {op.kind} of {op.user!r} got {answer.error}")


def _small_map(target: Target, found: Grown, path: Path, where: list[Any]) -> Scene:
    size = len(found.data) + where[0] * PAGE

    @contextlib.contextmanager
    def lacking() -> Iterator[dict[str, Any]]:
        yield {"limits": StoreLimits(map_bytes=size, map_bytes_max=size)}

    return Scene(target, found, found.copy(path), lacking, before_open=True, lasts=True)


def _full_disk(target: Target, found: Grown, path: Path, where: list[Any]) -> Scene:
    left, before = where
    limits.own_mounts()
    disk = limits.SmallDisk(path.with_name("disk"), 4 * len(found.data) + (1 << 21))
    copy = found.copy(disk.path / "store")

    @contextlib.contextmanager
    def lacking() -> Iterator[dict[str, Any]]:
        disk.fill(left)
        try:
            yield {}
        finally:
            disk.relieve()

    return Scene(target, found, copy, lacking, before_open=before)


def _file_size(target: Target, found: Grown, path: Path, where: list[Any]) -> Scene:
    step, before = where
    copy = found.copy(path)
    most = len(found.data) * step // FILE_STEPS // PAGE * PAGE + (PAGE if step % 2 else 0)

    @contextlib.contextmanager
    def lacking() -> Iterator[dict[str, Any]]:
        with limits.limited(resource.RLIMIT_FSIZE, most):
            yield {}

    return Scene(target, found, copy, lacking, before_open=before)


def _descriptors(target: Target, found: Grown, path: Path, where: list[Any]) -> Scene:
    @contextlib.contextmanager
    def lacking() -> Iterator[dict[str, Any]]:
        with limits.few_descriptors(where[0]):
            yield {}

    return Scene(target, found, found.copy(path), lacking, before_open=True)


def _readers(target: Target, found: Grown, path: Path, where: list[Any]) -> Scene:
    readers = limits.Readers()
    taken: list[int] = []
    opened = dict[str, Any](opener=readers.opener)

    def with_slots(at: Path, **settings: Any) -> Store:
        return target.open(at, **{**opened, **settings})

    @contextlib.contextmanager
    def lacking() -> Iterator[dict[str, Any]]:
        taken.append(readers.take(where[0]))
        try:
            yield {}
        finally:
            readers.give_back()

    return Scene(_Opening(target, with_slots), found, found.copy(path), lacking, before_open=False, fired=lambda: taken[0] > 0)


def _clock(target: Target, found: Grown, path: Path, where: list[Any]) -> Scene:
    name, asked, lasting = where
    clock = limits.JumpingClock(PRESENT_US, asked, JUMPS_US[name], lasting=lasting)

    @contextlib.contextmanager
    def lacking() -> Iterator[dict[str, Any]]:
        try:
            yield {"clock": clock}
        finally:
            clock.settle()

    return Scene(target, found, found.copy(path), lacking, before_open=True, fired=lambda: clock.jumped,
                 later_us=max(JUMPS_US[name], 0) + 2 * DAY_US)


class _Opening(Target):
    """A target whose stores are opened through something else."""

    def __init__(self, target: Target, opening: Callable[..., Store]) -> None:
        super().__init__(**{name: getattr(target, name) for name in target.__dataclass_fields__})
        object.__setattr__(self, "_opening", opening)

    def open(self, path: Path, **settings: Any) -> Store:
        """The store at `path`."""
        store: Store = self._opening(path, **settings)  # type: ignore[attr-defined]
        return store


Scenes = Callable[[Target, Grown, Path, list[Any]], Scene]
SCENES: Final[dict[str, Scenes]] = {
    "small map": _small_map, "full disk": _full_disk, "file size": _file_size, "descriptors": _descriptors, "readers": _readers,
    "clock": _clock,
}
"""What may be lacking, by name."""
