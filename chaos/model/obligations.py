"""What the models have to show: each property at its bounds, each branch that must occur, each safeguard that is needed.

A mutant is a model without one safeguard.  It must be refuted, and by the property that names what the safeguard is for:
`refuted_by` is part of that assertion as SPIN prints it, or of its word for a cycle.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from chaos.model import spin

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Executor, Future

CYCLE: Final = "acceptance cycle"
"""SPIN's word for a run on which what must happen never does; one that ends goes round its last state."""


class Claim(NamedTuple):
    """A property that must hold in every state, or on every run, of a model at some bounds."""

    name: str
    model: str
    settings: tuple[str, ...] = ()
    live: bool = False
    effort: str = spin.MIDDLING


class Mutant(NamedTuple):
    """A model without one safeguard: `invariant` must be what refutes it."""

    name: str
    model: str
    settings: tuple[str, ...]
    invariant: str
    refuted_by: str
    live: bool = False


class Verdict(NamedTuple):
    """How one obligation ended; `why` is empty where it is met."""

    kind: str
    name: str
    states: int
    transitions: int
    seconds: float
    why: str
    detail: str = ""


_QUIET: Final = ("CUTS=0", "FENCES=0", "FORCES=0", "FAULTS=0", "MEAS=0", "THRESH=1")
_DEADLY: Final = ("CRASHES=3", "CUTS=0", "FENCES=0", "FORCES=0", "FAULTS=0", "MEAS=0")
_HURT: Final = ("THRESH=1", "NB=1", "CUTS=0", "FENCES=0", "MEAS=0")
_FENCED: Final = ("THRESH=1", "NB=1", "CUTS=0", "FORCES=0", "FAULTS=0")
_CUT: Final = ("THRESH=1", "FENCES=0", "FORCES=0", "MEAS=0", "CRASHES=0")
_TWICE: Final = ("THRESH=2", "NA=3", "NU=2", "FORCES=0")
_TWO: Final = ("NU=2", "FORCES=0", "USERS=1")
_SHORT: Final = ("N=2", "REPLAYS=0")

CLAIMS: Final = (
    Claim("resets: every hazard, one attempt a process", "reset", ("NA=1",)),
    Claim("resets: deaths, faults and an operator", "reset", _HURT),
    Claim("resets: fences and measurements", "reset", _FENCED),
    Claim("resets: two probes close", "reset", ("THRESH=1", "OKS=2", "CUTS=0", "FENCES=0", "FORCES=0", "FAULTS=0", "CRASHES=0")),
    Claim("resets: power cuts and faults", "reset", _CUT),
    Claim("resets: more deaths than an input may have", "reset", _DEADLY),
    Claim("containment: three users", "containment", effort=spin.LONG),
    Claim("containment: two failures open", "containment", _TWICE),
    Claim("batches: two runs of one source", "batch", effort=spin.LONG),
    Claim("history: two flips, newer rules", "history"),
    Claim("every attempt ends", "reset", (*_QUIET, "LTL_ENDS"), live=True, effort=spin.SOON),
    Claim("the last attempt ends", "reset", (*_QUIET, "LTL_ENDS_LAST"), live=True, effort=spin.SOON),
    Claim("a probe gives its slot back", "reset", (*_QUIET, "LTL_PROBE"), live=True, effort=spin.SOON),
    Claim("an open breaker cools", "reset", (*_QUIET, "LTL_COOLS"), live=True, effort=spin.SOON),
    Claim("an open breaker admits again", "reset", (*_QUIET, "CRASHES=0", "LTL_ADMITS"), live=True, effort=spin.SOON),
    Claim("everything settles", "reset", (*_QUIET, "NA=1", "FENCES=1", "LTL_SETTLES"), live=True, effort=spin.SOON),
    Claim("a global probe gives its slot back", "containment", (*_TWO, "LTL_GLOBAL_PROBE"), live=True, effort=spin.SOON),
    Claim("a user's probe gives its slot back", "containment", (*_TWO, "LTL_USER_PROBE"), live=True, effort=spin.SOON),
    Claim("an open global breaker cools", "containment", (*_TWO, "LTL_GLOBAL_COOLS"), live=True, effort=spin.SOON),
    Claim("an open global breaker admits again", "containment", (*_TWO, "CRASHES=0", "LTL_GLOBAL_ADMITS"), live=True,
          effort=spin.SOON),
    Claim("a source is consumed whole", "batch", (*_SHORT, "LTL_CONSUMED"), live=True, effort=spin.SOON),
)

MUTANTS: Final = (
    Mutant("NO_CAS", "reset", _QUIET, "INV-06", "abase[i]!=abase[j]"),
    Mutant("NO_FENCE", "reset", _FENCED, "INV-06", "!(fenced[r])"),
    Mutant("NO_GENERATION", "reset", _QUIET, "INV-07", "was_gen"),
    Mutant("NO_BREAKER_CHECK", "reset", _QUIET, "INV-07", "gen[r]==b.gen"),
    Mutant("SPLIT_OUTCOME", "reset", _QUIET, "INV-03", "mark[i]!=0"),
    Mutant("TORN", "reset", _QUIET, "INV-01", "cP==head"),
    Mutant("EARLY_ACK", "reset", _QUIET, "INV-02", "acked[i]"),
    Mutant("NO_SYNC", "reset", _CUT, "INV-02", "acked[i]"),
    Mutant("NO_RECOVERY", "reset", _QUIET, "INV-03", "mark[i]!=0"),
    Mutant("NO_MARK", "reset", _QUIET, "INV-03", "mark[i]!=0"),
    Mutant("BLAME_WAITING", "reset", _QUIET, "INV-07", "mark[i]==2"),
    Mutant("NO_SUSPECT", "reset", _DEADLY, "INV-07", "died>>"),
    Mutant("SECOND_OUTCOME", "reset", _HURT, "INV-03", "rows[i]<=1"),
    Mutant("SKIP_VALIDATION", "reset", _QUIET, "INV-04", "!(bad_head)"),
    Mutant("LEASE_NO_CAS", "reset", _QUIET, "INV-07", "b.probe==0"),
    Mutant("FORCED_TIMER", "reset", _HURT, "INV-07", "b.probe==0"),
    Mutant("PROBE_LEAK", "reset", (*_QUIET, "LTL_PROBE"), "INV-12", CYCLE, live=True),
    Mutant("NO_COOLDOWN", "reset", (*_QUIET, "LTL_COOLS"), "INV-12", CYCLE, live=True),
    Mutant("NEVER_ADMITS", "reset", (*_QUIET, "CRASHES=0", "LTL_ADMITS"), "INV-12", CYCLE, live=True),
    Mutant("NO_FLUSH", "reset", (*_QUIET, "NA=1", "FENCES=1", "LTL_SETTLES"), "INV-12", CYCLE, live=True),
    Mutant("ONE_BREAKER", "containment", (), "INV-11", "ever[i]"),
    Mutant("COUNT_FAILURES", "containment", _TWICE, "INV-11", "n>=2"),
    Mutant("PROBE_WASTED", "containment", (*_TWO, "LTL_USER_PROBE"), "INV-12", CYCLE, live=True),
    Mutant("NO_COOLDOWN", "containment", (*_TWO, "LTL_GLOBAL_COOLS"), "INV-12", CYCLE, live=True),
    Mutant("NEVER_ADMITS", "containment", (*_TWO, "CRASHES=0", "LTL_GLOBAL_ADMITS"), "INV-12", CYCLE, live=True),
    Mutant("NO_RECOVERY", "containment", (*_TWO, "LTL_GLOBAL_PROBE"), "INV-12", CYCLE, live=True),
    Mutant("NO_CAS", "batch", (), "INV-08", "==cursor"),
    Mutant("EARLY_ACK", "batch", (), "INV-02", "told<=cursor"),
    Mutant("NO_SYNC", "batch", (), "INV-02", "told<=cursor"),
    Mutant("CURSOR_OUTSIDE", "batch", (), "INV-09", "version[u]==n"),
    Mutant("CURSOR_NOT_READ_AGAIN", "batch", (), "INV-08", "==cursor"),
    Mutant("NO_IDENTITY", "batch", (), "INV-09", "version[u]==n"),
    Mutant("REPLAY_IN_TWO", "batch", (), "INV-08", "==cursor"),
    Mutant("WALK_BACK_UNVALIDATED", "history", (), "INV-04", "state[good]!=breaks"),
    Mutant("REUSE_VERSION", "history", (), "INV-05", "newest==given"),
    Mutant("OVERWRITE_DAMAGE", "history", (), "INV-01", "moved_aside==torn_heads"),
    Mutant("DAMAGE_IS_NOTHING", "history", (), "INV-04", "newest==0"),
    Mutant("PIN_MOVES", "history", (), "INV-04", "pin==before"),
    Mutant("PRUNE_ANYWHERE", "history", (), "INV-05", "kind[first]==2"),
    Mutant("WALK_BACK_NONCONFORMING", "history", (), "INV-04", "head_torn"),
    Mutant("RESTORE_UNVALIDATED", "history", (), "INV-04", "was!=breaks"),
    Mutant("LAST_GOOD_IS_HEAD", "history", (), "INV-04", "good<probation"),
)

# Where a process must have died at least once, as the phases are called in the models.
_DEATHS: Final = {
    "reset": ("IDLE", "ASKING", "LEASING", "SNAPSHOTTED", "MUTATING", "VALIDATED", "OFFERED", "COMMITTED", "ROLLEDBACK",
              "REFUSED", "DOUBT", "OPENING"),
    "containment": ("IDLE", "ASKING", "LEASING", "SNAPSHOTTED", "OFFERED", "COMMITTED", "ROLLEDBACK", "REFUSED", "LEASING_G"),
    "batch": ("READING", "WRITING", "SINGLY", "ENDED_"),
    "history": (),
}
# Branches of common.pml that a model cannot take: batches and history have no breaker, and a user who has one process
# alone never hears of a late result.
_SHARED: Final = ("PROBE_GIVEN_BACK", "LATE_SUCCESS", "PROBE_CLOSES", "LATE_FAILURE", "PROBE_REOPENS", "FAILURES_OPEN",
                  "PROBE_COUNTS")
_NOT_THERE: Final = {
    "reset": (), "containment": ("LATE_SUCCESS", "LATE_FAILURE", "PROBE_COUNTS"), "batch": _SHARED, "history": _SHARED,
}
_DEATH: Final = "CRASH_IN"


def witnesses(model: str) -> dict[str, int]:
    """The branches that must occur in `model`, by name, with the numbers under which its verifier counts them."""
    named = spin.defines(model)
    wanted = {name[2:].lower().replace("_", " "): number for name, number in named.items()
              if name.startswith("W_") and name[2:] not in (_DEATH, *_NOT_THERE[model])}
    first = named.get(f"W_{_DEATH}", 0)
    return wanted | {f"a death in {phase.lower().strip('_')}": first + named[phase] for phase in _DEATHS[model]}


def judge(claim: Claim) -> tuple[Verdict, dict[int, int]]:
    """Search for what refutes a claim."""
    found = spin.search(claim.model, claim.settings, live=claim.live, effort=claim.effort)
    why = found.refuted or ("" if found.complete else "the search was not complete")
    kind = "on every run" if claim.live else "in every state"
    return Verdict(kind, claim.name, found.states, found.transitions, found.seconds, why), found.seen


def refute(mutant: Mutant) -> Verdict:
    """Search for what refutes a mutant, which must be there and be the property it stands for."""
    found = spin.search(mutant.model, (*mutant.settings, f"M_{mutant.name}"), live=mutant.live, effort=spin.SOON)
    why = ""
    if not found.refuted:
        why = f"nothing refutes it: {mutant.invariant} does not need this safeguard, or the model does not say so"
    elif mutant.refuted_by.replace(" ", "") not in found.refuted.replace(" ", ""):
        why = f"refuted by {found.refuted!r}, and not by {mutant.invariant} ({mutant.refuted_by})"
    name = f"{mutant.model} without: {mutant.name.lower().replace('_', ' ')}"
    return Verdict("refuted", name, found.states, found.transitions, found.seconds, why, mutant.invariant)


def unwitnessed(seen: dict[str, dict[int, int]]) -> Iterator[Verdict]:
    """One verdict a model: which of its branches never occurred in any of its searches."""
    for model, counts in seen.items():
        wanted = witnesses(model)
        missing = [name for name, number in wanted.items() if not counts.get(number)]
        why = f"never occurred: {', '.join(missing)}" if missing else ""
        yield Verdict("branches", f"{model}: {len(wanted) - len(missing)} of {len(wanted)} occur", 0, 0, 0.0, why)


def claims(pool: Executor) -> Iterator[Verdict]:
    """Have each claim judged in `pool`: their verdicts in the order of the list, then one a model on its branches."""
    return _judged([pool.submit(judge, claim) for claim in CLAIMS])


def _judged(waiting: list[Future[tuple[Verdict, dict[int, int]]]]) -> Iterator[Verdict]:
    seen: dict[str, dict[int, int]] = {claim.model: {} for claim in CLAIMS}
    for claim, future in zip(CLAIMS, waiting, strict=True):
        verdict, counts = future.result()
        for number, count in counts.items():
            seen[claim.model][number] = seen[claim.model].get(number, 0) + count
        yield verdict
    yield from unwitnessed(seen)


def mutants(pool: Executor) -> Iterator[Verdict]:
    """Have each mutant refuted in `pool`: their verdicts in the order of the list."""
    waiting = [pool.submit(refute, mutant) for mutant in MUTANTS]
    return (future.result() for future in waiting)
