"""A real stack whose training steps are pods of the tests' namespace, and its runs."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex
from typing import Any

import pytest
from pydantic import SecretStr

from include.settings import REPOSITORY, Settings, get_settings
from include.stack.accounts.access import mlflow_credentials
from include.stack.api import AirflowApi
from include.stack.processes import ProcessBook
from tests.cluster.machine import address_for_pods, pod_template
from tests.cluster.namespace import Cluster
from tests.ports import free_port

REPEATS = int(os.environ.get("AIRLOOP_TEST_REPEATS", "1"))
HERE = Path(__file__).parent
CODE = ("config", "feature_repo", "include", "plugins", "serving", "tests")
# Pools of all compute classes of the tests: enough for the soak test's ten concurrent steps.
POOLS = {
    "cpu": 2,
    "gpu_test": 2,
    "gpu_many": 48,
    **dict.fromkeys(
        (
            "small",
            "patient",
            "impatient",
            "anywhere",
            "badly_named",
            "unknown_image",
            "gpu_nowhere",
            "tight",
            "hasty",
            "shaky",
        ),
        16,
    ),
}


def new_request() -> str:
    return f"r{token_hex(5)}"


@dataclass
class Runs:
    """Starts DAG runs of one step and reports their outcomes."""

    api: AirflowApi
    cluster: Cluster
    settings: Settings
    started: dict[str, tuple[str, str]] = field(default_factory=dict)  # request -> (dag, run)
    side_by_side: dict[tuple[Any, ...], list[str]] = field(default_factory=dict)

    def start(self, compute: str, behave: str, request: str | None = None) -> str:
        """Start a run and return the request's id."""
        request = request or new_request()
        dag = f"pods__{compute}"
        self.started[request] = dag, self.api.trigger(dag, {"request": request, "behave": behave})
        return request

    def nth(self, compute: str, behave: str, nth: int, then: Callable[[str], None] | None = None) -> str:
        """Return one of ``REPEATS`` requests, all started with the first to wait concurrently.

        Args:
            then: a function that is called with each request in turn before the first is checked,
                for example an eviction.
        """
        key = compute, behave, getattr(then, "__qualname__", None)
        if key not in self.side_by_side:
            self.side_by_side[key] = [self.start(compute, behave) for _ in range(REPEATS)]
            for request in self.side_by_side[key] if then else ():
                then(request)
        return self.side_by_side[key][nth]

    def end(self, request: str, seconds: float = 1200.0) -> str:
        """Wait for the run's end and return its state."""
        return self.api.wait(*self.started[request], timeout=seconds, every=0.3)

    def step(self, request: str) -> dict[str, Any]:
        """Return the step's task instance."""
        return next(t for t in self.api.task_instances(*self.started[request]) if t["task_id"] == "fit")

    def tries(self, request: str) -> int:
        """Return the number of tries, without those whose resumption the scheduler lost.

        A trigger may fire before the scheduler knows that the task was deferred. The scheduler then
        takes the queued task for one that ended elsewhere, and starts another try of it.
        """
        dag, run = self.started[request]
        lost = re.findall(
            rf"<TaskInstance: {dag}\.fit {re.escape(run)} \[queued\] ti_id=(\S+)> finished with state success, but",
            (self.settings.home / "logs" / "scheduler.log").read_text(errors="replace"),
        )
        return self.attempts(request) - len(set(lost))

    def attempts(self, request: str) -> int:
        """Return Airflow's own number of tries."""
        return self.step(request)["try_number"]

    def log(self, request: str, number: int | None = None) -> str:
        """Return the log of one try of the step (by default the last one)."""
        dag, run = self.started[request]
        path = f"dags/{dag}/dagRuns/{run.replace('+', '%2B')}/taskInstances/fit/logs/{number or self.attempts(request)}"
        content = self.api.call("GET", path, params={"full_content": True}, headers={"accept": "application/json"})[
            "content"
        ]
        return "\n".join(
            line.get("event", "") + json.dumps(line.get("error_detail", "")) if isinstance(line, dict) else str(line)
            for line in content
        )

    def manifest(self, request: str) -> Path:
        return Path(self.settings.store) / "flights" / "training" / request / "fit.json"

    def cancel(self, request: str, way: str = "run") -> None:
        """Mark the run or its step as failed, as a person does in the UI."""
        dag, run = self.started[request]
        path = f"dags/{dag}/dagRuns/{run.replace('+', '%2B')}"
        if way == "run":
            self.api.call("PATCH", path, json={"state": "failed"})
        else:
            self.api.call("PATCH", f"{path}/taskInstances/fit", json={"new_state": "failed"})

    def clear(self, request: str) -> None:
        self.api.clear(*self.started[request], task_ids=["fit"])

    def kill(self, component: str) -> None:
        """Kill a component of Airflow and its descendants, as a machine failure does."""
        book = ProcessBook(self.settings.home, self.settings.home.parent / "code")
        for process in book.members(book.records()[component]):
            process.kill()

    def sweep(self) -> None:
        """Run the sweep that otherwise runs every five minutes."""
        assert (
            self.api.wait("airloop__sweep_pods", self.api.trigger("airloop__sweep_pods", {}), timeout=600, every=0.3)
            == "success"
        )

    def counted(self, request: str) -> int:
        """Return the count in the checkpoint of the counting step."""
        kept = self.manifest(request).with_suffix(".checkpoint") / "count"
        return int(kept.read_text() or 0) if kept.exists() else 0

    def begins(self, request: str) -> list[int]:
        """Return the count at which each try of the counting step began."""
        logs = (self.log(request, number) for number in range(1, self.attempts(request) + 1))
        return [int(begin) for log in logs for begin in re.findall(r"begins at (\d+)", log)]

    def lived(self, request: str) -> list[str]:
        """Return the names of all pods that the step has had."""
        return sorted(file.name for file in self.manifest(request).with_suffix(".lives").glob("[!.]*"))

    def lives(self, request: str) -> list[tuple[float, float]]:
        """Return (first, last) sign of life of each process of the step, by its own clock."""
        folder = self.manifest(request).with_suffix(".lives")
        spans = (file.read_text().split() for file in folder.glob("[!.]*"))
        return sorted((float(first), float(last)) for first, last in spans)

    def never_two(self, request: str) -> None:
        lives = self.lives(request)
        assert all(before[1] <= after[0] for before, after in zip(lives, lives[1:], strict=False)), (
            f"two pods of one step ran at once: {lives}"
        )


def settings_of(cluster: Cluster, root: Path) -> Settings:
    """Return settings of a new stack in that folder.

    Its Airflow and training steps run a copy of this checkout that includes the project tiny.
    """
    root.chmod(0o755)
    # Pods run as user nobody on this machine, and must be able to reach their folder.
    for parent in root.parents:
        if parent.stat().st_uid == os.getuid() and parent != Path(parent.anchor):
            parent.chmod(parent.stat().st_mode | 0o055)
    for name in CODE:
        shutil.copytree(REPOSITORY / name, root / "code" / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(
        HERE / "tiny", root / "code" / "include" / "projects" / "tiny", ignore=shutil.ignore_patterns("__pycache__")
    )
    dags = root / "dags"
    shutil.copytree(HERE / "dags", dags, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("train.py", "sweep_pods.py"):
        shutil.copy(REPOSITORY / "dags" / file, dags)
    template = root / "pod.yaml"
    template.write_text(json.dumps(pod_template(cluster, root, root / "code")))
    ports = {name: free_port("") for name in ("airflow_port", "mlflow_port", "serving_port")}
    return Settings(
        # The tests kill and start processes themselves.
        restart=False,
        home=root / "home",
        dags_folder=dags,
        parallelism=4,
        projects="flights,tiny",
        compute="kubernetes",
        kubernetes_namespace=cluster.namespace,
        training_image=cluster.image,
        pod_template=template,
        host=address_for_pods(cluster),
        **mlflow_accounts(cluster),
        pools=",".join(f"{name}={slots}" for name, slots in POOLS.items()),
        **ports,
    )


def mlflow_accounts(cluster: Cluster) -> dict[str, Any]:
    """Return settings with MLflow authentication, because MLflow is reachable from the network.

    Pods get their account from a secret of the cluster.
    """
    made: dict[str, Any] = {
        f"mlflow_{name}": SecretStr(token_hex(16)) for name in ("admin_password", "password", "flask_secret_key")
    }
    login = {
        "MLFLOW_TRACKING_USERNAME": "airloop",
        "MLFLOW_TRACKING_PASSWORD": made["mlflow_password"].get_secret_value(),
    }
    name = f"airloop-mlflow-{token_hex(4)}"
    cluster.api.create_namespaced_secret(cluster.namespace, {"metadata": {"name": name}, "stringData": login})
    return {**made, "mlflow_username": "airloop", "mlflow_secret": name}


def airloop_command(cluster: Cluster, settings: Settings, *arguments: str) -> subprocess.CompletedProcess:
    code = settings.home.parent / "code"
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    kept |= {"PYTHONPATH": str(code), "KUBECONFIG": str(cluster.kubeconfig)}
    # Pods run as user nobody and must be able to write to the files of this Airflow, so the umask
    # is 0.
    return subprocess.run(
        [sys.executable, "-m", "include.cli", *arguments],
        cwd=code,
        env=kept | settings.environment(),
        capture_output=True,
        text=True,
        timeout=1000,
        check=False,
        umask=0,
    )


@contextmanager
def a_stack(cluster: Cluster, settings: Settings) -> Iterator[Runs]:
    """Start a stack and stop it at the end."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            **settings.environment(),
            **mlflow_credentials(settings),
            "MLFLOW_TRACKING_URI": settings.mlflow_url,
        }.items():
            patch.setenv(name, value)
        get_settings.cache_clear()
        try:
            up = airloop_command(cluster, settings, "up")
            assert up.returncode == 0, up.stdout + up.stderr
            api = AirflowApi.from_settings(settings)
            api.wait_for_dags(
                [
                    "pods__small",
                    "pods__gpu_many",
                    "workers__cpu",
                    "workers__shaky",
                    "flights__train",
                    "airloop__sweep_pods",
                ],
                timeout=300,
            )
            yield Runs(api, cluster, settings)
        finally:
            airloop_command(cluster, settings, "down")
    get_settings.cache_clear()
