"""The MLflow client of the house; which server, is decided in one place."""

from mlflow import MlflowClient

from include.training.tracking import tracking_client


def registry_client() -> MlflowClient:
    """A client of the tracking server and model registry: MLFLOW_TRACKING_URI where it is set, else the settings' server."""
    return tracking_client()
