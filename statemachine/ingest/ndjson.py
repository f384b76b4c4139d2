"""NDJSON: one flat JSON object a line, its keys named as the generic columns are."""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO, Final

import msgspec

from statemachine.errors import InvalidInput
from statemachine.ingest.generic import role_of
from statemachine.ingest.instants import parse_instant
from statemachine.ingest.rows import Options, Row, refuse, shown, unreadable
from statemachine.ingest.text import text_blocks
from statemachine.ingest.weights import factor_of, kilograms
from statemachine.state import Measurement

if TYPE_CHECKING:
    from collections.abc import Iterator
    from zoneinfo import ZoneInfo

_DECODER: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_TEXT: Final = msgspec.json.Decoder(str)
_KEY_CHARS_MAX: Final = 64
_NESTED: Final = (b"{", b"[")
_NULL: Final = b"null"
_BOOLEANS: Final = (b"true", b"false")


class _Found(msgspec.Struct):
    """What the fields of one object say, as text; `key_unit` is the unit that the weight's own key writes."""

    user: str = ""
    time: str = ""
    weight: str = ""
    unit: str = ""
    source: str = ""
    key_unit: str = ""


def ndjson_rows(stream: BinaryIO, options: Options, zone: ZoneInfo | None) -> Iterator[Row]:
    """The rows of a stream, each as soon as its line is there; never raises for what a line holds."""
    broken: dict[int, str] = {}
    line = row = 0
    for block in text_blocks(stream, broken):
        for text in block:
            line += 1
            if (not text or text.isspace()) and line not in broken:
                continue
            found = _Found()
            try:
                if broken:
                    refuse(broken.pop(line, ""))
                _find(text, found)
                measurement = _measurement(found, options, zone)
            except InvalidInput as error:
                yield unreadable(row, line, str(error), text, found.user or options.user or "")
            else:
                yield Row(row, line, measurement)
            row += 1


def _measurement(found: _Found, options: Options, zone: ZoneInfo | None) -> Measurement:
    user = found.user or options.user
    if not user:
        message = "no user: add user_id or give --user"
        raise InvalidInput(message)
    unit = found.unit or found.key_unit or options.unit or ""
    if found.unit and found.key_unit and factor_of(found.unit) != factor_of(found.key_unit):
        message = f"the key says {found.key_unit} and the unit {shown(found.unit)}: correct one of them"
        raise InvalidInput(message)
    kg = kilograms(found.weight, unit)
    at = parse_instant(found.time, zone)
    return Measurement(user, at, kg, found.source or "unknown", found.weight, unit)


def _find(text: str, found: _Found) -> None:
    """Fill `found` from a line; raises InvalidInput for what is no flat object."""
    try:
        _fill(_DECODER.decode(text), found)
    except (msgspec.DecodeError, RecursionError) as error:
        message = f"not one JSON object ({error}): write one object a line, without NaN or Infinity"
        raise InvalidInput(message) from error


def _fill(fields: dict[str, msgspec.Raw], found: _Found) -> None:
    ranks: dict[str, int] = {}
    date = clock = ""
    for key, raw in fields.items():
        # An over-long key must not fill the cache of roles.
        role = role_of(key) if len(key) <= _KEY_CHARS_MAX else None
        if role is None:
            continue
        value = _scalar(key, bytes(raw))
        if key == "date":
            date = value
        elif key == "time":
            clock = value
        if value and role.rank < ranks.get(role.role, 1 << 10):
            ranks[role.role] = role.rank
            setattr(found, role.role, value)
            if role.role == "weight":
                found.key_unit = role.unit
    if date and clock and found.time == date:
        found.time = f"{date} {clock}"
    if not found.weight and any(bytes(raw).startswith(_NESTED) for raw in fields.values()):
        message = "no weight, but nested values: write one flat object a line"
        raise InvalidInput(message)


def _scalar(key: str, raw: bytes) -> str:
    """A field as text, a number as it is written; raises InvalidInput for anything but text, a number or null."""
    raw = raw.strip()
    if raw.startswith(b'"'):
        return _TEXT.decode(raw).strip()
    if raw == _NULL:
        return ""
    if raw.startswith(_NESTED) or raw in _BOOLEANS:
        message = f"{shown(key)} is {shown(raw.decode('utf-8', 'replace'))}: write text or a number, not nested"
        raise InvalidInput(message)
    return raw.decode("utf-8", "replace")
