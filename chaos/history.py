"""What the clients of a store did and what they were told, event by event: the ground that every verdict stands on.

One event a line of JSON, in the order in which they happened; the first line says what made the history.  An operation
without an answer was under way when its process died.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Literal

import msgspec

Answer = Literal["acknowledged", "failed", "doubt"]


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:  # run from a checkout
        return ""


class Made(msgspec.Struct, frozen=True, tag="made"):
    """What made the history: enough to make it again."""

    target: str
    seed: int
    resetguard: str = _version("resetguard")
    lmdb: str = _version("lmdb")
    python: str = platform.python_version()


class Asked(msgspec.Struct, frozen=True, tag="asked"):
    """An operation has begun.  It sends `measured`, each (instant in us, value, source), and may make so many `versions`."""

    op: int
    kind: str
    user: str
    measured: tuple[tuple[int, str, str], ...] = ()
    versions: int = 1


class Told(msgspec.Struct, frozen=True, tag="told"):
    """How it ended for its caller.

    `versions`: the versions it was told of, each with the digest of the state that was then read.  `attempts`: the attempts it
    was told of, each with its outcome ("" where that is in doubt).  `statuses`: what became of each measurement.
    """

    op: int
    answer: Answer
    versions: dict[int, str] = {}
    attempts: dict[str, str] = {}
    statuses: tuple[str, ...] = ()
    error: str = ""


Event = Made | Asked | Told
_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Event)


def lines(events: Iterable[Event]) -> bytes:
    """The events as lines of JSON."""
    return b"".join(_encoder.encode(event) + b"\n" for event in events)


def parsed(data: bytes) -> list[Event]:
    """The events of lines of JSON; a last line that a death cut short is left out."""
    return [_decoder.decode(line) for line in data.splitlines(keepends=True) if line.endswith(b"\n")]


def read(path: Path) -> list[Event]:
    """The events of a file, as `parsed`."""
    return parsed(path.read_bytes())
