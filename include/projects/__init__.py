"""The projects: one folder each, found automatically. DAG files iterate over ``all_projects``.

The folders are those of this package and of the paths in AIRLOOP_PROJECTS. Each is imported as
``include.projects.<name>``. A project that cannot be loaded does not affect the others:
``all_projects`` omits it, and ``broken_projects`` reports it.
"""

import traceback
from functools import cache
from importlib import import_module
from pathlib import Path

from include.projects.base import Project
from include.settings import REPOSITORY, get_settings

OURS = list(__path__)


class UnknownProjectError(ValueError):
    """Raised when no searched folder contains a project of that name."""


class BrokenProjectError(ValueError):
    """Raised when a project cannot be loaded. The message names file, line and reason."""

    def __init__(self, name: str, place: str, reason: str) -> None:
        super().__init__(f"project '{name}' cannot be loaded: {place}: {reason}")
        self.name, self.place, self.reason = name, place, reason


@cache
def get_project(name: str) -> Project:
    """Return the project of that name.

    Raises:
        UnknownProjectError: there is no such folder. The message lists the existing ones.
        BrokenProjectError: it cannot be imported, or its ``__init__.py`` does not define ``project
            = Project(...)``.
    """
    if name not in project_names():
        raise _unknown(name)
    file = file_name(name, "__init__")
    if len(places := _places(name)) > 1:
        reason = (
            f"there is a project '{name}' in {' and in '.join(shown(place) for place in places)}; rename one of them"
        )
        raise BrokenProjectError(name, "AIRLOOP_PROJECTS", reason)
    try:
        project = getattr(import_module(f"include.projects.{name}"), "project", None)
    # A project's code may raise anything.
    except (Exception, SystemExit) as error:
        # AIRLOOP_PROJECTS names it, and it is in none of the folders.
        if isinstance(error, ModuleNotFoundError) and error.name == f"include.projects.{name}":
            raise _unknown(name) from None
        raise BrokenProjectError(name, place_of(error, name) or file, f"{type(error).__name__}: {error}") from error
    if not isinstance(project, Project) or project.name != name:
        raise BrokenProjectError(name, file, f"it must define project = Project(name={name!r}, ...)")
    days = get_settings().sample_days
    return project.on_sample(days) if days else project


def project_names() -> list[str]:
    """Return the names of all projects, sorted.

    The order in which DAGs are created must not change between parses.
    """
    settings = get_settings()
    searched = folders()
    if settings.project_names:
        return settings.project_names
    if settings.project_folders:
        searched = settings.project_folders
    return sorted({file.parent.name for folder in searched for file in folder.glob("[!.]*/__init__.py")})


def folders() -> list[Path]:
    """Return the folders that contain projects, this package's first. Make them importable.

    ``broken_projects`` reports a folder of AIRLOOP_PROJECTS that does not exist.
    """
    places: dict[Path, str] = {}
    # Ours come first, so that no other folder hides the modules of this package.
    for folder in (*OURS, *map(str, get_settings().project_folders)):
        places.setdefault(Path(folder).resolve(), folder)
    __path__[:] = places.values()
    return [Path(folder) for folder in __path__]


def file_of(name: str, part: str) -> Path:
    """Return the file of a project's module, also if it does not exist.

    Args:
        part: ``__init__``, ``expectations``, ``features``, ``feed`` or ``feast``.
    """
    folder = next(iter(_places(name)), Path(OURS[0]) / name)
    file = folder / f"{part}.py"
    if part == "feast" and not file.is_file() and (older := REPOSITORY / "feature_repo" / f"{name}.py").is_file():
        return older
    return file


def feast_module(name: str) -> str:
    """Return the name of the module that declares a project's Feast objects.

    It is ``feast.py`` of the project's folder. Projects of version 0.1 have it in feature_repo.
    """
    own = file_of(name, "feast").parent.name != "feature_repo"
    return f"include.projects.{name}.feast" if own else f"feature_repo.{name}"


def file_name(name: str, part: str) -> str:
    """Return a file's name for messages, such as ``include/projects/flights/feed.py``."""
    return shown(file_of(name, part))


def shown(path: Path) -> str:
    """Return a path as messages show it: relative to the repository if it is inside."""
    return path.relative_to(REPOSITORY).as_posix() if path.is_relative_to(REPOSITORY) else str(path)


def _unknown(name: str) -> UnknownProjectError:
    searched = [f"{shown(folder)}{'' if folder.is_dir() else ' (missing)'}" for folder in folders()]
    there = sorted({file.parent.name for folder in folders() for file in folder.glob("[!.]*/__init__.py")})
    return UnknownProjectError(
        f"no project '{name}' under {' or '.join(searched)}; there is {', '.join(there) or 'none'}"
    )


def _places(name: str) -> list[Path]:
    return [folder / name for folder in folders() if (folder / name / "__init__.py").is_file()]


def all_projects() -> list[Project]:
    """Return the projects that can be loaded, by name."""
    return _loaded()[0]


def broken_projects() -> list[BrokenProjectError]:
    """Return the error of each project that cannot be loaded."""
    return _loaded()[1]


def place_of(error: BaseException, name: str) -> str | None:
    """Return the file and line in the project's own code that caused an error.

    Return None if no line of the project's code is in the traceback.
    """
    places = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, SyntaxError):
        places.append((error.filename or "", error.lineno))
    files = [*_places(name), REPOSITORY / "feature_repo" / f"{name}.py"]
    own = [(Path(file), line) for file, line in places if any(Path(file).is_relative_to(one) for one in files)]
    if not own:
        return None
    file, line = own[-1]
    return f"{shown(file)}, line {line}"


def _loaded() -> tuple[list[Project], list[BrokenProjectError]]:
    loaded: list[Project] = []
    broken = [
        BrokenProjectError(
            str(folder),
            "AIRLOOP_PROJECTS",
            "there is no such folder; create it, or correct the path (an image or a pod needs it at the same path)",
        )
        for folder in get_settings().project_folders
        if not folder.is_dir()
    ]
    for name in project_names():
        try:
            loaded.append(get_project(name))
        except UnknownProjectError as error:  # named by AIRLOOP_PROJECTS
            broken.append(BrokenProjectError(name, "AIRLOOP_PROJECTS", str(error)))
        except BrokenProjectError as error:
            broken.append(error)
    return loaded, broken
