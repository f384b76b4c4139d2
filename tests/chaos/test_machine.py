"""The rule machine that users run on targets of their own: on body weight, on the boats of the examples, and on planted bugs."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from chaos.machine import Broken, machine
from chaos.target import Target
from statemachine.marks import Mark
from statemachine.store import identities
from statemachine.store.committer import Committer

if TYPE_CHECKING:
    from collections.abc import Iterator

LIVES = settings(max_examples=8, stateful_step_count=25, database=None, deadline=None, phases=[Phase.generate],
                 report_multiple_bugs=False)
"""A few lives at a time, and none made smaller: that is Hypothesis's own business."""
ROUNDS = 40


def lived(target: Target, seen: Counter[str]) -> Iterator[None]:
    """Some more lives each time.  What Hypothesis draws hangs on its seed, but on the modules that are loaded too."""
    for number in range(ROUNDS):
        run_state_machine_as_test(seed(number)(machine(target, witnessed=seen)), settings=LIVES)
        yield


def test_every_promise_holds_over_whole_lives_of_a_store(target: Target) -> None:
    """Whatever is done in whatever order, with reopening and crashes, nothing breaks, and what must happen did happen."""
    seen: Counter[str] = Counter()
    expected = {"measure: acknowledged", "batch: acknowledged", "reset: acknowledged", "restore: acknowledged",
                "raise: mutation-failed", "crash", "crash: interrupted"}
    assert any(expected <= set(seen) for _ in lived(target, seen)), expected - set(seen)


def _kept_nowhere(*_: Any) -> None:
    pass


def _forgotten(self: Committer, draft: Any) -> Any:
    if any(entry.public.kind == "admin" for entry in draft.entries):
        draft.committed()
        return []
    return _COMMIT(self, draft)


def _settled_as_committed(self: Mark) -> Any:
    entry = _ENTRY(self)
    made = self.base_version + 1
    public = msgspec.structs.replace(entry.public, event="reset.committed", outcome="committed", new_version=made)
    return entry._replace(public=public)


_COMMIT = Committer.commit
_ENTRY = Mark.entry


@pytest.mark.parametrize(("owner", "name", "bug", "promise"), [
    (identities, "keep_aside", _kept_nowhere, "conserved"),
    (Committer, "commit", _forgotten, "durable|audited"),
    (Mark, "entry", _settled_as_committed, "effects"),
])
def test_the_machine_finds_a_planted_bug(
    owner: Any, name: str, bug: Any, promise: str, monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A measurement kept aside nowhere, a commit told and not made, a death settled as a commit: the promise is named."""
    monkeypatch.setattr(owner, name, bug)
    with pytest.raises(Broken, match=promise):
        list(lived(Target(), Counter()))
