"""`sweep`: a line a finding, one JSON object each with the counts last, what it refuses, and its exit codes."""

from __future__ import annotations

import json
import os
import re
import signal
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from statemachine.cli import app
from statemachine.store import keys, reading
from statemachine.sweep import RULES, Drift
from tests.regression.scene import fill, opened, raw, tear
from tests.unit.test_cli_inspect import run
from tests.unit.test_sweep import change_head, course, lighter, rows

if TYPE_CHECKING:
    from pathlib import Path

    from statemachine.sweep import Courses

pytestmark = pytest.mark.usefixtures("no_events")
BY = ["--actor", "ops@example.org", "--reason", "nightly"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Two consistent users, one of whose heads is not the fold of its log."""
    for number, user in enumerate(("ann", "bob")):
        fill(tmp_path / "store", user, course(number, 40))
    change_head(tmp_path / "store", "bob", lighter)
    return tmp_path / "store"


def test_findings_are_shown_with_what_was_done_and_end_with_1(path: Path) -> None:
    ran = run(path, "sweep")
    assert ran.code == 1
    assert [line.split()[:4] for line in ran.out.splitlines() if line.startswith("bob")] == [["bob", "40", "fold-head", "error"]]
    assert "2 users and 80 versions judged, 1 findings, 1 of them new and now in the audit log" in ran.err
    assert "0 of them new" in run(path, "sweep").err
    ran = run(path, "sweep", "--policy", "restore", *BY)
    assert (ran.code, "to version 40" in " ".join(ran.out.split())) == (1, True)
    assert "1 users restored" in ran.err
    ran = run(path, "sweep")
    assert (ran.code, ran.out) == (0, "")
    assert "nothing was found" in ran.err


def test_json_is_a_line_a_finding_and_the_counts_last(path: Path) -> None:
    ran = run(path, "sweep", "--json", "--policy", "restore", *BY)
    finding, counts = ran.lines
    assert finding == {
        "user": "bob", "version": 40, "rule": "fold-head", "severity": "error", "value": "another state",
        "limit": "bit for bit the fold of the log", "unit": "", "since_version": 40, "new": True,
        "restore": {"outcome": "restored", "to_version": 40, "version": 41, "error": None}}
    assert counts == {
        "attempt_id": counts["attempt_id"], "users": 2, "versions": 80, "findings": 1, "new": 1, "by_rule": {"fold-head": 1},
        "restores": {"restored": 1}, "changed": 0, "rule_errors": {}, "skipped_rules": [], "complete": True}
    with opened(path) as store:
        assert store.inspect(counts["attempt_id"]).public.event == "sweep.finished"  # type: ignore[union-attr]


@pytest.mark.parametrize(("options", "told"), [
    (["--policy", "restore"], "give --actor and --reason"), (["--policy", "restore", *BY[:2]], "give --actor and --reason"),
    (["--policy", "mend"], "not one of audit, alert, restore"), (["--rules", "nis"], "no rule is called 'nis'"),
    (["--rules", " , "], "--rules names no rule"), (["--errors", "nis"], "is to count as an error"),
    (["--user", "bop"], "did you mean 'bob'"), (["--since-seq", "-1"], "since-seq"),
    (["--json", "--rules", "drift,drift"], "two rules"),
])
def test_what_cannot_be_meant_ends_with_2_and_writes_nothing(path: Path, options: list[str], told: str) -> None:
    ran = run(path, "sweep", *options)
    assert (ran.code, ran.out) == (2, "")
    assert told in ran.err
    assert not rows(path, "sweep.finished")


def test_no_store_ends_with_2_and_a_torn_one_with_3(path: Path) -> None:
    assert run(path.parent / "none", "sweep").code == 2
    assert not (path.parent / "none").exists()
    tear(path, keys.META)
    assert run(path, "sweep").code == 3


def test_a_dry_run_leaves_the_store_as_it_is(path: Path) -> None:
    with raw(path) as txn:
        before = list(txn.cursor())
    ran = run(path, "sweep", "--dry-run", "--policy", "restore")
    assert ran.code == 1
    assert "nothing was written" in ran.err
    assert "1 users would be restored" in ran.err
    assert re.search(r"to version\s+\d+", ran.out)
    line = run(path, "sweep", "--dry-run", "--policy", "restore", "--json").lines[0]
    assert line["restore"] == {"outcome": "would restore", "to_version": 40, "version": None, "error": None}
    with raw(path) as txn:
        assert list(txn.cursor()) == before


def test_since_last_and_since_a_row_judge_fewer(path: Path) -> None:
    assert run(path, "sweep", "--json", "--since-last").lines[-1]["users"] == 2
    assert run(path, "sweep", "--json", "--since-last").lines[-1]["users"] == 0
    assert run(path, "sweep", "--json", "--since-seq", "0").lines[-1]["users"] == 2
    assert run(path, "sweep", "--json", "--since-seq", "3").lines[-1]["users"] == 0
    assert run(path, "sweep", "--json", "--user", "bob", "--user", "ann", "--rules", "drift").lines[-1]["users"] == 2


def test_ctrl_c_stops_after_the_users_under_way_and_ends_with_130(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was found so far is told and written; the next run goes on."""
    monkeypatch.setattr(reading, "CHUNK_USERS", 1)
    change_head(path, "ann", lighter)
    monkeypatch.setattr(Drift, "judge", _interrupting)
    ran = run(path, "sweep", "--json")
    assert ran.code == 130
    assert [(line.get("user"), line.get("complete")) for line in ran.lines] == [("ann", None), (None, False)]
    assert "run it again to go on" in ran.err
    assert [row.personal.user for row in rows(path)] == ["ann"]
    monkeypatch.undo()
    assert [line.get("new") for line in run(path, "sweep", "--json").lines] == [False, True, 1]


def _interrupting(_rule: object, _courses: Courses) -> list[Any]:
    os.kill(os.getpid(), signal.SIGINT)
    return []


def test_help_names_every_rule_and_has_an_example() -> None:
    told = " ".join(CliRunner().invoke(app, ["sweep", "--help"], env={"COLUMNS": "200"}).output.split())
    assert "Example: resetguard sweep --store ./state --since-last" in told
    assert ", ".join(RULES) in told


def test_terminal_of_eighty_columns_cuts_nothing(path: Path) -> None:
    result = CliRunner().invoke(app, ["sweep", "--store", str(path)], env={"COLUMNS": "80"})
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "bit for bit the" in result.stdout


def test_json_of_a_finding_has_numbers_where_there_are_numbers(tmp_path: Path) -> None:
    fill(tmp_path / "store", "low", [80.0] * 60)
    (finding, _) = (json.loads(text) for text in run(tmp_path / "store", "sweep", "--json").out.splitlines())
    assert (finding["rule"], finding["value"], finding["severity"]) == ("nis-low", pytest.approx(0.0), "warning")
