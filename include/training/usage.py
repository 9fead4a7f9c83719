"""What the pods of a training step cost: time waited, time run, GPU-seconds; kept beside the step's manifest and written to its MLflow run.

The file comes first, since a fit has no run before it is judged: whoever writes to a run later finds there what all tries together cost.
"""

import json
from datetime import UTC, datetime
from typing import Any

from upath import UPath

from include.data import storage
from include.training import manifest as manifests

FIGURES = ("waiting_s", "running_s", "gpu_s")


def cost_of(pod: dict[str, Any], ended: str, *, gpus: int, now: datetime | None = None) -> dict[str, Any]:
    """A pod's times in whole seconds, as its status tells them.

    Args:
        pod: as the API's JSON. Waiting is from its creation to its container's start, running from there to the container's end; a pod that is gone
            without having said so is taken to have ended now.
        ended: how, in a word.
        gpus: that it held; only while running, since a waiting pod holds none.
    """
    state = next((s.get("state") or {} for s in pod.get("status", {}).get("containerStatuses") or [] if s["name"] == "base"), {})
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
    """Adds a pod's cost to what stands beside the manifest; the same pod twice is one."""
    path = beside(manifest)
    manifests.write(path, {**read(manifest), cost["uid"]: cost})


def read(manifest: str) -> dict[str, dict[str, Any]]:
    """Uid of a pod -> its cost; none if the step has had no pod. By uid, since the next pod after one that is gone may have its name."""
    try:
        return json.loads(beside(manifest).read_text())
    except FileNotFoundError:
        return {}


def beside(manifest: str) -> UPath:
    return storage.path(manifest).with_suffix(".pods.json")


def total(costs: dict[str, dict[str, Any]]) -> dict[str, float]:
    """All pods together, as MLflow metrics."""
    return {f"pod.{figure}": sum(cost[figure] for cost in costs.values()) for figure in FIGURES} | {"pod.tries": float(len(costs))}


def log(project: str, request: str, manifest: str) -> None:
    """Writes what the pods of the request cost to those of its MLflow runs that exist: a fit's to its candidate's run, all together to the request's."""
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
