"""A deferred rule of one's own: users whose newest readings all lie on one side of what the filter had expected.

    python examples/deferred_rule.py [DIRECTORY]     # the store is made there, by default in ./state

A rule is given the arrays of many users at once and says what it finds; a sweep tells each finding once, in the audit log.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import structlog

from statemachine import Measurement, Processor, ResetManager, Store
from statemachine.sweep import RULES, Courses, Finding, Sweep, Told

if TYPE_CHECKING:
    from collections.abc import Iterator

FIRST = datetime(2026, 1, 5, 7, tzinfo=UTC)
NOISE_KG = np.random.default_rng(1).normal(0.0, 0.5, 60).tolist()
USERS = {
    "steady": lambda day: 80.0 + NOISE_KG[day],
    "losing ever faster": lambda day: 80.0 - 0.01 * max(day - 20, 0) ** 2,
}


class OneSided(NamedTuple):
    """Of the newest `readings` readings since the last reset none lay on the other side of its prediction."""

    readings: int = 12
    name: str = "one-sided"
    needs: tuple[str, ...] = ("innovation",)

    @property
    def settings(self) -> str:
        """Under other settings a user is told of anew."""
        return str(self.readings)

    def judge(self, courses: Courses) -> Iterator[Finding]:
        """Users with a full window and one sign in it."""
        window = courses.newest(self.readings, courses.ordinary())
        signs = np.sign(courses.taken(courses.figures["innovation"], window)).sum(axis=1)
        for user in np.flatnonzero(np.abs(signs) == self.readings).tolist():
            rows = window[user]
            yield Finding(courses.users[user], int(courses.version[rows[-1]]), self.name, "warning", float(signs[user]),
                          f"above {-self.readings} and below {self.readings}", "readings", int(courses.version[rows[0]]))


def main(directory: str) -> None:
    """Fill a store, sweep it twice by the shipped rules and this one, and tell what was found."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    with Store.open(directory, durability="process") as store:
        manager = ResetManager(store)
        Processor(manager).process_batch(
            Measurement(user=user, at=FIRST + timedelta(days=day), weight_kg=weight(day), source="scale")
            for day in range(60) for user, weight in USERS.items())
        for _ in range(2):
            told: list[Told] = []
            report = manager.sweep(Sweep(rules=(*RULES, OneSided())), on_finding=told.append)
            for one in told:
                print(f"{'new' if one.new else 'known'}: {one.finding}")
            print(f"{report.users} users, {report.versions} versions, {report.findings} findings, {report.new} of them new")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "state")
