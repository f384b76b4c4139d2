"""What a reading of the first whole version found; each test names what went wrong before."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from statemachine import (
    BodyWeight,
    BreakerOpen,
    BreakerPolicy,
    InvalidInput,
    Limits,
    Measurement,
    Processor,
    ResetManager,
    ResetValidationError,
    Store,
    UserUnknown,
)
from statemachine.marks import SLOTS, WAITING, DeadMarks
from statemachine.processor import SourceRow

START = datetime(2026, 1, 1, tzinfo=UTC)
BY: dict[str, Any] = {"reason": "a test", "actor": "tests"}


def weighed(user: str, day: float, kg: float) -> Measurement:
    return Measurement(user, START + timedelta(days=day), kg, "scale")


def test_a_rolled_back_attempt_in_a_batch_only_waits(tmp_path: Path) -> None:
    """Three kills before the group's commit made its input suspect, although its mutation had long ended.

    Post-mortem: only `commit` marked a batched attempt as waiting; a rollback left it running until the commit.
    """
    with Store.open(tmp_path / "s", durability="group") as store:
        intake = Processor(ResetManager(store)).intake([(bytes(16), "file")], lambda *_: None)
        intake.add(0, SourceRow(0, weighed("child", 0, 11.0)))
        marks = [slot for slot in range(SLOTS) if store.marks._map[slot * 1024]]
        assert [store.marks._map[slot * 1024] for slot in marks] == [WAITING]
        intake.flush()
    assert DeadMarks.take(tmp_path / "s" / "owners" / "1") is None


def test_the_state_of_a_transaction_cannot_be_set_from_outside(tmp_path: Path) -> None:
    """`tx.state = ...` went past every rule into a commit; now it is read-only, and the commit validates the whole."""
    with Store.open(tmp_path / "s") as store:
        manager = ResetManager(store)
        Processor(manager).process(weighed("u", 0, 80.0))
        with manager.transaction("u", **BY) as tx:
            tx.apply("nothing", lambda s: s)
            with pytest.raises(AttributeError):
                tx.state = tx.state.replace(P=[[1.0, 5.0], [5.0, 1.0]])  # type: ignore[misc]
        head = store.head("u")
        assert head is not None
        loaded = store.load("u")
        assert loaded is not None
        tx = manager.transaction("u", **BY)
        tx.begin(head, loaded.state.replace(R=1e9))
        with pytest.raises(ResetValidationError):
            tx.apply("small", lambda s: s.replace(x0=81.0))
        tx.roll_back()
        again = store.load("u")
        assert again is not None
        assert (again.version, again.violations) == (1, ())


def test_refusals_never_use_up_the_marks(tmp_path: Path) -> None:
    """After 2,048 refusals of one user nobody could begin an attempt: each refusal kept its slot until some commit."""
    with Store.open(tmp_path / "s", durability="process") as store:
        manager = ResetManager(store, breaker=BreakerPolicy(failures_max=1))
        processor = Processor(manager)
        for user in ("u", "healthy"):
            processor.process(weighed(user, 0, 80.0))
        with pytest.raises(ResetValidationError):
            manager.perform_reset("u", operations=[("break", lambda s: s.replace(R=1e9))], **BY)
        for _ in range(SLOTS + 10):
            with pytest.raises(BreakerOpen):
                manager.perform_reset("u", **BY)
        assert manager.perform_reset("healthy", **BY).outcome == "committed"
        refused = [row for row in store.audit("u") if row.public.outcome == "refused"]
        assert len(refused) == SLOTS + 10


def test_refused_rows_stay_in_the_batch(tmp_path: Path) -> None:
    """One user with an open breaker made every row of theirs a commit of its own, and everybody 25 times slower."""
    with Store.open(tmp_path / "s", durability="group") as store:
        intake = Processor(ResetManager(store)).intake([(bytes(16), "file")], lambda *_: None)
        for minute in range(3):
            intake.add(0, SourceRow(minute, weighed("child", minute / 1440, 11.0)))
        intake.flush()
        before = store.engine.info()["last_txnid"]
        for minute in range(3, 40):
            intake.add(0, SourceRow(minute, weighed("child", minute / 1440, 11.0)))
        intake.flush()
        assert store.engine.info()["last_txnid"] - before <= 2
        assert sum(row.public.outcome == "refused" for row in store.audit("child")) == 37


def test_two_runs_of_one_file_at_once_both_end_well(tmp_path: Path) -> None:
    """The second run gave up with "other writers changed ...": it never looked at the cursor again."""
    source = tmp_path / "rows.csv"
    rows = [f"u{n % 40},{(START + timedelta(hours=n)).isoformat()},{70 + n % 3}.0,kg,scale\n" for n in range(4_000)]
    source.write_text("user_id,timestamp,weight,unit,source\n" + "".join(rows), encoding="utf-8")
    command = [sys.executable, "-m", "statemachine.cli", "process", str(source), "--store", str(tmp_path / "s"), "--json"]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    reports = []
    for run in runs:
        output, messages = run.communicate(timeout=120)
        assert run.returncode == 0, messages
        reports.append(json.loads(output))
    taken = [report["measurements"]["read"] - report["measurements"]["known"] for report in reports]
    assert sum(taken) == len(rows)
    assert {report["source_totals"]["read"] for report in reports} <= {len(rows), *taken}
    with Store.open(tmp_path / "s") as store:
        assert sum(1 for user in store.users() for _ in store.history(user)) == len(rows)


def test_a_wrong_user_id_leaves_no_user_behind(tmp_path: Path) -> None:
    """A reset of a user nobody stored was an attempt of that user, who from then on was listed."""
    with Store.open(tmp_path / "s") as store:
        with pytest.raises(UserUnknown):
            ResetManager(store).perform_reset("nobody", **BY)
        assert not store.knows("nobody")
        assert list(store.users()) == []


def test_the_logs_own_kinds_are_reserved(tmp_path: Path) -> None:
    """An operator's attempt could call itself a revocation, and the audit said so."""
    with Store.open(tmp_path / "s") as store:
        Processor(ResetManager(store)).process(weighed("u", 0, 80.0))
        for kind in ("measurement", "revocation", "restore", "recovery"):
            with pytest.raises(InvalidInput):
                ResetManager(store).perform_reset("u", kind, operations=[("nothing", lambda s: s)], **BY)


def test_a_reset_by_hand_may_stand_for_an_instant_of_old_data(tmp_path: Path) -> None:
    """In a replay of old data a reset by hand was dated today: it adapted for ever, and manual entries were never seen."""
    with Store.open(tmp_path / "s") as store:
        manager = ResetManager(store)
        processor = Processor(manager)
        old = datetime(2024, 1, 1, tzinfo=UTC)
        processor.process(Measurement("u", old, 80.0, "scale"))
        manager.perform_reset("u", at=old + timedelta(days=1), **BY)
        for day in range(2, 30):
            outcome = processor.process(Measurement("u", old + timedelta(days=day), 80.0, "scale"))
        assert outcome.adapting is False
        with pytest.raises(InvalidInput):
            manager.perform_reset("u", at=datetime(2024, 1, 1), **BY)  # noqa: DTZ001 - naive on purpose


def test_a_replay_under_other_limits_gives_the_same_bits(tmp_path: Path) -> None:
    """The length of the buffer was read from the limits: a store opened with others folded old versions to other bytes."""
    with Store.open(tmp_path / "s") as store:
        processor = Processor(ResetManager(store))
        stood = []
        for day in range(40):
            processor.process(weighed("u", day, 80.0 + day / 50))
            loaded = store.load("u")
            assert loaded is not None
            stood.append(store.estimator.encode(loaded.state))
    with Store.open(tmp_path / "s", estimator=BodyWeight(limits=Limits(buffer_readings_max=5))) as store:
        for version, data in enumerate(stood, 1):
            loaded = store.load("u", version)
            assert loaded is not None
            assert store.estimator.encode(loaded.state) == data
