"""The tasks of each stage, one module per stage. The files in ``dags/`` connect them.

A task reads its project by name, calls the library, and translates the result for Airflow: a skip,
a branch or an asset event. ``task.function`` is the plain function, which tests call. A DAG file
gives a task its outlets, because they belong to a project: ``task.override(outlets=[...])``.
"""
