"""Fixtures of the chaos tests."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from chaos import target as targets
from chaos.conform import monitor, rows
from chaos.target import Target
from statemachine import ResetError, Store, StoreUnavailable
from statemachine.audit import configure_for_command
from statemachine.store.engine import DATA

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def boats(monkeypatch: pytest.MonkeyPatch) -> Iterator[Target]:
    """The estimator of the examples, which is not body weight."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield targets.load("chaos_target:boats")
    for name in ("chaos_target", "tracker"):
        sys.modules.pop(name, None)


@pytest.fixture(params=["body weight", "boats"])
def target(request: pytest.FixtureRequest) -> Target:
    """Two kinds of state, one after the other."""
    found: Target = request.getfixturevalue("boats") if request.param == "boats" else Target()
    return found


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A directory in memory where there is one: LMDB syncs thousands of times in it."""
    memory = Path("/dev/shm")  # noqa: S108 - a directory of our own is made in it
    with tempfile.TemporaryDirectory(prefix="chaos-", dir=memory if memory.is_dir() else None) as name:
        yield Path(name)


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
