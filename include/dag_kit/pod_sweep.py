"""Training pods for which nobody waits any more.

A step's pod is watched, and deleted if a person ends its task, by a trigger. Airflow forgets the trigger of a task that is ended while no triggerer runs
it: in the seconds before it takes the trigger over, or as long as none is up. That pod would hold its GPU until its own deadline. So its task is looked up.
"""

import logging
import time
from collections.abc import Callable
from typing import Any

from include.settings import Settings

TASK, RESULT = "airloop/task", "airloop/result"  # annotations: whose the pod is, as ``task_of`` writes it, and the URI of its manifest
ENDED = frozenset({"success", "failed", "skipped", "upstream_failed", "removed"})
PAUSE = 20.0  # seconds between two looks: a task that ends well or badly sees to its pod itself
States = Callable[..., dict[str, dict[str, Any]]]  # RuntimeTaskInstance.get_task_states

log = logging.getLogger(__name__)


def task_of(ti: Any) -> str:
    """Whose a pod is: DAG, task with its map index, run; no DAG's or task's name has a slash."""
    task = ti.task_id if ti.map_index is None or ti.map_index < 0 else f"{ti.task_id}_{ti.map_index}"
    return f"{ti.dag_id}/{task}/{ti.run_id}"


def sweep(settings: Settings, states: States, *, pause: float = PAUSE) -> list[str]:
    """Delete the pods and Jobs of this house whose tasks have ended, and do so at a second look; gives their names.

    Args:
        states: of a DAG's tasks in some runs: run -> task (``task_3`` if mapped) -> state.
    """
    from airflow.providers.cncf.kubernetes.hooks.kubernetes import KubernetesHook
    from kubernetes import client

    hook = KubernetesHook(conn_id=settings.kubernetes_connection)

    def look() -> dict[str, dict[str, Any]]:
        found = hook.core_v1_client.list_namespaced_pod(settings.kubernetes_namespace, label_selector="airloop/manifest").items
        return {
            pod["metadata"]["uid"]: pod
            for pod in abandoned([hook.core_v1_client.api_client.sanitize_for_serialization(p) for p in found], settings.store, states)
        }

    first = look()
    if not first:
        return []
    time.sleep(pause)
    gone = []
    for uid, pod in look().items():
        if uid not in first:
            continue
        name, job = pod["metadata"]["name"], pod["metadata"].get("labels", {}).get("batch.kubernetes.io/job-name")
        log.info("Deleting %s: its task %s has ended", f"job {job}" if job else f"pod {name}", pod["metadata"]["annotations"][TASK])
        try:
            if job:  # it would put another pod in this one's place
                hook.batch_v1_client.delete_namespaced_job(job, settings.kubernetes_namespace, body=client.V1DeleteOptions(propagation_policy="Background"))
            else:
                options = client.V1DeleteOptions(preconditions=client.V1Preconditions(uid=uid))
                hook.core_v1_client.delete_namespaced_pod(name, settings.kubernetes_namespace, body=options)
        except client.ApiException as error:
            if error.status not in (404, 409):  # gone meanwhile, as it should
                raise
        gone.append(job or name)
    return sorted(set(gone))


def abandoned(pods: list[dict[str, Any]], store: str, states: States) -> list[dict[str, Any]]:
    """Of the pods, those that run or wait for a task which has ended.

    One whose task Airflow does not know is let alone: it may be another Airflow's. So is one whose result would lie elsewhere.
    """
    found, asked = [], {}
    for pod in pods:
        metadata, phase = pod["metadata"], pod.get("status", {}).get("phase")
        told = metadata.get("annotations") or {}
        whose, ours = told.get(TASK, "").split("/", 2), told.get(RESULT, "").startswith(f"{store.rstrip('/')}/")
        if phase in ("Succeeded", "Failed") or metadata.get("deletionTimestamp") or len(whose) < 3 or not ours:
            continue
        dag_id, task, run_id = whose
        if (dag_id, run_id) not in asked:
            asked[dag_id, run_id] = states(dag_id=dag_id, run_ids=[run_id]).get(run_id, {})
        if asked[dag_id, run_id].get(task) in ENDED:
            found.append(pod)
    return found
