"""`python -m benchmarks [NAME ...] [--rows N] [--users N] [--directory D] [--keep D] [--json FILE]`."""

from __future__ import annotations

import argparse
import json
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from benchmarks import process, recovery, resets, sweep
from benchmarks.floor import MEANINGFUL_MS_MAX

if TYPE_CHECKING:
    from collections.abc import Callable

USERS = 2_000
BENCHMARKS: dict[str, Callable[[process.Settings], list[dict[str, Any]]]] = {
    "process": process.process,
    "memory": process.memory,
    "sweep": sweep.sweep,
    "recovery": recovery.recovery,
    "reset": resets.reset,
}


def arguments() -> argparse.Namespace:
    """The command line, parsed; it ends the program when it cannot be."""
    told = "\n".join(f"  {name:10} {(run.__doc__ or '').splitlines()[0]}" for name, run in BENCHMARKS.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measure the library on this machine.",
        epilog=f"benchmarks:\n{told}", formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="benchmarks to run, by default `process`")
    parser.add_argument("--rows", type=int, help="measurements to make, by default as each benchmark has it")
    parser.add_argument("--users", type=int, default=USERS, help=f"people they are of, by default {USERS}")
    parser.add_argument("--directory", type=Path, default=Path(), help="where to work, by default here: it decides which disk")
    parser.add_argument("--keep", type=Path, help="keep the store that `recovery` builds here, and use it again")
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    parsed = parser.parse_args()
    unknown = [name for name in parsed.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"no benchmark is called {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    if min(parsed.users, parsed.rows or 1) < 1:
        parser.error("--rows and --users must be above 0")
    return parsed


def main() -> None:
    """Run what was asked for, print each as a table, and say where its figures mean little."""
    parsed = arguments()
    console = Console()
    settings = process.Settings(parsed.rows, parsed.users, parsed.directory, parsed.keep)
    results = {}
    for name in parsed.names or ["process"]:
        results[name] = BENCHMARKS[name](settings)
        console.print(table(name, results[name]))
        if any(not row.get("ratios_mean_something", True) for row in results[name]):
            console.print(f"The floor exceeds {MEANINGFUL_MS_MAX:g} ms: the disk or the scheduler was measured, and ratios "
                          "to it prove nothing.")
    if parsed.json is not None:
        machine = {"python": platform.python_version(), "system": platform.platform(), "cpus": os.cpu_count()}
        parsed.json.write_text(json.dumps({"machine": machine, "results": results}, indent=2) + "\n", encoding="utf-8")


def table(name: str, rows: list[dict[str, Any]]) -> Table:
    """One line a figure, one column a run."""
    shown = Table("figure", *("" for _ in rows), title=name, show_header=False)
    for figure in rows[0]:
        shown.add_row(figure.replace("_", " "), *(f"{row[figure]:,}" if not isinstance(row[figure], bool) else
                                                  ("yes" if row[figure] else "NO") for row in rows))
    return shown


if __name__ == "__main__":
    main()
