"""LMDB's traps about processes, threads and locks, each provoked: a typed error or correct work, nothing lost, no crash.

Where it is cheap a test shows first that bare LMDB does fall into the trap.  docs/lmdb.md lists every trap and its test.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import lmdb
import pytest

from statemachine import ContractBroken, ResetManager, Store, StoreBusy, StoreFull, StoreLimits
from statemachine.store import keys
from statemachine.store.engine import WRITES_A_CHECK
from tests.regression.scene import BY, events, fill, head, opened, weighed, working
from tests.unit.processes import SECONDS_MAX, answer, line, ran, started

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.usefixtures("no_events")

# Bare LMDB, as a program that knows nothing of its traps uses it.
BARE: Final = """
import os, sys, threading
import lmdb
def say(*words):
    print(*words, flush=True)
env = lmdb.open(sys.argv[1], map_size=1 << 24, lib_version=0)
"""


def bare(program: str, path: Path) -> subprocess.Popen[str]:
    """A running program over bare LMDB."""
    pipe: Any = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", BARE + textwrap.dedent(program), str(path)],
                            stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def ended(child: subprocess.Popen[str], told: str = "go on\n") -> int:
    """How a program ends after it was told to go on; a signal's number is negative."""
    child.communicate(told, timeout=SECONDS_MAX)
    return child.returncode


def assert_versions(path: Path, versions: dict[str, int]) -> None:
    """The store opens, is sound, and holds just these versions of these users."""
    with opened(path) as store:
        assert store.verify_audit().problem == ""
        ranges = {user: store.version_range(user) for user in store.users()}
        assert {user: found for user, found in ranges.items() if found != (0, 0)} == {u: (1, v) for u, v in versions.items()}
        for user in versions:
            assert head(store, user).kalman.at_us


# The writer's lock

HOLDER: Final = """
with opened(path) as store, store.engine.turn():
    with store.engine.write() as txn:
        txn.put(b"half", b"written")
        say("mine")
        heard()
        txn.delete(b"half")
"""


def test_a_writer_that_waits_obeys_an_interrupt(tmp_path: Path) -> None:
    """SIGINT ends a wait for the writer's turn at once, where one for LMDB's own mutex goes on; nothing was written."""
    path = tmp_path / "store"
    fill(path, "ann", [80.0])
    holder = started(HOLDER, path)
    assert line(holder) == "mine"
    deaf = bare("say('waiting'); env.begin(write=True); say('never')", path)
    assert line(deaf) == "waiting"
    waiting = started("""
        try:
            say("waiting")
            with opened(path, limits=StoreLimits(writer_wait_s_max=50.0)):
                say("opened")
        except KeyboardInterrupt:
            say("interrupted")
    """, path)
    assert line(waiting) == "waiting"
    time.sleep(0.3)
    for child in (deaf, waiting):
        child.send_signal(signal.SIGINT)
    began = time.monotonic()
    assert answer(waiting) == "interrupted"
    assert time.monotonic() - began < 10.0
    assert deaf.poll() is None, "bare LMDB must be deaf, or this trap is none any more"
    deaf.kill()
    deaf.communicate()
    answer(holder, "end\n")
    assert_versions(path, {"ann": 1})


def test_an_attempt_that_waits_for_its_commit_obeys_an_interrupt(tmp_path: Path) -> None:
    """The interrupt reaches the caller as what it is, and the attempt's outcome is written when the turn is free."""
    path = tmp_path / "store"
    fill(path, "ann", [80.0])
    waiting = started("""
        with opened(path, limits=StoreLimits(writer_wait_s_max=50.0)) as store:
            say("open")
            heard()
            move = ("move", lambda s: say("waits") or s.replace(x0=81.0))
            try:
                ResetManager(store).perform_reset("ann", operations=[move], **BY)
            except KeyboardInterrupt:
                say("interrupted")
            heard()
    """, path)
    assert line(waiting) == "open"
    holder = started(HOLDER, path)
    assert line(holder) == "mine"
    assert waiting.stdin is not None
    waiting.stdin.write("go\n")
    waiting.stdin.flush()
    assert line(waiting) == "waits"
    time.sleep(0.3)
    waiting.send_signal(signal.SIGINT)
    assert line(waiting) == "interrupted"
    answer(holder, "end\n")
    answer(waiting, "end\n")
    assert_versions(path, {"ann": 1})
    with opened(path) as store:
        assert events(store, "ann")[-1][2] in {"rolled_back", "interrupted"}


def test_a_stopped_holder_makes_writers_busy_and_no_reader(tmp_path: Path) -> None:
    """While the holder of the turn is stopped, writers and openers get StoreBusy within their limit, and readers go on."""
    path, limits = tmp_path / "store", StoreLimits(writer_wait_s_max=0.3)
    fill(path, "ann", [80.0])
    with working(path, limits=limits) as (store, manager, processor):
        holder = started(HOLDER, path)
        assert line(holder) == "mine"
        holder.send_signal(signal.SIGSTOP)
        try:
            calls: tuple[Callable[[], object], ...] = (
                lambda: processor.process(weighed("ann", 1, 80.1)), lambda: manager.perform_reset("ann", **BY),
                lambda: ran("opened(path, limits=StoreLimits(writer_wait_s_max=0.3))", path),
            )
            for call in calls[:2]:
                began = time.monotonic()
                with pytest.raises(StoreBusy, match="holds the writer's turn"):
                    call()
                assert time.monotonic() - began < 10.0
            with pytest.raises(AssertionError, match="StoreBusy"):
                calls[2]()
            assert head(store, "ann").kalman.x0 == 80.0
            said = ran("with opened(path, readonly=True) as store: say(store.load('ann').version)", path)
            assert said == "1"
        finally:
            holder.send_signal(signal.SIGCONT)
        answer(holder, "end\n")
        assert processor.process(weighed("ann", 1, 80.1)).version == 2
        assert store.engine.get(b"half") is None


def test_a_holder_killed_in_its_transaction_holds_up_nobody(tmp_path: Path) -> None:
    """SIGKILL in the middle of a write, both locks held: the next writer goes on, and nothing of that write is there."""
    path = tmp_path / "store"
    fill(path, "ann", [80.0])
    with working(path, limits=StoreLimits(writer_wait_s_max=5.0)) as (store, _, processor):
        for day in (1, 2, 3):
            holder = started(HOLDER, path)
            assert line(holder) == "mine"
            holder.send_signal(signal.SIGSTOP)
            holder.kill()
            holder.communicate()
            assert processor.process(weighed("ann", day, 80.1)).version == day + 1
            assert store.engine.get(b"half") is None
    assert_versions(path, {"ann": 4})


# The lock file

LOSES: Final = """
def put(key):
    with env.begin(write=True) as txn:
        txn.put(key, b"1")
say("open")
for order in sys.stdin:
    put(order.strip().encode())
    say("done")
"""


def told(child: subprocess.Popen[str], order: str) -> str:
    """What a program says to an order."""
    assert child.stdin is not None
    child.stdin.write(order + "\n")
    child.stdin.flush()
    return line(child)


def test_bare_lmdb_loses_a_commit_when_its_lock_file_is_deleted(tmp_path: Path) -> None:
    """The trap itself, so that the tests after this one are of something: one of two acknowledged writes is gone."""
    one = bare(LOSES, tmp_path)
    assert line(one) == "open"
    assert told(one, "first") == "done"
    (tmp_path / "lock.mdb").unlink()
    other = bare(LOSES, tmp_path)
    assert line(other) == "open"
    for child, order in ((one, "a"), (other, "b"), (one, "c"), (other, "d")):
        assert told(child, order) == "done"
    assert (ended(one, ""), ended(other, "")) == (0, 0)
    with lmdb.open(str(tmp_path), create=False, lib_version=0) as env, env.begin() as txn:
        there = {key for key, _ in txn.cursor()}
    assert there < {b"first", b"a", b"b", b"c", b"d"}


USES: Final = """
def tried(call):
    try:
        call()
        return "worked"
    except StoreUnavailable as error:
        assert "lock" in str(error) and "stop every process" in str(error), error
        return "refused"
with working(path) as (store, manager, processor):
    say("open")
    for order in sys.stdin:
        day = int(order)
        say(tried(lambda: processor.process(weighed(sys.argv[2], day, 80.0))), tried(lambda: store.load("ann")),
            tried(lambda: manager.perform_reset("ann", **BY)))
"""


def test_a_deleted_lock_file_stops_those_who_had_it_and_loses_nothing(tmp_path: Path) -> None:
    """Whoever had the old file open is refused, reads too; who opens the store afterwards works; no commit is lost."""
    path = tmp_path / "store"
    fill(path, "ann", [80.0])
    one = started(USES, path, "old")
    assert line(one) == "open"
    assert told(one, "0") == "worked worked worked"
    (path / "lock.mdb").unlink()
    assert told(one, "1") == "refused refused refused"
    other = started(USES, path, "new")
    assert line(other) == "open"
    for day in range(3):
        assert told(other, str(day)) == "worked worked worked"
        assert told(one, str(day + 2)) == "refused refused refused"
    assert (ended(one, ""), ended(other, "")) == (0, 0)
    assert_versions(path, {"ann": 5, "new": 3, "old": 1})


def test_a_lock_file_replaced_by_another_stops_those_who_had_it(tmp_path: Path) -> None:
    """Moved away it still has a name, so that only its place tells: the next write is refused."""
    path = tmp_path / "store"
    fill(path, "ann", [80.0])
    one = started(USES, path, "old")
    assert line(one) == "open"
    (path / "lock.mdb").rename(path / "lock.old")
    other = started(USES, path, "new")
    assert line(other) == "open"
    assert told(other, "0") == "worked worked worked"
    assert told(one, "0").split()[::2] == ["refused", "refused"]
    assert (ended(one, ""), ended(other, "")) == (0, 0)
    assert_versions(path, {"ann": 2, "new": 1})


def test_a_lock_file_deleted_while_a_commit_is_being_made_loses_nothing(tmp_path: Path) -> None:
    """An opener that comes between deletion and commit would write over that commit: it is refused, and told why."""
    path = tmp_path / "store"
    fill(path, "ann", [80.0])
    one = started("""
        from tests.unit.doubles import Disk
        disk = Disk()
        store = opened(path, opener=disk)
        def slow(real):
            say("committing")
            heard()
            real()
        disk.once(slow)
        say(ResetManager(store).perform_reset("ann", operations=[("move", lambda s: s.replace(x0=81.0))], **BY).outcome)
        store.close()
    """, path)
    assert line(one) == "committing"
    (path / "lock.mdb").unlink()
    other = started("""
        from statemachine.store.engine import Engine
        turn = Engine.turn
        def noted(self):
            say("wants the turn")
            return turn(self)
        Engine.turn = noted
        try:
            opened(path)
            say("opened")
        except StoreUnavailable as error:
            say("refused" if "another lock file" in str(error) else error)
    """, path)
    assert line(other) == "wants the turn"
    assert answer(one, "go on\n") == "committed"
    assert answer(other).splitlines()[-1] == "refused"
    assert_versions(path, {"ann": 2})
    with opened(path) as store:
        assert head(store, "ann").kalman.x0 == 81.0


@pytest.mark.parametrize("size", [0, 100, 4096, 8192])
def test_a_lock_file_cut_short_kills_nobody(tmp_path: Path, size: int) -> None:
    """Bare LMDB dies of SIGBUS where the table ends early; here it is told, closing is safe, and the next opening works."""
    path = tmp_path / "store"
    fill(path, "ann", [80.0])
    one = started(USES, path, "old")
    assert line(one) == "open"
    os.truncate(path / "lock.mdb", size)
    assert told(one, "0") == "refused refused refused"
    other = started("""
        try:
            with working(path) as (_, _, processor):
                say(processor.process(weighed("new", 0, 80.0)).status)
        except StoreUnavailable as error:
            say("refused" if "cut short" in str(error) and "stop every process" in str(error) else error)
    """, path)
    assert answer(other) in ({"refused"} if size < 8192 else {"accepted", "refused"})
    assert ended(one, "") == 0, "it must not die when it closes either"
    with working(path) as (store, _, processor):
        assert processor.process(weighed("ann", 1, 80.1)).version == 2
        assert store.verify_audit().problem == ""
        assert [row.public.attempt_id for row in store.audit("old")] == []


def test_bare_lmdb_is_killed_by_a_lock_file_cut_short(tmp_path: Path) -> None:
    """The trap itself, at the read after it, and at an opening while another process has the file.

    The opening reads past what it mapped: whether it dies depends on what lies there, which is another thing each time.
    """
    one = bare("say('open'); sys.stdin.readline(); env.begin(); say('read')", tmp_path)
    assert line(one) == "open"
    os.truncate(tmp_path / "lock.mdb", 100)
    assert any(ended(bare("", tmp_path), "") == -signal.SIGSEGV for _ in range(40))
    os.truncate(tmp_path / "lock.mdb", 0)
    assert ended(one) == -signal.SIGBUS


# Readers

READS: Final = "store = opened(path, readonly=True); txn = store.engine._env.begin(); txn.get(b'x'); say('reading'); heard()"


def rewrite(store: Store, times: int) -> None:
    """Commit the same record over and over: the data does not grow."""
    for number in range(times):
        with store.engine.turn():
            store.engine.update(lambda put, n=number: put(b"\0z", b"%0500d" % n))  # type: ignore[misc]


def test_killed_readers_do_not_make_the_file_grow_for_ever(tmp_path: Path) -> None:
    """A reader is killed and nobody opens the store anew: the writer itself frees the slot, and the file stops growing."""
    path = tmp_path / "store"
    fill(path, "ann", [80.0])
    with opened(path, durability="process") as store:
        rewrite(store, 5)
        reader = started(READS, path)
        assert line(reader) == "reading"
        reader.kill()
        reader.communicate()
        assert reader.pid in {process for process, _ in store.engine.readers()}, "its slot must still be taken"
        before = (path / "data.mdb").stat().st_size
        rewrite(store, 2 * WRITES_A_CHECK)
        assert reader.pid not in {process for process, _ in store.engine.readers()}
        middle = (path / "data.mdb").stat().st_size
        assert middle > before, "while the slot was taken the file must have grown"
        rewrite(store, 2 * WRITES_A_CHECK)
        assert (path / "data.mdb").stat().st_size == middle


def test_a_reader_that_does_not_end_is_named_when_the_map_is_full(tmp_path: Path) -> None:
    """A map full of pages that a stopped process still reads: StoreFull names it, and once it is killed writing goes on."""
    path = tmp_path / "store"
    fill(path, "ann", [80.0])
    with opened(path, durability="process", limits=StoreLimits(map_bytes=1 << 19, map_bytes_max=1 << 20)) as store:
        rewrite(store, 500)
        reader = started(READS, path)
        assert line(reader) == "reading"
        reader.send_signal(signal.SIGSTOP)
        for _ in range(2):
            with pytest.raises(StoreFull, match=f"process {reader.pid} has been reading since .* end it, or raise map_bytes_max"):
                rewrite(store, 2_000)
        assert head(store, "ann").kalman.x0 == 80.0
        reader.kill()
        reader.communicate()
        rewrite(store, 500)
        assert ResetManager(store).perform_reset("ann", **BY).version == 2
        assert store.verify_audit().problem == ""


# Threads

def in_thread(call: Callable[[], Any]) -> Any:
    """What a call gives in a thread of its own; what it raises is raised here."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(call())
        except BaseException as error:  # noqa: BLE001 - told by the caller's thread
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if isinstance(found[0], BaseException):
        raise found[0]
    return found[0]


def test_an_attempt_may_go_from_thread_to_thread(tmp_path: Path) -> None:
    """An attempt holds no LMDB transaction, which another thread would use without an error: each step in its own thread."""
    path = tmp_path / "store"
    fill(path, "ann", [80.0])
    with opened(path) as store:
        tx = ResetManager(store).transaction("ann", **BY)
        in_thread(tx.begin)
        in_thread(lambda: tx.apply("move", lambda s: s.replace(x0=81.0)))
        assert ran("with working(path) as (_, manager, _): say(manager.perform_reset('bob', measurement=weighed('bob', 0, 70.0),"
                   " kind='initial', **BY).version)", path) == "1", "an attempt in between keeps no other process waiting"
        assert in_thread(tx.commit).version == 2
    assert_versions(path, {"ann": 2, "bob": 1})


def test_an_attempt_committed_by_many_threads_at_once_ends_once(tmp_path: Path) -> None:
    """A misuse: twenty times four threads commit one attempt.  It ends once, whole or not at all, and the others are told."""
    path = tmp_path / "store"
    fill(path, "ann", [80.0])
    with opened(path, durability="group") as store:
        manager, committed = ResetManager(store), 0
        for number in range(20):
            tx = manager.transaction("ann", **BY)
            tx.begin()
            tx.apply("move", lambda s, n=number: s.replace(x0=81.0 + n / 10))  # type: ignore[misc]
            barrier, answers = threading.Barrier(4), list[Any]()

            def commit(tx: Any = tx, barrier: Any = barrier, answers: list[Any] = answers) -> None:
                barrier.wait()
                try:
                    answers.append(tx.commit())
                except Exception as error:  # noqa: BLE001 - counted below
                    answers.append(error)

            threads = [threading.Thread(target=commit) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            row = manager.inspect(tx.attempt_id)
            assert row is not None
            assert [a for a in answers if isinstance(a, Exception) and not isinstance(a, ContractBroken)] == []
            committed += row.public.outcome == "committed"
            assert store.version_range("ann") == (1, 1 + committed)
            assert row.public.outcome in {"committed", "rolled_back"}
        assert len({row.public.attempt_id for row in store.audit()}) == len(list(store.audit()))
        assert store.verify_audit().problem == ""
        assert store.engine.get(keys.head(b"ann")) is not None


def test_no_lmdb_transaction_for_writing_leaves_the_modules_that_end_it(tmp_path: Path) -> None:
    """The engine begins one, the committer is given one, a new file is filled in one, and a disk is measured by some.

    The thread that began it ends it.
    """
    root = Path(__file__).parents[2] / "statemachine"
    using = {path.relative_to(root).as_posix() for path in root.rglob("*.py")
             if any(text in path.read_text(encoding="utf-8") for text in ("write=True", "engine.write("))}
    assert using == {"store/engine.py", "store/committer.py", "store/making.py", "store/disk.py"}


def test_store_unavailable_is_what_a_child_of_a_fork_gets(tmp_path: Path) -> None:
    """A child of multiprocessing's fork writes through the inherited environment in silence; here it is told, and writes not."""
    said = ran("""
        import multiprocessing, warnings
        warnings.simplefilter("ignore")
        def child(queue):
            try:
                processor.process(weighed("ann", 1, 80.0))
            except StoreUnavailable as error:
                queue.put(str(error))
        with working(path) as (store, manager, processor):
            processor.process(weighed("ann", 0, 80.0))
            context = multiprocessing.get_context("fork")
            queue = context.Queue()
            process = context.Process(target=child, args=(queue,))
            process.start()
            said = queue.get(timeout=30)
            process.join()
            say(process.exitcode, store.version_range("ann")[1], "fork" in said)
    """, tmp_path / "store")
    assert said == "0 1 True"


def test_a_lock_file_that_a_killed_opener_left_half_made_is_made_anew(tmp_path: Path) -> None:
    """Who waited for it would write over the newest commit; it waits on until nobody has the file open, and opens anew."""
    path = tmp_path / "store"
    fill(path, "ann", [80.0])
    table = bytearray((path / "lock.mdb").read_bytes())
    assert table[48] > 0
    table[48:56] = bytes(8)  # the number of the newest transaction, after magic, format and mutex: the maker writes it last
    (path / "lock.mdb").write_bytes(table)
    holder = subprocess.Popen([sys.executable, "-c", textwrap.dedent("""
        import fcntl, os, sys, time
        fcntl.lockf(os.open(sys.argv[1], os.O_RDWR), fcntl.LOCK_SH, 1)
        print("waiting", flush=True)
        time.sleep(0.5)
    """), str(path / "lock.mdb")], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "waiting\n"
    with opened(path) as store:
        assert holder.poll() is not None, "the file could be made anew only when nobody else had it open"
        assert ResetManager(store).perform_reset("ann", **BY).version == 2
    holder.wait()
    holder.stdout.close()
    assert_versions(path, {"ann": 2})
