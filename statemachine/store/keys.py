r"""The key layout: one database, each user's records side by side, everything store-wide under a leading NUL.

A user's keys are ``<user> \0 <letter> ...``.  The letters are chosen so that what one measurement touches lies
together: the end of the identities, what is kept aside, the head, and the newest versions (numbered downwards).
"""

from __future__ import annotations

from typing import Final

VERSION_MAX: Final = 2**64 - 1
_INSTANT_OFFSET: Final = 2**63

AUDIT: Final = b"\0a"
BUDGET: Final = b"\0b"
CURSOR: Final = b"\0c"
GLOBAL_BREAKER: Final = b"\0g"
CHAIN: Final = b"\0h"
INTENT: Final = b"\0i"
META: Final = b"\0m"
OWNER: Final = b"\0o"
PIN: Final = b"\0p"
UNREADABLE: Final = b"\0q"
ROLLOUT: Final = b"\0r"
ATTEMPT: Final = b"\0t"
SWEPT: Final = b"\0w"
DAMAGED: Final = b"\0x"
FIRST_USER: Final = b"\1"

_STORE_WIDE: Final = {
    AUDIT: "audit row", BUDGET: "budget", CURSOR: "cursor", GLOBAL_BREAKER: "breaker", CHAIN: "audit chain", META: "store",
    OWNER: "owner",
    PIN: "pin", UNREADABLE: "unreadable row", ROLLOUT: "rollout", ATTEMPT: "audit index",
    SWEPT: "note of a sweep", INTENT: "intent", DAMAGED: "damaged head",
}
_OF_A_USER: Final = {
    b"a": "audit index", b"b": "breaker", b"i": "measurement", b"r": "kept aside", b"s": "head", b"v": "version",
}
UNFRAMED: Final = frozenset({"audit index", "damaged head"})
"""The kinds of records without a frame of their own: a number or nothing, and bytes that were moved as they were."""


def kind_of(key: bytes) -> str:
    """What kind of record lies under a key, in a word or two; "other" for a key of no kind known here."""
    if key[:1] == b"\0":
        return _STORE_WIDE.get(key[:2], "other")
    end = key.find(b"\0") + 1
    return _OF_A_USER.get(key[end:end + 1], "other") if end else "other"


def audit(seq: int) -> bytes:
    """The audit row `seq`."""
    return AUDIT + seq.to_bytes(8, "big")


def cursor(source: bytes) -> bytes:
    """How far a source was consumed; `source` is its 16-byte hash."""
    return CURSOR + source


def owner(number: int) -> bytes:
    """The number of commits of an owner; absent once it is fenced or settled."""
    return OWNER + number.to_bytes(8, "big")


def pin(user: bytes) -> bytes:
    """The before-image of the reset under probation."""
    return PIN + user


def unreadable(source_id: int, row: int) -> bytes:
    """A row of a source that could not be read as a measurement."""
    return UNREADABLE + source_id.to_bytes(8, "big") + row.to_bytes(8, "big")


def attempt(attempt_id: str) -> bytes:
    """Where the outcome of an attempt stands in the audit log."""
    return ATTEMPT + bytes.fromhex(attempt_id.replace("-", ""))


def swept(user: bytes) -> bytes:
    """How far a sweep has judged the user's log, and what it told."""
    return SWEPT + user


def intent(attempt_id: str) -> bytes:
    """The mark of an attempt that has begun and has no outcome yet, where it was made durable."""
    return INTENT + bytes.fromhex(attempt_id.replace("-", ""))


def damaged(user: bytes, version: int) -> bytes:
    """The bytes of a head that could not be read, moved aside by the commit that replaced it as `version`.

    Where an earlier one lies there already, the next number that is free is taken.
    With b"" and a generation: those of the global breaker that it replaced.
    """
    return DAMAGED + user + b"\0" + version.to_bytes(8, "big")


def audit_of(user: bytes, seq: int) -> bytes:
    """Index: a row about this user."""
    return user + b"\0a" + seq.to_bytes(8, "big")


def breaker(user: bytes) -> bytes:
    """The user's circuit breaker."""
    return user + b"\0b"


def identities(user: bytes) -> bytes:
    """The prefix of the user's measurements, in the order of their instants."""
    return user + b"\0i"


def identity(user: bytes, at_us: int, digest: bytes) -> bytes:
    """One measurement: its instant, and a digest of value, unit and source as written."""
    return user + b"\0i" + (at_us + _INSTANT_OFFSET).to_bytes(8, "big") + digest


def instant_of(identity_key: bytes, user: bytes) -> int:
    """The instant in an identity's key, in microseconds since 1970 UTC."""
    start = len(user) + 2
    return int.from_bytes(identity_key[start:start + 8], "big") - _INSTANT_OFFSET


def aside(user: bytes) -> bytes:
    """How many of the user's measurements are kept aside, and the newest instant among them."""
    return user + b"\0r"


def head(user: bytes) -> bytes:
    """The end of the user's log, and the state there."""
    return user + b"\0s"


def versions(user: bytes) -> bytes:
    """The prefix of the user's log, newest version first."""
    return user + b"\0v"


def version(user: bytes, number: int) -> bytes:
    """One version of the user's log."""
    return user + b"\0v" + (VERSION_MAX - number).to_bytes(8, "big")


def number_of(version_key: bytes) -> int:
    """The version number in a key of the log."""
    return VERSION_MAX - int.from_bytes(version_key[-8:], "big")


def after(prefix: bytes) -> bytes:
    """The smallest key that is greater than every key with this prefix (whose last byte is below 255)."""
    return prefix[:-1] + bytes((prefix[-1] + 1,))
