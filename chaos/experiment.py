"""An experiment: a steady state, faults, and the steady state again.

A TOML file, every key checked:

    title = "our processor survives power cuts"
    target = "ours.chaos:target"        # module:factory, body weight where it is left out
    suites = ["power", "deaths"]        # all where it is left out
    plan = "short"                      # or "full"
    seed = 1
    budget = "60s"                      # the whole plan where it is left out

    [steady-state]
    store = "./state"                   # a store that must be sound before and after; it is only read
    command = ["pytest", "-q", "smoke"] # a command that must exit with 0 before and after
"""

from __future__ import annotations

import difflib
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from chaos.conform import monitor, rows
from chaos.suite import Plan
from chaos.target import Target
from statemachine import ResetError

UNITS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0}


class BadExperiment(Exception):
    """The file, or a value of it, cannot be used; the message says which and what to write instead."""


class Steady(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What must hold before and after."""

    store: str = ""
    command: tuple[str, ...] = ()


class Experiment(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """What the file says."""

    title: str = ""
    target: str | None = None
    suites: tuple[str, ...] = ()
    plan: Plan = "short"
    seed: int = 1
    budget: str | None = None
    steady_state: Steady = Steady()


def read(path: Path) -> Experiment:
    """The experiment of a file; raises BadExperiment, which names the file, what is wrong there and what helps."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        message = f"{path}: {error}; an experiment is a TOML file, see `python -m chaos run --help`"
        raise BadExperiment(message) from error
    try:
        return msgspec.convert(values, Experiment)
    except msgspec.ValidationError as error:
        known = [*Experiment.__struct_encode_fields__, *Steady.__struct_encode_fields__]
        unknown = str(error).partition("unknown field `")[2].partition("`")[0]
        near = difflib.get_close_matches(unknown, known, 1)
        hint = f"; did you mean {near[0]}?" if near else f"; known: {', '.join(known)}"
        message = f"{path}: {error}{hint}"
        raise BadExperiment(message) from error


def seconds(budget: str | None) -> float | None:
    """A duration such as 60s, 5m or 1h, in seconds; raises BadExperiment for anything else."""
    if budget is None:
        return None
    number, unit = budget[:-1], budget[-1:]
    try:
        found = float(number) * UNITS[unit]
    except (ValueError, KeyError):
        found = 0.0
    if not 0.0 < found < float("inf"):
        message = f"budget {budget!r} is no duration; write 60s, 5m or 1h"
        raise BadExperiment(message)
    return found


def unsteady(steady: Steady, target: Target) -> Iterator[str]:
    """Why the steady state does not hold now; nothing where it does."""
    if steady.store:
        yield from _unsound(Path(steady.store), target)
    if steady.command:
        try:
            ended = subprocess.run(steady.command, capture_output=True, text=True, check=False)  # noqa: S603 - the user's own
        except OSError as error:
            yield f"{steady.command[0]!r} cannot be run: {error.strerror}"
            return
        if ended.returncode:
            last = (ended.stderr or ended.stdout).strip().splitlines()[-1:]
            yield f"{' '.join(steady.command)!r} exited with {ended.returncode}: {''.join(last)}"


def _unsound(path: Path, target: Target) -> Iterator[str]:
    """What is wrong with a store: a state that cannot be read or breaks the rules, a broken chain, an impossible log."""
    try:
        with target.open(path, readonly=True) as store:
            for user in store.users():
                loaded = store.load(user)
                if loaded is not None and loaded.violations:
                    yield f"the state of {user!r} breaks {loaded.violations[0]}"
            if problem := store.verify_audit().problem:
                yield f"the audit log of {path}: {problem}"
            verdict = monitor.judge(rows.of_store(store))
            if verdict.rejected is not None:
                yield f"the audit log of {path}, row {verdict.rejected.seq}: {verdict.rejected.why}"
    except ResetError as error:
        yield str(error)
