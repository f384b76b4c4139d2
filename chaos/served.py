"""What a store that may be damaged serves, held against what it held: the truth, an error that tells, or something third."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final, NamedTuple

from chaos.history import Event
from chaos.oracle import Oracle
from chaos.target import Target
from chaos.workload import digest
from statemachine import ResetError, Store
from statemachine.errors import VersionPruned
from statemachine.state import user_key
from statemachine.store import log
from statemachine.store.checkup import Checkup

DAMAGED: Final = "the head was read from the log"


class Person(NamedTuple):
    """One user as the store held them: `versions` are the digests of the states, `lines` the history."""

    version: int
    versions: dict[int, str]
    lines: list[Any]


class Truth(NamedTuple):
    """All that reading a store gives when nothing is wrong with it."""

    people: dict[str, Person]
    kept: list[Any]
    rows: list[Any]
    chain: Any


class Seen(NamedTuple):
    """What reading gave instead: errors that told, by user ("" for nobody's), what was missing unsaid, and what was wrong."""

    told: list[tuple[str, str]]
    missing: list[tuple[str, str]]
    wrong: list[str]


def truth(target: Target, store: Store) -> Truth:
    """The truth of a sound store."""
    people = {}
    for name in store.users():
        first, last = store.version_range(name)
        versions = {v: _folded(target, store, name, v) for v in range(max(first, 1), last + 1)}
        people[name] = Person(last, versions, list(store.history(name)))
    return Truth(people, list(store.quarantine()), list(store.audit()), store.verify_audit())


def _folded(target: Target, store: Store, name: str, version: int) -> str:
    return digest(target, log.fold(store.engine.get, store.estimator, user_key(name), version))


def look(target: Target, store: Store, true: Truth, nth: int) -> Seen:
    """Read a store as programs and people do; `nth` says which version of each user is read back, a different one each time."""
    seen = Seen([], [], [])
    for name, person in true.people.items():
        _read(seen, name, partial(_head, target, store, name, person))
        _read(seen, name, partial(_version, target, store, name, person, nth))
        _read(seen, name, lambda: _lines("history", store.history(name), person.lines))  # noqa: B023 - read at once
    _read(seen, "", lambda: _lines("quarantine", store.quarantine(), true.kept))
    _read(seen, "", lambda: _lines("users", store.users(), list(true.people)))
    if _read(seen, "", lambda: _chain(store, true)):
        _read(seen, "", lambda: _lines("audit", store.audit(), true.rows))
    return seen


Found = Iterator[tuple[str, str]]
"""What is not as it should be: "told", "missing" or "wrong", and what."""


def _read(seen: Seen, name: str, read: Callable[[], Found]) -> bool:
    """Do one reading; whether it gave the truth."""
    sound = True
    try:
        for how, what in read():
            sound = False
            if how == "wrong":
                seen.wrong.append(f"{what} of {name!r}" if name else what)
            else:
                (seen.told if how == "told" else seen.missing).append((name, what))
    except ResetError as error:
        seen.told.append((name, f"{error.kind}: {error}"))
        return False
    return sound


def _head(target: Target, store: Store, name: str, person: Person) -> Found:
    loaded = store.load(name)
    if loaded is None:
        if person.version:
            yield "missing", "no state is said to be stored"
        return
    if loaded.head_damaged:
        yield "told", DAMAGED
    if loaded.version != person.version:
        yield ("missing" if loaded.version in person.versions else "wrong"), f"version {loaded.version}, not {person.version},"
    if digest(target, loaded.state) != person.versions.get(loaded.version, ""):
        yield "wrong", f"another state as version {loaded.version}"


def _version(target: Target, store: Store, name: str, person: Person, nth: int) -> Found:
    if not person.versions:
        return
    number = sorted(person.versions)[nth % len(person.versions)]
    try:
        loaded = store.load(name, number)
    except VersionPruned:
        yield "missing", f"version {number}"
        return
    if loaded is None or digest(target, loaded.state) != person.versions[number]:
        yield "wrong", f"another state as version {number}"


def _lines(what: str, lines: Iterator[Any], true: list[Any]) -> Found:
    there = list(lines)
    if there == true:
        return
    if what == "users" or all(line in true for line in there):  # a name is no record of its own: doctor judges what it leads to
        yield "missing", f"lines of the {what}"
    else:
        yield "wrong", f"lines of the {what} that never were"


def _chain(store: Store, true: Truth) -> Found:
    check = store.verify_audit()
    if check.problem:
        yield "told", f"audit: {check.problem}"
    elif check != true.chain:
        yield "missing", "rows of the audit log"


def doctor(store: Store) -> list[str]:
    """What the checkup finds, each as a sentence."""
    return [f"{found.subject}: {found.problem}; {found.remedy}" for found in Checkup(store).run()]


def wrong_versions(target: Target, events: list[Event], store: Store) -> Iterator[str]:
    """Versions that were told, that can be read, and that are not the states that were told."""
    for name, told in Oracle(events).versions.items():
        for version, expected in told.items():
            try:
                found = _folded(target, store, name, version)
            except ResetError:
                continue
            if expected and found != expected:
                yield f"durable: version {version} of {name!r} is not the state that was told"
