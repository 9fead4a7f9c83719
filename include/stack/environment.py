"""The environment of the stack's processes: the configuration of Airflow on one machine.

``airflow_environment(settings)`` also runs any ``airflow`` command, or ``dag.test()``, in the same
way as the stack.
"""

import json
import os
import secrets
from base64 import urlsafe_b64encode
from collections.abc import Iterable, Mapping
from pathlib import Path

from include.data import storage
from include.settings import AIRFLOW_SECRET_VARIABLES, RENAMED, REPOSITORY, TELEMETRY_OFF, Settings, secret_fields
from include.stack.accounts import access, mlflow_users

ADMIN = "admin"
CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
# Secrets of MLflow's server, of serving and of `airloop create-databases|migrate|users`, and
# secrets that Airflow reads from its own variables. Airflow's processes do not get them as
# AIRLOOP_* variables.
NOT_AIRFLOWS = (
    "mlflow_database_url",
    "mlflow_admin_password",
    "mlflow_flask_secret_key",
    "mlflow_reader_password",
    "database_admin_url",
    "feast_readonly_url",
    "airflow_database_url",
    "airflow_fernet_key",
    "airflow_jwt_secret",
    "airflow_api_secret_key",
    "airflow_admin_password",
    "edge_signing_key",
)


# Polling and heartbeat intervals of Airflow. A variable that the user sets takes precedence.
BEATS = {
    # The default is 1 s, which is roughly added to the duration of each task.
    "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.1",
    # A large process takes some milliseconds to exit, and its end is noticed at the next heartbeat.
    # By default this takes 5 s, in which its worker is occupied. Worse, a deferred task that
    # resumes sooner is treated as lost: the scheduler mistakes the end of its first part for the
    # end of the second.
    "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "1",
    # A task survives an API server or database that is unavailable for some minutes. By default it
    # is ended after three missed heartbeats, about 30 s.
    "AIRFLOW__WORKERS__MAX_FAILED_HEARTBEATS": "10",
    "AIRFLOW__WORKERS__EXECUTION_API_RETRIES": "12",
    "AIRFLOW__WORKERS__EXECUTION_API_RETRY_WAIT_MAX": "20",
    # Tasks of a killed scheduler are retried after one minute instead of five.
    "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "30",
    # A new DAG file is listed within 1 + 2 s. A changed file is parsed as soon as its mtime is seen
    # (every loop), unless it was saved while it was being parsed. That case, and a change in a
    # project, is noticed in the next round: 0.15 to 0.3 s of CPU per file. See ``parse_interval``.
    "AIRFLOW__DAG_PROCESSOR__BUNDLE_REFRESH_CHECK_INTERVAL": "1",
    "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "2",
    "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "8",
    # By default a DAG that is saved twice keeps its old tasks for 30 s.
    "AIRFLOW__CORE__MIN_SERIALIZED_DAG_UPDATE_INTERVAL": "2",
}


def parse_interval(projects: int) -> int:
    """Return the number of seconds after which an unchanged DAG file is parsed again.

    One project needs 0.1 s of CPU for all of its DAGs. With many projects, an interval of eight
    seconds would use most of a core. A changed DAG file is parsed immediately with any interval.
    """
    return max(int(BEATS["AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL"]), projects // 2)


def _number_of_projects(settings: Settings) -> int:
    """Return the number of projects that DAG files load.

    ``include.projects`` is not used here, because MLflow's image does not have it.
    """
    if settings.project_names:
        return len(settings.project_names)
    folders = settings.project_folders or [REPOSITORY / "include" / "projects"]
    return sum(1 for folder in folders for _ in folder.glob("[!.]*/__init__.py"))


def airflow_environment(settings: Settings) -> dict[str, str]:
    """Return the whole environment of a process that is a part of this Airflow or acts as one.

    The first call creates the keys of an embedded home, readable only by their owner.
    """
    keys = airflow_keys(settings)
    return task_environment(settings) | {
        "AIRFLOW__CORE__FERNET_KEY": keys["fernet"],
        **_simple_auth_manager(settings),
        "AIRFLOW__API__SECRET_KEY": keys["api"],
        "AIRFLOW__API_AUTH__JWT_SECRET": keys["jwt"],
        # The parameter in SQLite's URL is the number of seconds that a writer waits for another
        # one. The default is five, which a loaded machine exceeds.
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": settings.airflow_database,
    }


def task_environment(settings: Settings) -> dict[str, str]:
    """Return the whole environment of a process that only runs tasks.

    This is ``airflow_environment`` without the variables of ``AIRFLOW_SECRET_VARIABLES``. Such a
    process reaches Airflow through the execution API, with the token of its task.
    """
    home = settings.home / "airflow"
    base = {
        name: value
        for name, value in base_environment(settings, without=NOT_AIRFLOWS).items()
        if name not in AIRFLOW_SECRET_VARIABLES
    }
    # Tasks get the credentials from the connection. No other process of Airflow has them.
    if settings.storage_connection:
        base = {name: value for name, value in base.items() if name not in CREDENTIALS}
    return {
        **BEATS,
        "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": str(parse_interval(_number_of_projects(settings))),
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
        # DAGs of the repository are meant to run. At most the last missed daily run starts
        # immediately, at the project's present.
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
        # LocalExecutor forks this number of workers at its start. The default is 32.
        "AIRFLOW__CORE__PARALLELISM": str(settings.parallelism),
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{settings.airflow_url}/execution/",
        "AIRFLOW__API__HOST": settings.host,
        "AIRFLOW__API__PORT": str(settings.airflow_port),
        "AIRFLOW__API__BASE_URL": settings.airflow_url,
        "AIRFLOW__API__WORKERS": "1",
        # The pages with Airflow's API documentation load scripts from another host.
        "AIRFLOW__API__ENABLE_SWAGGER_UI": "False",
        "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(home / "logs"),
        "MLFLOW_TRACKING_URI": settings.mlflow_url,
    }


def storage_connection(settings: Settings, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the object store's Airflow connection as an environment variable.

    It is made of this process's standard variables AWS_*, if they exist and the environment does
    not define a connection with that id. It exists only in the environment of Airflow's processes:
    nothing is written to a disk.
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
    """Return the variables for remote task logs.

    A task's log is uploaded when the task has ended, and its local copy is emptied. The uploaded
    log is read if the local disk does not have it.
    """
    if not settings.remote_logs:
        return {}
    return {
        "AIRFLOW__LOGGING__REMOTE_LOGGING": "True",
        "AIRFLOW__LOGGING__REMOTE_BASE_LOG_FOLDER": settings.remote_logs,
        "AIRFLOW__LOGGING__REMOTE_LOG_CONN_ID": settings.storage_connection or "",
    }


def mlflow_environment(settings: Settings) -> dict[str, str]:
    """Return the environment of the MLflow server.

    Background jobs, which evaluate language models, are off. Therefore no queue processes are
    started.
    """
    environment = base_environment(settings, without=secret_fields()) | {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        # Not an argument, because all users of the machine can read arguments.
        "MLFLOW_BACKEND_STORE_URI": settings.mlflow_database,
    }
    if storage.is_object_store(settings.store):
        storage.complete(environment)
    return environment | mlflow_users.configuration(settings)


def serving_environment(settings: Settings) -> dict[str, str]:
    """Return the environment of the service, which does not use ``AIRLOOP_*`` settings."""
    (settings.home / "feast").mkdir(parents=True, exist_ok=True)
    environment = base_environment(settings, without=secret_fields())
    if storage.is_object_store(settings.store):
        storage.complete(environment)
    return environment | {
        **settings.feast_environment,
        "AIRLOOP_FEAST_REGISTRY": settings.feast_registry_to_read,
        **access.mlflow_credentials(settings, reads_only=True),
        **access.serving_keys(settings),
        # Empty: every registered model that has a champion.
        "SERVING_MODELS": "",
        "SERVING_MLFLOW_URI": settings.mlflow_url,
        # Serving has its own feature_store.yaml.
        "SERVING_FEATURE_REPO": str(REPOSITORY / "serving"),
        "SERVING_LOG_ROOT": settings.store,
        "SERVING_CACHE": str(settings.home / "serving" / "cache"),
        "SERVING_POLL_SECONDS": "1",
    }


def base_environment(settings: Settings, without: Iterable[str] = ()) -> dict[str, str]:
    """Return the variables that all our processes get.

    These are this repository, these settings, single-threaded OpenMP and disabled telemetry.

    Args:
        without: Fields of the settings to omit: secrets that the process does not need.
    """
    # config/ contains airflow_local_settings.py.
    paths = [str(REPOSITORY), str(REPOSITORY / "config"), os.environ.get("PYTHONPATH", "")]
    known = settings.environment()
    for name in without:
        known.pop(f"AIRLOOP_{name.upper()}", None)
    unset = {f"AIRLOOP_{name.upper()}" for name in (*type(settings).model_fields, *RENAMED)} - known.keys()
    return {
        **{name: value for name, value in os.environ.items() if name not in unset},
        **known,
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(filter(None, os.pathsep.join(paths).split(os.pathsep)))),
        "PYTHONUNBUFFERED": "1",
        # Some machines set this variable. Without bytecode, these imports take minutes instead of
        # seconds.
        "PYTHONDONTWRITEBYTECODE": "",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        # Threads that wait by spinning become very slow when two fits share the cores.
        "OMP_WAIT_POLICY": "passive",
        **TELEMETRY_OFF,
        "GIT_PYTHON_REFRESH": "quiet",
        # The output goes to log files.
        "NO_COLOR": "1",
    }


def admin_password(settings: Settings) -> str:
    """Return Airflow's admin password on this machine.

    There is no default password. The first call creates one.
    """
    if settings.airflow_admin_password is not None:
        return settings.airflow_admin_password.get_secret_value()
    file = _passwords_file(settings)
    if not file.exists():
        _write_private(file, json.dumps({ADMIN: secrets.token_urlsafe(12)}))
    password: str = json.loads(file.read_text())[ADMIN]
    return password


def _simple_auth_manager(settings: Settings) -> dict[str, str]:
    if settings.users != "simple":
        return {}
    return {
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": f"{ADMIN}:admin",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(_simple_passwords(settings)),
    }


def _simple_passwords(settings: Settings) -> Path:
    """Return the file in which SimpleAuthManager finds the admin's password.

    The password comes from the settings or was generated.
    """
    file, password = _passwords_file(settings), admin_password(settings)
    if not file.exists() or json.loads(file.read_text()).get(ADMIN) != password:
        file.unlink(missing_ok=True)
        _write_private(file, json.dumps({ADMIN: password}))
    return file


def _passwords_file(settings: Settings) -> Path:
    return settings.home / "airflow" / "simple_auth_manager_passwords.json.generated"


def airflow_keys(settings: Settings) -> dict[str, str]:
    """Return the keys ``fernet``, ``jwt`` and ``api``, which all processes of one Airflow share.

    They come from the settings. In the embedded profile missing keys are generated once per home.
    """
    given = {
        "fernet": settings.airflow_fernet_key,
        "jwt": settings.airflow_jwt_secret,
        "api": settings.airflow_api_secret_key,
    }
    chosen = {name: key.get_secret_value() for name, key in given.items() if key is not None}
    if settings.profile != "embedded":
        settings.require("airflow")
        return chosen
    return _made_keys(settings) | chosen


def _made_keys(settings: Settings) -> dict[str, str]:
    file = settings.home / "airflow" / "secrets.json"
    if not file.exists():
        fernet = urlsafe_b64encode(secrets.token_bytes(32)).decode()
        _write_private(
            file, json.dumps({"fernet": fernet, "jwt": secrets.token_urlsafe(48), "api": secrets.token_urlsafe(48)})
        )
    known: dict[str, str] = json.loads(file.read_text())
    return known


def _write_private(file: Path, text: str) -> None:
    """Write the file atomically, readable only by its owner.

    If another process has created it first, that content is kept.
    """
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
