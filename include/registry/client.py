"""The MLflow client of the house; which server, is decided in one place."""

import os

from mlflow import MlflowClient

from include.training.tracking import tracking_client


def registry_client() -> MlflowClient:
    """A client of the tracking server and model registry: MLFLOW_TRACKING_URI where it is set, else the settings' server."""
    return tracking_client()


def be_quick() -> None:
    """Have MLflow's client try once, for seconds: for commands that say that a server is away. Left alone it tries for minutes."""
    os.environ.update({"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"})
