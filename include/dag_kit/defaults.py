"""Defaults that every DAG of every project shares."""

from datetime import timedelta

from airflow.sdk import Param

from include.dag_kit.retries import OUTAGES, RETRIES, PatientWithStores
from include.projects.base import Project


def cutoff_param() -> dict[str, Param]:
    """Return the parameter of runs that a person or the schedule starts; runs started by an asset event find the cutoff in the event.

    A new one for each DAG: Airflow writes the value of a run into the object itself where a DAG is run in one process (``dag.test()``).
    """
    about = "Use only what was known by this time (ISO 8601 with time zone). Empty: the project's present."
    return {"cutoff": Param(None, type=["null", "string"], format="date-time", description=about)}


def hand_on_storage(context) -> None:
    """Before a task's work begins, mapped or not: what its processes need to get at the object store. Airflow keeps this text with the DAG."""
    from include.dag_kit import storage

    storage.hand_on_storage()


def default_args(project: Project) -> dict:
    return {
        "owner": project.owner,
        "retries": RETRIES + OUTAGES,
        "retry_policy": PatientWithStores(),  # after an error of its own a task has RETRIES of them
        "retry_delay": timedelta(seconds=5),
        "execution_timeout": timedelta(hours=1),
        "pre_execute": hand_on_storage,
    }


# A run that takes longer hangs: Airflow fails it, so that the next one can begin. Longer than all retries of its tasks take while a store is away.
RUN_TIMEOUT = timedelta(days=1)


def training_timeout(project: Project) -> timedelta:
    """Return how long a run of `train` may take: ``RUN_TIMEOUT``, and twice as long as all training steps take one after the other at their limits."""

    def longest(compute: str) -> timedelta:
        limits = project.compute_class(compute)
        return limits.timeout + limits.schedule_timeout + limits.start_timeout

    fits = sum((longest(c.compute) * (1 + (c.search.trials if c.search else 0)) for c in project.candidates), timedelta())
    rule_and_judgement = 2 * longest("cpu")
    return RUN_TIMEOUT + 2 * (fits + rule_and_judgement + max(longest(compute) for compute in project.refitting))


def deployment_timeout(project: Project) -> timedelta:
    """Return how long a run of `deploy` may take: ``RUN_TIMEOUT``, and as long as the rollout's steps and a person's approval may take."""
    approval = project.rollout.approval
    return RUN_TIMEOUT + project.rollout.patience + (approval.within if approval else timedelta())


def tags(stage: str, project: Project) -> list[str]:
    return [project.name, stage]
