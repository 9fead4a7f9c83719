"""Shut down without losing requests.

First callers are asked to leave, then new connections are refused, then the server stops.

A server that closes an idle keep-alive connection loses a request that is already on its way. So
during draining each answer contains ``Connection: close``. The client sends its next request to
another server, and the connection ends without a request on it. ``/ready`` returns 503 during
draining. uvicorn closes idle connections immediately, so it gets the signal only after the drain.
"""

import asyncio
import logging
import signal
import threading
from collections.abc import Callable
from typing import Any

# Time in seconds for the requests of connections that were accepted just before the listeners
# closed.
LAST_SECONDS = 0.3

log = logging.getLogger(__name__)


class Draining:
    """Delay SIGTERM until the callers have left.

    Args:
        seconds: Duration of the drain. A second SIGTERM ends it immediately.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds, self.begun = seconds, False
        self._end: Callable[..., Any] | None = None
        # The event loop holds only weak references to tasks.
        self._task: asyncio.Task[None] | None = None

    def watch(self) -> None:
        """Take SIGTERM over from the server.

        Do nothing if ``seconds`` is 0, if SIGTERM does not have a Python handler, or outside the
        main thread (in tests).
        """
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
        # These are uvicorn's listeners. uvicorn itself would close them together with the
        # connections.
        for listener in getattr(getattr(self._end, "__self__", None), "servers", ()):
            listener.close()
        await asyncio.sleep(LAST_SECONDS)
        self._end_server()

    def _end_server(self) -> None:
        assert self._end is not None
        self._end(signal.SIGTERM, None)
