"""Processor: the measurement loop.  Every measurement read ends as exactly one of five things, and exactly once.

accepted (a step, or admitted by a reset), quarantined (kept aside with its reason), duplicate (seen earlier in the same
source), late (not after the user's last accepted instant; kept aside), known (consumed by an earlier run or source).
A failed or refused reset never stops the stream: the measurement is accepted into the state before the reset where it
fits that, else it is quarantined (INV-08, INV-09, INV-11, INV-12).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Literal

import msgspec

from statemachine import codec, retention
from statemachine.attempt import ResetResult
from statemachine.audit import Entry, Personal, Public, context_now
from statemachine.breaker import Now
from statemachine.clock import iso
from statemachine.errors import (
    CommitInDoubt,
    ConflictError,
    InvalidInput,
    InvariantViolation,
    ResetError,
    StoreBusy,
    StoreCorrupt,
)
from statemachine.gate import why_kept
from statemachine.manager import Incoming, ResetManager
from statemachine.policy import Decision, Situation
from statemachine.state import Measured, Reading, user_key
from statemachine.store import Store, identities, keys, log
from statemachine.store.draft import Draft, record
from statemachine.store.identities import Origin
from statemachine.store.records import ACCEPTED, HELD, LATE, QUARANTINED, Cursor, Head, Meta, Unreadable

STATUSES: Final = ("accepted", "quarantined", "duplicate", "late", "known")
RETRIES_MAX: Final = 100
CACHED_USERS_MAX: Final = 10_000
NAME_CHARS_MAX: Final = 300
LONG_AGO_US: Final = -(2**62)


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """What became of one measurement.

    `status` is one of `STATUSES`, `reason` says why it was not accepted.  `reset` is None, or the attempt it caused.
    `version` is the user's version afterwards; `nis` is None where there was no state to measure against, and
    `adapting` tells whether the noise was still widened by an earlier reset then.
    """

    status: str
    user: str
    reason: str = ""
    reset: ResetResult | None = None
    version: int = 0
    nis: float | None = None
    adapting: bool = False


class SourceRow(msgspec.Struct, frozen=True, gc=False):
    """One row of a source: a measurement, or what could not be read as one."""

    row: int
    measurement: Measured | None
    unreadable: Unreadable | None = None


class _User(msgspec.Struct, frozen=True, gc=False):
    """A user's end of the log, decoded, with the bytes it stands for.

    `at_us` is the instant of the state, `last_us` the greatest among the measurements ever seen.
    """

    key: bytes
    head: Head | None
    state: Any
    at_us: int
    last_us: int
    expected: tuple[tuple[bytes, bytes | None], ...]


class _Batch:
    """What one commit collects: the draft, the users it touched, and the instants it is decided by.

    `now` gives the instant of the row being decided, and is called where one is needed.
    """

    def __init__(self, draft: Draft, now: Callable[[], Now], present_us: int, *, alone: bool) -> None:
        self.draft = draft
        self.now = now
        self.present_us = present_us
        self.alone = alone
        self.users: dict[str, _User] = {}


class _CursorMoved(Exception):
    """Another run has consumed rows of the same source meanwhile."""


class _NeedsOwnCommit(Exception):
    """A measurement of the batch needs a draft of its own: a breaker is not closed, or something cannot be read."""


class Processor:
    """Feeds measurements to one manager's store.  `process` may be called from several threads."""

    def __init__(self, manager: ResetManager) -> None:
        self.manager = manager
        self.store: Store = manager.store
        self.reading = manager.store.estimator.reading
        self._cache: dict[str, _User] = {}

    def process(self, measurement: Measured) -> Outcome:
        """Decide one measurement by the present time; its outcome is durable on return, as the store's mode says.

        Raises what prevents any outcome: StoreFull, StoreUnavailable, StoreBusy, CommitInDoubt.
        """
        wall_us = self.store.clock.now_us()
        return self.alone(measurement, Origin(), Now(wall_us, wall_us), wall_us)

    def process_batch(self, measurements: Iterable[Measured]) -> list[Outcome]:
        """Decide measurements in the order given, in commits of at most `group_measurements_max`; durable on return."""
        wall_us = self.store.clock.now_us()
        outcomes: list[Outcome] = []
        intake = Intake(self, [_Stream(None, Cursor(0, 0, {}, wall_us, wall_us), "wall")], lambda _, o: outcomes.append(o))
        for measurement in measurements:
            intake.add(0, SourceRow(0, measurement))
        intake.flush()
        return outcomes

    def intake(self, sources: Iterable[tuple[bytes | None, str]], report: Callable[[int, Outcome], None]) -> Intake:
        """An intake for sources given as (16-byte hash of content and options, or None for a stream; name).

        A source with a hash has a cursor, committed with what it counts; a stream has none, only identities.
        """
        return Intake(self, [self._registered(source, name) for source, name in sources], report)

    def _registered(self, source: bytes | None, name: str) -> _Stream:
        """The source's stream, numbered and given its present (`Cursor.now_us`) at its first run; durable on return."""
        key = None if source is None else keys.cursor(source)
        while True:
            stored = None if source is None else self.store.cursor(source)
            if stored is not None:
                return _Stream(key, stored, "event")
            draft = self.store.draft()
            meta = codec.unpack(Meta, codec.unseal(keys.META, draft.expect(keys.META) or b""))
            cursor = Cursor(meta.sources + 1, 0, {}, self.store.clock.now_us(), LONG_AGO_US, name[:NAME_CHARS_MAX])
            draft.put(keys.META, codec.pack(msgspec.structs.replace(meta, sources=cursor.source_id)))
            if key is not None:
                draft.expect(key)
                draft.put(key, codec.pack(cursor))
            try:
                self.store.commit(draft)
            except ConflictError:
                continue
            return _Stream(key, cursor, "event")

    def alone(
        self, measurement: Measured, origin: Origin, now: Now, present_us: int,
        finish: Callable[[Draft, Outcome], None] | None = None,
    ) -> Outcome:
        """One measurement in a commit of its own, from fresh heads, again while others are faster."""
        damaged: StoreCorrupt | None = None
        identities.require_identity(measurement)
        for _ in range(RETRIES_MAX):
            batch = _Batch(self.store.draft(), lambda: now, present_us, alone=True)
            try:
                outcome = (self.one(batch, measurement, origin) if damaged is None
                           else self._unreadable_user(batch, measurement, origin, damaged))
                if finish is not None:
                    finish(batch.draft, outcome)
                if batch.draft:
                    self.store.commit(batch.draft)
                return outcome  # noqa: TRY300 - an interrupt here comes after the commit, and must say so
            except ConflictError:
                batch.draft.drop()
            except StoreCorrupt as error:
                batch.draft.drop()
                if damaged is not None:
                    raise
                damaged = self._walk_back(measurement.user, error)
            except BaseException as error:
                batch.draft.drop()
                if batch.draft.durable and not isinstance(error, ResetError):
                    message = f"a measurement of {measurement.user!r} was interrupted after its commit; sent again it counts once"
                    raise CommitInDoubt(message, user=measurement.user) from error
                raise
        message = f"other writers changed {measurement.user!r} {RETRIES_MAX} times in a row; try again"
        raise StoreBusy(message, user=measurement.user)

    def _walk_back(self, user: str, error: StoreCorrupt) -> StoreCorrupt | None:
        """Mend a damaged user from its log; the error when it cannot be mended, None when the measurement may go on."""
        try:
            return None if self.manager.recover(user) is not None else error
        except StoreCorrupt as none_good:
            return none_good

    def _unreadable_user(self, batch: _Batch, measurement: Measured, origin: Origin, error: StoreCorrupt) -> Outcome:
        """Nothing of the user can be read: the measurement is kept under the source, and no reset may start (INV-04)."""
        reason = f"the user's state cannot be read: {error}"
        raw = f"{measurement.at.isoformat()} {measurement.value} {measurement.unit} {measurement.source}"
        text = identities.digest(raw, measurement.user, str(origin.row))
        key = keys.unreadable(origin.source_id, origin.row) + text
        batch.draft.put(key, codec.pack(Unreadable(0, raw, reason, measurement.user)))
        return Outcome("quarantined", measurement.user, reason)

    def user(self, batch: _Batch, user: str) -> _User:
        """The user's end of the log as this batch sees it; the commit applies only if it still stands then."""
        found = batch.users.get(user)
        if found is not None:
            return found
        cached = None if batch.alone else self._cache.get(user)
        if cached is None:
            cached = self._read(batch.draft, user)
        else:
            for key, value in cached.expected:
                batch.draft.expect_as(key, value)
        batch.users[user] = cached
        return cached

    def _read(self, draft: Draft, user: str) -> _User:
        key = user_key(user)
        head = draft.head(key)
        aside = draft.aside(key)
        state = None if head is None else self.store.estimator.decode(head.state)
        at_us = self._at_us(state)
        last_us = max(at_us, aside.last_us if aside else LONG_AGO_US)
        expected = tuple((k, draft.expected[k]) for k in (keys.head(key), keys.aside(key)) if k in draft.expected)
        return _User(key, head, state, at_us, last_us, expected)

    def _at_us(self, state: Any) -> int:
        return LONG_AGO_US if state is None else self.store.estimator.at_us(state)

    def one(self, batch: _Batch, measurement: Measured, origin: Origin) -> Outcome:
        """Decide one measurement into the batch's draft."""
        name = measurement.user
        user = batch.users.get(name) or self.user(batch, name)
        key = identities.key_of(user.key, measurement)
        if measurement.at_us <= user.last_us:
            seen = batch.draft.identity(key)
            if seen is not None:
                status = "duplicate" if seen.source_id == origin.source_id else "known"
                return Outcome(status, name, "", None, user.head.version if user.head else 0)
        reading: Reading | None = None
        try:
            reading = self.reading(measurement)
            reason = ""
        except InvalidInput as error:
            reason = str(error)
        if measurement.at_us > batch.present_us:
            reason = f"from the future: {iso(measurement.at_us)} is after the present, {iso(batch.present_us)}"
        if reason or reading is None:
            return self._kept(batch, key, measurement, reading, origin, QUARANTINED, reason)
        incoming = Incoming(measurement, key, reading, origin)
        head, state, unfit = user.head, user.state, ""
        if head is not None:
            if reading.at_us <= user.at_us:
                reason = f"late: not after the last accepted measurement at {iso(user.at_us)}"
                return self._kept(batch, key, measurement, reading, origin, LATE, reason)
            if head.rules != self.store.validator.fingerprint:
                broken = self.store.validator.validate(state)
                if broken:
                    reason = f"the stored state breaks the rules in force ({broken[0]}); reset or restore the user first"
                    return self._kept(batch, key, measurement, reading, origin, QUARANTINED, reason)
            nis = self.manager.ordinary(state, head.reset_us, reading, measurement.source)
            if nis is not None:
                after, unfit = self._stepped(state, reading)
                if not unfit:
                    return self._accept(batch, user, incoming, after, nis)
        situation = self.manager.situation(batch.draft, head, state, user.key, reading.at_us)
        decision = self.manager.decide(situation, incoming, unfit)
        if decision.action == "hold":
            return self._hold(batch, incoming, decision)
        return self._reset(batch, user, incoming, decision, situation)

    def _stepped(self, before: Any, reading: Reading) -> tuple[Any, str]:
        """The state after a reading, and why it may not be accepted all the same, "" where it may."""
        state = self.store.estimator.step(before, reading)
        violations = self.store.validator.validate(state, None, before)
        return state, f"it would make the state invalid: {violations[0]}" if violations else ""

    def _accept(  # noqa: PLR0913 - the parts of a version
        self, batch: _Batch, user: _User, incoming: Incoming, state: Any, nis: float | None, reset: ResetResult | None = None,
    ) -> Outcome:
        estimator, head = self.store.estimator, user.head
        if head is None:
            message = "INV-04: a measurement was to be accepted where no state is stored"
            raise InvariantViolation(message, user=incoming.measurement.user)
        key, at_us = user.key, incoming.reading.at_us
        probation, since_us = head.probation, at_us
        if probation is not None:
            probation = msgspec.structs.replace(probation, accepted=probation.accepted + 1)
            since_us = head.run_since_us
            if self.manager.policy.probation_over(probation.since_us, probation.accepted, at_us):
                probation, since_us = None, at_us
                batch.draft.delete(keys.pin(key))
        new = log.NewVersion(state, "", "measurement", at_us, (incoming.key,), incoming.reading)
        after = log.append(
            batch.draft, estimator, key, head, new, run_since_us=since_us, reset_us=head.reset_us, probation=probation,
            rules=self.store.validator.fingerprint, versions_max=self.store.limits.versions_max,
        )
        accepted = identities.identity(incoming.measurement, incoming.reading, incoming.origin, ACCEPTED)
        batch.draft.put_identity(key, incoming.key, accepted)
        state_us = estimator.at_us(state)
        last_us = state_us if state_us > user.last_us else user.last_us
        batch.users[incoming.measurement.user] = _User(key, after, state, state_us, last_us, ())
        adapting = estimator.adapting(user.state, at_us)
        return Outcome("accepted", incoming.measurement.user, "", reset, after.version, nis, adapting)

    def _hold(self, batch: _Batch, incoming: Incoming, decision: Decision) -> Outcome:
        if decision.refused_kind:
            public = Public(event="reset.held", outcome="held", kind=decision.refused_kind)
            personal = Personal(user=incoming.measurement.user, at_us=incoming.reading.at_us, trigger=decision.explain,
                                details={"values": incoming.reading.values})
            batch.draft.entries.append(Entry(public, personal, context_now()))
        state = self.user(batch, incoming.measurement.user).state
        kept = self._kept(batch, incoming.key, incoming.measurement, incoming.reading, incoming.origin, HELD,
                          decision.explain, decision.nis)
        return msgspec.structs.replace(kept, adapting=self.store.estimator.adapting(state, incoming.reading.at_us))

    def _kept(  # noqa: PLR0913 - the parts of an identity
        self, batch: _Batch, key: bytes, measurement: Measured, reading: Reading | None, origin: Origin, disposition: int,
        reason: str, nis: float | None = None, reset: ResetResult | None = None,
    ) -> Outcome:
        user, name = user_key(measurement.user), measurement.user
        identities.keep_aside(batch.draft, user, key, identities.identity(measurement, reading, origin, disposition, reason))
        if retention.note_limit(batch.draft, user, self.store.limits.quarantined_measurements_max, measurement.at_us):
            batch.draft.after.append(self.manager.note_limit)
        before = self.user(batch, name)
        last_us = max(before.last_us, measurement.at_us)
        batch.users[name] = _User(user, before.head, before.state, before.at_us, last_us, ())
        status = "late" if disposition == LATE else "quarantined"
        return Outcome(status, name, reason, reset, before.head.version if before.head else 0, nis)

    def _reset(self, batch: _Batch, user: _User, incoming: Incoming, decision: Decision, situation: Situation) -> Outcome:
        key, name = user_key(incoming.measurement.user), incoming.measurement.user
        if not batch.alone and self.manager.would_probe(batch.draft, key, batch.now()):
            raise _NeedsOwnCommit  # a probe is leased by a commit before it runs
        tx = self.manager.run_decided(batch.draft, decision, incoming, user.head, situation, batch.now())
        if tx.result is None or tx.result.outcome != "committed":
            return self._fall_back(batch, user, incoming, decision, tx.result)
        last_us = max(user.last_us, incoming.reading.at_us, tx.at_us)
        batch.users[name] = _User(key, tx.head, tx.state, self._at_us(tx.state), last_us, ())
        version = tx.head.version if tx.head else 0
        kept = batch.draft.identity(incoming.key)
        if kept is not None and kept.disposition != ACCEPTED:
            return Outcome("quarantined", name, kept.reason, tx.result, version, decision.nis)
        return Outcome("accepted", name, "", tx.result, version, None)

    def _fall_back(
        self, batch: _Batch, user: _User, incoming: Incoming, decision: Decision, reset: ResetResult | None,
    ) -> Outcome:
        """After a failed, refused or withheld reset: the state before it where the measurement fits, else quarantine."""
        if user.head is not None and decision.nis is not None and decision.nis <= self.manager.policy.gate:
            state, unfit = self._stepped(user.state, incoming.reading)
            if not unfit:
                return self._accept(batch, user, incoming, state, decision.nis, reset)
        return self._kept(batch, incoming.key, incoming.measurement, incoming.reading, incoming.origin, HELD,
                          why_kept(decision.kind, reset), decision.nis, reset)

    def remember(self, batch: _Batch) -> None:
        """Keep the users of a committed batch decoded; the bytes they stand for are compared at their next commit."""
        if len(self._cache) > CACHED_USERS_MAX:
            self._cache.clear()
        puts, before = batch.draft.puts, batch.draft.expected
        for name, user in batch.users.items():
            head, aside = keys.head(user.key), keys.aside(user.key)
            expected = ((head, puts[head] if head in puts else before.get(head)),
                        (aside, puts[aside] if aside in puts else before.get(aside)))
            self._cache[name] = _User(user.key, user.head, user.state, user.at_us, user.last_us, expected)

    def forget_user(self, user: str) -> None:
        """Drop what is kept decoded of one user."""
        self._cache.pop(user, None)

    def forget(self) -> None:
        """Drop what is kept decoded, after a batch that could not be committed."""
        self._cache.clear()


class _Stream:
    """One source on its way through: what is committed of it, and what the pending batch adds to that."""

    def __init__(self, key: bytes | None, cursor: Cursor, base: Literal["event", "wall"]) -> None:
        self.key = key
        self.base: Literal["event", "wall"] = base
        self.cursor = cursor
        self.position = 0
        self.pending: Counter[str] = Counter()
        self.latest_us = cursor.latest_us

    def saw(self, measurement: Measured | None) -> None:
        """Time has gone on to the measurement, if it is a later one and not from the future."""
        if measurement is not None and self.latest_us < measurement.at_us <= self.cursor.now_us:
            self.latest_us = measurement.at_us

    def now(self, wall_us: int) -> Now:
        """The instant to decide a row by: the greatest event time seen, or the wall clock for live callers."""
        return Now(wall_us, wall_us) if self.base == "wall" else Now(self.latest_us, wall_us, "event")

    def read_again(self, store: Store) -> bool:
        """Take the cursor as it is stored now; whether another run has moved it."""
        stored = None if self.key is None else store.cursor(self.key[len(keys.CURSOR):])
        if stored is None or stored == self.cursor:
            return False
        self.cursor = stored
        self.reverted()
        return True

    def put_cursor(self, draft: Draft) -> None:
        """The cursor as it will stand, in the draft that carries what it counts; the commit misses where another run moved it."""
        if self.key is not None and self.pending:
            if record(Cursor, self.key, draft.expect(self.key)) != self.cursor:  # the bytes differ between schemas
                draft.expected[self.key] = b""
            draft.put(self.key, codec.pack(self.advanced()))

    def advanced(self) -> Cursor:
        """The cursor with the pending rows consumed."""
        totals = Counter(self.cursor.totals)
        totals.update(self.pending)
        totals["read"] += self.pending.total()
        return msgspec.structs.replace(self.cursor, consumed=self.cursor.consumed + self.pending.total(),
                                       totals=dict(sorted(totals.items())), latest_us=self.latest_us)

    def settled(self) -> None:
        """The pending rows are durable."""
        if self.pending:
            self.cursor = self.advanced()
            self.pending = Counter()

    def reverted(self) -> None:
        """The pending rows are to be taken anew."""
        self.pending = Counter()
        self.latest_us = self.cursor.latest_us


class Intake:
    """One pass over the rows of one or several sources, many rows a commit; with a cursor, each is consumed exactly once.

    `report` is called with each row's source number and outcome once it is durable.  A batch that misses is dropped and
    its rows are taken one by one.
    """

    def __init__(self, processor: Processor, streams: Sequence[_Stream], report: Callable[[int, Outcome], None]) -> None:
        self.streams = tuple(streams)
        self.known = [0] * len(streams)
        self._processor = processor
        self._store = processor.store
        self._report = report
        self._rows: list[tuple[int, int, SourceRow]] = []
        self._outcomes: list[Outcome] = []
        self._batch: _Batch | None = None
        self._marks = processor.store.marks
        self._monotonic_us = processor.store.clock.monotonic_us
        self._rows_max = processor.store.limits.group_measurements_max
        self._current: _Stream | None = None
        self._wall_us = 0
        self._due_us = 0

    def add(self, number: int, row: SourceRow) -> None:
        """Take the next row of source `number`, in that source's processing order."""
        stream = self.streams[number]
        stream.position += 1
        if stream.position <= stream.cursor.consumed and stream.key is not None:
            self.known[number] += 1
            return
        batch = self._batch
        if batch is None:
            self._wall_us = self._store.clock.now_us()
            self._due_us = self._monotonic_us() + self._store.limits.group_delay_ms * 1_000
            batch = self._batch = _Batch(self._store.draft(), self._now, stream.cursor.now_us, alone=False)
        draft = batch.draft
        before = (len(draft.puts), len(draft.entries), len(draft.events))
        try:
            outcome = self._decide(batch, stream, row)
        except (_NeedsOwnCommit, StoreCorrupt):
            if before == (len(draft.puts), len(draft.entries), len(draft.events)):
                self.flush()
            else:
                self._again()
            self._one_by_one([(number, stream.position, row)])
            return
        except BaseException:
            self._drop()
            raise
        self._rows.append((number, stream.position, row))
        self._outcomes.append(outcome)
        stream.pending[outcome.status] += 1
        if len(self._rows) >= self._rows_max or self._marks.full or self._monotonic_us() >= self._due_us:
            self.flush()

    def _now(self) -> Now:
        if self._current is None:
            message = "an instant was asked for before any row"
            raise InvariantViolation(message)
        return self._current.now(self._wall_us)

    def _decide(self, batch: _Batch, stream: _Stream, row: SourceRow) -> Outcome:
        self._current = stream
        measurement, cursor = row.measurement, stream.cursor
        batch.present_us = cursor.now_us
        if measurement is None:
            return _keep_unreadable(batch.draft, stream, row)
        identities.require_identity(measurement)
        stream.saw(measurement)
        return self._processor.one(batch, measurement, Origin(cursor.source_id, row.row))

    def flush(self) -> None:
        """Make what was taken durable and report it; raises what prevents any commit, having lost nothing."""
        batch, self._batch = self._batch, None
        if batch is None:
            return
        for stream in self.streams:
            stream.put_cursor(batch.draft)
        try:
            if batch.draft:
                self._store.commit(batch.draft)
        except (ConflictError, StoreCorrupt):  # a record that cannot be reached is the trouble of one user (INV-11)
            self._batch = batch
            self._again()
            return
        except BaseException:
            self._batch = batch
            self._drop()
            raise
        self._processor.remember(batch)
        for stream in self.streams:
            stream.settled()
        rows, outcomes, self._rows, self._outcomes = self._rows, self._outcomes, [], []
        for (number, _, _), outcome in zip(rows, outcomes, strict=True):
            self._report(number, outcome)

    def _again(self) -> None:
        """Drop the batch and take its rows one by one, from what is durable."""
        self._one_by_one(self._drop())

    def _drop(self) -> list[tuple[int, int, SourceRow]]:
        """Go back to what is durable; the rows that are not."""
        if self._batch is not None:
            self._batch.draft.drop()
        rows, self._rows, self._outcomes, self._batch = self._rows, [], [], None
        self._processor.forget()
        for stream in self.streams:
            stream.reverted()
        return rows

    def _one_by_one(self, rows: Sequence[tuple[int, int, SourceRow]]) -> None:
        for number, position, row in rows:
            while True:
                try:
                    self._by_itself(number, position, row)
                except _CursorMoved:
                    continue
                break

    def _by_itself(self, number: int, position: int, row: SourceRow) -> None:
        """One row in a commit of its own, unless another run has consumed it meanwhile."""
        stream = self.streams[number]
        stream.read_again(self._store)
        if stream.key is not None and position <= stream.cursor.consumed:
            self.known[number] += 1
            return
        stream.saw(row.measurement)
        now = stream.now(self._store.clock.now_us())

        def finish(draft: Draft, outcome: Outcome) -> None:
            if stream.read_again(self._store):
                raise _CursorMoved
            stream.pending = Counter({outcome.status: 1})
            stream.put_cursor(draft)

        if row.measurement is None:
            draft = self._store.draft()
            outcome = _keep_unreadable(draft, stream, row)
            finish(draft, outcome)
            try:
                self._store.commit(draft)
            except ConflictError:
                raise _CursorMoved from None
        else:
            origin = Origin(stream.cursor.source_id, row.row)
            self._processor.forget_user(row.measurement.user)
            outcome = self._processor.alone(row.measurement, origin, now, stream.cursor.now_us, finish)
        stream.settled()
        self._report(number, outcome)


def _keep_unreadable(draft: Draft, stream: _Stream, row: SourceRow) -> Outcome:
    kept = msgspec.structs.replace(row.unreadable or Unreadable(0, "", "no measurement"), file=stream.cursor.name)
    draft.put(keys.unreadable(stream.cursor.source_id, row.row), codec.pack(kept))
    return Outcome("quarantined", kept.user, kept.reason)
