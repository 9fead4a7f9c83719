"""One real stack for the tests of this folder, in a home and on ports of its own. The last test of test_stack.py takes it down."""

import os
import socket
import subprocess
import sys

import pytest

from include.settings import REPOSITORY, Settings
from include.stack.api import AirflowApi


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def stack_settings(tmp_path_factory) -> Settings:
    """Settings of a stack that nobody else has: its own home, ports and DAG folder (empty; a test puts its DAG files there)."""
    root = tmp_path_factory.mktemp("stack")
    (root / "dags").mkdir()
    ports = {name: free_port() for name in ("airflow_port", "mlflow_port", "serving_port")}
    return Settings(home=root / "home", dags_folder=root / "dags", parallelism=2, restart=False, **ports)  # a test kills the scheduler


@pytest.fixture(scope="session")
def airloop(stack_settings):
    """Runs the `airloop` command with those settings, as a person would; the stack is taken down at the end."""

    def run(*arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "include.cli", *arguments]
        environment = os.environ | stack_settings.environment()
        return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=1000, check=False)

    yield run
    run("down")


@pytest.fixture(scope="session")
def api(stack_settings, airloop) -> AirflowApi:
    """The client of a stack that is up."""
    result = airloop("up")
    assert result.returncode == 0, result.stdout + result.stderr
    return AirflowApi.of(stack_settings)
