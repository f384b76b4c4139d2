"""An LMDB environment whose commits and reads fail as a test says, before or after they are really made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import lmdb

Commit = Callable[[], None]


class Disk:
    """An `opener` whose environments hand each commit of a write transaction to `commit`, while that is set.

    `commit` is called with the real commit; it may raise before calling it, or after.  `commits` counts real ones.
    An environment that `fails` refuses every transaction until it is opened anew; with `gone` none can be opened.
    """

    def __init__(self) -> None:
        self.commit: Callable[[Commit], None] | None = None
        self.commits = 0
        self.opened = 0
        self.gone = False
        self.environment: _Environment | None = None

    def __call__(self, *args: Any, **settings: Any) -> Any:
        if self.gone:
            raise lmdb.Error("the disk is gone")
        self.opened += 1
        self.environment = _Environment(self, lmdb.open(*args, **settings))
        return self.environment

    def fail(self) -> None:
        """From now on the open environment refuses everything."""
        assert self.environment is not None
        self.environment.fails = True

    def once(self, fault: Callable[[Commit], None]) -> None:
        """Hand the next commit alone to `fault`."""
        def commit(real: Commit) -> None:
            self.commit = None
            fault(real)

        self.commit = commit


class _Environment:
    def __init__(self, disk: Disk, env: lmdb.Environment) -> None:
        self._disk = disk
        self._env = env
        self.fails = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._env, name)

    def begin(self, *, write: bool = False) -> Any:
        if self.fails:
            raise lmdb.PanicError("the environment must be closed")
        txn = self._env.begin(write=write)
        return _Transaction(self._disk, txn) if write else txn


class _Transaction:
    def __init__(self, disk: Disk, txn: lmdb.Transaction) -> None:
        self._disk = disk
        self._txn = txn

    def __getattr__(self, name: str) -> Any:
        return getattr(self._txn, name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.commit()
        else:
            self._txn.abort()

    def commit(self) -> None:
        commit = self._disk.commit
        if commit is None:
            self._real()
            return
        try:
            commit(self._real)
        except BaseException:
            self._txn.abort()  # as LMDB ends a transaction whose commit fails; after a real commit it does nothing
            raise

    def _real(self) -> None:
        self._txn.commit()
        self._disk.commits += 1
