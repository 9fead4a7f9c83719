"""The MLflow client of this deployment."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from mlflow import MlflowClient

from include.training.tracking import tracking_client


def registry_client() -> MlflowClient:
    """Return a client of the tracking server and model registry.

    The server is MLFLOW_TRACKING_URI if set, else the settings' server.
    """
    return tracking_client()


@contextmanager
def quick() -> Iterator[None]:
    """Let MLflow's client try only once, for some seconds, inside the block.

    By default it retries for minutes, too long for a command that reports an outage.
    """
    wanted = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
