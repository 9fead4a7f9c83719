"""Send valid and invalid requests to serving for a long time. `make soak-serving [MINUTES=30]`

The soak fails on a status above 499 other than a 503 with Retry-After, and on a request without an
answer in time. It also fails if memory grows by 1 MiB per minute or more after the warm-up. The
result is written to bench/results/serving_soak.json.
"""

import argparse
import http.client
import json
import random
import socket
import statistics
import struct
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from bench import result, serving_features, serving_model, serving_peers

PACKAGES = ("onnxruntime", "uvicorn", "uvloop", "httptools", "orjson", "numpy", "pyarrow")
CALLERS, PATIENCE = 6, 60.0
# This share of the time, at most WARM_MOST seconds, is the warm-up, when allocators and caches
# fill.
WARM_SHARE = 0.25
WARM_MOST = 300.0
MOST_GROWTH = 1.0  # MiB per minute
PATH = f"/models/{serving_model.NAME}/predict"
V2 = f"/v2/models/{serving_model.NAME}/infer"
Request = tuple[str, str, bytes, dict[str, str]]
JSON = {"Content-Type": "application/json"}


@dataclass
class Observations:
    """The responses and faults that the callers saw, shared by their threads."""

    statuses: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def note(self, kind: str, status: int, answer: bytes, headers: Any) -> None:
        self.statuses[f"{kind} {status}"] += 1
        if status >= 500 and not (status == 503 and headers.get("Retry-After")):
            self.faults.append(f"{kind}: {status} {answer[:300]!r}")


def good(draw: random.Random) -> dict[str, Any]:
    row = serving_model.samples(50)[draw.randrange(50)].tolist()
    return serving_features.body(row)["instances"][0]


def requests(draw: random.Random) -> tuple[str, Request]:
    """Return a kind of request and a request of that kind. At least half are valid."""
    instance = good(draw)
    whole = dict(zip(serving_model.FEATURES, serving_model.samples(50)[draw.randrange(50)].tolist(), strict=True))
    tensor = {"name": "numeric", "shape": [1, len(whole)], "datatype": "FP32", "data": list(whole.values())}
    makers: dict[str, Callable[[], Request]] = {
        "raw": lambda: ("POST", PATH, _json({"instances": [whole] * draw.randint(1, 20)}), JSON),
        "looked up": lambda: ("POST", PATH, _json({"instances": [instance] * draw.randint(1, 5)}), JSON),
        "tensors": lambda: ("POST", V2, _json({"inputs": [tensor]}), JSON),
        "binary tensors": lambda: _binary(list(whole.values())),
        "unknown entity": lambda: (
            "POST",
            PATH,
            _json({"instances": [instance | {"customer": draw.randrange(10**6, 10**9)}]}),
            JSON,
        ),
        "text for a number": lambda: (
            "POST",
            PATH,
            _json({"instances": [whole | {"f3": "x" * draw.randint(1, 5000)}]}),
            JSON,
        ),
        "a name of its own": lambda: (
            "POST",
            PATH,
            _json({"instances": [whole | {f"n{draw.getrandbits(64)}": 1}]}),
            JSON,
        ),
        "no JSON": lambda: ("POST", PATH, draw.randbytes(draw.randint(0, 3000)), JSON),
        "deep": lambda: ("POST", PATH, b"[" * draw.randint(1, 20_000), JSON),
        "too long": lambda: ("POST", PATH, b" " * (9 * 2**20), JSON),
        "wrong tensors": lambda: ("POST", V2, _json({"inputs": [tensor | {"shape": [draw.randint(-3, 9), 7]}]}), JSON),
        "wrong binary": lambda: (
            "POST",
            V2,
            draw.randbytes(500),
            {"Inference-Header-Content-Length": str(draw.randint(-5, 900))},
        ),
        "another model": lambda: (
            "POST",
            f"/models/m{draw.getrandbits(32)}/predict",
            _json({"instances": [whole]}),
            JSON,
        ),
        "another path": lambda: ("GET", f"/{draw.getrandbits(64)}", b"", {}),
        "metrics": lambda: ("GET", "/metrics", b"", {}),
        "ready": lambda: ("GET", "/ready", b"", {}),
        "wrong feedback": lambda: (
            "POST",
            "/feedback",
            _json({"model": serving_model.NAME, "labels": [{"label": "x"}]}),
            JSON,
        ),
    }
    kind = (
        draw.choice(["raw", "looked up", "tensors", "binary tensors"])
        if draw.random() < 0.5
        else draw.choice(list(makers))
    )
    return kind, makers[kind]()


def call(port: int, observations: Observations, until: float, seed: int) -> None:
    """Send requests over one kept connection until the end time.

    Now and then act as a caller that disconnects in the middle of a request.
    """
    draw = random.Random(seed)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    while time.monotonic() < until:
        if draw.random() < 0.01:
            _go_away(port, draw)
        kind, (method, path, body, headers) = requests(draw)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            observations.note(kind, answer.status, answer.read(), answer.headers)
        except TimeoutError:
            observations.faults.append(f"{kind}: no answer within {PATIENCE:g} s")
            connection.close()
        except (OSError, http.client.HTTPException) as error:
            # The server may close the connection before it has read all of a refused request.
            if kind not in ("too long", "no JSON", "wrong binary"):
                observations.faults.append(f"{kind}: {type(error).__name__}: {error}")
            connection.close()


def soak(server: serving_peers.Server, seconds: float) -> dict[str, Any]:
    """Load a running server and return the results.

    They include ``faults`` and ``growth_mib_per_minute``.
    """
    assert server.process is not None
    observations, process = Observations(), psutil.Process(server.process.pid)
    began = time.monotonic()
    until = began + seconds
    callers = [
        threading.Thread(target=call, args=(server.port, observations, until, seed), daemon=True)
        for seed in range(CALLERS)
    ]
    for caller in callers:
        caller.start()
    memory: list[tuple[float, float]] = []
    while time.monotonic() < until:
        memory.append((time.monotonic() - began, process.memory_info().rss / 2**20))
        time.sleep(min(2.0, seconds / 20))
    for caller in callers:
        caller.join(PATIENCE + 10)
    if hanging := sum(caller.is_alive() for caller in callers):
        observations.faults.append(f"{hanging} callers hang")
    warm = min(WARM_SHARE * seconds, WARM_MOST)
    later = [(at, size) for at, size in memory if at >= warm]
    growth = statistics.linear_regression(*zip(*later, strict=True)).slope * 60 if len(later) > 2 else 0.0
    return {
        "seconds": round(seconds), "requests": sum(observations.statuses.values()),
        "statuses": dict(sorted(observations.statuses.items())), "faults": len(observations.faults),
        "first_faults": observations.faults[:5], "growth_mib_per_minute": round(growth, 3),
        "memory_mib": {"warm": round(later[0][1]), "end": round(later[-1][1])},
    }  # fmt: skip


def started(model: Any, folder: Path) -> serving_peers.Server:
    """Start serving with half of the features in Feast's online store, in SQLite."""
    feature_store = serving_features.fill(folder / "features", "sqlite")
    server = serving_peers.airloop(
        folder,
        model,
        "soak",
        feature_store=feature_store,
        body=serving_features.body,
        join_keys=("customer",),
        looked_up=serving_features.LOOKED_UP,
    )
    server.start(None)
    return server


def _json(document: Any) -> bytes:
    return json.dumps(document).encode()


def _binary(row: list[float]) -> Request:
    raw = struct.pack(f"<{len(row)}f", *row)
    head = _json(
        {
            "inputs": [
                {
                    "name": "numeric",
                    "shape": [1, len(row)],
                    "datatype": "FP32",
                    "parameters": {"binary_data_size": len(raw)},
                }
            ]
        }
    )
    return "POST", V2, head + raw, {"Inference-Header-Content-Length": str(len(head))}


def _go_away(port: int, draw: random.Random) -> None:
    """Disconnect in the middle of a request."""
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as connection:
        connection.sendall(
            f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\n".encode() + b"x" * draw.randint(0, 4000)
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.serving_soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = started(serving_model.fit(), Path(folder))
        try:
            server.wait(600)
            figures = soak(server, arguments.minutes * 60)
        finally:
            server.end()
    target = result.write(
        "serving_soak", figures | {"aims": {"growth_mib_per_minute": MOST_GROWTH, "faults": 0}}, PACKAGES
    )
    print(
        json.dumps(
            {
                name: figures[name]
                for name in ("requests", "faults", "first_faults", "growth_mib_per_minute", "memory_mib")
            },
            indent=1,
        )
    )
    print(f"-> {target.relative_to(result.REPOSITORY)}")
    sys.exit(bool(figures["faults"]) or figures["growth_mib_per_minute"] >= MOST_GROWTH)


if __name__ == "__main__":
    main()
