"""Create the Kubernetes secrets of each part from the settings: `airloop kubernetes-secrets`.

Each part gets only what it needs.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from include.settings import REQUIRED_BY_PART, Settings, SettingsError, secret_fields
from include.stack.accounts.access import mlflow_credentials, secrets_backend
from include.stack.environment import remote_logging, storage_connection

# Settings of one machine, and settings that the chart provides. CHART_MANAGED_FIELDS maps the names
# in Airflow's chart to the settings.
EXCLUDED_FIELDS = {
    "home",
    "host",
    "dags_folder",
    "secrets_dir",
    "airflow_port",
    "mlflow_port",
    "serving_port",
    "preload_libraries",
    "pod_template",
    "sample_days",
    "git_sha",
}
CHART_MANAGED_FIELDS = {
    "connection": "airflow_database_url",
    "fernet-key": "airflow_fernet_key",
    "api-secret-key": "airflow_api_secret_key",
    "jwt-secret": "airflow_jwt_secret",
    "admin-password": "airflow_admin_password",
}
STORE = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
OBJECT_STORE_VARIABLES = ("AWS_ENDPOINT_URL", "AWS_REGION")
# The chart provides mlflow_username.
MLFLOW_SECRET_FIELDS = tuple(name for name in REQUIRED_BY_PART["mlflow"] if name != "mlflow_username")
# Name of the tasks' key in serving's file of keys.
HOUSE_KEY = "airloop"
# Name of the key that only gives access to the metrics.
METRICS_KEY = "prometheus"


def secrets(
    settings: Settings,
    environment: Mapping[str, str] = os.environ,
    *,
    namespace: str = "airloop",
    airflow_namespace: str = "airflow",
    keys_file: Path | None = None,
) -> list[dict[str, Any]]:
    """Return the secrets as Kubernetes objects.

    Args:
        environment: Contains the object store's credentials, ``AWS_ACCESS_KEY_ID`` and
            ``AWS_SECRET_ACCESS_KEY``. Credentials of one part are in ``AIRFLOW_AWS_...``,
            ``MLFLOW_AWS_...``, ``SERVING_AWS_...``, ``TRAINING_AWS_...``. Without any, service
            accounts give access. ``SERVING_METRICS_KEY`` is the key with which Prometheus reads
            serving's metrics. Without it no such key is created.
        namespace: Namespace of MLflow and serving.
        keys_file: Serving's file of keys for people. Airloop's own keys are added.

    Raises:
        SettingsError: A value is missing or invalid. The message names it.
    """
    if settings.profile != "kubernetes":
        raise SettingsError(
            f"AIRLOOP_PROFILE is '{settings.profile}'; the secrets of a cluster are made of the settings of one:"
            " AIRLOOP_PROFILE=kubernetes"
        )
    settings.require()
    if settings.mlflow_uri is None or settings.serving_uri is None:
        raise SettingsError(
            "AIRLOOP_MLFLOW_URI and AIRLOOP_SERVING_URI are not both set; Airflow's pods need these addresses"
        )
    login = mlflow_credentials(settings)
    objects = [
        _secret("airloop-airflow", airflow_namespace, dict(_of_airflow(settings, environment)) | login),
        _secret(
            "airloop-airflow-keys",
            airflow_namespace,
            {key: _plain(settings, field) for key, field in CHART_MANAGED_FIELDS.items()},
        ),
        _secret(
            "airloop-mlflow",
            namespace,
            _variables(settings, MLFLOW_SECRET_FIELDS) | _store("MLFLOW", environment),
        ),
        _secret(
            "airloop-serving",
            namespace,
            mlflow_credentials(settings, reads_only=True) | _of_serving(settings) | _store("SERVING", environment),
        ),
        _secret("airloop-serving-keys", namespace, {"keys.json": _keys(settings, keys_file, environment)}),
    ]
    # For Prometheus. Serving has only the hash of the key.
    if environment.get("SERVING_METRICS_KEY"):
        objects.append(_secret("airloop-serving-metrics", namespace, {"key": environment["SERVING_METRICS_KEY"]}))
    # For example for pods without storage_secret, which access the store through a service account.
    if settings.mlflow_secret:
        objects.append(_secret(settings.mlflow_secret, settings.kubernetes_namespace, login))
    if settings.storage_secret:
        place = {name: environment[name] for name in OBJECT_STORE_VARIABLES if environment.get(name)}
        objects.append(
            _secret(
                settings.storage_secret, settings.kubernetes_namespace, place | _store("TRAINING", environment) | login
            )
        )
    return objects


def training_namespace(settings: Settings) -> dict[str, Any]:
    """Return the training namespace as a Kubernetes object.

    It enforces the Pod Security Standard ``restricted``, because its pods run external data and
    code.
    """
    labels = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "audit", "warn")}
    return {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": settings.kubernetes_namespace, "labels": labels},
    }


def _of_airflow(settings: Settings, environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield the variables that tasks read.

    They contain neither the URL of Airflow's database nor its keys nor the admin's password.
    """
    hidden = (
        set(secret_fields()) - {*REQUIRED_BY_PART["tasks"], "optuna_url"}
        | set(CHART_MANAGED_FIELDS.values())
        | EXCLUDED_FIELDS
    )
    visible = set(type(settings).model_fields) - hidden
    yield from (
        (name, value)
        for name, value in settings.environment().items()
        if name.removeprefix("AIRLOOP_").lower() in visible
    )
    yield "MLFLOW_TRACKING_URI", settings.mlflow_url
    yield from remote_logging(settings).items()
    yield from secrets_backend(settings).items()
    credentials = {**environment, **_store("AIRFLOW", environment)}
    # The workers' service account gives access, but the connection must exist.
    if settings.storage_connection and not credentials.get(STORE[0]):
        place = {"region_name": environment.get("AWS_REGION"), "endpoint_url": environment.get("AWS_ENDPOINT_URL")}
        extra = {name: value for name, value in place.items() if value}
        yield f"AIRFLOW_CONN_{settings.storage_connection.upper()}", json.dumps({"conn_type": "aws", "extra": extra})
    yield from storage_connection(settings, credentials).items()


def _of_serving(settings: Settings) -> dict[str, str]:
    """Return the variables that serving's feature_store.yaml needs."""
    return {
        "AIRLOOP_FEAST_REGISTRY": settings.feast_registry_to_read,
        "AIRLOOP_FEAST_ONLINE_STORE": settings.feast_environment["AIRLOOP_FEAST_ONLINE_STORE"],
    }


def _variables(settings: Settings, names: tuple[str, ...]) -> dict[str, str]:
    return {f"AIRLOOP_{name.upper()}": _plain(settings, name) for name in names}


def _store(part: str, environment: Mapping[str, str]) -> dict[str, str]:
    credentials = {name: environment.get(f"{part}_{name}") or environment.get(name, "") for name in STORE}
    if any(credentials.values()) and not all(credentials.values()):
        raise SettingsError(
            f"of {STORE[0]} and {STORE[1]} (or {part}_{STORE[0]} and {part}_{STORE[1]}) only one is set"
        )
    return credentials if all(credentials.values()) else {}


def _keys(settings: Settings, file: Path | None, environment: Mapping[str, str]) -> str:
    """Return serving's file of keys. It contains only hashes."""
    metrics = environment.get("SERVING_METRICS_KEY", "")
    if metrics and len(metrics) < 12:
        raise SettingsError("SERVING_METRICS_KEY is shorter than 12 characters. `airloop init-env` makes one")
    given = [
        (HOUSE_KEY, _plain(settings, "serving_api_key"), ["predict", "feedback"]),
        *([(METRICS_KEY, metrics, ["metrics"])] if metrics else []),
    ]
    own = [
        {"name": name, "sha256": hashlib.sha256(key.encode()).hexdigest(), "roles": roles} for name, key, roles in given
    ]
    try:
        others = json.loads(file.read_text())["keys"] if file else []
        return json.dumps(
            {"keys": [*own, *(other for other in others if other["name"] not in {key["name"] for key in own})]},
            indent=1,
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SettingsError(
            f"{file} is not a file of keys (python -m serving.keys creates one): {type(error).__name__}"
        ) from None


def _plain(settings: Settings, name: str) -> str:
    value = getattr(settings, name)
    return "" if value is None else value.get_secret_value() if hasattr(value, "get_secret_value") else str(value)


def _secret(name: str, namespace: str, content: dict[str, str]) -> dict[str, Any]:
    labels = {"app.kubernetes.io/part-of": "airloop", "app.kubernetes.io/managed-by": "airloop"}
    metadata = {"name": name, "namespace": namespace, "labels": labels}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata,
        "type": "Opaque",
        "stringData": {k: v for k, v in content.items() if v},
    }
