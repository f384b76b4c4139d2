"""`ResetManager.health`: every reason not to be ready is told, and a trouble of the store is no exception."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from statemachine import (
    BreakerOpen,
    BreakerPolicy,
    GlobalBreakerPolicy,
    MutationFailed,
    Processor,
    ResetManager,
    StoreLimits,
    codec,
)
from statemachine.marks import SLOTS
from statemachine.store import keys
from tests.regression.scene import BY, broken, fill, opened, raw, refused, tear, weighed, working

if TYPE_CHECKING:
    from pathlib import Path

    from statemachine.alerts import Alert
    from statemachine.breaker import Forced

pytestmark = pytest.mark.usefixtures("no_events")


def test_healthy_store_is_ready_with_its_figures(tmp_path: Path) -> None:
    with working(tmp_path / "store") as (store, manager, processor):
        processor.process(weighed("ann", 0, 80.0))
        health = manager.health()
        assert (health.ok, health.reasons, health.global_breaker) == (True, (), "closed")
        assert health.audit_seq == store.audit_tail()[0] > 0
        assert 0.0 < health.map_share < 0.01
        assert (health.marks_waiting, health.events_dropped) == (0, 0)


def test_open_global_breaker_is_a_reason(tmp_path: Path) -> None:
    fill(tmp_path / "store", "ann", [80.0])
    with opened(tmp_path / "store") as store:
        manager = ResetManager(store, global_breaker=GlobalBreakerPolicy(users_max=1))
        refused(MutationFailed, manager.perform_reset, "ann", operations=[("fail", broken)], **BY)
        health = manager.health()
        assert (health.ok, health.global_breaker) == (False, "open")
        assert "global breaker is open" in health.reasons[0]


@pytest.mark.parametrize(("mode", "ok"), [("forced-open", False), ("forced-closed", True), ("metrics-only", True)])
def test_an_operator_s_word_is_a_reason_where_it_refuses(tmp_path: Path, mode: Forced, ok: bool) -> None:
    """It is ok exactly where a reset goes through."""
    fill(tmp_path / "store", "ann", [80.0])
    with opened(tmp_path / "store") as store:
        manager = ResetManager(store)
        manager.force_breaker(None, mode, **BY)
        health = manager.health()
        assert (health.ok, health.global_breaker, not health.reasons) == (ok, mode, ok)
        if ok:
            assert manager.perform_reset("ann", **BY).outcome == "committed"
        else:
            refused(BreakerOpen, manager.perform_reset, "ann", **BY)


def test_a_store_opened_for_reading_says_so(tmp_path: Path) -> None:
    """Nothing is raised, and the figures are there."""
    fill(tmp_path / "store", "ann", [80.0])
    with opened(tmp_path / "store", readonly=True) as store:
        health = ResetManager(store).health()
        assert not health.ok
        assert [reason for reason in health.reasons if "opened for reading" in reason] == list(health.reasons)
        assert (health.global_breaker, health.audit_seq, health.marks_waiting) == ("closed", store.audit_tail()[0], 0)


def test_refused_attempt_waits_and_a_lost_event_is_counted(tmp_path: Path) -> None:
    fill(tmp_path / "store", "ann", [80.0])
    with opened(tmp_path / "store") as store:
        manager = ResetManager(store, breaker=BreakerPolicy(failures_max=1))
        refused(MutationFailed, manager.perform_reset, "ann", operations=[("fail", broken)], **BY)
        refused(Exception, manager.perform_reset, "ann", **BY)
        store.emitter.dropped += 3
        health = manager.health()
        assert (health.ok, health.marks_waiting, health.events_dropped) == (True, 1, 3)


def test_what_became_of_alerts_is_told_and_no_reason(tmp_path: Path) -> None:
    """Also where the store itself is in trouble."""
    told: list[Alert] = []
    fill(tmp_path / "store", "ann", [80.0])
    with opened(tmp_path / "store") as store:
        manager = ResetManager(store, global_breaker=GlobalBreakerPolicy(users_max=1), alerts=[told.append])
        refused(MutationFailed, manager.perform_reset, "ann", operations=[("fail", broken)], **BY)
        assert manager.alerts is not None
        while not manager.alerts.counts().delivered:
            time.sleep(0.01)
        assert (len(told), manager.health().alerts) == (1, manager.alerts.counts())
    assert manager.health().alerts.delivered == 1


def test_a_rollout_that_cannot_be_asked_is_counted_and_no_reason(tmp_path: Path) -> None:
    class Silent:
        def decide(self, user: str) -> str:
            raise ConnectionError(user)

    with opened(tmp_path / "store") as store:
        manager = ResetManager(store, rollout=Silent())  # type: ignore[arg-type]
        processor = Processor(manager)
        assert manager.health().gate_failures == 0
        for day, kg in ((0, 80.0), (90, 80.5)):
            assert processor.process(weighed("ann", day, kg)).status == "accepted"
        health = manager.health()
        assert (health.ok, health.gate_failures) == (True, 1)
    assert manager.health().gate_failures == 1


def test_map_nearly_used_up_is_a_reason(tmp_path: Path) -> None:
    fill(tmp_path / "store", "ann", [80.0])
    limits = StoreLimits(map_bytes=1 << 17, map_bytes_max=(tmp_path / "store" / "data.mdb").stat().st_size * 11 // 10)
    with opened(tmp_path / "store", limits=limits) as store:
        health = ResetManager(store).health()
        assert not health.ok
        assert "largest map" in health.reasons[0]


def test_fenced_process_is_not_ready(tmp_path: Path) -> None:
    with opened(tmp_path / "store") as store:
        key = keys.owner(store.committer.owner)
        with store.engine.turn(), store.engine.write() as txn:
            txn.delete(key)
        assert ResetManager(store).health().reasons == ("this process was fenced: open the store anew",)


def test_slots_nearly_used_up_are_a_reason(tmp_path: Path) -> None:
    with opened(tmp_path / "store") as store:
        transactions = [ResetManager(store).transaction(f"u{n}", **BY) for n in range(SLOTS - SLOTS // 8 + 1)]
        for tx in transactions:
            tx.__enter__()
        assert "few slots" in ResetManager(store).health().reasons[0]
        for tx in transactions:
            tx.__exit__(None, None, None)


def test_trouble_with_the_store_is_told_not_raised(tmp_path: Path) -> None:
    with opened(tmp_path / "store") as store:
        manager = ResetManager(store)
    health = manager.health()
    assert not health.ok
    assert "is closed" in health.reasons[0]


def test_damaged_global_breaker_is_told(tmp_path: Path) -> None:
    fill(tmp_path / "store", "ann", [80.0])
    with raw(tmp_path / "store") as txn:
        txn.put(keys.GLOBAL_BREAKER, codec.seal(keys.GLOBAL_BREAKER, b"\xc0"))
    tear(tmp_path / "store", keys.GLOBAL_BREAKER)
    with opened(tmp_path / "store") as store:
        assert "checksum" in ResetManager(store).health().reasons[0]
