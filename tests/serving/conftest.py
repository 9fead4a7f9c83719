"""Real dependencies for serving: an ONNX model, an MLflow registry, a Feast repository.

The Feast repository has an online store.
"""

import json
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from serving.features.lookup import FeatureLookup
from serving.http.gateway import Gateway
from serving.models.checker import Checker
from serving.settings import Settings
from tests.serving.bad_models import bad_graph
from tests.serving.harness import FeatureRepository, Registry
from tests.serving.wire import Service
from tests.waiting import wait_for

# The data's present, years before the wall clock.
NOW = datetime(2013, 6, 1, 10, tzinfo=UTC)


class IdleChecks:
    """Processes that test versions and have nothing to do, by what their tests may use."""

    def __init__(self) -> None:
        self._idle: dict[tuple, list[subprocess.Popen[bytes]]] = defaultdict(list)

    @staticmethod
    def _key(checker: Checker) -> tuple:
        return checker.threads, checker.memory_bytes, checker.cpu_seconds, repr(checker.limits)

    def lend(self, checker: Checker) -> None:
        """Give the checker a process, if there is one and it has none."""
        idle = self._idle[self._key(checker)]
        while checker._process is None and idle:
            process = idle.pop()
            checker._process = process if process.poll() is None else None

    def take_back(self, checker: Checker) -> None:
        process = checker._process
        if process is not None and process.poll() is None:
            checker._process = None
            self._idle[self._key(checker)].append(process)

    def end(self) -> None:
        for process in (process for idle in self._idle.values() for process in idle):
            # It ends when its input does.
            process.communicate()


@pytest.fixture(scope="session")
def idle_checks() -> Iterator[IdleChecks]:
    idle = IdleChecks()
    yield idle
    idle.end()


@pytest.fixture(autouse=True)
def lent_checks(idle_checks: IdleChecks, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the services of this process use the same child processes for the tests of versions.

    Hundreds of services start here, and each child imports ONNX Runtime for half a second.
    test_isolation.py overrides this fixture, because it tests how the children begin and end.
    """
    started, close, ask = Checker._started, Checker.close, Checker._ask
    asking: set[int] = set()

    def lent(checker: Checker) -> subprocess.Popen[bytes]:
        if not checker._closed:
            idle_checks.lend(checker)
        return started(checker)

    def asked(checker: Checker, *arguments: Any) -> dict[str, object]:
        asking.add(id(checker))
        try:
            return ask(checker, *arguments)
        finally:
            asking.discard(id(checker))

    def closed(checker: Checker) -> None:
        if id(checker) not in asking:
            idle_checks.take_back(checker)
        close(checker)

    monkeypatch.setattr(Checker, "_started", lent)
    monkeypatch.setattr(Checker, "_ask", asked)
    monkeypatch.setattr(Checker, "close", closed)


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create an empty MLflow database once: migrating takes seconds."""
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
    """Write three views as materialization does: shops a and b, customer 7, but not shop c."""
    return filled(FeatureRepository(tmp_path_factory.mktemp("features")))


def filled(repository: FeatureRepository) -> FeatureRepository:
    repository.register()
    repository.write(
        "shop_sales",
        [{"shop": "a", "sales_7d": 10.0, "late_rate": 0.25}, {"shop": "b", "sales_7d": 20.0, "late_rate": None}],
        NOW,
    )
    repository.write(
        "shop_weather", [{"shop": "a", "temp": 3.5}, {"shop": "b", "temp": -1.0}], NOW - timedelta(hours=2)
    )
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
    """Return a registry whose champions misbehave for late hours, and settings to serve them."""
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
    common = {
        "mlflow_uri": registry.uri,
        "feature_repo": features.folder,
        "poll_seconds": 0.1,
        "log_flush_seconds": 0.1,
        "drain_seconds": 0,
    }
    return registry, common


@pytest.fixture
def start(misbehaving, tmp_path, monkeypatch) -> Iterator[Any]:
    running: list[Service] = []
    ask = Gateway.__call__

    async def counted(gateway, scope, receive, send):
        if scope["type"] == "http":
            running[0].ordinary.append(scope["path"])
        await ask(gateway, scope, receive, send)

    monkeypatch.setattr(Gateway, "__call__", counted)

    def begin(*, idle: int = 30, **settings: Any) -> Service:
        running.append(
            service := Service(
                Settings(**misbehaving[1], log_root=tmp_path / "store", cache=tmp_path / "cache", **settings), idle
            )
        )
        return service

    yield begin
    for service in running:
        service.end()


@pytest.fixture
def service(start) -> Service:
    return start()
