"""The technique of the suite of media: which pages live, and that each fault changes what it says and nothing else."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from chaos import grown
from chaos.faults import foreign, media
from chaos.target import Target

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from chaos.grown import Grown


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Grown]:
    with grown.quiet():
        yield grown.grow(Target(), tmp_path / "s", 1, snapshots=4)


def test_the_same_seed_grows_the_same_bytes(store: Grown, tmp_path: Path) -> None:
    again, other = (grown.grow(Target(), tmp_path / str(seed), seed) for seed in (1, 2))
    assert again.data == store.data
    assert other.data != store.data


def test_live_pages_are_those_that_lmdb_counts(store: Grown) -> None:
    found = media.live(store.data)
    with Target().open(store.path, readonly=True, **grown.settings()) as opened:
        info = opened.engine.info()
    kinds = [page.kind for page in found]
    assert kinds[:2] == ["meta", "meta"]
    assert kinds.count("branch") == info["branch_pages"]
    assert kinds.count("leaf") == info["leaf_pages"]
    assert kinds.count("long value") == info["overflow_pages"] > 0
    assert kinds.count("free") > 0
    assert len({page.number for page in found}) == len(found)


def test_every_users_pages_are_needed_by_the_user(store: Grown) -> None:
    found = [page for page in media.live(store.data) if page.kind == "leaf"]
    for user in store.sent:
        mine = [page for page in found if page.needed_by(user.encode() + b"\0")]
        assert 0 < len(mine) < len(found)
        assert all(user.encode() in store.data[page.number * 4_096:(page.number + 1) * 4_096] for page in mine)


def test_each_fault_changes_one_page_and_nothing_else(store: Grown) -> None:
    size, page = media.page_bytes(store.data), next(p for p in media.live(store.data) if p.kind == "leaf").number
    bit = media.flipped(store.data, page * size + 100, 3)
    assert (int.from_bytes(bit, "big") ^ int.from_bytes(store.data, "big")).bit_count() == 1
    for hurt in (bit, media.zeroed(store.data, page), media.misplaced(store.data, page, page + 1)):
        changed = {at // size for at in range(len(store.data)) if hurt[at] != store.data[at]}
        assert (len(hurt), changed) == (len(store.data), {page})
    lost = [media.stale(store.data, earlier, p.number) for earlier in store.earlier for p in media.live(store.data)]
    assert sum(hurt != store.data for hurt in lost) > 10


def test_bits_are_of_live_pages_and_fixed_by_the_seed(store: Grown) -> None:
    found = media.live(store.data)
    places = media.places(store.data, found, 500, random.Random(7))
    assert places == media.places(store.data, found, 500, random.Random(7))
    assert {place // 4_096 for place, _ in places} <= {page.number for page in found}
    assert sum(place % 4_096 < 64 for place, _ in places) > 40


def test_what_is_no_data_file_is_not_read() -> None:
    with pytest.raises(media.NotReadable):
        media.live(bytes(10_000))


def test_a_death_leaves_marks_and_every_fault_in_the_files_changes_them(store: Grown, tmp_path: Path) -> None:
    marked = foreign.with_marks(Target(), store)
    assert len(list((marked.path / "owners").iterdir())) == 1
    for name, fault in foreign.FAULTS.items():
        assert fault(marked, marked.copy(tmp_path / "c")), name
