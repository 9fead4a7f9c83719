"""Limit the connections of one worker, in number and time, and reserve file descriptors.

A connection holds a file descriptor and memory before the client is known. So a new connection is
accepted as long as an older one without an admitted request can be closed for it. If all
connections belong to admitted clients, an idle one is closed, or else the oldest unfinished request
of a caller with more than half of the connections. So one caller cannot keep the others out.
Without keys, callers cannot be distinguished, and the new connection is refused.
"""

import logging
import resource
import time
from collections import Counter
from typing import Any, NamedTuple, Protocol

from serving.access.callers import NOBODY

log = logging.getLogger(__name__)

# File descriptors for models, the registry, the online store, logs and the event loop.
LEAST_RESERVED = 96
MOST_BACKLOG = 2048


class Descriptors(NamedTuple):
    """The division of the process's file descriptors.

    Attributes:
        connections: For clients.
        backlog: Connections that the kernel may queue. The event loop accepts them all in one step,
            so they count against the reserve.
    """

    connections: int
    backlog: int


def share_descriptors(wanted: int, limit: int | None = None) -> Descriptors:
    """Divide the file descriptors of this process between clients and the service.

    Args:
        wanted: Connections that the operator allows.
        limit: File descriptors that the process may open, or None to use the system's limit.
    """
    if limit is None:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    reserved = max(LEAST_RESERVED, limit // 4)
    return Descriptors(max(1, min(wanted, limit - reserved)), max(8, min(MOST_BACKLOG, (reserved - 48) // 2)))


def raise_descriptor_limit() -> None:
    """Raise the soft limit of open files to the hard limit (at most 65,536)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65536 if hard == resource.RLIM_INFINITY else min(hard, 65536)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class Limited(Protocol):
    """The interface of a connection that this module uses."""

    address: str
    # True if a known caller has sent a request over this connection.
    admitted: bool
    # Name of the last known caller, or an empty string.
    caller: str

    @property
    def idle(self) -> bool:
        """Return True if the connection is neither receiving nor answering a request."""

    @property
    def unfinished(self) -> bool:
        """Whether a part of a request has come, and the rest has not."""

    def overdue(self, now: float) -> bool:
        """Close or answer the connection if it has taken too long. Return True if it had."""

    def drop(self) -> None:
        """Close the connection immediately."""


class Connections:
    """The open connections of one worker.

    Args:
        most: Maximum number of concurrent connections.
        most_per_address: Maximum number of concurrent connections of one address.
        counted: Called with the reason of each connection that was closed or refused.
    """

    def __init__(self, most: int, most_per_address: int, counted: Any = None) -> None:
        self.most, self.most_per_address = most, most_per_address
        self._count = counted or (lambda reason: None)
        self._open: dict[Limited, None] = {}  # The dict keeps the order of arrival.
        self._strangers: dict[Limited, None] = {}
        self._by_address: dict[str, dict[Limited, None]] = {}

    def __len__(self) -> int:
        return len(self._open)

    def add(self, connection: Limited) -> bool:
        """Count a new connection, if necessary in place of an older one. Return False if full."""
        mine = self._by_address.get(connection.address)
        if mine is not None and len(mine) >= self.most_per_address and not self._make_room(mine):
            self._count("connections-per-address")
            return False
        if len(self._open) >= self.most and not self._make_room_anywhere():
            self._count("connections")
            return False
        self._open[connection] = self._strangers[connection] = None
        self._by_address.setdefault(connection.address, {})[connection] = None
        return True

    def remove(self, connection: Limited) -> None:
        """Remove a connection that was closed."""
        self._open.pop(connection, None)
        self._strangers.pop(connection, None)
        mine = self._by_address.get(connection.address)
        if mine is not None:
            mine.pop(connection, None)
            if not mine:
                del self._by_address[connection.address]

    def admit(self, connection: Limited) -> None:
        """Record that a known caller uses the connection."""
        self._strangers.pop(connection, None)

    def sweep(self) -> None:
        """Close connections that take too long. Called once a second."""
        now = time.perf_counter()
        for connection in tuple(self._open):
            if connection.overdue(now):
                self._count("too-slow-client")

    def _make_room_anywhere(self) -> bool:
        if self._strangers:
            return self._drop(next(iter(self._strangers)))
        # A caller with many addresses has few connections from each, so it is looked for among all.
        return self._make_room(max(self._by_address.values(), key=len)) or self._make_room(self._open)

    def _make_room(self, among: dict[Limited, None]) -> bool:
        """Close one connection and return True, or return False if none can be closed.

        Candidates, in this order: the oldest connection without an admitted caller, the oldest idle
        one, the oldest unfinished one of a caller with more than half of the connections. Requests
        that are being answered end soon, and ``Shares`` limits their number.
        """
        for connection in among:
            if not connection.admitted:
                return self._drop(connection)
        for connection in among:
            if connection.idle:
                return self._drop(connection)
        ((most, count),) = Counter(connection.caller for connection in among).most_common(1)
        if most == NOBODY.name or 2 * count <= len(among):
            return False
        oldest = next((connection for connection in among if connection.caller == most and connection.unfinished), None)
        return oldest is not None and self._drop(oldest)

    def _drop(self, connection: Limited) -> bool:
        self._count("evicted")
        self.remove(connection)
        connection.drop()
        return True
