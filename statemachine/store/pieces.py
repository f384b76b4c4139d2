"""Pieces: the store cut up by its keys, each piece looked at on its own, by several processes where that pays.

How it is cut depends on the store alone, and results come in the order of the pieces: any number of processes finds the
same.  Each reads through an environment of its own and in many short transactions, so they see no common moment; whatever
looks wrong because of it is read once more at one moment, by the careful look, before a word is said of it.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import zip_longest
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from statemachine.clock import SystemClock
from statemachine.errors import ResetError
from statemachine.estimator import BODY_WEIGHT, BodyWeight
from statemachine.store import keys, sieve
from statemachine.store.careful import Finding, record_now, user_now
from statemachine.store.engine import Engine, rows_of
from statemachine.store.sieve import Log, Segment, Tally, prefix_of

if TYPE_CHECKING:
    from pathlib import Path

    from statemachine.estimator import Estimator
    from statemachine.store import Store

PIECE_ROWS: Final = 65_536
PIECES_MAX: Final = 256
PROCESSES_PAY_ROWS: Final = 500_000
"""A process takes half a second to start; fewer records than these are looked at sooner without."""
SMALL_ROWS: Final = 512
"""A range with fewer is not cut: keys lie unevenly, and the halves of a range may hold very different numbers of them."""
_PROBE_BYTES: Final = 8
_KEY_BYTES_MAX: Final = 511
_LAST: Final = b"\xff" * 8
"""After every key of a user: no text in UTF-8 has such a byte."""
DATA_FILE: Final = "the data file"


class Piece(NamedTuple):
    """What to look at: all with start <= key < stop, where an empty `stop` is the end of the store.

    `again` looks only for what stands in the `doubted` stretches of the log, and passes over what the first look told.
    More than `kept_max` measurements kept aside of a user are worth a warning.
    """

    kind: Literal["users", "audit", "attempts"]
    start: bytes
    stop: bytes
    log: Log
    doubted: frozenset[int] = frozenset()
    again: bool = False
    kept_max: int = 0


class Result(NamedTuple):
    """What was found in a piece, in the order of its keys, and what was counted; the segment is that of an audit piece."""

    findings: list[Finding]
    tally: Tally
    segment: Segment | None = None


def cut(engine: Engine, start: bytes, stop: bytes, pieces: int, *, users: bool) -> list[tuple[bytes, bytes]]:
    """The ranges that [start, stop) is cut into, about `pieces` and none inside a user; an empty `stop` is the end.

    Halved again and again between the first and the last key by their value as numbers, as LMDB cannot tell how many
    keys a range has; so the pieces differ in size, and there should be several for each process.
    """
    ranges = [(start, stop)]
    while len(ranges) < pieces:
        halves: list[tuple[bytes, bytes]] = []
        for low, high in ranges:
            middle = _middle(engine, low, high, users=users)
            halves += [(low, high)] if middle is None else [(low, middle), (middle, high)]
        if len(halves) == len(ranges):
            break
        ranges = halves
    return ranges


def _middle(engine: Engine, low: bytes, high: bytes, *, users: bool) -> bytes | None:
    stop = high or _LAST
    with engine.reading() as txn:
        if len(rows_of(txn, low, high, SMALL_ROWS)) < SMALL_ROWS:
            return None
    first, last = engine.ends(low, stop)
    if first is None or last is None or first == last:
        return None
    same = next(n for n, (one, other) in enumerate(zip_longest(first, last)) if one != other)
    ends = (key[same:same + _PROBE_BYTES].ljust(_PROBE_BYTES, b"\0") for key in (first, last))
    probe = first[:same] + ((sum(int.from_bytes(end, "big") for end in ends) + 1) // 2).to_bytes(_PROBE_BYTES, "big")
    found = engine.first(probe[:_KEY_BYTES_MAX], stop)
    middle = (prefix_of(found[0]) if users else found[0]) if found is not None else None
    return middle if middle is not None and max(low, first) < middle else None


def examine(engine: Engine, estimator: Estimator, piece: Piece) -> Result:
    """Look at one piece; a page of the data file that cannot be read is a finding, and what follows it was not seen."""
    result = Result([], Tally())
    try:
        if piece.kind == "users":
            _users(engine, estimator, piece, result)
        elif piece.kind == "attempts":
            _attempts(engine, piece, result)
        else:
            result = result._replace(segment=_audit(engine, piece, result.tally))
    except ResetError as error:
        result.findings.append(unread(f"reading stopped: {error}"))
    return result


def unread(problem: str) -> Finding:
    """The finding for a part of the data file that could not be read at all."""
    return Finding("records", "error", DATA_FILE, problem, "restore the store from a backup")


def astray(problem: str) -> Finding:
    """The finding for pages that can be read, and lead astray."""
    return Finding("records", "error", DATA_FILE, problem,
                   "stop what writes the store and restore it from a backup; `resetguard compact` keeps what can be read")


def _users(engine: Engine, estimator: Estimator, piece: Piece, result: Result) -> None:
    check = getattr(estimator, "check", estimator.decode)
    at: bytes = piece.start
    while at:
        large: list[bytes] = []
        with engine.reading() as txn:
            rows, following = sieve.whole_users(txn, at, piece.stop)
            if following and not rows:
                large, following = [following], keys.after(following)
            suspects, in_doubt, pinned = sieve.sift_users(rows, piece.log, piece.doubted, check, result.tally,
                                                             piece.kept_max)
            pins = sieve.pins_between(txn, at.removesuffix(b"\0"), (following or piece.stop).removesuffix(b"\0"), len(pinned))
        unsure = sieve.sift_pins(pins, pinned) if not piece.again else set()
        result.tally.rows += len(rows) + len(pins)
        held = set(in_doubt) - set(suspects) if piece.again else {*suspects, *in_doubt, *(name + b"\0" for name in unsure)}
        for prefix in sorted(held.union(large)):
            if prefix[:-1] in unsure:
                result.findings.extend(record_now(engine, keys.PIN + prefix[:-1]))
            if prefix in large:
                _large_user(engine, estimator, prefix, piece, result)
            else:
                result.findings.extend(user_now(engine, estimator, prefix, piece.kept_max)[0])
        at = following


def _large_user(engine: Engine, estimator: Estimator, prefix: bytes, piece: Piece, result: Result) -> None:
    """The careful look at all of one user; the sieve sees only the keys that belong to the sums."""
    keys_alone, doubtful = Tally(), False
    keys_alone.user_sums = result.tally.user_sums
    for rows in _chunks(engine, prefix + b"a", prefix + b"b"):
        in_doubt = sieve.sift_users(rows, piece.log, piece.doubted, estimator.decode, keys_alone, piece.kept_max)[1]
        doubtful = bool(in_doubt) or doubtful
    if piece.again and not doubtful:
        return
    found, user = user_now(engine, estimator, prefix, piece.kept_max)
    result.findings.extend(finding for finding in found if not piece.again or finding.check == "audit index")
    result.tally.count(user.versions, user.kept)
    result.tally.age(user.oldest_kept_us)
    result.tally.rows += user.records


def _chunks(engine: Engine, start: bytes, stop: bytes) -> Iterator[list[tuple[bytes, bytes]]]:
    while start:
        with engine.reading() as txn:
            rows = rows_of(txn, start, stop, sieve.CHUNK_ROWS)
        yield rows
        start = rows[-1][0] + b"\0" if len(rows) == sieve.CHUNK_ROWS else b""


def _attempts(engine: Engine, piece: Piece, result: Result) -> None:
    for rows in _chunks(engine, piece.start, piece.stop):
        beyond, in_doubt = sieve.sift_attempts(rows, piece.log, piece.doubted, result.tally)
        for key in in_doubt if piece.again else beyond:
            result.findings.extend(record_now(engine, key))


def _audit(engine: Engine, piece: Piece, tally: Tally) -> Segment:
    first = max(int.from_bytes(piece.start[2:10], "big"), 1)
    rows = (row for chunk in _chunks(engine, piece.start, piece.stop) for row in chunk)
    return sieve.sift_audit(rows, first, piece.log, tally)


class Crew:
    """Looks at pieces, with `processes` of its own where the store is large enough and its states can be read there.

    `broken` is true once a process of it has died; nothing more is looked at then.  The processes are started anew
    (multiprocessing: spawn), as a fork may not use the store; so a program that asks for them must be importable.
    """

    def __init__(self, store: Store, processes: int) -> None:
        self._engine = store.engine
        self._estimator = store.estimator
        self._pool: ProcessPoolExecutor | None = None
        self.broken = False
        pays = processes > 1 and store.engine.info()["entries"] >= PROCESSES_PAY_ROWS
        if pays and type(store.estimator) is BodyWeight:  # another's estimator may not be known in another process
            limits = store.limits
            self._pool = ProcessPoolExecutor(
                processes, multiprocessing.get_context("spawn"), _start, (store.path, limits.map_bytes, limits.map_bytes_max),
            )

    def __enter__(self) -> Crew:
        """The crew itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the processes; pieces not begun are left."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def look(self, pieces: Iterable[Piece]) -> Iterator[Result]:
        """The result of each piece, in their order."""
        if self._pool is None:
            for piece in pieces:
                yield examine(self._engine, self._estimator, piece)
            return
        try:
            yield from self._pool.map(_examine_here, pieces)
        except BrokenProcessPool:
            self.broken = True
            yield Result([unread("a process that was reading it died of it, or was killed; the rest was not looked at")], Tally())


_here: list[Engine] = []
"""The environment of a process of the crew."""


def _start(path: Path, map_bytes: int, map_bytes_max: int) -> None:
    """What a process of the crew begins with."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the one that started it ends it
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    gc.disable()  # it makes millions of values and no cycles
    _here.append(Engine(path, sync=True, map_bytes=map_bytes, map_bytes_max=map_bytes_max, writer_wait_s_max=0.0,
                        clock=SystemClock(), readonly=True))


def _end_with(parent: multiprocessing.process.BaseProcess) -> None:
    parent.join()
    os._exit(1)


def _examine_here(piece: Piece) -> Result:
    return examine(_here[0], BODY_WEIGHT, piece)
