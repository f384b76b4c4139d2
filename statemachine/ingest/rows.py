"""What a reader yields and what it is told: `Row`, `Options`, and what every reader shares."""

from __future__ import annotations

from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec

from statemachine.errors import InvalidInput
from statemachine.state import Measurement, user_key

FORMATS: Final = (
    "csv", "ndjson", "apple-xml", "apple-csv", "withings", "fitbit-csv", "fitbit-json", "openscale", "garmin",
)
DECLARABLE_UNITS: Final = ("kg", "lb", "st")
RAW_CHARS_MAX: Final = 500
SHOWN_CHARS_MAX: Final = 60


class Row(msgspec.Struct, frozen=True, gc=False):
    """One record of a file: a measurement, or why there is none.

    `row` counts the file's records from 0; `line` is the physical line, from 1, on which the record starts.
    `reason`, `raw` (the record's text, cut at 500 characters) and `user` (where known) belong to an unreadable row.
    """

    row: int
    line: int
    measurement: Measurement | None
    reason: str = ""
    raw: str = ""
    user: str = ""


class Options(msgspec.Struct, frozen=True):
    """What the caller declares about a file.

    `format` (one of FORMATS) overrides recognition.  `user` serves rows that name none, `unit` (kg, lb or st) weights
    whose unit neither the row nor the header writes, `tz` (an IANA name) timestamps without an offset: what a row
    itself writes is no guess, so it stands.
    """

    format: str | None = None
    user: str | None = None
    unit: str | None = None
    tz: str | None = None


def check_options(options: Options) -> ZoneInfo | None:
    """The declared zone, None where there is none; raises InvalidInput for any option that cannot be used."""
    if options.format is not None and options.format not in FORMATS:
        message = f"the format {options.format!r} is unknown: declare one of {', '.join(FORMATS)}"
        raise InvalidInput(message)
    if options.unit is not None and options.unit not in DECLARABLE_UNITS:
        message = f"the unit {options.unit!r} is unknown: declare one of {', '.join(DECLARABLE_UNITS)}"
        raise InvalidInput(message)
    if options.user is not None:
        user_key(options.user)
    if options.tz is None:
        return None
    try:
        return ZoneInfo(options.tz)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        message = f"the time zone {options.tz!r} is unknown: declare an IANA name such as Europe/Berlin or UTC"
        raise InvalidInput(message) from error


def shown(text: str) -> str:
    """A value as a message quotes it: with quotes, escaped, and cut at 60 characters."""
    return repr(text) if len(text) <= SHOWN_CHARS_MAX else repr(text[:SHOWN_CHARS_MAX]) + "..."


def refuse(reason: str) -> None:
    """Raise InvalidInput with `reason`, unless that is empty."""
    if reason:
        raise InvalidInput(reason)


def unreadable(row: int, line: int, reason: str, raw: str, user: str = "") -> Row:
    """The row of a record that cannot be read; a `user` that no store could hold is left out."""
    try:
        user_key(user)
    except InvalidInput:
        user = ""
    return Row(row, line, None, reason, raw[:RAW_CHARS_MAX], user)
