"""Where an exception is raised by tracing: everywhere that CPython can raise one, and nowhere else."""

from __future__ import annotations

import dis
import threading
from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from chaos.faults.tracing import Course, Place, Strike
from statemachine import Measurement, breaker, codec
from statemachine.store import identities, keys


def sealed() -> bytes:
    """A few calls of the library."""
    return codec.unseal(keys.META, codec.seal(keys.META, b"content"))


class Held:
    """A lock, taken and let go in the ways that matter."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.condition = threading.Condition(threading.Lock())

    def by_with(self) -> None:
        with self.lock:
            len("inside")

    def by_finally(self) -> None:
        self.lock.acquire()
        try:
            len("inside")
        finally:
            self.lock.release()

    def by_condition(self) -> None:
        with self.condition:
            len("inside")


def struck(work: Callable[[], object], places: list[Place], error: type[BaseException] = KeyboardInterrupt) -> list[Strike]:
    """Each place struck once; each fires, and what it raises comes out."""
    strikes = []
    for place in places:
        def act() -> None:
            raise error

        strike = Strike(place, act)
        with pytest.raises(error):
            strike.run(work)
        assert strike.fired, place
        strikes.append(strike)
    return strikes


def walked(work: Callable[[], object]) -> Course:
    course = Course()
    course.run(work)
    return course


def test_every_line_and_opcode_of_a_call_is_found_and_struck() -> None:
    sealed()  # what is remembered leads the second run another way
    course = walked(sealed)
    assert {place.name.split(":")[0] for place in course.lines} == {"codec.py"}
    assert course.opcodes > len(course.looks) > len(course.lines) > 10
    struck(sealed, course.lines, GeneratorExit)
    struck(sealed, course.looks)


def test_another_course_is_not_struck() -> None:
    """A place is met by its instruction, not by its number alone: a run that goes another way is said to have missed it."""
    course = walked(lambda: breaker.checked("a figure", 1, 0, 2))
    strike = Strike(course.lines[-1]._replace(offset=9_999), lambda: pytest.fail("struck elsewhere"))
    strike.run(lambda: breaker.checked("a figure", 1, 0, 2))
    assert not strike.fired


def test_no_lock_of_a_with_statement_can_be_left_taken() -> None:
    """CPython's `with` on a lock of C's is whole: of the places that signals are looked for none leaves it taken."""
    held = Held()
    for strike in struck(held.by_with, walked(held.by_with).looks):
        assert not held.lock.locked(), strike.place


@pytest.mark.parametrize("way", ["by_finally", "by_condition"])
def test_a_lock_that_an_interrupt_can_leave_taken_is_found(way: str) -> None:
    """Between an `acquire` and its `try`, and on the way into a `with` of a Condition, one can; that is why places are tried."""
    held = Held()
    left = 0
    for place in walked(getattr(held, way)).looks:
        held.__init__()  # type: ignore[misc]
        struck(getattr(held, way), [place])
        left += held.lock.locked() or held.condition._lock.locked()  # type: ignore[attr-defined]
    assert left


def test_a_finally_is_never_passed_by() -> None:
    """The first instruction after a protected range is in its shadow: settrace alone could raise there, no signal can."""
    held = Held()
    course = walked(held.by_finally)
    release = next(n for n, line in enumerate(course.looks) if "by_finally" in line.name)
    for place in course.looks[release:]:
        held.__init__()  # type: ignore[misc]
        struck(held.by_finally, [place])
        entered = place != course.looks[release] and place.offset > course.looks[release].offset
        assert entered or not held.lock.locked()


def test_the_return_of_the_outermost_frame_is_the_callers() -> None:
    """What is raised there comes out as it would an instruction later, in code that no library can tell anything."""
    returning = {i.offset for i in dis.get_instructions(codec.seal) if i.opname == "RETURN_VALUE"}
    places = [place for place in walked(lambda: codec.seal(keys.META, b"content")).looks if place.name.endswith(" seal")]
    assert places
    assert not any(place.offset in returning for place in places)
    ending = {i.offset for i in dis.get_instructions(identities.digest) if i.opname == "RETURN_VALUE"}
    within = walked(lambda: identities.key_of(b"u", Measurement("u", datetime(2026, 1, 5, tzinfo=UTC), 80.0, "scale"))).looks
    assert any(place.name.endswith(" digest") and place.offset in ending for place in within), "one within is a place"
