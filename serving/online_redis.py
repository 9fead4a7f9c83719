"""Feast's online store in Redis: all views of a request in one round trip, and the requests of a moment in one write.

One connection for each worker, over which requests and answers go in order; a lost one is made again by the next request.
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

from serving.feast_registry import Group, NotPlain, View
from serving.feast_wire import moment, values
from serving.looked_up import LookedUp

SECONDS = 2.0  # for a connection, and for an answer
KNOWN = {"db", "ssl", "password", "username", "ssl_ca_certs", "ssl_cert_reqs"}


class RedisOnline:
    """
    Args:
        connection_string: as Feast has it, ``host:6379,db=0,ssl=true,password=...``.

    Raises:
        NotPlain: it has more hosts than one, or an option that only Feast's own client knows.
    """

    def __init__(self, connection_string: str, project: str) -> None:
        self.project = project.encode()
        parts = connection_string.split(",")
        hosts, options = [part for part in parts if "=" not in part], dict(part.split("=", 1) for part in parts if "=" in part)
        if len(hosts) != 1 or not options.keys() <= KNOWN:
            raise NotPlain(f"Redis with {len(hosts)} hosts and the options {', '.join(sorted(options))}")
        self._host, _, port = hosts[0].rpartition(":")
        self._port = int(port)
        self._options = {name: _plain(text) for name, text in options.items()}
        self._connection: _Connection | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connecting: asyncio.Lock | None = None

    def read_at_once(self, groups: Sequence[Group], keys: Sequence[Sequence[bytes]]) -> None:
        """Nothing: its answers are waited for."""

    async def read(self, groups: Sequence[Group], keys: Sequence[Sequence[bytes]]) -> list[dict[bytes, LookedUp]]:
        """What the store has of each group's entities; one without a row is left out, and so is a view that has none.

        Raises:
            OSError: the store does not answer (also a timeout), or not as it should.
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
        return [{key: row for key in mine if (row := _row(group, next(replies))) is not None} for group, mine in zip(groups, keys, strict=True)]

    async def _connected(self) -> "_Connection":
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop, self._connecting, self._connection = loop, asyncio.Lock(), None
        assert self._connecting is not None
        async with self._connecting:
            if self._connection is None or self._connection.lost:
                try:
                    async with asyncio.timeout(SECONDS):
                        _, connection = await loop.create_connection(_Connection, self._host, self._port, ssl=self._tls())
                except TimeoutError:
                    raise TimeoutError(f"Redis did not answer within {SECONDS:g} s") from None
                for command in self._greeting():
                    await connection.ask(_packed(command), 1)
                self._connection = connection
            return self._connection

    def _greeting(self) -> list[tuple[bytes, ...]]:
        said: list[tuple[bytes, ...]] = []
        if self._options.get("password"):
            user = (str(self._options["username"]).encode(),) if self._options.get("username") else ()
            said.append((b"AUTH", *user, str(self._options["password"]).encode()))
        if self._options.get("db"):
            said.append((b"SELECT", str(self._options["db"]).encode()))
        return said

    def _tls(self) -> ssl.SSLContext | None:
        if not self._options.get("ssl"):
            return None
        context = ssl.create_default_context(cafile=self._options.get("ssl_ca_certs"))
        if self._options.get("ssl_cert_reqs") == "none":
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context


class _Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self.lost = self._watched = False
        self._reader = hiredis.Reader()
        self._waiting: deque[tuple[asyncio.Future[list[Any]], int, list[Any], float]] = deque()
        self._transport: Any = None
        self._written: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def ask(self, commands: bytes, count: int) -> "asyncio.Future[list[Any]]":
        """The replies to ``count`` packed commands.

        Raises:
            OSError: the connection is lost, they do not come in time (then it is given up, and whoever else waits on it is told, too), or one is an error.
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
            if future.done():  # nobody waits any more
                continue
            wrong = next((one for one in replies if isinstance(one, hiredis.ReplyError)), None)
            if wrong is None:
                future.set_result(replies)
            else:
                future.set_exception(OSError(f"Redis says {wrong}"))

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True
        self._tell_all(error or ConnectionResetError("Redis closed the connection"))

    def _look_for_late_ones(self) -> None:
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
        """One timer for all that wait: one for each would cost as much as taking its answer apart."""
        if not self._watched:
            self._watched = True
            loop.call_at(due, self._look_for_late_ones)

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
    return b"".join((b"*%d\r\n" % len(arguments), *(b"$%d\r\n%b\r\n" % (len(argument), argument) for argument in arguments)))


@lru_cache(256)
def _asking(group: Group) -> tuple[bytes, bytes]:
    """What stands before and behind the entity in the command that reads a group's views."""
    fields = [name for view in group.views for name in _fields(view)]
    return b"*%d\r\n$5\r\nHMGET\r\n" % (len(fields) + 2), b"".join(b"$%d\r\n%b\r\n" % (len(name), name) for name in fields)


def _fields(view: View) -> tuple[bytes, ...]:
    """The hash's fields of a view: its features, and when they are of."""
    hashed = (mmh3.hash(f"{view.stored}:{feature}", signed=False).to_bytes(4, "little") for feature in view.features)
    return (*hashed, f"_ts:{view.stored}".encode())


def _row(group: Group, answer: list[bytes | None]) -> LookedUp | None:
    found, end = LookedUp({}, {}), -1
    for view in group.views:
        begin, end = end + 1, end + 1 + len(view.features)
        at = moment(answer[end])
        if at is not None:
            found.times[view.name] = at
            found.values.update(zip(view.features, values(answer[begin:end]), strict=True))
    return found if found.times else None


def _plain(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
