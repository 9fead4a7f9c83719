"""Selection and deletion of pods that no task waits for. tests/cluster uses a real cluster."""

from types import SimpleNamespace

import pytest
from kubernetes import client

from include.dag_kit.pods.sweep import RESULT, TASK, abandoned, sweep, task_of
from include.settings import Settings

STORE = "s3://bucket/prefix"


def pod(task="flights__train/fit/r1", result=f"{STORE}/flights/training/1/fit.json", phase="Running", **metadata):
    return {
        "metadata": {"name": "p", "annotations": {TASK: task, RESULT: result}, **metadata},
        "status": {"phase": phase},
    }


def states_of(**tasks):
    def states(*, dag_id, run_ids):
        return {"r1": tasks} if (dag_id, run_ids) == ("flights__train", ["r1"]) else {}

    return states


@pytest.mark.parametrize("phase", ["Running", "Pending", "Unknown"])
@pytest.mark.parametrize("state", ["failed", "success", "skipped", "removed", "upstream_failed"])
def test_a_pod_whose_task_has_ended_is_abandoned(state, phase):
    candidate = pod(phase=phase)
    assert abandoned([candidate], STORE, states_of(fit=state)) == [candidate]


@pytest.mark.parametrize(
    "state", ["running", "deferred", "queued", "scheduled", "up_for_retry", "up_for_reschedule", "restarting", None]
)
def test_one_whose_task_goes_on_is_not(state):
    assert abandoned([pod()], STORE, states_of(fit=state)) == []


@pytest.mark.parametrize(
    "other",
    [
        pod(phase="Succeeded"),
        pod(phase="Failed"),
        pod(deletionTimestamp="2026-01-01T00:00:00Z"),
        pod(task="flights__train/fit/another run"),
        pod(task="others__train/fit/r1"),
        pod(result="s3://bucket/prefix-of-others/flights/training/1/fit.json"),
        pod(annotations=None),
        pod(annotations={}),
        pod(task="no such mark"),
    ],
    ids=[
        "succeeded",
        "failed and kept",
        "on its way out",
        "a run that Airflow does not know",
        "another DAG",
        "another house",
        "bare",
        "no marks",
        "a mark of somebody else's",
    ],
)
def test_what_has_ended_or_is_another_ones_is_let_alone(other):
    assert abandoned([other], STORE, states_of(fit="failed")) == []


def test_a_root_may_end_with_a_slash():
    candidate = pod()
    assert abandoned([candidate], f"{STORE}/", states_of(fit="failed")) == [candidate]


def test_a_mapped_task_is_told_by_its_index():
    ti = SimpleNamespace(
        dag_id="flights__train", task_id="fit", run_id="manual__2026-01-01T00:00:00+00:00", map_index=2
    )
    assert task_of(ti) == "flights__train/fit_2/manual__2026-01-01T00:00:00+00:00"
    ti.map_index = -1
    assert task_of(ti) == "flights__train/fit/manual__2026-01-01T00:00:00+00:00"
    two, three = pod("flights__train/fit_2/r1"), pod("flights__train/fit_3/r1")
    assert abandoned([two, three], STORE, states_of(fit_2="failed", fit_3="deferred")) == [two]


class Cluster:
    """The API of a cluster whose pods may change between two looks."""

    def __init__(self, *looks, error: int | None = None) -> None:
        self.looks, self.error, self.deleted = list(looks), error, []
        self.core_v1_client = self.batch_v1_client = self
        self.api_client = SimpleNamespace(sanitize_for_serialization=lambda pod: pod)

    def list_namespaced_pod(self, namespace, *, label_selector):
        assert (namespace, label_selector) == ("airloop", "airloop/manifest")
        return SimpleNamespace(items=self.looks.pop(0))

    def delete_namespaced_pod(self, name, namespace, *, body):
        self._delete("pod", name, namespace, body.preconditions.uid)

    def delete_namespaced_job(self, name, namespace, *, body):
        self._delete("job", name, namespace, body.propagation_policy)

    def _delete(self, *what):
        self.deleted.append(what)
        if self.error:
            raise client.ApiException(status=self.error)


@pytest.fixture
def swept(monkeypatch):
    from airflow.providers.cncf.kubernetes.hooks import kubernetes

    def run(cluster: Cluster) -> list[str]:
        monkeypatch.setattr(kubernetes, "KubernetesHook", lambda conn_id: cluster)
        settings = Settings(data_root=STORE, kubernetes_namespace="airloop")
        return sweep(settings, states_of(fit="failed"), pause=0)

    return run


def test_what_two_looks_find_abandoned_is_deleted_and_a_job_instead_of_its_pods(swept):
    alone = pod(uid="1", name="alone")
    workers = [pod(uid=uid, name=f"w{uid}", labels={"batch.kubernetes.io/job-name": "group"}) for uid in ("2", "3")]
    cluster = Cluster([alone, *workers], [alone, *workers])
    assert swept(cluster) == ["alone", "group"]
    assert set(cluster.deleted) == {("pod", "alone", "airloop", "1"), ("job", "group", "airloop", "Background")}


def test_what_only_one_look_finds_stays(swept):
    cluster = Cluster([pod(uid="1")], [pod(uid="2")])
    assert swept(cluster) == [] and cluster.deleted == []
    assert swept(Cluster([])) == []


@pytest.mark.parametrize("status", [404, 409])
def test_what_has_gone_in_between_is_no_error(swept, status):
    assert swept(Cluster([pod(uid="1")], [pod(uid="1")], error=status)) == ["p"]


def test_a_cluster_that_refuses_is_an_error(swept):
    with pytest.raises(client.ApiException):
        swept(Cluster([pod(uid="1")], [pod(uid="1")], error=403))
