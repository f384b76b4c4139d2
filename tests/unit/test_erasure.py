"""Erasure and export: what `forget` leaves of a user, what `prune_audit` leaves of the log, and what is given out."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import msgspec
import pytest
import xxhash

from statemachine import (
    ConflictError,
    InvalidInput,
    Processor,
    ResetManager,
    Store,
    StoreBusy,
    StoreCorrupt,
    UserUnknown,
    audit,
    erasure,
)
from statemachine.breaker import Breaker
from statemachine.codec import pack, seal, unpack, unseal
from statemachine.erasure import export_user, forget, prune_audit
from statemachine.processor import SourceRow
from statemachine.store import keys
from statemachine.store.records import Unreadable
from tests.regression.scene import BY, StillClock, opened, raw, tear, weighed, working

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from statemachine.store.draft import Draft

ANA: Final = "ana-who-wants-to-go"
KILOS: Final = ("81.0625", "140.0625", "-3.0625")
SAID: Final[dict[str, Any]] = {"actor": "dpo", "reason": "asked by the person"}


pytestmark = pytest.mark.usefixtures("no_events")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store in which a user between two others has records of every kind."""
    where = tmp_path / "store"
    with working(where) as (store, manager, processor):
        for user in ("amy", ANA, "bob"):
            processor.process_batch(weighed(user, day, float(KILOS[0])) for day in range(40))
            manager.perform_reset(user, **BY)
            processor.process_batch(weighed(user, day, float(KILOS[1])) for day in range(40, 43))
            processor.process(weighed(user, 44, float(KILOS[2])))
        intake = processor.intake([(None, "file.csv")], lambda *_: None)
        for number, user in enumerate(("amy", ANA, "bob")):
            raw_line = f"{user};heavy"
            intake.add(0, SourceRow(number, None, Unreadable(line=number, raw=raw_line, reason="no number", user=user)))
        intake.flush()
        draft = store.draft()
        draft.puts[keys.damaged(ANA.encode(), 3)] = b"the bytes of a head of " + ANA.encode()
        draft.put(keys.breaker(ANA.encode()), pack(Breaker(failures=1)))
        failing = tuple((xxhash.xxh3_64_intdigest(user.encode()), 1) for user in ("amy", ANA))
        draft.put(keys.GLOBAL_BREAKER, pack(Breaker(failing=failing, failing_event=failing)))
        store.commit(draft)
    return where


def everything(path: Path) -> dict[bytes, bytes]:
    with raw(path) as txn, txn.cursor() as cursor:
        return {bytes(key): bytes(stored) for key, stored in cursor.iternext()}


def about_others(path: Path) -> dict[bytes, bytes]:
    """What is stored apart from the user, the audit log, the owners and the global breaker."""
    apart = (keys.AUDIT, keys.CHAIN, keys.OWNER, keys.META, keys.ATTEMPT, keys.GLOBAL_BREAKER)
    return {key: stored for key, stored in everything(path).items()
            if not key.startswith(apart) and ANA.encode() not in key + stored}


def test_nothing_of_a_forgotten_user_is_in_any_record_and_the_chain_verifies(path: Path) -> None:
    """Not its id, not its values: under no key, in no row of the audit, in no breaker; everybody else's records stay."""
    others = about_others(path)
    held = everything(path)
    prefixes = [keys.audit_of(ANA.encode(), 0)[:-8], keys.breaker(ANA.encode()), keys.identities(ANA.encode()),
                keys.aside(ANA.encode()), keys.head(ANA.encode()), keys.versions(ANA.encode()), keys.pin(ANA.encode()),
                keys.DAMAGED + ANA.encode()]
    assert [p for p in prefixes if not any(key.startswith(p) for key in held)] == [], "a record of every kind"
    with opened(path) as store:
        rows = [row.public.seq for row in store.audit(ANA)]
        found = forget(store, ANA, **SAID)
        assert store.verify_audit().problem == ""
        anchor = store.inspect(found.attempt_id)
        assert anchor is not None
        assert (anchor.public.event, anchor.personal.user, anchor.personal.actor) == ("user.forgotten", "", "dpo")
        assert [n for first, last in audit.covered(anchor) for n in range(first, last + 1)] == rows
        assert (found.rows, found.unread) == (len(rows), 0)
        assert not store.knows(ANA)
        assert [row.public.seq for row in store.audit() if row.erased] == rows
        assert [kept for kept in store.quarantine() if kept.user == ANA] == []
    left = everything(path)
    assert [key for key, stored in left.items() if ANA.encode() in key + stored] == []
    assert about_others(path) == others
    assert len(held) - found.records == len([k for k in left if not k.startswith((keys.OWNER, keys.AUDIT, keys.ATTEMPT))]) + len(
        [k for k in held if k.startswith((keys.OWNER, keys.AUDIT, keys.ATTEMPT))])
    breaker = unpack(Breaker, unseal(keys.GLOBAL_BREAKER, left[keys.GLOBAL_BREAKER]))
    assert breaker.failing == breaker.failing_event == ((xxhash.xxh3_64_intdigest(b"amy"), 1),)


def test_a_user_that_only_an_unreadable_row_names_is_forgotten(tmp_path: Path) -> None:
    where = tmp_path / "store"
    with opened(where) as store:
        intake = Processor(ResetManager(store)).intake([(None, "f")], lambda *_: None)
        intake.add(0, SourceRow(0, None, Unreadable(line=1, raw="x", reason="no number", user=ANA)))
        intake.flush()
        assert forget(store, ANA, **SAID)[:2] == (1, 0)
        assert list(store.quarantine()) == []
        with pytest.raises(UserUnknown):
            forget(store, ANA, **SAID)


def test_nobody_is_not_forgotten_and_leaves_no_row(path: Path) -> None:
    """An unknown user, also one whose id another's begins with, and one without an actor or a reason."""
    with opened(path) as store:
        tail = store.audit_tail()
        for nobody in ("nobody", ANA[:-1], ANA + "x"):
            with pytest.raises(UserUnknown):
                forget(store, nobody, **SAID)
        with pytest.raises(InvalidInput):
            forget(store, ANA, actor="", reason="r")
        with pytest.raises(InvalidInput):
            forget(store, ANA, actor="a", reason=" ")
        assert store.audit_tail() == tail


def before_commit(store: Store, monkeypatch: pytest.MonkeyPatch, *acts: Callable[[], object]) -> list[int]:
    """Before each of the next commits of a draft with an anchor, another writer acts; how many such commits were tried."""
    real, tried, left = store.commit, [0], list(acts)

    def commit(draft: Draft) -> object:
        if draft.entries and draft.entries[0].public.event in audit.ANCHORS:
            tried[0] += 1
            if left:
                left.pop(0)()
        return real(draft)

    monkeypatch.setattr(store, "commit", commit)
    return tried


def unreadable(store: Store) -> None:
    draft = store.draft()
    draft.put(keys.unreadable(9, 9), pack(Unreadable(1, "late", "no number", ANA)))
    store.commit(draft)


def noted(store: Store) -> None:
    draft = store.draft()
    draft.entries.append(audit.act("noted", store.ids.attempt_id(), actor="a", reason="r", at_us=0, user=ANA))
    store.commit(draft)


def released(store: Store) -> None:
    draft = store.draft()
    draft.put(keys.breaker(ANA.encode()), pack(Breaker(failures=2)))
    store.commit(draft)


def fed(store: Store) -> None:
    Processor(ResetManager(store)).process(weighed(ANA, 50, 81.0))


@pytest.mark.parametrize("act", [unreadable, noted, released, fed])
def test_what_another_writer_adds_meanwhile_goes_too(
    path: Path, monkeypatch: pytest.MonkeyPatch, act: Callable[[Store], object],
) -> None:
    """The commit misses and everything is looked for again."""
    with opened(path) as store:
        tried = before_commit(store, monkeypatch, lambda: act(store))
        forget(store, ANA, **SAID)
        assert tried == [2]
        assert store.verify_audit().problem == ""
    assert [key for key, stored in everything(path).items() if ANA.encode() in key + stored] == []


def test_a_user_that_others_keep_changing_is_told_as_busy(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(erasure, "RETRIES_MAX", 2)
    with opened(path) as store:
        before_commit(store, monkeypatch, lambda: noted(store), lambda: noted(store))
        with pytest.raises(StoreBusy):
            forget(store, ANA, **SAID)
        assert store.knows(ANA)


def test_a_processor_that_had_the_user_at_hand_begins_it_anew(path: Path) -> None:
    """What it kept decoded is refused at its next commit: the user starts at version 1, from that measurement alone."""
    with opened(path) as store:
        processor = Processor(ResetManager(store))
        processor.process_batch([weighed(ANA, 60, 81.0), weighed("bob", 60, 140.0)])
        forget(store, ANA, **SAID)
        outcomes = processor.process_batch([weighed(ANA, 61, 81.0), weighed("bob", 61, 140.0)])
        assert [outcome.status for outcome in outcomes] == ["accepted", "accepted"]
        assert outcomes[0].version == 1
        assert store.version_range(ANA) == (1, 1)
        assert store.version_range("bob")[1] == outcomes[1].version > 40
        forget(store, ANA, **SAID)
        assert processor.process(weighed(ANA, 10, 81.0)).version == 1, "an instant that it once had seen is new again"


def test_a_reset_under_way_does_not_bring_the_user_back(path: Path) -> None:
    """Its snapshot is of a user that is gone: it conflicts, and only its own row names the user."""
    with opened(path) as store:
        manager = ResetManager(store)
        with manager.transaction(ANA, **BY) as tx:
            tx.apply("same", lambda state: state)
            forget(store, ANA, **SAID)
            with pytest.raises(ConflictError):
                tx.commit()
        assert store.load(ANA) is None
        assert [row.public.outcome for row in store.audit(ANA)] == ["conflicted"]
        forget(store, ANA, **SAID)
        assert store.verify_audit().problem == ""
    assert [key for key, stored in everything(path).items() if ANA.encode() in key + stored] == []


def test_a_damaged_audit_row_about_the_user_stops_it(path: Path) -> None:
    """Nothing is erased: the row could not be rewritten, and its bytes name the user."""
    with opened(path) as store:
        seq = next(iter(store.audit(ANA))).public.seq
    tear(path, keys.audit(seq))
    with opened(path) as store:
        with pytest.raises(StoreCorrupt):
            forget(store, ANA, **SAID)
        assert store.load(ANA) is not None


def test_damaged_records_of_the_user_go_all_the_same(path: Path) -> None:
    """They need not be read to be erased; an unreadable row that is damaged is counted, for nobody knows whose it is."""
    tear(path, keys.head(ANA.encode()))
    with raw(path) as txn, txn.cursor() as cursor:
        assert cursor.set_range(keys.UNREADABLE)
        first = bytes(cursor.key())
    tear(path, first)
    with opened(path) as store:
        assert forget(store, ANA, **SAID).unread == 1
        assert not store.knows(ANA)


def test_a_pruned_log_keeps_its_digests_and_verifies(path: Path) -> None:
    """In bounded commits, each with its own row; who was named is found in no row before; a second call does nothing."""
    with opened(path) as store:
        end, digest = store.audit_tail()
        before_us = store.clock.now_us() + 10**12
        found = prune_audit(store, before_us, **SAID, rows_max=2)
        assert found == (end, end, -(-end // 2))
        rows = list(store.audit())
        assert [row.erased for row in rows] == [True] * end + [False] * found.commits
        assert {row.public.event for row in rows[end:]} == {"audit.pruned"}
        assert store.verify_audit(digest).problem == ""
        assert list(store.audit(ANA)) == []
        assert prune_audit(store, before_us, **SAID) == (0, 0, 0)
        assert store.audit_tail()[0] == end + found.commits
        assert store.load(ANA) is not None
    stored = everything(path)
    assert [key for key, row in stored.items() if key.startswith(keys.AUDIT) and ANA.encode() in row] == []


def test_only_rows_written_before_the_instant_are_pruned(path: Path) -> None:
    clock = StillClock()
    with opened(path, clock=clock) as store:
        before = store.audit_tail()[0]
        clock.wall_us += 10
        noted(store)
        prune_audit(store, clock.now_us(), **SAID)
        assert [row.erased for row in store.audit()] == [True] * before + [False, False]
        assert store.verify_audit().problem == ""


def test_pruning_and_forgetting_go_together(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user forgotten while the log is pruned: the pruning looks again, and no row is claimed by both."""
    with opened(path) as store:
        tried = before_commit(store, monkeypatch, lambda: forget(store, ANA, **SAID))
        prune_audit(store, store.clock.now_us() + 10**12, **SAID)
        assert tried == [3]
        assert store.verify_audit().problem == ""
        anchors = [row for row in store.audit() if not row.erased]
        claimed = [n for row in anchors for first, last in audit.covered(row) for n in range(first, last + 1)]
        assert sorted(claimed) == list(range(1, len(claimed) + 1))


def erase_by_hand(path: Path, seq: int) -> None:
    key = keys.audit(seq)
    with raw(path) as txn:
        txn.put(key, seal(key, audit.erased(unseal(key, bytes(txn.get(key) or b"")))))


def test_a_payload_dropped_by_hand_is_found_beside_those_that_were_erased(path: Path) -> None:
    """Before the anchor, after it, and the anchor's own: each is named, and no act covers what came after it."""
    with opened(path) as store:
        anchor = store.inspect(forget(store, ANA, **SAID).attempt_id)
        noted(store)
        assert anchor is not None
        end = store.audit_tail()[0]
        left = [row.public.seq for row in store.audit() if not row.erased]
        stored = {seq: store.engine.get(keys.audit(seq)) or b"" for seq in left}
    assert {1, anchor.public.seq, end} <= set(left)
    for seq in left:
        erase_by_hand(path, seq)
        with opened(path) as store:
            found = store.verify_audit()
            assert f"row {seq} is gone" in found.problem
            if seq != anchor.public.seq:
                assert found.bad_seq == seq
        with raw(path) as txn:
            txn.put(keys.audit(seq), stored[seq])
    with opened(path) as store:
        assert store.verify_audit().problem == ""


def test_an_anchor_cannot_cover_itself_or_later_rows(path: Path) -> None:
    """One that says so, or says nothing that can be understood, is itself the finding."""
    for seqs in ([(1, 10**6)], [(0, 1)], [(3, 2)], "all", None):
        with opened(path) as store:
            draft = store.draft()
            details = {"seqs": seqs}
            draft.entries.append(audit.act("user.forgotten", store.ids.attempt_id(), **SAID, at_us=0, details=details))
            row = store.commit(draft)[0]
            with pytest.raises(StoreCorrupt):
                audit.covered(row)
            assert store.verify_audit().bad_seq is not None


def test_verification_while_rows_are_erased_finds_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row seen erased whose anchor was written after the end of the log was noted is explained by reading on."""
    with opened(path) as store:
        scan = store.engine.scan
        done: list[int] = []

        def scanning(start: bytes, stop: bytes, **how: bool) -> object:
            if start == keys.AUDIT and not done:
                done.append(1)
                forget(store, ANA, **SAID)
            return scan(start, stop, **how)

        monkeypatch.setattr(store.engine, "scan", scanning)
        assert store.verify_audit().problem == ""
        assert done


def test_everything_held_about_a_user_is_exported(path: Path) -> None:
    """Each record is JSON; nothing of another user is in it."""
    with opened(path) as store:
        records = [json.loads(msgspec.json.encode(record)) for record in export_user(store, ANA)]
        by_kind: dict[str, list[dict[str, Any]]] = {}
        for found in records:
            by_kind.setdefault(found["record"], []).append(found)
        assert set(by_kind) == {"audit", "breaker", "measurement", "kept_aside", "state", "version", "damaged",
                                "before_probation", "unreadable"} - ({"before_probation"} if not store.engine.get(
                                    keys.pin(ANA.encode())) else set())
        assert [row["seq"] for row in by_kind["audit"]] == [row.public.seq for row in store.audit(ANA)]
        assert len(by_kind["version"]) == store.version_range(ANA)[1]
        aside = [row for row in by_kind["measurement"] if row["disposition"] != "accepted"]
        assert len(aside) == store.kept_count(ANA)
        assert all(row["reason"] for row in aside)
        loaded = store.load(ANA)
        assert loaded is not None
        assert by_kind["state"][0]["state"]["kalman"]["x0"] == loaded.state.kalman.x0
        assert by_kind["unreadable"][0]["raw"] == f"{ANA};heavy"
        assert {row["user"] for row in records} == {ANA}
        with pytest.raises(UserUnknown):
            next(export_user(store, "nobody"))


def test_what_is_damaged_is_exported_as_it_is_stored(path: Path) -> None:
    tear(path, keys.head(ANA.encode()))
    with opened(path) as store:
        found = [r for r in export_user(store, ANA) if r["record"] == "damaged"]
        assert keys.head(ANA.encode()).hex() in [r["key"] for r in found]
