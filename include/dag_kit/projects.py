"""For which projects a DAG file makes DAGs at this parse, and whether the house has pods to tidy up."""

from airflow.sdk import get_parsing_context

from include.projects import BrokenProject, all_projects, broken_projects, get_project, project_names
from include.projects.base import Project
from include.settings import get_settings


def projects_to_parse() -> list[Project]:
    """All projects on a scan; only the running DAG's own inside a task, so that a broken neighbour does not stop it."""
    running = get_parsing_context().dag_id
    name = running.partition("__")[0] if running else None
    return [get_project(name)] if name in project_names() else all_projects()


def report_broken_projects() -> None:
    """Fail where Airflow reads DAG files, so that it lists the projects that cannot be loaded among its import errors.

    Raises:
        BrokenProject: what is wrong with each of them.
    """
    if get_parsing_context().dag_id is None and (broken := broken_projects()):
        raise BrokenProject(", ".join(one.name for one in broken), "dags/broken_projects.py reports it", "; ".join(str(one) for one in broken)) from broken[0]


def steps_are_pods() -> bool:
    """Whether training steps run on a cluster."""
    return get_settings().compute == "kubernetes"
