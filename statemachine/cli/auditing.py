"""The commands that read the audit log: `audit list`, `audit show`, `audit verify`."""

from __future__ import annotations

import re
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
import typer

from statemachine.alerts import broken, tell
from statemachine.cli import console
from statemachine.cli.console import Column
from statemachine.cli.instants import instant_us, shown
from statemachine.errors import InvalidInput, ResetError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from statemachine.audit import Row
    from statemachine.store import Store

ROWS_SHOWN: Final = 50
CANDIDATES_SHOWN_MAX: Final = 5

audit = typer.Typer(
    help="The log of every reset attempt and administrative act.\n\nExample: resetguard audit list --store ./state --user u1",
    no_args_is_help=True,
)


def register(app: typer.Typer) -> None:
    """Make the commands here part of `app`."""
    app.add_typer(audit, name="audit")


@audit.command("list")
def audit_list(  # noqa: PLR0913 - one parameter an option of the command
    store: console.StoreOption,
    user: Annotated[str | None, typer.Option(help="Rows about this user alone.", show_default=False)] = None,
    since: Annotated[str | None, typer.Option(metavar="TIME", show_default=False, help=(
        "Rows whose event time (`at`, not when they were written) is this or later: ISO 8601 (UTC unless it says), a date "
        "for its midnight, or 2h, 3d, 45m ago. A row without event time counts by when it was written."))] = None,
    outcome: Annotated[str | None, typer.Option(show_default=False, help=(
        "Rows of this outcome alone: committed, rolled_back, refused, shadowed, conflicted, interrupted, held, opened and "
        "so on."))] = None,
    limit: Annotated[int | None, typer.Option(min=1, show_default=False, help=(
        f"The newest so many; without it {ROWS_SHOWN} in a table, and all in JSON."))] = None,
    json: console.JsonOption = False,
) -> None:
    """The rows of the audit log, oldest first.

    Example: resetguard audit list --store ./state --since 2026-01-31 --outcome rolled_back
    """
    with console.command(), console.reading(store) as opened:
        if user is not None:
            console.require_user(opened, user)
        since_us = None if since is None else instant_us(since, opened.clock.now_us())
        wanted = None if outcome is None else outcome.replace("-", "_").lower()
        newest = limit if json or limit is not None else ROWS_SHOWN
        if newest is not None and (user, since, outcome) == (None, None, None):
            left_out = max(opened.audit_tail()[0] - newest, 0)
            rows = opened.audit(since_seq=left_out + 1)
        else:
            left_out, rows = 0, _matching(opened, user, since_us, wanted)
        if newest is None:
            for row in rows:
                console.print_json(row.as_dict())
        else:
            _print_newest(rows, newest, None if limit is not None else left_out, json=json)


def _matching(store: Store, user: str | None, since_us: int | None, outcome: str | None) -> Iterator[Row]:
    for row in store.audit(user):
        at_us = row.public.written_us if row.personal.at_us is None else row.personal.at_us
        if (since_us is None or at_us >= since_us) and (outcome is None or row.public.outcome == outcome):
            yield row


def _print_newest(rows: Iterator[Row], newest: int, left_out: int | None, *, json: bool) -> None:
    """The last so many rows; where the log is damaged, those before the damage, and then StoreCorrupt.

    How many older ones there are is said below a table, with those already `left_out`; not where that is None.
    """
    kept: deque[Row] = deque(maxlen=newest)
    damage: ResetError | None = None
    seen = 0
    try:
        for row in rows:
            kept.append(row)
            seen += 1
    except ResetError as error:
        damage = error
    if json:
        for row in kept:
            console.print_json(row.as_dict())
    elif kept or damage is None:
        _print_rows([row.as_dict() for row in kept])
        more = 0 if left_out is None else left_out + seen - len(kept)
        if more:
            console.say(f"{more} more, older than these; --limit N shows the newest N")
    if damage is not None:
        raise damage


def _print_rows(rows: list[dict[str, Any]]) -> None:
    columns = (
        Column("seq", lambda row: row["seq"], right=True),
        Column("at (UTC)", lambda row: shown(row["at"] or row["written_at"]), fold=10),
        Column("event", lambda row: row["event"]),
        Column("kind", lambda row: row["kind"], spare=True),
        Column("user", _whose, fold=10),
        Column("version", _versions, fold=8),
        Column("attempt", lambda row: row["attempt_id"], fold=18),
        Column("why", lambda row: row["error"] or row["reason"] or row["trigger"], fold=20, spare=True),
    )
    console.print_rows(rows, columns, json=False, empty="no row of the audit log matches")


def _whose(row: dict[str, Any]) -> str | None:
    if row["erased"]:
        return "(erased)"
    found: str | None = row["user"]
    return console.GLOBAL if found is None and row["details"].get("scope") == "global" else found


def _versions(row: dict[str, Any]) -> str | None:
    if row["new_version"] is not None:
        return f"{row['base_version'] or 0} to {row['new_version']}"
    return None if row["base_version"] is None else str(row["base_version"])


@audit.command("show")
def audit_show(
    attempt: Annotated[str, typer.Argument(metavar="ATTEMPT", show_default=False, help="The attempt's id, or how it begins.")],
    store: console.StoreOption, json: console.JsonOption = False,
) -> None:
    """The whole story of one attempt: who asked and why, what was done, what broke, and what stands since.

    Example: resetguard audit show 019b8e5c-3f2a-7c01 --store ./state
    """
    with console.command(), console.reading(store) as opened:
        row = _found(opened, attempt)
        if json:
            console.print_json(row.as_dict())
        else:
            _print_story(row)


def _found(store: Store, prefix: str) -> Row:
    found = list(islice(store.attempts(prefix), CANDIDATES_SHOWN_MAX + 1))
    if len(found) == 1:
        return found[0]
    if not found:
        message = f"no attempt in the audit log begins with {prefix!r}; `resetguard audit list` shows those there are"
        raise InvalidInput(message)
    ids = ", ".join(row.public.attempt_id for row in found[:CANDIDATES_SHOWN_MAX])
    more = " and more" if len(found) > CANDIDATES_SHOWN_MAX else ""
    message = f"more than one attempt begins with {prefix!r}: {ids}{more}; give more of it"
    raise InvalidInput(message)


def _print_story(row: Row) -> None:
    d = row.as_dict()
    before = f"version {d['base_version']}" if d["base_version"] else "nothing was stored"
    pairs = (
        ("attempt", d["attempt_id"]), ("outcome", d["outcome"]), ("kind", d["kind"]), ("user", d["user"]),
        ("event time", d["at"]), ("asked by", d["actor"]), ("reason", d["reason"]),
        ("trigger", d["trigger"]), ("error", d["error"]),
        ("before", f"{before}, made by attempt {d['head_author']}" if d["head_author"] else before),
        ("after", None if d["new_version"] is None else f"version {d['new_version']}"),
        ("phase reached", d["phase"]),
        ("change of x", _change(d["delta_x"])), ("change of P", _change(d["delta_P"])),
        ("details", msgspec.json.encode(d["details"]).decode() if d["details"] else None),
        ("breaker", f"{d['breaker']['mode'] or 'closed'}, generation {d['breaker']['generation']}" if d["breaker"] else None),
        ("took", None if d["duration_us"] is None else f"{d['duration_us']} us"), ("trace", d["trace_id"]),
        ("row", f"{d['seq']} of store {d['store_id']}, written {d['written_at']} by owner {d['owner']}"),
        ("hash", d["hash"]), ("hash before", d["prev_hash"]),
        ("erased", "the personal part of this row was dropped; its digest is kept" if d["erased"] else None),
    )
    console.print_record(((name, value) for name, value in pairs if value), title=d["event"])
    if d["operations"]:
        console.OUT.print()
        console.print_rows(d["operations"], (
            Column("operation", lambda o: o["name"], fold=16),
            Column("took, us", lambda o: o["duration_us"], right=True),
            Column("result", lambda o: "valid" if o["ok"] else "FAILED"),
        ), json=False, empty="")
    if d["violations"]:
        console.OUT.print()
        console.print_rows(d["violations"], (
            Column("broken rule", lambda v: v["rule"]),
            Column("where", lambda v: v["path"]),
            Column("value", lambda v: f"{v['value']} {v['unit']}", fold=10),
            Column("must be", lambda v: v["limit"], fold=12),
        ), json=False, empty="")


def _change(values: tuple[float, ...] | None) -> str | None:
    return None if values is None else ", ".join(f"{value:+.6g}" for value in values)


@audit.command("verify")
def audit_verify(
    store: console.StoreOption,
    against: Annotated[str | None, typer.Option(metavar="HASH", show_default=False, help=(
        "A head hash that an earlier `audit verify` printed and you noted elsewhere; finds a tail that was cut since."))] = None,
    json: console.JsonOption = False,
) -> None:
    """Recompute the hash chain of the whole log; exits with 1 when a row was changed, inserted, removed or cut off.

    Example: resetguard audit verify --store ./state
    """
    with console.command(), console.reading(store) as opened:
        if against is not None and re.fullmatch("[0-9a-fA-F]{64}", against.strip()) is None:
            message = f"--against {against[:80]!r} is no head hash; one has 64 hexadecimal digits"
            raise InvalidInput(message)
        check = opened.verify_audit(None if against is None else against.strip().lower())
        sound = check.bad_seq is None
        if check.bad_seq is not None:
            tell(opened, broken(opened, check.bad_seq, check.problem))
        if json:
            console.print_json({"sound": sound, "rows": check.rows, "seq": check.bad_seq, "problem": check.problem or None,
                                "hash": check.head_hash})
        elif sound:
            noted = ", and the noted hash occurs in it" if against is not None else ""
            console.print_record((("sound", f"{check.rows} rows, each follows from the one before it{noted}"),
                                  ("head hash", check.head_hash)))
            console.say("note the head hash elsewhere: `resetguard audit verify --against HASH` then finds a tail that was cut")
        else:
            console.print_record((("NOT SOUND", check.problem), ("at row", check.bad_seq), ("hash before it", check.head_hash)))
        if not sound:
            raise typer.Exit(console.FINDINGS)
