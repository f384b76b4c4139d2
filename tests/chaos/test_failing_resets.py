"""Resets that always fail, on the data of one user among many, in real processes: refused for that user alone, others unmoved.

The failing mutation comes in as it would in life: an estimator whose reset goes wrong for one reading.  What the others have
afterwards is compared, states byte by byte, with a run in which those readings never came.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from statemachine import (
    BodyWeight,
    BreakerOpen,
    BreakerPolicy,
    Measurement,
    MutationFailed,
    Operation,
    Processor,
    Reading,
    ResetManager,
    ResetParameters,
    Store,
)
from statemachine.processor import SourceRow
from statemachine.store import keys
from statemachine.testing import snapshot
from tests.chaos.test_process_killed import command
from tests.regression.scene import BY, PRESENT_US, START, StillClock, broken, fill, head, opened, weighed, working
from tests.unit.processes import SECONDS_MAX, answer, line, ran, started

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.usefixtures("no_events")

BAD: Final = "mallory"
BAD_KG: Final = 87.0
POLICY: Final = BreakerPolicy(failures_max=3, cooldown_s=3_600.0, suspects_max=3)
BURST: Final = (0, 5, 10, 15, 20, 90, 95)
"""Minutes of the bad readings: three failures, two refusals, the one probe after the cooldown, a refusal."""


def raises(state: Any) -> Any:
    broken(state)


def invalid(state: Any) -> Any:
    return state.replace(p00=-1.0)


def exits(_: Any) -> Any:
    os._exit(3)


def crashes(_: Any) -> Any:
    ctypes.string_at(0)


def is_killed(_: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


WRONG: Final[dict[str, Callable[[Any], Any]]] = {
    f.__name__: f for f in (raises, invalid, exits, crashes, is_killed)
}
DEATHS: Final = {"exits": 3, "crashes": -signal.SIGSEGV, "is_killed": -signal.SIGKILL}


class Wrong(BodyWeight):
    """Body weight whose resets go wrong, in the way that is named, for readings of `BAD_KG`."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self._wrong = WRONG[how]

    def operations(self, how: ResetParameters, reading: Reading | None, at_us: int) -> tuple[Operation, ...]:
        usual = super().operations(how, reading, at_us)
        if reading is not None and reading.values[0] == BAD_KG:
            return (usual[0], Operation("go wrong", self._wrong), *usual[1:])
        return usual


def rows(bad: tuple[int, ...]) -> list[SourceRow]:
    """Four users by day, some with resets of their own, and one whose readings of the given minutes are bad ones.

    Each row has the number that it has among all, so that leaving the bad ones out renumbers nobody.
    """
    def of(user: str, kg: float, source: str = "scale", **after: float) -> Measurement:
        return Measurement(user, START + timedelta(**after), kg, source)

    found = [of(f"u{number}", 60.0 + number + day / 100, days=day, minutes=number) for number in range(4) for day in range(60)
             if not (number % 2 and 10 <= day < 45)]  # half of them have a gap, and so a reset
    found += [of(BAD, 80.0 + day / 100, days=day, minutes=30) for day in (*range(35), 50, 51)]
    found += [of(BAD, BAD_KG, "manual", days=45, minutes=minute) for minute in BURST]
    found.append(of(BAD, 73.0, "manual", days=60))  # its reset succeeds
    found.sort(key=lambda m: (m.at, m.user))
    wanted = {START + timedelta(days=45, minutes=minute) for minute in bad}
    return [SourceRow(row, m) for row, m in enumerate(found) if m.weight_kg != BAD_KG or m.at in wanted]


def run(path: Path, how: str, durability: str, bad: tuple[int, ...]) -> None:
    """What the child does: all rows through the processor, by commits of their own in `each`, in batches in `group`."""
    clock = StillClock()
    with Store.open(path, estimator=Wrong(how), durability=durability, clock=clock) as store:  # type: ignore[arg-type]
        processor = Processor(ResetManager(store, breaker=POLICY))
        if durability == "group":
            intake = processor.intake([(bytes(16), "rows")], lambda _, __: None)
            for row in rows(bad):
                intake.add(0, row)
            intake.flush()
            return
        for row in rows(bad):
            assert row.measurement is not None
            clock.wall_us = row.measurement.at_us
            processor.process(row.measurement)


PROGRAM: Final = """
from tests.chaos.test_failing_resets import run
run(path, sys.argv[2], sys.argv[3], tuple(int(minute) for minute in sys.argv[4:]))
"""


def runs(path: Path, how: str, durability: str, bad: tuple[int, ...]) -> list[int]:
    """Run the child until it comes to its end; how it ended each time."""
    codes = list[int]()
    while not codes or codes[-1] != 0:
        child = started(PROGRAM, path, how, durability, *bad)
        _, trouble = child.communicate(timeout=SECONDS_MAX)
        codes.append(child.returncode)
        assert len(codes) < 10, trouble
        assert child.returncode in (0, *DEATHS.values()), trouble
    return codes


def of_others(store: Store) -> dict[str, Any]:
    """All that is stored of the other users, decoded but for the states, which are bytes; the ids of attempts left out."""
    all_of_it = snapshot(store)
    return {
        "users": {user: found for user, found in all_of_it["users"].items() if user != BAD},
        "outcomes": {key: count for key, count in all_of_it["outcomes"].items() if key[0] not in ("", BAD)},
        "kept": [kept for kept in all_of_it["kept"] if kept.user != BAD],
    }


def assert_others_unmoved(path: Path, without: Path) -> None:
    """The other users have what they have in a run without the bad readings, and that is not little."""
    with opened(path) as one, opened(without) as other:
        expected = of_others(other)
        assert of_others(one) == expected
        assert len(expected["users"]) == 4
        assert {key[2] for key in expected["outcomes"]} == {"initial", "gap"}
        assert one.verify_audit().problem == ""
        ids = [row.public.attempt_id for row in one.audit() if row.public.attempt_id]
        assert len(ids) == len(set(ids))


def attempts(store: Store) -> list[str]:
    """How the resets of the bad user by its manual entries ended, in the order of their instants."""
    found = [row for row in store.audit(BAD) if row.public.kind == "manual-entry" and row.public.event.startswith("reset.")]
    return [row.public.outcome for row in sorted(found, key=lambda row: row.personal.at_us or 0)]


@pytest.mark.parametrize("durability", ["each", "group"])
@pytest.mark.parametrize("how", ["raises", "invalid"])
def test_a_reset_that_always_fails_is_refused_for_its_user_alone(tmp_path: Path, how: str, durability: str) -> None:
    """After three failures refused, after the cooldown one probe, refused again, at last a good reading; nobody else is moved."""
    assert runs(tmp_path / "bad", how, durability, BURST) == [0]
    assert runs(tmp_path / "without", how, durability, ()) == [0]
    assert_others_unmoved(tmp_path / "bad", tmp_path / "without")
    with opened(tmp_path / "bad") as store:
        ended = ["rolled_back"] * 3 + ["refused"] * 2 + ["rolled_back"] + ["refused"] + ["committed"]
        assert attempts(store) == ended
        refused = [row for row in store.audit(BAD) if row.public.outcome == "refused"]
        assert all("circuit breaker refused" in row.personal.error and "(open)" in row.personal.error for row in refused)
        kept = [kept.value for kept in store.quarantine(BAD)]
        assert kept == [str(BAD_KG)] * len(BURST), "no measurement was lost"
        assert ResetManager(store).breaker(None).mode == "closed"


@pytest.mark.parametrize("durability", ["each", "group"])
@pytest.mark.parametrize("how", list(DEATHS))
def test_a_reset_that_kills_the_process_is_refused_as_suspect(tmp_path: Path, how: str, durability: str) -> None:
    """Three deaths, then its measurement is quarantined and all goes on: no breaker opens, and nobody else is moved."""
    assert runs(tmp_path / "bad", how, durability, (0,)) == [DEATHS[how]] * POLICY.suspects_max + [0]
    assert runs(tmp_path / "without", how, durability, ()) == [0]
    assert_others_unmoved(tmp_path / "bad", tmp_path / "without")
    with opened(tmp_path / "bad") as store:
        assert Counter(attempts(store)) == {"interrupted": POLICY.suspects_max, "refused": 1, "committed": 1}
        kept = list(store.quarantine(BAD))
        assert [one.value for one in kept] == [str(BAD_KG)]
        assert "suspect" in kept[0].reason
        for user in (BAD, None):
            assert ResetManager(store).breaker(user).mode == "closed"
        assert head(store, BAD).kalman.x0 == 73.0, "its later readings were taken"


# By hand, and the breaker's life over deaths

def raw_breaker(store: Store, user: str) -> bytes | None:
    """The stored bytes of a user's breaker."""
    return store.engine.get(keys.breaker(user.encode()))


OPENS: Final = """
from tests.chaos.test_failing_resets import POLICY
from tests.regression.scene import PRESENT_US, StillClock, broken
store = opened(path, clock=StillClock(PRESENT_US + int(float(sys.argv[2]) * 1_000_000)))
manager = ResetManager(store, breaker=POLICY)
def fail(mutation=broken):
    try:
        manager.perform_reset("ann", operations=[("break", mutation)], **BY)
    except ResetError as error:
        return f"{error.kind} {getattr(error, 'reason', '')}".strip()
"""


def attempt(path: Path, seconds: float, mutation: Callable[[Any], Any] = broken) -> str:
    """The kind and reason of the error of a reset by hand in this process, so long after the present; "committed" where none."""
    with opened(path, clock=StillClock(PRESENT_US + int(seconds * 1e6))) as store:
        try:
            ResetManager(store, breaker=POLICY).perform_reset("ann", operations=[("try", mutation)], **BY)
        except BreakerOpen as error:
            return f"breaker-open {error.reason}"
        except MutationFailed:
            return "mutation-failed"
        return "committed"


def test_killed_while_open_it_is_open(tmp_path: Path) -> None:
    """SIGKILL of the process that opened it: the record is the same to the byte, and refuses until its cooldown is over."""
    path = tmp_path / "store"
    for user in ("ann", "bob"):
        fill(path, user, [80.0, 80.1])
    child = started(OPENS + """
for _ in range(5):
    say(fail())
say(store.engine.get(keys.breaker(b"ann")).hex())
heard()
""", path, 0)
    assert [line(child) for _ in range(5)] == ["mutation-failed"] * 3 + ["breaker-open open"] * 2
    stored = bytes.fromhex(line(child))
    child.kill()
    child.communicate()
    with opened(path, readonly=True) as store:
        assert raw_breaker(store, "ann") == stored
    with opened(path) as store:
        assert raw_breaker(store, "ann") == stored
        assert ResetManager(store).breaker("ann").mode == "open"
        assert ResetManager(store).perform_reset("bob", **BY).outcome == "committed"
    assert attempt(path, 3_500.0) == "breaker-open open"
    assert attempt(path, 3_600.0 * (1 + POLICY.jitter), lambda s: s) == "committed"
    with opened(path) as store:
        rows_of_ann = Counter(row.public.outcome for row in store.audit("ann") if row.public.event.startswith("reset."))
        assert rows_of_ann == {"committed": 2, "rolled_back": 3, "refused": 3}


def test_killed_while_half_open_the_next_one_probes(tmp_path: Path) -> None:
    """SIGKILL within the probe: half-open stays stored until an opening settles it; opened as before, its slot given back."""
    path, later = tmp_path / "store", 4_000.0
    fill(path, "ann", [80.0, 80.1])
    assert ran(OPENS + "say(*[fail() for _ in range(4)]); store.close()", path, 0).endswith("breaker-open open")
    with opened(path, readonly=True) as store:
        before = ResetManager.breaker(ResetManager(store), "ann")
    child = started(OPENS + "fail(lambda s: say('probing') or heard())", path, later)
    assert line(child) == "probing"
    with opened(path, readonly=True) as store:
        leased = raw_breaker(store, "ann")
        assert ResetManager(store).breaker("ann").mode == "half-open"
    assert attempt(path, later) == "breaker-open probing", "its holder lives"
    child.kill()
    child.communicate()
    with opened(path, readonly=True) as store:
        assert raw_breaker(store, "ann") == leased
    with opened(path) as store:
        after = ResetManager(store).breaker("ann")
    assert (after.mode, after.probe, after.cooled) == ("half-open", "", False)
    kept = ("openings", "opened_us", "opened_wall_us", "base", "failures")
    assert [getattr(after, name) for name in kept] == [getattr(before, name) for name in kept]
    assert after.generation > before.generation
    assert attempt(path, later, lambda s: s) == "committed"


def test_one_probe_runs_after_the_cooldown_however_many_ask(tmp_path: Path) -> None:
    """Four processes try at once when the cooldown is over: user code runs in one of them, the others are refused."""
    path, later = tmp_path / "store", 4_000.0
    fill(path, "ann", [80.0, 80.1])
    assert ran(OPENS + "say(*[fail() for _ in range(4)]); store.close()", path, 0).endswith("breaker-open open")
    program = OPENS + """
ran_here = []
def slow(state):
    ran_here.append(1)
    time.sleep(1.0)
    raise KeyError("still broken")
say("ready")
heard()
say(fail(slow), len(ran_here))
store.close()
"""
    children = [started(program, path, later) for _ in range(4)]
    assert [line(child) for child in children] == ["ready"] * 4
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    said = sorted(answer(child) for child in children)
    assert said[-1] == "mutation-failed 1"
    assert set(said[:-1]) <= {"breaker-open probing 0", "breaker-open open 0"}
    with opened(path) as store:
        outcomes = Counter(row.public.outcome for row in store.audit("ann") if row.public.event.startswith("reset."))
        assert outcomes == {"committed": 1, "rolled_back": 4, "refused": 4}


# Healthy processes that are killed, and stopped ones that are fenced

def write_healthy(path: Path, count: int, users: int) -> None:
    """Daily readings with gaps, and so with resets that all succeed."""
    with path.open("w", encoding="utf-8") as file:
        file.write("user_id,timestamp,weight,unit,source\n")
        for number in range(count):
            user, day = number % users, number // users
            day += 40 * (day // (10 + user % 7))
            at = START - timedelta(days=3_000) + timedelta(days=day, seconds=user)
            file.write(f"user{user:05d},{at.isoformat()},{60 + user % 40 + (day % 10) / 20:.2f},kg,scale\n")


def check_killed(tmp_path: Path, count: int, users: int, kills: int) -> None:
    """Kill a healthy run so often at random instants; at its end no breaker has ever opened, and nobody is suspect."""
    source, path, rng = tmp_path / "rows.csv", tmp_path / "store", random.Random(5)
    write_healthy(source, count, users)
    landed = 0
    for _ in range(3 * kills):
        victim = subprocess.Popen(command(source, path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(rng.uniform(0.5, 1.5))
        if victim.poll() is None:
            victim.kill()
            landed += 1
        if victim.wait() == 0 or landed == kills:
            break
    assert landed == kills, "the kills must land in a running process"
    last = subprocess.run(command(source, path), capture_output=True, text=True, check=False)
    assert last.returncode == 0, last.stderr
    assert json.loads(last.stdout)["source_totals"]["read"] == count
    with opened(path) as store:
        outcomes = Counter((row.public.event, row.public.outcome) for row in store.audit())
        assert {outcome for _, outcome in outcomes} <= {"committed", "interrupted", "conflicted"}
        assert not [event for event, _ in outcomes if event.startswith("breaker.")]
        assert outcomes["reset.committed", "committed"] > users, "there must have been resets to kill"
        manager = ResetManager(store)
        for user in (None, *store.users()):
            breaker = manager.breaker(user)
            assert (breaker.mode, breaker.failures, breaker.generation, breaker.suspects) == ("closed", 0, 0, ())
        assert store.verify_audit().problem == ""


def test_kills_of_a_healthy_run_open_no_breaker(tmp_path: Path) -> None:
    """Three random kills of `process` in group mode leave every breaker closed, and nobody suspect."""
    check_killed(tmp_path, 30_000, 300, 3)


@pytest.mark.slow
def test_twenty_kills_of_a_healthy_run_open_no_breaker(tmp_path: Path) -> None:
    """Twenty random kills of `process` in group mode leave every breaker closed, and nobody suspect."""
    check_killed(tmp_path, 800_000, 2_000, 20)


def stored(path: Path) -> dict[bytes, bytes]:
    """All records, as they are, by an opening that changes nothing."""
    with opened(path, readonly=True) as store:
        return dict(store.engine.scan(b"", b"\xff" * 8))


def fence(path: Path) -> None:
    """Fence the one other owner by the command, as an operator does."""
    base = [sys.executable, "-m", "statemachine.cli", "recover", "--store", str(path)]
    listed = subprocess.run([*base, "--list", "--json"], capture_output=True, text=True, check=True)
    [owner] = [json.loads(row)["owner"] for row in listed.stdout.splitlines()]
    done = subprocess.run([*base, "--fence", str(owner), "--actor", "ops@example.org", "--reason", "it is stopped"],
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_an_attempt_that_was_fenced_while_stopped_commits_nothing(tmp_path: Path) -> None:
    """Stopped within a mutation, fenced, woken: its commit is refused and changes no byte; one outcome tells of it."""
    path = tmp_path / "store"
    for user in ("ann", "bob"):
        fill(path, user, [80.0, 80.1])
    child = started("""
        with working(path) as (store, manager, processor):
            def slow(state):
                say("in the mutation")
                heard()
                return state.replace(x0=99.0)
            for user, call in (("ann", lambda: manager.perform_reset("ann", operations=[("slow", slow)], **BY)),
                               ("bob", lambda: processor.process(weighed("bob", 5, 80.0))),
                               ("nobody", lambda: store.commit(store.draft()))):
                try:
                    call()
                    say("committed")
                except StoreUnavailable as error:
                    say("fenced" if "fenced" in str(error) else error)
    """, path)
    assert line(child) == "in the mutation"
    child.send_signal(signal.SIGSTOP)
    fence(path)
    with working(path) as (store, manager, processor):
        assert manager.perform_reset("ann", **BY).version == 3
        assert processor.process(weighed("bob", 3, 80.2)).version == 3
    before = stored(path)
    child.send_signal(signal.SIGCONT)
    assert answer(child, "go on\n").split() == ["fenced", "fenced", "fenced"]
    assert stored(path) == before
    with opened(path) as store:
        assert head(store, "ann").kalman.x0 < 81.0
        assert Counter(row.public.outcome for row in store.audit("ann")) == {"committed": 2, "rolled_back": 1}
        assert store.verify_audit().problem == ""


def test_a_run_that_was_fenced_while_stopped_commits_nothing(tmp_path: Path) -> None:
    """`process` stopped in the middle of its rows, fenced, woken: it ends in error, and not one record is another."""
    source, path = tmp_path / "rows.csv", tmp_path / "store"
    write_healthy(source, 40_000, 100)
    child = subprocess.Popen(command(source, path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and child.poll() is None:
        time.sleep(0.05)
        with contextlib.suppress(Exception), opened(path, readonly=True) as store:
            if any(store.users()):
                break
    child.send_signal(signal.SIGSTOP)
    assert child.poll() is None, "it must have been stopped before its end"
    fence(path)
    before = stored(path)
    child.send_signal(signal.SIGCONT)
    _, trouble = child.communicate(timeout=SECONDS_MAX)
    assert child.returncode == 3, trouble
    assert "fenced" in trouble
    assert "Traceback" not in trouble
    assert stored(path) == before
    again = subprocess.run(command(source, path), capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["source_totals"]["read"] == 40_000
