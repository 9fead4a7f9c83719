"""Provoke every failure of a training pod, and check how the run handles it.

The tests that stop a part of the cluster or of Airflow are the last ones.

``AIRLOOP_TEST_REPEATS`` sets how often each failure is provoked.
"""

import time

import pytest

from tests.cluster.namespace import until
from tests.cluster.stack import REPEATS, Runs

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800), pytest.mark.parametrize("nth", range(REPEATS))]
# The test starts a run of this compute class and behavior, and waits for its end.
waits = pytest.mark.waits


@pytest.fixture(scope="module", autouse=True)
def started_early(runs: Runs, healthy_dummy_node, request) -> None:
    """Start the runs of all selected tests that only wait, so that they wait concurrently."""
    if REPEATS > 1:  # then the runs of one test are concurrent
        return
    for item in request.session.items:
        if item.module is request.module and (mark := item.get_closest_marker("waits")):
            runs.nth(*mark.args, 0)


def test_an_evicted_pod_is_tried_again_and_resumes(runs, cluster, nth):
    def evict(request: str) -> None:
        pod = until(lambda: cluster.running(request), what="the pod")
        until(lambda: runs.counted(request) >= 3, what="some work")
        cluster.evict(pod)

    request = runs.nth("patient", "count:60", nth, evict)  # longer than the grace period
    assert runs.end(request) == "success", runs.log(request)
    assert runs.tries(request) == 2
    # If the pod was gone before the busy triggerer checked again, it counts as deleted and is
    # treated alike.
    log = runs.log(request, 1)
    assert (
        "evicted: its node is being drained, or somebody evicted it" in log
        or "deleted by somebody or something else" in log
    )
    # The log of the first pod may be lost with the pod.
    assert runs.begins(request)[-1] >= 3, "it began from zero"
    runs.never_two(request)


@waits("small", "eat:150")
def test_out_of_memory_is_tried_again_with_more(runs, cluster, nth):
    request = runs.nth("small", "eat:150", nth)
    assert runs.end(request) == "success", runs.log(request)
    assert runs.tries(request) == 3
    killed = [
        pod.status.container_statuses[0].state.terminated
        for pod in cluster.pods(request)
        if pod.status.phase == "Failed"
    ]
    assert [state.reason for state in killed] == ["OOMKilled"] * 2
    assert "killed for memory at its limit of 64Mi" in runs.log(request, 1) and "trying 256Mi" in runs.log(request, 3)
    runs.never_two(request)


@waits("small", "eat:700")
def test_out_of_memory_at_the_most_is_the_end_and_says_what_to_raise(runs, nth):
    request = runs.nth("small", "eat:700", nth)
    assert runs.end(request) == "failed"
    assert runs.tries(request) == 3
    assert "was killed for memory at 256Mi, and compute class small gives no more (memory_max 256Mi)" in runs.log(
        request
    )


@pytest.mark.parametrize(
    ("compute", "image"),
    [
        pytest.param("badly_named", "Not/An Image", marks=waits("badly_named", "work")),
        pytest.param("unknown_image", "airloop.invalid/nobody/nothing:1", marks=waits("unknown_image", "work")),
    ],
)
def test_an_image_that_cannot_be_had_fails_at_once_and_is_named(runs, compute, image, nth):
    request = runs.nth(compute, "work", nth)
    assert runs.end(request) == "failed"
    assert runs.tries(request) == 1
    assert f"the image {image} cannot be had" in runs.log(request)


@pytest.mark.parametrize(
    ("compute", "asked"),
    [
        pytest.param("gpu_many", "nvidia.com/gpu 3 and waited 0:00:05", marks=waits("gpu_many", "work")),
        pytest.param("gpu_nowhere", "on nodes with nvidia.com/gpu.product=H9000", marks=waits("gpu_nowhere", "work")),
    ],
)
def test_a_pod_that_fits_nowhere_fails_after_its_time_and_says_what_there_is(
    runs, cluster, healthy_dummy_node, compute, asked, nth
):
    # The extra Ready node never reports its capacity, like a node that has only just joined.
    request = runs.nth(compute, "work", nth)
    assert runs.end(request) == "failed"
    log = runs.log(request)
    assert runs.tries(request) == 1
    assert (
        "no node had room for it" in log
        and asked in log
        and "nvidia.com/gpu 2" in log.partition("The cluster has: ")[2]
    )
    until(lambda: not cluster.pods(request), what="a pod that would start later to go")


@waits("small", "crash")
def test_a_crash_in_user_code_shows_its_last_lines(runs, cluster, nth):
    request = runs.nth("small", "crash", nth)
    assert runs.end(request) == "failed"
    log = runs.log(request)
    assert "crashed: pod " in log and "ended with exit code 1" in log
    assert "RuntimeError: the label column is empty" in log.rpartition("Its last lines:")[2]
    assert runs.tries(request) == len(cluster.pods(request)) == 3, "failed pods are kept"
    runs.never_two(request)


@waits("impatient", "hang")
def test_a_hung_pod_is_killed_after_its_time(runs, cluster, nth):
    request = runs.nth("impatient", "hang", nth)
    assert runs.end(request) == "failed"
    log = runs.log(request)
    assert "hung: pod " in log and "ran for longer than a step of its compute class may" in log
    assert "hanging" in log.rpartition("Its last lines:")[2]
    assert all(pod.status.phase == "Failed" for pod in cluster.pods(request))
    runs.never_two(request)


@waits("small", "write:150")
def test_a_pod_that_fills_its_disk_fails_at_once(runs, nth):
    request = runs.nth("small", "write:150", nth)
    assert runs.end(request) == "failed"
    assert runs.tries(request) == 1
    assert "wrote more to the node's disk than it may" in runs.log(request)


@pytest.mark.parametrize("way", ["run", "task"])
def test_a_cancelled_run_leaves_no_pod(runs, cluster, way, nth):
    def cancel(request: str) -> None:
        at_work(runs, cluster, request)
        runs.cancel(request, way)

    request = runs.nth("patient", f"hang:{way}", nth, cancel)
    until(lambda: not cluster.pods(request), what="the pod to go")
    runs.end(request)
    # Check the step, not the run, whose later tasks are skipped. SQLite does not lock rows. A
    # scheduler that read the run just before it was marked sees its last tasks, all skipped, and
    # overwrites the person's "failed" with success. On Postgres this cannot happen.
    assert runs.step(request)["state"] == "failed"


def test_a_cleared_step_never_runs_twice_at_once(runs, cluster, nth):
    def clear(request: str) -> None:
        at_work(runs, cluster, request)
        runs.clear(request)

    request = runs.nth("patient", "count:60", nth, clear)
    assert runs.end(request) == "success", runs.log(request)
    assert runs.tries(request) == 2, [
        runs.log(request, number)[-2000:] for number in range(1, runs.attempts(request) + 1)
    ]
    runs.never_two(request)


def test_a_node_that_hangs(runs, cluster, k8s_part, healthy_dummy_node, nth):
    """A node hang affects a step at work, one with more patience, and one that just starts."""
    at_work, patient = runs.start("small", "count:120"), runs.start("patient", "count:110")
    for request in (at_work, patient):
        until(lambda request=request: cluster.running(request) and runs.counted(request) >= 3, what="some work")
    k8s_part("pause", "kubelet")
    try:
        starting = runs.start("anywhere", "count:5")
        until(lambda: not cluster.node_ready(), what="the node's hang to be seen")
        for request in (at_work, starting):
            until(
                lambda request=request: any(pod.metadata.deletion_timestamp for pod in cluster.pods(request)),
                what="the pod to be given up",
            )
        time.sleep(15)
        assert [len(cluster.pods(r)) for r in (at_work, patient, starting)] == [1, 1, 1], (
            "another pod was made while the first one may still run"
        )
    finally:
        k8s_part("resume", "kubelet")

    assert runs.end(at_work) == "success", runs.log(at_work)
    assert runs.tries(at_work) == 2
    assert "lost: its node did not answer" in runs.log(at_work, 1)
    assert runs.begins(at_work)[-1] >= 3, "it began from zero"
    assert runs.end(starting) == "success", runs.log(starting)
    assert runs.end(patient) == "success", runs.log(patient)
    assert runs.tries(patient) == 1 and len(runs.lives(patient)) == 1, "a node that came back in time cost something"
    for request in (at_work, patient, starting):
        runs.never_two(request)


@pytest.mark.parametrize("component", ["scheduler", "triggerer"])
def test_a_killed_part_of_airflow_finds_its_pod_again(runs, cluster, airloop, component, nth):
    request = runs.start("patient", "count:30")
    pod = until(lambda: cluster.running(request), what="the pod")
    runs.kill(component)
    up = airloop("up")
    assert up.returncode == 0, up.stdout + up.stderr
    assert runs.end(request) == "success", runs.log(request)
    assert runs.lived(request) == [pod.metadata.name], "a second pod did the step"


def test_an_api_server_that_goes_away_is_waited_for(runs, cluster, k8s_part, nth):
    request = runs.start("patient", "count:15")
    until(lambda: cluster.running(request), what="the pod")
    k8s_part("kill", "apiserver")
    time.sleep(8)
    k8s_part("start", "apiserver")
    assert runs.end(request) == "success", runs.log(request)
    assert runs.tries(request) == 1 and len(runs.lives(request)) == 1


def test_a_pod_whose_run_was_cancelled_while_nobody_watched_is_swept(runs, cluster, airloop, nth):
    request, other = runs.start("patient", "hang:unwatched"), runs.start("patient", "count:60")
    at_work(runs, cluster, request)
    at_work(runs, cluster, other)
    runs.kill("triggerer")
    runs.cancel(request)
    up = airloop("up")
    assert up.returncode == 0, up.stdout + up.stderr
    assert cluster.running(request), "somebody was watching"
    runs.sweep()
    until(lambda: not cluster.pods(request), what="the pod to go")
    assert runs.end(other) == "success" and len(runs.lives(other)) == 1, "the pod of a task that goes on was swept too"


def at_work(runs, cluster, request: str) -> None:
    until(lambda: cluster.running(request), what="the pod")
    until(lambda: runs.step(request)["state"] == "deferred", what="its watch")
