"""Every error that resetguard raises on purpose, in one tree.

Grouped by what the handler should do::

    ResetError
    ├── TryLater                 nothing is wrong with the input: try again, later or from a fresh head
    │   ├── BreakerOpen          the circuit breaker refused; `retry_at_us` tells when a probe may run
    │   ├── ConflictError        another attempt committed first: read the head again
    │   ├── CommitInDoubt        the commit may or may not be durable: `manager.inspect(attempt_id)` settles it
    │   ├── StoreBusy            another writer holds the store for longer than the limit
    │   └── StoreFull            no room on the disk; the store works again once there is
    ├── FixTheInput              the call or the data must change
    │   ├── InvalidInput         a malformed argument, file, row or option (also a ValueError)
    │   ├── MutationFailed       an operation of the reset raised; the cause is chained
    │   ├── ResetValidationError the candidate broke rules; `violations` lists them
    │   ├── VersionPruned        the version is no longer (or never was) in the log; `first` is readable
    │   └── UserUnknown          nothing is stored for that user
    ├── StoreHurt                the store needs a person
    │   ├── StoreCorrupt         bytes that fail their checksum, or do not decode
    │   ├── StoreForeign         not a resetguard store, or of a schema, kernel or estimator unknown here
    │   └── StoreUnavailable     it cannot be opened or read: permissions, I/O, a lock, a fork, fenced
    └── ContractBroken           a bug in the caller, or in resetguard
        ├── InvalidTransition    a trigger that the phase does not allow (also a RuntimeError)
        └── InvariantViolation   one of INV-01 to INV-13 would not hold: please report it

Each carries `kind` (a stable lower-case word), `attempt_id` and `user`, None where they do not apply.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from collections.abc import Sequence


class ResetError(Exception):
    """The base of every error raised on purpose; `str()` is one sentence with the remedy where there is one."""

    kind: ClassVar[str] = "error"

    def __init__(self, message: str, *, user: str | None = None, attempt_id: str | None = None) -> None:
        super().__init__(message)
        self.problem = message
        self.user = user
        self.attempt_id = attempt_id


class TryLater(ResetError):
    """Nothing is wrong with the input; the same call may succeed later."""

    kind = "try-later"


class BreakerOpen(TryLater):
    """The circuit breaker refused the attempt before any mutation ran (INV-07).

    `scope` is "user" or "global", `reason` one of "open", "forced-open", "probing", "suspect" and "changed"; or both are
    "budget" where too many resets were committed within a minute.  With "changed", and with "budget" from a commit, the
    operations have run and were rolled back.  `retry_at_us` (microseconds since 1970 UTC) is None where it cannot be told.
    """

    kind = "breaker-open"

    def __init__(  # noqa: PLR0913 - each is an attribute that handlers read
        self, message: str, *, scope: str, reason: str, retry_at_us: int | None = None,
        user: str | None = None, attempt_id: str | None = None,
    ) -> None:
        super().__init__(message, user=user, attempt_id=attempt_id)
        self.scope = scope
        self.reason = reason
        self.retry_at_us = retry_at_us


class ConflictError(TryLater):
    """Another attempt changed the user after this one took its snapshot (INV-06); this one left nothing but its row.

    `reason` is "conflict", or "breaker" or "global breaker" where that changed, or "budget" where it was used up.
    """

    kind = "conflict"

    def __init__(
        self, message: str, *, reason: str = "conflict", user: str | None = None, attempt_id: str | None = None,
    ) -> None:
        super().__init__(message, user=user, attempt_id=attempt_id)
        self.reason = reason


class CommitInDoubt(TryLater):
    """The commit was under way when it was cut off; `manager.inspect(attempt_id)` says how it ended."""

    kind = "in-doubt"


class StoreBusy(TryLater):
    """Another writer held the store for longer than `StoreLimits.writer_wait_s_max`, or it is open where it must not be."""

    kind = "store-busy"


class StoreFull(TryLater):
    """The disk, or the largest allowed map, is full; nothing was lost and the store is usable again once there is room."""

    kind = "store-full"


class FixTheInput(ResetError):
    """The caller's arguments or data must change before the call can succeed."""

    kind = "fix-the-input"


class InvalidInput(FixTheInput, ValueError):
    """A malformed argument, file, row or option; the message names it, its value and the remedy."""

    kind = "invalid-input"


class MutationFailed(FixTheInput):
    """An operation raised, or returned something that is no state; `operation` names it, `__cause__` is what it raised."""

    kind = "mutation-failed"

    def __init__(
        self, message: str, *, operation: str, user: str | None = None, attempt_id: str | None = None,
    ) -> None:
        super().__init__(message, user=user, attempt_id=attempt_id)
        self.operation = operation


class ResetValidationError(FixTheInput):
    """A candidate broke rules; `operation` names what made it, `violations` every broken rule."""

    kind = "invalid-state"

    def __init__(
        self, message: str, *, operation: str, violations: Sequence[Any],
        user: str | None = None, attempt_id: str | None = None,
    ) -> None:
        super().__init__(message, user=user, attempt_id=attempt_id)
        self.operation = operation
        self.violations = tuple(violations)


class VersionPruned(FixTheInput):
    """The version is not in the log: retention dropped it, or it was never written; `first` to `last` are readable."""

    kind = "version-pruned"

    def __init__(self, message: str, *, first: int, last: int, user: str | None = None) -> None:
        super().__init__(message, user=user)
        self.first = first
        self.last = last


class UserUnknown(FixTheInput):
    """Nothing is stored for that user, so there is nothing to reset without a measurement, restore or show."""

    kind = "user-unknown"


class StoreHurt(ResetError):
    """The store needs a person; nothing was changed."""

    kind = "store-hurt"


class StoreCorrupt(StoreHurt):
    """A record fails its checksum or does not decode.  `newest_good` is the newest readable version, None if none is.

    `problem` is the message without the `remedy` that ends it.
    """

    kind = "store-corrupt"

    def __init__(
        self, message: str, *, user: str | None = None, newest_good: int | None = None, remedy: str = "",
    ) -> None:
        super().__init__(f"{message}; {remedy}" if remedy else message, user=user)
        self.newest_good = newest_good
        self.problem = message


class StoreForeign(StoreHurt):
    """Not a resetguard store, or one whose schema, kernel or estimator this program does not know."""

    kind = "store-foreign"


class StoreUnavailable(StoreHurt):
    """The store cannot be opened, read or written: permissions, I/O, already open, forked, closed, or fenced."""

    kind = "store-unavailable"


class ContractBroken(ResetError):
    """A bug in the caller or in resetguard, never in the data."""

    kind = "contract-broken"


class InvalidTransition(ContractBroken, RuntimeError):
    """A trigger was fired in a phase that does not allow it; `allowed` lists what the phase does allow."""

    kind = "invalid-transition"

    def __init__(
        self, trigger: str, phase: str, allowed: Sequence[str], *,
        user: str | None = None, attempt_id: str | None = None,
    ) -> None:
        expected = ", ".join(allowed) or "nothing"
        super().__init__(f"cannot {trigger} in phase {phase}; allowed there: {expected}", user=user, attempt_id=attempt_id)
        self.trigger = trigger
        self.phase = phase
        self.allowed = tuple(allowed)


class InvariantViolation(ContractBroken):
    """One of the numbered invariants would not hold; the message begins with its number."""

    kind = "invariant-violation"
