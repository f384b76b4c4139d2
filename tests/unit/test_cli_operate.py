"""`restore` and `reset` by hand: dry runs, the guard of a version, the read back, lists of users that stop and resume."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from statemachine import (
    CommitInDoubt,
    Measurement,
    Processor,
    ResetError,
    ResetManager,
    Store,
    StoreBusy,
    StoreFull,
    StoreUnavailable,
    UserUnknown,
    VersionPruned,
    codec,
)
from statemachine.cli import app, batch, operate
from statemachine.store import keys
from statemachine.store.records import Loaded

ROOT = Path(__file__).parents[2]
T0 = datetime(2024, 1, 5, 7, tzinfo=UTC)
BY = ["--actor", "ops@example.org", "--reason", "bad scale"]
USERS = ["ana", "bob", "cid"]

pytestmark = pytest.mark.usefixtures("no_events")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Three users of twelve measurements each, past their first probation."""
    with Store.open(tmp_path / "state") as store:
        processor = Processor(ResetManager(store))
        for number, user in enumerate(USERS):
            processor.process_batch(Measurement(user=user, at=T0 + timedelta(days=day), weight_kg=60.0 + 10 * number + 0.1 * day)
                                    for day in range(12))
    return tmp_path / "state"


def run(path: Path, *arguments: str, code: int = 0, told: str = "") -> list[dict[str, Any]]:
    """What a command prints as JSON; it must end with `code` and say `told` on standard error."""
    result = CliRunner().invoke(app, [*arguments, "--store", str(path), "--json"])
    assert result.exit_code == code, result.output
    assert told in result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def records(path: Path) -> dict[bytes, bytes]:
    """Every record of the store but the counter of its owners, and the owners: each opening changes those."""
    with Store.open(path) as store:
        found = dict(store.engine.scan(b"\0", b"\xff" * 8))
    return {key: value for key, value in found.items() if key != keys.META and not key.startswith(keys.OWNER)}


def damage_head(path: Path, user: str) -> None:
    with Store.open(path) as store:
        key = keys.head(user.encode())
        torn = (store.engine.get(key) or b"")[:-1] + b"\0"
        store.engine.update(lambda put: put(key, torn))


def states(path: Path, user: str) -> list[bytes]:
    with Store.open(path) as store:
        return [store.estimator.encode(store.load(user, n).state) for n in range(1, store.version_range(user)[1] + 1)]  # type: ignore[union-attr]


def test_restore_makes_an_older_version_the_newest(path: Path) -> None:
    before = states(path, "ana")
    (told,) = run(path, "restore", "ana", "--to-version", "4", *BY)
    assert (told["outcome"], told["base_version"], told["version"]) == ("committed", 12, 13)
    assert states(path, "ana") == [*before, before[3]]
    level = next(row for row in told["fields"] if row["field"] == "x.level")
    assert level["v1"] > level["v2"]
    with Store.open(path) as store:
        row = store.inspect(told["attempt_id"])
        assert row is not None
        assert (row.public.event, row.personal.actor, row.personal.reason) == ("state.restored", "ops@example.org", "bad scale")


@pytest.mark.parametrize("arguments", [
    ("restore", "ana", "--to-version", "4"), ("restore", "ana", "--last-known-good"), ("reset", "ana"),
    ("reset", "ana", "--weight", "70", "--at", "2024-02-01"),
])
def test_a_dry_run_says_what_a_run_does_and_changes_no_byte(path: Path, arguments: tuple[str, ...]) -> None:
    before = records(path)
    (dry,) = run(path, *arguments, *BY, "--dry-run")
    assert (dry["outcome"], dry["version"], dry["attempt_id"]) == ("dry_run", None, None)
    assert records(path) == before
    (done,) = run(path, *arguments, *BY)
    clocked = {"adaptation.reset_at", "adaptation.until", "adaptation.count"}
    assert [row for row in dry["fields"] if row["field"] not in clocked] == \
        [row for row in done["fields"] if row["field"] not in clocked]
    assert any(row["v1"] != row["v2"] for row in done["fields"])
    assert records(path) != before


def test_a_weight_from_before_the_state_needs_the_version_that_a_dry_run_names(path: Path) -> None:
    """So nobody moves a state back in time by a slip of the date; the newest instant itself, and later ones, need nothing."""
    before = records(path)
    old = ("reset", "ana", "--weight", "70", "--at", "2021-01-05", *BY)
    run(path, *old, code=2, told="takes it back 1,106.3 days; give --expect-version 12 to say that you mean it")
    (dry,) = run(path, *old, "--dry-run", told="takes it back 1,106.3 days; without --dry-run this needs --expect-version 12")
    assert (dry["outcome"], records(path)) == ("dry_run", before)
    run(path, *old, "--expect-version", "11", code=1, told="nothing was changed")
    (done,) = run(path, *old, "--expect-version", "12")
    assert (done["outcome"], done["version"]) == ("committed", 13)
    newest = T0 + timedelta(days=11)
    run(path, "reset", "bob", "--weight", "70", "--at", (newest - timedelta(hours=1)).isoformat(), *BY, code=2, told="0.0 days")
    run(path, "reset", "bob", "--weight", "70", "--at", newest.isoformat(), *BY)


@pytest.mark.parametrize("arguments", [("restore", "ana", "--to-version", "4"), ("reset", "ana")])
def test_a_wrong_expected_version_changes_nothing_and_says_so(path: Path, arguments: tuple[str, ...]) -> None:
    before = states(path, "ana")
    assert run(path, *arguments, *BY, "--expect-version", "11", code=1, told="nothing was changed") == []
    assert states(path, "ana") == before
    with Store.open(path) as store:
        last = list(store.audit("ana"))[-1]
        assert (last.public.event, last.personal.actor, last.personal.reason) == (
            "reset.conflicted", "ops@example.org", "bad scale")
        rows = store.audit_tail()
    run(path, *arguments, *BY, "--expect-version", "11", "--dry-run", code=1, told="nothing was changed")
    with Store.open(path) as store:
        assert store.audit_tail() == rows
    run(path, *arguments, *BY, "--expect-version", "12")


def test_a_wrong_expected_version_of_a_damaged_head_walks_nothing_back(path: Path) -> None:
    damage_head(path, "ana")
    before = records(path)
    run(path, "restore", "ana", "--to-version", "4", *BY, "--expect-version", "11", code=1, told="nothing was changed")
    assert records(path) == before


@pytest.mark.parametrize("whose", ["ana", "--global"])
def test_a_breaker_forced_open_beats_every_act_and_the_error_says_how_to_release_it(path: Path, whose: str) -> None:
    run(path, "breaker", "force-open", whose, *BY)
    before, release = states(path, "ana"), f"`resetguard breaker release {whose}`"
    for arguments in (("restore", "ana", "--to-version", "4"), ("reset", "ana")):
        run(path, *arguments, *BY, code=1, told=release)
        run(path, *arguments, *BY, "--dry-run")
    with Store.open(path) as store:
        head = store.draft().head(b"ana")
        assert head is not None
        torn = msgspec.structs.replace(head, run_since_us=head.run_since_us + 1, state=store.estimator.encode(
            store.load("ana", 4).state))  # type: ignore[union-attr]
        store.engine.update(lambda put: put(keys.head(b"ana"), codec.seal(keys.head(b"ana"), codec.pack(torn))))
    run(path, "rebuild", "ana", *BY, code=1, told=release)
    assert states(path, "ana") == before
    run(path, "breaker", "release", whose, *BY)
    run(path, "rebuild", "ana", *BY)
    run(path, "restore", "ana", "--to-version", "4", *BY)


@pytest.mark.parametrize("name", ["restore", "reset", "rebuild"])
def test_the_help_says_that_a_dry_run_asks_no_breaker(name: str) -> None:
    result = CliRunner().invoke(app, [name, "--help"])
    assert "Asks no breaker" in " ".join(result.output.replace("│", " ").split())


@pytest.mark.parametrize("arguments", [
    ["restore", "ana", *BY], ["restore", "ana", "--to-version", "4", "--last-known-good", *BY],
    ["restore", "ana", "--to-version", "4", *BY[:2]], ["restore", "ana", "--to-version", "4", *BY[2:]],
    ["reset", "ana", *BY[:2]], ["reset", "ana", *BY[2:]], ["reset", *BY], ["reset", "ana", "--weight", "80", *BY],
    ["reset", "ana", "--kind", "no-such", *BY], ["reset", "nobody", *BY], ["restore", "nobody", "--last-known-good", *BY],
    ["restore", "ana", "--to-version", "99", *BY], ["reset", "ana", "--users", "-", *BY], ["reset", "ana", "--resume", "j", *BY],
    ["reset", "--users", "/no/such/file", *BY], ["reset", "ana", "--actor", " ", "--reason", "r"],
])
def test_wrong_use_ends_with_2_and_changes_nothing(path: Path, arguments: list[str]) -> None:
    before = records(path)
    assert run(path, *arguments, code=2) == []
    assert records(path) == before


def test_last_known_good_is_the_version_before_the_reset_under_probation(path: Path) -> None:
    with Store.open(path) as store:
        manager = ResetManager(store)
        assert manager.last_known_good("ana") == 11
        manager.perform_reset("ana", actor="ops@example.org", reason="bad scale")
        Processor(manager).process(Measurement(user="ana", at=T0 + timedelta(days=12), weight_kg=61.2))
        assert manager.last_known_good("ana") == 12
        with pytest.raises(UserUnknown):
            manager.last_known_good("nobody")
        Processor(manager).process(Measurement(user="new", at=T0, weight_kg=61.2))
        with pytest.raises(VersionPruned, match="nothing stood before"):
            manager.last_known_good("new")
    before = states(path, "ana")
    run(path, "restore", "ana", "--last-known-good", *BY)
    assert states(path, "ana")[-1] == before[11]


def test_a_damaged_head_is_restored_from_the_log(path: Path) -> None:
    before = states(path, "ana")
    damage_head(path, "ana")
    (told,) = run(path, "restore", "ana", "--last-known-good", *BY)
    assert (told["outcome"], told["version"]) == ("recovered", 12)
    with Store.open(path) as store:
        row = store.inspect(told["attempt_id"])
        assert row is not None
        assert (row.personal.actor, row.personal.reason) == ("ops@example.org", "bad scale")
        assert row.public.duration_us is not None
    damage_head(path, "ana")
    run(path, "restore", "ana", "--to-version", "3", *BY, "--expect-version", "11", code=1, told="nothing was changed")
    (told,) = run(path, "restore", "ana", "--to-version", "3", *BY)
    assert states(path, "ana") == [*before, before[2]]


def test_of_two_restores_at_once_one_wins(path: Path) -> None:
    command = [sys.executable, "-m", "statemachine.cli", "restore", "ana", "--to-version", "4", "--expect-version", "12",
               "--store", str(path), *BY]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    both = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) for _ in range(2)]
    said = [child.communicate(timeout=60)[1] for child in both]
    assert sorted(child.returncode for child in both) == [0, 1]
    assert sum(b"nothing was changed" in text or b"was not changed" in text for text in said) == 1
    assert len(states(path, "ana")) == 13


def test_a_read_back_that_differs_is_trouble_with_the_store(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Store.load

    def lying(self: Store, user: str, version: int | None = None) -> Loaded | None:
        found = real(self, user, version)
        other = real(self, user, 5)
        return found if found is None or other is None or found.version != 13 else found._replace(state=other.state)

    monkeypatch.setattr(Store, "load", lying)
    assert run(path, "restore", "ana", "--to-version", "4", *BY, code=3, told="not what was promised") == []


def test_a_list_goes_on_after_a_failure_and_is_resumed(path: Path, tmp_path: Path) -> None:
    users, journal = tmp_path / "users", tmp_path / "journal"
    users.write_text("ana\n\nnobody\ncid\nana\n")
    told = run(path, "restore", "--to-version", "4", "--users", str(users), "--resume", str(journal), *BY, code=1)
    assert [(row["user"], row["outcome"]) for row in told] == [("ana", "committed"), ("nobody", "failed"), ("cid", "committed")]
    users.write_text("ana\nbob\ncid\n")
    with journal.open("ab") as file:
        file.write(b'{"user":"bob","do')  # the run before died within a line
    told = run(path, "restore", "--to-version", "4", "--users", str(users), "--resume", str(journal), *BY)
    assert [row["outcome"] for row in told] == ["skipped", "committed", "skipped"]
    assert [len(states(path, user)) for user in USERS] == [13, 13, 13]
    run(path, "reset", "--users", str(users), "--resume", str(journal), *BY, code=2, told="is the journal of")


def test_a_user_committed_by_a_run_that_died_before_its_journal_is_not_acted_upon_twice(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    users, journal = tmp_path / "users", tmp_path / "journal"
    users.write_text("ana\nbob\n")
    arguments = ("restore", "--last-known-good", "--users", str(users), "--resume", str(journal), *BY)

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(batch.Journal, "end", dies)
        run(path, *arguments, code=130)
    assert [len(states(path, user)) for user in USERS] == [13, 12, 12]
    told = run(path, *arguments)
    assert [row["outcome"] for row in told] == ["skipped", "committed"]
    assert [len(states(path, user)) for user in USERS] == [13, 13, 12]


def test_ctrl_c_ends_a_list_after_the_current_user(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    users, journal = tmp_path / "users", tmp_path / "journal"
    users.write_text("\n".join(USERS))
    real = operate.reset_by_hand

    def interrupted(*arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return real(*arguments)

    arguments = ("reset", "--users", str(users), "--resume", str(journal), *BY)
    with monkeypatch.context() as patch:
        patch.setattr(operate, "reset_by_hand", interrupted)
        told = run(path, *arguments, code=130, told="stopping after this user; again to stop at once")
    assert [row["outcome"] for row in told] == ["committed"]
    assert [row["outcome"] for row in run(path, *arguments)] == ["skipped", "committed", "committed"]
    assert [len(states(path, user)) for user in USERS] == [13, 13, 13]


@pytest.mark.parametrize("trouble", [StoreFull("no room"), StoreUnavailable("fenced"), StoreBusy("another"),
                                     CommitInDoubt("cut off")])
def test_trouble_with_the_store_stops_a_list_which_is_resumed(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: ResetError,
) -> None:
    """It is no user's failure: the others would fare alike, so that the list ends with 3, and goes on there another time."""
    users, journal = tmp_path / "users", tmp_path / "journal"
    users.write_text("\n".join(USERS))
    arguments = ("reset", "--users", str(users), "--resume", str(journal), *BY)
    real = operate.reset_by_hand

    def failing(manager: ResetManager, user: str, *more: Any) -> Any:
        if user == "bob":
            raise trouble
        return real(manager, user, *more)

    with monkeypatch.context() as patch:
        patch.setattr(operate, "reset_by_hand", failing)
        told = run(path, *arguments, code=3, told="stopped at user 2 of 3; run it again with the same --resume FILE")
    assert [(row["user"], row["outcome"]) for row in told] == [("ana", "committed")]
    assert [row["outcome"] for row in run(path, *arguments)] == ["skipped", "committed", "committed"]
    assert [len(states(path, user)) for user in USERS] == [13, 13, 13]


def test_one_users_damage_is_that_users_failure(path: Path, tmp_path: Path) -> None:
    """Nothing of one user can be read: the list goes on; where nothing can be committed at all, it stops."""
    users = tmp_path / "users"
    users.write_text("\n".join(USERS))
    with Store.open(path) as store:
        for key in (keys.head(b"bob"), *(keys.version(b"bob", version) for version in range(1, 13))):
            torn = (store.engine.get(key) or b"")[:-1] + b"\0"
            store.engine.update(lambda put, key=key, torn=torn: put(key, torn))  # type: ignore[misc]
    told = run(path, "reset", "--users", str(users), *BY, code=1)
    assert [row["outcome"] for row in told] == ["committed", "failed", "committed"]
    with Store.open(path) as store:
        store.engine.update(lambda put: put(keys.CHAIN, b"torn"))
    assert run(path, "reset", "--users", str(users), *BY, code=3, told="stopped at user 1 of 3") == []


def test_a_file_that_is_no_journal_is_left_alone(path: Path, tmp_path: Path) -> None:
    users, other = tmp_path / "users", tmp_path / "letter"
    users.write_text("ana")
    other.write_text("dear reader")
    run(path, "reset", "--users", str(users), "--resume", str(other), *BY, code=2, told="is no journal")
    assert other.read_text() == "dear reader"
