"""One act on many users, each an attempt of its own: the list of users, the journal that lets it be resumed, the stop.

The journal has a line when a user is begun, with the version it was at, and one when it is done.  A run that dies in
between left one user of whom the journal cannot tell; the audit log can, and so nobody is acted upon twice.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import msgspec
import typer

from statemachine.cli import console
from statemachine.cli.process import Stop
from statemachine.errors import InvalidInput, ResetError, StoreCorrupt
from statemachine.store.mending import end_is_lost

if TYPE_CHECKING:
    from collections.abc import Callable

    from statemachine.store import Store

STDIN: Final = "-"
ACT_CHARS_MAX: Final = 200


class Line(msgspec.Struct, omit_defaults=True):
    """A line of the journal: the act it is the journal of, a user begun at a version, or a user done."""

    act: str = ""
    user: str = ""
    begun_at: int | None = None
    done: bool = False


class Journal:
    """The users done, each line on the disk before the next user; without a path it remembers nothing."""

    def __init__(self, path: Path | None, act: str) -> None:
        self.done: set[str] = set()
        self.begun: dict[str, int] = {}
        self._descriptor: int | None = None
        if path is not None:
            self._open(path, act)

    def _open(self, path: Path, act: str) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            with open(self._descriptor, "rb", closefd=False) as file:
                data = file.read()
            whole = data[: data.rfind(b"\n") + 1]
            lines = [msgspec.json.decode(line, type=Line) for line in whole.splitlines()]
            if not b'{"act":'.startswith(data[:len(b'{"act":')]):
                message = "it does not begin as one"
                raise msgspec.DecodeError(message)
        except msgspec.MsgspecError as error:
            self.close()
            message = f"{path} is no journal of a batch: {error}; give a new file to --resume"
            raise InvalidInput(message) from error
        os.ftruncate(self._descriptor, len(whole))  # the run before died within its last line
        if not lines:
            self._write(Line(act=act))
        elif lines[0].act != act:
            self.close()
            message = f"{path} is the journal of {lines[0].act[:ACT_CHARS_MAX]!r}, this is {act!r}; give --resume another file"
            raise InvalidInput(message)
        for line in lines[1:]:
            if line.done:
                self.done.add(line.user)
            elif line.begun_at is not None:
                self.begun[line.user] = line.begun_at

    def __enter__(self) -> Self:
        """The journal itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def begin(self, user: str, version: int) -> None:
        """Note that a user at a version is about to be acted upon; on the disk on return."""
        self._write(Line(user=user, begun_at=version))

    def end(self, user: str) -> None:
        """Note that a user is done; on the disk on return."""
        self._write(Line(user=user, done=True))

    def _write(self, line: Line) -> None:
        if self._descriptor is not None:
            os.write(self._descriptor, msgspec.json.encode(line) + b"\n")
            os.fsync(self._descriptor)


def listed(name: str) -> list[str]:
    """The users in a file (`-`: standard input), one a line, each once, in the order given; InvalidInput where there is none."""
    try:
        text = sys.stdin.read() if name == STDIN else Path(name).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        message = f"the list of users {name} is not UTF-8: {error}"
        raise InvalidInput(message) from error
    except OSError as error:
        message = f"the list of users {name} cannot be read: {error}"
        raise InvalidInput(message) from error
    users = list(dict.fromkeys(line for line in text.split("\n") if line.strip()))
    if not users:
        message = f"the list of users {name} is empty; give one id a line"
        raise InvalidInput(message)
    return users


def run(  # noqa: PLR0913 - the parts of a batch
    store: Store, users: list[str], journal: Journal, act: Callable[[str], dict[str, Any]],
    happened: Callable[[str, int], bool], *, json: bool,
) -> None:
    """Act on each user in turn and say how it went; goes on after one user's failure and stops between two users.

    `happened` tells of a user begun at a version, by a run that died, whether the act is in the log.  Leaves with 1 when
    any failed, and with 130 when a signal cut it short; raises at once where the trouble is the store's and no user's.
    """
    counts = {"done": 0, "failed": 0, "skipped": 0}
    with Stop("after this user") as stop:
        for number, user in enumerate(users, start=1):
            if stop.asked:
                console.say(f"stopped before user {number} of {len(users)}; run it again with the same --resume FILE to go on")
                raise typer.Exit(console.INTERRUPTED)
            try:
                told = _one(store, user, journal, act, happened)
            except ResetError:
                console.say(f"stopped at user {number} of {len(users)}; run it again with the same --resume FILE to go on")
                raise
            counts[told["outcome"] if told["outcome"] in counts else "done"] += 1
            if json:
                console.print_json(told)
            else:
                console.OUT.print(console.said(_line(told, number, len(users))), soft_wrap=True)
    console.say(", ".join(f"{count} {name}" for name, count in counts.items()))
    if counts["failed"]:
        raise typer.Exit(console.FINDINGS)


def _one(
    store: Store, user: str, journal: Journal, act: Callable[[str], dict[str, Any]], happened: Callable[[str, int], bool],
) -> dict[str, Any]:
    if user in journal.done:
        return {"user": user, "outcome": "skipped", "reason": "done by an earlier run"}
    try:
        begun = journal.begun.get(user)
        if begun is not None and happened(user, begun):
            journal.end(user)
            return {"user": user, "outcome": "skipped", "reason": "committed by an earlier run that was cut off"}
        journal.begin(user, store.version_range(user)[1])
        told = act(user)
    except ResetError as error:
        if _of_the_store(store, error):
            raise
        return {"user": user, "outcome": "failed", "error": str(error)}
    journal.end(user)
    return told


def _of_the_store(store: Store, error: ResetError) -> bool:
    """Whether the next user would fare no better: the store is full, busy or gone; damage is mostly one user's own (INV-11)."""
    if isinstance(error, StoreCorrupt):
        return end_is_lost(store.engine)
    return console.exit_code(error) == console.STORE_TROUBLE


def _line(told: dict[str, Any], number: int, of: int) -> str:
    version = f"version {told['base_version']} -> {told['version']}" if told.get("version") is not None else ""
    more = (told["outcome"], version, told.get("reason") or told.get("error") or "")
    return f"{number}/{of} {told['user']}: {' '.join(part for part in more if part)}"
