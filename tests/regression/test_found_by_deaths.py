"""What the suite of deaths found in the library: what happened, why, and what prevents it now."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from statemachine import Processor, ResetManager
from tests.regression.scene import BY, opened, weighed

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from statemachine.policy import Decision


class Overtaken(ResetManager):
    """A manager whose first decision to revoke is followed by what another process does meanwhile."""

    meanwhile: Callable[[], object] | None = None

    def decide(self, *args: Any, **more: Any) -> Decision:
        decision = super().decide(*args, **more)
        meanwhile = self.meanwhile
        if decision.start == "pin" and meanwhile is not None:
            self.meanwhile = None
            meanwhile()
        return decision


@pytest.mark.parametrize("batch", [False, True])
def test_a_revocation_that_another_process_overtakes_is_taken_anew(tmp_path: Path, *, batch: bool) -> None:
    """A writer in a storm of them was left by `AttributeError: 'NoneType' object has no attribute 'kalman'`.

    Three held readings agreed with the state before a reset under probation, so the policy decided to revoke it.  To carry that
    out, pin and run were read once more: between the two readings another process had ended the probation, the pin was gone,
    and None was asked for its time.  The caller got an error that is none of the library's, for a measurement that the next
    attempt takes in.  Had the held readings changed and not the pin, the place of the first that agreed would have been looked
    up in another list.  Now a decision is carried out on what it was made from; the commit finds that the user was changed, and
    the measurement is decided anew.
    """
    with opened(tmp_path / "store", durability="process") as store:
        manager = Overtaken(store)
        processor = Processor(manager)
        for day in range(8):
            processor.process(weighed("u", day, 80.0 + 0.2 * (-1) ** day))
        wrong = processor.process(weighed("u", 45, 93.0)).reset
        assert wrong is not None
        assert wrong.kind == "gap"
        manager.meanwhile = lambda: ResetManager(store).restore("u", to_version=8, **BY)
        agreeing = [weighed("u", 46 + n, 80.2) for n in range(3)]
        outcomes = processor.process_batch(agreeing) if batch else [processor.process(one) for one in agreeing]
        assert manager.meanwhile is None, "it was overtaken"
        assert outcomes[-1].status == "accepted"
        head = store.load("u")
        assert head is not None
        assert head.violations == ()
        assert head.state.x[0] == pytest.approx(80.1, abs=0.4)
        rows = {row.public.event for row in store.audit("u")}
        assert {"state.restored", "reset.conflicted"} <= rows
        assert store.verify_audit().problem == ""
