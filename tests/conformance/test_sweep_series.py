"""What ships is swept clean: the sample, whatever resets and revocations it holds, and a real export where it is at hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from statemachine.cli import app

EXPORT = Path(__file__).parents[3] / "shared" / "data" / "healthkit_weight.csv"


def test_the_sample_is_swept_clean(tmp_path: Path) -> None:
    """Eight people, gaps, wrong entries, a revoked reset: every log folds to its head, and every filter is consistent."""
    runner = CliRunner()
    assert runner.invoke(app, ["demo", "--store", str(tmp_path / "store")]).exit_code == 0
    result = runner.invoke(app, ["sweep", "--store", str(tmp_path / "store")])
    assert result.exit_code == 0, result.output
    assert "8 users" in result.stderr


@pytest.mark.skipif(not EXPORT.exists(), reason="the public data set is not beside this checkout")
def test_a_real_series_is_swept_clean(tmp_path: Path) -> None:
    """Seven years of one person's readings, fifteen long gaps among them."""
    runner = CliRunner()
    runner.invoke(app, ["process", str(EXPORT), "--user", "me", "--store", str(tmp_path / "store")])
    result = runner.invoke(app, ["sweep", "--store", str(tmp_path / "store"), "--json"])
    assert result.exit_code == 0, result.output
    assert '"users":1' in result.stdout
    assert '"findings":0' in result.stdout
