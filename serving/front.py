"""What every request passes first: who asks, how much it brings, how many are being answered, how long it may take; and what is counted of it.

Predictions are answered here, without a framework in between; everything else goes on to the application behind.
"""

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from http import HTTPStatus
from typing import Any, NamedTuple

from serving import metrics
from serving.access import Access
from serving.draining import Draining
from serving.problems import Problem, unavailable

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]
CALLER = "serving.caller"  # in the scope: the name of a caller who has been let in, None for one without a key
PROBLEM = "application/problem+json"
CLOSE = (b"connection", b"close")

log = logging.getLogger(__name__)


class Answer(NamedTuple):
    body: bytes
    media_type: str = "application/json"
    headers: Mapping[str, str] | None = None
    status: int = 200


class Asked(NamedTuple):
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
        draining: while it has begun, each answer closes its connection.
        most_bytes: of a body; more is 413.
        most_requests: in flight at once; more are 503 at once, with Retry-After.
        seconds: for reading a body and answering it; then 408 (the body) or 503.
    """

    def __init__(
        self, application: Application, access: Access, router: Router, draining: Draining, *, most_bytes: int, most_requests: int, seconds: float
    ) -> None:
        self.application, self.access, self.router, self.draining = application, access, router, draining
        self.most_bytes, self.most_requests, self.seconds = most_bytes, most_requests, seconds
        self.in_flight = 0
        self.parts: Any = None  # of whoever made it, for those that look behind it
        self.fast_path: Any = None  # that goes before it, if there is one
        self._noted: dict[tuple[str, int], int] = {}
        self._since: dict[asyncio.Task[Any], float] = {}  # what is being answered, and since when
        self._overdue: set[asyncio.Task[Any]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # the start and the end of the application; it has no websockets
            if scope["type"] == "lifespan":
                await self.application(scope, receive, send)
            return
        started, path = time.perf_counter(), tuple(scope["path"].split("/")[1:])
        found = self.router(scope["method"], path)
        route = found[0] if found else "other"
        try:
            caller = scope[CALLER] if CALLER in scope else self.access.admit(scope["path"], scope["headers"], scope["client"])
            if found is None:
                scope[CALLER] = caller
                await self._pass_on(scope, receive, send)
                return
            said = await self._answer(found[1], path, scope, receive, caller or "", started)
        except Problem as problem:
            if problem.status in (401, 403, 429):
                metrics.refused.labels(problem.kind).inc()
            said = Answer(json.dumps(problem.document(scope["path"])).encode(), PROBLEM, problem.headers, problem.status)
        self.count(route, said.status)
        told = [(b"content-type", said.media_type.encode()), (b"content-length", str(len(said.body)).encode())]
        if said.headers:
            told += [(name.lower().encode(), value.encode()) for name, value in said.headers.items()]
        if self.draining.begun:
            told.append(CLOSE)
        await send({"type": "http.response.start", "status": said.status, "headers": told})
        await send({"type": "http.response.body", "body": said.body})

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        """To the application behind."""
        status = 500

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if self.draining.begun:
                    message = {**message, "headers": [*message["headers"], CLOSE]}
            await send(message)

        try:
            await self.application(scope, receive, watched)
        finally:
            self.count("other", status)

    async def _answer(self, handler: Handler, path: tuple[str, ...], scope: Scope, receive: Receive, caller: str, started: float) -> Answer:
        if self.in_flight >= self.most_requests:
            metrics.refused.labels("queue-full").inc()
            raise unavailable("queue-full", "The queue is full", f"{self.in_flight} requests are being answered; ask again in a moment")
        task = asyncio.current_task()
        assert task is not None
        self.in_flight += 1
        self._since[task] = started
        body = None
        try:
            body = await self._body(scope["headers"], receive)
            return await handler(Asked(path, scope["headers"], body, caller, started))
        except asyncio.CancelledError:
            if task not in self._overdue:  # the server ends
                raise
            self._overdue.discard(task)
            task.uncancel()
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
            del self._since[task]

    def end_the_overdue(self) -> None:
        """Cancel what takes longer than it may. Called once a second: a timer for each request would cost more than all its checks."""
        latest = time.perf_counter() - self.seconds
        for task, started in self._since.items():
            if started < latest and task not in self._overdue:
                self._overdue.add(task)
                task.cancel()

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

    def flush(self) -> None:
        """Count the requests that were noted since the last time."""
        noted, self._noted = self._noted, {}
        for (route, status), count in noted.items():
            metrics.requests.labels(route, str(status)).inc(count)

    def count(self, route: str, status: int, requests: int = 1) -> None:
        """Note answered requests; ``flush`` counts them."""
        key = (route, status)
        self._noted[key] = self._noted.get(key, 0) + requests
