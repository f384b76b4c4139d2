"""The exhaustive single-fault sweep: each call that LMDB makes on its data file fails once, or from there on, in every way.

For a scene (operations in a mode of durability, a creation, an opening after a death, a closing, a compaction, a backup, a
restored backup) and a fault, the N-th call is struck for N = 1, 2, 3 ... until there is none left.  Then, whatever its clients
were told, the store is opened again, judged, used, and judged once more.
"""

from __future__ import annotations

import contextlib
import gc
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple
from unittest import mock

import msgspec
import xxhash

from chaos import checker, watched
from chaos.faults import libc
from chaos.faults.strikes import FAULTS, Fault, Striker
from chaos.history import Asked, Event, Told, lines, read
from chaos.suite import Point, Session, Verdict
from chaos.target import Target
from chaos.workload import BY, PRESENT_US, USERS, Client, Op, ids_of
from statemachine import ResetError, Store, audit, marks
from statemachine.errors import ContractBroken
from statemachine.store import surroundings
from statemachine.store.compaction import compact
from statemachine.store.engine import ANEW, LMDB_LOCK
from statemachine.store.life import backup, restore_store
from statemachine.testing import ManualClock

WENT_ON: Final = "went on"
ROLLED_BACK: Final = "rolled back, typed"
IN_DOUBT: Final = "in doubt, settled"
REFUSED: Final = "refused, typed"
KILLED: Final = "killed, settled at open"
BROKEN: Final = "broke a promise"
NOT_MET: Final = "not met"
PEOPLE: Final = USERS[1:]
HANG_S_MAX: Final = 20
STALL_S: Final = 61.0
MARKS: Final = 64
PLAN_SEEDS: Final = 1_000
AT_ONCE: Final = 24
"""So many points are tried between two looks at the caller: the redirection is made once for them."""
TROUBLE: Final = frozenset({"store-hurt", "store-corrupt", "store-foreign", "store-unavailable", "store-full", "store-busy",
                            "in-doubt", "contract-broken", "invalid-transition", "invariant-violation"})
"""The kinds of errors that no call may end with once the fault is over."""
_SETUP, _ACT, _AFTER = 0, 1_000, 2_000
"""The numbers of the first operation of each part of a history."""
_LATER: Final = 200
"""The number of the first measurement that a user sends once the fault is over."""


class Stage:
    """A store in a directory of its own, and its clients; what they see is written to a file at once.

    `home` holds `store`, its `history`, perhaps a `backup` and what is made of either, the `copy`.
    """

    def __init__(self, target: Target, home: Path, striker: Striker, settings: dict[str, Any]) -> None:
        self.target = target
        self.home = home
        self.store = home / "store"
        self.copy = home / "copy"
        self.striker = striker
        self.settings = settings
        self.clock = ManualClock(PRESENT_US)
        self.history = home / "history.ndjson"
        self.events: list[Event] = read(self.history) if self.history.exists() else []
        self.known = sum(not isinstance(event, Asked | Told) or event.op < _ACT for event in self.events)
        self.broken: list[str] = []
        self.refused = False

    def record(self, event: Event) -> None:
        """Write an event down; it outlives the process."""
        self.events.append(event)
        descriptor = os.open(self.history, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(descriptor, lines([event]))
        os.close(descriptor)

    def opened(self, first: int, **settings: Any) -> Store:
        """The store, its ids counted for the part of the history that begins with operation `first`."""
        return self.target.open(self.store, clock=self.clock, ids=ids_of(first), **{**self.settings, **settings})

    def client(self, store: Store, first: int) -> Client:
        """A client of the store."""
        return Client(self.target, store, self.record, first)

    @contextlib.contextmanager
    def struck(self) -> Iterator[None]:
        """Calls are struck within; an error of the library's tree is a refusal, any other one breaks a promise."""
        self.striker.armed = True
        try:
            yield
        except ResetError as error:
            self.refused = True
            self._check_contract(error)
        except Exception as error:  # noqa: BLE001 - whatever else comes out of the library is what is looked for
            self.broken.append(f"typed: {type(error).__name__} came out of the library: {error}")
        finally:
            self.striker.armed = False

    def do(self, client: Client, ops: Sequence[Op]) -> None:
        """Do each, and go on after trouble; what begins after a fault that struck once must not end in trouble."""
        for op in ops:
            over = self.striker.fault is None or self.striker.struck >= self.striker.fault.times
            try:
                told = client.do(op)
            except Exception as error:  # noqa: BLE001 - as in `struck`
                self.broken.append(f"typed: {type(error).__name__} came out of {op.kind}: {error}")
                continue
            if over and told.error in TROUBLE:
                self.broken.append(f"progress: {op.kind} for {op.user!r} ended with {told.error}, and the fault was over")

    def _check_contract(self, error: ResetError) -> None:
        if isinstance(error, ContractBroken):
            self.broken.append(f"contract: {type(error).__name__}: {error}")


class Scene(NamedTuple):
    """What is done while calls are struck.  `begins` with a store that `template` makes, or with nothing.

    `judged` says what is wrong with what the scene has made beside the store; it is asked after a death, too.
    """

    name: str
    act: Callable[[Stage, random.Random], None]
    template: Callable[[Stage, random.Random], None] | None
    settings: dict[str, Any]
    judged: Callable[[Stage], Iterator[str]] | None = None


# What is done before, and while

def _lived(stage: Stage, dice: random.Random) -> None:
    """A store with a past: measurements, a reset, one that failed."""
    with stage.opened(_SETUP) as store:
        client = stage.client(store, _SETUP)
        for user in PEOPLE:
            for n in range(dice.randint(3, 5)):
                client.do(Op("measure", user, n))
        for kind in ("reset", "raise"):
            client.do(Op(kind, dice.choice(PEOPLE)))


def _died(stage: Stage, dice: random.Random) -> None:
    """As `_lived`; then a process died inside a reset, and had another one's row still to write."""
    _lived(stage, dice)
    number = 2 * _sent(stage)

    def dying(_: int) -> None:
        store = stage.opened(number)
        client = stage.client(store, number)
        client.do(Op("measure", PEOPLE[0], 10))
        client.do(Op("raise", PEOPLE[0]))
        stage.record(Asked(number + 2, "reset", PEOPLE[1]))
        client.manager.perform_reset(PEOPLE[1], operations=[("die", _die)], **BY)

    (_, died), = watched.each([0], dying)
    if not isinstance(died, watched.Died):
        message = "the process that must die inside a reset did not"
        raise RuntimeError(message)  # noqa: TRY004 - no argument is of a wrong type
    stage.events = read(stage.history)


def _die(_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _backed_up(stage: Stage, dice: random.Random) -> None:
    """As `_lived`, with a backup."""
    _lived(stage, dice)
    with stage.opened(2 * _sent(stage)) as store:
        backup(store, stage.home / "backup")


def _sent(stage: Stage) -> int:
    return len(stage.events)


def _ops(dice: random.Random, kinds: tuple[str, ...]) -> list[Op]:
    """One operation of each kind in some order, on users who have sent fewer than ten measurements."""
    sent = dict.fromkeys(PEOPLE, 10)
    ops = []
    for kind in dice.sample(kinds, len(kinds)):
        user = dice.choice(PEOPLE)
        ops.append(Op(kind, user, sent[user]))
        sent[user] += ops[-1].sends
    return ops


def _working(*kinds: str) -> Callable[[Stage, random.Random], None]:
    def act(stage: Stage, dice: random.Random) -> None:
        store = stage.opened(_ACT)
        client = stage.client(store, _ACT)
        with stage.struck():
            stage.do(client, _ops(dice, kinds))
        with stage.struck():
            store.close()

    return act


def _creating(stage: Stage, _: random.Random) -> None:
    """Also after a death: a creation that did not end."""
    with stage.struck():
        store = stage.opened(_ACT)
        stage.do(stage.client(store, _ACT), [Op("measure", PEOPLE[0], 0)])
        store.close()


def _opening(stage: Stage, _: random.Random) -> None:
    with stage.struck():
        store = stage.opened(_ACT)
        stage.do(stage.client(store, _ACT), [Op("reset", PEOPLE[0])])
        store.close()


def _compacting(stage: Stage, _: random.Random) -> None:
    with stage.struck():
        compact(stage.store, BY["actor"], BY["reason"], estimator=stage.target.estimator, clock=stage.clock, ids=ids_of(_ACT))


def _backing_up(stage: Stage, _: random.Random) -> None:
    with stage.opened(_ACT) as store:
        with stage.struck():
            backup(store, stage.copy)
        stage.do(stage.client(store, _ACT), [Op("measure", PEOPLE[0], 10), Op("reset", PEOPLE[0])])


def _restoring(stage: Stage, _: random.Random) -> None:
    with stage.struck():
        restore_store(stage.home / "backup", stage.copy, BY["actor"], BY["reason"], estimator=stage.target.estimator,
                      clock=stage.clock, ids=ids_of(_ACT))


def _whole_backup(stage: Stage) -> Iterator[str]:
    """It is there whole, with what was told before it was made; or it is not there."""
    return _whole(stage, readonly=True)


def _whole_store(stage: Stage) -> Iterator[str]:
    return _whole(stage, readonly=False)


def _whole(stage: Stage, *, readonly: bool) -> Iterator[str]:
    if not stage.copy.exists():
        return
    try:
        settings = {} if readonly else {"ids": ids_of(_AFTER)}
        with stage.target.open(stage.copy, readonly=readonly, clock=stage.clock, **settings) as copy:
            yield from checker.judge(stage.target, stage.events[:stage.known], copy)
    except ResetError as error:
        yield f"whole: what was made of the store is there and cannot be opened: {error}"


_KINDS: Final = ("measure", "batch", "reset", "raise", "restore", "mutate")
SCENES: Final[dict[str, Scene]] = {scene.name: scene for scene in (
    Scene("working, each", _working(*_KINDS), _lived, {"durability": "each"}),
    Scene("working, group", _working("measure", "batch", "reset"), _lived, {"durability": "group"}),
    Scene("working, durable intents", _working("reset", "raise", "measure"), _lived, {"intents": "durable"}),
    Scene("creating", _creating, None, {}),
    Scene("opening", _opening, _died, {}),
    Scene("compacting", _compacting, _lived, {}),
    Scene("backing up", _backing_up, _lived, {}, _whole_backup),
    Scene("restoring", _restoring, _backed_up, {}, _whole_store),
)}


# What came of it

class Acted(msgspec.Struct, frozen=True):
    """What was seen while calls were struck: those that were counted, how many were hit, and what each operation was told.

    `broken`: what is wrong with that; `after`: what is wrong with what it left, remembered as `digest`.
    """

    seen: list[str]
    struck: int
    told: list[tuple[str, str]]
    refused: bool
    broken: list[str]
    digest: str = ""
    after: list[str] = []


class Trial(NamedTuple):
    """A point to try: the N-th call of those that the fault is on, in a scene; without a fault, what happens without one."""

    scene: Scene
    seed: int
    fault: Fault | None = None
    n: int = 0

    def point(self) -> Point:
        """As others know it."""
        return Point(Calls.name, self.fault.name if self.fault else "", [self.scene.name, self.seed, self.n])


class Workshop:
    """Where points are tried: templates that are made once, what is known without faults, what was settled before."""

    def __init__(self, session: Session) -> None:
        self.target = session.target
        self.base = session.scratch / f"calls-{session.share}"
        self.striker = Striker()
        self._plain: dict[tuple[str, int], Acted] = {}
        self._settled: dict[str, list[str]] = {}
        self._number = 0

    def trials(self, seeds: Sequence[int]) -> Iterator[Trial]:
        """Every call of every scene, with each fault that may be on it; those of a seed shuffled, so that a prefix has of all."""
        for seed in seeds:
            found = [
                Trial(scene, seed, fault, n + 1) for scene in SCENES.values() for fault in FAULTS.values()
                for n in range(sum(name in fault.on for name in self.plain(scene, seed).seen))
            ]
            random.Random(seed).shuffle(found)
            yield from found

    def plain(self, scene: Scene, seed: int) -> Acted:
        """What the scene does where nothing is struck; nothing may be wrong with that."""
        if (scene.name, seed) not in self._plain:
            with _light(), libc.redirected(self.striker):
                (_, found), = watched.each([Trial(scene, seed)], self._act)
            if isinstance(found, watched.Died):
                message = f"{scene.name} cannot be played without a fault: the process was {found}"
                raise RuntimeError(message)
            acted = msgspec.convert(found, Acted)
            self._plain[scene.name, seed] = acted
            self._settled[acted.digest] = acted.after
        return self._plain[scene.name, seed]

    def tried(self, trials: Sequence[Trial]) -> Iterator[Verdict]:
        """The verdict of each.  All are found before the first is yielded, so that nothing stays redirected meanwhile."""
        for trial in trials:
            self.plain(trial.scene, trial.seed)
        first, self._number = self._number, self._number + len(trials)
        homes = {id(trial): self.base / str(first + number) for number, trial in enumerate(trials)}
        with _light(), libc.redirected(self.striker):
            found = [acted for _, acted in watched.each(trials, lambda trial: self._act(trial, homes[id(trial)]))]
            dead = [trial for trial, acted in zip(trials, found, strict=True) if isinstance(acted, watched.Died)]
            settled = watched.each(dead, lambda trial: self._settle_dead(trial, homes[id(trial)]))
            after = {id(dead[at]): made for at, made in settled}
        for trial, acted in zip(trials, found, strict=True):
            if isinstance(acted, watched.Died):
                yield self._verdict_of_death(trial, acted, after[id(trial)])
            else:
                yield self._verdict(trial, msgspec.convert(acted, Acted))

    def _verdict(self, trial: Trial, acted: Acted) -> Verdict:
        self._settled[acted.digest] = acted.after
        plain, fault, broken = self.plain(trial.scene, trial.seed), trial.fault, [*acted.broken, *acted.after]
        lost = [(told, other) for told, other in zip(acted.told, plain.told, strict=False) if told != other]
        if acted.refused:
            outcome = REFUSED
        elif any(told[1] == "in-doubt" for told, _ in lost):
            outcome = IN_DOUBT
        elif any(told[1] for told, _ in lost):
            outcome = ROLLED_BACK
        else:
            outcome = WENT_ON
        if fault is not None and fault.harmless and outcome != WENT_ON:
            broken.append(f"unharmed: {fault.name} must be got over, and the outcome was: {outcome}")
        if fault is not None and fault.deadly and acted.struck:
            broken.append(f"fault: {fault.name} was outlived")
        if acted.struck == 0:
            return Verdict(trial.point(), BROKEN if broken else NOT_MET, tuple(broken), fired=False)
        return Verdict(trial.point(), BROKEN if broken else outcome, tuple(broken))

    def _verdict_of_death(self, trial: Trial, died: watched.Died, after: Any) -> Verdict:
        broken = [f"survives: settling it, the process was {after}"] if isinstance(after, watched.Died) else list(after)
        if trial.fault is None or not trial.fault.deadly or died.signal != signal.SIGKILL:
            why = f"hung for {HANG_S_MAX} s" if died.signal == signal.SIGALRM else f"was {died}"
            broken.insert(0, f"survives: the process {why}")
        return Verdict(trial.point(), BROKEN if broken else KILLED, tuple(broken))

    # In a child

    def _act(self, trial: Trial, home: Path | None = None) -> Acted:
        with _limited():
            home = home or self.base / "plain"
            stage = self._stage(trial, home)
            self.striker.aim(trial.fault, trial.n, lambda: _stall(stage, trial.fault))
            trial.scene.act(stage, random.Random(f"{trial.scene.name}/{trial.seed}"))
            told: list[tuple[str, str]] = [(e.answer, e.error) for e in stage.events if isinstance(e, Told) and e.op >= _ACT]
            broken, struck, seen = [*stage.broken, *_littered(stage, trial.scene)], self.striker.struck, self.striker.seen
            digest, after = _settle(stage, trial.scene, self._settled)
            shutil.rmtree(home)
        return Acted(seen, struck, told, stage.refused, broken, digest, after)

    def _settle_dead(self, trial: Trial, home: Path) -> list[str]:
        with _limited():
            stage = Stage(self.target, home, self.striker, trial.scene.settings)
            _, after = _settle(stage, trial.scene, self._settled)
            shutil.rmtree(home)
        return after

    def _stage(self, trial: Trial, home: Path) -> Stage:
        make, template = trial.scene.template, self.base / f"{trial.scene.name}-{trial.seed}"
        if make is None:
            home.mkdir(parents=True)
        else:
            if not template.exists():
                template.mkdir(parents=True)
                make(Stage(self.target, template, self.striker, {}), random.Random(trial.seed))
            shutil.copytree(template, home)
        return Stage(self.target, home, self.striker, trial.scene.settings)


def _stall(stage: Stage, fault: Fault | None) -> None:
    if fault is not None and fault.name == "delay":
        stage.clock.advance(STALL_S)


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    """A process that hangs within is killed."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, HANG_S_MAX)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _littered(stage: Stage, scene: Scene) -> Iterator[str]:
    """What a refusal must not leave behind, and what must be there without one."""
    known = {stage.store.name, stage.copy.name, stage.history.name, "backup"}
    for left in (*(path for path in stage.home.iterdir() if path.name not in known), stage.store / ANEW):
        if left.exists():
            yield f"litter: {left.relative_to(stage.home)} was left by a process that lives"
    if scene.judged is not None and stage.copy.exists() is stage.refused:
        yield f"litter: {stage.copy.name} is {'there, and was refused' if stage.refused else 'not there, and was promised'}"


def _settle(stage: Stage, scene: Scene, known: dict[str, list[str]]) -> tuple[str, list[str]]:
    """Open the store again, judge it, go on and judge again; under which digest it is remembered, and what is wrong."""
    stage.broken = []
    stage.striker.aim(None)
    digest = _digest(stage)
    if scene.judged is not None and digest not in known:
        stage.broken += scene.judged(stage)
    with _reopened(stage) as store:
        if store is not None and digest not in known:
            stage.broken += checker.judge(stage.target, stage.events, store)
            stage.broken += _inspected(stage, store)
            if not stage.broken:
                ops = [Op("measure", PEOPLE[0], _LATER), Op("reset", PEOPLE[0]), Op("batch", PEOPLE[1], _LATER)]
                stage.do(stage.client(store, _AFTER), ops)
                stage.broken += checker.judge(stage.target, stage.events, store)
    known.setdefault(digest, stage.broken)
    return digest, known[digest]


@contextlib.contextmanager
def _reopened(stage: Stage) -> Iterator[Store | None]:
    try:
        with stage.opened(_AFTER) as store:
            yield store
    except ResetError as error:
        stage.broken.append(f"progress: the store cannot be opened again: {error.kind}: {error}")
        yield None


def _inspected(stage: Stage, store: Store) -> Iterator[str]:
    """What was in doubt, and began with an intent, can be told now."""
    for event in stage.events:
        for attempt in event.attempts if isinstance(event, Told) and event.answer == "doubt" else ():
            if store.inspect(attempt) is None:
                yield f"settled: attempt {attempt} was in doubt, and nothing tells how it ended"


def _digest(stage: Stage) -> str:
    """All that the settling of a stage depends on: its files and its history."""
    found = xxhash.xxh3_128(lines(stage.events))
    for path in sorted(stage.home.rglob("*")):
        found.update(str(path.relative_to(stage.home)).encode())
        if path.is_file() and path.name != LMDB_LOCK:
            found.update(path.read_bytes())
    return found.hexdigest()


class Calls:
    """The suite."""

    name = "calls"
    summary = "each call that LMDB makes on the data file fails, lies, waits or is the last, once or from there on"
    floor = 1_800
    grows = True
    weight = 1.0
    witnesses = frozenset({WENT_ON, ROLLED_BACK, IN_DOUBT, REFUSED, KILLED})

    def unavailable(self) -> str:
        """Why it cannot run on this machine, said loudly; "" where it can."""
        return libc.unavailable()

    def run(self, session: Session) -> Iterator[Verdict]:
        """The verdict of each point of this worker's share, in order; they come in small lots."""
        with _workshop(session) as workshop:
            mine = session.mine(workshop.trials(range(session.seed * PLAN_SEEDS, session.seed * PLAN_SEEDS + session.times)))
            while lot := list(islice(mine, AT_ONCE)):
                yield from workshop.tried(lot)

    def replay(self, session: Session, point: Point) -> Verdict:
        """The verdict of one point anew."""
        scene, seed, n = point.where
        with _workshop(session) as workshop:
            verdict, = workshop.tried([Trial(SCENES[scene], seed, FAULTS[point.fault], n)])
        return verdict


@contextlib.contextmanager
def _workshop(session: Session) -> Iterator[Workshop]:
    workshop = Workshop(session)
    try:
        yield workshop
    finally:
        shutil.rmtree(workshop.base, ignore_errors=True)


@contextlib.contextmanager
def _light() -> Iterator[None]:
    """What is forked within is quick: no thread for each store that copies rows to a log, small files of marks, no collector.

    The collector would touch every object that the child has from its parent, and so copy its page.
    """
    collecting = gc.isenabled()
    with (mock.patch.object(audit.Emitter, "emit", _not_copied), mock.patch.object(marks, "SLOTS", MARKS),
          mock.patch.object(surroundings, "file_system", _anywhere)):
        gc.disable()
        try:
            yield
        finally:
            if collecting:
                gc.enable()


def _anywhere(_path: Path) -> None:
    """On no file system that anybody knows: the real question reads the table of mounts at each opening."""


def _not_copied(*_row: object) -> None:
    """Copy a row to no log."""
