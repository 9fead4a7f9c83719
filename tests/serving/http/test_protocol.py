"""Each connection interprets the end of a request in exactly one way.

It refuses ambiguous requests, and answers each request once and in order.
"""

import json
import logging
import socket
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from serving import metrics
from serving.http import json_api
from serving.settings import Settings
from tests.serving.harness import NAME, expected
from tests.serving.wire import ASKED, PATH, RAW, Client, Service, request
from tests.waiting import wait_for

LIVE = b"GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n"
OFFERS = {
    "h2c": "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
    "websocket": (
        "Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key:"
        " dGhlIHNhbXBsZSBub25jZQ==\r\n"
    ),
    "tls": "Connection: Upgrade\r\nUpgrade: TLS/1.2\r\n",
    "two": "Upgrade: h2c\r\nUpgrade: websocket\r\nConnection: keep-alive\r\nConnection: Upgrade\r\n",
}


@pytest.fixture(scope="module")
def service(misbehaving, tmp_path_factory) -> Iterator[Service]:
    """One service for most tests of this file."""
    folder = tmp_path_factory.mktemp("protocol")
    started = Service(Settings(**misbehaving[1], log_root=folder / "store", cache=folder / "cache"), 30)
    yield started
    started.end()


def answers(
    port: int, *parts: bytes, pause: float = 0.05, wait: float = 5, expect: int = 1
) -> tuple[list[tuple[int, bytes]], bool]:
    """Return status and body of all answers, and whether the service closed the connection.

    Args:
        expect: after this many answers, wait only briefly for more.
    """
    with socket.create_connection(("127.0.0.1", port), timeout=wait) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        came, closed = b"", False
        try:
            for number, part in enumerate(parts):
                time.sleep(pause if number else 0)
                client.sendall(part)
            while more := client.recv(65536):
                came += more
                if came.count(b"HTTP/1.1 ") >= expect:
                    client.settimeout(0.2)
            closed = True
        except TimeoutError:
            pass
        except ConnectionError:
            closed = True
    responses = []
    while came:
        head, _, came = came.partition(b"\r\n\r\n")
        status, *lines = head.split(b"\r\n")
        if not status.startswith(b"HTTP/1."):
            # A body without a length ends with its connection.
            break
        length = next((int(line.split(b":")[1]) for line in lines if line.lower().startswith(b"content-length:")), 0)
        responses.append((int(status.split()[1]), came[:length]))
        came = came[length:]
    return responses, closed


def message(
    method: str, path: str, headers: str, body: bytes | None, *, chunked: bool = False, version: str = "1.1"
) -> bytes:
    framing = (
        "" if body is None else "Transfer-Encoding: chunked\r\n" if chunked else f"Content-Length: {len(body)}\r\n"
    )
    content = body or b""
    if chunked:
        content = (
            b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (content[:7], content[7:]) if part) + b"0\r\n\r\n"
        )
    return f"{method} {path} HTTP/{version}\r\nHost: localhost\r\n{headers}{framing}\r\n".encode() + content


def cut(content: bytes, segments: int) -> list[bytes]:
    """Split the message into one, two or three segments. With three, the head is split, too."""
    head = content.index(b"\r\n\r\n") + 4
    return [
        [content],
        [content[:head], content[head:]],
        [content[: head // 2], content[head // 2 : head + 3], content[head + 3 :]],
    ][segments - 1]


@pytest.mark.parametrize("offer", OFFERS)
@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
@pytest.mark.parametrize("segments", [1, 2, 3])
def test_an_offer_of_another_protocol_is_ignored(service, offer, chunked, segments):
    for body, path in (
        (json.dumps({"instances": [RAW]}).encode(), PATH),
        (json.dumps({"instances": [ASKED]}).encode(), PATH),
    ):
        sent = message("POST", path, OFFERS[offer], body, chunked=chunked)
        responses, closed = answers(service.port, *cut(sent + sent + LIVE, segments), expect=3)
        assert [status for status, _ in responses] == [200, 200, 200] and not closed
        assert all(json.loads(content)["predictions"][0]["prediction"] for _, content in responses[:2])


@pytest.mark.parametrize("offer", OFFERS)
@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/models", 200), ("GET", "/live", 200), ("POST", "/feedback", 422), ("DELETE", PATH, 405)],
)
def test_an_offer_on_other_routes_is_ignored_too(service, offer, method, path, status):
    """An upgrade offer on other routes is ignored, too.

    The body looks like a request. A server that takes it for one answers twice.
    """
    body = None if method == "GET" else json.dumps({"model": NAME, "GET /live HTTP/1.1": ""}).encode()
    responses, _ = answers(service.port, message(method, path, OFFERS[offer], body))
    assert [one for one, _ in responses] == [status]


@pytest.mark.parametrize("path", [PATH, "/feedback", "/v2", "/nothing"])
@pytest.mark.parametrize("offer", OFFERS)
def test_a_request_inside_a_body_is_not_a_request(service, path, offer):
    for chunked in (False, True):
        sent = message("POST", path, OFFERS[offer], message("GET", "/live", "", None), chunked=chunked)
        for parts in ([sent], cut(sent, 2), cut(sent, 3)):
            responses, _ = answers(service.port, *parts)
            assert len(responses) == 1 and responses[0][0] >= 400


@pytest.mark.parametrize("offer", OFFERS)
def test_an_offer_together_with_close_closes(service, offer):
    headers = OFFERS[offer].replace("Connection: ", "Connection: close, ", 1)
    sent = message("POST", PATH, headers, json.dumps({"instances": [RAW]}).encode())
    responses, closed = answers(service.port, sent + LIVE, expect=2)
    assert [status for status, _ in responses] == [200] and closed


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_http_1_0_is_answered_once_and_closed(start, version):
    service = start()
    headers = OFFERS["h2c"] if version == "1.0" else "Connection: close\r\n"
    sent = message("POST", PATH, headers, json.dumps({"instances": [RAW]}).encode(), version=version)
    before = len(service.ordinary)
    responses, closed = answers(service.port, sent + request(RAW), expect=2)
    assert [status for status, _ in responses] == [200] and closed
    assert len(service.ordinary) == before + 1, "a request after the last one was answered"


@pytest.mark.parametrize("target", ["localhost:80", "/live", PATH])
def test_connect_is_refused(service, target):
    responses, closed = answers(
        service.port, f"CONNECT {target} HTTP/1.1\r\nHost: localhost:80\r\n\r\n".encode() + LIVE, expect=2
    )
    assert [status for status, _ in responses] == [405] and closed


BODY = b"0\r\n\r\n"
SHAPES = {
    "length and chunked": (
        b"POST %p HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    ),
    "chunked and length": (
        b"POST %p HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n"
    ),
    "chunked twice": (
        b"POST %p HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding:"
        b" chunked\r\n\r\n0\r\n\r\n"
    ),
    "chunked, identity": (
        b"POST %p HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding:"
        b" identity\r\n\r\n0\r\n\r\n"
    ),
    "identity, chunked": (
        b"POST %p HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\n"
    ),
    "gzip, chunked": b"POST %p HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "xchunked": b"POST %p HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "quoted chunked": b'POST %p HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: "chunked"\r\n\r\n0\r\n\r\n',
    "vertical tab": b"POST %p HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "space before colon": b"POST %p HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "chunked in 1.0": b"POST %p HTTP/1.0\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "length twice": b"POST %p HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nContent-Length: 5\r\n\r\n",
    "equal lengths": b"POST %p HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n",
    "list of lengths": b"POST %p HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0, 0\r\n\r\n",
    "plus": b"POST %p HTTP/1.1\r\nHost: localhost\r\nContent-Length: +0\r\n\r\n",
    "minus": b"POST %p HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
    "hex length": b"POST %p HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0x0\r\n\r\n",
    "underscore": b"POST %p HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1_0\r\n\r\n",
    "space in length": b"POST %p HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0 0\r\n\r\n",
    "empty length": b"POST %p HTTP/1.1\r\nHost: localhost\r\nContent-Length:\r\n\r\n",
    "huge length": b"POST %p HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999999999999\r\n\r\n",
    "bare LF in line": b"GET %p HTTP/1.1\nHost: localhost\r\n\r\n",
    "bare LF in header": b"GET %p HTTP/1.1\r\nHost: localhost\nX: a\r\n\r\n",
    "bare LF at the end": b"GET %p HTTP/1.1\r\nHost: localhost\r\n\n",
    "bare CR": b"GET %p HTTP/1.1\r\nHost: localhost\rX: a\r\n\r\n",
    "obs-fold": b"GET %p HTTP/1.1\r\nHost: localhost\r\nX: a\r\n b\r\n\r\n",
    "obs-fold of the length": b"POST %p HTTP/1.1\r\nHost: localhost\r\nContent-Length:\r\n 0\r\n\r\n",
    "fold first": b"GET %p HTTP/1.1\r\n Host: localhost\r\nHost: localhost\r\n\r\n",
    "two hosts": b"GET %p HTTP/1.1\r\nHost: localhost\r\nHost: elsewhere\r\n\r\n",
    "two equal hosts": b"GET %p HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
    "list of hosts": b"GET %p HTTP/1.1\r\nHost: localhost, elsewhere\r\n\r\n",
    "host with a path": b"GET %p HTTP/1.1\r\nHost: localhost/x\r\n\r\n",
    "host with a user": b"GET %p HTTP/1.1\r\nHost: a@localhost\r\n\r\n",
    "no host": b"GET %p HTTP/1.1\r\n\r\n",
    "another host in the target": b"GET http://elsewhere%p HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "no path": b"GET x%p HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "raw bytes in the target": b"GET %p\xc3\xa9 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "NUL in a value": b"GET %p HTTP/1.1\r\nHost: localhost\r\nX: a\x00b\r\n\r\n",
    "control in a value": b"GET %p HTTP/1.1\r\nHost: localhost\r\nX: a\x01b\r\n\r\n",
    "empty name": b"GET %p HTTP/1.1\r\nHost: localhost\r\n: a\r\n\r\n",
    "no colon": b"GET %p HTTP/1.1\r\nHost: localhost\r\nX\r\n\r\n",
    "HTTP/0.9": b"GET %p HTTP/0.9\r\nHost: localhost\r\n\r\n",
    "HTTP/1.2": b"GET %p HTTP/1.2\r\nHost: localhost\r\n\r\n",
    "HTTP/2.0": b"GET %p HTTP/2.0\r\nHost: localhost\r\n\r\n",
    "h2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "lower case method": b"get %p HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "signed chunk": b"POST %p HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n+2\r\n{}\r\n0\r\n\r\n",
    "0x chunk": b"POST %p HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0x2\r\n{}\r\n0\r\n\r\n",
    "bare LF after a chunk size": (
        b"POST %p HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n2\n{}\r\n0\r\n\r\n"
    ),
    "bare LF in an extension": (
        b"POST %p HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n2;a\n{}\r\n0\r\n\r\n"
    ),
    "bare LF after a chunk": (
        b"POST %p HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\n0\r\n\r\n"
    ),
    "chunk longer than its size": (
        b"POST %p HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{}\r\n0\r\n\r\n"
    ),
    "overflowing chunk": (
        b"POST %p HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n10000000000000002\r\n{}\r\n0\r\n\r\n"
    ),
    "trailer": (
        b"POST %p HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nX-API-Key:"
        b" stolen\r\n\r\n"
    ),
    "trailing length": (
        b"POST %p HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nContent-Length:"
        b" 5\r\n\r\n"
    ),
    "unknown expectation": b"POST %p HTTP/1.1\r\nHost: localhost\r\nExpect: 200-ok\r\nContent-Length: 2\r\n\r\n{}",
}


@pytest.mark.parametrize("path", [PATH, "/live"])
@pytest.mark.parametrize("shape", SHAPES)
def test_an_ambiguous_request_is_refused_and_nothing_after_it_is_read(service, shape, path):
    sent = SHAPES[shape].replace(b"%p", path.encode())
    responses, closed = answers(service.port, sent + LIVE, expect=3)
    assert closed, responses
    assert [status >= 400 for status, _ in responses] == [True] or (
        responses[:1] and responses[0][0] == 200 and len(responses) == 1
    ), responses
    # A body may be found invalid only after a route that takes no body has answered.
    if responses[0][0] == 200:
        assert path == "/live" and b"chunked\r\n\r\n" in sent


def test_the_refusals_are_counted(service):
    before = metrics.refused.labels("bad-request")._value.get()
    answers(service.port, SHAPES["two hosts"].replace(b"%p", b"/live"))
    assert metrics.refused.labels("bad-request")._value.get() == before + 1


def test_a_trailer_is_not_a_header_of_the_next_request(service):
    """A trailer is not a header of the next request.

    The parser returns the last trailer with the next request's headers, or adds it to those that
    were already checked.
    """
    sent = message("POST", PATH, "", json.dumps({"instances": [RAW]}).encode(), chunked=True)
    responses, closed = answers(service.port, sent[:-2] + b"Origin: http://elsewhere\r\n\r\n" + request(RAW))
    assert [status for status, _ in responses] == [400] and closed


def test_an_answer_that_is_due_comes_before_a_refusal(service):
    for first in (request(RAW), request(ASKED), LIVE, request({**RAW, "hour": "nine"})):
        for bad in (SHAPES["two hosts"], SHAPES["bare CR"], SHAPES["trailer"]):
            responses, closed = answers(service.port, first + bad.replace(b"%p", PATH.encode()) + LIVE, expect=3)
            assert [status for status, _ in responses] == [422 if b"nine" in first else 200, 400], (first, bad)
            assert closed


@pytest.mark.parametrize("part", ["instances_of", "tell", "document"])
def test_a_fault_in_the_fast_path_is_logged_counted_and_answered_the_ordinary_way(service, monkeypatch, caplog, part):
    def fail(*_):
        raise ZeroDivisionError("a fault of ours")

    monkeypatch.setattr(
        "serving.http.fast_path.json_api",
        SimpleNamespace(
            **{name: getattr(json_api, name) for name in ("instances_of", "tell", "document")} | {part: fail}
        ),
    )
    before = metrics.faults.labels("fast-path")._value.get()
    with caplog.at_level(logging.ERROR):
        responses, _ = answers(service.port, request(RAW) + request({**RAW, "hour": 5}), expect=2)
    assert [json.loads(content)["predictions"][0]["prediction"] for _, content in responses] == [
        expected(RAW),
        expected({**RAW, "hour": 5}),
    ]
    assert metrics.faults.labels("fast-path")._value.get() > before and "the fast path failed" in caplog.text


@pytest.mark.parametrize(
    ("where", "status"),
    [
        ("serving.http.fast_path.without_lookup", 200),
        ("serving.http.fast_path.new_id_lines", 200),
        ("serving.http.guarded.read_head", 500),
    ],
)
def test_any_fault_is_logged_counted_and_answered(service, monkeypatch, where, status):
    client = Client(service)
    assert client.ask(RAW)[0] == 200

    def fail(*_, **__):
        raise ZeroDivisionError("a fault of ours")

    before = sum(metrics.faults.labels(part)._value.get() for part in ("fast-path", "connection", "request"))
    monkeypatch.setattr(where, fail)
    # Use a different head: one that repeats the previous head is not read again.
    sent = request(RAW).replace(b"\r\n", b"\r\nAccept: */*\r\n", 1)
    client.send(sent + sent)
    assert client.answer()[0] == status
    if status == 200:
        assert client.answer()[0] == 200
    assert sum(metrics.faults.labels(part)._value.get() for part in ("fast-path", "connection", "request")) > before


def test_the_idle_timer_of_one_answer_does_not_end_the_next_request(start):
    service = start(idle=1, request_seconds=8)
    sent = request(RAW)
    responses, _ = answers(service.port, sent + sent[:-20], sent[-20:], pause=2.5, expect=2)
    assert [status for status, _ in responses] == [200, 200]


def test_too_many_requests_at_once_on_one_connection_are_refused_after_the_others(service):
    responses, closed = answers(service.port, LIVE * 500, expect=102)
    assert (
        [status for status, _ in responses[:-1]] == [200] * (len(responses) - 1) and responses[-1][0] == 400 and closed
    )
    assert 100 <= len(responses) <= 110


def test_ids_come_back_and_hostile_ones_do_not(service):
    parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    for path_of in (
        lambda **headers: Client(service).ask(RAW, **headers),
        lambda **headers: Client(service).ask(RAW, Connection="close", **headers),
    ):
        _, headers, _ = path_of(X_Request_ID="order-77", traceparent=parent)
        assert headers["x-request-id"] == "order-77"
        assert (
            headers["traceparent"].startswith(parent[:36])
            and headers["traceparent"].endswith("-01")
            and headers["traceparent"] != parent
        )
        _, headers, _ = path_of(
            X_Request_ID="a b\tc", traceparent=parent.replace("4bf92f3577b34da6a3ce929d0e0e4736", "0" * 32)
        )
        assert len(headers["x-request-id"]) == 32 and headers["traceparent"][3:35] != "0" * 32
    _, first, _ = Client(service).ask(RAW)
    _, second, _ = Client(service).ask(RAW)
    assert first["x-request-id"] != second["x-request-id"]


def test_expect_100_continue_is_met(service):
    body = json.dumps({"instances": [RAW]}).encode()
    with socket.create_connection(("127.0.0.1", service.port), timeout=5) as client:
        client.sendall(
            f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: {len(body)}\r\n\r\n".encode()  # noqa: E501
        )
        assert client.recv(100).startswith(b"HTTP/1.1 100 Continue\r\n\r\n")
        client.sendall(body)
        wait_for(lambda: client.recv(65536).startswith(b"HTTP/1.1 200"), 5)
