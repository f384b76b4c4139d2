"""Circuit breaker and budget: pure decisions over (record, policy, now); the store keeps the records.

A user's breaker opens after `failures_max` consecutive failed resets, or when too large a share of the resets in a
window failed.  After a cooldown it is half-open: one probe at a time is let through, `successes_to_close` of them in
succession close it, and one that fails opens it for longer.  The global one opens when `users_max` *distinct* users
failed within its window, or too large a share (INV-11: a user that fails for ever is one).  `generation` grows with
every change of mode and of the probe's holder, so that a result which began under an earlier one changes nothing.  An
input during whose user code the process died makes the user *suspect* (INV-07).

An operator's word beats every timer: "forced-open" refuses all, "forced-closed" admits all and counts nothing,
"metrics-only" admits all and counts.  Suspicion is refused in each of them: what kills the process is no matter of taste.

Two time bases exist: "event" (the stream being processed) and "wall" (live callers).  A record opened in one base is
compared with that base only; a caller of the other compares wall time with the wall time noted at the opening.  What is
counted over a window is counted in each base apart, so that a live caller moves no decision of a stream (INV-13).

The budget limits how many resets all users together commit within any minute (`affordable`, `spent`).
"""

from __future__ import annotations

from typing import Any, Final, Literal, NamedTuple, get_args

import msgspec
import xxhash

from statemachine.errors import InvalidInput

US_PER_S: Final = 1_000_000
FAILING_MAX: Final = 1_000
SUSPECTS_KEPT_MAX: Final = 16
SLOTS: Final = 12
SLOTS_KEPT_MAX: Final = 4 * SLOTS
BUDGET_S: Final = 60
SECONDS_KEPT_MAX: Final = 4 * BUDGET_S
SECONDS_MAX: Final = 100 * 366 * 86_400.0
COUNT_MAX: Final = 1_000_000_000

Base = Literal["event", "wall"]
Mode = Literal["closed", "open", "half-open", "forced-open", "forced-closed", "metrics-only"]
Forced = Literal["forced-open", "forced-closed", "metrics-only"]
ADMITTING: Final[frozenset[Mode]] = frozenset({"closed", "forced-closed", "metrics-only"})
"""The modes in which every attempt is admitted, but for what is suspect."""
FORCED: Final[tuple[Forced, ...]] = get_args(Forced)
Result = Literal["success", "failure", "void", "died"]
Why = Literal["", "failures", "rate", "users", "probe"]
Slots = tuple[tuple[int, int, int], ...]


class _Policy(msgspec.Struct, frozen=True, kw_only=True):
    """What the breakers of users and the global one have in common; see `BreakerPolicy`."""

    failure_rate_max: float | None = 0.5
    attempts_min: int = 10
    window_s: float = 3_600.0
    cooldown_s: float = 3_600.0
    cooldown_factor: float = 2.0
    cooldown_s_max: float = 7 * 86_400.0
    jitter: float = 0.1
    successes_to_close: int = 1

    def __post_init__(self) -> None:
        """Raise InvalidInput for a figure that no breaker could work by, naming it and what it must be."""
        if self.failure_rate_max is not None:
            self._check("failure_rate_max", 0.0, 1.0, above=True)
        self._check("attempts_min", 1, COUNT_MAX)
        self._check("window_s", 0.0, SECONDS_MAX, above=True)
        self._check("cooldown_s", 0.0, SECONDS_MAX)
        self._check("cooldown_factor", 1.0, 1_000.0)
        self._check("cooldown_s_max", float(self.cooldown_s), SECONDS_MAX)
        self._check("jitter", 0.0, 1.0)
        self._check("successes_to_close", 1, COUNT_MAX)

    def _check(self, field: str, least: float, most: float, *, above: bool = False) -> None:
        checked(f"{type(self).__name__}.{field}", getattr(self, field), least, most, above=above)


class BreakerPolicy(_Policy, frozen=True, kw_only=True):
    """When a user's breaker opens, for how long, and when it closes again.

    It opens after `failures_max` failures in a row, or when at least `attempts_min` resets ended within `window_s` and
    the share of them that failed is at least `failure_rate_max` (None: the share does not matter), judged at a failure.
    The window is counted in twelfths: it reaches `window_s` back, and at most one twelfth further.

    The first cooldown is `cooldown_s`; each opening without a closing between makes it `cooldown_factor` times as long, 64
    times at most and up to `cooldown_s_max`; `jitter` is the largest fraction added to it.  After it, `successes_to_close`
    probes in succession close the breaker.  An input on which the process died `suspects_max` times is refused.

    Raises InvalidInput for a figure out of its bounds.
    """

    failures_max: int = 3
    suspects_max: int = 3
    window_s: float = 30 * 86_400.0

    def __post_init__(self) -> None:
        """Raise InvalidInput for a figure out of its bounds."""
        self._check("failures_max", 1, COUNT_MAX)
        self._check("suspects_max", 1, COUNT_MAX)
        _Policy.__post_init__(self)


class GlobalBreakerPolicy(_Policy, frozen=True, kw_only=True):
    """When the global breaker opens, for how long, and when it closes again; what both have is as in `BreakerPolicy`.

    It opens when `users_max` distinct users failed within `window_s` (None: their number does not matter), or when the share
    is too large; a user counts once in that share, however often it failed within the window.  Beyond 1,000 failing users
    in one window those that failed longest ago may count again.  Raises InvalidInput for a figure out of its bounds.
    """

    users_max: int | None = 25
    attempts_min: int = 20

    def __post_init__(self) -> None:
        """Raise InvalidInput for a figure out of its bounds."""
        if self.users_max is not None:
            self._check("users_max", 1, FAILING_MAX)
        _Policy.__post_init__(self)


class Now(msgspec.Struct, frozen=True, gc=False):
    """The instant of a decision: in the caller's time base, and on the wall, in microseconds since 1970 UTC."""

    at_us: int
    wall_us: int
    base: Base = "wall"


class Breaker(msgspec.Struct, frozen=True, array_like=True):
    """What is stored of one breaker, a user's or the global one.  New fields come last: older records read.

    `failures`: consecutive ones.  `openings`: since it was last closed; the cooldown grows with it, and the jitter is
    drawn from it, so that a probe cut off by a crash does not move any later instant (INV-09).  `probe`: the attempt that
    holds the one slot of a half-open breaker, "" while it is free.  `failing`: for the global breaker, (hash of the user,
    instant in us) of the failures in the window.  `suspects`: (input, base version, count) of attempts during which the
    process died.  `successes`: of probes in succession.  `opened_by` and `retry_us`: why it opened last, and when a probe
    may run by the policy of that attempt.  `ended`: (begin in us, attempts, failed ones) of each twelfth of the window.
    What has "_event" counts the same in event time.  `cooled` was set by earlier versions where a probe was given back.
    """

    mode: Mode = "closed"
    generation: int = 0
    failures: int = 0
    openings: int = 0
    opened_us: int = 0
    opened_wall_us: int = 0
    base: Base = "wall"
    cooled: bool = False
    probe: str = ""
    probe_owner: int = 0
    failing: tuple[tuple[int, int], ...] = ()
    suspects: tuple[tuple[str, int, int], ...] = ()
    successes: int = 0
    opened_by: Why = ""
    retry_us: int = 0
    ended: Slots = ()
    failing_event: tuple[tuple[int, int], ...] = ()
    ended_event: Slots = ()


class Budget(msgspec.Struct, frozen=True, array_like=True):
    """How many resets were committed lately: (second since 1970 UTC, count), in each time base apart."""

    wall: tuple[tuple[int, int], ...] = ()
    event: tuple[tuple[int, int], ...] = ()


CLOSED: Final = Breaker()
UNSPENT: Final = Budget()


class Admission(NamedTuple):
    """The answer to "may an attempt begin?": `verdict`, why, and when a refused caller may try again."""

    verdict: Literal["admit", "probe", "refuse"]
    reason: str = ""
    retry_at_us: int | None = None


def admit(
    record: Breaker, policy: BreakerPolicy | GlobalBreakerPolicy, now: Now, name: str, suspect: tuple[str, int] | None = None,
) -> Admission:
    """Decide whether an attempt may begin; `name` is the user's id, or "" for the global breaker.

    `suspect` is the attempt's (input, base version).  A "probe" must be leased with `lease`, durably, before it runs.
    """
    if suspect is not None and isinstance(policy, BreakerPolicy) and suspected(record, suspect) >= policy.suspects_max:
        return Admission("refuse", "suspect")
    if record.mode in ADMITTING:
        return Admission("admit")
    if record.mode == "forced-open":
        return Admission("refuse", "forced-open")
    if record.mode == "half-open":
        return Admission("refuse", "probing") if record.probe else Admission("probe")
    at_us, opened_us = (now.at_us, record.opened_us) if now.base == record.base else (now.wall_us, record.opened_wall_us)
    retry_at_us = opened_us + cooldown_us(record, policy, name)
    if record.cooled or at_us >= retry_at_us:
        return Admission("probe")
    return Admission("refuse", "open", retry_at_us)


def cooldown_us(record: Breaker, policy: BreakerPolicy | GlobalBreakerPolicy, name: str) -> int:
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
    suspect: tuple[str, int] | None = None, name: str = "",
) -> Breaker:
    """The breaker of the user `name` after an attempt that began under `generation`; an earlier one changes nothing.

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
    if record.mode not in ("closed", "metrics-only"):
        return _probed(record, policy, result, attempt_id, now, name)
    failed = result == "failure"
    slots = counted(_slots(record, now), policy, now.at_us, ended=1, failed=int(failed))
    record = _with_slots(record, now, slots)
    if not failed:
        return msgspec.structs.replace(record, failures=0) if record.failures else record
    record = msgspec.structs.replace(record, failures=record.failures + 1)
    if record.mode != "closed":
        return record
    if record.failures >= policy.failures_max:
        return opened(record, policy, now, "failures", name)
    return opened(record, policy, now, "rate", name) if too_many(slots, policy, now.at_us) else record


def settle_global(  # noqa: PLR0913 - the whole of what a result is
    record: Breaker, policy: GlobalBreakerPolicy, result: Result, *, user: bytes, attempt_id: str, generation: int, now: Now,
) -> Breaker:
    """The global breaker after an attempt of `user`; it counts distinct users that failed within the window."""
    if result in ("void", "died"):
        return released(record, attempt_id)
    if generation != record.generation or record.mode == "forced-closed":
        return record
    if record.mode not in ("closed", "metrics-only"):
        return _probed(record, policy, result, attempt_id, now, "")
    slots = _slots(record, now)
    if result == "success":
        return _with_slots(record, now, counted(slots, policy, now.at_us, ended=1, failed=0))
    mark = xxhash.xxh3_64_intdigest(user)
    width_us = _width_us(policy)
    oldest_us = now.at_us - (SLOTS + 1) * width_us
    failing = tuple((who, at_us) for who, at_us in _failing(record, now) if at_us - at_us % width_us > oldest_us)
    window_us = int(policy.window_s * US_PER_S)
    before_us = next((at_us for who, at_us in failing if who == mark), None)
    if before_us is None or not now.at_us <= before_us < now.at_us + window_us:  # else it is counted already, and later
        slots = counted(slots, policy, now.at_us, ended=1, failed=1)
        if before_us is not None and before_us < now.at_us:  # it is counted once, where it failed last
            slots = counted(slots, policy, now.at_us, ended=-1, failed=-1, slot_us=before_us)
        failing = (*(entry for entry in failing if entry[0] != mark), (mark, now.at_us))[-FAILING_MAX:]
    field = "failing" if now.base == "wall" else "failing_event"
    record = _with_slots(msgspec.structs.replace(record, **{field: failing}), now, slots)
    if record.mode != "closed":
        return record
    users = sum(-window_us < at_us - now.at_us < window_us for _, at_us in failing)
    if policy.users_max is not None and users >= policy.users_max:
        return opened(record, policy, now, "users", "")
    return opened(record, policy, now, "rate", "") if too_many(slots, policy, now.at_us) else record


def _probed(  # noqa: PLR0913 - the whole of what a result is
    record: Breaker, policy: BreakerPolicy | GlobalBreakerPolicy, result: Result, attempt_id: str, now: Now, name: str,
) -> Breaker:
    """The record after a result while it is not closed: only the probe's own says anything."""
    if record.mode != "half-open" or record.probe != attempt_id:
        return record
    if result == "failure":
        return opened(record, policy, now, "probe", name)
    successes = record.successes + 1
    if successes >= policy.successes_to_close:
        return Breaker(generation=record.generation + 1, suspects=record.suspects)
    return msgspec.structs.replace(record, generation=record.generation + 1, probe="", probe_owner=0, successes=successes)


def opened(record: Breaker, policy: BreakerPolicy | GlobalBreakerPolicy, now: Now, why: Why, name: str) -> Breaker:
    """The record opened at `now`, a generation on, with nothing counted."""
    record = Breaker(
        mode="open", generation=record.generation + 1, openings=record.openings + 1, opened_us=now.at_us,
        opened_wall_us=now.wall_us, base=now.base, suspects=record.suspects, opened_by=why,
    )
    return msgspec.structs.replace(record, retry_us=now.at_us + cooldown_us(record, policy, name))


def forced(record: Breaker, mode: Forced) -> Breaker:
    """The record under an operator's word, a generation on: results of attempts that began before it change nothing.

    Raises InvalidInput for another mode: what is stored must read again.
    """
    if mode not in FORCED:
        message = f"a breaker cannot be put under the mode {mode!r}; choose one of {', '.join(FORCED)}"
        raise InvalidInput(message)
    return Breaker(mode=mode, generation=record.generation + 1, suspects=record.suspects)


def let_go(record: Breaker) -> Breaker:
    """The record closed by an operator, a generation on, with nothing counted and nobody suspect."""
    return Breaker(generation=record.generation + 1)


def released(record: Breaker, attempt_id: str) -> Breaker:
    """The record with `attempt_id`'s probe slot given back: still half-open, and the next attempt may probe at once."""
    if record.mode != "half-open" or not attempt_id or record.probe != attempt_id:
        return record
    return msgspec.structs.replace(record, generation=record.generation + 1, probe="", probe_owner=0)


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


def counted(  # noqa: PLR0913 - what is counted, and where
    slots: Slots, policy: BreakerPolicy | GlobalBreakerPolicy, now_us: int, *, ended: int, failed: int,
    slot_us: int | None = None,
) -> Slots:
    """The slots with so many attempts more at an instant (by default the present), and without those before the window.

    An attempt counts at the instant of its beginning, and they end in any order: so what lies up to a window after the
    present counts too.  What lies further on is another stream's: it counts nothing here, and stays.
    """
    if policy.failure_rate_max is None:
        return ()
    width_us = _width_us(policy)
    oldest_us = now_us - (SLOTS + 1) * width_us
    at_us = now_us if slot_us is None else slot_us
    begin_us = at_us - at_us % width_us
    if slot_us is None and slots and slots[-1][0] == begin_us:  # as nearly always, and quicker
        return (*slots[:-1], (begin_us, slots[-1][1] + ended, slots[-1][2] + failed))
    found = {begin: (before, bad) for begin, before, bad in slots if begin > oldest_us}
    before, bad = found.get(begin_us, (0, 0))
    found[begin_us] = (max(before + ended, 0), max(bad + failed, 0))
    nearest = sorted(found, key=lambda begin: abs(begin - now_us))[:SLOTS_KEPT_MAX]
    return tuple((begin, *found[begin]) for begin in sorted(nearest) if found[begin][0])


def too_many(slots: Slots, policy: BreakerPolicy | GlobalBreakerPolicy, now_us: int) -> bool:
    """Whether enough attempts ended in the window, and too large a share of them failed."""
    if policy.failure_rate_max is None:
        return False
    width_us = _width_us(policy)
    reach_us = SLOTS * width_us
    within = [(ended, failed) for begin, ended, failed in slots if now_us - reach_us - width_us < begin <= now_us + reach_us]
    attempts, bad = sum(ended for ended, _ in within), sum(failed for _, failed in within)
    return attempts >= policy.attempts_min and bad / attempts >= policy.failure_rate_max


def _width_us(policy: BreakerPolicy | GlobalBreakerPolicy) -> int:
    """A twelfth of the window, rounded up, in us."""
    return max(-(-int(policy.window_s * US_PER_S) // SLOTS), 1)


def _slots(record: Breaker, now: Now) -> Slots:
    return record.ended if now.base == "wall" else record.ended_event


def _with_slots(record: Breaker, now: Now, slots: Slots) -> Breaker:
    if slots == _slots(record, now):
        return record
    return msgspec.structs.replace(record, **{"ended" if now.base == "wall" else "ended_event": slots})


def _failing(record: Breaker, now: Now) -> tuple[tuple[int, int], ...]:
    return record.failing if now.base == "wall" else record.failing_event


def affordable(record: Budget, resets_per_minute: int, now: Now) -> Admission:
    """Whether one more reset may be committed now; a refusal tells when the next may, if no other takes that place.

    Whole seconds are counted, on either side of the present since attempts end in any order, so that no span of sixty seconds
    holds more than `resets_per_minute`, wherever it begins.
    """
    second = now.at_us // US_PER_S
    within = [(begin, count) for begin, count in _seconds(record, now) if abs(begin - second) <= BUDGET_S]
    excess = sum(count for _, count in within) - resets_per_minute + 1
    if excess <= 0:
        return Admission("admit")
    for begin, count in within:
        excess -= count
        if excess <= 0:
            return Admission("refuse", "budget", (begin + BUDGET_S + 1) * US_PER_S)
    return Admission("refuse", "budget")


def spent(record: Budget, now: Now) -> Budget:
    """The record with one reset more at `now`, and without what is over two minutes old."""
    second = now.at_us // US_PER_S
    found = {begin: count for begin, count in _seconds(record, now) if begin >= second - 2 * BUDGET_S}
    found[second] = found.get(second, 0) + 1
    nearest = sorted(found, key=lambda begin: abs(begin - second))[:SECONDS_KEPT_MAX]
    return msgspec.structs.replace(record, **{now.base: tuple((begin, found[begin]) for begin in sorted(nearest))})


def resets_counted(record: Budget, now: Now) -> int:
    """How many resets count against a budget now."""
    second = now.at_us // US_PER_S
    return sum(count for begin, count in _seconds(record, now) if abs(begin - second) <= BUDGET_S)


def _seconds(record: Budget, now: Now) -> tuple[tuple[int, int], ...]:
    return record.wall if now.base == "wall" else record.event


def checked(name: str, value: Any, least: float, most: float, *, above: bool = False) -> None:
    """Raise InvalidInput unless `value` is a figure from `least` (or above it) to `most`, whole where they are whole."""
    whole = isinstance(least, int)
    kinds = (int,) if whole else (int, float)
    sound = isinstance(value, kinds) and not isinstance(value, bool) and least <= value <= most  # NaN is nowhere
    if not sound or (above and value == least):
        kind = "a whole number" if whole else "a finite number"
        bound = f"above {least:,}" if above else f"at least {least:,}"
        message = f"{name} is {value!r}; it must be {kind}, {bound} and at most {most:,}"
        raise InvalidInput(message)
