"""The training image in a pod of a real cluster, with the security context of Airloop's pods.

``KUBECONFIG`` names the cluster, whose node is this machine (the pod writes into a folder of the
test). ``AIRLOOP_TEST_K8S_IMAGE`` is a program that loads an image into it: ``PROGRAM NAME:TAG
FOLDER``, with the image's environment and folder in ``K8S_TEST_ENV`` and ``K8S_TEST_WORKDIR``.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path
from secrets import token_hex

import pytest

from tests.cluster.claims import RESTRICTED, forget, on_claims
from tests.waiting import wait_for

pytestmark = [pytest.mark.timeout(3600), pytest.mark.stack, pytest.mark.images, pytest.mark.cluster]

USER = 10001


@pytest.fixture(scope="module")
def in_cluster(engine, training_image, tmp_path_factory):
    """Load the training image's file system into the cluster and return its name there."""
    program = os.environ.get("AIRLOOP_TEST_K8S_IMAGE")
    if not (program and os.environ.get("KUBECONFIG")):
        pytest.skip("no cluster: set KUBECONFIG, and AIRLOOP_TEST_K8S_IMAGE to a program that gives it an image")
    folder = tmp_path_factory.mktemp("image") / "root"
    engine.root_of(training_image, folder)
    config = engine.config(training_image)
    assert config["User"] == f"{USER}:{USER}"
    name = f"airloop-training:test-{token_hex(4)}"
    environment = {**os.environ, "K8S_TEST_ENV": "\n".join(config["Env"]), "K8S_TEST_WORKDIR": config["WorkingDir"]}
    subprocess.run([program, name, str(folder)], env=environment, check=True, timeout=300)
    shutil.rmtree(folder)
    return name, [*config["Entrypoint"]]


@pytest.fixture(scope="module")
def namespace():
    from kubernetes import client, config

    config.load_kube_config(os.environ["KUBECONFIG"])
    api, name = client.CoreV1Api(), f"airloop-images-{token_hex(4)}"
    api.create_namespace({"metadata": {"name": name, "labels": RESTRICTED}})
    wait_for(lambda: [a for a in api.list_namespaced_service_account(name).items if a.metadata.name == "default"], 30)
    yield api, name
    api.delete_namespace(name, grace_period_seconds=0)
    forget(api, name)


def run_pod(
    api, namespace: str, image: str, command: list[str], arguments: list[str], store: Path | None = None
) -> tuple[str, str]:
    """Run a pod to its end and return its phase and log."""
    volumes, mounts = [{"name": "tmp", "emptyDir": {"sizeLimit": "1Gi"}}], [{"name": "tmp", "mountPath": "/tmp"}]
    environment = []
    if store:
        volumes.append({"name": "store", "hostPath": {"path": str(store)}})
        mounts.append({"name": "store", "mountPath": str(store)})
        environment.append({"name": "AIRLOOP_DATA_ROOT", "value": str(store)})
    hardened = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    name = f"pod-{token_hex(4)}"
    container = {
        "name": "base",
        "image": image,
        "command": command,
        "args": arguments,
        "env": environment,
        "volumeMounts": mounts,
        "securityContext": hardened,
    }
    spec = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "volumes": on_claims(api, namespace, volumes),
        "containers": [container],
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    api.create_namespaced_pod(namespace, {"metadata": {"name": name}, "spec": spec})

    def ended():
        phase = api.read_namespaced_pod(name, namespace).status.phase
        return phase if phase in {"Succeeded", "Failed"} else None

    phase = wait_for(ended, 180, lambda: str(api.read_namespaced_pod(name, namespace).status))
    return phase, api.read_namespaced_pod_log(name, namespace)


def test_a_pod_says_what_it_does(in_cluster, namespace):
    image, command = in_cluster
    phase, log = run_pod(*namespace, image, command, ["--help"])
    assert phase == "Succeeded" and "usage: python -m include.training" in log


def test_a_pod_fits(in_cluster, namespace, made):
    image, command = in_cluster
    phase, log = run_pod(
        *namespace, image, command, made.arguments("fit-torch_mlp", "--candidate", "torch_mlp"), made.store
    )
    assert phase == "Succeeded" and "fit: done in" in log, log
    manifest = made.folder / "fit-torch_mlp.json"
    fitted = json.loads(manifest.read_text())
    assert fitted["candidate"] == "torch_mlp" and manifest.stat().st_uid == USER
    assert (Path(fitted["bundle"]) / "model.onnx").exists()
