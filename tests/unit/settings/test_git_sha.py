"""The recorded commit shows whether the code was changed since."""

import subprocess

import pytest

from include.settings import git as settings


@pytest.fixture
def repository(tmp_path, monkeypatch):
    (tmp_path / "include").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "include/a.py").write_text("a")
    for command in (
        ["init", "-q"],
        ["add", "."],
        ["-c", "user.name=a", "-c", "user.email=a@example.com", "commit", "-qm", "a"],
    ):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    monkeypatch.setattr(settings, "REPOSITORY", tmp_path)
    monkeypatch.delenv("AIRLOOP_GIT_SHA", raising=False)
    settings.get_settings.cache_clear()
    settings.git_sha.cache_clear()
    yield tmp_path
    settings.get_settings.cache_clear()
    settings.git_sha.cache_clear()


@pytest.mark.parametrize(
    ("file", "dirty"),
    [(None, False), ("include/a.py", True), ("include/b.py", True), ("data/x", False)],
    ids=["nothing", "a changed file", "a new file", "data"],
)
def test_changed_code_is_dirty_and_data_is_not(repository, file, dirty):
    if file:
        (repository / file).write_text("b")
    commit = settings.git_sha()
    assert len(commit.removesuffix("-dirty")) == 40 and commit.endswith("-dirty") == dirty


def test_git_is_asked_once(repository):
    first = settings.git_sha()
    (repository / "include/a.py").write_text("b")
    assert settings.git_sha() == first


def test_without_a_repository_it_is_unknown(tmp_path, monkeypatch, repository):
    monkeypatch.setattr(settings, "REPOSITORY", tmp_path / "data")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    settings.git_sha.cache_clear()
    assert settings.git_sha() == "unknown"


def test_the_commits_of_projects_in_other_repositories_follow(repository, tmp_path_factory, monkeypatch):
    theirs, unversioned = tmp_path_factory.mktemp("models"), tmp_path_factory.mktemp("plain")
    (theirs / "projects").mkdir()
    (theirs / "projects/p.py").write_text("p")
    for command in (
        ["init", "-q"],
        ["add", "."],
        ["-c", "user.name=a", "-c", "user.email=a@example.com", "commit", "-qm", "a"],
    ):
        subprocess.run(["git", *command], cwd=theirs, check=True)
    (theirs / "elsewhere").touch()
    monkeypatch.setenv("AIRLOOP_PROJECTS", f"{theirs}/projects,{unversioned},/nowhere/at/all")
    settings.get_settings.cache_clear()
    own, projects, *unknown = settings.git_sha().split(".")
    assert len(own) == len(projects) == 40 and own != projects and unknown == ["unknown", "unknown"]

    (theirs / "projects/p.py").write_text("q")
    settings.git_sha.cache_clear()
    assert settings.git_sha() == f"{own}.{projects}-dirty.unknown.unknown"
