"""Points before the statements of the library, so that the scheduler can switch threads at every line.

A trace function would cost a call for each line, and one more for each call; and threads that are greenlets cannot be
switched inside of one.  So each function of the library is given, for as long as `placed` lasts, the code of the same
source with a call of `scheduler.point` before each statement: lines, names and closures stay as they are.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from chaos.faults.scheduler import point

NAME: Final = "__chaos_point__"
STATEFUL: Final = ("transaction", "marks", "manager", "processor", "recovery", "store", "store.committer", "store.engine",
                   "store.settle", "store.footing", "store.turns")
"""The modules whose own code reads or changes what threads share.

The others are pure, or work on a draft of one thread, and come to what is shared through these alone.
"""

Keep = Callable[[str, ast.stmt], bool]


class Place(NamedTuple):
    """Where a point stands."""

    module: str
    function: str
    line: int

    def __str__(self) -> str:
        """As reports show it."""
        return f"{self.module.removeprefix('statemachine.')}:{self.line} ({self.function})"


class Grain(NamedTuple):
    """How fine threads are switched: at which statements of which modules, and at the locks of which makers not."""

    name: str
    keep: Keep
    quiet: tuple[str, ...] = ()
    modules: tuple[str, ...] = STATEFUL


def touching(*names: str) -> Keep:
    """Only the statements that name one of these attributes, or call such a method.

    Between two of them a thread does nothing that another could notice, so no schedule is lost by not switching there.
    """
    wanted = frozenset(names)

    def keep(_function: str, statement: ast.stmt) -> bool:
        return any(isinstance(node, ast.Attribute) and node.attr in wanted for node in _own(statement))

    return keep


def every(_function: str, _statement: ast.stmt) -> bool:
    """All statements."""
    return True


def _own(statement: ast.stmt) -> Iterator[ast.AST]:
    """The nodes of a statement but for those of statements inside of it."""
    waiting: list[ast.AST] = [statement]
    while waiting:
        node = waiting.pop()
        yield node
        waiting += [child for child in ast.iter_child_nodes(node) if not isinstance(child, ast.stmt | ast.ExceptHandler)]


class _Placing(ast.NodeTransformer):
    """Puts the calls into a module's functions."""

    def __init__(self, module: str, keep: Keep, places: list[Place]) -> None:
        self._module, self._keep, self._places = module, keep, places
        self._names: list[str] = []
        self._functions = 0

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        self._names.append(node.name)
        self.generic_visit(node)
        self._names.pop()
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        self._names.append(node.name)
        self._functions += 1
        self.generic_visit(node)
        docstring = node.body[:1] if ast.get_docstring(node, clean=False) is not None else []
        node.body = docstring + self._placed(node.body[len(docstring):])
        self._functions -= 1
        self._names.pop()
        return node

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        if self._functions and not isinstance(node, ast.FunctionDef):
            for name in ("body", "orelse", "finalbody"):
                block = getattr(node, name, None)
                if isinstance(block, list):
                    setattr(node, name, self._placed(block))
        return node

    def _placed(self, block: list[ast.stmt]) -> list[ast.stmt]:
        found: list[ast.stmt] = []
        for statement in block:
            if not isinstance(statement, ast.Global | ast.Nonlocal | ast.Pass) and self._keep(".".join(self._names), statement):
                self._places.append(Place(self._module, ".".join(self._names), statement.lineno))
                call = ast.Call(ast.Name(NAME, ast.Load()), [ast.Constant(len(self._places) - 1)], [])
                found.append(ast.fix_missing_locations(ast.copy_location(ast.Expr(call), statement)))
            found.append(statement)
        return found


class Points:
    """The functions that get the points of one grain, whenever `placed` is entered."""

    def __init__(self, grain: Grain) -> None:
        self.grain = grain
        self._compiled = _compiled(grain)
        self.places = self._compiled.places
        self._codes: list[tuple[types.FunctionType, types.CodeType, types.CodeType]] = []
        self._modules = [importlib.import_module(f"statemachine.{name}") for name in grain.modules]
        for module in self._modules:
            self._prepare(module)

    def _prepare(self, module: types.ModuleType) -> None:
        for function in _functions(module):
            own = function.__code__
            code = self._compiled.codes.get((own.co_filename, own.co_qualname, own.co_firstlineno))
            if code is not None and code.co_freevars == own.co_freevars:
                self._codes.append((function, own, code))

    @contextlib.contextmanager
    def placed(self) -> Iterator[None]:
        """While this lasts, the library's functions call `point`; those that were replaced since stay as they are."""
        for module in self._modules:
            setattr(module, NAME, point)
        for function, _, code in self._codes:
            function.__code__ = code
        try:
            yield
        finally:
            for function, own, _ in self._codes:
                function.__code__ = own
            for module in self._modules:
                delattr(module, NAME)


class _Compiled(NamedTuple):
    """The code of every function with the points, by file, name and line; and where the points stand, by their number."""

    codes: dict[tuple[str, str, int], types.CodeType]
    places: tuple[Place, ...]


@functools.cache
def _compiled(grain: Grain) -> _Compiled:
    codes, places = dict[tuple[str, str, int], types.CodeType](), list[Place]()
    for name in grain.modules:
        module = importlib.import_module(f"statemachine.{name}")
        file = str(module.__file__)
        tree = ast.parse(Path(file).read_text(encoding="utf-8"), file)
        placed = _Placing(module.__name__, grain.keep, places).visit(tree)
        codes.update({(file, c.co_qualname, c.co_firstlineno): c for c in _codes(compile(placed, file, "exec"))})
    return _Compiled(codes, tuple(places))


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield constant
            yield from _codes(constant)


def _functions(module: types.ModuleType) -> Iterator[types.FunctionType]:
    """The functions and methods that a module defines, those behind decorators and properties too."""
    for value in list(vars(module).values()):
        if getattr(value, "__module__", None) != module.__name__:
            continue
        for member in vars(value).values() if isinstance(value, type) else (value,):
            yield from _behind(member)


def _behind(member: Any) -> Iterator[types.FunctionType]:
    if isinstance(member, property):
        for found in (member.fget, member.fset):
            yield from _behind(found)
    elif isinstance(member, classmethod | staticmethod):
        yield from _behind(member.__func__)
    else:
        inner = getattr(member, "__wrapped__", member)
        if isinstance(inner, types.FunctionType):
            yield inner
