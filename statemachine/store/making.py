"""How the files of a store come to be: built aside and put in their place, so that they are there whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import lmdb

from statemachine.errors import StoreFull, StoreUnavailable
from statemachine.store import presence
from statemachine.store.engine import (
    ANEW,
    DATA,
    FULL,
    LMDB_MAJOR,
    OPENER,
    OWNERS,
    PARTS,
    WRITER_LOCK,
    Opener,
    fsync,
    translated,
)

_LEFTOVER: Final = re.compile(r"\..+\.new-([0-9]+)-[0-9]+", re.DOTALL)


def create(path: Path, records: dict[bytes, bytes], opener: Opener = OPENER) -> None:
    """Make a store at `path` holding `records`: after a crash at any point it is there whole, or not at all.

    LMDB's own creation is not crash-atomic, so it is built aside, synced with its directory, renamed into place, and
    the parent directory is synced.  Where another process was faster, its store stands.
    """
    path = Path(os.path.realpath(path))
    with contextlib.suppress(OSError):
        if path.samefile("."):
            message = f"{path} is the current directory and cannot be replaced by a store; name a directory in it"
            raise StoreUnavailable(message)
    try:
        with placed(path) as aside:
            env = opener(str(aside), map_size=1 << 24, subdir=True, mode=0o600, max_dbs=0, lib_version=LMDB_MAJOR)
            with env.begin(write=True) as txn:
                for key, value in records.items():
                    txn.put(key, value)
            env.sync(True)  # noqa: FBT003 - py-lmdb takes it by position
            env.close()
            furnish(aside)
    except lmdb.Error as error:
        raise translated(error, "creating", path) from error
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST) and (path / DATA).exists():
            return
        if error.errno in FULL:
            message = f"creating the store {path}: the disk is full; free some space, then try again"
            raise StoreFull(message) from error
        message = f"creating the store {path}: {error}; choose a directory that can be written"
        raise StoreUnavailable(message) from error


@contextlib.contextmanager
def placed(path: Path) -> Iterator[Path]:
    """A new directory (0700) aside, which becomes `path` when the block ends: whole, or after a crash or error not at all.

    Whoever fills it syncs its files.  `path` must be absent or an empty directory; OSError where it is not.  What
    processes that died left beside `path` is removed, whatever it was to become: each may hold a copy of somebody's data.
    """
    if path.is_mount():
        message = f"{path} is a mount point, which cannot be replaced by a directory made aside; name a directory in it"
        raise StoreUnavailable(message)
    aside = path.with_name(f".{path.name}.new-{os.getpid()}-{threading.get_ident()}")
    try:
        _make_parents(path.parent)
        for left in leftovers(path.parent):
            shutil.rmtree(left, ignore_errors=True)
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(mode=0o700)
        held = presence.building(aside)
        try:
            yield aside
            fsync(aside)
            aside.rename(path)
            fsync(path.parent)
        finally:
            presence.let_go(held)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def furnish(directory: Path) -> None:
    """Give a directory that holds the data what else a store has, and make all of it durable."""
    (directory / OWNERS).mkdir(mode=0o700, exist_ok=True)
    os.close(os.open(directory / WRITER_LOCK, os.O_CREAT | os.O_RDWR, 0o600))
    fsync(directory / DATA)
    fsync(directory / OWNERS)


def _make_parents(directory: Path) -> None:
    """Make the directories that are missing, each durable in the one above it."""
    missing = [p for p in (directory, *directory.parents) if not p.exists()]
    for made in reversed(missing):
        made.mkdir(exist_ok=True)
        fsync(made.parent)


def leftovers(directory: Path) -> list[Path]:
    """What the making of stores and backups, cut off by the death of their processes, left in a directory."""
    return [left for left in sorted(directory.glob(".*.new-*-*")) if _is_left_over(left)]


def _is_left_over(directory: Path) -> bool:
    """Whether a directory has the name and the contents of one that is filled aside, and nobody is filling it."""
    named = _LEFTOVER.fullmatch(directory.name)
    try:
        if named is None or presence.lives(int(named[1])) or directory.is_symlink():
            return False
        return {child.name for child in directory.iterdir()} <= PARTS and presence.is_free(directory)
    except (OSError, OverflowError):  # somebody else's, or no number of a process
        return False


def clear_anew(directory: Path) -> None:
    """Remove what a making anew cut off by the death of its process left; call only while the store is open, or alone."""
    if (directory / ANEW).exists():
        shutil.rmtree(directory / ANEW, ignore_errors=True)


@contextlib.contextmanager
def fresh(directory: Path, map_bytes: int) -> Iterator[Callable[[list[tuple[bytes, bytes]]], None]]:
    """A data file made in an empty directory, filled by calls with records in the order of their keys; durable at the end."""
    try:
        env = lmdb.open(str(directory), map_size=map_bytes, subdir=True, mode=0o600, max_dbs=0, sync=False,
                        lib_version=LMDB_MAJOR)
        try:
            def put_all(records: list[tuple[bytes, bytes]]) -> None:
                with env.begin(write=True) as txn, txn.cursor() as cursor:
                    cursor.putmulti(records, append=True)

            yield put_all
            env.sync(True)  # noqa: FBT003
        finally:
            env.close()
    except lmdb.Error as error:
        raise translated(error, "making anew", directory) from error
