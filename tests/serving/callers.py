"""Callers that send requests continuously, each on its own connection, and keep the answers."""

import http.client
import json
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from tests.serving.harness import NAME


class TimedResponse(NamedTuple):
    """An answer with its status and document.

    It has the times of the request and of the answer (``time.monotonic()``).
    """

    sent_at: float
    received_at: float
    status: int
    body: Any


class LoadThread(threading.Thread):
    """Sends one instance repeatedly until ``leave``.

    ``lost`` are unanswered requests on a connection that had been answered before. ``refused`` are
    unanswered requests on a new connection: no process had accepted it, so nothing on it was
    accepted.
    """

    def __init__(
        self,
        port: int,
        instance: dict[str, Any],
        *,
        until_nobody_listens: bool = False,
        check: Callable[[TimedResponse], str | None] | None = None,
    ) -> None:
        super().__init__(daemon=True)
        self.port, self.until_nobody_listens, self.check = port, until_nobody_listens, check
        self.responses: list[TimedResponse] = []
        self.lost: list[str] = []
        self.wrong: list[str] = []
        self.refused = self.asked_to_leave = 0
        self._body = json.dumps({"instances": [instance]})
        self._leave = threading.Event()

    def leave(self) -> None:
        self._leave.set()

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        used = False
        while not self._leave.is_set():
            try:
                if connection.sock is None:
                    used = False
                    connection.connect()
            except OSError:
                if self.until_nobody_listens:
                    return
                self.refused += 1
                time.sleep(0.05)
                continue
            sent_at = time.monotonic()
            try:
                connection.request("POST", f"/models/{NAME}/predict", self._body, {"Content-Type": "application/json"})
                answer = connection.getresponse()
                body = json.loads(answer.read())
            except (OSError, http.client.HTTPException, ValueError) as error:
                if used:
                    self.lost.append(f"{type(error).__name__}: {error}")
                else:
                    self.refused += 1
                connection.close()
                continue
            response = TimedResponse(sent_at, time.monotonic(), answer.status, body)
            used = True
            self.responses.append(response)
            if answer.status != 200:
                self.wrong.append(f"{answer.status} {body}")
            elif self.check and (fault := self.check(response)):
                self.wrong.append(fault)
            if answer.headers.get("Connection") == "close":
                self.asked_to_leave += 1
                connection.close()
