"""Recovery of one user: restore an older version, or walk back past damage to the newest good one.

"Nothing stored" and "nothing readable" are different answers, and only the first may start an initial reset.  What an
unreadable head held is moved aside, never overwritten, and measurements that a walk-back leaves out are quarantined
with the reason, in the same commit.
"""

from __future__ import annotations

import contextlib
from itertools import islice
from typing import Any, Final, NamedTuple

from statemachine import audit, codec
from statemachine.attempt import Attempt, Context, ResetResult
from statemachine.audit import Entry, Personal, Public
from statemachine.errors import ResetError, StoreCorrupt, UserUnknown, VersionPruned
from statemachine.state import user_key
from statemachine.store import Store, identities, keys, log
from statemachine.store.draft import Draft, newest_version
from statemachine.store.records import ACCEPTED, QUARANTINED, Head, Image, Loaded, Pin
from statemachine.transaction import ResetTransaction

UNRECOVERABLE: Final = "state.unrecoverable"
ROWS_LOOKED_AT_MAX: Final = 1_000


class Recovered(NamedTuple):
    """What a walk-back did: the version it went back to, the version that stands now, measurements left out."""

    user: str
    from_version: int
    version: int
    left_out: int
    attempt_id: str = ""


def restore(context: Context, attempt: Attempt, version: int) -> ResetResult:
    """Make an older version the new head, as a version of its own; raises as `ResetTransaction.commit` and VersionPruned.

    The restored state passes the rules in force, or the attempt is rolled back.  It ends any probation.  The version before a
    reset under probation is taken from the pin where the log cannot give it any more.
    """
    wanted = _state_of(context.store, attempt.user, version)
    tx = ResetTransaction(context, attempt)
    try:
        with tx:
            tx.probation = False
            tx.details = {"restored_version": version}
            tx.apply(f"restore version {version}", lambda _: wanted)
            return tx.commit()
    except BaseException as error:
        tx.tell_doubt(error)
        raise


def _state_of(store: Store, user: str, version: int) -> Any:
    """The state of an older version, by the log, or else by the pin, which lies away from the user's records."""
    try:
        loaded = store.load(user, version)
    except (StoreCorrupt, VersionPruned):
        pin = _pinned(store, user_key(user))
        if pin is None or pin.version != version or not version:  # the pin of a first state is empty
            raise
        return store.estimator.decode(pin.state)
    return loaded.state if loaded else None


def _pinned(store: Store, key: bytes) -> Pin | None:
    draft = Draft(store.engine)
    with contextlib.suppress(StoreCorrupt):
        head = draft.head(key)
        if head is not None and head.probation is not None:
            return draft.pin(key)
    return None


def last_known_good(store: Store, user: str) -> int:
    """The version to go back to when the head is not to be trusted.

    During probation that is the version before the reset under probation.  Otherwise it is the newest before the head
    that reads and passes the rules, and for a head that cannot be read the newest of all.  Raises UserUnknown where no
    state is stored, VersionPruned where nothing stood before, StoreCorrupt where nothing earlier can be read.
    """
    key, draft = user_key(user), Draft(store.engine)  # the store may be open for reading alone
    try:
        head = draft.head(key)
    except StoreCorrupt as error:
        good = store.newest_good(user)
        if good is None:
            message = f"no version of {user!r} can be read: restore the store from a backup ({error.problem})"
            raise StoreCorrupt(message, user=user) from error
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

    Durable on return.  `actor` and `reason` are recorded where a person asked for it.  Raises StoreCorrupt when no version
    can be read: the user is not changed, and the audit log says so once ("state.unrecoverable"), or each time a person asks.
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
        error = StoreCorrupt(message, user=user)
        if actor or not _known_unrecoverable(store, key, newest):
            personal = Personal(user=user, at_us=at_us, trigger="no version can be read", reason=reason, actor=actor)
            _say_unrecoverable(store, personal, newest, error)
        raise error
    if damaged is not None:
        move_aside(draft, key, newest + 1, damaged)
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


def move_aside(draft: Draft, key: bytes, version: int, damaged: bytes) -> None:
    """Keep the bytes of a head that could not be read, under the version that replaces it or the next that is free.

    A head that is made anew from a whole log gives out no number, and so the same one may be next more than once.
    """
    while draft.expect(keys.damaged(key, version)) is not None:
        version += 1
    draft.puts[keys.damaged(key, version)] = damaged


def _known_unrecoverable(store: Store, key: bytes, newest: int) -> bool:
    """Whether the log says already that nothing of the user can be read, and nothing was committed for the user since."""
    for at, _ in islice(store.engine.scan(keys.audit_of(key, 0), keys.after(key + b"\0a"), reverse=True), ROWS_LOOKED_AT_MAX):
        row_key = keys.audit(int.from_bytes(at[-8:], "big"))
        with contextlib.suppress(StoreCorrupt):
            public = audit.parse(codec.unseal(row_key, store.engine.get(row_key) or b"")).public
            if public.event == UNRECOVERABLE:
                return public.base_version == newest
            if public.new_version is not None:
                return False
    return False


def _say_unrecoverable(store: Store, personal: Personal, newest: int, error: StoreCorrupt) -> None:
    draft = store.draft()
    public = Public(event=UNRECOVERABLE, outcome="unrecoverable", attempt_id=store.ids.attempt_id(), kind="recovery",
                    base_version=newest)
    draft.entries.append(Entry(public, personal, audit.context_now()))
    try:
        store.commit(draft)
    except ResetError as trouble:
        raise error from trouble


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
    head = Head(newest, estimator.encode(good.state), good.author, estimator.kernel, images_at_hand(store, key),
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


def images_at_hand(store: Store, key: bytes) -> tuple[int, ...]:
    """The versions of the newest images in a user's log that read, ascending, as a head lists them."""
    images = (v for v, value in log.versions(store.engine.scan, key) if _is_image(keys.version(key, v), value))
    return tuple(islice(images, log.IMAGES_AT_HAND))[::-1]


def _is_image(key: bytes, value: bytes) -> bool:
    try:
        content = codec.unseal(key, value)
        return content[:1] == bytes((codec.IMAGE,)) and bool(codec.unpack(Image, content[1:]))
    except StoreCorrupt:
        return False
