"""What the figures must show: each limit, where its figure is found in the results, and whether it was met.

A limit on what a disk takes is not judged where the floor of that run exceeds 1 ms, none on time where only the smallest sizes
were run, and none on a size that was not run.  What is not judged says why.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from benchmarks.floor import MEANINGFUL_MS_MAX

Rows = list[dict[str, Any]]
USERS_LARGE = 200_000
USERS_LARGEST = 1_000_000
KIB = 1024


class Unmeasured(Exception):
    """The figure is not in these results; the message says why."""


class Limit(NamedTuple):
    """`of` takes the rows of a benchmark; raises Unmeasured.  `disk`: no verdict over a slow floor.  `timed`: none if quick."""

    what: str
    limit: str
    benchmark: str
    of: Callable[[Rows], float]
    holds: Callable[[float], bool]
    disk: bool = True
    timed: bool = True
    unit: str = ""


class Judged(NamedTuple):
    """A limit and what became of it: "met", "not met", or "not measured" with the reason."""

    what: str
    limit: str
    measured: str
    verdict: str


def _row(rows: Rows, **wanted: Any) -> dict[str, Any]:
    for row in rows:
        if all(row.get(key) == value for key, value in wanted.items()):
            return row
    message = f"{next(iter(wanted.values()), 'it')} was not run"
    raise Unmeasured(message)


def _of(figure: str, **wanted: Any) -> Callable[[Rows], float]:
    def of(rows: Rows) -> float:
        row = _row(rows, **wanted)
        if row.get(figure) is None:
            raise Unmeasured(str(row.get("what", "it was refused")).removeprefix("not run: "))
        return float(row[figure])
    return of


def _at(users: int, of: Callable[[dict[str, Any]], float]) -> Callable[[Rows], float]:
    """Of the row with at least so many users."""
    def found(rows: Rows) -> float:
        for row in rows:
            if _users(row) >= users:
                return of(row)
        message = f"needs --users {users}"
        raise Unmeasured(message)
    return found


def _users(row: dict[str, Any]) -> int:
    first = str(row.get("what", "")).split(" ", 1)
    return int(first[0]) if len(first) > 1 and first[1] == "users" else int(row.get("users", 0))


def _at_most(most: float) -> Callable[[float], bool]:
    return lambda value: value <= most


def _at_least(least: float) -> Callable[[float], bool]:
    return lambda value: value >= least


def _contestant(name: str, *, durable: bool = True) -> Callable[[Rows], float]:
    return _of("ratio", contestant=name, durable=durable)


def _guarded_to_raw(rows: Rows) -> float:
    return 1.0 / _contestant("raw LMDB")(rows)


def _first_read(row: dict[str, Any]) -> float:
    return float(row["open_for_reading_ms"] + row["first_verified_read_ms"])


def _apart(what: str) -> Callable[[Rows], float]:
    return lambda rows: _of("apart_bytes_a_user", what=what)(rows) / KIB


LIMITS = (
    Limit("guarded durable reset / raw LMDB commit of the same records", "<= 1.25", "reset", _guarded_to_raw, _at_most(1.25)),
    Limit("first sketch / guarded durable reset", ">= 3", "reset", _contestant("first sketch"), _at_least(3.0)),
    Limit("the same without fsync", ">= 15", "reset", _contestant("first sketch", durable=False), _at_least(15.0), disk=False),
    Limit("DBOS / guarded", ">= 15", "reset", _contestant("DBOS"), _at_least(15.0)),
    Limit("pickle files / guarded", ">= 2", "reset", _contestant("pickle file"), _at_least(2.0)),
    Limit("ZODB / guarded", ">= 1.0", "reset", _contestant("ZODB"), _at_least(1.0)),
    Limit("batches of 1000 resets: raw SQLite FULL, one transaction / ours", ">= 1.5", "batches",
          _of("sqlite_ratio", what="groups of 1000"), _at_least(1.5)),
    Limit("guard added to a bare scalar update, in memory", "<= 1.00", "measurement", _of("added_ratio", what="in memory"),
          _at_most(1.0), disk=False),
    Limit("guarded durable measurement in groups of 1000 / raw LMDB put", "<= 2.0", "measurement",
          _of("put_ratio", what="group of 1000"), _at_most(2.0)),
    Limit("pwrites a guarded reset / a raw commit of the same records", "<= 1.1", "counted", _of("pwrites_ratio"), _at_most(1.1),
          disk=False, timed=False),
    Limit("bytes a guarded reset / a raw commit of the same records", "<= 1.1", "counted", _of("bytes_ratio"), _at_most(1.1),
          disk=False, timed=False),
    Limit("fsyncs a guarded reset / a raw commit", "= 1", "counted", _of("fsyncs_ratio"), lambda v: v == 1.0,
          disk=False, timed=False),
    Limit("pwrites a reset at 200k users", "<= 11", "counted", _at(USERS_LARGE, lambda row: float(row["pwrites_a_reset"])),
          _at_most(11.0), disk=False, timed=False),
    Limit("KB written a reset at 200k users", "<= 44", "counted", _at(USERS_LARGE, lambda row: row["bytes_a_reset"] / KIB),
          _at_most(44.0), disk=False, timed=False, unit=" KB"),
    Limit("process from CSV, durable in groups, one core", ">= 40,000/s", "process", _of("measurements_per_s"),
          _at_least(40_000.0), disk=False, unit="/s"),
    Limit("the plain loop's time / that of process", ">= 0.15", "process", _of("to_loop_ratio"), _at_least(0.15),
          disk=False),
    Limit("added latency a measurement, p99, group with delay 2 ms", "< 5 ms", "measurement",
          _of("wait_p99_ms", what="group, delay 2 ms"), lambda v: v < 5.0, unit=" ms"),  # noqa: PLR2004 - a limit
    Limit("added processor time a measurement, p99", "< 1 ms", "measurement", _of("alone_cpu_p99_ms", what="group, delay 2 ms"),
          lambda v: v < 1.0, disk=False, unit=" ms"),
    Limit("growth exponent of a durable reset, to the largest size", "<= 0.12", "growth",
          _of("reset_exponent", what="exponents"), _at_most(0.12)),
    Limit("growth exponent of an open for writing", "<= 0.05", "growth", _of("open_exponent", what="exponents"), _at_most(0.05)),
    Limit("1M users after kill -9: open and first verified read", "<= 50 ms", "growth", _at(USERS_LARGEST, _first_read),
          _at_most(50.0), disk=False, unit=" ms"),
    Limit("1M users after kill -9: a new process serves", "<= 1 s", "growth",
          _at(USERS_LARGEST, lambda row: float(row["new_process_serving_ms"])), _at_most(1_000.0), unit=" ms"),
    Limit("1M users, every record verified by doctor", "<= 15 s", "growth",
          _at(USERS_LARGEST, lambda row: float(row["doctor_seconds"])), _at_most(15.0), disk=False, unit=" s"),
    Limit("KB on disk a user: 10 versions, 3 resets, steps and identities apart", "<= 6", "growth",
          _apart("10 versions, 3 resets"), _at_most(6.0), disk=False, unit=" KB"),
    Limit("the same of 10 versions that are whole states", "<= 6", "growth",
          _apart("10 images"), _at_most(6.0), disk=False, unit=" KB"),
)


def judged(results: dict[str, Any]) -> list[Judged]:
    """Every limit in turn; `results` by benchmark: its rows, its floor's median in ms, and whether it was quick."""
    return [judge(limit, results.get(limit.benchmark)) for limit in LIMITS]


def judge(limit: Limit, result: dict[str, Any] | None) -> Judged:
    """One limit by the result of its benchmark; None where that was not run."""
    if result is None:
        return Judged(limit.what, limit.limit, "-", f"not measured: `{limit.benchmark}` was not run")
    try:
        value = limit.of(result["rows"])
    except Unmeasured as why:
        return Judged(limit.what, limit.limit, "-", f"not measured: {why}")
    measured = f"{value:,.0f}{limit.unit}" if abs(value) >= 1_000 else f"{value:.3g}{limit.unit}"  # noqa: PLR2004
    if limit.disk and result["floor_p50_ms"] > MEANINGFUL_MS_MAX:
        return Judged(limit.what, limit.limit, "-", f"not measured: the floor was {result['floor_p50_ms']:.2f} ms")
    if limit.timed and result["quick"]:
        return Judged(limit.what, limit.limit, measured, "not measured: smallest sizes")
    return Judged(limit.what, limit.limit, measured, "met" if limit.holds(value) else "NOT MET")
