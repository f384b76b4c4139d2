"""history.pml's steps on the library: one user's log under damage and newer rules, with processes that plan and then commit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final
from unittest import mock

import msgspec

from chaos.model.graph import Graph
from chaos.model.process import BY, LIMITS, WEIGHT_KG, Died, Difference, Ground, Process
from statemachine import (
    BreakerPolicy,
    GlobalBreakerPolicy,
    Measurement,
    Processor,
    ResetError,
    ResetManager,
    ResetPolicy,
    StoreCorrupt,
    VersionPruned,
)
from statemachine.recovery import UNRECOVERABLE
from statemachine.state import user_key
from statemachine.store import Store, identities, keys, log
from statemachine.store.draft import Draft
from statemachine.store.records import ACCEPTED, Head, Image
from statemachine.validation import Rule, StateValidator, Violation

USER: Final = "u1"
KEY: Final = user_key(USER)
STEP, IMAGE = 1, 2
RESET_KG: Final = 10.0
BETWEEN_S: Final = 60.0
KEYFRAME: Final = 4
KEPT: Final = 3
PASSED: Final = 2
FAILURES_MAX: Final = 1_000
_NEVER: Final = (
    BreakerPolicy(failures_max=FAILURES_MAX, failure_rate_max=None, suspects_max=FAILURES_MAX),
    GlobalBreakerPolicy(users_max=None, failure_rate_max=None),
)


_BY: Final[dict[str, Any]] = {**BY}


class _Dropped(BaseException):
    """Raised in a process that would try again what it planned: in the model a plan that misses is over."""


class Planner(Process):
    """A process that plans: it reads and decides, and stops before it writes."""

    world: World
    plan = ""
    measurement: Measurement | None = None

    def commits(self, real: Callable[[Draft], Any], draft: Draft) -> Any:
        """Wait before whatever is written, but for what an opening settles and the row that nothing can be read."""
        if self.dying:
            raise Died
        answers = self.plan == "recover" and any(entry.public.event == UNRECOVERABLE for entry in draft.entries)
        if self.store is not None and not answers:
            self.pause("offered")
        return real(draft)

    def settles(self, real: Callable[[], int]) -> int:
        """An opening is one step with the death before it."""
        return real()

    def pause(self, at: str) -> str:
        """As every process; one that is told to leaves what it does."""
        told = super().pause(at)
        if told == "drop":
            raise _Dropped
        return told

    def plans(self, plan: str) -> None:
        """Read and decide, up to the write; a restore stops before it has judged the version that it wants."""
        store = self.store
        if store is None:
            message = "a plan in a process without a store"
            raise Difference(message)
        self.plan, self.error = plan, ""
        self.start(lambda: self._does(self.world.work(plan, store, self)))
        while self.at == "asking" and plan != "restore":
            self.go_on("")
        self._rests()

    def commit(self) -> None:
        """Write what was planned, once."""
        self.go_on("")
        if self.plan == "restore" and self.at == "offered":
            self.go_on("")
        if self.at in ("offered", "asking"):
            self.go_on("drop")
        self._rests()

    def _rests(self) -> None:
        if self.worker is None or self.worker.dead:
            self.plan, self.at = "", ""

    def _does(self, work: Callable[[], object]) -> None:
        try:
            work()
        except _Dropped:
            self.error = "conflicted"
        except ResetError as error:
            self.error = str(error)
        self.at = ""


class World(Ground):
    """The log of one user, what is damaged in it, and the rules in force.

    What a version was is remembered, since one that is damaged cannot be asked any more.
    """

    limits = msgspec.structs.replace(LIMITS, versions_max=KEPT)

    def __init__(self, path: Path, graph: Graph) -> None:
        self.graph = graph
        self.processes_count = len(graph.of(0, "plan"))
        self.versions_max = len(graph.of(0, "kind"))
        self._keyframes = mock.patch.object(log, "KEYFRAME_VERSIONS", KEYFRAME)
        self._keyframes.start()
        self.breaks = 0
        self.made: dict[bytes, int] = {}
        super().__init__(path, (), Planner)
        self.fresh()

    def close(self) -> None:
        """Let go of the environment."""
        self._keyframes.stop()
        super().close()

    def fresh(self) -> None:
        """Nothing stored, and new processes; the operator stays."""
        super().fresh()
        self.breaks, self.made = 0, {}
        self._resets = self._flips = 0
        self.states: dict[int, int] = {}
        self.kinds: dict[int, int] = {}
        self.took: dict[int, bytes] = {}
        self.newest = 0
        self.probation = self.passed = 0
        self._rule(0)
        self.opens(self.processes_count)

    def step(self, action: str, who: int) -> None:
        """Do in the library what the model calls `action`."""
        word, _, what = action.partition(" ")
        if word == "plan":
            self.clock.advance(BETWEEN_S)
            self._planner(who).plans(what)
        elif action == "commit":
            process = self._planner(who)
            plan, measurement = process.plan, process.measurement
            process.commit()
            self._note(plan, measurement)
        elif action == "crash":
            self.processes[who].dies()
            self.processes[who].start(self.processes[who].opens)
            self.processes[who].at = ""
            self._planner(who).plan = ""
        elif action == "flip":
            self._flip(keys.version(KEY, who))
            if who == self.newest and self._head() is not None:
                self._flip(keys.head(KEY))
        elif action == "flip head":
            self._flip(keys.head(KEY))
        elif action == "newer rules":
            self._rule(self.states[who])
        else:
            message = f"the driver knows no action {action!r}"
            raise Difference(message)

    def transactions_max(self, action: str) -> int:
        """An opening registers and settles; damage to a record and its head is two writes of ours, and no answer is a row."""
        return {"crash": 3, "flip": 2, "commit": 1, "flip head": 1, "plan recover": 1}.get(action, 0)

    def _planner(self, who: int) -> Planner:
        process = self.processes[who]
        if not isinstance(process, Planner):
            message = f"process {who} cannot plan"
            raise Difference(message)
        return process

    def manager(self, store: Store) -> ResetManager:
        """A manager whose probations are short, and whose breakers never open."""
        return ResetManager(store, policy=ResetPolicy(probation_measurements=PASSED), breaker=_NEVER[0], global_breaker=_NEVER[1])

    def work(self, plan: str, store: Store, process: Planner) -> Callable[[], object]:
        """What a process does to carry out a plan, by the library's own doors."""
        manager = self.manager(store)
        if plan in ("initial", "accept"):
            head = self._head()
            level = WEIGHT_KG if head is None else self.estimator.decode(head.state).kalman.x0
            measurement = process.measurement = self.measurement(USER, round(level, 3))
            return lambda: Processor(manager).process(measurement)
        if plan == "reset":
            self._resets += 1
            level = WEIGHT_KG + RESET_KG * self._resets
            operations = [("driven", lambda state: state.replace(x=(level, 0.0)))]
            return lambda: manager.perform_reset(USER, operations=operations, **_BY)
        if plan == "recover":
            return lambda: manager.recover(USER)
        return lambda: manager.restore(USER, to_version=manager.last_known_good(USER), **_BY)

    def _note(self, plan: str, measurement: Measurement | None) -> None:
        """Remember what a commit made, while it can be read."""
        head = self._head()
        if head is None:
            return
        self.probation, self.passed = (0, 0) if head.probation is None else (head.probation.version, head.probation.accepted)
        if head.version == self.newest:
            return
        self.newest = head.version
        for version in range(head.first, head.version + 1):
            content = self._content(version)
            if content is not None:
                self.kinds[version] = IMAGE if isinstance(content, Image) else STEP
        self.states[head.version] = self.made.setdefault(head.state, head.version)
        if plan in ("initial", "accept") and measurement is not None:
            self.took[head.version] = identities.key_of(KEY, measurement)

    def _flip(self, key: bytes) -> None:
        """Change one bit, each time another one."""
        self._flips += 1
        with self.engine.turn(), self.engine.write() as txn:
            value = txn.get(key) or b""
            txn.put(key, value[:-1] + bytes((value[-1] ^ (1 << self._flips % 8),)))

    def _rule(self, breaks: int) -> None:
        """Rules in force from now on, in every process: those of a store that was opened anew with them."""
        self.breaks = breaks
        self.rules = (Rule("newer", self._check, str(breaks)),) if breaks else ()
        for store in (self.operator, *(process.store for process in self.processes)):
            if store is not None:
                store.validator = StateValidator((*self.estimator.rules, *self.rules))

    def _check(self, state: Any, _present_us: int | None, _known: Any) -> Iterator[Violation]:
        if self.made.get(self.estimator.encode(state)) == self.breaks:
            yield Violation("newer", "state", str(self.breaks), "another state")

    def _head(self) -> Head | None:
        try:
            return self.operator.head(USER)
        except StoreCorrupt:
            return None

    def seen(self) -> dict[str, tuple[int, ...]]:
        """The log, its damage, the head, the pin, and what was put aside."""
        first, newest = self.operator.version_range(USER)
        head, draft = self._head(), self.operator.draft()
        kind, torn, state, took, left = ([0] * self.versions_max for _ in range(5))
        for version in range(first, newest + 1) if newest else ():
            content = self._content(version)
            torn[version] = int(content is None)
            kind[version] = self.kinds[version] if content is None else IMAGE if isinstance(content, Image) else STEP
            state[version] = self._state_of(version)
            took[version] = int(version in self.took)
            if version in self.took:
                kept = draft.identity(self.took[version])
                left[version] = int(kept is None or kept.disposition != ACCEPTED)
        if head is not None and newest and self.made.get(head.state) != state[newest]:
            message = f"the head is not the state of version {newest}"
            raise Difference(message)
        pin = draft.pin(KEY)
        return {
            "kind": tuple(kind), "newest": (newest,), "first": (first,), "torn": tuple(torn),
            "head_torn": (int(bool(newest) and head is None),), "probation": (self.probation,), "passed": (self.passed,),
            "pin": (0 if pin is None else pin.version + 1,), "took": tuple(took), "left": tuple(left), "state": tuple(state),
            "moved_aside": (sum(1 for _ in self.engine.scan(keys.DAMAGED, keys.after(keys.DAMAGED))),), "breaks": (self.breaks,),
        }

    def _content(self, version: int) -> Image | tuple[Any, int] | None:
        with self.engine.reading() as txn:
            try:
                return log.entry(txn.get, KEY, version)
            except StoreCorrupt:
                return None

    def _state_of(self, version: int) -> int:
        """Which state a version holds, as it reads; as it was where it does not."""
        with self.engine.reading() as txn:
            try:
                state = log.fold(txn.get, self.estimator, KEY, version)
            except StoreCorrupt:
                return self.states[version]
        known = self.made.get(self.estimator.encode(state))
        if known is None:
            message = f"version {version} is a state that nobody made"
            raise Difference(message)
        return known

    def differences(self, state: int) -> str:
        """As every world's; and whoever has a plan in the model has one here, a restore that of the same version."""
        plans = self.graph.of(state, "plan")
        for process in self.processes:
            planner = self._planner(process.number)
            if bool(planner.plan) != bool(plans[process.number]):
                return (f"process {process.number} plans {planner.plan or 'nothing'} ({planner.error}), "
                        f"and {plans[process.number]} in the model")
        return super().differences(state)

    def phase_of(self, state: int, process: Process) -> tuple[str, ...]:  # noqa: ARG002 - plans are compared instead
        """Nothing: an attempt under way is a plan."""
        return ()

    def refuse_all(self, state: int) -> int:
        """What the model has no step for here, tried by the operator: it raises or keeps aside, and no version or head moves."""
        manager, before = self.manager(self.operator), self._stored()
        first, newest = self.operator.version_range(USER)
        tried = [self._refused(VersionPruned, lambda: manager.restore(USER, to_version=newest + 1, **_BY))] if newest else []
        if first > 1 and self.graph.of(state, "pin")[0] == 0:
            tried.append(self._refused(VersionPruned, lambda: manager.restore(USER, to_version=first - 1, **_BY)))
        calm = not any(self.graph.of(state, "plan"))
        if newest and self._head() is None:
            reset = [("refused", lambda state: state)]
            tried.append(self._refused(StoreCorrupt, lambda: manager.perform_reset(USER, operations=reset, **_BY)))
            if self.operator.newest_good(USER) is None:
                tried.append(self._kept(manager))
        elif newest:
            tried.append(manager.recover(USER) is None)
            if calm and self.states[newest] == self.breaks:
                tried.append(self._kept(manager))
        if not all(tried) or self._stored() != before:
            message = f"the model has no step for one of {len(tried)} things that were tried ({tried}), and it was done"
            raise Difference(message)
        return len(tried)

    def _kept(self, manager: ResetManager) -> bool:
        """Whether a measurement is kept aside, where no state is sound: no reset may start, and nothing is walked back."""
        self.clock.advance(1.0)
        return Processor(manager).process(self.measurement(USER, WEIGHT_KG)).status == "quarantined"

    @staticmethod
    def _refused(error: type[ResetError], act: Callable[[], object]) -> bool:
        try:
            act()
        except ResetError as raised:
            return isinstance(raised, error)
        return False

    def _stored(self) -> list[tuple[bytes, bytes]]:
        """The user's log and head, the pin, and what was moved aside."""
        spans = (keys.versions(KEY), keys.head(KEY), keys.pin(KEY), keys.DAMAGED)
        return [row for start in spans for row in self.engine.scan(start, keys.after(start))]
