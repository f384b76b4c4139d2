"""Store: the ACID versioned store of estimator states, their log, their audit and their breakers.

Invariants kept here: INV-01, INV-02 (one LMDB transaction a commit), INV-03 and INV-10 (outcome and effect together, the
chain), INV-05 (versions without gaps, readable bit for bit), INV-06 (compare-and-set on what a draft was made from).
"""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final, Literal

import msgspec

from statemachine import audit, codec
from statemachine.audit import Row
from statemachine.clock import Clock, Ids, SystemClock, SystemIds
from statemachine.errors import (
    InvalidInput,
    ResetError,
    StoreCorrupt,
    StoreForeign,
    StoreFull,
    StoreUnavailable,
    VersionPruned,
)
from statemachine.estimator import BODY_WEIGHT, Estimator
from statemachine.marks import DeadMarks, Marks
from statemachine.state import user_key
from statemachine.store import engine as door
from statemachine.store import keys, log, making, pages
from statemachine.store.committer import Committer, audit_tail
from statemachine.store.draft import Draft, newest_version, record
from statemachine.store.engine import OPENER, Engine, Opener
from statemachine.store.intents import INTENTS, Intents
from statemachine.store.mending import end_is_lost
from statemachine.store.records import (
    ACCEPTED,
    DISPOSITIONS,
    Aside,
    Cursor,
    Head,
    Identity,
    Image,
    Kept,
    Loaded,
    Meta,
    Unreadable,
    VersionInfo,
)
from statemachine.store.settle import settle_dead
from statemachine.store.surroundings import refuse_network
from statemachine.store.verification import AuditCheck, verify
from statemachine.validation import Rule, StateValidator

Durability = Literal["each", "group", "process"]
DURABILITIES: Final[tuple[Durability, ...]] = ("each", "group", "process")
ATTEMPT_DIGITS: Final = 32


class StoreLimits(msgspec.Struct, frozen=True):
    """The limits of a store; the map is address space and takes disk only as it is used.

    A group of measurements is committed at `group_measurements_max`, when its oldest has waited `group_delay_ms` and
    another comes, or when no more come.  Callers in threads share a commit, up to `group_drafts_max`, with no delay.
    Beyond `quarantined_measurements_max` of a user nothing is lost or refused: it is audited once, and `doctor` warns.
    """

    map_bytes: int = 1 << 34
    map_bytes_max: int = 1 << 40
    writer_wait_s_max: float = 30.0
    group_drafts_max: int = 256
    group_measurements_max: int = 16_384
    group_delay_ms: int = 2_000
    versions_max: int = log.VERSIONS_MAX
    quarantined_measurements_max: int = 10_000


class Store:
    """An open store; share one object between threads, open it after a fork and not before, close it or use `with`."""

    def __init__(  # noqa: PLR0913 - use Store.open
        self, engine: Engine, meta: Meta, *, estimator: Estimator, rules: Iterable[Rule], durability: Durability,
        limits: StoreLimits, clock: Clock, ids: Ids, intents: Intents = "process",
    ) -> None:
        self.engine = engine
        self.estimator = estimator
        self.validator = StateValidator((*estimator.rules, *rules))
        self.durability: Durability = durability
        self.intents: Intents = intents
        self.limits = limits
        self.clock = clock
        self.ids = ids
        self.store_id = meta.store_id
        self.path = engine.path
        self.emitter = audit.Emitter()
        self.interrupted = 0
        self._owner: tuple[Marks, Committer] | None = None
        if engine.readonly:
            _OPEN_STORES.add(self)
            return
        owner, marks = self._register()
        self._owner = marks, Committer(
            engine, marks, owner=owner, store_id=meta.store_id, clock=clock, ids=ids, emitter=self.emitter,
            group_size=limits.group_drafts_max if durability == "group" else 1,
        )
        _OPEN_STORES.add(self)
        try:
            self.interrupted = self._settled()
        except BaseException:
            _OPEN_STORES.discard(self)
            self.marks.abandon()  # nothing is in it; the next opener removes it
            raise

    @classmethod
    def open(  # noqa: PLR0913 - each is a setting of its own
        cls, path: str | os.PathLike[str], *, estimator: Estimator = BODY_WEIGHT, durability: Durability = "each",
        rules: Iterable[Rule] = (), limits: StoreLimits | None = None, clock: Clock | None = None, ids: Ids | None = None,
        opener: Opener = OPENER, readonly: bool = False, intents: Intents = "process",
    ) -> Store:
        """Open the store in a directory, creating it (mode 0700) where there is none.

        Durable on return of a commit: in `each` and `group` on the disk, in `process` in the page cache only (it
        survives a kill, not a power cut).  Attempts that a dead process left are settled first.  Raises StoreForeign,
        StoreCorrupt, StoreUnavailable (also on a network file system) or StoreFull, having changed nothing.

        An attempt that begins leaves a mark, from which the next opening writes its row if the process dies.  With `intents`
        "process" the mark survives the process alone, and costs no sync; "durable" makes each mark a commit of its own, so
        that the row is there after a power cut too (it cannot be had with durability `process`).

        With `readonly` nothing is made, settled or written (but LMDB's own table of readers), and a store that is not
        there is StoreUnavailable; every call that would change something raises StoreUnavailable.  Others may write.
        """
        directory = Path(path).absolute()  # it stays the same when the process goes elsewhere
        limits = limits or StoreLimits()
        clock, ids = clock or SystemClock(), ids or SystemIds()
        if durability not in DURABILITIES:
            message = f"durability {durability!r} is not one of {', '.join(DURABILITIES)}"
            raise InvalidInput(message)
        if intents not in INTENTS or (intents == "durable" and durability == "process"):
            message = (f"intents {intents!r} is not one of {', '.join(INTENTS)}" if intents not in INTENTS else
                       "intents='durable' needs durability 'each' or 'group': with 'process' no commit outlives a power cut")
            raise InvalidInput(message)
        missing = _must_create(directory)
        if readonly and missing:
            message = f"there is no store at {directory} to read; name the directory of one"
            raise StoreUnavailable(message)
        if not readonly and (directory / door.MANIFEST).exists():
            message = f"{directory} is a backup: make a store of it with `resetguard restore-store`, or open it for reading"
            raise StoreUnavailable(message)
        refuse_network(directory)
        if missing:
            making.create(directory, _first_records(estimator, clock, ids), opener)
        engine = Engine(
            directory, sync=durability != "process", map_bytes=limits.map_bytes, map_bytes_max=limits.map_bytes_max,
            writer_wait_s_max=limits.writer_wait_s_max, clock=clock, opener=opener, readonly=readonly,
        )
        try:
            engine.lengthen()
            pages.check_way(engine, keys.META)
            if not readonly:
                making.clear_anew(directory)  # nobody is making the file anew while this is open
            meta = checked_meta(engine, estimator)
            return cls(engine, meta, estimator=estimator, rules=rules, durability=durability, limits=limits, clock=clock, ids=ids,
                       intents=intents)
        except BaseException:
            engine.close()
            raise

    def _settled(self) -> int:
        try:
            return settle_dead(self.engine, self.committer, self.clock, self.path / door.OWNERS)
        except StoreCorrupt:
            if not end_is_lost(self.engine):
                raise
            return 0  # nothing can be committed, so that nothing is lost by it: doctor names it, and recover mends it

    def _register(self) -> tuple[int, Marks]:
        """Become an owner: a number never used before, its key in the store, its locked file of marks."""
        with self.engine.turn():
            meta = self.meta()
            owner = meta.owners + 1
            after = codec.seal(keys.META, codec.pack(msgspec.structs.replace(meta, owners=owner)))
            path = self.path / door.OWNERS / str(owner)
            try:
                left = DeadMarks.take(path)  # a process that died between making the file and registering
                if left is not None:
                    left.remove()
                path.parent.mkdir(mode=0o700, exist_ok=True)  # a backup may hold the data alone
                marks = Marks(path)
            except OSError as error:
                message = f"the file of marks {path} cannot be made: {error}; see what lies there, and whether there is room"
                raise (StoreFull if error.errno in door.FULL else StoreUnavailable)(message) from error

            def registered(put: Callable[[bytes, bytes], object]) -> None:
                put(keys.META, after)
                put(keys.owner(owner), codec.seal(keys.owner(owner), bytes(8)))

            try:
                self.engine.update(registered)
            except BaseException:
                marks.close()
                raise
        return owner, marks

    @property
    def readonly(self) -> bool:
        """Whether the store was opened for reading."""
        return self._owner is None

    @property
    def marks(self) -> Marks:
        """The marks of this owner; StoreUnavailable where the store was opened for reading."""
        return self._own()[0]

    @property
    def committer(self) -> Committer:
        """The commit path of this owner; StoreUnavailable where the store was opened for reading."""
        return self._own()[1]

    def _own(self) -> tuple[Marks, Committer]:
        if self._owner is None:
            self.engine.check_writable()
            message = f"the store {self.path} has no owner"
            raise StoreUnavailable(message)
        return self._owner

    def __enter__(self) -> Store:
        """The store itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it; exceptions pass."""
        self.close()

    def close(self) -> None:
        """Write what only marks hold, make everything durable, let go.  A second call does nothing."""
        if self not in _OPEN_STORES:
            return
        _OPEN_STORES.discard(self)
        try:
            self.engine.check()
        except StoreUnavailable:  # a forked child: the parent's marks and locks are not its to touch
            return
        if self.readonly:
            self.engine.close()
            self.emitter.close()
            return
        try:
            draft = Draft(self.engine)
            draft.delete(keys.owner(self.committer.owner))
            self.committer.commit(draft)
            self.marks.close()
        except ResetError:
            self.marks.abandon()  # the next opener settles them
        finally:
            try:
                self.engine.close()
            finally:
                self.emitter.close()  # it may wait for a hook: the store is others' by then

    def settle_dead(self) -> int:
        """Settle what owners that died since the opening left, as an opening does; how many attempts were interrupted."""
        interrupted = settle_dead(self.engine, self.committer, self.clock, self.path / door.OWNERS)
        self.interrupted += interrupted
        return interrupted

    def meta(self) -> Meta:
        """What the store is, and its counters."""
        return codec.unpack(Meta, codec.unseal(keys.META, self.engine.get(keys.META) or b""))

    def draft(self) -> Draft:
        """An empty draft over what is committed now; StoreUnavailable where the store was opened for reading."""
        if self._owner is None:
            self.engine.check_writable()
        return Draft(self.engine)

    def commit(self, draft: Draft) -> list[Row]:
        """Make a draft durable, all of it or none; see `Committer.commit` for what it raises."""
        return self.committer.commit(draft)

    def load(self, user: str, version: int | None = None) -> Loaded | None:
        """The state at the head, or at a version of the log; None for a user of whom no state was ever stored.

        Raises StoreCorrupt for a user that cannot be read (never None), and VersionPruned, naming the first readable
        version, for one that retention dropped or that never was.
        """
        key = user_key(user)
        if version is not None:
            return self._load_version(user, key, version)
        try:
            head = Draft(self.engine).head(key)
            if head is None:
                return None
            state = self.estimator.decode(head.state)
        except StoreCorrupt as error:
            return self._load_past_damage(user, key, error)
        violations = () if head.rules == self.validator.fingerprint else self.validator.validate(state)
        return Loaded(user, head.version, state, head.author, violations)

    def _load_version(self, user: str, key: bytes, version: int) -> Loaded:
        first, last = self.version_range(user)
        if not 0 < first <= version <= last:
            message = (f"version {version} of {user!r} is not in the log; versions {first} to {last} are readable" if last
                       else f"nothing is stored for {user!r}")
            raise VersionPruned(message, first=first, last=last, user=user)
        loaded = self._folded(user, key, version)
        return loaded._replace(violations=self.validator.validate(loaded.state))

    def _folded(self, user: str, key: bytes, version: int) -> Loaded:
        with self.engine.reading() as txn:
            found = log.entry(txn.get, key, version)
            state = log.fold(txn.get, self.estimator, key, version)
        return Loaded(user, version, state, found.author if isinstance(found, Image) else "")

    def _load_past_damage(self, user: str, key: bytes, error: StoreCorrupt) -> Loaded:
        newest = newest_version(self.engine, key)
        good = self.newest_good(user)
        if good is not None and good.version == newest:
            return good._replace(head_damaged=True)
        told = f"version {good.version} is the newest that can be read" if good else "no version can be read"
        message = f"the state of {user!r} cannot be read: {error.problem}; {told}"
        raise StoreCorrupt(message, user=user, newest_good=good.version if good else None) from error

    def newest_good(self, user: str) -> Loaded | None:
        """Walk back through the log to the newest version that reads and passes the rules; None when none does."""
        key = user_key(user)
        for version, _ in log.versions(self.engine.scan, key):
            with contextlib.suppress(StoreCorrupt):
                loaded = self._folded(user, key, version)
                if not self.validator.validate(loaded.state):
                    return loaded
        return None

    def version_range(self, user: str) -> tuple[int, int]:
        """The first and the last readable version, (0, 0) where there is none."""
        prefix = keys.versions(user_key(user))
        newest, oldest = self.engine.ends(prefix, keys.after(prefix))
        return (keys.number_of(oldest), keys.number_of(newest)) if oldest and newest else (0, 0)

    def history(self, user: str) -> Iterator[VersionInfo]:
        """The versions in the log, oldest first; raises StoreCorrupt at one that cannot be read."""
        key = user_key(user)
        prefix = keys.versions(key)
        for at, value in self.engine.scan(prefix, keys.after(prefix), reverse=True):
            yield _info(user, keys.number_of(at), codec.unseal(at, value))

    def version_at(self, user: str, at_us: int) -> int | None:
        """The newest version whose event is not after an instant; None when the user had no state by then."""
        key = user_key(user)
        for version, value in log.versions(self.engine.scan, key):
            if _info(user, version, codec.unseal(keys.version(key, version), value)).at_us <= at_us:
                return version
        return None

    def users(self) -> Iterator[str]:
        """Every user of whom anything is stored, in the order of their UTF-8 bytes; raises StoreCorrupt at a key of no user.

        At the first step, where a page of theirs would end the process that comes to it, nobody is given, and StoreCorrupt
        names it (`pages.check`).
        """
        pages.check(self.engine, keys.FIRST_USER)
        yield from self.users_from(keys.FIRST_USER)

    def users_from(self, start: bytes) -> Iterator[str]:
        """As `users`, from the key `start` on, the pages unchecked."""
        while True:
            found = self.engine.first(start, b"\xff" * 8)
            if found is None:
                return
            user, end, _ = found[0].partition(b"\0")
            if not end or found[0] < start:
                message = f"the key {found[0]!r} of the store {self.path} was changed; restore the store from a backup"
                raise StoreCorrupt(message)
            try:
                name = user.decode()
            except UnicodeDecodeError as error:
                message = f"the key {found[0]!r} of the store {self.path} names no user; restore the store from a backup"
                raise StoreCorrupt(message) from error
            yield name
            start = user + b"\1"

    def knows(self, user: str) -> bool:
        """Whether anything at all is stored of a user; InvalidInput for what is no user id."""
        key = user_key(user)
        return self.engine.first(key + b"\0", key + b"\1") is not None

    def head(self, user: str) -> Head | None:
        """The end of a user's log, None where no state was ever stored; raises StoreCorrupt."""
        return Draft(self.engine).head(user_key(user))

    def kept_count(self, user: str) -> int:
        """How many of a user's measurements are kept aside; raises StoreCorrupt."""
        key = keys.aside(user_key(user))
        aside = record(Aside, key, self.engine.get(key))
        return aside.count if aside is not None else 0

    def quarantine(self, user: str | None = None) -> Iterator[Kept]:
        """What is kept aside, of one user or of all: unreadable rows first, then by user and instant."""
        pages.check(self.engine, keys.UNREADABLE, keys.after(keys.UNREADABLE))
        yield from (row for row in self._unreadable() if user is None or row.user == user)
        for name in self.users() if user is None else (user,):
            key = user_key(name)
            aside = record(Aside, keys.aside(key), self.engine.get(keys.aside(key)))
            if aside is None or not aside.count:
                continue
            prefix = keys.identities(key)
            for at, value in self.engine.scan(prefix, keys.after(prefix)):
                kept = codec.unpack(Identity, codec.unseal(at, value))
                if kept.disposition != ACCEPTED:
                    yield Kept(name, keys.instant_of(at, key), kept.value, kept.unit, kept.source, kept.reason,
                               DISPOSITIONS[kept.disposition], kept.source_id, kept.row)

    def _unreadable(self) -> Iterator[Kept]:
        for at, value in self.engine.scan(keys.UNREADABLE, keys.after(keys.UNREADABLE)):
            row = codec.unpack(Unreadable, codec.unseal(at, value))
            source_id, number = int.from_bytes(at[2:10], "big"), int.from_bytes(at[10:18], "big")
            yield Kept(row.user, None, "", "", "", row.reason, "unreadable", source_id, number,
                       raw=row.raw, line=row.line, file=row.file)

    def cursor(self, source: bytes) -> Cursor | None:
        """How far a source was consumed; `source` is its 16-byte hash."""
        return record(Cursor, keys.cursor(source), self.engine.get(keys.cursor(source)))

    def audit(self, user: str | None = None, since_seq: int = 0) -> Iterator[Row]:
        """The rows of the audit log from `since_seq` on, oldest first, of one user or of all."""
        if user is None:
            pages.check(self.engine, keys.audit(since_seq), keys.after(keys.AUDIT))
            for _, value in self._audit_records(since_seq):
                yield audit.parse(value)
            return
        key = user_key(user)
        for at, _ in self.engine.scan(keys.audit_of(key, since_seq), keys.after(key + b"\0a")):
            row = self._audit_row(int.from_bytes(at[-8:], "big"))
            if row is not None:
                yield row

    def _audit_records(self, since_seq: int) -> Iterator[tuple[int, bytes]]:
        for key, value in self.engine.scan(keys.audit(since_seq), keys.after(keys.AUDIT)):
            yield int.from_bytes(key[2:], "big"), codec.unseal(key, value)

    def _audit_row(self, seq: int) -> Row | None:
        stored = self.engine.get(keys.audit(seq))
        return None if stored is None else audit.parse(codec.unseal(keys.audit(seq), stored))

    def audit_tail(self) -> tuple[int, str]:
        """The number of the newest audit row and its hash in hexadecimal, to note elsewhere; (0, zeros) when empty."""
        seq, digest = audit_tail(self.engine)
        return seq, digest.hex()

    def inspect(self, attempt_id: str) -> Row | None:
        """The outcome of an attempt; None when it has none (it had no effect, or is still under way)."""
        key = _attempt_key(attempt_id, fill="")
        seq = self.engine.get(key)
        return None if seq is None else self._outcome(key, seq)

    def attempts(self, prefix: str = "") -> Iterator[Row]:
        """The outcomes of the attempts whose id begins with `prefix`, in the order of their ids."""
        for key, seq in self.engine.scan(_attempt_key(prefix, fill="0"), _attempt_key(prefix, fill="f") + b"\0"):
            yield self._outcome(key, seq)

    def _outcome(self, key: bytes, seq: bytes) -> Row:
        """The row that an attempt's key leads to; the key's value has no checksum, so the row must name the attempt."""
        row = self._audit_row(int.from_bytes(seq, "big"))
        if row is None or not row.public.attempt_id or keys.attempt(row.public.attempt_id) != key:
            message = f"the way to the outcome of attempt {key[len(keys.ATTEMPT):].hex()} is damaged; look in the audit log"
            raise StoreCorrupt(message)
        return row

    def verify_audit(self, against: str | None = None) -> AuditCheck:
        """Recompute the whole chain; `against` is a head hash noted elsewhere, which must occur in it (INV-10).

        A row without its personal part is accepted where a later row of an act that erased it says so.  Raises StoreCorrupt
        where a page of the log would end the process that reads it.
        """
        return verify(self.engine, against)


_OPEN_STORES: weakref.WeakSet[Store] = weakref.WeakSet()


def _let_go_in_child() -> None:
    for store in list(_OPEN_STORES):
        if not store.readonly:
            store.marks.forget_in_child()
        store.engine.forget_in_child()


os.register_at_fork(after_in_child=_let_go_in_child)


def _attempt_key(attempt_id: str, *, fill: str) -> bytes:
    """The key of an attempt; what is missing of its 32 digits is `fill`, or must not be missing where that is empty."""
    digits = attempt_id.replace("-", "").lower()
    digits += fill * (ATTEMPT_DIGITS - len(digits))
    if len(digits) != ATTEMPT_DIGITS or not set(digits) <= set("0123456789abcdef"):
        message = f"{attempt_id[:80]!r} is no attempt id; one has {ATTEMPT_DIGITS} hexadecimal digits"
        raise InvalidInput(message)
    return keys.attempt(digits)


def _info(user: str, version: int, content: bytes) -> VersionInfo:
    if content[:1] == bytes((codec.IMAGE,)):
        image = codec.unpack(Image, content[1:])
        reading = codec.decode_step(image.step)[0] if image.step else None
        return VersionInfo(user, version, image.kind, image.at_us, image.author, image=True, reading=reading,
                           admitted=len(image.admitted))
    reading, _ = codec.decode_step(content)
    return VersionInfo(user, version, "measurement", reading.at_us, "", image=False, reading=reading, admitted=1)


def _must_create(directory: Path) -> bool:
    try:
        if not directory.exists():
            return True
        if not directory.is_dir():
            message = f"{directory} is a file; a store is a directory"
            raise StoreForeign(message)
        data = directory / door.DATA
        if not data.exists():
            names = sorted(child.name for child in directory.iterdir())[:3]
            if names:
                message = f"{directory} is no store: it holds {', '.join(names)}; give a new or empty directory"
                raise StoreForeign(message)
            return True
        if data.stat().st_size < 2 * os.sysconf("SC_PAGESIZE"):
            message = f"{data} has {data.stat().st_size} bytes, fewer than any store; restore it from a backup"
            raise StoreCorrupt(message)
    except OSError as error:
        message = f"the store {directory} cannot be read: {error}"
        raise StoreUnavailable(message) from error
    return False


def _first_records(estimator: Estimator, clock: Clock, ids: Ids) -> dict[bytes, bytes]:
    meta = Meta(ids.attempt_id(), estimator.name, estimator.schema, estimator.kernel, clock.now_us())
    return {keys.META: codec.seal(keys.META, codec.pack(meta))}


def checked_meta(engine: Engine, estimator: Estimator) -> Meta:
    """What the store is; raises StoreForeign unless it is one of ours, of a schema and of states that are known here."""
    stored = engine.get(keys.META)
    if stored is None:
        message = (f"{engine.path} is an LMDB environment, but no resetguard store; give another directory, or, if it was one, "
                   "restore it from a backup")
        raise StoreForeign(message)
    schema = codec.schema_of(stored)
    if schema is not None and schema > codec.SCHEMA and codec.is_sound(keys.META, stored):
        message = (f"the store {engine.path} is of schema {schema}, and this program reads {codec.READABLE[0]} to "
                   f"{codec.READABLE[-1]}: use a newer resetguard, the one that last wrote it or a later one")
        raise StoreForeign(message)
    meta = codec.unpack(Meta, codec.unseal(keys.META, stored))
    here = (estimator.name, estimator.schema, estimator.kernel)
    there = (meta.estimator, meta.estimator_schema, meta.kernel)
    if here != there:
        message = (f"{engine.path} holds states of {there[0]!r} (schema {there[1]}, arithmetic {there[2]}); "
                   f"it was opened for {here[0]!r} (schema {here[1]}, arithmetic {here[2]}); "
                   "open it with the estimator and the release that wrote it")
        raise StoreForeign(message)
    return meta
