"""The redirected calls of LMDB: each fault reaches it, nothing is raised into it, and everything is given back."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import lmdb
import pytest

from chaos.faults import libc

if TYPE_CHECKING:
    from collections.abc import Iterator

    from chaos.faults.libc import Call, Handler

ABLE = sys.platform.startswith("linux") and platform.machine() in {"x86_64", "aarch64"}
pytestmark = pytest.mark.skipif(not ABLE, reason="Linux on x86_64 or aarch64 only")
PAGE_BYTES = 4096


@pytest.fixture
def env(tmp_path: Path) -> Iterator[lmdb.Environment]:
    with lmdb.open(str(tmp_path), map_size=1 << 20, lib_version=0) as opened:
        yield opened


def put(env: lmdb.Environment, key: bytes = b"k", value: bytes = b"v") -> None:
    with env.begin(write=True) as txn:
        txn.put(key, value)


def get(env: lmdb.Environment, key: bytes = b"k") -> bytes | None:
    with env.begin() as txn:
        found: bytes | None = txn.get(key)
        return found


def goes_on(env: lmdb.Environment, handler: Handler) -> None:
    """A commit, and the work after it, within the block, whatever its handler does."""
    ended = False
    try:
        with libc.redirected(handler):
            put(env)
            ended = get(env) == b"v"
    finally:
        assert ended


def seeing(seen: list[str]) -> Handler:
    """Notes the name of each call, and makes it."""
    def handler(call: Call) -> int:
        seen.append(call.name)
        return call.make()
    return handler


def contents() -> dict[int, int]:
    """What is in each slot now."""
    found = libc.slots(libc.extension())
    return {a: ctypes.c_uint64.from_address(a).value for name in libc.NAMES for a in found.get(name, ())}


def protections() -> list[int]:
    return [m.protection for m in libc.maps() if m.path == libc.extension()]


def test_the_calls_of_a_commit_are_seen_in_order_with_what_they_write(env: lmdb.Environment, tmp_path: Path) -> None:
    """Pages, a sync, the meta page through its own durable descriptor; what they write is what lies in the file then."""
    seen: list[tuple[str, bool]] = []
    written: list[tuple[int, bytes]] = []

    def handler(call: Call) -> int:
        seen.append((call.name, call.dsync))
        if call.name in libc.WRITES:
            written.append((call.offset, call.data()))
            assert call.length == len(call.data())
        return call.make()

    with libc.redirected(handler):
        put(env, value=b"v" * 3 * PAGE_BYTES)
    assert [name for name, _ in seen][-2:] == ["fdatasync", "pwrite"]
    assert [dsync for _, dsync in seen] == [False] * (len(seen) - 1) + [True]
    assert "writev" in {name for name, _ in seen}
    file = (tmp_path / "data.mdb").read_bytes()
    assert all(file[offset:offset + len(data)] == data for offset, data in written)
    assert str(libc.Call("pwrite", (-1, 0, 8, 16), -1, "/a/data.mdb")) == "pwrite(data.mdb, 16+8)"


def test_opening_maps_the_file_and_a_write_map_is_synced_by_msync(tmp_path: Path) -> None:
    calls: list[tuple[str, int, int, bool]] = []

    def handler(call: Call) -> int:
        calls.append((call.name, call.offset, call.length, call.writable))
        return call.make()

    with libc.redirected(handler), lmdb.open(str(tmp_path), map_size=1 << 20, lib_version=0, writemap=True) as env:
        put(env)
    named = {name for name, *_ in calls}
    assert {"mmap", "msync", "ftruncate"} <= named
    assert ("mmap", 0, 1 << 20, True) in calls
    assert ("ftruncate", 0, 1 << 20, False) in calls
    assert any(name == "msync" and offset % PAGE_BYTES == 0 and 0 < length <= 1 << 20 for name, offset, length, _ in calls)


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_a_failed_call_is_lmdbs_error_by_its_number_and_undone(env: lmdb.Environment, code: int) -> None:
    put(env)
    with libc.redirected(lambda call: call.fail(code)), pytest.raises(lmdb.Error, match=os.strerror(code)):
        put(env, value=b"w")
    assert get(env) == b"v"


def test_a_short_write_leaves_only_its_beginning(env: lmdb.Environment, tmp_path: Path) -> None:
    """Of pages that are written together, the first one and a half reach the file."""
    sizes: list[int] = []
    before = (tmp_path / "data.mdb").stat().st_size

    def handler(call: Call) -> int:
        if call.name != "writev":
            return call.make()
        sizes.append(call.make(PAGE_BYTES * 3 // 2))
        return sizes[-1]

    with libc.redirected(handler), pytest.raises(lmdb.Error, match="Input/output"):
        put(env, value=b"v" * 3 * PAGE_BYTES)
    assert sizes == [PAGE_BYTES * 3 // 2]
    assert (tmp_path / "data.mdb").stat().st_size != before


def test_only_watched_files_are_asked_about(env: lmdb.Environment) -> None:
    asked: list[str] = []

    def watched(path: str) -> bool:
        asked.append(path)
        return False

    with libc.redirected(lambda call: call.fail(errno.EIO), watched=watched):
        put(env)
    assert {Path(path).name for path in asked} == {"data.mdb"}
    assert get(env) == b"v"


def test_everything_is_given_back(env: lmdb.Environment) -> None:
    """The slots, the protection of their pages, and the handlers of signals; also where the block raises."""
    before, bits, handler = contents(), protections(), signal.getsignal(signal.SIGINT)
    with contextlib.suppress(ValueError), libc.redirected(lambda call: call.make()):
        assert all(value != before[address] for address, value in contents().items())
        assert protections() == bits
        raise ValueError
    assert (contents(), protections(), signal.getsignal(signal.SIGINT)) == (before, bits, handler)
    put(env)


def test_a_table_that_the_loader_made_read_only_is_written_and_read_only_again() -> None:
    """With all slots bound at the start (RELRO) their pages cannot be written."""
    program = ("import lmdb, mmap; from chaos.faults import libc\n"
               "slots = [a for n in libc.NAMES for a in libc.slots(libc.extension()).get(n, ())]\n"
               "bits = lambda: {m.protection for m in libc.maps() for a in slots if m.start <= a < m.stop}\n"
               "protect = libc.ctypes.CDLL(None).mprotect\n"
               "for page in {a // mmap.PAGESIZE * mmap.PAGESIZE for a in slots}:\n"
               "    protect(libc.ctypes.c_size_t(page), libc.ctypes.c_size_t(mmap.PAGESIZE), mmap.PROT_READ)\n"
               "assert bits() == {mmap.PROT_READ}\n"
               "with libc.redirected(lambda call: call.make()): assert bits() == {mmap.PROT_READ}\n"
               "assert bits() == {mmap.PROT_READ}; print('done')")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60,
                          cwd=Path(__file__).parents[2], env={**os.environ, "LD_BIND_NOW": "1"})
    assert done.stdout == "done\n", done.stderr


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, ValueError])
@pytest.mark.parametrize("made", [False, True])
def test_what_a_handler_raises_comes_out_at_the_end_of_the_block_and_the_call_is_made_once(
    env: lmdb.Environment, error: type[BaseException], made: bool,
) -> None:
    count = 0

    def handler(call: Call) -> int:
        nonlocal count
        if made:
            count += call.make() >= 0
        raise error

    with pytest.raises(error):
        goes_on(env, handler)
    assert (count > 0) is made
    put(env, value=b"w")


def test_a_signal_within_a_callback_waits_for_the_end_of_the_block(env: lmdb.Environment) -> None:
    """Its handler raises; were it to run in the callback, at whatever instruction, LMDB would read nonsense."""
    def handler(call: Call) -> int:
        signal.raise_signal(signal.SIGINT)
        return call.make()

    with pytest.raises(KeyboardInterrupt):
        goes_on(env, handler)
    with libc.redirected(lambda call: call.make()), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)  # outside of a callback it is handled at once


def test_no_signal_handler_runs_within_a_callback(env: lmdb.Environment) -> None:
    order: list[str] = []

    def handler(call: Call) -> int:
        signal.raise_signal(signal.SIGUSR1)
        order.append("call")
        return call.make()

    before = signal.signal(signal.SIGUSR1, lambda *_: order.append("signal"))
    try:
        with libc.redirected(handler):
            put(env)
            order.append("end")
    finally:
        signal.signal(signal.SIGUSR1, before)
    calls = order.index("end")
    assert order == ["call"] * calls + ["end"] + ["signal"] * calls


def test_a_call_that_was_made_before_its_handler_raised_is_not_made_again(env: lmdb.Environment) -> None:
    def handler(call: Call) -> int:
        call.make(100)
        raise ValueError

    told: list[str] = []

    def attempt() -> None:
        try:
            put(env, value=b"v" * 3 * PAGE_BYTES)
        except lmdb.Error as error:
            told.append(str(error))

    with contextlib.suppress(ValueError), libc.redirected(handler):
        attempt()
    assert told == ["mdb_txn_commit: Input/output error"]


def test_another_handler_is_refused_and_the_first_stays(env: lmdb.Environment) -> None:
    seen: list[str] = []
    with libc.redirected(seeing(seen)):
        with pytest.raises(libc.Unavailable, match="redirected already"), libc.redirected(lambda call: call.make()):
            pass
        put(env)
    assert seen


def test_a_thread_that_python_knows_nothing_of_may_make_the_calls(env: lmdb.Environment, tmp_path: Path) -> None:
    """LMDB writes a copy without free pages in a thread of its own."""
    put(env, value=b"v" * 3 * PAGE_BYTES)
    (tmp_path / "copy").mkdir()
    threads: set[int] = set()

    def handler(call: Call) -> int:
        threads.add(threading.get_native_id())
        return call.make()

    with libc.redirected(handler):
        env.copy(str(tmp_path / "copy"), compact=True)
    assert threads - {threading.get_native_id()}
    with lmdb.open(str(tmp_path / "copy"), lib_version=0) as copy:
        assert get(copy) == b"v" * 3 * PAGE_BYTES


def test_where_it_cannot_work_it_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    assert libc.unavailable() == ""
    with monkeypatch.context() as patch:
        patch.setattr(sys, "platform", "darwin")
        assert "Linux only; this is darwin" in libc.unavailable()
    with monkeypatch.context() as patch:
        patch.setattr(platform, "machine", lambda: "riscv64")
        assert "this is riscv64" in libc.unavailable()
    with monkeypatch.context() as patch:
        patch.setattr(libc, "EXTENSIONS", ("nothing",))
        assert "import lmdb first" in libc.unavailable()
        with pytest.raises(libc.Unavailable, match="import lmdb first"), libc.redirected(lambda call: call.make()):
            pass
    with monkeypatch.context() as patch:
        patch.setattr(libc, "slots", lambda _: {"pwrite": [], "mmap": []})
        assert "does not call fdatasync through its table of imports" in libc.unavailable()
    with pytest.raises(libc.Unavailable, match="not mapped"):
        libc.slots("/nothing.so")
