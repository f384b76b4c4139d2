"""What a whole file may get wrong: InvalidInput that names the file, the line where there is one, and the remedy."""

from __future__ import annotations

import gzip
import io
import os
from pathlib import Path

import pytest

from statemachine.errors import InvalidInput
from statemachine.ingest import Options, open_source, sniff

FIXTURES = Path(__file__).parents[1] / "fixtures" / "ingest"
RECORD = ' <Record type="HKQuantityTypeIdentifierBodyMass" unit="kg" startDate="2026-09-16 07:00:00 +0800" value="81"/>\n'


@pytest.mark.parametrize(("content", "part"), [
    (b"", "is empty"),
    (b"\xef\xbb\xbf", "nothing but blanks"),
    (b" \r\n\n", "nothing but blanks"),
    (b"PK\x03\x04rest", "is a spreadsheet or zip archive"),
    (b"PK", "is a spreadsheet or zip archive"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "is a spreadsheet"),
    (gzip.compress(b"user,timestamp,weight\n", mtime=0), "compressed with gzip"),
    (b"SQLite format 3\0", "is binary"),
    ("user,timestamp,weight\n".encode("utf-16-le"), "UTF-16 without a byte-order mark"),
    (b"\xff\xfe\0\0u\0\0\0", "is binary"),
    (b"height,colour\n1,2\n", "no header that is known here"),
    (b"\xff\xd8\xff\xe0 jpeg", "no header that is known here"),
    (b"<html><body/></html>", "no Apple Health export"),
    (b'[{"height": 1}]', "JSON array of something else"),
    (b"user,timestamp,weight,weight\n", "two columns are named 'weight'"),
])
def test_a_file_of_no_use_is_refused_at_once(content: bytes, part: str, tmp_path: Path) -> None:
    """Empty, packed, binary and unknown files raise before any row, naming the file."""
    path = tmp_path / "weight.csv"
    path.write_bytes(content)
    for act in (lambda: sniff(path), lambda: open_source(path, Options(user="u"))):
        with pytest.raises(InvalidInput) as caught:
            act()
        assert part in str(caught.value)
        assert str(path) in str(caught.value)


def test_a_path_that_cannot_be_read_is_refused_at_once(tmp_path: Path) -> None:
    """A missing file, a directory, a pipe and an impossible name raise with the remedy."""
    os.mkfifo(tmp_path / "fifo")
    for path, part in ((tmp_path / "absent", "does not exist"), (tmp_path, "a directory"),
                       (tmp_path / "fifo", "no regular file"), (Path("a\0b"), "cannot be read")):
        with pytest.raises(InvalidInput, match=part):
            sniff(path)
        with pytest.raises(InvalidInput, match=part):
            open_source(path, Options(user="u"))


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read everything")
def test_a_forbidden_file_is_refused_at_once(tmp_path: Path) -> None:
    """A file without read permission raises with the remedy."""
    path = tmp_path / "weight.csv"
    path.write_text("user,timestamp,weight\n")
    path.chmod(0)
    with pytest.raises(InvalidInput, match="permissions"):
        sniff(path)


def test_a_file_that_vanishes_is_told(tmp_path: Path) -> None:
    """A file that is gone when its rows are asked for raises InvalidInput, no OSError."""
    path = tmp_path / "weight.csv"
    path.write_text("user,timestamp,weight_kg\n")
    rows = open_source(path, Options())
    path.unlink()
    with pytest.raises(InvalidInput, match="does not exist"):
        next(rows)


@pytest.mark.parametrize("file", ["generic.csv", "generic_semicolon.csv", "apple.csv", "withings_en.csv", "withings_fr.csv",
                                  "openscale2.csv", "openscale3.csv", "garmin.csv", "fitbit.csv"])
def test_a_header_alone_is_no_rows(file: str, tmp_path: Path) -> None:
    """A file with nothing but its header is read and has no rows."""
    lines = (FIXTURES / file).read_bytes().splitlines(keepends=True)
    header = 2 if file in {"fitbit.csv", "apple.csv"} else 1
    path = tmp_path / "weight.csv"
    path.write_bytes(b"".join(lines[:header]))
    assert list(open_source(path, Options(user="u", tz="UTC", unit="kg"))) == []


def test_an_empty_archive_and_an_empty_export_are_no_rows(tmp_path: Path) -> None:
    """An empty JSON array and an Apple export without weights are read and have no rows."""
    for content in ("[]", '<?xml version="1.0"?>\n<HealthData locale="x"></HealthData>'):
        path = tmp_path / "export"
        path.write_text(content)
        assert list(open_source(path, Options(user="u"))) == []


@pytest.mark.parametrize("file", ["apple.xml", "apple.csv", "withings_en.csv", "fitbit.csv", "fitbit.json",
                                  "openscale2.csv", "garmin.csv"])
def test_a_file_of_one_person_needs_a_user(file: str) -> None:
    """A format that names no user is refused at once where none is declared."""
    with pytest.raises(InvalidInput, match="names no user: give --user"):
        open_source(FIXTURES / file, Options(tz="UTC", unit="kg"))


@pytest.mark.parametrize(("options", "part"), [
    (Options(format="xlsx"), "the format 'xlsx' is unknown"),
    (Options(unit="g"), "the unit 'g' is unknown"),
    (Options(unit="KG"), "the unit 'KG' is unknown"),
    (Options(tz="Mars/Olympus"), "the time zone 'Mars/Olympus' is unknown"),
    (Options(tz="../etc/passwd"), "is unknown"),
    (Options(tz="Europe"), "is unknown"),
    (Options(tz=""), "is unknown"),
    (Options(user=""), "must be 1 to 255"),
])
def test_a_bad_option_is_refused_at_once(options: Options, part: str) -> None:
    """An option that cannot be used raises before the file is looked at."""
    with pytest.raises(InvalidInput, match=part):
        open_source("absent", options)


def test_a_declared_format_stands_against_the_look_of_a_file() -> None:
    """A declared format overrides recognition, and is refused where the header is not of it."""
    with pytest.raises(InvalidInput, match="no header of withings"):
        open_source(FIXTURES / "generic.csv", Options(user="u", format="withings"))
    rows = list(open_source(FIXTURES / "withings_en.csv", Options(user="u", tz="UTC", format="csv")))
    assert [row.measurement and row.measurement.source for row in rows] == ["unknown", "unknown"]
    rows = list(open_source(FIXTURES / "generic.csv", Options(format="ndjson")))
    assert all(row.measurement is None for row in rows)
    with pytest.raises(InvalidInput, match="line 1: not a JSON array"):
        list(open_source(FIXTURES / "generic.csv", Options(user="u", format="fitbit-json")))
    with pytest.raises(InvalidInput, match="no <HealthData> element"):
        list(open_source(FIXTURES / "generic.csv", Options(user="u", format="apple-xml")))


@pytest.mark.parametrize(("content", "rows", "line"), [
    ("<HealthData>\n" + RECORD * 3, 3, 5),
    ("<HealthData>\n" + RECORD + RECORD[:40], 1, 3),
    ("<HealthData>\n" + RECORD + "<a></b>\n" + RECORD + "</HealthData>", 1, 3),
    ("<HealthData>\n" + RECORD + "</HealthData>\n<more/>", 1, 4),
    ("<HealthData>\n" + RECORD.replace('value="81"', 'value="&lol;"') + "</HealthData>", 0, 2),
])
def test_xml_that_breaks_off_yields_what_precedes_and_then_raises(content: str, rows: int, line: int,
                                                                  tmp_path: Path) -> None:
    """Truncated or malformed XML yields the rows before that place, then raises with file and line."""
    path = tmp_path / "export.xml"
    path.write_text(content)
    source = open_source(path, Options(user="u"))
    for _ in range(rows):
        assert next(source).measurement
    with pytest.raises(InvalidInput, match=f"export.xml, line {line}: the XML breaks off or is malformed"):
        next(source)


def test_entities_are_never_expanded(tmp_path: Path) -> None:
    """A document type's entities, nested or external, have no effect but an error where they are used."""
    bomb = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10 if n else "x" * 100}">\n' for n in range(12))
    path = tmp_path / "export.xml"
    path.write_text('<?xml version="1.0"?>\n<!DOCTYPE HealthData [\n' + bomb
                    + '<!ENTITY f SYSTEM "file:///etc/hostname">\n]>\n<HealthData>\n' + RECORD
                    + '<Me a="&e11;"/>\n</HealthData>')
    rows = open_source(path, Options(user="u"))
    assert next(rows).line == 18
    with pytest.raises(InvalidInput, match=r"line 19: .*undefined entity"):
        next(rows)


def test_control_characters_in_an_apple_export_do_no_harm(tmp_path: Path) -> None:
    """A vertical tab in a device's name, which XML forbids, costs no weight."""
    path = tmp_path / "export.xml"
    path.write_text("<HealthData>\n" + RECORD.replace("unit", 'device="a\x0bb" unit') + "</HealthData>")
    row, = open_source(path, Options(user="u"))
    assert row.measurement


@pytest.mark.parametrize(("content", "rows", "line"), [
    ('[{"weight": 81, "date": "08/02/17"},\n{"weight": 8', 1, 2),
    ('[{"weight": 81, "date": "08/02/17"}', 1, 1),
    ('[{"weight": 81, "date": "08/02/17"}]\nmore', 1, 1),
])
def test_json_that_breaks_off_yields_what_precedes_and_then_raises(content: str, rows: int, line: int,
                                                                   tmp_path: Path) -> None:
    """A truncated archive yields the rows before that place, then raises with file and line."""
    path = tmp_path / "weight.json"
    path.write_text(content)
    source = open_source(path, Options(user="u", unit="kg", tz="UTC"))
    for _ in range(rows):
        assert next(source).measurement
    with pytest.raises(InvalidInput, match=f"weight.json, line {line}: "):
        next(source)


def test_a_bad_archive_entry_costs_itself(tmp_path: Path) -> None:
    """An entry that is no object, nested or not UTF-8 is told, and its neighbours are read."""
    good = b'{"weight": 81, "date": "08/02/17"}'
    path = tmp_path / "weight.json"
    path.write_bytes(b"[" + b",\n".join([good, b"7", b'{"weight": {"kg": 81}}', b'{"weight": 81, "date": "\xff"}',
                                         b'{"weight": 81, "date": "08/02/17", "source": "\\ud800"}', good]) + b"]")
    rows = list(open_source(path, Options(user="u", unit="kg", tz="UTC")))
    assert [bool(row.measurement) for row in rows] == [True, False, False, False, False, True]
    assert [row.line for row in rows] == [1, 2, 3, 4, 5, 6]


def test_standard_input_is_ndjson_only() -> None:
    """Standard input takes NDJSON and no other declared format; an empty one is no rows."""
    assert list(open_source("-", Options(), stdin=io.BytesIO())) == []
    with pytest.raises(InvalidInput, match="standard input is read as NDJSON"):
        open_source("-", Options(format="csv"), stdin=io.BytesIO())


def test_standard_input_is_read_as_it_comes() -> None:
    """A row on a pipe is yielded when its line is there, without waiting for more."""
    near, far = os.pipe()
    with os.fdopen(near, "rb") as stream, os.fdopen(far, "wb", buffering=0) as writer:
        rows = open_source("-", Options(user="u", unit="kg"), stdin=stream)
        for weight in (81, 82):
            writer.write(b'{"timestamp": 1767596400, "weight": %d}\n' % weight)
            row = next(rows)
            assert row.measurement
            assert row.measurement.weight_kg == weight
