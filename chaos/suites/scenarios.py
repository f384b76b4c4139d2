"""What threads of one process do to one store at the same time, and what may come of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

from chaos.faults.points import Grain, every, touching
from chaos.history import Asked, Told
from chaos.suites.trial import Trial, told_by
from chaos.workload import BY, boom
from statemachine import ResetError, ResetResult
from statemachine.store.engine import OWNERS

Works = Sequence[Callable[[], object]]
ANN, BOB, COUNTED = "ann", "ünï/çødé", "cid"
BEGUN: Final = 6
DEAD: Final = "999"
FAILURES_MAX: Final = 60

FINE: Final = Grain("every line", every)
COMMIT: Final = Grain(
    "commits", touching("_queue", "taken", "settled", "missed", "_number", "_free", "_ended", "_map"), quiet=("Engine",))
"""Of a commit, what threads share there: the queue, the tickets, the marks, the file of the turn, and the locks.

The gate is left out: it keeps the map from moving under readers, and no map grows here.
"""
ATTEMPT: Final = Grain(
    "ends of an attempt", touching("_guard", "_in_doubt", "_slot", "result", "_ended", "_free", "_dispositions"),
    quiet=("Engine",))
"""What two threads share that hold the same attempt."""
SETTLE: Final = Grain("settling", touching("_queue", "taken", "settled"), quiet=("Engine",))
"""What a commit shares with whoever settles what a dead process left."""
CLOSE: Final = Grain("commits and closing", touching("_queue", "taken", "settled", "_map", "_free", "_let_go", "_closed", "_env",
                                                     "_readers", "_growing", "_footing"))
"""What a thread shares with one that closes the store: the gate and the environment as well."""
GRAINS: Final = {grain.name: grain for grain in (FINE, COMMIT, ATTEMPT, SETTLE, CLOSE)}


class Scenario(NamedTuple):
    """Some threads.

    `prepare`: what lies in the store before, and False where this target cannot be brought there.  `works`: what the threads
    do, anew for each schedule.  `expected`: what is wrong with what they were told, by the scenario's own lights.
    `searched`: the grain at which every schedule of up to two preemptions is tried, None where none is; with `closes`, only in
    the full plan, because each schedule costs two openings.
    """

    name: str
    threads: int
    prepare: Callable[[Trial], bool]
    works: Callable[[Trial], Works]
    expected: Callable[[Trial], Iterator[str]]
    users: tuple[str, ...] = (ANN,)
    durability: str = "process"
    closes: bool = False
    searched: Grain | None = None


def _measured(trial: Trial) -> bool:
    """Each user has a few versions, and a reset behind it."""
    for user in trial.users:
        _known(trial, user)
    return True


def _known(trial: Trial, user: str) -> None:
    trial.told = [None]
    for kind in (*["measure"] * BEGUN, "reset"):
        trial.do(0, kind, user)


def _operations(*kinds_and_users: tuple[str, str]) -> Callable[[Trial], Works]:
    def works(trial: Trial) -> Works:
        return [trial.work(thread, kind, user) for thread, (kind, user) in enumerate(kinds_and_users)]

    return works


def _one_of(trial: Trial, thread: int, allowed: set[str]) -> Iterator[str]:
    found = told_by(trial)[thread]
    if found not in allowed:
        yield f"thread {thread} was told {found!r}; {' or '.join(sorted(allowed))} can be"


def _each(*allowed: set[str]) -> Callable[[Trial], Iterator[str]]:
    """What each thread may be told; one of them at least must have got through."""
    def expected(trial: Trial) -> Iterator[str]:
        for thread, words in enumerate(allowed):
            yield from _one_of(trial, thread, words)
        if "acknowledged" not in told_by(trial):
            yield "none of the threads got through"

    return expected


OK: Final = {"acknowledged"}
RACES: Final = {"acknowledged", "conflict"}
PROBES: Final = {"acknowledged", "conflict", "breaker-open"}
CLOSING: Final = {"acknowledged", "store-unavailable", "in-doubt"}


def _commits(*users: str) -> Callable[[Trial], Works]:
    """Attempts that are begun and mutated before the threads begin, one a thread; the threads only commit them."""
    def works(trial: Trial) -> Works:
        begun = [(thread, trial.begun(user, 100 + thread)) for thread, user in enumerate(users)]

        def ending(thread: int, tx: Any) -> Callable[[], object]:
            def act() -> None:
                told = trial.ended(100 + thread, tx, tx.commit)
                trial.told[thread] = told
                trial.events.append(told)

            return act

        return [ending(thread, tx) for thread, tx in begun]

    return works


def _exactly_one(trial: Trial) -> Iterator[str]:
    words = sorted(told_by(trial))
    if words != sorted(["acknowledged"] + ["conflict"] * (len(words) - 1)):
        yield f"of attempts from one base version exactly one commits and the others conflict; the threads were told {words}"


def _everyone(trial: Trial) -> Iterator[str]:
    if set(told_by(trial)) != OK:
        yield f"users apart from each other hinder nobody; the threads were told {told_by(trial)}"


def _shared_attempt(*ends: str) -> Callable[[Trial], Works]:
    """One attempt, which every thread ends in a way of its own."""
    def works(trial: Trial) -> Works:
        tx = trial.begun(ANN, 100)
        trial.notes["tx"] = tx

        def ending(thread: int, end: str) -> Callable[[], object]:
            def act() -> None:
                call: Callable[[], ResetResult] = tx.commit if end == "commit" else tx.roll_back
                trial.told[thread] = trial.ended(100, tx, call)

            return act

        return [ending(thread, end) for thread, end in enumerate(ends)]

    return works


def _ended_once(trial: Trial) -> Iterator[str]:
    """One thread ended it, and its word is that of the history; every other was told that it had ended already."""
    enders = [told for told in trial.told if told is not None and (told.answer == "acknowledged" or not told.error)]
    if len(enders) != 1:
        yield f"{len(enders)} threads ended one attempt; the threads were told {told_by(trial)}"
    trial.events.append(enders[0] if enders else Told(100, "doubt"))
    for told in trial.told:
        if told is not None and told.error not in ("", "invalid-transition", "contract-broken"):
            yield f"a thread was told {told.error!r} of an attempt that another had ended"


def _nearly_open(trial: Trial) -> bool:
    """One more failure opens the breaker of the first user, as another user has found out."""
    _measured(trial)
    _known(trial, COUNTED)
    failures = 0
    while trial.manager.breaker(COUNTED).mode == "closed":
        if failures == FAILURES_MAX:
            return False
        _fail(trial, COUNTED)
        failures += 1
    for _ in range(failures - 1):
        _fail(trial, ANN)
    return trial.manager.breaker(ANN).mode == trial.manager.breaker().mode == "closed"


def _fail(trial: Trial, user: str) -> ResetError | None:
    try:
        trial.manager.perform_reset(user, operations=[("boom", boom)], **BY)
    except ResetError as error:
        number = 10**6 + len(trial.events)
        trial.events.append(Asked(number, "raise", user))
        trial.events.append(Told(number, "failed", attempts={error.attempt_id: ""} if error.attempt_id else {}, error=error.kind))
        return error
    return None


def _cool_down(trial: Trial, user: str) -> bool:
    """The clock goes on until the user's breaker lets a probe through; False where it is not open."""
    breaker = trial.manager.breaker(user)
    trial.clock.advance(max(0, breaker.retry_us - trial.clock.now_us()) / 1e6 + 1.0)
    return breaker.mode == "open"


def _cooled(trial: Trial) -> bool:
    """The breaker of the first user has opened, and its cooldown is over: the next attempt is the probe."""
    if not _nearly_open(trial):
        return False
    _fail(trial, trial.users[0])
    return _cool_down(trial, trial.users[0])


def _stale(*, fails: bool) -> Callable[[Trial], Works]:
    """An attempt that began before its user's breaker opened ends at the time of the probe that the breaker lets through."""
    def works(trial: Trial) -> Works:
        tx = trial.begun(ANN, 100)
        _fail(trial, ANN)
        if not _cool_down(trial, ANN):
            message = "the breaker should have opened"
            raise RuntimeError(message)

        def late() -> None:
            told = trial.ended(100, tx, partial(tx.roll_back, ValueError("late")) if fails else tx.commit)
            trial.told[0] = told
            trial.events.append(told)

        return [late, trial.work(1, "reset", ANN)]

    return works


def _stale_is_nothing(trial: Trial) -> Iterator[str]:
    """What began under an earlier generation commits nothing and counts for nothing; the probe gets through."""
    yield from _one_of(trial, 0, {"failed", "breaker-open", "conflict"})
    yield from _one_of(trial, 1, OK)
    if trial.manager.breaker(ANN).mode != "closed":
        yield "the probe succeeded, and the breaker is not closed"


def _closing(trial: Trial) -> Works:
    def close() -> None:
        trial.store.close()
        trial.told[1] = Told(0, "acknowledged")

    return [trial.work(0, "reset", ANN), close]


def _commit_closing(trial: Trial) -> Works:
    return [*_commits(ANN)(trial), _closing(trial)[1]]


def _settling(trial: Trial) -> Works:
    """A process has died meanwhile, and left its file of marks: one thread settles it while another resets."""
    path = trial.store.path / OWNERS / DEAD
    path.touch()  # it died as soon as it had made it

    def settle() -> None:
        trial.store.settle_dead()
        trial.told[1] = Told(0, "acknowledged")

    return [*_commits(ANN)(trial), settle]


def _settled(trial: Trial) -> Iterator[str]:
    yield from _everyone(trial)
    if (trial.store.path / OWNERS / DEAD).exists():
        yield "the file of the dead process is there still"


SCENARIOS: Final = (
    Scenario("two commits from one version", 2, _measured, _commits(ANN, ANN), _exactly_one, searched=COMMIT),
    Scenario("two commits of two users", 2, _measured, _commits(ANN, BOB), _everyone, (ANN, BOB), searched=COMMIT),
    Scenario("a group of two", 2, _measured, _commits(ANN, BOB), _everyone, (ANN, BOB), "group", searched=COMMIT),
    Scenario("commit and roll back of one attempt", 2, _measured, _shared_attempt("commit", "roll back"), _ended_once,
             searched=ATTEMPT),
    Scenario("two commits of one attempt", 2, _measured, _shared_attempt("commit", "commit"), _ended_once, searched=ATTEMPT),
    Scenario("commit and settling of the dead", 2, _measured, _settling, _settled, searched=SETTLE),
    Scenario("two resets", 2, _measured, _operations(("reset", ANN), ("reset", ANN)), _each(RACES, RACES)),
    Scenario("two resets of two users", 2, _measured, _operations(("reset", ANN), ("reset", BOB)), _everyone, (ANN, BOB)),
    Scenario("reset and measurement", 2, _measured, _operations(("reset", ANN), ("measure", ANN)), _each(RACES, OK)),
    Scenario("reset and restore", 2, _measured, _operations(("reset", ANN), ("restore", ANN)), _each(RACES, RACES)),
    Scenario("two measurements", 2, _measured, _operations(("measure", ANN), ("measure", ANN)), _each(OK, OK)),
    Scenario("probe and probe", 2, _cooled, _operations(("reset", ANN), ("reset", ANN)), _each(PROBES, PROBES)),
    Scenario("late commit and probe", 2, _nearly_open, _stale(fails=False), _stale_is_nothing),
    Scenario("late failure and probe", 2, _nearly_open, _stale(fails=True), _stale_is_nothing),
    Scenario("a group of three", 3, _measured, _commits(ANN, ANN, BOB), _each(RACES, RACES, OK), (ANN, BOB), "group"),
    Scenario("three at once", 3, _measured, _operations(("reset", ANN), ("measure", ANN), ("reset", BOB)),
             _each(RACES, OK, OK), (ANN, BOB)),
    Scenario("commit and close", 2, _measured, _commit_closing, _each(CLOSING, OK), closes=True,
             searched=CLOSE),
    Scenario("reset and close", 2, _measured, _closing, _each(CLOSING, OK), closes=True),
)
