"""JSON, fast where it can be and as lenient as Python's own where it must be."""

import json
from typing import Any

import orjson

from serving.problems import Problem

# Lists and objects, and entries of objects, of one document. A parser makes millions of them from a body within its limit of bytes, and holds up every
# other request meanwhile: 8 MB of empty lists take half a second. Brackets and colons in strings count too.
MOST_CONTAINERS, MOST_ENTRIES = 50_000, 300_000


def dumps(value: Any) -> bytes:
    """JSON. orjson takes no integer beyond 64 bits and no half surrogate pair, Python's own does."""
    try:
        return orjson.dumps(value)
    except TypeError:
        return json.dumps(value).encode()


# Bytes of a document that Python's own parser is tried on. It is slow, and holds up every other request.
MOST_LENIENT = 256 * 1024


def loads(body: bytes) -> Any:
    """A JSON document. What orjson does not take and Python does (NaN, numbers of any length, half surrogate pairs) is left to later checks, which name it.

    Raises:
        ValueError: it is no JSON.
        Problem: 413, it has too many parts.
    """
    check_parts(body)
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        if len(body) > MOST_LENIENT:
            raise ValueError(str(error)) from None
        try:
            return json.loads(body)
        except RecursionError:
            raise ValueError("it is nested too deeply") from None


def check_parts(body: bytes) -> None:
    """Check how many parts a JSON document has, before it is parsed.

    Raises:
        Problem: 413, it has too many.
    """
    # A short body cannot hold so many. Each count takes a few milliseconds at most.
    if len(body) <= MOST_CONTAINERS:
        return
    if body.count(b"[") + body.count(b"{") > MOST_CONTAINERS or body.count(b":") > MOST_ENTRIES:
        detail = f"at most {MOST_CONTAINERS} lists and objects and {MOST_ENTRIES} names go into one request; send it in parts"
        raise Problem(413, "too-many-parts", "Too many parts in the request", detail, field="body")
