"""A made project in folders of the test's own, which a test may break and load again."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import feature_repo
import include.projects
from include.projects import get_project
from include.scaffold.new_project import new_project
from tests.homes import forget_home


@pytest.fixture
def parcels(tmp_path, monkeypatch):
    """The project, with ``edit(file, old, new)`` and ``regression``; its name is ``parcels``."""
    monkeypatch.setenv("AIRLOOP_HOME", str(tmp_path / "home"))
    repository = tmp_path / "repository"
    for folder in ("include/projects", "feature_repo"):
        (repository / folder).mkdir(parents=True)
    monkeypatch.setattr(include.projects, "__path__", [*include.projects.__path__, str(repository / "include/projects")])
    monkeypatch.setattr(feature_repo, "__path__", [*feature_repo.__path__, str(repository / "feature_repo")])
    new_project("parcels", "binary", repository)

    def file(part: str) -> Path:
        return repository / ("feature_repo/parcels.py" if part == "feast" else f"include/projects/parcels/{part}.py")

    def edit(part: str, old: str, new: str) -> None:
        text = file(part).read_text()
        assert old in text
        file(part).write_text(text.replace(old, new))
        forget()

    def forget() -> None:
        get_project.cache_clear()
        for name in [name for name in sys.modules if name.startswith("include.projects.parcels")]:
            del sys.modules[name]
        vars(include.projects).pop("parcels", None)

    forget_home()
    forget()
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # an edit within one second has the same time stamp
    yield SimpleNamespace(name="parcels", file=file, edit=edit, home=tmp_path / "home", repository=repository)
    forget()
    forget_home()
