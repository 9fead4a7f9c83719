"""What every request passes first, asked without a server."""

import asyncio

from serving.access import Access
from serving.access_log import AccessLog
from serving.connections import Connections
from serving.draining import Draining
from serving.front import Front, Limits
from serving.shares import Shares


def test_a_body_that_is_announced_too_long_is_refused_before_it_comes():
    """A client that waits for leave to send it (``Expect: 100-continue``) sends nothing; one that never sends it holds no place."""
    sent = []

    async def never() -> dict:
        raise AssertionError("the body was asked for")

    async def send(message: dict) -> None:
        sent.append(message)

    async def answer(asked):
        raise AssertionError("it was answered")

    front = Front(
        None,
        Access(None),
        lambda method, path: ("predict", answer),
        Draining(0),
        limits=Limits(body_bytes=10, request_seconds=5),
        shares=Shares(keyed=False, requests=1, rows=10, body_bytes=100),
        connections=Connections(1, 1),
        access_log=AccessLog("off"),
    )
    scope = {"type": "http", "method": "POST", "path": "/models/a/predict", "headers": [(b"content-length", b"11")], "client": ("127.0.0.1", 1)}
    asyncio.run(front(scope, never, send))
    assert sent[0]["status"] == 413 and front.in_flight == 0
