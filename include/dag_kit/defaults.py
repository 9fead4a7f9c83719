"""Defaults that every DAG of every project shares."""

from datetime import timedelta

from airflow.sdk import Param

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


def default_args(project: Project) -> dict:
    return {
        "owner": project.owner,
        "retries": 2,  # every task is safe to run again
        "retry_delay": timedelta(seconds=5),
        "execution_timeout": timedelta(hours=1),
    }


def tags(stage: str, project: Project) -> list[str]:
    return [project.name, stage]
