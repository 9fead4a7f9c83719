"""Callers that keep asking, each over a connection of its own, and what they were told."""

import http.client
import json
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from tests.serving.stand import NAME


class Told(NamedTuple):
    """An answer: when it was asked for and there (``time.monotonic()``), its status and its document."""

    asked: float
    there: float
    status: int
    said: Any


class Caller(threading.Thread):
    """Asks for one instance again and again until ``leave``.

    ``lost`` are requests on a connection that had been answered on before, and were not; ``refused`` those of a connection that was made just then: no
    process had taken it in, so nothing of it was accepted.
    """

    def __init__(self, port: int, instance: dict[str, Any], *, until_nobody_listens: bool = False, check: Callable[[Told], str | None] | None = None) -> None:
        super().__init__(daemon=True)
        self.port, self.until_nobody_listens, self.check = port, until_nobody_listens, check
        self.told: list[Told] = []
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
            asked = time.monotonic()
            try:
                connection.request("POST", f"/models/{NAME}/predict", self._body, {"Content-Type": "application/json"})
                answer = connection.getresponse()
                said = json.loads(answer.read())
            except (OSError, http.client.HTTPException, ValueError) as error:
                if used:
                    self.lost.append(f"{type(error).__name__}: {error}")
                else:
                    self.refused += 1
                connection.close()
                continue
            told = Told(asked, time.monotonic(), answer.status, said)
            used = True
            self.told.append(told)
            if answer.status != 200:
                self.wrong.append(f"{answer.status} {said}")
            elif self.check and (fault := self.check(told)):
                self.wrong.append(fault)
            if answer.headers.get("Connection") == "close":
                self.asked_to_leave += 1
                connection.close()
