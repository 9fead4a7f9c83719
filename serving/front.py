"""The checks that every request passes first: who sends it, how much it brings, how many are being answered, how long it may take.

Predictions are answered here, without a framework in between; every other request goes on to the application behind.
"""

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from serving import metrics
from serving.access import NOBODY, Access, Caller
from serving.access_log import AccessLog, Line
from serving.bodies import MOST_IN_LOOP, Disconnected, coding_of, receive_body, unpack
from serving.connections import Connections
from serving.draining import Draining
from serving.heads import WATCHED, Head, read_head
from serving.ids import new_id
from serving.problems import Problem, media_type, unavailable
from serving.shares import Shares

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]
# Keys of the scope: the caller who has been let in (None: a caller without a key), the head as the connection read it, and the call by which the
# connection learns that a known caller uses it.
CALLER, HEAD, ADMITTED = "serving.caller", "serving.head", "serving.admitted"
# Whether the request's rows were taken from its caller's rate already.
CHARGED = "serving.charged"
PROBLEM = "application/problem+json"
CLOSE = (b"connection", b"close")
NO_SNIFFING = (b"x-content-type-options", b"nosniff")

log = logging.getLogger(__name__)


class Answer(NamedTuple):
    body: bytes
    media_type: str = "application/json"
    headers: Mapping[str, str] | None = None
    status: int = 200


class Asked(NamedTuple):
    """A request that has been read.

    Attributes:
        body: without its content coding.
        started: time.perf_counter() of its head.
        take_rows: to be called with the number of rows before they are answered; raises Problem 429 or 503.
    """

    path: tuple[str, ...]
    headers: list[tuple[bytes, bytes]]
    body: bytes
    caller: Caller
    started: float
    take_rows: Callable[[int], None]


Handler = Callable[[Asked], Awaitable[Answer]]
# Method and path -> the route's name and what answers it; None: the application behind does.
Router = Callable[[str, tuple[str, ...]], tuple[str, Handler] | None]


@dataclass(frozen=True)
class Limits:
    """What one request and one connection may take.

    Attributes:
        head_bytes: of a request's line and headers.
        headers: in one request.
        head_seconds: from the first byte of a head to its end.
        body_bytes: of a body, with and without its content coding; more is 413.
        request_seconds: for receiving a body and answering it; then 408 (the body) or 503.
    """

    head_bytes: int = 32 * 1024
    headers: int = 100
    head_seconds: float = 10
    body_bytes: int = 8 * 2**20
    request_seconds: float = 10


class Trace(NamedTuple):
    """The ids under which a request is found again."""

    request_id: str
    parent: str  # W3C traceparent of this service's part

    def headers(self) -> list[tuple[bytes, bytes]]:
        return [(b"x-request-id", self.request_id.encode()), (b"traceparent", self.parent.encode())]


def trace_of(head: Head) -> Trace:
    """Return the client's ids where it sent valid ones, and else new ones."""
    drawn = new_id()
    request_id = head.request_id.decode() if head.request_id else drawn
    if head.trace_parent:
        given = head.trace_parent.decode()
        return Trace(request_id, f"{given[:36]}{drawn[:16]}{given[52:]}")
    return Trace(request_id, f"00-{drawn}-{drawn[16:]}-00")


class Front:
    """An ASGI application before another one.

    Args:
        draining: while it has begun, each answer closes its connection.
        shares: what callers may use at once; more is 503 or 429 at once, with Retry-After.
    """

    def __init__(
        self, application: Application, access: Access, router: Router, draining: Draining, *,
        limits: Limits, shares: Shares, connections: Connections, access_log: AccessLog,
    ) -> None:  # fmt: skip
        self.application, self.access, self.router, self.draining = application, access, router, draining
        self.limits, self.shares, self.connections, self.access_log = limits, shares, connections, access_log
        # Set by create_app, for code that needs the parts or the fast path of a front.
        self.parts: Any = None
        self.fast_path: Any = None
        # Route, status and caller -> requests that were answered and are not counted yet.
        self._noted: dict[tuple[str, int, str], int] = {}
        # Requests that are being received or answered, and since when.
        self._since: dict[asyncio.Task[Any], float] = {}
        self._overdue: set[asyncio.Task[Any]] = set()

    @property
    def in_flight(self) -> int:
        """Requests that are being answered."""
        return self.shares.requests.used

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            # The start and the end of the application. There are no websockets.
            if scope["type"] == "lifespan":
                await self.application(scope, receive, send)
            return
        started, path = time.perf_counter(), tuple(scope["path"].split("/")[1:])
        head: Head = scope.get(HEAD) or head_of(scope)
        trace = trace_of(head)
        found = self.router(scope["method"], path)
        route = found[0] if found else "other"
        caller, reason = None, ""
        try:
            caller = scope[CALLER] if CALLER in scope else self.access.admit(scope["path"], scope["headers"], scope["client"])
            if caller is not None and ADMITTED in scope:
                scope[ADMITTED]()
            if found is None:
                scope[CALLER] = caller
                status = await self._pass_on(scope, receive, send, trace)
                self._note(scope, trace, caller, status, started, "")
                return
            said = await self._answer(found[1], path, scope, receive, caller or NOBODY, started)
        except Disconnected:
            self._note(scope, trace, caller, 499, started, "client-left")
            return
        except Problem as problem:
            if problem.status in (401, 403, 429):
                metrics.refused.labels(problem.kind).inc()
            reason = problem.kind
            said = Answer(json.dumps(problem.document(scope["path"])).encode(), media_type(scope["path"]), problem.headers, problem.status)
        self.count(route, said.status, caller)
        self._note(scope, trace, caller, said.status, started, reason, len(said.body))
        told = [(b"content-type", said.media_type.encode()), NO_SNIFFING, *trace.headers(), (b"content-length", str(len(said.body)).encode())]
        if said.headers:
            told += [(name.lower().encode(), value.encode()) for name, value in said.headers.items()]
        if self.draining.begun:
            told.append(CLOSE)
        await send({"type": "http.response.start", "status": said.status, "headers": told})
        await send({"type": "http.response.body", "body": said.body})

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send, trace: Trace) -> int:
        """Let the application behind answer; give the status."""
        status = 500

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                closing = [CLOSE] if self.draining.begun else []
                message = {**message, "headers": [*message["headers"], NO_SNIFFING, *trace.headers(), *closing]}
            await send(message)

        try:
            await self.application(scope, receive, watched)
        finally:
            self.count("other", status, scope[CALLER])
        return status

    async def _answer(self, handler: Handler, path: tuple[str, ...], scope: Scope, receive: Receive, caller: Caller, started: float) -> Answer:
        """Receive the body and answer. A request takes a slot only when its body is complete: a client that never sends it holds none."""
        task = asyncio.current_task()
        assert task is not None
        self._since[task] = started
        held = body = None
        try:
            held = Held(self.shares, caller, charged=scope.get(CHARGED, False))
            body = await receive_body(scope["headers"], receive, self.limits.body_bytes, held.take_bytes)
            if coding := coding_of(scope["headers"]):
                body = await self._unpacked(body, coding, held)
            held.take_request()
            return await handler(Asked(path, scope["headers"], body, caller, started, held.take_rows))
        except asyncio.CancelledError:
            if task not in self._overdue:
                # The server ends.
                raise
            self._overdue.discard(task)
            task.uncancel()
            if body is None:
                detail = f"the body was not complete within {self.limits.request_seconds:g} s"
                raise Problem(408, "slow-body", "The body did not come", detail) from None
            metrics.refused.labels("too-slow").inc()
            raise unavailable("too-slow", "The answer takes too long", f"there was none within {self.limits.request_seconds:g} s") from None
        except (Problem, Disconnected):
            raise
        except Exception:
            log.exception("%s /%s failed", scope["method"], "/".join(path))
            metrics.faults.labels("request").inc()
            raise Problem(500, "fault", "The service failed", "this is a fault of the service; its log says more") from None
        finally:
            if held is not None:
                held.give_back()
            del self._since[task]

    async def _unpacked(self, body: bytes, coding: bytes, held: "Held") -> bytes:
        if len(body) <= MOST_IN_LOOP:
            unpacked = unpack(body, coding, self.limits.body_bytes)
        else:
            unpacked = await asyncio.to_thread(unpack, body, coding, self.limits.body_bytes)
        held.take_bytes(len(unpacked))
        return unpacked

    def end_the_overdue(self) -> None:
        """Cancel what takes longer than it may. Called once a second: a timer for each request would cost more than all its checks."""
        latest = time.perf_counter() - self.limits.request_seconds
        for task, started in self._since.items():
            if started < latest and task not in self._overdue:
                self._overdue.add(task)
                task.cancel()

    def flush(self) -> None:
        """Count the requests that were noted since the last time."""
        noted, self._noted = self._noted, {}
        for (route, status, caller), count in noted.items():
            metrics.requests.labels(route, str(status)).inc(count)
            if caller:
                metrics.caller_requests.labels(caller, f"{status // 100}xx").inc(count)

    def count(self, route: str, status: int, caller: Caller | None = None, requests: int = 1) -> None:
        """Note answered requests; ``flush`` counts them."""
        key = (route, status, caller.name if caller is not None else "")
        self._noted[key] = self._noted.get(key, 0) + requests

    def note_refused(self, problem: Problem, client: str) -> None:
        """Note what a connection refused before there was a request."""
        self.count("other", problem.status)
        drawn = new_id()
        self.access_log.note(Line(time.time(), drawn, f"00-{drawn}-{drawn[16:]}-00", "-", client, "-", "-", problem.status, 0.0, 0, problem.kind))

    def _note(self, scope: Scope, trace: Trace, caller: Caller | None, status: int, started: float, reason: str, length: int = 0) -> None:
        client = scope["client"][0] if scope.get("client") else "-"
        name = caller.name if caller is not None else "-"
        seconds = time.perf_counter() - started
        self.access_log.note(Line(time.time(), *trace, name, client, scope["method"], scope["path"], status, seconds, length, reason))


class Held:
    """What one request has taken of the shares."""

    def __init__(self, shares: Shares, caller: Caller, *, charged: bool) -> None:
        self._shares, self._of, self._caller, self._charged = shares, caller, caller.name, charged
        self._bytes = self._rows = self._requests = 0

    def take_bytes(self, amount: int) -> None:
        self._shares.body_bytes.take(self._caller, amount)
        self._bytes += amount

    def take_request(self) -> None:
        self._shares.requests.take(self._caller)
        self._requests += 1

    def take_rows(self, amount: int) -> None:
        if not self._charged:
            self._of.take_rows(amount)
        self._shares.rows.take(self._caller, amount)
        self._rows += amount

    def give_back(self) -> None:
        for share, amount in ((self._shares.body_bytes, self._bytes), (self._shares.requests, self._requests), (self._shares.rows, self._rows)):
            if amount:
                share.give_back(self._caller, amount)


def head_of(scope: Scope) -> Head:
    """Return the head of a request that did not come over a connection of ours (in tests).

    Raises:
        Problem: see ``read_head``.
    """
    watched = [(name, value) for name, value in scope["headers"] if name in WATCHED]
    if not any(name == b"host" for name, _ in watched):
        watched.append((b"host", b"localhost"))
    return read_head(scope["method"].encode(), "1.1", b"/", watched)
