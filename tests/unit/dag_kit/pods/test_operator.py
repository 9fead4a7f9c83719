"""The environment of a pod, and which part of it is logged.

The rest of ``include.dag_kit.pods.operator`` is tested on a cluster.
"""

import json
import re
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from airflow.sdk.exceptions import AirflowFailException, TaskDeferred
from kubernetes import client
from kubernetes.client import ApiException

from include.dag_kit.pods.names import PodStep, pod_environment
from include.dag_kit.pods.operator import StepPod
from include.dag_kit.pods.trigger import bare
from include.projects.compute import ComputeClass
from include.settings import Settings

STEP = PodStep("flights", "r1", "fit-mlp", "s3://bucket/fit-mlp.json", "cpu", "0123abc", None)


def settings(**given) -> Settings:
    return Settings(compute="kubernetes", data_root="s3://bucket/prefix", training_image="i:1", **given)


def test_the_commit_that_a_model_is_made_from_is_the_image_s_and_not_airflow_s():
    assert "AIRLOOP_GIT_SHA" not in pod_environment(settings(), STEP, ComputeClass())


def test_a_pod_s_environment_has_no_credentials(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not for pods")
    given = settings(
        mlflow_secret="airloop-mlflow",
        mlflow_username="airloop",
        mlflow_password="nor this",
        airflow_fernet_key="nor that",
        serving_api_key="nor the key",
    )
    assert not [
        name
        for name, value in pod_environment(given, STEP, ComputeClass()).items()
        if "no" in value.split() or "nor" in value.split() or "not" in value.split()
    ]


def test_a_pod_that_could_reach_nothing_is_not_made(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(AirflowFailException, match="set AIRLOOP_HOST"):
        StepPod(task_id="fit", step=STEP, resources=ComputeClass(), command=["python"], settings=settings())


def test_an_event_which_lies_in_airflow_s_database_has_nothing_of_a_pod_s_environment():
    container = {
        "name": "base",
        "image": "i:1",
        "resources": {},
        "env": [{"name": "TOLD", "value": "hidden"}],
        "envFrom": [{"secretRef": {"name": "hidden"}}],
    }
    metadata = {"name": "p", "uid": "u", "annotations": {}, "managedFields": ["hidden"]}
    event_text = json.dumps(
        bare(
            {
                "metadata": metadata,
                "spec": {"nodeName": "n", "containers": [container], "initContainers": [container]},
                "status": {"phase": "Failed"},
            }
        )
    )
    assert "i:1" in event_text and "hidden" not in event_text
    assert json.loads(event_text)["status"] == {"phase": "Failed"}


def test_a_pod_has_as_many_threads_as_cores_whatever_airflow_s_machine_has():
    assert [
        pod_environment(settings(training_threads=7), STEP, ComputeClass(cpu=cpu))["AIRLOOP_TRAINING_THREADS"]
        for cpu in (0.25, 1, 4)
    ] == ["1", "1", "4"]


class Refusing:
    """A cluster that answers with an error."""

    def __init__(self, status: int, message: str) -> None:
        self.error = ApiException(status=status)
        self.error.body = json.dumps({"message": message})

    def list_namespaced_pod(self, *_, **__):
        return client.V1PodList(items=[])

    def create_namespaced_pod(self, *_, **__):
        raise self.error


@pytest.fixture
def pod(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.example:5000")
    monkeypatch.setattr(StepPod, "build_for", lambda *_: None)
    return StepPod(
        task_id="fit",
        step=STEP,
        resources=ComputeClass(schedule_timeout=timedelta(minutes=5)),
        command=["python"],
        settings=settings(),
    )


CONTEXT = {
    "dag_run": SimpleNamespace(run_id="run", clear_number=0),
    "ti": SimpleNamespace(dag_id="dag", task_id="fit", run_id="run", map_index=-1),
}
QUOTA = (
    'pods "p" is forbidden: exceeded quota: gpus, requested: requests.nvidia.com/gpu=2, used:'
    " requests.nvidia.com/gpu=8, limited: 8"
)


def test_where_the_quota_has_no_room_a_step_waits_without_a_worker_as_long_as_for_a_node(pod, monkeypatch):
    monkeypatch.setattr(StepPod, "client", Refusing(403, QUOTA))
    with pytest.raises(TaskDeferred) as deferred:
        pod.start(CONTEXT, "pod_ended")
    since = deferred.value.kwargs["since"]
    assert deferred.value.method_name == "pod_wanted"
    with pytest.raises(TaskDeferred) as again:
        pod.start(CONTEXT, "pod_ended", since)
    assert again.value.kwargs == {"since": since}, "its time began anew"
    with pytest.raises(
        AirflowFailException,
        match="unschedulable: fit-mlp: for 0:05:00 the quota of namespace airloop-training had no room.* limited: 8",
    ):
        pod.start(CONTEXT, "pod_ended", (datetime.now(UTC) - timedelta(minutes=6)).isoformat())


@pytest.mark.parametrize(
    ("status", "message", "hint"),
    [
        (404, 'namespaces "airloop-training" not found', "AIRLOOP_KUBERNETES_NAMESPACE"),
        (403, 'pods is forbidden: User "airflow" cannot create resource', "train.md has the Role"),
        (422, "spec.tolerations[2].operator: Unsupported value", "the compute class"),
    ],
)
def test_what_the_cluster_refuses_for_good_fails_at_once_with_its_words_and_a_hint(
    pod, monkeypatch, status, message, hint
):
    monkeypatch.setattr(StepPod, "client", Refusing(status, message))
    with pytest.raises(AirflowFailException, match=f"{re.escape(message)}.*{hint}"):
        pod.start(CONTEXT, "pod_ended")


def test_a_cluster_that_is_away_is_tried_again(pod, monkeypatch):
    monkeypatch.setattr(StepPod, "client", Refusing(503, "etcd leader changed"))
    with pytest.raises(ApiException):
        pod.start(CONTEXT, "pod_ended")


@pytest.mark.parametrize(
    ("now", "overtaken"),
    [
        ({"phase": "Pending"}, False),
        (
            {
                "phase": "Running",
                "containerStatuses": [
                    {"name": "base", "state": {"running": {"startedAt": f"{datetime.now(UTC):%FT%TZ}"}}}
                ],
            },
            True,
        ),
    ],
)
def test_a_pod_that_started_just_after_it_was_given_up_goes_on(pod, monkeypatch, now, overtaken):
    made = f"{datetime.now(UTC) - timedelta(minutes=6):%FT%TZ}"
    there = {
        "metadata": {"name": "p", "namespace": "n", "uid": "u", "creationTimestamp": made},
        "spec": {"containers": []},
        "status": now,
    }
    monkeypatch.setattr(StepPod, "_read", lambda *_: there)
    monkeypatch.setattr(StepPod, "_as_json", lambda _, pod: pod)
    event = {"name": "p", "namespace": "n", "verdict": "not scheduled in time", "seen": there, "logged": ""}
    assert pod.overtaken(event) is overtaken
    assert pod.overtaken({**event, "verdict": "gone"}) is False
    assert pod.overtaken({**event, "job": {"name": "j"}}) is True, "the step had several workers then"
