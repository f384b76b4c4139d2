"""Fixtures of the chaos tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import structlog

from statemachine.audit import configure_for_command


@pytest.fixture
def no_events() -> Iterator[None]:
    """Nothing is printed of what the audit copies to structlog."""
    configure_for_command(verbose=False)
    yield
    structlog.reset_defaults()
