"""The door to LMDB: crash-atomic creation, refusals that change nothing, forks, growth, limits, turns, scans and closing."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gc
import os
import re
import shutil
import signal
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import lmdb
import msgspec
import pytest

from statemachine import (
    BodyWeight,
    InvalidInput,
    Processor,
    ResetManager,
    Store,
    StoreBusy,
    StoreCorrupt,
    StoreForeign,
    StoreFull,
    StoreLimits,
    StoreUnavailable,
)
from statemachine.codec import MAGIC, SCHEMA, pack, seal, unpack, unseal
from statemachine.store import keys
from statemachine.store.engine import SCAN_ROWS
from statemachine.store.records import Meta
from tests.regression.scene import BY, StillClock, events, fill, head, opened, raw, tear, weighed, working
from tests.unit.doubles import Commit, Disk
from tests.unit.processes import answer, line, ran, started

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SMALL: Final = StoreLimits(map_bytes=1 << 16, map_bytes_max=1 << 24)


def files(path: Path) -> dict[str, bytes]:
    """Everything at and under a path but LMDB's own table of readers, which each opening makes."""
    if path.is_file():
        return {"": path.read_bytes()}
    return {str(p.relative_to(path)): p.read_bytes() if p.is_file() else b"" for p in path.rglob("*") if p.name != "lock.mdb"}


def users(store: Store) -> list[str]:
    """The users who have a state; of others there may be rows in the audit log."""
    return [user for user in store.users() if store.version_range(user) != (0, 0)]


def begun(path: Path) -> list[Path]:
    """What creations that did not end have left beside a store."""
    return [child for child in path.parent.iterdir() if ".new-" in child.name]


# Creation

class Steps:
    """Counts the steps of a creation, and fails the one of the number given; LMDB's errors come from opening alone."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, failing: int, error: Exception) -> None:
        self.count = 0
        self._failing = failing
        self._error = error
        for name in ("fsync", "rename", "mkdir") if isinstance(error, OSError) else ():
            monkeypatch.setattr(os, name, self.counted(getattr(os, name)))

    def counted(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **settings: Any) -> Any:
            self.count += 1
            if self.count == self._failing:
                raise self._error
            return call(*args, **settings)

        return step


@pytest.mark.parametrize("error", [OSError(errno.EIO, "ill"), OSError(errno.ENOSPC, "no room"), lmdb.Error("ill")])
def test_creation_that_fails_at_any_step_leaves_no_store_or_a_whole_one(tmp_path: Path, error: Exception) -> None:
    """Each step fails in turn: a typed error, no leftovers, and the next opening makes or finds a working store."""
    witnessed, kind = set(), StoreFull if getattr(error, "errno", 0) == errno.ENOSPC else StoreUnavailable
    for failing in range(1, 100):
        path = tmp_path / str(failing) / "store"
        path.parent.mkdir()
        with pytest.MonkeyPatch.context() as monkeypatch:
            steps = Steps(monkeypatch, failing, error)
            try:
                opened(path, opener=steps.counted(lmdb.open)).close()
                if steps.count < failing:
                    break
            except kind as told:
                cause = told.__cause__
            else:
                cause = error  # a directory that is there need not be made
        assert cause is error
        assert begun(path) == []
        witnessed.add(path.exists())
        if path.exists():
            assert {"data.mdb", "owners", "writer.lock"} <= {child.name for child in path.iterdir()}
        fill(path, "u", [80.0, 80.1])
        with opened(path) as store:
            assert head(store, "u").kalman.at_us
    else:
        pytest.fail("no creation came to its end")
    assert witnessed == {True, False}, "there are failures before the store is in its place, and after it"
    assert failing >= (8 if isinstance(error, OSError) else 3)


def test_creation_killed_at_any_step_leaves_no_store_or_a_whole_one(tmp_path: Path) -> None:
    """A process is killed before and after each step: the next one makes or finds a working store, whatever was left."""
    told = ran("""
        import lmdb
        exits, left = set(), 0
        for fatal in range(1, 100):
            store = path / str(fatal) / "store"
            store.parent.mkdir()
            child = os.fork()
            if child == 0:
                count = 0
                def counted(call):
                    def step(*args, **settings):
                        global count
                        count += 1
                        if count == fatal:
                            os._exit(9)
                        done = call(*args, **settings)
                        count += 1
                        if count == fatal:
                            os._exit(9)
                        return done
                    return step
                for name in ("fsync", "rename", "mkdir"):
                    setattr(os, name, counted(getattr(os, name)))
                opened(store, opener=counted(lmdb.open)).close()
                os._exit(0)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            if code == 0:
                break
            exits.add((code, store.exists()))
            left += any(".new-" in other.name for other in store.parent.iterdir())
            fill(store, "u", [80.0, 80.1])
            with opened(store) as again:
                assert head(again, "u") is not None and again.version_range("u") == (1, 2)
        say(fatal, left > 0, sorted(exits))
    """, tmp_path)
    count, left, exits = told.split(" ", 2)
    assert int(count) > 12
    assert left == "True", "a killed creation leaves what it had begun, and that must stop nobody"
    assert exits == "[(9, False), (9, True)]"


def test_the_slower_of_two_creators_uses_the_store_of_the_faster(tmp_path: Path) -> None:
    """A store that appears while another is being built aside stands, and the second creator opens it."""
    path = tmp_path / "store"
    calls = 0

    def opener(*args: Any, **settings: Any) -> lmdb.Environment:
        nonlocal calls
        calls += 1
        if calls == 1:
            fill(path, "faster", [80.0])
        return lmdb.open(*args, **settings)

    with working(path, opener=opener) as (store, _, processor):
        assert list(store.users()) == ["faster"]
        assert processor.process(weighed("slower", 0, 70.0)).status == "accepted"
    assert begun(path) == []


def test_two_processes_create_at_once_and_share_one_store(tmp_path: Path) -> None:
    """Ten times two processes open a directory that is not there: both work, in one and the same store."""
    program = """
        say("ready")
        heard()
        for number in range(10):
            with Store.open(path / str(number)) as store:
                Processor(ResetManager(store)).process(weighed(sys.argv[2], 0, 80.0))
                say(store.store_id)
    """
    children = [started(program, tmp_path, user) for user in ("ann", "bob")]
    assert [line(child) for child in children] == ["ready", "ready"]
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    ids = [answer(child).split() for child in children]
    assert ids[0] == ids[1]
    assert len(set(ids[0])) == 10
    for number in range(10):
        with opened(tmp_path / str(number)) as store:
            assert sorted(store.users()) == ["ann", "bob"]
            assert store.verify_audit().bad_seq is None


def test_modes_keep_others_out_whatever_the_umask(tmp_path: Path) -> None:
    """Directories are 0700 and files 0600 even where the umask takes nothing away."""
    before = os.umask(0)
    try:
        (tmp_path / "store").mkdir(mode=0o777)
        with working(tmp_path / "store") as (store, _, processor):
            processor.process(weighed("u", 0, 80.0))
            modes = {p.relative_to(store.path).as_posix(): p.stat().st_mode & 0o777 for p in store.path.rglob("*")}
            assert store.path.stat().st_mode & 0o777 == 0o700
    finally:
        os.umask(before)
    assert modes == {"data.mdb": 0o600, "lock.mdb": 0o600, "writer.lock": 0o600, "owners": 0o700, "owners/1": 0o600}


def test_new_directories_and_empty_ones_become_stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path whose parents are missing, an empty directory, a link to one and a relative path all become stores."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "far").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "far")
    monkeypatch.chdir(tmp_path)
    for path in (Path("deep/er/store"), tmp_path / "empty", tmp_path / "link", Path("near")):
        fill(path, "u", [80.0])
        with opened(path) as store:
            assert store.version_range("u") == (1, 1)
    assert (tmp_path / "link").is_symlink()


def test_a_store_stays_where_it_was_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that goes to another directory closes its store whole: its marks are removed, none are left to settle."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with working(Path("store")) as (_, _, processor):
        monkeypatch.chdir(tmp_path / "elsewhere")
        processor.process(weighed("u", 0, 80.0))
    assert list((tmp_path / "store" / "owners").iterdir()) == []
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_the_current_directory_is_no_place_for_a_new_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Renaming a store into the place of the current directory would leave its process nowhere: a clear error."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StoreUnavailable, match="name a directory in it"):
        Store.open(".")
    assert list(tmp_path.iterdir()) == []


# What is no store

def _foreign_directory(path: Path) -> None:
    path.mkdir()
    (path / "letters.txt").write_text("dear ann")


def _file(path: Path) -> None:
    path.write_bytes(b"x" * 20_000)


def _foreign_environment(path: Path) -> None:
    with lmdb.open(str(path), map_size=1 << 20, lib_version=0) as env, env.begin(write=True) as txn:
        txn.put(b"theirs", b"precious")


def _garbage(path: Path) -> None:
    path.mkdir()
    (path / "data.mdb").write_bytes(b"garbage!" * 4096)


def _truncated(path: Path) -> None:
    fill(path, "u", [80.0])
    os.truncate(path / "data.mdb", 2 * os.sysconf("SC_PAGESIZE") - 1)


def _emptied(path: Path) -> None:
    fill(path, "u", [80.0])
    os.truncate(path / "data.mdb", 0)


def _changed_meta(**changes: Any) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        fill(path, "u", [80.0])
        with raw(path) as txn:
            meta = unpack(Meta, unseal(keys.META, bytes(txn.get(keys.META) or b"")))
            txn.put(keys.META, seal(keys.META, pack(msgspec.structs.replace(meta, **changes))))

    return make


def _later_schema(path: Path) -> None:
    fill(path, "u", [80.0])
    with raw(path) as txn, pytest.MonkeyPatch.context() as monkeypatch:
        content = unseal(keys.META, bytes(txn.get(keys.META) or b""))
        monkeypatch.setattr("statemachine.codec.SCHEMA", SCHEMA + 1)
        record = seal(keys.META, content)
        assert record[:2] == bytes((MAGIC, SCHEMA + 1))
        txn.put(keys.META, record)


def _torn_meta(path: Path) -> None:
    fill(path, "u", [80.0])
    tear(path, keys.META)


@pytest.mark.parametrize(("make", "kind", "says"), [
    (_foreign_directory, StoreForeign, "letters.txt"),
    (_file, StoreForeign, "is a file"),
    (_foreign_environment, StoreForeign, "no resetguard store"),
    (_garbage, StoreForeign, "not a resetguard store"),
    (_truncated, StoreCorrupt, "fewer than any store"),
    (_emptied, StoreCorrupt, "has 0 bytes"),
    (_later_schema, StoreForeign, "use a newer resetguard"),
    (_torn_meta, StoreCorrupt, "fails its checksum"),
    (_changed_meta(estimator="blood-pressure"), StoreForeign, "'blood-pressure'"),
    (_changed_meta(estimator_schema=9), StoreForeign, "schema 9"),
    (_changed_meta(kernel=9), StoreForeign, "arithmetic 9"),
])
def test_what_is_no_store_of_ours_is_refused_and_not_changed(
    tmp_path: Path, make: Callable[[Path], None], kind: type[Exception], says: str,
) -> None:
    """Each strange thing gives its own clear error twice over, and every byte of it stays as it was."""
    path = tmp_path / "there"
    make(path)
    before = files(path)
    for _ in range(2):
        with pytest.raises(kind, match=re.escape(says)) as caught:
            Store.open(path)
        assert str(path) in str(caught.value) or "record" in str(caught.value)
    assert files(path) == before
    assert begun(path) == []


def test_a_store_is_opened_for_one_kind_of_state(tmp_path: Path) -> None:
    """An estimator of another name is refused both ways, and the right one still opens."""
    class Other(BodyWeight):
        name = "other"

    fill(tmp_path / "s", "u", [80.0])
    with pytest.raises(StoreForeign, match="'body-weight'"):
        Store.open(tmp_path / "s", estimator=Other())
    opened(tmp_path / "new", estimator=Other()).close()
    with pytest.raises(StoreForeign, match="'other'"):
        Store.open(tmp_path / "new")
    opened(tmp_path / "s").close()


def test_a_data_file_cut_short_kills_no_process(tmp_path: Path) -> None:
    """Wherever the file ends, what is gone is StoreCorrupt, at the opening or where it is read; what is there may be right."""
    told = ran("""
        with working(path / "whole") as (store, _, processor):
            processor.process_batch(weighed(f"u{n}", 0, 80.0) for n in range(300))
        whole = (path / "whole" / "data.mdb").read_bytes()
        kinds = []
        for number, size in enumerate((8192, 8193, *range(12288, len(whole), len(whole) // 9), len(whole) - 1)):
            with opened(path / str(number)):
                pass
            (path / str(number) / "data.mdb").write_bytes(whole[:size])
            try:
                with working(path / str(number)) as (store, _, processor):
                    weights = [store.load(user).state.kalman.x0 for user in store.users()]
                    assert set(weights) <= {80.0}
                    assert store.verify_audit().problem or len(weights) == 300
                    processor.process_batch(weighed(f"v{n}", 0, 80.0) for n in range(100))
                    kinds.append("right")
            except StoreCorrupt:
                kinds.append("corrupt")
        say(kinds.count("corrupt"), len(kinds))
    """, tmp_path)
    corrupt, tried = map(int, told.split())
    assert tried - 2 <= corrupt <= tried, "the last page may have nothing where it was cut"


def test_a_copy_of_the_data_alone_is_a_store(tmp_path: Path) -> None:
    """What a backup must hold is one file: the rest is made again at the opening, as private as it was."""
    states = fill(tmp_path / "store", "u", [80.0, 80.1])
    (tmp_path / "backup").mkdir(mode=0o700)
    shutil.copy(tmp_path / "store" / "data.mdb", tmp_path / "backup")
    with working(tmp_path / "backup") as (store, manager, _):
        loaded = store.load("u")
        assert loaded is not None
        assert store.estimator.encode(loaded.state) == states[-1]
        assert manager.perform_reset("u", **BY).version == 3
        assert (store.path / "owners").stat().st_mode & 0o777 == 0o700


def test_a_file_that_lmdb_left_short_is_whole(tmp_path: Path) -> None:
    """LMDB need not write pages that it has freed again: a file that ends before its last page number loses nothing."""
    path = tmp_path / "store"
    states = fill(path, "u", [80.0, 80.1])
    with lmdb.open(str(path), create=False, lib_version=0, map_size=1 << 24) as env:
        with env.begin(write=True) as txn:
            for number in range(200):
                txn.put(b"gone %d" % number, bytes(3_000))
            for number in range(200):
                txn.delete(b"gone %d" % number)
        wanted = (env.info()["last_pgno"] + 1) * env.stat()["psize"]
    assert (path / "data.mdb").stat().st_size < wanted, "the file must be short"
    with working(path) as (store, _, processor):
        assert (path / "data.mdb").stat().st_size >= wanted
        loaded = store.load("u")
        assert loaded is not None
        assert store.estimator.encode(loaded.state) == states[-1]
        assert processor.process(weighed("u", 2, 80.0)).version == 3


@pytest.mark.parametrize("below", ["x", "x/y"])
def test_a_path_below_a_file_is_refused(tmp_path: Path, below: str) -> None:
    """Where no directory can be made the error is ours, and says where."""
    (tmp_path / "file").write_text("a file")
    with pytest.raises(StoreUnavailable, match="creating the store"):
        Store.open(tmp_path / "file" / below)


def test_an_unknown_durability_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    """A misspelt mode names those there are, and makes no store."""
    with pytest.raises(InvalidInput, match="each, group, process"):
        Store.open(tmp_path / "store", durability="eachh")  # type: ignore[arg-type]
    assert not (tmp_path / "store").exists()


# One process, several processes, forks

def test_a_second_opening_in_one_process_is_refused(tmp_path: Path) -> None:
    """LMDB loses its locks when a process opens a file twice: the second opening fails, by whatever name, the first works on."""
    path = tmp_path / "store"
    (tmp_path / "link").symlink_to(path)
    with working(path) as (store, _, processor):
        for again in (path, tmp_path / "link"):
            with pytest.raises(StoreUnavailable, match="share that Store object between threads"):
                opened(again)
        assert processor.process(weighed("u", 0, 80.0)).status == "accepted"
        assert store.version_range("u") == (1, 1)
    with opened(tmp_path / "link") as store:
        assert store.version_range("u") == (1, 1)


def test_a_forked_child_is_refused_and_its_parent_goes_on(tmp_path: Path) -> None:
    """Every use in the child gives StoreUnavailable, its close touches nothing, and the parent commits before and after."""
    told = ran("""
        with working(path) as (store, manager, processor):
            processor.process(weighed("u", 0, 80.0))
            transaction = manager.transaction("u", **BY)
            transaction.begin()
            child = os.fork()
            if child == 0:
                calls = (lambda: store.load("u"), lambda: processor.process(weighed("u", 1, 80.0)),
                         lambda: manager.perform_reset("u", **BY), lambda: list(store.audit()), store.audit_tail,
                         lambda: list(store.users()), lambda: opened(path), lambda: store.commit(store.draft()))
                for call in calls:
                    try:
                        call()
                    except StoreUnavailable as error:
                        assert "fork" in str(error), error
                    else:
                        os._exit(1)
                other = os.open("/dev/null", os.O_RDONLY)  # takes the number of a file that the store had open
                store.close()
                store.close()
                store.engine.close()
                os.fstat(other)
                os._exit(0)
            say(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), store.marks.path.exists())
            transaction.apply("move", lambda s: s.replace(x0=81.0))
            say(transaction.commit().outcome, processor.process(weighed("u", 2, 81.0)).version)
        with opened(path) as store:
            say(store.version_range("u"), store.interrupted, [row.public.outcome for row in store.audit()])
    """, tmp_path / "store")
    assert told.splitlines() == ["0 True", "committed 3", "(1, 3) 0 ['committed', 'committed']"]


def test_a_forked_child_keeps_no_lock_of_its_parent(tmp_path: Path) -> None:
    """The parent dies in an attempt and in its turn while the child lives: the next opener waits for nobody and settles it."""
    parent = started("""
        store = opened(path)
        manager = ResetManager(store)
        Processor(manager).process(weighed("u", 0, 80.0))
        transaction = manager.transaction("u", **BY)
        transaction.begin()
        with store.engine.turn():
            child = os.fork()
            if child == 0:
                say(os.getpid())
                heard()
                os._exit(0)
            os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG)
            heard()
            os._exit(5)
    """, tmp_path / "store")
    child = int(line(parent))
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    try:
        os.kill(child, 0)  # it lives, with whatever it inherited
        with opened(tmp_path / "store", limits=StoreLimits(writer_wait_s_max=0.5)) as store:
            assert store.interrupted == 1
            assert events(store)[-1] == ("reset.interrupted", "admin", "interrupted")
    finally:
        os.kill(child, signal.SIGKILL)
        parent.communicate()


def test_readers_of_killed_processes_are_cleared_at_the_next_opening(tmp_path: Path) -> None:
    """A killed reader would keep old pages for ever while another process holds the table: each opening clears it."""
    path = tmp_path / "store"
    fill(path, "u", [80.0])
    holder = started("with opened(path): say('open'); heard()", path)
    assert line(holder) == "open"
    reader = started("store = opened(path); txn = store.engine._env.begin(); say(txn.id()); heard()", path)
    line(reader)
    reader.kill()
    reader.communicate()
    with lmdb.open(str(path), create=False, lib_version=0) as env:
        assert str(reader.pid) in env.readers(), "the killed reader must still be in the table"
    with opened(path) as store:
        assert str(reader.pid) not in store.engine._env.readers()
    answer(holder, "end\n")


# Room

def test_a_small_map_grows(tmp_path: Path) -> None:
    """What does not fit into the map is written all the same, by single commits and by batches, and is there later."""
    path = tmp_path / "store"
    with working(path, limits=SMALL) as (store, _, processor):
        first = store.engine.info()["map_size"]
        for number in range(100):
            assert processor.process(weighed(f"one {number:03d}", 0, 80.0)).status == "accepted"
        middle = store.engine.info()["map_size"]
        assert {o.status for o in processor.process_batch(weighed(f"two {n:03d}", 0, 80.0) for n in range(500))} == {"accepted"}
        assert first < middle < store.engine.info()["map_size"] <= SMALL.map_bytes_max
    with opened(path, limits=SMALL) as store:
        assert sum(store.version_range(user) == (1, 1) for user in store.users()) == 600
        assert store.verify_audit().rows == 600


def test_a_map_grows_under_readers_in_other_threads(tmp_path: Path) -> None:
    """Threads that read all the time see only whole states while the map is exchanged beneath them."""
    with working(tmp_path / "store", limits=SMALL) as (store, _, processor):
        processor.process(weighed("u", 0, 80.0))
        stop, trouble, loads = threading.Event(), [], [0, 0]

        def read(number: int) -> None:
            try:
                while not stop.is_set():
                    assert head(store, "u").kalman.x0 == 80.0
                    loads[number] += 1
                    stop.wait(0.0005)
            except BaseException as error:  # noqa: BLE001 - told by the main thread
                trouble.append(error)

        threads = [threading.Thread(target=read, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        for part in range(4):
            processor.process_batch(weighed(f"{part}-{number}", 0, 80.0) for number in range(150))
            stop.wait(0.01)
        stop.set()
        for thread in threads:
            thread.join()
        assert trouble == []
        assert min(loads) > 0
        assert store.engine.info()["map_size"] > SMALL.map_bytes


def test_the_map_is_not_exchanged_under_a_reader(tmp_path: Path) -> None:
    """Growth waits for the transaction that another thread is reading in; LMDB would take the ground from under it."""
    with working(tmp_path / "store", limits=SMALL) as (store, _, processor):
        processor.process(weighed("u", 0, 80.0))
        inside, go, grown = threading.Event(), threading.Event(), threading.Event()
        read: list[bytes | None] = []

        def reader() -> None:
            with store.engine.reading() as txn:
                inside.set()
                go.wait(20.0)
                read.append(txn.get(keys.head(b"u")))

        def grower() -> None:
            with store.engine.turn():
                store.engine.grow()
            grown.set()

        threads = [threading.Thread(target=reader), threading.Thread(target=grower)]
        threads[0].start()
        assert inside.wait(20.0)
        threads[1].start()
        assert not grown.wait(0.2)
        go.set()
        assert grown.wait(20.0)
        for thread in threads:
            thread.join()
        assert read == [store.engine.get(keys.head(b"u"))]
        assert store.engine.info()["map_size"] == 2 * SMALL.map_bytes


@pytest.mark.parametrize("first", ["read", "write"])
def test_a_map_that_another_process_has_grown_is_taken_over(tmp_path: Path, first: str) -> None:
    """After another process grew the map, the next read or write here adopts the new size."""
    path = tmp_path / "store"
    with working(path, limits=SMALL) as (store, _, processor):
        processor.process(weighed("here", 0, 80.0))
        before = store.engine._env.info()["map_size"]
        ran("""
            with working(path, limits=StoreLimits(map_bytes=1 << 16, map_bytes_max=1 << 24)) as (_, _, processor):
                processor.process_batch(weighed(f"there {n}", 0, 80.0) for n in range(500))
        """, path)
        if first == "read":
            assert store.version_range("there 499") == (1, 1)
        else:
            with store.engine.turn(), store.engine.write() as txn:
                assert txn.get(keys.head(b"there 499")) is not None
        assert store.engine._env.info()["map_size"] > before
        assert processor.process(weighed("here", 1, 80.1)).version == 2
        assert len(list(store.users())) == 501


def test_a_full_map_loses_nothing_and_a_higher_limit_makes_it_usable(tmp_path: Path) -> None:
    """At the limit: StoreFull each time, reads go on, nothing half-written; opened with more room, it goes on."""
    path, limits = tmp_path / "store", StoreLimits(map_bytes=1 << 16, map_bytes_max=1 << 18)
    stored = []
    with working(path, limits=limits) as (store, _, processor):
        with contextlib.suppress(StoreFull):
            for number in range(1_000):
                processor.process(weighed(f"u{number:03d}", 0, 80.0))
                stored.append(f"u{number:03d}")
        assert 10 < len(stored) < 1_000
        with pytest.raises(StoreFull, match="raise map_bytes_max"):
            processor.process_batch([weighed(f"late {n}", 0, 80.0) for n in range(50)])
        for _ in range(3):
            with pytest.raises(StoreFull):
                processor.process_batch([weighed(f"late {n}", 0, 80.0) for n in range(50)])
        assert users(store) == stored
        assert store.engine.info()["map_size"] == limits.map_bytes_max
    more = StoreLimits(map_bytes=1 << 16, map_bytes_max=1 << 20)
    with working(path, limits=more) as (store, _, processor):
        assert users(store) == stored
        assert [head(store, user).kalman.x0 for user in stored] == [80.0] * len(stored)
        assert store.interrupted == 0
        assert store.verify_audit().problem == ""
        assert processor.process(weighed("late", 0, 80.0)).status == "accepted"
        outcomes = {row.public.attempt_id: row.public.outcome for row in store.audit()}
        assert set(outcomes.values()) <= {"committed", "rolled_back", "conflicted"}
        assert sum(outcome == "committed" for outcome in outcomes.values()) == len(stored) + 1


def full_map(_: Commit) -> None:
    raise lmdb.MapFullError("full")


def test_an_opening_finds_room_for_its_own_records(tmp_path: Path) -> None:
    """A map with no page to spare grows when an owner registers, and at the limit says so; nothing stays locked by it."""
    path, disk = tmp_path / "store", Disk()
    fill(path, "u", [80.0])
    disk.once(full_map)
    with opened(path, opener=disk, limits=SMALL) as store:
        assert disk.commits == 1
        assert store.engine.info()["map_size"] > max(SMALL.map_bytes, (path / "data.mdb").stat().st_size)
    disk.commit = full_map
    for _ in range(2):
        with pytest.raises(StoreFull, match="map_bytes_max"):
            opened(path, opener=disk, limits=SMALL)
    assert list((path / "owners").iterdir()) == []
    disk.commit = None
    with opened(path, opener=disk, limits=SMALL) as store:
        assert store.version_range("u") == (1, 1)


def test_a_full_disk_loses_nothing_and_the_store_works_again(tmp_path: Path) -> None:
    """A process meets its limit of file size: a typed error, what was acknowledged stands, and it goes on with more room."""
    path = tmp_path / "store"
    told = ran("""
        import resource
        store = opened(path)
        manager = ResetManager(store)
        processor = Processor(manager)
        processor.process(weighed("u000", 0, 80.0))
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, ((path / "data.mdb").stat().st_size + 40_000, hard))
        stored, kinds = ["u000"], []
        for number in range(1, 2_000):
            user = f"u{number:03d}"
            try:
                processor.process(weighed(user, 0, 80.0))
                stored.append(user)
            except (StoreFull, StoreUnavailable) as error:
                kinds.append(type(error).__name__)
                assert store.load(user) is None, "what was not acknowledged is not there"
                if len(kinds) == 3:
                    break
        assert list(store.users()) == stored
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert processor.process(weighed("late", 0, 80.0)).status == "accepted"
        say(*kinds)
        say("late", *stored)
        store.close()
    """, path)
    kinds, stored = (said.split() for said in told.splitlines())
    assert len(kinds) == 3
    assert set(kinds) <= {"StoreFull", "StoreUnavailable"}
    assert len(stored) > 2
    with opened(path) as store:
        assert users(store) == stored
        assert store.verify_audit().problem == ""
        outcomes = [row.public.outcome for row in store.audit()]
        assert outcomes.count("committed") == len(stored)
        assert sorted(set(outcomes)) == ["committed", "conflicted"], "each attempt that found no room has its own outcome"
        assert len({row.public.attempt_id for row in store.audit()}) == len(outcomes)


def test_a_disk_that_is_really_full_is_store_full(tmp_path: Path) -> None:
    """On a file system of eight megabytes: StoreFull at each try, also to open; with space again all of it works."""
    namespace = ("unshare", "--user", "--map-root-user", "--mount")
    if subprocess.run([*namespace, "mount", "-t", "tmpfs", "tmpfs", str(tmp_path)], capture_output=True, check=False).returncode:
        pytest.skip("SKIPPED FULL DISK: no file system can be mounted in a namespace of its own here")
    told = ran("""
        import subprocess
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(path)], check=True)
        store = opened(path / "store")
        processor = Processor(ResetManager(store))
        processor.process(weighed("ann", 0, 80.0))
        (path / "ballast").write_bytes(bytes(5_800_000))
        stored, kinds, number = ["ann"], [], 0
        while len(kinds) < 5:
            number += 1
            try:
                users = [f"u{number:02d}{other:02d}" for other in range(40)]
                processor.process_batch(weighed(user, 0, 80.0) for user in users)  # in writes of several pages
                stored += users
            except StoreFull as error:
                kinds.append(type(error).__name__)
                assert [user for user in store.users() if store.load(user)] == stored
        assert len(stored) > 2
        store.close()  # which gives the space of its marks back
        try:
            with (path / "more").open("wb", buffering=0) as more:
                while True:
                    more.write(bytes(4_096))
        except OSError:
            pass
        for _ in range(2):
            try:
                opened(path / "store")
            except StoreFull as error:
                kinds.append(type(error).__name__)
        for ballast in ("ballast", "more"):
            (path / ballast).unlink()
        with working(path / "store") as (store, _, processor):
            assert processor.process(weighed("zoe", 0, 80.0)).status == "accepted"
            assert [user for user in store.users() if store.load(user)] == [*stored, "zoe"]
            assert store.verify_audit().problem == ""
            say(*kinds)
    """, tmp_path, by=namespace)
    assert told.split() == ["StoreFull"] * 7


@pytest.mark.parametrize(("number", "kind"), [
    (errno.ENOSPC, StoreFull), (errno.EDQUOT, StoreFull), (errno.EIO, StoreUnavailable),
])
def test_a_file_of_marks_that_finds_no_room_stops_no_later_opening(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[Exception],
) -> None:
    """An opening without room for its marks fails typed and lets go of all of it: this process can open it later."""
    fill(tmp_path / "store", "u", [80.0])

    allocate = os.posix_fallocate

    def full(descriptor: int, *range_of_bytes: int) -> None:
        if "owners" in str(Path(f"/proc/self/fd/{descriptor}").readlink()):  # not the lock file, which is made first
            raise OSError(number, os.strerror(number))
        allocate(descriptor, *range_of_bytes)

    with monkeypatch.context() as patched:
        patched.setattr(os, "posix_fallocate", full)
        for _ in range(2):
            with pytest.raises(kind, match="file of marks"):
                opened(tmp_path / "store")
    assert list((tmp_path / "store" / "owners").iterdir()) == []
    with opened(tmp_path / "store") as store:
        assert store.version_range("u") == (1, 1)


# The writer's turn

@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """The writer's turn in other hands: another open file of the lock, as another process has one."""
    descriptor = os.open(path / "writer.lock", os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


class Hurried(StillClock):
    """A clock whose sleeps are only counted."""

    slept = 0.0

    def sleep(self, seconds: float) -> None:
        self.slept += seconds


def test_a_turn_that_never_comes_ends_in_store_busy(tmp_path: Path) -> None:
    """A writer waits as long as the limit says, no longer; reads go on, nothing is written, and the next try works."""
    path, clock = tmp_path / "store", Hurried()
    limits = StoreLimits(writer_wait_s_max=12.0)
    with working(path, limits=limits, clock=clock) as (store, manager, processor):
        processor.process(weighed("u", 0, 80.0))
        with held(path):
            for call in (lambda: processor.process(weighed("u", 1, 80.1)), lambda: manager.perform_reset("u", **BY)):
                clock.slept = 0.0
                with pytest.raises(StoreBusy, match="more than 12 s"):
                    call()
                assert 12.0 <= clock.slept < 25.0, "a rollback may wait a second time"
            assert store.version_range("u") == (1, 1)
        assert processor.process(weighed("u", 1, 80.1)).version == 2
        assert [outcome for _, _, outcome in events(store)] == ["committed", "rolled_back"]


def test_another_process_that_holds_the_turn_keeps_openers_waiting(tmp_path: Path) -> None:
    """Opening needs the turn too: StoreBusy while another process has it, and the opener leaves nothing behind."""
    path = tmp_path / "store"
    fill(path, "u", [80.0])
    other = started("""
        with opened(path) as store, store.engine.turn():
            say("mine")
            heard()
    """, path)
    assert line(other) == "mine"
    with pytest.raises(StoreBusy):
        opened(path, limits=StoreLimits(writer_wait_s_max=0.05))
    answer(other, "end\n")
    with opened(path) as store:
        assert store.version_range("u") == (1, 1)
        assert len(list((path / "owners").iterdir())) == 1


# Scans

@pytest.mark.parametrize("count", [0, 1, SCAN_ROWS - 1, SCAN_ROWS, SCAN_ROWS + 1, 2 * SCAN_ROWS, 2 * SCAN_ROWS + 500])
def test_scans_give_every_row_of_their_range_once_in_both_directions(tmp_path: Path, count: int) -> None:
    """Ranges longer than a chunk come whole and in order, and neighbours on either side stay out."""
    rows = [(b"range%06d" % number, b"%d" % number) for number in range(count)]
    around = [(b"rangd", b"before"), (b"rangf", b"after")]
    with opened(tmp_path / "store", durability="process") as store:

        def put_all(put: Callable[[bytes, bytes], object]) -> None:
            for key, value in (*rows, *around):
                put(key, value)

        with store.engine.turn():
            store.engine.update(put_all)
        assert list(store.engine.scan(b"range", b"rangf")) == rows
        assert list(store.engine.scan(b"range", b"rangf", reverse=True)) == rows[::-1]
        assert list(store.engine.scan(b"range", b"\xff" * 8, reverse=True)) == [around[1], *rows[::-1]]
        assert store.engine.first(b"range", b"rangf") == (rows[0] if rows else None)
        assert store.engine.ends(b"range", b"rangf") == ((rows[0][0], rows[-1][0]) if rows else (None, None))


@pytest.mark.parametrize("reverse", [False, True])
def test_a_scan_goes_on_past_rows_that_vanish_between_its_chunks(tmp_path: Path, *, reverse: bool) -> None:
    """A scan keeps no transaction open: rows deleted behind it and ahead of it neither repeat nor stop it."""
    wanted = [b"range%06d" % number for number in range(2 * SCAN_ROWS + 500)]

    def put_all(put: Callable[[bytes, bytes], object]) -> None:
        for key in wanted:
            put(key, b"")

    with opened(tmp_path / "store", durability="process") as store:
        with store.engine.turn():
            store.engine.update(put_all)
        order = wanted[::-1] if reverse else wanted
        gone = order[SCAN_ROWS - 1:SCAN_ROWS + 2]
        seen: list[bytes] = []
        for key, _ in store.engine.scan(b"range", b"rangf", reverse=reverse):
            if len(seen) == 10:
                with store.engine.turn(), store.engine.write() as txn:
                    for other in gone:
                        txn.delete(other)
            seen.append(key)
    assert seen == [key for key in order if key not in gone[1:]], "the first chunk was read before they vanished"


# Closing

def test_a_closed_store_refuses_everything_and_closes_again(tmp_path: Path) -> None:
    """Reads and writes after close raise StoreUnavailable, closing again does nothing, and the store can be opened again."""
    path = tmp_path / "store"
    store = opened(path)
    manager = ResetManager(store)
    processor = Processor(manager)
    processor.process(weighed("u", 0, 80.0))
    transaction = manager.transaction("u", **BY)
    store.close()
    store.close()
    calls: list[Callable[[], object]] = [
        lambda: store.load("u"), lambda: list(store.history("u")), lambda: list(store.audit()), store.verify_audit,
        lambda: list(store.users()), store.meta, store.audit_tail, lambda: store.commit(store.draft()), store.engine.info,
        lambda: processor.process(weighed("u", 1, 80.0)), lambda: manager.perform_reset("u", **BY), transaction.begin,
    ]
    for call in calls:
        with pytest.raises(StoreUnavailable, match="is closed"):
            call()
    with opened(path) as again:
        store.close()
        assert again.version_range("u") == (1, 1)
        assert len(events(again)) == 1
    assert list((path / "owners").iterdir()) == []


def test_a_failed_opening_lets_go_of_everything(tmp_path: Path) -> None:
    """After a refusal the same process opens the right thing at once, and no file stays open behind it."""
    path = tmp_path / "store"
    _foreign_environment(tmp_path / "foreign")
    fill(path, "u", [80.0])
    descriptors = Path("/proc/self/fd")
    gc.collect()  # what an earlier test has left open must not be closed meanwhile
    before = len(list(descriptors.iterdir())) if descriptors.exists() else 0
    for _ in range(20):
        with pytest.raises(StoreForeign):
            Store.open(tmp_path / "foreign")
        with pytest.raises(StoreForeign):
            opened(path, estimator=type("Other", (BodyWeight,), {"name": "other"})())
    if before:
        assert len(list(descriptors.iterdir())) == before
    with opened(path) as store:
        assert store.version_range("u") == (1, 1)
