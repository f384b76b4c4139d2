"""What deferred rules are given and what they say: the arrays of many users, the Protocol of a rule, and a finding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, NamedTuple, Protocol

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]
    Flags = NDArray[np.bool_]

Severity = Literal["warning", "error"]
NOWHERE: Final = -1
"""In a window, the place of a measurement that is not there."""


class Finding(NamedTuple):
    """One thing that a rule found in a user's log.

    It is of `version`; the evidence reaches back to `since_version`, and what stood before that is not in doubt by it.
    `value` is what was found and `limit` what it must be, both in `unit` ("" for none).
    """

    user: str
    version: int
    rule: str
    severity: Severity
    value: float | str
    limit: str
    unit: str
    since_version: int

    def __str__(self) -> str:
        """One readable line."""
        shown = f"{self.value:.6g}" if isinstance(self.value, float) else self.value
        unit = f" {self.unit}" if self.unit else ""
        return f"{self.rule} of {self.user!r} at version {self.version}: {shown}{unit}, must be {self.limit}"


class Courses(NamedTuple):
    """Every measurement in the readable logs of many users, in one long table; each column has a row a measurement.

    User number u, `users[u]`, has the rows from `starts[u]` to before `starts[u + 1]`, in the order of time.  `reset` is the
    version of the image that the row's course rests on (a reset, a restore, the first readable version), and `newest_reset`
    that of each user's newest.  `nis` is of the measurement against the prediction it met, `adapting` whether noise was
    widened then.  `figures`: what the estimator tells of each step besides, see `Estimator`; empty where it tells nothing.
    """

    users: tuple[str, ...]
    starts: Ints
    user: Ints
    version: Ints
    at_us: Ints
    reset: Ints
    newest_reset: Ints
    nis: Floats
    adapting: Flags
    figures: Mapping[str, Floats]

    def newest(self, most: int, wanted: Flags) -> Ints:
        """The rows of each user's newest `most` wanted measurements since its newest reset, oldest first, shape (users, most).

        Where a user has fewer, the front is filled with NOWHERE.
        """
        rows = np.flatnonzero(wanted & (self.reset == self.newest_reset[self.user]))
        window = np.full((len(self.users), most), NOWHERE, np.int64)
        whose = self.user[rows]
        ends = np.cumsum(np.bincount(whose, minlength=len(self.users)))
        from_end = ends[whose] - 1 - np.arange(len(rows))
        near = from_end < most
        window[whose[near], most - 1 - from_end[near]] = rows[near]
        return window

    @staticmethod
    def taken(column: Floats, window: Ints) -> Floats:
        """A column's numbers at a window's rows, 0 where there is none, shape (users, most)."""
        if not len(column):
            return np.zeros(window.shape)
        return np.where(window != NOWHERE, column[window], 0.0)

    def ordinary(self) -> Flags:
        """The measurements whose NIS says something: the filter had settled, and it is a number."""
        return ~self.adapting & np.isfinite(self.nis)


class DeferredRule(Protocol):
    """A rule over whole histories; users write their own.

    `needs` names the figures without which it does not apply.  `settings` enters the memory of what was told, so that a rule
    under other settings is asked anew.  A finding of severity "error" is one that the policy `restore` acts on.
    """

    @property
    def name(self) -> str:
        """A stable lower-case word."""

    @property
    def needs(self) -> tuple[str, ...]:
        """The figures that `judge` reads."""

    @property
    def settings(self) -> str:
        """The rule's figures as text."""

    def judge(self, courses: Courses) -> Iterable[Finding]:
        """What is found in these users' courses, at most one finding a user and version.  Reads its arguments alone."""
