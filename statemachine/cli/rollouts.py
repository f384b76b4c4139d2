"""For whom automatic resets are carried out: `rollout show`, `rollout set`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
import typer

from statemachine import gate
from statemachine.cli import console
from statemachine.errors import InvalidInput
from statemachine.rollout import Rollout, decide
from statemachine.state import user_key

if TYPE_CHECKING:
    from collections.abc import Callable

    from statemachine.rollout import Verdict

MEANING: Final[dict[Verdict, str]] = {
    "on": "carried out", "shadow": "run and validated, nothing kept but an audit row", "off": "not run; an audit row says so",
}

rollout = typer.Typer(
    help="For which users automatic resets are carried out: on, in shadow, or off.\n\n"
         "Example: resetguard rollout show --store ./state",
    no_args_is_help=True,
)


def register(app: typer.Typer) -> None:
    """Make the commands here part of `app`."""
    app.add_typer(rollout, name="rollout")


@rollout.command("show")
def rollout_show(
    store: console.StoreOption,
    user: Annotated[str | None, typer.Option(show_default=False, help="What becomes of resets of this user.")] = None,
    json: console.JsonOption = False,
) -> None:
    """The rollout that is stored, and with --user what it says of one user, known to the store or not.

    A program that was given a rollout or a provider of its own does not ask the store.

    Example: resetguard rollout show --user anna --store ./state
    """
    with console.command():
        if user is not None:
            user_key(user)
        with console.reading(store) as opened:
            _print(gate.stored_rollout(opened), user, json=json)


@rollout.command("set")
def rollout_set(  # noqa: PLR0913 - one parameter an option of the command
    store: console.StoreOption, actor: console.ActorOption, reason: console.ReasonOption,
    mode: Annotated[str | None, typer.Option(show_default=False, help=(
        "What those inside get: on, shadow (run, keep only an audit row) or off. Off is for everybody."))] = None,
    percent: Annotated[float | None, typer.Option(show_default=False, help=(
        "How many users are inside, 0 to 100, always the same ones; more only adds users."))] = None,
    allow: Annotated[list[str] | None, typer.Option(metavar="USER", show_default=False, help=(
        "Put a user inside whatever the percentage; may be repeated."))] = None,
    deny: Annotated[list[str] | None, typer.Option(metavar="USER", show_default=False, help=(
        "Put a user on the list of those who are always off; may be repeated."))] = None,
    unlist: Annotated[list[str] | None, typer.Option(metavar="USER", show_default=False, help=(
        "Take a user off both lists; may be repeated."))] = None,
    outside: Annotated[str | None, typer.Option(show_default=False, help="What all others get: off or shadow.")] = None,
    name: Annotated[str | None, typer.Option(show_default=False, help=(
        "Another name draws other users into the percentage."))] = None,
    json: console.JsonOption = False,
) -> None:
    """Change the stored rollout; what is not given stays as it is. Programs that have the store open follow at once.

    Resets that are held back lose no measurement: it is accepted where it fits the state as it stands, else kept aside.

    Example: resetguard rollout set --mode on --percent 10 --deny anna --outside shadow --store ./state
    --actor ops@example.org --reason "first tenth"
    """
    with console.command():
        figures = {"mode": mode, "percent": percent, "outside": outside, "name": name}
        given = {option: value for option, value in figures.items() if value is not None}
        lists = {"allow": allow or [], "deny": deny or [], "off": unlist or []}
        edit = _edit(given, lists)
        with console.writing(store) as opened:
            before, after = gate.change(opened, edit, actor=actor, reason=reason)
            if after == before:
                console.say("that is how it stands already; nothing was changed")
            stored = gate.stored_rollout(opened)
            if stored != after:
                console.say("somebody else has changed the rollout since; this is how it stands now")
            _print(stored, None, json=json)


def _edit(given: dict[str, Any], lists: dict[str, list[str]]) -> Callable[[Rollout | None], Rollout]:
    """The change that the options ask for; InvalidInput where they ask for none, or for two things of one user."""
    named = [user for users in lists.values() for user in set(users)]
    if not given and not named:
        message = "give what to change: --mode, --percent, --allow, --deny, --unlist, --outside or --name"
        raise InvalidInput(message)
    twice = sorted({user for user in named if named.count(user) > 1})
    if twice:
        message = f"{twice[0]!r} is given for two of --allow, --deny and --unlist; choose one"
        raise InvalidInput(message)
    msgspec.structs.replace(Rollout(), **given)  # wrong use, before the store is opened

    def edit(before: Rollout | None) -> Rollout:
        if before is None and "mode" not in given:
            message = "the stored rollout cannot be read, and its lists are lost; set it anew, beginning with --mode"
            raise InvalidInput(message)
        return gate.moved(msgspec.structs.replace(before or Rollout(), **given), **lists)

    return edit


def document(found: Rollout, user: str | None) -> dict[str, Any]:
    """What --json prints."""
    shown: dict[str, Any] = msgspec.structs.asdict(found)
    return shown if user is None else {**shown, "user": user, "verdict": decide(found, user)}


def _print(found: Rollout, user: str | None, *, json: bool) -> None:
    if json:
        console.print_json(document(found, user))
        return
    inside: Verdict = found.mode
    outside: Verdict = found.outside if inside != "off" else "off"
    pairs: list[tuple[str, object]] = [
        ("inside", f"{found.percent:g} % of users, drawn by the name {found.name!r}"),
        ("they get", f"{inside}: {MEANING[inside]}"),
        ("all others get", f"{outside}: {MEANING[outside]}"),
        ("always inside", ", ".join(found.allow)),
        ("always off", ", ".join(found.deny)),
    ]
    if user is not None:
        pairs.append((f"for {user}", f"{decide(found, user)}: {MEANING[decide(found, user)]}"))
    console.print_record(pairs, "Automatic resets")
