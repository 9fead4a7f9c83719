"""Up, down and status with small stand-ins for the services: every order of events in a second.

tests/integration/stack/test_stack.py tests the real services.
"""

import os
import signal
import socket
import sys
import time

import pytest

from include.settings import Settings
from include.stack import lifecycle
from include.stack.accounts.access import is_exposed_without_auth
from include.stack.processes import Command
from include.stack.services import Service
from tests.ports import free_port

SERVER = (
    "import http.server, sys; http.server.HTTPServer(('127.0.0.1', int(sys.argv[1])),"
    " http.server.BaseHTTPRequestHandler).serve_forever()"
)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def server(name: str, port: int, code: str = SERVER) -> Service:
    command = Command(name, [sys.executable, "-c", code, str(port)], dict(os.environ))
    return Service(
        name, command, lambda record: listens(port), f"http://127.0.0.1:{port}", port, f"AIRLOOP_{name.upper()}_PORT"
    )


@pytest.fixture
def settings(tmp_path):
    settings = Settings(home=tmp_path)
    yield settings
    lifecycle.down(settings)


@pytest.fixture
def ports():
    return free_port(), free_port()


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch, ports):
    """Replace the six services by two small servers, without an Airflow that has pools."""
    chosen = [server("one", ports[0]), server("two", ports[1])]
    monkeypatch.setattr(lifecycle, "services", lambda settings: chosen)
    monkeypatch.setattr(lifecycle, "set_pools", lambda *_: None)
    return chosen


def states(settings):
    return {line.name: line.state for line in lifecycle.status(settings)}


def test_up_starts_all_and_a_second_up_nothing(settings):
    assert lifecycle.up(settings) == ["one", "two"]
    before = [line.pid for line in lifecycle.status(settings)]
    assert lifecycle.up(settings) == []
    assert [line.pid for line in lifecycle.status(settings)] == before
    assert states(settings) == {"one": "answering", "two": "answering"}


def test_after_a_kill_up_starts_only_what_is_missing(settings):
    lifecycle.up(settings)
    one, two = lifecycle.status(settings)
    os.kill(one.pid, signal.SIGKILL)
    while states(settings)["one"] == "answering":
        time.sleep(0.05)
    assert states(settings) == {"one": "died", "two": "answering"}
    assert lifecycle.up(settings) == ["one"]
    assert lifecycle.status(settings)[1].pid == two.pid


def test_down_twice_is_harmless(settings, ports):
    lifecycle.up(settings)
    assert lifecycle.down(settings) == ["one", "two"]
    assert lifecycle.down(settings) == []
    assert not any(listens(port) for port in ports)
    assert states(settings) == {"one": "stopped", "two": "stopped"}


def test_a_taken_port_is_named_with_its_holder_and_nothing_is_started(settings, ports):
    with socket.socket() as other:
        other.bind(("127.0.0.1", ports[1]))
        other.listen()
        with pytest.raises(lifecycle.PortTakenError) as error:
            lifecycle.up(settings)
    for part in (f"two wants port {ports[1]}", f"process {os.getpid()}", f"AIRLOOP_TWO_PORT={ports[1] + 1}"):
        assert part in str(error.value)
    assert states(settings) == {"one": "stopped", "two": "stopped"}


def test_a_service_that_ends_as_it_starts_shows_its_log_and_takes_the_others_down(settings, stand_ins, ports):
    stand_ins[1] = server("two", ports[1], "raise SystemExit('no such table: everything')")
    with pytest.raises(lifecycle.StackError, match="no such table: everything"):
        lifecycle.up(settings)
    assert not listens(ports[0])
    assert states(settings) == {"one": "stopped", "two": "stopped"}


def test_a_service_that_never_answers_is_named_and_ended(settings, stand_ins, ports):
    one = stand_ins[0]
    stand_ins[:] = [one]
    lifecycle.up(settings)
    stand_ins[:] = [one, server("two", ports[1], "import time; print('still thinking', flush=True); time.sleep(60)")]
    with pytest.raises(lifecycle.StackError, match="no answer in time from two(.|\n)*still thinking"):
        lifecycle.up(settings, timeout=6)
    assert states(settings) == {"one": "answering", "two": "stopped"}


def test_what_ran_before_a_failed_up_goes_on_running(settings, stand_ins, ports):
    whole = list(stand_ins)
    stand_ins.pop()
    lifecycle.up(settings)
    stand_ins[:] = [whole[0], server("two", ports[1], "raise SystemExit(3)")]
    with pytest.raises(lifecycle.StackError):
        lifecycle.up(settings)
    assert states(settings)["one"] == "answering"


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.7", "::", "machine.example.org"])
def test_a_mlflow_that_asks_nobody_is_not_shown_to_the_network(tmp_path, host):
    with pytest.raises(
        lifecycle.StackError, match="AIRLOOP_HOST is .* it asks nobody .* Set AIRLOOP_MLFLOW_ADMIN_PASSWORD"
    ):
        lifecycle.up(Settings(home=tmp_path, host=host))
    assert not list(tmp_path.rglob("*.log"))  # nothing was started


def test_it_may_be_elsewhere_or_ask_or_be_this_machines_alone(tmp_path):
    asks = {
        "mlflow_admin_password": "Zx-one",
        "mlflow_username": "airloop",
        "mlflow_password": "Zx-two",
        "mlflow_flask_secret_key": "Zx-three",
    }
    for settings in (
        {"mlflow_uri": "http://mlflow:5000", "host": "0.0.0.0"},
        asks | {"host": "0.0.0.0"},
        {"host": "::1"},
        {"host": "localhost"},
        {},
    ):
        assert is_exposed_without_auth(Settings(home=tmp_path, **settings)) is None
