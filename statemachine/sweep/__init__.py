"""Deferred validation: rules that look at whole histories, off the hot path, many users side by side.

A sweep reads the logs of some users in one short read transaction, folds them all, asks each rule, and writes down what is
new; then it goes on to the next users.  Live writers wait for none of it but the commits of what was found.

It reads only what is committed, and each user at one moment: a user may be a measurement further when its finding is
written, and the finding names the version that it is of.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import msgspec
import numpy as np
import xxhash

from statemachine import audit
from statemachine.errors import InvalidInput, StoreCorrupt, StoreForeign, UserUnknown
from statemachine.state import user_key
from statemachine.store import keys, pages
from statemachine.store.draft import record
from statemachine.store.reading import StoredLog, Wanted, chunks
from statemachine.store.records import Head, Swept
from statemachine.sweep import memory, structure
from statemachine.sweep.consistency import STATISTICAL, Drift, NisHigh, NisLow, NisShare, Stuck, Whiteness
from statemachine.sweep.findings import Courses, DeferredRule, Finding, Severity
from statemachine.sweep.folding import fold
from statemachine.sweep.memory import Note, Notes
from statemachine.sweep.restoring import Restored, resting_on, restore_user
from statemachine.sweep.structure import CONFORMING, FOLD_HEAD, FOLD_IMAGE, STRUCTURAL
from statemachine.sweep.table import READABLE, tabulated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from statemachine.attempt import Context
    from statemachine.store import Store
    from statemachine.sweep.structure import Judged

__all__ = [
    "POLICIES", "RULES", "Courses", "DeferredRule", "Drift", "Finding", "NisHigh", "NisLow", "NisShare", "Restored", "Severity",
    "Stuck", "Sweep", "SweepReport", "Told", "Whiteness", "sweep",
]

Policy = Literal["audit", "alert", "restore"]
POLICIES: Final[tuple[Policy, ...]] = ("audit", "alert", "restore")
RULES: Final = (*STRUCTURAL, *(rule.name for rule in STATISTICAL))
"""The names of the shipped rules; "readable" is judged beside whichever are chosen."""

FINISHED: Final = "sweep.finished"
STOPPED: Final = "sweep.stopped"
_BY_NAME: Final = {rule.name: rule for rule in STATISTICAL}


class Told(NamedTuple):
    """A finding, whether it is new, and how the user's restore went where the policy asked for one."""

    finding: Finding
    new: bool
    restored: Restored | None = None


class Sweep(msgspec.Struct, frozen=True, kw_only=True):
    """What a sweep is asked to do.

    `users`: whom to judge, None for all.  `since_seq`: only users whom an audit row from that number on is about (accepted
    measurements leave no row).  `since_last`: only users who have new versions since a sweep last judged them by these
    rules and, to restore, this policy.  `rules`: names of shipped rules and rules of one's own, None for all shipped ones.
    `errors`: names of rules whose findings count as errors, whatever severity they have.

    `policy`: "audit" writes a row for each new finding; "alert" the same with `details.alert` true; "restore" also restores
    users whose head rests on an error, for which `actor` and `reason` must be given.  `dry_run` writes nothing at all.
    """

    users: tuple[str, ...] | None = None
    since_seq: int | None = None
    since_last: bool = False
    rules: tuple[str | DeferredRule, ...] | None = None
    errors: tuple[str, ...] = ()
    policy: Policy = "audit"
    actor: str = ""
    reason: str = ""
    dry_run: bool = False


class SweepReport(NamedTuple):
    """What a sweep did: users and versions judged, findings, those told for the first time, restores by outcome.

    `changed`: users left to the next sweep because they changed while theirs was being written down.  `rule_errors`: what
    rules raised, by name.  `skipped_rules`: rules that need figures which the estimator does not tell.  `complete` is false
    where it was stopped.  `attempt_id` finds the row that says all this; it is empty after a dry run.
    """

    attempt_id: str
    users: int
    versions: int
    findings: int
    new: int
    by_rule: dict[str, int]
    restores: dict[str, int]
    changed: int
    rule_errors: dict[str, str]
    skipped_rules: tuple[str, ...]
    complete: bool


class _Chosen(NamedTuple):
    """The rules of one sweep: the structural ones by name, the others as they are, and a fingerprint of all."""

    structural: frozenset[str]
    others: tuple[DeferredRule, ...]
    settings: dict[str, str]
    fingerprint: str


def sweep(
    context: Context, asked: Sweep, *, on_finding: Callable[[Told], None] | None = None,
    on_progress: Callable[[int, int], None] | None = None, stop: Callable[[], bool] | None = None,
) -> SweepReport:
    """Judge users by deferred rules and do with the findings what the policy says; see `Sweep`.

    What was written before a crash stays written, and is not told again by the next sweep.  `on_finding` is called for each
    finding, new or not, once it is durable; `on_progress` with users looked at and versions judged, after each chunk; `stop`
    is asked between chunks.  Raises InvalidInput for a rule or a policy that is not known and for a restore without actor
    and reason, UserUnknown for a user of whom nothing is stored; a rule that raises is told in the report and stops nothing.
    """
    store = context.store
    _require_meant(asked, store)
    chosen = _choose(asked, store)
    running = _Running(context, asked, chosen, on_finding or (lambda _: None))
    began_us = store.clock.monotonic_us()
    looked = 0
    complete = True
    users = _users(store, asked)
    for low, high in [(keys.FIRST_USER, b"")] if users is None else [(user + b"\0", user + b"\1") for user in users]:
        pages.check(store.engine, low, high)
    for logs, more in chunks(store.engine, users, running.wanted):
        running.chunk(logs)
        looked += more
        if on_progress is not None:
            on_progress(looked, running.versions)
        if stop is not None and stop():
            complete = False
            break
    report = running.report(complete=complete)
    if not asked.dry_run:
        _finish(store, asked, chosen, report, store.clock.monotonic_us() - began_us)
    return report


def _require_meant(asked: Sweep, store: Store) -> None:
    """Raise InvalidInput or StoreUnavailable for a sweep that cannot be made as it is asked for."""
    if asked.policy not in POLICIES:
        message = f"policy {asked.policy!r} is not one of {', '.join(POLICIES)}"
        raise InvalidInput(message)
    if asked.policy == "restore" and not asked.dry_run:
        audit.require_said(actor=asked.actor, reason=asked.reason)
    for text in (asked.actor, asked.reason):
        if text:
            audit.require_said(text=text)
    if not asked.dry_run:
        store.engine.check_writable()


def _choose(asked: Sweep, store: Store) -> _Chosen:
    structural, others = [], []
    for rule in asked.rules if asked.rules is not None else RULES:
        if not isinstance(rule, str):
            others.append(rule)
        elif rule in STRUCTURAL:
            structural.append(rule)
        elif rule in _BY_NAME:
            others.append(_BY_NAME[rule])
        else:
            message = f"no rule is called {rule!r}; there are {', '.join(RULES)}"
            raise InvalidInput(message)
    names = [*structural, *(rule.name for rule in others)]
    twice = [name for name, count in Counter([*names, READABLE]).items() if count > 1]
    if twice or not names:
        message = f"two rules are called {twice[0]!r}; give each a name of its own" if twice else "there is no rule to judge by"
        raise InvalidInput(message)
    strange = [name for name in asked.errors if name not in (*names, READABLE)]
    if strange:
        message = f"{strange[0]!r} is to count as an error, and is none of the rules judged by: {', '.join(names)}"
        raise InvalidInput(message)
    settings = {**dict.fromkeys(structural, ""), CONFORMING: store.validator.fingerprint,
                **{rule.name: rule.settings for rule in others}}
    told = "\0".join(f"{name}\0{settings[name]}" for name in sorted(names))
    if asked.policy == "restore":  # whom a sweep without it has judged may still have to be restored
        told = "\0".join((told, "restore", *sorted(asked.errors)))
    return _Chosen(frozenset(structural), tuple(others), settings, xxhash.xxh3_64_hexdigest(told.encode()))


def _users(store: Store, asked: Sweep) -> list[bytes] | None:
    given = None if asked.users is None else {user_key(user) for user in asked.users}
    for user in asked.users or ():
        if not store.knows(user):
            message = f"nothing is stored for {user!r}"
            raise UserUnknown(message, user=user)
    if asked.since_seq is None:
        return None if given is None else sorted(given)
    touched = memory.swept_since(store, asked.since_seq)
    return touched if given is None else [user for user in touched if user in given]


class _Running:
    """One sweep under way."""

    def __init__(self, context: Context, asked: Sweep, chosen: _Chosen, on_finding: Callable[[Told], None]) -> None:
        self.context = context
        self.store = context.store
        self.asked = asked
        self.chosen = chosen
        self.on_finding = on_finding
        self.restores_errors = asked.policy == "restore"
        self.sweep_id = "" if asked.dry_run else self.store.ids.attempt_id()
        self.notes = Notes(self.sweep_id, asked.actor or "sweep", asked.reason or "deferred validation",
                           asked.policy == "alert", chosen.fingerprint, chosen.settings)
        self.users = self.versions = self.findings = self.new = self.changed = 0
        self.by_rule: Counter[str] = Counter()
        self.restores: Counter[str] = Counter()
        self.rule_errors: dict[str, str] = {}
        self.skipped: set[str] = set()

    def wanted(self, candidate: Wanted) -> bool:
        """Whether a user is to be judged, by its head and the note on it."""
        if not self.asked.since_last:
            return True
        stored, noted, user = candidate
        try:
            head, swept = record(Head, keys.head(user), stored), record(Swept, keys.swept(user), noted)
        except (StoreCorrupt, StoreForeign):
            return True
        return head is None or swept is None or (swept.version, swept.rules) != (head.version, self.chosen.fingerprint)

    def chunk(self, logs: list[StoredLog]) -> None:
        """Judge some users and act on what was found."""
        if not logs:
            return
        table = tabulated(logs, self.store.estimator)
        judged = structure.judged_by(logs, table, fold(self.store.estimator, table.rows), self.store.estimator)
        found: dict[str, list[Finding]] = {}
        for finding in self._judge(judged):
            severity: Severity = "error" if finding.rule in self.asked.errors else finding.severity
            found.setdefault(finding.user, []).append(finding._replace(severity=severity))
        self.users += len(logs)
        self.versions += sum(len(log.versions) for log in logs)
        resets = structure.reset_of(table.lanes, len(logs)).tolist()
        errors = [resting_on(found.get(user, ()), reset) if self.restores_errors else []
                  for user, reset in zip(table.users, resets, strict=True)]
        notes = [self._note(log, table.ranges[number], found.get(table.users[number], []), settled=not errors[number])
                 for number, log in enumerate(logs)]
        left = set() if self.asked.dry_run else {one.log.user for one in memory.write_down(self.store, notes, self.notes)}
        self.changed += len(left)
        for number, note in enumerate(notes):
            if note.log.user not in left and (findings := found.get(table.users[number])):
                self._tell(note, findings, errors[number])

    def _note(self, log: StoredLog, versions: tuple[int, int], findings: list[Finding], *, settled: bool) -> Note:
        noted = memory.known(log)
        first, last = versions
        return Note(log, last, first, tuple(one for one in findings if memory.is_new(one, noted, self.notes)), settled)

    def _tell(self, note: Note, findings: list[Finding], errors: list[Finding]) -> None:
        restored = None
        if errors:
            restored = restore_user(self.context, errors[0].user, errors, note.version, actor=self.asked.actor,
                                    reason=self.asked.reason, dry_run=self.asked.dry_run)
            self.restores[restored.outcome] += 1
        for finding in findings:
            new = finding in note.findings
            self.findings += 1
            self.new += new
            self.by_rule[finding.rule] += 1
            self.on_finding(Told(finding, new, restored))

    def _judge(self, judged: Judged) -> Iterator[Finding]:
        structural, estimator = self.chosen.structural, self.store.estimator
        yield from structure.troubles(judged)
        if FOLD_HEAD in structural:
            yield from structure.fold_head(judged, estimator)
        if FOLD_IMAGE in structural:
            yield from structure.fold_image(judged)
        if CONFORMING in structural:
            yield from structure.conforming(judged, self.store.validator)
        courses = _courses(judged)
        for rule in self.chosen.others:
            if not set(rule.needs) <= set(courses.figures):
                self.skipped.add(rule.name)
                continue
            try:
                findings = [_checked(finding, rule, courses) for finding in rule.judge(courses)]
            except Exception as error:  # noqa: BLE001 - a user's rule; its failure is no finding and stops no other
                self.rule_errors[rule.name] = audit.plain(f"{type(error).__name__}: {error}")
                continue
            yield from findings

    def report(self, *, complete: bool) -> SweepReport:
        """What was done so far."""
        return SweepReport(self.sweep_id, self.users, self.versions, self.findings, self.new, dict(sorted(self.by_rule.items())),
                           dict(sorted(self.restores.items())), self.changed, self.rule_errors, tuple(sorted(self.skipped)),
                           complete)


def _checked(finding: Finding, rule: DeferredRule, courses: Courses) -> Finding:
    """The finding, if it is one of its rule's about a user it was given; raises InvalidInput."""
    if type(finding) is not Finding or finding.rule != rule.name or finding.user not in courses.users:
        message = f"{finding!r} is no finding of {rule.name!r} about one of the users it was given"
        raise InvalidInput(message)
    return finding


def _courses(judged: Judged) -> Courses:
    table, folded = judged.table, judged.folded
    nis = folded.nis
    for number, (row, _) in folded.trouble.items():
        stop = int(table.rows.starts[number] + table.rows.lengths[number])
        nis[row:stop] = np.nan
    resets = np.array([lane.reset for lane in table.lanes], np.int64)
    return Courses(
        users=table.users, starts=np.searchsorted(table.user, np.arange(len(table.users) + 1)), user=table.user,
        version=table.version, at_us=table.rows.at_us, reset=np.repeat(resets, table.rows.lengths),
        newest_reset=structure.reset_of(table.lanes, len(table.users)), nis=nis, adapting=folded.adapting,
        figures=folded.figures)


def _finish(store: Store, asked: Sweep, chosen: _Chosen, report: SweepReport, duration_us: int) -> None:
    """The row that says what the sweep did."""
    counts: Mapping[str, Any] = report._asdict()
    details = {name: counts[name] for name in (
        "users", "versions", "findings", "new", "by_rule", "restores", "changed", "rule_errors", "skipped_rules", "complete")}
    details |= {"policy": asked.policy, "rules": [*sorted(chosen.structural), *(rule.name for rule in chosen.others)]}
    entry = audit.act(FINISHED if report.complete else STOPPED, report.attempt_id, actor=asked.actor or "sweep",
                      reason=asked.reason or "deferred validation", at_us=store.clock.now_us(), kind="sweep",
                      outcome="done" if report.complete else "stopped", trigger="sweep", details=details)
    draft = store.draft()
    draft.entries.append(entry._replace(public=msgspec.structs.replace(entry.public, duration_us=duration_us)))
    store.commit(draft)
