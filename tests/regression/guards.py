"""For each failure of an earlier system: what the library does against it, and a patch that takes that out again.

`test_each_guard_matters` applies one patch and runs the failure's check, which must then fail: a check that still
passes guards nothing.  A patch is the old system's way where that is known, else the plain absence of the guard.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

import msgspec
import pytest

from statemachine import breaker, kalman, state, validation
from statemachine.clock import iso, to_us
from statemachine.errors import BreakerOpen, MutationFailed, ResetError, StoreCorrupt
from statemachine.estimator import BodyWeight
from statemachine.ingest import instants, weights
from statemachine.ingest import layout as ingest_layout
from statemachine.manager import ResetManager
from statemachine.policy import ResetPolicy
from statemachine.processor import Outcome, Processor
from statemachine.state import EstimatorState, Reading
from statemachine.store import Store, keys
from statemachine.store import committer as committing
from statemachine.store import draft as drafting
from statemachine.store.engine import Engine
from statemachine.store.records import Head
from statemachine.transaction import ResetTransaction
from statemachine.validation import StateValidator, Violation

Patch = Callable[[pytest.MonkeyPatch], None]
EVERYTHING: Final = (b"", b"\xff" * 8)


class Removal(NamedTuple):
    """The guard against failure `number` is `guard`; `patch` takes it out, and the check then ends by one of `raises`."""

    number: int
    guard: str
    patch: Patch
    raises: tuple[type[BaseException], ...] = (AssertionError,)


def _head_read_as_nothing(*kinds: type[ResetError]) -> Patch:
    """As in the old system: whatever cannot be read was never there."""
    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        original = drafting.Draft.head

        def head(self: drafting.Draft, user: bytes) -> Head | None:
            try:
                return original(self, user)
            except kinds:
                return None

        monkeypatch.setattr(drafting.Draft, "head", head)

    return patch


def _log_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """The head's word is taken for the end of the log, and its absence for that of the user."""
    def head(self: drafting.Draft, user: bytes) -> Head | None:
        return drafting.record(Head, keys.head(user), self.expect(keys.head(user)))

    monkeypatch.setattr(drafting.Draft, "head", head)


def _dates_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("statemachine.estimator.from_us", iso)


def _pairs_as_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    class Pairs(struct.Struct):
        def iter_unpack(self, data: Any) -> Iterator[Any]:
            return iter([list(pair) for pair in struct.Struct.iter_unpack(self, data)])

    monkeypatch.setattr("statemachine.state.PAIR", Pairs("<qd"))


def _abort_commits(monkeypatch: pytest.MonkeyPatch) -> None:
    class Kept:
        def __init__(self, txn: Any) -> None:
            self._txn = txn

        def __getattr__(self, name: str) -> Any:
            return getattr(self._txn, "commit" if name == "abort" else name)

        def __enter__(self) -> Any:
            return self._txn.__enter__()

        def __exit__(self, *error: object) -> None:
            self._txn.__exit__(*error)

    original = Engine.write
    monkeypatch.setattr(Engine, "write", lambda self: Kept(original(self)))


def _checkpoints_are_saves(monkeypatch: pytest.MonkeyPatch) -> None:
    original = ResetTransaction.apply

    def apply(self: ResetTransaction, name: str, mutation: Callable[[Any], Any]) -> Any:
        candidate = original(self, name, mutation)
        if self._head is not None:
            early = self._store.draft()
            head = msgspec.structs.replace(self._head, state=self._store.estimator.encode(candidate))
            early.put(keys.head(self._key), msgspec.msgpack.encode(head))
            self._store.commit(early)
        return candidate

    monkeypatch.setattr(ResetTransaction, "apply", apply)


def _rollback_of_the_whole_file(monkeypatch: pytest.MonkeyPatch) -> None:
    begin, end = ResetTransaction.begin, ResetTransaction._end
    copies: dict[int, dict[bytes, bytes]] = {}

    def copy(self: ResetTransaction, head: Head | None = None, state_: Any = None) -> None:
        copies[id(self)] = dict(self._store.engine.scan(*EVERYTHING))
        begin(self, head, state_)

    def put_back(self: ResetTransaction, *how: Any) -> Any:
        engine = self._store.engine
        with engine.turn(), engine.write() as txn:
            for key in [key for key, _ in txn.cursor()]:
                txn.delete(key)
            for key, value in copies[id(self)].items():
                txn.put(key, value)
        return end(self, *how)

    monkeypatch.setattr(ResetTransaction, "begin", copy)
    monkeypatch.setattr(ResetTransaction, "_end", put_back)


def _rollback_of_the_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    original = ResetTransaction._end

    def end(self: ResetTransaction, *how: Any) -> Any:
        if self._batch is not None:
            self._batch.puts.clear()
        return original(self, *how)

    monkeypatch.setattr(ResetTransaction, "_end", end)


def _arrays_writable(monkeypatch: pytest.MonkeyPatch) -> None:
    original = state._read_only

    def writable(values: Any, shape: tuple[int, ...]) -> Any:
        array = original(values, shape)
        array.flags.writeable = True
        return array

    monkeypatch.setattr(state, "_read_only", writable)


def _reading_unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    def reading(self: BodyWeight, measurement: Any) -> Reading:
        return Reading(measurement.at_us, (measurement.weight_kg,), self.r_kg2 * self.multiplier(measurement.source))

    monkeypatch.setattr(BodyWeight, "reading", reading)


def _nothing_checks_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    _reading_unchecked(monkeypatch)
    monkeypatch.setattr(StateValidator, "validate", lambda *_: ())
    monkeypatch.setattr(kalman, "nis", lambda *_: 0.0)


def _users_unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "user_key", lambda user: user.encode("utf-8", "surrogatepass"))


def _a_file_a_user(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Store.commit

    def commit(self: Store, draft: drafting.Draft) -> Any:
        rows = original(self, draft)
        for row in rows:
            name = row.personal.user.replace("/", "_") if row.personal.user.startswith("/") else row.personal.user
            path = self.path / name
            if path.parent.is_dir() and not path.is_dir():
                path.write_bytes(b"state")
        return rows

    monkeypatch.setattr(Store, "commit", commit)


def _four_fields_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    def roll_back_to(self: ResetTransaction, checkpoint: Any) -> None:
        k = checkpoint.state.kalman
        self.apply("roll back", lambda s: s.replace(x0=k.x0, x1=k.x1, p00=k.p00, p11=k.p11, p01=k.p01, p10=k.p10))

    monkeypatch.setattr(ResetTransaction, "roll_back_to", roll_back_to)


def _states_read_as_tuples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BodyWeight, "decode", lambda _self, data: msgspec.msgpack.decode(data))


def _failures_count_as_success(monkeypatch: pytest.MonkeyPatch) -> None:
    def settle(record: Any, policy: Any, _result: Any, **named: Any) -> Any:
        return breaker.settle(record, policy, "success", **named)

    monkeypatch.setattr(drafting, "settle", settle)


def _one_breaker_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every failure counts for the common breaker, and not each failing user once."""
    count = iter(range(1_000_000))

    def settle_global(record: Any, policy: Any, result: Any, **named: Any) -> Any:
        return breaker.settle_global(record, policy, result, **{**named, "user": str(next(count)).encode()})

    monkeypatch.setattr(drafting, "settle_global", settle_global)


def _rollback_without_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def end(self: ResetTransaction, outcome: str, result: Any, error: BaseException | None) -> Any:
        self._guard.fire("roll_back")
        self._draft.add_event(self._event(result))
        if self._batch is None:
            self._store.commit(self._draft)
        self._release()
        return self._finished(outcome, None, None, str(error))

    monkeypatch.setattr(ResetTransaction, "_end", end)


def _no_probe_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(breaker, "cooldown_us", lambda *_: 2**62)


def _no_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fall_back(_self: Processor, _batch: Any, user: Any, incoming: Any, _decision: Any, reset: Any) -> Outcome:
        return Outcome("quarantined", incoming.measurement.user, "", reset, user.head.version if user.head else 0)

    monkeypatch.setattr(Processor, "_fall_back", fall_back)


def _nan_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a check is written `value < low or value > high`."""
    original = StateValidator.validate

    def validate(self: StateValidator, *args: Any) -> tuple[Violation, ...]:
        return tuple(v for v in original(self, *args) if "nan" not in v.value)

    monkeypatch.setattr(StateValidator, "validate", validate)


def _without_rule(wanted: str) -> Patch:
    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        original = StateValidator.validate

        def validate(self: StateValidator, *args: Any) -> tuple[Violation, ...]:
            return tuple(v for v in original(self, *args) if wanted not in {v.rule, v.limit})

        monkeypatch.setattr(StateValidator, "validate", validate)

    return patch


def _only_the_surface_is_walked(monkeypatch: pytest.MonkeyPatch) -> None:
    original = validation._walk
    monkeypatch.setattr(validation, "_walk", lambda value, path, depth: original(value, path, depth) if depth < 2 else ())


def _exit_returns_the_state(monkeypatch: pytest.MonkeyPatch) -> None:
    original = ResetTransaction.__exit__

    def leave(self: ResetTransaction, *error: Any) -> Any:
        original(self, *error)
        return self.state

    monkeypatch.setattr(ResetTransaction, "__exit__", leave)


def _result_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    original = ResetTransaction._finished

    def finished(self: ResetTransaction, *how: Any, **named: Any) -> Any:
        result = original(self, *how, **named)
        self.result = None
        return result

    monkeypatch.setattr(ResetTransaction, "_finished", finished)


def _no_present(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Processor.one

    def one(self: Processor, batch: Any, *rest: Any) -> Outcome:
        batch.present_us = 2**62
        return original(self, batch, *rest)

    monkeypatch.setattr(Processor, "one", one)


def _naive_is_utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "to_us", lambda at: to_us(at if at.tzinfo else at.replace(tzinfo=UTC)))


def _naive_is_utc_in_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instants, "localise", lambda naive, _zone, _text: naive.replace(tzinfo=UTC))


def _commit_without_comparing(monkeypatch: pytest.MonkeyPatch) -> None:
    original = committing._judged

    def judged(txn: Any, draft: drafting.Draft, breakers: Any) -> Any:
        draft.expected.clear()
        return original(txn, draft, breakers)

    monkeypatch.setattr(committing, "_judged", judged)


def _rows_are_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    original = committing._Chain.append

    def append(self: Any, entry: Any) -> Any:
        row = original(self, entry)
        self._txn.delete(keys.audit(row.public.seq))
        return row

    monkeypatch.setattr(committing._Chain, "append", append)


def _rows_are_not_chained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("statemachine.audit.row_hash", lambda *_: bytes(32))


def _unparsable_is_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instants, "_uncommon", lambda _text: datetime.now(UTC))


def _invalid_is_now(monkeypatch: pytest.MonkeyPatch) -> None:
    original = instants.parse_instant

    def parse(text: str, zone: Any) -> datetime:
        try:
            return original(text, zone)
        except ValueError:
            return datetime.now(UTC)

    monkeypatch.setattr(ingest_layout, "parse_instant", parse)


def _units_are_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    original = weights.kilograms

    def guessed(value: str, unit: str) -> float:
        kg = original(value, unit or "kg")
        return kg * 1.67**2 if kg < 50.0 else kg  # the old system's figure: 45 became 125.5

    monkeypatch.setattr(ingest_layout, "kilograms", guessed)


def _missing_unit_is_kg(monkeypatch: pytest.MonkeyPatch) -> None:
    original = weights.kilograms
    monkeypatch.setattr(ingest_layout, "kilograms", lambda value, unit: original(value, unit or "kg"))


def _any_change_is_plausible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ResetPolicy, "plausible_change", lambda *_: float("inf"))


def _restore_forgets_what_was_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    original = ResetTransaction._append

    def append(self: ResetTransaction, draft: drafting.Draft) -> Head:
        head = original(self, draft)
        draft.puts.pop(keys.aside(self._key), None)
        return head

    monkeypatch.setattr(ResetTransaction, "_append", append)


def _restore_admits_again(monkeypatch: pytest.MonkeyPatch) -> None:
    original = ResetTransaction._append

    def append(self: ResetTransaction, draft: drafting.Draft) -> Head:
        if self.attempt.kind == "restore":
            self.admitted = (b"again",)
        return original(self, draft)

    monkeypatch.setattr(ResetTransaction, "_append", append)


def _only_the_newest_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    def newest_good(self: Store, user: str) -> Any:
        newest = drafting.newest_version(self.engine, user.encode())
        try:
            return self.load(user, newest)
        except StoreCorrupt:
            return None

    monkeypatch.setattr(Store, "newest_good", newest_good)


def _no_walk_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Processor, "_walk_back", lambda _self, _user, error: error)


def _no_pin(monkeypatch: pytest.MonkeyPatch) -> None:
    original = ResetManager.situation

    def situation(self: ResetManager, *args: Any) -> Any:
        return msgspec.structs.replace(original(self, *args), pin=None)

    monkeypatch.setattr(ResetManager, "situation", situation)


def _resets_keep_cross_terms(monkeypatch: pytest.MonkeyPatch) -> None:
    original = BodyWeight._widened

    def widened(self: BodyWeight, how: Any, s: EstimatorState) -> EstimatorState:
        return original(self, how, s).replace(p01=s.kalman.p01, p10=s.kalman.p10)

    monkeypatch.setattr(BodyWeight, "_widened", widened)


REMOVALS: Final = [
    Removal(1, "a torn head is no absent one", _head_read_as_nothing(StoreCorrupt)),
    Removal(1, "the head is compared with the log", _log_not_compared),
    Removal(2, "instants come back as datetimes", _dates_as_text),
    Removal(2, "pairs come back as tuples", _pairs_as_lists),
    Removal(3, "a failed write is aborted", _abort_commits),
    Removal(3, "nothing is stored before the commit", _checkpoints_are_saves),
    Removal(4, "a rollback touches what it drafted, not the store", _rollback_of_the_whole_file),
    Removal(4, "a rollback touches what it drafted, not the batch", _rollback_of_the_whole_batch),
    Removal(5, "arrays are read-only", _arrays_writable),
    Removal(6, "what is no weight is no reading", _reading_unchecked),
    Removal(6, "numbers are checked at all", _nothing_checks_numbers, (AssertionError, ValueError, OverflowError)),
    Removal(7, "user ids are checked", _users_unchecked),
    Removal(7, "no path is made of a user id", _a_file_a_user),
    Removal(8, "a checkpoint is the whole state", _four_fields_of_many),
    Removal(9, "what was written is read back as a state", _states_read_as_tuples, (AssertionError, AttributeError)),
    Removal(10, "a failure counts as one", _failures_count_as_success, (AssertionError, MutationFailed)),
    Removal(10, "the common breaker counts distinct users", _one_breaker_for_all, (AssertionError, BreakerOpen)),
    Removal(11, "a rollback leaves a row", _rollback_without_a_row),
    Removal(11, "the breaker lets a probe through after a cooldown", _no_probe_ever),
    Removal(11, "a failed reset falls back", _no_fallback),
    Removal(12, "a rollback leaves a row", _rollback_without_a_row),
    Removal(13, "checks are written so that NaN fails them", _nan_passes),
    Removal(13, "a covariance is positive definite", _without_rule("positive definite")),
    Removal(13, "numbers are checked however deep", _only_the_surface_is_walked),
    Removal(14, "__exit__ returns None", _exit_returns_the_state),
    Removal(14, "the result stays with the transaction", _result_is_lost),
    Removal(15, "nothing from after the present is believed", _no_present),
    Removal(16, "a naive datetime is refused", _naive_is_utc),
    Removal(16, "a naive timestamp needs a declared zone", _naive_is_utc_in_files),
    Removal(17, "the commit compares what it was made from", _commit_without_comparing),
    Removal(18, "audit rows are written", _rows_are_not_written),
    Removal(18, "audit rows are chained", _rows_are_not_chained),
    Removal(19, "a read error is no absence", _head_read_as_nothing(ResetError)),
    Removal(20, "a text that is no time is refused", _unparsable_is_now),
    Removal(20, "a time that cannot be is refused", _invalid_is_now),
    Removal(21, "units are not guessed from the number", _units_are_guessed),
    Removal(21, "a missing unit is not filled in", _missing_unit_is_kg),
    Removal(22, "a reset that rests on one reading is plausible", _any_change_is_plausible),
    Removal(23, "a restore forgets nothing that was seen", _restore_forgets_what_was_seen),
    Removal(23, "a restore admits no measurement", _restore_admits_again),
    Removal(24, "an unreadable version is walked past", _only_the_newest_is_tried),
    Removal(24, "the processor mends what it meets", _no_walk_back),
    Removal(25, "a reset under probation keeps the state before it", _no_pin),
    Removal(26, "a covariance is positive definite", _without_rule("positive definite")),
    Removal(26, "a covariance is symmetric", _without_rule("symmetric")),
    Removal(26, "a reset replaces the cross terms too", _resets_keep_cross_terms),
]
