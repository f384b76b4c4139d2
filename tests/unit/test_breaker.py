"""The breaker's decisions, which are pure: when it opens, for how long, whom it lets through, and what moves it not."""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from statemachine import InvalidInput
from statemachine.breaker import (
    CLOSED,
    FAILING_MAX,
    FORCED,
    SECONDS_KEPT_MAX,
    SLOTS,
    SLOTS_KEPT_MAX,
    SUSPECTS_KEPT_MAX,
    UNSPENT,
    US_PER_S,
    Admission,
    Breaker,
    BreakerPolicy,
    Budget,
    GlobalBreakerPolicy,
    Now,
    Result,
    admit,
    affordable,
    checked,
    cooldown_us,
    counted,
    forced,
    lease,
    let_go,
    resets_counted,
    settle,
    settle_global,
    spent,
    suspected,
    too_many,
)

SHAPE: Final[dict[str, Any]] = {"cooldown_s": 10.0, "cooldown_factor": 3.0, "cooldown_s_max": 200.0, "jitter": 0.0}
POLICY: Final = BreakerPolicy(failures_max=3, suspects_max=2, failure_rate_max=None, **SHAPE)
GLOBAL: Final = GlobalBreakerPolicy(users_max=3, window_s=100.0, failure_rate_max=None, **SHAPE)
JITTERED: Final = msgspec.structs.replace(POLICY, jitter=0.25)
T: Final = 1_700_000_000 * US_PER_S
YEAR_US: Final = 31_536_000 * US_PER_S
BASES: Final[list[Literal["event", "wall"]]] = ["event", "wall"]


def at(seconds: float, base: Literal["event", "wall"] = "wall") -> Now:
    """So many seconds after T on the wall; event time runs a year behind it."""
    wall_us = T + int(seconds * US_PER_S)
    return Now(wall_us if base == "wall" else wall_us - YEAR_US, wall_us, base)


def ended(record: Breaker, result: Result, seconds: float = 0.0, attempt: str = "a", **named: Any) -> Breaker:
    """The record after an attempt that began under its generation."""
    given_ = {"attempt_id": attempt, "generation": record.generation, "now": at(seconds), **named}
    return settle(record, POLICY, result, **given_)


def opened(times: int = 1) -> Breaker:
    """A breaker opened so many times, at T each time."""
    record = CLOSED
    for number in range(times):
        if number:
            record = lease(record, "probe", 1)
            record = ended(record, "failure", attempt="probe")
        else:
            for _ in range(POLICY.failures_max):
                record = ended(record, "failure")
    assert (record.mode, record.openings) == ("open", times)
    return record


# Opening and closing.


def test_it_opens_at_the_third_failure_in_a_row() -> None:
    """And begins a new generation then; before, it only counts."""
    record = CLOSED
    for failures in (1, 2):
        record = ended(record, "failure")
        assert (record.mode, record.failures, record.generation) == ("closed", failures, 0)
        assert admit(record, POLICY, at(0), "u") == Admission("admit")
    record = ended(record, "failure", 5.0)
    assert (record.mode, record.failures, record.generation, record.openings) == ("open", 0, 1, 1)
    assert (record.opened_us, record.opened_wall_us, record.base) == (at(5).at_us, at(5).wall_us, "wall")


@pytest.mark.parametrize("failures_max", [1, 2, 7])
def test_the_limit_is_the_policy_s(failures_max: int) -> None:
    policy, record = BreakerPolicy(failures_max=failures_max), CLOSED
    for _ in range(failures_max - 1):
        record = settle(record, policy, "failure", attempt_id="a", generation=0, now=at(0))
        assert record.mode == "closed"
    assert settle(record, policy, "failure", attempt_id="a", generation=0, now=at(0)).mode == "open"


def test_a_success_starts_the_count_anew() -> None:
    record = CLOSED
    for _ in range(5):
        record = ended(ended(record, "failure"), "failure")
        record = ended(record, "success")
        assert record == CLOSED


def test_it_refuses_until_its_cooldown_is_over() -> None:
    """The refusal tells when; that very instant is a probe's."""
    record = opened()
    retry_at_us = at(10).at_us
    for seconds in (0.0, 5.0, 9.999999):
        assert admit(record, POLICY, at(seconds), "u") == Admission("refuse", "open", retry_at_us)
    for seconds in (10.0, 1e6):
        assert admit(record, POLICY, at(seconds), "u") == Admission("probe")


def test_half_open_admits_one_probe() -> None:
    """While the probe is out everyone else is refused, whatever the time, and is told no time."""
    record = lease(opened(), "probe", 7)
    assert (record.mode, record.probe, record.probe_owner, record.generation) == ("half-open", "probe", 7, 2)
    for seconds in (0.0, 1e9):
        assert admit(record, POLICY, at(seconds), "u") == Admission("refuse", "probing")


def test_a_probe_s_success_closes() -> None:
    """All is forgotten but the generation and the suspects."""
    record = lease(ended(opened(), "died", suspect=("row", 3)), "probe", 1)
    closed = ended(record, "success", attempt="probe")
    assert closed == Breaker(generation=3, suspects=(("row", 3, 1),))
    assert admit(closed, POLICY, at(0), "u") == Admission("admit")


def test_a_probe_s_failure_opens_for_longer() -> None:
    """One failure of a probe is enough; its cooldown counts from then."""
    record = ended(lease(opened(), "probe", 1), "failure", 50.0, attempt="probe")
    assert (record.mode, record.openings, record.generation, record.probe, record.probe_owner) == ("open", 2, 3, "", 0)
    assert admit(record, POLICY, at(79.9), "u") == Admission("refuse", "open", at(80).at_us)
    assert admit(record, POLICY, at(80), "u").verdict == "probe"


def test_a_probe_that_says_nothing_gives_its_slot_back() -> None:
    """A conflict or a crash: it stays half-open, the next may probe at once, and no later instant moves (INV-09)."""
    record = opened(2)
    probing = lease(record, "probe", 1)
    back = ended(probing, "void", 1.0, attempt="probe")
    assert (back.mode, back.probe, back.probe_owner) == ("half-open", "", 0)
    assert (back.openings, back.opened_us, back.generation) == (record.openings, record.opened_us, probing.generation + 1)
    assert admit(back, POLICY, at(1), "u") == Admission("probe")
    again = lease(back, "next", 1)
    assert ended(again, "failure", attempt="next").openings == 3
    assert ended(probing, "died", attempt="probe", suspect=("row", 1)) == msgspec.structs.replace(back, suspects=(("row", 1, 1),))
    assert ended(back, "void", attempt="") is back, "no attempt holds the slot, and none gives it back"


def test_what_is_void_moves_nothing_else() -> None:
    for record in (CLOSED, ended(CLOSED, "failure"), opened(), lease(opened(), "probe", 1)):
        assert ended(record, "void", attempt="other") is record


@pytest.mark.parametrize("result", ["success", "failure"])
def test_a_late_result_of_an_earlier_generation_changes_nothing(result: Result) -> None:
    """An attempt that began before the breaker changed says nothing of it as it is now."""
    for record in (opened(), lease(opened(), "probe", 1), ended(lease(opened(), "probe", 1), "success", attempt="probe")):
        for generation in range(record.generation):
            assert ended(record, result, attempt="old", generation=generation) == record
            assert ended(record, result, attempt="probe", generation=generation) == record


# Cooldowns.


def test_cooldowns_grow_by_their_factor_to_their_limit() -> None:
    seconds = [cooldown_us(Breaker(openings=openings), POLICY, "u") / US_PER_S for openings in range(8)]
    assert seconds == [10.0, 10.0, 30.0, 90.0, 200.0, 200.0, 200.0, 200.0]
    assert cooldown_us(Breaker(openings=10**9), POLICY, "u") == 200 * US_PER_S


@given(st.text(max_size=20), st.integers(0, 1_000))
def test_jitter_is_drawn_from_user_and_openings_within_its_bound(name: str, openings: int) -> None:
    """It only ever adds, at most its fraction, and is the same in every process and generation."""
    plain = cooldown_us(Breaker(openings=openings), POLICY, name)
    record = Breaker(openings=openings, generation=5, mode="open")
    drawn = cooldown_us(record, JITTERED, name)
    assert plain <= drawn <= plain * 1.25 + 1
    assert drawn == cooldown_us(msgspec.structs.replace(record, generation=77, cooled=True), JITTERED, name)


def test_jitter_spreads_users_and_openings() -> None:
    """A thousand users that failed together do not come back together."""
    draws = {cooldown_us(Breaker(openings=1), JITTERED, f"user {n}") for n in range(1_000)}
    assert len(draws) > 990
    assert max(draws) - min(draws) > 0.2 * 10 * US_PER_S
    assert len({cooldown_us(Breaker(openings=n), JITTERED, "u") for n in range(6, 26)}) == 20


def test_cooldowns_that_replay_must_not_move() -> None:
    """The figures of one user, so that a changed hash or formula is noticed: stored instants depend on them."""
    assert [cooldown_us(Breaker(openings=n), BreakerPolicy(), "u1") for n in (1, 2, 3)] == [
        3_676_978_306, 7_506_140_384, 14_943_189_444]


# Two time bases.


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("other", BASES)
def test_event_time_is_never_compared_with_wall_time(
    base: Literal["event", "wall"], other: Literal["event", "wall"],
) -> None:
    """Opened by one clock and asked by another, the wall's own time since the opening decides; the retry is told in that."""
    record = CLOSED
    for _ in range(3):
        record = ended(record, "failure", now=at(0, base))
    assert record.base == base
    told = at(10, base).at_us if base == other else at(10).wall_us
    assert admit(record, POLICY, at(9.9, other), "u") == Admission("refuse", "open", told)
    assert admit(record, POLICY, at(10, other), "u") == Admission("probe")


def test_a_stream_s_own_time_passes_at_its_own_pace() -> None:
    """In one base the caller's time decides, however long the run takes on the wall."""
    record = CLOSED
    for _ in range(3):
        record = ended(record, "failure", now=at(0, "event"))
    quick = Now(at(10, "event").at_us, at(0.001).wall_us, "event")
    slow = Now(at(9, "event").at_us, at(86_400).wall_us, "event")
    assert admit(record, POLICY, quick, "u").verdict == "probe"
    assert admit(record, POLICY, slow, "u").verdict == "refuse"


# Suspects.


def test_an_input_that_kills_is_refused_after_some_deaths() -> None:
    """Counted by input and base version; nobody else is refused, and no breaker opens."""
    record, suspect = CLOSED, ("row", 4)
    for died in (1, 2):
        assert admit(record, POLICY, at(0), "u", suspect) == Admission("admit")
        record = ended(record, "died", suspect=suspect)
        assert suspected(record, suspect) == died
    assert admit(record, POLICY, at(0), "u", suspect) == Admission("refuse", "suspect")
    for other in (("row", 5), ("another", 4), None):
        assert admit(record, POLICY, at(0), "u", other) == Admission("admit")
    assert (record.mode, record.failures, record.generation) == ("closed", 0, 0)


@pytest.mark.parametrize("result", ["success", "failure"])
@pytest.mark.parametrize("generation", [0, 99])
def test_completing_clears_the_suspicion(result: Result, generation: int) -> None:
    """Success or failure, even one that began under another generation: it did not kill the process."""
    record = ended(ended(CLOSED, "died", suspect=("row", 1)), "died", suspect=("other", 2))
    after = ended(record, result, suspect=("row", 1), generation=generation)
    assert after.suspects == (("other", 2, 1),)
    assert ended(record, result).suspects == record.suspects, "an attempt on something else clears nothing"
    assert ended(record, "void", suspect=("row", 1)).suspects == record.suspects, "and no end that says nothing"


def test_suspects_are_capped_and_the_newest_kept() -> None:
    record = CLOSED
    for number in range(100):
        record = ended(record, "died", suspect=(f"row {number}", 1))
        assert len(record.suspects) <= SUSPECTS_KEPT_MAX
    assert [name for name, _, _ in record.suspects] == [f"row {number}" for number in range(100 - SUSPECTS_KEPT_MAX, 100)]
    again = ended(record, "died", suspect=("row 90", 1))
    assert (len(again.suspects), again.suspects[-1]) == (SUSPECTS_KEPT_MAX, ("row 90", 1, 2))


def test_opening_forgets_no_suspect() -> None:
    record = ended(CLOSED, "died", suspect=("row", 1))
    for _ in range(POLICY.failures_max):
        record = ended(record, "failure")
    assert (record.mode, record.suspects) == ("open", (("row", 1, 1),))


def test_a_death_of_nothing_in_particular_only_gives_the_slot_back() -> None:
    assert ended(CLOSED, "died") is CLOSED


# The global breaker.


def failed(record: Breaker, user: str, seconds: float = 0.0, result: Result = "failure", **named: Any) -> Breaker:
    given_ = {"attempt_id": user, "generation": record.generation, "now": at(seconds), **named}
    return settle_global(record, GLOBAL, result, user=user.encode(), **given_)


def test_distinct_users_open_the_global_breaker() -> None:
    """One user failing for ever counts once (INV-11); the third user within the window opens it."""
    record = CLOSED
    for second in range(50):
        record = failed(record, "u", second)
    assert (record.mode, len(record.failing)) == ("closed", 1)
    record = failed(failed(record, "v", 51), "w", 52)
    assert (record.mode, record.failing, record.openings, record.generation) == ("open", (), 1, 1)


@pytest.mark.parametrize(("seconds", "mode"), [(99.9, "open"), (100.0, "closed"), (500.0, "closed")])
def test_the_window_slides(seconds: float, mode: str) -> None:
    """A failure counts for the window's length; it is the last one of each user that counts."""
    assert failed(failed(failed(CLOSED, "u", 0), "v", 1), "w", seconds).mode == mode
    renewed = failed(failed(failed(CLOSED, "u", 0), "v", 50), "u", 90)
    assert failed(renewed, "w", 140).mode == "open"


def test_success_and_void_count_nothing_globally() -> None:
    record = failed(failed(CLOSED, "u"), "v")
    for result in ("success", "void", "died"):
        assert failed(record, "w", result=result) == record


def test_the_global_probe_closes_opens_and_is_given_back() -> None:
    record = failed(failed(failed(CLOSED, "u"), "v"), "w")
    probing = lease(record, "x", 1)
    assert failed(probing, "y", 1) is probing, "no probe of it"
    assert failed(probing, "x", result="success") == Breaker(generation=probing.generation + 1)
    assert (failed(probing, "x", 20).mode, failed(probing, "x", 20).openings) == ("open", 2)
    for result in ("void", "died"):
        back = failed(probing, "x", result=result)
        assert (back.mode, back.probe, back.openings) == ("half-open", "", 1)
    for late in ("success", "failure"):
        assert failed(probing, "x", result=late, generation=0) == probing


def test_the_window_s_memory_is_capped() -> None:
    policy, record = msgspec.structs.replace(GLOBAL, users_max=None), CLOSED
    for number in range(FAILING_MAX + 10):
        record = settle_global(record, policy, "failure", user=str(number).encode(), attempt_id="a", generation=0, now=at(0))
    assert len(record.failing) == FAILING_MAX


# Any life.

EVENTS = st.lists(st.tuples(
    st.sampled_from(["begin", "success", "failure", "void", "died"]), st.integers(0, 3), st.floats(0, 40),
    st.sampled_from(BASES), st.integers(0, 2),
), max_size=60)


@given(EVENTS)
def test_any_life_keeps_the_invariants(life: list[tuple[str, int, float, Literal["event", "wall"], int]]) -> None:
    """No generation is ever used again, one probe at most is out, and what is refused ends nothing."""
    record, clock = CLOSED, 0.0
    running: dict[str, int] = {}
    number = 0
    for what, pick, seconds, base, input_ in life:
        clock += seconds
        before = record
        suspect = (f"row {input_}", 1)
        if what == "begin":
            admission = admit(record, POLICY, at(clock, base), "u", suspect)
            assert (admission.retry_at_us is not None) == (admission.reason == "open")
            if admission.verdict == "refuse":
                assert record.mode != "closed" or suspected(record, suspect) >= POLICY.suspects_max
                continue
            number += 1
            if admission.verdict == "probe":
                assert record.mode == "open" or (record.mode == "half-open" and not record.probe)
                record = lease(record, str(number), 1)
            running[str(number)] = record.generation
        elif running:
            attempt = list(running)[pick % len(running)]
            record = ended(record, what, attempt=attempt, generation=running.pop(attempt),  # type: ignore[arg-type]
                           now=at(clock, base), suspect=suspect)
        assert record.generation >= before.generation
        assert (record.generation > before.generation) == (record.mode != before.mode or (
            before.mode == "half-open" and record is not before and record.probe != before.probe))
        assert record.mode == "half-open" or (record.probe, record.probe_owner, record.successes) == ("", 0, 0)
        assert record.failures < POLICY.failures_max
        assert (record.mode == "closed") == (record.openings == 0)
        assert not record.cooled, "earlier versions set it"
        assert not record.probe or record.probe in running
        assert len(record.suspects) <= SUSPECTS_KEPT_MAX
        assert all(count > 0 for _, _, count in record.suspects)
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(record), type=Breaker) == record


# The operator's word.


def test_forced_beats_timers() -> None:
    """What was forced stays so however much time passes and whatever attempts do."""
    shut = forced(opened(3), "forced-open")
    assert shut.generation == opened(3).generation + 1
    assert admit(shut, POLICY, at(1e9), "u") == Admission("refuse", "forced-open")
    free = forced(opened(3), "forced-closed")
    for attempt in range(10):
        free = ended(free, "failure", seconds=attempt)
        assert settle_global(free, GLOBAL, "failure", user=b"%d" % attempt, attempt_id="a", generation=free.generation,
                             now=at(0)) is free
    assert free == forced(opened(3), "forced-closed")
    assert admit(free, POLICY, at(0), "u") == Admission("admit")


def test_metrics_only_counts_and_never_opens() -> None:
    record = forced(CLOSED, "metrics-only")
    for number in range(1, 10):
        record = ended(record, "failure")
        assert (record.mode, record.failures) == ("metrics-only", number)
        assert admit(record, POLICY, at(0), "u") == Admission("admit")
    assert ended(record, "success").failures == 0
    common = forced(CLOSED, "metrics-only")
    for number in range(1, 10):
        common = settle_global(common, GLOBAL, "failure", user=b"%d" % number, attempt_id="a", generation=common.generation,
                               now=at(0))
        assert (common.mode, len(common.failing)) == ("metrics-only", number)


@pytest.mark.parametrize("mode", ["forced-open", "forced-closed", "metrics-only"])
def test_a_result_from_before_the_operator_s_word_changes_nothing(mode: Any) -> None:
    before = ended(CLOSED, "failure")
    record = forced(before, mode)
    assert ended(record, "failure", generation=before.generation) == record
    assert ended(let_go(record), "failure", generation=record.generation) == let_go(record)


@pytest.mark.parametrize("mode", ["forced-open", "forced-closed", "metrics-only"])
def test_a_suspect_input_stays_refused_until_the_breaker_is_let_go(mode: Any) -> None:
    suspect = ("row", 3)
    record = CLOSED
    for _ in range(POLICY.suspects_max):
        record = ended(record, "died", suspect=suspect)
    assert admit(forced(record, mode), POLICY, at(0), "u", suspect) == Admission("refuse", "suspect")
    assert admit(let_go(forced(record, mode)), POLICY, at(0), "u", suspect) == Admission("admit")


# The share that failed.

SHARES: Final = BreakerPolicy(failures_max=10**6, failure_rate_max=0.5, attempts_min=6, window_s=120.0, **SHAPE)
NEVER: Final = BreakerPolicy(failures_max=10**6, attempts_min=10**6, window_s=120.0, **SHAPE)
SLOT_US: Final = 10 * US_PER_S
BEGIN_US: Final = T - T % SLOT_US


def life(results: str, policy: BreakerPolicy = SHARES, seconds: float = 0.0) -> Breaker:
    """A breaker after so many ends, "F" for each failure and "." for each success, at one instant or so far apart."""
    record = CLOSED
    for number, result in enumerate(results):
        record = settle(record, policy, "failure" if result == "F" else "success", attempt_id="a", generation=record.generation,
                        now=at(number * seconds))
    return record


@pytest.mark.parametrize(("results", "opens"), [
    ("F.F.F", False), ("F.F.FF", True), (".F.F.F", True), ("F.F..F", True), ("..F..FF", False), (".....FFFFF", True),
    (".....FFFF", False), ("F" * 5, False), ("F" * 6, True), ("FFF...", False), ("FFF....", False), ("." * 90 + "F" * 89, False),
    ("." * 90 + "F" * 90, True),
])
def test_it_opens_by_the_share_that_failed(results: str, opens: bool) -> None:
    """Of at least six ends in the window at least half, judged when one fails; all successes count, those before too."""
    record = life(results)
    assert record.mode == ("open" if opens else "closed")
    assert record.opened_by == ("rate" if opens else "")


@pytest.mark.parametrize(("seconds", "mode"), [(0.0, "open"), (119.9, "open"), (129.9, "open"), (130.0, "closed")])
def test_the_window_of_the_share_is_counted_in_twelfths(seconds: float, mode: str) -> None:
    """What ended counts for the window's length, and until its twelfth is over: five at a beginning, and one later."""
    record = CLOSED
    for _ in range(5):
        record = settle(record, SHARES, "failure", attempt_id="a", generation=0, now=Now(BEGIN_US, BEGIN_US))
    later_us = BEGIN_US + int(seconds * US_PER_S)
    assert settle(record, SHARES, "failure", attempt_id="a", generation=0, now=Now(later_us, later_us)).mode == mode


def test_what_another_stream_did_later_does_not_count_now() -> None:
    """Slots after the present are kept and not counted; those before the window go."""
    record = CLOSED
    for _ in range(5):
        record = settle(record, SHARES, "failure", attempt_id="a", generation=0, now=Now(T + YEAR_US, T, "event"))
    early = settle(record, SHARES, "failure", attempt_id="a", generation=0, now=Now(T, T, "event"))
    assert (early.mode, len(early.ended_event)) == ("closed", 2)
    late = settle(early, SHARES, "failure", attempt_id="a", generation=0, now=Now(T + YEAR_US, T, "event"))
    assert (late.mode, late.openings) == ("open", 1)


def test_a_long_life_keeps_few_slots() -> None:
    record = life("F." * 300, NEVER, seconds=3.0)
    assert (record.mode, len(record.ended), record.failures) == ("closed", 13, 0)
    assert sum(ended for _, ended, _ in record.ended) == pytest.approx(42, abs=3)


def test_without_a_share_nothing_is_kept_of_successes() -> None:
    assert life("....", POLICY) is CLOSED


def test_failing_users_leave_memory_with_their_window() -> None:
    record, policy = CLOSED, GlobalBreakerPolicy(users_max=None, attempts_min=10**6, window_s=120.0)
    for number in range(1_000):
        now = at(number)
        record = settle_global(record, policy, "failure", user=b"%d" % number, attempt_id="a", generation=0, now=now)
    assert 120 <= len(record.failing) <= 130
    assert sum(failed for _, _, failed in record.ended) == len(record.failing)


# Policies.


@pytest.mark.parametrize("policy", [BreakerPolicy, GlobalBreakerPolicy])
@pytest.mark.parametrize(("field", "values", "limit"), [
    ("failure_rate_max", (0, 0.0, -0.1, 1.01, float("nan"), "1", True), "above 0"),
    ("attempts_min", (0, -1, 2.5, True, None, "3"), "at least 1"),
    ("window_s", (0, 0.0, -1.0, float("nan"), float("inf"), 1e300, None), "above 0"),
    ("cooldown_s", (-0.1, float("nan"), float("inf"), "5"), "at least 0"),
    ("cooldown_factor", (0.99, float("nan"), 1e6), "at least 1"),
    ("cooldown_s_max", (3_599.9, float("nan"), float("inf")), "at least 3,600"),
    ("jitter", (-0.1, 1.1, float("nan"), None), "at least 0"),
    ("successes_to_close", (0, -1, 1.0, True), "at least 1"),
    ("failures_max", (0, -3, 1.0, True, float("nan")), "at least 1"),
    ("suspects_max", (0, 2.0, False), "at least 1"),
    ("users_max", (0, -3, 1.0, True, 1_001), "at least 1"),
])
def test_a_policy_of_nonsense_is_refused(policy: type[Any], field: str, values: tuple[Any, ...], limit: str) -> None:
    """When it is made, naming field, value and limit."""
    if field not in policy.__struct_fields__:
        return
    for value in values:
        with pytest.raises(InvalidInput) as refused:
            policy(**{field: value})
        assert str(refused.value).startswith(f"{policy.__name__}.{field} is {value!r}; it must be ")
        assert limit in str(refused.value)
        with pytest.raises(InvalidInput):
            msgspec.structs.replace(policy(), **{field: value})


@pytest.mark.parametrize("named", [
    {"cooldown_s": 0, "jitter": 0, "cooldown_factor": 1}, {"failure_rate_max": None}, {"failure_rate_max": 1}, {"window_s": 1},
    {"cooldown_s": 3_600, "cooldown_s_max": 3_600}, {"jitter": 1.0, "attempts_min": 1, "successes_to_close": 9},
])
def test_a_policy_of_sense_is_taken(named: dict[str, Any]) -> None:
    for policy in (BreakerPolicy(**named), GlobalBreakerPolicy(**named), GlobalBreakerPolicy(users_max=None, **named)):
        assert cooldown_us(Breaker(openings=10**6), policy, "u") <= 2 * 7 * 86_400 * US_PER_S


# Records in full.


WILD: Final = msgspec.structs.replace(POLICY, jitter=1.0)
WILD_GLOBAL: Final = msgspec.structs.replace(GLOBAL, jitter=1.0, users_max=1)
SHARED: Final[dict[str, Any]] = {"failure_rate_max": 0.5, "attempts_min": 1}


@pytest.mark.parametrize("why", ["failures", "rate", "probe"])
def test_an_opened_breaker_says_why_and_until_when(why: str) -> None:
    """The same instant that a refused caller is told; its jitter is drawn from the name of the user."""
    policy = msgspec.structs.replace(WILD, failures_max=1 if why != "rate" else 9, **(SHARED if why == "rate" else {}))
    record = CLOSED if why != "probe" else lease(opened(), "a", 1)
    record = settle(record, policy, "failure", attempt_id="a", generation=record.generation, now=at(5), name="ann")
    assert (record.mode, record.opened_by) == ("open", why)
    retry_us = at(5).at_us + cooldown_us(record, policy, "ann")
    assert cooldown_us(record, policy, "ann") != cooldown_us(record, policy, "bob") != cooldown_us(record, policy, "None")
    assert record.retry_us == retry_us
    assert admit(record, policy, at(6), "ann") == Admission("refuse", "open", retry_us)


def test_a_breaker_of_nobody_draws_its_jitter_from_no_name() -> None:
    record = settle(CLOSED, msgspec.structs.replace(WILD, failures_max=1), "failure", attempt_id="a", generation=0, now=at(5))
    assert record.retry_us == at(5).at_us + cooldown_us(record, WILD, "")


def test_a_cooldown_grows_sixty_four_times() -> None:
    """A factor near 1 stops there, below the limit; no factor makes a number too large to be one."""
    slow = BreakerPolicy(cooldown_s=10.0, cooldown_factor=1.01, cooldown_s_max=200.0, jitter=0.0)
    times = [cooldown_us(Breaker(openings=number), slow, "u") for number in (64, 65, 66, 10_000)]
    assert times[0] < times[1] == times[2] == times[3] == int(10.0 * 1.01**64 * US_PER_S)
    steep = BreakerPolicy(cooldown_s=10.0, cooldown_factor=1_000.0, cooldown_s_max=200.0, jitter=0.0)
    assert cooldown_us(Breaker(openings=10_000), steep, "u") == 200 * US_PER_S


@pytest.mark.parametrize("why", ["users", "rate", "probe"])
def test_an_opened_global_breaker_says_why_and_until_when(why: str) -> None:
    """Its jitter is that of no name."""
    policy = msgspec.structs.replace(WILD_GLOBAL, **({"users_max": None, **SHARED} if why == "rate" else {}))
    record = CLOSED if why != "probe" else lease(msgspec.structs.replace(opened()), "a", 1)
    record = settle_global(record, policy, "failure", user=b"ann", attempt_id="a", generation=record.generation, now=at(5))
    assert (record.mode, record.opened_by) == ("open", why)
    assert record.retry_us == at(5).at_us + cooldown_us(record, policy, "")
    assert admit(record, policy, at(6), "") == Admission("refuse", "open", record.retry_us)


def test_a_lease_is_a_generation_of_its_own() -> None:
    """What an earlier version noted of a probe given back is over with it."""
    before = msgspec.structs.replace(opened(), cooled=True)
    assert lease(before, "x", 7) == msgspec.structs.replace(
        before, mode="half-open", generation=before.generation + 1, cooled=False, probe="x", probe_owner=7)


def test_as_many_probes_close_it_as_the_policy_says() -> None:
    """Each success gives the slot to the next; the last closes with nothing left but the suspects."""
    policy = msgspec.structs.replace(POLICY, successes_to_close=3)
    record = msgspec.structs.replace(opened(), suspects=(("k", 1, 1),))
    for number in (1, 2):
        leased = lease(record, "a", 7)
        record = settle(leased, policy, "success", attempt_id="a", generation=leased.generation, now=at(99))
        assert record == msgspec.structs.replace(
            leased, generation=leased.generation + 1, probe="", probe_owner=0, successes=number)
        assert admit(record, policy, at(99), "u") == Admission("probe")
    leased = lease(record, "a", 7)
    record = settle(leased, policy, "success", attempt_id="a", generation=leased.generation, now=at(99))
    assert record == Breaker(generation=leased.generation + 1, suspects=(("k", 1, 1),))


def test_an_operator_s_release_leaves_nothing_but_the_generation() -> None:
    assert let_go(msgspec.structs.replace(opened(2), suspects=(("k", 1, 1),))) == Breaker(generation=opened(2).generation + 1)


def test_a_mode_that_no_operator_may_choose_is_named_with_those_that_one_may() -> None:
    wrong: Any = "half-open"
    with pytest.raises(InvalidInput) as refused:
        forced(CLOSED, wrong)
    assert "'half-open'" in str(refused.value)
    assert ", ".join(FORCED) in str(refused.value)


# What the global breaker counts, slot by slot: a window of 120 s is counted in slots of 10 s.

COUNTING: Final = GlobalBreakerPolicy(users_max=None, window_s=120.0, failure_rate_max=1.0, attempts_min=1_000, **SHAPE)


def lived(*steps: tuple[str, Result, float]) -> Breaker:
    """The record after attempts of (user, result, seconds)."""
    record = CLOSED
    for user, result, seconds in steps:
        record = settle_global(record, COUNTING, result, user=user.encode(), attempt_id="a", generation=0, now=at(seconds))
    return record


def slots(record: Breaker) -> list[tuple[float, int, int]]:
    return [((begin - T) / US_PER_S, attempts, failed) for begin, attempts, failed in record.ended]


def test_successes_and_failures_are_counted_where_they_ended() -> None:
    assert slots(lived(("u", "success", 0), ("v", "success", 3), ("w", "failure", 12))) == [(0, 2, 0), (10, 1, 1)]


def test_a_user_that_fails_again_is_counted_once_and_where_it_failed_last() -> None:
    """Others who failed with it stay where they were; one that fails twice at one instant is one failure."""
    record = lived(("u", "failure", 0), ("v", "failure", 1), ("w", "failure", 2), ("x", "success", 3), ("u", "failure", 25))
    assert slots(record) == [(0, 3, 2), (20, 1, 1)]
    assert slots(lived(("u", "failure", 5), ("u", "failure", 5))) == [(0, 1, 1)]


@pytest.mark.parametrize(("seconds", "remembered"), [(129.9, 2), (130.0, 1)])
def test_a_user_is_forgotten_with_the_slot_in_which_it_failed(seconds: float, remembered: int) -> None:
    assert len(lived(("u", "failure", 0), ("v", "failure", seconds)).failing) == remembered


def test_a_failure_that_ended_earlier_than_one_already_counted_adds_nothing() -> None:
    """Unless that one lies a whole window ahead, and so belongs to another stream."""
    assert slots(lived(("u", "failure", 119.9), ("u", "failure", 0))) == [(110, 1, 1)]
    assert slots(lived(("u", "failure", 120), ("u", "failure", 0))) == [(0, 1, 1), (120, 1, 1)]


@pytest.mark.parametrize(("apart", "opens"), [(119.9, True), (120.0, False)])
def test_users_count_together_for_less_than_a_window_either_way(apart: float, opens: bool) -> None:
    policy = msgspec.structs.replace(COUNTING, users_max=2)
    for first, second in ((0.0, apart), (apart, 0.0)):
        record = settle_global(CLOSED, policy, "failure", user=b"u", attempt_id="a", generation=0, now=at(first))
        record = settle_global(record, policy, "failure", user=b"v", attempt_id="a", generation=0, now=at(second))
        assert (record.mode == "open") is opens


def test_of_too_many_slots_the_nearest_are_kept() -> None:
    """What a stream counted far ahead does not crowd out what counts now."""
    width_us = 10 * US_PER_S
    many = tuple((T + n * width_us, 2, 1) for n in range(-SLOTS, 90) if n)
    kept = counted(many, COUNTING, T, ended=1, failed=1)
    assert [(begin - T) // width_us for begin, _, _ in kept] == list(range(-SLOTS, SLOTS_KEPT_MAX - SLOTS))
    assert {begin: rest for begin, *rest in kept}[T] == [1, 1]
    assert counted(kept, COUNTING, T - 3 * width_us, ended=1, failed=0)[SLOTS - 3] == (T - 3 * width_us, 3, 1)


def test_the_share_is_of_a_window_back_and_a_window_ahead() -> None:
    """To the slot: the one that begins a window and a slot before is out, the one that begins a window after is in."""
    policy = msgspec.structs.replace(COUNTING, attempts_min=1)
    for slots_away, within in ((-SLOTS - 1, False), (-SLOTS, True), (SLOTS, True), (SLOTS + 1, False)):
        assert too_many(((T + slots_away * 10 * US_PER_S, 1, 1),), policy, T) is within
    assert not too_many(((T, 2, 1),), policy, T)
    assert not too_many(((T, 1, 1),), msgspec.structs.replace(policy, failure_rate_max=None), T)


def test_the_smallest_window_has_slots_of_a_microsecond() -> None:
    tiny = msgspec.structs.replace(COUNTING, window_s=1e-6)
    assert counted((), tiny, T + 1, ended=1, failed=0) == ((T + 1, 1, 0),)


# The budget.


def test_a_budget_of_nothing_refuses_and_knows_no_end() -> None:
    assert affordable(UNSPENT, 0, at(0)) == Admission("refuse", "budget", None)


def test_what_counts_against_a_budget_is_counted_in_whole_seconds() -> None:
    """Sixty of them on either side of the one that it is."""
    seconds = at(0.5).at_us // US_PER_S
    record = Budget(wall=tuple((seconds + n, 1) for n in (-61, -60, 0, 60, 61)), event=((seconds, 9),))
    assert resets_counted(record, at(0.5)) == resets_counted(record, at(0)) == 3
    assert affordable(record, 4, at(0.5)) == Admission("admit")
    assert affordable(record, 3, at(0.5)) == Admission("refuse", "budget", (seconds - 60 + 61) * US_PER_S)


def test_of_too_many_seconds_the_nearest_are_kept() -> None:
    """A stream that reaches far ahead does not crowd out what counts now."""
    second = at(0).at_us // US_PER_S
    record = spent(Budget(wall=tuple((second + n, 1) for n in range(-120, 600) if n)), at(0))
    kept = [begin - second for begin, _ in record.wall]
    assert len(kept) == SECONDS_KEPT_MAX
    assert kept == list(range(-120, 120))
    assert resets_counted(record, at(0)) == 121


# Figures.


def test_a_figure_that_is_none_says_what_it_must_be() -> None:
    """Whole where its bounds are whole; a bound that is itself refused is said to be so."""
    for value in (0, 10, True, 1.0, "1", None):
        with pytest.raises(InvalidInput, match=r"^size is .*; it must be a whole number, at least 1 and at most 9$") as refused:
            checked("size", value, 1, 9)
        assert repr(value) in str(refused.value)
    for figure in (0.0, 9.5, float("nan"), False, "1"):
        with pytest.raises(InvalidInput, match=r"it must be a finite number, above 0\.0 and at most 9\.0$"):
            checked("share", figure, 0.0, 9.0, above=True)
    checked("size", 1, 1, 9)
    checked("size", 9, 1, 9)
    checked("share", 0.0, 0.0, 9.0)
    checked("share", 9, 0.0, 9.0, above=True)
    with pytest.raises(InvalidInput):
        BreakerPolicy(cooldown_factor=1_000.5)
