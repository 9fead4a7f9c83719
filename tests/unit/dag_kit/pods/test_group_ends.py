"""The outcome of an indexed Job, derived from its status and its pods' statuses.

Another test: which of a step's Jobs is continued.
"""

from datetime import timedelta

import pytest

from include.dag_kit.pods.ends import Kind, PodVerdict, end_of
from include.dag_kit.pods.group_ends import (
    END_ANNOTATION,
    GAVE_UP,
    INDEX,
    OTHERS_LOST,
    group_is_at,
    judge_group,
    sort_out_groups,
)
from include.dag_kit.pods.names import PodStep, pod_name
from include.outages import EX_DATAERR, EX_UNAVAILABLE
from include.training import launch, workers
from tests.unit.dag_kit.pods.test_ends import LIMITS, MADE, RUNNING, disrupted, ended, pod, stamp, waiting


def job(*conditions, name="j-1", suspend=False, deleted=False, annotations=None, **reasons):
    return {
        "metadata": {
            "name": name,
            "creationTimestamp": stamp(0),
            "annotations": annotations or {},
            **({"deletionTimestamp": stamp(9)} if deleted else {}),
        },
        "spec": {
            "suspend": suspend,
            "template": {"spec": {"containers": [{"name": "base", "image": "img:1", "env": [{"name": "x"}]}]}},
        },
        "status": {"conditions": [{"type": kind, "status": "True", **reasons} for kind in conditions]},
    }


def worker(place, state=None, *, made=0, **given):
    manifest = pod(state, **given)
    manifest["metadata"] |= {
        "name": f"w{place}-{made}",
        "uid": f"u{place}-{made}",
        "annotations": {INDEX: str(place)},
        "creationTimestamp": stamp(made),
    }
    return manifest


def failed(place, code, *, at=50, made=0, **given):
    state = ended(code, **{k: given.pop(k) for k in ("reason",) if k in given})
    state["terminated"]["finishedAt"] = stamp(at)
    return worker(place, state, made=made, phase="Failed", **given)


def judged(given, pods, seconds=60):
    return judge_group(given, pods, LIMITS, MADE + timedelta(seconds=seconds))


WELL = [worker(0, ended(0), phase="Succeeded"), worker(1, ended(0), phase="Succeeded")]


@pytest.mark.parametrize(
    ("given", "pods", "verdict", "name", "kind"),
    [
        pytest.param(job("Complete"), WELL, PodVerdict.ENDED, "w0-0", Kind.SUCCEEDED, id="all ended well"),
        pytest.param(
            job("Complete"),
            [failed(0, 137, reason="OOMKilled"), worker(0, ended(0), made=9, phase="Succeeded")],
            PodVerdict.ENDED,
            "w0-9",
            Kind.SUCCEEDED,
            id="all ended well, whatever came before",
        ),
        pytest.param(
            job("Complete"), [], PodVerdict.ENDED, "j-1", Kind.SUCCEEDED, id="ended well, and its pods were taken away"
        ),
        pytest.param(
            job(),
            [worker(0, RUNNING), failed(1, 137, reason="OOMKilled")],
            PodVerdict.ENDED,
            "w1-0",
            Kind.OUT_OF_MEMORY,
            id="memory: another pod would need more",
        ),
        pytest.param(
            job("Failed"),
            [failed(0, OTHERS_LOST, at=70), failed(1, 137, reason="OOMKilled")],
            PodVerdict.ENDED,
            "w1-0",
            Kind.OUT_OF_MEMORY,
            id="memory is told before what it did to the others",
        ),
        pytest.param(
            job(),
            [
                worker(0, RUNNING),
                worker(
                    1,
                    phase="Failed",
                    reason="Evicted",
                    message='Usage of EmptyDir volume "tmp" exceeds the limit "1Mi".',
                ),
            ],
            PodVerdict.ENDED,
            "w1-0",
            Kind.OUT_OF_DISK,
            id="disk: another pod would fill it too",
        ),
        pytest.param(
            job("Failed"),
            [failed(0, OTHERS_LOST, at=70), failed(1, GAVE_UP)],
            PodVerdict.ENDED,
            "w1-0",
            Kind.CRASHED,
            id="the guilty one",
        ),
        pytest.param(
            job("Failed"),
            [failed(0, GAVE_UP), failed(1, 1, at=70)],
            PodVerdict.ENDED,
            "w0-0",
            Kind.CRASHED,
            id="the one that gave up",
        ),
        pytest.param(
            job("Failed"),
            [
                failed(0, 1),
                failed(0, 1, at=70, made=51),
                failed(1, 143, at=99, conditions=disrupted("EvictionByEvictionAPI")),
            ],
            PodVerdict.ENDED,
            "w0-51",
            Kind.CRASHED,
            id="the last of its own fault, not an evicted one",
        ),
        pytest.param(
            job("Failed", reason="BackoffLimitExceeded", message="too often"),
            [],
            PodVerdict.ENDED,
            "j-1",
            Kind.CRASHED,
            id="failed, and its pods were taken away",
        ),
        pytest.param(
            job("Failed", reason="DeadlineExceeded"),
            [worker(0, RUNNING)],
            PodVerdict.HUNG,
            "w0-0",
            Kind.HUNG,
            id="its deadline passed",
        ),
        pytest.param(
            job(),
            [worker(1, RUNNING), worker(0, phase="Pending")],
            PodVerdict.NOT_SCHEDULED,
            "w0-0",
            Kind.UNSCHEDULABLE,
            id="no room for one of them",
        ),
        pytest.param(
            job(),
            [worker(0, RUNNING), worker(1, waiting("ErrImagePull"), phase="Pending")],
            PodVerdict.BAD_IMAGE,
            "w1-0",
            Kind.BAD_IMAGE,
            id="no such image",
        ),
        pytest.param(job(), [], PodVerdict.NOT_SCHEDULED, "j-1", Kind.UNSCHEDULABLE, id="no pod is made at all"),
    ],
)
def test_what_a_group_has_come_to_and_the_pod_that_tells(given, pods, verdict, name, kind):
    for order in (pods, pods[::-1]):
        actual, telling = judged(given, order, seconds=101)
        assert (actual, telling["metadata"]["name"], end_of(telling, actual).kind) == (verdict, name, kind)


@pytest.mark.parametrize(
    ("pods", "seconds"),
    [
        pytest.param([worker(0, RUNNING), worker(1, RUNNING)], 104, id="both run"),
        pytest.param(
            [worker(0, ended(0), phase="Succeeded"), worker(1, RUNNING)], 104, id="one has ended well, the Job has not"
        ),
        pytest.param(
            [worker(0, RUNNING), failed(1, 143, conditions=disrupted("EvictionByEvictionAPI"))],
            60,
            id="one was evicted: the Job makes another",
        ),
        pytest.param(
            [failed(0, OTHERS_LOST), worker(0, made=50, phase="Pending"), worker(1, made=50, phase="Pending")],
            100,
            id="a new one has its own times",
        ),
        pytest.param([failed(0, 1), worker(1, RUNNING)], 60, id="one crashed: how often is up to the Job"),
        pytest.param([], 59, id="no pods yet"),
    ],
)
def test_a_group_that_is_on_its_way(pods, seconds):
    assert judged(job(), pods, seconds) is None


def test_one_that_runs_too_long_tells_that_all_hang():
    verdict, telling = judged(job(), [worker(1, RUNNING), worker(0, RUNNING)], 106)
    assert (verdict, telling["metadata"]["name"]) == (PodVerdict.HUNG, "w0-0")


def test_a_condition_that_does_not_hold_says_nothing():
    given = job("Complete")
    given["status"]["conditions"][0]["status"] = "False"
    assert judged(given, [worker(0, RUNNING)]) is None


def test_of_two_that_needed_more_memory_the_last_one_tells():
    first, second = failed(0, 137, reason="OOMKilled"), failed(1, 137, reason="OOMKilled", at=60)
    for order in ([first, second], [second, first]):
        assert judged(job(), order)[1] is second


def test_a_job_without_pods_tells_what_was_asked_for_and_no_environment():
    _, telling = judged(job(), [], 61)
    assert telling["spec"]["containers"] == [{"name": "base", "image": "img:1"}]
    assert "the Job has made no pods" in end_of(telling, PodVerdict.NOT_SCHEDULED).text


MINE = {"airloop/run": "r1"}


@pytest.mark.parametrize(
    ("jobs", "good", "stale"),
    [
        pytest.param([], None, [], id="none yet"),
        pytest.param([job(annotations=MINE)], "j-1", [], id="one that runs is gone on with"),
        pytest.param([job("Complete", annotations=MINE)], "j-1", [], id="one that ended well while nobody looked too"),
        pytest.param(
            [job("Failed", annotations=MINE)],
            "j-1",
            [],
            id="one that failed while nobody looked: its end has yet to be told",
        ),
        pytest.param(
            [job("Complete", annotations=MINE | {END_ANNOTATION: "succeeded"})],
            None,
            [],
            id="but not one that made nothing",
        ),
        pytest.param(
            [job("Failed", annotations=MINE | {END_ANNOTATION: "crashed"})],
            None,
            [],
            id="one whose end was told makes room for the next",
        ),
        pytest.param([job(annotations=MINE, suspend=True)], None, [], id="one that was stopped is not started again"),
        pytest.param(
            [job(annotations=MINE, deleted=True)],
            None,
            [],
            id="nor one that is on its way out; its pods are waited for",
        ),
        pytest.param(
            [job(annotations={"airloop/run": "r0"})], None, ["j-1"], id="one of an earlier run, or cleared, is stopped"
        ),
        pytest.param(
            [job(annotations=MINE | {END_ANNOTATION: "hung"})],
            None,
            ["j-1"],
            id="also one that was given up and not yet stopped",
        ),
        pytest.param([job(annotations=MINE), job(name="j-2", annotations=MINE)], "j-1", ["j-2"], id="never two"),
    ],
)
def test_one_job_of_a_step_is_gone_on_with_and_the_others_are_stopped(jobs, good, stale):
    assert sort_out_groups(jobs, MINE) == (good, stale)


def test_the_log_says_what_each_worker_is_at_now():
    pods = [worker(1, RUNNING), failed(0, 1), worker(0, made=51, phase="Pending")]
    assert group_is_at(pods) == "worker 0 waiting for a node: not looked at yet; worker 1 running on n1"


def test_names_leave_room_for_the_place_of_a_worker():
    step = PodStep("flights", "r", "fit-" + "very_long_name_" * 5, "s3://b/m.json", "cpu", "sha")
    name = pod_name(step, 12, 58)
    assert len(name) == 58 and name.endswith("-12") and name.startswith("flights-fit-very-long-name-")
    assert len(pod_name(step, 12)) == 63


def test_the_exit_codes_are_those_of_the_launcher():
    assert (
        (GAVE_UP, OTHERS_LOST)
        == (launch.WorkersFailedError.exit_code, launch.WorkersLostError.exit_code)
        == (launch.GAVE_UP, workers.OTHERS_LOST)
    )
    assert len({GAVE_UP, OTHERS_LOST, EX_UNAVAILABLE, EX_DATAERR}) == 4, "one exit code says two things"


def test_pods_that_were_lost_together_have_the_time_to_be_replaced():
    """The limit counts from the last pod, and not from the Job's creation."""
    job = {
        "metadata": {"name": "a-job", "creationTimestamp": f"{MADE:%FT%TZ}"},
        "spec": {"template": {"spec": {"containers": []}}},
        "status": {},
    }
    late = MADE + timedelta(seconds=LIMITS["schedule"] * 3)
    seen = late - timedelta(seconds=LIMITS["schedule"] / 2)
    assert judge_group(job, [], LIMITS, late, seen) is None
    for last in (None, seen - timedelta(seconds=LIMITS["schedule"])):
        assert judge_group(job, [], LIMITS, late, last)[0] == PodVerdict.NOT_SCHEDULED
