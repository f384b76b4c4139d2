"""A Hypothesis rule machine over the harness's own oracle and checker, for any target: `machine(target)`.

Its rules are what the workload's clients do, with reopening, and with a crash: every handle is dropped without closing, with an
attempt begun or not, as a kill would leave it.  After each opening, and at the end, the checker judges the whole history.

    from chaos.machine import machine
    from ours import target

    TestOurs = machine(target()).TestCase          # pytest or unittest runs it

Hypothesis comes with none of the extras that run the suites: `pip install hypothesis`.
"""

from __future__ import annotations

import contextlib
import gc
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, Final, NoReturn

from hypothesis import note
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import statemachine.store
from chaos import checker
from chaos.history import Asked, Event, Told
from chaos.target import Target
from chaos.workload import BATCH, BY, PRESENT_US, USERS, Client, Op
from statemachine import ResetError, Store
from statemachine.testing import CountingIds, ManualClock

NAMES: Final = st.sampled_from(USERS)
KINDS: Final = ("reset", "raise", "restore", "mutate")
HOURS_MAX: Final = 24 * 60


class Broken(AssertionError):
    """A promise of the library that does not hold; the text names it as the checker does."""


def machine(target: Target, *, durability: str = "process", witnessed: Counter[str] | None = None) -> type[RuleBasedStateMachine]:
    """A machine class of this target's own; `witnessed` counts how operations ended, by kind, over all its lives.

    The stores lie in temporary directories, which are removed after each life.
    """
    seen = Counter[str]() if witnessed is None else witnessed

    class TargetMachine(_Machine):
        def __init__(self) -> None:
            super().__init__(target, durability, seen)

    TargetMachine.__qualname__ = TargetMachine.__name__ = "".join(
        part.capitalize() for part in target.name.split() if part.isidentifier()) + "Machine"
    return TargetMachine


class _Machine(RuleBasedStateMachine):
    """One life of a store, as its history tells it."""

    store: Store
    client: Client

    def __init__(self, target: Target, durability: str, seen: Counter[str]) -> None:
        super().__init__()
        self.target = target
        self.durability: Any = durability
        self.seen = seen
        self.events: list[Event] = []
        self.sent: Counter[str] = Counter()
        self.ops = 0
        self.broken = False
        self.directory = Path(tempfile.mkdtemp(prefix="chaos-machine-"))
        self.clock, self.ids = ManualClock(PRESENT_US), CountingIds()

    @initialize()
    def begin(self) -> None:
        """The store is made."""
        self._open()

    @rule(user=NAMES)
    def measure(self, user: str) -> None:
        """The user's next measurement is taken in."""
        self._do("measure", user, 1)

    @rule(user=NAMES)
    def measure_many(self, user: str) -> None:
        """The user's next measurements come in a batch."""
        self._do("batch", user, BATCH)

    @precondition(lambda self: bool(self.sent))
    @rule(user=NAMES, kind=st.sampled_from(KINDS))
    def reset(self, user: str, kind: str) -> None:
        """A reset by hand: of the estimator's own, one that raises, a restore, or one of the target's mutations."""
        self._do(kind, user, 0)

    @rule(hours=st.integers(1, HOURS_MAX))
    def wait(self, hours: int) -> None:
        """Time passes, so that an open breaker comes to let a probe through."""
        self.clock.advance(hours * 3_600.0)

    @rule()
    def reopen(self) -> None:
        """The store is closed and opened again."""
        self.store.close()
        self._open()
        if self.store.interrupted:
            self._fail(f"one_outcome: {self.store.interrupted} attempts were settled as interrupted after a close")
        self._judge(opened=True)

    @precondition(lambda self: bool(self.sent))
    @rule(user=NAMES, during=st.booleans())
    def crash(self, user: str, during: bool) -> None:  # noqa: FBT001 - drawn
        """Every handle is dropped without closing, perhaps in the middle of a reset; whoever opens next settles it."""
        if during:
            self._begin(user)
        drop(self.store)
        self.seen["crash"] += 1
        self._open()
        self._judge(opened=True)

    @invariant()
    def every_promise_holds(self) -> None:
        """The checker finds nothing, after any step."""
        if hasattr(self, "store"):
            self._judge(opened=False)

    def teardown(self) -> None:
        """The store is closed, opened once more and judged; nothing of it is left."""
        try:
            if hasattr(self, "store"):
                self.store.close()
                if not self.broken:  # else the first word stands
                    self._open()
                    self._judge(opened=True)
                    self.store.close()
        finally:
            shutil.rmtree(self.directory, ignore_errors=True)

    def _open(self) -> None:
        self.store = self.target.open(self.directory / "store", clock=self.clock, ids=self.ids, durability=self.durability)
        self.client = Client(self.target, self.store, self.events.append, self.ops)

    def _do(self, kind: str, user: str, measured: int) -> None:
        told = self.client.do(Op(kind, user, self.sent[user]))
        self.ops += 1
        self.sent[user] += measured
        self.seen[f"{kind}: {told.error or told.answer}"] += 1
        if measured and told.answer != "acknowledged":
            note(f"{kind} of {user!r} was answered with {told.error}")
            self._fail(f"progress: a measurement of {user!r} was answered with {told.error}")

    def _begin(self, user: str) -> None:
        """An attempt under way that nobody will end."""
        self.events.append(Asked(self.ops, "reset", user))
        tx = self.client.manager.transaction(user, **BY)
        try:
            tx.begin()
        except ResetError as error:
            attempts = {error.attempt_id: ""} if error.attempt_id else {}
            self.events.append(Told(self.ops, "failed", attempts=attempts, error=error.kind))
            self.seen["crash: " + error.kind] += 1
        else:
            self.seen["crash: interrupted"] += 1
        self.ops += 1

    def _judge(self, *, opened: bool) -> None:
        # What was refused has its row with the next commit, or the next opening: until then it may be missing.
        found = checker.judge(self.target, self.events, self.store, marks_lost=not opened)
        if found:
            self._fail("; ".join(found))

    def _fail(self, what: str) -> NoReturn:
        self.broken = True
        raise Broken(what)


def drop(store: Store) -> None:
    """Let go of a store as the death of its process would: its marks stay, and no row is written."""
    store.marks.abandon()
    with contextlib.suppress(ResetError):
        store.engine.close()
    statemachine.store._OPEN_STORES.discard(store)  # noqa: SLF001 - else the end of this process would close it
    gc.collect(0)
