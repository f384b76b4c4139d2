"""The sieve: one quick pass over a piece of the store, which counts what is there and holds back what may not be sound.

Every finding comes from the careful look (`statemachine.store.careful`).  The sieve lets a user, a row or a key pass only
where that look would find nothing; it may hold back too much, as when somebody commits meanwhile, and never too little.

The ways into the audit log are not followed one by one, which would be a search each.  A row, the key of its attempt and
the key under its user each give the checksum of the same bytes.  The sums of both sides, by stretch of the log, are equal,
or that stretch is doubted and looked at carefully; unequal pairs of equal sums have a chance of 2^-64.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import chain
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec
import xxhash

from statemachine import audit, codec
from statemachine.breaker import Breaker
from statemachine.store import identities as recorded
from statemachine.store import keys
from statemachine.store.careful import BAD
from statemachine.store.engine import rows_of
from statemachine.store.records import ACCEPTED, DISPOSITIONS, Aside, Head, Identity, Image, Pin

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import lmdb

STRETCHES: Final = 1_024
CHUNK_ROWS: Final = 4_096
USER_ROWS_MAX: Final = 65_536
"""A user with more records is not held in memory, and goes to the careful look, which reads one after the other."""
_checksum: Final = xxhash.xxh3_64_intdigest
_head: Final = msgspec.msgpack.Decoder(Head).decode
_identity: Final = msgspec.msgpack.Decoder(Identity).decode
_image: Final = msgspec.msgpack.Decoder(Image).decode
_pin: Final = msgspec.msgpack.Decoder(Pin).decode
_AUDIT_OF, _BREAKER, _IDENTITY, _ASIDE, _STATE, _VERSION = b"abirsv"
_END: Final = (b"", b"")
_NONE_ASIDE: Final = Aside(0, 0)
_NO_HEAD: Final[Head | None] = None
_DOUBTFUL: Final = (*BAD, IndexError)

Ranges = tuple[tuple[int, int], ...]


class Log(NamedTuple):
    """The audit log as it was when the pass began: its newest row, and the rows whose personal part is erased."""

    tail: int
    erased: Ranges = ()

    @property
    def width(self) -> int:
        """How many rows a stretch has."""
        return self.tail // STRETCHES + 1


class Segment(NamedTuple):
    """Rows of the chain in a piece: the hash it follows from, the hash at its end, what was erased and what was said of it."""

    rows: int
    before: bytes
    after: bytes
    sound: bool
    erased: Ranges
    covered: Ranges


class Tally:
    """What was counted in a piece.  `attempts` and `users` are sums by stretch of the log; `doubted` are stretches."""

    def __init__(self) -> None:
        self.rows = 0
        self.users = 0
        self.versions = 0
        self.kept = 0
        self.oldest_kept_us: int | None = None
        self.attempt_sums = [0] * STRETCHES
        self.user_sums = [0] * STRETCHES
        self.doubted: set[int] = set()

    def count(self, versions: int, kept: int) -> None:
        """Count a user."""
        self.users += 1
        self.versions += versions
        self.kept += kept

    def age(self, kept_us: int | None) -> None:
        """Note the oldest instant of what is kept aside of a user."""
        if kept_us is not None and (self.oldest_kept_us is None or kept_us < self.oldest_kept_us):
            self.oldest_kept_us = kept_us


def prefix_of(key: bytes) -> bytes:
    """What all keys of the user begin with; the whole of a key that is no user's."""
    return key[:key.index(b"\0") + 1] if b"\0" in key else key


def whole_users(txn: lmdb.Transaction[bytes], start: bytes, stop: bytes) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """The rows of the next users, all rows of each, and where to go on: b"" at the end.

    No rows, where not even one user could be read to the end.
    """
    rows_max = CHUNK_ROWS
    while True:
        rows = rows_of(txn, start, stop, rows_max)
        if len(rows) < rows_max:
            return rows, b""
        last, cut = prefix_of(rows[-1][0]), len(rows) - 1
        while cut and rows[cut - 1][0].startswith(last):
            cut -= 1
        if cut:
            del rows[cut:]
            return rows, last
        if rows_max >= USER_ROWS_MAX:
            return [], last
        rows_max = min(rows_max * 4, USER_ROWS_MAX)


def pins_between(txn: lmdb.Transaction[bytes], start: bytes, stop: bytes, expected: int) -> list[tuple[bytes, bytes]]:
    """The pins of users with start <= name < stop, where an empty `stop` is the end; `expected` is about how many."""
    first, end = keys.PIN + start, keys.PIN + stop if stop else keys.after(keys.PIN)
    found: list[tuple[bytes, bytes]] = []
    while True:
        rows = rows_of(txn, first, end, expected + 1)
        found += rows
        if len(rows) <= expected:
            return found
        first = rows[-1][0] + b"\0"


def sift_users(  # noqa: PLR0912, PLR0913, PLR0915 - one loop: what it calls, it calls a million times
    rows: Iterable[tuple[bytes, bytes]], log: Log, doubted: frozenset[int], check: Callable[[bytes], object], tally: Tally,
    kept_max: int,
) -> tuple[list[bytes], list[bytes], set[bytes]]:
    """Whole users: suspects (also for more than `kept_max` kept aside), those with an index key in doubt, who needs a pin."""
    suspects, in_doubt, pinned = list[bytes](), list[bytes](), set[bytes]()
    sums, width, tail, erased = tally.user_sums, log.width, log.tail, log.erased
    from_bytes, contents, is_step, image_kind = int.from_bytes, codec.contents(rows), codec.is_step, codec.IMAGE
    prefix, letter_at, head = b"\0", 1, _NO_HEAD  # no user's
    wrong = doubtful = step_first = False
    identities = kept = pruned = versions = newest = number = 0
    aside = _NONE_ASIDE
    for (key, value), found in zip(chain(rows, (_END,)), chain(contents, (b"",)), strict=True):
        if not key.startswith(prefix):
            if prefix != b"\0":
                if wrong or aside.count != kept or aside.pruned != pruned or kept - pruned > kept_max or step_first or not (
                    _is_end(head, newest, number) if head is not None else not versions and (kept or not identities)
                ):
                    suspects.append(prefix)
                elif head is not None and head.probation is not None:
                    pinned.add(prefix[:-1])
                if doubtful:
                    in_doubt.append(prefix)
                tally.count(versions, kept)
            if not key:
                break
            prefix = prefix_of(key)
            if prefix[-1]:  # it has no NUL
                suspects.append(key)
                prefix = b"\0"
                continue
            letter_at = len(prefix)
            wrong = doubtful = step_first = False
            head = _NO_HEAD
            identities = kept = pruned = versions = newest = number = 0
            aside = _NONE_ASIDE
        try:
            letter = key[letter_at]  # a key that ends before is nobody's
            content = found or (b"" if letter == _AUDIT_OF else codec.unseal(key, value))  # compressed, or damaged
            if letter == _IDENTITY:
                identities += 1
                found_of = _identity(content)
                if not ACCEPTED <= found_of.disposition < len(DISPOSITIONS):
                    wrong = True
                elif found_of.disposition != ACCEPTED:
                    kept += 1
                    if recorded.is_pruned(found_of):
                        pruned += 1
                    elif kept - pruned == 1:
                        tally.age(keys.instant_of(key, prefix[:-1]))
            elif letter == _VERSION:
                below, number = number, from_bytes(key[-8:], "big")  # numbered downwards
                newest = newest or number
                wrong = wrong or (versions > 0 and number != below + 1)
                versions += 1
                step_first = content[0] != image_kind
                if not step_first:
                    check(_image(content[1:]).state)
                wrong = wrong or (step_first and not is_step(content))
            elif letter == _STATE:
                head = _head(content)
                check(head.state)
            elif letter == _AUDIT_OF:
                seq = from_bytes(key[-8:], "big")
                wrong = wrong or bool(value) or seq > tail or len(key) != letter_at + 9
                if not (erased and _within(erased, seq)) and seq <= tail:
                    sums[seq // width] += _checksum(key)
                doubtful = doubtful or seq // width in doubted
            elif letter == _ASIDE:
                aside = codec.unpack(Aside, content)
            elif letter == _BREAKER:
                codec.unpack(Breaker, content)
        except _DOUBTFUL:
            wrong = True
    return suspects, in_doubt, pinned


def _is_end(head: Head, newest: int, oldest: int) -> bool:
    """Whether the log is what the head says, by its keys' numbers, which go downwards."""
    return head.version + newest == head.first + oldest == keys.VERSION_MAX


def _within(ranges: Ranges, number: int) -> bool:
    at = bisect_right(ranges, (number, 1 << 64)) - 1
    return at >= 0 and ranges[at][0] <= number <= ranges[at][1]


def sift_pins(rows: list[tuple[bytes, bytes]], pinned: set[bytes]) -> set[bytes]:
    """The names about whom head and pin disagree, and whose pin cannot be read."""
    wrong = pinned.symmetric_difference(key[2:] for key, _ in rows)
    for key, value in rows:
        try:
            _pin(codec.unseal(key, value))
        except _DOUBTFUL:
            wrong.add(key[2:])
    return wrong


def sift_audit(rows: Iterable[tuple[bytes, bytes]], first: int, log: Log, tally: Tally) -> Segment:
    """Judge rows of the log that should begin at row `first` and leave none out; all stand before the log's end."""
    expected, before, after, sound = first, b"", b"", True
    erased: list[tuple[int, int]] = []
    covered: list[tuple[int, int]] = []
    attempt_sums, user_sums, width = tally.attempt_sums, tally.user_sums, log.width
    for key, value in rows:
        seq_bytes = key[2:10]
        seq = int.from_bytes(seq_bytes, "big")
        tally.rows += 1
        try:
            row = audit.parse(codec.unseal(key, value))
            public = row.public
            if not seq == public.seq == expected or (after and row.prev_hash != after):
                sound = False
            before, after, expected = before or row.prev_hash, row.hash, seq + 1
            if public.attempt_id:
                attempt_sums[seq // width] += _checksum(keys.attempt(public.attempt_id) + seq_bytes)
            if row.erased:
                sound = sound and public.event not in audit.ANCHORS
                if erased and erased[-1][1] == seq - 1:
                    erased[-1] = (erased[-1][0], seq)
                else:
                    erased.append((seq, seq))
            else:
                if row.personal.user:
                    user_sums[seq // width] += _checksum(row.personal.user.encode() + b"\0a" + seq_bytes)
                if public.event in audit.ANCHORS:
                    covered += audit.covered(row)
        except _DOUBTFUL:
            sound = False
            tally.doubted.add(seq // width)
    return Segment(expected - first, before, after, sound, tuple(erased), tuple(covered))


def sift_attempts(
    rows: Iterable[tuple[bytes, bytes]], log: Log, doubted: frozenset[int], tally: Tally,
) -> tuple[list[bytes], list[bytes]]:
    """Sum up the keys of attempts: those that lead past the end of the log, and those into a doubted stretch."""
    beyond: list[bytes] = []
    in_doubt: list[bytes] = []
    sums, width, tail = tally.attempt_sums, log.width, log.tail
    for key, value in rows:
        seq = int.from_bytes(value, "big")
        tally.rows += 1
        if seq > tail:
            beyond.append(key)
        else:
            sums[seq // width] += _checksum(key + value)
            if seq // width in doubted:
                in_doubt.append(key)
    return beyond, in_doubt
