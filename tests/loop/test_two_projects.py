"""Two projects under one scheduler, at the same time, with one slot for the training steps of both: each comes to its end as if it were alone."""

import json
import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest

from include.settings import Settings
from include.stack.api import AirflowApi
from tests.conftest import PARSED_ONCE
from tests.integration.test_new_project import KINDS, copy  # noqa: F401
from tests.loop.stand import free_port

SKEW_S = 0.5
pytestmark = [pytest.mark.stack, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def environment(copy, tmp_path_factory):  # noqa: F811
    """A stack for both made projects that is up, with code and DAGs of the copy; the environment of its commands."""
    home = tmp_path_factory.mktemp("two") / "home"
    given = {
        "AIRLOOP_HOME": str(home), "AIRLOOP_PROJECTS": ",".join(KINDS), "AIRLOOP_POOLS": "cpu=1", "AIRLOOP_PARALLELISM": "4", "AIRLOOP_RESTART": "false",
        **{f"AIRLOOP_{name}_PORT": str(free_port()) for name in ("AIRFLOW", "MLFLOW", "SERVING")}, **PARSED_ONCE,
    }  # fmt: skip
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AIRLOOP", "AIRFLOW", "MLFLOW", "AWS", "_AIRFLOW", "__AIRFLOW"))}
    environment = {**kept, **given, "PYTHONPATH": str(copy)}
    try:
        up = subprocess.run([sys.executable, "-m", "include.cli", "up"], cwd=copy, env=environment, capture_output=True, text=True, timeout=600, check=False)
        assert up.returncode == 0, up.stdout + up.stderr
        yield environment
    finally:
        subprocess.run([sys.executable, "-m", "include.cli", "down"], cwd=copy, env=environment, capture_output=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def api(environment, copy):  # noqa: F811
    settings = Settings(home=Path(environment["AIRLOOP_HOME"]), airflow_port=int(environment["AIRLOOP_AIRFLOW_PORT"]))
    return AirflowApi.of(settings)


@pytest.fixture(scope="module")
def replayed(environment, copy):  # noqa: F811
    """Project -> what its replay came to; both ran at once."""
    driver = str(Path(__file__).with_name("two_projects.py"))
    running = {
        name: subprocess.Popen([sys.executable, driver, name], cwd=copy, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for name in KINDS
    }
    found = {}
    for name, process in running.items():
        out, err = process.communicate(timeout=1500)
        assert process.returncode == 0, (name, out[-2000:], err[-3000:])
        found[name] = json.loads(out.splitlines()[-1])
    return found


@pytest.mark.parametrize("name", KINDS)
def test_each_project_comes_to_a_served_model(replayed, name):
    found = replayed[name]
    trainings = [training["request"] for record in found["records"] for training in record["trainings"]]
    assert [request for _, _, request in sorted(found["versions"])] == trainings and sorted(found["versions"])[0][1] == "passed"
    assert found["requests"][0] == ["first_model", "deployed"] and len(found["requests"]) == len(trainings)
    for stage in ("ingest", "build_features", "score", "monitor"):
        assert found["stages"][stage] == found["cutoffs"][-1], stage
    assert {found["stages"]["train"], found["stages"]["deploy"]} <= set(found["cutoffs"])


def test_the_events_of_one_project_wake_the_dags_of_no_other(replayed, api):
    for name in KINDS:
        own = set(replayed[name]["cutoffs"])
        for stage in ("build_features", "score"):
            runs = [run for run in api.runs(f"{name}__{stage}") if run["run_type"] == "asset_triggered"]
            cutoffs = {_cutoff(api, run) for run in runs}
            assert runs and cutoffs <= own, (name, stage, cutoffs)


def test_no_more_training_steps_run_than_the_shared_pool_has_slots(replayed, api):
    steps = []
    for name in KINDS:
        for run in api.runs(f"{name}__train"):
            steps += [
                (task["start_date"], task["end_date"], name)
                for task in api.task_instances(run["dag_id"], run["dag_run_id"])
                if task["pool"] == "cpu" and task["start_date"]
            ]
    spans = sorted((datetime.fromisoformat(start), datetime.fromisoformat(end), name) for start, end, name in steps)
    assert {name for _, _, name in spans} == set(KINDS) and len(spans) >= 6
    for (_, end, _), (start, _, _) in zip(spans, spans[1:], strict=False):
        assert (start - end).total_seconds() > -SKEW_S, spans


def _cutoff(api: AirflowApi, run: dict) -> str:
    path = f"dags/{run['dag_id']}/dagRuns/{api.quoted(run['dag_run_id'])}/taskInstances/decide_cutoff/xcomEntries/return_value"
    return json.loads(value) if (value := api.call("GET", path)["value"]).startswith('"') else value
