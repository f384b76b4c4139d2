"""Rebuild of one user: the log replayed and held against the head, or the state decided anew from the files it was made of.

A replay folds and never decides; only `rebuild_from` decides anew.  It takes the user's rows through the processor's own
decisions, in a scratch store where nothing is stored yet, in the order that `resetguard process` would use.  Either form
ends in one guarded attempt of kind "rebuild" (`state.rebuilt`): an image of the whole state as the next version, probation
and pin as they came out, and each measurement whose disposition changed moved with it, counted in the row (INV-05, INV-08).

No measurement is lost on the way: accepted ones that the files do not hold stop a rebuild, or are quarantined where the
caller says so; what is kept aside and not in the files stays where it is.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import msgspec

from statemachine import audit, codec
from statemachine.attempt import Attempt
from statemachine.clock import iso, to_us
from statemachine.errors import ConflictError, InvalidInput, StoreCorrupt, StoreUnavailable, UserUnknown
from statemachine.manager import ResetManager
from statemachine.processor import LONG_AGO_US, STATUSES, Outcome, Processor, SourceRow
from statemachine.recovery import images_at_hand, move_aside
from statemachine.state import require_version, user_key
from statemachine.store import Store, keys, log
from statemachine.store.careful import for_version
from statemachine.store.draft import Draft, record
from statemachine.store.identities import REASON_CHARS_MAX
from statemachine.store.records import ACCEPTED, DISPOSITIONS, QUARANTINED, Aside, Cursor, Head, Identity, Unreadable
from statemachine.store.replay import Replay, Standing, replay, versions_of
from statemachine.transaction import ResetTransaction

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from statemachine.store.records import Probation

KIND: Final = "rebuild"
NEW: Final = "new"
EXAMPLES_MAX: Final = 3
ADMITTED_NAMED_MAX: Final = 50_000
"""How many measurements the image names, the newest: at 300 bytes each they stay under the limit of a record."""
LEFT_OUT: Final = "not in the files that the state was rebuilt from"
_UNREADABLE_KEY_BYTES: Final = len(keys.unreadable(0, 0))


class Source(NamedTuple):
    """A file that a state is decided from: the 16 bytes by which `process` knows it, its name, SHA-256 of its content (hex)."""

    key: bytes
    name: str
    sha256: str


class Rebuilt(NamedTuple):
    """What a rebuild found and did.

    `outcome`: "unchanged" (all is as it should be, and nothing was written), "committed", "dry_run", or "damaged" (the log
    does not give the state, and nothing was written: `log.damage` says why).  `before` is the state that stood, None where
    none could be read; `after` the rebuilt one, None where damaged.  `rows` counts what became of the files' rows, and those
    of the user that cannot be read; `moved` the measurements by (disposition before or "new", disposition now); `restated`
    those whose reason or figures alone changed; `superseded` the rows that were kept as text while the user could not be read,
    of measurements that have a record now.
    """

    outcome: Literal["unchanged", "committed", "dry_run", "damaged"]
    user: str
    log: Replay
    base_version: int
    version: int | None
    attempt_id: str | None
    before: Any
    after: Any
    rows: dict[str, int]
    moved: dict[tuple[str, str], int]
    restated: int = 0
    left_out: int = 0
    not_in_files: int = 0
    superseded: int = 0


class Changes(NamedTuple):
    """What goes with the new state: each measurement's record as it will be, and what is kept aside then.

    `superseded` are rows kept as text of measurements that have a record now: (the row as stored, the measurement's key).
    `miscounted`: the count of what is kept aside was not right.
    """

    records: dict[bytes, Identity]
    aside: Aside | None
    superseded: dict[bytes, tuple[bytes, bytes]]
    moved: Counter[tuple[str, str]]
    restated: int
    left_out: int
    not_in_files: int
    miscounted: bool

    def __bool__(self) -> bool:
        """Whether any record changes."""
        return bool(self.records or self.superseded or self.miscounted)


class _Decided(NamedTuple):
    """What the files alone give: the state, what stands beside it, each measurement's record, and how the rows went."""

    state: Any
    standing: Standing
    records: dict[bytes, Identity]
    last_us: int
    rows: dict[str, int]


def rebuild(  # noqa: PLR0913 - each is recorded
    manager: ResetManager, user: str, *, actor: str, reason: str, expect_version: int | None = None, dry_run: bool = False,
) -> Rebuilt:
    """Replay a user's log and, where the head is damaged or says otherwise and the log is whole, commit what the log gives.

    Durable on return, and read back.  The bytes of the head that was replaced are kept aside.  Where the log is not whole
    nothing is written and `outcome` is "damaged".  Raises UserUnknown where no state was ever stored, and what a reset raises:
    ConflictError, BreakerOpen, ResetValidationError where the state breaks the rules in force, CommitInDoubt.
    """
    audit.require_said(user, actor=actor, reason=reason)
    if expect_version is not None:
        require_version("expect_version", expect_version, user)
    found = replay(manager.store, user)
    if not found.last and found.stored[keys.head(user_key(user))] is None:
        message = f"no state is stored for {user!r}"
        raise UserUnknown(message, user=user)
    _require_version(found, expect_version)
    before = _before(manager.store, found)
    same = Rebuilt("unchanged", user, found, found.last, None, None, before, found.state, {}, {})
    if not found.whole or found.standing is None:
        return same._replace(outcome="damaged", after=None)
    if found.found == "equal":
        return same
    attempt = Attempt(user, KIND, reason, actor, "by hand", expect_version=expect_version, dry_run=dry_run)
    tx = _Rebuilding(manager, attempt, found, before, found.state, found.standing, None)
    tx.details = {"by": "replay", "head": found.found}
    return tx.run(same)


def rebuild_from(  # noqa: PLR0913 - each is recorded
    manager: ResetManager, user: str, sources: Sequence[Source], rows: Iterable[tuple[int, SourceRow]], *, actor: str,
    reason: str, leave_out: bool = False, expect_version: int | None = None, dry_run: bool = False,
) -> Rebuilt:
    """Decide a user anew from rows of files, given as (number of the source, row) in processing order; others' are skipped.

    Durable on return, and read back: one commit has the state, the dispositions that changed and the audit row.  It works
    without a log or head that reads.  Measurements never seen before are taken in as new, under the source's number where
    `process` has read the file here, else as handed over by a caller (source 0), so that a later `process` knows them.
    Accepted measurements that the rows do not hold raise InvalidInput, which names some, or with `leave_out` are quarantined.
    Raises UserUnknown, InvalidInput where the rows give no state, StoreCorrupt where a measurement's record is damaged that
    the rows do not hold, and what a reset raises: ConflictError, BreakerOpen, CommitInDoubt; then nothing was changed.
    """
    audit.require_said(user, actor=actor, reason=reason)
    if expect_version is not None:
        require_version("expect_version", expect_version, user)
    if len({source.key for source in sources}) < len(sources):
        message = f"a file is given twice: {', '.join(source.name for source in sources)}; give each once"
        raise InvalidInput(message, user=user)
    store = manager.store
    if not store.knows(user):
        message = f"nothing is stored for {user!r}: process the files instead"
        raise UserUnknown(message, user=user)
    own = [(number, row) for number, row in rows if _named(row) == user]
    if not any(row.measurement is not None for _, row in own):
        message = f"the files hold no measurement of {user!r}: {', '.join(source.name for source in sources)}"
        raise InvalidInput(message, user=user)
    decided = _decide(manager, user, sources, own)
    numbers = {number for number in (decided.standing.pin.version if decided.standing.pin else 0,
                                     decided.standing.probation.version if decided.standing.probation else 0) if number}
    found = replay(store, user, ask=frozenset(numbers), identities=True)
    _require_version(found, expect_version)
    superseded = _superseded(store, user, decided.records)
    changes = _changes(found, user, decided, superseded, leave_out=leave_out)
    standing = _placed(found, decided.standing)
    before = _before(store, found)
    same = Rebuilt("unchanged", user, found, found.last, None, None, before, decided.state, decided.rows, dict(changes.moved),
                   changes.restated, changes.left_out, changes.not_in_files, len(superseded))
    if found.found == "equal" and not changes and _stands(store, found, decided.state, standing):
        return same
    attempt = Attempt(user, KIND, reason, actor, "by hand", expect_version=expect_version, dry_run=dry_run)
    tx = _Rebuilding(manager, attempt, found, before, decided.state, standing, changes)
    accepted = sorted(key for key, kept in decided.records.items() if kept.disposition == ACCEPTED)
    tx.admitted = tuple(accepted[-ADMITTED_NAMED_MAX:])
    tx.details = _details(store, sources, same)
    return tx.run(same)


def _named(row: SourceRow) -> str:
    if row.measurement is not None:
        return row.measurement.user
    return row.unreadable.user if row.unreadable is not None else ""


def _require_version(found: Replay, expected: int | None) -> None:
    if expected is not None and expected != found.last:
        message = f"{found.user!r} is at version {found.last}, not {expected} as expected; nothing was changed"
        raise ConflictError(message, user=found.user)


def _before(store: Store, found: Replay) -> Any:
    """The state that stood: the head's, or else the newest that the log gives; None where nothing reads."""
    if found.head is not None:
        return store.estimator.decode(found.head.state)
    if found.state is not None:
        return found.state
    good = store.newest_good(found.user)
    return None if good is None else good.state


def _stands(store: Store, found: Replay, state: Any, standing: Standing) -> bool:
    """Whether the head is the decided one to the last bit."""
    return found.head is not None and found.head.state == store.estimator.encode(state) and found.standing == standing


def _placed(found: Replay, decided: Standing) -> Standing:
    """The standing with its version numbers as the user's own log has them.

    Where the head has the same pin or probation, its number stands; where the user's log has the same version under the
    scratch log's number, that one.  Else the pin names the version that stood before the rebuild, which is where `restore
    --last-known-good` should lead, and the probation the rebuild itself.
    """
    pin, probation, own = decided.pin, decided.probation, found.standing
    if pin is not None and pin.version:
        passed = found.passed.get(pin.version)
        if own is not None and own.pin is not None and own.pin.version and own.pin.state == pin.state:
            pin = msgspec.structs.replace(pin, version=own.pin.version)
        elif passed is None or passed.state != pin.state:
            pin = msgspec.structs.replace(pin, version=max(found.last, 1))
    if probation is not None:
        made = found.passed.get(probation.version)
        if own is not None and own.probation is not None and _began_alike(own.probation, probation):
            probation = msgspec.structs.replace(probation, version=own.probation.version)
        elif made is None or (made.kind, made.at_us) != (probation.kind, probation.since_us):
            probation = msgspec.structs.replace(probation, version=found.last + 1)
    return decided._replace(pin=pin, probation=probation)


def _began_alike(one: Probation, other: Probation) -> bool:
    return (one.since_us, one.kind) == (other.since_us, other.kind)


def _details(store: Store, sources: Sequence[Source], done: Rebuilt) -> dict[str, Any]:
    """What the audit row says of a rebuild from files; counts and names, no measurement."""
    cursors = {source.key: store.cursor(source.key) for source in sources}
    files = [{"name": source.name, "sha256": source.sha256, "source": cursor.source_id if cursor else 0}
             for source in sources for cursor in (cursors[source.key],)]
    return {"by": "files", "files": files, "rows": done.rows, "moved": moves_told(done.moved), "restated": done.restated,
            "left_out": done.left_out, "not_in_files": done.not_in_files, "superseded": done.superseded,
            "log_damaged": len(done.log.damage)}


def moves_told(moved: dict[tuple[str, str], int]) -> list[dict[str, Any]]:
    """The transfers between dispositions, fit for JSON."""
    return [{"from": before, "to": after, "count": count} for (before, after), count in sorted(moved.items())]


def _decide(manager: ResetManager, user: str, sources: Sequence[Source], rows: Sequence[tuple[int, SourceRow]]) -> _Decided:
    """Take the rows through the processor's decisions where nothing is stored, under the store's own rules and policy."""
    store, key = manager.store, user_key(user)
    statuses: Counter[str] = Counter()
    unread = 0

    def report(_number: int, outcome: Outcome) -> None:
        statuses[outcome.status] += 1

    with _scratch(store) as scratch:
        own_ids = _registered(store, scratch, sources)
        again = ResetManager(scratch, policy=manager.policy, breaker=manager.context.breaker,
                             global_breaker=manager.context.global_breaker)
        intake = Processor(again).intake([(source.key, source.name) for source in sources], report)
        for number, row in rows:
            unread += row.measurement is None
            intake.add(number, row)
        intake.flush()
        draft = scratch.draft()
        head, aside = draft.head(key), draft.aside(key)
        counted = {name: statuses[name] for name in STATUSES}
        if head is None:
            kept = next((kept.reason for kept in scratch.quarantine(user)), "")
            message = f"the files give no state for {user!r} ({statuses['quarantined']} of {len(rows)} rows quarantined: {kept})"
            raise InvalidInput(message, user=user)
        state = scratch.estimator.decode(head.state)
        standing = Standing(head.run_since_us, head.reset_us, head.probation,
                            draft.pin(key) if head.probation is not None else None)
        records = {at: msgspec.structs.replace(kept, source_id=own_ids.get(kept.source_id, 0))
                   for at, kept in draft.identities(key, LONG_AGO_US)}
        last_us = aside.last_us if aside is not None else LONG_AGO_US
    counted["quarantined"] -= unread
    return _Decided(state, standing, records, last_us, {"read": len(rows), **counted, "unreadable": unread})


class _Silent(audit.Emitter):
    """Nothing that happens in a scratch store is an event of the real one."""

    def emit(self, row: audit.Row, context: dict[str, Any] | None) -> None:
        """Drop it."""


@contextlib.contextmanager
def _scratch(store: Store) -> Iterator[Store]:
    """An empty store under the same rules, limits, clock and ids, whose files have no name any more once it is open.

    So what is decided in it is gone with this process, however that ends.
    """
    try:
        directory = Path(tempfile.mkdtemp(prefix="resetguard-"))
    except OSError as error:
        message = f"a scratch store cannot be made in the directory for temporary files: {error}; set TMPDIR to another"
        raise StoreUnavailable(message, user=None) from error
    try:
        scratch = Store.open(directory / "scratch", estimator=store.estimator, durability="process", limits=store.limits,
                             clock=store.clock, ids=store.ids)
        scratch.engine.hide()
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    with scratch:
        scratch.validator = store.validator
        scratch.emitter = scratch.committer.emitter = _Silent()
        yield scratch


def _registered(store: Store, scratch: Store, sources: Sequence[Source]) -> dict[int, int]:
    """Give the scratch store the sources with their present as the real one has it; the real numbers of the scratch ones."""
    draft, own_ids = scratch.draft(), {}
    next_id = store.meta().sources + 1
    for offset, source in enumerate(sources):
        cursor = store.cursor(source.key)
        number = next_id + offset if cursor is None else cursor.source_id
        now_us = store.clock.now_us() if cursor is None else cursor.now_us
        own_ids[number] = 0 if cursor is None else number
        draft.put(keys.cursor(source.key), codec.pack(Cursor(number, 0, {}, now_us, LONG_AGO_US, source.name)))
    scratch.commit(draft)
    return own_ids


def _changes(
    found: Replay, user: str, decided: _Decided, superseded: dict[bytes, tuple[bytes, bytes]], *, leave_out: bool,
) -> Changes:
    """Compare where each measurement went with where it goes now; raises InvalidInput for accepted ones that would be lost."""
    key, records, moved, restated = user_key(user), dict[bytes, Identity](), Counter[tuple[str, str]](), 0
    as_text = {at for _, at in superseded.values()} | {at for at, kept in found.identities.items() if kept is None}
    for at, now in decided.records.items():
        was = found.identities.get(at)
        if was is not None:
            now = msgspec.structs.replace(now, source_id=was.source_id, row=was.row)  # noqa: PLW2901 - it was read there first
        if now == was:
            continue
        records[at] = now
        before = DISPOSITIONS[was.disposition] if was is not None else "unreadable" if at in as_text else NEW
        if before == DISPOSITIONS[now.disposition]:
            restated += 1
        else:
            moved[before, DISPOSITIONS[now.disposition]] += 1
    others = {at: kept for at, kept in found.identities.items() if at not in decided.records}
    for at, kept in others.items():
        if kept is None:
            message = (f"the record of the measurement of {user!r} at {iso(keys.instant_of(at, key))} is damaged, and the files "
                       "do not hold it; give the file that does, or take the store from a backup")
            raise StoreCorrupt(message, user=user)
    lost = {at: kept for at, kept in others.items() if kept is not None and kept.disposition == ACCEPTED}
    if lost and not leave_out:
        raise InvalidInput(_loss(user, key, lost), user=user)
    for at, kept in lost.items():
        records[at] = msgspec.structs.replace(kept, disposition=QUARANTINED, reason=LEFT_OUT[:REASON_CHARS_MAX])
        moved["accepted", "quarantined"] += 1
    count = sum(kept.disposition != ACCEPTED for kept in decided.records.values()) + len(others)
    last_us = max((decided.last_us, *(keys.instant_of(at, key) for at in others)))
    aside = Aside(count, last_us) if count or last_us > LONG_AGO_US else None
    return Changes(records, aside, superseded, moved, restated, len(lost), len(others) - len(lost),
                   miscounted=_is_miscounted(found, key))


def _is_miscounted(found: Replay, key: bytes) -> bool:
    """Whether the count of what is kept aside is not that of the records, or cannot be read."""
    try:
        stored = record(Aside, keys.aside(key), found.stored[keys.aside(key)])
    except StoreCorrupt:
        return True
    kept = sum(kept is not None and kept.disposition != ACCEPTED for kept in found.identities.values())
    return kept != (stored.count if stored is not None else 0)


def _loss(user: str, key: bytes, lost: dict[bytes, Identity]) -> str:
    shown = [f"{iso(keys.instant_of(at, key))} {kept.value} {kept.unit} ({kept.source})" for at, kept in sorted(lost.items())]
    more = ", ..." if len(shown) > EXAMPLES_MAX else ""
    count = f"{len(lost)} accepted measurement{'s' if len(lost) > 1 else ''}"
    return (f"the files do not hold {count} of {user!r}: {', '.join(shown[:EXAMPLES_MAX])}{more}; give the files that do as "
            "well, or leave them out (--leave-out), which quarantines them; nothing was changed")


def _superseded(store: Store, user: str, records: dict[bytes, Identity]) -> dict[bytes, tuple[bytes, bytes]]:
    """Rows kept as text while the user could not be read, of measurements that now have a record: they count once (INV-08)."""
    key = user_key(user)
    known = {(keys.instant_of(at, key), f"{kept.value} {kept.unit} {kept.source}"): at for at, kept in records.items()}
    found = {}
    for at, value in store.engine.scan(keys.UNREADABLE, keys.after(keys.UNREADABLE)):
        if len(at) > _UNREADABLE_KEY_BYTES:
            with contextlib.suppress(StoreCorrupt, ValueError):
                row = codec.unpack(Unreadable, codec.unseal(at, value))
                instant, _, rest = row.raw.partition(" ")
                measured = known.get((to_us(datetime.fromisoformat(instant)), rest)) if row.user == user else None
                if measured is not None:
                    found[at] = value, measured
    return found


class _Rebuilding(ResetTransaction):
    """The attempt that makes a rebuilt state the next version, with what stands beside it, over what `found` was read from."""

    def __init__(  # noqa: PLR0913 - the parts of a version
        self, manager: ResetManager, attempt: Attempt, found: Replay, before: Any, state: Any, standing: Standing,
        changes: Changes | None,
    ) -> None:
        super().__init__(manager.context, attempt)
        self._found = found
        self._stood = before
        self._rebuilt = state
        self._standing = standing
        self._changes = changes
        for key, value in found.stored.items():
            self._draft.expect_as(key, value)

    def run(self, told: Rebuilt) -> Rebuilt:
        """Make the attempt; what it did.  Raises StoreCorrupt where what is read back is not what was promised."""
        with self:
            self.apply(KIND, lambda _: self._rebuilt)
            result = self.commit()
        if result.version is None:
            return told._replace(outcome="dry_run")
        self._read_back(result.version)
        return told._replace(outcome="committed", version=result.version, attempt_id=result.attempt_id)

    def _read_back(self, version: int) -> None:
        store = self._store
        loaded = store.load(self.user)
        if loaded is not None and loaded.version > version:
            loaded = store.load(self.user, version)
        encode = store.estimator.encode
        if loaded is None or loaded.head_damaged or loaded.version != version or encode(loaded.state) != encode(self._rebuilt):
            message = f"{self.user!r} was committed as version {version}, but what is read back is not what was promised"
            raise StoreCorrupt(message, user=self.user)

    def _begin(self, head: Head | None, state: Any) -> None:
        """Begin over the head that was found, or over one in its place where that cannot be read."""
        del head, state
        super()._begin(self._base(), self._stood if self._stood is not None else self._rebuilt)
        self._before = self._state = self._stood

    def _base(self) -> Head:
        found, store = self._found, self._store
        if found.head is not None and found.head.version == found.last:
            return found.head
        return Head(found.last, b"", "", store.estimator.kernel, images_at_hand(store, self._key), found.first or 1,
                    self._standing.run_since_us, self._standing.reset_us, "")

    def _move_measurements(self, draft: Draft) -> None:
        """Put each measurement where it goes now, in place of what the files were compared with."""
        changes, key = self._changes, self._key
        if changes is None:
            aside: Aside | None = self._seen(draft)
        else:
            aside = changes.aside
            for at, kept in changes.records.items():
                draft.put_identity(key, at, kept)
            for at, (value, _) in changes.superseded.items():
                draft.expect_as(at, value)
                draft.delete(at)
        if aside is None:
            draft.delete(keys.aside(key))
        else:
            draft.put(keys.aside(key), codec.pack(aside))

    def _seen(self, draft: Draft) -> Aside | None:
        """What is kept aside, with the instant that was seen where the state goes back in time."""
        aside, at_us = draft.aside(self._key), self._store.estimator.at_us
        if self._stood is None or at_us(self._stood) <= at_us(self._rebuilt):
            return aside
        aside = aside or Aside(0, LONG_AGO_US)
        return msgspec.structs.replace(aside, last_us=max(aside.last_us, at_us(self._stood)))

    def _append(self, draft: Draft) -> Head:
        """The next version, an image of the state; the head takes probation, run and pin as they were rebuilt."""
        found, standing, estimator = self._found, self._standing, self._store.estimator
        replaced = found.stored[keys.head(self._key)]
        if replaced is not None and found.found in ("damaged", "different"):
            move_aside(draft, self._key, found.last + 1, replaced)
        probation: Probation | None = standing.probation
        if standing.pin is not None and probation is not None:
            draft.put(keys.pin(self._key), codec.pack(standing.pin))
        else:
            probation = None
            draft.delete(keys.pin(self._key))
        new = log.NewVersion(self.state, self.attempt_id, KIND, self._event_us, self.admitted)
        return log.append(draft, estimator, self._key, self._head, new, run_since_us=standing.run_since_us,
                          reset_us=standing.reset_us, probation=probation, rules=self._store.validator.fingerprint,
                          versions_max=self._store.limits.versions_max)


def damage_told(done: Rebuilt) -> str:
    """What is wrong with the log and what to do about it, as a sentence."""
    log = done.log
    told = f"the log of {done.user!r} is damaged ({versions_of(log.damage)}) and nothing was written: "
    if log.found == "equal":
        return told + "the head is what the versions since then give, bit for bit, and only those before cannot be read"
    anew = "`rebuild --from FILE` decides the state anew from the files it was made of"
    stands = log.head is not None and log.head.version == log.last
    if stands and log.found == "different":
        return f"{told}the head reads and is not what the versions since then give; {anew}"
    return told + for_version(done.user, head_good=stands) + ("" if stands else f"; {anew}")
