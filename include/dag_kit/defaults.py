"""Defaults that every DAG of every project shares."""

from datetime import timedelta

from airflow.sdk import Param

from include.dag_kit.retries import OUTAGES, RETRIES, PatientWithStores
from include.projects.base import Project

# For runs that a person or the schedule starts; runs started by an asset event find the cutoff in the event.
CUTOFF = {
    "cutoff": Param(
        None,
        type=["null", "string"],
        format="date-time",
        description="Use only what was known by this time (ISO 8601 with time zone). Empty: the project's present.",
    )
}


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


def tags(stage: str, project: Project) -> list[str]:
    return [project.name, stage]
