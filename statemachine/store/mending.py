"""The end of the audit log, found again: one record says where the chain goes on, and without it nothing can be committed.

It holds nothing that the newest row does not say, so a damaged one is made anew from that row.  A log whose tail was cut off
at the same time cannot be told from this: that is what a hash noted elsewhere is for (`audit verify --against`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from statemachine import audit, codec
from statemachine.errors import StoreCorrupt, StoreForeign
from statemachine.store import keys
from statemachine.store.committer import audit_tail

if TYPE_CHECKING:
    from statemachine.store import Store
    from statemachine.store.engine import Engine


def end_is_lost(engine: Engine) -> bool:
    """Whether the record of the end of the audit log cannot be read."""
    try:
        audit_tail(engine)
    except StoreCorrupt:
        return True
    return False


def find_end(store: Store, *, actor: str, reason: str) -> str | None:
    """Make the record anew from the newest row, then settle what waited for it; None where it reads.

    The id of the act, durable and audited on return ("audit.end_found").  Raises StoreCorrupt, having changed nothing, where
    the newest row cannot be read either: then the store is to be restored from a backup.
    """
    if not end_is_lost(store.engine):
        return None
    seq, digest = _newest(store.engine)
    attempt_id = store.ids.attempt_id()
    draft = store.draft()
    draft.expect(keys.CHAIN)
    draft.audit_end = seq.to_bytes(8, "big") + digest
    draft.entries.append(audit.act("audit.end_found", attempt_id, actor=actor, reason=reason, at_us=store.clock.now_us(),
                                   details={"end": seq, "end_hash": digest.hex()}))
    store.commit(draft)
    store.settle_dead()
    return attempt_id


def _newest(engine: Engine) -> tuple[int, bytes]:
    _, key = engine.ends(keys.AUDIT, keys.after(keys.AUDIT))
    if key is None:
        return 0, audit.GENESIS
    seq = int.from_bytes(key[len(keys.AUDIT):], "big")
    try:
        row = audit.parse(codec.unseal(key, engine.get(key) or b""))
        why = "" if row.public.seq == seq else f"it was written as row {row.public.seq}"
    except (StoreCorrupt, StoreForeign) as error:
        why = error.problem
    if why:
        message = (f"neither the end of the audit log nor its newest row, {seq}, can be read ({why}): restore the store from a "
                   "backup with `resetguard restore-store`")
        raise StoreCorrupt(message)
    return seq, row.hash
