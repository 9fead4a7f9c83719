"""Who is asked for what, as environment variables: Airflow's auth manager and its secrets backend, MLflow's credentials, serving's keys."""

import hashlib
import json
import os
from ipaddress import ip_address
from pathlib import Path

from include import secrets_manager
from include.settings import Settings
from include.stack import mlflow_users

FAB = "airflow.providers.fab.auth_manager.fab_auth_manager.FabAuthManager"
AWS_BACKEND = "airflow.providers.amazon.aws.secrets.secrets_manager.SecretsManagerBackend"
FILES_BACKEND = "airflow.secrets.local_filesystem.LocalFilesystemBackend"
HOUSE_KEY = "airloop"  # the name of the house's own key of serving, in its logs and metrics


def auth_manager(settings: Settings) -> dict[str, str]:
    """Airflow's auth manager: FAB with users and roles in Airflow's database, or one developer's."""
    if settings.users == "simple":
        return {}
    address = os.environ.get("AIRFLOW__API__BASE_URL") or settings.airflow_url
    return {
        "AIRFLOW__CORE__AUTH_MANAGER": FAB,
        "AIRFLOW__FAB__COOKIE_SECURE": str(address.startswith("https://")),
    }


def open_to_the_network(settings: Settings) -> str | None:
    """What is wrong with an embedded server that others than this machine reach and that asks nobody who they are; None: nothing.

    Serving answers nobody else without a key by itself, and Airflow always asks.
    """
    if settings.mlflow_uri or mlflow_users.users(settings) or _is_loopback(settings.host):
        return None
    return (
        f"AIRLOOP_HOST is {settings.host}, where others than this machine reach MLflow, and it asks nobody who they are: whoever writes its registry decides "
        "what is served. Set AIRLOOP_MLFLOW_ADMIN_PASSWORD, AIRLOOP_MLFLOW_USERNAME, AIRLOOP_MLFLOW_PASSWORD and AIRLOOP_MLFLOW_FLASK_SECRET_KEY, or take "
        "AIRLOOP_HOST away"
    )


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def secrets_backend(settings: Settings) -> dict[str, str]:
    """Where Airflow looks for connections and variables after the environment (AIRFLOW_CONN_..., AIRFLOW_VAR_...) and before its own database.

    Tasks ask the API server, so they need no access of their own.
    """
    if settings.secrets_backend == "aws":
        given = {"region_name": secrets_manager.region(), "profile_name": settings.secrets_profile}
        places = {f"{what}_prefix": f"{settings.secrets_prefix}/{what}" for what in ("connections", "variables")}
        # Options of Airflow itself are the settings' matter: it would ask for each of them, at each start.
        options = {**places, "config_prefix": None, **{name: value for name, value in given.items() if value}}
        return {"AIRFLOW__SECRETS__BACKEND": AWS_BACKEND, "AIRFLOW__SECRETS__BACKEND_KWARGS": json.dumps(options)}
    files = {f"{what}_file_path": _file_of(settings.secrets_dir, what) for what in ("connections", "variables")} if settings.secrets_dir else {}
    if not any(files.values()):
        return {}
    return {"AIRFLOW__SECRETS__BACKEND": FILES_BACKEND, "AIRFLOW__SECRETS__BACKEND_KWARGS": json.dumps({k: v for k, v in files.items() if v})}


def _file_of(folder: Path, what: str) -> str | None:
    return next((str(folder / f"{what}.{kind}") for kind in ("json", "yaml", "yml", "env") if (folder / f"{what}.{kind}").is_file()), None)


def mlflow_credentials(settings: Settings, *, reads_only: bool = False) -> dict[str, str]:
    """As MLflow's clients know them.

    Args:
        reads_only: for who writes nothing there: the account ``reader``, where there is one.
    """
    if reads_only and settings.mlflow_reader_password:
        return _login(mlflow_users.READER, settings.mlflow_reader_password.get_secret_value())
    if settings.mlflow_username and settings.mlflow_password:
        return _login(settings.mlflow_username, settings.mlflow_password.get_secret_value())
    return {}


def _login(user: str, password: str) -> dict[str, str]:
    return {"MLFLOW_TRACKING_USERNAME": user, "MLFLOW_TRACKING_PASSWORD": password}


def serving_keys(settings: Settings) -> dict[str, str]:
    """The profile, and the file by which a serving of this machine knows the house's own key, made or brought up here; other keys in it stay.

    Where the environment names a file, that is the operator's, and nothing is written. Without any, serving itself refuses to start outside embedded.
    """
    profile = {"SERVING_PROFILE": os.environ.get("SERVING_PROFILE") or settings.profile}
    if settings.serving_api_key is None or os.environ.get("SERVING_KEYS_FILE"):
        return profile
    file = settings.home / "serving" / "keys.json"
    sha256 = hashlib.sha256(settings.serving_api_key.get_secret_value().encode()).hexdigest()
    known = json.loads(file.read_text())["keys"] if file.exists() else []
    keys = [*(key for key in known if key["name"] != HOUSE_KEY), {"name": HOUSE_KEY, "sha256": sha256, "roles": ["predict", "feedback", "metrics"]}]
    if keys != known:
        file.parent.mkdir(parents=True, exist_ok=True)
        draft = file.with_name(f".{file.name}.{os.getpid()}")
        draft.touch(mode=0o600)
        draft.write_text(json.dumps({"keys": keys}, indent=1))
        draft.replace(file)
    return {"SERVING_KEYS_FILE": str(file), **profile}
