"""What a pod is told, and what of it is told on; the rest of ``include.dag_kit.pods`` is tested on a cluster."""

import json

import pytest
from airflow.sdk.exceptions import AirflowFailException

from include.dag_kit.pod_trigger import bare
from include.dag_kit.pods import Step, StepPod, pod_environment
from include.projects.compute import ComputeClass
from include.settings import Settings

STEP = Step("flights", "r1", "fit-mlp", "s3://bucket/fit-mlp.json", "cpu", "0123abc", None)


def settings(**given) -> Settings:
    return Settings(compute="kubernetes", data_root="s3://bucket/prefix", training_image="i:1", **given)


def test_the_commit_that_a_model_is_made_from_is_the_image_s_and_not_airflow_s():
    assert "AIRLOOP_GIT_SHA" not in pod_environment(settings(), STEP)


def test_a_pod_s_environment_has_no_credentials(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not for pods")
    given = settings(mlflow_password="nor this", airflow_fernet_key="nor that", serving_api_key="nor the key")
    assert not [name for name, value in pod_environment(given, STEP).items() if "no" in value.split() or "nor" in value.split() or "not" in value.split()]


def test_a_pod_that_could_reach_nothing_is_not_made(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(AirflowFailException, match="set AIRLOOP_HOST"):
        StepPod(task_id="fit", step=STEP, resources=ComputeClass(), command=["python"], settings=settings())


def test_an_event_which_lies_in_airflow_s_database_has_nothing_of_a_pod_s_environment():
    container = {"name": "base", "image": "i:1", "resources": {}, "env": [{"name": "TOLD", "value": "hidden"}], "envFrom": [{"secretRef": {"name": "hidden"}}]}
    metadata = {"name": "p", "uid": "u", "annotations": {}, "managedFields": ["hidden"]}
    told = json.dumps(bare({"metadata": metadata, "spec": {"nodeName": "n", "containers": [container], "initContainers": [container]}, "status": {}}))
    assert "i:1" in told and "hidden" not in told
