"""A project's stages share one scratch store. The log of a failed try ends with its traceback."""

import json
import sys
from datetime import UTC, datetime, timedelta

import pytest

from include.projects import get_project
from include.settings import get_settings
from include.trial.plan import Sample, steps_to
from include.trial.run import run_dags
from include.trial.scratch import Scratch, TryRunningError, keep

FLIGHTS = get_project("flights")
SINCE = datetime(2013, 1, 1, tzinfo=UTC)
SAMPLE = Sample(1000, SINCE, SINCE + timedelta(days=6), SINCE + timedelta(days=9))


@pytest.fixture
def scratch(tmp_path):
    settings = get_settings().model_copy(update={"home": tmp_path})
    (tmp_path / "try/.template").mkdir(parents=True)
    return lambda stage: Scratch(settings, FLIGHTS, stage, SAMPLE)


def do(scratch, stage):
    """Keep a home after each step of a try, as the process that runs the DAGs does."""
    store, steps = scratch(stage), steps_to(stage, FLIGHTS, SAMPLE)
    store.work.mkdir(parents=True, exist_ok=True)
    for number, step in enumerate(steps):
        keep(store.work, store.keep_folder(number, step), step.key)


@pytest.mark.parametrize(
    ("first", "then", "reused"),
    [
        ("ingest", "build_features", 2),
        ("deploy", "train", 3),
        ("train", "deploy", 4),
        ("score", "monitor", 9),
        ("train", "score", 0),
    ],
)
def test_a_stage_takes_over_what_another_one_has_made(scratch, first, then, reused):
    do(scratch, first)
    steps = steps_to(then, FLIGHTS, SAMPLE)
    assert scratch(then).kept(steps[:-1]) == reused
    assert scratch(first).work == scratch(then).work


def test_a_try_of_an_early_stage_leaves_what_holds_of_later_ones(scratch):
    do(scratch, "deploy")
    do(scratch, "ingest")
    assert scratch("deploy").kept(steps_to("deploy", FLIGHTS, SAMPLE)[:-1]) == 4


def test_two_tries_of_one_project_do_not_mix(scratch):
    with scratch("train").alone(), pytest.raises(TryRunningError), scratch("ingest").alone():
        pass


PROGRAM = """#!{python}
import json, os, sys
events = int(sys.argv[4])
os.write(events, (json.dumps({{"event": "task", "state": "failed", "traceback": "Traceback of the task\\nValueError: why\\n"}}) + "\\n").encode())
os.write(events, (json.dumps({{"event": "failed", "error": "train ended as failed"}}) + "\\n").encode())
os.close(events)
print("what Airflow says as it ends\\n" * 100)
sys.exit(1)
"""  # noqa: E501


def test_the_log_ends_with_the_traceback(scratch, tmp_path, monkeypatch):
    program = tmp_path / "python"
    program.write_text(PROGRAM.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    store = scratch("train")
    store.work.mkdir(parents=True)
    events = list(run_dags(store, FLIGHTS, steps_to("train", FLIGHTS, SAMPLE), 0, None))
    assert [event["event"] for event in events] == ["task", "failed"] and "traceback" not in json.dumps(events)
    log_text = store.log.read_text()
    assert "what Airflow says" in log_text and log_text.endswith("Traceback of the task\nValueError: why\n")


def test_a_try_looks_for_its_project_in_the_same_folders(tmp_path):
    settings = get_settings().model_copy(update={"home": tmp_path, "projects": "/srv/models,/srv/more,flights,other"})
    store = Scratch(settings, FLIGHTS, "train", SAMPLE)
    assert store.environment()["AIRLOOP_PROJECTS"] == "/srv/models,/srv/more,flights"
