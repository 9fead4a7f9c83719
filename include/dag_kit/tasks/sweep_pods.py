"""The task of ``dags/sweep_pods.py``."""

from typing import Any

from airflow.sdk import task


@task
def delete_abandoned_pods(*, ti: Any = None) -> list[str]:
    """Delete the pods of tasks that have ended, and return their names."""
    from include.dag_kit.pods.sweep import sweep
    from include.settings import get_settings

    return sweep(get_settings(), ti.get_task_states)
