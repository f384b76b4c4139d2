"""Estimators: mutations and estimators that are wrong in every way, and hostile measurements.  None of it becomes durable."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec

from chaos import grown, watched
from chaos.checker import judge
from chaos.faults import states
from chaos.grown import USERS, Grown
from chaos.history import Asked, Event, Told
from chaos.suite import Point, Session, Verdict
from chaos.target import Target
from chaos.workload import BY, PRESENT_US, Client, Op, digest
from statemachine import Estimator, ResetError, Store, StoreCorrupt
from statemachine.errors import CommitInDoubt, ConflictError, InvalidInput
from statemachine.validation import StateValidator

OPS: Final = 14
LEAVES_MAX: Final = 26
USER: Final = USERS[0]
OTHER: Final = USERS[1]
HANG_S: Final = 0.15
SECONDS_MAX: Final = 30

ROLLED_BACK: Final = "rolled back, and told"
COMMITTED: Final = "committed: it was valid"
PASSED: Final = "rolled back, and passed on"
OWN: Final = "the estimator's own error came out"
TAKEN: Final = "taken in"
KEPT: Final = "kept aside"
REFUSED: Final = "refused as no input"
KILLED: Final = "killed, settled as interrupted"
NOT_MET: Final = "not met"


class Judged(msgspec.Struct):
    """What a child found."""

    outcome: str = NOT_MET
    violations: list[str] = []


class Hostile(Exception):
    """An exception whose text cannot be had."""

    def __str__(self) -> str:
        """Fail."""
        raise Hostile


class Fatal(BaseException):
    """Somebody's own way to end a program."""


RAISED: Final[dict[str, Callable[[], BaseException]]] = {
    "an error": lambda: ValueError("no"), "an error without a text": Hostile,
    "a text of surrogates": lambda: ValueError("\ud800\0"),
    "a long text": lambda: ValueError("x" * 1_000_000), "StopIteration": StopIteration, "RecursionError": RecursionError,
    "MemoryError": MemoryError, "AssertionError": AssertionError, "a group": lambda: ExceptionGroup("g", [ValueError()]),
    "the store's own error": lambda: StoreCorrupt("not really"), "a conflict": lambda: ConflictError("not really"),
    "a doubt": lambda: CommitInDoubt("not really"), "no input": lambda: InvalidInput("not really"),
    "KeyboardInterrupt": KeyboardInterrupt, "SystemExit": lambda: SystemExit(3), "GeneratorExit": GeneratorExit,
    "CancelledError": asyncio.CancelledError, "a BaseException": Fatal,
}
"""What a mutation may raise."""
RETURNED: Final[dict[str, Callable[[Any], Any]]] = {
    "None": lambda _: None, "a number": lambda _: 0.0, "a text": lambda _: "state", "a tuple of it": lambda s: (s,),
    "its class": type, "a generator": lambda s: (s for _ in range(1)), "its bytes": lambda s: repr(s).encode(),
    "a dictionary": lambda s: dict(states.leaves(s)),
}
"""What a mutation may return that is no state."""
METHODS: Final = ("step", "nis", "encode", "operations", "at_us", "change", "spread", "adapting", "deltas", "reading", "is_state")
ANSWERS: Final[dict[str, Callable[[], Any]]] = {
    "raises": lambda: _raise(ZeroDivisionError("division by zero")), "interrupts": lambda: _raise(KeyboardInterrupt()),
    "gives NaN": lambda: float("nan"), "gives None": lambda: None, "gives a text": lambda: "text",
}


def _raise(error: BaseException) -> Any:
    raise error


class Misbehaving:
    """An estimator that does one thing wrong once it is told to."""

    def __init__(self, estimator: Estimator, method: str, answer: Callable[[], Any]) -> None:
        self._estimator = estimator
        self._method = method
        self._answer = answer
        self.armed = False
        self.met = 0

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._estimator, name)
        if name != self._method:
            return found

        def called(*arguments: Any, **named: Any) -> Any:
            if not self.armed:
                return found(*arguments, **named)
            self.met += 1
            return self._answer()

        return called


class Estimators:
    """One wrong thing done by user code a point."""

    name = "estimator"
    summary = "mutations, estimators and measurements that are wrong: nothing invalid is durable, every error has its type"
    floor = 250
    grows = False
    weight = 6.0
    witnesses = frozenset({ROLLED_BACK, PASSED, COMMITTED, TAKEN, KEPT, KILLED})

    def unavailable(self) -> str:
        """It needs a forked child that may hang."""
        return "" if hasattr(os, "fork") else "this system cannot fork"

    def run(self, session: Session) -> Iterator[Verdict]:
        """Do each in a store of its own."""
        with grown.quiet():
            found = grown.grow(session.target, session.scratch / f"estimator-{session.share}", session.seed, ops=OPS)
            mine = list(session.mine(self._points(session, found)))
            yield from self._verdicts(session, found, mine)

    def replay(self, session: Session, point: Point) -> Verdict:
        """Do that one again."""
        with grown.quiet():
            found = grown.grow(session.target, session.scratch / f"estimator-{session.share}", session.seed, ops=OPS)
            return next(self._verdicts(session, found, [point]))

    def _points(self, session: Session, found: Grown) -> Iterator[Point]:
        for fault, where in points(session.target, found, random.Random(f"{session.seed}/estimator")):
            yield Point(self.name, fault, where)

    def _verdicts(self, session: Session, found: Grown, mine: list[Point]) -> Iterator[Verdict]:
        path = session.scratch / f"estimator-{session.share}-wrong"

        def work(point: Point) -> Judged:
            signal.alarm(SECONDS_MAX)
            done = Trial(session.target, found, path).run(point.fault, point.where)
            signal.alarm(0)
            return done

        for index, judged in watched.each(mine, work):
            if isinstance(judged, watched.Died):
                yield Verdict(mine[index], "died", (f"alive: {judged}",))
                continue
            done = msgspec.convert(judged, Judged)
            yield Verdict(mine[index], done.outcome, tuple(done.violations), fired=done.outcome != NOT_MET)


def points(target: Target, found: Grown, dice: random.Random) -> Iterator[tuple[str, list[Any]]]:
    """Every point: each leaf of a state with each way to spoil it, and the rest by name."""
    with target.open(found.path, readonly=True, **grown.settings()) as store:
        loaded = store.load(USER)
    ways = [] if loaded is None else [way for way, _ in states.leaves(loaded.state)]
    for way in sorted(dice.sample(ways, min(LEAVES_MAX, len(ways))), key=str):
        yield from (("spoilt state", [list(way), how]) for how in states.SPOILT)
        yield from (("alias", [list(way), when]) for when in ("before it is committed", "after", "of the state before"))
    yield from (("raises", [what]) for what in RAISED)
    yield from (("returns", [what]) for what in RETURNED)
    yield from (("misbehaves", [method, how, kind]) for method in METHODS for how in ANSWERS for kind in ("measure", "reset"))
    yield from (("measurement", [name]) for name in HOSTILE)
    yield "hangs", []


class Trial:
    """A copy of the store in which one wrong thing is done."""

    def __init__(self, target: Target, found: Grown, path: Path) -> None:
        self.target = target
        self.found = found
        self.path = found.copy(path)
        self.judged = Judged(violations=[])
        self.events: list[Event] = list(found.events)

    def run(self, fault: str, where: list[Any]) -> Judged:
        """Do it, let others go on, close, open anew, and judge."""
        try:
            self._FAULTS[fault](self, *where)
            with self.target.open(self.path, **grown.settings(3 * grown.IDS_LATER)) as store:
                client = Client(self.target, store, self.events.append, first_op=3 * grown.IDS_LATER)
                for user in (OTHER, USER):
                    told = client.do(Op("measure", user, self.found.next(user) + 3))
                    self._expect(told.answer == "acknowledged", f"goes on: a measurement of {user!r} got {told.error} afterwards")
                self.judged.violations += judge(self.target, self.events, store)
        except ResetError as error:
            self.judged.violations.append(f"goes on: {error.kind}: {error}")
        except Exception as error:  # noqa: BLE001 - whatever comes out of the library untyped is what is looked for
            self.judged.violations.append(f"typed: {type(error).__name__} came out of the library: {str(error)[:200]}")
        return self.judged

    def _expect(self, true: object, otherwise: str) -> None:
        if not true:
            self.judged.violations.append(otherwise)

    def _reset(self, *operations: tuple[str, Callable[[Any], Any]], passes: type[BaseException] | None = None) -> Told | None:
        """A reset of these operations: all or nothing, one outcome row, counted by the breaker where it failed."""
        target = dataclasses.replace(self.target, mutations={"wrong": operations})
        with self.target.open(self.path, **grown.settings()) as store:
            client = Client(target, store, self.events.append, first_op=grown.IDS_LATER)
            before, rows, failures = store.load(USER), sum(1 for _ in store.audit(USER)), client.manager.breaker(USER).failures
            told = None
            try:
                told = client.do(Op("mutate", USER))
            except BaseException as error:
                if passes is None or not isinstance(error, passes):
                    raise
            after = store.load(USER)
            failed = told is None or told.answer != "acknowledged"
            if failed and before is not None and after is not None:
                same = (before.version, digest(self.target, before.state)) == (after.version, digest(self.target, after.state))
                self._expect(same, "before or after: the attempt failed, and the head is another")
            outcomes = [row for row in list(store.audit(USER))[rows:] if row.public.attempt_id and row.public.outcome]
            self._expect(len(outcomes) == 1, f"one outcome: the attempt left {len(outcomes)} rows")
            if told is not None and told.error in ("mutation-failed", "invalid-state"):
                counted = client.manager.breaker(USER)
                did = counted.failures == failures + 1 or counted.mode != "closed"
                self._expect(did, "counted: the breaker does not count it")
            self._check_durable(store)
        return told

    def _check_durable(self, store: Store) -> None:
        """What is stored passes the rules of the target, asked anew, and has no number that is none (INV-04)."""
        loaded = store.load(USER)
        if loaded is None:
            return
        rules = StateValidator((*self.target.estimator.rules, *self.target.rules))
        broken = rules.validate(loaded.state, PRESENT_US)
        self._expect(not broken, f"valid: {broken[:2]} is durable")
        self._expect(states.finite(loaded.state), "valid: a number that is none is durable")

    def _spoilt(self, way: list[Any], how: str) -> None:
        def wrong(state: Any) -> Any:
            old = dict(states.leaves(state)).get(tuple(way))
            return states.replaced(state, tuple(way), states.SPOILT[how](old))

        told = self._reset((f"{how} at {way}", wrong))
        self.judged.outcome = COMMITTED if told is not None and told.answer == "acknowledged" else ROLLED_BACK
        self._expect(told is None or told.answer == "acknowledged" or told.error in ("invalid-state", "mutation-failed"),
                     f"told: it got {told.error if told else ''}")

    def _alias(self, way: list[Any], when: str) -> None:
        kept: list[Any] = []

        def copy(state: Any) -> Any:
            leaf = dict(states.leaves(state))[tuple(way)]
            kept.append(states.replaced(state, tuple(way), leaf))
            if when == "of the state before":
                kept[0] = state
            return kept[0] if when != "of the state before" else states.replaced(state, tuple(way), leaf)

        def spoil(state: Any) -> Any:
            states.forced(kept[0], tuple(way), float("nan"))
            return state if when == "before it is committed" else _raise(ValueError("now that it is spoilt"))

        if not way:
            return
        told = self._reset(("keep it", copy), *(() if when == "after" else (("spoil it", spoil),)))
        if when == "after":
            with self.target.open(self.path, **grown.settings(2 * grown.IDS_LATER)) as store:
                states.forced(kept[0], tuple(way), float("nan"))
                self._check_durable(store)
        self.judged.outcome = COMMITTED if told is not None and told.answer == "acknowledged" else ROLLED_BACK

    def _raises(self, what: str) -> None:
        error = RAISED[what]()
        fatal = not isinstance(error, Exception)
        told = self._reset(("raise", lambda _: _raise(error)), passes=type(error) if fatal else None)
        self.judged.outcome = PASSED if fatal else ROLLED_BACK
        typed = told is not None and told.error == "mutation-failed"
        self._expect(fatal or typed, f"told: it got {told.error if told else ''}")

    def _returns(self, what: str) -> None:
        told = self._reset(("return", RETURNED[what]))
        self.judged.outcome = ROLLED_BACK
        self._expect(told is not None and told.error == "mutation-failed", f"told: it got {told.error if told else ''}")

    def _misbehaves(self, method: str, how: str, kind: str) -> None:
        wrong = Misbehaving(self.target.estimator, method, ANSWERS[how])
        with dataclasses.replace(self.target, estimator=wrong).open(self.path, **grown.settings()) as store:
            client = Client(self.target, store, self.events.append, first_op=grown.IDS_LATER)
            wrong.armed = True
            outcome = NOT_MET
            try:
                told = client.do(Op(kind, USER, self.found.next(USER)))
                outcome = (TAKEN if "accepted" in told.statuses else KEPT if told.statuses else ROLLED_BACK)
            except KeyboardInterrupt:
                outcome = PASSED
            except (ArithmeticError, AttributeError, TypeError, ValueError):
                outcome = OWN
            wrong.armed = False
            if wrong.met:
                self.judged.outcome = outcome
        with self.target.open(self.path, readonly=True, **grown.settings()) as store:
            self._check_durable(store)

    def _measurement(self, name: str) -> None:
        n = self.found.next(USER)
        try:
            made = HOSTILE[name](self.target.measured(USER, n), self.target.measured(USER, max(0, n - 1)))
        except InvalidInput:
            self.judged.outcome = REFUSED
            return
        except (TypeError, ValueError, LookupError, OverflowError):
            return  # a kind of measurement that cannot be spoilt so
        with self.target.open(self.path, **grown.settings()) as store:
            processor = self.target.processor(self.target.manager(store))
            for batch in (False, True):
                try:
                    told = processor.process_batch([made])[0] if batch else processor.process(made)
                    self.judged.outcome = TAKEN if told.status == "accepted" else KEPT
                except InvalidInput:
                    self.judged.outcome = REFUSED
            self._check_durable(store)
        with self.target.open(self.path, readonly=True, **grown.settings()) as store:
            check = store.verify_audit()
            self._expect(not check.problem, f"chained: {check.problem}")
            list(store.quarantine())
        self.events.clear()  # what it made is no answer to any operation of the history
        self.events += self.found.events
        self.path = self.found.copy(self.path)

    def _hangs(self) -> None:
        """A reset that never ends: another process goes on beside it, and once it is killed it is settled."""
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            def hang(_: Any) -> Any:
                os.write(writing, b"!")
                time.sleep(SECONDS_MAX)

            store = self.target.open(self.path, **grown.settings())
            self.target.manager(store).perform_reset(USER, operations=[("hang", hang)], **BY)
            os._exit(1)
        os.read(reading, 1)
        began = time.monotonic()
        with self.target.open(self.path, **grown.settings(2 * grown.IDS_LATER)) as store:
            client = Client(self.target, store, self.events.append, first_op=grown.IDS_LATER)
            for op in grown.more(self.found, (OTHER,)):
                went = client.do(op).answer == "acknowledged"
                self._expect(went, f"contained: {op.kind} of {op.user!r} waits for a reset that hangs")
        self._expect(time.monotonic() - began < 10, "contained: others wait for a reset that hangs")
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with self.target.open(self.path, **grown.settings(4 * grown.IDS_LATER)) as store:
            rows = [row for row in store.audit(USER) if row.public.outcome == "interrupted"]
            self._expect(len(rows) == 1, f"one outcome: the killed attempt left {len(rows)} rows")
            self.events += [Asked(grown.IDS_LATER - 1, "mutate", USER)]
        self.judged.outcome = KILLED

    _FAULTS: Final[dict[str, Callable[..., None]]] = {
        "spoilt state": _spoilt, "alias": _alias, "raises": _raises, "returns": _returns, "misbehaves": _misbehaves,
        "measurement": _measurement, "hangs": _hangs,
    }


def _with(name: str, value: Any) -> Callable[[Any, Any], Any]:
    return lambda measured, _: states.replaced(measured, (name,), value)


def _numbers(value: float) -> Callable[[Any, Any], Any]:
    """Every number of the measurement is this one."""
    def spoil(measured: Any, _: Any) -> Any:
        for way, leaf in list(states.leaves(measured)):
            if isinstance(leaf, float):
                measured = states.replaced(measured, way, value)
        return measured

    return spoil


HOSTILE: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "NaN": _numbers(float("nan")), "infinity": _numbers(float("inf")), "-0.0": _numbers(-0.0), "1e308": _numbers(1e308),
    "5e-324": _numbers(5e-324),
    "year 1": _with("at", datetime(1, 1, 1, tzinfo=UTC)),
    "year 9999": _with("at", datetime(9999, 12, 31, 23, 59, 59, 999_999, UTC)),
    "no zone": _with("at", datetime(2026, 1, 1)),  # noqa: DTZ001 - that is the fault
    "no user": _with("user", ""), "a huge user": _with("user", "u" * 100_000), "a user of surrogates": _with("user", "\ud800"),
    "a user with NUL": _with("user", "a\0b"), "a user that is a number": _with("user", 7),
    "a user like a path": _with("user", "../../etc"), "a user of spaces": _with("user", " \n\t"),
    "a source of surrogates": _with("source", "\udfff"), "a long source": _with("source", "s" * 10**6),
    "the same again": lambda _, before: before, "out of order": lambda _, before: states.replaced(before, ("source",), "another"),
}
"""Hostile measurements, each made of the user's next one and the one before."""
