"""The command `conform`, which decides whether an audit log is a behaviour of the protocol that `specs/` states."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from chaos.conform import follow, monitor, rows
from chaos.conform.monitor import Verdict
from chaos.conform.rows import BadLog, Row
from statemachine import audit
from statemachine.cli import console
from statemachine.errors import InvalidInput


class Judged(NamedTuple):
    """Both verdicts on one log; `followed` is None where SPIN was not asked, or `without` says why it could not be."""

    verdict: Verdict
    followed: follow.Followed | None
    without: str = ""

    @property
    def accepted(self) -> bool:
        """Whether nobody found a row that is not possible."""
        return self.verdict.accepted and (self.followed is None or self.followed.rejected is None)


def register(app: typer.Typer) -> None:
    """Make the command here part of `app`."""
    app.command("conform")(conform)


def conform(
    file: Annotated[Path | None, typer.Argument(metavar="FILE", show_default=False, help=(
        "Rows as `resetguard audit list --json` prints them: all of them, one a line."))] = None,
    store: Annotated[Path | None, typer.Option("--store", metavar="DIR", show_default=False, help=(
        "Judge the log of this store instead; it is opened for reading alone."))] = None,
    json: console.JsonOption = False,
    no_spin: Annotated[bool, typer.Option("--no-spin", help=(
        "Ask the monitor alone, also where SPIN is installed."))] = False,
) -> None:
    """Decide whether an audit log is a behaviour of the protocol; exits with 1, and names the row, where it is not.

    A monitor judges every row. Where SPIN and gcc are installed, the model specs/reset.pml follows the log of each user too.

    Example: resetguard audit list --json --store ./state > log; python -m chaos conform log
    """
    audit.configure_for_command(verbose=False)
    with console.command():
        judged = judge(_read(file, store), spin=not no_spin)
        if json:
            console.print_json(as_dict(judged))
        else:
            _print(judged)
        if not judged.accepted:
            raise typer.Exit(console.FINDINGS)


def judge(found: list[Row], *, spin: bool) -> Judged:
    """Have the rows of one log judged by the monitor and, with `spin`, followed by SPIN where it is installed."""
    verdict = monitor.judge(found)
    if not spin:
        return Judged(verdict, None)
    missing = [name for name in ("spin", "gcc") if shutil.which(name) is None]
    if missing:
        return Judged(verdict, None, f"{' and '.join(missing)} not found; install with `apt-get install spin gcc`")
    with follow.follower() as follower:
        return Judged(verdict, follower.follow(found))


def _read(file: Path | None, store: Path | None) -> list[Row]:
    if (file is None) == (store is None):
        message = "give either a FILE of rows or --store DIR, and not both"
        raise InvalidInput(message)
    if store is not None:
        with console.reading(store) as opened:
            return list(rows.of_store(opened))
    try:
        return list(rows.of_file(file or Path()))
    except BadLog as error:
        raise InvalidInput(str(error)) from error


def as_dict(judged: Judged) -> dict[str, Any]:
    """Both verdicts as one JSON document."""
    v, f = judged.verdict, judged.followed
    return {
        "accepted": judged.accepted, "rows": v.rows, "users": v.users,
        "monitor": {"accepted": v.accepted, "rows_in_full": v.in_full, "rows_in_part": v.in_part, "events_unknown": v.unknown,
                    "rejected": None if v.rejected is None else v.rejected._asdict()},
        "spin": None if f is None else {
            "accepted": f.rejected is None, "rows": f.rows, "users": f.users, "not_followed": f.left_out,
            "rejected": None if f.rejected is None else f.rejected._asdict()},
        "without_spin": judged.without or None,
    }


def _print(judged: Judged) -> None:
    v, f = judged.verdict, judged.followed
    part = f", {v.in_part} in part, since rows before them or who they are about is not there" if v.in_part else ""
    parts = f"{v.in_full} rows in full{part}"
    unknown = f"; {v.unknown} of events that this version does not know" if v.unknown else ""
    pairs: list[tuple[str, object]] = [("judged", f"{parts}, of {v.users} users{unknown}")]
    if v.rejected is not None:
        pairs += [("monitor", "REJECTED"), ("at row", v.rejected.seq), ("invariant", v.rejected.invariant),
                  ("why", v.rejected.why)]
    else:
        pairs.append(("monitor", "accepted"))
    if f is not None and f.rejected is not None:
        pairs += [("SPIN", "REJECTED"), ("at row", f.rejected.seq), ("of user", f.rejected.user), ("why", f.rejected.why)]
    elif f is not None:
        left = "".join(f"; {user!r} was not followed: {why}" for user, why in f.left_out.items())
        pairs.append(("SPIN", f"accepted: {f.rows} rows of {f.users} users are a behaviour of specs/reset.pml{left}"))
    else:
        pairs.append(("SPIN", judged.without or "not asked"))
    console.print_record(pairs, title="a behaviour of the protocol" if judged.accepted else "NOT a behaviour of the protocol")
