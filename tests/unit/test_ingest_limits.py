"""Bounds: lines, elements and memory."""

from __future__ import annotations

import io
import tracemalloc
from typing import TYPE_CHECKING

import pytest

from statemachine.errors import InvalidInput
from statemachine.ingest import Options, open_source
from statemachine.ingest.text import BLOCK_BYTES, LINE_BYTES_MAX, text_blocks

if TYPE_CHECKING:
    from pathlib import Path

HEADER = b"user_id,timestamp,weight,unit,source\n"
GOOD = b"u,2026-01-05T07:00:00Z,81.2,kg,scale\n"
JSON = b'{"user": "u", "timestamp": 1767596400, "weight_kg": 81.2}\n'


class Endless(io.RawIOBase):
    """A stream of so many bytes of one kind between two ends, made as it is read."""

    def __init__(self, before: bytes, length: int, after: bytes) -> None:
        super().__init__()
        self._before, self._left, self._after = before, length, after

    def readable(self) -> bool:
        """It is."""
        return True

    def read(self, size: int = -1) -> bytes:
        """The next bytes."""
        if self._before:
            data, self._before = self._before, b""
        elif self._left:
            data = b'"' * min(size, self._left)
            self._left -= len(data)
        else:
            data, self._after = self._after, b""
        return data


@pytest.mark.parametrize("length", [LINE_BYTES_MAX + 1, LINE_BYTES_MAX + BLOCK_BYTES, 64 << 20])
def test_a_line_over_the_limit_is_one_unreadable_row(length: int) -> None:
    """A line longer than 1 MiB is told, its neighbours are read, and its length takes no memory."""
    stream = Endless(JSON, length, b"\r\n" + JSON)
    tracemalloc.start()
    rows = list(open_source("-", Options(), stdin=stream))  # type: ignore[arg-type]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [(row.line, bool(row.measurement)) for row in rows] == [(1, True), (2, False), (3, True)]
    assert "longer than 1048576 bytes" in rows[1].reason
    assert len(rows[1].raw) == 500
    assert peak < 8 << 20


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("extra", [-1, 0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, 3 * BLOCK_BYTES])
def test_long_lines_keep_the_count_of_lines(extra: int, end: bytes) -> None:
    """Whatever the length of a line and its end, the lines after it keep their numbers."""
    broken: dict[int, str] = {}
    content = b"a" + end + b"x" * (LINE_BYTES_MAX - len(end) + extra) + end + b"b" + end + b"c"
    lines = [line for block in text_blocks(io.BytesIO(content), broken) for line in block]
    assert [line[:1] for line in lines] == ["a", "x", "b", "c"]
    assert list(broken) == ([2] if extra > 0 else [])


def test_an_over_long_csv_line_costs_itself(tmp_path: Path) -> None:
    """An over-long line of quotes in a CSV opens no quoted field."""
    path = tmp_path / "weight.csv"
    path.write_bytes(HEADER + GOOD + b'u,"' + b"x" * LINE_BYTES_MAX + b"\n" + GOOD)
    rows = list(open_source(path, Options()))
    assert [(row.line, bool(row.measurement)) for row in rows] == [(2, True), (3, False), (4, True)]


def test_an_over_long_element_is_refused(tmp_path: Path) -> None:
    """An XML element that never ends raises instead of filling the memory."""
    path = tmp_path / "export.xml"
    path.write_bytes(b'<HealthData>\n<Record type="' + b"x" * (8 << 20) + b'"/></HealthData>')
    tracemalloc.start()
    with pytest.raises(InvalidInput, match="line 2: an element is longer than 1048576 bytes"):
        list(open_source(path, Options(user="u")))
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


def test_many_stray_quotes_take_no_quadratic_time(tmp_path: Path) -> None:
    """Tens of thousands of broken records are told within the test's patience."""
    path = tmp_path / "weight.csv"
    path.write_bytes(HEADER + b'"\n' * 50_000)
    rows = list(open_source(path, Options()))
    assert len(rows) == 50_000
    assert all(row.measurement is None for row in rows)


def test_a_generic_file_streams(tmp_path: Path) -> None:
    """Reading some megabytes of CSV row by row holds a few blocks, not the file."""
    path = tmp_path / "weight.csv"
    path.write_bytes(HEADER + GOOD * 200_000)
    tracemalloc.start()
    for row in open_source(path, Options()):
        last = row
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert last.row == 199_999
    assert peak < 4 << 20


@pytest.mark.slow
def test_a_large_apple_export_streams(tmp_path: Path) -> None:
    """Memory does not grow with an export of 30 MB, and every weight in it is read."""
    path = tmp_path / "export.xml"
    kinds = ("StepCount", "HeartRate", "BodyMass", "ActiveEnergyBurned")
    with path.open("w", encoding="utf-8") as file:
        file.write('<?xml version="1.0" encoding="UTF-8"?>\n<!DOCTYPE HealthData [\n<!ELEMENT HealthData ANY>\n]>\n')
        file.write('<HealthData locale="en_GB">\n')
        weights = 0
        while file.tell() < 30 << 20:
            for _ in range(1000):
                kind = kinds[weights % len(kinds)]
                weights += 1
                file.write(f' <Record type="HKQuantityTypeIdentifier{kind}" sourceName="Scale" unit="kg" '
                           f'device="&lt;&lt;HKDevice: 0x28&gt;, name:Watch&gt;" '
                           f'startDate="2026-09-16 07:00:00 +0800" value="{70 + weights % 100 / 10}"/>\n')
        file.write("</HealthData>\n")
    tracemalloc.start()
    count = sum(1 for row in open_source(path, Options(user="u")) if row.measurement)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == weights // len(kinds)
    assert peak < 4 << 20
