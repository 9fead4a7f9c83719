"""What went wrong with a request, as a problem document (RFC 9457) that names the field."""

import math
from collections.abc import Mapping
from typing import Any

LONGEST_TEXT = 500


class Problem(Exception):
    """An answer other than the wanted one.

    Attributes:
        kind: short name of the kind of problem; its ``type`` is ``urn:airloop:<kind>``.
        field: the part of the request that is meant, as ``instances[3].origin``; None: no part of it.
        retry_after: seconds after which asking again may help; None: it does not help (1, where the service is at fault).
        members: what else the document says (RFC 9457's extension members).
        headers: of the answer.
    """

    def __init__(
        self, status: int, kind: str, title: str, detail: str, *,
        field: str | None = None, retry_after: float | None = None, members: Mapping[str, Any] | None = None, headers: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(detail)
        self.status, self.kind, self.title, self.detail, self.field, self.members = status, kind, title, detail, field, members or {}
        self.retry_after = 1.0 if retry_after is None and status == 503 else retry_after
        self._headers = headers or {}

    @property
    def headers(self) -> dict[str, str]:
        """Return the headers of the answer (RFC 9110)."""
        headers = dict(self._headers)
        if self.retry_after is not None:
            headers["Retry-After"] = str(math.ceil(self.retry_after))
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        if self.status == 405:
            headers.setdefault("Allow", "GET, HEAD, POST")
        return headers

    def document(self, path: str = "") -> dict[str, Any]:
        """What is told.

        Args:
            path: of the request; clients of the Open Inference Protocol look for ``error``.
        """
        document: dict[str, Any] = {"type": f"urn:airloop:{self.kind}", "title": self.title, "status": self.status, "detail": _printable(self.detail)}
        if self.field is not None:
            document["field"] = _printable(self.field)
        document |= self.members
        return document | {"error": document["detail"]} if path.startswith("/v2") else document


def media_type(path: str) -> str:
    """Return the media type of a problem document.

    The Open Inference Protocol has errors as application/json. KServe's client reads the message of no other type.
    """
    return "application/json" if path.startswith("/v2") else "application/problem+json"


def invalid(kind: str, title: str, detail: str, field: str) -> Problem:
    """The request is wrong at ``field``; asking again does not help."""
    return Problem(422, kind, title, detail, field=field)


def unavailable(kind: str, title: str, detail: str) -> Problem:
    """The service cannot answer now; asking again may help."""
    return Problem(503, kind, title, detail)


def _printable(text: str) -> str:
    """Return a text that an answer can carry: short, since a request can hold names of megabytes, and without half surrogate pairs."""
    short = text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}..."
    return short.encode("utf-8", "replace").decode()
