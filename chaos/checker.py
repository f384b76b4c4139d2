"""The checker: pure functions over a history and the store it left, one a promise, each naming what it finds broken.

Every function takes what is `Found` in the store, and the oracle of the history; it says nothing where the promise holds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, NamedTuple

from chaos.conform import monitor, rows
from chaos.history import Event
from chaos.oracle import ANY, Oracle
from chaos.target import Target
from chaos.workload import digest
from statemachine import ResetError, Store
from statemachine.audit import Row
from statemachine.state import user_key
from statemachine.store import keys, log
from statemachine.store.draft import record
from statemachine.store.records import Identity


class User(NamedTuple):
    """One user as stored: the versions that can be read, each with its state's digest and author, and the measurements."""

    first: int
    last: int
    head: str
    violations: tuple[Any, ...]
    digests: dict[int, str]
    authors: dict[int, str]
    recorded: Counter[tuple[str, str]]


class Found(NamedTuple):
    """What a store holds, read once."""

    users: dict[str, User]
    rows: list[Row]
    chain: str


Promise = Callable[[Oracle, Found], Iterator[str]]


def judge(target: Target, events: Iterable[Event], store: Store, *, marks_lost: bool = False) -> tuple[str, ...]:
    """Every promise that the store breaks against the history, each as "promise: what"; none where all hold.

    The store was opened anew since the last operation: a refused attempt is in its mark until a commit or an opening.
    With `marks_lost` the files of marks were lost with the power: refused attempts, which no commit waits for, may be missing.
    """
    try:
        found = look(target, store)
    except ResetError as error:
        return (f"readable: {error.kind}: {error}",)
    return weigh(events, found, marks_lost=marks_lost)


def weigh(events: Iterable[Event], found: Found, *, marks_lost: bool = False) -> tuple[str, ...]:
    """As `judge`, of a store that was read before."""
    oracle = Oracle(events)
    broken = [f"{promise.__name__}: {what}" for promise in PROMISES for what in promise(oracle, found)]
    if not marks_lost:
        broken += [f"audited: {what}" for what in audited(oracle, found)]
    return tuple(broken)


def look(target: Target, store: Store) -> Found:
    """Read a store whole, as its owner would."""
    users = {name: _user(target, store, name) for name in store.users()}
    return Found(users, list(store.audit()), store.verify_audit().problem)


def _user(target: Target, store: Store, name: str) -> User:
    key, get, estimator = user_key(name), store.engine.get, store.estimator
    first, last = store.version_range(name)
    loaded = store.load(name)
    digests = {v: digest(target, log.fold(get, estimator, key, v)) for v in range(max(first, 1), last + 1)}
    prefix = keys.identities(key)
    kept = [record(Identity, k, v) for k, v in store.engine.scan(prefix, keys.after(prefix))]
    return User(first, last, "" if loaded is None else digest(target, loaded.state), () if loaded is None else loaded.violations,
                digests, {info.version: info.author for info in store.history(name)},
                Counter((i.value, i.source) for i in kept if i is not None))


def durable(oracle: Oracle, found: Found) -> Iterator[str]:
    """What was acknowledged is there, as it was told (INV-02), and reads back bit for bit (INV-05)."""
    yield from oracle.contradictions
    for name, told in oracle.versions.items():
        user = found.users.get(name)
        last, digests = (user.last, user.digests) if user else (0, {})
        for version, expected in told.items():
            if version > last:
                yield f"version {version} of {name!r} was acknowledged; the store ends at {last}"
            elif expected and digests.get(version, expected) != expected:
                yield f"version {version} of {name!r} is not the state that was told"


def explained(oracle: Oracle, found: Found) -> Iterator[str]:
    """Each version comes from an operation acknowledged or in doubt; what was told to have failed left none (INV-01)."""
    for name, user in found.users.items():
        told = oracle.versions.get(name, {})
        unexplained = [v for v in range(max(user.first, 1), user.last + 1) if v not in told]
        if len(unexplained) > oracle.spare[name]:
            yield f"versions {unexplained} of {name!r} come from no operation; {oracle.spare[name]} at most were in doubt"


def gapless(_: Oracle, found: Found) -> Iterator[str]:
    """Versions have no gaps, and the head is the end of the log, bit for bit (INV-05)."""
    for name, user in found.users.items():
        missing = sorted(set(range(max(user.first, 1), user.last + 1)) - set(user.authors))
        if missing:
            yield f"versions {missing} of {name!r} are missing"
        if user.last and user.digests[user.last] != user.head:
            yield f"the head of {name!r} is not what its log folds to"


def valid(_: Oracle, found: Found) -> Iterator[str]:
    """No state is stored that breaks the rules (INV-04)."""
    for name, user in found.users.items():
        if user.violations:
            yield f"the head of {name!r} breaks {', '.join(str(v) for v in user.violations[:3])}"


def one_outcome(oracle: Oracle, found: Found) -> Iterator[str]:
    """Each attempt has at most one outcome, none other than it was told, and none that nobody began (INV-03)."""
    outcomes = Counter(row.public.attempt_id for row in found.rows if row.public.outcome and row.public.attempt_id)
    for attempt, count in outcomes.items():
        if count > 1:
            yield f"attempt {attempt} has {count} outcomes"
    unknown: Counter[str] = Counter()
    for row in found.rows:
        attempt, outcome = row.public.attempt_id, row.public.outcome
        if attempt and outcome:
            if attempt not in oracle.outcomes:
                # Where another writer was faster an attempt is made anew; nobody is told of the first, which changed nothing.
                unknown[row.personal.user] += outcome != "conflicted"
            elif outcome not in oracle.outcomes[attempt]:
                yield f"attempt {attempt} is {outcome} in the log, and {'/'.join(sorted(oracle.outcomes[attempt]))} was told"
    for name, count in unknown.items():
        if name in oracle.users and count > oracle.unknown_attempts[name]:
            yield f"{count} attempts on {name!r} are in the log, of whom at most {oracle.unknown_attempts[name]} were in doubt"


def effects(_: Oracle, found: Found) -> Iterator[str]:
    """A committed attempt has its version, and a version by an attempt has its committed row: one transaction (INV-03)."""
    committed = {row.public.attempt_id: row for row in found.rows if row.public.outcome == "committed"}
    for name, user in found.users.items():
        for version, author in user.authors.items():
            if author and author not in committed:
                yield f"version {version} of {name!r} is by attempt {author}, which has no committed row"
    for attempt, row in committed.items():
        of, made = found.users.get(row.personal.user), row.public.new_version
        if of is not None and made is not None and made >= max(of.first, 1) and of.authors.get(made) != attempt:
            yield f"attempt {attempt} is committed as version {made} of {row.personal.user!r}, which is not its own"


def conserved(oracle: Oracle, found: Found) -> Iterator[str]:
    """No measurement is lost, none is invented (INV-08)."""
    for name in oracle.users:
        recorded = found.users[name].recorded if name in found.users else Counter[tuple[str, str]]()
        must = Counter((value, source) for _, value, source in oracle.must[name])
        may = Counter((value, source) for _, value, source in oracle.must[name] | oracle.may[name])
        if must - recorded:
            yield f"measurements of {name!r} were taken in and are not stored: {sorted(must - recorded)}"
        if recorded - may:
            yield f"measurements of {name!r} are stored that nobody sent: {sorted(recorded - may)}"


def chained(_: Oracle, found: Found) -> Iterator[str]:
    """The audit log is one unbroken chain (INV-10)."""
    if found.chain:
        yield found.chain


def conforming(_: Oracle, found: Found) -> Iterator[str]:
    """The audit log is a behaviour of the protocol that `specs/` states."""
    verdict = monitor.judge(rows.of_dicts(row.as_dict() for row in found.rows))
    if verdict.rejected is not None:
        yield f"row {verdict.rejected.seq}: {verdict.rejected.why} ({verdict.rejected.invariant})"


def audited(oracle: Oracle, found: Found) -> Iterator[str]:
    """Each attempt that its caller was told of has its row once the store was opened again (INV-03)."""
    there = {row.public.attempt_id for row in found.rows}
    for attempt, allowed in oracle.outcomes.items():
        if attempt not in there and allowed != ANY:
            yield f"attempt {attempt}, told as {'/'.join(sorted(allowed))}, has no row"


PROMISES: Final[tuple[Promise, ...]] = (
    durable, explained, gapless, valid, one_outcome, effects, conserved, chained, conforming)
