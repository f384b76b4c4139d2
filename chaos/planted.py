"""Bugs that can be planted in the library, to show that the harness finds what it is there to find.

Each names the promise whose checker must catch it, and the suite that meets it soonest.  `python -m chaos canaries` plants one
after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final, NamedTuple


class Planted(NamedTuple):
    """One bug: what it does, the promise it breaks as the checker names it, the suite that finds it, and how it is planted."""

    what: str
    promise: str
    suite: str
    plant: Callable[[], AbstractContextManager[object]]


PLANTED: Final[dict[str, Planted]] = {}
