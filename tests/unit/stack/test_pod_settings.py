"""Settings with which no pod could work are refused, and the error names what to set."""

from pathlib import Path

import pytest

from include.settings import Settings
from include.stack.pod_settings import validate_pod_settings

S3, REACHABLE = {"data_root": "s3://bucket/prefix"}, "http://10.0.0.7:5000"


@pytest.mark.parametrize(
    ("given", "mlflow", "message"),
    [
        pytest.param(S3, "http://127.0.0.1:5000", "set AIRLOOP_HOST to an address", id="the embedded default"),
        pytest.param(S3, "http://localhost:5000", "where a pod finds itself alone", id="by name"),
        pytest.param(S3, "http://0.0.0.0:5000", "where a pod finds itself alone", id="every address is none to go to"),
        pytest.param({}, REACHABLE, "a folder that no pod sees: set AIRLOOP_DATA_ROOT", id="data on files"),
        pytest.param(S3, "https://me:secret@mlflow.example", "holds a password", id="a password in an address"),
        pytest.param(
            S3 | {"pod_template": Path("pod.yaml")},
            "https://me:secret@mlflow.example",
            "holds a password",
            id="also with a template",
        ),
    ],
)
def test_what_no_pod_could_work_with_is_refused(given, mlflow, message):
    problem = validate_pod_settings(Settings(compute="kubernetes", **given), mlflow)
    assert problem and message in problem and "secret@" not in problem


@pytest.mark.parametrize(
    ("given", "mlflow"),
    [
        pytest.param(S3, REACHABLE, id="an address that pods reach, and S3"),
        pytest.param(S3, "https://mlflow.example", id="a name"),
        pytest.param(
            {"pod_template": Path("pod.yaml")},
            "http://127.0.0.1:5000",
            id="a template may mount the folder and use the machine's network",
        ),
    ],
)
def test_what_pods_can_work_with_is_not(given, mlflow):
    assert validate_pod_settings(Settings(compute="kubernetes", **given), mlflow) is None
