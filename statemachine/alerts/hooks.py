"""The hooks that are shipped: a webhook and a command.  Each bounds itself; any callable that takes an `Alert` is one too."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import ssl
import subprocess
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from statemachine.clock import SystemClock
from statemachine.errors import InvalidInput

try:
    import tenacity
    import urllib3
    from urllib3.connection import HTTPConnection, HTTPSConnection
    from urllib3.util import Url, parse_url
except ModuleNotFoundError as error:
    missing: str | None = error.name
else:
    missing = None

if TYPE_CHECKING:
    from statemachine.alerts.values import Alert

TIMEOUT_S: Final = 10.0
TIMEOUT_S_MAX: Final = 60.0
KILL_WAIT_S: Final = 1.0
LATER: Final = frozenset({408, 425, 429})
"""Answers below 500 that mean "not now"; any other below 500 means "never", and is not tried again."""
LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})


class AlertFailed(Exception):
    """A hook could not be told; another try may succeed."""


class AlertRefused(AlertFailed):
    """A hook will not be told however often it is tried."""


class Hook(Protocol):
    """What is told of an alert: returning means that it knows, raising that it does not."""

    def __call__(self, alert: Alert, /) -> object:
        """Take the alert; called on a thread of its own, never twice at once."""


def require_extra(what: str) -> None:
    """Raise InvalidInput, naming the extra, where what alerts need is not installed."""
    if missing is not None:
        message = f"{what} needs {missing}, which is not installed: pip install 'resetguard[alerts]'"
        raise InvalidInput(message)


def named(hook: Hook) -> str:
    """What a hook is called in events and messages; nothing of a URL but its host, since its path may be a secret."""
    name = getattr(hook, "name", None) or getattr(hook, "__qualname__", None)
    return name if isinstance(name, str) else type(hook).__qualname__


def _require_timeout(timeout_s: float) -> None:
    if not 0 < timeout_s <= TIMEOUT_S_MAX:
        message = f"timeout_s {timeout_s!r} must be above 0 and at most {TIMEOUT_S_MAX:g} seconds"
        raise InvalidInput(message)


class Webhook(msgspec.Struct, frozen=True):
    """POSTs the alert as JSON to a URL; told once it answers 2xx.

    A redirect is not followed and counts as a refusal, as does any 4xx but 408, 425 and 429.  The answer's body is not read.
    Certificates are checked against the system's authorities, or those in `ca_file`.  No proxy is used.  Raises
    InvalidInput for what is no http or https URL, for `include_user` over plain http to another machine, and where the
    extra `alerts` is not installed.
    """

    url: str
    headers: dict[str, str] = {}
    timeout_s: float = TIMEOUT_S
    include_user: bool = False
    ca_file: str | None = None

    def __post_init__(self) -> None:
        require_extra("a webhook")
        _require_timeout(self.timeout_s)
        try:
            url = parse_url(self.url)
        except urllib3.exceptions.HTTPError as error:
            message = "the webhook's address is no URL; give http:// or https://, a host, and a path"
            raise InvalidInput(message) from error
        if url.scheme not in ("http", "https") or not url.host or url.auth:
            message = "a webhook's address is http:// or https:// with a host; give credentials as a header"
            raise InvalidInput(message)
        if self.include_user and url.scheme == "http" and url.host not in LOOPBACK:
            message = f"the webhook at {url.host} would be sent user ids without encryption: use https"
            raise InvalidInput(message)
        for name, value in self.headers.items():
            if not f"{name}{value}".isprintable():
                message = f"the webhook's header {name!r} holds a control character"
                raise InvalidInput(message)
        if self.ca_file is not None:
            self._trust()

    def __repr__(self) -> str:
        """Neither path nor headers: they may be secrets."""
        return f"<{self.name}>"

    @property
    def name(self) -> str:
        """The host alone."""
        return f"webhook {parse_url(self.url).host}"

    def __call__(self, alert: Alert, /) -> None:
        """Post it; raises AlertFailed or AlertRefused, within about `timeout_s` once the host's name is resolved."""
        clock = SystemClock()
        until_us = clock.monotonic_us() + int(self.timeout_s * 1e6)
        url = parse_url(self.url)
        body = msgspec.json.encode(alert.document(include_user=self.include_user))
        headers = {"Content-Type": "application/json", "User-Agent": "resetguard",
                   "Idempotency-Key": f"{alert.store_id}/{alert.seq}/{alert.event}", **self.headers}
        connection = self._connection(url)
        hung_up: threading.Timer | None = None
        try:
            connection.connect()
            # A limit on each read would not do: a server that drips a byte now and then never reaches it.
            left_s = (until_us - clock.monotonic_us()) / 1e6
            hung_up = threading.Timer(max(left_s, 0.0), _hang_up, (connection,))
            hung_up.daemon = True
            hung_up.start()
            connection.request("POST", url.request_uri, body=body, headers=headers, preload_content=False)
            status = connection.getresponse().status
            if clock.monotonic_us() >= until_us:  # cut off by us, and what was said until then passes for an answer
                raise TimeoutError
        except (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError) as error:
            late = clock.monotonic_us() >= until_us
            text = f"it did not answer within {self.timeout_s:g} s" if late else f"{type(error).__name__}: {error}"
            raise AlertFailed(text) from error
        finally:
            if hung_up is not None:
                hung_up.cancel()
            connection.close()
        _judge(status)

    def _connection(self, url: Url) -> HTTPConnection:
        if url.scheme == "http":
            return HTTPConnection(url.host or "", url.port, timeout=self.timeout_s)
        return HTTPSConnection(url.host or "", url.port, timeout=self.timeout_s, ssl_context=self._trust())

    def _trust(self) -> ssl.SSLContext:
        try:
            return ssl.create_default_context(cafile=self.ca_file)
        except OSError as error:
            message = f"the authorities in {self.ca_file} cannot be read: {error}"
            raise InvalidInput(message) from error


def _hang_up(connection: HTTPConnection) -> None:
    open_socket: socket.socket | None = connection.sock
    if open_socket is not None:
        with contextlib.suppress(OSError):
            open_socket.shutdown(socket.SHUT_RDWR)  # closing alone would not wake the thread that reads


def _judge(status: int) -> None:
    if 200 <= status < 300:  # noqa: PLR2004 - what HTTP calls success
        return
    message = f"it answered {status}"
    if status < 500 and status not in LATER:  # noqa: PLR2004 - the server's own failures begin there
        raise AlertRefused(message)
    raise AlertFailed(message)


class Command(msgspec.Struct, frozen=True):
    """Starts a program, without a shell, with the alert as JSON on its standard input; told once it ends with 0.

    It runs in a session of its own; with all that it started there it is killed after `timeout_s`.  What it writes to
    standard output goes nowhere, its standard error is this process's.  Raises InvalidInput for what is no list of words.
    """

    argv: Sequence[str]
    timeout_s: float = TIMEOUT_S
    include_user: bool = False

    def __post_init__(self) -> None:
        _require_timeout(self.timeout_s)
        words = () if isinstance(self.argv, str) else tuple(self.argv)
        if not words or not all(isinstance(word, str) and "\0" not in word for word in words) or not words[0]:
            message = f"a command is a list of words, the program first; it is {self.argv!r}"
            raise InvalidInput(message)
        msgspec.structs.force_setattr(self, "argv", words)

    @property
    def name(self) -> str:
        """The program alone."""
        return f"command {self.argv[0]}"

    def __call__(self, alert: Alert, /) -> None:
        """Run it to its end; raises AlertFailed or AlertRefused, within about `timeout_s`."""
        body = msgspec.json.encode(alert.document(include_user=self.include_user)) + b"\n"
        try:
            child = subprocess.Popen(self.argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,  # noqa: S603 - no shell
                                     start_new_session=True)
        except (FileNotFoundError, PermissionError, NotADirectoryError) as error:
            message = f"it cannot be started: {error}"
            raise AlertRefused(message) from error
        except OSError as error:
            message = f"it cannot be started: {error}"
            raise AlertFailed(message) from error
        try:
            child.communicate(body, timeout=self.timeout_s)
        except subprocess.TimeoutExpired as error:
            message = f"it did not end within {self.timeout_s:g} s and was killed"
            raise AlertFailed(message) from error
        finally:
            if child.returncode is None:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(child.pid, signal.SIGKILL)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(KILL_WAIT_S)
        if child.returncode:
            message = f"it ended with {child.returncode}"
            raise AlertFailed(message)


def trying(tries_max: int, backoff_s: float, backoff_s_max: float, ended: threading.Event) -> tenacity.Retrying:
    """The retry policy: bounded tries, exponential backoff with full jitter; once `ended` is set no wait and no further try."""
    require_extra("an alert")
    return tenacity.Retrying(
        stop=tenacity.stop_after_attempt(tries_max) | tenacity.stop_when_event_set(ended),
        wait=tenacity.wait_random_exponential(multiplier=backoff_s, max=backoff_s_max),
        retry=tenacity.retry_if_not_exception_type(AlertRefused),
        sleep=tenacity.sleep_using_event(ended), reraise=True,
    )
