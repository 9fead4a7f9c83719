"""The service: answers predictions of whatever model MLflow calls champion. It knows neither Airflow nor ``include``."""

import os

# ONNX Runtime tells its makers about models, their names and hashes among it, from its import on, unless it is told not to.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
