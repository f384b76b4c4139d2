"""The shipped hooks against a real HTTP server and real programs: what they send, and that nothing there can hold them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import pytest

from statemachine import InvalidInput
from statemachine.alerts import Alert, AlertFailed, AlertRefused, Command, Webhook, named

ALERT: Final = Alert("breaker.opened", "it opened", 7, "store-1", 0, scope="user", kind="breaker", attempt_id="a-1",
                     details={"failures": 3}, user="ann", said="the scale of ann", error="'ann' is damaged")
SHORT_S: Final = 0.4
LONG_S: Final = 8.0
"""Far longer than a call with SHORT_S may take, far shorter than what the bad servers and programs would take."""


class Served:
    """A server in a thread: what it was sent, and how it answers."""

    def __init__(self, server: ThreadingHTTPServer) -> None:
        self.server = server
        self.requests: list[tuple[str, dict[str, str], Any]] = []
        self.answer: Callable[[BaseHTTPRequestHandler], None] = lambda handler: status(handler, 204)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/hook/secret?a=1"


def status(handler: BaseHTTPRequestHandler, code: int, **headers: str) -> None:
    handler.send_response(code)
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.send_header("Content-Length", "0")
    handler.end_headers()


@pytest.fixture
def served() -> Iterator[Served]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            found.requests.append((self.path, dict(self.headers), json.loads(body)))
            found.answer(self)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.block_on_close = False
    found = Served(server)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield found
    server.shutdown()
    server.server_close()


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < seconds


# Webhooks

def test_a_webhook_posts_the_alert_as_json(served: Served) -> None:
    """The path, the headers given, a key that tells a repetition, and the document without the person."""
    Webhook(served.url, headers={"Authorization": "Bearer x"})(ALERT)
    ((path, headers, body),) = served.requests
    assert path == "/hook/secret?a=1"
    assert (headers["Content-Type"], headers["Authorization"]) == ("application/json", "Bearer x")
    assert headers["Idempotency-Key"] == "store-1/7/breaker.opened"
    assert body == ALERT.document()
    assert "ann" not in json.dumps(body)


def test_a_webhook_sends_the_user_where_asked(served: Served) -> None:
    Webhook(served.url, include_user=True)(ALERT)
    ((_, _, body),) = served.requests
    assert (body["user"], body["said"], body["error"]) == ("ann", "the scale of ann", "'ann' is damaged")


@pytest.mark.parametrize("code", [200, 201, 202, 204])
def test_any_2xx_is_told(served: Served, code: int) -> None:
    served.answer = lambda handler: status(handler, code)
    Webhook(served.url)(ALERT)
    assert len(served.requests) == 1


@pytest.mark.parametrize("code", [408, 425, 429, 500, 502, 503, 599])
def test_an_answer_for_now_may_be_tried_again(served: Served, code: int) -> None:
    served.answer = lambda handler: status(handler, code)
    with pytest.raises(AlertFailed, match=f"it answered {code}") as caught:
        Webhook(served.url)(ALERT)
    assert not isinstance(caught.value, AlertRefused)


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308, 304, 400, 401, 403, 404, 410])
def test_an_answer_for_good_is_a_refusal_and_no_redirect_is_followed(served: Served, code: int) -> None:
    """The alert goes to the address that was given, or nowhere."""
    served.answer = lambda handler: status(handler, code, Location=served.url + "&again=1")
    with pytest.raises(AlertRefused, match=f"it answered {code}"):
        Webhook(served.url)(ALERT)
    assert len(served.requests) == 1


def silent(handler: BaseHTTPRequestHandler) -> None:
    """Says nothing."""
    time.sleep(LONG_S * 2)
    handler.close_connection = True


def dripping(first: bytes, drop: bytes) -> Callable[[BaseHTTPRequestHandler], None]:
    """Says a byte now and then, always before a limit on each read would end it."""
    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.close_connection = True
        with contextlib.suppress(OSError):
            handler.wfile.write(first)
            until = time.monotonic() + LONG_S * 2
            while time.monotonic() < until:
                handler.wfile.write(drop)
                handler.wfile.flush()
                time.sleep(SHORT_S / 8)
    return drip


@pytest.mark.parametrize("answer", [
    silent, dripping(b"", b"H"), dripping(b"HTTP/1.1 200 OK\r\nX-Slow: ", b"x"), dripping(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
], ids=["silent", "status", "header", "continue"])
def test_a_server_that_does_not_end_its_answer_is_left_in_time(served: Served, answer: Any) -> None:
    """The limit is on the whole call: bytes that keep coming do not stretch it."""
    served.answer = answer
    with within(LONG_S), pytest.raises(AlertFailed, match=r"it did not answer within 0\.4 s"):
        Webhook(served.url, timeout_s=SHORT_S)(ALERT)
    assert len(served.requests) == 1


def test_the_body_of_an_answer_is_not_read(served: Served) -> None:
    """A server that has said 200 has been told, whatever it goes on saying."""
    served.answer = dripping(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b"x")
    with within(LONG_S):
        Webhook(served.url)(ALERT)
    assert len(served.requests) == 1


@pytest.mark.parametrize("said", [
    b"\xff\xfe nonsense\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n", b"", b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 999,
], ids=["nonsense", "no status", "nothing", "headers"])
def test_what_is_no_answer_is_a_failure(served: Served, said: bytes) -> None:
    def speak(handler: BaseHTTPRequestHandler) -> None:
        handler.close_connection = True
        handler.wfile.write(said)

    served.answer = speak
    with within(LONG_S), pytest.raises(AlertFailed):
        Webhook(served.url)(ALERT)


def test_a_server_that_is_not_there_is_a_failure() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: nobody else gets the port
        with within(LONG_S), pytest.raises(AlertFailed, match="refused"):
            Webhook(f"http://127.0.0.1:{taken.getsockname()[1]}/")(ALERT)


def test_a_server_that_never_accepts_is_left_in_time() -> None:
    """The backlog takes the connection, and nobody ever reads from it."""
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        with within(LONG_S), pytest.raises(AlertFailed, match="did not answer"):
            Webhook(f"http://127.0.0.1:{deaf.getsockname()[1]}/", timeout_s=SHORT_S)(ALERT)
        with within(LONG_S), pytest.raises(AlertFailed, match="did not answer"):
            Webhook(f"https://127.0.0.1:{deaf.getsockname()[1]}/", timeout_s=SHORT_S)(ALERT)


def test_a_server_without_tls_fails_https(served: Served) -> None:
    with within(LONG_S), pytest.raises(AlertFailed, match="SSL"):
        Webhook(served.url.replace("http:", "https:"))(ALERT)
    assert served.requests == []


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate of 127.0.0.1 that no authority signed, with its key in the same file."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl to make a certificate with")
    path = tmp_path / "own.pem"
    subprocess.run([openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1",
                    "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", path, "-out", tmp_path / "cert.pem"],
                   check=True, capture_output=True)
    path.write_bytes(path.read_bytes() + (tmp_path / "cert.pem").read_bytes())
    return path


def test_a_certificate_that_nobody_vouches_for_fails(served: Served, certificate: Path) -> None:
    """Unless its authority is named, nothing is sent; where it is, the alert is."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    served.server.socket = context.wrap_socket(served.server.socket, server_side=True)
    url = served.url.replace("http:", "https:")
    with within(LONG_S), pytest.raises(AlertFailed, match="CERTIFICATE_VERIFY_FAILED"):
        Webhook(url)(ALERT)
    assert served.requests == []
    Webhook(url, ca_file=str(certificate), include_user=True)(ALERT)
    assert len(served.requests) == 1
    with pytest.raises(AlertFailed):
        Webhook(url.replace("127.0.0.1", "localhost"), ca_file=str(certificate))(ALERT)
    assert len(served.requests) == 1, "the certificate is of another name"


@pytest.mark.parametrize("url", ["", "example.org/x", "ftp://example.org/", "file:///etc/passwd", "http://", "https://u:p@example.org/",
                                 "http://[::1", "http://example.org:99999/"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(InvalidInput, match="webhook"):
        Webhook(url)


def test_ids_do_not_leave_the_machine_without_encryption() -> None:
    with pytest.raises(InvalidInput, match="use https"):
        Webhook("http://example.org/x", include_user=True)
    Webhook("https://example.org/x", include_user=True)
    Webhook("http://[::1]/x", include_user=True)
    Webhook("http://example.org/x")


@pytest.mark.parametrize("wrong", [{"headers": {"X": "a\r\nY: b"}}, {"timeout_s": 0.0}, {"timeout_s": 61.0},
                                   {"timeout_s": float("nan")}, {"ca_file": "/no/such/file.pem"}])
def test_other_wrong_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        Webhook("https://example.org/x", **wrong)


def test_a_webhook_is_named_by_its_host_alone() -> None:
    """The rest of the address and the headers are often the credential."""
    hook = Webhook("https://hooks.example.org/T00/secret", headers={"Authorization": "Bearer token"})
    assert (named(hook), repr(hook)) == ("webhook hooks.example.org", "<webhook hooks.example.org>")


# Commands

def python(program: str, *more: object) -> list[str]:
    return [sys.executable, "-c", program, *map(str, more)]


def test_a_command_gets_the_alert_on_standard_input(tmp_path: Path) -> None:
    """One line of JSON, without the person unless asked; its words are no shell's."""
    out = tmp_path / "out $(touch x); &"
    for include_user in (False, True):
        Command(python("import sys; open(sys.argv[1], 'w').write(sys.stdin.read())", out), include_user=include_user)(ALERT)
        text = out.read_text()
        assert json.loads(text) == ALERT.document(include_user=include_user)
        assert text.endswith("\n")
        assert ("ann" in text) == include_user
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_what_a_command_prints_goes_nowhere(capfd: pytest.CaptureFixture[str]) -> None:
    """Standard output is the caller's; standard error is shared, so that one can see why it failed."""
    Command(python("import sys; print('out'); print('why', file=sys.stderr)"))(ALERT)
    told = capfd.readouterr()
    assert (told.out, told.err) == ("", "why\n")


def test_a_command_that_does_not_read_is_told(tmp_path: Path) -> None:
    out = tmp_path / "out"
    Command(["touch", str(out)])(ALERT)
    assert out.exists()


@pytest.mark.parametrize(("program", "text"), [("raise SystemExit(3)", "it ended with 3"),
                                               ("import os; os.kill(os.getpid(), 9)", "it ended with -9")])
def test_a_command_that_fails_may_be_tried_again(program: str, text: str) -> None:
    with pytest.raises(AlertFailed, match=text) as caught:
        Command(python(program))(ALERT)
    assert not isinstance(caught.value, AlertRefused)


@pytest.mark.parametrize("argv", [["/no/such/program"], ["no-such-program-anywhere"], [os.sep]])
def test_a_command_that_is_not_there_is_a_refusal(argv: list[str]) -> None:
    with pytest.raises(AlertRefused, match="cannot be started"):
        Command(argv)(ALERT)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_command_that_hangs_is_killed_with_all_it_started(tmp_path: Path) -> None:
    """It is given up after its time, though it ignores what can be ignored and a child of it holds its input open."""
    out = tmp_path / "pids"
    hangs = ("import os, signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
             "child = subprocess.Popen(['sleep', '600']); "
             "open(sys.argv[1], 'w').write(f'{os.getpid()} {child.pid}'); time.sleep(600)")
    with within(LONG_S), pytest.raises(AlertFailed, match=r"did not end within 2 s and was killed"):
        Command(python(hangs, out), timeout_s=2.0)(ALERT)
    for pid in map(int, out.read_text().split()):
        until = time.monotonic() + LONG_S
        while alive(pid) and time.monotonic() < until:
            time.sleep(0.01)
        assert not alive(pid)


@pytest.mark.parametrize("argv", [[], "echo hello", [""], ["a", 1], ["a", "b\0c"]])
def test_what_is_no_list_of_words_is_refused(argv: Any) -> None:
    with pytest.raises(InvalidInput, match="list of words"):
        Command(argv)


def test_a_command_is_named_by_its_program_alone() -> None:
    assert named(Command(["notify", "--token", "secret"])) == "command notify"
    with pytest.raises(InvalidInput):
        Command(["notify"], timeout_s=0.0)
