"""Authentication settings as environment variables.

These are Airflow's auth manager and secrets backend, MLflow's credentials, and serving's keys.
"""

import hashlib
import json
import os
from ipaddress import ip_address
from pathlib import Path

from include import secrets_manager
from include.settings import Settings
from include.stack.accounts import mlflow_users

FAB = "airflow.providers.fab.auth_manager.fab_auth_manager.FabAuthManager"
AWS_BACKEND = "airflow.providers.amazon.aws.secrets.secrets_manager.SecretsManagerBackend"
FILES_BACKEND = "airflow.secrets.local_filesystem.LocalFilesystemBackend"
# The name of Airloop's own serving key in logs and metrics.
HOUSE_KEY = "airloop"


def auth_manager(settings: Settings) -> dict[str, str]:
    """Return the variables of Airflow's auth manager.

    The manager is FAB, with users and roles in Airflow's database, or the simple one for one
    developer.
    """
    if settings.users == "simple":
        return {}
    address = os.environ.get("AIRFLOW__API__BASE_URL") or settings.airflow_url
    return {
        "AIRFLOW__CORE__AUTH_MANAGER": FAB,
        "AIRFLOW__FAB__COOKIE_SECURE": str(address.startswith("https://")),
    }


def is_exposed_without_auth(settings: Settings) -> str | None:
    """Return what is wrong with an unauthenticated server that other machines can reach, or None.

    Only MLflow is checked. Serving requires a key from other machines by default, and Airflow
    always requires a login.
    """
    if settings.mlflow_uri or mlflow_users.users(settings) or _is_loopback(settings.host):
        return None
    return (
        f"AIRLOOP_HOST is {settings.host}, where others than this machine reach MLflow, and it asks nobody who they"
        " are: whoever writes its registry decides what is served. Set AIRLOOP_MLFLOW_ADMIN_PASSWORD,"
        " AIRLOOP_MLFLOW_USERNAME, AIRLOOP_MLFLOW_PASSWORD and AIRLOOP_MLFLOW_FLASK_SECRET_KEY, or take AIRLOOP_HOST"
        " away"
    )


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def secrets_backend(settings: Settings) -> dict[str, str]:
    """Return the variables of Airflow's secrets backend for connections and variables.

    Airflow searches it after the environment (AIRFLOW_CONN_..., AIRFLOW_VAR_...) and before its own
    database. Tasks ask the API server, so they need no access to the backend.
    """
    if settings.secrets_backend == "aws":
        given = {"region_name": secrets_manager.region(), "profile_name": settings.secrets_profile}
        places = {f"{what}_prefix": f"{settings.secrets_prefix}/{what}" for what in ("connections", "variables")}
        # Airflow's own options are in the settings. Without this, Airflow would query the backend
        # for each option at each start.
        options = {**places, "config_prefix": None, **{name: value for name, value in given.items() if value}}
        return {"AIRFLOW__SECRETS__BACKEND": AWS_BACKEND, "AIRFLOW__SECRETS__BACKEND_KWARGS": json.dumps(options)}
    files = (
        {f"{what}_file_path": _file_of(settings.secrets_dir, what) for what in ("connections", "variables")}
        if settings.secrets_dir
        else {}
    )
    if not any(files.values()):
        return {}
    return {
        "AIRFLOW__SECRETS__BACKEND": FILES_BACKEND,
        "AIRFLOW__SECRETS__BACKEND_KWARGS": json.dumps({k: v for k, v in files.items() if v}),
    }


def _file_of(folder: Path, what: str) -> str | None:
    return next(
        (
            str(folder / f"{what}.{kind}")
            for kind in ("json", "yaml", "yml", "env")
            if (folder / f"{what}.{kind}").is_file()
        ),
        None,
    )


def mlflow_credentials(settings: Settings, *, reads_only: bool = False) -> dict[str, str]:
    """Return the credentials of MLflow's clients as variables.

    Args:
        reads_only: For clients that only read. They use the account ``reader`` if it exists.
    """
    if reads_only and settings.mlflow_reader_password:
        return _login(mlflow_users.READER, settings.mlflow_reader_password.get_secret_value())
    if settings.mlflow_username and settings.mlflow_password:
        return _login(settings.mlflow_username, settings.mlflow_password.get_secret_value())
    return {}


def _login(user: str, password: str) -> dict[str, str]:
    return {"MLFLOW_TRACKING_USERNAME": user, "MLFLOW_TRACKING_PASSWORD": password}


def serving_keys(settings: Settings) -> dict[str, str]:
    """Return serving's profile, and the file of keys for a serving process on this machine.

    The file is created or updated with Airloop's own key. Other keys in it stay. If the environment
    names a file, it belongs to the operator, and nothing is written. Without a file, serving
    refuses to start outside the embedded profile.
    """
    profile = {"SERVING_PROFILE": os.environ.get("SERVING_PROFILE") or settings.profile}
    if settings.serving_api_key is None or os.environ.get("SERVING_KEYS_FILE"):
        return profile
    file = settings.home / "serving" / "keys.json"
    sha256 = hashlib.sha256(settings.serving_api_key.get_secret_value().encode()).hexdigest()
    known = json.loads(file.read_text())["keys"] if file.exists() else []
    keys = [
        *(key for key in known if key["name"] != HOUSE_KEY),
        {"name": HOUSE_KEY, "sha256": sha256, "roles": ["predict", "feedback", "metrics"]},
    ]
    if keys != known:
        file.parent.mkdir(parents=True, exist_ok=True)
        draft = file.with_name(f".{file.name}.{os.getpid()}")
        draft.touch(mode=0o600)
        draft.write_text(json.dumps({"keys": keys}, indent=1))
        draft.replace(file)
    return {"SERVING_KEYS_FILE": str(file), **profile}
