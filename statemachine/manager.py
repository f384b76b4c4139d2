"""ResetManager: perform resets, by hand or as decided, over one store and with one policy."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from functools import partial
from typing import Any, Final, NamedTuple

import msgspec

from statemachine import codec
from statemachine.alerts import AlertCounts, AlertLimits, Alerts, Hook, broken, tell
from statemachine.attempt import Attempt, Context, ResetResult
from statemachine.audit import Row, act, require_said
from statemachine.breaker import (
    ADMITTING,
    CLOSED,
    COUNT_MAX,
    Breaker,
    BreakerPolicy,
    Budget,
    Forced,
    GlobalBreakerPolicy,
    Now,
    admit,
    checked,
    forced,
    let_go,
)
from statemachine.clock import iso, to_us
from statemachine.errors import (
    BreakerOpen,
    ConflictError,
    InvalidInput,
    MutationFailed,
    ResetError,
    ResetValidationError,
    StoreCorrupt,
    UserUnknown,
)
from statemachine.estimator import Estimator, source_name
from statemachine.gate import Gate, shadowed, turned_away
from statemachine.policy import Decision, ResetPolicy, Situation
from statemachine.recovery import Recovered, last_known_good, recover, restore
from statemachine.rollout import Rollout, RolloutProvider
from statemachine.state import Measured, Reading, require_version, user_key
from statemachine.store import Store, identities, keys
from statemachine.store.draft import Draft, breaker_key
from statemachine.store.draft import record as record_of
from statemachine.store.identities import Origin
from statemachine.store.records import ACCEPTED, HELD, Head, Identity
from statemachine.store.surroundings import MAP_SHARE_MAX, map_share
from statemachine.store.verification import AuditCheck
from statemachine.sweep import Sweep, SweepReport, Told, sweep
from statemachine.transaction import ResetTransaction
from statemachine.validation import StateValidator

RESERVED_KINDS: Final = frozenset({"measurement", "revocation", "restore", "recovery", "rebuild"})


class Incoming(msgspec.Struct, frozen=True, gc=False):
    """A measurement on its way in: its identity's key, and what the log would keep of it."""

    measurement: Measured
    key: bytes
    reading: Reading
    origin: Origin


class Plan(NamedTuple):
    """What an automatic reset does: where it starts, and the recorded measurements it then passes through the gate.

    `evidence` are the readings that agree and so caused the reset: nothing is taken in that they would then not fit.
    """

    start: tuple[bytes, Reading] | None
    start_state: Any
    members: tuple[tuple[bytes, Identity], ...]
    evidence: tuple[Reading, ...] = ()


class Health(NamedTuple):
    """Whether resets can be made now; `reasons` says why not, in words, and is empty where `ok`.

    `global_breaker`: its mode, a reason where it does not admit every attempt.  `audit_seq`: the newest audit row.
    `map_share`: of the largest map, 0 to 1.  `marks_waiting`: attempts of this process whose row waits for the next commit.
    `events_dropped`: copies of rows that no sink took; the stored log has them, so that they are no reason.  Nor are
    `alerts`: what became of them; `gate_failures`: how often this manager could not have the rollout's answer, of its provider
    or of the store, and took what stands in for it; `limits_reached`: how often, by this manager, what is kept aside of a user
    passed its limit (`StoreLimits.quarantined_measurements_max`).
    """

    ok: bool
    reasons: tuple[str, ...]
    global_breaker: str = ""
    audit_seq: int = 0
    map_share: float = 0.0
    marks_waiting: int = 0
    events_dropped: int = 0
    alerts: AlertCounts = AlertCounts()
    gate_failures: int = 0
    limits_reached: int = 0


class CheckedFilter:
    """An estimator and the rules in force, as the policy sees them."""

    def __init__(self, estimator: Estimator, validator: StateValidator) -> None:
        self._validate = validator.validate
        self.step = estimator.step
        self.nis = estimator.nis
        self.change = estimator.change
        self.spread = estimator.spread
        self.at_us = estimator.at_us

    def sound(self, state: Any) -> bool:
        """Whether the state passes the rules."""
        return not self._validate(state)


class ResetManager:
    """The door to resets.  Safe to share between threads; every call is an attempt of its own.

    `policy` says when and how, `breaker` when a user's attempts are refused and `global_breaker` when everybody's are.
    `resets_per_minute` is the budget: so many resets of all users together are committed within any minute, by all managers
    of the store that have a budget, and the others are refused (None, the default: as many as come).  First resets
    ("initial"), restores and rebuilds are neither refused by it nor counted.  A stream is counted by its own event time.
    `rollout` decides for which users decided resets are carried out, instead of the one in the store.  `alerts` are hooks
    (`Webhook`, `Command`, a callable) that are told after the commit of what somebody must know, until the store is closed:
    see `statemachine.alerts` for what is promised.

    With `live=True` attempts fire the real machine's triggers instead of the table compiled from it.  Raises InvalidInput
    for a budget that is not a whole number of at least 1.
    """

    def __init__(  # noqa: PLR0913 - each is a setting of its own
        self, store: Store, *, policy: ResetPolicy | None = None, breaker: BreakerPolicy | None = None,
        global_breaker: GlobalBreakerPolicy | None = None, resets_per_minute: int | None = None, live: bool = False,
        rollout: Rollout | RolloutProvider | None = None, alerts: Iterable[Hook] = (), alert_limits: AlertLimits | None = None,
    ) -> None:
        if resets_per_minute is not None:
            checked("resets_per_minute", resets_per_minute, 1, COUNT_MAX)
        self.store = store
        hooks = tuple(alerts)
        self.alerts = Alerts(store.emitter, hooks, alert_limits) if hooks else None
        self.policy = policy or ResetPolicy()
        self.filter = CheckedFilter(store.estimator, store.validator)
        self.context = Context(store, self.policy, breaker or BreakerPolicy(), live, global_breaker or GlobalBreakerPolicy(),
                               resets_per_minute)
        self.gate = Gate(store, rollout)
        self._limits_reached = 0

    def transaction(  # noqa: PLR0913 - each is recorded
        self, user: str, *, kind: str = "admin", reason: str, actor: str, expect_version: int | None = None,
        dry_run: bool = False, at: datetime | None = None,
    ) -> ResetTransaction:
        """An attempt for a `with` block whose operations are the caller's own; it commits only on `tx.commit()`.

        `at` (aware) is the instant of the event it stands for, by default the present; give it when old data is replayed.
        Raises InvalidInput for a missing reason or actor; the block's entry raises BreakerOpen or ConflictError.
        """
        if kind in RESERVED_KINDS:
            message = f"the kind {kind!r} is the log's own; choose another name"
            raise InvalidInput(message, user=user)
        return ResetTransaction(self.context, self._attempt(user, kind, reason, actor, expect_version, dry_run=dry_run, at=at))

    def _attempt(  # noqa: PLR0913 - each is recorded
        self, user: str, kind: str, reason: str, actor: str, expect_version: int | None, *, dry_run: bool,
        at: datetime | None = None,
    ) -> Attempt:
        require_said(user, reason=reason, actor=actor, kind=kind)
        if expect_version is not None:
            require_version("expect_version", expect_version, user)
        try:
            event_us = None if at is None else to_us(at)
        except ValueError as error:
            raise InvalidInput(str(error), user=user) from error
        return Attempt(user, kind, reason, actor, "by hand", expect_version=expect_version, dry_run=dry_run, event_us=event_us)

    def perform_reset(  # noqa: PLR0913 - each is recorded
        self, user: str, kind: str = "admin", *, reason: str, actor: str, measurement: Measured | None = None,
        operations: Iterable[tuple[str, Callable[[Any], Any]]] | None = None, expect_version: int | None = None,
        dry_run: bool = False, at: datetime | None = None,
    ) -> ResetResult:
        """Reset a user's state; durable on return, audited whatever happens.

        Without `operations` the kind's own are used: from `measurement`, or keeping the estimate and widening its
        covariance where there is none.  `at` (aware) is the instant of the event, by default the present.  `dry_run`
        goes as far as validated, asks no breaker, writes nothing at all and returns the deltas.

        Raises when the outcome is durable: MutationFailed, ResetValidationError, ConflictError; CommitInDoubt when that
        cannot be told; BreakerOpen when it is marked (the next commit writes it, or the next opening after a crash).
        UserUnknown and InvalidInput come before any attempt begins.
        """
        if operations is None and kind not in self.policy.kinds:
            message = f"no kind of reset is called {kind!r}; known: {', '.join(self.policy.kinds)}"
            raise InvalidInput(message, user=user)
        incoming = None if measurement is None else self.incoming(measurement, Origin())
        if measurement is not None and measurement.user != user:
            message = f"the measurement is of {measurement.user!r}, not of {user!r}"
            raise InvalidInput(message, user=user)
        tx = self.transaction(user, kind=kind, reason=reason, actor=actor, expect_version=expect_version, dry_run=dry_run, at=at)
        if incoming is None and not tx.exists():
            message = f"nothing is stored for {user!r}: give a measurement to start from"
            raise UserUnknown(message, user=user)
        try:
            with tx:
                if operations is not None:
                    for name, mutation in operations:
                        tx.apply(name, mutation)
                else:
                    self._apply_kind(tx, kind, None if incoming is None else incoming.reading)
                if incoming is not None:
                    tx.admit(incoming.key, identities.identity(measurement, incoming.reading, Origin(), ACCEPTED))  # type: ignore[arg-type]
                return tx.commit()
        except BaseException as error:
            tx.tell_doubt(error)
            raise

    def restore(  # noqa: PLR0913 - each is recorded
        self, user: str, *, to_version: int, reason: str, actor: str, expect_version: int | None = None, dry_run: bool = False,
    ) -> ResetResult:
        """Make an older version the new head; durable on return.  Raises VersionPruned, ConflictError and as a reset."""
        require_version("to_version", to_version, user)
        attempt = self._attempt(user, "restore", reason, actor, expect_version, dry_run=dry_run)
        return restore(self.context, attempt, to_version)

    def last_known_good(self, user: str) -> int:
        """The version that `restore` should go back to; see `recovery.last_known_good` for which it is and what it raises."""
        return last_known_good(self.store, user)

    def recover(self, user: str, *, actor: str = "", reason: str = "") -> Recovered | None:
        """Walk a user back past damage to the newest good version; None when there is no damage.

        Where a person asks for it, `actor` and `reason` are recorded; InvalidInput for one without the other.
        """
        if actor or reason:
            require_said(user, reason=reason, actor=actor)
        return recover(self.context, user, self.store.clock.now_us(), actor=actor, reason=reason)

    def sweep(
        self, asked: Sweep | None = None, *, on_finding: Callable[[Told], None] | None = None,
        on_progress: Callable[[int, int], None] | None = None, stop: Callable[[], bool] | None = None,
    ) -> SweepReport:
        """Judge whole histories by deferred rules, off the hot path; see `statemachine.sweep.sweep` and `Sweep`."""
        return sweep(self.context, asked or Sweep(), on_finding=on_finding, on_progress=on_progress, stop=stop)

    def breaker(self, user: str | None = None) -> Breaker:
        """The circuit breaker of a user, or with None the global one, as it is stored."""
        return Draft(self.store.engine).stored_breaker(b"" if user is None else user_key(user))

    def budget(self) -> Budget:
        """What was taken of late from the budget of resets a minute, as it is stored; `breaker.resets_counted` adds it up."""
        return Draft(self.store.engine).budget()

    def force_breaker(self, user: str | None, mode: Forced, *, reason: str, actor: str) -> Breaker:
        """Put a user's breaker, or with None the global one, under the operator's word until `release_breaker`.

        Durable on return, with its audit row; attempts that began before it may not commit.  Raises UserUnknown, and
        InvalidInput for a mode that is not one of `breaker.FORCED`.  A record that is damaged is replaced: what was counted and
        who was suspect is lost, and no attempt that began before it may commit.  Its bytes are in the audit row, but those of
        the global breaker, which may name anybody, under `keys.damaged(b"", generation)`, until a user is forgotten.
        """
        return self._set_breaker(user, "breaker.forced", lambda record: forced(record, mode), reason, actor)

    def release_breaker(self, user: str | None, *, reason: str, actor: str) -> Breaker:
        """Close a breaker, forced, open or damaged, with nothing counted and nobody suspect; durable on return, audited.

        With None what was taken from the budget of resets is forgotten too, also where it cannot be read.
        """
        return self._set_breaker(user, "breaker.released", let_go, reason, actor)

    def _set_breaker(
        self, user: str | None, event: str, change: Callable[[Breaker], Breaker], reason: str, actor: str,
    ) -> Breaker:
        store = self.store
        if user is not None and not store.knows(user):
            message = f"nothing is stored for {user!r}"
            raise UserUnknown(message, user=user)
        key = breaker_key(b"" if user is None else user_key(user))
        while True:
            draft = store.draft()
            before, damaged = self._standing_breaker(key, draft.expect(key))
            after = change(before)
            details = {"scope": "global" if user is None else "user", "from": before.mode, "to": after.mode,
                       "generation": after.generation}
            if damaged is not None:
                details |= {"from": "damaged"} | _kept(draft, user, after.generation, damaged)
            draft.put(key, codec.pack(after))
            if user is None and event == "breaker.released":
                draft.delete(keys.BUDGET)
            draft.entries.append(act(event, store.ids.attempt_id(), actor=actor, reason=reason, at_us=store.clock.now_us(),
                                     user=user or "", kind="breaker", details=details))
            try:
                store.commit(draft)
            except ConflictError:
                continue  # an attempt has just ended
            return after

    def _standing_breaker(self, key: bytes, stored: bytes | None) -> tuple[Breaker, bytes | None]:
        """The record that an operator changes, and its bytes where they are damaged.

        Then its generation is lost, and an attempt under way may hold any that it had.  Each generation takes an attempt or a
        commit, so far more than a microsecond: the present in microseconds since 1970 is above every one that was counted
        from 0, or from an earlier damage.  Only where the clock was set back might two be equal, to the microsecond.
        """
        try:
            return record_of(Breaker, key, stored) or CLOSED, None
        except StoreCorrupt:
            return Breaker(generation=self.store.clock.now_us()), stored

    def inspect(self, attempt_id: str) -> Row | None:
        """How an attempt ended, from the audit log; None when it has no outcome there (it changed nothing)."""
        return self.store.inspect(attempt_id)

    def verify_audit(self, against: str | None = None) -> AuditCheck:
        """As `Store.verify_audit`, and the hooks are told where the log does not verify ("audit.broken")."""
        check = self.store.verify_audit(against)
        if check.bad_seq is not None:
            tell(self.store, broken(self.store, check.bad_seq, check.problem))
        return check

    def health(self) -> Health:
        """Whether the store answers and may be written to, cheap enough for a readiness probe: three reads and no scan.

        It does not say that every record reads; `resetguard doctor` does.  Raises nothing for the store's sake.
        """
        store = self.store
        readonly = store.readonly
        waiting, dropped = 0 if readonly else len(store.marks.ended()), store.emitter.dropped
        alerts = self.alerts.counts() if self.alerts is not None else AlertCounts()
        counted = Health(ok=False, reasons=(), marks_waiting=waiting, events_dropped=dropped, alerts=alerts,
                         gate_failures=self.gate.failures, limits_reached=self._limits_reached)
        try:
            mode = self.breaker().mode
            seq, _ = store.audit_tail()
            share = map_share(store)
            registered = readonly or store.engine.get(keys.owner(store.committer.owner)) is not None
        except ResetError as error:
            return counted._replace(reasons=(str(error),))
        reasons = [text for text, applies in (
            (f"the global breaker is {mode}: automatic and manual resets wait for it", mode not in ADMITTING),
            (f"{share:.0%} of the largest map is used: raise StoreLimits.map_bytes_max", share > MAP_SHARE_MAX),
            ("few slots for attempts are left in this process: end some", not readonly and store.marks.full),
            ("this process was fenced: open the store anew", not registered),
            ("the store is opened for reading, so that nothing can be reset here: open it without readonly", readonly),
        ) if applies]
        return counted._replace(ok=not reasons, reasons=tuple(reasons), global_breaker=mode, audit_seq=seq, map_share=share)

    def note_limit(self) -> None:
        """What is kept aside of a user has passed its limit, durably."""
        self._limits_reached += 1

    def incoming(self, measurement: Measured, origin: Origin) -> Incoming:
        """The measurement with its identity and reading; raises InvalidInput when it is none."""
        key = identities.key_of(user_key(measurement.user), measurement)
        return Incoming(measurement, key, self.store.estimator.reading(measurement), origin)

    def situation(self, draft: Draft, head: Head | None, state: Any, user: bytes, before_us: int) -> Situation:
        """What the policy may know of a user: the state, the held run, and the pin of the reset under probation."""
        if head is None:
            return Situation(None)
        newest = draft.newest_identities(user, head.run_since_us, before_us, self.policy.run_looked_at_max)
        run = tuple(identities.reading_of(key, user, kept) for key, kept in newest if kept.disposition == HELD)
        pin = draft.pin(user) if head.probation is not None else None
        pin_state = self.store.estimator.decode(pin.state) if pin is not None and pin.version else None
        return Situation(state, run, pin_state, head.reset_us)

    def run_decided(  # noqa: PLR0913 - the parts of one decision
        self, draft: Draft, decision: Decision, incoming: Incoming, head: Head | None, situation: Situation, now: Now,
    ) -> ResetTransaction:
        """Carry out what was decided in `situation`, in a batch's draft; `result`, `head` and `state` tell what stands then.

        A refusal or a failure is no exception here: its outcome is in the draft, and durable with it.  So is that of a reset
        which the rollout holds back.
        """
        user, state = incoming.measurement.user, situation.state
        attempt = Attempt(user, decision.kind, "", "policy", decision.explain, incoming.key[-20:].hex(), now,
                          event_us=incoming.reading.at_us)

        def carry_out(tx: ResetTransaction) -> None:
            plan = self._plan(draft, decision, incoming, situation)
            self._carry_out(tx, decision.kind, plan, incoming)
            tx.run_since_us = tx.at_us
            tx.commit()

        ruling = self.gate.rule(draft, user, decision.kind)
        if ruling.verdict == "off":
            return turned_away(self.context, attempt, draft, head, ruling)
        if ruling.verdict == "shadow":
            return shadowed(self.context, attempt, draft, head, state, ruling, carry_out)
        tx = ResetTransaction(self.context, attempt, draft)
        if ruling.trouble:
            tx.details = ruling.details()
        try:
            tx.begin(head, state)
        except BreakerOpen:
            return tx
        try:
            carry_out(tx)
        except (MutationFailed, ResetValidationError) as error:
            tx.roll_back(error)
        except BaseException as error:
            if not tx.ended:  # else it is dropped with its batch
                tx.roll_back(error)
            raise
        return tx

    def would_probe(self, draft: Draft, user: bytes, now: Now) -> bool:
        """Whether an attempt on the user would now be a breaker's one probe."""
        own = admit(draft.breaker(user), self.context.breaker, now, user.decode())
        return "probe" in (own.verdict, admit(draft.breaker(b""), self.context.global_breaker, now, "").verdict)

    def _plan(self, draft: Draft, decision: Decision, incoming: Incoming, situation: Situation) -> Plan:
        """What a decision stands for, by the run and the pin it was made from: another process may have changed both since."""
        user = user_key(incoming.measurement.user)
        own = (incoming.key, identities.identity(incoming.measurement, incoming.reading, incoming.origin, HELD))
        if decision.start == "reading":
            return Plan((incoming.key, incoming.reading), situation.state, (own,))
        evidence = (*situation.run, incoming.reading)[decision.run_from:]
        since_us = self.store.estimator.at_us(situation.pin) if decision.start == "pin" else evidence[0].at_us - 1
        members = [(key, kept) for key, kept in draft.identities(user, since_us) if identities.is_evidence(kept)]
        # Another process may have taken the same one in since: then the commit is refused, and it is taken anew.
        members = sorted([*(member for member in members if member[0] != incoming.key), own])
        if decision.start == "pin":
            return Plan(None, situation.pin, tuple(members), evidence)
        first = next(i for i, (_, kept) in enumerate(members) if kept.disposition == HELD)
        key, kept = members[first]
        return Plan((key, identities.reading_of(key, user, kept)), situation.state, tuple(members), evidence)

    def _carry_out(self, tx: ResetTransaction, kind: str, plan: Plan, incoming: Incoming) -> None:
        estimator, user = self.store.estimator, user_key(incoming.measurement.user)
        if plan.start is None:
            tx.apply("return to the state before the reset", lambda _: plan.start_state)
        else:
            self._apply_kind(tx, kind, plan.start[1])
        left_out: list[tuple[bytes, Identity, str]] = []
        for key, kept in plan.members:
            reading = identities.reading_of(key, user, kept)
            if plan.start is not None and key == plan.start[0]:
                tx.admit(key, kept)
                continue
            reason = self._misfit(tx.state, reading, plan.evidence)
            if reason:
                left_out.append((key, kept, f"left out of the {kind}: {reason}"))
            else:
                tx.apply(f"admit {iso(reading.at_us)}", partial(_step, estimator, reading))
                tx.admit(key, kept)
        for key, kept, reason in left_out:
            tx.leave_out(key, kept, reason)

    def _misfit(self, state: Any, reading: Reading, evidence: Sequence[Reading]) -> str:
        """Why a recorded measurement has no place after `state` in a reset that rests on `evidence`; "" where it has one."""
        estimator, gate = self.store.estimator, self.policy.gate
        if reading.at_us <= estimator.at_us(state):
            return "not after the measurement before it"
        nis = estimator.nis(state, reading)
        if not nis <= gate:
            return f"NIS {nis:.1f} is above the gate {gate:g}"
        later = [other for other in evidence if other.at_us > reading.at_us]
        after = estimator.step(state, reading)
        if reading not in evidence and not (self.filter.sound(after) and self.policy.fits(self.filter, after, later)):
            return f"the {len(evidence)} measurements that agree would not fit it"
        return ""

    def _apply_kind(self, tx: ResetTransaction, kind: str, reading: Reading | None) -> None:
        how = self.policy.kinds[kind]
        at_us = tx.event_us if reading is None else reading.at_us
        for operation in self.store.estimator.operations(how, reading, at_us):
            tx.apply(operation.name, operation.run)

    def ordinary(self, state: Any, reset_us: int, reading: Reading, source: str) -> float | None:
        """The NIS of a reading that needs no decision, as the policy sees it; None for any other."""
        return self.policy.ordinary(self.filter, state, reset_us, reading, source_name(source))

    def decide(self, situation: Situation, incoming: Incoming, unfit: str = "") -> Decision:
        """The policy's word on an incoming measurement."""
        source = source_name(incoming.measurement.source)
        return self.policy.decide(self.filter, situation, incoming.reading, source, unfit)


def _kept(draft: Draft, user: str | None, generation: int, damaged: bytes) -> dict[str, str]:
    """Keep the bytes of a damaged breaker where forgetting a user that they may name erases them; what the row says of them."""
    if user is not None:
        return {"damaged": damaged.hex()}  # with the row, which is about the user
    draft.puts[keys.damaged(b"", generation)] = damaged
    return {"damaged_sha256": hashlib.sha256(damaged).hexdigest()}


def _step(estimator: Estimator, reading: Reading, state: Any) -> Any:
    return estimator.step(state, reading)
