"""Run the command as its users do, in a process of its own, and measure what that process took."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

POLL_S = 0.02
FINDINGS = 1
KIB = 1024


class Ran(NamedTuple):
    """The command's own report, the seconds from start to end, and its largest memory in MiB.

    `rss_mib` counts the pages of the store that it has mapped, which the kernel takes back when it needs them;
    `anonymous_mib` is what the program itself allocated, NaN where the system does not tell (anything but Linux).
    """

    report: dict[str, Any]
    seconds: float
    rss_mib: float
    anonymous_mib: float


def process(file: Path, store: Path, *, stream: bool = False) -> Ran:
    """`resetguard process FILE --store STORE --durability group`; raises RuntimeError when it fails."""
    command = [sys.executable, "-m", "statemachine.cli", "process", str(file), "--store", str(store), "--json",
               "--durability", "group", *(["--stream"] if stream else [])]
    root = Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))}
    with tempfile.TemporaryFile() as output:
        began = time.perf_counter()
        child = subprocess.Popen(command, stdout=output, env=environment)  # noqa: S603 - built here
        sampler = _Sampler(child.pid)
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - began
        child.returncode = os.waitstatus_to_exitcode(status)
        sampler.stop()
        output.seek(0)
        text = output.read().decode()
    if child.returncode not in (0, FINDINGS):
        message = f"the command ended with {child.returncode}: {' '.join(command)}"
        raise RuntimeError(message)
    rss_kib = usage.ru_maxrss / (KIB if sys.platform == "darwin" else 1)
    return Ran(json.loads(text), seconds, rss_kib / KIB, sampler.largest_kib / KIB)


class _Sampler:
    """Asks Linux now and then for a process's anonymous memory, and keeps the largest answer."""

    def __init__(self, pid: int) -> None:
        self.largest_kib = float("nan")
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
                if line.startswith("RssAnon:"):
                    kib = float(line.split()[1])
                    if not self.largest_kib >= kib:
                        self.largest_kib = kib

    def stop(self) -> None:
        """The process has ended."""
        self._end.set()
        self._thread.join()
