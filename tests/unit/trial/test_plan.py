"""Which stages a try runs, and which results of an earlier try are still valid."""

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

from include import projects
from include.projects import get_project
from include.projects.base import STAGES
from include.settings import get_settings
from include.trial import plan
from include.trial.plan import Sample, sample_of, steps_to

FLIGHTS = get_project("flights")
SINCE = datetime(2013, 1, 1, tzinfo=UTC)
SAMPLE = Sample(1000, SINCE, SINCE + timedelta(days=6), SINCE + timedelta(days=9))
FILES = {
    "dags/ingest.py",
    "dags/build_features.py",
    "dags/train.py",
    "include/dag_kit/tasks/train.py",
    "include/data/ingest.py",
    "include/features/build.py",
    "include/training/steps.py",
    "include/projects/base.py",
    "include/projects/flights/__init__.py",
    "include/projects/flights/feed.py",
    "include/projects/flights/features.py",
    "include/projects/flights/expectations.py",
    "include/projects/flights/feast.py",
    "include/projects/other/features.py",
    "include/projects/other/feast.py",
}


@pytest.fixture
def repository(tmp_path, monkeypatch):
    for file in FILES:
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(file)
    monkeypatch.setattr(plan, "REPOSITORY", tmp_path)
    monkeypatch.setattr(projects, "OURS", [str(tmp_path / "include/projects")])
    monkeypatch.setenv("AIRLOOP_DAGS_FOLDER", str(tmp_path / "dags"))
    get_settings.cache_clear()
    yield tmp_path
    monkeypatch.undo()
    get_settings.cache_clear()


def names(stage):
    return [step.stage for step in steps_to(stage, FLIGHTS, SAMPLE)]


def test_every_stage_is_made_of_something():
    assert set(plan.MADE_OF) == {plan.FEED, *STAGES}


def test_the_stages_that_one_needs_come_before_it():
    assert names("ingest") == ["feed", "ingest"]
    assert names("train") == ["feed", "ingest", "build_features", "train"]
    once = ["feed", "ingest", "build_features", "train", "deploy"]
    assert names("deploy") == once
    assert names("monitor") == [*once, "feed", "ingest", "build_features", "score", "monitor"]


def test_a_champion_is_trained_before_what_it_is_tried_on():
    steps = steps_to("score", FLIGHTS, SAMPLE)
    assert {step.cutoff for step in steps[:5]} == {"2013-01-07T00:00:00Z"}
    assert {step.cutoff for step in steps[5:]} == {"2013-01-10T00:00:00Z"}
    assert [step.since for step in steps if step.since] == ["2013-01-01T00:00:00Z", "2013-01-07T00:00:00Z"]


def test_an_unknown_stage_is_named_with_those_there_are():
    with pytest.raises(plan.UnknownStageError, match="no stage 'tarin'; there is ingest, .*monitor"):
        steps_to("tarin", FLIGHTS, SAMPLE)


@pytest.mark.parametrize(
    ("edited", "still_holds"),
    [
        pytest.param("include/projects/flights/__init__.py", [], id="the project itself: nothing holds"),
        pytest.param("include/projects/flights/feed.py", [], id="its feed: nothing holds"),
        pytest.param("include/projects/flights/expectations.py", ["feed"], id="its expectations: the files hold"),
        pytest.param("include/data/ingest.py", ["feed"], id="how files are taken in: the files hold"),
        pytest.param("dags/ingest.py", ["feed"], id="the DAG file of ingest: the files hold"),
        pytest.param("include/projects/flights/features.py", ["feed", "ingest"], id="its features: the tables hold"),
        pytest.param("include/projects/flights/feast.py", ["feed", "ingest"], id="its Feast objects: the tables hold"),
        pytest.param(
            "include/training/steps.py", ["feed", "ingest", "build_features"], id="a trainer: the features hold"
        ),
        pytest.param(
            "dags/train.py", ["feed", "ingest", "build_features"], id="the tried DAG file: all before it holds"
        ),
        pytest.param(
            "include/dag_kit/tasks/train.py", ["feed", "ingest", "build_features"], id="its tasks: all before it holds"
        ),
        pytest.param(
            "include/projects/other/features.py",
            ["feed", "ingest", "build_features", "train"],
            id="another project's files: all holds",
        ),
        pytest.param(
            "include/projects/other/feast.py",
            ["feed", "ingest", "build_features", "train"],
            id="another project's Feast objects: all holds",
        ),
    ],
)
def test_an_edit_undoes_what_is_made_of_the_file(repository, edited, still_holds):
    before = steps_to("train", FLIGHTS, SAMPLE)
    (repository / edited).write_text("edited")
    after = steps_to("train", FLIGHTS, SAMPLE)
    assert [step.stage for step, other in zip(before, after, strict=True) if step.key == other.key] == still_holds


def test_a_copy_of_the_dag_folder_undoes_only_what_is_edited_in_it(repository, monkeypatch):
    before = steps_to("train", FLIGHTS, SAMPLE)
    copy = Path(shutil.copytree(repository / "dags", repository / "elsewhere" / "my dags"))
    monkeypatch.setenv("AIRLOOP_DAGS_FOLDER", str(copy))
    get_settings.cache_clear()
    assert steps_to("train", FLIGHTS, SAMPLE) == before
    (copy / "build_features.py").write_text("edited")
    after = steps_to("train", FLIGHTS, SAMPLE)
    held = [step.stage for step, other in zip(before, after, strict=True) if step.key == other.key]
    assert held == ["feed", "ingest"]


def test_another_sample_undoes_everything(repository):
    before = steps_to("train", FLIGHTS, SAMPLE)
    after = steps_to("train", FLIGHTS, Sample(2000, SAMPLE.since, SAMPLE.middle, SAMPLE.until))
    assert {step.key for step in before}.isdisjoint(step.key for step in after)


def project_with(**feed):
    return SimpleNamespace(name="other", module=lambda part: SimpleNamespace(**feed))


def test_a_feed_says_what_a_sample_is():
    sample = sample_of(
        project_with(
            first_moment=lambda: SINCE, sample_window=lambda rows: (SINCE, SINCE + timedelta(days=rows / 100))
        ),
        300,
    )
    assert (sample.until, sample.days, sample.middle) == (SINCE + timedelta(days=3), 3, SINCE + timedelta(days=2))


def test_a_feed_that_does_not_say_gives_its_first_weeks():
    sample = sample_of(project_with(first_moment=lambda: SINCE, last_moment=lambda: SINCE + timedelta(days=400)), 300)
    assert sample.days == 28


def test_an_empty_window_is_the_feeds_mistake():
    with pytest.raises(ValueError, match="include/projects/other/feed.py"):
        sample_of(project_with(first_moment=lambda: SINCE, sample_window=lambda rows: (SINCE, SINCE)), 300)


def test_policies_are_cut_to_a_sample_and_never_grow():
    small, long = FLIGHTS.on_sample(10), FLIGHTS.on_sample(10_000)
    assert small.gate.holdout == timedelta(days=1) and small.retrain.window == timedelta(days=10)
    assert small.gate.min_rows < FLIGHTS.gate.min_rows and small.retrain.min_labels < FLIGHTS.retrain.min_labels
    assert (small.gate.floor, small.gate.beat_baseline_by, small.retrain.max_bias) == (
        FLIGHTS.gate.floor,
        FLIGHTS.gate.beat_baseline_by,
        FLIGHTS.retrain.max_bias,
    )
    assert long.gate.holdout == FLIGHTS.gate.holdout and long.retrain.window == FLIGHTS.retrain.window


DECLARED = (
    "LEARN = 0.1\nproject = Project(name='flights', sources=(1,), candidates=(Candidate(learning_rate=0.1),),"
    " gate=GatePolicy(min_rows=1))\n"
)


@pytest.mark.parametrize(
    ("old", "new", "still_holds"),
    [
        pytest.param(
            "learning_rate=0.1",
            "learning_rate=0.2",
            ["feed", "ingest", "build_features"],
            id="a candidate's parameter: the features hold",
        ),
        pytest.param(
            "min_rows=1", "min_rows=2", ["feed", "ingest", "build_features"], id="the gate: the features hold"
        ),
        pytest.param("sources=(1,)", "sources=(2,)", [], id="a source: nothing holds"),
        pytest.param("LEARN = 0.1", "LEARN = 0.2", [], id="a constant, which features may read: nothing holds"),
    ],
)
def test_a_change_for_training_alone_leaves_the_stages_before_it(repository, old, new, still_holds):
    file = repository / "include/projects/flights/__init__.py"
    file.write_text(DECLARED)
    before = steps_to("train", FLIGHTS, SAMPLE)
    file.write_text(DECLARED.replace(old, new))
    after = steps_to("train", FLIGHTS, SAMPLE)
    assert [step.stage for step, other in zip(before, after, strict=True) if step.key == other.key] == still_holds


def test_what_training_alone_reads_is_an_argument_of_a_project():
    assert not plan.TRAINING - type(FLIGHTS).model_fields.keys()
