"""One LMDB environment that several stores of one process are opened over, each with its own owner, and its renewal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

    from statemachine.store.engine import Engine


class Tenant:
    """The one environment, as each process has it: it cannot be closed by one of them."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def close(self) -> None:
        """Leave it open for the others."""


class Reader(NamedTuple):
    """Enough of a store to read its own record from."""

    engine: Engine


def renew(engine: Engine, records: Iterable[tuple[bytes, bytes]]) -> None:
    """Put these records, and no others, into the environment, in one transaction."""
    with engine.turn(), engine.write() as txn:
        with txn.cursor() as cursor:
            there = cursor.first()
            while there:
                there = cursor.delete()
        for key, value in records:
            txn.put(key, value)
