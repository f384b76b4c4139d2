"""A store's file made anew, record by record: `compact` gives free pages back, `migrate` raises older schemas.

Only a new file holds nothing but its records: the pages of one in use keep what they held before, and LMDB's own copy
keeps keys of deleted records as bounds between pages.

The new file is built and verified in a directory in the store, while nobody else has the store open (`presence`), and
takes the place of the old one by one rename.  So at every instant, and after the death of the process at any instant, the
store is the old one or the new one.  What a dead process left is removed by the next opening for writing.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
import xxhash

from statemachine import audit, codec
from statemachine.audit import require_said
from statemachine.breaker import Breaker
from statemachine.clock import Clock, Ids, SystemClock, SystemIds
from statemachine.errors import InvalidInput, StoreCorrupt, StoreFull, StoreUnavailable
from statemachine.estimator import BODY_WEIGHT, Estimator
from statemachine.store import Store, StoreLimits, checked_meta, keys, making, pages
from statemachine.store import engine as door
from statemachine.store.committer import audit_tail
from statemachine.store.engine import Engine
from statemachine.store.records import Aside, Meta
from statemachine.store.surroundings import refuse_network
from statemachine.store.verification import verify

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FIRST: Final = b"\0"
LAST: Final = b"\xff"
"""No key begins with it: users are UTF-8."""
ROWS_A_COMMIT: Final = 10_000
ROOM_BYTES: Final = 1 << 22
"""What the new file takes beside the pages in use of the old one: meta pages, free pages of its own, one row."""

Counts = dict[str, dict[int, int]]
"""How many records there are of each kind, by schema."""


class Compacted(NamedTuple):
    """What was made: sizes of the file in bytes, records in it, and how many of them are damaged (they are kept as they are).

    `seq` and `hash` are of the last row of the audit log, which tells of this.
    """

    path: Path
    store_id: str
    bytes_before: int
    bytes_after: int
    records: int
    damaged: int
    seq: int
    hash: str
    attempt_id: str


class Migrated(NamedTuple):
    """Records by kind and schema, before and after; `done` is None where nothing was of an older schema, or only looked at."""

    before: Counts
    after: Counts
    done: Compacted | None


def compact(  # noqa: PLR0913 - two are recorded, the others are what a store is opened with
    directory: str | os.PathLike[str], actor: str, reason: str, *, estimator: Estimator = BODY_WEIGHT,
    limits: StoreLimits | None = None, clock: Clock | None = None, ids: Ids | None = None,
) -> Compacted:
    """Make the file of a store anew, without free pages and without any byte that is no record's; durable on return.

    The store keeps its id, its numbers and its audit chain, which goes on with a row "store.compacted".  Raises StoreBusy,
    naming them, while other processes (or this one) have the store open, for reading too; StoreFull where the disk has no
    room for a second file; StoreCorrupt where a page cannot be read or the audit log is not sound; nothing is changed then.
    """
    work = _Work(directory, actor, reason, estimator, limits, clock, ids)
    with work.alone() as engine:
        return work.rewritten(engine, "store.compacted", lambda _, value: value, {})


def migrate(  # noqa: PLR0913 - as for `compact`
    directory: str | os.PathLike[str], actor: str, reason: str, *, estimator: Estimator = BODY_WEIGHT,
    limits: StoreLimits | None = None, clock: Clock | None = None, ids: Ids | None = None,
) -> Migrated:
    """Raise every record of an older schema to the present one, in a file made anew as by `compact`; durable on return.

    Its audit row is "store.migrated".  A store in which nothing is older is left as it is.  Raises what `compact` raises.
    """
    work = _Work(directory, actor, reason, estimator, limits, clock, ids)
    with work.alone() as engine:
        before = schemas(engine)
        if not is_older(before):
            return Migrated(before, before, None)
        done = work.rewritten(engine, "store.migrated", present, {"before": _told(before)})
        after = {kind: {codec.SCHEMA: sum(found.values())} for kind, found in before.items()}
        return Migrated(before, after, done)


def schemas(engine: Engine) -> Counts:
    """How many sound or damaged records of each kind say which schema; records without a frame have none and are left out."""
    found: dict[str, Counter[int]] = {}
    for key, value in engine.scan(FIRST, LAST):
        schema, kind = codec.schema_of(value), keys.kind_of(key)
        if schema is not None and kind not in keys.UNFRAMED:
            found.setdefault(kind, Counter())[schema] += 1
    return {kind: dict(sorted(found[kind].items())) for kind in sorted(found)}


def is_older(counts: Counts) -> bool:
    """Whether any record is of an older schema than the present one."""
    return any(schema < codec.SCHEMA for found in counts.values() for schema in found)


def present(key: bytes, value: bytes) -> bytes:
    """A record as the present schema has it; one of it, or without a frame, or damaged, as it is."""
    kind, schema = keys.kind_of(key), codec.schema_of(value)
    if kind in keys.UNFRAMED or schema is None or schema == codec.SCHEMA:
        return value
    extended = _EXTENDED.get(kind)
    try:
        if extended is None:
            return codec.raised(key, value)
        return codec.seal(key, codec.pack(codec.unpack(extended, codec.unseal(key, value))))
    except StoreCorrupt:
        return value


_EXTENDED: Final[dict[str, type[Any]]] = {"breaker": Breaker, "kept aside": Aside}
"""The records to which a schema after the first has added; all others differ in their frame alone."""


def is_damaged(key: bytes, value: bytes) -> bool:
    """Whether a stored record does not verify: those without a frame of their own always do."""
    return keys.kind_of(key) not in keys.UNFRAMED and not (codec.schema_of(value) in codec.READABLE
                                                           and codec.is_sound(key, value))


class _Sum:
    """What was copied: how many records, how many of them damaged, and a digest of all that must come back the same."""

    def __init__(self, apart: frozenset[bytes]) -> None:
        self.records = 0
        self.damaged = 0
        self._apart = apart
        self._digest = xxhash.xxh3_128()

    def add(self, key: bytes, value: bytes) -> None:
        if key not in self._apart:
            self.records += 1
            self._digest.update(b"%d %d " % (len(key), len(value)) + key + value)

    def judge(self, key: bytes, value: bytes) -> None:
        """Count a record that does not verify; what is read back to the same digest need not be judged again."""
        self.damaged += is_damaged(key, value)

    def told(self) -> tuple[int, str]:
        return self.records, self._digest.hexdigest()


class _Work:
    """One making anew of a store's file."""

    meta: Meta

    def __init__(  # noqa: PLR0913 - the arguments of `compact`
        self, directory: str | os.PathLike[str], actor: str, reason: str, estimator: Estimator, limits: StoreLimits | None,
        clock: Clock | None, ids: Ids | None,
    ) -> None:
        require_said(actor=actor, reason=reason)
        self.path = Path(directory).absolute()
        self.actor, self.reason, self.estimator = actor, reason, estimator
        self.limits = limits or StoreLimits()
        self.clock, self.ids = clock or SystemClock(), ids or SystemIds()
        self.aside = self.path / door.ANEW
        if not (self.path / door.DATA).is_file():
            message = f"there is no store at {self.path}; name the directory of one"
            raise InvalidInput(message)
        if (self.path / door.MANIFEST).exists():
            message = f"{self.path} is a backup, which is never changed; `resetguard restore-store` makes a store of it"
            raise InvalidInput(message)
        refuse_network(self.path)

    @contextlib.contextmanager
    def alone(self) -> Iterator[Engine]:
        """The store, open for nobody else, with the system's errors in our own tree."""
        try:
            engine = Engine(self.path, sync=True, map_bytes=self.limits.map_bytes, map_bytes_max=self.limits.map_bytes_max,
                            writer_wait_s_max=self.limits.writer_wait_s_max, clock=self.clock, readonly=True, alone=True)
            try:
                engine.lengthen()
                pages.check(engine)
                self.meta = checked_meta(engine, self.estimator)
                yield engine
            finally:
                engine.close()
        except OSError as error:
            if error.errno in door.FULL:
                message = f"the file of the store {self.path} was not made anew: the disk is full; nothing was changed"
                raise StoreFull(message) from error
            message = f"the file of the store {self.path} was not made anew: {error}"
            raise StoreUnavailable(message) from error

    def rewritten(
        self, engine: Engine, event: str, change: Callable[[bytes, bytes], bytes], details: dict[str, Any],
    ) -> Compacted:
        """The new file, verified and in its place."""
        meta, before = self.meta, (self.path / door.DATA).stat().st_size
        self._require_room(engine)
        making.clear_anew(self.path)
        try:
            self.aside.mkdir(mode=0o700)
            attempt_id = self.ids.attempt_id()
            seq = audit_tail(engine)[0] + 1
            apart = frozenset({keys.META, keys.CHAIN, keys.audit(seq), keys.attempt(attempt_id)})
            copied = _Sum(apart)
            self._write(engine, change, copied)
            details = {**details, "records": copied.records, "damaged": copied.damaged, "bytes_before": before,
                       "bytes_after": (self.aside / door.DATA).stat().st_size}
            with Store.open(self.aside, estimator=self.estimator, limits=self.limits, clock=self.clock, ids=self.ids) as store:
                draft = store.draft()
                draft.entries.append(audit.act(event, attempt_id, actor=self.actor, reason=self.reason,
                                               at_us=self.clock.now_us(), details=details))
                store.commit(draft)
            digest = self._verified(copied, apart, seq, msgspec.structs.replace(meta, owners=meta.owners + 1))
            after = self._put_in_place()
        finally:
            shutil.rmtree(self.aside, ignore_errors=True)
        return Compacted(self.path, meta.store_id, before, after, copied.records + len(apart), copied.damaged, seq, digest,
                         attempt_id)

    def _require_room(self, engine: Engine) -> None:
        info = engine.info()
        wanted = (info["branch_pages"] + info["leaf_pages"] + info["overflow_pages"]) * info["psize"] + ROOM_BYTES
        free = shutil.disk_usage(self.path).free
        if free < wanted:
            message = (f"the disk of {self.path} has {free} bytes free, and a second file beside the first takes {wanted}; "
                       "free some space, then try again: nothing was changed")
            raise StoreFull(message)

    def _write(self, engine: Engine, change: Callable[[bytes, bytes], bytes], copied: _Sum) -> None:
        """Write every record to the new file, in the order of the keys; the count must be the one that LMDB has."""
        info, seen = engine.info(), 0
        last = b""
        with making.fresh(self.aside, info["map_size"]) as put_all:
            chunk: list[tuple[bytes, bytes]] = []
            for key, value in engine.scan(FIRST, LAST):
                if key <= last:
                    message = f"the keys of the store {self.path} are out of order at {key!r}; restore it from a backup"
                    raise StoreCorrupt(message)
                last, value = key, change(key, value)  # noqa: PLW2901 - the record as it is written
                copied.add(key, value)
                copied.judge(key, value)
                chunk.append((key, value))
                seen += 1
                if len(chunk) == ROWS_A_COMMIT:
                    put_all(chunk)
                    chunk.clear()
            put_all(chunk)
        if seen != info["entries"]:
            message = (f"{seen} records of the store {self.path} can be reached, and it says that it has {info['entries']}; "
                       "its pages are damaged: restore it from a backup")
            raise StoreCorrupt(message)

    def _verified(self, copied: _Sum, apart: frozenset[bytes], seq: int, meta: Meta) -> str:
        """Read the new file whole: the records that were copied and one more row, nothing else; the hash of that row."""
        read = _Sum(apart)
        engine = Engine(self.aside, sync=True, map_bytes=self.limits.map_bytes, map_bytes_max=self.limits.map_bytes_max,
                        writer_wait_s_max=self.limits.writer_wait_s_max, clock=self.clock, readonly=True)
        try:
            for key, value in engine.scan(FIRST, LAST):
                read.add(key, value)
            entries = engine.info()["entries"]
            same = read.told() == copied.told() and entries == copied.records + len(apart)
            if not same or checked_meta(engine, self.estimator) != meta:
                message = f"the new file of {self.path} does not hold what the old one holds; nothing was changed: try again"
                raise StoreCorrupt(message)
            check = verify(engine, None)
            if check.bad_seq is not None or check.rows != seq:
                message = (f"the audit log of {self.path} is not sound at row {check.bad_seq}: {check.problem}; nothing was "
                           "changed, because the file is evidence: restore a backup, or look into it first")
                raise StoreCorrupt(message)
            return check.head_hash
        finally:
            engine.close()

    def _put_in_place(self) -> int:
        """Rename the new file over the old one, durably; its size."""
        new, old = self.aside / door.DATA, (self.path / door.DATA).stat()
        if (new.stat().st_uid, new.stat().st_gid) != (old.st_uid, old.st_gid):
            os.chown(new, old.st_uid, old.st_gid)  # an operator's rights must not shut the store's own user out
        new.chmod(stat.S_IMODE(old.st_mode))
        door.fsync(new)
        size = new.stat().st_size
        new.rename(self.path / door.DATA)
        door.fsync(self.path)
        return size


def _told(counts: Counts) -> dict[str, dict[str, int]]:
    return {kind: {str(schema): count for schema, count in found.items()} for kind, found in counts.items()}
