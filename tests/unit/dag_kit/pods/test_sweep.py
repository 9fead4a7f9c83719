"""Selection of pods that no task waits for. Their deletion is tested on a cluster."""

from types import SimpleNamespace

import pytest

from include.dag_kit.pods.sweep import RESULT, TASK, abandoned, task_of

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
