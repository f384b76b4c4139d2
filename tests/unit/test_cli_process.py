"""`resetguard process` and `demo`: what they read, what they report, and how they end."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import structlog
from typer.testing import CliRunner

from statemachine import Store
from statemachine.cli import app
from statemachine.cli.process import alike
from statemachine.testing import snapshot

FIXTURES = Path(__file__).parents[1] / "fixtures" / "ingest"
STATUSES = ["accepted", "quarantined", "duplicate", "late", "known"]
HEADER = "user_id,timestamp,weight,unit,source\n"
TRUNCATED = (b'<?xml version="1.0"?><HealthData><Record type="HKQuantityTypeIdentifierBodyMass" unit="kg" value="80" '
             b'startDate="2026-01-01 07:00:00 +0000"/><Record ty')
BERLIN = ["--user", "u", "--tz", "Europe/Berlin"]


class Ran(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def report(self) -> dict[str, Any]:
        (line,) = self.out.splitlines()
        document = json.loads(line, parse_constant=pytest.fail)
        assert isinstance(document, dict)
        return document

    @property
    def counts(self) -> dict[str, int]:
        """The measurements of this run, those that are none left out."""
        return {name: count for name, count in self.report["measurements"].items() if count}


@pytest.fixture(autouse=True)
def settled_process() -> Iterator[None]:
    """What the command sets for its own process is undone."""
    thresholds = gc.get_threshold()
    yield
    structlog.reset_defaults()
    gc.set_threshold(*thresholds)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


def ran(*arguments: object, text: str | None = None) -> Ran:
    found = CliRunner().invoke(app, [str(argument) for argument in arguments], input=text, env={"COLUMNS": "120"})
    assert found.exception is None or isinstance(found.exception, SystemExit), found.exception
    return Ran(found.exit_code, found.stdout, found.stderr)


def process(store: Path, *arguments: object, text: str | None = None) -> Ran:
    return ran("process", *arguments, "--store", store, "--json", text=text)


def line(user: str, day: float, kg: float) -> str:
    """A row of the generic CSV; the fraction of `day` is in hours."""
    return f"{user},2026-01-{int(day):02d}T{round(day % 1 * 24):02d}:00:00Z,{kg},kg,scale\n"


def written(path: Path, *lines: str) -> Path:
    path.write_text(HEADER + "".join(lines), encoding="utf-8")
    return path


def ndjson(user: str, day: int, kg: float) -> str:
    return json.dumps({"user": user, "timestamp": f"2026-01-{day:02d}T07:00:00Z", "weight_kg": kg, "source": "scale"}) + "\n"


def held(store: Path) -> dict[str, Any]:
    with Store.open(store, durability="process") as opened:
        assert opened.verify_audit().problem == ""
        return snapshot(opened)


# What it prints, and how it ends.


def test_the_report_in_json_is_one_document(tmp_path: Path, store: Path) -> None:
    """Its names, all counts whole numbers, and the counts adding up; exit code 1 says there are findings."""
    path = written(tmp_path / "a.csv", line("ann", 1, 80), line("ann", 2, 80.1), line("ann", 2, 80.1), line("ann", 3, 140),
                   "ann,soon,80,kg,x\n", line("bob", 1, 60))
    done = process(store, path)
    report = done.report
    assert (done.code, done.err) == (1, "")
    assert list(report) == ["measurements", "source_totals", "resets", "held_resets", "users", "nis", "quarantine_reasons",
                            "unknown_sources", "durability", "interrupted_by_signal", "seconds"]
    assert list(report["measurements"]) == list(report["source_totals"]) == ["read", *STATUSES]
    assert report["measurements"] == {"read": 6, "accepted": 3, "quarantined": 2, "duplicate": 1, "late": 0, "known": 0}
    assert report["resets"] == {"committed": 2, "rolled_back": 0, "refused": 0, "shadowed": 0, "conflicted": 0,
                                "by_kind": {"initial": 2}, "interrupted": 0}
    assert list(report["nis"]) == ["accepted", "with_gated", "adapting"]
    assert {tuple(value) for value in report["nis"].values()} == {("count", "mean", "share_under_3_84")}
    assert sum(report["quarantine_reasons"].values()) == 2
    assert (report["users"], report["unknown_sources"], report["durability"], report["interrupted_by_signal"]) == (
        2, {}, "group", False)
    assert report["seconds"] >= 0


def test_the_summary_for_people_tells_the_same(tmp_path: Path, store: Path) -> None:
    path = written(tmp_path / "a.csv", *(line("ann", day, 80) for day in range(1, 25)), line("ann", 26, 140),
                   "ann,soon,80,kg,x\n", "ann,2026-01-25T00:00:00Z,80,kg,new[red]scale\n")
    done = ran("process", path, "--store", store)
    assert (done.code, done.err) == (1, "")
    words = " ".join(done.out.split())
    for part in ("27 measurements of 1 user", "Measurements", "this run", "in all", "Accepted", "25", "Quarantined", "Resets",
                 "committed", "initial 1", "surprising: NIS # is above the gate #", "Filter consistency (NIS",
                 "new[red]scale (1)", "measurements/s, durability group."):
        assert part in words
    again = ran("process", path, "--store", store)
    assert again.code == 0
    assert "Everything was known already: nothing was changed." in again.out


def test_without_findings_it_ends_with_0(tmp_path: Path, store: Path) -> None:
    done = process(store, written(tmp_path / "a.csv", line("ann", 1, 80), line("ann", 2, 80.1)))
    assert (done.code, done.counts) == (0, {"read": 2, "accepted": 2})


def test_a_failed_reset_is_a_finding(tmp_path: Path, store: Path) -> None:
    """A weight that no state may hold: each reset is undone, every row kept, and after its cooldown of an hour a probe runs."""
    done = process(store, written(tmp_path / "a.csv", *(line("ann", day / 24 + 1, 11) for day in range(5))))
    assert (done.code, done.counts) == (1, {"read": 5, "quarantined": 5})
    assert (done.report["resets"]["rolled_back"], done.report["resets"]["refused"]) == (4, 1)


@pytest.mark.parametrize(("options", "told"), [
    (["--durability", "fast"], "durability 'fast' is not one of each, group, process"),
    (["--unit", "pounds"], "the unit 'pounds' is unknown: declare one of kg, lb, st"),
    (["--tz", "Mars/Olympus"], "the time zone 'Mars/Olympus' is unknown"),
    (["--format", "excel"], "the format 'excel' is unknown: declare one of csv"),
    (["--format", "garmin"], "is no header of garmin"),
    (["--user", "a\0b"], "must be 1 to 255 UTF-8 bytes without NUL"),
])
def test_a_wrong_option_is_one_line_and_changes_nothing(tmp_path: Path, store: Path, options: list[str], told: str) -> None:
    done = process(store, written(tmp_path / "a.csv", line("ann", 1, 80)), *options)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("resetguard: error: ")
    assert told in done.err
    assert (done.err.count("\n"), store.exists()) == (1, False)


@pytest.mark.parametrize("arguments", [
    ["process"], ["process", "--frobnicate", "a.csv"], ["process", "a.csv"], ["process", "a.csv", "--store"],
    ["demo", "--store"], ["demo", "extra"],
])
def test_what_the_command_does_not_know_is_wrong_use(arguments: list[str]) -> None:
    assert ran(*arguments).code == 2


def test_the_unit_and_the_zone_are_never_guessed(tmp_path: Path, store: Path) -> None:
    """Without them the rows are kept with the remedy; declared, the same file is read anew."""
    path = tmp_path / "a.csv"
    path.write_text("user,timestamp,weight\nann,2026-01-01 07:00,180\n", encoding="utf-8")
    without = process(store, path)
    assert (without.code, without.counts) == (1, {"read": 1, "quarantined": 1})
    no_zone = process(store, path, "--unit", "lb")
    (reason,) = no_zone.report["quarantine_reasons"]
    assert "zone" in reason
    declared = process(store, path, "--unit", "lb", "--tz", "Europe/Berlin")
    assert (declared.code, declared.counts) == (0, {"read": 1, "accepted": 1})
    (kept,) = (entry for entry in held(store)["users"]["ann"]["identities"])
    assert kept[1] == pytest.approx((180 * 0.45359237,))


def test_trouble_with_the_store_is_3(tmp_path: Path, store: Path) -> None:
    path = written(tmp_path / "a.csv", line("ann", 1, 80))
    store.mkdir()
    (store / "notes.txt").write_text("mine")
    done = process(store, path)
    assert (done.code, done.out) == (3, "")
    assert "is no store: it holds notes.txt" in done.err
    assert [child.name for child in store.iterdir()] == ["notes.txt"]


# The same again.


def test_the_same_file_again_changes_nothing(tmp_path: Path, store: Path) -> None:
    """All its rows are known, the store is as it was, and the exit code is 0."""
    path = written(tmp_path / "a.csv", line("ann", 1, 80), line("ann", 2, 140), "ann,soon,80,kg,x\n")
    first = process(store, path)
    before = held(store)
    again = process(store, path)
    assert (again.code, again.counts) == (0, {"read": 3, "known": 3})
    assert again.report["source_totals"] == first.report["source_totals"] == first.report["measurements"]
    assert held(store) == before


def test_a_file_given_twice_at_once_is_refused(tmp_path: Path, store: Path) -> None:
    """Under its own name, as a copy, and standard input twice: one of them would count everything twice."""
    path = written(tmp_path / "a.csv", line("ann", 1, 80))
    copy = written(tmp_path / "b.csv", line("ann", 1, 80))
    for arguments in ([path, path], [path, copy], ["-", "-"]):
        done = process(store, *arguments, text=ndjson("ann", 1, 80))
        assert (done.code, done.out, store.exists()) == (2, "", False)
        assert "a file is given twice, or two files are the same" in done.err


def test_a_grown_export_accepts_its_new_rows_alone(tmp_path: Path, store: Path) -> None:
    old = [line("ann", day, 80) for day in (1, 2, 3)]
    assert process(store, written(tmp_path / "a.csv", *old)).counts == {"read": 3, "accepted": 3}
    grown = process(store, written(tmp_path / "a.csv", line("ann", 5, 80), line("ann", 4, 80), *old))
    assert (grown.code, grown.counts) == (0, {"read": 5, "accepted": 2, "known": 3})
    assert held(store)["users"]["ann"]["head"][0] == 5


def test_several_files_are_one_course_in_time(tmp_path: Path, store: Path) -> None:
    """Rows of all files are taken by (time, user, file, row): none is late, and the versions follow the clock."""
    one = written(tmp_path / "a.csv", line("ann", 3, 80.2), line("ann", 1, 80), line("bob", 2, 60))
    two = written(tmp_path / "b.csv", line("ann", 4, 80.3), line("ann", 2, 80.1), line("ann", 3, 80.2))
    done = process(store, one, two)
    assert (done.code, done.counts) == (0, {"read": 6, "accepted": 5, "known": 1})
    found = held(store)
    assert [info.reading.values[0] for info in found["users"]["ann"]["log"][1:]] == [80.1, 80.2, 80.3]
    assert [(name, consumed) for name, consumed, _ in found["cursors"]] == [(str(one), 3), (str(two), 3)]


# Standard input.


def test_standard_input_is_ndjson(store: Path) -> None:
    """Sorted by time as any file is, known by identity when it comes again, and without a cursor."""
    text = ndjson("ann", 2, 80.1) + ndjson("ann", 1, 80.0) + "not json\n"
    done = process(store, "-", text=text)
    assert (done.code, done.counts) == (1, {"read": 3, "accepted": 2, "quarantined": 1})
    again = process(store, "-", text=text)
    assert again.counts == {"read": 3, "known": 2, "quarantined": 1}
    assert held(store)["cursors"] == []


def test_a_stream_is_taken_in_the_order_it_comes(tmp_path: Path, store: Path) -> None:
    """With --stream an older row that comes later is late, from standard input and from a file."""
    done = process(store, "-", "--stream", text=ndjson("ann", 2, 80.1) + ndjson("ann", 1, 80.0))
    assert (done.code, done.counts) == (0, {"read": 2, "accepted": 1, "late": 1})
    path = written(tmp_path / "a.csv", line("bob", 2, 60), line("bob", 1, 60), line("bob", 3, 60))
    assert process(store, path, "--stream").counts == {"read": 3, "accepted": 2, "late": 1}


def test_rows_are_durable_while_standard_input_stays_open(tmp_path: Path, store: Path) -> None:
    """A live stream's rows are committed as they come: another process sees them before the input ends."""
    command = [sys.executable, "-m", "statemachine.cli", "process", "-", "--store", str(store), "--stream", "--json"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdin is not None
        deadline = time.monotonic() + 30
        for expected in (2, 3):
            for day in ((1, 2), (3,))[expected - 2]:
                running.stdin.write(ndjson("ann", day, 80.0))
            running.stdin.flush()
            version = 0
            while version < expected and time.monotonic() < deadline:
                time.sleep(0.05)
                if (store / "data.mdb").exists():
                    with Store.open(store, durability="process") as opened:
                        version = opened.version_range("ann")[1]
            assert (version, running.poll()) == (expected, None)
        output, messages = running.communicate(timeout=30)
    assert (running.returncode, messages) == (0, "")
    assert json.loads(output)["measurements"]["accepted"] == 3


# Files as users have them.


@pytest.mark.parametrize(("file", "options", "code", "counts"), [
    ("generic.csv", [], 0, {"read": 5, "accepted": 5}),
    ("generic_semicolon.csv", [], 0, {"read": 2, "accepted": 2}),
    ("generic.ndjson", ["--tz", "UTC"], 0, {"read": 4, "accepted": 3, "late": 1}),
    ("apple.xml", ["--user", "u"], 1, {"read": 3, "accepted": 2, "quarantined": 1}),
    ("apple.csv", ["--user", "u"], 0, {"read": 2, "accepted": 2}),
    ("withings_en.csv", BERLIN, 0, {"read": 2, "accepted": 2}),
    ("withings_de_lb.csv", BERLIN, 0, {"read": 1, "accepted": 1}),
    ("withings_fr.csv", BERLIN, 0, {"read": 1, "accepted": 1}),
    ("fitbit.csv", [*BERLIN, "--unit", "lb"], 1, {"read": 2, "accepted": 1, "quarantined": 1}),
    ("fitbit.json", [*BERLIN, "--unit", "lb"], 0, {"read": 2, "accepted": 2}),
    ("openscale1.csv", [*BERLIN, "--unit", "kg"], 0, {"read": 2, "accepted": 2}),
    ("openscale2.csv", BERLIN, 0, {"read": 1, "accepted": 1}),
    ("openscale3.csv", [*BERLIN, "--unit", "lb"], 0, {"read": 1, "accepted": 1}),
    ("garmin.csv", BERLIN, 1, {"read": 3, "accepted": 2, "quarantined": 1}),
    ("garmin_bare.csv", BERLIN, 0, {"read": 1, "accepted": 1}),
])
def test_each_format_from_file_to_store(store: Path, file: str, options: list[str], code: int, counts: dict[str, int]) -> None:
    """Every export ends in the store, its unreadable rows kept with line and text, and a second run knows all of it."""
    done = process(store, FIXTURES / file, *options)
    assert (done.code, done.counts) == (code, counts)
    found = held(store)
    assert sum(entry[0] == 0 for user in found["users"].values() for entry in user["identities"]) == counts["accepted"]
    unreadable = [kept for kept in found["kept"] if kept.disposition == "unreadable"]
    assert len(unreadable) == counts.get("quarantined", 0)
    assert all(kept.line and kept.raw and kept.reason and kept.file.endswith(file) for kept in unreadable)
    again = process(store, FIXTURES / file, *options)
    assert (again.code, again.counts) == (0, {"read": counts["read"], "known": counts["read"]})


def test_every_fixture_is_processed_here() -> None:
    """A file added to the fixtures is added to the table above."""
    (mark,) = test_each_format_from_file_to_store.pytestmark  # type: ignore[attr-defined]
    assert {case[0] for case in mark.args[1]} == {path.name for path in FIXTURES.iterdir()}


def test_a_header_alone_is_nothing_to_read(tmp_path: Path, store: Path) -> None:
    done = process(store, written(tmp_path / "a.csv"))
    assert (done.code, done.counts, done.report["users"]) == (0, {}, 0)
    assert "There was nothing to read." in ran("process", tmp_path / "a.csv", "--store", store).out


@pytest.mark.parametrize(("content", "told"), [
    (b"", "is empty: export it again"), (b" \n\n", "holds nothing but blanks"),
    (b"PK\x03\x04\x14\x00\x06\x00", "spreadsheet"), (b"a;b\n1;2\n", "is no header that is known here"),
    (TRUNCATED, "line 1"),
], ids=["empty", "blank", "XLSX", "unknown", "truncated XML"])
def test_a_file_of_no_use_stops_everything_before_it_begins(tmp_path: Path, store: Path, content: bytes, told: str) -> None:
    """Not even the good file beside it is processed, so that the run can simply be repeated."""
    good, bad = written(tmp_path / "good.csv", line("ann", 1, 80)), tmp_path / "a.csv"
    bad.write_bytes(content)
    for files in ([bad], [good, bad]):
        done = process(store, *files, "--user", "u")
        assert (done.code, done.out) == (2, "")
        assert told in done.err
        assert (done.err.count("\n"), store.exists()) == (1, False)


def test_a_file_that_is_not_there_is_named(tmp_path: Path, store: Path) -> None:
    done = process(store, tmp_path / "nowhere.csv")
    assert (done.code, store.exists()) == (2, False)
    assert "nowhere.csv does not exist: check the path" in done.err


def test_reasons_are_counted_by_kind() -> None:
    """What differs by its own values alone is one reason."""
    assert alike("surprising: NIS 17.3 is above the gate 16") == alike("surprising: NIS 99.1 is above the gate 16")
    assert alike("the time 'a' cannot be read") == alike("the time 'b' cannot be read") == "the time '...' cannot be read"


# The demo.


def test_the_demo_shows_every_outcome_and_where_to_look(store: Path) -> None:
    done = ran("demo", "--store", store)
    assert done.code == 0, "failing resets are what it shows"
    words = " ".join(done.out.split())
    for part in ("Accepted", "Quarantined", "rolled back", "refused", "held back", "Look around in it:",
                 f"resetguard audit list --store {store}"):
        assert part in words
    again = ran("demo", "--store", store, "--json")
    assert (again.code, set(again.counts)) == (0, {"read", "known"})
    assert held(store)["outcomes"]


def test_the_budget_of_resets_is_an_option(store: Path, tmp_path: Path) -> None:
    """Of three users whose gaps end in the same minute one reset is made; the others' measurements are kept aside."""
    file = tmp_path / "three.csv"
    rows = [f"u{user},2026-{month}-01T07:00:0{user}Z,80,kg,scale\n" for user in range(3) for month in ("01", "06")]
    file.write_text(HEADER + "".join(rows), encoding="utf-8")
    ran = process(store, str(file), "--resets-per-minute", "1")
    resets = ran.report["resets"]
    assert (ran.code, resets["by_kind"], resets["refused"]) == (1, {"gap": 1, "initial": 3}, 2)
    assert process(tmp_path / "other", str(file)).report["resets"]["by_kind"] == {"gap": 3, "initial": 3}
    assert process(store, str(file), "--resets-per-minute", "0").code == 2
