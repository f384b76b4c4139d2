"""containment.pml's steps on the library: several users, each reset by a process of its own, under one global breaker."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import xxhash

from chaos.model.graph import Graph
from chaos.model.process import BY, MODES, WEIGHT_KG, Difference, Ground, Process, refuse_triggers
from statemachine import BreakerPolicy, GlobalBreakerPolicy, ResetManager, ResetTransaction, Store
from statemachine.attempt import Attempt, Context
from statemachine.breaker import Breaker, Now, admit
from statemachine.machine import NEXT
from statemachine.marks import ENDED

PHASES: Final = ("idle", "idle", "idle", "snapshotted", "mutating", "validated", "validated", "committed", "rolledback",
                 "breaker-open", "validated", "", "", "idle")
"""What each phase of the model is in `machine.py`; a dead process has none, and who leases is idle."""
LEASING_GLOBAL: Final = 13
FOR_EVER_S: Final = 1e9
DEATHS_MAX: Final = 1_000
_ALLOWED: Final = frozenset((source.value, trigger) for source, trigger in NEXT)
_OPENING: Final = frozenset({"opening", "settling"})


class Thresholds(NamedTuple):
    """So many failures open a user's breaker, and so many users that failed the global one."""

    failures: int = 1
    users: int = 2


def _policies(thresholds: Thresholds) -> tuple[dict[bool, BreakerPolicy], dict[bool, GlobalBreakerPolicy]]:
    """The policies of users' breakers and of the global one, each by whether it has cooled."""
    own, common = {}, {}
    for cooled, cooldown_s in ((False, FOR_EVER_S), (True, 0.0)):
        own[cooled] = BreakerPolicy(failures_max=thresholds.failures, failure_rate_max=None, suspects_max=DEATHS_MAX,
                                    cooldown_s=cooldown_s, cooldown_s_max=FOR_EVER_S, cooldown_factor=1.0, jitter=0.0)
        common[cooled] = GlobalBreakerPolicy(users_max=thresholds.users, failure_rate_max=None, cooldown_s=cooldown_s,
                                             cooldown_s_max=FOR_EVER_S, cooldown_factor=1.0, jitter=0.0)
    return own, common


class World(Ground):
    """Users, each with a breaker and a process; a cooldown is over where `cooled` has the breaker's generation.

    Each breaker cools by itself, and one clock cannot tell them apart.  So who asks does it by a policy whose cooldown is none
    where the breaker has cooled, and longer than anything lasts where it has not.
    """

    def __init__(self, path: Path, graph: Graph, thresholds: Thresholds) -> None:
        self.users_count = len(graph.of(0, "phase"))
        super().__init__(path, tuple(f"u{number}" for number in range(self.users_count)))
        self.graph = graph
        self._policies = _policies(thresholds)
        self.attempts_each = max(max(state[graph.fields["used"]]) for state in graph.states)
        self.fresh()

    def fresh(self) -> None:
        """Everything as it was at first, with new processes; the operator stays."""
        super().fresh()
        self.begun = [0] * self.users_count
        self.cooled: set[tuple[str, int]] = set()
        self._count = 0
        self.heads = self._heads()
        self.opens(self.users_count)

    def step(self, action: str, who: int) -> None:
        """Do in the library what the model calls `action`, and see that it moves nobody's state but as a commit does."""
        process = self.processes[who]
        if action in _STEPS:
            _STEPS[action](process)
        elif action == "ask":
            self._ask(process)
        elif action == "settle":
            self._settle(process)
        elif action == "reopen":
            _reopen(process)
        else:
            self._environment(action)
        heads = self._heads()
        moved = tuple(after - before for before, after in zip(self.heads, heads, strict=True))
        committed = action == "commit" and process.phase == "committed"
        if moved != tuple(int(committed and number == who) for number in range(self.users_count)):
            message = f"{action} of process {who} moved the versions of the users from {self.heads} to {heads}"
            raise Difference(message)
        self.heads = heads

    def transactions_max(self, action: str) -> int:
        """An opening registers an owner before it settles, and a lease that was lost is a commit that was refused."""
        return {"reopen": 2, "lease global": 2, "begin": 0, "offer": 0, "finish": 0, "crash": 0}.get(action, 1)

    def phase_of(self, state: int, process: Process) -> tuple[str, ...]:
        """One phase, none while the process is dead; who lost the global probe knows it before its own is given back."""
        graph, number = self.graph, process.number
        phase = graph.of(state, "phase")[number]
        if phase == LEASING_GLOBAL and graph.of(state, "ggen")[number] != graph.of(state, "g.gen")[0]:
            return "idle", "breaker-open"
        return (PHASES[phase],) if PHASES[phase] else ()

    def differences(self, state: int) -> str:
        """As every world's; and an attempt that has ended has its one outcome."""
        for process in self.processes:
            if process.tx is not None and process.phase in ("committed", "rolledback"):
                row = self.operator.inspect(process.tx.attempt_id)
                found = "" if row is None else row.public.outcome
                if found.replace("_", "") != process.phase:
                    return f"the attempt of process {process.number} is {process.phase}, and its outcome {found!r}"
        return super().differences(state)

    def refuse_all(self, state: int) -> int:  # noqa: ARG002 - what is refused depends on the phases, and on the files of marks
        """The triggers that the machine refuses; and what nobody left is not settled."""
        tried = refuse_triggers(self, _ALLOWED)
        live = {str(process.owner[0]) for process in self.processes if process.owner is not None}
        live.add(str(self.operator.committer.owner))
        if all(path.name in live for path in self.files()):  # else a file goes, which the model does not know
            txn = self.transactions()
            if self.operator.settle_dead() or self.transactions() != txn:
                message = "nothing was left to settle, and something was changed all the same"
                raise Difference(message)
            tried += 1
        return tried

    def begins(self, number: int, store: Store) -> ResetTransaction:
        """The next attempt on the user of a process, under the model's number of it."""
        self.begun[number] += 1
        attempt = Attempt(self.users[number], "admin", BY["reason"], BY["actor"], "driven", "input")
        tx = ResetTransaction(self._context(store, self.users[number]), attempt)
        self.attempts[tx.attempt_id] = number * self.attempts_each + self.begun[number] - 1
        return tx

    def offers(self, tx: ResetTransaction) -> None:
        """The whole of the attempt's work, and its commit."""
        self._count += 1
        level = WEIGHT_KG + self._count * 1e-3
        tx.apply("driven", lambda state: state.replace(x=(level, 0.0)))
        tx.commit()

    def seen(self) -> dict[str, tuple[int, ...]]:
        """Every breaker, the users in the window of the global one, and what dead processes left."""
        own = [self.breaker(user) for user in self.users]
        common = self.breaker("")
        failing = {who for who, _ in common.failing}
        orphan = [0] * self.users_count
        for number, mark, dead in self.marks():
            if dead and mark.state != ENDED:
                orphan[number // self.attempts_each] = number + 1
        each = [self._variables(breaker, user) for breaker, user in zip(own, self.users, strict=True)]
        return {
            **{f"b.{name}": tuple(variables[name] for variables in each) for name in each[0]},
            **{f"g.{name}": (value,) for name, value in self._variables(common, "").items()},
            "failing": tuple(int(xxhash.xxh3_64_intdigest(user.encode()) in failing) for user in self.users),
            "orphan": tuple(orphan),
        }

    def _variables(self, record: Breaker, user: str) -> dict[str, int]:
        now_us = self.clock.now_us()
        policy = self._policies[0 if user else 1][self._has_cooled(user, record)]
        cooled = record.mode == "open" and admit(record, policy, Now(now_us, now_us), user).verdict == "probe"
        return {
            "mode": MODES.index(record.mode), "fails": record.failures, "wins": record.successes, "gen": record.generation,
            "probe": self.attempts[record.probe] + 1 if record.probe else 0, "cooled": int(cooled),
        }

    def _has_cooled(self, whose: str, record: Breaker) -> bool:
        return (whose, record.generation) in self.cooled

    def _context(self, store: Store, user: str) -> Context:
        own, common = self._policies
        return ResetManager(store, breaker=own[self._has_cooled(user, self.breaker(user))],
                            global_breaker=common[self._has_cooled("", self.breaker(""))]).context

    def _ask(self, process: Process) -> None:
        """The breakers are asked by what has cooled by now; the empty files of the dead go, which the model does not know."""
        self._settle(process)
        while process.at in ("settling", "asking"):
            process.go_on("ask")

    def _settle(self, process: Process) -> None:
        if process.tx is not None and process.store is not None and process.at == "asking":
            process.tx._context = self._context(process.store, self.users[process.number])  # noqa: SLF001 - see the class
        process.go_on("settle")
        if process.at == "settling":
            process.go_on("settle")

    def _environment(self, action: str) -> None:
        operator = ResetManager(self.operator)
        if action in ("cool", "cool 0", "cool last"):
            whose = {"cool": "", "cool 0": self.users[0], "cool last": self.users[-1]}[action]
            self.cooled.add((whose, self.breaker(whose).generation))
        elif action == "force open":
            operator.force_breaker(None, "forced-open", **BY)
        elif action == "release":
            operator.release_breaker(None, **BY)
        else:
            message = f"the driver knows no action {action!r}"
            raise Difference(message)

    def _heads(self) -> tuple[int, ...]:
        heads = [self.operator.head(user) for user in self.users]
        return tuple(0 if head is None else head.version for head in heads)


def _lease_global(process: Process) -> None:
    process.go_on("lease global")
    if process.at == "voiding":  # the user's own probe is given back
        process.go_on("give back")


def _reopen(process: Process) -> None:
    process.start(process.opens)
    while process.at in _OPENING:
        process.go_on("open")
    process.at = ""


_STEPS: Final[dict[str, Callable[[Process], None]]] = {
    "begin": lambda process: process.start(process.attempts), "lease global": _lease_global,
    "finish": Process.finishes, "crash": Process.dies,
    **{word: partial(Process.go_on, word=word) for word in ("lease", "offer", "commit", "fail")},
}
