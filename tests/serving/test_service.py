"""The service as a process: a real MLflow server, kill -9, and a start without the registry."""

import signal
import time

import pytest

from tests.serving.harness import NAME, Process, Registry, expected, logged, serving_process
from tests.waiting import wait_for

pytestmark = pytest.mark.stack

ASKED = {"shop": "a", "customer": 7, "hour": 9}
MODEL_INPUT = {"hour": 9, "sales_7d": 10.0, "late_rate": 0.25, "temp": 3.5, "orders": 4, "shop": "a"}
RAW = {"shop": "b", "hour": 1, "sales_7d": 1.5, "late_rate": 0, "temp": -3, "orders": 2}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Run MLflow as the embedded stack does."""
    folder = tmp_path_factory.mktemp("server")
    store = [
        "--backend-store-uri",
        f"sqlite:///{folder / 'mlflow.db'}",
        "--serve-artifacts",
        "--artifacts-destination",
        str(folder / "artifacts"),
    ]
    process = Process(
        ["mlflow", "server", "--workers", "1", *store],
        {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        folder / "mlflow.log",
    )
    process.wait("/health", 180)
    yield process
    process.end(signal.SIGKILL)


@pytest.fixture
def started():
    """Return a function that starts services. End them afterwards."""
    running = []

    def start(*arguments, **settings) -> Process:
        running.append(serving_process(*arguments, **settings))
        return running[-1]

    yield start
    for process in running:
        process.end()


def version(service: Process) -> str | None:
    status, document = service.get(f"/models/{NAME}")
    return document["version"] if status == 200 else None


def test_it_follows_a_real_server_and_outlives_it(server, features, started, tmp_path):
    registry = Registry(server.url, tmp_path)
    registry.add(bias=1)
    service = started(tmp_path, server.url, features)
    live, ready = service.wait("/live", 120), service.wait("/ready", 240)
    print(f"/live after {live:.1f} s, /ready after {ready:.1f} s")
    assert service.get(f"/models/{NAME}/predict", {"instances": [ASKED]})[1]["predictions"][0][
        "prediction"
    ] == expected(MODEL_INPUT, 1)

    second = registry.add(bias=2)
    wait_for(lambda: version(service) == second, 30)
    refused = registry.add(bias=3, golden={"predictions": [9e9, 9e9, 9e9]})
    document = wait_for(lambda: (s := service.get(f"/models/{NAME}")[1])["state"] == "refused" and s, 30)
    assert (document["version"], document["error"].split(":")[0]) == (second, f"version {refused}")

    registry.point(second)
    wait_for(lambda: service.get(f"/models/{NAME}")[1]["state"] == "ready", 30)

    # The registry hangs, which is worse than being unavailable. The service keeps serving the
    # loaded model and reports this.
    server.send(signal.SIGSTOP)
    try:
        document = wait_for(lambda: (s := service.get(f"/models/{NAME}")[1])["error"] and s, 90)
        assert (document["version"], document["state"]) == (second, "ready")
        assert document["error"].startswith("the registry does not answer: ")
        assert service.get(f"/models/{NAME}/predict", {"instances": [ASKED]})[1]["model_version"] == second
    finally:
        server.send(signal.SIGCONT)
    wait_for(lambda: service.get(f"/models/{NAME}")[1]["error"] is None, 90)


def test_a_start_without_the_registry(registry, features, started, tmp_path):
    registry.add(bias=1)
    first = started(tmp_path, registry.uri, features)
    wait_for(lambda: version(first) == "1", 240, first.log.read_text)
    first.end()
    again = started(tmp_path, "http://127.0.0.1:9", features)  # no server listens there
    wait_for(lambda: version(again) == "1", 240, again.log.read_text)
    status, body = again.get(f"/models/{NAME}/predict", {"instances": [RAW]})
    assert (status, body["predictions"][0]["prediction"]) == (200, expected(RAW, 1))
    assert "registry does not answer" in again.get(f"/models/{NAME}")[1]["error"]


def test_kill_9_loses_at_most_the_last_second(registry, features, started, tmp_path):
    registry.add(bias=1)
    service = started(tmp_path, registry.uri, features)
    wait_for(lambda: version(service) == "1", 240, service.log.read_text)
    answered: list[tuple[float, str]] = []
    until = time.monotonic() + 4
    while time.monotonic() < until:
        status, body = service.get(f"/models/{NAME}/predict", {"instances": [RAW] * 5})
        assert status == 200
        answered += [(time.monotonic(), p["prediction_id"]) for p in body["predictions"]]
    killed = time.monotonic()
    service.end(signal.SIGKILL)
    kept = {row["prediction_id"] for row in logged(tmp_path / "store")}
    older = {identifier for at, identifier in answered if at < killed - 1}
    print(f"{len(answered)} answered, {len(answered) - len(kept)} of the last second lost")
    assert len(older) > 20 and older <= kept <= {identifier for _, identifier in answered}


def test_sigterm_loses_nothing(registry, features, started, tmp_path):
    registry.add(bias=1)
    service = started(tmp_path, registry.uri, features)
    wait_for(lambda: version(service) == "1", 240, service.log.read_text)
    ids = [
        p["prediction_id"]
        for _ in range(5)
        for p in service.get(f"/models/{NAME}/predict", {"instances": [RAW]})[1]["predictions"]
    ]
    service.end()
    assert sorted(row["prediction_id"] for row in logged(tmp_path / "store")) == sorted(ids)
