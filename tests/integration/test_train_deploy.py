"""The real train and deploy DAGs with child processes, an MLflow registry and an HTTP service.

The service follows the alias. Only the training set is made up (its builder has its own tests).
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from include import ledger
from include.data import layout
from include.projects import get_project
from include.settings import REPOSITORY, get_settings
from tests.stores import on_both_stores_if_asked
from tests.unit.training import made_up

FLIGHTS = get_project("flights")
FIRST, LATER = "2013-02-03T00:00:00Z", "2013-03-10T00:00:00Z"
TREES = ["hist_gradient_boosting"]


class Service:
    """Stand-in for serving that reports to serve the champion.

    It does not do so for the versions that it refuses or never loads.
    """

    def __init__(self):
        self.refused, self.slow, self.seen = set(), set(), []
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.end_headers()
                self.wfile.write(json.dumps(service.answer()).encode())

            def log_message(self, *_):
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.served = None

    def answer(self):
        from include.registry import versions

        wanted = versions.aliases(FLIGHTS).get("champion")
        if wanted in self.refused:
            return {
                "name": "flights",
                "version": self.served,
                "state": "refused",
                "error": f"version {wanted}: golden request 0 is off",
            }
        if wanted not in self.slow:
            self.served = wanted
        return {"name": "flights", "version": self.served, "state": "ready", "error": None}


@pytest.fixture(scope="module")
def rows():
    """Return rows whose outcome follows another rule from day 35 on.

    The first model therefore soon degrades.
    """
    return made_up.examples(FLIGHTS, days=70, a_day=400, turns_on=35)


@pytest.fixture
def loop(run_dag, fresh_store, stores, rows, tmp_path, monkeypatch):
    """Create the test's own store, registry and service. Return the service."""
    from include.features import training_set
    from include.registry.client import registry_client

    service = Service()
    uri = stores.mlflow or f"sqlite:///{tmp_path / 'mlflow.db'}"
    for name, value in {
        "MLFLOW_TRACKING_URI": uri,
        "AIRLOOP_SERVING_PORT": str(service.server.server_port),
        "AIRLOOP_SERVING_TIMEOUT": "3",
    }.items():
        monkeypatch.setenv(name, value)
    get_settings.cache_clear()
    monkeypatch.setattr(training_set, "build", lambda project, request: made_up.write(project, request, rows))
    registry_client().create_experiment(
        "flights", artifact_location=str(tmp_path / "artifacts")
    )  # otherwise below the working directory
    yield service
    service.server.shutdown()
    service.server.server_close()


def aliases():
    from include.registry import versions

    return versions.aliases(FLIGHTS)


def version_count():
    from include.registry.client import registry_client

    return len(registry_client().search_model_versions("name = 'flights'"))


def requests_by_reason():
    return {r.reason: r for r in ledger.requests("flights")}


@on_both_stores_if_asked
# Ten whole DAG runs with some fifteen child processes.
@pytest.mark.timeout(1800)
def test_the_loop_trains_deploys_refuses_and_replaces(loop, run_dag):
    # The first model: the floor and the baseline decide, and all candidates are fitted.
    first = run_dag("flights__train", {"cutoff": FIRST, "reason": "first_model"})
    assert first.state == "success", first.log[-3000:]
    assert first.tasks["announce_challenger"] == "success"
    request = requests_by_reason()["first_model"]
    assert dict(first.events)["flights.challenger_model"] == first.results["register"]
    assert {"version": "1", "gate": "passed", "request": request.id, "cutoff": FIRST}.items() <= first.results[
        "register"
    ].items()
    assert all(len(json.dumps(result)) < 1024 for result in first.results.values())
    assert aliases() == {"challenger": "1"} and requests_by_reason()["first_model"].state == "passed"
    assert ledger.stage_record("flights", "train", FIRST)["summary"]["fits"] == 3
    assert (layout.report(FLIGHTS, "flights__train", first.run_id, "evaluate") / "index.html").exists()
    # The child's output is in the task's log.
    assert "torch_mlp: fitted in" in first.log

    deployed = run_dag("flights__deploy", {"cutoff": FIRST})
    assert deployed.state == "success", deployed.log[-3000:]
    assert deployed.tasks["rollback"] == "skipped"
    assert aliases() == {"challenger": "1", "champion": "1"} and requests_by_reason()["first_model"].state == "deployed"
    assert ("flights.champion_model", {"cutoff": FIRST, "version": "1"}) in deployed.events
    assert ledger.stage_record("flights", "deploy", FIRST)["summary"]["state"] == "deployed"

    # The outcome follows another rule by now. A person requests a training on the days since.
    ledger.open_episode("flights", at="2013-03-01T00:00:00Z", evidence={"auc": 0.5})
    better = run_dag(
        "flights__train", {"cutoff": LATER, "reason": "drift_seen_by_a_person", "candidates": TREES, "last_days": 30}
    )
    assert better.state == "success" and better.results["register"]["gate"] == "passed", better.log[-3000:]
    assert run_dag("flights__deploy", {"cutoff": LATER}).state == "success"
    assert aliases() == {"challenger": "2", "champion": "2", "previous": "1"}
    # A champion that was trained on the drifted data closes the episode.
    assert ledger.current_episode("flights") is None

    # There is no new data to judge on. The model is refused but registered, nothing is announced,
    # and the run succeeds.
    lost = run_dag("flights__train", {"cutoff": LATER, "reason": "again", "candidates": TREES})
    assert lost.state == "success" and lost.tasks["announce_challenger"] == "skipped" and not lost.events
    assert (
        requests_by_reason()["again"].state == "refused"
        and "judged on 0 rows" in requests_by_reason()["again"].outcome["reasons"][0]
    )
    assert aliases() == {"challenger": "2", "champion": "2", "previous": "1"} and version_count() == 3
    assert [d["verdict"] for d in ledger.decisions("flights", "gate")] == ["passed", "passed", "refused"]

    # The same deployment again, and that of the first model by a duplicate event: nothing changes.
    again = run_dag("flights__deploy", {"cutoff": LATER})
    assert again.state == "success" and aliases() == {"challenger": "2", "champion": "2", "previous": "1"}
    assert ledger.get_request(requests_by_reason()["drift_seen_by_a_person"].id).state == "deployed"

    # A person goes back to version 1, which serving now refuses. Version 2 is restored, visibly.
    loop.refused.add("1")
    failed = run_dag("flights__deploy", {"version": "1"})
    assert (
        failed.state == "failed"
        and failed.tasks["wait_for_serving"] == "failed"
        and failed.tasks["rollback"] == "success"
    )
    assert failed.tasks["announce_champion"] == "upstream_failed" and not failed.events
    assert "golden request 0 is off" in failed.log
    assert aliases() == {"challenger": "2", "champion": "2", "previous": "1"}
    assert "rolled_back" in [d["verdict"] for d in ledger.decisions("flights", "deploy")]

    # The same, but serving never loads it.
    loop.refused.clear()
    loop.slow.add("1")
    late = run_dag("flights__deploy", {"version": "1"})
    assert late.state == "failed" and "did not serve version 1 within 3 s" in late.log
    assert aliases() == {"challenger": "2", "champion": "2", "previous": "1"}

    # A person moves the alias while a rollout waits. Their choice stays.
    from include.registry import versions

    threading.Thread(
        target=lambda: (wait_for_champion("1"), versions.move_alias(FLIGHTS, "champion", "3")), daemon=True
    ).start()
    overtaken = run_dag("flights__deploy", {"version": "1"})
    assert overtaken.state == "failed" and aliases()["champion"] == "3"
    assert "overtaken" in [d["verdict"] for d in ledger.decisions("flights", "deploy")]


def wait_for_champion(version, seconds=120):
    deadline = time.monotonic() + seconds
    while aliases().get("champion") != version and time.monotonic() < deadline:
        time.sleep(0.05)


# All of its work is done, but not recorded.
WHERE = {
    "fit": "include.training.steps:_write",
    "evaluate": "include.training.evaluation:evaluation_page",
    "refit": "include.training.steps:_write",
}


@on_both_stores_if_asked
def test_a_training_step_that_is_killed_and_run_again_makes_one_version(loop, run_dag, monkeypatch):
    from include.dag_kit.compute import TrainingStep

    # The first try of every step is killed. This loop stands in for Airflow's retries.
    whole, kills = TrainingStep._run, []

    def killed_first(step, module, arguments):
        kills.append(f"{step.command}-{step.arguments.get('candidate')}")
        with pytest.raises(Exception, match="exit code -9"):
            whole(step, "tests.integration.dying_step", [WHERE[step.command], *arguments])
        whole(step, module, arguments)

    monkeypatch.setattr(TrainingStep, "_run", killed_first)
    run = run_dag("flights__train", {"cutoff": FIRST, "reason": "first_model", "candidates": TREES})
    assert run.state == "success", run.log[-3000:]
    assert sorted(kills) == ["evaluate-None", "fit-baseline_rule", "fit-hist_gradient_boosting", "refit-None"]
    assert version_count() == 1 and aliases() == {"challenger": "1"}
    from include.registry.client import registry_client

    experiment = registry_client().get_experiment_by_name("flights").experiment_id
    assert sorted(r.data.tags["candidate"] for r in registry_client().search_runs([experiment])) == [
        "baseline_rule",
        "hist_gradient_boosting",
        "request",
    ]
    assert len(registry_client().search_logged_models([experiment])) == 1


def test_a_step_that_fails_says_why(loop, run_dag):
    run = run_dag("flights__train", {"cutoff": FIRST, "reason": "first_model", "candidates": ["no_such_thing"]})
    assert run.state == "failed" and run.tasks["choose_candidates"] == "failed"
    assert "has no candidate 'no_such_thing'; it has hist_gradient_boosting, torch_mlp, baseline_rule" in run.log
    assert aliases() == {}


ORPHAN = """
from include.dag_kit.compute import TrainingStep
step = TrainingStep(task_id="fit", project="flights", command="fit", arguments={})
step._run("timeit", ["-n", "1", "-s", "import time", "time.sleep(600)"])
"""


@pytest.mark.parametrize("warm", ["", "yes"])
def test_a_child_dies_with_its_task(airflow_home, warm):
    task = subprocess.Popen(
        [sys.executable, "-c", ORPHAN],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "AIRFLOW_WORKERS_ARE_WARM": warm},
    )
    try:
        children = []
        deadline = time.monotonic() + 60
        while not children and time.monotonic() < deadline:
            time.sleep(0.2)
            listed = subprocess.run(
                ["ps", "-o", "pid=", "--ppid", str(task.pid)], capture_output=True, text=True, check=False
            ).stdout
            children = [int(pid) for pid in listed.split()]
        assert children
        time.sleep(0.5)
    finally:
        task.send_signal(signal.SIGKILL)
        task.wait()
    deadline = time.monotonic() + 10
    while alive(children[0]) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive(children[0])


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_step_that_ends_well_without_a_manifest_is_a_failure(airflow_home, fresh_store):
    from types import SimpleNamespace

    from airflow.sdk.exceptions import AirflowException

    from include.dag_kit.compute import TrainingStep

    step = TrainingStep(
        task_id="fit", project="flights", command="fit", arguments={"request": "abc", "candidate": "torch_mlp"}
    )
    step._run = lambda module, arguments: None
    ti = SimpleNamespace(dag_id="flights__train", run_id="run_1", task_id="fit", try_number=1, max_tries=0)
    with pytest.raises(AirflowException, match="wrote no manifest at .*fit-torch_mlp.json"):
        step.execute({"ti": ti})
