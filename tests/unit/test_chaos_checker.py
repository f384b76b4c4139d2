"""The checker: a healthy history breaks no promise, and each thing that can go wrong breaks the one that names it."""

from __future__ import annotations

import copy
from collections import Counter
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from chaos import checker
from chaos.checker import PROMISES, Found, User, audited, look
from chaos.history import Asked, Event, Made, Told, lines, read
from chaos.oracle import Oracle
from chaos.target import Target
from chaos.workload import PRESENT_US, USERS, Client, Op, generate
from statemachine import StoreFull
from statemachine.testing import CountingIds, ManualClock

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("no_events")
TARGET = Target(mutations={"widen": (("widen", lambda s: s.replace(P=[[2.0, 0.0], [0.0, 0.01]])),)})
SETTINGS: dict[str, Any] = {"clock": ManualClock(PRESENT_US), "durability": "process"}


@pytest.fixture
def lived(tmp_path: Path) -> tuple[list[Event], Found]:
    """Sixty operations, and the store they left, opened again."""
    events: list[Event] = [Made("body weight", 1)]
    with TARGET.open(tmp_path / "s", ids=CountingIds(), **SETTINGS) as store:
        for _ in Client(TARGET, store, events.append).run(generate(1, 60)):
            pass
    with TARGET.open(tmp_path / "s", readonly=True) as store:
        return events, look(TARGET, store)


def broken(events: list[Event], found: Found) -> set[str]:
    """The promises that are broken."""
    oracle = Oracle(events)
    return {promise.__name__ for promise in (*PROMISES, audited) if list(promise(oracle, found))}


@pytest.mark.parametrize("seed", range(8))
def test_a_healthy_history_breaks_nothing(tmp_path: Path, seed: int) -> None:
    events: list[Event] = []
    with TARGET.open(tmp_path / "s", ids=CountingIds(), **SETTINGS) as store:
        answers = Counter(told.answer for told in Client(TARGET, store, events.append).run(generate(seed, 80)))
    with TARGET.open(tmp_path / "s", readonly=True) as store:
        assert checker.judge(TARGET, events, store) == ()
    assert answers["acknowledged"] > 50
    assert answers["failed"] > 0


def test_the_workload_does_every_kind_of_thing() -> None:
    kinds = Counter(op.kind for op in generate(3, 300))
    assert set(kinds) == {"measure", "batch", "reset", "raise", "restore", "mutate"}
    assert generate(3, 300) == generate(3, 300) != generate(4, 300)


def of(found: Found, **changed: Any) -> Found:
    """The store with one user changed."""
    name = USERS[0]
    return found._replace(users={**found.users, name: found.users[name]._replace(**changed)})


def without(authors: dict[int, str], version: int) -> dict[int, str]:
    return {v: a for v, a in authors.items() if v != version}


def tail_lost(found: Found, user: User) -> Found:
    last = user.last - 1
    return of(found, last=last, head=user.digests[last], digests=without(user.digests, user.last),
              authors=without(user.authors, user.last))


def row_changed(found: Found, of_outcome: str, **changed: Any) -> Found:
    """One row of that outcome changed."""
    rows = list(found.rows)
    at = next(n for n, row in enumerate(rows) if row.public.outcome == of_outcome)
    rows[at] = msgspec.structs.replace(rows[at], public=msgspec.structs.replace(rows[at].public, **changed))
    return found._replace(rows=rows)


def user_lost(found: Found, _: User) -> Found:
    return found._replace(users={name: user for name, user in found.users.items() if name != USERS[0]})


def undone(found: Found, _: User) -> Found:
    return row_changed(found, "committed", outcome="rolled_back")


DAMAGE: dict[str, tuple[set[str], Callable[[Found, User], Found]]] = {
    "the newest version is lost": ({"durable"}, tail_lost),
    "a user is lost": ({"durable", "conserved"}, user_lost),
    "a version has another state": ({"durable"}, lambda f, u: of(f, digests={**u.digests, 2: "other"})),
    "a version too many": ({"explained"}, lambda f, u: of(
        f, last=u.last + 1, digests={**u.digests, u.last + 1: u.head}, authors={**u.authors, u.last + 1: ""})),
    "a gap": ({"gapless"}, lambda f, u: of(f, authors=without(u.authors, next(v for v, a in u.authors.items() if not a)))),
    "the head is not the log's end": ({"gapless"}, lambda f, u: of(f, head=u.digests[u.last - 1] + "x")),
    "an invalid head": ({"valid"}, lambda f, _: of(f, violations=("P is not positive definite",))),
    "an outcome twice": ({"one_outcome", "conforming"}, lambda f, _: f._replace(rows=[*f.rows, f.rows[-1]])),
    "another outcome": ({"one_outcome", "effects", "conforming"}, undone),
    "an attempt that nobody began": ({"one_outcome", "audited"}, lambda f, _: row_changed(f, "rolled_back", attempt_id="nobody")),
    "an author without a row": ({"effects"}, lambda f, u: of(f, authors={**u.authors, 1: "nobody"})),
    "a measurement lost": ({"conserved"}, lambda f, u: of(f, recorded=u.recorded - Counter([next(iter(u.recorded))]))),
    "a measurement invented": ({"conserved"}, lambda f, u: of(f, recorded=u.recorded + Counter([("1.0", "nobody")]))),
    "a broken chain": ({"chained"}, lambda f, _: f._replace(chain="row 3 does not follow row 2")),
    "a row lost": ({"audited", "effects"}, lambda f, _: f._replace(
        rows=[row for row in f.rows if row is not next(r for r in f.rows if r.public.outcome == "committed")])),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_each_damage_breaks_the_promise_that_names_it(lived: tuple[list[Event], Found], damage: str) -> None:
    events, found = lived
    assert broken(events, found) == set()
    promises, harm = DAMAGE[damage]
    assert promises <= broken(events, harm(copy.deepcopy(found), found.users[USERS[0]]))


def test_what_is_in_doubt_may_be_there_or_not() -> None:
    asked = Asked(0, "measure", "u", ((1, "80.0", "scale"),))
    nothing = Found({}, [], "")
    one = Found({"u": User(1, 1, "d", (), {1: "d"}, {1: ""}, Counter([("80.0", "scale")]))}, [], "")
    for doubt in ([asked], [asked, Told(0, "doubt")]):
        assert broken([*doubt], nothing) == broken([*doubt], one) == set()
    acknowledged: list[Event] = [asked, Told(0, "acknowledged", {1: "d"}, statuses=("accepted",))]
    assert broken(acknowledged, nothing) == {"durable", "conserved"}
    failed: list[Event] = [asked, Told(0, "failed", error="store-full")]
    assert broken(failed, nothing) == set()
    assert broken(failed, one) == {"explained", "conserved"}


def test_a_version_that_was_told_twice_must_be_one_state() -> None:
    events: list[Event] = [Asked(0, "measure", "u"), Told(0, "acknowledged", {1: "a"}),
                           Asked(1, "measure", "u"), Told(1, "acknowledged", {1: "b"})]
    assert Oracle(events).contradictions == ["version 1 of 'u' was told with two different states"]


def test_a_history_is_read_back_without_the_line_that_a_death_cut(tmp_path: Path) -> None:
    events: list[Event] = [Made("t", 1), Asked(0, "measure", "ü", ((1, "8", "s"),)), Told(0, "doubt", error="Boom")]
    (tmp_path / "h").write_bytes(lines(events) + b'{"type":"asked","op":1')
    assert read(tmp_path / "h") == events


def test_a_client_tells_failures_from_doubts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[Event] = []
    with TARGET.open(tmp_path / "s", ids=CountingIds(), **SETTINGS) as store:
        client = Client(TARGET, store, events.append)
        assert client.do(Op("measure", "u")).answer == "acknowledged"

        def full(*_: object) -> None:
            message = "no room"
            raise StoreFull(message)

        def cut(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(client.processor, "process", full)
        assert client.do(Op("measure", "u", 1)).answer == "failed"
        monkeypatch.setattr(client.processor, "process_batch", full)
        assert client.do(Op("batch", "u", 1)).answer == "doubt", "groups before it may stand"
        monkeypatch.setattr(client.processor, "process", cut)
        with pytest.raises(KeyboardInterrupt):
            client.do(Op("measure", "u", 1))
        last = events[-1]
        assert isinstance(last, Told)
        assert (last.answer, last.error) == ("doubt", "KeyboardInterrupt")
