"""Fencing: what a fenced owner held is free at once, and nothing that it does later moves anything (INV-06, INV-12)."""

from __future__ import annotations

import fcntl
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import lmdb
import pytest
from typer.testing import CliRunner

from statemachine import (
    BreakerOpen,
    BreakerPolicy,
    GlobalBreakerPolicy,
    MutationFailed,
    ResetManager,
    Store,
    StoreUnavailable,
    codec,
)
from statemachine.breaker import Breaker
from statemachine.cli import app
from statemachine.marks import WAITING, Mark
from statemachine.store import intents, keys
from statemachine.store.fencing import fence
from tests.regression.scene import BY, broken, fill, opened, tear
from tests.unit.doubles import Commit, Disk
from tests.unit.processes import answer, line, started

pytestmark = pytest.mark.usefixtures("no_events")

OWN: Final = BreakerPolicy(failures_max=1, cooldown_s=0.0)
COMMON: Final = GlobalBreakerPolicy(users_max=1, cooldown_s=0.0)
SIDE: Final[dict[str, dict[str, Any]]] = {
    "user": {"breaker": OWN}, "global": {"global_breaker": COMMON}, "both": {"breaker": OWN, "global_breaker": COMMON},
}
"""The policies by which a failed reset of ann opens her breaker, the global one, or both."""

HOLDER: Final = """
with Store.open(path) as store:
    policies = {"breaker": BreakerPolicy(failures_max=1, cooldown_s=0.0)} if sys.argv[2] != "global" else {}
    if sys.argv[2] != "user":
        policies["global_breaker"] = GlobalBreakerPolicy(users_max=1, cooldown_s=0.0)
    manager = ResetManager(store, **policies)
    def slow(state):
        say(store.committer.owner)
        heard()
        return state
    try:
        manager.perform_reset("ann", operations=[("slow", slow)], **BY)
    except StoreUnavailable as error:
        say("fenced" in str(error))
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    for user in ("ann", "bob"):
        fill(tmp_path / "store", user, [80.0])
    return tmp_path / "store"


def fail(manager: ResetManager, user: str = "ann") -> None:
    with pytest.raises(MutationFailed):
        manager.perform_reset(user, operations=[("break", broken)], **BY)


def modes(manager: ResetManager) -> list[tuple[str, str]]:
    return [(found.mode, found.probe) for found in (manager.breaker("ann"), manager.breaker(None))]


@pytest.mark.parametrize("scope", sorted(SIDE))
def test_the_probe_of_a_stopped_process_is_given_back_when_it_is_fenced(path: Path, scope: str) -> None:
    """By the command; the next attempt probes and closes the breaker, and what wakes up later moves nothing."""
    with Store.open(path) as store:
        fail(ResetManager(store, **SIDE[scope]))
    holder = started(HOLDER, path, scope)
    owner = line(holder)
    holder.send_signal(signal.SIGSTOP)
    try:
        with Store.open(path) as store, pytest.raises(BreakerOpen, match="prob"):
            ResetManager(store, **SIDE[scope]).perform_reset("ann", **BY)
        arguments = ["recover", "--store", str(path), "--fence", owner, "--actor", "ops", "--reason", "it hangs"]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
        with Store.open(path) as store:
            manager = ResetManager(store, **SIDE[scope])
            assert ("half-open", "") in modes(manager)
            assert manager.perform_reset("ann", **BY).version == 2
            assert modes(manager) == [("closed", "")] * 2
            before = manager.breaker("ann"), manager.breaker(None)
    finally:
        holder.send_signal(signal.SIGCONT)
    assert answer(holder, "go on\n") == "True"
    with Store.open(path) as store:
        manager = ResetManager(store)
        assert (manager.breaker("ann"), manager.breaker(None)) == before
        assert [row.public.outcome for row in store.audit("ann")].count("committed") == 2
        assert list(store.engine.scan(keys.INTENT, keys.after(keys.INTENT))) == []
        assert store.verify_audit().bad_seq is None


HELD: Final = "0" * 31 + "1"


@pytest.fixture
def stopped(path: Path) -> Iterator[None]:
    """Owner 90 lives, as far as its lock tells."""
    with (path / "owners" / "90").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def lease(store: Store, owner: int, user: str, attempt_id: str, *, common: bool = True) -> None:
    """Another owner, which holds the probe of a user and the global one, as an attempt of its leases them."""
    draft = store.draft()
    draft.put(keys.owner(owner), bytes(8))
    mark = Mark(WAITING, "reset.interrupted", "interrupted", attempt_id, user, "admin", "admin", 1, 3, 0)
    intents.put(draft, owner, mark)
    for key in (keys.breaker(user.encode()), keys.GLOBAL_BREAKER)[:1 + common]:
        draft.put(key, codec.pack(Breaker("half-open", 3, openings=1, probe=attempt_id, probe_owner=owner)))
    store.commit(draft)


@pytest.mark.usefixtures("stopped")
def test_the_probes_of_the_fenced_owner_alone_are_given_back(path: Path) -> None:
    """Each a generation on, and the owner's key goes with them; another's probe stays, and the intent until it is settled."""
    with opened(path) as store:
        lease(store, 90, "ann", HELD)
        lease(store, 91, "bob", "0" * 31 + "2", common=False)
        (path / "owners" / "91").touch()
        with (path / "owners" / "91").open() as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            fence(store, 90, **BY)
        manager = ResetManager(store)
        for free in (manager.breaker("ann"), manager.breaker(None)):
            assert (free.mode, free.generation, free.probe, free.probe_owner) == ("half-open", 4, "", 0)
        assert (manager.breaker("bob").generation, manager.breaker("bob").probe_owner) == (3, 91)
        assert store.engine.get(keys.owner(90)) is None
        assert store.engine.get(keys.intent(HELD)) is not None


@pytest.mark.parametrize(("torn", "free"), [(keys.GLOBAL_BREAKER, "ann"), (keys.breaker(b"ann"), None)])
@pytest.mark.usefixtures("stopped")
def test_a_breaker_that_cannot_be_read_keeps_nobody_from_being_fenced(path: Path, torn: bytes, free: str | None) -> None:
    with opened(path) as store:
        lease(store, 90, "ann", HELD)
    tear(path, torn)
    with opened(path) as store:
        fence(store, 90, **BY)
        assert ResetManager(store).breaker(free).probe == ""


@pytest.mark.usefixtures("stopped")
def test_a_fence_that_is_not_committed_gives_nothing_back(path: Path) -> None:
    """Owner and probes are one transaction."""
    disk = Disk()
    with opened(path, opener=disk) as store:
        lease(store, 90, "ann", HELD)

        def ill(_: Commit) -> None:
            raise lmdb.Error("ill")

        disk.once(ill)
        with pytest.raises(StoreUnavailable):
            fence(store, 90, **BY)
        assert store.engine.get(keys.owner(90)) is not None
        assert modes(ResetManager(store)) == [("half-open", HELD)] * 2
