"""Encode and decode JSON: with orjson where possible, otherwise with Python's lenient ``json``."""

import json
from typing import Any

import orjson

from serving.problems import ProblemError

# Maximum numbers of lists and objects, and of values, in one document. A parser can create millions
# of them from a body within its byte limit, and blocks every other request while it does: 8 MB of
# short texts take a quarter of a second. A new name takes as long as three values. With these
# limits a document takes at most about 50 ms. Brackets, commas and colons in strings count too.
MOST_CONTAINERS, MOST_PARTS = 50_000, 500_000


def dumps(value: Any) -> bytes:
    """Return JSON. Python's ``json`` encodes integers beyond 64 bits and lone surrogates."""
    try:
        return orjson.dumps(value)
    except TypeError:
        return json.dumps(value).encode()


# Maximum number of bytes that Python's own parser accepts here. It is slow, and blocks every other
# request.
MOST_LENIENT = 256 * 1024


def loads(body: bytes) -> Any:
    """Return the parsed JSON document.

    Python accepts values that orjson rejects: NaN, integers of any length, lone surrogates. Later
    checks reject them with the name of the field.

    Raises:
        ValueError: The body is not JSON.
        ProblemError: 413 if the document has too many parts.
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
    """Check the number of parts of a JSON document before it is parsed.

    Raises:
        ProblemError: 413 if there are too many.
    """
    # A short body cannot contain that many. Each count takes a few milliseconds at most.
    if len(body) <= MOST_CONTAINERS:
        return
    if body.count(b"[") + body.count(b"{") > MOST_CONTAINERS or body.count(b",") + 2 * body.count(b":") > MOST_PARTS:
        detail = (
            f"at most {MOST_CONTAINERS} lists and objects and {MOST_PARTS} values go into one request (a value with a"
            " name counts three times)"
        )
        raise ProblemError(
            413, "too-many-parts", "Too many parts in the request", f"{detail}; send it in parts", field="body"
        )
