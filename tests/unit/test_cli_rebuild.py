"""`resetguard rebuild`: what it prints, how it ends, lists of users, and files whose rows mean something by an option."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from statemachine import Store
from statemachine.cli import app
from statemachine.store import keys
from tests.regression.scene import raw, tear

BY = ["--actor", "ops@example.org", "--reason", "log damaged"]
USERS = ("ana", "bob", "cid")

pytestmark = pytest.mark.usefixtures("no_events")


def lines(users: tuple[str, ...] = USERS, days: int = 12) -> list[str]:
    return ["user_id,timestamp,weight,unit,source",
            *(f"{user},2024-01-{day + 1:02d}T07:00:00Z,{60 + 10 * n + 0.1 * (day % 4):.1f},kg,scale"
              for day in range(days) for n, user in enumerate(users))]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "weights.csv").write_text("\n".join(lines()) + "\n")
    return tmp_path / "weights.csv"


@pytest.fixture
def path(tmp_path: Path, file: Path) -> Path:
    invoked("process", str(file), "--store", str(tmp_path / "state"))
    return tmp_path / "state"


def invoked(*arguments: str, code: int = 0) -> Any:
    result = CliRunner().invoke(app, [*arguments])
    assert result.exit_code == code, result.output
    return result


def run(path: Path, *arguments: str, code: int = 0, told: str = "") -> list[dict[str, Any]]:
    """What `rebuild` prints as JSON; it must end with `code` and say `told` on standard error."""
    result = invoked("rebuild", *arguments, *BY, "--store", str(path), "--json", code=code)
    assert told in result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def people(path: Path, *arguments: str, code: int = 0) -> str:
    """What it says to people, on both streams, as one line."""
    return " ".join(invoked("rebuild", *arguments, *BY, "--store", str(path), code=code).output.split())


def wreck(path: Path, user: str) -> None:
    with Store.open(path) as store:
        versions = range(1, store.version_range(user)[1] + 1)
    key = user.encode()
    tear(path, keys.head(key), *(keys.version(key, number) for number in versions))


def state(path: Path, user: str) -> bytes:
    with Store.open(path, readonly=True) as store:
        loaded = store.load(user)
        assert loaded is not None
        return store.estimator.encode(loaded.state)


def test_sound_user_is_told_so(path: Path) -> None:
    (told,) = run(path, "ana")
    assert (told["outcome"], told["version"], told["attempt_id"], told["rows"]) == ("unchanged", None, None, None)
    assert told["log"] == {"first": 1, "last": 12, "steps": 11, "keyframes": 0, "resets": 1, "damaged": 0, "damage": [],
                           "unfolded": 0, "head": "equal"}
    said = people(path, "ana")
    assert "versions 1 to 12 of 'ana' replayed: the head is what they give, bit for bit" in said
    assert said.endswith("nothing was written")


def test_damaged_head_comes_from_the_log(path: Path) -> None:
    before = state(path, "ana")
    tear(path, keys.head(b"ana"))
    assert "dry run: nothing was changed" in people(path, "ana", "--dry-run")
    said = people(path, "ana")
    assert "the head of 'ana' is damaged; the log has versions 1 to 12, 0 of them damaged" in said
    assert "'ana' is at version 13, read back as promised (attempt " in said
    assert state(path, "ana") == before


def test_damaged_log_ends_with_1_and_names_the_remedy(path: Path) -> None:
    tear(path, keys.version(b"ana", 7))
    (told,) = run(path, "ana", code=1)
    assert (told["outcome"], told["log"]["damage"], told["fields"]) == (
        "damaged", [{"version": 7, "problem": "fails its checksum"}], [])
    said = people(path, "ana", code=1)
    assert "the log of 'ana' is damaged (version 7: fails its checksum) and nothing was written" in said
    assert "the head is good and goes on: nothing is to be done" in said
    assert "`resetguard rebuild ana --from FILE`" in said


def test_wrecked_user_comes_from_the_file(path: Path, file: Path) -> None:
    before = state(path, "bob")
    wreck(path, "bob")
    said = people(path, "bob", "--from", str(file), "--dry-run")
    assert "rows of the user 12: 12 accepted change their place none" in said
    (told,) = run(path, "bob", "--from", str(file))
    assert (told["outcome"], told["base_version"], told["version"]) == ("committed", 12, 13)
    assert (told["rows"]["accepted"], told["moved"], told["log"]["damaged"]) == (12, [], 12)
    assert state(path, "bob") == before
    with Store.open(path) as store:
        row = store.inspect(told["attempt_id"])
        assert row is not None
        assert (row.public.event, row.personal.actor, row.personal.reason) == ("state.rebuilt", "ops@example.org", "log damaged")
        (source,) = row.personal.details["files"]
        assert source == {"name": str(file), "sha256": hashlib.sha256(file.read_bytes()).hexdigest(), "source": 1}


def test_file_that_gives_what_stands_changes_nothing(path: Path, file: Path) -> None:
    (told,) = run(path, "cid", "--from", str(file), "--expect-version", "12")
    assert told["outcome"] == "unchanged"
    assert "decided anew is what stands, bit for bit" in people(path, "cid", "--from", str(file))


def test_measurements_left_out_must_be_asked_for(path: Path, tmp_path: Path) -> None:
    part = tmp_path / "part.csv"
    part.write_text("\n".join(lines(days=9)) + "\n")
    assert run(path, "ana", "--from", str(part), code=2, told="do not hold 3 accepted measurements of 'ana'") == []
    said = people(path, "ana", "--from", str(part), "--leave-out", "--dry-run")
    assert "change their place 3 from accepted to quarantined left out 3, quarantined" in said
    (told,) = run(path, "ana", "--from", str(part), "--leave-out")
    assert (told["left_out"], told["moved"]) == (3, [{"from": "accepted", "to": "quarantined", "count": 3}])


def test_file_in_two_parts_is_read_in_one_order(path: Path, tmp_path: Path) -> None:
    """Rows of several files are decided by their time, whichever file they stand in."""
    header, *rows = lines()
    parts = []
    for half in (0, 1):
        parts.append(tmp_path / f"{half}.csv")
        parts[-1].write_text("\n".join([header, *rows[half::2]]) + "\n")
    (told,) = run(path, "ana", "--from", str(parts[1]), "--from", str(parts[0]))
    assert told["outcome"] == "unchanged"


def test_list_of_users_stops_at_none_and_says_who_failed(path: Path, file: Path, tmp_path: Path) -> None:
    wreck(path, "ana")
    listed = tmp_path / "users"
    listed.write_text("ana\nnobody\ncid\n")
    told = run(path, "--users", str(listed), code=1, told="1 done, 2 failed, 0 skipped")
    assert [one["outcome"] for one in told] == ["failed", "failed", "unchanged"]
    assert "version 1: fails its checksum" in told[0]["error"]
    told = run(path, "--users", str(listed), "--from", str(file), "--resume", str(tmp_path / "journal"), code=1)
    assert [one["outcome"] for one in told] == ["committed", "failed", "unchanged"]
    told = run(path, "--users", str(listed), "--from", str(file), "--resume", str(tmp_path / "journal"), code=1)
    assert [one["outcome"] for one in told] == ["skipped", "failed", "skipped"]
    run(path, "--users", str(listed), "--resume", str(tmp_path / "journal"), code=2, told="is the journal of 'rebuild --from ")


def test_all_replays_every_user(path: Path) -> None:
    told = run(path, "--all")
    assert [(one["user"], one["outcome"]) for one in told] == [(user, "unchanged") for user in USERS]


def test_all_passes_over_who_has_no_state_and_not_over_a_lost_log(path: Path, tmp_path: Path) -> None:
    child = tmp_path / "child.csv"
    child.write_text("user_id,timestamp,weight,unit,source\ndot,2024-01-01T07:00:00Z,11.0,kg,scale\n")
    invoked("process", str(child), "--store", str(path), code=1)
    with raw(path) as txn:
        for number in range(1, 13):
            txn.delete(keys.version(b"bob", number))
    told = run(path, "--all", code=1)
    assert [(one["user"], one["outcome"]) for one in told] == [("ana", "unchanged"), ("bob", "failed"), ("cid", "unchanged")]
    assert "missing from the log" in told[1]["error"]


def test_rows_that_name_no_user_are_his_where_it_is_said(tmp_path: Path) -> None:
    """A format that names nobody needs no option; a blank cell is taken for USER's only as `process --user` took it."""
    withings, blank, store = tmp_path / "weight.csv", tmp_path / "blank.csv", tmp_path / "state"
    withings.write_text('Date,"Weight (kg)","Fat mass (kg)"\n2024-01-02 07:00:00,80.2,\n2024-01-01 07:00:00,80.1,\n')
    blank.write_text("user_id,timestamp,weight,unit,source\n,2024-01-03T07:00:00Z,80.3,kg,scale\n")
    for file in (withings, blank):
        invoked("process", str(file), "--user", "me", "--tz", "UTC", "--store", str(store))
    files = ("--from", str(withings), "--from", str(blank), "--tz", "UTC")
    assert run(store, "me", *files, code=2, told="do not hold 1 accepted measurement of 'me'") == []
    (told,) = run(store, "me", *files, "--nameless")
    assert (told["outcome"], told["rows"]["accepted"]) == ("unchanged", 3)
    users = tmp_path / "users"
    users.write_text("me\n")
    run(store, "--users", str(users), *files, code=2, told="names no user, so it is one person's")


def test_zone_and_unit_are_those_of_the_first_reading(tmp_path: Path) -> None:
    """Another zone makes other measurements of the rows: the rebuild refuses, and loses none."""
    file, store = tmp_path / "w.csv", tmp_path / "state"
    file.write_text("user_id,timestamp,weight,source\nana,2024-01-01T07:00:00,170.1,scale\nana,2024-01-02T07:00:00,170.3,scale\n")
    said = ("--tz", "Europe/Berlin", "--unit", "lb")
    invoked("process", str(file), *said, "--store", str(store))
    assert run(store, "ana", "--from", str(file), *said)[0]["outcome"] == "unchanged"
    run(store, "ana", "--from", str(file), "--tz", "UTC", "--unit", "lb", code=2, told="do not hold 2 accepted")
    run(store, "ana", "--from", str(file), "--tz", "Europe/Berlin", "--unit", "stone", code=2, told="the unit 'stone'")


def test_streamed_file_is_known_by_its_number(tmp_path: Path, file: Path) -> None:
    """`process --stream` counts a file under another key; its present and its number are found all the same."""
    store = tmp_path / "state"
    with file.open("a") as rows:
        rows.write("ana,2099-01-01T07:00:00Z,60.0,kg,scale\n")
    invoked("process", str(file), "--stream", "--store", str(store), code=1)
    (told,) = run(store, "ana", "--from", str(file))
    assert (told["outcome"], told["rows"]["quarantined"]) == ("unchanged", 1)


@pytest.mark.parametrize(("arguments", "told"), [
    ((), "give USER, or --users FILE"),
    (("ana", "--all"), "give USER, or --users FILE, not both"),
    (("ana", "--leave-out"), "--leave-out goes with --from FILE"),
    (("ana", "--tz", "UTC"), "--tz goes with --from FILE"),
    (("ana", "--nameless"), "--nameless goes with --from FILE"),
    (("--all", "--from", "{file}"), "--all replays the logs"),
    (("--all", "--expect-version", "3"), "--expect-version is of one user"),
    (("--users", "{file}", "--from", "{file}", "--nameless"), "--nameless is of one user"),
    (("ana", "--from", "-"), "a rebuild reads files, not standard input"),
    (("ana", "--from", "gone.csv"), "gone.csv does not exist"),
    (("ana", "--from", "{file}", "--from", "{file}"), "a file is given twice"),
    (("anna", "--from", "{file}"), "nothing is stored for 'anna'; did you mean"),
    (("anna",), "did you mean 'ana'?"),
    (("ana", "--resume", "journal"), "--resume goes with --users"),
])
def test_wrong_use_is_told_and_changes_nothing(path: Path, file: Path, arguments: tuple[str, ...], told: str) -> None:
    with Store.open(path, readonly=True) as store:
        before = store.audit_tail()
    assert run(path, *(argument.format(file=file) for argument in arguments), code=2, told=told) == []
    with Store.open(path, readonly=True) as store:
        assert store.audit_tail() == before


def test_wrong_version_ends_with_1(path: Path, file: Path) -> None:
    for more in ((), ("--from", str(file))):
        said = "'ana' is at version 12, not 11 as expected; nothing was changed"
        assert run(path, "ana", "--expect-version", "11", *more, code=1, told=said) == []


def test_actor_and_reason_are_wanted(path: Path) -> None:
    for given in (BY[:2], BY[2:]):
        assert "Missing option" in invoked("rebuild", "ana", "--store", str(path), *given, code=2).stderr
