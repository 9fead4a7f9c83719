"""Which predictions and outcomes count, and the report if there are none."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from include.data import layout, tables
from include.monitoring import page, performance
from include.projects import get_project
from include.projects.base import Metric, TaskKind

FLIGHTS = get_project("flights")
CUTOFF = datetime(2013, 5, 1, 10, tzinfo=UTC)
SINCE = CUTOFF - timedelta(days=28)
AUC = Metric(name="auc", higher_is_better=True)


def store_predictions(
    *,
    hours_before: list[float],
    version: str = "1",
    cutoff: datetime = CUTOFF,
    first_flight: int = 1,
    prediction: float = 0.5,
):
    predicted_at = [pd.Timestamp(CUTOFF - timedelta(hours=h)) for h in hours_before]
    flights = range(first_flight, first_flight + len(predicted_at))
    rows = pd.DataFrame(
        {
            "carrier": "AA",
            "flight": flights,
            "scheduled_departure": [t + timedelta(hours=1) for t in predicted_at],
            "predicted_at": predicted_at,
            "prediction": prediction,
            "model_version": version,
            "cutoff": pd.Timestamp(cutoff),
        }
    )
    stamp, count = tables.ARROW["timestamp"], first_flight
    table = pa.Table.from_pandas(rows, preserve_index=False)
    schema = pa.schema([pa.field(f.name, stamp if pa.types.is_timestamp(f.type) else f.type) for f in table.schema])
    tables.append(layout.predictions(FLIGHTS), table.cast(schema), writer=f"test{version}", sequence=count)
    return rows


def store_outcomes(
    flights: pd.DataFrame, *, known_at: datetime, status: str = "landed", delay: float | None = 30.0, sequence: int = 1
):
    rows = flights[["carrier", "flight", "scheduled_departure"]].assign(
        status=status, arr_delay=delay, known_at=pd.Timestamp(known_at)
    )
    table = pa.Table.from_pandas(
        rows, schema=tables.arrow_schema(FLIGHTS.source("actuals").columns), preserve_index=False
    )
    tables.append(layout.table(FLIGHTS, "actuals"), table, writer=f"test{sequence}", sequence=sequence)


def joined(**window):
    window = {"since": SINCE, "cutoff": CUTOFF} | window
    return performance.with_outcomes(FLIGHTS, performance.predictions(FLIGHTS, version="1", **window), **window)


@pytest.mark.usefixtures("own_store")
class TestJoin:
    def test_nothing_was_predicted_yet(self):
        assert joined().empty

    def test_predictions_meet_their_outcomes(self):
        flights = store_predictions(hours_before=[10, 20, 30])
        store_outcomes(flights.iloc[:1], known_at=CUTOFF, delay=16.0)
        store_outcomes(flights.iloc[1:2], known_at=CUTOFF, delay=15.0, sequence=2)
        assert dict(zip(joined()["flight"], joined()["label"], strict=True)) == {1: 1.0, 2: 0.0}

    @pytest.mark.parametrize(
        ("hours", "count"),
        [
            pytest.param(0, 1, id="predicted for the cutoff itself is in"),
            pytest.param(-1, 0, id="predicted for later is out"),
            pytest.param(28 * 24, 0, id="predicted for the start of the window is out"),
            pytest.param(28 * 24 - 1, 1, id="predicted for just after the start is in"),
        ],
    )
    def test_window(self, hours, count):
        assert len(store_predictions(hours_before=[hours])) == 1
        assert len(performance.predictions(FLIGHTS, since=SINCE, cutoff=CUTOFF, version="1")) == count

    def test_an_outcome_known_after_the_cutoff_is_not_seen(self):
        store_outcomes(store_predictions(hours_before=[10]), known_at=CUTOFF + timedelta(seconds=1))
        assert joined().empty

    def test_a_project_that_gives_labels_known_later_is_not_believed(self, monkeypatch):
        flights = store_predictions(hours_before=[10])
        late = flights[["carrier", "flight", "scheduled_departure"]].assign(
            label=1.0, label_known_at=pd.Timestamp(CUTOFF) + pd.Timedelta("1s")
        )
        monkeypatch.setattr(FLIGHTS.module("features"), "labels", lambda *_, **__: late)
        assert joined().empty

    def test_cancelled_flights_have_no_outcome(self):
        store_outcomes(store_predictions(hours_before=[10]), known_at=CUTOFF, status="cancelled", delay=None)
        assert joined().empty

    def test_predictions_of_another_version_do_not_count(self):
        store_outcomes(store_predictions(hours_before=[10], version="2"), known_at=CUTOFF)
        assert joined().empty

    def test_predictions_stored_by_a_later_run_do_not_count(self):
        store_outcomes(store_predictions(hours_before=[10], cutoff=CUTOFF + timedelta(days=1)), known_at=CUTOFF)
        assert joined().empty

    def test_two_outcomes_of_one_flight_are_an_error(self):
        flights = store_predictions(hours_before=[10])
        store_outcomes(flights, known_at=CUTOFF)
        store_outcomes(flights, known_at=CUTOFF, sequence=2)
        with pytest.raises(pd.errors.MergeError):
            joined()


def made_up(days: int = 28, a_day: int = 40, *, kind: TaskKind = TaskKind.BINARY) -> pd.DataFrame:
    generator = np.random.default_rng(0)
    rows = days * a_day
    time = pd.Timestamp(SINCE) + pd.to_timedelta(np.linspace(1, days * 24 - 1, rows), unit="h")
    if kind is TaskKind.REGRESSION:
        prediction = generator.normal(100, 20, rows)
        return pd.DataFrame(
            {"predicted_at": time, "prediction": prediction, "label": prediction + generator.normal(-5, 3, rows)}
        )
    prediction = generator.beta(2, 5, rows)
    return pd.DataFrame(
        {
            "predicted_at": time,
            "prediction": prediction,
            "label": (generator.random(rows) < prediction).astype("float64"),
        }
    )


def test_a_binary_task_is_measured():
    measurement = performance.measure(AUC, TaskKind.BINARY, made_up(), predictions=2000)
    assert (measurement.predictions, measurement.labels) == (2000, 28 * 40)
    assert measurement.metric.low < measurement.metric.value < measurement.metric.high
    # The outcomes were drawn with the predicted probability.
    assert measurement.bias.low < 0 < measurement.bias.high
    assert set(measurement.figures) == {"auc", "brier", "log_loss"}
    assert measurement.figures["auc"] == pytest.approx(measurement.metric.value)


def test_a_regression_is_measured():
    measurement = performance.measure(
        Metric(name="rmse", higher_is_better=False),
        TaskKind.REGRESSION,
        made_up(kind=TaskKind.REGRESSION),
        predictions=2000,
    )
    assert measurement.bias.low == pytest.approx(5, abs=0.5)
    assert set(measurement.figures) == {"mae", "rmse", "r2"}


def test_no_outcomes_give_no_figures_rather_than_good_ones():
    measurement = performance.measure(AUC, TaskKind.BINARY, made_up().head(0), predictions=7)
    assert (measurement.predictions, measurement.labels, measurement.days) == (7, 0, 0)
    assert np.isnan(
        [measurement.metric.value, measurement.metric.low, measurement.bias.value, measurement.bias.high]
    ).all()


def test_a_prediction_that_is_no_number_spoils_the_figures():
    rows = made_up()
    rows.loc[5, "prediction"] = np.nan
    measurement = performance.measure(AUC, TaskKind.BINARY, rows, predictions=len(rows))
    assert np.isnan(
        [measurement.metric.value, measurement.metric.high, measurement.bias.value, measurement.bias.low]
    ).all()


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        pytest.param({"metric.auc": "0.7412"}, 0.7412, id="the tag"),
        pytest.param({}, 1.0, id="no tag: the reference rows"),
    ],
)
def test_the_metric_at_training(tags, expected, monkeypatch, tmp_path):
    from types import SimpleNamespace

    reference = pd.DataFrame({"label": [0.0, 0.0, 1.0], "prediction": [0.1, 0.2, 0.9]})
    monkeypatch.setattr(performance.versions, "bundle", lambda *_: tmp_path)
    monkeypatch.setattr(performance.Bundle, "load", lambda _: SimpleNamespace(reference=lambda: reference))
    assert performance.at_training(FLIGHTS, SimpleNamespace(version="1", tags=tags)) == expected


@pytest.mark.parametrize("kind", list(TaskKind))
def test_the_page_shows_the_figures_and_needs_no_network(kind):
    rows = made_up(kind=kind)
    project = FLIGHTS.model_copy(
        update={"kind": kind, "metric": AUC if kind is TaskKind.BINARY else Metric(name="rmse", higher_is_better=False)}
    )
    html = page.performance_page(project, "2013-05-01T10:00:00Z", evidence(len(rows)), rows)
    assert "version 3" in html and "0.7000 [0.6900, 0.7100]" in html and "<svg" in html
    assert not [link for link in ("<script", "<link", 'src="http', 'href="http') if link in html]
    assert html == page.performance_page(project, "2013-05-01T10:00:00Z", evidence(len(rows)), rows)


def test_the_page_without_outcomes_says_so():
    nothing = evidence(0) | {"metric": None, "ci": [None, None], "bias": None, "bias_ci": [None, None], "figures": {}}
    html = page.performance_page(FLIGHTS, "2013-05-01T10:00:00Z", nothing, made_up().head(0))
    assert "No outcome is known yet" in html and "not known" in html


def evidence(labels: int) -> dict:
    return {
        "version": "3",
        "champion_cutoff": "2013-04-01T10:00:00Z",
        "since": "2013-04-03T10:00:00+00:00",
        "predictions": 2000,
        "labels": labels,
        "days": 28,
        "metric": 0.7,
        "ci": [0.69, 0.71],
        "reference": 0.74,
        "bias": -0.02,
        "bias_ci": [-0.04, 0.0],
        "figures": {"auc": 0.7, "brier": 0.15},
    }
