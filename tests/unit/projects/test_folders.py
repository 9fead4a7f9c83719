"""Projects may be in folders outside of the repository, which AIRLOOP_PROJECTS names."""

import sys
from pathlib import Path

import pytest

from include import projects
from include.dag_kit.pods.names import PodStep, pod_environment
from include.operations.doctor.projects import projects as examined
from include.projects import UnknownProjectError, all_projects, broken_projects, file_name, get_project, project_names
from include.projects.compute import ComputeClass
from include.scaffold.new_project import new_project
from include.settings import SettingsError, get_settings


def forget() -> None:
    get_settings.cache_clear()
    get_project.cache_clear()
    for name in [one for one in sys.modules if one.startswith(("include.projects.mine", "include.projects.yours"))]:
        del sys.modules[name]
    for name in ("mine", "yours"):
        vars(projects).pop(name, None)


@pytest.fixture
def choose(tmp_path, monkeypatch):
    """Return a function that sets AIRLOOP_PROJECTS, with ``{a}`` and ``{b}`` for two folders."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    new_project("mine", "binary", tmp_path / "a")
    new_project("yours", "regression", tmp_path / "b")
    (tmp_path / "a" / ".hidden").mkdir()
    (tmp_path / "a" / ".hidden" / "__init__.py").touch()
    (tmp_path / "a" / "README.md").touch()

    def set_to(value: str) -> None:
        monkeypatch.setenv("AIRLOOP_PROJECTS", value.format(a=tmp_path / "a", b=tmp_path / "b"))
        forget()

    yield set_to
    monkeypatch.undo()
    forget()


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ("", ["flights"]),
        ("{a}", ["mine"]),
        ("{a}, {b}", ["mine", "yours"]),
        ("{a},flights", ["flights"]),
        ("{a},flights,mine", ["flights", "mine"]),
        ("{a},{b},yours", ["yours"]),
        ("{a},{a}", ["mine"]),
        ("flights,flights", ["flights"]),
    ],
)
def test_paths_and_names_select_projects(choose, value, names):
    choose(value)
    assert project_names() == names
    assert [project.name for project in all_projects()] == names and broken_projects() == []


def test_a_project_outside_is_imported_like_one_of_the_repository(choose, tmp_path):
    choose("{a}")
    features = get_project("mine").module("features")
    assert features.__name__ == "include.projects.mine.features" and features.__file__ == str(
        tmp_path / "a/mine/features.py"
    )
    assert file_name("mine", "feast") == str(tmp_path / "a/mine/feast.py")
    assert file_name("flights", "feast") == "include/projects/flights/feast.py"


def test_its_feast_objects_are_those_of_its_folder(choose, monkeypatch):
    from include.features import store

    choose("{a}")
    monkeypatch.setenv("AIRLOOP_FEAST_SOURCES", "/store")
    views = {object_.name for object_ in store._objects(get_project("mine")) if hasattr(object_, "batch_source")}
    assert views == set(get_project("mine").feature_views)


def test_a_module_of_feature_repo_is_read_if_the_folder_has_no_feast_py(choose, tmp_path, monkeypatch):
    (tmp_path / "feature_repo").mkdir()
    (tmp_path / "a/mine/feast.py").rename(tmp_path / "feature_repo/mine.py")
    monkeypatch.setattr(projects, "REPOSITORY", tmp_path)
    choose("{a}")
    assert projects.feast_module("mine") == "feature_repo.mine" and file_name("mine", "feast") == "feature_repo/mine.py"


def test_two_projects_of_one_name_are_refused_with_both_places(choose, tmp_path):
    (tmp_path / "a/mine").rename(tmp_path / "a/flights")
    choose("{a}")
    (broken,) = broken_projects()
    assert "include/projects/flights and in " in str(broken) and str(tmp_path / "a/flights") in str(broken)
    assert all_projects() == []


def test_a_folder_that_hides_a_module_of_ours_hides_nothing(choose, tmp_path):
    (tmp_path / "a/base").mkdir()
    (tmp_path / "a/base/__init__.py").write_text("raise RuntimeError")
    choose("{a}")
    assert [project.name for project in all_projects()] == ["mine"]
    assert [one.name for one in broken_projects()] == ["base"] and "must define project" in str(broken_projects()[0])


def test_a_missing_folder_is_reported_and_does_not_stop_the_others(choose):
    choose("{a},/nowhere/projects")
    assert [project.name for project in all_projects()] == ["mine"]
    (broken,) = broken_projects()
    assert "'/nowhere/projects' cannot be loaded: AIRLOOP_PROJECTS: there is no such folder" in str(broken)
    assert [finding.state for finding in examined(None)] == ["fault"]


def test_a_named_project_that_is_nowhere_is_reported_with_the_searched_folders(choose, tmp_path):
    """A pod whose image lacks the folder fails with this message."""
    choose("/nowhere/projects,mine")
    with pytest.raises(UnknownProjectError, match=r"'mine' under include/projects or /nowhere/projects \(missing\)"):
        get_project("mine")
    choose("{a},yours,mine")
    assert [project.name for project in all_projects()] == ["mine"]
    (broken,) = broken_projects()
    assert f"no project 'yours' under include/projects or {tmp_path / 'a'}; there is flights, mine" in str(broken)


def test_two_paths_to_one_folder_are_one_folder(choose, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "a")
    choose("{a}," + str(tmp_path / "link") + "," + str(tmp_path / "b" / ".." / "a") + "," + projects.OURS[0])
    assert project_names() == ["flights", "mine"] and broken_projects() == []


def test_a_relative_path_is_refused(choose):
    choose("models/projects")
    with pytest.raises(SettingsError, match="'models/projects' is a relative path.*write an absolute path"):
        get_settings()


def test_a_new_project_goes_to_the_first_folder(choose, tmp_path):
    choose("{b},{a}")
    assert {path.parent for path in new_project("theirs", "binary")} == {tmp_path / "b" / "theirs"}
    assert Path(projects.__path__[0]).name == "projects", "Airloop's own folder is searched first"


def test_a_pod_gets_the_folders_and_its_project_alone(choose, tmp_path):
    choose("{a},{b}")
    step = PodStep("mine", "1", "fit", "manifest", "cpu", "sha")
    environment = pod_environment(get_settings(), step, ComputeClass())
    assert environment["AIRLOOP_PROJECTS"] == f"{tmp_path / 'a'},{tmp_path / 'b'},mine"
