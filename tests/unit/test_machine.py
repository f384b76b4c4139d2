"""The table of phases is one: the literal, the machine bound from it, and what attempts go by."""

from __future__ import annotations

from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from statemachine import (
    BreakerOpen,
    BreakerPolicy,
    InvalidTransition,
    MutationFailed,
    Phase,
    Processor,
    ResetManager,
    ResetTransaction,
    ResetValidationError,
    Store,
)
from statemachine.audit import configure_for_command
from statemachine.machine import MACHINE, NEXT, TABLE, Guard, allowed
from statemachine.testing import CountingIds, ManualClock, snapshot
from tests.regression.scene import BY, broken, weighed

TRIGGERS = [trigger for trigger, _, _ in TABLE]
PAIRS = list(product(Phase, [*TRIGGERS, "explode", "to_idle", ""]))
# As ARCHITECTURE.md draws it, written down once more by hand.
DRAWN = {
    ("idle", "snapshot"): "snapshotted", ("idle", "refuse"): "breaker-open",
    ("snapshotted", "mutate"): "mutating", ("snapshotted", "roll_back"): "rolledback",
    ("mutating", "mutate"): "mutating", ("mutating", "validate"): "validated", ("mutating", "roll_back"): "rolledback",
    ("validated", "mutate"): "mutating", ("validated", "commit"): "committed", ("validated", "roll_back"): "rolledback",
    ("committed", "finish"): "idle", ("rolledback", "finish"): "idle", ("breaker-open", "finish"): "idle",
}


def guard(phase: Phase, *, live: bool) -> Guard:
    made = Guard(live=live)
    made.state = phase
    return made


def test_the_table_is_the_one_that_is_drawn() -> None:
    """The literal, the table compiled from the machine, and the drawing agree, pair by pair."""
    literal = {(source, trigger): target for trigger, sources, target in TABLE for source in sources}
    assert literal == NEXT
    assert {(source.value, trigger): target.value for (source, trigger), target in NEXT.items()} == DRAWN


def test_the_machine_has_nothing_but_the_table() -> None:
    """No automatic triggers, no callbacks, no model of its own."""
    assert list(MACHINE.events) == TRIGGERS
    assert MACHINE.initial == "IDLE"
    assert MACHINE.models == []
    transitions = [t for event in MACHINE.events.values() for found in event.transitions.values() for t in found]
    assert len(transitions) == len(NEXT)
    for found in (*transitions, *MACHINE.states.values(), MACHINE):
        assert not any(getattr(found, name, None) for name in (
            "before", "after", "conditions", "prepare", "on_enter", "on_exit", "prepare_event", "before_state_change",
            "after_state_change", "finalize_event", "on_exception", "on_final"))


@pytest.mark.parametrize(("phase", "trigger"), PAIRS, ids=lambda value: getattr(value, "value", value))
def test_every_pair_moves_alike_or_is_refused_alike(phase: Phase, trigger: str) -> None:
    """The compiled table, the live machine and the drawing agree; a refusal names both, what is allowed, and moves nothing."""
    target = DRAWN.get((phase.value, trigger))
    for live in (False, True):
        one = guard(phase, live=live)
        if target is not None:
            one.check(trigger)
            assert one.phase is phase, "a check moves nothing"
            assert one.fire(trigger) is one.phase is Phase(target)
            continue
        for act in (one.check, one.fire):
            with pytest.raises(InvalidTransition) as refused:
                act(trigger)
            assert one.phase is phase
            expected = [name for source, name in DRAWN if source == phase.value]
            assert (refused.value.trigger, refused.value.phase) == (trigger, phase.value)
            assert sorted(refused.value.allowed) == sorted(expected)
            assert str(refused.value) == f"cannot {trigger} in phase {phase.value}; allowed there: {', '.join(allowed(phase))}"


@pytest.mark.parametrize("live", [False, True])
def test_a_live_attempt_fires_the_machine_itself(live: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a user hangs on the machine is called by live attempts, and costs the others nothing."""
    called: list[str] = []
    (transition,) = MACHINE.events["snapshot"].transitions["IDLE"]
    monkeypatch.setattr(transition, "before", [lambda: called.append("before")])
    for one in (Guard(live=live), *([] if live else [Guard()])):
        assert one.fire("snapshot") is Phase.SNAPSHOTTED
    assert called == ["before"] * live


@given(st.lists(st.sampled_from(TRIGGERS), max_size=30))
def test_any_walk_is_the_same_walk(walk: list[str]) -> None:
    """Whatever is fired in whatever order, table and machine stay in one phase and refuse the same triggers."""
    guards = (Guard(), Guard(live=True))
    for trigger in walk:
        answers: list[Any] = []
        for one in guards:
            try:
                answers.append(one.fire(trigger))
            except InvalidTransition as refused:
                answers.append(str(refused))
        assert answers[0] == answers[1]
    assert guards[0].phase is guards[1].phase


def test_every_phase_can_be_reached_and_left() -> None:
    seen, front = {Phase.IDLE}, [Phase.IDLE]
    while front:
        phase = front.pop()
        assert allowed(phase)
        front += {target for (source, _), target in NEXT.items() if source is phase and target not in seen}
        seen.update(front)
    assert seen == set(Phase)


def moved(kg: float, s: Any) -> Any:
    return s.replace(x0=kg)


def lived(path: Path, *, live: bool) -> tuple[list[Any], dict[str, Any]]:
    """A life of attempts: the phases each passed through, how it ended, and the store in the end."""
    found: list[Any] = []
    configure_for_command(verbose=False)
    with Store.open(path, clock=ManualClock(), ids=CountingIds(), durability="process") as store:
        manager = ResetManager(store, breaker=BreakerPolicy(failures_max=2), live=live)
        found.append(Processor(manager).process_batch(weighed("u", day - 10, 80.0) for day in range(3)))

        def walked(tx: ResetTransaction, *acts: str) -> None:
            phases = [tx.phase]
            try:
                with tx:
                    phases.append(tx.phase)
                    for act in acts:
                        if act == "commit":
                            tx.commit()
                        elif act == "fail":
                            tx.apply("fail", broken)
                        else:
                            tx.apply("move", partial(moved, float(act)))
                        phases.append(tx.phase)
            except (MutationFailed, ResetValidationError, BreakerOpen, InvalidTransition) as error:
                phases.append(tx.phase)
                found.append(f"{type(error).__name__}: {error}")
            found.append(([phase.value for phase in phases], tx.phase.value, tx.result))

        for acts in (("81", "82", "commit"), ("81",), (), ("commit",), ("81", "fail", "commit"), ("10", "commit"),
                     ("81", "commit"), ("82",)):
            walked(manager.transaction("u", **BY), *acts)
        assert store.verify_audit().problem == ""
        found.append([row.as_dict() for row in store.audit()])
        for row in found[-1]:
            del row["store_id"], row["prev_hash"], row["hash"]
        answer = snapshot(store)
    structlog.reset_defaults()
    return found, answer


def test_attempts_end_alike_by_the_table_and_by_the_live_machine(tmp_path: Path) -> None:
    """Commit, rollback, failure, refusal and misuse: the same phases, results, errors, rows and records."""
    by_table, by_machine = (lived(tmp_path / str(live), live=live) for live in (False, True))
    assert by_table == by_machine
    walks = [entry[0] for entry in by_table[0] if isinstance(entry, tuple)]
    assert walks[0] == ["idle", "snapshotted", "validated", "validated", "committed"]
    ends = {entry[1] for entry in by_table[0] if isinstance(entry, tuple)}
    assert ends == {"committed", "rolledback", "breaker-open"}
