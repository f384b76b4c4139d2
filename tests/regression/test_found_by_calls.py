"""What the single-fault sweep found; each test names what went wrong before."""

from __future__ import annotations

from pathlib import Path

import lmdb
import pytest

from statemachine import ResetManager, Store, StoreFull, StoreLimits
from tests.regression.scene import BY, fill
from tests.unit.doubles import Commit, Disk


def full(_: Commit) -> None:
    raise lmdb.MapFullError("no room")


def test_an_attempt_that_fails_as_it_begins_is_named_by_its_error(tmp_path: Path) -> None:
    """With durable intents an attempt commits before it runs.  Where that failed, its error named neither attempt nor user.

    The sweep (ENOSPC, lasting, at the 19th call of "working, durable intents") found a row of an attempt in the log that its
    caller had never been told of: `begin` left the mark, and let the committer's error pass as it was; only errors of the last
    commit were given the attempt's id.  Now those of the first are, too.
    """
    fill(tmp_path / "s", "ann", [80.0, 80.1])
    disk = Disk()
    limits = StoreLimits(map_bytes=1 << 20, map_bytes_max=1 << 20)
    with Store.open(tmp_path / "s", intents="durable", opener=disk, limits=limits) as store:
        disk.once(full)
        with pytest.raises(StoreFull) as told:
            ResetManager(store).perform_reset("ann", **BY)
        assert told.value.user == "ann"
        assert told.value.attempt_id is not None
    with Store.open(tmp_path / "s") as store:
        row = store.inspect(told.value.attempt_id)
        assert row is not None
        assert row.public.outcome == "rolled_back"
