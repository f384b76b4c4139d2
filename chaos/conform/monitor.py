"""The monitor decides whether an audit log is a behaviour of the protocol, and if not, at which row it stops being one.

It goes once over the rows, in their order, and keeps what they tell: of each user the newest version and who wrote which,
and of each breaker its mode and generation.  A row that contradicts what was told before ends it.  What a log does not
tell is not guessed: a measurement makes a version without a row, so that a head may grow between two rows; the lease of
a probe, and its return, move a breaker without one, so that an open breaker's generation may grow in twos.  An
attempt that began and has no row at all is missed only where another row speaks of it: as the author of a version, as
the cause of a breaker's move, as the holder of a probe, or as the death that made an input suspect.

A row whose personal part was erased names nobody, and an anchor after it must say that it was erased.  It is judged by
what is left of it, and counted as judged in part; so are the rows of whoever it may have been about.  The hash chain is
`resetguard audit verify`'s to judge, not this.
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from typing import TYPE_CHECKING, Final, NamedTuple

from chaos.conform import forms
from chaos.conform.breakers import WAITS, Gauge, Wrong
from chaos.conform.forms import ANCHORS, FORCES, MOVES
from chaos.conform.rows import ENDINGS, Row, Seen
from statemachine import StoreLimits

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

EVENT_OF_KIND: Final = {"revocation": "reset.revoked", "restore": "state.restored", "rebuild": "state.rebuilt"}
MOVED_BY: Final = {"rolled_back": ("breaker.opened", "open"), "committed": ("breaker.closed", "closed")}
OTHERS: Final = frozenset({
    "reset.held", "marks.set_aside", "owner.fenced", "store.restored", "store.compacted", "store.migrated",
    "state.recovered", "state.unrecoverable", "audit.end_found", "rollout.changed", "rollout.listed", "sweep.found",
    "sweep.finished", "sweep.stopped", "quarantine.released", "quarantine.replayed", "quarantine.dropped",
    "quarantine.pruned", "quarantine.limit_reached",
})
_COUNTED: Final = re.compile(r"\b(\d{1,9}) (resets in a row|probes? |users)|resets of (\d{1,9}) users")
_SUSPECT: Final = "(suspect)"
_GROUP_MAX: Final = StoreLimits().group_measurements_max
"""So many measurements may have been before the mark was filled, in a group that was never committed."""


class Rejection(NamedTuple):
    """Where a log stops being a behaviour of the protocol: the row, the invariant it breaks, and why."""

    seq: int
    invariant: str
    why: str


class Verdict(NamedTuple):
    """What was found: rows judged in full and in part, rows of events that the monitor does not know, and the rejection."""

    rows: int
    in_full: int
    in_part: int
    unknown: int
    users: int
    rejected: Rejection | None

    @property
    def accepted(self) -> bool:
        """Whether the log is a behaviour of the protocol, as far as it tells."""
        return self.rejected is None


class _User:
    """What the log has told of one user by now."""

    __slots__ = ("authors", "blind", "breaker", "deaths", "doubted", "failed", "head", "since", "won")

    def __init__(self, *, known: bool, doubted: bool = False) -> None:
        self.head = 0
        self.since: int | None = 0 if known else None  # from this version on every author is known
        self.authors: dict[int, str] = {}
        self.breaker = Gauge(known=known, doubted=doubted)
        self.deaths: Counter[int] = Counter()
        self.failed: Counter[int] = Counter()
        self.won = 0
        self.doubted = doubted  # two users of one name may be told of
        self.blind = not known  # what was counted before is not all told

    def forget_all(self) -> None:
        """A row that cannot be attributed may have been about this user."""
        self.since = None
        self.breaker.known = False
        self.blind = True


class Monitor:
    """Judges rows one after the other; `feed` raises Wrong at the first that is not possible."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.users: dict[str, _User] = {}
        self.common = Gauge(known=True)
        self._rows = rows
        self._fenced: set[int] = set()
        self._ended: dict[str, int] = {}
        self._whose: dict[str, str | None] = {}
        self._nobody: dict[str, int | None] = {}
        self._last: Row | None = None
        self._known = True
        self._pending: dict[tuple[str, str], int] = {}
        self._failing: set[str] = set()
        self._forgot = False
        self._moves = {(str(r.details.get("attempt_id")), str(r.details.get("scope")), r.event) for r in rows if r.event in MOVES}
        self._bases = _later_bases(rows)
        self._restored = {row.store_id for row in rows if row.event == "store.restored"}
        forgotten, pruned = _covered(rows, "user.forgotten"), _covered(rows, "audit.pruned")
        self._anchored = forgotten | pruned
        self._forgotten = forgotten - pruned  # they were about nobody else in this log

    def feed(self, row: Row) -> bool:
        """Judge the next row; whether it was judged in full.  Raises Wrong where it is not possible."""
        forms.require_formed(row)
        self._place(row)
        self._owner(row)
        self._outcome(row)
        if row.ends:
            forms.require_of_schema(row)
        self._last = row
        if row.erased:
            return self._erased(row)
        self._commit_goes_on(row)
        if row.ends:
            return self._ending(row)
        if row.event in MOVES:
            return self._move(row)
        if row.event in FORCES:
            return self._force(row)
        if row.event == "state.recovered":
            return self._recovered(row)
        if row.event == "owner.fenced":
            self._fenced.add(_number(row, "fenced"))
        elif row.event == "user.forgotten":
            self._forgot = True
        if row.event in ("owner.fenced", "store.restored"):  # both give back probes, whose attempts end later or never
            for gauge in (self.common, *(user.breaker for user in self.users.values())):
                gauge.credit()
        return True

    # --- the row in its place ---

    def _place(self, row: Row) -> None:
        last = self._last
        if last is None:
            self._known = row.seq == 1
            self.common.known = self._known
            return
        if row.seq <= last.seq:
            raise Wrong("INV-10", f"row {row.seq} comes after row {last.seq}: the rows of a log are numbered in their order")
        if row.seq != last.seq + 1:
            raise Wrong("INV-10", f"rows {last.seq + 1} to {row.seq - 1} are missing; a log is judged whole, as "
                        "`audit list --json` prints it without --user, --since or --outcome")
        if row.store_id != last.store_id and row.store_id not in self._restored:
            raise Wrong("INV-10", f"row {row.seq} is of another store ({row.store_id}), and none was restored from a backup")

    def _owner(self, row: Row) -> None:
        if row.owner in self._fenced:
            raise Wrong("INV-06", f"owner {row.owner} was fenced before, and a fenced owner commits nothing")

    def _outcome(self, row: Row) -> None:
        if row.ends:
            if row.outcome != ENDINGS[row.event]:
                raise Wrong("INV-03", f"the event {row.event} does not go with the outcome {row.outcome!r}")
            if not row.attempt_id:
                raise Wrong("INV-03", "the outcome names no attempt")
        if row.attempt_id:
            if row.attempt_id in self._ended:
                first = self._ended[row.attempt_id]
                raise Wrong("INV-03", f"attempt {row.attempt_id} has its outcome already, in row {first}")
            self._ended[row.attempt_id] = row.seq
        if row.outcome == "committed":
            if row.base is None or row.new is None:
                raise Wrong("INV-05", "a committed reset tells neither what it was made from nor its version")
            if row.new != row.base + 1:
                raise Wrong("INV-05", f"version {row.new} was made from version {row.base}: numbers have no gaps")
            if row.breaker is None or not row.breaker.mode:
                raise Wrong("INV-07", "a committed reset does not tell the breaker that admitted it")
            if row.breaker.mode in ("open", "forced-open"):
                raise Wrong("INV-07", f"a reset was committed although its user's breaker is {row.breaker.mode}")
        elif row.ends and row.new is not None:
            raise Wrong("INV-01", f"an attempt that ended as {row.outcome} made version {row.new}")

    def _commit_goes_on(self, row: Row) -> None:
        """The rows of a breaker's moves follow the outcome that caused them, in the same commit."""
        for (attempt, scope), owner in self._pending.items():
            if row.owner != owner:
                raise Wrong("INV-07", f"attempt {attempt} moved the {scope} breaker, whose row is not in the same commit")

    def _erased(self, row: Row) -> bool:
        """What is left of a row that names nobody any more."""
        if row.seq not in self._anchored:
            raise Wrong("INV-10", "it is said to be erased, and no row user.forgotten or audit.pruned says so")
        left = [name for name in ("user", "trigger", "error", "details", "violations") if getattr(row, name)]
        if left:
            raise Wrong("INV-10", f"it is said to be erased, and still has its {' and '.join(left)}")
        if row.attempt_id:
            self._nobody[row.attempt_id] = row.new
        if row.seq not in self._forgotten:
            self._known = False
            self.common.known = False
            for user in self.users.values():
                user.forget_all()
        return False

    # --- the end of an attempt ---

    def _of(self, row: Row) -> _User:
        name = row.user or ""
        if not name:
            raise Wrong("INV-03", f"the row {row.event} names no user, and was not erased")
        if name not in self.users:
            # It may be one who was forgotten and began anew, and an attempt that was under way then still gets its row.
            self.users[name] = _User(known=self._known and not self._forgot, doubted=self._forgot)
        return self.users[name]

    def _ending(self, row: Row) -> bool:
        user = self._of(row)
        self._whose[row.attempt_id or ""] = row.user
        full = user.since is not None and user.breaker.known and self.common.known
        wanted = EVENT_OF_KIND.get(row.kind or "", "reset.committed")
        if row.outcome == "committed" and row.event != wanted:
            raise Wrong("INV-03", f"a {row.kind} that is committed is told as {wanted}, not as {row.event}")
        if row.base is None or row.base < 0:
            raise Wrong("INV-05", f"the attempt was made from version {row.base}")
        if row.marked:
            self._mark_ended(row, user)
            return full
        self._base(row, user)
        if row.breaker is not None:
            self._breaker(row, user)
        if row.outcome == "committed":
            self._committed(row, user)
        return full

    def _base(self, row: Row, user: _User) -> None:
        """The head that the attempt saw, and who wrote it."""
        base, author = row.base or 0, row.author
        if row.outcome == "committed" and base < user.head and user.since is not None:
            raise Wrong("INV-06", f"it was made from version {base}, and the head was {user.head} by then")
        if base == 0 and author is not None:
            raise Wrong("INV-03", f"nothing was stored, and yet attempt {author} is said to have written it")
        if user.since is None or base < user.since:
            user.head = max(user.head, base)
            return
        wrote = user.authors.get(base)
        if author is not None and author != wrote and self._nobody.get(author, -1) != base:
            if author not in self._ended:
                raise Wrong("INV-03", f"attempt {author} is said to have written version {base}, and has no outcome before "
                            "this row")
            raise Wrong("INV-02", f"version {base} was written by {wrote or 'a measurement'}, not by attempt {author}")
        if author is None and wrote is not None and row.kind != "rebuild":
            raise Wrong("INV-02", f"version {base} was written by attempt {wrote}, and this attempt found a measurement there")
        user.head = max(user.head, base)

    def _committed(self, row: Row, user: _User) -> None:
        if row.violations:
            raise Wrong("INV-04", f"a state was committed that breaks {len(row.violations)} rules")
        if row.phase != "committed":
            raise Wrong("INV-03", f"a reset was committed in the phase {row.phase!r}")
        if row.event == "state.restored" and not 0 < _number(row, "restored_version") <= (row.base or 0):
            raise Wrong("INV-05", f"version {row.details.get('restored_version')} was restored over version {row.base}")
        if self.common.known and self.common.mode == "forced-open":
            raise Wrong("INV-07", "a reset was committed although an operator holds the global breaker open")
        user.head = row.new or 0
        user.authors[user.head] = row.attempt_id or ""
        if user.since is None and not user.doubted:
            user.since = user.head
        user.failed.clear()

    def _breaker(self, row: Row, user: _User) -> None:
        """The breaker that admitted the attempt, and what its end made of it."""
        seen, gauge, attempt = row.breaker, user.breaker, row.attempt_id or ""
        if seen is None:
            return
        mode, generation = seen.mode or "", seen.generation
        if mode in ("open", "forced-open"):
            raise Wrong("INV-07", f"user code ran although the user's breaker was {mode}")
        event, to = MOVED_BY.get(row.outcome or "", ("", ""))
        told = (attempt, "user", event) in self._moves
        gauge.lenient = not self.common.known or self.common.mode in WAITS
        known = gauge.known
        late = gauge.found(mode, generation, attempt, committed=row.outcome == "committed")
        if (attempt, "global", event) in self._moves:
            self._pending[attempt, "global"] = row.owner
        if row.outcome == "rolled_back":
            self._failing.add(row.user or "")
        if late:
            if told and not known:
                self._pending[attempt, "user"] = row.owner
            return
        user.failed[generation] += row.outcome == "rolled_back"
        user.won += mode == "half-open" and row.outcome == "committed"
        if mode == "half-open":
            gauge.probe_ended(generation, to if told else "half-open")
        elif told and event == "breaker.opened" and mode == "closed":
            gauge.moved("open", generation + 1)
        if told:
            self._pending[attempt, "user"] = row.owner

    def _mark_ended(self, row: Row, user: _User) -> None:
        """A row for which a mark stood: its base may never have been committed, and its generation may be of before a lease."""
        generation = row.breaker.generation if row.breaker is not None else 0
        error, gauge = row.error or "", user.breaker
        later = self._bases.get(row.seq)
        if later is not None and (row.base or 0) > later + _GROUP_MAX:
            raise Wrong("INV-05", f"it began from version {row.base}, and the head was {later} after it")
        if row.outcome == "refused":
            if _SUSPECT in error and not user.blind and not user.deaths[row.base or 0]:
                raise Wrong("INV-03", f"it was refused as suspect, and no attempt from version {row.base} is told to have been "
                            "interrupted")
            gauge.refused(generation, row.attempt_id or "", may_have_held="global" in error or not error)
            return
        if row.outcome == "interrupted":
            user.deaths[row.base or 0] += 1
        if row.outcome == "committed":
            raise Wrong("INV-03", "a mark stands for no committed reset")
        gauge.ended(generation, row.attempt_id or "")

    # --- breakers ---

    def _move(self, row: Row) -> bool:
        attempt, scope, event = row.details.get("attempt_id"), row.details.get("scope"), row.event
        if not isinstance(attempt, str) or scope not in ("user", "global"):
            raise Wrong("INV-07", f"the row {event} names neither the attempt that caused it nor whose breaker it is")
        if attempt not in self._ended:
            raise Wrong("INV-07", f"attempt {attempt} is said to have moved the {scope} breaker, and has no outcome before "
                        "this row")
        if self._pending.pop((attempt, scope), None) is None:
            raise Wrong("INV-07", f"the outcome of attempt {attempt} cannot have moved the {scope} breaker")
        to, generation = row.details.get("to"), _number(row, "generation")
        before = row.details.get("from")
        if to != ("open" if event == "breaker.opened" else "closed") or row.breaker != _as_seen(to, generation):
            raise Wrong("INV-07", f"the row {event} says that the breaker went to {to!r}, generation {generation}")
        user = None
        if scope == "user":
            user = self._of(row)
            if self._whose.get(attempt) != row.user:
                raise Wrong("INV-11", f"attempt {attempt} was another user's, and has moved the breaker of {row.user!r}")
            user.breaker.told(before, to, generation)
        else:
            self.common.jumped(before, to, generation, by_probe=before == "half-open")
        self._counted(row, user)
        return (user.breaker if user else self.common).known

    def _counted(self, row: Row, user: _User | None) -> None:
        """What the row says was counted must have happened."""
        found = _COUNTED.search(row.trigger or "")
        claimed = int(found[1] or found[3]) if found else 0
        if user is not None and not user.blind:
            if row.details.get("reason") == "failures" and claimed > sum(user.failed.values()):
                raise Wrong("INV-07", f"{claimed} resets in a row are said to have failed, and {sum(user.failed.values())} are "
                            "told")
            if row.event == "breaker.closed" and claimed > user.won:
                raise Wrong("INV-07", f"{claimed} probes in succession are said to have succeeded, and {user.won} are told")
        elif user is None and self._known and row.details.get("reason") == "users" and claimed > len(self._failing):
            raise Wrong("INV-11", f"the resets of {claimed} users are said to have failed, and those of {len(self._failing)} "
                        "are told")
        if user is not None:
            user.failed.clear()
            user.won = 0

    def _force(self, row: Row) -> bool:
        before, to, generation = row.details.get("from"), row.details.get("to"), _number(row, "generation")
        if row.event == "breaker.released" and to != "closed":
            raise Wrong("INV-07", f"a breaker was released to {to!r}")
        if row.is_global:
            gauge = self.common
        else:
            user = self._of(row)
            gauge = user.breaker
            user.failed.clear()
            user.won = 0
        known = gauge.known
        gauge.jumped(before, str(to), generation)
        return known

    def _recovered(self, row: Row) -> bool:
        user = self._of(row)
        base, new = row.base, row.new
        if base is None or new not in (base, base + 1):
            raise Wrong("INV-05", f"a recovery over version {base} made version {new}: numbers have no gaps")
        if user.since is not None and base < user.head:
            raise Wrong("INV-05", f"a recovery was made over version {base}, and the head was {user.head} by then")
        user.head = new
        if new > base:
            user.authors[new] = row.attempt_id or ""
        return user.since is not None


def judge(rows: Iterable[Row]) -> Verdict:
    """Go over the rows of one log, in their order, to its end or to the first that is not possible."""
    found = list(rows)
    monitor = Monitor(found)
    full = unknown = 0
    for number, row in enumerate(found):
        try:
            full += monitor.feed(row)
        except Wrong as wrong:
            rejected = Rejection(row.seq, wrong.invariant, wrong.why)
            return Verdict(len(found), full, number - full, unknown, len(monitor.users), rejected)
        unknown += not (row.ends or row.event in MOVES | FORCES | ANCHORS | OTHERS)
    return Verdict(len(found), full, len(found) - full, unknown, len(monitor.users), None)


def _as_seen(mode: object, generation: int) -> Seen:
    return Seen(generation, str(mode))


def _number(row: Row, name: str) -> int:
    value = row.details.get(name)
    if not isinstance(value, int) or isinstance(value, bool):
        raise Wrong("INV-03", f"the row {row.event} does not say its {name!r} (it has {value!r})")
    return value


def _later_bases(rows: Sequence[Row]) -> dict[int, int]:
    """For each row that a mark stood for, the lowest version from which a later attempt of that user began."""
    if any(row.event in ("user.forgotten", "store.restored") for row in rows):
        return {}  # a user begins anew, or goes back
    found: dict[int, int] = {}
    least: dict[str, int] = {}
    for row in reversed(rows):
        name = row.user or ""
        if row.marked and name in least:
            found[row.seq] = least[name]
        elif row.whole and row.base is not None:
            least[name] = min(least.get(name, row.base), row.base)
    return found


def _covered(rows: Sequence[Row], event: str) -> set[int]:
    """The rows that the anchors of this event say were erased."""
    found: set[int] = set()
    for row in rows:
        if row.event == event and not row.erased:
            with contextlib.suppress(Wrong):  # it is rejected when its turn comes
                for first, last in forms.ranges(row):
                    found.update(range(first, last + 1))
    return found
