"""Leases, the sweep and notices on both databases: which lease is revoked, when, how often."""

import sys
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from types import ModuleType

import pytest

from include import ledger, times
from include.ledger import lifecycle
from include.settings import SettingsError, get_settings

CUTOFF = "2013-05-01T10:00:00Z"
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
pytestmark = pytest.mark.usefixtures("own_ledger")


class Airflow:
    """A fake Airflow with states by run id and a set of paused DAGs."""

    def __init__(self) -> None:
        self.states: dict[str, str] = {}
        self.paused: set[str] = set()

    def run_state(self, dag_id: str, run_id: str) -> str | None:
        return self.states.get(f"{dag_id} {run_id}")

    def is_paused(self, dag_id: str) -> bool:
        return dag_id in self.paused


@pytest.fixture
def airflow():
    return Airflow()


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = datetime(2026, 1, 1, tzinfo=UTC)

        def pass_(self, time: timedelta) -> None:
            self.now += time

    clock = Clock()
    monkeypatch.setattr(times, "utc_now", lambda: clock.now)
    return clock


def ask(**changes):
    return ledger.request_retraining(
        "flights", **{"cutoff": CUTOFF, "reason": "drift", "asked_by": "monitor", "episode": "e1", **changes}
    ).id


def passed(request: str, version: str = "2") -> None:
    assert ledger.claim_request("flights", f"train of {request}", only=request)
    assert ledger.conclude_training(request, f"train of {request}", "passed", version=version)


def sweep(airflow) -> list[tuple[str, str]]:
    return [(one.id, one.state) for one in ledger.sweep_requests("flights", airflow)]


def test_a_training_that_failed_for_good_is_tried_again_and_fails_with_a_reason_in_the_end(airflow, clock):
    request = ask()
    for attempt in (1, 2, 3):
        run = f"train {attempt}"
        assert ledger.claim_request("flights", run).id == request
        airflow.states[f"flights__train {run}"] = "failed"
        assert sweep(airflow) == []  # it pauses first
        if attempt < 3:
            record = ledger.get_request(request)
            assert (record.state, record.attempts, record.dag_run, record.last_run) == ("open", attempt, None, run)
            assert ledger.claim_request("flights", "another") is None
            clock.pass_(lifecycle.pause(attempt) - timedelta(seconds=1))
            assert sweep(airflow) == []
            clock.pass_(timedelta(seconds=1))
            assert sweep(airflow) == [(request, "open")]
    record = ledger.get_request(request)
    assert (record.state, record.deadline) == ("failed", None)
    assert (
        record.outcome["reason"]
        == "3 attempts came to nothing; the last one: run train 3 of flights__train ended (failed) without an end"
        " for it"
    )
    assert [record.outcome["reason"] in n["text"] for n in ledger.notices("flights")] == [True]


@pytest.mark.parametrize("state", ["running", "queued"])
def test_a_run_that_goes_on_keeps_its_request_for_as_long_as_a_run_may(airflow, clock, state):
    request = ask()
    ledger.claim_request("flights", "train")
    airflow.states["flights__train train"] = state
    for _ in range(13):
        clock.pass_(DAY)
        assert sweep(airflow) == [] and ledger.get_request(request).state == "claimed"
    clock.pass_(DAY)
    assert sweep(airflow) == [] and ledger.get_request(request).state == "open"
    assert "has had it since 2026-01-01T00:00:00Z" in ledger.get_request(request).outcome["waits"]


def test_a_run_that_airflow_does_not_know_loses_its_request_with_its_lease(airflow, clock):
    request = ask()
    ledger.claim_request("flights", "train")
    clock.pass_(lifecycle.LEASE - MINUTE)
    assert sweep(airflow) == [] and ledger.get_request(request).state == "claimed"
    assert ledger.keep_request(request, "train")  # its next step
    clock.pass_(2 * MINUTE)
    sweep(airflow)
    assert ledger.get_request(request).state == "claimed"
    clock.pass_(lifecycle.LEASE)
    sweep(airflow)
    assert ledger.get_request(request).state == "open"


def test_a_run_that_lost_its_request_is_fenced_unless_it_is_cleared_in_time(airflow, clock):
    request = ask()
    ledger.claim_request("flights", "train")
    airflow.states["flights__train train"] = "failed"
    sweep(airflow)
    # Cleared: it takes its request back, during the pause or not.
    assert ledger.keep_request(request, "train")
    assert (ledger.get_request(request).state, ledger.get_request(request).dag_run) == ("claimed", "train")
    sweep(airflow)
    clock.pass_(DAY)
    assert ledger.claim_request("flights", "other").id == request
    assert not ledger.keep_request(request, "train")
    assert not ledger.conclude_training(request, "train", "passed", version="9")
    assert ledger.get_request(request).state == "claimed" and "version" not in ledger.get_request(request).outcome


def test_a_deployment_whose_event_was_lost_is_woken_again_and_no_other(airflow, clock):
    request = ask()
    passed(request)
    # Its own event is on the way.
    assert sweep(airflow) == []
    clock.pass_(lifecycle.FIRST_PAUSE)
    assert sweep(airflow) == [(request, "passed")]
    ledger.keep_deployment(request, "deploy")
    airflow.states["flights__deploy deploy"] = "running"
    clock.pass_(DAY)
    assert sweep(airflow) == [] and ledger.get_request(request).state == "deploying"
    airflow.states["flights__deploy deploy"] = "failed"
    assert sweep(airflow) == []
    record = ledger.get_request(request)
    assert (record.state, record.attempts, record.deploy_run) == ("passed", 1, None)
    clock.pass_(lifecycle.pause(1))
    assert sweep(airflow) == [(request, "passed")]


@pytest.mark.parametrize("state", ["open", "passed"])
def test_while_its_dag_is_paused_a_request_waits_says_so_and_is_told_of_once(airflow, clock, state):
    request = ask()
    dag = "flights__train"
    if state == "passed":
        passed(request)
        dag = "flights__deploy"
    airflow.paused = {dag}
    for _ in range(30):
        clock.pass_(DAY)
        assert sweep(airflow) == []
    record = ledger.get_request(request)
    assert (record.state, record.attempts, record.outcome["waits"]) == (state, 0, f"{dag} is paused")
    assert ledger.moment(record.deadline) > clock.now
    assert [f"waits: {dag} is paused" in n["text"] for n in ledger.notices("flights")] == [True]
    airflow.paused = set()
    assert sweep(airflow) == [(request, state)]


@pytest.mark.parametrize("state", ["open", "passed"])
def test_what_nobody_takes_up_fails_after_three_deadlines(airflow, clock, state):
    request = ask()
    if state == "passed":
        passed(request)
    for _ in range(2):
        clock.pass_(DAY)
        assert sweep(airflow) == [(request, state)]
    clock.pass_(DAY)
    assert sweep(airflow) == [] and ledger.get_request(request).state == "failed"
    assert "took it up by" in ledger.get_request(request).outcome["reason"]


def test_what_waits_for_its_turn_is_not_counted(airflow, clock):
    first, second = ask(), ask(cutoff="2013-06-01T10:00:00Z", episode="e2")
    ledger.claim_request("flights", "train")
    airflow.states["flights__train train"] = "running"
    for _ in range(10):
        clock.pass_(DAY)
        sweep(airflow)
    assert (ledger.get_request(first).state, ledger.get_request(second).state, ledger.get_request(second).attempts) == (
        "claimed",
        "open",
        0,
    )


def test_a_version_that_waits_for_another_deployment_is_not_counted(airflow, clock):
    first, second = ask(), ask(cutoff="2013-06-01T10:00:00Z", episode="e2")
    passed(first, "2")
    ledger.keep_deployment(first, "deploy")
    passed(second, "3")
    airflow.states["flights__deploy deploy"] = "running"
    for _ in range(10):
        clock.pass_(DAY)
        sweep(airflow)
    waiting = ledger.get_request(second)
    assert (ledger.get_request(first).state, waiting.state, waiting.attempts) == ("deploying", "passed", 0)


def test_in_a_frozen_project_everything_waits_and_goes_on_after_the_thaw(airflow, clock):
    request = ask()
    ledger.claim_request("flights", "train")
    ledger.freeze("flights", by="jo", why="audit")
    for _ in range(30):
        clock.pass_(DAY)
        assert sweep(airflow) == []
    assert (ledger.get_request(request).state, ledger.get_request(request).attempts) == ("claimed", 0)
    (frozen,) = ledger.decisions("flights", "freeze")
    assert (frozen["verdict"], frozen["reasons"]) == ("frozen", ["audit"])
    ledger.thaw("flights", by="jo")
    clock.pass_(DAY)
    sweep(airflow)
    assert ledger.get_request(request).state == "open"


def test_of_several_versions_that_passed_only_the_newest_is_woken(airflow, clock):
    requests = [ask(episode=f"e{n}") for n in (2, 10, 9)]
    for request, version in zip(requests, ("2", "10", "9"), strict=True):
        passed(request, version)
    clock.pass_(HOUR)
    assert sweep(airflow) == [(requests[1], "passed")]
    assert [ledger.get_request(one).state for one in requests] == ["superseded", "passed", "superseded"]
    assert ledger.get_request(requests[0]).outcome["deploy_reason"] == "version 10 passed after it"
    assert ledger.get_request(requests[0]).outcome["deploy"] == "superseded"


def test_a_run_that_lost_its_request_and_is_cleared_claims_it_again_before_its_pause_is_over(airflow, clock):
    earlier, request = ask(episode="e0"), ask()
    ledger.claim_request("flights", "train", only=request)
    airflow.states["flights__train train"] = "failed"
    sweep(airflow)
    assert ledger.get_request(request).not_before > times.stamp()
    assert ledger.claim_request("flights", "train").id == request  # not the earlier one, which waits for any run
    assert ledger.claim_request("flights", "another").id == earlier


def test_a_run_of_deploy_holds_a_request_that_passed_and_takes_over_from_a_run_that_is_gone(airflow, clock):
    request = ask()
    passed(request)
    ledger.keep_deployment(request, "first")
    record = ledger.get_request(request)
    assert (record.state, record.deploy_run, record.held_since) == ("deploying", "first", times.stamp())
    clock.pass_(HOUR)
    ledger.keep_deployment(request, "first")
    again = ledger.get_request(request)
    assert (again.held_since, again.deadline > record.deadline) == (record.held_since, True)
    ledger.keep_deployment(request, "second")
    assert (ledger.get_request(request).deploy_run, ledger.get_request(request).held_since) == ("second", times.stamp())
    ledger.settle_request(request, "deployed")
    ledger.keep_deployment(request, "third")
    assert (ledger.get_request(request).state, ledger.get_request(request).deploy_run) == ("deployed", "second")


def test_a_run_that_asks_is_the_identity_of_its_request(clock):
    def train(run, cutoff=CUTOFF, **how):
        return ledger.request_retraining("flights", cutoff=cutoff, reason="person", asked_by=run, by_run=True, **how)

    first = train("run 1")
    clock.pass_(HOUR)
    assert train("run 1", cutoff="2013-09-01T00:00:00Z") == first  # its retry at a later time
    # The same request, which is still waiting.
    assert train("run 2") == first
    assert train("run 3", parameters={"last_days": 9}) != first
    ledger.claim_request("flights", "run 1", only=first.id)
    ledger.settle_request(first.id, "failed", reason="no luck")
    again = train("run 4")
    assert again.id != first.id and again.state == "open"  # requested again after it has ended
    assert len(ledger.requests("flights")) == 3


def test_a_run_keeps_its_cutoff():
    assert ledger.run_cutoff("flights", "d", "r", "2013-01-01T00:00:00Z") == "2013-01-01T00:00:00Z"
    assert ledger.run_cutoff("flights", "d", "r", "2014-01-01T00:00:00Z") == "2013-01-01T00:00:00Z"
    assert ledger.run_cutoff("flights", "d", "r2", "2014-01-01T00:00:00Z") == "2014-01-01T00:00:00Z"


# --- notices --------------------------------------------------------------------------------------


def hook(monkeypatch, name: str) -> None:
    monkeypatch.setenv("AIRLOOP_NOTIFY", name)
    get_settings.cache_clear()


def test_a_notice_is_told_once_to_a_function(monkeypatch):
    notices = []
    module = ModuleType("site_hook")
    module.tell = notices.append
    monkeypatch.setitem(sys.modules, "site_hook", module)
    hook(monkeypatch, "site_hook:tell")
    for _ in range(2):
        ledger.note("flights", "a", "it failed")
    assert (ledger.tell("flights"), ledger.tell("flights")) == (1, 0)
    assert [(n["project"], n["subject"], n["text"]) for n in notices] == [("flights", "a", "it failed")]


def test_an_address_takes_it_as_json(monkeypatch):
    took = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            assert self.headers["Content-Type"] == "application/json"
            took.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        hook(monkeypatch, f"http://127.0.0.1:{server.server_port}/hook")
        ledger.note("flights", "a", "it failed")
        assert ledger.tell("flights") == 1 and b'"text": "it failed"' in took[0]
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    "name", ["no_such_module:tell", "json:no_such_function", "http://127.0.0.1:9/key-that-nobody-must-see"]
)
def test_a_hook_that_fails_is_logged_tried_again_and_given_up_and_stops_nothing(monkeypatch, caplog, name):
    hook(monkeypatch, name)
    ledger.note("flights", "a", "it failed")
    assert [ledger.tell("flights") for _ in range(7)] == [0] * 7
    assert "flights: it failed" in caplog.text
    assert caplog.text.count("AIRLOOP_NOTIFY failed") == 5 and "key-that-nobody-must-see" not in caplog.text
    assert ledger.notices("flights")[0]["told_at"] is None


def test_a_hook_that_is_neither_is_refused_by_name(monkeypatch):
    hook(monkeypatch, "tell everybody")
    with pytest.raises(SettingsError, match="AIRLOOP_NOTIFY must be a URL"):
        get_settings()
