"""A campaign: suites run by several workers, counted, held to their floors and witnesses.

Each worker is a forked process with a share of every suite's points.  It sends what it found down a pipe: counts several times a
second, a broken promise at once.  A worker that dies is itself a finding.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, NoReturn, Protocol, runtime_checkable

import msgspec
import xxhash

from chaos.history import Made
from chaos.suite import CANNOT, Plan, Session, Suite, Verdict
from chaos.target import Target

SEND_EVERY_S: Final = 0.2
ALIKE_MAX: Final = 3
"""Findings of one fault and promise that a worker keeps."""
SILENT_S_MAX: Final = 600.0
"""A worker that has not said a word for so long hangs, and is ended: no point takes as long."""
FINDINGS_MAX: Final = 50
"""Findings of one suite that a worker keeps; what breaks more often is counted."""


@runtime_checkable
class Shrinks(Protocol):
    """What a suite may have beside: a shorter point that breaks the same promise."""

    def shrink(self, session: Session, verdict: Verdict) -> Verdict:
        """The shortest that it finds in a few seconds; the verdict itself where there is none."""


class Asked(msgspec.Struct, frozen=True):
    """What a campaign is asked for; `target` is the name it was loaded by, "" for body weight."""

    suites: tuple[str, ...]
    seed: int = 1
    plan: Plan = "short"
    target: str = ""
    budget_s: float | None = None
    workers: int = 1
    planted: str = ""


class Finding(msgspec.Struct, frozen=True):
    """A broken promise, with all that makes it again."""

    verdict: Verdict
    target: str
    seed: int
    plan: Plan
    planted: str = ""
    made: Made | None = None


class Ran(msgspec.Struct):
    """What one suite came to, all workers together.

    `digest` sums up every point with its verdict: two runs of one seed that went to their end have equal ones.
    `untried`: the faults that this machine does not allow, each with how many points of it were left out, and why.
    `over`: how many workers have done with it; `ended`: those of them that came to the end of its plan.
    """

    suite: str
    floor: int
    unavailable: str = ""
    fired: int = 0
    unfired: int = 0
    broken: int = 0
    seconds: float = 0.0
    over: int = 0
    ended: int = 0
    digest: int = 0
    outcomes: dict[str, dict[str, int]] = {}
    untried: dict[str, dict[str, int]] = {}
    findings: list[Finding] = []
    unseen: list[str] = []
    trouble: str = ""

    @property
    def failures(self) -> list[str]:
        """Why the suite did not pass; empty when it did."""
        if self.unavailable:
            return []
        found = [f"{self.broken} of {self.fired + self.unfired} points broke a promise"] if self.broken else []
        if self.trouble:
            found.append(self.trouble)
        if self.fired + sum(sum(why.values()) for why in self.untried.values()) < self.floor:
            found.append(f"{self.fired:,} faults fired, of at least {self.floor:,}")
        if self.unseen:
            found.append(f"never seen: {'; '.join(self.unseen)}")
        return found


class _Part(msgspec.Struct, omit_defaults=True):
    """What a worker sends: counts since the last, or that it begins or ends a suite."""

    suite: str
    trying: str = ""
    seconds: float = 0.0
    over: bool = False
    ended: bool = False
    digest: int = 0
    unfired: int = 0
    broken: int = 0
    counts: dict[str, dict[str, int]] = {}
    untried: dict[str, dict[str, int]] = {}
    findings: list[Finding] = []
    trouble: str = ""


_encode = msgspec.json.Encoder().encode
_decoder = msgspec.json.Decoder(_Part)
Watching = Callable[[list[Ran], str], None]


def run(asked: Asked, target: Target, suites: Mapping[str, Suite], watching: Watching = lambda _ran, _trying: None) -> list[Ran]:
    """Run the suites asked for; `watching` is called as results come in, with all of them and with what is being tried.

    Whatever ends it, every worker is ended and the scratch directory removed.
    """
    chosen = {name: suites[name] for name in asked.suites}
    found = {name: _ran(name, suite, asked) for name, suite in chosen.items()}
    able = {name: suite for name, suite in chosen.items() if not found[name].unavailable}
    scratch = Path(tempfile.mkdtemp(prefix="chaos-", dir=_tmpfs()))
    workers: dict[int, int] = {}
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        for share in range(asked.workers):
            reading, writing = os.pipe()
            child = os.fork()
            if child == 0:
                os.close(reading)
                _Worker(asked, target, able, scratch, share, writing).work()
            os.close(writing)
            workers[reading] = child
            with contextlib.suppress(OSError):  # it has done so itself, and may be gone
                os.setpgid(child, child)
        for part in _parts(workers, found):
            _add(found[part.suite], part)
            watching(list(found.values()), part.trying)
    finally:
        for descriptor, child in workers.items():
            os.close(descriptor)
            os.killpg(child, signal.SIGKILL)  # with the children of its suites
            os.waitpid(child, 0)
        shutil.rmtree(scratch, ignore_errors=True)
    for name, suite in able.items():
        _judge(found[name], suite, asked)
    return list(found.values())


def _ran(name: str, suite: Suite, asked: Asked) -> Ran:
    session = Session(Target(), asked.seed, asked.plan, Path())
    floor = suite.floor * (session.times if suite.grows else 1)
    return Ran(name, floor, suite.unavailable(), outcomes={}, untried={}, findings=[], unseen=[])


def _tmpfs() -> str | None:
    """A directory in memory where there is one, so that a sync costs nothing."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108 - the directories below it are our own


def _judge(ran: Ran, suite: Suite, asked: Asked) -> None:
    seen = {outcome for outcomes in ran.outcomes.values() for outcome in outcomes}
    ran.unseen = sorted(suite.witnesses - seen)
    if ran.ended < asked.workers and not ran.trouble and asked.budget_s is None:
        ran.trouble = "it did not come to its end"


def _parts(workers: dict[int, int], found: Mapping[str, Ran]) -> Iterator[_Part]:
    """What the workers send, until the last is gone; a death is told as the trouble of the suite it was at."""
    at = dict.fromkeys(workers, next(iter(found), ""))
    heard = dict.fromkeys(workers, time.monotonic())
    rest = dict.fromkeys(workers, b"")
    with selectors.DefaultSelector() as selector:
        for descriptor in workers:
            selector.register(descriptor, selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(SILENT_S_MAX)
            for descriptor, child in workers.items():
                if heard[descriptor] + SILENT_S_MAX <= time.monotonic():
                    yield _Part(at[descriptor], trouble=f"a worker had no verdict for {SILENT_S_MAX:g} s, and was ended")
                    os.killpg(child, signal.SIGKILL)  # with the children of its suites, so that its pipe ends
            for key, _ in ready:
                descriptor = int(key.fd)
                heard[descriptor] = time.monotonic()
                read = os.read(descriptor, 1 << 16)
                *lines, rest[descriptor] = (rest[descriptor] + read).split(b"\n")
                for line in lines:
                    part = _decoder.decode(line)
                    at[descriptor] = part.suite
                    yield part
                if not read:
                    selector.unregister(descriptor)
                    os.close(descriptor)
                    _, status = os.waitpid(workers.pop(descriptor), 0)
                    if status:
                        code = os.waitstatus_to_exitcode(status)
                        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"left with {code}"
                        yield _Part(at[descriptor], trouble=f"a worker {how}")


def _add(ran: Ran, part: _Part) -> None:
    for added, whole in ((part.counts, ran.outcomes), (part.untried, ran.untried)):
        for fault, outcomes in added.items():
            row = whole.setdefault(fault, {})
            for outcome, count in outcomes.items():
                row[outcome] = row.get(outcome, 0) + count
    ran.fired += sum(sum(outcomes.values()) for outcomes in part.counts.values())
    ran.unfired += part.unfired
    ran.broken += part.broken
    ran.seconds = max(ran.seconds, part.seconds)
    ran.over += part.over
    ran.ended += part.ended
    ran.digest ^= part.digest
    ran.findings += part.findings[:FINDINGS_MAX - len(ran.findings)]
    ran.trouble = ran.trouble or part.trouble


class _Sender:
    """One worker's counts of one suite, sent several times a second."""

    def __init__(self, suite: str, writing: int) -> None:
        self.suite = suite
        self.writing = writing
        self.began = self.sent = time.monotonic()
        self.part = self._fresh()

    def _fresh(self) -> _Part:
        return _Part(self.suite, counts={}, untried={}, findings=[])

    def add(self, verdict: Verdict, finding: Finding | None) -> None:
        """Count a verdict."""
        part = self.part
        part.trying = f"{verdict.point.fault}"
        part.digest ^= xxhash.xxh3_64_intdigest(_encode(verdict))
        if verdict.fired or verdict.outcome.startswith(CANNOT):
            row = (part.counts if verdict.fired else part.untried).setdefault(verdict.point.fault, {})
            row[verdict.outcome] = row.get(verdict.outcome, 0) + 1
        else:
            part.unfired += 1
        part.broken += bool(verdict.violations)
        if finding is not None:
            part.findings.append(finding)
        if finding is not None or time.monotonic() - self.sent > SEND_EVERY_S:
            self.send()

    def send(self, *, over: bool = False, ended: bool = False, trouble: str = "") -> None:
        """Send what was counted since the last time."""
        self.sent = time.monotonic()
        self.part.seconds, self.part.trouble = self.sent - self.began, trouble
        self.part.over, self.part.ended = over, ended
        data = _encode(self.part) + b"\n"
        while data:
            data = data[os.write(self.writing, data):]
        self.part = self._fresh()


class _Worker(NamedTuple):
    """One process of a campaign: its share of every suite."""

    asked: Asked
    target: Target
    suites: Mapping[str, Suite]
    scratch: Path
    share: int
    writing: int

    def work(self) -> NoReturn:
        """Run the share of each suite in turn, within its part of the budget, and leave."""
        status = 1
        try:
            os.setpgid(0, 0)  # Ctrl-C is the parent's, which ends the whole group
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            began, weights = time.monotonic(), {name: suite.weight for name, suite in self.suites.items()}
            for name in self.suites:
                until = None
                if self.asked.budget_s is not None:
                    left = self.asked.budget_s - (time.monotonic() - began)
                    until = time.monotonic() + left * weights[name] / sum(weights.values())
                del weights[name]
                own = self.scratch / f"{self.share}-{name}"
                own.mkdir()
                self._run(name, own, until)
                shutil.rmtree(own, ignore_errors=True)
            status = 0
        finally:
            os._exit(status)

    def _run(self, name: str, scratch: Path, until: float | None) -> None:
        session = Session(self.target, self.asked.seed, self.asked.plan, scratch, self.share, self.asked.workers)
        suite, sender = self.suites[name], _Sender(name, self.writing)
        sender.send()
        kept: Counter[tuple[str, str]] = Counter()
        ended = True
        try:
            for verdict in suite.run(session):
                finding = None
                if verdict.violations:
                    same = (verdict.point.fault, verdict.violations[0].partition(":")[0])
                    kept[same] += 1
                    if kept[same] <= ALIKE_MAX:
                        finding = find(suite, session, self.asked, verdict, shrink=kept[same] == 1)
                sender.add(verdict, finding)
                if until is not None and time.monotonic() > until:
                    ended = False
                    break
        except Exception as error:  # noqa: BLE001 - a bug of the suite fails the campaign, and names itself
            sender.send(over=True, trouble=f"the suite {name} failed: {type(error).__name__}: {error}")
        else:
            sender.send(over=True, ended=ended)


def find(suite: Suite, session: Session, asked: Asked, verdict: Verdict, *, shrink: bool) -> Finding:
    """The finding of a broken promise, made short where the suite knows how."""
    if shrink and isinstance(suite, Shrinks):
        verdict = suite.shrink(session, verdict)
    return Finding(verdict, asked.target, asked.seed, asked.plan, asked.planted, Made(session.target.name, asked.seed))


class NoSuchPoint(Exception):
    """The suite has no such point, as it is now."""


def replay(finding: Finding, target: Target, suites: Mapping[str, Suite]) -> Verdict:
    """The verdict of a finding's point, anew; raises NoSuchPoint where the suite knows it no more."""
    point = finding.verdict.point
    with tempfile.TemporaryDirectory(prefix="chaos-", dir=_tmpfs()) as scratch:
        session = Session(target, finding.seed, finding.plan, Path(scratch))
        try:
            return suites[point.suite].replay(session, point)
        except (LookupError, TypeError, ValueError, RuntimeError, StopIteration) as error:
            message = f"there is no point {point} for this target and version: {type(error).__name__}: {error}"
            raise NoSuchPoint(message) from error


def select(names: Sequence[str], known: Mapping[str, Any]) -> tuple[str, ...]:
    """The suites asked for, in their order; all where none is named; raises KeyError for one there is not."""
    for name in names:
        known[name]
    return tuple(name for name in known if not names or name in names)
