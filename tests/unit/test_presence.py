"""The lock on a store's directory: shared by all that have it open, exclusive for one, and gone with its process."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

from statemachine import StoreBusy, StoreForeign, StoreUnavailable
from statemachine.store import presence
from tests.regression.scene import StillClock, fill, opened, refused
from tests.unit.processes import line, ran, started

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_many_may_be_there_but_only_one_alone(tmp_path: Path) -> None:
    one, other = presence.shared(tmp_path, StillClock(), 0), presence.shared(tmp_path, StillClock(), 0)
    refused(StoreBusy, presence.alone, tmp_path)
    presence.let_go(one)
    refused(StoreBusy, presence.alone, tmp_path)
    presence.let_go(other)
    alone = presence.alone(tmp_path)
    for call in (presence.alone, lambda path: presence.shared(path, StillClock(), 0.01)):
        assert "this process" in str(refused(StoreBusy, call, tmp_path))
    presence.let_go(alone)
    presence.let_go(presence.alone(tmp_path))


def test_a_lock_that_a_forked_child_inherited_ends_with_the_store(tmp_path: Path) -> None:
    """The child lives on after the parent has closed the store, and keeps nobody out."""
    said = ran("""
        from statemachine.store import presence
        store = opened(path)
        child = os.fork()
        if child == 0:
            heard()
            os._exit(0)
        store.close()
        presence.let_go(presence.alone(path))
        say("alone")
        os.kill(child, signal.SIGKILL)
    """, tmp_path / "store")
    assert said == "alone"


def test_letting_go_ends_the_lock_though_a_child_has_its_descriptor(tmp_path: Path) -> None:
    """As one forked by another thread while a file is made anew, of which the child is not told."""
    held = presence.alone(tmp_path)
    child = os.fork()
    if child == 0:
        signal.pause()
        os._exit(0)
    try:
        assert not presence.is_free(tmp_path)
        presence.let_go(held)
        assert presence.is_free(tmp_path)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_forked_child_cannot_end_what_its_parent_holds(tmp_path: Path) -> None:
    """Nor keep it up: once the parent was killed, the child that lives on is in nobody's way."""
    parent = started("""
        store = opened(path)
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            store.close()
            os.write(writing, b"closed")
            time.sleep(60)
            os._exit(0)
        os.read(reading, 6)
        say(child)
        heard()
    """, tmp_path / "store")
    child = int(line(parent))
    try:
        refused(StoreBusy, presence.alone, tmp_path / "store")
        assert parent.pid in presence.holders(tmp_path / "store")
        parent.kill()
        parent.wait()
        presence.let_go(presence.alone(tmp_path / "store"))
    finally:
        os.kill(child, 9)
        parent.communicate()


def test_a_store_that_could_not_be_opened_is_not_held(tmp_path: Path) -> None:
    fill(tmp_path / "store", "u", [80.0])
    with opened(tmp_path / "store"):
        refused(StoreUnavailable, opened, tmp_path / "store")  # a second time in one process
    (tmp_path / "store" / "data.mdb").write_bytes(bytes(100_000))
    refused(StoreForeign, opened, tmp_path / "store")
    assert presence.is_free(tmp_path / "store")


def test_where_the_system_tells_nothing_the_others_are_not_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = presence.shared(tmp_path, StillClock(), 0)
    monkeypatch.setattr(presence, "lock_table", tmp_path / "none")
    assert "open in another process" in str(refused(StoreBusy, presence.alone, tmp_path))
    monkeypatch.undo()
    table = tmp_path / "locks"
    inode = tmp_path.stat().st_ino
    table.write_text(f"1: FLOCK  ADVISORY  READ 4194999 ff:ff:{inode} 0 EOF\n2: POSIX  ADVISORY READ 7 ff:ff:{inode} 0 EOF\n"
                     f"3: FLOCK  ADVISORY  READ 0 ff:ff:{inode} 0 EOF\n4: -> FLOCK  ADVISORY  WRITE 8 ff:ff:{inode} 0 EOF\n")
    monkeypatch.setattr(presence, "lock_table", table)
    assert presence.holders(tmp_path) == [4194999]
    presence.let_go(held)


def test_a_directory_that_is_not_there_is_told(tmp_path: Path) -> None:
    refused(StoreUnavailable, presence.alone, tmp_path / "none")
    assert not presence.is_free(tmp_path / "none")
    assert presence.is_free(tmp_path)
