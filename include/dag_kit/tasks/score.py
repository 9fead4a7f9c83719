"""The tasks of ``dags/score.py``."""

from typing import Any

from airflow.sdk import task

from include.assets import predictions
from include.dag_kit.cutoffs import skip_superseded
from include.projects import get_project


@task
def predict_due(project_name: str, cutoff: str) -> dict[str, Any]:
    """Predict all examples that are due. Skip if a later cutoff was scored and nothing is left."""
    from include.scoring import batch

    project = get_project(project_name)
    scored = batch.predict_due(project, cutoff)
    skip_superseded(batch.superseded(project, cutoff, scored))
    return scored


@task
def announce_predictions(
    project_name: str, cutoff: str, scored: dict[str, Any], *, outlet_events: Any = None, run_id: Any = None
) -> None:
    """Record that everything up to the cutoff is scored, and announce the predictions."""
    from include import ledger

    ledger.record_stage(project_name, "score", cutoff, dag_run=run_id, summary=scored)
    outlet_events[predictions(get_project(project_name))].extra = {"cutoff": cutoff, **scored}
