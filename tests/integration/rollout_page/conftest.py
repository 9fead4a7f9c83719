"""Airflow's own app with its auth manager and plugins, in this process, and a real registry.

The registry is MLflow on SQLite with flights deployed.
"""

import pytest

from include.registry.client import registry_client
from include.rollout import promotion
from include.settings import get_settings
from tests.integration.rollout_page.browsing import CUTOFF, PROJECT, ROLES
from tests.unit.rollout.harness import Follower


@pytest.fixture(scope="package")
def airflow(airflow_home):
    """Return Airflow's app as its API server runs it."""
    from airflow.api_fastapi.app import create_app, purge_cached_app

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS", ",".join(f"{name}:{role}" for name, role in ROLES.items())
        )
        purge_cached_app()
        yield create_app(apps="core")
    purge_cached_app()


@pytest.fixture(scope="package")
def registry(tmp_path_factory):
    return f"sqlite:///{tmp_path_factory.mktemp('registry') / 'mlflow.db'}"


@pytest.fixture
def deployed(registry, fresh_store, monkeypatch):
    """Deploy versions 1 to 3 of flights.

    Version 2 is champion after version 1, and serving follows.

    The ledger is empty.
    """
    for name, value in {
        "MLFLOW_TRACKING_URI": registry,
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    }.items():
        monkeypatch.setenv(name, value)
    client = registry_client()
    if client.search_registered_models(f"name = '{PROJECT.name}'"):
        client.delete_registered_model(PROJECT.name)
    client.create_registered_model(PROJECT.name)
    for version in ("1", "2", "3"):
        tags = {
            "gate": "passed",
            "judged_against": str(int(version) - 1) if version != "1" else "",
            "cutoff": f"2013-0{version}-01T00:00:00Z",
        }
        client.create_model_version(PROJECT.name, f"/nowhere/{version}", tags=tags)
    follower = Follower(PROJECT)
    monkeypatch.setenv("AIRLOOP_SERVING_PORT", str(follower.port))
    get_settings.cache_clear()
    for version in ("1", "2"):
        promotion.promote(PROJECT, version, dag_run=f"run {version}", cutoff=CUTOFF, by_person=False)
        promotion.confirm(PROJECT, version, f"run {version}")
    yield follower
    follower.close()


@pytest.fixture
def as_(airflow, deployed):
    """Return a function that returns a user's browser.

    ``as_("olga")`` is logged in as olga, and ``as_(None)`` is not logged in.
    """
    from airflow.api_fastapi.app import get_auth_manager
    from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser
    from fastapi.testclient import TestClient

    def browser(name: str | None) -> TestClient:
        user = SimpleAuthManagerUser(username=name, role=ROLES[name].upper()) if name else None
        return TestClient(
            airflow, cookies={"_token": get_auth_manager().generate_jwt(user)} if user else {}, follow_redirects=False
        )

    return browser
