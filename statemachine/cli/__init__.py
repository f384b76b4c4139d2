"""`resetguard`, the command: every subcommand, its options and its exit codes; what it prints goes through `console`."""

from __future__ import annotations

from importlib import metadata
from typing import Annotated

import typer

from statemachine import audit, codec
from statemachine.cli import (
    alerting,
    alerts,
    auditing,
    breakers,
    doctor,
    erasure,
    inspect,
    life,
    mend,
    operate,
    rebuild,
    rollouts,
    sweep,
    upkeep,
)
from statemachine.cli.demo import demo
from statemachine.cli.process import process

app = typer.Typer(
    name="resetguard", no_args_is_help=True, rich_markup_mode="rich", pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done; 1 done, with refusals or findings; 2 wrong use; 3 trouble with the store; 130 interrupted; "
           "141 the reader of the output has gone.",
)
app.command()(process)
app.command()(demo)
inspect.register(app)
auditing.register(app)
breakers.register(app)
life.register(app)
erasure.register(app)
operate.register(app)
rebuild.register(app)
mend.register(app)
rollouts.register(app)
doctor.register(app)
sweep.register(app)
upkeep.register(app)
alerts.register(app)


def _print_version(asked: bool) -> None:
    if not asked:
        return
    try:
        version = metadata.version("resetguard")
    except metadata.PackageNotFoundError:
        version = "(not installed)"
    typer.echo(f"resetguard {version}, disk schema {codec.SCHEMA}")
    raise typer.Exit


@app.callback()
def resetguard(
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True,
                                          help="Print the version and the schema of the stores it writes.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Copy audit events to standard error, as JSON lines.")] = False,
    alert_webhook: alerting.WebhookOption = None, alert_command: alerting.CommandOption = None,
    alert_include_user: alerting.UserOption = False,
) -> None:
    """Crash-safe, transactional resets of per-user body-weight state, in a store that can be audited.

    Example: resetguard process weights.csv --store ./state --unit kg --tz UTC, then resetguard users --store ./state
    """
    del version  # its callback has ended the command
    audit.configure_for_command(verbose=verbose)
    alerting.configure(alert_webhook, alert_command, include_user=alert_include_user)


def main() -> None:
    """The entry point; it ends by SystemExit with one of the exit codes above."""
    app(prog_name="resetguard")
