"""Each format: recognised by content, with exact instants, weights and sources."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest

from statemachine.ingest import FORMATS, Options, Row, open_source, sniff

FIXTURES = Path(__file__).parents[1] / "fixtures" / "ingest"
REAL = Path(__file__).parents[3] / "shared" / "data" / "healthkit_weight.csv"
LB = 0.45359237
BERLIN = Options(user="u", tz="Europe/Berlin")
BERLIN_LB = Options(user="u", tz="Europe/Berlin", unit="lb")

# file, format, options, then for each row: line, user, instant, kg, value, unit, source; a text is part of a reason.
CASES = [
    ("generic.csv", "csv", Options(), [
        (2, "ana", "2026-01-05T06:00:00+00:00", 81.2, "81.2", "kg", "scale"),
        (3, "bo", "2026-01-05T07:00:00+00:00", 179.5 * LB, "179.5", "lb", "questionnaire"),
        (4, "cy, the third", "2026-01-05T15:00:00+00:00", 12.5 * 14 * LB, "12.5", "st", 'a "smart"\nscale'),
        (6, "ana", "2026-01-05T07:00:00+00:00", 80.9, "80900", "g", "unknown"),
        (7, "ana", "2026-01-05T07:00:00.500+00:00", 80.8, "80.8", "kg", "scale"),
    ]),
    ("generic_semicolon.csv", "csv", Options(), [
        (3, "p1", "2026-01-05T07:00:00+00:00", 81.25, "81,25", "kg", "device"),
        (4, "p1", "2026-01-06T07:00:00+00:00", 81.5, "81.5", "kg", "device"),
    ]),
    ("generic.ndjson", "ndjson", Options(tz="UTC"), [
        (1, "ana", "2026-01-05T07:00:00+00:00", 81.2, "81.20", "kg", "scale"),
        (3, "bo", "2026-01-05T06:00:00+00:00", 179.5 * LB, "179.5", "[lb_av]", "device"),
        (4, "17", "2026-01-05T07:00:00+00:00", 80.5, "80.5", "kg", "unknown"),
        (5, "ana", "2026-01-05T07:00:00+00:00", 180 * LB, "180", "lb", "unknown"),
    ]),
    ("apple.xml", "apple-xml", Options(user="u"), [
        (17, "u", "2026-09-15T23:00:00+00:00", 180.5 * LB, "180.5", "lb", "Bo's Scale"),
        (20, "u", "2026-09-17T10:30:00+00:00", 81.75, "81.75", "kg", "apple"),
        (22, "the time 'yesterday' cannot be read"),
    ]),
    ("apple.csv", "apple-csv", Options(user="u"), [
        (3, "u", "2022-01-19T14:22:42+00:00", 214.243 * LB, "214.243", "lb", "Health Mate"),
        (5, "u", "2022-01-18T06:19:00+00:00", 97.5, "97.5", "kg", "apple"),
    ]),
    ("withings_en.csv", "withings", BERLIN, [
        (2, "u", "2019-12-28T12:32:55+00:00", 81.2, "81.20", "kg", "withings"),
        (3, "u", "2019-07-28T06:00:00+00:00", 80.9, "80.90", "kg", "withings"),
    ]),
    ("withings_de_lb.csv", "withings", BERLIN, [
        (2, "u", "2019-12-28T12:32:55+00:00", 181.2 * LB, "181.2", "lb", "withings"),
    ]),
    ("withings_fr.csv", "withings", BERLIN, [
        (2, "u", "2019-12-28T12:32:55+00:00", 81.2, "81,2", "kg", "withings"),
    ]),
    ("fitbit.csv", "fitbit-csv", BERLIN_LB, [
        (3, "u", "2017-08-01T22:00:00+00:00", 181.2 * LB, "181.2", "lb", "fitbit"),
        (4, "the time '02-08-2017' has an order of day, month and year that is not known"),
    ]),
    ("fitbit.json", "fitbit-json", BERLIN_LB, [
        (1, "u", "2017-08-02T21:59:59+00:00", 181.2 * LB, "181.20", "lb", "fitbit"),
        (7, "u", "2017-08-03T04:00:00+00:00", 180.9 * LB, "180.9", "lb", "Aria"),
    ]),
    ("openscale1.csv", "openscale", Options(user="u", tz="Europe/Berlin", unit="kg"), [
        (1, "u", "2016-04-18T09:51:00+00:00", 77.3, "77.3", "kg", "openscale"),
        (2, "u", "2016-04-19T09:52:00+00:00", 77.1, "77,1", "kg", "openscale"),
    ]),
    ("openscale2.csv", "openscale", BERLIN, [
        (2, "u", "2021-04-18T09:51:00+00:00", 77.35, "77.35", "kg", "openscale"),
    ]),
    ("openscale3.csv", "openscale", BERLIN_LB, [
        (2, "u", "2026-04-18T09:51:10+00:00", 170.5 * LB, "170.5", "lb", "openscale"),
    ]),
    ("garmin.csv", "garmin", BERLIN, [
        (2, "u", "2017-12-31T20:46:00+00:00", 80.4, "80.4", "kg", "garmin"),
        (4, "u", "2017-12-31T07:05:00+00:00", 177.2 * LB, "177.2", "lbs", "garmin"),
        (5, "no weight"),
    ]),
    ("garmin_bare.csv", "garmin", BERLIN, [
        (1, "u", "2017-12-31T00:00:00+00:00", 80.4, "80.4", "kg", "garmin"),
    ]),
]


@pytest.mark.parametrize(("file", "name", "options", "expected"), CASES, ids=[case[0] for case in CASES])
def test_each_format_is_read_exactly(file: str, name: str, options: Options, expected: list[tuple[object, ...]]) -> None:
    """Each format yields its instants, kilograms, values as written and sources, and the lines they stand on."""
    path = FIXTURES / file
    assert sniff(path) == name
    rows = list(open_source(path, options))
    assert [row.row for row in rows] == list(range(len(expected)))
    for row, (line, *rest) in zip(rows, expected, strict=True):
        assert row.line == line
        if len(rest) == 1:
            assert row.measurement is None
            assert str(rest[0]) in row.reason
            assert row.raw
            continue
        found = row.measurement
        assert found is not None, row.reason
        user, at, kg, *written = rest
        assert (found.user, found.at, found.weight_kg) == (user, datetime.fromisoformat(str(at)), kg)
        assert [found.value, found.unit, found.source] == written


def test_every_format_has_a_fixture() -> None:
    """No format of FORMATS is without a file that is recognised as it."""
    assert {case[1] for case in CASES} == set(FORMATS)


@pytest.mark.parametrize(("file", "name"), [(case[0], case[1]) for case in CASES])
def test_a_name_decides_nothing(file: str, name: str, tmp_path: Path) -> None:
    """A file is recognised by its content whatever it is called."""
    path = tmp_path / "weight.xlsx"
    path.write_bytes((FIXTURES / file).read_bytes())
    assert sniff(path) == name


@pytest.mark.parametrize("encode", [
    lambda text: text.replace("\n", "\r\n").encode(),
    lambda text: text.replace("\n", "\r").encode(),
    lambda text: text.rstrip("\n").encode(),
    lambda text: b"\xef\xbb\xbf" + text.encode(),
    lambda text: text.encode("utf-16"),
    lambda text: b"\xfe\xff" + text.encode("utf-16-be"),
], ids=["crlf", "cr", "no-final-newline", "bom", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("case", CASES, ids=[case[0] for case in CASES])
def test_encoding_and_line_ends_change_nothing(case: tuple[str, str, Options, list[object]], encode,  # type: ignore[no-untyped-def]
                                               tmp_path: Path) -> None:
    """Line ends, byte-order marks, UTF-16 and a missing last newline leave every row as it was."""
    file, name, options, _ = case
    text = (FIXTURES / file).read_text(encoding="utf-8-sig")
    path = tmp_path / "export"
    path.write_bytes(encode(text))
    assert sniff(path) == name
    assert [plain(row) for row in open_source(path, options)] == \
        [plain(row) for row in open_source(FIXTURES / file, options)]


def plain(row: Row) -> Row:
    """The row without its raw text, which keeps the XML's own line ends."""
    return Row(row.row, row.line, row.measurement, row.reason, "", row.user)


@pytest.mark.parametrize("file", ["fitbit.csv", "fitbit.json", "openscale1.csv", "openscale3.csv"])
def test_a_format_without_a_unit_needs_one_declared(file: str) -> None:
    """Where neither format nor file writes a unit, no row is read until one is declared."""
    rows = list(open_source(FIXTURES / file, BERLIN))
    assert rows
    for row in rows:
        assert row.measurement is None
        assert row.user == "u"
        assert "declare --unit kg|lb|st" in row.reason or "is not known" in row.reason


def test_a_written_unit_stands_against_a_declared_one() -> None:
    """A declared unit serves rows that write none and changes no other."""
    rows = list(open_source(FIXTURES / "withings_en.csv", BERLIN_LB))
    assert [row.measurement and row.measurement.weight_kg for row in rows] == [81.2, 80.9]


@pytest.mark.skipif(not REAL.exists(), reason="the shared data set is not beside this checkout")
def test_the_real_export_is_read_whole() -> None:
    """The 413 real readings are all read, newest first, 13 of them exact duplicates."""
    assert sniff(REAL) == "apple-csv"
    found = [row.measurement for row in open_source(REAL, Options(user="u"))]
    known = [m for m in found if m is not None]
    assert len(found) == len(known) == 413
    assert {m.unit for m in known} == {"lb"}
    assert known[0].at == datetime.fromisoformat("2022-01-19T06:22:42-08:00")
    assert known[0].weight_kg == 214.243 * LB
    assert len({(m.at_us, m.value, m.unit, m.source) for m in known}) == 400
