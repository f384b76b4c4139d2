"""specs/audit.schema.json: every row that the library writes is one of it, every event is known to it, and no other row is."""

from __future__ import annotations

import ast
import copy
import json
import re
import shlex
import shutil
from collections import Counter
from pathlib import Path
from typing import Any, Final

import pytest
from jsonschema import Draft202012Validator
from typer.testing import CliRunner

from statemachine import (
    BodyWeight,
    BreakerOpen,
    BreakerPolicy,
    ConflictError,
    Limits,
    MutationFailed,
    Processor,
    ResetManager,
    ResetValidationError,
    Rollout,
    StoreCorrupt,
    StoreLimits,
)
from statemachine.cli import app
from statemachine.erasure import prune_audit
from statemachine.gate import change
from statemachine.requarantine import drop, replay
from statemachine.retention import prune_quarantine
from statemachine.store import compaction, fencing, keys, mending
from statemachine.sweep import Sweep
from tests.regression.scene import BY, DAY_US, broken, fill, opened, raw, tear, weighed, working
from tests.unit.processes import line, ran, started

ROOT: Final = Path(__file__).parents[2]
SCHEMA: Final[dict[str, Any]] = json.loads((ROOT / "specs" / "audit.schema.json").read_text(encoding="utf-8"))
VALIDATOR: Final = Draft202012Validator(SCHEMA, format_checker=Draft202012Validator.FORMAT_CHECKER)
EVENTS: Final = frozenset(SCHEMA["properties"]["event"]["enum"])

# Words with a dot in the source that are no event of a row, by what is before the dot.
OTHER_WORDS: Final = {
    "adaptation": "figures that `show` prints", "buffer": "figures", "sd": "figures", "x": "figures",
    "alert": "what structlog alone is told",
    "backup": "files", "data": "files", "lock": "files", "writer": "files", "sample": "files", "fuse": "file systems",
}
NO_ROWS: Final = {"audit.broken": "an alert: a log that does not verify takes no row"}
# Events that the source puts together, by how.
PUT_TOGETHER: Final = {
    "breaker.{name}": {"breaker.opened", "breaker.closed"},
    "reset.{outcome}": {"reset.rolled_back", "reset.conflicted"},
    "counters.{name}": set[str](),  # figures that `show` prints
}
SLOT_OF_NO_MARK: Final = """
from statemachine.marks import RUNNING, Mark, Marks
marks = Marks(path / "owners" / "70")
slot = marks.fill(Mark(RUNNING, "reset.interrupted", "interrupted", "no-uuid", "ann", "admin", "", 1, 0, 0))
marks.abandon()
"""
DIES_IN_A_MUTATION: Final = """
ResetManager(opened(path)).perform_reset("ann", operations=[("die", lambda _: os._exit(0))], **BY)
"""


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows of a store, as the command prints them."""
    told = CliRunner().invoke(app, ["audit", "list", "--json", "--store", str(path)])
    assert told.exit_code == 0, told.output
    return [json.loads(row) for row in told.stdout.splitlines()]


def run_the_runbook(directory: Path) -> list[dict[str, Any]]:
    """Every row of the store on which every command of docs/operations.md was run, as it was before others were erased."""
    found = {}
    shutil.copy(ROOT / "statemachine" / "cli" / "sample.csv", directory / "weights.csv")
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```console\n(.*?)```", text, re.DOTALL)
    commands = [shlex.split(row.removeprefix("$ resetguard ")) for block in blocks for row in block.splitlines()]
    for arguments in (["demo", "--store", "./state"], *commands):
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, f"{arguments}: {done.output}"
        found.update({(row["seq"], row["erased"]): row for row in rows_of(directory / "state")})
    return list(found.values())


def fail(manager: ResetManager, user: str) -> None:
    with pytest.raises(MutationFailed):
        manager.perform_reset(user, operations=[("fail", broken)], **BY)


def troubled_resets(path: Path) -> None:
    """Resets that fail, are refused, conflict, are cut off, run as a shadow, or are held back; breakers that move."""
    fill(path, "ann", [80.0, 80.1])
    ran(DIES_IN_A_MUTATION, path)
    with opened(path) as store:
        manager = ResetManager(store, breaker=BreakerPolicy(failures_max=2, cooldown_s=60.0, jitter=0.0))
        fail(manager, "ann")
        fail(manager, "ann")
        with pytest.raises(BreakerOpen):
            manager.perform_reset("ann", **BY)
        store.clock.wall_us += DAY_US  # type: ignore[attr-defined]
        manager.perform_reset("ann", **BY)
        faster = ("meanwhile", lambda state: (manager.perform_reset("ann", **BY), state)[1])
        with pytest.raises(ConflictError):
            manager.perform_reset("ann", operations=[faster], **BY)
        processor = Processor(manager)
        processor.process(weighed("ann", 60, 140.0))  # held: no such change in two months
        for mode in ("shadow", "off"):
            change(store, lambda _, mode=mode: Rollout(mode=mode, deny=("bob",)), **BY)  # type: ignore[misc]
            processor.process(weighed("ann", 61 + (mode == "off"), 81.0))


def damaged_users(path: Path) -> None:
    """A user walked back, one of whom nothing can be read, and one whose states break newer rules."""
    for user in ("ann", "bob", "cid"):
        fill(path, user, [80.0, 80.1, 80.2])
    tear(path, keys.head(b"ann"), keys.version(b"ann", 3))
    tear(path, keys.head(b"bob"), *(keys.version(b"bob", number) for number in (1, 2, 3)))
    with working(path, estimator=BodyWeight(limits=Limits(weight_kg_max=80.05))) as (_, manager, _processor):
        manager.sweep(Sweep(users=("cid",)))
        with pytest.raises(ResetValidationError):
            manager.restore("cid", to_version=2, **BY)
        manager.sweep(Sweep(), stop=lambda: True)
    with working(path) as (_, manager, _processor):
        manager.recover("ann", **BY)
        with pytest.raises(StoreCorrupt):
            manager.recover("bob", **BY)


def damaged_breakers(path: Path) -> None:
    """Records that cannot be read, released and put under an operator's word."""
    fill(path, "ann", [80.0])
    with opened(path) as store:
        ResetManager(store).force_breaker("ann", "forced-open", **BY)
        ResetManager(store).force_breaker(None, "forced-open", **BY)
    tear(path, keys.breaker(b"ann"), keys.GLOBAL_BREAKER)
    with opened(path) as store:
        ResetManager(store).force_breaker("ann", "metrics-only", **BY)
        ResetManager(store).release_breaker(None, **BY)


def kept_aside(path: Path) -> None:
    """More kept aside than the limit; one is taken in after all, the others are pruned, then dropped."""
    with working(path, limits=StoreLimits(quarantined_measurements_max=1)) as (store, manager, processor):
        processor.process_batch(weighed("ann", day, 80.0) for day in range(3))
        processor.process_batch(weighed("ann", 3 + day / 8, kg) for day, kg in enumerate((120.0, 20.0, 190.0)))
        manager.perform_reset("ann", measurement=weighed("ann", 3.2, 189.5), **BY)
        replay(manager, "ann", **BY)
        prune_quarantine(store, store.clock.now_us(), **BY)
        drop(store, "ann", **BY)


def owners_and_files(path: Path) -> None:
    """An owner that is fenced, marks that cannot be read, the end of the log lost, and records of an older schema."""
    ran('from statemachine import codec\ncodec.SCHEMA = 1\nfill(path, "ann", [80.0, 80.1])', path)
    compaction.migrate(path, **BY)
    ran(SLOT_OF_NO_MARK, path)
    child = started("with opened(path) as store:\n    say(store.committer.owner)\n    heard()", path)
    number = int(line(child))
    with opened(path) as store:
        fencing.fence(store, number, **BY)
    child.kill()
    child.communicate()
    with raw(path) as txn:
        txn.delete(keys.CHAIN)
    with opened(path) as store:
        mending.find_end(store, **BY)


def old_log(path: Path) -> None:
    """A log whose old rows are erased."""
    fill(path, "ann", [80.0])
    with opened(path) as store:
        prune_audit(store, store.clock.now_us() + 1, **BY)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Rows of every event there is."""
    directory = tmp_path_factory.mktemp("rows")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(directory)
        found = run_the_runbook(directory)
    for scene in (troubled_resets, damaged_users, damaged_breakers, kept_aside, owners_and_files, old_log):
        scene(directory / scene.__name__)
    return found + [row for data in sorted(directory.glob("*/data.mdb")) for row in rows_of(data.parent)]


def wrong(row: dict[str, Any]) -> list[str]:
    """What the schema has against a row."""
    return [f"{row.get('event')} {error.json_path}: {error.message[:300]}" for error in VALIDATOR.iter_errors(row)]


def literals(tree: ast.Module) -> set[str]:
    """The words with one dot among a module's texts, docstrings left out; f-strings as they are written."""
    said = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    plain = {node.value for node in ast.walk(tree)
             if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in said}
    formed = {ast.unparse(node)[2:-1] for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)}
    return {word for word in plain | formed if re.fullmatch(r"[a-z_]+\.([a-z_]+|\{\w+\})", word)}


def events_in(words: set[str]) -> tuple[set[str], set[str]]:
    """The events among words of the source, and the words that nobody has said anything of."""
    found, unknown = set[str](), set[str]()
    for word in words:
        if word in PUT_TOGETHER:
            found |= PUT_TOGETHER[word]
        elif word in NO_ROWS or word.partition(".")[0] in OTHER_WORDS:
            continue
        elif "{" in word:
            unknown.add(word)
        else:
            found.add(word)
    return found, unknown


def words_of_the_source() -> set[str]:
    sources = (ROOT / "statemachine").rglob("*.py")
    return set().union(*(literals(ast.parse(source.read_text(encoding="utf-8"))) for source in sources))


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    assert sorted(SCHEMA["required"]) == sorted(SCHEMA["properties"])


def test_the_events_are_those_of_the_source() -> None:
    """Both ways; a new word with a dot is an event until somebody says that it is none."""
    words = words_of_the_source()
    found, unknown = events_in(words)
    assert unknown == set()
    assert found == EVENTS
    assert {*PUT_TOGETHER, *NO_ROWS} <= words, "what is said of words that are gone"
    assert set(OTHER_WORDS) <= {word.partition(".")[0] for word in words}


def test_an_event_that_the_schema_does_not_know_is_found() -> None:
    planted = '"""a.b in prose"""\nact("user.praised", 1)\nPublic(event=f"user.{deed}")\nopen("data.mdb")\n'
    found, unknown = events_in(literals(ast.parse(planted)))
    assert (found, unknown) == ({"user.praised"}, {"user.{deed}"})


def test_each_event_has_its_rules() -> None:
    ruled = Counter(rule["if"]["properties"]["event"]["const"] for rule in SCHEMA["allOf"] if "event" in rule["if"]["properties"])
    assert ruled == Counter(EVENTS)


def test_every_row_is_one_of_the_schema(rows: list[dict[str, Any]]) -> None:
    assert sorted({text for row in rows for text in wrong(row)}) == []


def test_every_event_occurs_in_these_rows(rows: list[dict[str, Any]]) -> None:
    """A rule that no row was held to says nothing; every event's whole row is among them, not an erased one alone."""
    assert {row["event"] for row in rows if not row["erased"]} == EVENTS
    assert any(row["erased"] for row in rows)


def test_one_row_alone_is_printed_as_in_the_list(tmp_path: Path) -> None:
    fill(tmp_path / "store", "ann", [80.0])
    (row,) = rows_of(tmp_path / "store")
    told = CliRunner().invoke(app, ["audit", "show", row["attempt_id"], "--json", "--store", str(tmp_path / "store")])
    assert json.loads(told.stdout) == row


def test_a_row_without_one_of_its_fields_or_with_another_is_refused(rows: list[dict[str, Any]]) -> None:
    for row in first_of_each(rows):
        for field in SCHEMA["required"]:
            assert wrong({name: value for name, value in row.items() if name != field}), f"{row['event']} without {field}"
        assert wrong({**row, "mood": "good"}), row["event"]
        assert wrong({**row, "event": "user.praised"}), row["event"]


def test_a_field_of_another_type_is_refused(rows: list[dict[str, Any]]) -> None:
    others: tuple[Any, ...] = (True, [{}], {"mood": 1}, 1.5)
    for row in first_of_each(rows):
        for field in SCHEMA["required"]:
            for value in others:
                if type(value) is not type(row[field]) and not (field == "details" or (field, value) == ("erased", True)):
                    assert wrong({**row, field: value}), f"{row['event']} with {field} {value!r}"
        for field in ("hash", "prev_hash", "store_id", "written_at"):
            assert wrong({**row, field: "x" + row[field][1:]}), f"{row['event']} with another {field}"


def test_details_are_those_of_the_event(rows: list[dict[str, Any]]) -> None:
    """One detail too many is refused, and one too few where the event has any that must be there."""
    for row in first_of_each(rows):
        details = copy.deepcopy(row["details"])
        assert wrong({**row, "details": {**details, "mood": "good"}}), row["event"]
        if row["event"] not in {"reset.committed", "reset.revoked", "reset.rolled_back", "reset.conflicted", "reset.refused",
                                "quarantine.pruned"}:
            for name in details:
                less = {other: value for other, value in details.items() if other != name}
                assert wrong({**row, "details": less}), f"{row['event']} without {name}"


def test_what_an_event_says_of_the_others_fields_is_refused(rows: list[dict[str, Any]]) -> None:
    """A row under another event's name is that event's no more."""
    pairs = [(row, event) for row in first_of_each(rows) for event in EVENTS - {row["event"]}]
    alike = {(row["event"], event) for row, event in pairs if not wrong({**row, "event": event})}
    assert alike <= ALIKE


def test_an_erased_row_says_nothing_of_anybody(rows: list[dict[str, Any]]) -> None:
    row = next(row for row in rows if row["erased"])
    for field, value in {"user": "ann", "actor": "a", "reason": "r", "at": row["written_at"], "details": {"a": 1}}.items():
        assert wrong({**row, field: value}), field


# Events whose rows differ in nothing but their name.
ALIKE: Final = {
    ("breaker.forced", "breaker.released"), ("breaker.released", "breaker.forced"),
    ("user.forgotten", "audit.pruned"), ("audit.pruned", "user.forgotten"),
}


def first_of_each(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One whole row of each event."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        if not row["erased"]:
            found.setdefault(row["event"], row)
    return list(found.values())
