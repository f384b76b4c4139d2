"""What differs from one life of a store to the next, and is fixed all the same: the ids that each gives out."""

from __future__ import annotations

import threading
from typing import Final

LIFE: Final = 1 << 40


class LifeIds:
    """`Ids` that count up from a number of the life's own, so that no two processes and no two openings give the same."""

    def __init__(self, life: int) -> None:
        self._count = life * LIFE
        self._lock = threading.Lock()

    def attempt_id(self) -> str:
        """The next number as a UUID."""
        with self._lock:
            self._count += 1
            digits = f"{self._count:032x}"
        return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))

    def salt(self) -> bytes:
        """Always the same sixteen bytes: nothing is hidden in a trial."""
        return bytes(16)
