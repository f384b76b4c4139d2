"""States of any kind spoilt in one place: their fields are walked, whatever they are made of, and one of them is changed.

Structs, named tuples, dataclasses, tuples, lists and mappings are walked; numbers, bytes and all else are their leaves.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import msgspec
import numpy as np

Way = tuple[str | int, ...]
"""The fields and places that lead to a leaf."""


def _parts(value: Any) -> list[tuple[str | int, Any]]:
    if isinstance(value, msgspec.Struct):
        return [(name, getattr(value, name)) for name in value.__struct_fields__]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return [(name, getattr(value, name)) for name in value._fields]
    if isinstance(value, tuple | list):
        return list(enumerate(value))
    if isinstance(value, Mapping):
        return [(key, part) for key, part in value.items() if isinstance(key, str | int)]
    return []


def leaves(value: Any, way: Way = ()) -> Iterator[tuple[Way, Any]]:
    """Every leaf of a state with the way to it, in the order of its fields."""
    parts = _parts(value)
    if not parts:
        yield way, value
    for name, part in parts:
        yield from leaves(part, (*way, name))


def replaced(value: Any, way: Way, new: Any) -> Any:
    """The state with another leaf; all that does not lie on the way is the very same."""
    if not way:
        return new
    name, rest = way[0], way[1:]
    part = replaced(dict(_parts(value))[name], rest, new)
    if isinstance(value, msgspec.Struct):
        return msgspec.structs.replace(value, **{str(name): part})
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.replace(value, **{str(name): part})
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        changed: Any = value  # mypy knows it as a plain tuple
        return changed._replace(**{str(name): part})
    if isinstance(value, Mapping):
        return {**value, name: part}
    return type(value)([part if place == name else other for place, other in enumerate(value)])


def forced(value: Any, way: Way, new: Any) -> None:
    """Change a leaf in place, as code does that holds on to what it returned; TypeError where nothing lets it."""
    holder = value
    for name in way[:-1]:
        holder = dict(_parts(holder))[name]
    name = way[-1]
    if isinstance(holder, msgspec.Struct):
        msgspec.structs.force_setattr(holder, str(name), new)
    elif dataclasses.is_dataclass(holder):
        object.__setattr__(holder, str(name), new)
    else:
        holder[name] = new


def finite(value: Any) -> bool:
    """Whether every number of a state is."""
    for _, leaf in leaves(value):
        if isinstance(leaf, float | complex | np.inexact) and not bool(np.isfinite(leaf)):
            return False
        if isinstance(leaf, np.ndarray) and not bool(np.all(np.isfinite(leaf))):
            return False
    return True


def _number(value: Any) -> bool:
    return isinstance(value, float | int) and not isinstance(value, bool)


SPOILT: Final[dict[str, Callable[[Any], Any]]] = {
    "NaN": lambda _: math.nan,
    "infinity": lambda _: math.inf,
    "1e308": lambda _: 1e308,
    "the opposite": lambda old: -old - 1.0 if _number(old) else None,
    "a thousand times": lambda old: old * 1_000.0 if _number(old) else b"",
    "-0.0": lambda _: -0.0,
    "None": lambda _: None,
    "a text": lambda _: "\ud800",
    "a truth": lambda _: True,
    "a numpy number": lambda old: np.float64(old) if _number(old) else np.float64(math.nan),
    "a number of another kind": lambda old: int(old) if isinstance(old, float) else float(old) if _number(old) else 0,
    "a list": lambda old: [old],
    "an array": lambda old: np.array([old, old], dtype=object),
    "a huge integer": lambda _: 10**400,
    "half the bytes": lambda old: old[:len(old) // 2 + 1] if isinstance(old, bytes) else b"\xff" * 8,
    "bytes of ones": lambda old: b"\xff" * len(old) if isinstance(old, bytes) else b"\xff",
}
"""What may be put in the place of a leaf, by name, from what stood there."""
