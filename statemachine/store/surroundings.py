"""What a store lies in: its directory, disk, map, readers and owners; and whether the file system can hold a store at all."""

from __future__ import annotations

import os
import re
import shutil
import stat
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Final

from statemachine.clock import US_PER_DAY
from statemachine.errors import ResetError, StoreUnavailable
from statemachine.marks import ASIDE, DeadMarks, files
from statemachine.store import engine as door
from statemachine.store import making, presence
from statemachine.store.careful import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from statemachine.store import Store

CHECKS: Final = (
    "marks", "leftovers", "quarantine age", "readers", "map", "disk", "lock file", "modes", "import name", "file system",
)
NETWORK: Final = frozenset({
    "nfs", "nfs4", "cifs", "smb3", "smbfs", "fuse.sshfs", "afs", "ceph", "fuse.ceph", "glusterfs", "fuse.glusterfs", "lustre",
})
"""File systems whose memory maps and locks are not coherent between machines."""
MAP_SHARE_MAX: Final = 0.8
DISK_SHARE_MIN: Final = 0.1
READER_COMMITS_MAX: Final = 1_000
"""How many commits a reader may lie behind before the pages it keeps alive are worth a word."""
mount_table: Path = Path("/proc/self/mountinfo")
_ESCAPE: Final = re.compile(r"\\([0-7]{3})")


def file_system(path: Path) -> str | None:
    """The kind of file system that `path` lies on, or would be made on; None where the system does not tell."""
    try:
        lines = mount_table.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return None
    real = os.path.realpath(path)
    best, kind = -1, None
    for line in lines:  # each opening of a store comes here: strings, which are ten times as fast as paths
        before, _, after = line.partition(" - ")
        fields, tail = before.split(" ", 5), after.split(" ", 1)
        if len(fields) < 5 or not tail[0]:  # noqa: PLR2004 - the fifth field is the mount point
            continue
        point = fields[4]
        if "\\" in point:
            point = _ESCAPE.sub(lambda m: chr(int(m[1], 8)), point)
        if len(point) >= best and (real == point or real.startswith(f"{point.rstrip('/')}/")):
            best, kind = len(point), tail[0]
    return kind


def refuse_network(path: Path) -> None:
    """Raise StoreUnavailable where `path` lies on a network file system; nothing is made or opened before."""
    kind = file_system(path)
    if kind in NETWORK:
        message = (f"the store {path} lies on a network file system ({kind}), whose memory maps and locks are not coherent "
                   "between machines; put it on a disk of this machine")
        raise StoreUnavailable(message)


def dead_owners(store: Store) -> Iterator[tuple[str, int]]:
    """The owners that are gone with attempts that nobody has settled, and how many; changes nothing, raises StoreBusy."""
    own = None if store.readonly else store.committer.owner
    for number, path in [] if not _owners(store) else files(store.path / door.OWNERS):
        if number == own:
            continue
        with store.engine.stillness():  # whoever makes such a file locks it within its own turn
            dead = DeadMarks.take(path)
            unsettled = []
            if dead is not None:
                try:
                    unsettled = dead.marks()
                finally:
                    dead.leave()
        if unsettled:
            yield path.name, len(unsettled)


def _owners(store: Store) -> list[Path]:
    """The files of marks, by name; a backup has none."""
    owners = store.path / door.OWNERS
    return [] if (store.path / door.MANIFEST).exists() and not owners.exists() else sorted(owners.iterdir())


def examine(store: Store) -> Iterator[Finding]:
    """All findings about what the open store lies in; changes nothing, raises nothing for what it finds."""
    for check, look in (("marks", _marks), ("leftovers", _leftovers), ("readers", _readers), ("map", _map), ("disk", _disk),
                        ("lock file", _lock_file), ("modes", _modes)):
        try:
            yield from look(store)
        except (OSError, ResetError) as error:
            yield Finding(check, "error", str(store.path), f"it cannot be looked at: {error}",
                          "see that it is there and can be read")
    yield from import_name(metadata.packages_distributions().get("statemachine", []))
    kind = file_system(store.path)
    if kind in NETWORK:
        yield Finding("file system", "error", str(store.path), f"it lies on a network file system ({kind})",
                      "move it to a disk of this machine: maps and locks are not coherent there")


def quarantine_age(oldest_us: int | None, now_us: int, days_max: int) -> Iterator[Finding]:
    """A warning where the oldest measurement kept aside, by its own instant, is older than `days_max`."""
    days = 0 if oldest_us is None else (now_us - oldest_us) // US_PER_DAY
    if days > days_max:
        yield Finding("quarantine age", "warning", "the quarantine",
                      f"the oldest measurement kept aside is of {days} days ago, more than {days_max}",
                      "look at it with `resetguard quarantine list`")


def import_name(owners: list[str]) -> Iterator[Finding]:
    """An error where more than one installed distribution has a package `statemachine`; `owners` are their names."""
    names = sorted(set(owners))
    if len(names) > 1:
        yield Finding("import name", "error", "the package statemachine", f"distributions that own it: {', '.join(names)}",
                      "uninstall all of them, then install the one you need: their files overwrite one another")


def _marks(store: Store) -> Iterator[Finding]:
    for owner, attempts in dead_owners(store):
        yield Finding("marks", "warning", f"owner {owner}", f"its process is gone, and {attempts} attempts of it are unsettled",
                      "open the store for writing, as the next `resetguard process` or `recover` does: that settles them")
    for path in sorted((store.path / door.OWNERS).glob(f"*{ASIDE}")):
        yield Finding("marks", "warning", str(path), "marks of attempts that no process here could read are kept in it",
                      "a newer resetguard may have written them: give the file its old name, without the ending, and open the "
                      "store with that one; else delete it: what the attempts did, if anything, is in the log")


def _leftovers(store: Store) -> Iterator[Finding]:
    for left in making.leftovers(store.path.parent):
        yield Finding("leftovers", "warning", str(left),
                      "a backup or a store that was being made when its process died; it may hold a copy of everybody's data",
                      "delete it, or make a backup in the same directory: that deletes it")


def _readers(store: Store) -> Iterator[Finding]:
    newest = store.engine.info()["last_txnid"]
    for process, txn in store.engine.readers():
        if not presence.lives(process):
            yield Finding("readers", "warning", f"process {process}", "it died while reading, and its slot keeps old pages alive",
                          "open the store once more: opening frees the slot")
        elif txn is not None and newest - txn > READER_COMMITS_MAX:
            yield Finding("readers", "warning", f"process {process}", f"it has been reading since {newest - txn} commits ago",
                          "end it, or have it read in short transactions: meanwhile the file grows")


def _map(store: Store) -> Iterator[Finding]:
    share = map_share(store)
    if share > MAP_SHARE_MAX:
        yield Finding("map", "warning", str(store.path),
                      f"{share:.0%} of the {store.limits.map_bytes_max} bytes it may have are used",
                      "raise StoreLimits.map_bytes_max")


def map_share(store: Store) -> float:
    """How much of the largest map is used, from 0 to 1, by the highest page that was ever written."""
    info = store.engine.info()
    return float((info["last_pgno"] + 1) * info["psize"] / store.limits.map_bytes_max)


def _disk(store: Store) -> Iterator[Finding]:
    disk, data_bytes = shutil.disk_usage(store.path), (store.path / door.DATA).stat().st_size
    if disk.free < DISK_SHARE_MIN * disk.total:
        yield Finding("disk", "warning", str(store.path), f"{disk.free / disk.total:.0%} of the disk is free", "free some space")
    elif disk.free < data_bytes:
        yield Finding("disk", "warning", str(store.path), f"{disk.free} bytes are free, fewer than the store's {data_bytes}",
                      "free some space: there is no room for a copy of it")


def _lock_file(store: Store) -> Iterator[Finding]:
    if not (store.path / door.LMDB_LOCK).exists():
        yield Finding("lock file", "error", str(store.path / door.LMDB_LOCK), "it is missing while the store is open",
                      "stop every process that has the store open, then start them again; never delete it")


def _modes(store: Store) -> Iterator[Finding]:
    for path in (store.path, *sorted(store.path.iterdir()), *_owners(store)):
        try:
            mode = path.stat().st_mode
        except FileNotFoundError:  # an owner that ended meanwhile
            continue
        wanted = 0o700 if stat.S_ISDIR(mode) else 0o600
        if stat.S_IMODE(mode) & ~wanted:
            yield Finding("modes", "warning", str(path),
                          f"its mode is {stat.S_IMODE(mode):04o}: others than its owner may use it", f"chmod {wanted:04o}")
