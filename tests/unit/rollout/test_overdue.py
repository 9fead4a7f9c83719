"""The sweep of rollouts against a real registry: a rollout without a run continues or ends.

People are notified.
"""

from datetime import UTC, datetime, timedelta

import pytest

from include import ledger, times
from include.ledger import FrozenError, lifecycle
from include.registry import versions
from include.rollout import promotion, records
from include.rollout.document import rollout_document
from include.rollout.overdue import sweep
from tests.unit.rollout.test_promotion import CUTOFF

DAY = timedelta(days=1)
pytestmark = pytest.mark.usefixtures("store")


class Airflow:
    def __init__(self, state=None, paused=False):
        self.state, self.paused = state, paused

    def run_state(self, dag_id, run_id):
        return self.state

    def is_paused(self, dag_id):
        return self.paused


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = datetime(2026, 1, 1, tzinfo=UTC)

    clock = Clock()
    monkeypatch.setattr(times, "utc_now", lambda: clock.now)
    return clock


def promote(project, run="run"):
    return promotion.promote(project, "2", dag_run=run, cutoff=CUTOFF, by_person=False)


def with_request(project):
    """Create the request of version 2, in deployment by ``run``."""
    request = ledger.request_retraining(project.name, cutoff=CUTOFF, reason="drift", asked_by="monitor", episode="e").id
    versions.tag_version(project, "2", "request", request)
    ledger.claim_request(project.name, "train")
    ledger.conclude_training(request, "train", "passed", version="2")
    records.hold_request({"request": request}, dag_run="run")
    return request


def test_nothing_is_promoted_in_a_frozen_project(deployed):
    ledger.freeze(deployed.name, by="jo", why="audit")
    with pytest.raises(FrozenError, match="version 2 is not promoted: .* is frozen since .* by jo: audit"):
        promote(deployed)
    assert versions.aliases(deployed) == {"champion": "1"} and rollout_document(deployed).version == "1"


def test_what_is_begun_in_a_frozen_project_is_brought_to_its_end_by_its_run_and_by_no_other(deployed):
    promote(deployed)
    ledger.freeze(deployed.name, by="jo", why="audit")
    assert promote(deployed).state == "promoted"
    with pytest.raises(FrozenError):
        promote(deployed, run="another")


def test_a_new_run_adopts_the_rollout_of_a_run_that_is_gone_and_can_put_it_back(deployed):
    """A new run adopts the rollout of a lost run and can revert it.

    It used to take the version for an old champion, and kept it when serving refused it.
    """
    promote(deployed, run="gone")
    assert promote(deployed, run="new").state == "promoted"
    promotion.restore_previous(deployed, "2", dag_run="new", reason="serving refused it")
    assert versions.aliases(deployed) == {"champion": "1"}


def test_the_request_wakes_deploy_and_the_rollout_waits_for_it(deployed, clock):
    request = with_request(deployed)
    promote(deployed)
    assert sweep(deployed, Airflow("failed"))["deploy"] is None  # the request pauses
    assert ledger.get_request(request).state == "passed" and rollout_document(deployed).state == "promoted"
    clock.now += timedelta(hours=1)
    assert sweep(deployed, Airflow("failed"))["deploy"] == {"name": deployed.name, "version": "2", "cutoff": CUTOFF}


def test_a_request_that_waits_for_a_training_wakes_train(project, clock):
    """Its event was lost, so the next sweeps after its pause send another one."""
    request = ledger.request_retraining(project.name, cutoff=CUTOFF, reason="person", asked_by="jo")
    clock.now += DAY
    assert sweep(project, Airflow()) == {"train": {"request": request.id, "cutoff": CUTOFF}, "deploy": None}


def test_a_rollout_without_a_request_is_woken_three_times_and_then_taken_back(deployed, clock):
    promote(deployed)
    assert sweep(deployed, Airflow("running"))["deploy"] is None
    for _ in range(lifecycle.ATTEMPTS):
        assert sweep(deployed, Airflow("failed"))["deploy"]["version"] == "2"
    assert sweep(deployed, Airflow("failed"))["deploy"] is None
    assert versions.aliases(deployed) == {"champion": "1"} and rollout_document(deployed).state == "rolled_back"
    assert ["was taken back by monitor" in n["text"] for n in ledger.notices(deployed.name)] == [True]


@pytest.mark.parametrize("paused", [False, True])
def test_a_rollout_whose_time_is_over_is_taken_back_also_while_deploy_is_paused(deployed, clock, paused):
    request = with_request(deployed)
    promote(deployed)
    clock.now += lifecycle.ALIAS_WITHIN
    sweep(deployed, Airflow("failed", paused))
    assert versions.aliases(deployed) == {"champion": "1"}
    assert ledger.get_request(request).state == "rolled_back"
    assert sweep(deployed, Airflow("failed", paused)) == {"train": None, "deploy": None}


def test_a_rollout_whose_request_failed_is_taken_back_and_the_request_stays_failed(deployed, clock):
    request = with_request(deployed)
    promote(deployed)
    ledger.fail_request(ledger.get_request(request), "three runs failed")
    sweep(deployed, Airflow("failed"))
    assert versions.aliases(deployed) == {"champion": "1"} and ledger.get_request(request).state == "failed"


def test_a_person_s_alias_stays_when_a_rollout_is_taken_back(deployed, clock):
    promote(deployed)
    versions.move_alias(deployed, "champion", "3")
    clock.now += DAY
    sweep(deployed, Airflow("failed"))
    assert versions.aliases(deployed)["champion"] == "3" and rollout_document(deployed).state == "overtaken"


def test_a_paused_deploy_is_told_of_once_and_nothing_is_counted(deployed, clock):
    promote(deployed)
    for _ in range(3):
        assert sweep(deployed, Airflow("failed", paused=True))["deploy"] is None
    assert len(ledger.notices(deployed.name)) == 1 and rollout_document(deployed).attempts == 0


def test_in_a_frozen_project_a_rollout_waits(deployed, clock):
    promote(deployed)
    ledger.freeze(deployed.name, by="jo", why="audit")
    clock.now += DAY
    assert sweep(deployed, Airflow("failed")) == {"train": None, "deploy": None}
    assert rollout_document(deployed).state == "promoted"
