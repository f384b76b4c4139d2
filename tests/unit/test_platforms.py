"""Where it runs: Windows is refused with the reason, and nothing needlessly breaks where Linux's own calls are missing."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from statemachine import StoreFull
from statemachine.marks import SLOT_BYTES, SLOTS, Marks
from statemachine.store import surroundings
from tests.regression.scene import BY, fill, working

ROOT: Final = Path(__file__).parents[2]

pytestmark = pytest.mark.usefixtures("no_events")


def python(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60,
                          check=False)


def test_windows_is_refused_at_import_with_the_reason() -> None:
    """Not by a missing module half-way through."""
    ended = python("import sys; sys.platform = 'win32'; import statemachine")
    assert ended.returncode == 1
    assert "ImportError: resetguard does not run on Windows" in ended.stderr
    assert "WSL" in ended.stderr


def test_the_command_says_so_on_windows_in_one_line() -> None:
    ended = python("import sys; sys.platform = 'win32'; import resetguard")
    assert ended.returncode == 3
    assert ended.stderr.startswith("resetguard: resetguard does not run on Windows")
    assert ended.stderr.count("\n") == 1


def test_another_failing_import_is_no_matter_of_the_platform() -> None:
    ended = python("import sys; sys.modules['lmdb'] = None; import resetguard")
    assert ended.returncode == 1
    assert "Traceback" in ended.stderr
    assert "lmdb" in ended.stderr


def test_ctrl_c_while_the_library_is_imported_is_no_traceback() -> None:
    """One line and the exit code of an interrupt, as later on."""
    ended = python("""
import os, runpy, signal, sys
class Interrupting:
    def find_spec(self, name, *_):
        if name == "statemachine.kalman":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupting())
runpy.run_module("resetguard", run_name="__main__")
""")
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "resetguard: interrupted\n")


def test_the_command_begins_in_its_own_module() -> None:
    ended = subprocess.run([sys.executable, "-m", "resetguard", "--version"], cwd=ROOT, capture_output=True, text=True,
                           check=True)
    assert ended.stdout.startswith("resetguard ")
    assert 'resetguard = "resetguard:main"' in (ROOT / "pyproject.toml").read_text()


def test_without_posix_fallocate_the_file_of_marks_has_its_blocks_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """macOS has no such call: zeros are written, in as many pieces as the system takes them."""
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    real, pieces = os.write, []

    def in_pieces(descriptor: int, data: bytes) -> int:
        pieces.append(len(data))
        return real(descriptor, data[:500_000])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", in_pieces)
        marks = Marks(tmp_path / "1")
    stat = marks.path.stat()
    assert (stat.st_size, len(pieces)) == (SLOT_BYTES * SLOTS, 5)
    assert stat.st_blocks * 512 >= stat.st_size
    assert not marks._map[:].strip(b"\0")
    marks.close()


def test_a_store_works_without_the_calls_that_only_linux_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No posix_fallocate, no table of mounts: a reset commits, and the file system is not known."""
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    monkeypatch.setattr(surroundings, "mount_table", tmp_path / "no such table")
    fill(tmp_path / "store", "ann", [80.0])
    with working(tmp_path / "store") as (store, manager, _):
        assert manager.perform_reset("ann", **BY).version == 2
        assert surroundings.file_system(store.path) is None
        assert list(surroundings.examine(store)) == []


def test_without_posix_fallocate_a_full_disk_is_told_before_a_slot_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    fill(tmp_path / "store", "ann", [80.0])

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(StoreFull, match="file of marks"), working(tmp_path / "store"):
            pass
    with working(tmp_path / "store") as (_, manager, _):
        assert manager.perform_reset("ann", **BY).version == 2
