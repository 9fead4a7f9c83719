"""Generate load over HTTP/1.1, either in a closed loop or at a fixed rate.

In a closed loop each connection sends its next request when the previous one is answered. The
generator runs in a separate process (``python -m bench.load``). It writes prepared bytes and parses
only the status and the end of an answer. So it costs less than the servers that it measures.

At a fixed rate, latency is counted from the moment when a request was due. This avoids Gil Tene's
"coordinated omission": a stalled server must not delay the requests that measure it.
"""

import asyncio
import json
import sys
import time
from collections import deque
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Figures:
    """The measurements of a round.

    Latencies are in milliseconds. ``errors`` counts answers other than 200.
    """

    rps: float
    p50_ms: float
    p99_ms: float
    requests: int
    errors: int
    first_error: str = ""


class Connection(asyncio.Protocol):
    """One keep-alive connection that calls ``answered`` with status and body of each answer."""

    def __init__(self, answered) -> None:
        self.answered = answered
        self.lost: str | None = None
        self._buffer = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def ask(self, request: bytes) -> None:
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._buffer = self._buffer + data if self._buffer else data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end].lower()
            at = head.find(b"content-length:")
            if at >= 0:
                length = int(head[at + 15 :].split(b"\r\n", 1)[0])
                if len(self._buffer) < end + 4 + length:
                    return
                body, self._buffer = self._buffer[end + 4 : end + 4 + length], self._buffer[end + 4 + length :]
            else:  # chunked
                last = self._buffer.find(b"0\r\n\r\n", end + 4)
                if last < 0:
                    return
                body, self._buffer = self._buffer[end + 4 : last], self._buffer[last + 5 :]
            self.answered(self, int(head[9:12]), body)

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = str(error or "closed")


def request(port: int, path: str, body: dict[str, Any], headers: dict[str, str] | None = None) -> bytes:
    """Return the bytes of a POST request with a JSON body."""
    content = json.dumps(body).encode()
    lines = {
        "Host": f"127.0.0.1:{port}",
        "Content-Type": "application/json",
        "Content-Length": str(len(content)),
        **(headers or {}),
    }
    return (
        f"POST {path} HTTP/1.1\r\n".encode()
        + "".join(f"{name}: {value}\r\n" for name, value in lines.items()).encode()
        + b"\r\n"
        + content
    )


async def closed(port: int, requests: list[bytes], *, clients: int, seconds: float, warm: float) -> Figures:
    """Run a closed loop: each client sends its next request immediately after an answer.

    The first ``warm`` seconds are not counted.
    """
    loop = asyncio.get_running_loop()
    taken: list[float] = []
    errors: list[str] = []
    started: dict[Connection, float] = {}
    begin = time.perf_counter() + warm
    end = begin + seconds
    number = 0

    def ask(connection: Connection) -> None:
        nonlocal number
        number += 1
        started[connection] = time.perf_counter()
        connection.ask(requests[number % len(requests)])

    def answered(connection: Connection, status: int, body: bytes) -> None:
        now = time.perf_counter()
        if now >= begin:
            taken.append(now - started[connection])
            if status != 200:
                errors.append(f"{status} {body[:300]!r}")
        if now < end:
            ask(connection)

    connections = [
        (await loop.create_connection(lambda: Connection(answered), "127.0.0.1", port))[1] for _ in range(clients)
    ]
    for connection in connections:
        ask(connection)
    await asyncio.sleep(warm + seconds)
    lost = [connection.lost for connection in connections if connection.lost]
    for connection in connections:
        connection.transport.abort()
    return _figures(taken, seconds, errors + [f"connection lost: {reason}" for reason in lost])


async def paced(port: int, requests: list[bytes], *, rate: float, clients: int, seconds: float, warm: float) -> Figures:
    """Send ``rate`` requests per second over ``clients`` connections.

    The rate does not depend on the answers. Latency is counted from when a request was due.
    """
    loop = asyncio.get_running_loop()
    taken: list[float] = []
    errors: list[str] = []
    due: dict[Connection, float] = {}
    # Connections are used in turn, so that none is idle for longer than a server keeps it.
    free: deque[Connection] = deque()
    waiting: list[float] = []
    start = time.perf_counter()
    count = 0

    def send(connection: Connection, at: float) -> None:
        nonlocal count
        due[connection] = at
        count += 1
        connection.ask(requests[count % len(requests)])

    def answered(connection: Connection, status: int, body: bytes) -> None:
        now = time.perf_counter()
        if now - start >= warm:
            taken.append(now - due[connection])
            if status != 200:
                errors.append(f"{status} {body[:300]!r}")
        if waiting:
            send(connection, waiting.pop(0))
        else:
            free.append(connection)

    free.extend(
        [(await loop.create_connection(lambda: Connection(answered), "127.0.0.1", port))[1] for _ in range(clients)]
    )
    connections, start, sent = list(free), time.perf_counter(), 0
    while (now := time.perf_counter()) - start < warm + seconds:
        while sent < (now - start) * rate:
            at = start + sent / rate
            sent += 1
            if free:
                send(free.popleft(), at)
            else:
                waiting.append(at)
        await asyncio.sleep(0.0005)
    lost = [connection.lost for connection in connections if connection.lost]
    for connection in connections:
        connection.transport.abort()
    return _figures(taken, seconds, errors + [f"connection lost: {reason}" for reason in lost])


def _figures(taken: list[float], seconds: float, errors: list[str]) -> Figures:
    p50, p99 = (float(np.percentile(taken, share)) * 1000 if taken else float("nan") for share in (50, 99))
    return Figures(
        round(len(taken) / seconds, 1),
        round(p50, 3),
        round(p99, 3),
        len(taken),
        len(errors),
        errors[0] if errors else "",
    )


def main() -> None:
    """Read a plan as JSON from standard input, run it, and print the measurements.

    The plan contains ``port``, ``path``, ``bodies``, ``seconds``, ``warm``, ``clients``, and
    optionally ``rate`` and ``headers``.
    """
    import uvloop

    plan = json.load(sys.stdin)
    requests = [request(plan["port"], plan["path"], body, plan.get("headers")) for body in plan["bodies"]]
    timing = {key: plan[key] for key in ("clients", "seconds", "warm")}
    run = (
        paced(plan["port"], requests, rate=plan["rate"], **timing)
        if plan.get("rate")
        else closed(plan["port"], requests, **timing)
    )
    print(json.dumps(asdict(uvloop.run(run))))


if __name__ == "__main__":
    main()
