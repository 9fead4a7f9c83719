"""Create a project: a folder with five files from templates, all of them or none."""

import keyword
import re
import shutil
import tempfile
from pathlib import Path

from include.projects import OURS, folders, shown
from include.projects.base import TaskKind
from include.settings import REPOSITORY, get_settings

TEMPLATES = Path(__file__).parent / "templates"
# Letters. The names of views begin with the project's name and may have 40.
LONGEST = 20
WORDS = {
    TaskKind.BINARY: {"label": "returned", "figure": "return_rate"},
    TaskKind.REGRESSION: {"label": "delivery_hours", "figure": "delivery_hours"},
}


class ProjectNameError(ValueError):
    """Raised when a project cannot have this name. The message has the reason and the fix."""


def place_for_projects() -> Path:
    """Return the folder for a new project: the first of AIRLOOP_PROJECTS, or include/projects."""
    return next(iter(get_settings().project_folders), Path(OURS[0]))


def new_project(name: str, kind: TaskKind | str, folder: Path | None = None) -> list[Path]:
    """Write the project's files to a folder of ``folder``. Return their paths.

    Args:
        folder: the folder that contains projects. Default: see ``place_for_projects``.

    Raises:
        ProjectNameError: the name is taken, or is not valid for a Python package, DAGs and a
            registered model.
        ValueError: there is no such kind.
    """
    folder = folder or place_for_projects()
    check_name(name, folder)
    files = render(name, TaskKind(kind))
    if not folder.is_dir():
        raise ProjectNameError(f"there is no folder {folder} for projects; create it, or correct AIRLOOP_PROJECTS")
    package = folder / name
    # A scan for projects ignores this folder, so that it finds no incomplete project.
    draft = Path(tempfile.mkdtemp(prefix=".new-project-", dir=folder))
    try:
        draft.chmod(0o755)
        for part, text in files.items():
            (draft / part).write_text(text)
        try:
            draft.rename(package)
        except OSError as error:
            if not package.exists():
                raise
            raise ProjectNameError(f"another process has just created {package}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return sorted(package.glob("*.py"))


def check_name(name: str, folder: Path) -> None:
    """Raise ProjectNameError if a project in the folder cannot have the name."""
    if not re.fullmatch(rf"[a-z][a-z0-9_]{{1,{LONGEST - 1}}}", name):
        raise ProjectNameError(
            f"'{name}' cannot be a project's name: 2 to {LONGEST} small letters, digits and _, the first one a letter;"
            " e.g. late_parcels"
        )
    if "__" in name or name.endswith("_"):
        raise ProjectNameError(
            f"'{name}' cannot be a project's name: DAG ids are <project>__<stage>, so it must not contain a double _ or"
            " end in _"
        )
    if keyword.iskeyword(name) or keyword.issoftkeyword(name):
        raise ProjectNameError(f"'{name}' cannot be a project's name: it is a word of Python's")
    searched = dict.fromkeys([folder, *folders()])
    places = [path for one in searched for path in (one / name, one / f"{name}.py")]
    places.append(REPOSITORY / "feature_repo" / f"{name}.py")
    if taken := [shown(path) for path in places if path.exists()]:
        raise ProjectNameError(
            f"the name '{name}' is taken: there is {', '.join(taken)}. Choose another name, or delete that first"
        )


def render(name: str, kind: TaskKind) -> dict[str, str]:
    """Return file name -> content."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False
    )
    values = {
        "name": name,
        "title": name.replace("_", " ").capitalize(),
        "binary": kind == TaskKind.BINARY,
        "customer": f"{name}_customer",
        "product": f"{name}_product",
        **WORDS[kind],
    }
    templates = {
        "__init__.py": "project",
        "expectations.py": "expectations",
        "features.py": "features",
        "feed.py": "feed",
        "feast.py": "feast",
    }
    return {
        path: environment.get_template(f"{template}.py.jinja").render(values) for path, template in templates.items()
    }
