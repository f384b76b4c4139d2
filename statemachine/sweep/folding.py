"""Folding a table: side by side where the estimator can, else lane by lane in a loop; the findings are the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from statemachine.errors import StoreCorrupt
from statemachine.estimator import FoldsMany, Tells

if TYPE_CHECKING:
    from collections.abc import Mapping

    from statemachine.estimator import Estimator
    from statemachine.sweep.findings import Flags, Floats
    from statemachine.validation import Rule
    from statemachine.vectorised import Folded, Lanes


def fold(estimator: Estimator, lanes: Lanes) -> Folded:
    """Every lane folded.  Raises nothing for a lane that cannot be folded to its end: see `Folded.trouble`."""
    if isinstance(estimator, FoldsMany) and _speaks_for_itself(estimator):
        try:
            return estimator.fold_many(lanes)
        except (OverflowError, ValueError):  # a state that no column can hold; the loop can
            return FoldedInLoop(estimator, lanes)
    return FoldedInLoop(estimator, lanes)


def _speaks_for_itself(estimator: FoldsMany) -> bool:
    """Whether no subclass has changed the arithmetic beneath the vectorised form that it inherits."""
    line = type(estimator).__mro__

    def depth(name: str) -> int:
        return next((place for place, kind in enumerate(line) if name in vars(kind)), len(line))

    return all(depth("fold_many") <= depth(name) for name in ("step", "nis", "adapting", "figures"))


class FoldedInLoop:
    """Lanes folded by `Estimator.step`, one reading after the other; see `Folded`."""

    vouched: tuple[Rule, ...] = ()

    def __init__(self, estimator: Estimator, lanes: Lanes) -> None:
        rows = len(lanes.at_us)
        self._states: list[Any] = [None] * rows
        self.nis: Floats = np.full(rows, np.nan)
        self.adapting: Flags = np.zeros(rows, np.bool_)
        tells = estimator if isinstance(estimator, Tells) else None
        self._figures: dict[str, Floats] = {name: np.full(rows, np.nan) for name in (tells.figure_units if tells else ())}
        self._trouble: dict[int, tuple[int, str]] = {}
        starts, lengths = lanes.starts.tolist(), lanes.lengths.tolist()
        for lane, (state, start, length) in enumerate(zip(lanes.states, starts, lengths, strict=True)):
            self._lane(estimator, tells, lanes, lane, state, range(start, start + length))

    @property
    def figures(self) -> Mapping[str, Floats]:
        """What the estimator tells of each step, if it tells anything."""
        return self._figures

    @property
    def trouble(self) -> Mapping[int, tuple[int, str]]:
        """The lanes in which the estimator raised."""
        return self._trouble

    def _lane(  # noqa: PLR0913 - the parts of one lane
        self, estimator: Estimator, tells: Tells | None, lanes: Lanes, lane: int, state: Any, rows: range,
    ) -> None:
        for row in rows:
            reading = lanes.reading(row)
            try:
                self.nis[row] = estimator.nis(state, reading)
                self.adapting[row] = estimator.adapting(state, reading.at_us)
                if tells is not None:
                    for name, value in tells.figures(state, reading).items():
                        self._figures[name][row] = value
                state = estimator.step(state, reading)
            except Exception as error:  # noqa: BLE001 - the user's arithmetic; what it cannot repeat is a finding
                self._trouble[lane] = row, f"{type(error).__name__}: {error}"
                return
            self._states[row] = state

    def state(self, lane: int, row: int) -> Any:
        """The state after a row of a lane."""
        if self._states[row] is None:
            message = f"lane {lane} could not be folded as far as its row {row}"
            raise StoreCorrupt(message)
        return self._states[row]

    def sound(self) -> Flags:
        """Nothing is vouched for: every state is for the rules to judge."""
        return np.zeros(len(self.nis), np.bool_)
