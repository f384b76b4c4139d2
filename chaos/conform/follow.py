"""SPIN follows a log: the model `specs/reset.pml` takes the steps that its rows tell of, and any silent ones between.

The model is of one user, so a log is followed user by user.  A user's rows are cut where nothing is under way, into pieces
that fit the model's bounds, and each begins with the breaker that the one before it ended with.  Version numbers are
made small: of a run of measurements that no row speaks of, one stands for all.  `specs/follow.h` says how SPIN searches.

What the model does not speak of is left out and is the monitor's to judge: the global breaker, the budget and the rollout,
what a failure count or a cooldown must be, which input is suspect, walk-backs over damage, and rows whose user was erased.
A user of whom only a part of the rows is there, or whose rows tell of what the model has no step for, is not followed at
all, and `left_out` says why.
"""

from __future__ import annotations

import contextlib
import itertools
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from chaos.conform import forms
from chaos.conform.breakers import Wrong
from chaos.conform.rows import Row
from chaos.model import spin

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ATTEMPTS_MAX: Final = 40
VERSIONS_MAX: Final = 120
_SETTINGS: Final = (
    "FOLLOW", f"NR={ATTEMPTS_MAX}", "NA=1", "CRASHES=255", "CUTS=0", "FENCES=255", "FORCES=255", "FAULTS=0", "INVALID=0",
    f"MEAS={VERSIONS_MAX}",
)
_FLAGS: Final = ("-DVECTORSZ=8192",)
_NAMES: Final = frozenset((
    "IDLE", "ASKING", "REFUSED", "CLOSED", "OPEN", "HALF", "FORCED_OPEN", "FORCED_CLOSED", "O_COMMITTED", "O_ROLLEDBACK",
    "O_CONFLICTED", "O_REFUSED", "O_INTERRUPTED",
))
_MODES: Final = {"closed": 0, "open": 1, "half-open": 2, "forced-open": 3, "forced-closed": 4, "metrics-only": 4}
_OUTCOMES: Final = {"committed": 1, "rolled_back": 2, "conflicted": 3, "refused": 4, "interrupted": 5}
_BY_MEASUREMENT: Final = 255
_BEFORE: Final = 254
_STRANGER: Final = 253
_NOBODY: Final = 0
_ENDS, _MARKED, _FORCED, _LOOK, _FENCED, _FENCE = range(6)
_SUSPECT, _ROWLESS = 1, 2
_NOT_TOLD: Final = -1
_ELSEWHERE: Final = ("the global circuit breaker", "the budget of resets")


class Strayed(NamedTuple):
    """The first row of a user that no behaviour of the model explains."""

    seq: int
    user: str
    why: str


class Followed(NamedTuple):
    """What SPIN followed: rows and users, those it could not and why, and where it strayed."""

    rows: int
    users: int
    left_out: dict[str, str]
    rejected: Strayed | None


class _Piece(NamedTuple):
    """Rows of one user between two instants at which nothing is under way, and the head at the first."""

    rows: list[Row]
    head: int
    rowless: int
    """How many attempts may have held a probe until a fence gave it back, and have no row yet."""


class _Left(Exception):
    """A user cannot be followed."""


class Follower:
    """A verifier of the model, made once for all logs."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        # The preprocessor of the model has taken its names out before follow.h is compiled.
        names = tuple(f"-D{name}={value}" for name, value in spin.defines("reset").items() if name in _NAMES)
        self._pan = spin.compiled("reset", directory, _SETTINGS, flags=(*_FLAGS, *names))

    def follow(self, log: Sequence[Row]) -> Followed:
        """Follow each user of a log, to the first row that cannot be explained."""
        left_out: dict[str, str] = {}
        found = [malformed for row in log if (malformed := _malformed(row))][:1]
        log = [row for row in log if not found or row.seq < found[0].seq]
        users = sorted({row.user for row in log if row.user and row.ends})
        followed = 0
        for user in users:
            try:
                rows = _of_user(log, user)
                strayed = self._user(user, rows)
            except _Left as why:
                left_out[user] = str(why)
                continue
            followed += len(rows)
            if strayed is not None:
                found.append(strayed)
        return Followed(followed, len(users) - len(left_out), left_out, min(found, default=None))

    def _user(self, user: str, rows: list[Row]) -> Strayed | None:
        mode, generation, author = 0, 0, None
        fenced: set[int] = set()
        for piece in _pieces(rows):
            told, lines, attempts = _told(piece, fenced, generation, author)
            text = f"{mode} {generation} {_NOBODY if not piece.head else _BY_MEASUREMENT if author is None else _BEFORE} {told}"
            (self._directory / "log").write_text(text, encoding="ascii")
            answer = spin.followed(self._pan, self._directory, "log")
            fenced.update(_fenced(row) for row in piece.rows if row.event == "owner.fenced")
            if answer.rejected_at is not None:
                row = lines[answer.rejected_at]
                return Strayed(row.seq, user, f"no behaviour of specs/reset.pml explains the row {row.event}, {row.outcome}")
            mode, generation = answer.mode, answer.generation
            if answer.author != _BEFORE:
                author = attempts[answer.author - 1].attempt_id if 0 < answer.author <= len(attempts) else None
        return None


@contextlib.contextmanager
def follower() -> Iterator[Follower]:
    """A follower, with a directory of its own; raises SpinMissing."""
    with tempfile.TemporaryDirectory(prefix="resetguard-follow-") as name:
        yield Follower(Path(name))


def _malformed(row: Row) -> Strayed | None:
    """Nothing can follow a row that the model could not even be told."""
    try:
        forms.require_formed(row)
    except Wrong as wrong:
        return Strayed(row.seq, row.user or "", wrong.why)
    return None


def _fenced(row: Row) -> int:
    found = row.details.get("fenced")
    return found if isinstance(found, int) else _NOT_TOLD


def _of_user(log: Sequence[Row], user: str) -> list[Row]:
    """The rows that the model has a step for; raises _Left where that is not enough to go by."""
    if log[0].seq != 1:
        message = "the log does not begin with its first row"
        raise _Left(message)
    rows = []
    for row in log:
        if row.erased:
            message = "rows were erased, and some may have been this user's"
            raise _Left(message)
        if row.event == "owner.fenced":
            rows.append(row)
        elif row.event == "store.restored":
            message = "the store was restored from a backup, and what was under way then has no row"
            raise _Left(message)
        elif row.user != user:
            continue
        elif row.event == "state.recovered":
            message = f"row {row.seq} walked back over damage, which is history.pml's"
            raise _Left(message)
        elif row.event == "reset.refused" and (row.breaker is None or (row.error or "").startswith(_ELSEWHERE)):
            _require_no_probe(row, rows)
        elif (row.ends and row.breaker is not None) or row.event.startswith("breaker."):
            rows.append(row)
    return rows


def _require_no_probe(row: Row, before: list[Row]) -> None:
    """Refused elsewhere: the model knows nothing of it, unless it had leased its user's probe before."""
    last = max((_generation(other) for other in before), default=0)
    if row.breaker is not None and row.breaker.generation > last:
        message = f"row {row.seq}: a probe was given back since the global breaker refused it, which is containment.pml's"
        raise _Left(message)


def _generation(row: Row) -> int:
    found = row.details.get("generation") if row.event.startswith("breaker.") else row.breaker.generation if row.breaker else 0
    return found if isinstance(found, int) else 0


def _pieces(rows: list[Row]) -> Iterator[_Piece]:
    """Cut as late as the bounds allow, at an instant before which no later attempt had begun."""
    heads, gens, head, generation = [], [], 0, 0
    for row in rows:
        head = max(head, row.new or 0, row.base or 0 if row.whole else 0)
        generation = max(generation, _generation(row))
        heads.append(head)
        gens.append(generation)
    least_base = [10**9] * (len(rows) + 1)
    least_generation = list(least_base)
    for n in range(len(rows) - 1, -1, -1):
        row = rows[n]
        base = row.base or 0 if row.whole else 10**9
        least_base[n] = min(least_base[n + 1], base)
        rests = row.whole or row.event.startswith("breaker.")
        leased = row.whole and row.breaker is not None and row.breaker.mode == "half-open"  # others may have found it so
        least_generation[n] = min(least_generation[n + 1], _generation(row) - leased if rests else 10**9)
    repeated = {row.attempt_id: n for n, row in enumerate(rows) if row.ends}  # where each attempt is told of last
    periods = _periods(rows)
    fences = {fence for period in periods for fence in period.fences}
    start = 0
    while start < len(rows):
        cut, attempts, again = 0, 0, 0
        for n in range(start, len(rows)):
            attempts += rows[n].ends or n in fences
            again = max(again, periods[n].rests_on(n, gens[n]))
            again = max(again, repeated.get(rows[n].attempt_id, 0) if rows[n].ends else 0)
            if attempts > ATTEMPTS_MAX:
                break
            moving = n + 1 < len(rows) and rows[n + 1].event in ("breaker.opened", "breaker.closed")
            if least_base[n + 1] >= heads[n] and least_generation[n + 1] >= gens[n] and not moving and again <= n:
                cut = n + 1
        if not cut:
            message = f"more than {ATTEMPTS_MAX} attempts overlap from row {rows[start].seq} on"
            raise _Left(message)
        yield _Piece(rows[start:cut], heads[start - 1] if start else 0, sum(start <= fence < cut for fence in fences))
        start = cut


class _Period(NamedTuple):
    """Rows between two moves of a breaker; where it is open, and its probe may be leased, who may have done so, and fences.

    `holders` are the rows of marks that an attempt may have left which held the probe, each with the generation it tells.
    """

    holders: Sequence[tuple[int, int]] = ()
    fences: Sequence[int] = ()

    def rests_on(self, n: int, generation: int) -> int:
        """The last row whose attempt may have held the probe at row `n`, by which this generation was told."""
        fenced = any(fence <= n for fence in self.fences)
        return max((at for at, leased in self.holders if fenced or leased <= generation), default=-1)


def _periods(rows: list[Row]) -> list[_Period]:
    """For each row the period in which it lies.

    An attempt whose mark tells a generation of before the period never asked for its probe; one that tells 0 was filled
    before it had asked at all.
    """
    found = [_Period()] * len(rows)
    moves = [n for n, row in enumerate(rows) if row.event.startswith("breaker.")]
    for this, following in itertools.pairwise([*moves, len(rows)]):
        if rows[this].details.get("to") == "open":
            ended = _generation(rows[following]) if following < len(rows) else 10**9
            marked = [(n, _generation(row)) for n, row in enumerate(rows) if row.marked and row.outcome != "refused"]
            holders = [(n, told) for n, told in marked if n > this and (told == 0 or _generation(rows[this]) <= told < ended)]
            fences = [n for n in range(this, following) if rows[n].event == "owner.fenced"]
            found[this:following] = [_Period(holders, fences)] * (following - this)
    return found


def _told(piece: _Piece, fenced: set[int], since: int, author: str | None) -> tuple[str, list[Row], list[Row]]:
    """The piece as `specs/follow.h` reads it, the row that each line stands for, and the attempts in it.

    It begins in generation `since` of the breaker, with a head that `author` wrote.
    """
    # One refused under a generation that had passed by then changed nothing, and nothing rests on it.
    told = [row for row in piece.rows if row.outcome != "refused" or _generation(row) >= since]
    attempts = [row for row in told if row.ends]
    number = {row.attempt_id: n for n, row in reversed(list(enumerate(attempts)))}  # by its first outcome
    small = _small(piece, attempts)
    wrote = {None: _BY_MEASUREMENT, author: _BEFORE if author else _BY_MEASUREMENT} | {
        attempt: n + 1 for attempt, n in number.items()}
    lines, which = [f"{len(attempts) + piece.rowless}"], []
    for row in attempts:
        generation = row.breaker.generation if row.breaker else 0
        mode = _MODES[row.breaker.mode] if row.breaker and row.breaker.mode else _NOT_TOLD
        known = generation if row.whole or generation >= max(since, 1) else _NOT_TOLD
        if row.outcome == "refused":
            known = generation
        suspect = _SUSPECT if row.outcome == "refused" and "(suspect)" in (row.error or "") else 0
        key, base = int(row.owner not in fenced or not row.whole), small[row.base or 0] if row.whole else _NOT_TOLD
        lines.append(f"{key} {base} {known} {mode} {suspect}")
    lines += [f"1 {_NOT_TOLD} {_NOT_TOLD} {_NOT_TOLD} {_ROWLESS}"] * piece.rowless
    causes = {row.details.get("attempt_id") for row in told if row.event in ("breaker.opened", "breaker.closed")}
    for row in told:
        for line in _lines(row, number, small, wrote, piece.head, causes, attempts):
            lines.append(" ".join(map(str, line)))
            which.append(row)
    return "\n".join(lines) + "\n", which, attempts


def _lines(  # noqa: PLR0913 - what a line is made of
    row: Row, number: dict[str | None, int], small: dict[int, int], wrote: dict[str | None, int], head: int, causes: set[object],
    attempts: list[Row],
) -> Iterator[tuple[int, ...]]:
    rest = (_NOT_TOLD,) * 4
    if row.ends:
        author = _NOT_TOLD
        if row.whole and (row.base or 0) >= head:
            author = _NOBODY if row.base == 0 and row.author is None else wrote.get(row.author, _STRANGER)
        new = small[row.new] if row.new is not None else _NOT_TOLD
        kind, outcome = _ENDS if row.whole else _MARKED, _OUTCOMES.get(row.outcome or "", 0)
        yield kind, number[row.attempt_id], outcome, author, new, *rest[:2], int(row.attempt_id in causes)
    elif row.event in ("breaker.forced", "breaker.released"):
        before, to = (_MODES.get(str(row.details.get(name)), _NOT_TOLD) for name in ("from", "to"))
        yield _FORCED, 0, before, *rest[:2], to, _generation(row), 0
    elif row.event == "owner.fenced":
        for n, other in enumerate(attempts):
            if other.owner == _fenced(row) and other.seq > row.seq and other.whole:
                yield _FENCED, n, *rest, 0, 0
        yield _FENCE, 0, *rest, 0, 0
    else:
        yield _LOOK, 0, *rest[:3], _MODES.get(str(row.details.get("to")), 0), _generation(row), 0


def _small(piece: _Piece, attempts: list[Row]) -> dict[int, int]:
    """Small numbers for the versions that rows speak of, in their order, with one between two that do not follow each other."""
    spoken = {piece.head}
    for row in attempts:
        if row.whole:
            spoken |= {row.base or 0, *(() if row.new is None else (row.new,))}
    small, last = {}, 0
    for version in sorted(spoken):
        if version <= piece.head:
            small[version] = 0
            continue
        before = max(other for other in spoken if other < version)
        last += 1 if version == before + 1 or version == piece.head + 1 else 2
        small[version] = last
    if last > VERSIONS_MAX:
        message = f"the rows from {piece.rows[0].seq} on speak of more than {VERSIONS_MAX} versions"
        raise _Left(message)
    return small
