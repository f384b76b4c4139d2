"""Settle what owners that died left in their marks: every attempt that began gets its one outcome (INV-03, INV-07)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from statemachine.audit import Entry, Personal, Public
from statemachine.breaker import BreakerPolicy, Now
from statemachine.errors import ConflictError
from statemachine.marks import ASIDE, ENDED, RUNNING, DeadMarks, files
from statemachine.state import user_key
from statemachine.store import intents, keys
from statemachine.store.draft import BreakerEvent, Draft

if TYPE_CHECKING:
    from pathlib import Path

    from statemachine.clock import Clock
    from statemachine.marks import Mark
    from statemachine.store.committer import Committer
    from statemachine.store.engine import Engine

ANY_POLICY: Final = BreakerPolicy()
"""What died, or only waited, opens no breaker by any policy."""


def settle_dead(engine: Engine, committer: Committer, clock: Clock, owners: Path) -> int:
    """Settle every file of marks whose owner is gone, and intents without a file; how many attempts were settled as interrupted.

    Idempotent: a crash in the middle leaves the file, and what was written already is found by its attempt id.
    """
    interrupted = 0
    for owner, path in files(owners):
        if owner == committer.owner:
            continue
        with engine.turn():  # whoever makes such a file locks it within its own turn
            dead = DeadMarks.take(path)
        if dead is None:
            continue
        try:
            draft = Draft(engine)
            for mark in dead.marks():
                interrupted += _settle(draft, mark, clock)
            if dead.unread:
                draft.entries.append(_set_aside(dead, committer, clock))
            if engine.get(keys.owner(owner)) is not None:
                draft.delete(keys.owner(owner))
            if draft:
                committer.commit(draft)
        except BaseException:
            dead.leave()
            raise
        if dead.unread:
            dead.set_aside()
        else:
            dead.remove()
    return interrupted + _settle_intents(engine, committer, clock, owners)


def _settle_intents(engine: Engine, committer: Committer, clock: Clock, owners: Path) -> int:
    """Settle what only intents tell of: the file of marks did not outlive the machine."""
    while True:
        draft, interrupted = Draft(engine), 0
        for key, value, mark in intents.left(engine, owners):
            draft.expect_as(key, value)
            draft.delete(key)
            interrupted += _settle(draft, mark, clock)
        if not draft:
            return 0
        try:
            committer.commit(draft)
        except ConflictError:
            continue  # another process is opening the store too
        return interrupted


def _set_aside(dead: DeadMarks, committer: Committer, clock: Clock) -> Entry:
    """The row that a file holds marks which cannot be read: of another version, and no reason to stop the opening (INV-11)."""
    public = Public(event="marks.set_aside", outcome="set_aside", kind="marks", attempt_id=committer.ids.attempt_id())
    details = {"owner": int(dead.path.name), "slots": dead.unread, "file": dead.path.name + ASIDE}
    return Entry(public, Personal(at_us=clock.now_us(), trigger="marks that cannot be read", details=details))


def _settle(draft: Draft, mark: Mark, clock: Clock) -> int:
    if draft.get(keys.attempt(mark.attempt_id)) is not None:
        return 0
    draft.entries.append(mark.entry())
    wall_us = clock.now_us()
    # Neither result is refused by a breaker that cannot be read, which stops its own user and not the opening (INV-11).
    draft.add_event(BreakerEvent(
        user_key(mark.user), ANY_POLICY, "died" if mark.state == RUNNING else "void", mark.attempt_id,
        mark.generation, mark.generation, Now(mark.at_us, wall_us), (mark.suspect, mark.base_version),
    ))
    return int(mark.state != ENDED)
