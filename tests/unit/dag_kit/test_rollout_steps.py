"""RollOut defers between two looks, and fails when the policy's patience is over."""

from datetime import timedelta
from types import SimpleNamespace

import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowFailException, TaskDeferred

from include import times
from include.dag_kit import rollout_steps
from include.dag_kit.rollout_steps import RollOut
from include.rollout import document, report
from tests.unit.rollout.conftest import deployed, project, registry, serving, store  # noqa: F401
from tests.unit.rollout.test_steps import careful  # noqa: F401

CUTOFF = "2013-02-01T00:00:00Z"
CHOSEN = {"version": "2", "by_person": False, "request": None}


@pytest.fixture
def look(store, careful, monkeypatch):  # noqa: F811
    """Return a function that looks at version 2 in a run that started some time ago."""
    monkeypatch.setattr(rollout_steps, "get_project", lambda name: careful)

    def once(running_for: timedelta) -> str | None:
        with DAG("deploy", schedule=None):
            task = RollOut(task_id="roll_out", project=careful, version="2", chosen=CHOSEN, cutoff=CUTOFF)
        ti = SimpleNamespace(dag_id="deploy", run_id="run", task_id="roll_out")
        return task.execute({"ti": ti, "dag_run": SimpleNamespace(start_date=times.utc_now() - running_for)})

    return SimpleNamespace(project=careful, once=once)


def test_the_task_waits_in_the_triggerer_until_the_next_look(look):
    before = times.utc_now()
    with pytest.raises(TaskDeferred) as deferred:
        look.once(running_for=timedelta(0))
    assert deferred.value.method_name == "look"
    waits = deferred.value.trigger.moment - before
    assert look.project.rollout.look_every <= waits < look.project.rollout.look_every + timedelta(seconds=60)


def test_a_look_whose_next_one_is_within_the_patience_still_waits(look):
    left = look.project.rollout.look_every + timedelta(minutes=1)
    with pytest.raises(TaskDeferred):
        look.once(running_for=look.project.rollout.patience - left)


def test_a_rollout_that_outlasts_the_patience_fails_and_names_the_rule(look):
    with pytest.raises(AirflowFailException, match=r"rollout of version 2 is not over .*\(RolloutPolicy.patience\)"):
        look.once(running_for=look.project.rollout.patience)
    assert document.rollout_document(look.project).state in document.IN_PROGRESS, "the next task rolls it back"


def test_a_rollout_whose_steps_are_over_returns_the_version_however_long_it_took(look, monkeypatch):
    monkeypatch.setattr(report, "advance_and_report", lambda *arguments: True)
    assert look.once(running_for=2 * look.project.rollout.patience) == "2"
