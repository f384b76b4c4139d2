"""What judging the images of power cuts found in the library; each test names what went wrong before."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from statemachine import Processor, ResetManager, Store
from tests.regression.scene import weighed


def test_a_process_that_opens_stores_again_and_again_gathers_no_threads(tmp_path: Path) -> None:
    """The judge of images, which opens thousands of stores, had as many threads waiting, and grew slower with each.

    Post-mortem: the thread that copies events to structlog waited on its queue for ever, and closing a store only emptied the
    queue.  A daemon thread does not keep a process from ending, so that no test saw it.  Now closing ends the thread.
    """
    before = threading.active_count()
    for day in range(5):
        with Store.open(tmp_path / "s") as store:
            Processor(ResetManager(store)).process(weighed("u", day, 80.0))
    until = time.monotonic() + 10
    while threading.active_count() > before:
        assert time.monotonic() < until, f"{threading.active_count() - before} threads are left"
        time.sleep(0.001)
