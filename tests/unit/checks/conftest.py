"""A generated project in folders of its test, which the test may break and load again."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import include.projects
from include.projects import get_project
from include.scaffold.new_project import new_project
from include.settings import get_settings
from tests.homes import forget_home


@pytest.fixture
def parcels(tmp_path, monkeypatch):
    """Return the project ``parcels`` with ``edit(file, old, new)`` and ``regression``."""
    monkeypatch.setenv("AIRLOOP_HOME", str(tmp_path / "home"))
    projects = tmp_path / "projects"
    projects.mkdir()
    monkeypatch.setenv("AIRLOOP_PROJECTS", f"{projects},parcels,flights")
    get_settings.cache_clear()
    new_project("parcels", "binary")

    def file(part: str) -> Path:
        return projects / "parcels" / f"{part}.py"

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
    # Otherwise an edit within one second has the same time stamp as the bytecode.
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield SimpleNamespace(name="parcels", file=file, edit=edit, home=tmp_path / "home", projects=projects)
    forget()
    forget_home()
