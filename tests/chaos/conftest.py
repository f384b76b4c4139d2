"""Fixtures of the chaos tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from chaos.conform import monitor, rows
from statemachine import ResetError, Store, StoreUnavailable
from statemachine.audit import configure_for_command
from statemachine.store.engine import DATA


@pytest.fixture
def no_events() -> Iterator[None]:
    """Nothing is printed of what the audit copies to structlog."""
    configure_for_command(verbose=False)
    yield
    structlog.reset_defaults()


@pytest.fixture(autouse=True)
def judged(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[None]:
    """Whatever a test did to a store in its directory, the audit log is a behaviour of the protocol in the end."""
    yield
    if request.node.get_closest_marker("damages") is None:
        configure_for_command(verbose=False)
        try:
            assert rejected(tmp_path) == {}
        finally:
            structlog.reset_defaults()


def rejected(directory: Path) -> dict[str, monitor.Rejection]:
    """By the path of each store in a directory where its log stops being a behaviour of the protocol.

    A store that does not open, and one whose chain does not verify, have no log that could be judged.
    """
    found = {}
    for path in sorted(data.parent for data in directory.rglob(DATA)):
        try:
            with _opened(path) as store:
                verdict = monitor.judge(rows.of_store(store)) if store.verify_audit().bad_seq is None else None
        except ResetError:
            continue
        if verdict is not None and verdict.rejected is not None:
            found[str(path.relative_to(directory))] = verdict.rejected
    return found


def _opened(path: Path) -> Store:
    """As the next process would open it, which settles what the dead left; a backup is only read."""
    try:
        return Store.open(path)
    except StoreUnavailable:
        return Store.open(path, readonly=True)
