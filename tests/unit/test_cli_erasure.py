"""`export`, `forget` and `audit prune`: what they print, what they ask, how they end."""

from __future__ import annotations

import json
import os
import pty
import stat
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest
from typer.testing import CliRunner

from statemachine import codec
from statemachine.cli import app
from statemachine.store import keys
from statemachine.store.records import Unreadable
from tests.regression.scene import BY, opened, tear, weighed, working

ROOT: Final = Path(__file__).parents[2]
SAID: Final = ("--actor", "dpo", "--reason", "asked")

pytestmark = pytest.mark.usefixtures("no_events")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    where = tmp_path / "store"
    with working(where) as (_, manager, processor):
        for user in ("ana", "bob"):
            processor.process_batch(weighed(user, day, 80.0) for day in range(3))
            manager.perform_reset(user, **BY)
    return where


def run(path: Path, *words: str) -> tuple[int, str, str]:
    found = CliRunner().invoke(app, [*words, "--store", str(path)], env={"COLUMNS": "80"})
    assert found.exception is None or isinstance(found.exception, SystemExit), found.exception
    return found.exit_code, found.stdout, found.stderr


def knows(path: Path, user: str) -> bool:
    with opened(path) as store:
        assert store.verify_audit().problem == ""
        return store.knows(user)


def test_a_user_is_exported_as_json_lines(path: Path, tmp_path: Path) -> None:
    """The same to standard output as to a file, which nobody else may read and which is never written over."""
    code, out, _ = run(path, "export", "ana")
    assert code == 0
    assert {json.loads(line)["record"] for line in out.splitlines()} >= {"audit", "measurement", "state", "version"}
    file = tmp_path / "ana.jsonl"
    assert run(path, "export", "ana", "-o", str(file))[0] == 0
    assert file.read_text() == out
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    code, _, err = run(path, "export", "bob", "-o", str(file))
    assert (code, "there already" in err, file.read_text() == out) == (2, True, True)
    assert run(path, "export", "ana", "-o", str(tmp_path / "no" / "where"))[0] == 2


def test_a_damaged_record_is_a_finding_of_the_export(path: Path) -> None:
    tear(path, keys.head(b"ana"))
    code, out, err = run(path, "export", "ana")
    assert (code, '"damaged"' in out, "1 of the records" in err) == (1, True, True)


def test_an_export_of_nobody_makes_no_file(path: Path, tmp_path: Path) -> None:
    file = tmp_path / "anna.jsonl"
    code, _, err = run(path, "export", "anna", "-o", str(file))
    assert (code, "did you mean 'ana'" in err, file.exists()) == (2, True, False)


def test_forget_without_yes_and_without_a_terminal_is_refused(path: Path) -> None:
    code, _, err = run(path, "forget", "ana", *SAID)
    assert (code, "--yes" in err, knows(path, "ana")) == (2, True, True)


def test_nobody_is_asked_about_nobody(path: Path) -> None:
    """Whether the user exists is found out before the question; a user of unreadable rows alone does exist."""
    code, _, err = run(path, "forget", "anna", *SAID)
    assert (code, "nothing is stored for 'anna'; did you mean 'ana'" in err, "--yes" in err) == (2, True, False)
    with opened(path) as store:
        draft = store.draft()
        draft.put(keys.unreadable(7, 1), codec.pack(Unreadable(1, "x", "no weight", "zoe")))
        store.commit(draft)
    code, _, err = run(path, "forget", "zoe", *SAID)
    assert (code, "--yes" in err) == (2, True)
    assert run(path, "forget", "zoe", "--yes", *SAID)[0] == 0
    assert run(path, "forget", "zoe", "--yes", *SAID)[0] == 2


@pytest.mark.parametrize("words", [("--actor", "a"), ("--reason", "r"), ("--actor", "a", "--reason", " ")])
def test_forget_without_actor_or_reason_is_refused(path: Path, words: tuple[str, ...]) -> None:
    assert run(path, "forget", "ana", "--yes", *words)[0] == 2
    assert knows(path, "ana")


def test_forget_erases_the_user_and_says_what(path: Path) -> None:
    code, out, _ = run(path, "forget", "ana", "--yes", "--json", *SAID)
    assert code == 0
    assert json.loads(out)["rows"] == 2
    assert (knows(path, "ana"), knows(path, "bob")) == (False, True)
    code, _, err = run(path, "forget", "ana", "--yes", *SAID)
    assert (code, "nothing is stored" in err) == (2, True)


@pytest.mark.parametrize(("answer", "code"), [(b"y\n", 0), (b"n\n", 2)])
def test_forget_asks_on_a_terminal(path: Path, answer: bytes, code: int) -> None:
    """Only yes erases."""
    above, below = pty.openpty()
    try:
        words = [sys.executable, "-m", "statemachine.cli", "forget", "ana", "--store", str(path), *SAID]
        with subprocess.Popen(words, stdin=below, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) as process:
            os.write(above, answer)
            _, err = process.communicate(timeout=60)
    finally:
        os.close(above)
        os.close(below)
    assert (process.returncode, b"cannot be undone" in err) == (code, True), err
    assert knows(path, "ana") == bool(code)


def test_prune_erases_what_old_rows_say(path: Path) -> None:
    """Rows written before the time, once; a word that is no time is refused."""
    assert run(path, "audit", "prune", "--before", "soon", *SAID)[0] == 2
    assert run(path, "audit", "prune", "--before", "2026-01-01", *SAID)[0] == 0
    code, out, _ = run(path, "audit", "prune", "--before", "2050-01-01", "--json", *SAID)
    assert (code, json.loads(out)) == (0, {"before": "2050-01-01T00:00:00Z", "rows": 4, "seq": 4, "commits": 1})
    code, _, err = run(path, "audit", "prune", "--before", "2050-01-01", *SAID)
    assert (code, "nothing left" in err or "anything left" in err) == (0, True)
    assert knows(path, "ana")
    assert run(path, "audit", "verify")[0] == 0
