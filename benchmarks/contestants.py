"""What a reset can be done with instead: each writes the bytes of one guarded reset, durably, as its manual says.

A contestant is opened in a directory of its own and then called once a round with the number of the round and the records that
a guarded reset has put, so that all of them meet the same moments of the disk and the same bytes, which no round has had before:
some stores skip a write of what is there already.
"""

from __future__ import annotations

import copy
import os
import pickle
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import lmdb
import numpy as np

Records = list[tuple[bytes, bytes]]
Once = Callable[[int, Records], object]
MAP_BYTES = 1 << 30
OPERATIONS = 4
SLOTS, SLOT_BYTES = 64, 1 << 14


class Contestant(NamedTuple):
    """`open(directory, sync)` gives what is called once a round; ImportError where its library is not installed."""

    name: str
    what: str
    open: Callable[[Path, bool], Once]


def bare_write(directory: Path, sync: bool) -> Once:
    """One pwrite of the bytes and one fdatasync: what the disk itself takes."""
    descriptor = os.open(directory / "bytes", os.O_CREAT | os.O_RDWR, 0o600)
    os.pwrite(descriptor, bytes(SLOTS * SLOT_BYTES), 0)
    os.fsync(descriptor)

    def once(number: int, records: Records) -> None:
        os.pwrite(descriptor, b"".join(key + value for key, value in records), number % SLOTS * SLOT_BYTES)
        if sync:
            os.fdatasync(descriptor)
    return once


def sqlite(directory: Path, sync: bool) -> Once:
    """One transaction of sqlite3 in WAL mode, synchronous=FULL."""
    database = sqlite3.connect(directory / "store.sqlite", isolation_level=None)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute(f"PRAGMA synchronous={'FULL' if sync else 'OFF'}")
    database.execute("CREATE TABLE records (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID")

    def once(_: int, records: Records) -> None:
        database.execute("BEGIN IMMEDIATE")
        database.executemany("INSERT OR REPLACE INTO records VALUES (?, ?)", records)
        database.execute("COMMIT")
    return once


def zodb(directory: Path, sync: bool) -> Once:
    """One ZODB transaction over FileStorage, which syncs at its end."""
    import transaction  # noqa: PLC0415 - an optional library
    import ZODB  # noqa: PLC0415
    from BTrees.OOBTree import OOBTree  # noqa: PLC0415
    from ZODB.FileStorage import FileStorage  # noqa: PLC0415

    if not sync:
        message = "FileStorage always syncs"
        raise ImportError(message)
    root = ZODB.DB(FileStorage(str(directory / "store.fs"))).open().root()
    root["records"] = OOBTree()
    transaction.commit()

    def once(_: int, records: Records) -> None:
        root["records"].update(records)
        transaction.commit()
    return once


def rocksdb(directory: Path, sync: bool) -> Once:
    """One write batch of RocksDB with its log synced."""
    from rocksdict import Options, Rdict, WriteBatch, WriteOptions  # noqa: PLC0415 - an optional library

    database = Rdict(str(directory / "rocks"), options=Options(raw_mode=True))
    options = WriteOptions()
    options.sync = sync

    def once(_: int, records: Records) -> None:
        batch = WriteBatch(raw_mode=True)
        for key, value in records:
            batch.put(key, value)
        database.write(batch, options)
    return once


def pickles(directory: Path, sync: bool) -> Once:
    """A pickle of the records, synced, renamed into place, and its directory synced."""
    folder = os.open(directory, os.O_RDONLY)

    def once(number: int, records: Records) -> None:
        with (directory / "new").open("wb") as file:
            pickle.dump(records, file, protocol=5)
            file.flush()
            if sync:
                os.fsync(file.fileno())
        (directory / "new").replace(directory / f"state-{number % 100}")
        if sync:
            os.fsync(folder)
    return once


def dbos(directory: Path, sync: bool) -> Once:
    """A DBOS workflow with a step for each operation, on SQLite."""
    from dbos import DBOS  # noqa: PLC0415 - an optional library

    if not sync:
        message = "DBOS decides itself how SQLite syncs"
        raise ImportError(message)
    DBOS(config={"name": "benchmark", "system_database_url": f"sqlite:///{directory / 'dbos.sqlite'}", "run_admin_server": False,
                 "log_level": "CRITICAL"})

    written: Records = []

    @DBOS.step()  # type: ignore[untyped-decorator]
    def operation(at: int) -> bytes:
        return b"".join(value for _, value in written)[at::OPERATIONS]

    @DBOS.workflow()  # type: ignore[untyped-decorator]
    def workflow() -> int:
        return sum(len(operation(at)) for at in range(OPERATIONS))

    def once(_: int, records: Records) -> None:
        written[:] = records
        workflow()

    DBOS.launch()
    return once


class Sketch:
    """A user as one would first write it: arrays, a list of readings, a dict of settings."""

    def __init__(self) -> None:
        self.x, self.P = np.array([80.0, 0.0]), np.eye(2)
        self.Q, self.R = np.diag([0.05, 1e-4]), np.array([[0.15]])
        self.buffer = [(1_767_000_000.0 + 86_400.0 * day, 80.0 + day / 100) for day in range(30)]
        self.adaptation: dict[str, Any] = {"count": 0, "rate": 2.5, "level": 10.0, "trend": 1.0, "until": 1_767_000_000.0}

    def validate(self) -> None:
        """The rules, with numpy."""
        sound = (np.isfinite(self.x).all() and np.isfinite(self.P).all() and np.allclose(self.P, self.P.T)
                 and (np.linalg.eigvalsh(self.P) > 0).all() and np.linalg.cond(self.P) < 1e10  # noqa: PLR2004
                 and np.isfinite(self.Q).all() and (np.linalg.eigvalsh(self.R) > 0).all()
                 and all(np.isfinite(value) for _, value in self.buffer))
        if not sound:
            message = "the state is invalid"
            raise ValueError(message)


def sketch(directory: Path, sync: bool) -> Once:
    """The first idea: a copied snapshot kept durably, a deepcopy and numpy's validation for each operation, a pickle at the end.

    The snapshot, the new state and the row of the log are a transaction each, as there are three stores to keep.
    """
    env = lmdb.open(str(directory), map_size=MAP_BYTES, sync=sync, lib_version=0)
    users = {number: Sketch() for number in range(100)}

    def put(key: str, value: object) -> None:
        with env.begin(write=True) as txn:
            txn.put(key.encode(), pickle.dumps(value, protocol=5))

    def once(number: int, _: Records) -> None:
        user = number % 100
        state = users[user]
        put(f"snapshot/{user}", copy.deepcopy(state))
        for at in range(OPERATIONS):
            state = copy.deepcopy(state)
            state.P = np.diag([2.0 + number / 1e6, 0.01 * (at + 1)])
            state.validate()
        put(f"state/{user}", state)
        put(f"log/{number}", {"user": user, "number": number, "outcome": "committed", "operations": list(range(OPERATIONS))})
        users[user] = state
    return once


CONTESTANTS = (
    Contestant("pwrite + fdatasync", "the floor", bare_write),
    Contestant("sqlite3", "WAL, synchronous=FULL", sqlite),
    Contestant("RocksDB", "synced log", rocksdb),
    Contestant("pickle file", "fsync, rename, fsync", pickles),
    Contestant("ZODB", "FileStorage", zodb),
    Contestant("first sketch", "deepcopy, numpy, pickle", sketch),
    Contestant("DBOS", "workflow of 4 steps, SQLite", dbos),
)
