"""Read by every Airflow process as it starts; here only the scheduler does something: it warms the workers.

LocalExecutor forks its workers, and these fork the tasks, from the scheduler. A library that is imported here, once, costs a task
nothing: feast, evidently and great_expectations alone take 4 to 6 s in each fresh process. Third-party libraries only, so that edits to
our own code are seen by the next task; nothing here may start a thread or open a connection. Training steps are forked from their tasks
in turn (``include.dag_kit.warm_child``). ``AIRLOOP_PRELOAD=false`` turns all of it off.
"""

import sys

PRELOADED = (
    "pandas", "pyarrow.dataset", "pyarrow.parquet", "deltalake", "duckdb", "mlflow", "great_expectations", "feast", "evidently",
    "sklearn.pipeline", "sklearn.ensemble", "sklearn.linear_model", "torch", "onnx", "onnxruntime", "skl2onnx", "matplotlib.figure",
)  # fmt: skip

if sys.argv[1:2] == ["scheduler"]:
    import logging
    import os
    from importlib import import_module

    from include.settings import get_settings

    if get_settings().preload:
        logging.getLogger("great_expectations").setLevel(logging.WARNING)  # its import says hundreds of things
        for name in PRELOADED:
            import_module(name)
        os.environ["AIRFLOW_WORKERS_ARE_WARM"] = "yes"
