"""Airflow's pools: one per compute class, so that no more steps run than there are GPUs.

A step takes as many slots as GPUs, and at least one per worker.
"""

import json
import re
from collections.abc import Iterable
from typing import Any

from sqlalchemy import Engine, inspect, text

from include.projects import all_projects
from include.projects.compute import ComputeClass
from include.settings import Settings
from include.stack.api import AirflowApi

DESCRIPTION = "Training steps of this compute class: a slot a GPU, or a step that needs none."


class PoolsError(ValueError):
    """Raised when the pools cannot be determined. The message names the invalid value."""


def set_pools(settings: Settings, slots: dict[str, int]) -> None:
    """Create or resize the pools in the running Airflow.

    Deferred tasks count: a pod holds its GPU while its task is deferred.
    """
    api = AirflowApi.from_settings(settings)
    for name, count in slots.items():
        api.set_pool(name, count, DESCRIPTION, include_deferred=True)


def for_import(slots: dict[str, int]) -> str:
    """Return the file for ``airflow pools import``.

    It is used where the API does not answer yet, as in the job after an installation on a cluster.
    """
    return json.dumps(
        {name: {"slots": count, "description": DESCRIPTION, "include_deferred": True} for name, count in slots.items()}
    )


def missing(engine: Engine, settings: Settings) -> dict[str, int]:
    """Return the settings' pools that Airflow's database lacks, with their slots.

    All of them are returned if the database does not have tables yet.
    """
    wanted = pools_of_settings(settings)
    if not inspect(engine).has_table("slot_pool"):
        return wanted
    with engine.connect() as connection:
        there = set(connection.execute(text("SELECT pool FROM slot_pool")).scalars())
    return {name: slots for name, slots in wanted.items() if name not in there}


def pools_of_settings(settings: Settings) -> dict[str, int]:
    """Return pool -> slots for ``AIRLOOP_POOLS`` and for the projects' other classes.

    The other classes get enough slots for the tasks that this machine runs concurrently. An unnamed
    class with GPUs gets room for one step, because two concurrent steps on one GPU would be slower
    than one after the other.
    """
    named = parse(settings.pools) if settings.pools else {}
    classes = classes_of_projects()
    needed = {name: slots_of_step(name, compute_class) for name, compute_class in classes.items()}
    for name, count in named.items():
        if count < needed.get(name, 0):
            raise PoolsError(
                f"AIRLOOP_POOLS gives {name} {count} slots, and one step of that class takes {needed[name]}: none would"
                " ever run"
            )
    return {
        name: needed[name] if compute_class.gpus else max(needed[name], settings.parallelism)
        for name, compute_class in classes.items()
    } | named


def pools_of_cluster(nodes: Iterable[dict[str, Any]], classes: dict[str, ComputeClass]) -> dict[str, int]:
    """Return pool -> slots, computed from the cluster's nodes.

    For a class with GPUs, count the GPUs of the nodes that it may use. For a class without GPUs,
    count how many steps fit by cores and memory.

    Args:
        nodes: As the API's JSON. Nodes that do not accept pods now (cordoned, or just joining) are
            not counted.

    Raises:
        PoolsError: No node has room for a class. Its pool would be empty, and its steps would wait
            forever. The message names the required resources.
    """
    usable = [node for node in nodes if not node["spec"].get("unschedulable") and node["status"].get("allocatable")]
    slots = {
        name: sum(_room(node, compute_class) for node in usable if _may_go(node, compute_class))
        for name, compute_class in classes.items()
    }
    for name, count in slots.items():
        needed = slots_of_step(name, classes[name])
        if count < needed:
            wanted = ", ".join(f"{k}={v}" for k, v in classes[name].node_selector.items()) or "any"
            compute_class = (
                f"{classes[name].gpus} {classes[name].gpu_resource}"
                if classes[name].gpus
                else f"{classes[name].cpu:g} cores, {classes[name].memory}"
            )
            times = f"{workers} times " if (workers := needed // classes[name].slots) > 1 else ""
            raise PoolsError(
                f"the cluster has no room for one step of compute class {name}: it asks for {times}{compute_class} on"
                f" nodes with labels {wanted}"
            )
    return slots


def nodes_of_cluster() -> list[dict[str, Any]]:
    """Return the nodes of the cluster as the API's JSON.

    The cluster is the one that ``KUBECONFIG`` names, or the one that this process runs in.
    """
    from kubernetes import client, config

    try:
        config.load_config()
    except config.ConfigException as error:
        raise PoolsError(f"no cluster to ask: {error}. Name one with KUBECONFIG") from None
    api = client.CoreV1Api()
    nodes: list[dict[str, Any]] = api.api_client.sanitize_for_serialization(api.list_node().items)
    return nodes


def classes_of_projects() -> dict[str, ComputeClass]:
    """Return the compute classes of all projects, by name.

    Raises:
        PoolsError: Two projects use one name for different GPUs. One pool cannot count both.
    """
    classes: dict[str, tuple[str, ComputeClass]] = {}
    for project in all_projects():
        for name, compute_class in project.compute_classes.items():
            whose, known = classes.setdefault(name, (project.name, compute_class))
            if (known.gpu_resource, known.node_selector, bool(known.gpus)) != (
                compute_class.gpu_resource,
                compute_class.node_selector,
                bool(compute_class.gpus),
            ):
                raise PoolsError(
                    f"compute class {name} goes to other nodes in project {project.name} than in {whose}: give one of"
                    " them another name"
                )
            if compute_class.gpus > known.gpus or compute_class.cpu > known.cpu:
                # The larger step determines the room.
                classes[name] = project.name, compute_class
    return {name: compute_class for name, (_, compute_class) in sorted(classes.items())}


def slots_of_step(name: str, compute_class: ComputeClass) -> int:
    """Return the slots that the largest step of a compute class takes.

    A class's candidates may have several workers. Projects may differ in both.
    """
    takes = [
        project.compute_classes[name].slots * project.workers(name)
        for project in all_projects()
        if name in project.compute_classes
    ]
    return max([compute_class.slots, *takes])


def parse(text: str) -> dict[str, int]:
    """Parse ``cpu=4,gpu_a=2`` into a dict.

    Raises:
        PoolsError: The text has another format.
    """
    pools: dict[str, int] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        match = re.fullmatch(r"([a-z][a-z0-9_]{1,39})\s*=\s*([1-9][0-9]*)", part)
        if not match:
            raise PoolsError(f"AIRLOOP_POOLS has '{part}'; write each pool as name=slots, like cpu=4,gpu_a=2")
        pools[match[1]] = int(match[2])
    return pools


def _room(node: dict[str, Any], compute_class: ComputeClass) -> int:
    allocatable = node["status"]["allocatable"]
    if compute_class.gpus:
        return int(allocatable.get(compute_class.gpu_resource, 0)) // compute_class.gpus * compute_class.gpus
    return int(
        min(
            _amount(allocatable["cpu"]) / compute_class.cpu,
            _amount(allocatable["memory"]) / _amount(compute_class.memory),
        )
    )


def _may_go(node: dict[str, Any], compute_class: ComputeClass) -> bool:
    labels = node["metadata"].get("labels") or {}
    taints = [
        t
        for t in node["spec"].get("taints") or []
        if t["effect"] in ("NoSchedule", "NoExecute") and not t["key"].startswith("node.kubernetes.io/")
    ]
    return compute_class.node_selector.items() <= labels.items() and all(
        any(_tolerates(t, taint) for t in compute_class.tolerations) for taint in taints
    )


def _tolerates(toleration: Any, taint: dict[str, Any]) -> bool:
    same_value = toleration.operator == "Exists" or toleration.value == taint.get("value")
    return toleration.key == taint["key"] and same_value and toleration.effect in (None, taint["effect"])


def _amount(quantity: str) -> float:
    """Convert a Kubernetes quantity, e.g. 500m, 2 or 24581696Ki, to a number."""
    units = {"m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
    unit = next((u for u in sorted(units, key=len, reverse=True) if quantity.endswith(u)), "")
    return float(quantity.removesuffix(unit)) * units.get(unit, 1)
