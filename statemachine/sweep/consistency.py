"""The shipped deferred rules over NIS, innovations, gain and level; each is a frozen value with its limits.

Sources: Bar-Shalom, Li and Kirubarajan, "Estimation with Applications to Tracking and Navigation" (2001), section 5.4.2:
of a consistent filter the NIS is chi-square distributed with one degree of freedom, so that the sum of n of them is
chi-square with n, and the time-average autocorrelation of its innovations is normal about 0 with variance 1/n.

`false_alarms` is the share of consistent users of whom a rule speaks all the same, in one window.  A measurement is
in the statistics when the filter had adapted to the last reset; those that the gate kept out never reached the log, so that
the NIS of what did is a little smaller than the theory's.
"""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np

from statemachine.clock import US_PER_DAY
from statemachine.sweep.findings import NOWHERE, Courses, DeferredRule, Finding, Severity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from statemachine.sweep.findings import Floats, Ints

NIS_95: Final = 3.84
"""The 95th percentile of chi-square with one degree of freedom."""
NIS_95_SHARE: Final = 0.05
US_PER_SECOND: Final = 1_000_000


def chi_square(x: float, degrees: int) -> float:
    """P(X <= x) of a chi-square variable: the regularised lower incomplete gamma function by its series (DLMF 8.7.1)."""
    if x <= 0.0:
        return 0.0
    a, half = degrees / 2.0, x / 2.0
    term = total = 1.0
    n = 0
    while term > total * 1e-17:
        n += 1
        term *= half / (a + n)
        total += term
    return min(1.0, total * math.exp(a * math.log(half) - half - math.lgamma(a + 1.0)))


@lru_cache(maxsize=1_000)
def chi_square_quantile(p: float, degrees: int) -> float:
    """The x with P(X <= x) = p of a chi-square variable, by bisection."""
    low, high = 0.0, degrees + 40.0 * math.sqrt(degrees) + 100.0
    for _ in range(100):
        middle = 0.5 * (low + high)
        if chi_square(middle, degrees) < p:
            low = middle
        else:
            high = middle
    return 0.5 * (low + high)


@lru_cache(maxsize=1_000)
def most_above(count: int, share: float, tail: float) -> int:
    """The smallest k so that of `count` independent trials of probability `share` more than k succeed with at most `tail`."""
    beyond = 1.0
    for k in range(count + 1):
        beyond -= math.comb(count, k) * share ** k * (1.0 - share) ** (count - k)
        if beyond <= tail:
            return k
    return count


class _Window(msgspec.Struct, frozen=True, kw_only=True):
    """What the rules over a window have in common: its length, the fewest measurements it may hold, and the risk."""

    measurements: int = 30
    measurements_min: int = 15
    false_alarms: float = 1e-4
    severity: Severity = "warning"

    @property
    def settings(self) -> str:
        """The rule's figures as text."""
        return repr(self)

    def rows(self, courses: Courses) -> tuple[Ints, Ints]:
        """The window of each user, and how many measurements it holds."""
        window = courses.newest(self.measurements, courses.ordinary())
        return window, (window != NOWHERE).sum(axis=1)

    def limits(self, counts: Ints, limit_of: dict[int, float]) -> Floats:
        """The limit of each user, by its count; no number where the window holds too few."""
        return np.array([limit_of.get(count, math.nan) for count in counts.tolist()])

    def counts(self) -> range:
        """How many measurements a judged window may hold."""
        return range(self.measurements_min, self.measurements + 1)


def _found(  # noqa: PLR0913 - the parts of a finding
    rule: str, severity: Severity, courses: Courses, window: Ints, user: int, value: float, limit: str, unit: str = "",
) -> Finding:
    rows = window[user][window[user] != NOWHERE]
    return Finding(courses.users[user], int(courses.version[rows[-1]]), rule, severity, value, limit, unit,
                   int(courses.version[rows[0]]))


class NisHigh(_Window, frozen=True):
    """The mean NIS of the window lies above its chi-square bound: the filter is surer of itself than it is right.

    n * mean <= the (1 - false_alarms) quantile of chi-square with n degrees of freedom.
    """

    name = "nis-high"
    needs = ()

    def judge(self, courses: Courses) -> Iterator[Finding]:
        """Users whose mean is too high."""
        window, counts = self.rows(courses)
        means = courses.taken(courses.nis, window).sum(axis=1) / np.maximum(counts, 1)
        limits = self.limits(counts, {n: chi_square_quantile(1.0 - self.false_alarms, n) / n for n in self.counts()})
        for user in np.flatnonzero(means > limits).tolist():
            limit = f"at most {limits[user]:.3g}, as the mean of {counts[user]}"
            yield _found(self.name, self.severity, courses, window, user, float(means[user]), limit)


class NisLow(_Window, frozen=True):
    """The mean NIS of the window lies below its chi-square bound: R or Q is far too large, or readings are copies.

    n * mean >= the `false_alarms` quantile of chi-square with n degrees of freedom.
    """

    name = "nis-low"
    needs = ()

    def judge(self, courses: Courses) -> Iterator[Finding]:
        """Users whose mean is too low."""
        window, counts = self.rows(courses)
        means = courses.taken(courses.nis, window).sum(axis=1) / np.maximum(counts, 1)
        limits = self.limits(counts, {n: chi_square_quantile(self.false_alarms, n) / n for n in self.counts()})
        for user in np.flatnonzero(means < limits).tolist():
            limit = f"at least {limits[user]:.3g}, as the mean of {counts[user]}"
            yield _found(self.name, self.severity, courses, window, user, float(means[user]), limit)


class NisShare(_Window, frozen=True):
    """Too many of the window's NIS exceed 3.84, of which one in twenty should: k of n, by the binomial distribution."""

    name = "nis-share"
    needs = ()

    def judge(self, courses: Courses) -> Iterator[Finding]:
        """Users with too many large ones."""
        window, counts = self.rows(courses)
        above = (courses.taken(courses.nis, window) > NIS_95).sum(axis=1)
        limits = self.limits(counts, {n: most_above(n, NIS_95_SHARE, self.false_alarms) for n in self.counts()})
        for user in np.flatnonzero(above > limits).tolist():
            limit = f"at most {int(limits[user])} of {counts[user]} above {NIS_95}"
            yield _found(self.name, self.severity, courses, window, user, float(above[user]), limit, "measurements")


class Whiteness(_Window, frozen=True):
    """Successive innovations of the window are correlated, and so the filter leaves something unexplained.

    The lag-1 autocorrelation of the innovations over their standard deviations v, sum(v_k v_k+1) / sqrt(sum(v_k^2)
    sum(v_k+1^2)), lies within z / sqrt(n), z of the normal distribution, two-sided, n the number of products.
    """

    name = "whiteness"
    needs = ("innovation", "innovation_variance")

    def judge(self, courses: Courses) -> Iterator[Finding]:
        """Users whose innovations are correlated."""
        window, counts = self.rows(courses)
        scaled = courses.figures["innovation"] / np.sqrt(courses.figures["innovation_variance"])
        v = courses.taken(scaled, window)
        pairs = window[:, :-1] != NOWHERE  # filled from the back, so that what follows one that is there is there
        earlier, later = np.where(pairs, v[:, :-1], 0.0), np.where(pairs, v[:, 1:], 0.0)
        scale = np.sqrt((earlier * earlier).sum(axis=1) * (later * later).sum(axis=1))
        correlation = (earlier * later).sum(axis=1) / np.where(scale > 0.0, scale, 1.0)
        z = NormalDist().inv_cdf(1.0 - self.false_alarms / 2.0)
        limits = self.limits(counts, {n: min(z / math.sqrt(n - 1), 1.0) for n in self.counts() if n > 1})
        for user in np.flatnonzero(np.abs(correlation) > limits).tolist():
            limit = f"from {-limits[user]:.3g} to {limits[user]:.3g}, of {counts[user]} measurements"
            yield _found(self.name, self.severity, courses, window, user, float(correlation[user]), limit)


class Stuck(_Window, frozen=True):
    """The filter does not converge: long after a reset each measurement still replaces nearly all of the estimate.

    The mean gain of the level over the newest measurements that came within `days_max` of the one before, from the
    `settled`th after the reset on, is at most `gain_max`.  Daily readings settle near 0.45, weekly ones near 0.8.
    """

    name = "stuck"
    needs = ("gain",)
    settled: int = 20
    days_max: float = 7.0
    gain_max: float = 0.95

    def judge(self, courses: Courses) -> Iterator[Finding]:
        """Users whose gain stays large."""
        rows = np.arange(len(courses.at_us))
        apart_us = np.diff(courses.at_us, prepend=0)
        begins = np.ones(len(rows), np.bool_)
        begins[1:] = (courses.reset[1:] != courses.reset[:-1]) | (courses.user[1:] != courses.user[:-1])
        since = rows - np.maximum.accumulate(np.where(begins, rows, 0))
        wanted = (since >= self.settled) & (apart_us <= self.days_max * US_PER_DAY) & np.isfinite(courses.figures["gain"])
        window = courses.newest(self.measurements, wanted)
        counts = (window != NOWHERE).sum(axis=1)
        gains = courses.taken(courses.figures["gain"], window).sum(axis=1) / np.maximum(counts, 1)
        for user in np.flatnonzero((counts >= self.measurements_min) & (gains > self.gain_max)).tolist():
            limit = f"at most {self.gain_max:g}, as the mean of {counts[user]}"
            yield _found(self.name, self.severity, courses, window, user, float(gains[user]), limit)


class Drift(msgspec.Struct, frozen=True, kw_only=True):
    """The level moved further within a month than bodies do, with no reset between: the worst place since each reset.

    |level_j - level_i| <= kg_max for any two measurements at most `days` apart, i the earliest such.  The default is the
    change over one month that a reset may rest on (growthcleanr, Carrie Daymont et al., adult weights): 16.5 kg.
    """

    name = "drift"
    needs = ("level",)
    kg_max: float = 16.5
    days: float = 30.0
    severity: Severity = "warning"

    @property
    def settings(self) -> str:
        """The rule's figures as text."""
        return repr(self)

    def judge(self, courses: Courses) -> Iterator[Finding]:
        """The worst such pair of each user's courses."""
        level = courses.figures["level"]
        if not len(level):
            return
        begins = np.ones(len(level), np.bool_)
        begins[1:] = (courses.reset[1:] != courses.reset[:-1]) | (courses.user[1:] != courses.user[:-1])
        course = np.cumsum(begins) - 1
        # One ascending number a row, each course in a stretch of its own: seconds, so that they fit 64 bits.
        at_s = (courses.at_us - courses.at_us.min()) // US_PER_SECOND
        month_s = int(self.days * US_PER_DAY / US_PER_SECOND)
        stretch = int(at_s.max()) + month_s + 1
        placed = course * stretch + at_s
        moved = level - level[np.searchsorted(placed, placed - month_s, side="left")]
        for row in _worst(np.abs(moved), course, self.kg_max):
            first = int(np.searchsorted(placed, placed[row] - month_s, side="left"))
            yield Finding(courses.users[int(courses.user[row])], int(courses.version[row]), self.name, self.severity,
                          float(moved[row]), f"within {self.kg_max:g} either way in {self.days:g} days", "kg",
                          int(courses.version[first]))


def _worst(sizes: Floats, course: Ints, limit: float) -> list[int]:
    """The row of the largest size above the limit in each course."""
    above = np.flatnonzero(sizes > limit)
    worst: dict[int, int] = {}
    for row in above.tolist():
        known = worst.get(int(course[row]))
        if known is None or sizes[row] > sizes[known]:
            worst[int(course[row])] = row
    return sorted(worst.values())


STATISTICAL: Final[tuple[DeferredRule, ...]] = (NisHigh(), NisLow(), NisShare(), Whiteness(), Stuck(), Drift())
"""The shipped rules over figures, with their default limits."""
