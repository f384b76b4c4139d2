"""What is left of a forgotten user: no byte in any file of the store, once its file was made anew (Shows 7)."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from typing import TYPE_CHECKING, Any, Final

import pytest
import xxhash
from typer.testing import CliRunner

from statemachine import Processor, ResetManager, erasure
from statemachine.cli import app
from statemachine.marks import RUNNING, Mark, Marks
from statemachine.processor import SourceRow
from statemachine.state import PAIR
from statemachine.store import keys
from statemachine.store.checkup import Checkup
from statemachine.store.compaction import compact
from statemachine.store.records import Identity, Unreadable
from tests.regression.scene import BY, Faulty, opened, tear, weighed, working
from tests.unit.processes import answer, line, started

if TYPE_CHECKING:
    from pathlib import Path

    from statemachine import Store

pytestmark = pytest.mark.usefixtures("no_events")

ANA: Final = "ana-żółw-8c1f"
SAID: Final[dict[str, Any]] = {"actor": "dpo", "reason": "asked by the person"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store in which the user, between two others with other weights, has records of every kind, some deleted again."""
    where = tmp_path / "store"
    estimator = Faulty()
    with working(where, estimator=estimator) as (store, manager, processor):
        processor.process_batch(weighed(f"u{number:03d}", 0, 61.5) for number in range(300))
        for user, kg in (("am", 61.5), (ANA, 83.109375), ("bob", 74.25)):
            processor.process_batch(weighed(user, day, kg + day % 7 / 64) for day in range(120))
            manager.perform_reset(user, **BY)
            processor.process_batch(weighed(user, day, kg + 60 + day / 128) for day in range(121, 123))
            processor.process_batch(weighed(user, day, kg + 30 + day / 128) for day in range(130, 135))
            processor.process(weighed(user, 3.5, kg + 1 / 64))
        intake = processor.intake([(None, "file.csv")], lambda *_: None)
        intake.add(0, SourceRow(0, None, Unreadable(line=1, raw=f"{ANA};heavy", reason="no number", user=ANA)))
        intake.flush()
        estimator.failing = True
        for _ in range(3):
            with pytest.raises(Exception, match="clear buffer"):
                manager.perform_reset(ANA, **BY)
        mark = Mark(RUNNING, "reset.interrupted", "interrupted", store.ids.attempt_id(), ANA, "admin", "", 1, 0, 0)
        store.marks.release(store.marks.fill(mark))
    return where


def traces(store: Store) -> dict[str, bytes]:
    """Every sequence of bytes by which the user could be found: the id in each form, values, states, readings, digests."""
    key, found = ANA.encode(), {"the id": ANA.encode(), "the id escaped": json.dumps(ANA).strip('"').encode()}
    mark = xxhash.xxh3_64_intdigest(key)
    found |= {"its mark": mark.to_bytes(8, "big"), "its mark backwards": mark.to_bytes(8, "little"),
              "its SHA-256": hashlib.sha256(key).digest(), "its BLAKE2b": hashlib.blake2b(key, digest_size=12).digest()}

    def number(name: str, value: float) -> None:
        if value not in (0.0, 1.0) and abs(value) > 50:
            found[f"{name} {value!r} little"], found[f"{name} {value!r} big"] = struct.pack("<d", value), struct.pack(">d", value)

    for at, value in store.engine.scan(keys.identities(key), keys.after(keys.identities(key))):
        kept = store.draft().identity(at)
        assert type(kept) is Identity
        assert value
        found[f"key {at[-20:].hex()}"] = at[-20:]
        found[f"digest {at[-12:].hex()}"] = at[-12:]
        for weight in kept.values:
            number("weight", weight)
            found[f"reading {at[-20:].hex()}"] = PAIR.pack(keys.instant_of(at, key), weight)
        if "." in kept.value and len(kept.value) > 5:
            found[f"as written {kept.value}"] = kept.value.encode()
    for info in store.history(ANA):
        loaded = store.load(ANA, info.version)
        assert loaded is not None
        number("estimate", loaded.state.kalman.x0)
        found[f"state {info.version}"] = store.estimator.encode(loaded.state)
        found[f"covariance {info.version}"] = struct.pack(">d", loaded.state.kalman.p00) + struct.pack(">B", 0xCB)
        for start in range(0, len(loaded.state.packed), PAIR.size):
            found[f"buffer {loaded.state.packed[start:start + PAIR.size].hex()}"] = loaded.state.packed[start:start + PAIR.size]
    return found


def of_others(store: Store) -> bytes:
    """What is stored of everybody else: what is found there too is no trace of the user."""
    own = (ANA.encode() + b"\0", keys.pin(ANA.encode()), keys.AUDIT, keys.UNREADABLE, keys.GLOBAL_BREAKER)
    return b"".join(key + value for key, value in store.engine.scan(b"\0", b"\xff") if not key.startswith(own))


@pytest.fixture
def wanted(path: Path) -> dict[str, bytes]:
    with opened(path) as store:
        others = of_others(store)
        return {name: trace for name, trace in traces(store).items() if trace not in others}


def seen(path: Path, wanted: dict[str, bytes]) -> list[str]:
    """The traces that are in any byte of any file of the store, or beside it."""
    data = b"".join(file.read_bytes() for file in sorted(path.parent.rglob("*")) if file.is_file())
    names = "".join(str(file) for file in path.parent.rglob("*"))
    return [name for name, trace in wanted.items() if trace in data or (name == "the id" and ANA in names)]


def test_the_traces_are_there_before_and_after_forgetting_alone_some_still_are(path: Path, wanted: dict[str, bytes]) -> None:
    """So the search finds what it looks for, and making the file anew is what removes it."""
    before = seen(path, wanted)
    for kind in ("the id", "weight", "estimate", "state", "reading", "buffer", "key", "digest", "as written", "its mark"):
        assert [name for name in before if name.startswith(kind)], kind
    with opened(path) as store:
        erasure.forget(store, ANA, **SAID)
    left = seen(path, wanted)
    assert "the id" in left
    assert [name for name in left if name.startswith("weight")]


def test_no_byte_of_a_forgotten_user_is_left_in_any_file(path: Path, wanted: dict[str, bytes]) -> None:
    with opened(path) as store:
        rows = len(list(store.audit(ANA)))
        assert rows > 3
        assert erasure.forget(store, ANA, **SAID).rows == rows
    compact(path, **SAID)
    assert seen(path, wanted) == []
    with opened(path) as store:
        assert store.verify_audit().bad_seq is None
        assert not store.knows(ANA)
        assert Processor(ResetManager(store)).process(weighed("u001", 1, 61.5)).status == "accepted"


def test_keys_that_were_bounds_between_pages_are_gone_too(tmp_path: Path) -> None:
    """LMDB's own compacting copy keeps them, which is why the file is made anew record by record."""
    where, gone = tmp_path / "store", [f"user-{number:03d}-x" for number in range(0, 300, 3)]
    with working(where) as (store, _, processor):
        processor.process_batch(weighed(f"user-{number:03d}-x", day, 61.5) for number in range(300) for day in range(3))
        for user in gone:
            erasure.forget(store, user, **SAID)
        store.engine.copy_to(tmp_path / "copy.mdb")
    copy = (tmp_path / "copy.mdb").read_bytes()
    assert [user for user in gone if user.encode() in copy]
    compact(where, **SAID)
    data = (where / "data.mdb").read_bytes()
    assert [user for user in gone if user.encode() in data] == []
    with opened(where) as store:
        assert len(list(store.users())) == 200


def test_what_was_kept_of_a_damaged_global_breaker_goes_with_any_of_its_users(path: Path, wanted: dict[str, bytes]) -> None:
    """The user's mark is in the damaged bytes that the operator replaced: no file keeps it in any form, and the act stays."""
    mark = xxhash.xxh3_64_intdigest(ANA.encode()).to_bytes(8, "big")
    wanted |= {"its mark in hexadecimal": mark.hex().encode(), "its mark": mark}
    with opened(path) as store:
        damaged = store.engine.get(keys.GLOBAL_BREAKER)
        assert damaged is not None
        assert mark in damaged
    tear(path, keys.GLOBAL_BREAKER)
    with opened(path) as store:
        after = ResetManager(store).release_breaker(None, **BY)
        kept = store.engine.get(keys.damaged(b"", after.generation))
        assert kept is not None
        assert mark in kept
    compact(path, **SAID)
    assert "its mark" in seen(path, wanted), "making the file anew keeps it"
    with opened(path) as store:
        assert store.engine.get(keys.damaged(b"", after.generation)) == kept
        erasure.forget(store, ANA, **SAID)
        assert store.verify_audit().problem == ""
        (row,) = [row for row in store.audit() if row.public.event == "breaker.released"]
        assert (row.erased, row.personal.actor, row.personal.details["from"]) == (False, BY["actor"], "damaged")
    compact(path, **SAID)
    assert seen(path, wanted) == []
    with opened(path) as store:
        assert store.verify_audit().problem == ""
        assert list(Checkup(store).run()) == []


def run(*words: object) -> tuple[int, str, str]:
    found = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "80"})
    assert found.exception is None or isinstance(found.exception, SystemExit), found.exception
    return found.exit_code, found.stdout, found.stderr


WORDS: Final = ("--actor", "dpo", "--reason", "asked by the person")


def test_the_command_leaves_nothing(path: Path, wanted: dict[str, bytes]) -> None:
    """Nor in the marks of a process that died in an attempt on the user, nor in a rewriting that was cut off."""
    marks = Marks(path / "owners" / "777")
    marks.fill(Mark(RUNNING, "reset.interrupted", "interrupted", "0" * 32, ANA, "admin", "", 1, 0, 0))
    marks.abandon()
    (path / "anew").mkdir()
    (path / "anew" / "data.mdb").write_bytes((path / "data.mdb").read_bytes())
    code, out, _ = run("forget", ANA, "--store", path, "--yes", "--json", *WORDS)
    assert (code, seen(path, wanted)) == (0, [])
    document = json.loads(out)
    assert (document["residue"], document["bytes"]) == (None, (path / "data.mdb").stat().st_size)
    assert run("audit", "verify", "--store", path)[0] == 0


def test_the_command_says_what_is_left_where_it_is_not_alone_and_how_to_finish(path: Path, wanted: dict[str, bytes]) -> None:
    """Another process reads the store: the user is gone from the records, exit code 1, and the command named finishes it."""
    other = started("store = opened(path, readonly=True); say('open'); heard(); store.close()", path)
    assert line(other) == "open"
    code, out, err = run("forget", ANA, "--store", path, "--yes", "--json", *WORDS)
    assert (code, f"process {other.pid}" in err, "resetguard compact" in err) == (1, True, True)
    assert json.loads(out)["residue"] == "store-busy"
    assert "the id" in seen(path, wanted)
    with opened(path) as store:
        assert not store.knows(ANA)
    answer(other, "go\n")
    assert run("compact", path, *WORDS)[0] == 0
    assert seen(path, wanted) == []


def test_an_interrupt_while_the_file_is_made_anew_says_what_is_left(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as here:
        here.setattr(os, "rename", interrupted)
        code, _, err = run("forget", ANA, "--store", path, "--yes", *WORDS)
    assert (code, "resetguard compact" in err, (path / "anew").exists()) == (130, True, False)
    with opened(path) as store:
        assert not store.knows(ANA)


def test_many_are_forgotten_and_the_file_is_made_anew_once(path: Path, wanted: dict[str, bytes]) -> None:
    code, out, err = run("forget", ANA, "--store", path, "--yes", "--no-compact", *WORDS)
    assert (code, "resetguard compact" in err, ANA in out) == (0, True, True)
    assert "the id" in seen(path, wanted)
    assert run("forget", "am", "--store", path, "--yes", *WORDS)[0] == 0
    assert seen(path, wanted) == []
