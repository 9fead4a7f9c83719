"""A project that cannot be loaded is told by file and line, and stops no other one."""

import sys

import pytest

from include import projects
from include.operations.doctor.projects import projects as examined
from include.projects import BrokenProject, all_projects, broken_projects, get_project, project_names

# Content of __init__.py -> the place and words that are told of it.
BROKEN = {
    "syntax": ("x = 1\ny = (\n", "include/projects/syntax/__init__.py, line 2", "SyntaxError"),
    "raises": ("x = 1\n\nraise ZeroDivisionError('at import')\n", "include/projects/raises/__init__.py, line 3", "at import"),
    "lacking": ("import no_such_library\n", "include/projects/lacking/__init__.py, line 1", "no_such_library"),
    "deeper": ("from include.projects.deeper import part\n", "include/projects/deeper/part.py, line 2", "NameError"),
    "leaves": ("import sys\nsys.exit(3)\n", "include/projects/leaves/__init__.py, line 2", "SystemExit"),
    "empty": ("", "include/projects/empty/__init__.py", "it must define project"),
    "other": ("project = 7\n", "include/projects/other/__init__.py", "it must define project"),
    "invalid": (
        "from include.projects.base import Project\nproject = Project(name='invalid')\n",
        "include/projects/invalid/__init__.py, line 2",
        "ValidationError",
    ),
    "recursive": ("def f():\n    f()\nf()\n", "include/projects/recursive/__init__.py, line 2", "RecursionError"),
    "bytes": ("\ud800", "include/projects/bytes/__init__.py, line 1", "SyntaxError"),
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name, (content, _, _) in BROKEN.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_bytes(content.encode("utf-8", "surrogatepass"))
    (tmp_path / "deeper" / "part.py").write_text("x = 1\nnobody\n")
    monkeypatch.setattr(projects, "__path__", [*projects.__path__, str(tmp_path)])
    get_project.cache_clear()
    yield tmp_path
    get_project.cache_clear()
    for name in [one for one in sys.modules if one.split(".")[:2] == ["include", "projects"] and one.split(".")[2:3] in [[name] for name in BROKEN]]:
        del sys.modules[name]


def test_the_others_are_loaded_and_each_broken_one_is_told(folder):
    assert project_names() == sorted(["flights", *BROKEN])
    assert [project.name for project in all_projects()] == ["flights"]
    assert [one.name for one in broken_projects()] == sorted(BROKEN)


@pytest.mark.parametrize("name", BROKEN)
def test_its_file_and_line_are_named(folder, name):
    _, place, words = BROKEN[name]
    with pytest.raises(BrokenProject) as told:
        get_project(name)
    assert f"project '{name}' cannot be loaded: {place}: " in str(told.value) and words in str(told.value)


def test_a_mended_project_is_loaded(folder):
    (folder / "raises" / "__init__.py").write_text("raise ValueError")
    assert "raises" in [one.name for one in broken_projects()]
    source = "from include.projects.flights import project as flights\nproject = flights.model_copy(update={'name': 'raises'})\n"
    (folder / "raises" / "__init__.py").write_text(source)
    assert "raises" in [project.name for project in all_projects()]


def test_doctor_finds_them(folder):
    assert [finding.state for finding in examined(None)] == ["fault"] * len(BROKEN)
