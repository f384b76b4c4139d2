"""The file of marks: slots, what a death leaves in them, texts that are too long, a full file, and letting go."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any, Final

import msgspec
import pytest

from statemachine import StoreUnavailable
from statemachine.marks import ENDED, FREE, RUNNING, SLOT_BYTES, SLOTS, WAITING, DeadMarks, Mark, Marks

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HEADER: Final = 8
WIDE: Final = "\N{GRINNING FACE}"


def mark(number: int = 1, state: int = RUNNING, **changes: Any) -> Mark:
    plain = Mark(state, "reset.interrupted", "interrupted", f"{number:032x}", f"user {number}", "admin", "admin", 4, 2, 99,
                 "by hand", "a reason", "ops", "")
    return msgspec.structs.replace(plain, **changes)


@pytest.fixture
def marks(tmp_path: Path) -> Iterator[Marks]:
    made = Marks(tmp_path / "1")
    yield made
    if not made._map.closed:
        made.abandon()


def left(path: Path) -> list[Mark]:
    """What the next owner finds in the file, of which nobody may hold the lock."""
    dead = DeadMarks.take(path)
    assert dead is not None, "the lock is still held"
    found = dead.marks()
    dead.leave()
    return found


def flip(path: Path, offset: int) -> None:
    """Flip the lowest bit of one byte."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes((byte[0] ^ 1,)))


def test_marks_survive_their_owner_with_the_state_they_were_left_in(marks: Marks) -> None:
    """What was filled, rewritten and moved on is found in the order of the slots; what was released is not."""
    slots = [marks.fill(mark(number)) for number in range(1, 6)]
    assert slots == [0, 1, 2, 3, 4]
    marks.state(slots[1], WAITING)
    marks.write(slots[2], mark(3, ENDED, outcome="refused"))
    marks.release(slots[3])
    marks.abandon()
    assert left(marks.path) == [mark(1), mark(2, WAITING), mark(3, ENDED, outcome="refused"), mark(5)]


def test_a_released_slot_is_used_again(marks: Marks) -> None:
    """Slots are few and attempts many: a released one is the next to be filled."""
    slot = marks.fill(mark(1))
    for number in range(2, 3 * SLOTS):
        marks.release(slot)
        slot = marks.fill(mark(number))
    marks.abandon()
    assert left(marks.path) == [mark(3 * SLOTS - 1)]


def test_the_file_of_a_living_owner_is_not_taken(marks: Marks) -> None:
    """The lock says who lives; once it is free the file is taken, by one taker only."""
    assert DeadMarks.take(marks.path) is None
    assert DeadMarks.take(marks.path.with_name("2")) is None, "no such owner"
    marks.abandon()
    first = DeadMarks.take(marks.path)
    assert first is not None
    assert DeadMarks.take(marks.path) is None
    first.remove()
    assert not marks.path.exists()
    assert DeadMarks.take(marks.path) is None


def test_two_owners_never_share_a_file(marks: Marks) -> None:
    """A second file of the same number is refused, and the first one is not touched by the refusal."""
    marks.fill(mark())
    with pytest.raises(FileExistsError):
        Marks(marks.path)
    marks.abandon()
    assert left(marks.path) == [mark()]


def test_a_torn_slot_is_empty_and_its_neighbours_are_whole(marks: Marks) -> None:
    """Whichever byte of a slot changes, it is read as nothing, never as another mark."""
    for number in (1, 2, 3):
        marks.fill(mark(number))
    length = int.from_bytes(marks._map[SLOT_BYTES + 2:SLOT_BYTES + 4], "little")
    marks.abandon()
    for offset in range(2, HEADER + length):
        flip(marks.path, SLOT_BYTES + offset)
        assert left(marks.path) == [mark(1), mark(3)], f"byte {offset}"
        flip(marks.path, SLOT_BYTES + offset)
    assert left(marks.path) == [mark(1), mark(2), mark(3)]


def test_a_length_that_runs_out_of_the_file_is_a_torn_slot(marks: Marks) -> None:
    """The last slot cannot claim more than there is."""
    for number in range(SLOTS):
        marks.fill(mark(number))
    marks._map[-SLOT_BYTES + 2:-SLOT_BYTES + 4] = b"\xff\xff"
    marks.abandon()
    assert left(marks.path) == [mark(number) for number in range(SLOTS - 1)]


def test_a_file_cut_short_gives_what_is_whole(marks: Marks) -> None:
    """A file of marks that lost its end, or all of it, still gives the slots it has."""
    for number in (1, 2, 3):
        marks.fill(mark(number))
    marks.abandon()
    for size, whole in ((3 * SLOT_BYTES, 3), (3 * SLOT_BYTES - 1, 2), (SLOT_BYTES, 1), (HEADER, 0), (0, 0)):
        os.truncate(marks.path, size)
        assert left(marks.path) == [mark(number) for number in range(1, whole + 1)]


class Dying:
    """The memory of a process that dies at its write of the given number."""

    def __init__(self, memory: Any, fatal: int) -> None:
        self._memory = memory
        self._left = fatal

    def __setitem__(self, where: Any, what: Any) -> None:
        if self._left == 0:
            raise KeyboardInterrupt
        self._left -= 1
        self._memory[where] = what

    @property
    def closed(self) -> bool:
        return bool(self._memory.closed)

    def close(self) -> None:
        self._memory.close()


def test_a_death_while_a_slot_is_rewritten_leaves_the_old_mark_none_or_the_new_one(tmp_path: Path) -> None:
    """At no instant does a slot hold half of one mark and half of another."""
    found = []
    for fatal in range(10):
        marks = Marks(tmp_path / str(fatal))
        slot = marks.fill(mark(1))
        memory = marks._map
        marks._map = Dying(memory, fatal)  # type: ignore[assignment]
        try:
            marks.write(slot, mark(2, ENDED, outcome="rolled_back", error="a longer text than before" * 3))
            done = True
        except KeyboardInterrupt:
            done = False
        marks.abandon()
        found.append(left(marks.path))
        if done:
            break
    assert found[0] == [mark(1)]
    assert found[-1] == [mark(2, ENDED, outcome="rolled_back", error="a longer text than before" * 3)]
    assert all(between == [] for between in found[1:-1])
    assert len(found) >= 4


@pytest.mark.parametrize("letter", ["x", "\u00e9", WIDE])
def test_texts_too_long_are_cut_and_stay_in_their_slot(marks: Marks, letter: str) -> None:
    """The longest user, kind and texts fit into one slot: the user whole, the others by their beginning."""
    size = len(letter.encode())
    long = mark(2, user=letter * (255 // size), kind=letter * (500 // size), suspect=letter * (500 // size),
                trigger=letter * 500, reason=letter * 500, actor=letter * 500, error=letter * 5_000)
    for content in (mark(1), long, mark(3)):
        marks.fill(content)
    marks.write(1, long)
    marks.abandon()
    before, cut, after = left(marks.path)
    assert (before, after) == (mark(1), mark(3))
    assert (cut.attempt_id, cut.user, cut.base_version, cut.generation) == (long.attempt_id, long.user, 4, 2)
    for name in ("kind", "suspect", "trigger", "reason", "actor", "error"):
        text = getattr(cut, name)
        assert text, name
        assert getattr(long, name).startswith(text), name


def test_the_last_slot_holds_a_mark_of_the_greatest_length(marks: Marks) -> None:
    """Nothing is written past the end of the file."""
    for number in range(SLOTS - 1):
        marks.fill(mark(number))
    marks.fill(mark(9, user=WIDE * 63, error=WIDE * 5_000))
    marks.abandon()
    assert left(marks.path)[-1].user == WIDE * 63
    assert marks.path.stat().st_size == SLOT_BYTES * SLOTS


def test_texts_that_fit_are_not_cut(marks: Marks) -> None:
    """What fits into the slot is kept whole."""
    content = mark(1, reason="r" * 400, error="e" * 300)
    marks.fill(content)
    marks.abandon()
    assert left(marks.path) == [content]


def test_a_full_file_refuses_more_attempts_until_one_ends(marks: Marks) -> None:
    """The number of attempts under way is limited, and the limit is told before it is reached."""
    assert not marks.full
    slots = [marks.fill(mark(number)) for number in range(SLOTS)]
    assert sorted(slots) == list(range(SLOTS))
    assert marks.full
    with pytest.raises(StoreUnavailable, match=f"{SLOTS} attempts are under way"):
        marks.fill(mark(0))
    marks.release(slots[7])
    assert marks.fill(mark(0)) == slots[7]
    for slot in slots[:SLOTS // 4]:
        marks.release(slot)
    assert not marks.full


def test_threads_never_get_the_same_slot(marks: Marks) -> None:
    """Eight threads fill and release at once: no slot is in two hands."""
    owners: list[list[int]] = [[] for _ in range(SLOTS)]
    shared: list[int] = []

    def work(number: int) -> None:
        for turn in range(200):
            slot = marks.fill(mark(number * 1_000 + turn))
            owners[slot].append(number)
            if owners[slot] != [number]:
                shared.append(slot)
            owners[slot].remove(number)
            marks.release(slot)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert shared == []
    assert sorted(marks._free) == list(range(SLOTS))


def test_ended_marks_wait_for_the_commit_that_writes_them(marks: Marks) -> None:
    """Only marks of ended attempts are rows to write, in the order they ended, until they are released."""
    slots = [marks.fill(mark(number)) for number in (1, 2, 3)]
    for slot in (slots[2], slots[0]):
        marks.write(slot, mark(slot, ENDED, outcome="refused"))
    assert list(marks.ended()) == [slots[2], slots[0]]
    marks.release(slots[2])
    assert marks.ended() == {slots[0]: mark(slots[0], ENDED, outcome="refused")}


def test_closing_removes_the_file_only_when_nothing_is_in_it(tmp_path: Path) -> None:
    """An attempt that nobody ended stays for the next opening, without blame: its process did not die of it."""
    empty, busy = Marks(tmp_path / "1"), Marks(tmp_path / "2")
    empty.release(empty.fill(mark(1)))
    empty.close()
    assert not empty.path.exists()
    busy.fill(mark(1))
    busy.write(busy.fill(mark(2)), mark(2, ENDED))
    busy.close()
    assert left(busy.path) == [mark(1, WAITING), mark(2, ENDED)]


def test_the_file_is_allocated_and_kept_from_others(tmp_path: Path) -> None:
    """A hole could not be filled on a full disk, and would kill the process that tries: the file has all its blocks."""
    before = os.umask(0)
    try:
        marks = Marks(tmp_path / "1")
    finally:
        os.umask(before)
    stat = marks.path.stat()
    assert stat.st_size == SLOT_BYTES * SLOTS
    assert stat.st_blocks * 512 >= stat.st_size
    assert stat.st_mode & 0o777 == 0o600
    assert set(marks._map[:]) == {FREE}
    marks.close()


def test_the_row_of_a_mark_says_all_that_is_known() -> None:
    """The audit row that stands for an attempt names it, its user, who asked and why."""
    entry = mark(7, kind="gap", error="it died").entry()
    public, personal = entry.public, entry.personal
    assert (public.event, public.outcome, public.kind) == ("reset.interrupted", "interrupted", "gap")
    assert (public.attempt_id, public.base_version, public.breaker_generation) == (f"{7:032x}", 4, 2)
    assert (personal.user, personal.at_us, personal.trigger) == ("user 7", 99, "by hand")
    assert (personal.reason, personal.actor, personal.error) == ("a reason", "ops", "it died")


def test_a_released_slot_keeps_nothing_of_what_it_said(marks: Marks) -> None:
    """The file is only zeros again, whatever was written over what."""
    slot = marks.fill(mark(1, error="a long text that is then written over by a shorter one"))
    marks.write(slot, mark(1, ENDED))
    assert b"user 1" in marks.path.read_bytes()
    marks.release(slot)
    assert not marks.path.read_bytes().strip(b"\0")
