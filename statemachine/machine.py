"""The phases of a reset attempt, as one literal table bound with `transitions`.

The shared `MACHINE` is the definition: diagrams, tests and callers' own callbacks read it.  Attempts move by `NEXT`,
compiled from `MACHINE.events` at import; with `live=True` they fire the machine's own triggers.  The machine is a
guard and has no effects: whatever is done to the store is done by `ResetTransaction` after the guard has agreed.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from transitions import Machine, MachineError

from statemachine.errors import InvalidTransition


class Phase(Enum):
    """Where an attempt stands."""

    IDLE = "idle"
    SNAPSHOTTED = "snapshotted"
    MUTATING = "mutating"
    VALIDATED = "validated"
    COMMITTED = "committed"
    ROLLEDBACK = "rolledback"
    BREAKER_OPEN = "breaker-open"


TABLE: Final[tuple[tuple[str, tuple[Phase, ...], Phase], ...]] = (
    ("snapshot", (Phase.IDLE,), Phase.SNAPSHOTTED),
    ("mutate", (Phase.SNAPSHOTTED, Phase.MUTATING, Phase.VALIDATED), Phase.MUTATING),
    ("validate", (Phase.MUTATING,), Phase.VALIDATED),
    ("commit", (Phase.VALIDATED,), Phase.COMMITTED),
    ("roll_back", (Phase.SNAPSHOTTED, Phase.MUTATING, Phase.VALIDATED), Phase.ROLLEDBACK),
    ("refuse", (Phase.IDLE,), Phase.BREAKER_OPEN),
    ("finish", (Phase.COMMITTED, Phase.ROLLEDBACK, Phase.BREAKER_OPEN), Phase.IDLE),
)
"""Trigger, the phases it may be fired in, and the phase it leads to."""

MACHINE: Final = Machine(
    model=None,
    states=Phase,
    initial=Phase.IDLE,
    auto_transitions=False,
    transitions=[
        {"trigger": trigger, "source": list(sources), "dest": target} for trigger, sources, target in TABLE
    ],
)

NEXT: Final[dict[tuple[Phase, str], Phase]] = {
    (Phase[source], trigger): Phase[str(transition.dest)]
    for trigger, event in MACHINE.events.items()
    for source, transitions in event.transitions.items()
    for transition in transitions
}


def allowed(phase: Phase) -> tuple[str, ...]:
    """The triggers that may be fired in `phase`, in the table's order."""
    return tuple(trigger for trigger, _, _ in TABLE if (phase, trigger) in NEXT)


class Guard:
    """The phase of one attempt; `fire` moves it or raises `InvalidTransition` and leaves it where it was."""

    __slots__ = ("live", "state")

    def __init__(self, *, live: bool = False) -> None:
        self.state = Phase.IDLE
        self.live = live

    @property
    def phase(self) -> Phase:
        """Where the attempt stands now."""
        return self.state

    def check(self, trigger: str) -> None:
        """Raise `InvalidTransition` unless `trigger` may be fired now; moves nothing."""
        if (self.state, trigger) not in NEXT:
            raise InvalidTransition(trigger, self.state.value, allowed(self.state))

    def fire(self, trigger: str) -> Phase:
        """Move by `trigger`; raises `InvalidTransition`, naming trigger, phase and what is allowed, and moves nothing."""
        if self.live:
            return self._fire_live(trigger)
        target = NEXT.get((self.state, trigger))
        if target is None:
            raise InvalidTransition(trigger, self.state.value, allowed(self.state))
        self.state = target
        return target

    def _fire_live(self, trigger: str) -> Phase:
        event = MACHINE.events.get(trigger)
        if event is None:
            raise InvalidTransition(trigger, self.state.value, allowed(self.state))
        try:
            event.trigger(self)
        except MachineError as error:
            raise InvalidTransition(trigger, self.state.value, allowed(self.state)) from error
        return self.state
