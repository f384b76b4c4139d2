"""`doctor`: every record and the surroundings of a store, a line for each check, a remedy for each finding.

It opens the store for reading and changes nothing: what a dead process left unsettled is told, and left to the next opening
for writing; with `--bench` it writes to scratch files beside the store, which have lost their names by then.  A look at another
owner's file of marks takes the writer's turn for that moment, as no owner can then begin.
"""

from __future__ import annotations

import os
from collections import Counter
from itertools import chain
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from statemachine.alerts import broken, tell
from statemachine.cli import console
from statemachine.cli.console import Column
from statemachine.store import checkup, disk, surroundings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from statemachine.store import Store
    from statemachine.store.careful import Finding
    from statemachine.store.checkup import Checkup

FINDINGS_SHOWN_MAX: Final = 1_000
"""Of each check; all are counted.  A store with more is restored from a backup, not read line by line."""


def register(app: typer.Typer) -> None:
    """Make the command here part of `app`."""
    app.command()(doctor)


def doctor(
    store: console.StoreOption, json: console.JsonOption = False,
    quarantine_days: Annotated[int | None, typer.Option(min=0, show_default=False, metavar="DAYS", help=(
        "Warn where a measurement kept aside is older, by its own instant; without it the age is not judged."))] = None,
    processes: Annotated[int | None, typer.Option(min=1, show_default=False, metavar="N", help=(
        "How many processes may look at a large store at once, by default one for each processor."))] = None,
    bench: Annotated[bool, typer.Option("--bench", help=(
        "Measure the disk under the store too, in scratch files beside it, and advise a durability for it."))] = False,
) -> None:
    """Examine a store, changing nothing: each record, the audit chain, the disk; 1 where anything is found, 3 if it cannot open.

    Example: resetguard doctor --store ./state --quarantine-days 90 --bench
    """
    with console.command(), console.reading(store) as opened:
        started_us = opened.clock.monotonic_us()
        records = checkup.Checkup(opened, processes=processes or _processors())
        counts: Counter[str] = Counter()
        found: list[dict[str, Any]] = []
        for finding in _all(opened, records, quarantine_days):
            counts[finding.check] += 1
            if counts[finding.check] <= FINDINGS_SHOWN_MAX:
                found.append(finding._asdict())
        broke = next((one for one in found if one["check"] == "audit chain"), None)
        if broke is not None:
            tell(opened, broken(opened, 0, broke["problem"]))
        judged = (name for name in (*checkup.CHECKS, *surroundings.CHECKS)
                  if name != "quarantine age" or quarantine_days is not None)
        checks = [{"check": name, "findings": counts[name], "looked_at": records.looked.get(name)} for name in judged]
        seconds = (opened.clock.monotonic_us() - started_us) / 1e6
        measured = _measured(opened) if bench else {}
        if json:
            console.print_json({"checks": checks, "findings": found, "seconds": round(seconds, 3), **measured})
        else:
            _print(checks, found, seconds)
            _print_measured(measured)
        if found:
            raise typer.Exit(console.FINDINGS)


def _processors() -> int:
    """Those that this process may run on, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _all(store: Store, records: Checkup, quarantine_days: int | None) -> Iterator[Finding]:
    yield from chain(records.run(), surroundings.examine(store))
    if quarantine_days is not None:
        yield from surroundings.quarantine_age(records.oldest_kept_us, store.clock.now_us(), quarantine_days)


def _measured(store: Store) -> dict[str, Any]:
    """What the disk takes, and what that advises, as `--json` has it."""
    page, commit = disk.floor(store.path, store.clock), disk.lmdb_commit(store.path, store.clock)
    advice = disk.advise(store.path, page, commit)
    measured = [{"what": what, "percentile": percentile, "duration_us": round(us)}
                for what, taken in (("page written and synced", page), ("LMDB commit", commit))
                for percentile, us in ((50, taken.p50_us), (99, taken.p99_us))]
    return {"bench": {"measured": measured, "advice": advice._asdict()}}


def _print_measured(measured: dict[str, Any]) -> None:
    for bench in measured.values():
        console.OUT.print()
        console.print_rows(bench["measured"], (
            Column("on this disk", lambda row: row["what"]),
            Column("percentile", lambda row: row["percentile"], right=True),
            Column("milliseconds", lambda row: f"{row['duration_us'] / 1e3:.3f}", right=True),
        ), json=False, empty="")
        advice = bench["advice"]
        console.OUT.print()
        console.print_record((("durability", advice["durability"]), ("group_delay_ms", advice["group_delay_ms"]),
                              ("why", " ".join(advice["reasons"]))), title="advice for this disk")


def _print(checks: list[dict[str, Any]], found: list[dict[str, Any]], seconds: float) -> None:
    console.print_rows(checks, (
        Column("check", lambda row: row["check"]),
        Column("looked at", lambda row: None if row["looked_at"] is None else f"{row['looked_at']:,}", right=True),
        Column("result", lambda row: f"{row['findings']} FOUND" if row["findings"] else "ok"),
    ), json=False, empty="")
    for finding in found:
        console.OUT.print()
        console.print_record((("problem", finding["problem"]), ("remedy", finding["remedy"])),
                             title=f"{finding['level']}: {finding['subject']} ({finding['check']})")
    hidden = sum(row["findings"] for row in checks) - len(found)
    more = f"; {hidden} more are not shown" if hidden else ""
    console.say(f"{sum(row['findings'] for row in checks)} findings in {seconds:.1f} s{more}")
