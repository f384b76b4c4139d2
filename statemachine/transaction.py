"""ResetTransaction: one attempt to reset one user's state, from snapshot to durable outcome.

Every mutation is validated before it counts, a failure at any point rolls all of it back, and whatever happens the attempt
ends with exactly one outcome in the audit log (INV-01, INV-03, INV-04).  Leaving the block without `commit()` rolls back.
Steps of the write path, numbered as in ARCHITECTURE.md: 1 snapshot and mark, 2 mutate and validate, 3 collect in a draft.
"""

from __future__ import annotations

import contextlib
import shlex
import threading
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any, Final

import msgspec

from statemachine import audit, breaker, codec
from statemachine.attempt import Attempt, Checkpoint, Context, ResetResult
from statemachine.audit import Entry, Operation, Personal, Public
from statemachine.breaker import Admission, Breaker, Now
from statemachine.clock import iso
from statemachine.errors import (
    BreakerOpen,
    CommitInDoubt,
    ConflictError,
    ContractBroken,
    InvalidInput,
    MutationFailed,
    ResetError,
    ResetValidationError,
)
from statemachine.machine import Guard, Phase
from statemachine.marks import ENDED, RUNNING, WAITING, Mark, cut
from statemachine.state import user_key
from statemachine.store import identities, intents, keys, log
from statemachine.store.draft import DROPPED, BreakerEvent, Draft, Miss, MissReason, breaker_key, encoded, record
from statemachine.store.records import ACCEPTED, QUARANTINED, Aside, Head, Identity, Pin, Probation
from statemachine.validation import Violation

REASON_CHARS_MAX: Final = 500
TRACE_CHARS_MAX: Final = 64
EVENTS: Final = {"revocation": "reset.revoked", "restore": "state.restored", "rebuild": "state.rebuilt"}
UNBUDGETED: Final = frozenset({"initial", "restore", "rebuild"})
"""Kinds that no budget limits: a first state harms nobody's, a restore or rebuild undoes what the budget is there to limit."""
SCOPES: Final = {"breaker": ("user", "changed"), "global breaker": ("global", "changed"), "budget": ("budget", "budget")}
"""What a commit that is refused tells, by the reason of its miss: scope and reason of the BreakerOpen."""


class ResetTransaction:
    """One attempt; use it in a `with` block.  With `draft` given, its outcome becomes durable with that draft.

    `tx.state` is the newest validated candidate, or the before-image (None where nothing is stored yet).
    """

    def __init__(self, context: Context, attempt: Attempt, draft: Draft | None = None) -> None:
        store = context.store
        self.attempt = attempt
        self.user = attempt.user
        self.attempt_id = store.ids.attempt_id()
        self.result: ResetResult | None = None
        self.violations: tuple[Violation, ...] = ()
        self.admitted: tuple[bytes, ...] = ()
        self.details: dict[str, Any] = {}
        self.run_since_us: int | None = None
        self.probation = True
        self._context = context
        self._store = store
        self._key = user_key(attempt.user)
        wall_us = store.clock.now_us()
        self.now = attempt.now or Now(wall_us, wall_us)
        self._event_us = self.now.at_us if attempt.event_us is None else attempt.event_us
        self._batch = draft
        self._draft = draft if draft is not None else store.draft()
        self._guard = Guard(live=context.live)
        self._turn = threading.RLock()
        self._operations: list[Operation] = []
        self._dispositions: list[tuple[bytes, Identity, int, str]] = []
        self.head: Head | None = None
        self._began_us = store.clock.monotonic_us()
        self._slot: int | None = None
        self._in_doubt = False
        self._suspect = (cut(attempt.input or attempt.kind), 0)
        self._breaker = self._global = breaker.CLOSED
        self._head: Head | None = None
        self._before: Any = None
        self._state: Any = None
        self._bytes: tuple[Any, bytes] | None = None

    @property
    def phase(self) -> Phase:
        """Where the attempt stands."""
        return self._guard.phase

    @property
    def ended(self) -> bool:
        """Whether the attempt has its outcome."""
        return self._guard.phase in (Phase.COMMITTED, Phase.ROLLEDBACK, Phase.BREAKER_OPEN)

    @property
    def before(self) -> Any:
        """The before-image, None where nothing is stored."""
        return self._before

    @property
    def state(self) -> Any:
        """The newest validated candidate, or the before-image."""
        return self._state

    @property
    def base_version(self) -> int:
        """The version the snapshot was taken from, 0 where nothing is stored."""
        return self._head.version if self._head else 0

    def __enter__(self) -> ResetTransaction:
        """Take the snapshot and the mark; raises BreakerOpen when the attempt is refused, ConflictError for `expect_version`."""
        self.begin()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Roll back unless committed; never swallows the exception."""
        if not self._in_doubt and not self.ended:
            self._name(error)
            self.roll_back(error)

    def exists(self) -> bool:
        """Whether a state of the user is stored, before the attempt begins from just that; raises StoreCorrupt."""
        self._head = self._draft.head(self._key)
        return self._head is not None

    def begin(self, head: Head | None = None, state: Any = None) -> None:
        """Step 1: read the head, ask the breakers, fill the mark.  `head` and `state` may be given by who has just read them."""
        self._guard.check("snapshot")
        try:
            self._begin(head, state)
        except BaseException as error:
            self._name(error)
            self._leave_mark("reset.rolled_back", "rolled_back", error)
            raise

    def _name(self, error: BaseException | None) -> None:
        """Have an error of ours about a marked attempt say which: its row can be looked up by that."""
        if isinstance(error, ResetError) and error.attempt_id is None and self._slot is not None:
            error.user, error.attempt_id = self.user, self.attempt_id

    def _begin(self, head: Head | None, state: Any) -> None:
        self._head = head or self._head or self._draft.head(self._key)
        if self._head is not None:
            self._before = self._state = state if state is not None else self._store.estimator.decode(self._head.state)
        self._suspect = (self._suspect[0], self.base_version)
        if not self.attempt.dry_run:
            if self._batch is None and self._store.marks.full:
                self._store.commit(self._store.draft())  # what refused attempts left in the marks goes to the log
            # The mark comes first: a probe leased by a process that dies at once must be given back too.
            self._slot = self._store.marks.fill(self._mark(WAITING, "reset.interrupted", "interrupted"))
            self._admit()
            if self._store.intents == "durable" and self.attempt_id not in (self._breaker.probe, self._global.probe):
                self._store.commit(self._intend(self._store.draft()))
            self._store.marks.write(self._slot, self._mark(RUNNING, "reset.interrupted", "interrupted"))
        self._guard.fire("snapshot")
        expected = self.attempt.expect_version
        if expected is not None and expected != self.base_version:
            message = f"{self.user!r} is at version {self.base_version}, not {expected} as expected; nothing was changed"
            error = ConflictError(message, user=self.user, attempt_id=self.attempt_id)
            self._end("conflicted", "void", error)
            raise error

    def _intend(self, draft: Draft) -> Draft:
        intents.put(draft, self._store.committer.owner, self._mark(WAITING, "reset.interrupted", "interrupted"))
        return draft

    def _admit(self) -> None:
        """Raise BreakerOpen unless both breakers and the budget admit the attempt; lease the probes that it then is."""
        context = self._context
        self._breaker, self._global = self._draft.breakers(self._key)
        if any(known.probe and known.probe_owner != self._store.committer.owner for known in (self._breaker, self._global)):
            self._store.settle_dead()  # the lease of a probe ends with its holder
            self._breaker, self._global = self._draft.breakers(self._key)
        user = breaker.admit(self._breaker, context.breaker, self.now, self.user, self._suspect)
        common = breaker.admit(self._global, context.global_breaker, self.now, "")
        limit = self._resets_per_minute
        budget = Admission("admit") if limit is None else breaker.affordable(self._draft.budget(), limit, self.now)
        for scope, admission in (("user", user), ("global", common), ("budget", budget)):
            if admission.verdict == "refuse":  # before any probe is leased, so that a refusal costs no commit
                self._refuse(scope, admission)
        if user.verdict == "probe":
            self._breaker = self._lease("user", self._key, self._breaker)
        if common.verdict == "probe":
            self._global = self._lease("global", b"", self._global)

    @property
    def _resets_per_minute(self) -> int | None:
        """The budget in force for this attempt."""
        return None if self.attempt.kind in UNBUDGETED else self._context.resets_per_minute

    def _lease(self, scope: str, user: bytes, known: Breaker) -> Breaker:
        """Take the one probe slot, durably, before any mutation runs; refuses where another attempt was faster."""
        leased = breaker.lease(known, self.attempt_id, self._store.committer.owner)
        draft = self._intend(self._store.draft())  # a lease is given back whatever becomes of its holder
        key = breaker_key(user)
        faster = record(Breaker, key, draft.expect(key)) != known  # the stored bytes may be of an older shape
        draft.put(key, codec.pack(leased))
        try:
            if not faster:
                self._store.commit(draft)
        except ConflictError:
            faster = True
        if faster:
            self._refuse(scope, Admission("refuse", "probing"))
        return leased

    def _refuse(self, scope: str, admission: Admission) -> None:
        self._guard.fire("refuse")
        when = "" if admission.retry_at_us is None else f"; try again after {iso(admission.retry_at_us)}"
        by = "budget of resets a minute" if scope == "budget" else f"{scope} circuit breaker"
        message = f"the {by} refused the {self.attempt.kind} reset of {self.user!r} ({admission.reason}){when}"
        if admission.reason == "forced-open":  # no time ends that
            whose = "--global" if scope == "global" else shlex.quote(self.user)
            message += f"; `resetguard breaker release {whose}` ends that"
        if self._breaker.probe == self.attempt_id:
            self._store.commit(self._void())
        mark = self._mark(ENDED, "reset.refused", "refused", message)
        slot, self._slot = self._slot, None
        if self._batch is not None and slot is not None:
            self._batch.entries.append(mark.entry())
            self._batch.after.append(partial(self._store.marks.release, slot))
            self._batch.dropped.append(partial(self._store.marks.release, slot))
        elif slot is not None:
            self._store.marks.write(slot, mark)
        self._finished("refused", None, None, message)
        raise BreakerOpen(message, scope=scope, reason=admission.reason, retry_at_us=admission.retry_at_us, user=self.user,
                          attempt_id=self.attempt_id)

    def _void(self) -> Draft:
        draft = self._store.draft()
        draft.add_event(self._event("void"))
        return draft

    def _mark(self, state: int, event: str, outcome: str, error: str = "") -> Mark:
        a = self.attempt
        return Mark(state, event, outcome, self.attempt_id, self.user, a.kind, self._suspect[0], self.base_version,
                    self._breaker.generation, self._event_us, a.trigger, a.reason, a.actor, error)

    def apply(self, name: str, mutation: Callable[[Any], Any]) -> Any:
        """Step 2: run one mutation on `state`, validate what it returns, and make that the newest checkpoint.

        Raises MutationFailed when it raises or returns no state, ResetValidationError when the candidate breaks rules;
        `state` is then still the checkpoint before, and `roll_back_to` may go on from any earlier one.
        """
        self._guard.fire("mutate")
        clock = self._store.clock
        began_us = clock.monotonic_us()
        ok = False
        try:
            try:
                candidate = mutation(self.state)
            except Exception as error:
                message = f"operation {name!r} on {self.user!r} raised {audit.said(error)}"
                raise MutationFailed(message, operation=name, user=self.user, attempt_id=self.attempt_id) from error
            self._validate(name, candidate, self._known())
            ok = True
        finally:
            self._operations.append(Operation(audit.plain(name), clock.monotonic_us() - began_us, ok))
        self._guard.fire("validate")
        self.violations = ()
        self._state = candidate
        return candidate

    def _validate(self, name: str, candidate: Any, known: Any) -> None:
        if not self._store.estimator.is_state(candidate):
            message = f"operation {name!r} on {self.user!r} returned a {type(candidate).__name__}, not a state"
            raise MutationFailed(message, operation=name, user=self.user, attempt_id=self.attempt_id)
        present_us = max(self.now.wall_us, self._store.clock.now_us())  # what it was begun from may be later than its begin
        violations = self._store.validator.validate(candidate, present_us, known)
        if violations:
            self.violations = violations
            message = f"operation {name!r} on {self.user!r} made an invalid state: " + "; ".join(map(str, violations[:3]))
            raise ResetValidationError(message, operation=name, violations=violations, user=self.user, attempt_id=self.attempt_id)
        try:
            self._encoded(candidate)
        except ContractBroken as error:
            message = f"operation {name!r} on {self.user!r} returned {error}"
            raise MutationFailed(message, operation=name, user=self.user, attempt_id=self.attempt_id) from error

    def _encoded(self, state: Any) -> bytes:
        """The state as bytes; those of the last one asked for are kept, since a state is frozen."""
        if self._bytes is None or self._bytes[0] is not state:
            self._bytes = (state, encoded(self._store.estimator.encode, state))
        return self._bytes[1]

    def _known(self) -> Any:
        """The newest candidate, which has passed the rules in force; the before-image may have passed older ones."""
        if self.state is not self.before or (self._head is not None and self._head.rules == self._store.validator.fingerprint):
            return self.state
        return None

    def checkpoint(self, state: Any, name: str) -> Checkpoint:
        """A savepoint to which `roll_back_to` can return; a state other than the current one is validated first."""
        if state is not self.state:
            self.apply(name, lambda _: state)
        return Checkpoint(name, state)

    def roll_back_to(self, checkpoint: Checkpoint) -> None:
        """Go on from an earlier checkpoint, dropping what was applied after it."""
        if checkpoint.state is None:
            message = "there was no state at that checkpoint: leave the block to roll back"
            raise InvalidInput(message, user=self.user, attempt_id=self.attempt_id)
        self.apply(f"roll back to {checkpoint.name!r}", lambda _: checkpoint.state)
        self.violations = ()

    def admit(self, key: bytes, kept: Identity) -> None:
        """Take a measurement into the new version: the image names it, and its identity says accepted, with the commit."""
        self.admitted = (*self.admitted, key)
        self._dispositions.append((key, kept, ACCEPTED, ""))

    def leave_out(self, key: bytes, kept: Identity, reason: str) -> None:
        """Quarantine a measurement that does not fit the new version, with the commit."""
        self._dispositions.append((key, kept, QUARANTINED, reason))

    @property
    def event_us(self) -> int:
        """The instant of the event that the attempt stands for, in microseconds since 1970 UTC."""
        return self._event_us

    @property
    def at_us(self) -> int:
        """The instant of the newest checkpoint's state, in microseconds since 1970 UTC."""
        return self._store.estimator.at_us(self.state)

    def commit(self) -> ResetResult:
        """Steps 3 to 9: make the newest checkpoint the user's next version, with its outcome, in one transaction.

        Durable on return, as the store's mode says.  Raises ConflictError when the user was changed since the snapshot,
        BreakerOpen when the breaker opened meanwhile, StoreFull and the like when nothing was written, CommitInDoubt
        when that cannot be told: `manager.inspect(attempt_id)` settles it.  Of several threads that try, one ends the attempt.
        """
        try:
            with self._turn:
                return self._commit()
        except BaseException as error:
            self.tell_doubt(error)
            raise

    def _commit(self) -> ResetResult:
        self._require_no_doubt()
        self._guard.check("commit")
        self._validate("the whole", self.state, None)
        deltas = self._store.estimator.deltas(self.before, self.state)
        if self.attempt.dry_run:
            self._guard.fire("roll_back")
            return self._finished("dry_run", None, deltas)
        draft = self._draft
        self._move_measurements(draft)
        self.head = head = self._append(draft)
        entry = self._entry(EVENTS.get(self.attempt.kind, "reset.committed"), "committed", Phase.COMMITTED,
                            version=head.version, deltas=deltas)
        draft.entries.append(entry)
        draft.add_event(self._event("success"), shared=self._batch is not None)
        if self._slot is not None:
            self._store.marks.state(self._slot, WAITING)
        if self._batch is not None:
            draft.after.append(self._release)
            draft.dropped.append(self._dropped)
        else:
            draft.on_miss = self._missed
            try:
                self._store.commit(draft)
                self._release()
            except BaseException as error:
                self._not_committed(error)
                raise
        self._guard.fire("commit")
        return self._finished("committed", head.version, deltas)

    def _require_no_doubt(self) -> None:
        if self._in_doubt:
            message = f"attempt {self.attempt_id} on {self.user!r} has ended in doubt; inspect() tells how"
            raise ContractBroken(message, user=self.user, attempt_id=self.attempt_id)

    def _not_committed(self, error: BaseException) -> None:
        """After a commit that raised: what the attempt ended as, and the error that its caller should see instead, if any."""
        if isinstance(error, ConflictError):
            refused = SCOPES.get(error.reason)
            self._rolled_back("conflicted" if refused is None else "rolled_back", error)
            message = f"{error}; {self.user!r} was not changed"
            if refused is not None:
                raise BreakerOpen(message, scope=refused[0], reason=refused[1], retry_at_us=self._retry_at_us(refused[0]),
                                  user=self.user, attempt_id=self.attempt_id) from error
            raise ConflictError(message, user=self.user, attempt_id=self.attempt_id) from error
        if isinstance(error, CommitInDoubt):
            self._in_doubt = True
            error.user, error.attempt_id = self.user, self.attempt_id
            self._leave_mark("reset.interrupted", "interrupted", error)
            return
        self._name(error)
        self.tell_doubt(error)
        self._leave_mark("reset.rolled_back", "rolled_back", error)
        self._guard.fire("roll_back")
        self._finished("rolled_back", None, None, str(error))

    def tell_doubt(self, error: BaseException) -> None:
        """Raise CommitInDoubt where `error`, which says nothing of a commit, came between the attempt's own and its return."""
        if isinstance(error, ResetError) or self._batch is not None or self.attempt.dry_run:
            return
        row = self._store.inspect(self.attempt_id)
        if row is not None and row.public.outcome == "committed":
            self._in_doubt = True
            message = f"attempt {self.attempt_id} on {self.user!r} was interrupted after its commit; inspect() tells how it ended"
            raise CommitInDoubt(message, user=self.user, attempt_id=self.attempt_id) from error

    def _retry_at_us(self, scope: str) -> int | None:
        """When a place in the budget is free again, after a commit of its own (so by a live caller) that found none."""
        limit = self._resets_per_minute
        if scope != "budget" or limit is None:
            return None
        wall_us = self._store.clock.now_us()
        return breaker.affordable(self._store.draft().budget(), limit, Now(wall_us, wall_us)).retry_at_us

    def _rolled_back(self, outcome: str, error: BaseException) -> None:
        self._release()
        self._guard.fire("roll_back")
        self._finished(outcome, None, None, str(error))

    def _missed(self, reason: MissReason) -> Miss:
        outcome = "conflicted" if reason == "conflict" else "rolled_back"
        found = {"conflict": "a conflict", "budget": "the budget of resets a minute used up"}.get(reason, f"the {reason} changed")
        entry = self._entry(f"reset.{outcome}", outcome, Phase.ROLLEDBACK, error=f"the commit found {found}")
        return Miss(entry, self._event("void"))

    def _move_measurements(self, draft: Draft) -> None:
        released = withdrawn = 0
        for key, given, disposition, reason in self._dispositions:
            kept = given
            recorded = draft.identity(key)
            if recorded is None and disposition == ACCEPTED:
                draft.put_identity(self._key, key, msgspec.structs.replace(kept, disposition=ACCEPTED, reason=""))
                continue
            if recorded is None:
                kept = msgspec.structs.replace(kept, disposition=disposition, reason=reason)
                identities.keep_aside(draft, self._key, key, kept)
                continue
            released += recorded.disposition != ACCEPTED and disposition == ACCEPTED
            withdrawn += recorded.disposition == ACCEPTED and disposition != ACCEPTED
            if (recorded.disposition, recorded.reason) != (disposition, reason):
                identities.move(draft, self._key, key, recorded, disposition, reason)
        if released or withdrawn:
            self.details = {**self.details, "released_from_quarantine": released, "withdrawn_to_quarantine": withdrawn}

    def _append(self, draft: Draft) -> Head:
        """Step 3: the new version, the head, the pin and the probation, in the draft."""
        estimator, head = self._store.estimator, self._head
        at_us, since = self._event_us, self.run_since_us
        if since is None:
            since = head.run_since_us if head else at_us
        probation = None
        if self.probation:
            if head is None or head.probation is None or self._context.policy.probation_over(
                    head.probation.since_us, head.probation.accepted, at_us):
                before = Pin(0, b"", estimator.kernel)
                if head is not None:
                    before = Pin(head.version, head.state or estimator.encode(self.before), head.kernel)
                draft.put(keys.pin(self._key), codec.pack(before))
            probation = Probation(at_us, 0, self.attempt.kind, self.base_version + 1)
        elif head is not None and head.probation is not None:
            draft.delete(keys.pin(self._key))
        if self.before is not None and estimator.at_us(self.state) < estimator.at_us(self.before):
            aside = draft.aside(self._key) or Aside(0, 0)
            last_us = max(aside.last_us, estimator.at_us(self.before))
            draft.put(keys.aside(self._key), codec.pack(msgspec.structs.replace(aside, last_us=last_us)))
        data = self._encoded(self.state)
        new = log.NewVersion(self.state, self.attempt_id, self.attempt.kind, at_us, self.admitted, encode=lambda _: data)
        return log.append(draft, estimator, self._key, head, new, run_since_us=since, reset_us=at_us, probation=probation,
                          rules=self._store.validator.fingerprint, versions_max=self._store.limits.versions_max)

    def roll_back(self, error: BaseException | None = None) -> ResetResult:
        """Undo everything; the outcome is durable on return (in a batch, with the batch).

        An error counts as a failure of the reset, unless it is one of ours about the call, the store or another attempt.
        """
        blameless = isinstance(error, ResetError) and not isinstance(error, MutationFailed | ResetValidationError)
        failed = isinstance(error, Exception) and not blameless
        with self._turn:
            self._require_no_doubt()
            return self._end("rolled_back", "failure" if failed else "void", error)

    def _end(self, outcome: str, result: breaker.Result, error: BaseException | None) -> ResetResult:
        self._guard.fire("roll_back")
        text = "" if error is None else audit.said(error)
        if self.attempt.dry_run:
            return self._finished(outcome, None, None, text)
        entry = self._entry(f"reset.{outcome}", outcome, Phase.ROLLEDBACK, error=text)
        event = self._event(result)
        if self._slot is not None:
            self._store.marks.state(self._slot, WAITING)  # a death from now on is not the mutation's
        if self._batch is not None:
            self._batch.entries.append(entry)
            self._batch.add_event(event)
            self._batch.after.append(self._release)
            self._batch.dropped.append(self._dropped)
        else:
            draft = self._store.draft()
            draft.entries.append(entry)
            try:
                draft.add_event(event)
                self._store.commit(draft)
            except BaseException as trouble:
                self._leave_mark(f"reset.{outcome}", outcome, error or trouble)
                if not isinstance(trouble, ResetError):
                    raise
                if not isinstance(trouble.__cause__, Exception | None):  # Ctrl-C meanwhile: it must reach the caller
                    raise trouble.__cause__ from error
            else:
                self._release()
        return self._finished(outcome, None, None, text)

    def _leave_mark(self, event: str, outcome: str, error: BaseException) -> None:
        """The outcome could not be written now: the mark says it, and the next commit or opening writes it."""
        slot, self._slot = self._slot, None  # from now on it is the committer's to release
        if slot is not None:
            self._store.marks.write(slot, self._mark(ENDED, event, outcome, audit.said(error)))

    def _dropped(self) -> None:
        slot, self._slot = self._slot, None
        if slot is not None:
            self._store.marks.write(slot, self._mark(ENDED, "reset.conflicted", "conflicted", DROPPED))
            if self.attempt_id in (self._breaker.probe, self._global.probe):
                with contextlib.suppress(ResetError):  # then the next commit writes the mark and gives the slot back
                    self._store.commit(self._void())

    def _release(self) -> None:
        if self._slot is not None:
            self._store.marks.release(self._slot)
            self._slot = None

    def _finished(
        self, outcome: str, version: int | None, deltas: tuple[tuple[float, ...], tuple[float, ...]] | None, error: str = "",
    ) -> ResetResult:
        x, p = deltas or (None, None)
        self.result = ResetResult(outcome, self.attempt_id, self.user, self.attempt.kind, self.base_version, version,
                                  self.violations, tuple(self._operations), x, p, error)
        return self.result

    def _event(self, result: breaker.Result) -> BreakerEvent:
        return BreakerEvent(self._key, self._context.breaker, result, self.attempt_id, self._breaker.generation,
                            self._global.generation, self.now, self._suspect, self._context.global_breaker,
                            self._resets_per_minute)

    def _entry(  # noqa: PLR0913 - the parts of a row
        self, event: str, outcome: str, phase: Phase, *, version: int | None = None,
        deltas: tuple[tuple[float, ...], tuple[float, ...]] | None = None, error: str = "",
    ) -> Entry:
        a = self.attempt
        x, p = deltas or (None, None)
        context = audit.context_now()
        public = Public(
            event=event, outcome=outcome, attempt_id=self.attempt_id, kind=a.kind, phase=phase.value,
            trace_id=str((context or {}).get("trace_id", ""))[:TRACE_CHARS_MAX],
            base_version=self.base_version, new_version=version, head_author=self._head.author if self._head else "",
            breaker_mode=self._breaker.mode, breaker_generation=self._breaker.generation,
            duration_us=self._store.clock.monotonic_us() - self._began_us,
        )
        personal = Personal(user=a.user, at_us=self._event_us, trigger=a.trigger, reason=a.reason[:REASON_CHARS_MAX],
                            actor=a.actor, operations=tuple(self._operations), violations=self.violations, error=error,
                            delta_x=x, delta_P=p, details=self.details)
        return Entry(public, personal, context)
