# ruff: noqa: INP001, T201 - a script, which prints what it found
"""The table of 0003: how consistent the body-weight filter is on a file, for a small grid of its noise figures.

    python docs/decisions/figures/noise_grid.py FILE [--user NAME] [--tz ZONE] [--unit UNIT]

Any file that the library reads.  Each pair of figures gets a store of its own, in a temporary directory, and every
measurement goes through the processor as in service, sorted by time.  A filter whose figures are right has a mean NIS of 1
and 95 % of its NIS below 3.84 (chi-square of one degree of freedom).  While a reset still widens the noise a NIS says
little, so those are left out; measurements that the gate refused are left out of one pair of columns and kept in the other,
so that a tight gate cannot flatter the filter.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import structlog

from statemachine import BodyWeight, Limits, Processor, ResetManager, Store
from statemachine.ingest import Options, open_source
from statemachine.processor import SourceRow

if TYPE_CHECKING:
    from statemachine import Measurement, Outcome

R_KG2 = (0.05, 0.10, 0.15)
Q_LEVEL = (0.02, 0.05, 0.10)
NIS_95 = 3.84
LIMITS = Limits(q_level_kg2_per_day_max=10.0)  # the largest Q of the grid times the 50 of an initial reset is above the default


class Line(NamedTuple):
    """One line of the table."""

    accepted: int
    held: int
    resets: int
    judged: int
    mean: float
    below: float
    mean_gated: float
    below_gated: float


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description="Consistency of the body-weight filter for a grid of noise figures.")
    parser.add_argument("file")
    for name in ("user", "tz", "unit"):
        parser.add_argument(f"--{name}")
    a = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    rows = [row.measurement for row in open_source(a.file, Options(user=a.user or "u", tz=a.tz, unit=a.unit)) if row.measurement]
    rows.sort(key=lambda m: m.at_us)
    print("| R, kg² | Q level, kg²/day | accepted | kept aside | resets | judged | mean NIS | under 3.84 | mean, gated too "
          "| under 3.84, gated too |")
    print("|" + "---:|" * 10)
    for r, q in itertools.product(R_KG2, Q_LEVEL):
        line = measured(rows, r, q)
        print(f"| {r:.2f} | {q:.2f} | {line.accepted} | {line.held} | {line.resets} | {line.judged} "
              f"| {line.mean:.2f} | {line.below:.1%} | {line.mean_gated:.2f} | {line.below_gated:.1%} |")


def measured(measurements: list[Measurement], r_kg2: float, q_level: float) -> Line:
    """One pass over the measurements with these figures."""
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory() as folder:
        estimator = BodyWeight(r_kg2=r_kg2, q_level=q_level, limits=LIMITS)
        with Store.open(Path(folder) / "store", estimator=estimator, durability="process") as store:
            intake = Processor(ResetManager(store)).intake([(bytes(16), "figures")], lambda _, outcome: outcomes.append(outcome))
            for number, measurement in enumerate(measurements):
                intake.add(0, SourceRow(number, measurement))
            intake.flush()
            kept = sum(1 for _ in store.quarantine())
            resets = sum(row.public.outcome == "committed" for row in store.audit())
    judged = [outcome for outcome in outcomes if outcome.nis is not None and not outcome.adapting]
    accepted = [outcome.nis for outcome in judged if outcome.status == "accepted" and outcome.nis is not None]
    gated = [outcome.nis for outcome in judged if outcome.nis is not None]
    distinct = sum(outcome.status != "duplicate" for outcome in outcomes)
    return Line(distinct - kept, kept, resets, len(accepted), mean(accepted), below(accepted), mean(gated), below(gated))


def mean(nis: list[float]) -> float:
    """The mean, NaN of none."""
    return sum(nis) / len(nis) if nis else float("nan")


def below(nis: list[float]) -> float:
    """The share under 3.84."""
    return sum(each < NIS_95 for each in nis) / len(nis) if nis else float("nan")


if __name__ == "__main__":
    main()
