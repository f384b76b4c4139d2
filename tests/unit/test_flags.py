"""A flag of OpenFeature as rollout: what it may say, what leaves the process, and what happens when it says nothing."""

from __future__ import annotations

import contextlib
import hashlib
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Final, Literal

import pytest
from openfeature import api
from openfeature.client import OpenFeatureClient
from openfeature.evaluation_context import EvaluationContext
from openfeature.flag_evaluation import FlagResolutionDetails, Reason
from openfeature.provider import AbstractProvider, Metadata
from openfeature.provider.in_memory_provider import InMemoryFlag, InMemoryProvider

from statemachine import InvalidInput, Processor, ResetManager, Rollout, TryLater
from statemachine.flags import FlagRollout
from statemachine.gate import change
from tests.regression.scene import BY, fill, opened, weighed

ROOT: Final = Path(__file__).parents[2]
SECRET: Final = b"sixteen bytes of"

pytestmark = pytest.mark.usefixtures("no_events")


class Scripted(AbstractProvider):
    """A provider that answers by a function of the context, and keeps what it was told."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer
        self.told: list[EvaluationContext | None] = []

    def get_metadata(self) -> Metadata:
        return Metadata("scripted")

    def said(self, *_: Any, default_value: Any, evaluation_context: EvaluationContext | None, **__: Any) -> Any:
        self.told.append(evaluation_context)
        value = self.answer(default_value) if callable(self.answer) else self.answer
        return value if isinstance(value, FlagResolutionDetails) else FlagResolutionDetails(value, reason=Reason.STATIC)

    def resolve_boolean_details(self, *args: Any, **named: Any) -> Any:
        return self.said(*args, **named)

    def resolve_string_details(self, *args: Any, **named: Any) -> Any:
        return self.said(*args, **named)

    def resolve_integer_details(self, *args: Any, **named: Any) -> Any:
        raise NotImplementedError

    resolve_float_details = resolve_object_details = resolve_integer_details


def client(provider: AbstractProvider, name: str) -> OpenFeatureClient:
    api.set_provider_and_wait(provider, name)
    return api.get_client(name)


def flag(answer: Any, kind: Literal["string", "boolean"] = "string", **settings: Any) -> FlagRollout:
    provider = answer if isinstance(answer, AbstractProvider) else Scripted(answer)
    return FlagRollout("resets", **{"secret": SECRET, "client": client(provider, f"d{id(provider)}"), "kind": kind, **settings})


@pytest.mark.parametrize("verdict", ["on", "shadow", "off"])
def test_a_string_flag_says_it_in_words(verdict: str) -> None:
    assert flag(verdict).decide("ana") == verdict


@pytest.mark.parametrize(("answer", "false", "verdict"), [
    (True, "off", "on"), (False, "off", "off"), (False, "shadow", "shadow"), (True, "shadow", "on"),
])
def test_a_boolean_flag_says_on_or_what_false_means(answer: bool, false: str, verdict: str) -> None:
    assert flag(answer, "boolean", false=false).decide("ana") == verdict


@pytest.mark.parametrize("kind", ["string", "boolean"])
@pytest.mark.parametrize("reason", [Reason.DEFAULT, Reason.DISABLED, Reason.ERROR, None])
def test_the_default_that_was_passed_in_is_no_answer(kind: Literal["string", "boolean"], reason: Reason | None) -> None:
    """A flag that is missing or disabled gives it back, with whatever reason."""
    with pytest.raises(TryLater, match="no answer"):
        flag(lambda default: FlagResolutionDetails(default, reason=reason), kind).decide("ana")


def test_a_variant_that_the_provider_calls_default_is_an_answer() -> None:
    assert flag(FlagResolutionDetails("shadow", reason=Reason.DEFAULT)).decide("ana") == "shadow"


@pytest.mark.parametrize(("answer", "error"), [
    ("maybe", InvalidInput), ("", InvalidInput), (True, TryLater), (7, TryLater), (None, TryLater),
])
def test_nonsense_is_no_verdict(answer: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        flag(answer).decide("ana")


def raises(error: BaseException) -> Any:
    def answer(_: Any) -> Any:
        raise error
    return answer


@pytest.mark.parametrize(("value", "kind"), [("on", "string"), (True, "boolean"), (False, "boolean")])
def test_an_answer_that_is_called_an_error_is_none(value: Any, kind: Literal["string", "boolean"]) -> None:
    with pytest.raises(TryLater, match="no answer"):
        flag(FlagResolutionDetails(value, reason=Reason.ERROR), kind).decide("ana")


def test_a_provider_that_raises_is_no_answer_and_is_asked_again() -> None:
    provider = Scripted(raises(RuntimeError("no connection")))
    asked = flag(provider)
    with pytest.raises(TryLater, match="no connection"):
        asked.decide("ana")
    provider.answer = "on"
    assert asked.decide("ana") == "on"


def test_not_even_an_exit_in_the_client_ends_the_thread_that_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told at once, where the death of the thread would have cost the timeout."""
    provider = Scripted("on")
    inner = client(provider, "exits")
    asked = FlagRollout("resets", secret=SECRET, client=inner)
    with monkeypatch.context() as patched:
        patched.setattr(inner, "get_string_details", lambda *_: raises(SystemExit(3))(None))
        with pytest.raises(TryLater, match="SystemExit"):
            asked.decide("ana")
    assert asked.decide("ana") == "on"


def test_flags_of_a_real_provider_are_read() -> None:
    """OpenFeature's own, in memory: a flag by targeting key, one that is missing, and one that is disabled."""
    asked = FlagRollout("resets", secret=SECRET)
    key = asked.targeting_key("ana")

    def by_key(_: InMemoryFlag[str], context: EvaluationContext) -> FlagResolutionDetails[str]:
        return FlagResolutionDetails("on" if context.targeting_key == key else "shadow", reason=Reason.TARGETING_MATCH)

    flags: dict[str, InMemoryFlag[Any]] = {
        "resets": InMemoryFlag("on", {"on": "on"}, context_evaluator=by_key), "plain": InMemoryFlag("yes", {"yes": True}),
    }
    domain = client(InMemoryProvider(flags), "memory")
    asked = FlagRollout("resets", secret=SECRET, client=domain)
    assert [asked.decide("ana"), asked.decide("ben")] == ["on", "shadow"]
    assert FlagRollout("plain", secret=None, client=domain, kind="boolean").decide("ana") == "on"
    for name, kind in (("nothing", "string"), ("nothing", "boolean"), ("plain", "string")):
        with pytest.raises(TryLater, match="no answer"):
            FlagRollout(name, secret=SECRET, client=domain, kind=kind).decide("ana")  # type: ignore[arg-type]


def test_without_a_provider_there_is_no_answer() -> None:
    with pytest.raises(TryLater, match="no answer"):
        FlagRollout("resets", secret=SECRET, client=api.get_client("nobody set one")).decide("ana")


def test_only_a_keyed_hash_of_the_id_leaves_the_process() -> None:
    """Not the id, no attribute, and not the same hash under another secret; with None it is the id that leaves."""
    provider = Scripted("on")
    asked = flag(provider)
    asked.decide("ana@example.org")
    (context,) = provider.told
    expected = hashlib.blake2b(b"ana@example.org", key=SECRET, digest_size=16).hexdigest()
    assert context == EvaluationContext(expected, {})
    assert "ana" not in repr(context)
    assert flag("on", secret=b"another secret..").targeting_key("ana@example.org") != expected
    plain = Scripted("on")
    flag(plain, secret=None).decide("ana@example.org")
    assert plain.told == [EvaluationContext("ana@example.org", {})]


def test_a_provider_that_hangs_costs_the_timeout_once() -> None:
    """While it owes an answer nobody else waits; once it has answered it is asked again."""
    released, entered = threading.Event(), threading.Event()

    def hang(_: Any) -> str:
        entered.set()
        released.wait(30)
        return "shadow"

    asked = flag(hang, timeout_s=0.2)
    began = time.monotonic()
    with pytest.raises(TryLater, match="did not answer within"):
        asked.decide("ana")
    assert 0.2 <= time.monotonic() - began < 5.0
    assert entered.is_set()
    began = time.monotonic()
    for _ in range(100):
        with pytest.raises(TryLater, match="still owes"):
            asked.decide("ben")
    assert time.monotonic() - began < 5.0, "a hundred timeouts would be twenty seconds"
    released.set()
    deadline = time.monotonic() + 30
    verdict = None
    while verdict is None and time.monotonic() < deadline:
        with contextlib.suppress(TryLater):
            verdict = asked.decide("ben")
        time.sleep(0.01)
    assert verdict == "shadow"


def test_a_measurement_does_not_fail_of_a_provider_that_hangs(tmp_path: Path) -> None:
    """The stored rollout decides, and the attempt's row says why."""
    fill(tmp_path / "s", "u", [80.0 + 0.2 * (-1) ** day for day in range(20)])
    released = threading.Event()
    with opened(tmp_path / "s") as store:
        change(store, lambda _: Rollout("shadow"), **BY)
        asked = flag(lambda _: released.wait(30), timeout_s=0.05)
        outcome = Processor(ResetManager(store, rollout=asked)).process(weighed("u", 60, 80.0))
        released.set()
        assert (outcome.status, outcome.reset and outcome.reset.outcome) == ("accepted", "shadowed")
        (row,) = [row for row in store.audit("u") if row.public.event == "reset.shadowed"]
        told = row.personal.details["rollout"]
        assert (told["verdict"], told["by"]) == ("shadow", "stored")
        assert "did not answer within 0.05 s" in told["trouble"]


def test_questions_of_many_threads_each_get_their_own_answer() -> None:
    class Echo(Scripted):
        def said(self, *_: Any, evaluation_context: EvaluationContext | None, **__: Any) -> Any:
            assert evaluation_context is not None
            return FlagResolutionDetails("on" if evaluation_context.targeting_key in inside else "off", reason=Reason.STATIC)

    asked = flag(Echo(None), timeout_s=30.0)
    inside = {asked.targeting_key(f"u{n}") for n in range(0, 200, 2)}
    found: dict[int, str] = {}

    def ask(first: int) -> None:
        found.update({n: asked.decide(f"u{n}") for n in range(first, 200, 8)})

    threads = [threading.Thread(target=ask, args=(first,)) for first in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {n: "off" if n % 2 else "on" for n in range(200)}


@pytest.mark.parametrize("settings", [
    {"secret": b"short"}, {"secret": b"x" * 65}, {"timeout_s": 0}, {"timeout_s": float("nan")}, {"timeout_s": 61},
    {"kind": "integer"}, {"false": "on"},
])
def test_wrong_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        flag("on", **settings)


def test_resetguard_works_without_openfeature() -> None:
    """Only its own module needs the extra, and names it when it is missing."""
    program = """
import sys
class Missing:
    def find_spec(self, name, *_):
        if name.split(".")[0] == "openfeature":
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Missing())
import statemachine, statemachine.cli
try:
    import statemachine.flags
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, text=True, capture_output=True, check=True)
    assert done.stdout.strip() == "statemachine.flags needs OpenFeature: install `resetguard[openfeature]`"
