"""The tasks of monitor: an event for each request that waits, and none otherwise."""

import pytest
from airflow.sdk.exceptions import AirflowSkipException

from include import ledger
from include.dag_kit.tasks import monitor
from tests.unit.rollout.conftest import registry  # noqa: F401

CUTOFF = "2013-05-01T10:00:00Z"
IDLE = {"train": None, "deploy": None}
pytestmark = pytest.mark.usefixtures("own_store")


@pytest.fixture
def request_id():
    return ledger.request_retraining("flights", cutoff=CUTOFF, reason="drift", asked_by="monitor").id


def find_request(overdue=IDLE):
    return monitor.find_request.function("flights", {}, overdue)


@pytest.mark.parametrize("wake", [monitor.wake_train, monitor.wake_deploy])
def test_nothing_is_woken_if_nothing_is_overdue(wake, events, emitted_events):
    with pytest.raises(AirflowSkipException, match="nothing waits for it"):
        wake.function("flights", IDLE, outlet_events=events)
    assert emitted_events() == {}


def test_what_is_overdue_is_woken_by_its_own_event(events, emitted_events):
    train, deploy = {"request": "r", "cutoff": CUTOFF}, {"name": "flights", "version": "2", "cutoff": CUTOFF}
    overdue = {"train": train, "deploy": deploy}
    monitor.wake_train.function("flights", overdue, outlet_events=events)
    monitor.wake_deploy.function("flights", overdue, outlet_events=events)
    assert emitted_events() == {"flights.retrain_request": train, "flights.challenger_model": deploy}


def test_no_open_request_stops_the_run_there():
    assert find_request() is None


def test_an_open_request_is_announced_whatever_the_decision_says(request_id, events, emitted_events):
    open_request = find_request()
    monitor.request_retraining.function("flights", open_request, outlet_events=events)
    assert emitted_events() == {"flights.retrain_request": {"request": request_id, "cutoff": CUTOFF}}


def test_an_overdue_request_is_announced_by_wake_train_alone(request_id):
    assert find_request({"train": {"request": request_id, "cutoff": CUTOFF}, "deploy": None}) is None


def test_a_frozen_project_announces_no_request(request_id):
    ledger.freeze("flights", by="jo", why="audit")
    assert find_request() is None


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize("measure", [monitor.measure_performance, monitor.report_drift])
def test_without_a_champion_the_measurements_are_skipped(measure, ti):
    with pytest.raises(AirflowSkipException, match="no version is champion: nothing to measure"):
        measure.function("flights", CUTOFF, ti=ti)


@pytest.mark.usefixtures("registry")
def test_the_decision_is_made_without_the_skipped_measurements():
    decision = monitor.decide_retraining.function("flights", CUTOFF, None, None, run_id="run")
    assert set(decision) == {"state", "asked", "request"} and not decision["asked"]
    assert ledger.stage_record("flights", "monitor", CUTOFF)["dag_run"] == "run"
