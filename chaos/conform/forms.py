"""What a row must be like for itself, whatever was told before it: enough of its form that it can be judged at all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from chaos.conform.breakers import Wrong

if TYPE_CHECKING:
    from chaos.conform.rows import Row

ENDED_IN: Final[dict[str, tuple[str | None, ...]]] = {
    "committed": ("committed",), "rolled_back": (None, "rolledback"), "conflicted": (None, "rolledback"), "refused": (None,),
    "interrupted": (None,), "shadowed": ("rolledback",),
}
"""The phase in which an attempt was last, by its outcome, as specs/audit.schema.json has it; None in a row made of a mark."""
MODES: Final = frozenset({"closed", "open", "half-open", "forced-open", "forced-closed", "metrics-only"})
MOVES: Final = frozenset({"breaker.opened", "breaker.closed"})
FORCES: Final = frozenset({"breaker.forced", "breaker.released"})
ANCHORS: Final = frozenset({"user.forgotten", "audit.pruned"})
NUMBER_MAX: Final = 2**31 - 1
"""More generations than any breaker has; SPIN counts them in an int."""


def require_formed(row: Row) -> None:
    """Raise Wrong where what a judge must read of the row cannot be what it says."""
    seen = row.breaker
    if seen is not None and seen.mode is not None and seen.mode not in (*MODES, ""):
        raise Wrong("INV-07", f"there is no mode {seen.mode!r} of a breaker")
    if seen is not None and not 0 <= seen.generation <= NUMBER_MAX:
        raise Wrong("INV-07", f"there is no generation {seen.generation} of a breaker")
    if row.marked and row.new is not None:
        raise Wrong("INV-01", f"a mark stood for it, and it is said to have made version {row.new}")
    if row.erased:
        return
    if row.event in MOVES | FORCES:
        _require_move(row)
    elif row.event in ANCHORS:
        ranges(row)
    elif row.event == "owner.fenced" and not _number(row.details.get("fenced"), 1):
        raise Wrong("INV-06", f"the row owner.fenced names no owner: {row.details.get('fenced')!r}")


def require_of_schema(row: Row) -> None:
    """Raise Wrong where the row of an attempt's outcome says what specs/audit.schema.json does not let it say.

    These are the constraints that tell which states of an attempt can be; how an id or an instant is written is not asked.
    """
    outcome = row.outcome or ""
    if row.phase not in ENDED_IN.get(outcome, (row.phase,)):
        raise Wrong("INV-03", f"an attempt that ended as {outcome} was in the phase {row.phase!r}")
    if not row.kind:
        raise Wrong("INV-03", "the outcome of an attempt names no kind of reset")
    if (row.breaker is None) != (outcome == "shadowed") and (row.breaker is not None or outcome != "refused"):
        raise Wrong("INV-07", f"an attempt that ended as {outcome} tells {'a' if row.breaker else 'no'} breaker that admitted it")
    if row.kind == "initial" and row.base:
        raise Wrong("INV-05", f"a first reset was made from version {row.base}: there is none before it")
    _require_mark(row, outcome)
    if outcome == "refused" and not row.erased and not row.error:
        raise Wrong("INV-07", "an attempt was refused, and no reason is told")
    if outcome == "committed" and row.error:
        raise Wrong("INV-03", f"a committed reset tells an error: {row.error}")


def _require_mark(row: Row, outcome: str) -> None:
    """What a row made of a mark can tell, and which rows are made of nothing else."""
    if outcome == "interrupted" and not row.marked:
        raise Wrong("INV-03", "an interrupted attempt wrote its row itself, with the mode of the breaker")
    if row.marked and row.author is not None:
        raise Wrong("INV-03", f"a mark stood for it, which does not hold who wrote the head: {row.author}")
    if row.marked and row.phase is not None:
        raise Wrong("INV-03", f"a mark stood for it, which does not hold its phase: {row.phase}")
    if row.whole and outcome in ("rolled_back", "conflicted") and row.phase is None:
        raise Wrong("INV-03", f"an attempt that ended as {outcome} does not tell its phase, and no mark stood for it")


def _require_move(row: Row) -> None:
    details = row.details
    if details.get("scope") not in ("user", "global"):
        raise Wrong("INV-07", f"the row {row.event} does not name whose breaker it is: {details.get('scope')!r}")
    if row.event in MOVES and not isinstance(details.get("attempt_id"), str):
        raise Wrong("INV-07", f"the row {row.event} does not name the attempt that caused it: {details.get('attempt_id')!r}")
    for name, others in (("from", ("damaged",)), ("to", ())):
        mode = details.get(name)
        if not isinstance(mode, str) or mode not in (*MODES, *others):
            raise Wrong("INV-07", f"the row {row.event} says {name!r} {mode!r}, which is no mode of a breaker")
    if not _number(details.get("generation"), 0):
        raise Wrong("INV-07", f"the row {row.event} says the generation {details.get('generation')!r}")


def ranges(row: Row) -> list[tuple[int, int]]:
    """The rows that an anchor says were erased, as (first, last), ascending; raises Wrong where it cannot be."""
    seqs = row.details.get("seqs")
    found: list[tuple[int, int]] = []
    for pair in seqs if isinstance(seqs, list | tuple) else [None]:
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(_number(at, 1) for at in pair):
            raise Wrong("INV-10", f"the row {row.event} does not say which rows were erased: {pair if seqs else seqs!r}")
        first, last = pair
        if not (found[-1][1] if found else 0) < first <= last < row.seq:
            raise Wrong("INV-10", f"the row {row.event} says that rows {first} to {last} were erased, which it cannot have done")
        found.append((first, last))
    return found


def _number(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= NUMBER_MAX
