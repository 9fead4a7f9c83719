"""How a pod ended, derived from statuses of real clusters, and when a pod is abandoned."""

from datetime import UTC, datetime, timedelta

import pytest

from include.dag_kit.pods.ends import Kind, PodVerdict, cannot_start, end_of, oom_memory_sizes, sort_out
from include.dag_kit.pods.trigger import judge, lines_after, moment
from include.outages import EX_DATAERR, EX_UNAVAILABLE

MADE = datetime(2026, 1, 1, tzinfo=UTC)
LIMITS = {"schedule": 60.0, "start": 30.0, "run": 100.0}


def stamp(seconds):
    return f"{MADE + timedelta(seconds=seconds):%Y-%m-%dT%H:%M:%SZ}"


def pod(state=None, *, phase="Running", scheduled=None, conditions=(), deleted=None, **status):
    all_conditions = [
        *conditions,
        *(
            [{"type": "PodScheduled", "status": "True", "lastTransitionTime": stamp(scheduled)}]
            if scheduled is not None
            else []
        ),
    ]
    statuses = {"containerStatuses": [{"name": "base", "state": state}]} if state else {}
    return {
        "metadata": {
            "name": "p",
            "creationTimestamp": stamp(0),
            **({"deletionTimestamp": stamp(deleted)} if deleted is not None else {}),
        },
        "spec": {
            "nodeName": "n1",
            "containers": [{"name": "base", "image": "img:1", "resources": {"limits": {"memory": "64Mi"}}}],
        },
        "status": {"phase": phase, "conditions": all_conditions, **statuses, **status},
    }


def ended(code, reason="Error"):
    return {"terminated": {"exitCode": code, "reason": reason, "startedAt": stamp(5), "finishedAt": stamp(50)}}


def waiting(reason, message=""):
    return {"waiting": {"reason": reason, "message": message}}


def disrupted(reason):
    return [{"type": "DisruptionTarget", "status": "True", "reason": reason, "message": "why"}]


RUNNING = {"running": {"startedAt": stamp(5)}}


@pytest.mark.parametrize(
    ("given", "verdict", "kind", "hopeless"),
    [
        pytest.param(pod(ended(0), phase="Succeeded"), PodVerdict.ENDED, Kind.SUCCEEDED, False, id="ended well"),
        pytest.param(
            pod(ended(0), deleted=60), PodVerdict.GONE, Kind.SUCCEEDED, False, id="ended well and deleted since"
        ),
        pytest.param(
            pod(ended(137, "OOMKilled"), phase="Failed"),
            PodVerdict.ENDED,
            Kind.OUT_OF_MEMORY,
            False,
            id="killed for memory",
        ),
        pytest.param(
            pod(ended(137, "OOMKilled"), conditions=disrupted("EvictionByEvictionAPI")),
            PodVerdict.ENDED,
            Kind.OUT_OF_MEMORY,
            False,
            id="memory before eviction",
        ),
        pytest.param(
            pod(ended(137), phase="Failed"), PodVerdict.ENDED, Kind.CRASHED, False, id="a signal is not memory"
        ),
        pytest.param(
            pod(ended(EX_UNAVAILABLE), phase="Failed"),
            PodVerdict.ENDED,
            Kind.BACKEND_UNAVAILABLE,
            False,
            id="a store that is away is no fault of its own",
        ),
        pytest.param(
            pod(ended(EX_DATAERR), phase="Failed"), PodVerdict.ENDED, Kind.FAILS_AGAIN, True, id="bad data fails again"
        ),
        pytest.param(
            pod(ended(143), conditions=disrupted("EvictionByEvictionAPI")),
            PodVerdict.GONE,
            Kind.EVICTED,
            False,
            id="evicted",
        ),
        pytest.param(
            pod(RUNNING, conditions=disrupted("DeletionByTaintManager")),
            PodVerdict.GONE,
            Kind.NODE_LOST,
            False,
            id="its node did not answer",
        ),
        pytest.param(
            pod(RUNNING, conditions=disrupted("DeletionByPodGC")),
            PodVerdict.GONE,
            Kind.NODE_LOST,
            False,
            id="its node was taken away",
        ),
        pytest.param(
            pod(phase="Failed", reason="Evicted", message='Usage of EmptyDir volume "tmp" exceeds the limit "64Mi". '),
            PodVerdict.ENDED,
            Kind.OUT_OF_DISK,
            True,
            id="filled its disk",
        ),
        pytest.param(
            pod(phase="Failed", reason="Evicted", message="The node was low on resource: ephemeral-storage."),
            PodVerdict.ENDED,
            Kind.EVICTED,
            False,
            id="its node was full",
        ),
        pytest.param(
            pod(ended(137), phase="Failed", reason="DeadlineExceeded"),
            PodVerdict.ENDED,
            Kind.HUNG,
            False,
            id="killed at its deadline",
        ),
        pytest.param(pod(RUNNING), PodVerdict.HUNG, Kind.HUNG, False, id="runs too long"),
        pytest.param(pod(RUNNING), PodVerdict.GONE, Kind.DELETED, False, id="deleted by a person"),
        pytest.param(
            pod(waiting("ErrImagePull"), phase="Pending"),
            PodVerdict.BAD_IMAGE,
            Kind.BAD_IMAGE,
            True,
            id="no such image",
        ),
        pytest.param(pod(phase="Pending"), PodVerdict.NOT_SCHEDULED, Kind.UNSCHEDULABLE, True, id="no room"),
        pytest.param(
            pod(phase="Pending", scheduled=1), PodVerdict.NOT_STARTED, Kind.NOT_STARTED, False, id="not started"
        ),
        pytest.param(pod(ended(1), phase="Failed"), PodVerdict.ENDED, Kind.CRASHED, False, id="crashed"),
        pytest.param(
            pod(
                phase="Failed",
                scheduled=1,
                reason="UnexpectedAdmissionError",
                message="Allocate failed due to no healthy devices present",
            ),
            PodVerdict.ENDED,
            Kind.NOT_STARTED,
            False,
            id="turned away by a node whose device plugin was not there yet",
        ),
        pytest.param(
            pod(phase="Failed", scheduled=1, reason="OutOfmemory"),
            PodVerdict.ENDED,
            Kind.NOT_STARTED,
            False,
            id="turned away by a full node",
        ),
        pytest.param(
            pod(ended(137, "ContainerStatusUnknown"), phase="Failed"),
            PodVerdict.ENDED,
            Kind.NODE_LOST,
            False,
            id="forgotten by its node",
        ),
        pytest.param(
            pod(ended(255, "Unknown"), phase="Failed"),
            PodVerdict.ENDED,
            Kind.NODE_LOST,
            False,
            id="forgotten by containerd, after a reboot",
        ),
        pytest.param(
            pod(ended(137), phase="Failed", conditions=disrupted("PreemptedByQueue")),
            PodVerdict.ENDED,
            Kind.EVICTED,
            False,
            id="evicted by something else",
        ),
    ],
)
def test_ends_are_told_apart(given, verdict, kind, hopeless):
    end = end_of(given, verdict)
    assert (end.kind, end.hopeless) == (kind, hopeless)


def test_the_end_names_image_signal_and_size():
    assert "img:1" in end_of(pod(waiting("ErrImagePull", "no such host"), phase="Pending"), PodVerdict.BAD_IMAGE).text
    assert "by signal 11" in end_of(pod(ended(139), phase="Failed")).text
    assert "64Mi" in end_of(pod(ended(137, "OOMKilled"), phase="Failed")).text
    start_error = {
        "terminated": {
            "exitCode": 128,
            "reason": "StartError",
            "message": 'exec: "python": executable file not found in $PATH',
        }
    }
    # There is no log with the reason.
    assert 'exec: "python": executable file not found' in end_of(pod(start_error, phase="Failed")).text
    assert end_of(pod(ended(1), phase="Failed")).text == "ended with exit code 1"
    assert "PreemptedByQueue" in end_of(pod(ended(137), conditions=disrupted("PreemptedByQueue"))).text


@pytest.mark.parametrize(
    ("reason", "message", "verdict"),
    [
        pytest.param("InvalidImageName", "", PodVerdict.BAD_IMAGE, id="a name that is none"),
        pytest.param("ErrImagePull", "lookup registry: no such host", PodVerdict.BAD_IMAGE, id="no such registry"),
        pytest.param("ErrImagePull", "429 Too Many Requests", None, id="a registry that is busy is asked again"),
        pytest.param("ImagePullBackOff", "dial tcp: i/o timeout", None, id="a registry that is away for a moment too"),
        pytest.param(
            "ErrImagePull", 'Head "https://r/v2/i/manifests/1": EOF', None, id="one that closes the connection too"
        ),
        pytest.param(
            "ImagePullBackOff",
            'Back-off pulling image "r/i:1"',
            None,
            id="a kubelet before 1.32 says the reason between two of these only",
        ),
        pytest.param(
            "ImagePullBackOff",
            'Back-off pulling image "r/i:1": ErrImagePull: not found',
            PodVerdict.BAD_IMAGE,
            id="a later one says it each time",
        ),
        pytest.param(
            "CreateContainerConfigError", "secret not found", PodVerdict.BAD_CONFIG, id="a secret that is not there"
        ),
        pytest.param("ContainerCreating", "", None, id="on its way"),
    ],
)
def test_what_will_never_start_is_told_from_what_may(reason, message, verdict):
    assert cannot_start(pod(waiting(reason, message), phase="Pending")) == verdict


@pytest.mark.parametrize(
    ("given", "now", "verdict"),
    [
        pytest.param(pod(phase="Pending"), 59, None, id="waits for a node"),
        pytest.param(pod(phase="Pending"), 61, PodVerdict.NOT_SCHEDULED, id="waited too long for a node"),
        pytest.param(
            pod(waiting("ContainerCreating"), phase="Pending", scheduled=59),
            88,
            None,
            id="its start is timed from when it got its node",
        ),
        pytest.param(
            pod(waiting("ContainerCreating"), phase="Pending", scheduled=59),
            90,
            PodVerdict.NOT_STARTED,
            id="not started in time",
        ),
        pytest.param(pod(RUNNING, scheduled=1), 104, None, id="runs"),
        pytest.param(pod(RUNNING, scheduled=1), 106, PodVerdict.HUNG, id="runs too long"),
        pytest.param(
            pod(RUNNING, scheduled=1, deleted=50),
            60,
            None,
            id="one that is being deleted may still run: another one must wait",
        ),
        pytest.param(
            pod(ended(0), phase="Running", scheduled=1), 60, PodVerdict.ENDED, id="ended, whatever its phase says yet"
        ),
    ],
)
def test_a_pod_is_given_up_by_the_api_server_s_own_times(given, now, verdict):
    assert judge(given, LIMITS, MADE + timedelta(seconds=now)) == verdict


def test_log_lines_are_written_once():
    lines = [
        "2026-01-01T00:00:01.000000001Z one",
        "2026-01-01T00:00:02.5Z two",
        "  of two lines",
        "2026-01-01T00:00:03Z three",
    ]
    assert [text for _, text in lines_after(lines, "")] == ["one", "two", "  of two lines", "three"]
    assert [text for _, text in lines_after(lines, "2026-01-01T00:00:02.5Z")] == ["three"]
    assert moment("2026-01-01T00:00:02.123456789Z") == datetime(2026, 1, 1, 0, 0, 2, 123456, tzinfo=UTC)


MINE = {"airloop/run": "r1"}


def named(name, given, *, mine=True, seen=False):
    given["metadata"] |= {
        "name": name,
        "labels": {"already_checked": "True"} if seen else {},
        "annotations": MINE if mine else {"airloop/run": "r0"},
    }
    return given


def test_memory_grows_by_what_this_run_used_up_since_it_was_cleared_and_by_nothing_else():
    killed = [
        named(name, pod(ended(137, "OOMKilled"), phase="Failed"), mine=mine)
        for name, mine in (("a", False), ("b", True))
    ]
    assert oom_memory_sizes([*killed, named("c", pod(ended(1), phase="Failed"))], MINE) == ["64Mi"]
    assert oom_memory_sizes(killed[:1], MINE) == [], "a person who made the step smaller could never start it again"


@pytest.mark.parametrize(
    ("pods", "good", "stale"),
    [
        pytest.param([], None, [], id="none yet"),
        pytest.param([named("a", pod(RUNNING))], "a", [], id="one that runs is gone on with"),
        pytest.param(
            [named("a", pod(ended(0), phase="Succeeded"))], "a", [], id="one that ended well while nobody looked too"
        ),
        pytest.param(
            [named("a", pod(ended(0), phase="Succeeded"), seen=True)], None, [], id="but not if it made nothing"
        ),
        pytest.param(
            [named("a", pod(ended(1), phase="Failed"))], None, [], id="one that failed makes room for the next"
        ),
        pytest.param(
            [named("a", pod(RUNNING), mine=False)], None, ["a"], id="one of an earlier run, or cleared, must go"
        ),
        pytest.param([named("a", pod(RUNNING, deleted=9))], None, ["a"], id="one that is on its way out is waited for"),
        pytest.param(
            [named("a", pod(waiting("ContainerCreating"), phase="Pending", deleted=9), seen=True)],
            None,
            ["a"],
            id="also one that was given up",
        ),
        pytest.param([named("a", pod(RUNNING)), named("b", pod(RUNNING))], "a", ["b"], id="never two"),
    ],
)
def test_one_pod_of_a_step_is_gone_on_with_and_the_others_must_have_ended(pods, good, stale):
    assert sort_out(pods, MINE) == (good, stale)


def test_a_pod_that_never_ran_says_what_its_node_said():
    refused = pod(phase="Failed", reason="OutOfcpu", message="Pod was rejected: node has 0 of 2 cores")
    refused["spec"]["nodeName"] = "n1"
    end = end_of(refused)
    assert end.kind == Kind.NOT_STARTED
    assert end.text == ("turned away by n1 before its container ran: OutOfcpu Pod was rejected: node has 0 of 2 cores")
    refused["spec"].pop("nodeName")
    assert end_of(refused).kind == Kind.CRASHED and "OutOfcpu" in end_of(refused).text
