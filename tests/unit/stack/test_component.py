"""The first process of a container is the same as on one machine.

It differs only in what the settings and the container set.
"""

import sys

import pytest

from include.settings import AIRFLOW_SECRET_VARIABLES, REQUIRED_BY_PART, Settings, SettingsError
from include.stack import component
from include.stack.services import services

SECRET = "Zx-nobody-guesses-this"
STORES = {
    "airflow_database_url": f"postgresql://airflow:{SECRET}@postgres:5432/airflow",
    "feast_registry_url": f"postgresql://feast:{SECRET}@postgres:5432/feast",
    "ledger_url": f"postgresql://ledger:{SECRET}@postgres:5432/ledger",
    "online_store_url": f"redis://:{SECRET}@redis:6379/0",
}
KEYS = dict.fromkeys(
    ("airflow_jwt_secret", "airflow_api_secret_key", "airflow_admin_password", "mlflow_password", "serving_api_key"),
    SECRET,
)


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
    command = component.command(settings, "scheduler", given)
    assert command.arguments == [sys.executable, "-m", "airflow", "scheduler"]
    assert command.environment["AIRFLOW__CORE__EXECUTOR"] == "CeleryExecutor"
    assert command.environment["AIRFLOW__CORE__PARALLELISM"] == str(
        settings.parallelism
    )  # an empty value counts as unset
    assert command.environment["AIRFLOW__CORE__EXECUTION_API_SERVER_URL"] == "http://api-server:8080/execution/"
    on_one_machine = next(s for s in services(settings) if s.name == "scheduler").command.environment
    assert command.environment == on_one_machine | {"AIRFLOW__CORE__EXECUTOR": "CeleryExecutor"}
    assert not any(SECRET in argument for argument in command.arguments)


def test_a_fernet_key_is_changed_with_both_keys_set(settings):
    both = f"{'B' * 43}=,{'A' * 43}="
    changing = Settings(
        **settings.model_dump(exclude={"airflow_fernet_key"}, exclude_computed_fields=True), airflow_fernet_key=both
    )
    command = component.command(changing, "rotate-fernet-key", {})
    assert command.arguments[-1] == "rotate-fernet-key" and command.environment["AIRFLOW__CORE__FERNET_KEY"] == both


@pytest.fixture
def of_a_worker(settings) -> Settings:
    """Return the environment that docker-compose.yaml gives a worker."""
    return settings.model_copy(update=dict.fromkeys((*REQUIRED_BY_PART["airflow"], *REQUIRED_BY_PART["accounts"])))


def test_a_celery_worker_takes_as_many_tasks_as_the_settings_say(of_a_worker):
    assert component.command(of_a_worker, "celery-worker", {}).arguments[-2:] == [
        "--concurrency",
        str(of_a_worker.parallelism),
    ]


def test_a_celery_worker_has_what_tasks_need_and_no_secret_of_airflow(of_a_worker, settings):
    environment = component.command(
        of_a_worker, "celery-worker", {"AIRFLOW__CELERY__RESULT_BACKEND": "redis://broker:6379/1"}
    ).environment
    of_others = component.command(settings, "scheduler", {}).environment
    assert of_others.keys() - environment.keys() == set(AIRFLOW_SECRET_VARIABLES)
    assert {"AIRLOOP_LEDGER_URL", "AIRLOOP_MLFLOW_PASSWORD", "AIRLOOP_SERVING_API_KEY"} <= environment.keys()
    # Its log server would need the key of Airflow's sessions.
    assert "--skip-serve-logs" in component.command(of_a_worker, "celery-worker", {}).arguments


@pytest.mark.parametrize(
    "given",
    [
        {"AIRFLOW__CORE__FERNET_KEY": "x"},
        {"AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": "postgresql://a:b@c/d"},
        {"AIRFLOW__DATABASE__SQL_ALCHEMY_CONN_CMD": "cat /run/secrets/url"},
        {"AIRFLOW__DATABASE__SQL_ALCHEMY_CONN_ASYNC": "postgresql://a:b@c/d"},
        {"AIRFLOW__CORE__SQL_ALCHEMY_CONN_SECRET": "x"},
        {"AIRFLOW__API_AUTH__JWT_SECRET_CMD": "x"},
        {"AIRFLOW__API__SECRET_KEY": "x"},
        {"AIRFLOW_CONN_AIRFLOW_DB": "x"},
        {"AIRFLOW__CELERY__RESULT_BACKEND": "db+postgresql://a:b@c/d"},
    ],
    ids=lambda given: next(iter(given)),
)
def test_a_worker_that_was_given_a_secret_of_airflow_does_not_start(of_a_worker, given):
    """A worker with a secret of Airflow does not start.

    This holds for every form in which Airflow reads a secret, because the worker's tasks could read
    it, too.
    """
    with pytest.raises(SettingsError, match=f"{next(iter(given))}: set for celery-worker, .*Remove it"):
        component.command(of_a_worker, "celery-worker", given)


@pytest.mark.parametrize("name", [*REQUIRED_BY_PART["airflow"], *REQUIRED_BY_PART["accounts"]])
def test_a_worker_whose_settings_have_a_secret_of_airflow_does_not_start(of_a_worker, settings, name):
    with pytest.raises(SettingsError, match=f"AIRLOOP_{name.upper()}: set for celery-worker"):
        component.command(of_a_worker.model_copy(update={name: getattr(settings, name)}), "celery-worker", {})


def test_a_missing_secret_is_named(settings):
    with pytest.raises(SettingsError, match="AIRLOOP_SERVING_API_KEY"):
        component.command(settings.model_copy(update={"serving_api_key": None}), "triggerer", {})
    with pytest.raises(SettingsError, match="AIRLOOP_MLFLOW_DATABASE_URL, AIRLOOP_MLFLOW_ADMIN_PASSWORD"):
        component.command(settings, "mlflow", {})


def test_an_unknown_part_is_told_which_there_are(settings):
    with pytest.raises(ValueError, match="no part 'web'; there is api-server, scheduler"):
        component.command(settings, "web", {})


def test_celery_s_executor_is_there_for_whoever_asks_for_it():
    """Celery's executor can be imported for the opt-in workers of Compose.

    A Celery that is newer than its provider fails to import, and pip does not detect this.
    """
    from airflow.providers.celery.executors.celery_executor import CeleryExecutor
    from airflow.providers.celery.executors.celery_executor_utils import execute_workload

    assert CeleryExecutor.__name__ == "CeleryExecutor" and execute_workload.name == "execute_workload"
