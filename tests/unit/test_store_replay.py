"""Replay of a user's log: what it passes, what it holds to the fold, and how each kind of damage is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from statemachine import ResetManager, StoreForeign, codec
from statemachine.state import EstimatorState
from statemachine.store import Store, keys
from statemachine.store.draft import record
from statemachine.store.records import Image, Pin, Probation
from statemachine.store.replay import Replay, Standing, Stood, replay, versions_of
from tests.regression.scene import BY, fill, opened, raw, tear, weighed, working

ANA = b"ana"

pytestmark = pytest.mark.usefixtures("no_events")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Seventy measurements of one user: versions 32 and 64 are keyframes, version 1 is the first reset."""
    fill(tmp_path / "state", "ana", [80.0 + 0.1 * (day % 3) for day in range(70)])
    return tmp_path / "state"


def replayed(path: Path, **named: Any) -> Replay:
    with opened(path) as store:
        return replay(store, "ana", **named)


def image(path: Path, version: int, **changes: Any) -> None:
    """Store another image under a version, with a checksum as good as any."""
    key = keys.version(ANA, version)
    with raw(path) as txn:
        found = codec.unpack(Image, codec.unseal(key, bytes(txn.get(key) or b""))[1:])
        txn.put(key, codec.seal(key, bytes((codec.IMAGE,)) + codec.pack(msgspec.structs.replace(found, **changes))))


def encoded(store: Store, version: int) -> bytes:
    loaded = store.load("ana", version)
    assert loaded is not None
    return store.estimator.encode(loaded.state)


def test_every_version_of_a_sound_log_is_passed(path: Path) -> None:
    found = replayed(path, ask=frozenset((1, 40, 64, 99)))
    assert (found.first, found.last, found.steps, found.keyframes, found.resets) == (1, 70, 67, 2, 1)
    assert (found.damage, found.unfolded, found.whole, found.found) == ((), 0, True, "equal")
    with opened(path) as store:
        assert {version: stood.state for version, stood in found.passed.items()} == {n: encoded(store, n) for n in (1, 40, 64)}
        infos = {info.version: info for info in store.history("ana")}
        assert [(stood.kind, stood.at_us) for stood in found.passed.values()] == [
            (infos[n].kind, infos[n].at_us) for n in (1, 40, 64)]
    assert isinstance(found.state, EstimatorState)
    assert isinstance(found.passed[1], Stood)


def test_keyframe_that_is_not_what_the_steps_give_is_damage(path: Path) -> None:
    """Its checksum is good and it decodes: only the fold tells that it is not the state it should be."""
    with opened(path) as store:
        other = encoded(store, 31)
    image(path, 64, state=other)
    assert replayed(path).damage == ((64, "the state stored is not what the steps before it give"),)


def test_image_of_a_reset_stands_for_itself(path: Path) -> None:
    with opened(path) as store:
        ResetManager(store).perform_reset("ana", **BY)
    with working(path) as (store, _, processor):
        processor.process(weighed("ana", 71, 80.0))
        found = replay(store, "ana")
    assert (found.resets, found.whole, found.found, found.last) == (2, True, "equal", 72)


def test_torn_step_leaves_the_versions_up_to_the_next_image_unfolded(path: Path) -> None:
    tear(path, keys.version(ANA, 20))
    found = replayed(path)
    assert (found.damage, found.unfolded) == (((20, "fails its checksum"),), 11)
    assert (found.found, found.whole, found.state is None) == ("equal", False, False)


def test_torn_step_after_the_last_image_leaves_nothing_to_hold_the_head_to(path: Path) -> None:
    tear(path, keys.version(ANA, 66))
    found = replayed(path)
    assert ([version for version, _ in found.damage], found.unfolded) == ([66], 4)
    assert (found.found, found.state) == ("unproven", None)
    assert found.standing is not None


def test_missing_versions_are_told_as_one(path: Path) -> None:
    with raw(path) as txn:
        for version in (10, 11):
            txn.delete(keys.version(ANA, version))
    assert replayed(path).damage == ((10, "missing from the log, as all up to version 11"),)


def test_log_that_begins_with_a_step_is_damaged(path: Path) -> None:
    with raw(path) as txn:
        txn.delete(keys.version(ANA, 1))
    found = replayed(path)
    assert (found.damage, found.unfolded, found.first) == (((2, "a step with no image before it"),), 29, 2)


def test_record_that_is_no_version_is_damage(path: Path) -> None:
    key = keys.version(ANA, 5)
    with raw(path) as txn:
        txn.put(key, codec.seal(key, b"\x01\x01"))
    (damage,) = replayed(path).damage
    assert damage[0] == 5


def test_step_of_another_arithmetic_is_foreign(path: Path) -> None:
    key = keys.version(ANA, 5)
    with raw(path) as txn:
        content = codec.unseal(key, bytes(txn.get(key) or b""))
        txn.put(key, codec.seal(key, content[:1] + bytes((99,)) + content[2:]))
    with pytest.raises(StoreForeign, match="version 5 of 'ana' was made by arithmetic 99"):
        replayed(path)


def test_standing_is_the_heads_own_where_it_reads(path: Path) -> None:
    found = replayed(path)
    assert found.head is not None
    assert found.standing == Standing(found.head.run_since_us, found.head.reset_us, None, None)


@pytest.mark.parametrize("days", [(), (90,), (90, 91, 92), (90, 91, 92, 93, 94, 95, 96)])
def test_standing_without_a_head_is_told_by_the_log(path: Path, days: tuple[int, ...]) -> None:
    """Before, during and after the probation that a gap began, to the last field."""
    with working(path) as (_, _, processor):
        for day in days:
            processor.process(weighed("ana", day + 20, 80.0))
    before = replayed(path)
    tear(path, keys.head(ANA))
    after = replayed(path)
    assert (before.found, after.found) == ("equal", "damaged")
    assert after.standing == before.standing
    assert before.standing is not None
    assert (before.standing.probation is not None) == (1 <= len(days) <= 5)


def test_standing_without_a_reset_in_the_log_begins_with_the_state(path: Path) -> None:
    with raw(path) as txn:
        for version in range(1, 64):
            txn.delete(keys.version(ANA, version))
        txn.delete(keys.head(ANA))
    found = replayed(path)
    assert (found.first, found.damage, found.resets, found.keyframes) == (64, (), 0, 0)
    assert found.standing is not None
    assert found.standing.reset_us == found.standing.run_since_us == found.state.kalman.at_us


def test_torn_pin_is_no_probation(path: Path) -> None:
    with working(path) as (_, _, processor):
        processor.process(weighed("ana", 120, 80.0))
    tear(path, keys.pin(ANA), keys.head(ANA))
    found = replayed(path)
    assert found.standing is not None
    assert (found.standing.pin, found.standing.probation) == (None, None)


def test_identities_come_with_what_cannot_be_read_of_them(path: Path) -> None:
    with opened(path) as store:
        prefix = keys.identities(ANA)
        at = next(key for key, _ in store.engine.scan(prefix, keys.after(prefix)))
    tear(path, at)
    found = replayed(path, identities=True).identities
    assert len(found) == 70
    assert [key for key, kept in found.items() if kept is None] == [at]
    assert replayed(path).identities == {}


def test_neighbours_of_a_user_are_not_read(path: Path) -> None:
    """A user whose id continues another's is somebody else."""
    fill(path, "an", [60.0] * 3)
    fill(path, "anab", [60.0] * 3)
    with opened(path) as store:
        assert [replay(store, user).last for user in ("an", "ana", "anab", "a")] == [3, 70, 3, 0]


def test_many_damages_are_told_by_three() -> None:
    damage = tuple((version, "torn") for version in range(1, 6))
    assert versions_of(damage) == "version 1: torn; version 2: torn; version 3: torn; and 2 more"
    assert versions_of(damage[:1]) == "version 1: torn"


def test_stored_bytes_are_those_of_one_moment(path: Path) -> None:
    with working(path) as (store, _, processor):
        processor.process(weighed("ana", 120, 80.0))
        found = replay(store, "ana")
        assert found.stored == {key: store.engine.get(key) for key in (keys.head(ANA), keys.pin(ANA), keys.aside(ANA))}
        pin = record(Pin, keys.pin(ANA), found.stored[keys.pin(ANA)])
        assert pin is not None
        assert found.standing is not None
        assert found.standing.pin == pin
        assert isinstance(found.standing.probation, Probation)
