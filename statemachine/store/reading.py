"""The logs of many users as they are stored at one moment: a chunk is one short read transaction, and no user is seen by half.

Nothing is decoded while the transaction is open: a long reader makes LMDB keep every page that others replace meanwhile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from statemachine.store import keys

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import lmdb

    from statemachine.store.engine import Engine

CHUNK_VERSIONS: Final = 50_000
CHUNK_USERS: Final = 2_000
CHUNK_LOOKS: Final = 10_000
"""How much one transaction reads at most: versions (one user's log is never cut), users, and users looked at."""

_END: Final = b"\xff" * 8


class StoredLog(NamedTuple):
    """One user's records as they are stored: the head, what an earlier sweep noted, and the versions, newest first."""

    user: bytes
    head: bytes | None
    swept: bytes | None
    versions: list[tuple[bytes, bytes]]


Wanted = tuple[bytes | None, bytes | None, bytes]
"""A head as stored, what a sweep noted, and the user: what is asked whether the user is to be judged."""


def chunks(
    engine: Engine, users: Sequence[bytes] | None, wanted: Callable[[Wanted], bool],
) -> Iterator[tuple[list[StoredLog], int]]:
    """The logs of these users (None: of all) that are wanted, chunk by chunk, with the number of users looked at for each."""
    start, given, place = keys.FIRST_USER, users, 0
    while True:
        logs: list[StoredLog] = []
        versions = looked = 0
        more = False
        with engine.reading() as txn:
            names = _names(txn, start) if given is None else iter(given[place:])
            for user in names:
                if versions >= CHUNK_VERSIONS or len(logs) >= CHUNK_USERS or looked >= CHUNK_LOOKS:
                    more, start = True, user
                    break
                looked += 1
                log = _log(txn, user, wanted)
                if log is not None:
                    logs.append(log)
                    versions += len(log.versions)
        place += looked
        yield logs, looked
        if not more:
            return


def _names(txn: lmdb.Transaction[bytes], start: bytes) -> Iterator[bytes]:
    with txn.cursor() as cursor:
        found = cursor.set_range(start)
        while found and cursor.key() < _END:
            key = cursor.key()
            user = key[: key.index(b"\0")]
            yield user
            found = cursor.set_range(user + b"\1")


def _log(txn: lmdb.Transaction[bytes], user: bytes, wanted: Callable[[Wanted], bool]) -> StoredLog | None:
    head, swept = txn.get(keys.head(user)), txn.get(keys.swept(user))
    if not wanted((head, swept, user)):
        return None
    prefix = keys.versions(user)
    stop = keys.after(prefix)
    rows = []
    with txn.cursor() as cursor:
        if cursor.set_range(prefix):
            for row in cursor.iternext():
                if row[0] >= stop:
                    break
                rows.append(row)
    return StoredLog(user, head, swept, rows) if rows or head is not None else None
