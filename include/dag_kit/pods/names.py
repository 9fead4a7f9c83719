"""Name, labels and environment of a training step's pod.

People and Airflow find the pod by its labels. Its name ensures that there is only one.
"""

import hashlib
from typing import Any, NamedTuple

from airflow.providers.cncf.kubernetes.pod_generator import make_safe_label_value
from kubernetes.client import models as k8s

from include.projects.compute import ComputeClass
from include.settings import TELEMETRY_OFF, Settings
from include.training.tracking import tracking_uri


class PodStep(NamedTuple):
    """The work that a pod does. ``name`` is the manifest's stem, e.g. ``fit-torch_mlp``."""

    project: str
    request: str
    name: str
    manifest: str
    compute: str
    git_sha: str
    episode: str | None = None


def pod_environment(settings: Settings, step: PodStep, resources: ComputeClass) -> dict[str, str]:
    """Return the environment of the step's process in the pod.

    It contains no credentials: those come from a Kubernetes secret.
    """
    return {
        # For downloads. Nothing in this folder is kept.
        "AIRLOOP_HOME": "/tmp/airloop",
        "AIRLOOP_DATA_ROOT": settings.store,
        # Load this project only, so that a broken other project does not stop the step. The image
        # has folders of projects at the same paths.
        "AIRLOOP_PROJECTS": settings.projects_only(step.project),
        # As many threads as guaranteed cores, independent of the node's number of cores.
        "AIRLOOP_TRAINING_THREADS": str(max(1, round(resources.cpu))),
        # AIRLOOP_GIT_SHA is not passed. The image contains the code that makes the model, and
        # reports its own commit. The commit of Airflow's code is in the label.
        **({"AIRLOOP_SAMPLE_DAYS": str(settings.sample_days)} if settings.sample_days else {}),
        "MLFLOW_TRACKING_URI": tracking_uri(),
        # The root file system is read-only, and some libraries keep a cache in the home folder.
        "HOME": "/tmp",
        "PYTHONUNBUFFERED": "1",
        **TELEMETRY_OFF,
        "GIT_PYTHON_REFRESH": "quiet",
    }


def labels_of(step: PodStep) -> dict[str, str]:
    """Return the labels by which people and this operator find pods.

    A label value is limited to 63 characters. Longer values are cut and get a hash.
    """
    labels = {
        "project": step.project,
        "request": step.request,
        "episode": step.episode,
        "step": step.name,
        "compute": step.compute,
        "git_sha": step.git_sha,
        "manifest": _hash(step.manifest),
    }
    return {f"airloop/{name}": make_safe_label_value(value) for name, value in labels.items() if value}


def next_number(before: list[Any]) -> int:
    """Return the number of the step's next pod or Job."""
    return 1 + max((int(one.metadata.labels["airloop/number"]) for one in before), default=0)


def pod_name(step: PodStep, number: int, longest: int = 63) -> str:
    """Return the name of a pod, at most 63 characters, as for a host name.

    For example, ``flights-fit-torch-mlp-1f2e3d4c-2`` is the step's second pod.
    """
    tail = f"-{_hash(step.manifest)[:8]}-{number}"
    head = f"{step.project}-{step.name}".lower().replace("_", "-")
    return head[: longest - len(tail)].rstrip("-.") + tail


def tolerations_of(resources: ComputeClass) -> list[k8s.V1Toleration]:
    seconds = int(resources.node_lost_after.total_seconds())
    lost = [
        k8s.V1Toleration(
            key=f"node.kubernetes.io/{taint}", operator="Exists", effect="NoExecute", toleration_seconds=seconds
        )
        for taint in ("not-ready", "unreachable")
    ]
    return lost + [k8s.V1Toleration(**toleration.model_dump()) for toleration in resources.tolerations]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
