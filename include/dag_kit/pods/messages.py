"""Error messages of failed training steps.

A message contains the kind of failure, the fix, and the last lines of the pod's log.
"""

from collections.abc import Callable
from typing import Any

from kubernetes.client import ApiException

from include.dag_kit.pods import ends as pod_ends
from include.dag_kit.pods.ends import CONTAINER, End, Kind
from include.dag_kit.pods.names import PodStep
from include.projects.compute import ComputeClass


def explain(
    name: str,
    end: End,
    pod: dict[str, Any],
    last: list[str],
    step: PodStep,
    compute: ComputeClass,
    *,
    nodes: Callable[[], Any],
) -> str:
    """Return the error message of a step whose pod ended in this way.

    Args:
        name: Name of the pod.
        pod: The pod as last seen, in JSON. Empty if it was never seen.
        last: The last lines of its log.
        nodes: Function that lists the cluster's nodes.
    """
    parts = [f"{end.kind.value}: pod {name} of {step.name}: {end.text}"]
    if end.kind == Kind.OUT_OF_MEMORY and had_max_memory(compute, pod):
        parts = [out_of_memory(step, compute, pod_ends.memory_limit(pod))]
    if end.kind == Kind.UNSCHEDULABLE:
        parts += [
            f"It asked for {_asked(pod, compute)} and waited {compute.schedule_timeout}.",
            f"The cluster has: {_allocatable(nodes, compute)}",
        ]
    if end.kind in (Kind.CRASHED, Kind.FAILS_AGAIN, Kind.HUNG, Kind.OUT_OF_MEMORY, Kind.BACKEND_UNAVAILABLE) and last:
        parts += ["Its last lines:", *last]
    return "\n".join(parts)


def out_of_memory(step: PodStep, compute: ComputeClass, most: str) -> str:
    return (
        f"{Kind.OUT_OF_MEMORY.value}: {step.name} was killed for memory at {most}, and compute class {step.compute}"
        f" gives no more (memory_max {compute.memory_max}): raise it in the project, or have the step do with less"
    )


def had_max_memory(compute: ComputeClass, pod: dict[str, Any]) -> bool:
    """Return whether the pod had the maximum memory of its class."""
    limit = pod_ends.memory_limit(pod)
    return limit[0].isdigit() and compute.memory_after([limit]) is None


def _asked(pod: dict[str, Any], compute: ComputeClass) -> str:
    requests = (
        next(c for c in pod["spec"]["containers"] if c["name"] == CONTAINER).get("resources", {}).get("requests", {})
    )
    nodes = ", ".join(f"{k}={v}" for k, v in compute.node_selector.items())
    return ", ".join(f"{name} {amount}" for name, amount in sorted(requests.items())) + (
        f", on nodes with {nodes}" if nodes else ""
    )


def _allocatable(nodes: Callable[[], Any], compute: ComputeClass) -> str:
    """Describe the allocatable resources of the cluster's nodes."""
    try:
        items = nodes().items
    except ApiException as error:
        return f"unknown: this Airflow may not list nodes ({error.reason})"
    resources = ("cpu", "memory", "ephemeral-storage", compute.gpu_resource)
    return (
        "; ".join(
            f"{node.metadata.name}"
            f" ({', '.join(f'{name} {amount}' for name, amount in (node.status.allocatable or {}).items() if name in resources)}"  # noqa: E501
            + "".join(f", taint {t.key}:{t.effect}" for t in node.spec.taints or [])
            + ")"
            for node in items
        )
        or "no node at all"
    )
