"""What driving the models on the library found; each test names what went wrong before."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from statemachine import Measurement, Processor, ResetManager, Store, StoreCorrupt, StoreLimits, VersionPruned
from statemachine.state import user_key
from statemachine.store import keys

START = datetime(2026, 1, 1, tzinfo=UTC)
BY: dict[str, Any] = {"reason": "a test", "actor": "tests"}
USER = user_key("u")


def weighed(day: float, kg: float = 80.0) -> Measurement:
    return Measurement("u", START + timedelta(days=day), kg, "scale")


def flipped(store: Store, key: bytes) -> bytes:
    """Change one bit of a record; what it was before the library next sees it."""
    with store.engine.turn(), store.engine.write() as txn:
        value = txn.get(key) or b""
        damaged = value[:-1] + bytes((value[-1] ^ 1,))
        txn.put(key, damaged)
    return damaged


def test_a_head_that_is_damaged_twice_is_kept_twice(tmp_path: Path) -> None:
    """The bytes of the second damaged head overwrote those of the first, which somebody may still want to look into.

    Post-mortem: they were kept under the next version, and a head that is made anew from a whole log gives out none.
    """
    with Store.open(tmp_path / "s") as store:
        manager = ResetManager(store)
        for day in range(3):
            Processor(manager).process(weighed(day))
        damaged = []
        for _ in range(2):
            damaged.append(flipped(store, keys.head(USER)))
            assert manager.recover("u") is not None
            flipped(store, keys.head(USER))  # another damage, of another head
            assert manager.recover("u") is not None
        kept = [value for _, value in store.engine.scan(keys.DAMAGED, keys.after(keys.DAMAGED))]
        assert len(kept) == 4
        assert set(damaged) <= set(kept)


def on_probation(manager: ResetManager) -> int:
    """Two measurements and a reset; the version before it, which is the last known good."""
    for day in range(2):
        Processor(manager).process(weighed(day))
    manager.restore("u", to_version=1, **BY)  # ends the probation of the first reset
    manager.perform_reset("u", operations=[("off", lambda state: state.replace(x=(120.0, 0.0)))], **BY)
    return manager.last_known_good("u")


def test_the_last_known_good_is_restored_though_the_log_has_lost_it(tmp_path: Path) -> None:
    """The version before a reset under probation was named as the last known good, and could not be restored.

    Post-mortem: its state is pinned in a record of its own, away from the user's, and a restore read the log alone.
    """
    with Store.open(tmp_path / "s") as store:
        manager = ResetManager(store)
        good = on_probation(manager)
        wanted = store.load("u", good)
        flipped(store, keys.version(USER, good))
        with pytest.raises(StoreCorrupt):
            store.load("u", good)
        manager.restore("u", to_version=good, **BY)
        head = store.load("u")
        assert head is not None
        assert wanted is not None
        assert store.estimator.encode(head.state) == store.estimator.encode(wanted.state)


def test_the_last_known_good_is_restored_though_it_was_pruned(tmp_path: Path) -> None:
    """As where its record is damaged; a version that is not pinned stays pruned."""
    with Store.open(tmp_path / "s", limits=StoreLimits(versions_max=2)) as store:
        manager = ResetManager(store)
        good = on_probation(manager)
        for _ in range(2):
            manager.perform_reset("u", operations=[("on", lambda state: state.replace(x=(125.0, 0.0)))], **BY)
        assert manager.last_known_good("u") == good < store.version_range("u")[0]
        with pytest.raises(VersionPruned):
            manager.restore("u", to_version=good - 1, **BY)
        assert manager.restore("u", to_version=good, **BY).outcome == "committed"


def test_nothing_is_restored_from_before_the_first_state(tmp_path: Path) -> None:
    """The pin of a first state says version 0 and holds nothing: asked for that, it was decoded."""
    with Store.open(tmp_path / "s") as store:
        manager = ResetManager(store)
        Processor(manager).process(weighed(0))
        with pytest.raises(VersionPruned):
            manager.restore("u", to_version=0, **BY)


def test_a_damaged_pin_restores_nothing(tmp_path: Path) -> None:
    """The error is still that of the log."""
    with Store.open(tmp_path / "s") as store:
        manager = ResetManager(store)
        good = on_probation(manager)
        flipped(store, keys.version(USER, good))
        flipped(store, keys.pin(USER))
        with pytest.raises(StoreCorrupt, match=f"version {good}"):
            manager.restore("u", to_version=good, **BY)
