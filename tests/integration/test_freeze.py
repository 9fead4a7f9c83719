"""A frozen project through the real DAGs: nothing is trained, promoted or rolled out; the rest goes on; what waited is taken up after the thaw."""

from datetime import UTC, datetime

import pytest

from include import ledger
from include.data import layout
from include.ledger import database
from include.operations import freezing
from include.projects import get_project
from tests.integration.test_train_deploy import FIRST, LATER, TREES, aliases, loop, requests_by_reason, rows  # noqa: F401

FLIGHTS = get_project("flights")
pytestmark = [pytest.mark.timeout(1800), pytest.mark.usefixtures("loop")]


def freeze(why="audit until Friday"):
    return freezing.freeze("flights", by="jo", why=why)[0]


def forget_the_ledger():
    """As a process that starts anew."""
    for engine in database._engines.values():
        engine.dispose()
    database._engines.clear()


def test_a_frozen_project_trains_nothing_and_promotes_nothing_and_says_who_froze_it(run_dag):
    first = run_dag("flights__train", {"cutoff": FIRST, "reason": "first_model", "candidates": TREES})
    assert first.results["register"]["gate"] == "passed", first.log[-3000:]
    freeze()
    forget_the_ledger()

    # Its deployment waits: neither alias nor request move, nothing fails.
    held = run_dag("flights__deploy", {"cutoff": FIRST})
    assert held.state == "success" and held.tasks["smoke_test"] == held.tasks["promote"] == held.tasks["put_old_one_back"] == "skipped"
    assert "version 1 is not promoted: flights is frozen since" in held.log and "by jo: audit until Friday" in held.log
    assert aliases() == {"challenger": "1"}
    request = requests_by_reason()["first_model"]
    assert request.state == "passed" and request.outcome["deploy"] == "frozen" and "by jo: audit until Friday" in request.outcome["deploy_reason"]
    by_hand = run_dag("flights__deploy", {"cutoff": FIRST, "version": "1"})
    assert by_hand.tasks["promote"] == "skipped" and aliases() == {"challenger": "1"}

    # A person asks for a training: it is written down, and waits.
    asked = run_dag("flights__train", {"cutoff": LATER, "reason": "newer", "candidates": TREES})
    assert asked.state == "success" and set(asked.tasks.values()) == {"skipped"} and not asked.events
    assert "nothing is trained: flights is frozen since" in asked.log and "by jo: audit until Friday (`airloop thaw flights` ends it)" in asked.log
    report = (layout.report(FLIGHTS, "flights__train", asked.run_id, "claim_request") / "index.html").read_text()
    assert "by jo: audit until Friday" in report and requests_by_reason()["newer"].id in report
    assert requests_by_reason()["newer"].state == "open" and requests_by_reason()["newer"].dag_run is None
    assert ledger.decisions("flights", "train")[-1]["verdict"] == "frozen"

    # What takes in and watches goes on; and does not wake what would only be skipped.
    feed = FLIGHTS.module("feed")
    feed.drop(FLIGHTS, since=datetime(2012, 12, 30, tzinfo=UTC), until=datetime(2013, 1, 2, 10, tzinfo=UTC))
    ingested = run_dag("flights__ingest", {"cutoff": "2013-01-02T10:00:00Z"})
    assert ingested.state == "success" and [name for name, _ in ingested.events] == ["flights.tables"]
    watched = run_dag("flights__monitor", {"cutoff": LATER})
    assert watched.state == "success" and watched.tasks["request_retraining"] == "skipped" and not watched.events

    # After the thaw both are to be taken up: each by a run of its own, which the thaw starts (tests/loop sees it do so).
    ledger.thaw("flights", by="jo")
    waiting = freezing.waiting_runs("flights", "")
    assert [(dag_id, conf) for dag_id, _, conf in waiting] == [
        ("flights__train", {"request": requests_by_reason()["newer"].id}),
        ("flights__deploy", {"cutoff": FIRST}),
    ]
    assert run_dag("flights__monitor", {"cutoff": LATER}).events[0][0] == "flights.retrain_request"  # so does the next monitor, if the thaw could not
    deployed = run_dag(waiting[1][0], waiting[1][2])
    assert deployed.state == "success" and aliases() == {"challenger": "1", "champion": "1"}, deployed.log[-3000:]
    assert requests_by_reason()["first_model"].state == "deployed"
    trained = run_dag(waiting[0][0], waiting[0][2])
    assert trained.state == "success" and trained.results["register"]["request"] == requests_by_reason()["newer"].id, trained.log[-3000:]
    assert sorted(requests_by_reason()) == ["first_model", "newer"]  # none was made beside
    assert freezing.waiting_runs("flights", "") == []
    again = run_dag(waiting[0][0], waiting[0][2])
    assert again.tasks["claim_request"] == "skipped" and "is not open any more" in again.log


def test_a_training_that_is_frozen_in_the_middle_gives_its_request_back_and_goes_on_after_the_thaw(run_dag, monkeypatch):
    from include.dag_kit.compute import TrainingStep

    whole, done = TrainingStep._run, []

    def frozen_after_the_first_fit(step, module, arguments):
        whole(step, module, arguments)
        done.append(step._name)
        if len(done) == 1:
            freeze("the data centre moves")

    monkeypatch.setattr(TrainingStep, "_run", frozen_after_the_first_fit)
    half = run_dag("flights__train", {"cutoff": FIRST, "reason": "first_model", "candidates": TREES})
    assert half.state == "success" and half.tasks["evaluate"] == half.tasks["register"] == "skipped", half.log[-3000:]
    assert len(done) == 1 and "the data centre moves" in half.log and not half.events
    request = requests_by_reason()["first_model"]
    assert (request.state, request.dag_run) == ("open", None)

    ledger.thaw("flights", by="jo")
    (run,) = freezing.waiting_runs("flights", "")
    rest = run_dag(run[0], run[2])
    assert rest.state == "success" and rest.results["register"]["gate"] == "passed", rest.log[-3000:]
    assert requests_by_reason()["first_model"].state == "passed" and aliases() == {"challenger": "1"}


def test_a_step_of_a_run_that_gave_its_request_back_does_not_go_on_after_the_thaw(run_dag, monkeypatch):
    """Else a thaw between two steps would have a model judged of which half the candidates were never fitted."""
    from include.dag_kit.compute import TrainingStep

    whole, done = TrainingStep._run, []

    def frozen_for_the_second_fit(step, module, arguments):
        whole(step, module, arguments)
        done.append(step._name)
        if len(done) == 1:
            freeze()

    guard = TrainingStep.execute

    def thawed_before_evaluate(step, context):
        if step.command == "evaluate":
            ledger.thaw("flights", by="jo")
        return guard(step, context)

    monkeypatch.setattr(TrainingStep, "_run", frozen_for_the_second_fit)
    monkeypatch.setattr(TrainingStep, "execute", thawed_before_evaluate)
    run = run_dag("flights__train", {"cutoff": FIRST, "reason": "first_model", "candidates": TREES})
    assert len(done) == 1 and run.tasks["evaluate"] == "skipped", (done, run.tasks)
    assert "was given back while flights was frozen" in run.log
    assert requests_by_reason()["first_model"].state == "open"
