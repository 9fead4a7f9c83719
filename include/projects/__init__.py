"""The projects: one folder each, found by looking. ``all_projects`` is what every DAG file iterates over."""

from functools import cache
from importlib import import_module
from pathlib import Path

from include.projects.base import Project
from include.settings import get_settings


class UnknownProject(ValueError):
    """No folder of that name under include/projects."""


@cache
def get_project(name: str) -> Project:
    """The project of that name.

    Raises:
        UnknownProject: there is no such folder; the message lists the ones there are.
        TypeError: its ``__init__.py`` does not define ``project = Project(...)``.
    """
    if name not in project_names():
        raise UnknownProject(f"no project '{name}' under include/projects; there is {', '.join(project_names()) or 'none'}")
    project = getattr(import_module(f"include.projects.{name}"), "project", None)
    if not isinstance(project, Project) or project.name != name:
        raise TypeError(f"include/projects/{name}/__init__.py must define project = Project(name={name!r}, ...)")
    days = get_settings().sample_days
    return project.on_sample(days) if days else project


def project_names() -> list[str]:
    """Names of all projects, sorted (the order in which DAGs are made must not change between parses)."""
    chosen = get_settings().projects
    if chosen:
        return sorted(name.strip() for name in chosen.split(","))
    return sorted(p.parent.name for p in Path(__file__).parent.glob("*/__init__.py"))


def all_projects() -> list[Project]:
    return [get_project(name) for name in project_names()]
