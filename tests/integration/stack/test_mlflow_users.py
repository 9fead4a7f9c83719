"""MLflow's users on a real MLflow server.

Every access requires a password, and no default account exists. Each account has the password of
its secret, and a reader cannot write.
"""

import os
import subprocess
import time
from contextlib import contextmanager
from secrets import token_urlsafe

import httpx
import pytest
from pydantic import SecretStr
from sqlalchemy import create_engine

from include.settings import REPOSITORY, Settings, get_settings
from include.stack import services
from include.stack.accounts import mlflow_users
from include.stack.accounts.access import mlflow_credentials
from include.stack.environment import mlflow_environment
from include.stack.stores import migrations
from tests.ports import free_port

pytestmark = [pytest.mark.stack, pytest.mark.timeout(1200)]

DEFAULTS = [
    ("admin", "password"),
    ("admin", "password1234"),
    ("admin", "admin"),
    ("admin", ""),
    ("airloop", "airloop"),
    ("reader", "reader"),
]


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> Settings:
    secrets = {
        f"mlflow_{name}": token_urlsafe(15)
        for name in ("password", "reader_password", "admin_password", "flask_secret_key")
    }
    return Settings(
        home=tmp_path_factory.mktemp("mlflow"), mlflow_port=free_port(), mlflow_username="airloop", **secrets
    )


@contextmanager
def server(settings: Settings):
    """Run the server as `airloop up` starts it, after the preparation of `airloop migrate`."""
    assert migrations.migrate(settings, which=migrations.of_mlflow) == ["mlflow", "mlflow's users"]
    assert migrations.migrate(settings, which=migrations.of_mlflow) == []
    command = next(service.command for service in services.services(settings) if service.name == "mlflow")
    log = settings.home / "mlflow.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            command.arguments, env=command.environment, cwd=REPOSITORY, stdout=output, stderr=output
        )
    try:
        deadline = time.monotonic() + 600
        while not _answers(settings):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.5)
        yield
    finally:
        process.terminate()
        process.wait(60)


def _answers(settings: Settings) -> bool:
    try:
        return httpx.get(f"{settings.mlflow_url}/health", timeout=10, trust_env=False).is_success
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def mlflow(settings):
    with server(settings):
        yield settings


def call(settings: Settings, user: tuple[str, str] | None, method: str, path: str, **arguments) -> httpx.Response:
    return httpx.request(
        method, f"{settings.mlflow_url}/api/2.0/mlflow/{path}", auth=user, timeout=60, trust_env=False, **arguments
    )


def login(settings: Settings, who: str) -> tuple[str, str]:
    field = {"admin": "mlflow_admin_password", "airloop": "mlflow_password", "reader": "mlflow_reader_password"}[who]
    return who, getattr(settings, field).get_secret_value()


@pytest.mark.parametrize(
    "user",
    [None, *DEFAULTS],
    ids=lambda user: "nobody" if user is None else f"{user[0]} with {user[1] or 'no password'}",
)
def test_nobody_and_no_default_password_is_let_in(mlflow, user):
    for method, path, body in (
        ("GET", "experiments/get?experiment_id=0", None),
        ("POST", "experiments/create", {"name": "intruder"}),
        ("GET", "users/get?username=admin", None),
    ):
        assert call(mlflow, user, method, path, json=body).status_code == 401, path
    artifacts = httpx.get(
        f"{mlflow.mlflow_url}/api/2.0/mlflow-artifacts/artifacts", auth=user, timeout=60, trust_env=False
    )
    assert artifacts.status_code == 401
    assert httpx.get(f"{mlflow.mlflow_url}/", auth=user, timeout=60, trust_env=False).status_code == 401


def test_the_houses_account_writes_and_the_reader_reads(mlflow):
    airloop, reader = login(mlflow, "airloop"), login(mlflow, "reader")
    made = call(mlflow, airloop, "POST", "experiments/create", json={"name": "flights"})
    assert made.status_code == 200, made.text
    experiment = made.json()["experiment_id"]
    assert call(mlflow, airloop, "POST", "registered-models/create", json={"name": "flights"}).status_code == 200
    assert call(mlflow, reader, "GET", f"experiments/get?experiment_id={experiment}").status_code == 200
    assert call(mlflow, reader, "GET", "registered-models/get?name=flights").status_code == 200
    for path, body in (
        ("runs/create", {"experiment_id": experiment, "start_time": 1}),
        ("experiments/delete", {"experiment_id": experiment}),
        ("registered-models/alias", {"name": "flights", "alias": "champion", "version": "1"}),
        ("registered-models/set-tag", {"name": "flights", "key": "rollout", "value": "mine"}),
    ):
        assert call(mlflow, reader, "POST", path, json=body).status_code == 403, path
    assert (
        call(
            mlflow, airloop, "POST", "registered-models/set-tag", json={"name": "flights", "key": "k", "value": "v"}
        ).status_code
        == 200
    )
    assert (
        call(
            mlflow, airloop, "POST", "users/create", json={"username": "mine", "password": token_urlsafe(15)}
        ).status_code
        == 403
    )


def test_what_the_admin_made_the_house_may_write_too(mlflow):
    """Airloop's account may also write what the admin created.

    Content from before authentication was enabled does not have an owner either.
    """
    made = call(mlflow, login(mlflow, "admin"), "POST", "experiments/create", json={"name": "from before"})
    run = {"experiment_id": made.json()["experiment_id"], "start_time": 1}
    assert call(mlflow, login(mlflow, "airloop"), "POST", "runs/create", json=run).status_code == 200


def test_the_houses_own_client_logs_in(mlflow, monkeypatch):
    """Airloop's client logs in from the settings alone: `airloop demo` has no MLflow variables."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    for name, value in mlflow.environment().items():
        monkeypatch.setenv(name, value)
    get_settings.cache_clear()
    from include.registry.client import registry_client

    try:
        assert {experiment.name for experiment in registry_client().search_experiments()} >= {"flights"}
    finally:
        for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
            os.environ.pop(name, None)
        get_settings.cache_clear()


def test_the_server_knows_no_password_and_its_arguments_no_secret(mlflow):
    command = next(service.command for service in services.services(mlflow) if service.name == "mlflow")
    secrets = {
        value.get_secret_value()
        for value in (mlflow.mlflow_password, mlflow.mlflow_admin_password, mlflow.mlflow_reader_password)
    }
    assert not secrets & set(command.environment.values())
    assert not any(secret in argument for secret in secrets for argument in command.arguments)
    assert (mlflow.home / "mlflow" / "basic_auth.ini").stat().st_mode & 0o077 == 0


def test_a_changed_secret_is_the_accounts_password_at_the_next_start(mlflow):
    """A changed secret becomes the account's password at the next start.

    This test runs last, because it changes the passwords. The server of the other tests caches an
    old password for 30 s, so the database is queried.
    """
    changed = mlflow.model_copy(update={"mlflow_password": SecretStr(token_urlsafe(15))})
    before, after = mlflow_users.users(mlflow), mlflow_users.users(changed)
    engine = create_engine(mlflow.mlflow_database)
    try:
        assert mlflow_users.in_order(engine, before) and not mlflow_users.in_order(engine, after)
        mlflow_users.make(mlflow.mlflow_database, after)
        assert mlflow_users.in_order(engine, after) and not mlflow_users.in_order(engine, before)
    finally:
        engine.dispose()


def test_serving_logs_in_as_the_reader(settings):
    assert mlflow_credentials(settings, reads_only=True)["MLFLOW_TRACKING_USERNAME"] == "reader"
    assert mlflow_credentials(settings)["MLFLOW_TRACKING_USERNAME"] == "airloop"
    without = settings.model_copy(update={"mlflow_reader_password": None})
    assert mlflow_credentials(without, reads_only=True) == mlflow_credentials(settings)


def test_who_asks_nobody_has_no_accounts(tmp_path):
    plain = Settings(home=tmp_path)
    assert mlflow_users.users(plain) == [] and "MLFLOW_AUTH_CONFIG_PATH" not in mlflow_environment(plain)
