"""One real stack for the tests of this folder, with its own home and ports.

The last test of test_stack.py stops it.
"""

import os
import subprocess
import sys

import pytest

from include.settings import REPOSITORY, Settings
from include.stack.api import AirflowApi
from tests.ports import free_port


@pytest.fixture(scope="session")
def stack_settings(tmp_path_factory) -> Settings:
    """Return settings of an isolated stack: its own home, ports and DAG folder.

    The DAG folder is empty. A test adds its DAG files.
    """
    root = tmp_path_factory.mktemp("stack")
    (root / "dags").mkdir()
    ports = {name: free_port() for name in ("airflow_port", "mlflow_port", "serving_port")}
    return Settings(
        home=root / "home", dags_folder=root / "dags", parallelism=2, restart=False, **ports
    )  # a test kills the scheduler


@pytest.fixture(scope="session")
def airloop(stack_settings):
    """Return a function that runs the `airloop` command with these settings.

    Stop the stack at the end.
    """

    def run(*arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "include.cli", *arguments]
        environment = os.environ | stack_settings.environment()
        return subprocess.run(
            command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=1000, check=False
        )

    yield run
    run("down")


@pytest.fixture(scope="session")
def api(stack_settings, airloop) -> AirflowApi:
    """Return the client of a running stack."""
    result = airloop("up")
    assert result.returncode == 0, result.stdout + result.stderr
    return AirflowApi.from_settings(stack_settings)
