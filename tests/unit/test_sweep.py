"""A sweep over a store: what it finds, that it tells it once, what it writes, what it restores, and beside whom it runs."""

from __future__ import annotations

import itertools
import signal
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from unittest.mock import ANY

import msgspec
import numpy as np
import pytest

from statemachine import (
    BODY_WEIGHT,
    BodyWeight,
    InvalidInput,
    Limits,
    ResetManager,
    Rule,
    StoreLimits,
    StoreUnavailable,
    UserUnknown,
    Violation,
    codec,
    erasure,
)
from statemachine.state import Reading
from statemachine.store import keys, reading
from statemachine.store.records import Head, Image
from statemachine.sweep import RULES, Courses, Finding, NisHigh, Sweep, SweepReport, Told, restoring
from statemachine.sweep.memory import TOLD_VERSIONS_MAX
from statemachine.vectorised import FoldedBodyWeight
from tests.regression.scene import BY, events, fill, head, opened, raw, states, tear, weighed, working
from tests.unit.processes import line, started

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from statemachine.state import EstimatorState
    from statemachine.vectorised import Lanes

pytestmark = pytest.mark.usefixtures("no_events")

CONSISTENT: Final = 70


def course(seed: int, readings: int = CONSISTENT) -> list[float]:
    """Daily readings of somebody who is as the filter believes."""
    dice, level, trend, found = np.random.default_rng(seed), 80.0, 0.0, []
    for _ in range(readings):
        level, trend = level + trend + dice.normal(0.0, 0.05 ** 0.5), trend + dice.normal(0.0, 1e-2)
        found.append(round(float(level + dice.normal(0.0, 0.15 ** 0.5)), 2))
    return found


def swept(path: Path, asked: Sweep | None = None, **settings: Any) -> tuple[SweepReport, list[Told]]:
    """One sweep in an opening of its own, and what it told."""
    told: list[Told] = []
    with opened(path, **settings) as store:
        return ResetManager(store).sweep(asked, on_finding=told.append), told


def brief(told: Iterable[Told]) -> list[tuple[str, int, str, str]]:
    return [(one.finding.user, one.finding.version, one.finding.rule, one.finding.severity) for one in told]


def rows(path: Path, event: str = "sweep.found") -> list[Any]:
    with opened(path) as store:
        return [row for row in store.audit() if row.public.event == event]


def change_head(path: Path, user: str, change: Callable[[EstimatorState], EstimatorState]) -> None:
    """Another state in the head, with a good checksum, as a bug or a hand would leave it."""
    key = keys.head(user.encode())
    with raw(path) as txn:
        found = codec.unpack(Head, codec.unseal(key, bytes(txn.get(key) or b"")))
        state = BODY_WEIGHT.encode(change(BODY_WEIGHT.decode(found.state)))
        txn.put(key, codec.seal(key, codec.pack(msgspec.structs.replace(found, state=state))))


def change_image(path: Path, user: str, version: int, change: Callable[[EstimatorState], EstimatorState]) -> None:
    """Another state in an image of the log, with a good checksum."""
    key = keys.version(user.encode(), version)
    with raw(path) as txn:
        content = codec.unseal(key, bytes(txn.get(key) or b""))
        image = codec.unpack(Image, content[1:])
        state = BODY_WEIGHT.encode(change(BODY_WEIGHT.decode(image.state)))
        txn.put(key, codec.seal(key, content[:1] + codec.pack(msgspec.structs.replace(image, state=state))))


def lighter(state: EstimatorState) -> EstimatorState:
    return state.replace(x0=state.kalman.x0 - 2.0 ** -40)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Three consistent users of 70 versions each."""
    for number, user in enumerate(("ann", "bob", "cy")):
        fill(tmp_path / "store", user, course(number))
    return tmp_path / "store"


def test_a_consistent_store_has_no_findings_and_one_row_says_so(path: Path) -> None:
    report, told = swept(path)
    assert (report.users, report.versions, report.findings, report.complete, told) == (3, 210, 0, True, [])
    (row,) = rows(path, "sweep.finished")
    assert (row.public.attempt_id, row.public.outcome, row.personal.actor) == (report.attempt_id, "done", "sweep")
    assert (row.personal.details["users"], row.personal.details["versions"], row.personal.details["rules"]) == (3, 210, [*sorted(
        RULES[:3]), *RULES[3:]])
    assert not rows(path)


def test_a_head_that_is_not_the_fold_of_its_log_is_found_to_the_last_bit(path: Path) -> None:
    change_head(path, "bob", lighter)
    report, told = swept(path)
    assert brief(told) == [("bob", 70, "fold-head", "error")]
    assert (report.findings, report.new, report.by_rule) == (1, 1, {"fold-head": 1})


def test_a_keyframe_that_is_not_the_fold_before_it_is_found(path: Path) -> None:
    """And the head, which the log no longer folds to from there."""
    change_image(path, "bob", 64, lighter)
    assert brief(swept(path)[1]) == [("bob", 70, "fold-head", "error"), ("bob", 64, "fold-image", "error")]


def test_a_keyframe_that_is_another_state_is_judged_by_the_rules_itself(path: Path) -> None:
    """What was judged before it says nothing of it."""
    change_image(path, "bob", 64, lambda s: s.replace(q0=100.0))
    _, (told,) = swept(path, Sweep(rules=("conforming",)))
    assert brief([told]) == [("bob", 64, "conforming", "error")]
    assert "noise: Q[0,0] is 100.0, to version 70" in str(told.finding.value)


def test_states_that_break_newer_rules_are_found_as_stretches_of_versions(tmp_path: Path) -> None:
    """A stretch that has ended is a warning of its first version, one that reaches the head an error."""
    path = tmp_path / "store"
    fill(path, "ann", [80.0] * 10 + [81.5] * 20 + [80.0] * 20 + [81.5] * 20)
    with opened(path) as store:
        level = [store.load("ann", n).state.kalman.x0 for n in range(1, 71)]  # type: ignore[union-attr]
    above = [n for n, kg in enumerate(level, start=1) if kg > 81.0]
    first, last = above[0], next(n for n in above if n + 1 not in above)
    again = next(n for n in above if n > last)
    light = BodyWeight(limits=Limits(weight_kg_max=81.0))
    told = [one.finding for one in swept(path, Sweep(rules=("conforming",)), estimator=light)[1]]
    estimates = [one for one in told if "estimate: x[0]" in str(one.value)]
    assert [(one.version, one.since_version, one.severity) for one in estimates] == [
        (first, first, "warning"), (again, again, "error")]
    assert str(estimates[0].value).endswith(f", to version {last}")
    assert (estimates[0].limit, estimates[0].unit) == ("a float from 20 to 81", "kg")
    assert [str(one.value).split(":")[0] for one in told if one not in estimates] == ["buffer"], "it holds what was weighed"


@pytest.mark.parametrize("estimator", [BODY_WEIGHT, None], ids=["side by side", "in the loop"])
def test_a_rule_of_the_stores_own_is_asked_of_every_state(path: Path, estimator: BodyWeight | None) -> None:
    """The columns vouch for the estimator's rules alone."""
    odd = Rule("odd", lambda s, _now, _known: [Violation("odd", "count", str(s.adaptation.count), "not 40")]
               if s.adaptation.count == 40 else [])
    told = swept(path, Sweep(rules=("conforming",)), rules=(odd,), estimator=estimator or InLoop())[1]
    assert [(user, rule) for user, _, rule, _ in brief(told)] == [(user, "conforming") for user in ("ann", "bob", "cy")]
    assert all("odd: count is 40" in str(one.finding.value) for one in told)


def test_a_version_that_cannot_be_read_is_found_and_the_rest_is_still_judged(path: Path) -> None:
    """What lies up to the next image is left out; after it the fold goes on, and the head is compared."""
    tear(path, keys.version(b"bob", 40))
    change_head(path, "bob", lighter)
    told = swept(path)[1]
    assert brief(told) == [("bob", 40, "readable", "error"), ("bob", 70, "fold-head", "error")]
    assert "fails its checksum" in str(told[0].finding.value)


def test_a_torn_head_and_a_missing_version_are_found(path: Path) -> None:
    tear(path, keys.head(b"ann"))
    with raw(path) as txn:
        txn.delete(keys.version(b"bob", 20))
        txn.delete(keys.version(b"cy", 1))
        txn.delete(keys.version(b"cy", 70))
    told = swept(path)[1]
    assert told[-1].finding.value == "a head of version 70"
    assert brief(told) == [
        ("ann", 70, "fold-head", "error"), ("bob", 20, "readable", "error"), ("cy", 2, "readable", "error"),
        ("cy", 69, "fold-head", "error")]


def test_a_finding_is_told_once_whatever_runs_again(path: Path) -> None:
    change_head(path, "bob", lighter)
    first, second = swept(path), swept(path)
    assert [(report.findings, report.new) for report, _ in (first, second)] == [(1, 1), (1, 0)]
    assert [told.new for _, (told,) in (first, second)] == [True, False]
    (row,) = rows(path)
    assert (row.personal.user, row.public.kind, row.public.base_version, row.public.outcome) == ("bob", "fold-head", 70, "found")
    details = row.personal.details
    assert (details["severity"], details["alert"], details["version"], details["rule"]) == ("error", False, 70, "fold-head")
    assert details["sweep"] == {"attempt_id": first[0].attempt_id}
    assert row.personal.violations[0].rule == "fold-head"


def test_a_window_is_told_again_when_nothing_of_what_was_told_is_left_in_it(tmp_path: Path) -> None:
    """A filter that stays inconsistent is one finding every thirty measurements, not one each day."""
    path = tmp_path / "store"
    strange = [80.0 + (1.2 if day % 2 else -1.2) * (day > 12) for day in range(130)]
    only = Sweep(rules=(NisHigh(),))
    told: list[int] = []
    for day in range(60, 130, 5):
        fill(path, "ann", strange[max(day - 5, 0) if day > 60 else 0:day], first_day=float(day - 5 if day > 60 else 0))
        told += [one.finding.version for one in swept(path, only)[1] if one.new]
    assert told == [60, 90, 120]


def test_another_setting_of_a_rule_is_another_question(tmp_path: Path) -> None:
    path = tmp_path / "store"
    fill(path, "ann", [80.0 + (1.2 if day % 2 else -1.2) * (day > 12) for day in range(60)])
    news = [swept(path, Sweep(rules=(NisHigh(false_alarms=risk),)))[0].new for risk in (1e-4, 1e-4, 1e-5, 1e-4)]
    assert news == [1, 0, 1, 0]


def test_only_users_with_news_are_judged_since_the_last_time(path: Path) -> None:
    """By the same rules: others ask everybody anew."""
    assert swept(path, Sweep(since_last=True))[0].users == 3
    assert swept(path, Sweep(since_last=True))[0].users == 0
    fill(path, "bob", [80.0], first_day=70.0)
    assert swept(path, Sweep(since_last=True))[0].users == 1
    assert swept(path, Sweep(since_last=True, rules=("fold-head",)))[0].users == 3


def test_only_users_of_rows_since_a_number_are_judged(path: Path) -> None:
    """A measurement leaves no row, a reset does; what sweeps found does not count."""
    with opened(path) as store:
        seq = store.audit_tail()[0]
        ResetManager(store).perform_reset("cy", **BY)
    assert swept(path, Sweep(since_seq=seq + 1))[0].users == 1
    assert swept(path, Sweep(since_seq=seq + 1, users=("ann",)))[0].users == 0
    assert swept(path, Sweep(since_seq=0))[0].users == 3
    change_head(path, "bob", lighter)
    with opened(path) as store:
        seq = store.audit_tail()[0]
    assert swept(path)[0].new == 1
    assert swept(path, Sweep(since_seq=seq + 1))[0].users == 0


def test_given_users_alone_are_judged_and_must_be_there(path: Path) -> None:
    change_head(path, "bob", lighter)
    assert swept(path, Sweep(users=("ann", "cy", "ann")))[0][1:4] == (2, 140, 0)
    with pytest.raises(UserUnknown, match="nothing is stored for 'dan'"):
        swept(path, Sweep(users=("ann", "dan")))


@pytest.mark.parametrize("asked", [
    Sweep(rules=("nis",)), Sweep(rules=("drift", "drift")), Sweep(rules=()), Sweep(policy="mend"),  # type: ignore[arg-type]
    Sweep(errors=("nis",)), Sweep(policy="restore"), Sweep(policy="restore", actor="ops"), Sweep(actor="\0"), Sweep(users=("",)),
])
def test_what_cannot_be_meant_is_refused_before_anything_is_read(path: Path, asked: Sweep) -> None:
    with pytest.raises(InvalidInput):
        swept(path, asked)
    assert not rows(path, "sweep.finished")


def test_a_dry_run_writes_nothing_and_needs_no_more_than_reading(path: Path) -> None:
    change_head(path, "bob", lighter)
    with opened(path, readonly=True) as store:
        before = list(store.engine.scan(b"", b"\xff" * 8))
        told: list[Told] = []
        report = ResetManager(store).sweep(Sweep(dry_run=True, policy="restore"), on_finding=told.append)
        assert (report.findings, report.new, report.attempt_id, report.restores) == (1, 1, "", {"would restore": 1})
        (restored,) = [one.restored for one in told]
        assert restored is not None
        assert (restored.outcome, restored.to_version, restored.version) == ("would restore", 70, None)
        assert list(store.engine.scan(b"", b"\xff" * 8)) == before
        rule = Noting()
        with pytest.raises(StoreUnavailable):
            ResetManager(store).sweep(Sweep(rules=(rule,)))
        assert not rule.given, "refused before anything is read"


def test_alerts_are_the_same_rows_with_a_mark(path: Path) -> None:
    change_head(path, "bob", lighter)
    swept(path, Sweep(policy="alert"))
    (row,) = rows(path)
    assert (row.public.event, row.personal.details["alert"], row.personal.details["severity"]) == ("sweep.found", True, "error")


class InLoop(BodyWeight):
    """Body weight that must be folded in the loop, since `step` is its own."""

    def step(self, state: EstimatorState, reading: Reading) -> EstimatorState:
        return super().step(state, reading)


def test_the_loop_finds_what_is_found_side_by_side(tmp_path: Path) -> None:
    """All rules, in a store where most of them find something."""
    path = tmp_path / "store"
    for number in range(14):
        fill(path, f"u{number}", course(number, 40))
    fill(path, "high", [80.0 + (1.2 if day % 2 else -1.2) * (day > 12) for day in range(60)])
    fill(path, "low", [80.0] * 60)
    fill(path, "drift", [80.0 + 0.8 * day for day in range(45)])
    change_head(path, "u3", lighter)
    change_image(path, "u5", 32, lighter)
    tear(path, keys.version(b"u7", 12))
    limits = Limits(weight_kg_max=90.0)
    told = [swept(path, Sweep(dry_run=True), estimator=kind(limits=limits))[1] for kind in (BodyWeight, InLoop)]
    assert told[0] == told[1]
    assert {one.finding.rule for one in told[0]} == {
        "readable", "fold-head", "fold-image", "conforming", "nis-high", "nis-low", "nis-share", "whiteness", "drift"}


class Bare:
    """An estimator that has no more than it must: no figures, nothing vectorised."""

    def __getattr__(self, name: str) -> Any:
        if name in ("figures", "figure_units", "fold_many"):
            raise AttributeError(name)
        return getattr(BODY_WEIGHT, name)


def test_an_estimator_without_figures_is_judged_by_its_nis(path: Path) -> None:
    report, told = swept(path, Sweep(dry_run=True), estimator=Bare())
    assert (report.users, told, report.skipped_rules) == (3, [], ("drift", "stuck", "whiteness"))


class Noting:
    """A user's own rule: it keeps what it is given, does what it is told, and finds something of `user`."""

    name = "noting"
    needs = ()
    settings = ""

    def __init__(self, act: Callable[[], object] = lambda: None, user: str = "bob", severity: Any = "warning") -> None:
        self.given: list[Courses] = []
        self.act = act
        self.user = user
        self.severity = severity

    def judge(self, courses: Courses) -> Iterator[Finding]:
        self.given.append(courses)
        self.act()
        if self.user in courses.users:
            yield Finding(self.user, 70, self.name, self.severity, 7.0, "at most 6", "kg", 60)


def test_a_rule_of_ones_own_is_given_the_arrays_and_told_like_the_shipped(path: Path) -> None:
    rule = Noting()
    report, told = swept(path, Sweep(rules=(*RULES, rule)))
    assert brief(told) == [("bob", 70, "noting", "warning")]
    assert str(told[0].finding) == "noting of 'bob' at version 70: 7 kg, must be at most 6"
    (courses,) = rule.given
    assert (courses.users, courses.starts.tolist()) == (("ann", "bob", "cy"), [0, 69, 138, 207])
    assert courses.version[:69].tolist() == list(range(2, 71))
    assert set(courses.figures) == {"innovation", "innovation_variance", "gain", "level"}
    with opened(path) as store:
        assert courses.figures["level"][137] == head(store, "bob").kalman.x0
    assert report.rule_errors == {}


def test_a_rule_that_fails_or_speaks_of_strangers_stops_no_other(path: Path) -> None:
    change_head(path, "bob", lighter)

    def broken() -> None:
        message = "no idea"
        raise KeyError(message)

    report, told = swept(path, Sweep(rules=("fold-head", Noting(broken))))
    assert (brief(told), report.rule_errors) == ([("bob", 70, "fold-head", "error")], {"noting": "KeyError: 'no idea'"})
    assert rows(path, "sweep.finished")[0].personal.details["rule_errors"] == report.rule_errors

    class Stranger(Noting):
        def judge(self, courses: Courses) -> Iterator[Finding]:
            yield from (one._replace(user="dan") for one in super().judge(courses))

    report, told = swept(path, Sweep(rules=(Stranger(),)))
    assert (told, list(report.rule_errors)) == ([], ["noting"])


RESTORE: Final = Sweep(policy="restore", actor="ops@example.org", reason="a test")


def test_a_head_that_is_not_its_logs_fold_is_restored_from_the_log(path: Path) -> None:
    """As a version of its own, by an attempt that is in the audit log; the next sweep finds nothing."""
    change_head(path, "bob", lighter)
    report, (told,) = swept(path, RESTORE)
    assert told.restored is not None
    assert (told.restored.outcome, told.restored.to_version, told.restored.version) == ("restored", 70, 71)
    assert report.restores == {"restored": 1}
    with opened(path) as store:
        bits = states(store, "bob")
        assert bits[70] == bits[69] == BODY_WEIGHT.encode(head(store, "bob"))
        row = list(store.audit("bob"))[-1]
        assert (row.public.kind, row.public.outcome, row.personal.actor, row.personal.trigger) == (
            "restore", "committed", "ops@example.org", "sweep: fold-head")
    assert swept(path, RESTORE)[0].findings == 0


def test_a_head_that_breaks_the_rules_in_force_goes_back_to_before_the_stretch(tmp_path: Path) -> None:
    path = tmp_path / "store"
    fill(path, "ann", [80.0] * 30 + [81.5] * 20)
    light = BodyWeight(limits=Limits(weight_kg_max=81.0))
    with opened(path, readonly=True, estimator=light) as store:
        dry: list[Told] = []
        ResetManager(store).sweep(Sweep(dry_run=True, policy="restore"), on_finding=dry.append)
        assert restoring._would(store, "ann", 40) == restoring.Restored("ann", "failed", 40, error=ANY), "it breaks them as well"
    report, told = swept(path, RESTORE, estimator=light)
    assert [(one.restored.outcome, one.restored.to_version) for one in dry if one.restored] == [
        ("would restore", one.restored.to_version) for one in told if one.restored]
    first = min(one.finding.version for one in told)
    restored = told[0].restored
    assert restored is not None
    assert (restored.outcome, restored.to_version) == ("restored", first - 1)
    with opened(path, estimator=light) as store:
        loaded = store.load("ann")
        assert loaded is not None
        assert (loaded.version, store.validator.validate(loaded.state)) == (51, ())
    assert report.restores == {"restored": 1}
    again, told = swept(path, RESTORE, estimator=light)
    assert (again.restores, {one.finding.severity for one in told}) == ({}, {"warning"}), "what was restored is history"


def test_a_version_that_breaks_the_rules_is_not_proven_however_far_back(tmp_path: Path) -> None:
    """What stands right before the evidence is passed over while it is nonconforming."""
    path = tmp_path / "store"
    fill(path, "ann", [80.0] * 40 + [81.5] * 12 + [80.0] * 40)
    light = BodyWeight(limits=Limits(weight_kg_max=81.0))

    class Late(Noting):
        def judge(self, courses: Courses) -> Iterator[Finding]:
            yield from (one._replace(version=92, since_version=75) for one in super().judge(courses))

    rule = Late(user="ann", severity="error")
    _, (told,) = swept(path, msgspec.structs.replace(RESTORE, rules=(rule,)), estimator=light)
    assert told.restored is not None
    assert (told.restored.outcome, told.restored.to_version) == ("restored", 40)


def test_a_restore_that_is_still_to_be_made_is_not_forgotten(path: Path) -> None:
    """Neither after a sweep that only told, nor after one whose restore the breaker refused."""
    change_head(path, "bob", lighter)
    assert swept(path, Sweep(since_last=True))[0].findings == 1
    since_last = msgspec.structs.replace(RESTORE, since_last=True)
    with opened(path) as store:
        ResetManager(store).force_breaker(None, "forced-open", **BY)
    assert swept(path, since_last)[0].restores == {"refused": 1}
    with opened(path) as store:
        ResetManager(store).release_breaker(None, **BY)
    report, _ = swept(path, since_last)
    assert (report.users, report.new, report.restores) == (1, 0, {"restored": 1})
    assert (swept(path, since_last)[0].users, swept(path, since_last)[0].users) == (1, 0), "its new version, then nobody"


def test_where_no_version_is_proven_nothing_is_changed(tmp_path: Path) -> None:
    path = tmp_path / "store"
    fill(path, "ann", [80.0] * 5)
    report, told = swept(path, RESTORE, estimator=BodyWeight(limits=Limits(weight_kg_max=70.0)))
    assert report.restores == {"unproven": 1}
    assert told[0].restored is not None
    with opened(path) as store:
        assert store.version_range("ann") == (1, 5)


def test_a_warning_restores_nobody_unless_it_is_to_count_as_an_error(path: Path) -> None:
    assert swept(path, msgspec.structs.replace(RESTORE, rules=(Noting(),)))[0].restores == {}
    report, (told,) = swept(path, msgspec.structs.replace(RESTORE, rules=(Noting(),), errors=("noting",)))
    assert told.restored is not None
    assert (told.restored.to_version, report.restores) == (59, {"restored": 1}), "before all the evidence"


def test_an_error_that_a_reset_has_replaced_restores_nobody(path: Path) -> None:
    with opened(path) as store:
        ResetManager(store).perform_reset("bob", **BY)
    assert swept(path, msgspec.structs.replace(RESTORE, rules=(Noting(severity="error"),)))[0].restores == {}


def test_during_probation_the_state_before_the_reset_is_the_proven_one(path: Path) -> None:
    """As `last_known_good` has it."""
    with opened(path) as store:
        ResetManager(store).perform_reset("bob", measurement=weighed("bob", 71.0, 85.0), **BY)

    class Now(Noting):
        def judge(self, courses: Courses) -> Iterator[Finding]:
            yield from (one._replace(version=71, since_version=71) for one in super().judge(courses))

    _, (told,) = swept(path, msgspec.structs.replace(RESTORE, rules=(Now(severity="error"),)))
    assert told.restored is not None
    assert (told.restored.outcome, told.restored.to_version) == ("restored", 70)


def test_a_restore_that_comes_too_late_is_a_conflict_and_changes_nothing(path: Path) -> None:
    """Somebody weighs in between the reading and the restore."""
    with working(path) as (_, manager, processor):
        day = itertools.count(70)
        rule = Noting(lambda: processor.process(weighed("bob", float(next(day)), 80.0)), severity="error")
        told: list[Told] = []
        report = manager.sweep(msgspec.structs.replace(RESTORE, rules=(rule,)), on_finding=told.append)
        assert report.restores == {"conflicted": 1}
        assert told[0].restored is not None
        assert "version" in told[0].restored.error
        assert manager.store.version_range("bob") == (1, 71)


def test_whoever_is_forgotten_while_judged_is_named_nowhere(path: Path) -> None:
    """The finding is not written down, and neither is how far the user was judged; the others of the chunk are."""
    with opened(path) as store:
        rule = Noting(lambda: erasure.forget(store, "bob", **BY))
        report = ResetManager(store).sweep(Sweep(rules=(rule,)))
        assert (report.changed, report.findings) == (1, 0)
        assert store.engine.get(keys.swept(b"bob")) is None
        assert store.engine.get(keys.swept(b"ann")) is not None
        assert not store.knows("bob")
        assert "sweep.found" not in {event for event, _, _ in events(store)}


def test_of_two_sweeps_at_once_one_tells(path: Path) -> None:
    with opened(path) as store:
        manager = ResetManager(store)
        inner: list[SweepReport] = []
        rule = Noting(lambda: inner.append(manager.sweep(Sweep(rules=(Noting(),)))))
        report = manager.sweep(Sweep(rules=(rule,)))
        assert ([one.new for one in inner], report.new) == ([1], 0)
        assert Counter(event for event, _, _ in events(store))["sweep.found"] == 1


def test_forgetting_and_giving_out_a_user_reach_what_a_sweep_noted(path: Path) -> None:
    change_head(path, "bob", lighter)
    swept(path)
    with opened(path) as store:
        (noted,) = [one for one in erasure.export_user(store, "bob") if one["record"] == "swept"]
        assert noted["version"] == 70
        assert list(noted["told"].values()) == [(70,)]
        erasure.forget(store, "bob", **BY)
        assert store.engine.get(keys.swept(b"bob")) is None
        assert store.verify_audit().bad_seq is None


def test_what_was_told_is_remembered_within_a_limit(path: Path) -> None:
    """The note of a user does not grow for ever."""
    versions = itertools.count(1)

    class Next(Noting):
        def judge(self, courses: Courses) -> Iterator[Finding]:
            version = next(versions)
            yield from (one._replace(version=version, since_version=version) for one in super().judge(courses))

    with opened(path) as store:
        for _ in range(TOLD_VERSIONS_MAX + 3):
            assert ResetManager(store).sweep(Sweep(rules=(Next(),))).new == 1
        (noted,) = [one for one in erasure.export_user(store, "bob") if one["record"] == "swept"]
        assert next(iter(noted["told"].values())) == tuple(range(4, TOLD_VERSIONS_MAX + 4))


@pytest.mark.parametrize(("name", "most"), [("CHUNK_USERS", 1), ("CHUNK_VERSIONS", 1), ("CHUNK_LOOKS", 1), ("CHUNK_LOOKS", 2)])
def test_chunks_of_any_size_find_the_same(path: Path, monkeypatch: pytest.MonkeyPatch, name: str, most: int) -> None:
    """Everybody once, whole, in order; users without a state are no trouble."""
    with raw(path) as txn:
        txn.put(b"aside\0r", codec.seal(b"aside\0r", b"\x92\x00\x00"))
    change_head(path, "cy", lighter)
    tear(path, keys.version(b"ann", 40))
    whole = swept(path, Sweep(dry_run=True))
    monkeypatch.setattr(reading, name, most)
    looked: list[tuple[int, int]] = []
    with opened(path) as store:
        told: list[Told] = []
        report = ResetManager(store).sweep(Sweep(dry_run=True), on_finding=told.append,
                                           on_progress=lambda users, versions: looked.append((users, versions)))
    assert (report, told) == whole
    assert looked[-1] == (4, 210)
    assert len(looked) > 1
    assert swept(path, Sweep(dry_run=True, users=("ann", "bob", "cy")))[1] == told


def test_a_stopped_sweep_keeps_what_it_told_and_the_next_one_goes_on(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "CHUNK_USERS", 1)
    for user in ("ann", "bob", "cy"):
        change_head(path, user, lighter)
    with opened(path) as store:
        asked = iter((False, True))
        report = ResetManager(store).sweep(Sweep(since_last=True), stop=lambda: next(asked))
    assert (report.users, report.new, report.complete) == (2, 2, False)
    (row,) = rows(path, "sweep.stopped")
    assert (row.public.outcome, row.personal.details["complete"]) == ("stopped", False)
    report, _ = swept(path, Sweep(since_last=True))
    assert (report.users, report.new) == (1, 1)
    assert [row.personal.user for row in rows(path)] == ["ann", "bob", "cy"]


def test_a_killed_sweep_is_run_again_and_tells_nothing_twice(path: Path) -> None:
    """Killed between the findings of the second user and those of the third."""
    for user in ("ann", "bob", "cy"):
        change_head(path, user, lighter)
    program = """
        from statemachine.store import reading
        reading.CHUNK_USERS = 1
        store = Store.open(path)
        def told(one):
            if one.finding.user == 'bob':
                os.kill(os.getpid(), signal.SIGKILL)
        ResetManager(store).sweep(on_finding=told)
    """
    with started(program, path) as child:
        child.communicate(timeout=60)
    assert child.returncode == -signal.SIGKILL
    assert [row.personal.user for row in rows(path)] == ["ann", "bob"]
    assert [(one.finding.user, one.new) for one in swept(path)[1]] == [("ann", False), ("bob", False), ("cy", True)]
    assert [row.personal.user for row in rows(path)] == ["ann", "bob", "cy"]
    with opened(path) as store:
        assert store.verify_audit().bad_seq is None


def test_beside_a_writer_no_user_is_seen_by_half(tmp_path: Path) -> None:
    """Another process weighs everybody over and over, resets among it, while sweeps go on: they find nothing."""
    path = tmp_path / "store"
    users = [f"u{number}" for number in range(6)]
    for number, user in enumerate(users):
        fill(path, user, course(number, 40))
    program = """
        import numpy as np
        dice = np.random.default_rng(1)
        with working(path, durability='process') as (store, manager, processor):
            say('ready')
            for day in range(40, 300):
                for user in ('u0', 'u1', 'u2', 'u3', 'u4', 'u5'):
                    processor.process(weighed(user, float(day), 80.0 + float(dice.normal(0.0, 0.4))))
                    if day % 37 == 0:
                        manager.perform_reset(user, **BY)
            say('done')
    """
    child = started(program, path)
    try:
        assert line(child) == "ready"
        with opened(path) as store:
            manager, ends = ResetManager(store), []
            told: list[Told] = []
            while child.poll() is None:
                report = manager.sweep(Sweep(rules=("conforming", "fold-head", "fold-image")), on_finding=told.append)
                ends.append(report.versions)
    finally:
        child.kill()
        said, trouble = child.communicate(timeout=60)
    assert said.strip() == "done", trouble
    assert told == []
    assert len(set(ends)) > 2, "the writer wrote while sweeps ran"
    with opened(path) as store:
        assert store.verify_audit().bad_seq is None


def test_a_store_without_users_is_swept_in_no_time(tmp_path: Path) -> None:
    with opened(tmp_path / "store") as store:
        assert ResetManager(store).sweep()[1:5] == (0, 0, 0, 0)


def change_step(path: Path, user: str, version: int, values: tuple[float, ...], r: float, kernel: int = 1) -> None:
    """Another reading in a step of the log, with a good checksum."""
    key = keys.version(user.encode(), version)
    with raw(path) as txn:
        at_us = codec.decode_step(codec.unseal(key, bytes(txn.get(key) or b"")))[0].at_us
        txn.put(key, codec.seal(key, codec.encode_step(Reading(at_us, values, r), kernel)))


@pytest.mark.parametrize(("values", "kernel", "told"), [
    ((80.0,), 2, "made by arithmetic 2"), ((80.0, 1.0), 1, "of 2 values; here is 1 of 1"),
])
def test_a_step_that_is_not_this_estimators_is_unreadable(path: Path, values: tuple[float, ...], kernel: int, told: str) -> None:
    """Nothing after it is folded, up to the next image."""
    change_step(path, "bob", 67, values, 0.15, kernel)
    _, (finding,) = swept(path)
    assert brief([finding]) == [("bob", 67, "readable", "error")]
    assert told in str(finding.finding.value)


def test_a_step_of_other_arithmetic_is_unreadable_beside_damage_too(path: Path) -> None:
    """Damage anywhere in a chunk has every record read by itself."""
    tear(path, keys.version(b"ann", 10))
    change_step(path, "bob", 67, (80.0,), 0.15, kernel=2)
    assert brief(swept(path)[1]) == [("ann", 10, "readable", "error"), ("bob", 67, "readable", "error")]


@pytest.mark.parametrize("estimator", [BODY_WEIGHT, None], ids=["side by side", "in the loop"])
def test_a_step_that_cannot_be_repeated_is_unreadable(path: Path, estimator: BodyWeight | None) -> None:
    change_image(path, "bob", 64, lambda s: s.replace(P=[[0.0, 0.0], [0.0, 0.0]], q0=0.0, q1=0.0, r=0.0))
    change_step(path, "bob", 66, (80.0,), 0.0)
    change_step(path, "bob", 65, (80.0,), 0.0)
    asked = Sweep(rules=("fold-head", "nis-high"))
    _, (finding,) = swept(path, asked, estimator=estimator or InLoop())
    assert brief([finding]) == [("bob", 65, "readable", "error")]
    assert "ZeroDivisionError" in str(finding.finding.value)


def test_a_state_that_no_column_holds_is_judged_in_the_loop(path: Path) -> None:
    """An instant beyond 64 bits is for the rules to name, and stops no sweep."""
    change_image(path, "bob", 64, lambda s: s.replace(adaptation=msgspec.structs.replace(s.adaptation, until_us=2**63 + 1)))
    told = swept(path)[1]
    assert brief(told) == [
        ("bob", 70, "fold-head", "error"), ("bob", 64, "fold-image", "error"), ("bob", 64, "conforming", "error")]
    assert "adaptation: until" in str(told[2].finding.value)


def test_an_image_that_is_no_state_is_unreadable_and_the_next_goes_on(path: Path) -> None:
    key = keys.version(b"bob", 32)
    with raw(path) as txn:
        content = codec.unseal(key, bytes(txn.get(key) or b""))
        image = codec.unpack(Image, content[1:])
        txn.put(key, codec.seal(key, content[:1] + codec.pack(msgspec.structs.replace(image, state=b"\xc0"))))
    change_head(path, "bob", lighter)
    assert ("bob", 32, "readable", "error") in brief(swept(path)[1])
    assert ("bob", 70, "fold-head", "error") in brief(swept(path)[1])


def test_a_head_without_a_log_is_found(path: Path) -> None:
    with raw(path) as txn:
        for version in range(1, 71):
            txn.delete(keys.version(b"bob", version))
    _, (told,) = swept(path)
    assert brief([told]) == [("bob", 0, "fold-head", "error")]
    assert told.finding.value == "a head of version 70"
    assert swept(path)[0].new == 0


def test_what_cannot_be_read_restores_nobody(path: Path) -> None:
    """That is for `recover`, which walks back past damage."""
    tear(path, keys.version(b"bob", 68), keys.head(b"ann"))
    report, told = swept(path, RESTORE)
    assert brief(told) == [("ann", 70, "fold-head", "error"), ("bob", 68, "readable", "error")]
    assert (report.restores, told[1].restored) == ({"failed": 1}, None)
    with opened(path) as store:
        assert store.version_range("ann") == (1, 70)


def test_what_stands_after_trouble_in_a_lane_is_in_no_statistic(path: Path) -> None:
    class Troubled(BodyWeight):
        def fold_many(self, lanes: Lanes) -> FoldedBodyWeight:
            folded = super().fold_many(lanes)
            assert type(folded) is FoldedBodyWeight
            folded.trouble[0] = 10, "a bug"
            return folded

    rule = Noting()
    report, told = swept(path, Sweep(rules=(rule,), users=("ann",)), estimator=Troubled())
    assert brief(told) == [("ann", 12, "readable", "error")]
    finite = np.isfinite(rule.given[0].nis).tolist()
    assert finite == [True] * 10 + [False] * 21 + [True] * 38
    assert report.rule_errors == {}


def test_what_was_told_of_pruned_versions_is_forgotten(tmp_path: Path) -> None:
    path, limits = tmp_path / "store", StoreLimits(versions_max=64)

    class At(Noting):
        def __init__(self, version: int) -> None:
            super().__init__(user="ann")
            self.version = version

        def judge(self, courses: Courses) -> Iterator[Finding]:
            yield from (one._replace(version=self.version, since_version=self.version) for one in super().judge(courses))

    with working(path, limits=limits) as (store, manager, processor):
        for day in range(200):
            processor.process(weighed("ann", float(day), 80.0 + day % 2 / 5))
            if day in (4, 199):
                assert manager.sweep(Sweep(rules=(At(day + 1),))).new == 1
        (noted,) = [one for one in erasure.export_user(store, "ann") if one["record"] == "swept"]
        assert store.version_range("ann")[0] > 5
        assert list(noted["told"].values()) == [(200,)]
        assert manager.sweep(Sweep(dry_run=True)).findings <= 2, "a log whose beginning was pruned folds like any other"
