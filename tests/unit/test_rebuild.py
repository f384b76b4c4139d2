"""Rebuilding one user: what is replaced, what is refused, and that no measurement gets lost or counted twice on the way."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from statemachine import (
    BodyWeight,
    BreakerOpen,
    BreakerPolicy,
    ConflictError,
    InvalidInput,
    Measurement,
    Processor,
    Reading,
    ResetManager,
    ResetPolicy,
    ResetValidationError,
    Rule,
    Store,
    StoreCorrupt,
    StoreUnavailable,
    UserUnknown,
    Violation,
)
from statemachine import rebuild as module
from statemachine.codec import encode_step, pack, seal
from statemachine.processor import SourceRow
from statemachine.rebuild import Rebuilt, Source, rebuild, rebuild_from
from statemachine.state import EstimatorState
from statemachine.store import keys
from statemachine.store import replay as log_replay
from statemachine.store.checkup import Checkup
from statemachine.store.draft import record
from statemachine.store.records import ACCEPTED, HELD, Aside, Head, Identity, Unreadable
from tests.regression.scene import BY, StillClock, events, opened, raw, tear, weighed, working

FILE = [Source(b"f" * 16, "f.csv", "ab" * 32)]
ACTED: dict[str, Any] = BY
ANA = b"ana"

pytestmark = pytest.mark.usefixtures("no_events")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state"


def course(days: int, first: int = 0, kg: float = 80.0) -> list[Measurement]:
    return [weighed("ana", first + day, kg + 0.1 * (day % 3)) for day in range(days)]


def rows_of(measurements: list[Measurement]) -> list[tuple[int, SourceRow]]:
    return [(0, SourceRow(number, measurement)) for number, measurement in enumerate(measurements)]


def feed(path: Path, measurements: list[Measurement]) -> None:
    with working(path) as (_, _, processor):
        processor.process_batch(measurements)


def feed_file(store: Store, rows: list[tuple[int, SourceRow]], report: Callable[[int, Any], None] = lambda _, o: None) -> Any:
    intake = Processor(ResetManager(store)).intake([(source.key, source.name) for source in FILE], report)
    for number, row in rows:
        intake.add(number, row)
    intake.flush()
    return intake


def everything(store: Store) -> dict[bytes, bytes]:
    return dict(store.engine.scan(b"\0", b"\xff" * 8))


def identities(store: Store) -> dict[bytes, Identity]:
    prefix = keys.identities(ANA)
    found = {at: record(Identity, at, value) for at, value in store.engine.scan(prefix, keys.after(prefix))}
    return {at: kept for at, kept in found.items() if kept is not None}


def head_of(store: Store) -> Head:
    head = store.head("ana")
    assert head is not None
    return head


def sealed(path: Path, key: bytes, value: Any, prefix: bytes = b"") -> None:
    """Write a record with a good checksum behind the library's back."""
    with raw(path) as txn:
        txn.put(key, seal(key, prefix + pack(value)))


def sound(store: Store) -> bool:
    return not [finding for finding in Checkup(store).run() if finding.level == "error"]


def from_file(store: Store, measurements: list[Measurement], **named: Any) -> Rebuilt:
    return rebuild_from(ResetManager(store), "ana", FILE, rows_of(measurements), **{**ACTED, **named})


# The log replayed.


def test_damaged_head_is_made_anew_with_all_that_stood_beside_it(path: Path) -> None:
    """State, probation, run and last reset are as they were; the bytes of the head are kept aside; one version more."""
    feed(path, course(40))
    feed(path, course(3, first=90))
    with opened(path) as store:
        before, pin = head_of(store), store.engine.get(keys.pin(ANA))
    assert before.probation is not None
    assert before.probation.accepted == 2
    torn = keys.head(ANA)
    tear(path, torn)
    with opened(path) as store:
        bytes_torn = store.engine.get(torn)
        done = rebuild(ResetManager(store), "ana", **ACTED)
        assert (done.outcome, done.log.found, done.base_version, done.version) == ("committed", "damaged", 43, 44)
        after = head_of(store)
        assert (after.version, after.author, after.first) == (44, done.attempt_id, 1)
        for name in ("state", "run_since_us", "reset_us", "probation", "rules"):
            assert getattr(after, name) == getattr(before, name), name
        assert after.images == (*before.images, 44)
        assert store.engine.get(keys.pin(ANA)) == pin
        assert store.engine.get(keys.damaged(ANA, 44)) == bytes_torn
        info = list(store.history("ana"))[-1]
        assert (info.kind, info.image, info.author) == ("rebuild", True, done.attempt_id)
        assert rebuild(ResetManager(store), "ana", **ACTED).outcome == "unchanged"
        assert sound(store)


def test_the_row_of_a_rebuild_says_who_why_and_what(path: Path) -> None:
    feed(path, course(5))
    tear(path, keys.head(ANA))
    with opened(path) as store:
        done = rebuild(ResetManager(store), "ana", **ACTED)
        row = store.inspect(done.attempt_id or "")
        assert row is not None
        assert (row.public.event, row.public.kind, row.public.outcome) == ("state.rebuilt", "rebuild", "committed")
        assert (row.personal.actor, row.personal.reason) == (BY["actor"], BY["reason"])
        assert (row.public.base_version, row.public.new_version) == (5, 6)
        assert row.personal.details == {"by": "replay", "head": "damaged"}
        assert row.personal.delta_x == (0.0, 0.0)


def test_head_that_says_otherwise_is_replaced_and_kept_aside(path: Path) -> None:
    """Its checksum is good and its state is none that the log gives: the log is the record."""
    feed(path, course(8))
    with opened(path) as store:
        head, third = head_of(store), store.load("ana", 3)
        assert third is not None
        other = msgspec.structs.replace(head, state=store.estimator.encode(third.state))
    sealed(path, keys.head(ANA), other)
    with opened(path) as store:
        done = rebuild(ResetManager(store), "ana", **ACTED)
        assert (done.outcome, done.log.found) == ("committed", "different")
        assert head_of(store).state == head.state
        assert store.engine.get(keys.damaged(ANA, 9)) == seal(keys.head(ANA), pack(other))
        assert (head_of(store).probation, head_of(store).run_since_us) == (head.probation, head.run_since_us)


def test_head_that_is_gone_is_made_anew(path: Path) -> None:
    feed(path, course(12))
    with opened(path) as store:
        before = head_of(store)
    with raw(path) as txn:
        txn.delete(keys.head(ANA))
    with opened(path) as store:
        done = rebuild(ResetManager(store), "ana", **ACTED)
        assert (done.outcome, done.log.found, done.version) == ("committed", "missing", 13)
        assert (head_of(store).state, head_of(store).probation) == (before.state, before.probation)
        assert store.engine.get(keys.damaged(ANA, 13)) is None
        assert sound(store)


def test_stale_head_gives_way_to_the_newer_log(path: Path) -> None:
    """A head that goes back in time leaves the instant that was seen, so that no measurement is taken twice."""
    feed(path, course(6))
    with opened(path) as store:
        stale = store.engine.get(keys.head(ANA)) or b""
    feed(path, course(3, first=6))
    with opened(path) as store:
        state = head_of(store).state
    with raw(path) as txn:
        txn.put(keys.head(ANA), stale)
    with opened(path) as store:
        done = rebuild(ResetManager(store), "ana", **ACTED)
        assert (done.outcome, done.log.found, done.version) == ("committed", "different", 10)
        assert head_of(store).state == state
        assert Processor(ResetManager(store)).process(course(3, first=6)[1]).status == "duplicate"


def test_state_that_goes_back_in_time_leaves_word_of_what_was_seen(path: Path) -> None:
    """The head knew of a measurement that the log does not have: offered again, it is not taken twice."""
    feed(path, course(7))
    with opened(path) as store:
        ahead = msgspec.structs.replace(head_of(store), version=6)
        sixth = store.load("ana", 6)
        assert sixth is not None
        state = store.estimator.encode(sixth.state)
    sealed(path, keys.head(ANA), ahead)
    with raw(path) as txn:
        txn.delete(keys.version(ANA, 7))
    with opened(path) as store:
        done = rebuild(ResetManager(store), "ana", **ACTED)
        assert (done.outcome, done.version, head_of(store).state) == ("committed", 7, state)
        assert Processor(ResetManager(store)).process(course(7)[6]).status == "duplicate"


def test_log_shorter_than_its_head_is_damaged_and_not_believed(path: Path) -> None:
    feed(path, course(6))
    with raw(path) as txn:
        txn.delete(keys.version(ANA, 6))
    with opened(path) as store:
        before = everything(store)
        done = rebuild(ResetManager(store), "ana", **ACTED)
        assert (done.outcome, done.version) == ("damaged", None)
        assert [version for version, _ in done.log.damage] == [6]
        assert everything(store) == before


@pytest.mark.parametrize("head_too", [False, True])
def test_damaged_log_is_told_and_nothing_written(path: Path, head_too: bool) -> None:
    feed(path, course(9))
    tear(path, keys.version(ANA, 4), *([keys.head(ANA)] if head_too else []))
    with opened(path) as store:
        before = everything(store)
        done = rebuild(ResetManager(store), "ana", **ACTED)
        assert (done.outcome, done.log.damage, done.log.unfolded) == ("damaged", ((4, "fails its checksum"),), 5)
        assert "version 4: fails its checksum" in module.damage_told(done)
        remedy = "`resetguard recover --user ana` walks back" if head_too else "the head is good and goes on"
        assert remedy in module.damage_told(done)
        assert everything(store) == before
        (found,) = [finding for finding in Checkup(store).run() if finding.problem.startswith("version 4")]
        assert remedy in found.remedy, "doctor says the same"
        assert (ResetManager(store).recover("ana", **ACTED) is not None) is head_too, "and it is true"


def test_a_torn_newest_version_under_a_good_head_needs_nothing(path: Path) -> None:
    """`recover` would do nothing there, and is not advised; the next measurement is taken."""
    feed(path, course(9))
    tear(path, keys.version(ANA, 9))
    with opened(path) as store:
        manager = ResetManager(store)
        done = rebuild(manager, "ana", **ACTED)
        assert (done.outcome, done.log.found) == ("damaged", "unproven")
        told = module.damage_told(done)
        assert ("nothing is to be done" in told, "recover" in told) == (True, False)
        (found,) = Checkup(store).run()
        assert found.remedy in told
        assert manager.recover("ana", **ACTED) is None
        assert Processor(manager).process(course(10)[9]).version == 10


def test_a_head_that_differs_over_a_damaged_log_is_decided_anew(path: Path) -> None:
    """It reads, so `recover` leaves it as it is; only the files tell which of the two is right."""
    feed(path, course(9))
    with opened(path) as store:
        manager = ResetManager(store)
        manager.perform_reset("ana", **ACTED)
        head, other = head_of(store), store.load("ana", 3)
        assert other is not None
        changed = msgspec.structs.replace(head, state=store.estimator.encode(other.state))
    sealed(path, keys.head(ANA), changed)
    tear(path, keys.version(ANA, 4))
    with opened(path) as store:
        manager = ResetManager(store)
        done = rebuild(manager, "ana", **ACTED)
        assert (done.outcome, done.log.found) == ("damaged", "different")
        told = module.damage_told(done)
        assert "`rebuild --from FILE` decides" in told
        assert "recover" not in told
        assert manager.recover("ana", **ACTED) is None
        assert from_file(store, course(9)).outcome == "committed"


def test_state_that_breaks_the_rules_in_force_is_not_committed(path: Path) -> None:
    """A replay is no way around a rule that came later."""
    feed(path, course(5))
    tear(path, keys.head(ANA))
    with opened(path, rules=[Rule("never", never)]) as store:
        with pytest.raises(ResetValidationError):
            rebuild(ResetManager(store), "ana", **ACTED)
        assert store.version_range("ana") == (1, 5)
        assert events(store)[-1] == ("reset.rolled_back", "rebuild", "rolled_back")


def never(state: Any, _now_us: int | None, _known: Any) -> Iterator[Violation]:
    """A check that nothing passes."""
    yield Violation("never", "x[0]", str(state.x[0]), "no weight at all", "kg")


def test_open_breaker_refuses_a_rebuild_as_any_attempt(path: Path) -> None:
    feed(path, course(5))
    tear(path, keys.head(ANA))
    with opened(path) as store:
        manager = ResetManager(store)
        manager.force_breaker("ana", "forced-open", **ACTED)
        with pytest.raises(BreakerOpen):
            rebuild(manager, "ana", **ACTED)
        with pytest.raises(BreakerOpen):
            from_file(store, course(5))
        assert store.version_range("ana") == (1, 5)


@pytest.mark.parametrize("named", [{"actor": ""}, {"reason": " "}])
def test_actor_and_reason_are_wanted(path: Path, named: dict[str, str]) -> None:
    feed(path, course(2))
    with opened(path) as store:
        with pytest.raises(InvalidInput, match="must have 1 to 500 bytes"):
            rebuild(ResetManager(store), "ana", **{**ACTED, **named})
        with pytest.raises(InvalidInput, match="must have 1 to 500 bytes"):
            from_file(store, course(2), **named)


def test_unexpected_version_changes_nothing_and_leaves_no_row(path: Path) -> None:
    feed(path, course(5))
    tear(path, keys.head(ANA))
    with opened(path) as store:
        before = everything(store)
        with pytest.raises(ConflictError, match="is at version 5, not 4 as expected"):
            rebuild(ResetManager(store), "ana", expect_version=4, **ACTED)
        with pytest.raises(ConflictError, match="is at version 5, not 4 as expected"):
            from_file(store, course(5), expect_version=4)
        assert everything(store) == before
        assert rebuild(ResetManager(store), "ana", expect_version=5, **ACTED).version == 6


def test_dry_run_says_what_would_be_and_writes_nothing(path: Path) -> None:
    feed(path, course(5))
    tear(path, keys.head(ANA))
    with opened(path) as store:
        before = everything(store)
        done = rebuild(ResetManager(store), "ana", dry_run=True, **ACTED)
        assert (done.outcome, done.version, done.attempt_id) == ("dry_run", None, None)
        done = from_file(store, [*course(5), weighed("ana", 5, 80.2)], dry_run=True)
        assert (done.outcome, done.moved) == ("dry_run", {("new", "accepted"): 1})
        assert len(done.after.buffer) == 6
        assert everything(store) == before


def test_user_without_a_state_is_not_replayed(path: Path) -> None:
    feed(path, [weighed("ana", 0, 5_000.0)])
    with opened(path) as store:
        for user in ("ana", "nobody"):
            with pytest.raises(UserUnknown):
                rebuild(ResetManager(store), user, **ACTED)


@pytest.mark.parametrize("form", ["replay", "files"])
def test_whoever_was_faster_wins(path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    """A measurement that is accepted between the look and the commit makes a rebuild miss; it is not lost."""
    feed(path, course(5))
    if form == "replay":
        with opened(path) as store:
            head, second = head_of(store), store.load("ana", 2)
            assert second is not None
            sealed_state = store.estimator.encode(second.state)
        sealed(path, keys.head(ANA), msgspec.structs.replace(head, state=sealed_state))
    look = log_replay.replay
    with opened(path) as store:
        manager = ResetManager(store)

        def overtaken(*args: Any, **named: Any) -> Any:
            found = look(*args, **named)
            monkeypatch.setattr(module, "replay", look)
            assert Processor(manager).process(weighed("ana", 7, 80.1)).status == "accepted"
            return found

        monkeypatch.setattr(module, "replay", overtaken)
        by_file = [*course(5), weighed("ana", 5, 80.2)]
        with pytest.raises(ConflictError, match="was not changed"):
            _ = rebuild(manager, "ana", **ACTED) if form == "replay" else from_file(store, by_file)
        assert store.version_range("ana") == (1, 6)
        assert len(identities(store)) == 6
        assert events(store)[-1] == ("reset.conflicted", "rebuild", "conflicted")


def test_kept_aside_meanwhile_makes_a_rebuild_miss_too(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It changes no version, and its count would be overwritten."""
    feed(path, course(5))
    look = log_replay.replay
    with opened(path) as store:
        def overtaken(*args: Any, **named: Any) -> Any:
            found = look(*args, **named)
            assert Processor(ResetManager(store)).process(weighed("ana", 7, 120.0)).status == "quarantined"
            return found

        monkeypatch.setattr(module, "replay", overtaken)
        with pytest.raises(ConflictError):
            from_file(store, [*course(5), weighed("ana", 5, 80.2)])
        assert (store.kept_count("ana"), store.version_range("ana")) == (1, (1, 5))


def test_what_is_read_back_must_be_what_was_promised(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    feed(path, course(5))
    tear(path, keys.head(ANA))
    with opened(path) as store:
        load = store.load
        first = load("ana", 1)

        def other(user: str, version: int | None = None) -> Any:
            found = load(user, version)
            return None if found is None or first is None else found._replace(state=first.state)

        monkeypatch.setattr(store, "load", other)
        with pytest.raises(StoreCorrupt, match="committed as version 6, but what is read back"):
            rebuild(ResetManager(store), "ana", **ACTED)


# Decided anew from files.


def test_operators_reset_is_undone_by_the_file(path: Path) -> None:
    """The state is what the measurements alone give, and the number of versions goes on."""
    feed(path, course(10))
    with opened(path) as store:
        before = head_of(store)
        ResetManager(store).perform_reset("ana", **BY)
        done = from_file(store, course(10))
        after = head_of(store)
        assert (done.outcome, done.base_version, done.version, done.moved) == ("committed", 11, 12, {})
        assert (after.state, after.probation, after.run_since_us, after.reset_us) == (
            before.state, before.probation, before.run_since_us, before.reset_us)
        assert list(store.history("ana"))[-1].admitted == 10
        assert store.engine.get(keys.pin(ANA)) is None
        assert from_file(store, course(10)).outcome == "unchanged"


@pytest.mark.parametrize("damage", ["torn", "altered"])
def test_file_gives_a_log_that_is_not_to_be_trusted_a_good_end(path: Path, damage: str) -> None:
    """Though the head is what the file gives, an image of it follows: what comes next can be folded from there."""
    feed(path, course(10))
    key = keys.version(ANA, 8)
    if damage == "torn":
        tear(path, key)
    else:
        with raw(path) as txn:
            txn.put(key, seal(key, encode_step(Reading(course(8)[7].at_us, (81.0,), 0.15), BodyWeight.kernel)))
    with opened(path) as store:
        before = head_of(store).state
        done = from_file(store, course(10))
        assert (done.outcome, done.version, done.moved) == ("committed", 11, {})
        assert head_of(store).state == before
        assert from_file(store, course(10)).outcome == "unchanged"
        again = rebuild(ResetManager(store), "ana", **ACTED)
        assert (again.outcome, again.log.found) == ("damaged" if damage == "torn" else "unchanged", "equal")
        assert ("only those before cannot be read" in module.damage_told(again)) is (again.log.found == "equal")
    tear(path, keys.head(ANA))
    with opened(path) as store:
        loaded = store.load("ana")
        assert loaded is not None
        assert (loaded.head_damaged, store.estimator.encode(loaded.state)) == (True, before)


def test_row_of_a_rebuild_from_files_accounts_for_every_measurement(path: Path) -> None:
    feed(path, [*course(10), weighed("ana", 10, 120.0)])
    with opened(path) as store:
        ResetManager(store).perform_reset("ana", measurement=weighed("ana", 11, 79.0, "by hand"), **BY)
        done = from_file(store, [*course(9), weighed("ana", 10, 120.0), weighed("ana", 9.5, 80.4)], leave_out=True)
        row = store.inspect(done.attempt_id or "")
        assert row is not None
        details = row.personal.details
        assert details["files"] == [{"name": "f.csv", "sha256": "ab" * 32, "source": 0}]
        assert details["rows"] == {"read": 11, "accepted": 10, "quarantined": 1, "duplicate": 0, "late": 0, "known": 0,
                                   "unreadable": 0}
        assert details["moved"] == [{"from": "accepted", "to": "quarantined", "count": 2},
                                    {"from": "new", "to": "accepted", "count": 1}]
        assert (details["left_out"], details["by"]) == (2, "files")


def test_accepted_measurements_that_the_files_do_not_hold_stop_it(path: Path) -> None:
    feed(path, course(10))
    with opened(path) as store:
        before = everything(store)
        with pytest.raises(InvalidInput, match=r"hold 6 accepted measurements.*2026-01-09T07:00:00Z 80.1 kg \(scale\).*\.\.\."):
            from_file(store, course(4))
        with pytest.raises(InvalidInput, match="1 accepted measurement of"):
            from_file(store, course(9))
        assert everything(store) == before


def test_left_out_measurements_lie_in_quarantine(path: Path) -> None:
    """None is gone, the counts add up, and the reason says why."""
    feed(path, course(10))
    with opened(path) as store:
        done = from_file(store, course(7), leave_out=True)
        assert (done.left_out, done.moved) == (3, {("accepted", "quarantined"): 3})
        kept = list(store.quarantine("ana"))
        assert [(k.disposition, k.reason) for k in kept] == [("quarantined", module.LEFT_OUT)] * 3
        assert store.kept_count("ana") == 3
        assert len(identities(store)) == 10
        assert Processor(ResetManager(store)).process(course(10)[8]).status in {"duplicate", "known"}
        assert sound(store)


def test_what_is_kept_aside_and_not_in_the_files_stays_there(path: Path) -> None:
    feed(path, [*course(10), weighed("ana", 10, 120.0), weighed("ana", 2.5, 80.0)])
    with opened(path) as store:
        before = {at: kept for at, kept in identities(store).items() if kept.disposition != ACCEPTED}
        ResetManager(store).perform_reset("ana", **BY)
        done = from_file(store, course(10))
        assert (done.not_in_files, done.left_out, done.moved) == (2, 0, {})
        assert {at: kept for at, kept in identities(store).items() if kept.disposition != ACCEPTED} == before
        assert store.kept_count("ana") == 2
        assert sorted(kept.disposition for kept in before.values()) == [HELD, 3]


def test_new_measurements_are_known_to_a_later_run_of_the_file(path: Path) -> None:
    """The file has no cursor here, so they are recorded as handed over; processing it then takes only what is newer still."""
    feed(path, course(5))
    grown = [*course(5), weighed("ana", 5, 80.3), weighed("ana", 6, 80.1)]
    with opened(path) as store:
        done = from_file(store, grown)
        assert done.moved == {("new", "accepted"): 2}
        assert {(kept.source_id, kept.disposition) for kept in identities(store).values()} == {(0, ACCEPTED)}
        statuses: list[str] = []
        intake = feed_file(store, rows_of([*grown, weighed("ana", 7, 80.2)]), lambda _, o: statuses.append(o.status))
        assert statuses == ["known"] * 7 + ["accepted"]
        assert intake.streams[0].cursor.totals["read"] == 8
        assert len(identities(store)) == 8


def test_measurements_of_a_file_that_was_read_here_keep_its_number(path: Path) -> None:
    with opened(path) as store:
        feed_file(store, rows_of(course(6)))
        cursor = store.cursor(FILE[0].key)
        assert cursor is not None
        with raw_identity_removed(store):
            done = from_file(store, course(6))
        assert done.moved == {("new", "accepted"): 1}
        assert {kept.source_id for kept in identities(store).values()} == {cursor.source_id}
        assert [kept.row for kept in identities(store).values()] == list(range(6))
        assert store.cursor(FILE[0].key) == cursor
        assert store.meta().sources == cursor.source_id


class raw_identity_removed:  # noqa: N801 - used as a block
    """The newest measurement's record is not there."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __enter__(self) -> None:
        draft = self._store.draft()
        draft.delete(max(identities(self._store)))
        self._store.commit(draft)

    def __exit__(self, *_: object) -> None:
        """It stays away."""


def test_measurement_read_while_the_user_was_unreadable_counts_once(path: Path) -> None:
    """It was kept as text then; once the files give it a record, the text goes in the same commit."""
    feed(path, course(5))
    tear(path, keys.head(ANA), *(keys.version(ANA, number) for number in range(1, 6)))
    late = weighed("ana", 5, 80.3)
    with opened(path) as store:
        processor = Processor(ResetManager(store))
        assert processor.process(late).status == "quarantined"
        assert processor.process(weighed("ana", 6, 80.4)).status == "quarantined"
        assert [kept.disposition for kept in store.quarantine("ana")] == ["unreadable"] * 2
        done = from_file(store, [*course(5), late])
        assert (done.moved, done.superseded) == ({("unreadable", "accepted"): 1}, 1)
        (left,) = store.quarantine("ana")
        assert "80.4" in left.raw
        assert Processor(ResetManager(store)).process(weighed("ana", 7, 80.2)).status == "accepted"


def test_text_of_a_measurement_that_has_its_record_goes_by_itself(path: Path) -> None:
    """It came again while the user could not be read, and nothing else is to be changed."""
    feed(path, course(5))
    torn = keys.head(ANA), *(keys.version(ANA, number) for number in range(1, 6))
    tear(path, *torn)
    with opened(path) as store:
        assert Processor(ResetManager(store)).process(course(5)[2]).status == "quarantined"
    tear(path, *torn)  # the same bits once more: the disk is well again
    with opened(path) as store:
        assert rebuild(ResetManager(store), "ana", **ACTED).outcome == "unchanged"
        done = from_file(store, course(5))
        assert (done.outcome, done.moved, done.restated, done.superseded) == ("committed", {}, 0, 1)
        assert list(store.quarantine("ana")) == []


def test_row_of_a_file_that_could_not_be_read_stays_whatever_it_says(path: Path) -> None:
    """Its text may look like a measurement's; it was never read as one, and is none."""
    first = weighed("ana", 0, 80.0)
    text = Unreadable(2, f"{first.at.isoformat()} {first.value} {first.unit} {first.source}", "no weight", "ana")
    feed(path, course(3))
    with opened(path) as store:
        feed_file(store, [(0, SourceRow(0, None, text))])
        from_file(store, [*course(3), weighed("ana", 3, 80.1)])
        assert [kept.disposition for kept in store.quarantine("ana")] == ["unreadable"]


def test_text_that_is_damaged_or_no_instant_is_passed_over(path: Path) -> None:
    feed(path, course(5))
    tear(path, keys.head(ANA), *(keys.version(ANA, number) for number in range(1, 6)))
    with opened(path) as store:
        processor = Processor(ResetManager(store))
        for day in (5, 6):
            assert processor.process(weighed("ana", day, 80.3)).status == "quarantined"
        one, other = (at for at, _ in store.engine.scan(keys.UNREADABLE, keys.after(keys.UNREADABLE)))
    tear(path, one)
    sealed(path, other, Unreadable(0, "yesterday 80.3 kg scale", "no instant", "ana"))
    with opened(path) as store:
        done = from_file(store, [*course(5), weighed("ana", 5, 80.3), weighed("ana", 6, 80.3)])
        assert done.moved == {("new", "accepted"): 2}
        assert {at for at, _ in store.engine.scan(keys.UNREADABLE, keys.after(keys.UNREADABLE))} == {one, other}


def test_image_names_only_so_many_measurements(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that named them all might outgrow the limit of a record, and could not be read back once compressed."""
    monkeypatch.setattr(module, "ADMITTED_NAMED_MAX", 3)
    feed(path, course(5))
    with opened(path) as store:
        from_file(store, [*course(5), weighed("ana", 5, 80.1)])
        assert list(store.history("ana"))[-1].admitted == 3


def test_rows_of_others_kept_as_text_stay(path: Path) -> None:
    feed(path, [*course(5), weighed("bob", 0, 90.0)])
    other = weighed("bob", 5, 80.3)
    of_bob = keys.head(b"bob"), keys.version(b"bob", 1)
    tear(path, keys.head(ANA), *of_bob, *(keys.version(ANA, number) for number in range(1, 6)))
    with opened(path) as store:
        assert Processor(ResetManager(store)).process(other).status == "quarantined"
        from_file(store, [*course(5), msgspec.structs.replace(other, user="ana")])
        assert len(list(store.quarantine("bob"))) == 1


def test_damaged_record_of_a_measurement_is_mended_by_the_file_that_holds_it(path: Path) -> None:
    feed(path, course(6))
    with opened(path) as store:
        third = sorted(identities(store))[2]
    tear(path, third)
    with opened(path) as store:
        with pytest.raises(StoreCorrupt, match=r"at 2026-01-07T07:00:00Z is damaged, and the files do not hold it"):
            from_file(store, [m for n, m in enumerate(course(6)) if n != 2], leave_out=True)
        done = from_file(store, course(6))
        assert (done.outcome, done.moved) == ("committed", {("unreadable", "accepted"): 1})
        assert len(identities(store)) == 6
        assert sound(store)


def test_wrong_count_of_what_is_kept_aside_is_mended(path: Path) -> None:
    feed(path, [*course(6), weighed("ana", 6, 120.0)])
    with opened(path) as store:
        aside = record(Aside, keys.aside(ANA), store.engine.get(keys.aside(ANA)))
        assert aside is not None
    sealed(path, keys.aside(ANA), msgspec.structs.replace(aside, count=7))
    with opened(path) as store:
        assert from_file(store, [*course(6), weighed("ana", 6, 120.0)]).outcome == "committed"
        assert store.kept_count("ana") == 1
        assert sound(store)


def test_files_that_say_nothing_of_the_user_are_refused(path: Path) -> None:
    feed(path, course(3))
    unreadable = SourceRow(0, None, Unreadable(2, "ana,x", "no weight", "ana"))
    with opened(path) as store:
        before, manager = everything(store), ResetManager(store)
        with pytest.raises(InvalidInput, match=r"hold no measurement of 'ana': f\.csv"):
            rebuild_from(manager, "ana", FILE, [(0, SourceRow(1, weighed("bob", 0, 80.0))), (0, unreadable)], **ACTED)
        with pytest.raises(InvalidInput, match=r"give no state for 'ana' \(1 of 1 rows quarantined: .*x\[0\]"):
            from_file(store, [weighed("ana", 0, 5_000.0)])
        with pytest.raises(InvalidInput, match="given twice"):
            rebuild_from(manager, "ana", FILE * 2, rows_of(course(3)), **ACTED)
        with pytest.raises(UserUnknown, match="process the files instead"):
            rebuild_from(manager, "bob", FILE, rows_of(course(3)), **ACTED)
        assert everything(store) == before


def test_rows_that_cannot_be_read_are_counted_apart(path: Path) -> None:
    feed(path, course(3))
    unreadable = SourceRow(7, None, Unreadable(9, "ana,x", "no weight", "ana"))
    with opened(path) as store:
        done = rebuild_from(ResetManager(store), "ana", FILE, [(0, unreadable), *rows_of(course(3))], **ACTED)
        assert done.rows == {"read": 4, "accepted": 3, "quarantined": 0, "duplicate": 0, "late": 0, "known": 0, "unreadable": 1}
        assert list(store.quarantine("ana")) == []


def test_the_managers_own_policy_decides(path: Path) -> None:
    """Under a wider gate the measurement that was held is accepted."""
    measurements = [*course(10), weighed("ana", 10, 86.0), weighed("ana", 11, 80.0)]
    feed(path, measurements)
    with opened(path) as store:
        assert store.kept_count("ana") == 1
        manager = ResetManager(store, policy=ResetPolicy(gate=1e6))
        done = rebuild_from(manager, "ana", FILE, rows_of(measurements), **ACTED)
        assert done.moved == {("held", "accepted"): 1}
        assert store.kept_count("ana") == 0


def test_the_managers_own_breaker_decides(path: Path) -> None:
    """Where more failures are allowed, the first good measurement after three bad ones begins the user, as version 1."""
    measurements = [*(weighed("ana", day / 1e3, 5_000.0) for day in range(3)), weighed("ana", 0.01, 80.0)]
    feed(path, measurements)
    with opened(path) as store:
        assert store.version_range("ana") == (0, 0)
        manager = ResetManager(store, breaker=BreakerPolicy(failures_max=100))
        manager.release_breaker("ana", **BY)
        with pytest.raises(InvalidInput, match="give no state"):
            from_file(store, measurements)
        done = rebuild_from(manager, "ana", FILE, rows_of(measurements), **ACTED)
        assert (done.outcome, done.before, done.base_version, done.version) == ("committed", None, 0, 1)
        assert done.moved == {("held", "accepted"): 1}
        assert (store.kept_count("ana"), len(identities(store))) == (3, 4)
        assert sound(store)


def test_the_stores_own_rules_decide(path: Path) -> None:
    """A rule that the store was opened with stands in the scratch store too."""
    feed(path, course(4))
    with opened(path, rules=[Rule("never", never)]) as store, pytest.raises(InvalidInput, match="give no state"):
        from_file(store, course(4))


class Nosy(BodyWeight):
    """Looks at the directory for temporary files while it reads a measurement."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.seen: list[list[str]] = []

    def reading(self, measurement: Measurement) -> Reading:
        self.seen.append([str(found) for found in self.folder.rglob("*")])
        return super().reading(measurement)


def test_nothing_decided_in_the_scratch_store_has_a_name_on_the_disk(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So nothing of a person outlives the process there, even when that is killed."""
    feed(path, course(4))
    folder = path.parent / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    nosy = Nosy(folder)
    with opened(path, estimator=nosy) as store:
        from_file(store, course(4))
    assert nosy.seen == [[]] * 4
    assert list(folder.iterdir()) == []


def test_no_room_for_a_scratch_store_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    feed(path, course(4))
    monkeypatch.setattr(tempfile, "tempdir", str(path.parent / "gone"))
    with opened(path) as store, pytest.raises(StoreUnavailable, match="set TMPDIR to another"):
        from_file(store, course(4))


def test_decisions_in_the_scratch_store_are_no_events(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the rebuild itself is copied to structlog and stands in the log."""
    feed(path, course(8))
    emitted: list[str] = []
    monkeypatch.setattr("statemachine.audit.Emitter.emit", lambda self, row, context: emitted.append(row.public.event))
    with opened(path) as store:
        seq = store.audit_tail()[0]
        from_file(store, [*course(8), weighed("ana", 8, 80.2)])
        assert emitted == ["state.rebuilt"]
        assert [row.public.event for row in store.audit(since_seq=seq + 1)] == ["state.rebuilt"]


def test_pin_leads_back_to_what_stood_before_it(path: Path) -> None:
    """Where the log has the pinned state under its own number, that is the last known good; else what the rebuild replaced."""
    measurements = [*course(20), *course(2, first=80)]
    feed(path, measurements)
    with opened(path) as store:
        manager = ResetManager(store)
        pinned = manager.last_known_good("ana")
        manager.perform_reset("ana", at=None, **BY)
        from_file(store, measurements)
        assert manager.last_known_good("ana") == pinned == 20
    tear(path, *(keys.version(ANA, number) for number in range(1, 25)))
    with opened(path) as store:
        base = store.version_range("ana")[1]
        draft = store.draft()
        draft.delete(keys.head(ANA))
        store.commit(draft)
        done = from_file(store, measurements)
        pin = store.draft().pin(ANA)
        assert pin is not None
        assert (done.base_version, pin.version) == (base, base)
        probation = head_of(store).probation
        assert probation is not None
        assert (probation.kind, probation.accepted, probation.version) == ("gap", 1, base + 1)


@pytest.mark.parametrize("reset_again", [False, True])
def test_numbers_of_the_scratch_log_are_not_taken_for_the_users_own(path: Path, reset_again: bool) -> None:
    """An operator's version before the gap moved all numbers after it by one: the user's log has other versions there."""
    measurements = [*course(20), *course(2, first=80)]
    feed(path, measurements[:10])
    with opened(path) as store:
        ResetManager(store).perform_reset("ana", **BY)
    feed(path, measurements[10:])
    with opened(path) as store:
        manager = ResetManager(store)
        assert next(info.version for info in store.history("ana") if info.kind == "gap") == 22
        if reset_again:
            manager.perform_reset("ana", **BY)
        done = from_file(store, measurements)
        assert manager.last_known_good("ana") == done.base_version == 23 + reset_again
        probation = head_of(store).probation
        assert probation is not None
        assert probation.kind == "gap"
        assert probation.version == (done.version if reset_again else 22)
        assert from_file(store, measurements).outcome == "unchanged"


def test_user_of_whom_only_what_is_kept_aside_is_left_begins_anew(path: Path) -> None:
    """With head and log gone there is no number to go on from: it is version 1."""
    feed(path, [*course(5), weighed("ana", 5, 120.0)])
    with raw(path) as txn:
        for key in (keys.head(ANA), *(keys.version(ANA, number) for number in range(1, 6))):
            txn.delete(key)
    with opened(path) as store:
        done = from_file(store, [*course(5), weighed("ana", 5, 120.0)])
        assert (done.outcome, done.base_version, done.version, done.before) == ("committed", 0, 1, None)
        assert isinstance(done.after, EstimatorState)
        row = store.inspect(done.attempt_id or "")
        assert row is not None
        assert row.personal.delta_x == (done.after.kalman.x0, done.after.kalman.x1)
        assert store.version_range("ana") == (1, 1)
        assert sound(store)


def test_head_alone_is_no_log(path: Path) -> None:
    feed(path, course(5))
    with raw(path) as txn:
        for number in range(1, 6):
            txn.delete(keys.version(ANA, number))
    with opened(path) as store:
        assert rebuild(ResetManager(store), "ana", **ACTED).outcome == "damaged"
        done = from_file(store, course(5))
        assert (done.outcome, done.version) == ("committed", 1)
        assert store.engine.get(keys.damaged(ANA, 1)) is not None


def test_clock_of_these_tests_is_after_their_measurements() -> None:
    assert StillClock().now_us() > weighed("ana", 100, 80.0).at_us


def test_kind_of_a_rebuild_is_the_logs_own(path: Path) -> None:
    feed(path, course(2))
    with opened(path) as store, pytest.raises(InvalidInput, match="the kind 'rebuild' is the log's own"):
        ResetManager(store).transaction("ana", kind="rebuild", **BY)
