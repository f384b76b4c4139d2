"""The check that ends every test of this folder finds a log that cannot have been, and exempts what cannot be read."""

from __future__ import annotations

from pathlib import Path

import pytest

from chaos.conform.monitor import Rejection
from statemachine import ResetManager, Store, audit
from statemachine.store.engine import DATA
from tests.chaos.conftest import rejected

BY = {"actor": "ops@example.org", "reason": "a planted row"}


@pytest.mark.damages
def test_a_log_that_cannot_have_been_is_found(tmp_path: Path) -> None:
    """Its chain is whole; but an owner goes on after it was fenced."""
    for name, fenced in (("good", 999), ("bad", 1)):
        with Store.open(tmp_path / name) as store:
            draft = store.draft()
            draft.entries.append(audit.act("owner.fenced", store.ids.attempt_id(), at_us=store.clock.now_us(),
                                           details={"fenced": fenced}, **BY))
            store.commit(draft)
            ResetManager(store).force_breaker(None, "forced-open", **BY)
            assert store.verify_audit().bad_seq is None
    assert rejected(tmp_path) == {"bad": Rejection(2, "INV-06", "owner 1 was fenced before, and a fenced owner commits nothing")}


@pytest.mark.damages
def test_a_store_that_does_not_open_has_no_log_to_judge(tmp_path: Path) -> None:
    Store.open(tmp_path / "store").close()
    (tmp_path / "store" / DATA).write_bytes(b"no database")
    assert rejected(tmp_path) == {}
