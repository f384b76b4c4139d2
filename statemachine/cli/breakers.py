"""The operator's word on circuit breakers: `breaker show`, `force-open`, `force-close`, `metrics-only`, `release`."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple

import typer

from statemachine.breaker import CLOSED, Now, resets_counted
from statemachine.cli import batch, console
from statemachine.cli.console import GLOBAL, Column
from statemachine.cli.instants import shown
from statemachine.cli.operate import ResumeOption, UsersOption
from statemachine.clock import iso
from statemachine.errors import InvalidInput, StoreCorrupt
from statemachine.manager import ResetManager

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from statemachine.breaker import Breaker, Forced

breaker = typer.Typer(
    help="Circuit breakers, of each user and the global one.\n\nExample: resetguard breaker show --store ./state",
    no_args_is_help=True,
)

UserArgument = Annotated[str | None, typer.Argument(metavar="[USER]", show_default=False, help="Whose breaker.")]
GlobalOption = Annotated[bool, typer.Option("--global", help="The global breaker, instead of a user's.")]


def register(app: typer.Typer) -> None:
    """Make the commands here part of `app`."""
    app.add_typer(breaker, name="breaker")


@breaker.command("show")
def breaker_show(store: console.StoreOption, user: UserArgument = None, json: console.JsonOption = False) -> None:
    """The breaker of one user, or the global one and every user's that is not simply closed.

    "failures" are those in a row and "users" those that failed of late, "failed of" is the share of the newest window.
    Times are of the stream that opened the breaker, or of the wall clock where a live caller did.  Where a record is damaged
    the mode is "damaged", and the exit code 1.

    Example: resetguard breaker show anna --store ./state
    """
    with console.command(), console.reading(store) as opened:
        manager = ResetManager(opened)
        if user is not None:
            console.require_user(opened, user)
        names: list[str | None] = [None, *opened.users()] if user is None else [user]
        columns = (
            Column("user", lambda row: row["user"] or GLOBAL, fold=8),
            Column("mode", _stage, fold=9),
            Column("failures", lambda row: row["failures"] or None, right=True),
            Column("users", lambda row: row["users_failing"] or None, right=True),
            Column("failed of", _share, right=True),
            Column("openings", lambda row: row["openings"] or None, right=True),
            Column("opened by", lambda row: row["opened_by"]),
            Column("probe from (UTC)", lambda row: row["retry_at"] and shown(row["retry_at"]), fold=10),
            Column("suspects", lambda row: row["suspects"] or None, right=True),
        )
        troubles: list[str] = []
        spent = _resets_counted(manager, troubles) if user is None else None
        rows = _rows(manager, names, spent, troubles, every=user is not None)
        console.print_rows(rows, columns, json=json, empty="no breaker to show")
        if not json and spent:
            console.say(f"{spent} resets of the last minute count against a budget")
        for trouble in troubles:
            console.say(trouble)
        if troubles:
            raise typer.Exit(console.FINDINGS)


def _rows(
    manager: ResetManager, names: list[str | None], spent: int | None, troubles: list[str], *, every: bool,
) -> Iterator[dict[str, Any]]:
    """The breakers worth showing; what cannot be read is shown as damaged, and noted in `troubles` with what helps."""
    for name in names:
        more = {"resets_last_minute": spent} if name is None else {}
        try:
            record = manager.breaker(name)
        except StoreCorrupt as error:
            whose = "--global" if name is None else name
            troubles.append(f"{error.problem}; `resetguard breaker release {whose}` closes that breaker anew")
            yield {**dict.fromkeys(document(name, CLOSED)), "user": name, "mode": "damaged", **more}
            continue
        if name is None or every or record.mode != "closed" or record.failures or record.suspects:
            yield {**document(name, record), **more}


def document(user: str | None, record: Breaker) -> dict[str, Any]:
    """What `--json` prints of a breaker; `user` is null for the global one."""
    slots = (*record.ended, *record.ended_event)
    return {
        "user": user, "mode": record.mode, "generation": record.generation, "failures": record.failures,
        "attempts": sum(ended for _, ended, _ in slots), "attempts_failed": sum(failed for _, _, failed in slots),
        "openings": record.openings, "opened_by": record.opened_by or None,
        "opened_at": iso(record.opened_us) if record.openings else None,
        "retry_at": iso(record.retry_us) if record.mode == "open" and record.retry_us else None,
        "time_base": record.base if record.openings else None, "successes": record.successes,
        "probing": bool(record.probe), "users_failing": len(record.failing) + len(record.failing_event),
        "suspects": sum(count for _, _, count in record.suspects),
    }


def _resets_counted(manager: ResetManager, troubles: list[str]) -> int | None:
    """How many live resets count against a budget now; None, and the trouble noted, where that cannot be read."""
    now_us = manager.store.clock.now_us()
    try:
        return resets_counted(manager.budget(), Now(now_us, now_us))
    except StoreCorrupt as error:
        troubles.append(f"{error.problem}; `resetguard breaker release --global` forgets what was taken from the budget")
        return None


def _stage(row: dict[str, Any]) -> str:
    mode: str = row["mode"]
    return f"{mode}, {row['successes']} succeeded" if row["successes"] else mode


def _share(row: dict[str, Any]) -> str | None:
    return f"{row['attempts_failed']} of {row['attempts']}" if row["attempts_failed"] else None


class _Word(NamedTuple):
    """What an operator says of a breaker: `mode` None releases it."""

    name: str
    mode: Forced | None
    actor: str
    reason: str

    def say(self, manager: ResetManager, user: str | None) -> dict[str, Any]:
        """Say it of a user's, or with None of the global one; what stands then."""
        if user is not None:
            console.require_user(manager.store, user)
        if self.mode is None:
            manager.release_breaker(user, reason=self.reason, actor=self.actor)
        else:
            manager.force_breaker(user, self.mode, reason=self.reason, actor=self.actor)
        return document(user, manager.breaker(user))

    def said(self, manager: ResetManager, user: str) -> bool:
        """Whether the log has it as the last word on the user's breaker, and the breaker still stands as it says."""
        own = [row for row in manager.store.audit(user) if row.public.event in ("breaker.forced", "breaker.released")]
        if not own:
            return False
        told = own[-1].personal
        mode = self.mode or "closed"
        return (told.actor, told.reason, told.details.get("to"), manager.breaker(user).mode) == (
            self.actor, self.reason, mode, mode)


def _set(  # noqa: PLR0913 - what the four commands share
    store: Path, user: str | None, word: _Word, users: str | None, resume: Path | None, *, all_users: bool, json: bool,
) -> None:
    with console.command():
        if sum((user is not None, users is not None, all_users)) != 1:
            message = "give exactly one of USER, --users FILE and --global"
            raise InvalidInput(message)
        if resume is not None and users is None:
            message = "--resume goes with --users: its journal is of the users of a list"
            raise InvalidInput(message)
        names = batch.listed(users) if users is not None else []
        with console.writing(store) as opened:
            manager = ResetManager(opened)
            if users is not None:
                with batch.Journal(resume, f"breaker {word.name}") as journal:
                    batch.run(opened, names, journal,
                              lambda name: {**(now := word.say(manager, name)), "outcome": now["mode"]},
                              lambda name, _: word.said(manager, name), json=json)
                return
            now = word.say(manager, user)
            if json:
                console.print_json(now)
            else:
                console.say(f"the breaker of {GLOBAL if user is None else user} is {now['mode']} now")


WORDS: Final[tuple[tuple[str, Forced | None, str], ...]] = (
    ("force-open", "forced-open", """Refuse every reset of a user, or with --global of everybody, until `breaker release`.

    Example: resetguard breaker force-open --global --store ./state --actor ops@example.org --reason "bad firmware"
    """),
    ("force-close", "forced-closed", """Admit every reset and count none of its failures, until `breaker release`.

    Inputs on which the process died stay refused.

    Example: resetguard breaker force-close anna --store ./state --actor ops@example.org --reason "tested by hand"
    """),
    ("metrics-only", "metrics-only", """Admit every reset and count its failures, but never open, until `breaker release`.

    Example: resetguard breaker metrics-only anna --store ./state --actor ops@example.org --reason "watching"
    """),
    ("release", None, """Close a breaker, forced, open or damaged: failures, openings and suspicion are forgotten.

    With --global so is what was taken from a budget of resets a minute.

    Example: resetguard breaker release anna --store ./state --actor ops@example.org --reason "mended"
    """),
)


def _command(name: str, mode: Forced | None, text: str) -> None:
    @breaker.command(name, help=inspect.cleandoc(text))
    def command(  # noqa: PLR0913 - one parameter an option of the command
        store: console.StoreOption, actor: console.ActorOption, reason: console.ReasonOption, user: UserArgument = None,
        all_users: GlobalOption = False, users: UsersOption = None, resume: ResumeOption = None,
        json: console.JsonOption = False,
    ) -> None:
        _set(store, user, _Word(name, mode, actor, reason), users, resume, all_users=all_users, json=json)


for _name, _mode, _text in WORDS:
    _command(_name, _mode, _text)
