"""The four steps in docs/runbooks/access.md rotate the Fernet key on a real Airflow database."""

import os
import sqlite3
import subprocess
import sys

import pytest
from cryptography.fernet import Fernet, InvalidToken

from include.settings import REPOSITORY, Settings
from include.stack.environment import airflow_environment


@pytest.mark.timeout(300)
def test_a_connection_is_readable_with_the_new_key_alone(tmp_path):
    old, new = (Fernet.generate_key().decode() for _ in range(2))
    settings = Settings(home=tmp_path, airflow_fernet_key=old)
    # Remove the variables of another test's Airflow from this process: a container's environment
    # overrides the settings.
    given = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW__", "AIRLOOP_"))} | {
        "AIRLOOP_ENV_FILE": ""
    }
    environment = given | airflow_environment(settings)
    subprocess.run(
        [sys.executable, "-m", "airflow", "db", "migrate"],
        env=environment,
        check=True,
        capture_output=True,
        timeout=200,
    )
    add = [
        "connections",
        "add",
        "store",
        "--conn-type",
        "aws",
        "--conn-login",
        "jo",
        "--conn-password",
        "a secret of the store",
    ]
    subprocess.run(
        [sys.executable, "-m", "airflow", *add], env=environment, check=True, capture_output=True, timeout=100
    )

    def password(key: str) -> str:
        with sqlite3.connect(
            environment["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"].partition(":///")[2].partition("?")[0]
        ) as database:
            stored = database.execute("SELECT password FROM connection WHERE conn_id = 'store'").fetchone()[0]
        return Fernet(key).decrypt(stored.encode()).decode()

    assert password(old) == "a secret of the store"
    changed = given | {"AIRLOOP_HOME": str(tmp_path), "AIRLOOP_AIRFLOW_FERNET_KEY": f"{new},{old}"}
    command = [sys.executable, "-m", "include.stack.component", "rotate-fernet-key"]
    for _ in range(2):  # safe to repeat
        done = subprocess.run(command, cwd=REPOSITORY, env=changed, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stderr[-2000:]
        assert password(new) == "a secret of the store"
    with pytest.raises(InvalidToken):
        password(old)
