"""A frozen project through the real DAGs trains, promotes and rolls out nothing.

All other work continues. Pending work is resumed after the thaw.
"""

from datetime import UTC, datetime

import pytest

from include import ledger
from include.data import layout
from include.data.feed import drop
from include.ledger import database
from include.operations import freezing
from include.projects import get_project
from tests.integration.test_train_deploy import FIRST, LATER, TREES, aliases, loop, requests_by_reason, rows  # noqa: F401

FLIGHTS = get_project("flights")
pytestmark = [pytest.mark.timeout(1800), pytest.mark.usefixtures("loop")]


def freeze(why="audit until Friday"):
    return freezing.freeze("flights", by="jo", why=why)[0]


def forget_the_ledger():
    """Clear the cached ledger, as a new process would."""
    for engine in database._engines.values():
        engine.dispose()
    database._engines.clear()


def test_a_frozen_project_trains_nothing_and_promotes_nothing_and_says_who_froze_it(run_dag):
    first = run_dag("flights__train", {"cutoff": FIRST, "reason": "first_model", "candidates": TREES})
    assert first.results["register"]["gate"] == "passed", first.log[-3000:]
    freeze()
    forget_the_ledger()

    # Its deployment waits: neither alias nor request changes, and nothing fails.
    held = run_dag("flights__deploy", {"cutoff": FIRST})
    assert (
        held.state == "success"
        and held.tasks["smoke_test"] == held.tasks["promote"] == held.tasks["rollback"] == "skipped"
    )
    assert "version 1 is not promoted: flights is frozen since" in held.log and "by jo: audit until Friday" in held.log
    assert aliases() == {"challenger": "1"}
    request = requests_by_reason()["first_model"]
    assert (
        request.state == "passed"
        and request.outcome["deploy"] == "frozen"
        and "by jo: audit until Friday" in request.outcome["deploy_reason"]
    )
    by_hand = run_dag("flights__deploy", {"cutoff": FIRST, "version": "1"})
    assert by_hand.tasks["promote"] == "skipped" and aliases() == {"challenger": "1"}

    # A person requests a training: the request is recorded and waits.
    asked = run_dag("flights__train", {"cutoff": LATER, "reason": "newer", "candidates": TREES})
    assert asked.state == "success" and set(asked.tasks.values()) == {"skipped"} and not asked.events
    assert (
        "nothing is trained: flights is frozen since" in asked.log
        and "by jo: audit until Friday (`airloop thaw flights` ends it)" in asked.log
    )
    report = (layout.report(FLIGHTS, "flights__train", asked.run_id, "claim_request") / "index.html").read_text()
    assert "by jo: audit until Friday" in report and requests_by_reason()["newer"].id in report
    assert requests_by_reason()["newer"].state == "open" and requests_by_reason()["newer"].dag_run is None
    assert ledger.decisions("flights", "train")[-1]["verdict"] == "frozen"

    # Ingestion and monitoring continue, and do not trigger DAGs that would only skip.
    drop(FLIGHTS, since=datetime(2012, 12, 30, tzinfo=UTC), until=datetime(2013, 1, 2, 10, tzinfo=UTC))
    ingested = run_dag("flights__ingest", {"cutoff": "2013-01-02T10:00:00Z"})
    assert ingested.state == "success" and [name for name, _ in ingested.events] == ["flights.tables"]
    watched = run_dag("flights__monitor", {"cutoff": LATER})
    assert watched.state == "success" and watched.tasks["request_retraining"] == "skipped" and not watched.events

    # After the thaw both requests are resumed, each by its own run that the thaw starts (tests/loop
    # checks that it does).
    ledger.thaw("flights", by="jo")
    waiting = freezing.waiting_runs("flights", "")
    assert [(dag_id, conf) for dag_id, _, conf in waiting] == [
        ("flights__train", {"request": requests_by_reason()["newer"].id}),
        ("flights__deploy", {"cutoff": FIRST}),
    ]
    # The next monitor run also starts them, in case the thaw could not.
    assert run_dag("flights__monitor", {"cutoff": LATER}).events[0][0] == "flights.retrain_request"
    deployed = run_dag(waiting[1][0], waiting[1][2])
    assert deployed.state == "success" and aliases() == {"challenger": "1", "champion": "1"}, deployed.log[-3000:]
    assert requests_by_reason()["first_model"].state == "deployed"
    trained = run_dag(waiting[0][0], waiting[0][2])
    assert trained.state == "success" and trained.results["register"]["request"] == requests_by_reason()["newer"].id, (
        trained.log[-3000:]
    )
    assert sorted(requests_by_reason()) == ["first_model", "newer"]  # no additional request was created
    assert freezing.waiting_runs("flights", "") == []
    again = run_dag(waiting[0][0], waiting[0][2])
    assert again.tasks["claim_request"] == "skipped" and "is not open any more" in again.log


def test_a_training_that_is_frozen_in_the_middle_gives_its_request_back_and_goes_on_after_the_thaw(
    run_dag, monkeypatch
):
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
    """A step of a run that returned its request does not continue after the thaw.

    Otherwise, after a thaw between two steps, a model would be judged although half of its
    candidates were never fitted.
    """
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
