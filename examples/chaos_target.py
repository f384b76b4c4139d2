"""The boats of `tracker.py` as a target of the chaos suites: your own state, rules and mutations instead of body weight.

    cd examples
    python -m chaos run --target chaos_target:boats
    pytest --chaos-target chaos_target:boats

`fix` is given dice that the harness has seeded, so that the same boat always sends the same fixes.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import msgspec
from tracker import POLICY, START, Fix, Tracker

from chaos import Target
from statemachine import ResetManager

if TYPE_CHECKING:
    import random


def fix(boat: str, n: int, dice: random.Random) -> Fix:
    """Under way at 6 m/s, with ten minutes of silence after every eleventh fix, and every seventh fix 4 km off."""
    second = 10 * n + 600 * (n // 11)
    return Fix(boat, START + timedelta(seconds=second), 6.0 * second + dice.gauss(0.0, 4.0) + 4e3 * (n % 7 // 6), 1.5 * second)


def boats() -> Target:
    """What `--target` names."""
    calm = ("calm the sea", lambda track: msgspec.structs.replace(track, q=0.5 * track.q))
    return Target("boats", Tracker(), measurement=fix, mutations={"calm": (calm,)},
                  manager=lambda store: ResetManager(store, policy=POLICY))
