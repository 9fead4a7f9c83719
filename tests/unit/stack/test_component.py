"""What a container's first process becomes: the same as on one machine, but for what the settings and the container say."""

import sys

import pytest

from include.settings import Settings, SettingsError
from include.stack import component
from include.stack.services import services

SECRET = "Zx-nobody-guesses-this"
STORES = {
    "airflow_database_url": f"postgresql://airflow:{SECRET}@postgres:5432/airflow",
    "feast_registry_url": f"postgresql://feast:{SECRET}@postgres:5432/feast",
    "ledger_url": f"postgresql://ledger:{SECRET}@postgres:5432/ledger",
    "online_store_url": f"redis://:{SECRET}@redis:6379/0",
}
KEYS = dict.fromkeys(("airflow_jwt_secret", "airflow_api_secret_key", "airflow_admin_password", "mlflow_password", "serving_api_key"), SECRET)


@pytest.fixture
def settings(tmp_path) -> Settings:
    fernet = "A" * 43 + "="
    return Settings(
        profile="compose",
        home=tmp_path,
        host="0.0.0.0",
        airflow_uri="http://api-server:8080",
        mlflow_uri="http://mlflow:5000",
        serving_uri="http://serving:8000",
        mlflow_username="airloop",
        airflow_fernet_key=fernet,
        **STORES,
        **KEYS,
    )


def test_a_part_of_airflow_runs_as_on_one_machine_and_the_container_s_options_win(settings):
    given = {"AIRFLOW__CORE__EXECUTOR": "CeleryExecutor", "AIRFLOW__CORE__PARALLELISM": "", "OTHER": "x"}
    found = component.command(settings, "scheduler", given)
    assert found.arguments == [sys.executable, "-m", "airflow", "scheduler"]
    assert found.environment["AIRFLOW__CORE__EXECUTOR"] == "CeleryExecutor"
    assert found.environment["AIRFLOW__CORE__PARALLELISM"] == str(settings.parallelism)  # an empty one is none
    assert found.environment["AIRFLOW__CORE__EXECUTION_API_SERVER_URL"] == "http://api-server:8080/execution/"
    on_one_machine = next(s for s in services(settings) if s.name == "scheduler").command.environment
    assert found.environment == on_one_machine | {"AIRFLOW__CORE__EXECUTOR": "CeleryExecutor"}
    assert not any(SECRET in argument for argument in found.arguments)


def test_a_celery_worker_takes_as_many_tasks_as_the_settings_say(settings):
    assert component.command(settings, "celery-worker", {}).arguments[-2:] == ["--concurrency", str(settings.parallelism)]


def test_a_missing_secret_is_named(settings):
    with pytest.raises(SettingsError, match="AIRLOOP_SERVING_API_KEY"):
        component.command(settings.model_copy(update={"serving_api_key": None}), "triggerer", {})
    with pytest.raises(SettingsError, match="AIRLOOP_MLFLOW_DATABASE_URL, AIRLOOP_MLFLOW_ADMIN_PASSWORD"):
        component.command(settings, "mlflow", {})


def test_an_unknown_part_is_told_which_there_are(settings):
    with pytest.raises(ValueError, match="no part 'web'; there is api-server, scheduler"):
        component.command(settings, "web", {})


def test_celery_s_executor_is_there_for_whoever_asks_for_it():
    """The opt-in workers of Compose: a Celery that is newer than its provider does not import, and pip does not know."""
    from airflow.providers.celery.executors.celery_executor import CeleryExecutor
    from airflow.providers.celery.executors.celery_executor_utils import execute_workload

    assert CeleryExecutor.__name__ == "CeleryExecutor" and execute_workload.name == "execute_workload"
