"""Bytes and values: the frame around every stored record, and the records that are the same for every estimator.

Frame: magic (1) | schema (1) | flags (1) | zero (1) | length of what follows the frame (4, little-endian) |
XXH3-64 over key, first eight bytes and content (8).  The key is part of the checksum, so a record that turns up under
another key, user or version than its own does not verify.  Every schema keeps the frame, so that a newer one is told
from damage.

Schema 1: the first.  Schema 2: `Aside` counts what was pruned, at its end; a reader of schema 1 would lose that count.
What a schema adds stands at the end of its record with a default, so that one reader reads all of `READABLE`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import msgspec
import numpy as np
import xxhash
import zstandard

from statemachine import naming
from statemachine.errors import StoreCorrupt, StoreForeign
from statemachine.state import Reading

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

T = TypeVar("T")

MAGIC: Final = 0xD7
SCHEMA: Final = 2
READABLE: Final = range(1, SCHEMA + 1)
"""The schemas that this program reads; it writes the last of them."""
COMPRESSED: Final = 1
RECORD_BYTES_MAX: Final = 1 << 24
_HEAD: Final = struct.Struct("<BBBxI")
_SUM: Final = struct.Struct("<Q")
_checksum: Final = xxhash.xxh3_64_intdigest
_digest: Final = xxhash.xxh3_64_digest
"""The same, as bytes with the highest first; the frame has the lowest first."""
_FRAME_BYTES: Final = _HEAD.size + _SUM.size
_STEP: Final = struct.Struct("<BBqd")
_STEP_OF_ONE: Final = struct.Struct(f"{_STEP.format}d")

_STEP_TYPE: Final = np.dtype([
    ("magic", "u1"), ("schema", "u1"), ("flags", "u1"), ("zero", "u1"), ("length", "<u4"), ("sum", "<u8"),
    ("kind", "u1"), ("kernel", "u1"), ("at_us", "<i8"), ("r", "<f8"), ("value", "<f8"),
])
"""A step of one quantity in its frame, as `encode_step` and `seal` write it."""
STEP_BYTES: Final = _STEP_TYPE.itemsize

STEP: Final = 1
IMAGE: Final = 2
_STEP_KIND: Final = bytes((STEP,))


class Steps(NamedTuple):
    """Columns of steps of one quantity: instant in us since 1970 UTC, value, variance of the reading, kernel number."""

    at_us: NDArray[np.int64]
    values: NDArray[np.float64]
    r: NDArray[np.float64]
    kernels: NDArray[np.int64]


def seal(key: bytes, content: bytes, *, compress: bool = False) -> bytes:
    """The record to store under `key`."""
    flags = 0
    if compress:
        content, flags = zstandard.ZstdCompressor(level=9).compress(content), COMPRESSED
    head = _HEAD.pack(MAGIC, SCHEMA, flags, len(content))
    return head + _digest(key + head + content)[::-1] + content


def unseal(key: bytes, record: bytes) -> bytes:
    """The content of a record read from `key`; raises StoreCorrupt, or StoreForeign for a schema unknown here."""
    if len(record) < _FRAME_BYTES or record[0] != MAGIC:
        message = f"{naming.record(key)} is not one of resetguard's"
        raise StoreCorrupt(message, remedy=naming.remedy(key))
    head, content = record[:8], record[_FRAME_BYTES:]
    if _SUM.unpack_from(record, 8)[0] != _checksum(key + head + content):
        message = f"{naming.record(key)} fails its checksum"
        raise StoreCorrupt(message, remedy=naming.remedy(key))
    _, schema, flags, length = _HEAD.unpack(head)
    if schema not in READABLE:
        message = (f"{naming.record(key)} has schema {schema}; this program reads {READABLE[0]} to {READABLE[-1]}: "
                   "use a newer resetguard")
        raise StoreForeign(message)
    if length != len(content) or flags & ~COMPRESSED:
        message = f"{naming.record(key)} is torn"
        raise StoreCorrupt(message, remedy=naming.remedy(key))
    if flags & COMPRESSED:
        try:
            content = zstandard.ZstdDecompressor().decompress(content, max_output_size=RECORD_BYTES_MAX)
        except zstandard.ZstdError as error:
            message = f"{naming.record(key)} does not decompress: {error}"
            raise StoreCorrupt(message, remedy=naming.remedy(key)) from error
    return content


def schema_of(record: bytes) -> int | None:
    """The schema that a stored record says it has; None where it is not in the frame."""
    return record[1] if len(record) >= _FRAME_BYTES and record[0] == MAGIC else None


def is_sound(key: bytes, record: bytes) -> bool:
    """Whether the checksum of a framed record is the one of its key and bytes, whatever its schema."""
    return bool(_SUM.unpack_from(record, 8)[0] == _checksum(key + record[:8] + record[_FRAME_BYTES:]))


def raised(key: bytes, record: bytes) -> bytes:
    """A sound record of an older schema in the frame of the present one, its content as it is."""
    unseal(key, record)
    _, _, flags, length = _HEAD.unpack_from(record)
    head, content = _HEAD.pack(MAGIC, SCHEMA, flags, length), record[_FRAME_BYTES:]
    return head + _SUM.pack(_checksum(key + head + content)) + content


def contents(rows: Iterable[tuple[bytes, bytes]]) -> list[bytes]:
    """The contents of many records at once; b"" for each that is not plainly sound, which `unseal` then judges."""
    digest, plain = _digest, _plain
    return [
        content if digest(key + record[:8] + (content := record[_FRAME_BYTES:])) == record[15:7:-1]
        and record[:8] == plain(len(content)) else b""
        for key, record in rows
    ]


@lru_cache(maxsize=4096)
def _plain(length: int) -> bytes:
    """What the frame of an uncompressed record of so many bytes begins with."""
    return _HEAD.pack(MAGIC, SCHEMA, 0, length)


def is_step(content: bytes) -> bool:
    """Whether `decode_step` would take it, which needs its kind and as many bytes as some number of values has."""
    return content[:1] == _STEP_KIND and len(content) >= _STEP.size and not (len(content) - _STEP.size) % 8


def pack(value: Any) -> bytes:
    """msgpack of a record struct."""
    return _encoder.encode(value)


def unpack(kind: type[T], content: bytes) -> T:
    """The record struct in `content`; raises StoreCorrupt when it is none."""
    try:
        return msgspec.msgpack.decode(content, type=kind)
    except msgspec.MsgspecError as error:
        message = f"a {kind.__name__} record does not decode: {error}"
        raise StoreCorrupt(message) from error


def encode_step(reading: Reading, kernel: int) -> bytes:
    """A step of the log: kind, kernel, instant, effective R and the values; 26 bytes for body weight."""
    values = reading.values
    if len(values) == 1:
        return _STEP_OF_ONE.pack(STEP, kernel, reading.at_us, reading.r, values[0])
    return _step_of(len(values)).pack(STEP, kernel, reading.at_us, reading.r, *values)


@lru_cache(maxsize=100)
def _step_of(values: int) -> struct.Struct:
    return struct.Struct(f"{_STEP.format}{values}d")


def decode_steps(records: Sequence[tuple[bytes, bytes]]) -> Steps | None:
    """Many stored steps of one quantity at once, with their kernel numbers; None where any is not one that verifies.

    `decode_step` and `unseal` then say which, and why.
    """
    stored = b"".join([record for _, record in records])
    if len(stored) != STEP_BYTES * len(records):
        return None
    table = np.frombuffer(stored, _STEP_TYPE)
    sums = np.array([_checksum(key + record[:8] + record[_FRAME_BYTES:]) for key, record in records], np.uint64)
    plain = ((table["magic"] == MAGIC) & (table["schema"] == SCHEMA) & (table["flags"] == 0) & (table["kind"] == STEP)
             & (table["length"] == STEP_BYTES - _FRAME_BYTES) & (table["sum"] == sums))
    if not plain.all():
        return None
    return Steps(table["at_us"].astype(np.int64), table["value"].astype(np.float64), table["r"].astype(np.float64),
                 table["kernel"].astype(np.int64))


def decode_step(content: bytes) -> tuple[Reading, int]:
    """The reading and the kernel number of a step; raises StoreCorrupt for anything else."""
    try:
        kind, kernel, at_us, r = _STEP.unpack_from(content)
        values = struct.unpack(f"<{(len(content) - _STEP.size) // 8}d", content[_STEP.size:])
    except struct.error as error:
        message = f"a step record does not decode: {error}"
        raise StoreCorrupt(message) from error
    if kind != STEP:
        message = f"a step record has kind {kind}"
        raise StoreCorrupt(message)
    return Reading(at_us, values, r), kernel


_encoder = msgspec.msgpack.Encoder()
