"""How a training pod ended, told from its status: a pure function of what the API server said, so that it is tested without a cluster.

Pods are dicts as in the API's JSON (``status.containerStatuses``), since the task and the triggerer use two clients with two classes each.
"""

import re
from enum import StrEnum
from typing import Any, NamedTuple

from include.outages import STORE_AWAY, WILL_FAIL_AGAIN

CONTAINER = "base"
SEEN = "already_checked"  # the provider's label of a pod whose end a task has dealt with
BAD_IMAGE = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull")
BAD_CONFIG = ("CreateContainerConfigError",)
# A registry that is busy or away for a moment: kubelet asks again by itself, until the start timeout.
PASSING = (
    "timeout", "rate limit", "too many requests", "toomanyrequests", "qps exceeded", "temporarily unavailable", "service unavailable", "bad gateway",
    "internal server error", "connection refused", "connection reset", "deadline exceeded", "unexpected eof", ": eof",
)  # fmt: skip
# What a kubelet before 1.32 says between two pulls, without the reason: that stood in the ErrImagePull before, and will stand in the next one.
BACK_OFF = re.compile(r'back-off pulling image "[^"]*"')
# How a container ended of which its node knows nothing any more: the node, or its runtime, was started anew.
FORGOTTEN = ("ContainerStatusUnknown", "Unknown")


class Verdict(StrEnum):
    """What who watches the pod saw that its status alone does not say."""

    ENDED = "ended"
    GONE = "gone"  # deleted; the status is the last one seen
    BAD_IMAGE = "bad image"
    BAD_CONFIG = "bad config"
    NOT_SCHEDULED = "not scheduled in time"
    NOT_STARTED = "not started in time"
    HUNG = "ran too long"


class Kind(StrEnum):
    """How a pod ended. The words go into runs, tests and the runbook."""

    SUCCEEDED = "succeeded"
    OUT_OF_MEMORY = "out of memory"
    OUT_OF_DISK = "out of disk"
    EVICTED = "evicted"
    NODE_LOST = "node lost"
    DELETED = "deleted"
    BAD_IMAGE = "bad image"
    BAD_CONFIG = "bad config"
    UNSCHEDULABLE = "unschedulable"
    NOT_STARTED = "not started"
    HUNG = "hung"
    STORE_AWAY = "store away"
    FAILS_AGAIN = "fails again"
    CRASHED = "crashed"


# The same thing would come of another try; somebody has to change something first.
HOPELESS = frozenset({Kind.OUT_OF_DISK, Kind.BAD_IMAGE, Kind.BAD_CONFIG, Kind.UNSCHEDULABLE, Kind.FAILS_AGAIN})
# Once more may help, but not for ever; a pod that ended well and made nothing is among them. The others came from outside.
OWN_FAULTS = frozenset({Kind.CRASHED, Kind.HUNG, Kind.SUCCEEDED})
DISRUPTIONS = {
    "EvictionByEvictionAPI": (Kind.EVICTED, "evicted: its node is being drained, or somebody evicted it"),
    "PreemptionByScheduler": (Kind.EVICTED, "evicted: a pod of higher priority took its place"),
    "TerminationByKubelet": (Kind.EVICTED, "evicted by its node, which is short of something or shuts down"),
    "DeletionByTaintManager": (Kind.NODE_LOST, "lost: its node did not answer for longer than the pod may wait, or was tainted"),
    "DeletionByPodGC": (Kind.NODE_LOST, "lost: its node is no longer in the cluster"),
}


class End(NamedTuple):
    """How it ended, in a word and in a sentence that says what happened to the pod."""

    kind: Kind
    text: str

    @property
    def hopeless(self) -> bool:
        return self.kind in HOPELESS


def end_of(pod: dict[str, Any], verdict: Verdict = Verdict.ENDED) -> End:
    """How the pod ended.

    Args:
        pod: as last seen.
        verdict: what its watcher made of it.
    """
    status, ended = pod.get("status", {}), terminated(pod)
    said = status.get("message") or ""
    if (ended and ended.get("exitCode") == 0) or status.get("phase") == "Succeeded":
        return End(Kind.SUCCEEDED, "ended well")
    if ended and ended.get("reason") == "OOMKilled":  # before the disruptions: a pod may be killed for memory while its node is drained
        return End(Kind.OUT_OF_MEMORY, f"killed for memory at its limit of {memory_limit(pod)}")
    # "Usage of EmptyDir volume "tmp" exceeds the limit", "Container base exceeded its local ephemeral storage limit": its own doing, unlike a full node.
    if status.get("reason") == "Evicted" and "exceed" in said and "node was low" not in said:
        return End(Kind.OUT_OF_DISK, f"evicted since it wrote more to the node's disk than it may ({said.strip()})")
    if condition := _condition(pod, "DisruptionTarget"):
        reason = condition.get("reason") or "no reason given"  # of a site's own autoscaler or queue, say
        kind, text = DISRUPTIONS.get(reason, (Kind.EVICTED, f"evicted: {reason}"))
        return End(kind, f"{text} ({said or condition.get('message', '')})")
    if status.get("reason") in ("Evicted", "Preempting", "Shutdown", "NodeShutdown", "Terminated"):
        return End(Kind.EVICTED, f"evicted by its node ({said})")
    if status.get("reason") == "NodeLost":
        return End(Kind.NODE_LOST, f"lost with its node ({said})")
    if ended and ended.get("reason") in FORGOTTEN:  # its exit code, 137 or 255, is made up
        return End(Kind.NODE_LOST, f"lost: {node(pod)} knows nothing of its container any more, as after a restart ({ended.get('message') or said})")
    if ended and ended.get("exitCode") == STORE_AWAY:
        return End(Kind.STORE_AWAY, "had no answer of MLflow, the object store or a database")
    if ended and ended.get("exitCode") == WILL_FAIL_AGAIN:
        return End(Kind.FAILS_AGAIN, "failed with an error that another try would raise again")
    if verdict == Verdict.HUNG or status.get("reason") == "DeadlineExceeded":
        return End(Kind.HUNG, "killed: it ran for longer than a step of its compute class may")
    if verdict == Verdict.BAD_IMAGE:
        return End(Kind.BAD_IMAGE, f"the image {image(pod)} cannot be had: {_waits_for(pod)}")
    if verdict == Verdict.BAD_CONFIG:
        return End(Kind.BAD_CONFIG, f"the container cannot be made: {_waits_for(pod)}")
    if verdict == Verdict.NOT_SCHEDULED:
        return End(Kind.UNSCHEDULABLE, f"no node had room for it: {(_condition(pod, 'PodScheduled') or {}).get('message', 'the scheduler said nothing')}")
    if verdict == Verdict.NOT_STARTED:
        return End(Kind.NOT_STARTED, f"given a node ({node(pod)}) and not started there: {_waits_for(pod)}")
    if pod.get("metadata", {}).get("deletionTimestamp") or verdict == Verdict.GONE:
        return End(Kind.DELETED, "deleted by somebody or something else than this task")
    code = (ended or {}).get("exitCode")
    if code is None:
        told = f"before its container ran: {status.get('reason') or 'no reason given'} {said}".strip()
        # UnexpectedAdmissionError, OutOfcpu, NodeAffinity: the scheduler and the node saw different things, mostly as the node has just come back.
        at_a_node = pod.get("spec", {}).get("nodeName")
        return End(Kind.NOT_STARTED, f"turned away by {at_a_node} {told}") if at_a_node else End(Kind.CRASHED, f"failed {told}")
    why = f" ({ended['reason']}: {ended.get('message') or 'nothing said'})" if ended and ended.get("reason") not in (None, "Error", "Completed") else ""
    return End(Kind.CRASHED, f"ended with exit code {code}" + (f", by signal {code - 128}" if code > 128 else "") + why)


def has_ended(pod: dict[str, Any]) -> bool:
    """Nothing of it runs, or will."""
    return pod.get("status", {}).get("phase") in ("Succeeded", "Failed") or terminated(pod) is not None


def too_little(pods: list[dict[str, Any]], mine: dict[str, str]) -> list[str]:
    """The memory sizes at which pods of this very run, since it was last cleared, were killed for memory.

    Of a person who clears the step one must think that the step does with less now, whatever an earlier code or image needed.

    Args:
        pods: oldest first.
        mine: as for ``sort_out``.
    """
    ours = [pod for pod in pods if mine.items() <= (pod["metadata"].get("annotations") or {}).items()]
    return [memory_limit(pod) for pod in ours if end_of(pod).kind == Kind.OUT_OF_MEMORY]


def sort_out(pods: list[dict[str, Any]], mine: dict[str, str]) -> tuple[str | None, list[str]]:
    """Of all pods of a step the one to go on with, and those that must have ended before another one is made; by name.

    A pod that was given up is among the latter as long as its node has not said that it ended: a node that hangs may be running it all the same.

    Args:
        pods: oldest first.
        mine: annotations that a pod must carry to be this try's.
    """
    seen_to = [pod for pod in pods if pod["metadata"].get("labels", {}).get(SEEN) == "True"]
    good, stale = None, []
    for pod in pods:
        name, ended = pod["metadata"]["name"], has_ended(pod)
        is_mine = pod not in seen_to and not pod["metadata"].get("deletionTimestamp") and mine.items() <= (pod["metadata"].get("annotations") or {}).items()
        if is_mine and good is None and (not ended or end_of(pod).kind == Kind.SUCCEEDED):
            good = name
        elif not ended:
            stale.append(name)
    return good, stale


def cannot_start(pod: dict[str, Any]) -> Verdict | None:
    """Why the pod's container will never run, as far as its waiting state tells; None: it may yet."""
    waiting = _state(pod).get("waiting") or {}
    reason, said = waiting.get("reason"), (waiting.get("message") or "").lower()
    if reason in BAD_IMAGE and not BACK_OFF.fullmatch(said.strip()) and not any(words in said for words in PASSING):
        return Verdict.BAD_IMAGE
    return Verdict.BAD_CONFIG if reason in BAD_CONFIG else None


def terminated(pod: dict[str, Any]) -> dict[str, Any] | None:
    """How the container ended: ``exitCode``, ``reason``, ``startedAt``, ``finishedAt``; None: it has not."""
    return _state(pod).get("terminated")


def started_at(pod: dict[str, Any]) -> str | None:
    """When the container started, as the API server writes it."""
    state = _state(pod)
    return (state.get("running") or state.get("terminated") or {}).get("startedAt")


def scheduled_at(pod: dict[str, Any]) -> str | None:
    """When the pod was given a node."""
    condition = _condition(pod, "PodScheduled")
    return condition.get("lastTransitionTime") if condition and condition.get("status") == "True" else None


def memory_limit(pod: dict[str, Any]) -> str:
    return _container(pod).get("resources", {}).get("limits", {}).get("memory", "unknown size")


def image(pod: dict[str, Any]) -> str:
    return _container(pod).get("image", "unknown")


def node(pod: dict[str, Any]) -> str:
    return pod.get("spec", {}).get("nodeName") or "no node yet"


def is_at(pod: dict[str, Any]) -> str:
    """What the pod is at, in a few words for a log."""
    if pod.get("metadata", {}).get("deletionTimestamp"):
        return f"terminating on {node(pod)}"
    if has_ended(pod):
        return "ended"
    if _state(pod).get("running"):
        return f"running on {node(pod)}"
    if scheduled_at(pod):
        return f"starting on {node(pod)}: {_waits_for(pod)}"
    return f"waiting for a node: {(_condition(pod, 'PodScheduled') or {}).get('message', 'not looked at yet')}"


def _waits_for(pod: dict[str, Any]) -> str:
    waiting = _state(pod).get("waiting") or {}
    return ": ".join(filter(None, (waiting.get("reason"), waiting.get("message")))) or "nothing said"


def _container(pod: dict[str, Any]) -> dict[str, Any]:
    return next((c for c in pod.get("spec", {}).get("containers", []) if c.get("name") == CONTAINER), {})


def _state(pod: dict[str, Any]) -> dict[str, Any]:
    statuses = pod.get("status", {}).get("containerStatuses") or []
    return next((s.get("state") or {} for s in statuses if s.get("name") == CONTAINER), {})


def _condition(pod: dict[str, Any], kind: str) -> dict[str, Any] | None:
    found = next((c for c in pod.get("status", {}).get("conditions") or [] if c.get("type") == kind), None)
    return None if kind == "DisruptionTarget" and found and found.get("status") != "True" else found
