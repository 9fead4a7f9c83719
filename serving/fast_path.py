"""The fast path: a prediction whose request is plainly right is answered by its connection, together with those that came in the same round of the
event loop; no task, no coroutine and no message in between.

It knows no refusal. Whatever is not plainly right, needs a look-up, or takes long goes the ordinary way, untouched: through uvicorn and the front, which say
what is wrong with it. So each error has one place, and an answer of the fast path is the one that the ordinary way would have given.
"""

import asyncio
import math
import time
from typing import Any, NamedTuple, cast

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from serving import plain
from serving.batching import INLINE_SECONDS, MOST_ROWS
from serving.front import CALLER, Front
from serving.inputs import Instance, Row
from serving.parts import Parts
from serving.predict import plainly
from serving.problems import Problem
from serving.served import Route

MOST_HELD = 64 * 1024  # bytes of a body that is on its way; a longer one has the ordinary way's flow control
HEAD = b"HTTP/1.1 200 OK\r\n"
BEFORE, AFTER = b"/models/", b"/predict"


class Request(NamedTuple):
    """One that will be answered in this round."""

    connection: "Connection"
    name: str
    route: Route
    instances: list[Instance]
    rows: list[Row]  # of each instance
    started: float


class FastPath:
    """What the connections of one event loop share: the requests of this round.

    Args:
        front: where the ordinary way begins; requests count among those that it has in flight.
    """

    def __init__(self, front: Front, parts: Parts) -> None:
        self.front, self.parts = front, parts
        self.unfinished: set[Connection] = set()  # whose body is on its way
        self._requests: list[Request] = []
        self._rows = 0
        self._head: tuple[list[tuple[bytes, bytes]], bytes] = ([], HEAD)

    def model_of(self, url: bytes) -> str | None:
        """The model that a path asks for a prediction of, if there is such a one."""
        if not (url.startswith(BEFORE) and url.endswith(AFTER)) or b"%" in url or not url.isascii():
            return None
        name = url[len(BEFORE) : -len(AFTER)].decode()
        return name if name in self.parts.registry.routes else None

    def admit(self, url: bytes, headers: list[tuple[bytes, bytes]], client: tuple[str, int] | None) -> str | None:
        """The caller's name; None: it is for the ordinary way to say whether there is one."""
        access = self.front.access
        if access.file is None:
            for name, _ in headers:
                if name.startswith(b"x-forwarded-"):
                    return None  # a proxy says whether the client is this machine
        try:
            return access.admit(url.decode(), headers, client)
        except Problem:
            return None

    def take(self, connection: "Connection", name: str, body: bytes, started: float) -> bool:
        """Whether a request is answered at the end of this round; if not, nothing was done."""
        front, route = self.front, self.parts.registry.routes.get(name)
        if route is None or front.in_flight >= front.most_requests or front.draining.begun or len(body) > front.most_bytes:
            return False
        try:
            instances = plain.instances_of(body, self.parts.settings.max_instances)
        except Problem:
            return False
        bundle = route.champion.bundle
        rows = [row for instance in instances if (row := bundle.inputs.quick(instance)) is not None]
        if len(rows) < len(instances) or (route.arms and any(map(route.arm_of, instances))):
            return False
        most = min(MOST_ROWS, int(INLINE_SECONDS / max(bundle.graph.seconds, 1e-6)))
        if len(rows) > most:
            return False
        if self._requests and (self._requests[0].route.champion is not route.champion or self._rows + len(rows) > most):
            self.answer()
        if not self._requests:
            connection.loop.call_soon(self.answer)
        self._requests.append(Request(connection, name, route, instances, rows, started))
        self._rows += len(rows)
        front.in_flight += 1
        return True

    def answer(self) -> None:
        """Answer what was taken."""
        requests, self._requests, self._rows = self._requests, [], 0
        if not requests:
            return
        self.front.in_flight -= len(requests)
        served = requests[0].route.champion
        try:
            numbers, texts = zip(*[row for request in requests for row in request.rows], strict=True)
            answers = served.bundle.graph.run(numbers, texts).tolist()
            well = all(map(math.isfinite, answers))
        except Exception:  # ONNX Runtime's own classes
            well = False
        if not well:  # the ordinary way finds out who caused it, and tells nobody else
            for request in requests:
                request.connection.pass_on(whole=True)
            return
        first = 0
        for request in requests:
            last = first + len(request.rows)
            predictions = plainly(served, request.instances, answers[first:last])
            first = last
            self.parts.keep(request.route, request.instances, predictions, request.started)
            request.connection.tell(plain.document(request.name, request.route, predictions))
        self.front.count("predict", 200, len(requests))

    def head(self, defaults: list[tuple[bytes, bytes]]) -> bytes:
        """An answer's head up to its length. uvicorn makes the default headers once a second."""
        if self._head[0] is not defaults:
            self._head = defaults, HEAD + b"".join(b"%b: %b\r\n" % header for header in defaults) + b"content-type: application/json\r\ncontent-length: "
        return self._head[1]

    def pass_on_the_unfinished(self) -> None:
        """Called once a second: a body that takes longer to come is timed by the front."""
        for connection in tuple(self.unfinished):
            connection.pass_on(whole=False)


class Connection(HttpToolsProtocol):
    """uvicorn's connection, with the fast path before it: ``uvicorn.run(..., http="serving.fast_path:Connection")``."""

    def __init__(self, config: Config, server_state: ServerState, app_state: dict[str, Any], _loop: asyncio.AbstractEventLoop | None = None) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.fast: FastPath | None = None
        if not config.access_log and not self.root_path and self.limit_concurrency is None:  # those are uvicorn's to look after
            self.fast = fast_path_of(self.app)
        self._model: str | None = None  # that the request which comes just now asks for, if it may be answered here
        self._taken = False  # a request, which is answered in this round
        self._caller = ""
        self._body = b""
        self._started = 0.0

    def on_message_begin(self) -> None:
        if self.fast is None:
            super().on_message_begin()
            return
        if self._taken:  # a client that does not wait for its answers gets them in the order in which it asked
            self.fast.answer()
        self.url, self.headers, self.expect_100_continue = b"", [], False  # the scope is made by whoever passes it on

    def on_headers_complete(self) -> None:
        if self.fast is None:
            super().on_headers_complete()
            return
        parser = self.parser
        if (
            (self.cycle is None or self.cycle.response_complete)
            and parser.get_method() == b"POST"
            and (model := self.fast.model_of(self.url)) is not None
            and not self.expect_100_continue
            and not self.flow.write_paused
            and parser.get_http_version() == "1.1"
            and parser.should_keep_alive()
            and not parser.should_upgrade()
            and (caller := self.fast.admit(self.url, self.headers, self.client)) is not None
        ):
            self._model, self._caller, self._body, self._started = model, caller, b"", time.perf_counter()
            return
        self._make_scope()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if self._model is None:
            super().on_body(body)
            return
        self._body = self._body + body if self._body else body
        if len(self._body) > MOST_HELD:
            self.pass_on(whole=False)

    def on_message_complete(self) -> None:
        if self._model is None:
            super().on_message_complete()
            return
        assert self.fast is not None
        self._taken = self.fast.take(self, self._model, self._body, self._started)
        if not self._taken:
            self.pass_on(whole=True)
        elif self.fast.unfinished:
            self.fast.unfinished.discard(self)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._model is not None and not self._taken and self.fast is not None:
            self.fast.unfinished.add(self)

    def shutdown(self) -> None:
        if self._taken and self.fast is not None:
            self.fast.answer()
        elif self._model is not None:
            self.pass_on(whole=False)
        super().shutdown()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.fast is not None:
            self.fast.unfinished.discard(self)
        super().connection_lost(exc)

    def tell(self, content: bytes) -> None:
        """Answer the request that was taken."""
        assert self.fast is not None
        self._model, self._taken = None, False
        if not self.transport.is_closing():
            self.transport.write(b"%b%d\r\n\r\n%b" % (self.fast.head(self.server_state.default_headers), len(content), content))
        self.on_response_complete()

    def pass_on(self, *, whole: bool) -> None:
        """Let the request go the ordinary way, with as much of its body as has come."""
        assert self.fast is not None
        self._model, self._taken = None, False
        self.fast.unfinished.discard(self)
        if self.transport.is_closing():
            return
        self._make_scope()
        cast(dict[str, Any], self.scope)[CALLER] = self._caller  # admitted already
        parser, self.parser = self.parser, PLAIN  # type: ignore[assignment]  # the parser itself may be at the next request
        try:
            super().on_headers_complete()
            if self._body:
                super().on_body(self._body)
            if whole:
                super().on_message_complete()
        finally:
            self.parser = parser

    def _make_scope(self) -> None:
        url, headers, expect = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expect
        self.headers.extend(headers)


class _Plain:
    """What a parser says of every request that may be answered here."""

    def get_method(self) -> bytes:
        return b"POST"

    def get_http_version(self) -> str:
        return "1.1"

    def should_keep_alive(self) -> bool:
        return True

    def should_upgrade(self) -> bool:
        return False


PLAIN = _Plain()


def fast_path_of(application: Any) -> FastPath | None:
    """That of the front, which may stand behind uvicorn's own middleware."""
    while not isinstance(application, Front):
        application = getattr(application, "app", None)
        if application is None:
            return None
    return application.fast_path
