"""The frozen values: a measurement, what the log keeps of it, and the body-weight `EstimatorState`.

A snapshot of a frozen value is a reference to it; nothing here can be changed in place, so nothing can alias.
Scalars are plain `float` and `int`: numpy arrays are made and taken at the border only (`x`, `P`, `Q`, `replace`).
"""

from __future__ import annotations

import struct
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec
import numpy as np

from statemachine.clock import from_us, to_us
from statemachine.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import ArrayLike, NDArray

USER_BYTES_MAX: Final = 255
SOURCE_CHARS_MAX: Final = 200
VALUE_CHARS_MAX: Final = 64
PAIR: Final = struct.Struct("<qd")


def require_version(name: str, version: object, user: str) -> None:
    """Raise InvalidInput unless `version` is a whole number."""
    if not isinstance(version, int) or isinstance(version, bool):
        message = f"{name} is {version!r}; it must be a whole number, the number of a version"
        raise InvalidInput(message, user=user)


@lru_cache(maxsize=65_536)
def user_key(user: str) -> bytes:
    """The user's UTF-8 bytes; raises InvalidInput unless they are 1 to 255 bytes of valid Unicode without NUL."""
    if not isinstance(user, str):
        message = f"the user id {user!r} is not text; give a str"
        raise InvalidInput(message)
    try:
        key = user.encode("utf-8")
    except UnicodeEncodeError as error:
        message = f"the user id {user!r} is not valid Unicode: {error.reason}"
        raise InvalidInput(message) from error
    if not key or len(key) > USER_BYTES_MAX or b"\0" in key:
        message = f"the user id {user[:80]!r} must be 1 to {USER_BYTES_MAX} UTF-8 bytes without NUL; it has {len(key)}"
        raise InvalidInput(message, user=user[:80])
    return key


class Measured(Protocol):
    """What the processor needs of a measurement, whatever was measured; `Measurement` is the one for body weight.

    User, instant, `value`, `unit` and `source` are its identity.
    """

    @property
    def user(self) -> str:
        """Whose it is."""

    @property
    def at(self) -> datetime:
        """When it was taken, aware."""

    @property
    def at_us(self) -> int:
        """The same instant in microseconds since 1970 UTC."""

    @property
    def value(self) -> str:
        """The value as written."""

    @property
    def unit(self) -> str:
        """The unit as written."""

    @property
    def source(self) -> str:
        """Where it came from."""


class Measurement(msgspec.Struct, frozen=True, gc=False):
    """One reading of body weight as it came in.

    `at` is an aware datetime.  `weight_kg` is in kilograms and may be any float: what is no weight is quarantined when
    it is processed, so that nothing is lost.  `value` and `unit` are what was written before conversion; with the
    user, the instant and `source` they are the measurement's identity.
    """

    user: str
    at: datetime
    weight_kg: float
    source: str = "unknown"
    value: str = ""
    unit: str = "kg"
    at_us: int = 0

    def __post_init__(self) -> None:
        """Check what has no place in a store; raises InvalidInput."""
        user_key(self.user)
        try:
            at_us = to_us(self.at)
            weight_kg = float(self.weight_kg)
        except (AttributeError, TypeError, ValueError, OverflowError) as error:
            message = f"a measurement of {self.user!r} at {self.at!r} of {self.weight_kg!r}: {error}"
            raise InvalidInput(message, user=self.user) from error
        if not (self.source.isascii() and self.value.isascii() and self.unit.isascii()):
            _check_text(self)
        if len(self.source) > SOURCE_CHARS_MAX or len(self.value) > VALUE_CHARS_MAX or len(self.unit) > VALUE_CHARS_MAX:
            message = (f"a measurement of {self.user!r} at {self.at}: source, value and unit hold at most "
                       f"{SOURCE_CHARS_MAX}, {VALUE_CHARS_MAX} and {VALUE_CHARS_MAX} characters")
            raise InvalidInput(message, user=self.user)
        _force(self, "at_us", at_us)
        if weight_kg is not self.weight_kg:
            _force(self, "weight_kg", weight_kg)
        if not self.value:
            _force(self, "value", repr(weight_kg))


_force: Final = msgspec.structs.force_setattr


def _check_text(measurement: Measurement) -> None:
    try:
        f"{measurement.source}{measurement.value}{measurement.unit}".encode()
    except UnicodeEncodeError as error:
        message = f"a measurement of {measurement.user!r} at {measurement.at}: its text is not valid Unicode: {error.reason}"
        raise InvalidInput(message, user=measurement.user) from error


class Reading(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What the log keeps of an accepted measurement, and all that `Estimator.step` sees of it.

    `at_us`: instant in microseconds since 1970 UTC.  `values`: the measured quantities in the estimator's own units
    (body weight: one, in kg).  `r`: variance of the observation before adaptation, in the square of that unit.
    """

    at_us: int
    values: tuple[float, ...]
    r: float


class Kalman(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The filter proper: estimate `x` = (level kg, trend kg/day), covariance `p`, noise intensities a day `q`, `r` kg^2.

    `q0` is in kg^2/day and `q1` in (kg/day)^2/day; `at_us` is the instant of the estimate;
    `dt_days_max` bounds the time over which process noise accumulates.
    """

    x0: float
    x1: float
    p00: float
    p01: float
    p10: float
    p11: float
    q0: float
    q1: float
    r: float
    at_us: int
    dt_days_max: float


class Adaptation(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How far the noise is still widened after a reset.

    The factor f = 1 - g tends to 1; g starts at 1 and is multiplied by `decay` = exp(-1/`rate`) at each accepted
    measurement.  An effective parameter is (its reset multiplier) * g + f, times the base value, while fewer than
    `measurements` were accepted or the instant `until_us` has not come.  A multiplier has no unit.
    """

    reset_at: datetime | None
    count: int
    g: float
    decay: float
    rate: float
    level: float
    trend: float
    observation: float
    measurements: int
    until_us: int

    @property
    def f(self) -> float:
        """The adaptation factor, 0 right after a reset, tending to 1."""
        return 1.0 - self.g


class Counters(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How often each part was replaced by a reset, so that whoever follows the state can tell a jump from a change."""

    x: int = 0
    P: int = 0
    buffer: int = 0
    adaptation: int = 0


def _matrix(name: str, value: ArrayLike, shape: tuple[int, ...]) -> list[float]:
    array = np.asarray(value, dtype=np.float64)
    if array.shape != shape:
        message = f"{name} must have shape {shape}, not {array.shape}"
        raise InvalidInput(message)
    return [float(v) for v in array.reshape(-1)]


def _packed(pairs: Iterable[tuple[int, float]]) -> bytes:
    try:
        return b"".join(PAIR.pack(at_us, weight_kg) for at_us, weight_kg in pairs)
    except (struct.error, TypeError, ValueError, OverflowError) as error:
        message = f"a buffer holds pairs of (instant in us, weight in kg), an int of 64 bits and a float: {error}"
        raise InvalidInput(message) from error


def _read_only(values: Iterable[Any], shape: tuple[int, ...]) -> NDArray[np.float64]:
    array = np.array(tuple(values), dtype=np.float64).reshape(shape)
    array.flags.writeable = False
    return array


class EstimatorState(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One user's whole estimator state; frozen, compared by value.

    `packed` holds the newest accepted measurements, oldest first, at most `readings_max` of them, each as 16 bytes: the
    instant in us (int64) and the weight in kg (float64), little-endian; `buffer` reads them.  One object instead of
    sixty is what makes a step cheap.  The bound is part of the state, so that a replay under other limits gives the same
    bits.
    """

    kalman: Kalman
    packed: bytes
    adaptation: Adaptation
    counters: Counters
    readings_max: int = 30

    @property
    def buffer(self) -> tuple[tuple[int, float], ...]:
        """The newest accepted measurements as (instant in us, kg), oldest first."""
        return tuple(PAIR.iter_unpack(self.packed))

    @property
    def x(self) -> NDArray[np.float64]:
        """The estimate, shape (2,): level in kg, trend in kg/day.  Read-only."""
        return _read_only((self.kalman.x0, self.kalman.x1), (2,))

    @property
    def P(self) -> NDArray[np.float64]:  # noqa: N802 - the literature's letter
        """The covariance of `x`, shape (2, 2), in kg^2, kg^2/day and kg^2/day^2.  Read-only."""
        k = self.kalman
        return _read_only((k.p00, k.p01, k.p10, k.p11), (2, 2))

    @property
    def Q(self) -> NDArray[np.float64]:  # noqa: N802
        """The base process-noise intensity, shape (2, 2), diagonal, in kg^2/day and (kg/day)^2/day.  Read-only."""
        return _read_only((self.kalman.q0, 0.0, 0.0, self.kalman.q1), (2, 2))

    @property
    def R(self) -> float:  # noqa: N802
        """The base observation variance in kg^2, for a source of multiplier 1."""
        return self.kalman.r

    @property
    def at(self) -> datetime:
        """The instant of the estimate, UTC."""
        return from_us(self.kalman.at_us)

    def replace(self, **changes: Any) -> EstimatorState:
        """A copy with the named parts changed; raises InvalidInput for an unknown name or a wrong shape.

        `x` (2,), `P` (2, 2), `Q` (2, 2) diagonal, `R` a number, `at` an aware datetime, `buffer` pairs of (instant in us,
        kg), or any field of the state or of `kalman` by its own name.  Arrays are copied.  What the values must obey is the
        validator's to say.
        """
        kalman: dict[str, Any] = {}
        parts: dict[str, Any] = {}
        for name, value in changes.items():
            if name == "x":
                kalman["x0"], kalman["x1"] = _matrix("x", value, (2,))
            elif name == "P":
                kalman["p00"], kalman["p01"], kalman["p10"], kalman["p11"] = _matrix("P", value, (2, 2))
            elif name == "Q":
                kalman["q0"], off, off_too, kalman["q1"] = _matrix("Q", value, (2, 2))
                if not (off == 0.0 and off_too == 0.0):
                    message = "Q must be diagonal: level and trend noise are independent in this model"
                    raise InvalidInput(message)
            elif name == "buffer":
                parts["packed"] = _packed(value)
            elif name == "R":
                kalman["r"] = float(value)
            elif name == "at":
                kalman["at_us"] = to_us(value)
            elif name in Kalman.__struct_fields__:
                kalman[name] = value
            elif name in EstimatorState.__struct_fields__:
                parts[name] = value
            else:
                known = ", ".join(("x", "P", "Q", "R", "at", "buffer", *EstimatorState.__struct_fields__))
                message = f"an estimator state has no part {name!r}; it has {known}"
                raise InvalidInput(message)
        if kalman:
            parts["kalman"] = msgspec.structs.replace(parts.get("kalman", self.kalman), **kalman)
        return msgspec.structs.replace(self, **parts)
