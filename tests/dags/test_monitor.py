"""Structure of the monitor DAG: one run at a time, and a sweep that does not wait for a report."""

import pytest

from dags.deploy import create_deploy_dag
from dags.monitor import create_monitor_dag
from dags.train import create_train_dag
from include.projects.flights import project as flights


@pytest.mark.parametrize("create", [create_monitor_dag, create_train_dag, create_deploy_dag])
def test_one_run_at_a_time(create):
    """monitor, train and deploy have at most one active run.

    Two runs of monitor would decide out of order and count an attempt twice. Two runs of train or
    deploy would race for one alias.
    """
    assert create(flights).max_active_runs == 1


def test_lost_events_are_sent_again_also_when_a_report_fails():
    tasks = {task.task_id: task for task in create_monitor_dag(flights).tasks}
    assert tasks["sweep_overdue"].upstream_task_ids == set()
    assert {name: tasks[name].upstream_task_ids for name in ("wake_train", "wake_deploy")} == {
        "wake_train": {"sweep_overdue"},
        "wake_deploy": {"sweep_overdue"},
    }
    wakes = {
        name: [asset.name for asset in tasks[name].outlets]
        for name in ("wake_train", "wake_deploy", "request_retraining")
    }
    assert wakes == {
        "wake_train": ["flights.retrain_request"],
        "wake_deploy": ["flights.challenger_model"],
        "request_retraining": ["flights.retrain_request"],
    }
