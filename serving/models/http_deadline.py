"""Send HTTP GET requests with a deadline for the whole answer.

A socket's timeout applies to one operation: a server that sends a byte every second never reaches
it.
"""

import http.client
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from serving.models.untrusted import printable

# Timeout of the connect, and between two packets.
OPERATION_SECONDS = 5.0
BLOCK = 256 * 2**10
ERROR_BYTES = 300


class HttpStatusError(OSError):
    """Raised if the server answers with an error. The message starts with its status and body."""


class Deadline:
    """A time by which work must have ended. If ``cancelled`` is set, it has already passed."""

    def __init__(self, seconds: float, cancelled: threading.Event | None = None) -> None:
        self.seconds, self._end, self._cancelled = seconds, time.monotonic() + seconds, cancelled

    @property
    def left(self) -> float:
        """Return the remaining seconds, at least 0."""
        return (
            0.0 if self._cancelled is not None and self._cancelled.is_set() else max(0.0, self._end - time.monotonic())
        )

    def check(self, what: str) -> None:
        """Raise ``TimeoutError`` if the deadline has passed."""
        if not self.left:
            raise TimeoutError(f"{what}: not complete within {self.seconds:g} s")


@contextmanager
def opened(
    url: str, headers: Mapping[str, str], deadline: Deadline, tls: ssl.SSLContext | None = None
) -> Iterator[http.client.HTTPResponse]:
    """Open a URL for reading, and shut its connection down at the deadline.

    Redirects are not followed.

    Raises:
        HttpStatusError: The status is not a success.
        OSError: The connection failed, or the deadline passed.
    """
    deadline.check(url)
    sockets: list[socket.socket] = []
    over = threading.Event()

    def shut() -> None:
        over.set()
        for one in tuple(sockets):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    opener = urllib.request.build_opener(_plain(sockets), _secure(sockets, tls), _NoRedirects())
    timer = threading.Timer(deadline.left, shut)
    timer.daemon = True
    timer.start()
    given = False
    try:
        with opener.open(urllib.request.Request(url, headers=dict(headers)), timeout=OPERATION_SECONDS) as answer:
            given = True
            yield answer
        if over.is_set():
            deadline.check(url)
    except urllib.error.HTTPError as error:
        body = b""
        with suppress(OSError, ValueError, http.client.HTTPException):
            body = error.read1(ERROR_BYTES)
        raise HttpStatusError(f"HTTP {error.code} {printable(body.decode(errors='replace'), ERROR_BYTES)}") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        if given and isinstance(error, ValueError):  # Raised by the caller's block.
            raise
        if over.is_set():
            raise TimeoutError(f"{url}: not complete within {deadline.seconds:g} s") from None
        if isinstance(error, OSError):
            raise
        raise OSError(f"{url}: {error}") from None
    finally:
        timer.cancel()
        for one in sockets:
            one.close()


def blocks(answer: http.client.HTTPResponse, deadline: Deadline, what: str) -> Iterator[bytes]:
    """Yield an answer's bytes as they arrive.

    Raises:
        OSError: The connection broke, the answer is incomplete, or the deadline passed.
    """
    length, read = answer.length, 0
    while block := answer.read1(BLOCK):
        deadline.check(what)
        read += len(block)
        yield block
    deadline.check(what)
    if length is not None and read < length:
        raise OSError(f"{what}: the answer ends after {read} of {length} bytes")


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Reject redirects, because they would send the credentials to another server."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> None:
        return None  # urllib raises HTTPError for the status.


def _plain(sockets: list[socket.socket]) -> urllib.request.BaseHandler:
    class PlainHandler(urllib.request.HTTPHandler):
        def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(
                lambda host, **options: _watched(http.client.HTTPConnection(host, **options), sockets), req
            )

    return PlainHandler()


def _secure(sockets: list[socket.socket], tls: ssl.SSLContext | None) -> urllib.request.BaseHandler:
    class TlsHandler(urllib.request.HTTPSHandler):
        def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(
                lambda host, **options: _watched(http.client.HTTPSConnection(host, context=tls, **options), sockets),
                req,
            )

    return TlsHandler()


def _watched(connection: Any, sockets: list[socket.socket]) -> Any:
    """Return the connection, which adds a duplicate of its socket's descriptor to ``sockets``.

    The duplicate is needed because http.client and TLS replace the original.
    """

    def create(*arguments: Any, **options: Any) -> socket.socket:
        new_socket = socket.create_connection(*arguments, **options)
        sockets.append(new_socket.dup())
        return new_socket

    connection._create_connection = create
    return connection
