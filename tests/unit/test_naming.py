"""What a key is called in an error, and the command that is named there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from statemachine import ResetManager, StoreCorrupt, codec, naming
from statemachine.cli import app
from statemachine.store import keys
from tests.regression.scene import BY, fill, opened, refused, tear

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("no_events")
ADA = b"ada"
RESTORE = "`resetguard restore-store`"


@pytest.mark.parametrize(("key", "named", "remedy"), [
    (keys.head(ADA), "the head of 'ada'", "`resetguard recover --user ada`"),
    (keys.head(b"a\xffb"), r"the head of 'a\\xffb'", r"`resetguard recover --user 'a\xffb'`"),
    (keys.head(b"a b"), "the head of 'a b'", "`resetguard recover --user 'a b'`"),
    (keys.version(ADA, 7), "version 7 of 'ada'", "`resetguard doctor`"),
    (keys.identity(ADA, -5, b"\0" * 16), "a measurement of 'ada'", RESTORE),
    (keys.aside(ADA), "the count of what is kept aside of 'ada'", "`resetguard rebuild ada --from FILE`"),
    (keys.breaker(ADA), "the breaker of 'ada'", "`resetguard breaker release ada`"),
    (keys.pin(ADA), "the before-image of 'ada'", "`resetguard rebuild ada --from FILE`"),
    (keys.swept(ADA), "what sweeps noted of 'ada'", RESTORE),
    (keys.audit(12), "audit row 12", RESTORE), (keys.owner(3), "owner 3", RESTORE),
    (keys.META, "the store's own record", RESTORE),
    (keys.CHAIN, "the end of the audit log", "`resetguard recover`"),
    (keys.BUDGET, "the budget of resets a minute", "`resetguard breaker release --global`"),
    (keys.GLOBAL_BREAKER, "the global breaker", "`resetguard breaker release --global`"),
    (keys.ROLLOUT, "the rollout", "`resetguard rollout set"),
    (keys.cursor(b"\1" * 16), "the cursor of a source", RESTORE),
    (keys.unreadable(4, 2), "an unreadable row of source 4", RESTORE),
    (keys.intent("019b8e5c-3f2a-7c01-8000-000000000001"), "the intent of an attempt", RESTORE),
])
def test_an_error_names_the_record_in_words_and_the_command(key: bytes, named: str, remedy: str) -> None:
    torn = bytearray(codec.seal(key, b"content"))
    torn[-1] ^= 1
    error = refused(StoreCorrupt, codec.unseal, key, bytes(torn))
    assert error.problem == f"{named} fails its checksum"
    assert str(error).startswith(f"{error.problem}; ")
    assert remedy in str(error)


@pytest.mark.parametrize("key", [b"ada\0z", b"ada\0g", b"ada\0h", b"\0s", b"\0v", b"ada", b""])
def test_a_key_of_no_kind_is_shown_as_it_is(key: bytes) -> None:
    assert naming.record(key) == f"the record at key {key!r}"
    assert RESTORE in naming.remedy(key)


def test_a_reset_of_a_user_whose_head_is_torn_names_the_command_that_mends_it(tmp_path: Path) -> None:
    path = tmp_path / "store"
    fill(path, "ada", [80.0, 80.1])
    tear(path, keys.head(ADA))
    by = ["--actor", "a", "--reason", "r", "--store", str(path)]
    reset = CliRunner().invoke(app, ["reset", "ada", *by])
    assert reset.exit_code == 3
    assert "the head of 'ada' fails its checksum; `resetguard recover --user ada`" in reset.stderr
    assert CliRunner().invoke(app, ["recover", "--user", "ada", *by]).exit_code == 0
    assert CliRunner().invoke(app, ["reset", "ada", *by]).exit_code == 0


def test_where_nothing_can_be_read_the_error_does_not_advise_to_walk_back(tmp_path: Path) -> None:
    path = tmp_path / "store"
    fill(path, "ada", [80.0, 80.1])
    tear(path, keys.head(ADA), keys.version(ADA, 1), keys.version(ADA, 2))
    with opened(path) as store:
        for call in (store.load, ResetManager(store).last_known_good):
            assert "recover --user" not in str(refused(StoreCorrupt, call, "ada"))
        assert "restore the store from a backup" in str(refused(StoreCorrupt, lambda: ResetManager(store).recover("ada", **BY)))
