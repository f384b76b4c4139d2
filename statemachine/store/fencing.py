"""Fence an owner: a process that is stopped still holds its lock, and must not commit when it goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from statemachine import audit
from statemachine.clock import begun_us
from statemachine.errors import InvalidInput
from statemachine.marks import DeadMarks, files, under_way
from statemachine.store import engine as door
from statemachine.store import keys, presence
from statemachine.store.settle import settle_dead

if TYPE_CHECKING:
    from pathlib import Path

    from statemachine.store import Store


class Owner(NamedTuple):
    """A process that has the store open: its number, whether it holds its lock, whether it is this one, whether it is fenced.

    `pid` and `since_us`, when that process began, are None where the system does not tell.  `attempts` it has begun and
    not ended, the oldest of them at `oldest_us`, None where none or where its id does not tell.
    """

    owner: int
    alive: bool
    own: bool
    fenced: bool = False
    pid: int | None = None
    since_us: int | None = None
    attempts: int = 0
    oldest_us: int | None = None


def owners(store: Store) -> list[Owner]:
    """Every owner that is not settled, by number; a stopped process is alive.  A fenced one is there while it holds its lock."""
    directory = store.path / door.OWNERS
    known = {int.from_bytes(key[len(keys.OWNER):], "big") for key, _ in store.engine.scan(keys.OWNER, keys.after(keys.OWNER))}
    found = []
    for number in sorted(known.union(owner for owner, _ in files(directory))):
        own = number == store.committer.owner
        path = directory / str(number)
        with store.engine.turn():  # whoever makes such a file locks it within its own turn
            dead = None if own else DeadMarks.take(path)
        if dead is not None:
            dead.leave()
        alive = own or (dead is None and path.exists())
        if alive or number in known:
            found.append(_looked_at(path, Owner(number, alive, own, fenced=number not in known)))
    return found


def _looked_at(path: Path, owner: Owner) -> Owner:
    begun = under_way(path)
    instants = [at_us for mark in begun if (at_us := begun_us(mark.attempt_id)) is not None]
    pid = next(iter(presence.holders(path)), None)
    return owner._replace(pid=pid, since_us=None if pid is None else presence.since_us(pid), attempts=len(begun),
                          oldest_us=min(instants, default=None))


def fence(store: Store, owner: int, *, actor: str, reason: str) -> str:
    """Forbid an owner every later commit; the id of the act, durable and audited on return.

    The probes that it holds are given back by the same commit (INV-12).  Its marks are settled now if its lock is free, else
    at the first opening after it lets go.  Raises InvalidInput for this process itself and for an owner that is not there,
    StoreBusy while the owner holds the writer's turn.
    """
    key = keys.owner(owner) if 0 < owner < 2**64 else b""
    if owner == store.committer.owner or not key or store.engine.get(key) is None:
        known = ", ".join(str(found.owner) for found in owners(store) if not (found.own or found.fenced)) or "none"
        message = f"there is no other owner {owner} to fence; there are: {known}"
        raise InvalidInput(message)
    draft = store.draft()
    draft.delete(key)
    draft.fenced = owner
    attempt_id = store.ids.attempt_id()
    draft.entries.append(audit.act("owner.fenced", attempt_id, actor=actor, reason=reason, at_us=store.clock.now_us(),
                                   details={"fenced": owner}))
    store.commit(draft)
    settle_dead(store.engine, store.committer, store.clock, store.path / door.OWNERS)
    return attempt_id
