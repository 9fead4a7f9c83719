"""Check the head of a request before it is processed.

If proxies and servers disagree about the end of a request, one client can write into another
client's connection (request smuggling). So this module accepts only one interpretation. It refuses
a head with more than one framing, more than one host, or a framing that a proxy may interpret
differently. The parser (llhttp) itself refuses most of these. This module does not rely on that,
because the parser's leniency has changed between versions.

Sources: RFC 9110 (7.2, 7.8, 10.1.1), RFC 9112 (2.2, 3.2, 5.2, 6.1, 6.3), W3C Trace Context.
"""

import re
from functools import lru_cache
from typing import NamedTuple

from serving.problems import ProblemError

# Headers that `read_head` evaluates. The connection collects them during parsing, so that the
# headers of a request are not scanned twice.
WATCHED = frozenset(
    (
        b"host",
        b"content-length",
        b"transfer-encoding",
        b"connection",
        b"upgrade",
        b"expect",
        b"content-encoding",
        b"x-request-id",
        b"traceparent",
    )
)
HOST = re.compile(rb"(?:\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z._~-]+)(?::[0-9]{1,5})?")
ABSOLUTE = re.compile(rb"https?://([^/?#@]+)(?:[/?].*)?", re.IGNORECASE)
WITHOUT_PATH = re.compile(rb"(https?://[^/?#]+)(\?.*)?", re.IGNORECASE)
MOST_DIGITS = 15
REQUEST_ID = re.compile(rb"[0-9A-Za-z._:/+=-]{1,128}")
TRACE_PARENT = re.compile(rb"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


class Head(NamedTuple):
    """The properties of a message that its head defines.

    Attributes:
        expects_continue: The client waits for ``100 Continue`` before it sends the body.
        upgrade: The head offers another protocol, which this service does not accept.
        encoded: The body has a content encoding.
        request_id: The client's own id of the request, if it is valid.
        trace_parent: The client's W3C trace context, if it is valid.
    """

    expects_continue: bool = False
    upgrade: bool = False
    encoded: bool = False
    request_id: bytes | None = None
    trace_parent: bytes | None = None


# The value for most heads.
PLAIN = Head()


class CheckedHead(NamedTuple):
    """A head that passed the checks.

    If a client repeats it on its connection with another body length, it is not checked again.

    Attributes:
        length_at: Position of the only Content-Length among the headers.
    """

    method: bytes
    version: str
    target: bytes
    headers: list[tuple[bytes, bytes]]
    length_at: int

    def repeated_by(self, method: bytes, version: str, target: bytes, headers: list[tuple[bytes, bytes]]) -> bool:
        """Return True if another head differs at most in the number of its Content-Length."""
        ours, at = self.headers, self.length_at
        if target != self.target or method != self.method or version != self.version or len(headers) != len(ours):
            return False
        name, value = headers[at]
        return (
            name == b"content-length"
            and _is_length(value)
            and headers[:at] == ours[:at]
            and headers[at + 1 :] == ours[at + 1 :]
        )


def remember(
    method: bytes, version: str, target: bytes, headers: list[tuple[bytes, bytes]], head: Head
) -> CheckedHead | None:
    """Return a checked head for later comparisons.

    Return None if it does not have a Content-Length, or if it contains the ids of one request.
    """
    if head is not PLAIN:
        return None
    for at, (name, _) in enumerate(headers):
        if name == b"content-length":
            return CheckedHead(method, version, target, headers, at)
    return None


def read_head(method: bytes, version: str, target: bytes, watched: list[tuple[bytes, bytes]]) -> Head:
    """Return the properties of a message that its head defines.

    Args:
        target: The request target as sent.
        watched: Names (lower case) and values of the headers that are in ``WATCHED``, in their
            order.

    Raises:
        ProblemError: 400, 405, 417, 501 or 505. The connection must be closed after the answer.
    """
    _check_start(method, version)
    host = length = encoding = None
    expects = upgrade = encoded = False
    request_id = trace_parent = None
    for name, value in watched:
        if name == b"host":
            host = _only_host(host, value)
        elif name == b"content-length":
            length = _only_length(length, value)
        elif name == b"transfer-encoding":
            encoding = _only_encoding(encoding, value)
        elif name == b"expect":
            expects = _expects_continue(value, version)
        elif name == b"upgrade":
            upgrade = True
        elif name == b"content-encoding":
            encoded = encoded or value.lower() not in (b"", b"identity")
        elif name == b"x-request-id":
            request_id = value if REQUEST_ID.fullmatch(value) else None
        elif name == b"traceparent":
            # A second trace context makes both invalid.
            trace_parent = value if trace_parent is None and TRACE_PARENT.fullmatch(value) else b""
    if encoding is not None:
        _check_encoded_framing(version, length)
    _check_target(method, version, target, host)
    if not (expects or upgrade or encoded or request_id or trace_parent):
        return PLAIN
    return Head(expects, upgrade, encoded, request_id, trace_parent or None)


def _check_start(method: bytes, version: str) -> None:
    if version not in ("1.1", "1.0"):
        raise ProblemError(
            505, "http-version", "HTTP version not supported", "this service answers HTTP/1.1 and HTTP/1.0"
        )
    if method == b"CONNECT":
        raise ProblemError(405, "no-tunnel", "Method not allowed", "this service is not a proxy: it accepts no CONNECT")


def _only_host(before: bytes | None, value: bytes) -> bytes:
    if before is not None:
        raise _bad("Host", "it must be there once")
    return value


def _only_length(before: bytes | None, value: bytes) -> bytes:
    if before is not None:
        raise _bad("Content-Length", "it must be there once")
    if not _is_length(value):
        raise _bad("Content-Length", "it must be a number of at most 15 digits, without a sign")
    return value


def _only_encoding(before: bytes | None, value: bytes) -> bytes:
    if before is not None or value.lower() != b"chunked":
        detail = "Transfer-Encoding must be there once and be 'chunked'"
        raise ProblemError(501, "transfer-encoding", "Transfer coding not supported", detail)
    return value


def _expects_continue(value: bytes, version: str) -> bool:
    """Return whether the client waits for ``100 Continue``, which HTTP/1.0 does not have."""
    if value.lower() != b"100-continue":
        raise ProblemError(
            417, "expectation", "Expectation failed", "the only expectation that is met is '100-continue'"
        )
    return version == "1.1"


def _check_encoded_framing(version: str, length: bytes | None) -> None:
    """Check that a transfer coding is the only framing of the message (RFC 9112, 6.1)."""
    if length is not None:
        raise _bad("Transfer-Encoding", "it must not come together with Content-Length")
    if version == "1.0":
        raise _bad("Transfer-Encoding", "HTTP/1.0 has none")


def _check_target(method: bytes, version: str, target: bytes, host: bytes | None) -> None:
    """Check the target and the host (RFC 9112, 3.2)."""
    if host is None:
        if version == "1.1":
            raise _bad("Host", "HTTP/1.1 requires it")
    elif not is_host(host):
        raise _bad("Host", "it must be a name or an address, with or without a port")
    if not target.isascii():
        raise _bad("target", "it must be ASCII; encode other characters with %")
    if target.startswith(b"/") or (target == b"*" and method == b"OPTIONS"):
        return
    absolute = ABSOLUTE.fullmatch(target)
    if absolute is None:
        raise _bad("target", "it must be a path that starts with '/', or a URL")
    if host is not None and absolute[1].lower() != host.lower():
        raise _bad("Host", "it differs from the host of the request target")


@lru_cache(1024)
def is_host(value: bytes) -> bool:
    """Return True if a value of ``Host`` is a name or an address, with or without a port."""
    return HOST.fullmatch(value) is not None


def with_path(target: bytes) -> bytes:
    """Return a checked target with its path. The empty path of a URL is '/' (RFC 9110, 4.2.3)."""
    if target.startswith(b"/") or (match := WITHOUT_PATH.fullmatch(target)) is None:
        return target
    return match[1] + b"/" + (match[2] or b"")


def without_upgrade(method: bytes, version: str, target: bytes, headers: list[tuple[bytes, bytes]]) -> bytes:
    """Return the bytes of a head without its offer of another protocol.

    RFC 9110 (7.8) allows a server to ignore the offer. A parser that sees the offer treats the body
    as data of the other protocol.
    """
    lines = [b"%b %b HTTP/%b" % (method, target, version.encode())]
    for name, value in headers:
        if name == b"upgrade":
            continue
        if name == b"connection":
            value = b", ".join(
                token for part in value.split(b",") if (token := part.strip()) and token.lower() != b"upgrade"
            )
            if not value:
                continue
        lines.append(b"%b: %b" % (name, value))
    return b"\r\n".join((*lines, b"", b""))


def _is_length(value: bytes) -> bool:
    return value.isdigit() and len(value) <= MOST_DIGITS


def _bad(part: str, detail: str) -> ProblemError:
    return ProblemError(400, "bad-request", "Bad request", f"{part}: {detail}", field=part)
