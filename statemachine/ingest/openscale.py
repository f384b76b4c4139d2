"""openScale CSV: `dateTime` (2.x), `DATE,TIME` (3.x), and the old export without a header, dd.MM.yyyy and `;`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from statemachine.ingest.generic import width_of
from statemachine.ingest.layout import Layout, Opening, joined_clock

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from statemachine.ingest.delimited import Record

_GERMAN: Final = re.compile(r"(\d\d)\.(\d\d)\.(\d{4})(?: (\d\d:\d\d(?::\d\d)?))?", re.ASCII)
# Columns by which an export of 2.x differs from any file with a dateTime and a weight.
_MARKS: Final = frozenset((
    "biceps", "bone", "caliper1", "caliper2", "caliper3", "calories", "chest", "comment", "fat", "hip", "lbm", "muscle",
    "neck", "thigh", "visceralFat", "waist", "water",
))
_MARKS_MIN: Final = 3


def recognise_openscale(opening: Opening) -> Layout | None:
    """The layout of an openScale export, None for anything else.

    2.x stores and exports kilograms whatever it displays.  3.x exports in the unit of the display, and the oldest ones
    in either; both write no unit, so it must be declared.
    """
    header = opening.records[0]
    if _GERMAN.fullmatch(header[0]):
        return Layout(opening.delimiter, opening.skip, width_of(header), 0, 1, default_source="openscale")
    if "dateTime" in header and "weight" in header:
        time, clock, weight = header.index("dateTime"), -1, header.index("weight")
        marked = len(_MARKS.intersection(header)) >= _MARKS_MIN
        unit = "kg"
    elif "DATE" in header and "TIME" in header and "WEIGHT" in header:
        time, clock, weight = header.index("DATE"), header.index("TIME"), header.index("WEIGHT")
        marked, unit = True, ""
    else:
        return None
    if not marked:
        return None
    return Layout(opening.delimiter, opening.skip + 1, width_of(header), time, weight,
                  clock=clock, usual_unit=unit, default_source="openscale")


def openscale_records(records: Iterable[Record], layout: Layout) -> Iterator[Record]:
    """The records with their date in ISO order and the time of day behind it."""
    joined = joined_clock(records, layout) if layout.clock >= 0 else records
    for line, cells, text in joined:
        if not isinstance(cells, str) and len(cells) > layout.time:
            match = _GERMAN.fullmatch(cells[layout.time].strip())
            if match:
                day, month, year, clock = match.groups()
                cells[layout.time] = f"{year}-{month}-{day} {clock or ''}".strip()
        yield line, cells, text
