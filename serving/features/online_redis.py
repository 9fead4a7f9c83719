"""Read Feast's online store in Redis.

All views of a request are read in one round trip, and concurrent requests are sent in one write.

Each worker has one connection with ordered requests and answers. If it is lost, the next request
opens a new one.
"""

import asyncio
import json
import ssl
from collections import deque
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import hiredis
import mmh3

from serving.features.feast_registry import EntityGroup, FeatureView, NotPlainError
from serving.features.feast_wire import moment, values
from serving.features.feature_values import FeatureValues

# Time limit for a connection, and for an answer.
SECONDS = 2.0
KNOWN = {"db", "ssl", "password", "username", "ssl_ca_certs", "ssl_cert_reqs"}


class RedisOnline:
    """The online store of a project in Redis.

    Args:
        connection_string: In Feast's format, ``host:6379,db=0,ssl=true,password=...``.

    Raises:
        NotPlainError: There are several hosts, or an option that only Feast's own client supports.
    """

    def __init__(self, connection_string: str, project: str) -> None:
        self.project = project.encode()
        parts = connection_string.split(",")
        hosts, options = (
            [part for part in parts if "=" not in part],
            dict(part.split("=", 1) for part in parts if "=" in part),
        )
        if len(hosts) != 1 or not options.keys() <= KNOWN:
            raise NotPlainError(f"Redis with {len(hosts)} hosts and the options {', '.join(sorted(options))}")
        self._host, _, port = hosts[0].rpartition(":")
        self._port = int(port)
        self._options = {name: _plain(text) for name, text in options.items()}
        self._connection: _RedisConnection | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connecting: asyncio.Lock | None = None

    def read_at_once(self, groups: Sequence[EntityGroup], keys: Sequence[Sequence[bytes]]) -> None:
        """Return None, because Redis cannot answer without waiting."""

    async def read(
        self, groups: Sequence[EntityGroup], keys: Sequence[Sequence[bytes]]
    ) -> list[dict[bytes, FeatureValues]]:
        """Return the stored rows of each group's entities.

        Entities without a row and views without a row are omitted.

        Raises:
            OSError: The store is unavailable (including a timeout) or returns an invalid answer.
        """
        commands = []
        for group, mine in zip(groups, keys, strict=True):
            begin, end = _asking(group)
            for key in mine:
                name = key + self.project
                commands.append(b"%b$%d\r\n%b\r\n%b" % (begin, len(name), name, end))
        if not commands:
            return [{} for _ in groups]
        connection = self._connection
        if connection is None or connection.lost or self._loop is not asyncio.get_running_loop():
            connection = await self._connected()
        replies = iter(await connection.ask(b"".join(commands), len(commands)))
        return [
            {key: row for key in mine if (row := _row(group, next(replies))) is not None}
            for group, mine in zip(groups, keys, strict=True)
        ]

    async def _connected(self) -> "_RedisConnection":
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop, self._connecting, self._connection = loop, asyncio.Lock(), None
        assert self._connecting is not None
        async with self._connecting:
            if self._connection is None or self._connection.lost:
                try:
                    async with asyncio.timeout(SECONDS):
                        _, connection = await loop.create_connection(
                            _RedisConnection, self._host, self._port, ssl=self._tls()
                        )
                except TimeoutError:
                    raise TimeoutError(f"Redis did not answer within {SECONDS:g} s") from None
                for command in self._greeting():
                    await connection.ask(_packed(command), 1)
                self._connection = connection
            return self._connection

    def _greeting(self) -> list[tuple[bytes, ...]]:
        commands: list[tuple[bytes, ...]] = []
        if self._options.get("password"):
            user = (str(self._options["username"]).encode(),) if self._options.get("username") else ()
            commands.append((b"AUTH", *user, str(self._options["password"]).encode()))
        if self._options.get("db"):
            commands.append((b"SELECT", str(self._options["db"]).encode()))
        return commands

    def _tls(self) -> ssl.SSLContext | None:
        if not self._options.get("ssl"):
            return None
        context = ssl.create_default_context(cafile=self._options.get("ssl_ca_certs"))
        if self._options.get("ssl_cert_reqs") == "none":
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context


class _RedisConnection(asyncio.Protocol):
    def __init__(self) -> None:
        self.lost = self._watched = False
        self._reader = hiredis.Reader()
        self._waiting: deque[tuple[asyncio.Future[list[Any]], int, list[Any], float]] = deque()
        self._transport: Any = None
        self._written: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def ask(self, commands: bytes, count: int) -> "asyncio.Future[list[Any]]":
        """Return a future of the replies to ``count`` packed commands.

        Raises:
            OSError: The connection is lost, or a reply is an error. If the replies are late, the
                connection is closed, and all waiting requests get the error.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[Any]] = loop.create_future()
        if self.lost:
            future.set_exception(ConnectionResetError("the connection to Redis is lost"))
            return future
        now = loop.time()
        self._waiting.append((future, count, [], now))
        self._watch(loop, now + SECONDS)
        self._written.append(commands)
        if len(self._written) == 1:
            loop.call_soon(self._write)
        return future

    def abort(self) -> None:
        self.lost = True
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        while (reply := self._reader.gets()) is not False:
            future, count, replies, _ = self._waiting[0]
            replies.append(reply)
            if len(replies) < count:
                continue
            self._waiting.popleft()
            if future.done():  # The request was cancelled.
                continue
            wrong = next((one for one in replies if isinstance(one, hiredis.ReplyError)), None)
            if wrong is None:
                future.set_result(replies)
            else:
                future.set_exception(OSError(f"Redis says {wrong}"))

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True
        self._tell_all(error or ConnectionResetError("Redis closed the connection"))

    def _check_timeouts(self) -> None:
        self._watched = False
        if self.lost or not self._waiting:
            return
        loop = asyncio.get_running_loop()
        due = self._waiting[0][3] + SECONDS
        if loop.time() < due:
            self._watch(loop, due)
            return
        self.abort()
        self._tell_all(TimeoutError(f"Redis did not answer within {SECONDS:g} s"))

    def _watch(self, loop: asyncio.AbstractEventLoop, due: float) -> None:
        """Use one timer for all waiting requests, because a timer each costs as much as parsing."""
        if not self._watched:
            self._watched = True
            loop.call_at(due, self._check_timeouts)

    def _tell_all(self, error: Exception) -> None:
        while self._waiting:
            future = self._waiting.popleft()[0]
            if not future.done():
                future.set_exception(error)

    def _write(self) -> None:
        written, self._written = self._written, []
        if not self.lost:
            self._transport.write(b"".join(written))


def _packed(arguments: tuple[bytes, ...]) -> bytes:
    return b"".join(
        (b"*%d\r\n" % len(arguments), *(b"$%d\r\n%b\r\n" % (len(argument), argument) for argument in arguments))
    )


@lru_cache(256)
def _asking(group: EntityGroup) -> tuple[bytes, bytes]:
    """Return the command that reads a group's views, split before and after the entity key."""
    fields = [name for view in group.views for name in _fields(view)]
    return b"*%d\r\n$5\r\nHMGET\r\n" % (len(fields) + 2), b"".join(
        b"$%d\r\n%b\r\n" % (len(name), name) for name in fields
    )


def _fields(view: FeatureView) -> tuple[bytes, ...]:
    """Return the hash fields of a view: its features and their time."""
    hashed = (mmh3.hash(f"{view.stored}:{feature}", signed=False).to_bytes(4, "little") for feature in view.features)
    return (*hashed, f"_ts:{view.stored}".encode())


def _row(group: EntityGroup, answer: list[bytes | None]) -> FeatureValues | None:
    features, end = FeatureValues({}, {}), -1
    for view in group.views:
        begin, end = end + 1, end + 1 + len(view.features)
        at = moment(answer[end])
        if at is not None:
            features.times[view.name] = at
            features.values.update(zip(view.features, values(answer[begin:end]), strict=True))
    return features if features.times else None


def _plain(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
