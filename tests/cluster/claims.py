"""Mount folders of this machine into pods of a namespace with the standard ``restricted``.

This Pod Security Standard does not allow hostPath volumes. An administrator creates a
PersistentVolume of the folder, and the pod mounts it by a claim.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

LABEL = "airloop-test/namespace"
RESTRICTED = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "audit", "warn")}
# The minimum that `restricted` requires of a pod.
POD_SECURITY = {"runAsNonRoot": True, "runAsUser": 10001, "seccompProfile": {"type": "RuntimeDefault"}}
CONTAINER_SECURITY = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def on_claims(api: Any, namespace: str, volumes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the volumes with each hostPath replaced by a claim on it.

    Missing claims are created.
    """
    return [
        {"name": one["name"], **_claim(api, namespace, one["hostPath"]["path"])} if "hostPath" in one else one
        for one in volumes
    ]


def forget(api: Any, namespace: str) -> None:
    """Delete the volumes of a namespace. Its claims are deleted with it."""
    api.delete_collection_persistent_volume(label_selector=f"{LABEL}={namespace}")


def _claim(api: Any, namespace: str, path: str) -> dict[str, Any]:
    name = f"folder-{hashlib.sha256(path.encode()).hexdigest()[:10]}"
    volume = f"{namespace}-{name}"
    shared = {"accessModes": ["ReadWriteMany"], "storageClassName": ""}
    spec = {
        **shared,
        "capacity": {"storage": "1Gi"},
        "hostPath": {"path": path, "type": "Directory"},
        "persistentVolumeReclaimPolicy": "Retain",
        "claimRef": {"name": name, "namespace": namespace},
    }
    claim = {
        "metadata": {"name": name},
        "spec": {**shared, "volumeName": volume, "resources": {"requests": {"storage": "1Gi"}}},
    }
    with _unless_there():
        api.create_persistent_volume({"metadata": {"name": volume, "labels": {LABEL: namespace}}, "spec": spec})
    with _unless_there():
        api.create_namespaced_persistent_volume_claim(namespace, claim)
    return {"persistentVolumeClaim": {"claimName": name}}


@contextmanager
def _unless_there() -> Iterator[None]:
    """Ignore the error that the object already exists."""
    from kubernetes.client import ApiException

    try:
        yield
    except ApiException as error:
        if error.status != 409:
            raise
