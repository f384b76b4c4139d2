"""Rows of several files in one global order: in memory while they are few, on disk by SQLite beyond that."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Final, Self

from statemachine.clock import from_us
from statemachine.errors import StoreUnavailable
from statemachine.ingest.rows import Row
from statemachine.state import Measurement

MEMORY_ROWS_MAX: Final = 200_000
SPILLED_ROWS: Final = 10_000
CACHE_KIB: Final = 16_384
_SCHEMA: Final = "CREATE TABLE rows (at, user, file, row, line, weight_kg, source, value, unit, reason, raw)"
_INSERT: Final = "INSERT INTO rows VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_SELECT: Final = "SELECT * FROM rows ORDER BY at IS NOT NULL, at, user, file, row"


class OrderedRows:
    """A spool for rows, read back by (time, user, file, row), unreadable ones first.

    Beyond `rows_max` they go to a private temporary database that SQLite deletes by itself, also when the process dies.
    """

    def __init__(self, rows_max: int = MEMORY_ROWS_MAX) -> None:
        self._rows_max = rows_max
        self._rows: list[tuple[int, Row]] = []
        self._database: sqlite3.Connection | None = None
        self._count = 0

    def __enter__(self) -> Self:
        """The spool itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Let go of everything."""
        self._rows.clear()
        if self._database is not None:
            self._database.close()

    def add(self, number: int, rows: Iterable[Row]) -> None:
        """Take all rows of file `number`; raises what reading them raises."""
        numbered = ((number, row) for row in rows)
        while chunk := list(islice(numbered, self._rows_max + 1 - len(self._rows))):
            self._count += len(chunk)
            self._rows += chunk
            if len(self._rows) > self._rows_max:
                self._spill()

    def _spill(self) -> None:
        try:
            self._insert()
        except sqlite3.Error as error:
            message = f"{self._count} rows cannot be sorted in the directory for temporary files: {error}; make room there"
            raise StoreUnavailable(message) from error

    def _insert(self) -> None:
        if self._database is None:
            self._database = sqlite3.connect("", isolation_level=None)
            for setting in ("journal_mode = OFF", "synchronous = OFF", "temp_store = FILE", f"cache_size = -{CACHE_KIB}"):
                self._database.execute(f"PRAGMA {setting}")
            self._database.execute(_SCHEMA)
        self._database.execute("BEGIN")
        self._database.executemany(_INSERT, (_columns(number, row) for number, row in self._rows))
        self._database.execute("COMMIT")
        self._rows.clear()
        self._rows_max = min(self._rows_max, SPILLED_ROWS)

    def __len__(self) -> int:
        """How many rows were taken."""
        return self._count

    def __iter__(self) -> Iterator[tuple[int, Row]]:
        """(file number, row) in the global order."""
        if self._database is None:
            self._rows.sort(key=_order)
            yield from self._rows
            return
        self._spill()
        for at_us, user, number, row, line, weight_kg, source, value, unit, reason, raw in self._database.execute(_SELECT):
            measurement = None if at_us is None else Measurement(user, from_us(at_us), weight_kg, source, value, unit)
            yield number, Row(row, line, measurement, reason, raw, "" if measurement is not None else user)


def _order(numbered: tuple[int, Row]) -> tuple[int | str, ...]:
    number, row = numbered
    m = row.measurement
    return (0, 0, row.user, number, row.row) if m is None else (1, m.at_us, m.user, number, row.row)


def _columns(number: int, row: Row) -> tuple[object, ...]:
    m = row.measurement
    if m is None:
        return (None, row.user, number, row.row, row.line, None, None, None, None, row.reason, _plain(row.raw))
    return (m.at_us, m.user, number, row.row, row.line, m.weight_kg, m.source, m.value, m.unit, "", "")


def _plain(text: str) -> str:
    return text.encode("utf-8", "replace").decode()
