"""A trial of threads: one open store with modelled locks, put back to the same records before each schedule, and its judge."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import xxhash

from chaos import checker
from chaos.faults import locks
from chaos.faults.locks import Clock, Collected, Modelled
from chaos.faults.scheduler import Abandoned, Chooser, Ran, Scheduler, running
from chaos.history import Asked, Event, Told, lines
from chaos.target import Target
from chaos.workload import BY, PRESENT_US, Client, Op, digest
from statemachine import CommitInDoubt, ResetError, ResetResult, ResetTransaction, Store, StoreLimits
from statemachine.marks import SLOTS
from statemachine.testing import CountingIds

LIMITS: Final = StoreLimits(map_bytes=1 << 24, map_bytes_max=1 << 26, writer_wait_s_max=1.0)
OPS_A_THREAD: Final = 1_000


class ThreadIds(CountingIds):
    """Ids that count for each thread apart, so that who is faster changes none of them."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[int, int] = {}

    def attempt_id(self) -> str:
        """The thread's next number as a UUID."""
        run = running()
        if run is None or run.current is None:
            return super().attempt_id()
        thread = run.current.index
        self.counts[thread] = count = self.counts.get(thread, 0) + 1
        return f"{thread + 1:08x}-0000-0000-0000-{count:012x}"


class Trial:
    """A store under a scenario; `told` has what each thread was told last, in the order of the threads.

    `closes`: the scenario closes the store, so that each schedule has a copy of it of its own.
    """

    def __init__(  # noqa: PLR0913 - the parts of a trial
        self, target: Target, directory: Path, modelled: Modelled, users: Sequence[str], threads: int,
        prepare: Callable[[Trial], bool], *, durability: str = "process", closes: bool = False,
    ) -> None:
        self.target = target
        self.users = tuple(users)
        self.usable = True
        self.events: list[Event] = []
        self.told: list[Told | None] = []
        self.sent = dict.fromkeys(self.users, 0)
        self.notes: dict[str, Any] = {}
        self._modelled = modelled
        self._directory = directory
        self._template = directory.with_name(directory.name + "-template")
        self._threads = threads
        self._durability: Any = durability
        self._closes = closes
        self._judged: dict[int, tuple[str, ...]] = {}
        self.clock, self.ids = Clock(PRESENT_US), ThreadIds()
        self._open()
        self.usable = prepare(self)
        self._commit_marks()
        self._before = (list(self.events), dict(self.sent), self.clock.now_us(), self.ids._count)  # noqa: SLF001 - put back
        self._records = dict(self._rows())
        if closes:
            self.store.close()
            shutil.copytree(directory, self._template)

    def _open(self) -> None:
        self.store: Store = self.target.open(
            self._directory, clock=self.clock, ids=self.ids, durability=self._durability, limits=LIMITS,
            opener=self._modelled.opener)
        self.manager = self.target.manager(self.store)
        self.processor = self.target.processor(self.manager)
        self.clients = [self._client(thread) for thread in range(self._threads)]

    def _client(self, thread: int) -> Client:
        client = Client(self.target, self.store, self.events.append, OPS_A_THREAD * (thread + 1))
        client.manager, client.processor = self.manager, self.processor  # threads of one service share them
        return client

    def close(self) -> None:
        """Let go of the store."""
        with contextlib.suppress(ResetError, RuntimeError, Abandoned):
            self.store.close()

    # What scenarios do.

    def do(self, thread: int, kind: str, user: str) -> Told:
        """One operation of a thread, recorded; a measurement is the user's next."""
        n = self.sent.setdefault(user, 0)
        self.sent[user] += kind == "measure"
        told = self.clients[thread].do(Op(kind, user, n))
        self.told[thread] = told
        return told

    def work(self, thread: int, kind: str, user: str) -> Callable[[], object]:
        """The operation as a thread's work; which measurement it sends is fixed before the threads begin."""
        n = self.sent[user]
        self.sent[user] += kind == "measure"

        def act() -> None:
            self.told[thread] = self.clients[thread].do(Op(kind, user, n))

        return act

    def begun(self, user: str, operation: int) -> ResetTransaction:
        """An attempt to reset, begun and mutated, as the operation of that number."""
        self.events.append(Asked(operation, "reset", user))
        tx = self.manager.transaction(user, **BY)
        tx.begin()
        how = self.manager.policy.kinds["admin"]
        for step in self.target.estimator.operations(how, None, tx.event_us):
            tx.apply(step.name, step.run)
        return tx

    def ended(self, operation: int, tx: ResetTransaction, end: Callable[[], ResetResult]) -> Told:
        """How the end of such an attempt is told; nothing is recorded of it yet."""
        try:
            result = end()
        except CommitInDoubt as error:
            return Told(operation, "doubt", attempts={tx.attempt_id: ""}, error=error.kind)
        except ResetError as error:
            return Told(operation, "failed", attempts={tx.attempt_id: ""}, error=error.kind)
        if result.version is None:
            return Told(operation, "failed", attempts={tx.attempt_id: result.outcome})
        seen = ""
        with contextlib.suppress(ResetError):  # closed meanwhile: that changes nothing of what was told
            loaded = self.store.load(tx.user, result.version)
            seen = "" if loaded is None else digest(self.target, loaded.state)
        return Told(operation, "acknowledged", {result.version: seen}, {tx.attempt_id: result.outcome})

    # A schedule.

    def run(self, works: Callable[[Trial], Sequence[Callable[[], object]]], chooser: Chooser) -> Ran:
        """Put the store back to its beginning, and let the threads run."""
        self._renew()
        self.told = [None] * self._threads
        found = works(self)
        locks.faults.clear()
        ran = Scheduler(found, chooser).run()
        self.faults = tuple(locks.faults)
        return ran

    def _renew(self) -> None:
        events, sent, now_us, ids = self._before
        self.notes = {}
        self.clock._now_us, self.ids._count = now_us, ids  # noqa: SLF001 - as if no time had passed and nothing begun
        self.ids.counts.clear()
        self.sent = dict(sent)
        self.events[:] = events
        if self._closes:
            self.close()
            shutil.rmtree(self._directory)
            shutil.copytree(self._template, self._directory)
            self._modelled.opened.clear()
            self._open()
            return
        self.processor.forget()
        self._put_back()
        for client in self.clients:
            client._next = OPS_A_THREAD * (self.clients.index(client) + 1)  # noqa: SLF001 - numbers as at the beginning
        self.store.engine._writes = 1  # noqa: SLF001 - it looks at dead readers every so often: not at another step each time
        if isinstance(self.store.emitter, Collected):
            self.store.emitter.seqs.clear()

    def _put_back(self) -> None:
        env, records = self._environment(), self._records
        with env.begin(write=True) as txn:
            with txn.cursor() as cursor:
                there = dict(cursor.iternext())
            for key in there.keys() - records.keys():
                txn.delete(key)
            for key, value in records.items():
                if there.get(key) != value:
                    txn.put(key, value)

    def _environment(self) -> Any:
        return self.store.engine._env.real  # type: ignore[attr-defined]  # noqa: SLF001 - beneath the model

    def _rows(self) -> list[tuple[bytes, bytes]]:
        with self._environment().begin() as txn, txn.cursor() as cursor:
            return list(cursor.iternext())

    def _commit_marks(self) -> None:
        self.store.commit(self.store.draft())

    # Its judge.

    def judge(self, ran: Ran, expected: Iterable[str]) -> tuple[str, ...]:
        """Every promise that the schedule broke; a trial that is stuck or was left with a lock taken cannot be used again."""
        if ran.stuck:
            self.usable = False
            return (f"progress: {ran.stuck}",)
        found = [f"typed: thread {thread} was left by {type(error).__name__}: {error}"
                 for thread, error in enumerate(ran.errors) if error is not None]
        found += [f"locks: {fault}" for fault in self.faults]
        if ran.timeouts:
            found.append(f"progress: {ran.timeouts} waits ended only by their limit")
        wrong = tuple(f"expected: {what}" for what in expected)
        if self._closes:
            self.close()
            if self._modelled.left_open():
                found.append("closed: the environment is open after the store was closed")
            self._open()
        left = list(self._left_behind())
        self.usable = not (left or self.faults or ran.timeouts)
        return (*found, *left, *self._remembered(), *wrong)

    def _left_behind(self) -> Iterator[str]:
        """What must be as before once no thread does anything: locks, queue, slots of marks, and the order of what was told."""
        committer, marks, emitter = self.store.committer, self.store.marks, self.store.emitter
        for lock in (committer._turn, committer._queue_guard):  # noqa: SLF001 - nobody else can tell
            if lock.locked():
                yield f"progress: {getattr(lock, 'name', 'a lock')} was left taken"
        if committer._queue:  # noqa: SLF001 - as above
            yield f"progress: {len(committer._queue)} drafts were left in the queue"  # noqa: SLF001 - as above
        taken = SLOTS - len(marks._free) - len(marks.ended())  # noqa: SLF001 - as above
        if taken:
            yield f"progress: {taken} slots of marks were not given back"
        seqs = emitter.seqs if isinstance(emitter, Collected) else []
        if seqs != sorted(set(seqs)):
            yield f"told in order: the rows {seqs} were handed to the sinks"

    def _remembered(self) -> tuple[str, ...]:
        """The checker's word; the same records and the same history were judged before, and are not again."""
        hashed = xxhash.xxh3_128()
        for key, value in self._rows():
            hashed.update(key + b"\0" + value)
        # In the order of the operations: who asked first and who was told first changes nothing of what the oracle expects.
        told = sorted(self.events[len(self._before[0]):], key=lambda event: (getattr(event, "op", 0), isinstance(event, Told)))
        marks = sorted(self.store.marks.ended().values(), key=lambda mark: mark.attempt_id)
        hashed.update(lines(told) + repr(marks).encode())
        content = hashed.intdigest()
        if content not in self._judged:
            self._judged[content] = self._whole()
        else:
            for slot in self.store.marks.ended():
                self.store.marks.release(slot)
        return self._judged[content]

    def _whole(self) -> tuple[str, ...]:
        """The store must keep every promise, go on, and keep them still (INV-12)."""
        self._commit_marks()
        found = checker.judge(self.target, self.events, self.store)
        if found:
            return found
        client = self._client(self._threads)
        for user in self.users:
            told = client.do(Op("measure", user, self.sent[user]))
            if told.answer != "acknowledged":
                return (f"progress: the next measurement of {user!r} was answered with {told.error}",)
            client.do(Op("reset", user, self.sent[user] + 1))
        self._commit_marks()
        return tuple(f"afterwards, {what}" for what in checker.judge(self.target, self.events, self.store))


def told_by(trial: Trial) -> list[str]:
    """How each thread ended, in a word: "acknowledged", "doubt", or the kind of its error."""
    return ["nothing" if told is None else told.error or told.answer for told in trial.told]
