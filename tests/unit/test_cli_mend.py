"""`quarantine drop` and `recover`: what they change, what they leave, and what the audit log says of it."""

from __future__ import annotations

import json
import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from statemachine import Measurement, Processor, ResetManager, Store
from statemachine.cli import app
from statemachine.processor import SourceRow
from statemachine.store import keys
from statemachine.store.records import Unreadable
from tests.unit.processes import answer, line, started

T0 = datetime(2024, 1, 5, 7, tzinfo=UTC)
BY = ["--actor", "ops@example.org", "--reason", "a guest"]

pytestmark = pytest.mark.usefixtures("no_events")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Two users with six accepted measurements and two held ones each, and an unreadable row of each."""
    with Store.open(tmp_path / "state") as store:
        processor = Processor(ResetManager(store))
        intake = processor.intake([(None, "w.csv")], lambda _number, _outcome: None)
        for number, user in enumerate(("ana", "bob")):
            processor.process_batch(Measurement(user=user, at=T0 + timedelta(days=day), weight_kg=kg)
                                    for day, kg in enumerate((80.0, 80.1, 80.0, 80.1, 80.0, 80.1, 140.0, 30.0)))
            intake.add(0, SourceRow(number, None, Unreadable(line=number, raw="x", reason="no weight", user=user)))
        intake.flush()
    return tmp_path / "state"


def run(path: Path, *arguments: str, code: int = 0) -> list[dict[str, Any]]:
    result = CliRunner().invoke(app, [*arguments, "--store", str(path), "--json"])
    assert result.exit_code == code, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def kept(path: Path) -> dict[str, int]:
    with Store.open(path) as store:
        for user in ("ana", "bob"):
            assert store.kept_count(user) == sum(row.at_us is not None for row in store.quarantine(user))
        return {user: len(list(store.quarantine(user))) for user in ("ana", "bob")}


def test_drop_deletes_what_is_kept_of_one_user_and_audits_the_count(path: Path) -> None:
    assert kept(path) == {"ana": 3, "bob": 3}
    (told,) = run(path, "quarantine", "drop", "ana", *BY, "--before", (T0 + timedelta(days=7)).isoformat())
    assert (told["measurements"], told["unreadable"], told["kept_aside"]) == (1, 0, 1)
    assert kept(path) == {"ana": 2, "bob": 3}
    (told,) = run(path, "quarantine", "drop", "ana", *BY)
    assert (told["measurements"], told["unreadable"], told["kept_aside"]) == (1, 1, 0)
    assert kept(path) == {"ana": 0, "bob": 3}
    with Store.open(path) as store:
        row = store.inspect(told["attempt_id"])
        assert row is not None
        assert (row.public.event, row.personal.actor, row.personal.details["measurements"]) == (
            "quarantine.dropped", "ops@example.org", 1)
        loaded = store.load("ana")
        assert loaded is not None
        assert loaded.version == 6
        assert store.verify_audit().bad_seq is None


def test_recover_walks_back_every_user_whose_head_is_damaged(path: Path) -> None:
    assert run(path, "recover", *BY) == []
    with Store.open(path) as store:
        key = keys.head(b"bob")
        store.engine.update(lambda put: put(key, b"torn"))
    (told,) = run(path, "recover", *BY)
    assert (told["user"], told["outcome"], told["version"], told["left_out"]) == ("bob", "recovered", 6, 0)
    with Store.open(path) as store:
        row = store.inspect(told["attempt_id"])
        assert row is not None
        assert (row.public.event, row.personal.actor, row.personal.reason) == ("state.recovered", "ops@example.org", "a guest")
        assert row.public.duration_us is not None
        assert store.head("bob") is not None


@pytest.mark.parametrize("arguments", [["recover", *BY[:2]], ["recover", *BY[2:]], ["quarantine", "drop", "ana", *BY[:2]],
                                       ["quarantine", "drop", "nobody", *BY], ["recover", "--user", "nobody", *BY]])
def test_wrong_use_ends_with_2(path: Path, arguments: list[str]) -> None:
    assert run(path, *arguments, code=2) == []
    assert kept(path) == {"ana": 3, "bob": 3}


def test_a_stopped_process_that_is_fenced_commits_nothing_when_it_goes_on(path: Path) -> None:
    other = started("""
        with Store.open(path) as store:
            manager = ResetManager(store)
            def slow(s):
                say(store.committer.owner)
                heard()
                return s.replace(x0=81.0)
            try:
                manager.perform_reset("ana", operations=[("slow", slow)], actor="a", reason="b")
            except StoreUnavailable as error:
                say("fenced" in str(error))
    """, path)
    owner = int(line(other))
    other.send_signal(signal.SIGSTOP)
    try:
        (listed,) = run(path, "recover", "--list")
        assert (listed["owner"], listed["alive"], listed["fenced"], listed["attempts"]) == (owner, True, False, 1)
        assert 0 <= listed["seconds"] < 600
        assert listed["process"]["pid"] == other.pid
        began = datetime.fromisoformat(listed["process"]["since"])
        assert abs(datetime.now(UTC) - began) < timedelta(minutes=10)
        (told,) = run(path, "recover", "--fence", str(owner), *BY)
        assert told["outcome"] == "fenced"
        assert (path / "owners" / str(owner)).exists()
        (listed,) = run(path, "recover", "--list")
        assert (listed["owner"], listed["alive"], listed["fenced"]) == (owner, True, True)
        assert listed["process"]["pid"] == other.pid
        table = CliRunner().invoke(app, ["recover", "--list", "--store", str(path)]).output
        assert "yes, fenced" in table
        assert str(other.pid) in table
        run(path, "recover", "--fence", str(owner), *BY, code=2)
    finally:
        other.send_signal(signal.SIGCONT)
    assert answer(other, "go on\n") == "True"
    with Store.open(path) as store:
        loaded = store.load("ana")
        assert loaded is not None
        assert loaded.version == 6
        row = store.inspect(told["attempt_id"])
        assert row is not None
        assert (row.public.event, row.personal.details) == ("owner.fenced", {"fenced": owner})
        assert [r.public.outcome for r in store.audit("ana")][-1] == "rolled_back"
        assert store.verify_audit().bad_seq is None
    assert not (path / "owners" / str(owner)).exists()
    assert run(path, "recover", "--list") == []


def test_replay_offers_what_is_later_than_the_head_once_more_and_loses_nothing(path: Path) -> None:
    """Held before a reset by hand from a weight near them, the one that now fits is taken in, and none counts twice."""
    def identities() -> dict[bytes, int]:
        with Store.open(path) as store:
            return {key: kept.disposition for key, kept in store.draft().identities(b"ana", -(2**62))}

    before = identities()
    (told,) = run(path, "quarantine", "replay", "ana", *BY)
    assert (told["offered"], told["accepted"], told["admitted"], told["kept"], told["kept_aside"]) == (2, 0, 0, 2, 2)
    assert identities() == before
    run(path, "reset", "ana", "--weight", "140.2", "--at", (T0 + timedelta(days=5.5)).isoformat(), *BY)
    (told,) = run(path, "quarantine", "replay", "ana", *BY)
    assert (told["offered"], told["accepted"], told["admitted"], told["kept"], told["kept_aside"]) == (2, 1, 0, 1, 1)
    after = identities()
    assert len(after) == len(before) + 1
    assert before.keys() < after.keys()
    assert sum(disposition == 0 for disposition in after.values()) == 8
    assert kept(path)["ana"] == 2
    with Store.open(path) as store:
        rows = [row.public.event for row in store.audit("ana")]
        assert rows[-2:] == ["quarantine.released", "quarantine.replayed"]
        loaded = store.load("ana")
        assert loaded is not None
        assert loaded.version == 8
        assert loaded.state.kalman.at_us == round((T0 + timedelta(days=6)).timestamp() * 1e6)
    (told,) = run(path, "quarantine", "replay", "ana", *BY)
    assert (told["offered"], told["accepted"], told["kept"]) == (1, 0, 1)


def test_a_measurement_offered_once_more_is_no_evidence_for_itself(path: Path) -> None:
    """Two that agree are held: counted once each they are too few for a reset, however often they are offered."""
    with Store.open(path) as store:
        Processor(ResetManager(store)).process_batch(
            Measurement(user="new", at=T0 + timedelta(days=day), weight_kg=kg)
            for day, kg in enumerate((80.0, 80.1, 80.0, 80.1, 80.0, 80.1, 80.0, 80.1, 95.0, 95.1)))
        assert store.kept_count("new") == 2
    for _ in range(2):
        (told,) = run(path, "quarantine", "replay", "new", *BY)
        assert (told["offered"], told["accepted"], told["kept"]) == (2, 0, 2)
