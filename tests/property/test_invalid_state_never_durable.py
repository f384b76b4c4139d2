"""No public call makes an invalid state durable, whatever it is given (INV-04); what refuses is an error of the tree."""

from __future__ import annotations

import atexit
import contextlib
import math
import shutil
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from statemachine import (
    BODY_WEIGHT,
    BodyWeight,
    BreakerPolicy,
    EstimatorState,
    GlobalBreakerPolicy,
    InvalidInput,
    Limits,
    Measurement,
    Processor,
    ResetError,
    ResetManager,
    ResetParameters,
    ResetPolicy,
    ResetValidationError,
    Store,
)
from statemachine.clock import US_PER_DAY, from_us
from statemachine.state import PAIR, Adaptation, Counters, Kalman
from statemachine.validation import StateValidator
from tests.regression.scene import BY, PRESENT_US, START, Faulty, fill, opened, refused, states, weighed

NEVER: dict[str, Any] = {
    "breaker": BreakerPolicy(failures_max=1_000_000, failure_rate_max=None),
    "global_breaker": GlobalBreakerPolicy(users_max=None, failure_rate_max=None),
}
TELLING = (math.nan, math.inf, -math.inf, -1.0, 0.0, -0.0, 5e-324, 1e308, 80.0, 0.15, 1.0)
FLOATS = st.one_of(st.floats(), st.sampled_from(TELLING))
EAST = timezone(timedelta(hours=14))
DATES = (START, START.replace(tzinfo=None), datetime.min.replace(tzinfo=UTC), datetime.min.replace(tzinfo=EAST),
         datetime.max.replace(tzinfo=UTC))
JUNK = st.one_of(
    FLOATS, FLOATS.map(np.float64), st.sampled_from((np.float32(80.0), np.int64(3), np.bool_(True))),
    st.integers(), st.sampled_from((2**53 + 1, 2**63, 2**64, -(2**63) - 1, 10**400)), st.booleans(), st.none(),
    st.text(max_size=3), st.binary(max_size=3), st.just(Decimal(80)), st.just(Fraction(80)), st.just(80j), st.just([80.0]),
    st.just(np.array(80.0)), st.sampled_from(DATES),
)
INSTANTS = st.one_of(JUNK, st.integers(-(2**70), 2**70), st.integers(PRESENT_US - 10**9, PRESENT_US + 10**9))
PAIRS = st.one_of(st.tuples(INSTANTS, JUNK), st.tuples(st.integers(-(2**70), PRESENT_US), st.floats(20.0, 500.0)), JUNK)
PARTS = {"kalman": Kalman, "adaptation": Adaptation, "counters": Counters}


@st.composite
def spoilt(draw: st.DrawFn) -> Any:
    """A mutation that puts anything into some of a state's fields, or returns something else altogether."""
    if draw(st.integers(0, 19)) == 0:
        junk = draw(JUNK)
        return lambda _: junk
    changes: list[tuple[str, str, Any]] = []
    for _ in range(draw(st.integers(1, 3))):
        part = draw(st.sampled_from(("kalman", "kalman", "adaptation", "counters", "buffer", "whole")))
        if part in PARTS:
            name = draw(st.sampled_from(PARTS[part].__struct_fields__))
            changes.append((part, name, draw(INSTANTS if name.endswith("_us") else JUNK)))
        elif part == "buffer":
            changes.append(("", "buffer", tuple(draw(st.lists(PAIRS, max_size=32)))))
        else:
            changes.append(("", draw(st.sampled_from(EstimatorState.__struct_fields__)), draw(JUNK)))

    def spoil(state: Any) -> Any:
        for part, name, value in changes:
            if not part:
                state = state.replace(**{name: value})
            elif isinstance(getattr(state, part), PARTS[part]):
                state = msgspec.structs.replace(state, **{part: msgspec.structs.replace(getattr(state, part), **{name: value})})
        return state

    return spoil


EDGES: dict[str, tuple[str, dict[str, Any]]] = {
    "a reset in the year 0 of UTC, which committed and then could not be read": ("adaptation", {"reset_at": DATES[3]}),
    "an end that no int64 holds": ("adaptation", {"until_us": 2**70}),
    "a multiplier that no record holds": ("adaptation", {"level": Fraction(3)}),
    "a multiplier that is an int": ("adaptation", {"trend": 3}),
    "a multiplier that is a bool": ("adaptation", {"observation": True}),
    "a decay that is a bool": ("adaptation", {"rate": 0.01, "decay": False}),
    "an instant that no calendar holds": ("kalman", {"at_us": -(2**62)}),
    "an instant that no int64 holds": ("kalman", {"at_us": -(2**70)}),
    "a reading that no calendar holds": ("", {"packed": PAIR.pack(-(2**62), 80.0)}),
    "half a reading": ("", {"packed": bytes(8)}),
    "a reading that can be changed": ("", {"packed": bytearray(PAIR.pack(1, 80.0))}),
}


matrices = st.lists(FLOATS, min_size=4, max_size=4).map(lambda cells: np.array(cells).reshape(2, 2))
near_valid = st.tuples(st.floats(1e-10, 2e4), st.floats(-200.0, 200.0), st.floats(-200.0, 200.0), st.floats(1e-13, 20.0))


@lru_cache(maxsize=1)
def template() -> Path:
    """A store, made once, whose user "u" is at version 3; copied for each example, because making one waits for the disk."""
    directory = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, directory)
    path = Path(directory) / "store"
    fill(path, "u", [80.0, 80.1, 80.2])
    return path


@contextlib.contextmanager
def fresh(**settings: Any) -> Iterator[tuple[Store, ResetManager, Processor]]:
    """A store of its own with a user "u" at version 3, checked at the end."""
    with tempfile.TemporaryDirectory() as directory:
        path = shutil.copytree(template(), Path(directory) / "store")
        with opened(path, durability="process", **settings) as store:
            manager = ResetManager(store, **NEVER)
            yield store, manager, Processor(manager)
            all_valid(store)


def all_valid(store: Store) -> None:
    """Every version of every user, read from disk, passes the whole validator, reads back as it was written, and is the head."""
    for user in store.users():
        for info in store.history(user):
            loaded = store.load(user, info.version)
            assert loaded is not None
            assert store.validator.validate(loaded.state, store.clock.now_us()) == ()
            assert type(loaded.state) is EstimatorState
        loaded, log = store.load(user), states(store, user)
        assert (loaded is None) == (not log)
        assert loaded is None or (store.estimator.encode(loaded.state), loaded.version) == (log[-1], len(log))


def refused_or_valid(call: Any, *args: Any, **named: Any) -> None:
    """The call may succeed, or refuse by an error of the tree; nothing else may come out of it."""
    with contextlib.suppress(ResetError):
        call(*args, **named)


@given(mutation=spoilt(), door=st.sampled_from(("apply", "checkpoint", "perform_reset", "second")), live=st.booleans())
def test_no_operation_makes_an_invalid_state_durable(mutation: Any, door: str, live: bool) -> None:
    """Whatever an operation returns, what becomes durable validates, and what is refused is refused by a typed error."""
    with fresh() as (store, _, processor):
        manager = ResetManager(store, **NEVER, live=live)

        def by_hand() -> None:
            with manager.transaction("u", **BY) as tx:
                if door == "checkpoint":
                    tx.checkpoint(mutation(tx.state), "anything")
                elif door == "second":
                    tx.apply("fine", lambda s: s.replace(x0=81.0))
                    with contextlib.suppress(ResetError):
                        tx.apply("anything", mutation)
                else:
                    tx.apply("anything", mutation)
                tx.commit()

        if door == "perform_reset":
            refused_or_valid(manager.perform_reset, "u", operations=[("anything", mutation)], **BY)
        else:
            refused_or_valid(by_hand)
        all_valid(store)
        assert processor.process(weighed("u", 399, 80.2)).status in {"accepted", "quarantined", "late"}


@pytest.mark.parametrize("edge", EDGES)
def test_values_that_no_record_can_hold_are_refused(edge: str) -> None:
    """What would not come back from the disk, or not as what it was, is refused by validation and not by the codec."""
    part, changes = EDGES[edge]

    def spoil(state: Any) -> Any:
        changed = msgspec.structs.replace(getattr(state, part), **changes) if part else None
        return msgspec.structs.replace(state, **({part: changed} if part else changes))

    with fresh() as (store, manager, _):
        refused(ResetValidationError, manager.perform_reset, "u", operations=[("spoil", spoil)], **BY)
        assert len(states(store, "u")) == 3


def test_figures_written_as_ints_are_figures() -> None:
    """A policy whose figures are ints resets as one whose figures are floats."""
    figures_ = ResetParameters(5, 20, 200, 0.5, 10, 7, 4)
    with fresh() as (store, _, _):
        manager = ResetManager(store, policy=ResetPolicy(kinds={"admin": figures_}))
        assert manager.perform_reset("u", **BY).outcome == "committed"


@given(cells=st.one_of(matrices, near_valid.map(lambda cells: np.array(cells).reshape(2, 2))))
def test_no_matrix_but_a_covariance_becomes_durable(cells: Any) -> None:
    """A P that numpy finds asymmetric, not finite or not positive definite is refused; the user goes on as before."""
    with fresh() as (store, manager, processor):
        before = states(store, "u")
        refused_or_valid(manager.perform_reset, "u", operations=[("P", lambda s: s.replace(P=cells))], **BY)
        if len(states(store, "u")) > len(before):
            assert np.all(np.isfinite(cells))
            assert abs(cells[0, 1] - cells[1, 0]) <= 1e-9 * np.trace(cells)
            assert np.all(np.linalg.eigvalsh(cells) > -1e-12 * np.trace(cells))
        assert processor.process(weighed("u", 3, 80.2)).status in {"accepted", "quarantined"}


past = st.integers(0, 500).map(lambda day: from_us(PRESENT_US - day * US_PER_DAY))
fields = st.fixed_dictionaries({
    "user": st.sampled_from(("u", "new", "", "a\0b", "\ud800")), "at": st.one_of(st.just(START), st.datetimes(), JUNK, past),
    "weight_kg": st.one_of(JUNK, st.floats(1.0, 1_000.0)), "source": st.sampled_from(("scale", "manual", "", "x" * 300)),
})


def measured(values: dict[str, Any]) -> Measurement | None:
    """The measurement, None where there can be none."""
    try:
        return Measurement(**values)
    except InvalidInput:
        return None


@given(values=st.lists(fields, min_size=1, max_size=6), how=st.sampled_from(("process", "batch", "reset")))
def test_no_measurement_makes_an_invalid_state_durable(values: list[dict[str, Any]], how: str) -> None:
    """Whatever measurements come, one by one, in a batch or as the ground of a reset, what becomes durable validates."""
    measurements = [found for found in map(measured, values) if found is not None]
    with fresh() as (store, manager, processor):
        if how == "batch":
            assert len(processor.process_batch(measurements)) == len(measurements)
        for measurement in measurements:
            if how == "process":
                processor.process(measurement)
            elif how == "reset":
                refused_or_valid(manager.perform_reset, measurement.user, "gap", measurement=measurement, **BY)
        all_valid(store)


figures = st.builds(ResetParameters, variance=FLOATS, level=FLOATS, trend=FLOATS, observation=FLOATS,
                    measurements=st.one_of(st.integers(-1, 20), st.just(10**6)), days=FLOATS, rate=FLOATS)


@given(how=figures, kind=st.sampled_from(("initial", "gap", "admin")))
def test_no_figures_of_a_policy_make_an_invalid_state_durable(how: ResetParameters, kind: str) -> None:
    """A policy whose figures are no figures makes its resets fail; it makes nothing durable, and measurements go on."""
    with fresh() as (store, _, _):
        policy = ResetPolicy(kinds={**ResetPolicy().kinds, kind: how})
        manager = ResetManager(store, policy=policy, **NEVER)
        processor = Processor(manager)
        refused_or_valid(manager.perform_reset, "u", "admin", **BY)
        for user, day in (("u", 3.0), ("new", 3.0), ("u", 100.0), ("u", 101.0), ("new", 101.0)):
            assert processor.process(weighed(user, day, 80.3)).status in {"accepted", "quarantined"}
        all_valid(store)


@given(r=FLOATS, level=FLOATS, trend=FLOATS)
def test_no_figures_of_an_estimator_make_an_invalid_state_durable(r: float, level: float, trend: float) -> None:
    """An estimator whose noise is no noise makes nothing durable that does not validate."""
    with tempfile.TemporaryDirectory() as directory:
        estimator = BodyWeight(r_kg2=r, q_level=level, q_trend=trend)
        with opened(Path(directory) / "store", durability="process", estimator=estimator) as store:
            processor = Processor(ResetManager(store, **NEVER))
            for day in (0.0, 1.0, 2.0, 50.0, 51.0):
                assert processor.process(weighed("u", day, 80.0)).status in {"accepted", "quarantined"}
            all_valid(store)


@given(low=st.floats(20.0, 90.0), version=st.integers(1, 3))
def test_no_restore_makes_an_invalid_state_durable(low: float, version: int) -> None:
    """A version that breaks the rules now in force is not restored; one that keeps them is."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "store"
        with opened(path, durability="process") as store:
            processor = Processor(ResetManager(store))
            for day, kg in enumerate((60.0, 60.5, 61.0)):
                processor.process(weighed("u", day, kg))
        estimator = BodyWeight(limits=Limits(weight_kg_min=low))
        with opened(path, durability="process", estimator=estimator) as store:
            manager = ResetManager(store, **NEVER)
            old = store.load("u", version)
            assert old is not None
            if old.violations:
                refused(ResetError, manager.restore, "u", to_version=version, **BY)
                assert len(list(store.history("u"))) == 3
            else:
                assert manager.restore("u", to_version=version, **BY).version == 4
                newest = store.load("u")
                assert newest is not None
                assert newest.violations == ()


@given(mutation=spoilt())
def test_a_state_judged_by_what_it_was_made_from_is_judged_as_by_itself(mutation: Any) -> None:
    """The validator's shortcut for a state made from a valid one finds a violation wherever the whole validator does."""
    good: Any = None
    first = BODY_WEIGHT.reading(weighed("u", 0, 80.0))
    for operation in BODY_WEIGHT.operations(ResetPolicy().kinds["initial"], first, PRESENT_US):
        good = operation.run(good)
    good = BODY_WEIGHT.step(good, BODY_WEIGHT.reading(weighed("u", 1, 80.1)))
    validator = StateValidator(BODY_WEIGHT.rules)
    assert validator.validate(good, PRESENT_US) == ()
    after = BODY_WEIGHT.step(good, BODY_WEIGHT.reading(weighed("u", 2, 80.2)))
    for made in (good, after):
        try:
            bad = mutation(made)
        except InvalidInput:
            continue
        for present_us in (None, PRESENT_US):
            assert bool(validator.validate(bad, present_us, good)) == bool(validator.validate(bad, present_us))


def test_a_failing_reset_between_batches_changes_nothing() -> None:
    """Resets that fail in the middle of a batch leave the users before and after them valid and moving."""
    estimator = Faulty()
    with fresh(estimator=estimator) as (store, _, processor):
        estimator.failing = True
        batch = [weighed(user, 60 + day, 80.0) for day in range(5) for user in ("new", "u", "other")]
        assert {outcome.status for outcome in processor.process_batch(batch)} == {"accepted", "quarantined"}
        assert store.load("new") is None
        estimator.failing = False
        assert {outcome.status for outcome in processor.process_batch(weighed(u, 70, 80.0) for u in ("new", "u"))} == {"accepted"}


@pytest.mark.parametrize("planted", ["validate", "is_state"])
def test_a_planted_hole_is_found(planted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With validation taken out of the attempt, the first test here fails."""
    def hole() -> None:
        with fresh() as (_, manager, _):
            spoilers: dict[str, Any] = {"validate": lambda s: s.replace(x0=math.nan), "is_state": lambda _: 7}
            refused_or_valid(manager.perform_reset, "u", operations=[("spoil", spoilers[planted])], **BY)

    if planted == "validate":
        monkeypatch.setattr("statemachine.transaction.ResetTransaction._validate", lambda *_: None)
    else:
        monkeypatch.setattr(BodyWeight, "is_state", lambda *_: True)
        monkeypatch.setattr(StateValidator, "validate", lambda *_: ())
        monkeypatch.setattr("statemachine.transaction.encoded", lambda encode, state: encode(state))
    refused((AssertionError, AttributeError), hole)
