"""A client without a key cannot exhaust memory, the event loop or file descriptors."""

import json
import socket
import time

import psutil
import pytest

from serving import keys
from serving.http.connections import Connections, share_descriptors
from tests.serving.harness import serving_process
from tests.serving.http.test_protocol import answers, message
from tests.serving.wire import PATH, RAW, Client, request
from tests.waiting import wait_for

BODY = json.dumps({"instances": [RAW]}).encode()


def send_until_closed(port: int, first: bytes, repeated: bytes, most: int) -> tuple[int, bytes]:
    """Return the number of bytes sent before the service closed the connection, and its answer."""
    sent, came = 0, b""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
        try:
            client.sendall(first)
            while sent < most:
                client.sendall(repeated)
                sent += len(repeated)
        except OSError:
            pass
        try:
            while more := client.recv(65536):
                came += more
        except OSError:
            pass
    return sent, came


@pytest.mark.parametrize(
    ("first", "repeated", "status"),
    [
        (b"GET /live HTTP/1.1\r\nHost: localhost\r\n", b"a:\r\n" * 1000, b"431"),
        (b"GET /live HTTP/1.1\r\nHost: localhost\r\nX: ", b"a" * 65536, b"431"),
        (b"GET /live HTTP/1.1\r\nHost: localhost\r\n", b"a" * 65536, b"431"),
        (b"GET /", b"a" * 65536, b"431"),
        (b"", b"\r\n" * 32768, b"431"),
        (b"GET", b"G" * 65536, b"400"),
        (b"POST /live HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n" * 10000, b""),
    ],
    ids=["tiny headers", "one value", "one name", "target", "empty lines", "method", "tiny chunks"],
)
def test_an_endless_head_ends_early_and_costs_no_memory(start, first, repeated, status):
    service = start()
    before, began = psutil.Process().memory_info().rss, time.monotonic()
    for _ in range(5):
        sent, came = send_until_closed(service.port, first, repeated, 25_000_000)
        # Some megabytes fit into the sockets' buffers.
        assert sent < 10_000_000
        # A client that continues sending may find the connection reset before it reads the answer.
        assert status in came.partition(b"\r\n")[0] or not came
    assert psutil.Process().memory_info().rss - before < 30_000_000
    assert time.monotonic() - began < 20
    assert Client(service).ask(RAW)[0] == 200


def test_many_and_long_headers_within_the_limits_are_accepted(service):
    headers = "".join(f"X-{number}: {'v' * 250}\r\n" for number in range(95))
    assert answers(service.port, message("POST", PATH, headers, BODY))[0][0][0] == 200
    for headers in ("".join(f"X-{number}: v\r\n" for number in range(100)), f"X: {'v' * 33_000}\r\n"):
        responses, closed = answers(service.port, message("POST", PATH, headers, BODY), expect=2)
        assert [status for status, _ in responses] == [431] and closed


def test_a_slow_head_and_an_unused_connection_are_closed(start):
    service = start(head_seconds=1)
    for sent in (b"", b"POST /models", b"GET /live HTTP/1.1\r\nHost: localhost\r\nX: a"):
        began = time.monotonic()
        with socket.create_connection(("127.0.0.1", service.port), timeout=10) as client:
            client.settimeout(0.3)
            came, dripped = None, list(sent.decode()) or [""]
            client.sendall(sent[:1])
            while came is None and time.monotonic() - began < 8:
                try:
                    # An occasional byte must not restart the timeout.
                    client.sendall(dripped.pop(1).encode() if len(dripped) > 1 else b"")
                    came = client.recv(1000)
                except TimeoutError:
                    continue
                except OSError:
                    came = b""
        assert 0.9 < time.monotonic() - began < 5
        assert came == b"" or came.startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("path", [PATH, "/live", "/feedback", "/nothing"])
def test_a_slow_body_is_ended_on_every_route(start, path):
    service = start(request_seconds=1)
    with socket.create_connection(("127.0.0.1", service.port), timeout=12) as client:
        client.sendall(f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n".encode())
        began = time.monotonic()
        client.settimeout(0.5)
        while time.monotonic() - began < 10:
            try:
                client.sendall(b" ")
                if client.recv(65536) == b"":
                    break
            except TimeoutError:
                continue
            except OSError:
                break
        assert time.monotonic() - began < 9
    wait_for(lambda: len(service.gateway.connections) == 0, 5)
    assert not service.gateway._since


def test_a_client_that_does_not_read_its_answers_is_closed(start):
    service = start(request_seconds=1)
    with socket.create_connection(("127.0.0.1", service.port), timeout=3) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sent = request(*[RAW] * 300)
        client.settimeout(0.5)
        began = time.monotonic()
        with pytest.raises(OSError):
            while time.monotonic() - began < 15:
                try:
                    client.sendall(sent)
                except TimeoutError:
                    time.sleep(0.1)
        assert time.monotonic() - began < 12
    assert Client(service).ask(RAW)[0] == 200


def test_idle_strangers_give_way_and_callers_do_not(start, tmp_path):
    file = tmp_path / "keys.json"
    key = keys.create(file, "known", ["predict"])
    service = start(keys_file=file, max_connections=20)
    known = Client(service)
    assert known.ask(RAW, X_API_Key=key)[0] == 200
    strangers = [socket.create_connection(("127.0.0.1", service.port)) for _ in range(100)]
    wait_for(lambda: len(service.gateway.connections) == 20, 5)
    assert known.ask(RAW, X_API_Key=key)[0] == 200
    for _ in range(5):
        assert Client(service).ask(RAW, X_API_Key=key)[0] == 200
    assert len(service.gateway.connections) <= 20
    for stranger in strangers:
        stranger.close()


def unfinished(service, key: str, count: int, address: str) -> list[socket.socket]:
    """Open connections of a caller whose requests never come to their end."""
    head = message("POST", PATH, f"X-API-Key: {key}\r\nContent-Length: 60000\r\n", None)
    held = []
    for number in range(count):
        client = socket.create_connection(
            ("127.0.0.1", service.port), source_address=(address.format(number % 4 + 1), 0)
        )
        client.sendall(head)
        held.append(client)
    return held


@pytest.mark.parametrize(
    "address", ["127.0.9.{}", "127.0.0.1"], ids=["several addresses", "one address, as behind a proxy"]
)
def test_a_caller_with_unfinished_requests_on_all_connections_keeps_nobody_out(start, tmp_path, address):
    file = tmp_path / "keys.json"
    hog, other = (keys.create(file, name, ["predict"]) for name in ("hog", "other"))
    service = start(keys_file=file, max_connections=24, max_connections_per_address=16)
    waiting = Client(service)
    waiting.send(request(RAW, X_API_Key=other)[:-5])
    held = unfinished(service, hog, 40, address)
    wait_for(lambda: len(service.gateway.connections) >= 16, 5)
    for _ in range(10):
        client = Client(service)
        assert client.ask(RAW, X_API_Key=other)[0] == 200
    with socket.create_connection(("127.0.0.1", service.port), timeout=5) as probe:
        probe.sendall(b"GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert probe.recv(1000).startswith(b"HTTP/1.1 200")
    # The other caller's own unfinished request was not closed for them.
    waiting.send(request(RAW, X_API_Key=other)[-5:])
    assert waiting.answer()[0] == 200
    for client in held:
        client.close()


def test_one_address_has_a_limit_of_its_own(start):
    service = start(max_connections_per_address=5)
    for number in range(20):
        socket.create_connection(("127.0.0.1", service.port), source_address=("127.0.0.2", 0))
        if number == 10:
            assert Client(service).ask(RAW)[0] == 200
    wait_for(lambda: len(service.gateway.connections) <= 6, 5)


def test_callers_who_fill_the_service_are_refused_not_evicted(start):
    service = start(max_connections=4)
    busy = [Client(service) for _ in range(4)]
    for client in busy:
        assert client.ask(RAW)[0] == 200
        client.send(request(RAW)[:-5])
    time.sleep(0.2)
    responses, closed = answers(service.port, request(RAW), expect=2)
    assert closed and [status for status, _ in responses] in ([503], [])
    for client in busy:
        client.send(request(RAW)[-5:])
        assert client.answer()[0] == 200


def test_descriptors_are_kept_for_the_service():
    for limit in (128, 256, 1024, 4096, 65536, 1_000_000):
        shared = share_descriptors(10**6, limit)
        assert shared.connections + 2 * shared.backlog + 40 <= limit
        assert shared.connections >= limit // 5
    assert share_descriptors(100, 65536).connections == 100


def test_order_of_eviction():
    class One:
        unfinished = False

        def __init__(self, address, admitted=False, idle=True, caller=""):
            self.address, self.admitted, self.idle, self.dropped, self.caller = address, admitted, idle, False, caller

        def drop(self):
            self.dropped = True

        def overdue(self, now):
            return False

    held = Connections(3, 2)
    stranger, known, busy = One("a"), One("b", admitted=True), One("b", admitted=True, idle=False)
    for one in (known, busy, stranger):
        assert held.add(one)
        if one.admitted:
            held.admit(one)
    assert held.add(newest := One("c")) and stranger.dropped and not known.dropped
    newest.admitted, newest.idle = True, False
    held.admit(newest)
    assert held.add(One("c")) and known.dropped
    assert len(held) == 3


def test_a_caller_with_many_addresses_gives_way_although_a_proxy_has_more_connections_of_each():
    class One:
        idle, unfinished, admitted, dropped = False, True, True, False

        def __init__(self, address, caller):
            self.address, self.caller = address, caller

        def drop(self):
            self.dropped = True

        def overdue(self, now):
            return False

    held = Connections(8, 8)
    callers = [One("proxy", name) for name in "xyz"]
    hog = [One(f"address {number}", "hog") for number in range(5)]
    for one in (*callers, *hog):
        assert held.add(one)
        held.admit(one)
    assert held.add(One("new", "")) and [one.dropped for one in (*callers, *hog)] == [False] * 3 + [True] + [False] * 4


@pytest.mark.stack
def test_300_idle_sockets_stop_neither_clients_nor_the_registry(registry, features, tmp_path):
    """300 idle sockets block neither clients nor the registry.

    With 256 open files, the service keeps answering and follows the registry.
    """
    registry.add(bias=1)
    script = (
        "import resource, runpy; resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256)); runpy.run_module('serving',"
        " run_name='__main__')"
    )
    service = serving_process(tmp_path, registry.uri, features, arguments=("-c", script))
    idle = []
    try:
        service.wait("/ready", 90)
        for _ in range(300):
            try:
                idle.append(socket.create_connection(("127.0.0.1", service.port), timeout=2))
            except OSError:
                break
        version = registry.add(bias=2)
        answered = []

        def follows() -> bool:
            status, body = service.get(PATH, {"instances": [RAW]}, timeout=3)
            answered.append(status)
            return status == 200 and body["model_version"] == version

        wait_for(follows, 20, lambda: (answered[-5:], service.log.read_text()[-2000:]))
        assert set(answered) == {200}
        assert "Too many open files" not in service.log.read_text()
    finally:
        for client in idle:
            client.close()
        service.end()
