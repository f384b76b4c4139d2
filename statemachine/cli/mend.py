"""The operator's hand on what was kept aside and what is damaged: `quarantine replay`, `quarantine drop`, `recover`."""

from __future__ import annotations

from operator import itemgetter
from typing import TYPE_CHECKING, Annotated

import typer

from statemachine.cli import console, inspect
from statemachine.cli.inspect import UserArgument
from statemachine.cli.instants import instant_us, shown
from statemachine.clock import iso
from statemachine.errors import InvalidInput, StoreCorrupt
from statemachine.manager import ResetManager
from statemachine.requarantine import drop, replay
from statemachine.store import fencing
from statemachine.store.mending import find_end

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from statemachine.store import Store


def register(app: typer.Typer) -> None:
    """Make the commands here part of `app`."""
    inspect.quarantine.command("replay")(quarantine_replay)
    inspect.quarantine.command("drop")(quarantine_drop)
    app.command()(recover)


def quarantine_replay(
    user: UserArgument, store: console.StoreOption, actor: console.ActorOption, reason: console.ReasonOption,
    json: console.JsonOption = False,
) -> None:
    """Offer what is kept aside of a user, and later than the state, once more to the ordinary decision, in time order.

    Example: resetguard quarantine replay u1 --store ./state --actor ops@example.org --reason "after the restore"
    """
    with console.command(), console.writing(store) as opened:
        console.require_user(opened, user)
        done = replay(ResetManager(opened), user, actor=actor, reason=reason)
        if json:
            console.print_json({"user": user, **done._asdict(), "kept_aside": opened.kept_count(user)})
        else:
            console.say(f"offered {done.offered} measurements of {user!r} once more: {done.accepted + done.admitted} were "
                        f"taken in, {done.kept} are kept aside")


def quarantine_drop(  # noqa: PLR0913 - one parameter an option of the command
    user: UserArgument, store: console.StoreOption, actor: console.ActorOption, reason: console.ReasonOption,
    before: Annotated[str | None, typer.Option(metavar="TIME", show_default=False, help=(
        "Only measurements of before this: ISO 8601 (UTC unless it says), or 2h, 3d ago."))] = None,
    json: console.JsonOption = False,
) -> None:
    """Delete what is kept aside of a user, for good, and note in the audit log how much it was.

    Example: resetguard quarantine drop u1 --store ./state --actor ops@example.org --reason "the scale of a guest"
    """
    with console.command(), console.writing(store) as opened:
        console.require_user(opened, user)
        before_us = None if before is None else instant_us(before, opened.clock.now_us())
        done = drop(opened, user, actor=actor, reason=reason, before_us=before_us)
        if json:
            console.print_json({"user": user, **done._asdict(), "kept_aside": opened.kept_count(user)})
        else:
            console.say(f"dropped {done.measurements} measurements and {done.unreadable} unreadable rows of {user!r}")


def recover(  # noqa: PLR0913 - one parameter an option of the command
    store: console.StoreOption,
    actor: Annotated[str | None, typer.Option(help="Who does this, for the audit log.", show_default=False)] = None,
    reason: Annotated[str | None, typer.Option(help="Why, for the audit log.", show_default=False)] = None,
    user: Annotated[str | None, typer.Option(help="This user alone.", show_default=False)] = None,
    fence: Annotated[int | None, typer.Option(metavar="OWNER", show_default=False, help=(
        "Only forbid this process, by its number, every later commit: for one that is stopped and will not end."))] = None,
    list_owners: Annotated[bool, typer.Option("--list", help="Only list the processes that have the store open.")] = False,
    json: console.JsonOption = False,
) -> None:
    """Settle what processes that died left behind, and walk every user back whose head cannot be read.

    --actor and --reason are needed for all but --list.

    Example: resetguard recover --store ./state --actor ops@example.org --reason "after the disk failed"
    """
    with console.command(), console.writing(store) as opened:
        if list_owners:
            _list(opened, json=json)
            return
        if actor is None or reason is None:
            message = "give --actor and --reason, for the audit log"
            raise InvalidInput(message)
        if find_end(opened, actor=actor, reason=reason) is not None:
            console.say("the end of the audit log was found again from its newest row; compare its head hash with one noted "
                        "elsewhere: `resetguard audit verify --against HASH`")
        if fence is not None:
            attempt_id = fencing.fence(opened, fence, actor=actor, reason=reason)
            if json:
                console.print_json({"owner": fence, "outcome": "fenced", "attempt_id": attempt_id})
            else:
                console.say(f"owner {fence} is fenced: what it tries to commit from now on is refused")
            return
        if user is not None:
            console.require_user(opened, user)
        failed: list[str] = []
        manager = ResetManager(opened)
        names = opened.users() if user is None else iter((user,))
        rows = _recovered(manager, names, failed, actor=actor, reason=reason)
        columns = tuple(console.Column(name, itemgetter(name), fold=12) for name in (
            "user", "outcome", "from_version", "version", "left_out", "error"))
        console.print_rows(rows, columns, json=json, empty="no user's head is damaged")
        console.say(f"{opened.interrupted} attempts of processes that died were settled as interrupted")
        if failed:
            raise typer.Exit(console.FINDINGS)


def _list(store: Store, *, json: bool) -> None:
    columns = (
        console.Column("owner", itemgetter("owner"), right=True),
        console.Column("alive", lambda row: ("yes, fenced" if row["fenced"] else "yes") if row["alive"] else "no"),
        console.Column("pid", lambda row: row["process"]["pid"], right=True),
        console.Column("runs since (UTC)", lambda row: shown(row["process"]["since"]), fold=10),
        console.Column("attempts", itemgetter("attempts"), right=True),
        console.Column("oldest begun", lambda row: None if row["seconds"] is None else f"{row['seconds']:.0f} s ago", right=True),
    )
    now_us = store.clock.now_us()
    rows = (_owner(found, now_us) for found in fencing.owners(store) if not found.own)
    console.print_rows(rows, columns, json=json, empty="no other process has the store open")


def _owner(found: fencing.Owner, now_us: int) -> dict[str, Any]:
    """An owner as `--list` tells it; `seconds` is the age of its oldest attempt under way."""
    return {"owner": found.owner, "alive": found.alive, "fenced": found.fenced, "attempts": found.attempts,
            "seconds": None if found.oldest_us is None else max(now_us - found.oldest_us, 0) / 1e6,
            "process": {"pid": found.pid, "since": None if found.since_us is None else iso(found.since_us)}}


def _recovered(
    manager: ResetManager, names: Iterator[str], failed: list[str], *, actor: str, reason: str,
) -> Iterator[dict[str, Any]]:
    for name in names:
        try:
            done = manager.recover(name, actor=actor, reason=reason)
        except StoreCorrupt as error:
            failed.append(name)
            yield {"user": name, "outcome": "failed", "attempt_id": None, "from_version": None, "version": None,
                   "left_out": None, "error": str(error)}
            continue
        if done is not None:
            yield {"user": name, "outcome": "recovered", "attempt_id": done.attempt_id, "from_version": done.from_version,
                   "version": done.version, "left_out": done.left_out, "error": None}
