"""Apple Health: `export.xml`, streamed, and the CSV made of it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, BinaryIO, Final
from xml.parsers import expat

from statemachine.errors import InvalidInput
from statemachine.ingest.generic import names_user, width_of
from statemachine.ingest.instants import parse_instant
from statemachine.ingest.layout import Layout, Opening
from statemachine.ingest.rows import RAW_CHARS_MAX, Options, Row, unreadable
from statemachine.ingest.text import Utf8Reader
from statemachine.ingest.weights import kilograms
from statemachine.state import Measurement

if TYPE_CHECKING:
    from collections.abc import Iterator
    from zoneinfo import ZoneInfo

BODY_MASS: Final = "HKQuantityTypeIdentifierBodyMass"
SOURCE: Final = "apple"
ROOT: Final = "HealthData"
CHUNK_BYTES: Final = 1 << 16
PROLOG_BYTES_MAX: Final = 1 << 20
ELEMENT_BYTES_MAX: Final = 1 << 20
_ROOT_START: Final = re.compile(rb"<HealthData[\s/>]")
_LINE_END: Final = re.compile(rb"\r\n|\r|\n")
# Exports hold control characters (notably VT) that no XML may; a space does no harm to a weight.
_NO_XML: Final = bytes(code for code in range(0x20) if code not in b"\t\n\r")
_SPACES: Final = bytes.maketrans(_NO_XML, b" " * len(_NO_XML))


def recognise_apple_csv(opening: Opening) -> Layout | None:
    """The layout of a CSV made of an Apple Health export, None for anything else."""
    header = opening.records[0]
    columns = {name.casefold(): index for index, name in reversed(list(enumerate(header)))}
    if "startdate" not in columns or "value" not in columns or names_user(header):
        return None
    return Layout(
        opening.delimiter, opening.skip + 1, width_of(header), columns["startdate"], columns["value"],
        unit=columns.get("unit", -1), source=columns.get("sourcename", -1), kind=columns.get("type", -1),
        default_source=SOURCE,
    )


def apple_xml_rows(stream: BinaryIO, name: str, options: Options, zone: ZoneInfo | None) -> Iterator[Row]:
    """The body-mass records of an `export.xml`, others left out; memory does not grow with the file.

    Where the XML breaks off or is malformed: the rows before that place, then InvalidInput with file and line.  The
    document type is taken out unread: iOS 16 and later write a malformed one, and without one no entity can be
    declared.
    """
    handler = _Handler(options, zone)
    fed = 0
    for chunk in _chunks(stream, name):
        fed += len(chunk)
        problem = _feed(handler.parser, chunk, last=not chunk)
        rows, handler.rows = handler.rows, []
        yield from rows
        line = handler.parser.CurrentLineNumber
        if problem:
            message = (f"{name}, line {problem[0]}: the XML breaks off or is malformed ({problem[1]}): "
                       "export it again, or copy it whole")
            raise InvalidInput(message)
        if fed - handler.parser.CurrentByteIndex > ELEMENT_BYTES_MAX + CHUNK_BYTES:
            message = f"{name}, line {line}: an element is longer than {ELEMENT_BYTES_MAX} bytes: export it again"
            raise InvalidInput(message)


def _feed(parser: expat.XMLParserType, chunk: bytes, *, last: bool) -> tuple[int, str] | None:
    """Parse a chunk; the line and the reason where it is not well formed, None where it is."""
    try:
        parser.Parse(chunk, last)
    except expat.ExpatError as error:
        return error.lineno, expat.ErrorString(error.code)
    return None


class _Handler:
    """Collects the rows of one document in `rows`, until they are taken away."""

    def __init__(self, options: Options, zone: ZoneInfo | None) -> None:
        self.rows: list[Row] = []
        self._options = options
        self._zone = zone
        self._count = 0
        self.parser = expat.ParserCreate("utf-8")
        self.parser.ordered_attributes = True
        self.parser.StartElementHandler = self._start

    def _start(self, name: str, attributes: list[str]) -> None:
        # Runs for every element of a file of hundreds of megabytes: what is no weight must leave at once.
        if name != "Record" or BODY_MASS not in attributes:
            return
        record = dict(zip(attributes[::2], attributes[1::2], strict=True))
        if record.get("type") != BODY_MASS:
            return
        line = self.parser.CurrentLineNumber
        try:
            measurement = self._measurement(record)
        except InvalidInput as error:
            text = (self.parser.GetInputContext() or b"")[:4 * RAW_CHARS_MAX].decode("utf-8", "replace")
            raw = text[:text.find(">") + 1] or text
            self.rows.append(unreadable(self._count, line, str(error), raw, self._options.user or ""))
        else:
            self.rows.append(Row(self._count, line, measurement))
        self._count += 1

    def _measurement(self, record: dict[str, str]) -> Measurement:
        value = record.get("value", "").strip()
        unit = record.get("unit", "").strip() or self._options.unit or ""
        source = record.get("sourceName", "").strip() or SOURCE
        kg = kilograms(value, unit)
        at = parse_instant(record.get("startDate", "").strip(), self._zone)
        return Measurement(self._options.user or "", at, kg, source, value, unit)


def _chunks(stream: BinaryIO, name: str) -> Iterator[bytes]:
    """The document as UTF-8 without its document type, whose lines stay as empty ones; b"" at the end."""
    reader = Utf8Reader(stream)
    prolog = b""
    root = None
    while root is None:
        chunk = reader.read(CHUNK_BYTES)
        prolog += chunk
        root = _ROOT_START.search(prolog)
        if root is None and (not chunk or len(prolog) > PROLOG_BYTES_MAX):
            message = (f"{name}, line {prolog.count(bytes((10,))) + 1}: no <{ROOT}> element: "
                       "choose the export.xml of an Apple Health export, whole")
            raise InvalidInput(message)
    doctype = prolog.find(b"<!DOCTYPE", 0, root.start())
    if doctype >= 0:
        # The space keeps a CR before the document type from joining the LF that now follows it.
        lines = len(_LINE_END.findall(prolog, doctype, root.start()))
        prolog = prolog[:doctype] + b" " + b"\n" * lines + prolog[root.start():]
    yield prolog.translate(_SPACES)
    while chunk := reader.read(CHUNK_BYTES):
        yield chunk.translate(_SPACES)
    yield b""
