"""Build the images from their Dockerfiles."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from include.ledger import request_retraining
from include.projects import get_project
from include.settings import get_settings
from tests.images.engine import Engine, reason_to_skip
from tests.serving.harness import Process
from tests.unit.training import made_up

CUTOFF = "2013-02-25T00:00:00Z"


@pytest.fixture(scope="session")
def engine():
    reason = reason_to_skip()
    if reason:
        pytest.skip(f"images are not built: {reason}")
    return Engine()


@pytest.fixture(scope="session")
def training_image(engine):
    return engine.build("training")


@pytest.fixture(scope="session")
def serving_image(engine):
    return engine.build("serving")


@pytest.fixture(scope="session")
def mlflow_image(engine):
    return engine.build("mlflow")


@pytest.fixture(scope="session")
def airflow_image(engine):
    return engine.build("airflow")


@pytest.fixture(scope="session")
def size(engine, request) -> Callable[[str, int], None]:
    """Return a function that prints the size of an image's file system.

    ``size(image, 900)`` fails if it is larger than 900 MB.
    """

    def check(image: str, limit: int) -> None:
        megabytes = int(json.loads(engine("image", "inspect", image).stdout)[0]["Size"]) / 1e6
        base = int(json.loads(engine("image", "inspect", engine.base).stdout)[0]["Size"]) / 1e6
        with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            print(f"\n{image}: {megabytes:.0f} MB, {megabytes - base:.0f} MB of it on top of the base")
        assert megabytes - base < limit

    return check


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory):
    """Run MLflow's server as the embedded stack does."""
    folder = tmp_path_factory.mktemp("mlflow")
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
    process.end()


@dataclass(frozen=True)
class Made:
    """A retrain request and its training set, in a store that belongs to the images' user."""

    request: str
    training_set: str
    store: Path

    @property
    def folder(self) -> Path:
        return self.store / "flights" / "training" / self.request

    def arguments(self, name: str, *given: str) -> list[str]:
        """Return the arguments of a step with the manifest ``<folder>/<name>.json``.

        The name starts with the step.
        """
        step, manifest = name.partition("-")[0], str(self.folder / f"{name}.json")
        return [
            step,
            "--project",
            "flights",
            "--request",
            self.request,
            "--training-set",
            self.training_set,
            "--manifest",
            manifest,
            *given,
        ]


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Create a request of the flights project with a made-up training set."""
    store = tmp_path / "store"
    monkeypatch.setenv("AIRLOOP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("AIRLOOP_DATA_ROOT", str(store))
    get_settings.cache_clear()
    project = get_project("flights")
    request = request_retraining(
        "flights", cutoff=CUTOFF, reason="first_model", asked_by="a test", parameters={}
    )._asdict()
    training_set = made_up.write(project, request, made_up.examples(project, days=70, a_day=100))
    give_to_nobody(tmp_path)
    yield Made(request["id"], training_set, store)
    monkeypatch.undo()
    get_settings.cache_clear()


def give_to_nobody(folder: Path) -> None:
    """Make the images' user the owner, and let it traverse pytest's folders, which are private."""
    for path in (folder, *folder.rglob("*")):
        os.chown(path, 10001, 10001)
    for parent in folder.parents:
        if parent.name.startswith("pytest-"):
            parent.chmod(0o755)
