"""A fit with several workers on a real cluster, driven by a real Airflow.

The workers are pods of an indexed Job, in which torch really fits.
"""

import json
import os
import threading
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from include.dag_kit.pods.group_ends import INDEX
from include.projects.flights import project as flights
from tests.cluster.namespace import Cluster, until
from tests.cluster.stack import Runs, new_request
from tests.cluster.tiny import project
from tests.unit.training import made_up

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]

EPOCHS = 150  # of the project tiny
SLOW = pytest.mark.skipif(
    not os.environ.get("AIRLOOP_TEST_SLOW"),
    reason="many starts of torch, ten minutes on two cores: AIRLOOP_TEST_SLOW=yes runs it, so does make test-cluster",
)


@dataclass
class Fits(Runs):
    """``Runs`` for fits of the project tiny."""

    training_set: str = ""

    def fit(self, candidate: str) -> str:
        request = new_request()
        given = {"request": request, "candidate": candidate, "training_set": self.training_set}
        dag = f"workers__{next(c.compute for c in project.candidates if c.name == candidate)}"
        self.started[request] = dag, self.api.trigger(dag, given)
        return request

    def manifest(self, request: str) -> Path:
        files = (Path(self.settings.store) / "tiny" / "training" / request).glob("fit-*.json")
        return next(file for file in files if not file.name.endswith(".pods.json"))

    def made(self, request: str) -> dict[str, Any]:
        return json.loads(self.manifest(request).read_text())

    def at_work(self, request: str) -> bool:
        """Return whether a checkpoint of some epochs exists."""
        return any((Path(self.settings.store) / "tiny" / "training" / request).glob("fit-*.checkpoint/state.pt"))

    def costs(self, request: str) -> dict[str, Any]:
        return json.loads(self.manifest(request).with_suffix(".pods.json").read_text())

    def graph(self, request: str) -> bytes:
        return (Path(self.made(request)["bundle"]) / "model.onnx").read_bytes()


@pytest.fixture(scope="module")
def fits(runs) -> Fits:
    # Pods run as user nobody and write next to it.
    mask = os.umask(0)
    try:
        rows = made_up.examples(flights, days=30, a_day=119)
        training_set = made_up.write(
            flights.model_copy(update={"name": "tiny"}), {"id": "abc", "cutoff": "2013-02-10T00:00:00Z"}, rows
        )
    finally:
        os.umask(mask)
    return Fits(runs.api, runs.cluster, runs.settings, training_set=training_set)


@pytest.fixture(scope="module")
def whole(fits):
    """Return candidate -> request of an undisturbed fit."""
    requests = {}
    for candidate in ("network_1", "network_2"):
        requests[candidate] = fits.fit(candidate)
        assert fits.end(requests[candidate]) == "success", fits.log(requests[candidate])
    return requests


def index(pod) -> int:
    return int(pod.metadata.annotations[INDEX])


def jobs(cluster: Cluster, request: str) -> list[Any]:
    from kubernetes import client

    return client.BatchV1Api().list_namespaced_job(cluster.namespace, label_selector=f"airloop/request={request}").items


def services(cluster: Cluster, request: str) -> list[Any]:
    return cluster.api.list_namespaced_service(cluster.namespace, label_selector=f"airloop/request={request}").items


def running(cluster: Cluster, request: str) -> dict[int, Any]:
    """Return index -> pod once both run, or an empty dictionary before that."""
    pods = {
        index(pod): pod
        for pod in cluster.pods(request)
        if pod.status.phase == "Running" and not pod.metadata.deletion_timestamp
    }
    return pods if len(pods) == 2 else {}


@contextmanager
def watched(cluster: Cluster, request: str):
    """Poll the request's pods.

    Record the highest number of concurrent pods per index, and all pods and Jobs.
    """
    seen = SimpleNamespace(most=0, pods={}, jobs=set(), stop=threading.Event())

    def look() -> None:
        while not seen.stop.wait(0.1):
            pods = cluster.pods(request)
            alive = Counter(index(pod) for pod in pods if pod.status.phase not in ("Succeeded", "Failed"))
            seen.most = max([seen.most, *alive.values()])
            seen.pods |= {pod.metadata.name: index(pod) for pod in pods}
            seen.jobs |= {pod.metadata.labels["batch.kubernetes.io/job-name"] for pod in pods}

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        seen.stop.set()
        thread.join()


def test_two_pods_learn_what_one_learns(fits, cluster, whole):
    one, two = (fits.made(whole[name]) for name in ("network_1", "network_2"))
    assert (one["workers"], two["workers"]) == (1, 2)
    losses, others = one["history"]["training_loss"], two["history"]["training_loss"]
    assert len(losses) == EPOCHS and losses[-1] < 0.8 * losses[0]
    # A different order of summation changes only the rounding. Each epoch multiplies the difference
    # by a factor that depends on the processor (1.4e-4 has been seen).
    apart = np.abs(np.divide(losses, others) - 1)
    assert np.max(apart[:20]) < 1e-5 and np.max(apart) < 1e-2, apart
    # Bit-identical graphs would mean that one worker did both fits.
    assert fits.graph(whole["network_1"]) != fits.graph(whole["network_2"])
    log = fits.log(whole["network_2"])
    assert log.count(f"epoch {EPOCHS}/{EPOCHS}") == 1 and "resuming" not in log
    costs = fits.costs(whole["network_2"])
    assert (
        len(costs) == 2
        and {cost["ended"] for cost in costs.values()} == {"succeeded"}
        and all(cost["running_s"] > 0 for cost in costs.values())
    )
    until(
        lambda: (
            not (
                cluster.pods(whole["network_2"])
                or jobs(cluster, whole["network_2"])
                or services(cluster, whole["network_2"])
            )
        ),
        what="all to go",
    )


def test_its_pods_are_as_safe_as_a_single_one_and_find_each_other_by_name(fits, cluster):
    request = fits.fit("network_2")
    pods = until(lambda: running(cluster, request), what="both workers")
    (job,) = jobs(cluster, request)
    assert len(job.metadata.name) <= 58 and [s.metadata.name for s in services(cluster, request)] == [job.metadata.name]
    for place, pod in pods.items():
        assert (
            pod.metadata.name.startswith(f"{job.metadata.name}-{place}-")
            and pod.spec.hostname == f"{job.metadata.name}-{place}"
        )
        container = pod.spec.containers[0]
        assert pod.spec.security_context.run_as_non_root and container.security_context.read_only_root_filesystem
        assert pod.spec.automount_service_account_token is False and container.resources.limits["memory"] == "1Gi"
        labels = {name.removeprefix("airloop/"): value for name, value in pod.metadata.labels.items()}
        assert (labels["project"], labels["request"], labels["step"], labels["number"]) == (
            "tiny",
            request,
            "fit-network_2",
            "1",
        )
    assert fits.end(request) == "success", fits.log(request)


@pytest.mark.parametrize("place", [1, 0])
def test_an_evicted_worker_comes_again_and_all_go_on_from_the_checkpoint(fits, cluster, whole, place):
    request = fits.fit("network_2")
    with watched(cluster, request) as seen:
        pods = until(lambda: running(cluster, request), what="both workers")
        until(lambda: fits.at_work(request), what="some work")
        began = time.monotonic()
        cluster.evict(pods[place])
        assert fits.end(request) == "success", fits.log(request)
        print(
            f"healed and ended {time.monotonic() - began:.1f} s after the eviction of worker {place}; pods {seen.pods}"
        )
    log = fits.log(request)
    assert fits.tries(request) == 1 and len(seen.jobs) == 1, "another Job was made"
    assert seen.most == 1, "two pods of one place were there at once"
    assert Counter(seen.pods.values())[place] >= 2
    assert "resuming from epoch" in log and "resuming from epoch 1/" not in log
    assert (
        fits.graph(request) == fits.graph(whole["network_2"])
        and fits.made(request)["history"] == fits.made(whole["network_2"])["history"]
    )
    costs = fits.costs(request)
    assert len(costs) == len(seen.pods) and {"evicted", "deleted"} & {cost["ended"] for cost in costs.values()}


@pytest.mark.parametrize("way", ["run", "task"])
def test_a_cancelled_run_leaves_nothing(fits, cluster, way):
    request = fits.fit("network_2")
    until(lambda: running(cluster, request), what="both workers")
    until(lambda: fits.step(request)["state"] == "deferred", what="its watch")
    fits.cancel(request, way)
    until(lambda: not (cluster.pods(request) or jobs(cluster, request) or services(cluster, request)), what="all to go")
    assert fits.end(request) == "failed"


def test_a_cleared_step_never_has_two_groups_at_once(fits, cluster, whole):
    request = fits.fit("network_2")
    with watched(cluster, request) as seen:
        until(lambda: running(cluster, request), what="both workers")
        until(lambda: fits.step(request)["state"] == "deferred", what="its watch")
        fits.clear(request)
        assert fits.end(request) == "success", fits.log(request)
    assert seen.most == 1 and len(seen.pods) == 4
    assert fits.graph(request) == fits.graph(whole["network_2"])


@SLOW
def test_a_crash_in_a_worker_shows_its_last_lines_and_has_the_usual_tries(fits, cluster):
    request = fits.fit("broken")
    assert fits.end(request) == "failed"
    log = fits.log(request)
    assert "crashed: pod " in log and "ended with exit code 70" in log
    assert "RuntimeError: Trying to create tensor with negative dimension" in log
    assert "WorkersFailedError: worker " in log.rpartition("Its last lines:")[2]
    assert fits.tries(request) == len(jobs(cluster, request)) == 3, "failed Jobs are kept"
    assert all(pod.status.phase == "Failed" for pod in cluster.pods(request))


@SLOW
def test_out_of_memory_is_tried_again_with_more(fits, cluster, whole):
    request = fits.fit("big")
    assert fits.end(request) == "success", fits.log(request)
    assert fits.tries(request) >= 2
    assert "killed for memory at its limit of 300Mi" in fits.log(request, 1) and "trying 600Mi" in fits.log(request, 2)
    assert "out of memory" in {cost["ended"] for cost in fits.costs(request).values()}
    assert fits.made(request)["history"] == fits.made(whole["network_2"])["history"]


def test_a_group_that_hangs_is_ended_after_its_time(fits, cluster):
    request = fits.fit("endless")
    assert fits.end(request) == "failed"
    assert "hung: pod " in fits.log(request) and "ran for longer than a step of its compute class may" in fits.log(
        request
    )
    until(lambda: all(pod.status.phase == "Failed" for pod in cluster.pods(request)), what="all its pods to end")


@pytest.mark.parametrize("component", ["scheduler", "triggerer"])
def test_a_killed_part_of_airflow_finds_its_group_again(fits, cluster, airloop, whole, component):
    request = fits.fit("network_2")
    with watched(cluster, request) as seen:
        until(lambda: running(cluster, request), what="both workers")
        fits.kill(component)
        up = airloop("up")
        assert up.returncode == 0, up.stdout + up.stderr
        assert fits.end(request) == "success", fits.log(request)
    assert (seen.most, len(seen.pods), len(seen.jobs)) == (1, 2, 1), "other pods did the step"
    assert fits.graph(request) == fits.graph(whole["network_2"])


def test_workers_whose_node_is_lost_go_on_from_the_checkpoint_when_it_is_back(
    fits, cluster, k8s_part, healthy_dummy_node
):
    request = fits.fit("on_a_bad_node")
    with watched(cluster, request) as seen:
        until(lambda: running(cluster, request), what="both workers")
        until(lambda: fits.at_work(request), what="some work")
        k8s_part("pause", "kubelet")
        try:
            until(
                lambda: all(pod.metadata.deletion_timestamp for pod in cluster.pods(request)),
                what="the pods to be given up",
            )
        finally:
            k8s_part("resume", "kubelet")
        until(lambda: "resuming from epoch" in fits.log(request), 900, "others to go on")
    assert seen.most == 1, "two pods of one place were there at once"
    assert fits.tries(request) == 1 and len(seen.jobs) == 1 and len(seen.pods) == 4
    fits.cancel(request)
    until(lambda: not (cluster.pods(request) or jobs(cluster, request) or services(cluster, request)), what="all to go")
