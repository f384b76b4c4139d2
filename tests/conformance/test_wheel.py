"""The wheel is whole: installed with its extra where nothing else is, the harness runs on a target of somebody's own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {n: value for n, value in os.environ.items() if not n.startswith(("PYTHON", "PYTEST", "COVERAGE", "VIRTUAL"))}


def did(directory: Path, *command: str | Path) -> str:
    """What a command prints, outside of the checkout; it must end with 0."""
    done = subprocess.run(command, cwd=directory, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.slow
def test_the_harness_runs_from_a_wheel_in_an_empty_environment(tmp_path: Path) -> None:
    """With those files beside it that docs/chaos.md names, and no other; it takes a minute, and a package index for pip."""
    did(ROOT, sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, ROOT)
    wheel, = tmp_path.glob("resetguard-*.whl")
    did(tmp_path, sys.executable, "-m", "venv", "empty")
    inside = tmp_path / "empty" / "bin"
    did(tmp_path, inside / "pip", "install", "--quiet", f"{wheel}[chaos]", "pytest")
    project = tmp_path / "project"
    project.mkdir()
    for name in set(re.findall(r"\.\./examples/(\w+\.py)", (ROOT / "docs" / "chaos.md").read_text("utf-8"))):
        shutil.copy(ROOT / "examples" / name, project)

    where = did(project, inside / "python", "-c", "import chaos, statemachine; print(chaos.__file__, statemachine.__file__)")
    assert all(path.startswith(str(tmp_path)) for path in where.split())
    assert "interrupts" in did(project, inside / "python", "-m", "chaos", "list")
    told = did(project, inside / "python", "-m", "chaos", "run", "--target", "chaos_target:boats",
               "--suite", "estimator", "--suite", "resources", "--html", "boats.html")
    assert re.search(r"^passed: \d+ faults, 0 broke a promise", told, re.MULTILINE)
    assert "boats" in (project / "boats.html").read_text("utf-8")
    told = did(project, inside / "pytest", "--chaos-target", "chaos_target:boats", "--chaos-suite", "estimator")
    assert "1 passed" in told
