"""The images of a power cut: what was synced is in each, what was not may be in any part, and none is told twice."""

from __future__ import annotations

import random
from collections import defaultdict
from itertools import islice

import pytest

from chaos.faults import images
from chaos.faults.images import ROOT, SECTOR_BYTES, Cut, Disk, Entry, Image, Named, Noted, Synced, Through, Wrote, built

FILE = 1
NAMES = {ROOT: {"f": FILE}}


def sector(letter: str) -> bytes:
    return letter.encode() * SECTOR_BYTES


def wrote(*sectors: tuple[int, str], size: int = 4, file: int = FILE) -> Wrote:
    """Sectors, and how many the file has then."""
    return Wrote(file, tuple((number, sector(letter)) for number, letter in sectors), size * SECTOR_BYTES)


def letters(data: bytes | None) -> str:
    """A file by its sectors; "." is one of zeros."""
    assert data is not None
    parts = [data[at:at + SECTOR_BYTES] for at in range(0, len(data), SECTOR_BYTES)]
    assert all(part == part[:1] * len(part) for part in parts), "no sector is mixed"
    return "".join(part[:1].decode().replace("\0", ".") for part in parts)


def cuts(*entries: Entry, first: str = "aaaa") -> list[Cut]:
    return list(Disk({FILE: b"".join(map(sector, first))}, NAMES).cuts(entries))


def all_of(cut: Cut, number: int = 0) -> set[str]:
    """Every image of a cut by brute force."""
    return {letters(built(cut, Image("", number, bits, 0, grown))["f"])
            for bits in range(1 << len(cut.pending)) for grown in (False, True)}


def test_what_was_written_and_not_synced_is_there_in_any_part() -> None:
    cut = cuts(wrote((0, "b"), (1, "b")), wrote((1, "c"), (3, "c")))[-1]
    assert all_of(cut) == {f"{a}{b}a{d}" for a in "ab" for b in "abc" for d in "ac"}


def test_what_was_synced_is_in_every_image() -> None:
    cut = cuts(wrote((0, "b"), (1, "b")), Synced(FILE), wrote((1, "c")))[-1]
    assert all_of(cut) == {"bbaa", "bcaa"}


def test_what_went_through_is_in_every_image_and_takes_nothing_along() -> None:
    """O_DSYNC is of its own bytes: what was written before them may still be lost."""
    entries = (wrote((2, "b")), wrote((0, "c")), Through(FILE, 32, 152), wrote((3, "d")))
    assert all_of(cuts(*entries)[-1]) == {"caaa", "caba", "caad", "cabd"}


def test_a_file_that_grew_may_be_short_or_of_zeros() -> None:
    cut = cuts(wrote((2, "b"), (3, "b")), first="aa")[-1]
    assert all_of(cut) == {"aa", "aa..", "aab", "aab.", "aa.b", "aabb"}


def test_a_sync_of_another_file_makes_nothing_durable() -> None:
    disk = Disk({FILE: sector("a"), 2: sector("a")}, {ROOT: {"f": FILE, "g": 2}})
    cut = list(disk.cuts([wrote((0, "b"), size=1), Synced(2)]))[-1]
    assert all_of(cut) == {"a", "b"}


def trees(*entries: Entry) -> list[set[str]]:
    """After each cut, what the names may lead to; a letter is a file's first sector."""
    found = []
    for cut in Disk({FILE: sector("a")}, NAMES).cuts(entries):
        here = set()
        for names in range(1 << len(cut.moves)):
            for bits in range(1 << len(cut.pending)):
                tree = built(cut, Image("", 0, bits, names, grown=True))
                here.add(" ".join(f"{path}={'/' if data is None else letters(data)[:1]}" for path, data in tree.items()))
        found.append(here)
    return found


MAKING: list[Entry] = [
    Named(2, (ROOT, "d"), None, folder=True), Named(3, (2, "f"), None), wrote((0, "b"), size=1, file=3)]


def test_what_was_made_may_be_there_in_any_part() -> None:
    assert trees(*MAKING)[-1] == {"f=a", "d=/ f=a", "d=/ f=a d/f=.", "d=/ f=a d/f=b"}


def test_a_rename_leaves_the_old_or_the_new_until_the_directory_is_synced() -> None:
    synced = [*MAKING, Synced(3), Synced(2), Synced(ROOT)]
    after, later = trees(*synced, Named(3, (ROOT, "f"), (2, "f")), Synced(ROOT), Noted("done", answers=True))[-2:]
    assert after == {"d=/ f=a d/f=b", "d=/ f=b"}
    assert later == {"d=/ f=b"}


def test_a_file_renamed_before_it_is_synced_may_be_empty_in_the_old_ones_place() -> None:
    """The way to lose a store: the name is durable, the bytes are not."""
    last = trees(*MAKING, Synced(2), Named(3, (ROOT, "f"), (2, "f")), Synced(ROOT), Noted("done", answers=True))[-1]
    assert {"f=b", "f=."} <= {tree.split()[-1] for tree in last}


def test_a_synced_file_keeps_its_bytes_and_may_lose_its_name() -> None:
    made: list[Entry] = [Named(2, (ROOT, "g"), None), wrote((0, "b"), size=1, file=2), Synced(2)]
    assert trees(*made, Noted("told", answers=True))[-1] == {"f=a", "f=a g=b"}
    assert trees(*made, Synced(ROOT), Noted("told", answers=True))[-1] == {"f=a g=b"}


def test_a_directory_moved_in_its_place_has_what_was_synced_in_it() -> None:
    """Creation: what is in the directory must be synced before it is renamed, or it is there without its file."""
    move = Named(2, (ROOT, "e"), (ROOT, "d"), folder=True)
    early = trees(*MAKING, Synced(3), move, Synced(ROOT), Noted("done", answers=True))[-1]
    assert early == {"e=/ f=a", "e=/ f=a e/f=b"}
    assert trees(*MAKING, Synced(3), Synced(2), move, Synced(ROOT), Noted("done", answers=True))[-1] == {"e=/ f=a e/f=b"}


def random_entries(dice: random.Random) -> list[Entry]:
    entries: list[Entry] = []
    size = 4
    for _ in range(dice.randrange(2, 6)):
        kind = dice.random()
        if kind < 0.6:
            chosen = sorted(dice.sample(range(6), dice.randrange(1, 3)))
            size = max(size, chosen[-1] + 1)
            entries.append(wrote(*((number, dice.choice("abc")) for number in chosen), size=size))
        elif kind < 0.75:
            entries.append(Synced(FILE))
        elif kind < 0.85:
            entries.append(Through(FILE, dice.randrange(4) * SECTOR_BYTES, 4 * SECTOR_BYTES))
        else:
            entries.append(Noted("told", answers=True))
    return entries


@pytest.mark.parametrize("seed", range(40))
def test_keys_tell_images_apart_as_their_bytes_do(seed: int) -> None:
    by_key: dict[int, tuple[int, str]] = {}
    by_bytes: dict[tuple[int, str], int] = {}
    for number, cut in enumerate(cuts(*random_entries(random.Random(seed)), wrote((5, "d"), size=6))):
        for bits in range(1 << len(cut.pending)):
            for grown in (False, True):
                image = Image("", number, bits, 0, grown)
                key, case = images.key_of(cut, image), (cut.answers, letters(built(cut, image)["f"]))
                assert by_key.setdefault(key, case) == case
                assert by_bytes.setdefault(case, key) == key


@pytest.mark.parametrize("seed", range(40))
def test_no_image_is_given_twice_and_none_that_could_not_be(seed: int) -> None:
    """The key tells images apart as their bytes do, and a plan that wants all finds all there are, for few sectors."""
    found = cuts(*random_entries(random.Random(seed)))
    possible = [all_of(cut) for cut in found]
    given = list(images.images(found, 100_000, "x"))
    by_bytes = defaultdict(list)
    for image in given:
        cut = found[image.cut]
        by_bytes[cut.answers, built(cut, image)["f"]].append(image)
        assert letters(built(cut, image)["f"]) in possible[image.cut]
        assert image.key == images.key_of(cut, image)
    assert all(len(alike) == 1 for alike in by_bytes.values())
    few = [number for number, cut in enumerate(found) if len(cut.pending) <= images.EXHAUSTED_MAX]
    there = {(found[number].answers, text) for number in few for text in possible[number]}
    assert there <= {(answers, letters(data)) for answers, data in by_bytes}
    assert there


def test_the_same_seed_gives_the_same_images_and_another_others() -> None:
    found = cuts(wrote(*((n, "b") for n in range(30)), size=30), wrote(*((n, "c") for n in range(30)), size=30))
    one, same, other = (list(images.images(found, 500, seed)) for seed in "xxy")
    assert one == same
    assert {image.key for image in one} != {image.key for image in other}
    assert len({image.key for image in one}) == 500


MANY: list[Entry] = [
    wrote(*((n, "b") for n in range(20)), size=20), Named(2, (ROOT, "g"), None), Named(3, (ROOT, "h"), None),
    wrote(*((n, "c") for n in range(20, 40)), size=40)]


def test_every_kind_of_fault_is_tried() -> None:
    last = cuts(*MANY)[-1]
    assert {image.fault for image in (*images.ordered(last, 0), images.scattered(last, 0, random.Random(1)))} == {
        "every write so far", "none since the sync", "the last write torn", "the file grown, not written", "a write dropped",
        "a write before the others", "a sector dropped", "names cut off", "a name dropped", "a name before the others",
        "sectors scattered"}


def test_where_few_are_wanted_every_cut_has_some() -> None:
    found = cuts(*MANY)
    assert {image.cut for image in islice(images.images(found, 20, "x"), 20)} == set(range(len(found)))
