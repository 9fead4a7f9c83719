"""Prometheus metrics of one process and of several."""

import re
import signal
import urllib.request

import pytest
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from serving import metrics
from serving.metrics import SECONDS, observe_all
from tests.serving.harness import NAME, Process
from tests.waiting import wait_for


def test_observing_at_once_is_observing_one_by_one():
    values = [0.0, 0.0005, 0.00051, 0.003, 0.02, 0.02, 4.9, 5.0, 5.1, 100.0]
    expositions = []
    for together in (True, False):
        registry = CollectorRegistry()
        histogram = Histogram("seconds", "Some.", ("model",), buckets=SECONDS, registry=registry).labels("a")
        if together:
            observe_all(histogram, values)
        else:
            for value in values:
                histogram.observe(value)
        expositions.append([line for line in generate_latest(registry).decode().splitlines() if "_created" not in line])
    assert expositions[0] == expositions[1]


def test_each_metric_has_its_old_name_too():
    metrics.refused.labels("a test").inc(3)
    lines = [line for line in metrics.exposition()[0].decode().splitlines() if not line.startswith("#")]
    new = {line.removeprefix("airloop_") for line in lines if line.startswith("airloop_serving_")}
    old = {line for line in lines if line.startswith("serving_")}
    assert new == old and 'serving_refused_total{reason="a test"} 3.0' in old
    assert len(lines) == len(new) + len(old)


def scraped(service: Process) -> dict[str, float]:
    with urllib.request.urlopen(f"{service.url}/metrics", timeout=60) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=")
        lines = answer.read().decode().splitlines()
    return {
        name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if not line.startswith("#"))
    }


def test_what_feast_leaves_in_the_environment_changes_nothing(tmp_path, monkeypatch):
    """Feast's environment changes do not affect the metrics.

    Importing feast, as the look-up in other stores does, sets feast's own folder for the metrics of
    several processes.
    """
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    assert b"airloop_serving_registry_up" in metrics.exposition()[0]


@pytest.mark.stack
@pytest.mark.parametrize("workers", [1, 2])
def test_predictions_are_counted_by_version_and_arm_whichever_worker_answered(registry, features, tmp_path, workers):
    registry.add(bias=1)
    # The process that started the service has imported feast.
    of_feast = tmp_path / "feast_metrics"
    of_feast.mkdir()
    settings = {
        "SERVING_MLFLOW_URI": registry.uri,
        "SERVING_FEATURE_REPO": features.folder,
        "SERVING_LOG_ROOT": tmp_path / "store",
        "SERVING_CACHE": tmp_path / "cache",
        "SERVING_POLL_SECONDS": 0.5,
        "SERVING_WORKERS": workers,
        "SERVING_REQUEST_SECONDS": 240,
        "PROMETHEUS_MULTIPROC_DIR": of_feast,
    }
    environment = {name: str(value) for name, value in settings.items()}
    service = Process(["serving"], environment, tmp_path / "serving.log")
    raw = {"shop": "b", "hour": 1, "sales_7d": 1.5, "late_rate": 0, "temp": -3, "orders": 2}
    statuses: list[int] = []

    def answered() -> bool:
        statuses.append(service.get(f"/models/{NAME}/predict", {"instances": [raw, raw]}, timeout=250)[0])
        return statuses.count(200) == 30

    try:
        # Each worker, with high probability.
        wait_for(lambda: all(service.get("/ready")[0] == 200 for _ in range(10)), 400, service.log.read_text)
        # A worker that is still loading answers 503 and is asked again.
        wait_for(answered, 240, lambda: statuses)
        assert service.get(f"/models/{NAME}/predict", {"instances": []}, timeout=250)[0] == 422
        labels = f'{{arm="champion",model="{NAME}",version="1"}}'
        exactly = {
            f"airloop_serving_predictions_total{labels}": 60,
            f"airloop_serving_prediction_seconds_count{labels}": 30,
            'airloop_serving_log_rows_total{fate="written"}': 60,
            'airloop_serving_requests_total{route="predict",status="200"}': 30,
            'airloop_serving_requests_total{route="predict",status="422"}': 1,
            f'airloop_serving_model_up{{model="{NAME}"}}': 1,
            "airloop_serving_registry_up": 1,
            "airloop_serving_lookup_up": 1,
        }
        metrics = {}

        def all_counted() -> bool:
            metrics.update(scraped(service))
            return {name: metrics.get(name) for name in exactly} == exactly

        wait_for(all_counted, 120, lambda: (statuses, {name: metrics.get(name) for name in exactly}))
        if workers > 1:
            _kill_one(service)
            # The dead worker's gauges are removed, and another one runs.
            wait_for(lambda: scraped(service)["airloop_serving_lookup_up"] == 1, 120)
            assert scraped(service)[f"airloop_serving_predictions_total{labels}"] == 60  # its answers still count
    finally:
        service.end()
    assert list(of_feast.iterdir()) == []


def _kill_one(service: Process) -> None:
    """Kill one worker with SIGKILL. The others continue, and a new one starts."""
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
