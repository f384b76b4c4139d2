"""What the command's one place for output does with errors, with tables, with text from outside, and with instants."""

from __future__ import annotations

import re
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import typer

from statemachine.cli import console
from statemachine.cli.instants import instant_us
from statemachine.clock import to_us
from statemachine.errors import (
    BreakerOpen,
    ConflictError,
    InvalidInput,
    InvariantViolation,
    MutationFailed,
    ResetError,
    ResetValidationError,
    StoreBusy,
    StoreCorrupt,
    StoreFull,
    UserUnknown,
    VersionPruned,
)

NOW = datetime(2024, 6, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(("error", "code"), [
    (InvalidInput("x"), 2), (UserUnknown("x"), 2), (VersionPruned("x", first=1, last=2), 2),
    (MutationFailed("x", operation="o"), 1), (ResetValidationError("x", operation="o", violations=()), 1),
    (StoreCorrupt("x"), 3), (StoreFull("x"), 3), (StoreBusy("x"), 3), (ConflictError("x"), 1),
    (BreakerOpen("x", scope="user", reason="open"), 1), (InvariantViolation("x"), 3),
])
def test_each_error_is_one_line_and_an_exit_code(error: ResetError, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    error.args = ("line one\nline [bold]two[/bold] \x1b[2J",)
    with pytest.raises(typer.Exit) as ended, console.command():
        raise error
    assert ended.value.exit_code == code
    assert capsys.readouterr() == ("", "resetguard: error: line one\\nline [bold]two[/bold] \\x1b[2J\n")


@pytest.mark.parametrize(("error", "code", "told"), [
    (KeyboardInterrupt(), 130, "resetguard: interrupted\n"), (BrokenPipeError(), 141, ""),
    (OSError(28, "No space left on device"), 3, "resetguard: error: [Errno 28] No space left on device\n"),
])
def test_interrupts_and_closed_pipes_leave_no_traceback(
    error: BaseException, code: int, told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(console, "_mute", lambda: None)
    with pytest.raises(typer.Exit) as ended, console.command():
        raise error
    assert (ended.value.exit_code, capsys.readouterr()) == (code, ("", told))


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError), console.command():
        raise ZeroDivisionError


def test_numbers_that_json_cannot_hold_are_null(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    console.print_json({"a": float("nan"), "b": float("inf"), "c": "é"})
    sys.stdout.flush()
    assert capfdbinary.readouterr().out == '{"a":null,"b":null,"c":"é"}\n'.encode()


def test_durability_is_one_of_three() -> None:
    assert console.durability("group") == "group"
    with pytest.raises(InvalidInput, match="is not one of each, group, process"):
        console.durability("fast")


@pytest.mark.parametrize(("text", "expected"), [
    ("2h", NOW - timedelta(hours=2)), ("3d", NOW - timedelta(days=3)), ("45m", NOW - timedelta(minutes=45)),
    ("30 s", NOW - timedelta(seconds=30)), ("1w", NOW - timedelta(weeks=1)), ("2024-01-31", datetime(2024, 1, 31, tzinfo=UTC)),
    ("2024-01-31T07:00:00Z", datetime(2024, 1, 31, 7, tzinfo=UTC)), ("2024-01-31T07:00", datetime(2024, 1, 31, 7, tzinfo=UTC)),
    (" 2024-01-31T07:00:00+01:00 ", datetime(2024, 1, 31, 6, tzinfo=UTC)),
])
def test_instants_as_people_give_them(text: str, expected: datetime) -> None:
    assert instant_us(text, to_us(NOW)) == to_us(expected)


@pytest.mark.parametrize("text", ["", "2", "h", "-1h", "1y", "now", "2024-02-30", "24:00", "\0", "٣d"])
def test_other_instants_are_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="is no time"):
        instant_us(text, to_us(NOW))


@pytest.mark.parametrize("columns", [40, 60, 72, 80, 100])
def test_a_table_folds_without_losing_a_character(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: int,
) -> None:
    monkeypatch.setattr(console.OUT, "_width", columns)
    monkeypatch.setattr(console.OUT, "_height", 25)
    rows: list[dict[str, Any]] = [{"a": "q" * 36, "b": "one two three four five six seven eight", "c": 12345}]
    layout = (console.Column("a", lambda row: row["a"], fold=12), console.Column("b", lambda row: row["b"], fold=20),
              console.Column("c", lambda row: row["c"], right=True))
    console.print_rows(rows, layout, json=False, empty="")
    out = capsys.readouterr().out
    assert max(len(line.rstrip()) for line in out.splitlines()) <= columns
    assert out.count("q") == 36
    assert [word for word in (*rows[0]["b"].split(), "12345") if word not in re.sub(r"\s", "", out)] == []


@pytest.mark.parametrize(("text", "shown"), [
    ("plain", "plain"), ("[bold]x[/bold] :smile:", "[bold]x[/bold] :smile:"), ("a\x1b[2Jb", r"a\x1b[2Jb"),
    ("a\tb\nc", r"a\tb\nc"), ("\u202eabc", r"\u202eabc"), ("\ud800", r"\ud800"), ("👩\u200d👧", "👩\u200d👧"),
    ("\x9b31m", r"\x9b31m"),
])
def test_text_from_outside_steers_nothing(text: str, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert console.plain(text) == shown
    console.OUT.print(console.said(text))
    assert capsys.readouterr().out == f"{shown}\n"


def test_a_long_list_is_several_tables(capsys: pytest.CaptureFixture[str]) -> None:
    rows = ({"n": number} for number in range(2 * console.ROWS_A_TABLE_MAX + 1))
    console.print_rows(rows, (console.Column("number", lambda row: row["n"]),), json=False, empty="none")
    out = capsys.readouterr().out
    assert out.count("number") == 3
    assert [line.strip() for line in out.splitlines() if line.strip().isdigit()] == [str(n) for n in range(1001)]
