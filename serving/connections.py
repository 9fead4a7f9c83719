"""Limit the connections of one worker, in number and in time, and keep file descriptors for the service itself.

A connection holds a file descriptor and memory before anyone knows who the client is. So a new connection is always accepted while an older one, on
which no request was admitted yet, can be closed for it. A client that was admitted loses its connection only to a full house of admitted clients, and
then only while it waits idle.
"""

import logging
import resource
import time
from typing import Any, NamedTuple, Protocol

log = logging.getLogger(__name__)

LEAST_RESERVED = 96  # file descriptors for models, the registry, the online store, logs and the event loop
MOST_BACKLOG = 2048


class Descriptors(NamedTuple):
    """How many of the process's file descriptors go where.

    Attributes:
        connections: for clients.
        backlog: connections that the kernel may queue. The event loop accepts them all in one step, so they count against the reserve.
    """

    connections: int
    backlog: int


def share_descriptors(wanted: int, limit: int | None = None) -> Descriptors:
    """Share the file descriptors of this process between clients and the service.

    Args:
        wanted: connections that the operator allows.
        limit: file descriptors that the process may open; None: ask the system.
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
    """A connection, as this module sees it."""

    address: str
    admitted: bool  # a request of a known caller came over it

    @property
    def idle(self) -> bool:
        """Whether no request is being received or answered."""

    def overdue(self, now: float) -> bool:
        """Close the connection, or answer it, if it has taken too long; give whether it had."""

    def drop(self) -> None:
        """Close the connection at once."""


class Connections:
    """The open connections of one worker.

    Args:
        most: connections at once.
        most_per_address: connections of one address at once.
        counted: called with the reason of each connection that was closed or refused.
    """

    def __init__(self, most: int, most_per_address: int, counted: Any = None) -> None:
        self.most, self.most_per_address = most, most_per_address
        self._count = counted or (lambda reason: None)
        self._open: dict[Limited, None] = {}  # a dict keeps the order in which they came
        self._strangers: dict[Limited, None] = {}
        self._by_address: dict[str, dict[Limited, None]] = {}

    def __len__(self) -> int:
        return len(self._open)

    def add(self, connection: Limited) -> bool:
        """Count a new connection, if need be in the place of an older one; False: there is no room for it."""
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
        """Forget a connection that was closed."""
        self._open.pop(connection, None)
        self._strangers.pop(connection, None)
        mine = self._by_address.get(connection.address)
        if mine is not None:
            mine.pop(connection, None)
            if not mine:
                del self._by_address[connection.address]

    def admit(self, connection: Limited) -> None:
        """Note that a known caller uses the connection."""
        self._strangers.pop(connection, None)

    def sweep(self) -> None:
        """Close what takes too long. Called once a second."""
        now = time.perf_counter()
        for connection in tuple(self._open):
            if connection.overdue(now):
                self._count("too-slow-client")

    def _make_room_anywhere(self) -> bool:
        if self._strangers:
            return self._drop(next(iter(self._strangers)))
        return self._make_room(max(self._by_address.values(), key=len))

    def _make_room(self, among: dict[Limited, None]) -> bool:
        """Close the oldest connection on which no caller was admitted, or else the oldest idle one."""
        for connection in among:
            if not connection.admitted:
                return self._drop(connection)
        for connection in among:
            if connection.idle:
                return self._drop(connection)
        return False

    def _drop(self, connection: Limited) -> bool:
        self._count("evicted")
        self.remove(connection)
        connection.drop()
        return True
