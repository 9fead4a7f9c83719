"""A cutoff in the future from an older version is detected and reverted, and the next runs work."""

import pandas as pd
import pyarrow as pa
import pytest
from airflow.sdk.exceptions import AirflowSkipException

from include import ledger, times
from include.dag_kit.cutoffs import skip_superseded
from include.data import layout, tables
from include.features import build, store
from include.ledger import moment
from include.operations import cutoffs
from include.operations.doctor.loop import future_cutoffs
from include.projects import get_project
from include.projects.flights import features as flight_features
from include.scoring import batch
from include.settings import get_settings
from tests.homes import forget_home

FLIGHTS = get_project("flights")
GOOD, NOW, WRONG = "2013-01-20T10:00:00Z", "2013-02-10T10:00:00Z", "2031-01-01T00:00:00Z"
PREDICTED = pa.schema([("prediction_id", pa.string()), ("cutoff", tables.ARROW["timestamp"])])


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    """Create a registry without models. All tests share it, because its tables take seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


@pytest.fixture
def home(tmp_path, monkeypatch, registry):
    """Create a home whose wall clock is in February 2013, with made-up features.

    Each view has one row a day.
    """
    monkeypatch.setenv("AIRLOOP_HOME", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry)
    for name in ("AIRLOOP_DATA_ROOT", "AIRLOOP_LEDGER_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(times, "utc_now", lambda: moment(NOW))
    monkeypatch.setattr(flight_features, "compute", compute)
    forget_home()
    planes = pd.DataFrame({name: [None] for name in FLIGHTS.source("planes").columns}).assign(
        tailnum="N1", published_at=pd.Timestamp(GOOD)
    )
    schema = tables.arrow_schema(FLIGHTS.source("planes").columns)
    tables.append(
        layout.table(FLIGHTS, "planes"),
        pa.Table.from_pandas(planes, schema=schema, preserve_index=False),
        writer="test",
        sequence=1,
    )
    yield tmp_path
    monkeypatch.undo()
    forget_home()


def compute(known, *, since, cutoff):
    """Return a row for each day after ``since``, as a project's function does.

    A day without data has no value.
    """
    days = pd.date_range(
        "2013-01-01", min(pd.Timestamp(cutoff), pd.Timestamp("2013-03-01T00:00Z")).tz_localize(None), freq="D", tz="UTC"
    )
    days = days[days > pd.Timestamp(since)] if since else days
    made = {}
    for view in store.feature_views(FLIGHTS):
        values = {
            feature.name: 1.0 if pd.Timestamp(cutoff) < pd.Timestamp(WRONG) else float("nan")
            for feature in view.features
        }
        made[view.name] = pd.DataFrame({**dict.fromkeys(view.join_keys, "X"), "event_timestamp": days, **values})
    return made


def run(cutoff: str) -> dict[str, int]:
    rows = build.compute(FLIGHTS, cutoff)
    build.publish(FLIGHTS, cutoff)
    build.materialize(FLIGHTS, cutoff)
    ledger.record_stage("flights", "build_features", cutoff, dag_run="run", summary={})
    return rows


def predict(cutoff: str, name: str) -> None:
    rows = pa.Table.from_pylist([{"prediction_id": name, "cutoff": moment(cutoff)}], schema=PREDICTED)
    tables.append(layout.predictions(FLIGHTS), rows, writer=batch.WRITER, sequence=int(moment(cutoff).timestamp()))


def online() -> list:
    asked = store.feature_store().get_online_features(["plane:plane_year"], [{"tailnum": "X"}])
    return asked.to_dict()["plane_year"]


def published() -> pd.DataFrame:
    return tables.open_table(layout.feature_table(FLIGHTS, "plane")).to_pandas()


@pytest.fixture
def poisoned(home):
    """Create the state after a run with a future cutoff and a successful run that did nothing."""
    run(GOOD)
    predict(GOOD, "good")
    ledger.decide("flights", "monitor", GOOD, verdict="healthy", reasons=[], cutoff=GOOD)
    run(WRONG)
    predict(WRONG, "wrong")
    ledger.decide("flights", "monitor", WRONG, verdict="drifting", reasons=[], cutoff=WRONG)
    ledger.record_stage("flights", "monitor", WRONG, dag_run="run", summary={})
    ledger.open_episode("flights", at=WRONG, evidence={})
    ledger.request_retraining("flights", cutoff=WRONG, reason="drift", asked_by="run")
    ledger.run_cutoff("flights", "flights__monitor", "run", WRONG)
    assert set(run(NOW).values()) == {0}, "a later day publishes nothing: that is the fault"


def test_what_a_wrong_cutoff_leaves_is_named_and_taken_back_and_the_next_runs_work(poisoned, monkeypatch):
    """The effects of a wrong cutoff are reported and reverted, and the next runs work.

    This is one test, because the setup takes seconds.
    """
    traces = "; ".join(cutoffs.traces(FLIGHTS, cutoffs.present(FLIGHTS)).blocking)
    for words in (
        "stage build_features is recorded up to 2031",
        "table plane goes up to 2031",
        "online store plane goes up to 2031",
        "predictions were made up",
    ):
        assert words in traces
    for words in (
        "1 decisions of monitor",
        "1 drift episodes",
        "1 DAG runs",
        "(drift, cutoff 2031-01-01T00:00:00Z) is open",
    ):
        assert words in traces
    (fault,) = [f for f in future_cutoffs(get_settings()) if f.state == "fault"]
    assert "flights: a cutoff in the future stops later runs" in fault.what and "airloop rewind flights" in fault.fix

    with monkeypatch.context() as killed:
        killed.setattr(store, "set_filled_until", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            cutoffs.rewind(FLIGHTS, cutoffs.present(FLIGHTS), by="jo", why="x")
    assert any("online store" in one for one in cutoffs.traces(FLIGHTS, cutoffs.present(FLIGHTS)).blocking), (
        "it is seen, and can be done again"
    )

    done = cutoffs.rewind(FLIGHTS, cutoffs.present(FLIGHTS), by="jo", why="a wrong year")
    assert any("feature view plane: back to 2013-01-20T10:00:00Z" in one for one in done.blocking), done
    assert not cutoffs.traces(FLIGHTS, cutoffs.present(FLIGHTS)).blocking
    assert published()["event_timestamp"].max() <= pd.Timestamp(GOOD) and len(published()) == 20
    assert online() == [1.0], "the poisoned value is not looked up any more"
    assert ledger.last_cutoffs("flights")["build_features"]["cutoff"] == GOOD, (
        "the green run for a later day had published nothing"
    )
    assert [d["subject"] for d in ledger.decisions("flights", "monitor")] == [GOOD]
    assert ledger.current_episode("flights") is None
    (request,) = ledger.requests("flights")
    assert request.state == "failed" and "taken back by jo: a wrong year" in request.outcome["reason"]
    (record,) = ledger.decisions("flights", "rewind")
    assert "by jo" in record["subject"] and record["reasons"][0] == "a wrong year"

    assert set(run(NOW).values()) == {21}
    assert published()["plane_year"].notna().all() and published()["event_timestamp"].is_unique
    assert tables.open_table(layout.predictions(FLIGHTS)).to_pandas()["prediction_id"].tolist() == ["good"]
    predict(NOW, "next")
    assert len(tables.open_table(layout.predictions(FLIGHTS)).to_pandas()) == 2

    assert "published up to 2013-02-10T10:00:00Z already" in build.superseded(FLIGHTS, GOOD)
    assert build.superseded(FLIGHTS, NOW) is None, "the same cutoff again is not an earlier one"


def test_a_history_that_was_loaded_at_todays_cutoff_is_rebuilt_from_its_beginning(home):
    run(NOW)
    done = cutoffs.rewind(FLIGHTS, moment(GOOD), by="jo", why="the data ended in January")
    assert any("back to the beginning" in one for one in done.blocking), done
    assert published().empty and online() == [None]
    assert set(run(GOOD).values()) == {20}
    assert len(published()) == 20 and online() == [1.0]


def test_a_clock_of_a_replay_that_was_moved_too_far_is_seen_and_set_back(home):
    ledger.set_clock("flights", WRONG)
    assert (
        "the clock of the replay stands at 2031-01-01T00:00:00Z"
        in cutoffs.traces(FLIGHTS, cutoffs.present(FLIGHTS)).blocking
    )
    cutoffs.rewind(FLIGHTS, moment(GOOD), by="jo", why="a typing error")
    assert ledger.iso(ledger.now("flights")) == GOOD


def test_an_episode_that_was_closed_by_a_wrong_cutoff_is_open_again(home):
    ledger.open_episode("flights", at=GOOD, evidence={})
    ledger.close_episode("flights", at=WRONG)
    cutoffs.rewind(FLIGHTS, moment(NOW), by="jo", why="x")
    assert ledger.current_episode("flights")["opened"] == GOOD


@pytest.mark.parametrize(("until", "why", "words"), [(NOW, " ", "state the reason"), (WRONG, "x", "is in the future")])
def test_it_refuses_without_a_reason_or_a_time_that_has_passed(home, until, why, words):
    with pytest.raises(cutoffs.RewindError, match=words):
        cutoffs.rewind(FLIGHTS, moment(until), by="jo", why=why)


def test_a_score_run_that_has_nothing_to_do_is_skipped(home):
    ledger.record_stage("flights", "score", NOW, dag_run="run", summary={})
    assert f"predictions were made up to {NOW} already" in batch.superseded(FLIGHTS, GOOD, {"rows": 0})
    assert batch.superseded(FLIGHTS, GOOD, {"rows": 3}) is None, "what came late was predicted"
    assert batch.superseded(FLIGHTS, NOW, {"rows": 0}) is None
    with pytest.raises(AirflowSkipException, match="nothing to do"):
        skip_superseded(batch.superseded(FLIGHTS, GOOD, {"rows": 0}))
