"""The commands for the rest of a store's life: `backup` and `restore-store`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from statemachine.cli import console
from statemachine.store import life

NewDirectory = Annotated[Path, typer.Argument(metavar="DIR", show_default=False, help="A new or empty directory.")]
BackupSource = Annotated[Path, typer.Argument(metavar="BACKUP", show_default=False, help="Directory of a backup.")]


def register(app: typer.Typer) -> None:
    """Make the commands here part of `app`."""
    app.command()(backup)
    app.command("restore-store")(restore_store)


def backup(directory: NewDirectory, store: console.StoreOption, json: console.JsonOption = False) -> None:
    """Copy a store, as it is at one moment, while others may write to it; the copy is verified before it is in its place.

    Records that are damaged in the store are copied as they are; it then says how many, and ends with 1.

    Example: resetguard backup ./backups/monday --store ./state
    """
    with console.command():
        with console.reading(store) as opened:
            made = life.backup(opened, directory)
            store_id = opened.store_id
        if json:
            console.print_json({"path": str(made.path), "store_id": store_id, "bytes": made.bytes, "seq": made.seq,
                                "hash": made.hash, "damaged": made.damaged})
        else:
            _print_backup(made, store_id)
        _tell_damage(made.damaged)


def _print_backup(made: life.Backup, store_id: str) -> None:
    console.print_record((
        ("backup", made.path), ("of store", store_id), ("size", f"{made.bytes} bytes"),
        ("audit log", f"{made.seq} rows, each follows from the one before it"), ("head hash", made.hash)))
    console.say(f"`resetguard restore-store {made.path} DIR` makes a store of it")


def _tell_damage(damaged: int) -> None:
    if damaged:
        console.say(f"{damaged} records are damaged and were copied as they are; see `resetguard doctor`, which names them")
        raise typer.Exit(console.FINDINGS)


def restore_store(
    backup: BackupSource, directory: NewDirectory, actor: console.ActorOption, reason: console.ReasonOption,
    json: console.JsonOption = False,
) -> None:
    """Make a new store of a backup, with an id of its own; it is never put over anything that is there.

    Records that are damaged in the backup are copied as they are; it then says how many, and ends with 1.

    Example: resetguard restore-store ./backups/monday ./state2 --actor ops@example.org --reason "the disk died"
    """
    with console.command():
        made = life.restore_store(backup, directory, actor, reason)
        if json:
            console.print_json({"path": str(made.path), "store_id": made.store_id, "from": {"store_id": made.from_store_id},
                                "seq": made.seq, "hash": made.hash, "owners_removed": made.owners_removed,
                                "probes_released": made.probes_released, "damaged": made.damaged})
        else:
            console.print_record((
                ("store", made.path), ("its id", made.store_id), ("backup of store", made.from_store_id),
                ("audit log", f"{made.seq} rows, each follows from the one before it"), ("head hash", made.hash),
                ("owners removed", made.owners_removed), ("probes given back", made.probes_released)))
        _tell_damage(made.damaged)
