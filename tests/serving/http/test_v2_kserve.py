"""The Open Inference Protocol with KServe's own client, in a separate environment."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.serving.harness import NAME, Registry, serving_process

pytestmark = pytest.mark.stack
# Its dependencies conflict with those of this project.
REQUIREMENT = "kserve==0.21.0"
CLIENT = Path(__file__).with_name("kserve_client.py")


@pytest.fixture(scope="module")
def python() -> str:
    """Return the Python of an environment with the client.

    It stays in the folder for temporary files, so that a second session starts some seconds faster.
    """
    folder = Path(tempfile.gettempdir()) / f"airloop-tests-{REQUIREMENT.replace('==', '-')}"
    python = folder / "bin" / "python"
    done = folder / "complete"
    if not done.exists():
        commands = [
            [sys.executable, "-m", "uv", "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)],
            [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", str(python), REQUIREMENT],
        ]
        for command in commands:
            made = subprocess.run(command, capture_output=True, text=True, timeout=400)
            if made.returncode:
                pytest.skip(
                    f"{REQUIREMENT} cannot be installed ({made.stderr.strip()[-300:]}); it needs uv and a package index"
                )
        done.touch()
    return str(python)


@pytest.fixture(scope="module")
def results(python, migrated, features, tmp_path_factory):
    folder = tmp_path_factory.mktemp("kserve")
    (folder / "mlflow.db").write_bytes(migrated.read_bytes())
    registry = Registry(f"sqlite:///{folder / 'mlflow.db'}", folder)
    registry.add(bias=1)
    service = serving_process(folder, registry.uri, features)
    try:
        service.wait("/ready", 240)
        done = subprocess.run([python, str(CLIENT), service.url, NAME], capture_output=True, text=True, timeout=120)
    finally:
        service.end()
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_health(results):
    assert (results["live"], results["ready"], results["model ready"]) == (True, True, [True, False])


@pytest.mark.parametrize(("way", "datatypes"), [("binary", 12), ("json", 11)])
def test_every_numeric_datatype(results, way, datatypes):
    assert len(results[way]) == datatypes
    assert {datatype: answers for datatype, answers in results[way].items() if answers != [110, 10]} == {}


def test_outputs(results):
    assert results["binary output"] == [110, 10]
    # The client itself drops the version of the model.
    assert results["outputs"] == ["r-7", None, ["prediction_id", "prediction"], [110, 10]]


def test_missing_values_and_nulls(results):
    assert (results["nulls"], results["nan"]) == ([110, 10], [101, 10])


def test_errors_reach_the_client(results):
    """Errors reach the client, which reads the message only from application/json."""
    status, message = results["unknown model"]
    assert status == 404 and message.startswith("no registered model 'nobody'")
    status, message = results["wrong shape"]
    assert status == 422 and message.startswith("it must be [n, 5]")
