"""Several users under one global breaker: the library does what containment.pml does, and breaking it on purpose is found."""

from __future__ import annotations

import os
import shutil
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from chaos.model import graph
from chaos.model.drive import drive
from chaos.model.process import Difference
from chaos.model.worlds import containment
from statemachine import ResetTransaction, breaker
from statemachine.store import breakers, committer
from statemachine.store import draft as draft_module
from statemachine.store.draft import BreakerEvent

if TYPE_CHECKING:
    from chaos.model.graph import Graph

pytestmark = pytest.mark.skipif(
    not (shutil.which("spin") and shutil.which("gcc")) and not os.environ.get("CI"), reason="SPIN is missing; CI installs it",
)
TWO_USERS = partial(containment.World, thresholds=containment.Thresholds())
ONE_USER = partial(containment.World, thresholds=containment.Thresholds(users=1))


@pytest.fixture(scope="module")
def twice() -> Graph:
    """Two users with two attempts each: enough for both probes, and for one that is lost."""
    return graph.explored("containment", ("NU=2", "NA=2", "CRASHES=0", "FORCES=0", "USERS=2"))


@pytest.fixture(scope="module")
def forced() -> Graph:
    """Two users with one attempt each, an operator's word on the global breaker, and one failing user that opens it."""
    return graph.explored("containment", ("NU=2", "NA=1", "CRASHES=0", "FORCES=1", "USERS=1"))


@pytest.fixture(scope="module")
def dying() -> Graph:
    """Two users with one attempt each, of which one dies, under a global breaker that one failing user opens."""
    return graph.explored("containment", ("NU=2", "NA=1", "CRASHES=1", "FORCES=0", "USERS=1"))


def test_the_library_takes_every_edge_of_the_model(forced: Graph) -> None:
    done = drive(forced, ONE_USER)
    assert done.edges == sum(map(len, forced.edges))
    assert done.refusals > done.states


def test_a_result_that_counts_globally_without_its_generation_is_found(twice: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    real: Any = breaker.settle_global

    def late(record: Any, *others: Any, **named: Any) -> Any:
        return real(record, *others, **{**named, "generation": record.generation})

    monkeypatch.setattr(draft_module, "settle_global", late)
    with pytest.raises(Difference, match=r"^(g\.\w+|failing) is"):
        drive(twice, TWO_USERS)


def test_a_probe_that_is_never_given_back_is_found(dying: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a process that died with it; reopening settles the death, and leaves the slot taken."""
    monkeypatch.setattr(breaker, "released", lambda record, _: record)
    with pytest.raises(Difference, match=r"^g\.\w+ is .*after: .*crash"):
        drive(dying, ONE_USER)


def test_a_users_probe_that_is_wasted_where_the_global_one_is_lost_is_found(
    twice: Graph, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ResetTransaction, "_void", lambda self: self._store.draft())
    with pytest.raises(Difference, match=r"b\.\w+ is .*lease global"):
        drive(twice, TWO_USERS)


def test_failures_that_are_counted_instead_of_users_are_found(twice: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    """One user that fails twice is one user."""
    real: Any = breaker.settle_global

    def by_attempt(record: Any, *others: Any, **named: Any) -> Any:
        return real(record, *others, **{**named, "user": named["attempt_id"].encode()})

    monkeypatch.setattr(draft_module, "settle_global", by_attempt)
    with pytest.raises(Difference, match=r"(g\.\w+|failing) is"):
        drive(twice, TWO_USERS)


def test_one_breaker_for_all_users_is_found(twice: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    """INV-11: one user's failures would stop another."""
    for module in (draft_module, breakers):
        monkeypatch.setattr(module, "breaker_key", lambda user: b"\0bshared" if user else b"\0bglobal")
    with pytest.raises(Difference, match=r"b\.\w+ is"):
        drive(twice, TWO_USERS)


def test_a_commit_under_a_breaker_that_has_opened_is_found(twice: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    real = breakers.Breakers.judge
    monkeypatch.setattr(breakers.Breakers, "judge", lambda self, event: real(self, event) and None)
    with pytest.raises(Difference, match=r" is .*, commit \d; said"):
        drive(twice, TWO_USERS)


def test_a_death_that_nobody_settles_is_found(dying: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    """The row is written, and what it says of the breakers is not."""
    monkeypatch.setattr(BreakerEvent, "moves", _moves_but_for_the_dead(BreakerEvent.moves))
    with pytest.raises(Difference, match=r"^(g|b)\.\w+ is .*crash"):
        drive(dying, ONE_USER)


def _moves_but_for_the_dead(real: Any) -> Any:
    return lambda self, of: {} if self.result == "died" else real(self, of)


def test_a_lease_that_does_not_compare_is_found(twice: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two attempts hold the one global probe."""
    real: Any = committer._judged

    def blind(txn: Any, draft: Any, *others: Any) -> Any:
        draft.expected.clear()
        return real(txn, draft, *others)

    monkeypatch.setattr(committer, "_judged", blind)
    with pytest.raises(Difference, match=r"is .*lease global"):
        drive(twice, TWO_USERS)
