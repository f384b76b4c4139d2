"""What a log has told of one circuit breaker: the mode and generation that some rows name, and what lies between them.

Every move but two has a row.  An open breaker that has cooled, and a half-open one without a probe, are leased without a
row, which makes the generation odd; the end of that attempt, which has a row, gives the lease back and makes it even.
"""

from __future__ import annotations

from typing import Final

WAITS: Final = ("open", "half-open")
"""Modes from which a probe may be leased; "half-open" stands for one whose probe is free."""


class Wrong(Exception):
    """A row is not possible after those before it."""

    def __init__(self, invariant: str, why: str) -> None:
        super().__init__(f"{invariant}: {why}")
        self.invariant = invariant
        self.why = why


class Gauge:
    """One breaker: `mode` and `generation` as last told; where not `known`, rows are taken at their word."""

    def __init__(self, *, known: bool, doubted: bool = False) -> None:
        self.known = known
        self.doubted = doubted
        self.mode = "closed"
        self.generation = 0
        self.lenient = False  # the row of a probe's end may come later: the global breaker refused what it was leased for
        self._credits = 0
        self._since = 0  # of generations before it nothing is known
        self._modes: dict[int, str] = {0: "closed"} if known else {}
        self._holders: dict[int, str] = {}

    def credit(self) -> None:
        """One lease may have been given back without a row of a probe that says so."""
        self._credits += 1

    def moved(self, mode: str, generation: int) -> None:
        """The breaker is in a new mode from here on."""
        self.mode, self.generation = mode, generation
        self._modes[generation] = mode
        self._credits = 0 if mode not in WAITS else self._credits

    def found(self, mode: str, generation: int, attempt: str, *, committed: bool) -> bool:
        """An attempt was admitted in this mode and generation and has now ended; whether that generation has passed."""
        if not self.known:
            return self._adopted(mode, generation, committed=committed)
        if generation < self._since and not committed:
            return True
        if mode == "half-open":
            return self._probed(generation, attempt, committed=committed)
        if generation > self.generation:
            raise Wrong("INV-07", f"it began under generation {generation} of the breaker, and the log leads to {self._told()}")
        if self._modes.get(generation) != mode:
            raise Wrong("INV-07", f"it began while the breaker was {mode}, generation {generation}; the log tells "
                        f"{self._of(generation)}")
        late = generation < self.generation
        if late and committed:
            raise Wrong("INV-07", f"it began under generation {generation} and was committed although that has "
                        "passed: the log leads "
                        f"to {self._told()}")
        return late

    def _probed(self, generation: int, attempt: str, *, committed: bool) -> bool:
        self._hold(generation, attempt)
        if generation > self.generation:
            self._leased(generation)
            return False
        if committed:
            raise Wrong("INV-07", f"a probe of generation {generation} was committed, and the log leads to {self._told()}")
        if self._modes.get(generation, "half-open") != "half-open":
            raise Wrong("INV-07", f"it was a probe in generation {generation}; the log tells {self._of(generation)}")
        return True

    def _leased(self, generation: int) -> None:
        """The generation is that of a lease after what was told last."""
        ahead = generation - self.generation
        if self.mode not in WAITS or ahead % 2 == 0:
            raise Wrong("INV-07", f"it was a probe in generation {generation}, and none can have been leased then: "
                        "the log leads to "
                        f"{self._told()}")
        self._pay(ahead // 2)

    def _pay(self, leases: int) -> None:
        """So many leases were given back since what was told last, each by an attempt that must have its row."""
        if leases > self._credits and not self.lenient:
            raise Wrong("INV-03", f"{leases} probes ended since {self._told()}, and the log has the end of {self._credits}: "
                        "the outcome of an attempt is missing")
        self._credits = max(self._credits - leases, 0)

    def _hold(self, generation: int, attempt: str) -> None:
        holder = self._holders.setdefault(generation, attempt)
        if holder != attempt:
            raise Wrong("INV-07", f"attempt {holder} was the probe of generation {generation}; a second one had the same")

    def probe_ended(self, generation: int, mode: str) -> None:
        """The holder of the lease `generation` has ended, and the breaker is in this mode now."""
        self._modes[generation] = "half-open"
        self.moved(mode, generation + 1)

    def ended(self, generation: int, attempt: str) -> None:
        """A mark stood for the end of an attempt; it may have held a lease, and was that of `generation` if that is ahead."""
        if self._holders.get(generation, attempt) != attempt:
            self._hold(generation, attempt)
        if not self.known or self.mode not in WAITS:
            if self.known and generation > self.generation:
                raise Wrong("INV-07", f"it began under generation {generation} of the breaker, and the log leads "
                            f"to {self._told()}")
            return
        ahead = generation - self.generation
        if ahead > 0 and ahead % 2 == 0:  # read between two leases: the lease that it wanted was not committed, or is in doubt
            self._pay(ahead // 2)
            self.moved("half-open", generation)
            self.credit()
        elif ahead > 0:
            self._hold(generation, attempt)
            self._leased(generation)
            self.probe_ended(generation, "half-open")
        else:
            self.credit()  # its mark may be of before the lease

    def refused(self, generation: int, attempt: str, *, may_have_held: bool) -> None:
        """An attempt was refused, having read this generation; the row may be written long after."""
        if not self.known or generation <= self.generation:
            return
        if self.mode not in WAITS:
            raise Wrong("INV-07", f"it was refused under generation {generation} of the breaker, and the log leads "
                        f"to {self._told()}")
        if may_have_held:
            self.credit()
            if (generation - self.generation) % 2:
                self._hold(generation, attempt)

    def told(self, before: object, to: object, generation: int) -> None:
        """The row of a move whose cause was judged before it."""
        if not self.known:
            self._learnt(str(to), generation)
            return
        if (to, generation) != (self.mode, self.generation):
            raise Wrong("INV-07", f"the breaker is said to have gone to {to}, generation {generation}; its cause "
                        f"leads to {self._told()}")
        if before != self._modes.get(generation - 1):
            raise Wrong("INV-07", f"the breaker is said to have been {before}; the log tells {self._of(generation - 1)}")

    def jumped(self, before: object, to: str, generation: int, *, by_probe: bool = False) -> None:
        """A move whose row is the first that tells of it: an operator's, or the global breaker's, perhaps by a probe."""
        if self.known:
            ahead = generation - 1 - self.generation
            if before == "half-open" and self.mode in WAITS and ahead >= (self.mode == "open") and (ahead % 2 or not by_probe):
                pass
            elif before != self.mode or ahead != 0:
                raise Wrong("INV-07", f"the breaker is said to have gone from {before} to {to}, generation "
                            f"{generation}; the log leads to "
                            f"{self._told()}")
        if not self.known:
            self._learnt(to, generation)
            return
        self._modes.setdefault(generation - 1, str(before))
        self.moved(to, generation)

    def _adopted(self, mode: str, generation: int, *, committed: bool) -> bool:
        """Take a row at its word; a commit says what the breaker is."""
        if committed:
            self._learnt(mode, generation)
        return not committed

    def _learnt(self, mode: str, generation: int) -> None:
        self.known = not self.doubted
        self._since = generation
        self.moved(mode, generation)

    def _told(self) -> str:
        return f"{self.mode}, generation {self.generation}"

    def _of(self, generation: int) -> str:
        return self._modes.get(generation, "no such generation")
