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
from statemachine.testing import snapshot
from tests.unit.processes import line, started

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


@pytest.mark.slow
def test_twenty_kills_of_a_healthy_group_run_open_no_breaker(tmp_path: Path) -> None:
    """Killed at random instants and run again: no breaker is open afterwards, no reset was refused (issue 3, Shows 1)."""
    kills, days = 20, 60
    source = tmp_path / "rows.csv"
    rows = write_rows(source, days)
    began = time.monotonic()
    subprocess.run(command(source, tmp_path / "whole"), capture_output=True, check=True)
    seconds = time.monotonic() - began
    rng, landed, stores = random.Random(kills), 0, [tmp_path / "killed 0"]
    while landed < kills:
        victim = subprocess.Popen(command(source, stores[-1]), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(rng.uniform(0.35, max(0.45, seconds * 0.9)))
        if victim.poll() is None:
            victim.send_signal(signal.SIGKILL)
            landed += 1
        else:  # it was faster; the next kills are another store's
            stores.append(tmp_path / f"killed {len(stores)}")
        victim.wait()
    with Store.open(tmp_path / "whole") as one:
        whole = snapshot(one)["users"]
    for store in stores:
        subprocess.run(command(source, store), capture_output=True, check=True)
        check(store, whole, rows)


def check(path: Path, whole: dict[str, object], rows: int) -> None:
    """Nothing is open, nothing was refused, and the end is as without kills."""
    with Store.open(path) as store:
        manager = ResetManager(store)
        breakers = [manager.breaker(None), *(manager.breaker(user) for user in store.users())]
        assert {(breaker.mode, breaker.failures, breaker.openings) for breaker in breakers} == {("closed", 0, 0)}
        outcomes = Counter(row.public.outcome for row in store.audit())
        assert set(outcomes) <= {"committed", "interrupted", "conflicted", "held"}
        assert outcomes["committed"] > USERS
        found = snapshot(store)
        assert found["users"] == whole
        assert sum(consumed for _, consumed, _ in found["cursors"]) == rows


STREAM = """
from statemachine.processor import SourceRow
store = opened(path, durability="group")
manager = ResetManager(store, resets_per_minute=2)
intake = Processor(manager).intake([(b"s" * 16, "rows.csv")], lambda *_: None)
for number in range(30):
    day, user = divmod(number, 6)
    at, kg = (day, 80.0) if day < 3 else (day + 57, 80.0 + user)
    intake.add(0, SourceRow(number, weighed(f"u{user}", at + user / 86_400, kg)))
    if number % 3 == 2:
        intake.flush()
        say(number)
intake.flush()
store.close()
say("done")
"""


def test_a_budget_refuses_alike_however_often_the_stream_is_killed(tmp_path: Path) -> None:
    """kill -9 after one commit and another, run again each time: states, counts and what is spent are as without."""
    for name, kills in (("whole", ()), ("killed", (3, 7, 8, 9))):
        for lines in (*kills, 99):
            with started(STREAM, tmp_path / name) as running:
                for _ in range(lines):
                    if line(running) == "done":
                        break
                running.send_signal(signal.SIGKILL)
    with Store.open(tmp_path / "whole") as one, Store.open(tmp_path / "killed") as other:
        assert snapshot(one) == snapshot(other)
        assert one.draft().budget() == other.draft().budget()
        assert Counter(row.public.outcome for row in one.audit())["refused"] >= 4
