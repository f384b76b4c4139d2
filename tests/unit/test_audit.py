"""What the log says, how it is chained, and its copy as events, which may be lost but never costs a commit."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator, MutableMapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog

from statemachine import (
    BreakerOpen,
    BreakerPolicy,
    MutationFailed,
    Processor,
    ResetManager,
    Store,
    StoreCorrupt,
    Violation,
    codec,
)
from statemachine.audit import (
    EVENTS_QUEUED_MAX,
    GENESIS,
    Emitter,
    Entry,
    Operation,
    Personal,
    Public,
    Row,
    configure_for_command,
    parse,
    row_bytes,
    row_hash,
)
from statemachine.store import keys
from statemachine.testing import CountingIds, ManualClock
from tests.regression.scene import BY, START, broken, raw, weighed

NAMES = [
    "store_id", "seq", "at", "written_at", "event", "attempt_id", "owner", "trace_id", "user", "kind", "trigger", "reason",
    "actor", "base_version", "new_version", "head_author", "phase", "outcome", "operations", "violations", "error", "delta_x",
    "delta_P", "details", "duration_us", "breaker", "erased", "prev_hash", "hash",
]
PUBLIC = Public(
    event="reset.rolled_back", outcome="rolled_back", attempt_id="0" * 32, kind="gap", phase="rolledback", base_version=3,
    breaker_mode="closed", breaker_generation=2, duration_us=17, owner=1, written_us=1_767_596_400_000_001, seq=9, store_id="s")
PERSONAL = Personal(
    user="u", at_us=1_767_596_400_000_000, trigger="by hand", reason="why", actor="who", error="E: x",
    operations=(Operation("widen", 5, ok=False),), violations=(Violation("estimate", "x[0]", "10.0", "more", "kg"),),
    delta_x=(1.0, 2.0), delta_P=(1.0, 2.0, 2.0, 4.0), details={"left_out": 1}, salt=b"s" * 16)

Sink = Callable[[MutableMapping[str, Any]], None]


@pytest.fixture(autouse=True)
def unconfigured() -> Iterator[None]:
    structlog.reset_defaults()
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def sink_to(sink: Sink) -> None:
    """Send this process's events to `sink` and nowhere else."""
    def processor(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> str:
        sink(event)
        raise structlog.DropEvent

    structlog.configure(processors=[processor])


def opened(path: Path, **settings: Any) -> tuple[Store, ResetManager]:
    clock = ManualClock(START + timedelta(days=10))
    store = Store.open(path, **{"clock": clock, "ids": CountingIds(), "durability": "process", **settings})
    return store, ResetManager(store, breaker=BreakerPolicy(failures_max=1))


def filled(store: Store, manager: ResetManager) -> None:
    """Rows of every usual kind: initial, committed, rolled back, a breaker's opening, refused."""
    Processor(manager).process_batch([weighed("u", 0, 80.0), weighed("v", 0, 80.0)])
    manager.perform_reset("u", **BY)
    with pytest.raises(MutationFailed):
        manager.perform_reset("u", operations=[("fail", broken)], **BY)
    with pytest.raises(BreakerOpen):
        manager.perform_reset("u", **BY)
    manager.perform_reset("v", **BY)
    assert store.audit_tail()[0] == 7


# Rows.


def test_a_row_is_as_documented() -> None:
    """The names of the design's section 10, instants as ISO 8601, and nothing for what does not apply."""
    row = Row(PUBLIC, PERSONAL, GENESIS, b"h" * 32)
    assert row.as_dict() == {
        "store_id": "s", "seq": 9, "at": "2026-01-05T07:00:00Z", "written_at": "2026-01-05T07:00:00.000001Z",
        "event": "reset.rolled_back", "attempt_id": "0" * 32, "owner": 1, "trace_id": None, "user": "u", "kind": "gap",
        "trigger": "by hand", "reason": "why", "actor": "who", "base_version": 3, "new_version": None, "head_author": None,
        "phase": "rolledback", "outcome": "rolled_back", "operations": [{"name": "widen", "duration_us": 5, "ok": False}],
        "violations": [{"rule": "estimate", "path": "x[0]", "value": "10.0", "limit": "more", "unit": "kg"}], "error": "E: x",
        "delta_x": (1.0, 2.0), "delta_P": (1.0, 2.0, 2.0, 4.0), "details": {"left_out": 1}, "duration_us": 17,
        "breaker": {"mode": "closed", "generation": 2}, "erased": False, "prev_hash": "00" * 32, "hash": "68" * 32}
    assert list(row.as_dict()) == NAMES
    bare = Row(Public(event="x"), Personal(), GENESIS, GENESIS).as_dict()
    assert list(bare) == NAMES
    assert [name for name, value in bare.items() if value not in (None, [], {}, "", 0, False)] == [
        "written_at", "event", "prev_hash", "hash"]


def test_stored_bytes_are_prev_hash_digest_public_personal() -> None:
    """The layout in the module's docstring, computed here by hand."""
    data, digest = row_bytes(Entry(PUBLIC, PERSONAL), PUBLIC, b"p" * 32)
    length = int.from_bytes(data[64:68], "big")
    public, personal = data[68:68 + length], data[68 + length:]
    assert data[:32] == b"p" * 32
    assert data[32:64] == hashlib.sha256(personal).digest()
    assert digest == hashlib.sha256(data[:64] + public).digest() == row_hash(data[:32], data[32:64], public)
    assert json.loads(public)["event"] == "reset.rolled_back"
    assert {"user", "reason", "actor", "trigger", "error", "details"} & set(json.loads(public)) == set(), "it names nobody"
    assert json.loads(personal)["user"] == "u"
    assert parse(data) == Row(PUBLIC, PERSONAL, b"p" * 32, digest)


def test_an_erased_personal_part_leaves_the_hash() -> None:
    data, digest = row_bytes(Entry(PUBLIC, PERSONAL), PUBLIC, GENESIS)
    length = int.from_bytes(data[64:68], "big")
    row = parse(data[:68 + length])
    assert (row.erased, row.personal, row.public, row.hash) == (True, Personal(), PUBLIC, digest)


def test_a_salt_keeps_the_digest_from_being_guessed() -> None:
    """Equal rows of two salts have different digests, so that a short name cannot be tried out."""
    digests = [row_bytes(Entry(PUBLIC, msgspec.structs.replace(PERSONAL, salt=salt)), PUBLIC, GENESIS)[0][32:64]
               for salt in (b"a" * 16, b"b" * 16)]
    assert digests[0] != digests[1]


def test_every_row_has_a_salt_of_its_own(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store", durability="process") as store:
        configure_for_command(verbose=False)
        Processor(ResetManager(store)).process_batch(weighed(f"user {n}", 0, 80.0) for n in range(5))
        salts = {row.personal.salt for row in store.audit()}
    assert len(salts) == 5
    assert {len(salt) for salt in salts} == {16}


@pytest.mark.parametrize("spoil", [
    lambda data: data[:-1], lambda data: data[:-2] + b" }", lambda data: data + b" ", lambda data: data[:40],
    lambda data: b"", lambda data: data[:64] + b"\xff\xff\xff\xff" + data[68:],
    lambda data: data[:68] + b"[" + data[69:], lambda data: data[:32] + b"\0" * 32 + data[64:],
], ids=["cut", "changed", "longer", "header alone", "nothing", "length", "public", "digest"])
def test_a_torn_row_is_store_corrupt(spoil: Callable[[bytes], bytes]) -> None:
    data, _ = row_bytes(Entry(PUBLIC, PERSONAL), PUBLIC, GENESIS)
    with pytest.raises(StoreCorrupt, match="an audit row"):
        parse(spoil(data))


# The chain.


def test_rows_are_chained_over_what_is_stored(tmp_path: Path) -> None:
    """Numbered from one without gaps, each carrying the hash of the one before, recomputed here from the bytes."""
    configure_for_command(verbose=False)
    store, manager = opened(tmp_path / "store")
    with store:
        filled(store, manager)
        prev = GENESIS
        for seq in range(1, 8):
            key = keys.audit(seq)
            data = codec.unseal(key, store.engine.get(key) or b"")
            assert data[:32] == prev
            length = int.from_bytes(data[64:68], "big")
            prev = hashlib.sha256(data[:68 - 4] + data[68:68 + length]).digest()
            assert json.loads(data[68:68 + length])["seq"] == seq
        assert store.audit_tail() == (7, prev.hex())
        rows = list(store.audit())
        assert [row.public.event for row in rows] == ["reset.committed"] * 3 + [
            "reset.rolled_back", "breaker.opened", "reset.committed", "reset.refused"]
        assert {row.public.store_id for row in rows} == {store.store_id}
        assert [row.public.seq for row in store.audit("u")] == [1, 3, 4, 5, 7]
        assert [row.public.seq for row in store.audit(since_seq=5)] == [5, 6, 7]
        assert store.verify_audit() == (7, prev.hex(), None, "")


def reseal(key: bytes, stored: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """A record changed by someone who knows the checksum."""
    return codec.seal(key, change(codec.unseal(key, stored)))


@pytest.mark.parametrize(("what", "bad_seq", "problem"), [
    ("public", 4, "row 4 does not follow from the one before it"), ("personal", 3, "does not match its digest"),
    ("removed", 3, "row 3 is missing: the next one is 4"), ("swapped", 3, "row 3 was written as row 4"),
    ("cut", 7, "the log ends at row 6, but row 7 was written"), ("added", 8, "row 8 stands after the end of the log, row 7"),
    ("torn", 3, "fails its checksum"),
])
def test_any_change_inside_the_log_is_found(tmp_path: Path, what: str, bad_seq: int, problem: str) -> None:
    """By someone who can write the file and its checksums, but not the hashes that follow."""
    configure_for_command(verbose=False)
    store, manager = opened(tmp_path / "store")
    with store:
        filled(store, manager)
        assert store.verify_audit().bad_seq is None
        noted = store.audit_tail()[1]
    third, fourth, last = keys.audit(3), keys.audit(4), keys.audit(7)
    with raw(tmp_path / "store") as txn:
        stored = {key: bytes(txn.get(key) or b"") for key in (third, fourth, last)}
        if what == "public":
            txn.put(third, reseal(third, stored[third], lambda data: data.replace(b'"admin"', b'"nadir"', 1)))
        elif what == "personal":
            txn.put(third, reseal(third, stored[third], lambda data: data.replace(b"tester@", b"nobody@")))
        elif what == "removed":
            txn.delete(third)
        elif what == "swapped":
            for key, other in ((third, fourth), (fourth, third)):
                txn.put(key, codec.seal(key, codec.unseal(other, stored[other])))
        elif what == "torn":
            txn.put(third, stored[third][:-1] + b"!")
        elif what == "cut":
            txn.delete(last)
        else:
            txn.put(keys.audit(8), codec.seal(keys.audit(8), codec.unseal(last, stored[last])))
    store, _ = opened(tmp_path / "store")
    with store:
        found = store.verify_audit(noted)
        assert found.bad_seq == bad_seq
        assert problem in found.problem


def test_a_tail_cut_with_its_end_is_found_by_a_noted_hash(tmp_path: Path) -> None:
    """Who also rewrites the end of the chain is found by a hash noted elsewhere, and by nothing else."""
    configure_for_command(verbose=False)
    store, manager = opened(tmp_path / "store")
    with store:
        filled(store, manager)
        noted, before = store.audit_tail()[1], list(store.audit())[5].hash
    with raw(tmp_path / "store") as txn:
        txn.delete(keys.audit(7))
        txn.put(keys.CHAIN, codec.seal(keys.CHAIN, (6).to_bytes(8, "big") + before))
    store, _ = opened(tmp_path / "store")
    with store:
        assert store.verify_audit().bad_seq is None
        assert store.verify_audit(before.hex()).bad_seq is None
        assert "the tail was cut" in store.verify_audit(noted).problem


def test_an_empty_log_verifies(tmp_path: Path) -> None:
    store, _ = opened(tmp_path / "store")
    with store:
        assert store.verify_audit() == (0, "00" * 32, None, "")
        assert store.verify_audit("00" * 32).bad_seq is None
        assert store.verify_audit("11" * 32).bad_seq is not None


# Events.


def test_events_are_the_rows_in_their_order(tmp_path: Path) -> None:
    """Dotted names, the row's fields without the empty ones, in seq order, refusals included."""
    seen: list[Any] = []
    sink_to(seen.append)
    store, manager = opened(tmp_path / "store")
    with store:
        filled(store, manager)
        assert store.emitter.flush()
        rows = list(store.audit())
    assert [event["event"] for event in seen] == [row.public.event for row in rows]
    assert [event["seq"] for event in seen] == [1, 2, 3, 4, 5, 6, 7]
    for event, row in zip(seen, rows, strict=True):
        assert event == {name: value for name, value in row.as_dict().items() if value not in (None, [], {}, "", False)}
    assert store.emitter.dropped == 0


def test_events_of_many_threads_are_in_seq_order(tmp_path: Path) -> None:
    seen: list[Any] = []
    sink_to(seen.append)
    store, _ = opened(tmp_path / "store", durability="group", clock=None, ids=None)
    with store:
        manager = ResetManager(store)
        Processor(manager).process_batch(weighed(f"user {n}", 0, 80.0) for n in range(6))
        threads = [threading.Thread(target=lambda name=f"user {n}": [manager.perform_reset(name, **BY) for _ in range(10)])
                   for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert store.emitter.flush()
    assert [event["seq"] for event in seen] == list(range(1, 67))


def test_a_blocked_sink_delays_no_commit_and_its_losses_are_counted(tmp_path: Path) -> None:
    """While the sink stands still resets go on; what the queue cannot hold is dropped, and the log has every row."""
    free, entered, seen = threading.Event(), threading.Event(), []

    def blocking(event: MutableMapping[str, Any]) -> None:
        entered.set()
        free.wait(30)
        seen.append(event["seq"])

    sink_to(blocking)
    store, manager = opened(tmp_path / "store")
    try:
        began = time.monotonic()
        manager.perform_reset("u", kind="initial", measurement=weighed("u", 0, 80.0), **BY)
        row = next(store.audit())
        assert entered.wait(10), "the first is in the sink, and none of the queue"
        for _ in range(EVENTS_QUEUED_MAX + 50):
            store.emitter.emit(row, None)
        manager.perform_reset("u", **BY)
        assert time.monotonic() - began < 10
        assert store.emitter.dropped == 51
        assert store.version_range("u") == (1, 2)
        assert not store.emitter.flush(0.01)
    finally:
        free.set()
        store.emitter.flush()
        store.close()
    assert len(seen) + store.emitter.dropped == EVENTS_QUEUED_MAX + 52
    assert not any(seq == 2 for seq in seen), "the second reset's event was lost, and its row was not"


def test_a_raising_sink_fails_no_commit(tmp_path: Path) -> None:
    """What it loses is counted, and the next events are tried again."""
    seen: list[str] = []

    def failing(event: MutableMapping[str, Any]) -> None:
        if event["outcome"] == "committed":
            raise ValueError(event)
        seen.append(event["event"])

    sink_to(failing)
    store, manager = opened(tmp_path / "store")
    with store:
        filled(store, manager)
        assert store.emitter.flush()
        assert seen == ["reset.rolled_back", "breaker.opened", "reset.refused"]
        assert store.emitter.dropped == 4
        assert store.verify_audit().problem == ""


def test_the_caller_s_contextvars_travel_with_its_event(tmp_path: Path) -> None:
    """They are those of the attempt's thread at its end, although another thread hands the event over."""
    seen: list[Any] = []
    sink_to(seen.append)
    store, manager = opened(tmp_path / "store")
    with store:
        Processor(manager).process(weighed("u", 0, 80.0))
        with structlog.contextvars.bound_contextvars(request="r-1", trace_id="t-1", user="someone else"):
            manager.perform_reset("u", **BY)
        manager.perform_reset("u", **BY)
        assert store.emitter.flush()
        traces = [row.public.trace_id for row in store.audit()]
    assert [event.get("request") for event in seen] == [None, "r-1", None]
    assert [event["user"] for event in seen] == ["u", "u", "u"], "a row's own fields stand"
    assert traces == ["", "t-1", ""]


def test_the_library_configures_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Where the application configured nothing, structlog's own default applies, and everything works."""
    store, manager = opened(tmp_path / "store")
    with store:
        filled(store, manager)
        assert store.emitter.flush()
        assert store.emitter.dropped == 0
    assert not structlog.is_configured()
    assert capfd.readouterr().out.count("reset.committed") == 4


def test_an_emitter_without_events_has_no_thread() -> None:
    before = threading.active_count()
    emitter = Emitter()
    assert emitter.flush()
    assert threading.active_count() == before


def test_a_store_that_is_closed_keeps_no_thread(tmp_path: Path) -> None:
    """Also one whose sink is stuck, with a full queue, once the sink lets go."""
    threads, let_go = [t for t in threading.enumerate() if t.name == "resetguard-events"], threading.Event()

    def stuck(_logger: Any, _name: str, _event: Any) -> Any:
        let_go.wait(10)
        raise structlog.DropEvent

    structlog.configure(processors=[stuck])
    store, manager = opened(tmp_path / "store")
    filled(store, manager)
    row = next(store.audit())
    for _ in range(EVENTS_QUEUED_MAX + 1):
        store.emitter.emit(row, None)
    store.emitter.close(0.01)
    let_go.set()
    store.close()
    until = time.monotonic() + 10
    while [t for t in threading.enumerate() if t.name == "resetguard-events"] != threads:
        assert time.monotonic() < until
        time.sleep(0.001)


@pytest.mark.parametrize("verbose", [False, True])
def test_the_command_s_events_are_json_lines_on_standard_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], verbose: bool,
) -> None:
    configure_for_command(verbose=verbose)
    store, manager = opened(tmp_path / "store")
    with store:
        filled(store, manager)
        assert store.emitter.flush()
    out, err = capsys.readouterr()
    assert out == ""
    lines = [json.loads(line) for line in err.splitlines()]
    assert [line["seq"] for line in lines] == ([1, 2, 3, 4, 5, 6, 7] if verbose else [])
    assert all(line["level"] == "info" for line in lines)
