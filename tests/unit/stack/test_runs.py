"""Outcomes of Airflow's runs, from answers of its REST API."""

from datetime import UTC, datetime, timedelta

import pytest

from include.projects import get_project
from include.projects.base import STAGES
from include.stack import runs
from include.stack.api import AirflowApi

NOW = datetime(2026, 1, 10, 12, tzinfo=UTC)


class Airflow:
    """Answers as Airflow's API does.

    ``newest`` holds runs by DAG, newest first. ``tasks`` holds the successive task states by run:
    each query returns the next one.
    """

    quoted = staticmethod(AirflowApi.quoted)

    def __init__(self, newest=None, paused=(), missing=(), tasks=None, logs=None):
        self.newest, self.paused, self.missing, self.tasks, self.logs = (
            newest or {},
            paused,
            missing,
            tasks or {},
            logs or {},
        )
        self.asked = []

    def call(self, method, path, **arguments):
        self.asked.append((path, arguments))
        if path == "pools":
            return {"pools": [{"name": "cpu"}, {"name": "default_pool"}]}
        if path == "dags":
            return {
                "dags": [
                    {"dag_id": f"flights__{s}", "is_paused": s in self.paused} for s in STAGES if s not in self.missing
                ]
            }
        return {"content": self.logs.get(path.split("/taskInstances/")[1].split("/")[0], [])}

    def runs(self, dag_id, limit):
        return [{"dag_id": dag_id} | run for run in self.newest.get(dag_id.partition("__")[2], [])][:limit]

    def run(self, dag_id, run_id):
        states = self.tasks[run_id]
        return {"state": states[0]["run"] if len(states) > 1 else states[0].get("run", "success")}

    def task_instances(self, dag_id, run_id):
        states = self.tasks.get(run_id, [{}])
        return (states.pop(0) if len(states) > 1 else states[0]).get("tasks", [])


def a_run(state, hours=1, name="r"):
    began = (NOW - timedelta(hours=hours)).isoformat()
    return {"dag_run_id": name, "state": state, "start_date": began, "end_date": began}


def task(name, state, index=-1):
    return {"task_id": name, "state": state, "map_index": index, "try_number": 2}


@pytest.fixture(autouse=True)
def now(monkeypatch):
    monkeypatch.setattr("include.times.utc_now", lambda: NOW)


def test_the_newest_ended_run_counts():
    api = Airflow(
        {"train": [a_run("running"), a_run("failed", name="x")], "ingest": [a_run("success"), a_run("failed")]},
        tasks={"x": [{"tasks": [task("fit", "failed"), task("evaluate", "upstream_failed")]}]},
    )
    summary = runs.runs_of(api, "flights")
    (failed,) = summary.failed
    assert (failed.dag_id, failed.run_id, failed.tasks) == (
        "flights__train",
        "x",
        ("fit",),
    ) and "failed at 2026-01-10T11" in str(failed)
    assert (summary.long, summary.missing, summary.paused) == ((), (), ())


def test_paused_and_missing_dags_are_named():
    summary = runs.runs_of(Airflow(paused=("train",), missing=("score",)), "flights")
    assert (summary.paused, summary.missing) == (("flights__train",), ("flights__score",))


@pytest.mark.parametrize(
    ("stage", "state", "hours", "hangs"),
    [
        ("train", "running", 25, False),
        ("train", "running", 27, True),
        ("ingest", "queued", 5, False),
        ("ingest", "queued", 7, True),
        ("deploy", "running", 100, False),
        ("ingest", "success", 100, False),
    ],
)
def test_a_run_that_takes_too_long_hangs(stage, state, hours, hangs):
    summary = runs.runs_of(Airflow({stage: [a_run(state, hours)]}), "flights")
    assert bool(summary.long) == hangs
    assert not hangs or f"flights__{stage} r is {state} since 2026-01-" in summary.long[0]


def test_a_run_is_followed_to_its_end():
    steps = [
        {"run": "queued", "tasks": [task("a", "queued")]},
        {"run": "running", "tasks": [task("a", "running")]},
        {"run": "running", "tasks": [task("a", "success"), task("b", "running", 3)]},
        {"run": "failed", "tasks": [task("a", "success"), task("b", "failed", 3)]},
    ]
    lines = []
    assert (
        runs.follow(Airflow(tasks={"r": steps}), "flights__train", "r", lines.append, timeout=60, every=0) == "failed"
    )
    assert [line.partition("  ")[2] for line in lines] == ["a: running", "a: success", "b[3]: running", "b[3]: failed"]


def test_one_that_goes_on_is_left_after_the_timeout():
    api = Airflow(tasks={"r": [{"run": "running", "tasks": []}]})
    assert runs.follow(api, "flights__train", "r", lambda _: None, timeout=0, every=0) is None


def test_the_last_error_of_each_failed_task_is_told():
    chain = [{"exc_type": "KeyError", "exc_value": "'first'"}, {"exc_type": "ValueError", "exc_value": "no\nrows"}]
    log = [{"event": "x", "error_detail": chain}, {"event": "end"}]
    tasks = {"r": [{"tasks": [task("fit", "failed", 0), task("gate", "upstream_failed"), task("old", "failed")]}]}
    api = Airflow(tasks=tasks, logs={"fit": log, "old": "text"})
    assert list(runs.errors(api, "flights__train", "r")) == ["fit[0]: ValueError: no rows", "old: its log tells more"]
    assert (
        api.asked[0][0] == "dags/flights__train/dagRuns/r/taskInstances/fit/logs/2"
        and api.asked[0][1]["params"]["map_index"] == 0
    )


def test_a_pool_that_is_not_there_is_named():
    waits = [
        {
            "tasks": [
                task("fit_gpu", "scheduled") | {"pool": "gpu"},
                task("fit", "scheduled") | {"pool": "cpu"},
                task("a", "success") | {"pool": "old"},
            ]
        }
    ]
    summary = runs.runs_of(Airflow({"train": [a_run("running")]}, tasks={"r": waits}), "flights")
    assert summary.long == (
        "flights__train r waits for pool gpu, which Airflow does not have: `airloop sync-pools` makes it",
    )
    project = get_project("flights")
    assert runs.missing_pools(Airflow(), project) == []
    on_gpu = project.model_copy(
        update={"candidates": tuple(c.model_copy(update={"compute": "gpu"}) for c in project.candidates)}
    )
    assert runs.missing_pools(Airflow(), on_gpu) == ["gpu"]
