"""The serving image answers from a real registry, and contains neither Airflow nor torch."""

from datetime import UTC, datetime

import httpx
import pytest

from tests.images.conftest import give_to_nobody
from tests.images.engine import HARDENED
from tests.images.test_training import ABSENT, WRITES
from tests.ports import free_port
from tests.serving.harness import NAME, FeatureRepository, Registry, expected
from tests.waiting import wait_for

pytestmark = [pytest.mark.timeout(3600), pytest.mark.stack, pytest.mark.images]


def test_nobody_runs_it_and_neither_airflow_nor_torch_is_there(engine, serving_image, size):
    inside = ("--entrypoint", "python")
    assert engine.run(serving_image, "-c", WRITES, options=inside).stdout.split() == ["10001", "10001", "/app"]
    engine.run(
        serving_image,
        "-c",
        ABSENT % (["airflow", "torch", "sklearn", "include", "feature_repo", "onnx", "pytest"],),
        options=inside,
    )
    red = engine.run(serving_image, "-c", ABSENT % (["onnxruntime"],), options=inside, check=False)
    assert red.returncode == 1 and "there is ['onnxruntime']" in red.stdout
    size(serving_image, 900)


def test_it_serves(engine, serving_image, mlflow_server, tmp_path):
    (tmp_path / "features").mkdir()
    features, now = FeatureRepository(tmp_path / "features"), datetime(2013, 6, 1, 10, tzinfo=UTC)
    features.register()
    features.write("shop_sales", [{"shop": "a", "sales_7d": 10.0, "late_rate": 0.25}], now)
    features.write("shop_weather", [{"shop": "a", "temp": 3.5}], now)
    features.write("customer_orders", [{"customer": 7, "orders": 4}], now)
    Registry(mlflow_server.url, tmp_path).add(bias=1)
    give_to_nobody(tmp_path)
    port = free_port()
    settings = {
        "MLFLOW_URI": mlflow_server.url,
        "FEATURE_REPO": features.folder,
        "LOG_ROOT": tmp_path / "log",
        "POLL_SECONDS": 0.2,
    }
    given = [option for key, value in settings.items() for option in ("--env", f"SERVING_{key}={value}")]
    container = engine.start(
        "run", "--rm", "--name", f"serving-{port}", *HARDENED, *given, "--volume", f"{tmp_path}:{tmp_path}",
        serving_image, "--host", "127.0.0.1", "--port", str(port),
    )  # fmt: skip
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as service:
            wait_for(lambda: ready(service), 120, lambda: container.poll())
            response = (
                service.post(f"/models/{NAME}/predict", json={"instances": [{"shop": "a", "customer": 7, "hour": 9}]})
                .raise_for_status()
                .json()
            )
        instance = {"hour": 9, "sales_7d": 10.0, "late_rate": 0.25, "temp": 3.5, "orders": 4, "shop": "a"}
        assert response["predictions"][0]["prediction"] == expected(instance, 1)
        wait_for(lambda: list((tmp_path / "log" / NAME / "prediction_log").glob("*.parquet")), 20)
    finally:
        engine("stop", "--time", "10", f"serving-{port}", check=False)
        print(container.communicate(timeout=30)[0])


def ready(service: httpx.Client) -> bool:
    try:
        return service.get("/ready").is_success
    except httpx.HTTPError:
        return False
