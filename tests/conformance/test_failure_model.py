"""specs/failure_model.md: each fault stands once, is of one kind, and names a test that is there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
DOCUMENT: Final = (ROOT / "specs" / "failure_model.md").read_text(encoding="utf-8")
ROWS: Final = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in DOCUMENT.splitlines()
               if line.startswith("|") and not line.startswith(("| fault |", "|---"))]
KINDS: Final = ("tolerated", "detected", "out of scope")

# The words by which each fault that must be spoken of is known.
FAULTS: Final = (
    "death at any step", "death in recovery", "durability `each` or `group`", "durability `process`", "torn write",
    "bits that flip",
    "slot of the marks", "full disk", "EIO", "lock file deleted", "set back behind", "set forward", "fork", "threads", "SIGSTOP",
    "two processes", "slow disk", "network file system", "means harm", "audit log changed", "wrong unit", "no unit", "Ctrl-C",
)


def there(name: str) -> bool:
    """Whether a test named as in the document exists."""
    file, _, function = name.partition("::")
    path = ROOT / "tests" / file
    return path.is_file() and re.search(rf"^def {function}\(", path.read_text(encoding="utf-8"), re.MULTILINE) is not None


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_has_its_row(fault: str) -> None:
    assert len([row for row in ROWS if fault in row[0]]) == 1


def test_every_row_is_whole_and_of_one_kind() -> None:
    assert [row for row in ROWS if len(row) != 5 or not all(row)] == []
    assert {row[1] for row in ROWS} == set(KINDS)
    assert len({row[0] for row in ROWS}) == len(ROWS)


def test_every_row_names_tests_that_are_there() -> None:
    """A fault that is out of scope may have none; any other has one at least."""
    for fault, kind, _, _, tests in ROWS:
        names = re.findall(r"`([\w/]+\.py::\w+)`", tests)
        assert names or (kind, tests) == ("out of scope", "none"), fault
        assert ", ".join(f"`{name}`" for name in names) == tests or not names, fault
        assert [name for name in names if not there(name)] == [], fault
    assert not there("unit/test_marks.py::test_nothing")
    assert not there("unit/test_nothing.py::test_nothing")
