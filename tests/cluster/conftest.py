"""One cluster, one namespace and one real stack for the tests of this folder.

The cluster is the one that ``KUBECONFIG`` names, any one whose nodes are this machine (pods read this checkout and its Python, and write into a folder
of the test, by hostPath). Airflow itself gets there as an account that may do exactly what the runbook of train says it must.
``AIRLOOP_TEST_IMAGE`` is an image of empty folders there; ``AIRLOOP_TEST_K8S_PART`` a program that pauses and resumes parts of the cluster
(``PROGRAM pause kubelet``), without which the tests that need it are skipped. ``AIRLOOP_TEST_REPEATS``: how often each failure is made.
"""

import base64
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from secrets import token_hex
from typing import Any

import psutil
import pytest
from pydantic import SecretStr

from include.settings import REPOSITORY, Settings, get_settings
from include.stack.access import mlflow_credentials
from include.stack.api import AirflowApi
from include.stack.processes import ProcessBook
from tests.conftest import PARSED_ONCE

REPEATS = int(os.environ.get("AIRLOOP_TEST_REPEATS", "2"))
HERE = Path(__file__).parent
WELL = "airloop-test-well-"
CODE = ("config", "feature_repo", "include", "plugins", "serving", "tests")
# Of all classes of the tests: enough for the soak's ten at once.
POOLS = {
    "cpu": 2, "gpu_test": 2, "gpu_many": 48,
    **dict.fromkeys(("small", "patient", "impatient", "anywhere", "badly_named", "unknown_image", "gpu_nowhere", "tight", "hasty", "shaky"), 16),
}  # fmt: skip


def new_request() -> str:
    return f"r{token_hex(5)}"


def until(condition: Callable[[], Any], seconds: float = 400.0, what: str = "that") -> Any:
    """Waits until the condition gives something true, and gives that."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s in vain for {what}"
        time.sleep(0.2)
    return found


@dataclass(frozen=True)
class Cluster:
    """A namespace of the cluster, and a client."""

    api: Any
    namespace: str
    image: str
    kubeconfig: Path  # of the account that Airflow has there

    def pods(self, request: str | None = None) -> list[Any]:
        """Those of a request (or all), oldest first."""
        selector = f"airloop/request={request}" if request else None
        found = self.api.list_namespaced_pod(self.namespace, label_selector=selector).items
        return sorted(found, key=lambda pod: pod.metadata.creation_timestamp)

    def running(self, request: str) -> Any:
        """The request's one pod, if it runs."""
        return next((p for p in self.pods(request) if p.status.phase == "Running" and p.status.container_statuses[0].state.running), None)

    def evict(self, pod: Any) -> None:
        body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod.metadata.name, "namespace": self.namespace}}
        self.api.create_namespaced_pod_eviction(pod.metadata.name, self.namespace, body)

    @property
    def node(self) -> Any:
        """The one on which pods run: the one that is well has said nothing of itself."""
        return next(node for node in self.api.list_node().items if node.status.addresses)

    def node_ready(self) -> bool:
        return next(c.status for c in self.node.status.conditions if c.type == "Ready") == "True"

    def give_a_place(self) -> None:
        """Wait until Kubernetes gives a pod a node: its scheduler may look at none for minutes after the API server was away."""
        base = {"name": "base", "image": self.image, "command": ["sleep", "1"]}
        body = {"metadata": {"generateName": "a-place-"}, "spec": {"containers": [base], "restartPolicy": "Never", "terminationGracePeriodSeconds": 0}}
        name = self.api.create_namespaced_pod(self.namespace, body).metadata.name
        try:
            until(lambda: self.api.read_namespaced_pod(name, self.namespace).spec.node_name, 300, "the scheduler to give a pod a node")
        finally:
            self.api.delete_namespaced_pod(name, self.namespace)


@dataclass
class Runs:
    """Starts DAG runs of one step and tells what came of them."""

    api: AirflowApi
    cluster: Cluster
    settings: Settings
    started: dict[str, tuple[str, str]] = field(default_factory=dict)  # request -> (dag, run)
    side_by_side: dict[tuple[Any, ...], list[str]] = field(default_factory=dict)

    def start(self, compute: str, behave: str, request: str | None = None) -> str:
        """Gives the request's id."""
        request = request or new_request()
        dag = f"pods__{compute}"
        self.started[request] = dag, self.api.trigger(dag, {"request": request, "behave": behave})
        return request

    def nth(self, compute: str, behave: str, nth: int, then: Callable[[str], None] | None = None) -> str:
        """One of as many requests as there are repeats, all started with the first, so that they wait side by side.

        Args:
            then: done with each of them, one after the other, before the first is looked at: an eviction, say.
        """
        key = compute, behave, getattr(then, "__qualname__", None)
        if key not in self.side_by_side:
            self.side_by_side[key] = [self.start(compute, behave) for _ in range(REPEATS)]
            for request in self.side_by_side[key] if then else ():
                then(request)
        return self.side_by_side[key][nth]

    def end(self, request: str, seconds: float = 1200.0) -> str:
        """Waits for the run's end; gives its state."""
        return self.api.wait(*self.started[request], timeout=seconds, every=0.3)

    def step(self, request: str) -> dict[str, Any]:
        """The step's task instance."""
        return next(t for t in self.api.task_instances(*self.started[request]) if t["task_id"] == "fit")

    def tries(self, request: str) -> int:
        return self.step(request)["try_number"]

    def log(self, request: str, number: int | None = None) -> str:
        """What one try of the step logged (the last one)."""
        dag, run = self.started[request]
        path = f"dags/{dag}/dagRuns/{run.replace('+', '%2B')}/taskInstances/fit/logs/{number or self.tries(request)}"
        content = self.api.call("GET", path, params={"full_content": True}, headers={"accept": "application/json"})["content"]
        return "\n".join(line.get("event", "") + json.dumps(line.get("error_detail", "")) if isinstance(line, dict) else str(line) for line in content)

    def manifest(self, request: str) -> Path:
        return Path(self.settings.store) / "flights" / "training" / request / "fit.json"

    def cancel(self, request: str, way: str = "run") -> None:
        """As a person does in the UI: marks the run, or its step, as failed."""
        dag, run = self.started[request]
        path = f"dags/{dag}/dagRuns/{run.replace('+', '%2B')}"
        if way == "run":
            self.api.call("PATCH", path, json={"state": "failed"})
        else:
            self.api.call("PATCH", f"{path}/taskInstances/fit", json={"new_state": "failed"})

    def clear(self, request: str) -> None:
        self.api.clear(*self.started[request], task_ids=["fit"])

    def kill(self, component: str) -> None:
        """Kills a part of Airflow and all that it started with -9, as a machine's end does."""
        book = ProcessBook(self.settings.home, self.settings.home.parent / "code")
        for process in book.members(book.records()[component]):
            process.kill()

    def sweep(self) -> None:
        """What happens every five minutes anyway."""
        assert self.api.wait("airloop__sweep_pods", self.api.trigger("airloop__sweep_pods", {}), timeout=600, every=0.3) == "success"

    def counted(self, request: str) -> int:
        """What the counting step has kept in its checkpoint."""
        kept = self.manifest(request).with_suffix(".checkpoint") / "count"
        return int(kept.read_text() or 0) if kept.exists() else 0

    def begins(self, request: str) -> list[int]:
        """Where each try of the counting step began."""
        logs = (self.log(request, number) for number in range(1, self.tries(request) + 1))
        return [int(found) for log in logs for found in re.findall(r"begins at (\d+)", log)]

    def lived(self, request: str) -> list[str]:
        """The names of the pods that the step ever had."""
        return sorted(file.name for file in self.manifest(request).with_suffix(".lives").glob("[!.]*"))

    def lives(self, request: str) -> list[tuple[float, float]]:
        """(first, last) sign of life of each process that the step ever was, by its own clock."""
        folder = self.manifest(request).with_suffix(".lives")
        spans = (file.read_text().split() for file in folder.glob("[!.]*"))
        return sorted((float(first), float(last)) for first, last in spans)

    def never_two(self, request: str) -> None:
        lives = self.lives(request)
        assert all(before[1] <= after[0] for before, after in zip(lives, lives[1:], strict=False)), f"two pods of one step ran at once: {lives}"


class NoCluster(Exception):
    """There is none to test on; the message says what is missing."""


@contextmanager
def a_cluster() -> Iterator[Cluster]:
    """A namespace of its own in the cluster that KUBECONFIG names."""
    if not os.environ.get("KUBECONFIG"):
        raise NoCluster("no cluster: KUBECONFIG names none")
    image = os.environ.get("AIRLOOP_TEST_IMAGE")
    if not image:
        raise NoCluster("AIRLOOP_TEST_IMAGE names no image of empty folders in that cluster")
    from kubernetes import client, config

    config.load_kube_config()
    api, name = client.CoreV1Api(), f"airloop-test-{token_hex(3)}"
    api.create_namespace({"metadata": {"name": name}})
    try:
        with an_account(name) as kubeconfig:
            yield Cluster(api, name, image, kubeconfig)
    finally:
        api.delete_namespace(name)


@contextmanager
def an_account(namespace: str) -> Iterator[Path]:
    """A service account that may do in the namespace what the runbook's table says, and nothing else; gives its kubeconfig."""
    from kubernetes import client

    rules, for_nodes = rules_of_runbook()
    roles, server = client.RbacAuthorizationV1Api(), client.Configuration.get_default_copy()
    account = {"kind": "ServiceAccount", "name": "airflow", "namespace": namespace}
    client.CoreV1Api().create_namespaced_service_account(namespace, {"metadata": {"name": "airflow"}})
    roles.create_namespaced_role(namespace, {"metadata": {"name": "airflow"}, "rules": rules})
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "airflow"}
    roles.create_namespaced_role_binding(namespace, {"metadata": {"name": "airflow"}, "roleRef": reference, "subjects": [account]})
    roles.create_cluster_role({"metadata": {"name": namespace}, "rules": for_nodes})
    try:
        reference = reference | {"kind": "ClusterRole", "name": namespace}
        roles.create_cluster_role_binding({"metadata": {"name": namespace}, "roleRef": reference, "subjects": [account]})
        lifetime = {"spec": {"expirationSeconds": 24 * 3600}}
        token = client.CoreV1Api().create_namespaced_service_account_token("airflow", namespace, lifetime).status.token
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "kubeconfig"
            file.touch(mode=0o600)
            authority = base64.b64encode(Path(server.ssl_ca_cert).read_bytes()).decode()
            content = {
                "apiVersion": "v1", "kind": "Config", "current-context": "test",
                "clusters": [{"name": "test", "cluster": {"server": server.host, "certificate-authority-data": authority}}],
                "users": [{"name": "airflow", "user": {"token": token}}],
                "contexts": [{"name": "test", "context": {"cluster": "test", "user": "airflow", "namespace": namespace}}],
            }  # fmt: skip
            file.write_text(json.dumps(content))
            yield file
    finally:
        roles.delete_cluster_role_binding(namespace)
        roles.delete_cluster_role(namespace)


def rules_of_runbook() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What docs/runbooks/train.md says that Airflow must be allowed: rules of the namespace, and of the cluster."""
    text = (REPOSITORY / "docs" / "runbooks" / "train.md").read_text()
    rows = re.findall(r"^\| `([a-z/]+)`(?: \(`?([a-z]+)`?\))? \| ([a-z, ]+) \|$", text, re.MULTILINE)
    of = {where: [{"apiGroups": ["batch" if resource == "jobs" else ""], "resources": [resource], "verbs": verbs.split(", ")}
                  for resource, said, verbs in rows if (said == "cluster") is (where == "cluster")] for where in ("namespace", "cluster")}  # fmt: skip
    assert len(of["namespace"]) == 4 and len(of["cluster"]) == 1, rows
    return of["namespace"], of["cluster"]


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


def settings_of(cluster: Cluster, root: Path) -> Settings:
    """Settings of a stack of its own in that folder, whose Airflow and training steps run a copy of this checkout with the project tiny in it."""
    root.chmod(0o755)
    for parent in root.parents:  # pods are nobody on this machine, and shall find their folder
        if parent.stat().st_uid == os.getuid() and parent != Path(parent.anchor):
            parent.chmod(parent.stat().st_mode | 0o055)
    for name in CODE:
        shutil.copytree(REPOSITORY / name, root / "code" / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(HERE / "tiny", root / "code" / "include" / "projects" / "tiny", ignore=shutil.ignore_patterns("__pycache__"))
    dags = root / "dags"
    shutil.copytree(HERE / "dags", dags, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("train.py", "sweep_pods.py"):
        shutil.copy(REPOSITORY / "dags" / file, dags)
    template = root / "pod.yaml"
    template.write_text(json.dumps(pod_template(root, root / "code")))
    ports = {name: free_port() for name in ("airflow_port", "mlflow_port", "serving_port")}
    return Settings(
        home=root / "home", dags_folder=dags, parallelism=4, projects="flights,tiny", compute="kubernetes", kubernetes_namespace=cluster.namespace,
        training_image=cluster.image, pod_template=template, host=address_for_pods(cluster), **mlflow_accounts(cluster),
        pools=",".join(f"{name}={slots}" for name, slots in POOLS.items()), **ports,
    )  # fmt: skip


def mlflow_accounts(cluster: Cluster) -> dict[str, Any]:
    """Settings with which MLflow asks who one is, since the network reaches it; pods have their account by a secret of the cluster."""
    made: dict[str, Any] = {f"mlflow_{name}": SecretStr(token_hex(16)) for name in ("admin_password", "password", "flask_secret_key")}
    login = {"MLFLOW_TRACKING_USERNAME": "airloop", "MLFLOW_TRACKING_PASSWORD": made["mlflow_password"].get_secret_value()}
    name = f"airloop-mlflow-{token_hex(4)}"
    cluster.api.create_namespaced_secret(cluster.namespace, {"metadata": {"name": name}, "stringData": login})
    return {**made, "mlflow_username": "airloop", "mlflow_secret": name}


@pytest.fixture(scope="package")
def airloop(cluster, stack_settings):
    """Runs the `airloop` command with those settings, as a person would."""
    return lambda *arguments: airloop_command(cluster, stack_settings, *arguments)


def airloop_command(cluster: Cluster, settings: Settings, *arguments: str) -> subprocess.CompletedProcess:
    code = settings.home.parent / "code"
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    kept |= {"PYTHONPATH": str(code), "KUBECONFIG": str(cluster.kubeconfig)}
    # What this Airflow writes, pods that are nobody must be able to go on with: hence the umask.
    return subprocess.run(
        [sys.executable, "-m", "include.cli", *arguments], cwd=code, env=kept | settings.environment(), capture_output=True, text=True, timeout=1000,
        check=False, umask=0,
    )  # fmt: skip


@contextmanager
def a_stack(cluster: Cluster, settings: Settings) -> Iterator[Runs]:
    """A stack that is up, and is taken down at the end."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**settings.environment(), **mlflow_credentials(settings), "MLFLOW_TRACKING_URI": settings.mlflow_url}.items():
            patch.setenv(name, value)
        get_settings.cache_clear()
        try:
            up = airloop_command(cluster, settings, "up")
            assert up.returncode == 0, up.stdout + up.stderr
            api = AirflowApi.of(settings)
            api.wait_for_dags(["pods__small", "pods__gpu_many", "workers__cpu", "workers__shaky", "flights__train", "airloop__sweep_pods"], timeout=300)
            yield Runs(api, cluster, settings)
        finally:
            airloop_command(cluster, settings, "down")
    get_settings.cache_clear()


@pytest.fixture(scope="package")  # as long as it is up, this process's environment is the stack's: no test of another room may meet that
def runs(stack_settings, cluster):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in PARSED_ONCE.items():
            patch.setenv(name, value)
        with a_stack(cluster, stack_settings) as started:
            yield started


def pod_template(shared: Path | None = None, code: Path = REPOSITORY) -> dict[str, Any]:
    """Pods that run this very checkout: the machine's /usr, Python and code, read-only, and the test's folder if there is one."""
    python = Path(sys.executable)
    folders = {"usr": Path("/usr"), "venv": Path(sys.prefix), "python": Path(sys.base_prefix), "code": code}
    folders |= {f"links{n}": folder for n, folder in enumerate({link.parent for link in links(python)} - set(folders.values()))}
    mounts = [{"name": name, "mountPath": str(path), "readOnly": True} for name, path in folders.items() if not path.is_relative_to("/usr") or name == "usr"]
    volumes = [{"name": m["name"], "hostPath": {"path": m["mountPath"], "type": "Directory"}} for m in mounts]
    environment = {"PATH": f"{python.parent}:/usr/bin:/bin", "PYTHONPATH": str(code), "PYTHONDONTWRITEBYTECODE": "1"}
    if shared:
        mounts.append({"name": "shared", "mountPath": str(shared)})
        volumes.append({"name": "shared", "hostPath": {"path": str(shared), "type": "Directory"}})
    container = {
        "name": "base", "image": "replaced", "workingDir": str(code), "env": [{"name": k, "value": v} for k, v in environment.items()],
        "volumeMounts": mounts,
    }  # fmt: skip
    spec = {"containers": [container], "volumes": volumes}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "template"}, "spec": spec}


def links(path: Path) -> list[Path]:
    """The chain of links from a path to its file."""
    chain = []
    while path.is_symlink():
        path = path.parent / path.readlink()
        chain.append(path)
    return chain


def address_for_pods(cluster: Cluster) -> str:
    """An address of this machine at which pods reach it."""
    addresses = {a.address for a in cluster.node.status.addresses}
    ours = {address.address for addresses_ in psutil.net_if_addrs().values() for address in addresses_ if address.family == socket.AF_INET}
    return next(iter(addresses & ours), "127.0.0.1")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]
