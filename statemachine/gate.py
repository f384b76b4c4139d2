"""The gate of the rollout: who decides about a user, what is done instead of a reset that is held back, and how it is changed.

The rollout lies in the store, as one record.  It is read where a reset has been decided, one read of a key, and never for a
measurement that needs none.  The commit that carries a reset out applies only if the record still is what it was decided by:
once `change` has returned, no reset of an earlier word becomes durable, in any process.  A record that cannot be read counts
as "off", because it may have been that.

A provider (`RolloutProvider`) that fails, or answers nonsense, changes nothing for the measurement: the stored rollout decides
instead, and the audit row of the attempt says so.

Each reset held back has a row of its own, and so at most one a measurement, which is stored as well: "reset.refused" with the
reason "rollout", or "reset.shadowed" with what would have been.  A shadow leaves a mark while user code runs, as every attempt
does, so that an input on which the process dies becomes suspect and is refused (INV-07).  All else it leaves alone: no version,
no identity, and no breaker.  It asks the breakers and where they would refuse does not run, but it takes no probe, and neither
its failure nor its success is counted: an attempt that could change nothing is no reason to stop, or to admit, one that can.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Final, NamedTuple

import msgspec

from statemachine import audit, breaker, codec
from statemachine.attempt import Attempt, Context, ResetResult
from statemachine.audit import Entry, Personal, Public
from statemachine.errors import BreakerOpen, ConflictError, MutationFailed, ResetValidationError, StoreHurt
from statemachine.machine import Phase
from statemachine.marks import ENDED, RUNNING, WAITING, Mark, cut
from statemachine.rollout import UNGOVERNED, Rollout, RolloutProvider, Verdict, as_verdict, decide
from statemachine.state import user_key
from statemachine.store import Store, keys
from statemachine.store.draft import DROPPED, Draft, record
from statemachine.store.records import Head
from statemachine.transaction import TRACE_CHARS_MAX, ResetTransaction

WITHHELD: Final = "the rollout held it back"
_EVERYBODY: Final = Rollout()


class Ruling(NamedTuple):
    """What becomes of a reset, and by whose word: "stored", "given", or the provider's class.

    `trouble` says why the word that should have counted could not be had.
    """

    verdict: Verdict
    by: str = "stored"
    trouble: str = ""

    def details(self) -> dict[str, Any]:
        """What the audit row of the attempt says of it."""
        told = {"verdict": self.verdict, "by": self.by}
        return {"rollout": {**told, "trouble": self.trouble} if self.trouble else told}


class Changed(NamedTuple):
    """The stored rollout before a change, None where it could not be read, and after it."""

    before: Rollout | None
    after: Rollout


class Gate:
    """Who decides for one manager: the rollout in the store, or one or a provider given instead.

    `failures` counts answers that could not be had of a provider, or of the record in the store.
    """

    def __init__(self, store: Store, rollout: Rollout | RolloutProvider | None = None) -> None:
        self._store = store
        self._given = rollout
        self._read: tuple[bytes | None, Rollout] = (None, _EVERYBODY)
        self.failures = 0

    def rule(self, draft: Draft, user: str, kind: str) -> Ruling:
        """What becomes of a decided reset of this kind; the draft can then be committed only while the stored word stands."""
        if kind in UNGOVERNED:
            return Ruling("on")
        given = self._given
        if isinstance(given, Rollout):
            return Ruling(decide(given, user), "given")
        if given is None:
            return self._stored(draft, user)
        try:
            return Ruling(as_verdict(given.decide(user)), type(given).__name__)
        except Exception as error:  # noqa: BLE001 - whatever a provider raises, no measurement may fail of it
            self.failures += 1
            trouble = audit.plain(f"{type(given).__name__}: {type(error).__name__}: {error}")
        stored = self._stored(draft, user)
        return stored._replace(trouble="; ".join(filter(None, (trouble, stored.trouble))))

    def _stored(self, draft: Draft, user: str) -> Ruling:
        stored = draft.expect(keys.ROLLOUT)
        before, rollout = self._read
        if stored != before:
            try:
                rollout = record(Rollout, keys.ROLLOUT, stored) or _EVERYBODY
            except StoreHurt as error:
                self.failures += 1
                return Ruling("off", trouble=f"the stored rollout cannot be read, and so counts as off: {error}")
            self._read = (stored, rollout)
        return Ruling(decide(rollout, user))


def turned_away(context: Context, attempt: Attempt, draft: Draft, head: Head | None, ruling: Ruling) -> ResetTransaction:
    """An attempt that never begins: its row is in the draft, and its `result` says that it was withheld."""
    tx = ResetTransaction(context, attempt._replace(reason="rollout"), draft)
    row = _public(tx, "reset.refused", "refused", head)
    personal = Personal(user=tx.user, at_us=tx.event_us, trigger=attempt.trigger, reason="rollout", actor=attempt.actor,
                        error=WITHHELD, details=ruling.details())
    draft.entries.append(Entry(row, personal, audit.context_now()))
    tx.result = _withheld(tx, "refused", head)
    return tx


def shadowed(  # noqa: PLR0913 - the parts of one attempt
    context: Context, attempt: Attempt, draft: Draft, head: Head | None, state: Any, ruling: Ruling,
    carry_out: Callable[[ResetTransaction], object],
) -> ResetTransaction:
    """Run the whole of a reset, and keep of it nothing but a row in the draft.

    `carry_out` takes the attempt as far as `commit`.  Whatever it raises on purpose or by a bug is in the row and goes no
    further; an interrupt ends the attempt by its mark and passes.
    """
    tx = ResetTransaction(context, attempt._replace(reason="shadow", dry_run=True), draft)
    shadow = _Shadow(context.store, tx, draft)
    tx.begin(head, state)
    began_us = context.store.clock.monotonic_us()
    try:
        shadow.ask_breakers(context)
        shadow.mark()
        carry_out(tx)
        would, error = "committed", ""
    except Exception as raised:  # noqa: BLE001 - a shadow harms nothing, whatever happens in it
        would, error = _would(raised), audit.said(raised)
        if tx.phase is not Phase.ROLLEDBACK:
            tx.roll_back(raised)
    except BaseException as raised:
        shadow.give_up(f"{type(raised).__name__}: {raised}")
        raise
    shadow.close(_row(tx, head, ruling, would, error, context.store.clock.monotonic_us() - began_us))
    tx.result = _withheld(tx, "shadowed", head, error)
    return tx


class _Shadow:
    """The mark of a shadow, and the breakers as it finds them."""

    def __init__(self, store: Store, tx: ResetTransaction, draft: Draft) -> None:
        self._store, self._tx, self._draft = store, tx, draft
        self._slot: int | None = None
        self._generation = 0

    def ask_breakers(self, context: Context) -> None:
        """Raise BreakerOpen where one of them would not simply admit the attempt; leases no probe, changes nothing."""
        tx = self._tx
        self._generation = self._draft.breaker(user_key(tx.user)).generation
        for scope, key, policy, suspect in (("user", user_key(tx.user), context.breaker, self._suspect()),
                                            ("global", b"", context.global_breaker, None)):
            found = breaker.admit(self._draft.breaker(key), policy, tx.now, key.decode(), suspect)
            if found.verdict != "admit":
                reason = found.reason or found.verdict
                message = f"the {scope} circuit breaker does not simply admit it ({reason}), and a shadow takes no probe"
                raise BreakerOpen(message, scope=scope, reason=reason, retry_at_us=found.retry_at_us, user=tx.user,
                                  attempt_id=tx.attempt_id)

    def _suspect(self) -> tuple[str, int]:
        """By what a death of the process is remembered, as `ResetTransaction` has it for the same attempt."""
        attempt = self._tx.attempt
        return cut(attempt.input or attempt.kind), self._tx.base_version

    def mark(self) -> None:
        """Say that user code runs; raises StoreUnavailable where no mark is free."""
        self._slot = self._store.marks.fill(self._as(RUNNING, "reset.interrupted", "interrupted"))

    def _as(self, state: int, event: str, outcome: str, error: str = "") -> Mark:
        tx, attempt = self._tx, self._tx.attempt
        return Mark(state, event, outcome, tx.attempt_id, tx.user, attempt.kind, self._suspect()[0], tx.base_version,
                    self._generation, tx.event_us, attempt.trigger, attempt.reason, attempt.actor, error)

    def close(self, row: Entry) -> None:
        """Put the row into the draft; the mark stays until that is committed or dropped."""
        self._draft.entries.append(row)
        if self._slot is not None:
            self._store.marks.state(self._slot, WAITING)  # a death from now on is not the mutation's
            self._draft.after.append(partial(self._store.marks.release, self._slot))
            self._draft.dropped.append(partial(self.give_up, DROPPED))

    def give_up(self, why: str) -> None:
        """The mark becomes the row; the next commit or opening writes it."""
        if self._slot is not None:
            self._store.marks.write(self._slot, self._as(ENDED, "reset.conflicted", "conflicted", audit.plain(why)))
            self._slot = None


def _would(error: Exception) -> str:
    if isinstance(error, BreakerOpen):
        return "refused"
    return "rolled_back" if isinstance(error, MutationFailed | ResetValidationError) else "raised"


def _public(  # noqa: PLR0913 - what a row says in public
    tx: ResetTransaction, event: str, outcome: str, head: Head | None, phase: str = "", duration_us: int | None = None,
) -> Public:
    trace_id = str((audit.context_now() or {}).get("trace_id", ""))[:TRACE_CHARS_MAX]
    return Public(event=event, outcome=outcome, attempt_id=tx.attempt_id, kind=tx.attempt.kind, phase=phase, trace_id=trace_id,
                  base_version=head.version if head else 0, head_author=head.author if head else "", duration_us=duration_us)


def _row(  # noqa: PLR0913 - what a shadow came to
    tx: ResetTransaction, head: Head | None, ruling: Ruling, would: str, error: str, duration_us: int,
) -> Entry:
    result, attempt = tx.result, tx.attempt
    details: dict[str, Any] = {"would": would, **ruling.details()}
    if would == "committed":
        details |= {"version": tx.base_version + 1, "admitted": len(tx.admitted)}
    personal = Personal(
        user=tx.user, at_us=tx.event_us, trigger=attempt.trigger, reason=attempt.reason, actor=attempt.actor,
        operations=result.operations if result else (), violations=tx.violations, error=error,
        delta_x=result.delta_x if result else None, delta_P=result.delta_P if result else None, details=details,
    )
    return Entry(_public(tx, "reset.shadowed", "shadowed", head, Phase.ROLLEDBACK.value, duration_us), personal,
                 audit.context_now())


def _withheld(tx: ResetTransaction, outcome: str, head: Head | None, error: str = WITHHELD) -> ResetResult:
    ran = tx.result or ResetResult(outcome, tx.attempt_id, tx.user, tx.attempt.kind, head.version if head else 0, None)
    return ran._replace(outcome=outcome, error=error, withheld=True)


def why_kept(kind: str, reset: ResetResult | None) -> str:
    """Why a measurement is kept aside after its reset did not come about; the same words for every way to hold one back."""
    if reset is None:
        return f"the {kind} reset"
    if reset.withheld:
        return f"the {kind} reset was not carried out: rollout"
    return f"the {kind} reset was {reset.outcome.replace('_', ' ')}: {reset.error}"


def stored_rollout(store: Store) -> Rollout:
    """The rollout as it is stored, "on" for all where none is; raises StoreCorrupt or StoreForeign where it cannot be read."""
    return record(Rollout, keys.ROLLOUT, store.engine.get(keys.ROLLOUT)) or _EVERYBODY


def change(store: Store, edit: Callable[[Rollout | None], Rollout], *, actor: str, reason: str) -> Changed:
    """Change the stored rollout; durable on return, and in force for every process that has the store open.

    `edit` makes the new one of the one stored, or of None where that cannot be read; it may be asked again when somebody
    else was faster.  The row "rollout.changed" has what was and is, without naming anybody.  Each user put on a list or
    taken off has a row of its own, "rollout.listed", which goes when the user is forgotten.  What changes nothing writes
    nothing.  Raises InvalidInput for a missing actor or reason.
    """
    audit.require_said(actor=actor, reason=reason)
    while True:
        draft = store.draft()
        stored = draft.expect(keys.ROLLOUT)
        before = _readable(stored)
        after = edit(before)
        changed = Changed(before, after)
        if after == before:
            return changed
        draft.put(keys.ROLLOUT, codec.pack(after))
        at_us = store.clock.now_us()
        details = {"before": _summary(before), "after": _summary(after)}
        draft.entries.append(audit.act("rollout.changed", store.ids.attempt_id(), actor=actor, reason=reason, at_us=at_us,
                                       kind="rollout", details=details))
        for user in _listed_otherwise(before or _EVERYBODY, after):
            moved = {"from": _list_of(before or _EVERYBODY, user), "to": _list_of(after, user)}
            draft.entries.append(audit.act("rollout.listed", store.ids.attempt_id(), actor=actor, reason=reason, at_us=at_us,
                                           user=user, kind="rollout", details=moved))
        try:
            store.commit(draft)
        except ConflictError:
            continue
        return changed


def unlist(draft: Draft, user: str) -> None:
    """Take a user who is forgotten off the lists, in the draft; raises StoreCorrupt where they cannot be read."""
    stored = record(Rollout, keys.ROLLOUT, draft.expect(keys.ROLLOUT))
    if stored is not None and (user in stored.allow or user in stored.deny):
        draft.put(keys.ROLLOUT, codec.pack(moved(stored, off=(user,))))


def moved(rollout: Rollout, *, allow: Iterable[str] = (), deny: Iterable[str] = (), off: Iterable[str] = ()) -> Rollout:
    """The rollout with users put on one list, and so taken off the other, or taken off both."""
    gone = {*allow, *deny, *off}
    return msgspec.structs.replace(
        rollout, allow=tuple({*rollout.allow} - gone | {*allow}), deny=tuple({*rollout.deny} - gone | {*deny}),
    )


def _readable(stored: bytes | None) -> Rollout | None:
    try:
        return record(Rollout, keys.ROLLOUT, stored) or _EVERYBODY
    except StoreHurt:
        return None


def _summary(rollout: Rollout | None) -> dict[str, Any] | None:
    if rollout is None:
        return None
    return {"mode": rollout.mode, "percent": rollout.percent, "outside": rollout.outside, "name": rollout.name,
            "allow": len(rollout.allow), "deny": len(rollout.deny)}


def _list_of(rollout: Rollout, user: str) -> str:
    return "deny" if user in rollout.deny else "allow" if user in rollout.allow else "none"


def _listed_otherwise(before: Rollout, after: Rollout) -> list[str]:
    users = {*before.allow, *before.deny, *after.allow, *after.deny}
    return sorted(user for user in users if _list_of(before, user) != _list_of(after, user))
