"""A soak of serving: good and bad requests of every kind, for a long time. `make soak-serving [MINUTES=30]`

It fails on an answer above 499 that is not a 503 with Retry-After, on a request that gets no answer in time, and on memory that grows by a MiB a minute or
more once it is warm. The result goes to bench/results/serving_soak.json.
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
WARM_SHARE = 0.25  # of the time, at most WARM_MOST: allocators and caches fill
WARM_MOST = 300.0
MOST_GROWTH = 1.0  # MiB a minute
PATH = f"/models/{serving_model.NAME}/predict"
V2 = f"/v2/models/{serving_model.NAME}/infer"
Request = tuple[str, str, bytes, dict[str, str]]
JSON = {"Content-Type": "application/json"}


@dataclass
class Found:
    """What the callers met; shared by their threads."""

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
    """A kind of request and one of it; half of them are good."""
    instance = good(draw)
    whole = dict(zip(serving_model.FEATURES, serving_model.samples(50)[draw.randrange(50)].tolist(), strict=True))
    tensor = {"name": "numeric", "shape": [1, len(whole)], "datatype": "FP32", "data": list(whole.values())}
    makers: dict[str, Callable[[], Request]] = {
        "raw": lambda: ("POST", PATH, _json({"instances": [whole] * draw.randint(1, 20)}), JSON),
        "looked up": lambda: ("POST", PATH, _json({"instances": [instance] * draw.randint(1, 5)}), JSON),
        "tensors": lambda: ("POST", V2, _json({"inputs": [tensor]}), JSON),
        "binary tensors": lambda: _binary(list(whole.values())),
        "unknown entity": lambda: ("POST", PATH, _json({"instances": [instance | {"customer": draw.randrange(10**6, 10**9)}]}), JSON),
        "text for a number": lambda: ("POST", PATH, _json({"instances": [whole | {"f3": "x" * draw.randint(1, 5000)}]}), JSON),
        "a name of its own": lambda: ("POST", PATH, _json({"instances": [whole | {f"n{draw.getrandbits(64)}": 1}]}), JSON),
        "no JSON": lambda: ("POST", PATH, draw.randbytes(draw.randint(0, 3000)), JSON),
        "deep": lambda: ("POST", PATH, b"[" * draw.randint(1, 20_000), JSON),
        "too long": lambda: ("POST", PATH, b" " * (9 * 2**20), JSON),
        "wrong tensors": lambda: ("POST", V2, _json({"inputs": [tensor | {"shape": [draw.randint(-3, 9), 7]}]}), JSON),
        "wrong binary": lambda: ("POST", V2, draw.randbytes(500), {"Inference-Header-Content-Length": str(draw.randint(-5, 900))}),
        "another model": lambda: ("POST", f"/models/m{draw.getrandbits(32)}/predict", _json({"instances": [whole]}), JSON),
        "another path": lambda: ("GET", f"/{draw.getrandbits(64)}", b"", {}),
        "metrics": lambda: ("GET", "/metrics", b"", {}),
        "ready": lambda: ("GET", "/ready", b"", {}),
        "wrong feedback": lambda: ("POST", "/feedback", _json({"model": serving_model.NAME, "labels": [{"label": "x"}]}), JSON),
    }
    kind = draw.choice(["raw", "looked up", "tensors", "binary tensors"]) if draw.random() < 0.5 else draw.choice(list(makers))
    return kind, makers[kind]()


def call(port: int, found: Found, until: float, seed: int) -> None:
    """Ask until it is time, over a connection that is kept; now and then be a caller who goes away in the middle."""
    draw = random.Random(seed)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    while time.monotonic() < until:
        if draw.random() < 0.01:
            _go_away(port, draw)
        kind, (method, path, body, headers) = requests(draw)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            found.note(kind, answer.status, answer.read(), answer.headers)
        except TimeoutError:
            found.faults.append(f"{kind}: no answer within {PATIENCE:g} s")
            connection.close()
        except (OSError, http.client.HTTPException) as error:
            if kind not in ("too long", "no JSON", "wrong binary"):  # the server may close before it has read all of what it refuses
                found.faults.append(f"{kind}: {type(error).__name__}: {error}")
            connection.close()


def soak(server: serving_peers.Server, seconds: float) -> dict[str, Any]:
    """Load a running server; what came of it, ``faults`` and ``growth_mib_per_minute`` among it."""
    assert server.process is not None
    found, process = Found(), psutil.Process(server.process.pid)
    began = time.monotonic()
    until = began + seconds
    callers = [threading.Thread(target=call, args=(server.port, found, until, seed), daemon=True) for seed in range(CALLERS)]
    for caller in callers:
        caller.start()
    memory: list[tuple[float, float]] = []
    while time.monotonic() < until:
        memory.append((time.monotonic() - began, process.memory_info().rss / 2**20))
        time.sleep(min(2.0, seconds / 20))
    for caller in callers:
        caller.join(PATIENCE + 10)
    if hanging := sum(caller.is_alive() for caller in callers):
        found.faults.append(f"{hanging} callers hang")
    warm = min(WARM_SHARE * seconds, WARM_MOST)
    later = [(at, size) for at, size in memory if at >= warm]
    growth = statistics.linear_regression(*zip(*later, strict=True)).slope * 60 if len(later) > 2 else 0.0
    return {
        "seconds": round(seconds), "requests": sum(found.statuses.values()), "statuses": dict(sorted(found.statuses.items())), "faults": len(found.faults),
        "first_faults": found.faults[:5], "growth_mib_per_minute": round(growth, 3), "memory_mib": {"warm": round(later[0][1]), "end": round(later[-1][1])},
    }  # fmt: skip


def started(model: Any, folder: Path) -> serving_peers.Server:
    """Serving with half of the features in Feast's online store, in SQLite."""
    said = serving_features.fill(folder / "features", "sqlite")
    server = serving_peers.airloop(
        folder, model, "soak", feature_store=said, body=serving_features.body, join_keys=("customer",), looked_up=serving_features.LOOKED_UP
    )
    server.start(None)
    return server


def _json(document: Any) -> bytes:
    return json.dumps(document).encode()


def _binary(row: list[float]) -> Request:
    raw = struct.pack(f"<{len(row)}f", *row)
    head = _json({"inputs": [{"name": "numeric", "shape": [1, len(row)], "datatype": "FP32", "parameters": {"binary_data_size": len(raw)}}]})
    return "POST", V2, head + raw, {"Inference-Header-Content-Length": str(len(head))}


def _go_away(port: int, draw: random.Random) -> None:
    """A caller who hangs up in the middle of a request."""
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as connection:
        connection.sendall(f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\n".encode() + b"x" * draw.randint(0, 4000))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.serving_soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = started(serving_model.fit(), Path(folder))
        try:
            server.wait(600)
            found = soak(server, given.minutes * 60)
        finally:
            server.end()
    target = result.write("serving_soak", found | {"aims": {"growth_mib_per_minute": MOST_GROWTH, "faults": 0}}, PACKAGES)
    print(json.dumps({name: found[name] for name in ("requests", "faults", "first_faults", "growth_mib_per_minute", "memory_mib")}, indent=1))
    print(f"-> {target.relative_to(result.REPOSITORY)}")
    sys.exit(bool(found["faults"]) or found["growth_mib_per_minute"] >= MOST_GROWTH)


if __name__ == "__main__":
    main()
