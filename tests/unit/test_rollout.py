"""The rollout as a value: who is inside, the same users everywhere, and nonsense refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statemachine import InvalidInput, Rollout, codec
from statemachine.errors import StoreCorrupt
from statemachine.rollout import SLOTS, USERS_LISTED_MAX, as_verdict, decide, slot

ROOT: Final = Path(__file__).parents[2]
USERS: Final = [f"user-{n}" for n in range(10_000)]
FALLEN: Final = {"ada": 667_245, "ben": 251_655, "é": 219_008}


def inside(rollout: Rollout) -> set[str]:
    return {user for user in USERS if decide(rollout, user) == rollout.mode}


def test_nothing_set_is_on_for_all() -> None:
    assert {decide(Rollout(), user) for user in USERS} == {"on"}


@pytest.mark.parametrize(("rollout", "verdicts"), [
    (Rollout(percent=0), ["off", "off", "off", "off"]),
    (Rollout(percent=0, outside="shadow"), ["shadow", "shadow", "shadow", "shadow"]),
    (Rollout(percent=0, allow=("ada", "ben"), deny=("ben", "cleo"), outside="shadow"), ["on", "off", "off", "shadow"]),
    (Rollout(deny=("ben",)), ["on", "off", "on", "on"]),
    (Rollout("shadow", deny=("ben",)), ["shadow", "off", "shadow", "shadow"]),
    (Rollout("shadow", 0, allow=("cleo",)), ["off", "off", "shadow", "off"]),
    (Rollout("off", 0, allow=("ada",), outside="shadow"), ["off", "off", "off", "off"]),
])
def test_deny_beats_allow_beats_the_percentage_and_off_is_for_everybody(rollout: Rollout, verdicts: list[str]) -> None:
    assert [decide(rollout, user) for user in ("ada", "ben", "cleo", "dev")] == verdicts


def test_a_tenth_is_near_a_tenth() -> None:
    """Of 10,000 users; four standard deviations are 120."""
    for name in ("resets", "another", "third"):
        assert 880 <= len(inside(Rollout(percent=10, name=name))) <= 1_120


@given(st.integers(0, SLOTS), st.integers(0, SLOTS))
def test_a_greater_percentage_only_adds_users(one: int, other: int) -> None:
    small, great = (Rollout(percent=n * 100 / SLOTS) for n in sorted((one, other)))
    assert all(decide(great, user) == "on" for user in USERS[:200] if decide(small, user) == "on")


def test_names_draw_independently() -> None:
    """Of a tenth by one name a tenth is in the tenth by another; four standard deviations are 40."""
    both = inside(Rollout(percent=10, name="one")) & inside(Rollout(percent=10, name="other"))
    assert 60 <= len(both) <= 140


def test_the_limits_of_the_percentage_are_exact() -> None:
    """0 % is nobody, 100 % everybody, and a user is inside from the first share above the slot it falls into."""
    for user in USERS[:1_000]:
        at = slot("resets", user)
        assert decide(Rollout(percent=0), user) == "off"
        assert decide(Rollout(percent=100), user) == "on"
        assert decide(Rollout(percent=at * 100 / SLOTS), user) == "off"
        assert decide(Rollout(percent=(at + 1) * 100 / SLOTS), user) == "on"


def test_users_fall_where_they_always_fell() -> None:
    """Another figure here would move users in and out of every rollout that is under way, on an update or another machine."""
    assert {user: slot("resets", user) for user in FALLEN} == FALLEN
    assert slot("resets", "ada") != slot("other", "ada")


def test_the_same_tenth_in_every_process() -> None:
    """Whatever Python's own hash is salted with."""
    program = ("from statemachine.rollout import Rollout, decide\n"
               "print(*[n for n in range(10_000) if decide(Rollout(percent=10), f'user-{n}') == 'on'])")
    found = {subprocess.run([sys.executable, "-c", program], env={**os.environ, "PYTHONHASHSEED": seed}, cwd=ROOT, text=True,
                            check=True, capture_output=True).stdout for seed in ("0", "1", "4242")}
    here = sorted(int(user.removeprefix("user-")) for user in inside(Rollout(percent=10)))
    assert found == {" ".join(map(str, here)) + "\n"}


@pytest.mark.parametrize("nonsense", [
    {"mode": "ON"}, {"mode": True}, {"mode": None}, {"outside": "on"}, {"outside": ""},
    {"percent": -0.1}, {"percent": 100.0001}, {"percent": float("nan")}, {"percent": float("inf")}, {"percent": "10"},
    {"percent": True}, {"percent": 0.00001},
    {"name": ""}, {"name": "  "}, {"name": "n" * 65}, {"name": "a\0b"}, {"name": 7}, {"name": "\ud800"},
    {"allow": "ada"}, {"allow": ("",)}, {"deny": ("a\0",)}, {"deny": (7,)}, {"deny": 7},
    {"allow": tuple(map(str, range(USERS_LISTED_MAX + 1)))},
])
def test_nonsense_is_refused(nonsense: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        Rollout(**nonsense)


@pytest.mark.parametrize("answer", [True, None, "", "ON", b"on", 1, ["on"]])
def test_only_the_three_words_are_a_verdict(answer: object) -> None:
    with pytest.raises(InvalidInput):
        as_verdict(answer)


@given(st.builds(
    Rollout, st.sampled_from(["on", "shadow", "off"]), st.integers(0, SLOTS).map(lambda n: n * 100 / SLOTS),
    *[st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20)).map(tuple)] * 2,
    st.sampled_from(["shadow", "off"]),
))
def test_it_reads_back_as_it_was_written(rollout: Rollout) -> None:
    assert codec.unpack(Rollout, codec.pack(rollout)) == rollout


def test_a_record_that_means_nothing_does_not_decode() -> None:
    with pytest.raises(StoreCorrupt):
        codec.unpack(Rollout, codec.pack(["on", 200.0, [], [], "off", "resets"]))
