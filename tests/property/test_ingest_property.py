"""Arbitrary bytes: nothing but rows in order, or InvalidInput."""

from __future__ import annotations

import io
import tempfile
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statemachine.errors import InvalidInput
from statemachine.ingest import FORMATS, Options, open_source, sniff
from statemachine.ingest.text import text_blocks

FIXTURES = sorted((Path(__file__).parents[1] / "fixtures" / "ingest").iterdir())
OPTIONS = Options(user="u", unit="kg", tz="Europe/Berlin")
CELL = st.one_of(
    st.text(max_size=12), st.sampled_from(["u", "2026-01-05T07:00:00Z", "2026-03-29 02:30", "81.2", "kg", "", '"', '""']),
    st.floats().map(str), st.integers().map(str), st.datetimes().map(str),
)


def check(content: bytes, options: Options) -> None:
    """Read `content` whole; whatever is not InvalidInput, and rows that are not numbered in order, fail."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        try:
            rows = []
            for row in open_source(file.name, options):
                rows.append(row)  # noqa: PERF402 - what precedes an error counts too
        except InvalidInput as error:
            assert file.name in str(error)  # noqa: PT017 - the rows are looked at as well
        assert [row.row for row in rows] == list(range(len(rows))) if rows else True
        for before, after in pairwise(rows):
            assert before.line <= after.line
        for row in rows:
            assert (row.measurement is None) == bool(row.reason)
            assert len(row.raw) <= 500
            if row.measurement:
                assert 0 < row.measurement.weight_kg <= 1000
                row.measurement.source.encode()


@given(st.binary(max_size=400), st.sampled_from((None, *FORMATS)))
def test_arbitrary_bytes_are_rows_or_invalid_input(content: bytes, name: str | None) -> None:
    """No bytes make a reader raise anything but InvalidInput, whatever format is declared."""
    check(content, Options(format=name, user="u", unit="kg", tz="Europe/Berlin"))


@given(st.sampled_from(FIXTURES), st.data())
def test_damaged_exports_are_rows_or_invalid_input(path: Path, data: st.DataObject) -> None:
    """A real form with bytes replaced, inserted, doubled or cut is still rows or InvalidInput."""
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content)))
        until = data.draw(st.integers(at, min(len(content), at + 40)))
        content[at:until] = data.draw(st.one_of(
            st.binary(max_size=6), st.just(bytes(content[at:until]) * 2), st.sampled_from([b'"', b"\n", b"\r", b"\0", b"<"]),
        ))
    check(bytes(content), OPTIONS)
    check(bytes(content), Options(format=sniff(path), user="u", unit="kg", tz="Europe/Berlin"))


@given(st.lists(st.tuples(CELL, CELL, CELL, CELL, CELL), max_size=8), st.sampled_from([",", ";", "\t"]))
def test_every_written_record_is_one_row(records: list[tuple[str, ...]], delimiter: str) -> None:
    """A CSV of so many quoted records has so many rows, whatever its cells hold."""
    header = delimiter.join(("user_id", "timestamp", "weight", "unit", "source"))
    lines = [header, *(delimiter.join('"' + cell.replace('"', '""') + '"' for cell in record) for record in records)]
    content = "\n".join(lines).encode("utf-8", "surrogatepass")
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        rows = list(open_source(file.name, OPTIONS))
    assert [row.row for row in rows] == list(range(len(records)))


@settings(max_examples=300)
@given(st.binary(max_size=80), st.integers(1, 7))
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff"])
def test_how_a_stream_is_cut_changes_no_line(mark: bytes, content: bytes, size: int) -> None:
    """Lines and their faults are the same in one block or a few bytes at a time."""
    class Dribble(io.RawIOBase):
        def __init__(self) -> None:
            super().__init__()
            self._whole = io.BytesIO(mark + content)

        def read(self, _: int = -1) -> bytes:
            return self._whole.read(size)

    at_once: dict[int, str] = {}
    bit_by_bit: dict[int, str] = {}
    whole = [line for block in text_blocks(io.BytesIO(mark + content), at_once) for line in block]
    parts = [line for block in text_blocks(Dribble(), bit_by_bit) for line in block]  # type: ignore[arg-type]
    assert parts == whole
    assert bit_by_bit == at_once
