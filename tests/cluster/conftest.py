"""One cluster, one namespace and one real stack for the tests of this folder.

The cluster is the one that ``KUBECONFIG`` names, any one whose nodes are this machine (pods read this checkout and its Python, and write into a folder
of the test, by persistent volumes). Airflow itself gets there as an account that may do exactly what the runbook of train says it must.
``AIRLOOP_TEST_IMAGE`` is an image of empty folders there; ``AIRLOOP_TEST_K8S_PART`` a program that pauses and resumes parts of the cluster
(``PROGRAM pause kubelet``), without which the tests that need it are skipped. ``AIRLOOP_TEST_REPEATS``: how often each failure is made.
"""

import os
import subprocess
import threading
from contextlib import ExitStack, suppress
from datetime import UTC, datetime

import pytest

from tests.cluster.namespace import NoCluster, a_cluster, until
from tests.cluster.stack import a_stack, airloop_command, settings_of
from tests.conftest import PARSED_ONCE

WELL = "airloop-test-well-"


@pytest.fixture(autouse=True)
def nobody_elses_account():
    """The tests' own account stays that of clients that are made without naming one: Airflow's hooks, in this process, put theirs into its place."""
    from kubernetes import client

    kept = client.Configuration.get_default_copy()
    yield
    client.Configuration.set_default(kept)


@pytest.fixture(scope="package")
def cluster():
    with ExitStack() as stack:
        try:
            found = stack.enter_context(a_cluster())
        except NoCluster as missing:
            pytest.skip(str(missing))
        yield found


@pytest.fixture
def k8s_part(cluster):
    """Runs the program that takes parts of the cluster away; waits until an earlier test's are back."""
    program = os.environ.get("AIRLOOP_TEST_K8S_PART")
    if not program:
        pytest.skip("AIRLOOP_TEST_K8S_PART names no program that pauses parts of the cluster")
    # The node is lost to an API server that comes back, for a minute now and then, and so is the scheduler: for longer than a test's pods may wait for a place.
    until(lambda: cluster.node_ready() and not cluster.node.spec.taints, 120, "the node to be well again")
    cluster.give_a_place()
    return lambda *arguments: subprocess.run([program, *arguments], check=True, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="package")
def a_node_that_is_well(cluster):
    """A node object beside the real one, ready as long as the tests run, which takes no pods: of a cluster none of whose nodes answers, Kubernetes takes
    the network to be the trouble, and gives up no pod ("master disruption mode").
    """
    from kubernetes import client
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    leases, api, name = client.CoordinationV1Api(), cluster.api, WELL + cluster.namespace.rpartition("-")[2]
    api.create_node({"metadata": {"name": name}, "spec": {"unschedulable": True}})
    ended = threading.Event()

    def say_so() -> None:
        while not ended.wait(5):
            with suppress(ApiException, HTTPError):  # other tests take the API server away
                leases.patch_namespaced_lease(name, "kube-node-lease", {"spec": {"renewTime": _now()}})

    thread = threading.Thread(target=say_so, daemon=True)
    try:
        lease = {"metadata": {"name": name}, "spec": {"holderIdentity": name, "leaseDurationSeconds": 40, "renewTime": _now()}}
        leases.create_namespaced_lease("kube-node-lease", lease)
        condition = {"type": "Ready", "status": "True", "reason": "Test", "message": "", "lastHeartbeatTime": _now(), "lastTransitionTime": _now()}
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
    """Runs the `airloop` command with those settings, as a person would."""
    return lambda *arguments: airloop_command(cluster, stack_settings, *arguments)


@pytest.fixture(scope="package")  # as long as it is up, this process's environment is the stack's: no test of another room may meet that
def runs(stack_settings, cluster):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in PARSED_ONCE.items():
            patch.setenv(name, value)
        with a_stack(cluster, stack_settings) as started:
            yield started
