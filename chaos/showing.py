"""What a person sees of a campaign: the bar while it runs, the survival matrix when it is over."""

from __future__ import annotations

import os
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from chaos.campaign import Finding, Ran
from chaos.suite import Suite

OUT: Final = Console(highlight=False, emoji=False)
ERR: Final = Console(stderr=True, highlight=False, emoji=False)
GAP: Final = 2
FAULT_WIDE_MIN: Final = 26
"""A fault's name may go over lines of no fewer characters; below that the outcomes are a list and no table."""
FINDINGS_SHOWN: Final = 5


class Bar:
    """The progress of a campaign on standard error: a bar on a terminal, else a line as each suite ends."""

    def __init__(self, console: Console, budget_s: float | None = None, workers: int = 1) -> None:
        self._console = console
        self._workers = workers
        self._budget_s = budget_s
        self._began = time.monotonic()
        self._told: set[str] = set()
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(bar_width=24), TaskProgressColumn(), TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[trying]}"), console=console, transient=True) if console.is_terminal else None
        self._task = None if self._progress is None else self._progress.add_task("chaos", total=1.0, trying="")

    def __enter__(self) -> Bar:
        """Show it."""
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Take it away."""
        if self._progress is not None:
            self._progress.stop()

    def watch(self, ran: list[Ran], trying: str) -> None:
        """Show how far the suites have come: by points, or by the time where a budget ends it."""
        able = [one for one in ran if not one.unavailable]
        done = sum(min(1.0, one.fired / max(one.floor, 1)) for one in able) / max(len(able), 1)
        if self._budget_s:
            done = min(1.0, max(done, (time.monotonic() - self._began) / self._budget_s))
        now = next((one for one in reversed(able) if one.seconds), able[0] if able else None)
        if self._progress is not None and self._task is not None and now is not None:
            shown = _short(trying, self._console.width - 66)
            self._progress.update(self._task, completed=done, description=now.suite, trying=shown)
        elif self._progress is None:
            for one in able:
                if one.over == self._workers and one.suite not in self._told:
                    self._told.add(one.suite)
                    self._console.print(f"{one.suite}: {one.fired:,} faults, {one.broken} broke a promise", markup=False)


def _short(text: str, width: int) -> str:
    return text if len(text) <= width else text[:max(width - 3, 0)] + "..." if width > len("...") else ""


def listing(suites: Mapping[str, Suite]) -> RenderableType:
    """Each suite with what it does, how many faults its short plan has at least, and why it cannot run here."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("suite", no_wrap=True)
    table.add_column("faults", justify="right")
    table.add_column("what it does", overflow="fold")
    for name, suite in suites.items():
        told = Text(suite.summary)
        if why := suite.unavailable():
            told.append(f"\ncannot run here: {why}", style="red")
        table.add_row(name, f"{suite.floor:,}", told)
    return table


def matrix(ran: Sequence[Ran], width: int) -> Iterator[RenderableType]:
    """The survival matrix, suite by suite: each fault with how often it came to each outcome."""
    for one in ran:
        yield Text(f"{one.suite}: {_summary(one)}", style="bold")
        if one.outcomes:
            yield _wide(one, width) or _narrow(one)
        for fault, why in sorted(one.untried.items()):
            yield Text(f"  NOT TRIED: {fault}: " + "; ".join(f"{count} {reason}" for reason, count in why.items()), style="red")
        for failure in one.failures:
            yield Text(f"  FAILED: {failure}", style="red")
        yield Text("")


def _summary(one: Ran) -> str:
    if one.unavailable:
        return f"NOT RUN: {one.unavailable}"
    unfired = f", {one.unfired:,} that did not fire" if one.unfired else ""
    return f"{one.fired:,} faults{unfired}, {one.broken:,} broke a promise, {one.seconds:.0f} s"


def _wide(one: Ran, width: int) -> RenderableType | None:
    """A table of outcomes in columns; None where a word of it would have to be broken."""
    columns = sorted({outcome for outcomes in one.outcomes.values() for outcome in outcomes})
    counts = {c: [f"{outcomes[c]:,}" if c in outcomes else "" for _, outcomes in sorted(one.outcomes.items())] for c in columns}
    widths = {c: max(map(len, (*c.split(), *counts[c]))) for c in columns}
    longest = max(map(len, ("fault", *one.outcomes)))
    words = max(len(word) for fault in ("fault", *one.outcomes) for word in fault.split())
    left = min(longest, width - sum(wide + GAP for wide in widths.values()))
    if left < max(words, min(longest, FAULT_WIDE_MIN)):
        return None
    for _ in range(width - left - sum(wide + GAP for wide in widths.values())):  # what is left makes the tallest heading lower
        widths[max(columns, key=lambda c: len(textwrap.wrap(c, widths[c])))] += 1
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), collapse_padding=True)
    table.add_column("fault", width=left)
    for column in columns:
        table.add_column(Text(column), justify="right", width=widths[column])
    for number, fault in enumerate(sorted(one.outcomes)):
        table.add_row(Text(fault), *(counts[c][number] for c in columns))
    return table


def _narrow(one: Ran) -> RenderableType:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(overflow="fold")
    table.add_column(justify="right")
    for fault, outcomes in sorted(one.outcomes.items()):
        table.add_row(Text(fault, style="bold"), Text(f"{sum(outcomes.values()):,}", style="bold"))
        for outcome, count in sorted(outcomes.items()):
            table.add_row(Text(f"  {outcome}"), f"{count:,}")
    return table


def findings(found: Sequence[tuple[Finding, str]]) -> RenderableType:
    """What broke, each with the promise, the place, and the command that does it again."""
    blocks: list[RenderableType] = []
    for finding, path in found[:FINDINGS_SHOWN]:
        blocks.append(Text(f"broken at {finding.verdict.point}", style="red"))
        blocks += [Text(f"  {violation}") for violation in finding.verdict.violations[:3]]
        blocks.append(Text(f"  python -m chaos replay {path}", style="bold"))
    if len(found) > FINDINGS_SHOWN:
        blocks.append(Text(f"and {len(found) - FINDINGS_SHOWN} more findings in {os.path.dirname(found[0][1])}"))  # noqa: PTH120
    return Group(*blocks)
