"""`measurement`: what the guard adds to one bare filter update in memory, and one durable measurement in groups of 1 to 1000."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lmdb

from benchmarks import floor, rounds, scene
from benchmarks.twins import Twins
from statemachine import Measurement, Processor, ResetManager, Store, kalman
from statemachine.processor import SourceRow
from statemachine.state import Kalman
from statemachine.store import StoreLimits
from statemachine.store.engine import LMDB_MAJOR

if TYPE_CHECKING:
    from benchmarks.settings import Settings

GROUPS = (1, 10, 100, 1_000)
USERS = 1_000
BLOCK = 1_000
BLOCKS = 60
MEASUREMENTS = 6_000
DELAY_MS = 2
PACED = 3_000
PACE_S = 0.0005


def measurement(settings: Settings) -> list[dict[str, Any]]:
    """The guard beside a bare update in memory; durable groups beside raw LMDB; what waiting for a group adds."""
    users = settings.users or (200 if settings.quick else USERS)
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=settings.directory) as folder:
        place = Path(folder)
        scene.fill(place / "store", users)
        rows = [in_memory(place / "store", users, 10 if settings.quick else BLOCKS)]
        total = settings.rows or (200 if settings.quick else MEASUREMENTS)
        rows += [in_groups(place, users, group, max(3, total // group if group > 1 else total // 10)) for group in GROUPS]
        rows.append(waiting(place / "store", users, 400 if settings.quick else PACED))
    return rows


def in_memory(path: Path, users: int, blocks: int) -> dict[str, Any]:
    """Three ways to take one ordinary reading, in blocks by turns, on the processor's own time.

    bare: `kalman.predict` and `kalman.update` on floats, and the new filter as a value.  step: the whole new state, that is
    filter, buffer, counters and adaptation, unchecked.  guarded: what `Processor` does for an ordinary measurement but for the
    store: the policy's question whether it needs a decision, the step, and the rules.
    """
    with Store.open(path, readonly=True) as store:
        manager, estimator = ResetManager(store), store.estimator
        loaded = [found for user in range(min(users, BLOCK)) if (found := store.load(scene.name(user))) is not None]
        states = [found.state for found in loaded]
        resets_us = [head.reset_us for user in range(len(states)) if (head := store.head(scene.name(user))) is not None]
        readings = [estimator.reading(m) for m in scene.days(users, scene.VERSIONS, 1)][:len(states)]
        work = list(zip(states, resets_us, readings, strict=True)) * (BLOCK // len(states))
        ordinary, validate, step = manager.ordinary, store.validator.validate, estimator.step

        def bare(_: int) -> None:
            predict, update = kalman.predict, kalman.update
            for state, _reset_us, reading in work:
                k = state.kalman
                x0, x1, p00, p01, p11 = update(predict(k, state.adaptation, reading.at_us, reading.r), reading.values[0])
                Kalman(x0, x1, p00, p01, p01, p11, k.q0, k.q1, k.r, reading.at_us, k.dt_days_max)

        def stepped(_: int) -> None:
            for state, _reset_us, reading in work:
                step(state, reading)

        def guarded(_: int) -> None:
            for state, reset_us, reading in work:
                if ordinary(state, reset_us, reading, "scale") is None or validate(step(state, reading), None, state):
                    message = "a reading of the benchmark is no ordinary one"
                    raise RuntimeError(message)

        taken = rounds.interleaved({"bare": bare, "step": stepped, "guarded": guarded}, blocks, warm=3)
    us = {name: rounds.p50(of.cpu_ms) * 1e3 / len(work) for name, of in taken.items()}
    return {
        "what": "in memory", "durable": False, "bare_update_us": round(us["bare"], 3), "whole_step_us": round(us["step"], 3),
        "guarded_us": round(us["guarded"], 3), "added_ratio": round((us["guarded"] - us["bare"]) / us["bare"], 3),
        "added_to_step_ratio": round((us["guarded"] - us["step"]) / us["step"], 3),
    }


def in_groups(place: Path, users: int, group: int, times: int) -> dict[str, Any]:
    """Groups of so many, durable, beside the same records put by bare LMDB in one transaction a group, and beside one put each.

    `raw_put`: a bare LMDB put for each measurement, of as many bytes as all its records have, one transaction a group.
    """
    twins = Twins(place / f"group-{group}", place / "store", durability="group")
    plain = lmdb.open(str(place / f"plain-{group}"), map_size=1 << 34, max_spare_txns=16, lib_version=LMDB_MAJOR)
    ours, twin = Processor(ResetManager(twins.ours)), Processor(ResetManager(twins.twin))
    readings = (m for day in itertools.count(scene.VERSIONS) for m in _scattered(users, day))
    batch: list[Measurement] = []
    changes: list[tuple[bytes, bytes | None]] = []
    puts: list[tuple[bytes, bytes]] = []

    def prepare(number: int) -> None:
        batch[:] = itertools.islice(readings, group)
        twin.process_batch(batch)
        changes[:] = twins.changes()
        data = b"".join(value for _, value in changes if value)
        share = len(data) // group
        puts[:] = [(f"{m.user}/{number:09d}/{at}".encode(), data[at * share:(at + 1) * share]) for at, m in enumerate(batch)]

    def guarded(_: int) -> None:
        if any(outcome.status != "accepted" for outcome in ours.process_batch(batch)):
            message = "a reading of the benchmark was not accepted"
            raise RuntimeError(message)

    def put(_: int) -> None:
        with plain.begin(write=True) as txn:
            for key, value in puts:
                txn.put(key, value)

    probe = floor.Probe(place)
    try:
        taken = rounds.interleaved({"guarded": guarded, "same": lambda _: twins.commit(changes), "put": put, "floor": probe.once},
                                   times, warm=2, before=prepare)
    finally:
        probe.close()
        twins.close()
        plain.close()
    us = {name: rounds.p50(of.wall_ms) * 1e3 / group for name, of in taken.items()}
    return {
        "what": f"group of {group}", "durable": True, "guarded_us": round(us["guarded"], 2),
        "guarded_cpu_us": round(rounds.p50(taken["guarded"].cpu_ms) * 1e3 / group, 2),
        "raw_records_us": round(us["same"], 2), "raw_put_us": round(us["put"], 2),
        "records_ratio": round(us["guarded"] / us["same"], 3), "put_ratio": round(us["guarded"] / us["put"], 3),
        "group_p99_ms": round(rounds.percentile(taken["guarded"].wall_ms, 99), 3),
        **floor.told(taken["floor"].wall_ms),
    }


def _scattered(users: int, day: int) -> Iterator[Measurement]:
    """A day's readings, each user far from the one before."""
    day_of = list(scene.days(users, day, 1))
    return (day_of[number * scene.USERS_SPREAD % users] for number in range(users))


def waiting(path: Path, users: int, many: int) -> dict[str, Any]:
    """Measurements that arrive at a steady pace, from arrival to the report that they are durable; and `process` one by one.

    The last group is flushed at its own time, as another measurement would have it.
    """
    limits = StoreLimits(group_delay_ms=DELAY_MS)
    with Store.open(path, durability="group", limits=limits) as store:
        processor = Processor(ResetManager(store))
        arrived: list[float] = []
        waited_ms: list[float] = []

        def durable(_: int, __: object) -> None:
            waited_ms.append((time.perf_counter() - arrived[len(waited_ms)]) * 1e3)

        intake = processor.intake([(None, "")], durable)
        readings = (m for day in itertools.count(500) for m in _scattered(users, day))
        began = time.perf_counter()
        for number in range(many):
            due = began + number * PACE_S
            while (left := due - time.perf_counter()) > 0:
                time.sleep(left)
            arrived.append(time.perf_counter())
            intake.add(0, SourceRow(0, next(readings)))
        intake.flush()
        probe = floor.Probe(path)
        singles: dict[str, rounds.Once] = {"alone": lambda _: processor.process(next(readings)), "floor": probe.once}
        taken = rounds.interleaved(singles, min(many, 500), warm=20)
        probe.close()
    alone = taken["alone"]
    return {
        "what": f"group, delay {DELAY_MS} ms", "durable": True, "measurements_per_s": round(1 / PACE_S),
        "wait_p50_ms": round(rounds.p50(waited_ms), 3), "wait_p99_ms": round(rounds.percentile(waited_ms, 99), 3),
        "alone_p50_ms": round(rounds.p50(alone.wall_ms), 3), "alone_p99_ms": round(rounds.percentile(alone.wall_ms, 99), 3),
        "alone_cpu_p99_ms": round(rounds.percentile(alone.cpu_ms, 99), 3),
        **floor.told(taken["floor"].wall_ms),
    }
