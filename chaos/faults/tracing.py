"""An exception at any line or opcode of a call, by way of `sys.settrace`.

CPython notices a signal only after certain instructions: a call, a jump backwards, the first of a function.  `Course` runs
a call once and lists its places:

- `lines`: the beginning of every line of the library.  The four kinds of exception are raised there.
- `looks`: every opcode before which CPython looks for signals, in any code beneath the call.  A signal that arrives at any
  opcode whatever is raised at the next of these, so that they stand for every opcode.

A place is left out only where CPython can raise nothing.  `settrace` raises at the instruction that comes next, and that
may have left a `try` or `with` while the one before it was inside: a real exception would have met the cleanup, the injected
one passes it by.  Such a shadow begins where a protected range of the exception table is left, whether by its end (the call
of `__exit__`, the first line of a `finally`) or to its handler (`except ...:`), and lasts until an instruction has looked
for signals again.  Within it no instruction but loads, stores and jumps is run, none of which raises.

Left out, too, is the last instruction of all, the return of the outermost frame: what is raised there comes out of the call as
it would an instruction later, in the caller's own code, where nobody can tell it anything.

`Strike` does something at one of these places.  It counts the calls until then, and events in that one frame alone, so that the
rest runs at nearly full speed.
"""

from __future__ import annotations

import dis
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Final, Literal, NamedTuple, TypeVar

import statemachine

T = TypeVar("T")
Unit = Literal["line", "opcode", "real signal"]
LIBRARY: Final = str(Path(statemachine.__file__).parent)
HARNESS: Final = str(Path(__file__).parents[1])
LOOKING: Final = frozenset({"RESUME", "CALL", "CALL_KW", "CALL_FUNCTION_EX", "JUMP_BACKWARD"})
"""Instructions after which CPython looks for signals; in 3.11 every conditional jump backwards, too."""


class Place(NamedTuple):
    """One event of one frame of a call: the how manyth frame entered or resumed, the how manyth event of the unit in it.

    `offset` is that of the instruction, so that a run that goes another way is noticed; `name` is for people.
    """

    unit: Unit
    call: int
    event: int
    offset: int
    name: str


class _Shape:
    """What the exception table and the instructions of some code say."""

    def __init__(self, code: CodeType) -> None:
        self._handlers: dict[int, int] = {}
        bytecode = dis.Bytecode(code)
        for entry in bytecode.exception_entries:  # type: ignore[attr-defined]  # innermost ranges only; none overlap
            self._handlers.update(dict.fromkeys(range(entry.start, entry.end), entry.target))
        self._looking = {i.offset for i in bytecode if i.opname in LOOKING or i.opname.startswith("POP_JUMP_BACKWARD")}
        self._returning = {i.offset for i in bytecode if i.opname == "RETURN_VALUE"}

    def looks(self, offset: int) -> bool:
        return offset in self._looking

    def returns(self, offset: int) -> bool:
        return offset in self._returning

    def leaves(self, before: int, after: int) -> bool:
        """Whether `after` is not protected any more by the handler that protects `before`."""
        left, handler = self._handlers.get(before), self._handlers.get(after)
        seen = set[int]()
        while handler is not None and handler not in seen:
            if handler == left:
                return False
            seen.add(handler)
            handler = self._handlers.get(handler)
        return left is not None


_shape = lru_cache(maxsize=None)(_Shape)


class Course:
    """Every place of one call, found by running it; pass it to `run`."""

    def __init__(self) -> None:
        self.lines: list[Place] = []
        self.looks: list[Place] = []
        self.opcodes = 0
        self.in_shadow = 0
        self._calls = 0

    def run(self, work: Callable[[], T]) -> T:
        """What `work` returns; its places are listed also where it raises."""
        return _traced(work, self._entered)

    def _entered(self, frame: FrameType, _event: str, _: Any) -> Callable[[FrameType, str, Any], Any] | None:
        number, self._calls = self._calls, self._calls + 1
        if frame.f_code.co_filename.startswith(HARNESS):
            return None
        frame.f_trace_opcodes = True
        return _Frame(self, number, frame.f_code).event


class _Frame:
    """What is going on in one frame, from its call or resumption to its return or yield."""

    def __init__(self, course: Course, number: int, code: CodeType) -> None:
        self._course = course
        self._number = number
        self._shape = _shape(code)
        self._code = code
        self._library = code.co_filename.startswith(LIBRARY)
        self._counts = {"line": 0, "opcode": 0}
        self._before: int | None = None
        self._in_shadow = False

    def event(self, frame: FrameType, event: str, _: Any) -> Callable[[FrameType, str, Any], Any]:
        if event not in self._counts:
            return self.event
        unit: Unit = "line" if event == "line" else "opcode"
        at, before, shape = frame.f_lasti, self._before, self._shape
        looked = before is None or shape.looks(before)
        left = before is not None and shape.leaves(before, at)
        in_shadow = left or (self._in_shadow and not looked)
        course = self._course
        if unit == "line":  # comes before the event of the line's first opcode
            if self._library and not in_shadow:
                course.lines.append(self._place("line", frame))
            course.in_shadow += self._library and in_shadow
        else:
            if looked and not in_shadow and not (shape.returns(at) and _outermost(frame)):
                course.looks.append(self._place("opcode", frame))
            course.opcodes += 1
            self._before, self._in_shadow = at, in_shadow
        self._counts[unit] += 1
        return self.event

    def _place(self, unit: Unit, frame: FrameType) -> Place:
        name = f"{Path(self._code.co_filename).name}:{frame.f_lineno} {self._code.co_name}"
        return Place(unit, self._number, self._counts[unit], frame.f_lasti, name)


def _outermost(frame: FrameType) -> bool:
    """Whether no other code of the library has called this."""
    own, caller = frame.f_code.co_filename.startswith(LIBRARY), frame.f_back
    return own and (caller is None or not caller.f_code.co_filename.startswith(LIBRARY))


class Strike:
    """Calls `act` at a place of a call, which may raise there, or kill; `fired` tells whether the call came by."""

    def __init__(self, place: Place, act: Callable[[], object]) -> None:
        self.place = place
        self._act = act
        self.fired = False
        self._events = 0

    def run(self, work: Callable[[], T]) -> T:
        """What `work` returns or raises, or what `act` does."""
        calls, wanted, opcodes, event = -1, self.place.call, self.place.unit == "opcode", self._event

        def entered(frame: FrameType, _event: str, _: Any) -> Callable[[FrameType, str, Any], Any] | None:  # at each call
            nonlocal calls
            calls += 1
            if calls != wanted:
                return None
            frame.f_trace_opcodes = opcodes
            return event

        return _traced(work, entered)

    def _event(self, frame: FrameType, event: str, _: Any) -> Callable[[FrameType, str, Any], Any]:
        if event == self.place.unit:
            number, self._events = self._events, self._events + 1
            if number == self.place.event and frame.f_lasti == self.place.offset:
                self.fired = True
                self._act()
        return self._event


def _traced(work: Callable[[], T], trace: Callable[[FrameType, str, Any], Any]) -> T:
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        return work()
    finally:
        sys.settrace(before)
