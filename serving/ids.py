"""Generate random ids in batches.

A system call per id would be the most expensive part of an answer.
"""

import os

_drawn: list[str] = []
_lines: list[bytes] = []
_POOL = 256


def new_id() -> str:
    """Return 128 random bits as 32 hex digits."""
    if not _drawn:
        digits = os.urandom(16 * _POOL).hex()
        _drawn.extend([digits[at : at + 32] for at in range(0, len(digits), 32)])
    return _drawn.pop()


def new_id_lines() -> bytes:
    """Return the id header lines for an answer to a request without ids.

    The headers are ``x-request-id`` and W3C ``traceparent``.
    """
    if not _lines:
        for _ in range(_POOL):
            drawn = new_id().encode()
            _lines.append(b"x-request-id: %b\r\ntraceparent: 00-%b-%b-00\r\n" % (drawn, drawn, drawn[16:]))
    return _lines.pop()
