"""`python -m benchmarks [NAME ...] [--quick] [--rows N] [--users N] [--json FILE] [--plot FILE.png] [--doc]`."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from benchmarks import (
    batches,
    counted,
    document,
    dominates,
    events,
    floor,
    growth,
    measurement,
    plot,
    process,
    recovery,
    resets,
    shows,
    sweep,
    tables,
)
from benchmarks.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

BENCHMARKS: dict[str, Callable[[Settings], list[dict[str, Any]]]] = {
    "counted": counted.counted,
    "reset": resets.reset,
    "measurement": measurement.measurement,
    "batches": batches.batches,
    "process": process.process,
    "growth": growth.growth,
    "dominates": dominates.dominates,
    "recovery": recovery.recovery,
    "memory": process.memory,
    "sweep": sweep.sweep,
}
SHOWN = ("counted", "reset", "measurement", "batches", "process", "growth", "dominates")
"""Those on which there are limits, and what dominates them; run where none is named."""
INTERRUPTED = 130


def arguments() -> argparse.Namespace:
    """The command line, parsed; it ends the program when it cannot be."""
    told = "\n".join(f"  {name:12} {_what(run)}" for name, run in BENCHMARKS.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measure the library on this machine.",
        epilog=f"benchmarks:\n{told}", formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"benchmarks to run, by default {' '.join(SHOWN)}")
    parser.add_argument("--quick", action="store_true", help="the smallest sizes, to see that all of it runs: no verdicts")
    parser.add_argument("--rows", type=int, help="measurements, resets or rounds, by default as each benchmark has it")
    parser.add_argument("--users", type=int, help="people they are of, by default as each benchmark has it")
    parser.add_argument("--directory", type=Path, default=Path(), help="where to work, by default here: it decides which disk")
    parser.add_argument("--keep", type=Path, help="keep the stores that `growth` and `recovery` build here, and use them again")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file as well")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw them, too; needs matplotlib")
    parser.add_argument("--doc", action="store_true", help="bring docs/performance.md up to date with them")
    parsed = parser.parse_args()
    unknown = [name for name in parsed.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"no benchmark is called {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    if any(size is not None and size < 1 for size in (parsed.users, parsed.rows)):
        parser.error("--rows and --users must be above 0")
    for option, file in (("--json", parsed.json), ("--plot", parsed.plot)):
        if file is not None and not file.absolute().parent.is_dir():
            parser.error(f"{option}: there is no directory {file.absolute().parent}")
    if not parsed.directory.is_dir():
        parser.error(f"--directory: there is no directory {parsed.directory}")
    return parsed


def main() -> None:
    """Run what was asked for, print each as a table, and say where its figures mean little."""
    parsed = arguments()
    console = Console()
    settings = Settings(parsed.rows, parsed.users, parsed.directory.resolve(), parsed.keep, parsed.quick)
    results: dict[str, Any] = {}
    interrupted = False
    try:
        _run_all(parsed.names or SHOWN, settings, results, console)
    except KeyboardInterrupt:
        console.print("interrupted: what follows is of those that had ended")
        interrupted = True
    _report(parsed, results, console)
    if interrupted:
        sys.exit(INTERRUPTED)


def _run_all(names: Sequence[str], settings: Settings, results: dict[str, Any], console: Console) -> None:
    for name in names:
        console.print(f"[bold]{name}[/bold]: {_what(BENCHMARKS[name])}", highlight=False)
        result = results[name] = run(BENCHMARKS[name], settings)
        for head, lines in tables.cells(tables.refused(result["rows"], result["floor_p50_ms"])):
            console.print(tables.terminal(head, lines))
        console.print(f"floor: 4 KiB kept in {result['floor_p50_ms']:.3f} ms (p99 {result['floor_p99_ms']:.3f}); "
                      f"took {result['took_s']:.0f} s", highlight=False)
        if result["floor_p50_ms"] > floor.MEANINGFUL_MS_MAX:
            console.print(f"The floor exceeds {floor.MEANINGFUL_MS_MAX:g} ms: the disk or the scheduler was measured, and "
                          "ratios of durable times would prove nothing.", highlight=False)
        console.print()


def _report(parsed: argparse.Namespace, results: dict[str, Any], console: Console) -> None:
    told = [one for one, limit in zip(shows.judged(results), shows.LIMITS, strict=True) if limit.benchmark in results]
    if told:
        console.print(tables.terminal(*tables.judgements(told), title="What the figures must show"))
    if parsed.json is not None:
        parsed.json.write_text(json.dumps({"results": results, "shows": [one._asdict() for one in told]}, indent=2) + "\n",
                               encoding="utf-8")
    if parsed.plot is not None:
        try:
            if not plot.draw(results, parsed.plot):
                console.print("nothing to draw: --plot shows reset, batches and growth")
        except ImportError as missing:
            console.print(str(missing), highlight=False, markup=False)
    if parsed.doc:
        document.update(results, list(BENCHMARKS))


def run(benchmark: Callable[[Settings], list[dict[str, Any]]], settings: Settings) -> dict[str, Any]:
    """One benchmark with the floor before and after it, of which the slower counts where its rounds have none."""
    began = time.perf_counter()
    before = floor.measure(settings.directory)
    with (tempfile.TemporaryDirectory(prefix="benchmark-", dir=settings.directory) as folder,
          events.as_service(Path(folder) / "events.jsonl")):
        rows = benchmark(settings)
    found = floor.of_run(rows, before, floor.measure(settings.directory))
    return {
        "what": _what(benchmark), "date": f"{datetime.now(UTC):%Y-%m-%d}", "machine": machine(), "quick": settings.quick,
        "floor_p50_ms": round(found.p50_ms, 4), "floor_p99_ms": round(found.p99_ms, 4),
        "took_s": round(time.perf_counter() - began, 1), "rows": rows,
    }


def machine() -> dict[str, Any]:
    """What the figures are of."""
    return {"python": platform.python_version(), "system": f"{platform.system()} {platform.release()}", "processor": _processor(),
            "cpus": os.cpu_count(), "load": round(os.getloadavg()[0], 1)}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def _what(benchmark: Callable[[Settings], list[dict[str, Any]]]) -> str:
    return (benchmark.__doc__ or "").splitlines()[0]


if __name__ == "__main__":
    main()
