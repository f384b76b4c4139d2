"""What `resetguard process` prints when it is done, for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from rich.markup import escape
from rich.table import Table

from statemachine.cli.console import plain

TITLES: Final = {
    "accepted": "Accepted", "quarantined": "Quarantined", "duplicate": "Duplicate", "late": "Late", "known": "Known already",
}
RESETS: Final = {
    "rolled_back": "undone: the state before stands", "refused": "by a circuit breaker or the rollout",
    "shadowed": "run by the rollout, nothing kept", "conflicted": "taken anew",
    "interrupted": "by an earlier process's death, settled now",
}
REASONS_SHOWN_MAX: Final = 10


def summary_tables(report: dict[str, Any]) -> Iterator[Table | str]:
    """The tables of one run's report, in the order in which a person would ask."""
    measurements = report["measurements"]
    users = f"{report['users']:,} {'user' if report['users'] == 1 else 'users'}"
    table = _table(f"{measurements['read']:,} measurements of {users}", "Measurements", "this run", "in all")
    for name, title in TITLES.items():
        table.add_row(title, f"{measurements[name]:,}", f"{report['source_totals'][name]:,}")
    yield table
    resets = report["resets"]
    if resets["committed"] or report["held_resets"] or any(resets[name] for name in RESETS):
        yield _resets_table(report)
    if report["quarantine_reasons"]:
        table = _table("Quarantined", "Reason", "count")
        for reason, count in list(report["quarantine_reasons"].items())[:REASONS_SHOWN_MAX]:
            table.add_row(escape(plain(reason)), f"{count:,}")
        yield table
    yield from _closing(report)


def _table(title: str, first: str, *counts: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column(first)
    for name in counts:
        table.add_column(name, justify="right")
    return table


def _resets_table(report: dict[str, Any]) -> Table:
    resets = report["resets"]
    table = _table("Resets", "Outcome", "count")
    table.add_column("")
    kinds = ", ".join(f"{kind} {count:,}" for kind, count in resets["by_kind"].items())
    table.add_row("committed", f"{resets['committed']:,}", kinds)
    for name, meaning in RESETS.items():
        if resets[name]:
            table.add_row(name.replace("_", " "), f"{resets[name]:,}", meaning)
    if report["held_resets"]:
        table.add_row("held back", f"{report['held_resets']:,}", "not plausible on one measurement")
    return table


def _closing(report: dict[str, Any]) -> Iterator[str]:
    accepted, gated = report["nis"]["accepted"], report["nis"]["with_gated"]
    if accepted["count"]:
        yield (f"Filter consistency (NIS, wanted near 1 and 95 % under 3.84): mean {accepted['mean']:.2f}, "
               f"{accepted['share_under_3_84']:.0%} under 3.84 over {accepted['count']:,} measurements; "
               f"with those held at the gate: mean {gated['mean']:.2f}, {gated['share_under_3_84']:.0%}.")
    if report["unknown_sources"]:
        names = ", ".join(f"{escape(plain(name))} ({count:,})" for name, count in list(report["unknown_sources"].items())[:5])
        yield f"Sources without noise figures of their own, taken as a plain scale: {names}."
    measurements = report["measurements"]
    if measurements["read"] and measurements["known"] == measurements["read"]:
        yield "Everything was known already: nothing was changed."
    elif measurements["read"] == 0:
        yield "There was nothing to read."
    rate = measurements["read"] / report["seconds"] if report["seconds"] else 0.0
    yield f"{report['seconds']:.2f} s, {rate:,.0f} measurements/s, durability {report['durability']}."
