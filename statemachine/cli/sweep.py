"""`sweep`: whole histories judged by deferred rules, off the hot path; a line for each finding, and what was done about it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.progress import Progress, SpinnerColumn, TextColumn

from statemachine.cli import console
from statemachine.cli.process import Stop
from statemachine.errors import InvalidInput
from statemachine.manager import ResetManager
from statemachine.sweep import POLICIES, RULES, Policy, Sweep

if TYPE_CHECKING:

    from statemachine.store import Store
    from statemachine.sweep import SweepReport, Told

SHOWN_MAX: Final = 1_000
"""Findings in the table for people; all are counted, written down, and in the JSON."""


def register(app: typer.Typer) -> None:
    """Make the command here part of `app`."""
    app.command()(sweep)


def sweep(  # noqa: PLR0913 - one parameter an option of the command
    store: console.StoreOption,
    user: Annotated[list[str] | None, typer.Option("--user", metavar="USER", show_default=False, help=(
        "Judge this user only; may be given more than once."))] = None,
    rules: Annotated[str | None, typer.Option(metavar="NAME,...", show_default=False, help=(
        f"Judge by these rules only: {', '.join(RULES)}."))] = None,
    policy: Annotated[str, typer.Option(metavar="POLICY", help=(
        "audit: a row for each new finding; alert: the same, marked for alerts; restore: also go back to a proven version where "
        "the newest state rests on an error."))] = "audit",
    errors: Annotated[str | None, typer.Option(metavar="NAME,...", show_default=False, help=(
        "Count the findings of these rules as errors, which --policy restore acts on."))] = None,
    since_seq: Annotated[int | None, typer.Option(min=0, metavar="SEQ", show_default=False, help=(
        "Only users whom an audit row from this number on is about."))] = None,
    since_last: Annotated[bool, typer.Option("--since-last", help=(
        "Only users with new versions since a sweep last judged them by these rules."))] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what is found, and write nothing.")] = False,
    actor: Annotated[str, typer.Option("--actor", show_default=False, help=(
        "Who does this, for the audit log; --policy restore needs it."))] = "",
    reason: Annotated[str, typer.Option("--reason", show_default=False, help=(
        "Why, for the audit log; --policy restore needs it."))] = "",
    json: console.JsonOption = False,
) -> None:
    """Judge whole histories: is the filter consistent, does the log fold to what is stored, do all states pass the rules.

    Others may write meanwhile. A finding is told once: run it again, after Ctrl-C or daily, and only what is new is written.
    With --json each finding is a line, and the counts are the last one. Ends with 1 where anything was found.

    Example: resetguard sweep --store ./state --since-last
    """
    with console.command():
        asked = Sweep(
            users=tuple(user) if user else None, rules=_names(rules, "--rules"), errors=_names(errors, "--errors") or (),
            policy=_policy(policy), since_seq=since_seq, since_last=since_last, dry_run=dry_run, actor=actor, reason=reason)
        if policy == "restore" and not dry_run and not (actor and reason):
            message = "--policy restore changes states: give --actor and --reason, for the audit log"
            raise InvalidInput(message)
        with (console.reading if dry_run else console.writing)(store) as opened:
            report = _run(opened, asked, json=json)
        if report.findings or report.rule_errors:
            raise typer.Exit(console.FINDINGS)


def _names(text: str | None, option: str) -> tuple[str, ...] | None:
    if text is None:
        return None
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names:
        message = f"{option} names no rule; there are {', '.join(RULES)}"
        raise InvalidInput(message)
    return names


def _policy(name: str) -> Policy:
    for known in POLICIES:
        if name == known:
            return known
    message = f"--policy {name!r} is not one of {', '.join(POLICIES)}"
    raise InvalidInput(message)


def _run(store: Store, asked: Sweep, *, json: bool) -> SweepReport:
    for name in asked.users or ():
        console.require_user(store, name)
    shown: list[dict[str, Any]] = []

    def found(told: Told) -> None:
        if json:
            console.print_json(document(told))
        elif len(shown) < SHOWN_MAX:
            shown.append(document(told))

    with Stop() as stop, _Line(quiet=json) as line:
        report = ResetManager(store).sweep(asked, on_finding=found, on_progress=line.show, stop=lambda: stop.asked)
    if json:
        console.print_json(report._asdict())
    else:
        _print(shown)
        hidden = report.findings - len(shown)
        if hidden:
            console.say(f"{hidden} more findings are not shown; --json has them all")
        _say(report, dry_run=asked.dry_run)
    if not report.complete:
        console.say("stopped; run it again to go on, with --since-last without what was judged already")
        raise typer.Exit(console.INTERRUPTED)
    return report


def document(told: Told) -> dict[str, Any]:
    """What `--json` prints of a finding."""
    restored = told.restored
    return {**told.finding._asdict(), "new": told.new,
            "restore": None if restored is None else {"outcome": restored.outcome, "to_version": restored.to_version,
                                                      "version": restored.version, "error": restored.error or None}}


def _print(shown: list[dict[str, Any]]) -> None:
    console.print_rows(shown, (
        console.Column("user", lambda row: row["user"], fold=8),
        console.Column("version", lambda row: row["version"], right=True),
        console.Column("rule", lambda row: row["rule"]),
        console.Column("", lambda row: row["severity"], spare=True),
        console.Column("found", _value, fold=16),
        console.Column("must be", lambda row: row["limit"], fold=16),
        console.Column("new", lambda row: "new" if row["new"] else "known", spare=True),
        console.Column("restore", _restore, fold=12),
    ), json=False, empty="nothing was found")


def _value(row: dict[str, Any]) -> str:
    value = row["value"]
    return f"{value:.4g} {row['unit']}".strip() if isinstance(value, float) else f"{value} {row['unit']}".strip()


def _restore(row: dict[str, Any]) -> str | None:
    went = row["restore"]
    if went is None:
        return None
    if went["outcome"] in ("restored", "would restore"):
        return f"to version {went['to_version']}"
    return f"{went['outcome']}: {went['error']}"


def _say(report: SweepReport, *, dry_run: bool) -> None:
    told = "nothing was written" if dry_run else f"{report.new} of them new and now in the audit log"
    console.say(f"{report.users} users and {report.versions} versions judged, {report.findings} findings"
                f"{', ' + told if dry_run or report.findings else ''}")
    for outcome, count in report.restores.items():
        said = {"restored": "restored", "would restore": "would be restored"}.get(outcome, f"not restored: {outcome}")
        console.say(f"{count} users {said}")
    if report.changed:
        console.say(f"{report.changed} users changed meanwhile and are left to the next sweep")
    for name, error in report.rule_errors.items():
        console.say(f"the rule {name!r} failed and was left out: {error}")
    if report.skipped_rules:
        console.say(f"not judged by {', '.join(report.skipped_rules)}: the estimator tells no figures for it")


class _Line:
    """How far it is, on standard error, on a terminal only."""

    def __init__(self, *, quiet: bool) -> None:
        shown = not quiet and console.ERR.is_terminal
        columns = (SpinnerColumn(), TextColumn("{task.description}"))
        self._progress = Progress(*columns, console=console.ERR, transient=True) if shown else None
        self._task = self._progress.add_task("sweeping") if self._progress is not None else None

    def __enter__(self) -> _Line:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def show(self, users: int, versions: int) -> None:
        """So many users looked at and versions judged."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, description=f"sweeping: {users} users, {versions} versions judged")
