"""Attack a serving process on this machine at bounded rates (``python -m bench.attacks``).

The attacks run in a separate process, and each kind in its own thread until the time is over. Each
kind connects from its own loopback address, and only to loopback.
"""

import json
import random
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from bench import serving_model

PATIENCE = 3.0
INNER = b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"


def shapes(path: str) -> list[bytes]:
    """Return requests that two parsers may read differently.

    Each contains another request or is followed by one.
    """
    target = path.encode()
    post = b"POST %b HTTP/1.1\r\nHost: localhost\r\n" % target
    length = b"Content-Length: %d\r\n" % len(INNER)
    upgrade = b"Connection: Upgrade\r\nUpgrade: h2c\r\n"
    chunked = b"Transfer-Encoding: chunked\r\n"
    return [
        post + upgrade + length + b"\r\n" + INNER,
        post + b"Connection: upgrade, close\r\nUpgrade: websocket\r\n" + length + b"\r\n" + INNER,
        post + upgrade + chunked + b"\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(INNER), INNER),
        post + length + chunked + b"\r\n0\r\n\r\n" + INNER,
        post + chunked + length + b"\r\n0\r\n\r\n" + INNER,
        post + chunked + chunked + b"\r\n0\r\n\r\n" + INNER,
        post + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + INNER,
        post + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + INNER,
        post + length + length + b"\r\n" + INNER,
        post + b"Content-Length: +%d\r\n\r\n" % len(INNER) + INNER,
        post + b"Content-Length: 0\r\nX: a\r\n b\r\n\r\n" + INNER,
        post + b"Content-Length: 0\nX: a\r\n\r\n" + INNER,
        post + b"Host: elsewhere\r\nContent-Length: 0\r\n\r\n" + INNER,
        post + chunked + b"\r\n0\r\nX-API-Key: guess\r\n\r\n" + INNER,
        b"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost:80\r\n\r\n" + INNER,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + INNER,
    ]


class Attack:
    """The attackers' shared state: the target, the end time, and counts of the responses."""

    def __init__(self, port: int, path: str, key: str, until: float) -> None:
        self.port, self.path, self.key, self.until = port, path, key, until
        self.met: Counter[str] = Counter()

    def connect(self, number: int) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), PATIENCE, source_address=(f"127.0.1.{number}", 0))

    def every(self, seconds: float, one: Callable[[], Any], kind: str) -> None:
        """Repeat an attack at this interval, and count the outcomes."""
        while time.monotonic() < self.until:
            began = time.monotonic()
            try:
                outcome = one()
                self.met[f"{kind} {outcome}"] += 1
            except OSError as error:
                self.met[f"{kind} {type(error).__name__}"] += 1
            time.sleep(max(0.0, seconds - (time.monotonic() - began)))

    def smuggle(self) -> None:
        wanted = shapes(self.path)

        def one() -> str:
            with self.connect(1) as client:
                client.settimeout(0.5)
                client.sendall(random.choice(wanted))
                came = b""
                with suppress(OSError):
                    while more := client.recv(65536):
                        came += more
                return f"{came.count(b'HTTP/1.1 ')} answers"

        self.every(0.05, one, "smuggling")

    def slow_heads(self) -> None:
        held: list[socket.socket] = []

        def one() -> str:
            held.append(self.connect(2))
            held[-1].sendall(b"POST / HTTP/1.1\r\n")
            for client in list(held):
                try:
                    client.sendall(b"X")
                except OSError:
                    held.remove(client)
            return "held"

        self.every(0.1, one, "slow heads")

    def huge_heads(self) -> None:
        def one() -> str:
            with self.connect(3) as client:
                client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n" + random.choice([b"X: ", b"a:\r\n" * 100]))
                for _ in range(32):
                    client.sendall(b"a" * 32768)
                return "sent"

        self.every(0.5, one, "huge heads")

    def idle(self) -> None:
        held: list[socket.socket] = []

        def one() -> str:
            held.append(self.connect(4))
            if len(held) > 200:
                held.pop(0).close()
            return "held"

        self.every(0.02, one, "idle")

    def flood(self) -> None:
        """Send far more requests and rows with one key than it may."""
        rows = [dict(zip(serving_model.FEATURES, row, strict=True)) for row in serving_model.samples(100).tolist()]
        body = json.dumps({"instances": rows}).encode()
        head = f"POST {self.path} HTTP/1.1\r\nHost: a\r\nX-API-Key: {self.key}\r\nContent-Length: {len(body)}\r\n\r\n".encode()  # noqa: E501
        clients: list[socket.socket] = []

        def one() -> str:
            if not clients:
                clients.append(self.connect(5))
            try:
                clients[0].sendall(head + body)
                return _status(clients[0])
            except OSError:
                clients.pop().close()
                raise

        self.every(0.005, one, "flood")

    def heads_without_bodies(self) -> None:
        held: list[socket.socket] = []
        head = (
            f"POST {self.path} HTTP/1.1\r\nHost: a\r\nX-API-Key: {self.key}\r\nContent-Length: 4000000\r\n\r\n".encode()
        )

        def one() -> str:
            held.append(self.connect(6))
            held[-1].sendall(head + b" " * 10000)
            if len(held) > 100:
                held.pop(0).close()
            return "held"

        self.every(0.05, one, "heads without bodies")

    def run(self) -> Counter[str]:
        kinds = (self.smuggle, self.slow_heads, self.huge_heads, self.idle, self.flood, self.heads_without_bodies)
        threads = [threading.Thread(target=kind, daemon=True) for kind in kinds]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(0.0, self.until - time.monotonic()) + 2 * PATIENCE)
        return self.met


def _status(client: socket.socket) -> str:
    """Read a complete response and return its status."""
    came = b""
    while b"\r\n\r\n" not in came:
        if not (more := client.recv(65536)):
            raise ConnectionError("closed")
        came += more
    head, _, rest = came.partition(b"\r\n\r\n")
    left = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]) - len(rest)
    while left > 0:
        left -= len(client.recv(65536)) or left
    return head[9:12].decode()


def main() -> None:
    """Read a plan as JSON from standard input and write the counts of the responses.

    The plan contains ``port``, ``path``, ``key`` and ``seconds``.
    """
    plan = json.load(sys.stdin)
    met = Attack(plan["port"], plan["path"], plan["key"], time.monotonic() + plan["seconds"]).run()
    print(json.dumps(dict(sorted(met.items()))))


if __name__ == "__main__":
    main()
