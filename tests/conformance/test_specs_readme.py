"""specs/README.md: its files, bounds, claims, safeguards and branches are those that the models and the checker have."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

from chaos.model import obligations, spin, tied

SPECS: Final = Path(__file__).parents[2] / "specs"
DOCUMENT: Final = (SPECS / "README.md").read_text(encoding="utf-8")
MODELS: Final = tuple(sorted({claim.model for claim in obligations.CLAIMS}))
BOUND: Final = re.compile(r"^#ifndef (\w+)\n#define \1 +(\w+)", re.MULTILINE)


def table(first: str) -> list[list[str]]:
    """The rows of the table whose first column is so called."""
    (found,) = re.findall(rf"^\| {first} \|.*\n\|[-|]+\n((?:\|.*\n)+)", DOCUMENT, re.MULTILINE)
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in found.splitlines()]


def model(cell: str) -> str:
    return cell.strip("`").removesuffix(".pml")


def test_every_file_is_named() -> None:
    """Both ways."""
    assert {name.strip("`") for name, _ in table("file")} == {path.name for path in SPECS.iterdir()}


def test_bounds_are_those_of_the_models() -> None:
    """Both ways: each with its default."""
    told = {model(name): dict(re.findall(r"\b([A-Z]{1,8}) (\d+)\b", text)) for name, text in table("model")}
    found = {path.stem: dict(BOUND.findall(path.read_text(encoding="utf-8"))) for path in SPECS.glob("*.pml")}
    assert found["reset"].pop("NB") == found["containment"].pop("NB") == "NA"
    assert told == found


def test_claims_are_those_that_are_checked() -> None:
    assert [(name, model(file), kind) for name, file, kind in table("claim")] == [
        (claim.name, claim.model, "on every run" if claim.live else "in every state") for claim in obligations.CLAIMS]


def test_drives_are_those_that_are_made() -> None:
    """In their order, each with its edges; and what none of them takes is a branch of its model."""
    assert [(name, model(file), int(edges.replace(",", ""))) for name, file, edges in table("drive")] == [
        (drive.name, drive.model, drive.edges) for drive in tied.DRIVES]
    told = {(name, model(file)) for name, file, why in table("not driven") if why}
    assert told == {(name, model) for model, names in tied.NOT_DRIVEN.items() for name in names}
    assert all(name in obligations.witnesses(model) for name, model in told)


def test_safeguards_are_those_that_are_removed() -> None:
    """In their order, each with the invariant and the property that must then fail."""
    told = [(name, model(file), invariant, fails) for name, file, _, invariant, fails in table("removed")]
    failing = {mutant: "a cycle" if mutant.refuted_by == obligations.CYCLE else f"`{mutant.refuted_by}`"
               for mutant in obligations.MUTANTS}
    assert told == [(mutant.name, mutant.model, mutant.invariant, failing[mutant]) for mutant in obligations.MUTANTS]
    assert all(text for _, _, text, _, _ in table("removed"))


def test_every_switch_of_a_model_is_one_of_the_safeguards() -> None:
    """Both ways: a switch that nobody turns says nothing, and one that is not there removes nothing."""
    shared = set(re.findall(r"\bM_([A-Z_]+)\b", (SPECS / "common.pml").read_text(encoding="utf-8"))) - {"NAME"}
    turned: dict[str, set[str]] = {}
    for mutant in obligations.MUTANTS:
        turned.setdefault(mutant.model, set()).add(mutant.name)
    for name in MODELS:
        own = set(re.findall(r"\bM_([A-Z_]+)\b", (SPECS / f"{name}.pml").read_text(encoding="utf-8")))
        assert own <= turned[name] <= own | shared, name
    assert shared <= set().union(*turned.values())


@pytest.mark.parametrize("name", MODELS)
def test_branches_are_those_that_must_occur(name: str) -> None:
    """Both ways; those of common.pml stand once."""
    told = {branch: model(file) for branch, file, _ in table("branch")}
    listed = [branch for branch, file, _ in table("branch") if model(file) == name]
    shared = {branch for branch, file in told.items() if file == "common"}
    wanted = [branch for branch in obligations.witnesses(name) if not branch.startswith("a death in ")]
    assert listed == [branch for branch in wanted if branch not in shared]


def test_shared_branches_are_those_of_the_include() -> None:
    found = re.findall(r"^#define W_(\w+)", (SPECS / "common.pml").read_text(encoding="utf-8"), re.MULTILINE)
    assert {branch for branch, file, _ in table("branch") if model(file) == "common"} == {
        name.lower().replace("_", " ") for name in found}
    assert set(found) <= {name.removeprefix("W_") for name in spin.defines("reset")}
