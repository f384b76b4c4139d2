"""Alerts: who is told of what, and that no hook, however bad, costs a commit anything."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Any, Final

import pytest
import structlog

from statemachine import InvalidInput, Processor, ResetManager, Store, StoreCorrupt, audit
from statemachine.alerts import Alert, AlertCounts, AlertFailed, AlertLimits, AlertRefused, replay
from statemachine.alerts.hooks import trying
from statemachine.store import _OPEN_STORES, keys
from tests.regression.scene import BY, PRESENT_US, events, fill, opened, raw, tear, weighed
from tests.unit.processes import answer, ran, started

QUICK: Final = AlertLimits(tries_max=3, timeout_s=0.3, backoff_s=0.001, backoff_s_max=0.002, close_s_max=0.5)
PATIENT: Final = AlertLimits(tries_max=3, timeout_s=30.0, backoff_s=0.001, backoff_s_max=0.002, close_s_max=0.5)
FLUSH_S: Final = 20.0


class Hook:
    """Keeps what it is told; raises what it is given for the first calls, one each."""

    def __init__(self, *raised: BaseException) -> None:
        self.told: list[Alert] = []
        self.calls = 0
        self._raised = list(raised)

    def __call__(self, alert: Alert) -> None:
        self.calls += 1
        if self._raised:
            raise self._raised.pop(0)
        self.told.append(alert)


class Hanging:
    """Hangs until it is let go; counts how many calls there are at once."""

    def __init__(self) -> None:
        self.free = threading.Event()
        self.began = threading.Event()
        self.now = self.most = self.calls = 0
        self._guard = threading.Lock()

    def __call__(self, alert: Alert) -> None:
        with self._guard:
            self.calls += 1
            self.now += 1
            self.most = max(self.most, self.now)
        self.began.set()
        self.free.wait(60)
        with self._guard:
            self.now -= 1


@pytest.fixture
def seen() -> Iterator[list[MutableMapping[str, Any]]]:
    """What structlog is given."""
    found: list[MutableMapping[str, Any]] = []

    def processor(_logger: Any, method: str, event: MutableMapping[str, Any]) -> str:
        found.append({**event, "method": method})
        raise structlog.DropEvent

    structlog.configure(processors=[processor], cache_logger_on_first_use=False)
    yield found
    structlog.reset_defaults()


@pytest.fixture
def store(tmp_path: Path, seen: object) -> Iterator[Store]:
    with opened(tmp_path / "store") as made:
        yield made


def open_breaker(store: Store, user: str = "ann", event: str = "breaker.opened", **details: Any) -> audit.Row:
    """A commit with the row that a breaker opened."""
    draft = store.draft()
    draft.entries.append(audit.act(event, store.ids.attempt_id(), at_us=PRESENT_US, user=user, kind="breaker",
                                   details={"scope": "user", "generation": 3, "weights": [81.25], **details}, **BY))
    return store.commit(draft)[0]


def flushed(manager: ResetManager) -> AlertCounts:
    """The counts once nothing waits."""
    assert manager.alerts is not None
    assert manager.alerts.flush(FLUSH_S), manager.alerts.counts()
    return manager.alerts.counts()


# What is told

def test_a_hook_is_told_after_the_commit(store: Store) -> None:
    """The row is in the log when the hook learns of it, and the alert says which row it is."""
    stored: list[int] = []
    manager = ResetManager(store, alerts=[lambda alert: stored.append(store.audit_tail()[0] - alert.seq)])
    open_breaker(store)
    assert flushed(manager) == AlertCounts(delivered=1)
    assert stored == [0]


def test_an_alert_says_what_happened_and_leaves_out_the_person(store: Store) -> None:
    """The document has the row's place and the library's own words; the user, texts and other details only where asked for."""
    hook = Hook()
    row = open_breaker(store)
    manager = ResetManager(store, alerts=[hook])
    row = open_breaker(store, failures=3, reason="rate", rule="ann was here", retry_at="2027-02-09T08:00:00.5Z")
    flushed(manager)
    alert = hook.told[-1]
    document = alert.document()
    assert document == {
        "event": "breaker.opened", "reason": "a circuit breaker opened: resets are refused until it has cooled down",
        "seq": 2, "store_id": store.store_id, "written_at": "2027-02-09T07:00:00Z", "scope": "user", "kind": "breaker",
        "attempt_id": row.public.attempt_id,
        "details": {"generation": 3, "failures": 3, "reason": "rate", "retry_at": "2027-02-09T08:00:00.5Z"}}
    assert "ann" not in json.dumps(document)
    assert "81.25" not in json.dumps(alert.document(include_user=True))
    assert alert.document(include_user=True) == {**document, "user": "ann", "said": BY["reason"], "error": None}


@pytest.mark.parametrize(("event", "details", "told"), [
    ("breaker.opened", {}, True), ("state.unrecoverable", {}, True), ("sweep.found", {"alert": True}, True),
    ("sweep.found", {"alert": False}, False), ("sweep.found", {}, False), ("breaker.forced", {}, False),
])
def test_only_alarming_rows_are_told(store: Store, event: str, details: dict[str, Any], told: bool) -> None:
    hook = Hook()
    manager = ResetManager(store, alerts=[hook])
    open_breaker(store, event=event, **details)
    assert flushed(manager).delivered == told
    assert [alert.event for alert in hook.told] == [event] * told


def test_an_alert_names_the_attempt_that_caused_it(store: Store) -> None:
    """A row that is no attempt's own says in its details whose end it was."""
    hook = Hook()
    manager = ResetManager(store, alerts=[hook])
    draft = store.draft()
    public = audit.Public(event="breaker.opened", outcome="opened", kind="breaker")
    draft.entries.append(audit.Entry(public, audit.Personal(user="ann", details={"scope": "global", "attempt_id": "a-7"})))
    store.commit(draft)
    flushed(manager)
    assert (hook.told[0].attempt_id, hook.told[0].scope) == ("a-7", "global")


def test_resets_and_measurements_are_no_alert(store: Store) -> None:
    hook = Hook()
    manager = ResetManager(store, alerts=[hook])
    Processor(manager).process_batch(weighed("ann", day, 80.0) for day in range(3))
    manager.perform_reset("ann", **BY)
    manager.force_breaker("ann", "forced-open", **BY)
    assert flushed(manager) == AlertCounts()


def test_rows_before_the_first_manager_are_told_too(store: Store) -> None:
    """What opening the store has settled is no less alarming because no manager was there yet; it is told once."""
    open_breaker(store)
    first, second = Hook(), Hook()
    manager = ResetManager(store, alerts=[first])
    other = ResetManager(store, alerts=[second])
    assert flushed(manager).delivered == 1
    assert flushed(other).delivered == 0
    open_breaker(store)
    assert (flushed(manager).delivered, flushed(other).delivered) == (2, 1)


def test_every_hook_is_told_and_one_that_fails_keeps_no_other_from_it(store: Store) -> None:
    failing, well = Hook(*[ValueError("no")] * 99), Hook()
    manager = ResetManager(store, alerts=[failing, well], alert_limits=QUICK)
    for _ in range(3):
        open_breaker(store)
    assert flushed(manager) == AlertCounts(delivered=3, failed=3)
    assert [alert.seq for alert in well.told] == [1, 2, 3]
    assert failing.calls == 9


def test_a_user_of_whom_nothing_can_be_read_is_an_alert_and_a_row_once(tmp_path: Path, seen: object) -> None:
    """All candidates failed: the log and the hooks are told, once however many measurements follow, and again after a change."""
    path = tmp_path / "store"
    fill(path, "ann", [80.0])
    tear(path, keys.head(b"ann"), keys.version(b"ann", 1))
    hook = Hook()
    with opened(path) as store:
        manager = ResetManager(store, alerts=[hook])
        for day in (1, 2, 3):
            assert Processor(manager).process(weighed("ann", day, 80.1)).status == "quarantined"
        with pytest.raises(StoreCorrupt, match="no version of 'ann' can be read"):
            manager.recover("ann")
        assert flushed(manager).delivered == 1
        assert [e for e, *_ in events(store, "ann")] == ["reset.committed", "state.unrecoverable"]
        row = list(store.audit("ann"))[-1]
        assert (row.public.outcome, row.public.kind, row.public.base_version) == ("unrecoverable", "recovery", 1)
        assert (hook.told[0].seq, hook.told[0].scope) == (row.public.seq, "user")
        with pytest.raises(StoreCorrupt):
            manager.recover("ann", **BY)
        assert (row := list(store.audit("ann"))[-1]).personal.actor == BY["actor"], "a person who asks is on record"
        assert row.public.event == "state.unrecoverable"
        assert store.verify_audit().bad_seq is None
    with opened(path) as store:
        assert Processor(ResetManager(store)).process(weighed("ann", 4, 80.1)).status == "quarantined"
        assert len(events(store, "ann")) == 3, "another process knows it too"


def test_a_user_mended_in_between_is_told_of_again(tmp_path: Path, seen: object) -> None:
    """The same version lost once more, after it was recovered, is news."""
    path, names = tmp_path / "store", (keys.head(b"ann"), keys.version(b"ann", 1))
    fill(path, "ann", [80.0])
    for _ in range(2):
        with raw(path) as txn:
            whole = [bytes(txn.get(name) or b"") for name in names]
        tear(path, *names)
        with opened(path) as store, pytest.raises(StoreCorrupt):
            ResetManager(store).recover("ann")
        with raw(path) as txn:
            for name, value in zip(names, whole, strict=True):
                txn.put(name, value)
        tear(path, names[0])
        with opened(path) as store:
            assert ResetManager(store).recover("ann") is not None
    with opened(path) as store:
        assert [e for e, *_ in events(store, "ann")] == [
            "reset.committed", *["state.unrecoverable", "state.recovered"] * 2]


def test_an_audit_log_that_does_not_verify_is_an_alert(tmp_path: Path, seen: object) -> None:
    """`ResetManager.verify_audit` answers as the store does, and tells the hooks where the chain is broken."""
    path = tmp_path / "store"
    fill(path, "ann", [80.0])
    fill(path, "bob", [80.0])
    hook = Hook()
    with opened(path) as store:
        manager = ResetManager(store, alerts=[hook])
        assert manager.verify_audit().bad_seq is None
        assert flushed(manager) == AlertCounts()
    with raw(path) as txn:
        txn.delete(keys.audit(1))
    with opened(path) as store:
        manager = ResetManager(store, alerts=[hook])
        assert manager.verify_audit() == store.verify_audit()
        assert flushed(manager).delivered == 1
    assert (hook.told[0].event, hook.told[0].seq, hook.told[0].scope) == ("audit.broken", 1, "store")


# What a bad hook may cost

def test_a_hanging_hook_slows_no_commit(store: Store) -> None:
    """While the hook hangs in its first call a hundred commits are made, and the hook is called no second time."""
    hook = Hanging()
    manager = ResetManager(store, alerts=[hook], alert_limits=PATIENT)
    processor = Processor(manager)
    try:
        open_breaker(store)
        assert hook.began.wait(FLUSH_S)
        for day in range(100):
            assert processor.process(weighed("ann", day, 80.0)).status == "accepted"
            open_breaker(store)
        assert (hook.calls, hook.now) == (1, 1), "it never returned, and a hundred commits did"
        assert store.version_range("ann") == (1, 100)
        assert manager.health().alerts == AlertCounts(waiting=101)
        assert manager.health().ok
    finally:
        hook.free.set()
    assert flushed(manager).delivered == 101


def test_a_full_queue_drops_and_counts(store: Store, seen: list[MutableMapping[str, Any]]) -> None:
    """What the queue cannot hold is dropped, counted, noted once, and in the log; the hook is told of the rest."""
    hook = Hanging()
    manager = ResetManager(store, alerts=[hook], alert_limits=AlertLimits(queue_max=2, timeout_s=30.0))
    try:
        open_breaker(store)
        assert hook.began.wait(FLUSH_S)
        for _ in range(5):
            open_breaker(store)
        assert manager.health().alerts == AlertCounts(waiting=3, dropped=3)
    finally:
        hook.free.set()
    assert flushed(manager) == AlertCounts(delivered=3, dropped=3)
    assert store.emitter.flush()
    notes = [event for event in seen if event["event"] == "alert.dropped"]
    assert [(note["alert"], note["alert_seq"], note["queue_max"], note["method"]) for note in notes] == [
        ("breaker.opened", 4, 2, "warning")]
    assert store.audit_tail()[0] == 6


@pytest.mark.parametrize("error", [ValueError("a bug"), AlertFailed("not now"), SystemExit(3), KeyboardInterrupt()])
def test_a_hook_that_raises_is_tried_again(store: Store, error: BaseException) -> None:
    """Whatever it raises, the process included, is no more than a failed try."""
    hook = Hook(error, error)
    manager = ResetManager(store, alerts=[hook], alert_limits=QUICK)
    open_breaker(store)
    assert flushed(manager) == AlertCounts(delivered=1)
    assert hook.calls == 3


def test_a_hook_that_goes_on_failing_is_given_up_and_noted(store: Store, seen: list[MutableMapping[str, Any]]) -> None:
    """After its tries the alert is counted as failed and structlog is told which; the next alert is tried anew."""
    hook = Hook(*[ValueError("a bug")] * 3)
    manager = ResetManager(store, alerts=[hook], alert_limits=QUICK)
    open_breaker(store)
    open_breaker(store)
    assert flushed(manager) == AlertCounts(delivered=1, failed=1)
    assert (hook.calls, [alert.seq for alert in hook.told]) == (4, [2])
    assert store.emitter.flush()
    (note,) = [event for event in seen if event["event"] == "alert.failed"]
    assert (note["hook"], note["alert"], note["alert_seq"], note["method"]) == ("Hook", "breaker.opened", 1, "warning")
    assert "ValueError: a bug" in note["error"]


def test_a_refusal_is_not_tried_again(store: Store) -> None:
    hook = Hook(AlertRefused("never"))
    manager = ResetManager(store, alerts=[hook], alert_limits=QUICK)
    open_breaker(store)
    assert flushed(manager) == AlertCounts(failed=1)
    assert hook.calls == 1


def test_a_hook_that_hangs_is_given_up_and_never_called_twice_at_once(store: Store) -> None:
    """Each try is timed out; while the first call still hangs there is no second, and afterwards the hook is used again."""
    hook = Hanging()
    manager = ResetManager(store, alerts=[hook], alert_limits=QUICK)
    for _ in range(2):
        open_breaker(store)
    assert flushed(manager) == AlertCounts(failed=2)
    assert (hook.calls, hook.most) == (1, 1)
    hook.free.set()
    open_breaker(store)
    assert flushed(manager) == AlertCounts(delivered=1, failed=2)
    assert hook.most == 1


def test_waits_between_tries_grow_with_a_jitter_up_to_a_limit() -> None:
    """Bounded tries; each wait is drawn from what doubles up to the limit, so that no two processes keep step."""
    runs = []
    for _ in range(20):
        waits: list[float] = []
        policy = trying(8, 1.0, 20.0, threading.Event()).copy(sleep=waits.append)
        with pytest.raises(ValueError, match="no"):
            policy(Hook(*[ValueError("no")] * 99), Alert("x", "y", 1, "z", 0))
        assert len(waits) == 7
        for number, wait in enumerate(waits):
            assert 0.0 <= wait <= min(2.0**number, 20.0)
        runs.append(waits)
    assert runs[0] != runs[1]
    assert max(max(waits) for waits in runs) > 2.0, "they grow"


def test_a_listener_with_a_bug_fails_no_commit(store: Store) -> None:
    """What listens to a store beside the shipped dispatcher is no more trusted than a hook."""
    class Bad:
        def offer(self, row: audit.Row) -> None:
            raise ValueError(row)

        def close(self) -> None:
            pass

    store.emitter.attach(Bad())
    hook = Hook()
    manager = ResetManager(store, alerts=[hook])
    open_breaker(store)
    assert flushed(manager).delivered == 1
    assert store.audit_tail()[0] == 1
    assert store.emitter.dropped == 1


# The end

def test_closing_waits_a_bounded_time_and_says_what_was_left(tmp_path: Path, seen: list[MutableMapping[str, Any]]) -> None:
    """A hook that hangs does not keep the store open: it is another's at once, and what was not told is counted and noted."""
    hook = Hanging()
    store = opened(tmp_path / "store")
    manager = ResetManager(store, alerts=[hook], alert_limits=AlertLimits(timeout_s=30.0, close_s_max=0.2))
    for _ in range(3):
        open_breaker(store)
    assert hook.began.wait(FLUSH_S)
    closer = threading.Thread(target=store.close)
    closer.start()
    closer.join(FLUSH_S)
    try:
        assert not closer.is_alive()
        assert manager.alerts is not None
        assert manager.alerts.counts() == AlertCounts(dropped=3)
        assert [(e["alerts"], e["hook"]) for e in seen if e["event"] == "alert.undelivered"] == [(3, "Hanging")]
        with opened(tmp_path / "store") as again:
            assert again.audit_tail()[0] == 3
    finally:
        hook.free.set()
    time.sleep(0.05)
    assert hook.calls == 1, "nothing is told after the store said that it would not be"


def test_closing_tells_what_is_waiting_without_its_waits(tmp_path: Path, seen: object) -> None:
    """A hook in a long wait between two tries is tried once more at once; nothing that works is lost."""
    hooks = [Hook(ValueError("once")) for _ in range(8)]
    limits = AlertLimits(tries_max=9, backoff_s=600.0, backoff_s_max=600.0, close_s_max=FLUSH_S)
    with opened(tmp_path / "store") as store:
        manager = ResetManager(store, alerts=hooks, alert_limits=limits)
        for _ in range(3):
            open_breaker(store)
    assert manager.alerts is not None
    assert manager.alerts.counts() == AlertCounts(delivered=24)
    assert [[alert.seq for alert in hook.told] for hook in hooks] == [[1, 2, 3]] * 8


def test_closing_tries_a_failing_hook_once_more_and_not_all_its_tries(tmp_path: Path, seen: object) -> None:
    """Without the waits its tries would be a burst."""
    hook = Hook(*[ValueError("no")] * 99)
    limits = AlertLimits(tries_max=50, backoff_s=600.0, backoff_s_max=600.0, close_s_max=FLUSH_S)
    with opened(tmp_path / "store") as store:
        manager = ResetManager(store, alerts=[hook], alert_limits=limits)
        open_breaker(store)
        while not hook.calls:
            time.sleep(0.001)
    assert manager.alerts is not None
    assert manager.alerts.counts() == AlertCounts(failed=1)
    assert hook.calls <= 2


def lanes() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "resetguard-alerts"}


def test_a_queue_that_is_full_at_the_close_is_emptied_and_its_thread_ends(tmp_path: Path, seen: object) -> None:
    before, hook = lanes(), Hanging()
    store = opened(tmp_path / "store")
    manager = ResetManager(store, alerts=[hook], alert_limits=AlertLimits(queue_max=1, timeout_s=30.0, close_s_max=FLUSH_S))
    open_breaker(store)
    assert hook.began.wait(FLUSH_S)
    open_breaker(store)
    (lane,) = lanes() - before
    closer = threading.Thread(target=store.close)
    closer.start()
    assert manager.alerts is not None
    while store in _OPEN_STORES:
        time.sleep(0.001)
    time.sleep(0.1)
    hook.free.set()
    closer.join(FLUSH_S)
    lane.join(FLUSH_S)
    assert not lane.is_alive()
    assert manager.alerts.counts() == AlertCounts(delivered=2)


def test_an_alert_after_the_close_is_dropped(tmp_path: Path, seen: object) -> None:
    hook = Hook()
    with opened(tmp_path / "store") as store:
        manager = ResetManager(store, alerts=[hook])
    assert manager.alerts is not None
    manager.alerts.send(Alert("x", "y", 1, "z", 0))
    manager.alerts.close()
    assert manager.alerts.counts() == AlertCounts(dropped=1)
    assert hook.told == []


ALARMED: Final = """
import threading
from statemachine import audit
from statemachine.alerts import AlertLimits
store = opened(path)
began = threading.Event()
def hang(alert):
    began.set()
    time.sleep(3600)
manager = ResetManager(store, alerts=[hang], alert_limits=AlertLimits(timeout_s=3600.0, close_s_max=0.1))
draft = store.draft()
draft.entries.append(audit.act("breaker.opened", store.ids.attempt_id(), at_us=1, user="ann", **BY))
store.commit(draft)
began.wait()
"""


@pytest.mark.parametrize("end", ["store.close()", "", "sys.exit(0)", "del store, manager"])
def test_the_interpreter_ends_though_a_hook_hangs(tmp_path: Path, end: str) -> None:
    """With the store closed and without, a hook that never returns keeps no process alive."""
    assert ran(ALARMED + "say('told')\n" + end, tmp_path / "store") == "told"


def test_a_forked_child_ends_and_tells_nothing(tmp_path: Path) -> None:
    """A child has none of the threads: closing what it inherited returns, and its parent's hooks go on."""
    child = started(ALARMED + """
pid = os.fork()
if pid == 0:
    store.close()
    os._exit(7)
say(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), manager.alerts.counts().waiting)
""", tmp_path / "store")
    assert answer(child) == "7 1"


# The log as the record

def test_replay_tells_again_what_the_log_holds(store: Store) -> None:
    """Every alarming row from a number on, in order, to every hook; with why, where one cannot be told."""
    for number in range(4):
        open_breaker(store, event="breaker.opened" if number != 1 else "breaker.forced")
    well, failing = Hook(), Hook(AlertRefused("gone"))
    told = list(replay(store, [well, failing], 2, QUICK))
    assert [(sent.seq, sent.event, sent.hook, sent.error) for sent in told] == [
        (3, "breaker.opened", "Hook", ""), (3, "breaker.opened", "Hook", "gone"),
        (4, "breaker.opened", "Hook", ""), (4, "breaker.opened", "Hook", "")]
    assert [alert.seq for alert in well.told] == [3, 4]


# Wrong use

@pytest.mark.parametrize("limits", [{"queue_max": 0}, {"tries_max": 0}, {"timeout_s": 0.0}, {"backoff_s": 0.0},
                                    {"close_s_max": -1.0}])
def test_a_limit_must_be_above_zero(limits: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="above 0"):
        AlertLimits(**limits)


def test_what_cannot_be_called_is_no_hook(store: Store) -> None:
    with pytest.raises(InvalidInput, match="no hook"):
        ResetManager(store, alerts=["https://example.org"])  # type: ignore[list-item]


WITHOUT: Final = """
sys.modules[{0!r}] = None
for name in [name for name in sys.modules if name.startswith("statemachine")]:
    del sys.modules[name]
from statemachine import InvalidInput, ResetManager, Store
from statemachine.alerts import Webhook
"""


@pytest.mark.parametrize("module", ["tenacity", "urllib3"])
@pytest.mark.parametrize("use", ["Webhook('https://example.org')", "ResetManager(store, alerts=[print])"])
def test_without_the_extra_all_else_works_and_alerts_name_it(tmp_path: Path, module: str, use: str) -> None:
    """Importing, opening and a manager without hooks need nothing of it."""
    said = ran(f"""
import subprocess
program = '''{WITHOUT.format(module)}
with Store.open(sys.argv[1]) as store:
    ResetManager(store).health()
    try:
        {use}
    except InvalidInput as error:
        print(error)
'''
command = [sys.executable, "-c", "import sys" + program, str(path)]
print(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
""", tmp_path / "store")
    assert said.endswith(f"needs {module}, which is not installed: pip install 'resetguard[alerts]'")
