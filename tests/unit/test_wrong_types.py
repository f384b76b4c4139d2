"""Arguments of a wrong type: InvalidInput names the argument and its value, and nothing is changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from statemachine import InvalidInput, ResetManager
from statemachine.audit import require_said
from statemachine.erasure import forget, prune_audit
from statemachine.rebuild import rebuild, rebuild_from
from statemachine.requarantine import replay
from statemachine.retention import prune_quarantine
from statemachine.store.compaction import compact
from statemachine.store.life import restore_store
from statemachine.sweep import Sweep
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
            lambda: manager.recover("ann", **by), lambda: forget(store, "nobody", **by), lambda: prune_audit(store, 0, **by),
            lambda: prune_quarantine(store, 0, **by), lambda: replay(manager, "ann", **by),
            lambda: restore_store(path / "nothing", path, **by), lambda: compact(path / "nothing", **by),
        ):
            with pytest.raises(InvalidInput, match=f"the {name} must"):
                call()
        assert snapshot(store) == before


@pytest.mark.parametrize("said", [3, b"why", ["why"], "\ud800"])
def test_an_actor_of_a_sweep_that_writes_nothing_is_looked_at_too(path: Path, said: Any) -> None:
    with opened(path) as store:
        for asked in (Sweep(dry_run=True, actor=said), Sweep(dry_run=True, reason=said)):
            with pytest.raises(InvalidInput, match="the text must"):
                ResetManager(store).sweep(asked)


@pytest.mark.parametrize("kind", [None, 3, "", b"admin", "\ud800"])
def test_a_kind_that_is_no_text(path: Path, kind: Any) -> None:
    with opened(path) as store:
        manager, before = ResetManager(store), snapshot(store)
        with pytest.raises(InvalidInput, match="the kind must"):
            manager.transaction("ann", kind=kind, **BY)
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
