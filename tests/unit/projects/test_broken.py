"""A project that cannot be loaded is reported with file and line, and does not affect others."""

import sys

import pytest

from include.operations.doctor.projects import projects as examined
from include.projects import BrokenProjectError, all_projects, broken_projects, get_project, project_names
from include.settings import get_settings

# Content of __init__.py -> the reported place and words.
BROKEN = {
    "syntax": ("x = 1\ny = (\n", "syntax/__init__.py, line 2", "SyntaxError"),
    "raises": (
        "x = 1\n\nraise ZeroDivisionError('at import')\n",
        "raises/__init__.py, line 3",
        "at import",
    ),
    "lacking": ("import no_such_library\n", "lacking/__init__.py, line 1", "no_such_library"),
    "deeper": ("from include.projects.deeper import part\n", "deeper/part.py, line 2", "NameError"),
    "leaves": ("import sys\nsys.exit(3)\n", "leaves/__init__.py, line 2", "SystemExit"),
    "empty": ("", "empty/__init__.py", "it must define project"),
    "other": ("project = 7\n", "other/__init__.py", "it must define project"),
    "invalid": (
        "from include.projects.base import Project\nproject = Project(name='invalid')\n",
        "invalid/__init__.py, line 2",
        "ValidationError",
    ),
    "recursive": ("def f():\n    f()\nf()\n", "recursive/__init__.py, line 2", "RecursionError"),
    "bytes": ("\ud800", "bytes/__init__.py, line 1", "SyntaxError"),
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name, (content, _, _) in BROKEN.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_bytes(content.encode("utf-8", "surrogatepass"))
    (tmp_path / "deeper" / "part.py").write_text("x = 1\nnobody\n")
    monkeypatch.setenv("AIRLOOP_PROJECTS", ",".join([str(tmp_path), "flights", *BROKEN]))
    get_settings.cache_clear()
    get_project.cache_clear()
    yield tmp_path
    monkeypatch.undo()
    get_settings.cache_clear()
    get_project.cache_clear()
    for name in [
        one
        for one in sys.modules
        if one.split(".")[:2] == ["include", "projects"] and one.split(".")[2:3] in [[name] for name in BROKEN]
    ]:
        del sys.modules[name]


def test_the_others_are_loaded_and_each_broken_one_is_told(folder):
    assert project_names() == sorted(["flights", *BROKEN])
    assert [project.name for project in all_projects()] == ["flights"]
    assert [one.name for one in broken_projects()] == sorted(BROKEN)


@pytest.mark.parametrize("name", BROKEN)
def test_its_file_and_line_are_named(folder, name):
    _, place, words = BROKEN[name]
    with pytest.raises(BrokenProjectError) as error:
        get_project(name)
    assert f"project '{name}' cannot be loaded: {folder}/{place}: " in str(error.value) and words in str(error.value)


def test_a_mended_project_is_loaded(folder):
    (folder / "raises" / "__init__.py").write_text("raise ValueError")
    assert "raises" in [one.name for one in broken_projects()]
    source = (
        "from include.projects.flights import project as flights\nproject = flights.model_copy(update={'name':"
        " 'raises'})\n"
    )
    (folder / "raises" / "__init__.py").write_text(source)
    assert "raises" in [project.name for project in all_projects()]


def test_doctor_finds_them(folder):
    assert [finding.state for finding in examined(None)] == ["fault"] * len(BROKEN)
