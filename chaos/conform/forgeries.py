"""Audit logs that cannot be: one real log, and each way of forging it, with the row at which it must be rejected.

A forgery is made as somebody would make it who can write the store: rows are changed, copied, dropped or put elsewhere, and
all are numbered anew.  The hash chain is not what these are about; `audit verify` finds any of them by it.
"""

from __future__ import annotations

import contextlib
import copy
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from chaos.conform.histories import BY, KG, Shape, World
from statemachine import BreakerPolicy, ResetError
from statemachine.store import fencing

if TYPE_CHECKING:
    from collections.abc import Callable

Log = list[dict[str, Any]]
_STRANGER: Final = "00000000-0000-0000-0000-00000000dead"
_COPY: Final = "00000000-0000-0000-0000-00000000beef"


class Forgery(NamedTuple):
    """`forge` changes the log and gives the row to be rejected; `not_spin` says why SPIN cannot see it, "" where it can."""

    name: str
    forge: Callable[[Log], dict[str, Any]]
    not_spin: str = ""


def scene(world: World) -> Log:
    """A real log in which each kind of row occurs that the forgeries need; their names are the reasons given."""
    world.fresh(BreakerPolicy(failures_max=2, suspects_max=1, cooldown_s=60.0, jitter=0.0), shape=Shape(users=2, processes=3))
    first, second, third = world.processes
    for user in world.users:
        world.measure(first, user, KG)
    _commit(world, first, "u1")                                             # version 2
    world.clock.advance(60.0)
    world.measure(first, "u1", KG)                                          # version 3, without a row
    loser = second.begin("u1")
    _commit(world, first, "u1")                                             # version 4
    loser.apply("moved", lambda s: s.replace(x=(KG + 0.01, 0.0)))
    with contextlib.suppress(ResetError):
        loser.commit()                                                      # conflicted
    for _ in range(2):
        _fail(first, "u1")                                                  # opens, generation 1
    with contextlib.suppress(ResetError):
        first.begin("u1")                                                   # refused
    world.clock.advance(100.0)
    second.begin("u1", "deadly")                                            # the probe, generation 2 ...
    second.dies()                                                           # ... and the process dies
    second = world.processes[1] = type(second)(world)                       # interrupted
    _commit(world, first, "u1")                                             # the next probe, generation 4: closes, 5
    late = third.begin("u1")
    late.apply("moved", lambda s: s.replace(x=(KG + 0.02, 0.0)))
    first.manager.force_breaker("u1", "forced-open", **BY)                  # generation 6
    with contextlib.suppress(ResetError):
        late.commit()                                                       # rolled back: the breaker changed
    first.manager.release_breaker("u1", **BY)                               # generation 7
    first.manager.restore("u1", to_version=2, **BY)  # version 6
    third.begin("u2")
    fencing.fence(first.store, third.store.committer.owner, **BY)
    third.dies()
    third = world.processes[2] = type(third)(world)                         # u2 interrupted
    with contextlib.suppress(ResetError):
        third.begin("u2")                                                   # refused as suspect
    _commit(world, first, "u1")                                             # version 7
    _commit(world, second, "u2", "another")                                 # version 2
    _fail(first, "u1")
    return world.log()


def _commit(world: World, process: Any, user: str, text: str = "one") -> None:
    world.clock.advance(1.0)
    tx = process.begin(user, text)
    tx.apply("moved", lambda s: s.replace(x=(KG + 0.01 * (tx.base_version % 7), 0.0)))
    tx.commit()


def _fail(process: Any, user: str) -> None:
    def boom(_state: Any) -> Any:
        raise ZeroDivisionError
    with contextlib.suppress(ResetError), process.manager.transaction(user, **BY) as tx:
        tx.apply("boom", boom)


# --- finding rows ---

def _rows(log: Log, **wanted: Any) -> Log:
    return [row for row in log if all(row[name] == value for name, value in wanted.items())]


def _version(log: Log, version: int, user: str = "u1") -> dict[str, Any]:
    return _rows(log, user=user, new_version=version)[0]


def _failed(log: Log, n: int) -> dict[str, Any]:
    return _rows(log, user="u1", outcome="rolled_back")[n]


def _probe(log: Log) -> dict[str, Any]:
    return next(row for row in log if row["outcome"] == "committed" and row["breaker"]["mode"] == "half-open")


def _one(log: Log, event: str, n: int = 0) -> dict[str, Any]:
    return _rows(log, event=event)[n]


def _copied(log: Log, row: dict[str, Any], before: dict[str, Any] | None, **changes: Any) -> dict[str, Any]:
    """A copy of the row put before another, or at the end."""
    made = copy.deepcopy(row) | changes
    log.insert(len(log) if before is None else log.index(before), made)
    return made


def _after(log: Log, row: dict[str, Any], n: int = 1) -> dict[str, Any]:
    return log[log.index(row) + n]


# --- the ways of forging ---

def _changed(find: Callable[[Log], dict[str, Any]], **changes: Any) -> Callable[[Log], dict[str, Any]]:
    def forge(log: Log) -> dict[str, Any]:
        row = find(log)
        for name, value in changes.items():
            row[name] = value(log, row) if callable(value) else row[name] | value if isinstance(value, dict) else value
        return row
    return forge


def _dropped(find: Callable[[Log], dict[str, Any]], rejected: Callable[[Log], dict[str, Any]]) -> Callable[[Log], dict[str, Any]]:
    def forge(log: Log) -> dict[str, Any]:
        at = rejected(log)
        log.remove(find(log))
        return at
    return forge


def _swapped(
    one: Callable[[Log], dict[str, Any]], other: Callable[[Log], dict[str, Any]], *, late: bool = False,
) -> Callable[[Log], dict[str, Any]]:
    """Two rows change places; the one that now comes too early is rejected, or with `late` the one that comes too late."""
    def forge(log: Log) -> dict[str, Any]:
        first, second = one(log), other(log)
        a, b = log.index(first), log.index(second)
        log[a], log[b] = second, first
        return first if late else second
    return forge


def _twice(log: Log) -> dict[str, Any]:
    return _copied(log, _version(log, 4), None)


def _twice_otherwise(log: Log) -> dict[str, Any]:
    return _copied(log, _failed(log, 0), None, attempt_id=_version(log, 4)["attempt_id"])


def _while_open(log: Log) -> dict[str, Any]:
    """A reset of the generation before the opening, right after it."""
    head = _version(log, 4)
    return _copied(log, head, _after(log, _one(log, "breaker.opened")), attempt_id=_COPY, base_version=4, new_version=5,
                   head_author=head["attempt_id"])


def _while_forced(log: Log) -> dict[str, Any]:
    head = _probe(log)
    made = _copied(log, head, _after(log, _one(log, "breaker.forced")), attempt_id=_COPY, base_version=5, new_version=6,
                   head_author=head["attempt_id"])
    made["breaker"] = {"mode": "closed", "generation": 5}
    return made


def _while_global(log: Log) -> dict[str, Any]:
    at = _version(log, 7)
    made = _copied(log, _one(log, "breaker.forced"), at, attempt_id=_COPY, user=None)
    made["details"] = {"scope": "global", "from": "closed", "to": "forced-open", "generation": 1}
    return at


def _probe_again(log: Log) -> dict[str, Any]:
    """Another attempt that says it died as the same probe."""
    return _copied(log, _interrupted(log), _after(log, _interrupted(log)), attempt_id=_COPY)


def _probe_again_whole(log: Log) -> dict[str, Any]:
    """Another attempt that says it failed as the probe which has closed the breaker."""
    probe = _probe(log)
    made = _copied(log, _failed(log, 0), _after(log, probe, 2), attempt_id=_COPY, base_version=5, head_author=probe["attempt_id"])
    made["breaker"] = dict(probe["breaker"])
    return made


def _interrupted(log: Log) -> dict[str, Any]:
    return _rows(log, user="u1", outcome="interrupted")[0]


def _by_fenced(log: Log) -> int:
    found: int = _one(log, "owner.fenced")["details"]["fenced"]
    return found


def _other_user(log: Log) -> dict[str, Any]:
    row = _one(log, "breaker.opened")
    row["user"] = "u2"
    return row


def _told_twice(log: Log) -> dict[str, Any]:
    row = _one(log, "breaker.opened")
    return _copied(log, row, _after(log, row))


def _gap(log: Log) -> dict[str, Any]:
    row = _version(log, 7)
    row["gap"] = 3
    return row


def _both_on(log: Log) -> dict[str, Any]:
    row = _version(log, 7)
    row["base_version"] += 1
    row["new_version"] += 1
    return row


def _made_committed(row_of: Callable[[Log], dict[str, Any]]) -> Callable[[Log], dict[str, Any]]:
    return _changed(row_of, event="reset.committed", outcome="committed", phase="committed",
                    new_version=lambda _log, row: row["base_version"] + 1)


def _not_committed(log: Log) -> dict[str, Any]:
    """The reset that a later row names as the head's author is told as rolled back."""
    row = _version(log, 4)
    row |= {"event": "reset.rolled_back", "outcome": "rolled_back", "phase": "rolledback", "new_version": None}
    return _failed(log, 1)


_conflicted = lambda log: _one(log, "reset.conflicted")  # noqa: E731 - a name for a row
_changed_breaker = lambda log: next(r for r in log if r["error"] and "breaker changed" in r["error"])  # noqa: E731
_suspected = lambda log: next(r for r in log if r["error"] and "(suspect)" in r["error"])  # noqa: E731
_u2_died = lambda log: _rows(log, user="u2", outcome="interrupted")[0]  # noqa: E731
_COUNTS: Final = "how many failures open a breaker is no log's to say"
_FORM: Final = "the form of a row is not in the model"
_ELSEWHERE: Final = "the global breaker is containment.pml's"

FORGERIES: Final = (
    Forgery("an outcome twice", _twice),
    Forgery("another outcome of an attempt that has one", _twice_otherwise),
    Forgery("a version skipped", _changed(lambda log: _version(log, 4), new_version=5)),
    Forgery("a version and its base skipped", _both_on),
    Forgery("base version too low", _changed(lambda log: _version(log, 7), base_version=5, new_version=6)),
    Forgery("base version of long ago", _changed(lambda log: _version(log, 4), base_version=1, new_version=2)),
    Forgery("base version 0 again", _changed(
        lambda log: _version(log, 2, "u2"), base_version=0, new_version=1, head_author=None)),
    Forgery("committed by a breaker said to be open", _changed(lambda log: _version(log, 7), breaker={"mode": "open"})),
    Forgery("committed after the breaker had opened", _while_open),
    Forgery("committed after an operator had opened the breaker", _while_forced),
    Forgery("committed while the global breaker is forced open", _while_global, _ELSEWHERE),
    Forgery("committed though the breaker had changed", _made_committed(_changed_breaker)),
    Forgery("committed though it had a conflict", _made_committed(_conflicted)),
    Forgery("committed though it was interrupted", _made_committed(_interrupted)),
    Forgery("a committed reset told as rolled back", _not_committed),
    Forgery("two probes of one lease, by a mark", _probe_again, "two marks of one generation are told apart by no step"),
    Forgery("two probes of one lease", _probe_again_whole),
    Forgery("missing interrupted", _dropped(_interrupted, _probe)),
    Forgery("missing committed", _dropped(lambda log: _version(log, 4), lambda log: _failed(log, 0))),
    Forgery("missing first committed", _dropped(lambda log: _version(log, 1, "u2"), lambda log: _version(log, 2, "u2"))),
    Forgery("missing rolled back", _dropped(lambda log: _failed(log, 0), lambda log: _one(log, "breaker.opened")), _COUNTS),
    Forgery("missing opening", _dropped(
        lambda log: _one(log, "breaker.opened"), lambda log: _after(log, _one(log, "breaker.opened")))),
    Forgery("missing closing", _dropped(lambda log: _one(log, "breaker.closed"), lambda log: _one(log, "breaker.forced"))),
    Forgery("missing death of a suspect", _dropped(_u2_died, _suspected), "a row does not tell its input"),
    Forgery("missing operator's word", _dropped(
        lambda log: _one(log, "breaker.forced"), lambda log: _one(log, "breaker.released"))),
    Forgery("rolled back over another's head", _changed(
        lambda log: _failed(log, 1), head_author=lambda log, _row: _version(log, 2)["attempt_id"])),
    Forgery("rolled back over a measurement that is none", _changed(lambda log: _failed(log, 1), head_author=None)),
    Forgery("rolled back over a stranger's head", _changed(lambda log: _failed(log, 1), head_author=_STRANGER)),
    Forgery("committed over a stranger's head", _changed(lambda log: _version(log, 7), head_author=_STRANGER)),
    Forgery("two resets swapped", _swapped(lambda log: _version(log, 2), lambda log: _version(log, 4), late=True)),
    Forgery("a closing before its probe", _swapped(_probe, lambda log: _one(log, "breaker.closed"))),
    Forgery("a force and its release swapped", _swapped(
        lambda log: _one(log, "breaker.forced"), lambda log: _one(log, "breaker.released"))),
    Forgery("a later generation", _changed(lambda log: _version(log, 7), breaker={"generation": 9})),
    Forgery("an earlier generation", _changed(lambda log: _version(log, 7), breaker={"generation": 5})),
    Forgery("a probe of a generation that had passed", _changed(_probe, breaker={"generation": 3})),
    Forgery("a probe of a generation that is no lease", _changed(_probe, breaker={"generation": 5})),
    Forgery("a breaker that opens into the wrong generation", _changed(
        lambda log: _one(log, "breaker.opened"), details={"generation": 2}, breaker={"generation": 2})),
    Forgery("a force into the wrong generation", _changed(lambda log: _one(log, "breaker.forced"), details={"generation": 7})),
    Forgery("a force of a breaker in another mode", _changed(
        lambda log: _one(log, "breaker.forced"), details={"from": "open"})),
    Forgery("an opening told twice", _told_twice, "the row of a move is a look at the breaker, and no step"),
    Forgery("an opening of another user's breaker", _other_user),
    Forgery("committed by a fenced owner", _changed(lambda log: _version(log, 7), owner=lambda log, _row: _by_fenced(log))),
    Forgery("rolled back by a fenced owner", _changed(lambda log: _failed(log, -1), owner=lambda log, _row: _by_fenced(log))),
    Forgery("rolled back, and yet a version", _changed(lambda log: _failed(log, 0), new_version=5)),
    Forgery("an event of another outcome", _changed(_conflicted, event="reset.committed"), _FORM),
    Forgery("restored from a version that never was", _changed(
        lambda log: _one(log, "state.restored"), details={"restored_version": 40}), "history.pml has the restores"),
    Forgery("committed against the rules", _changed(
        lambda log: _version(log, 7), violations=[{"rule": "a", "path": "x", "value": 1.0, "unit": "kg", "limit": "0"}]),
            "candidates that break rules have no row of their own in the model"),
    Forgery("a first reset over a version", _changed(lambda log: _version(log, 7), kind="initial"), _FORM),
    Forgery("a reset of no kind", _changed(lambda log: _version(log, 7), kind=None), _FORM),
    Forgery("committed with an error", _changed(lambda log: _version(log, 7), error="boom"), _FORM),
    Forgery("interrupted over a version that never was", _changed(_interrupted, base_version=1_000_000), _FORM),
    Forgery("interrupted in a phase", _changed(_interrupted, phase="rolledback"), _FORM),
    Forgery("rolled back in the phase of a commit", _changed(lambda log: _failed(log, 0), phase="committed"), _FORM),
    Forgery("rolled back in no phase", _changed(lambda log: _failed(log, 0), phase=None), _FORM),
    Forgery("rolled back without its breaker", _changed(lambda log: _failed(log, -1), breaker=None), _FORM),
    Forgery("rolled back over a stranger's head, as by a mark", _changed(
        lambda log: _failed(log, -1), head_author=_STRANGER, phase=None, breaker={"mode": ""}), _FORM),
    Forgery("rolled back in a phase, as by a mark", _changed(
        lambda log: _failed(log, -1), head_author=None, breaker={"mode": ""}), _FORM),
    Forgery("interrupted by its own word", _changed(
        _u2_died, breaker={"mode": "closed"}, head_author=lambda log, _row: _version(log, 1, "u2")["attempt_id"])),
    Forgery("refused without a reason", _changed(lambda log: _one(log, "reset.refused"), error=None), _FORM),
    Forgery("rows cut out", _gap, _FORM),
    Forgery("a row of another store", _changed(lambda log: _version(log, 7), store_id="another"), _FORM),
)


def forged(log: Log, forgery: Forgery) -> tuple[Log, int]:
    """The forged log, numbered anew, and the number of the row that must be rejected."""
    made = copy.deepcopy(log)
    rejected = forgery.forge(made)
    seq = 0
    for row in made:
        seq += 1 + row.pop("gap", 0)
        row["seq"] = seq
    return made, rejected["seq"]
