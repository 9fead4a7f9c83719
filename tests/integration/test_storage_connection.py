"""An Airflow connection becomes the standard variables of every task of every DAG.

If the data is stored in files, no variables are set.
"""

import json
import os

import pytest

from include.settings import REPOSITORY, Settings, get_settings

SECRET = "the-secret-of-the-test"
VARIABLES = (
    "AWS_ENDPOINT_URL",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_ALLOW_HTTP",
)


@pytest.fixture
def connection(airflow_home, fresh_store, monkeypatch):
    """Return a function that defines and configures the Airflow connection ``our_store``.

    Example: ``connection(login=..., extra={...})``.
    """
    for name in [*VARIABLES, "AWS_CONDITIONAL_PUT", "MLFLOW_S3_ENDPOINT_URL"]:
        # Makes monkeypatch restore the variable after the test.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)

    def define(conn_type="aws", **parts):
        monkeypatch.setenv("AIRFLOW_CONN_OUR_STORE", json.dumps({"conn_type": conn_type, **parts}))

    monkeypatch.setenv("AIRLOOP_STORAGE_CONNECTION", "our_store")
    monkeypatch.setenv("AIRLOOP_DATA_ROOT", "s3://bucket/prefix")
    get_settings.cache_clear()
    return define


def handed_on() -> dict[str, str]:
    from include.dag_kit.defaults import export_storage_env

    export_storage_env({})
    return {name: os.environ[name] for name in VARIABLES if name in os.environ}


def test_login_password_endpoint_and_region_become_the_standard_variables(connection):
    connection(login="key", password=SECRET, extra={"endpoint_url": "http://store:9000", "region_name": "eu-central-1"})
    assert handed_on() == {
        "AWS_ENDPOINT_URL": "http://store:9000", "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "eu-central-1", "AWS_DEFAULT_REGION": "eu-central-1", "AWS_ALLOW_HTTP": "true",
    }  # fmt: skip
    assert os.environ["AWS_CONDITIONAL_PUT"] == "etag" and os.environ["MLFLOW_S3_ENDPOINT_URL"] == "http://store:9000"


def test_a_token_of_others_does_not_stay_beside_new_credentials(connection, monkeypatch):
    monkeypatch.setenv("AWS_SESSION_TOKEN", "of-somebody-else")
    connection(login="key", password=SECRET, extra={"aws_session_token": "ours"})
    assert handed_on()["AWS_SESSION_TOKEN"] == "ours"
    connection(login="key", password=SECRET)
    assert "AWS_SESSION_TOKEN" not in handed_on()


def test_a_connection_without_credentials_leaves_the_machines_own(connection, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "the machine's")
    connection(extra={"region_name": "eu-central-1"})
    assert handed_on() == {
        "AWS_ACCESS_KEY_ID": "the machine's",
        "AWS_REGION": "eu-central-1",
        "AWS_DEFAULT_REGION": "eu-central-1",
    }


def test_nothing_is_read_where_data_lies_on_files(connection, monkeypatch):
    monkeypatch.delenv("AIRLOOP_DATA_ROOT")
    get_settings.cache_clear()
    assert handed_on() == {}  # the connection is not even defined


def test_a_connection_that_is_not_there_or_of_another_kind_is_told(connection):
    with pytest.raises(
        ValueError, match="this Airflow connection does not exist.*'our_store'; make it: airflow connections add"
    ) as missing:
        handed_on()
    assert "docs/runbooks/storage.md" in str(missing.value)
    connection(conn_type="postgres", login="key", password=SECRET)
    with pytest.raises(ValueError, match="of type 'postgres', not 'aws'") as wrong:
        handed_on()
    assert SECRET not in str(wrong.value)


def test_every_task_of_every_dag_is_handed_them_mapped_ones_too(airflow_home):
    from airflow.dag_processing.dagbag import DagBag

    from include.dag_kit.defaults import export_storage_env

    bag = DagBag(REPOSITORY / "dags")
    tasks = [task for dag in bag.dags.values() for task in dag.tasks]
    mapped = [task for task in tasks if task.is_mapped]
    assert len(tasks) > 30 and mapped, "nothing was looked at"
    hooks = {
        task.node_id: task.partial_kwargs.get("pre_execute") if task.is_mapped else task._pre_execute_hook
        for task in tasks
    }
    assert [name for name, hook in hooks.items() if hook is None or hook.__name__ != export_storage_env.__name__] == []


def test_the_stack_makes_the_connection_of_the_standard_variables(monkeypatch, tmp_path):
    """The stack creates the connection from the standard variables.

    On one machine a user sets AWS_* and the connection's name. Airflow's processes get only the
    connection, and no other credentials.
    """
    from include.stack.environment import airflow_environment, mlflow_environment, serving_environment

    monkeypatch.delenv("AIRFLOW_CONN_OUR_STORE", raising=False)
    given = {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_ENDPOINT_URL": "http://store:9000",
        "AWS_REGION": "r",
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    settings = Settings(
        home=tmp_path, data_root="s3://bucket/prefix", storage_connection="our_store", remote_logs="s3://bucket/logs"
    )
    airflow = airflow_environment(settings)
    made = json.loads(airflow["AIRFLOW_CONN_OUR_STORE"])
    assert made == {
        "conn_type": "aws",
        "login": "key",
        "password": SECRET,
        "extra": {"region_name": "r", "endpoint_url": "http://store:9000"},
    }
    assert not {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} & airflow.keys()
    assert (
        airflow["AIRFLOW__LOGGING__REMOTE_BASE_LOG_FOLDER"] == "s3://bucket/logs"
        and airflow["AIRFLOW__LOGGING__REMOTE_LOG_CONN_ID"] == "our_store"
    )
    for environment in (mlflow_environment(settings), serving_environment(settings)):
        assert given.items() <= environment.items() and "AIRFLOW_CONN_OUR_STORE" not in environment
        assert environment["AWS_ALLOW_HTTP"] == "true"
    assert [file for file in tmp_path.rglob("*") if file.is_file() and SECRET.encode() in file.read_bytes()] == []

    monkeypatch.setenv("AIRFLOW_CONN_OUR_STORE", "aws://other")  # a user's own connection is kept
    assert airflow_environment(settings)["AIRFLOW_CONN_OUR_STORE"] == "aws://other"
