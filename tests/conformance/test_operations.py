"""docs/operations.md: every command of the runbook runs as it stands there, in its order, on the sample."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from typing import Final

import pytest
from typer.testing import CliRunner

from statemachine.cli import app

RUNBOOK: Final = Path(__file__).parents[2] / "docs" / "operations.md"
SAMPLE: Final = Path(__file__).parents[2] / "statemachine" / "cli" / "sample.csv"
COMMANDS_MIN: Final = 22


def test_the_runbook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each command ends with 0, and after all of them the store is sound and holds nothing of whom it forgot."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(SAMPLE, tmp_path / "weights.csv")
    blocks = re.findall(r"```console\n(.*?)```", RUNBOOK.read_text(encoding="utf-8"), re.DOTALL)
    commands = [shlex.split(line.removeprefix("$ resetguard ")) for block in blocks for line in block.splitlines()]
    assert len(commands) >= COMMANDS_MIN
    runner = CliRunner()
    for arguments in (["demo", "--store", "./state"], *commands, ["doctor", "--store", "./state"]):
        result = runner.invoke(app, arguments)
        assert result.exit_code == 0, f"{arguments}: {result.output}"
    assert "ada" not in runner.invoke(app, ["users", "--store", "./state", "--json"]).stdout
    assert "ada" in runner.invoke(app, ["users", "--store", "./state-again", "--json"]).stdout
