"""What a store's commits change, seen as they are made, so that bare LMDB can be given the same records in the same tree."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import lmdb

from statemachine import Store
from statemachine.store.engine import DATA, LMDB_MAJOR

Changes = dict[bytes, bytes | None]


class Twins:
    """Two stores with the same users: what the first takes in timed, the second has taken in before, to see what it writes."""

    def __init__(self, place: Path, source: Path, **options: Any) -> None:
        self.place = place
        self._door = Door()
        for name in ("ours", "twin", "raw"):
            (place / name).mkdir(parents=True)
        for name in ("ours", "twin", "raw"):
            shutil.copyfile(source / DATA, place / name / DATA)
        self.ours = Store.open(place / "ours", **options)
        self.twin = Store.open(place / "twin", opener=self._door.open, **options)
        sync = options.get("durability", "each") != "process"
        self.raw = lmdb.open(str(place / "raw"), map_size=1 << 34, max_spare_txns=16, sync=sync, lib_version=LMDB_MAJOR)
        self._door.taken()

    def changes(self) -> list[tuple[bytes, bytes | None]]:
        """What the twin has committed since the last time, in the order of the keys."""
        return sorted(self._door.taken()[1].items())

    def commit(self, changes: list[tuple[bytes, bytes | None]]) -> None:
        """Those changes, by bare LMDB in one transaction."""
        with self.raw.begin(write=True) as txn:
            for key, value in changes:
                if value is None:
                    txn.delete(key)
                else:
                    txn.put(key, value)

    def close(self) -> None:
        """All three, and their files are gone."""
        self.ours.close()
        self.twin.close()
        self.raw.close()
        shutil.rmtree(self.place)


class Door:
    """Opens environments for a store, and keeps what their write transactions put and delete, until it is taken."""

    def __init__(self) -> None:
        self._committed: Changes = {}
        self._transactions = 0

    def open(self, path: str, **settings: Any) -> Any:
        """As `lmdb.open`."""
        return Environment(lmdb.open(path, **settings), self)

    def keep(self, changes: Changes) -> None:
        """A transaction was committed."""
        self._committed |= changes
        self._transactions += 1

    def taken(self) -> tuple[int, Changes]:
        """How many transactions there were since the last time, and what they changed together."""
        many, changes, self._committed, self._transactions = self._transactions, self._committed, {}, 0
        return many, changes


class Environment:
    """An environment whose write transactions are watched."""

    def __init__(self, env: Any, door: Door) -> None:
        self._env = env
        self._door = door

    def __getattr__(self, name: str) -> Any:
        return getattr(self._env, name)

    def begin(self, *arguments: Any, **options: Any) -> Any:
        """A transaction; a watched one where it writes."""
        txn = self._env.begin(*arguments, **options)
        return _Transaction(txn, self._door) if options.get("write") else txn


class _Writing:
    """What may change records: a transaction, or a cursor in one."""

    def __init__(self, real: Any, changes: Changes) -> None:
        self._real = real
        self._changes = changes

    def __getattr__(self, name: str) -> Any:
        if name in {"pop", "replace", "putmulti", "drop"}:
            message = f"LMDB's {name} is not written down here: add it to benchmarks/counted.py"
            raise NotImplementedError(message)
        return getattr(self._real, name)

    def put(self, key: bytes, value: bytes, *arguments: Any, **options: Any) -> Any:
        """As LMDB's."""
        self._changes[key] = value
        return self._real.put(key, value, *arguments, **options)


class _Transaction(_Writing):
    def __init__(self, real: Any, door: Door) -> None:
        super().__init__(real, {})
        self._door = door

    def delete(self, key: bytes, *arguments: Any, **options: Any) -> Any:
        self._changes[key] = None
        return self._real.delete(key, *arguments, **options)

    def cursor(self) -> Any:
        return _Cursor(self._real.cursor(), self._changes)

    def commit(self) -> None:
        self._real.commit()
        self._door.keep(self._changes)

    def __enter__(self) -> _Transaction:
        self._real.__enter__()
        return self

    def __exit__(self, *failure: object) -> Any:
        ended = self._real.__exit__(*failure)
        if failure[0] is None:
            self._door.keep(self._changes)
        return ended


class _Cursor(_Writing):
    def delete(self, *arguments: Any, **options: Any) -> Any:
        self._changes[self._real.key()] = None
        return self._real.delete(*arguments, **options)

    def __enter__(self) -> _Cursor:
        self._real.__enter__()
        return self

    def __exit__(self, *failure: object) -> Any:
        return self._real.__exit__(*failure)
