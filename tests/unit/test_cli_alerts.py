"""The command's alerts: what `--alert-command` and `--alert-webhook` are told by which commands, `alerts send`, `alerts test`."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any, Final

import pytest
from typer.testing import CliRunner, Result

from statemachine.cli import app
from statemachine.store import keys
from tests.regression.scene import fill, opened, raw, tear

BY: Final = ["--actor", "ops@example.org", "--reason", "a test"]
ROWS: Final = ("user,timestamp,weight,unit,source\nann,2026-02-01T07:00:00Z,80.2,kg,scale\n"
               "bob,2026-02-01T07:00:00Z,70.2,kg,scale\n")

pytestmark = pytest.mark.usefixtures("no_events")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Two users with a measurement each."""
    for user, kg in (("ann", 80.0), ("bob", 70.0)):
        fill(tmp_path / "state", user, [kg])
    return tmp_path / "state"


@pytest.fixture
def lost(path: Path) -> Path:
    """The same, and nothing of one user can be read."""
    tear(path, keys.head(b"ann"), keys.version(b"ann", 1))
    return path


class Told:
    """A command that appends what it is told to a file."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.words = shlex.join([sys.executable, "-c", "import sys; open(sys.argv[1], 'a').write(sys.stdin.read())", str(out)])

    def alerts(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.read_text().splitlines()] if self.out.exists() else []


@pytest.fixture
def told(tmp_path: Path) -> Told:
    return Told(tmp_path / "told")


def run(*arguments: str, code: int = 0, **env: str) -> Result:
    result = CliRunner().invoke(app, list(arguments), env=env)
    assert result.exit_code == code, result.output
    return result


def test_process_tells_of_a_user_of_whom_nothing_can_be_read(lost: Path, told: Told, tmp_path: Path) -> None:
    """All candidates failed: the measurement is kept, the other user goes on, and somebody is told without the id."""
    file = tmp_path / "w.csv"
    file.write_text(ROWS)
    run("--alert-command", told.words, "process", str(file), "--store", str(lost), code=1)
    (alert,) = told.alerts()
    assert (alert["event"], alert["scope"]) == ("state.unrecoverable", "user")
    assert "ann" not in json.dumps(alert)
    with opened(lost) as store:
        row = list(store.audit("ann"))[-1]
        assert (row.public.seq, row.public.attempt_id) == (alert["seq"], alert["attempt_id"])
        assert store.version_range("bob") == (1, 2)


@pytest.mark.parametrize("by_option", [True, False])
def test_recover_tells_by_option_or_environment(lost: Path, told: Told, by_option: bool) -> None:
    environment = {"RESETGUARD_ALERT_COMMAND": told.words, "RESETGUARD_ALERT_INCLUDE_USER": "1"}
    options = ["--alert-command", told.words, "--alert-include-user"] if by_option else []
    run(*options, "recover", "--store", str(lost), *BY, code=1, **({} if by_option else environment))
    (alert,) = told.alerts()
    assert (alert["event"], alert["user"], alert["said"]) == ("state.unrecoverable", "ann", "a test")


@pytest.mark.parametrize(("command", "seq"), [(("audit", "verify"), 1), (("doctor",), 0)])
def test_a_broken_audit_log_is_told_by_whoever_finds_it(path: Path, told: Told, command: tuple[str, ...], seq: int) -> None:
    run("--alert-command", told.words, *command, "--store", str(path))
    assert told.alerts() == []
    with raw(path) as txn:
        txn.delete(keys.audit(1))
    run("--alert-command", told.words, *command, "--store", str(path), code=1)
    (alert,) = told.alerts()
    assert (alert["event"], alert["seq"], alert["scope"]) == ("audit.broken", seq, "store")


def test_what_cannot_be_delivered_is_said_and_changes_nothing(lost: Path) -> None:
    """The exit code is the command's own, and so are its results; how to send it again is said."""
    result = run("--alert-command", "/no/such/program", "recover", "--store", str(lost), *BY, "--json", code=1)
    assert [json.loads(line)["outcome"] for line in result.stdout.splitlines()] == ["failed"]
    assert "1 alerts could not be delivered" in result.stderr
    assert "resetguard alerts send" in result.stderr
    again = run("recover", "--store", str(lost), *BY, "--json", code=1)
    assert "alerts" not in again.stderr, "the options of one run are not those of the next"


def test_send_sends_again_what_the_log_holds(lost: Path, told: Told) -> None:
    for _ in range(2):
        run("recover", "--store", str(lost), *BY, code=1)
    seqs = [row["seq"] for row in sent(lost, told)]
    assert seqs == [3, 4]
    assert [alert["seq"] for alert in told.alerts()] == seqs
    assert [row["seq"] for row in sent(lost, told, "--from-seq", "4")] == [4]
    (row,) = sent(lost, Told(Path("/no/such/place")), "--from-seq", "4", code=1)
    assert (row["outcome"], row["event"], row["hook"]) == ("failed", "state.unrecoverable", f"command {sys.executable}")
    assert "no row from 9 on is alarming" in run("--alert-command", told.words, "alerts", "send", "--store", str(lost),
                                                 "--from-seq", "9").stderr


def sent(path: Path, told: Told, *more: str, code: int = 0) -> list[dict[str, Any]]:
    result = run("--alert-command", told.words, "alerts", "send", "--store", str(path), "--json", *more, code=code)
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_the_way_of_alerts_can_be_tested(told: Told) -> None:
    result = run("--alert-command", told.words, "alerts", "test", "--json")
    assert json.loads(result.stdout)["outcome"] == "delivered"
    assert [alert["event"] for alert in told.alerts()] == ["alert.test"]
    assert "failed" in run("--alert-webhook", "http://127.0.0.1:1/", "alerts", "test", code=1).stdout


@pytest.mark.parametrize("arguments", [
    ["alerts", "test"], ["alerts", "send", "--store", "state"], ["--alert-webhook", "example.org", "alerts", "test"],
    ["--alert-command", "", "alerts", "test"], ["--alert-command", "'open", "alerts", "test"],
    ["--alert-command", "cat", "alerts", "send", "--store", "nowhere"],
    ["--alert-command", "cat", "alerts", "send", "--store", "nowhere", "--from-seq", "0"],
    ["--alert-webhook", "http://example.org/", "--alert-include-user", "alerts", "test"],
])
def test_wrong_use_is_told(arguments: list[str]) -> None:
    """Nobody to tell, an address that is none, words that are none, ids over plain http."""
    result = run(*arguments, code=2)
    assert "Traceback" not in result.output
    assert result.stderr
