"""The service in a thread with its own connections, and clients that control each byte."""

import json
import socket
import threading
import time
from typing import Any

import uvicorn

from serving.app import create_app
from serving.settings import Settings
from tests.serving.harness import NAME
from tests.waiting import wait_for

RAW = {"shop": "b", "hour": 1, "sales_7d": 1.5, "late_rate": 0, "temp": -3, "orders": 2}
ASKED = {"shop": "a", "customer": 7, "hour": 9}
MODEL_INPUT = {"hour": 9, "sales_7d": 10.0, "late_rate": 0.25, "temp": 3.5, "orders": 4, "shop": "a"}
PATH = f"/models/{NAME}/predict"
MODELS = {NAME, "nans", "strict", "ruled", "split"}


class Service:
    """The service in a thread.

    ``ordinary`` lists the paths of the requests that the ordinary path handled.
    """

    def __init__(self, settings: Settings, idle: int) -> None:
        self.ordinary: list[str] = []
        self.gateway = create_app(settings)
        self.server = uvicorn.Server(
            uvicorn.Config(
                self.gateway,
                http="serving.http.connection:Connection",
                port=0,
                log_level="warning",
                access_log=False,
                timeout_keep_alive=idle,
            )
        )
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        wait_for(lambda: self.server.started, 60)
        self.port = self.server.servers[0].sockets[0].getsockname()[1]
        context = self.gateway.context
        wait_for(
            lambda: (
                context.registry.routes.keys() == MODELS
                and context.registry.routes["split"].arms
                and context.lookup.state == "ready"
            ),
            60,
        )
        context.lookup.service("shops_v1")  # as after the first look-up

    @property
    def looking_up(self) -> bool:
        return bool(self.gateway.fast_path._looking_up)

    def end(self) -> None:
        self.server.should_exit = True
        self.thread.join(20)
        assert not self.thread.is_alive()


class Client:
    """A connection with full control over the sent bytes."""

    def __init__(self, service: Service) -> None:
        self.socket = socket.create_connection(("127.0.0.1", service.port), timeout=30)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._came = b""

    def send(self, *parts: bytes, pause: float = 0.02) -> None:
        for number, part in enumerate(parts):
            time.sleep(pause if number else 0)
            self.socket.sendall(part)

    def answer(self) -> tuple[int, dict[str, str], Any]:
        while b"\r\n\r\n" not in self._came:
            self._more()
        head, self._came = self._came.split(b"\r\n\r\n", 1)
        status, *lines = head.decode().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        length = int(headers["content-length"])
        while len(self._came) < length:
            self._more()
        content, self._came = self._came[:length], self._came[length:]
        return int(status.split()[1]), headers, json.loads(content)

    def _more(self) -> None:
        more = self.socket.recv(65536)
        if not more:
            raise ConnectionError("closed")
        self._came += more

    def ask(self, *instances: dict[str, Any], **headers: str) -> tuple[int, dict[str, str], Any]:
        self.send(request(*instances, **headers))
        return self.answer()


def request(*instances: dict[str, Any], path: str = PATH, **headers: str) -> bytes:
    content = json.dumps({"instances": instances}).encode()
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{lines}Content-Length: {len(content)}\r\n\r\n".encode() + content
    )


def same(answered: tuple[int, dict[str, str], Any]) -> tuple[int, list[str], Any]:
    """Return the parts that two answers to one request have in common."""
    status, headers, body = answered
    for prediction in body.get("predictions", ()):
        assert len(prediction.pop("prediction_id")) == 32
    return status, [name for name in headers if name != "connection"], body
