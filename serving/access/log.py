"""Write one JSON line per request: the caller, the path and the outcome.

Lines never contain the query, the body, a key or a header.

A request only appends a tuple. A thread writes the lines, so that a slow disk or terminal does not
delay answers.
"""

import asyncio
import json
import sys
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple, TextIO

import orjson

from serving import metrics

Mode = Literal["off", "errors", "all"]
# Maximum number of queued lines. Further lines are dropped and counted, so that a flood of requests
# does not increase memory use.
CAPACITY = 50_000
# Maximum lengths in characters. A path, or the client address that a proxy reports, can otherwise
# be as long as a request head.
LONGEST_PATH, LONGEST_CLIENT = 300, 100


class Line(NamedTuple):
    at: float  # Seconds since 1970.
    request_id: str
    trace_parent: str
    caller: str
    client: str
    method: str
    path: str
    status: int
    seconds: float
    body_bytes: int
    # The kind of the problem, or an empty string if the request succeeded.
    reason: str

    def document(self) -> dict[str, Any]:
        """Return the line's JSON object."""
        return {
            "time": datetime.fromtimestamp(self.at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "event": "request",
            "request_id": self.request_id,
            "trace_id": self.trace_parent[3:35],
            "span_id": self.trace_parent[36:52],
            "caller": self.caller,
            "client": self.client,
            "method": self.method,
            "path": self.path,
            "status": self.status,
            "ms": round(self.seconds * 1000, 3),
            "body_bytes": self.body_bytes,
            **({"reason": self.reason} if self.reason else {}),
        }


class AccessLog:
    """The access log of one worker.

    Args:
        mode: ``off``, ``errors`` (only answers with a status of 400 or more) or ``all``.
        stream: Where lines are written. The default is standard output.
    """

    def __init__(self, mode: Mode, stream: TextIO | None = None) -> None:
        self.all, self.errors = mode == "all", mode != "off"
        self._stream = stream
        self._lines: list[Line] = []
        self._writing: asyncio.Task[None] | None = None

    def note(self, line: Line) -> None:
        """Queue a line if the mode includes it."""
        if not (self.all or (self.errors and line.status >= 400)):
            return
        if len(self._lines) >= CAPACITY:
            metrics.access_log_dropped.inc()
            return
        if len(line.path) > LONGEST_PATH or len(line.client) > LONGEST_CLIENT:
            # Truncate here and not when the line is written: lines wait in memory while standard
            # output is blocked.
            line = line._replace(path=line.path[:LONGEST_PATH], client=line.client[:LONGEST_CLIENT])
        self._lines.append(line)

    def flush_soon(self) -> None:
        """Write the lines from a thread. The event loop calls this once a second."""
        if self._lines and (self._writing is None or self._writing.done()):
            self._writing = asyncio.get_running_loop().create_task(asyncio.to_thread(self._write, self._taken()))

    def flush(self) -> None:
        """Write the queued lines."""
        self._write(self._taken())

    def _taken(self) -> list[Line]:
        lines, self._lines = self._lines, []
        return lines

    def _write(self, lines: list[Line]) -> None:
        if not lines:
            return
        stream = self._stream or sys.stdout
        try:
            stream.write("".join(_text(line) for line in lines))
            stream.flush()
        except (OSError, ValueError):
            # Standard output is closed or its disk is full. A log that cannot be written must not
            # stop the service.
            metrics.access_log_dropped.inc(len(lines))


def _text(line: Line) -> str:
    """Return a line's JSON in ASCII.

    With an encoding other than UTF-8, one non-ASCII character of a path would make the stream
    reject the whole batch.
    """
    text = orjson.dumps(line.document())
    return (text.decode() if text.isascii() else json.dumps(line.document())) + "\n"
