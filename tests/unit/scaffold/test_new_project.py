"""A generated project is complete and formatted, and its functions respect the order of time.

A bad name leaves nothing behind.
"""

import errno
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pandas as pd
import pytest

from include.projects.base import Project, TaskKind
from include.scaffold.new_project import ProjectNameError, new_project
from include.settings import REPOSITORY
from include.training.metrics import check_direction, metrics_of


@pytest.fixture
def repository(tmp_path):
    """Create a folder for projects, with one project."""
    (tmp_path / "ours").mkdir()
    return tmp_path


@pytest.fixture(params=TaskKind)
def made(request, repository, monkeypatch):
    """Generate a project of each kind and load its modules from there."""
    monkeypatch.setenv("AIRLOOP_FEAST_SOURCES", "/store")
    new_project("parcels", request.param, repository)
    folder = repository / "parcels"
    parts = {part: load(folder / f"{part}.py") for part in ("expectations", "features", "feed")}
    return SimpleNamespace(
        kind=request.param,
        project=load(folder / "__init__.py").project,
        feast=load(folder / "feast.py"),
        **parts,
    )


def load(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"made_{file.parent.name}_{file.stem}", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


class Known:
    """The feed's rows as ``include.features.known.KnownTables`` returns them."""

    def __init__(self, made, cutoff):
        self._made, self.cutoff = made, pd.Timestamp(cutoff)

    def __call__(self, name, *, since=None):
        rows, known_at = self._made.feed.upstream()[name], self._made.project.source(name).known_at
        known = rows[known_at] <= self.cutoff
        return rows[known & (rows[known_at] > pd.Timestamp(since))] if since else rows[known]


def test_it_writes_five_files_and_nothing_else(repository):
    before = files(repository)
    written = new_project("parcels", "binary", repository)
    package = {f"parcels/{part}.py" for part in ("__init__", "expectations", "features", "feast", "feed")}
    assert files(repository) - before == package == {str(path.relative_to(repository)) for path in written}


@pytest.mark.parametrize("kind", TaskKind)
def test_every_file_says_what_to_write_and_is_as_the_linter_wants_it(repository, kind):
    written = new_project("parcels", kind, repository)
    assert [
        path.name for path in written if "# Write: " not in path.read_text() and " Write: " not in path.read_text()
    ] == []
    for path in written:
        for command in (["check"], ["format", "--check", "--diff"]):
            as_if = ["--no-cache", "--stdin-filename", f"include/projects/parcels/{path.name}", "-"]
            text = path.read_text()
            done = subprocess.run(
                [sys.executable, "-m", "ruff", *command, *as_if],
                cwd=REPOSITORY,
                input=text,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stdout + done.stderr


def test_the_project_is_one_that_the_gate_understands(made):
    assert isinstance(made.project, Project) and made.project.kind == made.kind
    assert made.project.metric.name in metrics_of(made.kind)
    check_direction(made.project.metric)


def test_feast_declares_what_the_project_names_under_names_of_its_own(made):
    from feast import Entity, FeatureService, FeatureView

    objects = {
        kind: [o.name for o in made.feast.OBJECTS if isinstance(o, kind)]
        for kind in (Entity, FeatureView, FeatureService)
    }
    assert set(objects[FeatureView]) == set(made.project.feature_views)
    assert set(objects[Entity]) == set(made.project.entities)
    assert objects[FeatureService] == [made.project.feature_service]
    assert all(name.startswith("parcels_") for names in objects.values() for name in names)


def test_compute_and_examples_give_the_declared_columns(made):
    cutoff = made.feed.first_moment() + pd.Timedelta(days=40)
    views = made.features.compute(Known(made, cutoff), since=None, cutoff=cutoff)
    assert set(views) == set(made.project.feature_views)
    features = {f for view in made.feast.VIEWS for f in [feature.name for feature in view.features]}
    assert features <= {c for rows in views.values() for c in rows}
    examples = made.features.examples(Known(made, cutoff), since=None, until=cutoff, cutoff=cutoff)
    assert {
        *made.project.example_key,
        *made.project.entities,
        *made.project.request_features,
        "event_timestamp",
        "label",
        "label_known_at",
    } <= set(examples)
    assert set(made.project.input_columns) <= features | set(examples)
    assert examples["label"].notna().mean() > 0.7 and examples["label"].isna().any()
    assert (examples["label_known_at"].dropna() <= pd.Timestamp(cutoff)).all()
    assert not examples.duplicated(list(made.project.example_key)).any()


def test_a_run_over_new_data_alone_gives_the_rows_of_a_run_over_all(made):
    middle, cutoff = (made.feed.first_moment() + pd.Timedelta(days=days, hours=5) for days in (35, 44))
    whole = made.features.compute(Known(made, cutoff), since=None, cutoff=cutoff)
    first = made.features.compute(Known(made, middle), since=None, cutoff=middle)
    second = made.features.compute(Known(made, cutoff), since=middle, cutoff=cutoff)
    for view, rows in whole.items():
        entity = rows.columns[0]
        together = pd.concat([first[view], second[view]]).sort_values([entity, "event_timestamp"], ignore_index=True)
        # Float sums from another starting point differ in their last digits.
        pd.testing.assert_frame_equal(
            together, rows.sort_values([entity, "event_timestamp"], ignore_index=True), rtol=1e-9
        )


def test_the_upstream_is_the_same_each_time_and_has_something_to_find(made):
    first = made.feed.upstream()
    made.feed.upstream.cache_clear()
    for name, rows in made.feed.upstream().items():
        pd.testing.assert_frame_equal(rows, first[name])
        assert set(made.project.source(name).columns) == set(rows)
        assert (
            rows[made.project.source(name).known_at]
            .between(pd.Timestamp(made.feed.first_moment()), pd.Timestamp(made.feed.last_moment()))
            .all()
        )
    cutoff = made.feed.last_moment()
    examples = made.features.examples(Known(made, cutoff), since=None, until=cutoff, cutoff=cutoff)
    later = examples["event_timestamp"] >= pd.Timestamp(made.feed.first_moment()) + pd.Timedelta(
        days=made.feed.NEW_SUPPLIER
    )
    assert examples["label"].notna().all()
    assert examples[later]["label"].mean() > 1.2 * examples[~later]["label"].mean()


def test_its_expectations_hold_for_its_own_feed(made):
    from include.data.validation import validate

    for name, rows in made.feed.upstream().items():
        suite = made.expectations.source_suite(name)
        assert suite and validate(name, rows.reset_index(drop=True), suite).broken == []
    cutoff = made.feed.first_moment() + pd.Timedelta(days=40)
    for view, rows in made.features.compute(Known(made, cutoff), since=None, cutoff=cutoff).items():
        suite = made.expectations.feature_suite(view)
        assert suite and validate(view, rows, suite).broken == []


@pytest.mark.parametrize(
    ("name", "why"),
    [
        pytest.param("Parcels", "small letters", id="a capital letter is no small one"),
        pytest.param("late-parcels", "small letters", id="a hyphen cannot stand in a package's name"),
        pytest.param("2parcels", "first one a letter", id="a digit cannot begin a package's name"),
        pytest.param("p", "2 to 20", id="one letter is too short"),
        pytest.param("p" * 21, "2 to 20", id="the names of views would grow too long"),
        pytest.param("../parcels", "small letters", id="a path is no name"),
        pytest.param("late__parcels", "<project>__<stage>", id="two underscores part project and stage in a DAG id"),
        pytest.param("parcels_", "<project>__<stage>", id="an underscore at the end would join those two"),
        pytest.param("import", "Python", id="a word of Python's cannot be imported"),
        pytest.param("ours", "taken: there is .*/ours", id="a project of that name is there"),
        pytest.param("flights", "taken: there is include/projects/flights", id="a project of Airloop's has that name"),
        pytest.param(
            "base", "taken: there is include/projects/base.py", id="a module of include/projects has that name"
        ),
        pytest.param("shared", "taken: there is feature_repo/shared.py", id="a module of feature_repo has that name"),
    ],
)
def test_a_name_that_would_not_do_is_refused_and_nothing_is_written(repository, name, why):
    before = files(repository)
    with pytest.raises(ProjectNameError, match=why):
        new_project(name, "binary", repository)
    assert files(repository) == before


def test_an_unknown_kind_is_refused_and_nothing_is_written(repository):
    before = files(repository)
    with pytest.raises(ValueError, match="ranking"):
        new_project("parcels", "ranking", repository)
    assert files(repository) == before


def test_whoever_was_faster_keeps_the_name(repository, monkeypatch):
    """The faster of two processes keeps the name.

    The folder appears between the check and the move.
    """
    monkeypatch.setattr(
        "include.scaffold.new_project.check_name",
        lambda *_: (repository / "parcels").mkdir() or (repository / "parcels/x.py").touch(),
    )
    before = files(repository)
    with pytest.raises(ProjectNameError, match="another process"):
        new_project("parcels", "binary", repository)
    assert files(repository) == {*before, "parcels/x.py"}
    assert [path for path in repository.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("step", ["write_text", "rename"])
def test_a_full_disk_is_reported_as_such_and_leaves_nothing(repository, monkeypatch, step):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    before = files(repository)
    monkeypatch.setattr(Path, step, full)
    with pytest.raises(OSError, match="No space left"):
        new_project("parcels", "binary", repository)
    assert files(repository) == before and sorted(path.name for path in repository.iterdir()) == ["ours"]
