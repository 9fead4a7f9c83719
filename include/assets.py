"""All Airflow assets by name. Assets are the only connection between two DAGs.

The producer of an event writes ``cutoff`` (ISO, UTC) into its ``extra``. Consumers read it there
(``include.dag_kit.cutoffs``).
"""

from airflow.sdk import Asset

from include.projects.base import Project


def tables(project: Project) -> Asset:
    """Return the asset that ``ingest`` updates after it adds validated rows to the tables."""
    return _asset(project, "tables")


def features(project: Project) -> Asset:
    """Return the asset that ``build_features`` updates.

    Features up to the cutoff are then published and materialized.
    """
    return _asset(project, "features")


def predictions(project: Project) -> Asset:
    """Return the asset that ``score`` updates.

    All examples whose prediction time is before the cutoff are then scored.
    """
    return _asset(project, "predictions")


def retrain_request(project: Project) -> Asset:
    """Return the asset that ``monitor`` and ``airloop retrain`` update to request a retraining.

    The request itself is in the ledger.
    """
    return _asset(project, "retrain_request")


def challenger_model(project: Project) -> Asset:
    """Return the asset that ``train`` updates after a model version passed the gate."""
    return _asset(project, "challenger_model")


def champion_model(project: Project) -> Asset:
    """Return the asset that ``deploy`` updates after serving has loaded a new champion."""
    return _asset(project, "champion_model")


def _asset(project: Project, noun: str) -> Asset:
    return Asset(name=f"{project.name}.{noun}", uri=f"airloop://{project.name}/{noun}", group=project.name)
