"""Where things stand in a delimited file, and the loop that turns its records into rows."""

from __future__ import annotations

import csv
import re
import sys
from typing import TYPE_CHECKING, Final

import msgspec

from statemachine.errors import InvalidInput
from statemachine.ingest.instants import parse_instant
from statemachine.ingest.rows import Options, Row, refuse, shown, unreadable
from statemachine.ingest.weights import factor_of, kilograms, kilograms_with_comma
from statemachine.state import Measurement

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from zoneinfo import ZoneInfo

    from statemachine.ingest.delimited import Record

DELIMITERS: Final = (",", ";", "\t")
OPENING_LINES_MAX: Final = 4
_SEP_LINE: Final = re.compile(r"sep=(.)", re.IGNORECASE)


class Opening(msgspec.Struct, frozen=True):
    """The first records of a delimited file, cells stripped; `skip` counts those before the first of `records`."""

    delimiter: str
    records: tuple[tuple[str, ...], ...]
    skip: int = 0


class Layout(msgspec.Struct, frozen=True):
    """The columns of a delimited file, by index; -1 where it has none.

    `skip`: records before the first that holds data.  `written_unit` stands in the header; `usual_unit` is what the
    program that writes this format always writes, for rows with no unit of their own and none declared.
    """

    delimiter: str
    skip: int
    width: int
    time: int
    weight: int
    user: int = -1
    unit: int = -1
    source: int = -1
    kind: int = -1
    clock: int = -1
    written_unit: str = ""
    usual_unit: str = ""
    default_source: str = "unknown"


def openings(head: str) -> Iterator[Opening]:
    """The first records of `head`, once for each delimiter that its first line holds, and for none."""
    lines = [line for line in head.replace("\r\n", "\n").replace("\r", "\n").split("\n") if line.strip()]
    told = _SEP_LINE.fullmatch(lines[0].strip()) if lines else None
    skip = 1 if told else 0
    lines = lines[skip:skip + OPENING_LINES_MAX]
    candidates = (told.group(1),) if told else DELIMITERS
    for delimiter in candidates:
        try:
            records = tuple(tuple(cell.strip() for cell in cells) for cells in csv.reader(lines, delimiter=delimiter))
        except (csv.Error, TypeError):
            continue
        if records:
            yield Opening(delimiter, records, skip)


def layout_rows(
    records: Iterable[Record], layout: Layout, options: Options, zone: ZoneInfo | None, *, skip: int,
) -> Iterator[Row]:
    """The rows of the records after the first `skip`; never raises for what a record holds."""
    user_at, time_at, weight_at, kind_at = layout.user, layout.time, layout.weight, layout.kind
    unit_at, source_at = layout.unit, layout.source
    width = max(layout.width, 1 + max(user_at, time_at, weight_at, kind_at, unit_at, source_at))
    declared_user, default_source = options.user or "", layout.default_source
    default_unit = layout.written_unit or options.unit or layout.usual_unit
    to_kg = kilograms_with_comma if layout.delimiter == ";" else kilograms
    unit, source = default_unit, default_source
    # The same few texts come again and again: one object of each takes less memory, and compares faster.
    intern = sys.intern
    row = 0
    for line, cells, text in after_header(records, skip):
        user = declared_user
        try:
            if isinstance(cells, str) or len(cells) != width:
                if not isinstance(cells, str) and not text.strip():
                    continue
                cells = _fitted(cells, width)  # noqa: PLW2901 - the same record without its empty tail
            if kind_at >= 0 and not cells[kind_at].strip().endswith("BodyMass"):
                continue
            if user_at >= 0:
                user = intern(cells[user_at].strip()) or declared_user
            if not user:
                refuse("no user: fill its column or give --user")
            if unit_at >= 0:
                unit = intern(cells[unit_at].strip()) or default_unit
                if layout.written_unit:
                    _check_agreement(unit, layout.written_unit)
            if source_at >= 0:
                source = intern(cells[source_at].strip()) or default_source
            value = intern(cells[weight_at].strip())
            kg = to_kg(value, unit)
            at = parse_instant(cells[time_at].strip(), zone)
            measurement = Measurement(user, at, kg, source, value, unit)
        except InvalidInput as error:
            yield unreadable(row, line, str(error), text, user)
        else:
            yield Row(row, line, measurement)
        row += 1


def after_header(records: Iterable[Record], skip: int) -> Iterator[Record]:
    """The records after the first `skip` that are not blank."""
    rest = iter(records)
    while skip > 0:
        record = next(rest, None)
        if record is None:
            break
        skip -= bool(record[2].strip())
    return rest


def joined_clock(records: Iterable[Record], layout: Layout) -> Iterator[Record]:
    """The records with the time of day, which has a column of its own, behind the date."""
    date_at, clock_at = layout.time, layout.clock
    needed = max(date_at, clock_at)
    for line, cells, text in records:
        if not isinstance(cells, str) and len(cells) > needed:
            cells[date_at] = f"{cells[date_at].strip()} {cells[clock_at].strip()}".strip()
        yield line, cells, text


def _fitted(cells: list[str] | str, width: int) -> list[str]:
    """The cells without empty ones beyond the header's; raises InvalidInput where they do not fit it."""
    if isinstance(cells, str):
        raise InvalidInput(cells)
    if len(cells) < width or any(cell.strip() for cell in cells[width:]):
        message = f"{len(cells)} columns where the header has {width}: quote values that hold the delimiter"
        raise InvalidInput(message)
    return cells[:width]


def _check_agreement(unit: str, header_unit: str) -> None:
    if factor_of(unit) != factor_of(header_unit):
        message = f"the header says {header_unit} and the row {shown(unit)}: correct one of them"
        raise InvalidInput(message)
