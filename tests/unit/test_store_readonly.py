"""A store opened for reading: nothing on the disk changes, nothing can be written, and others may write meanwhile."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from statemachine import Processor, ResetManager, StoreCorrupt, StoreUnavailable
from statemachine.cli import app
from tests.regression.scene import BY, fill, head, opened, refused, weighed
from tests.unit.processes import answer, line, ran, started

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("no_events")

DIES = "ResetManager(opened(path)).perform_reset('u', **BY, operations=[('die', lambda s: os._exit(9))])"


def on_disk(path: Path) -> dict[str, Any]:
    """The bytes of every file but LMDB's own table of readers, and when they were last changed."""
    return {str(p.relative_to(path)): (p.read_bytes() if p.is_file() else b"", p.stat().st_mtime_ns)
            for p in [path, *path.rglob("*")] if p.name != "lock.mdb"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store of one user, with what a process that died in a reset has left in its marks."""
    path = tmp_path / "state"
    fill(path, "u", [80.0, 80.1, 80.2])
    answer(started(DIES, path), code=9)
    assert len(list((path / "owners").iterdir())) == 1
    return path


def test_nothing_is_registered_settled_or_written(path: Path) -> None:
    before = on_disk(path)
    with opened(path, readonly=True) as store:
        assert store.readonly
        assert (store.interrupted, head(store, "u").kalman.at_us > 0, len(list(store.history("u")))) == (0, True, 3)
        assert store.verify_audit().bad_seq is None
    assert on_disk(path) == before
    with opened(path) as store:
        assert (store.readonly, store.interrupted) == (False, 1), "it is left to whoever opens it to write"


@pytest.mark.parametrize("arguments", [
    ["users"], ["show", "u"], ["history", "u"], ["diff", "u", "1", "2"], ["quarantine", "list"], ["audit", "list"],
    ["audit", "verify"],
], ids=" ".join)
def test_the_commands_that_look_change_nothing(path: Path, arguments: list[str]) -> None:
    before = on_disk(path)
    result = CliRunner().invoke(app, [*arguments, "--store", str(path)])
    assert result.exit_code == 0, result.output
    assert on_disk(path) == before


def test_what_would_change_something_is_refused_by_name(path: Path) -> None:
    with opened(path, readonly=True) as store:
        manager = ResetManager(store)
        for call in (store.draft, lambda: manager.perform_reset("u", **BY), lambda: manager.restore("u", to_version=1, **BY),
                     lambda: Processor(manager).process(weighed("u", 9, 80.0)), lambda: store.committer, lambda: store.marks,
                     lambda: store.engine.turn().__enter__()):
            assert "opened for reading" in str(refused(StoreUnavailable, call))
    with pytest.raises(StoreUnavailable, match="is closed"):
        store.load("u")


def test_a_directory_is_never_made(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "absent", tmp_path / "empty"):
        with pytest.raises(StoreUnavailable, match="there is no store at"):
            opened(path, readonly=True)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["empty"]


def test_a_file_cut_short_is_refused_and_not_lengthened(path: Path) -> None:
    """Reading what the cut took would kill the process; so it is another that tries."""
    size = (path / "data.mdb").stat().st_size
    os.truncate(path / "data.mdb", size - os.sysconf("SC_PAGESIZE"))
    before = on_disk(path)
    assert "was cut short" in ran("""
        try:
            opened(path, readonly=True).load("u")
        except StoreCorrupt as error:
            say(error)
    """, path)
    assert on_disk(path) == before
    with pytest.raises(StoreCorrupt):
        opened(path, readonly=True)


def test_a_reader_follows_another_process_that_writes_and_grows_the_map(path: Path) -> None:
    writer = started("""
        small = StoreLimits(map_bytes=1 << 16, map_bytes_max=1 << 26)
        with working(path, limits=small) as (store, manager, processor):
            say("open")
            heard()
            for day in range(3, 400):
                processor.process(weighed("u", day, 80.0))
            say("written")
            heard()
    """, path)
    assert line(writer) == "open"
    with opened(path, readonly=True) as store:
        before = store.version_range("u")[1]
        assert writer.stdin is not None
        writer.stdin.write("\n")
        writer.stdin.flush()
        assert line(writer) == "written"
        assert store.version_range("u")[1] == before + 397
        assert store.verify_audit().bad_seq is None
    answer(writer, "\n")
