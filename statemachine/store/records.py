"""The records of the store, apart from audit rows and steps; each is msgpack in the frame of `statemachine.codec`."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import msgspec

from statemachine.state import Reading
from statemachine.validation import Violation

ACCEPTED: Final = 0
HELD: Final = 1
QUARANTINED: Final = 2
LATE: Final = 3
PRUNED: Final = "pruned"
"""The reason of a measurement or row kept aside whose content was dropped."""
DISPOSITIONS: Final = ("accepted", "held", "quarantined", "late")


class Probation(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The user is on probation since the reset at `since_us`; `accepted` measurements have fitted since."""

    since_us: int
    accepted: int
    kind: str
    version: int


class Head(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The end of a user's log.

    `author`: the attempt that made this version, "" for a step.  `images`: versions of the images at hand.
    `first`: the first readable version.  `run_since_us`: held measurements after it are evidence.
    `reset_us`: instant of the last reset.  `rules`: fingerprint of the rules that the state passed.
    """

    version: int
    state: bytes
    author: str
    kernel: int
    images: tuple[int, ...]
    first: int
    run_since_us: int
    reset_us: int
    rules: str
    probation: Probation | None = None


class Image(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A version stored whole: the state after it, who made it, its event time, the identities it admitted.

    `step` holds the step's own bytes where the version is an accepted measurement (a keyframe).
    """

    state: bytes
    kernel: int
    author: str
    kind: str
    at_us: int
    admitted: tuple[bytes, ...] = ()
    step: bytes = b""


class Pin(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The before-image of the reset that began the probation; version 0 and no state where nothing stood before."""

    version: int
    state: bytes
    kernel: int


class Swept(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How far a sweep judged the user's log: the version of its head, under which rules, and the versions told, by rule."""

    version: int
    rules: str
    told: dict[str, tuple[int, ...]] = {}


class Aside(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How many of a user's measurements are kept aside, and the greatest instant among those ever seen.

    `pruned` of those kept aside have lost their content: only the identity is left.
    """

    count: int
    last_us: int
    pruned: int = 0  # since schema 2


class Identity(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A measurement once seen: where it went and why, and what is needed to take it in later."""

    disposition: int
    values: tuple[float, ...]
    r: float
    value: str
    unit: str
    source: str
    source_id: int
    row: int
    reason: str = ""


class Unreadable(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A row that is no measurement, kept as it was read."""

    line: int
    raw: str
    reason: str
    user: str = ""
    file: str = ""


class Meta(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What the store is: its id, what kind of state it holds, and two counters."""

    store_id: str
    estimator: str
    estimator_schema: int
    kernel: int
    created_us: int
    owners: int = 0
    sources: int = 0


class Cursor(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How far a source was consumed: rows in processing order, the counts so far, and its two instants.

    `now_us`: the present of the source, fixed at its first run.  `latest_us`: the greatest event time seen in it.
    """

    source_id: int
    consumed: int
    totals: dict[str, int]
    now_us: int
    latest_us: int
    name: str = ""


class Loaded(NamedTuple):
    """A state as it is stored: `state`, its `version`, and the attempt that made it ("" for a measurement).

    `violations` is not empty when the state breaks rules newer than those it was committed under (nonconforming).
    `head_damaged` is true when the head could not be read and the state was folded from the log, nothing lost.
    """

    user: str
    version: int
    state: Any
    author: str
    violations: tuple[Violation, ...] = ()
    head_damaged: bool = False


class VersionInfo(NamedTuple):
    """One line of a history: what made the version; `kind` is "measurement" or the kind of the reset."""

    user: str
    version: int
    kind: str
    at_us: int
    author: str
    image: bool
    reading: Reading | None
    admitted: int


class Kept(NamedTuple):
    """One measurement or unreadable row kept aside: where it came from and why.

    `disposition`: "held" (it may still become evidence), "quarantined", "late" or "unreadable".
    """

    user: str
    at_us: int | None
    value: str
    unit: str
    source: str
    reason: str
    disposition: str
    source_id: int
    row: int
    raw: str = ""
    line: int = 0
    file: str = ""
