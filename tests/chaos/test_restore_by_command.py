"""`resetguard restore` in processes of its own: refused it changes no byte, dry it only tells, and of two at once one wins."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Final

import pytest

from tests.regression.scene import fill, opened, records, states
from tests.unit.processes import answer, line, started

pytestmark = pytest.mark.usefixtures("no_events")

WHO: Final = ("--actor", "ops@example.org")
WHY: Final = ("--reason", "bad scale")


def restore(path: Path, *options: object) -> subprocess.CompletedProcess[str]:
    """`restore ann` with these options."""
    command = [sys.executable, "-m", "statemachine.cli", "restore", "ann", "--store", str(path), *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store of two users with six versions each."""
    for user in ("ann", "bob"):
        fill(tmp_path / "store", user, [80 + day / 10 for day in range(6)])
    return tmp_path / "store"


def live(path: Path) -> dict[bytes, bytes]:
    """Every record of both users, breakers and audit keys included, and every audit row."""
    with opened(path, readonly=True) as store:
        return {key: value for key, value in store.engine.scan(b"", b"\xff" * 8)
                if key[:1] != b"\0" or key[:2] in {b"\0a", b"\0g", b"\0h", b"\0p", b"\0x"}}


@pytest.mark.parametrize("choice", [("--to-version", 2), ("--last-known-good", "--json")])
def test_a_wrong_expected_version_changes_nothing_and_says_so(path: Path, choice: tuple[object, ...]) -> None:
    """Not one byte of the user's: the operator looked at another state than the one that stands, and the log says so."""
    before = live(path)
    run = restore(path, *choice, *WHO, *WHY, "--expect-version", 5)
    assert run.returncode == 1
    assert run.stdout == ""
    assert "'ann' is at version 6, not 5 as expected; nothing was changed" in run.stderr
    after = live(path)
    assert {key: value for key, value in after.items() if key.startswith(b"ann\0") and key[4:5] != b"a"} == {
        key: value for key, value in before.items() if key.startswith(b"ann\0") and key[4:5] != b"a"}
    with opened(path, readonly=True) as store:
        assert [row.public.event for row in store.audit("ann")][-1] == "reset.conflicted"
    right = restore(path, *choice, *WHO, *WHY, "--expect-version", 6)
    assert right.returncode == 0, right.stderr
    assert live(path) != before


@pytest.mark.parametrize("choice", [("--to-version", 2), ("--last-known-good",)])
def test_a_dry_run_prints_the_difference_and_changes_nothing(path: Path, choice: tuple[object, ...]) -> None:
    """What would be is what then is, field by field; before that not a byte is another."""
    before = live(path)
    shown = restore(path, *choice, *WHO, *WHY, "--dry-run")
    assert (shown.returncode, "x.level" in shown.stdout) == (0, True), shown.stderr
    assert "dry run: nothing was changed for 'ann'" in shown.stderr
    told = restore(path, *choice, *WHO, *WHY, "--dry-run", "--json")
    assert live(path) == before
    done = restore(path, *choice, *WHO, *WHY, "--json")
    would, did = json.loads(told.stdout), json.loads(done.stdout)
    assert (would["outcome"], would["version"], did["outcome"], did["version"]) == ("dry_run", None, "committed", 7)
    assert would["fields"] == did["fields"]
    assert [field for field in did["fields"] if field], "there must be a difference to print"
    with opened(path) as store:
        assert states(store, "ann")[6] == states(store, "ann")[1 if choice[0] == "--to-version" else 4]


@pytest.mark.parametrize("said", [WHO, WHY, (), (*WHO, "--reason", " "), ("--actor", "", *WHY)])
def test_without_actor_or_reason_it_is_refused(path: Path, said: tuple[str, ...]) -> None:
    """Wrong use, exit 2, whatever else is asked for; and nothing is changed."""
    before = live(path)
    for more in ((), ("--dry-run",))[:2 if not said else 1]:
        run = restore(path, "--to-version", 2, *said, *more)
        assert run.returncode == 2, run.stderr
        assert "actor" in run.stderr or "reason" in run.stderr
        assert "Traceback" not in run.stderr
    assert live(path) == before


def test_of_two_commands_at_once_one_wins(path: Path) -> None:
    """Twice two commands restore from one version at once: one commits, the other changes nothing and says so."""
    for number in range(2):
        command = [sys.executable, "-m", "statemachine.cli", "restore", "ann", "--store", str(path), *WHO, *WHY,
                   "--expect-version", str(6 + number), "--json", "--to-version"]
        both = [subprocess.Popen([*command, version], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
                for version in ("2", "4")]
        ended = [(child.communicate(timeout=60), child.returncode) for child in both]
        assert sorted(code for _, code in ended) == [0, 1], ended
        [(won, _)] = [said for said, code in ended if code == 0]
        [(lost, why)] = [said for said, code in ended if code == 1]
        assert json.loads(won)["version"] == 7 + number
        assert (lost, "nothing was changed" in why or "was not changed" in why) == ("", True)
    with opened(path) as store:
        assert store.version_range("ann") == (1, 8)
        assert store.version_range("bob") == (1, 6)
        assert Counter(row.public.event for row in store.audit("ann"))["state.restored"] == 2
        assert store.verify_audit().problem == ""


def test_of_many_restores_at_once_one_wins_each_round(path: Path) -> None:
    """Thirty rounds of two processes that begin together, without the seconds a command takes to start: one wins each."""
    program = """
        from statemachine import ConflictError, InvalidInput
        from statemachine.cli.operate import Asked, restored
        with opened(path) as store:
            manager = ResetManager(store)
            say("ready")
            for order in sys.stdin:
                try:
                    say(restored(manager, "ann", int(sys.argv[2]), Asked("ops", "a race", int(order), False)).version)
                except ConflictError as error:
                    assert "changed" in str(error), error
                    say("lost")
    """
    children = [started(program, path, version) for version in (2, 4)]
    assert [line(child) for child in children] == ["ready", "ready"]
    with opened(path, readonly=True) as store:
        bob = records(store, "bob")
    for number in range(30):
        for child in children:
            assert child.stdin is not None
            child.stdin.write(f"{6 + number}\n")
            child.stdin.flush()
        assert sorted(line(child) for child in children) == sorted([str(7 + number), "lost"])
    assert [answer(child) for child in children] == ["", ""]
    with opened(path) as store:
        assert store.version_range("ann") == (1, 36)
        assert records(store, "bob") == bob
        assert store.verify_audit().problem == ""
        ids = [row.public.attempt_id for row in store.audit()]
        assert len(ids) == len(set(ids))
