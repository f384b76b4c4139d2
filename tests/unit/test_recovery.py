"""Restore and walking back: what they leave in the store and in the log, whom they refuse, and what it costs."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, MutableMapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
import structlog

from statemachine import (
    CommitInDoubt,
    ResetManager,
    Rule,
    StoreCorrupt,
    StoreFull,
    StoreLimits,
    UserUnknown,
    VersionPruned,
    Violation,
    codec,
)
from statemachine.audit import Row
from statemachine.recovery import Recovered, images_at_hand, recover
from statemachine.store import Store, keys, log
from statemachine.store.records import ACCEPTED, QUARANTINED, Head, Image
from statemachine.transaction import ResetTransaction
from tests.regression.scene import BY, PRESENT_US, START, StillClock, fill, opened, raw, states, tear, weighed, working
from tests.unit.doubles import Commit, Disk

VERSIONS = 1_500
WEIGHTS: Final = [80.0, 80.1, 80.2, 80.1, 80.0, 80.1, 80.2, 80.1]
LAST: Final = len(WEIGHTS)

pytestmark = pytest.mark.usefixtures("no_events")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A user with eight versions, the first an initial reset whose probation is over."""
    fill(tmp_path / "store", "ann", WEIGHTS)
    return tmp_path / "store"


def torn(path: Path, *versions: int, user: bytes = b"ann") -> None:
    """Damage the head, and these versions."""
    tear(path, keys.head(user), *(keys.version(user, version) for version in versions))


def last_row(store: Store) -> Row:
    return list(store.audit("ann"))[-1]


def head_of(store: Store) -> Head:
    found = store.head("ann")
    assert isinstance(found, Head)
    return found


def state_us(store: Store, version: int) -> int:
    loaded = store.load("ann", version)
    assert loaded is not None
    return store.estimator.at_us(loaded.state)


def at_weight(kg: float, s: Any) -> Any:
    return s.replace(x=[kg, 0.0])


def never(_: Commit) -> None:
    raise OSError(errno.ENOSPC, "no space left")


# Restore


def test_a_restore_is_one_named_operation_and_ends_the_probation(path: Path) -> None:
    """The pin goes, so that nothing can be revoked that a person has decided."""
    with working(path) as (store, manager, _):
        manager.perform_reset("ann", **BY)
        assert store.draft().pin(b"ann") is not None
        result = manager.restore("ann", to_version=3, **BY)
        assert [operation.name for operation in result.operations] == ["restore version 3"]
        assert states(store, "ann")[-1] == states(store, "ann")[2]
        assert last_row(store).personal.details == {"restored_version": 3}
        assert head_of(store).probation is None
        assert store.draft().pin(b"ann") is None


def test_a_restore_interrupted_after_its_commit_is_in_doubt(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the commit's return and the caller's."""
    commit = ResetTransaction.commit

    def late(tx: ResetTransaction) -> None:
        commit(tx)
        raise KeyboardInterrupt

    with working(path) as (store, manager, _):
        with monkeypatch.context() as patch:
            patch.setattr(ResetTransaction, "commit", late)
            with pytest.raises(CommitInDoubt) as doubt:
                manager.restore("ann", to_version=3, **BY)
        assert isinstance(doubt.value.__cause__, KeyboardInterrupt)
        assert doubt.value.attempt_id == last_row(store).public.attempt_id
        assert store.version_range("ann") == (1, LAST + 1)


# The version to go back to


def test_the_last_known_good_of_a_settled_user_is_the_version_before_the_head(path: Path) -> None:
    with working(path) as (_, manager, _):
        assert manager.last_known_good("ann") == LAST - 1


def test_the_last_known_good_during_probation_is_what_stood_before_the_reset(path: Path) -> None:
    """Also where measurements have come since, and where a second reset followed."""
    with working(path) as (_, manager, processor):
        manager.perform_reset("ann", at=START.replace(day=14), **BY)
        processor.process(weighed("ann", 10, 80.1))
        assert manager.last_known_good("ann") == LAST
        manager.perform_reset("ann", at=START.replace(day=16), **BY)
        assert manager.last_known_good("ann") == LAST


def test_before_a_first_state_nothing_is_good(tmp_path: Path) -> None:
    """Not during its probation, and not where retention has left one version."""
    fill(tmp_path / "store", "ann", WEIGHTS[:2])
    with working(tmp_path / "store") as (_, manager, _):
        with pytest.raises(VersionPruned, match="nothing stood before the state of 'ann'") as refused:
            manager.last_known_good("ann")
        assert (refused.value.first, refused.value.last, refused.value.user) == (1, 2, "ann")
        with pytest.raises(UserUnknown, match="'bob'") as unknown:
            manager.last_known_good("bob")
        assert unknown.value.user == "bob"


def test_a_single_version_without_probation_has_nothing_before_it(tmp_path: Path) -> None:
    fill(tmp_path / "store", "ann", WEIGHTS[:1])
    with working(tmp_path / "store") as (store, manager, _):
        manager.restore("ann", to_version=1, **BY)
        assert head_of(store).probation is None
        assert manager.last_known_good("ann") == 1
    with raw(tmp_path / "store") as txn:
        txn.delete(keys.version(b"ann", 2))
    with working(tmp_path / "store") as (store, manager, _):
        manager.recover("ann", **BY)
        assert (head_of(store).first, head_of(store).version) == (1, 1)
        with pytest.raises(VersionPruned):
            manager.last_known_good("ann")


def test_the_last_known_good_passes_over_damage_and_over_what_breaks_a_rule(path: Path) -> None:
    """Reset images, each readable by itself: the newest is torn, the next breaks a rule that came later."""
    with working(path) as (store, manager, _):
        for kg in (81.0, 90.0, 82.0, 83.0):
            manager.perform_reset("ann", operations=[("set", partial(at_weight, kg))], **BY)
        manager.restore("ann", to_version=LAST + 4, **BY)
        assert manager.last_known_good("ann") == LAST + 4
    tear(path, keys.version(b"ann", LAST + 4), keys.version(b"ann", LAST + 3))

    def light(s: Any, _now_us: int | None, _known: Any) -> list[Violation]:
        return [Violation("light", "x[0]", "", "below 85")] if s.kalman.x0 > 85 else []

    with opened(path, rules=[Rule("light", light)]) as store:
        assert ResetManager(store).last_known_good("ann") == LAST + 1


def test_with_a_damaged_head_the_last_known_good_is_the_newest_that_reads(path: Path) -> None:
    torn(path)
    with working(path) as (_, manager, _):
        assert manager.last_known_good("ann") == LAST
    torn(path, LAST)
    with working(path) as (_, manager, _):
        assert manager.last_known_good("ann") == LAST - 1


def test_where_nothing_earlier_reads_the_head_is_all_there_is(path: Path) -> None:
    """It is told, so that nobody throws it away."""
    tear(path, keys.version(b"ann", 1))
    with working(path) as (_, manager, _):
        with pytest.raises(StoreCorrupt, match=f"no version of 'ann' before its head, {LAST},") as refused:
            manager.last_known_good("ann")
        assert (refused.value.user, refused.value.newest_good) == ("ann", LAST)


def test_where_nothing_reads_a_backup_is_what_is_left(path: Path) -> None:
    torn(path, 1)
    with working(path) as (_, manager, _):
        with pytest.raises(StoreCorrupt, match=r"no version of 'ann' can be read: restore .* from a backup \(.+\)") as refused:
            manager.last_known_good("ann")
        assert refused.value.user == "ann"
        assert isinstance(refused.value.__cause__, StoreCorrupt)


# Walking back


def test_where_there_is_no_damage_nothing_is_done(path: Path) -> None:
    with working(path) as (store, manager, _):
        rows = len(list(store.audit()))
        assert manager.recover("ann", **BY) is None
        assert manager.recover("nobody", **BY) is None
        assert len(list(store.audit())) == rows


def test_a_torn_head_is_made_anew_as_the_log_has_it(path: Path) -> None:
    """Nothing is lost, no version is added, and what the head held is kept where it can be looked at."""
    with working(path) as (store, manager, _):
        reset = manager.perform_reset("ann", **BY)
        before, true = head_of(store), states(store, "ann")
        assert before.probation is not None
    torn(path)
    clock = StillClock()
    clock.ticks = 1_000_000
    with opened(path, clock=clock) as store:
        manager = ResetManager(store)
        damaged = store.engine.get(keys.head(b"ann"))
        found = manager.recover("ann", **BY)
        assert found == Recovered("ann", LAST + 1, LAST + 1, 0, found.attempt_id if found else "")
        after = head_of(store)
        assert (after.version, after.state, after.images, after.first) == (LAST + 1, before.state, (1, LAST + 1), 1)
        assert (after.author, after.kernel, after.rules) == (reset.attempt_id, before.kernel, store.validator.fingerprint)
        assert after.run_since_us == after.reset_us == state_us(store, LAST + 1)
        assert after.probation is None
        assert store.draft().pin(b"ann") is None, "the head said under what probation the user was, and it is lost"
        assert store.engine.get(keys.damaged(b"ann", LAST + 2)) == damaged
        assert states(store, "ann") == true
        assert list(store.quarantine()) == []
        assert manager.recover("ann") is None
        public, personal = last_row(store).public, last_row(store).personal
        assert (public.event, public.outcome, public.kind) == ("state.recovered", "recovered", "recovery")
        assert (public.base_version, public.new_version) == (LAST + 1, LAST + 1)
        assert found is not None
        assert public.attempt_id == found.attempt_id
        assert public.duration_us is not None
        assert 0 < public.duration_us < 1_000
        assert (personal.user, personal.reason, personal.actor) == ("ann", BY["reason"], BY["actor"])
        assert (personal.at_us, personal.trigger) == (PRESENT_US, "the head could not be read")
        assert personal.details == {"from_version": LAST + 1, "left_out": 0, "head_bytes_kept": True}


def test_what_a_walk_back_leaves_out_is_quarantined_and_the_state_goes_on(path: Path) -> None:
    """By a version of its own above all that were: the two measurements whose versions were damaged, and no other."""
    with working(path) as (store, _, _):
        true = states(store, "ann")
        kept_aside = weighed("ann", LAST - 0.5, 300.0)
    with working(path) as (_, _, processor):
        assert processor.process(kept_aside).status == "quarantined"
    torn(path, LAST, LAST - 1)
    with working(path) as (store, manager, processor):
        damaged = store.engine.get(keys.head(b"ann"))
        found = manager.recover("ann", **BY)
        assert found is not None
        assert found == Recovered("ann", LAST - 2, LAST + 1, 2, found.attempt_id)
        after = head_of(store)
        assert (after.version, after.author, after.images, after.first) == (LAST + 1, found.attempt_id, (1, LAST + 1), 1)
        assert after.state == true[LAST - 3]
        assert after.run_since_us == after.reset_us == state_us(store, LAST + 1) == state_us(store, LAST - 2)
        assert (after.probation, after.rules) == (None, store.validator.fingerprint)
        assert store.engine.get(keys.damaged(b"ann", LAST + 1)) == damaged
        reason = f"its version was damaged; the state went back to version {LAST - 2}"
        assert [each.reason for each in store.quarantine("ann")].count(reason) == 2
        identities = [identity for _, identity in store.draft().identities(b"ann", -1)]
        assert [identity.disposition for identity in identities[:LAST - 2]] == [ACCEPTED] * (LAST - 2)
        assert [identity.reason for identity in identities if identity.disposition == QUARANTINED].count(reason) == 2
        assert len(identities) == LAST + 1, "nothing is forgotten"
        with pytest.raises(StoreCorrupt):
            list(store.history("ann"))
        image = log.entry(store.engine.get, b"ann", LAST + 1)
        assert isinstance(image, Image)
        assert (image.kind, image.author, image.at_us, image.admitted) == ("recovery", found.attempt_id, PRESENT_US, ())
        row = last_row(store)
        assert (row.public.base_version, row.public.new_version) == (LAST, LAST + 1)
        assert row.personal.details == {"from_version": LAST - 2, "left_out": 2, "head_bytes_kept": True}
        assert processor.process(weighed("ann", LAST + 1, 80.1)).version == LAST + 2


def test_a_walk_back_keeps_to_the_number_of_versions_that_are_kept(path: Path) -> None:
    torn(path, LAST)
    with opened(path, limits=StoreLimits(versions_max=4)) as store:
        assert ResetManager(store).recover("ann", **BY) is not None
        assert store.version_range("ann") == (LAST - 2, LAST + 1)
        assert head_of(store).first == LAST - 2


def test_a_program_may_recover_without_a_person_asking(path: Path) -> None:
    torn(path)
    with working(path) as (store, manager, _):
        assert recover(manager.context, "ann", PRESENT_US - 5) is not None
        personal = last_row(store).personal
        assert (personal.actor, personal.reason, personal.at_us) == ("", "", PRESENT_US - 5)


def test_a_head_that_is_gone_is_made_anew_and_nothing_is_moved_aside(path: Path) -> None:
    with raw(path) as txn:
        txn.delete(keys.head(b"ann"))
    with working(path) as (store, manager, _):
        assert manager.recover("ann") is not None
        assert last_row(store).personal.details["head_bytes_kept"] is False
        assert store.engine.get(keys.damaged(b"ann", LAST + 1)) is None
        assert head_of(store).version == LAST
        assert (last_row(store).personal.actor, last_row(store).personal.reason) == ("", "")


# Where nothing can be read


def unrecoverable(store: Store) -> list[Row]:
    return [row for row in store.audit("ann") if row.public.event == "state.unrecoverable"]


def test_where_nothing_reads_nothing_changes_and_the_log_says_so_once(path: Path) -> None:
    """Once by itself, and each time that a person asks."""
    torn(path, 1)
    with working(path) as (store, manager, _):
        before = dict(store.engine.scan(keys.versions(b"ann"), keys.after(keys.versions(b"ann"))))
        for _ in range(3):
            with pytest.raises(StoreCorrupt, match="no version of 'ann' can be read") as refused:
                manager.recover("ann")
            assert refused.value.user == "ann"
        (row,) = unrecoverable(store)
        assert (row.public.outcome, row.public.kind, row.public.base_version) == ("unrecoverable", "recovery", LAST)
        assert row.public.attempt_id
        assert row.public.new_version is None
        personal = row.personal
        assert (personal.user, personal.at_us, personal.trigger) == ("ann", PRESENT_US, "no version can be read")
        assert (personal.actor, personal.reason) == ("", "")
        with pytest.raises(StoreCorrupt):
            manager.recover("ann", **BY)
        asked = unrecoverable(store)[-1].personal
        assert (len(unrecoverable(store)), asked.actor, asked.reason) == (2, BY["actor"], BY["reason"])
        with pytest.raises(StoreCorrupt):
            manager.recover("ann")
        assert len(unrecoverable(store)) == 2
        assert dict(store.engine.scan(keys.versions(b"ann"), keys.after(keys.versions(b"ann")))) == before


def test_rows_that_tell_of_no_commit_do_not_make_it_say_so_again(path: Path) -> None:
    """A refused reset, an act of an operator, and a row that is itself damaged lie between."""
    torn(path, 1)
    with working(path) as (store, manager, _):
        with pytest.raises(StoreCorrupt):
            manager.recover("ann")
        manager.force_breaker("ann", "forced-open", **BY)
        manager.force_breaker("ann", "metrics-only", **BY)
        seq = last_row(store).public.seq
    tear(path, keys.audit(seq))
    with working(path) as (store, manager, _):
        with pytest.raises(StoreCorrupt):
            manager.recover("ann")
        assert sum(b"unrecoverable" in value for _, value in store.engine.scan(keys.audit(0), keys.audit(2**62))) == 1


def test_other_users_rows_are_not_taken_for_it(path: Path) -> None:
    """Neither of one whose name begins alike, nor of one who comes next."""
    others = ("annA", "anna", "an", "anz", "ann-belle-marie-carlotta")
    for user in others:
        fill(path, user, WEIGHTS[:2])
    for user in (*others, "ann"):
        torn(path, 1, user=user.encode())
    with working(path) as (store, manager, _):
        for user in (*others, "ann"):
            for _ in range(2):
                with pytest.raises(StoreCorrupt):
                    manager.recover(user)
            assert [row.public.event for row in store.audit(user)].count("state.unrecoverable") == 1


def test_after_a_commit_of_the_user_it_is_said_anew(path: Path) -> None:
    """The damage that was told of was mended since, and this is another."""
    torn(path, *range(1, LAST + 1))
    with working(path) as (store, manager, _), pytest.raises(StoreCorrupt):
        manager.recover("ann")
    with raw(path) as txn:
        for version in range(1, LAST + 1):
            key = keys.version(b"ann", version)
            value = bytes(txn.get(key) or b"")
            txn.put(key, value[:-1] + bytes((value[-1] ^ 0xFF,)))
    with working(path) as (store, manager, _):
        assert manager.recover("ann") is not None
    torn(path, *range(1, LAST + 1))
    with working(path) as (store, manager, _):
        for _ in range(2):
            with pytest.raises(StoreCorrupt):
                manager.recover("ann")
        assert len(unrecoverable(store)) == 2


def test_where_no_row_of_the_user_reads_it_is_said(path: Path) -> None:
    with working(path) as (store, _, _):
        seqs = [row.public.seq for row in store.audit("ann")]
    tear(path, *(keys.audit(seq) for seq in seqs[:-1]))
    torn(path, 1)
    with working(path) as (store, manager, _):
        assert seqs, "there are rows"
    tear(path, keys.audit(seqs[-1]))
    with working(path) as (store, manager, _):
        for _ in range(2):
            with pytest.raises(StoreCorrupt):
                manager.recover("ann")
        rows = [value for _, value in store.engine.scan(keys.audit(0), keys.audit(2**62))]
        assert sum(b"state.unrecoverable" in row for row in rows) == 1


def test_the_event_of_an_unrecoverable_user_carries_the_caller_s_contextvars(path: Path) -> None:
    seen: list[dict[str, Any]] = []

    def keep(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        seen.append(dict(event))
        raise structlog.DropEvent

    torn(path, 1)
    structlog.configure(processors=[keep])
    with working(path) as (_, manager, _), structlog.contextvars.bound_contextvars(request="r-1"), pytest.raises(StoreCorrupt):
        manager.recover("ann")
    assert [event.get("request") for event in seen if event["event"] == "state.unrecoverable"] == ["r-1"]


def test_a_log_that_cannot_be_written_does_not_hide_the_damage(path: Path) -> None:
    """The error is the user's, and the disk's is its cause."""
    torn(path, 1)
    disk = Disk()
    with opened(path, opener=disk) as store:
        disk.commit = never
        with pytest.raises(StoreCorrupt, match="no version of 'ann' can be read") as refused:
            ResetManager(store).recover("ann")
        assert isinstance(refused.value.__cause__, StoreFull)
        disk.commit = None
        assert unrecoverable(store) == []


# The images at hand


def test_images_at_hand_are_the_newest_that_read(path: Path) -> None:
    """Ascending, at most ten, without steps and without what is damaged."""
    with working(path) as (store, manager, _):
        assert images_at_hand(store, b"ann") == (1,)
        for _ in range(12):
            manager.perform_reset("ann", **BY)
        assert images_at_hand(store, b"ann") == tuple(range(LAST + 3, LAST + 13)) == head_of(store).images
    tear(path, keys.version(b"ann", LAST + 12), keys.version(b"ann", LAST + 5))
    with working(path) as (store, _, _):
        assert images_at_hand(store, b"ann") == (LAST + 1, LAST + 2, LAST + 3, LAST + 4, *range(LAST + 6, LAST + 12))
    with raw(path) as txn:
        key = keys.version(b"ann", LAST + 11)
        txn.put(key, codec.seal(key, bytes((codec.IMAGE,)) + b"no image"))
    with working(path) as (store, _, _):
        assert images_at_hand(store, b"ann") == (1, *range(LAST + 1, LAST + 5), *range(LAST + 6, LAST + 11))


def test_torn_head_of_a_long_log_is_made_anew_from_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ten images at hand are found among the newest versions; the head is as it was."""
    path, read = tmp_path / "store", 0
    with working(path, durability="process") as (store, manager, processor):
        processor.process_batch([weighed("ann", number / 4, 80.0) for number in range(VERSIONS)])
        before = store.head("ann")
    tear(path, keys.head(b"ann"))

    def counted(scan: Callable[[bytes, bytes], Iterator[tuple[bytes, bytes]]], user: bytes) -> Iterator[tuple[int, bytes]]:
        nonlocal read
        for found in versions(scan, user):
            read += 1
            yield found

    versions = log.versions
    monkeypatch.setattr(log, "versions", counted)
    with working(path) as (store, manager, _):
        assert manager.recover("ann", **BY) is not None
        after = store.head("ann")
    assert isinstance(before, Head)
    assert isinstance(after, Head)
    assert after.version == VERSIONS
    assert len(after.images) == log.IMAGES_AT_HAND
    assert (after.state, after.images, after.first) == (before.state, before.images, before.first)
    assert read <= (log.IMAGES_AT_HAND + 1) * log.KEYFRAME_VERSIONS
