"""A real export, 413 rows of one person in pounds, newest first: what the command says of it is what is in it."""

from __future__ import annotations

import csv
import gc
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import structlog

from statemachine import Store
from statemachine.audit import Row, configure_for_command
from statemachine.cli.process import Job, run
from statemachine.ingest import Options
from statemachine.testing import snapshot

EXPORT = Path(__file__).parents[3] / "shared" / "data" / "healthkit_weight.csv"
WRITTEN = "%Y-%m-%d %H:%M:%S %z"
USER = "me"

pytestmark = pytest.mark.skipif(not EXPORT.exists(), reason="the public data set is not beside this checkout")


def processed(store: Path, *files: Path) -> dict[str, Any]:
    return run(Job(tuple(map(str, files)), store, Options(user=USER), "process", stream=False))


def seen(store: Path) -> tuple[dict[str, Any], tuple[int, str]]:
    with Store.open(store, durability="process") as opened:
        return snapshot(opened), opened.audit_tail()


def rows_of_file() -> list[tuple[datetime, str]]:
    """Instant and pounds of every row, oldest first, read without the library."""
    with EXPORT.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
        at = (datetime.strptime(row["startDate"], WRITTEN) for row in rows)  # noqa: DTZ007 - the format has %z
        return sorted(zip(at, (row["value"] for row in rows), strict=True))


@pytest.fixture(scope="module", autouse=True)
def settled_process() -> Iterator[None]:
    """Events go nowhere, and the collector is left as it was."""
    thresholds = gc.get_threshold()
    configure_for_command(verbose=False)
    yield
    structlog.reset_defaults()
    gc.set_threshold(*thresholds)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("real") / "store"


@pytest.fixture(scope="module")
def report(store: Path) -> dict[str, Any]:
    return processed(store, EXPORT)


@pytest.fixture(scope="module")
def audit(store: Path, report: dict[str, Any]) -> list[Row]:
    with Store.open(store, durability="process") as opened:
        assert opened.verify_audit().problem == ""
        return list(opened.audit())


def test_every_row_is_counted_once(report: dict[str, Any]) -> None:
    """413 read, the 13 exact repeats are duplicates, and the statuses add up."""
    measurements = report["measurements"]
    repeated = Counter(rows_of_file())
    assert (sum(repeated.values()), sum(count - 1 for count in repeated.values())) == (413, 13)
    assert (measurements["read"], measurements["duplicate"]) == (413, 13)
    assert (measurements["late"], measurements["known"]) == (0, 0)
    assert sum(measurements[name] for name in ("accepted", "quarantined", "duplicate", "late", "known")) == 413
    assert measurements["accepted"] >= 390
    assert report["source_totals"] == measurements
    assert report["users"] == 1


def test_each_gap_is_a_reset_or_is_told_to_be_implausible(report: dict[str, Any], audit: list[Row]) -> None:
    """The file has 15 gaps of thirty days or more: each commits a reset, or leaves a row saying why not."""
    gaps = [(before, after) for (before, _), (after, _) in pairwise(rows_of_file()) if after - before >= timedelta(days=30)]
    assert len(gaps) == 15
    rows = Counter((row.public.event, row.public.kind) for row in audit)
    held = rows["reset.held", "gap"]
    assert (rows["reset.committed", "initial"], rows["reset.committed", "gap"] + held) == (1, 15)
    assert (report["resets"]["by_kind"]["gap"], report["held_resets"]) == (15 - held, held)
    assert all("is not plausible" in row.personal.trigger for row in audit if row.public.event == "reset.held")
    told = {row.personal.at_us for row in audit if row.public.kind == "gap"}
    assert told == {round(after.timestamp()) * 1_000_000 for _, after in gaps}
    assert report["resets"]["rolled_back"] + report["resets"]["refused"] + report["resets"]["conflicted"] == 0


def test_versions_are_what_was_accepted(store: Path, report: dict[str, Any]) -> None:
    """One version a measurement that was accepted, without gaps; each reset here admits the one it rests on."""
    with Store.open(store, durability="process") as opened:
        history = list(opened.history(USER))
    assert [info.version for info in history] == list(range(1, len(history) + 1))
    assert sum(info.admitted for info in history) == report["measurements"]["accepted"]


def test_the_filter_is_consistent(report: dict[str, Any]) -> None:
    """Mean NIS of what was accepted in steady operation lies near 1 and nine in ten under 3.84, the gated ones told beside."""
    accepted, gated, adapting = (report["nis"][name] for name in ("accepted", "with_gated", "adapting"))
    assert accepted["count"] >= 300
    assert 0.7 <= accepted["mean"] <= 1.3
    assert accepted["share_under_3_84"] >= 0.9
    assert gated["count"] >= accepted["count"]
    assert 0.7 <= gated["mean"] <= 1.5
    assert gated["share_under_3_84"] >= 0.9
    with_state = report["measurements"]["accepted"] + report["measurements"]["quarantined"] - report["resets"]["committed"]
    assert gated["count"] + adapting["count"] == with_state


def test_a_second_run_changes_nothing(store: Path, report: dict[str, Any]) -> None:
    """All rows are known, the store decodes alike, and the audit log ends where it ended."""
    before = seen(store)
    again = processed(store, EXPORT)
    assert again["measurements"] == {**dict.fromkeys(report["measurements"], 0), "read": 413, "known": 413}
    assert again["source_totals"] == report["source_totals"]
    assert seen(store) == before


def test_a_grown_export_accepts_only_its_new_rows(store: Path, report: dict[str, Any], tmp_path: Path) -> None:
    """Three newer rows on top, as the export writes them: three are accepted, and all others known."""
    lines = EXPORT.read_text(encoding="utf-8").splitlines(keepends=True)
    newest = rows_of_file()[-1][0]
    new = [f"{(newest + timedelta(days=day)).strftime(WRITTEN)},{213.9 - day / 10:.1f},lb,Health Mate\n" for day in (3, 2, 1)]
    grown = tmp_path / "export.csv"
    grown.write_text("".join([lines[0], *new, *lines[1:]]), encoding="utf-8")
    copy = tmp_path / "store"
    assert processed(copy, EXPORT)["measurements"] == report["measurements"]
    before = seen(copy)[0]["users"][USER]
    after = processed(copy, grown)["measurements"]
    assert after == {"read": 416, "accepted": 3, "quarantined": 0, "duplicate": 0, "late": 0, "known": 413}
    now = seen(copy)[0]["users"][USER]
    assert now["head"][0] == before["head"][0] + 3
    assert now["log"][:-3] == before["log"]
