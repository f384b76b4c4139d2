"""Circuit breaker: pure decisions over (record, policy, now); the store keeps the records.

A user's breaker opens after `failures_max` consecutive failed resets, lets one probe through after a cooldown, closes
when the probe succeeds and opens for longer when it fails.  The global one opens when `users_max` *distinct* users
failed within `window_s` (INV-11).  `generation` grows with every change of mode, so that a result which began under an
earlier one changes nothing.  An input during whose user code the process died makes the user *suspect* (INV-07).

An operator's word beats every timer: "forced-open" refuses all, "forced-closed" admits all and counts nothing,
"metrics-only" admits all and counts.  Suspicion is refused in each of them: what kills the process is no matter of taste.

Two time bases exist: "event" (the stream being processed) and "wall" (live callers).  A record opened in one base is
compared with that base only; a caller of the other compares wall time with the wall time noted at the opening.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

import msgspec
import xxhash

US_PER_S: Final = 1_000_000
FAILING_MAX: Final = 1_000
SUSPECTS_KEPT_MAX: Final = 16

Mode = Literal["closed", "open", "half-open", "forced-open", "forced-closed", "metrics-only"]
Forced = Literal["forced-open", "forced-closed", "metrics-only"]
Result = Literal["success", "failure", "void", "died"]


class BreakerPolicy(msgspec.Struct, frozen=True):
    """When to open, for how long, and how fast that grows; `jitter` is the largest added fraction of a cooldown."""

    failures_max: int = 3
    suspects_max: int = 3
    users_max: int = 25
    window_s: float = 3_600.0
    cooldown_s: float = 3_600.0
    cooldown_factor: float = 2.0
    cooldown_s_max: float = 7 * 86_400.0
    jitter: float = 0.1


class Now(msgspec.Struct, frozen=True, gc=False):
    """The instant of a decision: in the caller's time base, and on the wall, in microseconds since 1970 UTC."""

    at_us: int
    wall_us: int
    base: Literal["event", "wall"] = "wall"


class Breaker(msgspec.Struct, frozen=True, array_like=True):
    """What is stored of one breaker, a user's or the global one.

    `failures`: consecutive ones.  `openings`: since it was last closed; the cooldown grows with it, and the jitter is
    drawn from it, so that a probe cut off by a crash does not move any later instant (INV-09).  `failing`: for the
    global breaker, (hash of the user, instant in us) of the failures in the window.  `suspects`: (input, base version,
    count) of attempts during which the process died.
    """

    mode: Mode = "closed"
    generation: int = 0
    failures: int = 0
    openings: int = 0
    opened_us: int = 0
    opened_wall_us: int = 0
    base: Literal["event", "wall"] = "wall"
    cooled: bool = False
    probe: str = ""
    probe_owner: int = 0
    failing: tuple[tuple[int, int], ...] = ()
    suspects: tuple[tuple[str, int, int], ...] = ()


CLOSED: Final = Breaker()


class Admission(NamedTuple):
    """The answer to "may an attempt begin?": `verdict`, why, and when a refused caller may try again."""

    verdict: Literal["admit", "probe", "refuse"]
    reason: str = ""
    retry_at_us: int | None = None


def admit(
    record: Breaker, policy: BreakerPolicy, now: Now, name: str, suspect: tuple[str, int] | None = None,
) -> Admission:
    """Decide whether an attempt may begin; `name` is the user's id, or "" for the global breaker.

    `suspect` is the attempt's (input, base version).  A "probe" must be leased with `lease`, durably, before it runs.
    """
    if suspect is not None:
        died = suspected(record, suspect)
        if died >= policy.suspects_max:
            return Admission("refuse", "suspect")
    if record.mode in ("closed", "forced-closed", "metrics-only"):
        return Admission("admit")
    if record.mode == "forced-open":
        return Admission("refuse", "forced-open")
    if record.mode == "half-open":
        return Admission("refuse", "probing")
    at_us, opened_us = (now.at_us, record.opened_us) if now.base == record.base else (now.wall_us, record.opened_wall_us)
    retry_at_us = opened_us + cooldown_us(record, policy, name)
    if record.cooled or at_us >= retry_at_us:
        return Admission("probe")
    return Admission("refuse", "open", retry_at_us)


def cooldown_us(record: Breaker, policy: BreakerPolicy, name: str) -> int:
    """How long the breaker stays open, in us: grows with `openings` to a limit, plus a jitter drawn from (name, openings)."""
    exponent = min(max(record.openings - 1, 0), 64)
    seconds = min(policy.cooldown_s * policy.cooldown_factor**exponent, policy.cooldown_s_max)
    draw = xxhash.xxh3_64_intdigest(f"{name}\0{record.openings}".encode()) / 2**64
    return int(seconds * (1.0 + policy.jitter * draw) * US_PER_S)


def lease(record: Breaker, attempt_id: str, owner: int) -> Breaker:
    """The half-open record in which `attempt_id` of `owner` holds the one probe."""
    return msgspec.structs.replace(
        record, mode="half-open", generation=record.generation + 1, cooled=False, probe=attempt_id, probe_owner=owner,
    )


def settle(  # noqa: PLR0913 - the whole of what a result is
    record: Breaker, policy: BreakerPolicy, result: Result, *, attempt_id: str, generation: int, now: Now,
    suspect: tuple[str, int] | None = None,
) -> Breaker:
    """A user's breaker after an attempt that began under `generation`; an earlier generation changes nothing.

    "void" is an end that says nothing about the reset (a conflict, a fence, a crash while it only waited): a probe gives
    its slot back.  "died" is a crash while user code ran: the same, and the input becomes suspect.
    """
    if result == "died":
        return released(record if suspect is None else suspicious(record, suspect), attempt_id)
    if result == "void":
        return released(record, attempt_id)
    if suspect is not None:
        record = cleared(record, suspect)
    if generation != record.generation or record.mode == "forced-closed":
        return record
    probing = record.mode == "half-open" and record.probe == attempt_id
    if result == "success":
        if probing:
            return Breaker(generation=record.generation + 1, suspects=record.suspects)
        return msgspec.structs.replace(record, failures=0) if record.failures else record
    failures = record.failures + 1
    if probing or (failures >= policy.failures_max and record.mode == "closed"):
        return opened(record, now)
    return msgspec.structs.replace(record, failures=failures)


def settle_global(  # noqa: PLR0913 - the whole of what a result is
    record: Breaker, policy: BreakerPolicy, result: Result, *, user: bytes, attempt_id: str, generation: int, now: Now,
) -> Breaker:
    """The global breaker after an attempt of `user`; it counts distinct users that failed within the window."""
    if result in ("void", "died"):
        return released(record, attempt_id)
    if generation != record.generation or record.mode == "forced-closed":
        return record
    probing = record.mode == "half-open" and record.probe == attempt_id
    if result == "success":
        return Breaker(generation=record.generation + 1) if probing else record
    if probing:
        return opened(record, now)
    since_us = now.at_us - int(policy.window_s * US_PER_S)
    mark = xxhash.xxh3_64_intdigest(user)
    failing = tuple((who, at) for who, at in record.failing if since_us < at <= now.at_us and who != mark)
    failing = (*failing, (mark, now.at_us))[-FAILING_MAX:]
    if record.mode == "closed" and len(failing) >= policy.users_max:
        return msgspec.structs.replace(opened(record, now), failing=())
    return msgspec.structs.replace(record, failing=failing)


def opened(record: Breaker, now: Now) -> Breaker:
    """The record opened at `now`, a generation on."""
    return msgspec.structs.replace(
        record, mode="open", generation=record.generation + 1, failures=0, openings=record.openings + 1,
        opened_us=now.at_us, opened_wall_us=now.wall_us, base=now.base, cooled=False, probe="", probe_owner=0,
    )


def forced(record: Breaker, mode: Forced) -> Breaker:
    """The record under an operator's word, a generation on: results of attempts that began before it change nothing."""
    return Breaker(mode=mode, generation=record.generation + 1, suspects=record.suspects)


def let_go(record: Breaker) -> Breaker:
    """The record closed by an operator, a generation on, with nothing counted and nobody suspect."""
    return Breaker(generation=record.generation + 1)


def released(record: Breaker, attempt_id: str) -> Breaker:
    """The record with `attempt_id`'s probe slot given back, so that the next attempt may probe at once."""
    if record.mode != "half-open" or record.probe != attempt_id:
        return record
    return msgspec.structs.replace(
        record, mode="open", generation=record.generation + 1, cooled=True, probe="", probe_owner=0,
    )


def suspected(record: Breaker, suspect: tuple[str, int]) -> int:
    """How often the process died while this input at this base version ran."""
    return sum(count for key, base, count in record.suspects if (key, base) == suspect)


def suspicious(record: Breaker, suspect: tuple[str, int]) -> Breaker:
    """The record with one more death of the process noted against (input, base version)."""
    count = suspected(record, suspect) + 1
    others = cleared(record, suspect).suspects[-(SUSPECTS_KEPT_MAX - 1):]
    return msgspec.structs.replace(record, suspects=(*others, (*suspect, count)))


def cleared(record: Breaker, suspect: tuple[str, int]) -> Breaker:
    """The record without suspicion of (input, base version): that attempt has completed."""
    kept = tuple(entry for entry in record.suspects if entry[:2] != suspect)
    return record if len(kept) == len(record.suspects) else msgspec.structs.replace(record, suspects=kept)
