"""What the harness found by scheduling threads: what happened, why, and what prevents it now."""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING, Any

import pytest

from statemachine import CommitInDoubt, Measurement, Processor, ResetManager, Store, StoreBusy, StoreLimits, StoreUnavailable
from statemachine.marks import Marks
from statemachine.store.engine import WRITER_LOCK
from tests.regression.scene import BY, START

if TYPE_CHECKING:
    from pathlib import Path


def begun(store: Store) -> Any:
    """An attempt with a validated mutation, as a thread holds it."""
    manager = ResetManager(store)
    Processor(manager).process(Measurement("ann", START, 80.0, "scale"))
    tx = manager.transaction("ann", **BY)
    tx.__enter__()
    tx.apply("move", lambda state: state.replace(x1=0.01))
    return tx


def test_an_attempt_whose_store_is_closed_by_another_thread_says_so(tmp_path: Path) -> None:
    """One thread closed the store while another was in a reset; the reset was left by `ValueError: mmap closed or invalid`.

    Closing unmapped the file of marks, into which the other thread was about to write.  No handler of the library's errors met
    that, nothing named the attempt, and its roll-back raised anew.  Now closing only lets go of the file's lock; the map stays
    for whoever holds it still, what is written to it afterwards changes nothing, and the error names the attempt.
    """
    store = Store.open(tmp_path / "store")
    tx = begun(store)
    store.close()
    with pytest.raises(StoreUnavailable) as caught:
        tx.commit()
    assert not isinstance(caught.value, CommitInDoubt)
    tx.__exit__(type(caught.value), caught.value, None)
    assert (caught.value.user, caught.value.attempt_id) == ("ann", tx.attempt_id)
    with Store.open(tmp_path / "store") as again:
        assert again.interrupted == 1
        row = again.inspect(tx.attempt_id)
        assert row is not None
        assert row.public.outcome == "interrupted"
        assert ResetManager(again).breaker("ann").suspects == (), "its process did not die of it"


def test_a_mark_made_while_the_store_is_closed_is_refused_or_kept(tmp_path: Path) -> None:
    """A thread began an attempt while another closed the store; the attempt was told to have failed, and had no row, ever.

    Closing had looked for marks that were left, found none and removed the file, when the mark was written into it.  Now closing
    says first that it has begun, and a mark asks for that after it has taken its slot: either closing finds the slot taken and
    leaves the file, or the attempt is refused before it has begun.
    """
    marks = Marks(tmp_path / "1")
    taken = marks._free

    class ClosedMeanwhile(list[int]):
        def pop(self, *_: Any) -> int:
            slot = taken.pop()
            marks._free = taken
            marks.close()
            return slot

    marks._free = ClosedMeanwhile()
    with pytest.raises(StoreUnavailable, match="closed"):
        marks.fill(None)  # type: ignore[arg-type]
    assert (tmp_path / "1").read_bytes().strip(b"\0") == b"", "the next opener finds no mark in it"


def test_a_thread_does_not_end_the_turn_of_another(tmp_path: Path) -> None:
    """One thread settled what a dead process had left while another was committing; the commit went on without the writer's turn.

    The lock of the turn belongs to an open file, and the threads of a process shared one: each was given the lock that the other
    had, and whoever was done first let go of it for both.  Another process could then wait for LMDB's mutex, where there is no
    limit and no signal, or take the file of marks of an owner that was just opening for a dead one's.  Now each turn opens the
    file for itself, so that the system keeps threads apart as it keeps processes apart.
    """
    limits = StoreLimits(writer_wait_s_max=0.01)
    with Store.open(tmp_path / "store", limits=limits) as store:
        with store.engine.turn():
            with pytest.raises(StoreBusy, match="thread of this one"), store.engine.turn():
                pass
            other = os.open(tmp_path / "store" / WRITER_LOCK, os.O_RDWR)
            try:
                with pytest.raises(BlockingIOError):
                    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            finally:
                os.close(other)
        with store.engine.turn():
            pass
