"""The door to SPIN: a model of `specs/` is turned into a verifier, compiled, and run; what it found comes back as values.

SPIN writes C, which is compiled for each set of bounds.  Both programs are looked for when they are needed, and a
machine without them is told how to install them: nothing is skipped in silence.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Final, NamedTuple

_INSTALLED: Final = Path(__file__).parents[1] / "specs"
MODELS: Final = _INSTALLED if _INSTALLED.is_dir() else Path(__file__).parents[2] / "specs"
"""Within an installed package, or beside it in a checkout."""
DEPTH_MAX: Final = 400_000
MEGABYTES_MAX: Final = 6_000
SECONDS_MAX: Final = 900
SOON: Final = "-O0"
"""For a search of few states: gcc takes 0.7 s for what takes it 6 s with LONG, and the verifier is slower by half."""
MIDDLING: Final = "-O1"
LONG: Final = "-O2"
"""For one of millions."""
_DEFINE: Final = re.compile(r"^#define (\w+)\s+(\d+)\b", re.MULTILINE)


class SpinMissing(Exception):
    """SPIN, or a C compiler for what it writes, is not installed."""


class Found(NamedTuple):
    """What one exhaustive search found.

    `refuted` is SPIN's sentence about the first property that does not hold, "" where all hold.  `seen` counts how often
    each named branch was taken.  `complete`: nothing was left unexplored.
    """

    states: int
    transitions: int
    refuted: str
    complete: bool
    seen: dict[int, int]
    seconds: float


def require() -> None:
    """Raise SpinMissing unless both programs are there."""
    missing = [name for name in ("spin", "gcc") if shutil.which(name) is None]
    if missing:
        message = f"{' and '.join(missing)} not found; install with `apt-get install spin gcc`, or from https://spinroot.com"
        raise SpinMissing(message)


def defines(model: str) -> dict[str, int]:
    """The numbers that a model gives names to, those of its include too."""
    text = (MODELS / "common.pml").read_text(encoding="utf-8") + (MODELS / f"{model}.pml").read_text(encoding="utf-8")
    return {name: int(number) for name, number in _DEFINE.findall(text)}


def compiled(  # noqa: PLR0913 - what a verifier is made for
    model: str, directory: Path, settings: tuple[str, ...], *, live: bool = False, reduced: bool = False,
    effort: str = MIDDLING, flags: tuple[str, ...] = (),
) -> Path:
    """A verifier of `model` in `directory`; `settings` are its bounds and switches, as NAME or NAME=NUMBER.

    `effort` is what gcc spends on it: SOON, MIDDLING or LONG, by how long the verifier then runs.
    """
    require()
    for source in MODELS.glob("*.pml"):
        shutil.copy(source, directory)
    for source in MODELS.glob("*.h"):
        shutil.copy(source, directory)
    _run(["spin", "-a", *(f"-D{setting}" for setting in settings), f"{model}.pml"], directory)
    kind = [f"-DOF_{model}", *([] if live else ["-DSAFETY"]), *([] if reduced else ["-DNOREDUCE"])]
    _run(["gcc", "-w", effort, *kind, *flags, f"-DMEMLIM={MEGABYTES_MAX}", "-o", "pan", "pan.c"], directory)
    return directory / "pan"


def search(model: str, settings: tuple[str, ...] = (), *, live: bool = False, effort: str = MIDDLING) -> Found:
    """Explore every state of `model`; with `live`, look for a run, to its end or for ever, on which what must happen never does.

    No fairness is assumed.  It would weaken what is shown, and `pan -a -f` of SPIN 6.5.2 overlooks such a run where it comes to
    an end: it says of `<> [] (false)` that it holds in `reset.pml`, all of whose runs end.
    """
    with tempfile.TemporaryDirectory(prefix="resetguard-spec-") as name:
        return run(model, settings, Path(name), live=live, effort=effort)


def run(model: str, settings: tuple[str, ...], directory: Path, *, live: bool = False, effort: str = MIDDLING) -> Found:
    """As `search`, in a directory in which whatever the verifier writes is left."""
    began = time.monotonic()
    pan = compiled(model, directory, settings, live=live, effort=effort)
    text = _run([str(pan), f"-m{DEPTH_MAX}", *(["-a"] if live else [])], directory)
    return _read(text, time.monotonic() - began)


def _run(command: list[str], directory: Path, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(  # noqa: S603 - programs and arguments are this package's own
        command, cwd=directory, capture_output=True, text=True, timeout=SECONDS_MAX, check=False,
        env=None if env is None else {**os.environ, **env},
    )
    if done.returncode != 0 or "Error:" in done.stdout:
        message = f"{' '.join(command)} failed with {done.returncode}: {done.stdout[-2_000:]}{done.stderr[-2_000:]}"
        raise RuntimeError(message)
    return done.stdout


def _read(text: str, seconds: float) -> Found:
    states, transitions = re.search(r"(\d+) states, stored", text), re.search(r"(\d+) transitions", text)
    errors = re.search(r"errors: (\d+)", text)
    if states is None or transitions is None or errors is None:
        message = f"SPIN's verifier said nothing that can be understood: {text[-2_000:]}"
        raise RuntimeError(message)
    why = re.search(r"^pan:1: (.*?)(?: \(at depth \d+\))?$", text, re.MULTILINE)
    refuted = "" if errors[1] == "0" else (why[1] if why else "an error without a sentence")
    complete = "Search not completed" not in text and "max search depth too small" not in text
    seen = {int(n): int(count) for n, count in re.findall(r"^SEEN (\d+) (\d+)$", text, re.MULTILINE)}
    return Found(int(states[1]), int(transitions[1]), refuted, complete, seen, seconds)


class Answer(NamedTuple):
    """What a verifier says that followed a log.

    `rejected_at`: how many lines it could explain before it strayed, None where it did not; then what the breaker's mode
    and generation and the head's author are in the end.
    """

    rejected_at: int | None
    mode: int = 0
    generation: int = 0
    author: int = 0


def followed(pan: Path, directory: Path, name: str) -> Answer:
    """Have a verifier that was made with FOLLOW follow the log in the file `name`."""
    text = _run([str(pan), "-E", f"-m{DEPTH_MAX}", "-w18"], directory, {"FOLLOW": name})
    strayed = re.search(r"^REJECTED (\d+)$", text, re.MULTILINE)
    if strayed is not None:
        return Answer(int(strayed[1]))
    found = re.search(r"^ACCEPTED (\d+) (\d+) (\d+)$", text, re.MULTILINE)
    if found is None:
        message = f"SPIN's verifier neither followed the log nor strayed from it: {text[-2_000:]}"
        raise RuntimeError(message)
    return Answer(None, *map(int, found.groups()))
