"""Measure a well-behaved client during attacks on serving. `make soak-attacks [MINUTES=10]`

Phases without and with attackers alternate. The attackers send requests that two parsers read
differently, slow and huge heads, floods by one key, and heads without bodies. They also hold idle
connections. During the attacks another model has hostile registry tags.

The soak fails if the client sees an error, if its p99 with attackers is more than 1.5 times the p99
without, or if memory grows. The result is written to bench/results/soak_attacks.json.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from bench import result, serving_model, serving_peers, serving_swaps
from bench.result import REPOSITORY
from serving import keys

PACKAGES = ("onnxruntime", "uvicorn", "uvloop", "httptools", "orjson")
RATE, CLIENTS, PHASE = 200.0, 8, 30.0
MOST_RATIO, MOST_GROWTH = 1.5, 1.0
VICTIM = "hostile"


def hostile_tags() -> list[str]:
    """Return invalid rollout documents."""
    arm = {"name": "a", "version": "1", "weight": 0.5}
    return [
        "[" * 200_000,
        '{"traffic":' * 50_000,
        "NaN",
        "null",
        "[]",
        '"x"',
        "\ud800",
        "\x00" * 1000,
        json.dumps({"traffic": {"salt": "\ud800", "arms": [arm]}}),
        json.dumps({"traffic": {"salt": "x" * 1_000_000, "arms": [arm]}}),
        json.dumps({"traffic": {"arms": [{**arm, "weight": float("nan")}]}}),
        json.dumps({"traffic": {"arms": [{**arm, "version": "9" * 5000}]}}),
        json.dumps({"traffic": {"arms": [arm] * 5000}}),
        json.dumps({"traffic": {"shadows": [{"name": "s", "version": "1", "share": 1e308}]}}),
    ]


@contextmanager
def hostile_registry(client: Any):
    """Change the tags of another registered model every half second."""
    stop, draw = threading.Event(), random.Random(3)

    def write() -> None:
        while not stop.wait(0.5):
            try:
                client.set_registered_model_tag(VICTIM, "rollout", draw.choice(hostile_tags()))
            # MLflow itself refuses some tags.
            except Exception:
                continue

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(10)


def _elsewhere(process: int, core: int | None) -> None:
    """Keep a process off the service's core, and give the client's process priority.

    The client measures the service. On one machine it would also measure how the service shares its
    core with attackers and with MLflow. In production these run on other machines.

    Args:
        process: Process id, or 0 for the current process.
    """
    os.sched_setscheduler(process, os.SCHED_IDLE, os.sched_param(0))
    if core is not None:
        os.sched_setaffinity(process, {core})


def attacked(
    server: serving_peers.Server, key: str, flood: str, core: int | None, seconds: float, attack: bool, client: Any
) -> tuple[Any, dict[str, int]]:
    """Run one phase. Return the client's measurements and the attackers' response counts."""
    plan = {"port": server.port, "path": server.path, "key": flood, "seconds": seconds + 2}
    met: dict[str, int] = {}
    process = None
    if attack:
        process = subprocess.Popen(
            [sys.executable, "-m", "bench.attacks"], cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            preexec_fn=lambda: _elsewhere(0, core),
        )  # fmt: skip
        assert process.stdin is not None
        process.stdin.write(json.dumps(plan).encode())
        process.stdin.close()
        process.stdin = None
    with hostile_registry(client) if attack else tempfile.TemporaryDirectory():
        figures = server.load(core, seconds=seconds, warm=1.0, clients=CLIENTS, rate=RATE, headers={"X-API-Key": key})
    if process is not None:
        met = json.loads(process.communicate(timeout=60)[0])
    return figures, met


def soak(model: Any, folder: Path, minutes: float) -> dict[str, Any]:
    file = folder / "keys.json"
    key = keys.create(file, "good", ["predict"])
    flood = keys.create(file, "flood", ["predict"], rate=30)
    with serving_swaps.registry(folder / "registry", model) as (client, uri):
        client.create_registered_model(VICTIM)
        client.set_registered_model_alias(VICTIM, "champion", serving_swaps.add_version(client, folder, model, VICTIM))
        server = serving_peers.airloop(folder, model, "attacked")
        server.environment |= {"SERVING_MLFLOW_URI": uri, "SERVING_POLL_SECONDS": "0.5", "SERVING_KEYS_FILE": str(file)}
        server.headers = {"X-API-Key": key}
        cores = serving_peers.two_cores()
        # These are MLflow's processes.
        for process in psutil.Process().children(recursive=True):
            for thread in process.threads():
                _elsewhere(thread.id, cores[1])
        server.start(cores[0])
        memory: list[tuple[float, float]] = []
        measurements: dict[str, list[Any]] = {"quiet": [], "attacked": []}
        met: Counter[str] = Counter()
        try:
            server.wait(600)
            assert server.process is not None
            process, began = psutil.Process(server.process.pid), time.monotonic()
            attacked(server, key, flood, cores[1], 10, True, client)
            while time.monotonic() - began < minutes * 60:
                for name in ("quiet", "attacked"):
                    figures, some = attacked(server, key, flood, cores[1], PHASE, name == "attacked", client)
                    measurements[name].append(figures)
                    met.update(some)
                    memory.append((time.monotonic() - began, process.memory_info().rss / 2**20))
                    at, mib = memory[-1]
                    print(
                        f"{at / 60:4.1f} of {minutes:g} minutes: {name}, p99 {figures.p99_ms:.1f} ms, {figures.errors}"
                        f" errors, {mib:.0f} MiB",
                        flush=True,
                    )
        finally:
            server.end()
    p99 = {name: statistics.median(one.p99_ms for one in phases) for name, phases in measurements.items()}
    every = [one for phases in measurements.values() for one in phases]
    # The first minutes contain the first of the largest requests and of the most connections.
    settled = memory[len(memory) // 3 :]
    growth = statistics.linear_regression(*zip(*settled, strict=True)).slope * 60 if len(settled) > 3 else 0.0
    errors = [one.first_error for one in every if one.errors]
    return {
        "minutes": minutes,
        "rate_rps": RATE,
        "phases": len(every),
        "requests": sum(one.requests for one in every),
        "errors": sum(one.errors for one in every),
        "first_errors": errors[:5],
        "p99_ms": {name: round(value, 3) for name, value in p99.items()},
        "p99_ratio": round(p99["attacked"] / p99["quiet"], 3),
        "memory_mib": [round(mib, 1) for _, mib in memory],
        "growth_mib_per_minute": round(growth, 3),
        "attackers_met": dict(sorted(met.items())),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.soak_attacks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = soak(serving_model.fit(), Path(folder), arguments.minutes)
    aims = {"errors": 0, "p99_ratio": MOST_RATIO, "growth_mib_per_minute": MOST_GROWTH}
    target = result.write("soak_attacks", report | {"aims": aims}, PACKAGES)
    print(json.dumps({name: value for name, value in report.items() if name != "attackers_met"}, indent=1))
    print(f"-> {target.relative_to(result.REPOSITORY)}")
    sys.exit(
        bool(report["errors"]) or report["p99_ratio"] > MOST_RATIO or report["growth_mib_per_minute"] >= MOST_GROWTH
    )


if __name__ == "__main__":
    main()
