"""Fence an owner: a process that is stopped still holds its lock, and must not commit when it goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from statemachine import audit
from statemachine.errors import InvalidInput
from statemachine.marks import DeadMarks
from statemachine.store import engine as door
from statemachine.store import keys
from statemachine.store.settle import settle_dead

if TYPE_CHECKING:
    from statemachine.store import Store


class Owner(NamedTuple):
    """A process that has the store open: its number, whether it holds its lock, whether it is this one."""

    owner: int
    alive: bool
    own: bool


def owners(store: Store) -> list[Owner]:
    """Every owner that is neither fenced nor settled, by number; a stopped process is alive."""
    found = []
    for key, _ in store.engine.scan(keys.OWNER, keys.after(keys.OWNER)):
        number = int.from_bytes(key[len(keys.OWNER):], "big")
        own = number == store.committer.owner
        path = store.path / door.OWNERS / str(number)
        with store.engine.turn():  # whoever makes such a file locks it within its own turn
            dead = None if own else DeadMarks.take(path)
        if dead is not None:
            dead.leave()
        found.append(Owner(number, own or (dead is None and path.exists()), own))
    return found


def fence(store: Store, owner: int, *, actor: str, reason: str) -> str:
    """Forbid an owner every later commit; the id of the act, durable and audited on return.

    The probes that it holds are given back by the same commit (INV-12).  Its marks are settled now if its lock is free, else
    at the first opening after it lets go.  Raises InvalidInput for this process itself and for an owner that is not there,
    StoreBusy while the owner holds the writer's turn.
    """
    key = keys.owner(owner) if 0 < owner < 2**64 else b""
    if owner == store.committer.owner or not key or store.engine.get(key) is None:
        known = ", ".join(str(found.owner) for found in owners(store) if not found.own) or "none"
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
