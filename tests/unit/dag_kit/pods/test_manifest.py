"""The specification of a training pod: privileges, resources, names, storage."""

from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from kubernetes import client

from include.dag_kit.pods.names import labels_of, pod_environment, pod_name
from include.dag_kit.pods.operator import StepPod
from include.projects.compute import ComputeClass
from tests.unit.dag_kit.pods.test_operator import STEP, settings

GPUS = ComputeClass(cpu=2, memory="1Gi", gpus=2, node_selector={"pool": "gpu"}, ephemeral_storage="3Gi")
CONTEXT = {
    "dag_run": SimpleNamespace(run_id="run", clear_number=2, logical_date=None),
    "ti": SimpleNamespace(dag_id="dag", task_id="fit", run_id="run", map_index=-1, try_number=1),
    "run_id": "run",
    "dag": SimpleNamespace(is_subdag=False, dag_id="dag"),
}


@pytest.fixture(autouse=True)
def tracking(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.example:5000")


def operator(resources=GPUS, **given) -> StepPod:
    made = StepPod(
        task_id="fit", step=STEP, resources=resources, command=["python", "-m", "x"], settings=settings(**given)
    )
    made.__dict__["hook"] = SimpleNamespace(
        is_in_cluster=False, conn_extras={}, get_namespace=lambda: "airloop", core_v1_client=client.CoreV1Api()
    )
    return made


def manifest(resources=GPUS, before=(), **given) -> client.V1Pod:
    return operator(resources, **given).build_for(CONTEXT, list(before), {"airloop/run": "run"})


def test_a_pod_has_no_privileges():
    spec = manifest().spec
    pod, (container,) = spec.security_context, spec.containers
    assert pod.run_as_non_root is True and pod.run_as_user == pod.run_as_group == pod.fs_group and pod.run_as_user > 0
    assert pod.seccomp_profile.type == "RuntimeDefault"
    own = container.security_context
    assert (own.privileged, own.allow_privilege_escalation, own.read_only_root_filesystem) == (False, False, True)
    assert own.capabilities.drop == ["ALL"] and not own.capabilities.add
    assert spec.automount_service_account_token is False and spec.enable_service_links is False
    assert not spec.host_network and not spec.host_pid and spec.restart_policy == "Never"


def test_a_pod_gets_what_its_compute_class_says():
    spec = manifest().spec
    (container,) = spec.containers
    limits = {"memory": "1Gi", "ephemeral-storage": "3Gi", "nvidia.com/gpu": "2"}
    assert container.resources.limits == limits and container.resources.requests == {**limits, "cpu": "2000m"}
    assert spec.node_selector == {"pool": "gpu"} and container.image_pull_policy == "IfNotPresent"
    (tmp,) = [volume for volume in spec.volumes if volume.name == "tmp"]
    assert tmp.empty_dir.size_limit == "3Gi" and container.command == ["python", "-m", "x"]
    assert "nvidia.com/gpu" not in manifest(ComputeClass()).spec.containers[0].resources.limits


def earlier(number: int, **status) -> client.V1Pod:
    metadata = client.V1ObjectMeta(
        name=pod_name(STEP, number),
        labels={**labels_of(STEP), "airloop/number": str(number)},
        annotations={"airloop/run": "run"},
        creation_timestamp=datetime(2026, 1, 1, number, tzinfo=UTC),
    )
    container = client.V1Container(
        name="base", image="i:1", resources=client.V1ResourceRequirements(limits={"memory": "1Gi"})
    )
    return client.V1Pod(
        metadata=metadata, spec=client.V1PodSpec(containers=[container]), status=client.V1PodStatus(**status)
    )


def test_a_pod_has_the_number_after_the_ones_before_it_in_its_name_and_labels():
    assert manifest().metadata.name == pod_name(STEP, 1)
    made = manifest(before=[earlier(1, phase="Failed"), earlier(2, phase="Failed")])
    assert made.metadata.name == pod_name(STEP, 3) and made.metadata.labels["airloop/number"] == "3"
    assert made.metadata.labels.items() >= labels_of(STEP).items()
    assert made.metadata.annotations["airloop/run"] == "run"


def test_a_pod_reaches_the_object_store_and_mlflow_as_its_settings_say():
    given = {"storage_service_account": "trainer", "priority_classes": "cpu=patient", "mlflow_secret": "mlflow-login"}
    spec = manifest(ComputeClass(), **given).spec
    assert spec.service_account_name == "trainer" and spec.priority_class_name == "patient"
    names = [source["secretRef"]["name"] for source in spec.containers[0].env_from]
    assert names == ["mlflow-login"]
    plain = manifest(ComputeClass(), storage_secret="store-key").spec
    assert plain.service_account_name is None and plain.priority_class_name is None
    assert [source["secretRef"]["name"] for source in plain.containers[0].env_from] == ["store-key"]


class Cluster:
    """Lists pods, in any order, and records what is created and deleted."""

    def __init__(self, *pods: client.V1Pod) -> None:
        self.pods, self.created, self.deleted = list(pods), [], []
        self.api_client = client.ApiClient()

    def list_namespaced_pod(self, *_, **__):
        return client.V1PodList(items=self.pods)

    def create_namespaced_pod(self, namespace, pod):
        self.created.append(pod)
        return pod


def identity() -> dict[str, str]:
    return operator()._identity_annotations(CONTEXT)


def test_the_newest_running_pod_of_the_same_work_is_found_again_in_any_order_of_the_list(monkeypatch):
    old, new = earlier(1, phase="Failed"), earlier(2, phase="Running")
    for pod in (old, new):
        pod.metadata.annotations = identity()
    step, cluster = operator(), Cluster(new, old)
    monkeypatch.setattr(StepPod, "client", cluster)
    assert step.find_or_create(CONTEXT) is new and not cluster.created


def test_a_first_pod_is_created_with_its_task_for_the_sweep(monkeypatch):
    step, cluster = operator(), Cluster()
    monkeypatch.setattr(StepPod, "client", cluster)
    (made,) = [step.find_or_create(CONTEXT)]
    assert cluster.created == [made] and made.metadata.name == pod_name(STEP, 1)
    assert made.metadata.annotations.items() >= identity().items()
    assert made.metadata.annotations["airloop/result"] == STEP.manifest
    assert {"airloop/cleared": "2", "airloop/run": "run"}.items() <= made.metadata.annotations.items()


def test_a_pod_that_has_ended_already_is_collected_without_a_trigger(monkeypatch):
    done = earlier(1, phase="Succeeded")
    done.metadata.namespace, step = "airloop", operator()
    monkeypatch.setattr(step, "find_or_create", lambda context: done)
    event = step.start(CONTEXT, "pod_ended")
    assert (event["name"], event["namespace"], event["verdict"]) == (pod_name(STEP, 1), "airloop", "ended")
    assert event["seen"]["status"]["phase"] == "Succeeded"


def test_a_running_pod_is_watched_by_the_triggerer_with_its_limits(monkeypatch):
    from airflow.sdk.exceptions import TaskDeferred

    running = earlier(1, phase="Running")
    running.metadata.namespace, running.metadata.uid, step = "airloop", "u1", operator()
    monkeypatch.setattr(step, "find_or_create", lambda context: running)
    with pytest.raises(TaskDeferred) as deferred:
        step.start(CONTEXT, "pod_ended")
    trigger = deferred.value.trigger
    assert deferred.value.method_name == "pod_ended"
    assert (trigger.uid, trigger.pod_name, trigger.pod_namespace) == ("u1", pod_name(STEP, 1), "airloop")
    assert (trigger.base_container_name, trigger.termination_grace_period) == ("base", 5)
    assert trigger.limits == step.limits and deferred.value.timeout.total_seconds() == sum(step.limits.values()) + 600


def test_the_sample_of_a_try_reaches_its_pods():
    assert "AIRLOOP_SAMPLE_DAYS" not in pod_environment(settings(), STEP, ComputeClass())
    assert pod_environment(settings(sample_days=2.5), STEP, ComputeClass())["AIRLOOP_SAMPLE_DAYS"] == "2.5"
