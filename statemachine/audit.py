"""What the audit log says: one row an attempt or administrative act, hash-chained, and its copy as structlog events.

A stored row is ``prev_hash (32) | digest (32) | length of public (4, big-endian) | public JSON | personal JSON``, and its
hash is sha256(prev_hash | digest | public JSON), where digest is sha256 of the personal JSON.  So the personal part may
be erased later and the chain still verifies (INV-10); a random salt in it keeps the digest from being guessed back.

The stored log is the record.  structlog gets a best-effort copy, in order, from a thread of its own: a sink that blocks
or raises loses events, which are counted, and never delays or fails a commit.  The library never configures structlog;
the command does, by `configure_for_command`.
"""

from __future__ import annotations

import contextlib
import hashlib
import queue
import sys
import threading
from collections import deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import msgspec
import structlog

from statemachine.clock import iso
from statemachine.errors import InvalidInput, StoreCorrupt
from statemachine.validation import Violation

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping

GENESIS: Final = bytes(32)
GATHER_S: Final = 0.02
EVENTS_QUEUED_MAX: Final = 10_000
EARLY_ROWS_MAX: Final = 64
FLUSH_S_MAX: Final = 2.0
TEXT_CHARS_MAX: Final = 2_000
SAID_BYTES_MAX: Final = 500
ANCHORS: Final = ("user.forgotten", "audit.pruned")
"""The acts that erase personal parts; their rows say of which others (`covered`), and are themselves never erased."""
ALARMING: Final = frozenset({"breaker.opened", "state.unrecoverable"})
"""Rows that somebody must be told of; so must any whose details have `alert` true."""
_HEADER_BYTES: Final = 68


class Operation(msgspec.Struct, frozen=True, omit_defaults=True):
    """One operation of an attempt: its name, how long it and its validation took, and whether it became a checkpoint."""

    name: str
    duration_us: int = 0
    ok: bool = True


class Public(msgspec.Struct, frozen=True, omit_defaults=True):
    """The part of a row that names nobody; it is hashed as it is and never erased.  Instants are us since 1970 UTC."""

    event: str
    outcome: str = ""
    attempt_id: str = ""
    kind: str = ""
    phase: str = ""
    base_version: int | None = None
    new_version: int | None = None
    head_author: str = ""
    breaker_mode: str = ""
    breaker_generation: int | None = None
    duration_us: int | None = None
    trace_id: str = ""
    owner: int = 0
    written_us: int = 0
    seq: int = 0
    store_id: str = ""


class Personal(msgspec.Struct, frozen=True, omit_defaults=True):
    """The part of a row about a person or by one; erasing it leaves its digest."""

    user: str = ""
    at_us: int | None = None
    trigger: str = ""
    reason: str = ""
    actor: str = ""
    operations: tuple[Operation, ...] = ()
    violations: tuple[Violation, ...] = ()
    error: str = ""
    delta_x: tuple[float, ...] | None = None
    delta_P: tuple[float, ...] | None = None  # noqa: N815 - the literature's letter
    details: dict[str, Any] = {}
    salt: bytes = b""


class Entry(NamedTuple):
    """A row before the store has given it its place: seq, owner, store id and the instant of writing are the store's."""

    public: Public
    personal: Personal
    context: dict[str, Any] | None = None


def act(  # noqa: PLR0913 - each is recorded
    event: str, attempt_id: str, *, actor: str, reason: str, at_us: int, user: str = "", kind: str = "", outcome: str = "done",
    trigger: str = "by hand", details: dict[str, Any] | None = None,
) -> Entry:
    """The row of an administrative act; raises InvalidInput where actor or reason are missing (`require_said`)."""
    require_said(user, reason=reason, actor=actor)
    public = Public(event=event, outcome=outcome, attempt_id=attempt_id, kind=kind)
    personal = Personal(user=user, at_us=at_us, trigger=trigger, reason=reason, actor=actor, details=details or {})
    return Entry(public, personal, context_now())


def require_said(user: str = "", **texts: str) -> None:
    """Raise InvalidInput unless each of the texts (reason, actor, ...) is fit for a row: 1 to 500 bytes, no NUL, not blank."""
    for name, text in texts.items():
        if not isinstance(text, str):
            message = f"the {name} must be text, for the audit log; it is {plain(repr(text))[:40]}"
            raise InvalidInput(message, user=user or None)
        known = text.encode("utf-8", "replace")
        if not text.strip() or len(known) > SAID_BYTES_MAX or "\0" in text or known.decode() != text:
            message = f"the {name} must have 1 to {SAID_BYTES_MAX} bytes of text, for the audit log; it is {text[:40]!r}"
            raise InvalidInput(message, user=user or None)


def plain(text: object) -> str:
    """The text of an error or name from user code, fit for a row: cut to a limit, and what is no Unicode escaped."""
    return str(text)[:TEXT_CHARS_MAX].encode("utf-8", "backslashreplace").decode()


def said(error: BaseException) -> str:
    """The kind and the text of an error from user code, as `plain`; there are some whose text cannot be had."""
    try:
        return plain(f"{type(error).__name__}: {error}")
    except Exception:  # noqa: BLE001 - whatever its __str__ raises
        return f"{type(error).__name__}, whose text cannot be had"


def _plain_value(value: object) -> object:
    """What an estimator or a caller of another library gives, as JSON has it: a number of numpy's is a number."""
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return plain(value)


_encode = msgspec.json.Encoder(enc_hook=_plain_value).encode
_decode_public = msgspec.json.Decoder(Public).decode
_decode_personal = msgspec.json.Decoder(Personal).decode


def row_bytes(entry: Entry, public: Public, prev_hash: bytes) -> tuple[bytes, bytes]:
    """The stored bytes of a row in its place, and its hash (32 bytes)."""
    personal = _encode(entry.personal)
    digest = hashlib.sha256(personal).digest()
    body = _encode(public)
    return b"".join((prev_hash, digest, len(body).to_bytes(4, "big"), body, personal)), row_hash(prev_hash, digest, body)


def row_hash(prev_hash: bytes, digest: bytes, public: bytes) -> bytes:
    """The hash that the next row carries as its `prev_hash`."""
    return hashlib.sha256(prev_hash + digest + public).digest()


class Row(msgspec.Struct, frozen=True):
    """A row as stored: `erased` is true when its personal part was dropped and only its digest is kept."""

    public: Public
    personal: Personal
    prev_hash: bytes
    hash: bytes
    erased: bool = False

    def as_dict(self) -> dict[str, Any]:
        """The row under the names of the audit schema, instants as ISO 8601 text in UTC."""
        p, q = self.public, self.personal
        return {
            "store_id": p.store_id, "seq": p.seq, "at": None if q.at_us is None else iso(q.at_us),
            "written_at": iso(p.written_us), "event": p.event, "attempt_id": p.attempt_id or None, "owner": p.owner,
            "trace_id": p.trace_id or None, "user": q.user or None, "kind": p.kind or None, "trigger": q.trigger or None,
            "reason": q.reason or None, "actor": q.actor or None, "base_version": p.base_version,
            "new_version": p.new_version, "head_author": p.head_author or None, "phase": p.phase or None,
            "outcome": p.outcome or None,
            "operations": [{"name": o.name, "duration_us": o.duration_us, "ok": o.ok} for o in q.operations],
            "violations": [v._asdict() for v in q.violations], "error": q.error or None,
            "delta_x": q.delta_x, "delta_P": q.delta_P, "details": q.details, "duration_us": p.duration_us,
            "breaker": None if p.breaker_generation is None else
            {"mode": p.breaker_mode, "generation": p.breaker_generation},
            "erased": self.erased, "prev_hash": self.prev_hash.hex(), "hash": self.hash.hex(),
        }


def parse(data: bytes) -> Row:
    """The row in `data`; raises StoreCorrupt when it is torn or its personal part does not match its digest."""
    prev_hash, digest = data[:32], data[32:64]
    end = _HEADER_BYTES + int.from_bytes(data[64:68], "big")
    body, personal = data[_HEADER_BYTES:end], data[end:]
    if personal and hashlib.sha256(personal).digest() != digest:
        message = "an audit row's personal part does not match its digest"
        raise StoreCorrupt(message)
    try:
        public = _decode_public(body)
        person = _decode_personal(personal) if personal else Personal()
    except msgspec.MsgspecError as error:
        message = f"an audit row does not decode: {error}"
        raise StoreCorrupt(message) from error
    return Row(public, person, prev_hash, row_hash(prev_hash, digest, body), erased=not personal)


def erased(data: bytes) -> bytes:
    """The stored bytes of a row without its personal part; its digest and so its hash stay."""
    return data[:_HEADER_BYTES + int.from_bytes(data[64:68], "big")]


def covered(row: Row) -> tuple[tuple[int, int], ...]:
    """The rows whose personal parts this row says were erased, as (first, last); none where it is no anchor.

    Raises StoreCorrupt for an anchor that does not say it, or names a row that is not before itself.
    """
    if row.public.event not in ANCHORS:
        return ()
    try:
        ranges = msgspec.convert(row.personal.details.get("seqs"), tuple[tuple[int, int], ...])
    except msgspec.ValidationError as error:
        message = f"row {row.public.seq} erased others and does not say which: {error}"
        raise StoreCorrupt(message) from error
    if not all(0 < first <= last < row.public.seq for first, last in ranges):
        message = f"row {row.public.seq} says that it erased rows which are not before it"
        raise StoreCorrupt(message)
    return ranges


def alarming(row: Row) -> bool:
    """Whether somebody must be told of the row."""
    return row.public.event in ALARMING or row.personal.details.get("alert") is True


class Note(NamedTuple):
    """What the log does not hold, for structlog alone: an event with its fields, as a warning."""

    event: str
    fields: dict[str, Any]


class Listener(Protocol):
    """Who is offered every alarming row after its commit, in seq order, on the committing thread."""

    def offer(self, row: Row) -> None:
        """Take the row or drop it, at once."""

    def close(self) -> None:
        """The store is being closed: end within a bounded time."""


class Emitter:
    """Copies committed rows to structlog from one daemon thread; `dropped` counts what a slow or failing sink lost.

    The thread gathers for a moment what comes before it goes to work: waking it for each row would make the committing thread
    wait for the interpreter's lock, which costs more than the rest of a commit.
    """

    def __init__(self) -> None:
        # No `Queue` and no `Event`: an interrupt in them can leave their lock taken for ever.  These are made whole by C.
        self._items: deque[tuple[Row, dict[str, Any] | None] | Note | Callable[[], None] | None] = deque()
        self._wakes: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._urgent: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._early: deque[Row] = deque(maxlen=EARLY_ROWS_MAX)
        self.listeners: tuple[Listener, ...] = ()
        self.dropped = 0

    def emit(self, row: Row, context: dict[str, Any] | None) -> None:
        """Queue the row; returns at once whatever the sink does."""
        self._put((row, context))
        if alarming(row):
            if not self.listeners:
                self._early.append(row)
            for listener in self.listeners:
                try:
                    listener.offer(row)
                except Exception:  # noqa: BLE001 - no listener may fail a commit
                    self.dropped += 1

    def note(self, event: str, **fields: Any) -> None:
        """Queue a warning that is no row; returns at once whatever the sink does."""
        self._put(Note(event, fields))

    def attach(self, listener: Listener) -> None:
        """Offer alarming rows from now on; the first listener is also offered those of this opening that came before it."""
        self.listeners = (*self.listeners, listener)
        while self._early:
            listener.offer(self._early.popleft())

    def close(self, timeout_s: float = FLUSH_S_MAX) -> None:
        """Close the listeners, each within its own bound, then `flush`, and end the thread: once a stuck sink lets it go."""
        listeners, self.listeners = self.listeners, ()
        for listener in listeners:
            listener.close()
        self.flush(timeout_s)
        with self._lock:
            running, self._thread = self._thread is not None, None
        if running:
            self._hurry(None)

    def _put(self, item: tuple[Row, dict[str, Any] | None] | Note) -> None:
        try:
            if self._thread is None:
                self._start()
        except RuntimeError:  # no more threads, as when the interpreter is ending
            self.dropped += 1
            return
        if len(self._items) >= EVENTS_QUEUED_MAX:
            self.dropped += 1
            return
        self._items.append(item)
        if self._wakes.empty():
            self._wakes.put(None)

    def _hurry(self, item: Callable[[], None] | None) -> None:
        self._items.append(item)
        self._urgent.put(None)
        self._wakes.put(None)

    def flush(self, timeout_s: float = FLUSH_S_MAX) -> bool:
        """Wait until all that was queued has been handed over, at most `timeout_s`; whether it was."""
        if self._thread is None:
            return True
        done = threading.Lock()
        done.acquire()
        self._hurry(done.release)
        return done.acquire(timeout=timeout_s)

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="resetguard-events", daemon=True)
                thread.start()
                self._thread = thread

    def _run(self) -> None:
        logger = structlog.get_logger("resetguard")
        while True:
            self._wakes.get()
            with contextlib.suppress(queue.Empty):
                self._urgent.get(timeout=GATHER_S)
            with contextlib.suppress(queue.Empty):  # before the items are looked at: who comes later wakes this thread anew
                while True:
                    self._wakes.get_nowait()
            while self._items:
                item = self._items.popleft()
                if item is None:
                    return
                if callable(item):
                    item()
                else:
                    self._tell(logger, item)

    def _tell(self, logger: Any, item: tuple[Row, dict[str, Any] | None] | Note) -> None:
        try:
            if isinstance(item, Note):
                logger.warning(item.event, **item.fields)
                return
            row, context = item
            fields = {name: value for name, value in row.as_dict().items() if value not in (None, [], {}, "", False)}
            logger.info(fields.pop("event"), **{**(context or {}), **fields})
        except Exception:  # noqa: BLE001 - whatever a sink raises, the stored log is the record
            self.dropped += 1


def context_now() -> dict[str, Any] | None:
    """The caller's structlog contextvars, to be attached to the events of its attempt."""
    return structlog.contextvars.get_contextvars() or None


def configure_for_command(*, verbose: bool) -> None:
    """Send this process's events to standard error as JSON lines, or nowhere; for the command alone, never the library."""
    shown = (structlog.contextvars.merge_contextvars, structlog.processors.add_log_level, _json_line)
    structlog.configure(
        processors=shown if verbose and sys.stderr is not None else (_dropped,),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr or sys.__stderr__),
        wrapper_class=structlog.BoundLogger,
        cache_logger_on_first_use=False,
    )


def _dropped(_logger: Any, _method: str, _event: MutableMapping[str, Any]) -> str:
    raise structlog.DropEvent


def _json_line(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> str:
    return msgspec.json.encode(event, enc_hook=repr).decode()
