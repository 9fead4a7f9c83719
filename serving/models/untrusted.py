"""Parse untrusted JSON: registry tags, a version's files, and the cache's own files.

All users with write access to the model registry can write such documents. A single parser with
limits ensures that a document cannot exhaust the stack or memory. It also rejects values that would
fail later in unexpected places.
"""

import json
import math
from typing import Any

# MLflow stores at most 100,000 characters in a tag.
MOST_BYTES = 128 * 2**10
MOST_DEPTH = 16
MOST_INTEGER = 2**63


class DocumentError(ValueError):
    """Raised if a document breaks a limit of the parser. The message is one printable line."""


def parse(content: str | bytes, what: str, *, most_bytes: int = MOST_BYTES, most_depth: int = MOST_DEPTH) -> Any:
    """Parse a JSON document within limits.

    Args:
        what: The name of the document, for the error.

    Raises:
        DocumentError: The document is larger or deeper than the limits, or is not JSON (NaN and
            Infinity are not). Also raised for a repeated key, a number beyond 64 bits, a NUL, or
            text that is not valid UTF-8.
    """
    try:
        raw = content if isinstance(content, bytes) else content.encode()
        if len(raw) > most_bytes:
            raise DocumentError(f"{what}: {len(raw)} bytes; at most {most_bytes} are read")
        document = json.loads(
            raw.decode(),
            object_pairs_hook=_unique,
            parse_constant=_refuse_constant,
            parse_int=_integer,
            parse_float=_finite,
        )
        _check_values(document, most_depth)
    except DocumentError as error:
        text = str(error)
        raise DocumentError(text if text.startswith(f"{what}: ") else f"{what}: {text}") from None
    except RecursionError:
        raise DocumentError(f"{what}: nested deeper than {most_depth} levels") from None
    except (AttributeError, TypeError):
        raise DocumentError(f"{what}: must be text, is {type(content).__name__}") from None
    except ValueError as error:
        raise DocumentError(f"{what}: not JSON ({line(error)})") from None
    return document


def parse_object(
    content: str | bytes, what: str, *, most_bytes: int = MOST_BYTES, most_depth: int = MOST_DEPTH
) -> dict[str, Any]:
    """Parse a JSON object. Raise ``DocumentError`` as ``parse`` does, and for any other type."""
    document = parse(content, what, most_bytes=most_bytes, most_depth=most_depth)
    if not isinstance(document, dict):
        raise DocumentError(f"{what}: must be a JSON object, is {_type(document)}")
    return document


def line(error: object, most: int = 500) -> str:
    """Return an error as one printable line of UTF-8 text.

    The line starts with the exception's class, except for a ``DocumentError``.
    """
    text = str(error)
    if isinstance(error, BaseException) and not isinstance(error, DocumentError):
        text = f"{type(error).__name__}: {text}"
    return printable(" ".join(text.split()), most)


def printable(text: str, most: int = 500) -> str:
    """Escape characters that are not printable or not valid UTF-8, and cut the text to ``most``."""
    head = text[: most + 1]
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in head)
    return shown if len(text) <= most and len(shown) <= most else shown[: most - 3] + "..."


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for number, name in enumerate(names) if name in names[:number])
        raise DocumentError(f"key '{printable(repeated, 100)}' is given twice")
    return document


def _refuse_constant(name: str) -> None:
    raise DocumentError(f"{name} is not a JSON number")


def _integer(text: str) -> int:
    if len(text) > 20 or not -MOST_INTEGER <= (value := int(text)) < MOST_INTEGER:
        raise DocumentError(f"number {printable(text, 40)} does not fit into 64 bits")
    return value


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise DocumentError(f"number {printable(text, 40)} does not fit into 64 bits")
    return value


def _check_values(document: Any, most_depth: int) -> None:
    waiting = [(document, 1)]
    while waiting:
        value, depth = waiting.pop()
        if isinstance(value, str):
            _check_text(value)
        elif isinstance(value, dict | list):
            if depth > most_depth:
                raise DocumentError(f"nested deeper than {most_depth} levels")
            if isinstance(value, dict):
                for name in value:
                    _check_text(name)
            waiting += [(entry, depth + 1) for entry in (value.values() if isinstance(value, dict) else value)]


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DocumentError(f"text '{printable(text, 100)}' is not valid Unicode") from None
    if "\0" in text:
        raise DocumentError(f"text '{printable(text, 100)}' holds a NUL")


def _type(value: Any) -> str:
    names = {
        list: "an array",
        str: "a string",
        bool: "a boolean",
        int: "a number",
        float: "a number",
        type(None): "null",
    }
    return names.get(type(value), type(value).__name__)
