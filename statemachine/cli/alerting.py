"""The hooks of a run of the command: made of its options, told until its store is closed, and what they missed said."""

from __future__ import annotations

import contextlib
import shlex
from typing import TYPE_CHECKING, Annotated, Final, NamedTuple

import typer

from statemachine.alerts import Alerts, Command, Hook, Webhook
from statemachine.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from statemachine.store import Store

PANEL: Final = "Alerts"

WebhookOption = Annotated[str | None, typer.Option(
    "--alert-webhook", metavar="URL", envvar="RESETGUARD_ALERT_WEBHOOK", show_default=False, rich_help_panel=PANEL, help=(
        "POST an alert as JSON to this address when a breaker opens, nothing of a user can be read, or the audit is broken."))]
CommandOption = Annotated[str | None, typer.Option(
    "--alert-command", metavar="WORDS", envvar="RESETGUARD_ALERT_COMMAND", show_default=False, rich_help_panel=PANEL, help=(
        "Run this program then, the alert as JSON on its standard input; no shell is involved."))]
UserOption = Annotated[bool, typer.Option(
    "--alert-include-user", envvar="RESETGUARD_ALERT_INCLUDE_USER", rich_help_panel=PANEL,
    help="Also send whom it is about, and texts that may name them.")]


class _Asked(NamedTuple):
    webhook: str | None = None
    command: str | None = None
    include_user: bool = False


_asked = _Asked()


def configure(webhook: str | None, command: str | None, *, include_user: bool) -> None:
    """Note what this run of the command was given; whether it can be used is found out where it is."""
    global _asked  # noqa: PLW0603 - a run of the command has one set of options
    _asked = _Asked(webhook, command, include_user)


def hooks() -> tuple[Hook, ...]:
    """The hooks asked for, none where none was; InvalidInput for what is no address or no words."""
    made: list[Hook] = []
    if _asked.webhook is not None:
        made.append(Webhook(_asked.webhook, include_user=_asked.include_user))
    if _asked.command is not None:
        try:
            words = shlex.split(_asked.command)
        except ValueError as error:
            message = f"--alert-command {_asked.command!r} cannot be split into words: {error}"
            raise InvalidInput(message) from error
        made.append(Command(words, include_user=_asked.include_user))
    return tuple(made)


@contextlib.contextmanager
def attached(say: Callable[[str], None]) -> Iterator[Callable[[Store], None]]:
    """What attaches the hooks to a store that is closed within; afterwards `say` is told of alerts that were not delivered."""
    given, made = hooks(), list[Alerts]()

    def attach(store: Store) -> None:
        if given:
            made.append(Alerts(store.emitter, given))

    try:
        yield attach
    finally:
        lost = sum(alerts.counts().failed + alerts.counts().dropped for alerts in made)
        if lost:
            say(f"{lost} alerts could not be delivered (--verbose says why); the audit log has them, and "
                "`resetguard alerts send` sends them again")
