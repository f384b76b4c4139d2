"""The breaker and the budget held, over random lives, to an oracle that keeps every attempt and counts it anew each time."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

import msgspec
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from statemachine.breaker import (
    CLOSED,
    SECONDS_KEPT_MAX,
    SLOTS_KEPT_MAX,
    UNSPENT,
    US_PER_S,
    Breaker,
    BreakerPolicy,
    Budget,
    GlobalBreakerPolicy,
    Now,
    admit,
    affordable,
    lease,
    resets_counted,
    settle,
    settle_global,
    spent,
)

Base = Literal["event", "wall"]
Ending = Literal["success", "failure", "void", "died"]

T: Final = 1_700_000_000 * US_PER_S
YEAR_US: Final = 365 * 86_400 * US_PER_S
WINDOW_S: Final = 120
PARTS: Final = 12
COOLDOWN_S: Final = 50
FACTOR: Final = 3
COOLDOWN_S_MAX: Final = 400
BASES: Final = st.sampled_from(("event", "wall"))
ENDINGS: Final = st.sampled_from(("success", "success", "failure", "failure", "failure", "void", "died"))


class Step(NamedTuple):
    """One attempt: by which clock, how long after the one before, how it ends, whose it is."""

    base: Base
    seconds: float
    ending: Ending
    user: int


STEPS: Final = st.lists(st.builds(
    Step, BASES, st.sampled_from((0.0, 0.5, 1.0, 9.5, 10.0, 30.0, 60.0, 121.0, 1_000.0)), ENDINGS, st.integers(0, 5),
), max_size=80)


def now_at(clock: dict[str, float], base: Base) -> Now:
    """Each base has its own pace; event time runs a year behind the wall."""
    wall_us = T + int(clock["wall"] * US_PER_S)
    return Now(T - YEAR_US + int(clock["event"] * US_PER_S) if base == "event" else wall_us, wall_us, base)


class Oracle:
    """A breaker as a list of what happened since it was last closed, looked through from the start at each question."""

    def __init__(
        self, *, failures_max: int, users_max: int, rate: float, attempts_min: int, to_close: int, by_user: bool,
    ) -> None:
        self.failures_max, self.users_max, self.by_user = failures_max, users_max, by_user
        self.rate, self.attempts_min, self.to_close = rate, attempts_min, to_close
        self.mode = "closed"
        self.ended: list[tuple[Base, int, int, bool]] = []
        self.openings = 0
        self.opened: Now | None = None
        self.probes: int = 0

    def verdict(self, now: Now) -> str:
        if self.mode == "closed":
            return "admit"
        if self.mode == "half-open":
            return "probe"
        assert self.opened is not None
        cooldown_us = min(COOLDOWN_S * FACTOR ** (self.openings - 1), COOLDOWN_S_MAX) * US_PER_S
        passed_us = now.at_us - self.opened.at_us if now.base == self.opened.base else now.wall_us - self.opened.wall_us
        return "probe" if passed_us >= cooldown_us else "refuse"

    def ends(self, now: Now, user: int, ending: Ending, *, probe: bool) -> None:
        if probe:
            self.mode = "half-open"
        if ending in ("void", "died"):
            return
        failed = ending == "failure"
        if probe:
            self.probes = 0 if failed else self.probes + 1
            if failed:
                self.open(now)
            elif self.probes >= self.to_close:
                self.mode, self.ended, self.openings, self.probes = "closed", [], 0, 0
            return
        self.ended.append((now.base, now.at_us, user, failed))
        if failed and (self.row_of_failures() or self.many_users(now) or self.large_share(now)):
            self.open(now)

    def open(self, now: Now) -> None:
        self.mode, self.opened, self.openings, self.ended, self.probes = "open", now, self.openings + 1, [], 0

    def row_of_failures(self) -> bool:
        newest = [failed for *_, failed in self.ended][-self.failures_max:]
        return not self.by_user and len(newest) == self.failures_max and all(newest)

    def many_users(self, now: Now) -> bool:
        return self.by_user and self.users_max <= len({
            user for base, at_us, user, failed in self.ended
            if failed and base == now.base and now.at_us - WINDOW_S * US_PER_S < at_us})

    def large_share(self, now: Now) -> bool:
        part_us = WINDOW_S * US_PER_S // PARTS
        first = now.at_us // part_us - PARTS
        within = [(user, failed) for base, at_us, user, failed in self.ended if base == now.base and at_us // part_us >= first]
        good = sum(not failed for _, failed in within)
        bad_ones = [user for user, failed in within if failed]
        bad = len(set(bad_ones)) if self.by_user else len(bad_ones)
        return good + bad >= self.attempts_min and bad >= self.rate * (good + bad) - 1e-12


FIGURES: Final = st.fixed_dictionaries({
    "failures_max": st.sampled_from((1, 2, 3, 99)), "users_max": st.sampled_from((1, 3, 5, 99)),
    "rate": st.sampled_from((0.1, 0.25, 0.5, 0.75, 1.0)),
    "attempts_min": st.integers(1, 12), "to_close": st.integers(1, 3),
})


def shape(figures: dict[str, float]) -> dict[str, float]:
    return {"failure_rate_max": figures["rate"], "attempts_min": figures["attempts_min"], "window_s": float(WINDOW_S),
            "cooldown_s": float(COOLDOWN_S), "cooldown_factor": float(FACTOR), "cooldown_s_max": float(COOLDOWN_S_MAX),
            "jitter": 0.0, "successes_to_close": figures["to_close"]}


@settings(deadline=None)
@given(figures=FIGURES, steps=STEPS, by_user=st.booleans())
def test_any_life_agrees_with_the_oracle(figures: dict[str, int], steps: list[Step], by_user: bool) -> None:
    """Mode, openings and verdict at each step, of a user's breaker and of the global one, by two clocks that do not mix."""
    own = BreakerPolicy(failures_max=figures["failures_max"], **shape(figures))  # type: ignore[arg-type]
    common = GlobalBreakerPolicy(users_max=figures["users_max"], **shape(figures))  # type: ignore[arg-type]
    oracle, record = Oracle(**figures, by_user=by_user), CLOSED
    clock = {"wall": 0.0, "event": 0.0}
    for number, step in enumerate(steps):
        clock[step.base] += step.seconds
        now, attempt = now_at(clock, step.base), str(number)
        admission = admit(record, common if by_user else own, now, "")
        assert admission.verdict == oracle.verdict(now)
        if admission.verdict == "refuse":
            assert admission.retry_at_us is not None
            assert admission.retry_at_us > (now.at_us if now.base == record.base else now.wall_us)
            continue
        before = record.mode
        if admission.verdict == "probe":
            record = lease(record, attempt, 1)
            assert admit(record, own, now, "").reason == "probing", "one at a time"
        if by_user:
            record = settle_global(record, common, step.ending, user=b"%d" % step.user, attempt_id=attempt,
                                   generation=record.generation, now=now)
        else:
            record = settle(record, own, step.ending, attempt_id=attempt, generation=record.generation, now=now)
        oracle.ends(now, step.user, step.ending, probe=admission.verdict == "probe")
        assert (record.mode, record.openings) == (oracle.mode, oracle.openings)
        assert step.ending == "failure" or record.mode != "open", "nothing else opens it"
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(record), type=Breaker) == record
        assert max(len(record.ended), len(record.ended_event)) <= PARTS + 2
        if record.mode != before:
            event(f"{before} to {record.mode} by {record.opened_by or step.ending}")


@settings(deadline=None)
@given(steps=STEPS, others=STEPS)
def test_live_callers_move_nothing_that_is_counted_of_a_stream(steps: list[Step], others: list[Step]) -> None:
    """What event time counts of a window is the same whether or not wall-time results come between (INV-13)."""
    policy = GlobalBreakerPolicy(users_max=None, attempts_min=10**9, window_s=float(WINDOW_S))
    clock, alone, mixed = {"wall": 0.0, "event": 0.0}, CLOSED, CLOSED
    between = iter(others)
    for step in steps:
        clock["event"] += step.seconds
        now = now_at(clock, "event")
        named = {"user": b"%d" % step.user, "attempt_id": "a", "generation": 0, "now": now}
        alone = settle_global(alone, policy, step.ending, **named)  # type: ignore[arg-type]
        mixed = settle_global(mixed, policy, step.ending, **named)  # type: ignore[arg-type]
        other = next(between, None)
        if other is not None:
            clock["wall"] += other.seconds
            mixed = settle_global(mixed, policy, other.ending, user=b"%d" % other.user, attempt_id="b", generation=0,
                                  now=now_at(clock, "wall"))
        assert (mixed.failing_event, mixed.ended_event) == (alone.failing_event, alone.ended_event)
    assert (alone.failing, alone.ended) == ((), ())


# The budget.

INSTANTS: Final = st.lists(st.tuples(BASES, st.floats(0, 40)), max_size=150)


@settings(deadline=None)
@given(limit=st.integers(1, 8), instants=INSTANTS)
def test_no_minute_holds_more_resets_than_the_budget(limit: int, instants: list[tuple[Base, float]]) -> None:
    """Wherever the sixty seconds begin; and a reset is refused only where that many lie within the last 61."""
    clock, record = {"wall": 0.0, "event": 0.0}, UNSPENT
    committed: dict[str, list[int]] = {"wall": [], "event": []}
    for base, seconds in instants:
        clock[base] += seconds
        now = now_at(clock, base)
        admission = affordable(record, limit, now)
        lately = [at_us for at_us in committed[base] if at_us > now.at_us - 61 * US_PER_S]
        if admission.verdict == "refuse":
            assert len(lately) >= limit
            assert admission.reason == "budget"
            assert admission.retry_at_us is not None
            assert now.at_us < admission.retry_at_us <= now.at_us + 61 * US_PER_S
            later = Now(admission.retry_at_us, now.wall_us, base)
            assert affordable(record, limit, later).verdict == "admit", "at the instant told, there is room"
            sooner = Now(admission.retry_at_us - 1, now.wall_us, base)
            assert affordable(record, limit, sooner).verdict == "refuse", "and not before it"
            continue
        record = spent(record, now)
        committed[base].append(now.at_us)
        window = [at_us for at_us in committed[base] if at_us > now.at_us - 60 * US_PER_S]
        assert len(window) <= limit
        assert len(window) <= resets_counted(record, now) <= limit
        assert max(len(record.wall), len(record.event)) <= 121
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(record), type=Budget) == record


@settings(deadline=None)
@given(limit=st.integers(1, 5), instants=st.lists(st.tuples(st.floats(0, 20), st.floats(0, 59)), max_size=150))
def test_no_minute_holds_more_also_where_resets_end_in_another_order(limit: int, instants: list[tuple[float, float]]) -> None:
    """Several processes, or attempts that began at other times than they ended: up to a minute out of order."""
    clock, record, committed = 0.0, UNSPENT, []
    for seconds, behind in instants:
        clock += seconds
        now = Now(T + int((clock - behind) * US_PER_S), T, "event")
        if affordable(record, limit, now).verdict == "admit":
            record = spent(record, now)
            committed.append(now.at_us)
    for begin_us in committed:
        assert sum(begin_us <= at_us < begin_us + 60 * US_PER_S for at_us in committed) <= limit


@pytest.mark.parametrize("order", [1, -1])
def test_failures_that_end_in_another_order_than_they_began_count_together(order: int) -> None:
    """Users failing at once: the last to end may be the first to have begun, and the breaker opens by it all the same."""
    for policy in (GlobalBreakerPolicy(users_max=5, failure_rate_max=None), GlobalBreakerPolicy(users_max=None, attempts_min=5)):
        record = CLOSED
        for number in range(5)[::order]:
            assert record.mode == "closed"
            now = Now(T + number * 400 * US_PER_S, T + 3_000 * US_PER_S)
            record = settle_global(record, policy, "failure", user=b"%d" % number, attempt_id="a", generation=0, now=now)
        assert record.mode == "open"


@pytest.mark.parametrize("order", [1, -1])
def test_a_user_that_fails_twice_in_any_order_counts_once(order: int) -> None:
    """In the slot of the later of both."""
    policy, record = GlobalBreakerPolicy(users_max=9, attempts_min=9), CLOSED
    for seconds in (0, 1_800)[::order]:
        now = Now(T + seconds * US_PER_S, T)
        record = settle_global(record, policy, "failure", user=b"u", attempt_id="a", generation=0, now=now)
    width_us = 300 * US_PER_S
    at_us = T + 1_800 * US_PER_S
    assert record.ended == ((at_us - at_us % width_us, 1, 1),)
    assert [at for _, at in record.failing] == [at_us]


def test_a_lowered_budget_tells_when_it_has_room() -> None:
    """Ten were committed under a larger one: the smaller waits for as many as it must."""
    record = UNSPENT
    for second in range(10):
        record = spent(record, Now(T + second * US_PER_S, T))
    assert affordable(record, 3, Now(T + 10 * US_PER_S, T)) == ("refuse", "budget", T + (7 + 61) * US_PER_S)


def test_the_budget_remembers_a_minute_and_no_more() -> None:
    record = UNSPENT
    for second in range(1_000):
        record = spent(record, Now(T + second * US_PER_S, T))
        assert len(record.wall) == min(second + 1, 121)


@pytest.mark.parametrize("base", ["event", "wall"])
def test_an_earlier_stream_neither_counts_nor_loses_what_a_later_one_did(base: Base) -> None:
    """A file of two years ago, taken after one of today: its minutes are others, and its window too."""
    late, early = Now(T, T, base), Now(T - 2 * YEAR_US, T, base)
    record = spent(spent(UNSPENT, late), late)
    assert affordable(record, 2, late).verdict == "refuse"
    assert affordable(record, 2, early).verdict == "admit"
    assert affordable(spent(record, early), 2, late).verdict == "refuse"
    policy = GlobalBreakerPolicy(users_max=2, failure_rate_max=None)
    known = settle_global(CLOSED, policy, "failure", user=b"u", attempt_id="a", generation=0, now=late)
    between = settle_global(known, policy, "failure", user=b"v", attempt_id="a", generation=0, now=early)
    assert between.mode == "closed"
    assert settle_global(between, policy, "failure", user=b"w", attempt_id="a", generation=0, now=late).mode == "open"


def test_records_stay_bounded_whatever_clocks_do() -> None:
    """Streams of a thousand different years: what is kept has a limit, and the newest is in it."""
    policy, record, budget = BreakerPolicy(failures_max=10**6, attempts_min=10**6), CLOSED, UNSPENT
    for number in range(1_000, 0, -1):
        now = Now(T + number * 30 * 86_400 * US_PER_S, T, "event")
        record = settle(record, policy, "failure", attempt_id="a", generation=0, now=now)
        budget = spent(budget, now)
        assert len(record.ended_event) <= SLOTS_KEPT_MAX
        assert len(budget.event) <= SECONDS_KEPT_MAX
        assert resets_counted(budget, now) == 1
