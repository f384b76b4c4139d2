"""`breaker show`, `force-open`, `force-close`, `metrics-only`, `release`: the operator's word, and what attempts then find."""

from __future__ import annotations

import json
import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from statemachine import (
    BreakerOpen,
    BreakerPolicy,
    GlobalBreakerPolicy,
    Measurement,
    MutationFailed,
    Processor,
    ResetManager,
    Store,
)
from statemachine.cli import app, batch, console
from tests.unit.processes import line, started

T0 = datetime(2024, 1, 5, 7, tzinfo=UTC)
BY = ["--actor", "ops@example.org", "--reason", "bad firmware"]
SAID: dict[str, Any] = {"actor": "ops@example.org", "reason": "bad firmware"}

pytestmark = pytest.mark.usefixtures("no_events")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Two users with a state."""
    with Store.open(tmp_path / "state") as store:
        for user in ("ana", "bob"):
            Processor(ResetManager(store)).process(Measurement(user=user, at=T0, weight_kg=80.0))
    return tmp_path / "state"


def run(path: Path, *arguments: str, code: int = 0) -> list[dict[str, Any]]:
    result = CliRunner().invoke(app, ["breaker", *arguments, "--store", str(path), "--json"])
    assert result.exit_code == code, result.output
    return [json.loads(row) for row in result.stdout.splitlines()]


def test_a_forced_open_breaker_refuses_one_user_until_it_is_released(path: Path) -> None:
    (told,) = run(path, "force-open", "ana", *BY)
    assert (told["user"], told["mode"]) == ("ana", "forced-open")
    with Store.open(path) as store:
        manager = ResetManager(store)
        with pytest.raises(BreakerOpen) as refused:
            manager.perform_reset("ana", **SAID)
        assert (refused.value.scope, refused.value.reason) == ("user", "forced-open")
        assert manager.perform_reset("bob", **SAID).outcome == "committed"
    assert [row["user"] for row in run(path, "show")] == [None, "ana"]
    run(path, "release", "ana", *BY)
    with Store.open(path) as store:
        assert ResetManager(store).perform_reset("ana", **SAID).outcome == "committed"
        rows = [row for row in store.audit("ana") if row.public.event.startswith("breaker.")]
        assert [(row.public.event, row.personal.actor, row.personal.details["to"]) for row in rows] == [
            ("breaker.forced", "ops@example.org", "forced-open"), ("breaker.released", "ops@example.org", "closed")]
        assert store.verify_audit().problem == ""


def test_a_list_of_users_goes_on_after_a_failure_and_is_resumed(path: Path, tmp_path: Path) -> None:
    users, journal = tmp_path / "users", tmp_path / "journal"
    users.write_text("ana\nnobody\nbob\n")
    listed = ("--users", str(users), "--resume", str(journal), *BY)
    told = run(path, "force-open", *listed, code=1)
    assert [row["user"] for row in told] == ["ana", "nobody", "bob"]
    assert [row["outcome"] for row in told] == ["forced-open", "failed", "forced-open"]
    assert [row["user"] for row in run(path, "show")] == [None, "ana", "bob"]
    users.write_text("ana\nbob\n")
    assert [row["outcome"] for row in run(path, "force-open", *listed)] == ["skipped", "skipped"]
    result = CliRunner().invoke(app, ["breaker", "release", *listed, "--store", str(path)])
    assert (result.exit_code, "is the journal of 'breaker force-open'" in result.stderr) == (2, True)
    assert [row["mode"] for row in run(path, "release", "--users", str(users), *BY)] == ["closed", "closed"]
    assert [row["user"] for row in run(path, "show")] == [None]


@pytest.mark.parametrize(("between", "outcomes"), [
    (None, ["skipped", "forced-open"]), ("release", ["forced-open", "forced-open"]),
])
def test_a_run_that_died_before_its_journal_is_not_repeated_while_its_word_stands(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, between: str | None, outcomes: list[str],
) -> None:
    users, journal = tmp_path / "users", tmp_path / "journal"
    users.write_text("ana\nbob\n")
    listed = ("force-open", "--users", str(users), "--resume", str(journal), *BY)

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(batch.Journal, "end", dies)
        run(path, *listed, code=130)
    if between is not None:
        run(path, between, "ana", *BY)
    assert [row["outcome"] for row in run(path, *listed)] == outcomes
    assert [row["mode"] for row in run(path, "show")][1:] == ["forced-open", "forced-open"]


@pytest.mark.parametrize("words", [
    ("ana", "--global"), ("ana", "--users", "-"), ("--users", "-", "--global"), (), ("ana", "--resume", "j"),
    ("--global", "--resume", "j"),
])
def test_whose_breaker_is_said_once(path: Path, words: tuple[str, ...]) -> None:
    run(path, "force-open", *words, *BY, code=2)
    assert [row["mode"] for row in run(path, "show")] == ["closed"]


def test_the_global_breaker_stops_everybody(path: Path) -> None:
    run(path, "force-open", "--global", *BY)
    with Store.open(path) as store:
        for user in ("ana", "bob"):
            with pytest.raises(BreakerOpen) as refused:
                ResetManager(store).perform_reset(user, **SAID)
            assert refused.value.scope == "global"
        outcome = Processor(ResetManager(store)).process(Measurement(user="ana", at=T0 + timedelta(days=1), weight_kg=80.1))
        assert outcome.status == "accepted", "a measurement that needs no reset goes on"


def test_an_attempt_that_began_before_the_word_may_not_commit(path: Path) -> None:
    with Store.open(path) as store:
        manager = ResetManager(store)
        for user in ("ana", None):
            with manager.transaction("ana", **SAID) as tx:
                tx.apply("nothing", lambda s: s)
                manager.force_breaker(user, "forced-open", **SAID)
                with pytest.raises(BreakerOpen):
                    tx.commit()
            manager.release_breaker(user, **SAID)
        loaded = store.load("ana")
        assert loaded is not None
        assert loaded.version == 1


def test_force_closed_counts_nothing_and_metrics_only_counts(path: Path) -> None:
    with Store.open(path) as store:
        manager = ResetManager(store, breaker=BreakerPolicy(failures_max=2))
        for mode, counted in (("forced-closed", 0), ("metrics-only", 5)):
            manager.force_breaker("ana", mode, **SAID)  # type: ignore[arg-type]
            for _ in range(5):
                with pytest.raises(MutationFailed):
                    manager.perform_reset("ana", operations=[("break", lambda s: s.missing)], **SAID)
            assert (manager.breaker("ana").mode, manager.breaker("ana").failures) == (mode, counted)


def test_wrong_use_is_told_and_changes_nothing(path: Path) -> None:
    for arguments in (["force-open", *BY], ["force-open", "ana", "--global", *BY], ["release", "nobody", *BY],
                      ["force-open", "ana", "--reason", "r"], ["force-open", "ana", "--actor", "a"]):
        run(path, *arguments, code=2)
    assert [row["mode"] for row in run(path, "show")] == ["closed"]


def test_the_lease_of_a_probe_ends_with_its_holder(path: Path) -> None:
    """A process that is open already may probe once the holder is dead; nobody need open the store anew."""
    program = """
        store = Store.open(path)
        manager = ResetManager(store, breaker=BreakerPolicy(failures_max=1, cooldown_s=0.0))
        def wait(_):
            say("probing")
            time.sleep(600)
        manager.perform_reset("ana", operations=[("wait", wait)], actor="a", reason="r")
    """
    with Store.open(path) as store:
        manager = ResetManager(store, breaker=BreakerPolicy(failures_max=1, cooldown_s=0.0))
        with pytest.raises(MutationFailed):
            manager.perform_reset("ana", operations=[("break", lambda s: s.missing)], **SAID)
        assert manager.breaker("ana").mode == "open"
        with started(program, path) as process:
            assert line(process) == "probing"
            with pytest.raises(BreakerOpen) as refused:
                manager.perform_reset("ana", **SAID)
            assert refused.value.reason == "probing"
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert manager.perform_reset("ana", **SAID).outcome == "committed"
        assert manager.breaker("ana").mode == "closed"
        outcomes = [row.public.outcome for row in store.audit("ana")]
        assert outcomes.count("interrupted") == 1


@pytest.mark.parametrize("columns", ["80", "130"])
def test_show_tells_why_it_is_open_and_when_a_probe_may_run(
    path: Path, columns: str, monkeypatch: pytest.MonkeyPatch,
) -> None:
    """For people within the window's width, each figure whole; in JSON with every figure, and what counts against a budget."""
    with Store.open(path) as store:
        manager = ResetManager(store, breaker=BreakerPolicy(failures_max=2), resets_per_minute=9,
                               global_breaker=GlobalBreakerPolicy(users_max=2, cooldown_s=0.0, successes_to_close=2))
        assert manager.perform_reset("bob", **SAID).outcome == "committed"
        for user in ("ana", "ana", "bob"):
            with pytest.raises(MutationFailed):
                manager.perform_reset(user, operations=[("break", lambda s: s.missing)], **SAID)
        assert manager.perform_reset("bob", **SAID).outcome == "committed"
    common, ana = run(path, "show")
    assert (common["mode"], common["opened_by"], common["successes"]) == ("half-open", "users", 1)
    assert common["resets_last_minute"] == 2
    assert (ana["mode"], ana["opened_by"], ana["openings"], ana["time_base"]) == ("open", "failures", 1, "wall")
    assert ana["retry_at"] > ana["opened_at"]
    (bob,) = run(path, "show", "bob")
    assert (bob["attempts"], bob["attempts_failed"], bob["failures"], bob["retry_at"]) == (4, 1, 0, None)
    monkeypatch.setattr(console.OUT, "_width", int(columns))
    shown = CliRunner().invoke(app, ["breaker", "show", "--store", str(path)])
    assert max(map(len, shown.stdout.splitlines())) <= int(columns)
    day, hour = ana["retry_at"][:10], ana["retry_at"][11:19]
    for figure in ("(global)", "half-open, 1", "succeeded", "ana", "failures", "users", day, hour):
        assert figure in shown.stdout, shown.stdout
    assert "2 resets of the last minute count against a budget" in shown.stderr
    listed = CliRunner().invoke(app, ["audit", "list", "--store", str(path), "--outcome", "opened"])
    assert max(map(len, listed.stdout.splitlines())) <= int(columns)
    assert listed.stdout.count("breaker.opened") == 2
    assert "(global)" in listed.stdout
