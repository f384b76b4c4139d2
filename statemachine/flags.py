"""A rollout decided by a feature flag, through OpenFeature; needs the extra `resetguard[openfeature]`.

What leaves the process is one targeting key a question, and nothing else of ours: a BLAKE2b hash of the user's id under a
secret of yours, so that the provider can draw the same users again and cannot find out who they are by hashing ids it knows.
The provider still learns when this key's owner was about to be reset, which says something of a person's health: prefer one that
evaluates within the process.  Whatever contexts and hooks you have given OpenFeature itself go along, and are yours to judge.

A provider that fails, is not ready, gives its default or answers nonsense has no say, and neither has one that does not answer in
time: `decide` raises then, and the gate takes the stored rollout's word.  A provider that hangs costs one measurement the
timeout; until it has answered, the others do not wait for it.
"""

from __future__ import annotations

import hashlib
import queue
import threading
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

try:
    from openfeature import api
    from openfeature.evaluation_context import EvaluationContext
    from openfeature.flag_evaluation import FlagEvaluationDetails, Reason
except ImportError as missing:  # the name alone may be there: other distributions share it
    _MESSAGE: Final = "statemachine.flags needs OpenFeature: install `resetguard[openfeature]`"
    raise ImportError(_MESSAGE, name=missing.name) from missing

from statemachine.errors import InvalidInput, ResetError, TryLater
from statemachine.rollout import Verdict, as_verdict
from statemachine.state import user_key

if TYPE_CHECKING:
    from openfeature.client import OpenFeatureClient

NO_ANSWER: Final = "resetguard-no-answer"
SECRET_BYTES_MIN: Final = 16
SECRET_BYTES_MAX: Final = 64
KEY_BYTES: Final = 16
QUESTIONS_WAITING_MAX: Final = 1_000
TIMEOUT_S: Final = 0.25
TIMEOUT_S_MAX: Final = 60.0


class FlagRollout:
    """A `RolloutProvider` that asks a flag: a string one ("on", "shadow", "off"), or a boolean one.

    `secret` (16 to 64 bytes, the same in every process) keys the hash that is sent; None sends the users' own ids.  `false`
    is what False of a boolean flag means.  `client` is OpenFeature's, by default that without a domain.  Safe to share between
    threads.
    """

    def __init__(  # noqa: PLR0913 - each is a setting of its own
        self, flag: str, *, secret: bytes | None, client: OpenFeatureClient | None = None,
        kind: Literal["string", "boolean"] = "string", false: Literal["off", "shadow"] = "off", timeout_s: float = TIMEOUT_S,
    ) -> None:
        if secret is not None and not SECRET_BYTES_MIN <= len(secret) <= SECRET_BYTES_MAX:
            message = (f"the secret must have {SECRET_BYTES_MIN} to {SECRET_BYTES_MAX} bytes, not {len(secret)}; "
                       "None sends the users' own ids")
            raise InvalidInput(message)
        if not 0 < timeout_s <= TIMEOUT_S_MAX:
            message = f"the timeout must be more than 0 and at most {TIMEOUT_S_MAX:g} seconds; it is {timeout_s!r}"
            raise InvalidInput(message)
        if not flag or kind not in ("string", "boolean") or false not in ("off", "shadow"):
            message = ("a flag needs a name, a kind (string, boolean) and a meaning of False (off, shadow); "
                       f"it is {flag!r}, {kind!r}, {false!r}")
            raise InvalidInput(message)
        self._flag, self._kind, self._false = flag, kind, false
        self._secret = secret
        self._client = client or api.get_client()
        self._timeout_s = timeout_s
        self._questions: queue.SimpleQueue[_Question] = queue.SimpleQueue()  # an interrupt can leave no lock of it taken
        self._guard = threading.Lock()
        self._thread: threading.Thread | None = None
        self._late: _Question | None = None

    def decide(self, user: str) -> Verdict:
        """What the flag says of the user; raises TryLater when it says nothing in time, InvalidInput when it says nonsense."""
        questions = self._running()
        late = self._late
        if late is not None and not late.answered.is_set():
            message = f"the provider of flag {self._flag!r} still owes the answer to an earlier question"
            raise TryLater(message, user=user)
        question = _Question(self.targeting_key(user), threading.Event(), [])
        if questions.qsize() >= QUESTIONS_WAITING_MAX:
            message = f"{QUESTIONS_WAITING_MAX} questions to the provider of flag {self._flag!r} are waiting"
            raise TryLater(message, user=user)
        questions.put(question)
        if not question.answered.wait(self._timeout_s):
            self._late = question
            message = f"the provider of flag {self._flag!r} did not answer within {self._timeout_s:g} s"
            raise TryLater(message, user=user)
        answer = question.answers[0]
        if isinstance(answer, BaseException):
            message = f"asking for flag {self._flag!r} failed: {type(answer).__name__}: {answer}"
            raise answer if isinstance(answer, ResetError) else TryLater(message, user=user) from answer
        return as_verdict(answer)

    def targeting_key(self, user: str) -> str:
        """What stands for the user outside the process."""
        key = user_key(user)
        return user if self._secret is None else hashlib.blake2b(key, key=self._secret, digest_size=KEY_BYTES).hexdigest()

    def _running(self) -> queue.SimpleQueue[_Question]:
        """Where to put a question; the thread that takes them is started once, and anew in a child after a fork."""
        with self._guard:
            if self._thread is None or not self._thread.is_alive():
                self._late, self._questions = None, queue.SimpleQueue()
                self._thread = threading.Thread(target=self._run, args=(self._questions,), name="resetguard-flags", daemon=True)
                self._thread.start()
            return self._questions

    def _run(self, questions: queue.SimpleQueue[_Question]) -> None:
        while True:
            question = questions.get()
            try:
                question.answers.append(self._ask(EvaluationContext(question.key)))
            except BaseException as error:  # noqa: BLE001 - it is raised where the answer is waited for
                question.answers.append(error)
            question.answered.set()

    def _ask(self, context: EvaluationContext) -> Any:
        if self._kind == "string":
            said = self._client.get_string_details(self._flag, NO_ANSWER, context)
            self._check(said, no_answer=said.value == NO_ANSWER)
            return said.value
        # A boolean has no third value that could stand for "no answer": what follows the default given is none.
        yes = self._client.get_boolean_details(self._flag, True, context)  # noqa: FBT003 - OpenFeature's signature
        self._check(yes, no_answer=False)
        if not yes.value:
            return self._false
        no = self._client.get_boolean_details(self._flag, False, context)  # noqa: FBT003 - the same
        self._check(no, no_answer=not no.value)
        return "on"

    def _check(self, said: FlagEvaluationDetails[Any], *, no_answer: bool) -> None:
        if said.reason == Reason.ERROR or no_answer:
            why = f"{said.error_code or said.reason} {said.error_message or ''}".strip()
            message = f"the provider has no answer for flag {self._flag!r}: {why}"
            raise TryLater(message)


class _Question(NamedTuple):
    """One question to the provider: the key it is about, and its answer once there is one."""

    key: str
    answered: threading.Event
    answers: list[Any]
