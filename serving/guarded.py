"""uvicorn's connection with the limits and the strictness that it lacks.

uvicorn's protocol has no limit on a head, on the time that a client may take, or on connections. It goes on reading after a request that closes the
connection, it adds trailers to the headers that were checked, and it misreads a request that offers another protocol
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
from serving.front import ADMITTED, HEAD, PROBLEM, Front
from serving.heads import WATCHED, CheckedHead, Head, read_head, remember, with_path, without_upgrade
from serving.problems import Problem

MOST_PIPELINED = 100
# A client that sends a body in chunks of a few bytes costs a call for each of them.
FREE_CHUNKS, LEAST_CHUNK = 4096, 16
# After the last answer of a connection the rest of the client's data is read and dropped, for so long and so much. A socket that is closed with
# unread data resets the connection, and the client may lose the answer.
LINGER_SECONDS, LINGER_BYTES = 1.0, 2**20
IDLE, IN_HEAD, IN_BODY = range(3)
# Seconds beyond the limit for a request, after which a connection is closed without an answer. Before, the front answers 408: the fast path passes a slow
# body on within two looks, one a second, and the front's own limit begins then. A busy event loop looks later.
GRACE = 4

log = logging.getLogger(__name__)


class _Stop(Exception):
    """Ends the parser's work on the data that it has."""


class GuardedConnection(HttpToolsProtocol):
    """A connection whose application is a ``Front``, which uvicorn's own middleware may wrap.

    A subclass may answer requests itself: it overrides ``_take_over``, ``_hurry``, ``_abandon`` and ``_answering``.
    """

    def __init__(self, config: Config, server_state: ServerState, app_state: dict[str, Any], _loop: asyncio.AbstractEventLoop | None = None) -> None:
        super().__init__(config, server_state, app_state, _loop)
        # A parser of our own: uvicorn's goes on after a request that closes the connection.
        self.parser = httptools.HttpRequestParser(self)
        self.front = front_of(self.app)
        self.limits = self.front.limits
        self.address = ""
        # Whether a request of a known caller came over the connection.
        self.admitted = False
        self._head = Head()
        # The last head that was found right.
        self._checked: CheckedHead | None = None
        self._phase, self._since = IDLE, time.perf_counter()
        # Bytes of an incomplete head that came in earlier segments, and of the segment that is being parsed.
        self._head_bytes = self._segment = 0
        self._heads = self._messages = self._chunks = self._received = 0
        # Requests whose answers are the ordinary way's to give, in their order.
        self._due: list[Any] = []
        self._watched: list[tuple[bytes, bytes]] = []
        # The head of a request without its offer of another protocol; the parser reads it again.
        self._again = b""
        # No request is read after this one.
        self._is_last = False
        # What the client sends is dropped.
        self._deaf, self._dropped = False, 0
        self._last_word: bytes | None = None
        self._write_paused_at: float | None = None
        # Whether a request of the connection was answered.
        self._answered = False
        # When a sweep first saw that the connection was closing.
        self._closing_since: float | None = None
        self._problem: Problem | None = None

    # --- the transport's calls ---------------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        peer = transport.get_extra_info("peername")
        self.address = str(peer[0]) if isinstance(peer, tuple) else ""
        if not self.front.connections.add(self):
            detail = "this service has no room for another connection; try again in a moment"
            self._refuse(Problem(503, "connections-full", "Too many connections", detail), linger=False)

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
                self._refuse(self._problem or Problem(400, "bad-request", "Bad request", f"this is not HTTP/1.1: {error}"))
            return
        # A segment in which another message ended has bytes that are not of this head. Each head has one such segment at most.
        if self._phase == IN_HEAD and before == (self._heads, self._messages):
            self._head_bytes += len(data)
            if self._head_bytes > self.limits.head_bytes:
                self._refuse(_head_too_long(self.limits.head_bytes))
            elif self.headers is not None and len(self.headers) > self.limits.headers:
                self._refuse(_too_many_headers(self.limits.headers))

    def connection_lost(self, exc: Exception | None) -> None:
        self.front.connections.remove(self)
        self._deaf = True
        # uvicorn tells the newest request only. One that waits behind another would be answered into a closed transport, which is a fault with a traceback.
        for cycle in self._due:
            cycle.disconnected = True
            cycle.message_event.set()
        super().connection_lost(exc)
        # They refer to the connection, and it to them: such a cycle is freed by the garbage collector alone, which looks at old objects once in hours.
        self.parser = self.cycle = self.scope = None  # type: ignore[assignment]
        self._due.clear()

    def pause_writing(self) -> None:
        self._write_paused_at = time.perf_counter()
        super().pause_writing()

    def resume_writing(self) -> None:
        self._write_paused_at = None
        super().resume_writing()

    # --- the parser's calls ------------------------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._is_last:
            self._deaf = True
            raise _Stop
        # A client that does not wait for its answers gets them in the order in which it asked.
        self._hurry()
        self._unset_keepalive_if_required()
        if self._phase != IN_HEAD:
            self._phase, self._since = IN_HEAD, time.perf_counter()
        # The scope is made by `_make_scope`.
        self.url, self.headers, self.expect_100_continue = b"", [], False
        self._watched, self._chunks, self._received = [], 0, 0

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if self._phase != IN_HEAD:
            self._stop(Problem(400, "trailer", "Bad request", f"trailer '{_shown(name)}': this service accepts none"))
        self.headers.append((name, value))
        if name in WATCHED:
            self._watched.append((name, value))

    def on_headers_complete(self) -> None:
        try:
            self._on_head()
        except Problem as problem:
            self._stop(problem)
        except httptools.HttpParserInvalidURLError:
            self._stop(Problem(400, "bad-request", "Bad request", "target: it is not a path or a URL", field="target"))
        except Exception:
            self._stop_on_fault()

    def on_chunk_header(self) -> None:
        self._chunks += 1
        if self._chunks > FREE_CHUNKS and self._chunks * LEAST_CHUNK > self._received:
            self._stop(Problem(400, "tiny-chunks", "Bad request", f"the body comes in chunks of less than {LEAST_CHUNK} bytes"))

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

    # --- what the limits call ------------------------------------------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Whether no request is being received or answered."""
        return self._phase == IDLE and not self._answering

    def overdue(self, now: float) -> bool:
        """Close the connection, or refuse its request, if the client has taken too long; give whether it had."""
        if self.transport.is_closing():
            # It ends when the client has read its answers, and a client may never do that.
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
            self._refuse(Problem(408, "slow-head", "The request did not come", detail))
        elif self._phase == IN_BODY and waited > self.limits.request_seconds + GRACE:
            self.drop()
        elif self._phase == IDLE and not self._answering and waited > (self.timeout_keep_alive if self._answered else self.limits.head_seconds):
            if self._answered:
                # It had its answers, and is no slow client.
                self.transport.close()
                return False
            self.drop()
        else:
            return False
        return True

    def drop(self) -> None:
        """Close the connection at once."""
        self._deaf = True
        self.transport.abort()

    def on_response_complete(self) -> None:
        # Answers come in the order of their requests. After the connection was lost nobody waits for one.
        del self._due[:1]
        self._after_response()

    def _after_response(self) -> None:
        super().on_response_complete()
        # One timer for each answer costs more than a look at all connections once a second (``overdue``).
        self._unset_keepalive_if_required()
        self._await_next()

    def _await_next(self) -> None:
        """Wait for the next request, or for the rest of it. Its deadline holds from now on: until now the connection may not have been read."""
        self._since = time.perf_counter()
        self._answered = True
        if self._last_word is not None and not self._answering:
            self._end()

    # --- what a subclass may override ----------------------------------------------------------------------------------------------------

    def _take_over(self, method: bytes, repeats: bool) -> bool:
        """Whether the subclass receives and answers the request, instead of uvicorn.

        Args:
            repeats: the head is that of the request before, but for the length of the body.
        """
        return False

    def _hurry(self) -> None:
        """Answer now, or pass to uvicorn, what the subclass is answering."""

    def _abandon(self) -> bool:
        """Forget the request that the subclass is receiving; give whether there was one."""
        return False

    @property
    def _answering(self) -> bool:
        """Whether a request is waiting for its answer."""
        return bool(self._due)

    def _on_body(self, body: bytes) -> None:
        super().on_body(body)

    def _on_message(self) -> None:
        super().on_message_complete()

    # --- inside --------------------------------------------------------------------------------------------------------------------------

    def _parse(self, data: bytes) -> None:
        """Feed the parser. An offer of another protocol is taken out of the head, which is then read again."""
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
            raise Problem(400, "pipelined", "Too many requests at once", f"at most {MOST_PIPELINED} requests may wait for their answers on one connection")
        self._begin()

    def _begin(self) -> None:
        """Let uvicorn begin a request: make the scope, and start the application or queue the request."""
        self._make_scope()
        super().on_headers_complete()
        self._due.append(self.cycle)

    def note_admitted(self) -> None:
        """Note that a known caller uses the connection."""
        self.admitted = True
        self.front.connections.admit(self)

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

    def _stop(self, problem: Problem) -> None:
        """Refuse the request and stop the parser.

        The problem is kept here: a parser's error does not always say what a call of ours raised.
        """
        self._problem = problem
        raise _Stop

    def _stop_on_fault(self) -> None:
        log.exception("a connection failed")
        metrics.faults.labels("connection").inc()
        self._stop(Problem(500, "fault", "The service failed", "this is a fault of the service; its log says more"))

    def _refuse(self, problem: Problem, *, linger: bool = True) -> None:
        """Answer what cannot be read, after the answers that are due, and close the connection."""
        self._deaf = True
        metrics.refused.labels(problem.kind).inc()
        self.front.note_refused(problem, self.address)
        self._last_word = _document(problem, self.server_state.default_headers)
        if not self._abandon() and self._phase == IN_BODY and self.cycle is not None:
            self._give_up_request()
        self._hurry()
        if not self._answering:
            self._end(linger=linger)

    def _give_up_request(self) -> None:
        """Forget the request whose body cannot be read. It is the newest one: it may wait for others, have begun, or be answered already."""
        if self.cycle.response_started:
            # A second answer would be taken for that of another request.
            self._last_word = b""
        if self.cycle.response_complete:
            return
        if self.pipeline and self.pipeline[0][0] is self.cycle:
            self.pipeline.popleft()
        self._due.remove(self.cycle)
        self.cycle.disconnected = True
        self.cycle.message_event.set()

    def _end(self, *, linger: bool = True) -> None:
        """Say the last word, and close the connection when the client has had time to read it."""
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


def front_of(application: Any) -> Front:
    """Return the front, which may stand behind uvicorn's own middleware.

    Raises:
        TypeError: the application has none.
    """
    inner = application
    while not isinstance(inner, Front):
        inner = getattr(inner, "app", None)
        if inner is None:
            raise TypeError(f"serving.connection serves the application of serving.app.create_app, not {type(application).__name__}")
    return inner


def _size(target: bytes, headers: list[tuple[bytes, bytes]]) -> int:
    return len(target) + sum(len(name) + len(value) + 4 for name, value in headers)


def _head_too_long(limit: int) -> Problem:
    return Problem(431, "head-too-long", "Request header fields too large", f"the head of a request may have {limit} bytes")


def _too_many_headers(limit: int) -> Problem:
    return Problem(431, "too-many-headers", "Request header fields too large", f"at most {limit} headers go into one request")


def _shown(name: bytes) -> str:
    return name[:40].decode("ascii", "replace")


def _document(problem: Problem, defaults: list[tuple[bytes, bytes]]) -> bytes:
    """The bytes of an answer that closes the connection."""
    content = json.dumps(problem.document()).encode()
    lines = [b"HTTP/1.1 %d %b" % (problem.status, HTTPStatus(problem.status).phrase.encode())]
    lines += [b"%b: %b" % header for header in defaults]
    lines += [b"%b: %b" % (name.lower().encode(), value.encode()) for name, value in problem.headers.items()]
    lines += [b"content-type: %b" % PROBLEM.encode(), b"content-length: %d" % len(content), b"connection: close"]
    return b"\r\n".join((*lines, b"", content))
