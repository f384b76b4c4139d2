"""The reading commands: what they print for people and for programs, and how they end."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import pytest
import structlog
from typer.main import get_command
from typer.testing import CliRunner

from statemachine import Measurement, MutationFailed, Processor, ResetManager, Store, codec
from statemachine.audit import GENESIS, configure_for_command
from statemachine.cli import app, console
from statemachine.clock import to_us
from statemachine.processor import SourceRow
from statemachine.store import keys
from statemachine.store.records import Unreadable

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
T0 = datetime(2024, 1, 5, 7, tzinfo=UTC)
NOW = datetime(2024, 6, 1, 12, tzinfo=UTC)
MARKUP = "[bold]<script>"
FAMILY = "zoë 👩\u200d👩\u200d👧"
EVIL = "ev\x1b[31mil\u202e\n"
USERS = [MARKUP, "ana", EVIL, "only-aside", FAMILY]
RUN_DEPENDENT = {"attempt_id", "seq", "owner", "trace_id", "store_id", "written_at", "duration_us", "seconds", "epoch",
                 "prev_hash", "hash", "head_author"}
COMMANDS = ["users", "show", "history", "diff", "quarantine", "quarantine list", "audit", "audit list", "audit show",
            "audit verify", "process", "demo", "backup", "restore-store"]


class FixedClock:
    def now_us(self) -> int:
        return to_us(NOW)

    def monotonic_us(self) -> int:
        return 0

    def sleep(self, seconds: float) -> None:
        pass


class Ran(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line, parse_constant=pytest.fail) for line in self.out.splitlines()]


def fill(path: Path) -> None:
    """Five users, one of whom was reset by hand, once in vain; a held, a refused and an unreadable measurement."""
    with Store.open(path, clock=FixedClock()) as store:
        manager = ResetManager(store)
        processor = Processor(manager)
        for user, kg in (("ana", 81.2), (MARKUP, 60.0), (FAMILY, 70.0), (EVIL, 90.0)):
            processor.process_batch(
                Measurement(user=user, at=T0 + timedelta(days=day), weight_kg=kg + 0.1 * day, source="scale") for day in range(6))
        processor.process(Measurement(user="ana", at=T0 + timedelta(days=7), weight_kg=140.0, source="scale"))
        processor.process(Measurement(user="only-aside", at=T0, weight_kg=-1.0, source="[red]scale"))
        manager.perform_reset("ana", reason="scale replaced", actor="ops@example.org")
        with pytest.raises(MutationFailed):
            manager.perform_reset("ana", reason="in vain", actor="ops", operations=[("fail", lambda _: None)])
        intake = processor.intake([(None, "weights.csv")], lambda _number, _outcome: None)
        intake.add(0, SourceRow(0, None, Unreadable(line=3, raw="ana;[red]eighty", reason="the weight cannot be read")))
        intake.flush()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("cli") / "state"
    configure_for_command(verbose=False)
    fill(directory)
    structlog.reset_defaults()
    return directory


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("RESETGUARD_STORE", raising=False)
    monkeypatch.setattr(console.OUT, "_width", None)
    yield
    structlog.reset_defaults()


def run(path: Path | None, *arguments: str, columns: int = 80) -> Ran:
    """The command in this process, in a window so wide; it may end by SystemExit only."""
    console.OUT.width = columns
    result = CliRunner().invoke(app, [*arguments, *(["--store", str(path)] if path is not None else [])])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return Ran(result.exit_code, result.stdout, result.stderr)


def environment(**changes: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "FORCE_COLOR", "NO_COLOR")}
    return kept | {"PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"} | changes


def child(path: Path, *arguments: str, **changes: str) -> Ran:
    """The command in a process of its own."""
    ran = subprocess.run([sys.executable, "-m", "statemachine.cli", *arguments], capture_output=True, check=False, timeout=60,
                         env=environment(RESETGUARD_STORE=str(path), **changes))
    return Ran(ran.returncode, ran.stdout.decode(), ran.stderr.decode())


def flat(text: str) -> str:
    """The text with every fold and every frame taken out."""
    return re.sub(r"[\s│]", "", text)


def names(value: Any) -> set[str]:
    if isinstance(value, dict):
        return set(value) | {name for item in value.values() for name in names(item)}
    return {name for item in value for name in names(item)} if isinstance(value, list) else set()


def attempts(path: Path, outcome: str) -> list[str]:
    return [row["attempt_id"] for row in run(path, "audit", "list", "--json", "--outcome", outcome).lines]


# users


def test_users_in_json_are_one_object_a_line(path: Path) -> None:
    ran = run(path, "users", "--json")
    rows = {row["user"]: row for row in ran.lines}
    assert (ran.code, ran.err, list(rows)) == (0, "", USERS)
    assert rows["ana"]["version"] == 7
    assert rows["ana"]["at"] == "2024-01-10T07:00:00Z"
    assert rows["ana"]["level_kg"] == pytest.approx(81.68, abs=0.05)
    assert rows["ana"]["probation"] == {"kind": "admin", "version": 7, "since": "2024-06-01T12:00:00Z", "accepted": 0}
    assert (rows["ana"]["kept_aside"], rows[MARKUP]["kept_aside"], rows[MARKUP]["probation"]) == (1, 0, None)
    assert (rows["only-aside"]["version"], rows["only-aside"]["level_kg"], rows["only-aside"]["kept_aside"]) == (None, None, 1)


def test_users_in_a_table_show_markup_as_it_is_and_escape_what_steers_a_terminal(path: Path) -> None:
    ran = run(path, "users", columns=150)
    assert ran.code == 0
    assert MARKUP in ran.out
    assert FAMILY in ran.out
    assert r"ev\x1b[31mil\u202e\n" in ran.out
    assert "\x1b" not in ran.out
    assert "no state yet" in ran.out
    assert "admin, 0 since" in ran.out


def test_users_of_an_empty_store(tmp_path: Path) -> None:
    Store.open(tmp_path / "s").close()
    assert run(tmp_path / "s", "users", "--json") == Ran(0, "", "")
    assert run(tmp_path / "s", "users") == Ran(0, "", "resetguard: no user is stored\n")


# show


def test_show_in_json_is_the_whole_state(path: Path) -> None:
    document = json.loads(run(path, "show", "ana", "--json").out)
    with Store.open(path) as store:
        loaded = store.load("ana")
    assert loaded is not None
    assert document["x"] == loaded.state.x.tolist()
    assert document["P"] == loaded.state.P.tolist()
    assert document["Q"] == [[0.05, 0.0], [0.0, 0.0001]]
    assert document["R"] == loaded.state.R
    assert document["sd"][0] ** 2 == pytest.approx(document["P"][0][0])
    assert document["attempt_id"] == loaded.author
    assert document["adaptation"]["factor"] == 0.0
    assert document["adaptation"]["active"] is True
    assert len(document["buffer"]) == 6
    assert document["buffer"][0] == {"at": "2024-01-05T07:00:00Z", "kg": 81.2}
    assert document["counters"] == {"x": 1, "P": 2, "buffer": 1, "adaptation": 2}
    assert (document["version"], document["newest_version"]) == (7, 7)
    assert (document["violations"], document["head_damaged"]) == ([], False)


def test_show_in_text_names_every_part(path: Path) -> None:
    ran = run(path, "show", "ana")
    assert ran.code == 0
    for part in ("level", "trend", "P", "Q", "R", "adaptation", "buffer", "probation", "kept aside", "7 of 7"):
        assert part in ran.out


def test_show_an_older_version_and_an_instant(path: Path) -> None:
    by_number = json.loads(run(path, "show", "ana", "--version", "3", "--json").out)
    assert (by_number["version"], by_number["newest_version"], by_number["probation"]) == (3, 7, None)
    for at in ("2024-01-07T07:00:00Z", "2024-01-07T08:00", "2024-01-07T09:00:00+02:00", "2024-01-08"):
        assert json.loads(run(path, "show", "ana", "--at", at, "--json").out) == by_number


@pytest.mark.parametrize(("arguments", "told"), [
    (["show", "ana", "--version", "99"], "versions 1 to 7 are readable"),
    (["show", "ana", "--version", "0"], "versions 1 to 7 are readable"),
    (["show", "ana", "--at", "2020-01-01"], "no version of 'ana' is of 2020-01-01T00:00:00Z or earlier"),
    (["show", "ana", "--at", "noon"], "'noon' is no time"),
    (["show", "ana", "--at", "2d", "--version", "1"], "not both"),
    (["show", "only-aside"], "no state yet"),
    (["show", "only-aside", "--at", "2024-02-01"], "none is stored"),
    (["show", "anna"], "did you mean 'ana'?"),
    (["show", "nobody at all"], "`resetguard users` lists"),
    (["show", ""], "must be 1 to 255 UTF-8 bytes"),
    (["history", "[bold]"], "nothing is stored for '[bold]'"),
    (["diff", "anna", "1", "2"], "did you mean"),
    (["diff", "ana", "1", "99"], "version 99"),
    (["quarantine", "list", "--user", "anna"], "did you mean"),
    (["audit", "list", "--user", "anna"], "did you mean"),
    (["audit", "list", "--since", "-2h"], "is no time"),
    (["audit", "list", "--since", "2024-13-01"], "is no time"),
    (["audit", "show", "not-hex"], "is no attempt id"),
    (["audit", "show", "ffffffff"], "no attempt in the audit log begins with"),
    (["audit", "show", "0" * 33], "is no attempt id"),
    (["audit", "show", ""], "more than one attempt"),
    (["audit", "verify", "--against", "12"], "is no head hash"),
])
def test_wrong_use_is_one_line_and_exit_code_2(path: Path, arguments: list[str], told: str) -> None:
    ran = run(path, *arguments)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("resetguard: error: ")
    assert ran.err.count("\n") == 1
    assert told in ran.err


@pytest.mark.parametrize("arguments", [
    ["nope"], ["show"], ["show", "ana", "--version", "x"], ["diff", "ana", "1"], ["audit", "list", "--limit", "0"],
    ["users", "--frob"],
])
def test_bad_options_are_exit_code_2(path: Path, arguments: list[str]) -> None:
    ran = run(path, *arguments)
    assert (ran.code, ran.out) == (2, "")
    assert "Usage: " in ran.err


def test_a_state_that_breaks_the_rules_is_shown_with_them(tmp_path: Path) -> None:
    """Made by a library whose limits were wider than those of the command."""
    with Store.open(tmp_path / "s", clock=FixedClock()) as store:
        Processor(ResetManager(store)).process(Measurement(user="u", at=T0, weight_kg=80.0))
        state = store.load("u").state.replace(R=99.0)  # type: ignore[union-attr]
        draft = store.draft()
        head = store.head("u")
        assert head is not None
        changed = msgspec.structs.replace(head, state=store.estimator.encode(state), rules="older")
        draft.put(keys.head(b"u"), codec.pack(changed))
        store.commit(draft)
    document = json.loads(run(tmp_path / "s", "show", "u", "--json").out)
    assert document["violations"][0]["path"] == "R"
    assert "BROKEN RULE" in run(tmp_path / "s", "show", "u").out
    assert run(tmp_path / "s", "users", "--json").lines[0]["nonconforming"] is True
    assert "rules in force" in run(tmp_path / "s", "users", columns=150).out


# history, diff


def test_history_lists_every_version(path: Path) -> None:
    rows = run(path, "history", "ana", "--json").lines
    assert [row["version"] for row in rows] == [1, 2, 3, 4, 5, 6, 7]
    assert [row["kind"] for row in rows] == ["initial", *["measurement"] * 5, "admin"]
    assert rows[1] == {"user": "ana", "version": 2, "kind": "measurement", "at": "2024-01-06T07:00:00Z", "kg": 81.3,
                       "admitted": 1, "image": False, "attempt_id": None}
    assert rows[-1]["attempt_id"] == attempts(path, "committed")[-1]
    ran = run(path, "history", "ana", columns=120)
    assert "2024-01-06 07:00:00  81.30" in ran.out
    assert rows[-1]["attempt_id"] in ran.out


def test_history_of_a_user_without_versions(path: Path) -> None:
    assert run(path, "history", "only-aside") == Ran(0, "", "resetguard: 'only-aside' has no version yet\n")


def test_diff_is_field_by_field(path: Path) -> None:
    document = json.loads(run(path, "diff", "ana", "6", "7", "--json").out)
    fields = {row["field"]: row for row in document["fields"]}
    assert (document["user"], document["v1"], document["v2"]) == ("ana", 6, 7)
    assert fields["P.0.0"]["difference"] == fields["P.0.0"]["v2"] - fields["P.0.0"]["v1"] > 0
    assert fields["x.level"]["difference"] == 0.0
    assert fields["counters.P"] == {"field": "counters.P", "unit": "resets", "v1": 1, "v2": 2, "difference": 1}
    assert fields["adaptation.reset_at"]["v2"] == "2024-06-01T12:00:00Z"
    assert fields["adaptation.reset_at"]["difference"] == pytest.approx((NOW - T0) / timedelta(days=1))
    back = {row["field"]: row for row in json.loads(run(path, "diff", "ana", "2", "1", "--json").out)["fields"]}
    assert back["at"] == {"field": "at", "unit": "days", "v1": "2024-01-06T07:00:00Z", "v2": "2024-01-05T07:00:00Z",
                          "difference": -1.0}
    text = run(path, "diff", "ana", "6", "7").out
    assert "version 6" in text
    assert re.search(r"R +0\.15 +0\.15 +=", text)


# quarantine


def test_quarantine_lists_rows_then_measurements(path: Path) -> None:
    rows = run(path, "quarantine", "list", "--json").lines
    assert [row["disposition"] for row in rows] == ["unreadable", "held", "quarantined"]
    assert (rows[0]["file"], rows[0]["line"], rows[0]["raw"]) == ("weights.csv", 3, "ana;[red]eighty")
    assert (rows[1]["user"], rows[1]["at"], rows[1]["value"]) == ("ana", "2024-01-12T07:00:00Z", "140.0")
    assert rows[2]["source"] == "[red]scale"
    assert all("source_id" not in row and row["reason"] for row in rows)
    text = run(path, "quarantine", "list", columns=200).out
    assert "[red]scale" in text
    assert "ana;[red]eighty" in text
    assert "weights.csv:3" in text


def test_quarantine_of_one_user(path: Path) -> None:
    assert [row["user"] for row in run(path, "quarantine", "list", "--user", "ana", "--json").lines] == ["ana"]
    assert run(path, "quarantine", "list", "--user", MARKUP) == Ran(0, "", "resetguard: nothing is kept aside\n")


# audit


def test_every_subcommand_but_export_has_json_as_the_readme_says() -> None:
    def leaves(name: str, command: Any) -> Iterator[tuple[str, Any]]:
        if not hasattr(command, "commands"):
            yield name, command
            return
        for part, inner in command.commands.items():
            yield from leaves(f"{name} {part}".strip(), inner)

    without = {name for name, command in leaves("", get_command(app)) if "--json" not in str([p.opts for p in command.params])}
    assert without == {"export"}
    assert "Every subcommand but `export`" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_audit_list_has_every_row_in_order(path: Path) -> None:
    rows = run(path, "audit", "list", "--json").lines
    with Store.open(path) as store:
        assert rows == [json.loads(json.dumps(row.as_dict())) for row in store.audit()]
    assert [row["seq"] for row in rows] == list(range(1, len(rows) + 1))
    assert [row["event"] for row in rows[-2:]] == ["reset.committed", "reset.rolled_back"]


def test_audit_list_is_filtered(path: Path) -> None:
    def seqs(*options: str) -> list[int]:
        return [row["seq"] for row in run(path, "audit", "list", "--json", *options).lines]

    assert seqs() == [1, 2, 3, 4, 5, 6]
    assert seqs("--limit", "2") == [5, 6]
    assert seqs("--user", "ana") == [1, 5, 6]
    assert seqs("--user", "ana", "--limit", "1") == [6]
    assert seqs("--outcome", "rolled-back") == seqs("--outcome", "rolled_back") == [6]
    assert seqs("--since", "2024-06-01T12:00:01Z") == seqs("--since", "2h") == []
    assert seqs("--since", "2024-06-01T12:00:00Z")[-2:] == [5, 6]
    assert seqs("--outcome", "refused", "--user", "ana") == []
    assert run(path, "audit", "list", "--since", "45m") == Ran(0, "", "resetguard: no row of the audit log matches\n")


def test_audit_list_table_shows_the_newest_fifty(tmp_path: Path) -> None:
    with Store.open(tmp_path / "s", durability="process", clock=FixedClock()) as store:
        configure_for_command(verbose=False)
        Processor(ResetManager(store)).process_batch(
            Measurement(user=f"u{number:02}", at=T0, weight_kg=80.0) for number in range(60))
    shown = run(tmp_path / "s", "audit", "list", columns=160)
    out = shown.out
    assert shown.err == "resetguard: 10 more, older than these; --limit N shows the newest N\n"
    assert run(tmp_path / "s", "audit", "list", "--since", "2023-01-01").err == shown.err
    assert run(tmp_path / "s", "audit", "list", "--limit", "5").err == ""
    assert run(tmp_path / "s", "audit", "list", "--user", "u07").err == ""
    assert run(tmp_path / "s", "audit", "list", "--json").err == ""
    assert len(re.findall("reset.committed", out)) == 50
    assert "u59" in out
    assert "u09" not in out
    assert len(run(tmp_path / "s", "audit", "list", "--json").lines) == 60
    assert len(run(tmp_path / "s", "audit", "list", "--json", "--limit", "55").lines) == 55


def test_audit_show_tells_the_whole_story(path: Path) -> None:
    attempt = attempts(path, "committed")[-1]
    text = run(path, "audit", "show", attempt, columns=120).out
    for part in ("reset.committed", attempt, "ops@example.org", "scale replaced", "replace covariance", "restart adaptation",
                 "version 6", "version 7", "valid"):
        assert part in text
    assert json.loads(run(path, "audit", "show", attempt, "--json").out)["attempt_id"] == attempt
    failed = attempts(path, "rolled_back")[0]
    text = run(path, "audit", "show", failed, columns=120).out
    assert "FAILED" in text
    assert "returned a NoneType, not a state" in text


def test_audit_show_takes_how_an_id_begins(path: Path) -> None:
    for attempt in attempts(path, "rolled_back"):
        for prefix in (attempt.replace("-", ""), attempt.upper(), attempt[:-1]):
            assert json.loads(run(path, "audit", "show", prefix, "--json").out)["attempt_id"] == attempt
    ran = run(path, "audit", "show", attempt[:2])
    assert ran.code == 2
    assert "more than one attempt begins with" in ran.err
    assert attempts(path, "committed")[0] in ran.err


def test_audit_verify_of_a_sound_log(path: Path) -> None:
    ran = run(path, "audit", "verify", "--json")
    document = json.loads(ran.out)
    assert ran.code == 0
    assert document == {"sound": True, "rows": 6, "seq": None, "problem": None, "hash": document["hash"]}
    assert run(path, "audit", "verify", "--against", document["hash"].upper()).code == 0
    assert run(path, "audit", "verify", "--against", GENESIS.hex()).code == 0
    text = run(path, "audit", "verify")
    assert document["hash"] in text.out
    assert "--against" in text.err


def test_audit_verify_finds_a_hash_that_is_gone(path: Path) -> None:
    ran = run(path, "audit", "verify", "--against", "ab" * 32)
    assert ran.code == 1
    assert "NOT SOUND" in ran.out
    assert json.loads(run(path, "audit", "verify", "--against", "ab" * 32, "--json").out)["sound"] is False


def test_audit_verify_finds_a_changed_row(tmp_path: Path) -> None:
    fill(tmp_path / "s")
    overwrite(tmp_path / "s", keys.audit(3))
    ran = run(tmp_path / "s", "audit", "verify", "--json")
    assert ran.code == 1
    assert (json.loads(ran.out)["seq"], json.loads(ran.out)["sound"]) == (3, False)
    ran = run(tmp_path / "s", "audit", "list", "--outcome", "committed")
    assert (ran.code, ran.err.count("\n")) == (3, 1)
    assert "reset.committed" in ran.out


def overwrite(path: Path, *damaged: bytes) -> None:
    """Turn the last byte of records over."""
    with Store.open(path) as store, store.engine.turn(), store.engine.write() as txn:
        for key in damaged:
            value = txn.get(key)
            assert value is not None
            txn.put(key, bytes((*value[:-1], value[-1] ^ 1)))


# damage


def test_a_damaged_head_is_shown_from_the_log(tmp_path: Path) -> None:
    fill(tmp_path / "s")
    overwrite(tmp_path / "s", keys.head(b"ana"))
    ran = run(tmp_path / "s", "show", "ana", "--json")
    assert (ran.code, json.loads(ran.out)["head_damaged"]) == (0, True)
    assert "nothing is lost" in ran.err
    ran = run(tmp_path / "s", "users", "--json")
    assert ran.code == 0
    assert [row["user"] for row in ran.lines if row["head_damaged"]] == ["ana"]


def test_a_user_that_cannot_be_read_hides_no_other_one(tmp_path: Path) -> None:
    fill(tmp_path / "s")
    overwrite(tmp_path / "s", keys.head(b"ana"), *(keys.version(b"ana", version) for version in range(1, 8)))
    ran = run(tmp_path / "s", "users", "--json")
    assert ran.code == 3
    assert [row["user"] for row in ran.lines] == USERS
    assert [row["user"] for row in ran.lines if row["error"]] == ["ana"]
    assert "1 of the users cannot be read" in ran.err
    assert run(tmp_path / "s", "users").code == 3
    assert run(tmp_path / "s", "show", "ana").code == 3


def test_history_shows_what_stands_before_damage(tmp_path: Path) -> None:
    fill(tmp_path / "s")
    overwrite(tmp_path / "s", keys.version(b"ana", 4))
    ran = run(tmp_path / "s", "history", "ana")
    assert ran.code == 3
    assert "measurement" in ran.out
    assert "fails its checksum" in ran.err


# stores that are not there


@pytest.mark.parametrize("arguments", [
    ["users"], ["show", "u"], ["history", "u"], ["diff", "u", "1", "2"], ["quarantine", "list"], ["audit", "list"],
    ["audit", "show", "0"], ["audit", "verify"],
])
@pytest.mark.parametrize("empty", [False, True])
def test_reading_makes_no_store(tmp_path: Path, arguments: list[str], empty: bool) -> None:
    missing = tmp_path / "s"
    if empty:
        missing.mkdir()
    ran = run(missing, *arguments)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == f"resetguard: error: no store at {missing}; `resetguard process FILE --store {missing}` makes one\n"
    assert sorted(tmp_path.rglob("*")) == ([missing] if empty else [])


def test_what_is_no_store_is_exit_code_3(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert run(tmp_path / "file", "users").code == 3
    ran = run(tmp_path, "users")
    assert ran.code == 3
    assert "is no store" in ran.err


def test_the_store_may_come_from_the_environment(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(None, "users").code == 2
    monkeypatch.setenv("RESETGUARD_STORE", str(path))
    assert run(None, "users", "--json") == run(path, "users", "--json")


# all of them


@pytest.mark.parametrize("arguments", [
    ["users"], ["show", "ana"], ["history", "ana"], ["diff", "ana", "1", "7"], ["quarantine", "list"], ["audit", "list"],
    ["audit", "verify"],
])
def test_a_narrow_terminal_loses_nothing(path: Path, arguments: list[str]) -> None:
    """At 40 columns no line is longer, and every character of the wide output is still there."""
    narrow, wide = run(path, *arguments, columns=40).out, run(path, *arguments, columns=200).out
    assert max(len(line.rstrip()) for line in narrow.splitlines()) <= 40
    assert "…" not in narrow
    cells = {flat(cell) for line in wide.splitlines()[1:] for cell in re.split(r"\s{2,}", line)} - {"-", "", "="}
    assert [cell for cell in cells if not cell.startswith("─") and cell not in flat(narrow)] == []


def test_the_window_is_the_terminal_s(path: Path) -> None:
    for columns in ("40", "150"):
        assert child(path, "history", "ana", COLUMNS=columns).out == run(path, "history", "ana", columns=int(columns)).out


def test_colour_is_for_those_who_want_it(path: Path) -> None:
    colour = re.compile(r"\x1b\[[0-9;]*3[0-9]m")
    assert "\x1b" not in child(path, "show", "ana").out
    assert colour.search(child(path, "show", "ana", FORCE_COLOR="1").out)
    assert not colour.search(child(path, "show", "ana", FORCE_COLOR="1", NO_COLOR="1").out)


@pytest.mark.parametrize("arguments", [
    ["users"], ["show", "ana"], ["history", "ana"], ["diff", "ana", "1", "2"], ["quarantine", "list"], ["audit", "verify"],
])
def test_json_names_what_depends_on_the_run(path: Path, tmp_path: Path, arguments: list[str]) -> None:
    """Two stores from the same input, clock and options differ in fields of the agreed names only."""
    fill(tmp_path / "s")

    def cleaned(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: cleaned(item) for name, item in value.items() if name not in RUN_DEPENDENT}
        return [cleaned(item) for item in value] if isinstance(value, list) else value

    first, second = run(path, *arguments, "--json").lines, run(tmp_path / "s", *arguments, "--json").lines
    assert cleaned(first) == cleaned(second)
    assert "author" not in names(first)


def test_events_reach_neither_stream_unless_asked_for(tmp_path: Path) -> None:
    """Opening a store to write settles what a dead process left, which is an event."""
    path, rows = tmp_path / "s", tmp_path / "rows.csv"
    fill(path)
    rows.write_text("user_id,timestamp,weight,unit\nnew,2024-01-05T07:00:00Z,80.0,kg\n", encoding="utf-8")
    died = ("import os, sys\nfrom statemachine import ResetManager, Store\nstore = Store.open(sys.argv[1])\n"
            "ResetManager(store).perform_reset('ana', reason='r', actor='a', operations=[('die', lambda s: os._exit(9))])\n")
    for verbose in ([], ["--verbose"]):
        subprocess.run([sys.executable, "-c", died, str(path)], env=environment(), check=False, timeout=60)
        ran = child(path, *verbose, "process", str(rows), "--json")
        assert len(ran.lines) == 1
        assert [json.loads(line)["event"] for line in ran.err.splitlines()] == (["reset.interrupted"] if verbose else [])


def test_help_has_an_example_everywhere() -> None:
    for command in ("", *COMMANDS):
        for flag in ("-h", "--help"):
            ran = run(None, *command.split(), flag)
            assert ran.code == 0, command
            assert "Example: resetguard" in ran.out, command


def test_version_names_the_distribution_and_the_schema() -> None:
    ran = run(None, "--version")
    assert ran.code == 0
    assert re.fullmatch(r"resetguard \S.*, disk schema 2\n", ran.out)


def test_no_command_is_wrong_use() -> None:
    assert run(None).code == 2


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_reader_that_goes_away_is_no_error_message(path: Path, form: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    ran = subprocess.run([sys.executable, "-m", "statemachine.cli", "history", "ana", *form, "--store", str(path)],
                         stdout=writing, stderr=subprocess.PIPE, env=environment(), check=False, timeout=60)
    os.close(writing)
    assert (ran.returncode, ran.stderr) == (141, b"")


@pytest.mark.parametrize("form", ["", "--json"])
def test_streams_that_are_closed_or_ascii_are_survived(path: Path, form: str) -> None:
    command = f'"{sys.executable}" -m statemachine.cli users {form} --store "{path}"'
    for redirected in (">&-", "2>&-", ">&- 2>&-"):
        assert subprocess.run(["bash", "-c", f"{command} {redirected}"], env=environment(), check=False, capture_output=True,
                              timeout=60).returncode == 0
    ran = child(path, "users", *form.split(), PYTHONIOENCODING="ascii", PYTHONUTF8="0", COLUMNS="150")
    assert ran.code == 0
    assert ("👩" in ran.out) == bool(form)
    assert "\\xb1" in ran.out or form
    assert run(path, "audit", "verify").code == 0
