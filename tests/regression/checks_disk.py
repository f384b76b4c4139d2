"""Those failures of an earlier system that were about what lies on the disk: 1-5, 7, 8, 17-19, 23, 24."""

from __future__ import annotations

import subprocess
import sys
import threading
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Self

import lmdb
import numpy as np

from statemachine import (
    ConflictError,
    EstimatorState,
    InvalidInput,
    MutationFailed,
    ResetManager,
    Store,
    StoreCorrupt,
    StoreUnavailable,
)
from statemachine.codec import seal, unseal
from statemachine.recovery import Recovered
from statemachine.store import keys
from tests.regression.scene import (
    BY,
    CountedIds,
    Faulty,
    broken,
    events,
    fill,
    head,
    opened,
    raw,
    records,
    refused,
    states,
    tear,
    weighed,
    working,
)

ROOT: Final = Path(__file__).parents[2]


def check_01(path: Path) -> None:
    before = fill(path, "u", [80.0, 80.2, 80.1])
    tear(path, keys.head(b"u"))
    with working(path) as (store, _, processor):
        assert store.estimator.encode(head(store, "u")) == before[-1]
        outcome = processor.process(weighed("u", 3, 80.3))
        assert (outcome.status, outcome.version, outcome.reset) == ("accepted", 4, None)
        assert states(store, "u")[:3] == before
        assert [kind for _, kind, _ in events(store, "u")] == ["initial", "recovery"]
    with raw(path) as txn:
        txn.delete(keys.head(b"u"))
    with working(path) as (store, _, processor):
        assert processor.process(weighed("u", 4, 80.2)).version == 5
        assert states(store, "u")[:3] == before


def check_02(path: Path) -> None:
    fill(path, "u", [80.0, 80.2, 80.1])
    with working(path) as (store, manager, _):
        manager.perform_reset("u", **BY)
        before = head(store, "u")
    tear(path, keys.head(b"u"))
    with working(path) as (store, manager, _):
        recovered = manager.recover("u")
        assert recovered is not None
        assert recovered.left_out == 0
        after = head(store, "u")
        assert after == before
        assert type(after.adaptation.reset_at) is datetime
        assert after.adaptation.reset_at.utcoffset() is not None
        assert [type(pair) for pair in after.buffer] == [tuple] * 3
        assert [(type(at_us), type(kg)) for at_us, kg in after.buffer] == [(int, float)] * 3
        assert after.P.dtype == np.float64
        assert after.P.shape == (2, 2)
        assert store.validator.validate(after) == ()
        assert manager.restore("u", to_version=1, **BY).version == 5


def check_03(path: Path) -> None:
    before = fill(path, "u", [80.0, 80.2])
    ids = CountedIds()
    with working(path, ids=ids) as (store, manager, _):
        stored = records(store, "u")
        operations = [("move", lambda s: s.replace(x0=90.0)), ("break", broken)]
        refused(MutationFailed, manager.perform_reset, "u", operations=operations, **BY)
        assert records(store, "u") == stored
        # The second failure comes when the new version is already in the write transaction.
        ids.salt_error = OSError("no entropy")
        refused((OSError, StoreUnavailable), manager.perform_reset, "u", **BY)
        assert records(store, "u") == stored
    with opened(path, ids=ids) as store:
        assert records(store, "u") == stored
        assert states(store, "u") == before
        assert [outcome for _, _, outcome in events(store, "u")] == ["committed", "rolled_back", "rolled_back"]


def check_04(path: Path) -> None:
    estimator = Faulty()
    estimator.failing_kg = {79.0}
    with working(path, estimator=estimator) as (_, manager, processor):
        for user in ("ann", "bob"):
            for day in range(3):
                processor.process(weighed(user, day, 80.0 + day / 10))
        transaction = manager.transaction("ann", **BY)
        transaction.begin()
        transaction.apply("move", lambda s: s.replace(x0=90.0))
        assert processor.process(weighed("bob", 3, 80.4)).version == 4
        manager.perform_reset("bob", **BY)
        transaction.roll_back()
        batch = [weighed("bob", 4, 80.3), weighed("ann", 40, 79.0), weighed("bob", 5, 80.2), weighed("cat", 5, 60.0)]
        outcomes = processor.process_batch(batch)
        assert [outcome.reset.outcome for outcome in outcomes if outcome.reset] == ["rolled_back", "committed"]
    with opened(path, estimator=estimator) as store:
        assert [info.kind for info in store.history("bob")] == ["initial", *["measurement"] * 3, "admin", *["measurement"] * 2]
        assert head(store, "ann").kalman.x0 < 85.0
        assert head(store, "cat").kalman.x0 == 60.0


def check_05(path: Path) -> None:
    fill(path, "u", [80.0, 80.2])
    with working(path) as (store, manager, processor):
        state, stored = head(store, "u"), records(store, "u")
        for array in (state.x, state.P, state.Q):
            refused(ValueError, array.__setitem__, 0, 99.0)
        refused(AttributeError, setattr, state, "buffer", ())
        refused(AttributeError, setattr, state.kalman, "x0", 99.0)
        assert type(state.buffer) is tuple
        assert records(store, "u") == stored
        P = np.diag([1.0, 0.01])  # noqa: N806 - the literature's letter
        with manager.transaction("u", **BY) as tx:
            tx.apply("own array", lambda s: s.replace(P=P))
            P[:] = np.nan
            tx.commit()
        P[:] = 5.0
        assert np.array_equal(head(store, "u").P, np.diag([1.0, 0.01]))
        assert processor.process(weighed("u", 2, 80.1)).status == "accepted"


def check_07(path: Path) -> None:
    names = ["../escape", "..", "/etc/passwd", "a/b", "C:\\x", "%2e%2e", "\x01", "日本", "u\n"]
    above = set(path.parent.iterdir())
    for name in names:
        fill(path, name, [80.0, 80.2])
    with opened(path) as store:
        assert sorted(store.users()) == sorted(names)
    assert {child for child in path.parent.iterdir() if child != path} == above
    assert {child.name for child in path.iterdir()} == {"data.mdb", "lock.mdb", "owners", "writer.lock"}
    for name in ("", "u\0s", "x" * 256, "\ud800"):
        refused(InvalidInput, weighed, name, 0, 80.0)


def _changed_everywhere(s: EstimatorState) -> EstimatorState:
    a = s.adaptation
    return s.replace(
        x=[90.0, 0.1], P=[[2.0, 0.1], [0.1, 0.1]], Q=np.diag([0.1, 2e-4]), R=0.3, at_us=s.kalman.at_us + 1, dt_days_max=20.0,
        buffer=(),
        adaptation=type(a)(a.reset_at, 7, 0.5, a.decay, a.rate, 2.0, 3.0, 0.9, 4, a.until_us + 1),
        counters=type(s.counters)(8, 8, 8, 8),
    )


def check_08(path: Path) -> None:
    fill(path, "u", [80.0, 80.2, 80.1])
    with working(path) as (store, manager, _):
        before, stored = head(store, "u"), records(store, "u")
        with manager.transaction("u", **BY) as tx:
            here = tx.checkpoint(tx.state, "before the risky part")
            tx.apply("change all", _changed_everywhere)
            assert tx.state.kalman != before.kalman
            tx.roll_back_to(here)
            assert tx.state == before
        with manager.transaction("u", **BY) as tx:
            tx.apply("change all", _changed_everywhere)
        assert records(store, "u") == stored
    with opened(path) as store:
        assert head(store, "u") == before


_WORKER: Final = """
import sys
from tests.regression.checks_disk import count_up
from tests.regression.scene import opened
with opened(sys.argv[1]) as store:
    print(count_up(store, int(sys.argv[2])))
"""


def count_up(store: Store, times: int) -> int:
    """Raise a counter of user "u" so many times, again after each conflict; how many conflicts there were."""
    manager, conflicts = ResetManager(store), 0
    for _ in range(times):
        while True:
            try:
                manager.perform_reset("u", operations=[("count", _counted)], **BY)
                break
            except ConflictError:
                conflicts += 1
    return conflicts


def _counted(s: EstimatorState) -> EstimatorState:
    return s.replace(counters=type(s.counters)(s.counters.x + 1))


def check_17(path: Path) -> None:
    fill(path, "u", [80.0])
    with working(path) as (store, manager, _):
        first, second = manager.transaction("u", **BY), manager.transaction("u", **BY)
        for transaction in (first, second):
            transaction.begin()
            transaction.apply("count", _counted)
        assert first.commit().outcome == "committed"
        refused(ConflictError, second.commit)
        assert second.result is not None
        assert second.result.outcome == "conflicted"
        threads = [threading.Thread(target=count_up, args=(store, 10)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert head(store, "u").counters.x == 1 + 1 + 20
    command = [sys.executable, "-c", _WORKER, str(path), "20"]
    children = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for _ in range(2)]
    for child in children:
        told, _ = child.communicate(timeout=60)
        assert child.returncode == 0, told.decode()
    with opened(path) as store:
        assert head(store, "u").counters.x == 1 + 1 + 20 + 40
        assert len(list(store.history("u"))) == 1 + 1 + 20 + 40


def check_18(path: Path) -> None:
    fill(path, "u", [80.0, 80.2])
    with working(path) as (store, manager, _):
        manager.perform_reset("u", **BY)
        refused(MutationFailed, manager.perform_reset, "u", operations=[("break", broken)], **BY)
        refused(ConflictError, manager.perform_reset, "u", expect_version=1, **BY)
        manager.restore("u", to_version=1, **BY)
    with opened(path) as store:
        rows = list(store.audit("u"))
        assert [row.public.outcome for row in rows] == ["committed", "committed", "rolled_back", "conflicted", "committed"]
        assert [row.public.seq for row in rows] == [1, 2, 3, 4, 5]
        assert (rows[2].personal.actor, rows[2].personal.reason) == (BY["actor"], BY["reason"])
        assert "the buffer is gone" in rows[2].personal.error
        assert [operation.name for operation in rows[1].personal.operations] == ["replace covariance", "restart adaptation"]
        assert rows[1].personal.delta_P is not None
        found = store.inspect(rows[2].public.attempt_id)
        assert found is not None
        assert found.hash == rows[2].hash
        assert store.verify_audit().problem == ""
    with raw(path) as txn:  # a changed row whose checksum is right
        at = keys.audit(3)
        content = unseal(at, bytes(txn.get(at) or b""))
        txn.put(at, seal(at, content.replace(b"rolled_back", b"rolled_forw")))
    with opened(path) as store:
        assert store.verify_audit().bad_seq == 4


class _HeadUnreadable:
    """A transaction that cannot read one key, as over a failing disk."""

    def __init__(self, txn: Any, key: bytes) -> None:
        self._txn = txn
        self._key = key

    def __getattr__(self, name: str) -> Any:
        return getattr(self._txn, name)

    def __enter__(self) -> Self:
        self._txn.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._txn.__exit__(*error)

    def get(self, key: bytes) -> Any:
        if key == self._key:
            message = "mdb_get: Input/output error"
            raise lmdb.Error(message)
        return self._txn.get(key)


class _FailingDisk:
    """An environment whose read transactions cannot read `key` while it is set."""

    def __init__(self, env: lmdb.Environment) -> None:
        self._env = env
        self.key: bytes | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._env, name)

    def begin(self, *, write: bool = False) -> Any:
        txn = self._env.begin(write=write)
        return txn if self.key is None or write else _HeadUnreadable(txn, self.key)


def check_19(path: Path) -> None:
    before = fill(path, "u", [80.0, 80.2, 80.1])
    disks: list[_FailingDisk] = []

    def opener(*args: Any, **settings: Any) -> Any:
        disks.append(_FailingDisk(lmdb.open(*args, **settings)))
        return disks[-1]

    with working(path, opener=opener) as (store, _, processor):
        stored = records(store, "u")
        disks[-1].key = keys.head(b"u")
        for call in (lambda: store.load("u"), lambda: processor.process(weighed("u", 3, 80.3)),
                     lambda: processor.process_batch([weighed("u", 3, 80.3)])):
            refused(StoreUnavailable, call)
        disks[-1].key = None
        assert records(store, "u") == stored
    with opened(path) as store:
        newest = [keys.version(b"u", version) for version in (1, 2, 3)]
    tear(path, keys.head(b"u"), *newest)
    with working(path) as (store, manager, processor):
        stored = records(store, "u")
        refused(StoreCorrupt, store.load, "u")
        outcome = processor.process(weighed("u", 3, 80.3))
        assert (outcome.status, outcome.reset) == ("quarantined", None)
        assert [kept.user for kept in store.quarantine()] == ["u"]
        refused(StoreCorrupt, manager.perform_reset, "u", measurement=weighed("u", 3, 80.3), kind="initial", **BY)
        assert records(store, "u") == stored
    tear(path, keys.head(b"u"), *newest)  # flipped back
    with opened(path) as store:
        assert states(store, "u") == before


def check_23(path: Path) -> None:
    weights = [80.0, 80.2, 80.1]
    before = fill(path, "u", weights)
    with working(path) as (store, manager, processor):
        identities = {key: value for key, value in records(store, "u").items() if key.startswith(b"u\0i")}
        assert manager.restore("u", to_version=1, expect_version=3, **BY).version == 4
        assert states(store, "u") == [*before, before[0]]
        assert {key: value for key, value in records(store, "u").items() if key.startswith(b"u\0i")} == identities
        assert [info.admitted for info in store.history("u")] == [1, 1, 1, 0]
        assert list(store.quarantine()) == []
        for day, kg in enumerate(weights):
            assert processor.process(weighed("u", day, kg)).status in {"known", "duplicate"}
        assert {outcome.status for outcome in processor.process_batch(weighed("u", d, kg) for d, kg in enumerate(weights))} <= {
            "known", "duplicate"}
        assert len(list(store.history("u"))) == 4
        assert processor.process(weighed("u", 3, 80.3)).version == 5


def check_24(path: Path) -> None:
    before = {user: fill(path, user, [80.0, 80.2, 80.1, 80.3, 80.2]) for user in ("ann", "bob", "cat")}
    for key in (b"ann", b"bob", b"cat"):
        tear(path, keys.head(key), keys.version(key, 5))
    with working(path) as (store, manager, processor):
        assert refused(StoreCorrupt, store.load, "ann").newest_good == 4
        good = store.newest_good("ann")
        assert good is not None
        assert (good.version, store.estimator.encode(good.state)) == (4, before["ann"][3])
        recovered = manager.recover("ann")
        assert recovered == Recovered("ann", 4, 6, 1, recovered.attempt_id if recovered else "")
        assert manager.recover("ann") is None
        kept = [(k.user, k.reason) for k in store.quarantine()]
        assert kept == [("ann", "its version was damaged; the state went back to version 4")]
        for user in ("ann", "bob"):  # bob is mended by the measurement that meets the damage
            outcome = processor.process(weighed(user, 5, 80.4))
            assert (outcome.status, outcome.version) == ("accepted", 7)
            loaded = store.load(user, 6)
            assert loaded is not None
            assert store.estimator.encode(loaded.state) == before[user][3]
            refused(StoreCorrupt, store.load, user, 5)
        outcomes = processor.process_batch([weighed("bob", 6, 80.3), weighed("cat", 5, 80.4), weighed("cat", 6, 80.3)])
        assert [(outcome.status, outcome.version) for outcome in outcomes] == [("accepted", 8), ("accepted", 7), ("accepted", 8)]

