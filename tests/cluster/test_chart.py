"""The chart on a real cluster: MLflow and serving, with a real model.

The tests use one release in sequence, as an operator would, and each leaves it serving. Callers
that never retry query serving during all tests, see ``tests.cluster.load``. The training namespace
has its own tests.
"""

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import httpx
import pytest

from tests.cluster.load import Load
from tests.cluster.machine import address_for_pods
from tests.cluster.namespace import until
from tests.cluster.release import SERVING, Release, a_release
from tests.helm import MISSING, PROGRAM, HelmError
from tests.integration.s3.conftest import MISSING as S3_MISSING
from tests.integration.s3.conftest import PROGRAM as S3_PROGRAM
from tests.integration.s3.conftest import S3
from tests.serving.harness import INSTANCES, expected

KUBECTL = shutil.which("kubectl") or (str(Path(PROGRAM).with_name("kubectl")) if PROGRAM else None)

pytestmark = [pytest.mark.stack, pytest.mark.cluster, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def s3(cluster, tmp_path_factory):
    """Run an S3 server that pods can reach."""
    if not S3_PROGRAM:
        pytest.skip(S3_MISSING)
    server = S3(tmp_path_factory.mktemp("s3"), address_for_pods(cluster))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def release(cluster, s3, tmp_path_factory):
    if not PROGRAM:
        pytest.skip(MISSING)
    with a_release(cluster, s3, tmp_path_factory.mktemp("chart")) as installed:
        yield installed


@pytest.fixture
def load(release):
    """Keep a constant load during the test, and assert that no request is lost."""
    until(lambda: len(release.ready()) >= 2, 300, "two serving pods")
    with Load(release.url, release.request, release.key) as asked:
        until(lambda: len(asked.answers) > 20, 120, "the first answers")
        yield asked
        done = time.time()
        until(lambda: asked.answered_since(done) > 20, 120, "answers after all was over")
    slowest = max(took for _, took, _ in asked.answers)
    print(f"\n{len(asked.answers)} requests, lost: {asked.lost or 'none'}, slowest {slowest:.2f} s")
    assert asked.lost == {}


# --- serving --------------------------------------------------------------------------------------


def test_a_model_is_served_to_whom_has_a_key(release):
    answer = release.predict()
    assert answer["model_version"] == "1" and answer["predictions"][0]["prediction"] == expected(INSTANCES[0], 1)
    assert httpx.post(release.url, json=release.request, timeout=30, trust_env=False).status_code == 401
    pod = release.pods()[0].spec
    assert pod.security_context.run_as_user == 10001 and pod.containers[0].security_context.read_only_root_filesystem
    assert pod.automount_service_account_token is False


def test_what_is_predicted_is_on_the_object_store(release, s3):
    release.predict()
    bucket = release.data_root.removeprefix("s3://")
    until(lambda: list((s3.folder / bucket / "shops" / "prediction_log").glob("*.parquet")), 60, "the prediction log")


def test_an_update_loses_no_request(release, load):
    before = set(release.ready())
    release.upgrade(serving__podAnnotations={"example.com/turn": "2"})
    until(lambda: not before & {pod.metadata.name for pod in release.pods()}, 300, "the old pods to be gone")
    assert len(release.ready()) == 2
    until(lambda: not before & there(release), 300, "the end of the old pods")


def there(release: Release) -> set[str]:
    """Return serving's pods, including those that are terminating."""
    return {
        pod.metadata.name
        for pod in release.cluster.api.list_namespaced_pod(release.namespace, label_selector=SERVING).items
    }


def test_an_update_that_never_becomes_ready_takes_nothing_away_and_is_rolled_back(release, load):
    before, number = set(release.ready()), revision(release)
    with pytest.raises(HelmError, match="(?i)timeout|deadline|not ready|failed"):
        release.upgrade(
            seconds=30,
            serving__extraEnv=[
                *release.values["serving.extraEnv"],
                {"name": "SERVING_LOG_ROOT", "value": "gs://no-such-thing"},
            ],
        )
    assert before <= set(release.ready()), "a pod was taken away for one that never came"
    release.values["serving.extraEnv"].pop()
    release.helm("rollback", str(number), "--wait", "--timeout", "300s")
    until(lambda: set(release.ready()) == before and len(release.pods()) == 2, 300, "the pods of before, and no other")
    assert revision(release) > number


def revision(release: Release) -> int:
    """Return the newest deployed revision."""
    return max(
        one["revision"]
        for one in json.loads(release.helm("history", "--output", "json"))
        if one["status"] == "deployed"
    )


def test_more_load_brings_more_pods(release, load):
    release.upgrade(
        **{"serving__autoscaling.maxReplicas": 3, "serving__autoscaling.targetCPUUtilizationPercentage": 20}
    )
    until(lambda: len(release.pods()) == 3, 300, "a third pod")
    until(lambda: len(release.ready()) == 3, 600, "a third pod that is ready")


def test_fewer_pods_lose_nothing_either(release, load):
    release.upgrade(
        **{"serving__autoscaling.maxReplicas": 2, "serving__autoscaling.targetCPUUtilizationPercentage": 70}
    )
    until(lambda: len(there(release)) == 2, 300, "the third pod to be gone")


def test_a_drain_is_held_back_and_loses_nothing(release, load):
    """A drain of the cluster's only node waits and loses no request.

    Serving's second pod must stay, because no replacement for the first can start.
    """
    if not KUBECTL or not Path(KUBECTL).exists():
        pytest.skip("no kubectl: put it on the PATH, or beside helm")
    node = release.cluster.node.metadata.name
    drain = [
        KUBECTL,
        "drain",
        node,
        "--pod-selector",
        SERVING,
        "--ignore-daemonsets",
        "--delete-emptydir-data",
        "--timeout",
    ]
    try:
        held = subprocess.run([*drain, "40s"], capture_output=True, text=True, env=os.environ, check=False, timeout=120)
        assert held.returncode != 0 and "would violate the pod's disruption budget" in held.stderr, (
            held.stdout + held.stderr
        )
        assert len(release.ready()) == 1
    finally:
        subprocess.run([KUBECTL, "uncordon", node], check=True, capture_output=True, timeout=60)
    until(lambda: len(release.ready()) == 2, 300, "the pod that was drained, again")


# --- uninstallation -------------------------------------------------------------------------------


def test_uninstalling_leaves_nothing(release):
    assert {one.partition("/")[0] for one in release.everything()} >= {
        "V1Deployment",
        "V1Role",
        "V1PriorityClass",
        "V1Namespace",
        "V2HorizontalPodAutoscaler",
    }
    release.helm("uninstall", "--wait", "--timeout", "300s")
    until(lambda: not release.everything(), 300, "everything to be gone")
    assert release.training not in {namespace.metadata.name for namespace in release.cluster.api.list_namespace().items}
    left = {secret.metadata.name for secret in release.cluster.api.list_namespaced_secret(release.namespace).items}
    assert {"airloop-mlflow", "airloop-serving"} <= left and not [name for name in left if name.startswith("sh.helm")]
