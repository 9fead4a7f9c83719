"""Delete abandoned training pods.

A pod is abandoned if its run was cancelled, or its task was marked or cleared, while no triggerer
watched it.

* **Starts** every five minutes where training steps are pods (`AIRLOOP_COMPUTE=kubernetes`).
  Otherwise this DAG does not exist.
* **Updates** only the training namespace. An abandoned pod would hold its GPU until its own
  deadline.
* **Safe to rerun**: a pod is deleted only if two checks find that its task has ended, and its
  result path is in the store of this deployment.
* **On failure**: `docs/runbooks/train.md`
"""

from datetime import timedelta

from airflow.sdk import dag

from include.dag_kit import schedules
from include.dag_kit.projects import steps_are_pods
from include.dag_kit.tasks import sweep_pods as tasks


@dag(
    dag_id="airloop__sweep_pods",
    schedule=schedules.clock("*/5 * * * *"),
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(minutes=10),
    # Retries are not needed, because the next run does the same work.
    default_args={"owner": "airloop", "execution_timeout": timedelta(minutes=4)},
    tags=["airloop"],
    doc_md=__doc__,
)
def sweep_pods():
    tasks.delete_abandoned_pods()


if steps_are_pods():
    sweep_pods()
