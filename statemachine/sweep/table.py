"""Stored logs as one table: the readings of many users one behind the other, and the lanes that fold them.

A lane begins at an image and takes the steps after it, up to the step that the next image also is.  So every version is
folded from the newest image before it, as `store.log.fold` does it, and each image is met by the fold of the one before.
What cannot be read ends a lane; the next image begins another, and what lies between is named and left out.
"""

from __future__ import annotations

from itertools import compress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from statemachine import codec, naming
from statemachine.errors import StoreCorrupt, StoreForeign
from statemachine.state import Reading
from statemachine.store.log import version_content
from statemachine.store.records import Image
from statemachine.sweep.findings import Finding
from statemachine.vectorised import Lanes

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from statemachine.estimator import Estimator
    from statemachine.store.reading import StoredLog
    from statemachine.sweep.findings import Flags, Ints

READABLE: Final = "readable"
_KIND_AT: Final = 16
_READ: Final = "readable, or nothing after it can be proven"


class Lane(NamedTuple):
    """One lane: whose, from which version's image, whether that is a keyframe, and the versions it takes in (after, to last].

    `met`: the bytes of the image that its last step also is, b"" where it ends otherwise.  `reset` is the version of the
    course's beginning, see `Courses.reset`.
    """

    user: int
    version: int
    state: Any
    last: int
    met: bytes
    reset: int


class Table(NamedTuple):
    """The logs of a chunk: the lanes, the rows they take, for each row its user and version, and what could not be read."""

    users: tuple[str, ...]
    ranges: tuple[tuple[int, int], ...]
    lanes: tuple[Lane, ...]
    rows: Lanes
    user: Ints
    version: Ints
    findings: tuple[Finding, ...]


class _Part(NamedTuple):
    """A log's records that are no plain steps, by their place (oldest first), and where its records lie in the chunk."""

    first: int
    numbers: Ints
    others: dict[int, Image | tuple[Reading, int] | str]


def tabulated(logs: Sequence[StoredLog], estimator: Estimator) -> Table:
    """The logs of a chunk as a table.  Raises nothing for damage: it becomes findings of the rule "readable"."""
    flags = [[_is_plain(record) for _, record in reversed(log.versions)] for log in logs]
    steps = codec.decode_steps([row for log, plain in zip(logs, flags, strict=True)
                                for row in compress(reversed(log.versions), plain)])
    columns = _Columns(sum(len(log.versions) for log in logs))
    parts = []
    first = taken = 0
    for log, shapes in zip(logs, flags, strict=True):
        plain = np.array(shapes, np.bool_) if steps is not None else np.zeros(len(log.versions), np.bool_)
        part = _part(log, first, plain)
        if steps is not None:
            taken = columns.plain(first, plain, steps, taken)
            for place in np.flatnonzero(plain)[columns.kernels[first:first + len(plain)][plain] != estimator.kernel].tolist():
                part.others[place] = f"it was made by arithmetic {columns.kernels[first + place]}, here is {estimator.kernel}"
        parts.append(part)
        first += len(log.versions)
    columns.others(parts, estimator.kernel)
    lanes: list[Lane] = []
    findings: list[Finding] = []
    for number, (log, part) in enumerate(zip(logs, parts, strict=True)):
        _Laid(number, log.user.decode(), part, estimator, lanes, findings).lay()
    return _compressed(logs, parts, lanes, findings, columns)


def _is_plain(record: bytes) -> bool:
    return len(record) == codec.STEP_BYTES and record[_KIND_AT] == codec.STEP


def _part(log: StoredLog, first: int, plain: Flags) -> _Part:
    records = log.versions[::-1]
    tails = b"".join([key[-8:] for key, _ in records])
    numbers = (np.uint64(2**64 - 1) - np.frombuffer(tails, ">u8").astype(np.uint64)).astype(np.int64)
    others: dict[int, Image | tuple[Reading, int] | str] = {}
    for place in np.flatnonzero(~plain).tolist():
        key, record = records[place]
        try:
            others[place] = version_content(codec.unseal(key, record))
        except (StoreCorrupt, StoreForeign) as error:
            others[place] = error.problem.replace(naming.record(key), "its record")
    return _Part(first, numbers, others)


class _Columns:
    """The columns of all records of a chunk, before those that are no readings are taken out."""

    def __init__(self, records: int) -> None:
        self.at_us: Ints = np.zeros(records, np.int64)
        self.values = np.zeros((records, 1))
        self.r = np.zeros(records)
        self.kernels: Ints = np.zeros(records, np.int64)

    def plain(self, first: int, plain: Flags, steps: codec.Steps, taken: int) -> int:
        """Put the next plain steps in their places; how many were taken in all."""
        places = first + np.flatnonzero(plain)
        end = taken + len(places)
        self.at_us[places], self.values[places, 0] = steps.at_us[taken:end], steps.values[taken:end]
        self.r[places], self.kernels[places] = steps.r[taken:end], steps.kernels[taken:end]
        return end

    def others(self, parts: Iterable[_Part], kernel: int) -> None:
        """Put the readings of all other records in their places; one that does not belong here becomes its text."""
        width = 0
        for part in parts:
            for place, found in part.others.items():
                if isinstance(found, str):
                    continue
                try:
                    reading, made_by = _reading(found)
                except StoreCorrupt as error:
                    part.others[place] = str(error)
                    continue
                if reading is None:
                    continue
                if not width and len(reading.values) != self.values.shape[1]:
                    self.values = np.zeros((len(self.at_us), len(reading.values)))
                width = self.values.shape[1]
                if len(reading.values) != width or (made_by != kernel and not isinstance(found, Image)):
                    part.others[place] = (f"it was made by arithmetic {made_by} of {len(reading.values)} values; "
                                          f"here is {kernel} of {width}")
                    continue
                row = part.first + place
                self.at_us[row], self.values[row], self.r[row] = reading.at_us, reading.values, reading.r


def _reading(found: Image | tuple[Reading, int]) -> tuple[Reading | None, int]:
    if isinstance(found, Image):
        return codec.decode_step(found.step) if found.step else (None, 0)
    return found


class _Laid:
    """Lay the lanes of one user."""

    def __init__(  # noqa: PLR0913 - the parts of the table
        self, number: int, user: str, part: _Part, estimator: Estimator, lanes: list[Lane], findings: list[Finding],
    ) -> None:
        self.number = number
        self.user = user
        self.part = part
        self.estimator = estimator
        self.lanes = lanes
        self.findings = findings
        self.open: tuple[int, Any] | None = None
        self.reset = 0

    def lay(self) -> None:
        """All lanes, and a finding for each stretch of versions that none of them reaches."""
        numbers, others = self.part.numbers, self.part.others
        gaps = set((np.flatnonzero(np.diff(numbers) != 1) + 1).tolist())
        if len(numbers) and not isinstance(others.get(0), Image | str):
            self.bad(int(numbers[0]), "there is no image before it")
        for place in sorted(gaps | set(others)):
            version = int(numbers[place])
            if place in gaps:
                before = int(numbers[place - 1])
                self.close(before, b"")
                many = f", as are those to version {version - 1}" if version - before > 2 else ""  # noqa: PLR2004 - one is missing
                self.bad(before + 1, f"it is missing from the log{many}")
            found = others.get(place)
            if isinstance(found, str):
                self.close(version - 1, b"")
                self.bad(version, found)
            elif isinstance(found, Image):
                self.image(version, found)
        if len(numbers):
            self.close(int(numbers[-1]), b"")

    def image(self, version: int, image: Image) -> None:
        """An image ends a lane and begins the next."""
        self.close(version if image.step else version - 1, image.state if image.step else b"")
        try:
            state = self.estimator.decode(image.state)
        except StoreCorrupt as error:
            self.bad(version, str(error))
            return
        if not image.step or not self.reset:
            self.reset = version
        self.open = version, state

    def close(self, last: int, met: bytes) -> None:
        """End the open lane, if there is one, with the version `last`."""
        if self.open is not None:
            version, state = self.open
            self.lanes.append(Lane(self.number, version, state, last, met, self.reset))
        self.open = None

    def bad(self, version: int, why: str) -> None:
        """A version that cannot be read, and with it what follows up to the next image."""
        self.findings.append(Finding(self.user, version, READABLE, "error", why, _READ, "", version))


def _compressed(
    logs: Sequence[StoredLog], parts: Sequence[_Part], lanes: list[Lane], findings: list[Finding], columns: _Columns,
) -> Table:
    """The table of what the lanes take in."""
    kept: Flags = np.zeros(len(columns.at_us), np.bool_)
    begins, lengths = [], []
    for lane in lanes:
        part = parts[lane.user]
        begin = part.first + int(np.searchsorted(part.numbers, lane.version)) + 1
        begins.append(begin)
        lengths.append(lane.last - lane.version)
        kept[begin:begin + lane.last - lane.version] = True
    place: Ints = np.concatenate((np.zeros(1, np.int64), np.cumsum(kept, dtype=np.int64)))
    rows = Lanes(tuple(lane.state for lane in lanes), place[np.array(begins, np.int64)], np.array(lengths, np.int64),
                 columns.at_us[kept], columns.values[kept], columns.r[kept])
    whose = np.repeat(np.arange(len(logs)), [len(part.numbers) for part in parts])
    numbers = np.concatenate([part.numbers for part in parts]) if parts else np.zeros(0, np.int64)
    ranges = tuple((int(part.numbers[0]), int(part.numbers[-1])) if len(part.numbers) else (0, 0) for part in parts)
    users = tuple(log.user.decode() for log in logs)
    return Table(users, ranges, tuple(lanes), rows, whose[kept], numbers[kept], tuple(findings))
