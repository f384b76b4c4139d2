"""What the suites of media, resources and estimators found in the library; each test names what went wrong before."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import resource
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest

from chaos import grown
from chaos.faults import limits, media
from chaos.faults.foreign import FAULTS
from chaos.target import Target
from chaos.workload import BY, Client, Op
from statemachine import ContractBroken, InvalidInput, MutationFailed, ResetError, StoreUnavailable
from statemachine.store import keys, pages
from statemachine.store.checkup import Checkup
from statemachine.store.engine import DATA
from tests.chaos.suites import TRACKER, fix

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from chaos.grown import Grown

TARGET = Target()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Grown]:
    with grown.quiet():
        yield grown.grow(TARGET, tmp_path / "s", 1, snapshots=3)


@pytest.mark.parametrize("name", [
    "a directory in owners", "a pipe in owners", "an owner's number of many digits", "an owner's number in other digits",
    "a dangling link in owners",
])
def test_what_is_no_file_of_marks_stops_no_opening(store: Grown, tmp_path: Path, name: str) -> None:
    """A directory, a pipe or a strange number in `owners/` ended every opening with an OSError, a ValueError or an OverflowError.

    Post-mortem: whatever had a name of digits (in the sense of `str.isdigit`, which knows `²`) was opened as a file of marks.
    """
    path = store.copy(tmp_path / "c")
    assert FAULTS[name](store, path)
    with TARGET.open(path, **grown.settings()) as opened:
        assert Client(TARGET, opened, lambda _: None).do(Op("measure", "ann", store.next("ann"))).answer == "acknowledged"


def test_a_file_in_the_place_of_owners_is_told(store: Grown, tmp_path: Path) -> None:
    """Post-mortem: it was a NotADirectoryError, raised before the part that translates."""
    path = store.copy(tmp_path / "c")
    FAULTS["owners a file"](store, path)
    with pytest.raises(StoreUnavailable, match="owners"):
        TARGET.open(path, **grown.settings())


def test_a_page_of_one_user_stops_no_commit_of_another(store: Grown, tmp_path: Path) -> None:
    """A failed attempt on a user whose page is lost left a mark that no commit could write: from then on nobody could commit.

    Post-mortem: the row of the mark was to be found under its user, on the lost page; LMDB then refuses the whole transaction,
    and after the end of the process every opening, too.  Now the row is written without the way to it by its user; doctor names
    that.
    """
    pages_of_ann = [page for page in media.live(store.data) if page.kind == "leaf" and page.first[:3] == page.last[:3] == b"ann"]
    assert pages_of_ann
    for page in pages_of_ann:
        path = store.copy(tmp_path / "c")
        (path / DATA).write_bytes(media.zeroed(store.data, page.number))
        for first in (1, 2):  # the second time after an opening anew
            with TARGET.open(path, **grown.settings(first * grown.IDS_LATER)) as opened:
                client = Client(TARGET, opened, lambda _: None)
                client.do(Op("reset", "ann"))
                for user in ("bob", "zoe"):
                    assert client.do(Op("measure", user, store.next(user) + first)).answer == "acknowledged"
                    assert client.do(Op("reset", user)).answer == "acknowledged"


def bad_page(store: Grown, change: str) -> bytes:
    """The store's data with one leaf of users changed: another number, a node longer than the page, or keys out of order."""
    page = next(p for p in media.live(store.data) if p.kind == "leaf" and p.first[:1] > b"\0")
    size, data = media.page_bytes(store.data), bytearray(store.data)
    start = page.number * size
    first = start + int.from_bytes(data[start + 16:start + 18], "little")
    if change == "number":
        data[start] ^= 1
    elif change == "flags":
        data[start + 11] ^= 0x80  # P_KEEP: leave the page alone when the others are written
    elif change == "length":
        data[first + 3] ^= 0x40  # the value is a gigabyte long
    else:
        data[first + 8] ^= 0x60  # the first letter of the first key
    return bytes(data)


@pytest.mark.parametrize(("change", "says"), [
    ("number", "LMDB ends a process"), ("length", "LMDB ends a process"), ("key", "not in order"), ("flags", "whoever writes"),
])
def test_doctor_names_a_page_that_lies_about_itself(store: Grown, tmp_path: Path, change: str, says: str) -> None:
    """A node said to be longer than its page killed doctor itself (SIGBUS), and keys that hide others were not named.

    Post-mortem: only the kind of each page was looked at before LMDB was let near it.  A flag that LMDB sets for a moment, on
    pages it must not write yet, was one bit away on the disk: the store read as ever and doctor named nothing, and the next
    commit on that page was told as made and left out.
    """
    path = store.copy(tmp_path / "c")
    (path / DATA).write_bytes(bad_page(store, change))
    with TARGET.open(path, readonly=True, **grown.settings()) as opened:
        with contextlib.suppress(ResetError):
            found = [finding.problem for finding in Checkup(opened).run()]
        assert any(says in problem for problem in found), found


def test_a_value_said_to_be_longer_than_the_file_is_named_and_kills_nobody(store: Grown, tmp_path: Path) -> None:
    """One bit of the length of an audit row that has pages of its own killed whoever read the log, and doctor (SIGBUS).

    Post-mortem: of a node whose value lies elsewhere only what stands in the leaf was compared with its page.  How long the value
    is said to be is in the leaf, too, and LMDB hands out as much from where it begins: past the end of the file, where it is a
    gigabyte.  Found on the tracker, by a flipped bit that hits such a length once in a thousand times.
    """
    size, data = media.page_bytes(store.data), bytearray(store.data)
    places = list(long_values(store))
    assert places, "the grown store has a row that is longer than a page"
    for leaf, place in places:
        data[:] = store.data
        data[place + 3] ^= 0x40
        path = store.copy(tmp_path / "c")
        (path / DATA).write_bytes(data)
        with TARGET.open(path, readonly=True, **grown.settings()) as opened:
            found = [finding.problem for finding in Checkup(opened).run()]
            assert any(f"LMDB ends a process that comes to one: {leaf // size};" in problem for problem in found), found
            with pytest.raises(ResetError, match="LMDB ends a process"):
                list(opened.audit())


def test_a_branch_that_leads_to_a_meta_page_is_named_and_kills_nobody(store: Grown, tmp_path: Path) -> None:
    """One bit of a branch made page 0 one of its children: LMDB's assertion ended whoever read on to it, doctor too (SIGABRT).

    Post-mortem: of a page outside of the tree LMDB says that it is not there; of the two meta pages it does not.
    """
    page = next(p for p in media.live(store.data) if p.kind == "branch")
    size, data = media.page_bytes(store.data), bytearray(store.data)
    start = page.number * size
    second = start + int.from_bytes(data[start + 18:start + 20], "little")
    data[second:second + 6] = bytes(6)
    path = store.copy(tmp_path / "c")
    (path / DATA).write_bytes(data)
    with TARGET.open(path, readonly=True, **grown.settings()) as opened:
        found = [finding.problem for finding in Checkup(opened).run()]
    assert any("LMDB ends a process that comes to one: 0;" in problem for problem in found), found


def long_values(store: Grown) -> Iterator[tuple[int, int]]:
    """Where a leaf begins, and a node of it whose value lies in pages of its own."""
    size, data = media.page_bytes(store.data), store.data
    for page in media.live(data):
        start = page.number * size
        lower = int.from_bytes(data[start + 12:start + 14], "little")
        for at in range(start + 16, start + lower, 2) if page.kind == "leaf" else ():
            place = start + int.from_bytes(data[at:at + 2], "little")
            if data[place + 4] & 1:
                yield start, place


def test_doctor_names_pages_in_use_that_the_list_of_free_pages_has(store: Grown, tmp_path: Path) -> None:
    """A stale page of the list of free pages let the next commits overwrite records, and nothing told before.

    Post-mortem: nobody but LMDB read that list.
    """
    free = [page for page in media.live(store.data) if page.kind == "free"]
    stale = [media.stale(store.data, earlier, page.number) for page in free for earlier in store.earlier]
    told = 0
    for data in stale:
        path = store.copy(tmp_path / "c")
        (path / DATA).write_bytes(data)
        with TARGET.open(path, readonly=True, **grown.settings()) as opened:
            told += any("list of free pages" in finding.problem for finding in Checkup(opened).run())
    assert told > 0
    with TARGET.open(store.path, readonly=True, **grown.settings()) as opened:
        assert pages.check(opened.engine) == []


def test_an_opening_looks_at_the_way_to_its_own_record(store: Grown, tmp_path: Path) -> None:
    """A page that lies about itself on the way to the store's own record killed whoever opened the store, doctor too (SIGBUS)."""
    page = next(p for p in media.live(store.data) if p.kind == "leaf" and p.needed_by(keys.META))
    data = bytearray(store.data)
    start = page.number * media.page_bytes(store.data)
    data[start + 13] |= 4  # so many more keys than there are
    path = store.copy(tmp_path / "c")
    (path / DATA).write_bytes(data)
    with pytest.raises(ResetError, match=f"page {page.number} was overwritten"):
        TARGET.open(path, readonly=True, **grown.settings())


def test_an_opening_on_a_full_disk_dies_of_nothing(store: Grown, tmp_path: Path) -> None:
    """With no block left for LMDB's lock file the first touch of it was a SIGBUS.

    Post-mortem: LMDB makes that file as a hole and maps it.  The opening now takes its blocks first.
    """
    path = store.copy(tmp_path / "c")
    with TARGET.open(path, readonly=True, **grown.settings()):
        stat = (path / "lock.mdb").stat()
        assert stat.st_blocks * 512 >= stat.st_size
    (path / "lock.mdb").unlink()
    with limits.limited(resource.RLIMIT_FSIZE, 8_192), pytest.raises(ResetError) as told:
        TARGET.open(path, readonly=True, **grown.settings())
    assert told.value.kind == "store-full"


class Wordless(Exception):
    """Whose text cannot be had."""

    def __str__(self) -> str:
        raise Wordless


def test_an_error_without_a_text_is_told_all_the_same(store: Grown) -> None:
    """It came out of `perform_reset` as it was, and the attempt had no outcome until the next opening."""
    def fail(_: Any) -> Any:
        raise Wordless

    with TARGET.open(store.path, **grown.settings()) as opened:
        with pytest.raises(MutationFailed, match="Wordless, whose text cannot be had"):
            TARGET.manager(opened).perform_reset("ann", operations=[("fail", fail)], **BY)
        assert list(opened.audit("ann"))[-1].public.outcome == "rolled_back"


class Unencodable:
    """An estimator whose states cannot be encoded, or are as something else."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    def __getattr__(self, name: str) -> Any:
        return getattr(TARGET.estimator, name)

    def encode(self, state: Any) -> Any:
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer


@pytest.mark.parametrize("answer", [None, "text", 0.0, OverflowError("too large")])
def test_a_state_that_cannot_be_read_back_is_not_committed(store: Grown, answer: Any) -> None:
    """An `encode` that gave no bytes was packed into the head all the same: the user was acknowledged, and unreadable."""
    before = grown.settings()
    with Target(estimator=Unencodable(answer)).open(store.path, **before) as opened:
        manager = TARGET.manager(opened)
        with pytest.raises(MutationFailed, match="encode"):
            manager.perform_reset("ann", **BY)
        processor = TARGET.processor(manager)
        with pytest.raises(ContractBroken, match="encode"):
            processor.process_batch(TARGET.measured("bob", store.next("bob") + n) for n in range(4))
    with TARGET.open(store.path, readonly=True, **grown.settings()) as opened:
        for user in store.sent:
            loaded = opened.load(user)
            assert loaded is not None
            assert not loaded.head_damaged


def test_a_number_of_numpys_in_a_state_is_a_number_in_the_audit_log(tmp_path: Path) -> None:
    """`numpy.float64` is a float, passes rules and packs; the row of what it changed was a TypeError in its commit."""
    def widen(track: Any) -> Any:
        return msgspec.structs.replace(track, east=msgspec.structs.replace(track.east, p00=np.float64(9.0)))

    with grown.quiet(), TRACKER.open(tmp_path / "s", **grown.settings()) as opened:
        manager = TRACKER.manager(opened)
        TRACKER.processor(manager).process(TRACKER.measured("tern", 0))
        assert manager.perform_reset("tern", operations=[("widen", widen)], **BY).outcome == "committed"
        assert all(isinstance(delta, float) for delta in list(opened.audit("tern"))[-1].personal.delta_P or ())


@pytest.mark.parametrize("change", [{"at": fix("t", 0, random.Random(1)).at.replace(tzinfo=None)}, {"source": "\ud800"}])
def test_a_measurement_of_ones_own_kind_without_an_identity_is_no_input(tmp_path: Path, change: dict[str, Any]) -> None:
    """A naive instant or a source that is no Unicode came out as ValueError or UnicodeEncodeError."""
    with grown.quiet(), TRACKER.open(tmp_path / "s", **grown.settings()) as opened:
        processor = TRACKER.processor(TRACKER.manager(opened))
        given = TRACKER.measured("tern", 0)
        processor.process(given)
        with pytest.raises(InvalidInput, match="no identity"):
            processor.process(dataclasses.replace(given, **change))
