"""Receive the body of a request within its limits, and take off its content coding."""

import zlib
from collections.abc import Awaitable, Callable, MutableMapping
from http import HTTPStatus
from typing import Any

from serving.problems import Problem

CODINGS = (b"gzip", b"deflate")
# Bytes of a packed body that the event loop unpacks itself. A larger one goes to a thread.
MOST_IN_LOOP = 64 * 1024


class Disconnected(Exception):
    """The client left before its request was complete. Nobody is there to be answered."""


async def receive_body(
    headers: list[tuple[bytes, bytes]], receive: Callable[[], Awaitable[MutableMapping[str, Any]]], most: int, take: Callable[[int], None]
) -> bytes:
    """Return the whole body.

    Args:
        most: bytes.
        take: called with the bytes of each part; what it raises ends the request.

    Raises:
        Problem: 413, the body is too long.
        Disconnected: the client left.
    """
    for name, value in headers:
        # The connection has refused a length that is not a number.
        if name == b"content-length" and int(value) > most:
            raise too_long(most)
    parts: list[bytes] = []
    length, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        part = message.get("body", b"")
        more = message.get("more_body", False)
        length += len(part)
        if length > most:
            raise too_long(most)
        if part:
            take(len(part))
            parts.append(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def too_long(most: int) -> Problem:
    return Problem(413, "too-long", HTTPStatus(413).phrase, f"the body is longer than {most} bytes", field="body")


def coding_of(headers: list[tuple[bytes, bytes]]) -> bytes:
    """Return the content coding of the body; empty: it has none.

    Raises:
        Problem: 415, the service does not know the coding, or there is more than one.
    """
    codings = [
        coding for name, value in headers if name == b"content-encoding"
        for part in value.lower().split(b",") if (coding := part.strip()) not in (b"", b"identity")
    ]  # fmt: skip
    if not codings:
        return b""
    if len(codings) > 1 or codings[0].removeprefix(b"x-") not in CODINGS:
        detail = "the body may be packed once, as gzip or deflate, or not at all"
        raise Problem(415, "unknown-encoding", "Unknown content coding", detail, field="Content-Encoding", headers={"Accept-Encoding": "gzip, deflate"})
    return codings[0].removeprefix(b"x-")


def unpack(body: bytes, coding: bytes, most: int) -> bytes:
    """Return a packed body unpacked.

    Args:
        most: bytes of the result: a packed body can be a thousandth of it.

    Raises:
        Problem: 400, it is not packed so; 413, the result is too long.
    """
    # With 47 zlib finds out whether there is a gzip or a zlib header. Some clients send deflate without a header.
    unpacking = zlib.decompressobj(wbits=47)
    if coding == b"deflate" and (len(body) < 2 or body[0] & 15 != 8 or int.from_bytes(body[:2], "big") % 31):
        unpacking = zlib.decompressobj(wbits=-15)
    try:
        unpacked = unpacking.decompress(body, most + 1)
    except zlib.error:
        raise Problem(400, "not-packed", "The body is not packed as its header says", f"it is not {coding.decode()}", field="body") from None
    if len(unpacked) > most:
        raise too_long(most)
    if not unpacking.eof or unpacking.unused_data:
        raise Problem(400, "not-packed", "The body is not packed as its header says", "it is cut off, or other data follow it", field="body")
    return unpacked
