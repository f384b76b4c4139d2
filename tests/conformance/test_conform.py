"""Audit logs of real runs are behaviours of the protocol, forged ones are not, and `conform` says where they stop being one."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import pytest

from chaos.conform import follow, monitor, rows
from chaos.conform.forgeries import FORGERIES, Forgery, forged, scene
from chaos.conform.histories import BY, Shape, shape_of, world
from statemachine import BreakerOpen, BreakerPolicy, MutationFailed, Store, audit
from statemachine.store import fencing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from chaos.conform.histories import World

HISTORIES = 200
HISTORIES_LONG = 1_000
FOLLOWED = 60
LEFT_OUT_SHARE_MAX = 0.2
needs_spin = pytest.mark.skipif(
    "CI" not in os.environ and (shutil.which("spin") is None or shutil.which("gcc") is None),
    reason="spin or gcc is not installed: `apt-get install spin gcc`",
)


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> None:
    audit.configure_for_command(verbose=False)


@pytest.fixture(scope="module")
def follower() -> Iterator[follow.Follower]:
    with follow.follower() as made:
        yield made


@cache
def _scene() -> list[dict[str, Any]]:
    with world() as place:
        return scene(place)


def conform(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "chaos", "conform", *map(str, arguments)], capture_output=True, text=True,
                          check=False, cwd=Path(__file__).parents[2])


def written(path: Path, log: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in log), encoding="utf-8")
    return path


@pytest.mark.parametrize("histories", [HISTORIES, pytest.param(HISTORIES_LONG, marks=pytest.mark.slow)])
def test_the_logs_of_random_real_runs_are_accepted(histories: int) -> None:
    seen: Counter[str] = Counter()
    full = part = 0
    with world() as place:
        for seed in range(histories):
            log = rows.of_dicts(place.run(seed, shape_of(seed)))
            verdict = monitor.judge(log)
            assert verdict.accepted, f"seed {seed}: {verdict.rejected}"
            assert verdict.unknown == 0
            full, part = full + verdict.in_full, part + verdict.in_part
            seen.update(row.event for row in log)
            seen.update(f"{row.outcome} in {row.breaker.mode}" for row in log if row.whole and row.breaker)
    assert full > 9 * part > 0
    wanted = {"reset.committed", "reset.conflicted", "reset.interrupted", "reset.refused", "reset.rolled_back", "state.restored",
              "breaker.opened", "breaker.closed", "breaker.forced", "breaker.released", "owner.fenced", "committed in half-open",
              "rolled_back in half-open", "conflicted in half-open", "committed in forced-closed", "user.forgotten"}
    assert wanted <= set(seen), f"the histories never show {wanted - set(seen)}"


@needs_spin
def test_spin_follows_the_logs_of_random_real_runs(follower: follow.Follower) -> None:
    users = left_out = fenced = 0
    with world() as place:
        for seed in range(FOLLOWED):
            log = place.run(seed, shape_of(seed))
            fenced += any(row["event"] == "owner.fenced" for row in log)
            found = follower.follow(rows.of_dicts(log))
            assert found.rejected is None, f"seed {seed}: {found.rejected}"
            users, left_out = users + found.users, left_out + len(found.left_out)
    assert left_out < LEFT_OUT_SHARE_MAX * users
    assert FOLLOWED > fenced > FOLLOWED / 3


def _fenced_probe(place: World, *, settled: bool) -> list[dict[str, Any]]:
    """A probe whose owner is fenced, the next one, which another process commits, and the row of the first if it is `settled`."""
    place.fresh(BreakerPolicy(failures_max=1, cooldown_s=60.0, jitter=0.0), shape=Shape(users=1))
    first, second, _ = place.processes
    place.measure(first, "u1", 80.0)
    failing = first.begin("u1")
    with pytest.raises(MutationFailed) as raised:
        failing.apply("boom", lambda state: state / 0)
    failing.roll_back(raised.value)  # opens, generation 1
    place.clock.advance(100.0)
    second.begin("u1")  # a probe, generation 2
    with pytest.raises(BreakerOpen):
        first.begin("u1")  # refused: somebody else is probing
    fencing.fence(first.store, second.store.committer.owner, **BY)  # generation 3
    probe = first.begin("u1")  # generation 4
    probe.apply("moved", lambda state: state.replace(x=(80.01, 0.0)))
    probe.commit()
    return place.log() if settled else [row.as_dict() for row in first.store.audit()]


def test_an_attempt_that_was_fenced_before_it_could_lease_tells_the_generation_that_it_read() -> None:
    """Its mark's row is of a generation between two leases, which nobody held; seed 623 showed it."""
    with world() as place:
        log = place.run(623, shape_of(623))
    verdict = monitor.judge(rows.of_dicts(log))
    assert verdict.accepted, verdict.rejected
    assert any(row["outcome"] == "rolled_back" and row["breaker"] == {"mode": "", "generation": 3} for row in log)


@needs_spin
@pytest.mark.parametrize("settled", [True, False])
def test_a_probe_that_a_fence_gave_back_is_followed_with_and_without_its_row(follower: follow.Follower, settled: bool) -> None:
    """Without the fence the next probe cannot have been; to SPIN, nor can the refusal, where nobody is told who probed."""
    with world() as place:
        log = _fenced_probe(place, settled=settled)
    assert sum(row["event"] == "reset.interrupted" for row in log) == settled
    assert monitor.judge(rows.of_dicts(log)).accepted
    found = follower.follow(rows.of_dicts(log))
    assert (found.left_out, found.rejected) == ({}, None)
    closing = next(row for row in log if row["outcome"] == "committed" and row["breaker"]["mode"] == "half-open")
    fence = next(row for row in log if row["event"] == "owner.fenced")
    fence |= {"event": "reset.held", "details": {}}
    judged, followed = monitor.judge(rows.of_dicts(log)).rejected, follower.follow(rows.of_dicts(log)).rejected
    assert judged is not None
    assert judged.seq == closing["seq"]
    assert followed is not None
    refused = next(row for row in log if row["event"] == "reset.refused")
    assert followed.seq == (closing if settled else refused)["seq"]


def test_a_seed_makes_one_history() -> None:
    with world() as one, world() as other:
        runs = [[{**row, "error": None} for row in place.run(4, shape_of(4))] for place in (one, other)]  # errors name the path
        assert [{k: v for k, v in row.items() if k not in ("prev_hash", "hash")} for row in runs[0]] == [
            {k: v for k, v in row.items() if k not in ("prev_hash", "hash")} for row in runs[1]]


@pytest.mark.parametrize("forgery", FORGERIES, ids=lambda f: f.name)
def test_a_forged_log_is_rejected_at_its_row(forgery: Forgery) -> None:
    log, seq = forged(_scene(), forgery)
    rejected = monitor.judge(rows.of_dicts(log)).rejected
    assert rejected is not None
    assert rejected.seq == seq
    assert rejected.invariant.startswith("INV-")
    before = [row for row in log if row["seq"] < seq]
    late = [row["attempt_id"] for row in before]
    causes = [row["details"].get("attempt_id") for row in log if row["event"] in ("breaker.opened", "breaker.closed")]
    if not set(causes) & set(late):  # a breaker's row is read with its cause
        assert monitor.judge(rows.of_dicts(before)).accepted


@needs_spin
@pytest.mark.parametrize("forgery", FORGERIES, ids=lambda f: f.name)
def test_spin_agrees_on_a_forged_log(forgery: Forgery, follower: follow.Follower) -> None:
    log, seq = forged(_scene(), forgery)
    found = follower.follow(rows.of_dicts(log))
    assert not found.left_out
    if forgery.not_spin:
        assert found.rejected is None, "the table says that SPIN cannot see it"
    else:
        assert found.rejected is not None
        assert found.rejected.seq == seq


@needs_spin
def test_the_real_log_under_the_forgeries_is_accepted_by_both(follower: follow.Follower) -> None:
    log = rows.of_dicts(_scene())
    assert monitor.judge(log) == monitor.Verdict(len(log), len(log), 0, 0, 2, None)
    assert follower.follow(log).rejected is None
    assert len(FORGERIES) >= 30


def _at(wanted: str, **changes: Any) -> tuple[list[dict[str, Any]], int]:
    """The scene with the first row of an event changed, and its number."""
    log = copy.deepcopy(_scene())
    row = next(row for row in log if row["event"] == wanted)
    row |= {name: {**row[name], **value} if isinstance(value, dict) and row[name] else value for name, value in changes.items()}
    return log, row["seq"]


MALFORMED: Final[tuple[tuple[str, dict[str, Any]], ...]] = (
    ("reset.rolled_back", {"breaker": {"mode": "banana"}}),
    ("reset.rolled_back", {"breaker": {"generation": -1}}),
    ("reset.committed", {"breaker": {"generation": 2**40}}),
    ("reset.refused", {"new_version": 9}),
    ("breaker.opened", {"details": {"attempt_id": ["a"]}}),
    ("breaker.opened", {"details": {"scope": ["user"]}}),
    ("breaker.opened", {"details": {"from": {}}}),
    ("breaker.opened", {"details": {"generation": 2.5}}),
    ("breaker.forced", {"details": {"to": "banana"}}),
    ("breaker.forced", {"details": {"from": 5}}),
    ("breaker.released", {"details": {"generation": True}}),
    ("owner.fenced", {"details": {"fenced": "4"}}),
    ("owner.fenced", {"event": "user.forgotten", "details": {"seqs": 5}}),
    ("owner.fenced", {"event": "user.forgotten", "details": {"seqs": [[1, 2, 3]]}}),
    ("owner.fenced", {"event": "audit.pruned", "details": {"seqs": [[3, 2]]}}),
    ("owner.fenced", {"event": "audit.pruned", "details": {"seqs": [[-(10**12), 2]]}}),
    ("owner.fenced", {"event": "audit.pruned", "details": {"seqs": [[1, 10**12]]}}),
)


@needs_spin
@pytest.mark.parametrize(("event", "changes"), MALFORMED, ids=str)
def test_a_row_that_cannot_be_read_is_rejected_by_both(follower: follow.Follower, event: str, changes: dict[str, Any]) -> None:
    """An unknown mode was a KeyError of the one, and rows erased that are no rows a TypeError of the other."""
    log, seq = _at(event, **changes)
    judged, followed = monitor.judge(rows.of_dicts(log)).rejected, follower.follow(rows.of_dicts(log)).rejected
    assert judged is not None
    assert followed is not None
    assert (judged.seq, followed.seq) == (seq, seq)


def test_no_value_of_a_row_ends_the_monitor_in_an_error() -> None:
    """Each field, and each detail, of each row of the scene: every junk is accepted, rejected, or no row at all."""
    junk: tuple[Any, ...] = (
        None, 5, -1, 10**15, 2.5, True, "", "banana", "9" * 5_000 + " users", [], [5], {}, {"mode": "banana"},
        [[1, 2]],
    )
    judged = 0
    for number, row in enumerate(_scene()):
        places = [(row, name) for name in row] + [(row["details"], name) for name in (*row["details"], "seqs")]
        for place, name in places:
            for value in junk:
                made = {**row, name: value} if place is row else {**row, "details": {**place, name: value}}
                with contextlib.suppress(msgspec.ValidationError):
                    monitor.judge(rows.of_dicts([*_scene()[:number], made, *_scene()[number + 1:]]))
                    judged += 1
    assert judged > 1_000


def test_the_command_names_the_row_that_cannot_be_read(tmp_path: Path) -> None:
    log, seq = _at("reset.rolled_back", breaker={"mode": "banana"})
    done = conform(written(tmp_path / "log", log))
    assert done.returncode == 1
    assert f"at row     {seq}" in done.stdout
    assert "Traceback" not in done.stderr


def test_a_row_erased_without_an_anchor_is_rejected() -> None:
    """To say of a forged row that it was erased hid what was forged in it."""
    personal = dict.fromkeys(("user", "at", "trigger", "reason", "actor", "error"))
    blank: dict[str, Any] = {**personal, "erased": True, "details": {}, "operations": [], "violations": []}
    log = [dict(row) for row in _scene()]
    for number, row in enumerate(_scene(), 1):
        told = rows.of_dicts([*log[:number - 1], row | blank, *log[number:]])
        rejected = monitor.judge(told).rejected
        assert rejected is not None
        assert (rejected.seq, rejected.invariant) == (number, "INV-10")
    fence = next(row for row in log if row["event"] == "owner.fenced")
    anchor = fence | {"seq": len(log) + 1, "event": "audit.pruned", "attempt_id": "another", "details": {"seqs": [[2, 2]]}}
    assert monitor.judge(rows.of_dicts([log[0], log[1] | blank, *log[2:], anchor])).accepted
    half = monitor.judge(rows.of_dicts([log[0], log[1] | blank | {"user": "u1"}, *log[2:], anchor])).rejected
    assert half is not None
    assert (half.seq, half.invariant) == (2, "INV-10")


def test_rows_that_were_erased_are_counted_as_judged_in_part() -> None:
    log = [dict(row) for row in _scene()]
    anchor = dict(next(row for row in log if row["event"] == "owner.fenced"))
    personal = dict.fromkeys(("user", "at", "trigger", "reason", "actor", "error"))
    for row in log[:6]:
        row |= {**personal, "erased": True, "details": {}, "operations": [], "violations": []}
    log.append(anchor | {"seq": len(log) + 1, "event": "audit.pruned", "attempt_id": "another", "details": {"seqs": [[1, 6]]}})
    verdict = monitor.judge(rows.of_dicts(log))
    assert verdict.accepted
    assert verdict.in_part >= 6
    assert verdict.in_full + verdict.in_part == len(log)
    log[3]["attempt_id"] = log[2]["attempt_id"]
    rejected = monitor.judge(rows.of_dicts(log)).rejected
    assert rejected is not None
    assert (rejected.seq, rejected.invariant) == (4, "INV-03")


def test_a_log_that_begins_late_is_judged_from_there() -> None:
    log = rows.of_dicts(_scene())[9:]
    verdict = monitor.judge(log)
    assert verdict.accepted
    assert verdict.in_part > 0


def test_the_log_of_killed_processes_is_accepted(tmp_path: Path) -> None:
    source, store = tmp_path / "rows.csv", tmp_path / "store"
    rng = random.Random(7)
    with source.open("w", encoding="utf-8") as file:
        file.write("user_id,timestamp,weight,unit,source\n")
        for number in range(6_000):
            day = number // 20 + (60 if number > 3_000 else 0)
            month = 1 + day // 28 % 12
            weight = 70 + rng.gauss(0, 0.2) + (15 if rng.random() < 0.02 else 0)
            at = f"{2020 + day // 336}-{month:02d}-{1 + day % 28:02d}T08:{number % 60:02d}:00Z"
            file.write(f"u{number % 20},{at},{weight:.2f},kg,scale\n")
    command = [sys.executable, "-m", "statemachine.cli", "process", str(source), "--store", str(store), "--json"]
    for _ in range(3):
        victim = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(rng.uniform(0.4, 0.9))
        victim.send_signal(signal.SIGKILL)
        victim.wait()
    assert subprocess.run(command, capture_output=True, check=False).returncode in (0, 1)
    with Store.open(store, readonly=True) as opened:
        verdict = monitor.judge(rows.of_store(opened))
    assert verdict.accepted, verdict.rejected
    assert verdict.in_full == verdict.rows > 20
    done = conform("--store", store, "--no-spin")
    assert done.returncode == 0, done.stderr


def test_the_command_accepts_a_log_and_names_the_row_of_a_forged_one(tmp_path: Path) -> None:
    done = conform(written(tmp_path / "log", _scene()), "--json", "--no-spin")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["monitor"]["rows_in_full"] == len(_scene())
    log, seq = forged(_scene(), FORGERIES[0])
    done = conform(written(tmp_path / "log", log), "--no-spin")
    assert done.returncode == 1
    assert f"at row     {seq}" in done.stdout
    assert "INV-03" in done.stdout


@needs_spin
def test_the_command_asks_spin_where_it_is_installed(tmp_path: Path) -> None:
    log, seq = forged(_scene(), FORGERIES[2])
    document = json.loads(conform(written(tmp_path / "log", log), "--json").stdout)
    assert document["spin"]["rejected"]["seq"] == document["monitor"]["rejected"]["seq"] == seq


@pytest.mark.parametrize(("text", "said"), [
    ("nonsense\n", "line 1: JSON is malformed"),
    ('{"seq": 1, "event": "reset.committed"}\n', "missing required field `owner`"),
    ('{"seq": 1, "event": "a", "owner": 2}\n{"seq": "2", "event": "a", "owner": 2}\n', "line 2: Expected `int`, got `str`"),
    ("[]\n", "Expected `object`, got `array`"),
])
def test_a_file_that_is_no_log_is_wrong_use(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "log"
    path.write_text(text, encoding="utf-8")
    done = conform(path)
    assert done.returncode == 2
    assert said in done.stderr
    assert "resetguard audit list --json" in done.stderr


def test_wrong_use_and_a_store_that_is_not_there(tmp_path: Path) -> None:
    assert conform().returncode == 2
    assert conform(tmp_path / "none").returncode == 2
    done = conform("--store", tmp_path / "none")
    assert done.returncode == 2
    assert "no store at" in done.stderr
    assert "Example: resetguard audit list --json" in conform("--help").stdout
