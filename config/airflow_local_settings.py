"""Prepare each Airflow process as it starts.

Each process hides the settings' secrets in its logs, and its parsed tasks do not repeat the DAG's
parameters. The scheduler also warms the workers and keeps the tasks' logs out of its own. The
triggerer warms itself if it watches pods.

LocalExecutor forks its workers from the scheduler, and the workers fork the tasks. A library that
is imported here costs a task nothing: feast, evidently and great_expectations alone take 4 to 6 s
in each new process. Import only third-party libraries here, so that the next task sees edits to our
own code. Nothing here may start a thread or open a connection. Training steps are forked from their
tasks in turn (``include.dag_kit.forked_process``). ``AIRLOOP_PRELOAD_LIBRARIES=false`` turns the
warming off.
"""

import os
import sys

from airflow._shared.secrets_masker import mask_secret
from airflow.sdk.log import mask_secret as mask_in_tasks

from include.settings import AIRFLOW_SECRET_VARIABLES, TELEMETRY_OFF, get_settings, known_secrets

for secret in known_secrets(
    os.environ
):  # tasks are forked from here and inherit it: so in rendered templates too, before a task's own code runs
    mask_secret(secret)
    mask_in_tasks(secret)


def task_policy(task):
    """Remove the DAG's parameters from a task that is parsed.

    Airflow copies them into each task and serializes each copy, which was two thirds of the time of
    serializing a DAG with parameters. A run merges the DAG's parameters with those of the task, so
    a task needs only its own.
    """
    # The class is in memory when a DAG file is parsed.
    from airflow.sdk.definitions.param import ParamsDict

    task.params = ParamsDict.filter_params_by_source(ParamsDict(task.params), "task")


# Before any library is imported: a thread that is looking up a name when a worker is forked leaves
# the C library's lock for names locked there, for ever, and the worker's first task waits on it,
# queued and never begun.
for name, value in TELEMETRY_OFF.items():
    os.environ.setdefault(name, value)

PRELOADED = (
    "boto3",  # by Airflow itself, in each process, at its first asset (the amazon provider has a say about URIs)
    "pandas",
    "pyarrow.dataset",
    "pyarrow.parquet",
    "deltalake",
    "duckdb",
    "mlflow",
    "great_expectations",
    "feast",
    "evidently",
    "sklearn.pipeline",
    "sklearn.ensemble",
    "sklearn.linear_model",
    "torch",
    "onnx",
    "onnxruntime",
    "skl2onnx",
    "matplotlib.figure",
)
# Importing them takes 2 s: for each task with a pod, and for the triggerer when it watches its
# first one.
PODS = (
    "kubernetes.client",
    "kubernetes.config",
    "kubernetes.watch",
    "kubernetes_asyncio.client",
    "kubernetes_asyncio.config",
)

if sys.argv[1:2] in (["scheduler"], ["triggerer"]):
    import logging
    from importlib import import_module
    from importlib.util import find_spec

    settings = get_settings()
    if settings.preload_libraries and settings.compute == "kubernetes":
        for name in PODS:
            import_module(name)

    if settings.preload_libraries and sys.argv[1] == "scheduler":
        logging.getLogger("great_expectations").setLevel(logging.WARNING)  # its import says hundreds of things
        for name in (*PRELOADED, "s3fs") if settings.store.startswith("s3://") else PRELOADED:
            if find_spec(
                name.partition(".")[0]
            ):  # where training steps are pods, Airflow's image lacks what only they need
                import_module(name)
        os.environ["AIRFLOW_WORKERS_ARE_WARM"] = "yes"

    if sys.argv[1] == "scheduler":
        from airflow.sdk.execution_time import supervisor

        supervise = supervisor.supervise_task

        def supervise_quietly(*args, **kwargs):
            """Run a task of LocalExecutor, in the worker process that the scheduler forked."""
            # A task and the programs that it starts do not inherit these variables. This keeps them
            # out of printed environments and of crash reports. It is no boundary: the task is a
            # fork of the scheduler and has its memory (docs/runbooks/access.md).
            for name in AIRFLOW_SECRET_VARIABLES:
                os.environ.pop(name, None)
            # LocalExecutor repeats each task's log on the scheduler's own output, where Airflow
            # does not mask the secrets that a task met.
            return supervise(*args, **kwargs | {"subprocess_logs_to_stdout": False})

        supervisor.supervise_task = supervise_quietly
