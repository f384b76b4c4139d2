"""Fitbit: the CSV export whose first line is `Body`, and the JSON of the account archive.  Neither writes a unit."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from statemachine.errors import InvalidInput
from statemachine.ingest.instants import parse_instant
from statemachine.ingest.layout import Layout, Opening
from statemachine.ingest.rows import Options, Row, shown, unreadable
from statemachine.ingest.text import NOT_UTF8, Utf8Reader
from statemachine.ingest.weights import kilograms
from statemachine.state import Measurement

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from zoneinfo import ZoneInfo

    from statemachine.ingest.delimited import Record

# An archive holds a file a month, some hundred readings; it is read whole.
JSON_BYTES_MAX: Final = 64 << 20
SECTION: Final = "body"
_HEADER: Final = ("date", "weight", "bmi", "fat")
_US_DATE: Final = re.compile(r"(\d\d)/(\d\d)/(\d\d)", re.ASCII)
_BETWEEN: Final = re.compile(r"[\s,]*")


def recognise_fitbit_csv(opening: Opening) -> Layout | None:
    """The layout of a Fitbit CSV, None for anything else; the line `Body` may be missing."""
    lines = [tuple(cell.casefold() for cell in record if cell) for record in opening.records[:2]]
    skip = 0
    if lines[0] == (SECTION,):
        skip = 1
        lines = lines[1:] or [_HEADER]
    if lines[0] != _HEADER:
        return None
    return Layout(opening.delimiter, opening.skip + skip + 1, len(_HEADER), 0, 1, default_source="fitbit")


def body_records(records: Iterable[Record], layout: Layout) -> Iterator[Record]:
    """The records of the section `Body`: an export may go on with foods, activities and sleep."""
    in_body = True
    headed = layout.skip
    for line, cells, text in records:
        if headed <= 0 and text.strip() and not isinstance(cells, str):
            first = [cell.strip().casefold() for cell in cells if cell.strip()]
            if len(first) == 1 and first[0].isalpha():
                in_body = first[0] == SECTION
                continue
            if tuple(first) == _HEADER:
                continue
        headed -= bool(text.strip())
        if in_body:
            yield line, cells, text


def fitbit_json_rows(stream: BinaryIO, name: str, options: Options, zone: ZoneInfo | None) -> Iterator[Row]:
    """The rows of an archive's `weight-*.json`; where its JSON breaks off, those before it, then InvalidInput."""
    text = _whole_text(stream, name)
    decode = json.JSONDecoder(parse_float=str, parse_int=str, parse_constant=str).raw_decode
    at = text.find("[") + 1
    if not at or text[:at - 1].strip():
        message = f"{name}, line 1: not a JSON array of readings: export the archive again"
        raise InvalidInput(message)
    row, line, counted = 0, 1, 0
    while True:
        at = _after(text, at)
        line, counted = line + text.count("\n", counted, at), at
        if text[at:at + 1] == "]":
            break
        try:
            entry, end = decode(text, at)
        except (ValueError, RecursionError) as error:
            message = f"{name}, line {line}: the JSON breaks off ({error}): export the archive again"
            raise InvalidInput(message) from error
        raw = text[at:end]
        try:
            measurement = _reading(entry, raw, options, zone)
        except InvalidInput as error:
            yield unreadable(row, line, str(error), raw, options.user or "")
        else:
            yield Row(row, line, measurement)
        row, at = row + 1, end
    if text[at + 1:].strip():
        message = f"{name}, line {line}: text after the end of the JSON array: export the archive again"
        raise InvalidInput(message)


def _after(text: str, at: int) -> int:
    match = _BETWEEN.match(text, at)
    return match.end() if match else at


def _whole_text(stream: BinaryIO, name: str) -> str:
    reader = Utf8Reader(stream)
    data = bytearray()
    while block := reader.read(1 << 20):
        data += block
        if len(data) > JSON_BYTES_MAX:
            message = f"{name} is longer than {JSON_BYTES_MAX} bytes, no Fitbit archive is: is this the right file?"
            raise InvalidInput(message)
    return data.decode("utf-8", "replace").replace("\r\n", "\n").replace("\r", "\n")


def _reading(entry: Any, raw: str, options: Options, zone: ZoneInfo | None) -> Measurement:
    if not isinstance(entry, dict):
        message = "not a JSON object with weight, date and time: remove it"
        raise InvalidInput(message)
    if "\ufffd" in raw:
        raise InvalidInput(NOT_UTF8)
    value, date, clock, source = (_text(entry, key) for key in ("weight", "date", "time", "source"))
    match = _US_DATE.fullmatch(date)
    if match:
        date = f"20{match[3]}-{match[1]}-{match[2]}"
    kg = kilograms(value, options.unit or "")
    at = parse_instant(f"{date} {clock}".strip(), zone)
    return Measurement(options.user or "", at, kg, source or "fitbit", value, options.unit or "")


def _text(entry: dict[str, Any], key: str) -> str:
    value = entry.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        message = f"{key} is {shown(json.dumps(value))}: write a number or text"
        raise InvalidInput(message)
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            message = f"{key} is not valid Unicode: {NOT_UTF8}"
            raise InvalidInput(message) from error
    return value.strip()
