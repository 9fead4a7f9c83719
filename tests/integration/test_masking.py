"""Every process of Airflow masks known secrets in logs and templates from the first line."""

import json
import os
import subprocess
import sys

import pytest
from pydantic import SecretStr

from include.settings import REPOSITORY, Settings, get_settings, known_secrets
from include.stack.environment import airflow_environment

SECRETS = {
    "mlflow_password": "of-mlflow-0815-4711",
    "serving_api_key": "of-serving-0815-4711",
    "ledger": "of-the-ledger+0815",
    "connection": "of-a-connection-0815",
    "store": "of-the-store-0815",
}
OTHERS = (
    "airflow_admin_password",
    "mlflow_admin_password",
    "mlflow_reader_password",
    "mlflow_flask_secret_key",
    "database_admin_url",
    "mlflow_database_url",
)
TELL = """
import os, sys
import airflow
from airflow._shared.secrets_masker import redact
from airflow.sdk.log import mask_secret
from airflow.sdk._shared.secrets_masker import redact as redact_in_tasks
print("core", redact({k: v for k, v in os.environ.items()}, max_depth=3))
print("task", redact_in_tasks("; ".join(os.environ.values())))
"""


@pytest.fixture
def environment(tmp_path, monkeypatch) -> dict[str, str]:
    monkeypatch.setenv("AIRFLOW_CONN_PLAIN", f"http://somebody:{SECRETS['connection']}@example.org")
    monkeypatch.setenv(
        "AIRFLOW_CONN_AIRLOOP_STORE", json.dumps({"conn_type": "aws", "login": "airflow", "password": SECRETS["store"]})
    )
    given = {name: SecretStr(SECRETS[name]) for name in ("mlflow_password", "serving_api_key")}
    url = SecretStr(f"postgresql://ledger:{SECRETS['ledger']}@db:5432/ledger")
    others = {name: SecretStr(f"{name}-0815") for name in OTHERS}
    return airflow_environment(
        Settings(home=tmp_path).model_copy(update={**given, **others, "mlflow_username": "airloop", "ledger_url": url})
    )


def test_what_a_process_knows_is_hidden_by_both_of_airflows_maskers(environment):
    done = subprocess.run(
        [sys.executable, "-c", TELL],
        env=environment,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    core, task = (next(line for line in done.stdout.splitlines() if line.startswith(who)) for who in ("core", "task"))
    assert "***" in core and "***" in task and "AIRLOOP_HOME" in core
    keys = [environment[f"AIRFLOW__{name}"] for name in ("CORE__FERNET_KEY", "API_AUTH__JWT_SECRET", "API__SECRET_KEY")]
    assert [
        (who, secret)
        for who, log_line in (("core", core), ("task", task))
        for secret in (*SECRETS.values(), *keys)
        if secret in log_line
    ] == []


def test_no_process_of_airflow_is_told_what_others_need(environment):
    assert not {f"{name}-0815" for name in OTHERS} & set(environment.values())


def test_what_is_no_url_with_a_password_has_none(monkeypatch):
    # A stack shared with other tests may have set its own.
    for name in [name for name in os.environ if name.startswith("AIRLOOP_")]:
        monkeypatch.delenv(name)
    get_settings.cache_clear()
    assert (
        known_secrets(
            {"A": "http://example.org", "B": "{no json", "C": "[1]", "D": "http://[", "E": "{}", "F": "1://x:@y"}
        )
        == []
    )
    assert known_secrets({"AWS_SECRET_ACCESS_KEY": "of-the-store", "PATH": os.environ["PATH"]}) == ["of-the-store"]
