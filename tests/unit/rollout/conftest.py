"""A real registry (MLflow on SQLite) and a new project for each test.

The project has three versions that differ only in their tags.
"""

import itertools

import pytest

from include.projects.flights import project as flights
from include.registry import versions
from include.registry.client import registry_client
from include.settings import get_settings
from tests.unit.rollout.harness import Follower

COUNT = itertools.count()


@pytest.fixture(scope="package")
def registry(tmp_path_factory):
    folder = tmp_path_factory.mktemp("registry")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        patch.setenv("AIRLOOP_HOME", str(folder / "home"))
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        get_settings.cache_clear()
        yield registry_client()
    get_settings.cache_clear()


@pytest.fixture
def project(registry):
    """Return a project with versions 1 to 3, which passed the gate. None is deployed.

    Version 1 was judged when there was no champion, 2 against 1, and 3 against 2.
    """
    made = flights.model_copy(update={"name": f"project_{next(COUNT)}"})
    registry.create_registered_model(made.name)
    for version in ("1", "2", "3"):
        tags = {
            "gate": "passed",
            "judged_against": str(int(version) - 1) if version != "1" else "",
            "cutoff": f"2013-0{version}-01T00:00:00Z",
        }
        registry.create_model_version(made.name, f"/nowhere/{version}", tags=tags)
    return made


@pytest.fixture
def deployed(project):
    """Return the project with version 1 deployed by an earlier run."""
    from include.rollout import promotion

    promotion.promote(project, "1", dag_run="first", cutoff="2013-01-01T00:00:00Z", by_person=False)
    promotion.confirm(project, "1", "first")
    assert versions.aliases(project) == {"champion": "1"}
    return project


@pytest.fixture
def store(registry, tmp_path, monkeypatch):
    """Create data and a ledger for this test alone."""
    monkeypatch.setenv("AIRLOOP_HOME", str(tmp_path / "home"))
    for name in ("AIRLOOP_DATA_ROOT", "AIRLOOP_LEDGER_URL"):
        monkeypatch.delenv(name, raising=False)
    get_settings.cache_clear()
    yield tmp_path
    monkeypatch.undo()
    get_settings.cache_clear()


@pytest.fixture
def serving(store, deployed, monkeypatch):
    """Run a service that reports the registry's state. deploy finds it through the settings."""
    follower = Follower(deployed)
    monkeypatch.setenv("AIRLOOP_SERVING_PORT", str(follower.port))
    get_settings.cache_clear()
    yield follower
    follower.close()
