"""Put a constant load on a service and keep each answer, to find out what was lost and when."""

import http.client
import json
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit


@dataclass
class Load:
    """Context manager that requests a URL until it is stopped.

    Some callers keep their connection, like an application's connection pool or a proxy, and
    therefore meet a server that is shutting down. The others open a new connection for each
    request. No caller retries: a request without a 200 is lost.

    Attributes:
        answers: (when, duration, status) of each request. Without a status, the error's name takes
            its place.
    """

    url: str
    body: dict[str, Any]
    headers: dict[str, str]
    keeping: int = 2
    making: int = 1
    pause: float = 0.05
    answers: list[tuple[float, float, int | str]] = field(default_factory=list)

    def __enter__(self) -> "Load":
        self._ended = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=[n < self.keeping], daemon=True)
            for n in range(self.keeping + self.making)
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(60)

    @property
    def lost(self) -> dict[int | str, int]:
        """Return the number of requests that did not end with 200, by status."""
        return dict(Counter(status for _, _, status in self.answers if status != 200))

    def answered_since(self, moment: float) -> int:
        return sum(1 for when, _, status in self.answers if when > moment and status == 200)

    def _ask(self, keeps: bool) -> None:
        host, path, body = urlsplit(self.url).netloc, urlsplit(self.url).path, json.dumps(self.body)
        headers = {**self.headers, "Content-Type": "application/json"} | ({} if keeps else {"Connection": "close"})
        connection = http.client.HTTPConnection(host, timeout=60)
        while not self._ended.is_set():
            started = time.time()
            try:
                connection.request("POST", path, body, headers)
                answer = connection.getresponse()
                answer.read()
                status: int | str = answer.status
            except (OSError, http.client.HTTPException) as error:
                status = type(error).__name__
                connection.close()
            self.answers.append((started, time.time() - started, status))
            if not keeps:
                connection.close()
            self._ended.wait(self.pause)
        connection.close()
