"""Those failures of an earlier system that were about what is believed, refused and reported: 6, 9-16, 20-22, 25, 26."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np

from statemachine import (
    BODY_WEIGHT,
    BreakerOpen,
    BreakerPolicy,
    EstimatorState,
    GlobalBreakerPolicy,
    InvalidInput,
    Measurement,
    MutationFailed,
    Outcome,
    Processor,
    ResetManager,
    ResetTransaction,
    ResetValidationError,
    Rule,
    StateValidator,
    UserUnknown,
)
from statemachine.ingest import Options, Row, open_source
from statemachine.processor import SourceRow
from statemachine.store.records import Unreadable
from statemachine.validation import finite_everywhere
from tests.regression.scene import (
    BY,
    PRESENT_US,
    START,
    Faulty,
    StillClock,
    broken,
    events,
    fill,
    head,
    opened,
    records,
    refused,
    states,
    weighed,
    working,
)

if TYPE_CHECKING:
    from pathlib import Path

NAN: Final = math.nan
SETTLED: Final = [80.0 + 0.1 * (day % 3) for day in range(25)]
"""Readings enough for the adaptation that follows a first reset to be over."""
COOLED_US: Final = 2 * 3_600 * 1_000_000
"""More than the first cooldown with its greatest jitter."""


def check_06(path: Path) -> None:
    with working(path) as (store, _, processor):
        first = processor.process(weighed("u", 0, NAN))
        assert (first.status, first.reset) == ("quarantined", None)
        assert processor.process(weighed("u", 1, 80.0)).version == 1
        for day, kg in ((2, NAN), (3, math.inf), (4, -math.inf), (5, -80.0), (6, 0.0)):
            assert processor.process(weighed("u", day, kg)).status == "quarantined"
            assert processor.process(weighed("u", day + 0.5, 80.0)).status == "accepted"
        assert head(store, "u").kalman.x0 == 80.0
        kept = list(store.quarantine("u"))
        assert len(kept) == 6
        assert not any(k.disposition == "held" for k in kept), "what is no number is evidence of nothing"
        assert all("is no weight" in k.reason for k in kept)
        batch = [weighed("u", 10, 80.0), weighed("u", 11, NAN), weighed("u", 12, 80.0)]
        assert [outcome.status for outcome in processor.process_batch(batch)] == ["accepted", "quarantined", "accepted"]


def check_09(path: Path) -> None:
    with working(path) as (store, _, processor):
        for day in range(3):
            for user in ("ann", "bob"):
                outcome = processor.process(weighed(user, day, 80.0))
                assert (outcome.status, outcome.version) == ("accepted", day + 1)
        outcomes = processor.process_batch(weighed(user, day, 80.0) for day in (3, 4) for user in ("ann", "cat"))
        assert [outcome.version for outcome in outcomes] == [4, 1, 5, 2]
    with working(path) as (store, _, processor):
        assert processor.process(weighed("bob", 3, 80.0)).version == 4
        assert len(head(store, "bob").buffer) == 4


def check_10(path: Path) -> None:
    fill(path, "ann", [80.0])
    fill(path, "bob", [80.0])
    ran: list[str] = []

    def failing(_: Any) -> Any:
        ran.append("ran")
        return broken(_)

    policy, common = BreakerPolicy(failures_max=3), GlobalBreakerPolicy(users_max=3)
    with opened(path) as store:
        manager = ResetManager(store, breaker=policy, global_breaker=common)
        for _ in range(3):
            refused(MutationFailed, manager.perform_reset, "ann", operations=[("break", failing)], **BY)
    clock = StillClock()
    with opened(path, clock=clock) as store:
        manager = ResetManager(store, breaker=policy, global_breaker=common)
        error = refused(BreakerOpen, manager.perform_reset, "ann", operations=[("break", failing)], **BY)
        assert (error.scope, error.reason, len(ran)) == ("user", "open", 3)
        assert error.retry_at_us is not None
        assert manager.perform_reset("bob", **BY).outcome == "committed"
        clock.wall_us = error.retry_at_us
        refused(MutationFailed, manager.perform_reset, "ann", operations=[("break", failing)], **BY)  # the one probe
        refused(BreakerOpen, manager.perform_reset, "ann", operations=[("break", failing)], **BY)
        assert len(ran) == 4


def _after_a_gap(path: Path, estimator: Faulty, clock: StillClock) -> None:
    with working(path, estimator=estimator, clock=clock) as (store, _, processor):
        fitting = processor.process(weighed("u", 60, 80.2))
        assert fitting.status == "accepted", "the state before the reset still serves a reading that fits it"
        assert fitting.reset is not None
        assert fitting.reset.outcome == "rolled_back"
        outcomes = [processor.process(weighed("u", 100 + day, 95.0 + day / 10)) for day in range(5)]
        assert [outcome.status for outcome in outcomes] == ["quarantined"] * 5
        told = [outcome.reset.outcome for outcome in outcomes if outcome.reset]
        assert told == ["rolled_back", "rolled_back", "refused", "refused", "refused"]
        assert len(list(store.quarantine("u"))) == 5, "a measurement was lost"
        failed = [row for row in store.audit("u") if row.public.outcome == "rolled_back"]
        assert [row.public.kind for row in failed] == ["gap"] * 3
        assert all("the buffer is gone" in row.personal.error for row in failed)


def check_11(path: Path) -> None:
    fill(path, "u", SETTLED)
    estimator, clock = Faulty(), StillClock()
    estimator.failing = True
    _after_a_gap(path, estimator, clock)
    estimator.failing = False
    clock.wall_us += COOLED_US
    with working(path, estimator=estimator, clock=clock) as (store, _, processor):
        outcome = processor.process(weighed("u", 106, 95.2))
        assert outcome.reset is not None, outcome
        assert (outcome.reset.outcome, outcome.status) == ("committed", "accepted")
        assert processor.process(weighed("u", 107, 95.1)).status == "accepted"
        assert store.verify_audit().problem == ""
        assert [outcome for _, _, outcome in events(store, "u")].count("refused") == 3


def check_12(path: Path) -> None:
    estimator = Faulty()
    estimator.failing = True
    with working(path, estimator=estimator) as (store, _, processor):
        outcome = processor.process(weighed("u", 0, 80.0))
        assert outcome.status == "quarantined"
        assert store.load("u") is None
    estimator.failing = False
    with working(path, estimator=estimator) as (store, _, processor):
        rows = list(store.audit("u"))
        assert [(row.public.kind, row.public.outcome) for row in rows] == [("initial", "rolled_back")]
        assert "the buffer is gone" in rows[0].personal.error
        assert [kept.user for kept in store.quarantine()] == ["u"]
        assert processor.process(weighed("u", 1, 80.0)).version == 1


def invalid_states(good: EstimatorState) -> list[EstimatorState]:
    """One change each that no validator may let pass."""
    a, when = good.adaptation, good.kalman.at_us
    change = msgspec.structs.replace
    bad: list[Any] = [
        {"P": [[1.0, 5.0], [5.0, 1.0]]}, {"P": [[NAN, 0.0], [0.0, 1.0]]}, {"P": [[1.0, NAN], [NAN, 1.0]]},
        {"P": [[1.0, 0.1], [0.2, 1.0]]}, {"P": [[-1.0, 0.0], [0.0, -1.0]]}, {"P": [[1.0, 0.0], [0.0, math.inf]]},
        {"x": [NAN, 0.0]}, {"x": [80.0, NAN]}, {"x": [600.0, 0.0]},
        {"Q": np.diag([NAN, 1e-4])}, {"Q": np.diag([0.05, -1e-4])}, {"R": NAN}, {"R": 0.0}, {"dt_days_max": NAN},
        {"buffer": ((when, NAN),)}, {"buffer": ((when, 80.0), (when, 80.0))}, {"buffer": ((when + 1, 80.0),)},
        {"adaptation": change(a, rate=NAN)}, {"adaptation": change(a, rate=0.0)}, {"adaptation": change(a, count=True)},
        {"adaptation": change(a, g=NAN)}, {"adaptation": change(a, g=1.5)}, {"adaptation": change(a, level=NAN)},
        {"adaptation": change(a, observation=NAN)}, {"adaptation": change(a, reset_at=datetime(2026, 1, 5))},  # noqa: DTZ001
        {"adaptation": change(a, reset_at="2026-01-05")}, {"counters": change(good.counters, x=-1)},
        {"x0": np.float64(80.0)}, {"x0": "80"},
    ]
    return [good.replace(**changes) for changes in bad]


def check_13(path: Path) -> None:
    fill(path, "u", [80.0, 80.2])
    with working(path) as (store, manager, _):
        good, stored = head(store, "u"), records(store, "u")
        assert store.validator.validate(good, PRESENT_US) == ()
        for bad in invalid_states(good):
            assert store.validator.validate(bad, PRESENT_US), f"passed: {bad}"
            with manager.transaction("u", **BY) as tx:
                refused(ResetValidationError, tx.apply, "spoil", lambda _, bad=bad: bad)
        assert records(store, "u") == stored
    everywhere = StateValidator([Rule("finite", finite_everywhere)])
    for nested in ({"a": [1, (2.0, {"b": NAN})]}, [np.array([1.0, NAN])], (EstimatorState, {"deep": [[[[math.inf]]]]})):
        assert everywhere.validate(nested), f"passed: {nested}"


def check_14(path: Path) -> None:
    fill(path, "u", [80.0])
    with working(path) as (store, manager, _):
        seen: list[ResetTransaction] = []

        def attempt(error: BaseException | None) -> None:
            with manager.transaction("u", **BY) as tx:
                seen.append(tx)
                tx.apply("move", lambda s: s.replace(x0=81.0))
                if error is not None:
                    raise error
                tx.commit()

        for error in (KeyError("mine"), KeyboardInterrupt(), SystemExit(3), GeneratorExit()):
            assert refused(type(error), attempt, error) is error
            result = seen[-1].result
            assert result is not None
            assert (result.outcome, result.version) == ("rolled_back", None)
        attempt(None)
        result = seen[-1].result
        assert result is not None
        assert (result.outcome, result.version) == ("committed", 2)
        assert seen[-1].__exit__(None, None, None) is None  # type: ignore[func-returns-value]
        assert head(store, "u").kalman.x0 == 81.0
        refused(UserUnknown, manager.perform_reset, "nobody", **BY)


def check_15(path: Path) -> None:
    before = fill(path, "u", [80.0, 80.2])
    far = Measurement("u", datetime(2099, 1, 1, tzinfo=UTC), 80.1, "scale")
    with working(path) as (store, _, processor):
        assert [processor.process(far).status, *(o.status for o in processor.process_batch([far]))][0] == "quarantined"
        assert states(store, "u") == before
        assert "future" in next(iter(store.quarantine("u"))).reason
        outcome = processor.process(weighed("u", 2, 80.1))
        assert (outcome.status, outcome.reset) == ("accepted", None)
        assert head(store, "u").at == START + timedelta(days=2)
        assert [kind for _, kind, _ in events(store)] == ["initial"]


def rows_of(path: Path, text: str, options: Options | None = None) -> list[Row]:
    """The rows of a CSV file of this text, beside the store's directory."""
    file = path.with_name("rows.csv")
    file.write_text(text, encoding="utf-8")
    return list(open_source(file, options or Options()))


def take(processor: Processor, rows: list[Row]) -> list[Outcome]:
    """The rows through an intake, as the command feeds them."""
    outcomes: list[Outcome] = []
    intake = processor.intake([(None, "rows.csv")], lambda _, outcome: outcomes.append(outcome))
    for row in rows:
        left = None if row.measurement else Unreadable(line=row.line, raw=row.raw, reason=row.reason, user=row.user)
        intake.add(0, SourceRow(row.row, row.measurement, left))
    intake.flush()
    return outcomes


def check_16(path: Path) -> None:
    fill(path, "u", [80.0])
    naive = START.replace(tzinfo=None) + timedelta(days=1)
    refused(InvalidInput, Measurement, "u", naive, 80.0)
    text = "user_id,timestamp,weight,unit\nu,2026-01-06T09:00:00,80.1,kg\nu,2026-01-06T09:30:00+01:00,80.2,kg\n"
    undeclared, aware = rows_of(path, text)
    assert undeclared.measurement is None
    assert "time zone" in undeclared.reason
    assert aware.measurement is not None
    declared, _ = rows_of(path, text, Options(tz="Europe/Berlin"))
    assert declared.measurement is not None
    assert declared.measurement.at == datetime(2026, 1, 6, 8, tzinfo=UTC)
    with working(path) as (store, _, processor):
        kinds = [timezone(timedelta(hours=hours)) for hours in (-11, 0, 5.75, 14)]
        mixed = [Measurement("u", (START + timedelta(days=2 + day)).astimezone(zone), 80.1) for day, zone in enumerate(kinds)]
        taken = take(processor, [declared, aware, undeclared, *(Row(3 + n, 4 + n, m) for n, m in enumerate(mixed))])
        assert [outcome.status for outcome in taken] == ["accepted"] * 2 + ["quarantined"] + ["accepted"] * 4
        assert head(store, "u").at == START + timedelta(days=5)


def check_20(path: Path) -> None:
    written = ["yesterday", "31/12/2025", "2026-02-30T07:00:00Z", "", "2026-01-05T25:00:00Z", "now", "0"]
    text = "user_id,timestamp,weight,unit\n" + "".join(f"u,{at},80.1,kg\n" for at in written)
    rows = rows_of(path, text, Options(tz="UTC"))
    assert [row.measurement for row in rows] == [None] * len(written)
    for at, row in zip(written, rows, strict=True):
        assert row.reason
        assert row.raw == f"u,{at},80.1,kg"
    with working(path) as (store, _, processor):
        assert {outcome.status for outcome in take(processor, rows)} == {"quarantined"}
        assert store.load("u") is None
        assert [kept.raw for kept in store.quarantine()] == [row.raw for row in rows]
        assert [kept.at_us for kept in store.quarantine()] == [None] * len(written)


def check_21(path: Path) -> None:
    light, bare, child, heavy = rows_of(path, (
        "user_id,timestamp,weight,unit\nu,2026-01-05T07:00:00Z,45,kg\nu,2026-01-06T07:00:00Z,45,\n"
        "child,2026-01-05T07:00:00Z,22.5,kg\nheavy,2026-01-05T07:00:00Z,250,lb\n"))
    assert bare.measurement is None
    assert "no unit" in bare.reason
    found = [row.measurement.weight_kg for row in (light, child, heavy) if row.measurement]
    assert found == [45.0, 22.5, 250 * 0.45359237]
    with working(path) as (store, _, processor):
        taken = [outcome.status for outcome in take(processor, [light, bare, child, heavy])]
        assert taken == ["accepted", "quarantined", "accepted", "accepted"]
        assert head(store, "u").kalman.x0 == 45.0
        assert head(store, "child").kalman.x0 == 22.5
        assert processor.process(weighed("u", 1, 45.2)).status == "accepted"


def check_22(path: Path) -> None:
    fill(path, "u", [99.3, 99.4, 99.2, 99.3, 99.4, 99.3])
    minute = 1 / 1440
    with working(path) as (store, _, processor):
        held = processor.process(weighed("u", 45, 32.0))
        assert (held.status, held.reset) == ("quarantined", None)
        assert "not plausible" in held.reason
        back = processor.process(weighed("u", 46, 99.1))
        assert back.status == "accepted"
        assert back.reset is not None
        assert back.reset.kind == "gap"
        assert processor.process(weighed("u", 46 + 2 * minute, 76.2)).status == "quarantined"
        later = [processor.process(weighed("u", 47 + day, 99.2 + 0.1 * (day % 3))).status for day in range(20)]
        assert later == ["accepted"] * 20
        assert 98.0 < head(store, "u").kalman.x0 < 100.0
        assert len(list(store.quarantine("u"))) == 2


def check_25(path: Path) -> None:
    _wrong_after_a_gap(path, SETTLED)


def check_25_adapting(path: Path) -> None:
    """The same where the state before the wrong reset was itself still adapting, and so would believe nearly anything."""
    _wrong_after_a_gap(path, SETTLED[:7])


def _wrong_after_a_gap(path: Path, weights: list[float]) -> None:
    fill(path, "u", weights)
    with working(path) as (store, _, processor):
        wrong = processor.process(weighed("u", 66, 95.0))
        assert wrong.reset is not None
        assert (wrong.status, wrong.reset.kind) == ("accepted", "gap")
        outcomes = [processor.process(weighed("u", 67 + day, 80.3 + 0.1 * (day % 2))) for day in range(5)]
        assert [outcome.status for outcome in outcomes] == ["quarantined", "quarantined", "accepted", "accepted", "accepted"]
        revocation = outcomes[2].reset
        assert revocation is not None
        assert (revocation.kind, revocation.outcome) == ("revocation", "committed")
        assert [event for event, _, _ in events(store, "u")][-1] == "reset.revoked"
        assert abs(head(store, "u").kalman.x0 - 80.3) < 0.5
        assert [kept.value for kept in store.quarantine("u")] == ["95.0"]
        assert len(head(store, "u").buffer) == min(len(weights) + 5, 30)


def check_26(path: Path) -> None:
    fill(path, "u", [80.0 + 0.1 * day for day in range(12)])
    with working(path) as (store, manager, _):
        k = head(store, "u").kalman
        assert k.p01 > 0.0, "the scene needs a correlated covariance"
        small = k.p01 * k.p01 / k.p11 / 2.0
        part, half = [("part", lambda s: s.replace(p00=small))], [("half", lambda s: s.replace(p01=0.0))]
        error = refused(ResetValidationError, manager.perform_reset, "u", operations=part, **BY)
        assert [(v.rule, v.limit) for v in error.violations] == [("covariance", "positive definite")]
        error = refused(ResetValidationError, manager.perform_reset, "u", operations=half, **BY)
        assert "symmetric" in [v.limit for v in error.violations]
        assert head(store, "u").kalman == k
        manager.perform_reset("u", **BY)
        P = head(store, "u").P  # noqa: N806 - the literature's letter
        assert np.array_equal(P, np.diag(np.diag(P)))
        assert P[0, 0] == 5.0 * BODY_WEIGHT.r_kg2
        assert np.all(np.linalg.eigvalsh(P) > 0.0)
