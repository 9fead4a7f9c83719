"""Delete training pods for which nobody waits any more: their run was cancelled, or their task marked or cleared, while no triggerer watched.

* **Starts** every five minutes, where training steps are pods (`AIRLOOP_COMPUTE=kubernetes`); elsewhere there is no such DAG.
* **Updates** the training namespace alone: what it deletes would hold its GPU until its own deadline.
* **Safe to rerun**: a pod goes only if its task has ended, at two looks, and its result would lie in this house's store.
* **On failure**: `docs/runbooks/train.md`
"""

from datetime import timedelta

from airflow.sdk import CronTriggerTimetable, dag, task

from include.dag_kit.projects import steps_are_pods


@dag(
    dag_id="airloop__sweep_pods",
    schedule=CronTriggerTimetable("*/5 * * * *", timezone="UTC", run_immediately=False),
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(minutes=10),
    default_args={"owner": "airloop", "execution_timeout": timedelta(minutes=4)},  # no retries: the next run does it
    tags=["airloop"],
    doc_md=__doc__,
)
def sweep_pods():
    @task
    def delete_abandoned_pods(*, ti=None) -> list[str]:
        from include.dag_kit.pod_sweep import sweep
        from include.settings import get_settings

        return sweep(get_settings(), ti.get_task_states)

    delete_abandoned_pods()


if steps_are_pods():
    sweep_pods()
