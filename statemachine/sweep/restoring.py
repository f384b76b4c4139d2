"""The policy `restore`: a user whose head rests on an error is restored to a proven version, never edited.

Proven is a version before all the evidence that reads and passes the rules in force; of a head that is not the fold of its
log, the log's own newest version.  The restore is an attempt like any other: it expects the version that was judged, asks the
breaker, is validated, and is in the audit log whatever its outcome.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, NamedTuple

from statemachine.attempt import Attempt, Context
from statemachine.errors import (
    BreakerOpen,
    ConflictError,
    MutationFailed,
    ResetValidationError,
    StoreCorrupt,
    UserUnknown,
    VersionPruned,
)
from statemachine.recovery import last_known_good, restore
from statemachine.state import user_key
from statemachine.store import log
from statemachine.sweep.structure import CONFORMING, FOLD_HEAD
from statemachine.sweep.table import READABLE

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from statemachine.store import Store
    from statemachine.sweep.findings import Finding


class Restored(NamedTuple):
    """How it went with one user.

    `outcome`: "restored", "conflicted" (somebody else was faster), "refused" (by the breaker), "unproven" (no version to go
    back to), "failed", or "would restore" (a dry run); in all but the first nothing was changed.  `to_version` is the version
    gone back to, `version` the new one.
    """

    user: str
    outcome: str
    to_version: int | None = None
    version: int | None = None
    error: str = ""


def resting_on(findings: Iterable[Finding], newest_reset: int) -> list[Finding]:
    """The errors that the head rests on: those of its own course; what a reset has replaced is history."""
    return [finding for finding in findings if finding.severity == "error" and finding.rule != READABLE
            and (finding.rule == CONFORMING or finding.version >= newest_reset)]


def restore_user(  # noqa: PLR0913 - each is recorded
    context: Context, user: str, findings: Sequence[Finding], expect_version: int, *, actor: str, reason: str,
    dry_run: bool = False,
) -> Restored:
    """Restore one user; durable on return, raises CommitInDoubt and trouble with the store only.

    With `dry_run` nothing is written and no breaker asked: "would restore", or how it would fail.
    """
    try:
        target = _proven(context.store, user, findings, expect_version)
    except (StoreCorrupt, UserUnknown, VersionPruned) as error:
        return Restored(user, "unproven", error=str(error))
    if target is None:
        return Restored(user, "unproven", error="no version before the evidence reads and passes the rules in force")
    if dry_run:
        return _would(context.store, user, target)
    rules = ", ".join(sorted({finding.rule for finding in findings}))
    attempt = Attempt(user, "restore", reason, actor, f"sweep: {rules}", expect_version=expect_version)
    try:
        done = restore(context, attempt, target)
    except ConflictError as error:
        return Restored(user, "conflicted", target, error=str(error))
    except BreakerOpen as error:
        return Restored(user, "refused", target, error=str(error))
    except (MutationFailed, ResetValidationError, VersionPruned, StoreCorrupt) as error:
        return Restored(user, "failed", target, error=str(error))
    return Restored(user, "restored", target, done.version)


def _would(store: Store, user: str, target: int) -> Restored:
    """What a restore would come to, of a store that may be open for reading alone; the rules in force are asked."""
    try:
        loaded = store.load(user, target)
    except (VersionPruned, StoreCorrupt) as error:
        return Restored(user, "failed", target, error=str(error))
    broken = loaded.violations if loaded is not None else ()
    return Restored(user, "failed" if broken else "would restore", target, error="; ".join(map(str, broken)))


def _proven(store: Store, user: str, findings: Sequence[Finding], newest: int) -> int | None:
    """The version to go back to, None where there is none."""
    since = min(finding.since_version if finding.rule != FOLD_HEAD else newest + 1 for finding in findings)
    if since <= newest:
        good = last_known_good(store, user)
        if good < since:
            return good
    for version, _ in log.versions(store.engine.scan, user_key(user)):
        if version < since:
            with contextlib.suppress(StoreCorrupt):
                loaded = store.load(user, version)
                if loaded is not None and not loaded.violations:
                    return version
    return None
