"""Install the chart deploy/helm/airloop with an operator's settings and stores on this machine."""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from include.settings import REPOSITORY, Settings
from include.stack.accounts.secrets_file import make_secrets, values
from include.stack.kubernetes import secrets
from include.stack.stores.databases import make_databases
from tests.cluster.claims import forget
from tests.cluster.machine import address_for_pods, pod_template
from tests.cluster.namespace import Cluster, until
from tests.helm import CHART, helm, values_file
from tests.integration.s3.conftest import S3
from tests.serving.harness import INSTANCES, NAME, FeatureRepository, Registry
from tests.stores import Postgres, Redis, running

NAME_OF_RELEASE = "loop"
SERVING = f"app.kubernetes.io/instance={NAME_OF_RELEASE},app.kubernetes.io/name=airloop-serving"
# Seconds: must suffice with a tenth of a CPU.
PATIENCE = 600


@dataclass
class Release:
    """The release named ``loop`` in the namespace of the tests, and its training namespace."""

    cluster: Cluster
    settings: Settings
    credentials: dict[str, str]  # of the object store
    data_root: str
    values: dict[str, Any]

    @property
    def namespace(self) -> str:
        return self.cluster.namespace

    @property
    def training(self) -> str:
        return f"{self.namespace}-training"

    def helm(self, command: str, *arguments: str, seconds: float = PATIENCE) -> str:
        return helm(command, NAME_OF_RELEASE, *arguments, "--namespace", self.namespace, timeout=seconds + 60)

    def upgrade(self, seconds: float = PATIENCE, **given: Any) -> str:
        """Install or upgrade with these values in addition to the release's own.

        Example: ``serving__podAnnotations={...}``.
        """
        self.values |= {name.replace("__", "."): value for name, value in given.items()}
        return self.helm(
            "upgrade",
            str(CHART),
            "--install",
            *values_file(self.values),
            "--wait",
            "--timeout",
            f"{seconds:.0f}s",
            seconds=seconds,
        )

    def address(self, service: str) -> str:
        """Return the URL at which this machine reaches a service of the release."""
        spec = self.cluster.api.read_namespaced_service(f"{NAME_OF_RELEASE}-{service}", self.namespace).spec
        return f"http://{spec.cluster_ip}:{spec.ports[0].port}"

    def pods(self) -> list[Any]:
        """Return serving's pods, except those that are terminating."""
        items = self.cluster.api.list_namespaced_pod(self.namespace, label_selector=SERVING).items
        return [pod for pod in items if not pod.metadata.deletion_timestamp]

    def ready(self) -> list[str]:
        """Return the names of serving's Ready pods."""
        return [
            pod.metadata.name
            for pod in self.pods()
            if any(c.type == "Ready" and c.status == "True" for c in pod.status.conditions or [])
        ]

    @property
    def key(self) -> dict[str, str]:
        assert self.settings.serving_api_key
        return {"X-API-Key": self.settings.serving_api_key.get_secret_value()}

    @property
    def url(self) -> str:
        return f"{self.address('serving')}/models/{NAME}/predict"

    @property
    def request(self) -> dict[str, Any]:
        """Return raw features of the first instance, with the keys that the look-up needs."""
        return {"instances": [{**INSTANCES[0], "customer": 7}]}

    def predict(self) -> dict[str, Any]:
        answer = httpx.post(self.url, json=self.request, headers=self.key, timeout=60, trust_env=False)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def everything(self) -> set[str]:
        """Return kind and name of every object in the cluster that belongs to this release."""
        from kubernetes import client

        chosen = {"label_selector": f"app.kubernetes.io/instance={NAME_OF_RELEASE}"}
        apis = {
            client.CoreV1Api(): (
                "pod",
                "service",
                "service_account",
                "resource_quota",
                "limit_range",
                "secret",
                "config_map",
            ),
            client.AppsV1Api(): ("deployment", "replica_set"),
            client.RbacAuthorizationV1Api(): ("role", "role_binding"),
            client.NetworkingV1Api(): ("network_policy",),
            client.PolicyV1Api(): ("pod_disruption_budget",),
            client.AutoscalingV2Api(): ("horizontal_pod_autoscaler",),
        }
        of_the_cluster = {
            client.CoreV1Api(): "namespace",
            client.RbacAuthorizationV1Api(): "cluster_role",
            client.SchedulingV1Api(): "priority_class",
        }
        objects = [
            o
            for api, kinds in apis.items()
            for kind in kinds
            for o in getattr(api, f"list_{kind}_for_all_namespaces")(**chosen).items
        ]
        objects += [o for api, kind in of_the_cluster.items() for o in getattr(api, f"list_{kind}")(**chosen).items]
        objects += client.RbacAuthorizationV1Api().list_cluster_role_binding(**chosen).items
        here = {self.namespace, self.training}
        return {
            f"{type(o).__name__}/{o.metadata.name}"
            for o in objects
            if o.metadata.namespace in here or self.namespace in o.metadata.name
        }


class Features(FeatureRepository):
    """The tests' feature views as on a cluster.

    Feast's registry is on Postgres, and its online store on Redis.
    """

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.folder = folder
        written = yaml.safe_load((REPOSITORY / "serving" / "feature_store.yaml").read_text())
        written["registry"]["path"] = settings.feast_registry
        written["online_store"] = json.loads(settings.feast_environment["AIRLOOP_FEAST_ONLINE_STORE"])
        (folder / "feature_store.yaml").write_text(yaml.safe_dump(written))


@contextmanager
def training_only(cluster: Cluster) -> Iterator[Release]:
    """Install only the chart's training namespace."""
    release = Release(
        cluster, Settings(), {}, "", {"mlflow.enabled": False, "serving.enabled": False, **training_values(cluster)}
    )
    try:
        with installed(release):
            release.upgrade()
            yield release
    finally:
        forget(cluster.api, release.training)


@contextmanager
def installed(release: Release) -> Iterator[None]:
    """Ensure that nothing of the release is left afterwards."""
    try:
        yield
    finally:
        try:
            release.helm("uninstall", "--ignore-not-found", "--wait", "--timeout", "300s")
        finally:
            until(lambda: not release.everything(), 300, "the release to be gone")


@contextmanager
def a_release(cluster: Cluster, s3: S3, folder: Path) -> Iterator[Release]:
    """Install the chart with a served model.

    Uninstall it afterwards unless the tests have done so.
    """
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        address = address_for_pods(cluster)
        postgres, redis = (stack.enter_context(running(kind, address)) for kind in (Postgres, Redis))
        file = settings_file(folder, postgres, redis, s3)
        settings = Settings(**of(file))
        assert settings.mlflow_username and settings.mlflow_password
        patch.setenv("MLFLOW_TRACKING_USERNAME", settings.mlflow_username)
        patch.setenv("MLFLOW_TRACKING_PASSWORD", settings.mlflow_password.get_secret_value())
        make_databases(settings)
        data_root = f"s3://{s3.make_bucket()}/data"
        release = Release(cluster, settings, s3.variables, data_root, test_values(cluster, data_root, s3))
        give(release, training=False)
        with installed(release):
            # Serving only becomes ready with a champion, which must first be registered in MLflow.
            release.upgrade(serving__enabled=False)
            give(release, training=True)
            add_model(release, folder)
            release.upgrade(serving__enabled=True)
            yield release


def settings_file(folder: Path, postgres: Postgres, redis: Redis, s3: S3) -> Path:
    """Write the file of `airloop init-env --profile kubernetes` with this machine's addresses."""
    file = folder / "settings"
    make_secrets("kubernetes", file)
    text = file.read_text()
    password = values(text)["AIRLOOP_DATABASE_ADMIN_URL"].partition("postgres:")[2].partition("@")[0]
    text = text.replace(f"postgres:{password}@", f"postgres:{postgres.password}@").replace(
        "postgres.example.org:5432", f"{postgres.address}:{postgres.port}"
    )
    online = values(text)["AIRLOOP_ONLINE_STORE_URL"]
    file.write_text(text.replace(online, f"redis://:{redis.password}@{redis.address}:{redis.port}/0"))
    return file


def of(file: Path) -> dict[str, str]:
    prefix = "AIRLOOP_"
    return {
        name.removeprefix(prefix).lower(): value
        for name, value in values(file.read_text()).items()
        if name.startswith(prefix) and value
    }


def give(release: Release, *, training: bool) -> None:
    """Create the secrets that `airloop kubernetes-secrets` prints, as `kubectl apply` would.

    Those of the training namespace are created after the chart has created the namespace.
    """
    settings = release.settings.model_copy(update={"kubernetes_namespace": release.training})
    for secret in secrets(
        settings, release.credentials, namespace=release.namespace, airflow_namespace=release.namespace
    ):
        if (secret["metadata"]["namespace"] == release.training) is training:
            release.cluster.api.create_namespaced_secret(secret["metadata"]["namespace"], secret)


def add_model(release: Release, folder: Path) -> None:
    """Register a champion in the release's MLflow, and its features in the stores."""
    mlflow = release.address("mlflow")
    until(lambda: httpx.get(f"{mlflow}/health", timeout=30, trust_env=False).is_success, 120, "MLflow")
    Registry(mlflow, folder).add(bias=1)
    features = Features(folder, release.settings)
    features.register()


def test_values(cluster: Cluster, data_root: str, s3: S3) -> dict[str, Any]:
    """Return the release's values.

    Pods run this checkout with this machine's Python, and fit on a small machine.
    """
    template = pod_template(cluster)["spec"]
    container = template["containers"][0]
    repository, tag = cluster.image.rsplit(":", 1)
    part = {
        "image": {"repository": repository, "tag": tag, "local": True},
        "extraEnv": container["env"],
        "extraVolumes": template["volumes"],
        "extraVolumeMounts": container["volumeMounts"],
    }
    values_: dict[str, Any] = {}
    parts = {
        "mlflow": {
            "command": ["python", "-m", "include.stack.component"],
            "args": ["mlflow"],
            "artifacts": data_root,
            "allowedHosts": ["10.*"],
            "resources": {"requests": {"cpu": "100m", "memory": "512Mi"}, "limits": {"memory": "3Gi"}},
        },
        "serving": {
            "command": ["python", "-m", "serving"],
            "args": ["--host", "0.0.0.0", "--port", "8000"],
            "resources": {"requests": {"cpu": "50m", "memory": "256Mi"}, "limits": {"memory": "1Gi"}},
            "autoscaling.minReplicas": 2,
            "autoscaling.maxReplicas": 2,
            "startupSeconds": 600,
        },
    }
    for name, special in parts.items():
        values_ |= {f"{name}.{key}": value for key, value in {**part, **special}.items()}
    return values_ | {"storage.dataRoot": data_root, "storage.endpoint": s3.endpoint, **training_values(cluster)}


def training_values(cluster: Cluster) -> dict[str, Any]:
    namespace = cluster.namespace
    # On a shared cluster, only the tests' own pods may be preempted.
    classes = {"serving": 0, "gpu": -50, "preemptible": -100}
    return {
        "airflow.namespace": namespace,
        "training.namespace.name": f"{namespace}-training",
        "training.airflowAccounts": [{"name": "airflow-worker", "namespace": namespace}],
        "training.quota.hard": {
            "pods": "3",
            "requests.cpu": "2",
            "requests.memory": "2Gi",
            "limits.memory": "2Gi",
            "requests.nvidia.com/gpu": "6",
        },
        **{
            f"priorityClasses.{name}": {"name": f"{namespace}-{name}", "value": value}
            for name, value in classes.items()
        },
    }
