"""How the service ends without losing a request: first its callers are asked to leave, then nobody new is let in, then it ends.

A server that closes an idle keep-alive connection loses the request that is just on its way over it. So while it drains, each answer says
``Connection: close``: the client goes elsewhere with its next request, and the connection ends with nobody on it. ``/ready`` says 503 meanwhile.
uvicorn closes idle connections at once; it is told to end only when the drain is over.
"""

import asyncio
import logging
import signal
import threading
from collections.abc import Callable
from typing import Any

LAST_SECONDS = 0.3  # for requests of connections that were made just before nobody new was let in

log = logging.getLogger(__name__)


class Draining:
    """Stands between SIGTERM and the server.

    Args:
        seconds: for which callers are asked to leave. A second SIGTERM ends it at once.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds, self.begun = seconds, False
        self._end: Callable[..., Any] | None = None
        self._task: asyncio.Task[None] | None = None  # the loop itself holds tasks weakly

    def watch(self) -> None:
        """Take SIGTERM over from the server. Where there is none, or it does not run in the main thread (in tests), nothing is done."""
        if self.seconds <= 0 or threading.current_thread() is not threading.main_thread():
            return
        before = signal.getsignal(signal.SIGTERM)
        if not callable(before):
            return
        self._end = before
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._asked_to_end)

    def _asked_to_end(self) -> None:
        if self.begun:
            self._end_server()
            return
        self.begun = True
        log.info("draining: answers close their connections for %g s", self.seconds)
        self._task = asyncio.get_running_loop().create_task(self._drain())

    async def _drain(self) -> None:
        await asyncio.sleep(self.seconds)
        for listener in getattr(getattr(self._end, "__self__", None), "servers", ()):  # uvicorn's own; it would close them together with the connections
            listener.close()
        await asyncio.sleep(LAST_SECONDS)
        self._end_server()

    def _end_server(self) -> None:
        assert self._end is not None
        self._end(signal.SIGTERM, None)
