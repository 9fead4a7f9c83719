"""Describe errors of requests as problem documents (RFC 9457) that name the field."""

import math
from collections.abc import Mapping
from typing import Any

LONGEST_TEXT = 500


class ProblemError(Exception):
    """Raised to answer a request with an error.

    Attributes:
        kind: Short name of the kind of problem. Its ``type`` is ``urn:airloop:<kind>``.
        field: The part of the request that is wrong, for example ``instances[3].origin``, or None.
        retry_after: Seconds after which a retry may succeed, or None if it cannot. The default is 1
            for status 503.
        members: Additional members of the document (RFC 9457's extension members).
        headers: Headers of the answer.
    """

    def __init__(
        self, status: int, kind: str, title: str, detail: str, *,
        field: str | None = None, retry_after: float | None = None, members: Mapping[str, Any] | None = None, headers: Mapping[str, str] | None = None,  # noqa: E501
    ) -> None:  # fmt: skip
        super().__init__(detail)
        self.status, self.kind, self.title, self.detail, self.field, self.members = (
            status,
            kind,
            title,
            detail,
            field,
            members or {},
        )
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
        """Return the problem document.

        Args:
            path: The request's path. For ``/v2`` the document also contains ``error``, which
                clients of the Open Inference Protocol read.
        """
        document: dict[str, Any] = {
            "type": f"urn:airloop:{self.kind}",
            "title": self.title,
            "status": self.status,
            "detail": _printable(self.detail),
        }
        if self.field is not None:
            document["field"] = _printable(self.field)
        document |= self.members
        return document | {"error": document["detail"]} if path.startswith("/v2") else document


def media_type(path: str) -> str:
    """Return the media type of a problem document.

    The Open Inference Protocol sends errors as application/json. KServe's client reads the message
    only from this type.
    """
    return "application/json" if path.startswith("/v2") else "application/problem+json"


def invalid(kind: str, title: str, detail: str, field: str) -> ProblemError:
    """Return the problem of a request that is wrong at ``field``. A retry does not help."""
    return ProblemError(422, kind, title, detail, field=field)


def unavailable(kind: str, title: str, detail: str) -> ProblemError:
    """Return the problem of a service that cannot answer now. A retry may help."""
    return ProblemError(503, kind, title, detail)


def _printable(text: str) -> str:
    """Return the text, shortened and without lone surrogates.

    A request can contain names of megabytes, and an answer must not repeat them.
    """
    short = text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}..."
    return short.encode("utf-8", "replace").decode()
