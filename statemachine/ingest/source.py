"""`sniff` and `open_source`: from a path to rows."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

from statemachine.errors import InvalidInput
from statemachine.ingest.apple import apple_xml_rows
from statemachine.ingest.delimited import Records
from statemachine.ingest.fitbit import body_records, fitbit_json_rows
from statemachine.ingest.garmin import garmin_records
from statemachine.ingest.layout import Layout, joined_clock, layout_rows
from statemachine.ingest.ndjson import ndjson_rows
from statemachine.ingest.openscale import openscale_records
from statemachine.ingest.rows import Options, Row, check_options
from statemachine.ingest.sniffing import HEAD_BYTES, Kind, recognise

if TYPE_CHECKING:
    from collections.abc import Iterator
    from zoneinfo import ZoneInfo

STANDARD_INPUT: Final = "-"
STANDARD_INPUT_NAME: Final = "standard input"
# Formats whose records say whose they are; of the others, each file is one person's.
NAMING_USERS: Final = frozenset(("csv", "ndjson"))


def sniff(path: Path | str) -> str:
    """The format of the file, a name of FORMATS, by its content and never by its name.

    Raises InvalidInput, naming the file and the remedy, for one that cannot be read, is empty, packed (a spreadsheet,
    gzip), binary, or whose header is unknown.
    """
    return recognise(str(path), _head(Path(path)), None).format


def open_source(path: Path | str, options: Options, *, stdin: BinaryIO | None = None) -> Iterator[Row]:
    """The rows of a file, read as they are asked for; "-" is NDJSON from `stdin`, by default the process's own.

    Each record is one Row, numbered from 0; what cannot be read is a Row with a reason, never left out.  Raises
    InvalidInput at once for a bad option, a file that cannot be read or recognised, and a format that names no user
    where none is declared.  The iterator raises it later, after the rows before that place, where a file's XML or JSON
    breaks off: a caller that must not take half a file collects all rows before it uses one.
    """
    zone = check_options(options)
    if str(path) == STANDARD_INPUT:
        if options.format not in {None, "ndjson"}:
            message = f"{STANDARD_INPUT_NAME} is read as NDJSON, not {options.format}: save it to a file"
            raise InvalidInput(message)
        return ndjson_rows(stdin if stdin is not None else sys.stdin.buffer, options, zone)
    path = Path(path)
    kind = recognise(str(path), _head(path), options.format)
    if kind.format not in NAMING_USERS and not options.user:
        message = f"{path} ({kind.format}) names no user: give --user"
        raise InvalidInput(message)
    return _file_rows(path, kind, options, zone)


def _head(path: Path) -> bytes:
    try:
        if path.exists() and not path.is_file():
            what = "a directory: give a file in it" if path.is_dir() else 'no regular file: give "-" and a stream'
            message = f"{path} is {what}"
            raise InvalidInput(message)
        with path.open("rb") as file:
            return file.read(HEAD_BYTES)
    except (OSError, ValueError) as error:
        if isinstance(error, InvalidInput):
            raise
        raise _unreadable_file(path, error) from error


def _unreadable_file(path: Path, error: Exception) -> InvalidInput:
    if isinstance(error, FileNotFoundError):
        return InvalidInput(f"{path} does not exist: check the path")
    if isinstance(error, PermissionError):
        return InvalidInput(f"{path} may not be read by this user: change its permissions")
    return InvalidInput(f"{path} cannot be read ({error}): check the file and its disk")


def _file_rows(path: Path, kind: Kind, options: Options, zone: ZoneInfo | None) -> Iterator[Row]:
    try:
        with path.open("rb") as stream:
            yield from _rows(stream, str(path), kind, options, zone)
    except OSError as error:
        raise _unreadable_file(path, error) from error


def _rows(stream: BinaryIO, name: str, kind: Kind, options: Options, zone: ZoneInfo | None) -> Iterator[Row]:
    if kind.layout is not None:
        return _delimited_rows(stream, kind.format, kind.layout, options, zone)
    if kind.format == "apple-xml":
        return apple_xml_rows(stream, name, options, zone)
    if kind.format == "fitbit-json":
        return fitbit_json_rows(stream, name, options, zone)
    return ndjson_rows(stream, options, zone)


def _delimited_rows(
    stream: BinaryIO, format_name: str, layout: Layout, options: Options, zone: ZoneInfo | None,
) -> Iterator[Row]:
    if format_name == "garmin":
        readings = garmin_records(Records(stream, layout.delimiter), layout)
        return layout_rows(readings, layout, options, zone, skip=0)
    records = iter(Records(stream, layout.delimiter, layout.width))
    if format_name == "fitbit-csv":
        records = body_records(records, layout)
    elif format_name == "openscale":
        records = openscale_records(records, layout)
    elif layout.clock >= 0:
        records = joined_clock(records, layout)
    return layout_rows(records, layout, options, zone, skip=layout.skip)
