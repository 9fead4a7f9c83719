"""Run one part of the stack in the foreground, as in a container.

    python -m include.stack.component scheduler

The process is replaced by the part's process, with the same environment as under `airloop up` on
one machine. The settings contain all differences. The container's variables ``AIRFLOW__...`` and
``MLFLOW_...`` take precedence, so a deployment can set any option of Airflow and MLflow.
"""

import os
import re
import sys
from collections.abc import Mapping
from functools import partial

from include.settings import AIRFLOW_SECRET_VARIABLES, REQUIRED_BY_PART, Settings, SettingsError, get_settings
from include.stack.environment import airflow_environment, mlflow_environment, task_environment
from include.stack.processes import Command
from include.stack.services import mlflow_server, serving_command
from include.stack.stores.migrations import MigrationError, migrate, of_mlflow

# Logs of running tasks are requested over the network, so the parts that run tasks serve them. On
# one machine the disk is shared, and this is not needed.
AIRFLOW = {
    # For a proxy that terminates TLS. FORWARDED_ALLOW_IPS lists the trusted proxies.
    "api-server": ["api-server", "--proxy-headers"],
    "scheduler": ["scheduler"],
    "dag-processor": ["dag-processor"],
    "triggerer": ["triggerer"],
    # A worker's log server would need the key of Airflow's sessions, which its tasks could then
    # read. The logs are uploaded when a task ends.
    "celery-worker": ["celery", "worker", "--skip-serve-logs"],
    # Not a permanent part. It re-encrypts Airflow's connections and variables with the first of the
    # Fernet keys, and exits.
    "rotate-fernet-key": ["rotate-fernet-key"],
}
# Parts that only run tasks. They get no secret of Airflow itself, and refuse to start with one.
TASKS_ONLY = {"celery-worker"}
# "serving" is for systemd. A container of serving runs `python -m serving`.
PARTS = (*AIRFLOW, "mlflow", "serving")


def command(settings: Settings, part: str, given: Mapping[str, str]) -> Command:
    """Return the command of a part.

    Args:
        given: The container's own environment.

    Raises:
        ValueError: The part does not exist.
        SettingsError: The part lacks a secret, or it has one that its tasks must not read. The
            message names the secret.
    """
    if part == "mlflow":
        settings.require("mlflow")
        return Command(part, mlflow_server(settings), mlflow_environment(settings) | _options(given, "MLFLOW_"))
    if part == "serving":
        return serving_command(settings)
    if part not in AIRFLOW:
        raise ValueError(f"no part '{part}'; there is {', '.join(PARTS)}")
    workers = ["--concurrency", str(settings.parallelism)] if part == "celery-worker" else []
    arguments = [sys.executable, "-m", "airflow", *AIRFLOW[part], *workers]
    options = _options(given, "AIRFLOW__")
    if part in TASKS_ONLY:
        settings.require("tasks")
        _refuse_control_secrets(settings, part, given)
        return Command(part, arguments, task_environment(settings) | options)
    settings.require("tasks", "airflow")
    return Command(part, arguments, airflow_environment(settings) | options)


def control_secrets(settings: Settings, given: Mapping[str, str]) -> list[str]:
    """Return the names of the variables that contain secrets of Airflow itself.

    Both the settings and the environment are searched, for every form that Airflow reads.
    """
    fields = [name for name in (*REQUIRED_BY_PART["airflow"], *REQUIRED_BY_PART["accounts"]) if getattr(settings, name)]
    forms = re.compile(
        rf"({'|'.join(AIRFLOW_SECRET_VARIABLES)}|AIRFLOW__CORE__SQL_ALCHEMY_CONN)(_ASYNC)?(_CMD|_SECRET)?|AIRFLOW_CONN_AIRFLOW_DB"
    )
    names = [name for name, value in given.items() if value and forms.fullmatch(name)]
    # Celery stores its results in Airflow's database by default.
    results = [
        name
        for name, value in given.items()
        if name.startswith("AIRFLOW__CELERY__RESULT_BACKEND") and "://" in value and value.startswith("db+")
    ]
    return [*(f"AIRLOOP_{name.upper()}" for name in fields), *names, *results]


def _refuse_control_secrets(settings: Settings, part: str, given: Mapping[str, str]) -> None:
    """Raise SettingsError if a part that runs tasks has secrets of Airflow.

    Its tasks run as the same user and could read the secrets.
    """
    if settings.profile != "embedded" and (names := control_secrets(settings, given)):
        raise SettingsError(
            f"{', '.join(names)}: set for {part}, which does not need it and whose tasks could read it. Remove it from"
            " this container"
        )


def prepare(settings: Settings, part: str) -> None:
    """Do what a part needs before it starts.

    MLflow migrates its own tables and accounts here, because no other process has its database's
    password.

    Raises:
        MigrationError: The database cannot be migrated.
    """
    if part == "mlflow":
        migrate(settings, partial(print, flush=True), of_mlflow)


def _options(given: Mapping[str, str], prefix: str) -> dict[str, str]:
    return {name: value for name, value in given.items() if name.startswith(prefix) and value}


def main(arguments: list[str]) -> None:
    """Replace this process with the part's process. Does not return."""
    if len(arguments) != 1:
        raise SystemExit(f"usage: python -m include.stack.component {{{','.join(PARTS)}}}")
    try:
        process = command(get_settings(), arguments[0], os.environ)
        prepare(get_settings(), arguments[0])
    except (ValueError, SettingsError, MigrationError) as error:
        raise SystemExit(f"{arguments[0]}: {error}") from None
    os.execve(process.arguments[0], process.arguments, process.environment)


if __name__ == "__main__":
    main(sys.argv[1:])
