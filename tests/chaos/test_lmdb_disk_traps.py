"""LMDB's traps about the disk and the bytes on it, each provoked: a typed error or correct work, nothing lost, no crash.

The errors are the kernel's own: LMDB's descriptor is exchanged for one that answers EIO (/proc/self/mem, where nothing is
mapped) or ENOSPC (/dev/full).  docs/lmdb.md lists every trap and its test.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import lmdb
import pytest

from statemachine import ResetError, Store, StoreCorrupt, StoreForeign, StoreFull
from statemachine.processor import SourceRow
from statemachine.store import pages
from statemachine.store.checkup import Checkup
from statemachine.store.records import Unreadable
from tests.chaos.test_lmdb_traps import bare, ended, told
from tests.regression.scene import fill, head, opened, raw, weighed, working
from tests.unit.processes import line, ran, started

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [
    pytest.mark.usefixtures("no_events"),
    pytest.mark.damages,
    pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="SKIPPED DISK TRAPS: the kernel's answers are Linux's here"),
]

# `ill(device, meta)` gives LMDB the device in the place of its data file, for its meta pages or for all others, until the
# environment is opened anew; the call of what it returns gives the file back.
ILL: Final = """
import fcntl
keeps = []
def ill(device, meta):
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            there = os.readlink("/proc/self/fd/" + name)
        except OSError:
            continue
        if there.endswith("data.mdb"):
            flags = fcntl.fcntl(int(name), fcntl.F_GETFL)
            if flags & os.O_ACCMODE != os.O_RDONLY and bool(flags & os.O_DSYNC) == meta and int(name) not in keeps:
                found.append(int(name))
    [descriptor] = found
    kept, other = os.dup(descriptor), os.open(device, os.O_RDWR)
    os.dup2(other, descriptor)
    os.close(other)
    keeps.append(kept)
    return lambda: os.dup2(kept, descriptor)
def tried(call):
    try:
        return call().outcome
    except (StoreFull, StoreUnavailable) as error:
        return f"{type(error).__name__} {type(error.__cause__).__name__} {error.__cause__.code}"
"""

ANSWERS: Final = [("/proc/self/mem", "StoreUnavailable Error 5"), ("/dev/full", "StoreFull DiskError 28")]


@pytest.mark.parametrize(("device", "says"), ANSWERS)
def test_an_error_at_the_meta_page_is_told_and_the_store_goes_on(tmp_path: Path, device: str, says: str) -> None:
    """LMDB panics until it is opened anew: that is done at once, the commit number tells that nothing was committed."""
    path = tmp_path / "store"
    fill(path, "ann", [80.0])
    said = ran(ILL + f"""
with opened(path) as store:
    manager = ResetManager(store)
    for _ in range(3):
        ill("{device}", meta=True)
        say(tried(lambda: manager.perform_reset("ann", **BY)))
        say(store.version_range("ann")[1], store.load("ann").version)
        say(tried(lambda: manager.perform_reset("ann", **BY)))
    say(*[row.public.outcome for row in store.audit("ann")])
    """, path).splitlines()
    assert said[:-1] == [text for n in range(3) for text in (says, f"{n + 1} {n + 1}", "committed")]
    assert Counter(said[-1].split()) == {"committed": 4, "rolled_back": 3}
    with opened(path) as store:
        assert store.verify_audit().problem == ""
        assert store.interrupted == 0
        assert store.version_range("ann") == (1, 4)


def test_bare_lmdb_panics_after_an_error_at_the_meta_page(tmp_path: Path) -> None:
    """The trap itself: every later transaction is refused."""
    program = bare(ILL + """
put = lambda: env.begin(write=True)
txn = put(); txn.put(b"a", b"1"); txn.commit()
ill("/proc/self/mem", meta=True)
for _ in range(2):
    try:
        txn = put(); txn.put(b"a", b"2"); txn.commit()
    except lmdb.Error as error:
        say(type(error).__name__)
""", tmp_path)
    assert line(program) == "Error"
    assert line(program) == "PanicError"
    ended(program)


@pytest.mark.parametrize(("device", "says"), ANSWERS)
def test_an_ill_disk_is_typed_by_its_error_and_nothing_is_lost(tmp_path: Path, device: str, says: str) -> None:
    """EIO is a plain lmdb.Error and only ENOSPC a DiskError: the code decides; while it lasts reads go on, then writes do."""
    path = tmp_path / "store"
    fill(path, "ann", [80.0])
    said = ran(ILL + f"""
with opened(path) as store:
    manager = ResetManager(store)
    well = ill("{device}", meta=False)
    for _ in range(3):
        say(tried(lambda: manager.perform_reset("ann", **BY)))
        assert store.load("ann").version == 1
    well()
    say(tried(lambda: manager.perform_reset("ann", **BY)))
    say(*[row.public.outcome for row in store.audit("ann")])
    """, path).splitlines()
    assert said[:4] == [says, says, says, "committed"]
    assert Counter(said[4].split()) == {"committed": 2, "rolled_back": 3}, "each attempt has its own outcome, written later"
    with opened(path) as store:
        assert store.verify_audit().problem == ""
        assert store.version_range("ann") == (1, 2)


# The data file

USES: Final = """
def tried(call):
    try:
        call()
        return "worked"
    except (StoreCorrupt, StoreUnavailable) as error:
        assert "stop every process" in str(error), error
        return type(error).__name__
with working(path) as (store, manager, processor):
    say("open")
    for order in sys.stdin:
        say(tried(lambda: store.load("ann")), tried(lambda: list(store.audit())),
            tried(lambda: processor.process(weighed("new", int(order), 80.0))))
"""


@pytest.mark.parametrize("pages", [0, 1, 2, 5])
def test_a_data_file_cut_short_while_it_is_open_kills_nobody(tmp_path: Path, pages: int) -> None:
    """Bare LMDB dies of SIGBUS; here reads and writes are told, closing is safe, and opening tells what cannot be read."""
    path = tmp_path / "store"
    for user in ("ann", *(f"u{number}" for number in range(40))):
        fill(path, user, [80.0])
    one = started(USES, path)
    assert line(one) == "open"
    assert told(one, "0") == "worked worked worked"
    os.truncate(path / "data.mdb", pages * os.sysconf("SC_PAGESIZE"))
    assert told(one, "1") == "StoreCorrupt StoreCorrupt StoreCorrupt"
    assert ended(one, "") == 0
    said = ran("""
        try:
            with opened(path) as store:
                for user in store.users():
                    assert store.load(user).state.kalman.x0 == 80.0
            say("right")
        except StoreCorrupt as error:
            say("corrupt")
    """, path)
    assert said == "corrupt"


def test_bare_lmdb_is_killed_by_a_data_file_cut_short(tmp_path: Path) -> None:
    """The trap itself, at a read of a page that is gone."""
    one = bare("""
        with env.begin(write=True) as txn:
            for number in range(1_000):
                txn.put(b"%04d" % number, bytes(100))
        say("open"); sys.stdin.readline()
        list(env.begin().cursor())
    """, tmp_path)
    assert line(one) == "open"
    os.truncate(tmp_path / "data.mdb", 2 * os.sysconf("SC_PAGESIZE"))
    assert ended(one) == -signal.SIGBUS


def test_a_data_file_replaced_while_it_is_open_is_not_written_beside(tmp_path: Path) -> None:
    """Another file in its place: what would be written went nowhere, so that it is refused; the new file is left alone."""
    path = tmp_path / "store"
    fill(path, "ann", [80.0])
    shutil.copy(path / "data.mdb", tmp_path / "copy")
    one = started(USES, path)
    assert line(one) == "open"
    assert told(one, "0") == "worked worked worked"
    (tmp_path / "copy").rename(path / "data.mdb")
    assert told(one, "1") == "worked worked StoreUnavailable"
    assert ended(one, "") == 0
    with opened(path) as store:
        assert store.version_range("ann") == (1, 1)
        assert not store.knows("new")


# Pages that are none

READS: Final = """
from statemachine.store import pages
from statemachine.store.checkup import Checkup
def read(where):
    told = []
    try:
        with opened(where) as store:
            for call in (lambda: list(store.users()), lambda: list(store.audit()), lambda: list(store.quarantine()),
                         lambda: store.verify_audit().problem and told.append("told"), lambda: list(store.attempts()),
                         lambda: store.load("u050"), lambda: list(store.history("u150"))):
                try:
                    call()
                except StoreCorrupt:
                    told.append("told")
            told += [finding.level for finding in Checkup(store).run() if finding.level == "error"]
    except StoreCorrupt:
        told.append("told")
    return "told" if told else "right"
"""


def filled(path: Path) -> bytes:
    """The data file of a store of a few hundred users."""
    with working(path) as (_, _, processor):
        for day in range(2):
            processor.process_batch(weighed(f"u{number:03d}", day, 80.0) for number in range(200))
    return (path / "data.mdb").read_bytes()


def test_what_is_put_in_the_place_of_a_cut_off_end_kills_nobody(tmp_path: Path) -> None:
    """Wherever the file was cut, in a page or between two, what is gone is told by all that reads it, and by no signal.

    Each commit leaves other pages at the end: leaves under a root that is whole are what LMDB reads on to.
    """
    filled(tmp_path / "whole")
    said = ran(READS + """
page, answers = os.sysconf("SC_PAGESIZE"), []
(path / "cut").mkdir(mode=0o700)
for number in range(16):
    with working(path / "whole") as (store, _, processor):
        processor.process_batch(weighed(f"n{number:02d}-{n}", 0, 80.0) for n in range(8))
    whole = (path / "whole" / "data.mdb").read_bytes()
    for size in (len(whole) - page, len(whole) - 2 * page - 1_000, len(whole) - (3 + number % 9) * page):
        (path / "cut" / "data.mdb").write_bytes(whole[:size])
        answers.append(read(path / "cut"))
say(answers.count("told"), len(answers))
""", tmp_path)
    count, tried = map(int, said.split())
    assert tried == 48
    assert count > tried // 2, "some of the last pages may have been free"


def test_a_mending_of_a_cut_off_end_that_was_killed_is_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file grows by what was written alone, so that whoever is killed leaves one that is cut short still."""
    path, page = tmp_path / "store", os.sysconf("SC_PAGESIZE")
    whole = filled(path)
    size, wrote = len(whole) - 9 * page - 100, os.pwrite
    (path / "data.mdb").write_bytes(whole[:size])
    asked: list[int] = []

    def killed(descriptor: int, content: bytes, at: int) -> int:
        asked.append(at)
        if len(asked) > 3:
            raise OSError(28, "no room")
        return wrote(descriptor, content[:page + 50], at)

    monkeypatch.setattr(os, "pwrite", killed)
    with pytest.raises(StoreFull, match="try again"):
        Store.open(path)
    monkeypatch.undo()
    start = size // page * page
    left = (path / "data.mdb").read_bytes()
    assert left == whole[:start] + b"\xff" * (3 * (page + 50)), "no byte is there that was not written"
    with pytest.raises(StoreCorrupt), opened(path) as store:
        list(store.audit())
    assert (path / "data.mdb").read_bytes()[start:] == b"\xff" * (len(whole) - start)


def zeroed(path: Path) -> Iterator[int]:
    """Put zeros in the place of one leaf after another of a store's file, each alone in the whole file; the number of each."""
    page, whole = os.sysconf("SC_PAGESIZE"), (path / "data.mdb").read_bytes()
    for number in range(2, len(whole) // page):
        start = number * page
        if whole[start + 10] == 2:  # so a leaf says it
            (path / "data.mdb").write_bytes(whole[:start] + bytes(page) + whole[start + page:])
            yield number
    (path / "data.mdb").write_bytes(whole)


def command(*words: str) -> tuple[int, str]:
    """How a command ended, and all that it said."""
    done = subprocess.run([sys.executable, "-m", "statemachine.cli", *words], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_doctor_names_a_page_of_zeros_and_dies_of_none(tmp_path: Path) -> None:
    """LMDB ends a process that steps on to one: doctor and compact look first, and change nothing."""
    path = tmp_path / "store"
    filled(path)
    answers: Counter[str] = Counter()
    for number in zeroed(path):
        with contextlib.suppress(StoreCorrupt), opened(path, readonly=True) as store:
            found = [finding.problem for finding in Checkup(store).run() if finding.level == "error"]
            if not found:
                answers["free"] += 1
                continue
            if "the list of free pages" in found[0]:
                answers["list"] += 1
                continue
            answers["told"] += 1
            assert re.search(rf"no record was looked at: .* comes to one: {number};", found[0])
            last = number
    assert answers["told"] > 5
    assert answers["list"] > 0
    for at in zeroed(path):
        if at == last:
            before = (path / "data.mdb").read_bytes()
            code, said = command("doctor", "--json", "--store", str(path))
            assert (code, f"comes to one: {at};" in said) == (1, True)
            code, said = command("compact", "--actor", "a", "--reason", "r", "--store", str(path))
            assert (code, f"{at};" in " ".join(said.split())) == (3, True)
            assert (path / "data.mdb").read_bytes() == before
    with opened(path) as store:
        assert not list(Checkup(store).run())


def test_what_reads_a_whole_store_looks_at_its_pages_first(tmp_path: Path) -> None:
    """Whichever leaf became zeros: what is asked for is read whole, or StoreCorrupt names the page; no signal comes."""
    filled(tmp_path / "store")
    with working(tmp_path / "store") as (_, _, processor):
        intake = processor.intake([(None, "f")], lambda *_: None)
        for number in range(200):
            intake.add(0, SourceRow(number, None, Unreadable(line=number, raw="?" * 150, reason="no number", user="u077")))
        intake.flush()
    said = ran("""
from collections import Counter
from itertools import islice
from statemachine.cli.console import require_user
from statemachine.erasure import export_user, forget, prune_audit
from statemachine.sweep import Sweep
from tests.chaos.test_lmdb_disk_traps import zeroed
answers = Counter()
for number in islice(zeroed(path), 0, None, 4):
    try:
        store = opened(path)
    except ResetError:
        continue
    with store:
        for name, call in (
            ("verify", lambda: store.verify_audit().problem and say("row")), ("audit", lambda: list(store.audit())),
            ("users", lambda: list(store.users())), ("quarantine", lambda: list(store.quarantine())),
            ("sweep", lambda: ResetManager(store).sweep(Sweep(dry_run=True))),
            ("user", lambda: [(require_user(store, f"u{user}"), list(store.history(f"u{user}"))) for user in range(100, 200)]),
            ("export", lambda: [list(export_user(store, f"u{user:03d}")) for user in range(1, 200, 8)]),
            ("forget", lambda: [forget(store, f"u{user:03d}", "a", "r") for user in range(3, 200, 40)]),
            ("prune", lambda: prune_audit(store, 1 << 60, "a", "r")),
        ):
            try:
                call()
            except (StoreCorrupt, StoreUnavailable) as error:
                answers[name, f"comes to one: {number};" in str(error)] += 1
            else:
                answers[name, "read"] += 1
for (name, how), count in answers.items():
    say(name, how, count)
""", tmp_path / "store")
    answers = {(name, how): int(count) for name, how, count in map(str.split, said.splitlines())}
    for name in ("verify", "audit", "users", "quarantine", "sweep", "user", "export", "forget", "prune"):
        assert answers[name, "True"] > 1, answers
        assert answers[name, "read"] > 1, answers


def test_users_lists_those_after_pages_that_cannot_be_read(tmp_path: Path) -> None:
    """Between two lost pages and after them everybody is listed; that some are missing is said at the end."""
    path, page = tmp_path / "store", os.sysconf("SC_PAGESIZE")
    data = bytearray(filled(path))
    with opened(path, readonly=True) as store:
        leaves = [leaf for leaf in pages.walk(store.engine) if leaf.first > b"u"]
    assert len(leaves) > 10
    for leaf in (leaves[2], leaves[6]):
        data[leaf.number * page:(leaf.number + 1) * page] = b"\xff" * page
    (path / "data.mdb").write_bytes(data)
    code, said = command("users", "--json", "--store", str(path))
    lines = re.findall(r'"user":\s*"(u\d+)"', said)
    listed = set(lines)
    assert len(lines) == len(listed), "each once"
    assert (code, "not listed, at" in " ".join(said.split())) == (3, True), said
    between = leaves[4].first[:4].decode()
    assert {"u000", between, "u199"} <= listed, said[-600:]
    assert 150 < len(listed) < 200


def test_the_pages_of_a_range_are_those_that_a_cursor_may_come_to(tmp_path: Path) -> None:
    """The leaf where it begins and the one before it, all to its end, and the one after it; few more."""
    filled(tmp_path / "store")
    with opened(tmp_path / "store", readonly=True) as store:
        leaves = list(pages.walk(store.engine))
        assert len(leaves) > 40
        for first, last in combinations(range(1, len(leaves) - 1, 3), 2):
            found = list(pages.walk(store.engine, leaves[first].first + b"\0", leaves[last].first + b"\0"))
            assert set(found) >= set(leaves[first - 1:last + 2])
            assert len(found) <= last - first + 5
            assert found == [leaf for leaf in leaves if leaf in found], "in order"


def test_pages_are_looked_at_while_another_writes(tmp_path: Path) -> None:
    """The tree is the one of a single commit, wherever writers have got to meanwhile."""
    path = tmp_path / "store"
    filled(path)
    with working(path) as (store, _, processor):
        for day in range(2, 40):
            found = pages.deadly(store.engine)
            processor.process_batch(weighed(f"u{number:03d}", day, 80.0) for number in range(20))
            assert not list(found)


def test_bare_lmdb_is_killed_by_a_page_of_zeros(tmp_path: Path) -> None:
    """The trap itself: a cursor that steps on to one."""
    one = bare("""
        with env.begin(write=True) as txn:
            for number in range(1_000):
                txn.put(b"%04d" % number, bytes(100))
        say("open"); sys.stdin.readline()
        list(env.begin().cursor())
    """, tmp_path)
    assert line(one) == "open"
    page, whole = os.sysconf("SC_PAGESIZE"), (tmp_path / "data.mdb").read_bytes()
    with (tmp_path / "data.mdb").open("r+b") as data:
        for number in range(2, len(whole) // page):
            if whole[number * page + 10] == 2 and b"0500" in whole[number * page:(number + 1) * page]:
                os.pwrite(data.fileno(), bytes(page), number * page)
    assert ended(one) == -signal.SIGABRT


# Flipped bits

def flipped(data: bytes, rng: random.Random) -> bytes:
    """The data with one bit changed, anywhere."""
    at = rng.randrange(len(data))
    return data[:at] + bytes((data[at] ^ (1 << rng.randrange(8)),)) + data[at + 1:]


def served(path: Path, true: dict[str, list[bytes]]) -> str:
    """What a store with a flipped bit serves: "right", "told", or in words what is wrong about it."""
    answer = "right"
    try:
        with opened(path, readonly=True) as store:
            for user, versions in true.items():
                try:
                    loaded = store.load(user)
                except ResetError:
                    answer = "told"
                    continue
                if loaded is None:
                    named = any(repr(user) in str(finding) for finding in Checkup(store).run())
                    answer = VANISHED if named else f"{user} is said to have nothing stored"
                    break
                if store.estimator.encode(loaded.state) != versions[loaded.version - 1]:
                    return f"{user} has a state that never was"
                if loaded.version != len(versions) and not loaded.head_damaged:
                    return f"{user} is silently set back to version {loaded.version}"
                answer = "told" if loaded.head_damaged else answer
    except ResetError:
        return "told"
    return answer


VANISHED: Final = "a user vanished whole, and doctor names it"
"""What a page says of the count of its keys has no second witness in it; some 0.02 % of the bits are of that kind."""


def bare_content(path: Path) -> dict[bytes, bytes] | str:
    """All keys and values as bare LMDB reads them."""
    try:
        with lmdb.open(str(path), lib_version=0, create=False, readonly=True, map_size=1 << 30) as env, env.begin() as txn:
            return {bytes(key): bytes(value) for key, value in txn.cursor()}
    except (lmdb.Error, ValueError):
        return "error"


def in_child(call: Callable[[], str], where: Path) -> str:
    """What a call answers in a forked child, which LMDB may kill; the signal's number where it does."""
    child = os.fork()
    if child == 0:
        try:
            where.write_text(call())
        except BaseException as error:  # noqa: BLE001 - told by the parent
            where.write_text(repr(error))
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return where.read_text() if code == 0 else f"died of {-code}"


def check_flipped_bits(tmp_path: Path, count: int, seed: int) -> None:
    """Flip single bits of a store's file, each in a copy of its own, and compare what is served with what was true."""
    path, copy, rng = tmp_path / "store", tmp_path / "copy", random.Random(seed)
    users = [f"u{number:02d}" for number in range(30)]
    with working(path) as (store, _, processor):
        processor.process_batch(weighed(u, day, 70 + n + day / 10) for day in range(6) for n, u in enumerate(users))
        true = {}
        for user in users:
            loaded = [store.load(user, version) for version in range(1, 7)]
            true[user] = [store.estimator.encode(one.state) for one in loaded if one is not None]
    before, data = bare_content(path), (path / "data.mdb").read_bytes()
    answers, hidden = Counter[str](), 0
    shutil.copytree(path, copy)
    for number in range(count):
        (copy / "data.mdb").write_bytes(flipped(data, rng))
        answers[in_child(lambda: served(copy, true), tmp_path / "answer")] += 1
        if number < 80:  # enough of a witness
            content = in_child(lambda: "same" if bare_content(copy) in (before, "error") else "other", tmp_path / "answer")
            hidden += content == "other"
    assert set(answers) <= {"right", "told", VANISHED}, (seed, answers)
    assert answers[VANISHED] <= count / 500, (seed, answers)
    assert answers["told"] > count // 40, "some bits must have hit what is read"
    assert hidden > 0, "bare LMDB must have given wrong data, or this trap is none any more"


def test_no_flipped_bit_gives_wrong_data_in_silence(tmp_path: Path) -> None:
    """Eighty single bits of the file: the states are right, or it is told; bare LMDB gives other data without an error."""
    check_flipped_bits(tmp_path, 80, seed=1)


@pytest.mark.slow
def test_two_thousand_flipped_bits_give_no_wrong_data(tmp_path: Path) -> None:
    """As above, for two thousand bits."""
    check_flipped_bits(tmp_path, 2_000, seed=2)


def key_out_of_order(path: Path, user: str) -> None:
    """Change one byte of the key of a user's head as it lies in its page, so that it sorts after the versions."""
    data = bytearray((path / "data.mdb").read_bytes())
    wanted, count = user.encode() + b"\0s", 0
    start = data.find(wanted)
    while start >= 0:
        data[start + len(user)] ^= 0x20
        count += 1
        start = data.find(wanted, start + 1)
    assert count
    (path / "data.mdb").write_bytes(data)


def test_a_key_out_of_order_is_never_taken_for_nothing_stored(tmp_path: Path) -> None:
    """One key changed hides its neighbours from LMDB's search: the user is unreadable, not new, and nothing begins anew."""
    path = tmp_path / "store"
    for user in ("amy", "ann", "bob"):
        fill(path, user, [80.0, 80.1, 80.2])
    key_out_of_order(path, "ann")
    with working(path) as (store, manager, processor):
        assert store.engine.get(b"ann\0s") is None
        with pytest.raises(StoreCorrupt, match="out of order"):
            store.engine.check_absent(b"ann\0s")
        with pytest.raises(StoreCorrupt, match=r"out of order|no version can be read|does not match"):
            store.load("ann")
        outcome = processor.process(weighed("ann", 3, 50.0))
        assert (outcome.status, outcome.reset) == ("quarantined", None)
        assert [row.public.event for row in store.audit("ann")] == ["reset.committed", "state.unrecoverable"]
        for user in ("amy", "bob"):
            assert head(store, user).kalman.at_us
        assert processor.process(weighed("bob", 3, 80.1)).version == 4
        assert manager.store.verify_audit().problem == ""


def test_a_state_that_vanished_whole_is_never_taken_for_nothing_stored(tmp_path: Path) -> None:
    """Head and log are gone, as where a page forgets its end: what was accepted says so; a user only kept aside is new."""
    path = tmp_path / "store"
    for user in ("amy", "ann"):
        fill(path, user, [80.0, 80.1])
    with opened(path) as store:
        gone = [key for key, _ in store.engine.scan(b"ann\0s", b"ann\1")]
    with raw(path) as txn:
        for key in gone:
            assert txn.delete(key)
    with working(path) as (store, _, processor):
        with pytest.raises(StoreCorrupt, match="no version can be read"):
            store.load("ann")
        assert processor.process(weighed("ann", 3, 50.0)).status == "quarantined"
        assert processor.process(weighed("new", 3, 5_000.0)).status == "quarantined"
        assert store.load("new") is None
        assert processor.process(weighed("new", 4, 50.0)).version == 1
        assert processor.process(weighed("amy", 3, 80.1)).version == 3


def test_a_key_that_is_no_users_is_told(tmp_path: Path) -> None:
    """A user's key without its end, or of bytes that are no text, ends a listing of users with a typed error."""
    for number, key in enumerate((b"ann", b"\xff\0s")):
        path = tmp_path / str(number)
        fill(path, "amy", [80.0])
        with raw(path) as txn:
            txn.put(key, b"x")
        with opened(path) as store, pytest.raises(StoreCorrupt, match=r"was changed|names no user"):
            list(store.users())


# Two engines

def test_every_environment_is_opened_by_the_one_engine(tmp_path: Path) -> None:
    """py-lmdb 3 bundles two engines whose files differ: each opening names LMDB 0.9, creation and reading too."""
    asked: list[Any] = []

    def opener(*args: Any, **settings: Any) -> lmdb.Environment:
        asked.append(settings.get("lib_version"))
        return lmdb.open(*args, **settings)

    for _ in range(2):
        Store.open(tmp_path / "store", opener=opener).close()
    Store.open(tmp_path / "store", opener=opener, readonly=True).close()
    assert asked == [0, 0, 0, 0]
    with lmdb.open(str(tmp_path / "store"), create=False, lib_version=0) as env, env.begin() as txn:
        assert txn.stat()["entries"] > 0
    with pytest.raises(lmdb.Error):
        lmdb.open(str(tmp_path / "store"), create=False, lib_version=1)


def test_a_file_of_the_other_engine_is_foreign_and_not_changed(tmp_path: Path) -> None:
    """A store that was written by LMDB 1.0 is refused by name, twice over, with every byte left as it was."""
    path = tmp_path / "store"
    path.mkdir()
    with lmdb.open(str(path), map_size=1 << 20, lib_version=1) as env, env.begin(write=True) as txn:
        txn.put(b"theirs", b"precious")
    before = (path / "data.mdb").read_bytes()
    for _ in range(2):
        with pytest.raises(StoreForeign, match="another format"):
            Store.open(path)
    assert (path / "data.mdb").read_bytes() == before
