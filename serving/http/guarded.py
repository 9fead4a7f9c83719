"""uvicorn's connection with additional limits and stricter parsing.

uvicorn's protocol has several gaps:

* It does not limit a head, the time of a client, or the number of connections.
* It continues to read after a request that closes the connection.
* It adds trailers to headers that were already checked.
* It misreads a request that offers another protocol
  (https://github.com/encode/uvicorn/issues/2722).
"""

import asyncio
import json
import logging
import time
from http import HTTPStatus
from typing import Any, cast

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from serving import metrics
from serving.http.gateway import ADMITTED, HEAD, PROBLEM, Gateway
from serving.http.heads import WATCHED, CheckedHead, Head, read_head, remember, with_path, without_upgrade
from serving.problems import ProblemError

MOST_PIPELINED = 100
# Each chunk costs a function call. These limits apply to a body that is sent in tiny chunks.
FREE_CHUNKS, LEAST_CHUNK = 4096, 16
# After the last answer of a connection, the client's remaining data are read and dropped, up to
# these limits. A socket that is closed with unread data resets the connection, and the client may
# lose the answer.
LINGER_SECONDS, LINGER_BYTES = 1.0, 2**20
IDLE, IN_HEAD, IN_BODY = range(3)
# Seconds beyond the time limit of a request after which its connection is closed without an answer.
# Before that, the gateway answers 408. The fast path passes on a slow body within two sweeps, one
# per second, and then the gateway's own limit starts. A busy event loop sweeps later.
GRACE = 4

log = logging.getLogger(__name__)


class _StopError(Exception):
    """Raised to stop the parser on the data that it has."""


class GuardedConnection(HttpToolsProtocol):
    """A connection to a ``Gateway``, which uvicorn's own middleware may wrap.

    A subclass may answer requests itself. It overrides ``_take_over``, ``_flush_now``,
    ``_abandon`` and ``_answering``.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        # A separate parser: uvicorn's parser continues after a request that closes the connection.
        self.parser = httptools.HttpRequestParser(self)
        self.gateway = gateway_of(self.app)
        self.limits = self.gateway.limits
        self.address = ""
        # True if a known caller has sent a request over the connection.
        self.admitted = False
        # The name of the last one.
        self.caller = ""
        self._head = Head()
        # The last head that passed the checks.
        self._checked: CheckedHead | None = None
        self._phase, self._since = IDLE, time.perf_counter()
        # Bytes of an incomplete head in earlier segments, and bytes of the current segment.
        self._head_bytes = self._segment = 0
        self._heads = self._messages = self._chunks = self._received = 0
        # Requests that the ordinary path must answer, in their order.
        self._due: list[Any] = []
        self._watched: list[tuple[bytes, bytes]] = []
        # The head of a request without its offer of another protocol. The parser reads it again.
        self._again = b""
        # True if no request is read after the current one.
        self._is_last = False
        # True if further data of the client are dropped.
        self._deaf, self._dropped = False, 0
        self._last_word: bytes | None = None
        self._write_paused_at: float | None = None
        # True if a request of the connection was answered.
        self._answered = False
        # The time of the first sweep that found the connection closing.
        self._closing_since: float | None = None
        self._problem: ProblemError | None = None

    # --- called by the transport
    # --------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        peer = transport.get_extra_info("peername")
        self.address = str(peer[0]) if isinstance(peer, tuple) else ""
        if not self.gateway.connections.add(self):
            detail = "this service has no room for another connection; try again in a moment"
            self._refuse(ProblemError(503, "connections-full", "Too many connections", detail), linger=False)

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        if self._deaf:
            self._dropped += len(data)
            if self._dropped > LINGER_BYTES:
                self.transport.abort()
            return
        if self._phase == IDLE:
            self._phase, self._since = IN_HEAD, time.perf_counter()
        before, self._segment = (self._heads, self._messages), len(data)
        try:
            self._parse(data)
        except httptools.HttpParserError as error:
            if not self._deaf:
                self._refuse(
                    self._problem or ProblemError(400, "bad-request", "Bad request", f"this is not HTTP/1.1: {error}")
                )
            return
        # A segment in which another message ended also contains bytes of that message, so it is not
        # counted. Each head has at most one such segment.
        if self._phase == IN_HEAD and before == (self._heads, self._messages):
            self._head_bytes += len(data)
            if self._head_bytes > self.limits.head_bytes:
                self._refuse(_head_too_long(self.limits.head_bytes))
            elif self.headers is not None and len(self.headers) > self.limits.headers:
                self._refuse(_too_many_headers(self.limits.headers))

    def connection_lost(self, exc: Exception | None) -> None:
        self.gateway.connections.remove(self)
        self._deaf = True
        # uvicorn notifies only the newest request. A request that waits behind another one would be
        # answered into a closed transport, which raises an exception.
        for cycle in self._due:
            cycle.disconnected = True
            cycle.message_event.set()
        super().connection_lost(exc)
        # These objects and the connection refer to each other. Only the garbage collector can free
        # such a cycle, and it scans old objects once in hours.
        self.parser = self.cycle = self.scope = None  # type: ignore[assignment]
        self._due.clear()

    def pause_writing(self) -> None:
        self._write_paused_at = time.perf_counter()
        super().pause_writing()

    def resume_writing(self) -> None:
        self._write_paused_at = None
        super().resume_writing()

    # --- called by the parser
    # -----------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._is_last:
            self._deaf = True
            raise _StopError
        # A client that pipelines requests gets the answers in the order of its requests.
        self._flush_now()
        self._unset_keepalive_if_required()
        if self._phase != IN_HEAD:
            self._phase, self._since = IN_HEAD, time.perf_counter()
        # `_make_scope` creates the scope.
        self.url, self.headers, self.expect_100_continue = b"", [], False
        self._watched, self._chunks, self._received = [], 0, 0

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if self._phase != IN_HEAD:
            self._stop(
                ProblemError(400, "trailer", "Bad request", f"trailer '{_shown(name)}': this service accepts none")
            )
        self.headers.append((name, value))
        if name in WATCHED:
            self._watched.append((name, value))

    def on_headers_complete(self) -> None:
        try:
            self._on_head()
        except ProblemError as problem:
            self._stop(problem)
        except httptools.HttpParserInvalidURLError:
            self._stop(
                ProblemError(400, "bad-request", "Bad request", "target: it is not a path or a URL", field="target")
            )
        except Exception:
            self._stop_on_fault()

    def on_chunk_header(self) -> None:
        self._chunks += 1
        if self._chunks > FREE_CHUNKS and self._chunks * LEAST_CHUNK > self._received:
            self._stop(
                ProblemError(
                    400, "tiny-chunks", "Bad request", f"the body comes in chunks of less than {LEAST_CHUNK} bytes"
                )
            )

    def on_body(self, body: bytes) -> None:
        self._received += len(body)
        try:
            self._on_body(body)
        except Exception:
            self._stop_on_fault()

    def on_message_complete(self) -> None:
        if self._again:
            return
        self._phase, self._since, self._head_bytes = IDLE, time.perf_counter(), 0
        self._messages += 1
        try:
            self._on_message()
        except Exception:
            self._stop_on_fault()

    # --- called by the limits
    # -----------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Return True if the connection is neither receiving nor answering a request."""
        return self._phase == IDLE and not self._answering

    @property
    def unfinished(self) -> bool:
        """Whether a part of a request has come, and the rest has not."""
        return self._phase != IDLE

    def overdue(self, now: float) -> bool:
        """Close the connection or refuse its request if the client is too slow.

        Return True if the client was too slow.
        """
        if self.transport.is_closing():
            # The transport closes after the client has read its answers, which may never happen.
            self._closing_since = self._closing_since or now
            if now - self._closing_since <= self.limits.request_seconds:
                return False
            self.drop()
            return True
        waited = now - self._since
        if self._write_paused_at is not None and now - self._write_paused_at > self.limits.request_seconds:
            self.drop()
        elif self._phase == IN_HEAD and not self._deaf and not self._answering and waited > self.limits.head_seconds:
            detail = f"the head of the request was not complete within {self.limits.head_seconds:g} s"
            self._refuse(ProblemError(408, "slow-head", "The request did not come", detail))
        elif self._phase == IN_BODY and waited > self.limits.request_seconds + GRACE:
            self.drop()
        elif (
            self._phase == IDLE
            and not self._answering
            and waited > (self.timeout_keep_alive if self._answered else self.limits.head_seconds)
        ):
            if self._answered:
                # The client has its answers, so it does not count as a slow client.
                self.transport.close()
                return False
            self.drop()
        else:
            return False
        return True

    def drop(self) -> None:
        """Close the connection immediately."""
        self._deaf = True
        self.transport.abort()

    def on_response_complete(self) -> None:
        # Answers come in the order of their requests. After a lost connection the list is empty.
        del self._due[:1]
        self._after_response()

    def _after_response(self) -> None:
        super().on_response_complete()
        # A timer per answer costs more than one sweep over all connections per second
        # (``overdue``).
        self._unset_keepalive_if_required()
        self._await_next()

    def _await_next(self) -> None:
        """Wait for the next request, or for its remaining part.

        The request's deadline starts now, because the connection may not have been read until now.
        """
        self._since = time.perf_counter()
        self._answered = True
        if self._last_word is not None and not self._answering:
            self._end()

    # --- overridden by a subclass
    # -------------------------------------------------------------------

    def _take_over(self, method: bytes, repeats: bool) -> bool:
        """Return True if the subclass instead of uvicorn receives and answers the request.

        Args:
            repeats: The head equals that of the previous request, except for the length of the
                body.
        """
        return False

    def _flush_now(self) -> None:
        """Answer the subclass's current request now, or pass it to uvicorn."""

    def _abandon(self) -> bool:
        """Drop the request that the subclass is receiving. Return True if there was one."""
        return False

    @property
    def _answering(self) -> bool:
        """Return True if a request is waiting for its answer."""
        return bool(self._due)

    def _on_body(self, body: bytes) -> None:
        super().on_body(body)

    def _on_message(self) -> None:
        super().on_message_complete()

    # --- internal
    # -----------------------------------------------------------------------------------

    def _parse(self, data: bytes) -> None:
        """Feed the parser.

        If the request offers another protocol, the offer is removed and the head is read again.
        """
        rest: bytes | memoryview = data
        while True:
            try:
                self.parser.feed_data(rest)
                return
            except httptools.HttpParserUpgrade as offer:
                rest, again, self._again = memoryview(rest)[offer.args[0] :], self._again, b""
                if not again:
                    raise httptools.HttpParserError("an offer of another protocol") from None
                self.parser = httptools.HttpRequestParser(self)
                self.parser.feed_data(again)

    def _on_head(self) -> None:
        self._heads += 1
        parser, limits = self.parser, self.limits
        method, version = parser.get_method(), parser.get_http_version()
        checked = self._checked
        if self._head_bytes + self._segment > limits.head_bytes and _size(self.url, self.headers) > limits.head_bytes:
            raise _head_too_long(limits.head_bytes)
        repeats = checked is not None and checked.repeated_by(method, version, self.url, self.headers)
        if checked is None or not repeats:
            if len(self.headers) > limits.headers:
                raise _too_many_headers(limits.headers)
            head = read_head(method, version, self.url, self._watched)
            self.url = with_path(self.url)
            if parser.should_upgrade():
                self._again = without_upgrade(method, version, self.url, self.headers)
                return
            self._head = head
            self._is_last = version != "1.1" or not parser.should_keep_alive()
            self.expect_100_continue = head.expects_continue
            self._checked = None if self._is_last else remember(method, version, self.url, self.headers, head)
        self._phase, self._since = IN_BODY, time.perf_counter()
        if self._take_over(method, repeats):
            return
        if len(self.pipeline) >= MOST_PIPELINED:
            raise ProblemError(
                400,
                "pipelined",
                "Too many concurrent requests",
                f"at most {MOST_PIPELINED} requests may wait for their answers on one connection",
            )
        self._begin()

    def _begin(self) -> None:
        """Start a request in uvicorn.

        Create the scope, then start the application or queue the request.
        """
        self._make_scope()
        super().on_headers_complete()
        self._due.append(self.cycle)

    def note_admitted(self, caller: str) -> None:
        """Record that a known caller uses the connection."""
        self.caller = caller
        if not self.admitted:
            self.admitted = True
            self.gateway.connections.admit(self)

    def _should_upgrade(self) -> bool:
        return False

    def _make_scope(self) -> None:
        url, headers, expect = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expect
        self.headers.extend(headers)
        scope = cast(dict[str, Any], self.scope)
        scope[HEAD] = self._head
        scope[ADMITTED] = self.note_admitted

    def _stop(self, problem: ProblemError) -> None:
        """Refuse the request and stop the parser.

        The problem is stored, because a parser's error does not always contain the exception of a
        callback.
        """
        self._problem = problem
        raise _StopError

    def _stop_on_fault(self) -> None:
        log.exception("a connection failed")
        metrics.faults.labels("connection").inc()
        self._stop(
            ProblemError(500, "fault", "The service failed", "this is a fault of the service; its log says more")
        )

    def _refuse(self, problem: ProblemError, *, linger: bool = True) -> None:
        """Answer an unreadable request after the pending answers, and close the connection."""
        self._deaf = True
        metrics.refused.labels(problem.kind).inc()
        self.gateway.note_refused(problem, self.address)
        self._last_word = _document(problem, self.server_state.default_headers)
        if not self._abandon() and self._phase == IN_BODY and self.cycle is not None:
            self._give_up_request()
        self._flush_now()
        if not self._answering:
            self._end(linger=linger)

    def _give_up_request(self) -> None:
        """Drop the request whose body cannot be read.

        It is the newest one. It may be queued behind others, running, or already answered.
        """
        if self.cycle.response_started:
            # The client would read a second answer as the answer of another request.
            self._last_word = b""
        if self.cycle.response_complete:
            return
        if self.pipeline and self.pipeline[0][0] is self.cycle:
            self.pipeline.popleft()
        self._due.remove(self.cycle)
        self.cycle.disconnected = True
        self.cycle.message_event.set()

    def _end(self, *, linger: bool = True) -> None:
        """Send the final answer, and close the connection after the client had time to read it."""
        word, self._last_word = self._last_word or b"", None
        if self.transport.is_closing():
            return
        self.transport.write(word)
        if not linger or not self.transport.can_write_eof():
            self.transport.close()
            return
        self.transport.write_eof()
        self.flow.resume_reading()
        self.loop.call_later(LINGER_SECONDS, self.transport.abort)


def gateway_of(application: Any) -> Gateway:
    """Return the gateway, which uvicorn's own middleware may wrap.

    Raises:
        TypeError: The application does not contain one.
    """
    inner = application
    while not isinstance(inner, Gateway):
        inner = getattr(inner, "app", None)
        if inner is None:
            raise TypeError(
                "serving.http.connection serves the application of serving.app.create_app, not"
                f" {type(application).__name__}"
            )
    return inner


def _size(target: bytes, headers: list[tuple[bytes, bytes]]) -> int:
    return len(target) + sum(len(name) + len(value) + 4 for name, value in headers)


def _head_too_long(limit: int) -> ProblemError:
    return ProblemError(
        431, "head-too-long", "Request header fields too large", f"the head of a request may have {limit} bytes"
    )


def _too_many_headers(limit: int) -> ProblemError:
    return ProblemError(
        431, "too-many-headers", "Request header fields too large", f"at most {limit} headers go into one request"
    )


def _shown(name: bytes) -> str:
    return name[:40].decode("ascii", "replace")


def _document(problem: ProblemError, defaults: list[tuple[bytes, bytes]]) -> bytes:
    """Return the bytes of an answer that closes the connection."""
    content = json.dumps(problem.document()).encode()
    lines = [b"HTTP/1.1 %d %b" % (problem.status, HTTPStatus(problem.status).phrase.encode())]
    lines += [b"%b: %b" % header for header in defaults]
    lines += [b"%b: %b" % (name.lower().encode(), value.encode()) for name, value in problem.headers.items()]
    lines += [b"content-type: %b" % PROBLEM.encode(), b"content-length: %d" % len(content), b"connection: close"]
    return b"\r\n".join((*lines, b"", content))
