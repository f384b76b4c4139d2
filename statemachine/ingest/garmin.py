"""Garmin Connect weight CSV: a line with the date, then a line for each reading of that day, its unit in the cell."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from statemachine.ingest.layout import Layout, Opening, after_header

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from statemachine.ingest.delimited import Record

_MONTHS: Final = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DATES: Final = (
    re.compile(r"(?P<month>[A-Za-z]{3,9})\.? (?P<day>\d{1,2}),? ?(?P<year>\d{4})", re.ASCII),
    re.compile(r"(?P<day>\d{1,2}) (?P<month>[A-Za-z]{3,9})\.?,? (?P<year>\d{4})", re.ASCII),
    re.compile(r"(?P<year>\d{4})-(?P<month>\d\d)-(?P<day>\d\d)", re.ASCII),
)
_CLOCK: Final = re.compile(
    r"(?P<hour>\d{1,2}):(?P<minute>\d\d)(?::(?P<second>\d\d))?\s?(?P<half>[AaPp][Mm])?", re.ASCII)
_WEIGHT: Final = re.compile(r"(?P<value>\S+)\s+(?P<unit>[A-Za-z]+)")
_DASHES: Final = frozenset(("", "-", "--", "\u2013", "\u2014"))
_HEADER: Final = ("time", "weight", "change")


def recognise_garmin(opening: Opening) -> Layout | None:
    """The layout of a Garmin export, with its header or without, None for anything else."""
    first = tuple(cell.casefold() for cell in opening.records[0])
    if first[:len(_HEADER)] == _HEADER:
        skip = 1
    elif len(opening.records) > 1 and _date(opening.delimiter.join(opening.records[0])) and \
            _CLOCK.fullmatch(opening.records[1][0] if opening.records[1] else ""):
        skip = 0
    else:
        return None
    return Layout(opening.delimiter, opening.skip + skip, 3, 0, 1, unit=2, default_source="garmin")


def garmin_records(records: Iterable[Record], layout: Layout) -> Iterator[Record]:
    """A record of time, value and unit for each reading; a date without readings, or readings without, are told."""
    day = ""
    unused: tuple[int, str] | None = None
    for line, cells, text in after_header(records, layout.skip):
        if not text.strip():
            continue
        date = _date(text)
        clock = None if isinstance(cells, str) or not cells else _CLOCK.match(cells[0].strip())
        if date or clock is None or isinstance(cells, str):
            if unused:
                yield unused[0], "a date without a reading below it: complete or remove it", unused[1]
            day, unused = date, (line, text) if date else None
            if isinstance(cells, str):
                yield line, cells, text
            elif not date:
                yield line, "neither a date such as Dec 31, 2017 nor a reading that begins with its time", text
            continue
        start, raw = (unused[0], f"{unused[1]}\n{text}") if unused else (line, text)
        unused = None
        if not day:
            yield start, "a reading without a date above it: put its date on the line before", raw
            continue
        yield start, _reading(day, cells), raw
    if unused:
        yield unused[0], "a date without a reading below it: complete or remove it", unused[1]


def _reading(day: str, cells: list[str]) -> list[str]:
    weight = cells[1].replace("\u00a0", " ").strip() if len(cells) > 1 else ""
    match = _WEIGHT.fullmatch(weight)
    time = f"{day} {_clock(cells[0].replace(chr(0x202f), ' ').strip())}"
    if match:
        return [time, match["value"], match["unit"]]
    return [time, "" if weight in _DASHES else weight, ""]


def _clock(text: str) -> str:
    """The time of day in 24 hours, or `text` itself, for the message, where it is none."""
    match = _CLOCK.fullmatch(text)
    if match is None:
        return text
    hour = int(match["hour"])
    if match["half"]:
        if not 1 <= hour <= 12:  # noqa: PLR2004 - hours on the face of a clock
            return text
        hour = hour % 12 + (12 if match["half"].casefold() == "pm" else 0)
    return f"{hour:02}:{match['minute']}:{match['second'] or '00'}"


def _date(text: str) -> str:
    """The line's date as yyyy-mm-dd, "" where the line is none."""
    plain = text.replace("\u00a0", " ").strip(' ",;\t')
    for form in _DATES:
        match = form.fullmatch(" ".join(plain.split()))
        if match:
            name = match["month"][:3].casefold()
            month = _MONTHS.index(name) + 1 if name in _MONTHS else int(name) if name[:2].isdigit() else 0
            return f"{match['year']}-{month:02}-{int(match['day']):02}" if month else ""
    return ""
