"""The deferred rules over the log itself: does it fold to what is stored, and does every state in it pass the rules in force.

- `fold-head`: the fold of the log is, bit for bit, the state that the head holds.
- `fold-image`: the fold of the log up to a keyframe is, bit for bit, the keyframe.
- `conforming`: every state that can be read passes the rules in force.  A stretch of states that break the same rule is one
  finding, of its first version; it is an error where it reaches the head, which the next measurement then rests on.
- `readable`: every version can be read at all; it is always judged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from statemachine import naming
from statemachine.errors import StoreCorrupt, StoreForeign
from statemachine.store import keys
from statemachine.store.draft import record
from statemachine.store.records import Head
from statemachine.sweep.findings import Finding, Severity
from statemachine.sweep.table import READABLE
from statemachine.validation import StateValidator, Violation

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from statemachine.estimator import Estimator
    from statemachine.store.reading import StoredLog
    from statemachine.sweep.table import Lane, Table
    from statemachine.vectorised import Folded

FOLD_HEAD: Final = "fold-head"
FOLD_IMAGE: Final = "fold-image"
CONFORMING: Final = "conforming"
STRUCTURAL: Final = (FOLD_HEAD, FOLD_IMAGE, CONFORMING)
NOBODY: Final = -1
STRETCHES_MAX: Final = 32
"""Findings of `conforming` for each user, the newest: more say no more."""


class Judged(NamedTuple):
    """A chunk folded: its table, what the fold gave, and the lanes whose end is not the image that it should be."""

    logs: Sequence[StoredLog]
    table: Table
    folded: Folded
    differing: frozenset[int]


def troubles(judged: Judged) -> Iterator[Finding]:
    """What could not be read, or not be folded to its end."""
    yield from judged.table.findings
    for number, (row, why) in sorted(judged.folded.trouble.items()):
        lane, version = judged.table.lanes[number], int(judged.table.version[row])
        yield Finding(judged.table.users[lane.user], version, READABLE, "error", why, "a step that can be repeated", "", version)


def judged_by(logs: Sequence[StoredLog], table: Table, folded: Folded, estimator: Estimator) -> Judged:
    """A chunk with its keyframes compared."""
    differing = {number for number, lane in enumerate(table.lanes) if lane.met and number not in folded.trouble
                 and estimator.encode(_end(table, folded, number)) != lane.met}
    return Judged(logs, table, folded, frozenset(differing))


def fold_image(judged: Judged) -> Iterator[Finding]:
    """Keyframes that are not what the log before them folds to."""
    for number in sorted(judged.differing):
        lane = judged.table.lanes[number]
        yield Finding(judged.table.users[lane.user], lane.last, FOLD_IMAGE, "error", "another state",
                      "bit for bit the fold of the versions before it", "", lane.last)


def fold_head(judged: Judged, estimator: Estimator) -> Iterator[Finding]:
    """Heads that are not what their log folds to, or of another version than its newest."""
    table = judged.table
    newest: dict[int, int] = {lane.user: number for number, lane in enumerate(table.lanes)}
    for user, log in enumerate(judged.logs):
        name, last = table.users[user], table.ranges[user][1]
        try:
            head = record(Head, keys.head(log.user), log.head)
        except (StoreCorrupt, StoreForeign) as error:
            told = error.problem.replace(naming.record(keys.head(log.user)), "its record")
            yield Finding(name, last, FOLD_HEAD, "error", told, "readable", "", last)
            continue
        if head is None or head.version != last:
            found = "no head" if head is None else f"a head of version {head.version}"
            yield Finding(name, last, FOLD_HEAD, "error", found, f"of version {last}, the newest in the log", "", last)
            continue
        number = newest.get(user)
        if number is None or table.lanes[number].last != last or number in judged.folded.trouble:
            continue  # told as unreadable
        if estimator.encode(_end(table, judged.folded, number)) != head.state:
            yield Finding(name, last, FOLD_HEAD, "error", "another state", "bit for bit the fold of the log", "", last)


def _end(table: Table, folded: Folded, number: int) -> Any:
    """The state at the end of a lane."""
    length = int(table.rows.lengths[number])
    return folded.state(number, int(table.rows.starts[number]) + length - 1) if length else table.lanes[number].state


def conforming(judged: Judged, validator: StateValidator) -> Iterator[Finding]:
    """Stretches of states that break a rule in force."""
    table, folded = judged.table, judged.folded
    suspect = ~folded.sound()
    others = StateValidator(tuple(rule for rule in validator.rules if not any(rule is known for known in folded.vouched)))
    suspects = np.concatenate((np.zeros(1, np.int64), np.cumsum(suspect)))
    broken: dict[int, dict[int, tuple[Violation, ...]]] = {}
    passed_to = (NOBODY, 0)
    for number, lane in enumerate(table.lanes):
        start = int(table.rows.starts[number])
        stop = folded.trouble[number][0] if number in folded.trouble else start + int(table.rows.lengths[number])
        # A keyframe that the lane before it ends in, bit for bit, was judged there.
        first = () if passed_to == (lane.user, lane.version) else validator.validate(lane.state)
        passed = not first and not others.rules and suspects[start] == suspects[stop]
        ends_in_next = lane.met and number not in judged.differing and number not in folded.trouble
        passed_to = (lane.user, lane.last) if passed and ends_in_next else (NOBODY, 0)
        if first:
            broken.setdefault(lane.user, {})[lane.version] = first
        if passed:
            continue
        known = None if first else lane.state
        for row in range(start, stop):
            state = folded.state(number, row)
            asked = validator if first or suspect[row] else others
            if found := asked.validate(state, None, known):
                broken.setdefault(lane.user, {})[int(table.version[row])] = found
            known = None if found else state
    for user, by_version in broken.items():
        yield from _stretches(table, user, by_version)


def _stretches(table: Table, user: int, broken: dict[int, tuple[Violation, ...]]) -> Iterator[Finding]:
    """One finding for each stretch of neighbouring versions that break one rule; it shows the first thing wrong there."""
    running: dict[str, tuple[int, Violation, int]] = {}
    ended: list[tuple[int, Violation, int]] = []
    for version in sorted(broken):
        now: dict[str, tuple[int, Violation, int]] = {}
        for violation in reversed(broken[version]):
            known = running.get(violation.rule)
            follows = known is not None and known[2] == version - 1
            now[violation.rule] = (known[0], known[1], version) if known and follows else (version, violation, version)
        ended.extend(stretch for rule, stretch in running.items() if rule not in now or now[rule][0] != stretch[0])
        running = now
    ended.extend(running.values())
    last = table.ranges[user][1]
    for first, violation, through in sorted(ended, key=lambda stretch: (stretch[0], str(stretch[1])))[-STRETCHES_MAX:]:
        reach = "" if through == first else f", to version {through}"
        told = f"{violation.rule}: {violation.path} is {violation.value}{reach}"
        severity: Severity = "error" if through == last else "warning"
        yield Finding(table.users[user], first, CONFORMING, severity, told, violation.limit, violation.unit, first)


def reset_of(lanes: Sequence[Lane], users: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """For each user the version at which its newest course begins, 0 for one without a lane."""
    newest = np.zeros(users, np.int64)
    for lane in lanes:
        newest[lane.user] = lane.reset
    return newest
