"""The committed sample is what its generator makes, and it really exercises what it is said to exercise."""

from __future__ import annotations

import importlib.util
import itertools
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from statemachine import Processor, ResetManager, Store
from statemachine.clock import SystemClock
from statemachine.ingest import Options, open_source
from statemachine.processor import SourceRow
from statemachine.store.records import Unreadable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from statemachine import Outcome
    from statemachine.audit import Row
    from statemachine.store.records import Kept

EXAMPLES = Path(__file__).parents[2] / "examples"
SAMPLE = EXAMPLES.parent / "statemachine" / "cli" / "sample.csv"
PRESENT_US = 1_788_220_800_000_000  # 2026-09-01, after the last true reading and long before 2099


class FixedClock(SystemClock):
    """A wall clock that stands still."""

    def now_us(self) -> int:
        return PRESENT_US


class Run(NamedTuple):
    """What one pass over the sample left."""

    outcomes: list[Outcome]
    audit: list[Row]
    kept: list[Kept]
    heads: dict[str, Any]


def generator() -> Any:
    spec = importlib.util.spec_from_file_location("make_sample", EXAMPLES / "make_sample.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows_of_sample() -> Iterator[SourceRow]:
    for row in open_source(SAMPLE, Options()):
        unreadable = Unreadable(file="sample.csv", line=row.line, raw=row.raw, reason=row.reason, user=row.user)
        yield SourceRow(row.row, row.measurement, None if row.measurement else unreadable)


def by_time(row: SourceRow) -> tuple[Any, ...]:
    """Unreadable rows first, then by instant, user and row."""
    m = row.measurement
    return (0, 0, "", row.row) if m is None else (1, m.at_us, m.user, row.row)


def run(path: Path, *, sort: bool) -> Run:
    rows = sorted(rows_of_sample(), key=by_time) if sort else list(rows_of_sample())
    outcomes: list[Outcome] = []
    with Store.open(path, durability="process", clock=FixedClock()) as store:
        intake = Processor(ResetManager(store)).intake([(b"sample".ljust(16), "sample.csv")], lambda _, o: outcomes.append(o))
        for row in rows:
            intake.add(0, row)
        intake.flush()
        heads = {user: store.load(user) for user in store.users()}
        assert store.verify_audit().problem == ""
        return Run(outcomes, list(store.audit()), list(store.quarantine()), heads)


@pytest.fixture(scope="module")
def ordered(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(tmp_path_factory.mktemp("sample") / "store", sort=True)


def events(done: Run, user: str) -> list[str]:
    """The user's resets in the order of the audit log, as "event kind"."""
    return [f"{row.public.event} {row.public.kind}" for row in done.audit if row.personal.user == user]


def test_generator_makes_the_committed_file() -> None:
    assert generator().make().encode() == SAMPLE.read_bytes()


def test_generator_is_seeded() -> None:
    module = generator()
    assert module.make(1) == module.make(1)
    assert module.make(1) != module.make(2)


def test_sample_has_the_size_and_the_columns_it_is_said_to_have() -> None:
    lines = SAMPLE.read_text().splitlines()
    cells = [line.split(",") for line in lines[1:]]
    days = sorted(cell[1][:10] for cell in cells if cell[1] < "2090")
    assert lines[0] == "user_id,timestamp,weight,unit,source"
    assert 600 <= len(cells) <= 900
    assert len({cell[0] for cell in cells}) == 8
    assert {cell[-2] for cell in cells} == {"kg", "lb", "st"}
    assert (days[0][:7], days[-1][:7]) == ("2025-06", "2026-07")


def test_each_row_has_one_outcome_and_every_status_occurs(ordered: Run) -> None:
    counts = Counter(outcome.status for outcome in ordered.outcomes)
    assert counts.total() == len(list(rows_of_sample()))
    assert counts["accepted"] > 0.95 * counts.total()
    assert min(counts[status] for status in ("quarantined", "duplicate", "late")) > 0


def test_each_user_starts_once(ordered: Run) -> None:
    starts = Counter(row.personal.user for row in ordered.audit
                     if (row.public.event, row.public.kind) == ("reset.committed", "initial"))
    assert dict(starts) == dict.fromkeys(("ada", "ben", "cleo", "dev", "eli", "fay", "gus", "hana"), 1)


def test_two_gaps_are_two_resets(ordered: Run) -> None:
    assert events(ordered, "ada") == ["reset.committed initial", "reset.committed gap", "reset.committed gap"]


def test_wrong_value_after_a_gap_is_taken_back_and_an_implausible_one_is_never_believed(ordered: Run) -> None:
    assert events(ordered, "ben") == [
        "reset.committed initial", "reset.committed gap", "reset.revoked revocation", "reset.held gap", "reset.committed gap",
    ]
    assert sorted(kept.value for kept in ordered.kept if kept.user == "ben") == ["185.4", "70.5"]


def test_wrong_first_value_is_corrected_by_three_that_agree(ordered: Run) -> None:
    assert events(ordered, "cleo") == ["reset.committed initial", "reset.committed level-shift"]
    statuses = [outcome.status for outcome in ordered.outcomes if outcome.user == "cleo"]
    assert statuses[:4] == ["accepted", "quarantined", "quarantined", "accepted"]


def test_real_shift_of_twelve_kilograms_is_followed(ordered: Run) -> None:
    assert events(ordered, "dev") == ["reset.committed initial", "reset.committed level-shift"]
    shift = next(row for row in ordered.audit if row.public.kind == "level-shift" and row.personal.user == "dev")
    assert shift.personal.delta_x is not None
    assert shift.personal.delta_x[0] == pytest.approx(-12.0, abs=2.0)


def test_questionnaire_that_differs_resets_by_manual_entry(ordered: Run) -> None:
    assert events(ordered, "eli") == ["reset.committed initial", "reset.committed manual-entry"]


def test_failing_first_reset_opens_the_breaker_and_a_probe_recovers(ordered: Run) -> None:
    outcomes = [outcome.reset.outcome for outcome in ordered.outcomes if outcome.user == "fay" and outcome.reset]
    runs = [(outcome, len(list(group))) for outcome, group in itertools.groupby(outcomes)]
    assert runs == [("rolled_back", 3), ("refused", 2), ("rolled_back", 1), ("refused", 1), ("committed", 2)]
    failed = [row for row in ordered.audit if row.public.event == "reset.rolled_back"]
    assert {violation.path for row in failed for violation in row.personal.violations} == {"x[0]"}


def test_rows_that_are_no_measurements_are_kept_with_their_reason(ordered: Run) -> None:
    of_gus = [kept.raw + kept.reason for kept in ordered.kept if kept.user == "gus"]
    assert [sum(word in text for text in of_gus) for word in ("nan", "2025-13-45", "82,5 kg?", "from the future")] == [1, 1, 1, 1]
    assert all(kept.reason for kept in ordered.kept)


def test_light_adult_is_taken_at_her_word(ordered: Run) -> None:
    state = ordered.heads["hana"].state
    assert 43.0 < state.x[0] < 46.0
    assert not any(kept.user == "hana" for kept in ordered.kept)


def test_filter_is_consistent_on_the_sample(ordered: Run) -> None:
    """A sample on which the filter were far from its own claim would be a bad example of it."""
    nis = [o.nis for o in ordered.outcomes if o.status == "accepted" and o.nis is not None and not o.adapting]
    assert 0.5 < sum(nis) / len(nis) < 1.6


def test_in_the_order_of_the_file_three_more_rows_are_late(ordered: Run, tmp_path: Path) -> None:
    streamed = run(tmp_path / "store", sort=False)
    late = [Counter(o.status for o in done.outcomes)["late"] for done in (ordered, streamed)]
    assert late == [1, 4]


def test_second_pass_knows_every_row(tmp_path: Path) -> None:
    run(tmp_path / "store", sort=True)
    with Store.open(tmp_path / "store", durability="process", clock=FixedClock()) as store:
        intake = Processor(ResetManager(store)).intake([(b"sample".ljust(16), "sample.csv")], lambda _, o: None)
        for row in sorted(rows_of_sample(), key=by_time):
            intake.add(0, row)
        intake.flush()
        assert intake.known[0] == intake.streams[0].cursor.consumed == len(list(rows_of_sample()))


def test_present_of_these_tests_is_after_the_sample() -> None:
    readings = [row.measurement.at_us for row in rows_of_sample() if row.measurement]
    *past, future = sorted(readings)
    assert past[-1] < PRESENT_US < future
