"""A rerun is the same run at any time: it keeps its cutoff and its request."""

from datetime import UTC, datetime, timedelta, timezone
from types import SimpleNamespace

import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException
from airflow.utils.types import DagRunType

from include import ledger, times
from include.dag_kit.cutoffs import checked_cutoff, cutoff_of_run, decide_cutoff, newest_cutoff
from include.dag_kit.requests import refuse_frozen_step, take_up
from include.ledger import iso
from include.projects import get_project

AT = datetime(2026, 1, 1, 6, tzinfo=UTC)
DAY = timedelta(days=1)
pytestmark = pytest.mark.usefixtures("own_ledger")


class Clock:
    now = AT


@pytest.fixture(params=["wall clock", "replay"])
def pass_time(request, monkeypatch):
    """Advance the project's clock. The wall clock always advances."""
    clock = Clock()
    monkeypatch.setattr(times, "utc_now", lambda: clock.now)

    def pass_(time=timedelta()):
        clock.now += time
        if request.param == "replay":
            ledger.set_clock("flights", clock.now - 4000 * DAY)

    pass_()
    return pass_


def run(run_id="scheduled__1", run_type="scheduled"):
    return SimpleNamespace(
        dag_id="flights__train", run_id=run_id, run_type=run_type, run_after=AT - timedelta(minutes=1)
    )


def claim(dag_run, params=None, *, woken=False):
    ti = SimpleNamespace(dag_id=dag_run.dag_id, run_id=dag_run.run_id, task_id="claim_request")
    return take_up("flights", dag_run, params or {}, woken_by_event=woken, ti=ti)


def event(cutoff):
    return SimpleNamespace(extra={"cutoff": cutoff})


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_of_merged_events_the_newest_cutoff_counts(order):
    cutoffs = ["2013-05-01T10:00:00Z", "2013-06-01T00:00:00+02:00", "2013-05-31T23:00:00Z"]
    assert newest_cutoff({"an asset": [event(cutoffs[n]) for n in order]}) == "2013-05-31T23:00:00Z"
    assert newest_cutoff({"one": [event(cutoffs[1])], "another": [event(cutoffs[0])]}) == "2013-05-31T22:00:00Z"
    assert newest_cutoff({"an asset": [SimpleNamespace(extra={})]}) is None and newest_cutoff(None) is None


@pytest.mark.parametrize(
    "form", [iso, lambda at: at.astimezone(timezone(timedelta(hours=5))).isoformat()], ids=["UTC", "another zone"]
)
def test_a_cutoff_in_the_future_is_refused_by_tasks_and_named(pass_time, form):
    pass_time()
    present = ledger.now("flights")
    for early in (timedelta(), timedelta(minutes=4), -DAY):
        assert checked_cutoff("flights", form(present + early)) == iso(present + early)
    with pytest.raises(AirflowFailException, match="is later than the present of flights"):
        checked_cutoff("flights", form(present + timedelta(minutes=6)))
    with pytest.raises(AirflowFailException, match="is later than the present of flights"):
        claim(run(run_type="manual"), {"cutoff": form(present + DAY)})
    assert ledger.requests("flights") == []


def test_a_run_again_has_its_cutoff_though_the_clock_has_moved(pass_time):
    first = cutoff_of_run("flights", run())
    assert first == (iso(AT - 4000 * DAY) if ledger.is_replay("flights") else iso(AT - timedelta(minutes=1)))
    pass_time(3 * DAY)
    assert cutoff_of_run("flights", run()) == first


@pytest.mark.parametrize("run_type", ["scheduled", "manual"])
@pytest.mark.parametrize("killed", [False, True])
def test_a_retry_of_claim_request_makes_no_second_request(pass_time, monkeypatch, run_type, killed):
    if killed:  # between asking and claiming
        with monkeypatch.context() as patch:
            patch.setattr(ledger, "claim_request", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                claim(run(run_type=run_type))
    else:
        claim(run(run_type=run_type))
    pass_time(DAY)
    again = claim(run(run_type=run_type))
    (request,) = ledger.requests("flights")
    assert (again["id"], request.state, request.dag_run) == (request.id, "claimed", "scheduled__1")


def test_a_run_that_is_cleared_after_its_request_ended_finds_it(pass_time):
    request = claim(run())
    ledger.conclude_training(request["id"], "scheduled__1", "refused")
    pass_time(DAY)
    assert claim(run())["id"] == request["id"] and len(ledger.requests("flights")) == 1


def test_a_second_run_that_asks_for_the_same_is_told_what_became_of_it(pass_time):
    params = {"cutoff": "2013-05-01T10:00:00Z", "reason": "first_model"}
    request = claim(run("one", "manual"), params)
    with pytest.raises(
        AirflowSkipException,
        match=rf"asked for before: request {request['id']} .* is claimed, by run one. Nothing to do",
    ):
        claim(run("two", "manual"), params)
    ledger.settle_request(request["id"], "failed", reason="no luck")
    # The request has ended, so this is a new one.
    assert claim(run("three", "manual"), params)["id"] != request["id"]
    with pytest.raises(
        AirflowSkipException, match=rf"is not open any more: request {request['id']} .* is failed \(no luck\)"
    ):
        claim(run("four", "manual"), {"request": request["id"]})


def test_a_step_renews_the_lease_and_is_skipped_when_another_run_has_the_request(pass_time):
    request = claim(run("one", "manual"))["id"]
    before = ledger.get_request(request).deadline
    pass_time(timedelta(hours=1))
    refuse_frozen_step("flights", request, "one", None)
    assert ledger.get_request(request).deadline > before
    ledger.release_request(request, "one")
    claim(run("two", "manual"), {"request": request})
    with pytest.raises(AirflowSkipException, match="or when its lease ran out. Now request .* is claimed, by run two"):
        refuse_frozen_step("flights", request, "one", None)


def test_a_backfill_is_refused_with_what_to_do_and_takes_up_no_request(pass_time):
    waiting = ledger.request_retraining(
        "flights", cutoff=iso(ledger.now("flights")), reason="drift", asked_by="monitor"
    )
    backfill = run("backfill__1", DagRunType.BACKFILL_JOB)
    with pytest.raises(AirflowFailException, match="does not run for dates of the past.*airloop rewind"):
        claim(backfill)
    assert ledger.get_request(waiting.id).state == "open"
    with DAG("any"):
        decide = decide_cutoff(get_project("flights")).operator.python_callable
    with pytest.raises(AirflowFailException, match="does not run for dates of the past"):
        decide("flights", dag_run=backfill, params={"cutoff": iso(AT)})
