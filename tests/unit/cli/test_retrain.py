"""`airloop retrain` reports the state of an earlier request.

The tests use a server that answers as Airflow does.
"""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from typer.testing import CliRunner

from include import ledger
from include.cli import app
from include.settings import get_settings

CUTOFF = "2013-05-01T10:00:00Z"


@pytest.fixture
def pools():
    """Return the pools of the fake Airflow."""
    return ["default_pool", "cpu"]


@pytest.fixture
def started(tmp_path, monkeypatch, pools):
    """Yield the conf of each run that the fake Airflow was asked to start."""
    confs = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            answer = (
                json.dumps({"pools": [{"name": name} for name in pools]}).encode() if "/pools" in self.path else b""
            )
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path.endswith("/dagRuns"):
                confs.append(body["conf"])
            answer = json.dumps({"access_token": "t"}).encode()
            self.send_response(201)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AIRLOOP_HOME", str(tmp_path))
    monkeypatch.delenv("AIRLOOP_LEDGER_URL", raising=False)
    monkeypatch.setenv("AIRLOOP_AIRFLOW_URI", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("AIRLOOP_AIRFLOW_ADMIN_PASSWORD", "a password of the test")
    get_settings.cache_clear()
    yield confs
    server.shutdown()
    server.server_close()
    get_settings.cache_clear()


def request(*arguments):
    result = CliRunner().invoke(
        app, ["retrain", "flights", "--reason", "new_code", "--cutoff", "2013-05-01T10:00:00", *arguments]
    )
    assert result.exit_code == 0, result.output + repr(result.exception)
    return " ".join(result.output.split())


def ask(**parameters):
    return ledger.request_retraining(
        "flights", cutoff=CUTOFF, reason="new_code", asked_by="a run", parameters=parameters
    ).id


def test_what_was_never_asked_for_is_started_without_a_word(started):
    ask(last_days=7)
    assert "Asked for before" not in request()
    assert started == [{"reason": "new_code", "cutoff": CUTOFF}]


def test_what_is_not_over_is_joined(started):
    ask()
    assert "is open; nothing new is asked for: this run takes it up, or is skipped if another run has it." in request()


@pytest.mark.parametrize("how", [("--last-days", "7"), ()])
def test_what_has_failed_is_asked_for_anew_with_its_reason(started, how):
    first = ask(**({"last_days": 7} if how else {}))
    ledger.settle_request(first, "failed", reason="three runs failed")
    assert (
        f"Asked for before: request {first} (new_code, cutoff {CUTOFF}) is failed (three runs failed); this is a new"
        " request." in request(*how)
    )
    assert len(started) == 1


def test_a_training_is_not_started_where_its_pool_is_missing(started, pools):
    pools.remove("cpu")
    result = CliRunner().invoke(app, ["retrain", "flights", "--reason", "new_code"])
    assert result.exit_code == 2 and "Airflow has no pool cpu" in result.output and started == []
