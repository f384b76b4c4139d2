"""Alerts: one bounded queue and one daemon thread a hook, between the commits and whoever must be told.

A try runs on a daemon thread of its own, because a callable that hangs can be given up but not ended: while it hangs its
hook gets no other call, so that a hook costs two threads at most.  Other hooks, and the commits, go on.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from statemachine.alerts.hooks import TIMEOUT_S, AlertFailed, Hook, named, require_extra, trying
from statemachine.alerts.values import BROKEN, REASONS, Alert
from statemachine.audit import alarming, plain
from statemachine.clock import SystemClock
from statemachine.errors import InvalidInput

if TYPE_CHECKING:
    from statemachine.audit import Emitter, Row
    from statemachine.store import Store

GRACE_S: Final = 1.0
"""What a hook with a limit of its own is given beyond it, to end by itself."""


class AlertLimits(msgspec.Struct, frozen=True):
    """The bounds of alerting.

    A hook holds `queue_max` alerts at most.  Each is tried `tries_max` times, for `timeout_s` a try (a shipped hook has a
    limit of its own instead), with waits that begin at `backoff_s` and grow to `backoff_s_max`.  Closing waits `close_s_max`.
    """

    queue_max: int = 256
    tries_max: int = 4
    timeout_s: float = TIMEOUT_S
    backoff_s: float = 0.5
    backoff_s_max: float = 30.0
    close_s_max: float = 5.0

    def __post_init__(self) -> None:
        if self.queue_max < 1 or self.tries_max < 1 or min(self.timeout_s, self.backoff_s, self.close_s_max) <= 0:
            message = f"every limit of alerts must be above 0: {self}"
            raise InvalidInput(message)


class AlertCounts(NamedTuple):
    """What became of alerts, one for each hook it was for: `failed` were given up, `dropped` found a full queue or a close."""

    delivered: int = 0
    waiting: int = 0
    failed: int = 0
    dropped: int = 0


class Alerts:
    """The hooks of one store, told of its alarming rows as they are committed; safe to share between threads.

    Every method returns at once but `flush` and `close`.  Closing the store closes it.
    """

    def __init__(self, emitter: Emitter, hooks: Iterable[Hook], limits: AlertLimits | None = None) -> None:
        """Start to listen; raises InvalidInput where the extra `alerts` is not installed, or a hook cannot be called."""
        require_extra("alerting")
        self._emitter = emitter
        self._limits = limits or AlertLimits()
        self._lanes = tuple(_Lane(_callable(hook), self._limits, emitter) for hook in hooks)
        emitter.attach(self)

    def offer(self, row: Row) -> None:
        """Tell the hooks of a row."""
        self.send(Alert.of(row))

    def send(self, alert: Alert) -> None:
        """Tell the hooks of what is no row."""
        for lane in self._lanes:
            lane.offer(alert)

    def counts(self) -> AlertCounts:
        """What became of all alerts until now."""
        return AlertCounts(*map(sum, zip(AlertCounts(), *(lane.counts() for lane in self._lanes), strict=True)))

    def flush(self, timeout_s: float) -> bool:
        """Wait until nothing is waiting, at most `timeout_s`; whether nothing is."""
        clock = SystemClock()
        until_us = clock.monotonic_us() + int(timeout_s * 1e6)
        return all(lane.idle((until_us - clock.monotonic_us()) / 1e6) for lane in self._lanes)

    def close(self) -> None:
        """Try what is waiting once more, for `close_s_max` in all; what is left then is dropped, counted and noted.

        A second call does nothing.
        """
        clock = SystemClock()
        for lane in self._lanes:
            lane.end()
        until_us = clock.monotonic_us() + int(self._limits.close_s_max * 1e6)
        for lane in self._lanes:
            lane.idle((until_us - clock.monotonic_us()) / 1e6)
            lane.abandon()


def _callable(hook: Hook) -> Hook:
    if not callable(hook):
        message = f"{hook!r} is no hook: give a Webhook, a Command, or a callable that takes an Alert"
        raise InvalidInput(message)
    return hook


class _Lane:
    """One hook, its queue and its thread."""

    def __init__(self, hook: Hook, limits: AlertLimits, emitter: Emitter) -> None:
        self._hook = _Bounded(hook, limits.timeout_s)
        self._limits = limits
        self._emitter = emitter
        # An interrupt in the `put` of a `Queue`, or on the way into a `with` of a `Condition`, can leave its lock taken.
        self._queue: queue.SimpleQueue[Alert | None] = queue.SimpleQueue()
        self._guard = threading.Lock()
        self._state = threading.Condition(self._guard)
        self._waiting = self._delivered = self._failed = self._dropped = 0
        self._full = False
        self._ending = threading.Event()
        self._abandoned = False
        threading.Thread(target=self._run, name="resetguard-alerts", daemon=True).start()

    def counts(self) -> AlertCounts:
        with self._guard:
            return AlertCounts(self._delivered, self._waiting, self._failed, self._dropped)

    def offer(self, alert: Alert) -> None:
        """Queue the alert, or drop it where the queue is full; never waits for the hook."""
        with self._guard:
            if self._ending.is_set():
                self._dropped += 1
                return
            if self._queue.qsize() < self._limits.queue_max:
                self._waiting += 1
                self._queue.put(alert)
                first = self._full = False
            else:
                self._dropped += 1
                first, self._full = not self._full, True
        if first:
            self._emitter.note("alert.dropped", hook=self._hook.name, alert=alert.event, alert_seq=alert.seq,
                               queue_max=self._limits.queue_max)

    def idle(self, timeout_s: float) -> bool:
        with self._guard:
            return self._state.wait_for(lambda: not self._waiting, max(timeout_s, 0.0))

    def end(self) -> None:
        with self._guard:
            if self._ending.is_set():
                return
            self._ending.set()
        self._queue.put(None)

    def abandon(self) -> None:
        with self._guard:
            if self._abandoned:
                return
            self._abandoned = True
            left, self._waiting = self._waiting, 0
            self._dropped += left
        if left:
            self._emitter.note("alert.undelivered", hook=self._hook.name, alerts=left, close_s_max=self._limits.close_s_max)

    def _run(self) -> None:
        while not (self._ending.is_set() and self._queue.empty()):
            alert = self._queue.get()
            if alert is None:
                return
            error = _delivered(self._hook, alert, self._limits, self._ending)
            with self._guard:
                if self._abandoned:
                    return
                self._waiting -= 1
                self._delivered += not error
                self._failed += bool(error)
                self._state.notify_all()
            if error:
                self._emitter.note("alert.failed", hook=self._hook.name, alert=alert.event, alert_seq=alert.seq, error=error)


class _Bounded:
    """A hook each call of which ends, or is given up, within a time."""

    def __init__(self, hook: Hook, timeout_s: float) -> None:
        own = getattr(hook, "timeout_s", None)
        self.name = named(hook)
        self._hook = hook
        self._timeout_s = own + GRACE_S if isinstance(own, int | float) else timeout_s
        self._call: threading.Thread | None = None

    def __call__(self, alert: Alert) -> None:
        if self._call is not None:
            self._call.join(self._timeout_s)
            if self._call.is_alive():
                message = f"an earlier call still has not returned after another {self._timeout_s:g} s"
                raise AlertFailed(message)
        raised: list[BaseException] = []

        def call() -> None:
            try:
                self._hook(alert)
            except BaseException as error:  # noqa: BLE001 - it is raised where the call is waited for
                raised.append(error)

        self._call = threading.Thread(target=call, name="resetguard-alert", daemon=True)
        self._call.start()
        self._call.join(self._timeout_s)
        if self._call.is_alive():
            message = f"it did not return within {self._timeout_s:g} s"
            raise AlertFailed(message)
        self._call = None
        if raised and isinstance(raised[0], AlertFailed):
            raise raised[0]
        if raised:
            message = f"it raised {type(raised[0]).__name__}: {raised[0]}"
            raise AlertFailed(message) from raised[0]


def _delivered(hook: _Bounded, alert: Alert, limits: AlertLimits, ended: threading.Event) -> str:
    """Tell the hook, by the retry policy; "" where it knows, else why it does not."""
    try:
        trying(limits.tries_max, limits.backoff_s, limits.backoff_s_max, ended)(hook, alert)
    except Exception as error:  # noqa: BLE001 - whatever it is, the audit log is the record
        return plain(error)
    return ""


def tell(store: Store, alert: Alert) -> None:
    """Tell the hooks of an open store of what is no row of it; nothing where nobody listens."""
    for listener in store.emitter.listeners:
        if isinstance(listener, Alerts):
            listener.send(alert)


def broken(store: Store, seq: int, problem: str) -> Alert:
    """The alert of an audit log that does not verify; `seq` is its first bad row, 0 where that is not known."""
    return Alert(BROKEN, REASONS[BROKEN], seq, store.store_id, store.clock.now_us(), scope="store", error=problem)


class Replayed(NamedTuple):
    """One alert of the log told again to one hook; `error` is why it could not be, "" where it was."""

    seq: int
    event: str
    hook: str
    error: str


def replay(store: Store, hooks: Iterable[Hook], from_seq: int, limits: AlertLimits | None = None) -> Iterator[Replayed]:
    """Tell hooks again of every alarming row from `from_seq` on, in order, waiting for each; as `Alerts` tells them."""
    yield from try_hooks(hooks, (Alert.of(row) for row in store.audit(since_seq=from_seq) if alarming(row)), limits)


def try_hooks(hooks: Iterable[Hook], alerts: Iterable[Alert], limits: AlertLimits | None = None) -> Iterator[Replayed]:
    """Tell hooks of alerts, in order, waiting for each."""
    require_extra("alerting")
    limits = limits or AlertLimits()
    bounded = [_Bounded(_callable(hook), limits.timeout_s) for hook in hooks]
    for alert in alerts:
        for hook in bounded:
            yield Replayed(alert.seq, alert.event, hook.name, _delivered(hook, alert, limits, threading.Event()))
