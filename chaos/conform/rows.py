"""Rows of an audit log as `resetguard audit list --json` prints them, read from a file or from a store and checked for form."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from statemachine.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

ENDINGS: Final = {
    "reset.committed": "committed", "reset.revoked": "committed", "state.restored": "committed", "state.rebuilt": "committed",
    "reset.rolled_back": "rolled_back", "reset.conflicted": "conflicted", "reset.refused": "refused",
    "reset.interrupted": "interrupted", "reset.shadowed": "shadowed",
}
"""The events that end an attempt, each with its outcome."""
SHOWN_CHARS: Final = 80


class BadLog(Exception):
    """The file is no audit log; the message names the line, what is wrong there, and what to do."""


class Seen(msgspec.Struct, frozen=True, omit_defaults=True):
    """The breaker as an attempt found it; `mode` is "" in a row that a mark stood for."""

    generation: int
    mode: str | None = None


class Row(msgspec.Struct, frozen=True, rename={"base": "base_version", "new": "new_version", "author": "head_author"}):
    """What judging a log needs of a row; names as in `statemachine.audit.Row.as_dict`, None where the row says nothing."""

    seq: int
    event: str
    owner: int
    store_id: str = ""
    outcome: str | None = None
    attempt_id: str | None = None
    user: str | None = None
    kind: str | None = None
    trigger: str | None = None
    written_at: str = ""
    base: int | None = None
    new: int | None = None
    author: str | None = None
    phase: str | None = None
    error: str | None = None
    breaker: Seen | None = None
    details: dict[str, Any] = {}
    violations: list[Any] = []
    erased: bool = False

    @property
    def ends(self) -> bool:
        """Whether the row is the outcome of an attempt to reset a user."""
        return self.event in ENDINGS

    @property
    def marked(self) -> bool:
        """Whether a mark stood for the row: it tells neither the breaker's mode nor the head's author."""
        return self.ends and self.breaker is not None and not self.breaker.mode

    @property
    def whole(self) -> bool:
        """Whether the attempt itself wrote the row, with all that it saw."""
        return self.ends and self.breaker is not None and bool(self.breaker.mode)

    @property
    def is_global(self) -> bool:
        """Whether a row about a breaker is about the global one."""
        return self.details.get("scope") == "global"


_decoder = msgspec.json.Decoder(Row)


def of_file(path: Path) -> Iterator[Row]:
    """The rows of a file of JSON lines; raises BadLog at the first line that is none."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _row(path, number, line)
    except OSError as error:
        message = f"{path} cannot be read: {error.strerror or error}; give a file that `resetguard audit list --json` wrote"
        raise BadLog(message) from error


def _row(path: Path, number: int, line: bytes) -> Row:
    try:
        return _decoder.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        shown = line.strip()[:SHOWN_CHARS].decode("utf-8", "backslashreplace")
        message = (f"{path}, line {number}: {error}: {shown!r}; it must be one row, as "
                   "`resetguard audit list --json --store DIR` prints them, whole and in their order")
        raise BadLog(message) from error


def of_dicts(rows: Iterable[dict[str, Any]]) -> list[Row]:
    """Rows that are at hand as the audit schema has them."""
    return [msgspec.convert(msgspec.to_builtins(row), Row) for row in rows]


def of_store(store: Store) -> Iterator[Row]:
    """The rows of an open store; raises StoreCorrupt where one cannot be read."""
    for row in store.audit():
        yield msgspec.convert(row.as_dict(), Row)
