"""docs/performance.md, made from results: nobody types a figure.

Its figures lie beside it in docs/performance.json, so that the document can be made anew, and a test compares.  What stands
between the two marks is written by hand, and kept.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks import shows, tables

DOCS = Path(__file__).parents[1] / "docs"
DOCUMENT, FIGURES = DOCS / "performance.md", DOCS / "performance.json"
BY_HAND, END = "<!-- by hand -->", "<!-- end -->"
HEAD = """\
# Performance

Written by `python -m benchmarks --doc`; `docs/performance.json` has the same figures for programs. Each figure of a durable run
stands beside the floor of the same run, a 4 KiB write and fdatasync in the same directory: where that takes over 1 ms the disk or
the scheduler is what is measured, and ratios are refused. Contestants are taken in turns, medians are compared, and every one of
them writes the records of a real guarded reset, new in each round.

## What the figures must show
"""
REPEAT = """\
## How to repeat it

```console
$ pip install -e '.[bench]'
$ python -m benchmarks                                  # all of it, at full size: long, and gigabytes
$ python -m benchmarks --quick                          # the same at the smallest sizes: a minute or two, no verdicts
$ python -m benchmarks counted --users 200000
$ python -m benchmarks growth --users 1000000 --keep DIR  # the stores are kept in DIR and used again
$ python -m benchmarks reset --doc                      # brings this document up to date, of what was run
```

Leave the machine alone meanwhile: with every core busy, a sync waits for a tick of the scheduler. `--directory` says on
which disk.
`resetguard doctor --bench` measures the disk of a store, and advises a durability for it.
"""


def written(results: dict[str, Any], by_hand: str) -> str:
    """The document of these results, by benchmark."""
    parts = [HEAD, tables.markdown(*tables.judgements(shows.judged(results))), "",
             "## What dominates", "", BY_HAND, by_hand.strip("\n"), END, "", REPEAT, "## The figures", ""]
    for name, result in results.items():
        machine = result["machine"]
        size = " The smallest sizes: only to see that it runs." if result["quick"] else ""
        parts += [f"### {name}", "", f"{result['what']}", "",
                  (f"{result['date']}, {machine['system']}, {machine['processor']}, {machine['cpus']} processors, Python "
                   f"{machine['python']}, load {machine['load']} at the end. Floor p50 {result['floor_p50_ms']:.3f} ms, "
                   f"p99 {result['floor_p99_ms']:.3f} ms. Took {result['took_s']:.0f} s.{size}"), ""]
        for head, lines in tables.cells(tables.refused(result["rows"], result["floor_p50_ms"])):
            parts += [tables.markdown(head, lines), ""]
    return "\n".join(parts)


def by_hand(text: str) -> str:
    """What stands between the marks of a document."""
    return text.partition(BY_HAND)[2].partition(END)[0].strip("\n")


def update(results: dict[str, Any], order: list[str], folder: Path = DOCS) -> None:
    """Bring document and figures up to date with these results; those of benchmarks that were not run stay as they were."""
    document, figures = folder / DOCUMENT.name, folder / FIGURES.name
    kept = json.loads(figures.read_text(encoding="utf-8")) if figures.exists() else {}
    merged = kept | json.loads(json.dumps(results))
    merged = {name: merged[name] for name in sorted(merged, key=order.index)}
    said = by_hand(document.read_text(encoding="utf-8")) if document.exists() else ""
    figures.write_text(json.dumps(merged, indent=1) + "\n", encoding="utf-8")
    document.write_text(written(merged, said), encoding="utf-8")
