"""Delete training pods whose task has ended.

A trigger watches a step's pod and deletes it if a person ends its task. If no triggerer runs the
trigger at that moment, Airflow discards the trigger with the task. This happens in the seconds
before a triggerer takes it over, or while none is running. The pod would then hold its GPU until
its own deadline. Therefore the task of each pod is looked up here.
"""

import logging
import time
from collections.abc import Callable
from typing import Any

from include.settings import Settings

# Annotations: the pod's task, as ``task_of`` writes it, and the URI of its manifest.
TASK, RESULT = "airloop/task", "airloop/result"
FINAL_TASK_STATES = frozenset({"success", "failed", "skipped", "upstream_failed", "removed"})
# Seconds between the two checks. A task that is just ending deletes its pod itself.
PAUSE = 20.0
# The signature of RuntimeTaskInstance.get_task_states.
States = Callable[..., dict[str, dict[str, Any]]]

log = logging.getLogger(__name__)


def task_of(ti: Any) -> str:
    """Return the identifier of a pod's task: DAG, task with its map index, and run.

    The parts are separated by slashes, which are not allowed in the names of DAGs and tasks.
    """
    task = ti.task_id if ti.map_index is None or ti.map_index < 0 else f"{ti.task_id}_{ti.map_index}"
    return f"{ti.dag_id}/{task}/{ti.run_id}"


def sweep(settings: Settings, states: States, *, pause: float = PAUSE) -> list[str]:
    """Delete this deployment's pods and Jobs whose tasks have ended. Return their names.

    A pod is deleted only if two checks find its task ended.

    Args:
        states: Returns the states of a DAG's tasks in some runs: run -> task (``task_3`` if mapped)
            -> state.
    """
    from airflow.providers.cncf.kubernetes.hooks.kubernetes import KubernetesHook
    from kubernetes import client

    hook = KubernetesHook(conn_id=settings.kubernetes_connection)

    def look() -> dict[str, dict[str, Any]]:
        pods = hook.core_v1_client.list_namespaced_pod(
            settings.kubernetes_namespace, label_selector="airloop/manifest"
        ).items
        return {
            pod["metadata"]["uid"]: pod
            for pod in abandoned(
                [hook.core_v1_client.api_client.sanitize_for_serialization(p) for p in pods], settings.store, states
            )
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
        log.info(
            "Deleting %s: its task %s has ended",
            f"job {job}" if job else f"pod {name}",
            pod["metadata"]["annotations"][TASK],
        )
        try:
            # The Job would replace a deleted pod.
            if job:
                hook.batch_v1_client.delete_namespaced_job(
                    job, settings.kubernetes_namespace, body=client.V1DeleteOptions(propagation_policy="Background")
                )
            else:
                options = client.V1DeleteOptions(preconditions=client.V1Preconditions(uid=uid))
                hook.core_v1_client.delete_namespaced_pod(name, settings.kubernetes_namespace, body=options)
        except client.ApiException as error:
            # The object was deleted or replaced in the meantime.
            if error.status not in (404, 409):
                raise
        gone.append(job or name)
    return sorted(set(gone))


def abandoned(pods: list[dict[str, Any]], store: str, states: States) -> list[dict[str, Any]]:
    """Return the pods that run or wait for a task that has ended.

    A pod is skipped if Airflow does not know its task, because the pod may belong to another
    Airflow. A pod whose result is stored elsewhere is skipped too.
    """
    orphans, states_of_runs = [], {}
    for pod in pods:
        metadata, phase = pod["metadata"], pod.get("status", {}).get("phase")
        annotations = metadata.get("annotations") or {}
        owner, ours = (
            annotations.get(TASK, "").split("/", 2),
            annotations.get(RESULT, "").startswith(f"{store.rstrip('/')}/"),
        )
        if phase in ("Succeeded", "Failed") or metadata.get("deletionTimestamp") or len(owner) < 3 or not ours:
            continue
        dag_id, task, run_id = owner
        if (dag_id, run_id) not in states_of_runs:
            states_of_runs[dag_id, run_id] = states(dag_id=dag_id, run_ids=[run_id]).get(run_id, {})
        if states_of_runs[dag_id, run_id].get(task) in FINAL_TASK_STATES:
            orphans.append(pod)
    return orphans
