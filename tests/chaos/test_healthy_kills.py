"""Random kills of a healthy process open no breaker and blame nobody for good: a death is no failure of a reset (INV-07)."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from statemachine import ResetManager, Store
from statemachine.breaker import SUSPECTS_KEPT_MAX
from statemachine.testing import snapshot

START = datetime(2024, 1, 1, 6, tzinfo=UTC)
USERS = 400


def write_rows(path: Path, days: int) -> int:
    """Daily readings of people who are away now and then, so that many are reset at their return; how many rows."""
    rng = random.Random(7)
    level = [rng.uniform(55, 110) for _ in range(USERS)]
    count = 0
    with path.open("w", encoding="utf-8") as file:
        file.write("user_id,timestamp,weight,unit,source\n")
        for day in range(days):
            for user in range(USERS):
                level[user] += rng.gauss(0, 0.1)
                at = START + timedelta(days=day + 40 * ((day + user % 10) // 10), seconds=user)
                file.write(f"user{user:04d},{at.isoformat()},{level[user]:.2f},kg,scale\n")
                count += 1
    return count


def command(source: Path, store: Path) -> list[str]:
    return [sys.executable, "-m", "statemachine.cli", "process", str(source), "--store", str(store), "--json",
            "--durability", "group"]


def check_kills(tmp_path: Path, *, kills: int, days: int) -> None:
    """Kill so many runs at random instants; then nothing is open, nothing was refused, and the end is as without kills."""
    source = tmp_path / "rows.csv"
    rows = write_rows(source, days)
    began = time.monotonic()
    subprocess.run(command(source, tmp_path / "whole"), capture_output=True, check=True)
    seconds = time.monotonic() - began
    rng, landed = random.Random(kills), 0
    while landed < kills:
        victim = subprocess.Popen(command(source, tmp_path / "killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(rng.uniform(0.35, max(0.45, seconds * 0.6)))
        if victim.poll() is not None:
            break
        victim.send_signal(signal.SIGKILL)
        victim.wait()
        landed += 1
    subprocess.run(command(source, tmp_path / "killed"), capture_output=True, check=True)
    assert landed >= kills // 2, "the kills must land in a running process"
    with Store.open(tmp_path / "whole") as one, Store.open(tmp_path / "killed") as other:
        manager = ResetManager(other)
        breakers = [manager.breaker(None), *(manager.breaker(user) for user in other.users())]
        assert {(breaker.mode, breaker.failures, breaker.openings) for breaker in breakers} == {("closed", 0, 0)}
        assert all(len(breaker.suspects) <= SUSPECTS_KEPT_MAX for breaker in breakers)
        outcomes = Counter(row.public.outcome for row in other.audit())
        assert set(outcomes) <= {"committed", "interrupted", "conflicted", "held"}
        assert outcomes["committed"] > USERS
        assert snapshot(one)["users"] == snapshot(other)["users"]
        assert sum(c[1] for c in snapshot(other)["cursors"]) == rows


def test_four_kills_of_a_healthy_group_run_open_no_breaker(tmp_path: Path) -> None:
    check_kills(tmp_path, kills=4, days=15)


@pytest.mark.slow
def test_twenty_kills_of_a_healthy_group_run_open_no_breaker(tmp_path: Path) -> None:
    """Issue 3, Shows 1."""
    check_kills(tmp_path, kills=20, days=60)
