"""Other processes for the tests of this folder: Python programs given as text, with the fixtures of the regressions at hand."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[2]
SECONDS_MAX: Final = 60

# The events go nowhere, because standard output is what the programs answer by.
PRELUDE: Final = """
import os, signal, sys, time
from pathlib import Path
import structlog
def dropped(*_):
    raise structlog.DropEvent
structlog.configure(processors=[dropped])
from statemachine import *
from statemachine.store import StoreLimits, keys
from tests.regression.scene import BY, DAY_US, Faulty, fill, head, opened, raw, states, tear, weighed, working
path = Path(sys.argv[1])
def say(*words):
    print(*words, flush=True)
def heard():
    return sys.stdin.readline()
"""


def started(program: str, *arguments: object, by: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """A running program, its input and output piped; whoever starts it waits for it with `answer` or kills it.

    `by` is the command that starts it, where it is not started directly.
    """
    command = [*by, sys.executable, "-c", PRELUDE + textwrap.dedent(program), *map(str, arguments)]
    pipe: Any = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def line(child: subprocess.Popen[str]) -> str:
    """The next line that a program says; what went wrong where it says none."""
    assert child.stdout is not None
    said = child.stdout.readline().strip()
    if not said:
        _, trouble = child.communicate(timeout=SECONDS_MAX)
        raise AssertionError(f"the program ended with {child.returncode}: {trouble}")
    return said


def answer(child: subprocess.Popen[str], told: str = "", code: int = 0) -> str:
    """What a program says to its end, after it was told something; it must end with `code`."""
    said, trouble = child.communicate(told, timeout=SECONDS_MAX)
    assert child.returncode == code, f"the program ended with {child.returncode}, not {code}: {trouble}"
    return said.strip()


def ran(program: str, *arguments: object, by: tuple[str, ...] = ()) -> str:
    """What a program says, run to its end."""
    return answer(started(program, *arguments, by=by))
