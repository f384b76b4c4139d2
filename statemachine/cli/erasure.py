"""The commands about what is held of a person: `export`, `forget`, and `audit prune` for the log of all."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from statemachine import erasure
from statemachine.cli import console
from statemachine.cli.auditing import audit
from statemachine.cli.instants import instant_us
from statemachine.clock import iso
from statemachine.errors import InvalidInput, ResetError, UserUnknown
from statemachine.store import compaction
from statemachine.store import engine as door

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import BinaryIO

    from statemachine.store import Store

UserArgument = Annotated[str, typer.Argument(metavar="USER", help="The user's id.", show_default=False)]


def register(app: typer.Typer) -> None:
    """Make the commands here part of `app`, and `prune` one of `audit`."""
    app.command()(export)
    app.command()(forget)
    audit.command("prune")(prune)


def export(
    user: UserArgument, store: console.StoreOption,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", show_default=False, help=(
        "Write to a new file that only you can read, instead of standard output."))] = None,
) -> None:
    """Everything held about a user, as JSON lines: state, versions, measurements, rows kept aside, breaker, audit rows.

    Example: resetguard export u1 --store ./state -o u1.jsonl
    """
    with console.command(), console.reading(store) as opened:
        records = erasure.export_user(opened, user)
        _require_held(opened, user)
        first = next(records)
        damaged = count = 0
        with _written(output) as line:
            for record in _again(first, records):
                line(record)
                count += 1
                damaged += record["record"] == "damaged"
        if output is not None:
            console.say(f"{count} records written to {output}")
        if damaged:
            console.say(f"{damaged} of the records are damaged; they are given as they are stored")
            raise typer.Exit(console.FINDINGS)


def _again(first: dict[str, object], others: Iterator[dict[str, object]]) -> Iterator[dict[str, object]]:
    yield first
    yield from others


@contextlib.contextmanager
def _written(output: Path | None) -> Iterator[Callable[[object], None]]:
    """What writes one line; a file that could not be finished is removed."""
    if output is None:
        yield console.print_json
        return
    try:
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        message = f"{output} is there already; name a new file"
        raise InvalidInput(message) from error
    except OSError as error:
        message = f"{output} cannot be made: {error.strerror}"
        raise InvalidInput(message) from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield lambda record: _put(file, record)
    except BaseException:
        output.unlink(missing_ok=True)
        raise


def _put(file: BinaryIO, record: object) -> None:
    file.write(msgspec.json.encode(record) + b"\n")


def forget(  # noqa: PLR0913 - one parameter an option of the command
    user: UserArgument, store: console.StoreOption, actor: console.ActorOption, reason: console.ReasonOption,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    anew: Annotated[bool, typer.Option("--compact/--no-compact", help=(
        "Make the store's file anew afterwards, so that no old byte is left in it. Without it, run `compact` later."))] = True,
    json: console.JsonOption = False,
) -> None:
    """Erase a user for good: states, measurements, rows kept aside, and what the audit log says of the person.

    The rows of the audit log stay in the chain without their personal part, and one more says who erased them and why.
    Write no user id into --reason. Then the file is made anew, for which no other process may have the store open: where
    one has, old bytes stay in pages that are no longer used, and the exit code is 1. Backups and exports are not reached.

    Example: resetguard forget u1 --store ./state --actor dpo@example.org --reason "request 17"
    """
    with console.command():
        with console.writing(store) as opened:
            _require_held(opened, user)
            if not yes:
                _confirm(user)
            done = erasure.forget(opened, user, actor, reason)
        trouble, size = _made_anew(store, actor, reason) if anew else (None, None)
        if json:
            residue = None if trouble is None else trouble.kind
            console.print_json({"user": user, "records": done.records, "rows": done.rows, "unread": done.unread,
                                "attempt_id": done.attempt_id, "bytes": size, "residue": residue})
        else:
            console.print_record((("forgotten", user), ("records erased", done.records),
                                  ("audit rows without their personal part", done.rows),
                                  ("the store's file", "as it was" if size is None else f"made anew, {size:,} bytes"),
                                  ("attempt", done.attempt_id)))
        if size is None:
            _tell_residue(store)
        if trouble is not None:
            console.say(f"that was tried, and could not be done now: {trouble}")
        if done.unread:
            console.say(f"{done.unread} unreadable rows are damaged; whether one of them names {user!r} cannot be told")
        if done.unread or trouble is not None:
            raise typer.Exit(console.FINDINGS)


def _made_anew(store: Path, actor: str, reason: str) -> tuple[ResetError | None, int | None]:
    """Why the file could not be made anew, or else its size."""
    try:
        return None, compaction.compact(store, actor, reason).bytes_after
    except ResetError as error:
        return error, None
    except KeyboardInterrupt:
        _tell_residue(store)
        raise


def _tell_residue(store: Path) -> None:
    console.say(f"the user is in no record any more, but old bytes are still in unused parts of {store / door.DATA}; "
                f"`resetguard compact {store}` removes them")


def _require_held(store: Store, user: str) -> None:
    """Raise UserUnknown, naming users that look alike, unless anything is held: nobody is asked about nobody."""
    try:
        next(erasure.export_user(store, user))
    except UserUnknown:
        console.require_user(store, user)
        raise


def _confirm(user: str) -> None:
    if sys.stdin is None or not sys.stdin.isatty():
        message = "this cannot be undone, and nobody is there to ask: give --yes"
        raise InvalidInput(message)
    if not typer.confirm(f"Erase everything held about {console.plain(repr(user))}? This cannot be undone.", err=True):
        message = "nothing was erased"
        raise InvalidInput(message)


def prune(
    store: console.StoreOption,
    before: Annotated[str, typer.Option("--before", metavar="TIME", show_default=False, help=(
        "Rows written before this: ISO 8601 (UTC unless it says), a date for its midnight, or 2h, 3d, 45m ago."))],
    actor: console.ActorOption, reason: console.ReasonOption, json: console.JsonOption = False,
) -> None:
    """Erase what old rows of the audit log say of persons; the rows stay in the chain, and `audit verify` still passes.

    Example: resetguard audit prune --store ./state --before 2025-01-01 --actor ops@example.org --reason "kept one year"
    """
    with console.command(), console.writing(store) as opened:
        before_us = instant_us(before, opened.clock.now_us())
        done = erasure.prune_audit(opened, before_us, actor, reason)
        if json:
            console.print_json({"before": iso(before_us), "rows": done.rows, "seq": done.through, "commits": done.commits})
        elif done.rows:
            console.print_record((("pruned", f"{done.rows} rows, up to row {done.through}"), ("written before", iso(before_us))))
        else:
            console.say(f"no row written before {iso(before_us)} has anything left to erase")
