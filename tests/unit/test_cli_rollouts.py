"""`rollout show` and `rollout set`: what is stored, what a change keeps, and wrong use that changes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from statemachine import Rollout, Store
from statemachine.cli import app
from statemachine.gate import stored_rollout
from statemachine.store import keys
from tests.regression.scene import fill, tear

BY = ["--actor", "ops@example.org", "--reason", "first tenth"]
EVERYBODY: dict[str, Any] = {"mode": "on", "percent": 100.0, "allow": [], "deny": [], "outside": "off", "name": "resets"}

pytestmark = pytest.mark.usefixtures("no_events")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    fill(tmp_path / "state", "ana", [80.0])
    return tmp_path / "state"


def run(path: Path, *arguments: str, code: int = 0) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["rollout", *arguments, "--store", str(path), "--json"])
    assert result.exit_code == code, result.output
    if code:
        assert result.stdout == ""
        return {"said": result.stderr}
    (line,) = result.stdout.splitlines()
    told: dict[str, Any] = json.loads(line)
    return told


def people(path: Path, *arguments: str) -> str:
    result = CliRunner().invoke(app, ["rollout", *arguments, "--store", str(path)], env={"COLUMNS": "80"})
    assert result.exit_code == 0, result.output
    assert max(map(len, result.stdout.splitlines())) <= 80
    return result.stdout


def audited(path: Path) -> list[str]:
    with Store.open(path, readonly=True) as store:
        return [row.public.event for row in store.audit() if row.public.event.startswith("rollout.")]


def test_nothing_set_is_shown_as_on_for_all_and_nothing_is_written(path: Path) -> None:
    assert run(path, "show") == EVERYBODY
    assert run(path, "show", "--user", "never seen") == {**EVERYBODY, "user": "never seen", "verdict": "on"}
    with Store.open(path, readonly=True) as store:
        assert store.engine.get(keys.ROLLOUT) is None


def test_what_is_not_given_stays_as_it_is(path: Path) -> None:
    """A later step of a rollout does not drop the lists of an earlier one; a user changes lists, or leaves both."""
    assert run(path, "set", "--percent", "10", "--allow", "a", "--deny", "b", "--deny", "c", "--outside", "shadow", *BY) == {
        **EVERYBODY, "percent": 10.0, "allow": ["a"], "deny": ["b", "c"], "outside": "shadow"}
    assert run(path, "set", "--percent", "25.5", *BY)["deny"] == ["b", "c"]
    told = run(path, "set", "--deny", "a", "--allow", "b", "--unlist", "c", "--name", "second", *BY)
    assert told == run(path, "show") == {
        **EVERYBODY, "percent": 25.5, "allow": ["b"], "deny": ["a"], "outside": "shadow", "name": "second"}
    assert [run(path, "show", "--user", user)["verdict"] for user in "ab"] == ["off", "on"]
    assert run(path, "set", "--mode", "off", *BY)["allow"] == ["b"]
    assert run(path, "show", "--user", "b")["verdict"] == "off"
    with Store.open(path) as store:
        (*_, row) = [row for row in store.audit() if row.public.event == "rollout.changed"]
        assert (row.personal.actor, row.personal.reason) == ("ops@example.org", "first tenth")
        assert (row.personal.details["before"]["mode"], row.personal.details["after"]["mode"]) == ("on", "off")


def test_a_change_that_changes_nothing_says_so(path: Path) -> None:
    run(path, "set", "--percent", "10", *BY)
    before = audited(path)
    result = CliRunner().invoke(app, ["rollout", "set", "--percent", "10", "--store", str(path), *BY])
    assert (result.exit_code, "nothing was changed" in result.stderr) == (0, True)
    assert audited(path) == before == ["rollout.changed"]


@pytest.mark.parametrize(("arguments", "says"), [
    (["set", *BY], "give what to change"),
    (["set", "--mode", "sideways", *BY], "sideways"),
    (["set", "--mode", "", *BY], "must be one of"),
    (["set", "--percent", "101", *BY], "0 to 100"),
    (["set", "--percent", "nan", *BY], "0 to 100"),
    (["set", "--percent", "ten", *BY], "--percent"),
    (["set", "--outside", "on", *BY], "shadow, off"),
    (["set", "--allow", "x", "--deny", "x", *BY], "choose one"),
    (["set", "--allow", "", *BY], "user id"),
    (["set", "--name", " ", *BY], "name"),
    (["set", "--mode", "off", "--actor", "a"], "--reason"),
    (["set", "--mode", "off", "--reason", "r"], "--actor"),
    (["set", "--mode", "off", "--reason", " ", "--actor", "a"], "reason"),
    (["show", "--user", ""], "user id"),
])
def test_wrong_use_is_told_and_changes_nothing(path: Path, arguments: list[str], says: str) -> None:
    assert says in " ".join(run(path, *arguments, code=2)["said"].split())
    assert audited(path) == []
    assert run(path, "show") == EVERYBODY


def test_where_there_is_no_store_none_is_made(tmp_path: Path) -> None:
    for arguments in (["show"], ["set", "--mode", "off", *BY]):
        run(tmp_path / "none", *arguments, code=2)
    assert not (tmp_path / "none").exists()


def test_one_that_cannot_be_read_is_set_anew_beginning_with_its_mode(path: Path) -> None:
    """Its lists are lost; that is said, and nothing is taken for granted."""
    run(path, "set", "--deny", "ana", *BY)
    tear(path, keys.ROLLOUT)
    run(path, "show", code=3)
    assert "begin" in run(path, "set", "--percent", "10", *BY, code=2)["said"]
    assert run(path, "set", "--mode", "shadow", "--deny", "ana", *BY)["deny"] == ["ana"]
    with Store.open(path) as store:
        assert stored_rollout(store) == Rollout("shadow", deny=("ana",))


def test_it_reads_well_in_a_narrow_window(path: Path) -> None:
    shown = people(path, "set", "--mode", "shadow", "--percent", "0.5", "--deny", "b\x1b[31m", *BY)
    assert "0.5 % of users" in shown
    assert "\x1b" not in shown
    assert "for ana" in people(path, "show", "--user", "ana")
    stopped = people(path, "set", "--mode", "off", "--outside", "shadow", *BY)
    assert "all others get  off" in stopped
