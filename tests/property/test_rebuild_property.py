"""Rebuilding after any history: the log replays to the head, and files decide as if no operator had ever come."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from statemachine import Measurement, Processor, ResetManager, Store
from statemachine.audit import configure_for_command
from statemachine.processor import SourceRow
from statemachine.rebuild import Source, rebuild, rebuild_from
from statemachine.state import user_key
from statemachine.store import keys
from statemachine.store.checkup import Checkup
from statemachine.store.draft import record
from statemachine.store.records import Identity
from tests.regression.scene import BY, opened, weighed

USER = "u"
pytestmark = pytest.mark.usefixtures("no_events")
SOURCES = [Source(b"f" * 16, "f.csv", "00")]
NEAR = st.tuples(st.just("near"), st.sampled_from([0.0, 0.1, -0.2, 0.3]))
SURPRISES = st.tuples(st.sampled_from(["wild", "shift", "gap", "wrong after a gap", "manual", "late", "again", "none"]),
                      st.sampled_from([0.0, 0.2, -0.1]))
ACTS = st.tuples(st.sampled_from(["reset", "restore", "by hand"]), st.sampled_from([0.0, 0.5, 1.0]))
HISTORIES = st.lists(st.one_of(NEAR, NEAR, NEAR, SURPRISES), min_size=1, max_size=40)
TAMPERED = st.lists(st.one_of(NEAR, NEAR, SURPRISES, ACTS), min_size=2, max_size=24)
AFTERWARDS = st.lists(st.one_of(NEAR, SURPRISES), min_size=3, max_size=10)
AGREEING = [*[("wild", 0.0)] * 3, *[("near", 0.0)] * 6]
"""Three that agree with each other and not with the state: a shift, or where they fit the pin a revocation."""
FEW = settings(phases=(Phase.explicit, Phase.reuse, Phase.generate), max_examples=60, deadline=None,
               suppress_health_check=list(HealthCheck))


@pytest.fixture
def no_events() -> Iterator[None]:
    """Nothing is printed of what the audit copies to structlog."""
    configure_for_command(verbose=False)
    yield
    structlog.reset_defaults()


class Life:
    """One user's measurements, made up as they come, and an operator's acts in between."""

    def __init__(self, store: Store, others: list[Processor]) -> None:
        self.manager = ResetManager(store)
        self.processors = [Processor(self.manager), *others]
        self.measured: list[Measurement] = []
        self.by_hand = 0
        self._day, self._kg = 0.0, 80.0

    def live(self, happens: str, figure: float) -> None:
        source, kg = "scale", self._kg + figure
        self._day += 40.0 if "gap" in happens else 1.0
        if happens in {"reset", "restore", "by hand"}:
            self._act(happens, figure)
            return
        if happens == "shift":
            self._kg += 12.0
            kg = self._kg
        elif happens in {"wild", "wrong after a gap"}:
            kg += 15.0
        elif happens == "manual":
            source, kg = "questionnaire", kg + 6.5
        elif happens == "none":
            kg = 0.0
        measurement = weighed(USER, self._day, kg, source)
        if happens == "late":
            measurement = weighed(USER, self._day - 1.5, kg, source)
        elif happens == "again" and self.measured:
            measurement = self.measured[-1]
        self.measured.append(measurement)
        statuses = {processor.process(measurement).status for processor in self.processors}
        assert len(statuses) == 1 or statuses == {"duplicate", "known"}  # seen, by another source or the same

    def _act(self, act: str, figure: float) -> None:
        store = self.manager.store
        last = store.version_range(USER)[1]
        if not last:
            return
        if act == "reset":
            self.manager.perform_reset(USER, **BY)
        elif act == "restore":
            self.manager.restore(USER, to_version=max(1, round(figure * last)), **BY)
        else:
            self.by_hand += 1
            self.manager.perform_reset(USER, measurement=weighed(USER, self._day, self._kg + 3.0, "by hand"), **BY)

    def rows(self) -> list[tuple[int, SourceRow]]:
        """The measurements as rows of a file, in the order of `process`."""
        rows = [SourceRow(number, measurement) for number, measurement in enumerate(self.measured)]
        rows.sort(key=lambda row: (row.measurement.at_us, row.row))  # type: ignore[union-attr]
        return [(0, row) for row in rows]


def stands(store: Store) -> tuple[Any, ...]:
    """All that later decisions rest on: state, run, last reset, probation and pin without numbers, and the measurements."""
    key = user_key(USER)
    head, draft = store.head(USER), store.draft()
    assert head is not None
    pin, probation = draft.pin(key), head.probation
    prefix = keys.identities(key)
    found = [(at, record(Identity, at, value)) for at, value in store.engine.scan(prefix, keys.after(prefix))]
    places = [(at, kept.disposition, kept.values, kept.r, kept.reason) for at, kept in found if kept is not None]
    return (head.state, head.run_since_us, head.reset_us, None if pin is None else (bool(pin.version), pin.state),
            None if probation is None else (probation.since_us, probation.accepted, probation.kind), places)


def sound(store: Store) -> bool:
    """Whether the checkup finds no error, and the count of what is kept aside is right."""
    return not [finding for finding in Checkup(store).run() if finding.level == "error"]


def dispositions(store: Store) -> Counter[int]:
    return Counter(place[1] for place in stands(store)[-1])


@FEW
@given(st.one_of(HISTORIES, TAMPERED))
def test_the_log_replays_to_the_head(history: list[tuple[str, float]]) -> None:
    """After resets, revocations and restores alike, the fold of the whole log is the head to the last bit."""
    with tempfile.TemporaryDirectory() as folder, opened(Path(folder) / "store", durability="process") as store:
        life = Life(store, [])
        for happens, figure in history:
            life.live(happens, figure)
        if store.head(USER) is None:
            return
        before = dict(store.engine.scan(b"\0", b"\xff" * 8))
        done = rebuild(life.manager, USER, **BY)
        assert (done.outcome, done.log.damage, done.log.unfolded) == ("unchanged", (), 0)
        assert done.log.steps + done.log.keyframes + done.log.resets == done.log.last
        assert dict(store.engine.scan(b"\0", b"\xff" * 8)) == before


@FEW
@given(HISTORIES)
def test_files_give_what_stands_where_no_operator_came(history: list[tuple[str, float]]) -> None:
    """Decided anew, every measurement stays where it is and nothing is written; late ones are the exception."""
    with tempfile.TemporaryDirectory() as folder, opened(Path(folder) / "store", durability="process") as store:
        life = Life(store, [])
        for happens, figure in history:
            if happens != "late":
                life.live(happens, figure)
        if store.head(USER) is None:
            return
        done = rebuild_from(life.manager, USER, SOURCES, life.rows(), **BY)
        assert (done.outcome, done.moved, done.restated) == ("unchanged", {}, 0)


@FEW
@given(TAMPERED, AFTERWARDS)
@example([*[("near", 0.0)] * 8, ("wrong after a gap", 0.0), ("near", 0.1), ("restore", 0.5), *[("near", 0.0)] * 4], AGREEING)
@example([*[("near", 0.0)] * 40, ("reset", 0.0), ("gap", 0.0), *[("near", 0.1)] * 2], AGREEING)
def test_files_decide_as_if_no_operator_had_come(history: list[tuple[str, float]], then: list[tuple[str, float]]) -> None:
    """The user stands as one in whose store the file was processed, and goes on as that one does, revocations too."""
    with tempfile.TemporaryDirectory() as folder, opened(Path(folder) / "store", durability="process") as store, \
            opened(Path(folder) / "twin", durability="process") as twin:
        life = Life(store, [])
        for happens, figure in history:
            life.live(happens, figure)
        intake = Processor(ResetManager(twin)).intake([(b"f" * 16, "f.csv")], lambda _, o: None)
        for number, row in life.rows():
            intake.add(number, row)
        intake.flush()
        if twin.head(USER) is None or store.head(USER) is None:
            return
        before = dispositions(store)
        done = rebuild_from(life.manager, USER, SOURCES, life.rows(), leave_out=True, **BY)
        assert done.after is not None
        ours, theirs = stands(store), stands(twin)
        assert ours[:5] == theirs[:5]
        assert set(theirs[5]) <= set(ours[5])
        left = [place for place in ours[5] if place not in theirs[5]]
        assert len(left) == life.by_hand == done.left_out + done.not_in_files
        assert before.total() == dispositions(store).total()
        gains = Counter[str]()
        for (was, now), count in done.moved.items():
            gains[was] -= count
            gains[now] += count
        assert gains["new"] == 0
        assert gains["accepted"] == dispositions(store)[0] - before[0]
        assert sound(store)
        assert store.verify_audit().problem == ""
        again = rebuild_from(life.manager, USER, SOURCES, life.rows(), leave_out=True, **BY)
        assert again.outcome == "unchanged"
        if life.by_hand:
            return  # what was weighed by hand is evidence in one store alone
        life.processors.append(Processor(ResetManager(twin)))
        for happens, figure in then:
            life.live(happens, figure)
        ours, theirs = stands(store), stands(twin)
        assert ours[:5] == theirs[:5]
        assert [place[:4] for place in ours[5]] == [place[:4] for place in theirs[5]]
