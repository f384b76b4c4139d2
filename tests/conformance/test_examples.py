"""Each example runs as a reader would run it, from an empty directory, and prints what its text says it shows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
SECONDS_MAX = 120
IMPORTED = {"chaos_target.py"}

# What each prints, as patterns that must occur in this order.
PRINTS = {
    "minimal.py": [
        r"2026-01-05 81\.2 kg: accepted, committed a reset of kind initial; version 1$",
        r"2026-01-08 80\.9 kg: accepted; version 4$",
        r"reset by hand: committed, version 5$",
        r"u1 weighs 8[01]\.\d\d kg, variance 0\.750 kg\^2, version 5$",
        r"audit 1: reset\.committed, initial, no state yet$",
        r"audit 2: reset\.committed, admin, ",
    ],
    "tracker.py": [
        r"06:00:00 initial reset committed, version 1: ",
        r"06:15:00 gap reset committed, version 61: 54\d\d m east, 13\d\d m north, ",
        r"06:25:20 level-shift reset committed, version 121: ",
        r"180 fixes: 178 accepted, 2 quarantined$",
        r"a reset by hand was rolled back at 'sharpen': covariance: east\.P is .*, must be positive definite$",
        r"the boat is where it was: yes$",
        r"as of 06:05, version 31: .*, fix of 06:05:00$",
        r"as of 06:34, version \d+: .*, fix of 06:34:00$",
        r"audit 4: reset\.rolled_back \(admin\) ",
    ],
    "deferred_rule.py": [
        r"^new: one-sided of 'losing ever faster' at version 60: -12 readings, must be above -12 and below 12$",
        r"^2 users, 120 versions, 2 findings, 2 of them new$",
        r"^known: one-sided of 'losing ever faster' at version 60: ",
        r"^2 users, 120 versions, 2 findings, 0 of them new$",
    ],
    "make_sample.py": [],
}


def run(name: str, cwd: Path, *arguments: str) -> str:
    """Standard output of an example, warnings being errors."""
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / name), *arguments], cwd=cwd, env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=SECONDS_MAX, check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def in_order(patterns: list[str], text: str) -> list[str]:
    """The patterns that do not occur after those before them."""
    missing, at = [], 0
    for pattern in patterns:
        found = re.compile(pattern, re.MULTILINE).search(text, at)
        if found is None:
            missing.append(pattern)
        else:
            at = found.end()
    return missing


def test_each_example_is_listed() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == {*PRINTS, *IMPORTED}


def test_the_target_of_the_boats_is_one(tmp_path: Path) -> None:
    """As docs/chaos.md runs it, on the lightest of the suites."""
    asked = ("--target", "chaos_target:boats", "--suite", "estimator", "--findings", str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-m", "chaos", "run", *asked], cwd=EXAMPLES, env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed: " in done.stdout


@pytest.mark.parametrize("name", ["minimal.py", "tracker.py"])
def test_example_prints_what_it_shows(name: str, tmp_path: Path) -> None:
    text = run(name, tmp_path)
    assert in_order(PRINTS[name], text) == [], text


def test_minimal_counts_nothing_twice(tmp_path: Path) -> None:
    run("minimal.py", tmp_path)
    text = run("minimal.py", tmp_path)
    assert len(re.findall(r": duplicate; version 5$", text, re.MULTILINE)) == 4, text


def test_tracker_may_be_run_again_on_its_own_store(tmp_path: Path) -> None:
    run("tracker.py", tmp_path, "kept")
    assert in_order([r"180 fixes: 180 duplicate$", r"the boat is where it was: yes$"], run("tracker.py", tmp_path, "kept")) == []


def test_sample_is_written_where_it_is_told(tmp_path: Path) -> None:
    assert run("make_sample.py", tmp_path, "-o", "other.csv") == ""
    assert (tmp_path / "other.csv").read_bytes() == (ROOT / "statemachine" / "cli" / "sample.csv").read_bytes()
    assert run("make_sample.py", tmp_path, "-o", "-", "--seed", "7").startswith("user_id,timestamp,weight,unit,source\n")


def test_patterns_out_of_order_are_found() -> None:
    assert in_order(["a", "b"], "b\na\n") == ["b"]
    assert in_order(["^a$", "^b$"], "a\nb\n") == []
