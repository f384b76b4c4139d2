"""Where each measurement went: one record an identity, so that none is lost and none counts twice (INV-08, INV-09)."""

from __future__ import annotations

import hashlib
from typing import Final

import msgspec

from statemachine import audit, codec
from statemachine.errors import InvalidInput
from statemachine.state import Measured, Measurement, Reading
from statemachine.store import keys
from statemachine.store.draft import Draft
from statemachine.store.records import ACCEPTED, HELD, PRUNED, QUARANTINED, Aside, Identity

DIGEST_BYTES: Final = 12
REASON_CHARS_MAX: Final = 300


class Origin(msgspec.Struct, frozen=True, gc=False):
    """The source a measurement was read from and its row there; 0 for a measurement handed over by a caller."""

    source_id: int = 0
    row: int = 0


def digest(value: str, unit: str, source: str) -> bytes:
    """What tells two measurements of one user and instant apart."""
    text = f"{value}\0{unit}\0{source}".encode("utf-8", "surrogatepass")
    return hashlib.blake2b(text, digest_size=DIGEST_BYTES).digest()


def key_of(user: bytes, measurement: Measured) -> bytes:
    """The key of a measurement's identity."""
    return keys.identity(user, measurement.at_us, digest(measurement.value, measurement.unit, measurement.source))


def require_identity(measurement: Measured) -> None:
    """Raise InvalidInput where somebody's own kind of measurement has no instant, or texts that are none."""
    if type(measurement) is Measurement:
        return  # it has looked at itself
    try:
        int(measurement.at_us)
        f"{measurement.source}{measurement.value}{measurement.unit}".encode()
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        message = f"a measurement of {measurement.user!r} has no identity: {audit.said(error)}; give an aware `at`, valid Unicode"
        raise InvalidInput(message, user=measurement.user) from error


def identity(
    measurement: Measured, reading: Reading | None, origin: Origin, disposition: int, reason: str = "",
) -> Identity:
    """The record of a measurement; without a reading it can never be taken in, only looked at."""
    values, r = (reading.values, reading.r) if reading is not None else ((), 0.0)
    return Identity(disposition, values, r, measurement.value, measurement.unit, measurement.source,
                    origin.source_id, origin.row, reason[:REASON_CHARS_MAX])


def keep_aside(draft: Draft, user: bytes, key: bytes, kept: Identity) -> None:
    """Record a measurement that is not accepted, and count it."""
    before = draft.aside(user) or Aside(0, 0)
    draft.put_identity(user, key, kept)
    _put_aside(draft, user, before, count=before.count + 1, last_us=max(before.last_us, keys.instant_of(key, user)))


def move(  # noqa: PLR0913 - what moves, and where to
    draft: Draft, user: bytes, key: bytes, kept: Identity, disposition: int, reason: str = "",
) -> None:
    """Change where a measurement went; whoever does so audits the transfer."""
    draft.put_identity(user, key, msgspec.structs.replace(kept, disposition=disposition, reason=reason[:REASON_CHARS_MAX]))
    change = (disposition != ACCEPTED) - (kept.disposition != ACCEPTED)
    before = draft.aside(user) or Aside(0, 0)
    last_us = max(before.last_us, keys.instant_of(key, user))
    if change or last_us != before.last_us:
        _put_aside(draft, user, before, count=before.count + change, last_us=last_us)


def withdraw(draft: Draft, user: bytes, key: bytes) -> None:
    """Take out the record of a measurement kept aside, and its count; whoever does so records it anew, or audits the loss."""
    before = draft.aside(user) or Aside(1, keys.instant_of(key, user))
    draft.expect(key)
    kept = draft.identity(key)
    draft.delete(key)
    gone = kept is not None and is_pruned(kept)
    _put_aside(draft, user, before, count=before.count - 1, pruned=before.pruned - gone)


def prune(draft: Draft, user: bytes, key: bytes, kept: Identity) -> None:
    """Drop the content of a measurement kept aside; what stays is that it was seen, where, and that it was not accepted.

    A held one is quarantined by it: it is evidence no more.  Whoever does so audits it.
    """
    draft.expect(key)
    before = draft.aside(user) or Aside(1, keys.instant_of(key, user))
    disposition = QUARANTINED if kept.disposition == HELD else kept.disposition
    draft.put_identity(user, key, Identity(disposition, (), 0.0, "", "", "", kept.source_id, kept.row, PRUNED))
    _put_aside(draft, user, before, pruned=before.pruned + 1)


def is_pruned(kept: Identity) -> bool:
    """Whether only the identity of a measurement is left."""
    return kept.reason == PRUNED and not (kept.values or kept.value or kept.unit)


def _put_aside(draft: Draft, user: bytes, before: Aside, **changes: int) -> None:
    draft.put(keys.aside(user), codec.pack(msgspec.structs.replace(before, **changes)))


def reading_of(key: bytes, user: bytes, kept: Identity) -> Reading:
    """The reading of a recorded measurement."""
    return Reading(keys.instant_of(key, user), kept.values, kept.r)


def is_evidence(kept: Identity) -> bool:
    """Whether the measurement may take part in a reset: accepted, or held and readable."""
    return bool(kept.values) and kept.disposition in (ACCEPTED, HELD)


