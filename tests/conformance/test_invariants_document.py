"""specs/invariants.md: its numbers, code, properties, safeguards and tests are there, and it leaves none out that is cited."""

from __future__ import annotations

import pkgutil
import re
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from chaos.model import obligations

ROOT: Final = Path(__file__).parents[2]
SPECS: Final = ROOT / "specs"
DOCUMENT: Final = (SPECS / "invariants.md").read_text(encoding="utf-8")
NUMBER: Final = re.compile(r"\bINV-\d+\b")
FIELDS: Final = ("Statement", "Reason", "Code", "Property", "Safeguards", "Tests")
UNMODELLED: Final = ("INV-10", "INV-13")


class Invariant(NamedTuple):
    """One section of the document."""

    number: str
    name: str
    parts: dict[str, str]


def sections(text: str) -> list[Invariant]:
    """The invariants of a document, each with its parts, lines joined."""
    found = []
    for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        title, _, body = section.partition("\n")
        number, _, name = title.partition(" ")
        parts = {name: " ".join(value.split()) for name, value in re.findall(
            r"^- \*\*(\w+):\*\* (.*?)(?=^- \*\*|\Z)", body, re.MULTILINE | re.DOTALL)}
        found.append(Invariant(number, name, parts))
    return found


INVARIANTS: Final = sections(DOCUMENT)
EACH: Final = pytest.mark.parametrize("invariant", INVARIANTS, ids=[invariant.number for invariant in INVARIANTS])


def quoted(text: str) -> list[str]:
    """What stands in backquotes."""
    found: list[str] = re.findall(r"`([^`]+)`", text)
    return found


def cited(*places: str) -> set[str]:
    """The numbers that the files of these places cite, this test and the document apart."""
    files = [path for place in places for path in ROOT.glob(place) if path != Path(__file__)]
    return set().union(*(NUMBER.findall(path.read_text(encoding="utf-8")) for path in files))


def normal(text: str) -> str:
    """Promela without its spacing."""
    return re.sub(r"\s+", "", text)


def properties(invariant: Invariant) -> dict[str, list[str]]:
    """The assertions and formulas of each model that the document names for an invariant."""
    found: dict[str, list[str]] = {}
    model = ""
    for word in quoted(invariant.parts["Property"]):
        if word.endswith(".pml"):
            model = word
            found[model] = []
        elif model:
            found[model].append(word)
    return found


def test_there_are_thirteen_in_order() -> None:
    assert [invariant.number for invariant in INVARIANTS] == [f"INV-{number:02}" for number in range(1, 14)]


@EACH
def test_each_has_all_its_parts(invariant: Invariant) -> None:
    assert tuple(invariant.parts) == FIELDS
    assert all(invariant.parts.values())
    assert invariant.name


def test_every_number_that_is_cited_is_there_and_every_one_is_cited() -> None:
    """In the code, the models and the tests; the models leave out two, and the document says why."""
    numbers = {invariant.number for invariant in INVARIANTS}
    assert cited("statemachine/**/*.py", "chaos/**/*.py", "specs/*.pml", "tests/**/*.py") == numbers
    assert cited("statemachine/**/*.py") == numbers
    assert cited("specs/*.pml") == numbers - set(UNMODELLED)


@EACH
def test_the_code_is_there(invariant: Invariant) -> None:
    names = quoted(invariant.parts["Code"])
    assert names
    for name in names:
        assert name.startswith("statemachine.")
        pkgutil.resolve_name(name)


def test_code_that_is_gone_is_found() -> None:
    with pytest.raises(AttributeError):
        pkgutil.resolve_name("statemachine.store.committer.Committer.praise")


@EACH
def test_the_properties_stand_in_the_models_that_cite_it(invariant: Invariant) -> None:
    """Both ways: each named model cites the number and holds the property, and no other model cites it."""
    named = properties(invariant)
    if invariant.number in UNMODELLED:
        assert invariant.parts["Property"].startswith("none: ")
    citing = {path.name for path in SPECS.glob("*.pml") if invariant.number in path.read_text(encoding="utf-8")}
    assert set(named) == citing
    for model, stated in named.items():
        text = normal((SPECS / model).read_text(encoding="utf-8"))
        assert stated, model
        for word in stated:
            assert normal(word) in text, f"{model}: {word}"


@EACH
def test_the_safeguards_are_those_whose_removal_it_refutes(invariant: Invariant) -> None:
    wanted = [f"{mutant.model} {mutant.name}" for mutant in obligations.MUTANTS if mutant.invariant == invariant.number]
    assert invariant.parts["Safeguards"] == (", ".join(wanted) or "none")


@EACH
def test_the_tests_are_there(invariant: Invariant) -> None:
    names = quoted(invariant.parts["Tests"])
    assert ", ".join(f"`{name}`" for name in names) == invariant.parts["Tests"]
    for name in names:
        file, _, function = name.partition("::")
        text = (ROOT / "tests" / file).read_text(encoding="utf-8")
        assert re.search(rf"^def {function}\(", text, re.MULTILINE), name
