"""Batch scoring works by partition, resumes after a kill, and agrees with serving."""

import json
import os
import signal
import subprocess
import sys
from datetime import timedelta

import pandas as pd
import pyarrow as pa
import pytest

from include.data import layout, tables
from include.features import build, store
from include.ledger import moment
from include.projects.base import Candidate, GatePolicy
from include.projects.flights import project as flights
from include.projects.lookup import LookupPolicy
from include.registry import versions
from include.scoring import batch
from include.settings import REPOSITORY, get_settings
from include.stack.environment import serving_environment
from tests.homes import forget_home
from tests.serving.harness import Process
from tests.unit.features.test_flights_features import frames  # noqa: F401  (seven weeks of made-up flights)
from tests.unit.training import made_up
from tests.unit.training.test_steps import request_for, trained
from tests.waiting import wait_for

TRAINED, CUTOFF, AFTERWARDS = "2013-01-12T00:00:00Z", "2013-02-10T10:00:00Z", "2013-02-10T10:29:00Z"
# Most planes are missing from the register, and the rule answers for them. Other missing values are
# normal, and the wind has a default.
POLICY = LookupPolicy(
    views={"plane": {"unknown_entity": "baseline"}, "route_delays": {"unknown_entity": "refuse"}},
    defaults={"wind_gust": 10.0},
)
KILLED = """
import os, signal
from include.scoring import batch
from tests.integration.test_score import CUTOFF, PROJECT, in_small_partitions
in_small_partitions(batch)
append, appended = batch.tables.append, []
def dying(*arguments, **named):
    appended.append(append(*arguments, **named))
    if len(appended) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
batch.tables.append = dying
batch.predict_due(PROJECT, CUTOFF)
"""
PROJECT = flights.model_copy(
    update={
        "candidates": (
            Candidate(name="trees", trainer="hist_gradient_boosting", parameters={"max_iter": 20, "max_leaf_nodes": 7}),
        ),
        "gate": GatePolicy(min_rows=50, holdout=timedelta(days=3)),
        "lookup": POLICY,
    }
)


def in_small_partitions(module) -> None:
    module.MOST_ROWS, module.FIRST_WINDOW = 60, timedelta(days=4)


@pytest.fixture(scope="module")
def ready(tmp_path_factory, frames):  # noqa: F811
    """Return tables, features up to the cutoff, and a champion whose cutoff is a month earlier."""
    home = tmp_path_factory.mktemp("score")
    variables = pytest.MonkeyPatch()
    given = {
        "AIRLOOP_HOME": home / "home",
        "MLFLOW_TRACKING_URI": f"sqlite:///{home / 'mlflow.db'}",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    for name, value in given.items():
        variables.setenv(name, str(value))
    # MLflow without a server stores artifacts below the working directory.
    variables.chdir(home)
    forget_home()
    for name, rows in frames.items():
        append(name, rows, 1)
    for cutoff in (TRAINED, CUTOFF):
        build.compute(PROJECT, cutoff)
        build.publish(PROJECT, cutoff)
        build.materialize(PROJECT, cutoff)
    trained(PROJECT, request_for(PROJECT, cutoff=TRAINED), made_up.examples(PROJECT, days=11, a_day=200))
    versions.move_alias(PROJECT, versions.CHAMPION, "1")
    yield home
    variables.undo()
    forget_home()


def append(name: str, rows: pd.DataFrame, sequence: int) -> None:
    schema = tables.arrow_schema(PROJECT.source(name).columns)
    tables.append(
        layout.table(PROJECT, name),
        pa.Table.from_pandas(rows, schema=schema, preserve_index=False),
        writer="test",
        sequence=sequence,
    )


@pytest.fixture
def another_table(ready, tmp_path, monkeypatch):
    """Store the predictions of each test in a separate table."""
    monkeypatch.setattr(layout, "predictions", lambda _: str(tmp_path / "predictions"))
    return tmp_path / "predictions"


def predictions(uri) -> pd.DataFrame:
    return tables.open_table(str(uri)).to_pandas().sort_values("prediction_id", ignore_index=True)


@pytest.fixture(scope="module")
def whole(ready, tmp_path_factory):
    """Score everything in one partition."""
    with pytest.MonkeyPatch.context() as patch:
        uri = tmp_path_factory.mktemp("whole") / "predictions"
        patch.setattr(layout, "predictions", lambda _: str(uri))
        patch.setattr(batch, "FIRST_WINDOW", timedelta(days=400))
        summary = batch.predict_due(PROJECT, CUTOFF)
        assert (summary["partitions"], summary["model_version"]) == (1, "1") and summary["rows"] > 400
        return predictions(uri)


def test_partitions_are_small_and_together_they_are_the_whole(whole, another_table, monkeypatch):
    joined, historical = [], store.historical_features

    def counted(project, entities):
        joined.append(len(entities))
        return historical(project, entities)

    monkeypatch.setattr(store, "historical_features", counted)
    monkeypatch.setattr(batch, "MOST_ROWS", 60)
    monkeypatch.setattr(batch, "FIRST_WINDOW", timedelta(days=4))
    summary = batch.predict_due(PROJECT, CUTOFF)
    assert summary["rows"] == len(whole) and summary["partitions"] == len(joined) > 8 and max(joined) <= 60
    pd.testing.assert_frame_equal(predictions(another_table), whole)
    assert batch.predict_due(PROJECT, CUTOFF) | {"version": 0} == {
        "rows": 0,
        "partitions": 0,
        "refused": 0,
        "model_version": "1",
        "version": 0,
    }


def test_a_killed_run_goes_on_after_its_last_partition(whole, ready, monkeypatch):
    uri = layout.predictions(PROJECT)
    died = subprocess.run(
        [sys.executable, "-c", KILLED],
        cwd=ready,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        timeout=500,
    )
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()[-3000:]
    kept = predictions(uri)
    assert 0 < len(kept) < len(whole)
    in_small_partitions(batch)
    try:
        summary = batch.predict_due(PROJECT, CUTOFF)
    finally:
        batch.MOST_ROWS, batch.FIRST_WINDOW = 50_000, timedelta(days=7)
    assert summary["rows"] == len(whole) - len(kept)  # finished partitions are not repeated
    pd.testing.assert_frame_equal(predictions(uri), whole)


@pytest.mark.stack
def test_serving_gives_the_same_predictions_policy_included(ready, another_table, frames, tmp_path):  # noqa: F811
    """Serving gives the same predictions as the batch, including the policy.

    The flights' prediction times are just after the cutoff. Serving is queried by their keys, and
    the batch predicts them a little later.
    """
    count = 40
    moments = pd.date_range(CUTOFF, AFTERWARDS, periods=count + 1)[1:].floor("s").astype("datetime64[us, UTC]")
    later = (
        frames["schedule"]
        .tail(count)
        .assign(
            flight=range(9000, 9000 + count),
            scheduled_departure=moments + timedelta(hours=1),
            scheduled_arrival=moments + timedelta(hours=3),
            published_at=pd.Timestamp(CUTOFF).as_unit("us") - timedelta(days=1),
        )
    )
    # No flight ever went to XXX, so the policy refuses its route.
    later["dest"] = ["IAH", "MIA", "XXX", "IAH"] * (count // 4)
    planes = later[["carrier", "flight", "scheduled_departure", "published_at"]].assign(
        tailnum=["N1", "N2", "N3", "N9"] * (count // 4)
    )
    append("schedule", later, 2)
    append("rotation", planes, 2)
    due = PROJECT.module("features").examples(
        batch.KnownTables(PROJECT, moment(AFTERWARDS)),
        since=moment(CUTOFF),
        until=moment(AFTERWARDS),
        cutoff=moment(AFTERWARDS),
    )
    due = due[due["flight"] >= 9000]
    assert len(due) == count

    environment = {
        **serving_environment(get_settings()),
        "SERVING_MLFLOW_URI": os.environ["MLFLOW_TRACKING_URI"],
        "SERVING_LOG_ROOT": str(tmp_path / "log"),
    }
    service = Process(["serving"], environment | {"SERVING_CACHE": str(tmp_path / "cache")}, tmp_path / "serving.log")
    try:
        wait_for(lambda: service.get("/ready")[0] == 200, 400, lambda: service.log.read_text()[-3000:])
        instances = json.loads(due[[*PROJECT.entities, *PROJECT.request_features]].to_json(orient="records"))
        answers = [service.get("/models/flights/predict", {"instances": [instance]}) for instance in instances]
    finally:
        service.end()
    online = {
        flight: response["predictions"][0]
        for flight, (status, response) in zip(due["flight"], answers, strict=True)
        if status == 200
    }
    refused = {
        flight: response for flight, (status, response) in zip(due["flight"], answers, strict=True) if status != 200
    }

    summary = batch.predict_due(PROJECT, AFTERWARDS)
    rows = predictions(another_table)
    rows = rows[rows["flight"] >= 9000].set_index("flight")
    assert refused.keys() == set(due.loc[due["dest"] == "XXX", "flight"]) and {
        problem["type"] for problem in refused.values()
    } == {"urn:airloop:unknown-entity"}
    assert summary["refused"] == len(refused) == count // 4
    assert {flight: answer["prediction"] for flight, answer in online.items()} == rows["prediction"].to_dict()
    by_rule = {flight for flight, answer in online.items() if answer["arm"] == "baseline"}
    assert (
        by_rule
        == set(rows.index[rows["model_version"] == "1-baseline"])
        == set(planes.loc[planes["tailnum"].isin(["N3", "N9"]), "flight"]) - refused.keys()
    )
    assert set(rows.index) - by_rule == set(rows.index[rows["model_version"] == "1"])
    assert (rows["wind_gust"] == 10.0).all()
