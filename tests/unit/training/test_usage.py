"""The cost of pods: waiting and running times are separate, and GPU-seconds of tries are summed."""

from datetime import UTC, datetime

from include.training import usage

NOW = datetime(2026, 1, 1, 0, 2, tzinfo=UTC)


def pod(uid, state):
    return {
        "metadata": {"name": "p-1", "uid": uid, "creationTimestamp": "2026-01-01T00:00:00Z"},
        "status": {"containerStatuses": [{"name": "base", "state": state}] if state else []},
    }


RAN = {"terminated": {"startedAt": "2026-01-01T00:00:30Z", "finishedAt": "2026-01-01T00:01:30Z"}}


def test_waiting_and_running_are_told_apart():
    cost = usage.cost_of(pod("a", RAN), "succeeded", gpus=2, now=NOW)
    assert cost == {
        "pod": "p-1",
        "uid": "a",
        "made": "2026-01-01T00:00:00Z",
        "ended": "succeeded",
        "waiting_s": 30,
        "running_s": 60,
        "gpu_s": 120,
    }


def test_a_pod_that_never_started_only_waited_and_took_no_gpu():
    cost = usage.cost_of(pod("a", None), "unschedulable", gpus=2, now=NOW)
    assert (cost["waiting_s"], cost["running_s"], cost["gpu_s"]) == (120, 0, 0)


def test_a_pod_that_was_gone_while_it_ran_ran_until_now():
    cost = usage.cost_of(pod("a", {"running": {"startedAt": "2026-01-01T00:00:30Z"}}), "evicted", gpus=1, now=NOW)
    assert (cost["waiting_s"], cost["running_s"], cost["gpu_s"]) == (30, 90, 90)


def test_tries_are_added_and_the_same_pod_twice_is_one(tmp_path):
    manifest = str(tmp_path / "fit-mlp.json")
    for name in ("a", "b", "b"):
        usage.keep(manifest, usage.cost_of(pod(name, RAN), "succeeded", gpus=1, now=NOW))
    assert usage.total(usage.read(manifest)) == {
        "pod.waiting_s": 60,
        "pod.running_s": 120,
        "pod.gpu_s": 120,
        "pod.tries": 2,
    }
