"""What the error of a failed training step says: the kind of failure, what to do about it, and the pod's last lines."""

from collections.abc import Callable
from typing import Any

from kubernetes.client import ApiException

from include.dag_kit import pod_ends
from include.dag_kit.pod_ends import CONTAINER, End, Kind
from include.dag_kit.pod_names import Step
from include.projects.compute import ComputeClass


def explain(name: str, end: End, pod: dict[str, Any], last: list[str], step: Step, compute: ComputeClass, *, nodes: Callable[[], Any]) -> str:
    """The error of a step whose pod ended so.

    Args:
        name: the pod's.
        pod: as the API server last gave it, in JSON; empty if nobody saw it.
        last: lines of its log.
        nodes: lists the cluster's nodes.
    """
    parts = [f"{end.kind.value}: pod {name} of {step.name}: {end.text}"]
    if end.kind == Kind.OUT_OF_MEMORY and was_the_most(compute, pod):
        parts = [out_of_memory(step, compute, pod_ends.memory_limit(pod))]
    if end.kind == Kind.UNSCHEDULABLE:
        parts += [f"It asked for {_asked(pod, compute)} and waited {compute.schedule_timeout}.", f"The cluster has: {_allocatable(nodes, compute)}"]
    if end.kind in (Kind.CRASHED, Kind.FAILS_AGAIN, Kind.HUNG, Kind.OUT_OF_MEMORY, Kind.STORE_AWAY) and last:
        parts += ["Its last lines:", *last]
    return "\n".join(parts)


def out_of_memory(step: Step, compute: ComputeClass, most: str) -> str:
    return (
        f"{Kind.OUT_OF_MEMORY.value}: {step.name} was killed for memory at {most}, and compute class {step.compute} gives no more "
        f"(memory_max {compute.memory_max}): raise it in the project, or have the step do with less"
    )


def was_the_most(compute: ComputeClass, pod: dict[str, Any]) -> bool:
    """Whether the pod had as much memory as its class can give."""
    limit = pod_ends.memory_limit(pod)
    return limit[0].isdigit() and compute.memory_after([limit]) is None


def _asked(pod: dict[str, Any], compute: ComputeClass) -> str:
    requests = next(c for c in pod["spec"]["containers"] if c["name"] == CONTAINER).get("resources", {}).get("requests", {})
    nodes = ", ".join(f"{k}={v}" for k, v in compute.node_selector.items())
    return ", ".join(f"{name} {amount}" for name, amount in sorted(requests.items())) + (f", on nodes with {nodes}" if nodes else "")


def _allocatable(nodes: Callable[[], Any], compute: ComputeClass) -> str:
    """What the cluster's nodes could give, in words."""
    try:
        found = nodes().items
    except ApiException as error:
        return f"unknown: this Airflow may not list nodes ({error.reason})"
    wanted = ("cpu", "memory", "ephemeral-storage", compute.gpu_resource)
    return (
        "; ".join(
            f"{node.metadata.name} ({', '.join(f'{name} {amount}' for name, amount in (node.status.allocatable or {}).items() if name in wanted)}"
            + "".join(f", taint {t.key}:{t.effect}" for t in node.spec.taints or [])
            + ")"
            for node in found
        )
        or "no node at all"
    )
