"""The cost of a training step's pods: time waited, time run, GPU-seconds.

It is stored next to the step's manifest and in its MLflow run. The file is written first, because a
fit does not have a run before it is judged. A later writer of the run finds the cost of all tries
there.
"""

import json
from datetime import UTC, datetime
from typing import Any

from upath import UPath

from include.data import storage
from include.training import manifest as manifests

FIGURES = ("waiting_s", "running_s", "gpu_s")


def cost_of(pod: dict[str, Any], ended: str, *, gpus: int, now: datetime | None = None) -> dict[str, Any]:
    """Return a pod's times in whole seconds, from its status.

    Args:
        pod: the API's JSON. Waiting is from its creation to its container's start, running from
            there to the container's end. A pod that disappeared without a final status is assumed
            to have ended now.
        ended: how it ended, in one word.
        gpus: number of GPUs that it held. They count only while running, because a waiting pod does
            not hold any.
    """
    state = next(
        (s.get("state") or {} for s in pod.get("status", {}).get("containerStatuses") or [] if s["name"] == "base"), {}
    )
    times = state.get("terminated") or state.get("running") or {}
    now = now or datetime.now(UTC)
    made = _moment(pod.get("metadata", {}).get("creationTimestamp")) or now
    started = _moment(times.get("startedAt"))
    finished = _moment(times.get("finishedAt")) or now
    running = max(0.0, (finished - started).total_seconds()) if started else 0.0
    waiting = max(0.0, ((started or finished) - made).total_seconds())
    metadata = pod.get("metadata", {})
    return {
        "pod": metadata.get("name", ""),
        "uid": metadata.get("uid", ""),
        "made": f"{made:%FT%TZ}",
        "ended": ended,
        "waiting_s": waiting,
        "running_s": running,
        "gpu_s": running * gpus,
    }


def keep(manifest: str, cost: dict[str, Any]) -> None:
    """Add a pod's cost to the file next to the manifest. Repeating it for a pod changes nothing."""
    path = beside(manifest)
    manifests.write(path, {**read(manifest), cost["uid"]: cost})


def read(manifest: str) -> dict[str, dict[str, Any]]:
    """Return uid of a pod -> its cost. It is empty if the step has not had a pod.

    The key is the uid, because a pod may have the name of an earlier one.
    """
    try:
        usage: dict[str, dict[str, Any]] = json.loads(beside(manifest).read_text())
        return usage
    except FileNotFoundError:
        return {}


def beside(manifest: str) -> UPath:
    return storage.path(manifest).with_suffix(".pods.json")


def total(costs: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Return the totals of all pods, as MLflow metrics."""
    return {f"pod.{figure}": sum(cost[figure] for cost in costs.values()) for figure in FIGURES} | {
        "pod.tries": float(len(costs))
    }


def log(project: str, request: str, manifest: str) -> None:
    """Write the cost of the request's pods to those of its MLflow runs that exist.

    A fit's cost goes to its candidate's run, the total to the request's.
    """
    from include.training import tracking

    client = tracking.tracking_client()
    runs = tracking.RequestRuns(client, project, request, {})
    everything: dict[str, dict[str, Any]] = {}
    for path in storage.files(storage.path(manifest).parent):
        if not path.name.endswith(".pods.json"):
            continue
        costs = json.loads(path.read_text())
        everything |= costs
        command, _, candidate = path.name.removesuffix(".pods.json").partition("-")
        if command == "fit" and (run := runs.find(candidate)):
            tracking.log(
                client,
                run,
                params={},
                metrics=total(costs),
                tags={"pod.ends": ", ".join(c["ended"] for c in sorted(costs.values(), key=lambda cost: cost["made"]))},
            )
    if run := runs.find("request"):
        tracking.log(client, run, params={}, metrics=total(everything), tags={})


def _moment(stamp: str | None) -> datetime | None:
    return datetime.fromisoformat(stamp.replace("Z", "+00:00")) if stamp else None
