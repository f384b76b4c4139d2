"""Arguments of a wrong type: InvalidInput names the argument and its value, and nothing is changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from statemachine import InvalidInput, ResetManager
from statemachine.audit import require_said
from statemachine.rebuild import rebuild, rebuild_from
from statemachine.testing import snapshot
from tests.regression.scene import BY, fill, opened

pytestmark = pytest.mark.usefixtures("no_events")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    fill(tmp_path / "store", "ann", [80.0, 80.1])
    return tmp_path / "store"


@pytest.mark.parametrize("said", [None, 3, b"why", ["why"], "\ud800"])
@pytest.mark.parametrize("name", ["reason", "actor"])
def test_a_reason_or_actor_that_is_no_text(path: Path, name: str, said: Any) -> None:
    by = {**BY, name: said}
    with opened(path) as store:
        manager, before = ResetManager(store), snapshot(store)
        for call in (
            lambda: manager.restore("ann", to_version=1, **by), lambda: manager.perform_reset("ann", **by),
            lambda: manager.force_breaker("ann", "forced-open", **by), lambda: manager.release_breaker(None, **by),
            lambda: rebuild(manager, "ann", **by), lambda: rebuild_from(manager, "ann", [], [], **by),
        ):
            with pytest.raises(InvalidInput, match=f"the {name} must"):
                call()
        assert snapshot(store) == before


@pytest.mark.parametrize("version", ["3", 1.0, True, b"1"])
def test_a_version_that_is_no_whole_number(path: Path, version: Any) -> None:
    with opened(path) as store:
        manager, before = ResetManager(store), snapshot(store)
        with pytest.raises(InvalidInput, match=r"to_version is .* must be a whole number"):
            manager.restore("ann", to_version=version, **BY)
        for call in (
            lambda: manager.restore("ann", to_version=1, expect_version=version, **BY),
            lambda: manager.perform_reset("ann", expect_version=version, **BY),
            lambda: rebuild(manager, "ann", expect_version=version, **BY),
            lambda: rebuild_from(manager, "ann", [], [], expect_version=version, **BY),
        ):
            with pytest.raises(InvalidInput, match=r"expect_version is .* must be a whole number"):
                call()
        assert snapshot(store) == before


def test_no_version_to_go_back_to_is_told(path: Path) -> None:
    with opened(path) as store, pytest.raises(InvalidInput, match="to_version is None"):
        ResetManager(store).restore("ann", to_version=None, **BY)  # type: ignore[arg-type]


def test_a_long_value_is_cut_in_the_message() -> None:
    with pytest.raises(InvalidInput) as refused:
        require_said(reason=[0] * 10_000)  # type: ignore[arg-type]
    assert len(str(refused.value)) < 200
