"""States of any kind are walked and spoilt in one place, with nothing else changed."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import msgspec
import pytest

from chaos.faults import states


class Inner(NamedTuple):
    x: float
    y: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Middle:
    inner: Inner
    name: bytes


class Outer(msgspec.Struct, frozen=True):
    middle: Middle
    count: int
    table: dict[str, list[float]]


STATE = Outer(Middle(Inner(1.0, (2.0, 3.0)), b"abc"), 4, {"a": [5.0]})
LEAVES = {
    ("middle", "inner", "x"): 1.0, ("middle", "inner", "y", 0): 2.0, ("middle", "inner", "y", 1): 3.0, ("middle", "name"): b"abc",
    ("count",): 4, ("table", "a", 0): 5.0,
}


def test_every_leaf_is_found() -> None:
    assert dict(states.leaves(STATE)) == LEAVES


@pytest.mark.parametrize("way", LEAVES)
def test_one_leaf_is_replaced_and_the_state_before_is_as_it_was(way: states.Way) -> None:
    new = states.replaced(STATE, way, math.nan)
    found = dict(states.leaves(new))
    assert type(new) is Outer
    assert {at: value for at, value in found.items() if at != way} == {at: value for at, value in LEAVES.items() if at != way}
    assert math.isnan(found[way])
    assert dict(states.leaves(STATE)) == LEAVES
    assert (states.finite(STATE), states.finite(new)) == (True, False)


def test_a_leaf_is_changed_in_place_where_something_holds_it() -> None:
    kept = states.replaced(STATE, ("count",), 4)
    states.forced(kept, ("count",), 9)
    states.forced(kept, ("table", "a", 0), 8.0)
    assert (kept.count, kept.table) == (9, {"a": [8.0]})
    with pytest.raises((TypeError, AttributeError)):
        states.forced(kept, ("middle", "inner", "x"), 0.0)


@pytest.mark.parametrize("old", [1.5, 3, b"abcd", None, "text"])
def test_every_way_to_spoil_a_leaf_gives_something(old: Any) -> None:
    """Whatever stands there; a name is not left out because of what it meets."""
    assert all(callable(spoil) and repr(spoil(old)) for spoil in states.SPOILT.values())
