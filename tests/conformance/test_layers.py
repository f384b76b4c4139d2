"""The library's modules import downwards only, each dependency has one door, and nothing outgrows its limit.

Each checker takes source text, so that the tests at the end can feed it a violation.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

ROOT = Path(__file__).parents[2]
LIBRARY = "statemachine"

# The table of ARCHITECTURE.md.  A name stands for a module or a package of that name; `__init__` is the public door.
LAYERS: dict[str, int] = {
    "errors": 0, "clock": 0,
    "state": 1, "kalman": 1, "machine": 1, "breaker": 1, "rollout": 1,
    "validation": 2, "policy": 2, "audit": 2, "flags": 2,
    "estimator": 3, "codec": 3, "naming": 3, "vectorised": 3,
    "store": 4, "marks": 4,
    "attempt": 5, "transaction": 5, "recovery": 5, "erasure": 5, "sweep": 5, "gate": 5, "retention": 5, "alerts": 5,
    "manager": 6, "testing": 6,
    "processor": 7, "ingest": 7, "requarantine": 7, "rebuild": 7,
    "cli": 8, "__init__": 8,
}
PLANNED: set[str] = set()  # entries whose module is not written yet

DOORS: dict[str, str] = {
    "lmdb": "store", "transitions": "machine", "structlog": "audit", "openfeature": "flags",
    "time": "clock", "uuid": "clock", "uuid_utils": "clock", "random": "clock", "secrets": "clock",
    "tenacity": "alerts", "urllib3": "alerts",
}
NOWHERE = {"pickle", "shelve", "marshal"}
CLOCK_ONLY = {
    "datetime.now", "datetime.utcnow", "datetime.today", "datetime.datetime.now", "datetime.datetime.utcnow",
    "datetime.datetime.today", "date.today", "datetime.date.today", "os.urandom", "np.random", "numpy.random",
}
NO_NAMES = {"util", "utils", "helper", "helpers", "common", "misc"}
MODULE_LINES_MAX = 600
FUNCTION_LINES_MAX = 70


class Import(NamedTuple):
    target: str  # dotted and absolute; `from a import b` is taken to mean `a.b`, since b may be a module
    line: int
    typing_only: bool
    in_function: bool


def place(module: str) -> str:
    """The name under which a module stands in the table."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imports(source: str, module: str, *, is_package: bool = False) -> Iterator[Import]:
    """Every import in `source`, wherever it stands, relative ones resolved against `module`."""
    def walk(node: ast.AST, *, typing_only: bool, in_function: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, typing_only, in_function)
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".")[: None if is_package else -1]
            package = base[: len(base) - node.level + 1] if node.level else []
            prefix = ".".join([*package, *([node.module] if node.module else [])])
            for alias in node.names:
                yield Import(f"{prefix}.{alias.name}", node.lineno, typing_only, in_function)
        elif isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}:
            for part in node.body:
                yield from walk(part, typing_only=True, in_function=in_function)
            for part in node.orelse:
                yield from walk(part, typing_only=typing_only, in_function=in_function)
        else:
            inside = in_function or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            for child in ast.iter_child_nodes(node):
                yield from walk(child, typing_only=typing_only, in_function=inside)

    return walk(ast.parse(source), typing_only=False, in_function=False)


def root_of(target: str) -> str:
    return target.split(".", 1)[0]


def upward_imports(source: str, module: str) -> Iterator[str]:
    """Imports of the library that do not lead to a strictly lower layer, or within the module's own."""
    here = LAYERS.get(place(module))
    for found in imports(source, module, is_package=module in PACKAGES):
        if root_of(found.target) != LIBRARY or here is None:
            continue
        there = place(found.target)
        if there not in LAYERS:  # `from statemachine import Store`: a name of the public door
            there = "__init__"
        if LAYERS[there] > here:
            yield f"{module}:{found.line}: layer {here} imports {there} of layer {LAYERS[there]}"


def hidden_imports(source: str, module: str) -> Iterator[str]:
    """Imports inside functions: they hide a cycle, or delay an error."""
    for found in imports(source, module):
        if found.in_function:
            yield f"{module}:{found.line}: {found.target} is imported inside a function"


def wrong_doors(source: str, module: str) -> Iterator[str]:
    """Dependencies and sources of non-determinism taken elsewhere than at their one door."""
    for found in imports(source, module):
        name = root_of(found.target)
        if name in NOWHERE:
            yield f"{module}:{found.line}: {name} must not come near the format on disk"
        elif name == "chaos":
            yield f"{module}:{found.line}: the library imports its harness"
        elif DOORS.get(name, place(module)) != place(module):
            yield f"{module}:{found.line}: {name} is imported outside {DOORS[name]}"
        elif found.target in CLOCK_ONLY and place(module) != "clock":
            yield f"{module}:{found.line}: {found.target} is the clock's to ask"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and place(module) != "clock" and ast.unparse(node) in CLOCK_ONLY:
            yield f"{module}:{node.lineno}: {ast.unparse(node)} is the clock's to ask; take a Clock or Ids as argument"


def bare_asserts(source: str, module: str) -> Iterator[str]:
    """Asserts, which `python -O` removes."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assert):
            yield f"{module}:{node.lineno}: a bare assert"


def too_long(source: str, module: str) -> Iterator[str]:
    """Modules, and functions without their docstring, that have more lines than their limit."""
    lines = len(source.splitlines())
    if lines > MODULE_LINES_MAX:
        yield f"{module}: {lines} lines, over {MODULE_LINES_MAX}"
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        body = node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body
        length = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
        if length > FUNCTION_LINES_MAX:
            yield f"{module}:{node.lineno}: {node.name} has {length} lines, over {FUNCTION_LINES_MAX}"


def bad_names(_source: str, module: str) -> Iterator[str]:
    """Module names that say nothing of what is inside."""
    for part in module.split("."):
        if part.strip("_") in NO_NAMES:
            yield f"{module}: {part!r} says nothing; name it after what it does or after its caller"


def table_gaps(modules: set[str]) -> Iterator[str]:
    """Entries of the table without a module, and modules without an entry."""
    places = {place(module) for module in modules}
    for name in sorted(LAYERS.keys() - places - PLANNED):
        yield f"{LIBRARY}.{name} is in the table and does not exist"
    for name in sorted(places - LAYERS.keys()):
        yield f"{LIBRARY}.{name} is not in the table"
    for name in sorted(PLANNED & places):
        yield f"{LIBRARY}.{name} exists: take it out of PLANNED"


def cycle(sources: Mapping[str, str], packages: set[str]) -> list[str]:
    """One import cycle among the modules, as the list of its members; empty where there is none."""
    graph: dict[str, set[str]] = {}
    for module, source in sources.items():
        edges = (resolve(found.target, sources) for found in imports(source, module, is_package=module in packages)
                 if not found.typing_only)
        graph[module] = {edge for edge in edges if edge is not None}
    done: set[str] = set()

    def search(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module):], module]
        if module in done:
            return []
        for target in sorted(graph[module]):
            if found := search(target, [*path, module]):
                return found
        done.add(module)
        return []

    for start in sorted(graph):
        if found := search(start, []):
            return found
    return []


def resolve(target: str, modules: Mapping[str, str]) -> str | None:
    """The module that importing `target` runs: itself, or the one that has it as a name; None outside the library."""
    while target and target not in modules:
        target = target.rpartition(".")[0]
    return target or None


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


PATHS = {module_name(path): path for path in sorted((ROOT / LIBRARY).rglob("*.py"))}
PACKAGES = {module for module, path in PATHS.items() if path.stem == "__init__"}
CHECKERS: tuple[Callable[[str, str], Iterator[str]], ...] = (
    upward_imports, hidden_imports, wrong_doors, bare_asserts, too_long, bad_names,
)


@pytest.mark.parametrize("module", PATHS)
@pytest.mark.parametrize("checker", CHECKERS)
def test_module_keeps_the_rule(checker: Callable[[str, str], Iterator[str]], module: str) -> None:
    assert list(checker(PATHS[module].read_text(encoding="utf-8"), module)) == []


def test_modules_and_table_agree() -> None:
    assert list(table_gaps(set(PATHS))) == []


def test_no_module_imports_itself_by_a_detour() -> None:
    assert cycle({module: path.read_text(encoding="utf-8") for module, path in PATHS.items()}, PACKAGES) == []


PLANTED: list[tuple[Callable[[str, str], Iterator[str]], str, str]] = [
    (upward_imports, "statemachine.errors", "from statemachine.state import Kalman"),
    (upward_imports, "statemachine.kalman", "import statemachine.store.log"),
    (upward_imports, "statemachine.store.log", "from ..manager import ResetManager"),
    (upward_imports, "statemachine.manager", "from statemachine import Store"),
    (upward_imports, "statemachine.codec", "if TYPE_CHECKING:\n    import statemachine.cli"),
    (upward_imports, "statemachine.policy", "def f():\n    from statemachine import manager"),
    (hidden_imports, "statemachine.policy", "def f():\n    import statemachine.errors"),
    (hidden_imports, "statemachine.policy", "class A:\n    async def f(self):\n        if 1:\n            import json"),
    (wrong_doors, "statemachine.marks", "import lmdb"),
    (wrong_doors, "statemachine.transaction", "from transitions import Machine"),
    (wrong_doors, "statemachine.cli.main", "import structlog.contextvars"),
    (wrong_doors, "statemachine.manager", "from time import monotonic_ns"),
    (wrong_doors, "statemachine.breaker", "import random"),
    (wrong_doors, "statemachine.codec", "import pickle"),
    (wrong_doors, "statemachine.clock", "import marshal"),
    (wrong_doors, "statemachine.testing", "from chaos import faults"),
    (wrong_doors, "statemachine.processor", "from datetime import UTC, datetime\nnow = datetime.now(UTC)"),
    (wrong_doors, "statemachine.marks", "import os\nsalt = os.urandom(16)"),
    (wrong_doors, "statemachine.estimator", "from numpy import random"),
    (bare_asserts, "statemachine.store", "def f(x):\n    assert x, 'no'"),
    (too_long, "statemachine.store", "x = 1\n" * (MODULE_LINES_MAX + 1)),
    (too_long, "statemachine.store", "def f():\n    'Doc.'\n" + "    x = 1\n" * (FUNCTION_LINES_MAX + 1)),
    (bad_names, "statemachine.store.utils", ""),
    (bad_names, "statemachine._helpers", ""),
]


@pytest.mark.parametrize(("checker", "module", "source"), PLANTED)
def test_checker_finds_a_planted_violation(
    checker: Callable[[str, str], Iterator[str]], module: str, source: str,
) -> None:
    assert len(list(checker(source, module))) == 1


@pytest.mark.parametrize(("checker", "module", "source"), [
    (upward_imports, "statemachine.store.log", "from statemachine.store.keys import K\nfrom .. import errors"),
    (upward_imports, "statemachine.cli.main", "from statemachine import Store"),
    (upward_imports, "statemachine.errors", "import json"),
    (hidden_imports, "statemachine.policy", "try:\n    import json\nexcept ImportError:\n    raise"),
    (wrong_doors, "statemachine.store.environment", "import lmdb"),
    (wrong_doors, "statemachine.clock", "import time, secrets, uuid_utils"),
    (wrong_doors, "statemachine.policy", "from datetime import datetime, timezone\nimport timeit"),
    (too_long, "statemachine.store", "x = 1\n" * MODULE_LINES_MAX),
    (too_long, "statemachine.store", "def f():\n    '''Doc\n\n\n    '''\n" + "    x = 1\n" * FUNCTION_LINES_MAX),
    (bad_names, "statemachine.commonmark", ""),
])
def test_checker_lets_the_allowed_pass(
    checker: Callable[[str, str], Iterator[str]], module: str, source: str,
) -> None:
    assert list(checker(source, module)) == []


def test_every_checker_is_tested_and_run() -> None:
    """A checker left out of CHECKERS would be proved on planted violations and never see a real module."""
    assert {checker for checker, _, _ in PLANTED} == set(CHECKERS)


@pytest.mark.parametrize(("sources", "expected"), [
    ({"s": "", "s.a": "import s.b", "s.b": "from s.c import x", "s.c": "from . import a"},
     ["s.a", "s.b", "s.c", "s.a"]),
    ({"s": "from s.a import x", "s.a": "from s import y"}, ["s", "s.a", "s"]),
    ({"s": "", "s.a": "import s.a"}, ["s.a", "s.a"]),
    ({"s": "from s.a import x", "s.a": "import s.b.c", "s.b": "from .c import y", "s.b.c": "import json"}, []),
    ({"s": "", "s.a": "if TYPE_CHECKING:\n    import s.b", "s.b": "import s.a"}, []),
])
def test_cycle_is_found_and_only_where_there_is_one(sources: dict[str, str], expected: list[str]) -> None:
    assert cycle(sources, {"s", "s.b"}) == expected


def test_gap_in_the_table_is_found() -> None:
    whole = {LIBRARY, *(f"{LIBRARY}.{name}" for name in LAYERS.keys() - PLANNED - {"__init__"})}
    assert list(table_gaps(whole)) == []
    assert list(table_gaps(whole - {"statemachine.codec"})) == ["statemachine.codec is in the table and does not exist"]
    assert list(table_gaps(whole | {"statemachine.extra.part"})) == ["statemachine.extra is not in the table"]
