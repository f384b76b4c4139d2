"""Work in a forked child that may die: a signal kills the child alone, and is what came of the item at hand."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, NoReturn

import msgspec


class Died(NamedTuple):
    """The child was ended by a signal, or left by itself, while it was at an item."""

    signal: int
    status: int

    def __str__(self) -> str:
        """What a report says of it."""
        return f"killed by {signal.Signals(self.signal).name}" if self.signal else f"left with {self.status}"


def each(
    items: Sequence[Any], work: Callable[[Any], Any], *, after: Callable[[int], None] | None = None,
) -> Iterator[tuple[int, Any]]:
    """The index of each item, in order, with what `work` made of it in a child, or `Died`; a new child goes on after a death.

    Results must be plain JSON or msgspec Structs that the caller converts.  `after` is called in the parent, with the child's
    process id, once a child is gone.  What `work` raises is a bug of the harness: it reaches the caller as RuntimeError.
    """
    first = 0
    while first < len(items):
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            _child(items, first, work, writing)
        os.close(writing)
        try:
            with os.fdopen(reading, "rb") as lines:
                for line in lines:
                    if not line.endswith(b"\n"):
                        break  # a death in the middle of it: the item counts as being at hand
                    found = msgspec.json.decode(line)
                    if isinstance(found, dict) and "__raised__" in found:
                        raise RuntimeError(found["__raised__"])
                    yield first, found
                    first += 1
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            if after is not None:
                after(child)
        if first < len(items):
            yield first, Died(os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0, os.waitstatus_to_exitcode(status))
            first += 1


def _child(items: Sequence[Any], first: int, work: Callable[[Any], Any], writing: int) -> NoReturn:
    try:
        for item in items[first:]:
            try:
                line = msgspec.json.encode(work(item))
            except Exception as error:  # noqa: BLE001 - told to the parent, which raises it
                line = msgspec.json.encode({"__raised__": f"{type(error).__name__}: {error}"})
            os.write(writing, line + b"\n")
    finally:
        sys.stdout.flush()
        os._exit(0)
