"""The local-linear-trend Kalman filter of one scalar, in closed form on Python floats.

Model: x = (level, trend), F = [[1, dt], [0, 1]], H = [1, 0], dt in days.  Process noise is continuous white noise of
intensities q0 and q1, so over dt it adds [[q0 dt + q1 dt^3/3, q1 dt^2/2], [q1 dt^2/2, q1 dt]] (Bar-Shalom, Li and
Kirubarajan, "Estimation with Applications to Tracking and Navigation", 2001, section 6.2).  The update is Joseph's
form, P = (I - K H) P (I - K H)' + K R K', which keeps P symmetric and positive definite under rounding.

Only + - * / on doubles, in one fixed order: the same bits on every machine, and when vectorised.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from statemachine.clock import US_PER_DAY

if TYPE_CHECKING:
    from statemachine.state import Adaptation, Kalman

KERNEL: Final = 1
"""The number of this arithmetic; it is stored with every version and changes with any change of a result's bits."""


class Prediction(msgspec.Struct, frozen=True, gc=False):
    """The state carried to an instant: estimate, symmetric covariance, the effective R there, and S = P + R, kg^2."""

    x0: float
    x1: float
    p00: float
    p01: float
    p11: float
    r: float
    s: float


def predict(k: Kalman, a: Adaptation, at_us: int, r: float) -> Prediction:
    """Carry the filter to `at_us` and form the innovation variance for an observation of variance `r` (kg^2).

    Noise is widened by the adaptation while it is active (`Adaptation`).  Time is not checked: `at_us` before the
    state's own instant gives a negative dt, which callers refuse as late.
    """
    dt = (at_us - k.at_us) / US_PER_DAY
    noise_dt = dt if dt < k.dt_days_max else k.dt_days_max
    q0 = k.q0
    q1 = k.q1
    if is_adapting(a, at_us):
        g = a.g
        f = 1.0 - g
        q0 = q0 * (a.level * g + f)
        q1 = q1 * (a.trend * g + f)
        r = r * (a.observation * g + f)
    cross = k.p01 + dt * k.p11
    p00 = k.p00 + dt * (k.p01 + cross) + noise_dt * (q0 + noise_dt * noise_dt * q1 / 3.0)
    p01 = cross + noise_dt * noise_dt * q1 / 2.0
    p11 = k.p11 + noise_dt * q1
    return Prediction(k.x0 + dt * k.x1, k.x1, p00, p01, p11, r, p00 + r)


def update(p: Prediction, z: float) -> tuple[float, float, float, float, float]:
    """Joseph-form update with the observation `z` (kg): x0, x1, p00, p01, p11 after it."""
    k0 = p.p00 / p.s
    k1 = p.p01 / p.s
    residual = z - p.x0
    keep = 1.0 - k0
    p00 = keep * keep * p.p00 + k0 * k0 * p.r
    p01 = keep * (p.p01 - k1 * p.p00) + k0 * k1 * p.r
    p11 = p.p11 - 2.0 * k1 * p.p01 + k1 * k1 * p.s
    return p.x0 + k0 * residual, p.x1 + k1 * residual, p00, p01, p11


def nis(p: Prediction, z: float) -> float:
    """Normalised innovation squared, (z - H x)^2 / S: chi-square of one degree of freedom when the filter is consistent."""
    residual = z - p.x0
    return residual * residual / p.s


def is_adapting(a: Adaptation, at_us: int) -> bool:
    """Whether noise is still widened at `at_us`: fewer than N measurements accepted, or D days not yet over."""
    return a.count < a.measurements or at_us < a.until_us
