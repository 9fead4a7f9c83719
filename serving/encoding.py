"""JSON, fast where it can be and as lenient as Python's own where it must be."""

import json
from typing import Any

import orjson


def dumps(value: Any) -> bytes:
    """JSON. orjson takes no integer beyond 64 bits and no half surrogate pair, Python's own does."""
    try:
        return orjson.dumps(value)
    except TypeError:
        return json.dumps(value).encode()


def loads(body: bytes) -> Any:
    """A JSON document. What orjson does not take and Python does (NaN, numbers of any length, half surrogate pairs) is left to later checks, which name it.

    Raises:
        ValueError: it is no JSON.
    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        try:
            return json.loads(body)
        except RecursionError:
            raise ValueError("it is nested too deeply") from None
