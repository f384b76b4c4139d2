"""The library does what the model does, step for step, and breaking it on purpose is found.

The whole of it runs by `python -m chaos spec`; here small bounds are driven, and the library is broken in the ways that
the model is there to find.
"""

from __future__ import annotations

import os
import re
import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from chaos.model import graph, obligations, spin, tied
from chaos.model.drive import Driven
from chaos.model.drive import drive as drive_in
from chaos.model.process import Difference
from chaos.model.worlds import reset
from chaos.model.worlds.reset import moves
from statemachine import InvalidTransition, breaker
from statemachine.machine import NEXT, TABLE, Phase
from statemachine.marks import RUNNING
from statemachine.store import committer, settle
from statemachine.store import draft as draft_module
from statemachine.store.draft import Draft

if TYPE_CHECKING:
    from collections.abc import Callable

    from chaos.model.graph import Graph

pytestmark = pytest.mark.skipif(
    not (shutil.which("spin") and shutil.which("gcc")) and not os.environ.get("CI"), reason="SPIN is missing; CI installs it",
)


STEPS = 5_000


def drive(explored: Graph, steps_max: int | None = None) -> Driven:
    """In the world of reset.pml, at the thresholds of all graphs here."""
    return drive_in(explored, partial(reset.World, thresholds=(1, 1)), steps_max=steps_max)


@pytest.fixture(scope="module")
def two() -> Graph:
    """Two processes with an attempt each, one of them with a candidate that breaks a rule."""
    return graph.explored("reset", tied.bounds(NA=1, INVALID=1))


@pytest.fixture(scope="module")
def dying() -> Graph:
    """One process with two attempts, which dies once."""
    return graph.explored("reset", tied.bounds(NR=1, NA=2, CRASHES=1))


@pytest.fixture(scope="module")
def forced() -> Graph:
    """Two processes with an attempt each, and an operator's word on the breaker."""
    return graph.explored("reset", tied.bounds(NA=1, FORCES=1))


def test_the_library_takes_every_edge_of_the_model(two: Graph, dying: Graph) -> None:
    for explored in (two, dying):
        done = drive(explored)
        assert done.edges == sum(map(len, explored.edges))
        assert done.refusals > done.states


def test_results_of_earlier_generations_count_for_nothing_in_the_library(forced: Graph) -> None:
    """Only an operator's word makes that show between two processes; these are the first steps, and `chaos spec` takes all."""
    assert drive(forced, steps_max=STEPS).steps >= STEPS


def test_the_phases_that_spin_explored_are_those_of_the_machine(two: Graph) -> None:
    assert tied.table_differs(set(moves(two))) == ""


def drawn(document: str) -> str:
    """The diagram of the phases in a document."""
    (found,) = re.findall(r"^```mermaid\n(stateDiagram-v2\n.*?)^```$", document, re.MULTILINE | re.DOTALL)
    return str(found)


def test_the_diagram_of_the_phases_is_made_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """An edge that is added, removed, or turned round shows."""
    document = (Path(__file__).parents[2] / "ARCHITECTURE.md").read_text(encoding="utf-8")
    assert drawn(document) == tied.diagram()
    edges = re.findall(r"^    (\w+) --> (\w+): (\w+)$", drawn(document), re.MULTILINE)
    named = {phase.value.replace("-", "_"): phase for phase in Phase}
    assert {(named[source], trigger): named[target] for source, target, trigger in edges} == NEXT
    turned = [(trigger, (target,), source) for trigger, sources, target in TABLE for source in sources]
    for others in (TABLE[:-1], (*TABLE, ("commit", (Phase.ROLLEDBACK,), Phase.COMMITTED)), turned):
        monkeypatch.setattr(tied, "TABLE", others)
        assert drawn(document) != tied.diagram()


def test_a_phase_edge_added_is_found(two: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library takes a trigger that the model refuses."""
    monkeypatch.setitem(NEXT, (Phase.ROLLEDBACK, "commit"), Phase.COMMITTED)
    assert "only in machine.py: rolledback -> commit -> committed" in tied.table_differs(set(moves(two)))
    with pytest.raises(Difference, match=r"^commit was not refused in "):
        drive(two)


def test_a_phase_edge_removed_is_found(two: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library refuses a step that the model takes."""
    monkeypatch.delitem(NEXT, (Phase.MUTATING, "roll_back"))
    assert "only in the model: mutating -> roll_back -> rolledback" in tied.table_differs(set(moves(two)))
    with pytest.raises(InvalidTransition, match=r"^cannot roll_back in phase mutating"):
        drive(two)


def test_a_missing_compare_and_set_is_found(two: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    real = committer._judged

    def blind(txn: Any, draft: Draft, *others: Any) -> Any:
        draft.expected.clear()
        return real(txn, draft, *others)

    monkeypatch.setattr(committer, "_judged", blind)
    with pytest.raises(Difference, match="in the model"):
        drive(two)


def test_an_outcome_in_a_second_transaction_is_found(two: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    real = committer.Committer.commit

    def split(self: Any, draft: Draft) -> Any:
        if draft.puts and draft.entries:
            draft.seal()
            first = Draft(self.engine)
            first.puts, draft.puts = draft.puts, {}
            first.expected, draft.expected = draft.expected, {}
            real(self, first)
        return real(self, draft)

    monkeypatch.setattr(committer.Committer, "commit", split)
    with pytest.raises(Difference, match="2 transactions, and is one step"):
        drive(two)


def test_a_result_that_counts_without_its_generation_is_found(forced: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    real: Callable[..., Any] = breaker.settle

    def late(record: Any, *others: Any, **named: Any) -> Any:
        return real(record, *others, **{**named, "generation": record.generation})

    monkeypatch.setattr(draft_module, "settle", late)
    with pytest.raises(Difference, match=r"b\.\w+ is"):
        drive(forced)


def test_a_recovery_that_forgets_a_mark_is_found(dying: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    real: Callable[..., Any] = settle._settle

    def forgetful(draft: Draft, mark: Any, *others: Any) -> int:
        return 0 if mark.state == RUNNING else int(real(draft, mark, *others))

    monkeypatch.setattr(settle, "_settle", forgetful)
    with pytest.raises(Difference, match=r"out is|rows is"):
        drive(dying)


def test_each_branch_that_is_demanded_has_a_number_of_its_own() -> None:
    for model in ("reset", "containment", "batch", "history"):
        numbers = list(obligations.witnesses(model).values())
        assert len(numbers) == len(set(numbers)) > 10


def test_a_branch_that_no_drive_takes_is_told() -> None:
    """And one that is said not to be taken, and is; and too few edges."""
    all_seen = dict.fromkeys(obligations.witnesses("history").values(), 1)
    revoked, pruned = (obligations.witnesses("history")[name] for name in ("revoked", "pruned"))
    assert tied._lacking("history", {**all_seen, revoked: 0}, 5, 5) == ""
    assert tied._lacking("history", {**all_seen, revoked: 0, pruned: 0}, 5, 5) == "never driven: pruned"
    assert tied._lacking("history", all_seen, 5, 5) == "driven, and said not to be: revoked"
    assert tied._lacking("history", {**all_seen, revoked: 0}, 4, 5) == "4 edges were driven, fewer than 5"


def test_a_mutant_that_nothing_refutes_is_no_success() -> None:
    """The check itself can fail: a safeguard that the model does not know, and one refuted by another property."""
    harmless = obligations.Mutant("OF_NOTHING", "history", ("FLIPS=0", "RULES=0", "NV=2"), "INV-01", "moved_aside")
    assert "nothing refutes it" in obligations.refute(harmless).why
    other = obligations.Mutant("PIN_MOVES", "history", (), "INV-05", "newest==given")
    assert "and not by INV-05" in obligations.refute(other).why


LIVE: Final = tuple(claim for claim in obligations.CLAIMS if claim.live)


@pytest.mark.parametrize("claim", LIVE, ids=lambda claim: claim.name)
def test_what_no_run_does_is_refuted_where_a_claim_is_shown(
    claim: obligations.Claim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`pan -a -f` held "in the end never" for true, since it overlooks runs that end; so nothing it said of them counted."""
    switch = next(setting for setting in claim.settings if setting.startswith("LTL_"))
    for path in spin.MODELS.iterdir():
        text = path.read_text(encoding="utf-8")
        if path.name == f"{claim.model}.pml":
            text, changed = re.subn(rf"(#ifdef {switch}\b(?:.*\n)*?ltl \w+) {{.*}}", r"\1 { <> [] (false) }", text)
            assert changed == 1
        (tmp_path / path.name).write_text(text, encoding="utf-8")
    monkeypatch.setattr(spin, "MODELS", tmp_path)
    verdict, _ = obligations.judge(claim._replace(effort=spin.SOON))
    assert verdict.why == obligations.CYCLE


@pytest.mark.parametrize("claim", LIVE, ids=lambda claim: claim.name)
def test_what_must_happen_does_where_the_environment_does_nothing(claim: obligations.Claim) -> None:
    """A run goes on to its end, and so to the last crash of its budget; no claim may rest on that."""
    named = at_bounds(claim) | dict.fromkeys(at_bounds(claim).keys() & {"CRASHES", "CUTS", "FENCES", "FORCES", "FAULTS"}, 0)
    switches = [setting for setting in claim.settings if "=" not in setting]
    calm = claim._replace(settings=(*(f"{name}={number}" for name, number in named.items()), *switches), effort=spin.SOON)
    verdict, _ = obligations.judge(calm)
    assert verdict.why == ""
    assert verdict.states > 1_000


def test_a_machine_without_spin_is_told_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(spin.SpinMissing, match=r"spin and gcc not found; install with `apt-get install spin gcc`"):
        spin.require()


BOUND: Final = re.compile(r"^#ifndef (\w+)\n#define \1 +(\d+)", re.MULTILINE)
NO_BOUNDS: Final = ("THRESH", "SMAX", "OKS", "USERS")
"""A larger one is another protocol, and not more of the same."""


def at_bounds(searched: obligations.Claim | obligations.Mutant) -> dict[str, int]:
    """All bounds of a search, those it leaves as they are too."""
    text = (spin.MODELS / f"{searched.model}.pml").read_text(encoding="utf-8")
    text += (spin.MODELS / "common.pml").read_text(encoding="utf-8")
    set_to = dict(setting.split("=") for setting in searched.settings if "=" in setting)
    found = {name: int(number) for name, number in (dict(BOUND.findall(text)) | set_to).items()}
    return found if searched.model not in ("reset", "containment") else {"NB": found["NA"], **found}


def within(mutant: obligations.Mutant, claim: obligations.Claim) -> bool:
    """A search for what must happen in the end asserts in every state, too."""
    if mutant.model != claim.model:
        return False
    mine, theirs = at_bounds(mutant), at_bounds(claim)
    same = [setting for setting in mutant.settings if "=" not in setting]
    return set(same) <= set(claim.settings) and all(
        mine[name] == theirs[name] if name in NO_BOUNDS else mine[name] <= theirs[name] for name in mine)


@pytest.mark.parametrize("mutant", obligations.MUTANTS, ids=lambda mutant: f"{mutant.model} {mutant.name}")
def test_a_mutant_is_refuted_within_the_bounds_of_a_claim(mutant: obligations.Mutant) -> None:
    """Where no claim gets as far, the model with its safeguard may break the same property, and nobody would know."""
    assert any(within(mutant, claim) for claim in obligations.CLAIMS)
