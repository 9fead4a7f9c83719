"""Classify the state of a group of pods (an indexed Job).

These are pure functions of the API server's responses, like ``include.dag_kit.pods.ends`` for one
pod.
"""

from datetime import datetime
from typing import Any

from include.dag_kit.pods.ends import CONTAINER, Kind, PodVerdict, end_of, has_ended, is_at, terminated
from include.dag_kit.pods.trigger import judge, moment

INDEX = "batch.kubernetes.io/job-completion-index"
# Label of a Job's pods: the Job's uid. Unlike its name, it is never reused.
GROUP = "batch.kubernetes.io/controller-uid"
# Annotation of a Job whose end a task has processed. The value is the kind of end.
END_ANNOTATION = "airloop/ended"
# Exit codes of include.training.launch. A task must not import that module: torch is not in
# Airflow's image.
GAVE_UP, OTHERS_LOST = 70, 75
# Kubernetes would replace such a pod, but the new pod would end in the same way.
SPENT = (Kind.OUT_OF_MEMORY, Kind.OUT_OF_DISK)


def judge_group(
    job: dict[str, Any],
    pods: list[dict[str, Any]],
    limits: dict[str, float],
    now: datetime,
    without_pods_since: datetime | None = None,
) -> tuple[PodVerdict, dict[str, Any]] | None:
    """Return the group's outcome and the pod that decided it, or None if it is still in progress.

    A pod that was evicted or lost does not decide the outcome: the Job replaces it.

    Args:
        pods: The pods of the Job, in any order.
        limits: Time limits of each pod. See ``StepPodTrigger``.
        without_pods_since: When the caller last saw a pod of the Job, or began to look. Default:
            the Job's creation. A Job replaces pods that were lost together, and the time limit of
            scheduling applies to the new ones too.
    """
    if condition(job, "Complete"):
        return PodVerdict.ENDED, _first(pods) or stand_in(job, phase="Succeeded")
    if spent := [pod for pod in pods if has_ended(pod) and end_of(pod).kind in SPENT]:
        return PodVerdict.ENDED, max(spent, key=_finished)
    if failed := condition(job, "Failed"):
        if failed.get("reason") == "DeadlineExceeded":
            return PodVerdict.HUNG, _first(pods) or stand_in(job, phase="Failed")
        return PodVerdict.ENDED, _guilty(pods) or stand_in(
            job, phase="Failed", reason=failed.get("reason"), message=failed.get("message")
        )
    for pod in sorted(pods, key=index):
        if not has_ended(pod) and (verdict := judge(pod, limits, now)):
            return verdict, pod
    since = without_pods_since or moment(job["metadata"]["creationTimestamp"])
    if not pods and (now - since).total_seconds() > limits["schedule"]:
        unscheduled = {
            "type": "PodScheduled",
            "status": "False",
            "message": "the Job has made no pods; kubectl describe job says why: a quota, perhaps",
        }
        return PodVerdict.NOT_SCHEDULED, stand_in(job, phase="Pending", conditions=[unscheduled])
    return None


def sort_out_groups(jobs: list[dict[str, Any]], identity: dict[str, str]) -> tuple[str | None, list[str]]:
    """Return the name of the Job to continue with, and the names of the Jobs to stop first.

    The first name is None if no Job can be used.

    Args:
        jobs: Oldest first.
        identity: Annotations that a Job of the current try must carry.
    """
    good, stale = None, []
    for job in jobs:
        name, annotations = job["metadata"]["name"], job["metadata"].get("annotations") or {}
        # Pods of it that still run are handled as pods.
        stopped = job["spec"].get("suspend") or job["metadata"].get("deletionTimestamp")
        if (
            good is None
            and not stopped
            and END_ANNOTATION not in annotations
            and identity.items() <= annotations.items()
        ):
            good = name
        elif not stopped and not is_over(job):
            stale.append(name)
    return good, stale


def condition(job: dict[str, Any], kind: str) -> dict[str, Any] | None:
    """Return the Job's condition of that type, or None if it is not true."""
    return next(
        (c for c in job.get("status", {}).get("conditions") or [] if c["type"] == kind and c["status"] == "True"), None
    )


def is_over(job: dict[str, Any]) -> bool:
    """Return whether the Job is finished and creates no more pods."""
    return condition(job, "Complete") is not None or condition(job, "Failed") is not None


def index(pod: dict[str, Any]) -> int:
    return int((pod["metadata"].get("annotations") or {}).get(INDEX, 0))


def newest(pods: list[dict[str, Any]], place: int) -> dict[str, Any] | None:
    """Return the last pod that was created for that index, or None."""
    return max(
        (pod for pod in pods if index(pod) == place), key=lambda pod: pod["metadata"]["creationTimestamp"], default=None
    )


def group_is_at(pods: list[dict[str, Any]]) -> str:
    """Describe the current state of each worker, for a log."""
    return (
        "; ".join(
            f"worker {place} {is_at(pod)}" for place in sorted(set(map(index, pods))) if (pod := newest(pods, place))
        )
        or "no pods yet"
    )


def stand_in(job: dict[str, Any], **status: Any) -> dict[str, Any]:
    """Return a pod document that represents the state of a Job without pods."""
    containers = [
        {k: c[k] for k in ("name", "image", "resources") if k in c}
        for c in job["spec"]["template"]["spec"]["containers"]
        if c["name"] == CONTAINER
    ]
    return {
        "metadata": {"name": job["metadata"]["name"]},
        "spec": {"containers": containers},
        "status": {k: v for k, v in status.items() if v},
    }


def _first(pods: list[dict[str, Any]]) -> dict[str, Any] | None:
    return newest(pods, 0)


def _guilty(pods: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the last pod that failed by its own fault, or None.

    Other pods fail because those failed, or because their Job was ended.
    """
    ended = [pod for pod in pods if has_ended(pod) and end_of(pod).kind != Kind.SUCCEEDED]
    return max(
        ended,
        key=lambda pod: (
            end_of(pod).kind == Kind.CRASHED,
            "deletionTimestamp" not in pod["metadata"],
            *_fault(pod),
            _finished(pod),
        ),
        default=None,
    )


def _fault(pod: dict[str, Any]) -> tuple[bool, bool]:
    code = (terminated(pod) or {}).get("exitCode")
    return code == GAVE_UP, code != OTHERS_LOST


def _finished(pod: dict[str, Any]) -> str:
    return (terminated(pod) or {}).get("finishedAt") or ""
