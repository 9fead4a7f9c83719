"""Waiting for serving, against a small real HTTP server."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from include.rollout import served


@pytest.fixture
def service():
    """Run a server that returns the given (status, body) pairs, and repeats the last one.

    Return (url, set answers).
    """
    answers = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            status, body = answers.pop(0) if len(answers) > 1 else answers[0]
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body if isinstance(body, bytes) else json.dumps(body).encode())

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", answers.extend
    server.shutdown()
    server.server_close()


def says(version, state="ready", error=None):
    return 200, {"name": "flights", "version": version, "loaded_at": None, "state": state, "error": error}


def wait(url, timeout=2.0, check=lambda: None):
    return served.wait_until_served(url, "flights", "12", timeout_s=timeout, check=check)


def test_waits_until_the_new_version_is_ready(service):
    url, answer = service
    answer([says("11"), (503, {"detail": "loading"}), (200, b"no json"), says("12", "loading"), says("12")])
    assert wait(url, 10)["version"] == "12"


@pytest.mark.parametrize(
    "answer_with",
    [
        pytest.param(says("11"), id="serving stays at the old version"),
        pytest.param(says("12", "loading"), id="serving never gets ready"),
        pytest.param((404, {"detail": "no such model"}), id="serving does not know the model"),
        pytest.param(
            says("11", "error", "version 12 cannot be fetched"),
            id="serving cannot fetch it: it is waited for, then given up",
        ),
        pytest.param(says("11", "refused", "version 1: bad"), id="another version is refused"),
    ],
)
def test_gives_up_after_the_timeout_and_says_what_serving_said(service, answer_with):
    url, answer = service
    answer([answer_with])
    with pytest.raises(served.NotServedError, match="did not serve version 12 within 0.3 s; it says: {"):
        wait(url, 0.3)


def test_gives_up_at_once_when_serving_refuses_the_version(service):
    url, answer = service
    answer([says("11", "refused", "version 12: golden request 3 is off")])
    began = time.monotonic()
    with pytest.raises(served.NotServedError, match="golden request 3"):
        wait(url, 30)
    assert time.monotonic() - began < 5


def test_a_service_that_is_away_is_said():
    with pytest.raises(served.NotServedError, match="unreachable"):
        wait("http://127.0.0.1:9", 0.2)


def test_stops_when_the_check_says_so(service):
    url, answer = service
    answer([says("11")])

    def check():
        raise KeyError("moved")

    with pytest.raises(KeyError):
        wait(url, 30, check)
