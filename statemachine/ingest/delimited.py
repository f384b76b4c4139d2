"""Lines of a delimited file to records, so that one stray quote or bad line costs one record and no more."""

from __future__ import annotations

import csv
from itertools import chain
from typing import TYPE_CHECKING, BinaryIO, Final

from statemachine.ingest.text import text_blocks

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

RECORD_LINES_MAX: Final = 100

# The line on which the record starts (from 1); its cells, or why it has none; its text.
Record = tuple[int, list[str] | str, str]


class _End:
    """An exhausted iterator that remembers whether it was asked."""

    def __init__(self) -> None:
        self.asked = False

    def __iter__(self) -> _End:
        return self

    def __next__(self) -> str:
        self.asked = True
        raise StopIteration


class Records:
    """The records of a delimited stream, blank lines included (as empty lists of cells).

    A quoted field may span lines, RECORD_LINES_MAX at most.  Where such a record has not `width` cells, or never ends,
    its quote is taken for a stray one: only its first line is given up, and reading goes on with the next.
    """

    def __init__(self, stream: BinaryIO, delimiter: str, width: int = 0) -> None:
        """Take `stream`; nothing is read yet.  `width` 0 means that any number of cells will do."""
        self._delimiter = delimiter
        self._width = width
        self._broken: dict[int, str] = {}
        self._blocks = text_blocks(stream, self._broken)

    def __iter__(self) -> Iterator[Record]:
        """Yield each record once, in order."""
        lines: list[str] = []
        number = 1
        ended = False
        while not ended:
            block = next(self._blocks, None)
            ended = block is None
            if block:
                lines = lines + block if lines else block
            taken = yield from self._split(lines, number, ended=ended)
            number += taken
            lines = lines[taken:]

    def _split(self, lines: list[str], number: int, *, ended: bool) -> Generator[Record, None, int]:
        """Yield the records of `lines`, the first of which is line `number`; return how many lines were used up."""
        start, total, broken = 0, len(lines), self._broken
        while start < total:
            end_of_lines = _End()
            # Not a slice: many restarts in one block would copy it over and over.
            reader = csv.reader(chain(map(lines.__getitem__, range(start, total)), end_of_lines),
                                delimiter=self._delimiter)
            first = at = start
            start = total
            try:
                for cells in reader:
                    after = first + reader.line_num
                    if after - at > 1 or (after == total and end_of_lines.asked):
                        if end_of_lines.asked and not ended and total - at < RECORD_LINES_MAX:
                            return at
                        joined = None if end_of_lines.asked else self._joined(lines[at:after])
                        if joined is None:
                            yield number + at, "a quote is opened and not closed: close it or double it", lines[at]
                            start = at + 1
                            break
                        yield self._record(number + at, joined, lines[at:after])
                    elif broken:
                        yield self._record(number + at, cells, lines[at:after])
                    else:
                        yield number + at, cells, lines[at]
                    at = after
            except csv.Error as error:
                yield number + at, f"not readable as CSV ({error}): correct the line", lines[at]
                start = at + 1
        return total

    def _joined(self, texts: list[str]) -> list[str] | None:
        """The cells of a record over several lines, None where its quotes do not look meant."""
        if len(texts) > RECORD_LINES_MAX:
            return None
        try:
            cells = next(csv.reader(["\n".join(texts)], delimiter=self._delimiter, strict=True))
        except csv.Error:
            return None
        return cells if self._width in {0, len(cells)} else None

    def _record(self, line: int, cells: list[str], texts: list[str]) -> Record:
        text = "\n".join(texts)
        for number in range(line, line + len(texts)):
            reason = self._broken.pop(number, "")
            if reason:
                return line, reason, text
        return line, cells, text
