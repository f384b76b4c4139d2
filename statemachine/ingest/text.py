"""Bytes to physical lines of text, a block at a time, in bounded memory.

UTF-8 with or without a byte-order mark, UTF-16 with one; lines end in LF, CR LF or CR.  A line that is not UTF-8, or
longer than LINE_BYTES_MAX, comes out shortened or with replacement characters and is named in `broken`; no other
encoding is guessed.
"""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING, BinaryIO, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LINE_BYTES_MAX: Final = 1 << 20
BLOCK_BYTES: Final = 1 << 17
_KEPT_BYTES: Final = 2000
_BOM_BYTES: Final = 3
_UTF16: Final = ((codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
NOT_UTF8: Final = "not UTF-8: save the file as UTF-8"
TOO_LONG: Final = f"the line is longer than {LINE_BYTES_MAX} bytes: is this the right file?"


class Utf8Reader:
    """The bytes of a stream as UTF-8 without a byte-order mark; what is no Unicode stays undecodable."""

    def __init__(self, stream: BinaryIO) -> None:
        """Take `stream`; nothing is read yet."""
        # read1 hands over what a pipe holds instead of waiting for a full block.
        self._read: Callable[[int], bytes] = getattr(stream, "read1", stream.read)
        self._decoder: codecs.IncrementalDecoder | None = None
        self._started = False
        self._ended = False

    def read(self, size: int) -> bytes:
        """Some bytes, about `size` at most; b"" at the end only."""
        if self._ended:
            return b""
        data = self._read(size) if self._started else self._start(size)
        if self._decoder is None:
            self._ended = not data
            return data
        return self._transcode(data, size)

    def _start(self, size: int) -> bytes:
        self._started = True
        data = b""
        while len(data) < _BOM_BYTES:
            more = self._read(size)
            if not more:
                break
            data += more
        for mark, encoding in _UTF16:
            if data.startswith(mark):
                self._decoder = codecs.getincrementaldecoder(encoding)("surrogatepass")
                return data[len(mark):]
        without = data.removeprefix(codecs.BOM_UTF8)
        return without if without or not data else self._read(size)

    def _transcode(self, data: bytes, size: int) -> bytes:
        decoder = self._decoder
        while decoder is not None:
            try:
                text = decoder.decode(data, final=not data)
            except UnicodeDecodeError:
                # Half a character at the end: let the line it stands on be undecodable.
                self._ended = True
                return b"\xff"
            if text or not data:
                break
            data = self._read(size)
        self._ended = not data
        # A lone surrogate becomes bytes that are not UTF-8, so that its line, and no other, is refused.
        return text.encode("utf-8", "surrogatepass")


def text_blocks(stream: BinaryIO, broken: dict[int, str]) -> Iterator[list[str]]:
    """Lists of consecutive lines without their ends; `broken` gains a reason by line number (from 1) for bad ones."""
    number = 1
    for data, too_long in _whole_lines(Utf8Reader(stream).read):
        if too_long:
            broken[number] = TOO_LONG
            lines = [data.decode("utf-8", "replace").replace('"', "'")]
        else:
            lines = _decode(data, number, broken)
        number += len(lines)
        yield lines


def _decode(data: bytes, number: int, broken: dict[int, str]) -> list[str]:
    if b"\r" in data:
        data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    try:
        lines = data.decode("utf-8").split("\n")
    except UnicodeDecodeError:
        lines = []
        for offset, line in enumerate(data.split(b"\n")):
            try:
                lines.append(line.decode("utf-8"))
            except UnicodeDecodeError:
                lines.append(line.decode("utf-8", "replace"))
                broken[number + offset] = NOT_UTF8
    if not lines[-1]:
        lines.pop()
    return lines


def _whole_lines(read: Callable[[int], bytes]) -> Iterator[tuple[bytes, bool]]:
    """Blocks that end where a line does; a line over the limit comes alone, cut, and marked True."""
    rest = b""
    skipping = False
    while chunk := read(BLOCK_BYTES):
        data = rest + chunk
        rest = b""
        if skipping or len(data) > LINE_BYTES_MAX:
            end = _first_line_end(data)
            if not skipping and (end or len(data)) > LINE_BYTES_MAX:
                yield data[:_KEPT_BYTES], True
                skipping = True
            if skipping and not end:
                rest = b"\r" if data.endswith(b"\r") else b""
                continue
            if skipping:
                data = data[end:]
                skipping = False
        cut = _last_line_end(data)
        rest = data[cut:]
        if cut:
            yield data[:cut], False
    if rest and not skipping:
        yield rest, False


def _first_line_end(data: bytes) -> int:
    feed = data.find(b"\n") + 1
    # A final CR may be half of a CR LF: it ends nothing before the next block is seen.
    lone = data.find(b"\r", 0, -1) + 1
    if lone and data[lone:lone + 1] == b"\n":
        lone += 1
    return min(feed, lone) if feed and lone else feed or lone


def _last_line_end(data: bytes) -> int:
    return data.rfind(b"\n") + 1 or data.rfind(b"\r", 0, -1) + 1
