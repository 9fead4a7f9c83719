"""The containers' health check, against a server that answers as Airflow does."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from include.stack import health

HEALTH = {"scheduler": {"status": "healthy"}, "triggerer": {"status": "unhealthy"}, "dag_processor": {"status": None}}


@pytest.fixture(scope="module")
def server():
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(int(self.path[1:4]))
            self.end_headers()
            self.wfile.write(json.dumps(HEALTH).encode())

        def log_message(self, *_):
            pass

    listening = HTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{listening.server_port}"
    listening.shutdown()


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["{}/200"], 0),
        (["{}/200", "scheduler"], 0),
        (["{}/200", "triggerer"], 1),
        (["{}/200", "dag_processor"], 1),
        (["{}/200", "no_such_part"], 1),
        # It requires authentication, so it is healthy.
        (["{}/403"], 0),
        (["{}/503"], 1),
        (["{}/200", "{}/500"], 1),
        (["http://127.0.0.1:9/"], 1),
        ([], 1),
    ],
)
def test_who_is_well(server, arguments, expected):
    assert health.main([argument.format(server) for argument in arguments]) == expected


def test_it_says_what_is_wrong(server, capsys):
    health.main([f"{server}/200", "triggerer"])
    assert capsys.readouterr().out == "triggerer is unhealthy"
