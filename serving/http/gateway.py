"""The gateway in front of the application: authentication, limits and deadlines of every request.

The gateway answers predictions itself, without a framework. The application answers all other
requests.
"""

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, NamedTuple

from serving import metrics
from serving.access.callers import BYTES_PER_ROW, NOBODY, Access, Caller
from serving.access.log import AccessLog, Line
from serving.http.bodies import MOST_IN_LOOP, DisconnectedError, coding_of, receive_body, unpack
from serving.http.connections import Connections
from serving.http.draining import Draining
from serving.http.heads import WATCHED, Head, read_head
from serving.http.shares import Shares
from serving.ids import new_id
from serving.problems import ProblemError, media_type, unavailable

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]
# Keys of the ASGI scope: the admitted caller (None for a caller without a key), the head as the
# connection read it, and the function that reports to the connection that a known caller uses it.
CALLER, HEAD, ADMITTED = "serving.caller", "serving.head", "serving.admitted"
# True if the request's rows were already taken from its caller's rate.
CHARGED = "serving.charged"
PROBLEM = "application/problem+json"
CLOSE = (b"connection", b"close")
NO_SNIFFING = (b"x-content-type-options", b"nosniff")

log = logging.getLogger(__name__)


class RawResponse(NamedTuple):
    body: bytes
    media_type: str = "application/json"
    headers: Mapping[str, str] | None = None
    status: int = 200


class ParsedRequest(NamedTuple):
    """A request whose body has been received.

    Attributes:
        body: The body after decoding.
        started: time.perf_counter() at the request's head.
        take_rows: Must be called with the number of rows before they are answered. Raises Problem
            429 or 503.
    """

    path: tuple[str, ...]
    headers: list[tuple[bytes, bytes]]
    body: bytes
    caller: Caller
    started: float
    take_rows: Callable[[int], None]


RouteHandler = Callable[[ParsedRequest], Awaitable[RawResponse]]
# Method and path -> the route's name and its handler, or None if the application answers.
Router = Callable[[str, tuple[str, ...]], tuple[str, RouteHandler] | None]


@dataclass(frozen=True)
class RequestLimits:
    """Limits of one request and one connection.

    Attributes:
        head_bytes: Length of a request's line and headers.
        headers: Number of headers in one request.
        head_seconds: Time from the first byte of a head to its end.
        body_bytes: Length of a body, with and without its content coding. A longer body gets 413.
        request_seconds: Time to receive a body and answer the request. After it the client gets 408
            (body incomplete) or 503.
    """

    head_bytes: int = 32 * 1024
    headers: int = 100
    head_seconds: float = 10
    body_bytes: int = 8 * 2**20
    request_seconds: float = 10


class Trace(NamedTuple):
    """The ids that identify a request in logs and traces."""

    request_id: str
    # The W3C traceparent of this service's span.
    parent: str

    def headers(self) -> list[tuple[bytes, bytes]]:
        return [(b"x-request-id", self.request_id.encode()), (b"traceparent", self.parent.encode())]


def trace_of(head: Head) -> Trace:
    """Return the client's ids if they are valid, else new ones."""
    drawn = new_id()
    request_id = head.request_id.decode() if head.request_id else drawn
    if head.trace_parent:
        given = head.trace_parent.decode()
        return Trace(request_id, f"{given[:36]}{drawn[:16]}{given[52:]}")
    return Trace(request_id, f"00-{drawn}-{drawn[16:]}-00")


class Gateway:
    """An ASGI application that wraps another one.

    Args:
        draining: While the service drains, each answer closes its connection.
        shares: Concurrent use per caller. A request beyond them immediately gets 503 or 429 with
            Retry-After.
    """

    def __init__(
        self, application: Application, access: Access, router: Router, draining: Draining, *,
        limits: RequestLimits, shares: Shares, connections: Connections, access_log: AccessLog,
    ) -> None:  # fmt: skip
        self.application, self.access, self.router, self.draining = application, access, router, draining
        self.limits, self.shares, self.connections, self.access_log = limits, shares, connections, access_log
        # Set by create_app, for code that needs the components or the fast path of a gateway.
        self.context: Any = None
        self.fast_path: Any = None
        # Route, status and caller -> number of answered requests that are not yet in the metrics.
        self._noted: dict[tuple[str, int, str], int] = {}
        # The start time of each request that is being received or answered.
        self._since: dict[asyncio.Task[Any], float] = {}
        self._overdue: set[asyncio.Task[Any]] = set()

    @property
    def in_flight(self) -> int:
        """Return the number of requests that are being answered."""
        return self.shares.requests.used

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            # Lifespan events start and stop the application. Websockets are not supported.
            if scope["type"] == "lifespan":
                await self.application(scope, receive, send)
            return
        started, path = time.perf_counter(), tuple(scope["path"].split("/")[1:])
        head: Head = scope.get(HEAD) or head_of(scope)
        trace = trace_of(head)
        match = self.router(scope["method"], path)
        route = match[0] if match else "other"
        caller, reason = None, ""
        try:
            caller = (
                scope[CALLER]
                if CALLER in scope
                else self.access.admit(scope["path"], scope["headers"], scope["client"])
            )
            if caller is not None and ADMITTED in scope:
                scope[ADMITTED](caller.name)
            if match is None:
                scope[CALLER] = caller
                status = await self._pass_on(scope, receive, send, trace)
                self._note(scope, trace, caller, status, started, "")
                return
            response = await self._answer(match[1], path, scope, receive, caller or NOBODY, started)
        except DisconnectedError:
            self._note(scope, trace, caller, 499, started, "client-left")
            return
        except ProblemError as problem:
            if problem.status in (401, 403, 429):
                metrics.refused.labels(problem.kind).inc()
            reason = problem.kind
            response = RawResponse(
                json.dumps(problem.document(scope["path"])).encode(),
                media_type(scope["path"]),
                problem.headers,
                problem.status,
            )
        self.count(route, response.status, caller)
        self._note(scope, trace, caller, response.status, started, reason, len(response.body))
        headers = [
            (b"content-type", response.media_type.encode()),
            NO_SNIFFING,
            *trace.headers(),
            (b"content-length", str(len(response.body)).encode()),
        ]
        if response.headers:
            headers += [(name.lower().encode(), value.encode()) for name, value in response.headers.items()]
        if self.draining.begun:
            headers.append(CLOSE)
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
        await send({"type": "http.response.body", "body": response.body})

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send, trace: Trace) -> int:
        """Let the application answer the request. Return the status."""
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

    async def _answer(
        self,
        handler: RouteHandler,
        path: tuple[str, ...],
        scope: Scope,
        receive: Receive,
        caller: Caller,
        started: float,
    ) -> RawResponse:
        """Receive the body and answer the request.

        A request takes a slot only when its body is complete, so a client that never sends its body
        does not occupy one.
        """
        task = asyncio.current_task()
        assert task is not None
        self._since[task] = started
        held = body = None
        try:
            held = RequestShare(self.shares, caller, charged=scope.get(CHARGED, False))
            body = await receive_body(scope["headers"], receive, self.limits.body_bytes, held.take_bytes)
            if coding := coding_of(scope["headers"]):
                body = await self._unpacked(body, coding, held)
            held.take_request()
            if len(body) > BYTES_PER_ROW:
                # Refuse a caller that owes rows before parsing a large body.
                caller.take_rows(0)
            try:
                return await handler(ParsedRequest(path, scope["headers"], body, caller, started, held.take_rows))
            except ProblemError as problem:
                held.charge_refused(len(body), problem.status)
                raise
        except asyncio.CancelledError:
            if task not in self._overdue:
                # The server is shutting down.
                raise
            self._overdue.discard(task)
            task.uncancel()
            if body is None:
                detail = f"the body was not complete within {self.limits.request_seconds:g} s"
                raise ProblemError(408, "slow-body", "The body did not come", detail) from None
            metrics.refused.labels("too-slow").inc()
            raise unavailable(
                "too-slow", "The answer takes too long", f"there was none within {self.limits.request_seconds:g} s"
            ) from None
        except (ProblemError, DisconnectedError):
            raise
        except Exception:
            log.exception("%s /%s failed", scope["method"], "/".join(path))
            metrics.faults.labels("request").inc()
            raise ProblemError(
                500, "fault", "The service failed", "this is a fault of the service; its log says more"
            ) from None
        finally:
            if held is not None:
                held.give_back()
            del self._since[task]

    async def _unpacked(self, body: bytes, coding: bytes, held: "RequestShare") -> bytes:
        unpacked = (
            unpack(body, coding, self.limits.body_bytes, at_once=MOST_IN_LOOP) if len(body) <= MOST_IN_LOOP else None
        )
        if unpacked is None:
            unpacked = await asyncio.to_thread(unpack, body, coding, self.limits.body_bytes)
            assert unpacked is not None
        held.take_bytes(len(unpacked))
        return unpacked

    def cancel_timed_out(self) -> None:
        """Cancel requests that exceed their time limit. Called once a second.

        A timer per request would cost more than all other checks of the request.
        """
        latest = time.perf_counter() - self.limits.request_seconds
        for task, started in self._since.items():
            if started < latest and task not in self._overdue:
                self._overdue.add(task)
                task.cancel()

    def flush(self) -> None:
        """Update the metrics with the requests that were answered since the last call."""
        noted, self._noted = self._noted, {}
        for (route, status, caller), count in noted.items():
            metrics.requests.labels(route, str(status)).inc(count)
            if caller:
                metrics.caller_requests.labels(caller, f"{status // 100}xx").inc(count)

    def count(self, route: str, status: int, caller: Caller | None = None, requests: int = 1) -> None:
        """Record answered requests. ``flush`` adds them to the metrics."""
        key = (route, status, caller.name if caller is not None else "")
        self._noted[key] = self._noted.get(key, 0) + requests

    def note_refused(self, problem: ProblemError, client: str) -> None:
        """Record a problem that a connection answered before it had a complete request."""
        self.count("other", problem.status)
        drawn = new_id()
        self.access_log.note(
            Line(
                time.time(),
                drawn,
                f"00-{drawn}-{drawn[16:]}-00",
                "-",
                client,
                "-",
                "-",
                problem.status,
                0.0,
                0,
                problem.kind,
            )
        )

    def _note(
        self,
        scope: Scope,
        trace: Trace,
        caller: Caller | None,
        status: int,
        started: float,
        reason: str,
        length: int = 0,
    ) -> None:
        client = scope["client"][0] if scope.get("client") else "-"
        name = caller.name if caller is not None else "-"
        seconds = time.perf_counter() - started
        self.access_log.note(
            Line(time.time(), *trace, name, client, scope["method"], scope["path"], status, seconds, length, reason)
        )


class RequestShare:
    """The part of the shares that one request occupies."""

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

    def charge_refused(self, body_bytes: int, status: int) -> None:
        """Charge the caller's rates for a large invalid request whose rows were not counted.

        Parsing it took as long as parsing a valid one. A request that exceeds a rate or a share
        (429), and a fault of the service, are not charged.
        """
        if not self._rows and status < HTTPStatus.INTERNAL_SERVER_ERROR and status != HTTPStatus.TOO_MANY_REQUESTS:
            self._of.charge(body_bytes)

    def give_back(self) -> None:
        for share, amount in (
            (self._shares.body_bytes, self._bytes),
            (self._shares.requests, self._requests),
            (self._shares.rows, self._rows),
        ):
            if amount:
                share.give_back(self._caller, amount)


def head_of(scope: Scope) -> Head:
    """Return the head of a request that did not arrive over a ``Connection`` (in tests).

    Raises:
        ProblemError: See ``read_head``.
    """
    watched = [(name, value) for name, value in scope["headers"] if name in WATCHED]
    if not any(name == b"host" for name, _ in watched):
        watched.append((b"host", b"localhost"))
    return read_head(scope["method"].encode(), "1.1", b"/", watched)
