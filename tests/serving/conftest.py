"""Real things to serve from: a model as ONNX, an MLflow registry, a Feast repository with an online store."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from serving.front import Front
from serving.lookup import FeatureLookup
from serving.settings import Settings
from tests.serving.bad_models import bad_graph
from tests.serving.stand import FeatureRepository, Registry, wait_for
from tests.serving.wire import Service

NOW = datetime(2013, 6, 1, 10, tzinfo=UTC)  # the data's present; the wall clock is years later


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database, made once: migrating takes seconds."""
    from mlflow import MlflowClient

    file = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{file}", f"sqlite:///{file}").search_registered_models()
    return file


@pytest.fixture
def registry(migrated: Path, tmp_path: Path) -> Registry:
    folder = tmp_path / "mlflow"
    folder.mkdir()
    (folder / "mlflow.db").write_bytes(migrated.read_bytes())
    return Registry(f"sqlite:///{folder / 'mlflow.db'}", folder)


@pytest.fixture(scope="session")
def features(tmp_path_factory: pytest.TempPathFactory) -> FeatureRepository:
    """Three views, written as materialization writes them: shops a and b, customer 7; nothing of shop c."""
    return filled(FeatureRepository(tmp_path_factory.mktemp("features")))


def filled(repository: FeatureRepository) -> FeatureRepository:
    repository.register()
    repository.write("shop_sales", [{"shop": "a", "sales_7d": 10.0, "late_rate": 0.25}, {"shop": "b", "sales_7d": 20.0, "late_rate": None}], NOW)
    repository.write("shop_weather", [{"shop": "a", "temp": 3.5}, {"shop": "b", "temp": -1.0}], NOW - timedelta(hours=2))
    repository.write("customer_orders", [{"customer": 7, "orders": 4}], NOW - timedelta(days=900))
    repository.materialized(NOW)
    return repository


@pytest.fixture(scope="session")
def lookup(features: FeatureRepository) -> Iterator[FeatureLookup]:
    opened = FeatureLookup(features.folder, refresh_seconds=0.2)
    opened.start()
    wait_for(lambda: opened.state == "ready", 90, lambda: opened.error)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def misbehaving(migrated, features, tmp_path_factory) -> tuple[Registry, dict[str, Any]]:
    """A registry whose champions misbehave for late hours, and settings to serve them."""
    folder = tmp_path_factory.mktemp("fast")
    (folder / "mlflow.db").write_bytes(migrated.read_bytes())
    registry = Registry(f"sqlite:///{folder / 'mlflow.db'}", folder)
    registry.add(model=bad_graph("throws"))
    registry.add(name="nans", model=bad_graph("nan"))
    registry.add(name="strict", contract={"lookup": {"unknown_entity": "refuse"}})
    registry.add(name="ruled", contract={"lookup": {"unknown_entity": "baseline"}}, rule=5)
    registry.add(name="split")
    arm = {"name": "new", "version": registry.add(1, name="split", champion=False), "weight": 1}
    registry.client.set_registered_model_tag("split", "rollout", json.dumps({"traffic": {"arms": [arm]}}))
    common = {"mlflow_uri": registry.uri, "feature_repo": features.folder, "poll_seconds": 0.1, "log_flush_seconds": 0.1, "drain_seconds": 0}
    return registry, common


@pytest.fixture
def start(misbehaving, tmp_path, monkeypatch) -> Iterator[Any]:
    running: list[Service] = []
    ask = Front.__call__

    async def counted(front, scope, receive, send):
        if scope["type"] == "http":
            running[0].ordinary.append(scope["path"])
        await ask(front, scope, receive, send)

    monkeypatch.setattr(Front, "__call__", counted)

    def begin(*, idle: int = 30, **settings: Any) -> Service:
        running.append(service := Service(Settings(**misbehaving[1], log_root=tmp_path / "store", cache=tmp_path / "cache", **settings), idle))
        return service

    yield begin
    for service in running:
        service.end()


@pytest.fixture
def service(start) -> Service:
    return start()
