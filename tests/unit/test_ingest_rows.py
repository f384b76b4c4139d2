"""What one record may get wrong: it is told, with value and remedy, and the records around it are read."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from statemachine.ingest import Options, Row, open_source

if TYPE_CHECKING:
    from pathlib import Path

HEADER = "user_id,timestamp,weight,unit,source\n"
GOOD = "u,2026-01-05T07:00:00Z,81.2,kg,scale\n"


def read(tmp_path: Path, content: str | bytes, options: Options | None = None) -> list[Row]:
    """The rows of a file with that content."""
    path = tmp_path / "export.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(open_source(path, options or Options()))


@pytest.mark.parametrize(("record", "reason"), [
    ("u,05/01/2026,81.2,kg,s", "the time '05/01/2026' has an order of day, month and year that is not known"),
    ("u,2026-02-30,81.2,kg,s", "the time '2026-02-30' cannot be read"),
    ("u,soon,81.2,kg,s", "the time 'soon' cannot be read: write ISO 8601"),
    ("u,,81.2,kg,s", "no time: write ISO 8601"),
    ("u,123,81.2,kg,s", "3 digits are neither a date nor epoch seconds or milliseconds"),
    ("u,0001-01-01T00:00:00+14:00,81.2,kg,s", "border of the calendar"),
    ("u,9999-12-31T23:59:59-14:00,81.2,kg,s", "border of the calendar"),
    ("u,2026-01-05T07:00:00,81.2,kg,s", "has no time zone: declare --tz"),
    ("u,2026-01-05,81.2,kg,s", "has no time zone: declare --tz"),
    ("u,2026-01-05-07:00,81.2,kg,s", "cannot be read"),
    ("u,2026-01-05T07:00:00Z,nan,kg,s", "'nan' is no finite number"),
    ("u,2026-01-05T07:00:00Z,inf,kg,s", "'inf' is no finite number"),
    ("u,2026-01-05T07:00:00Z,-81.2,kg,s", "'-81.2' kg is no human weight"),
    ("u,2026-01-05T07:00:00Z,0,kg,s", "'0' kg is no human weight"),
    ("u,2026-01-05T07:00:00Z,1e308,kg,s", "'1e308' kg is no human weight"),
    ("u,2026-01-05T07:00:00Z,1e308,st,s", "'1e308' st is no human weight"),
    ("u,2026-01-05T07:00:00Z,1000.1,kg,s", "'1000.1' kg is no human weight"),
    ("u,2026-01-05T07:00:00Z,1e-400,kg,s", "'1e-400' kg is no human weight"),
    ("u,2026-01-05T07:00:00Z,heavy,kg,s", "'heavy' is no finite number: write a plain number"),
    ("u,2026-01-05T07:00:00Z,8_1,kg,s", "'8_1' is no finite number"),
    ("u,2026-01-05T07:00:00Z,\uff18\uff11,kg,s", "is no finite number"),
    ('u,2026-01-05T07:00:00Z,"81,2",kg,s', "'81,2' is no finite number: write a decimal point"),
    ("u,2026-01-05T07:00:00Z,,kg,s", "no weight: fill the field"),
    ("u,2026-01-05T07:00:00Z,81.2,,s", "no unit: declare --unit kg|lb|st"),
    ("u,2026-01-05T07:00:00Z,81.2,stones and pounds,s", "the unit 'stones and pounds' is unknown"),
    (",2026-01-05T07:00:00Z,81.2,kg,s", "no user: fill its column or give --user"),
    ("u,2026-01-05T07:00:00Z,81,2,kg,s", "6 columns where the header has 5"),
    ("u,2026-01-05T07:00:00Z,81.2,kg", "4 columns where the header has 5"),
    ("x" * 256 + ",2026-01-05T07:00:00Z,81.2,kg,s", "must be 1 to 255 UTF-8 bytes"),
    ("u\0,2026-01-05T07:00:00Z,81.2,kg,s", "without NUL"),
    ("u,2026-01-05T07:00:00Z,81.2,kg," + "s" * 201, "hold at most"),
    ("u,2026-01-05T07:00:00Z,81." + "2" * 80 + ",kg,s", "hold at most"),
    ("u,2026-01-05T07:00:00Z,81.2,kg," + "s" * 140_000, "field larger than field limit"),
])
def test_a_bad_record_is_told_and_its_neighbours_are_read(record: str, reason: str, tmp_path: Path) -> None:
    """An unreadable record names the value and the remedy, keeps its raw text, and costs no other record."""
    before, bad, after = read(tmp_path, HEADER + GOOD + record + "\n" + GOOD)
    assert before.measurement
    assert before.measurement == after.measurement
    assert bad.measurement is None
    assert reason in bad.reason
    assert bad.raw == record[:500]
    assert [(row.row, row.line) for row in (before, bad, after)] == [(0, 2), (1, 3), (2, 4)]
    assert bad.user == ("u" if record.startswith("u,") and "columns" not in bad.reason and "limit" not in bad.reason
                        else "")


@pytest.mark.parametrize(("text", "at"), [
    ("2026-09-16 07:00:00 +0800", "2026-09-15T23:00:00+00:00"),
    ("2026-09-16T07:00:00.25-03:30", "2026-09-16T10:30:00.250+00:00"),
    ("2026-09-16 07:00:00 UTC", "2026-09-16T07:00:00+00:00"),
    ("20260916T070000Z", "2026-09-16T07:00:00+00:00"),
    ("2026-09-16T07:00+02", "2026-09-16T05:00:00+00:00"),
    ("1612031400123", "2021-01-30T18:30:00.123+00:00"),
    ("999999999", "2001-09-09T01:46:39+00:00"),
    ("2099-01-01T00:00:00Z", "2099-01-01T00:00:00+00:00"),
    ("2026-09-16", "2026-09-15T22:00:00+00:00"),
    ("20260916", "2026-09-15T22:00:00+00:00"),
    ("2026-10-25 02:30", "2026-10-25T00:30:00+00:00"),
    ("2026-10-25 03:30", "2026-10-25T02:30:00+00:00"),
    ("2026-03-29 01:59:59", "2026-03-29T00:59:59+00:00"),
    ("2026-03-29 03:00", "2026-03-29T01:00:00+00:00"),
])
def test_a_time_means_one_instant(text: str, at: str, tmp_path: Path) -> None:
    """Each form of timestamp is one instant; a naive one is local, an hour that comes twice is its first."""
    row, = read(tmp_path, f"{HEADER}u,{text},81.2,kg,s\n", Options(tz="Europe/Berlin"))
    assert row.measurement, row.reason
    assert row.measurement.at == datetime.fromisoformat(at)


def test_an_ambiguous_time_compares_with_utc(tmp_path: Path) -> None:
    """A local time that comes twice is handed on in UTC: aware datetimes in a fold equal none of another zone."""
    row, = read(tmp_path, f"{HEADER}u,2026-10-25 02:30,81.2,kg,s\n", Options(tz="Europe/Berlin"))
    assert row.measurement
    assert row.measurement.at.tzinfo is UTC


@pytest.mark.parametrize(("text", "zone"), [
    ("2026-03-29 02:30", "Europe/Berlin"), ("2026-03-08 02:00", "America/New_York"), ("2011-12-30 12:00", "Pacific/Apia"),
])
def test_a_local_time_that_the_clocks_skip_is_unreadable(text: str, zone: str, tmp_path: Path) -> None:
    """A local time inside the gap of a clock change is told, not moved."""
    row, = read(tmp_path, f"{HEADER}u,{text},81.2,kg,s\n", Options(tz=zone))
    assert row.measurement is None
    assert f"does not exist in {zone}" in row.reason


@pytest.mark.parametrize("header", ["user,date,weight", "subject,TIME,Value"])
@pytest.mark.parametrize("value", ["22.5", "45", "81.2", "180"])
def test_no_unit_is_ever_guessed(header: str, value: str, tmp_path: Path) -> None:
    """Without a unit in row, header or options no weight is read, whatever its size; a declared one serves."""
    content = f"{header}\nu,2026-01-05T07:00:00Z,{value}\n"
    row, = read(tmp_path, content)
    assert row.measurement is None
    assert row.reason == "no unit: declare --unit kg|lb|st"
    row, = read(tmp_path, content, Options(unit="kg"))
    assert row.measurement
    assert row.measurement.weight_kg == float(value)


@pytest.mark.parametrize(("name", "kg"), [
    ("weight_kg", 100.0), ("Weight (lb)", 100 * 0.45359237), ("WEIGHT_LBS", 100 * 0.45359237),
    ("body-weight [st]", 100 * 14 * 0.45359237),
])
def test_a_header_may_write_the_unit(name: str, kg: float, tmp_path: Path) -> None:
    """A unit in the name of the column is the unit of its values, against a declared one too."""
    row, = read(tmp_path, f"user,timestamp,{name}\nu,2026-01-05T07:00:00Z,100\n", Options(unit="kg"))
    assert row.measurement
    assert row.measurement.weight_kg == kg


def test_a_row_that_contradicts_its_header_is_unreadable(tmp_path: Path) -> None:
    """A row in lb under a header that says kg is told, not decided."""
    row, = read(tmp_path, "user,timestamp,weight_kg,unit\nu,2026-01-05T07:00:00Z,180,lb\n")
    assert "the header says kg and the row 'lb'" in row.reason


def test_a_declared_user_fills_gaps_only(tmp_path: Path) -> None:
    """A declared user serves the rows whose own is empty, or a file without the column."""
    rows = read(tmp_path, HEADER + GOOD + GOOD[1:], Options(user="declared"))
    assert [row.measurement and row.measurement.user for row in rows] == ["u", "declared"]
    row, = read(tmp_path, "timestamp,weight_kg\n2026-01-05T07:00:00Z,81.2\n", Options(user="declared"))
    assert row.measurement
    assert row.measurement.user == "declared"


def test_date_and_time_in_two_columns_are_one_instant(tmp_path: Path) -> None:
    """A date and a time column belong together."""
    row, = read(tmp_path, "user,date,time,weight_kg\nu,2026-01-05,07:30,81.2\n", Options(tz="UTC"))
    assert row.measurement
    assert row.measurement.at == datetime(2026, 1, 5, 7, 30, tzinfo=UTC)


def test_an_undecodable_line_costs_itself(tmp_path: Path) -> None:
    """A line that is not UTF-8 is told, never decoded by a guess, and its neighbours are read."""
    bad = "u,2026-01-05T07:00:00Z,81.2,kg,Küchenwaage\n".encode("cp1252")
    rows = read(tmp_path, HEADER.encode() + GOOD.encode() + bad + GOOD.encode())
    assert [bool(row.measurement) for row in rows] == [True, False, True]
    assert rows[1].reason == "not UTF-8: save the file as UTF-8"
    assert "waage" in rows[1].raw


def test_an_undecodable_line_inside_a_quoted_field_costs_that_record(tmp_path: Path) -> None:
    """Of a record over several lines, one bad line makes the whole unreadable, at its first line."""
    rows = read(tmp_path, HEADER.encode() + b'u,2026-01-05T07:00:00Z,81.2,kg,"a\n\xff\nb"\n' + GOOD.encode())
    assert [(row.line, bool(row.measurement)) for row in rows] == [(2, False), (5, True)]


def test_half_a_utf16_character_costs_its_line(tmp_path: Path) -> None:
    """A UTF-16 file cut inside a character loses its last row to a reason, and no other."""
    rows = read(tmp_path, (HEADER + GOOD + GOOD.rstrip()).encode("utf-16")[:-1])
    assert [bool(row.measurement) for row in rows] == [True, False]
    lone = (HEADER + GOOD).encode("utf-16") + "\ud800\n".encode("utf-16-le", "surrogatepass") + GOOD.encode("utf-16-le")
    rows = read(tmp_path, lone)
    assert [bool(row.measurement) for row in rows] == [True, False, True]


@pytest.mark.parametrize("stray", [
    'u,2026-01-05T07:00:00Z,81.2,kg,"scale', 'u,"2026-01-05T07:00:00Z,81.2,kg,scale', '5" x,"2026-01-05T07:00:00Z,81.2',
])
@pytest.mark.parametrize("after", [1, 300, 20_000])
def test_a_stray_quote_costs_its_own_line(stray: str, after: int, tmp_path: Path) -> None:
    """A quote that is never closed makes one record unreadable and swallows none of those after it."""
    rows = read(tmp_path, HEADER + GOOD + stray + "\n" + GOOD * after)
    assert [bool(row.measurement) for row in rows] == [True, False] + [True] * after
    assert "a quote is opened and not closed" in rows[1].reason
    assert [row.line for row in rows] == list(range(2, after + 4))


def test_two_stray_quotes_swallow_nothing_between_them(tmp_path: Path) -> None:
    """Lines between two stray quotes are read, because joined they do not fit the header."""
    stray = 'u,2026-01-05T07:00:00Z,81.2,kg,"scale\n'
    rows = read(tmp_path, HEADER + stray + GOOD * 5 + stray + GOOD)
    assert [bool(row.measurement) for row in rows] == [False] + [True] * 5 + [False, True]


def test_blank_lines_and_empty_tails_are_no_records(tmp_path: Path) -> None:
    """Blank lines count as lines and are no records; empty cells beyond the header are no columns."""
    rows = read(tmp_path, "\n" + HEADER + "\n  \n" + GOOD.rstrip() + ",,\n\n" + GOOD + "\n\n")
    assert [(row.line, bool(row.measurement)) for row in rows] == [(5, True), (7, True)]


@pytest.mark.parametrize(("text", "reason"), [
    ('{"user_id": "u", "timestamp": "2026-01-05T07:00:00Z", "weight": NaN, "unit": "kg"}', "not one JSON object"),
    ("[1, 2]", "not one JSON object"),
    ("{", "not one JSON object"),
    ("[" * 100_000, "not one JSON object"),
    ('{"user": "u", "timestamp": "2026-01-05T07:00:00Z", "valueQuantity": {"value": 81.2}}', "one flat object a line"),
    ('{"user": "u", "timestamp": "2026-01-05T07:00:00Z", "weight": {"kg": 81.2}}', "not nested"),
    ('{"user": true, "timestamp": "2026-01-05T07:00:00Z", "weight_kg": 81.2}', "'user' is 'true'"),
    ('{"user": "u", "timestamp": "2026-01-05T07:00:00Z", "weight_kg": null}', "no weight"),
    ('{"user": "u", "weight_kg": 81.2}', "no time"),
    ('{"timestamp": "2026-01-05T07:00:00Z", "weight_kg": 81.2}', "no user: add user_id or give --user"),
    ('{"user": "u", "timestamp": "2026-01-05T07:00:00Z", "weight": 81.2}', "no unit: declare --unit"),
    ('{"user": "u", "timestamp": "2026-01-05T07:00:00Z", "weight_kg": 1e400}', "no human weight"),
    ('{"user": "u", "timestamp": 1767596400.5, "weight_kg": 81.2}', "the time '1767596400.5' cannot be read"),
    ('{"user": "u", "timestamp": "2026-01-05T07:00:00Z", "weight_kg": 81.2, "unit": "lb"}', "the key says kg"),
    ('{"user": "\\ud800", "timestamp": "2026-01-05T07:00:00Z", "weight_kg": 81.2}', "not one JSON object"),
])
def test_a_bad_json_line_is_told_and_its_neighbours_are_read(text: str, reason: str) -> None:
    """An unreadable line of NDJSON names what is wrong and costs no other line."""
    good = '{"user": "u", "timestamp": "2026-01-05T07:00:00Z", "weight_kg": 81.2}\n'
    rows = list(open_source("-", Options(), stdin=io.BytesIO((good + text + "\n" + good).encode())))
    assert [bool(row.measurement) for row in rows] == [True, False, True]
    assert reason in rows[1].reason
    assert rows[1].raw == text[:500]


def test_garmin_readings_need_the_date_above_them(tmp_path: Path) -> None:
    """A date that is not understood is never replaced by an earlier one, and a date without readings is told."""
    rows = read(tmp_path, 'Time,Weight,Change\n"Dec 30, 2017",\n"Dec 31, 2017",\n01:00,80 kg,--\n'
                          '31. Dezember 2017,\n02:00,81 kg,--\n25:00,81 kg,--\n"Jan 1, 2018",\n',
                Options(user="u", tz="UTC"))
    assert [bool(row.measurement) for row in rows] == [False, True, False, False, False, False]
    reasons = [row.reason for row in rows]
    assert "a date without a reading" in reasons[0]
    assert "neither a date" in reasons[2]
    assert "a reading without a date" in reasons[3]
    assert "a date without a reading" in reasons[5]
    assert [row.line for row in rows] == [2, 3, 5, 6, 7, 8]


@pytest.mark.parametrize(("record", "reason"), [
    ("u;2026-01-05;1.234,5", "'1.234,5' has a comma and a point"),
    ("u;2026-01-05;81,2,3", "'81.2.3' is no finite number"),
    ("u;0001-01-01 00:00;81,2", "border of the calendar"),
    ("u;9999-12-31 23:59:59;81,2", "border of the calendar"),
])
def test_decimal_commas_and_the_calendar_have_their_limits(record: str, reason: str, tmp_path: Path) -> None:
    """A thousands separator and a local time at the calendar's border are told."""
    for zone in ("Asia/Tokyo", "America/New_York"):
        row, = read(tmp_path, f"user;date;weight_kg\n{record}\n", Options(tz=zone))
        assert row.measurement is None
        assert reason in row.reason


def test_a_fitbit_export_may_come_back_to_the_body(tmp_path: Path) -> None:
    """Other sections of a Fitbit export are no weights, and a second body section is."""
    section = "Body\nDate,Weight,BMI,Fat\n{},81.2,25,0\n\n"
    rows = read(tmp_path, section.format("2017-08-02") + "Foods\nDate,Calories In\n2017-08-02,1900\n\n"
                + section.format("2017-08-03"), Options(user="u", unit="kg", tz="UTC"))
    assert [(row.row, row.line, bool(row.measurement)) for row in rows] == [(0, 3, True), (1, 11, True)]


def test_garmin_lines_that_are_no_records_are_told(tmp_path: Path) -> None:
    """An undecodable line, a missing cell and a blank line between Garmin's readings take no reading along."""
    rows = read(tmp_path, b"Time,Weight,Change\n2017-12-31\n\n13:00 PM,80 kg,--\n01:00\n\xff\n02:00,80 kg,--\n",
                Options(user="u", tz="UTC"))
    assert [bool(row.measurement) for row in rows] == [False, False, False, False]
    parts = ["'2017-12-31 13:00 PM' cannot be read", "no weight", "not UTF-8", "a reading without a date"]
    for row, part in zip(rows, parts, strict=True):
        assert part in row.reason
