"""Real things to serve from: a model as ONNX, an MLflow registry, a Feast repository with an online store."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from serving.lookup import FeatureLookup
from tests.serving.stand import FeatureRepository, Registry, wait_for

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
