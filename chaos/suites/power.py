"""Power cuts: the images that a disk may keep of commits, and of the making, compaction, backup and restoring of a store.

A disk that lies about a sync is another suite's matter: here what was synced is there, and of the rest any part.
Durability `process` promises nothing after a power cut, and is left out.
"""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple
from unittest import mock

import msgspec

from chaos import watched
from chaos.faults import afterwards, images, libc, scenes
from chaos.faults.afterwards import Afterwards, Came
from chaos.faults.images import Image
from chaos.faults.scenes import Scene
from chaos.suite import Point, Session, Verdict
from statemachine import audit, marks
from statemachine.store import surroundings

COMMITS_IMAGES: Final = 3_000
"""Wanted of each scene of commits: it has many more."""
FILES_IMAGES: Final = 300
SCENES: Final = ("each", "creation", "backup", "group", "each", "compaction", "restore-store", "group",
                 "durable intents", "durable intents", "each", "group", "each", "group")
"""The scenes of a short plan, in their order; the n-th of a kind has a workload of its own.  A worker takes whole ones."""
SLOTS: Final = 64
"""Slots in the files of marks that the judge's stores make: the files are new for each image, and 2 MiB take their time."""
HANG_S: Final = 30
"""Longer than this no image takes; SIGALRM ends the child then, and is what came of it."""


class Plan(NamedTuple):
    """A scene to record, the number of the workload in it, and how many images of it are wanted."""

    kind: str
    number: int
    images: int


class Power:
    """The suite."""

    name = "power"
    summary = (
        f"power cuts in commits, creation, compaction, backup and restore-store: each image is read and judged against what was "
        f"told; the first of each content and one in {afterwards.WENT_ON_WITH} of the rest are then written on")
    floor = 30_000
    grows = True
    weight = 3.0
    witnesses = frozenset({
        afterwards.AS_TOLD, afterwards.LANDED, afterwards.ABSENT, afterwards.WHOLE, afterwards.OLD, afterwards.NEW})

    def __init__(self, images_max: int = COMMITS_IMAGES) -> None:
        """`images_max` is for a short look: of no scene more are wanted."""
        self._images_max = images_max

    def unavailable(self) -> str:
        """Why LMDB's writes cannot be recorded here."""
        return libc.unavailable()

    def run(self, session: Session) -> Iterator[Verdict]:
        """Record a scene of this worker's share, judge its images, and so on to the next."""
        root = session.scratch / f"power-{session.share}"
        try:
            for plan in session.mine(plans(session.times)):
                scene = _recorded(session, plan.kind, plan.number, root)
                found = images.images(scene.cuts, min(plan.images, self._images_max), _seed(session, plan.kind, plan.number))
                yield from _verdicts(session, scene, list(found), root)
        finally:
            shutil.rmtree(root, ignore_errors=True)

    def replay(self, session: Session, point: Point) -> Verdict:
        """The image of that point anew: whatever was done with it before, it is gone on with under every kind of marks."""
        kind, number, cut, sectors, names, grown = point.where
        root = session.scratch / f"power-{session.share}"
        try:
            scene = _recorded(session, kind, number, root)
            image = Image(point.fault, cut, int(sectors, 16), int(names, 16), bool(grown))
            image = image._replace(key=images.key_of(scene.cuts[cut], image))
            return next(_verdicts(session, scene, [image], root, every=True))
        finally:
            shutil.rmtree(root, ignore_errors=True)


def plans(times: int) -> Iterator[Plan]:
    """The scenes of a plan that is so many times the short one."""
    numbers = dict[str, int]()
    for _ in range(times):
        for kind in SCENES:
            numbers[kind] = numbers.get(kind, -1) + 1
            yield Plan(kind, numbers[kind], COMMITS_IMAGES if kind in scenes.COMMITS else FILES_IMAGES)


def _seed(session: Session, kind: str, number: int) -> str:
    return f"{session.seed}/{kind}/{number}"


def _recorded(session: Session, kind: str, number: int, root: Path) -> Scene:
    return scenes.record(session.target, session.seed, kind, number, root)


def _verdicts(session: Session, scene: Scene, found: list[Image], root: Path, *, every: bool = False) -> Iterator[Verdict]:
    work = _Work(Afterwards(session.target, scene, root, every=every))
    for index, came in watched.each(found, work.judge):
        yield _verdict(scene, found[index], came)


class _Work:
    """What a child does; at its first image it becomes one that a hang ends, and whose stores are light."""

    def __init__(self, judge: Afterwards) -> None:
        self._judge = judge
        self._begun = False

    def judge(self, image: Image) -> Came:
        if not self._begun:
            self._begun = True
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            mock.patch.object(marks, "SLOTS", SLOTS).start()
            mock.patch.object(audit.Emitter, "emit").start()  # the copy that goes to structlog
            mock.patch.object(surroundings, "file_system", return_value=None).start()  # it reads the table of mounts each time
        signal.alarm(HANG_S)
        return self._judge.judge(image)


def _verdict(scene: Scene, image: Image, came: Any) -> Verdict:
    where = [scene.kind, scene.number, image.cut, f"{image.sectors:x}", f"{image.names:x}", int(image.grown)]
    point = Point(Power.name, image.fault, where)
    if isinstance(came, watched.Died):
        hung = came.signal == signal.SIGALRM
        return Verdict(point, "hung" if hung else "died", ((f"progress: it hung for {HANG_S} s" if hung else f"alive: {came}"),))
    told = msgspec.convert(came, Came)
    return Verdict(point, told.outcome, told.violations)
