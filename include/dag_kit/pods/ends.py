"""Classify how a training pod ended, from its status.

These are pure functions of the API server's responses, so they are tested without a cluster. Pods
are dicts as in the API's JSON (``status.containerStatuses``), because the task and the triggerer
use two clients with different classes.
"""

import re
from enum import StrEnum
from typing import Any, NamedTuple

from include.outages import EX_DATAERR, EX_UNAVAILABLE

CONTAINER = "base"
# The provider's label of a pod whose end a task has processed.
ALREADY_CHECKED_LABEL = "already_checked"
BAD_IMAGE = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull")
BAD_CONFIG = ("CreateContainerConfigError",)
# The registry is busy or temporarily unavailable. The kubelet retries automatically until the start
# timeout.
PASSING = (
    "timeout",
    "rate limit",
    "too many requests",
    "toomanyrequests",
    "qps exceeded",
    "temporarily unavailable",
    "service unavailable",
    "bad gateway",
    "internal server error",
    "connection refused",
    "connection reset",
    "deadline exceeded",
    "unexpected eof",
    ": eof",
)
# A kubelet before 1.32 reports this between two pulls, without the reason. The reason was in the
# previous ErrImagePull and will be in the next one.
BACK_OFF = re.compile(r'back-off pulling image "[^"]*"')
# The reason for a container that its node no longer knows, because the node or its container
# runtime was restarted.
FORGOTTEN = ("ContainerStatusUnknown", "Unknown")


class PodVerdict(StrEnum):
    """Observations of the trigger that are not visible in the pod's status."""

    ENDED = "ended"
    # The pod was deleted. The status is the last one seen.
    GONE = "gone"
    BAD_IMAGE = "bad image"
    BAD_CONFIG = "bad config"
    NOT_SCHEDULED = "not scheduled in time"
    NOT_STARTED = "not started in time"
    HUNG = "ran too long"


class Kind(StrEnum):
    """The kinds of end. These values appear in runs, tests and the runbook."""

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
    BACKEND_UNAVAILABLE = "store away"
    FAILS_AGAIN = "fails again"
    CRASHED = "crashed"


# Another try would fail in the same way. A person has to change something first.
HOPELESS = frozenset({Kind.OUT_OF_DISK, Kind.BAD_IMAGE, Kind.BAD_CONFIG, Kind.UNSCHEDULABLE, Kind.FAILS_AGAIN})
# Another try may help, but the number of tries is limited. This includes a pod that succeeded
# without a result. The remaining kinds have external causes.
OWN_FAULTS = frozenset({Kind.CRASHED, Kind.HUNG, Kind.SUCCEEDED})
DISRUPTIONS = {
    "EvictionByEvictionAPI": (Kind.EVICTED, "evicted: its node is being drained, or somebody evicted it"),
    "PreemptionByScheduler": (Kind.EVICTED, "evicted: a pod of higher priority took its place"),
    "TerminationByKubelet": (Kind.EVICTED, "evicted by its node, which is short of something or shuts down"),
    "DeletionByTaintManager": (
        Kind.NODE_LOST,
        "lost: its node did not answer for longer than the pod may wait, or was tainted",
    ),
    "DeletionByPodGC": (Kind.NODE_LOST, "lost: its node is no longer in the cluster"),
}


class End(NamedTuple):
    """The kind of end, and a sentence that describes what happened to the pod."""

    kind: Kind
    text: str

    @property
    def hopeless(self) -> bool:
        return self.kind in HOPELESS


def end_of(pod: dict[str, Any], verdict: PodVerdict = PodVerdict.ENDED) -> End:
    """Return how the pod ended.

    Args:
        pod: The pod as last seen.
        verdict: The observation of the trigger that watched it.
    """
    status, ended = pod.get("status", {}), terminated(pod)
    if (ended and ended.get("exitCode") == 0) or status.get("phase") == "Succeeded":
        return End(Kind.SUCCEEDED, "ended well")
    # The limits come before the disruptions, because a pod may be killed for memory while its node
    # is drained.
    return _past_a_limit(pod) or _disrupted(pod) or _from_exit_code(pod) or _judged(pod, verdict) or _failed(pod)


def _past_a_limit(pod: dict[str, Any]) -> End | None:
    """Return the end of a pod that used more memory or disk than it may, or None."""
    status, ended = pod.get("status", {}), terminated(pod)
    message = status.get("message") or ""
    if ended and ended.get("reason") == "OOMKilled":
        return End(Kind.OUT_OF_MEMORY, f"killed for memory at its limit of {memory_limit(pod)}")
    # For example "Usage of EmptyDir volume "tmp" exceeds the limit" or "Container base exceeded its
    # local ephemeral storage limit". The pod itself caused this, unlike a full node.
    if status.get("reason") == "Evicted" and "exceed" in message and "node was low" not in message:
        return End(Kind.OUT_OF_DISK, f"evicted since it wrote more to the node's disk than it may ({message.strip()})")
    return None


def _disrupted(pod: dict[str, Any]) -> End | None:
    """Return the end of a pod that the cluster or its node took away, or None."""
    status, ended = pod.get("status", {}), terminated(pod)
    message = status.get("message") or ""
    if condition := _condition(pod, "DisruptionTarget"):
        # The reason may come from a site's own autoscaler or queue.
        reason = condition.get("reason") or "no reason given"
        kind, text = DISRUPTIONS.get(reason, (Kind.EVICTED, f"evicted: {reason}"))
        return End(kind, f"{text} ({message or condition.get('message', '')})")
    if status.get("reason") in ("Evicted", "Preempting", "Shutdown", "NodeShutdown", "Terminated"):
        return End(Kind.EVICTED, f"evicted by its node ({message})")
    if status.get("reason") == "NodeLost":
        return End(Kind.NODE_LOST, f"lost with its node ({message})")
    # Its exit code, 137 or 255, is not a real one.
    if ended and ended.get("reason") in FORGOTTEN:
        return End(
            Kind.NODE_LOST,
            f"lost: {node(pod)} knows nothing of its container any more, as after a restart"
            f" ({ended.get('message') or message})",
        )
    return None


def _from_exit_code(pod: dict[str, Any]) -> End | None:
    """Return the end that the step itself reports by its exit code, or None."""
    ended = terminated(pod)
    if ended and ended.get("exitCode") == EX_UNAVAILABLE:
        return End(Kind.BACKEND_UNAVAILABLE, "had no answer of MLflow, the object store or a database")
    if ended and ended.get("exitCode") == EX_DATAERR:
        return End(Kind.FAILS_AGAIN, "failed with an error that another try would raise again")
    return None


def _judged(pod: dict[str, Any], verdict: PodVerdict) -> End | None:
    """Return the end of a pod that was ended from outside, mostly by its trigger, or None."""
    status = pod.get("status", {})
    if verdict == PodVerdict.HUNG or status.get("reason") == "DeadlineExceeded":
        return End(Kind.HUNG, "killed: it ran for longer than a step of its compute class may")
    if verdict == PodVerdict.BAD_IMAGE:
        return End(Kind.BAD_IMAGE, f"the image {image(pod)} cannot be had: {_waits_for(pod)}")
    if verdict == PodVerdict.BAD_CONFIG:
        return End(Kind.BAD_CONFIG, f"the container cannot be made: {_waits_for(pod)}")
    if verdict == PodVerdict.NOT_SCHEDULED:
        return End(
            Kind.UNSCHEDULABLE,
            "no node had room for it:"
            f" {(_condition(pod, 'PodScheduled') or {}).get('message', 'the scheduler said nothing')}",
        )
    if verdict == PodVerdict.NOT_STARTED:
        return End(Kind.NOT_STARTED, f"given a node ({node(pod)}) and not started there: {_waits_for(pod)}")
    if pod.get("metadata", {}).get("deletionTimestamp") or verdict == PodVerdict.GONE:
        return End(Kind.DELETED, "deleted by somebody or something else than this task")
    return None


def _failed(pod: dict[str, Any]) -> End:
    """Return the end of a pod that failed by itself, or that its node did not accept."""
    status, ended = pod.get("status", {}), terminated(pod)
    message = status.get("message") or ""
    code = (ended or {}).get("exitCode")
    if code is None:
        details = f"before its container ran: {status.get('reason') or 'no reason given'} {message}".strip()
        # UnexpectedAdmissionError, OutOfcpu, NodeAffinity: the scheduler and the node disagree,
        # usually because the node has just restarted.
        at_a_node = pod.get("spec", {}).get("nodeName")
        return (
            End(Kind.NOT_STARTED, f"turned away by {at_a_node} {details}")
            if at_a_node
            else End(Kind.CRASHED, f"failed {details}")
        )
    why = (
        f" ({ended['reason']}: {ended.get('message') or 'nothing said'})"
        if ended and ended.get("reason") not in (None, "Error", "Completed")
        else ""
    )
    return End(Kind.CRASHED, f"ended with exit code {code}" + (f", by signal {code - 128}" if code > 128 else "") + why)


def has_ended(pod: dict[str, Any]) -> bool:
    """Return whether the pod has ended: nothing of it runs or will run."""
    return pod.get("status", {}).get("phase") in ("Succeeded", "Failed") or terminated(pod) is not None


def oom_memory_sizes(pods: list[dict[str, Any]], identity: dict[str, str]) -> list[str]:
    """Return the memory sizes at which pods of this run were killed for memory.

    Only pods since the last clearing of the run count. A person who clears the step may have
    reduced its memory requirements, by new code or a new image.

    Args:
        pods: Oldest first.
        identity: As for ``sort_out``.
    """
    candidates = [pod for pod in pods if identity.items() <= (pod["metadata"].get("annotations") or {}).items()]
    return [memory_limit(pod) for pod in candidates if end_of(pod).kind == Kind.OUT_OF_MEMORY]


def sort_out(pods: list[dict[str, Any]], identity: dict[str, str]) -> tuple[str | None, list[str]]:
    """Return the name of the pod to continue with, and the names of the pods to remove first.

    The pods to remove must have ended before another pod is created. An abandoned pod is among them
    until its node has reported its end, because an unresponsive node may still be running it. The
    first name is None if no pod can be used.

    Args:
        pods: Oldest first.
        identity: Annotations that a pod of the current try must carry.
    """
    seen_to = [pod for pod in pods if pod["metadata"].get("labels", {}).get(ALREADY_CHECKED_LABEL) == "True"]
    good, stale = None, []
    for pod in pods:
        name, ended = pod["metadata"]["name"], has_ended(pod)
        is_own = (
            pod not in seen_to
            and not pod["metadata"].get("deletionTimestamp")
            and identity.items() <= (pod["metadata"].get("annotations") or {}).items()
        )
        if is_own and good is None and (not ended or end_of(pod).kind == Kind.SUCCEEDED):
            good = name
        elif not ended:
            stale.append(name)
    return good, stale


def cannot_start(pod: dict[str, Any]) -> PodVerdict | None:
    """Return the reason why the container can never start, or None if it still may."""
    waiting = _state(pod).get("waiting") or {}
    reason, message = waiting.get("reason"), (waiting.get("message") or "").lower()
    if (
        reason in BAD_IMAGE
        and not BACK_OFF.fullmatch(message.strip())
        and not any(words in message for words in PASSING)
    ):
        return PodVerdict.BAD_IMAGE
    return PodVerdict.BAD_CONFIG if reason in BAD_CONFIG else None


def terminated(pod: dict[str, Any]) -> dict[str, Any] | None:
    """Return how the container ended, or None if it has not ended.

    The keys are ``exitCode``, ``reason``, ``startedAt`` and ``finishedAt``.
    """
    return _state(pod).get("terminated")


def started_at(pod: dict[str, Any]) -> str | None:
    """Return when the container started, in the API server's format, or None."""
    state = _state(pod)
    return (state.get("running") or state.get("terminated") or {}).get("startedAt")


def scheduled_at(pod: dict[str, Any]) -> str | None:
    """Return when the pod was assigned to a node, or None."""
    condition = _condition(pod, "PodScheduled")
    return condition.get("lastTransitionTime") if condition and condition.get("status") == "True" else None


def memory_limit(pod: dict[str, Any]) -> str:
    memory: str = _container(pod).get("resources", {}).get("limits", {}).get("memory", "unknown size")
    return memory


def image(pod: dict[str, Any]) -> str:
    image: str = _container(pod).get("image", "unknown")
    return image


def node(pod: dict[str, Any]) -> str:
    return pod.get("spec", {}).get("nodeName") or "no node yet"


def is_at(pod: dict[str, Any]) -> str:
    """Describe the pod's current state in a few words for a log."""
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
    condition = next((c for c in pod.get("status", {}).get("conditions") or [] if c.get("type") == kind), None)
    return None if kind == "DisruptionTarget" and condition and condition.get("status") != "True" else condition
