"""Two processes and eight threads reset the same users at once: INV-05, INV-06 and INV-03 hold."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from statemachine import ConflictError, Measurement, Processor, ResetManager, Store

USERS = ("ann", "ben", "cid")
START = datetime(2026, 1, 1, tzinfo=UTC)
ATTEMPTS = 25

WORKER = """
import sys, threading, structlog
from statemachine import *
structlog.configure(processors=[lambda *_: (_ for _ in ()).throw(structlog.DropEvent)])
path, durability = sys.argv[1], sys.argv[2]
count = {"committed": 0, "conflicted": 0}
guard = threading.Lock()
with Store.open(path, durability=durability) as store:
    manager = ResetManager(store, breaker=BreakerPolicy(failures_max=10**6, failure_rate_max=None))
    print("open", flush=True)
    sys.stdin.readline()
    def work(number):
        for i in range(ATTEMPTS):
            user = USERS[(number + i) % len(USERS)]
            try:
                manager.perform_reset(user, reason="race", actor=f"thread {number}")
                outcome = "committed"
            except ConflictError:
                outcome = "conflicted"
            with guard:
                count[outcome] += 1
    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
print(count["committed"], count["conflicted"], flush=True)
"""


@pytest.mark.parametrize("durability", ["each", "group", "process"])
def test_two_processes_of_four_threads_lose_no_update(tmp_path: Path, durability: str) -> None:
    """Every attempt has one outcome, each committed one its own version, and the versions have no gaps."""
    path = tmp_path / "store"
    with Store.open(path) as store:
        processor = Processor(ResetManager(store))
        for user in USERS:
            processor.process(Measurement(user, START, 80.0, "scale"))
    code = textwrap.dedent(WORKER).replace("ATTEMPTS", str(ATTEMPTS)).replace("USERS", repr(USERS))
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(path), durability], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for _ in range(2)
    ]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline().strip() == "open"
    counts = [worker.communicate("go\n", timeout=120)[0].split() for worker in workers]
    assert all(worker.returncode == 0 for worker in workers)
    committed, conflicted = (sum(int(pair[i]) for pair in counts) for i in (0, 1))
    assert committed + conflicted == 2 * 4 * ATTEMPTS
    assert committed > 0
    with Store.open(path) as store:
        rows = list(store.audit())
        assert store.verify_audit().bad_seq is None
        outcomes = Counter(row.public.outcome for row in rows)
        assert outcomes == {"committed": committed + len(USERS), **({"conflicted": conflicted} if conflicted else {})}
        assert len({row.public.attempt_id for row in rows}) == len(rows)
        made = Counter(row.personal.user for row in rows if row.public.outcome == "committed")
        for user in USERS:
            versions = [info.version for info in store.history(user)]
            assert versions == list(range(1, made[user] + 1))
            bases = [row.public.base_version for row in store.audit(user) if row.public.outcome == "committed"]
            assert bases == list(range(made[user])), "each commit was made from the version before it"


def test_threads_processing_one_user_account_for_every_measurement(tmp_path: Path) -> None:
    """Eight threads feed one user: each measurement gets exactly one outcome, and versions equal the accepted ones."""
    with Store.open(tmp_path / "store", durability="group") as store:
        processor = Processor(ResetManager(store))
        processor.process(Measurement("ann", START, 80.0, "scale"))
        outcomes: list[str] = []

        def feed(number: int) -> None:
            for day in range(1, 16):
                at = START + timedelta(days=day, minutes=number)
                outcomes.append(processor.process(Measurement("ann", at, 80.0 + number / 100, "scale")).status)

        threads = [threading.Thread(target=feed, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        counts = Counter(outcomes)
        assert counts.total() == 8 * 15
        assert set(counts) <= {"accepted", "late", "quarantined"}
        loaded = store.load("ann")
        assert loaded is not None
        assert loaded.version == 1 + counts["accepted"]
        assert len(list(store.quarantine("ann"))) == counts["late"] + counts["quarantined"]


def test_a_conflict_leaves_nothing_but_its_row(tmp_path: Path) -> None:
    """Of two attempts from one base the second raises ConflictError, changes nothing, and is audited as conflicted."""
    with Store.open(tmp_path / "store") as store:
        manager = ResetManager(store)
        Processor(manager).process(Measurement("ann", START, 80.0, "scale"))
        first = manager.transaction("ann", reason="one", actor="a")
        second = manager.transaction("ann", reason="two", actor="b")
        with first, second:
            first.apply("widen", lambda s: s.replace(P=[[2.0, 0.0], [0.0, 0.01]]))
            second.apply("widen", lambda s: s.replace(P=[[3.0, 0.0], [0.0, 0.01]]))
            first.commit()
            with pytest.raises(ConflictError) as caught:
                second.commit()
        assert caught.value.user == "ann"
        assert caught.value.attempt_id == second.attempt_id
        loaded = store.load("ann")
        assert loaded is not None
        assert (loaded.version, loaded.author) == (2, first.attempt_id)
        row = manager.inspect(second.attempt_id)
        assert row is not None
        assert (row.public.outcome, row.public.new_version) == ("conflicted", None)
