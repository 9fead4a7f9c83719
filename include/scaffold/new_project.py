"""Makes a project: five files from templates, all of them or none."""

import keyword
import os
import re
import shutil
import tempfile
from pathlib import Path

from include.projects.base import TaskKind
from include.settings import REPOSITORY

TEMPLATES = Path(__file__).parent / "templates"
LONGEST = 20  # letters; names of views begin with the project's and have 40
WORDS = {
    TaskKind.BINARY: {"label": "returned", "figure": "return_rate"},
    TaskKind.REGRESSION: {"label": "delivery_hours", "figure": "delivery_hours"},
}


class NameRefused(ValueError):
    """A project cannot have this name; the message says why, and what to do."""


def new_project(name: str, kind: TaskKind | str, repository: Path = REPOSITORY) -> list[Path]:
    """Write the project's files; gives their paths.

    Raises:
        NameRefused: the name is taken, or would not do as the name of a Python package, of DAGs and of a registered model.
        ValueError: there is no such kind.
    """
    check_name(name, repository)
    files = render(name, TaskKind(kind))
    package, module = repository / "include" / "projects" / name, repository / "feature_repo" / f"{name}.py"
    # Written aside, on the same disk but where nobody looks for projects (a scan of include/projects would find a half one).
    draft = Path(tempfile.mkdtemp(prefix=".new-project-", dir=repository))
    try:
        draft.chmod(0o755)
        (draft / "package").mkdir()
        for part, text in files.items():
            (draft / part).write_text(text)
        _move_in(draft, package, module)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return [*sorted(package.glob("*.py")), module]


def check_name(name: str, repository: Path = REPOSITORY) -> None:
    """Raises NameRefused if a project cannot have the name."""
    if not re.fullmatch(rf"[a-z][a-z0-9_]{{1,{LONGEST - 1}}}", name):
        raise NameRefused(f"'{name}' cannot be a project's name: 2 to {LONGEST} small letters, digits and _, the first one a letter; e.g. late_parcels")
    if "__" in name or name.endswith("_"):
        raise NameRefused(f"'{name}' cannot be a project's name: DAG ids are <project>__<stage>, so it has no double _ and does not end in one")
    if keyword.iskeyword(name) or keyword.issoftkeyword(name):
        raise NameRefused(f"'{name}' cannot be a project's name: it is a word of Python's")
    taken = [
        path
        for path in (repository / "include" / "projects" / name, repository / "include" / "projects" / f"{name}.py", repository / "feature_repo" / f"{name}.py")
        if path.exists()
    ]
    if taken:
        raise NameRefused(
            f"the name '{name}' is taken: there is {', '.join(str(path.relative_to(repository)) for path in taken)}. Choose another name, or delete that first"
        )


def render(name: str, kind: TaskKind) -> dict[str, str]:
    """Path below a draft folder -> content."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
    values = {
        "name": name,
        "title": name.replace("_", " ").capitalize(),
        "binary": kind == TaskKind.BINARY,
        "customer": f"{name}_customer",
        "product": f"{name}_product",
        **WORDS[kind],
    }
    templates = {
        "package/__init__.py": "project",
        "package/expectations.py": "expectations",
        "package/features.py": "features",
        "package/feed.py": "feed",
        "module.py": "feast",
    }
    return {path: environment.get_template(f"{template}.py.jinja").render(values) for path, template in templates.items()}


def _move_in(draft: Path, package: Path, module: Path) -> None:
    """Both or neither. The Feast module first: without the package nobody asks for it."""
    try:
        os.link(draft / "module.py", module)  # fails where a rename would overwrite
    except FileExistsError:
        raise NameRefused(f"somebody else has just made {module}") from None
    try:
        (draft / "package").rename(package)
    except OSError:
        module.unlink()
        raise NameRefused(f"somebody else has just made {package}") from None
