"""What a history lets one expect of the store, in dicts: what must be there, and what may be."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable

from chaos.history import Asked, Event, Told

FAILED = frozenset({"rolled_back", "conflicted", "refused", "interrupted"})
ANY = FAILED | {"committed"}
Measured = tuple[int, str, str]


class Oracle:
    """Fed with a history, event by event.

    `versions[user][n]` is the digest of each version that was acknowledged; `spare[user]` how many more there may be, made by
    what is in doubt; `outcomes[attempt]` what its row may say; `must`, `may` the measurements by user.
    """

    def __init__(self, events: Iterable[Event] = ()) -> None:
        self.versions: dict[str, dict[int, str]] = defaultdict(dict)
        self.spare: Counter[str] = Counter()
        self.unknown_attempts: Counter[str] = Counter()
        self.outcomes: dict[str, frozenset[str]] = {}
        self.must: dict[str, set[Measured]] = defaultdict(set)
        self.may: dict[str, set[Measured]] = defaultdict(set)
        self.users: set[str] = set()
        self.open: dict[int, Asked] = {}
        self.contradictions: list[str] = []
        for event in events:
            self.feed(event)
        for asked in self.open.values():
            self._unsure(asked)

    def feed(self, event: Event) -> None:
        """Take in the next event."""
        if isinstance(event, Asked):
            self.open[event.op] = event
            self.users.add(event.user)
        elif isinstance(event, Told):
            asked = self.open.pop(event.op)
            if event.answer == "doubt":
                self._unsure(asked)
            self._told(asked, event)

    def _told(self, asked: Asked, told: Told) -> None:
        known = self.versions[asked.user]
        for version, digest in told.versions.items():
            if digest and (known.get(version) or digest) != digest:
                self.contradictions.append(f"version {version} of {asked.user!r} was told with two different states")
            known[version] = digest or known.get(version, "")
        for attempt, outcome in told.attempts.items():
            expected = frozenset({outcome}) if outcome else FAILED if told.answer == "failed" else ANY
            self.outcomes[attempt] = expected & self.outcomes.get(attempt, ANY)
        if told.answer == "acknowledged":
            self.must[asked.user].update(asked.measured)
            # A group that met trouble was given up and taken anew: what it had begun is in the log, and nobody was told.
            self.unknown_attempts[asked.user] += max(0, len(asked.measured) - 1)
        elif told.answer == "failed" and not told.attempts:
            # Measurements whose commit failed: the attempts of it have their rows, and the error names none of them.
            self.unknown_attempts[asked.user] += len(asked.measured)

    def _unsure(self, asked: Asked) -> None:
        self.spare[asked.user] += asked.versions
        self.unknown_attempts[asked.user] += max(1, len(asked.measured))
        self.may[asked.user].update(asked.measured)
