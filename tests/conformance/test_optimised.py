"""`python -O` removes asserts, and must remove no check: every rejection and illegal transition still raises under it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]

SCRIPT: Final = """
import sys
from datetime import UTC, datetime, timedelta
from statemachine import *
from statemachine.machine import NEXT, TABLE, Guard
from statemachine.clock import to_us
from statemachine.ingest import Options, open_source
from statemachine.store.engine import Engine
import numpy as np

if __debug__:
    raise SystemExit("not optimised: the script proves nothing")
try:
    assert False
except AssertionError:
    raise SystemExit("asserts run: the script proves nothing")

START = datetime(2026, 1, 5, 7, tzinfo=UTC)
BY = {"reason": "a test", "actor": "tester@example.org"}
done = []

def must(kind, call, *args, **named):
    try:
        answer = call(*args, **named)
    except kind as error:
        done.append(kind.__name__)
        return error
    raise SystemExit(f"{kind.__name__} was not raised: {call} gave {answer!r}")

def equal(found, wanted):
    if found != wanted:
        raise SystemExit(f"{found!r} is not {wanted!r}")
    done.append("equal")

def illegal_transitions():
    for live in (False, True):
        for phase in Phase:
            for trigger in {*(row[0] for row in TABLE), "explode"}:
                if (phase, trigger) not in NEXT:
                    guard = Guard(live=live)
                    guard.state = phase
                    must(InvalidTransition, guard.fire, trigger)
                    must(InvalidTransition, guard.check, trigger)
                    equal(guard.phase, phase)

def bad_input(path):
    must(InvalidInput, Measurement, "", START, 80.0)
    must(InvalidInput, Measurement, "a\\0b", START, 80.0)
    must(InvalidInput, Measurement, "x" * 256, START, 80.0)
    must(InvalidInput, Measurement, "u", START.replace(tzinfo=None), 80.0)
    must(InvalidInput, Measurement, "u", "2026-01-05", 80.0)
    must(InvalidInput, Measurement, "u", START, "heavy")
    must(InvalidInput, Measurement, "u", START, 80.0, "s" * 201)
    must(InvalidInput, open_source, path + ".csv", Options())
    must(InvalidInput, open_source, "-", Options(unit="BMI"))

def rejections(store, manager, processor):
    day = timedelta(days=1)
    for number in range(3):
        equal(processor.process(Measurement("u", START + number * day, 80.0)).status, "accepted")
    state = store.load("u").state
    for name, change in {
        "indefinite": {"P": [[1.0, 5.0], [5.0, 1.0]]}, "asymmetric": {"P": [[1.0, 0.1], [0.2, 1.0]]}, "NaN": {"x0": float("nan")},
        "infinite": {"p00": float("inf")}, "negative": {"p11": -1.0}, "R": {"r": 0.0}, "Q": {"q0": -1.0}, "light": {"x0": 1.0},
        "text": {"x0": "80"}, "numpy": {"x0": np.float64(80.0)}, "bool": {"at_us": True}, "future": {"at_us": 2**62},
        "buffer": {"buffer": ((1, 80.0), (1, 80.0))}, "later": {"buffer": ((2**61, 80.0),)}, "list": {"packed": [(1, 80.0)]},
    }.items():
        equal(bool(store.validator.validate(state.replace(**change), to_us(datetime.now(UTC)))), True)
        must(ResetValidationError, manager.perform_reset, "u", operations=[(name, lambda s, c=change: s.replace(**c))], **BY)
    must(MutationFailed, manager.perform_reset, "u", operations=[("none", lambda s: None)], **BY)
    must(MutationFailed, manager.perform_reset, "u", operations=[("raises", lambda s: 1 / 0)], **BY)
    must(InvalidInput, state.replace, weight=1)
    must(InvalidInput, state.replace, P=[1.0])
    must(InvalidInput, manager.perform_reset, "u", "whim", **BY)
    must(InvalidInput, manager.perform_reset, "u", reason=" ", actor="a")
    must(InvalidInput, manager.perform_reset, "u", reason="r", actor="")
    must(UserUnknown, manager.perform_reset, "nobody", **BY)
    must(ConflictError, manager.perform_reset, "u", expect_version=2, **BY)
    must(VersionPruned, store.load, "u", 9)
    must(VersionPruned, manager.restore, "u", to_version=0, **BY)
    for weight, status in ((float("nan"), "quarantined"), (-1.0, "quarantined"), (80.0, "duplicate")):
        at = START + (2 * day if status == "duplicate" else 3 * day)
        equal(processor.process(Measurement("u", at, weight)).status, status)
    equal(processor.process(Measurement("u", START, 81.0)).status, "late")
    equal(processor.process(Measurement("u", START + 100_000 * day, 80.0)).status, "quarantined")
    for array in (state.x, state.P, state.Q):
        must(ValueError, array.fill, 0.0)
    must(AttributeError, setattr, state, "buffer", ())
    equal(store.load("u").version, 3)

def contracts(store, manager):
    tx = manager.transaction("u", **BY)
    tx.begin()
    must(InvalidTransition, tx.commit)
    tx.apply("fine", lambda s: s)
    other = manager.transaction("u", **BY)
    other.begin()
    other.apply("fine", lambda s: s)
    tx.commit()
    must(ConflictError, other.commit)
    must(InvalidTransition, tx.commit)
    must(InvalidTransition, tx.apply, "late", lambda s: s)
    must(InvalidTransition, tx.roll_back)
    def leaves():
        with manager.transaction("u", **BY):
            raise KeyError("mine")
    must(KeyError, leaves)
    must(StoreUnavailable, Store.open, store.path)
    must(InvalidInput, Store.open, store.path, durability="hope")

def refusals(store):
    strict = ResetManager(store, breaker=BreakerPolicy(failures_max=1))
    must(MutationFailed, strict.perform_reset, "u", operations=[("raises", lambda s: 1 / 0)], **BY)
    must(BreakerOpen, strict.perform_reset, "u", **BY)

def main(path):
    illegal_transitions()
    bad_input(path)
    with Store.open(path) as store:
        manager = ResetManager(store, breaker=BreakerPolicy(failures_max=1000, failure_rate_max=None))
        rejections(store, manager, Processor(manager))
        contracts(store, manager)
        refusals(store)
        equal(store.verify_audit().problem, "")
    must(StoreUnavailable, store.load, "u")
    print("rejections:", len(done), len(set(done)))

main(sys.argv[1])
"""


def run(flags: list[str], script: str, path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *flags, "-W", "error", "-c", script, str(path / "store")], cwd=ROOT, capture_output=True, text=True,
        timeout=60, check=False,
    )


@pytest.mark.parametrize("flag", ["-O", "-OO"])
def test_rejections_reject_when_optimised(flag: str, tmp_path: Path) -> None:
    """Every rejection and every illegal transition raises what it raises without `-O`."""
    done = run([flag], SCRIPT, tmp_path)
    assert done.returncode == 0, done.stdout[-2_000:] + done.stderr[-2_000:]
    _, rejections, kinds = done.stdout.splitlines()[-1].split()
    assert int(rejections) > 200
    assert int(kinds) >= 10


def test_the_script_notices_that_it_is_not_optimised(tmp_path: Path) -> None:
    """Without `-O` the script refuses to prove anything."""
    done = run([], SCRIPT, tmp_path)
    assert "proves nothing" in done.stderr
    assert done.returncode != 0


def test_the_script_notices_a_check_that_is_gone(tmp_path: Path) -> None:
    """With a validator that passes everything, as after asserts were removed, the script fails."""
    hole = "import statemachine.validation as v\nv.StateValidator.validate = lambda *_: ()\n"
    done = run(["-O"], hole + SCRIPT, tmp_path)
    assert done.returncode != 0
    assert "is not" in done.stderr or "not raised" in done.stderr
