"""The real monitor DAG on a made-up champion and made-up predictions.

The champion is in a real MLflow registry, and the predictions are in real tables.
"""

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from datetime import timedelta
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from include import ledger
from include.data import layout, tables
from include.ledger import moment
from include.projects import get_project
from include.settings import REPOSITORY, get_settings

FLIGHTS = get_project("flights")
APRIL, MAY, JUNE = "2013-04-01T10:00:00Z", "2013-05-01T10:00:00Z", "2013-06-01T10:00:00Z"
RUNNER = """
import json, os, sys
from airflow.dag_processing.dagbag import DagBag
from airflow.models.asset import AssetEvent
from airflow.utils.session import create_session
from include import ledger
from include.projects import get_project
from include.registry import versions
from include.settings import get_settings

dags, steps, result = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
bag = DagBag(dags + "/monitor.py")
assert not bag.import_errors, bag.import_errors
runs = {}
for step in steps:
    os.environ.update(step["environment"])
    get_settings.cache_clear()
    if step["claim"]:
        ledger.claim_request("flights", "train_run")
    versions.move_alias(get_project("flights"), "champion", step["champion"])
    run = bag.dags["flights__monitor"].test(run_conf={"cutoff": step["cutoff"]})
    with create_session() as session:
        events = [(e.extra, e.source_task_id) for e in session.query(AssetEvent).filter(AssetEvent.source_run_id == run.run_id)]
        tasks = {t.task_id: [str(t.state), t.duration] for t in run.get_task_instances(session=session)}
    runs[step["name"]] = {"run_id": run.run_id, "state": str(run.state), "tasks": {k: v[0] for k, v in tasks.items()}, "events": events,
                          "seconds": {k: v[1] for k, v in tasks.items()}}
open(result, "w").write(json.dumps(runs))
"""  # noqa: E501


@pytest.fixture(scope="module")
def airflow(tmp_path_factory):
    """Create an Airflow home with a migrated database and the environment of the stack's processes.

    MLflow stores its data in a file.
    """
    from include.stack.environment import airflow_environment

    home = tmp_path_factory.mktemp("monitor")
    kept = dict(os.environ)
    os.environ.update({"AIRLOOP_HOME": str(home), "MLFLOW_TRACKING_URI": f"sqlite:///{home}/mlflow.db"})
    get_settings.cache_clear()
    environment = airflow_environment(get_settings()) | {
        "MLFLOW_TRACKING_URI": os.environ["MLFLOW_TRACKING_URI"],
        "AIRLOOP_PROJECTS": "flights",
    }
    subprocess.run(
        [sys.executable, "-m", "airflow", "db", "migrate"], env=environment, cwd=home, check=True, capture_output=True
    )
    yield SimpleNamespace(home=home, environment=environment)
    os.environ.clear()
    os.environ.update(kept)
    get_settings.cache_clear()


@pytest.fixture(scope="module")
def champion(airflow):
    """Register and deploy version 1 of flights, trained at APRIL, with its bundle."""
    from include.registry import versions
    from include.training.bundle import contract_of, make_bundle
    from include.training.candidates import BASELINE
    from include.training.inputs import matrices
    from include.training.tracking import RequestRuns, log_model, tracking_client
    from include.training.trainers import train

    rows = inputs(3000, seed=1).assign(event_timestamp=pd.date_range(end=APRIL, periods=3000, freq="10min"))
    rows["label"] = outcome(rows)
    contract = contract_of(FLIGHTS)
    model = train(
        FLIGHTS, BASELINE, *matrices(rows, contract["numeric"], contract["categorical"]), rows["label"].to_numpy()
    )
    bundle = make_bundle(FLIGHTS, model.to_onnx().SerializeToString(), rows)

    client = tracking_client()
    runs = RequestRuns(client, FLIGHTS.name, "first", {})
    model_id = log_model(client, runs.request_run(), bundle, experiment=runs.experiment, tags={}, params={})
    client.create_registered_model(FLIGHTS.name)
    version = client.create_model_version(
        FLIGHTS.name,
        f"models:/{model_id}",
        run_id=runs.request_run(),
        tags={"cutoff": APRIL, "metric.auc": "0.7"},
        model_id=model_id,
    )
    versions.move_alias(FLIGHTS, "champion", str(version.version))
    return bundle


@pytest.fixture(scope="module")
def runs(airflow, champion):
    """Return all runs that the tests below check, by name.

    They run in one process, whose imports take longer than the runs.
    """
    for scenario, more in {"drifting": 0.8, "healthy": 0.0}.items():
        with scenario_of(airflow, scenario):
            for until in (MAY, JUNE):
                serve(champion, until=until, more=more)
    steps = [
        step(airflow, "first", "drifting", MAY),
        step(airflow, "again", "drifting", MAY),
        step(airflow, "claimed", "drifting", JUNE, claim=True),
        step(airflow, "healthy", "healthy", MAY),
        step(airflow, "no predictions", "empty", MAY),
        step(airflow, "no champion", "champion", MAY, champion=None),
    ]
    result = airflow.home / "runs.json"
    arguments = [str(REPOSITORY / "dags"), json.dumps(steps), str(result)]
    done = subprocess.run(
        [sys.executable, "-c", RUNNER, *arguments],
        env=airflow.environment,
        cwd=airflow.home,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return json.loads(result.read_text())


def step(airflow, name: str, scenario: str, cutoff: str, *, claim: bool = False, champion: str | None = "1") -> dict:
    return {
        "name": name,
        "environment": environment_of(airflow, scenario),
        "cutoff": cutoff,
        "claim": claim,
        "champion": champion,
    }


def environment_of(airflow, scenario: str) -> dict[str, str]:
    return {
        "AIRLOOP_DATA_ROOT": str(airflow.home / scenario),
        "AIRLOOP_LEDGER_URL": f"sqlite:///{airflow.home}/{scenario}.db",
    }


@contextmanager
def scenario_of(airflow, scenario: str):
    """Use a store and a ledger for one scenario alone."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment_of(airflow, scenario).items():
            patch.setenv(name, value)
        get_settings.cache_clear()
        yield
    get_settings.cache_clear()


def inputs(count: int, seed: int) -> pd.DataFrame:
    generator = np.random.default_rng(seed)
    frame = pd.DataFrame(
        generator.normal(size=(count, len(FLIGHTS.inputs.numeric))), columns=list(FLIGHTS.inputs.numeric)
    )
    return frame.assign(
        origin=generator.choice(["JFK", "LGA", "EWR"], count), carrier=generator.choice(["AA", "UA"], count)
    )


def outcome(rows: pd.DataFrame, more: float = 0.0) -> np.ndarray:
    probability = 1 / (1 + np.exp(1.2 - more - 0.8 * rows[FLIGHTS.baseline_rule]))
    return (np.random.default_rng(0).random(len(rows)) < probability).astype("float64")


def serve(bundle, *, until: str, more: float, count: int = 6000) -> None:
    """Serve a month of predictions with their outcomes.

    ``more`` raises the log odds of a late arrival above what the model learned.
    """
    rows = inputs(count, seed=2)
    end = pd.Timestamp(until) - timedelta(hours=12)
    rows["predicted_at"] = pd.date_range(end - timedelta(days=27), end, periods=count).floor("s")
    key = {
        "carrier": rows["carrier"],
        "flight": np.arange(count),
        "scheduled_departure": rows["predicted_at"] + timedelta(hours=1),
    }
    predicted = rows.assign(**key, prediction=bundle.predict(rows), model_version="1", cutoff=pd.Timestamp(until))
    store(layout.predictions(FLIGHTS), predicted, until)
    late = outcome(rows, more)
    known_at = rows["predicted_at"] + timedelta(hours=6)
    store(
        layout.table(FLIGHTS, "actuals"),
        pd.DataFrame({**key, "status": "landed", "arr_delay": np.where(late, 60.0, 0.0), "known_at": known_at}),
        until,
    )


def store(uri: str, rows: pd.DataFrame, until: str) -> None:
    table = pa.Table.from_pandas(rows, preserve_index=False)
    schema = pa.schema(
        [pa.field(f.name, tables.ARROW["timestamp"] if pa.types.is_timestamp(f.type) else f.type) for f in table.schema]
    )
    tables.append(uri, table.cast(schema), writer="test", sequence=int(moment(until).timestamp()))


@pytest.mark.parametrize("name", ["first", "again", "claimed", "healthy", "no predictions", "no champion"])
def test_every_run_ends_well(runs, name):
    assert runs[name]["state"] == "success"


def test_drift_asks_once(airflow, runs):
    with scenario_of(airflow, "drifting"):
        (request,) = ledger.requests("flights")
        (episode,) = ledger.episodes("flights")
        summary = ledger.stage_record("flights", "monitor", MAY)["summary"]
    assert (request.reason, request.cutoff, request.episode) == ("drift", MAY, episode["id"])
    assert runs["first"]["events"] == [[{"request": request.id, "cutoff": MAY}, "request_retraining"]]
    assert (summary["state"], summary["asked"], summary["labels"], summary["version"]) == ("drifting", True, 6000, "1")
    assert summary["bias_ci"][1] < -0.04
    assert summary["drifted_share"] == 0


def test_a_rerun_says_again_that_a_request_waits_and_makes_none(runs):
    """A rerun announces the waiting request again and does not create a new one.

    It cannot know whether Airflow lost the first event. The previous test checks that there is one
    request.
    """
    ((extra, _),) = runs["first"]["events"]
    # Announced once, by the sweep and not by the decision.
    assert runs["again"]["events"] == [[extra, "wake_train"]]


def test_once_a_request_is_worked_on_nobody_is_woken_though_the_drift_goes_on(airflow, runs):
    tasks = runs["claimed"]["tasks"]
    assert (runs["claimed"]["events"], tasks["request_retraining"], tasks["wake_train"], tasks["wake_deploy"]) == (
        [],
        "skipped",
        "skipped",
        "skipped",
    )
    with scenario_of(airflow, "drifting"):
        summary = ledger.stage_record("flights", "monitor", JUNE)["summary"]
    assert (summary["state"], summary["asked"]) == ("drifting", False)


def test_each_report_lies_where_its_task_shows_it(airflow, runs):
    with scenario_of(airflow, "drifting"):
        for task_id, files in {
            "measure_performance": {"performance.json"},
            "report_drift": {"report.json", "summary.json", "index.html.scripts.json"},
        }.items():
            folder = layout.report(FLIGHTS, "flights__monitor", runs["first"]["run_id"], task_id)
            assert {f.name for f in folder.iterdir()} == {"index.html", *files}
            assert (folder / "index.html").stat().st_size > 10_000


def test_a_healthy_champion_asks_nothing(airflow, runs):
    assert (runs["healthy"]["events"], runs["healthy"]["tasks"]["request_retraining"]) == ([], "skipped")
    with scenario_of(airflow, "healthy"):
        assert ledger.stage_record("flights", "monitor", MAY)["summary"]["state"] == "healthy"
        assert ledger.requests("flights") == ledger.episodes("flights") == []


def test_a_champion_without_predictions_is_not_known(airflow, runs):
    with scenario_of(airflow, "empty"):
        summary = ledger.stage_record("flights", "monitor", MAY)["summary"]
    assert (summary["state"], summary["labels"], summary["drifted_share"]) == ("unknown", 0, None)


def test_without_a_champion_everything_is_skipped_and_recorded(airflow, runs):
    assert {runs["no champion"]["tasks"][t] for t in ("measure_performance", "report_drift", "request_retraining")} == {
        "skipped"
    }
    with scenario_of(airflow, "champion"):
        assert ledger.stage_record("flights", "monitor", MAY)["summary"]["state"] == "no champion"
