"""The README's two commands are the ones that run: `.ci/run` calls the second, word for word."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEADING = "## Two commands"
TEST_COMMAND = "python3 -m venv .venv && .venv/bin/pip install --quiet nox && .venv/bin/nox"


def two_commands(readme: str) -> tuple[list[str], list[str]]:
    """The command lines of the two fenced console or sh blocks right under the heading; raises ValueError otherwise."""
    section = re.search(rf"^{HEADING}$(.*?)(?=^## |\Z)", readme, re.MULTILINE | re.DOTALL)
    blocks = re.findall(r"^```(?:console|sh)\n(.*?)^```$", section[1] if section else "", re.MULTILINE | re.DOTALL)
    if len(blocks) != 2:
        message = f"{HEADING!r} must hold two blocks fenced as console or sh, not {len(blocks)}"
        raise ValueError(message)
    return command_lines(blocks[0]), command_lines(blocks[1])


def command_lines(block: str) -> list[str]:
    """The commands of a block without prompts, output and comments, continued lines joined.

    Where one line has a prompt, the lines without are output.
    """
    lines = re.sub(r"\\\n\s*", "", block).splitlines()
    if any(line.startswith("$ ") for line in lines):
        lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def test_readme_states_an_install_and_the_test_command() -> None:
    install, test = two_commands((ROOT / "README.md").read_text(encoding="utf-8"))
    assert any("install" in line for line in install)
    assert test == [TEST_COMMAND]


def test_ci_runs_the_readme_command_last() -> None:
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line.startswith("python3 -m venv")] == [TEST_COMMAND]
    assert lines[-1] == TEST_COMMAND
    assert "set -euo pipefail" in lines


def test_ci_script_is_executable_and_parses() -> None:
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    if (bash := shutil.which("bash")) is None:
        pytest.skip("no bash to parse it with")
    subprocess.run([bash, "-n", str(ROOT / ".ci" / "run")], check=True)


@pytest.mark.parametrize(("readme", "expected"), [
    ("# T\n## Two commands\nFirst:\n```console\n$ a\nok\n$ b\n```\nthen\n```sh\n# all\nc && \\\n  d\n```\n",
     (["a", "b"], ["c && d"])),
    ("## Two commands\n```sh\na\n```\n```sh\nb\n```\n## Next\n```sh\nc\n```\n", (["a"], ["b"])),
])
def test_blocks_are_read_without_prompts_output_and_comments(
    readme: str, expected: tuple[list[str], list[str]],
) -> None:
    assert two_commands(readme) == expected


@pytest.mark.parametrize("readme", ["# T\n", "## Two commands\n```sh\na\n```\n## Next\n```sh\nb\n```\n",
                                    "## Two commands\n```python\na\n```\n```sh\nb\n```\n"])
def test_other_shapes_are_refused(readme: str) -> None:
    with pytest.raises(ValueError, match="two blocks"):
        two_commands(readme)
