"""DAGs of one training step each, one DAG per compute class.

The step's pod behaves as the run's parameters specify.

* **Starts** by tests.
"""

from datetime import timedelta

from airflow.sdk import Param, dag, task

from include.dag_kit.compute import training_step
from include.projects import get_project
from include.projects.compute import ComputeClass

SMALL = {
    "cpu": 0.05,
    "memory": "64Mi",
    "memory_max": "256Mi",
    "ephemeral_storage": "64Mi",
    "timeout": timedelta(minutes=20),
    "schedule_timeout": timedelta(minutes=1),
    "start_timeout": timedelta(minutes=3),
    "node_lost_after": timedelta(seconds=15),
}
CLASSES = {
    "small": ComputeClass(**SMALL),
    "patient": ComputeClass(**SMALL | {"node_lost_after": timedelta(minutes=5)}),
    "impatient": ComputeClass(**SMALL | {"timeout": timedelta(seconds=8)}),
    # May also be placed on a node that is already known to be unresponsive.
    "anywhere": ComputeClass(
        **SMALL,
        tolerations=[
            {"key": f"node.kubernetes.io/{how}", "effect": "NoSchedule"} for how in ("not-ready", "unreachable")
        ],
    ),
    "badly_named": ComputeClass(**SMALL, image="Not/An Image"),
    "unknown_image": ComputeClass(**SMALL, image="airloop.invalid/nobody/nothing:1"),
    "gpu_test": ComputeClass(**SMALL, gpus=2),
    "gpu_many": ComputeClass(**SMALL | {"schedule_timeout": timedelta(seconds=5)}, gpus=3),
    "gpu_nowhere": ComputeClass(
        **SMALL | {"schedule_timeout": timedelta(seconds=5)}, gpus=1, node_selector={"nvidia.com/gpu.product": "H9000"}
    ),
}
PROJECT = get_project("flights").model_copy(update={"compute": CLASSES})
PARAMS = {"request": Param("r", type="string"), "behave": Param("work", type="string")}
ARGUMENTS = {"request": "{{ params.request }}", "behave": "{{ params.behave }}"}


def create_dag(compute: str):
    @dag(
        dag_id=f"pods__{compute}",
        schedule=None,
        params=PARAMS,
        default_args={"retry_delay": timedelta(seconds=1)},
        doc_md=__doc__,
    )
    def one_step():
        @task
        def read(uri: str) -> str:
            return uri

        step = training_step(
            PROJECT, "fit", compute=compute, task_id="fit", arguments=ARGUMENTS, module="tests.cluster.behaving"
        )
        read(step.output)

    return one_step()


for name in CLASSES:
    create_dag(name)
