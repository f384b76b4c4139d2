"""Breaker records that cannot be read: every reset waits, and the operator's word mends them; what else `doctor` names helps."""

from __future__ import annotations

import hashlib
import json
import shlex
from pathlib import Path
from typing import Any, Final

import pytest
from typer.testing import CliRunner

from statemachine import BreakerOpen, BreakerPolicy, MutationFailed, ResetManager, Store, StoreCorrupt, StoreForeign, codec
from statemachine.breaker import Breaker, Budget
from statemachine.cli import app
from statemachine.store import keys
from statemachine.store.careful import Finding
from statemachine.store.checkup import Checkup
from tests.regression.scene import BY, broken, fill, opened, raw, refused, tear

pytestmark = pytest.mark.usefixtures("no_events")

WHOSE: Final = [("ann", keys.breaker(b"ann")), (None, keys.GLOBAL_BREAKER)]
BY_HAND: Final = ["--actor", "ops@example.org", "--reason", "a bad block"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Two users; the breaker of one, and the global one, have a record."""
    for user in ("ann", "bob"):
        fill(tmp_path / "store", user, [80.0, 80.1])
    with opened(tmp_path / "store") as store:
        refused(MutationFailed, ResetManager(store).perform_reset, "ann", operations=[("break", broken)], **BY)
    return tmp_path / "store"


def findings(path: Path) -> list[Finding]:
    with Store.open(path, readonly=True) as store:
        return list(Checkup(store).run())


def run(path: Path, *arguments: str, code: int = 0) -> str:
    """What the command prints, once it has ended with `code`."""
    result = CliRunner().invoke(app, [*arguments, "--store", str(path)])
    assert result.exit_code == code, result.output
    return result.stdout + result.stderr


@pytest.mark.parametrize(("whose", "key"), WHOSE)
@pytest.mark.parametrize("word", [None, "forced-open", "forced-closed", "metrics-only"])
def test_the_operator_s_word_replaces_a_record_that_cannot_be_read(path: Path, whose: str | None, key: bytes, word: Any) -> None:
    """Its bytes are in the row, or apart for the global one; resets go by what was said, and the store is sound."""
    tear(path, key)
    with opened(path) as store:
        manager, torn = ResetManager(store), store.engine.get(key)
        assert torn is not None
        refused(StoreCorrupt, manager.perform_reset, "ann", **BY)
        after = manager.release_breaker(whose, **BY) if word is None else manager.force_breaker(whose, word, **BY)
        assert manager.breaker(whose) == after == Breaker(mode=word or "closed", generation=store.clock.now_us() + 1)
        row = [row for row in store.audit() if row.public.event in ("breaker.forced", "breaker.released")][-1]
        assert row.personal.details == {
            "scope": "global" if whose is None else "user", "from": "damaged", "to": after.mode, "generation": after.generation,
            **({"damaged": torn.hex()} if whose else {"damaged_sha256": hashlib.sha256(torn).hexdigest()})}
        assert store.engine.get(keys.damaged(b"", after.generation)) == (None if whose else torn)
        if word == "forced-open":
            refused(BreakerOpen, manager.perform_reset, "ann", **BY)
        else:
            assert manager.perform_reset("ann", **BY).outcome == "committed"
        assert store.verify_audit().problem == ""
    assert findings(path) == []


def test_every_byte_of_the_record_may_be_the_damaged_one(path: Path) -> None:
    with opened(path) as store:
        whole = store.engine.get(keys.GLOBAL_BREAKER)
        assert whole is not None
    for place in range(len(whole)):
        with raw(path) as txn:
            txn.put(keys.GLOBAL_BREAKER, whole[:place] + bytes((whole[place] ^ 1,)) + whole[place + 1:])
        with opened(path) as store:
            assert ResetManager(store).release_breaker(None, **BY).mode == "closed"


def test_a_mode_that_an_earlier_version_stored_is_mended_too(path: Path) -> None:
    """Its checksum is right, and it does not decode."""
    with opened(path) as store:
        draft = store.draft()
        draft.put(keys.GLOBAL_BREAKER, codec.pack(Breaker(mode="forced_open", generation=7)))  # type: ignore[arg-type]
        store.commit(draft)
        manager = ResetManager(store)
        refused(StoreCorrupt, manager.perform_reset, "ann", **BY)
        manager.release_breaker(None, **BY)
        assert manager.perform_reset("ann", **BY).outcome == "committed"


def test_a_record_of_a_newer_program_is_not_replaced(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no damage: the program that wrote it can read it."""
    with opened(path) as store:
        draft = store.draft()
        with monkeypatch.context() as newer:
            newer.setattr(codec, "SCHEMA", 99)
            draft.put(keys.GLOBAL_BREAKER, codec.pack(Breaker(failures=3)))
        store.commit(draft)
        before = store.engine.get(keys.GLOBAL_BREAKER)
        refused(StoreForeign, ResetManager(store).release_breaker, None, **BY)
        assert store.engine.get(keys.GLOBAL_BREAKER) == before


@pytest.mark.parametrize("generation", [0, 1, 2, 10**9])
def test_an_attempt_that_began_before_the_damage_may_not_commit(path: Path, generation: int) -> None:
    """Whatever generation it had read: the new one is above it."""
    with opened(path) as store:
        manager = ResetManager(store, breaker=BreakerPolicy())
        draft = store.draft()
        draft.put(keys.breaker(b"bob"), codec.pack(Breaker(generation=generation, failures=1)))
        store.commit(draft)
        with manager.transaction("bob", **BY) as tx:
            tx.apply("same", lambda state: state)
            draft = store.draft()
            draft.put(keys.breaker(b"bob"), codec.pack("not a breaker"))
            store.commit(draft)
            manager.release_breaker("bob", **BY)
            assert refused(BreakerOpen, tx.commit).reason == "changed"
        assert store.version_range("bob") == (1, 2)
        assert manager.breaker("bob").generation > generation


def test_show_tells_of_damage_and_of_what_helps(path: Path) -> None:
    """The others are shown all the same; the exit code is 1 until the record is replaced."""
    with opened(path) as store:
        draft = store.draft()
        draft.put(keys.BUDGET, codec.pack(Budget(((1, 2),))))
        store.commit(draft)
        ResetManager(store).force_breaker("bob", "forced-open", **BY)
    tear(path, keys.breaker(b"ann"), keys.GLOBAL_BREAKER, keys.BUDGET)
    shown = run(path, "breaker", "show", code=1)
    for text in ("damaged", "forced-open", "breaker release ann", "breaker release --global", "budget"):
        assert text in shown, shown
    result = CliRunner().invoke(app, ["breaker", "show", "--json", "--store", str(path)])
    rows = [json.loads(row) for row in result.stdout.splitlines()]
    assert [(row["user"], row["mode"]) for row in rows] == [(None, "damaged"), ("ann", "damaged"), ("bob", "forced-open")]
    assert set(rows[0]) == {*rows[2], "resets_last_minute"}
    assert (rows[0]["generation"], rows[0]["resets_last_minute"]) == (None, None)
    assert "damaged" in run(path, "breaker", "show", "ann", code=1)
    run(path, "breaker", "show", "bob")
    run(path, "breaker", "release", "--global", *BY_HAND)
    run(path, "breaker", "force-close", "ann", *BY_HAND)
    assert "damaged" not in run(path, "breaker", "show")


@pytest.mark.parametrize(("key", "remedy"), [
    (keys.breaker(b"ann"), "breaker release ann"), (keys.GLOBAL_BREAKER, "breaker release --global"),
    (keys.BUDGET, "breaker release --global"),
])
def test_doctor_names_the_command_that_mends_a_breaker_or_the_budget(path: Path, key: bytes, remedy: str) -> None:
    with opened(path) as store:
        draft = store.draft()
        draft.put(keys.BUDGET, codec.pack(Budget()))
        store.commit(draft)
    tear(path, key)
    (found,) = findings(path)
    command = found.remedy.split("`")[1]
    assert command == f"resetguard {remedy}"
    run(path, *shlex.split(command)[1:], *BY_HAND)
    assert findings(path) == []


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """A file with a reading that is kept aside, and at whose end the user is on probation."""
    days = [(f"2024-01-{day:02d}", 130.0 if day == 13 else 80.0 + day / 100) for day in range(1, 21)]
    rows = [f"{day}T07:00:00Z,ann,{kg},kg" for day, kg in (*days, ("2024-03-01", 90.0), ("2024-03-02", 90.01))]
    file = tmp_path / "export.csv"
    file.write_text("\n".join(["timestamp,user,weight,unit", *rows, ""]), encoding="utf-8")
    return file


@pytest.mark.parametrize("key", [keys.aside(b"ann"), keys.pin(b"ann")])
def test_doctor_names_the_rebuild_that_mends_count_and_before_image(tmp_path: Path, export: Path, key: bytes) -> None:
    path = tmp_path / "state"
    run(path, "process", str(export), code=1)
    tear(path, key)
    (found,) = findings(path)
    command = found.remedy.split("`")[1]
    assert command == "resetguard rebuild ann --from FILE"
    run(path, *(str(export) if word == "FILE" else word for word in shlex.split(command)[1:]), *BY_HAND)
    assert findings(path) == []


def test_doctor_names_the_way_around_a_damaged_cursor(tmp_path: Path, export: Path) -> None:
    """The file is refused; of a copy with another line what was taken in is known, and what was not is taken."""
    path, copy = tmp_path / "state", tmp_path / "copy.csv"
    run(path, "process", str(export), code=1)
    with opened(path) as store:
        ((cursor, _),) = store.engine.scan(keys.CURSOR, keys.after(keys.CURSOR))
        last = store.version_range("ann")[1]
    tear(path, cursor)
    (found,) = findings(path)
    assert "copy of that with an empty line at its end" in found.remedy
    run(path, "process", str(export), code=3)
    for line, added in (("", 0), ("2024-03-03T07:00:00Z,ann,90.02,kg", 1)):
        copy.write_text(export.read_text(encoding="utf-8") + line + "\n", encoding="utf-8")
        run(path, "process", str(copy))
        with opened(path) as store:
            assert store.version_range("ann") == (1, last + added)
            assert len(list(store.quarantine())) == 1
    assert [finding.subject for finding in findings(path)] == [found.subject]
