"""The chart's training namespace on a real cluster.

Its rights, quota, limits and priorities take effect.
"""

import json
from typing import Any

import pytest

from tests.cluster.claims import CONTAINER_SECURITY, POD_SECURITY, on_claims
from tests.cluster.namespace import until
from tests.cluster.release import Release, training_only
from tests.helm import CHART, MISSING, PROGRAM, helm, values_file

pytestmark = [pytest.mark.stack, pytest.mark.cluster]


@pytest.fixture(scope="module")
def release(cluster):
    if not PROGRAM:
        pytest.skip(MISSING)
    with training_only(cluster) as installed:
        yield installed


@pytest.fixture(scope="module")
def airflow(release):
    """Return a client with the account that creates training pods."""
    from kubernetes import client

    api, account = release.cluster.api, "airflow-worker"
    api.create_namespaced_service_account(release.namespace, {"metadata": {"name": account}})
    token = api.create_namespaced_service_account_token(
        account, release.namespace, {"spec": {"expirationSeconds": 3600}}
    ).status.token
    there, configuration = api.api_client.configuration, client.Configuration()
    configuration.host, configuration.ssl_ca_cert = there.host, there.ssl_ca_cert
    configuration.api_key = {"authorization": f"Bearer {token}"}
    own = client.ApiClient(configuration)
    # Kubernetes' controllers apply an installation with a short delay. Until then every pod is
    # refused for every account.
    asked = {"spec": {"resourceAttributes": {"namespace": release.training, "verb": "create", "resource": "pods"}}}
    may = client.AuthorizationV1Api(own).create_self_subject_access_review
    until(lambda: may(asked).status.allowed, 60, "the right to create pods in the training namespace")
    until(
        lambda: api.read_namespaced_resource_quota("loop-training", release.training).status.hard,
        60,
        "the quota's count",
    )
    until(
        lambda: any(a.metadata.name == "default" for a in api.list_namespaced_service_account(release.training).items),
        60,
        "the default account",
    )
    return client.CoreV1Api(own)


def training_pod(release: Release, name: str, **spec: Any) -> dict[str, Any]:
    resources = spec.pop("resources", None)
    container = {
        "name": "base",
        "image": release.cluster.image,
        "command": ["sleep", "3600"],
        "securityContext": CONTAINER_SECURITY,
    }
    container |= {
        "volumeMounts": [{"name": "usr", "mountPath": "/usr", "readOnly": True}],
        **({"resources": resources} if resources else {}),
    }
    volumes = on_claims(release.cluster.api, release.training, [{"name": "usr", "hostPath": {"path": "/usr"}}])
    base = {
        "containers": [container],
        "volumes": volumes,
        "securityContext": POD_SECURITY,
        "terminationGracePeriodSeconds": 0,
    }
    return {"metadata": {"name": name}, "spec": {**base, **spec}}


@pytest.fixture
def training(release):
    """Return the training namespace, without pods before and after."""
    core = release.cluster.api

    def empty():
        core.delete_collection_namespaced_pod(release.training, grace_period_seconds=0)
        until(lambda: not core.list_namespaced_pod(release.training).items, 120, "an empty training namespace")
        quota = core.read_namespaced_resource_quota
        until(
            lambda: (quota("loop-training", release.training).status.used or {}).get("pods") == "0",
            120,
            "the quota to count that, a moment later",
        )

    empty()
    yield release.training
    empty()


def refused(call: Any, *arguments: Any) -> str:
    from kubernetes.client import ApiException

    with pytest.raises(ApiException) as error:
        call(*arguments)
    assert error.value.status == 403, error.value
    return json.loads(error.value.body)["message"]


def test_airflows_account_may_train_and_no_more(release, training, airflow):
    airflow.create_namespaced_pod(training, training_pod(release, "fit"))
    assert [pod.metadata.name for pod in airflow.list_namespaced_pod(training).items] == ["fit"]
    assert airflow.list_node().items
    airflow.delete_namespaced_pod("fit", training)
    assert "cannot list resource" in refused(airflow.list_namespaced_secret, training)
    assert "cannot delete resource" in refused(airflow.delete_namespaced_resource_quota, "loop-training", training)
    assert "cannot create resource" in refused(
        airflow.create_namespaced_pod, release.namespace, training_pod(release, "fit")
    )


@pytest.mark.parametrize(
    ("container", "pod", "reason"),
    [
        ({"securityContext": {"privileged": True}}, {}, "privileged"),
        (
            {
                "securityContext": {
                    "capabilities": {"drop": ["ALL"], "add": ["SYS_ADMIN"]},
                    "allowPrivilegeEscalation": False,
                }
            },
            {},
            "unrestricted capabilities",
        ),
        ({"securityContext": {"capabilities": {"drop": ["ALL"]}}}, {}, "allowPrivilegeEscalation != false"),
        ({}, {"hostNetwork": True}, "host namespaces"),
        ({}, {"hostPID": True}, "host namespaces"),
        ({}, {"volumes": [{"name": "usr", "hostPath": {"path": "/"}}]}, "hostPath"),
        (
            {},
            {"securityContext": {"runAsNonRoot": True, "runAsUser": 0, "seccompProfile": {"type": "RuntimeDefault"}}},
            "runAsUser=0",
        ),
        ({}, {"securityContext": {"seccompProfile": {"type": "RuntimeDefault"}}}, "runAsNonRoot != true"),
        ({}, {"securityContext": {"runAsNonRoot": True, "runAsUser": 10001}}, "seccompProfile"),
    ],
)
def test_a_pod_with_power_over_the_node_is_refused(release, training, airflow, container, pod, reason):
    """The namespace's Pod Security Standard refuses a privileged pod.

    This holds for Airflow's account and for the cluster's administrator.
    """
    body = training_pod(release, "fit")
    body["spec"]["containers"][0] |= container
    body["spec"] |= pod
    for client in (airflow, release.cluster.api):
        message = refused(client.create_namespaced_pod, training, body)
        assert "violates PodSecurity" in message and reason in message


@pytest.fixture
def made(release, monkeypatch):
    """Build a step's pod and a Job of two workers with the operators' own code.

    All options that add a volume are set.
    """
    from include.dag_kit.pods.group import StepPodGroup
    from include.dag_kit.pods.names import PodStep
    from include.dag_kit.pods.operator import StepPod
    from include.projects.compute import ComputeClass
    from include.settings import Settings

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    kubernetes = {"conn_type": "kubernetes", "extra": {"kube_config_path": str(release.cluster.kubeconfig)}}
    monkeypatch.setenv("AIRFLOW_CONN_KUBERNETES_DEFAULT", json.dumps(kubernetes))
    step = PodStep("flights", "r1", "fit-mlp", "s3://bucket/fit-mlp.json", "cpu", "0123abc", None)
    settings = Settings(
        compute="kubernetes",
        kubernetes_namespace=release.training,
        data_root="s3://bucket/prefix",
        training_image=release.cluster.image,
        storage_service_account="airloop-training",
        storage_role="arn:aws:iam::000000000000:role/x",
    )
    resources = ComputeClass(cpu=0.05, memory="64Mi", memory_max="64Mi", ephemeral_storage="64Mi")
    given: dict[str, Any] = {
        "task_id": "fit",
        "step": step,
        "resources": resources,
        "command": ["true"],
        "settings": settings,
    }
    clean = release.cluster.api.api_client.sanitize_for_serialization
    pod = StepPod(**given).build_for({}, [], {})
    return clean(pod), clean(StepPodGroup(**given, workers=2).build_job({}, [], [], {}))


def test_pods_and_jobs_as_airflow_makes_them_are_admitted(release, training, airflow, made):
    """The API server accepts the operators' pods and Jobs in a dry run.

    They have neither a sidecar nor an init container, which could violate `restricted`.
    """
    from kubernetes import client

    pod, job = made
    template = job["spec"]["template"]["spec"]
    assert all(len(spec["containers"]) == 1 and not spec.get("initContainers") for spec in (pod["spec"], template))
    airflow.create_namespaced_pod(training, pod, dry_run="All")
    airflow.create_namespaced_pod(training, {"metadata": {"name": "worker"}, "spec": template}, dry_run="All")

    def warned() -> str:
        """Return the warning for the Job.

        The API server accepts every Job. The namespace's label `warn` reports which pods it would
        refuse.
        """
        api = client.BatchV1Api(release.cluster.api.api_client)
        _, _, headers = api.create_namespaced_job_with_http_info(training, job, dry_run="All")
        return headers.get("Warning", "")

    assert warned() == ""
    template["hostNetwork"] = True
    assert "would violate PodSecurity" in warned()


def test_a_namespace_that_enforces_nothing_is_refused(release):
    """The chart checks a namespace that already exists."""
    from tests.helm import HelmError

    release.cluster.api.create_namespace({"metadata": {"name": f"{release.namespace}-open"}})
    try:
        with pytest.raises(HelmError, match="does not enforce the Pod Security Standard 'restricted'"):
            values = {
                **release.values,
                "training.namespace.name": f"{release.namespace}-open",
                "training.namespace.create": False,
            }
            helm("upgrade", "other", CHART, "--install", *values_file(values), "--namespace", release.namespace)
    finally:
        release.cluster.api.delete_namespace(f"{release.namespace}-open")


def test_the_quota_acts(release, training, airflow):
    for number in range(3):
        airflow.create_namespaced_pod(training, training_pod(release, f"fit-{number}"))
    limits = airflow.list_namespaced_pod(training).items[0].spec.containers[0].resources
    # From the LimitRange: it requested nothing.
    assert limits.requests == {"cpu": "100m", "memory": "512Mi"} and limits.limits == {"memory": "512Mi"}
    message = refused(airflow.create_namespaced_pod, training, training_pod(release, "fit-3"))
    assert "exceeded quota: loop-training" in message and "pods=1" in message


def test_a_pod_may_not_be_bigger_than_the_limit(release, training, airflow):
    big = {"requests": {"memory": "65Gi"}, "limits": {"memory": "65Gi"}}
    assert "maximum memory usage per Container is 64Gi" in refused(
        airflow.create_namespaced_pod, training, training_pod(release, "big", resources=big)
    )


def test_work_on_gpus_takes_the_place_of_preemptible_work(release, training, airflow):
    gpus = int(release.cluster.node.status.allocatable.get("nvidia.com/gpu", 0))
    if not gpus:
        pytest.skip("the cluster's node has no nvidia.com/gpu")
    all_of_them = {"limits": {"nvidia.com/gpu": str(gpus)}}

    def start(name: str, priority: str) -> None:
        airflow.create_namespaced_pod(
            training,
            training_pod(release, name, resources=all_of_them, priorityClassName=f"{release.namespace}-{priority}"),
        )

    def phases() -> dict[str, str]:
        return {
            pod.metadata.name: pod.status.phase
            for pod in airflow.list_namespaced_pod(training).items
            if not pod.metadata.deletion_timestamp
        }

    start("trial", "preemptible")
    until(lambda: phases().get("trial") == "Running", 300, "the preemptible pod")
    start("another-trial", "preemptible")
    start("fit", "gpu")
    until(lambda: phases().get("fit") == "Running", 300, "the pod with priority")
    assert "trial" not in phases() or phases()["trial"] == "Failed", "nobody gave way"
    # Same class as the first, so it does not preempt.
    assert phases()["another-trial"] == "Pending"
