"""The commands for a store's long life: `compact` and `migrate`, which make its file anew, and `quarantine prune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from statemachine import codec, retention
from statemachine.cli import console, inspect
from statemachine.cli.instants import instant_us
from statemachine.clock import iso
from statemachine.errors import InvalidInput
from statemachine.store import compaction

Directory = Annotated[Path | None, typer.Argument(metavar="DIR", show_default=False, help="Directory of the store.")]
StoreToo = Annotated[Path | None, typer.Option("--store", metavar="DIR", envvar="RESETGUARD_STORE", show_default=False,
                                               help="The same, as the other commands take it.")]


def register(app: typer.Typer) -> None:
    """Make the commands here part of `app`."""
    app.command()(compact)
    app.command()(migrate)
    inspect.quarantine.command("prune")(quarantine_prune)


def one_of(directory: Path | None, store: Path | None) -> Path:
    """The store's directory, given as the argument or by --store; InvalidInput where it is in neither."""
    found = directory or store
    if found is None:
        message = "name the directory of the store"
        raise InvalidInput(message)
    return found


def compact(
    actor: console.ActorOption, reason: console.ReasonOption, directory: Directory = None, store: StoreToo = None,
    json: console.JsonOption = False,
) -> None:
    """Make a store's file anew, record by record: free pages are given back, and no byte of what was erased is left.

    No other process may have the store open, not even to read it. A second file needs room on the disk for a while.

    Example: resetguard compact ./state --actor ops@example.org --reason "after the yearly pruning"
    """
    with console.command():
        done = compaction.compact(one_of(directory, store), actor, reason)
        if json:
            console.print_json(_document(done))
        else:
            console.print_record(_lines(done))
        _tell_damage(done)


def _document(done: compaction.Compacted) -> dict[str, Any]:
    return {"path": str(done.path), "store_id": done.store_id, "bytes_before": done.bytes_before,
            "bytes_after": done.bytes_after, "records": done.records, "damaged": done.damaged, "seq": done.seq,
            "hash": done.hash, "attempt_id": done.attempt_id}


def _lines(done: compaction.Compacted) -> tuple[tuple[str, object], ...]:
    return (("store", done.path), ("size before", f"{done.bytes_before:,} bytes"), ("size now", f"{done.bytes_after:,} bytes"),
            ("records", f"{done.records:,}, all read back"),
            ("audit log", f"{done.seq} rows, each follows from the one before it"), ("head hash", done.hash))


def _tell_damage(done: compaction.Compacted) -> None:
    if done.damaged:
        console.say(f"{done.damaged} records are damaged and were kept as they are; `resetguard doctor` names them")
        raise typer.Exit(console.FINDINGS)


def migrate(  # noqa: PLR0913 - one parameter an option of the command
    actor: Annotated[str | None, typer.Option("--actor", help="Who does this, for the audit log.", show_default=False)] = None,
    reason: Annotated[str | None, typer.Option("--reason", help="Why, for the audit log.", show_default=False)] = None,
    directory: Directory = None, store: StoreToo = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count; others may use the store meanwhile.")] = False,
    json: console.JsonOption = False,
) -> None:
    """Raise every record of an older schema to the one of this program, in a file made anew as by `compact`.

    Older schemas are read all the same; --actor and --reason are needed for all but --dry-run.

    Example: resetguard migrate ./state --actor ops@example.org --reason "release 2"
    """
    with console.command():
        path = one_of(directory, store)
        if dry_run:
            with console.reading(path) as opened:
                before = compaction.schemas(opened.engine)
            found = compaction.Migrated(before, before, None)
        elif actor is None or reason is None:
            message = "give --actor and --reason, for the audit log"
            raise InvalidInput(message)
        else:
            found = compaction.migrate(path, actor, reason)
        if json:
            console.print_json({"schema": codec.SCHEMA, "before": found.before, "after": found.after,
                                "done": None if found.done is None else _document(found.done)})
        else:
            _print_counts(found, dry_run=dry_run)
        if found.done is not None:
            _tell_damage(found.done)


def _print_counts(found: compaction.Migrated, *, dry_run: bool) -> None:
    def text(counts: dict[int, int]) -> str:
        return ", ".join(f"{count:,} of schema {schema}" for schema, count in counts.items())

    rows = [{"kind": kind, "before": text(counts), "after": text(found.after[kind])} for kind, counts in found.before.items()]
    columns = [console.Column("records", lambda row: row["kind"]), console.Column("before", lambda row: row["before"], fold=20)]
    if found.done is not None:
        columns.append(console.Column("now", lambda row: row["after"], fold=20))
    console.print_rows(rows, columns, json=False, empty="the store is empty")
    if found.done is not None:
        console.OUT.print()
        console.print_record(_lines(found.done))
    elif compaction.is_older(found.before):
        console.say("nothing was changed; without --dry-run the older records are raised")
    else:
        console.say(f"every record is of schema {codec.SCHEMA} already: nothing {'is' if dry_run else 'was'} to be done")


def quarantine_prune(  # noqa: PLR0913 - one parameter an option of the command
    before: Annotated[str, typer.Option("--before", metavar="TIME", show_default=False, help=(
        "What is of before this: ISO 8601 (UTC unless it says), a date for its midnight, or 2h, 3d ago."))],
    actor: console.ActorOption, reason: console.ReasonOption, directory: Directory = None, store: StoreToo = None,
    user: Annotated[str | None, typer.Option(help="This user alone.", show_default=False)] = None,
    undated: Annotated[bool, typer.Option("--undated", help=(
        "Also unreadable rows of streams, of which nobody knows when they came."))] = False,
    json: console.JsonOption = False,
) -> None:
    """Drop the content of what was kept aside long ago: values, sources, reasons. That it was seen, and is known, stays.

    A measurement is as old as its own instant, an unreadable row as the first run over its file. May be stopped and run again.

    Example: resetguard quarantine prune ./state --before 2025-01-01 --actor ops@example.org --reason "kept one year"
    """
    with console.command(), console.writing(one_of(directory, store)) as opened:
        before_us = instant_us(before, opened.clock.now_us())
        if user is not None:
            console.require_user(opened, user)
        done = retention.prune_quarantine(opened, before_us, actor, reason, user=user, undated=undated)
        if json:
            console.print_json({"before": iso(before_us), **done._asdict()})
        elif done.commits:
            console.print_record((
                ("pruned", f"{done.measurements} measurements of {done.users} users, {done.unreadable} unreadable rows"),
                ("of before", iso(before_us)), ("evidence until now", done.held)))
        else:
            console.say(f"nothing kept aside of before {iso(before_us)} has any content left")
        if done.undated:
            console.say(f"{done.undated} unreadable rows of streams have no age and were left; --undated prunes them too")
        if done.damaged:
            console.say(f"{done.damaged} records are damaged and were left; `resetguard doctor` names them")
            raise typer.Exit(console.FINDINGS)
