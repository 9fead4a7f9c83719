"""What every request passes first, asked without a server."""

import asyncio

from serving.access import Access
from serving.draining import Draining
from serving.front import Front


def test_a_body_that_is_announced_too_long_is_refused_before_it_comes():
    """A client that waits for leave to send it (``Expect: 100-continue``) sends nothing; one that never sends it holds no place."""
    sent = []

    async def never() -> dict:
        raise AssertionError("the body was asked for")

    async def send(message: dict) -> None:
        sent.append(message)

    async def answer(asked):
        raise AssertionError("it was answered")

    front = Front(None, Access(None), lambda method, path: ("predict", answer), Draining(0), most_bytes=10, most_requests=1, seconds=5)
    scope = {"type": "http", "method": "POST", "path": "/models/a/predict", "headers": [(b"content-length", b"11")], "client": ("127.0.0.1", 1)}
    asyncio.run(front(scope, never, send))
    assert sent[0]["status"] == 413 and front.in_flight == 0
