"""A connection to the service: uvicorn's own, with the fast path before it."""

import asyncio
import time
from typing import Any, cast

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from serving.fast_path import FastPath, Request
from serving.front import CALLER, Front

MOST_HELD = 64 * 1024  # bytes of a body that is on its way; a longer one has the ordinary way's flow control


class Connection(HttpToolsProtocol):
    """``uvicorn.run(..., http="serving.connection:Connection")``."""

    def __init__(self, config: Config, server_state: ServerState, app_state: dict[str, Any], _loop: asyncio.AbstractEventLoop | None = None) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.fast: FastPath | None = None
        if not config.access_log and not self.root_path and self.limit_concurrency is None:  # those are uvicorn's to look after
            self.fast = fast_path_of(self.app)
        self._model: str | None = None  # that the request which comes just now asks for, if it may be answered here
        self.taken: Request | None = None  # that is being answered
        self._caller = ""
        self._body = b""
        self._started = 0.0

    def on_message_begin(self) -> None:
        if self.fast is None:
            super().on_message_begin()
            return
        if self.taken is not None:  # a client that does not wait for its answers gets them in the order in which it asked
            self._hurry()
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
        self.taken = self.fast.take(self, self._model, self._body, self._started)
        if self.taken is None:
            self.pass_on(whole=True)
            return
        self._model = None
        if self.fast.unfinished:
            self.fast.unfinished.discard(self)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._model is not None and self.fast is not None:
            self.fast.unfinished.add(self)

    def shutdown(self) -> None:
        if self.taken is not None:
            self._hurry()
        elif self._model is not None:
            self.pass_on(whole=False)
        super().shutdown()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.fast is not None:
            self.fast.unfinished.discard(self)
        self._model = self.taken = None
        super().connection_lost(exc)

    def tell(self, content: bytes) -> None:
        """Answer the request that was taken."""
        assert self.fast is not None
        self.taken = None
        if not self.transport.is_closing():
            self.transport.write(b"%b%d\r\n\r\n%b" % (self.fast.head(self.server_state.default_headers), len(content), content))
        self.on_response_complete()

    def pass_on(self, *, whole: bool) -> None:
        """Let the request go the ordinary way, with as much of its body as has come."""
        assert self.fast is not None
        self._model = self.taken = None
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

    def _hurry(self) -> None:
        """Answer what was taken now; what is being looked up goes the ordinary way."""
        assert self.fast is not None
        self.fast.answer()
        if self.taken is not None:
            self.pass_on(whole=True)

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
