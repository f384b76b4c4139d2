"""The public door exports what it says, and the error tree is the one that is drawn."""

from __future__ import annotations

import inspect
import re
import types
from typing import TYPE_CHECKING

import statemachine
from statemachine import errors

if TYPE_CHECKING:
    from collections.abc import Iterator

# Handlers and readers of the audit log compare `kind`: a new error is a new line, and a line that is here stays.
KINDS = {
    "ResetError": "error",
    "TryLater": "try-later",
    "BreakerOpen": "breaker-open",
    "ConflictError": "conflict",
    "CommitInDoubt": "in-doubt",
    "StoreBusy": "store-busy",
    "StoreFull": "store-full",
    "FixTheInput": "fix-the-input",
    "InvalidInput": "invalid-input",
    "MutationFailed": "mutation-failed",
    "ResetValidationError": "invalid-state",
    "VersionPruned": "version-pruned",
    "UserUnknown": "user-unknown",
    "StoreHurt": "store-hurt",
    "StoreCorrupt": "store-corrupt",
    "StoreForeign": "store-foreign",
    "StoreUnavailable": "store-unavailable",
    "ContractBroken": "contract-broken",
    "InvalidTransition": "invalid-transition",
    "InvariantViolation": "invariant-violation",
}


def public_names(module: types.ModuleType) -> set[str]:
    """The names that `module` offers: no modules, nothing private, and not what `from __future__` leaves behind."""
    return {name for name, value in vars(module).items()
            if not name.startswith("_") and not isinstance(value, types.ModuleType)
            and type(value).__module__ != "__future__"}


def own_docstring(value: object) -> str:
    """The docstring of a class or function itself, of anything else that of its class; empty where there is none."""
    holder = value if isinstance(value, type | types.FunctionType) else type(value)
    return (vars(holder).get("__doc__") if isinstance(holder, type) else holder.__doc__) or ""


def drawn_tree(docstring: str) -> dict[str, tuple[str | None, set[str]]]:
    """Each class drawn: its parent (None for the root), and the other bases that its text names in `(also a ...)`."""
    tree: dict[str, tuple[str | None, set[str]]] = {}
    path: list[str] = []
    for line in docstring.splitlines():
        drawn = re.fullmatch(r"    ((?:│   |    )*)(├── |└── )?([A-Z]\w+)(?: .*)?", line)
        if drawn is None or not (drawn[2] or not path):
            continue
        depth = len(drawn[1]) // 4 + bool(drawn[2])
        del path[depth:]
        tree[drawn[3]] = (path[-1] if path else None, set(re.findall(r"\(also an? (\w+)\)", line)))
        path.append(drawn[3])
    return tree


def descendants(cls: type[BaseException]) -> Iterator[type[BaseException]]:
    yield cls
    for child in cls.__subclasses__():
        if child.__module__.split(".")[0] == "statemachine":  # tests elsewhere may derive their own
            yield from descendants(child)


def real_tree(root: type[BaseException]) -> dict[str, tuple[str | None, set[str]]]:
    """The same, of the classes as they are."""
    return {cls.__name__: (next((b.__name__ for b in cls.__bases__ if issubclass(b, root)), None),
                           {b.__name__ for b in cls.__bases__ if not issubclass(b, root)} - {"Exception"})
            for cls in descendants(root)}


def test_all_is_sorted_and_names_nothing_twice() -> None:
    assert list(statemachine.__all__) == sorted(set(statemachine.__all__))


def test_all_equals_what_can_be_imported() -> None:
    assert {name for name in statemachine.__all__ if not name.startswith("_")} == public_names(statemachine)
    assert [name for name in statemachine.__all__ if not hasattr(statemachine, name)] == []


def test_each_export_has_a_docstring() -> None:
    assert [name for name in statemachine.__all__ if not own_docstring(getattr(statemachine, name)).strip()] == []


def test_each_export_is_at_home_here() -> None:
    exports = {name: getattr(statemachine, name) for name in statemachine.__all__ if not name.startswith("__")}
    homes = {name: getattr(value, "__module__", type(value).__module__) for name, value in exports.items()}
    assert {name: home for name, home in homes.items() if home.split(".")[0] != "statemachine"} == {}


def test_each_error_is_exported() -> None:
    assert {cls.__name__ for cls in descendants(errors.ResetError)} - set(statemachine.__all__) == set()


def test_error_tree_is_the_one_drawn() -> None:
    assert drawn_tree(inspect.getsource(errors).split('"""')[1]) == real_tree(errors.ResetError)


def test_each_error_lives_in_the_one_module() -> None:
    assert {cls.__module__ for cls in descendants(errors.ResetError)} == {"statemachine.errors"}


def test_kinds_are_stable_and_unique() -> None:
    kinds = {cls.__name__: vars(cls).get("kind") for cls in descendants(errors.ResetError)}
    assert kinds == KINDS
    assert len(set(KINDS.values())) == len(KINDS)
    assert [kind for kind in KINDS.values() if not re.fullmatch(r"[a-z]+(-[a-z]+)*", kind)] == []


def test_leaks_and_missing_docstrings_are_found() -> None:
    """The checkers above see a planted name, and a class whose docstring is only inherited."""
    module = types.ModuleType("planted")
    exec("from __future__ import annotations\nimport json\nfrom re import escape\n_x = 1\nclass A:\n '''Doc.'''\n"  # noqa: S102
         "class B(A): pass\n", vars(module))
    assert public_names(module) == {"escape", "A", "B"}
    assert own_docstring(module.A) == "Doc."
    assert own_docstring(module.B) == ""
    assert own_docstring(module.B()) == ""


def test_tree_is_parsed_with_parents_and_other_bases() -> None:
    drawn = """Errors::

    Root
    ├── One         text with Words
    │   ├── Two     (also a ValueError) and more
    │   └── Three
    └── Four
        └── Five    last

Each carries.
"""
    assert drawn_tree(drawn) == {
        "Root": (None, set()), "One": ("Root", set()), "Two": ("One", {"ValueError"}), "Three": ("One", set()),
        "Four": ("Root", set()), "Five": ("Four", set()),
    }
