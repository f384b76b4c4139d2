"""`recovery`: a writer is killed at N users with attempts under way; how long until the store serves again, and is it sound.

The store is built by `resetguard process` from three readings of each user, which takes minutes for a million: give
`--keep DIR` to keep it there and use it again.  Pages may be in the page cache, as they are after a process died; after a
reboot the first reads come from the disk.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import command, data, floor

if TYPE_CHECKING:
    from benchmarks.settings import Settings

READINGS_A_USER = 3
ATTEMPTS = 8
WRITING_S = 1.0
ROOT = Path(__file__).parents[1]

WRITER = """
import itertools, sys
from datetime import timedelta
from benchmarks.data import FIRST
from statemachine import Measurement, Processor, ResetManager, Store
from statemachine.audit import configure_for_command
configure_for_command(verbose=False)
users, attempts = int(sys.argv[2]), int(sys.argv[3])
store = Store.open(sys.argv[1], durability="group")
manager = ResetManager(store)
processor = Processor(manager)
under_way = [manager.transaction(f"user-{n:06d}", reason="benchmark", actor="benchmark") for n in range(attempts)]
for transaction in under_way:
    transaction.__enter__()
began = store.load(f"user-{users - 1:06d}").state.kalman.at_us
for day in itertools.count(1):
    if day == 2:
        print("writing", flush=True)
    at = FIRST + timedelta(microseconds=began - int(FIRST.timestamp() * 1_000_000), days=day)
    processor.process_batch([Measurement(f"user-{n:06d}", at, 80.0, "scale") for n in range(attempts, min(users, 2_000))])
"""

REOPENED = """
import json, sys, time
from statemachine import ResetManager, Store
from statemachine.audit import configure_for_command
configure_for_command(verbose=False)
user, taken = f"user-{int(sys.argv[2]) - 1:06d}", {}
def timed(name, run):
    began = time.perf_counter()
    found = run()
    taken[name] = (time.perf_counter() - began) * 1e3
    return found
looked = timed("open_for_reading_ms", lambda: Store.open(sys.argv[1], readonly=True))
assert timed("first_verified_read_ms", lambda: looked.load(user)).violations == ()
looked.close()
store = timed("open_and_settle_ms", lambda: Store.open(sys.argv[1], durability="group"))
manager = ResetManager(store)
timed("read_ms", lambda: store.load(user))
timed("first_durable_commit_ms", lambda: manager.perform_reset(user, kind="admin", reason="benchmark", actor="benchmark"))
settled = store.interrupted
store.close()
print(json.dumps(taken | {"settled": settled}))
"""


def recovery(settings: Settings) -> list[dict[str, Any]]:
    """Kill a writer in group mode with attempts under way, then open, read, commit and examine the store."""
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=settings.directory) as folder:
        place = settings.keep or Path(folder)
        store = _built(place, settings.users)
        before = floor.measure(place)
        _killed(store, settings.users)
        reopened = json.loads(_python(REOPENED, str(store), str(settings.users)))
        after = floor.measure(place)
        doctor = _doctor(store)
    worst = floor.Floor(max(before.p50_ms, after.p50_ms), max(before.p99_ms, after.p99_ms))
    restored_ms = sum(reopened[name] for name in ("open_and_settle_ms", "read_ms", "first_durable_commit_ms"))
    return [{
        "users": settings.users, "records": doctor["records"], "store_mib": doctor["store_mib"],
        "attempts_under_way": ATTEMPTS, "attempts_settled": reopened.pop("settled"),
        **{name: round(value, 2) for name, value in reopened.items()}, "service_restored_ms": round(restored_ms, 2),
        "doctor_seconds": doctor["seconds"], "doctor_findings": doctor["findings"],
        "floor_p50_ms": round(worst.p50_ms, 3), "floor_p99_ms": round(worst.p99_ms, 3), "ratios_mean_something": worst.meaningful,
        "commit_to_floor": round(reopened["first_durable_commit_ms"] / worst.p50_ms, 1),
    }]


def _built(place: Path, users: int) -> Path:
    """The store of so many users, made unless it is there from an earlier run."""
    store = place / f"store-{users}"
    if not store.exists():
        place.mkdir(parents=True, exist_ok=True)
        building, readings = place / f"store-{users}.part", place / f"readings-{users}.csv"
        shutil.rmtree(building, ignore_errors=True)
        data.write_readings(readings, users * READINGS_A_USER, users)
        command.process(readings, building, stream=True)
        readings.unlink()
        building.rename(store)
    return store


def _killed(store: Path, users: int) -> None:
    """Start the writer, let it commit for a while, and kill it."""
    child = subprocess.Popen([sys.executable, "-c", WRITER, str(store), str(users), str(ATTEMPTS)],  # noqa: S603 - built here
                             env=_environment(), stdout=subprocess.PIPE, text=True)
    with child:
        if child.stdout is None or child.stdout.readline() != "writing\n":
            message = "the writer ended before it was killed"
            raise RuntimeError(message)
        time.sleep(WRITING_S)
        child.send_signal(signal.SIGKILL)


def _doctor(store: Path) -> dict[str, Any]:
    document = json.loads(_python("from statemachine.cli import main; main()", "doctor", "--store", str(store), "--json"))
    return {"records": document["checks"][0]["looked_at"], "seconds": document["seconds"],
            "findings": sum(check["findings"] for check in document["checks"] if check["check"] != "disk"),
            "store_mib": round((store / "data.mdb").stat().st_size / 2**20)}


def _python(program: str, *arguments: str) -> str:
    ran = subprocess.run([sys.executable, "-c", program, *arguments],  # noqa: S603 - built here
                         env=_environment(), stdout=subprocess.PIPE, text=True, check=False)
    if ran.returncode not in (0, command.FINDINGS):
        message = f"a program of the benchmark ended with {ran.returncode}"
        raise RuntimeError(message)
    return ran.stdout


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))}
