"""The operator's hand on states: `restore` and `reset`, of one user or of a list; each act is audited and read back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, Protocol, TypeVar

import typer

from statemachine.cli import batch, console
from statemachine.cli.inspect import differences, print_differences
from statemachine.cli.instants import instant_us, shown
from statemachine.clock import US_PER_DAY, from_us, iso
from statemachine.errors import ConflictError, InvalidInput, StoreCorrupt, UserUnknown, VersionPruned
from statemachine.manager import ResetManager
from statemachine.state import Measurement, user_key
from statemachine.store import keys

if TYPE_CHECKING:
    from collections.abc import Callable

    from statemachine.attempt import ResetResult
    from statemachine.store import Store

UserArgument = Annotated[str | None, typer.Argument(help="The user's id; or give --users.", metavar="USER", show_default=False)]
ExpectOption = Annotated[int | None, typer.Option("--expect-version", metavar="M", show_default=False, help=(
    "Change nothing unless the user is at this version."))]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help=(
    "Say what would change, and change nothing. Asks no breaker: one that is open may refuse the act itself."))]
UsersOption = Annotated[str | None, typer.Option("--users", metavar="FILE", show_default=False, help=(
    "Instead of USER: a file of ids, one a line; - is standard input. Each is an attempt of its own."))]
ResumeOption = Annotated[Path | None, typer.Option("--resume", metavar="FILE", show_default=False, help=(
    "With --users: the journal of users done. They are skipped when it is run again."))]


class Documented(Protocol):
    """What was done to a user, as a command tells it."""

    def document(self) -> dict[str, Any]:
        """What `--json` prints of it."""


Told = TypeVar("Told", bound=Documented)


class Asked(NamedTuple):
    """What is the same for every user of one command."""

    actor: str
    reason: str
    expect_version: int | None
    dry_run: bool


class Change(NamedTuple):
    """What was done, or would be: `before` is None where no state stood or none could be read."""

    user: str
    outcome: str
    attempt_id: str | None
    kind: str
    base_version: int
    version: int | None
    before: Any
    after: Any

    def document(self) -> dict[str, Any]:
        """What `--json` prints of it."""
        return {"user": self.user, "outcome": self.outcome, "attempt_id": self.attempt_id, "kind": self.kind,
                "base_version": self.base_version, "version": self.version, "fields": differences(self.before, self.after)}


def register(app: typer.Typer) -> None:
    """Make the commands here part of `app`."""
    for function in (restore, reset):
        app.command()(function)


def restore(  # noqa: PLR0913 - one parameter an option of the command
    store: console.StoreOption, actor: console.ActorOption, reason: console.ReasonOption, user: UserArgument = None,
    to_version: Annotated[int | None, typer.Option(metavar="N", show_default=False, help=(
        "The version to go back to, as `history` numbers them."))] = None,
    last_known_good: Annotated[bool, typer.Option("--last-known-good", help=(
        "Go back to the state before the reset under probation; else to the newest good version before the head."))] = False,
    expect_version: ExpectOption = None, dry_run: DryRunOption = False, users: UsersOption = None, resume: ResumeOption = None,
    json: console.JsonOption = False,
) -> None:
    """Make an older state of a user the newest, as a version of its own; nothing is taken out of the log.

    Example: resetguard restore u1 --to-version 12 --store ./state --actor ops@example.org --reason "bad scale"
    """
    with console.command():
        if (to_version is None) != last_known_good:
            message = "give exactly one of --to-version and --last-known-good"
            raise InvalidInput(message)
        asked = Asked(actor, reason, expect_version, dry_run)
        act = "restore --last-known-good" if to_version is None else f"restore --to-version {to_version}"
        run(store, user, users, resume, asked, act, lambda manager, name: restored(manager, name, to_version, asked), _tell,
            json=json)


def reset(  # noqa: PLR0913 - one parameter an option of the command
    store: console.StoreOption, actor: console.ActorOption, reason: console.ReasonOption, user: UserArgument = None,
    kind: Annotated[str, typer.Option(help="The kind of reset; `admin` without a weight keeps the estimate.")] = "admin",
    weight: Annotated[float | None, typer.Option(metavar="KG", help="A weight to start from.", show_default=False)] = None,
    at: Annotated[str | None, typer.Option(metavar="TIME", show_default=False, help=(
        "When it was weighed: ISO 8601 (UTC unless it says), or 2h, 3d ago. Before the newest measurement: with "
        "--expect-version alone."))] = None,
    expect_version: ExpectOption = None, dry_run: DryRunOption = False, users: UsersOption = None, resume: ResumeOption = None,
    json: console.JsonOption = False,
) -> None:
    """Reset a user's state by hand, in one transaction: the estimate is kept and widened, or begun from a weight.

    Example: resetguard reset u1 --store ./state --actor ops@example.org --reason "scale replaced"
    """
    with console.command():
        if (weight is None) != (at is None):
            message = "a weight to start from needs both --weight KG and --at TIME"
            raise InvalidInput(message)
        if weight is not None and users is not None:
            message = "one weight cannot be that of several users: give USER with --weight, or --users without"
            raise InvalidInput(message)
        asked = Asked(actor, reason, expect_version, dry_run)

        def one(manager: ResetManager, name: str) -> Change:
            measurement = None
            if weight is not None and at is not None:
                when = from_us(instant_us(at, manager.store.clock.now_us()))
                measurement = Measurement(user=name, at=when, weight_kg=weight, source="by hand", value=str(weight))
            return reset_by_hand(manager, name, kind, measurement, asked)

        run(store, user, users, resume, asked, f"reset --kind {kind}", one, _tell, json=json)


def run(  # noqa: PLR0913 - what the commands share
    directory: Path, user: str | None, users: str | list[str] | None, resume: Path | None, asked: Asked, act: str,
    one: Callable[[ResetManager, str], Told], tell: Callable[[Told], None], *, json: bool, everyone: bool = False,
) -> Told | None:
    """Act on USER and tell how it went, or on each of a list (with `everyone`, all who have a state) and say a line of each.

    What was done to USER, None of a list; raises typer.Exit where any of a list failed.
    """
    if sum((user is not None, users is not None, everyone)) != 1:
        message = "give USER, or --users FILE, not both" if user is not None else "give USER, or --users FILE"
        raise InvalidInput(message)
    if resume is not None and (user is not None or asked.dry_run):
        message = "--resume goes with --users, and not with --dry-run: its journal is of users changed"
        raise InvalidInput(message)
    if user is None and asked.expect_version is not None:
        message = "--expect-version is of one user; give USER instead of --users"
        raise InvalidInput(message)
    names = batch.listed(users) if isinstance(users, str) else users
    with console.writing(directory) as store:
        manager = ResetManager(store)
        if user is None:
            with batch.Journal(resume, act) as journal:
                batch.run(store, _with_a_state(store) if names is None else names, journal,
                          lambda name: one(manager, name).document(),
                          lambda name, version: _happened(store, name, version, asked), json=json)
            return None
        told = one(manager, user)
        if json:
            console.print_json(told.document())
        else:
            tell(told)
        return told


def _with_a_state(store: Store) -> list[str]:
    """Every user of whom a state was ever stored, readable or not; of others there are only measurements kept aside."""
    return [user for user in store.users()
            if store.version_range(user)[1] or store.engine.get(keys.head(user_key(user))) is not None]


def _happened(store: Store, user: str, version: int, asked: Asked) -> bool:
    """Whether the log has this act on the user as it stood at `version`; only one commit can follow a version."""
    return any(row.public.base_version == version and row.public.outcome in ("committed", "recovered")
               and (row.personal.actor, row.personal.reason) == (asked.actor, asked.reason) for row in store.audit(user))


def _tell(change: Change) -> None:
    before = f"version {change.base_version}" if change.before is not None else "nothing"
    dry = change.version is None
    print_differences(differences(change.before, change.after), before, "would be" if dry else f"version {change.version}")
    console.say(f"dry run: nothing was changed for {change.user!r}" if dry else
                f"{change.user!r} is at version {change.version}, read back as promised (attempt {change.attempt_id})")


def restored(manager: ResetManager, user: str, to_version: int | None, asked: Asked) -> Change:
    """Restore one user, None for the last known good version; raises as `ResetManager.restore`, StoreCorrupt too.

    A head that cannot be read is walked back first, by the same actor and for the same reason.
    """
    store = manager.store
    console.require_user(store, user)
    newest = store.version_range(user)[1]
    if not newest:
        message = f"{user!r} has no state yet, only measurements kept aside"
        raise UserUnknown(message, user=user)
    version = manager.last_known_good(user) if to_version is None else to_version
    target = store.load(user, version)
    if target is None:
        message = f"version {version} of {user!r} is not in the log"
        raise VersionPruned(message, first=0, last=newest, user=user)
    before, damaged = _head(store, user)
    if damaged and asked.expect_version is not None and asked.expect_version != newest:
        message = f"{user!r} is at version {newest}, not {asked.expect_version} as expected; nothing was changed"
        raise ConflictError(message, user=user)
    if damaged and asked.dry_run:
        return Change(user, "dry_run", None, "recovery", newest, None, before, target.state)
    if damaged:
        recovered = manager.recover(user, actor=asked.actor, reason=asked.reason)
        if recovered is not None and recovered.from_version == version:
            _read_back(store, user, recovered.version, target.state)
            return Change(user, "recovered", recovered.attempt_id, "recovery", newest, recovered.version, before, target.state)
        newest = store.version_range(user)[1]
    # Without an expected version the choice was still made at the head of this moment, and goes with it.  A wrong one is
    # left to the attempt, which is then in the audit log.
    expected = newest if damaged or asked.expect_version is None else asked.expect_version
    result = manager.restore(user, to_version=version, reason=asked.reason, actor=asked.actor, expect_version=expected,
                             dry_run=asked.dry_run)
    return _changed(store, result, before, target.state)


def _head(store: Store, user: str) -> tuple[Any, bool]:
    """The state at the head, None where none can be read, and whether the head is damaged."""
    try:
        loaded = store.load(user)
    except StoreCorrupt:
        return None, True
    return (None, False) if loaded is None else (loaded.state, loaded.head_damaged)


def reset_by_hand(manager: ResetManager, user: str, kind: str, measurement: Measurement | None, asked: Asked) -> Change:
    """Reset one user by the operations of a kind; raises as `perform_reset`, and StoreCorrupt where it reads back otherwise."""
    store = manager.store
    if measurement is None:
        console.require_user(store, user)
    how = manager.policy.kinds.get(kind)
    if how is None:
        message = f"no kind of reset is called {kind!r}; known: {', '.join(manager.policy.kinds)}"
        raise InvalidInput(message, user=user)
    loaded = store.load(user)
    now_us = store.clock.now_us()
    reading = None if measurement is None else store.estimator.reading(measurement)
    if loaded is not None and reading is not None:
        _meant(user, loaded.version, store.estimator.at_us(loaded.state), reading.at_us, asked)
    promised: list[Any] = []

    def noting(run: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def noted(state: Any) -> Any:
            after = run(state)
            promised.append(after)
            return after

        return noted

    operations = store.estimator.operations(how, reading, now_us if reading is None else reading.at_us)
    result = manager.perform_reset(
        user, kind, reason=asked.reason, actor=asked.actor, measurement=measurement, expect_version=asked.expect_version,
        operations=[(operation.name, noting(operation.run)) for operation in operations], dry_run=asked.dry_run,
        at=from_us(now_us),
    )
    return _changed(store, result, None if loaded is None else loaded.state, promised[-1])


def _meant(user: str, version: int, stands_us: int, at_us: int, asked: Asked) -> None:
    """A weight from before the newest one takes the state back in time: InvalidInput, unless that was seen and is meant."""
    if at_us >= stands_us:
        return
    days = (stands_us - at_us) / US_PER_DAY
    told = (f"the state of {user!r} is of {shown(iso(stands_us))} UTC, and a weight of {shown(iso(at_us))} takes it back "
            f"{days:,.1f} days")
    if asked.dry_run:
        console.say(f"{told}; without --dry-run this needs --expect-version {version}")
    elif asked.expect_version is None:
        message = f"{told}; give --expect-version {version} to say that you mean it, and --dry-run to see it first"
        raise InvalidInput(message, user=user)


def _changed(store: Store, result: ResetResult, before: Any, after: Any) -> Change:
    if result.version is not None:
        _read_back(store, result.user, result.version, after)
    attempt_id = result.attempt_id if result.version is not None else None
    return Change(result.user, result.outcome, attempt_id, result.kind, result.base_version, result.version, before, after)


def _read_back(store: Store, user: str, version: int, promised: Any) -> None:
    """Raise StoreCorrupt unless the committed version reads as promised, at the head or, if another followed, in the log."""
    found = store.load(user)
    if found is not None and found.version > version:
        found = store.load(user, version)
    encode = store.estimator.encode
    if found is None or found.head_damaged or found.version != version or encode(found.state) != encode(promised):
        read = "nothing" if found is None else f"version {found.version}"
        message = f"{user!r} was committed as version {version}, but what is read back ({read}) is not what was promised"
        raise StoreCorrupt(message, user=user)
