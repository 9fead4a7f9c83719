"""Select the projects for which a DAG file creates DAGs during this parse.

Also returns whether this deployment has training pods to clean up.
"""

from airflow.sdk import get_parsing_context

from include.projects import BrokenProjectError, all_projects, broken_projects, get_project, project_names
from include.projects.base import Project
from include.settings import get_settings


def projects_to_parse() -> list[Project]:
    """Return all projects on a scan. Inside a task, return only the project of the running DAG.

    This way, a broken other project does not stop the task.
    """
    running = get_parsing_context().dag_id
    name = running.partition("__")[0] if running else None
    return [get_project(name)] if name in project_names() else all_projects()


def report_broken_projects() -> None:
    """Fail while Airflow parses DAG files, to list projects that cannot be loaded as import errors.

    Raises:
        BrokenProjectError: The message says what is wrong with each of them.
    """
    if get_parsing_context().dag_id is None and (broken := broken_projects()):
        raise BrokenProjectError(
            ", ".join(one.name for one in broken),
            "dags/broken_projects.py reports it",
            "; ".join(str(one) for one in broken),
        ) from broken[0]


def steps_are_pods() -> bool:
    """Return whether training steps run on a cluster."""
    return get_settings().compute == "kubernetes"
