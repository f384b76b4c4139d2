"""`process` is killed at random instants and run again: the end equals that of an uninterrupted run (INV-09)."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from statemachine import Rollout, Store
from statemachine.gate import change
from statemachine.testing import snapshot

START = datetime(2024, 1, 1, 6, tzinfo=UTC)


def write_rows(path: Path, rows: int, users: int, seed: int) -> None:
    """Daily readings with gaps, wrong values, level shifts and resets that fail until the breaker refuses them."""
    rng = random.Random(seed)
    level = [rng.uniform(50, 120) for _ in range(users)]
    absent = [rng.randint(5, 200) for _ in range(users)]
    child = {user for user in range(users) if user % 97 == 13}
    with path.open("w", encoding="utf-8") as file:
        file.write("user_id,timestamp,weight,unit,source\n")
        for number in range(rows):
            user, day = number % users, number // users
            if day > absent[user]:
                day += 45
            level[user] += rng.gauss(0, 0.15) + (12.0 if rng.random() < 0.0005 else 0.0)
            weight = level[user] + rng.gauss(0, 0.3) + (rng.gauss(0, 25) if rng.random() < 0.004 else 0.0)
            at = START + timedelta(days=day, seconds=user)
            if user in child and day < 12:
                weight, at = 11.0, START + timedelta(minutes=5 * day, seconds=user)
            file.write(f"user{user:05d},{at.isoformat()},{max(weight, 1.0):.2f},kg,scale\n")


def command(source: Path, store: Path) -> list[str]:
    return [sys.executable, "-m", "statemachine.cli", "process", str(source), "--store", str(store), "--json"]


def check_killed_against_whole(
    tmp_path: Path, *, rows: int, users: int, kills: int, seed: int, rollout: Rollout = Rollout(),  # noqa: B008 - frozen
    outcomes: frozenset[str] = frozenset({"committed", "rolled_back", "refused"}),
) -> None:
    """Kill `kills` running processes, run once more to the end, and compare all that is stored, decoded."""
    source = tmp_path / "rows.csv"
    write_rows(source, rows, users, seed)
    for name in ("whole", "killed"):
        with Store.open(tmp_path / name) as store:
            change(store, lambda _: rollout, actor="ops@example.org", reason="before the first row")
    began = time.monotonic()
    whole = subprocess.run(command(source, tmp_path / "whole"), capture_output=True, text=True, check=False)
    seconds = time.monotonic() - began
    assert whole.returncode in (0, 1), whole.stderr
    rng = random.Random(seed)
    landed = 0
    for _ in range(kills * 3):
        if landed == kills:
            break
        victim = subprocess.Popen(command(source, tmp_path / "killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(rng.uniform(0.3, max(0.5, seconds / 3)))
        if victim.poll() is None:
            victim.send_signal(signal.SIGKILL)
            landed += 1
        victim.wait()
    assert landed >= min(kills, 3), "the kills must land in a running process"
    last = subprocess.run(command(source, tmp_path / "killed"), capture_output=True, text=True, check=False)
    assert last.returncode in (0, 1), last.stderr
    reports = [json.loads(run.stdout) for run in (whole, last)]
    assert reports[0]["source_totals"] == reports[1]["source_totals"]
    assert reports[1]["source_totals"]["read"] == rows
    with Store.open(tmp_path / "whole") as one, Store.open(tmp_path / "killed") as other:
        expected, found = snapshot(one), snapshot(other)
        for part, value in expected.items():
            assert found[part] == value, part
        assert other.verify_audit().bad_seq is None
        attempts = Counter(row.public.attempt_id for row in other.audit() if row.public.attempt_id)
        assert set(attempts.values()) == {1}
        modes = {row.public.outcome for row in one.audit()}
    assert outcomes <= modes, "the rows must exercise more than success"


def test_killed_runs_end_like_an_uninterrupted_one(tmp_path: Path) -> None:
    """Twelve thousand rows of 300 users, killed four times: the stores end equal, apart from ids and wall-clock fields."""
    check_killed_against_whole(tmp_path, rows=12_000, users=300, kills=4, seed=1)


def test_killed_runs_in_shadow_end_like_an_uninterrupted_one(tmp_path: Path) -> None:
    """Half of the users in shadow, the other half on, one of them denied: shadows too are made once each."""
    half = Rollout("on", 50, deny=("user00001",), outside="shadow")
    check_killed_against_whole(tmp_path, rows=12_000, users=300, kills=4, seed=4, rollout=half,
                               outcomes=frozenset({"committed", "rolled_back", "refused", "shadowed"}))


@pytest.mark.slow
def test_twenty_kills_of_two_hundred_thousand_rows(tmp_path: Path) -> None:
    """Two hundred thousand rows of 2,000 users, killed twenty times: the stores end equal."""
    check_killed_against_whole(tmp_path, rows=200_000, users=2_000, kills=20, seed=2)


def test_a_signal_stops_at_a_commit_and_the_next_run_goes_on(tmp_path: Path) -> None:
    """SIGINT ends the run with 130 at a commit; run again, everything is read once."""
    source = tmp_path / "rows.csv"
    write_rows(source, 40_000, 300, 3)
    running = subprocess.Popen(command(source, tmp_path / "store"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 30
    while not (tmp_path / "store" / "data.mdb").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.3)
    running.send_signal(signal.SIGINT)
    output, messages = running.communicate(timeout=60)
    first = json.loads(output)
    if first["interrupted_by_signal"]:
        assert running.returncode == 130
        assert "run it again" in messages
    assert "Traceback" not in messages
    second = subprocess.run(command(source, tmp_path / "store"), capture_output=True, text=True, check=False)
    totals = json.loads(second.stdout)["source_totals"]
    assert totals["read"] == 40_000
    assert json.loads(second.stdout)["measurements"]["known"] == first["source_totals"]["read"]
