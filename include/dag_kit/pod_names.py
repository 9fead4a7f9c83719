"""What a training step's pod is called and told: by its labels people and Airflow find it, and its name makes sure that there is one."""

import hashlib
from typing import Any, NamedTuple

from airflow.providers.cncf.kubernetes.pod_generator import make_safe_label_value
from kubernetes.client import models as k8s

from include.projects.compute import ComputeClass
from include.settings import QUIET, Settings
from include.training.tracking import tracking_uri


class Step(NamedTuple):
    """What the pod is for. ``name`` is the manifest's stem: ``fit-torch_mlp``."""

    project: str
    request: str
    name: str
    manifest: str
    compute: str
    git_sha: str
    episode: str | None = None


def pod_environment(settings: Settings, step: Step, resources: ComputeClass) -> dict[str, str]:
    """What the step's process in the pod reads. No credentials: those come from a Kubernetes secret."""
    return {
        "AIRLOOP_HOME": "/tmp/airloop",  # what it downloads; nothing of it is kept
        "AIRLOOP_DATA_ROOT": settings.store,
        "AIRLOOP_PROJECTS": step.project,  # a broken neighbour does not stop it
        "AIRLOOP_TRAINING_THREADS": str(max(1, round(resources.cpu))),  # as many as it is sure to get cores, whatever this machine has
        # Not AIRLOOP_GIT_SHA: the code that makes the model is the image's, which says itself at which commit it is. That of Airflow is on the label.
        **({"AIRLOOP_SAMPLE_DAYS": str(settings.sample_days)} if settings.sample_days else {}),
        "MLFLOW_TRACKING_URI": tracking_uri(),
        "HOME": "/tmp",  # the root is read-only, and some libraries keep a cache at home
        "PYTHONUNBUFFERED": "1",
        **QUIET,
        "GIT_PYTHON_REFRESH": "quiet",
    }


def labels_of(step: Step) -> dict[str, str]:
    """By which people and this operator find pods. A label holds 63 characters; what is longer is cut and gets a hash."""
    labels = {
        "project": step.project, "request": step.request, "episode": step.episode, "step": step.name, "compute": step.compute, "git_sha": step.git_sha,
        "manifest": _hash(step.manifest),
    }  # fmt: skip
    return {f"airloop/{name}": make_safe_label_value(value) for name, value in labels.items() if value}


def next_number(before: list[Any]) -> int:
    """The number of the step's next pod or Job, after these."""
    return 1 + max((int(one.metadata.labels["airloop/number"]) for one in before), default=0)


def pod_name(step: Step, number: int, longest: int = 63) -> str:
    """``flights-fit-torch-mlp-1f2e3d4c-2``: the step's second pod. At most 63 characters, as for a host name."""
    tail = f"-{_hash(step.manifest)[:8]}-{number}"
    head = f"{step.project}-{step.name}".lower().replace("_", "-")
    return head[: longest - len(tail)].rstrip("-.") + tail


def tolerations_of(resources: ComputeClass) -> list[k8s.V1Toleration]:
    seconds = int(resources.node_lost_after.total_seconds())
    lost = [
        k8s.V1Toleration(key=f"node.kubernetes.io/{taint}", operator="Exists", effect="NoExecute", toleration_seconds=seconds)
        for taint in ("not-ready", "unreachable")
    ]
    return lost + [k8s.V1Toleration(**toleration.model_dump()) for toleration in resources.tolerations]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
