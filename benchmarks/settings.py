"""What the command line asked for."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class Settings(NamedTuple):
    """Sizes and places; `rows` and `users` None leave the size to each benchmark, `quick` takes its smallest.

    `keep`: where stores that take long to build are kept for the next run; None builds them anew.
    """

    rows: int | None = None
    users: int | None = None
    directory: Path = Path()
    keep: Path | None = None
    quick: bool = False
