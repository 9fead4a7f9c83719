"""What went wrong with a request, as a problem document (RFC 9457) that names the field."""

import math
from collections.abc import Mapping
from typing import Any


class Problem(Exception):
    """An answer other than the wanted one.

    Attributes:
        kind: short name of the kind of problem; its ``type`` is ``urn:airloop:<kind>``.
        field: the part of the request that is meant, as ``instances[3].origin``; None: no part of it.
        retry_after: seconds after which asking again may help; None: it does not help (1, where the service is at fault).
        members: what else the document says (RFC 9457's extension members).
    """

    def __init__(
        self, status: int, kind: str, title: str, detail: str, *,
        field: str | None = None, retry_after: float | None = None, members: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(detail)
        self.status, self.kind, self.title, self.detail, self.field, self.members = status, kind, title, detail, field, members or {}
        self.retry_after = 1.0 if retry_after is None and status == 503 else retry_after

    @property
    def headers(self) -> dict[str, str]:
        """What is told in headers (RFC 9110)."""
        headers = {} if self.retry_after is None else {"Retry-After": str(math.ceil(self.retry_after))}
        return headers | {"WWW-Authenticate": "Bearer"} if self.status == 401 else headers

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


def invalid(kind: str, title: str, detail: str, field: str) -> Problem:
    """The request is wrong at ``field``; asking again does not help."""
    return Problem(422, kind, title, detail, field=field)


def unavailable(kind: str, title: str, detail: str) -> Problem:
    """The service cannot answer now; asking again may help."""
    return Problem(503, kind, title, detail)


def _printable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()  # JSON can bring half a surrogate pair, which no answer can carry
