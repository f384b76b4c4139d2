"""Instants as people give them on a command line."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final

from statemachine.clock import to_us
from statemachine.errors import InvalidInput

US_PER: Final = {"s": 1_000_000, "m": 60_000_000, "h": 3_600_000_000, "d": 86_400_000_000, "w": 604_800_000_000}
_AGO: Final = re.compile(r"([0-9]{1,9}) ?([smhdw])")


def shown(at: str | None) -> str | None:
    """An instant of the JSON output as a table shows it: in UTC too, to the second."""
    return None if at is None else at[:19].replace("T", " ")


def instant_us(text: str, now_us: int) -> int:
    """Microseconds since 1970 UTC of an ISO 8601 time or date (its midnight), or of so long before now: `45m`, `2h`, `3d`.

    What names no zone is in UTC, as all that the command prints.  Raises InvalidInput for anything else.
    """
    ago = _AGO.fullmatch(text.strip())
    if ago is not None:
        return now_us - int(ago[1]) * US_PER[ago[2]]
    try:
        at = datetime.fromisoformat(text.strip())
    except ValueError as error:
        message = f"{text!r} is no time: give 2026-01-31, 2026-01-31T07:00:00Z, or how long ago, such as 45m, 2h or 3d"
        raise InvalidInput(message) from error
    return to_us(at if at.tzinfo is not None else at.replace(tzinfo=UTC))
