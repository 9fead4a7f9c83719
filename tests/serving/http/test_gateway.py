"""Checks that every request passes first, tested without a server."""

import asyncio

from serving.access.callers import Access
from serving.access.log import AccessLog
from serving.http.connections import Connections
from serving.http.draining import Draining
from serving.http.gateway import Gateway, RequestLimits
from serving.http.shares import Shares


def test_a_body_that_is_announced_too_long_is_refused_before_it_comes():
    """A body whose announced length is too large is refused before it arrives.

    A client that waits for permission to send it (``Expect: 100-continue``) sends nothing. A client
    that never sends it occupies no slot.
    """
    sent = []

    async def never() -> dict:
        raise AssertionError("the body was asked for")

    async def send(message: dict) -> None:
        sent.append(message)

    async def answer(asked):
        raise AssertionError("it was answered")

    gateway = Gateway(
        None,
        Access(None),
        lambda method, path: ("predict", answer),
        Draining(0),
        limits=RequestLimits(body_bytes=10, request_seconds=5),
        shares=Shares(keyed=False, requests=1, rows=10, body_bytes=100),
        connections=Connections(1, 1),
        access_log=AccessLog("off"),
    )
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/models/a/predict",
        "headers": [(b"content-length", b"11")],
        "client": ("127.0.0.1", 1),
    }
    asyncio.run(gateway(scope, never, send))
    assert sent[0]["status"] == 413 and gateway.in_flight == 0
