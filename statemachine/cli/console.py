"""The one place where the command meets its streams: results on standard output, messages on standard error, exit codes.

`--json` is one JSON document, or one object a line for a list, always UTF-8 and always JSON: a number that JSON cannot
hold is null.  Everything else is for people: tables that fold, and in a window too narrow for a table one block a row.
Text that came from outside never reaches a terminal raw: rich's markup is off for it and control characters are escaped.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import os
import sys
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple

import msgspec
import typer
from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from statemachine.cli import alerting
from statemachine.errors import (
    BreakerOpen,
    ConflictError,
    InvalidInput,
    MutationFailed,
    ResetError,
    ResetValidationError,
    UserUnknown,
    VersionPruned,
)
from statemachine.state import user_key
from statemachine.store import DURABILITIES, Durability, Store, keys, pages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from rich.console import JustifyMethod

DONE: Final = 0
FINDINGS: Final = 1
WRONG_USE: Final = 2
STORE_TROUBLE: Final = 3
INTERRUPTED: Final = 130
PIPE_CLOSED: Final = 141
"""What a shell reports of any program whose reader has gone (128 + SIGPIPE): it did not say all it had to say."""

ROWS_A_TABLE_MAX: Final = 500
GAP_CHARS: Final = 2
NOTHING: Final = "-"
GLOBAL: Final = "(global)"
USERS_COMPARED_MAX: Final = 10_000
_JOINERS: Final = frozenset("\u200c\u200d")  # between the parts of an emoji, or of words in some scripts


class _Console(Console):
    """Lets a closed pipe be told to `command`; rich's own answer is to exit with 1."""

    def on_broken_pipe(self) -> None:
        """Raise it again."""
        raise BrokenPipeError


OUT: Final = _Console(highlight=False, emoji=False)
ERR: Final = _Console(stderr=True, highlight=False, emoji=False)

STORE: Final = typer.Option("--store", metavar="DIR", envvar="RESETGUARD_STORE", help="Directory of the store.")
JSON: Final = typer.Option("--json", help="Print JSON, with instants in UTC, instead of text for people.")


StoreOption = Annotated[Path, STORE]
JsonOption = Annotated[bool, JSON]
ActorOption = Annotated[str, typer.Option("--actor", show_default=False, help="Who does this, for the audit log.")]
ReasonOption = Annotated[str, typer.Option("--reason", show_default=False, help="Why, for the audit log.")]


class Column(NamedTuple):
    """A column for people: its title, and what it shows of a row.

    `fold`: to how few characters it may be folded, 0 for never.  `right`: a figure.  `spare`: left out where the others
    fill the window.
    """

    title: str
    show: Callable[[dict[str, Any]], object]
    right: bool = False
    fold: int = 0
    spare: bool = False


def plain(text: str) -> str:
    """The text with everything escaped that could steer a terminal or reorder its line."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in _JOINERS else c.encode("unicode_escape").decode() for c in text)


def said(value: object) -> Text:
    """A value from outside, as rich may print it; nothing is shown as a dash."""
    return Text(plain(NOTHING if value is None or value == "" else str(value)), overflow="fold")


def say(message: str) -> None:
    """One line on standard error."""
    ERR.print(Text(plain(f"resetguard: {message}")), soft_wrap=True)


def print_json(document: object) -> None:
    """One JSON document, or one line of a list, on standard output."""
    if sys.stdout is not None:
        sys.stdout.flush()
        sys.stdout.buffer.write(msgspec.json.encode(document) + b"\n")


def exit_code(error: ResetError) -> int:
    """What the command exits with: 1 for a refusal by the rules or the breaker, 2 for wrong use, 3 for trouble with the store."""
    if isinstance(error, InvalidInput | UserUnknown | VersionPruned):
        return WRONG_USE
    if isinstance(error, MutationFailed | ResetValidationError | ConflictError | BreakerOpen):
        return FINDINGS
    return STORE_TROUBLE


@contextlib.contextmanager
def command() -> Iterator[None]:
    """Around a command's body: what it raises on purpose becomes one line on standard error and an exit code.

    So do Ctrl-C and trouble with standard output.  A bug still shows its traceback.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            yield
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except ResetError as error:
        say(f"error: {error}")
        raise typer.Exit(exit_code(error)) from error
    except KeyboardInterrupt:
        say("interrupted")
        raise typer.Exit(INTERRUPTED) from None
    except BrokenPipeError:
        _mute()
        raise typer.Exit(PIPE_CLOSED) from None
    except OSError as error:
        _mute()
        say(f"error: {error}")
        raise typer.Exit(STORE_TROUBLE) from error


def _mute() -> None:
    """Send what is still buffered to nowhere, or the interpreter would fail on it once more at its end."""
    if sys.stdout is None:  # it was closed at the start, and its descriptor may be a file of the store's by now
        return
    with contextlib.suppress(OSError, ValueError):
        descriptor = sys.stdout.fileno()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, descriptor)
        os.close(nowhere)


@contextlib.contextmanager
def reading(directory: Path) -> Iterator[Store]:
    """Open a store that is there, to look at it; InvalidInput, and nothing is made, where there is none.

    The hooks that the command was given are told of what is alarming in it.
    """
    yield from _opened(directory, readonly=True)


@contextlib.contextmanager
def writing(directory: Path) -> Iterator[Store]:
    """Open a store that is there, to change it; InvalidInput, and nothing is made, where there is none.

    The hooks that the command was given are told of what is alarming in it.
    """
    yield from _opened(directory, readonly=False)


def _opened(directory: Path, *, readonly: bool) -> Iterator[Store]:
    _require_store(directory)
    with alerting.attached(say) as attach, Store.open(directory, readonly=readonly) as store:
        attach(store)
        yield store


def _require_store(directory: Path) -> None:
    try:
        there = any(directory.iterdir())
    except FileNotFoundError:
        there = False
    except OSError:
        there = True  # Store.open says what is wrong with it
    if not there:
        message = f"no store at {directory}; `resetguard process FILE --store {directory}` makes one"
        raise InvalidInput(message)


def require_user(store: Store, user: str) -> None:
    """Raise UserUnknown, naming users that look alike, unless something is stored of the user.

    StoreCorrupt, where a page of the user's would end the process that comes to it.
    """
    key = user_key(user)
    pages.check(store.engine, key + b"\0", key + b"\1")
    if not store.knows(user):
        alike = difflib.get_close_matches(user, islice(store.users_from(keys.FIRST_USER), USERS_COMPARED_MAX), n=3)
        hint = f"; did you mean {' or '.join(map(repr, alike))}?" if alike else "; `resetguard users` lists those there are"
        message = f"nothing is stored for {user!r}{hint}"
        raise UserUnknown(message, user=user)


def durability(name: str) -> Durability:
    """The durability of that name; InvalidInput where there is none."""
    for known in DURABILITIES:
        if name == known:
            return known
    message = f"durability {name!r} is not one of {', '.join(DURABILITIES)}"
    raise InvalidInput(message)


def print_rows(rows: Iterable[dict[str, Any]], columns: Sequence[Column], *, json: bool, empty: str) -> None:
    """A list: JSON lines of the rows as they are, or tables of what the columns show; `empty` is said where there is nothing.

    A store that turns out to be damaged half-way still has what was read before it shown.
    """
    if json:
        for row in rows:
            print_json(row)
        return
    page: Sequence[dict[str, Any]] = ()
    for page in _pages(rows):
        _print_page([[said(column.show(row)) for column in columns] for row in page], columns)
    if not page:
        say(empty)


def _pages(rows: Iterable[dict[str, Any]]) -> Iterator[Sequence[dict[str, Any]]]:
    page: list[dict[str, Any]] = []
    try:
        for row in rows:
            page.append(row)
            if len(page) == ROWS_A_TABLE_MAX:
                yield page
                page = []
    except ResetError:
        if page:
            yield page
        raise
    if page:
        yield page


def _print_page(page: list[list[Text]], columns: Sequence[Column]) -> None:
    """A table of what is not empty, without its spare columns where it must be; else one block a row."""
    used = [n for n in range(len(columns)) if any(row[n].plain != NOTHING for row in page)]
    widths = _widths(page, columns, used) or _widths(page, columns, [n for n in used if not columns[n].spare])
    if widths is None:
        for row in page:
            print_record((columns[n].title, row[n]) for n in used if row[n].plain != NOTHING)
            OUT.print()
        return
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, GAP_CHARS - 1, 0, 0))
    for n, width in widths.items():
        side: JustifyMethod = "right" if columns[n].right else "left"
        table.add_column(Text(columns[n].title), justify=side, overflow="fold", width=width)
    for row in page:
        table.add_row(*(row[n] for n in widths))
    OUT.print(table)


def _widths(page: list[list[Text]], columns: Sequence[Column], shown: Sequence[int]) -> dict[int, int] | None:
    """How wide each column may be, those folded that have most to spare; None where the window is too narrow.

    rich's own way of narrowing a table takes no account of what may be folded, and crops the rest.
    """
    widths = {n: max(cell_len(columns[n].title), *(row[n].cell_len for row in page)) for n in shown}
    spare = {n: max(width - columns[n].fold, 0) if columns[n].fold else 0 for n, width in widths.items()}
    excess = sum(widths.values()) + (len(shown) - 1) * GAP_CHARS - OUT.width
    if excess > sum(spare.values()):
        return None
    for _ in range(excess):
        widest = max(shown, key=spare.__getitem__)
        widths[widest] -= 1
        spare[widest] -= 1
    return widths


def print_record(pairs: Iterable[tuple[str, object]], title: str = "") -> None:
    """Names and values, one a line, under a title."""
    if title:
        OUT.print(Text(plain(title), style="bold", overflow="fold"))
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True, style="cyan")
    grid.add_column(overflow="fold")
    for name, value in pairs:
        grid.add_row(Text(name), value if isinstance(value, Text) else said(value))
    OUT.print(Padding(grid, (0, 0, 0, 2 if title else 0), expand=False))
