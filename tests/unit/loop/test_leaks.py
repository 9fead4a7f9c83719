"""The search for leaks finds planted secrets in every place.

Otherwise an empty result would prove nothing.
"""

import os
import sqlite3
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import SecretStr

from include.settings import Settings
from tests.loop.leaks import KEEPERS, accounts, nothing_leaked, secrets_of

SECRET = "planted-by-this-test-0815"


def in_a_log(settings):
    (settings.home / "logs").mkdir()
    (settings.home / "logs" / "scheduler.log").write_text(f"connecting as airloop:{SECRET}@db\n")


def in_a_database(settings):
    with sqlite3.connect(settings.home / "airflow.db") as connection:
        connection.execute("CREATE TABLE rendered_task_instance_fields (fields TEXT)")
        connection.execute(
            "INSERT INTO rendered_task_instance_fields VALUES (?)", [f'{{"bash_command": "login {SECRET}"}}']
        )


def in_the_prediction_log(settings):
    folder = settings.home / "store" / "flights" / "prediction_log"
    folder.mkdir(parents=True)
    pq.write_table(pa.table({"caller": [SECRET] * 1000}), folder / "part.parquet", compression="zstd")


@pytest.mark.parametrize("plant", [in_a_log, in_a_database, in_the_prediction_log])
def test_a_secret_is_found_in_what_was_written(tmp_path, plant):
    settings = Settings(home=tmp_path)
    nothing_leaked(settings, {"planted": SECRET}, [tmp_path], {})
    plant(settings)
    with pytest.raises(AssertionError, match="planted"):
        nothing_leaked(settings, {"planted": SECRET}, [tmp_path], {})


def test_a_secret_is_found_in_an_answer(tmp_path):
    with pytest.raises(AssertionError, match="the answer to GET /models"):
        nothing_leaked(
            Settings(home=tmp_path), {"planted": SECRET}, [tmp_path], {"GET /models": f"500 no login with {SECRET}"}
        )


def test_a_secret_is_found_on_a_command_line(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", "input()", SECRET], stdin=subprocess.PIPE)
    try:
        with pytest.raises(AssertionError, match=f"the command line of {process.pid}"):
            nothing_leaked(Settings(home=tmp_path), {"planted": SECRET}, [tmp_path], {})
    finally:
        process.communicate(b"\n")


def test_where_secrets_belong_they_are_only_for_their_owner(tmp_path):
    file = tmp_path / KEEPERS[0]
    file.parent.mkdir()
    file.write_text(SECRET)
    file.chmod(0o600)
    nothing_leaked(Settings(home=tmp_path), {"planted": SECRET}, [tmp_path], {})
    file.chmod(0o644)
    with pytest.raises(AssertionError, match="secrets.json"):
        nothing_leaked(Settings(home=tmp_path), {"planted": SECRET}, [tmp_path], {})


def test_every_secret_of_the_settings_is_looked_for(tmp_path):
    url = SecretStr("postgresql://ledger:p%40ssword-of-the-ledger@db:5432/ledger")
    settings = Settings(home=tmp_path).model_copy(update={**accounts(), "ledger_url": url})
    secrets = secrets_of(settings, connection=SECRET)
    assert {"mlflow_reader_password", "serving_api_key", "airflow_fernet_key", "connection"} <= secrets.keys()
    assert {"p@ssword-of-the-ledger", "p%40ssword-of-the-ledger"} <= set(secrets.values())
    assert os.environ.get("AIRLOOP_LEDGER_URL") is None
