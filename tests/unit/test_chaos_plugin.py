"""The pytest plugin, as a user's own test run loads it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SUITES = """
from chaos import suites, Target
from tests.unit.test_chaos_campaign import Broken, Nowhere, Sure
suites.SUITES.clear()
suites.SUITES.update(sure=Sure, broken=Broken, nowhere=Nowhere)

def target():
    return Target()

def wrong():
    return 7
"""


def pytest_of(directory: Path, *args: str) -> subprocess.CompletedProcess[str]:
    (directory / "ours.py").write_text(SUITES, "utf-8")
    (directory / "conftest.py").write_text("import ours", "utf-8")
    (directory / "test_own.py").write_text("def test_own():\n    pass\n", "utf-8")
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "chaos.plugin", "-p", "no:cacheprovider", "-rs", *args], cwd=directory, text=True,
        capture_output=True, check=False, timeout=60,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{directory}", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"})


def test_without_a_target_nothing_is_added(tmp_path: Path) -> None:
    done = pytest_of(tmp_path)
    assert (done.returncode, "1 passed" in done.stdout) == (0, True)


def test_each_suite_is_a_test_that_fails_with_what_broke(tmp_path: Path) -> None:
    done = pytest_of(tmp_path, "--chaos-target", "ours:target")
    assert done.returncode == 1
    assert "1 failed, 2 passed, 1 skipped" in done.stdout
    assert "it needs a moon" in done.stdout
    assert "durable: version 3 of <ann> is gone" in done.stdout
    assert "python -m chaos replay chaos-findings/broken-" in done.stdout
    assert "Traceback" not in done.stdout


def test_a_suite_can_be_chosen(tmp_path: Path) -> None:
    done = pytest_of(tmp_path, "--chaos-target", "ours:target", "--chaos-suite", "sure", "-m", "chaos")
    assert (done.returncode, "1 passed, 1 deselected" in done.stdout) == (0, True)


@pytest.mark.parametrize(("args", "why"), [
    (("--chaos-target", "ours:target", "--chaos-suite", "nope"), "no chaos suite is called 'nope'"),
    (("--chaos-target", "ours:wrong"), "returned a int, not a chaos.Target"),
    (("--chaos-target", "ours:target", "--chaos-budget", "soon"), "budget 'soon' is no duration"),
])
def test_wrong_use_is_told(tmp_path: Path, args: tuple[str, ...], why: str) -> None:
    done = pytest_of(tmp_path, *args)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert why in done.stdout + done.stderr
    assert "passed" not in done.stdout, "it is told before a test runs"


def test_the_plugin_costs_those_nothing_who_give_no_target() -> None:
    code = "import sys, chaos.plugin; sys.exit(', '.join({'statemachine', 'numpy', 'typer'} & {*sys.modules}) or 0)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_target_lies_where_pytest_is_called(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("from chaos import Target as target\n", "utf-8")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "pytest", "-p", "chaos.plugin", "-p", "no:cacheprovider", "--collect-only", "-q",
         "--chaos-target", "mine:target"], cwd=tmp_path, text=True, capture_output=True, check=False, timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "chaos[power]" in done.stdout


@pytest.mark.parametrize(("module", "args"), [("pytest", ("-p", "chaos.plugin", "--chaos-target", "x:y")), ("chaos", ("list",))])
def test_without_the_extra_it_is_told_what_to_install(tmp_path: Path, module: str, args: tuple[str, ...]) -> None:
    (tmp_path / "greenlet.py").write_text("raise ModuleNotFoundError('no', name='greenlet')\n", "utf-8")
    done = subprocess.run(
        [sys.executable, "-m", module, *args], cwd=tmp_path, text=True, capture_output=True, check=False, timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"})
    assert done.returncode in {2, pytest.ExitCode.USAGE_ERROR}
    assert "pip install 'resetguard[chaos]'" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
