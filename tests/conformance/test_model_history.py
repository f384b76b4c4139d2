"""One user's log under damage: the library does what history.pml does, and breaking it on purpose is found."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from chaos.model import graph
from chaos.model.drive import drive
from chaos.model.process import Difference
from chaos.model.worlds.history import World
from statemachine import ResetTransaction, Store, StoreCorrupt, recovery
from statemachine.store import committer, identities, keys, log
from statemachine.store.draft import Draft
from statemachine.validation import StateValidator

if TYPE_CHECKING:
    from chaos.model.graph import Graph

pytestmark = pytest.mark.skipif(
    not (shutil.which("spin") and shutil.which("gcc")) and not os.environ.get("CI"), reason="SPIN is missing; CI installs it",
)


@pytest.fixture(scope="module")
def damaged() -> Graph:
    """One process, four versions, two records that go bad, one after the other."""
    return graph.explored("history", ("NV=4", "NR=1", "FLIPS=2", "RULES=0", "CRASHES=0"))


@pytest.fixture(scope="module")
def judged() -> Graph:
    """One process, four versions, damage, and newer rules."""
    return graph.explored("history", ("NV=4", "NR=1", "FLIPS=1", "RULES=1", "CRASHES=0"))


@pytest.fixture(scope="module")
def racing() -> Graph:
    """Two processes that plan beside each other."""
    return graph.explored("history", ("NV=3", "NR=2", "FLIPS=1", "RULES=0", "CRASHES=0"))


def test_the_library_takes_every_edge_of_the_model(damaged: Graph, judged: Graph) -> None:
    for explored in (damaged, judged):
        done = drive(explored, World)
        assert done.edges == sum(map(len, explored.edges))
        assert done.refusals > done.states


def test_a_walk_back_that_skips_validation_is_found(judged: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Store.newest_good

    def unvalidated(self: Store, user: str) -> Any:
        rules, self.validator = self.validator, StateValidator(())
        try:
            return real(self, user)
        finally:
            self.validator = rules

    monkeypatch.setattr(Store, "newest_good", unvalidated)
    with pytest.raises(Difference, match=r"newer rules .*plan recover"):
        drive(judged, World)


def test_a_restore_that_is_not_validated_is_found(judged: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ResetTransaction, "_validate", lambda *_: None)
    with pytest.raises(Difference, match=r"newer rules .*plan restore 0, commit"):
        drive(judged, World)


def test_a_missing_compare_and_set_is_found(racing: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    real: Any = committer._judged

    def blind(txn: Any, draft: Any, *others: Any) -> Any:
        draft.expected.clear()
        return real(txn, draft, *others)

    monkeypatch.setattr(committer, "_judged", blind)
    with pytest.raises(Difference, match=r"in the model|is a state that nobody made|is not the state of version"):
        drive(racing, World)


def test_a_pin_that_moves_during_probation_is_found(judged: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each reset would then pin what the reset before it had made."""
    real: Any = ResetTransaction._append

    def renewed(self: Any, draft: Any) -> Any:
        policy = self._context.policy
        self._context = self._context._replace(policy=_Over(policy))
        return real(self, draft)

    monkeypatch.setattr(ResetTransaction, "_append", renewed)
    with pytest.raises(Difference, match=r"^pin is"):
        drive(judged, World)


class _Over:
    """A policy whose probations are over at once."""

    def __init__(self, policy: Any) -> None:
        self._policy = policy

    def __getattr__(self, name: str) -> Any:
        return getattr(self._policy, name)

    def probation_over(self, *_: object) -> bool:
        return True


def test_a_damaged_head_that_is_overwritten_is_found(damaged: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "move_aside", lambda *_: None)
    with pytest.raises(Difference, match=r"^moved_aside is"):
        drive(damaged, World)


def test_damage_that_counts_as_nothing_stored_is_found(damaged: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    """INV-04: only "nothing stored" may start an initial reset."""
    real: Any = Draft.head

    def head(self: Draft, user: bytes) -> Any:
        try:
            return real(self, user)
        except StoreCorrupt:
            return None

    monkeypatch.setattr(Draft, "head", head)
    with pytest.raises(Difference, match=r"and it was done; after: .*flip head 0; said|plan recover 0; said"):
        drive(damaged, World)


def test_a_walk_back_that_forgets_what_it_leaves_out_is_found(damaged: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    """INV-08: the measurements of the versions after the good one are put aside again."""
    monkeypatch.setattr(identities, "move", lambda *_: None)
    with pytest.raises(Difference, match=r"^left is"):
        drive(damaged, World)


def test_a_log_that_is_cut_at_a_step_is_found(damaged: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first version could not be read any more."""

    def cut(draft: Any, _estimator: Any, user: bytes, first: int, keep: int) -> int:
        for version in range(first, keep):
            draft.delete(keys.version(user, version))
        return keep

    monkeypatch.setattr(log, "_prune", cut)
    with pytest.raises(Difference, match=r"^kind is"):
        drive(damaged, World)
