"""Provide a namespace in the cluster that ``KUBECONFIG`` names, and Airflow's account in it."""

import base64
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Any

from include.settings import REPOSITORY
from tests.cluster.claims import CONTAINER_SECURITY, POD_SECURITY, RESTRICTED, forget
from tests.waiting import wait_for


def until(condition: Callable[[], Any], seconds: float = 400.0, what: str = "that") -> Any:
    """Wait until the condition returns a true value, and return that value."""
    return wait_for(condition, seconds, lambda: what, interval=0.2)


@dataclass(frozen=True)
class Cluster:
    """A namespace of the cluster, and a client."""

    api: Any
    namespace: str
    image: str
    kubeconfig: Path  # of Airflow's account

    def pods(self, request: str | None = None) -> list[Any]:
        """Return the pods of a request (or all), oldest first."""
        selector = f"airloop/request={request}" if request else None
        items = self.api.list_namespaced_pod(self.namespace, label_selector=selector).items
        return sorted(items, key=lambda pod: pod.metadata.creation_timestamp)

    def running(self, request: str) -> Any:
        """Return the request's only pod if it is running, or None."""
        return next(
            (
                p
                for p in self.pods(request)
                if p.status.phase == "Running" and p.status.container_statuses[0].state.running
            ),
            None,
        )

    def evict(self, pod: Any) -> None:
        body = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": pod.metadata.name, "namespace": self.namespace},
        }
        self.api.create_namespaced_pod_eviction(pod.metadata.name, self.namespace, body)

    @property
    def node(self) -> Any:
        """Return the node that runs pods. The extra Ready node has no addresses."""
        return next(node for node in self.api.list_node().items if node.status.addresses)

    def node_ready(self) -> bool:
        return next(c.status for c in self.node.status.conditions if c.type == "Ready") == "True"

    def give_a_place(self) -> None:
        """Wait until Kubernetes assigns a node to a pod.

        After an outage of the API server, its scheduler may not schedule pods for minutes.
        """
        base = {"name": "base", "image": self.image, "command": ["sleep", "1"], "securityContext": CONTAINER_SECURITY}
        spec = {
            "containers": [base],
            "securityContext": POD_SECURITY,
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 0,
        }
        body = {"metadata": {"generateName": "a-place-"}, "spec": spec}
        name = self.api.create_namespaced_pod(self.namespace, body).metadata.name
        try:
            until(
                lambda: self.api.read_namespaced_pod(name, self.namespace).spec.node_name,
                300,
                "the scheduler to give a pod a node",
            )
        finally:
            self.api.delete_namespaced_pod(name, self.namespace)


class NoClusterError(Exception):
    """Raised when no cluster is available for tests. The message names what is missing."""


@contextmanager
def a_cluster() -> Iterator[Cluster]:
    """Create a namespace in the cluster that KUBECONFIG names.

    It enforces the Pod Security Standard ``restricted``, as the training namespace does.
    """
    if not os.environ.get("KUBECONFIG"):
        raise NoClusterError("no cluster: KUBECONFIG names none")
    image = os.environ.get("AIRLOOP_TEST_IMAGE")
    if not image:
        raise NoClusterError("AIRLOOP_TEST_IMAGE names no image of empty folders in that cluster")
    from kubernetes import client, config

    config.load_kube_config()
    api, name = client.CoreV1Api(), f"airloop-test-{token_hex(3)}"
    api.create_namespace({"metadata": {"name": name, "labels": RESTRICTED}})
    try:
        with an_account(name) as kubeconfig:
            yield Cluster(api, name, image, kubeconfig)
    finally:
        api.delete_namespace(name)
        forget(api, name)


@contextmanager
def an_account(namespace: str) -> Iterator[Path]:
    """Create a service account with exactly the rights of the runbook's table.

    Return its kubeconfig.
    """
    from kubernetes import client

    rules, for_nodes = rules_of_runbook()
    roles, server = client.RbacAuthorizationV1Api(), client.Configuration.get_default_copy()
    account = {"kind": "ServiceAccount", "name": "airflow", "namespace": namespace}
    client.CoreV1Api().create_namespaced_service_account(namespace, {"metadata": {"name": "airflow"}})
    roles.create_namespaced_role(namespace, {"metadata": {"name": "airflow"}, "rules": rules})
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "airflow"}
    roles.create_namespaced_role_binding(
        namespace, {"metadata": {"name": "airflow"}, "roleRef": reference, "subjects": [account]}
    )
    roles.create_cluster_role({"metadata": {"name": namespace}, "rules": for_nodes})
    try:
        reference = reference | {"kind": "ClusterRole", "name": namespace}
        roles.create_cluster_role_binding(
            {"metadata": {"name": namespace}, "roleRef": reference, "subjects": [account]}
        )
        lifetime = {"spec": {"expirationSeconds": 24 * 3600}}
        token = client.CoreV1Api().create_namespaced_service_account_token("airflow", namespace, lifetime).status.token
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "kubeconfig"
            file.touch(mode=0o600)
            authority = base64.b64encode(Path(server.ssl_ca_cert).read_bytes()).decode()
            content = {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "test",
                "clusters": [
                    {"name": "test", "cluster": {"server": server.host, "certificate-authority-data": authority}}
                ],
                "users": [{"name": "airflow", "user": {"token": token}}],
                "contexts": [
                    {"name": "test", "context": {"cluster": "test", "user": "airflow", "namespace": namespace}}
                ],
            }
            file.write_text(json.dumps(content))
            yield file
    finally:
        roles.delete_cluster_role_binding(namespace)
        roles.delete_cluster_role(namespace)


def rules_of_runbook() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the rights that docs/runbooks/train.md lists for Airflow.

    These are the rules of the namespace and the rules of the cluster.
    """
    text = (REPOSITORY / "docs" / "runbooks" / "train.md").read_text()
    rows = re.findall(r"^\| `([a-z/]+)`(?: \(`?([a-z]+)`?\))? \| ([a-z, ]+) \|$", text, re.MULTILINE)
    of = {
        where: [
            {"apiGroups": ["batch" if resource == "jobs" else ""], "resources": [resource], "verbs": verbs.split(", ")}
            for resource, scope, verbs in rows
            if (scope == "cluster") is (where == "cluster")
        ]
        for where in ("namespace", "cluster")
    }
    assert len(of["namespace"]) == 4 and len(of["cluster"]) == 1, rows
    return of["namespace"], of["cluster"]
