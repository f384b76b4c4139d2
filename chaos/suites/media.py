"""Media: bad bits, lost writes, cut and foreign files.  Damage is told, with its remedy, or does no harm; nobody dies of it."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec

from chaos import grown, served, watched
from chaos.checker import judge
from chaos.faults import foreign, limits, media
from chaos.grown import Grown
from chaos.history import Told
from chaos.suite import Point, Session, Verdict
from statemachine import ResetError, Store
from statemachine.errors import StoreUnavailable
from statemachine.store.engine import DATA

FLIPS: Final = 2_850
CUTS: Final = 150
SNAPSHOTS: Final = 6
GO_ON_EVERY: Final = 24
SECONDS_MAX: Final = 20
DEADLY: Final = frozenset({signal.SIGABRT, signal.SIGBUS, signal.SIGSEGV})

HARMLESS: Final = "the truth was served"
TOLD: Final = "told, named by doctor"
REFUSED: Final = "refused to open"
VANISHED: Final = "missing, named by doctor"
DIED: Final = "died, as documented"
DEAD: Final = "died"


class Judged(msgspec.Struct):
    """What a child found of one damaged store."""

    outcome: str = HARMLESS
    violations: list[str] = []


class Bed:
    """The grown store, its truth, and the place where one damaged copy after another is made."""

    def __init__(self, session: Session) -> None:
        self.target = session.target
        self.seed = session.seed
        sound = grown.grow(session.target, session.scratch / f"media-{session.share}", session.seed, snapshots=SNAPSHOTS)
        self.grown = foreign.with_marks(self.target, sound)
        self.live = media.live(self.grown.data)
        with self.target.open(self.grown.path, readonly=True, **grown.settings()) as store:
            self.truth = served.truth(self.target, store)
        self.path = self.grown.copy(session.scratch / f"media-{session.share}-hurt")
        self._whole = True

    def damage(self, fault: str, where: list[Any]) -> bool:
        """Make the damaged copy of a point; whether it differs from the sound store."""
        if not self._whole or fault not in IN_DATA:
            self.grown.copy(self.path)
            self._whole = True
        if fault in IN_DATA:
            data = IN_DATA[fault](self.grown, where)
            (self.path / DATA).write_bytes(data)
            return data != self.grown.data
        self._whole = False
        return foreign.FAULTS[where[0]](self.grown, self.path)

    def used(self) -> None:
        """The copy was written to."""
        self._whole = False

    def hit(self, fault: str, where: list[Any]) -> list[media.Live]:
        """The live pages that a fault in the data file changed."""
        if fault == "cut short":
            first = where[0] // media.page_bytes(self.grown.data)
            return [page for page in self.live if page.number >= first]
        number = where[0] // media.page_bytes(self.grown.data) if fault == "bit flip" else where[0]
        return [page for page in self.live if page.number == number]


IN_DATA: Final[dict[str, Callable[[Grown, list[Any]], bytes]]] = {
    "bit flip": lambda grown, where: media.flipped(grown.data, *where),
    "cut short": lambda grown, where: grown.data[:where[0]],
    "page of zeros": lambda grown, where: media.zeroed(grown.data, where[0]),
    "misplaced page": lambda grown, where: media.misplaced(grown.data, *where),
    "stale page": lambda grown, where: media.stale(grown.data, grown.earlier[where[1]], where[0]),
}
"""The faults in the data file, by name."""


class Media:
    """One damaged copy of a store a point."""

    name = "media"
    summary = "bad bits, lost writes, cut, foreign and deleted files: told or harmless, and survived"
    floor = 3_000
    grows = True
    weight = 15.0
    witnesses = frozenset({HARMLESS, TOLD, REFUSED, VANISHED})

    def unavailable(self) -> str:
        """It needs nothing but files."""
        return ""

    def run(self, session: Session) -> Iterator[Verdict]:
        """Damage one copy after another, and look."""
        with grown.quiet():
            bed = Bed(session)
            mine = list(session.mine(self._points(bed, session.times)))
            yield from self._judged(bed, mine)

    def replay(self, session: Session, point: Point) -> Verdict:
        """Damage one copy in the same way."""
        with grown.quiet():
            return next(self._judged(Bed(session), [(0 if point.where[-1] else 1, point)]))

    def _points(self, bed: Bed, times: int) -> Iterator[tuple[int, Point]]:
        """Each with its number; the last of `where` says whether the store is gone on with."""
        for number, (fault, where) in enumerate(points(bed, times)):
            go_on = number % GO_ON_EVERY == 0 or fault not in OFTEN
            yield number, Point(self.name, fault, [*where, go_on])

    def _judged(self, bed: Bed, mine: list[tuple[int, Point]]) -> Iterator[Verdict]:
        def work(item: tuple[int, Point]) -> Judged:
            limits.hushed()
            signal.alarm(SECONDS_MAX)
            number, point = item
            fault, where, go_on = point.fault, point.where[:-1], point.where[-1]
            fired = bed.damage(fault, where)
            found = examine(bed, fault, where, number, go_on=go_on) if fired else Judged("nothing was changed")
            signal.alarm(0)
            return found

        for index, found in watched.each(mine, work):
            point = mine[index][1]
            judged = after_death(bed, point, found) if isinstance(found, watched.Died) else msgspec.convert(found, Judged)
            yield Verdict(point, judged.outcome, tuple(judged.violations), fired=judged.outcome != "nothing was changed")


def points(bed: Bed, times: int) -> Iterator[tuple[str, list[Any]]]:
    """Every point of a plan: first those that are few, then as many flipped bits and cuts as the plan has."""
    dice = random.Random(f"{bed.seed}/media")
    data, size = bed.grown.data, media.page_bytes(bed.grown.data)
    for name in foreign.FAULTS:
        yield "foreign or missing file", [name]
    for page in bed.live:
        yield "page of zeros", [page.number]
        yield "misplaced page", [page.number, dice.choice(bed.live).number]
        for nth, earlier in enumerate(bed.grown.earlier):
            if media.stale(data, earlier, page.number) != data:
                yield "stale page", [page.number, nth]
    edges = [0, 1, size - 1, size, 2 * size, len(data) - size, len(data) - 1]
    yield from (("cut short", [length]) for length in edges)
    for _ in range(times):
        yield from (("cut short", [dice.randrange(2 * size, len(data))]) for _ in range(CUTS))
        yield from (("bit flip", [*place]) for place in media.places(data, bed.live, FLIPS, dice))


def examine(bed: Bed, fault: str, where: list[Any], number: int, *, go_on: bool) -> Judged:
    """Read the damaged store, ask the doctor where anything is amiss, and go on with it."""
    found = Judged(violations=[])
    in_data = fault in IN_DATA
    hit, said = bed.hit(fault, where) if in_data else [], list[str]()
    try:
        with bed.target.open(bed.path, readonly=True, **grown.settings()) as store:
            said = _look(bed, store, found, hit, number, in_data=in_data, go_on=go_on)
    except ResetError as error:
        found.outcome = REFUSED
        found.violations += _unsaid(error, bed)
    except Exception as error:  # noqa: BLE001 - whatever comes out of the library untyped is what is looked for
        found.violations.append(f"typed: {type(error).__name__} came out of the library: {error}")
    if go_on and not found.violations:
        bed.used()
        go_on_with(bed, found, hit, in_data=in_data,
                   astray=fault in FORGETFUL or any(words in line for line in said for words in PERILS))
    return found


OFTEN: Final = frozenset({"bit flip", "cut short"})
PERILS: Final = ("LMDB ends a process", "whoever writes")
"""What doctor says of damage that a writer may spread or die of, as docs/lmdb.md has it."""
FORGETFUL: Final = frozenset({"stale page", "misplaced page"})
"""Faults after which records verify that are not the newest: what docs/lmdb.md says of lost writes holds of them."""


def _look(  # noqa: PLR0913 - what is known of the damage
    bed: Bed, store: Store, found: Judged, hit: list[media.Live], number: int, *, in_data: bool, go_on: bool,
) -> list[str]:
    seen = served.look(bed.target, store, bed.truth, number)
    amiss = bool(seen.told or seen.missing)
    said = served.doctor(store) if amiss or seen.wrong or go_on else []
    found.violations += [f"true: {what}" for what in seen.wrong]
    if amiss:
        found.outcome = VANISHED if seen.missing else TOLD
        if not said:
            what = "; ".join(f"{name}: {what}" for name, what in (*seen.missing, *seen.told))
            found.violations.append(f"named: doctor finds nothing, but {what[:300]}")
    elif said:
        found.outcome = TOLD  # before anybody has met it
    if in_data:
        spoilt = {name for name, _ in (*seen.told, *seen.missing) if name}
        found.violations += [f"contained: {name!r} lies on no page that was hit, and is not served" for name in sorted(spoilt)
                             if not _is_hit(hit, name)]
    return said


def _is_hit(hit: list[media.Live], name: str) -> bool:
    """Whether a user's records, or the store's own, lie on these pages."""
    return any(page.kind != "free" and any(page.needed_by(prefix) for prefix in (name.encode() + b"\0", b"\0m"))
               for page in hit)


def _unsaid(error: ResetError, bed: Bed) -> list[str]:
    """An error about a store must say what is wrong with which part of it, and what to do."""
    text = str(error)
    named = str(bed.path) in text or "the store's own record" in text
    said = ";" in text or isinstance(error, StoreUnavailable)  # there the system's own words say what is in the way
    return [] if named and said else [f"told: the error does not name the store and the remedy: {text}"]


def go_on_with(bed: Bed, found: Judged, hit: list[media.Live], *, in_data: bool, astray: bool) -> None:
    """Open the store for writing, let everybody go on, open it again and read all of it."""
    target, sound = bed.target, found.outcome == HARMLESS
    events = list(bed.grown.events)
    apart = in_data and not astray and all(page.first >= b"\1" for page in hit)  # from all that everybody's commits touch
    others = [name for name in bed.truth.people if apart and not _is_hit(hit, name)]
    try:
        with target.open(bed.path, **grown.settings()) as store:
            client, events = grown.clients(target, store, bed.grown)
            for op in grown.more(bed.grown):
                told = client.do(op)
                if op.user in others and told.answer != "acknowledged":
                    found.violations.append(f"contained: {op.user!r} lies on no page that was hit, and got {told.error}")
        with target.open(bed.path, readonly=True, **grown.settings(2 * grown.IDS_LATER)) as store:
            if not astray:
                found.violations += served.wrong_versions(target, events, store)
            if sound and not astray:
                found.violations += judge(target, events, store, marks_lost=True)
    except ResetError as error:
        if sound:
            found.outcome = TOLD
        found.violations += _unsaid(error, bed)
    except Exception as error:  # noqa: BLE001 - as above
        found.violations.append(f"typed: {type(error).__name__} came out of the library: {error}")
    if sound and any(isinstance(event, Told) and event.answer != "acknowledged" for event in events[len(bed.grown.events):]):
        found.outcome = TOLD


def after_death(bed: Bed, point: Point, died: watched.Died) -> Judged:
    """A death is as documented where doctor, which must not die itself, names a page that ends a process."""
    def ask(_: None) -> bool:
        limits.hushed()
        signal.alarm(SECONDS_MAX)
        bed.used()
        bed.damage(point.fault, point.where[:-1])
        with bed.target.open(bed.path, readonly=True, **grown.settings()) as store:
            return any(words in said for said in served.doctor(store) for words in PERILS)

    if died.signal == signal.SIGALRM:
        return Judged(DEAD, [f"alive: it hung for {SECONDS_MAX} s"])
    if died.signal in DEADLY and point.fault in IN_DATA:
        for _, named in watched.each([None], ask):
            if named is True:
                return Judged(DIED)
            if isinstance(named, watched.Died):
                return Judged(DEAD, [f"alive: {died} while it was read, and doctor was {named}"])
    return Judged(DEAD, [f"alive: {died}"])


