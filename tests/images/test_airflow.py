"""The Airflow image parses every DAG, has all imports of the tasks, and does not contain torch."""

import pytest

from tests.architecture.test_images import IMPORTS
from tests.images.test_training import ABSENT, WRITES

pytestmark = [pytest.mark.timeout(3600), pytest.mark.stack, pytest.mark.images]

PARSE = """
import subprocess, sys
subprocess.run([sys.executable, "-m", "airflow", "db", "migrate"], check=True, capture_output=True)
from airflow.dag_processing.dagbag import DagBag
bag = DagBag("/app/dags")
print(sorted(bag.dags))
raise SystemExit(str(bag.import_errors) if bag.import_errors or len(bag.dags) < 6 else 0)
"""


def test_nobody_runs_it_and_it_has_no_torch(engine, airflow_image, size):
    inside = ("--entrypoint", "python")
    assert engine.run(airflow_image, "-c", WRITES, options=inside).stdout.split() == ["10001", "10001", "/app"]
    engine.run(airflow_image, "-c", ABSENT % (["torch", "onnx", "skl2onnx", "serving", "pytest"],), options=inside)
    assert "3.3.2" in engine.run(airflow_image).stdout
    size(airflow_image, 2500)


def test_it_parses_every_dag_and_has_what_the_tasks_import(engine, airflow_image):
    inside = ("--entrypoint", "python")
    output = engine.run(airflow_image, "-c", PARSE, options=inside).stdout
    assert "flights__train" in output
    print(engine.run(airflow_image, "-c", IMPORTS, options=inside).stdout)
