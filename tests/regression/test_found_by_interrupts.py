"""What exceptions at every line, interrupts at every opcode and storms of writers found in the library, each with its cause."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from chaos.faults.tracing import Place
from chaos.suite import Session, Verdict
from chaos.suites.interrupts import BLOCK, Templates, Try, Way
from chaos.target import Target
from statemachine import Measurement, Processor, ResetManager, Store

START = datetime(2026, 1, 5, 7, tzinfo=UTC)


@pytest.fixture
def templates(tmp_path: Path) -> Iterator[Templates]:
    with Templates(Session(Target(), 1, "short", tmp_path)) as made:
        yield made


def struck(templates: Templates, way: Way, wanted: Callable[[Place], bool], kind: str = "KeyboardInterrupt") -> list[Verdict]:
    """The verdicts of all places of a way that are wanted; there is one at least, and each was met."""
    lines, looks = templates.places(way, "each")
    places = (*lines, *looks) if kind == "KeyboardInterrupt" else lines
    tries = [Try(way, "each", kind, place) for place in places if wanted(place)]
    assert tries
    verdicts = [v for first in range(0, len(tries), BLOCK) for v in templates.verdicts(tries[first:first + BLOCK])]
    assert [str(verdict.point) for verdict in verdicts if not verdict.fired] == []
    return verdicts


def broken(verdicts: list[Verdict]) -> list[str]:
    return [f"{verdict.point}: {what}" for verdict in verdicts for what in verdict.violations]


def test_an_interrupt_inside_the_standard_library_leaves_no_lock(templates: Templates) -> None:
    """Ctrl-C on the way into a `with` of a `Condition` left its lock taken, and every later commit hung.

    `Condition.__enter__` is written in Python: it takes its lock by a call, after which CPython looks for signals, and a
    KeyboardInterrupt raised there meets no `with` that would let the lock go.  The engine's gate and the `queue.Queue` of the
    audit's copies (so of alerts and flags) were taken like that, several times a reset.  The gate is a plain lock now, whose
    `__enter__` is C's and made whole, and the queues are `SimpleQueue`.
    """
    assert not broken(struck(templates, "committed", lambda p: p.name.startswith(("threading", "queue", "contextlib"))))


def test_an_interrupt_just_after_the_writer_s_turn_was_taken_lets_it_go(templates: Templates) -> None:
    """`acquire(timeout=...)` returned, CPython looked for signals before the `try` began, and the turn was nobody's for ever."""
    assert not broken(struck(templates, "committed", lambda p: p.name.endswith((" _wait_for", " _turn", " turn"))))


def test_an_interrupt_in_a_write_transaction_that_was_begun_ends_it(templates: Templates) -> None:
    """Interrupted between LMDB's `begin` and the return of `Engine.write`, nobody aborted the transaction.

    The error's traceback kept the frame, the frame kept the transaction, and it LMDB's one lock for writers: the rollback of
    the same attempt waited for it without an end.  `write` aborts what it does not return.
    """
    assert not broken(struck(templates, "rolled back", lambda p: p.name.endswith((" write", " _check_newest"))))


@pytest.mark.parametrize("kind", ["KeyboardInterrupt", "MemoryError"])
def test_what_is_raised_between_the_commit_and_the_return_is_doubt(templates: Templates, kind: str) -> None:
    """The version was durable, and the caller was told KeyboardInterrupt, or MemoryError, as if nothing had been written.

    Only the call of the committer was guarded: not the way back through `commit`, nor that out of the `with` block of
    `perform_reset` and `restore`.  Each now asks the log what became of the attempt before it lets an error pass.
    """
    after = (" _commit", " commit", " _finished", " fire", " __exit__", " perform_reset", " outcome", " _release", " release")
    verdicts = struck(templates, "committed", lambda p: p.name.endswith(after), kind)
    assert not broken(verdicts)
    assert "in doubt, had landed" in {verdict.outcome for verdict in verdicts}


def test_an_interrupt_while_a_rollback_is_written_reaches_the_caller(templates: Templates) -> None:
    """Ctrl-C was swallowed: the rollback's commit made it a CommitInDoubt, and a rollback goes on without its row.

    The caller was told of the failed mutation alone.  The interrupt is raised on now, once the mark says how the attempt ended.
    """
    verdicts = struck(templates, "rolled back", lambda p: p.name.startswith("committer.py"))
    assert not broken(verdicts)


def test_an_interrupt_at_the_end_of_a_measured_reset_reaches_the_caller(templates: Templates) -> None:
    """Ctrl-C after the attempt of a measurement had been put into its batch came out as `InvalidTransition`.

    `run_decided` rolls back whatever it sees raised, and an attempt that has ended cannot be.  One that has is left to its batch,
    which is given up with it.
    """
    assert not broken(struck(templates, "measured", lambda p: p.name.endswith((" _finished", " _commit"))))


def test_an_interrupt_on_the_way_back_from_a_measurement_s_commit_is_doubt(templates: Templates) -> None:
    """`process` had stored the measurement, and its caller was told KeyboardInterrupt, as if it had not.

    The draft knows that it is durable; sent again, the measurement counts once.
    """
    after = (" alone", " process", " outcome", " committed", " _tell")
    verdicts = struck(templates, "measured", lambda p: p.name.endswith(after))
    assert not broken(verdicts)
    assert "in doubt, had landed" in {verdict.outcome for verdict in verdicts}


def test_a_measurement_that_another_process_takes_in_meanwhile_is_no_error(tmp_path: Path) -> None:
    """Of two processes that were sent one measurement, the slower ended with a TypeError: two `Identity` were compared.

    It had read the user before the other's commit, and the measurements of the run after it: its own was among them, made a
    third of two, and a sort met two of one key.  The commit is refused, and the measurement found to be known.
    """
    with Store.open(tmp_path / "store") as store:
        manager = ResetManager(store)
        readings = [80.0, 80.1, 80.0, 80.1, 80.0, 80.1, 95.0, 95.1]
        *earlier, last = (Measurement("u", START + timedelta(days=n), kg, "scale") for n, kg in enumerate(readings))
        for measurement in earlier:
            Processor(manager).process(measurement)
        other = Processor(manager)

        class Overtaken(Processor):
            """Another is faster, once, after this one has read the user."""

            def user(self, *args: Any) -> Any:
                found = super().user(*args)
                if not made:
                    made.append(other.process(last).status)
                return found

        made: list[str] = []
        assert Overtaken(manager).process(last).status in ("known", "duplicate")
        assert made == ["quarantined"]
