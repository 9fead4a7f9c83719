"""The tasks of ``dags/build_features.py``."""

from typing import Any

from airflow.sdk import task

from include.assets import features
from include.dag_kit.cutoffs import skip_superseded
from include.projects import get_project


@task
def compute_features(project_name: str, cutoff: str) -> dict[str, int]:
    """Compute the rows up to the cutoff into a staging folder. Skip if a later cutoff was built."""
    from include.features import build

    project = get_project(project_name)
    skip_superseded(build.superseded(project, cutoff))
    return build.compute(project, cutoff)


@task
def validate_features(project_name: str, cutoff: str, *, ti: Any = None) -> dict[str, int]:
    """Validate the staged rows, before any of them is published."""
    from include.features.validate import validate_staged

    return validate_staged(get_project(project_name), cutoff, dag_id=ti.dag_id, run_id=ti.run_id, task_id=ti.task_id)


@task
def publish_features(project_name: str, cutoff: str) -> dict[str, int | None]:
    """Append the staged rows to the feature tables, once per cutoff."""
    from include.features import build

    return build.publish(get_project(project_name), cutoff)


@task
def materialize_features(
    project_name: str, cutoff: str, versions: dict[str, Any], *, outlet_events: Any = None, run_id: Any = None
) -> None:
    """Load the newest values into the online store, and announce the features."""
    from include import ledger
    from include.features import build

    project = get_project(project_name)
    build.materialize(project, cutoff)
    ledger.record_stage(project_name, "build_features", cutoff, dag_run=run_id, summary={"versions": versions})
    outlet_events[features(project)].extra = {"cutoff": cutoff, "versions": versions}
