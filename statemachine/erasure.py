"""What is held about one user: given out whole, or erased so that the audit chain still verifies (INV-10).

`forget` erases a user; `prune_audit` erases the personal parts of old audit rows.  Both leave the digest of what they drop, and
add a row of their own (`audit.ANCHORS`) that says which rows were erased, by whom and why, and does not name the user.

What is not the store's to find: a user's id in a text that an operator gave (a reason, an actor, the name of a file read), and
in an unreadable row that could not be attributed to the user.

What LMDB keeps: no record names the user, but the data file still holds bytes that no record is made of.  Pages that became
free, and the unused part of pages in use, keep what they held until LMDB writes them again; and a branch page may keep a key
of the user (its id, no value) as the bound between two pages.  Only a file made anew, record by record, is free of all three:
`store.compaction.compact` after `forget`, as the command does.  What the disk keeps of a file that was removed, the marks of
attempts that other processes have under way, and backups are not reached.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
import xxhash

from statemachine import audit, codec
from statemachine.breaker import Breaker
from statemachine.clock import iso
from statemachine.errors import ConflictError, StoreBusy, StoreCorrupt, StoreForeign, UserUnknown
from statemachine.gate import unlist
from statemachine.state import user_key
from statemachine.store import keys, pages
from statemachine.store.draft import Draft, record
from statemachine.store.records import DISPOSITIONS, Aside, Head, Identity, Image, Pin, Swept, Unreadable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from statemachine.store import Store

RETRIES_MAX: Final = 100
ROWS_A_COMMIT_MAX: Final = 1_000


class Forgotten(NamedTuple):
    """What was erased: records of the user, personal parts of audit rows; `attempt_id` finds the row that says so.

    `unread` counts unreadable rows that are themselves damaged: whether one names the user cannot be told, and they stay.
    """

    records: int
    rows: int
    attempt_id: str
    unread: int = 0


class Pruned(NamedTuple):
    """What was erased: personal parts of audit rows, up to row `through` (0 where there were none), in so many commits."""

    rows: int
    through: int
    commits: int


def forget(store: Store, user: str, actor: str, reason: str) -> Forgotten:
    """Erase everything held about a user, in one commit, durable on return.

    Its records, the marks of it in the global breaker and its places on the rollout's lists go, and so do the bytes of global
    breakers that could not be read, whoever is in them; audit rows about it lose their personal part and keep their digest.
    Raises UserUnknown where nothing is held, StoreCorrupt, having changed nothing, where an audit row about the user or the
    global breaker is damaged, StoreBusy where other writers kept changing the user.  Whoever is still feeding the user begins
    it anew, and an attempt on it that is under way elsewhere still gets its outcome in the log: stop both first, or forget
    again.
    """
    key = user_key(user)
    audit.require_said(user, actor=actor, reason=reason)
    for start, stop in (*_ranges(key), (keys.UNREADABLE, keys.after(keys.UNREADABLE))):
        pages.check(store.engine, start, stop)
    for _ in range(RETRIES_MAX):
        if any(mark.user == user for mark in store.marks.ended().values()):
            store.commit(store.draft())  # their rows, or they would be written after this
        draft = store.draft()
        records = _drop_records(draft, key)
        unlist(draft, user)
        _drop_old_breakers(draft)
        unread = _drop_unreadable(draft, user, records)
        erased = _erase_rows(draft, user, key)
        if not records and not erased:
            message = f"nothing is stored for {user!r}"
            raise UserUnknown(message, user=user)
        attempt_id = store.ids.attempt_id()
        _anchor(store, draft, "user.forgotten", attempt_id, actor, reason, erased)
        try:
            store.commit(draft)
        except ConflictError:
            continue
        return Forgotten(len(records), len(erased), attempt_id, unread)
    message = f"other writers changed {user!r} {RETRIES_MAX} times in a row; stop what feeds it, then try again"
    raise StoreBusy(message, user=user)


def _drop_records(draft: Draft, key: bytes) -> set[bytes]:
    """Delete what lies under the user's own keys, and its mark in the global breaker; the keys that go."""
    dropped: set[bytes] = set()
    for start, stop in _ranges(key):
        for at, value in draft.expect_keys(start, stop):
            draft.expect_as(at, value)
            dropped.add(at)
    for at in (keys.pin(key), keys.swept(key)):
        if draft.expect(at) is not None:
            dropped.add(at)
    for at in dropped:
        draft.delete(at)
    _drop_mark(draft, key)
    return dropped


def _drop_mark(draft: Draft, key: bytes) -> None:
    """Take the user's mark out of the global breaker, which is expected to stand only where the mark is in it.

    Any reset of anybody changes that breaker.  One of this user changes the user's own records too, and those are expected.
    """
    stored = draft.get(keys.GLOBAL_BREAKER)
    common = record(Breaker, keys.GLOBAL_BREAKER, stored)
    if common is None:
        return
    mark = xxhash.xxh3_64_intdigest(key)
    failing = tuple(entry for entry in common.failing if entry[0] != mark)
    failing_event = tuple(entry for entry in common.failing_event if entry[0] != mark)
    if (failing, failing_event) != (common.failing, common.failing_event):
        draft.expect_as(keys.GLOBAL_BREAKER, stored)
        left = msgspec.structs.replace(common, failing=failing, failing_event=failing_event)
        draft.put(keys.GLOBAL_BREAKER, codec.pack(left))


def _drop_old_breakers(draft: Draft) -> None:
    """Delete what was kept of damaged global breakers: which users are in one, and under what flipped bits, nobody can tell."""
    first = keys.damaged(b"", 0)
    for at, value in draft.expect_keys(first, keys.after(first[:-8])):
        draft.expect_as(at, value)
        draft.delete(at)


def _ranges(key: bytes) -> tuple[tuple[bytes, bytes], ...]:
    damaged = keys.DAMAGED + key
    return (key + b"\0", key + b"\1"), (damaged + b"\0", damaged + b"\1")


def _drop_unreadable(draft: Draft, user: str, dropped: set[bytes]) -> int:
    """Delete the unreadable rows that name the user; how many cannot be read themselves."""
    unread = 0
    for at, value in draft.expect_keys(keys.UNREADABLE, keys.after(keys.UNREADABLE)):
        try:
            named = codec.unpack(Unreadable, codec.unseal(at, value)).user == user
        except StoreCorrupt:
            unread += 1
            continue
        if named:
            draft.expect_as(at, value)
            draft.delete(at)
            dropped.add(at)
    return unread


def _erase_rows(draft: Draft, user: str, key: bytes) -> list[int]:
    """Rewrite each audit row about the user without its personal part; their numbers, ascending."""
    erased = []
    prefix = key + b"\0a"
    for at in sorted(k for k in draft.puts if k.startswith(prefix)):
        seq = int.from_bytes(at[-8:], "big")
        row_key = keys.audit(seq)
        stored = draft.expect(row_key)
        if stored is None:
            continue
        data = codec.unseal(row_key, stored)
        if audit.parse(data).personal.user == user:
            draft.put(row_key, audit.erased(data))
            erased.append(seq)
    return erased


def _anchor(  # noqa: PLR0913 - what the row says
    store: Store, draft: Draft, event: str, attempt_id: str, actor: str, reason: str, erased: Iterable[int],
) -> None:
    details = {"seqs": _as_ranges(erased)}
    draft.entries.append(audit.act(event, attempt_id, actor=actor, reason=reason, at_us=store.clock.now_us(), details=details))


def _as_ranges(numbers: Iterable[int]) -> list[tuple[int, int]]:
    ranges: list[tuple[int, int]] = []
    for number in numbers:
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1] = (ranges[-1][0], number)
        else:
            ranges.append((number, number))
    return ranges


def prune_audit(store: Store, before_us: int, actor: str, reason: str, *, rows_max: int = ROWS_A_COMMIT_MAX) -> Pruned:
    """Erase the personal parts of audit rows written before an instant (us since 1970 UTC); digests and the chain stay.

    In commits of at most `rows_max` rows, each durable with a row of its own, so that one that was cut off may be called
    again.  Rows of `audit.ANCHORS` are never erased.  Raises StoreCorrupt at a damaged row, with what is before it erased.
    """
    audit.require_said(actor=actor, reason=reason)
    pages.check(store.engine, keys.AUDIT, keys.after(keys.AUDIT))
    end = store.audit_tail()[0]
    seq = rows = through = commits = 0
    while seq < end:
        found, after = _prunable(store, seq + 1, end, before_us, rows_max)
        if not found:
            break
        if not _prune(store, found, actor, reason):
            continue  # another eraser was faster: look again at the same rows
        seq, rows, through, commits = after, rows + len(found), max(found), commits + 1
    return Pruned(rows, through, commits)


def _prunable(store: Store, first: int, last: int, before_us: int, rows_max: int) -> tuple[dict[int, bytes], int]:
    """The next rows to erase, as they are stored, and the number of the row up to which was looked."""
    found: dict[int, bytes] = {}
    for key, value in store.engine.scan(keys.audit(first), keys.audit(last + 1)):
        seq = int.from_bytes(key[2:], "big")
        try:
            row = audit.parse(codec.unseal(key, value))
        except (StoreCorrupt, StoreForeign):
            if found:
                return found, seq - 1  # what is before it first
            raise
        if not row.erased and row.public.event not in audit.ANCHORS and row.public.written_us < before_us:
            found[seq] = value
            if len(found) == rows_max:
                return found, seq
    return found, last


def _prune(store: Store, found: dict[int, bytes], actor: str, reason: str) -> bool:
    draft = store.draft()
    for seq, stored in found.items():
        key = keys.audit(seq)
        data = codec.unseal(key, stored)
        user = audit.parse(data).personal.user
        draft.expect_as(key, stored)
        draft.put(key, audit.erased(data))
        if user:
            draft.delete(keys.audit_of(user_key(user), seq))
    _anchor(store, draft, "audit.pruned", store.ids.attempt_id(), actor, reason, found)
    try:
        store.commit(draft)
    except ConflictError:
        return False
    return True


def export_user(store: Store, user: str) -> Iterator[dict[str, Any]]:
    """Everything held about a user, one record at a time, fit for JSON; `record` names its kind.  Raises UserUnknown.

    What is damaged is given as it is stored, in hexadecimal, as a record of kind "damaged".
    """
    key = user_key(user)
    for start, stop in (*_ranges(key), (keys.UNREADABLE, keys.after(keys.UNREADABLE))):
        pages.check(store.engine, start, stop)
    empty = True
    alone = (keys.pin(key), keys.swept(key))
    for start, stop in (*_ranges(key), *((at, at + b"\0") for at in alone)):
        for at, value in store.engine.scan(start, stop):
            empty = False
            try:
                yield _exported(store, user, key, at, value)
            except (StoreCorrupt, StoreForeign) as error:
                yield _damaged(user, at, value, error)
    for at, value in store.engine.scan(keys.UNREADABLE, keys.after(keys.UNREADABLE)):
        try:
            row = codec.unpack(Unreadable, codec.unseal(at, value))
        except StoreCorrupt:
            continue  # nobody can tell whose it is
        if row.user == user:
            empty = False
            yield {"record": "unreadable", "user": user, "file": row.file, "line": row.line, "raw": row.raw, "reason": row.reason}
    if empty:
        message = f"nothing is stored for {user!r}"
        raise UserUnknown(message, user=user)


def _damaged(user: str, key: bytes, value: bytes, error: Exception) -> dict[str, Any]:
    return {"record": "damaged", "user": user, "key": key.hex(), "stored": value.hex(), "reason": str(error)}


def _exported(store: Store, user: str, key: bytes, at: bytes, value: bytes) -> dict[str, Any]:
    """One record of the user, whichever its key says it is."""
    if at.startswith(keys.DAMAGED):
        return _damaged(user, at, value, StoreCorrupt("a head that could not be read, moved aside by a recovery"))
    if at == keys.pin(key):
        pin = codec.unpack(Pin, codec.unseal(at, value))
        state = _state(store, pin.state) if pin.state else None
        return {"record": "before_probation", "user": user, "version": pin.version, "state": state}
    if at == keys.swept(key):
        return {"record": "swept", "user": user, **_builtin(codec.unpack(Swept, codec.unseal(at, value)))}
    kind = at[len(key) + 1:len(key) + 2]
    if kind == b"a":
        return _audited(store, user, int.from_bytes(at[-8:], "big"))
    content = codec.unseal(at, value)
    if kind == b"i":
        return _measurement(user, keys.instant_of(at, key), codec.unpack(Identity, content))
    if kind == b"v":
        return _version(store, user, keys.number_of(at), content)
    if kind == b"s":
        head = codec.unpack(Head, content)
        probation = None if head.probation is None else _builtin(head.probation)
        return {"record": "state", "user": user, "version": head.version, "attempt_id": head.author or None,
                "probation": probation, "state": _state(store, head.state)}
    if kind == b"b":
        return {"record": "breaker", "user": user, "breaker": _builtin(codec.unpack(Breaker, content))}
    if kind == b"r":
        return {"record": "kept_aside", "user": user, **_builtin(codec.unpack(Aside, content))}
    return {"record": "other", "user": user, "key": at.hex(), "stored": content.hex()}


def _audited(store: Store, user: str, seq: int) -> dict[str, Any]:
    key = keys.audit(seq)
    return {"record": "audit", "user": user, **audit.parse(codec.unseal(key, store.engine.get(key) or b"")).as_dict()}


def _measurement(user: str, at_us: int, kept: Identity) -> dict[str, Any]:
    return {"record": "measurement", "user": user, "at": iso(at_us), "value": kept.value, "unit": kept.unit,
            "source": kept.source, "disposition": DISPOSITIONS[kept.disposition], "reason": kept.reason or None,
            "values": kept.values, "r": kept.r, "source_id": kept.source_id, "row": kept.row}


def _version(store: Store, user: str, number: int, content: bytes) -> dict[str, Any]:
    told: dict[str, Any] = {"record": "version", "user": user, "version": number}
    if content[:1] != bytes((codec.IMAGE,)):
        reading, _ = codec.decode_step(content)
        return {**told, "kind": "measurement", "at": iso(reading.at_us), "values": reading.values, "r": reading.r}
    image = codec.unpack(Image, content[1:])
    return {**told, "kind": image.kind, "at": iso(image.at_us), "attempt_id": image.author or None,
            "state": _state(store, image.state)}


def _state(store: Store, stored: bytes) -> Any:
    return _builtin(store.estimator.decode(stored))


def _builtin(value: Any) -> Any:
    """The value as JSON knows values: structs by the names of their fields, and what nothing else is known of as its text."""
    if isinstance(value, msgspec.Struct):
        return {name: _builtin(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, tuple | list):
        return [_builtin(item) for item in value]
    return msgspec.to_builtins(value, enc_hook=repr, str_keys=True)
