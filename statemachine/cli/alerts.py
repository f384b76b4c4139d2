"""The commands about alerts: `alerts send` for those that the log holds, `alerts test` for the way they take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from statemachine.alerts import Alert, AlertLimits, replay, try_hooks
from statemachine.cli import alerting, console
from statemachine.cli.console import Column
from statemachine.clock import SystemClock
from statemachine.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

    from statemachine.alerts import Hook, Replayed

alerts = typer.Typer(
    help="Who is told of what must be known: see --alert-webhook and --alert-command of resetguard itself.\n\n"
         "Example: resetguard --alert-command 'notify ops' alerts test",
    no_args_is_help=True,
)


def register(app: typer.Typer) -> None:
    """Make the commands here part of `app`."""
    app.add_typer(alerts, name="alerts")


@alerts.command("send")
def alerts_send(
    store: console.StoreOption,
    from_seq: Annotated[int, typer.Option("--from-seq", min=1, metavar="N", help="Begin at this row of the audit log.")] = 1,
    json: console.JsonOption = False,
) -> None:
    """Send what the audit log holds of alarming rows once more; exits with 1 where one could not be delivered.

    An alert is best effort, the log is the record: this closes a gap after the receiver was away.

    Example: resetguard --alert-webhook https://ops.example.org/hook alerts send --store ./state --from-seq 1200
    """
    with console.command():
        hooks = _hooks()
        with console.reading(store) as opened:
            _tell(replay(opened, hooks, from_seq), json=json, empty=f"no row from {from_seq} on is alarming")


@alerts.command("test")
def alerts_test(json: console.JsonOption = False) -> None:
    """Send one alert that means nothing, and say whether it was taken; exits with 1 where it was not.

    Example: resetguard --alert-command 'notify ops' alerts test
    """
    with console.command():
        test = Alert("alert.test", "a test of the way that alerts take: nothing has happened", 0, "", SystemClock().now_us(),
                     scope="store")
        _tell(try_hooks(_hooks(), [test], AlertLimits(tries_max=1)), json=json, empty="")


def _hooks() -> tuple[Hook, ...]:
    hooks = alerting.hooks()
    if not hooks:
        message = "say whom to tell: resetguard --alert-webhook URL alerts ..., or --alert-command WORDS"
        raise InvalidInput(message)
    return hooks


def _tell(sent: Iterable[Replayed], *, json: bool, empty: str) -> None:
    failed: list[str] = []

    def rows() -> Iterator[dict[str, Any]]:
        for one in sent:
            if one.error:
                failed.append(one.error)
            yield {"seq": one.seq, "event": one.event, "hook": one.hook, "outcome": "failed" if one.error else "delivered",
                   "error": one.error or None}

    console.print_rows(rows(), (
        Column("seq", lambda row: row["seq"], right=True), Column("event", lambda row: row["event"]),
        Column("to", lambda row: row["hook"], fold=20), Column("outcome", lambda row: row["outcome"]),
        Column("why", lambda row: row["error"], fold=20),
    ), json=json, empty=empty)
    if failed:
        raise typer.Exit(console.FINDINGS)
