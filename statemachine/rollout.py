"""Gradual rollout: for which users automatic resets are carried out; pure decisions, nothing stored and nothing asked here.

A rollout says what becomes of a reset that the policy has decided for a user.

- "on": it is carried out.
- "shadow": all of it runs and is validated, user code included; nothing of it is kept but a row in the audit log.
- "off": nothing runs, and a row in the audit log says so.

In both of the latter the measurement goes the way it goes after a refused reset: into the state as it stands where it fits
that, else it is kept aside as evidence, so that a later "on" loses nothing.

Deny beats allow, allow beats the percentage.  A denied user is always "off": it may be one whose reset does harm when it
merely runs.  Mode "off" is a stop for everybody, whatever the lists and `outside` say.

Governed are the resets that a measurement brings about: gap, manual-entry, level-shift and revocation.  Not governed is
`initial`, since a user without a state has nothing to harm and could not take any measurement in without one; nor is what a
person does by hand (`perform_reset`, `restore`, `recover`), who has decided already.
"""

from __future__ import annotations

from typing import Final, Literal, Protocol, cast, get_args

import msgspec
import xxhash

from statemachine.errors import InvalidInput
from statemachine.state import user_key

Verdict = Literal["on", "shadow", "off"]
VERDICTS: Final[tuple[Verdict, ...]] = get_args(Verdict)
UNGOVERNED: Final = frozenset({"initial"})
USERS_LISTED_MAX: Final = 1_000
NAME_BYTES_MAX: Final = 64
PERCENT_MAX: Final = 100
SLOTS: Final = 1_000_000
"""Into so many slots users fall by their hash; the percentage is counted in them, and so has at most four decimals."""
ROUNDING_SLOTS_MAX: Final = 0.01
"""What a decimal fraction may be off as a double."""


class Rollout(msgspec.Struct, frozen=True, array_like=True):
    """For whom automatic resets are carried out; nothing set is "on" for all.

    `mode`: what those inside get.  `percent` (0 to 100, at most four decimals) of users are inside, chosen by a hash of their
    id and `name`: the same users in every run, process and machine, and others under another name.  Users in `allow` are
    inside whatever their hash, users in `deny` are off.  `outside`: what all others get.  Raises InvalidInput for nonsense.
    """

    mode: Verdict = "on"
    percent: float = 100.0
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    outside: Literal["shadow", "off"] = "off"
    name: str = "resets"

    def __post_init__(self) -> None:
        """Refuse what cannot be meant; lists may hold a user twice and be in any order, and are kept sorted."""
        _one_of("mode", self.mode, VERDICTS)
        _one_of("outside", self.outside, ("shadow", "off"))
        _check_percent(self.percent)
        _check_name(self.name)
        for listed in ("allow", "deny"):
            msgspec.structs.force_setattr(self, listed, _users(listed, getattr(self, listed)))
        msgspec.structs.force_setattr(self, "percent", float(self.percent))


class RolloutProvider(Protocol):
    """Who decides instead of a stored rollout; asked from whatever thread has decided a reset, and only then."""

    def decide(self, user: str) -> Verdict:
        """What becomes of a reset of this user.  Whatever it raises or else answers, the stored rollout decides instead."""


def decide(rollout: Rollout, user: str) -> Verdict:
    """What becomes of an automatic reset of this user."""
    if rollout.mode == "off" or user in rollout.deny:
        return "off"
    if user in rollout.allow or slot(rollout.name, user) < round(rollout.percent * SLOTS / PERCENT_MAX):
        return rollout.mode
    return rollout.outside


def slot(name: str, user: str) -> int:
    """Where a user falls under a rollout's name, 0 to SLOTS - 1; a user whose slot is below the share is inside.

    So a greater percentage only adds users.  It is a hash of bytes, and does not depend on Python's own.
    """
    return xxhash.xxh3_64_intdigest(name.encode() + b"\0" + user_key(user)) % SLOTS


def as_verdict(answer: object) -> Verdict:
    """What a provider answered, as a verdict; raises InvalidInput where it is none."""
    _one_of("answer", answer, VERDICTS)
    return cast("Verdict", answer)


def _one_of(what: str, value: object, known: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in known:
        message = f"the {what} of a rollout must be one of {', '.join(known)}; it is {value!r:.80}"
        raise InvalidInput(message)


def _check_percent(percent: object) -> None:
    number = isinstance(percent, int | float) and not isinstance(percent, bool)
    if not (number and 0 <= cast("float", percent) <= PERCENT_MAX):
        message = f"the percentage of a rollout must be a number from 0 to 100; it is {percent!r:.80}"
        raise InvalidInput(message)
    slots = cast("float", percent) * SLOTS / PERCENT_MAX
    if abs(slots - round(slots)) > ROUNDING_SLOTS_MAX:
        message = f"the percentage of a rollout has at most four decimals; it is {percent!r}"
        raise InvalidInput(message)


def _check_name(name: object) -> None:
    known = name.encode("utf-8", "replace") if isinstance(name, str) else b""
    if not known.strip() or len(known) > NAME_BYTES_MAX or b"\0" in known or known.decode() != name:
        message = f"the name of a rollout must have 1 to {NAME_BYTES_MAX} bytes of text without NUL; it is {name!r:.80}"
        raise InvalidInput(message)


def _users(which: str, users: object) -> tuple[str, ...]:
    if not isinstance(users, tuple | list | set | frozenset):
        message = f"{which} must be a list of user ids; it is {users!r:.80}"
        raise InvalidInput(message)
    for user in users:
        user_key(user)
    if len(set(users)) > USERS_LISTED_MAX:
        message = f"{which} names {len(set(users))} users, more than {USERS_LISTED_MAX}; raise the percentage instead"
        raise InvalidInput(message)
    return tuple(sorted(set(users)))
