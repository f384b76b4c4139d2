"""`sweep`: deferred validation side by side in numpy against the loop, as ratios, on one store."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import command, data
from statemachine import BodyWeight, ResetManager, Store
from statemachine.store.reading import chunks
from statemachine.sweep import Sweep
from statemachine.sweep.folding import FoldedInLoop, fold
from statemachine.sweep.table import tabulated

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.settings import Settings

ROWS = 200_000
USERS = 2_000
TIMES = 3


class InLoop(BodyWeight):
    """The same estimator, whose vectorised form is not used since `step` is its own."""

    def step(self, state: Any, reading: Any) -> Any:
        """As it is."""
        return super().step(state, reading)


def sweep(settings: Settings) -> list[dict[str, Any]]:
    """A whole sweep that writes nothing, and the fold alone: in numpy, in the loop, and the ratio of the two."""
    rows = settings.rows or (10_000 if settings.quick else ROWS)
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=settings.directory) as folder:
        place = Path(folder)
        data.write_readings(place / "readings.csv", rows, settings.users or USERS)
        command.process(place / "readings.csv", place / "store")
        with Store.open(place / "store", readonly=True) as store:
            tables = [tabulated(logs, store.estimator) for logs, _ in chunks(store.engine, None, lambda _: True)]
            folds = (_best(lambda: [fold(store.estimator, table.rows) for table in tables]),
                     _best(lambda: [FoldedInLoop(store.estimator, table.rows) for table in tables]))
            report = ResetManager(store).sweep(Sweep(dry_run=True))
            fast = _best(lambda: ResetManager(store).sweep(Sweep(dry_run=True)))
        with Store.open(place / "store", readonly=True, estimator=InLoop()) as store:
            slow = _best(lambda: ResetManager(store).sweep(Sweep(dry_run=True)))
    return [{
        "users": report.users, "versions": report.versions, "findings": report.findings,
        "sweep_users_per_s": round(report.users / fast), "sweep_versions_per_s": round(report.versions / fast),
        "sweep_in_loop_users_per_s": round(report.users / slow), "sweep_ratio": round(slow / fast, 1),
        "fold_versions_per_s": round(report.versions / folds[0]),
        "fold_in_loop_versions_per_s": round(report.versions / folds[1]),
        "fold_ratio": round(folds[1] / folds[0], 1),
    }]


def _best(run: Callable[[], object]) -> float:
    """The processor's seconds of the fastest of a few runs: it is all arithmetic, and what else the machine does is left out."""
    taken = []
    for _ in range(TIMES):
        began = time.process_time()
        run()
        taken.append(time.process_time() - began)
    return min(taken)
