"""The commands that look at users' states: `users`, `show`, `history`, `diff`, `quarantine list`; none changes one."""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from statemachine.cli import console
from statemachine.cli.console import Column
from statemachine.cli.instants import instant_us, shown
from statemachine.clock import US_PER_DAY, iso
from statemachine.errors import InvalidInput, StoreCorrupt, StoreForeign, UserUnknown, VersionPruned
from statemachine.store import keys, pages

if TYPE_CHECKING:
    from collections.abc import Iterator

    from statemachine.state import EstimatorState
    from statemachine.store import Store
    from statemachine.store.records import Kept, Loaded, Probation, VersionInfo

UserArgument = Annotated[str, typer.Argument(help="The user's id.", metavar="USER", show_default=False)]
UNREADABLE: Final = (StoreCorrupt, StoreForeign)
INSTANT: Final = "instant"
"""The unit of a field whose value is an instant; its difference is in days."""

quarantine = typer.Typer(
    help="Measurements and rows kept aside, with the reason.\n\nExample: resetguard quarantine list --store ./state",
    no_args_is_help=True,
)


def register(app: typer.Typer) -> None:
    """Make the commands here part of `app`."""
    for function in (users, show, history, diff):
        app.command()(function)
    app.add_typer(quarantine, name="quarantine")


def users(store: console.StoreOption, json: console.JsonOption = False) -> None:
    """Every user: version, instant, level and trend of the estimate, probation, and how much is kept aside.

    Example: resetguard users --store ./state
    """
    with console.command(), console.reading(store) as opened:
        damaged: list[str] = []
        gaps: list[str] = []
        columns = (
            Column("user", lambda row: row["user"], fold=10),
            Column("version", lambda row: row["version"], right=True),
            Column("at (UTC)", lambda row: shown(row["at"]), fold=10),
            Column("level, kg", lambda row: _plus_minus(row["level_kg"], row["level_sd"], ".2f"), right=True),
            Column("kg/day", lambda row: _plus_minus(row["trend_kg_per_day"], None, "+.3f"), right=True, spare=True),
            Column("probation", lambda row: _probation_short(row["probation"]), fold=9),
            Column("aside", lambda row: row["kept_aside"], right=True),
            Column("note", _note, fold=10),
        )
        console.print_rows(_user_rows(opened, damaged, gaps), columns, json=json, empty="no user is stored")
        if gaps:
            message = f"users may be stored that are not listed, at {len(gaps)} places; the first: {gaps[0]}"
            raise StoreCorrupt(message)
        if damaged:
            message = f"{len(damaged)} of the users cannot be read, the first of them {damaged[0]!r}"
            raise StoreCorrupt(message, user=damaged[0])


def _names(store: Store, gaps: list[str]) -> Iterator[str]:
    """Every user that can be reached: past a page that cannot be read with the next one, and why in `gaps`."""
    start = keys.FIRST_USER
    pages.check(store.engine, start)
    while start:
        try:
            for user in store.users_from(start):
                start = user.encode() + b"\1"
                yield user
        except UNREADABLE as trouble:
            gaps.append(str(trouble))
            start = pages.next_leaf(store.engine, start)
        else:
            return


def _user_rows(store: Store, damaged: list[str], gaps: list[str]) -> Iterator[dict[str, Any]]:
    for user in _names(store, gaps):
        loaded, error = None, None
        try:
            loaded = store.load(user)
        except UNREADABLE as trouble:
            damaged.append(user)
            error = str(trouble)
        state = loaded.state if loaded is not None else None
        yield {
            "user": user, "version": loaded.version if loaded is not None else None,
            "at": state and iso(state.kalman.at_us),
            "level_kg": state and state.kalman.x0, "level_sd": state and _sd(state.kalman.p00),
            "trend_kg_per_day": state and state.kalman.x1, "trend_sd": state and _sd(state.kalman.p11),
            "probation": _probation(store, user), "kept_aside": _kept_count(store, user),
            "nonconforming": loaded is not None and bool(loaded.violations),
            "head_damaged": loaded.head_damaged if loaded is not None else error is not None, "error": error,
        }


def _note(row: dict[str, Any]) -> str:
    if row["error"]:
        return str(row["error"])
    if row["version"] is None:
        return "no state yet"
    notes = (("breaks the rules in force", row["nonconforming"]), ("head damaged", row["head_damaged"]))
    return ", ".join(text for text, applies in notes if applies)


def _sd(variance: float) -> float | None:
    return math.sqrt(variance) if 0.0 <= variance < math.inf else None


def _plus_minus(value: float | None, sd: float | None, form: str) -> str | None:
    if value is None:
        return None
    return f"{value:{form}}" if sd is None else f"{value:{form}} ± {sd:{form.lstrip('+')}}"


def _probation(store: Store, user: str) -> dict[str, Any] | None:
    probation: Probation | None = None
    with contextlib.suppress(*UNREADABLE):
        head = store.head(user)
        probation = head.probation if head is not None else None
    if probation is None:
        return None
    return {"kind": probation.kind, "version": probation.version, "since": iso(probation.since_us),
            "accepted": probation.accepted}


def _probation_short(probation: dict[str, Any] | None) -> str | None:
    return None if probation is None else f"{probation['kind']}, {probation['accepted']} since"


def _kept_count(store: Store, user: str) -> int | None:
    try:
        return store.kept_count(user)
    except UNREADABLE:
        return None


def show(
    user: UserArgument, store: console.StoreOption,
    version: Annotated[int | None, typer.Option(help="An older version, as `history` numbers them.", show_default=False)] = None,
    at: Annotated[str | None, typer.Option(metavar="TIME", show_default=False, help=(
        "The state as of an event time: ISO 8601 (UTC unless it says), a date for its midnight, or 2h, 3d ago."))] = None,
    json: console.JsonOption = False,
) -> None:
    """One user's state: estimate, covariance, noise, adaptation, buffer, counters, probation and broken rules.

    Example: resetguard show u1 --store ./state --version 12
    """
    with console.command(), console.reading(store) as opened:
        console.require_user(opened, user)
        if version is not None and at is not None:
            message = "give --version or --at, not both"
            raise InvalidInput(message)
        if at is not None:
            version = _version_at(opened, user, instant_us(at, opened.clock.now_us()))
        loaded = opened.load(user, version)
        if loaded is None:
            message = f"{user!r} has no state yet, only measurements kept aside: `resetguard quarantine list --user` shows them"
            raise UserUnknown(message, user=user)
        document = _document(opened, loaded)
        if json:
            console.print_json(document)
        else:
            _print_state(loaded.state, document)
        if loaded.head_damaged:
            console.say(f"note: the head of {user!r} could not be read; this is folded from its log, and nothing is lost")


def _version_at(store: Store, user: str, at_us: int) -> int:
    version = store.version_at(user, at_us)
    if version is None:
        first, last = store.version_range(user)
        told = f"versions {first} to {last} are readable, all of later events" if last else "none is stored"
        message = f"no version of {user!r} is of {iso(at_us)} or earlier; {told}"
        raise VersionPruned(message, first=first, last=last, user=user)
    return version


def _document(store: Store, loaded: Loaded) -> dict[str, Any]:
    """What `show --json` prints."""
    state, user = loaded.state, loaded.user
    a, newest = state.adaptation, store.version_range(user)[1]
    return {
        "user": user, "version": loaded.version, "newest_version": newest, "at": iso(state.kalman.at_us),
        "attempt_id": loaded.author or None,
        "x": state.x.tolist(), "sd": [_sd(state.kalman.p00), _sd(state.kalman.p11)],
        "P": state.P.tolist(), "Q": state.Q.tolist(), "R": state.R, "dt_days_max": state.kalman.dt_days_max,
        "adaptation": {
            "active": store.estimator.adapting(state, state.kalman.at_us),
            "factor": a.f, "g": a.g, "decay": a.decay, "rate": a.rate,
            "reset_at": None if a.reset_at is None else a.reset_at.isoformat().replace("+00:00", "Z"),
            "count": a.count, "measurements": a.measurements, "until": iso(a.until_us),
            "multipliers": {"level": a.level, "trend": a.trend, "observation": a.observation},
        },
        "buffer": [{"at": iso(at_us), "kg": weight_kg} for at_us, weight_kg in state.buffer],
        "counters": {name: getattr(state.counters, name) for name in state.counters.__struct_fields__},
        "probation": _probation(store, user) if loaded.version == newest else None,
        "kept_aside": _kept_count(store, user),
        "violations": [violation._asdict() for violation in loaded.violations],
        "head_damaged": loaded.head_damaged,
    }


def _print_state(state: EstimatorState, document: dict[str, Any]) -> None:
    a = document["adaptation"]
    level, trend = document["sd"]
    multipliers = ", ".join(f"{name} {value:g}" for name, value in a["multipliers"].items())
    console.print_record((
        ("version", f"{document['version']} of {document['newest_version']}"),
        ("at", document["at"]),
        ("made by", f"attempt {document['attempt_id']}" if document["attempt_id"] else "a measurement"),
        ("level", f"{_plus_minus(state.kalman.x0, level, '.3f')} kg"),
        ("trend", f"{_plus_minus(state.kalman.x1, trend, '+.4f')} kg/day"),
        ("P", f"{_matrix(document['P'])} kg², kg²/day, kg²/day²"),
        ("Q", f"{_matrix(document['Q'])} kg²/day, (kg/day)²/day"),
        ("R", f"{document['R']:.6g} kg²"),
        ("adaptation", _adaptation(a)),
        ("", f"reset at {a['reset_at'] or '-'}, rate {a['rate']:g} measurements, multipliers {multipliers}"),
        ("buffer", _buffer(document["buffer"])),
        ("resets of", ", ".join(f"{name} {count}" for name, count in document["counters"].items())),
        ("probation", _probation_long(document["probation"])),
        ("kept aside", document["kept_aside"]),
        *(("BROKEN RULE", violation) for violation in map(_violation, document["violations"])),
    ), title=document["user"])


def _adaptation(a: dict[str, Any]) -> str:
    stands = "noise still widened" if a["active"] else "over"
    return f"factor {a['factor']:.4f}, {stands}: {a['count']} accepted of {a['measurements']}, until {a['until']}"


def _buffer(readings: list[dict[str, Any]]) -> str:
    if not readings:
        return "empty"
    weights = [reading["kg"] for reading in readings]
    return (f"{len(readings)} readings from {readings[0]['at']} to {readings[-1]['at']}, "
            f"{min(weights):.2f} to {max(weights):.2f} kg")


def _probation_long(probation: dict[str, Any] | None) -> str:
    if probation is None:
        return "none"
    return (f"since the {probation['kind']} reset that made version {probation['version']} at {probation['since']}, "
            f"{probation['accepted']} accepted since")


def _violation(v: dict[str, str]) -> str:
    return f"{v['rule']}: {v['path']} is {v['value']} {v['unit']}".rstrip() + f", must be {v['limit']}"


def _matrix(rows: list[list[float]]) -> str:
    return "[" + ", ".join("[" + ", ".join(f"{value:.6g}" for value in row) + "]" for row in rows) + "]"


def history(user: UserArgument, store: console.StoreOption, json: console.JsonOption = False) -> None:
    """The versions of a user in the log, oldest first: what made each, when, and the weight it took in.

    Example: resetguard history u1 --store ./state --json
    """
    with console.command(), console.reading(store) as opened:
        console.require_user(opened, user)
        columns = (
            Column("version", lambda row: row["version"], right=True),
            Column("kind", lambda row: row["kind"], fold=11),
            Column("at (UTC)", lambda row: shown(row["at"]), fold=10),
            Column("kg", lambda row: None if row["kg"] is None else f"{row['kg']:.2f}", right=True),
            Column("admitted", lambda row: row["admitted"], right=True),
            Column("record", lambda row: "image" if row["image"] else "step"),
            Column("attempt", lambda row: row["attempt_id"], fold=18),
        )
        console.print_rows(map(_history_row, opened.history(user)), columns, json=json, empty=f"{user!r} has no version yet")


def _history_row(info: VersionInfo) -> dict[str, Any]:
    return {"user": info.user, "version": info.version, "kind": info.kind, "at": iso(info.at_us),
            "kg": info.reading.values[0] if info.reading is not None else None, "admitted": info.admitted, "image": info.image,
            "attempt_id": info.author or None}


def diff(
    user: UserArgument, store: console.StoreOption,
    v1: Annotated[int, typer.Argument(help="The version to compare from.", metavar="V1", show_default=False)],
    v2: Annotated[int, typer.Argument(help="The version to compare to.", metavar="V2", show_default=False)],
    json: console.JsonOption = False,
) -> None:
    """Two versions of a user's state, field by field, with the difference (that of instants in days).

    Example: resetguard diff u1 3 4 --store ./state
    """
    with console.command(), console.reading(store) as opened:
        console.require_user(opened, user)
        rows = differences(*(_state(opened, user, version) for version in (v1, v2)))
        if json:
            console.print_json({"user": user, "v1": v1, "v2": v2, "fields": rows})
            return
        print_differences(rows, f"version {v1}", f"version {v2}")


def print_differences(rows: list[dict[str, Any]], before: str, after: str) -> None:
    """What `differences` found, for people, under the names of the two states."""
    columns = (
        Column("field", lambda row: row["field"]),
        Column(before, lambda row: _figure(row["v1"]), right=True, fold=12),
        Column(after, lambda row: _figure(row["v2"]), right=True, fold=12),
        Column("difference", lambda row: "=" if row["v1"] == row["v2"] else _figure(row["difference"]), right=True),
        Column("unit", lambda row: row["unit"]),
    )
    console.print_rows(rows, columns, json=False, empty="")


def differences(before: EstimatorState | None, after: EstimatorState) -> list[dict[str, Any]]:
    """Every field of two states, `v1` and `v2`, with the difference; `v1` is null where nothing stood before."""
    stood = {} if before is None else _fields(before)
    return [_difference(name, unit, stood[name][1] if stood else None, value) for name, (unit, value) in _fields(after).items()]


def _state(store: Store, user: str, version: int) -> EstimatorState:
    loaded = store.load(user, version)
    if loaded is None:
        message = f"nothing is stored for {user!r}"
        raise UserUnknown(message, user=user)
    state: EstimatorState = loaded.state
    return state


def _fields(state: EstimatorState) -> dict[str, tuple[str, Any]]:
    """Every field of a state under a dotted name, with its unit."""
    k, a = state.kalman, state.adaptation
    reset_us = None if a.reset_at is None else round(a.reset_at.timestamp() * 1e6)
    first, last = (state.buffer[0][0], state.buffer[-1][0]) if state.buffer else (None, None)
    return {
        "at": (INSTANT, k.at_us),
        "x.level": ("kg", k.x0), "x.trend": ("kg/day", k.x1),
        "sd.level": ("kg", _sd(k.p00)), "sd.trend": ("kg/day", _sd(k.p11)),
        "P.0.0": ("kg²", k.p00), "P.0.1": ("kg²/day", k.p01), "P.1.0": ("kg²/day", k.p10), "P.1.1": ("kg²/day²", k.p11),
        "Q.0.0": ("kg²/day", k.q0), "Q.1.1": ("(kg/day)²/day", k.q1), "R": ("kg²", k.r), "dt_days_max": ("days", k.dt_days_max),
        "adaptation.reset_at": (INSTANT, reset_us), "adaptation.count": ("measurements", a.count), "adaptation.factor": ("", a.f),
        "adaptation.g": ("", a.g), "adaptation.decay": ("", a.decay), "adaptation.rate": ("measurements", a.rate),
        "adaptation.level": ("", a.level), "adaptation.trend": ("", a.trend), "adaptation.observation": ("", a.observation),
        "adaptation.measurements": ("measurements", a.measurements), "adaptation.until": (INSTANT, a.until_us),
        "buffer.readings": ("readings", len(state.buffer)), "buffer.first": (INSTANT, first), "buffer.last": (INSTANT, last),
        **{f"counters.{name}": ("resets", getattr(state.counters, name)) for name in state.counters.__struct_fields__},
    }


def _difference(name: str, unit: str, before: Any, after: Any) -> dict[str, Any]:
    change = None if before is None or after is None else after - before
    if unit != INSTANT:
        return {"field": name, "unit": unit, "v1": before, "v2": after, "difference": change}
    days = None if change is None else change / US_PER_DAY
    v1, v2 = (None if at_us is None else iso(at_us) for at_us in (before, after))
    return {"field": name, "unit": "days", "v1": v1, "v2": v2, "difference": days}


def _figure(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.6g}"
    return shown(value) if isinstance(value, str) else value


@quarantine.command("list")
def quarantine_list(
    store: console.StoreOption,
    user: Annotated[str | None, typer.Option(help="Of this user alone.", show_default=False)] = None,
    json: console.JsonOption = False,
) -> None:
    """What is kept aside and why: rows that could not be read, then measurements; held ones may still become evidence.

    Example: resetguard quarantine list --user u1 --store ./state
    """
    with console.command(), console.reading(store) as opened:
        if user is not None:
            console.require_user(opened, user)
        columns = (
            Column("user", lambda row: row["user"], fold=8),
            Column("at (UTC), or row", _where, fold=10),
            Column("what", lambda row: row["raw"] if row["raw"] is not None else f"{row['value']} {row['unit']}", fold=12),
            Column("source", lambda row: row["source"], fold=8),
            Column("kept as", lambda row: row["disposition"]),
            Column("reason", lambda row: row["reason"], fold=20),
        )
        console.print_rows(map(_kept_row, opened.quarantine(user)), columns, json=json, empty="nothing is kept aside")


def _where(row: dict[str, Any]) -> str | None:
    return shown(row["at"]) if row["at"] is not None else f"{row['file'] or '-'}:{row['line']}"


def _kept_row(kept: Kept) -> dict[str, Any]:
    if kept.at_us is None:
        return {"user": kept.user or None, "disposition": "unreadable", "at": None, "value": None, "unit": None, "source": None,
                "file": kept.file or None, "line": kept.line, "raw": kept.raw, "reason": kept.reason}
    return {"user": kept.user, "disposition": kept.disposition, "at": iso(kept.at_us), "value": kept.value,
            "unit": kept.unit, "source": kept.source, "file": None, "line": None, "raw": None, "reason": kept.reason}
