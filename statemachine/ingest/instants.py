"""Timestamps as written, to aware datetimes.  Nothing unparsable becomes "now", nothing naive gets a zone by itself."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from statemachine.clock import from_us
from statemachine.errors import InvalidInput
from statemachine.ingest.rows import shown

if TYPE_CHECKING:
    from zoneinfo import ZoneInfo

REMEDY: Final = "write ISO 8601, such as 2026-09-16T07:00:00+02:00"
# What may stand between date and time; "" where the text ends after the date.
_SEPARATORS: Final = frozenset(("", "T", "t", " "))
# Looked up once: this runs for every row.
_fromisoformat: Final = datetime.fromisoformat
_BASIC: Final = re.compile(r"[0-9]{8}T[0-9]{4}([0-9]{2})?([.,][0-9]+)?(Z|[+-][0-9]{2}(:?[0-9]{2})?)?")
_SLASHED: Final = re.compile(r"[0-9]{1,4}[/.-][0-9]{1,2}[/.-][0-9]{1,4}\b")
_DATE_DIGITS: Final = 8
_SECONDS_DIGITS: Final = (9, 10)
_MILLISECONDS_DIGITS: Final = (12, 13)


def parse_instant(text: str, zone: ZoneInfo | None) -> datetime:
    """The aware datetime that `text` writes; `zone` serves a text without an offset.

    ISO 8601 dates and times, extended or basic, with "T" or a space, and an offset in any common form; whole epoch
    seconds (9 or 10 digits) and milliseconds (12 or 13).  A date alone is local midnight.  A local time that occurs
    twice is taken as its first occurrence (fold 0).  Raises InvalidInput for anything else, for a local time that a
    change of the clocks skips, for a text without offset where `zone` is None, and for the first and last year of the
    calendar (their instants may lie outside it in UTC).
    """
    # Digits first: fromisoformat reads thirteen digits as a date of the year 1612 with a strange separator.
    if text[4:5] == "-" and text[10:11] in _SEPARATORS:
        try:
            at = _fromisoformat(text)
        except ValueError:
            at = _uncommon(text)
    else:
        at = _uncommon(text)
    if at.tzinfo is None:
        at = localise(at, zone, text)
    if not 1 < at.year < 9999:  # noqa: PLR2004 - the calendar's own borders
        message = f"the time {shown(text)} is at the border of the calendar: {REMEDY}"
        raise InvalidInput(message)
    return at


def localise(naive: datetime, zone: ZoneInfo | None, text: str) -> datetime:
    """The instant, in UTC, of a local time in `zone`; `text` is what a message quotes.  Raises as `parse_instant`."""
    if zone is None:
        message = f"the time {shown(text)} has no time zone: declare --tz, such as --tz Europe/Berlin"
        raise InvalidInput(message)
    offset = _offset_of_day(naive.date(), zone)
    if offset is None:
        offset = naive.replace(tzinfo=zone).utcoffset()
        second = naive.replace(tzinfo=zone, fold=1).utcoffset()
        if offset is None or second is None or offset < second:
            message = f"the local time {shown(text)} does not exist in {zone.key}, whose clocks skip it: correct it"
            raise InvalidInput(message)
    try:
        return (naive - offset).replace(tzinfo=UTC)
    except OverflowError as error:
        message = f"the time {shown(text)} is at the border of the calendar: {REMEDY}"
        raise InvalidInput(message) from error


@lru_cache(maxsize=16_384)
def _offset_of_day(day: date, zone: ZoneInfo) -> timedelta | None:
    """The zone's offset during the whole local day, None where it changes within it (or right at its end)."""
    start = datetime.combine(day, time.min, zone).utcoffset()
    end = datetime.combine(day, time.max, zone).replace(fold=1).utcoffset()
    return start if start == end else None


def _uncommon(text: str) -> datetime:
    if not text:
        message = f"no time: {REMEDY}"
        raise InvalidInput(message)
    try:
        if text.isascii() and text.isdigit():
            return _digits(text)
        if _BASIC.fullmatch(text):
            return datetime.fromisoformat(text)
        if text.endswith((" UTC", " GMT")) and text[4:5] == "-":
            return datetime.fromisoformat(text[:-4] + "+00:00")
    except ValueError as error:
        message = f"the time {shown(text)} cannot be read ({error}): {REMEDY}"
        raise InvalidInput(message) from error
    slashed = text[4:5] != "-" and _SLASHED.match(text)
    why = "has an order of day, month and year that is not known" if slashed else "cannot be read"
    message = f"the time {shown(text)} {why}: {REMEDY}"
    raise InvalidInput(message)


def _digits(text: str) -> datetime:
    if len(text) == _DATE_DIGITS:
        return datetime.fromisoformat(text)
    if len(text) in _SECONDS_DIGITS:
        return from_us(int(text) * 1_000_000)
    if len(text) in _MILLISECONDS_DIGITS:
        return from_us(int(text) * 1000)
    message = f"{len(text)} digits are neither a date nor epoch seconds or milliseconds"
    raise ValueError(message)
