"""The tasks of score: without a champion nothing is predicted, and the stage is recorded."""

import pytest
from airflow.sdk.exceptions import AirflowSkipException

from include import ledger
from include.dag_kit.tasks import score
from tests.unit.rollout.conftest import registry  # noqa: F401

EARLY, LATE = "2013-01-02T10:00:00Z", "2013-01-03T10:00:00Z"
NOTHING = {"rows": 0, "partitions": 0, "refused": 0, "model_version": None, "version": None}
pytestmark = pytest.mark.usefixtures("registry", "own_store")


def test_without_a_champion_nothing_is_predicted_and_the_run_goes_on(events, emitted_events):
    scored = score.predict_due.function("flights", EARLY)
    assert scored == NOTHING
    score.announce_predictions.function("flights", EARLY, scored, outlet_events=events, run_id="run")
    assert emitted_events() == {"flights.predictions": {"cutoff": EARLY, **NOTHING}}
    assert ledger.stage_record("flights", "score", EARLY)["summary"] == NOTHING


def test_a_run_for_an_earlier_cutoff_without_late_arrivals_is_skipped():
    ledger.record_stage("flights", "score", LATE, dag_run="run", summary=NOTHING)
    with pytest.raises(AirflowSkipException, match=f"up to {LATE} already"):
        score.predict_due.function("flights", EARLY)
    assert score.predict_due.function("flights", LATE) == NOTHING
