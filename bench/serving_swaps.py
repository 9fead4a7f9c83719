"""Measure the effect of model changes on latency.

The same constant load runs with a fixed alias, and with an alias that moves every ``EVERY``
seconds. A real MLflow server holds two versions. The service downloads, hash-checks and tests each
version before it answers, as usual. The two measurements alternate.
"""

import hashlib
import json
import os
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench import serving_model, serving_peers
from bench.load import Figures
from bench.serving_peers import Server

EVERY = 1.0
NAME = serving_model.NAME


@contextmanager
def registry(folder: Path, model: Any):
    """Start an MLflow server with versions 1 and 2 of the model.

    Yield its client and address.
    """
    import mlflow

    folder.mkdir(parents=True, exist_ok=True)
    port = serving_peers.free_port()
    store = [
        "--backend-store-uri",
        f"sqlite:///{folder / 'mlflow.db'}",
        "--serve-artifacts",
        "--artifacts-destination",
        str(folder / "artifacts"),
    ]
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "1",
        *store,
    ]
    # Otherwise MLflow starts eight more processes.
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "mlflow.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        uri = f"http://127.0.0.1:{port}"
        _wait(f"{uri}/health", 300)
        # MLflow looks up a version's source at the tracking URI.
        mlflow.set_tracking_uri(uri)
        client = mlflow.MlflowClient(uri, uri)
        client.create_experiment(NAME)
        client.create_registered_model(NAME)
        for _ in range(2):
            add_version(client, folder, model, NAME)
        client.set_registered_model_alias(NAME, "champion", "1")
        yield client, uri
    finally:
        for one in serving_peers.processes(process.pid):
            one.kill()
        process.wait(20)


def add_version(client: Any, folder: Path, model: Any, name: str) -> str:
    """Register the model as a version of ``name``, as training does, and return its number."""
    experiment = client.get_experiment_by_name(NAME).experiment_id
    run = client.create_run(experiment)
    logged = client.create_logged_model(experiment, name="model", source_run_id=run.info.run_id)
    bundle = folder / logged.model_id
    serving_model.write_bundle(model, bundle, project=name)
    hashes = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in bundle.iterdir()}
    client.log_model_artifacts(logged.model_id, str(bundle))
    client.finalize_logged_model(logged.model_id, "READY")
    source, tags = f"models:/{logged.model_id}", {"bundle_sha256": json.dumps(hashes)}
    return str(
        client.create_model_version(name, source, run_id=run.info.run_id, model_id=logged.model_id, tags=tags).version
    )


def swaps(model: Any, folder: Path, *, rounds: int, seconds: float) -> dict[str, Any]:
    """Compare p99 with a moving alias and with a fixed alias, at half of the maximum rate.

    Raises:
        RuntimeError: A request failed, or the service did not follow the alias.
    """
    with registry(folder / "registry", model) as (client, uri):
        server = serving_peers.airloop(folder, model, "swaps")
        server.environment |= {"SERVING_MLFLOW_URI": uri, "SERVING_POLL_SECONDS": "0.1"}
        cores = serving_peers.two_cores()
        server.start(cores[0])
        try:
            server.wait(600)
            most = _load(server, cores[1], seconds).rps
            measurements: dict[str, list[Figures]] = {"still": [], "moving": []}
            made = 0
            for _ in range(rounds):
                measurements["still"].append(_load(server, cores[1], seconds, most / 2))
                before = _swapped(server)
                with _moving(client):
                    measurements["moving"].append(_load(server, cores[1], seconds, most / 2))
                made += _swapped(server) - before
        finally:
            server.end()
    if not made:
        raise RuntimeError("the alias moved, and the service never followed")
    p99 = {name: round(statistics.median(one.p99_ms for one in taken), 3) for name, taken in measurements.items()}
    return {
        "swap_p99_ratio": round(p99["moving"] / p99["still"], 2),
        "swaps": {
            "made": made,
            "every_seconds": EVERY,
            "rate_rps": round(most / 2, 1),
            "p99_ms": p99,
            "requests": sum(one.requests for one in measurements["moving"]),
        },
    }


def _load(server: Server, core: int | None, seconds: float, rate: float | None = None) -> Figures:
    figures = server.load(core, seconds=seconds, warm=1.0, clients=16, rate=rate)
    if figures.errors:
        raise RuntimeError(f"{figures.errors} of {figures.requests} requests failed: {figures.first_error}")
    return figures


@contextmanager
def _moving(client: Any):
    """Move the alias back and forth between the two versions during the block."""
    stop = threading.Event()

    def move() -> None:
        number = 0
        while not stop.wait(EVERY):
            number += 1
            client.set_registered_model_alias(NAME, "champion", str(number % 2 + 1))

    moving = threading.Thread(target=move, daemon=True)
    moving.start()
    try:
        yield
    finally:
        stop.set()
        moving.join(30)


def _swapped(server: Server) -> int:
    # The service updates its counters once a second.
    time.sleep(1.5)
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    wanted = f'airloop_serving_swaps_total{{model="{NAME}",outcome="swapped"}} '
    return sum(int(float(line.removeprefix(wanted))) for line in lines if line.startswith(wanted))


def _wait(url: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).read()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
