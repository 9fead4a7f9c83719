"""The projects: one folder each, found by looking. ``all_projects`` is what every DAG file iterates over.

A project that cannot be loaded concerns nobody else: ``all_projects`` leaves it out, ``broken_projects`` tells it.
"""

import traceback
from functools import cache
from importlib import import_module
from pathlib import Path

from include.projects.base import Project
from include.settings import get_settings


class UnknownProject(ValueError):
    """No folder of that name under include/projects."""


class BrokenProject(ValueError):
    """A project cannot be loaded. The message names its file, the line and the reason."""

    def __init__(self, name: str, place: str, reason: str) -> None:
        super().__init__(f"project '{name}' cannot be loaded: {place}: {reason}")
        self.name, self.place, self.reason = name, place, reason


@cache
def get_project(name: str) -> Project:
    """The project of that name.

    Raises:
        UnknownProject: there is no such folder; the message lists the ones there are.
        BrokenProject: it cannot be imported, or its ``__init__.py`` does not define ``project = Project(...)``.
    """
    if name not in project_names():
        raise UnknownProject(f"no project '{name}' under include/projects; there is {', '.join(project_names()) or 'none'}")
    file = f"include/projects/{name}/__init__.py"
    try:
        project = getattr(import_module(f"include.projects.{name}"), "project", None)
    except (Exception, SystemExit) as error:  # whatever a project's code raises
        raise BrokenProject(name, place_of(error, name) or file, f"{type(error).__name__}: {error}") from error
    if not isinstance(project, Project) or project.name != name:
        raise BrokenProject(name, file, f"it must define project = Project(name={name!r}, ...)")
    days = get_settings().sample_days
    return project.on_sample(days) if days else project


def project_names() -> list[str]:
    """Names of all projects, sorted (the order in which DAGs are made must not change between parses)."""
    chosen = get_settings().projects
    if chosen:
        return sorted(name.strip() for name in chosen.split(","))
    return sorted(file.parent.name for folder in __path__ for file in Path(folder).glob("*/__init__.py"))


def all_projects() -> list[Project]:
    """Return the projects that can be loaded, by name."""
    return _loaded()[0]


def broken_projects() -> list[BrokenProject]:
    """Return what is wrong with each of the others."""
    return _loaded()[1]


def place_of(error: BaseException, name: str) -> str | None:
    """Return file and line, in the project's own code, where an error comes from; None: it comes from no line of it."""
    places = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, SyntaxError):
        places.append((error.filename or "", error.lineno))
    own = [(file, line) for file, line in places if Path(file).parent.name == name or f"/projects/{name}/" in file]
    if not own:
        return None
    file, line = own[-1]
    return f"include/projects/{name}{file.rpartition(f'/{name}')[2]}, line {line}"


def _loaded() -> tuple[list[Project], list[BrokenProject]]:
    loaded: list[Project] = []
    broken: list[BrokenProject] = []
    for name in project_names():
        try:
            loaded.append(get_project(name))
        except UnknownProject as error:  # AIRLOOP_PROJECTS names it
            broken.append(BrokenProject(name, "AIRLOOP_PROJECTS", str(error)))
        except BrokenProject as error:
            broken.append(error)
    return loaded, broken
