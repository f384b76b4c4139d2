"""`recovery`: a writer is killed at N users with attempts under way; how long until the store serves again, and is it sound.

The store is built by `resetguard process` from three readings of each user, which takes minutes for a million: give
`--keep DIR` to keep it there and use it again.  Pages may be in the page cache, as they are after a process died; after a
reboot the first reads come from the disk.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import command, data

if TYPE_CHECKING:
    from benchmarks.settings import Settings

READINGS_A_USER = 3
ATTEMPTS = 8
WRITING_S = 1.0
USERS = 2_000

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
try:
    lines = open("/proc/self/status", encoding="ascii").readlines()
except OSError:
    lines = []
rss_mib = next((float(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")), 0.0)
print(json.dumps(taken | {"settled": store.interrupted, "rss_mib": rss_mib}), flush=True)
store.close()
"""


def recovery(settings: Settings) -> list[dict[str, Any]]:
    """Kill a writer in group mode with attempts under way, then open, read, commit and examine the store."""
    users = settings.users or (500 if settings.quick else USERS)
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=settings.directory) as folder:
        return [{"users": users, "durable": True, **killed(built(settings.keep or Path(folder), users), users)}]


def killed(store: Path, users: int) -> dict[str, Any]:
    """What it takes to serve again from this store, after a writer of it is killed now."""
    _kill_writer(store, users)
    reopened, serving_s = _reopened(store, users)
    doctor = _doctor(store)
    restored_ms = sum(reopened[name] for name in ("open_and_settle_ms", "read_ms", "first_durable_commit_ms"))
    return {
        "records": doctor["records"], "store_mib": doctor["store_mib"],
        "attempts_under_way": ATTEMPTS, "attempts_settled": reopened.pop("settled"), "rss_mib": round(reopened.pop("rss_mib"), 1),
        **{name: round(value, 2) for name, value in reopened.items()}, "service_restored_ms": round(restored_ms, 2),
        "new_process_serving_ms": round(serving_s * 1e3, 1),
        "doctor_seconds": doctor["seconds"], "doctor_findings": doctor["findings"],
    }


def built(place: Path, users: int) -> Path:
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


def _reopened(store: Path, users: int) -> tuple[dict[str, Any], float]:
    """What a new process found, and the seconds from its start until it had committed."""
    began = time.perf_counter()
    child = subprocess.Popen([sys.executable, "-c", REOPENED, str(store), str(users)],  # noqa: S603 - built here
                             env=command.environment(), stdout=subprocess.PIPE, text=True)
    with child:
        said = "" if child.stdout is None else child.stdout.readline()
        seconds = time.perf_counter() - began
    if not said:
        message = "the store could not be opened again"
        raise RuntimeError(message)
    found: dict[str, Any] = json.loads(said)
    return found, seconds


def _kill_writer(store: Path, users: int) -> None:
    """Start the writer, let it commit for a while, and kill it."""
    child = subprocess.Popen([sys.executable, "-c", WRITER, str(store), str(users), str(ATTEMPTS)],  # noqa: S603 - built here
                             env=command.environment(), stdout=subprocess.PIPE, text=True)
    with child:
        if child.stdout is None or child.stdout.readline() != "writing\n":
            message = "the writer ended before it was killed"
            raise RuntimeError(message)
        time.sleep(WRITING_S)
        child.send_signal(signal.SIGKILL)


def _doctor(store: Path) -> dict[str, Any]:
    document = command.python(command.COMMAND, "doctor", "--store", str(store), "--json").report
    return {"records": document["checks"][0]["looked_at"], "seconds": document["seconds"],
            "findings": sum(check["findings"] for check in document["checks"] if check["check"] != "disk"),
            "store_mib": round((store / "data.mdb").stat().st_size / 2**20)}
