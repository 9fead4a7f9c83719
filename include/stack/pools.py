"""Airflow's pools: one a compute class, so that no more steps run than there are GPUs. A step takes as many slots as GPUs, at least one a worker."""

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
    """The pools cannot be told from what was given; the message says what is wrong with it."""


def set_pools(settings: Settings, slots: dict[str, int]) -> None:
    """Makes or resizes the pools in the running Airflow. What is deferred counts: a pod holds its GPU while no worker waits for it."""
    api = AirflowApi.of(settings)
    for name, count in slots.items():
        api.set_pool(name, count, DESCRIPTION, include_deferred=True)


def for_import(slots: dict[str, int]) -> str:
    """The file that ``airflow pools import`` takes: where no API answers yet, as in the job that follows an installation on a cluster."""
    return json.dumps({name: {"slots": count, "description": DESCRIPTION, "include_deferred": True} for name, count in slots.items()})


def missing(engine: Engine, settings: Settings) -> dict[str, int]:
    """The pools of the settings that Airflow's database does not have, with their slots; all of them where it has no tables yet."""
    wanted = pools_of_settings(settings)
    if not inspect(engine).has_table("slot_pool"):
        return wanted
    with engine.connect() as connection:
        there = set(connection.execute(text("SELECT pool FROM slot_pool")).scalars())
    return {name: slots for name, slots in wanted.items() if name not in there}


def pools_of_settings(settings: Settings) -> dict[str, int]:
    """Pool -> slots: those of ``AIRLOOP_POOLS``, and for the other classes of the projects enough for what this machine runs at once.

    A class with GPUs that is not named gets room for one step: two at once on one GPU would be worse than one after the other.
    """
    named = parse(settings.pools) if settings.pools else {}
    classes = classes_of_projects()
    needed = {name: slots_of_step(name, of) for name, of in classes.items()}
    for name, count in named.items():
        if count < needed.get(name, 0):
            raise PoolsError(f"AIRLOOP_POOLS gives {name} {count} slots, and one step of that class takes {needed[name]}: none would ever run")
    return {name: needed[name] if of.gpus else max(needed[name], settings.parallelism) for name, of in classes.items()} | named


def pools_of_cluster(nodes: Iterable[dict[str, Any]], classes: dict[str, ComputeClass]) -> dict[str, int]:
    """Pool -> slots: the GPUs of the nodes that a class may go to; for a class without GPU how many of its steps fit by cores and memory.

    Args:
        nodes: as the API's JSON. Those that take no pods now (cordoned, or only just joining) are not counted.

    Raises:
        PoolsError: a class has no node, so that its pool would be of size 0 and its steps would wait for ever; the message says what it looks for.
    """
    usable = [node for node in nodes if not node["spec"].get("unschedulable") and node["status"].get("allocatable")]
    slots = {name: sum(_room(node, of) for node in usable if _may_go(node, of)) for name, of in classes.items()}
    for name, count in slots.items():
        needed = slots_of_step(name, classes[name])
        if count < needed:
            wanted = ", ".join(f"{k}={v}" for k, v in classes[name].node_selector.items()) or "any"
            of = f"{classes[name].gpus} {classes[name].gpu_resource}" if classes[name].gpus else f"{classes[name].cpu:g} cores, {classes[name].memory}"
            times = f"{workers} times " if (workers := needed // classes[name].slots) > 1 else ""
            raise PoolsError(f"the cluster has no room for one step of compute class {name}: it asks for {times}{of} on nodes with labels {wanted}")
    return slots


def nodes_of_cluster() -> list[dict[str, Any]]:
    """The nodes of the cluster that ``KUBECONFIG`` names (or the one that this process runs in), as the API's JSON."""
    from kubernetes import client, config

    try:
        config.load_config()
    except config.ConfigException as error:
        raise PoolsError(f"no cluster to ask: {error}. Name one with KUBECONFIG") from None
    api = client.CoreV1Api()
    return api.api_client.sanitize_for_serialization(api.list_node().items)


def classes_of_projects() -> dict[str, ComputeClass]:
    """The compute classes of all projects, by name.

    Raises:
        PoolsError: two projects mean different GPUs by one name: one pool cannot count both.
    """
    found: dict[str, tuple[str, ComputeClass]] = {}
    for project in all_projects():
        for name, of in project.compute_classes.items():
            whose, known = found.setdefault(name, (project.name, of))
            if (known.gpu_resource, known.node_selector, bool(known.gpus)) != (of.gpu_resource, of.node_selector, bool(of.gpus)):
                raise PoolsError(f"compute class {name} goes to other nodes in project {project.name} than in {whose}: give one of them another name")
            if of.gpus > known.gpus or of.cpu > known.cpu:
                found[name] = project.name, of  # room is counted by the bigger step
    return {name: of for name, (_, of) in sorted(found.items())}


def slots_of_step(name: str, of: ComputeClass) -> int:
    """Slots that the biggest step of a compute class takes: its candidates may have several workers. Projects may differ in both."""
    takes = [project.compute_classes[name].slots * project.workers(name) for project in all_projects() if name in project.compute_classes]
    return max([of.slots, *takes])


def parse(text: str) -> dict[str, int]:
    """``cpu=4,gpu_a=2`` as a dict.

    Raises:
        PoolsError: it is not written so.
    """
    pools: dict[str, int] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        match = re.fullmatch(r"([a-z][a-z0-9_]{1,39})\s*=\s*([1-9][0-9]*)", part)
        if not match:
            raise PoolsError(f"AIRLOOP_POOLS has '{part}'; write each pool as name=slots, like cpu=4,gpu_a=2")
        pools[match[1]] = int(match[2])
    return pools


def _room(node: dict[str, Any], of: ComputeClass) -> int:
    allocatable = node["status"]["allocatable"]
    if of.gpus:
        return int(allocatable.get(of.gpu_resource, 0)) // of.gpus * of.gpus
    return int(min(_amount(allocatable["cpu"]) / of.cpu, _amount(allocatable["memory"]) / _amount(of.memory)))


def _may_go(node: dict[str, Any], of: ComputeClass) -> bool:
    labels = node["metadata"].get("labels") or {}
    taints = [t for t in node["spec"].get("taints") or [] if t["effect"] in ("NoSchedule", "NoExecute") and not t["key"].startswith("node.kubernetes.io/")]
    return of.node_selector.items() <= labels.items() and all(any(_tolerates(t, taint) for t in of.tolerations) for taint in taints)


def _tolerates(toleration: Any, taint: dict[str, Any]) -> bool:
    same_value = toleration.operator == "Exists" or toleration.value == taint.get("value")
    return toleration.key == taint["key"] and same_value and toleration.effect in (None, taint["effect"])


def _amount(quantity: str) -> float:
    """Any quantity of Kubernetes: 500m, 2, 24581696Ki."""
    units = {"m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
    unit = next((u for u in sorted(units, key=len, reverse=True) if quantity.endswith(u)), "")
    return float(quantity.removesuffix(unit)) * units.get(unit, 1)
