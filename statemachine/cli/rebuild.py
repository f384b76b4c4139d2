"""The operator's hand on a state that is not to be trusted: `rebuild`, by replay of the log or decided anew from files."""

from __future__ import annotations

import hashlib
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple

import msgspec
import typer

from statemachine.cli import batch, console, operate
from statemachine.cli.inspect import differences, print_differences
from statemachine.cli.operate import Asked, DryRunOption, ExpectOption, ResumeOption, UserArgument, UsersOption
from statemachine.cli.process import STDIN, Job, source_hash
from statemachine.errors import InvalidInput, StoreCorrupt
from statemachine.ingest import FORMATS, Options, OrderedRows, open_source, sniff
from statemachine.ingest.source import NAMING_USERS
from statemachine.processor import SourceRow
from statemachine.rebuild import Rebuilt, Source, damage_told, moves_told, rebuild_from
from statemachine.rebuild import rebuild as rebuild_by_replay
from statemachine.store.records import Unreadable

if TYPE_CHECKING:
    from statemachine.ingest import Row
    from statemachine.manager import ResetManager

NO_FILES: Final = "{} goes with --from FILE: a replay of the log reads no file"


class Files(NamedTuple):
    """The files to decide from as they were read: their contents' digests, and the rows of each user asked for.

    `keys`: of each file those by which a `process` of it may be known, for it may have been given other options.
    """

    names: tuple[str, ...]
    keys: tuple[tuple[bytes, ...], ...]
    digests: tuple[str, ...]
    rows: dict[str, list[tuple[int, SourceRow]]]


class Told(NamedTuple):
    """What a rebuild found and did, as the command tells it."""

    done: Rebuilt

    def document(self) -> dict[str, Any]:
        """What `--json` prints of it."""
        done = self.done
        return {"user": done.user, "outcome": done.outcome, "attempt_id": done.attempt_id, "kind": "rebuild",
                "base_version": done.base_version, "version": done.version, "log": done.log.told(), "rows": done.rows or None,
                "moved": moves_told(done.moved), "restated": done.restated, "left_out": done.left_out,
                "not_in_files": done.not_in_files, "superseded": done.superseded,
                "fields": [] if done.after is None else differences(done.before, done.after)}


def register(app: typer.Typer) -> None:
    """Make the command here part of `app`."""
    app.command()(rebuild)


def rebuild(  # noqa: PLR0913 - one parameter an option of the command
    store: console.StoreOption, actor: console.ActorOption, reason: console.ReasonOption, user: UserArgument = None,
    files: Annotated[list[str] | None, typer.Option("--from", metavar="FILE", show_default=False, help=(
        "Decide anew from this file, as `process` would from nothing; may be given several times."))] = None,
    leave_out: Annotated[bool, typer.Option("--leave-out", help=(
        "With --from: quarantine accepted measurements that the files do not hold, instead of refusing."))] = False,
    form: Annotated[str | None, typer.Option("--format", show_default=False, help=(
        f"With --from, where it is not recognised: {', '.join(FORMATS)}."))] = None,
    unit: Annotated[str | None, typer.Option(help="With --from: unit of weights without one.", show_default=False)] = None,
    tz: Annotated[str | None, typer.Option(help="With --from: IANA zone of timestamps without an offset.",
                                           show_default=False)] = None,
    nameless: Annotated[bool, typer.Option("--nameless", help=(
        "With --from: rows that name no user are USER's, as with `process --user USER`."))] = False,
    expect_version: ExpectOption = None, dry_run: DryRunOption = False, users: UsersOption = None,
    everyone: Annotated[bool, typer.Option("--all", help="Instead of USER: replay the log of every user.")] = False,
    resume: ResumeOption = None, json: console.JsonOption = False,
) -> None:
    """Replay a user's log and hold the head against it, or decide the user anew from files; what differs is committed.

    A replay writes nothing where the head is what the log gives, bit for bit.
    Where the log itself is damaged, it names the versions, writes nothing and ends with 1.

    Example: resetguard rebuild u1 --from weights.csv --store ./state --actor ops@example.org --reason "log damaged"
    """
    with console.command():
        asked = Asked(actor, reason, expect_version, dry_run)
        if not files:
            for name, given in (("--leave-out", leave_out), ("--format", form), ("--unit", unit), ("--tz", tz),
                                ("--nameless", nameless)):
                if given:
                    raise InvalidInput(NO_FILES.format(name))

            def replayed(manager: ResetManager, name: str) -> Told:
                return _by_replay(manager, name, asked, alone=user is not None)

            told = operate.run(store, user, users, resume, asked, "rebuild", replayed, _tell, json=json, everyone=everyone)
            if told is not None and told.done.outcome == "damaged":
                raise typer.Exit(console.FINDINGS)
            return
        listed = batch.listed(users) if users is not None and user is None and not everyone else None
        if user is None:
            _refuse_for_many(files, form, nameless=nameless, everyone=everyone)
        wanted = {user} if user is not None else set(listed or ())
        read = _read(tuple(files), Options(form, user if nameless else None, unit, tz), user, wanted)

        def decided(manager: ResetManager, name: str) -> Told:
            return _from_files(manager, name, read, asked, leave_out=leave_out)

        act = f"rebuild --from {' '.join(files)}"
        operate.run(store, user, users if listed is None else listed, resume, asked, act, decided, _tell, json=json)


def _refuse_for_many(files: list[str], form: str | None, *, nameless: bool, everyone: bool) -> None:
    """Raise InvalidInput for what can be asked of one user alone."""
    if everyone:
        message = "--all replays the logs; to decide many users anew from files, name them with --users"
        raise InvalidInput(message)
    if nameless:
        message = "--nameless is of one user; give USER instead of --users"
        raise InvalidInput(message)
    for name in files:
        if not _names_users(name, form):
            message = f"{name} names no user, so it is one person's; give USER instead of --users"
            raise InvalidInput(message)


def _names_users(name: str, form: str | None) -> bool:
    if name == STDIN:
        message = "a rebuild reads files, not standard input: save it to a file"
        raise InvalidInput(message)
    return (form or sniff(name)) in NAMING_USERS


def _read(names: tuple[str, ...], options: Options, user: str | None, wanted: set[str]) -> Files:
    """Read every file to its end, in the order of `process`, and keep the rows of the users that are asked for."""
    each = tuple(options if _names_users(name, options.format) else msgspec.structs.replace(options, user=user)
                 for name in names)
    rows: dict[str, list[tuple[int, SourceRow]]] = {name: [] for name in wanted}
    keys = tuple(_keys(name, each[number], user) for number, name in enumerate(names))
    digests = tuple(_sha256(name) for name in names)
    with OrderedRows() as spool:
        for number, name in enumerate(names):
            spool.add(number, open_source(name, each[number]))
        for number, row in spool:
            named = row.measurement.user if row.measurement is not None else row.user
            if named in rows:
                rows[named].append((number, _source_row(row)))
    return Files(names, keys, digests, rows)


def _source_row(row: Row) -> SourceRow:
    unreadable = None if row.measurement is not None else Unreadable(row.line, row.raw, row.reason, row.user)
    return SourceRow(row.row, row.measurement, unreadable)


def _sha256(name: str) -> str:
    try:
        with Path(name).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        message = f"{name} cannot be read: {error.strerror}; check the name and its permissions"
        raise InvalidInput(message) from error


def _keys(name: str, options: Options, user: str | None) -> tuple[bytes, ...]:
    """The keys under which a `process` of the file counts its rows, by the user and the order that it was given."""
    found = (source_hash(name, Job((name,), Path(), msgspec.structs.replace(options, user=named), "group", stream))
             for named, stream in product(dict.fromkeys((options.user, None, user)), (False, True)))
    return tuple(key for key in found if key is not None)


def _by_replay(manager: ResetManager, user: str, asked: Asked, *, alone: bool) -> Told:
    console.require_user(manager.store, user)
    done = rebuild_by_replay(manager, user, actor=asked.actor, reason=asked.reason, expect_version=asked.expect_version,
                             dry_run=asked.dry_run)
    if done.outcome == "damaged" and not alone:
        raise StoreCorrupt(damage_told(done), user=user)
    return Told(done)


def _from_files(manager: ResetManager, user: str, files: Files, asked: Asked, *, leave_out: bool) -> Told:
    store = manager.store
    console.require_user(store, user)
    sources = [Source(next((key for key in candidates if store.cursor(key) is not None), candidates[0]), name, digest)
               for name, candidates, digest in zip(files.names, files.keys, files.digests, strict=True)]
    return Told(rebuild_from(manager, user, sources, files.rows[user], actor=asked.actor, reason=asked.reason,
                             leave_out=leave_out, expect_version=asked.expect_version, dry_run=asked.dry_run))


def _tell(told: Told) -> None:
    done = told.done
    log, name = done.log, repr(done.user)
    if done.outcome == "damaged":
        console.say(damage_told(done))
        return
    if done.rows:
        _tell_rows(done)
    if done.outcome == "unchanged":
        passed = f"{log.steps} steps and {log.keyframes} keyframes of versions {log.first} to {log.last} of {name} replayed"
        console.say(f"{passed}: the head is what they give, bit for bit" if not done.rows else
                    f"{name} decided anew is what stands, bit for bit, and every measurement stays where it is")
        console.say("nothing was written")
        return
    if log.found != "equal":
        console.say(f"the head of {name} is {log.found}; the log has versions {log.first} to {log.last}, "
                    f"{len(log.damage)} of them damaged")
    before = f"version {done.base_version}" if done.before is not None else "nothing"
    dry = done.version is None
    print_differences(differences(done.before, done.after), before, "would be" if dry else f"version {done.version}")
    console.say(f"dry run: nothing was changed for {name}" if dry else
                f"{name} is at version {done.version}, read back as promised (attempt {done.attempt_id})")


def _tell_rows(done: Rebuilt) -> None:
    """What became of the rows of the files, and which measurements change their place."""
    counts = ", ".join(f"{count} {name}" for name, count in done.rows.items() if count and name != "read")
    moves = [f"{count} from {before} to {after}" for (before, after), count in sorted(done.moved.items())]
    console.print_record((
        ("rows of the user", f"{done.rows['read']}: {counts}"),
        ("change their place", "; ".join(moves) or "none"),
        *((("left out", f"{done.left_out}, quarantined"),) if done.left_out else ()),
        *((("stay aside", f"{done.not_in_files} that the files do not hold"),) if done.not_in_files else ()),
        *((("no longer text", f"{done.superseded} rows kept while the user could not be read"),) if done.superseded else ()),
    ), title=done.user)
