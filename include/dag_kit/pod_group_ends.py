"""What a group of pods, an indexed Job, has come to: a pure function of what the API server said, as ``include.dag_kit.pod_ends`` is for one pod."""

from datetime import datetime
from typing import Any

from include.dag_kit.pod_ends import CONTAINER, Kind, Verdict, end_of, has_ended, is_at, terminated
from include.dag_kit.pod_trigger import judge, moment

INDEX = "batch.kubernetes.io/job-completion-index"
GROUP = "batch.kubernetes.io/controller-uid"  # label of a Job's pods: the Job's uid, which, unlike its name, no later one has
ENDED = "airloop/ended"  # annotation of a Job whose end a task has dealt with: in which way it ended
# Exit codes of include.training.launch, which a task must not import for them: torch is not in Airflow's image.
GAVE_UP, OTHERS_LOST = 70, 75
# Another pod in its place would end the same way, although Kubernetes would make one.
SPENT = (Kind.OUT_OF_MEMORY, Kind.OUT_OF_DISK)


def judge_group(job: dict[str, Any], pods: list[dict[str, Any]], limits: dict[str, float], now: datetime) -> tuple[Verdict, dict[str, Any]] | None:
    """What the group has come to, with the pod that tells it; None: it is on its way.

    A pod that was evicted or lost tells nothing: the Job puts another one in its place.

    Args:
        pods: those of the Job, in any order.
        limits: of each pod; see ``StepPodTrigger``.
    """
    if condition(job, "Complete"):
        return Verdict.ENDED, _first(pods) or stand_in(job, phase="Succeeded")
    if spent := [pod for pod in pods if has_ended(pod) and end_of(pod).kind in SPENT]:
        return Verdict.ENDED, max(spent, key=_finished)
    if failed := condition(job, "Failed"):
        if failed.get("reason") == "DeadlineExceeded":
            return Verdict.HUNG, _first(pods) or stand_in(job, phase="Failed")
        return Verdict.ENDED, _guilty(pods) or stand_in(job, phase="Failed", reason=failed.get("reason"), message=failed.get("message"))
    for pod in sorted(pods, key=index):
        if not has_ended(pod) and (verdict := judge(pod, limits, now)):
            return verdict, pod
    if not pods and (now - moment(job["metadata"]["creationTimestamp"])).total_seconds() > limits["schedule"]:
        said = {"type": "PodScheduled", "status": "False", "message": "the Job has made no pods; kubectl describe job says why: a quota, perhaps"}
        return Verdict.NOT_SCHEDULED, stand_in(job, phase="Pending", conditions=[said])
    return None


def sort_out_groups(jobs: list[dict[str, Any]], mine: dict[str, str]) -> tuple[str | None, list[str]]:
    """Of all Jobs of a step the one to go on with, and those that must be stopped before another one is made; by name.

    Args:
        jobs: oldest first.
        mine: annotations that a Job must carry to be this try's.
    """
    good, stale = None, []
    for job in jobs:
        name, annotations = job["metadata"]["name"], job["metadata"].get("annotations") or {}
        stopped = job["spec"].get("suspend") or job["metadata"].get("deletionTimestamp")  # what runs of it yet is waited for as pods
        if good is None and not stopped and ENDED not in annotations and mine.items() <= annotations.items():
            good = name
        elif not stopped and not is_over(job):
            stale.append(name)
    return good, stale


def condition(job: dict[str, Any], kind: str) -> dict[str, Any] | None:
    """The Job's condition of that type, if it holds."""
    return next((c for c in job.get("status", {}).get("conditions") or [] if c["type"] == kind and c["status"] == "True"), None)


def is_over(job: dict[str, Any]) -> bool:
    """It makes no more pods."""
    return condition(job, "Complete") is not None or condition(job, "Failed") is not None


def index(pod: dict[str, Any]) -> int:
    return int((pod["metadata"].get("annotations") or {}).get(INDEX, 0))


def newest(pods: list[dict[str, Any]], place: int) -> dict[str, Any] | None:
    """The last pod that was made for that place."""
    return max((pod for pod in pods if index(pod) == place), key=lambda pod: pod["metadata"]["creationTimestamp"], default=None)


def group_is_at(pods: list[dict[str, Any]]) -> str:
    """What each of them is at, for a log."""
    return "; ".join(f"worker {place} {is_at(pod)}" for place in sorted(set(map(index, pods))) if (pod := newest(pods, place))) or "no pods yet"


def stand_in(job: dict[str, Any], **status: Any) -> dict[str, Any]:
    """Tells what a Job without pods has come to, in a pod's words."""
    containers = [{k: c[k] for k in ("name", "image", "resources") if k in c} for c in job["spec"]["template"]["spec"]["containers"] if c["name"] == CONTAINER]
    return {"metadata": {"name": job["metadata"]["name"]}, "spec": {"containers": containers}, "status": {k: v for k, v in status.items() if v}}


def _first(pods: list[dict[str, Any]]) -> dict[str, Any] | None:
    return newest(pods, 0)


def _guilty(pods: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The last pod that failed by its own fault, rather than because others did or as its Job was ended."""
    ended = [pod for pod in pods if has_ended(pod) and end_of(pod).kind != Kind.SUCCEEDED]
    return max(
        ended, key=lambda pod: (end_of(pod).kind == Kind.CRASHED, "deletionTimestamp" not in pod["metadata"], *_fault(pod), _finished(pod)), default=None
    )


def _fault(pod: dict[str, Any]) -> tuple[bool, bool]:
    code = (terminated(pod) or {}).get("exitCode")
    return code == GAVE_UP, code != OTHERS_LOST


def _finished(pod: dict[str, Any]) -> str:
    return (terminated(pod) or {}).get("finishedAt") or ""
