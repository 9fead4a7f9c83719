"""Provide one cluster, one namespace and one real stack for the tests of this folder.

The cluster is the one that ``KUBECONFIG`` names. Its nodes must be this machine: through persistent
volumes, pods read this checkout and its Python, and write into a folder of the test. Airflow uses
an account with exactly the rights that the runbook of train lists. ``AIRLOOP_TEST_IMAGE`` is an
image of empty folders in the cluster. ``AIRLOOP_TEST_K8S_PART`` is a program that pauses and
resumes parts of the cluster (``PROGRAM pause kubelet``). Tests that need it are skipped without it.
``AIRLOOP_TEST_REPEATS`` sets how often each failure is provoked.
"""

import os
import subprocess
import threading
from contextlib import ExitStack, suppress
from datetime import UTC, datetime

import pytest

from tests.cluster.namespace import NoClusterError, a_cluster, until
from tests.cluster.stack import a_stack, airloop_command, settings_of
from tests.conftest import CALM

DUMMY_NODE = "airloop-test-well-"


@pytest.fixture(autouse=True)
def isolated_kube_client():
    """Restore the tests' account as the default of Kubernetes clients.

    Airflow's hooks in this process replace the default with their own account.
    """
    from kubernetes import client

    configuration = client.Configuration.get_default_copy()
    yield
    client.Configuration.set_default(configuration)


@pytest.fixture(scope="package")
def cluster():
    with ExitStack() as stack:
        try:
            test_cluster = stack.enter_context(a_cluster())
        except NoClusterError as missing:
            pytest.skip(str(missing))
        yield test_cluster


@pytest.fixture
def k8s_part(cluster):
    """Return a function that runs the program which stops parts of the cluster.

    Wait first until the parts that an earlier test stopped are available again.
    """
    program = os.environ.get("AIRLOOP_TEST_K8S_PART")
    if not program:
        pytest.skip("AIRLOOP_TEST_K8S_PART names no program that pauses parts of the cluster")
    # After the API server restarts, the node and the scheduler are sometimes unavailable for a
    # minute. This is longer than a test's pods may stay pending.
    until(lambda: cluster.node_ready() and not cluster.node.spec.taints, 120, "the node to be well again")
    cluster.give_a_place()
    return lambda *arguments: subprocess.run(
        [program, *arguments], check=True, capture_output=True, text=True, timeout=120
    )


@pytest.fixture(scope="package")
def healthy_dummy_node(cluster):
    """Create a second node object that stays Ready during the tests and takes no pods.

    If every node is NotReady, Kubernetes assumes a network partition and stops evicting pods
    ("master disruption mode").
    """
    from kubernetes import client
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    leases, api, name = client.CoordinationV1Api(), cluster.api, DUMMY_NODE + cluster.namespace.rpartition("-")[2]
    api.create_node({"metadata": {"name": name}, "spec": {"unschedulable": True}})
    ended = threading.Event()

    def renew_lease() -> None:
        while not ended.wait(5):
            with suppress(ApiException, HTTPError):  # other tests stop the API server
                leases.patch_namespaced_lease(name, "kube-node-lease", {"spec": {"renewTime": _now()}})

    thread = threading.Thread(target=renew_lease, daemon=True)
    try:
        lease = {
            "metadata": {"name": name},
            "spec": {"holderIdentity": name, "leaseDurationSeconds": 40, "renewTime": _now()},
        }
        leases.create_namespaced_lease("kube-node-lease", lease)
        condition = {
            "type": "Ready",
            "status": "True",
            "reason": "Test",
            "message": "",
            "lastHeartbeatTime": _now(),
            "lastTransitionTime": _now(),
        }
        api.patch_node_status(name, {"status": {"conditions": [condition]}})
        thread.start()
        yield
    finally:
        ended.set()
        api.delete_node(name)
        leases.delete_namespaced_lease(name, "kube-node-lease")


def _now() -> str:
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%fZ}"


@pytest.fixture(scope="package")
def stack_settings(cluster, tmp_path_factory):
    return settings_of(cluster, tmp_path_factory.mktemp("cluster"))


@pytest.fixture(scope="package")
def airloop(cluster, stack_settings):
    """Return a function that runs the `airloop` command with these settings, as a user would."""
    return lambda *arguments: airloop_command(cluster, stack_settings, *arguments)


# While the stack runs, its settings are in this process's environment. Tests of other folders must
# not see them.
@pytest.fixture(scope="package")
def runs(stack_settings, cluster):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in CALM.items():
            patch.setenv(name, value)
        with a_stack(cluster, stack_settings) as started:
            yield started
