"""A store that a workload has left, closed: grown once, copied for each fault, with what its clients were told of it."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple
from unittest import mock

from chaos.history import Event
from chaos.target import Target
from chaos.workload import PRESENT_US, Client, Op, generate
from statemachine import Store, audit, marks
from statemachine.store import engine, surroundings
from statemachine.testing import CountingIds, ManualClock

USERS: Final = ("ann", "bob", "ünï/çødé", "zoe")
OPS: Final = 40
WIDE: Final = 120
"""So many operations make the audit row of one reset longer than LMDB keeps in a page of its tree."""
SLOTS: Final = 64
IDS_LATER: Final = 1_000_000
"""Ids after which those count who come to a store in which others have counted."""
_WIDE_NAME: Final = "\0wide"


class Grown(NamedTuple):
    """A store at rest.

    `events`: what its clients did and were told.  `data`: its data file.  `earlier`: that file as it was at some commits
    before, oldest first.  `sent`: how many measurements of each user were sent.
    """

    path: Path
    events: tuple[Event, ...]
    data: bytes
    earlier: tuple[bytes, ...]
    sent: dict[str, int]

    def copy(self, path: Path) -> Path:
        """The store's files at another place, as a backup would put them there; LMDB makes its lock file anew."""
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(self.path, path, ignore=shutil.ignore_patterns(engine.LMDB_LOCK))
        return path

    def next(self, user: str) -> int:
        """The number of the user's next measurement, which is later than all before."""
        return self.sent.get(user, 0)


def settings(first_id: int = IDS_LATER, **others: Any) -> dict[str, Any]:
    """What stores of the harness are opened with: a clock that stands, and ids that count."""
    return {"clock": ManualClock(PRESENT_US), "ids": CountingIds(first_id), **others}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """While it is open, stores copy no rows to structlog, which keeps a thread for each, and have small files of marks.

    They are taken to lie on a disk of this machine, as those of the harness do.
    """
    with (
        mock.patch.object(audit.Emitter, "_put"), mock.patch.object(marks, "SLOTS", SLOTS),
        mock.patch.object(surroundings, "file_system", return_value=None),
    ):
        yield


def same(state: Any) -> Any:
    """The operation that changes nothing."""
    return state


def grow(target: Target, path: Path, seed: int, *, ops: int = OPS, snapshots: int = 0) -> Grown:
    """Grow a store at `path` by `ops` operations, with `snapshots` earlier images of its file; within `quiet`.

    One reset has so many operations that its audit row lies in pages of its own.
    """
    shutil.rmtree(path, ignore_errors=True)
    target = dataclasses.replace(target, mutations={**target.mutations, _WIDE_NAME: (("look once more", same),) * WIDE})
    wide = sorted(target.mutations).index(_WIDE_NAME)
    todo = [*(Op("measure", user) for user in USERS), *generate(seed, ops, USERS, first=1)]
    todo.insert(len(todo) * 2 // 3, Op("mutate", random.Random(seed).choice(USERS), wide))
    events: list[Event] = []
    earlier = []
    sent = {op.user: op.n + op.sends for op in todo if op.sends}
    with target.open(path, **settings(0)) as store:
        client = Client(target, store, events.append)
        for number, op in enumerate(todo):
            client.do(op)
            if snapshots and number % max(1, len(todo) // snapshots) == len(todo) // snapshots // 2:
                earlier.append((path / engine.DATA).read_bytes())
    return Grown(path, tuple(events), (path / engine.DATA).read_bytes(), tuple(earlier), sent)


def more(grown: Grown, users: tuple[str, ...] = USERS) -> list[Op]:
    """A few operations that each user goes on with: a measurement and a reset by hand."""
    return [op for user in users for op in (Op("measure", user, grown.next(user)), Op("reset", user))]


def clients(target: Target, store: Store, grown: Grown) -> tuple[Client, list[Event]]:
    """A client that goes on where those of the grown store have ended, and the history it writes on."""
    events = list(grown.events)
    return Client(target, store, events.append, first_op=IDS_LATER), events
