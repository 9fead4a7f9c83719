"""What Prometheus is told, of one process and of several."""

import re
import signal
import urllib.request

import pytest
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from serving import metrics
from serving.metrics import SECONDS, observe_all
from tests.serving.stand import NAME, Process, wait_for


def test_observing_at_once_is_observing_one_by_one():
    values = [0.0, 0.0005, 0.00051, 0.003, 0.02, 0.02, 4.9, 5.0, 5.1, 100.0]
    told = []
    for together in (True, False):
        registry = CollectorRegistry()
        histogram = Histogram("seconds", "Some.", ("model",), buckets=SECONDS, registry=registry).labels("a")
        if together:
            observe_all(histogram, values)
        else:
            for value in values:
                histogram.observe(value)
        told.append([line for line in generate_latest(registry).decode().splitlines() if "_created" not in line])
    assert told[0] == told[1]


def scraped(service: Process) -> dict[str, float]:
    with urllib.request.urlopen(f"{service.url}/metrics", timeout=60) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=")
        lines = answer.read().decode().splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if not line.startswith("#"))}


def test_what_feast_leaves_in_the_environment_changes_nothing(tmp_path, monkeypatch):
    """Importing feast, as the look-up in other stores does, names a folder of feast's for the metrics of several processes."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    assert b"serving_registry_up" in metrics.exposition()[0]


@pytest.mark.stack
@pytest.mark.parametrize("workers", [1, 2])
def test_predictions_are_counted_by_version_and_arm_whichever_worker_answered(registry, features, tmp_path, workers):
    registry.add(bias=1)
    of_feast = tmp_path / "feast_metrics"  # whoever started the service has imported feast
    of_feast.mkdir()
    settings = {
        "SERVING_MLFLOW_URI": registry.uri, "SERVING_FEATURE_REPO": features.folder, "SERVING_LOG_ROOT": tmp_path / "store",
        "SERVING_CACHE": tmp_path / "cache", "SERVING_POLL_SECONDS": 0.5, "SERVING_WORKERS": workers,
        "SERVING_REQUEST_SECONDS": 240, "PROMETHEUS_MULTIPROC_DIR": of_feast,
    }  # fmt: skip
    environment = {name: str(value) for name, value in settings.items()}
    service = Process(["serving"], environment, tmp_path / "serving.log")
    raw = {"shop": "b", "hour": 1, "sales_7d": 1.5, "late_rate": 0, "temp": -3, "orders": 2}
    said: list[int] = []

    def answered() -> bool:
        said.append(service.get(f"/models/{NAME}/predict", {"instances": [raw, raw]}, timeout=250)[0])
        return said.count(200) == 30

    try:
        wait_for(lambda: all(service.get("/ready")[0] == 200 for _ in range(10)), 400, service.log.read_text)  # each worker, as far as one can tell
        wait_for(answered, 240, lambda: said)  # a worker that is still loading says so (503), and is asked again
        assert service.get(f"/models/{NAME}/predict", {"instances": []}, timeout=250)[0] == 422
        labels = f'{{arm="champion",model="{NAME}",version="1"}}'
        exactly = {
            f"serving_predictions_total{labels}": 60, f"serving_prediction_seconds_count{labels}": 30, 'serving_log_rows_total{fate="written"}': 60,
            'serving_requests_total{route="predict",status="200"}': 30, 'serving_requests_total{route="predict",status="422"}': 1,
            f'serving_model_up{{model="{NAME}"}}': 1, "serving_registry_up": 1, "serving_lookup_up": 1,
        }  # fmt: skip
        told = {}

        def all_told() -> bool:
            told.update(scraped(service))
            return {name: told.get(name) for name in exactly} == exactly

        wait_for(all_told, 120, lambda: (said, {name: told.get(name) for name in exactly}))
        if workers > 1:
            _kill_one(service)
            wait_for(lambda: scraped(service)["serving_lookup_up"] == 1, 120)  # the dead one's gauges are gone, another one runs
            assert scraped(service)[f"serving_predictions_total{labels}"] == 60  # what it answered was answered
    finally:
        service.end()
    assert list(of_feast.iterdir()) == []


def _kill_one(service: Process) -> None:
    """kill -9 of a worker; the others go on, and a new one comes."""
    import os
    from pathlib import Path

    def workers() -> list[int]:
        children = Path(f"/proc/{service._process.pid}/task/{service._process.pid}/children").read_text().split()
        return [int(pid) for pid in children if re.search(rb"spawn_main", Path(f"/proc/{pid}/cmdline").read_bytes())]

    before = workers()
    assert len(before) == 2
    os.kill(before[0], signal.SIGKILL)
    wait_for(lambda: len(now := workers()) == 2 and before[0] not in now, 120)
    wait_for(lambda: all(service.get("/ready")[0] == 200 for _ in range(10)), 400, service.log.read_text)
