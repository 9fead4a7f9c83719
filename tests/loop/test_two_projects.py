"""Two projects run concurrently under one scheduler and share one slot for training steps.

Each ends as if it ran alone.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest

from include.settings import Settings
from include.stack.api import FINAL, AirflowApi
from tests.conftest import CALM
from tests.integration.test_new_project import KINDS, copy  # noqa: F401
from tests.ports import free_port

SKEW_S = 0.5
pytestmark = [pytest.mark.stack, pytest.mark.timeout(3000)]


@pytest.fixture(scope="module")
def environment(copy, tmp_path_factory):  # noqa: F811
    """Start a stack with the copy's code for both generated projects. Return its environment."""
    home = tmp_path_factory.mktemp("two") / "home"
    given = {
        "AIRLOOP_HOME": str(home),
        "AIRLOOP_PROJECTS": ",".join(KINDS),
        "AIRLOOP_POOLS": "cpu=1",
        "AIRLOOP_PARALLELISM": "4",
        "AIRLOOP_RESTART": "false",
        **{f"AIRLOOP_{name}_PORT": str(free_port("")) for name in ("AIRFLOW", "MLFLOW", "SERVING")},
        **CALM,
    }
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AIRLOOP", "AIRFLOW", "MLFLOW", "AWS", "_AIRFLOW", "__AIRFLOW"))
    }
    environment = {**kept, **given, "PYTHONPATH": str(copy)}
    try:
        up = subprocess.run(
            [sys.executable, "-m", "include.cli", "up"],
            cwd=copy,
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert up.returncode == 0, up.stdout + up.stderr
        yield environment
    finally:
        subprocess.run(
            [sys.executable, "-m", "include.cli", "down"],
            cwd=copy,
            env=environment,
            capture_output=True,
            timeout=300,
            check=False,
        )


@pytest.fixture(scope="module")
def api(environment, copy):  # noqa: F811
    settings = Settings(home=Path(environment["AIRLOOP_HOME"]), airflow_port=int(environment["AIRLOOP_AIRFLOW_PORT"]))
    return AirflowApi.from_settings(settings)


@pytest.fixture(scope="module")
def replayed(environment, copy):  # noqa: F811
    """Return project -> the result of its replay. Both ran concurrently."""
    driver = str(Path(__file__).with_name("two_projects.py"))
    running = {
        name: subprocess.Popen(
            [sys.executable, driver, name],
            cwd=copy,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for name in KINDS
    }
    results = {}
    for name, process in running.items():
        out, err = process.communicate(timeout=1500)
        assert process.returncode == 0, (name, out[-2000:], err[-3000:])
        results[name] = json.loads(out.splitlines()[-1])
    return results


@pytest.mark.parametrize("name", KINDS)
def test_each_project_comes_to_a_served_model(replayed, name):
    result = replayed[name]
    trainings = [training["request"] for record in result["records"] for training in record["trainings"]]
    assert [request for _, _, request in sorted(result["versions"])] == trainings and sorted(result["versions"])[0][
        1
    ] == "passed"
    assert result["requests"][0] == ["first_model", "deployed"] and len(result["requests"]) == len(trainings)
    for stage in ("ingest", "build_features", "score", "monitor"):
        assert result["stages"][stage] == result["cutoffs"][-1], stage
    assert {result["stages"]["train"], result["stages"]["deploy"]} <= set(result["cutoffs"])


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


def test_a_training_whose_pool_is_missing_fails_with_its_name_and_goes_on_when_it_is_made(
    replayed,
    api,
    environment,
    copy,  # noqa: F811
):
    """A training whose pool is missing fails, names the pool, and succeeds once the pool exists.

    The run is started as from the UI, so no command of Airloop checks the pool first.
    """
    name = next(iter(KINDS))
    api.call("DELETE", "pools/cpu")
    try:
        run_id = api.trigger(f"{name}__train", {"reason": "without a pool"})
        run = poll(lambda: api.run(f"{name}__train", run_id), lambda run: run["state"] in FINAL)
        assert run["state"] == "failed" and "no pool cpu," in run["note"]
        status = subprocess.run(
            [sys.executable, "-m", "include.cli", "status", name],
            cwd=copy,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert "no pool cpu," in status.stdout, status.stdout + status.stderr
    finally:
        api.set_pool("cpu", 1, "Training steps of both projects.", include_deferred=True)
    api.call("POST", f"dags/{name}__train/dagRuns/{api.quoted(run_id)}/clear", json={"dry_run": False})
    run = poll(lambda: api.run(f"{name}__train", run_id), lambda run: run["state"] in FINAL)
    assert run["state"] == "success", run


def poll(ask: Callable[[], dict], reached: Callable[[dict], bool]) -> dict:
    """Ask until the answer is as expected, for five minutes. Return the last answer."""
    end = time.monotonic() + 300
    while not reached(answer := ask()) and time.monotonic() < end:
        time.sleep(0.5)
    return answer


def _cutoff(api: AirflowApi, run: dict) -> str:
    path = f"dags/{run['dag_id']}/dagRuns/{api.quoted(run['dag_run_id'])}/taskInstances/decide_cutoff/xcomEntries/return_value"  # noqa: E501
    return json.loads(value) if (value := api.call("GET", path)["value"]).startswith('"') else value
