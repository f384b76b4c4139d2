"""The gate of the rollout: what is done instead of a reset that is held back, who decides, and how that is changed."""

from __future__ import annotations

import itertools
import shutil
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from statemachine import (
    BreakerPolicy,
    InvalidInput,
    MutationFailed,
    Operation,
    Outcome,
    Processor,
    Reading,
    ResetManager,
    ResetParameters,
    Rollout,
    RolloutProvider,
    Store,
    codec,
)
from statemachine.erasure import forget
from statemachine.gate import WITHHELD, change, stored_rollout
from statemachine.marks import SLOT_BYTES, SLOTS
from statemachine.processor import SourceRow
from statemachine.store import keys
from statemachine.store.checkup import Checkup
from statemachine.testing import CountingIds, snapshot
from tests.conformance.test_sample import PRESENT_US, by_time, rows_of_sample
from tests.regression.scene import BY, CountedIds, Faulty, StillClock, broken, fill, head, opened, states, tear, weighed, working
from tests.unit.processes import ran

if TYPE_CHECKING:
    from collections.abc import Callable

    from statemachine.audit import Row
    from statemachine.rollout import Verdict

OFF: Final = Rollout("off")
SHADOW: Final = Rollout("shadow")
AUDIT_LETTERS: Final = {b"\0a", b"\0h", b"\0t", b"\0r"}
SURPRISES: Final[dict[str, tuple[tuple[float, float, str], ...]]] = {
    "gap": ((50, 95.0, "scale"),),
    "manual-entry": ((21, 85.0, "questionnaire"),),
    "level-shift": ((21, 92.0, "scale"), (22, 92.1, "scale"), (23, 92.0, "scale")),
}
"""Readings (day, kg, source) that bring about a reset of each kind after the quiet days, and do not fit the state there."""
DAYS: Final = 20

pytestmark = pytest.mark.usefixtures("no_events")


def put(store: Store, rollout: Rollout) -> None:
    change(store, lambda _: rollout, **BY)


def settled(path: Path, *users: str) -> Path:
    """A store in which each user has twenty quiet days at 80 kg."""
    for user in users or ("u",):
        fill(path, user, [80.0 + 0.2 * (-1) ** day for day in range(DAYS)])
    return path


def take(processor: Processor, readings: tuple[tuple[float, float, str], ...], user: str = "u") -> list[Outcome]:
    return [processor.process(weighed(user, day, kg, source)) for day, kg, source in readings]


def rows(store: Store, *names: str) -> list[Row]:
    return [row for row in store.audit() if row.public.event in names]


def durable(store: Store) -> dict[bytes, bytes]:
    """Every record of the store as it lies in LMDB, but for the audit, its indexes, and the rollout itself."""
    return {key: value for key, value in store.engine.scan(b"\0", b"\xff" * 8)
            if key[:2] not in AUDIT_LETTERS and not (key[:1] != b"\0" and key[key.index(b"\0"):][:2] == b"\0a")}


class Watched(Faulty):
    """Body weight that counts the resets it is asked for, and whose operations first do `hook`."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0
        self.hook: Callable[[], object] = int

    def operations(self, how: ResetParameters, reading: Reading | None, at_us: int) -> tuple[Operation, ...]:
        self.asked += 1

        def first(state: Any) -> Any:
            self.hook()
            return usual[0].run(state)

        usual = super().operations(how, reading, at_us)
        return (Operation(usual[0].name, first), *usual[1:])


class Says:
    """A provider that answers from a list, and raises what is an exception; it counts how often it was asked."""

    def __init__(self, *answers: Any) -> None:
        self.answers = itertools.cycle(answers)
        self.asked: list[str] = []

    def decide(self, user: str) -> Verdict:
        self.asked.append(user)
        answer = next(self.answers)
        if isinstance(answer, BaseException):
            raise answer
        verdict: Verdict = answer
        return verdict


# Off.


@pytest.mark.parametrize("kind", SURPRISES)
def test_off_begins_no_reset_and_keeps_its_measurement_as_evidence(tmp_path: Path, kind: str) -> None:
    """No user code runs, the state stands, one row a measurement says why; set to on, what agrees starts the next reset."""
    settled(tmp_path / "s")
    watched = Watched()
    with working(tmp_path / "s", estimator=watched) as (store, _, processor):
        before = states(store, "u")
        put(store, OFF)
        *_, outcome = take(processor, SURPRISES[kind])
        assert (outcome.status, outcome.reason) == ("quarantined", f"the {kind} reset was not carried out: rollout")
        assert outcome.reset is not None
        assert (outcome.reset.outcome, outcome.reset.kind, outcome.reset.withheld) == ("refused", kind, True)
        assert states(store, "u") == before
        assert watched.asked == 0
        (refused,) = rows(store, "reset.refused")
        assert (refused.public.kind, refused.public.outcome, refused.public.base_version) == (kind, "refused", DAYS)
        assert (refused.personal.reason, refused.personal.actor, refused.personal.error) == ("rollout", "policy", WITHHELD)
        assert refused.personal.details == {"rollout": {"verdict": "off", "by": "stored"}}
        assert store.inspect(outcome.reset.attempt_id) == refused
        assert {kept.disposition for kept in store.quarantine("u")} == {"held"}
        put(store, Rollout())
        day, kg, _ = SURPRISES[kind][-1]
        take(processor, ((day + 1, kg, "scale"), (day + 2, kg, "scale")))
        assert abs(head(store, "u").x[0] - kg) < 1.0
        assert store.kept_count("u") == (kind == "gap")  # a gap's reset begins at the newest reading, whatever was held


def test_off_accepts_what_fits_the_state_as_it_stands(tmp_path: Path) -> None:
    settled(tmp_path / "s")
    with working(tmp_path / "s") as (store, _, processor):
        put(store, OFF)
        (outcome,) = take(processor, ((60, 80.1, "scale"),))
        assert (outcome.status, outcome.version) == ("accepted", DAYS + 1)
        assert outcome.reset is not None
        assert outcome.reset.withheld
        assert [row.public.kind for row in rows(store, "reset.refused")] == ["gap"]


def test_off_holds_a_revocation_back_too(tmp_path: Path) -> None:
    settled(tmp_path / "s")
    with working(tmp_path / "s") as (store, manager, processor):
        assert take(processor, ((60, 95.0, "scale"),))[0].status == "accepted"
        put(store, OFF)
        last = take(processor, ((61, 80.0, "scale"), (62, 80.1, "scale"), (63, 80.0, "scale")))[-1]
        assert last.reset is not None
        assert (last.reset.kind, last.reset.withheld) == ("revocation", True)
        assert abs(head(store, "u").x[0] - 95.0) < 1.0
        manager.restore("u", to_version=manager.last_known_good("u"), **BY)
        assert abs(head(store, "u").x[0] - 80.0) < 1.0


def test_first_measurements_and_an_operators_word_are_not_governed(tmp_path: Path) -> None:
    settled(tmp_path / "s")
    with working(tmp_path / "s") as (store, manager, processor):
        put(store, OFF)
        assert processor.process(weighed("new", 0, 70.0)).status == "accepted"
        assert manager.perform_reset("u", **BY).outcome == "committed"
        assert manager.restore("u", to_version=DAYS, **BY).outcome == "committed"
        with manager.transaction("u", **BY) as tx:
            tx.apply("nothing", lambda state: state)
            assert tx.commit().outcome == "committed"


# Shadow.


@pytest.mark.parametrize("kind", SURPRISES)
def test_a_shadow_says_what_on_would_have_done(tmp_path: Path, kind: str) -> None:
    """The diff, the operations and the version of its row are those of the reset that the same reading brings about when on."""
    found: list[tuple[Any, ...]] = []
    for name, rollout in (("on", Rollout()), ("shadow", SHADOW)):
        settled(tmp_path / name)
        with working(tmp_path / name, ids=CountedIds()) as (store, _, processor):
            put(store, rollout)
            outcome = take(processor, SURPRISES[kind])[-1]
            (row,) = [row for row in rows(store, "reset.committed", "reset.shadowed") if row.public.kind == kind]
            version = row.public.new_version or row.personal.details["version"]
            found.append((version, row.public.base_version, row.personal.delta_x, row.personal.delta_P, row.personal.at_us,
                          row.personal.trigger, [(done.name, done.ok) for done in row.personal.operations]))
            assert row.personal.delta_x is not None
    assert outcome.reset is not None
    assert (outcome.reset.outcome, outcome.reset.version, outcome.reset.withheld) == ("shadowed", None, True)
    assert (row.public.outcome, row.public.phase, row.public.new_version) == ("shadowed", "rolledback", None)
    assert (row.personal.reason, row.personal.details["would"]) == ("shadow", "committed")
    assert row.personal.details["admitted"] == len(SURPRISES[kind])
    assert found[0] == found[1]


def sample_under(path: Path, rollout: Rollout, *, batches: bool) -> Store:
    """The sample, run through in event time by a still clock with counted ids, in a store that stays open."""
    store = Store.open(path, durability="process", clock=StillClock(PRESENT_US), ids=CountingIds())
    put(store, rollout)
    processor = Processor(ResetManager(store))
    if not batches:
        for row in sorted(rows_of_sample(), key=by_time):
            if row.measurement is not None:
                processor.process(row.measurement)
        return store
    intake = processor.intake([(b"sample".ljust(16), "sample.csv")], lambda *_: None)
    for row in sorted(rows_of_sample(), key=by_time):
        intake.add(0, row)
    intake.flush()
    return store


@pytest.mark.parametrize("batches", [True, False])
def test_shadow_leaves_every_record_as_off_does(tmp_path: Path, batches: bool) -> None:
    """States, heads, log, pins, breakers, identities and cursors: the bytes in LMDB are the same, and the audit is not."""
    with (sample_under(tmp_path / "off", OFF, batches=batches) as off,
          sample_under(tmp_path / "shadow", SHADOW, batches=batches) as shadow,
          sample_under(tmp_path / "on", Rollout(), batches=batches) as on):
        assert durable(shadow) == durable(off)
        assert durable(shadow) != durable(on)
        withheld = [row for row in rows(off, "reset.refused") if row.personal.reason == "rollout"]
        assert len(rows(shadow, "reset.shadowed")) == len(withheld) > 5
        assert shadow.verify_audit().problem == off.verify_audit().problem == ""


def test_shadow_of_the_sample_is_on_up_to_the_first_divergence(tmp_path: Path) -> None:
    """Until a user's first reset that is committed with on, both decide alike: the same kinds, instants and diffs."""
    governed = ("reset.committed", "reset.rolled_back", "reset.revoked", "reset.shadowed")
    compared = 0
    with (sample_under(tmp_path / "shadow", SHADOW, batches=True) as shadow,
          sample_under(tmp_path / "on", Rollout(), batches=True) as on):
        for user in on.users():
            done, would = ([row for row in store.audit(user) if row.public.event in governed and row.public.kind != "initial"]
                           for store in (on, shadow))
            first = next((n for n, row in enumerate(done) if row.public.outcome == "committed"), None)
            if first is None:
                assert not would
                continue
            for real, row in zip(done[:first + 1], would, strict=False):
                assert (real.public.kind, real.personal.at_us, real.public.base_version, real.personal.delta_x,
                        real.personal.delta_P, real.public.outcome, real.public.new_version) == (
                    row.public.kind, row.personal.at_us, row.public.base_version, row.personal.delta_x, row.personal.delta_P,
                    row.personal.details["would"], row.personal.details.get("version"))
                compared += 1
    assert compared >= 4


class Chosen(Faulty):
    """Body weight whose every reset goes wrong in one way."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self._run = {"raises": lambda _: 5 // 0, "no state": lambda _: 7,
                     "invalid": lambda state: state.replace(P=[[1.0, 5.0], [5.0, 1.0]])}.get(fault)

    def operations(self, how: ResetParameters, reading: Reading | None, at_us: int) -> tuple[Operation, ...]:
        if self._run is None:
            raise ZeroDivisionError
        return (Operation("it", self._run),)


@pytest.mark.parametrize(("fault", "would", "says"), [
    ("raises", "rolled_back", "ZeroDivisionError"), ("invalid", "rolled_back", "invalid state"),
    ("no state", "rolled_back", "not a state"), ("outside", "raised", "ZeroDivisionError"),
])
def test_a_failing_shadow_is_logged_and_harms_nothing(
    tmp_path: Path, fault: str, would: str, says: str,
) -> None:
    """Not even a bug that would stop the processor with on; the breaker counts none of it, and all is as with off."""
    settled(tmp_path / "quiet")
    for name, rollout in (("off", OFF), ("shadow", SHADOW)):
        shutil.copytree(tmp_path / "quiet", tmp_path / name)
        with working(tmp_path / name, ids=CountedIds(), estimator=Chosen(fault)) as (store, manager, processor):
            put(store, rollout)
            outcomes = take(processor, (*SURPRISES["level-shift"], (24, 92.0, "scale"), (25, 92.0, "scale"), (26, 92.1, "scale")))
            assert [outcome.status for outcome in outcomes] == ["quarantined"] * 6
            assert manager.breaker("u").failures == 0
            assert not store.marks.ended()
            if rollout is SHADOW:
                found = rows(store, "reset.shadowed")
                assert len(found) == 4
                assert {row.personal.details["would"] for row in found} == {would}
                assert all(says in row.personal.error for row in found)
                assert all(bool(row.personal.violations) == (fault == "invalid") for row in found)
                assert store.verify_audit().problem == ""
    with opened(tmp_path / "off") as off, opened(tmp_path / "shadow") as shadow:
        assert durable(off) == durable(shadow)


def test_a_shadow_has_a_mark_while_user_code_runs_and_none_after(tmp_path: Path) -> None:
    settled(tmp_path / "s")
    watched = Watched()
    with working(tmp_path / "s", estimator=watched) as (store, _, processor):
        put(store, SHADOW)
        seen: list[bytes] = []
        marks = store.path / "owners" / str(store.committer.owner)
        watched.hook = lambda: seen.append(marks.read_bytes().replace(b"\0", b""))
        take(processor, SURPRISES["gap"])
        assert len(seen) == 1
        assert b"reset.interrupted" in seen[0]
        assert b"shadow" in seen[0]
        assert marks.read_bytes() == bytes(marks.stat().st_size)
        assert marks.stat().st_size % SLOT_BYTES == 0


def test_an_input_whose_shadow_kills_the_process_becomes_suspect(tmp_path: Path) -> None:
    """Three deaths are three interrupted rows; the fourth try does not run it, and the measurement is kept (INV-07)."""
    settled(tmp_path / "s")
    program = """
        class Deadly(Faulty):
            def operations(self, how, reading, at_us):
                return (Operation("die", lambda _: os.kill(os.getpid(), signal.SIGKILL)),)
        with opened(path, estimator=Deadly()) as store:
            outcome = Processor(ResetManager(store)).process(weighed("u", 50, 95.0))
            print(outcome.status, outcome.reset.outcome, outcome.reset.withheld)
    """
    with opened(tmp_path / "s") as store:
        put(store, SHADOW)
    for _ in range(3):
        with pytest.raises(AssertionError, match=f"ended with -{signal.SIGKILL.value}"):
            ran(program, tmp_path / "s")
    assert ran(program, tmp_path / "s") == "quarantined shadowed True"
    with opened(tmp_path / "s") as store:
        assert [(row.public.outcome, row.personal.reason) for row in store.audit("u") if row.public.kind == "gap"] == [
            *[("interrupted", "shadow")] * 3, ("shadowed", "shadow")]
        (row,) = rows(store, "reset.shadowed")
        assert row.personal.details["would"] == "refused"
        assert "suspect" in row.personal.error
        assert len(states(store, "u")) == DAYS
        assert store.verify_audit().problem == ""


def test_a_death_after_a_shadow_and_before_its_commit_blames_nobody(tmp_path: Path) -> None:
    """The attempt is settled as interrupted, and its input is not suspect."""
    settled(tmp_path / "s")
    program = """
        from statemachine.processor import SourceRow
        store = opened(path)
        intake = Processor(ResetManager(store)).intake([(b"file".ljust(16), "file")], lambda *_: None)
        intake.add(0, SourceRow(0, weighed("u", 50, 95.0)))
        print(len(store.marks._free), flush=True)
        os._exit(0)
    """
    with opened(tmp_path / "s") as store:
        put(store, SHADOW)
    assert int(ran(program, tmp_path / "s")) == SLOTS - 1
    with working(tmp_path / "s") as (store, manager, _):
        assert [row.public.outcome for row in store.audit("u") if row.public.kind == "gap"] == ["interrupted"]
        assert manager.breaker("u").suspects == ()
        assert len(states(store, "u")) == DAYS


def test_an_interrupt_in_a_shadow_passes_and_leaves_one_outcome(tmp_path: Path) -> None:
    settled(tmp_path / "s")
    watched = Watched()
    with working(tmp_path / "s", estimator=watched) as (store, _, processor):
        put(store, SHADOW)

        def interrupt() -> None:
            watched.hook = int
            raise KeyboardInterrupt

        watched.hook = interrupt
        with pytest.raises(KeyboardInterrupt):
            take(processor, SURPRISES["gap"])
        assert take(processor, SURPRISES["gap"])[0].status == "quarantined"
        assert [row.public.outcome for row in store.audit("u") if row.public.kind == "gap"] == ["shadowed", "conflicted"]
        assert not store.marks.ended()


@pytest.mark.parametrize("cooled", [True, False])
def test_a_shadow_neither_runs_past_an_open_breaker_nor_takes_its_probe(tmp_path: Path, cooled: bool) -> None:
    settled(tmp_path / "s")
    watched = Watched()
    policy = BreakerPolicy(failures_max=1, cooldown_s=0.0 if cooled else 1e5)
    with opened(tmp_path / "s", estimator=watched) as store:
        manager = ResetManager(store, breaker=policy)
        with pytest.raises(MutationFailed):
            manager.perform_reset("u", operations=[("break", broken)], **BY)
        before = manager.breaker("u")
        assert before.mode == "open"
        put(store, SHADOW)
        outcome = take(Processor(manager), SURPRISES["gap"])[0]
        assert outcome.reason == "the gap reset was not carried out: rollout"
        assert manager.breaker("u") == before
        assert watched.asked == 0
        (row,) = rows(store, "reset.shadowed")
        assert row.personal.details["would"] == "refused"
        assert ("probe" if cooled else "open") in row.personal.error


def test_in_a_batch_some_are_carried_out_and_others_not(tmp_path: Path) -> None:
    """One commit; what the batch collects for one user is no matter of another's verdict."""
    settled(tmp_path / "s", "ana", "ben", "cleo")
    with working(tmp_path / "s") as (store, _, processor):
        put(store, Rollout(percent=0, allow=("ana",), deny=("ben",), outside="shadow"))
        commits = len(list(store.audit()))
        outcomes = processor.process_batch([weighed(user, 50, 95.0) for user in ("ana", "ben", "cleo")])
        assert [(outcome.status, outcome.reset and outcome.reset.outcome) for outcome in outcomes] == [
            ("accepted", "committed"), ("quarantined", "refused"), ("quarantined", "shadowed")]
        assert len(list(store.audit())) == commits + 3


def test_a_batch_that_misses_takes_its_shadows_anew(tmp_path: Path) -> None:
    """The attempt that was dropped has its own outcome, the one that counts another, and no mark is left."""
    settled(tmp_path / "s", "ana", "ben")
    watched = Watched()
    with working(tmp_path / "s", estimator=watched) as (store, manager, processor):
        put(store, SHADOW)

        def overtake() -> None:
            watched.hook = int
            manager.perform_reset("ben", **BY)

        watched.hook = overtake
        intake = processor.intake([(b"file".ljust(16), "file")], lambda *_: None)
        intake.add(0, SourceRow(0, weighed("ben", DAYS, 80.0)))
        intake.add(0, SourceRow(1, weighed("ana", 50, 95.0)))
        intake.flush()
        store.commit(store.draft())
        assert sorted(row.public.outcome for row in store.audit("ana") if row.public.kind == "gap") == ["conflicted", "shadowed"]
        assert not store.marks.ended()


# Who decides.


def test_ordinary_measurements_ask_nobody(tmp_path: Path) -> None:
    provider = Says("on")
    with opened(tmp_path / "s") as store:
        processor = Processor(ResetManager(store, rollout=provider))
        for day in range(20):
            assert processor.process(weighed("u", day, 80.0 + day % 2)).status == "accepted"
        assert provider.asked == []
        take(processor, ((60, 84.0, "scale"),))
        assert provider.asked == ["u"]


@pytest.mark.parametrize("given", [SHADOW, Says("shadow")])
def test_what_the_manager_was_given_decides_instead_of_the_store(tmp_path: Path, given: Rollout | RolloutProvider) -> None:
    settled(tmp_path / "s")
    with opened(tmp_path / "s") as store:
        put(store, OFF)
        manager = ResetManager(store, rollout=given)
        take(Processor(manager), SURPRISES["gap"])
        (row,) = rows(store, "reset.shadowed")
        assert row.personal.details["rollout"] == {"verdict": "shadow", "by": "Says" if isinstance(given, Says) else "given"}
        assert manager.gate.failures == 0


@pytest.mark.parametrize("answer", [RuntimeError("no connection"), TimeoutError("too slow"), "maybe", None, True])
def test_a_provider_that_fails_leaves_it_to_the_store_and_is_reported(tmp_path: Path, answer: Any) -> None:
    """No measurement fails of it; the row of each attempt so decided says what was wrong, whatever the verdict."""
    settled(tmp_path / "s")
    with opened(tmp_path / "s") as store:
        manager = ResetManager(store, rollout=Says(answer))
        processor = Processor(manager)
        for rollout, event in ((OFF, "reset.refused"), (SHADOW, "reset.shadowed"), (Rollout(), "reset.committed")):
            put(store, rollout)
            take(processor, ((50 + manager.gate.failures, 95.0, "scale"),))
            row = rows(store, event)[-1]
            assert row.public.kind == "gap"
            assert row.personal.details["rollout"]["by"] == "stored"
            trouble = row.personal.details["rollout"]["trouble"]
            assert trouble.startswith("Says: ")
            assert (str(answer) if isinstance(answer, Exception) else repr(answer)) in trouble
        assert manager.gate.failures == 3


def test_an_interrupt_in_a_provider_passes(tmp_path: Path) -> None:
    settled(tmp_path / "s")
    with opened(tmp_path / "s") as store:
        processor = Processor(ResetManager(store, rollout=Says(KeyboardInterrupt())))
        with pytest.raises(KeyboardInterrupt):
            take(processor, SURPRISES["gap"])
        assert len(states(store, "u")) == DAYS


def test_a_change_is_followed_without_a_restart(tmp_path: Path) -> None:
    """By a processor that has decided before, when another process changes the rollout by the command."""
    users = tuple(f"u{n}" for n in range(4))
    settled(tmp_path / "s", *users)
    program = """
        from statemachine.cli import main
        sys.argv = ["resetguard", "rollout", "set", "--mode", sys.argv[2], "--store", str(path), "--actor", "a", "--reason", "r"]
        main()
    """
    with working(tmp_path / "s") as (_, _, processor):
        found = []
        for user, mode in zip(users, ("on", "off", "shadow", "on"), strict=True):
            ran(program, tmp_path / "s", mode)
            (outcome,) = take(processor, SURPRISES["gap"], user)
            assert outcome.reset is not None
            found.append(outcome.reset.outcome)
        assert found == ["committed", "refused", "shadowed", "committed"]


@pytest.mark.parametrize("batches", [True, False])
def test_a_reset_decided_before_a_stop_does_not_become_durable_after_it(tmp_path: Path, batches: bool) -> None:
    """It ran under the earlier word; its commit misses, and the measurement is decided anew under the later."""
    settled(tmp_path / "s")
    watched = Watched()
    with working(tmp_path / "s", estimator=watched) as (store, _, processor):
        watched.hook = lambda: put(store, OFF)
        measurement = weighed("u", 50, 95.0)
        (outcome,) = processor.process_batch([measurement]) if batches else [processor.process(measurement)]
        assert outcome.status == "quarantined"
        assert len(states(store, "u")) == DAYS
        store.commit(store.draft())
        assert sorted(row.public.outcome for row in store.audit("u") if row.public.kind == "gap") == ["conflicted", "refused"]


def test_a_rollout_that_cannot_be_read_counts_as_off_until_it_is_set_anew(tmp_path: Path) -> None:
    """Nobody is walked back or lost for it; doctor names it."""
    settled(tmp_path / "s")
    with opened(tmp_path / "s") as store:
        put(store, Rollout(deny=("u",)))
    tear(tmp_path / "s", keys.ROLLOUT)
    with working(tmp_path / "s") as (store, manager, processor):
        (outcome,) = take(processor, SURPRISES["gap"])
        assert outcome.reason == "the gap reset was not carried out: rollout"
        assert rows(store, "state.recovered") == []
        assert "counts as off" in rows(store, "reset.refused")[0].personal.details["rollout"]["trouble"]
        assert manager.gate.failures == 1
        (finding,) = [found for found in Checkup(store).run() if found.level == "error"]
        assert "rollout" in finding.problem
        assert "rollout set" in finding.remedy
        with pytest.raises(LookupError):
            change(store, known, **BY)
        put(store, Rollout())
        assert rows(store, "rollout.changed")[-1].personal.details["before"] is None
        assert [found for found in Checkup(store).run() if found.level == "error"] == []
        assert take(processor, ((51, 95.0, "scale"),))[0].status == "accepted"


def test_doctor_reads_a_rollout_and_not_its_checksum_alone(tmp_path: Path) -> None:
    with opened(tmp_path / "s") as store:
        put(store, OFF)
        assert list(Checkup(store).run()) == []
        draft = store.draft()
        draft.put(keys.ROLLOUT, codec.pack(["on", 200.0, [], [], "off", "resets"]))
        store.commit(draft)
        (finding,) = Checkup(store).run()
        assert (finding.check, finding.level) == ("records", "error")
        assert "0 to 100" in finding.problem


def known(before: Rollout | None) -> Rollout:
    if before is None:
        raise LookupError
    return before


# Changing it.


def test_a_change_is_audited_with_what_was_and_is(tmp_path: Path) -> None:
    """And what changes nothing writes nothing; a user listed or taken off is found under that user."""
    with opened(tmp_path / "s") as store:
        assert stored_rollout(store) == Rollout()
        put(store, Rollout("on", 10, allow=("ana",), outside="shadow"))
        put(store, Rollout("on", 10, deny=("ana",), outside="shadow"))
        put(store, Rollout("on", 10, deny=("ana",), outside="shadow"))
        first, second = rows(store, "rollout.changed")
        plain = {"mode": "on", "percent": 100.0, "outside": "off", "name": "resets", "allow": 0, "deny": 0}
        after = {**plain, "percent": 10.0, "outside": "shadow", "allow": 1}
        assert first.personal.details == {"before": plain, "after": after}
        assert second.personal.details == {"before": after, "after": {**after, "allow": 0, "deny": 1}}
        assert (first.personal.actor, first.personal.reason) == (BY["actor"], BY["reason"])
        assert [row.personal.details for row in store.audit("ana")] == [
            {"from": "none", "to": "allow"}, {"from": "allow", "to": "deny"}]
        for missing in ({"actor": " ", "reason": "r"}, {"actor": "a", "reason": ""}):
            with pytest.raises(InvalidInput):
                change(store, lambda _: OFF, **missing)
            with pytest.raises(InvalidInput):
                change(store, known, **missing)  # nor where it would change nothing
        assert stored_rollout(store).mode == "on"
        assert store.verify_audit().problem == ""


def test_changes_at_once_are_all_made(tmp_path: Path) -> None:
    """Each is an edit of what stands then, and none is lost."""
    with opened(tmp_path / "s") as store:
        def deny(user: str) -> None:
            change(store, lambda before: Rollout(deny=(*(before or Rollout()).deny, user)), **BY)

        threads = [threading.Thread(target=deny, args=(f"u{n}",)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert stored_rollout(store).deny == tuple(f"u{n}" for n in range(8))
        assert len(rows(store, "rollout.changed")) == len(threads)


def test_who_is_forgotten_is_taken_off_the_lists(tmp_path: Path) -> None:
    """No record and no audit row names the user any more; the other one stays."""
    settled(tmp_path / "s", "someone-rare")
    with opened(tmp_path / "s") as store:
        put(store, Rollout(allow=("someone-rare", "ana")))
        put(store, Rollout(allow=("ana",), deny=("someone-rare",)))
        take(Processor(ResetManager(store)), SURPRISES["gap"], "someone-rare")
        forget(store, "someone-rare", "privacy@example.org", "asked")
        assert stored_rollout(store) == Rollout(allow=("ana",))
        assert not any(b"someone-rare" in key + value for key, value in store.engine.scan(b"\0", b"\xff" * 8))
        assert store.verify_audit().problem == ""


def test_a_snapshot_for_tests_has_the_rollout(tmp_path: Path) -> None:
    with opened(tmp_path / "s") as store:
        before = snapshot(store)["rollout"]
        put(store, OFF)
        assert (before, snapshot(store)["rollout"]) == (None, OFF)
