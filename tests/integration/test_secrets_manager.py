"""Secrets, and Airflow's connections and variables, from a server with the AWS Secrets Manager API.

The secrets are those of the settings.
"""

import json
import os
import subprocess
import sys
import time

import pytest

from include.secrets_manager import fault
from include.settings import REPOSITORY, SettingsError, get_settings
from include.stack.environment import airflow_environment
from tests.secrets_server import PROFILE, secrets_server, without_aws

PASSWORD = "from-the-secrets-manager-0815"


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with secrets_server(tmp_path_factory.mktemp("secrets")) as server:
        yield server


@pytest.fixture
def server(running, monkeypatch):
    """Run the server, and configure this process to use it."""
    for name in without_aws():
        monkeypatch.delenv(name)
    for name, value in {**running.variables, "AIRLOOP_SECRETS_PROFILE": PROFILE}.items():
        monkeypatch.setenv(name, value)
    if not running.answers():
        running.start()
    get_settings.cache_clear()
    yield running
    get_settings.cache_clear()


def test_settings_are_read_there_and_what_is_nearer_wins(server, monkeypatch, tmp_path):
    server.put(
        "airloop/production",
        json.dumps(
            {"AIRLOOP_MLFLOW_PASSWORD": PASSWORD, "airloop_serving_api_key": "theirs", "AIRLOOP_MLFLOW_USERNAME": "x"}
        ),
    )
    monkeypatch.setenv("AIRLOOP_SECRETS_ID", "airloop/production")
    (tmp_path / "airloop_serving_api_key").write_text("of-a-file")
    monkeypatch.setenv("AIRLOOP_SECRETS_DIR", str(tmp_path))
    monkeypatch.setenv("AIRLOOP_MLFLOW_USERNAME", "somebody")
    settings = get_settings()
    assert settings.mlflow_password.get_secret_value() == PASSWORD
    assert settings.serving_api_key.get_secret_value() == "of-a-file"
    assert settings.mlflow_username == "somebody"


def test_a_process_that_is_started_by_another_does_not_ask_again(server, monkeypatch):
    server.put("airloop/once", json.dumps({"AIRLOOP_SERVING_API_KEY": PASSWORD}))
    monkeypatch.setenv("AIRLOOP_SECRETS_ID", "airloop/once")
    environment = get_settings().environment()
    assert environment["AIRLOOP_SERVING_API_KEY"] == PASSWORD and "AIRLOOP_SECRETS_ID" not in environment


@pytest.mark.parametrize(
    "secret_id, content, expected",
    [
        pytest.param(
            "airloop/none",
            None,
            "does not give 'airloop/none': ResourceNotFoundException. Make it: aws secretsmanager",
            id="there is none",
        ),
        pytest.param(
            "airloop/list", f'["{PASSWORD}"]', "the secret 'airloop/list' is not a JSON object", id="no object"
        ),
        pytest.param("airloop/text", PASSWORD, "the secret 'airloop/text' is not a JSON object", id="no JSON"),
        pytest.param(
            "airloop/typo",
            json.dumps({"AIRLOOP_MLFLOW_PASWORD": PASSWORD}),
            "contains AIRLOOP_MLFLOW_PASWORD, which is not a setting",
            id="a name that is none",
        ),
    ],
)
def test_what_cannot_be_used_is_named_and_not_shown(server, monkeypatch, secret_id, content, expected):
    if content is not None:
        server.put(secret_id, content)
    monkeypatch.setenv("AIRLOOP_SECRETS_ID", secret_id)
    with pytest.raises(SettingsError) as raised:
        get_settings()
    assert f"AIRLOOP_SECRETS_ID is '{secret_id}'" in str(raised.value) and expected in str(raised.value)
    assert PASSWORD not in str(raised.value)


def test_when_it_is_away_that_is_said_within_seconds(server, monkeypatch):
    assert fault(PROFILE) is None
    server.kill()
    monkeypatch.setenv("AIRLOOP_SECRETS_ID", "airloop/production")
    began = time.monotonic()
    with pytest.raises(
        SettingsError,
        match="AWS Secrets Manager cannot be asked for 'airloop/production': Could not connect to the endpoint URL",
    ):
        get_settings()
    assert time.monotonic() - began < 60
    command = subprocess.run(
        [sys.executable, "-m", "include.cli", "status"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert command.returncode == 2 and "AIRLOOP_SECRETS_ID" in command.stderr and "Traceback" not in command.stderr
    assert "Could not connect" in fault(PROFILE)


def test_an_unknown_profile_is_named(server, monkeypatch):
    monkeypatch.setenv("AIRLOOP_SECRETS_PROFILE", "nobody")
    monkeypatch.setenv("AIRLOOP_SECRETS_ID", "airloop/production")
    with pytest.raises(SettingsError, match="nobody.*AIRLOOP_SECRETS_PROFILE"):
        get_settings()


CONNECTION_AND_VARIABLE = """
import sys
from airflow.configuration import ensure_secrets_loaded
for backend in ensure_secrets_loaded():
    found = backend.get_connection("airloop_store")
    if found:
        print(type(backend).__name__, found.conn_type, found.login, found.password == sys.argv[1], found.extra_dejson)
        break
for backend in ensure_secrets_loaded():
    if (value := backend.get_variable("site")) is not None:
        print(type(backend).__name__, value)
        break
"""
STORE = {"conn_type": "aws", "login": "airflow", "password": PASSWORD, "extra": '{"endpoint_url": "http://s3:7070"}'}


def asked_by_airflow(settings, tmp_path) -> str:
    """Return what Airflow finds in the environment of its processes."""
    environment = airflow_environment(
        settings.model_copy(update={"home": tmp_path / "home", "storage_connection": "airloop_store"})
    )
    command = [sys.executable, "-c", CONNECTION_AND_VARIABLE, PASSWORD]
    done = subprocess.run(
        command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_airflow_finds_connections_and_variables_there(server, monkeypatch, tmp_path):
    """Airflow finds connections and variables in the secrets manager.

    Its processes do not have AWS_ACCESS_KEY_ID: with a storage connection only tasks have AWS
    credentials.
    """
    server.put("airloop/connections/airloop_store", json.dumps(STORE))
    server.put("airloop/variables/site", "hamburg")
    monkeypatch.setenv("AIRLOOP_SECRETS_BACKEND", "aws")
    output = asked_by_airflow(get_settings(), tmp_path)
    assert (
        "SecretsManagerBackend aws airflow True {'endpoint_url': 'http://s3:7070'}" in output
        and "SecretsManagerBackend hamburg" in output
    )


def test_airflow_finds_connections_and_variables_in_files(monkeypatch, tmp_path):
    for name in without_aws():
        monkeypatch.delenv(name)
    folder = tmp_path / "secrets"
    folder.mkdir()
    (folder / "connections.json").write_text(json.dumps({"airloop_store": STORE}))
    (folder / "variables.json").write_text(json.dumps({"site": "hamburg"}))
    monkeypatch.setenv("AIRLOOP_SECRETS_DIR", str(folder))
    get_settings.cache_clear()
    output = asked_by_airflow(get_settings(), tmp_path)
    get_settings.cache_clear()
    assert "LocalFilesystemBackend aws airflow True" in output and "LocalFilesystemBackend hamburg" in output


def test_a_task_is_told_that_the_backend_is_away(server, monkeypatch, airflow_home):
    """A task reports an unavailable backend, and not a missing connection."""
    from include.dag_kit.storage import ConnectionNotFoundError, connection_variables

    monkeypatch.setenv("AIRLOOP_SECRETS_BACKEND", "aws")
    get_settings.cache_clear()
    with pytest.raises(ConnectionNotFoundError, match="this Airflow connection does not exist"):
        connection_variables("nobody_knows_it")
    server.kill()
    with pytest.raises(
        ConnectionNotFoundError,
        match="AIRLOOP_STORAGE_CONNECTION.* cannot be read: AWS Secrets Manager cannot be asked: Could not connect",
    ):
        connection_variables("nobody_knows_it")
    assert os.environ["AWS_ENDPOINT_URL_SECRETS_MANAGER"]
