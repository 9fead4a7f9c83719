"""Receive the body of a request within its limits, and decode its content coding."""

import zlib
from collections.abc import Awaitable, Callable, MutableMapping
from http import HTTPStatus
from typing import Any

from serving.problems import ProblemError

CODINGS = (b"gzip", b"deflate")
# The event loop itself decompresses bodies whose decompressed size is at most this many bytes. A
# larger one is decompressed in a thread: 12 KB can hold 8 MB.
MOST_IN_LOOP = 256 * 1024


class DisconnectedError(Exception):
    """Raised when the client disconnects before its request is complete. No answer is possible."""


async def receive_body(
    headers: list[tuple[bytes, bytes]],
    receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
    most: int,
    take: Callable[[int], None],
) -> bytes:
    """Return the whole body.

    Args:
        most: Maximum length in bytes.
        take: Called with the number of bytes of each part. An exception from it ends the request.

    Raises:
        ProblemError: 413 if the body is too long.
        DisconnectedError: The client disconnected.
    """
    for name, value in headers:
        # The connection has already rejected a length that is not a number.
        if name == b"content-length" and int(value) > most:
            raise too_long(most)
    parts: list[bytes] = []
    length, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise DisconnectedError
        part = message.get("body", b"")
        more = message.get("more_body", False)
        length += len(part)
        if length > most:
            raise too_long(most)
        if part:
            take(len(part))
            parts.append(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def too_long(most: int) -> ProblemError:
    return ProblemError(413, "too-long", HTTPStatus(413).phrase, f"the body is longer than {most} bytes", field="body")


def coding_of(headers: list[tuple[bytes, bytes]]) -> bytes:
    """Return the content coding of the body, or an empty string if it is not encoded.

    Raises:
        ProblemError: 415 if the coding is not supported, or if there is more than one.
    """
    codings = [
        coding for name, value in headers if name == b"content-encoding"
        for part in value.lower().split(b",") if (coding := part.strip()) not in (b"", b"identity")
    ]  # fmt: skip
    if not codings:
        return b""
    if len(codings) > 1 or codings[0].removeprefix(b"x-") not in CODINGS:
        detail = "the body may be packed once, as gzip or deflate, or not at all"
        raise ProblemError(
            415,
            "unknown-encoding",
            "Unknown content coding",
            detail,
            field="Content-Encoding",
            headers={"Accept-Encoding": "gzip, deflate"},
        )
    return codings[0].removeprefix(b"x-")


def unpack(body: bytes, coding: bytes, most: int, *, at_once: int | None = None) -> bytes | None:
    """Return the decompressed body, or None if it has more than ``at_once`` bytes.

    Args:
        most: Maximum length of the result in bytes. A compressed body can be a thousand times
            smaller.

    Raises:
        ProblemError: 400 if the body does not have this coding. 413 if the result is too long.
    """
    limit = most if at_once is None else min(most, at_once)
    # With 47, zlib detects whether there is a gzip or a zlib header. Some clients send deflate
    # without a header.
    unpacking = zlib.decompressobj(wbits=47)
    if coding == b"deflate" and (len(body) < 2 or body[0] & 15 != 8 or int.from_bytes(body[:2], "big") % 31):
        unpacking = zlib.decompressobj(wbits=-15)
    try:
        unpacked = unpacking.decompress(body, limit + 1)
    except zlib.error:
        raise ProblemError(
            400, "not-packed", "The body is not packed as its header says", f"it is not {coding.decode()}", field="body"
        ) from None
    if len(unpacked) > limit:
        if limit < most:
            return None
        raise too_long(most)
    if not unpacking.eof or unpacking.unused_data:
        raise ProblemError(
            400,
            "not-packed",
            "The body is not packed as its header says",
            "it is cut off, or other data follow it",
            field="body",
        )
    return unpacked
