"""Time, identifiers and randomness: the only module that asks the machine for them.

Everything else takes a `Clock` and an `Ids` as arguments, so that a run can be replayed (INV-13).
Instants are integers, microseconds since 1970-01-01T00:00:00Z; `datetime` appears at the public border only.
"""

from __future__ import annotations

import secrets
import time
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol
from uuid import UUID

import uuid_utils

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
US_PER_DAY = 86_400_000_000
UUID_VERSION: Final = 7


class Clock(Protocol):
    """Where the time comes from."""

    def now_us(self) -> int:
        """Wall time in microseconds since 1970 UTC; it may jump."""

    def monotonic_us(self) -> int:
        """Microseconds since an arbitrary start; it never goes back, so durations are taken from it."""

    def sleep(self, seconds: float) -> None:
        """Let `seconds` pass."""


class Ids(Protocol):
    """Where identifiers and salts come from."""

    def attempt_id(self) -> str:
        """A new UUID version 7, as text of 36 characters."""

    def salt(self) -> bytes:
        """Sixteen unpredictable bytes, mixed into digests of personal payloads so that they cannot be guessed back."""


class SystemClock:
    """The machine's own clocks."""

    def now_us(self) -> int:
        """Wall time in microseconds since 1970 UTC."""
        return time.time_ns() // 1000

    def monotonic_us(self) -> int:
        """The monotonic clock in microseconds."""
        return time.monotonic_ns() // 1000

    def sleep(self, seconds: float) -> None:
        """Block the calling thread for `seconds`."""
        time.sleep(seconds)


class SystemIds:
    """UUIDs of version 7 (RFC 9562) and the operating system's randomness."""

    def attempt_id(self) -> str:
        """A new UUID version 7, as text of 36 characters."""
        return str(uuid_utils.uuid7())

    def salt(self) -> bytes:
        """Sixteen bytes from the operating system."""
        return secrets.token_bytes(16)


def begun_us(attempt_id: str) -> int | None:
    """When an id was made, in microseconds since 1970 UTC, to the millisecond; None where it is no UUID of version 7."""
    try:
        number = UUID(attempt_id)
    except ValueError:
        return None
    return (number.int >> 80) * 1_000 if number.version == UUID_VERSION else None


def to_us(at: datetime) -> int:
    """Microseconds since 1970 UTC of an aware datetime, exactly; a naive one raises ValueError."""
    try:
        delta = at - EPOCH
    except TypeError as error:
        message = f"{at!r} has no time zone; give an aware datetime, for example with tzinfo=UTC"
        raise ValueError(message) from error
    return (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds


def from_us(at_us: int) -> datetime:
    """The aware UTC datetime of an instant; raises OverflowError outside the years 1 to 9999."""
    return EPOCH + timedelta(microseconds=at_us)


def iso(at_us: int) -> str:
    """The instant as ISO 8601 in UTC, with microseconds only where there are any; an instant no calendar holds as text."""
    try:
        return from_us(at_us).isoformat().replace("+00:00", "Z")
    except OverflowError:
        return f"{at_us} us"
