"""The sieve lets nothing pass that the careful look would not: on stores damaged at random both find the same."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from statemachine import BODY_WEIGHT, ResetManager, StoreCorrupt, StoreForeign, audit, codec
from statemachine.erasure import prune_audit
from statemachine.state import Reading
from statemachine.store import Store, keys
from statemachine.store.careful import Finding, StoreWide, user_now
from statemachine.store.checkup import Checkup
from statemachine.store.sieve import Log, Segment, Tally, prefix_of, sift_audit
from tests.regression.scene import BY, opened, raw, weighed, working

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import lmdb

pytestmark = pytest.mark.usefixtures("no_events")
DAMAGES = 40


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Two users with a log, something kept aside, a reset by hand, and a source that was read."""
    path = tmp_path / "store"
    with working(path) as (_, manager, processor):
        for day in range(4):
            processor.process_batch([weighed(user, day, 80.0 + 0.1 * day) for user in ("ann", "bob")])
        processor.process(weighed("ann", 5, 150.0))
        manager.perform_reset("bob", **BY)
    return path


def carefully(store: Store) -> set[Finding]:
    """What the careful look finds that is shown every record of the store."""
    found: set[Finding] = set()
    with store.engine.reading() as txn:
        wide = StoreWide(store.meta(), store.meta)
        for key, value in store.engine.scan(b"\0", keys.FIRST_USER):
            found.update(wide.judged(txn.get, key, value))
    prefixes = {prefix_of(key) for key, _ in store.engine.scan(keys.FIRST_USER, b"\xff" * 8)}
    for prefix in prefixes:
        found.update(user_now(store.engine, store.estimator, prefix, store.limits.quarantined_measurements_max)[0])
    check = store.verify_audit()
    if check.bad_seq is not None:
        found.add(Finding("audit chain", "error", f"audit row {check.bad_seq}", check.problem, ""))
    return found


def kind_of(key: bytes) -> bytes:
    """The letters that say what a record is."""
    at = key.find(b"\0")
    return key[at:at + 2] if at > 0 else key[:2] + b"\0"


def damage(txn: lmdb.Transaction, dice: random.Random) -> str:
    """Change one record: its bytes, its content under a right checksum, its key, or whether it is there."""
    with txn.cursor() as cursor:
        rows = [(bytes(key), bytes(value)) for key, value in cursor if key not in (keys.META, keys.CHAIN)]
    kinds = sorted({kind_of(key) for key, _ in rows})
    kind = dice.choice(kinds)
    key, value = dice.choice([row for row in rows if kind_of(row[0]) == kind])
    how = dice.choice(("gone", "torn", "content", "content", "cut", "another's", "another's key"))
    if how == "gone":
        txn.delete(key)
    elif how == "another's":
        txn.put(key, dice.choice(rows)[1])
    elif how == "another's key":
        at = dice.randrange(len(key))
        moved = key[:at] + bytes((key[at] ^ 1 << dice.randrange(7),)) + key[at + 1:]
        txn.put(moved, codec.seal(moved, value[16:]) if value else value)
    elif len(value) <= 16:
        txn.put(key, value + b"\1")
    else:
        at = dice.randrange(16, len(value))
        content = value[16:at] + (b"" if how == "cut" else bytes((value[at] ^ 1 << dice.randrange(8),)) + value[at + 1:])
        txn.put(key, value[:16] + content if how == "torn" else codec.seal(key, content))
    return f"{how} at {key!r}"


@pytest.mark.parametrize("seed", range(3))
def test_both_find_the_same_in_damaged_stores(path: Path, seed: int) -> None:
    dice, sound = random.Random(seed), path / "data.mdb"
    before, found_any = sound.read_bytes(), 0
    for _ in range(DAMAGES):
        with raw(path) as txn:
            did = [damage(txn, dice) for _ in range(dice.choice((1, 1, 3)))]
        with opened(path, readonly=True) as store:
            quick = {f._replace(remedy="") if f.check == "audit chain" else f for f in Checkup(store).run()}
            assert quick == carefully(store), did
        found_any += bool(quick)
        sound.write_bytes(before)
        (path / "lock.mdb").unlink()
    assert found_any > DAMAGES / 2


def test_segment_of_the_chain_is_sound_only_where_each_row_follows(path: Path) -> None:
    """A row left out, one that follows another, one of another number, one torn, an erased anchor; erasures are noted."""
    with opened(path) as store:
        prune_audit(store, before_us=store.clock.now_us() + 1, **BY)
        ResetManager(store).perform_reset("bob", **BY)
        rows = [(key, codec.unseal(key, value)) for key, value in store.engine.scan(keys.AUDIT, keys.after(keys.AUDIT))]
    last = len(rows)

    def segment(changed: int = 0, content: bytes = b"", *, gone: bool = False) -> Segment:
        stored = [(key, codec.seal(key, content if at == changed else was)) for at, (key, was) in enumerate(rows, 1)
                  if not (gone and at == changed)]
        return sift_audit(stored, 1, Log(last), Tally())

    sound = segment()
    assert (sound.sound, sound.rows, sound.erased) == (True, last, ((1, last - 2),))
    assert sound.covered[0][0] == 1
    newest, anchor = rows[-1][1], rows[-2][1]
    assert not segment(2, gone=True).sound
    assert not segment(last, bytes(32) + newest[32:]).sound
    assert not segment(last, newest.replace(b'"seq":%d' % last, b'"seq":%d' % (last + 1))).sound
    assert not segment(last, b"torn").sound
    assert not segment(last - 1, audit.erased(anchor)).sound
    assert segment(last, audit.erased(newest)).erased == ((1, last - 2), (last, last))


def refuses(call: object, *arguments: object) -> bool:
    try:
        call(*arguments)  # type: ignore[operator]
    except (StoreCorrupt, StoreForeign):
        return True
    return False


def test_quick_checks_refuse_what_the_slow_ones_refuse(path: Path) -> None:
    """A state, a record and a step, each cut at every byte and with every byte changed."""
    with opened(path, readonly=True) as store:
        loaded = store.load("ann")
        assert loaded is not None
        state = BODY_WEIGHT.encode(loaded.state)
    step = codec.encode_step(Reading(1, (80.0,), 0.1), 1)
    record = codec.seal(b"key", b"content")
    compressed = codec.seal(b"key", b"content", compress=True)
    assert codec.contents([(b"key", record), (b"key", compressed), (b"key", b"")]) == [b"content", b"", b""]
    cases: tuple[tuple[bytes, Callable[[bytes], bool], Callable[[bytes], bool]], ...] = (
        (state, lambda data: refuses(BODY_WEIGHT.check, data), lambda data: refuses(BODY_WEIGHT.decode, data)),
        (step, lambda data: not codec.is_step(data), lambda data: refuses(codec.decode_step, data)),
        (record, lambda data: not codec.contents([(b"key", data)])[0], lambda data: refuses(codec.unseal, b"key", data)),
    )
    for sound, quick, slow in cases:
        assert not quick(sound)
        assert not slow(sound)
        for at in range(len(sound)):
            for flipped in (*(sound[at] ^ 1 << bit for bit in range(8)), 0xC0, 0xCB):
                data = sound[:at] + bytes((flipped,)) + sound[at + 1:]
                assert quick(data) == slow(data), data
            assert quick(sound[:at]) == slow(sound[:at]), sound[:at]
