"""What the power is cut in: commits, and the making, compaction, backup and restoring of a store, each recorded once.

A scene is the same whenever it is recorded from the same target and seed: its clock stands still and its ids count.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import xxhash

from chaos.faults.images import Cut, Noted
from chaos.faults.recorder import Recorder, Recording
from chaos.history import Event, Told
from chaos.target import Target
from chaos.workload import BY, PRESENT_US, USERS, Client, Op, generate
from statemachine import BreakerPolicy, Store
from statemachine.store.compaction import compact
from statemachine.store.life import backup, restore_store
from statemachine.testing import CountingIds, ManualClock

STORE: Final = "store"
BACKUP: Final = "backup"
COMMITS: Final[dict[str, dict[str, Any]]] = {
    "each": {"durability": "each"}, "group": {"durability": "group"}, "durable intents": {"intents": "durable"},
}
"""The scenes of commits, each with the settings that the store is opened with."""
OTHERS: Final = ("creation", "compaction", "backup", "restore-store")
OPS: Final = 12
FEW: Final = 2
"""Users in a scene: few, so that each has a history."""
FAILURES: Final = BreakerPolicy().failures_max
LATER: Final = 1_000_000
"""Ids of whoever opens a store that was used begin so much higher."""
IDS_OF_A_SCENE: Final = 1_000
"""The ids of each scene begin where those of another end, so that no image of one is an image of the other."""


class Done(NamedTuple):
    """The caller of what changes files was told that it was done; `named` is what it was told to find there."""

    named: str = ""


class Answer(NamedTuple):
    """An event of a client's history, and the number of the last commit when it happened."""

    event: Event
    commit: int


class Scene(NamedTuple):
    """A recording, the cuts in it, all that was noted, and the `history` of the store that was there before it began.

    `sent`: a number of measurement that no user has reached.
    """

    kind: str
    number: int
    recording: Recording
    cuts: list[Cut]
    notes: list[Any]
    history: list[Event]
    sent: int

    @property
    def settings(self) -> dict[str, Any]:
        """What the store is opened with."""
        return COMMITS.get(self.kind, {})

    def told(self, cut: Cut) -> list[Any]:
        """What had been noted when the power went."""
        return self.notes[:cut.notes]

    def events(self, cut: Cut) -> list[Event]:
        """The history of the store until then."""
        return self.history + [note.event for note in self.told(cut) if isinstance(note, Answer)]


def opened(target: Target, path: Path, first_id: int = 0, days: int = 0, **settings: Any) -> Store:
    """A store, as at every opening here: at the same instant, `days` later, and with ids that count."""
    return target.open(path, clock=clock(days), ids=CountingIds(first_id), **settings)


def clock(days: int = 0) -> ManualClock:
    """A clock that stands still, later than every measurement."""
    return ManualClock(PRESENT_US + days * 86_400_000_000)


def record(target: Target, seed: int, kind: str, number: int, root: Path) -> Scene:
    """Record a scene in the directory `root`, which is made and removed."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    ops = _ops(xxhash.xxh3_64_intdigest(f"{seed}/{kind}/{number}".encode()), refused=number % 2 == 1)
    kinds = (*COMMITS, *OTHERS)
    first_id = (number * len(kinds) + kinds.index(kind)) * IDS_OF_A_SCENE
    try:
        if kind in COMMITS:
            recording, history = _commits(target, root, ops, first_id, COMMITS[kind]), list[Event]()
        else:
            recording, history = _FILES[kind](target, root, ops, first_id)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    notes = [entry.what for entry in recording.entries if isinstance(entry, Noted)]
    return Scene(kind, number, recording, list(recording.disk().cuts(recording.entries)), notes, history,
                 max(op.n for op in ops) + OPS)


def _ops(seed: int, *, refused: bool) -> list[Op]:
    """What is done in a scene; with `refused` one user's resets fail until the breaker opens, and are refused from then on."""
    ops = generate(seed, OPS, USERS[:FEW], first=1)
    if refused:
        user = USERS[seed % FEW]
        ops[OPS // 2:OPS // 2] = [Op("raise", user)] * FAILURES + [Op("reset", user)] * 2
    return [Op("measure", user) for user in USERS[:FEW]] + ops


@contextmanager
def _recorded(root: Path) -> Iterator[Recorder]:
    recorder = Recorder(root)
    with recorder.recording():
        yield recorder


def _commits(target: Target, root: Path, ops: list[Op], first_id: int, settings: dict[str, Any]) -> Recording:
    opened(target, root / STORE, first_id).close()
    with _recorded(root) as recorder, opened(target, root / STORE, first_id + 1, **settings) as store:
        def note(event: Event) -> None:
            recorder.note(Answer(event, store.engine.info()["last_txnid"]), answers=isinstance(event, Told))

        client = Client(target, store, note)
        for op in ops:
            client.do(op)
    return recorder.recorded()


def _used(target: Target, path: Path, ops: list[Op], first_id: int) -> list[Event]:
    """A store with a history, closed."""
    history: list[Event] = []
    with opened(target, path, first_id) as store:
        client = Client(target, store, history.append)
        for op in ops:
            client.do(op)
    return history


def _creation(target: Target, root: Path, _: list[Op], first_id: int) -> tuple[Recording, list[Event]]:
    with _recorded(root) as recorder, opened(target, root / STORE, first_id) as store:
        recorder.note(Done(store.store_id), answers=True)
    return recorder.recorded(), []


def _compaction(target: Target, root: Path, ops: list[Op], first_id: int) -> tuple[Recording, list[Event]]:
    history = _used(target, root / STORE, ops, first_id)
    with _recorded(root) as recorder:
        done = compact(root / STORE, **BY, estimator=target.estimator, clock=clock(), ids=CountingIds(LATER))
        recorder.note(Done(done.attempt_id), answers=True)
    return recorder.recorded(), history


def _backup(target: Target, root: Path, ops: list[Op], first_id: int) -> tuple[Recording, list[Event]]:
    history = _used(target, root / STORE, ops, first_id)
    with _recorded(root) as recorder, opened(target, root / STORE, LATER) as store:
        recorder.note(Done(backup(store, root / BACKUP).hash), answers=True)
    return recorder.recorded(), history


def _restoring(target: Target, root: Path, ops: list[Op], first_id: int) -> tuple[Recording, list[Event]]:
    history = _used(target, root / "first", ops, first_id)
    with opened(target, root / "first", LATER) as store:
        backup(store, root / BACKUP)
    shutil.rmtree(root / "first")
    with _recorded(root) as recorder:
        recorder.note(Done(restored(target, root, 2 * LATER)), answers=True)
    return recorder.recorded(), history


def restored(target: Target, root: Path, first_id: int, name: str = STORE) -> str:
    """Make a store of the backup in `root`; its id."""
    return restore_store(root / BACKUP, root / name, **BY, estimator=target.estimator, clock=clock(),
                         ids=CountingIds(first_id)).store_id


_FILES: Final[dict[str, Callable[[Target, Path, list[Op], int], tuple[Recording, list[Event]]]]] = {
    "creation": _creation, "compaction": _compaction, "backup": _backup, "restore-store": _restoring,
}
