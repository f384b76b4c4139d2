"""docs/lmdb.md: every trap has its row, and every test that a row names is there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
DOCUMENT: Final = (ROOT / "docs" / "lmdb.md").read_text(encoding="utf-8")
ROWS: Final = [[cell.strip() for cell in row.strip("|").split("|")] for row in DOCUMENT.splitlines() if row.startswith("|")][2:]

# The words by which each trap of the plan is known in its row.
TRAPS: Final = (
    "commit that raises", "meta page", "SIGINT", "stopped holder", "forked child", "another thread", "deleting `lock.mdb`",
    "cutting `lock.mdb` short", "data file cut short", "killed reader", "long reader", "full map", "flipped bits", "EIO",
    "two engines",
)


def missing(name: str) -> bool:
    """Whether a test named as in the document is not there."""
    file, _, function = name.partition("::")
    path = ROOT / "tests" / (file if "/" in file else f"chaos/{file}")
    return not path.is_file() or f"\ndef {function}(" not in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("trap", TRAPS)
def test_every_trap_has_one_row(trap: str) -> None:
    assert len([row for row in ROWS if trap in row[0]]) == 1


def test_every_row_names_tests_that_are_there() -> None:
    named = {row[0]: re.findall(r"`([\w/]+\.py::\w+)`", row[2]) for row in ROWS}
    assert all(named.values()), named
    assert [name for names in named.values() for name in names if missing(name)] == []
    assert missing("test_lmdb_traps.py::test_nothing")
    assert missing("unit/test_nothing.py::test_nothing")
