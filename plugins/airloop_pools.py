"""Fail a run of a project's DAG at its start if the pool of a task does not exist.

Airflow keeps a task of a missing pool in ``scheduled`` until ``dagrun_timeout``, and only the
scheduler's log names the pool. This plugin names the pool in the note of the failed run, which the
UI shows. Airflow calls the listener in the scheduler, within the transaction that starts the run.
Therefore this module imports only the listener's base classes.
"""

import logging
import sys

from airflow.listeners import hookimpl
from airflow.plugins_manager import AirflowPlugin

log = logging.getLogger(__name__)


@hookimpl
def on_dag_run_running(dag_run, msg):
    if missing := missing_pools(dag_run):
        dag_run.note = note(missing)
        dag_run.set_state("failed")
        log.error("%s %s: %s", dag_run.dag_id, dag_run.run_id, dag_run.note)


def missing_pools(dag_run) -> list[str]:
    """Return the pools of the run's unfinished tasks that Airflow does not have, sorted by name."""
    from airflow.models.pool import Pool
    from airflow.models.taskinstance import TaskInstance
    from sqlalchemy import select
    from sqlalchemy.orm import object_session

    from include.projects.base import STAGES

    session = object_session(dag_run)
    # DAGs that do not belong to Airloop keep Airflow's behaviour.
    if session is None or dag_run.dag_id.partition("__")[2] not in STAGES:
        return []
    # The run has changes that are not flushed yet, and this query must not flush them.
    with session.no_autoflush:
        of_run = (
            TaskInstance.dag_id == dag_run.dag_id,
            TaskInstance.run_id == dag_run.run_id,
            TaskInstance.state.is_(None),
        )
        wanted = select(TaskInstance.pool).where(*of_run, TaskInstance.pool.not_in(select(Pool.pool))).distinct()
        return sorted(session.scalars(wanted))


def note(missing: list[str]) -> str:
    return (
        f"Airflow has no pool {', '.join(missing)}, so tasks of this run would wait for ever. To do: make it with"
        " `airloop sync-pools`, then clear this run."
    )


class PoolsPlugin(AirflowPlugin):
    name = "airloop_pools"
    listeners = [sys.modules[__name__]]
