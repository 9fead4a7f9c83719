"""Every DAG run has a timeout, which exceeds the longest possible work of its tasks."""

from datetime import timedelta

import pytest

from dags.build_features import create_build_features_dag
from dags.deploy import create_deploy_dag
from dags.ingest import create_ingest_dag
from dags.monitor import create_monitor_dag
from dags.score import create_score_dag
from dags.train import create_train_dag
from include.projects.base import Candidate, Range, Search
from include.projects.compute import ComputeClass
from include.projects.flights import project as flights
from include.projects.rollout import Approval

SLOW = flights.model_copy(
    update={
        "compute": {"gpu_a": ComputeClass(timeout=timedelta(days=2))},
        "candidates": (
            *flights.candidates,
            Candidate(
                name="searched",
                trainer="torch_mlp",
                compute="gpu_a",
                search=Search(trials=30, space={"epochs": Range(low=1, high=9, whole=True)}),
            ),
        ),
        "rollout": flights.rollout.model_copy(
            update={"patience": timedelta(days=30), "approval": Approval(within=timedelta(days=20))}
        ),
    }
)
CREATE = [
    create_ingest_dag,
    create_build_features_dag,
    create_train_dag,
    create_deploy_dag,
    create_score_dag,
    create_monitor_dag,
]


@pytest.mark.parametrize("project", [flights, SLOW], ids=["flights", "slow"])
@pytest.mark.parametrize("create", CREATE)
def test_a_run_may_take_as_long_as_its_tasks_one_after_the_other(create, project):
    dag = create(project)
    assert dag.dagrun_timeout is not None
    total = timedelta()
    for task in dag.tasks:
        waits = {
            "roll_out": project.rollout.patience,
            "approve": project.rollout.approval.within if project.rollout.approval else None,
        }
        limit = waits.get(task.task_id, task.execution_timeout)
        assert limit, f"{task.task_id} has no limit"
        total += limit * (30 if task.task_id == "trial_gpu_a" else 1)
    assert timedelta(hours=1) < total < dag.dagrun_timeout, (total, dag.dagrun_timeout)


def test_every_task_of_every_dag_has_a_limit():
    for create in CREATE:
        for task in create(flights).tasks:
            assert task.execution_timeout and task.execution_timeout < timedelta(days=30), (
                f"{task.dag_id}.{task.task_id}"
            )
