"""What a file is, by its content alone."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Final

import msgspec

from statemachine.errors import InvalidInput
from statemachine.ingest.apple import ROOT, recognise_apple_csv
from statemachine.ingest.fitbit import recognise_fitbit_csv
from statemachine.ingest.garmin import recognise_garmin
from statemachine.ingest.generic import recognise_generic
from statemachine.ingest.layout import Layout, Opening, openings
from statemachine.ingest.openscale import recognise_openscale
from statemachine.ingest.rows import FORMATS, shown
from statemachine.ingest.text import Utf8Reader
from statemachine.ingest.withings import recognise_withings

if TYPE_CHECKING:
    from collections.abc import Callable

HEAD_BYTES: Final = 1 << 16
# In this order: the generic reader would take most of the others' headers too.
LAYOUTS: Final[dict[str, Callable[[Opening], Layout | None]]] = {
    "garmin": recognise_garmin, "fitbit-csv": recognise_fitbit_csv, "withings": recognise_withings,
    "openscale": recognise_openscale, "apple-csv": recognise_apple_csv, "csv": recognise_generic,
}
_UTF16_MARKS: Final = (b"\xff\xfe", b"\xfe\xff")
_ZIP: Final = b"PK"
_GZIP: Final = b"\x1f\x8b"
_OLD_EXCEL: Final = b"\xd0\xcf\x11\xe0"
_CONTROL_MAX: Final = 0x20


class Kind(msgspec.Struct, frozen=True):
    """A recognised format, with the layout of a delimited one."""

    format: str
    layout: Layout | None = None


def recognise(name: str, head: bytes, declared: str | None) -> Kind:
    """The kind of a file from its first HEAD_BYTES; `declared`, a name of FORMATS, stands against its look.

    Raises InvalidInput, which names the file and the remedy, for what is empty, packed, binary or unknown.
    """
    if not head:
        message = f"{name} is empty: export it again"
        raise InvalidInput(message)
    _refuse_packed(name, head)
    text = _text(name, head)
    if not text.strip():
        message = f"{name} holds nothing but blanks: export it again"
        raise InvalidInput(message)
    if declared is not None and declared not in LAYOUTS:
        return Kind(declared)
    if declared is None:
        by_mark = _by_first_character(name, text)
        if by_mark is not None:
            return by_mark
    kinds = [declared] if declared is not None else list(LAYOUTS)
    offered = list(openings(text))
    for kind in kinds:
        for opening in offered:
            layout = _layout(name, kind, opening)
            if layout is not None:
                return Kind(kind, layout)
    first = shown(text.strip().splitlines()[0])
    if declared is not None:
        message = f"{name}: the first line {first} is no header of {declared}: correct it or declare another --format"
    else:
        message = (f"{name}: the first line {first} is no header that is known here: name the columns "
                   f"user_id,timestamp,weight,unit,source, or declare --format {'|'.join(FORMATS)}")
    raise InvalidInput(message)


def _layout(name: str, kind: str, opening: Opening) -> Layout | None:
    try:
        return LAYOUTS[kind](opening)
    except InvalidInput as error:
        message = f"{name}, line 1: {error}"
        raise InvalidInput(message) from error


def _refuse_packed(name: str, head: bytes) -> None:
    if head.startswith(_ZIP) and (len(head) == len(_ZIP) or head[len(_ZIP)] < _CONTROL_MAX):
        message = f"{name} is a spreadsheet or zip archive, whatever its name: save it as CSV, or unpack it"
    elif head.startswith(_OLD_EXCEL):
        message = f"{name} is a spreadsheet: save it as CSV"
    elif head.startswith(_GZIP):
        message = f"{name} is compressed with gzip: unpack it with gunzip"
    else:
        return
    raise InvalidInput(message)


def _text(name: str, head: bytes) -> str:
    # The first line alone tells: further down, a NUL is one record's own fault.
    if b"\0" in head.split(b"\n", 1)[0] and not head.startswith(_UTF16_MARKS):
        message = f"{name} is binary, or UTF-16 without a byte-order mark: save it as UTF-8 text"
        raise InvalidInput(message)
    reader = Utf8Reader(io.BytesIO(head))
    data = b""
    while block := reader.read(HEAD_BYTES):
        data += block
    text = data.decode("utf-8", "replace")
    if "\0" in text.split("\n", 1)[0]:
        message = f"{name} is binary: save it as UTF-8 text"
        raise InvalidInput(message)
    return text


def _by_first_character(name: str, text: str) -> Kind | None:
    start = text.lstrip()
    if start.startswith("{"):
        return Kind("ndjson")
    if start.startswith("["):
        if '"weight"' in start or '"logId"' in start or not start[1:].strip(" \t\r\n]"):
            return Kind("fitbit-json")
        message = f"{name} is a JSON array of something else: write one object a line (NDJSON)"
        raise InvalidInput(message)
    if start.startswith("<"):
        if f"<{ROOT}" in start or f"<!DOCTYPE {ROOT}" in start:
            return Kind("apple-xml")
        message = f"{name} is XML, but no Apple Health export: choose its export.xml (not export_cda.xml)"
        raise InvalidInput(message)
    return None
