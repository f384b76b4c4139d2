"""Results as tables: for a terminal of 80 columns and for a document, from the same cells."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from benchmarks.floor import FIGURES, MEANINGFUL_MS_MAX

if TYPE_CHECKING:
    from benchmarks.shows import Judged

HIDDEN = frozenset({"durable", *FIGURES})
NAMES = ("contestant", "what")
LINES_MIN = 8
Cells = tuple[list[str], list[list[str]]]
SHOWS = ["what", "limit", "measured", "verdict"]


def refused(rows: list[dict[str, Any]], floor_p50_ms: float) -> list[dict[str, Any]]:
    """The rows with no ratio of what is durable where the floor is too slow for one to mean anything."""
    if floor_p50_ms <= MEANINGFUL_MS_MAX:
        return rows
    return [{figure: None if "ratio" in figure and row.get("durable", False) else value for figure, value in row.items()}
            for row in rows]


def cells(rows: list[dict[str, Any]]) -> Iterator[Cells]:
    """A table for each run of rows with the same figures: its head and its lines.

    Few rows are columns, with a line for each figure; many are lines.
    """
    for figures, group in groupby(rows, key=tuple):
        alike = list(group)
        shown = [figure for figure in figures if figure not in HIDDEN]
        if len(alike) >= LINES_MIN:
            both = len({row.get("durable") for row in alike}) > 1
            head = [*shown, "durable"] if both and "durable" in figures else shown
            yield [_words(figure) for figure in head], [[said(row[figure]) for figure in head] for row in alike]
            continue
        name = next((figure for figure in NAMES if figure in shown), None)
        lines = [[_words(figure), *(said(row[figure]) for row in alike)] for figure in shown if figure != name]
        yield ["", *(str(row[name]) if name else "" for row in alike)], lines


def judgements(judged: list[Judged]) -> Cells:
    """Every limit with what was measured."""
    return SHOWS, [list(one) for one in judged]


def terminal(head: list[str], lines: list[list[str]], title: str = "") -> Table:
    """For people: the first column folds, figures stand to the right."""
    table = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for number, name in enumerate(head):
        text = number == 0 or name in {*SHOWS, *NAMES}
        table.add_column(name, justify="left" if text else "right", overflow="fold")
    for line in lines:
        table.add_row(*line)
    return table


def markdown(head: list[str], lines: list[list[str]]) -> str:
    """For a document."""
    rule = ["---", *("---" if name in {*SHOWS, *NAMES} else "---:" for name in head[1:])]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *lines))


def said(value: Any) -> str:
    """A figure as it is shown."""
    if value is None:
        return "refused"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int | float) else str(value)


def _words(figure: str) -> str:
    return figure.replace("_", " ")
