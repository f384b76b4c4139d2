"""chaos: what tries to break the library, and what holds it to its model.  It imports `statemachine`, never the reverse.

`Target` names what the suites are run on: your own state, rules and mutations.
"""

from chaos.target import Target

__all__ = ["Target"]
