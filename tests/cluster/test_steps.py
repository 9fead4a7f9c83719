"""Training steps as pods of a real cluster, driven by a real Airflow."""

import json

import pytest

from tests.cluster.namespace import until
from tests.cluster.stack import new_request

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]


def test_a_step_is_a_pod_whose_result_is_its_manifest(runs, cluster):
    request = runs.start("small", "work")
    assert runs.end(request) == "success", runs.log(request)
    assert runs.manifest(request).exists()
    log = runs.log(request)
    assert log.count("first line, at") == 1 and log.count("last line") == 1
    until(lambda: not cluster.pods(request), 30, "the good pod's deletion")


def test_a_pod_may_do_nothing_but_its_work_and_says_what_it_is_for(runs, cluster):
    request = runs.start("gpu_test", "count:60")
    pod = until(lambda: cluster.running(request), 60, "the pod")
    spec, container = pod.spec, pod.spec.containers[0]
    assert len(spec.containers) == 1
    assert (
        spec.security_context.run_as_non_root
        and spec.security_context.run_as_user > 0
        and spec.security_context.seccomp_profile.type == "RuntimeDefault"
    )
    assert container.security_context.read_only_root_filesystem and container.security_context.capabilities.drop == [
        "ALL"
    ]
    assert not container.security_context.allow_privilege_escalation and not container.security_context.privileged
    assert spec.automount_service_account_token is False
    assert not [v for v in spec.volumes if v.projected], "a service account's token is mounted"
    limits, requests = container.resources.limits, container.resources.requests
    assert limits == {"memory": "64Mi", "ephemeral-storage": "64Mi", "nvidia.com/gpu": "2"} and requests["cpu"] == "50m"
    assert {e.key: e.toleration_seconds for e in spec.tolerations if e.toleration_seconds} == {
        "node.kubernetes.io/not-ready": 15, "node.kubernetes.io/unreachable": 15,
    }  # fmt: skip
    labels = {name.removeprefix("airloop/"): value for name, value in pod.metadata.labels.items()}
    assert (
        labels["project"] == "flights"
        and labels["request"] == request
        and labels["compute"] == "gpu_test"
        and labels["dag_id"] == "pods__gpu_test"
    )
    assert labels["run_id"] and labels["git_sha"]
    assert not any(
        "password" in (e.name + (e.value or "")).lower() or "secret" in e.name.lower() for e in container.env
    )
    until(lambda: runs.step(request)["state"] == "deferred", 30, "a task that holds no worker")
    runs.cancel(request)


def test_a_step_takes_as_many_slots_as_gpus_and_its_times_are_on_its_mlflow_run(runs, cluster):
    from include.training.tracking import RequestRuns, tracking_client

    first, client = new_request(), tracking_client()
    run = RequestRuns(client, "flights", first, {}).request_run()
    runs.start("gpu_test", "count:6", first)
    until(lambda: cluster.running(first), 60, "the first pod")
    second = runs.start("gpu_test", "work")
    assert (runs.end(first), runs.end(second)) == ("success", "success")
    assert runs.lives(first)[-1][1] <= runs.lives(second)[0][0], (
        "two steps of two GPUs ran at once in a pool of two slots"
    )
    metrics = client.get_run(run).data.metrics
    assert (
        metrics["pod.tries"] == 1
        and 5 <= metrics["pod.running_s"] <= 15
        and metrics["pod.gpu_s"] == 2 * metrics["pod.running_s"]
    )
    assert 0 <= metrics["pod.waiting_s"] < 60


def test_success_without_a_manifest_is_a_failure(runs, cluster):
    request = runs.start("small", "nothing")
    assert runs.end(request) == "failed"
    assert "wrote no manifest at" in runs.log(request)
    assert len(cluster.pods(request)) == runs.tries(request) == 3, (
        "a pod that made nothing is kept, and no retry takes it for its own"
    )


def test_the_pools_are_those_of_the_settings(runs):
    pools = {pool["name"]: pool for pool in runs.api.call("GET", "pools", params={"limit": 100})["pools"]}
    assert (pools["gpu_test"]["slots"], pools["cpu"]["slots"]) == (2, 2)
    assert pools["gpu_test"]["include_deferred"], "a pod holds its GPU while no worker waits for it"


def test_the_pools_can_be_read_from_the_cluster(airloop, runs):
    result = airloop("sync-pools", "--from-cluster", "--dry-run")
    assert result.returncode == 0, result.stderr
    assert int(dict(line.split(": ") for line in result.stdout.splitlines())["cpu"]) >= 1


def test_no_environment_of_a_pod_lies_in_airflow_s_database(runs, cluster):
    request = runs.start("small", "count:10")
    until(lambda: runs.step(request)["state"] == "deferred", what="its watch")
    database = runs.settings.home / "airflow"

    def kept(text: bytes) -> bool:
        return any(text in file.read_bytes() for file in database.glob("airflow.db*"))

    assert kept(b"pods__small"), "this way of looking finds nothing"
    assert not kept(b"AIRLOOP_TRAINING_THREADS"), "the trigger's arguments hold what the pod was told"
    assert runs.end(request) == "success"
    assert not kept(b"AIRLOOP_TRAINING_THREADS"), "the event holds what the pod was told"


@pytest.mark.parametrize("second", ["deferred", "failed"])
def test_a_pod_is_swept_only_if_its_task_has_ended_at_both_looks(runs, cluster, monkeypatch, second):
    """A pod is deleted only if both checks find its task finished.

    A task that was cleared between the checks keeps its pod, or takes it over.
    """
    from include.dag_kit.pods.sweep import sweep

    connection = {"conn_type": "kubernetes", "extra": {"kube_config_path": str(cluster.kubeconfig)}}
    monkeypatch.setenv("AIRFLOW_CONN_KUBERNETES_DEFAULT", json.dumps(connection))
    request = runs.start("small", "count:60")
    pod = until(lambda: cluster.running(request), 60, "the pod")
    until(lambda: runs.step(request)["state"] == "deferred", 60, "its watch")
    looks, (_, run) = iter(["failed", second]), runs.started[request]

    def states(*, dag_id: str, run_ids: list[str]) -> dict[str, dict[str, str]]:
        return {run: {"fit": next(looks)}} if run_ids == [run] else {}

    gone = sweep(runs.settings, states, pause=0)
    if second == "failed":
        assert gone == [pod.metadata.name]
        until(lambda: not cluster.running(request), 60, "the pod to go")
        runs.cancel(request)
    else:
        assert gone == [] and runs.end(request) == "success"
