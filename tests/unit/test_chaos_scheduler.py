"""The scheduler of the harness: what it runs is a schedule, all of it replays, and its locks are those of threads."""

from __future__ import annotations

import threading
from math import comb
from typing import TYPE_CHECKING, Any

import pytest

import statemachine.transaction
from chaos.faults import locks, scheduler
from chaos.faults.locks import Condition, Lock, Modelled, Quiet, RLock
from chaos.faults.points import Grain, Points, every, touching
from chaos.faults.scheduler import Prioritised, Ran, Randomly, Replay, Scheduler, point
from statemachine import Measurement, Processor, ResetManager, Store
from tests.regression.scene import BY, START

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class Counter:
    """Two threads add to it; between reading and writing another may go on."""

    def __init__(self, lock: Any = None) -> None:
        self.value = 0
        self._lock = lock

    def add(self) -> None:
        if self._lock is not None:
            with self._lock:
                self._add()
        else:
            self._add()

    def _add(self) -> None:
        point(1)
        value = self.value
        point(2)
        self.value = value + 1


def lost(chooser: Any, lock: Callable[[], Any] | None = None) -> tuple[bool, Ran]:
    counter = Counter(None if lock is None else lock())
    ran = Scheduler([counter.add, counter.add], chooser).run()
    assert not ran.stuck
    assert ran.errors == (None, None)
    return counter.value != 2, ran


def searched(run: Callable[[Any], Any], preemptions: int) -> list[scheduler.Schedule]:
    alone, roots = scheduler.branches(run)
    return [alone, *(found for root, cost in roots if cost <= preemptions
                     for found in scheduler.below(run, root, cost, preemptions))]


def test_left_alone_each_thread_goes_on_to_its_end() -> None:
    wrong, ran = lost(Replay())
    assert not wrong
    assert (ran.switches, ran.overlapped) == ((), False)


def test_a_lost_update_needs_one_preemption_and_a_search_finds_it() -> None:
    """Without a preemption no schedule of the search loses the update; with one some do, and not where a lock is held."""
    assert not any(found.result[0] for found in searched(lost, 0))
    assert any(found.result[0] for found in searched(lost, 1))
    assert not any(found.result[0] for found in searched(lambda chooser: lost(chooser, lambda: Lock("l")), 2))


@pytest.mark.parametrize("points", [1, 2, 3])
def test_a_search_runs_every_schedule_once(points: int) -> None:
    """Two threads of so many steps each: as many orders of the steps as the search finds, and each a different one."""
    def run(chooser: Any) -> str:
        order: list[str] = []

        def work(name: str) -> Callable[[], None]:
            def steps() -> None:
                for _ in range(points):
                    order.append(name)
                    point()
                order.append(name)

            return steps

        Scheduler([work("a"), work("b")], chooser).run()
        return "".join(order)

    found = searched(run, 99)
    orders = {schedule.result for schedule in found}
    steps = points + 1
    assert len(orders) == comb(2 * steps, steps)
    assert len({schedule.switches for schedule in found}) == len(found)


def test_what_ran_is_run_again_by_its_switches() -> None:
    """Whatever chose the switches, they alone make the same run again."""
    for seed in range(40):
        for chooser in (Randomly(str(seed), 10), Prioritised(str(seed), 10, 2)):
            wrong, ran = lost(chooser)
            again = lost(Replay(ran.switches))
            assert again == (wrong, ran)


def test_both_ways_of_drawing_find_a_lost_update() -> None:
    assert any(lost(Randomly(str(seed), 8))[0] for seed in range(50))
    assert any(lost(Prioritised(str(seed), 8, 2))[0] for seed in range(50))


def test_a_schedule_shrinks_to_the_switch_that_matters() -> None:
    """Of three switches or more at most two are left, and none of them can be left out."""
    drawn = (lost(Randomly(str(seed), 8)) for seed in range(999))
    switches = next(ran.switches for wrong, ran in drawn if wrong and len(ran.switches) > 2)
    found = scheduler.shrunk(switches, lambda fewer: lost(Replay(fewer))[0])
    assert len(found) <= 2
    assert lost(Replay(found))[0]
    assert not any(lost(Replay(found[:i] + found[i + 1:]))[0] for i in range(len(found)))


def test_a_deadlock_is_told_with_who_waits_for_what() -> None:
    """Two threads take two locks in opposite order."""
    def run(chooser: Any) -> Ran:
        one, two = Lock("one"), Lock("two")

        def work(first: Lock, second: Lock) -> Callable[[], None]:
            def take() -> None:
                with first, second:
                    pass

            return take

        return Scheduler([work(one, two), work(two, one)], chooser).run()

    stuck = {found.result.stuck for found in searched(run, 1)}
    assert stuck == {"", "deadlock: thread 0 waits for two, thread 1 waits for one"}


def test_a_livelock_is_told() -> None:
    def spin() -> None:
        while True:
            point()

    assert Scheduler([spin], Replay(), steps_max=500).run().stuck == "livelock: it has not ended after 500 steps"


def test_a_limit_ends_a_wait_only_where_nobody_can_go_on() -> None:
    held, told = Lock("held"), []

    def hold() -> None:
        held.acquire()

    def wait() -> None:
        told.append(held.acquire(timeout=5.0))

    ran = Scheduler([hold, wait], Replay()).run()
    assert (told, ran.timeouts, ran.stuck) == ([False], 1, "")


def test_conditions_and_reentrant_locks_do_as_those_of_threads() -> None:
    """One waits until told, holds the lock again then, and nobody else has been in meanwhile."""
    seen: list[str] = []
    condition, lock = Condition(), RLock("again")

    def wait() -> None:
        with condition:
            assert condition.wait_for(lambda: "told" in seen)
            seen.append("woken")

    def tell() -> None:
        with lock, lock, condition:
            seen.append("told")
            condition.notify_all()
            point()
            seen.append("still held")

    ran = Scheduler([wait, tell], Replay()).run()
    assert (ran.errors, ran.stuck) == ((None, None), "")
    assert seen == ["told", "still held", "woken"]
    assert not lock.locked()


def test_a_lock_let_go_of_by_another_is_a_fault() -> None:
    locks.faults.clear()
    lock = Lock("mine")
    Scheduler([lock.acquire, lock.release], Replay()).run()
    assert locks.faults == ["mine, held by thread 0, was let go of by thread 1"]
    locks.faults.clear()


def test_points_are_there_while_they_are_placed_and_gone_afterwards() -> None:
    """Every function gets its own code back, and with the points a reset has hundreds of steps."""
    before = statemachine.transaction.ResetTransaction.commit.__code__
    points = Points(Grain("all", every))
    with points.placed():
        assert statemachine.transaction.ResetTransaction.commit.__code__ is not before
    assert statemachine.transaction.ResetTransaction.commit.__code__ is before
    assert not hasattr(statemachine.transaction, "__chaos_point__")
    few = Points(Grain("few", touching("_dispositions")))
    assert {place.module for place in few.places} == {"statemachine.transaction"}
    assert 0 < len(few.places) < len(points.places) / 20


def test_a_reset_in_two_threads_is_switched_and_writers_keep_apart(tmp_path: Path) -> None:
    """With the library patched, its locks are models, a write transaction waits for the other, and the store is a store."""
    modelled, points = Modelled(), Points(Grain("all", every))
    with modelled.on(), Store.open(tmp_path / "s", opener=modelled.opener) as store:
        assert isinstance(store.committer._turn, Lock)
        manager = ResetManager(store)
        for user in ("u", "v"):
            Processor(manager).process(Measurement(user, START, 80.0, "scale"))

        def reset(user: str) -> Callable[[], object]:
            return lambda: manager.perform_reset(user, **BY)

        with points.placed():
            ran = Scheduler([reset("u"), reset("v")], Randomly("1", 1_500)).run()
        assert (ran.stuck, ran.errors) == ("", (None, None))
        assert ran.steps > 500
        assert ran.overlapped
        assert [store.version_range(user) for user in ("u", "v")] == [(1, 2), (1, 2)]
        env: Any = store.engine._env
        locks.faults.clear()
        stuck = Scheduler([lambda: env.begin(write=True), lambda: env.begin(write=True)], Replay()).run().stuck
        assert stuck == "deadlock: thread 1 waits for LMDB's writer mutex"
        env.mutex._holder = None
    assert statemachine.transaction.threading is threading
    assert not Quiet.makers


def test_a_commit_without_the_turn_is_a_fault(tmp_path: Path) -> None:
    modelled = Modelled()
    with modelled.on(), Store.open(tmp_path / "s", opener=modelled.opener) as store:
        locks.faults.clear()
        env: Any = store.engine._env

        def commit() -> None:
            env.begin(write=True).commit()

        Scheduler([commit], Replay()).run()
        assert locks.faults == ["thread 0 committed a write transaction and did not have the writer's turn"]
        locks.faults.clear()
