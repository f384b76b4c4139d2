"""Backups of a store, made while others write, and stores made of backups; each is there whole or not at all.

A backup is a directory of two files: the data, and a manifest with the digest of its bytes, so that damage on the way
is found before LMDB reads a page of it.  A restored store has an id of its own, and its audit chain goes on.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final, NamedTuple

import msgspec

from statemachine import audit, codec
from statemachine.audit import require_said
from statemachine.breaker import released
from statemachine.clock import Clock, Ids, SystemClock, SystemIds, iso
from statemachine.errors import InvalidInput, StoreCorrupt, StoreFull, StoreUnavailable
from statemachine.estimator import BODY_WEIGHT, Estimator
from statemachine.state import user_key
from statemachine.store import Store, keys, making
from statemachine.store import engine as door
from statemachine.store.compaction import is_damaged
from statemachine.store.draft import breaker_key
from statemachine.store.engine import Engine
from statemachine.store.records import Meta

if TYPE_CHECKING:
    from collections.abc import Iterator

CHUNK_BYTES: Final = 1 << 20
MANIFEST_BYTES_MAX: Final = 1 << 16
MAP_BYTES: Final = 1 << 34
MAP_BYTES_MAX: Final = 1 << 40
WRITER_WAIT_S_MAX: Final = 30.0


class Manifest(msgspec.Struct, frozen=True):
    """What a backup says of itself: where from, when, and the size and SHA-256 of its data."""

    store_id: str
    made_us: int
    bytes: int
    sha256: str
    seq: int
    hash: str


class Backup(NamedTuple):
    """A backup that was made and verified: `bytes` of data, number and hash of the last audit row in it.

    `damaged` records of the store were copied as they were.
    """

    path: Path
    bytes: int
    seq: int
    hash: str
    damaged: int


class Restored(NamedTuple):
    """A store made of a backup: its new id, the old one, its last audit row, owners removed and probes given back.

    `damaged` records of the backup were copied as they were.
    """

    path: Path
    store_id: str
    from_store_id: str
    seq: int
    hash: str
    owners_removed: int
    probes_released: int
    damaged: int


def backup(store: Store, directory: str | os.PathLike[str]) -> Backup:
    """Copy what is committed at one moment into a new (or empty) directory; whole, verified and durable on return.

    Other processes and threads may write meanwhile; the store may be open for reading.  A crash leaves nothing at the
    target.  Raises InvalidInput for a target that holds anything, StoreCorrupt where the copy's audit log is not sound,
    StoreFull and StoreUnavailable.
    """
    path = _target(directory, apart_from=store.path)
    with _trouble(f"the backup {path}"), making.placed(path) as aside:
        store.engine.copy_to(aside / door.DATA)
        seq, digest, damaged = _verified(aside, store.estimator)
        size = (aside / door.DATA).stat().st_size
        manifest = Manifest(store.store_id, store.clock.now_us(), size, _sha256(aside / door.DATA), seq, digest)
        _write(aside / door.MANIFEST, msgspec.json.encode(manifest))
    return Backup(path, size, seq, digest, damaged)


def restore_store(  # noqa: PLR0913 - two of them are recorded, three are what a store is opened with
    backup: str | os.PathLike[str], directory: str | os.PathLike[str], actor: str, reason: str, *,
    estimator: Estimator = BODY_WEIGHT, clock: Clock | None = None, ids: Ids | None = None,
) -> Restored:
    """Make a store of a backup, in a new (or empty) directory; whole, verified and durable on return.

    It has an id of its own, no owners, and no leased probe; the audit chain goes on with a row "store.restored".  The
    backup is only read.  Raises InvalidInput for a target that holds anything or for what is no backup, StoreCorrupt
    for a damaged one, StoreForeign for one of another estimator, StoreFull and StoreUnavailable; then nothing is made.
    """
    require_said(actor=actor, reason=reason)
    source = Path(os.path.realpath(backup))
    path = _target(directory, apart_from=source)
    clock, ids = clock or SystemClock(), ids or SystemIds()
    manifest = _manifest(source)
    with _trouble(f"the store {path}"), making.placed(path) as aside:
        _copy(source / door.DATA, aside / door.DATA, manifest)
        seq, digest, _ = _verified(aside, estimator)
        if (seq, digest) != (manifest.seq, manifest.hash):
            message = f"{source} ends its audit log at row {seq}, but its manifest says {manifest.seq}; it is damaged"
            raise StoreCorrupt(message)
        store_id = _rename_store(aside, clock, ids)
        with Store.open(aside, estimator=estimator, clock=clock, ids=ids) as store:
            owners, probes = _begin_anew(store, manifest, actor=actor, reason=reason)
        seq, digest, damaged = _verified(aside, estimator)
        making.furnish(aside)
    return Restored(path, store_id, manifest.store_id, seq, digest, owners, probes, damaged)


def _target(directory: str | os.PathLike[str], *, apart_from: Path) -> Path:
    """Where to build; InvalidInput unless nothing is there, or an empty directory, outside of what is copied."""
    path, other = Path(os.path.realpath(directory)), Path(os.path.realpath(apart_from))
    if path == other or other in path.parents:
        message = f"{path} lies in {other}, which is what is copied; name a directory outside of it"
        raise InvalidInput(message)
    try:
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            message = f"{path} is there already, and not an empty directory; name a new one: nothing is ever overwritten"
            raise InvalidInput(message)
        here = path.exists() and path.samefile(".")
    except OSError as error:
        message = f"{path} cannot be looked into: {error}"
        raise StoreUnavailable(message) from error
    if here:
        message = f"{path} is the current directory and cannot be replaced; name a directory in it"
        raise InvalidInput(message)
    return path


@contextlib.contextmanager
def _trouble(what: str) -> Iterator[None]:
    """The system's errors in our own tree."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            message = f"{what} was made by somebody else meanwhile; nothing was overwritten"
            raise InvalidInput(message) from error
        if error.errno in door.FULL:
            message = f"{what} was not made: the disk is full; free some space, then try again"
            raise StoreFull(message) from error
        message = f"{what} was not made: {error}; choose a directory that can be written"
        raise StoreUnavailable(message) from error


def _verified(directory: Path, estimator: Estimator) -> tuple[int, str, int]:
    """The end of the audit log of a store at rest, read whole, and how many records in it are damaged.

    Raises StoreCorrupt where the audit log is not sound; any other damage was there before, and a copy of it is better than none.
    """
    try:
        with Store.open(directory, estimator=estimator, readonly=True) as store:
            check = store.verify_audit()
            if check.bad_seq is not None:
                message = f"nothing was made: the audit log is not sound at row {check.bad_seq}: {check.problem}"
                raise StoreCorrupt(message)
            damaged = sum(is_damaged(key, value) for key, value in store.engine.scan(b"\0", b"\xff"))
            return *store.audit_tail(), damaged
    finally:
        (directory / door.LMDB_LOCK).unlink(missing_ok=True)  # nobody else knows this directory yet


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _new(path: Path) -> BinaryIO:
    """A new file that nobody else may read."""
    return os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600), "wb")


def _write(path: Path, content: bytes) -> None:
    with _new(path) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _manifest(source: Path) -> Manifest:
    path = source / door.MANIFEST
    try:
        with path.open("rb") as file:
            return msgspec.json.decode(file.read(MANIFEST_BYTES_MAX), type=Manifest)
    except (FileNotFoundError, NotADirectoryError) as error:
        message = f"{source} is no backup: it has no {door.MANIFEST}; `resetguard backup DIR` makes one"
        raise InvalidInput(message) from error
    except OSError as error:
        message = f"the backup {source} cannot be read: {error}"
        raise StoreUnavailable(message) from error
    except msgspec.MsgspecError as error:
        message = f"{path} is damaged: {error}; use another backup"
        raise StoreCorrupt(message) from error


def _copy(source: Path, target: Path, manifest: Manifest) -> None:
    """Copy the data; raises StoreCorrupt unless what was copied is, byte for byte, what the manifest tells of."""
    digest, size = hashlib.sha256(), 0
    try:
        with source.open("rb") as read, _new(target) as written:
            while chunk := read.read(CHUNK_BYTES):
                digest.update(chunk)
                written.write(chunk)
                size += len(chunk)
            written.flush()
            os.fsync(written.fileno())
    except FileNotFoundError as error:
        message = f"the backup has lost its data: there is no {source}; use another backup"
        raise StoreCorrupt(message) from error
    if (size, digest.hexdigest()) != (manifest.bytes, manifest.sha256):
        message = f"{source} is damaged: its {size} bytes are not the {manifest.bytes} that were backed up; use another backup"
        raise StoreCorrupt(message)


def _rename_store(directory: Path, clock: Clock, ids: Ids) -> str:
    """Give the copy an id of its own, before it is opened as a store; the new id."""
    engine = Engine(directory, sync=True, map_bytes=MAP_BYTES, map_bytes_max=MAP_BYTES_MAX,
                    writer_wait_s_max=WRITER_WAIT_S_MAX, clock=clock)
    try:
        meta = codec.unpack(Meta, codec.unseal(keys.META, engine.get(keys.META) or b""))
        own = msgspec.structs.replace(meta, store_id=ids.attempt_id())
        with engine.turn():
            engine.update(lambda put: put(keys.META, codec.seal(keys.META, codec.pack(own))))
    finally:
        engine.close()
    return own.store_id


def _begin_anew(store: Store, manifest: Manifest, *, actor: str, reason: str) -> tuple[int, int]:
    """Remove the old owners, give leased probes back and write the row of it, in one commit; how many of each."""
    draft = store.draft()
    own = keys.owner(store.committer.owner)
    owners = [key for key, _ in store.engine.scan(keys.OWNER, keys.after(keys.OWNER)) if key != own]
    for key in owners:
        draft.delete(key)
    probes = 0
    for user in (b"", *map(user_key, store.users())):
        with contextlib.suppress(StoreCorrupt):  # a breaker that cannot be read stays for whoever inspects the damage
            record = draft.stored_breaker(user)
            free = released(record, record.probe)
            if free is not record:
                draft.put(breaker_key(user), codec.pack(free))
                probes += 1
    origin = {"store_id": manifest.store_id, "seq": manifest.seq, "hash": manifest.hash, "written_at": iso(manifest.made_us)}
    details = {"backup": origin, "owners_removed": len(owners), "probes_released": probes}
    draft.entries.append(audit.act("store.restored", store.ids.attempt_id(), actor=actor, reason=reason,
                                   at_us=store.clock.now_us(), details=details))
    store.commit(draft)
    return len(owners), probes
