"""Where structlog's copy of the audit goes while something is measured."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import structlog

from statemachine.audit import configure_for_command


@contextlib.contextmanager
def as_service(path: Path) -> Iterator[None]:
    """structlog as a service has it: every event as a line of JSON in a file."""
    with path.open("wb") as file, _restored():
        structlog.configure(
            processors=[structlog.processors.add_log_level, structlog.processors.TimeStamper(fmt="iso"),
                        structlog.processors.JSONRenderer(serializer=_json)],
            wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
            logger_factory=structlog.BytesLoggerFactory(file), cache_logger_on_first_use=False)
        yield


@contextlib.contextmanager
def dropped() -> Iterator[None]:
    """No event is written: where writes are counted, those of a log file are none of the store's."""
    with _restored():
        configure_for_command(verbose=False)
        yield


@contextlib.contextmanager
def _restored() -> Iterator[None]:
    before = structlog.get_config()
    try:
        yield
    finally:
        structlog.configure(**before)


def _json(event: Any, **_: Any) -> bytes:
    return msgspec.json.encode(event)
