"""A client's connection with a fast path.

Plain predictions are answered here. The gateway (``Gateway``) answers all other requests.
"""

import asyncio
from typing import Any, cast

from uvicorn.config import Config
from uvicorn.server import ServerState

from serving.access.callers import Caller
from serving.http.fast_path import FastPath, FastPathRequest
from serving.http.gateway import CALLER, CHARGED
from serving.http.guarded import GuardedConnection

# Maximum number of body bytes on the fast path. Longer bodies get uvicorn's flow control.
MOST_HELD = 64 * 1024


class Connection(GuardedConnection):
    """A protocol for ``uvicorn.run(..., http="serving.http.connection:Connection")``."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.fast: FastPath | None = None
        # uvicorn's own code handles an access log, a root path and a limit on concurrency.
        if not config.access_log and not self.root_path and self.limit_concurrency is None:
            self.fast = self.gateway.fast_path
        self.taken: FastPathRequest | None = None
        # The model of the request that is being received, if the fast path may answer it.
        self._model: str | None = None
        # The model of the last request that the fast path took.
        self._took: str | None = None
        self._caller: Caller | None = None
        self._body: bytes | bytearray = b""
        self.started = 0.0

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._model is not None and self.fast is not None:
            self.fast.unfinished.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._abandon()
        self.taken = None
        super().connection_lost(exc)

    def shutdown(self) -> None:
        if self.taken is not None:
            self._flush_now()
        elif self._model is not None:
            self.pass_on(whole=False)
        super().shutdown()

    def tell(self, head: bytes, content: bytes) -> None:
        """Answer the request that was taken.

        Args:
            head: The head of the answer, without its length.
        """
        self.taken = None
        if not self.transport.is_closing():
            self.transport.write(b"%bcontent-length: %d\r\n\r\n%b" % (head, len(content), content))
        if self.pipeline or self.flow.read_paused:
            self._after_response()
        else:
            self.server_state.total_requests += 1
            self._await_next()

    def pass_on(self, *, whole: bool) -> None:
        """Pass the request, with the received part of its body, to the ordinary path."""
        assert self.fast is not None
        charged = self.taken is not None
        self._model = self.taken = None
        self.fast.unfinished.discard(self)
        if self.transport.is_closing():
            return
        # The parser may already be at the next request.
        parser, self.parser = self.parser, PLAIN  # type: ignore[assignment]
        try:
            self._begin()
            # The caller is already admitted. This is set for the current request only, because the
            # next one presents its own key.
            scope = cast(dict[str, Any], self.scope)
            scope[CALLER] = self._caller
            # The fast path charged the rows to the caller's rate when it took the request.
            scope[CHARGED] = charged
            if self._body:
                super()._on_body(bytes(self._body))
            if whole:
                super()._on_message()
        finally:
            self.parser = parser

    def _take_over(self, method: bytes, repeats: bool) -> bool:
        fast = self.fast
        if fast is None or method != b"POST" or self._due or self._is_last or self.flow.write_paused:
            return False
        if not (repeats and self._took):
            self._took = None
            if self._head.encoded or self._head.expects_continue or (model := fast.model_of(self.url)) is None:
                return False
            self._took = model
            repeats = False
        # Keys have rates and expire. Without keys the request head alone decides.
        if not repeats or fast.gateway.access.file is not None or self._caller is None:
            self._caller = fast.admit(self.url, self.headers, self.client)
            if self._caller is None:
                return False
            self.note_admitted(self._caller.name)
        self._model, self._body, self.started = self._took, b"", self._since
        return True

    def _on_body(self, body: bytes) -> None:
        if self._model is None:
            super()._on_body(body)
            return
        if not self._body:
            # Most bodies arrive in one piece.
            self._body = body
        elif type(self._body) is bytes:
            self._body = bytearray(self._body) + body
        else:
            self._body += body
        if len(self._body) > MOST_HELD:
            self.pass_on(whole=False)

    def _on_message(self) -> None:
        if self._model is None:
            super()._on_message()
            return
        assert self.fast is not None and self._caller is not None
        self.taken = self.fast.take(self, self._model, self._caller, self._head, bytes(self._body), self.started)
        if self.taken is None:
            self.pass_on(whole=True)
            return
        self._model = None
        if self.fast.unfinished:
            self.fast.unfinished.discard(self)

    def _abandon(self) -> bool:
        abandoned, self._model = self._model is not None, None
        if self.fast is not None:
            self.fast.unfinished.discard(self)
        return abandoned

    @property
    def _answering(self) -> bool:
        return self.taken is not None or self._model is not None or bool(self._due)

    def _flush_now(self) -> None:
        if self.taken is None:
            return
        assert self.fast is not None
        self.fast.answer()
        if self.taken is not None:
            self.pass_on(whole=True)


class _Plain:
    """A parser stand-in with the properties that all requests on the fast path share."""

    def get_method(self) -> bytes:
        return b"POST"

    def get_http_version(self) -> str:
        return "1.1"

    def should_keep_alive(self) -> bool:
        return True

    def should_upgrade(self) -> bool:
        return False


PLAIN = _Plain()
