"""The least that embeds the guard: one store, one manager, one processor, and a reset by hand.

    python examples/minimal.py [DIRECTORY]     # the store is made there, by default in ./state

Run it twice: the second time each measurement is a duplicate, and nothing is counted twice.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta

import structlog

from statemachine import Measurement, Processor, ResetManager, Store

WEIGHTS_KG = (81.2, 81.0, 81.4, 80.9)
FIRST = datetime(2026, 1, 5, 7, tzinfo=UTC)


def main(directory: str) -> None:
    """Process four mornings, reset by hand where that was not done yet, and tell what stands."""
    # The library never configures structlog, whose default is to print each committed reset among our own lines.
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    with Store.open(directory) as store:  # a directory; created if absent, mode 0700
        manager = ResetManager(store)
        processor = Processor(manager)
        for day, weight_kg in enumerate(WEIGHTS_KG):
            measurement = Measurement(user="u1", at=FIRST + timedelta(days=day), weight_kg=weight_kg, source="scale")
            outcome = processor.process(measurement)
            caused = f", {outcome.reset.outcome} a reset of kind {outcome.reset.kind}" if outcome.reset else ""
            print(f"{measurement.at:%Y-%m-%d} {weight_kg} kg: {outcome.status}{caused}; version {outcome.version}")
        if store.version_range("u1")[1] == len(WEIGHTS_KG):
            result = manager.perform_reset("u1", kind="admin", reason="scale replaced", actor="ops@example.org")
            print(f"reset by hand: {result.outcome}, version {result.version}")
        head = store.load("u1")
        if head is not None:
            print(f"u1 weighs {head.state.x[0]:.2f} kg, variance {head.state.P[0, 0]:.3f} kg^2, version {head.version}")
        for row in store.audit(user="u1"):
            print(f"audit {row.public.seq}: {row.public.event}, {row.public.kind}, {row.personal.trigger or row.personal.reason}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "state")
