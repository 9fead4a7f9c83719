"""Defaults that all DAGs of all projects share."""

from datetime import timedelta
from typing import Any

from airflow.sdk import Param

from include.dag_kit.retries import OUTAGES, RETRIES, BackendOutageRetryPolicy
from include.projects.base import Project


def cutoff_param() -> dict[str, Param]:
    """Return the cutoff parameter of runs that a person or the schedule starts.

    Runs started by an asset event find the cutoff in the event. Each DAG needs its own object:
    Airflow writes the value of a run into the object if the DAG runs in one process
    (``dag.test()``).
    """
    about = "Use only what was known by this time (ISO 8601 with time zone). Empty: the project's present."
    return {"cutoff": Param(None, type=["null", "string"], format="date-time", description=about)}


def export_storage_env(context: Any) -> None:
    """Give the task's processes access to the object store before the task's work begins.

    This also applies to mapped tasks. Airflow stores this docstring with the DAG.
    """
    from include.dag_kit import storage

    storage.export_storage_env()


def default_args(project: Project) -> dict[str, Any]:
    return {
        "owner": project.owner,
        "retries": RETRIES + OUTAGES,
        # After an error of its own, a task has RETRIES of them.
        "retry_policy": BackendOutageRetryPolicy(),
        "retry_delay": timedelta(seconds=5),
        "execution_timeout": timedelta(hours=1),
        "pre_execute": export_storage_env,
    }


# Airflow fails a run that takes longer, so that the next one can begin. The limit is longer than
# all retries of a run's tasks take while a store is unavailable.
RUN_TIMEOUT = timedelta(days=1)


def training_timeout(project: Project) -> timedelta:
    """Return how long a run of `train` may take.

    This is ``RUN_TIMEOUT`` plus twice the sum of the time limits of all training steps.
    """

    def longest(compute: str) -> timedelta:
        limits = project.compute_class(compute)
        return limits.timeout + limits.schedule_timeout + limits.start_timeout

    fits = sum(
        (longest(c.compute) * (1 + (c.search.trials if c.search else 0)) for c in project.candidates), timedelta()
    )
    rule_and_judgement = 2 * longest("cpu")
    return RUN_TIMEOUT + 2 * (fits + rule_and_judgement + max(longest(compute) for compute in project.refitting))


def deployment_timeout(project: Project) -> timedelta:
    """Return how long a run of `deploy` may take.

    This is ``RUN_TIMEOUT`` plus the time limits of the rollout's steps and of a person's approval.
    """
    approval = project.rollout.approval
    return RUN_TIMEOUT + project.rollout.patience + (approval.within if approval else timedelta())


def tags(stage: str, project: Project) -> list[str]:
    return [project.name, stage]
