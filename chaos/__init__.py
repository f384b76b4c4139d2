"""chaos: what tries to break the library, and what holds it to its model.  It imports `statemachine`, never the reverse.

`Target` names what the suites are run on: your own state, rules and mutations.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chaos.target import Target

__all__ = ["Target"]


def __getattr__(name: str) -> Any:
    """`Target`, when it is asked for: every pytest of an environment loads `chaos.plugin`, and most have no use for the rest."""
    if name in __all__:
        return getattr(import_module("chaos.target"), name)
    message = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(message)
