"""Every Airflow asset, by name: the one place where two DAGs meet.

The producer of an event writes ``cutoff`` (ISO, UTC) into its ``extra``; consumers read it there (``include.dag_kit.cutoffs``).
"""

from airflow.sdk import Asset

from include.projects.base import Project


def tables(project: Project) -> Asset:
    """Validated rows were added to the project's tables. By ``ingest``."""
    return _asset(project, "tables")


def features(project: Project) -> Asset:
    """Features up to the cutoff are published and materialized. By ``build_features``."""
    return _asset(project, "features")


def predictions(project: Project) -> Asset:
    """Everything whose prediction time came before the cutoff is scored. By ``score``."""
    return _asset(project, "predictions")


def retrain_request(project: Project) -> Asset:
    """Somebody asked for a retraining; the request itself is in the ledger. By ``monitor`` and ``airloop request``."""
    return _asset(project, "retrain_request")


def challenger_model(project: Project) -> Asset:
    """A model version passed the gate. By ``train``."""
    return _asset(project, "challenger_model")


def champion_model(project: Project) -> Asset:
    """Serving answers with a new champion. By ``deploy``."""
    return _asset(project, "champion_model")


def _asset(project: Project, noun: str) -> Asset:
    return Asset(name=f"{project.name}.{noun}", uri=f"airloop://{project.name}/{noun}", group=project.name)
