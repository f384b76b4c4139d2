"""A writer in `group` mode is killed with attempts under way: the next opening settles them, at no cost that grows with users."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
import structlog

from statemachine import Processor, ResetManager, Store
from statemachine.audit import configure_for_command
from statemachine.store import surroundings
from tests.regression.scene import BY, opened, weighed
from tests.unit.processes import line, ran, started
from tests.unit.test_cli_inspect import run

ATTEMPTS: Final = 5
SHARE_MAX: Final = 4
"""How many times the pages of the smaller store may be touched in one ten times as large, whose tree is a level deeper."""

# Attempts that wait in user code, while the batches of the others are committed.
WRITER: Final = """
users, attempts = int(sys.argv[2]), int(sys.argv[3])
store = opened(path, durability="group")
manager = ResetManager(store)
processor = Processor(manager)
under_way = [manager.transaction(f"u{n:06d}", **BY) for n in range(attempts)]
for transaction in under_way:
    transaction.__enter__()
day = 1
while True:
    processor.process_batch([weighed(f"u{n:06d}", day, 80.0) for n in range(attempts, min(users, 500))])
    if day == 2:
        say(*(transaction.attempt_id for transaction in under_way))
    day += 1
"""

# How much of the data file a process has mapped in by an opening that settles, a verified read and a commit.
OPENED: Final = """
user = sys.argv[2]
store = opened(path, durability="group")
assert store.load(user).violations == ()
ResetManager(store).perform_reset(user, "admin", **BY)
kib, at = 0, False
for text in Path("/proc/self/smaps").read_text().splitlines():
    if "-" in text.split(" ")[0]:
        at = text.endswith("data.mdb")
    elif at and text.startswith("Rss:"):
        kib += int(text.split()[1])
print(kib, store.interrupted)
store.close()
"""


@pytest.fixture(autouse=True)
def no_events() -> Iterator[None]:
    """Nothing is printed of what the audit copies to structlog."""
    configure_for_command(verbose=False)
    yield
    structlog.reset_defaults()


def filled(path: Path, users: int) -> Path:
    with opened(path, durability="process") as store:
        processor = Processor(ResetManager(store))
        for first in range(0, users, 1_000):
            processor.process_batch([weighed(f"u{n:06d}", 0, 80.0) for n in range(first, min(first + 1_000, users))])
    return path


def killed(path: Path, users: int) -> list[str]:
    """Kill a writer in the middle of its work; the attempts that were under way."""
    writer = started(WRITER, path, users, ATTEMPTS)
    attempts = line(writer).split()
    time.sleep(0.1)
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    return attempts


def everything(path: Path) -> dict[str, bytes]:
    """All that lies in the directory, but LMDB's own table of readers."""
    files = (file for file in path.rglob("*") if file.is_file() and file.name != "lock.mdb")
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


def check_killed(path: Path, users: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surroundings, "DISK_SHARE_MIN", 0.0)
    attempts = killed(filled(path, users), users)
    before = everything(path)
    looked = run(path, "doctor", "--json")
    assert looked.code == 1
    assert [(f["check"], f["level"]) for f in json.loads(looked.out)["findings"]] == [("marks", "warning")]
    assert everything(path) == before, "doctor settles nothing"
    with Store.open(path, durability="group") as store:
        assert store.interrupted >= ATTEMPTS
        for user in ("u000000", f"u{users - 1:06d}"):
            loaded = store.load(user)
            assert loaded is not None
            assert loaded.violations == ()
        outcomes = Counter((row.public.attempt_id, row.public.outcome) for row in store.audit())
        assert [outcomes[attempt, "interrupted"] for attempt in attempts] == [1] * ATTEMPTS
        assert max(outcomes.values()) == 1
        assert ResetManager(store).perform_reset(f"u{users - 1:06d}", "admin", **BY).outcome == "committed"
    assert run(path, "doctor").code == 0


def test_killed_group_is_settled_by_the_next_opening_and_doctor_is_clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Doctor tells of the attempts before that and changes nothing; after it each has its one outcome."""
    check_killed(tmp_path / "store", 1_000, monkeypatch)


@pytest.mark.slow
def test_killed_group_of_a_hundred_thousand_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_killed(tmp_path / "store", 100_000, monkeypatch)


def touched_kib(path: Path, users: int) -> int:
    kib, settled = map(int, ran(OPENED, path, f"u{users // 2:06d}").split())
    assert settled >= ATTEMPTS
    return kib


@pytest.mark.skipif(sys.platform != "linux", reason="what a process has mapped in is told by Linux alone")
def test_opening_after_a_kill_touches_as_much_of_a_store_twenty_times_as_large(tmp_path: Path) -> None:
    """Open, settle, read and commit: what is read of the data file does not grow with the users."""
    sizes = []
    for users in (400, 8_000):
        path = filled(tmp_path / str(users), users)
        killed(path, users)
        sizes.append((touched_kib(path, users), (path / "data.mdb").stat().st_size // 1024))
    (small_kib, small_file_kib), (large_kib, large_file_kib) = sizes
    assert large_file_kib > SHARE_MAX * small_file_kib, "the larger store must be larger"
    assert 0 < large_kib < SHARE_MAX * small_kib
    assert large_kib < large_file_kib / 2
