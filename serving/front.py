"""What every request passes first: who asks, how much it brings, how many are being answered, how long it may take; and what is counted of it.

Predictions are answered here, without a framework in between; everything else goes on to the application behind.
"""

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from serving import metrics
from serving.access import Access
from serving.problems import Problem, unavailable

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]
CALLER = "serving.caller"  # in the scope: the caller's name, None for one without a key
PROBLEM = "application/problem+json"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    body: bytes
    media_type: str = "application/json"
    headers: Mapping[str, str] | None = None
    status: int = 200


@dataclass(frozen=True)
class Asked:
    """A request that has been read."""

    path: tuple[str, ...]
    headers: list[tuple[bytes, bytes]]
    body: bytes
    caller: str
    started: float  # time.perf_counter()


Handler = Callable[[Asked], Awaitable[Answer]]
# Method and path -> the route's name and what answers it; None: the application behind does.
Router = Callable[[str, tuple[str, ...]], tuple[str, Handler] | None]


class Front:
    """An ASGI application before another one.

    Args:
        most_bytes: of a body; more is 413.
        most_requests: in flight at once; more are 503 at once, with Retry-After.
        seconds: for reading a body and answering it; then 408 (the body) or 503.
    """

    def __init__(self, application: Application, access: Access, router: Router, *, most_bytes: int, most_requests: int, seconds: float) -> None:
        self.application, self.access, self.router = application, access, router
        self.most_bytes, self.most_requests, self.seconds = most_bytes, most_requests, seconds
        self.in_flight = 0
        self.parts: Any = None  # of whoever made it, for those that look behind it
        self._meters: dict[tuple[str, int], Any] = {}
        self._seconds: dict[str, Any] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # the start and the end of the application; it has no websockets
            if scope["type"] == "lifespan":
                await self.application(scope, receive, send)
            return
        started, path = time.perf_counter(), tuple(scope["path"].split("/")[1:])
        found = self.router(scope["method"], path)
        route = found[0] if found else "other"
        status = 500
        try:
            caller = self.access.admit(scope["path"], scope["headers"], scope["client"])
            if found is None:
                scope[CALLER] = caller

                async def watched(message: Message) -> None:
                    nonlocal status
                    if message["type"] == "http.response.start":
                        status = message["status"]
                    await send(message)

                await self.application(scope, receive, watched)
                return
            said = await self._answer(found[1], path, scope, receive, caller or "", started)
        except Problem as problem:
            if problem.status in (401, 403, 429):
                metrics.refused.labels(problem.kind).inc()
            said = Answer(json.dumps(problem.document(scope["path"])).encode(), PROBLEM, problem.headers, problem.status)
        finally:
            if found is None:
                self._count(route, status, started)
        self._count(route, said.status, started)
        told = [(b"content-type", said.media_type.encode()), (b"content-length", str(len(said.body)).encode())]
        if said.headers:
            told += [(name.lower().encode(), value.encode()) for name, value in said.headers.items()]
        await send({"type": "http.response.start", "status": said.status, "headers": told})
        await send({"type": "http.response.body", "body": said.body})

    async def _answer(self, handler: Handler, path: tuple[str, ...], scope: Scope, receive: Receive, caller: str, started: float) -> Answer:
        if self.in_flight >= self.most_requests:
            metrics.refused.labels("queue-full").inc()
            raise unavailable("queue-full", "The queue is full", f"{self.in_flight} requests are being answered; ask again in a moment")
        self.in_flight += 1
        body = None
        try:
            async with asyncio.timeout(self.seconds):
                body = await self._body(scope["headers"], receive)
                return await handler(Asked(path, scope["headers"], body, caller, started))
        except TimeoutError:
            if body is None:
                raise Problem(408, "slow-body", "The body did not come", f"it was not there whole within {self.seconds:g} s") from None
            metrics.refused.labels("too-slow").inc()
            raise unavailable("too-slow", "The answer takes too long", f"there was none within {self.seconds:g} s") from None
        except Problem:
            raise
        except Exception:
            log.exception("%s /%s failed", scope["method"], "/".join(path))
            raise Problem(500, "fault", "The service failed", "this is a fault of the service; its log says more") from None
        finally:
            self.in_flight -= 1

    async def _body(self, headers: list[tuple[bytes, bytes]], receive: Receive) -> bytes:
        for name, value in headers:
            if name == b"content-length" and int(value) > self.most_bytes:  # the server has refused what is no number
                raise self._too_long()
        message = await receive()
        body = message.get("body", b"")
        if not message.get("more_body"):
            if len(body) > self.most_bytes:
                raise self._too_long()
            return body
        parts, length = [body], len(body)
        while message.get("more_body"):
            message = await receive()
            parts.append(message.get("body", b""))
            length += len(parts[-1])
            if length > self.most_bytes:
                raise self._too_long()
        return b"".join(parts)

    def _too_long(self) -> Problem:
        return Problem(413, "too-long", HTTPStatus(413).phrase, f"the body is longer than {self.most_bytes} bytes", field="body")

    def _count(self, route: str, status: int, started: float) -> None:
        counter = self._meters.get((route, status))
        if counter is None:
            counter = self._meters[route, status] = metrics.requests.labels(route, str(status))
            self._seconds.setdefault(route, metrics.latency.labels(route))
        counter.inc()
        self._seconds[route].observe(time.perf_counter() - started)
