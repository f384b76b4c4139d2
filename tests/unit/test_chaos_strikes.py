"""Which call is struck, with what, and how LMDB takes it."""

from __future__ import annotations

import errno
import os
import platform
import signal
import sys
from typing import TYPE_CHECKING

import lmdb
import pytest

from chaos import watched
from chaos.faults import libc
from chaos.faults.strikes import ALWAYS, FAULTS, INTERRUPTED_TIMES, Striker

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ABLE = sys.platform.startswith("linux") and platform.machine() in {"x86_64", "aarch64"}
pytestmark = pytest.mark.skipif(not ABLE, reason="Linux on x86_64 or aarch64 only")
VALUE = b"v" * 12_000


@pytest.fixture
def env(tmp_path: Path) -> Iterator[lmdb.Environment]:
    with lmdb.open(str(tmp_path), map_size=1 << 20, lib_version=0) as opened:
        with opened.begin(write=True) as txn:
            txn.put(b"k", b"before")
        yield opened


def commit(env: lmdb.Environment) -> str:
    """What a commit ends with, "" where it is made."""
    try:
        with env.begin(write=True) as txn:
            txn.put(b"k", VALUE)
    except lmdb.Error as error:
        return str(error)
    return ""


def struck(env: lmdb.Environment, fault: str, first: int = 1) -> tuple[str, Striker]:
    striker = Striker()
    striker.aim(FAULTS[fault], first)
    with libc.redirected(striker):
        striker.armed = True
        told = commit(env)
        striker.armed = False
    return told, striker


def stored(path: Path) -> int:
    """The length of what a process that opens the file finds."""
    with lmdb.open(str(path), map_size=1 << 20, lib_version=0) as env, env.begin() as txn:
        return len(txn.get(b"k") or b"")


def test_without_a_fault_the_calls_are_counted_and_nothing_else(env: lmdb.Environment) -> None:
    striker = Striker()
    striker.aim(None)
    with libc.redirected(striker):
        assert commit(env) == ""
        assert striker.seen == []
        striker.armed = True
        assert commit(env) == ""
    assert striker.seen[-2:] == ["fdatasync", "pwrite"]
    assert striker.struck == 0


def test_the_nth_call_alone_is_struck(env: lmdb.Environment) -> None:
    """Counted are the calls that the fault is on; past the last of them nothing is."""
    for first in range(1, 4):
        told, striker = struck(env, "delay", first)
        assert (told, striker.struck, len(striker.seen) >= first) == ("", 1, True)
    assert struck(env, "delay", 99)[1].struck == 0
    assert struck(env, "lying sync", 1)[1].struck == 1
    assert struck(env, "lying sync", 2)[1].struck == 0


@pytest.mark.parametrize(("fault", "code"), [("EIO", errno.EIO), ("ENOSPC", errno.ENOSPC), ("short write", errno.EIO)])
def test_a_failing_call_fails_the_commit(env: lmdb.Environment, fault: str, code: int) -> None:
    told, striker = struck(env, fault)
    assert os.strerror(code) in told
    assert striker.struck == 1
    assert commit(env) == ""


@pytest.mark.parametrize("fault", [name for name, fault in FAULTS.items() if fault.harmless])
def test_lmdb_gets_over_what_is_harmless(env: lmdb.Environment, fault: str) -> None:
    told, striker = struck(env, fault)
    assert (told, striker.struck > 0) == ("", True)


def test_an_interruption_that_lasts_comes_several_times_and_ends(env: lmdb.Environment) -> None:
    assert struck(env, "EINTR, lasting")[1].struck == INTERRUPTED_TIMES


def test_a_lasting_fault_strikes_every_call_until_it_is_lifted(env: lmdb.Environment, tmp_path: Path) -> None:
    striker = Striker()
    striker.aim(FAULTS["EIO, lasting"], 2)
    with libc.redirected(striker):
        striker.armed = True
        assert commit(env) != ""
        assert commit(env) != ""
        assert not striker.spent
        striker.armed = False
        assert striker.spent
        assert commit(env) == "" or "MDB_PANIC" in commit(env)
    assert striker.struck == len(striker.seen) - 1
    assert FAULTS["EIO, lasting"].times == ALWAYS
    env.close()
    assert stored(tmp_path) in {len(b"before"), len(VALUE)}


@pytest.mark.parametrize(("fault", "lands"), [("EIO though done", False), ("EIO though done, lasting", True)])
def test_a_meta_page_that_arrived_stays_where_lmdb_cannot_take_it_back(tmp_path: Path, fault: str, lands: bool) -> None:
    """The commit is told as failed, and is there: only such a fault makes a commit that nobody can tell of."""
    found = {}
    for first in range(1, 9):
        path = tmp_path / str(first)
        path.mkdir()
        with lmdb.open(str(path), map_size=1 << 20, lib_version=0) as env:
            with env.begin(write=True) as txn:
                txn.put(b"k", b"before")
            told, striker = struck(env, fault, first)
        assert bool(told) is bool(striker.struck)
        found[first] = told != "" and stored(path) == len(VALUE)
    assert any(found.values()) is lands


@pytest.mark.parametrize("fault", [name for name, fault in FAULTS.items() if fault.deadly])
def test_the_process_dies_at_the_call(env: lmdb.Environment, tmp_path: Path, fault: str) -> None:
    env.close()

    def work(_: int) -> str:
        with lmdb.open(str(tmp_path), map_size=1 << 20, lib_version=0) as own:
            return struck(own, fault)[0]

    (_, died), = watched.each([0], work)
    assert isinstance(died, watched.Died)
    assert died.signal == signal.SIGKILL
    assert stored(tmp_path) == len(b"before")


def test_a_delay_lets_the_clocks_go_on(env: lmdb.Environment) -> None:
    waited: list[int] = []
    striker = Striker()
    striker.aim(FAULTS["delay"], 1, lambda: waited.append(1))
    with libc.redirected(striker):
        striker.armed = True
        assert commit(env) == ""
    assert waited == [1]
