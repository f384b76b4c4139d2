"""The one commit path: groups, misses, second outcomes, commits in doubt, interrupts, fences, and the audit chain."""

from __future__ import annotations

import errno
import hashlib
import threading
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import lmdb
import pytest

from statemachine import (
    CommitInDoubt,
    ConflictError,
    ContractBroken,
    InvariantViolation,
    MutationFailed,
    ResetManager,
    Store,
    StoreBusy,
    StoreCorrupt,
    StoreFull,
    StoreLimits,
    StoreUnavailable,
)
from statemachine.audit import Entry, Personal, Public, parse, row_hash
from statemachine.codec import seal, unseal
from statemachine.marks import SLOTS
from statemachine.store import keys
from statemachine.testing import CountingIds
from tests.regression.scene import BY, broken, events, fill, head, opened, raw, records, states, tear, weighed, working
from tests.unit.doubles import Commit, Disk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

SECONDS_MAX: Final = 20.0
USERS: Final = tuple(f"u{number}" for number in range(7))


class Scene(NamedTuple):
    """A store over a disk that obeys, with a few users in it."""

    store: Store
    manager: ResetManager
    disk: Disk
    path: Path


def scene(path: Path, **settings: Any) -> Scene:
    disk = Disk()
    store = opened(path, opener=disk, **settings)
    return Scene(store, ResetManager(store), disk, path)


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Scene]:
    """A store in groups, holding a state of each of `USERS` and of "first"."""
    path = tmp_path / "store"
    with working(path) as (_, _, processor):
        processor.process_batch(weighed(user, 0, 80.0) for user in ("first", *USERS))
    found = scene(path, durability="group")
    yield found
    found.store.close()


def transactions(store: Store) -> int:
    """How many LMDB transactions were ever committed."""
    return int(store.engine.info()["last_txnid"])


def note(event: str, attempt_id: str = "") -> Entry:
    return Entry(Public(event=event, attempt_id=attempt_id), Personal())


class Answers:
    """What calls made in threads returned or raised, by their place."""

    def __init__(self, calls: Sequence[Callable[[], object]]) -> None:
        self.found: list[Any] = [None] * len(calls)
        self.threads = [threading.Thread(target=self._run, args=(place, call)) for place, call in enumerate(calls)]

    def _run(self, place: int, call: Callable[[], object]) -> None:
        try:
            self.found[place] = call()
        except BaseException as error:  # noqa: BLE001 - it is the answer
            self.found[place] = error

    def start(self) -> None:
        for thread in self.threads:
            thread.start()

    def wait(self) -> list[Any]:
        for thread in self.threads:
            thread.join(SECONDS_MAX)
            assert not thread.is_alive()
        return self.found


def together(
    here: Scene, first: Callable[[], object], calls: Sequence[Callable[[], object]], between: Callable[[], object] | None = None,
) -> list[Any]:
    """Run `first`, and while it is being made durable let all `calls` queue behind it; what each answered, `first`'s first.

    What is `between` runs when the first is durable and the others are not yet begun.
    """
    inside, go = threading.Event(), threading.Event()

    def held(real: Commit) -> None:
        inside.set()
        assert go.wait(SECONDS_MAX)
        real()
        if between is not None:
            between()

    here.disk.once(held)
    leader, others = Answers([first]), Answers(calls)
    leader.start()
    assert inside.wait(SECONDS_MAX)
    others.start()
    waiting = threading.Event()
    for _ in range(2_000):
        if len(here.store.committer._queue) == len(calls):
            break
        waiting.wait(0.005)
    else:
        pytest.fail("the calls did not reach the queue")
    go.set()
    return leader.wait() + others.wait()


def reset(here: Scene, user: str) -> Callable[[], object]:
    return lambda: here.manager.perform_reset(user, **BY).outcome


# Groups

@pytest.mark.parametrize(("settings", "commits"), [
    ({"durability": "group"}, 2),
    ({"durability": "group", "limits": StoreLimits(group_drafts_max=3)}, 1 + 3),
    ({"durability": "each"}, 1 + len(USERS)),
    ({"durability": "process"}, 1 + len(USERS)),
])
def test_callers_that_wait_share_the_next_commit(tmp_path: Path, settings: dict[str, Any], commits: int) -> None:
    """What queues behind a commit goes into the next one together, up to the group's size; in other modes one by one."""
    path = tmp_path / "store"
    with working(path) as (_, _, processor):
        processor.process_batch(weighed(user, 0, 80.0) for user in ("first", *USERS))
    found = scene(path, **settings)
    before = transactions(found.store)
    answers = together(found, reset(found, "first"), [reset(found, user) for user in USERS])
    assert answers == ["committed"] * 8
    assert transactions(found.store) - before == commits
    assert [found.store.version_range(user) for user in ("first", *USERS)] == [(1, 2)] * 8
    assert found.store.verify_audit().rows == 16
    found.store.close()


def test_a_draft_that_misses_leaves_the_others_whole(here: Scene) -> None:
    """Of two attempts on one user in one group the second is conflicted and leaves its row; the rest of the group stands."""
    second = here.manager.transaction("u1", **BY)
    second.begin()
    second.apply("move", lambda s: s.replace(x0=99.0))
    before = transactions(here.store)
    calls = [reset(here, "u0"), reset(here, "u1"), reset(here, "u2")]
    answers = together(here, reset(here, "first"), calls)
    assert answers == ["committed"] * 4
    answers = together(here, reset(here, "first"), [reset(here, "u3"), second.commit, reset(here, "u4")])
    assert answers[0:2] == ["committed", "committed"]
    assert isinstance(answers[2], ConflictError)
    assert answers[3] == "committed"
    assert transactions(here.store) - before == 4
    assert head(here.store, "u1").kalman.x0 == 80.0
    assert [here.store.version_range(user)[1] for user in USERS] == [2, 2, 2, 2, 2, 1, 1]
    found = here.store.inspect(second.attempt_id)
    assert found is not None
    assert (found.public.outcome, found.public.new_version) == ("conflicted", None)
    assert here.store.verify_audit().problem == ""


def test_two_drafts_of_one_group_are_compared_with_each_other(here: Scene) -> None:
    """What the first of a group writes is what the second is checked against, though neither is durable yet."""
    attempts = [here.manager.transaction("u1", **BY) for _ in range(3)]
    for number, attempt in enumerate(attempts):
        attempt.begin()
        attempt.apply("move", lambda s, number=number: s.replace(x0=90.0 + number))  # type: ignore[misc]
    before = transactions(here.store)
    answers = together(here, reset(here, "first"), [attempt.commit for attempt in attempts])[1:]
    assert transactions(here.store) - before == 2
    won = [number for number, answer in enumerate(answers) if not isinstance(answer, BaseException)]
    assert len(won) == 1
    assert {type(answer) for number, answer in enumerate(answers) if number not in won} == {ConflictError}
    assert head(here.store, "u1").kalman.x0 == 90.0 + won[0]
    assert here.store.version_range("u1") == (1, 2)
    outcomes = [row.public.outcome for row in here.store.audit("u1")]
    assert sorted(outcomes) == ["committed", "committed", "conflicted", "conflicted"]


def test_a_breaker_that_cannot_be_read_is_no_trouble_of_the_group(here: Scene) -> None:
    """One draft of a group meets a damaged record under the commit: it alone raises, the others are made durable."""
    attempt = here.manager.transaction("u1", **BY)
    attempt.begin()
    attempt.apply("move", lambda s: s.replace(x0=90.0))

    def damage() -> None:
        here.store.engine.update(lambda put: put(keys.breaker(b"u1"), b"nothing of ours"))

    answers = together(here, reset(here, "first"), [reset(here, "u0"), attempt.commit, reset(here, "u2")], damage)
    assert isinstance(answers[2], StoreCorrupt)
    assert [answers[0], answers[1], answers[3]] == ["committed"] * 3
    assert here.manager.perform_reset("u3", **BY).outcome == "committed", "and those after it too"
    assert here.store.version_range("u1") == (1, 1)
    assert [row.public.outcome for row in here.store.audit("u1")] == ["committed", "rolled_back"]
    assert here.store.verify_audit().problem == ""


def test_an_attempt_whose_breaker_is_damaged_meanwhile_has_its_outcome(here: Scene) -> None:
    """Where the breaker can be read neither for the commit nor for the rollback, the attempt's row is written all the same."""
    def damage(state: Any) -> Any:
        with here.store.engine.turn():
            here.store.engine.update(lambda put: put(keys.breaker(b"u1"), b"nothing of ours"))
        return state.replace(x0=90.0)

    with pytest.raises(StoreCorrupt):
        here.manager.perform_reset("u1", operations=[("move", damage)], **BY)
    assert here.manager.perform_reset("u2", **BY).outcome == "committed"
    assert [row.public.outcome for row in here.store.audit("u1")] == ["committed", "rolled_back"]
    assert_slots_are_whole(here.store)


def test_a_thread_that_waits_too_long_is_busy_and_writes_nothing(tmp_path: Path) -> None:
    """Behind another thread's endless commit a caller gives up after the limit, and its draft is not written later."""
    path = tmp_path / "store"
    with working(path) as (_, _, processor):
        processor.process_batch(weighed(user, 0, 80.0) for user in ("first", "u0"))
    found = scene(path, durability="group", limits=StoreLimits(writer_wait_s_max=0.1))
    answers: list[Any] = []

    def slow(real: Commit) -> None:
        draft = found.store.draft()
        draft.entries.append(note("too late"))
        late = Answers([lambda: found.store.commit(draft)])
        late.start()
        answers.extend(late.wait())
        real()

    found.disk.once(slow)
    assert found.manager.perform_reset("first", **BY).outcome == "committed"
    assert isinstance(answers[0], StoreBusy)
    assert found.manager.perform_reset("u0", **BY).outcome == "committed"
    assert "too late" not in [event for event, *_ in events(found.store)]
    found.store.close()


def test_every_commit_raises_the_number_of_its_owner(here: Scene) -> None:
    """The number by which doubt is settled grows by one with each commit, and with no reading."""
    def number() -> int:
        key = keys.owner(here.store.committer.owner)
        return int.from_bytes(unseal(key, here.store.engine.get(key) or b""), "big")

    before = number()
    for times in range(1, 4):
        here.manager.perform_reset("u0", **BY)
        here.store.load("u0")
        assert number() == before + times


# One outcome an attempt

def test_a_second_outcome_of_an_attempt_is_refused(here: Scene) -> None:
    """INV-03: a draft that would end an attempt a second time is left out whole, with all that it carries."""
    attempt_id = here.manager.perform_reset("u0", **BY).attempt_id
    before = events(here.store)
    draft = here.store.draft()
    draft.put(keys.cursor(bytes(16)), b"")
    draft.entries.append(note("reset.rolled_back", attempt_id))
    other = here.store.draft()
    other.entries.append(note("another"))
    answers = together(here, reset(here, "first"), [lambda: here.store.commit(draft), lambda: here.store.commit(other)])
    assert isinstance(answers[1], InvariantViolation)
    assert str(answers[1]).startswith("INV-03")
    assert answers[1].attempt_id == attempt_id
    assert [event for event, *_ in events(here.store)[len(before):]] == ["reset.committed", "another"]
    assert here.store.engine.get(keys.cursor(bytes(16))) is None
    found = here.store.inspect(attempt_id)
    assert found is not None
    assert found.public.outcome == "committed"
    assert here.store.emitter.flush()
    assert here.store.emitter.dropped == 0, "the events go on"


def test_one_draft_cannot_end_an_attempt_twice(here: Scene) -> None:
    """INV-03 holds within a draft as well."""
    draft, attempt_id = here.store.draft(), CountingIds().attempt_id()
    draft.entries += [note("reset.committed", attempt_id), note("reset.rolled_back", attempt_id)]
    before = here.store.audit_tail()
    with pytest.raises(InvariantViolation, match="INV-03"):
        here.store.commit(draft)
    assert here.store.audit_tail() == before
    assert here.store.inspect(attempt_id) is None


# Commits in doubt

def ill_before(_: Commit) -> None:
    raise lmdb.Error("ill")


def ill_after(real: Commit) -> None:
    real()
    raise lmdb.Error("ill")


def assert_slots_are_whole(store: Store) -> None:
    """No slot is lost and none is free twice."""
    marks = store.marks
    assert sorted([*marks._free, *marks.ended()]) == list(range(SLOTS))


def test_a_commit_that_failed_after_all_is_durable_and_so_reported(here: Scene) -> None:
    """The commit raises, but its number is in the store: the caller sees a success, and the row is there once."""
    here.disk.once(ill_after)
    result = here.manager.perform_reset("u0", operations=[("move", lambda s: s.replace(x0=81.0))], **BY)
    assert (result.outcome, result.version) == ("committed", 2)
    assert head(here.store, "u0").kalman.x0 == 81.0
    assert here.manager.perform_reset("u0", **BY).version == 3
    assert [row.public.outcome for row in here.store.audit("u0")] == ["committed"] * 3
    assert_slots_are_whole(here.store)


def coded(code: int) -> lmdb.Error:
    """An error as LMDB passes it on from the system."""
    error: Any = lmdb.Error("mdb_txn_commit: the system says so")
    error.code = code
    found: lmdb.Error = error
    return found


@pytest.mark.parametrize(("error", "kind"), [
    (lmdb.Error("ill"), StoreUnavailable),
    (coded(errno.EIO), StoreUnavailable),
    (coded(errno.ENOSPC), StoreFull),
    (coded(errno.EDQUOT), StoreFull),
    (lmdb.CorruptedError("ill"), StoreCorrupt),
    (OSError(errno.ENOSPC, "no room"), StoreFull),
    (OSError(errno.EIO, "ill"), StoreUnavailable),
])
def test_a_commit_that_is_not_durable_is_a_typed_error_and_changes_nothing(
    here: Scene, error: Exception, kind: type[Exception],
) -> None:
    """The number is not in the store: the before-image stands, the error says why, and the attempt is rolled back."""
    before = records(here.store, "u0")

    def ill(_: Commit) -> None:
        raise error

    here.disk.once(ill)
    with pytest.raises(kind) as caught:
        here.manager.perform_reset("u0", **BY)
    assert type(caught.value) is kind
    assert caught.value.__cause__ is error
    assert records(here.store, "u0") == before
    assert here.manager.perform_reset("u1", **BY).outcome == "committed"
    assert [row.public.outcome for row in here.store.audit("u0")] == ["committed", "rolled_back"]
    assert records(here.store, "u0") == before
    assert_slots_are_whole(here.store)


def test_an_environment_that_refuses_everything_is_opened_anew_to_settle_doubt(here: Scene) -> None:
    """After a failed meta page LMDB refuses all else: the environment is opened again, and the number tells."""
    for fault, outcome in ((ill_after, "committed"), (ill_before, "raises")):
        def panics(real: Commit, fault: Callable[[Commit], None] = fault) -> None:
            here.disk.fail()
            fault(real)

        openings = here.disk.opened
        here.disk.once(panics)
        if outcome == "committed":
            assert here.manager.perform_reset("u0", **BY).outcome == "committed"
        else:
            with pytest.raises(StoreUnavailable):
                here.manager.perform_reset("u0", **BY)
        assert here.disk.opened == openings + 1
        assert here.store.version_range("u0") == (1, 2)
    assert here.manager.perform_reset("u0", **BY).version == 3


@pytest.mark.parametrize(("fault", "outcome"), [(ill_after, "committed"), (ill_before, "interrupted")])
def test_doubt_that_cannot_be_settled_is_told_and_settled_later(
    here: Scene, fault: Callable[[Commit], None], outcome: str,
) -> None:
    """The disk is gone with the commit: CommitInDoubt names the attempt, and the next opening tells how it ended."""
    def gone(real: Commit) -> None:
        here.disk.fail()
        here.disk.gone = True
        fault(real)

    here.disk.once(gone)
    with pytest.raises(CommitInDoubt) as caught:
        here.manager.perform_reset("u0", **BY)
    assert caught.value.user == "u0"
    attempt_id = caught.value.attempt_id
    assert attempt_id is not None
    with pytest.raises(StoreUnavailable):
        here.store.load("u0")
    here.store.close()
    with opened(here.path) as store:
        found = ResetManager(store).inspect(attempt_id)
        assert found is not None
        assert found.public.outcome == outcome
        assert store.version_range("u0") == (1, 2 if outcome == "committed" else 1)
        assert store.verify_audit().problem == ""
        assert len({row.public.attempt_id for row in store.audit()}) == len(list(store.audit()))


def test_a_fence_that_comes_with_a_failing_commit_leaves_it_in_doubt(here: Scene) -> None:
    """Without the owner's key the number cannot tell: the commit may have been made before the fence."""
    def fenced(real: Commit) -> None:
        real()
        environment = here.disk.environment
        assert environment is not None
        with environment._env.begin(write=True) as txn:
            assert txn.delete(keys.owner(here.store.committer.owner))
        raise lmdb.Error("ill")

    here.disk.once(fenced)
    with pytest.raises(CommitInDoubt) as caught:
        here.manager.perform_reset("u0", **BY)
    found = here.manager.inspect(caught.value.attempt_id or "")
    assert found is not None
    assert found.public.outcome == "committed"


def test_an_attempt_in_doubt_can_neither_be_committed_nor_rolled_back_again(here: Scene) -> None:
    """Its outcome may be durable already; a second try would write a second one."""
    def unsure(real: Commit) -> None:
        real()
        raise KeyboardInterrupt

    tx = here.manager.transaction("u0", **BY)
    tx.begin()
    tx.apply("move", lambda s: s.replace(x0=81.0))
    here.disk.once(unsure)
    with pytest.raises(CommitInDoubt):
        tx.commit()
    for end in (tx.commit, tx.roll_back):
        with pytest.raises(ContractBroken, match="in doubt"):
            end()
    assert [row.public.attempt_id for row in here.store.audit("u0")].count(tx.attempt_id) == 1
    assert here.store.version_range("u0") == (1, 2)


# Interrupts

def interrupted_after(real: Commit) -> None:
    real()
    raise KeyboardInterrupt


def interrupted_before(_: Commit) -> None:
    raise KeyboardInterrupt


def test_an_interrupt_after_the_commit_is_doubt_never_a_rollback(here: Scene) -> None:
    """What is durable is not called undone: CommitInDoubt, inspect tells, and no second outcome is ever written."""
    here.disk.once(interrupted_after)
    with pytest.raises(CommitInDoubt) as caught:
        here.manager.perform_reset("u0", operations=[("move", lambda s: s.replace(x0=81.0))], **BY)
    assert isinstance(caught.value.__cause__, KeyboardInterrupt)
    attempt_id = caught.value.attempt_id or ""
    found = here.manager.inspect(attempt_id)
    assert found is not None
    assert (found.public.outcome, found.public.new_version) == ("committed", 2)
    assert head(here.store, "u0").kalman.x0 == 81.0
    for _ in range(3):
        assert here.manager.perform_reset("u1", **BY).outcome == "committed"
    assert_slots_are_whole(here.store)
    assert [row.public.outcome for row in here.store.audit("u0")] == ["committed", "committed"]
    here.store.close()
    with opened(here.path) as store:
        assert store.interrupted == 0
        assert [row.public.outcome for row in store.audit("u0")] == ["committed", "committed"]


def test_an_interrupt_before_the_commit_stays_an_interrupt(here: Scene) -> None:
    """Nothing was written: KeyboardInterrupt itself reaches the caller, and the attempt is rolled back."""
    before = records(here.store, "u0")
    here.disk.once(interrupted_before)
    with pytest.raises(KeyboardInterrupt):
        here.manager.perform_reset("u0", **BY)
    assert records(here.store, "u0") == before
    assert here.manager.perform_reset("u1", **BY).outcome == "committed"
    assert [row.public.outcome for row in here.store.audit("u0")] == ["committed", "rolled_back"]
    assert_slots_are_whole(here.store)


@pytest.mark.parametrize("fault", [interrupted_before, interrupted_after])
def test_an_interrupt_hits_one_thread_of_a_group(here: Scene, fault: Callable[[Commit], None]) -> None:
    """Of a group being written one thread is interrupted: the others' drafts are committed, now or with the next one."""
    queued = [reset(here, user) for user in USERS]
    first, *answers = together(here, reset(here, "first"), queued, lambda: here.disk.once(fault))
    assert first == "committed"
    cut_off = [answer for answer in answers if isinstance(answer, BaseException)]
    assert [type(error) for error in cut_off] == [KeyboardInterrupt if fault is interrupted_before else CommitInDoubt]
    assert answers.count("committed") == len(USERS) - 1
    here.manager.perform_reset("first", **BY)
    for user, answer in zip(USERS, answers, strict=True):
        durable = answer == "committed" or fault is interrupted_after
        assert here.store.version_range(user) == (1, 2 if durable else 1)
        outcomes = [row.public.outcome for row in here.store.audit(user)]
        assert outcomes == ["committed", "committed" if durable else "rolled_back"]
    assert_slots_are_whole(here.store)
    assert here.store.verify_audit().problem == ""


# Fences

def fence(store: Store) -> None:
    """What `recover --fence` does: the owner's key goes."""
    with store.engine.turn(), store.engine.write() as txn:
        assert txn.delete(keys.owner(store.committer.owner))


def test_a_fenced_owner_writes_nothing_more(here: Scene) -> None:
    """Its key is gone: commits are refused and leave no trace, reads go on, and the next opening settles its attempts."""
    attempt = here.manager.transaction("u1", **BY)
    attempt.begin()
    attempt.apply("move", lambda s: s.replace(x0=90.0))
    fence(here.store)
    before = dict(here.store.engine.scan(b"", b"\xff" * 8))
    for call in (attempt.commit, reset(here, "u0"), lambda: here.store.commit(here.store.draft())):
        with pytest.raises(StoreUnavailable, match="fenced by another process; open the store again"):
            call()
    assert dict(here.store.engine.scan(b"", b"\xff" * 8)) == before
    assert head(here.store, "u1").kalman.x0 == 80.0
    here.store.close()
    with opened(here.path) as store:
        for user in ("u0", "u1"):
            assert [row.public.outcome for row in store.audit(user)] == ["committed", "rolled_back"]
            assert store.version_range(user) == (1, 1)
        assert ResetManager(store).perform_reset("u1", **BY).version == 2
        assert store.verify_audit().problem == ""


# The events' copy

def test_no_thread_for_the_events_fails_no_commit(here: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stored log is the record: where no thread can be started its copy is dropped, and counted."""
    def no_more(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", no_more)
    assert here.manager.perform_reset("u0", **BY).outcome == "committed"
    assert here.store.emitter.dropped == 1
    monkeypatch.undo()
    assert here.manager.perform_reset("u0", **BY).outcome == "committed"
    assert here.store.emitter.flush()
    assert here.store.emitter.dropped == 1


def test_text_that_is_no_unicode_ends_in_the_log_all_the_same(here: Scene) -> None:
    """A failing operation may quote a file name that is no text: its attempt has its outcome and its reason."""
    def unreadable(_: Any) -> Any:
        raise OSError("cannot read \udce4.csv")

    with pytest.raises(MutationFailed):
        here.manager.perform_reset("u0", operations=[("read \ud800", unreadable)], **BY)
    row = list(here.store.audit("u0"))[-1]
    assert row.public.outcome == "rolled_back"
    assert "cannot read \\udce4.csv" in row.personal.error
    assert [operation.name for operation in row.personal.operations] == ["read \\ud800"]
    assert_slots_are_whole(here.store)


# The chain

ROWS: Final = 6


@pytest.fixture
def logged(tmp_path: Path) -> Path:
    """A store whose audit log has six rows."""
    path = tmp_path / "store"
    fill(path, "u", [80.0])
    with working(path, ids=CountingIds()) as (store, manager, _):
        for number in range(ROWS - 2):
            manager.perform_reset("u", reason=f"reset {number}", actor="ops")
        with pytest.raises(MutationFailed):
            manager.perform_reset("u", operations=[("break", broken)], **BY)
        assert store.verify_audit() == (ROWS, store.audit_tail()[1], None, "")
    return path


class Log:
    """The rows of an audit log in the hands of somebody who knows the format, and has no need of any key."""

    def __init__(self, txn: lmdb.Transaction) -> None:
        self._txn = txn
        self.rows = {seq: unseal(keys.audit(seq), bytes(txn.get(keys.audit(seq)) or b"")) for seq in range(1, ROWS + 1)}

    def put(self, seq: int, content: bytes | None) -> None:
        if content is None:
            self._txn.delete(keys.audit(seq))
        else:
            self._txn.put(keys.audit(seq), seal(keys.audit(seq), content))

    def end(self, seq: int, digest: bytes) -> None:
        self._txn.put(keys.CHAIN, seal(keys.CHAIN, seq.to_bytes(8, "big") + digest))


def public_of(content: bytes) -> tuple[int, int]:
    """Where the public part of a row begins and ends."""
    return 68, 68 + int.from_bytes(content[64:68], "big")


def with_public(content: bytes, old: bytes, new: bytes) -> bytes:
    start, end = public_of(content)
    body = content[start:end].replace(old, new)
    assert body != content[start:end]
    return content[:64] + len(body).to_bytes(4, "big") + body + content[end:]


def with_personal(content: bytes, old: bytes, new: bytes, *, digested: bool) -> bytes:
    _, end = public_of(content)
    personal = content[end:].replace(old, new)
    assert personal != content[end:]
    digest = hashlib.sha256(personal).digest() if digested else content[32:64]
    return content[:32] + digest + content[64:end] + personal


def rechained(prev: bytes, content: bytes) -> tuple[bytes, bytes]:
    """A row made to follow another, and its hash."""
    start, end = public_of(content)
    content = prev + content[32:]
    return content, row_hash(prev, content[32:64], content[start:end])


def change_reason(log: Log) -> None:
    log.put(3, with_personal(log.rows[3], b"reset 1", b"nothing", digested=False))


def change_reason_and_digest(log: Log) -> None:
    log.put(3, with_personal(log.rows[3], b"reset 1", b"nothing", digested=True))


def change_outcome(log: Log) -> None:
    log.put(3, with_public(log.rows[3], b'"outcome":"committed"', b'"outcome":"refused"'))


def change_the_last_outcome(log: Log) -> None:
    log.put(ROWS, with_public(log.rows[ROWS], b"rolled_back", b"committed"))


def insert_in_the_middle(log: Log) -> None:
    forged, digest = rechained(parse(log.rows[3]).hash, with_public(log.rows[3], b'"seq":3', b'"seq":4'))
    log.put(4, forged)
    for seq in range(4, ROWS + 1):
        log.put(seq + 1, log.rows[seq])
    log.end(ROWS + 1, parse(log.rows[ROWS]).hash)
    assert digest != parse(log.rows[3]).hash


def insert_at_the_end(log: Log) -> None:
    last = log.rows[ROWS]
    log.put(ROWS + 1, rechained(parse(last).hash, with_public(last, b'"seq":%d' % ROWS, b'"seq":%d' % (ROWS + 1)))[0])


def insert_before_the_beginning(log: Log) -> None:
    log.put(0, log.rows[1])


def remove_one(log: Log) -> None:
    log.put(3, None)


def remove_the_first(log: Log) -> None:
    log.put(1, None)


def remove_the_last(log: Log) -> None:
    log.put(ROWS, None)


def remove_one_and_close_the_gap(log: Log) -> None:
    for seq in range(3, ROWS):
        log.put(seq, with_public(log.rows[seq + 1], b'"seq":%d' % (seq + 1), b'"seq":%d' % seq))
    log.put(ROWS, None)
    log.end(ROWS - 1, parse(log.rows[ROWS]).hash)


def swap_two(log: Log) -> None:
    log.put(3, log.rows[4])
    log.put(4, log.rows[3])


def change_the_end(log: Log) -> None:
    log.end(ROWS, bytes(32))


@pytest.mark.parametrize(("tamper", "row"), [
    (change_reason, 3),  # the digest does not match
    (change_reason_and_digest, 4),  # the next row does not follow
    (change_outcome, 4),
    (change_the_last_outcome, ROWS + 1),  # nothing follows it but the end of the chain
    (insert_in_the_middle, 5),
    (insert_at_the_end, ROWS + 1),
    (insert_before_the_beginning, 1),
    (remove_one, 3),
    (remove_the_first, 1),
    (remove_the_last, ROWS),
    (remove_one_and_close_the_gap, 3),
    (swap_two, 3),
    (change_the_end, ROWS + 1),
])
def test_tampering_is_found_at_its_row(logged: Path, tamper: Callable[[Log], None], row: int) -> None:
    """INV-10: each change, insertion, removal and exchange is found, at the first row that does not fit."""
    with raw(logged) as txn:
        tamper(Log(txn))
    with opened(logged) as store:
        found = store.verify_audit()
        assert found.bad_seq == row, found
        assert found.problem


def test_a_tail_cut_with_its_end_is_found_by_a_hash_noted_elsewhere(logged: Path) -> None:
    """Whoever cuts the tail and mends the end leaves a whole chain: only a hash from outside tells."""
    with opened(logged) as store:
        noted = store.audit_tail()[1]
        earlier = list(store.audit())[3].hash.hex()
        assert store.verify_audit(noted).bad_seq is None
        assert store.verify_audit(earlier).bad_seq is None
        assert store.verify_audit("0" * 64).bad_seq is None, "the empty log's hash is in every log"
        assert store.verify_audit("ab" * 32).bad_seq == ROWS + 1
    with raw(logged) as txn:
        log = Log(txn)
        for seq in (ROWS - 1, ROWS):
            log.put(seq, None)
        log.end(ROWS - 2, parse(log.rows[ROWS - 2]).hash)
    with opened(logged) as store:
        assert store.verify_audit() == (ROWS - 2, earlier, None, "")
        assert store.verify_audit(earlier).bad_seq is None
        found = store.verify_audit(noted)
        assert found.bad_seq == ROWS - 1
        assert "the tail was cut" in found.problem


def test_a_log_forged_from_some_row_on_is_found_by_a_hash_noted_elsewhere(logged: Path) -> None:
    """A forger who chains everything anew passes by himself, and not against any hash noted after that row."""
    with opened(logged) as store:
        hashes = [row.hash.hex() for row in store.audit()]
    with raw(logged) as txn:
        log = Log(txn)
        prev = parse(log.rows[2]).hash
        for seq in range(3, ROWS + 1):
            content = log.rows[seq]
            if seq == 3:
                content = with_personal(content, b"reset 1", b"nothing", digested=True)
            content, prev = rechained(prev, content)
            log.put(seq, content)
        log.end(ROWS, prev)
    with opened(logged) as store:
        assert store.verify_audit().bad_seq is None
        assert [store.verify_audit(noted).bad_seq is None for noted in hashes] == [True, True, False, False, False, False]


def test_a_payload_dropped_by_hand_leaves_the_chain_and_is_found(logged: Path) -> None:
    """The hash covers a digest of the personal part: the row still stands in its place, but nobody said who erased it."""
    with opened(logged) as store:
        before = store.audit_tail()
    with raw(logged) as txn:
        log = Log(txn)
        log.put(3, log.rows[3][:public_of(log.rows[3])[1]])
    with opened(logged) as store:
        found = store.verify_audit(before[1])
        assert found[:3] == (ROWS, before[1], 3)
        assert "says who erased it" in found.problem
        row = list(store.audit())[2]
        assert (row.erased, row.personal.user, row.public.outcome) == (True, "", "committed")


def test_a_torn_row_is_found_at_its_place(logged: Path) -> None:
    """A row whose bytes fail their checksum is damage like any other."""
    tear(logged, keys.audit(4))
    with opened(logged) as store:
        found = store.verify_audit()
        assert (found.bad_seq, "checksum" in found.problem) == (4, True)


def test_rows_follow_each_other_through_every_session(tmp_path: Path) -> None:
    """One chain a store: numbers without gaps, each row carrying the hash before it, whoever wrote it."""
    path = tmp_path / "store"
    for session in range(3):
        fill(path, f"u{session}", [80.0])
        with working(path) as (_, manager, _):
            manager.perform_reset("u0", **BY)
    with opened(path) as store:
        rows = list(store.audit())
        assert [row.public.seq for row in rows] == [1, 2, 3, 4, 5, 6]
        assert [row.prev_hash for row in rows] == [bytes(32), *(row.hash for row in rows[:-1])]
        assert len({row.public.owner for row in rows}) == 6
        assert {row.public.store_id for row in rows} == {store.store_id}
        assert len({row.personal.salt for row in rows}) == 6, "a salt of its own in each row"
        assert store.audit_tail() == (6, rows[-1].hash.hex())
        assert states(store, "u1")
