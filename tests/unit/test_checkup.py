"""The checkup: damage planted behind the library's back is named with its user, and a sound store has no finding."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import lmdb
import pytest

from statemachine import codec
from statemachine.breaker import Breaker
from statemachine.store import keys
from statemachine.store.checkup import Checkup, Finding
from statemachine.store.engine import rows_of
from statemachine.store.records import Aside, Cursor, Head, Image, Meta, Pin
from tests.regression.scene import BY, opened, raw, tear, weighed, working

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

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


def examined(path: Path) -> list[Finding]:
    with opened(path) as store:
        return list(Checkup(store).run())


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


PLANTED: dict[str, tuple[Callable[[Any], object], str, str, str]] = {
    "head of another version": (head_with(version=DAYS + 3), "heads", "user 'ann'", "the newest in the log is 6"),
    "no head": (without(keys.head(ANN)), "heads", "user 'ann'", "there is no head"),
    "gap": (without(keys.version(ANN, 3)), "versions", "user 'ann'", "version 3 missing"),
    "wide gap": (without(keys.version(ANN, 3), keys.version(ANN, 4)), "versions", "user 'ann'", "versions 3 to 4 missing"),
    "first step without image": (without(keys.version(ANN, 1)), "versions", "user 'ann'", "no image before it"),
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


@pytest.mark.parametrize("name", PLANTED)
def test_planted_damage_is_named(path: Path, name: str) -> None:
    plant, check, subject, problem = PLANTED[name]
    with raw(path) as txn:
        plant(txn)
    found = [finding for finding in examined(path) if finding.check == check and problem in finding.problem]
    assert found, examined(path)
    assert all(finding.subject.startswith(subject) for finding in found)
    assert all(finding.remedy for finding in found)


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

    monkeypatch.setattr("statemachine.store.checkup.rows_of", torn_page)
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


def test_commit_between_two_chunks_is_no_finding(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With chunks of one row, a commit falls between a user's head and the versions it was read with."""
    read: list[bytes] = []

    def noted(txn: Any, start: bytes, stop: bytes, rows_max: int) -> list[tuple[bytes, bytes]]:
        rows = rows_of(txn, start, stop, rows_max)
        read.extend(key for key, _ in rows)
        return rows

    monkeypatch.setattr("statemachine.store.checkup.CHUNK_ROWS", 1)
    monkeypatch.setattr("statemachine.store.checkup.rows_of", noted)
    with working(path) as (store, manager, _):
        checkup, resets = Checkup(store), 0

        class Busy(Counter[str]):
            def __setitem__(self, name: str, value: int) -> None:
                nonlocal resets
                super().__setitem__(name, value)
                if name == "records" and read[-1] == keys.head(b"bob"):
                    resets += 1
                    manager.perform_reset("bob", **BY)

        checkup.looked = Busy()
        assert list(checkup.run()) == []
        assert resets == 1
