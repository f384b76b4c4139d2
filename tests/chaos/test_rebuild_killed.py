"""A rebuild killed with -9, at each of its commits or at any instant, leaves the old state or the new one, with its outcome."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from statemachine import Store
from statemachine.audit import configure_for_command
from statemachine.cli import app
from statemachine.store import keys
from tests.regression.scene import raw, tear

ROOT = Path(__file__).parents[2]
USER = "ana"
KEY = USER.encode()
SECONDS_MAX = 60
BY = ["--actor", "ops@example.org", "--reason", "a test"]

PROGRAM = """
import os, signal, sys, tempfile
from pathlib import Path
from statemachine import *
from statemachine.ingest import Options, open_source
from statemachine.audit import configure_for_command
from statemachine.processor import SourceRow
from statemachine.rebuild import Source, rebuild, rebuild_from
from tests.unit.doubles import Disk
path, file, form, moment, tempfile.tempdir = sys.argv[1:]
configure_for_command(verbose=False)
def die():
    os.kill(os.getpid(), signal.SIGKILL)
class Dying(BodyWeight):
    count = 0
    def reading(self, measurement):
        self.count += 1
        if moment == f"reading {self.count}":
            die()
        return super().reading(measurement)
commits = 0
def commit(real):
    global commits
    commits += 1
    if moment == f"before {commits}":
        die()
    real()
    if moment == f"after {commits}":
        die()
disk = Disk()
with Store.open(path, opener=disk, estimator=Dying()) as store:
    disk.commit = commit
    manager, by = ResetManager(store), {"actor": "ops@example.org", "reason": "a test"}
    if form == "log":
        done = rebuild(manager, "ana", **by)
    else:
        rows = [(0, SourceRow(row.row, row.measurement)) for row in open_source(file, Options())]
        done = rebuild_from(manager, "ana", [Source(b"f" * 16, "f.csv", "00")], rows, **by)
    print(done.outcome, flush=True)
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    rows = ["user_id,timestamp,weight,unit,source",
            *(f"{user},2024-{1 + day // 28:02d}-{1 + day % 28:02d}T07:00:00Z,{80 + 0.1 * (day % 4):.1f},kg,scale"
              for day in range(50) for user in (USER, "bob"))]
    (tmp_path / "weights.csv").write_text("\n".join(rows) + "\n")
    return tmp_path / "weights.csv"


@pytest.fixture
def whole(tmp_path: Path, file: Path) -> tuple[Path, bytes]:
    """A store in which the user's head is torn, and the state that was there."""
    configure_for_command(verbose=False)
    assert CliRunner().invoke(app, ["process", str(file), "--store", str(tmp_path / "whole")]).exit_code == 0
    with Store.open(tmp_path / "whole") as store:
        state = head_state(store)
    tear(tmp_path / "whole", keys.head(KEY))
    return tmp_path / "whole", state


def head_state(store: Store) -> bytes:
    head = store.head(USER)
    assert head is not None
    return head.state


def died_at(path: Path, file: Path, form: str, moment: str) -> bool:
    """Run a rebuild that kills itself at the moment; whether it came to that."""
    folder = path.parent / "tmp"
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-c", PROGRAM, str(path), str(file), form, moment, str(folder)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS_MAX, check=False)
    assert ended.returncode in {0, -signal.SIGKILL}, ended.stderr
    assert list(folder.iterdir()) == [], "a measurement was left in the directory for temporary files"
    return ended.returncode != 0


def check(path: Path, state: bytes) -> str:
    """Whether the old or the new stands; each with what belongs to it, and nothing of the other."""
    with raw(path) as txn:
        torn = txn.get(keys.version(KEY, 51)) is None
    with Store.open(path) as store:
        rows = [row.public for row in store.audit(user=USER) if row.public.kind == "rebuild"]
        assert store.verify_audit().problem == ""
        bob = store.load("bob")
        assert bob is not None
        assert bob.version == 50
        if torn:
            assert store.version_range(USER) == (1, 50)
            assert [row.outcome for row in rows] in ([], ["interrupted"])
            assert store.engine.get(keys.damaged(KEY, 51)) is None
            return "old, interrupted" if rows else "old"
        assert head_state(store) == state
        assert store.version_range(USER) == (1, 51)
        assert [row.event for row in rows if row.outcome == "committed"] == ["state.rebuilt"]
        assert store.engine.get(keys.damaged(KEY, 51)) is not None
        return "new"


@pytest.mark.parametrize("form", ["log", "files"])
def test_killed_at_every_commit(whole: tuple[Path, bytes], file: Path, tmp_path: Path, form: str) -> None:
    """Before and after the first commit, the second, and so on until it ends by itself: old, then new, and never a third."""
    stands = []
    for number in range(1, 10):
        landed = []
        for side in ("before", "after"):
            copy = tmp_path / f"{side}-{number}"
            shutil.copytree(whole[0], copy)
            landed.append(died_at(copy, file, form, f"{side} {number}"))
            stands.append(check(copy, whole[1]))
        if not any(landed):
            break
    assert stands == sorted(stands, reverse=True)
    assert stands[0] == "old, interrupted"
    assert stands[1] == stands[-1] == "new"
    assert len(stands) >= 4


@pytest.mark.parametrize("number", [1, 25, 50])
def test_killed_while_it_decides(whole: tuple[Path, bytes], file: Path, number: int) -> None:
    """In the midst of the scratch store's decisions: nothing has changed, and the next rebuild does all of it."""
    assert died_at(whole[0], file, "files", f"reading {number}")
    assert check(whole[0], whole[1]) == "old"
    assert not died_at(whole[0], file, "files", "never")
    assert check(whole[0], whole[1]) == "new"


def test_killed_at_any_instant(whole: tuple[Path, bytes], file: Path, tmp_path: Path) -> None:
    """The command itself, killed at random: old or new each time, and run once more it is new."""
    rng = random.Random(5)
    command = [sys.executable, "-m", "statemachine.cli", "rebuild", USER, "--from", str(file), *BY, "--store"]
    landed, taken_s = 0, 1.0
    for number in range(5):
        copy = tmp_path / f"copy-{number}"
        shutil.copytree(whole[0], copy)
        began_s = time.monotonic()
        victim = subprocess.Popen([*command, str(copy)], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if number == 0:  # one to its end, to know how long that takes here
            victim.wait()
            taken_s = time.monotonic() - began_s
        else:
            time.sleep(rng.uniform(0.2, 0.9) * taken_s)
        if victim.poll() is None:
            victim.send_signal(signal.SIGKILL)
            landed += 1
        victim.wait()
        check(copy, whole[1])
        again = subprocess.run([*command, str(copy)], cwd=ROOT, capture_output=True, text=True, check=False)
        assert again.returncode == 0, again.stderr
        assert check(copy, whole[1]) == "new"
    assert landed, "the kills must land in a running process"
