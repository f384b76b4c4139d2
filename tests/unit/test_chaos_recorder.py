"""The recorder sees each write, sync and name, whoever makes it, in the order in which it is made."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from chaos.faults import afterwards, libc, scenes
from chaos.faults.images import ROOT, Cut, Image, Named, Noted, Synced, Through, Wrote, built
from chaos.faults.recorder import Recorder
from chaos.planted import PLANTED
from chaos.target import Target

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [
    pytest.mark.usefixtures("no_events"),
    pytest.mark.skipif(bool(libc.unavailable()), reason=f"SKIPPED POWER CUTS: {libc.unavailable()}"),
]


def whole(cut: Cut) -> dict[str, bytes | None]:
    """Every write and every name."""
    return built(cut, Image("", 0, (1 << len(cut.pending)) - 1, (1 << len(cut.moves)) - 1, grown=True))


def on_disk(root: Path) -> dict[str, bytes | None]:
    paths = [path for path in sorted(root.rglob("*")) if path.name != "lock.mdb" and path.parent.name != "owners"]
    return {str(path.relative_to(root)): None if path.is_dir() else path.read_bytes() for path in paths}


@pytest.mark.parametrize("kind", [*scenes.COMMITS, *scenes.OTHERS])
def test_all_that_is_recorded_together_is_what_is_there(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that the library does to its files escapes the recorder: the last cut, with nothing lost, is the directory."""
    there: list[dict[str, bytes | None]] = []
    recorded = Recorder.recorded

    def looking(self: Recorder) -> Any:
        there.append(on_disk(tmp_path / "r"))
        return recorded(self)

    monkeypatch.setattr(Recorder, "recorded", looking)
    scene = scenes.record(Target(), 1, kind, 0, tmp_path / "r")
    disk = scene.recording.disk()
    for entry in scene.recording.entries:
        disk.feed(entry)
    assert whole(disk.cut()) == there[0]
    assert not (tmp_path / "r").exists()


def test_a_commit_is_data_a_sync_and_the_meta_page_straight_through(tmp_path: Path) -> None:
    """The order that everything rests on: nothing is told before the meta page is durable, nor that before its data."""
    scene = scenes.record(Target(), 1, "each", 0, tmp_path / "r")
    entries = scene.recording.entries
    through = [number for number, entry in enumerate(entries) if isinstance(entry, Through)]
    assert len(through) > scenes.OPS // 2
    for number in through:
        assert [type(entry) for entry in entries[number - 2:number + 1]] == [Synced, Wrote, Through]
    told = [cut for cut in scene.cuts if cut.answers and isinstance(entries[cut.at - 1], Noted)]
    assert len(told) == scenes.OPS + scenes.FEW
    assert not any(cut.pending for cut in told)


def told_pending(target: Target, root: Path) -> bool:
    scene = scenes.record(target, 1, "each", 0, root)
    return any(cut.pending for cut in scene.cuts if cut.answers and isinstance(scene.recording.entries[cut.at - 1], Noted))


def test_without_syncs_something_is_pending_when_it_is_told(tmp_path: Path) -> None:
    with PLANTED["no fsync"].plant():
        assert told_pending(Target(), tmp_path / "r")
    assert not told_pending(Target(), tmp_path / "r"), "and the planted bug is gone again"


def test_what_python_does_is_recorded_call_by_call(tmp_path: Path) -> None:
    def write(path: Path, data: bytes) -> None:
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    recorder = Recorder(tmp_path)
    with recorder.recording():
        write(tmp_path / "a", b"1" * 600)
        (tmp_path / "d").mkdir()
        (tmp_path / "a").rename(tmp_path / "d" / "b")
        (tmp_path / "d" / "b").unlink()
        (tmp_path / "d").rmdir()
        write(tmp_path / "a", b"2")
    file, directory, other = 1, 2, 3
    assert recorder.recorded().entries == [
        Named(file, (ROOT, "a"), None), Wrote(file, ((0, b"1" * 512), (1, b"1" * 88 + bytes(424))), 600), Synced(file),
        Named(directory, (ROOT, "d"), None, folder=True), Named(file, (directory, "b"), (ROOT, "a")),
        Named(file, None, (directory, "b")), Named(directory, None, (ROOT, "d"), folder=True),
        Named(other, (ROOT, "a"), None), Wrote(other, ((0, b"2" + bytes(511)),), 1), Synced(other)]


def test_nothing_is_replaced_after_the_recording(tmp_path: Path) -> None:
    calls: list[Callable[..., Any]] = [os.fsync, os.rename, os.unlink, os.mkdir]
    with Recorder(tmp_path).recording():
        assert os.fsync is not calls[0]
    assert [os.fsync, os.rename, os.unlink, os.mkdir] == calls


def test_a_scene_is_the_same_whenever_it_is_recorded(tmp_path: Path) -> None:
    one, same = (scenes.record(Target(), 1, "group", 0, tmp_path / name).cuts for name in ("a", "b"))
    assert one == same


def test_marks_are_kept_as_they_were_at_each_entry(tmp_path: Path) -> None:
    """At the cut, lost, older, or mixed: nobody syncs them."""
    scene = scenes.record(Target(), 1, "each", 0, tmp_path / "r")
    filled = [cut for cut in scene.cuts if any(scene.recording.marks_at(cut.at).values())]
    assert filled, "an attempt is under way at some cut"
    cut = filled[-1]
    now = scene.recording.marks_at(cut.at)
    assert afterwards.marks_left(scene, cut, "as at the cut", 0) == now
    assert afterwards.marks_left(scene, cut, "lost", 0) == {}
    others = [afterwards.marks_left(scene, cut, which, dice) for which in ("stale", "torn") for dice in range(400)]
    assert any(other != now for other in others)
