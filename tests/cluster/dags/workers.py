"""One fit of the project ``tiny``, one DAG per compute class.

Its candidates have one worker or several. See tests/cluster/test_workers.py.

* **Starts** by tests.
"""

from datetime import timedelta

from airflow.sdk import Param, dag

from include.dag_kit.compute import training_step
from include.projects import get_project

ARGUMENTS = {name: f"{{{{ params.{name} }}}}" for name in ("request", "candidate", "training_set")}


def create_fit_dag(compute: str):
    @dag(
        dag_id=f"workers__{compute}", schedule=None, params={name: Param("x", type="string") for name in ARGUMENTS},
        default_args={"retry_delay": timedelta(seconds=1)}, doc_md=__doc__,
    )  # fmt: skip
    def one_fit():
        training_step(get_project("tiny"), "fit", task_id="fit", compute=compute, arguments=ARGUMENTS)

    return one_fit()


for compute in get_project("tiny").compute:
    create_fit_dag(compute)
