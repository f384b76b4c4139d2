"""Recovery of one user: restore an older version, or walk back past damage to the newest good one.

"Nothing stored" and "nothing readable" are different answers, and only the first may start an initial reset.  What an
unreadable head held is moved aside, never overwritten, and measurements that a walk-back leaves out are quarantined
with the reason, in the same commit.
"""

from __future__ import annotations

import contextlib
from itertools import islice
from typing import NamedTuple

from statemachine import codec
from statemachine.audit import Entry, Personal, Public
from statemachine.errors import StoreCorrupt, UserUnknown, VersionPruned
from statemachine.state import user_key
from statemachine.store import Store, identities, keys, log
from statemachine.store.draft import Draft, newest_version
from statemachine.store.records import ACCEPTED, QUARANTINED, Head, Image, Loaded
from statemachine.transaction import Attempt, Context, ResetResult, ResetTransaction


class Recovered(NamedTuple):
    """What a walk-back did: the version it went back to, the version that stands now, measurements left out."""

    user: str
    from_version: int
    version: int
    left_out: int
    attempt_id: str = ""


def restore(context: Context, attempt: Attempt, version: int) -> ResetResult:
    """Make an older version the new head, as a version of its own; raises as `ResetTransaction.commit` and VersionPruned.

    The restored state passes the rules in force, or the attempt is rolled back.  It ends any probation.
    """
    loaded = context.store.load(attempt.user, version)
    with ResetTransaction(context, attempt) as tx:
        tx.probation = False
        tx.details = {"restored_version": version}
        tx.apply(f"restore version {version}", lambda _: loaded.state if loaded else None)
        return tx.commit()


def last_known_good(store: Store, user: str) -> int:
    """The version to go back to when the head is not to be trusted.

    During probation that is the version before the reset under probation.  Otherwise it is the newest before the head
    that reads and passes the rules, and for a head that cannot be read the newest of all.  Raises UserUnknown where no
    state is stored, VersionPruned where nothing stood before, StoreCorrupt where nothing earlier can be read.
    """
    key, draft = user_key(user), store.draft()
    try:
        head = draft.head(key)
    except StoreCorrupt:
        good = store.newest_good(user)
        if good is None:
            raise
        return good.version
    if head is None:
        message = f"no state is stored for {user!r}"
        raise UserUnknown(message, user=user)
    pin = draft.pin(key) if head.probation is not None else None
    if pin is not None and pin.version:
        return pin.version
    if pin is not None or head.version == head.first:
        message = f"nothing stood before the state of {user!r}: there is no earlier good version to go back to"
        raise VersionPruned(message, first=head.first, last=head.version, user=user)
    for version, _ in log.versions(store.engine.scan, key):
        if version < head.version:
            with contextlib.suppress(StoreCorrupt):
                loaded = store.load(user, version)
                if loaded is not None and not loaded.violations:
                    return version
    message = f"no version of {user!r} before its head, {head.version}, can be read and passes the rules in force"
    raise StoreCorrupt(message, user=user, newest_good=head.version)


def recover(context: Context, user: str, at_us: int, *, actor: str = "", reason: str = "") -> Recovered | None:
    """Walk back past damage; None when the user's head and log agree and there is nothing to do.

    Durable on return.  `actor` and `reason` are recorded where a person asked for it.  Raises StoreCorrupt, having
    changed nothing, when no version can be read.
    """
    store, key = context.store, user_key(user)
    began_us = store.clock.monotonic_us()
    draft = store.draft()
    if _head_reads(draft, key):
        return None
    damaged = draft.expect(keys.head(key))
    newest = newest_version(store.engine, key)
    good = store.newest_good(user)
    if good is None:
        message = f"no version of {user!r} can be read: restore the store from a backup, or rebuild the user from its files"
        raise StoreCorrupt(message, user=user)
    if damaged is not None:
        draft.puts[keys.damaged(key, newest + 1)] = damaged
    attempt_id = store.ids.attempt_id()
    version, left_out = _replace_head(store, draft, good, newest, at_us, attempt_id)
    public = Public(event="state.recovered", outcome="recovered", attempt_id=attempt_id, kind="recovery",
                    base_version=newest, new_version=version, duration_us=store.clock.monotonic_us() - began_us)
    details = {"from_version": good.version, "left_out": left_out, "head_bytes_kept": damaged is not None}
    personal = Personal(user=user, at_us=at_us, trigger="the head could not be read", reason=reason, actor=actor,
                        details=details)
    draft.entries.append(Entry(public, personal))
    store.commit(draft)
    return Recovered(user, good.version, version, left_out, attempt_id)


def _head_reads(draft: Draft, key: bytes) -> bool:
    try:
        draft.head(key)
    except StoreCorrupt:
        return False
    return True


def _replace_head(  # noqa: PLR0913 - what the new head is made of
    store: Store, draft: Draft, good: Loaded, newest: int, at_us: int, attempt_id: str,
) -> tuple[int, int]:
    """The head anew in the draft: as it was where the log is whole, else a new version after the newest number."""
    key, estimator = user_key(good.user), store.estimator
    state_us = estimator.at_us(good.state)
    newest_first = (v for v, value in log.versions(store.engine.scan, key) if _is_image(keys.version(key, v), value))
    images = tuple(islice(newest_first, log.IMAGES_AT_HAND))[::-1]  # and the rest of a long log is not read
    head = Head(newest, estimator.encode(good.state), good.author, estimator.kernel, images,
                store.version_range(good.user)[0], state_us, state_us, store.validator.fingerprint)
    draft.delete(keys.pin(key))
    if good.version == newest:
        draft.put(keys.head(key), codec.pack(head))
        return newest, 0
    left_out = 0
    for at, kept in draft.identities(key, state_us):
        if kept.disposition == ACCEPTED:
            reason = f"its version was damaged; the state went back to version {good.version}"
            identities.move(draft, key, at, kept, QUARANTINED, reason)
            left_out += 1
    new = log.NewVersion(good.state, attempt_id, "recovery", at_us)
    after = log.append(draft, estimator, key, head, new, run_since_us=state_us, reset_us=state_us, probation=None,
                       rules=store.validator.fingerprint, versions_max=store.limits.versions_max)
    return after.version, left_out


def _is_image(key: bytes, value: bytes) -> bool:
    try:
        content = codec.unseal(key, value)
        return content[:1] == bytes((codec.IMAGE,)) and bool(codec.unpack(Image, content[1:]))
    except StoreCorrupt:
        return False
