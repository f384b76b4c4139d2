"""The measurement loop: each measurement ends as one of five things, once, whatever fails beside it."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from statemachine import (
    BreakerPolicy,
    Measurement,
    Operation,
    Outcome,
    Processor,
    Reading,
    ResetManager,
    ResetParameters,
    Rule,
    Store,
    StoreCorrupt,
    StoreLimits,
    Violation,
)
from statemachine.clock import to_us
from statemachine.marks import SLOTS
from statemachine.processor import STATUSES, Intake, SourceRow
from statemachine.store import keys
from statemachine.store.records import ACCEPTED, Unreadable
from statemachine.testing import CountingIds, ManualClock, snapshot
from tests.regression.scene import BY, START, Faulty, events, head, tear, weighed

BREAKER = BreakerPolicy(failures_max=3, cooldown_s=3_600.0, jitter=0.0)
SOURCE = b"one file".ljust(16)
OTHER = b"another".ljust(16)
BIG = 1_000_000


class Hooked(Faulty):
    """Body weight whose next reset first does `hook`, as another writer would."""

    def __init__(self) -> None:
        super().__init__()
        self.hook: Callable[[], object] | None = None

    def operations(self, how: ResetParameters, reading: Reading | None, at_us: int) -> tuple[Operation, ...]:
        hook, self.hook = self.hook, None
        if hook is not None:
            hook()
        return super().operations(how, reading, at_us)


class Bench:
    """A store 400 days after the start, by a clock that stands still, with a manager and a processor."""

    def __init__(self, path: Path, **settings: Any) -> None:
        self.clock = ManualClock(START + timedelta(days=400))
        self.estimator = Hooked()
        given = {"clock": self.clock, "ids": CountingIds(), "estimator": self.estimator, "durability": "process", **settings}
        self.store = Store.open(path, **given)
        self.manager = ResetManager(self.store, breaker=BREAKER)
        self.processor = Processor(self.manager)
        self.reported: list[tuple[int, Outcome]] = []

    def take(self, *measurements: Measurement) -> list[Outcome]:
        return [self.processor.process(measurement) for measurement in measurements]

    def settle(self, user: str = "u", days: int = 8, kg: float = 80.0) -> None:
        """Daily readings near a level, from the start on."""
        for day in range(days):
            assert self.take(weighed(user, day, kg + 0.2 * (-1) ** day))[0].status == "accepted"

    def intake(self, *sources: bytes | None) -> Intake:
        named = [(source, f"file {number}") for number, source in enumerate(sources)]
        return self.processor.intake(named, lambda number, outcome: self.reported.append((number, outcome)))

    @property
    def statuses(self) -> list[str]:
        return [outcome.status for _, outcome in self.reported]


pytestmark = pytest.mark.usefixtures("no_events")


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path / "store")
    yield made
    made.store.close()


def feed(intake: Intake, *measurements: Measurement, number: int = 0, first: int = 0) -> None:
    for row, measurement in enumerate(measurements, first):
        intake.add(number, SourceRow(row, measurement))


# The five statuses.


def test_ordinary_measurements_are_accepted(bench: Bench) -> None:
    """The first starts the user by an initial reset, the next is a step with its NIS."""
    first, second = bench.take(weighed("u", 0, 80.0), weighed("u", 1, 80.3))
    assert (first.status, first.version, first.nis) == ("accepted", 1, None)
    assert first.reset is not None
    assert (first.reset.outcome, first.reset.kind, first.reset.version) == ("committed", "initial", 1)
    assert (second.status, second.version, second.reset, second.adapting) == ("accepted", 2, None, True)
    assert second.nis is not None
    assert 0.0 < second.nis < 1.0


def test_a_surprise_is_quarantined_and_kept(bench: Bench) -> None:
    bench.settle()
    outcome = bench.take(weighed("u", 8, 130.0))[0]
    assert (outcome.status, outcome.version, outcome.reset) == ("quarantined", 8, None)
    assert outcome.nis is not None
    assert outcome.nis > 16
    assert outcome.reason.startswith("surprising: NIS")
    (kept,) = bench.store.quarantine("u")
    assert (kept.value, kept.disposition, kept.reason) == ("130.0", "held", outcome.reason)


@pytest.mark.parametrize("kg", [math.nan, math.inf, -math.inf, 0.0, -80.0])
def test_what_is_no_weight_is_kept_as_written(bench: Bench, kg: float) -> None:
    """It poisons nothing: the next measurement is accepted."""
    bench.settle()
    outcome = bench.take(Measurement("u", START + timedelta(days=8), kg, "scale", "as written", "kg"))[0]
    assert outcome.status == "quarantined"
    (kept,) = bench.store.quarantine("u")
    assert (kept.value, kept.disposition) == ("as written", "quarantined")
    assert "is no weight" in kept.reason
    assert bench.take(weighed("u", 9, 80.0))[0].status == "accepted"


@pytest.mark.parametrize(("day", "kg"), [(7.0, 80.5), (6.5, 80.0), (-100.0, 80.0)])
def test_what_is_not_after_the_last_accepted_one_is_late(bench: Bench, day: float, kg: float) -> None:
    """An equal instant with another value included; it is kept aside, and makes no version."""
    bench.settle()
    outcome = bench.take(weighed("u", day, kg))[0]
    assert (outcome.status, outcome.version) == ("late", 8)
    assert [kept.disposition for kept in bench.store.quarantine("u")] == ["late"]
    assert bench.take(weighed("u", day, kg))[0].status == "duplicate"
    assert bench.store.kept_count("u") == 1


@pytest.mark.parametrize("kg", [80.0, 130.0, math.nan])
def test_the_same_once_more_is_a_duplicate(bench: Bench, kg: float) -> None:
    """Accepted, held or refused: what was seen changes nothing when it comes again."""
    bench.settle()
    bench.take(weighed("u", 8, kg))
    before = dict(bench.store.engine.scan(b"", b"\xff"))
    assert bench.take(weighed("u", 8, kg))[0].status == "duplicate"
    assert dict(bench.store.engine.scan(b"", b"\xff")) == before


def test_duplicate_is_of_one_source_and_known_of_another(bench: Bench) -> None:
    """Seen earlier in this source: duplicate.  Seen in another, or consumed by an earlier run: known."""
    rows = (weighed("u", 0, 80.0), weighed("u", 1, 80.1), weighed("u", 0, 80.0))
    one = bench.intake(SOURCE)
    feed(one, *rows)
    one.flush()
    assert bench.statuses == ["accepted", "accepted", "duplicate"]
    bench.reported.clear()
    other = bench.intake(OTHER)
    feed(other, *rows, weighed("u", 2, 80.2))
    other.flush()
    assert bench.statuses == ["known", "known", "known", "accepted"]
    bench.reported.clear()
    again = bench.intake(SOURCE)
    feed(again, *rows)
    again.flush()
    assert (bench.statuses, again.known) == ([], [3])
    assert bench.store.version_range("u") == (1, 3)


def test_a_stream_without_a_cursor_is_known_by_identity(bench: Bench) -> None:
    for expected in (["accepted", "accepted"], ["known", "known"]):
        bench.reported.clear()
        stream = bench.intake(None)
        feed(stream, weighed("u", 0, 80.0), weighed("u", 1, 80.1))
        stream.flush()
        assert (bench.statuses, stream.known) == (expected, [0])


def test_the_future_of_a_source_is_that_of_its_first_run(bench: Bench) -> None:
    """A rerun, however late, decides by the present that was stored at the source's first run."""
    first = bench.intake(SOURCE)
    feed(first, weighed("u", 0, 80.0))
    first.flush()
    bench.clock.advance(30 * 86_400)
    second = bench.intake(SOURCE)
    feed(second, weighed("u", 0, 80.0), weighed("u", 399.9, 80.1), weighed("u", 410, 80.2))
    second.flush()
    assert bench.statuses == ["accepted", "accepted", "quarantined"]
    assert "from the future: 2027-02-19T07:00:00Z is after the present, 2027-02-09T07:00:00Z" in bench.reported[-1][1].reason
    assert bench.take(weighed("v", 410, 80.2))[0].status == "accepted", "a live caller's present is the clock's"
    assert bench.take(weighed("v", 431, 80.2))[0].status == "quarantined"


def test_a_future_measurement_moves_no_time(bench: Bench) -> None:
    """A reading dated 2099 resets nobody and makes nothing late."""
    bench.settle()
    assert bench.take(weighed("u", 27_000, 80.0), weighed("u", 8, 80.0))[1].status == "accepted"
    assert [event for event, _, _ in events(bench.store, "u")] == ["reset.committed"]


def test_unreadable_rows_are_kept_as_they_were_read(bench: Bench) -> None:
    """Line, text, reason and file; no user is made of them, and they count as quarantined."""
    intake = bench.intake(SOURCE)
    intake.add(0, SourceRow(0, None, Unreadable(17, "a;b;c", "no weight", "ghost")))
    intake.add(0, SourceRow(1, None))
    feed(intake, weighed("u", 0, 80.0), first=2)
    intake.flush()
    assert bench.statuses == ["quarantined", "quarantined", "accepted"]
    kept = list(bench.store.quarantine())
    assert [(k.user, k.line, k.raw, k.reason, k.file, k.row) for k in kept] == [
        ("ghost", 17, "a;b;c", "no weight", "file 0", 0), ("", 0, "", "no measurement", "file 0", 1)]
    assert list(bench.store.users()) == ["u"]
    cursor = bench.store.cursor(SOURCE)
    assert cursor is not None
    assert (cursor.consumed, cursor.totals) == (3, {"accepted": 1, "quarantined": 2, "read": 3})


# Conservation, and doing the same in other ways.


def course(seed: int = 7, rows: int = 240) -> list[Measurement]:
    """Readings of three users with gaps, shifts, wrong values, repeats, late ones, NaN, the future, and manual entries."""
    rng = random.Random(seed)
    day = dict.fromkeys(("ann", "bob", "ünï/çødé"), 0.0)
    level = dict(zip(day, (70.0, 90.0, 110.0), strict=True))
    found: list[Measurement] = []
    for _ in range(rows):
        user, luck = rng.choice(list(day)), rng.random()
        day[user] += 40.0 if luck < 0.03 else 0.3
        level[user] += 12.0 if 0.03 < luck < 0.04 else 0.0
        kg = level[user] + rng.gauss(0, 0.3) + (30.0 if 0.05 < luck < 0.08 else 0.0)
        when, source = day[user], "questionnaire" if luck > 0.97 else "scale"
        if 0.10 < luck < 0.13:
            when -= 5.0
        elif 0.13 < luck < 0.15:
            kg = math.nan
        elif 0.15 < luck < 0.17:
            when += 5_000.0
        found.append(weighed(user, when, round(kg, 2), source))
        if luck > 0.95 and len(found) > 5:
            found.append(rng.choice(found))
    return found


@pytest.mark.parametrize("way", ["process", "batch", "intake"])
def test_each_measurement_is_counted_once(tmp_path: Path, way: str) -> None:
    """The statuses add up to the input, and each distinct measurement has one record that says where it is (INV-08)."""
    bench, rows = Bench(tmp_path / "store"), course()
    if way == "process":
        outcomes = bench.take(*rows)
    elif way == "batch":
        outcomes = bench.processor.process_batch(rows)
    else:
        intake = bench.intake(SOURCE)
        feed(intake, *rows)
        intake.flush()
        outcomes = [outcome for _, outcome in bench.reported]
    counts = Counter(outcome.status for outcome in outcomes)
    assert counts.total() == len(rows)
    assert set(counts) == set(STATUSES) - {"known"}, "the course must exercise them all"
    found = snapshot(bench.store)
    identities = [entry for user in found["users"].values() for entry in user["identities"]]
    assert len(identities) == counts.total() - counts["duplicate"]
    accepted = sum(entry[0] == ACCEPTED for entry in identities)
    assert accepted + len(found["kept"]) == len(identities)
    assert sum(bench.store.kept_count(user) for user in bench.store.users()) == len(found["kept"])
    bench.store.close()


def test_a_batch_equals_its_measurements_one_by_one(tmp_path: Path) -> None:
    """The same outcomes and, decoded, the same store; attempts and all."""
    rows = course()
    outcomes, stores = [], []
    for way in ("one by one", "batch"):
        bench = Bench(tmp_path / way)
        given = bench.take(*rows) if way == "one by one" else bench.processor.process_batch(rows)
        outcomes.append([msgspec.structs.replace(o, reset=o.reset and o.reset._replace(attempt_id="")) for o in given])
        stores.append(snapshot(bench.store))
        bench.store.close()
    assert outcomes[0] == outcomes[1]
    assert stores[0] == stores[1]
    assert {kind for _, _, kind, _ in stores[0]["outcomes"]} >= {"initial", "gap", "level-shift"}


def test_the_same_input_gives_the_same_records(tmp_path: Path) -> None:
    """Same input, clock and ids: every record of two stores decodes alike, the audit's hashes included (INV-13)."""
    found = []
    for name in ("one", "two"):
        bench = Bench(tmp_path / name)
        bench.store.store_id = ""
        bench.store.committer.store_id = ""
        intake = bench.intake(SOURCE, OTHER)
        for row, measurement in enumerate(course()):
            intake.add(row % 2, SourceRow(row // 2, measurement))
        intake.flush()
        bench.manager.perform_reset("ann", **BY)
        found.append((snapshot(bench.store), [row.as_dict() for row in bench.store.audit()],
                      dict(bench.store.engine.scan(b"", b"\xff"))))
        assert bench.store.verify_audit().problem == ""
        bench.store.close()
    assert found[0] == found[1]


# A failing reset.


@pytest.mark.parametrize(("kg", "status"), [(80.4, "accepted"), (97.0, "quarantined")])
def test_after_a_failed_reset_the_state_before_it_serves(bench: Bench, kg: float, status: str) -> None:
    """A measurement that fits the old state is accepted into it, another is held; the attempt is told either way."""
    bench.settle(days=40)
    bench.estimator.failing = True
    outcome = bench.take(weighed("u", 80, kg))[0]
    assert outcome.reset is not None
    assert (outcome.status, outcome.reset.outcome, outcome.reset.kind) == (status, "rolled_back", "gap")
    assert "clear buffer" in outcome.reset.error
    assert bench.store.version_range("u")[1] == outcome.version == (41 if status == "accepted" else 40)
    kept = [(k.disposition, k.reason[:34]) for k in bench.store.quarantine("u")]
    assert kept == ([] if status == "accepted" else [("held", "the gap reset was rolled back: Mut")])
    assert events(bench.store, "u")[-1] == ("reset.rolled_back", "gap", "rolled_back")


@pytest.mark.parametrize("way", ["process", "batch"])
def test_a_refused_reset_falls_back_as_a_failed_one(bench: Bench, way: str) -> None:
    """The breaker opens after three failures: then it refuses, nothing is lost, and after the cooldown a probe succeeds."""
    bench.settle()
    bench.estimator.failing = True
    rows = [weighed("u", 45.0 + 40.0 * n, 80.0) for n in range(5)]
    outcomes = bench.take(*rows) if way == "process" else bench.processor.process_batch(rows)
    assert [o.status for o in outcomes] == ["accepted"] * 5
    assert [o.reset.outcome for o in outcomes if o.reset] == ["rolled_back"] * 3 + ["refused"] * 2
    misfit = bench.take(weighed("u", 245, 97.0))[0]
    assert (misfit.status, misfit.reason[:23]) == ("quarantined", "the gap reset was refus")
    bench.estimator.failing = False
    bench.clock.advance(3_601)
    probe = bench.take(weighed("u", 290, 80.0))[0]
    assert probe.reset is not None
    assert (probe.status, probe.reset.outcome) == ("accepted", "committed")
    assert Counter(outcome for _, kind, outcome in events(bench.store, "u") if kind == "gap") == {
        "rolled_back": 3, "refused": 3, "committed": 1}


def test_a_failing_first_reset_is_recorded_and_tried_again(bench: Bench) -> None:
    bench.estimator.failing_kg = {80.0}
    first, second = bench.take(weighed("u", 0, 80.0), weighed("u", 1, 80.1))
    assert first.reset is not None
    assert (first.status, first.reset.outcome, first.version) == ("quarantined", "rolled_back", 0)
    assert second.reset is not None
    assert (second.status, second.reset.kind, second.version) == ("accepted", "initial", 1)


def test_one_user_s_failures_stop_no_other(bench: Bench) -> None:
    """In one batch, one user's resets fail until they are refused and the other's succeed (INV-11)."""
    bench.estimator.failing_kg = {66.0}
    rows = [weighed(user, 40.0 * n, kg) for n in range(6) for user, kg in (("bad", 66.0), ("good", 80.0))]
    outcomes = bench.processor.process_batch(rows)
    good = [o for o in outcomes if o.user == "good"]
    assert [o.reset.outcome for o in good if o.reset] == ["committed"] * 6
    assert [o.reset.outcome for o in outcomes if o.user == "bad" and o.reset] == ["rolled_back"] * 3 + ["refused"] * 3


def test_a_nonconforming_user_is_quarantined_until_a_reset_passes(tmp_path: Path) -> None:
    """A state that breaks a rule added later is flagged and left alone; a reset that obeys it brings the user back."""
    bench = Bench(tmp_path / "store")
    bench.settle()
    bench.settle("light", kg=60.0)
    bench.store.close()

    def heavy(s: Any, _now_us: int | None, _known: Any) -> list[Violation]:
        return [Violation("heavy", "x[0]", "more", "at most 70", "kg")] if s.kalman.x0 > 70 else []

    bench = Bench(tmp_path / "store", rules=[Rule("heavy", heavy, "70")])
    loaded = bench.store.load("u")
    assert loaded is not None
    assert ([v.rule for v in loaded.violations], loaded.version) == (["heavy"], 8)
    for outcome in bench.take(weighed("u", 8, 80.0), weighed("u", 9, 69.0)):
        assert (outcome.status, outcome.version, outcome.reset) == ("quarantined", 8, None)
        assert outcome.reason.startswith("the stored state breaks the rules in force (heavy: x[0] is more kg")
    assert bench.take(weighed("light", 8, 60.0))[0].status == "accepted"
    bench.manager.perform_reset("u", measurement=weighed("u", 10, 69.5), **BY)
    assert bench.take(weighed("u", 11, 69.4))[0].status == "accepted"
    bench.store.close()


# Groups.


def limited(path: Path, **limits: int) -> Bench:
    return Bench(path, limits=StoreLimits(**{"group_measurements_max": BIG, "group_delay_ms": BIG, **limits}))


def test_a_group_is_flushed_at_its_size(tmp_path: Path) -> None:
    """A row is reported when it is durable, and not before."""
    bench = limited(tmp_path / "store", group_measurements_max=4)
    intake = bench.intake(SOURCE)
    for day in range(10):
        feed(intake, weighed("u", day, 80.0), first=day)
        assert len(bench.reported) == bench.store.version_range("u")[1] == (day + 1) // 4 * 4
    intake.flush()
    assert len(bench.reported) == bench.store.version_range("u")[1] == 10
    bench.store.close()


def test_a_group_is_flushed_after_its_delay(tmp_path: Path) -> None:
    bench = limited(tmp_path / "store", group_delay_ms=500)
    intake = bench.intake(SOURCE)
    feed(intake, weighed("u", 0, 80.0))
    bench.clock.advance(0.499)
    feed(intake, weighed("u", 1, 80.0), first=1)
    assert bench.reported == []
    bench.clock.advance(0.001)
    feed(intake, weighed("u", 2, 80.0), first=2)
    assert len(bench.reported) == 3
    bench.store.close()


def test_a_group_is_flushed_before_its_marks_run_out(tmp_path: Path) -> None:
    """More resets in one batch than there are slots for marks: it commits in time, and none is refused."""
    bench = limited(tmp_path / "store")
    intake = bench.intake(SOURCE)
    feed(intake, *(weighed(f"user {number}", 0, 80.0) for number in range(SLOTS + 10)))
    assert SLOTS // 2 < len(bench.reported) < SLOTS
    intake.flush()
    assert Counter(bench.statuses) == {"accepted": SLOTS + 10}
    assert not bench.store.marks.full
    bench.store.close()


def test_a_batch_that_misses_is_taken_one_by_one(bench: Bench) -> None:
    """Another writer commits to one of its users: no row is lost or counted twice, and dropped attempts are conflicted."""
    bench.settle()
    intake = bench.intake(SOURCE)
    feed(intake, weighed("new", 0, 90.0), weighed("u", 9, 80.2), weighed("new", 1, 90.1), weighed("u", 9, 80.2),
         weighed("u", 50, 81.0))
    assert Processor(bench.manager).process(weighed("u", 8, 80.1)).status == "accepted"
    assert bench.reported == []
    intake.flush()
    assert bench.statuses == ["accepted", "accepted", "accepted", "duplicate", "accepted"]
    bench.manager.perform_reset("other", measurement=weighed("other", 0, 70.0), **BY)
    assert sorted(events(bench.store, "new")) == [
        ("reset.committed", "initial", "committed"), ("reset.conflicted", "initial", "conflicted")]
    assert Counter(events(bench.store, "u")) == {
        ("reset.committed", "initial", "committed"): 1, ("reset.conflicted", "gap", "conflicted"): 1,
        ("reset.committed", "gap", "committed"): 1}
    cursor = bench.store.cursor(SOURCE)
    assert cursor is not None
    assert (cursor.consumed, cursor.totals) == (5, {"accepted": 4, "duplicate": 1, "read": 5})
    assert [info.version for info in bench.store.history("u")] == list(range(1, 12))
    feed(intake, weighed("u", 51, 81.1), first=5)
    intake.flush()
    assert bench.statuses[-1] == "accepted"


def test_two_runs_of_one_source_at_once_count_each_row_once(bench: Bench) -> None:
    """The slower run finds its rows consumed: they are known, nothing is counted twice, and it goes on with what is new."""
    rows = [weighed("u", day, 80.0) for day in range(3)]
    fast, slow = bench.intake(SOURCE), bench.intake(SOURCE)
    feed(slow, *rows)
    feed(fast, *rows)
    fast.flush()
    slow.flush()
    feed(slow, weighed("u", 3, 80.0), first=3)
    slow.flush()
    assert bench.statuses == ["accepted"] * 4
    assert (fast.known, slow.known) == ([0], [3])
    cursor = bench.store.cursor(SOURCE)
    assert cursor is not None
    assert (cursor.consumed, cursor.totals) == (4, {"accepted": 4, "read": 4})
    assert bench.store.version_range("u") == (1, 4)


def test_a_reset_by_hand_during_a_batch_is_kept(bench: Bench) -> None:
    """The batch is taken anew from the state that the operator made."""
    bench.settle()
    intake = bench.intake(None)
    feed(intake, weighed("u", 8, 80.1), weighed("u", 9, 80.0))
    assert bench.manager.perform_reset("u", **BY).version == 9
    intake.flush()
    assert [(o.status, o.version) for _, o in bench.reported] == [("accepted", 10), ("accepted", 11)]
    assert head(bench.store, "u").adaptation.count == 2


def test_a_probe_that_conflicts_gives_its_slot_back(bench: Bench) -> None:
    """Another writer is faster than the probe: it is audited as conflicted, and the reset is tried again at once."""
    bench.settle()
    bench.estimator.failing = True
    bench.take(*(weighed("u", 45.0 + 40.0 * n, 80.0) for n in range(3)))
    bench.estimator.failing = False
    bench.clock.advance(3_601)
    bench.estimator.hook = lambda: Processor(bench.manager).process(weighed("u", 126, 80.0))
    outcome = bench.take(weighed("u", 165, 80.0))[0]
    assert outcome.reset is not None
    assert (outcome.status, outcome.reset.outcome) == ("accepted", "committed")
    assert bench.store.draft().stored_breaker(b"u").mode == "closed"
    assert Counter(outcome for _, kind, outcome in events(bench.store, "u") if kind == "gap") == {
        "rolled_back": 3, "conflicted": 1, "committed": 1}


# Probation.


def pin(bench: Bench) -> int | None:
    found = bench.store.draft().pin(b"u")
    return None if found is None else found.version


def probation(bench: Bench) -> tuple[str, int] | None:
    found = bench.store.head("u")
    assert found is not None
    return None if found.probation is None else (found.probation.kind, found.probation.accepted)


def test_passing_probation_drops_the_pin(bench: Bench) -> None:
    """Five accepted measurements after the reset prove it."""
    bench.settle()
    assert (pin(bench), probation(bench)) == (None, None)
    bench.take(weighed("u", 45, 82.0))
    assert (pin(bench), probation(bench)) == (8, ("gap", 0))
    for number in range(4):
        bench.take(weighed("u", 46 + number, 82.0))
        assert (pin(bench), probation(bench)) == (8, ("gap", number + 1))
    bench.take(weighed("u", 50, 82.0))
    assert (pin(bench), probation(bench)) == (None, None)


def test_fourteen_days_pass_probation_too(bench: Bench) -> None:
    bench.settle()
    bench.take(weighed("u", 45, 82.0), weighed("u", 58.9, 82.0))
    assert pin(bench) == 8
    bench.take(weighed("u", 59, 82.0))
    assert (pin(bench), probation(bench)) == (None, None)


def test_a_reset_during_probation_keeps_the_pin(bench: Bench) -> None:
    """What stood before the first doubtful reset stays the last known good."""
    bench.settle()
    bench.take(weighed("u", 45, 82.0), weighed("u", 46, 82.1))
    bench.take(weighed("u", 54, 88.5, "questionnaire"))
    assert (pin(bench), probation(bench)) == (8, ("manual-entry", 0))
    assert bench.store.version_range("u")[1] == 11


def test_a_restore_ends_probation_and_drops_the_pin(bench: Bench) -> None:
    """An operator's word: what stood before the doubtful reset is no longer what the next surprises are measured by."""
    bench.settle()
    bench.take(weighed("u", 45, 82.0))
    assert pin(bench) == 8
    bench.manager.restore("u", to_version=8, **BY)
    assert (pin(bench), probation(bench)) == (None, None)


def test_an_accepted_one_does_not_end_the_run_during_probation(bench: Bench) -> None:
    """Two scales, one of them wrong: the wrong one's readings fit the wrong reset, and the right ones still add up."""
    bench.settle()
    outcomes = bench.take(*(weighed("u", day, kg) for day, kg in (
        (45.0, 93.0), (46.0, 80.2), (47.0, 93.1), (48.0, 80.3), (49.0, 80.1))))
    assert [o.status for o in outcomes] == ["accepted", "quarantined", "accepted", "quarantined", "accepted"]
    assert [o.reset.kind for o in outcomes if o.reset] == ["gap", "revocation"]
    assert {kept.value for kept in bench.store.quarantine("u")} == {"93.0", "93.1"}


def test_a_revocation_is_audited_with_its_transfers(bench: Bench) -> None:
    """Three held readings that fit the pin undo the reset: they are released, the wrong one is withdrawn, totals stay."""
    bench.settle()
    wrong = bench.take(weighed("u", 45, 93.0))[0]
    assert wrong.reset is not None
    assert wrong.reset.kind == "gap"
    outcomes = bench.take(*(weighed("u", 46.0 + n, 80.2) for n in range(3)))
    assert [o.status for o in outcomes] == ["quarantined", "quarantined", "accepted"]
    row = list(bench.store.audit("u"))[-1]
    assert (row.public.event, row.public.kind, row.public.outcome) == ("reset.revoked", "revocation", "committed")
    assert row.personal.details == {"released_from_quarantine": 2, "withdrawn_to_quarantine": 1}
    assert "agree with the state before the reset under probation" in row.personal.trigger
    kept = list(bench.store.quarantine("u"))
    assert [(k.value, k.disposition) for k in kept] == [("93.0", "quarantined")]
    assert kept[0].reason.startswith("left out of the revocation: ")
    assert head(bench.store, "u").kalman.x0 == pytest.approx(80.1, abs=0.4)
    assert (bench.store.kept_count("u"), pin(bench)) == (1, 8)


# Damage.


def test_a_damaged_user_goes_on_from_its_log(tmp_path: Path) -> None:
    """A torn head loses nothing: the log still ends there, and the next measurement is accepted in the same batch."""
    bench = Bench(tmp_path / "store")
    bench.settle()
    bench.settle("v")
    before = head(bench.store, "u")
    bench.store.close()
    tear(tmp_path / "store", keys.head(b"u"))
    bench = Bench(tmp_path / "store", ids=None)
    outcomes = bench.processor.process_batch([weighed("v", 8, 80.0), weighed("u", 8, 80.0), weighed("v", 9, 80.0)])
    assert [(o.status, o.version, o.reset) for o in outcomes] == [
        ("accepted", 9, None), ("accepted", 9, None), ("accepted", 10, None)]
    loaded = bench.store.load("u", 8)
    assert loaded is not None
    assert loaded.state == before
    row = next(row for row in bench.store.audit("u") if row.public.event == "state.recovered")
    assert row.personal.details == {"from_version": 8, "left_out": 0, "head_bytes_kept": True}
    bench.store.close()


def test_an_unreadable_user_s_measurement_is_kept_and_others_go_on(tmp_path: Path) -> None:
    """Nothing of the user can be read: no initial reset overwrites it, its measurements are kept, and its neighbours served."""
    bench = Bench(tmp_path / "store")
    bench.settle()
    bench.settle("v")
    torn = [keys.head(b"u"), *(keys.version(b"u", version) for version in range(1, 9))]
    bench.store.close()
    tear(tmp_path / "store", *torn)
    bench = Bench(tmp_path / "store", ids=None)
    intake = bench.intake(SOURCE)
    feed(intake, weighed("v", 8, 80.0), weighed("u", 8, 80.5), weighed("v", 9, 80.0))
    intake.flush()
    assert [(o.status, o.user) for _, o in bench.reported] == [("accepted", "v"), ("quarantined", "u"), ("accepted", "v")]
    kept = [k for k in bench.store.quarantine("u") if k.disposition == "unreadable"]
    assert len(kept) == 1
    assert "80.5 kg scale" in kept[0].raw
    assert kept[0].reason.startswith("the user's state cannot be read")
    with pytest.raises(StoreCorrupt):
        bench.store.load("u")
    assert [event for event, _, _ in events(bench.store, "u")] == ["reset.committed", "state.unrecoverable"]
    bench.store.close()


def test_an_intake_decides_by_event_time(bench: Bench) -> None:
    """In a file a breaker's cooldown runs by the rows' own time: forty days between rows are more than an hour."""
    bench.estimator.failing = True
    intake = bench.intake(SOURCE)
    rows = [weighed("u", n / 100, 80.0) for n in range(5)]
    feed(intake, *rows, weighed("u", 1, 80.0))
    intake.flush()
    assert [o.reset.outcome for _, o in bench.reported if o.reset] == ["rolled_back"] * 3 + ["refused"] * 2 + ["rolled_back"]
    breaker = bench.store.draft().stored_breaker(b"u")
    assert (breaker.base, breaker.opened_us) == ("event", to_us(START + timedelta(days=1)))
