"""The wall clock is set back, or forward: nothing is lost, versions and rows keep their order, and what waits is told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pytest

from statemachine import BreakerOpen, BreakerPolicy, MutationFailed, ResetManager, ResetValidationError
from tests.regression.scene import BY, DAY_US, PRESENT_US, StillClock, broken, fill, opened, weighed, working

if TYPE_CHECKING:
    from pathlib import Path

YEAR_US: Final = 365 * DAY_US
POLICY: Final = BreakerPolicy(failures_max=1, cooldown_s=3_600.0, jitter=0.0)


def failed(manager: ResetManager, user: str) -> None:
    with pytest.raises(MutationFailed):
        manager.perform_reset(user, operations=[("fail", broken)], **BY)


@pytest.mark.parametrize("jump_us", [-YEAR_US, -3_600_000_000, YEAR_US])
def test_a_clock_that_jumps_during_an_attempt_costs_nothing(tmp_path: Path, jump_us: int) -> None:
    """Between snapshot and commit: it commits, its duration is that of the monotonic clock, the chain verifies."""
    path = tmp_path / "store"
    fill(path, "ann", [80.0, 80.1])
    clock = StillClock()

    def jumps(state: Any) -> Any:
        clock.wall_us += jump_us
        return state

    with opened(path, clock=clock) as store:
        done = ResetManager(store).perform_reset("ann", operations=[("the clock jumps", jumps)], **BY)
        assert (done.outcome, done.version) == ("committed", 3)
        row = list(store.audit("ann"))[-1]
        assert row.public.written_us == PRESENT_US + jump_us
        assert row.public.duration_us is not None
        assert 0 <= row.public.duration_us < 1_000
        assert [r.public.seq for r in store.audit()] == [1, 2]
        assert store.verify_audit().problem == ""


def test_a_clock_set_back_behind_the_state_refuses_resets_and_loses_nothing(tmp_path: Path) -> None:
    """A state from the future is no state: the reset is rolled back and says so, and goes through once the clock is right."""
    path = tmp_path / "store"
    fill(path, "ann", [80.0, 80.1], first_day=380)
    clock = StillClock(PRESENT_US - 30 * DAY_US)
    with working(path, clock=clock) as (store, manager, processor):
        with pytest.raises(ResetValidationError, match="not after the present"):
            manager.perform_reset("ann", **BY)
        outcome = processor.process(weighed("ann", 382, 80.2))
        assert (outcome.status, "future" in outcome.reason) == ("quarantined", True)
        assert [info.version for info in store.history("ann")] == [1, 2]
        clock.wall_us = PRESENT_US
        assert manager.perform_reset("ann", **BY).version == 3
        assert [kept.value for kept in store.quarantine("ann")] == ["80.2"]
        assert store.verify_audit().problem == ""


def test_a_breaker_waits_for_the_clock_that_was_set_back_and_an_operator_ends_it(tmp_path: Path) -> None:
    """What it opened by is an instant on the wall; the refusal tells when, and `release` does not wait for it."""
    clock = StillClock()
    path = tmp_path / "store"
    fill(path, "ann", [80.0])
    with opened(path, clock=clock) as store:
        manager = ResetManager(store, breaker=POLICY)
        failed(manager, "ann")
        clock.wall_us += 3_601_000_000 - YEAR_US
        with pytest.raises(BreakerOpen) as refusal:
            manager.perform_reset("ann", **BY)
        assert refusal.value.retry_at_us == PRESENT_US + 3_600_000_000
        manager.release_breaker("ann", **BY)
        assert manager.perform_reset("ann", **BY).outcome == "committed"


def test_a_clock_set_forward_lets_a_probe_in_early_and_no_more_than_one(tmp_path: Path) -> None:
    clock = StillClock()
    path = tmp_path / "store"
    fill(path, "ann", [80.0])
    with opened(path, clock=clock) as store:
        manager = ResetManager(store, breaker=POLICY)
        failed(manager, "ann")
        clock.wall_us += YEAR_US
        failed(manager, "ann")  # the probe
        with pytest.raises(BreakerOpen):
            manager.perform_reset("ann", **BY)
