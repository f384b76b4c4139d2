"""Files of a store deleted, cut short, or exchanged for others; and marks of a process that died, to have some to lose."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import lmdb

from chaos.grown import Grown
from chaos.history import Asked
from chaos.target import Target
from chaos.workload import BY, PRESENT_US
from statemachine import codec
from statemachine.store import engine, keys
from statemachine.testing import CountingIds, ManualClock

DEAD_IDS: Final = 500_000
GARBAGE: Final = bytes(range(256)) * 64


def with_marks(target: Target, grown: Grown) -> Grown:
    """Let a process die in the middle of a reset of the store: its file of marks stays, with an attempt nobody has ended."""
    user = grown.events[0].user if isinstance(grown.events[0], Asked) else ""
    child = os.fork()
    if child == 0:
        def die(_: Any) -> Any:
            os._exit(0)

        with contextlib.suppress(BaseException):
            store = target.open(grown.path, clock=ManualClock(PRESENT_US), ids=CountingIds(DEAD_IDS))
            target.manager(store).perform_reset(user, operations=[("die", die)], **BY)
        os._exit(1)
    os.waitpid(child, 0)
    data = (grown.path / engine.DATA).read_bytes()
    return grown._replace(data=data, events=(*grown.events, Asked(DEAD_IDS, "mutate", user)))


def _marks(path: Path) -> list[Path]:
    return sorted((path / engine.OWNERS).iterdir())


def _changed(change: Callable[[Path], object]) -> Callable[[Grown, Path], bool]:
    """A fault that changes something whenever it does not raise."""
    def fault(_: Grown, path: Path) -> bool:
        change(path)
        return True

    return fault


def _lock_deleted(grown: Grown, path: Path) -> bool:
    """The copy has none; one is made by a look at the store, and deleted."""
    _looked_at(path)
    (path / engine.LMDB_LOCK).unlink()
    del grown
    return True


def _looked_at(path: Path) -> None:
    with lmdb.open(str(path), create=False, max_dbs=0, map_size=1 << 24, lib_version=engine.LMDB_MAJOR) as env, env.begin():
        pass


def _lock_cut(length: int) -> Callable[[Grown, Path], bool]:
    def fault(_: Grown, path: Path) -> bool:
        _looked_at(path)
        os.truncate(path / engine.LMDB_LOCK, length)
        return True

    return fault


def _row_of(path: Path, change: Callable[[Any, bytes, bytes], object]) -> bool:
    """Change a row in the middle of the audit log as somebody does who knows how records are written."""
    with (
        lmdb.open(str(path), create=False, max_dbs=0, map_size=1 << 24, lib_version=engine.LMDB_MAJOR) as env,
        env.begin(write=True) as txn, txn.cursor() as cursor,
    ):
        rows = [key for key in cursor.iternext(values=False) if key.startswith(keys.AUDIT)] if cursor.first() else []
        if not rows:
            return False
        key = rows[len(rows) // 2]
        change(txn, key, codec.unseal(key, txn.get(key) or b""))
    (path / engine.LMDB_LOCK).unlink()
    return True


def _row_rewritten(_: Grown, path: Path) -> bool:
    """Another event in the row, and its record sealed anew: only the chain can tell."""
    def rewrite(txn: Any, key: bytes, row: bytes) -> object:
        place = row.index(b'"event":"') + len(b'"event":"')
        return txn.put(key, codec.seal(key, row[:place] + bytes((row[place] ^ 1,)) + row[place + 1:]))

    return _row_of(path, rewrite)


def _row_removed(_: Grown, path: Path) -> bool:
    return _row_of(path, lambda txn, key, _: txn.delete(key))


def _in_place(content: bytes) -> Callable[[Grown, Path], bool]:
    return _changed(lambda path: (path / engine.DATA).write_bytes(content))


def _other_environment(_: Grown, path: Path) -> bool:
    (path / engine.DATA).unlink()
    with lmdb.open(str(path), max_dbs=0, map_size=1 << 20, lib_version=engine.LMDB_MAJOR) as env, env.begin(write=True) as txn:
        txn.put(b"theirs", b"precious")
    return True


def _other_engine(_: Grown, path: Path) -> bool:
    (path / engine.DATA).unlink()
    with lmdb.open(str(path), max_dbs=0, map_size=1 << 20, lib_version=1) as env, env.begin(write=True) as txn:
        txn.put(b"theirs", b"precious")
    (path / engine.LMDB_LOCK).unlink()
    return True


def _directory(path: Path) -> None:
    (path / engine.DATA).unlink()
    (path / engine.DATA).mkdir()


def _writers_lock_a_directory(path: Path) -> None:
    (path / engine.WRITER_LOCK).unlink()
    (path / engine.WRITER_LOCK).mkdir()


def _pipe(path: Path) -> None:
    (path / engine.DATA).unlink()
    os.mkfifo(path / engine.DATA)


def _dangling(path: Path) -> None:
    (path / engine.DATA).unlink()
    (path / engine.DATA).symlink_to(path / "nowhere")


def _owners_gone(path: Path) -> None:
    shutil.rmtree(path / engine.OWNERS)


def _owners_a_file(path: Path) -> None:
    _owners_gone(path)
    (path / engine.OWNERS).write_bytes(GARBAGE)


def _first_mark(content: Callable[[bytes], bytes]) -> Callable[[Grown, Path], bool]:
    def fault(_: Grown, path: Path) -> bool:
        for mark in _marks(path):
            mark.write_bytes(content(mark.read_bytes()))
            return True
        return False

    return fault


def _marks_deleted(_: Grown, path: Path) -> bool:
    found = _marks(path)
    for mark in found:
        mark.unlink()
    return bool(found)


FAULTS: Final[dict[str, Callable[[Grown, Path], bool]]] = {
    "lock deleted": _lock_deleted,
    "lock empty": _lock_cut(0),
    "lock cut to 100 bytes": _lock_cut(100),
    "lock cut to one page": _lock_cut(4_096),
    "lock of garbage": _changed(lambda path: (path / engine.LMDB_LOCK).write_bytes(GARBAGE)),
    "lock a directory": _changed(lambda path: (path / engine.LMDB_LOCK).mkdir()),
    "an audit row rewritten": _row_rewritten,
    "an audit row removed": _row_removed,
    "writer's lock deleted": _changed(lambda path: (path / engine.WRITER_LOCK).unlink()),
    "writer's lock a directory": _changed(_writers_lock_a_directory),
    "data deleted": _changed(lambda path: (path / engine.DATA).unlink()),
    "data empty": _in_place(b""),
    "data a text": _in_place(b"user,timestamp,weight\n" * 1_000),
    "data an SQLite file": _in_place(b"SQLite format 3\0" + bytes(20_000)),
    "data of garbage": _in_place(GARBAGE),
    "data of zeros": _in_place(bytes(65_536)),
    "data of another program": _other_environment,
    "data of another LMDB": _other_engine,
    "data a directory": _changed(_directory),
    "data a pipe": _changed(_pipe),
    "data a dangling link": _changed(_dangling),
    "owners deleted": _changed(_owners_gone),
    "owners a file": _changed(_owners_a_file),
    "marks deleted": _marks_deleted,
    "marks empty": _first_mark(lambda _: b""),
    "marks cut short": _first_mark(lambda content: content[:100]),
    "marks of garbage": _first_mark(lambda content: GARBAGE * (len(content) // len(GARBAGE) + 1)),
    "marks with a flipped bit": _first_mark(lambda content: bytes((content[0], content[1], content[2] ^ 1)) + content[3:]),
    "a foreign file in owners": _changed(lambda path: (path / engine.OWNERS / "notes.txt").write_bytes(GARBAGE)),
    "a directory in owners": _changed(lambda path: (path / engine.OWNERS / "7").mkdir()),
    "an unknown owner's empty file": _changed(lambda path: (path / engine.OWNERS / "99999").write_bytes(b"")),
    "an owner's number of many digits": _changed(lambda path: (path / engine.OWNERS / ("9" * 30)).write_bytes(b"")),
    "an owner's number in other digits": _changed(lambda path: (path / engine.OWNERS / "²").write_bytes(b"")),
    "a dangling link in owners": _changed(lambda path: (path / engine.OWNERS / "8").symlink_to(path / "nowhere")),
    "a pipe in owners": _changed(lambda path: os.mkfifo(path / engine.OWNERS / "9")),
    "a foreign file beside the data": _changed(lambda path: (path / "notes.txt").write_bytes(GARBAGE)),
}
"""What may be done to the files of a copied store, by name; each tells whether it changed anything."""
