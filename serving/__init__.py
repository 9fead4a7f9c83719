"""Serve predictions of the models that MLflow calls champion.

The package imports neither Airflow nor ``include``.
"""

import os

# ONNX Runtime sends telemetry from its import on, including the names and hashes of models. This
# variable turns it off, so it is set before the import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
