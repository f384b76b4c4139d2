"""What an attempt is for, what it shares with others, and how it ended: the values around `ResetTransaction`."""

from __future__ import annotations

from typing import Any, NamedTuple

from statemachine.audit import Operation
from statemachine.breaker import BreakerPolicy, GlobalBreakerPolicy, Now
from statemachine.policy import ResetPolicy
from statemachine.store import Store
from statemachine.validation import Violation


class Checkpoint(NamedTuple):
    """A validated savepoint inside an attempt."""

    name: str
    state: Any


class ResetResult(NamedTuple):
    """How an attempt ended.

    `outcome`: "committed", "rolled_back", "refused", "conflicted", "dry_run" or "shadowed".  `version` is the new version,
    None when nothing was committed.  `delta_x` and `delta_P` (row by row) are in the estimator's units.  `withheld` is true
    where the rollout, and nothing else, kept it from being carried out.
    """

    outcome: str
    attempt_id: str
    user: str
    kind: str
    base_version: int
    version: int | None
    violations: tuple[Violation, ...] = ()
    operations: tuple[Operation, ...] = ()
    delta_x: tuple[float, ...] | None = None
    delta_P: tuple[float, ...] | None = None  # noqa: N815 - the literature's letter
    error: str = ""
    withheld: bool = False


class Context(NamedTuple):
    """What every attempt of a manager shares."""

    store: Store
    policy: ResetPolicy
    breaker: BreakerPolicy
    live: bool = False
    global_breaker: GlobalBreakerPolicy = GlobalBreakerPolicy()
    resets_per_minute: int | None = None


class Attempt(NamedTuple):
    """What an attempt is for: kind, trigger, who asked and why, when, and the input it rests on.

    `now` is the instant that breakers and probation are judged by; `event_us` that of the event the attempt stands for.
    """

    user: str
    kind: str
    reason: str = ""
    actor: str = ""
    trigger: str = ""
    input: str = ""
    now: Now | None = None
    expect_version: int | None = None
    dry_run: bool = False
    event_us: int | None = None
