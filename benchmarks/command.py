"""Run the command as its users do, in a process of its own, and measure what that process took."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

POLL_S = 0.02
FINDINGS = 1
KIB = 1024
COMMAND = "from statemachine.cli import main; main()"


class Ran(NamedTuple):
    """The program's own report, the seconds from start to end, those of the processor, and its largest memory in MiB.

    `rss_mib` counts the pages of the store that it has mapped, which the kernel takes back when it needs them;
    `anonymous_mib` is what the program itself allocated, NaN where the system does not tell (anything but Linux).
    """

    report: dict[str, Any]
    seconds: float
    cpu_s: float
    rss_mib: float
    anonymous_mib: float


def process(file: Path, store: Path, *, stream: bool = False, one_core: bool = False) -> Ran:
    """`resetguard process FILE --store STORE --durability group`; raises RuntimeError when it fails."""
    return python(COMMAND, "process", str(file), "--store", str(store), "--json", "--durability", "group",
                  *(["--stream"] if stream else []), one_core=one_core)


def python(program: str, *arguments: str, one_core: bool = False) -> Ran:
    """A Python program that prints one JSON document, with the library at hand; raises RuntimeError when it fails."""
    with tempfile.TemporaryFile() as output:
        began = time.perf_counter()
        child = subprocess.Popen([sys.executable, "-c", program, *arguments], stdout=output,  # noqa: S603 - built here
                                 env=environment(), preexec_fn=_one_core() if one_core else None)  # noqa: PLW1509 - no threads yet
        sampler = _Sampler(child.pid)
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - began
        child.returncode = os.waitstatus_to_exitcode(status)
        sampler.stop()
        output.seek(0)
        text = output.read().decode()
    if child.returncode not in (0, FINDINGS):
        message = f"a program of the benchmark ended with {child.returncode}: {' '.join(arguments)}"
        raise RuntimeError(message)
    # Linux hands the parent's own peak on to a child: what the child told while it ran comes first.
    rss_kib = usage.ru_maxrss / (KIB if sys.platform == "darwin" else 1) if math.isnan(sampler.rss_kib) else sampler.rss_kib
    return Ran(json.loads(text), seconds, usage.ru_utime + usage.ru_stime, rss_kib / KIB, sampler.largest_kib / KIB)


def environment() -> dict[str, str]:
    """Ours, with the library of this checkout before any other."""
    root = str(Path(__file__).parents[1])
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))}


def _one_core() -> Callable[[], None] | None:
    """What leaves a process one core, in it; None where the system has no such call."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    last = max(os.sched_getaffinity(0))
    return lambda: os.sched_setaffinity(0, {last})


class _Sampler:
    """Asks Linux now and then for a process's anonymous memory, and keeps the largest answer."""

    def __init__(self, pid: int) -> None:
        self.largest_kib = self.rss_kib = float("nan")
        self._status = Path(f"/proc/{pid}/status")
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._end.wait(POLL_S):
            try:
                lines = self._status.read_text(encoding="ascii").splitlines()
            except OSError:
                return
            for line in lines:
                kib = float(line.split()[1]) if line.startswith(("RssAnon:", "VmHWM:")) else 0.0
                if line.startswith("VmHWM:"):
                    self.rss_kib = kib
                elif kib and not self.largest_kib >= kib:
                    self.largest_kib = kib

    def stop(self) -> None:
        """The process has ended."""
        self._end.set()
        self._thread.join()
