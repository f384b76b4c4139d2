"""What must be true of a store, kept in dicts: versions, dispositions, outcomes, and when a breaker refuses."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from statemachine import Measurement, Outcome

FAILURES_MAX: Final = 2
SUSPECTS_MAX: Final = 2
COOLDOWN_US: Final = 48 * 3_600_000_000
LASTING: Final = {"committed", "rolled_back", "conflicted", "interrupted", "refused"}


class UserOracle:
    """One user: the states by version, the measurements by identity, and the breaker."""

    def __init__(self) -> None:
        self.versions: list[bytes] = []
        self.at_us = -(2**62)
        self.sent: dict[tuple[int, str, str], Measurement] = {}
        self.accepted = 0
        self.failures = 0
        self.openings = 0
        self.opened_us: int | None = None
        self.cooled = False
        self.deaths: Counter[tuple[str, int]] = Counter()

    def admission(self, now_us: int, kind: str) -> str:
        """"admit", "probe" or "refuse", for an attempt of `kind` by hand; "" for one decided by policy."""
        if kind and self.deaths[kind, len(self.versions)] >= SUSPECTS_MAX:
            return "refuse"
        if self.opened_us is None:
            return "admit"
        cooldown_us = COOLDOWN_US * 2 ** (self.openings - 1)
        return "probe" if self.cooled or now_us >= self.opened_us + cooldown_us else "refuse"

    def ended(self, outcome: str, now_us: int, kind: str, base: int, *, failed: bool = False) -> None:
        """An attempt that was admitted has ended; only failures and successes say something of the reset."""
        probing = self.opened_us is not None
        if outcome == "committed":
            self.failures, self.openings, self.opened_us, self.cooled = 0, 0, None, False
        elif failed:
            self.failures += 1
            if probing or self.failures >= FAILURES_MAX:
                self.failures, self.openings, self.opened_us, self.cooled = 0, self.openings + 1, now_us, False
        elif probing:
            self.cooled = True
        if outcome == "committed" or failed:
            del self.deaths[kind, base]
        if outcome == "interrupted":
            self.deaths[kind, base] += 1


class Oracle:
    """All users, and the outcome of each attempt that began."""

    def __init__(self) -> None:
        self.users: dict[str, UserOracle] = {}
        self.attempts: dict[str, str] = {}
        self.witnessed: Counter[str] = Counter()

    def user(self, name: str) -> UserOracle:
        """What is known of a user."""
        return self.users.setdefault(name, UserOracle())

    def attempt(self, attempt_id: str, outcome: str) -> None:
        """An attempt has its one outcome."""
        assert attempt_id not in self.attempts, "a second outcome"
        assert outcome in LASTING
        self.attempts[attempt_id] = outcome
        self.witnessed[outcome] += 1

    def statuses(self, m: Measurement, now_us: int) -> set[str]:
        """What a measurement may become now."""
        user = self.user(m.user)
        if (m.at_us, m.value, m.source) in user.sent:
            return {"duplicate"}
        if m.at_us > now_us or not 0.0 < m.weight_kg < float("inf"):
            return {"quarantined"}
        return {"late"} if m.at_us <= user.at_us else {"accepted", "quarantined"}

    def measured(self, m: Measurement, outcome: Outcome, now_us: int) -> int:
        """A measurement has become something; by how many versions the user moved on."""
        assert outcome.status in self.statuses(m, now_us), f"{m} became {outcome}"
        user, reset = self.user(m.user), outcome.reset
        self.witnessed[outcome.status] += 1
        user.sent.setdefault((m.at_us, m.value, m.source), m)
        user.accepted += outcome.status == "accepted"
        if reset is not None:
            self.attempt(reset.attempt_id, reset.outcome)
            self.witnessed[reset.kind] += 1
            refused = user.admission(now_us, "") == "refuse"
            assert refused == (reset.outcome == "refused"), f"{reset} where refused is {refused}"
            if not refused:
                user.ended(reset.outcome, now_us, "", len(user.versions), failed=reset.outcome == "rolled_back")
        committed = reset is not None and reset.outcome == "committed"
        return int(committed or outcome.status == "accepted")
