"""The example's own estimator keeps what the library promises: bit-identical replay, whole codec, rules that refuse."""

from __future__ import annotations

import importlib.util
import math
import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from statemachine import (
    MutationFailed,
    Reading,
    ResetManager,
    ResetValidationError,
    StateValidator,
    Store,
    StoreCorrupt,
    StoreForeign,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

TRACKER = Path(__file__).parents[2] / "examples" / "tracker.py"


def imported() -> Any:
    spec = importlib.util.spec_from_file_location("example_tracker", TRACKER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclass looks its own module up
    spec.loader.exec_module(module)
    return module


tracker = imported()
BOAT = tracker.Tracker()
HOW = tracker.REFOUND
VALIDATOR = StateValidator(BOAT.rules)
finite = st.floats(-1e5, 1e5)


def started(at_us: int = 0) -> Any:
    track = None
    for operation in BOAT.operations(HOW, Reading(at_us, (10.0, -20.0), 25.0), at_us):
        track = operation.run(track)
    return track


@pytest.fixture(scope="module")
def sailed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Store, ResetManager, dict[int, Any]]]:
    """A store after the example's voyage, with the state of each version as it was when it was made."""
    fixes = tracker.voyage()
    clock = tracker.StreamClock(fixes[0].at)
    with Store.open(tmp_path_factory.mktemp("tracks") / "store", estimator=BOAT, clock=clock, durability="process") as store:
        manager = ResetManager(store, policy=tracker.POLICY)
        states = {}
        processor = tracker.Processor(manager)
        for fix in fixes:
            clock.at_us = fix.at_us
            version = processor.process(fix).version
            states[version] = store.load("tern").state  # type: ignore[union-attr]
        yield store, manager, states


def test_every_version_replays_bit_for_bit(sailed: tuple[Store, ResetManager, dict[int, Any]]) -> None:
    store, _, states = sailed
    assert list(states) == list(range(1, len(states) + 1))
    assert {version: BOAT.encode(store.load("tern", version=version).state) for version in states} == {  # type: ignore[union-attr]
        version: BOAT.encode(state) for version, state in states.items()}


def test_resets_are_those_of_the_voyage(sailed: tuple[Store, ResetManager, dict[int, Any]]) -> None:
    store, _, _ = sailed
    events = [(row.public.event, row.public.kind) for row in store.audit(user="tern")]
    assert events[:3] == [("reset.committed", kind) for kind in ("initial", "gap", "level-shift")]
    assert store.verify_audit().problem == ""


def test_invalid_reset_leaves_the_head(sailed: tuple[Store, ResetManager, dict[int, Any]]) -> None:
    store, manager, _ = sailed
    before = store.load("tern")
    with pytest.raises(ResetValidationError) as refused:
        manager.perform_reset("tern", reason="test", actor="test", operations=[
            ("flip", lambda t: msgspec.structs.replace(t, north=msgspec.structs.replace(t.north, p00=-1.0)))])
    assert [violation.path for violation in refused.value.violations] == ["north.P"]
    with pytest.raises(MutationFailed):
        manager.perform_reset("tern", reason="test", actor="test", operations=[("no state", lambda _: {"x": 1})])
    assert store.load("tern") == before


def test_restore_brings_back_an_older_track(sailed: tuple[Store, ResetManager, dict[int, Any]]) -> None:
    store, manager, states = sailed
    manager.restore("tern", to_version=31, reason="test", actor="test")
    assert store.load("tern").state == states[31]  # type: ignore[union-attr]


def test_store_of_tracks_is_not_opened_for_body_weight(tmp_path: Path) -> None:
    Store.open(tmp_path / "store", estimator=BOAT).close()
    with pytest.raises(StoreForeign, match="boat-track"):
        Store.open(tmp_path / "store")


def test_wrong_fix_is_revoked_after_a_gap(tmp_path: Path) -> None:
    """A believable but wrong position after a silence is taken back by three that agree with the course before it."""
    at = tracker.START
    fixes = [tracker.Fix("a", at + timedelta(seconds=10 * n), 60.0 * n, 0.0) for n in (*range(20), 33, *range(34, 40))]
    fixes[20] = tracker.Fix("a", fixes[20].at, 60.0 * 33, 1500.0)
    clock = tracker.StreamClock(at)
    with Store.open(tmp_path / "store", estimator=BOAT, clock=clock, durability="process") as store:
        processor = tracker.Processor(ResetManager(store, policy=tracker.POLICY))
        for fix in fixes:
            clock.at_us = fix.at_us
            processor.process(fix)
        kinds = [row.public.kind for row in store.audit(user="a") if row.public.outcome == "committed"]
        assert kinds[:2] == ["initial", "gap"]
        assert kinds[2] in {"revocation", "level-shift"}
        head = store.load("a")
        assert head is not None
        assert head.state.north.position == pytest.approx(0.0, abs=30.0)


@given(st.lists(st.tuples(st.integers(1, 100_000_000), finite, finite), max_size=20))
def test_codec_keeps_every_bit(fixes: list[tuple[int, float, float]]) -> None:
    track, at_us = started(), 0
    for after_us, east, north in fixes:
        at_us += after_us
        track = BOAT.step(track, Reading(at_us, (east, north), 25.0))
    data = BOAT.encode(track)
    assert BOAT.decode(data) == track
    assert BOAT.encode(BOAT.decode(data)) == data


@given(st.lists(st.tuples(st.integers(1_000_000, 100_000_000), finite, finite), min_size=1, max_size=40))
def test_covariance_stays_positive_whatever_comes(fixes: list[tuple[int, float, float]]) -> None:
    track, at_us = started(), 0
    for after_us, east, north in fixes:
        at_us += after_us
        track = BOAT.step(track, Reading(at_us, (east, north), 25.0))
    assert [violation for violation in VALIDATOR.validate(track) if violation.rule != "chart"] == []


@pytest.mark.parametrize(("axis", "field", "value", "rule"), [
    ("east", "position", math.nan, "finite"),
    ("north", "velocity", math.inf, "finite"),
    ("east", "position", 2e7, "chart"),
    ("north", "velocity", 41.0, "chart"),
    ("east", "p00", 0.0, "covariance"),
    ("north", "p01", 1e9, "covariance"),
    ("east", "p11", -1.0, "covariance"),
])
def test_rules_refuse(axis: str, field: str, value: float, rule: str) -> None:
    track = started()
    broken = msgspec.structs.replace(track, **{axis: msgspec.structs.replace(getattr(track, axis), **{field: value})})
    assert VALIDATOR.validate(track) == ()
    assert rule in {violation.rule for violation in VALIDATOR.validate(broken)}


@pytest.mark.parametrize("data", [b"", b"\0" * 10, b"\0" * 157])
def test_bytes_that_are_no_track_are_refused(data: bytes) -> None:
    with pytest.raises(StoreCorrupt):
        BOAT.decode(data)


def test_step_agrees_with_the_textbook() -> None:
    """One axis against the matrix form: F P F' + Q, then (I - K H) P."""
    axis = tracker.Axis(3.0, 2.0, 4.0, 0.5, 1.0)
    dt, q, r, z = 2.0, 0.3, 25.0, 11.0
    p00 = 4.0 + 2 * dt * 0.5 + dt * dt * 1.0 + q * dt**3 / 3
    p01 = 0.5 + dt * 1.0 + q * dt**2 / 2
    p11 = 1.0 + q * dt
    k0, k1 = p00 / (p00 + r), p01 / (p00 + r)
    residual = z - (3.0 + dt * 2.0)
    updated = tracker.update(tracker.predict(axis, dt, q, r), z, r)
    assert msgspec.structs.astuple(updated) == pytest.approx((
        7.0 + k0 * residual, 2.0 + k1 * residual, (1 - k0) * p00, (1 - k0) * p01, p11 - k1 * p01))
