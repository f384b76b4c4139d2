"""Damage that stopped every later opening, and no longer does: the end of the audit log, and marks that do not decode."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
from typer.testing import CliRunner, Result

from statemachine import MutationFailed, Processor, ResetManager, StoreCorrupt, codec
from statemachine.cli import app
from statemachine.marks import _SLOT, ASIDE, RUNNING, SLOT_BYTES, DeadMarks, Mark, Marks
from statemachine.store import keys, surroundings
from statemachine.store.mending import end_is_lost, find_end
from tests.regression.scene import BY, broken, fill, head, opened, raw, states, tear, weighed
from tests.unit.processes import ran

CLI_BY: Final = ["--actor", "ops@example.org", "--reason", "a disk failed"]

pytestmark = pytest.mark.usefixtures("no_events")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A user with two versions, rows of several kinds, and a dead process that left a mark."""
    path = tmp_path / "store"
    fill(path, "ann", [80.0, 80.1])
    with opened(path) as store, pytest.raises(MutationFailed):
        ResetManager(store).perform_reset("ann", operations=[("fail", broken)], **BY)
    ran("""
        store = opened(path)
        ResetManager(store).perform_reset("ann", operations=[("die", lambda _: os._exit(0))], **BY)
    """, path)
    return path


def run(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, result.output
    return result


# The end of the audit log

def cut_short(path: Path) -> None:
    with raw(path) as txn:
        txn.put(keys.CHAIN, codec.seal(keys.CHAIN, bytes(8)))


def gone(path: Path) -> None:
    with raw(path) as txn:
        txn.delete(keys.CHAIN)


LOST: Final[dict[str, Callable[[Path], None]]] = {"torn": lambda path: tear(path, keys.CHAIN), "short": cut_short, "gone": gone}


@pytest.mark.parametrize("lost", LOST)
def test_a_store_without_the_end_of_its_log_opens_reads_and_commits_nothing(path: Path, lost: str) -> None:
    """Every commit says what is wrong and what helps; the log is not begun anew, and every later opening goes as well."""
    before = fill_state(path)
    LOST[lost](path)
    for _ in range(3):
        with opened(path) as store:
            assert store.interrupted == 0
            assert states(store, "ann") == before
            assert head(store, "ann") is not None
            for commit in (lambda: ResetManager(store).perform_reset("ann", **BY),
                           lambda: Processor(ResetManager(store)).process(weighed("ann", 2, 80.2))):
                with pytest.raises(StoreCorrupt, match=r"end of the audit log cannot be read .* `resetguard recover"):
                    commit()
            assert [row.public.seq for row in store.audit()] == [1, 2]
            assert "end of the audit log" in store.verify_audit().problem
            assert not ResetManager(store).health().ok
    found = run("doctor", "--store", str(path), "--json", code=1).stdout
    assert "resetguard recover" in found
    assert "end of the audit log" in found
    assert "unsettled" in found, "the marks that wait are told of as well"


def fill_state(path: Path) -> list[bytes]:
    """The user's versions, without settling anything."""
    with opened(path, readonly=True) as store:
        return states(store, "ann")


@pytest.mark.parametrize("lost", LOST)
def test_recover_finds_the_end_again_and_settles_what_waited(path: Path, lost: str) -> None:
    """From the newest row, with an act of its own in the chain; the dead process's attempt gets its outcome then."""
    LOST[lost](path)
    result = run("recover", "--store", str(path), "--json", *CLI_BY)
    assert "the end of the audit log was found again" in result.stderr
    with opened(path) as store:
        rows = list(store.audit())
        assert [row.public.seq for row in rows] == [1, 2, 3, 4]
        act, settled = rows[2:]
        assert (act.public.event, act.personal.actor, act.personal.reason) == ("audit.end_found", CLI_BY[1], CLI_BY[3])
        assert act.personal.details == {"end": 2, "end_hash": rows[1].hash.hex()}
        assert settled.public.outcome == "interrupted"
        assert store.verify_audit(rows[1].hash.hex()).bad_seq is None
        assert ResetManager(store).perform_reset("ann", **BY).version == 3
        assert find_end(store, **BY) is None, "there is nothing to do any more"
    assert json.loads(run("doctor", "--store", str(path), "--json").stdout)["findings"] == []


def test_an_end_is_not_made_up_where_the_newest_row_is_damaged_too(path: Path) -> None:
    """A chain that went on from anything else could never be told from a forged one."""
    tear(path, keys.CHAIN, keys.audit(2))
    assert "restore-store" in run("recover", "--store", str(path), *CLI_BY, code=3).stderr
    with opened(path) as store:
        assert end_is_lost(store.engine)


def test_a_row_under_another_number_is_no_newest_row(path: Path) -> None:
    with raw(path) as txn:
        content = codec.unseal(keys.audit(2), bytes(txn.get(keys.audit(2)) or b""))
        txn.put(keys.audit(9), codec.seal(keys.audit(9), content))
        txn.delete(keys.CHAIN)
    assert "written as row 2" in run("recover", "--store", str(path), *CLI_BY, code=3).stderr


def test_the_end_of_an_empty_log_is_its_beginning(tmp_path: Path) -> None:
    with opened(tmp_path / "store"):
        pass
    cut_short(tmp_path / "store")
    with opened(tmp_path / "store") as store:
        assert find_end(store, **BY) is not None
        assert [row.public.event for row in store.audit()] == ["audit.end_found"]
        assert store.verify_audit().bad_seq is None


def test_other_damage_at_the_settling_still_stops_the_opening(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only where no commit can be made at all may an attempt stay unsettled."""
    def damaged(*_: object) -> int:
        message = "a page"
        raise StoreCorrupt(message)

    monkeypatch.setattr("statemachine.store.settle_dead", damaged)
    with pytest.raises(StoreCorrupt, match="a page"):
        opened(path)


# Marks that do not decode

def mark(number: int, user: str = "ann") -> Mark:
    return Mark(RUNNING, "reset.interrupted", "interrupted", f"{number:032x}", user, "admin", "admin", 2, 0, 99)


UNREAD: Final[dict[str, bytes]] = {
    "no mark": msgspec.msgpack.encode({"state": 1}),
    "of fewer fields": msgspec.msgpack.encode(list(msgspec.structs.astuple(mark(9))[:5])),
    "no msgpack": b"\xc1\xc1",
    "no text": msgspec.msgpack.encode(mark(9)).replace(b"ann", b"\xff\xfe\xfd"),
    "no attempt": msgspec.msgpack.encode(msgspec.structs.replace(mark(9), attempt_id="nobody")),
    "short attempt": msgspec.msgpack.encode(msgspec.structs.replace(mark(9), attempt_id="00")),
    "no user": msgspec.msgpack.encode(mark(9, user="a\0b")),
}


def plant(owners: Path, number: int, content: bytes) -> None:
    """The file of an owner that died with three marks, the middle one not of this program's making."""
    marks = Marks(owners / str(number))
    slots = [marks.fill(mark(10 * number + n)) for n in range(3)]
    start = slots[1] * SLOT_BYTES
    marks._map[start:start + _SLOT.size + len(content)] = _SLOT.pack(RUNNING, len(content), zlib.crc32(content)) + content
    marks.abandon()


@pytest.mark.parametrize("content", UNREAD.values(), ids=UNREAD.keys())
def test_a_mark_that_does_not_decode_is_kept_aside_and_stops_nothing(tmp_path: Path, content: bytes) -> None:
    """The others of its file are settled, the file is kept under another name, a row and doctor name it; once."""
    path = tmp_path / "store"
    fill(path, "ann", [80.0, 80.1])
    plant(path / "owners", 70, content)
    kept = (path / "owners" / "70").read_bytes()
    with opened(path) as store:
        assert store.interrupted == 2
        rows = list(store.audit())[1:]
        assert sorted(row.public.outcome for row in rows) == ["interrupted", "interrupted", "set_aside"]
        (row,) = [row for row in rows if row.public.event == "marks.set_aside"]
        assert row.personal.details == {"owner": 70, "slots": [1], "file": "70.unread"}
        assert (path / "owners" / f"70{ASIDE}").read_bytes() == kept
        (finding,) = [finding for finding in surroundings.examine(store) if finding.check == "marks"]
        assert (finding.level, "70.unread" in finding.subject) == ("warning", True)
        assert store.verify_audit().bad_seq is None
    with opened(path) as store:
        assert (store.interrupted, store.audit_tail()[0]) == (0, 4)


def test_slots_are_named_anew_by_each_reading(tmp_path: Path) -> None:
    plant(tmp_path, 7, UNREAD["no mark"])
    dead = DeadMarks.take(tmp_path / "7")
    assert dead is not None
    seen: list[Any] = [(len(dead.marks()), list(dead.unread)) for _ in range(2)]
    dead.leave()
    assert seen == [(2, [1]), (2, [1])]
