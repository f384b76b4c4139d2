"""The checkup: damage planted behind the library's back is named with its user, and a sound store has no finding."""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING, Any

import lmdb
import msgspec
import pytest
import xxhash

from statemachine import codec
from statemachine.breaker import Breaker
from statemachine.erasure import forget, prune_audit
from statemachine.store import keys, pieces, sieve
from statemachine.store.careful import Finding
from statemachine.store.checkup import Checkup
from statemachine.store.engine import rows_of
from statemachine.store.records import Aside, Cursor, Head, Identity, Image, Meta, Pin
from tests.regression.scene import BY, opened, raw, tear, weighed, working

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from statemachine.store.pieces import Piece, Result

ANN = b"ann"
DAYS = 6


@pytest.fixture
def path(tmp_path: Path, no_events: None) -> Path:
    """Two users with a log, one of them with a measurement kept aside and a reset by hand; one who has only the latter."""
    path = tmp_path / "store"
    with working(path) as (_, manager, processor):
        for day in range(DAYS):
            for user in ("ann", "bob"):
                processor.process(weighed(user, day, 80.0 + 0.1 * day))
        processor.process(weighed("ann", DAYS, 150.0))
        manager.perform_reset("bob", **BY)
        processor.process(weighed("only-aside", 0, -1.0))
    return path


def examined(path: Path, processes: int = 1) -> list[Finding]:
    with opened(path) as store:
        return list(Checkup(store, processes=processes).run())


def record(txn: Any, kind: type[Any], key: bytes) -> Any:
    return codec.unpack(kind, codec.unseal(key, bytes(txn.get(key) or b"")))


def put(txn: Any, key: bytes, value: Any) -> None:
    txn.put(key, codec.seal(key, codec.pack(value)))


def head_with(user: bytes = ANN, **changes: Any) -> Callable[[Any], object]:
    def plant(txn: Any) -> None:
        before = record(txn, Head, keys.head(user))
        fields = {name: getattr(before, name) for name in before.__struct_fields__} | changes
        put(txn, keys.head(user), Head(**fields))

    return plant


def without(*gone: bytes) -> Callable[[Any], object]:
    def plant(txn: Any) -> None:
        for key in gone:
            assert txn.delete(key)

    return plant


def with_records(*made: tuple[bytes, Any]) -> Callable[[Any], object]:
    def plant(txn: Any) -> None:
        for key, value in made:
            put(txn, key, value)

    return plant


def swapped_attempts(txn: Any) -> None:
    """Each of the first two attempts leads to the other's row."""
    with txn.cursor() as cursor:
        assert cursor.set_range(keys.ATTEMPT)
        first, one = cursor.item()
        assert cursor.next()
        second, other = cursor.item()
    txn.put(first, other)
    txn.put(second, one)


def without_first(prefix: bytes) -> Callable[[Any], object]:
    def plant(txn: Any) -> None:
        with txn.cursor() as cursor:
            assert cursor.set_range(prefix)
            assert cursor.key().startswith(prefix)
            cursor.delete()

    return plant


def orphaned(txn: Any) -> None:
    """Of ann nothing is left but the identities of what was accepted."""
    with txn.cursor() as cursor:
        assert cursor.set_range(b"ann\0")
        there = True
        while there and cursor.key().startswith(b"ann\0"):
            kept = cursor.key()[4:5] == b"i" and not cursor.key().startswith(keys.identity(ANN, LAST_US, b""))
            there = cursor.next() if kept else cursor.delete() and bool(cursor.key())


LAST_US = keys.instant_of(keys.identity(ANN, weighed("ann", DAYS, 1.0).at_us, b""), ANN)
NO_STATE = Pin(0, b"", 1)
NIL = b"\xc0"


def sealed(key: bytes, content: bytes) -> Callable[[Any], object]:
    """A record whose checksum is right, and whose content is nothing that belongs there."""
    return lambda txn: txn.put(key, codec.seal(key, content))


def first_step_known(txn: Any) -> None:
    without(keys.version(ANN, 1))(txn)
    head_with(first=2)(txn)


def reseal(txn: Any, key: bytes, content: bytes) -> None:
    txn.put(key, codec.seal(key, content))


def first_under(txn: Any, prefix: bytes) -> bytes:
    with txn.cursor() as cursor:
        assert cursor.set_range(prefix)
        return bytes(cursor.key())


def strange_disposition(txn: Any, disposition: int = 4) -> None:
    key = first_under(txn, keys.identity(ANN, LAST_US, b""))  # the one kept aside, so that the count stays right
    put(txn, key, msgspec.structs.replace(record(txn, Identity, key), disposition=disposition))


def lengthened_attempt(txn: Any) -> None:
    key = first_under(txn, keys.ATTEMPT)
    txn.put(key, b"\0" + txn.get(key))


def compressed(key: bytes) -> bytes:
    """A record with a sound checksum that claims to be compressed, and is not."""
    head = codec.seal(key, b"content")[:2] + b"\1\0" + (7).to_bytes(4, "little")
    return head + xxhash.xxh3_64_intdigest(key + head + b"content").to_bytes(8, "little") + b"content"


PLANTED: dict[str, tuple[Callable[[Any], object], str, str, str]] = {
    "head of another version": (head_with(version=DAYS + 3), "heads", "user 'ann'", "the newest in the log is 6"),
    "no head": (without(keys.head(ANN)), "heads", "user 'ann'", "there is no head"),
    "gap": (without(keys.version(ANN, 3)), "versions", "user 'ann'", "version 3 missing"),
    "wide gap": (without(keys.version(ANN, 3), keys.version(ANN, 4)), "versions", "user 'ann'", "versions 3 to 4 missing"),
    "first step without image": (without(keys.version(ANN, 1)), "versions", "user 'ann'", "no image before it"),
    "first step that the head knows": (first_step_known, "versions", "user 'ann'", "version 2, the oldest, is a step"),
    "first version": (head_with(first=2), "versions", "user 'ann'", "begins at version 2, and it begins at 1"),
    "aside count": (with_records((keys.aside(ANN), Aside(7, LAST_US))), "kept aside", "user 'ann'", "says 7, and 1 are there"),
    "no aside count": (without(keys.aside(b"only-aside")), "kept aside", "user 'only-aside'", "says 0, and 1 are there"),
    "pin without probation": (head_with(b"bob", probation=None), "probation", "user 'bob'", "not on probation"),
    "probation without pin": (without(keys.pin(b"bob")), "probation", "user 'bob'", "no before-image"),
    "pin of nobody": (with_records((keys.pin(b"nil"), NO_STATE)), "probation", "user 'nil'", "no head"),
    "orphan": (orphaned, "orphans", "user 'ann'", "6 measurements are recorded"),
    "breaker": (lambda txn: txn.put(keys.breaker(ANN), codec.seal(keys.breaker(ANN), b"\xc0")), "records", "user 'ann'",
                "the breaker cannot be read"),
    "head without state": (head_with(state=b"\xc0"), "records", "user 'ann'", "the head cannot be read"),
    "image without state": (sealed(keys.version(ANN, 1), b"\2" + codec.pack(Image(NIL, 1, "", "initial", 0))), "records",
                            "user 'ann'", "version 1 cannot be read"),
    "step of nothing": (sealed(keys.version(ANN, 2), b"\1"), "records", "user 'ann'", "version 2 cannot be read"),
    "unreadable row": (sealed(keys.unreadable(1, 1), NIL), "records", "the store", "an unreadable row of source 1"),
    "pin of nothing": (sealed(keys.pin(b"bob"), NIL), "records", "the store", "the before-image of user 'bob'"),
    "damaged head kept": (lambda txn: txn.put(keys.damaged(ANN, 4), b"old bytes"), "damaged heads", "user 'ann'",
                          "from before version 4"),
    "cursor of no source": (with_records((keys.cursor(bytes(16)), Cursor(99, 0, {}, 0, 0))), "cursors", "source 99",
                            "given out"),
    "cursor below zero": (with_records((keys.cursor(bytes(16)), Cursor(99, -1, {}, 0, 0))), "cursors", "source 99", "-1 rows"),
    "two cursors of a number": (with_records((keys.cursor(bytes(16)), Cursor(99, 0, {}, 0, 0)),
                                             (keys.cursor(b"\1" * 16), Cursor(99, 0, {}, 0, 0))), "cursors", "source 99",
                                "two sources"),
    "owner of a later number": (lambda txn: txn.put(keys.owner(999), codec.seal(keys.owner(999), bytes(8))), "owners",
                                "owner 999", "has had"),
    "torn owner": (lambda txn: txn.put(keys.owner(1), codec.seal(keys.owner(1), bytes(7))), "owners", "owner 1", "torn"),
    "cut audit log": (without(keys.audit(2)), "audit chain", "audit row 2", "missing"),
    "attempts swapped": (swapped_attempts, "audit index", "attempt ", "leads to no row"),
    "attempt not indexed": (without_first(keys.ATTEMPT), "audit index", "audit row ", "not found under its attempt"),
    "attempt of nothing": (lambda txn: txn.put(keys.ATTEMPT + bytes(16), bytes(8)), "audit index", "attempt 0000",
                           "leads to no row"),
    "user's row not indexed": (without_first(b"ann\0a"), "audit index", "audit row ", "not found under its user 'ann'"),
    "index of another's row": (lambda txn: txn.put(keys.audit_of(b"cid", 1), b""), "audit index", "user 'cid'",
                               "leads to no row about the user"),
    "row after the end": (sealed(keys.audit(99), bytes(99)), "audit chain", "audit row 99", "after the end"),
    "attempt past the end": (lambda txn: txn.put(keys.ATTEMPT + bytes(16), (99).to_bytes(8, "big")), "audit index",
                             "attempt 0000", "leads to no row"),
    "attempt not of eight bytes": (lengthened_attempt, "audit index", "attempt ", "leads to no row"),
    "index past the end": (lambda txn: txn.put(keys.audit_of(ANN, 99), b""), "audit index", "user 'ann'",
                           "leads to no row about the user"),
    "index with a value": (lambda txn: txn.put(first_under(txn, b"ann\0a"), b"1"), "audit index", "user 'ann'",
                           "leads to no row about the user"),
    "index of a longer key": (lambda txn: txn.put(b"cid\0aaa" + bytes(8), b""), "audit index", "user 'cid'",
                              "leads to no row about the user"),
    "audit row of a longer key": (lambda txn: txn.put(keys.audit(1) + b"1", bytes(99)), "records", "the store",
                                  "not one of resetguard's"),
    "key of no user": (lambda txn: txn.put(b"b", codec.seal(b"b", NIL)), "records", "the store", "belongs to no user"),
    "disposition": (strange_disposition, "records", "user 'ann'", "it says 4 of where"),
    "negative disposition": (lambda txn: strange_disposition(txn, -1), "records", "user 'ann'", "it says -1 of where"),
    "identity of nothing": (lambda txn: reseal(txn, first_under(txn, b"ann\0i"), NIL), "records", "user 'ann'",
                            "the measurement at 2026"),
    "head of nothing": (sealed(keys.head(ANN), NIL), "records", "user 'ann'", "the head cannot be read"),
    "count of nothing": (sealed(keys.aside(ANN), NIL), "records", "user 'ann'", "the count of what is kept aside"),
    "step of half a value": (sealed(keys.version(ANN, 2), b"\1" + bytes(21)), "records", "user 'ann'", "version 2 cannot"),
    "step too short": (sealed(keys.version(ANN, 2), b"\1" + bytes(9)), "records", "user 'ann'", "version 2 cannot be read"),
    "version of another kind": (sealed(keys.version(ANN, 2), b"\3" + bytes(25)), "records", "user 'ann'", "version 2 cannot"),
    "image of nothing": (sealed(keys.version(ANN, 1), b"\2" + NIL), "records", "user 'ann'", "version 1 cannot be read"),
    "version of no bytes": (sealed(keys.version(ANN, 2), b""), "records", "user 'ann'", "version 2 cannot be read"),
    "audit row of nothing": (sealed(keys.audit(2), bytes(68)), "records", "the store", "audit row 2 cannot be read"),
    "torn record of another kind": (lambda txn: txn.put(b"ann\0z", b"torn" * 5), "records", "user 'ann'", "the record b'z'"),
    "compressed and torn": (lambda txn: txn.put(keys.version(ANN, 2), compressed(keys.version(ANN, 2))), "records", "user 'ann'",
                            "does not decompress"),
    "global breaker": (lambda txn: txn.put(keys.GLOBAL_BREAKER, codec.seal(keys.GLOBAL_BREAKER, b"\xc0")), "records",
                       "the store", "the global breaker"),
}


def test_sound_store_has_no_finding_and_every_check_looked(path: Path) -> None:
    with opened(path) as store:
        checkup = Checkup(store)
        assert list(checkup.run()) == []
        assert checkup.kept == 2
        assert checkup.oldest_kept_us == weighed("only-aside", 0, 1.0).at_us
        assert checkup.looked["records"] == sum(1 for _ in store.engine.scan(b"\0", b"\xff"))
        assert checkup.looked["versions"] == 2 * DAYS + 1
        assert checkup.looked["audit chain"] == store.audit_tail()[0]


@pytest.fixture(params=["in one chunk", "in small chunks", "record by record"])
def chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How the records are read: the last is the way of users with more records than are held in memory."""
    if request.param != "in one chunk":
        monkeypatch.setattr(sieve, "CHUNK_ROWS", 4)
        monkeypatch.setattr(pieces, "SMALL_ROWS", 4)
        monkeypatch.setattr("statemachine.store.checkup.PIECE_ROWS", 8)
    if request.param == "record by record":
        monkeypatch.setattr(sieve, "USER_ROWS_MAX", 4)
    return str(request.param)


@pytest.mark.parametrize("name", PLANTED)
def test_planted_damage_is_named(path: Path, chunks: str, name: str) -> None:
    plant, check, subject, problem = PLANTED[name]
    with raw(path) as txn:
        plant(txn)
    every = examined(path)
    found = [finding for finding in every if finding.check == check and problem in finding.problem]
    assert found, every
    assert all(finding.subject.startswith(subject) for finding in found)
    assert all(finding.remedy for finding in found)
    assert len(every) == len(set(every)) or check == "cursors", "nothing is told twice"


def test_what_is_found_does_not_depend_on_how_the_store_is_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one go, in small pieces, record by record, and in two processes: the same findings in the same order."""
    with raw(path) as txn:
        for name in ("gap", "attempts swapped", "index of another's row", "pin of nobody", "audit row of nothing", "orphan",
                     "probation without pin", "no aside count", "index past the end"):
            PLANTED[name][0](txn)

    def found(processes: int = 1) -> tuple[list[Finding], dict[str, int], int, int | None]:
        with opened(path) as store:
            checkup = Checkup(store, processes=processes)
            return list(checkup.run()), dict(checkup.looked), checkup.kept, checkup.oldest_kept_us

    whole = found()
    assert len(whole[0]) > 9
    monkeypatch.setattr(pieces, "PROCESSES_PAY_ROWS", 0)
    assert found(2) == whole
    monkeypatch.setattr("statemachine.store.checkup.PIECE_ROWS", 8)
    monkeypatch.setattr(sieve, "CHUNK_ROWS", 4)
    assert found() == whole
    monkeypatch.setattr(sieve, "USER_ROWS_MAX", 4)
    assert found() == whole


@pytest.mark.parametrize("key", [
    keys.head(ANN), keys.version(ANN, 2), keys.version(ANN, 1), keys.aside(ANN), keys.breaker(ANN), keys.pin(b"bob"),
    keys.audit(2), "identity",
])
def test_every_record_is_checked_against_its_checksum(path: Path, key: bytes | str) -> None:
    with raw(path) as txn:
        if key == keys.breaker(ANN):
            put(txn, keys.breaker(ANN), Breaker(failures=1))
        with txn.cursor() as cursor:
            assert cursor.set_range(keys.identities(ANN))
            torn = key if isinstance(key, bytes) else bytes(cursor.key())
    tear(path, torn)
    found = [finding for finding in examined(path) if finding.check == "records"]
    assert [finding.level for finding in found] == ["error"]
    assert "checksum" in found[0].problem
    named = {keys.audit(2): "audit row 2", keys.pin(b"bob"): "'bob'"}.get(torn, "'ann'")
    assert named in found[0].subject + found[0].problem


def test_count_beside_a_damaged_identity_is_not_blamed(path: Path) -> None:
    """What cannot be read may be kept aside or not."""
    prefix = keys.identities(b"only-aside")
    with opened(path) as store:
        [kept] = [key for key, _ in store.engine.scan(prefix, keys.after(prefix))]
    tear(path, kept)
    assert [finding.check for finding in examined(path)] == ["records"]


def test_page_that_cannot_be_read_is_a_finding(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other passes go on."""
    def torn_page(txn: Any, start: bytes, stop: bytes, rows_max: int) -> list[tuple[bytes, bytes]]:
        if start >= keys.FIRST_USER:
            raise lmdb.CorruptedError("a page")
        return rows_of(txn, start, stop, rows_max)

    monkeypatch.setattr(sieve, "rows_of", torn_page)
    with opened(path) as store:
        checkup = Checkup(store)
        assert [(f.check, f.subject, f.level) for f in checkup.run()] == [("records", "the data file", "error")]
        assert checkup.looked["audit chain"] > 0


def test_every_head_torn_names_every_user(path: Path) -> None:
    """The rest of the store is examined as well."""
    tear(path, keys.head(ANN), keys.head(b"bob"))
    assert [(f.check, f.subject) for f in examined(path)] == [("records", "user 'ann'"), ("records", "user 'bob'")]


def test_meta_torn_while_open_is_told(path: Path) -> None:
    with opened(path) as store:
        with store.engine.turn():
            key, meta = keys.META, codec.pack(Meta("x", "y", 1, 1, 0))
            store.engine.update(lambda put: put(key, codec.seal(b"elsewhere", meta)))
        found = list(Checkup(store).run())
        assert {finding.subject for finding in found} == {"the store's own record", "the store"}
        with store.engine.turn():
            right = codec.pack(Meta(store.store_id, "y", 1, 1, 0, owners=9, sources=9))
            store.engine.update(lambda put: put(key, codec.seal(key, right)))


def test_commits_meanwhile_are_no_finding(path: Path, chunks: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reset before each piece: its row stands after the end that the checkup knows, its user has changed."""
    resets = 0
    with working(path) as (store, manager, _):
        def busy(engine: Any, estimator: Any, piece: Piece) -> Result:
            nonlocal resets
            resets += 1
            manager.perform_reset("bob", **BY)
            return looked(engine, estimator, piece)

        looked = pieces.examine
        monkeypatch.setattr(pieces, "examine", busy)
        assert list(Checkup(store).run()) == []
    assert resets >= 3


def test_erased_rows_are_no_finding(path: Path, chunks: str) -> None:
    """The index keys of pruned rows lead to rows that name nobody, and those of a forgotten user are gone."""
    with working(path) as (store, manager, processor):
        prune_audit(store, before_us=store.clock.now_us() + 1, **BY)
        processor.process(weighed("ann", DAYS + 1, 80.7))
        manager.perform_reset("bob", **BY)
        forget(store, "bob", **BY)
        assert any(row.erased for row in store.audit())
        assert list(Checkup(store).run()) == []


def test_index_key_of_a_wrong_length_is_found_where_its_row_is_erased(path: Path) -> None:
    """An erased row has no part in the sums of those who find it."""
    with opened(path) as store:
        prune_audit(store, before_us=store.clock.now_us() + 1, **BY)
    with raw(path) as txn:
        txn.put(b"ann\0a1" + (1).to_bytes(8, "big"), b"")
    assert [(finding.check, finding.subject) for finding in examined(path)] == [("audit index", "user 'ann'")]


def die(_: Piece) -> None:
    os._exit(1)


def test_process_that_dies_is_a_finding(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A torn page may kill whoever reads it; the checkup itself goes on to its end."""
    monkeypatch.setattr(pieces, "PROCESSES_PAY_ROWS", 0)
    monkeypatch.setattr(pieces, "_examine_here", die)
    [found] = [finding for finding in examined(path, processes=2) if finding.subject == "the data file"]
    assert "died of it" in found.problem


@pytest.mark.parametrize("names", [
    [f"user-{number:06d}" for number in range(300)], [f"{number}" for number in range(300)],
    ["a", *(f"z{n}" for n in range(299))],    [chr(0x4E00 + number) * 80 for number in range(300)], ["one"], [],
])
def test_pieces_hold_every_key_once_and_cut_no_user(
    tmp_path: Path, no_events: None, monkeypatch: pytest.MonkeyPatch, names: list[str],
) -> None:
    opened(tmp_path / "store").close()
    with raw(tmp_path / "store") as txn:
        for name in names:
            for letter in (b"\0s", b"\0v"):
                txn.put(name.encode() + letter, b"")
    with opened(tmp_path / "store") as store:
        monkeypatch.setattr(pieces, "SMALL_ROWS", 8)
        ranges = pieces.cut(store.engine, keys.FIRST_USER, b"", 64, users=True)
        assert ranges[0][0] == keys.FIRST_USER
        assert ranges[-1][1] == b""
        assert all(one[1] == other[0] for one, other in itertools.pairwise(ranges))
        sizes = [len({key[:-2] for key, _ in store.engine.scan(low, high or b"\xff")}) for low, high in ranges]
        assert sum(sizes) == len(names), "no user is in two pieces"
        assert all(sizes) or not names
        assert len(ranges) >= min(len(names), 8)
        assert max(sizes) <= max(len(names) / 8, 1)
