"""The environment in which the stack's processes run: the one place that says how Airflow is configured on one machine.

``airflow_environment(settings)`` is also what runs any ``airflow`` command, or ``dag.test()``, just as the stack would.
"""

import json
import os
import secrets
from base64 import urlsafe_b64encode
from collections.abc import Iterable, Mapping
from pathlib import Path

from include.data import storage
from include.settings import CONTROL, QUIET, REPOSITORY, Settings, secret_fields
from include.stack import access, mlflow_users

ADMIN = "admin"
CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
# Secrets of MLflow's server, of serving and of `airloop databases|migrate|users`, and those that Airflow reads from variables of its own: no process of
# Airflow gets them as AIRLOOP_* variables.
NOT_AIRFLOWS = (
    "mlflow_database_url", "mlflow_admin_password", "mlflow_flask_secret_key", "mlflow_reader_password", "database_admin_url", "feast_reader_url",
    "airflow_database_url", "airflow_fernet_key", "airflow_jwt_secret", "airflow_api_secret_key", "airflow_admin_password",
    "edge_signing_key",
)  # fmt: skip


# How often Airflow looks and beats. Whoever sets one of these variables himself has the last word.
BEATS = {
    "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.1",  # 1 s by default: about what it adds to each task
    # A task's process that takes some milliseconds to go, as big ones do, is noticed at the next beat: by default 5 s, in which its worker is taken
    # and, worse, a deferred task that is back sooner is taken for lost (the scheduler gets its end for that of the second half).
    "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "1",
    # A task outlives an API server, or its database, that is away for some minutes: by default it is ended after three missed heartbeats, some 30 s.
    "AIRFLOW__WORKERS__MAX_FAILED_HEARTBEATS": "10",
    "AIRFLOW__WORKERS__EXECUTION_API_RETRIES": "12",
    "AIRFLOW__WORKERS__EXECUTION_API_RETRY_WAIT_MAX": "20",
    "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "30",  # tasks of a killed scheduler are tried again after a minute, not five
    # A new DAG file is listed within 1 + 2 s. A changed one is parsed as soon as its mtime is seen (every loop), except when it was saved
    # while it was being parsed; that, and a change in a project, is seen at the next round: 0.15 to 0.3 s of CPU a file.
    "AIRFLOW__DAG_PROCESSOR__BUNDLE_REFRESH_CHECK_INTERVAL": "1",
    "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "2",
    "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "8",
    "AIRFLOW__CORE__MIN_SERIALIZED_DAG_UPDATE_INTERVAL": "2",  # by default a DAG that is saved twice keeps its old tasks for 30 s
}


def airflow_environment(settings: Settings) -> dict[str, str]:
    """Return the whole environment of a process that is a part of this Airflow or talks as one.

    The first call creates the keys of an embedded home, readable by their owner only.
    """
    keys = airflow_keys(settings)
    return task_environment(settings) | {
        "AIRFLOW__CORE__FERNET_KEY": keys["fernet"],
        **_simple_auth_manager(settings),
        "AIRFLOW__API__SECRET_KEY": keys["api"],
        "AIRFLOW__API_AUTH__JWT_SECRET": keys["jwt"],
        # The parameter in SQLite's URL is how many seconds a writer waits for another one: five by default, which a loaded machine exceeds.
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": settings.airflow_database,
    }


def task_environment(settings: Settings) -> dict[str, str]:
    """Return the whole environment of a process that only runs tasks: ``airflow_environment`` without the variables of ``CONTROL``.

    Such a process reaches Airflow through the execution API, with the token of its task.
    """
    home = settings.home / "airflow"
    base = {name: value for name, value in base_environment(settings, without=NOT_AIRFLOWS).items() if name not in CONTROL}
    if settings.storage_connection:  # then tasks get them from there, and nobody else in Airflow has them
        base = {name: value for name, value in base.items() if name not in CREDENTIALS}
    return {
        **BEATS,
        **base,
        **storage_connection(settings),
        **remote_logging(settings),
        **access.auth_manager(settings),
        **access.secrets_backend(settings),
        **access.mlflow_credentials(settings),
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(settings.dags_folder),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(REPOSITORY / "plugins"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        # A DAG of the repository is meant to run. At most the last daily run that was missed starts at once, at the project's present.
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
        "AIRFLOW__CORE__PARALLELISM": str(settings.parallelism),  # LocalExecutor forks that many workers at once; the default is 32
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{settings.airflow_url}/execution/",
        "AIRFLOW__API__HOST": settings.host,
        "AIRFLOW__API__PORT": str(settings.airflow_port),
        "AIRFLOW__API__BASE_URL": settings.airflow_url,
        "AIRFLOW__API__WORKERS": "1",
        # Airflow's pages of its API's documentation load scripts from another host.
        "AIRFLOW__API__ENABLE_SWAGGER_UI": "False",
        "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(home / "logs"),
        "MLFLOW_TRACKING_URI": settings.mlflow_url,
    }


def storage_connection(settings: Settings, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The object store's Airflow connection, made of the standard variables AWS_* of this process where it has them and no connection of that id.

    It stands in the environment of Airflow's processes only: nothing of it is written to a disk.
    """
    name = settings.storage_connection
    variable = f"AIRFLOW_CONN_{(name or '').upper()}"
    if not name or variable in environment or not environment.get("AWS_ACCESS_KEY_ID"):
        return {}
    given = {"region_name": "AWS_REGION", "endpoint_url": "AWS_ENDPOINT_URL", "aws_session_token": "AWS_SESSION_TOKEN"}
    extra = {key: environment[source] for key, source in given.items() if environment.get(source)}
    credentials = {"login": environment["AWS_ACCESS_KEY_ID"], "password": environment.get("AWS_SECRET_ACCESS_KEY", "")}
    return {variable: json.dumps({"conn_type": "aws", **credentials, "extra": extra})}


def remote_logging(settings: Settings) -> dict[str, str]:
    """Tasks' logs are uploaded when a task has ended, and read there when they are not on this machine's disk, where an uploaded one is emptied."""
    if not settings.remote_logs:
        return {}
    return {
        "AIRFLOW__LOGGING__REMOTE_LOGGING": "True",
        "AIRFLOW__LOGGING__REMOTE_BASE_LOG_FOLDER": settings.remote_logs,
        "AIRFLOW__LOGGING__REMOTE_LOG_CONN_ID": settings.storage_connection or "",
    }


def mlflow_environment(settings: Settings) -> dict[str, str]:
    """For the MLflow server: no background jobs (they evaluate language models) and so no queue processes beside it."""
    environment = base_environment(settings, without=secret_fields()) | {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_BACKEND_STORE_URI": settings.mlflow_database,  # not an argument: those are for everybody on the machine to read
    }
    if storage.is_object_store(settings.store):
        storage.complete(environment)
    return environment | mlflow_users.configuration(settings)


def serving_environment(settings: Settings) -> dict[str, str]:
    """For the service, which knows nothing of ``AIRLOOP_*``."""
    (settings.home / "feast").mkdir(parents=True, exist_ok=True)
    environment = base_environment(settings, without=secret_fields())
    if storage.is_object_store(settings.store):
        storage.complete(environment)
    return environment | {
        **settings.feast_environment,
        "AIRLOOP_FEAST_REGISTRY": settings.feast_registry_to_read,
        **access.mlflow_credentials(settings, reads_only=True),
        **access.serving_keys(settings),
        "SERVING_MODELS": "",  # every registered model that has a champion
        "SERVING_MLFLOW_URI": settings.mlflow_url,
        "SERVING_FEATURE_REPO": str(REPOSITORY / "serving"),  # its own feature_store.yaml
        "SERVING_LOG_ROOT": settings.store,
        "SERVING_CACHE": str(settings.home / "serving" / "cache"),
        "SERVING_POLL_SECONDS": "1",
    }


def base_environment(settings: Settings, without: Iterable[str] = ()) -> dict[str, str]:
    """What every process of ours gets: this repository, these settings, single-threaded OpenMP, no telemetry.

    Args:
        without: fields of the settings, secrets that are none of the process's business.
    """
    paths = [str(REPOSITORY), str(REPOSITORY / "config"), os.environ.get("PYTHONPATH", "")]  # config/ holds airflow_local_settings.py
    known = settings.environment()
    for name in without:
        known.pop(f"AIRLOOP_{name.upper()}", None)
    unset = {f"AIRLOOP_{name.upper()}" for name in type(settings).model_fields} - known.keys()
    return {
        **{name: value for name, value in os.environ.items() if name not in unset},
        **known,
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(filter(None, os.pathsep.join(paths).split(os.pathsep)))),
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "",  # some machines set it; without bytecode these imports take minutes instead of seconds
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "passive",  # threads that wait for each other by spinning crawl when two fits share the cores
        **QUIET,
        "GIT_PYTHON_REFRESH": "quiet",
        "NO_COLOR": "1",  # their output goes to log files
    }


def admin_password(settings: Settings) -> str:
    """Airflow's admin password on this machine, made at the first call; there is no default one."""
    if settings.airflow_admin_password is not None:
        return settings.airflow_admin_password.get_secret_value()
    file = _passwords_file(settings)
    if not file.exists():
        _write_private(file, json.dumps({ADMIN: secrets.token_urlsafe(12)}))
    return json.loads(file.read_text())[ADMIN]


def _simple_auth_manager(settings: Settings) -> dict[str, str]:
    if settings.users != "simple":
        return {}
    return {
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": f"{ADMIN}:admin",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(_simple_passwords(settings)),
    }


def _simple_passwords(settings: Settings) -> Path:
    """The file in which SimpleAuthManager finds the admin's password, as the settings say it or as it was made here."""
    file, password = _passwords_file(settings), admin_password(settings)
    if not file.exists() or json.loads(file.read_text()).get(ADMIN) != password:
        file.unlink(missing_ok=True)
        _write_private(file, json.dumps({ADMIN: password}))
    return file


def _passwords_file(settings: Settings) -> Path:
    return settings.home / "airflow" / "simple_auth_manager_passwords.json.generated"


def airflow_keys(settings: Settings) -> dict[str, str]:
    """The keys ``fernet``, ``jwt`` and ``api``, which all processes of one Airflow share: as the settings say, else (embedded) made once for this home."""
    given = {"fernet": settings.airflow_fernet_key, "jwt": settings.airflow_jwt_secret, "api": settings.airflow_api_secret_key}
    chosen = {name: key.get_secret_value() for name, key in given.items() if key is not None}
    if settings.profile != "embedded":
        settings.require("airflow")
        return chosen
    return _made_keys(settings) | chosen


def _made_keys(settings: Settings) -> dict[str, str]:
    file = settings.home / "airflow" / "secrets.json"
    if not file.exists():
        fernet = urlsafe_b64encode(secrets.token_bytes(32)).decode()
        _write_private(file, json.dumps({"fernet": fernet, "jwt": secrets.token_urlsafe(48), "api": secrets.token_urlsafe(48)}))
    return json.loads(file.read_text())


def _write_private(file: Path, text: str) -> None:
    """Writes the file at once or not at all, for its owner's eyes; if another process was faster, its text stands."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    draft.touch(mode=0o600)
    draft.write_text(text)
    try:
        os.link(draft, file)
    except FileExistsError:
        return
    finally:
        draft.unlink()
