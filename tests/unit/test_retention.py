"""Quarantine retention: content goes by age, that it was seen stays; a limit that is passed is told, and loses nothing."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import pytest
from typer.testing import CliRunner

from statemachine import InvalidInput, Processor, ResetManager, StoreBusy, StoreLimits, UserUnknown, codec
from statemachine.cli import app
from statemachine.clock import iso, to_us
from statemachine.erasure import export_user, forget
from statemachine.policy import ResetPolicy
from statemachine.processor import SourceRow
from statemachine.requarantine import drop, replay
from statemachine.retention import prune_quarantine
from statemachine.store import identities, keys
from statemachine.store.checkup import Checkup
from statemachine.store.draft import Draft
from statemachine.store.records import HELD, PRUNED, Aside, Identity, Unreadable
from tests.regression.scene import BY, DAY_US, PRESENT_US, START, events, opened, raw, records, refused, tear, weighed, working
from tests.unit.processes import line, started

if TYPE_CHECKING:
    from pathlib import Path

    from statemachine import Store
    from statemachine.store.records import Kept

pytestmark = pytest.mark.usefixtures("no_events")
OLD: Final = to_us(START) + 41 * DAY_US
STRAYS: Final = (200.0, 20.0, 150.0, 35.0)


def fed(user: str) -> list[Any]:
    """Forty ordinary days, two strays of before `OLD` and two after it, and a late one."""
    days = [weighed(user, day, 80.0) for day in range(40)]
    strays = [weighed(user, 40 + number / 2 + (number > 1), kg) for number, kg in enumerate(STRAYS)]
    return [*days, *strays, weighed(user, 3.5, 80.5)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    where = tmp_path / "store"
    with working(where) as (_, _, processor):
        for user in ("amy", "ben"):
            statuses = [outcome.status for outcome in processor.process_batch(fed(user))]
            assert statuses[40:] == ["quarantined"] * 4 + ["late"]
        for source, name in ((bytes(16), "export.csv"), (None, "-")):
            intake = processor.intake([(source, name)], lambda *_: None)
            intake.add(0, SourceRow(0, None, Unreadable(line=7, raw="amy;heavy", reason="no number", user="amy")))
            intake.flush()
    return where


def kept(store: Store, user: str) -> list[Kept]:
    return [row for row in store.quarantine(user) if row.disposition != "unreadable"]


def aside(store: Store, user: str) -> Aside:
    key = keys.aside(user.encode())
    return codec.unpack(Aside, codec.unseal(key, store.engine.get(key) or b""))


def sound(store: Store) -> None:
    assert list(Checkup(store).run()) == []
    assert store.verify_audit().bad_seq is None


def test_old_content_goes_and_what_was_seen_stays(path: Path) -> None:
    """Three of five of each user; held ones are quarantined by it, the late one stays late; the others are untouched."""
    with opened(path) as store:
        before = {user: kept(store, user) for user in ("amy", "ben")}
        old = [row for row in before["amy"] if row.at_us is not None and row.at_us < OLD]
        assert [row.disposition for row in old] == ["late", "held", "held"]
        found = prune_quarantine(store, OLD, **BY)
        assert found == (6, 4, 0, 2, 1, 0, 1)
        for user in ("amy", "ben"):
            now = kept(store, user)
            assert [(row.at_us, row.source_id, row.row) for row in now] == [
                (row.at_us, row.source_id, row.row) for row in before[user]]
            assert [row.disposition for row in now[:3]] == ["late", "quarantined", "quarantined"]
            assert {(row.value, row.unit, row.source, row.reason) for row in now[:3]} == {("", "", "", PRUNED)}
            assert now[3:] == before[user][3:]
            assert (store.kept_count(user), aside(store, user).pruned) == (5, 3)
        rows = [row for row in store.audit() if row.public.event == "quarantine.pruned"]
        assert {(row.personal.user, row.personal.details["measurements"], row.personal.details["held"]) for row in rows} == {
            ("amy", 3, 2), ("ben", 3, 2)}
        assert {(row.personal.actor, row.personal.reason, row.personal.details["before"]) for row in rows} == {
            (BY["actor"], BY["reason"], iso(OLD))}
        sound(store)


def test_nothing_of_the_content_is_left_in_the_record(path: Path) -> None:
    with opened(path) as store:
        prune_quarantine(store, OLD, **BY)
        gone = [value for key, value in records(store, "amy").items() if b"\0i" in key and b"pruned" in value]
        assert len(gone) == 3
        told = [found for found in export_user(store, "amy") if found.get("reason") == PRUNED]
        assert [(found["value"], found["values"], found["r"]) for found in told] == [("", (), 0.0)] * 3
        assert not any(part in value for value in gone for part in (b"200", b"scale", b"kg", b"surprising"))


def test_a_pruned_measurement_fed_again_is_known(path: Path) -> None:
    """Exactly once survives the pruning: nothing is accepted, kept or counted a second time (INV-09)."""
    with working(path) as (store, _, processor):
        prune_quarantine(store, OLD, **BY)
        before = records(store, "amy")
        again = fed("amy")
        assert {outcome.status for outcome in processor.process_batch(again)} == {"duplicate"}
        intake = processor.intake([(bytes([1] * 16), "again.csv")], lambda *_: None)
        statuses: list[str] = []
        intake = processor.intake([(bytes([1] * 16), "again.csv")], lambda _, outcome: statuses.append(outcome.status))
        for number, measurement in enumerate(again):
            intake.add(0, SourceRow(number, measurement))
        intake.flush()
        assert set(statuses) == {"known"}
        assert records(store, "amy") == before


def test_a_second_run_finds_nothing_and_writes_nothing(path: Path) -> None:
    with opened(path) as store:
        prune_quarantine(store, OLD, **BY)
        tail = store.audit_tail()
        assert prune_quarantine(store, OLD, **BY) == (0, 0, 0, 0, 1, 0, 0)
        assert store.audit_tail() == tail
        assert prune_quarantine(store, OLD + 100 * DAY_US, **BY)[:2] == (4, 4)
        assert aside(store, "amy") == Aside(5, aside(store, "amy").last_us, 5)
        sound(store)


def test_unreadable_rows_are_as_old_as_the_first_run_over_their_file(path: Path) -> None:
    """A row of a stream has no age; both keep the line and the file, and lose what stood there."""
    with opened(path) as store:
        assert prune_quarantine(store, PRESENT_US + 1, user="amy", **BY)[2:5] == (1, 1, 1)
        assert prune_quarantine(store, 0, user="amy", undated=True, **BY)[2:5] == (1, 0, 0)
        rows = [row for row in store.quarantine("amy") if row.disposition == "unreadable"]
        assert [(row.raw, row.reason, row.line, row.file) for row in rows] == [
            ("", PRUNED, 7, "export.csv"), ("", PRUNED, 7, "-")]
        sound(store)


def test_one_user_alone_and_in_small_commits(path: Path) -> None:
    with opened(path) as store:
        found = prune_quarantine(store, OLD, user="ben", rows_max=2, **BY)
        assert (found.measurements, found.users, found.commits) == (3, 1, 2)
        assert aside(store, "amy").pruned == 0
        sound(store)
        for said in ({"actor": " ", "reason": "r"}, {"actor": "a", "reason": ""}):
            refused(InvalidInput, prune_quarantine, store, OLD, **said)


def test_pruning_killed_at_any_commit_goes_on_where_it_was(path: Path) -> None:
    child = started("""
        from statemachine.retention import prune_quarantine
        store = opened(path)
        real, done = store.commit, []
        def commit(draft):
            if len(done) == 2:
                say("dying")
                os.kill(os.getpid(), signal.SIGKILL)
            done.append(1)
            return real(draft)
        store.commit = commit
        prune_quarantine(store, int(sys.argv[2]), rows_max=2, **BY)
    """, path, OLD)
    assert line(child) == "dying"
    child.communicate()
    with opened(path) as store:
        assert prune_quarantine(store, OLD, **BY).measurements == 2
        assert {user: aside(store, user).pruned for user in ("amy", "ben")} == {"amy": 3, "ben": 3}
        sound(store)


@pytest.mark.parametrize("when", ["draft", "commit"])
def test_what_another_changes_meanwhile_is_looked_at_again(path: Path, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    """One that was dropped and one that was accepted after they were found, or just before the commit, are left alone."""
    with opened(path) as store:
        make, commit = store.draft, store.commit
        calls: list[int] = []
        real: dict[str, Any] = {"draft": make, "commit": commit}

        def meanwhile() -> None:
            calls.append(1)
            if len(calls) == 1:
                other, user = make(), b"amy"
                (first, _), (second, kept_second) = other.newest_identities(user, OLD - 2 * DAY_US, OLD, 2)
                identities.withdraw(other, user, first)
                identities.move(other, user, second, kept_second, 0)
                commit(other)

        def late(*given: Draft) -> Any:
            meanwhile()
            return real[when](*given)

        monkeypatch.setattr(store, when, late)
        assert prune_quarantine(store, OLD, user="amy", **BY).measurements == 1
        assert (len(calls), aside(store, "amy").count, aside(store, "amy").pruned) == (2, 3, 1)
        accepted = [kept for _, kept in make().newest_identities(b"amy", OLD - 2 * DAY_US, OLD, 9)]
        assert [(kept.disposition, len(kept.values)) for kept in accepted] == [(0, 1)]


def test_an_attempt_that_read_the_content_before_it_was_pruned_conflicts(path: Path) -> None:
    """The record that counts what is kept aside changes with the pruning, and every attempt expects it to stand."""
    with opened(path) as store:
        draft = store.draft()
        at, found = draft.newest_identities(b"amy", OLD - 2 * DAY_US, OLD, 1)[0]
        draft.head(b"amy")
        identities.move(draft, b"amy", at, found, 0)
        prune_quarantine(store, OLD, **BY)
        refused(Exception, store.commit, draft)
        assert aside(store, "amy") == Aside(5, aside(store, "amy").last_us, 3)


def test_others_that_never_leave_the_user_alone_are_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(path) as store:
        real = store.commit

        def commit(draft: Draft) -> Any:
            other = store.draft()
            before = aside(store, "amy")
            other.put(keys.aside(b"amy"), codec.pack(Aside(before.count, before.last_us + 1, before.pruned)))
            real(other)
            return real(draft)

        monkeypatch.setattr(store, "commit", commit)
        assert "100 times in a row" in str(refused(StoreBusy, prune_quarantine, store, OLD, user="amy", **BY))


def test_pruned_measurements_are_dropped_replayed_and_forgotten_like_the_others(path: Path) -> None:
    """A replay offers only what has content; a drop and forgetting keep the counts right."""
    with working(path) as (store, manager, _):
        prune_quarantine(store, OLD, **BY)
        assert replay(manager, "amy", **BY).offered == 2
        assert aside(store, "amy").pruned == 3
        assert drop(store, "amy", before_us=OLD, **BY).measurements == 3
        assert (store.kept_count("amy"), aside(store, "amy").pruned) == (2, 0)
        forget(store, "ben", **BY)
        refused(UserUnknown, forget, store, "ben", **BY)
        sound(store)


def test_damaged_records_are_counted_and_left(path: Path) -> None:
    with raw(path) as txn, txn.cursor() as cursor:
        cursor.set_range(keys.identity(b"amy", OLD - DAY_US, b""))
        first = bytes(cursor.key())
    tear(path, first, keys.aside(b"ben"))
    with opened(path) as store:
        found = prune_quarantine(store, OLD, **BY)
        assert (found.measurements, found.damaged) == (2, 2)


def test_doctor_checks_the_count_of_what_was_pruned(path: Path) -> None:
    with opened(path) as store:
        prune_quarantine(store, OLD, **BY)
        checkup = Checkup(store)
        assert list(checkup.run()) == []
        assert checkup.oldest_kept_us == OLD + DAY_US, "what was pruned has no age any more"
        draft = store.draft()
        before = aside(store, "amy")
        draft.put(keys.aside(b"amy"), codec.pack(Aside(before.count, before.last_us, 1)))
        store.commit(draft)
        assert ["pruned says 1, and 3" in found.problem for found in Checkup(store).run()] == [True]


# The limit


def test_beyond_the_limit_nothing_is_lost_and_it_is_told_once(tmp_path: Path) -> None:
    """Each measurement is still kept; one row says that the limit was passed, and doctor warns."""
    with working(tmp_path / "s", limits=StoreLimits(quarantined_measurements_max=3)) as (store, _, processor):
        processor.process(weighed("amy", 0, 80.0))
        outcomes = processor.process_batch(weighed("amy", 1 + day, 20.0 + 40 * (day % 4)) for day in range(6))
        outcomes += [processor.process(weighed("amy", 10 + day, 250.0 if day % 2 else 20.0)) for day in range(3)]
        assert {outcome.status for outcome in outcomes} == {"quarantined"}
        assert store.kept_count("amy") == 9
        assert processor.manager.health().limits_reached == 1
        told = [row for row in store.audit("amy") if row.public.event == "quarantine.limit_reached"]
        assert [row.personal.details for row in told] == [{"kept_aside": 4, "limit": 3}]
        found = list(Checkup(store).run())
        assert [(f.check, f.level, "9 measurements" in f.problem) for f in found] == [("kept aside", "warning", True)]
        prune_quarantine(store, to_us(START) + 300 * DAY_US, **BY)
        assert list(Checkup(store).run()) == []
        for day in range(20, 25):
            processor.process(weighed("amy", day, 250.0 if day % 2 else 20.0))
        assert [event for event, *_ in events(store, "amy")].count("quarantine.limit_reached") == 2
        health = processor.manager.health()
        assert (health.ok, health.limits_reached) == (True, 2)


def test_a_replay_beyond_the_limit_tells_it_no_second_time(tmp_path: Path) -> None:
    with working(tmp_path / "s", limits=StoreLimits(quarantined_measurements_max=3)) as (store, manager, processor):
        processor.process(weighed("amy", 0, 80.0))
        for day in range(4):
            processor.process(weighed("amy", 1 + day, 20.0 + 40 * (day % 4)))
        assert replay(manager, "amy", **BY).kept == 4
        assert [event for event, *_ in events(store, "amy")].count("quarantine.limit_reached") == 1


def test_the_look_at_what_is_held_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However much is kept aside, deciding one more measurement reads no more than the policy looks at."""
    policy = ResetPolicy(run_looked_at_max=10)
    with opened(tmp_path / "s") as store:
        manager = ResetManager(store, policy=policy)
        processor = Processor(manager)
        processor.process(weighed("amy", 0, 80.0))
        processor.process_batch(weighed("amy", 1 + day / 10, 250.0 if day % 2 else 20.0) for day in range(100))
        assert store.kept_count("amy") == 100
        decoded: list[int] = []
        real = codec.unpack

        def counted(kind: type[Any], content: bytes) -> Any:
            decoded.append(kind is Identity)
            return real(kind, content)

        monkeypatch.setattr(codec, "unpack", counted)
        assert processor.process(weighed("amy", 20, 20.0)).status == "quarantined"
        assert 0 < sum(decoded) <= 10
        for day in (20.1, 20.2):
            outcome = processor.process(weighed("amy", day, 20.0))
        assert outcome.reset is not None, "the newest three agree, and that is all the evidence that is needed"
        assert outcome.reset.kind == "level-shift"


def test_the_newest_are_the_end_of_all_of_them(path: Path) -> None:
    """Stored and pending ones, with those that the draft deletes, as the whole list has them."""
    with opened(path) as store:
        draft, user = store.draft(), b"amy"
        for number in (3, 1, 2):
            at = keys.identity(user, OLD + 10 * DAY_US + number, b"x" * 12)
            identities.keep_aside(draft, user, at, Identity(HELD, (1.0,), 1.0, "1", "kg", "s", 0, 0))
        everything = draft.identities(user, -(2**61))
        assert len(everything) == 48
        for rows_max in (1, 2, 3, 4, 7, 100):
            assert draft.newest_identities(user, -(2**61), OLD + 20 * DAY_US, rows_max) == everything[-rows_max:]
        assert draft.newest_identities(user, OLD, OLD + 10 * DAY_US + 1, 100) == draft.identities(user, OLD)[:-2]
        identities.withdraw(draft, user, everything[-1][0])
        assert draft.newest_identities(user, OLD, OLD + 20 * DAY_US, 100) == draft.identities(user, OLD)


# The command


def run(path: Path, *words: str) -> tuple[int, str, str]:
    found = CliRunner().invoke(app, ["quarantine", "prune", *words, str(path)], env={"COLUMNS": "80"})
    assert found.exception is None or isinstance(found.exception, SystemExit), found.exception
    return found.exit_code, found.stdout, found.stderr


SAID: Final = ("--actor", "ops", "--reason", "kept one year")


def test_the_command_prunes(path: Path) -> None:
    day = iso(OLD)
    for words in (SAID, ("--before", day), ("--before", "soon", *SAID), ("--before", day, "--user", "nobody", *SAID)):
        assert run(path, *words)[0] == 2
    code, out, _ = run(path, "--before", day, "--user", "amy", "--json", *SAID)
    assert (code, json.loads(out)) == (0, {"before": day, "measurements": 3, "held": 2, "unreadable": 0, "users": 1, "undated": 1,
                                           "damaged": 0, "commits": 1})
    code, out, err = run(path, "--before", day, *SAID)
    assert (code, "3 measurements of 1 users" in out, "--undated" in err) == (0, True, True)
    code, _, err = run(path, "--before", day, *SAID)
    assert (code, "nothing kept aside" in err) == (0, True)
    tear(path, keys.aside(b"ben"))
    assert run(path, "--before", day, *SAID)[0] == 1
