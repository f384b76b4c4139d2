"""Walking back: what it costs does not grow with the log."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from statemachine.store import keys, log
from statemachine.store.records import Head
from tests.regression.scene import BY, tear, weighed, working

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

VERSIONS = 1_500


@pytest.mark.usefixtures("no_events")
def test_torn_head_of_a_long_log_is_made_anew_from_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ten images at hand are found among the newest versions; the head is as it was."""
    path, read = tmp_path / "store", 0
    with working(path, durability="process") as (store, manager, processor):
        processor.process_batch([weighed("ann", number / 4, 80.0) for number in range(VERSIONS)])
        before = store.head("ann")
    tear(path, keys.head(b"ann"))

    def counted(scan: Callable[[bytes, bytes], Iterator[tuple[bytes, bytes]]], user: bytes) -> Iterator[tuple[int, bytes]]:
        nonlocal read
        for found in versions(scan, user):
            read += 1
            yield found

    versions = log.versions
    monkeypatch.setattr(log, "versions", counted)
    with working(path) as (store, manager, _):
        assert manager.recover("ann", **BY) is not None
        after = store.head("ann")
    assert isinstance(before, Head)
    assert isinstance(after, Head)
    assert after.version == VERSIONS
    assert len(after.images) == log.IMAGES_AT_HAND
    assert (after.state, after.images, after.first) == (before.state, before.images, before.first)
    assert read <= (log.IMAGES_AT_HAND + 1) * log.KEYFRAME_VERSIONS
